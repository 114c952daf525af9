//! Encoded values inside messages.

use std::{fmt, ops::Deref, sync::Arc};

use rkyv::{
    Archive, Deserialize, Place, Serialize,
    rancor::{Fallible, Source},
    ser::{Allocator, Writer},
    vec::{ArchivedVec, VecResolver},
};

/// Where archives begin, as rkyv writes them.
const ALIGN: usize = 16;

const _: () = assert!(align_of::<u128>() == ALIGN);

/// An encoded value that is small enough to travel inside a message: immutable bytes at a multiple of 16, in one
/// allocation with their count. A clone costs a reference count, so that what is sent, kept for a retry and read
/// by several is not copied.
#[derive(Clone)]
pub struct Blob {
    units: Arc<[u128]>,
    len: usize,
}

impl Blob {
    /// `len` bytes, zero until `fill` has written them.
    pub fn build<E>(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut units: Arc<[u128]> = std::iter::repeat_n(0, len.div_ceil(ALIGN)).collect();
        // A new `Arc` is always unique.
        if let Some(units) = Arc::get_mut(&mut units) {
            fill(&mut bytemuck::cast_slice_mut(units)[..len])?;
        }
        Ok(Self { units, len })
    }

    /// A copy of these bytes.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let copied = Self::build(bytes.len(), |to| {
            to.copy_from_slice(bytes);
            Ok::<_, std::convert::Infallible>(())
        });
        match copied {
            Ok(blob) => blob,
            Err(never) => match never {},
        }
    }
}

impl Default for Blob {
    fn default() -> Self {
        Self::from_slice(&[])
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.units)[..self.len]
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Blob {}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.len)
    }
}

impl Archive for Blob {
    type Archived = ArchivedVec<u8>;
    type Resolver = VecResolver;

    fn resolve(&self, resolver: Self::Resolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_slice(self, resolver, out);
    }
}

impl<S> Serialize<S> for Blob
where
    S: Fallible + Allocator + Writer + ?Sized,
{
    fn serialize(&self, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        ArchivedVec::serialize_from_slice(self, serializer)
    }
}

impl<D> Deserialize<Blob, D> for ArchivedVec<u8>
where
    D: Fallible + ?Sized,
    D::Error: Source,
{
    fn deserialize(&self, _: &mut D) -> Result<Blob, D::Error> {
        Ok(Blob::from_slice(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    #[test]
    fn a_blob_travels_and_lies_aligned() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let blob = Blob::from_slice(&bytes);
            assert_eq!(blob[..], bytes[..]);
            assert_eq!(blob.as_ptr() as usize % ALIGN, 0);
            let again: Blob = wire::decode(&wire::encode(&blob).unwrap()).unwrap();
            assert_eq!(again, blob);
            assert_eq!(again.clone().as_ptr(), again.as_ptr());
        }
    }

    #[test]
    fn what_cannot_be_filled_is_no_blob() {
        assert_eq!(Blob::build(3, |_| Err("full")).unwrap_err(), "full");
    }
}
