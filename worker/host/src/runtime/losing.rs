//! Copies that could not be read: their owners find others, run the tasks again, or say that they are lost.

use std::{collections::HashMap, future::poll_fn, sync::Arc, task::Poll};

use mobula_ownership::Via;
use mobula_proto::{
    Failure, ObjectId,
    peer::{Copy, Part, State},
};
use mobula_store::Object;

use super::{Runtime, Waiting};

impl Runtime {
    /// A copy of what is read here.
    pub(super) fn on_lost(
        self: &Arc<Self>,
        object: ObjectId,
        copy: Copy,
        failure: Failure,
        done: Box<dyn FnOnce(Result<Object, Failure>) + Send>,
    ) {
        self.lost(object, &copy);
        let runtime = self.clone();
        self.user.spawn(async move {
            match runtime.final_state(object).await {
                Some(State::Stored(newer)) if newer == copy => done(Err(failure)),
                _ => runtime.read(object, done),
            }
        });
    }

    /// What is being found or made again, once it is there. Until then it is kept, whoever asked for it and is gone.
    pub(super) fn read_later(
        self: &Arc<Self>,
        object: ObjectId,
        done: Box<dyn FnOnce(Result<Object, Failure>) + Send>,
    ) {
        self.add_ref(object);
        let runtime = self.clone();
        self.user.spawn(async move {
            runtime.final_state(object).await;
            runtime.read(object, done);
            runtime.drop_ref(object);
        });
    }

    /// Copies of a call's arguments, which its caller keeps alive meanwhile: where they lie now, or what they are. `failure` is
    /// that of one of them.
    pub(crate) async fn find_again(
        self: &Arc<Self>,
        lost: &[(ObjectId, Copy)],
        failure: &Failure,
    ) -> Result<HashMap<ObjectId, Part>, Failure> {
        self.step(|core, out| {
            core.own(out, |objects, fx| {
                for (object, copy) in lost {
                    objects.receive(*object, Via::Argument, fx);
                    objects.placed(*object, *copy);
                    objects.lost(*object, copy, fx);
                }
            });
        });
        let _held = References(self, lost);
        let mut found = HashMap::new();
        for (object, copy) in lost {
            let mut now = self.final_state(*object).await;
            if now == Some(State::Stored(*copy)) {
                // Its owner was asked, and has not been told yet: it may not know of a death that is known here.
                self.lost(*object, copy);
                now = self.final_state(*object).await;
            }
            let part = match now {
                Some(State::Stored(newer)) if newer == *copy => return Err(failure.clone()),
                Some(State::Stored(copy)) => Part::Stored { object: *object, copy },
                Some(State::Inline { bytes, .. }) => Part::Inline(bytes),
                Some(State::Failed(failure)) => return Err(*failure),
                // What is not final now never will be: the job has ended.
                Some(State::Actor { .. } | State::Pending) | None => {
                    return Err(self.ended().unwrap_or_else(|| failure.clone()));
                }
            };
            found.insert(*object, part);
        }
        Ok(found)
    }

    fn lost(self: &Arc<Self>, object: ObjectId, copy: &Copy) {
        self.step(|core, out| core.own(out, |objects, fx| objects.lost(object, copy, fx)));
    }

    /// The state of an object once it is final, or the job has ended.
    async fn final_state(self: &Arc<Self>, object: ObjectId) -> Option<State> {
        let mut waiting = Waiting::default();
        poll_fn(|poller| {
            let ready = self.poll_ready(object, &mut waiting, poller.waker());
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.state(object)
    }
}

/// A reference on each, until this is dropped.
struct References<'a>(&'a Arc<Runtime>, &'a [(ObjectId, Copy)]);

impl Drop for References<'_> {
    fn drop(&mut self) {
        for (object, _) in self.1 {
            self.0.drop_ref(*object);
        }
    }
}
