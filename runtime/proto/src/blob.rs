//! Encoded values inside messages.

use std::{convert::Infallible, fmt, ops::Deref, sync::Arc};

use rkyv::{
    Archive, Deserialize, Place, Serialize,
    rancor::{Fallible, Source},
    ser::{Allocator, Writer},
    vec::{ArchivedVec, VecResolver},
};

/// Where archives begin, as rkyv writes them.
const ALIGN: usize = 16;

const _: () = assert!(align_of::<u128>() == ALIGN);

/// An encoded value that is small enough to travel inside a message: immutable bytes. A few lie in the blob itself, at a
/// multiple of 8; more at a multiple of 16 in one allocation with their count, so that a clone costs a reference count,
/// and what is sent, kept for a retry and read by several is not copied.
#[derive(Clone)]
pub struct Blob(Form);

#[derive(Clone)]
enum Form {
    Small(Small),
    Shared { units: Arc<[u128]>, len: usize },
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Small {
    bytes: [u8; Blob::SMALL_BYTES_MAX],
    len: u8,
}

const _: () = assert!(size_of::<Blob>() == 24, "queued calls keep one for each argument");

impl Blob {
    /// Longest blob without memory of its own. Unit: bytes.
    pub const SMALL_BYTES_MAX: usize = 15;

    /// `len` bytes, zero until `fill` has written them.
    pub fn build<E>(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        if len > Self::SMALL_BYTES_MAX {
            return Self::build_shared(len, fill);
        }
        let mut small = Small { bytes: [0; Self::SMALL_BYTES_MAX], len: len as u8 };
        fill(&mut small.bytes[..len])?;
        Ok(Self(Form::Small(small)))
    }

    fn build_shared<E>(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut units: Arc<[u128]> = std::iter::repeat_n(0, len.div_ceil(ALIGN)).collect();
        // A new `Arc` is always unique.
        if let Some(units) = Arc::get_mut(&mut units) {
            fill(&mut bytemuck::cast_slice_mut(units)[..len])?;
        }
        Ok(Self(Form::Shared { units, len }))
    }

    /// A copy of these bytes.
    pub fn from_slice(bytes: &[u8]) -> Self {
        infallible(Self::build(bytes.len(), |to| copy(to, bytes)))
    }

    /// The same bytes, at a multiple of 16 and where they stay however the blob is moved.
    pub fn into_shared(self) -> Self {
        match &self.0 {
            Form::Small(_) => infallible(Self::build_shared(self.len(), |to| copy(to, &self))),
            Form::Shared { .. } => self,
        }
    }
}

fn copy(to: &mut [u8], from: &[u8]) -> Result<(), Infallible> {
    to.copy_from_slice(from);
    Ok(())
}

fn infallible(built: Result<Blob, Infallible>) -> Blob {
    match built {
        Ok(blob) => blob,
        Err(never) => match never {},
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
        match &self.0 {
            Form::Small(small) => &small.bytes[..usize::from(small.len)],
            Form::Shared { units, len } => &bytemuck::cast_slice(units)[..*len],
        }
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
        write!(f, "Blob({} bytes)", self.len())
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
            let align = if len <= Blob::SMALL_BYTES_MAX { 8 } else { ALIGN };
            assert_eq!(blob.as_ptr() as usize % align, 0);
            let again: Blob = wire::decode(&wire::encode(&blob).unwrap()).unwrap();
            assert_eq!(again, blob);
            let shared = again.clone().into_shared();
            assert_eq!((&shared, shared.as_ptr() as usize % ALIGN), (&blob, 0));
            let at = shared.as_ptr();
            let moved = Box::new(shared.clone());
            assert_eq!((moved.as_ptr(), moved.into_shared().as_ptr()), (at, at));
        }
    }

    #[test]
    fn what_cannot_be_filled_is_no_blob() {
        for len in [3, 300] {
            assert_eq!(Blob::build(len, |_| Err("full")).unwrap_err(), "full");
        }
    }
}
