//! The executor's actors: their inboxes, and which of their calls may start.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use mobula_proto::{Failure, FailureKind, HostId, TaskId};
use parking_lot::Mutex;

use super::{Executor, Run, call_title};
use crate::{
    codec::Output,
    registry::{ActorState, Entry, Function},
    runtime::Runtime,
};

/// An actor that lives in this host.
pub(super) struct Actor {
    pub(super) id: TaskId,
    pub(super) incarnation: u32,
    pub(super) inner: Mutex<Inbox>,
}

#[derive(Default)]
pub(super) struct Inbox {
    pub(super) state: Option<ActorState>,
    pub(super) entries: VecDeque<Place>,
    pub(super) exclusive: bool,
    pub(super) shared: u32,
    pub(super) ended: Option<Failure>,
}

/// A place in an actor's inbox, kept while the call's arguments are fetched.
pub(super) struct Place {
    pub(super) task: TaskId,
    pub(super) caller: HostId,
    pub(super) run: Option<Box<Run>>,
}

impl Executor {
    /// Starts the actor's calls that may start now.
    pub(super) fn pump(&self, runtime: &Arc<Runtime>, actor: &Arc<Actor>) {
        while let Some(run) = self.take_next(runtime, actor) {
            self.start(runtime, run);
        }
    }

    /// The actor's next call, if it may start now.
    pub(super) fn take_next(&self, runtime: &Arc<Runtime>, actor: &Actor) -> Option<Box<Run>> {
        loop {
            let (run, failure) = {
                let mut inbox = actor.inner.lock();
                let ended = inbox.ended.clone();
                if ended.is_none() && inbox.state.is_none() {
                    return None;
                }
                let at = next_entry(&inbox)?;
                let exclusive = inbox.entries[at].run.as_ref().is_some_and(|run| is_exclusive(run.function));
                if ended.is_none() && (inbox.exclusive || (exclusive && inbox.shared > 0)) {
                    return None;
                }
                let run = inbox.entries.remove(at).and_then(|entry| entry.run)?;
                let Some(failure) = ended else {
                    if exclusive {
                        inbox.exclusive = true;
                    } else {
                        inbox.shared += 1;
                    }
                    return Some(run);
                };
                (run, failure)
            };
            let failure = failure.of(call_title(run.function, run.call));
            self.reply(runtime, run.caller, run.call, Err(failure));
        }
    }

    /// Ends an actor.
    pub(crate) fn terminate(&self, runtime: &Arc<Runtime>, id: TaskId, incarnation: u32) {
        let (actor, mut running) = {
            let mut state = self.state.lock();
            let found = match state.actors.get(&id) {
                Some(actor) if actor.incarnation == incarnation => state.actors.remove(&id),
                _ => None,
            };
            let Some(actor) = found else { return };
            let running: Vec<_> =
                state.running.values().filter(|call| call.actor == Some(id)).cloned().collect();
            (actor, running)
        };
        let state = {
            let mut inbox = actor.inner.lock();
            inbox.ended = Some(Failure::new(FailureKind::ActorDied, "the actor ended"));
            // What has not started ends below, in the actor's own order.
            running.retain(|call| inbox.entries.iter().all(|entry| entry.task != call.task));
            inbox.state.take()
        };
        for call in running {
            call.cancelled.store(true, Ordering::Relaxed);
            if let Some(abort) = call.abort.lock().as_ref() {
                abort.abort();
            }
        }
        self.pump(runtime, &actor);
        // User code in `Drop` may do anything, so not under a lock and not while a ring is drained.
        runtime.user().spawn_blocking(move || drop(state));
    }

    /// The construction of an actor ended.
    pub(super) fn constructed(
        &self,
        runtime: &Arc<Runtime>,
        run: Box<Run>,
        nanos: u64,
        result: Result<ActorState, Failure>,
    ) -> Option<Box<Run>> {
        let actor = run.actor.clone()?;
        let result = match result {
            Ok(state) => {
                let ended = {
                    let mut inbox = actor.inner.lock();
                    if inbox.ended.is_none() {
                        inbox.state = Some(state);
                    }
                    inbox.ended.clone()
                };
                self.pump(runtime, &actor);
                ended.map_or_else(|| Ok(Output::default()), Err)
            }
            Err(failure) => {
                self.state.lock().actors.remove(&actor.id);
                Err(failure)
            }
        };
        self.finish_with(runtime, run, nanos, result)
    }
}

/// The first call that is not behind an unfetched one of the same caller.
fn next_entry(inbox: &Inbox) -> Option<usize> {
    let mut held_up: Vec<HostId> = Vec::new();
    for (at, entry) in inbox.entries.iter().enumerate() {
        if held_up.contains(&entry.caller) {
            continue;
        }
        if entry.run.is_some() {
            return Some(at);
        }
        held_up.push(entry.caller);
    }
    None
}

pub(super) fn is_exclusive(function: &Function) -> bool {
    matches!(function.entry, Entry::Method { exclusive: true, .. })
}
