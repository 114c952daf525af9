//! Connections to other agents: one for control and relays, one for bulk, dialled when first needed.
//!
//! Whoever dials says who it is on the first stream: a relay stream marks a connection for relays, a control
//! stream one for bulk. Each side then opens streams on whichever connection there is; a node that only dials
//! outward therefore dials every node that it learns of, and again whenever a connection ends: the other may have
//! something to say. A relay stream carries messages one way; what comes back says which of them were handed on
//! ([`delivery`]). Where several connections to a node live, the newest is used for what begins.
//!
//! Nobody dials while it knows of a living connection. So whoever accepts a further one of the same kind learns that those
//! before it are over, though word of that was lost: without this it would write into them until silence told it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use mobula_net::{
    bulk,
    identity::Role,
    quic::{self, Connection, Endpoint, Receiver, Sender, StreamKind},
};
use mobula_proto::{
    Failure, HostId, NodeId, ObjectId,
    head::{Between, Node, Pull},
    wire::{self, Hello},
};
use mobula_telemetry::task;
use parking_lot::Mutex;
use rkyv::util::AlignedVec;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, warn};

use super::{
    actor::{Message, Post},
    delivery::{self, PeerOutbox},
    provision::Provision,
    routes::Routes,
    transfer::Answer,
};
use crate::core::{
    delivery::{Begin, Incoming, SAY_DELAY, Say, Taken, Violation},
    no_such_host,
    transfer::Wish,
};

/// How long a connection to a peer may take, retries included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most ranges that are sent over one connection at once.
pub const SERVED_MAX: usize = 64;
/// Most requests over one connection that wait at once for what is read back from disk, or not here yet. A further one comes
/// again later. There are streams left for what can be had now.
pub const WAITING_MAX: usize = 128;
/// How long a peer's first message may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long whoever only dials outward waits after a connection that ended, or did not come about, before it dials again.
const REDIAL_PAUSE: Duration = Duration::from_millis(500);
/// Most connections of one kind to one node that are known at once. Older ones are there for what they carry.
const CONNECTIONS_MAX: usize = 4;
/// How often whoever waits for what is being read back here hears so before it would give up.
const WAITS_IN_STALL: u32 = 4;
/// Why a connection is closed that whoever dialled it has given up.
const OVER: &str = "its dialler has dialled again";

/// Which of a peer's two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Relay,
    Bulk,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0} is unknown or gone")]
    Gone(NodeId),
    #[error("{0} was not reached within {CONNECT_TIMEOUT:?}")]
    Timeout(NodeId),
    #[error("this agent has no network")]
    NoNetwork,
    #[error(transparent)]
    Net(#[from] quic::Error),
    #[error(transparent)]
    Wire(#[from] wire::Error),
    #[error(transparent)]
    Relay(#[from] mobula_proto::relay::Malformed),
    #[error("the peer's first message is not who it is")]
    NoHello,
    #[error("the peer says on a relay stream what does not belong there")]
    NoBegin,
    #[error(transparent)]
    Delivery(#[from] Violation),
    #[error("the peer calls itself {claimed}, but its certificate names {certified:?}")]
    Imposter { claimed: NodeId, certified: String },
}

/// Who dialled.
#[derive(Clone, Copy, Debug)]
enum Dialled {
    /// This side, to reach this node.
    Here(NodeId),
    /// The peer. Counts up in the order in which they came.
    There(u64),
}

impl Dialled {
    /// Whether the peer had given up this one when it dialled the other.
    fn is_over(self, other: Self) -> bool {
        matches!((self, other), (Self::There(this), Self::There(other)) if this < other)
    }
}

#[derive(Debug)]
struct Known {
    connection: Connection,
    dialled: Dialled,
}

impl Known {
    fn lives(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

#[derive(Debug)]
struct Peer {
    node: Node,
    relay: Vec<Known>,
    bulk: Vec<Known>,
    /// Held while a message is handed on.
    incoming: Arc<tokio::sync::Mutex<Incoming>>,
    dialling: Arc<tokio::sync::Mutex<()>>,
    _task: task::Guard,
    _dial: Vec<task::Guard>,
}

impl Peer {
    fn connections(&mut self, line: Line) -> &mut Vec<Known> {
        match line {
            Line::Relay => &mut self.relay,
            Line::Bulk => &mut self.bulk,
        }
    }
}

/// All other agents.
pub(super) struct Peers {
    me: NodeId,
    endpoint: Option<Arc<Endpoint>>,
    listens: bool,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    /// The last incarnation of each node number that is gone.
    gone: Mutex<BTreeMap<u32, u32>>,
    changed: Notify,
    routes: Arc<Routes>,
    provision: Arc<Provision>,
    post: Post,
    /// How long pulls wait for a source that says nothing.
    pull_stall: Duration,
}

impl Peers {
    pub(super) fn new(
        me: NodeId,
        endpoint: Option<Arc<Endpoint>>,
        listens: bool,
        routes: Arc<Routes>,
        provision: Arc<Provision>,
        post: Post,
        pull_stall: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            me,
            endpoint,
            listens,
            peers: Mutex::default(),
            gone: Mutex::default(),
            changed: Notify::new(),
            routes,
            provision,
            post,
            pull_stall,
        })
    }

    /// A node is there; from now on there is a way to it.
    pub(super) fn node_up(self: &Arc<Self>, node: Node) {
        if node.node == self.me {
            return;
        }
        let id = node.node;
        // Held until the peer is in the table, where the tasks look for it.
        let mut peers = self.peers.lock();
        if let Some(known) = peers.get_mut(&id) {
            // What was numbered goes on.
            known.node = node;
            return;
        }
        let (outbox, queue) = PeerOutbox::new(Arc::clone(self.routes.severed()));
        let sending = task::scoped("peer-relay", delivery::send_all(Arc::downgrade(self), id, queue));
        let dials = !self.listens && !node.address.is_empty() && self.endpoint.is_some();
        let lines = [Line::Relay, Line::Bulk].into_iter().filter(|_| dials);
        let dial =
            lines.map(|line| task::scoped("peer-dial", keep_up(Arc::downgrade(self), id, line))).collect();
        let peer = Peer {
            node,
            relay: Vec::new(),
            bulk: Vec::new(),
            incoming: Arc::default(),
            dialling: Arc::default(),
            _task: sending,
            _dial: dial,
        };
        peers.insert(id, peer);
        drop(peers);
        self.routes.add_peer(id, outbox);
        self.changed.notify_waiters();
    }

    /// A node is gone.
    pub(super) fn node_down(&self, node: NodeId) {
        {
            let mut gone = self.gone.lock();
            let last = gone.entry(node.number).or_default();
            *last = node.incarnation.max(*last);
        }
        self.routes.remove_peer(node);
        let removed = self.peers.lock().remove(&node);
        if let Some(peer) = removed {
            for known in peer.relay.into_iter().chain(peer.bulk) {
                known.connection.close("the head says that this node is gone");
            }
        }
        self.changed.notify_waiters();
    }

    /// Whether the head said that a node is gone. One of which it has not told yet is none of these.
    pub(super) fn has_gone(&self, node: NodeId) -> bool {
        self.gone.lock().get(&node.number).is_some_and(|last| node.incarnation <= *last)
    }

    /// Takes what arrives at the endpoint until it closes.
    pub(super) async fn accept(self: Arc<Self>) {
        let Some(endpoint) = self.endpoint.clone() else { return };
        let mut accepted = 0;
        while let Some(incoming) = endpoint.accept().await {
            match incoming {
                quic::Incoming::Peer(connection) if connection.peer().role != Role::Head => {
                    accepted += 1;
                    let streams = streams(Arc::clone(&self), connection, Dialled::There(accepted));
                    drop(task::spawn("peer-streams", streams));
                }
                quic::Incoming::Peer(connection) => connection.close("a head has no business here"),
                quic::Incoming::Join(_) => {}
            }
        }
    }

    fn existing(&self, node: NodeId, line: Line) -> Result<Option<Connection>, Error> {
        let mut peers = self.peers.lock();
        let connections = peers.get_mut(&node).ok_or(Error::Gone(node))?.connections(line);
        connections.retain(Known::lives);
        Ok(connections.last().map(|known| known.connection.clone()))
    }

    /// Where delivery from a node stands.
    fn incoming(&self, node: NodeId) -> Result<Arc<tokio::sync::Mutex<Incoming>>, Error> {
        let peers = self.peers.lock();
        peers.get(&node).map(|peer| Arc::clone(&peer.incoming)).ok_or(Error::Gone(node))
    }

    /// From now on a host here and one elsewhere count each other as dead.
    pub(super) fn sever(&self, here: HostId, there: HostId, failure: Failure) {
        if self.routes.sever(here, there, failure) {
            self.post.cast(Message::Severed { here, there });
        }
    }

    pub(super) fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// How many connections for relays there are.
    #[cfg(test)]
    pub(super) fn relays(&self) -> usize {
        let peers = self.peers.lock();
        peers.values().flat_map(|peer| &peer.relay).filter(|relay| relay.lives()).count()
    }

    /// What is known of all of them, for tests that wait in vain.
    #[cfg(test)]
    pub(super) fn describe(&self) -> String {
        let Some(peers) = self.peers.try_lock() else { return "the table is held".to_owned() };
        let one = |(node, peer): (&NodeId, &Peer)| {
            let relays: Vec<_> = peer.relay.iter().map(|known| (known.dialled, known.lives())).collect();
            let incoming = peer.incoming.try_lock().map(|incoming| format!("{incoming:?}"));
            let dialling = peer.dialling.try_lock().is_err();
            let out = self.routes.peer(*node).map(|outbox| outbox.describe());
            format!("{node}: {relays:?}, dialling {dialling}, in {incoming:?}, out {out:?}")
        };
        peers.iter().map(one).collect()
    }

    /// Closes the connections for relays to all nodes.
    #[cfg(test)]
    pub(super) fn break_relays(&self) {
        for peer in self.peers.lock().values() {
            peer.relay.iter().for_each(|known| known.connection.close("a test breaks it"));
        }
    }

    /// The connection to a node, made now if need be and the node can be dialled, else waited for.
    pub(super) async fn connection(self: &Arc<Self>, node: NodeId, line: Line) -> Result<Connection, Error> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            let changed = self.changed.notified();
            if let Some(connection) = self.existing(node, line)? {
                return Ok(connection);
            }
            let (address, dialling) = {
                let peers = self.peers.lock();
                let peer = peers.get(&node).ok_or(Error::Gone(node))?;
                (peer.node.address.parse::<SocketAddr>().ok(), Arc::clone(&peer.dialling))
            };
            let Some(address) = address else {
                timeout_at(deadline, changed).await.map_err(|_| Error::Timeout(node))?;
                continue;
            };
            let _one = timeout_at(deadline, dialling.lock()).await.map_err(|_| Error::Timeout(node))?;
            if let Some(connection) = self.existing(node, line)? {
                return Ok(connection);
            }
            match timeout_at(deadline, self.dial(node, address, line)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) if Instant::now() + RETRY_PAUSE >= deadline => return Err(error),
                Ok(Err(error)) => {
                    debug!(peer = %node, %error, "dialling again");
                    sleep(RETRY_PAUSE).await;
                }
                Err(_) => return Err(Error::Timeout(node)),
            }
        }
    }

    async fn dial(
        self: &Arc<Self>,
        node: NodeId,
        address: SocketAddr,
        line: Line,
    ) -> Result<Connection, Error> {
        let endpoint = self.endpoint.as_ref().ok_or(Error::NoNetwork)?;
        let connection = endpoint.connect(address, Role::Agent).await?;
        self.check_name(node, &connection)?;
        // The stream that says who is there; on a bulk connection nothing else ever follows on it.
        let kind = match line {
            Line::Relay => StreamKind::Relay,
            Line::Bulk => StreamKind::Control,
        };
        let (mut sender, _) = connection.open(kind).await?;
        sender.send(&self.hello()?).await?;
        sender.finish().await?;
        self.keep(node, line, &connection, Dialled::Here(node));
        let streams = streams(Arc::clone(self), connection.clone(), Dialled::Here(node));
        drop(task::spawn("peer-streams", streams));
        Ok(connection)
    }

    pub(super) fn hello(&self) -> Result<AlignedVec, wire::Error> {
        wire::encode(&Between::Hello { hello: Hello::new(wire::Role::Agent), node: self.me })
    }

    /// There may be several: both sides dial at once, or one of them knows sooner that the first is broken.
    fn keep(&self, node: NodeId, line: Line, connection: &Connection, dialled: Dialled) {
        if let Some(peer) = self.peers.lock().get_mut(&node) {
            let connections = peer.connections(line);
            if connections.iter().any(|known| dialled.is_over(known.dialled)) {
                connection.close(OVER);
                return;
            }
            connections.retain(|known| {
                if known.dialled.is_over(dialled) {
                    known.connection.close(OVER);
                }
                known.lives() && !known.connection.is(connection)
            });
            if connections.len() == CONNECTIONS_MAX {
                connections.remove(0);
            }
            connections.push(Known { connection: connection.clone(), dialled });
        }
        self.changed.notify_waiters();
    }

    fn check_name(&self, node: NodeId, connection: &Connection) -> Result<(), Error> {
        let peers = self.peers.lock();
        let peer = peers.get(&node).ok_or(Error::Gone(node))?;
        if peer.node.name == connection.peer().name {
            return Ok(());
        }
        Err(Error::Imposter { claimed: node, certified: connection.peer().name.clone() })
    }

    /// Who is talking on a stream that the peer opened. The head's word about a new node may come after the node.
    async fn expect_hello(&self, connection: &Connection, receiver: &mut Receiver) -> Result<NodeId, Error> {
        let deadline = Instant::now() + HELLO_TIMEOUT;
        let bytes = timeout_at(deadline, receiver.recv()).await.map_err(|_| Error::NoHello)??;
        let Between::Hello { hello, node } = wire::decode(&bytes.ok_or(Error::NoHello)?)? else {
            return Err(Error::NoHello);
        };
        hello.check(&[wire::Role::Agent])?;
        loop {
            let changed = self.changed.notified();
            match self.check_name(node, connection) {
                Err(Error::Gone(_)) => {
                    timeout_at(deadline, changed).await.map_err(|_| Error::Gone(node))?;
                }
                other => return other.map(|()| node),
            }
        }
    }

    /// Hands on what comes on a relay stream, each message once and in order, however many streams it comes on.
    async fn relay_stream(
        self: &Arc<Self>,
        from: NodeId,
        mut back: Sender,
        mut receiver: Receiver,
    ) -> Result<(), Error> {
        // Who dials says only who it is.
        let Some(begin) = receiver.recv().await? else { return Ok(()) };
        let Between::Begin { stream, first } = wire::decode(&begin)? else { return Err(Error::NoBegin) };
        let incoming = self.incoming(from)?;
        // What another stream is handing on is handed on before.
        let begun = incoming.lock().await.begin(Begin { stream, first })?;
        let Some(mut stream) = begun else { return Ok(()) };
        let permits = self.post.permits();
        let mut later = pin!(sleep(SAY_DELAY));
        let mut waits = false;
        let mut next = incoming.lock().await.say(&stream);
        let mut unsent = false;
        loop {
            if !unsent && let Some(next) = next.take() {
                back.buffer(&wire::encode(&Between::Received { next })?)?;
                unsent = true;
            }
            // What is said back shares the connection's window with what this side sends, and waits while the peer does not
            // read that. If neither read meanwhile, both would wait for ever.
            let bytes = tokio::select! {
                biased;
                sent = back.flush(), if unsent => {
                    // Who does not hear it has another stream, or will.
                    if sent.is_err() {
                        break;
                    }
                    unsent = false;
                    continue;
                }
                bytes = receiver.recv() => bytes?,
                () = &mut later, if waits => {
                    waits = false;
                    next = incoming.lock().await.say(&stream);
                    continue;
                }
            };
            let Some(bytes) = bytes else { break };
            let mut incoming = incoming.lock().await;
            match incoming.take(&mut stream, bytes.len()) {
                Taken::Next if bytes.is_empty() => {}
                Taken::Next => self.hand_on(from, &bytes, &permits).await?,
                Taken::Again => continue,
                Taken::Over => break,
            }
            match incoming.due() {
                Say::Now => {
                    waits = false;
                    next = incoming.say(&stream);
                }
                Say::Later if !waits => {
                    waits = true;
                    later.as_mut().reset(Instant::now() + SAY_DELAY);
                }
                Say::Later | Say::Nothing => {}
            }
        }
        Ok(())
    }

    async fn hand_on(
        self: &Arc<Self>,
        from: NodeId,
        bytes: &[u8],
        permits: &Arc<Semaphore>,
    ) -> Result<(), Error> {
        match wire::decode(bytes)? {
            Between::Relay { from: host, job, batch } if host.node == from => {
                self.routes.relayed(host, job, batch.into()).await?;
            }
            Between::Output { to, from: host, stderr, line } if host.node == from => {
                self.routes.output(to, host, stderr, line).await;
            }
            Between::NotHere { host: HostId { node, .. }, .. }
            | Between::Salvage { owner: HostId { node, .. }, .. }
            | Between::Salvaged { by: node, .. }
            | Between::Claim { host: HostId { node, .. }, .. }
            | Between::Unclaim { host: HostId { node, .. }, .. }
            | Between::Claimed { by: node, .. }
                if node != from =>
            {
                warn!(peer = %from, "a node speaks for another");
            }
            Between::OutputEnded { node, .. } if node != from => {
                warn!(peer = %from, "a node speaks for another");
            }
            Between::Contains { copy, .. }
            | Between::Keep { copy, .. }
            | Between::Moved { copy, .. }
            | Between::LiesHere { copy, .. }
                if copy.node != from =>
            {
                warn!(peer = %from, "a node gives away what is another's");
            }
            Between::Kept { by, .. } | Between::WhatHolds { by, .. } if by != from => {
                warn!(peer = %from, "a node speaks for another");
            }
            Between::Noted { object: ObjectId { owner, .. }, .. } | Between::Holds { owner, .. }
                if owner.node != from =>
            {
                warn!(peer = %from, "a node speaks for a host of another");
            }
            Between::NotHere { from: sender, host } => {
                self.routes.unreachable(sender, host, no_such_host(host));
            }
            // Handed on behind the lines that came before it.
            message @ (Between::Free { .. }
            | Between::Discard { .. }
            | Between::Drop { .. }
            | Between::Claim { .. }
            | Between::Claimed { .. }
            | Between::Unclaim { .. }
            | Between::Salvage { .. }
            | Between::Salvaged { .. }
            | Between::Contains { .. }
            | Between::Keep { .. }
            | Between::Moved { .. }
            | Between::LiesHere { .. }
            | Between::Noted { .. }
            | Between::WhatHolds { .. }
            | Between::Holds { .. }
            | Between::Kept { .. }
            | Between::Held { .. }
            | Between::OutputEnded { .. }) => {
                self.post.send(permits, |permit| Message::Peer(message, permit)).await;
            }
            Between::Severed { pairs } => {
                for (there, here) in pairs.into_iter().filter(|(there, _)| there.node == from) {
                    let why = format!("it did not reach {} within {CONNECT_TIMEOUT:?}", self.me);
                    self.sever(here, there, delivery::unreached(from, there, &why));
                }
            }
            Between::Hello { .. } | Between::Begin { .. } | Between::Received { .. } => {
                return Err(Error::NoBegin);
            }
            Between::Relay { .. } | Between::Output { .. } => {
                warn!(peer = %from, "a node speaks for a host of another");
            }
        }
        Ok(())
    }

    /// Answers a request.
    async fn serve(self: &Arc<Self>, stream: (Sender, Receiver), serving: &Serving) {
        let (lent, permit) = (Mutex::new(None), Mutex::new(None));
        let mut sent = 0;
        let answer = async |request: AlignedVec| {
            let pull = wire::decode::<Pull>(&request);
            let pull = pull.map_err(|error| bulk::Refusal::Absent(error.to_string()))?;
            *permit.lock() = serving.sending().await;
            let (object, copy, by, from, tried, whole) = match pull {
                Pull::Object { object, copy, by, from, tried, whole } => {
                    (object, copy, by, from, tried, whole)
                }
                Pull::Binary { hash } => {
                    let bytes = self.provision.serve(hash).await.map_err(bulk::Refusal::Absent)?;
                    return Ok(bulk::Answer::Range(Vec::new(), bulk::Range::whole(bytes, 0)));
                }
            };
            let mut answer = self.post.serve(Wish { object, copy, by, tried, whole }, from).await?;
            while let Answer::Later(later) = answer {
                // What can be sent now goes meanwhile.
                *permit.lock() = None;
                let waits = serving.waiting.try_acquire().map_err(|_| too_many_wait())?;
                answer = Post::answered(later).await?;
                // It stays in memory until it is sent.
                *permit.lock() = serving.sending().await;
                drop(waits);
            }
            match answer {
                Answer::Range(note, range, what) => {
                    *lent.lock() = Some(what);
                    Ok(bulk::Answer::Range(note, range))
                }
                Answer::Elsewhere(note) => Ok(bulk::Answer::Elsewhere(note)),
                Answer::Later(_) => Err(too_many_wait()),
            }
        };
        if let Err(error) = bulk::serve(stream, answer, self.pull_stall / WAITS_IN_STALL, &mut sent).await {
            debug!(%error, "a transfer to a peer failed");
        }
        if let Some(mut lent) = lent.into_inner() {
            lent.sent = sent;
        }
    }
}

/// What is bounded of the requests that come over one connection. There are never more than it has streams.
struct Serving {
    sending: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Serving {
    async fn sending(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.sending).acquire_owned().await.ok()
    }
}

fn too_many_wait() -> bulk::Refusal {
    let why = format!("{WAITING_MAX} requests wait already for what is not in memory, the most that may");
    bulk::Refusal::Busy(why)
}

/// Keeps a connection to a node that cannot dial this one.
async fn keep_up(peers: Weak<Peers>, node: NodeId, line: Line) {
    let mut told = false;
    loop {
        let connection = match peers.upgrade() {
            Some(peers) => peers.connection(node, line).await,
            None => return,
        };
        match connection {
            Ok(connection) => {
                told = false;
                let ended = connection.closed().await;
                debug!(peer = %node, %ended, "a connection ended");
            }
            Err(Error::Gone(_)) => return,
            Err(error) if !std::mem::replace(&mut told, true) => {
                warn!(peer = %node, %error, "a node cannot be reached from here");
            }
            Err(_) => {}
        }
        sleep(REDIAL_PAUSE).await;
    }
}

/// [`serve_streams`] as a boxed future: serving may dial, and dialling serves.
fn streams(peers: Arc<Peers>, connection: Connection, dialled: Dialled) -> BoxFuture<'static, ()> {
    Box::pin(serve_streams(peers, connection, dialled))
}

/// Serves the streams that the peer of one connection opens, until it closes.
async fn serve_streams(peers: Arc<Peers>, connection: Connection, dialled: Dialled) {
    let serving = Arc::new(Serving {
        sending: Arc::new(Semaphore::new(SERVED_MAX)),
        waiting: Semaphore::new(WAITING_MAX),
    });
    // The tasks of a connection end with it.
    loop {
        let (kind, sender, mut receiver) = match connection.accept_stream().await {
            Ok(stream) => stream,
            Err(error) if connection.close_reason().is_none() => {
                debug!(%error, "a stream was turned away");
                continue;
            }
            Err(_) => return,
        };
        match kind {
            StreamKind::Bulk => {
                let (peers, serving) = (Arc::clone(&peers), Arc::clone(&serving));
                drop(task::spawn("bulk-serve", async move {
                    peers.serve((sender, receiver), &serving).await;
                }));
            }
            StreamKind::Relay | StreamKind::Control => {
                let (peers, connection) = (Arc::clone(&peers), connection.clone());
                drop(task::spawn("peer-stream", async move {
                    let result = async {
                        let from = peers.expect_hello(&connection, &mut receiver).await?;
                        match dialled {
                            Dialled::Here(node) if node != from => return Err(Error::NoHello),
                            Dialled::Here(_) => {}
                            Dialled::There(_) => {
                                let line = if kind == StreamKind::Relay { Line::Relay } else { Line::Bulk };
                                peers.keep(from, line, &connection, dialled);
                            }
                        }
                        if kind == StreamKind::Relay {
                            peers.relay_stream(from, sender, receiver).await
                        } else {
                            Ok(())
                        }
                    };
                    if let Err(error) = result.await
                        && connection.close_reason().is_none()
                    {
                        warn!(%error, peer = %connection.peer(), "a peer is turned away");
                        connection.close(&error.to_string());
                    }
                }));
            }
        }
    }
}
