//! Where tasks and actors run.
//!
//! Sync code runs on plain threads that the pool adds when work waits and no thread is free; async code on the
//! runtime for user code. A lease runs at most its number of slots at once, and an actor one `&mut self` call at
//! a time; a call that waits for an object, and none of whose code runs, gives its slot back meanwhile, so
//! that nested work cannot starve itself.

mod actors;
mod arguments;
mod asynchronous;
mod ready;
mod slots;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mobula_proto::{
    Failure, FailureKind, HostId, IdMap, LeaseId, TaskId,
    host::ToAgent,
    limits::Limits,
    peer::{Call, Message, Target},
};
use parking_lot::{Condvar, Mutex, MutexGuard};
use smallvec::SmallVec;

use actors::{Actor, seat};
use arguments::{Ahead, Room, Share};
use ready::{Ready, is_long};
use slots::{LEND_TICK, Left, Slots};

use crate::{
    codec::{Arguments, Held, Results, Value},
    context::{self, Context},
    core::{NO_LEASE, title},
    fetch, guarded,
    inbox::Seat,
    registry::{Entry, Function, Invocation},
    runtime::Runtime,
    stream::Producer,
};

mod results;

/// Most threads for sync code in one host, blocked ones included.
pub const THREADS_MAX: usize = 1024;
/// An idle thread of the pool ends after this long.
const THREAD_IDLE: Duration = Duration::from_secs(10);

/// Most calls that a thread takes straight from what it ran before, while others wait for a thread.
const STREAK_MAX: u32 = 16;

/// Whether one more thread is worth its waking: nobody is about to take what is ready, or it would keep whoever
/// is for longer than waking another takes.
fn wants_another_thread(state: &State) -> bool {
    let polling = crate::peers::is_polling_worker();
    let quick =
        (state.threads - state.idle).saturating_sub(state.blocked + state.long) + usize::from(polling);
    quick == 0 || state.ready.is_worth_sharing(polling)
}

/// Remembers about how long calls of a function have taken of late. Not the longest: one call whose thread lost its
/// processor would then count as long work for many calls more.
fn note_time(function: &Function, nanos: u64) {
    let before = function.nanos.load(Ordering::Relaxed);
    let about = if before == 0 { nanos } else { before - before / 8 + nanos / 8 };
    function.nanos.store(about.max(1), Ordering::Relaxed);
}

/// A call with its arguments at hand.
struct Run {
    call: Header,
    caller: HostId,
    function: &'static Function,
    arguments: SmallVec<[Value; 1]>,
    /// Its arguments, where some lie in a store and are fetched when its turn has come.
    unfetched: Option<fetch::Given>,
    context: Arc<Context>,
    actor: Option<Arc<Actor>>,
    /// Goes after the arguments.
    share: Option<Share>,
}

/// What is left of a [`Call`] without its arguments.
#[derive(Clone, Copy)]
struct Header {
    task: TaskId,
    attempt: u32,
    attempts_max: u32,
    target: Target,
    timeout_ms: u64,
}

#[derive(Default)]
struct State {
    ready: Ready,
    leases: IdMap<LeaseId, Slots<Box<Run>>>,
    /// Of tasks, by their lease.
    ahead: IdMap<LeaseId, Ahead>,
    actors: IdMap<TaskId, Arc<Actor>>,
    /// Actors that have moved, for calls that are still on their way here.
    retired: IdMap<TaskId, Arc<Actor>>,
    /// Announced limits of actors that are about to be constructed, with the incarnation that is meant.
    limits: IdMap<TaskId, (u32, Limits)>,
    running: IdMap<TaskId, Arc<Context>>,
    threads: usize,
    idle: usize,
    blocked: usize,
    /// Threads that run what may take long.
    long: usize,
    /// How often a thread went on that had waited.
    resumed: u64,
    /// That number at the last tick, where all threads waited and something was ready.
    stuck_at: Option<u64>,
    /// [`Executor::lend_while_fetching`] runs.
    fetches: bool,
    stopping: bool,
}

impl State {
    /// A call is not here any more. Its place is a later attempt's if that has come meanwhile.
    fn unlist(&mut self, context: &Arc<Context>) {
        if self.running.get(&context.task).is_some_and(|other| Arc::ptr_eq(other, context)) {
            self.running.remove(&context.task);
        }
    }

    /// What is ready, where all threads wait, no more may be started, and none went on since this was asked last: it may
    /// be what they wait for. Those that only happen to wait all at once go on before that.
    fn take_stuck(&mut self) -> Ready {
        let are_blocked = self.threads > 0 && self.idle == 0 && self.blocked >= self.threads;
        let now = (are_blocked && !self.ready.is_empty() && !self.stopping).then_some(self.resumed);
        if now.is_none() || std::mem::replace(&mut self.stuck_at, now) != now {
            self.stuck_at = now;
            return Ready::default();
        }
        std::mem::take(&mut self.ready)
    }
}

/// See the module's text.
pub struct Executor {
    state: Mutex<State>,
    work: Condvar,
    /// How many are in `state.ready`, for looking without the lock.
    ready: AtomicUsize,
    stopping: AtomicBool,
    /// Actors at whose doors callers wait.
    pressed: Mutex<Vec<Arc<Actor>>>,
    room: Room,
    /// [`THREADS_MAX`], but for tests.
    threads_max: AtomicUsize,
}

impl Executor {
    /// Nothing to run. `store_bytes` is the node's store's capacity; `shared`: a job's tasks and actors share the host.
    pub(crate) fn new(store_bytes: u64, shared: bool) -> Self {
        Self {
            room: Room::new(store_bytes, shared),
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            ready: 0.into(),
            stopping: false.into(),
            pressed: Mutex::default(),
            threads_max: THREADS_MAX.into(),
        }
    }
}

impl Executor {
    /// A call arrived: fetch its arguments, then run it when its lease or actor allows.
    pub(crate) fn receive(
        &self,
        runtime: &Arc<Runtime>,
        caller: HostId,
        call: Call,
        producer: Option<Arc<Producer>>,
    ) {
        let header = Header {
            task: call.task,
            attempt: call.attempt,
            attempts_max: call.attempts_max,
            target: call.target,
            timeout_ms: call.timeout_ms,
        };
        let Some(function) = runtime.registry().get(call.function) else {
            let failure = Failure::new(
                FailureKind::UnknownFunction,
                "the executing program has no function of that name and signature: was it built from other sources?",
            );
            let failure = failure.of(title("task", "?", call.task));
            return self.send_done(runtime, caller, (header, ""), 0, Err(failure), &[]);
        };
        let (lease, actor_id, incarnation) = match call.target {
            Target::Task { lease, .. } => (Some(lease), None, 0),
            Target::Construct { incarnation, .. } => (None, Some(call.task), incarnation),
            Target::Method { actor, incarnation } => (None, Some(actor), incarnation),
        };
        let context = Arc::new(Context {
            task: call.task,
            function: function.name,
            attempt: call.attempt,
            attempts_max: call.attempts_max,
            actor: actor_id,
            incarnation,
            caller,
            host: runtime.me(),
            job: runtime.job(),
            devices: runtime.devices().to_vec(),
            lease,
            seat: seat(function),
            cancelled: false.into(),
            finished: false.into(),
            timer: OnceLock::new(),
            waiting: 0.into(),
            awaits: 0.into(),
            moved: false.into(),
            begun: false.into(),
            lacking: 0.into(),
            admitted: 0.into(),
            abort: Mutex::new(None),
            refs: Mutex::new(Vec::new()),
            parked: Mutex::default(),
            producer,
        });
        let arguments = fetch::here(call.arguments);
        let mut state = self.state.lock();
        let actor = match call.target {
            Target::Task { .. } => None,
            Target::Construct { incarnation, .. } => {
                Some(self.new_actor(&mut state, function, call.task, incarnation))
            }
            Target::Method { actor: id, incarnation } => {
                let meant = |actor: &&Arc<Actor>| actor.incarnation == incarnation;
                let found = state.actors.get(&id).filter(meant);
                let found = found.or_else(|| state.retired.get(&id).filter(meant)).cloned();
                let Some(found) = found else {
                    drop(state);
                    let failure = Failure::new(FailureKind::ActorDied, "the actor is gone");
                    let failure = failure.of(call_title(function, header));
                    return self.send_done(runtime, caller, (header, ""), 0, Err(failure), &[]);
                };
                Some(found)
            }
        };
        state.running.insert(call.task, context.clone());
        if let Target::Construct { incarnation, .. } = call.target {
            // Only now, when `owners_died` would find it: one of both sees that its owner is gone.
            MutexGuard::unlocked(&mut state, || {
                if runtime.is_gone(call.task.owner) {
                    self.terminate(runtime, call.task, incarnation);
                }
            });
        }
        let run = |arguments| {
            let (unfetched, share) = (None, None);
            Box::new(Run { call: header, caller, function, arguments, unfetched, context, actor, share })
        };
        match arguments {
            Ok(Ok(arguments)) => {
                let run = run(arguments);
                match call.target {
                    Target::Task { lease, slots } => self.admit_task(runtime, state, run, lease, slots),
                    Target::Construct { .. } => {
                        drop(state);
                        self.start(runtime, run);
                    }
                    Target::Method { .. } => {
                        drop(state);
                        self.enter(runtime, run);
                    }
                }
            }
            Ok(Err(failure)) => {
                drop(state);
                let run = run(SmallVec::new());
                if let (Target::Construct { .. }, Some(actor)) = (call.target, &run.actor) {
                    self.never_made(actor);
                }
                self.reply(runtime, &run, failure.cause_of(&call_title(function, header)));
            }
            Err(arguments) => {
                let ahead = match call.target {
                    Target::Task { lease, slots } => {
                        let ahead = state.leases.entry(lease).or_default().fetch(slots);
                        if ahead {
                            state.ahead.entry(lease).or_default().add(call.task, &arguments);
                        }
                        ahead
                    }
                    Target::Construct { .. } | Target::Method { .. } => false,
                };
                let begins = matches!(call.target, Target::Task { .. })
                    && !std::mem::replace(&mut state.fetches, true);
                drop(state);
                if begins {
                    runtime.user().spawn(Self::lend_while_fetching(Arc::downgrade(runtime)));
                }
                self.fetch_for(runtime, run(SmallVec::new()), arguments, ahead);
            }
        }
    }

    /// Starts a task if its lease has a slot free.
    fn admit_task(
        &self,
        runtime: &Arc<Runtime>,
        mut state: MutexGuard<'_, State>,
        run: Box<Run>,
        lease: LeaseId,
        slots: u32,
    ) {
        let (starts, back) = state.leases.entry(lease).or_default().offer(run, slots);
        if back {
            runtime.tell(ToAgent::Unblock { lease, slots: 1 });
        }
        if let Some(run) = starts {
            self.start_locked(runtime, state, run);
        }
    }

    /// Runs it, on a thread of the pool or on the runtime for user code.
    fn start(&self, runtime: &Arc<Runtime>, run: Box<Run>) {
        self.start_locked(runtime, self.state.lock(), run);
    }

    fn start_locked(&self, runtime: &Arc<Runtime>, mut state: MutexGuard<'_, State>, run: Box<Run>) {
        if run.function.is_async && (is_long(run.function) || state.threads >= self.threads_max()) {
            drop(state);
            return asynchronous::spawn(runtime, run);
        }
        state.ready.push(run);
        self.ready.store(state.ready.len(), Ordering::Release);
        if wants_another_thread(&state) {
            self.wake_or_grow(runtime, &mut state);
        }
    }

    fn threads_max(&self) -> usize {
        self.threads_max.load(Ordering::Relaxed)
    }

    fn wake_or_grow(&self, runtime: &Arc<Runtime>, state: &mut State) {
        if state.idle > 0 {
            self.work.notify_one();
            runtime.peers().nudge();
        } else if state.threads < self.threads_max() && !state.stopping {
            state.threads += 1;
            let runtime = runtime.clone();
            let spawned = std::thread::Builder::new()
                .name("mobula-task".into())
                .spawn(move || runtime.executor().work(&runtime));
            if let Err(error) = spawned {
                state.threads -= 1;
                tracing::error!(%error, "no thread could be started for a task; it waits for one that ends");
            }
        }
    }

    /// The life of a pool thread.
    fn work(&self, runtime: &Arc<Runtime>) {
        let _entered = context::enter(runtime, None, false);
        // What the last call left to be done next, and how often that went before what others wait for.
        let mut next: Option<Box<Run>> = None;
        let mut streak = 0;
        let mut shell = asynchronous::Shell::default();
        loop {
            if let Some(run) = next.take() {
                if streak < STREAK_MAX || self.ready.load(Ordering::Acquire) == 0 {
                    streak += 1;
                    next = self.run_here(runtime, &mut shell, run);
                    continue;
                }
                self.start(runtime, run);
            }
            streak = 0;
            let mut state = self.state.lock();
            if let Some(run) = state.ready.pop() {
                self.ready.store(state.ready.len(), Ordering::Release);
                if !state.ready.is_empty() && wants_another_thread(&state) {
                    self.wake_or_grow(runtime, &mut state);
                }
                drop(state);
                next = self.run_here(runtime, &mut shell, run);
                continue;
            }
            drop(state);
            runtime.peers().ring_all(true);
            state = self.state.lock();
            if !state.ready.is_empty() {
                continue;
            }
            if state.stopping {
                state.threads -= 1;
                return;
            }
            state.idle += 1;
            drop(state);
            let received =
                runtime.peers().lead_for_work(runtime, || self.has_work(), || self.has_short_work());
            state = self.state.lock();
            if !received && state.ready.is_empty() && !state.stopping {
                let timed_out = self.work.wait_for(&mut state, THREAD_IDLE).timed_out();
                if timed_out && state.ready.is_empty() && state.idle > 1 {
                    state.idle -= 1;
                    state.threads -= 1;
                    return;
                }
            }
            state.idle -= 1;
        }
    }

    /// Runs sync code, or async code until it first waits; returns what may run after it on the same thread.
    fn run_here(
        &self,
        runtime: &Arc<Runtime>,
        shell: &mut asynchronous::Shell,
        run: Box<Run>,
    ) -> Option<Box<Run>> {
        if run.call.timeout_ms > 0 {
            watch_timeout(runtime, &run);
        }
        let long = is_long(run.function);
        if long {
            let mut state = self.state.lock();
            state.long += 1;
            // What was left for this thread to take, since it seemed to be quick, needs another.
            if !state.ready.is_empty() && wants_another_thread(&state) {
                self.wake_or_grow(runtime, &mut state);
            }
            drop(state);
            runtime.peers().ring_all(true);
            runtime.peers().end_attention(runtime);
        }
        // One wake for several results, as long as there is more to run right now.
        crate::peers::defer_rings(!long);
        let next = if run.function.is_async {
            asynchronous::begin(runtime, shell, run);
            None
        } else {
            call_sync(runtime, run)
        };
        crate::peers::defer_rings(false);
        runtime.peers().ring_all(next.is_none() && self.ready.load(Ordering::Acquire) == 0);
        if long {
            self.state.lock().long -= 1;
        }
        match next {
            Some(run) if run.function.is_async && is_long(run.function) => {
                self.start(runtime, run);
                None
            }
            next => next,
        }
    }

    fn has_work(&self) -> bool {
        self.ready.load(Ordering::Acquire) > 0 || self.stopping.load(Ordering::Acquire)
    }

    /// Whether what is ready is done so soon that its thread may be expected back.
    fn has_short_work(&self) -> bool {
        let state = self.state.lock();
        !state.stopping && state.ready.is_short()
    }

    /// Now and then: sync calls that were left to a busy thread because they are short as a rule, and were not; and those
    /// for which no thread will come.
    pub(crate) fn tick(&self, runtime: &Arc<Runtime>) {
        runtime.peers().ring_all(true);
        let mut state = self.state.lock();
        if !state.ready.is_empty() {
            self.wake_or_grow(runtime, &mut state);
        }
        let mut stuck = state.take_stuck();
        self.ready.store(state.ready.len(), Ordering::Release);
        let threads = state.threads;
        drop(state);
        while let Some(run) = stuck.pop() {
            if run.function.is_async {
                asynchronous::spawn(runtime, run);
                continue;
            }
            let failure = Failure::new(
                FailureKind::Limit,
                format!(
                    "all {threads} threads of the host wait for other objects, perhaps for this very call (limit: threads of one host): make these functions async"
                ),
            );
            self.finish(runtime, run, 0, Err(failure));
        }
        self.tick_actors(runtime);
    }

    /// For as long as arguments of tasks are fetched: lends the slots that are free because they come slowly.
    async fn lend_while_fetching(runtime: Weak<Runtime>) {
        loop {
            tokio::time::sleep(LEND_TICK).await;
            let Some(runtime) = runtime.upgrade() else { return };
            let mut state = runtime.executor().state.lock();
            Self::lend_slots(&runtime, &mut state);
            if !state.leases.values().any(Slots::is_fetching) {
                state.fetches = false;
                return;
            }
        }
    }

    /// Lends slots that are free because arguments come slowly. Those who get them will not have ended when the arguments
    /// are here, so that more may run then than there are processors for: at most half as many again as have slots.
    fn lend_slots(runtime: &Arc<Runtime>, state: &mut State) {
        let slots = |held: &Slots<_>| u64::from(held.count());
        // What needs no lease has none to lend.
        let mut leases: SmallVec<[_; 8]> =
            state.leases.iter_mut().filter(|(lease, _)| **lease != NO_LEASE).collect();
        let all: u64 = leases.iter().map(|(_, held)| slots(held)).sum();
        let lent: u64 = leases.iter().map(|(_, held)| u64::from(held.lent_for_arguments())).sum();
        let mut most = (all / 2).max(1).saturating_sub(lent);
        for (lease, held) in &mut leases {
            let slots = held.tick(u32::try_from(most).unwrap_or(u32::MAX));
            most -= u64::from(slots);
            if slots > 0 {
                runtime.tell(ToAgent::Block { lease: **lease, slots });
            }
        }
    }

    /// A call waits for an object: its slot may serve others.
    pub(crate) fn block(&self, runtime: &Arc<Runtime>, context: &Context, thread: bool) {
        if thread {
            let mut state = self.state.lock();
            state.blocked += 1;
            // What was left for this thread to take needs another now.
            if !state.ready.is_empty() && wants_another_thread(&state) {
                self.wake_or_grow(runtime, &mut state);
            }
        }
        if context.waiting.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        // What it waits for may have arguments as well.
        self.give_room(runtime, context.admitted.load(Ordering::Acquire));
        let Some(lease) = context.lease else { return self.give_turn(runtime, context) };
        let mut state = self.state.lock();
        let Some(held) = state.leases.get_mut(&lease) else { return };
        match held.wait() {
            Left::To(run) => return self.start_locked(runtime, state, run),
            // Under the lock, here and where it comes back: the agent hears of it in the order in which it was decided.
            Left::Lent => runtime.tell(ToAgent::Block { lease, slots: 1 }),
            Left::Free => {}
        }
        let next = Self::next_of(&mut state, lease);
        drop(state);
        runtime.hurry(next);
    }

    /// It runs again.
    pub(crate) fn unblock(&self, runtime: &Arc<Runtime>, context: &Context, thread: bool) {
        if thread {
            let mut state = self.state.lock();
            state.blocked -= 1;
            state.resumed += 1;
        }
        if context.waiting.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        self.room.resume(context.admitted.load(Ordering::Acquire));
        let Some(lease) = context.lease else { return self.take_turn(context) };
        let mut state = self.state.lock();
        if state.leases.get_mut(&lease).is_some_and(Slots::go_on) {
            runtime.tell(ToAgent::Unblock { lease, slots: 1 });
        }
    }

    /// Stops a call, or keeps it from starting.
    pub(crate) fn cancel(&self, runtime: &Arc<Runtime>, task: TaskId, force: bool) {
        let (context, unstarted) = {
            let mut state = self.state.lock();
            let Some(context) = state.running.get(&task).cloned() else { return };
            let held = context.lease.and_then(|lease| state.leases.get_mut(&lease));
            let unstarted = held.and_then(|held| held.take_out(|run| run.call.task == task));
            (context, unstarted)
        };
        context.stop(runtime);
        if let Some(run) = unstarted {
            let failure = Failure::new(FailureKind::Cancelled, "it was cancelled before it started");
            return self.finish(runtime, run, 0, Err(failure));
        }
        if force && !runtime.is_shared() {
            tracing::info!(%task, "forced cancellation ends this process");
            std::process::exit(FORCED_EXIT);
        }
    }

    /// What this caller's call that gives a stream has sent and may send.
    pub(crate) fn producer(&self, caller: HostId, task: TaskId, attempt: u32) -> Option<Arc<Producer>> {
        let state = self.state.lock();
        let found = state.running.get(&task)?;
        found.producer.clone().filter(|_| found.attempt == attempt && found.caller == caller)
    }

    /// Stops the streams of callers that are gone: nobody reads them.
    pub(crate) fn callers_died(&self, runtime: &Arc<Runtime>, gone: impl Fn(HostId) -> bool) {
        let unread: Vec<_> = {
            let state = self.state.lock();
            let of_gone = |context: &&Arc<Context>| context.producer.is_some() && gone(context.caller);
            state.running.values().filter(of_gone).cloned().collect()
        };
        for context in unread {
            context.stop(runtime);
        }
    }

    /// Takes back what `caller` submitted under a lease and has not started; in order.
    pub(crate) fn recall(&self, caller: HostId, lease: LeaseId) -> Vec<(TaskId, u32)> {
        let mut state = self.state.lock();
        let Some(held) = state.leases.get_mut(&lease) else { return Vec::new() };
        let back = held.take_all(|run| run.caller == caller);
        let tasks: Vec<_> = back.iter().map(|run| (run.call.task, run.call.attempt)).collect();
        for run in &back {
            state.unlist(&run.context);
        }
        drop(state);
        // Their arguments go without the lock.
        drop(back);
        tasks
    }

    /// Everything a finished call leaves: result sent, and what may start now that its slot or actor is free.
    fn finish(&self, runtime: &Arc<Runtime>, run: Box<Run>, nanos: u64, result: Result<Results, Failure>) {
        if let Some(next) = self.finish_with(runtime, run, nanos, result) {
            self.start(runtime, next);
        }
    }

    /// [`Self::finish`], but one of those that may start is left to the caller.
    #[must_use]
    fn finish_with(
        &self,
        runtime: &Arc<Runtime>,
        run: Box<Run>,
        nanos: u64,
        result: Result<Results, Failure>,
    ) -> Option<Box<Run>> {
        let Run { call, caller, function, context, actor, arguments, unfetched: _, share } = *run;
        drop(arguments);
        drop(share);
        note_time(function, nanos);
        // Its caller knows already why there is no result, and waits for its end only. An actor that it made goes.
        let expired = call.timeout_ms > 0 && context.finished.swap(true, Ordering::AcqRel);
        if let Some(timer) = context.timer.get() {
            // It would keep all this until the time that was given is over.
            timer.abort();
        }
        let result = if expired { Err(out_of_time(call)) } else { result };
        if let (Target::Construct { .. }, Some(actor), Err(_)) = (call.target, &actor, &result) {
            self.never_made(actor);
        }
        let ended = || actor.as_ref().and_then(|actor| actor.inner.lock().ended.clone());
        let result = result.map_err(|failure| {
            // Its actor's end is what stopped it.
            let failure =
                if failure.kind == FailureKind::Cancelled { ended().unwrap_or(failure) } else { failure };
            let returned = failure.kind == FailureKind::Returned && failure.what.is_empty();
            let mut failure = describe(runtime, function, call, failure);
            if returned {
                // Nobody can tell which line returned it; that of the function is a start.
                failure.message =
                    format!("error at {}:{}: {}", function.file, function.line, failure.message);
            }
            failure
        });
        let refs = std::mem::take(&mut *context.refs.lock());
        let (mut next, mut waited) = (None, Vec::new());
        {
            let mut state = self.state.lock();
            state.unlist(&context);
            if let Target::Task { lease, .. } = call.target
                && let Some(held) = state.leases.get_mut(&lease)
            {
                match held.end() {
                    Left::To(run) => next = Some(run),
                    Left::Lent => runtime.tell(ToAgent::Block { lease, slots: 1 }),
                    Left::Free if held.is_unused() => _ = state.leases.remove(&lease),
                    Left::Free => {}
                }
                if next.is_none() {
                    waited = Self::next_of(&mut state, lease);
                }
            }
        }
        runtime.hurry(waited);
        // What is to be stored may have to wait for room, maybe for what the next one has as arguments.
        if result.as_ref().is_ok_and(results::are_stored)
            && let Some(next) = next.take()
        {
            self.start(runtime, next);
        }
        self.send_done(runtime, caller, (call, context.function), nanos, result, &refs);
        if let (Some(seat), Some(actor)) = (context.seat, actor) {
            actor.inner.lock().inbox.finished(seat);
            next = self.take_next(runtime, &actor);
            if next.as_ref().is_some_and(|next| next.context.seat != Some(Seat::Alone)) {
                // More may run beside a shared one.
                self.pump(runtime, &actor);
            }
            if next.is_none() {
                self.end_if_retired(runtime, &actor);
            }
        }
        next
    }

    /// Ends a call that has not run.
    fn reply(&self, runtime: &Arc<Runtime>, run: &Run, failure: Failure) {
        self.state.lock().unlist(&run.context);
        // It made nothing that is kept.
        self.send_done(runtime, run.caller, (run.call, ""), 0, Err(failure), &[]);
    }

    /// The time given for a call ran out, unless it has just ended: says so at once, and asks the code to stop. It runs
    /// until it returns, as one that is cancelled, and its end is told then.
    fn expire(&self, runtime: &Arc<Runtime>, run: &Expiry) -> bool {
        if run.context.finished.swap(true, Ordering::AcqRel) {
            return false;
        }
        let failure = Box::new(describe(runtime, run.function, run.call, out_of_time(run.call)));
        let message = Message::Expired { task: run.call.task, attempt: run.call.attempt, failure };
        runtime.send(run.caller, message, Held::default());
        run.context.stop(runtime);
        true
    }

    /// Whether this call's code still runs, and whether nothing else's does.
    fn still_runs(&self, context: &Arc<Context>) -> (bool, bool) {
        let state = self.state.lock();
        let is_it = |other: &&Arc<Context>| Arc::ptr_eq(other, context);
        let runs = state.running.get(&context.task).is_some_and(|other| is_it(&other));
        let begun = |other: &&Arc<Context>| other.begun.load(Ordering::Acquire);
        (runs, !state.running.values().filter(begun).any(|other| !is_it(&other)))
    }

    /// Ends idle threads; running calls go on until they return.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        self.stopping.store(true, Ordering::Release);
        self.work.notify_all();
    }

    /// Calls that run or wait here, and actors that live here.
    pub fn load(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.running.len(), state.actors.len())
    }
}

/// Exit code of a host that a forced cancellation ended, or a call that did not end in time.
pub const FORCED_EXIT: i32 = 75;

/// How much longer than its time, or than its actor is to live, a task or an actor's construction may take to notice that it is
/// over, where it has a process to itself. Others would never have its slot, nor anybody the memory and the devices that it holds.
const EXPIRED_GRACE: Duration = Duration::from_secs(5);

struct Expiry {
    call: Header,
    caller: HostId,
    function: &'static Function,
    context: Arc<Context>,
}

fn watch_timeout(runtime: &Arc<Runtime>, run: &Run) {
    let expiry =
        Expiry { call: run.call, caller: run.caller, function: run.function, context: run.context.clone() };
    let weak = Arc::downgrade(runtime);
    let after = Duration::from_millis(run.call.timeout_ms);
    let timer = runtime.user().spawn(async move {
        tokio::time::sleep(after).await;
        let expired = weak.upgrade().is_some_and(|runtime| runtime.executor().expire(&runtime, &expiry));
        // An actor may have other use for its process than one call that does not end.
        if expired && !matches!(expiry.call.target, Target::Method { .. }) {
            end_with_process(weak, expiry.context).await;
        }
    });
    // Its code has not begun, nor ended.
    let _only = run.context.timer.set(timer.abort_handle());
}

/// Waits for code that was told to end. Where it goes on for longer than [`EXPIRED_GRACE`] in a process that it has to itself,
/// that ends with it.
async fn end_with_process(runtime: Weak<Runtime>, code: Arc<Context>) {
    loop {
        tokio::time::sleep(EXPIRED_GRACE).await;
        let Some(runtime) = runtime.upgrade().filter(|runtime| !runtime.is_shared()) else { return };
        match runtime.executor().still_runs(&code) {
            (false, _) => return,
            (true, false) => {}
            (true, true) => {
                tracing::info!(task = %code.task, "a call that goes on after it was to end ends this process");
                std::process::exit(FORCED_EXIT);
            }
        }
    }
}

fn out_of_time(call: Header) -> Failure {
    Failure::new(
        FailureKind::TimedOut,
        format!("it ran longer than the {} ms that it was given", call.timeout_ms),
    )
}

/// What failed, where, and which attempt it was.
fn describe(runtime: &Runtime, function: &Function, call: Header, failure: Failure) -> Failure {
    let mut failure = failure.of(call_title(function, call)).on(runtime.me().node.to_string());
    failure.attempt = call.attempt;
    failure.attempts_max = call.attempts_max;
    failure
}

fn call_title(function: &Function, call: Header) -> String {
    let kind = match call.target {
        Target::Task { .. } => "task",
        Target::Construct { .. } => "actor",
        Target::Method { .. } => "call",
    };
    title(kind, function.name, call.task)
}

/// Calls sync user code; returns what may run next on this thread.
fn call_sync(runtime: &Arc<Runtime>, mut run: Box<Run>) -> Option<Box<Run>> {
    let _entered = context::enter(runtime, Some(run.context.clone()), false);
    let started = Instant::now();
    let arguments = Arguments::new(std::mem::take(&mut run.arguments));
    let executor = runtime.executor();
    if run.context.cancelled() {
        let failure = Failure::new(FailureKind::Cancelled, "it was cancelled before it started");
        return match &run.function.entry {
            Entry::Construct { .. } => executor.constructed(runtime, run, 0, Err(failure)),
            Entry::Task(_) | Entry::Method { .. } => executor.finish_with(runtime, run, 0, Err(failure)),
        };
    }
    run.context.begun.store(true, Ordering::Release);
    match &run.function.entry {
        Entry::Task(call) => {
            let result = guarded::call(|| finished(call(arguments)));
            executor.finish_with(runtime, run, nanos_since(started), result)
        }
        Entry::Construct { call, .. } => {
            let result = guarded::call(|| finished(call(arguments)));
            executor.constructed(runtime, run, nanos_since(started), result)
        }
        Entry::Method { call, .. } => {
            let state = run.actor.as_ref().and_then(|actor| actor.inner.lock().state.clone());
            let result = match state {
                Some(state) => guarded::call(|| finished(call(&state, arguments))),
                None => Err(Failure::new(FailureKind::ActorDied, "the actor ended")),
            };
            executor.finish_with(runtime, run, nanos_since(started), result)
        }
    }
}

fn finished<T>(invocation: Invocation<T>) -> Result<T, Failure> {
    match invocation {
        Invocation::Finished(result) => result,
        Invocation::Future(_) => {
            Err(Failure::new(FailureKind::Internal, "a function registered as sync returned a future"))
        }
    }
}

fn nanos_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
