//! Arguments that lie in a store: when they are made readable.
//!
//! Those of tasks and constructors all at once, when there is room for them among those of what runs on the node
//! ([`crate::admission`]). A call of an actor waits for its turn besides, and what waits must not keep room from what
//! runs; so calls that wait have theirs fetched ahead within a small part of the store, and beyond that only when their
//! turn has come, which they keep meanwhile.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use futures_util::future::{Aborted, abortable};
use mobula_proto::{
    Failure, FailureKind, LeaseId, ObjectId, TaskId,
    host::ToAgent,
    peer::{Copy, Target},
};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{
    Executor, Run, State,
    actors::{Actor, Inner},
    call_title,
    slots::Slots,
};
use crate::{
    admission::{Admission, Word},
    codec::Value,
    context::Context,
    fetch::{self, Unread},
    runtime::Runtime,
};

/// Arguments of calls that wait for their turn at an actor may take one part in so many of the store, in a host that a
/// job's tasks and actors share.
const AHEAD_SHARE: u64 = 8;
/// The same in hosts of one actor each, of which there may be many.
const AHEAD_SHARE_OWN: u64 = 64;

/// A call whose stored arguments are to be made readable once there is room for all of them.
struct Wish {
    run: Box<Run>,
    arguments: fetch::Given,
    /// The call could not start yet if they were here.
    ahead: bool,
}

/// Calls that could not start yet, and for which arguments are fetched all the same: behind those that something waits for,
/// until their turn comes. With what of each lies in a store.
#[derive(Default)]
pub(super) struct Ahead(Vec<(TaskId, Vec<(ObjectId, Copy)>)>);

impl Ahead {
    pub(super) fn add(&mut self, task: TaskId, arguments: &fetch::Given) {
        self.0.push((task, fetch::stored(arguments).collect()));
    }

    /// The call has its arguments, or gets none.
    pub(super) fn remove(&mut self, task: TaskId) {
        self.0.retain(|(other, _)| *other != task);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The turn of the first has come, if there is one: what it waits for now.
    pub(super) fn next(&mut self) -> Vec<(ObjectId, Copy)> {
        if self.0.is_empty() { Vec::new() } else { self.0.remove(0).1 }
    }
}

/// Room for arguments.
pub(super) struct Room {
    admission: Mutex<Admission<Wish>>,
    ahead: AtomicU64,
    ahead_max: u64,
}

impl Room {
    /// In a store of so many bytes, for a host that is `shared` by a job's tasks and actors, or one actor's own.
    pub(super) fn new(store_bytes: u64, shared: bool) -> Self {
        let ahead_max = store_bytes / if shared { AHEAD_SHARE } else { AHEAD_SHARE_OWN };
        Self { admission: Mutex::default(), ahead: 0.into(), ahead_max }
    }

    /// Whether any call that does not wait for others has arguments.
    pub(super) fn is_used(&self) -> bool {
        self.admission.lock().is_used()
    }

    /// What had waited for others goes on.
    pub(super) fn resume(&self, bytes: u64) {
        if bytes > 0 {
            self.admission.lock().resume(bytes);
        }
    }

    /// Changes something; returns who is admitted because of that. The agent is told under the lock, so that its last word
    /// is what is true.
    fn change<R>(&self, runtime: &Runtime, change: impl FnOnce(&mut Admission<Wish>) -> R) -> (R, Vec<Wish>) {
        let mut admission = self.admission.lock();
        let changed = change(&mut admission);
        let admitted = std::iter::from_fn(|| admission.next()).collect();
        while let Some(word) = admission.word() {
            runtime.tell(match word {
                Word::Want(more, alone) => ToAgent::BudgetWanted { more, alone },
                Word::Back(bytes) => ToAgent::BudgetBack { bytes },
            });
        }
        (changed, admitted)
    }

    /// Takes room for what waits, if there is enough.
    fn take_ahead(&self, bytes: u64) -> bool {
        let taken = |ahead: u64| ahead.checked_add(bytes).filter(|ahead| *ahead <= self.ahead_max);
        self.ahead.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).is_ok()
    }
}

/// Holds room for a call's arguments.
pub(super) enum Share {
    /// Among those of what runs.
    Running(Weak<Runtime>, Arc<Context>),
    /// Ahead of its turn: so many bytes.
    Ahead(Weak<Runtime>, u64),
}

impl Drop for Share {
    fn drop(&mut self) {
        match self {
            Self::Running(runtime, context) => {
                if let Some(runtime) = runtime.upgrade() {
                    let bytes = context.admitted.swap(0, Ordering::AcqRel);
                    runtime.executor().give_room(&runtime, bytes);
                }
            }
            Self::Ahead(runtime, bytes) => {
                if let Some(runtime) = runtime.upgrade() {
                    runtime.executor().room.ahead.fetch_sub(*bytes, Ordering::AcqRel);
                }
            }
        }
    }
}

impl Executor {
    /// A call arrived, some of whose arguments lie in a store. `ahead`: it could not start yet if they were here.
    pub(super) fn fetch_for(
        &self,
        runtime: &Arc<Runtime>,
        mut run: Box<Run>,
        arguments: fetch::Given,
        ahead: bool,
    ) {
        match run.call.target {
            Target::Task { .. } | Target::Construct { .. } => {
                self.admit(runtime, Wish { run, arguments, ahead });
            }
            Target::Method { .. } => {
                run.unfetched = Some(arguments);
                self.enter(runtime, run);
            }
        }
    }

    /// Makes stored arguments readable, once all of them may be.
    fn admit(&self, runtime: &Arc<Runtime>, wish: Wish) {
        let bytes = fetch::stored_bytes(&wish.arguments);
        wish.run.context.admitted.store(bytes, Ordering::Release);
        let (admitted, others) = self.room.change(runtime, |admission| admission.ask(bytes, wish));
        for wish in admitted.into_iter().chain(others) {
            Self::fetch_admitted(runtime, wish);
        }
    }

    fn fetch_admitted(runtime: &Arc<Runtime>, mut wish: Wish) {
        wish.run.share = Some(Share::Running(Arc::downgrade(runtime), wish.run.context.clone()));
        if wish.run.context.cancelled() {
            return runtime.executor().fetched(runtime, wish.run, Ok(SmallVec::new()));
        }
        Self::fetch(runtime, wish);
    }

    fn fetch(runtime: &Arc<Runtime>, wish: Wish) {
        let Wish { run, arguments, ahead } = wish;
        fetch::all(runtime, arguments, ahead, move |runtime, arguments| match arguments {
            Err(unread) if !unread.lost.is_empty() && matches!(run.call.target, Target::Method { .. }) => {
                Self::fetch_again(runtime, run, unread);
            }
            arguments => runtime.executor().fetched(runtime, run, arguments),
        });
    }

    /// An actor's call keeps its place while what it is given is found or made again, since its caller has sent others behind
    /// it. (What came under a lease goes back to its caller, so that the lease is not kept from what makes it again.)
    fn fetch_again(runtime: &Arc<Runtime>, run: Box<Run>, unread: Unread) {
        if let Some(actor) = &run.actor {
            // Where it was said to lie, nobody need look again.
            actor.inner.lock().ahead.remove(run.call.task);
        }
        let runtime = runtime.clone();
        let (found, abort) = abortable({
            let runtime = runtime.clone();
            async move { fetch::again(&runtime, unread).await }
        });
        *run.context.abort.lock() = Some(abort);
        let user = runtime.user().clone();
        user.spawn(async move {
            // One that has its turn waits as it would for any object.
            let starts = matches!(run.share, Some(Share::Running(..)));
            if starts {
                runtime.executor().block(&runtime, &run.context, false);
            }
            let found = if run.context.cancelled() { Err(Aborted) } else { found.await };
            *run.context.abort.lock() = None;
            if starts {
                runtime.executor().unblock(&runtime, &run.context, false);
            }
            match found {
                Ok(Ok(arguments)) => Self::fetch(&runtime, Wish { run, arguments, ahead: false }),
                Ok(Err(failure)) => runtime.executor().fetched(&runtime, run, Err(failure.into())),
                // It was cancelled.
                Err(Aborted) => runtime.executor().fetched(&runtime, run, Ok(SmallVec::new())),
            }
        });
    }

    /// Arguments are not in use any more, or not while their call waits: others may come in. They are fetched on another
    /// thread, since this one may hold any lock.
    pub(super) fn give_room(&self, runtime: &Arc<Runtime>, bytes: u64) {
        if bytes > 0 {
            self.change_room(runtime, |admission| admission.release(bytes));
        }
    }

    /// The agent gives this host more of the budget for arguments.
    pub(crate) fn give_budget(&self, runtime: &Arc<Runtime>, more: u64) {
        self.change_room(runtime, |admission| admission.give(more));
    }

    /// Other hosts wait for the budget.
    pub(crate) fn press_budget(&self, runtime: &Arc<Runtime>) {
        self.change_room(runtime, Admission::press);
    }

    /// Whether room in the store may come free because a call here ends: some have arguments, and some go on.
    pub(crate) fn may_make_room(&self) -> bool {
        self.room.is_used() && self.state.lock().running.values().any(|context| context.moves())
    }

    fn change_room(&self, runtime: &Arc<Runtime>, change: impl FnOnce(&mut Admission<Wish>)) {
        let ((), admitted) = self.room.change(runtime, change);
        if !admitted.is_empty() {
            let again = runtime.clone();
            runtime.user().spawn(async move {
                admitted.into_iter().for_each(|wish| Self::fetch_admitted(&again, wish));
            });
        }
    }

    /// The first of an actor's waiting calls whose arguments are not fetched, if there is room for them ahead of its turn,
    /// which is taken. The call keeps its place; [`Self::fetch_ahead`] is next.
    pub(super) fn next_ahead(&self, inner: &mut Inner) -> Option<Box<Run>> {
        inner.inbox.take_out(
            |run| run.unfetched.is_some(),
            |run| {
                run.unfetched.as_ref().is_some_and(|given| self.room.take_ahead(fetch::stored_bytes(given)))
            },
        )
    }

    pub(super) fn fetch_ahead(runtime: &Arc<Runtime>, mut run: Box<Run>) {
        let Some(arguments) = run.unfetched.take() else { return };
        run.share = Some(Share::Ahead(Arc::downgrade(runtime), fetch::stored_bytes(&arguments)));
        let ahead = run.actor.as_ref().is_some_and(|actor| {
            let mut inner = actor.inner.lock();
            let runs = inner.inbox.runs();
            if runs {
                inner.ahead.add(run.call.task, &arguments);
            }
            runs
        });
        Self::fetch(runtime, Wish { run, arguments, ahead });
    }

    /// A slot of a lease is free: what is fetched for the next call of it is waited for now.
    pub(super) fn next_of(state: &mut State, lease: LeaseId) -> Vec<(ObjectId, Copy)> {
        state.ahead.get_mut(&lease).map_or_else(Vec::new, Ahead::next)
    }

    /// A call's turn has come. It comes back if its arguments are here; else they are fetched, and it starts with them.
    pub(super) fn in_turn(
        &self,
        runtime: &Arc<Runtime>,
        actor: &Arc<Actor>,
        mut run: Box<Run>,
    ) -> Option<Box<Run>> {
        if let Some(Share::Ahead(_, bytes)) = run.share {
            // What runs has them from now on, and others that wait may have theirs.
            run.context.admitted.store(bytes, Ordering::Release);
            self.room.resume(bytes);
            run.share = Some(Share::Running(Arc::downgrade(runtime), run.context.clone()));
            let more: Vec<_> = {
                let mut inner = actor.inner.lock();
                std::iter::from_fn(|| self.next_ahead(&mut inner)).collect()
            };
            if !more.is_empty() {
                let again = runtime.clone();
                // Not below whoever starts this one, who may be deep down already.
                runtime.user().spawn(async move {
                    more.into_iter().for_each(|run| Self::fetch_ahead(&again, run));
                });
            }
        }
        if run.context.cancelled() {
            run.unfetched = None;
        }
        let Some(arguments) = run.unfetched.take() else { return Some(run) };
        let again = runtime.clone();
        runtime.user().spawn(async move {
            again.executor().admit(&again, Wish { run, arguments, ahead: false });
        });
        None
    }

    /// A task's arguments come no more or are here: its slot may have been lent meanwhile.
    fn end_fetch(runtime: &Runtime, state: &mut State, lease: LeaseId, task: TaskId) {
        if let Some(ahead) = state.ahead.get_mut(&lease) {
            ahead.remove(task);
            if ahead.is_empty() {
                state.ahead.remove(&lease);
            }
        }
        if state.leases.get_mut(&lease).is_some_and(Slots::fetched) {
            runtime.tell(ToAgent::Unblock { lease, slots: 1 });
        }
    }

    /// A call's stored arguments are here, or are not to be had.
    fn fetched(
        &self,
        runtime: &Arc<Runtime>,
        mut run: Box<Run>,
        arguments: Result<SmallVec<[Value; 1]>, Unread>,
    ) {
        // It has taken its turn already.
        let starts = matches!(run.share, Some(Share::Running(..)));
        let mut lost = Vec::new();
        let early = match arguments {
            _ if run.context.cancelled() => {
                Failure::new(FailureKind::Cancelled, "it was cancelled before it started")
            }
            Err(unread) => {
                lost = unread.lost;
                unread.failure.cause_of(&call_title(run.function, run.call))
            }
            Ok(arguments) => {
                run.arguments = arguments;
                return match run.call.target {
                    Target::Task { lease, slots } => {
                        let mut state = self.state.lock();
                        Self::end_fetch(runtime, &mut state, lease, run.call.task);
                        self.admit_task(runtime, state, run, lease, slots);
                    }
                    Target::Method { .. } if !starts => {
                        let (Some(actor), Some(seat)) = (run.actor.clone(), run.context.seat) else { return };
                        let task = run.call.task;
                        let mut inner = actor.inner.lock();
                        inner.ahead.remove(task);
                        inner.inbox.ready(seat, task, run);
                        drop(inner);
                        self.pump(runtime, &actor);
                    }
                    Target::Construct { .. } | Target::Method { .. } => self.start(runtime, run),
                };
            }
        };
        let early = early.of(call_title(run.function, run.call));
        if let Target::Task { lease, .. } = run.call.target {
            let mut state = self.state.lock();
            Self::end_fetch(runtime, &mut state, lease, run.call.task);
            if state.leases.get(&lease).is_some_and(Slots::is_unused) {
                state.leases.remove(&lease);
            }
        }
        if let (Some(seat), Some(actor)) = (run.context.seat, run.actor.clone()) {
            if starts {
                return self.finish(runtime, run, 0, Err(early));
            }
            let mut inner = actor.inner.lock();
            inner.ahead.remove(run.call.task);
            inner.inbox.leave(seat, run.call.task);
            drop(inner);
            self.pump(runtime, &actor);
            self.end_if_retired(runtime, &actor);
        } else if let Some(actor) = &run.actor {
            self.never_made(actor);
        }
        if lost.is_empty() {
            self.reply(runtime, &run, early);
        } else {
            self.give_back(runtime, &run, lost);
        }
    }
}
