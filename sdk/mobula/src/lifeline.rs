//! Telling others that one is still there.

use mobula_host::codec;
use mobula_proto::{Failure, FailureKind};

use crate::{ObjectRef, Result};

/// Lasts as long as its holder wants, at most as long as the holder's process. Others hold a [`Lifeline::watch`], whose
/// await ends when this is dropped, and when the process that made it has died: then within seconds (at once for a
/// process on a reachable node, within six seconds for a node that is gone silent).
///
/// ```
/// # use mobula::prelude::*;
/// # #[mobula::main]
/// # async fn main(_cluster: Cluster) -> mobula::Result<()> {
/// let lifeline = mobula::Lifeline::new()?;
/// let watch = lifeline.watch();
/// assert!(!watch.is_ready());
/// drop(lifeline);
/// assert_eq!(watch.await.unwrap_err().kind(), mobula::ErrorKind::Cancelled);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lifeline {
    watch: ObjectRef<()>,
}

impl Lifeline {
    /// A new one. Fails without a cluster.
    pub fn new() -> Result<Self> {
        let runtime = crate::cluster::current()?;
        let id = runtime.pending();
        Ok(Self { watch: ObjectRef::adopt(runtime, id) })
    }

    /// What others await: it never has a value, and fails with `Cancelled` when the lifeline is dropped and with
    /// `OwnerDied` when its process has died. It travels inside values; as an argument of its own it would be waited
    /// for.
    pub fn watch(&self) -> ObjectRef<()> {
        self.watch.clone()
    }

    /// Ends it as something that went well: who awaits it gets the value that it otherwise never has.
    pub(crate) fn complete(&self) -> Result<()> {
        let output = codec::encode(&())?;
        Ok(self.watch.raw.runtime.fulfil(self.watch.raw.id, &output)?)
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        // Nothing changes if it is complete.
        let failure = Failure::new(FailureKind::Cancelled, "its holder let go of it");
        self.watch.raw.runtime.fail(self.watch.raw.id, failure);
    }
}
