//! Messages to and from other hosts: over shared-memory rings where both are on one node and of one job, through
//! the agents otherwise, to and from which rings lead too.
//!
//! Rings are drained by the very threads that wait for what comes out of them: one thread at a time *leads*,
//! spins briefly, and sleeps on the process's doorbell. When no thread waits, the *watcher* thread is woken by
//! the doorbell instead; so nothing is ever left lying, and an idle process does not spin. Threads that submit or run
//! one short call after the other look in between (see [`attention`]).

mod attention;
mod hold;
mod pieces;

use std::{
    cell::Cell,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mobula_net::{
    link,
    ring::{
        self,
        doorbell::{Doorbell, Spin},
    },
};
use mobula_proto::{
    Failure, HostId, IdMap, NodeId,
    host::{ToAgent, ToHost},
    peer::Message,
    relay as wire_relay, wire,
};
use parking_lot::{Condvar, Mutex, RwLock};
use rustix::event::EventfdFlags;
use smallvec::SmallVec;

use self::{hold::Outgoing, pieces::Pieces};
use crate::{context, link::without_descriptor, runtime::Runtime, wait::Parker};

/// Most messages taken from one ring before they are handled and the next ring is looked at: few enough that who
/// waits for the core's lock meanwhile need not sleep.
const DRAIN_BATCH: usize = 64;
/// After so many batches, all that lay in the agent's ring at first has been taken, even if it was full of the smallest
/// messages: header, head and body.
const CATCH_UP_ROUNDS: usize =
    ring::CAPACITY_BYTES_DEFAULT as usize / (3 * ring::HEADER_BYTES) / DRAIN_BATCH + 1;
/// How often who waits for room in a ring looks by itself: nobody else may.
const ROOM_WAIT: Duration = Duration::from_millis(1);
/// Longest sleep of a leader between two looks around; only a safety net.
const LEADER_SLEEP: Duration = Duration::from_secs(1);

struct Outbound {
    sender: Mutex<Outgoing>,
    bell: Bell,
    /// There may be room for what waits.
    room: Condvar,
    /// Nothing is read any more.
    closed: AtomicBool,
}

/// How whoever reads a ring is told that there is something.
enum Bell {
    /// It sleeps on its doorbell.
    Host(Doorbell),
    /// It sleeps on all that it reads, among which is this eventfd, and its doorbell says so.
    Agent(Doorbell, OwnedFd),
}

impl Outbound {
    fn new(sender: ring::Sender, bell: Bell) -> Self {
        let sender = Mutex::new(Outgoing::new(sender));
        Self { sender, bell, room: Condvar::new(), closed: AtomicBool::new(false) }
    }

    fn ring(&self) {
        match &self.bell {
            Bell::Host(doorbell) => {
                doorbell.ring();
            }
            Bell::Agent(doorbell, bell) => {
                if doorbell.notice()
                    && let Err(error) = rustix::io::write(bell, &1_u64.to_ne_bytes())
                {
                    tracing::error!(%error, "the agent's bell does not ring");
                }
            }
        }
    }
}

struct Inbound {
    /// `None`: the agent, with messages of many.
    peer: Option<HostId>,
    receiver: Mutex<ring::Receiver>,
    watch: ring::Watch,
    back: Arc<Outbound>,
    /// Of the agent's ring: where descriptors lie that belong to its messages.
    lane: Option<link::Taker>,
}

impl Inbound {
    /// The descriptor that belongs to a message of the agent's, with this word in its head. Of those that are taken out of the
    /// ring, in order.
    fn descriptor(&self, word: u32) -> Option<Result<OwnedFd, Failure>> {
        let lane = self.lane.as_ref().filter(|_| word & wire_relay::WITH_DESCRIPTOR != 0)?;
        Some(lane.take().map_err(|error| without_descriptor(&error)))
    }
}

/// The rings to and from the agent, for messages to and from hosts that no ring leads to.
pub struct Relay(Arc<Inbound>);

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Relay")
    }
}

impl Relay {
    /// Makes both, and the descriptors for the agent, which ring `own` for what they send.
    pub(crate) fn create(own: OwnedFd) -> Result<(Self, Vec<OwnedFd>), ring::Error> {
        let (forth, back) =
            (ring::create(ring::CAPACITY_BYTES_DEFAULT)?, ring::create(ring::CAPACITY_BYTES_DEFAULT)?);
        let no_lane =
            |error| ring::Error::System { call: "socketpair", source: std::io::Error::other(error) };
        let (agents_lane, lane) = link::lane().map_err(no_lane)?;
        let copy =
            |fd: &OwnedFd| fd.try_clone().map_err(|source| ring::Error::System { call: "fcntl", source });
        let (doorbell, agents) = Doorbell::create()?;
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| ring::Error::System { call: "eventfd", source: errno.into() })?;
        let agents_bell = copy(&bell)?;
        let sender = ring::Sender::map(copy(&forth)?)?;
        let receiver = ring::Receiver::map(copy(&back)?)?;
        let outbound = Arc::new(Outbound::new(sender, Bell::Agent(doorbell, bell)));
        let watch = receiver.watch();
        let (receiver, lane) = (Mutex::new(receiver), Some(lane));
        let inbound = Inbound { peer: None, receiver, watch, back: outbound, lane };
        Ok((Self(Arc::new(inbound)), vec![forth, back, agents, own, agents_bell, agents_lane]))
    }

    /// The way to the agent itself; `own` is this process's doorbell.
    pub(crate) fn to_agent(&self, own: Doorbell) -> ToAgentRing {
        ToAgentRing { outbound: self.0.back.clone(), own }
    }
}

/// The ring to the agent, for what this host tells the agent itself.
pub(crate) struct ToAgentRing {
    outbound: Arc<Outbound>,
    own: Doorbell,
}

impl ToAgentRing {
    /// Sends an encoded message; if not `wakes`, the agent finds it with the next one that does. Only where a great deal waits
    /// beside the ring does this wait for room.
    pub(crate) fn send(&self, body: &[u8], wakes: bool) {
        let mut sender = self.outbound.sender.lock();
        // Who makes more of it by himself waits with `Peers::wait_for_agent`.
        let sent = sender.send(wire_relay::TO_AGENT, &wire_relay::agent_head(), body);
        let crowded = sender.is_full();
        drop(sender);
        if wakes {
            self.outbound.ring();
        }
        match sent {
            Err(error) => tracing::error!(%error, "a message to the agent could not be sent"),
            Ok(_) if crowded => self.wait(),
            Ok(_) => {}
        }
    }

    /// This thread may be the one that would make room, and may hold the core's lock: so it does it here, and leaves
    /// what comes of that to others.
    #[cold]
    fn wait(&self) {
        let mut sender = self.outbound.sender.lock();
        while sender.is_full() && !self.outbound.closed.load(Ordering::Relaxed) {
            if let Err(error) = sender.flush_quietly() {
                tracing::debug!(%error, "the agent's ring broke");
                break;
            }
            self.outbound.ring();
            self.outbound.room.wait_for(&mut sender, ROOM_WAIT);
        }
        drop(sender);
        self.own.ring();
    }
}

enum Route {
    Rings(Arc<Outbound>),
    /// Rings were asked for; these go first when they arrive.
    Connecting(Vec<Message>),
    /// The agent brokers no rings to that host.
    Relay,
}

/// See the module's text.
pub struct Peers {
    doorbell: Option<Doorbell>,
    relay: Option<Relay>,
    routes: Mutex<IdMap<HostId, Route>>,
    inbound: RwLock<Vec<Arc<Inbound>>>,
    lead: Mutex<Spin>,
    stopped: AtomicBool,
    unrung: Mutex<Unrung>,
    /// Hosts whose callers wait (see [`hold`]), and whether there are any.
    held: Mutex<IdMap<HostId, ()>>,
    any_held: AtomicBool,
    pieces: Pieces,
    /// One message at a time is cut into pieces that go through the agent's channel.
    cutting: Mutex<()>,
    /// Calls submitted here.
    submitted: AtomicU32,
    /// How often threads have looked that will again.
    looks: AtomicU32,
    /// Whether the watcher sees to it that they do.
    attended: Mutex<bool>,
}

thread_local! {
    static POLLING_WORKER: Cell<bool> = const { Cell::new(false) };
    static DEFERRING: Cell<bool> = const { Cell::new(false) };
}

/// Hosts to which results were sent whose doorbells are yet to be rung.
#[derive(Default)]
struct Unrung {
    since: Option<Instant>,
    bells: SmallVec<[Arc<Outbound>; 4]>,
    /// Whether somebody will ring them all within [`BATCH_WAIT_MAX`].
    guarded: bool,
}

/// Longest that a result may lie in a ring before its receiver is woken, while there is more to run.
const BATCH_WAIT: Duration = Duration::from_micros(100);
/// The same where the call that runs meanwhile takes longer than it used to.
const BATCH_WAIT_MAX: Duration = Duration::from_millis(1);

/// While this thread runs a short call, the results that it sends wake their receivers only with
/// [`Peers::ring_all`]; receivers that are awake see them at once.
pub(crate) fn defer_rings(yes: bool) {
    DEFERRING.set(yes);
}

/// Whether this thread belongs to the pool and is draining rings: it will run what it receives itself.
pub(crate) fn is_polling_worker() -> bool {
    POLLING_WORKER.get()
}

impl Peers {
    /// Without a doorbell there are no rings, and every message to another host goes through the agent: over its
    /// rings if there are any.
    pub fn new(doorbell: Option<Doorbell>, relay: Option<Relay>) -> Self {
        let inbound = relay.iter().map(|relay| relay.0.clone()).collect();
        Self {
            doorbell,
            relay,
            routes: Mutex::default(),
            inbound: RwLock::new(inbound),
            lead: Mutex::new(Spin::default()),
            stopped: AtomicBool::new(false),
            unrung: Mutex::default(),
            held: Mutex::default(),
            any_held: AtomicBool::new(false),
            pieces: Pieces::default(),
            cutting: Mutex::default(),
            submitted: AtomicU32::new(0),
            looks: AtomicU32::new(0),
            attended: Mutex::default(),
        }
    }

    /// Starts the watcher.
    pub(crate) fn start(&self, runtime: &Arc<Runtime>) {
        let Some(doorbell) = self.doorbell.clone() else { return };
        doorbell.leave();
        // The agent may have sent something already, and not rung since nobody had left.
        if self.any_waiting() {
            doorbell.ring();
        }
        let weak = Arc::downgrade(runtime);
        let watch = move || {
            let mut looks = 0;
            loop {
                let called =
                    doorbell.watch(|| weak.upgrade().and_then(|runtime| runtime.peers().watch_timeout()));
                let Some(runtime) = weak.upgrade() else { return };
                let peers = runtime.peers();
                if peers.stopped.load(Ordering::Relaxed) {
                    return;
                }
                if !called {
                    peers.check_attention(&runtime, &mut looks);
                    continue;
                }
                let _entered = context::enter(&runtime, None, false);
                peers.lead(&runtime, &mut || false, false, None, || false);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("mobula-watcher".into()).spawn(watch) {
            tracing::error!(%error, "the watcher thread could not be started: messages may be late");
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(Relay(agent)) = &self.relay {
            agent.back.closed.store(true, Ordering::Relaxed);
            agent.back.room.notify_all();
        }
        if let Some(doorbell) = &self.doorbell {
            doorbell.ring();
            doorbell.rouse();
        }
    }

    /// Wakes whom [`defer_rings`] left asleep: always if `all`, else only if the first of them has waited for long.
    pub(crate) fn ring_all(&self, all: bool) {
        let due = {
            let mut unrung = self.unrung.lock();
            match unrung.since {
                Some(since) if all || since.elapsed() >= BATCH_WAIT => {
                    unrung.since = None;
                    std::mem::take(&mut unrung.bells)
                }
                _ => return,
            }
        };
        for outbound in due {
            outbound.ring();
        }
    }

    fn push(
        &self,
        runtime: &Arc<Runtime>,
        outbound: &Arc<Outbound>,
        to: HostId,
        head: &[u8],
        message: &Message,
    ) {
        let send = |sender: &mut Outgoing, body: &[u8]| {
            if sender.send(to, head, body)? {
                self.hold(to);
            }
            Ok::<(), ring::Error>(())
        };
        let sent = encoded(
            message,
            |body| send(&mut outbound.sender.lock(), body),
            |whole| {
                // No other message comes between the pieces.
                let mut sender = outbound.sender.lock();
                pieces::cut(whole).try_for_each(|piece| {
                    wire::encode_with(&piece, 0, |body| send(&mut sender, body))?.map_err(Unsent::from)
                })
            },
        );
        if let Err(error) = sent {
            return tracing::error!(%error, "a message could not be sent");
        }
        if DEFERRING.get() && matches!(message, Message::Done(_)) {
            let mut unrung = self.unrung.lock();
            unrung.since.get_or_insert_with(Instant::now);
            if !unrung.bells.iter().any(|other| Arc::ptr_eq(other, outbound)) {
                unrung.bells.push(outbound.clone());
            }
            if !std::mem::replace(&mut unrung.guarded, true) {
                self.guard(runtime);
            }
        } else {
            outbound.ring();
        }
    }

    /// Sends through the agent.
    fn relay(&self, runtime: &Arc<Runtime>, to: HostId, message: &Message) {
        match &self.relay {
            Some(relay) => self.push(runtime, &relay.0.back, to, &wire_relay::head(to, 0), message),
            None => {
                let tell = |body: &[u8]| runtime.tell(ToAgent::Relay { to, body: body.to_vec() });
                let sent = encoded(
                    message,
                    |body| {
                        tell(body);
                        Ok(())
                    },
                    |whole| {
                        let _one = self.cutting.lock();
                        pieces::cut(whole)
                            .try_for_each(|piece| Ok(wire::encode_with(&piece, 0, |body| tell(body))?))
                    },
                );
                if let Err(error) = sent {
                    tracing::error!(%error, "a message could not be sent");
                }
            }
        }
    }

    /// The message that this is, or is the last piece of; `None` where more of it is to come.
    pub(crate) fn whole(&self, from: HostId, message: Message) -> Option<Message> {
        match message {
            Message::Piece { more, bytes } => self.pieces.join(from, more, &bytes),
            whole => Some(whole),
        }
    }

    /// Bytes that wait beside a full ring for this host to make room.
    pub(crate) fn backlog(&self, to: HostId) -> usize {
        let outbound = match (self.routes.lock().get(&to), &self.relay) {
            (Some(Route::Rings(outbound)), _) => outbound.clone(),
            (Some(Route::Connecting(_)), _) | (_, None) => return 0,
            (_, Some(relay)) => relay.0.back.clone(),
        };
        outbound.sender.lock().overflow_bytes()
    }

    /// Sees to it that what is left unrung now does not stay so.
    fn guard(&self, runtime: &Arc<Runtime>) {
        let weak = Arc::downgrade(runtime);
        runtime.user().spawn(async move {
            tokio::time::sleep(BATCH_WAIT_MAX).await;
            if let Some(runtime) = weak.upgrade() {
                runtime.peers().unrung.lock().guarded = false;
                runtime.peers().ring_all(true);
            }
        });
    }

    /// Sends a message to another host.
    pub(crate) fn send(&self, runtime: &Arc<Runtime>, to: HostId, message: Message) {
        let mut routes = self.routes.lock();
        match routes.get_mut(&to) {
            Some(Route::Rings(outbound)) => {
                let outbound = outbound.clone();
                drop(routes);
                self.push(runtime, &outbound, to, &[], &message);
            }
            Some(Route::Connecting(queue)) => queue.push(message),
            Some(Route::Relay) => self.relay(runtime, to, &message),
            None if self.doorbell.is_some() && to.node == runtime.me().node => {
                routes.insert(to, Route::Connecting(vec![message]));
                runtime.tell(ToAgent::Connect { peer: to });
            }
            None => self.relay(runtime, to, &message),
        }
    }

    /// Rings to and from a peer arrived: the one to read, the one to write, and the peer's doorbell. Without
    /// descriptors, the agent says that there will be none.
    pub(crate) fn rings(&self, runtime: &Arc<Runtime>, peer: HostId, descriptors: Vec<OwnedFd>) {
        let mut routes = self.routes.lock();
        let queued = match routes.remove(&peer) {
            Some(Route::Connecting(queue)) => queue,
            _ => Vec::new(),
        };
        let Some((outbound, inbound)) = map(peer, descriptors) else {
            routes.insert(peer, Route::Relay);
            for message in queued {
                self.relay(runtime, peer, &message);
            }
            return;
        };
        for message in queued {
            self.push(runtime, &outbound, peer, &[], &message);
        }
        routes.insert(peer, Route::Rings(outbound));
        drop(routes);
        {
            let mut all = self.inbound.write();
            all.retain(|other| other.peer != Some(peer));
            all.push(inbound);
        }
        // Something may lie in the ring already, pushed before anybody here looked at it.
        if let Some(doorbell) = &self.doorbell {
            doorbell.ring();
        }
    }

    /// The host is gone: what it had sent before is still taken in.
    pub(crate) fn forget(&self, runtime: &Arc<Runtime>, host: HostId) {
        self.forget_where(runtime, |other| other == host);
    }

    pub(crate) fn forget_node(&self, runtime: &Arc<Runtime>, node: NodeId) {
        self.forget_where(runtime, |other| other.node == node);
    }

    /// Handles what the agent has put into its ring by now: whatever it says over the socket, it says behind that.
    pub(crate) fn catch_up(&self, runtime: &Arc<Runtime>) {
        let Some(Relay(inbound)) = &self.relay else { return };
        let mut messages = Vec::new();
        for _ in 0..CATCH_UP_ROUNDS {
            // Not by a look at whether it is empty: what a leader took out it may not have handled yet. A ring that
            // breaks is found by whoever leads.
            if !matches!(self.drain_one(runtime, inbound, &mut messages), Ok(true)) {
                return;
            }
        }
    }

    fn forget_where(&self, runtime: &Arc<Runtime>, gone: impl Fn(HostId) -> bool) {
        let last: Vec<_> =
            self.inbound.read().iter().filter(|inbound| inbound.peer.is_some_and(&gone)).cloned().collect();
        let mut messages = Vec::new();
        for inbound in last {
            while matches!(self.drain_one(runtime, &inbound, &mut messages), Ok(true)) {}
        }
        self.pieces.forget(&gone);
        self.routes.lock().retain(|peer, _| !gone(*peer));
        self.inbound.write().retain(|inbound| inbound.peer.is_none_or(|peer| !gone(peer)));
        let held: Vec<_> = self.held.lock().keys().copied().filter(|host| gone(*host)).collect();
        if !held.is_empty() {
            if let Some(Relay(agent)) = &self.relay {
                let mut sender = agent.back.sender.lock();
                held.iter().for_each(|host| sender.forget(*host));
            }
            self.release(runtime, held);
        }
    }

    /// Waits while the agent is far behind with what this host tells it. For threads that make more of that by themselves;
    /// not under the core's lock.
    pub(crate) fn wait_for_agent(&self, runtime: &Arc<Runtime>) {
        let Some(Relay(agent)) = &self.relay else { return };
        let is_held = || agent.back.sender.lock().is_held(wire_relay::TO_AGENT);
        if !is_held() {
            return;
        }
        let wait = || {
            while is_held() && !self.stopped.load(Ordering::Relaxed) {
                self.flush(runtime);
                let mut sender = agent.back.sender.lock();
                if sender.is_held(wire_relay::TO_AGENT) {
                    agent.back.room.wait_for(&mut sender, ROOM_WAIT);
                }
            }
        };
        if context::is_async() { tokio::task::block_in_place(wait) } else { wait() }
    }

    /// What the agent was asked for is about to come: the thread that waits for it spins as long as it may, since it would have to
    /// be woken otherwise.
    pub(crate) fn expect(&self) {
        // Another thread that leads does as it finds best.
        if let Some(mut spin) = self.lead.try_lock() {
            spin.expect();
        }
    }

    /// Wakes the thread that leads and sleeps, if there is one: what it waits for may have come another way.
    pub(crate) fn nudge(&self) {
        if let Some(doorbell) = &self.doorbell {
            doorbell.nudge();
        }
    }

    /// Wakes whom a host was about to wake that died just then.
    pub(crate) fn remind(&self) {
        if let Some(doorbell) = &self.doorbell {
            doorbell.remind();
        }
    }

    fn any_waiting(&self) -> bool {
        self.inbound.read().iter().any(|inbound| !inbound.watch.is_empty())
    }

    /// Handles what lies in the rings; says whether there was anything.
    fn drain(&self, runtime: &Arc<Runtime>) -> bool {
        let mut any = false;
        let mut broken = Vec::new();
        let all: SmallVec<[Arc<Inbound>; 8]> = self.inbound.read().iter().cloned().collect();
        let mut messages = Vec::new();
        for inbound in all {
            if inbound.watch.is_empty() {
                continue;
            }
            match self.drain_one(runtime, &inbound, &mut messages) {
                Ok(some) => any |= some,
                Err(error) => {
                    tracing::error!(peer = ?inbound.peer, %error, "a ring broke");
                    broken.push(inbound);
                }
            }
        }
        for inbound in broken {
            match inbound.peer {
                Some(peer) => self.forget(runtime, peer),
                None => self.inbound.write().retain(|other| !Arc::ptr_eq(other, &inbound)),
            }
        }
        self.flush(runtime);
        any
    }

    /// Handles a batch of what lies in one ring; says whether there was anything.
    fn drain_one(
        &self,
        runtime: &Arc<Runtime>,
        inbound: &Inbound,
        messages: &mut Vec<Message>,
    ) -> Result<bool, ring::Error> {
        let mut receiver = inbound.receiver.lock();
        let mut from = inbound.peer.map(|peer| (peer, true));
        let mut any = false;
        let mut broke = None;
        for _ in 0..DRAIN_BATCH {
            let received = receiver.recv_with(|message| match inbound.peer {
                Some(_) => Ok(Received::Message(None, wire::decode(message)?)),
                None => {
                    let (from, word, body) = wire_relay::split(message)?;
                    if word & wire_relay::FROM_AGENT != 0 {
                        // Whatever becomes of the message, the next one's is behind it.
                        let descriptor = inbound.descriptor(word);
                        return Ok(Received::Answer(wire::decode(body)?, descriptor));
                    }
                    let same_job = word & wire_relay::SAME_JOB != 0;
                    Ok::<_, Malformed>(Received::Message(Some((from, same_job)), wire::decode(body)?))
                }
            });
            match received {
                Ok(None) => break,
                Ok(Some(Ok(Received::Answer(answer, descriptor)))) => {
                    any = true;
                    handle(runtime, from, messages);
                    runtime.on_answer(answer, descriptor);
                }
                Ok(Some(Ok(Received::Message(sender, message)))) => {
                    any = true;
                    if sender.is_some() && sender != from {
                        handle(runtime, from, messages);
                        from = sender;
                    }
                    messages.push(message);
                }
                Ok(Some(Err(error))) => {
                    any = true;
                    tracing::warn!(peer = ?inbound.peer, %error, "dropped a malformed message");
                }
                Err(error) => {
                    broke = Some(error);
                    break;
                }
            }
        }
        if receiver.take_space_wanted() {
            inbound.back.ring();
        }
        // Still locked: whoever forgets the peer must not overtake what it sent.
        handle(runtime, from, messages);
        broke.map_or(Ok(any), Err)
    }

    /// Retries what found a ring full.
    fn flush(&self, runtime: &Arc<Runtime>) {
        let mut released = Vec::new();
        for inbound in self.inbound.read().iter() {
            // Whoever sends just now may have found it full before the sign of room that brought this thread here, and
            // there will be no other: so this waits for him.
            let mut sender = inbound.back.sender.lock();
            if sender.wants_flush() {
                // An error means that the peer is gone, which the agent reports.
                released.extend(sender.flush().unwrap_or_default());
                drop(sender);
                inbound.back.room.notify_all();
                inbound.back.ring();
            }
        }
        if !released.is_empty() {
            self.release(runtime, released);
        }
    }

    /// Leads until `done`, or, if not `sleepy`, until spinning has found nothing for a while. If `returns` says so at the
    /// end, the thread is about to lead again. `false` where another thread leads.
    fn lead(
        &self,
        runtime: &Arc<Runtime>,
        done: &mut dyn FnMut() -> bool,
        sleepy: bool,
        deadline: Option<Instant>,
        returns: impl FnOnce() -> bool,
    ) -> bool {
        let Some(doorbell) = &self.doorbell else { return false };
        let Some(mut spin) = self.lead.try_lock() else { return false };
        doorbell.begin_polling();
        loop {
            let any = self.drain(runtime);
            if done() || self.stopped.load(Ordering::Relaxed) {
                break;
            }
            if any || spin.until(|| self.any_waiting() || done()) {
                continue;
            }
            if !sleepy || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break;
            }
            doorbell.end_polling();
            self.flush(runtime);
            if !self.any_waiting() && !done() {
                let left = deadline.map_or(LEADER_SLEEP, |deadline| {
                    deadline.saturating_duration_since(Instant::now()).min(LEADER_SLEEP)
                });
                let slept = Instant::now();
                doorbell.wait(Some(left));
                spin.slept(slept.elapsed());
            }
            doorbell.begin_polling();
        }
        if returns() {
            drop(spin);
            self.stay_attended();
            return true;
        }
        doorbell.leave();
        drop(spin);
        self.after_leaving(runtime, doorbell);
        true
    }

    /// What came while nobody needed to ring is not left lying: messages, room in a ring that was full, the end.
    fn after_leaving(&self, runtime: &Arc<Runtime>, doorbell: &Doorbell) {
        self.flush(runtime);
        if self.any_waiting() || self.stopped.load(Ordering::Relaxed) {
            doorbell.ring();
        }
    }

    /// Leads for a thread that waits for objects. `false` where that is not possible, or where `spin_only` and
    /// a short spin brought nothing.
    pub(crate) fn lead_until(
        &self,
        runtime: &Arc<Runtime>,
        parker: &Arc<Parker>,
        spin_only: bool,
        deadline: Option<Instant>,
    ) -> bool {
        let sleepy = !spin_only || context::task().is_none();
        self.lead(runtime, &mut || parker.is_woken(), sleepy, deadline, || false)
            && (sleepy || parker.is_woken())
    }

    /// Leads for a pool thread until there is work, which `is_short` if the thread will soon be back. `false` where
    /// another thread leads.
    pub(crate) fn lead_for_work(
        &self,
        runtime: &Arc<Runtime>,
        mut has_work: impl FnMut() -> bool,
        is_short: impl FnOnce() -> bool,
    ) -> bool {
        POLLING_WORKER.set(true);
        let led = self.lead(runtime, &mut has_work, true, None, is_short);
        POLLING_WORKER.set(false);
        led
    }
}

fn map(peer: HostId, descriptors: Vec<OwnedFd>) -> Option<(Arc<Outbound>, Arc<Inbound>)> {
    let mut descriptors = descriptors.into_iter();
    let (read, write, bell) = (descriptors.next()?, descriptors.next()?, descriptors.next()?);
    let mapped = (|| {
        let receiver = ring::Receiver::map(read)?;
        let sender = ring::Sender::map(write)?;
        let outbound = Arc::new(Outbound::new(sender, Bell::Host(Doorbell::map(bell)?)));
        let watch = receiver.watch();
        let receiver = Mutex::new(receiver);
        let inbound = Inbound { peer: Some(peer), receiver, watch, back: outbound.clone(), lane: None };
        Ok::<_, ring::Error>((outbound, Arc::new(inbound)))
    })();
    mapped.map_err(|error| tracing::error!(%peer, %error, "rings could not be mapped")).ok()
}

/// Handles messages of one host, and whether it is of the same job; leaves none.
fn handle(runtime: &Arc<Runtime>, from: Option<(HostId, bool)>, messages: &mut Vec<Message>) {
    match from {
        Some((from, true)) => runtime.on_peers(from, messages),
        Some((from, false)) => messages.drain(..).for_each(|message| runtime.on_peer(from, false, message)),
        None => {}
    }
}

/// Hands the encoded message to `short`, or to `long` where it is longer than one may be on its way.
fn encoded(
    message: &Message,
    short: impl FnOnce(&[u8]) -> Result<(), ring::Error>,
    long: impl FnOnce(&[u8]) -> Result<(), Unsent>,
) -> Result<(), Unsent> {
    wire::encode_with(message, 0, |body| match body.len() {
        bytes if bytes <= wire_relay::BODY_BYTES_MAX => Ok(short(body)?),
        bytes if bytes <= pieces::LONG_BYTES_MAX => long(body),
        bytes => Err(Unsent::TooLong(bytes)),
    })?
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
enum Unsent {
    #[error(transparent)]
    Ring(#[from] ring::Error),
    #[error(transparent)]
    Wire(#[from] wire::Error),
    #[error("a message of {0} bytes is over the limit of {max}", max = pieces::LONG_BYTES_MAX)]
    TooLong(usize),
}

/// What came out of a ring.
enum Received {
    /// From another host; out of the agent's ring, from this one, and whether it is of the same job.
    Message(Option<(HostId, bool)>, Message),
    /// From the agent itself, and the descriptor that belongs to it.
    Answer(ToHost, Option<Result<OwnedFd, Failure>>),
}

/// What came out of a ring is no message.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Wire(#[from] wire::Error),
    #[error(transparent)]
    Relay(#[from] wire_relay::Malformed),
}
