//! Types that offer serde and nothing else.

use std::ops::{Deref, DerefMut};

use rkyv::{
    Archive, Archived, Deserialize, Place, Resolver, Serialize,
    rancor::{Fallible, Source},
};
use serde::{Serialize as SerdeSerialize, de::DeserializeOwned};

/// A value that travels in serde's form (postcard). Slower than `#[mobula::data]`, and never read in place; for
/// types of other crates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serde<T>(pub T);

impl<T> Deref for Serde<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Serde<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// What [`Serde`] keeps between serializing and resolving.
pub struct SerdeResolver {
    bytes: Vec<u8>,
    inner: Resolver<Vec<u8>>,
}

impl<T: SerdeSerialize> Archive for Serde<T> {
    type Archived = Archived<Vec<u8>>;
    type Resolver = SerdeResolver;

    fn resolve(&self, resolver: Self::Resolver, out: Place<Self::Archived>) {
        resolver.bytes.resolve(resolver.inner, out);
    }
}

impl<T, S> Serialize<S> for Serde<T>
where
    T: SerdeSerialize,
    S: Fallible + rkyv::ser::Allocator + rkyv::ser::Writer + ?Sized,
    S::Error: Source,
{
    fn serialize(&self, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        let bytes = postcard::to_allocvec(&self.0).map_err(S::Error::new)?;
        let inner = bytes.serialize(serializer)?;
        Ok(SerdeResolver { bytes, inner })
    }
}

impl<T, D> Deserialize<Serde<T>, D> for Archived<Vec<u8>>
where
    T: DeserializeOwned,
    D: Fallible + ?Sized,
    D::Error: Source,
{
    fn deserialize(&self, _: &mut D) -> Result<Serde<T>, D::Error> {
        postcard::from_bytes(self.as_slice()).map(Serde).map_err(D::Error::new)
    }
}
