//! A host: the driver's process, or one that an agent started from the same binary.
//!
//! [`Runtime`] ties the pure parts together. Its locks, in the order in which they may be taken: `core`, then
//! one peer's ring or the agent's link. Messages that a host sends to itself wait in `loopback` until `core` is
//! free again, since handling them may need it.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
};

use mobula_net::link::Error::DescriptorsLost;
use mobula_ownership::{Counts, Ownership, Via};
use mobula_proto::{
    Blob, Failure, FailureKind, GroupId, HostId, IdMap, JobId, Names, ObjectId, TaskId,
    host::{Noted, Request, ToAgent, ToHost, Welcome},
    peer::{Copy, Done, Item, Message, State, Value},
    resource::DeviceGrant,
    wire,
};
use mobula_store::{Bytes, Object};
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::{
    codec::{Held, Output},
    context,
    core::{Action, Core, INLINE_BYTES_TOTAL_MAX, Kind, Maker, Returns, Spec, TICK},
    executor::Executor,
    link::{AgentSender, Parcel, without_descriptor},
    peers::Peers,
    registry::Registry,
    site::Site,
    store::{Store, Unopened},
    strangers,
    stream::Producer,
    wait::{Parker, Waiter},
};

mod asking;
mod deaths;
mod leaving;
mod losing;
mod waiting;

pub use asking::QUESTION_WAIT;
pub use waiting::{Awaited, Ready, Waiting};

/// What follows from a step of the core and is done without its lock.
enum Later {
    Wake(ObjectId),
    Settled(u64),
    Room,
    Fetch(ObjectId),
}

fn is_for_executor(message: &Message) -> bool {
    matches!(
        message,
        Message::Run(_)
            | Message::RunStream(_)
            | Message::Consumed { .. }
            | Message::Cancel { .. }
            | Message::Terminate { .. }
            | Message::Retire { .. }
            | Message::Recall { .. }
            | Message::Limits { .. }
            | Message::WantRoom { .. }
            | Message::Piece { .. }
    )
}

fn on_core_message(core: &mut Core, from: HostId, message: Message, out: &mut Vec<Action>) {
    if let Err(message) = core.on_message(from, message, out) {
        tracing::warn!(%from, ?message, "a message that nobody handles");
    }
}

/// A host; see the module's text.
pub struct Runtime {
    welcome: Welcome,
    registry: Registry,
    /// Of what this host owns.
    names: Names,
    core: Mutex<Core>,
    /// The core's count of bytes in arguments.
    inline_bytes: Arc<AtomicU64>,
    /// Who waits until there is room for more calls.
    room: Mutex<Vec<Waiter>>,
    executor: Executor,
    store: Store,
    peers: Peers,
    agent: AgentSender,
    user: tokio::runtime::Handle,
    /// Messages to this host itself, each with the refs that must live until it is handled.
    loopback: Mutex<VecDeque<(Message, Held)>>,
    /// How many are in `loopback`, for looking without the lock.
    loopback_waiting: AtomicUsize,
    loopback_turn: Mutex<()>,
    waiters: Mutex<IdMap<ObjectId, SmallVec<[Waiter; 1]>>>,
    unsettled: Mutex<HashMap<u64, (HostId, Done, Held)>>,
    rest_awaited: Mutex<Option<Request>>,
    questions: Mutex<HashMap<u64, asking::Asker>>,
    placed: Mutex<BTreeSet<GroupId>>,
    next_number: AtomicU64,
    ended: Mutex<Option<Failure>>,
    stopped: AtomicBool,
    on_output: Mutex<Option<OutputSink>>,
}

/// Where a driver's lines from hosts go: host, whether standard error, the line.
pub type OutputSink = Box<dyn FnMut(HostId, bool, &str) + Send>;

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Runtime({})", self.welcome.host)
    }
}

impl Runtime {
    /// A runtime that has been welcomed by its agent. `user` runs user async code. Where `peers` has a doorbell,
    /// its descriptor has already been sent.
    pub fn new(
        welcome: Welcome,
        registry: Registry,
        agent: AgentSender,
        peers: Peers,
        user: tokio::runtime::Handle,
    ) -> Arc<Self> {
        let names = Names::new(welcome.host);
        let core = Core::new(names.clone());
        let runtime = Arc::new(Self {
            inline_bytes: core.inline_bytes(),
            names,
            core: Mutex::new(core),
            room: Mutex::default(),
            executor: Executor::new(welcome.store_bytes, welcome.shared),
            store: Store::new(&welcome, agent.clone()),
            peers,
            registry,
            agent,
            user,
            loopback: Mutex::default(),
            loopback_waiting: 0.into(),
            loopback_turn: Mutex::default(),
            waiters: Mutex::default(),
            unsettled: Mutex::default(),
            rest_awaited: Mutex::default(),
            questions: Mutex::default(),
            placed: Mutex::default(),
            next_number: AtomicU64::new(1),
            ended: Mutex::new(None),
            stopped: AtomicBool::new(false),
            on_output: Mutex::new(None),
            welcome,
        });
        context::set_fallback(&runtime);
        runtime.peers.start(&runtime);
        let weak = Arc::downgrade(&runtime);
        runtime.user.spawn(async move {
            let mut interval = tokio::time::interval(TICK);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                let Some(runtime) = weak.upgrade().filter(|runtime| !runtime.stopped.load(Ordering::Relaxed))
                else {
                    return;
                };
                runtime.tick();
            }
        });
        runtime
    }

    /// This host.
    pub fn me(&self) -> HostId {
        self.welcome.host
    }

    /// Its job.
    pub fn job(&self) -> JobId {
        self.welcome.job
    }

    /// What the agent said on arrival.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Devices that this process has to itself.
    pub fn devices(&self) -> &[DeviceGrant] {
        &self.welcome.devices
    }

    /// Whether other calls of the job share this process.
    pub fn is_shared(&self) -> bool {
        self.welcome.shared
    }

    /// The functions of this program.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Runs user async code.
    pub fn user(&self) -> &tokio::runtime::Handle {
        &self.user
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The host's side of the object store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends to the agent. A lost agent is noticed by whoever reads from it.
    pub(crate) fn tell(&self, message: ToAgent) {
        self.agent.tell(message);
    }

    pub(crate) fn tell_with(&self, message: ToAgent, descriptors: Vec<std::os::fd::OwnedFd>) {
        self.agent.send(Parcel { message, descriptors });
    }

    /// Runs a step of the core and carries out what follows.
    pub(crate) fn step<R>(self: &Arc<Self>, step: impl FnOnce(&mut Core, &mut Vec<Action>) -> R) -> R {
        let mut later: SmallVec<[Later; 4]> = SmallVec::new();
        let result = {
            let mut core = self.core.lock();
            let mut actions = core.take_actions();
            let result = step(&mut core, &mut actions);
            for action in actions.drain(..) {
                match action {
                    Action::Send { to, message } if to == self.me() => {
                        self.push_loopback(message, Held::default());
                    }
                    Action::Send { to, message } => self.peers.send(self, to, message),
                    Action::Tell(message) => self.tell(message),
                    Action::Wake(object) => later.push(Later::Wake(object)),
                    Action::Settled(token) => later.push(Later::Settled(token)),
                    Action::Room => later.push(Later::Room),
                    Action::Fetch(object) => later.push(Later::Fetch(object)),
                }
            }
            core.give_actions(actions);
            result
        };
        if !later.is_empty() {
            self.carry_out(&later);
        }
        self.run_loopback();
        result
    }

    /// What is done without the core's lock.
    fn carry_out(self: &Arc<Self>, later: &[Later]) {
        let mut woken: SmallVec<[Waiter; 8]> = SmallVec::new();
        {
            let mut waiters = self.waiters.lock();
            if !waiters.is_empty() {
                for one in later {
                    if let Later::Wake(object) = one {
                        woken.extend(waiters.remove(object).unwrap_or_default());
                    }
                }
            }
        }
        // Without the lock: an executor may let go of a task here, and its waits with it.
        let mut parked = woken.into_iter().fold(false, |parked, waiter| parked | waiter.wake());
        for one in later {
            match one {
                Later::Wake(_) => {}
                Later::Settled(token) => self.settled(*token),
                // Whoever reads it then learns what became of it.
                Later::Fetch(object) => self.read(*object, drop),
                Later::Room => parked |= self.wake_for_room(),
            }
        }
        if parked {
            self.peers.nudge();
        }
    }

    /// Wakes who waits for room; says whether there is a thread among them.
    fn wake_for_room(&self) -> bool {
        let waiters = std::mem::take(&mut *self.room.lock());
        waiters.into_iter().fold(false, |parked, waiter| parked | waiter.wake())
    }

    /// A host that took no more messages takes some again.
    pub(crate) fn go_on(&self) {
        if self.wake_for_room() {
            self.peers.nudge();
        }
    }

    fn push_loopback(&self, message: Message, held: Held) {
        let mut loopback = self.loopback.lock();
        loopback.push_back((message, held));
        self.loopback_waiting.store(loopback.len(), Ordering::Release);
    }

    /// Handles what this host sent to itself, one thread at a time, in order.
    fn run_loopback(self: &Arc<Self>) {
        while self.loopback_waiting.load(Ordering::Acquire) > 0 {
            let Some(_turn) = self.loopback_turn.try_lock() else { return };
            loop {
                let next = {
                    let mut loopback = self.loopback.lock();
                    let next = loopback.pop_front();
                    self.loopback_waiting.store(loopback.len(), Ordering::Release);
                    next
                };
                let Some((message, held)) = next else { break };
                self.on_peer(self.me(), true, message);
                drop(held);
            }
        }
    }

    /// A message from a host, possibly this one.
    pub(crate) fn on_peer(self: &Arc<Self>, from: HostId, same_job: bool, message: Message) {
        let Some(message) = self.peers.whole(from, message) else { return };
        if !same_job && !strangers::may(&self.names, &message) {
            tracing::warn!(%from, "refused a message that a host of another job may not send");
            return;
        }
        if let Some(message) = self.execute(from, message) {
            self.step(|core, out| on_core_message(core, from, message, out));
        }
    }

    /// Messages from a host of the same job, in order; leaves none.
    pub(crate) fn on_peers(self: &Arc<Self>, from: HostId, messages: &mut Vec<Message>) {
        let mut messages = messages.drain(..).peekable();
        while let Some(message) = messages.next() {
            let whole = self.peers.whole(from, message);
            let Some(message) = whole.and_then(|message| self.execute(from, message)) else { continue };
            // All that are for the core, under its lock once.
            self.step(|core, out| {
                on_core_message(core, from, message, out);
                while let Some(message) = messages.next_if(|next| !is_for_executor(next)) {
                    on_core_message(core, from, message, out);
                }
            });
        }
    }

    /// Messages for the executor are handled; others come back.
    fn execute(self: &Arc<Self>, from: HostId, message: Message) -> Option<Message> {
        match message {
            Message::Run(call) => self.executor.receive(self, from, call, None),
            Message::RunStream(stream) => {
                let producer = Arc::new(Producer::new(&stream));
                self.executor.receive(self, from, stream.call, Some(producer));
            }
            Message::Consumed { task, attempt, items, bytes } => {
                if let Some(producer) = self.executor.producer(from, task, attempt) {
                    producer.consumed(self, items, bytes);
                }
            }
            Message::Cancel { task, force } => self.executor.cancel(self, task, force),
            Message::Terminate { actor, incarnation } => self.executor.terminate(self, actor, incarnation),
            Message::Retire { actor, incarnation } => self.executor.retire(self, from, actor, incarnation),
            Message::Recall { lease } => {
                let tasks = self.executor.recall(from, lease);
                self.send(from, Message::Recalled { lease, tasks }, Held::default());
            }
            Message::Limits { actor, incarnation, limits } => {
                self.executor.announce(actor, incarnation, limits);
            }
            Message::WantRoom { actor, incarnation, more } => {
                self.executor.want_room(self, from, (actor, incarnation), more);
            }
            other => return Some(other),
        }
        None
    }

    /// A message from the agent.
    pub(crate) fn on_agent(self: &Arc<Self>, message: ToHost, descriptors: Vec<std::os::fd::OwnedFd>) {
        self.peers.catch_up(self);
        match message {
            ToHost::Granted(grant) => self.step(|core, out| core.granted(&grant, out)),
            ToHost::Revoked { lease, kind } => self.step(|core, out| core.revoked(lease, kind, out)),
            ToHost::Infeasible { key, failure } => self.step(|core, out| core.infeasible(key, &failure, out)),
            ToHost::RegionGranted { request } => self.store.region_answer(request, Ok(())),
            ToHost::RegionRefused { request, failure } => self.store.region_answer(request, Err(failure)),
            ToHost::Opened { .. } | ToHost::OpenFailed { .. } | ToHost::Reclaim { .. } => {
                self.on_answer(message, descriptors.into_iter().next().map(Ok));
            }
            ToHost::Unmap { region } => self.store.views().unmap(region),
            ToHost::Rings { peer } => self.peers.rings(self, peer, descriptors),
            ToHost::Relayed { from, same_job, body } => match wire::decode::<Message>(&body) {
                Ok(message) => self.on_peer(from, same_job, message),
                Err(error) => tracing::warn!(%from, %error, "dropped a malformed message"),
            },
            ToHost::HostDied { host, failure } => self.on_host_died(host, &failure),
            ToHost::Claimed { answers } => self.step(|core, out| {
                for (object, found) in answers {
                    core.own(out, |objects, fx| objects.claimed(object, found, fx));
                }
            }),
            ToHost::Buried { host } => {
                self.step(|core, out| core.own(out, |objects, fx| objects.buried(host, fx)));
            }
            ToHost::NodeDied { node, failure } => self.on_node_died(node, &failure),
            ToHost::Answered { request, answer } => {
                if let Some(sender) = self.questions.lock().remove(&request) {
                    sender.answer(answer);
                }
            }
            ToHost::Explain { request, task } => {
                let found = self.core.lock().explain(task);
                self.tell(ToAgent::Explained { request, found });
            }
            ToHost::Moved { object, from, copy } => {
                let known = |objects: &mut Ownership, fx: &mut Vec<_>| objects.moved(object, from, copy, fx);
                let known = self.step(|core, out| core.own(out, known));
                let noted = if known { Noted::Yes } else { Noted::Unknown };
                self.tell(ToAgent::Noted { object, copy, noted });
            }
            ToHost::Salvaged { node, copies, more } => {
                let salvaged =
                    |objects: &mut Ownership, fx: &mut Vec<_>| objects.salvaged(node, &copies, more, fx);
                self.step(|core, out| core.own(out, salvaged));
            }
            ToHost::WhatHolds { asker, number, objects } => {
                let held = self.core.lock().held(&objects);
                self.tell(ToAgent::Holds { asker, number, held });
            }
            ToHost::Budget { more } => self.executor.give_budget(self, more),
            ToHost::BudgetWanted => self.executor.press_budget(self),
            ToHost::MayMakeRoom => self.tell(ToAgent::MakesRoom { may: self.executor.may_make_room() }),
            ToHost::Mark { number } => self.tell(ToAgent::Marked { number }),
            ToHost::AreYouIdle => self.prepare_to_end(),
            ToHost::AreYouAtRest { request } => self.say_whether_at_rest(request),
            ToHost::Output { host, stderr, line } => {
                if let Some(sink) = self.on_output.lock().as_mut() {
                    sink(host, stderr, &line);
                }
            }
            ToHost::JobEnded(failure) => self.end(failure),
            ToHost::Welcome(_) | ToHost::Refused(_) => tracing::warn!("an unexpected message from the agent"),
        }
    }

    /// What the agent says over the socket or through its ring: an answer to [`ToAgent::Open`], or what is reclaimed; and the
    /// descriptor that belongs to it, or why that was lost.
    pub(crate) fn on_answer(
        self: &Arc<Self>,
        message: ToHost,
        descriptor: Option<Result<std::os::fd::OwnedFd, Failure>>,
    ) {
        match message {
            ToHost::Opened { request, region, region_bytes, offset, bytes, lost } => {
                let lost = lost.then(|| Err(without_descriptor(&DescriptorsLost)));
                let place = crate::store::Place { region, region_bytes, offset, bytes };
                let now = std::time::Instant::now();
                self.store.views().opened(request, place, lost.or(descriptor), now);
            }
            ToHost::OpenFailed { request, failure } => self.store.views().open_failed(request, failure),
            ToHost::Reclaim { objects, give_back } => self.store.reclaim(self, &objects, give_back),
            _ => tracing::warn!("an unexpected message from the agent"),
        }
    }

    /// Where lines that this job's hosts print go.
    pub fn set_output(&self, sink: OutputSink) {
        *self.on_output.lock() = Some(sink);
    }

    /// The job is over: every wait fails from now on.
    pub fn end(self: &Arc<Self>, failure: Failure) {
        let failure = self.ended.lock().get_or_insert(failure).clone();
        self.stopped.store(true, Ordering::Relaxed);
        self.executor.stop();
        self.executor.callers_died(self, |_| true);
        self.questions.lock().clear();
        self.store.end(&failure);
        let mut all: Vec<Later> = self.waiters.lock().keys().copied().map(Later::Wake).collect();
        all.push(Later::Room);
        self.carry_out(&all);
        self.peers.stop();
    }

    /// Why the job ended, once it has.
    pub fn ended(&self) -> Option<Failure> {
        self.ended.lock().clone()
    }

    fn tick(self: &Arc<Self>) {
        self.peers.remind();
        self.step(|core, out| core.tick(out));
        self.executor.tick(self);
        self.say_once_at_rest();
        self.store.tidy(self);
    }

    // ---- submitting ----

    /// Submits a call. The returned object has one reference, which the caller gives back with
    /// [`Runtime::drop_ref`]. With [`UNFINISHED_TASKS_MAX`](crate::core::UNFINISHED_TASKS_MAX) calls unfinished, or
    /// with an inbox full of calls of the same actor that wait for room there, it first waits, on this thread, until
    /// there is room; inside a task that counts as waiting for an object.
    pub fn submit(self: &Arc<Self>, spec: Spec) -> ObjectId {
        let mut spec = spec;
        let kind = spec.kind;
        loop {
            match self.try_submit(spec) {
                Ok(object) => return object,
                Err(refused) => spec = refused,
            }
            let is_async = context::is_async();
            let _blocked = Blocked::enter(self, !is_async);
            let parker = Parker::new(1);
            if self.has_room_or(kind, maker(kind), || Waiter::Thread(parker.clone())) {
                continue;
            }
            if is_async {
                // Somebody who cannot wait in another way; those who can use `submit_when_room`.
                tokio::task::block_in_place(|| parker.park(None));
                continue;
            }
            self.park_here(&parker);
        }
    }

    /// Submits a call, or hands it back where [`UNFINISHED_TASKS_MAX`](crate::core::UNFINISHED_TASKS_MAX) are unfinished.
    pub fn try_submit(self: &Arc<Self>, spec: Spec) -> Result<ObjectId, Spec> {
        let ended = self.stopped.load(Ordering::Relaxed);
        let maker = maker(spec.kind);
        let submitted = self.step(|core, out| {
            if ended || core.has_room_for(spec.kind, maker, |host| self.peers.is_held(host)) {
                Ok(core.submit_from(spec, maker, out))
            } else {
                Err(spec)
            }
        });
        self.peers.submitted(self);
        submitted
    }

    /// Whether such a call could be submitted now; else `waker` is woken when one can.
    pub fn poll_room(self: &Arc<Self>, kind: Kind, waker: &Waker) -> bool {
        // Who awaits it lets its thread go, and counts as waiting: so it is held up as code that has a thread is.
        let maker = match maker(kind) {
            Maker::AsyncCall => Maker::Call,
            other => other,
        };
        self.has_room_or(kind, maker, || Waiter::Task(waker.clone()))
    }

    /// The call that an actor refused and whose failure is this object. The references that it holds become the
    /// caller's. `None` where its results are not what is `expected`.
    pub fn take_refused(&self, object: ObjectId, expected: fn(Returns) -> bool) -> Option<Spec> {
        self.core.lock().take_refused(object, expected)
    }

    fn has_room_or(&self, kind: Kind, maker: Maker, waiter: impl FnOnce() -> Waiter) -> bool {
        let mut core = self.core.lock();
        // Under the lock of those who wait, so that `go_on` finds this one.
        let mut room = self.room.lock();
        if self.stopped.load(Ordering::Relaxed)
            || core.has_room_for(kind, maker, |host| self.peers.is_held(host))
        {
            return true;
        }
        core.want_room();
        let waiter = waiter();
        if !room.iter().any(|other| other.is_same(&waiter)) {
            room.push(waiter);
        }
        false
    }

    /// Bounds the calls that are submitted and not yet done; [`UNFINISHED_TASKS_MAX`](crate::core::UNFINISHED_TASKS_MAX)
    /// unless set.
    pub fn set_budget(&self, calls: usize) {
        self.core.lock().set_unfinished_max(calls);
    }

    /// Tasks submitted here and not yet done.
    pub fn unfinished(&self) -> usize {
        self.core.lock().unfinished()
    }

    /// Remembers that an actor made here has this name, which ends with it.
    pub fn named(&self, actor: ObjectId, namespace: &str, name: &str) {
        self.core.lock().named(actor, namespace, name);
    }

    /// Cancels a call submitted here.
    pub fn cancel(self: &Arc<Self>, object: ObjectId, force: bool) -> bool {
        self.step(|core, out| core.cancel(object, force, out))
    }

    /// An object that has failed already; it has one reference.
    pub fn failed(self: &Arc<Self>, failure: Failure) -> ObjectId {
        self.step(|core, out| core.failed(failure, out))
    }

    /// An object of this host that is pending until [`Self::fulfil`] or [`Self::fail`]; it has one reference.
    pub fn pending(self: &Arc<Self>) -> ObjectId {
        self.step(|core, _| {
            let object = core.next_task().object(0);
            core.objects.create(object, false);
            object
        })
    }

    /// Fails an object of this host that [`Self::pending`] made.
    pub fn fail(self: &Arc<Self>, object: ObjectId, failure: Failure) {
        self.step(|core, out| core.own(out, |objects, fx| objects.fail(object, failure, fx)));
    }

    /// Gives an object of this host that [`Self::pending`] made a value, a small one without refs.
    pub fn fulfil(self: &Arc<Self>, object: ObjectId, output: &Output) -> Result<(), Failure> {
        let blob = output.encoded.to_blob();
        let bytes = blob.map_err(|error| Failure::new(FailureKind::Codec, error.to_string()))?;
        let state = State::Inline { bytes, contains: Vec::new() };
        let me = self.me();
        self.step(|core, out| {
            core.own(out, |objects, fx| objects.complete(me, object, state, Vec::new(), fx))
        });
        Ok(())
    }

    /// Whether a forced cancellation of this call could hurt nothing else.
    pub fn check_force(&self, object: ObjectId) -> Result<(), Failure> {
        match self.core.lock().has_own_process(object) {
            Some(false) => Err(Failure::new(
                FailureKind::CannotForce,
                "the task shares its process with others, which force would end too: give it `isolation = \"process\"`",
            )),
            Some(true) | None => Ok(()),
        }
    }

    /// Ends an actor for good, wherever it is owned; calls from this process fail from now on.
    pub fn kill(self: &Arc<Self>, actor: TaskId) {
        self.step(|core, out| core.kill(actor, out));
    }

    /// Puts an encoded value into this node's store (or, if small, into this process); the returned object has
    /// one reference. `site` is what made it, for people.
    pub fn put(self: &Arc<Self>, output: &Output, site: Site) -> Result<ObjectId, Failure> {
        let object = self.step(|core, _| core.next_task()).object(0);
        let value = self.keep_result(object, 1, output, site)?;
        Ok(self.own_value(object, value, output))
    }

    /// [`Self::put`], but into the store however small.
    pub fn put_stored(self: &Arc<Self>, output: &Output, site: Site) -> Result<ObjectId, Failure> {
        let object = self.step(|core, _| core.next_task()).object(0);
        let value = self.keep_stored(object, 1, output, site)?;
        Ok(self.own_value(object, value, output))
    }

    /// Whether an argument of so many bytes should lie in the store, since unfinished calls keep enough in this
    /// process already.
    pub fn is_inline_full(&self, bytes: u64) -> bool {
        self.inline_bytes.load(Ordering::Relaxed) + bytes > INLINE_BYTES_TOTAL_MAX
    }

    fn own_value(self: &Arc<Self>, object: ObjectId, value: Value, output: &Output) -> ObjectId {
        let contains = output.refs.ids().to_vec();
        let state = match value {
            Value::Inline(bytes) => State::Inline { bytes, contains: contains.clone() },
            Value::Stored(copy) => State::Stored(copy),
        };
        self.step(|core, out| core.own(out, |objects, fx| objects.put(object, state, contains, fx)));
        object
    }

    /// Small values inline, larger ones into the store.
    pub(crate) fn keep_result(
        self: &Arc<Self>,
        object: ObjectId,
        attempt: u32,
        output: &Output,
        site: Site,
    ) -> Result<Value, Failure> {
        let bytes = output.encoded.len();
        if bytes <= wire::INLINE_BYTES_MAX as u64 {
            let blob = output.encoded.to_blob();
            return blob.map(Value::Inline).map_err(|e| Failure::new(FailureKind::Codec, e.to_string()));
        }
        self.keep_stored(object, attempt, output, site)
    }

    /// [`Self::keep_result`], but into the store where many results wait for the caller to take them.
    pub(crate) fn keep_result_for(
        self: &Arc<Self>,
        caller: HostId,
        object: ObjectId,
        attempt: u32,
        output: &Output,
        site: Site,
    ) -> Result<Value, Failure> {
        if output.encoded.len() > SMALL_RESULT_BYTES && self.peers.backlog(caller) > BACKLOG_BYTES_MAX {
            return self.keep_stored(object, attempt, output, site);
        }
        self.keep_result(object, attempt, output, site)
    }

    pub(crate) fn keep_stored(
        self: &Arc<Self>,
        object: ObjectId,
        attempt: u32,
        output: &Output,
        site: Site,
    ) -> Result<Value, Failure> {
        let parts = (&output.encoded, output.refs.ids());
        Ok(Value::Stored(self.store.keep(self, object, attempt, parts, site)?))
    }

    /// Sends a result, once the owners of the refs that stay behind know about it.
    pub(crate) fn reply(
        self: &Arc<Self>,
        caller: HostId,
        mut done: Done,
        received: &[ObjectId],
        contains: Held,
    ) {
        if received.is_empty() && contains.ids().is_empty() {
            return self.send(caller, Message::Done(done), contains);
        }
        let token = self.number();
        let ready = self.step(|core, out| {
            let settled = core.own(out, |objects, fx| {
                let settled = objects.settle(caller, received, token, fx);
                objects.lend(caller, contains.ids());
                settled
            });
            done.retained = settled.retained;
            if settled.waiting {
                self.unsettled.lock().insert(token, (caller, done, contains));
                None
            } else {
                Some((done, contains))
            }
        });
        if let Some((done, contains)) = ready {
            self.send(caller, Message::Done(done), contains);
        }
    }

    /// Sends an item of a stream.
    pub(crate) fn send_item(self: &Arc<Self>, caller: HostId, item: Item, contains: Held) {
        if !contains.ids().is_empty() {
            self.core.lock().objects.lend(caller, contains.ids());
        }
        self.send(caller, Message::Item(item), contains);
    }

    fn settled(self: &Arc<Self>, token: u64) {
        let found = self.unsettled.lock().remove(&token);
        if let Some((caller, done, contains)) = found {
            self.send(caller, Message::Done(done), contains);
        }
    }

    /// Sends, and lets go of `held` only when the message is on its way (or, if it is to this host, handled).
    pub(crate) fn send(self: &Arc<Self>, to: HostId, message: Message, held: Held) {
        if to == self.me() {
            self.push_loopback(message, held);
            self.run_loopback();
        } else {
            self.peers.send(self, to, message);
        }
    }

    // ---- references ----

    /// One more reference to an object that this process holds already. Where its value lies, if it is known to lie in a
    /// store.
    pub fn add_ref(&self, object: ObjectId) -> Option<Copy> {
        let mut core = self.core.lock();
        core.objects.add_ref(object);
        core.copy(object)
    }

    /// One reference less.
    pub fn drop_ref(self: &Arc<Self>, object: ObjectId) {
        self.step(|core, out| core.drop_ref(object, out));
    }

    /// A ref was read: one more reference. `place`: where its value lies, as far as whoever wrote the ref knew.
    pub(crate) fn receive(self: &Arc<Self>, object: ObjectId, via: Via, place: Option<Copy>) {
        self.step(|core, out| {
            core.own(out, |objects, fx| {
                objects.receive(object, via, fx);
                place.into_iter().for_each(|place| objects.placed(object, place));
            });
        });
    }

    /// Takes a reference to an object of another host whose name came from elsewhere than a value.
    pub fn borrow(self: &Arc<Self>, object: ObjectId) {
        // It keeps itself alive until its owner has noted this host.
        self.receive(object, Via::Container(object), None);
    }

    /// What this host owns and borrows.
    pub fn counts(&self) -> Counts {
        self.core.lock().objects.counts()
    }

    /// Leases held, calls running here, actors living here.
    pub fn load(&self) -> (usize, usize, usize) {
        let (running, actors) = self.executor.load();
        (self.core.lock().lease_count(), running, actors)
    }

    // ---- reading ----

    /// The value of an object, if it is in this process already.
    pub fn read_here(&self, object: ObjectId) -> Option<Result<Object, Failure>> {
        read_inline(&self.core.lock(), object)
    }

    /// How much of an object lies in a store; `None` where its state is not final.
    pub fn stored_bytes(&self, object: ObjectId) -> Option<u64> {
        match self.core.lock().objects.state(object) {
            Some(State::Pending) => None,
            Some(State::Stored(copy)) => Some(copy.bytes),
            Some(State::Inline { .. } | State::Actor { .. } | State::Failed(_)) | None => Some(0),
        }
    }

    /// [`Self::read_here`] for the first of these: as many as may be asked for together of those that are not here.
    fn read_some_here(&self, objects: &[ObjectId]) -> Vec<Option<Result<Object, Failure>>> {
        let core = self.core.lock();
        let (mut asked, mut bytes, mut here) = (0, 0, Vec::new());
        for object in objects {
            let found = read_inline(&core, *object);
            if found.is_none() {
                let size = match core.objects.state(*object) {
                    Some(State::Stored(copy)) => copy.bytes,
                    _ => 0,
                };
                if asked > 0 && (asked == ASKED_TOGETHER_MAX || bytes + size > ASKED_TOGETHER_BYTES_MAX) {
                    break;
                }
                (asked, bytes) = (asked + 1, bytes + size);
            }
            here.push(found);
        }
        here
    }

    /// The value of an object whose state was final; where it was lost since, when it is there again. One in a store is opened, and pulled here if need be, which
    /// `done` learns about on any thread that drains rings, the author's own among them: it must not wait for anything.
    pub fn read(
        self: &Arc<Self>,
        object: ObjectId,
        done: impl FnOnce(Result<Object, Failure>) + Send + 'static,
    ) {
        if let Some(failure) = self.ended.lock().clone() {
            return done(Err(failure));
        }
        let state = self.core.lock().objects.state(object).cloned();
        match state {
            Some(State::Inline { bytes, .. }) => done(parse_inline(bytes)),
            Some(State::Stored(copy)) => {
                let weak = Arc::downgrade(self);
                let opened =
                    move |bytes: Result<Bytes, Failure>| match (bytes.and_then(parse), weak.upgrade()) {
                        (Err(failure), Some(runtime)) if failure.kind == FailureKind::ObjectLost => {
                            runtime.on_lost(object, copy, failure, Box::new(done));
                        }
                        (result, _) => done(result),
                    };
                self.store.open(object, copy, false, Box::new(opened));
            }
            Some(State::Failed(failure)) => done(Err(*failure)),
            Some(State::Actor { .. }) => {
                done(Err(Failure::new(FailureKind::Internal, "an actor was read as if it were a value")));
            }
            Some(State::Pending) => self.read_later(object, Box::new(done)),
            None => done(Err(Failure::new(
                FailureKind::ObjectFreed,
                format!("object {object} was freed: keep a ref to it for as long as it is needed"),
            ))),
        }
    }

    /// The state of an object, for actors and for looking.
    pub fn state(&self, object: ObjectId) -> Option<State> {
        self.core.lock().objects.state(object).cloned()
    }

    /// Makes all of these readable here, then calls `done` once. `ahead`: nothing waits for them yet.
    pub(crate) fn open_all(
        self: &Arc<Self>,
        wanted: Vec<(ObjectId, Copy)>,
        ahead: bool,
        done: impl FnOnce(Result<HashMap<ObjectId, Bytes>, Unopened>) + Send + 'static,
    ) {
        self.store.open_all(wanted, ahead, done);
    }

    /// Something waits now for what was to be opened ahead.
    pub(crate) fn hurry(&self, objects: Vec<(ObjectId, Copy)>) {
        if !objects.is_empty() {
            // Whoever waits for it has its own word when it is there.
            self.store.open_all(objects, false, drop);
        }
    }

    /// Tells the agent that `main` has ended.
    pub fn job_done(&self) {
        self.tell(ToAgent::JobDone);
    }
}

/// Who makes a call of this kind on the current thread; only for actors' calls does it matter.
fn maker(kind: Kind) -> Maker {
    match kind {
        Kind::Method { .. } if context::is_in_call() => {
            if context::is_async() {
                Maker::AsyncCall
            } else {
                Maker::Call
            }
        }
        Kind::Method { .. } | Kind::Task { .. } | Kind::Construct { .. } | Kind::Direct { .. } => {
            Maker::Outside
        }
    }
}

/// Results up to this many bytes travel inside messages even to a caller that takes none: their calls are bounded.
const SMALL_RESULT_BYTES: u64 = 256;
/// Where more bytes than this wait for a caller to take them, larger results go to the store.
const BACKLOG_BYTES_MAX: usize = 32 << 20;
/// Most objects that one thread or future has the agent open together, each pinned until it is decoded.
pub const ASKED_TOGETHER_MAX: usize = 64;
/// And most of their bytes, but for a single one: what is pinned cannot make room for what is still to come.
pub const ASKED_TOGETHER_BYTES_MAX: u64 = 64 << 20;

fn is_final(state: Option<&State>) -> bool {
    !matches!(state, Some(State::Pending))
}

fn read_inline(core: &Core, object: ObjectId) -> Option<Result<Object, Failure>> {
    match core.objects.state(object) {
        Some(State::Inline { bytes, .. }) => Some(parse_inline(bytes.clone())),
        _ => None,
    }
}

fn parse_inline(blob: Blob) -> Result<Object, Failure> {
    Object::from_message(blob).map_err(|error| Failure::new(FailureKind::Codec, error.to_string()))
}

pub(crate) fn parse(bytes: Bytes) -> Result<Object, Failure> {
    Object::parse(bytes).map_err(|error| Failure::new(FailureKind::Codec, error.to_string()))
}

/// While this lives, the slot of the current call serves others. Code that is polled has [`Awaited`].
pub struct Blocked {
    runtime: Arc<Runtime>,
    context: Arc<context::Context>,
    thread: bool,
}

impl Blocked {
    /// `None` outside a call. `thread` says whether a thread of the pool waits (else an async task does).
    pub fn enter(runtime: &Arc<Runtime>, thread: bool) -> Option<Self> {
        let context = context::task()?;
        runtime.executor.block(runtime, &context, thread);
        Some(Self { runtime: runtime.clone(), context, thread })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.context.moved.store(true, Ordering::Release);
        self.runtime.executor.unblock(&self.runtime, &self.context, self.thread);
    }
}
