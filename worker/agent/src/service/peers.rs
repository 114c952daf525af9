//! Connections to other agents: one for control and relays, one for bulk, dialled when first needed.
//!
//! Whoever dials says who it is on the first stream: a relay stream marks a connection for relays, a control
//! stream one for bulk. Each side then opens streams on whichever connection there is; a node that only dials
//! outward therefore dials every node that it learns of. A relay stream carries messages one way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use mobula_net::{
    bulk,
    identity::Role,
    quic::{Connection, Endpoint, Incoming, Receiver, Sender, StreamKind},
};
use mobula_proto::{
    FailureKind, HostId, NodeId,
    head::{Between, Node, Pull},
    wire::{self, Hello},
};
use mobula_telemetry::task;
use parking_lot::Mutex;
use rkyv::util::AlignedVec;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{debug, warn};

use super::{
    actor::{Message, Post},
    provision::Provision,
    routes::{ForPeer, PeerOutbox, PeerQueue, Routes, receivers, unreachable},
};
use crate::core::{no_such_host, transfer::Wish};

/// How long a connection to a peer may take, retries included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bulk requests of one connection served at once.
pub const SERVED_MAX: usize = 64;
/// How long a peer's first message may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

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
    Net(#[from] mobula_net::quic::Error),
    #[error(transparent)]
    Wire(#[from] wire::Error),
    #[error(transparent)]
    Relay(#[from] mobula_proto::relay::Malformed),
    #[error("the peer's first message is not who it is")]
    NoHello,
    #[error("the peer calls itself {claimed}, but its certificate names {certified:?}")]
    Imposter { claimed: NodeId, certified: String },
}

#[derive(Debug)]
struct Peer {
    node: Node,
    relay: Option<Connection>,
    bulk: Option<Connection>,
    dialling: Arc<tokio::sync::Mutex<()>>,
    _task: task::Guard,
    _dial: Option<task::Guard>,
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
}

impl Peers {
    pub(super) fn new(
        me: NodeId,
        endpoint: Option<Arc<Endpoint>>,
        listens: bool,
        routes: Arc<Routes>,
        provision: Arc<Provision>,
        post: Post,
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
        })
    }

    /// A node is there; from now on there is a way to it.
    pub(super) fn node_up(self: &Arc<Self>, node: Node) {
        if node.node == self.me {
            return;
        }
        let id = node.node;
        let (outbox, queue) = PeerOutbox::new();
        // Held until the peer is in the table, where the tasks look for it.
        let mut peers = self.peers.lock();
        let sending = task::scoped("peer-relay", send_all(Arc::downgrade(self), id, queue));
        let dial = (!self.listens && !node.address.is_empty() && self.endpoint.is_some()).then(|| {
            let weak = Arc::downgrade(self);
            task::scoped("peer-dial", async move {
                let Some(peers) = weak.upgrade() else { return };
                for line in [Line::Relay, Line::Bulk] {
                    if let Err(error) = peers.connection(id, line).await {
                        warn!(peer = %id, %error, "a node cannot be reached from here");
                    }
                }
            })
        });
        let peer =
            Peer { node, relay: None, bulk: None, dialling: Arc::default(), _task: sending, _dial: dial };
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
        if let Some(peer) = self.peers.lock().remove(&node) {
            for connection in [peer.relay, peer.bulk].into_iter().flatten() {
                connection.close("the head says that this node is gone");
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
        while let Some(incoming) = endpoint.accept().await {
            match incoming {
                Incoming::Peer(connection) if connection.peer().role != Role::Head => {
                    drop(task::spawn("peer-streams", streams(Arc::clone(&self), connection, None)));
                }
                Incoming::Peer(connection) => connection.close("a head has no business here"),
                Incoming::Join(_) => {}
            }
        }
    }

    fn existing(&self, node: NodeId, line: Line) -> Result<Option<Connection>, Error> {
        let peers = self.peers.lock();
        let peer = peers.get(&node).ok_or(Error::Gone(node))?;
        let connection = match line {
            Line::Relay => &peer.relay,
            Line::Bulk => &peer.bulk,
        };
        Ok(connection.clone().filter(|connection| connection.close_reason().is_none()))
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
        self.keep(node, line, &connection);
        drop(task::spawn("peer-streams", streams(Arc::clone(self), connection.clone(), Some(node))));
        Ok(connection)
    }

    fn hello(&self) -> Result<AlignedVec, wire::Error> {
        wire::encode(&Between::Hello { hello: Hello::new(wire::Role::Agent), node: self.me })
    }

    /// The first established is used; a second one (both dialled at once) is there for what it carries.
    fn keep(&self, node: NodeId, line: Line, connection: &Connection) {
        if let Some(peer) = self.peers.lock().get_mut(&node) {
            let slot = match line {
                Line::Relay => &mut peer.relay,
                Line::Bulk => &mut peer.bulk,
            };
            if slot.as_ref().is_none_or(|old| old.close_reason().is_some()) {
                *slot = Some(connection.clone());
            }
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

    async fn relay_stream(self: &Arc<Self>, from: NodeId, mut receiver: Receiver) -> Result<(), Error> {
        let permits = self.post.permits();
        while let Some(bytes) = receiver.recv().await? {
            match wire::decode(&bytes)? {
                Between::Relay { from: host, job, batch } if host.node == from => {
                    self.routes.relayed(host, job, batch.into()).await?;
                }
                Between::Output { to, from: host, stderr, line } if host.node == from => {
                    self.routes.output(to, host, stderr, line).await;
                }
                Between::NotHere { host: HostId { node, .. }, .. }
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
                Between::Contains { copy, .. } | Between::Keep { copy, .. } | Between::Moved { copy, .. }
                    if copy.node != from =>
                {
                    warn!(peer = %from, "a node gives away what is another's");
                }
                Between::Kept { by, .. } if by != from => warn!(peer = %from, "a node speaks for another"),
                Between::Noted { object, .. } if object.owner.node != from => {
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
                | Between::Contains { .. }
                | Between::Keep { .. }
                | Between::Moved { .. }
                | Between::Noted { .. }
                | Between::Kept { .. }
                | Between::Held { .. }
                | Between::OutputEnded { .. }) => {
                    self.post.send(&permits, |permit| Message::Peer(message, permit)).await;
                }
                Between::Hello { .. } => {}
                Between::Relay { .. } | Between::Output { .. } => {
                    warn!(peer = %from, "a node speaks for a host of another");
                }
            }
        }
        Ok(())
    }

    async fn serve(self: &Arc<Self>, stream: (Sender, Receiver)) {
        let asked = Mutex::new(None);
        let mut sent = 0;
        let answer = async |request: AlignedVec| match wire::decode::<Pull>(&request) {
            Ok(Pull::Object { object, copy, by, from, tried, whole }) => {
                let wish = Wish { object, copy, by, tried, whole };
                let answer = self.post.serve(&wish, from).await?;
                if let bulk::Answer::Range(..) = answer {
                    *asked.lock() = Some(wish);
                }
                Ok(answer)
            }
            Ok(Pull::Binary { hash }) => {
                let bytes = self.provision.serve(hash).await.map_err(bulk::Refusal::Absent)?;
                Ok(bulk::Answer::Range(Vec::new(), bulk::Range::whole(bytes, 0)))
            }
            Err(error) => Err(bulk::Refusal::Absent(error.to_string())),
        };
        if let Err(error) = bulk::serve(stream, answer, &mut sent).await {
            debug!(%error, "a transfer to a peer failed");
        }
        if let Some(wish) = asked.into_inner() {
            self.post.served(wish, sent).await;
        }
    }
}

/// [`serve_streams`] as a boxed future: serving may dial, and dialling serves.
fn streams(peers: Arc<Peers>, connection: Connection, node: Option<NodeId>) -> BoxFuture<'static, ()> {
    Box::pin(serve_streams(peers, connection, node))
}

/// Serves the streams that the peer of one connection opens, until it closes. `node` is who that is, where this
/// side dialled.
async fn serve_streams(peers: Arc<Peers>, connection: Connection, node: Option<NodeId>) {
    let serving = Arc::new(Semaphore::new(SERVED_MAX));
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
                let Ok(permit) = Arc::clone(&serving).acquire_owned().await else { return };
                let peers = Arc::clone(&peers);
                drop(task::spawn("bulk-serve", async move {
                    peers.serve((sender, receiver)).await;
                    drop(permit);
                }));
            }
            StreamKind::Relay | StreamKind::Control => {
                let (peers, connection) = (Arc::clone(&peers), connection.clone());
                drop(task::spawn("peer-stream", async move {
                    let result = async {
                        let from = peers.expect_hello(&connection, &mut receiver).await?;
                        if node.is_some_and(|node| node != from) {
                            return Err(Error::NoHello);
                        }
                        if node.is_none() {
                            let line = if kind == StreamKind::Relay { Line::Relay } else { Line::Bulk };
                            peers.keep(from, line, &connection);
                        }
                        if kind == StreamKind::Relay {
                            peers.relay_stream(from, receiver).await
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
                    drop(sender);
                }));
            }
        }
    }
}

/// Sends what is queued for one node, until it is gone.
async fn send_all(peers: std::sync::Weak<Peers>, node: NodeId, mut queue: PeerQueue) {
    let stream = Arc::clone(&queue.stream);
    while let Some((batch, queued)) = queue.next().await {
        let Some(peers) = peers.upgrade() else { return };
        let bodies: Result<Vec<_>, _> = batch.iter().map(|item| wire::encode(&item.message)).collect();
        let sent = match bodies {
            Ok(bodies) => {
                let mut sender = stream.sender.lock().await;
                let sent = send_batch(&peers, node, &mut sender, &bodies).await;
                if sent.is_err() {
                    *sender = None;
                }
                sent
            }
            Err(error) => Err(error.into()),
        };
        stream.done(queued);
        if let Err(error) = sent {
            warn!(peer = %node, %error, messages = queued, "messages to a node are lost");
            for (from, to) in losers(&batch) {
                peers.routes.unreachable(from, to, lost(node, to, &error));
            }
            drop(peers);
            // Objects must not stay for ever because word of them was lost: it is sent again for as long as the node lives.
            if queue.put_back(batch) {
                sleep(GARBAGE_PAUSE).await;
            }
        }
    }
}

/// How long it waits to say again what may go at a node that could not be reached.
const GARBAGE_PAUSE: Duration = Duration::from_secs(1);

/// Whose messages to whom are lost with a batch, each pair once.
fn losers(batch: &[ForPeer]) -> BTreeSet<(HostId, HostId)> {
    let mut all = BTreeSet::new();
    for item in batch {
        if let Between::Relay { from, batch, .. } = &item.message {
            all.extend(receivers(batch).into_iter().map(|to| (*from, to)));
        }
    }
    all
}

fn lost(node: NodeId, to: HostId, error: &Error) -> mobula_proto::Failure {
    let mut failure = unreachable(node, &error.to_string()).of(to.to_string());
    failure.kind = FailureKind::Unreachable;
    failure
}

async fn send_bodies(sender: &mut Sender, bodies: &[AlignedVec]) -> Result<(), mobula_net::quic::Error> {
    for body in bodies {
        sender.feed(body).await?;
    }
    sender.flush().await
}

async fn send_batch(
    peers: &Arc<Peers>,
    node: NodeId,
    stream: &mut Option<Sender>,
    bodies: &[AlignedVec],
) -> Result<(), Error> {
    if let Some(sender) = stream
        && send_bodies(sender, bodies).await.is_ok()
    {
        return Ok(());
    }
    // A stream that broke may have delivered some of the batch: hosts drop what they have seen.
    let connection = peers.connection(node, Line::Relay).await?;
    let hello = peers.hello()?;
    let (mut sender, _) = timeout(CONNECT_TIMEOUT, connection.open(StreamKind::Relay))
        .await
        .map_err(|_| Error::Timeout(node))??;
    sender.send(&hello).await?;
    send_bodies(&mut sender, bodies).await?;
    *stream = Some(sender);
    Ok(())
}
