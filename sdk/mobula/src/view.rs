//! Looking at a value where it lies.

use std::{fmt, ops::Deref};

use mobula_host::codec::Data;
use mobula_proto::{Failure, FailureKind};
use mobula_store::{Object, archived::Archived};

/// A value in place: no copy, read-only, kept alive and pinned as long as this lives.
///
/// It derefs to the archived form of `T` ([`rkyv`]'s): numbers and strings compare and read like the original, a
/// vector is an `ArchivedVec` with slices, a map an `ArchivedHashMap`. As an argument of a task it accepts what
/// `T` accepts. A [`crate::Tensor`] needs none: it is never copied when it is read.
pub struct View<T: Data> {
    archived: Archived<T>,
}

impl<T: Data> View<T> {
    pub(crate) fn new(object: Object) -> Result<Self, Failure> {
        let archived =
            Archived::new(object).map_err(|error| Failure::new(FailureKind::Codec, error.to_string()))?;
        Ok(Self { archived })
    }

    /// The size of the whole object.
    pub fn bytes(&self) -> u64 {
        self.archived.object().blob().len() as u64
    }
}

impl View<crate::Tensor> {
    /// The tensor, sharing the same memory.
    pub fn tensor(&self) -> crate::Result<crate::Tensor> {
        Ok(mobula_host::codec::decode(self.archived.object(), mobula_host::Via::Argument)?)
    }
}

impl<T: Data> Deref for View<T> {
    type Target = T::Archived;

    fn deref(&self) -> &T::Archived {
        &self.archived
    }
}

impl<T: Data> fmt::Debug for View<T>
where
    T::Archived: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
