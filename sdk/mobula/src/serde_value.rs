//! Types that offer serde and nothing else.

use std::ops::{Deref, DerefMut};

use rkyv::{
    Archive, Deserialize, Place, Resolver, Serialize,
    rancor::{Fallible, Source},
};
use serde::de::DeserializeOwned;

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

/// How it lies in an archive.
#[derive(Archive, Serialize, Deserialize)]
pub struct Postcard(Vec<u8>);

/// What [`Serde`] keeps between serializing and resolving.
pub struct SerdeResolver {
    bytes: Postcard,
    inner: Resolver<Postcard>,
}

impl<T: serde::Serialize> Archive for Serde<T> {
    type Archived = ArchivedPostcard;
    type Resolver = SerdeResolver;

    fn resolve(&self, resolver: Self::Resolver, out: Place<Self::Archived>) {
        resolver.bytes.resolve(resolver.inner, out);
    }
}

impl<T, S> Serialize<S> for Serde<T>
where
    T: serde::Serialize,
    S: Fallible + rkyv::ser::Allocator + rkyv::ser::Writer + ?Sized,
    S::Error: Source,
{
    fn serialize(&self, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        let bytes = Postcard(postcard::to_allocvec(&self.0).map_err(S::Error::new)?);
        let inner = Serialize::serialize(&bytes, serializer)?;
        Ok(SerdeResolver { bytes, inner })
    }
}

impl<T, D> Deserialize<Serde<T>, D> for ArchivedPostcard
where
    T: DeserializeOwned,
    D: Fallible + ?Sized,
    D::Error: Source,
{
    fn deserialize(&self, _: &mut D) -> Result<Serde<T>, D::Error> {
        postcard::from_bytes(self.0.as_slice()).map(Serde).map_err(D::Error::new)
    }
}
