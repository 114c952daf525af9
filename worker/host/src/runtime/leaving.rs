//! What a host does whose node is to leave, and how it says that nothing runs in it any more.

use std::sync::Arc;

use mobula_proto::{
    Blob, Failure, ObjectId,
    host::{Request, ToAgent},
    peer::State,
};
use mobula_store::Encoded;

use super::Runtime;
use crate::site::Site;

impl Runtime {
    /// The node is to leave, and asks whether anything would be lost if this host ended. What others hold of this host
    /// outlives it in the store, from where it moves to another node: so what is kept here goes there, too, unless this host
    /// lives on in any case.
    pub(super) fn prepare_to_end(self: &Arc<Self>) {
        let mut kept = Vec::new();
        if self.is_quiet() {
            let core = self.core.lock();
            if core.waits_for_nothing() {
                kept = core.objects.kept_here();
            }
        }
        let runtime = Arc::clone(self);
        let answer = move || {
            for (object, state) in kept {
                if let State::Inline { bytes, contains } = state
                    && let Err(failure) = runtime.move_to_store(object, bytes, &contains)
                {
                    // It is asked again soon.
                    tracing::debug!(%object, %failure, "a value cannot be moved into the store");
                    break;
                }
            }
            let idle = runtime.is_quiet() && runtime.core.lock().may_end();
            runtime.tell(ToAgent::Idle { idle });
        };
        // There may be no room at once, of which this thread would have to hear.
        self.user.spawn_blocking(answer);
    }

    /// The agent wants to know whether anything runs here: somebody else would get the host, or what it holds.
    pub(super) fn say_whether_at_rest(&self, request: Request) {
        let mut awaited = self.rest_awaited.lock();
        let at_rest = self.is_quiet();
        *awaited = (!at_rest).then_some(request);
        self.tell(ToAgent::AtRest { request, at_rest });
    }

    /// Says so if that was asked while something ran.
    pub(super) fn say_once_at_rest(&self) {
        let mut awaited = self.rest_awaited.lock();
        if let Some(request) = awaited.take_if(|_| self.is_quiet()) {
            self.tell(ToAgent::AtRest { request, at_rest: true });
        }
    }

    /// Whether nothing runs here.
    fn is_quiet(&self) -> bool {
        let (running, actors) = self.executor.load();
        running + actors == 0 && self.unsettled.lock().is_empty()
    }

    fn move_to_store(
        self: &Arc<Self>,
        object: ObjectId,
        bytes: Blob,
        contains: &[ObjectId],
    ) -> Result<(), Failure> {
        let encoded = Encoded::from(bytes);
        let copy = self.store.keep(self, object, 1, (&encoded, contains), Site::Moved)?;
        self.step(|core, out| core.own(out, |objects, fx| objects.stored(object, copy, fx)));
        Ok(())
    }
}
