//! What a host has submitted: which tasks wait for which objects, which leases it holds, where its actors are.
//!
//! Pure logic around [`Ownership`]: every method takes what happened and appends the [`Action`]s that follow.
//! One lock in the runtime guards it, and actions are carried out before that lock is released, so messages to
//! one host leave in the order in which they were decided.
//!
//! - **C-1** A task is pushed only when every ref among its arguments is final, and waits again where that is so no more.
//! - **C-2** Calls of one actor leave in the order in which they were submitted here.
//! - **C-3** A task holds a reference on each ref in its arguments until it is done.
//! - **C-4** What was pushed to a host that died is retried or failed; nothing stays pending.
//! - **C-5** What waits behind slow work is recalled and pushed anew; no task runs in two places because of it.
//! - **C-6** Calls that find their actor's inbox full wait here, as many as fit into it; submitters of more wait.
//! - **C-9** Where no slot is free and none is to be had, a slot's next task is sent ahead if its arguments lie elsewhere,
//!   so that it has them when the slot is free; a slot that comes free in another place takes it from there.

mod arguments;
mod classes;
mod clients;
mod deaths;
mod flow;
mod held;
mod leases;
mod outbox;
mod queue;
mod several;
mod spec;
#[cfg(test)]
mod tests;
mod why;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mobula_ownership::{Effect, Ownership};
use mobula_proto::{
    Failure, FailureKind, HostId, IdMap, LeaseId, Names, NodeId, ObjectId, SeqMap, TaskId,
    host::ToAgent,
    peer::{Argument, Call, Copy, Done, Message, Outcome, State, Target, Value},
    resource::Class,
};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use arguments::Given;
use classes::Classes;
use clients::{Client, killed};
pub use flow::Maker;
pub use leases::TICK;
use queue::Queue;
use several::Several;
pub use several::Taken;
use spec::CoreNumber;
pub use spec::{Input, Kind, Nested, Returns, Spec, Template, title};

/// The lease of calls that need none.
pub(crate) const NO_LEASE: LeaseId = LeaseId { number: 0 };
/// The number of a question whose answer nobody waits for.
pub(crate) const UNASKED: u64 = 0;
/// Most calls submitted and not yet done, in one host.
pub const UNFINISHED_TASKS_MAX: usize = 1 << 20;
/// Most bytes of encoded arguments that unfinished calls of one host keep in its own memory; larger ones then lie in
/// the store.
pub const INLINE_BYTES_TOTAL_MAX: u64 = 64 << 20;
/// Most bytes that lists of refs may add to the message of one call: about 50 for each ref, and its value where that is
/// small.
pub const ARGUMENT_BYTES_MAX: usize = 192 << 20;
/// Who waits for room is told when so many calls are done at once: a share of the limit.
const ROOM_SHARE: usize = 64;
/// Longest list of actions or effects whose memory is kept for the next step.
const ACTIONS_KEPT: usize = 4096;

/// What has to be done after an event.
#[derive(Debug)]
pub enum Action {
    /// Send to a host; to this host itself where `to` says so.
    Send {
        /// The receiver.
        to: HostId,
        /// The message.
        message: Message,
    },
    /// Tell the agent.
    Tell(ToAgent),
    /// The object's state is final, or an actor's state changed: wake who waits for it.
    Wake(ObjectId),
    /// The acknowledgements for a finished call have arrived: its `Done` may leave.
    Settled(u64),
    /// Calls may be submitted again.
    Room,
    /// This object, which lies on another node, will be read soon: bring it here.
    Fetch(ObjectId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// For its arguments, or in its actor's outbox.
    Waiting,
    /// For a lease.
    Queued,
    /// Sent.
    Pushed { host: HostId, lease: LeaseId },
    /// Done; kept to make its stored result again, or because it is a living actor.
    Kept,
}

#[derive(Debug)]
struct Task {
    spec: Spec,
    key: u32,
    attempt: u32,
    missing: u32,
    phase: Phase,
    /// For an actor: the incarnation that lives or is being made, and the lease it holds, if any.
    incarnation: u32,
    holds: LeaseId,
    /// Attempts that ended because their lease was taken away; they do not count as attempts.
    evictions: u32,
    cancelled: bool,
    /// For an actor's call: another call made it.
    inside: bool,
}

// Drivers have them by the million.
const _: () = assert!(size_of::<Task>() <= 160);

impl Task {
    /// How many times it may start.
    fn attempts_max(&self) -> u32 {
        self.spec.template.attempts_max.saturating_add(self.evictions)
    }

    /// Whether it may start once more.
    fn may_run_again(&self) -> bool {
        self.attempt < self.attempts_max()
    }
}

#[derive(Debug)]
struct ClassState {
    class: Class,
    /// Where the arguments of its tasks lie, where that is worth a lease of its own; and how many bytes.
    near: Option<(NodeId, u64)>,
    queue: Queue,
    leases: Vec<LeaseId>,
    /// Those that had room when they were looked at last.
    open: Vec<LeaseId>,
    /// Slots of all its leases.
    slots: u64,
    asked: u32,
    /// Ticks since slots were wanted and none came.
    unserved_ticks: u32,
    /// Hosts for it that failed to start since it was granted something.
    failed_starts: u32,
    /// For so many ticks no slots are asked for.
    pause_ticks: u32,
    /// Ticks since something of it waited or ran.
    idle_ticks: u32,
    /// Tasks were sent ahead of their slots, and some may wait for them still.
    ahead: bool,
    nanos: u64,
}

#[derive(Debug)]
struct LeaseState {
    key: u32,
    host: HostId,
    slots: u32,
    /// With how many of them it goes on: the others go back as soon as no more than so many are in use.
    keep: u32,
    in_flight: u32,
    actors: u32,
    /// What was told to end and is not counted above any more, and whose code may still run.
    stopping: u32,
    idle_ticks: u32,
    /// Ticks since its last result.
    quiet_ticks: u32,
    recalling: bool,
    /// Whether it is among its class's `open`.
    open: bool,
    /// How many more tasks may be pushed, where others wait for it.
    pushes_left: Option<u64>,
    /// Nothing more is pushed; it goes back when what was pushed is done.
    wanted_back: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Core {
    me: HostId,
    ids: Names,
    number: CoreNumber,
    /// The objects.
    pub objects: Ownership,
    tasks: SeqMap<Task>,
    /// For tasks that have several results, for as long as any of them lives.
    several: IdMap<u64, Several>,
    last_seq: u64,
    unfinished: usize,
    /// Bytes of arguments inside `tasks`.
    inline_bytes: Arc<AtomicU64>,
    unfinished_max: usize,
    room_wanted: bool,
    /// Actors known here whose inbox was full.
    held_back: usize,
    dependents: IdMap<ObjectId, Vec<u64>>,
    classes: Classes,
    keys: FxHashMap<Class, u32>,
    /// By the number of a class and where arguments lie.
    near_keys: FxHashMap<(u32, NodeId), u32>,
    leases: BTreeMap<LeaseId, LeaseState>,
    /// What their `stopping` counts: attempts of tasks and constructions.
    stopping: BTreeMap<(u64, u32), LeaseId>,
    clients: BTreeMap<ObjectId, Client>,
    /// The client that a tick looked at last; nothing where it has looked at all.
    swept: Option<ObjectId>,
    /// Names of actors made here.
    names: FxHashMap<ObjectId, (String, String)>,
    effects: Vec<Effect>,
    /// Kept for its memory.
    actions: Vec<Action>,
}

impl Core {
    /// A core for the host whose names these are.
    pub fn new(ids: Names) -> Self {
        Self {
            me: ids.owner(),
            number: CoreNumber::next(),
            objects: Ownership::new(ids.clone()),
            ids,
            tasks: SeqMap::default(),
            several: IdMap::default(),
            last_seq: 0,
            unfinished: 0,
            inline_bytes: Arc::default(),
            unfinished_max: UNFINISHED_TASKS_MAX,
            room_wanted: false,
            held_back: 0,
            dependents: IdMap::default(),
            classes: Classes::default(),
            keys: FxHashMap::default(),
            near_keys: FxHashMap::default(),
            leases: BTreeMap::new(),
            stopping: BTreeMap::new(),
            clients: BTreeMap::new(),
            swept: None,
            names: FxHashMap::default(),
            effects: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// An empty list for what follows from a step, to be given back with [`Self::give_actions`].
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// See [`Self::take_actions`].
    pub fn give_actions(&mut self, mut actions: Vec<Action>) {
        actions.clear();
        if actions.capacity() <= ACTIONS_KEPT {
            self.actions = actions;
        }
    }

    /// Bytes of encoded arguments that unfinished calls keep in this process, to be read at any time.
    pub fn inline_bytes(&self) -> Arc<AtomicU64> {
        self.inline_bytes.clone()
    }

    /// Whether one more call may be submitted.
    pub fn has_room(&self) -> bool {
        self.unfinished < self.unfinished_max
    }

    /// Bounds the calls that are unfinished; at least one.
    pub fn set_unfinished_max(&mut self, calls: usize) {
        self.unfinished_max = calls.max(1);
    }

    /// Somebody waits for room: [`Action::Room`] says when there is.
    pub fn want_room(&mut self) {
        self.room_wanted = true;
    }

    fn one_finished(&mut self, out: &mut Vec<Action>) {
        self.unfinished -= 1;
        let enough = self.unfinished_max - self.unfinished_max.div_ceil(ROOM_SHARE);
        if self.room_wanted && self.unfinished <= enough {
            self.room_wanted = false;
            out.push(Action::Room);
        }
    }

    /// A fresh name for something submitted here.
    pub fn next_task(&mut self) -> TaskId {
        self.last_seq += 1;
        self.ids.task(self.last_seq)
    }

    /// Tasks submitted and not yet done.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Whether this host waits for nothing, and nothing that it owns would be lost with it.
    pub fn may_end(&self) -> bool {
        self.waits_for_nothing() && self.objects.may_end()
    }

    /// Whether this host waits for nothing, whatever it owns.
    pub fn waits_for_nothing(&self) -> bool {
        self.unfinished == 0 && self.leases.is_empty()
    }

    /// Leases held.
    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    /// The host on which a lease executes.
    pub fn lease_host(&self, lease: LeaseId) -> Option<HostId> {
        self.leases.get(&lease).map(|lease| lease.host)
    }

    /// Submits a call; its first result is the object returned. The caller holds one reference on each result that it
    /// is known to give: all [`Returns::Many`], and a stream's own object.
    pub fn submit(&mut self, spec: Spec, out: &mut Vec<Action>) -> ObjectId {
        self.submit_from(spec, Maker::Outside, out)
    }

    /// [`Self::submit`]; for an actor's call `maker` says who makes it.
    pub fn submit_from(&mut self, spec: Spec, maker: Maker, out: &mut Vec<Action>) -> ObjectId {
        let task = self.next_task();
        let object = task.object(0);
        let rebuildable = spec.kind.is_task() && spec.template.attempts_max > 1;
        match spec.template.returns {
            Returns::One => self.objects.create(object, rebuildable),
            several => self.create_results(task, several, rebuildable),
        }
        for held in spec.refs() {
            self.objects.add_ref(held);
        }
        let key = match spec.kind {
            Kind::Method { .. } | Kind::Direct { .. } => 0,
            Kind::Task { .. } | Kind::Construct { .. } => self.key(&spec.template),
        };
        let kind = spec.kind;
        let overtakes = spec.template.unordered;
        self.inline_bytes.fetch_add(spec.inline_bytes(), Ordering::Relaxed);
        self.unfinished += 1;
        self.tasks.insert(
            task.seq,
            Task {
                spec,
                key,
                attempt: 1,
                missing: 0,
                phase: Phase::Waiting,
                incarnation: 1,
                holds: NO_LEASE,
                evictions: 0,
                cancelled: false,
                inside: maker != Maker::Outside,
            },
        );
        if let Kind::Direct { host } = kind {
            self.push_direct(task.seq, host, out);
        } else if let Kind::Method { actor } = kind {
            let ready = self.has_arguments(task.seq);
            let client = self.clients.entry(actor).or_default();
            if overtakes && !ready {
                client.unready.insert(task.seq);
            } else {
                client.outbox.push_back(task.seq);
            }
            self.pump_client(actor, out);
            if self.held_back > 0 && maker != Maker::Outside && self.refuses_inner_calls(actor) {
                self.withdraw(task.seq);
                self.conclude(task.seq, flow::stalled(), out);
            }
        } else {
            self.enqueue(task.seq, false, out);
        }
        self.drain(out);
        object
    }

    /// It queues for a lease, once it has its arguments.
    fn enqueue(&mut self, seq: u64, first: bool, out: &mut Vec<Action>) {
        match self.given(seq) {
            Given::NotAll => return,
            Given::Failed => {
                // To say so it needs no slot.
                let arguments = self.tasks.get(&seq).map(|task| self.arguments(&task.spec));
                if let Some(Err(failure)) = arguments
                    && let Some(key) = self.cannot_start(seq, &failure, out)
                {
                    self.pump(key, out);
                }
                return;
            }
            Given::All => {}
        }
        self.go_near(seq);
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        task.phase = Phase::Queued;
        let key = task.key;
        let queue = &mut self.classes[key].queue;
        if first || matches!(task.spec.kind, Kind::Task { is_child: true }) {
            queue.push_front(seq);
        } else {
            queue.push_back(seq);
        }
        self.pump(key, out);
    }

    /// Sends a call to a host that takes it without a lease.
    fn push_direct(&mut self, seq: u64, host: HostId, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        task.phase = Phase::Pushed { host, lease: NO_LEASE };
        let Some(task) = self.tasks.get(&seq) else { return };
        let target = Target::Task { lease: NO_LEASE, slots: u32::MAX };
        match self.arguments(&task.spec) {
            Ok(arguments) => self.send_call(seq, host, target, arguments, out),
            Err(failure) => self.conclude(seq, failure, out),
        }
    }

    fn send_call(
        &mut self,
        seq: u64,
        to: HostId,
        target: Target,
        arguments: SmallVec<[Argument; 1]>,
        out: &mut Vec<Action>,
    ) {
        let Some(task) = self.tasks.get(&seq) else { return };
        let template = &task.spec.template;
        let call = Call {
            task: self.ids.task(seq),
            attempt: task.attempt,
            attempts_max: task.attempts_max(),
            function: template.function,
            target,
            arguments,
            timeout_ms: template.timeout_ms,
        };
        let message = match template.returns {
            Returns::One | Returns::Many(_) => Message::Run(call),
            Returns::Stream(_) => self.stream_call(call),
        };
        out.push(Action::Send { to, message });
    }

    /// A message about objects, a result, or a death notice from an executor or owner. Others come back.
    pub fn on_message(
        &mut self,
        from: HostId,
        message: Message,
        out: &mut Vec<Action>,
    ) -> Result<(), Message> {
        match message {
            Message::Done(done) => {
                let lent = match &done.outcome {
                    Outcome::Values(values) => {
                        values.iter().flat_map(|value| &value.contains).copied().collect()
                    }
                    Outcome::Failed(_) | Outcome::Lost(_) => Vec::new(),
                };
                self.on_done(from, done, out);
                self.objects.took(from, &lent, &mut self.effects);
            }
            Message::Item(item) => {
                let lent = item.returned.contains.clone();
                self.on_item(from, item, out);
                self.objects.took(from, &lent, &mut self.effects);
            }
            Message::Expired { task, attempt, failure } => {
                self.on_expired(from, task, attempt, *failure, out);
            }
            Message::Recalled { lease, tasks } => self.on_recalled(from, lease, &tasks, out),
            Message::Retired { actor, incarnation } => self.on_retired(from, actor, incarnation, out),
            Message::Kill { actor } => self.end_actor(actor, killed(), out),
            Message::NoRoom { task, inbox } => self.on_no_room(from, task, inbox, out),
            Message::Room { actor, incarnation, calls } => {
                self.on_room(from, actor, incarnation, calls, out);
            }
            other => self.objects.on_message(from, other, &mut self.effects)?,
        }
        self.drain(out);
        Ok(())
    }

    /// The time given for a call ran out: its results fail at once. As where it is cancelled, its slot and what it was given
    /// stay its until its code has ended, as its `Done` says.
    fn on_expired(
        &mut self,
        from: HostId,
        id: TaskId,
        attempt: u32,
        failure: Failure,
        out: &mut Vec<Action>,
    ) {
        let seq = id.seq;
        let counts = self.tasks.get(&seq).is_some_and(|task| {
            matches!(task.phase, Phase::Pushed { host, .. } if host == from)
                && task.attempt == attempt
                && !task.cancelled
                && !self.is_discarded(seq, task, from)
        });
        // A stream's attempt that was stopped to be made again is so whatever stopped it.
        if id.owner != self.me || !counts || self.is_restarting(seq) {
            return;
        }
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        task.cancelled = true;
        let (title, returns) = (task.spec.title(id), task.spec.template.returns);
        if let Kind::Construct { .. } = task.spec.kind {
            self.give_name_up(id.object(0), out);
        }
        self.fail_results(id, returns, &failure.of(title));
    }

    fn on_done(&mut self, from: HostId, done: Done, out: &mut Vec<Action>) {
        let seq = done.task.seq;
        self.objects.retained(from, &done.retained);
        let stale = self.tasks.get(&seq).is_none_or(|task| {
            !matches!(task.phase, Phase::Pushed { host, .. } if host == from)
                || task.attempt != done.attempt
                || self.is_discarded(seq, task, from)
        });
        if stale {
            // Values that nobody asked for any more.
            if let Outcome::Values(values) = done.outcome {
                for (index, returned) in values.into_iter().enumerate() {
                    let (state, contains) = returned.into_state();
                    self.objects.decline(
                        from,
                        done.task.object(index as u32),
                        state,
                        contains,
                        &mut self.effects,
                    );
                }
            }
            self.code_ended(from, done.task, done.attempt, out);
            return;
        }
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        let Phase::Pushed { lease, .. } = task.phase else { return };
        let (key, kind, incarnation, cancelled) =
            (task.key, task.spec.kind, task.incarnation, task.cancelled);
        match kind {
            Kind::Method { actor } => {
                if let Some(client) = self.clients.get_mut(&actor)
                    && let Some(at) = client.in_flight.iter().position(|other| *other == seq)
                {
                    client.in_flight.remove(at);
                }
            }
            Kind::Task { .. } => {
                if let Some(held) = self.leases.get_mut(&lease) {
                    held.in_flight = held.in_flight.saturating_sub(1);
                    held.quiet_ticks = 0;
                    held.reopen(lease, &mut self.classes);
                }
                // One that was stopped before it ran took none.
                if done.nanos > 0 && !matches!(done.outcome, Outcome::Lost(_)) {
                    let class = &mut self.classes[key];
                    class.nanos = match class.nanos {
                        0 => done.nanos,
                        old => (old * 7 + done.nanos) / 8 + 1,
                    };
                }
            }
            Kind::Construct { .. } | Kind::Direct { .. } => {}
        }
        match done.outcome {
            Outcome::Values(values) => {
                if let (Kind::Construct { .. }, true) = (kind, cancelled) {
                    // It was given up meanwhile, and nobody else would end it.
                    let message = Message::Terminate { actor: done.task, incarnation };
                    out.push(Action::Send { to: from, message });
                    self.conclude(seq, Failure::new(FailureKind::Cancelled, "it was cancelled"), out);
                } else if let Kind::Construct { .. } = kind {
                    task.phase = Phase::Kept;
                    self.one_finished(out);
                    let at = State::Actor { host: from, incarnation };
                    self.objects.set_actor(done.task.object(0), at, &mut self.effects);
                } else if let Returns::Many(wanted) = task.spec.template.returns
                    && wanted as usize != values.len()
                {
                    self.wrong_count(from, seq, wanted, values.into_iter(), out);
                } else {
                    let stored = values.iter().any(|v| matches!(v.value, Value::Stored(_)));
                    let is_stream = matches!(task.spec.template.returns, Returns::Stream(_));
                    let finished = if (stored || is_stream) && self.keeps(seq, stored) {
                        if let Some(task) = self.tasks.get_mut(&seq) {
                            task.phase = Phase::Kept;
                        }
                        None
                    } else {
                        self.tasks.remove(&seq)
                    };
                    self.one_finished(out);
                    for (index, returned) in values.into_iter().enumerate() {
                        let (state, contains) = returned.into_state();
                        let object = done.task.object(index as u32);
                        self.objects.complete(from, object, state, contains, &mut self.effects);
                    }
                    // Only now: the arguments kept alive what the result may contain.
                    if let Some(task) = finished {
                        self.release(&task.spec);
                    }
                }
            }
            Outcome::Failed(failure) => {
                let restarting = !self.several.is_empty() && self.is_restarting(seq);
                let Some(task) = self.tasks.get_mut(&seq) else { return };
                let again = task.may_run_again()
                    && !cancelled
                    && (failure.kind.is_system()
                        || restarting
                        || (task.spec.template.retry_errors
                            && matches!(failure.kind, FailureKind::Panicked | FailureKind::Returned)));
                if again && !matches!(kind, Kind::Method { .. } | Kind::Direct { .. }) {
                    self.give_slot_back(seq);
                    if let Some(task) = self.tasks.get_mut(&seq) {
                        task.attempt += 1;
                    }
                    self.enqueue(seq, true, out);
                } else {
                    self.conclude(seq, *failure, out);
                }
            }
            Outcome::Lost(arguments) => self.on_lost_arguments(seq, &arguments, out),
        }
        if !self.several.is_empty() {
            self.stream_ended(done.task, out);
        }
        match kind {
            Kind::Method { actor } => self.arrived(actor, out),
            Kind::Direct { .. } => {}
            Kind::Task { .. } | Kind::Construct { .. } => {
                self.pump(key, out);
                self.maybe_release(lease, out);
            }
        }
    }

    /// The actor's slot is free again (a task's is when its result arrives).
    fn give_slot_back(&mut self, seq: u64) {
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        let lease = std::mem::replace(&mut task.holds, NO_LEASE);
        if lease == NO_LEASE {
            return;
        }
        if let Some(held) = self.leases.get_mut(&lease) {
            held.actors = held.actors.saturating_sub(1);
        }
        self.open_lease(lease);
    }

    /// What was pushed under a lease is to end, and counts no more: its slot is free for others once its code has ended, as its
    /// `Done` says ([`Self::code_ended`]).
    fn keep_slot(&mut self, seq: u64) {
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        let Phase::Pushed { lease, .. } = task.phase else { return };
        let Some(held) = self.leases.get_mut(&lease) else { return };
        match task.spec.kind {
            Kind::Construct { .. } => {
                task.holds = NO_LEASE;
                held.actors = held.actors.saturating_sub(1);
            }
            Kind::Task { .. } => held.in_flight = held.in_flight.saturating_sub(1),
            Kind::Method { .. } | Kind::Direct { .. } => return,
        }
        if self.stopping.insert((seq, task.attempt), lease).is_none() {
            held.stopping += 1;
        }
    }

    /// The code of an attempt has ended, or will not start, which may have been told to end before.
    fn code_ended(&mut self, from: HostId, id: TaskId, attempt: u32, out: &mut Vec<Action>) {
        let key = (id.seq, attempt);
        let lease = self.stopping.get(&key).copied().filter(|lease| self.lease_host(*lease) == Some(from));
        let Some(lease) = lease.filter(|_| id.owner == self.me) else { return };
        self.stopping.remove(&key);
        let Some(held) = self.leases.get_mut(&lease) else { return };
        held.stopping = held.stopping.saturating_sub(1);
        let class = held.key;
        self.open_lease(lease);
        self.pump(class, out);
        self.maybe_release(lease, out);
    }

    /// The call failed for good.
    fn conclude(&mut self, seq: u64, failure: Failure, out: &mut Vec<Action>) {
        self.give_slot_back(seq);
        let id = self.ids.task(seq);
        if !self.several.is_empty() && self.keeps(seq, false) {
            return self.keep_failed(id, failure, out);
        }
        if let Some(key) = self.end(seq, failure, out) {
            self.pump(key, out);
        }
    }

    /// [`Self::conclude`] for what is never run again, and holds no actor's slot. The key of its class, where it has one.
    fn end(&mut self, seq: u64, failure: Failure, out: &mut Vec<Action>) -> Option<u32> {
        let id = self.ids.task(seq);
        let mut task = self.tasks.remove(&seq)?;
        if task.phase != Phase::Kept {
            self.one_finished(out);
        }
        let object = id.object(0);
        let failure = failure.of(task.spec.title(id));
        let returns = task.spec.template.returns;
        let is_wanted = || match returns {
            Returns::One => self.objects.state(object).is_some(),
            Returns::Many(_) | Returns::Stream(_) => self.several.contains_key(&seq),
        };
        if failure.kind == FailureKind::Overloaded
            && failure.causes.is_empty()
            && matches!(task.spec.kind, Kind::Method { .. })
            && is_wanted()
        {
            // Its caller may have it back: see `take_refused`.
            task.phase = Phase::Kept;
            self.tasks.insert(seq, task);
            self.fail_results(id, returns, &failure);
            self.stream_ended(id, out);
            return None;
        }
        self.release(&task.spec);
        match task.spec.kind {
            Kind::Construct { .. } => {
                self.give_name_up(object, out);
                self.objects.set_actor(object, State::failed(failure), &mut self.effects);
            }
            Kind::Task { .. } | Kind::Method { .. } | Kind::Direct { .. } => match returns {
                Returns::One => self.objects.fail(object, failure, &mut self.effects),
                several => self.fail_results(id, several, &failure),
            },
        }
        if !self.several.is_empty() {
            self.stream_ended(id, out);
        }
        matches!(task.spec.kind, Kind::Task { .. } | Kind::Construct { .. }).then_some(task.key)
    }

    fn release(&mut self, spec: &Spec) {
        self.inline_bytes.fetch_sub(spec.inline_bytes(), Ordering::Relaxed);
        for held in spec.refs() {
            self.objects.drop_ref(held, &mut self.effects);
        }
    }

    /// An object that has failed before anything could run; the caller holds one reference.
    pub fn failed(&mut self, failure: Failure, out: &mut Vec<Action>) -> ObjectId {
        let object = self.next_task().object(0);
        self.objects.create(object, false);
        self.objects.fail(object, failure, &mut self.effects);
        self.drain(out);
        object
    }

    /// Whether a call submitted here has a process of its own; `None` where it is done or not ours.
    pub fn has_own_process(&self, object: ObjectId) -> Option<bool> {
        let task = self.tasks.get(&object.seq).filter(|_| object.owner == self.me)?;
        Some(task.spec.template.class.has_own_process())
    }

    /// Carries out what the ownership protocol decided, until nothing follows any more.
    fn drain(&mut self, out: &mut Vec<Action>) {
        while !self.effects.is_empty() {
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Send { to, message } => out.push(Action::Send { to, message }),
                    Effect::Free { object, copy } => {
                        out.push(Action::Tell(ToAgent::Free { object, copy }));
                    }
                    Effect::Decline { object, copy } => {
                        out.push(Action::Tell(ToAgent::Decline { object, copy }));
                    }
                    Effect::Claim { objects } => out.push(Action::Tell(ToAgent::Claim { objects })),
                    Effect::Spare { object, copy, primary } => {
                        out.push(Action::Tell(ToAgent::Spare { object, copy, primary }));
                    }
                    Effect::Salvage { node } => out.push(Action::Tell(ToAgent::Salvage { node })),
                    Effect::Unclaim { object, node } => {
                        out.push(Action::Tell(ToAgent::Unclaim { object, node }));
                    }
                    Effect::Mourned { host } => out.push(Action::Tell(ToAgent::Mourned { host })),
                    Effect::Ready { object } => self.on_ready(object, out),
                    Effect::ActorMoved { object } => {
                        self.on_actor(object, out);
                        out.push(Action::Wake(object));
                    }
                    Effect::Forgotten { object } => self.on_forgotten(object, out),
                    Effect::Rebuild { task } => self.rebuild(task, out),
                    Effect::Settled { token } => out.push(Action::Settled(token)),
                }
            }
            if self.effects.is_empty() && effects.capacity() <= ACTIONS_KEPT {
                self.effects = effects;
            }
        }
    }

    fn on_ready(&mut self, object: ObjectId, out: &mut Vec<Action>) {
        for seq in self.dependents.remove(&object).unwrap_or_default() {
            let Some(task) = self.tasks.get_mut(&seq) else { continue };
            task.missing = task.missing.saturating_sub(1);
            if task.missing > 0 || task.phase != Phase::Waiting {
                continue;
            }
            match task.spec.kind {
                Kind::Method { actor } => {
                    if let Some(client) = self.clients.get_mut(&actor)
                        && client.unready.remove(&seq)
                    {
                        client.outbox.push_back(seq);
                    }
                    self.pump_client(actor, out);
                }
                Kind::Task { .. } | Kind::Construct { .. } => self.enqueue(seq, false, out),
                Kind::Direct { host } => self.push_direct(seq, host, out),
            }
        }
        self.on_actor(object, out);
        out.push(Action::Wake(object));
    }

    /// Nobody can reach an owned object any more: drop its lineage, end its actor.
    fn on_forgotten(&mut self, object: ObjectId, out: &mut Vec<Action>) {
        self.end_flow(object, out);
        self.clients.remove(&object);
        self.give_name_up(object, out);
        let seq = object.seq;
        if !self.several.is_empty() && self.several.contains_key(&seq) {
            return self.part_forgotten(object, out);
        }
        match self.tasks.get(&seq) {
            Some(task) if task.phase == Phase::Kept => {
                let is_actor = matches!(task.spec.kind, Kind::Construct { .. });
                let (key, lease, incarnation) = (task.key, task.holds, task.incarnation);
                if is_actor && let Some(host) = self.lease_host(lease) {
                    let actor = object.task();
                    out.push(Action::Send { to: host, message: Message::Terminate { actor, incarnation } });
                }
                self.give_slot_back(seq);
                if let Some(task) = self.tasks.remove(&seq) {
                    self.release(&task.spec);
                }
                if is_actor {
                    self.pump(key, out);
                    self.maybe_release(lease, out);
                }
            }
            // Given up already: its slot is free when its code has ended.
            Some(task) if task.cancelled && matches!(task.phase, Phase::Pushed { .. }) => {}
            Some(task) if matches!(task.spec.kind, Kind::Construct { .. }) => {
                // The last handle went before the actor was up.
                let host = match task.phase {
                    Phase::Pushed { host, .. } => Some(host),
                    _ => None,
                };
                let (actor, incarnation) = (object.task(), task.incarnation);
                if let Some(host) = host {
                    out.push(Action::Send { to: host, message: Message::Terminate { actor, incarnation } });
                }
                self.keep_slot(seq);
                self.withdraw(seq);
                self.conclude(seq, Failure::new(FailureKind::Cancelled, "the last handle was dropped"), out);
            }
            // A task runs for its effects even if nobody wants its result.
            _ => {}
        }
    }

    /// Takes an unsent task out of its queue.
    fn withdraw(&mut self, seq: u64) {
        let Some(task) = self.tasks.get(&seq) else { return };
        if let Kind::Method { actor } = task.spec.kind {
            if let Some(client) = self.clients.get_mut(&actor)
                && !client.unready.remove(&seq)
                && task.phase == Phase::Waiting
            {
                client.outbox.give_up(seq, |other| outbox::waits(&self.tasks, other));
            }
        } else if task.phase == Phase::Queued {
            self.classes[task.key].queue.remove(seq);
        }
    }

    fn rebuild(&mut self, id: TaskId, out: &mut Vec<Action>) {
        self.note_lost(id, out);
        let task = match self.tasks.get_mut(&id.seq) {
            // It is being run already, since another of its values was lost.
            Some(task) if task.phase != Phase::Kept => return,
            Some(task) if task.may_run_again() => task,
            _ => return self.fail_lost(id),
        };
        task.attempt += 1;
        task.cancelled = false;
        task.phase = Phase::Waiting;
        self.unfinished += 1;
        self.enqueue(id.seq, true, out);
    }

    /// Gives up on a call: its result becomes `Cancelled` at once; what runs is told.
    /// Returns `false` where it is already done or not ours.
    pub fn cancel(&mut self, object: ObjectId, force: bool, out: &mut Vec<Action>) -> bool {
        let seq = object.seq;
        if is_final(self.objects.state(object)) && !force || self.is_item(object) {
            return false;
        }
        let Some(task) =
            self.tasks.get_mut(&seq).filter(|task| object.owner == self.me && task.phase != Phase::Kept)
        else {
            return false;
        };
        if task.cancelled && !force {
            // Its result is final, though its code may still be ending.
            return false;
        }
        task.cancelled = true;
        let failure = Failure::new(FailureKind::Cancelled, "it was cancelled");
        match task.phase {
            Phase::Pushed { host, .. } => {
                // The slot stays charged until the executor says that the code has ended.
                out.push(Action::Send { to: host, message: Message::Cancel { task: object.task(), force } });
                let (title, returns) = (task.spec.title(object.task()), task.spec.template.returns);
                self.fail_results(object.task(), returns, &failure.of(title));
            }
            Phase::Waiting | Phase::Queued => {
                self.withdraw(seq);
                self.conclude(seq, failure, out);
            }
            Phase::Kept => {}
        }
        self.drop_unread(object.task());
        self.drain(out);
        true
    }

    /// One reference less.
    pub fn drop_ref(&mut self, object: ObjectId, out: &mut Vec<Action>) {
        self.objects.drop_ref(object, &mut self.effects);
        self.drain(out);
    }

    /// Something here waits for the object.
    pub fn want(&mut self, object: ObjectId, out: &mut Vec<Action>) {
        self.objects.want(object, &mut self.effects);
        self.drain(out);
    }

    /// Runs a step of the ownership protocol and what follows from it.
    pub fn own<R>(
        &mut self,
        out: &mut Vec<Action>,
        step: impl FnOnce(&mut Ownership, &mut Vec<Effect>) -> R,
    ) -> R {
        let result = step(&mut self.objects, &mut self.effects);
        self.drain(out);
        result
    }

    /// The last known place of a stored object.
    pub fn copy(&self, object: ObjectId) -> Option<Copy> {
        match self.objects.state(object) {
            Some(State::Stored(copy)) => Some(*copy),
            _ => None,
        }
    }

    /// Where an actor lives, as far as is known here.
    pub fn actor_at(&self, actor: ObjectId) -> Option<(HostId, u32)> {
        match self.objects.state(actor) {
            Some(State::Actor { host, incarnation }) => Some((*host, *incarnation)),
            _ => None,
        }
    }
}

fn is_final(state: Option<&State>) -> bool {
    !matches!(state, Some(State::Pending))
}
