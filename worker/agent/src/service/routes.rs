//! Ways out of the agent: a bounded outbox for each host here and each other agent.
//!
//! Relayed messages and output go straight from the task that read them to an outbox, past the agent's actor, and
//! wait there while the outbox has no room: that is what holds a fast sender back. What the actor itself says has
//! room of its own, so that it never waits; a host that leaves even that unread is ended.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::OwnedFd,
    sync::{Arc, mpsc as std_mpsc},
    time::Duration,
};

use mobula_proto::{Failure, FailureKind, HostId, JobId, NodeId, head::Between, host::ToHost};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::core::no_such_host;

/// Most messages of the actor's own that one outbox holds.
pub const CONTROL_MAX: usize = 8192;
/// Room for relayed messages in one outbox, in units of [`ROOM_UNIT_BYTES`]; 32 MiB.
pub const ROOM_UNITS: usize = 8192;
/// What a relayed message is charged at least, and in steps of, in bytes.
pub const ROOM_UNIT_BYTES: usize = 4096;
/// Most other hosts that a host's relays are remembered for; past that, the death of one is told by its silence.
pub const TALKED_MAX: usize = 65_536;
/// How often room in the queue of a host in this process is looked for.
const LOCAL_POLL: Duration = Duration::from_millis(1);

/// What one outbox carries to a host.
pub(super) struct ForHost {
    pub(super) message: ToHost,
    pub(super) fds: Vec<Arc<OwnedFd>>,
    _room: Option<OwnedSemaphorePermit>,
}

/// The message found no room, or nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undelivered {
    Full,
    Closed,
}

#[derive(Clone)]
enum Sink {
    Socket(mpsc::Sender<ForHost>),
    Local(std_mpsc::SyncSender<(ToHost, Vec<OwnedFd>)>),
}

/// The way to one host.
#[derive(Clone)]
pub(super) struct Outbox {
    sink: Sink,
    room: Arc<Semaphore>,
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES).clamp(1, ROOM_UNITS)).unwrap_or(u32::MAX)
}

impl Outbox {
    /// To a host behind a socket; whoever writes to it takes from the receiver.
    pub(super) fn socket() -> (Self, mpsc::Receiver<ForHost>) {
        let (sender, receiver) = mpsc::channel(CONTROL_MAX + ROOM_UNITS);
        (Self { sink: Sink::Socket(sender), room: Arc::new(Semaphore::new(ROOM_UNITS)) }, receiver)
    }

    /// To a host in this process.
    pub(super) fn local(sender: std_mpsc::SyncSender<(ToHost, Vec<OwnedFd>)>) -> Self {
        Self { sink: Sink::Local(sender), room: Arc::new(Semaphore::new(ROOM_UNITS)) }
    }

    /// Sends what the actor says.
    pub(super) fn tell(&self, message: ToHost, fds: Vec<Arc<OwnedFd>>) -> Result<(), Undelivered> {
        match &self.sink {
            Sink::Socket(sender) => {
                sender.try_send(ForHost { message, fds, _room: None }).map_err(|error| match error {
                    mpsc::error::TrySendError::Full(_) => Undelivered::Full,
                    mpsc::error::TrySendError::Closed(_) => Undelivered::Closed,
                })
            }
            Sink::Local(sender) => {
                let fds = fds.iter().map(|fd| fd.try_clone()).collect::<Result<_, _>>();
                let Ok(fds) = fds else { return Err(Undelivered::Full) };
                sender.try_send((message, fds)).map_err(|error| match error {
                    std_mpsc::TrySendError::Full(_) => Undelivered::Full,
                    std_mpsc::TrySendError::Disconnected(_) => Undelivered::Closed,
                })
            }
        }
    }

    /// Sends a message of about `bytes` once there is room; fails where nobody reads any more.
    async fn relay(&self, message: ToHost, bytes: usize) -> Result<(), Undelivered> {
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(units(bytes)).await.map_err(|_| Undelivered::Closed)?;
        match &self.sink {
            Sink::Socket(sender) => sender
                .send(ForHost { message, fds: Vec::new(), _room: Some(room) })
                .await
                .map_err(|_| Undelivered::Closed),
            Sink::Local(sender) => {
                let mut item = (message, Vec::new());
                loop {
                    match sender.try_send(item) {
                        Ok(()) => return Ok(()),
                        Err(std_mpsc::TrySendError::Full(back)) => item = back,
                        Err(std_mpsc::TrySendError::Disconnected(_)) => return Err(Undelivered::Closed),
                    }
                    tokio::time::sleep(LOCAL_POLL).await;
                }
            }
        }
    }

    /// Wakes whoever waits for room: there will be none.
    pub(super) fn close(&self) {
        self.room.close();
    }
}

struct Route {
    job: JobId,
    outbox: Outbox,
    talked: Mutex<HashSet<HostId>>,
}

impl Route {
    fn talked_to(&self, host: HostId) {
        let mut talked = self.talked.lock();
        if talked.len() < TALKED_MAX {
            talked.insert(host);
        }
    }
}

/// What one outbox carries to another agent.
pub(super) struct ForPeer {
    pub(super) message: Between,
    _room: Option<OwnedSemaphorePermit>,
}

/// The way to one other agent.
#[derive(Clone)]
pub(super) struct PeerOutbox {
    sender: mpsc::Sender<ForPeer>,
    room: Arc<Semaphore>,
}

impl PeerOutbox {
    pub(super) fn new() -> (Self, mpsc::Receiver<ForPeer>) {
        let (sender, receiver) = mpsc::channel(CONTROL_MAX + ROOM_UNITS);
        (Self { sender, room: Arc::new(Semaphore::new(ROOM_UNITS)) }, receiver)
    }

    pub(super) fn tell(&self, message: Between) -> Result<(), Undelivered> {
        self.sender.try_send(ForPeer { message, _room: None }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Undelivered::Full,
            mpsc::error::TrySendError::Closed(_) => Undelivered::Closed,
        })
    }

    async fn relay(&self, message: Between, bytes: usize) -> Result<(), Undelivered> {
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(units(bytes)).await.map_err(|_| Undelivered::Closed)?;
        self.sender.send(ForPeer { message, _room: Some(room) }).await.map_err(|_| Undelivered::Closed)
    }
}

/// All ways out.
pub(super) struct Routes {
    node: NodeId,
    hosts: RwLock<BTreeMap<HostId, Arc<Route>>>,
    peers: RwLock<BTreeMap<NodeId, PeerOutbox>>,
}

impl Routes {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, hosts: RwLock::default(), peers: RwLock::default() }
    }

    pub(super) fn add_host(&self, host: HostId, job: JobId, outbox: Outbox) {
        self.hosts.write().insert(host, Arc::new(Route { job, outbox, talked: Mutex::default() }));
    }

    pub(super) fn remove_host(&self, host: HostId) {
        if let Some(route) = self.hosts.write().remove(&host) {
            route.outbox.close();
        }
    }

    pub(super) fn add_peer(&self, node: NodeId, outbox: PeerOutbox) {
        self.peers.write().insert(node, outbox);
    }

    pub(super) fn remove_peer(&self, node: NodeId) {
        if let Some(outbox) = self.peers.write().remove(&node) {
            outbox.room.close();
        }
    }

    pub(super) fn peer(&self, node: NodeId) -> Option<PeerOutbox> {
        self.peers.read().get(&node).cloned()
    }

    fn host(&self, host: HostId) -> Option<Arc<Route>> {
        self.hosts.read().get(&host).cloned()
    }

    /// A message from a host here to any other. Where it finds nobody, the sender is told.
    pub(super) async fn relay(&self, from: HostId, to: HostId, body: Vec<u8>) {
        let Some(route) = self.host(from) else { return };
        route.talked_to(to);
        let sent = if to.node == self.node {
            self.deliver(from, route.job, to, body).await
        } else {
            let bytes = body.len();
            match self.peer(to.node) {
                Some(peer) => {
                    let message = Between::Relay { from, job: route.job, to, body };
                    peer.relay(message, bytes).await.is_ok()
                }
                None => false,
            }
        };
        if !sent {
            self.unreachable(from, to, no_such_host(to));
        }
    }

    /// Hands a message to a host here; `false` where there is none such.
    pub(super) async fn deliver(&self, from: HostId, job: JobId, to: HostId, body: Vec<u8>) -> bool {
        let Some(route) = self.host(to) else { return false };
        route.talked_to(from);
        let bytes = body.len();
        let message = ToHost::Relayed { from, same_job: route.job == job, body };
        route.outbox.relay(message, bytes).await.is_ok()
    }

    /// Tells a host here that another cannot be reached.
    pub(super) fn unreachable(&self, from: HostId, to: HostId, failure: Failure) {
        if let Some(route) = self.host(from) {
            // Full or closed, the host is about to end.
            let _ending = route.outbox.tell(ToHost::HostDied { host: to, failure }, Vec::new());
        }
    }

    /// A line of output for a driver, wherever it is.
    pub(super) async fn output(&self, driver: HostId, from: HostId, stderr: bool, line: String) {
        let bytes = line.len();
        if driver.node == self.node {
            if let Some(route) = self.host(driver) {
                // A driver that is gone reads nothing.
                let _gone = route.outbox.relay(ToHost::Output { host: from, stderr, line }, bytes).await;
            }
        } else if let Some(peer) = self.peer(driver.node) {
            let _gone = peer.relay(Between::Output { to: driver, from, stderr, line }, bytes).await;
        }
    }

    /// Tells the hosts here that are of a dead host's job, or have talked to it.
    pub(super) fn died(&self, host: HostId, job: JobId, failure: &Failure) {
        for (id, route) in self.hosts.read().iter() {
            let concerned = route.job == job || route.talked.lock().remove(&host);
            if concerned && *id != host {
                let message = ToHost::HostDied { host, failure: failure.clone() };
                // Full or closed, the host is about to end.
                let _ending = route.outbox.tell(message, Vec::new());
            }
        }
    }
}

/// What a sender is told when an agent cannot be reached.
pub(super) fn unreachable(node: NodeId, why: &str) -> Failure {
    Failure::new(FailureKind::Unreachable, format!("{node} cannot be reached: {why}"))
}
