//! A value read where it lies: its archive is validated once, then dereferenced like a reference.

use std::{fmt, marker::PhantomData, num::NonZeroUsize, ops::Deref};

use rkyv::{
    Archive, Portable,
    api::{access_with_context, high::HighValidator},
    bytecheck::CheckBytes,
    rancor,
    validation::{Validator, archive::ArchiveValidator, shared::SharedValidator},
};

use crate::{Error, bytes::Bytes, layout::Object};

/// How deep pointers inside an archive may nest. Validation and decoding recurse, so that without a limit a
/// long chain of boxes would run over the end of the stack.
pub const DEPTH_MAX: usize = 512;

/// The validator that an archived type must accept: rkyv's own.
pub type Check<'a> = HighValidator<'a, rancor::Error>;

/// An encoded `T` that was found valid; dereferences to `T::Archived`. A clone costs a reference count.
///
/// That it stays valid rests on nobody writing its memory while [`Bytes`] of it live (ST-4, ST-5 in the
/// crate's text); bytes from outside the trust domain are copied before they come here.
pub struct Archived<T> {
    object: Object,
    value: PhantomData<fn() -> T>,
}

impl<T> Archived<T>
where
    T: Archive<Archived: Portable + for<'a> CheckBytes<Check<'a>>>,
{
    /// Validates the archive of `object` as a `T`, all of it. Buffers are not looked at.
    pub fn new(object: Object) -> Result<Self, Error> {
        let archive = object.archive();
        let depth = NonZeroUsize::new(DEPTH_MAX);
        let mut validator =
            Validator::new(ArchiveValidator::with_max_depth(archive, depth), SharedValidator::new());
        match access_with_context::<T::Archived, _, rancor::Error>(archive, &mut validator) {
            Ok(_) => Ok(Self { object, value: PhantomData }),
            Err(e) => Err(Error::Invalid {
                type_name: std::any::type_name::<T>(),
                bytes: archive.len() as u64,
                detail: e.to_string().lines().next().unwrap_or_default().to_owned(),
            }),
        }
    }

    /// Checks a blob and the archive in it.
    pub fn parse(blob: Bytes) -> Result<Self, Error> {
        Self::new(Object::parse(blob)?)
    }
}

impl<T> Archived<T> {
    /// A raw buffer beside the archive, without a copy; see [`Object::buffer`].
    pub fn buffer(&self, index: usize) -> Result<Bytes, Error> {
        self.object.buffer(index)
    }

    /// The object that holds the value.
    pub fn object(&self) -> &Object {
        &self.object
    }
}

impl<T: Archive<Archived: Portable>> Deref for Archived<T> {
    type Target = T::Archived;

    fn deref(&self) -> &T::Archived {
        // SAFETY: `new`, the only constructor, found a valid `T::Archived` at the root of exactly these
        // bytes, and they have not changed since: whoever could write them has given that up for as long as
        // the object's `Bytes` live (ST-4, and within the trust domain ST-5). `Portable` rules out interior
        // mutability, so reading through several references from several threads is fine as well.
        unsafe { rkyv::access_unchecked::<T::Archived>(self.object.archive()) }
    }
}

impl<T> Clone for Archived<T> {
    fn clone(&self) -> Self {
        Self { object: self.object.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for Archived<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple(std::any::type_name::<T>()).field(&self.object).finish()
    }
}

#[cfg(test)]
mod tests {
    use rkyv::{Deserialize, Serialize, util::AlignedVec};

    use super::*;
    use crate::layout::Encoded;

    #[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
    struct Sample {
        name: String,
        rows: Vec<(u64, f32)>,
        tag: Option<Box<u128>>,
    }

    #[derive(Archive, Serialize, Deserialize)]
    #[rkyv(serialize_bounds(__S: rkyv::ser::Writer + rkyv::ser::Allocator, __S::Error: rancor::Source))]
    #[rkyv(deserialize_bounds(__D::Error: rancor::Source))]
    #[rkyv(bytecheck(bounds(__C: rkyv::validation::ArchiveContext, __C::Error: rancor::Source)))]
    struct Chain {
        #[rkyv(omit_bounds)]
        next: Option<Box<Chain>>,
    }

    fn sample() -> Sample {
        Sample {
            name: "a name too long to be inline".into(),
            rows: vec![(1, 2.5), (3, 4.5)],
            tag: Some(Box::new(7)),
        }
    }

    fn encoded(archive: AlignedVec) -> Bytes {
        let mut front = AlignedVec::new();
        front.extend_from_slice(&[0; crate::layout::HEADER_BYTES]);
        front.extend_from_slice(&archive);
        Bytes::from_slice(&Encoded::new(&mut front, vec![Bytes::from_slice(b"raw")]).to_blob().unwrap())
    }

    #[test]
    fn a_value_is_read_where_it_lies() {
        let blob = encoded(rkyv::to_bytes::<rancor::Error>(&sample()).unwrap());
        let value = Archived::<Sample>::parse(blob.clone()).unwrap();
        assert_eq!(value.name, "a name too long to be inline");
        assert_eq!(value.rows[1].0, 3);
        assert!(blob.as_ptr_range().contains(&value.name.as_ptr()));
        assert_eq!(value.buffer(0).unwrap()[..], *b"raw");
        assert!(value.buffer(1).is_err());
        let other = value.clone();
        drop((value, blob));
        assert_eq!(rkyv::deserialize::<Sample, rancor::Error>(&*other).unwrap(), sample());
    }

    #[test]
    fn the_unit_value_needs_no_bytes() {
        let archive = rkyv::to_bytes::<rancor::Error>(&()).unwrap();
        assert!(archive.is_empty());
        let value = Archived::<()>::parse(encoded(archive)).unwrap();
        assert_eq!(*value, ());
    }

    #[test]
    fn another_type_is_a_typed_error() {
        let blob = encoded(rkyv::to_bytes::<rancor::Error>(&7u8).unwrap());
        let error = Archived::<Sample>::parse(blob).unwrap_err();
        assert!(matches!(error, Error::Invalid { bytes: 1, .. }));
        assert!(error.to_string().contains("Sample"), "{error}");
    }

    #[test]
    fn nesting_has_a_limit() {
        let chain = |depth: usize| {
            let value = (0..depth).fold(Chain { next: None }, |next, _| Chain { next: Some(Box::new(next)) });
            Archived::<Chain>::parse(encoded(rkyv::to_bytes::<rancor::Error>(&value).unwrap()))
        };
        assert!(chain(DEPTH_MAX / 2).is_ok());
        assert!(matches!(chain(DEPTH_MAX + 1), Err(Error::Invalid { .. })));
    }

    proptest::proptest! {
        #[test]
        fn mutated_archives_never_panic(at in 0usize..200, to: u8, cut in 0usize..4) {
            let mut archive = rkyv::to_bytes::<rancor::Error>(&sample()).unwrap();
            let at = at % archive.len();
            archive[at] = to;
            archive.resize(archive.len() - cut, 0);
            if let Ok(value) = Archived::<Sample>::parse(encoded(archive)) {
                let _ = rkyv::deserialize::<Sample, rancor::Error>(&*value);
            }
        }
    }
}
