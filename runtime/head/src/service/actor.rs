//! The actor around the core: it gives events their time, and applies the effects in order.
//!
//! Records are written in batches. The first one stops the effects behind it, and a note to self goes to the end of
//! the mailbox; everything handled until it comes up joins the batch, which one transaction then makes durable.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mobula_net::{
    identity::{Authority, DRIVER_LIFETIME, JoinToken, NODE_LIFETIME, Role},
    quic::JoinRequest,
};
use mobula_proto::{
    Failure, FailureKind, NodeId,
    head::{Explanation, QueueSnapshot, Register, ScalingSnapshot, Snapshot, ToAgent, ToHead},
    inventory::{Inventory, Store},
    queue::Change,
    wire::Hello,
};
use mobula_scheduler::Millis;
use mobula_telemetry::task;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::{error, warn};

use super::{Error, LATE_MS_MAX, MAILBOX_MAX, TICK_MS_MAX, TICK_MS_MIN, TOKEN_TTL_MAX};
use crate::{
    core::{Core, Effect, Event, Link, Options, Peer, scaling::Scene},
    state::{self, Journal, Record},
};

/// How long nodes may take to say what is in their stores.
const STOCK_WAIT: Duration = Duration::from_secs(3);
/// Most requests for that at once.
const COUNTING_MAX: usize = 16;

/// Where messages for one link go.
#[derive(Debug)]
pub(super) enum Outbox {
    /// To an agent in this process.
    Memory(mpsc::Sender<ToAgent>),
    /// To the task that writes to the link.
    Wire(mpsc::Sender<Arc<ToAgent>>),
}

impl Outbox {
    /// Whether there was room.
    fn put(&self, message: &Arc<ToAgent>) -> bool {
        let full = match self {
            Self::Memory(to) => {
                matches!(to.try_send(ToAgent::clone(message)), Err(mpsc::error::TrySendError::Full(_)))
            }
            Self::Wire(to) => {
                matches!(to.try_send(Arc::clone(message)), Err(mpsc::error::TrySendError::Full(_)))
            }
        };
        // A closed one is not full: its link's end is on its way as an event.
        !full
    }
}

/// What the actor is asked.
enum Body {
    Register { link: Link, peer: Peer, hello: Hello, node: Box<Register>, outbox: Outbox },
    Message { link: Link, message: ToHead },
    Lost { link: Link, why: String },
    CreateToken { role: Role, ttl: Duration, reply: oneshot::Sender<Result<String, Failure>> },
    Redeem { request: Box<JoinRequest>, reply: oneshot::Sender<Result<String, String>> },
    Snapshot { reply: oneshot::Sender<Snapshot> },
    Explain { id: String, reply: oneshot::Sender<Result<Explanation, Failure>> },
    Queues { reply: oneshot::Sender<Vec<QueueSnapshot>> },
    SetQueue { change: Box<Change>, reply: oneshot::Sender<Result<(), Failure>> },
    RemoveQueue { name: String, reply: oneshot::Sender<Result<(), Failure>> },
    Drain { node: String, time: Duration, reply: oneshot::Sender<Result<(), Failure>> },
    Resume { node: String, reply: oneshot::Sender<Result<(), Failure>> },
    Scene { reply: oneshot::Sender<Scene> },
    Scaled(Box<ScalingSnapshot>),
    Settle { stay: Vec<NodeId>, drain: Vec<NodeId>, time: Duration },
    TakeStock { reply: oneshot::Sender<Result<Counting, Failure>> },
    Shutdown,
    Tick,
    Flush,
}

/// A message with its place in the mailbox, freed once it is handled. The actor's notes to itself need none:
/// there is at most one of each.
pub(crate) struct Envelope {
    body: Body,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The way to the actor, for everything around it.
#[derive(Clone, Debug)]
pub(crate) struct Poster {
    actor: ActorRef<Envelope>,
    permits: Arc<Semaphore>,
    links: Arc<AtomicU64>,
    cluster: Arc<str>,
}

impl Poster {
    async fn post(&self, body: Body) -> Result<(), Error> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| Error::Ended)?;
        self.actor.send_message(Envelope { body, _permit: Some(permit) }).map_err(|_| Error::Ended)
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    pub fn new_link(&self) -> Link {
        Link(self.links.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) async fn register(
        &self,
        link: Link,
        peer: Peer,
        hello: Hello,
        node: Register,
        outbox: Outbox,
    ) -> Result<(), Error> {
        self.post(Body::Register { link, peer, hello, node: Box::new(node), outbox }).await
    }

    pub async fn message(&self, link: Link, message: ToHead) -> Result<(), Error> {
        self.post(Body::Message { link, message }).await
    }

    pub async fn lost(&self, link: Link, why: String) {
        // An error means that the head has ended, and every link with it.
        let _ended = self.post(Body::Lost { link, why }).await;
    }

    pub async fn create_token(&self, role: Role, ttl: Duration) -> Result<String, Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::CreateToken { role, ttl, reply }).await?;
        answer.await.map_err(|_| Error::Ended)?.map_err(Error::Refused)
    }

    /// The certificate (PEM) for a machine that joins, or why it gets none.
    pub async fn redeem(&self, request: JoinRequest) -> Result<String, String> {
        let (reply, answer) = oneshot::channel();
        let request = Box::new(request);
        self.post(Body::Redeem { request, reply }).await.map_err(|e| e.to_string())?;
        answer.await.unwrap_or_else(|_| Err(Error::Ended.to_string()))
    }

    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::Snapshot { reply }).await?;
        answer.await.map_err(|_| Error::Ended)
    }

    /// Why something waits; see [`Explanation`]. Its owner is asked, which takes some seconds at most.
    pub async fn explain(&self, id: String) -> Result<Explanation, Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::Explain { id, reply }).await?;
        answer.await.map_err(|_| Error::Ended)?.map_err(Error::Refused)
    }

    pub async fn queues(&self) -> Result<Vec<QueueSnapshot>, Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::Queues { reply }).await?;
        answer.await.map_err(|_| Error::Ended)
    }

    /// Defines a queue or changes it; durable when it returns.
    pub async fn set_queue(&self, change: Change) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::SetQueue { change: Box::new(change), reply }).await?;
        answer.await.map_err(|_| Error::Ended)?.map_err(Error::Refused)
    }

    /// Removes a queue that nothing uses; durable when it returns.
    pub async fn remove_queue(&self, name: String) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::RemoveQueue { name, reply }).await?;
        answer.await.map_err(|_| Error::Ended)?.map_err(Error::Refused)
    }

    /// Has a node leave, within `time` at the latest.
    pub async fn drain(&self, node: String, time: Duration) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::Drain { node, time, reply }).await?;
        answer.await.map_err(|_| Error::Ended)?.map_err(Error::Refused)
    }

    /// A node that drains stays after all.
    pub async fn resume(&self, node: String) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::Resume { node, reply }).await?;
        answer.await.map_err(|_| Error::Ended)?.map_err(Error::Refused)
    }

    /// The cluster, for planning which nodes to start and drain.
    pub async fn scene(&self) -> Result<Scene, Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::Scene { reply }).await?;
        answer.await.map_err(|_| Error::Ended)
    }

    /// What was planned, for people.
    pub async fn scaled(&self, told: ScalingSnapshot) -> Result<(), Error> {
        self.post(Body::Scaled(Box::new(told))).await
    }

    /// Has nodes stay that drain because they were idle, and drains others within `time` that still are.
    pub async fn settle(&self, stay: Vec<NodeId>, drain: Vec<NodeId>, time: Duration) -> Result<(), Error> {
        self.post(Body::Settle { stay, drain, time }).await
    }

    /// What is in the stores of all nodes that say so in time.
    pub async fn memory(&self) -> Result<Inventory, Error> {
        let (reply, answer) = oneshot::channel();
        self.post(Body::TakeStock { reply }).await?;
        let Counting { mut nodes, mut stores } =
            answer.await.map_err(|_| Error::Ended)?.map_err(Error::Refused)?;
        let mut inventory = Inventory::default();
        let end = tokio::time::Instant::now() + STOCK_WAIT;
        while !nodes.is_empty()
            && let Ok(Some((node, store))) = tokio::time::timeout_at(end, stores.recv()).await
        {
            if nodes.remove(&node) {
                inventory.stores.push(store);
            }
        }
        inventory.stores.sort_by(|one, other| one.node.cmp(&other.node));
        inventory.silent = nodes.iter().map(ToString::to_string).collect();
        Ok(inventory)
    }

    pub async fn shutdown(&self) -> Result<(), Error> {
        self.post(Body::Shutdown).await
    }

    /// Ends the actor without a word to anyone.
    pub fn stop(&self) {
        self.actor.stop(None);
    }
}

/// Nodes that were asked what is in their stores, and where their answers come.
struct Counting {
    nodes: BTreeSet<NodeId>,
    stores: mpsc::Receiver<(NodeId, Store)>,
}

/// A started actor.
pub(super) struct Started {
    pub poster: Poster,
    /// Fails once the actor is gone.
    pub closed: watch::Receiver<()>,
}

/// Starts the actor on what the journal holds.
pub(super) async fn start(
    options: Options,
    journal: Arc<dyn Journal>,
    authority: Option<Authority>,
) -> Result<Started, Error> {
    let cluster: Arc<str> = options.cluster.as_str().into();
    let (open, closed) = watch::channel(());
    let begun = Instant::now();
    let options = Options { begun_unix_ms: unix_ms(), ..options };
    let loaded = {
        let journal = journal.clone();
        move || -> Result<Core, state::Error> {
            let (core, records) = Core::new(options, journal.load()?, Millis(0));
            journal.append(&records)?;
            Ok(core)
        }
    };
    let core = match journal.may_block() {
        true => tokio::task::spawn_blocking(loaded).await.map_err(|e| Error::Start(e.to_string()))??,
        false => loaded()?,
    };
    let state = State {
        core,
        journal,
        authority,
        begun,
        stood: Millis(0),
        links: BTreeMap::new(),
        pending: VecDeque::new(),
        flushing: false,
        tick: None,
        counting: BTreeMap::new(),
        counted: 0,
        explaining: BTreeMap::new(),
        tickets: 0,
        stopping: false,
        _open: open,
    };
    let (actor, _ended) =
        Actor::spawn(None, HeadActor, state).await.map_err(|e| Error::Start(e.to_string()))?;
    let permits = Arc::new(Semaphore::new(MAILBOX_MAX));
    Ok(Started { poster: Poster { actor, permits, links: Arc::default(), cluster }, closed })
}

struct HeadActor;

struct State {
    core: Core,
    journal: Arc<dyn Journal>,
    authority: Option<Authority>,
    begun: Instant,
    /// How long the core's clock stood still since: see [`State::now`].
    stood: Millis,
    links: BTreeMap<Link, Outlet>,
    /// What waits for a record before it to be durable.
    pending: VecDeque<Pending>,
    /// Whether the note to self that ends the batch is on its way.
    flushing: bool,
    /// The timer of the next tick.
    tick: Option<(Millis, task::Guard)>,
    /// Who waits for what is in the stores, by request.
    counting: BTreeMap<u64, mpsc::Sender<(NodeId, Store)>>,
    counted: u64,
    /// Who waits to hear why something waits, by ticket: as many as the core has open questions.
    explaining: BTreeMap<u64, oneshot::Sender<Result<Explanation, Failure>>>,
    tickets: u64,
    stopping: bool,
    /// Dropped last, once the journal is closed.
    _open: watch::Sender<()>,
}

struct Outlet {
    outbox: Outbox,
    attached: bool,
}

enum Pending {
    Effect(Box<Effect>),
    Then(Box<dyn FnOnce() + Send>),
}

impl Actor for HeadActor {
    type Msg = Envelope;
    type State = State;
    type Arguments = State;

    async fn pre_start(&self, myself: ActorRef<Envelope>, state: State) -> Result<State, ActorProcessingErr> {
        let mut state = state;
        state.arm(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Envelope>,
        envelope: Envelope,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if state.stopping {
            return Ok(());
        }
        match envelope.body {
            Body::Flush => {
                if let Err(error) = state.flush().await {
                    // What was promised in memory is not on disk, so nothing may be promised any more.
                    error!(%error, "the head ends: its state cannot be written");
                    state.stopping = true;
                    myself.stop(Some(error.to_string()));
                    return Ok(());
                }
            }
            body => state.handle(body, &myself).await,
        }
        if !state.pending.is_empty() && !state.flushing {
            state.flushing = true;
            myself.send_message(Envelope { body: Body::Flush, _permit: None })?;
        }
        state.arm(&myself);
        Ok(())
    }
}

impl State {
    /// The time for the core: that in which it could hear what it was told. What is late was said in time, if it is the head
    /// that stood still: it was stopped, or its machine was, or its disk was slow, or it had much to do at once. So the
    /// clock waits for each tick, which comes behind all that was in the mailbox when it was due, and what others
    /// were given of a term is left to them when the head goes on, to be heard from the sockets.
    fn now(&self) -> Millis {
        let now = self.running();
        self.tick.as_ref().map_or(now, |(at, _)| now.min(at.plus(Millis(LATE_MS_MAX))))
    }

    /// As [`Self::now`], if the head goes on running.
    fn running(&self) -> Millis {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Millis(now.saturating_sub(self.stood.0))
    }

    fn ticked(&mut self) {
        let stood = Millis(self.running().0.saturating_sub(self.now().0));
        self.stood = self.stood.plus(stood);
        self.core.stood_still(stood);
        self.tick = None;
        self.step(Event::Tick);
    }

    async fn handle(&mut self, body: Body, myself: &ActorRef<Envelope>) {
        match body {
            Body::Register { link, peer, hello, node, outbox } => {
                self.links.insert(link, Outlet { outbox, attached: false });
                self.step(Event::Register { link, peer, hello, node });
            }
            Body::Message { link, message: ToHead::Stock { request, store } } => {
                if let (Some(node), Some(to)) = (self.core.node_at(link), self.counting.get(&request)) {
                    // Nobody waits any more where it took too long; and each node has one place.
                    let _late = to.try_send((node, store));
                }
            }
            Body::Message { link, message } => self.step(Event::Message { link, message }),
            Body::Lost { link, why } => {
                self.step(Event::Lost { link, why });
                self.links.remove(&link);
            }
            Body::CreateToken { role, ttl, reply } => self.create_token(role, ttl, reply),
            Body::Redeem { request, reply } => self.redeem(&request, reply),
            Body::Snapshot { reply } => {
                // An error means that nobody waits any more.
                let _gone = reply.send(self.core.snapshot());
            }
            Body::Explain { id, reply } => {
                self.tickets += 1;
                self.explaining.insert(self.tickets, reply);
                self.step(Event::Explain { ticket: self.tickets, id });
            }
            Body::Queues { reply } => {
                // As above.
                let _gone = reply.send(self.core.queue_snapshots());
            }
            Body::SetQueue { change, reply } => {
                let now = self.now();
                let done = self.core.set_queue(*change, now);
                self.answer_after(done, reply);
            }
            Body::RemoveQueue { name, reply } => {
                let now = self.now();
                let done = self.core.remove_queue(&name, now);
                self.answer_after(done, reply);
            }
            Body::Drain { node, time, reply } => {
                let (now, time) = (self.now(), u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
                let done = self.core.drain(&node, Millis(time), now);
                self.answer_after(done, reply);
            }
            Body::Resume { node, reply } => {
                let now = self.now();
                let done = self.core.resume(&node, now);
                self.answer_after(done, reply);
            }
            Body::Scene { reply } => {
                let now = self.now();
                // An error means that nobody waits any more.
                let _gone = reply.send(self.core.scene(now));
            }
            Body::Scaled(told) => self.core.scaled(*told),
            Body::Settle { stay, drain, time } => {
                let (now, time) = (self.now(), u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
                let effects = self.core.settle(&stay, &drain, Millis(time), now);
                self.apply_all(effects);
            }
            Body::TakeStock { reply } => {
                // An error means that nobody waits any more.
                let _gone = reply.send(self.take_stock());
            }
            Body::Tick => self.ticked(),
            Body::Shutdown => {
                self.step(Event::Shutdown);
                if let Err(error) = self.flush().await {
                    error!(%error, "the last changes before the end could not be written");
                }
                // Each link's task sends what it still has, then closes.
                self.links.clear();
                self.stopping = true;
                myself.stop(None);
            }
            Body::Flush => {}
        }
    }

    fn take_stock(&mut self) -> Result<Counting, Failure> {
        self.counting.retain(|_, to| !to.is_closed());
        if self.counting.len() >= COUNTING_MAX {
            let text = format!("{COUNTING_MAX} others wait for what is in the stores: ask again in a moment");
            return Err(Failure::new(FailureKind::Limit, text));
        }
        let asked: Vec<(Link, NodeId)> =
            self.links.keys().filter_map(|link| Some((*link, self.core.node_at(*link)?))).collect();
        self.counted += 1;
        let message = Arc::new(ToAgent::TakeStock { request: self.counted });
        let mut nodes = BTreeSet::new();
        for (link, node) in asked {
            if self.links.get(&link).is_some_and(|outlet| outlet.outbox.put(&message)) {
                nodes.insert(node);
            }
        }
        let (to, stores) = mpsc::channel(nodes.len().max(1));
        self.counting.insert(self.counted, to);
        Ok(Counting { nodes, stores })
    }

    fn step(&mut self, event: Event) {
        let now = self.now();
        let effects = self.core.step(event, now);
        self.apply_all(effects);
    }

    fn apply_all(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if self.pending.is_empty() && !matches!(effect, Effect::Persist(_)) {
                self.apply(effect);
            } else {
                self.pending.push_back(Pending::Effect(Box::new(effect)));
            }
        }
    }

    /// Runs `then` once everything before it is durable.
    fn after(&mut self, then: impl FnOnce() + Send + 'static) {
        if self.pending.is_empty() {
            then();
        } else {
            self.pending.push_back(Pending::Then(Box::new(then)));
        }
    }

    /// Applies what follows, and says that it is done once all of it is durable.
    fn answer_after(
        &mut self,
        done: Result<Vec<Effect>, Failure>,
        reply: oneshot::Sender<Result<(), Failure>>,
    ) {
        let answer = done.map(|effects| self.apply_all(effects));
        // An error means that nobody waits any more.
        self.after(move || drop(reply.send(answer)));
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            // Records are taken out before their batch is applied.
            Effect::Persist(_) => {}
            Effect::Send { to, message } => {
                let message = Arc::new(message);
                if self.links.get(&to).is_some_and(|outlet| !outlet.outbox.put(&message)) {
                    self.give_up(to);
                }
            }
            Effect::Broadcast { except, message } => {
                let message = Arc::new(message);
                let full: Vec<Link> = self
                    .links
                    .iter()
                    .filter(|(link, outlet)| outlet.attached && Some(**link) != except)
                    .filter(|(_, outlet)| !outlet.outbox.put(&message))
                    .map(|(link, _)| *link)
                    .collect();
                full.into_iter().for_each(|link| self.give_up(link));
            }
            Effect::Explained { ticket, answer } => {
                if let Some(reply) = self.explaining.remove(&ticket) {
                    // An error means that nobody waits any more.
                    let _gone = reply.send(answer);
                }
            }
            Effect::Attach(link) => {
                if let Some(outlet) = self.links.get_mut(&link) {
                    outlet.attached = true;
                }
            }
            // Its task sends what it still has, then closes.
            Effect::Close(link) => drop(self.links.remove(&link)),
        }
    }

    /// An agent that does not read counts as lost. What follows is applied after what is being applied now.
    fn give_up(&mut self, link: Link) {
        warn!(link = link.0, "an agent does not keep up with its messages and is given up");
        self.links.remove(&link);
        let now = self.now();
        let effects =
            self.core.step(Event::Lost { link, why: "it did not read its messages".to_owned() }, now);
        self.pending.extend(effects.into_iter().map(|effect| Pending::Effect(Box::new(effect))));
    }

    /// Makes the batch durable, then applies what waited for it.
    async fn flush(&mut self) -> Result<(), state::Error> {
        self.flushing = false;
        let batch = std::mem::take(&mut self.pending);
        let records: Vec<Record> = batch
            .iter()
            .filter_map(|pending| match pending {
                Pending::Effect(effect) => match &**effect {
                    Effect::Persist(record) => Some(record.clone()),
                    _ => None,
                },
                Pending::Then(_) => None,
            })
            .collect();
        if !records.is_empty() {
            if self.journal.may_block() {
                let journal = self.journal.clone();
                tokio::task::spawn_blocking(move || journal.append(&records))
                    .await
                    .map_err(|e| state::Error::Database(e.to_string()))??;
            } else {
                self.journal.append(&records)?;
            }
        }
        for pending in batch {
            match pending {
                Pending::Effect(effect) => self.apply(*effect),
                Pending::Then(then) => then(),
            }
        }
        Ok(())
    }

    /// Starts the timer of the next tick where one is needed; an idle head has none. One that runs is shortened for what
    /// the scheduler is to do sooner; for anything else [`TICK_MS_MAX`] is soon enough.
    fn arm(&mut self, myself: &ActorRef<Envelope>) {
        let next = match &self.tick {
            _ if self.stopping => None,
            Some((at, _)) => self.core.next_look().filter(|next| next < at),
            None => self.core.next_tick(),
        };
        let Some(next) = next else { return };
        let now = self.now();
        let wait = next.0.saturating_sub(now.0).clamp(TICK_MS_MIN, TICK_MS_MAX);
        let at = now.plus(Millis(wait));
        if self.tick.as_ref().is_some_and(|(armed, _)| *armed <= at) {
            return;
        }
        let actor = myself.clone();
        let timer = task::scoped("head-tick", async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            // An error means that the head has ended.
            let _ended = actor.send_message(Envelope { body: Body::Tick, _permit: None });
        });
        self.tick = Some((at, timer));
    }

    fn create_token(&mut self, role: Role, ttl: Duration, reply: oneshot::Sender<Result<String, Failure>>) {
        let made = self.authority.as_ref().map_or_else(
            || Err(Failure::new(FailureKind::Unreachable, "nobody can join an embedded cluster")),
            |authority| {
                JoinToken::new(authority.fingerprint())
                    .map_err(|e| Failure::new(FailureKind::Internal, e.to_string()))
            },
        );
        let now = unix_now();
        let expires = now.saturating_add(ttl.min(TOKEN_TTL_MAX).as_secs());
        let answer = made.and_then(|token| {
            let effects = self.core.create_token(&token, role, expires, now)?;
            self.apply_all(effects);
            Ok(token.reveal().to_string())
        });
        // An error means that nobody waits any more.
        self.after(move || drop(reply.send(answer)));
    }

    fn redeem(&mut self, request: &JoinRequest, reply: oneshot::Sender<Result<String, String>>) {
        let answer = self.certificate(request);
        match &answer {
            Ok(_) => tracing::info!(from = %request.from, name = request.name, "a machine joined"),
            Err(reason) => warn!(from = %request.from, reason, "a machine was refused"),
        }
        // As above.
        self.after(move || drop(reply.send(answer)));
    }

    fn certificate(&mut self, request: &JoinRequest) -> Result<String, String> {
        let authority = self.authority.as_ref().ok_or("nobody can join an embedded cluster")?;
        let (redeemed, effects) = self
            .core
            .redeem(request.token_id, &request.secret_hash, request.role, &request.name, unix_now())
            .map_err(|failure| failure.message)?;
        let lifetime = if redeemed.role == Role::Driver { DRIVER_LIFETIME } else { NODE_LIFETIME };
        // A bad signing request costs its sender the token: it was shown, and may have been seen.
        let issued = authority.issue(&request.csr, redeemed.role, &redeemed.name, lifetime);
        self.apply_all(effects);
        issued.map_err(|e| e.to_string())
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
