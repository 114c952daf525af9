//! The executor's actors: their inboxes, and which of their calls may start.

use std::sync::{Arc, atomic::Ordering};

use mobula_proto::{Failure, FailureKind, HostId, TaskId, limits::Limits, peer::Message};
use parking_lot::Mutex;

use super::{Executor, Run, State, arguments::Ahead, call_title, end_with_process};
use crate::{
    codec::{Held, Results},
    context::Context,
    inbox::{Inbox, Knock, Seat},
    registry::{ActorState, Entry, Function},
    runtime::Runtime,
};

/// An actor that lives in this host.
pub(super) struct Actor {
    pub(super) id: TaskId,
    pub(super) incarnation: u32,
    pub(super) inner: Mutex<Inner>,
}

/// An actor's state and what waits for it.
pub(super) struct Inner {
    pub(super) state: Option<ActorState>,
    pub(super) inbox: Inbox<Box<Run>>,
    pub(super) ahead: Ahead,
    pub(super) ended: Option<Failure>,
    /// It is to end when nothing runs: who is told.
    retiring: Option<HostId>,
    /// It has ended so.
    moved: bool,
    /// Whether the executor looks at it now and then.
    watched: bool,
}

impl Inner {
    fn wants_ticks(&self) -> bool {
        self.ended.is_none() && !self.moved && self.inbox.wants_ticks()
    }

    /// Whether it shall be looked at from now on, and was not before.
    fn watch(&mut self) -> bool {
        let new = !self.watched && self.wants_ticks();
        self.watched |= new;
        new
    }
}

/// Where calls of a method take their place.
pub(super) fn seat(function: &Function) -> Option<Seat> {
    match function.entry {
        Entry::Method { exclusive: true, .. } => Some(Seat::Alone),
        Entry::Method { group, .. } => Some(Seat::Group(group)),
        Entry::Task(_) | Entry::Construct { .. } => None,
    }
}

impl Executor {
    /// Starts the actor's calls that may start now.
    pub(super) fn pump(&self, runtime: &Arc<Runtime>, actor: &Arc<Actor>) {
        while let Some(run) = self.take_next(runtime, actor) {
            self.start(runtime, run);
        }
    }

    /// The actor's next call, if it may start now.
    pub(super) fn take_next(&self, runtime: &Arc<Runtime>, actor: &Arc<Actor>) -> Option<Box<Run>> {
        loop {
            let (run, failure) = {
                let mut inner = actor.inner.lock();
                match inner.ended.clone() {
                    None if inner.state.is_none() => return None,
                    None => {
                        let Some(run) = inner.inbox.start() else {
                            // Nothing else to do than to wait for the arguments of the next one.
                            let next = if inner.inbox.runs() { Vec::new() } else { inner.ahead.next() };
                            drop(inner);
                            runtime.hurry(next);
                            return None;
                        };
                        let room = inner.inbox.has_door().then(|| inner.inbox.let_in());
                        drop(inner);
                        if let Some(room) = room {
                            self.tell_room(runtime, actor, &room);
                        }
                        match self.in_turn(runtime, actor, run) {
                            Some(run) => return Some(run),
                            // Its arguments come first; others may start beside it.
                            None => continue,
                        }
                    }
                    Some(failure) => (inner.inbox.take()?, failure),
                }
            };
            self.reply(runtime, &run, failure.of(call_title(run.function, run.call)));
        }
    }

    /// A new incarnation, with the limits that its owner announced or its type's.
    pub(super) fn new_actor(
        &self,
        state: &mut State,
        function: &Function,
        id: TaskId,
        incarnation: u32,
    ) -> Arc<Actor> {
        let announced = state.limits.remove(&id).filter(|(meant, _)| *meant == incarnation);
        let limits = match (announced, &function.entry) {
            (Some((_, limits)), _) => limits,
            (None, Entry::Construct { rules, .. }) => rules.limits(),
            (None, Entry::Task(_) | Entry::Method { .. }) => Limits::default(),
        };
        let inner = Inner {
            state: None,
            inbox: Inbox::new(&limits),
            ahead: Ahead::default(),
            ended: None,
            retiring: None,
            moved: false,
            watched: false,
        };
        let new = Arc::new(Actor { id, incarnation, inner: Mutex::new(inner) });
        state.actors.insert(id, new.clone());
        new
    }

    /// The limits of an actor whose construction is the next that its owner sends.
    pub(crate) fn announce(&self, actor: TaskId, incarnation: u32, limits: Limits) {
        self.state.lock().limits.insert(actor, (incarnation, limits));
    }

    /// A call arrived.
    pub(super) fn enter(&self, runtime: &Arc<Runtime>, run: Box<Run>) {
        let (Some(actor), Some(seat)) = (run.actor.clone(), run.context.seat) else { return };
        let (task, caller) = (run.call.task, run.caller);
        let (knock, inbox, watch) = {
            let mut inner = actor.inner.lock();
            match inner.inbox.knock(caller) {
                Knock::In => {
                    let unfetched = run.unfetched.is_some();
                    inner.inbox.enter(seat, task, caller, Some(run));
                    let ahead = if unfetched { self.next_ahead(&mut inner) } else { None };
                    drop(inner);
                    if let Some(run) = ahead {
                        Self::fetch_ahead(runtime, run);
                    }
                    return self.pump(runtime, &actor);
                }
                knock => (knock, inner.inbox.most(), inner.watch()),
            }
        };
        match knock {
            Knock::Refused => {
                let failure = Failure::new(
                    FailureKind::Overloaded,
                    format!("{inbox} calls wait already, and the actor refuses more (limit: its inbox)"),
                );
                self.reply(runtime, &run, failure.of(call_title(run.function, run.call)));
            }
            Knock::Wait | Knock::In => {
                self.state.lock().unlist(&run.context);
                runtime.send(caller, Message::NoRoom { task, inbox }, Held::default());
                if watch {
                    self.pressed.lock().push(actor);
                }
            }
        }
    }

    /// A caller has used up what room it was given, or wants none.
    pub(crate) fn want_room(
        &self,
        runtime: &Arc<Runtime>,
        caller: HostId,
        (id, incarnation): (TaskId, u32),
        more: bool,
    ) {
        let actor = self.state.lock().actors.get(&id).cloned();
        // The caller of one that has ended learns about that from its owner.
        let Some(actor) = actor.filter(|actor| actor.incarnation == incarnation) else { return };
        let (room, watch) = {
            let mut inner = actor.inner.lock();
            inner.inbox.asked(caller, more);
            (inner.inbox.let_in(), inner.watch())
        };
        if watch {
            self.pressed.lock().push(actor.clone());
        }
        self.tell_room(runtime, &actor, &room);
    }

    fn tell_room(&self, runtime: &Arc<Runtime>, actor: &Actor, room: &[(HostId, u32)]) {
        for (caller, calls) in room {
            let message = Message::Room { actor: actor.id, incarnation: actor.incarnation, calls: *calls };
            runtime.send(*caller, message, Held::default());
        }
    }

    /// Now and then: actors at whose doors callers wait, perhaps for each other.
    pub(super) fn tick_actors(&self, runtime: &Arc<Runtime>) {
        let pressed: Vec<Arc<Actor>> = {
            let mut pressed = self.pressed.lock();
            pressed.retain(|actor| {
                let mut inner = actor.inner.lock();
                inner.watched = inner.wants_ticks();
                inner.watched
            });
            pressed.clone()
        };
        for actor in pressed {
            let (stalled, room) = {
                let mut inner = actor.inner.lock();
                (inner.inbox.tick(), inner.inbox.let_in())
            };
            self.tell_room(runtime, &actor, &room);
            if !stalled.is_empty() {
                tracing::warn!(
                    actor = %actor.id,
                    "all of an actor's calls wait for others, and its inbox is full: calls made by calls are refused"
                );
            }
            let none: Vec<_> = stalled.into_iter().map(|caller| (caller, 0)).collect();
            self.tell_room(runtime, &actor, &none);
            self.pump(runtime, &actor);
        }
    }

    /// Hosts are gone: what was kept for their calls is free.
    pub(crate) fn forget(&self, runtime: &Arc<Runtime>, gone: impl Fn(HostId) -> bool) {
        let pressed = self.pressed.lock().clone();
        for actor in pressed {
            let room = {
                let mut inner = actor.inner.lock();
                for caller in inner.inbox.callers_at_door() {
                    if gone(caller) {
                        inner.inbox.forget(caller);
                    }
                }
                inner.inbox.let_in()
            };
            self.tell_room(runtime, &actor, &room);
        }
    }

    /// A call of an actor waits for an object: another may take its turn.
    pub(super) fn give_turn(&self, runtime: &Arc<Runtime>, context: &Context) {
        let (Some(seat), Some(actor)) = (context.seat, self.actor_of(context)) else { return };
        let watch = {
            let mut inner = actor.inner.lock();
            inner.inbox.waits(seat, context.moved.swap(false, Ordering::AcqRel));
            inner.watch()
        };
        if watch {
            self.pressed.lock().push(actor.clone());
        }
        if seat != Seat::Alone {
            self.pump(runtime, &actor);
        }
    }

    /// It goes on.
    pub(super) fn take_turn(&self, context: &Context) {
        if let Some(seat) = context.seat
            && let Some(actor) = self.actor_of(context)
        {
            actor.inner.lock().inbox.goes_on(seat);
        }
    }

    /// The actor whose call this is, unless it has ended; another incarnation may live in its place by then.
    fn actor_of(&self, context: &Context) -> Option<Arc<Actor>> {
        let actor = self.state.lock().actors.get(&context.actor?).cloned();
        actor.filter(|actor| actor.incarnation == context.incarnation)
    }

    /// Ends an actor.
    pub(crate) fn terminate(&self, runtime: &Arc<Runtime>, id: TaskId, incarnation: u32) {
        let (actor, mut running) = {
            let mut state = self.state.lock();
            let found = match state.actors.get(&id) {
                Some(actor) if actor.incarnation == incarnation => state.actors.remove(&id),
                _ => None,
            };
            if state.retired.get(&id).is_some_and(|actor| actor.incarnation <= incarnation) {
                state.retired.remove(&id);
            }
            let Some(actor) = found else { return };
            let running: Vec<_> =
                state.running.values().filter(|call| call.actor == Some(id)).cloned().collect();
            (actor, running)
        };
        let state = {
            let mut inner = actor.inner.lock();
            inner.ended = Some(Failure::new(FailureKind::ActorDied, "the actor ended"));
            // What has not started ends below.
            running.retain(|call| !inner.inbox.has(call.task));
            inner.state.take()
        };
        for call in running {
            call.stop(runtime);
            if call.seat.is_none() && !runtime.is_shared() {
                // Its construction, which keeps its slot until it has ended.
                runtime.user().spawn(end_with_process(Arc::downgrade(runtime), call));
            }
        }
        self.pump(runtime, &actor);
        // User code in `Drop` may do anything, so not under a lock and not while a ring is drained.
        runtime.user().spawn_blocking(move || drop(state));
    }

    /// Owners are gone, and with them whoever would end their actors.
    pub(crate) fn owners_died(&self, runtime: &Arc<Runtime>, gone: impl Fn(HostId) -> bool) {
        let orphans: Vec<Arc<Actor>> = {
            let mut state = self.state.lock();
            state.limits.retain(|id, _| !gone(id.owner));
            let all = state.actors.values().chain(state.retired.values());
            all.filter(|actor| gone(actor.id.owner)).cloned().collect()
        };
        for actor in orphans {
            self.terminate(runtime, actor.id, actor.incarnation);
        }
    }

    /// Ends an actor once all calls that were let in have ended; others stay with their callers.
    pub(crate) fn retire(&self, runtime: &Arc<Runtime>, owner: HostId, id: TaskId, incarnation: u32) {
        let actor = self.state.lock().actors.get(&id).cloned();
        let Some(actor) = actor.filter(|actor| actor.incarnation == incarnation) else { return };
        let watch = {
            let mut inner = actor.inner.lock();
            inner.inbox.close();
            inner.retiring = Some(owner);
            inner.watch()
        };
        if watch {
            self.pressed.lock().push(actor.clone());
        }
        self.end_if_retired(runtime, &actor);
    }

    /// Says that an actor has come to its end, if it shall and has. Its inbox stays, to turn calls back that are still on
    /// their way here.
    pub(super) fn end_if_retired(&self, runtime: &Arc<Runtime>, actor: &Arc<Actor>) {
        let (state, owner) = {
            let mut inner = actor.inner.lock();
            if inner.retiring.is_none() || inner.state.is_none() || !inner.inbox.is_idle() {
                return;
            }
            // For good: it may have been open for a while.
            inner.inbox.close();
            inner.moved = true;
            (inner.state.take(), inner.retiring.take())
        };
        {
            let mut state = self.state.lock();
            if state.actors.get(&actor.id).is_some_and(|found| Arc::ptr_eq(found, actor))
                && let Some(moved) = state.actors.remove(&actor.id)
            {
                state.retired.insert(moved.id, moved);
            }
        }
        if let Some(owner) = owner {
            let message = Message::Retired { actor: actor.id, incarnation: actor.incarnation };
            runtime.send(owner, message, Held::default());
        }
        // As in `terminate`.
        runtime.user().spawn_blocking(move || drop(state));
    }

    /// The actor has not come to be. Another incarnation may have its place by now.
    pub(super) fn never_made(&self, actor: &Arc<Actor>) {
        let mut state = self.state.lock();
        if state.actors.get(&actor.id).is_some_and(|found| Arc::ptr_eq(found, actor)) {
            state.actors.remove(&actor.id);
        }
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
        let result = result.and_then(|state| {
            let ended = {
                let mut inner = actor.inner.lock();
                if inner.ended.is_none() {
                    inner.state = Some(state);
                }
                inner.ended.clone()
            };
            self.pump(runtime, &actor);
            self.end_if_retired(runtime, &actor);
            ended.map_or_else(|| Ok(Results::new()), Err)
        });
        self.finish_with(runtime, run, nanos, result)
    }
}
