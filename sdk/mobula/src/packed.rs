//! Values of any type, for code that passes them on without knowing it.

use std::hash::{DefaultHasher, Hash, Hasher};

use mobula_host::{
    Via,
    codec::{self, Data},
    context,
};
use mobula_proto::{Blob, FailureKind};
use mobula_store::Object;

use crate::{Error, ObjectRef, Result};

/// An encoded value of any type that is [`Data`], with the refs and actor handles inside it, which live as long as it
/// does. For actors that keep or pass on what they do not look at, since an actor cannot be generic.
#[crate::data]
#[derive(Clone, Debug)]
pub struct Packed {
    kind: u64,
    bytes: Blob,
    refs: Vec<ObjectRef<()>>,
}

impl Packed {
    /// Encodes a value, tensors included. Fails with `Codec` where that is not possible, and without a cluster.
    pub fn new<T: Data>(value: &T) -> Result<Self> {
        let runtime = crate::cluster::current()?;
        let output = codec::encode(value)?;
        let refs = output.refs.ids().iter().map(|id| {
            runtime.add_ref(*id);
            ObjectRef::adopt(runtime.clone(), *id)
        });
        let refs = refs.collect();
        let bytes = output.encoded.to_blob().map_err(|e| Error::new(FailureKind::Codec, e.to_string()))?;
        Ok(Self { kind: kind_of::<T>(), bytes, refs })
    }

    /// Its value. Fails with `Codec` where it is of another type.
    pub fn open<T: Data>(&self) -> Result<T> {
        if self.kind != kind_of::<T>() {
            let wanted = std::any::type_name::<T>();
            return Err(Error::new(FailureKind::Codec, format!("the packed value is not a {wanted}")));
        }
        let object = Object::from_message(self.bytes.clone())
            .map_err(|error| Error::new(FailureKind::Codec, error.to_string()))?;
        let runtime = crate::cluster::current()?;
        let _entered = context::enter(&runtime, context::task(), context::is_async());
        // The refs inside are alive, since this holds each.
        Ok(codec::decode(&object, Via::Argument)?)
    }

    /// The size of the encoded value in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Tells types apart within a program, which all processes of a job run.
fn kind_of<T>() -> u64 {
    let mut hasher = DefaultHasher::new();
    std::any::type_name::<T>().hash(&mut hasher);
    hasher.finish()
}
