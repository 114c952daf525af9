//! Ways out of the agent: a bounded outbox for each host here and each other agent.
//!
//! Relayed messages and output go straight from the task that read them to an outbox, past the agent's actor, and
//! wait there while the outbox has no room: that is what holds a fast sender back. What the actor itself says has
//! room of its own, so that it never waits; a host that leaves even that unread is ended.
//!
//! Where nothing waits in an outbox, the task that has a message writes it itself, into the ring or the stream: a single
//! message then crosses an agent in one task, and is on its way before anybody else runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc as std_mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use mobula_proto::{
    Failure, FailureKind, HostId, JobId, NodeId, ObjectId, head::Between, host::ToHost, relay as wire_relay,
    wire,
};
use mobula_telemetry::task;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{debug, warn};

use super::{
    delivery::{PeerOutbox, Severed},
    local::{FROM_OTHERS_MAX, ToLocal},
    relay,
};
use crate::core::no_such_host;

/// Most messages of the actor's own that one outbox holds.
pub const CONTROL_MAX: usize = 8192;
/// As long as more of them wait than this, no more is read of what the host says: most are answers.
pub const ANSWERS_MAX: usize = CONTROL_MAX / 2;
/// Most objects in one [`ToHost::Reclaim`].
pub const RECLAIM_OBJECTS_MAX: usize = 16_384;
/// Room for relayed messages in one outbox, in units of [`ROOM_UNIT_BYTES`]; 32 MiB.
pub const ROOM_UNITS: usize = 8192;
/// What a relayed message is charged at least, and in steps of, in bytes.
pub const ROOM_UNIT_BYTES: usize = 4096;
/// How long a host elsewhere whose message found nobody here is left to hear of the death in the usual way, which says why.
/// Only one that began after that needs to be told.
pub const ABSENT_WAIT: Duration = Duration::from_secs(1);
/// Most pairs of hosts of which the one is to be told that the other is not here.
pub const ABSENT_MAX: usize = 16_384;

/// What one outbox carries to a host.
pub(super) struct ForHost {
    pub(super) what: What,
    room: Option<OwnedSemaphorePermit>,
}

pub(super) enum What {
    /// A message of the agent's own, with its descriptors: over the socket, but for answers that have none, which go over
    /// the ring, where there is one. (Those with one do where nothing is in their way; see [`Outbox::tell`].)
    Say(ToHost, Vec<Arc<OwnedFd>>),
    /// Messages of another host: over the ring, where there is one.
    Relayed { from: HostId, same_job: bool, batch: Bytes },
    /// What was written past the queue did not fit into the ring.
    Flush,
    /// What [`Reclaims`] holds by the time that this is taken.
    Reclaim,
}

/// Objects that are to be reclaimed, said together however many there are: a host that drops objects faster than it reads
/// would be in arrears with nothing but these.
#[derive(Default)]
pub(super) struct Reclaims {
    objects: Vec<(ObjectId, u32)>,
    give_back: bool,
    /// Whether somebody is on the way to say them.
    queued: bool,
}

impl Reclaims {
    /// Adds these; `true` where the caller has to see to it that they are said.
    fn add(&mut self, objects: &mut Vec<(ObjectId, u32)>, give_back: bool) -> bool {
        self.objects.append(objects);
        self.give_back |= give_back;
        !std::mem::replace(&mut self.queued, true)
    }

    /// All that there are, in messages that are short enough each. Each may be the last with its `give_back`.
    pub(super) fn take(&mut self) -> Vec<ToHost> {
        self.queued = false;
        let (objects, give_back) = (std::mem::take(&mut self.objects), std::mem::take(&mut self.give_back));
        let mut parts: Vec<_> = objects.chunks(RECLAIM_OBJECTS_MAX).map(<[_]>::to_vec).collect();
        let last = parts.pop().unwrap_or_default();
        let before = parts.into_iter().map(|objects| ToHost::Reclaim { objects, give_back: false });
        before.chain([ToHost::Reclaim { objects: last, give_back }]).collect()
    }
}

/// The ring to a host, into which whoever has a message for it writes while none waits in the queue.
#[derive(Default)]
pub(super) struct Direct {
    pub(super) ring: tokio::sync::Mutex<Option<relay::Writer>>,
    /// Items of the queue, but for what the agent says itself, that are not in the ring yet.
    queued: AtomicUsize,
    pub(super) reclaims: Mutex<Reclaims>,
    /// Items of the queue that the agent says itself.
    said: AtomicUsize,
    /// There are fewer of them than there were, or nobody takes them any more, which `over` says.
    fewer_said: Notify,
    over: AtomicBool,
}

impl Direct {
    /// The ring, if nothing is to go before what is written into it now.
    fn free(&self) -> Option<tokio::sync::MappedMutexGuard<'_, relay::Writer>> {
        if self.queued.load(Ordering::Acquire) > 0 {
            return None;
        }
        let ring = tokio::sync::MutexGuard::try_map(self.ring.try_lock().ok()?, Option::as_mut).ok()?;
        ring.is_flushed().then_some(ring)
    }

    /// An item of the queue is with the host, or will never be.
    pub(super) fn done(&self, item: &ForHost) {
        match item.what {
            What::Relayed { .. } | What::Flush => {
                self.queued.fetch_sub(1, Ordering::Release);
            }
            What::Say(..) if item.room.is_none() => {
                if self.said.fetch_sub(1, Ordering::AcqRel) == ANSWERS_MAX + 1 {
                    self.fewer_said.notify_waiters();
                }
            }
            What::Say(..) | What::Reclaim => {}
        }
    }

    /// Nobody takes from the queue any more.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.fewer_said.notify_waiters();
    }

    fn is_behind(&self) -> bool {
        self.said.load(Ordering::Acquire) > ANSWERS_MAX && !self.over.load(Ordering::Acquire)
    }

    /// Waits until the host has heard most of what the agent has told it.
    pub(super) async fn heard(&self) {
        while self.is_behind() {
            let fewer = self.fewer_said.notified();
            // What changes from here on is not missed.
            if self.is_behind() {
                fewer.await;
            }
        }
    }
}

/// Whether a host may hear this before what it was told earlier. A thread that waits for it reads the ring itself, and
/// is woken once; over the socket, another thread would be first.
pub(super) fn may_overtake(message: &ToHost) -> bool {
    matches!(message, ToHost::Opened { .. } | ToHost::OpenFailed { .. } | ToHost::Reclaim { .. })
}

fn is_short(message: &ToHost) -> bool {
    !matches!(message, ToHost::Reclaim { objects, .. } if objects.len() > RECLAIM_OBJECTS_MAX)
}

/// A message with its descriptors for a host in this process, where that has any left. Who waits for an object hears that
/// it has none; nothing else that such a host is told has any.
fn with_copies(
    message: ToHost,
    copies: std::io::Result<Vec<OwnedFd>>,
) -> Result<(ToHost, Vec<OwnedFd>), Undelivered> {
    match (copies, message) {
        (Ok(copies), message) => Ok((message, copies)),
        (Err(_), ToHost::Opened { request, region, region_bytes, offset, bytes, .. }) => {
            let opened = ToHost::Opened { request, region, region_bytes, offset, bytes, lost: true };
            Ok((opened, Vec::new()))
        }
        (Err(_), _) => Err(Undelivered::Full),
    }
}

/// The message found no room, or nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undelivered {
    Full,
    Closed,
}

#[derive(Clone)]
enum Sink {
    Socket(mpsc::Sender<ForHost>, Arc<Direct>),
    Local(ToLocal, Arc<Mutex<Reclaims>>),
}

/// The way to one host.
#[derive(Clone)]
pub(super) struct Outbox {
    sink: Sink,
    room: Arc<Semaphore>,
}

/// What there is for one host.
pub(super) struct Queue {
    pub(super) items: mpsc::Receiver<ForHost>,
    pub(super) direct: Arc<Direct>,
}

/// Says what is to be reclaimed to a host in this process that had no room for it.
async fn say_reclaims(sender: ToLocal, reclaims: Arc<Mutex<Reclaims>>) {
    // What comes meanwhile goes along.
    sender.at_most(FROM_OTHERS_MAX - 1).await;
    let messages = reclaims.lock().take();
    for message in messages {
        if !sender.send(message).await {
            break;
        }
    }
}

pub(super) fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES).clamp(1, ROOM_UNITS)).unwrap_or(u32::MAX)
}

impl Outbox {
    /// To a host behind a socket; whoever writes to it takes from the receiver.
    pub(super) fn socket() -> (Self, Queue) {
        let (sender, items) = mpsc::channel(CONTROL_MAX + ROOM_UNITS);
        let direct = Arc::<Direct>::default();
        let queue = Queue { items, direct: Arc::clone(&direct) };
        (Self { sink: Sink::Socket(sender, direct), room: Arc::new(Semaphore::new(ROOM_UNITS)) }, queue)
    }

    /// To a host in this process.
    pub(super) fn local(sender: ToLocal) -> Self {
        Self { sink: Sink::Local(sender, Arc::default()), room: Arc::new(Semaphore::new(ROOM_UNITS)) }
    }

    /// Sends what the actor says.
    pub(super) fn tell(&self, message: ToHost, fds: Vec<Arc<OwnedFd>>) -> Result<(), Undelivered> {
        match &self.sink {
            Sink::Socket(_, direct) => {
                if fds.len() <= 1
                    && may_overtake(&message)
                    && is_short(&message)
                    && let Some(mut ring) = direct.free()
                    && let Ok(body) = wire::encode(&message)
                {
                    match ring.say_now(&body, fds.first().map(|fd| fd.as_fd())) {
                        Ok(Some(true)) => return Ok(()),
                        Ok(Some(false)) => return self.flush(),
                        // It goes over the socket.
                        Ok(None) => {}
                        // Whoever takes from the queue finds it broken too, and ends the link.
                        Err(_) => {}
                    }
                }
                match message {
                    ToHost::Reclaim { mut objects, give_back } => {
                        let first = direct.reclaims.lock().add(&mut objects, give_back);
                        if first { self.queue(What::Reclaim) } else { Ok(()) }
                    }
                    message => self.queue(What::Say(message, fds)),
                }
            }
            Sink::Local(sender, reclaims) => {
                let copies = fds.iter().map(|fd| fd.try_clone()).collect();
                let (message, fds) = with_copies(message, copies)?;
                match sender.try_send(message, fds) {
                    Ok(()) => Ok(()),
                    Err(std_mpsc::TrySendError::Full((ToHost::Reclaim { mut objects, give_back }, _))) => {
                        if reclaims.lock().add(&mut objects, give_back) {
                            let (sender, reclaims) = (sender.clone(), Arc::clone(reclaims));
                            drop(task::spawn("local-reclaim", say_reclaims(sender, reclaims)));
                        }
                        Ok(())
                    }
                    Err(std_mpsc::TrySendError::Full(_)) => Err(Undelivered::Full),
                    Err(std_mpsc::TrySendError::Disconnected(_)) => Err(Undelivered::Closed),
                }
            }
        }
    }

    fn queue(&self, what: What) -> Result<(), Undelivered> {
        let Sink::Socket(sender, direct) = &self.sink else { return Ok(()) };
        if matches!(what, What::Say(..)) {
            direct.said.fetch_add(1, Ordering::AcqRel);
        }
        sender.try_send(ForHost { what, room: None }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(item) => {
                direct.done(&item);
                Undelivered::Full
            }
            mpsc::error::TrySendError::Closed(item) => {
                direct.done(&item);
                Undelivered::Closed
            }
        })
    }

    /// Waits until the host has heard most of what it was told.
    pub(super) async fn heard(&self) {
        match &self.sink {
            Sink::Socket(_, direct) => direct.heard().await,
            Sink::Local(sender, _) => sender.at_most(FROM_OTHERS_MAX + ANSWERS_MAX).await,
        }
    }

    /// Has the rest of what was written past the queue written by whoever takes from it. Until that is done nobody
    /// writes past it, so that no more than one message or batch ever waits so.
    fn flush(&self) -> Result<(), Undelivered> {
        if let Sink::Socket(_, direct) = &self.sink {
            direct.queued.fetch_add(1, Ordering::Relaxed);
        }
        self.queue(What::Flush)
    }

    /// Sends a message of about `bytes` once there is room; fails where nobody reads any more.
    async fn say(&self, message: ToHost, bytes: usize) -> Result<(), Undelivered> {
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(units(bytes)).await.map_err(|_| Undelivered::Closed)?;
        match &self.sink {
            Sink::Socket(sender, _) => sender
                .send(ForHost { what: What::Say(message, Vec::new()), room: Some(room) })
                .await
                .map_err(|_| Undelivered::Closed),
            Sink::Local(sender, _) => sender.send(message).await.then_some(()).ok_or(Undelivered::Closed),
        }
    }

    /// Hands on what another host sent, once there is room; fails where nobody reads any more.
    async fn relay(&self, from: HostId, same_job: bool, batch: Bytes) -> Result<(), Undelivered> {
        if let Sink::Socket(_, direct) = &self.sink
            && let Some(mut ring) = direct.free()
        {
            match ring.send_now(from, same_job, &batch) {
                Ok(true) => return Ok(()),
                Ok(false) => return self.flush(),
                // Whoever takes from the queue finds it broken too, and ends the link.
                Err(_) => {}
            }
        }
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(units(batch.len())).await.map_err(|_| Undelivered::Closed)?;
        match &self.sink {
            Sink::Socket(sender, direct) => {
                direct.queued.fetch_add(1, Ordering::Relaxed);
                let what = What::Relayed { from, same_job, batch };
                let sent = sender.send(ForHost { what, room: Some(room) }).await;
                sent.map_err(|_| Undelivered::Closed)
            }
            Sink::Local(sender, _) => {
                for message in each(from, same_job, &batch) {
                    if !sender.send(message).await {
                        return Err(Undelivered::Closed);
                    }
                }
                Ok(())
            }
        }
    }

    /// What is relayed from now on goes through this ring.
    pub(super) async fn ring(&self, ring: relay::Writer) {
        if let Sink::Socket(_, direct) = &self.sink {
            *direct.ring.lock().await = Some(ring);
        }
    }

    /// Wakes whoever waits for room: there will be none.
    pub(super) fn close(&self) {
        self.room.close();
    }
}

/// The messages of a batch, for a host to which no ring leads.
pub(super) fn each(from: HostId, same_job: bool, batch: &[u8]) -> impl Iterator<Item = ToHost> {
    wire_relay::entries(batch).map_while(Result::ok).map(move |entry| ToHost::Relayed {
        from,
        same_job,
        body: entry.body.to_vec(),
    })
}

/// Cuts a batch where `key` of the receiver changes; nothing of a malformed one comes out.
pub(super) fn runs<K: PartialEq>(
    batch: Bytes,
    key: impl Fn(HostId) -> K,
) -> Result<Vec<(HostId, Bytes)>, wire_relay::Malformed> {
    let (mut runs, mut start, mut end, mut to) = (Vec::new(), 0, 0, None);
    for entry in wire_relay::entries(&batch) {
        let entry = entry?;
        match to {
            Some(last) if key(last) != key(entry.to) => {
                runs.push((last, part(&batch, start..end)));
                (start, to) = (end, Some(entry.to));
            }
            Some(_) => {}
            None => to = Some(entry.to),
        }
        end += entry.bytes;
    }
    match to {
        // Whole: who gets it need not copy it.
        Some(to) if runs.is_empty() => runs.push((to, batch)),
        Some(to) => runs.push((to, part(&batch, start..end))),
        None => {}
    }
    Ok(runs)
}

/// A copy where it is small, lest a receiver that takes its time keep the whole batch for it.
fn part(batch: &Bytes, range: std::ops::Range<usize>) -> Bytes {
    if range.len() < batch.len() / 2 { Bytes::copy_from_slice(&batch[range]) } else { batch.slice(range) }
}

/// For whom the messages of a well-formed batch are, each once.
pub(super) fn receivers(batch: &[u8]) -> Vec<HostId> {
    let mut all: Vec<_> = wire_relay::entries(batch).map_while(Result::ok).map(|entry| entry.to).collect();
    all.sort_unstable();
    all.dedup();
    all
}

struct Route {
    job: JobId,
    outbox: Outbox,
}

/// All ways out.
pub(super) struct Routes {
    node: NodeId,
    hosts: RwLock<BTreeMap<HostId, Arc<Route>>>,
    peers: RwLock<BTreeMap<NodeId, PeerOutbox>>,
    /// Hosts that are to be told, after [`ABSENT_WAIT`], that nobody hears them: others are not here, or count them as dead.
    absent: Mutex<BTreeSet<(HostId, HostId)>>,
    severed: Arc<Severed>,
}

impl Routes {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            hosts: RwLock::default(),
            peers: RwLock::default(),
            absent: Mutex::default(),
            severed: Arc::default(),
        }
    }

    /// Which pairs of hosts count each other as dead.
    pub(super) fn severed(&self) -> &Arc<Severed> {
        &self.severed
    }

    /// From now on a host here and one elsewhere count each other as dead; the one here is told so. Whether that is news.
    pub(super) fn sever(&self, here: HostId, there: HostId, failure: Failure) -> bool {
        let news = {
            // While this is held, the host does not go: what is noted of it is forgotten then.
            let hosts = self.hosts.read();
            hosts.contains_key(&here) && self.severed.add(here, there)
        };
        if news {
            self.unreachable(here, there, failure);
        }
        news
    }

    /// A host here still says something to one of which it was told that it died. It hears so again, lest it wait for
    /// an answer.
    pub(super) fn still_severed(self: &Arc<Self>, here: HostId, there: HostId) {
        self.after_a_while((here, there), move |routes| {
            let why = "messages to it were given up before";
            routes.unreachable(here, there, unreachable(there.node, why).of(there.to_string()));
        });
    }

    /// Says something to the first that concerns the second, unless that is about to be said.
    fn after_a_while(self: &Arc<Self>, pair: (HostId, HostId), say: impl FnOnce(&Self) + Send + 'static) {
        let mut absent = self.absent.lock();
        if absent.len() < ABSENT_MAX && absent.insert(pair) {
            drop(absent);
            let routes = Arc::clone(self);
            drop(task::spawn("not-here", async move {
                tokio::time::sleep(ABSENT_WAIT).await;
                routes.absent.lock().remove(&pair);
                say(&routes);
            }));
        }
    }

    /// A host elsewhere is gone.
    pub(super) fn host_gone(&self, host: HostId) {
        self.severed.forget(|other| other == host);
    }

    pub(super) fn add_host(&self, host: HostId, job: JobId, outbox: Outbox) {
        self.hosts.write().insert(host, Arc::new(Route { job, outbox }));
    }

    pub(super) fn remove_host(&self, host: HostId) {
        let removed = self.hosts.write().remove(&host);
        if let Some(route) = removed {
            route.outbox.close();
        }
        self.host_gone(host);
    }

    pub(super) fn add_peer(&self, node: NodeId, outbox: PeerOutbox) {
        self.peers.write().insert(node, outbox);
    }

    pub(super) fn remove_peer(&self, node: NodeId) {
        if let Some(outbox) = self.peers.write().remove(&node) {
            outbox.close();
        }
        self.severed.forget(|host| host.node == node);
    }

    pub(super) fn peer(&self, node: NodeId) -> Option<PeerOutbox> {
        self.peers.read().get(&node).cloned()
    }

    fn host(&self, host: HostId) -> Option<Arc<Route>> {
        self.hosts.read().get(&host).cloned()
    }

    /// Messages from a host here to any others. Where one finds nobody, the sender is told.
    pub(super) async fn relay(
        &self,
        from: HostId,
        batch: impl Into<Bytes>,
    ) -> Result<(), wire_relay::Malformed> {
        let Some(route) = self.host(from) else { return Ok(()) };
        let mut unreached = BTreeSet::new();
        for (to, run) in runs(batch.into(), |to| to.node)? {
            let receivers = receivers(&run);
            if to.node == self.node {
                unreached.extend(self.hand_over(from, route.job, run).await?);
                continue;
            }
            let sent = match self.peer(to.node) {
                Some(peer) => {
                    let bytes = run.len();
                    let message = Between::Relay { from, job: route.job, batch: run.into() };
                    peer.relay(message, bytes).await.is_ok()
                }
                None => false,
            };
            if !sent {
                unreached.extend(receivers);
            }
        }
        unreached.into_iter().for_each(|to| self.unreachable(from, to, no_such_host(to)));
        Ok(())
    }

    /// Messages from a host elsewhere to hosts here.
    pub(super) async fn relayed(
        self: &Arc<Self>,
        from: HostId,
        job: JobId,
        batch: Bytes,
    ) -> Result<(), wire_relay::Malformed> {
        for to in self.hand_over(from, job, batch).await? {
            debug!(host = %from, %to, "relayed messages found nobody");
            self.after_a_while((from, to), move |routes| routes.not_here(from, to));
        }
        Ok(())
    }

    /// Tells a host elsewhere that another is not here.
    fn not_here(&self, from: HostId, host: HostId) {
        if let Some(peer) = self.peer(from.node)
            && peer.tell(Between::NotHere { from, host }) == Err(Undelivered::Full)
        {
            warn!(host = %from, to = %host, "that a host is not there is not said: too many messages wait");
        }
    }

    /// Hands messages to hosts here; returns which of those there are none of.
    async fn hand_over(
        &self,
        from: HostId,
        job: JobId,
        batch: Bytes,
    ) -> Result<BTreeSet<HostId>, wire_relay::Malformed> {
        let mut unreached = BTreeSet::new();
        for (to, run) in runs(batch, |to| to)? {
            if !self.deliver(from, job, to, run).await {
                unreached.insert(to);
            }
        }
        Ok(unreached)
    }

    /// Hands messages to a host here; `false` where there is none such.
    async fn deliver(&self, from: HostId, job: JobId, to: HostId, run: Bytes) -> bool {
        let Some(route) = self.host(to) else { return false };
        if self.severed.has(to, from) {
            return true;
        }
        route.outbox.relay(from, route.job == job, run).await.is_ok()
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
                let _gone = route.outbox.say(ToHost::Output { host: from, stderr, line }, bytes).await;
            }
        } else if let Some(peer) = self.peer(driver.node) {
            let _gone = peer.relay(Between::Output { to: driver, from, stderr, line }, bytes).await;
        }
    }
}

/// What a sender is told when an agent cannot be reached.
pub(super) fn unreachable(node: NodeId, why: &str) -> Failure {
    Failure::new(FailureKind::Unreachable, format!("{node} cannot be reached: {why}"))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn host(node: u32, seq: u32) -> HostId {
        HostId { node: NodeId { number: node, incarnation: 1 }, seq }
    }

    #[tokio::test]
    async fn a_sender_hears_once_of_each_host_that_is_not_there() {
        let from = host(1, 1);
        let routes = Routes::new(from.node);
        let (outbox, mut queue) = Outbox::socket();
        routes.add_host(from, JobId { number: 7 }, outbox);
        let mut batch = Vec::new();
        for _ in 0..5 {
            for to in [host(1, 9), host(2, 1), host(3, 1), host(1, 8), host(2, 2)] {
                wire_relay::push(&mut batch, to, b"hello").unwrap();
            }
        }
        routes.relay(from, batch).await.unwrap();
        drop(routes);
        let mut told = Vec::new();
        while let Some(ForHost { what: What::Say(ToHost::HostDied { host, .. }, _), .. }) =
            queue.items.recv().await
        {
            told.push(host);
        }
        told.sort_unstable();
        assert_eq!(told, [host(1, 8), host(1, 9), host(2, 1), host(2, 2), host(3, 1)]);
    }

    #[test]
    fn a_host_in_this_process_hears_that_there_is_no_descriptor_left_for_what_it_opens() {
        let region = mobula_proto::RegionId { writer: host(1, 2), seq: 1 };
        let opened =
            |lost| ToHost::Opened { request: 3, region, region_bytes: 64, offset: 0, bytes: 8, lost };
        let none = || Err(std::io::ErrorKind::Other.into());
        let (told, copies) = with_copies(opened(false), none()).unwrap();
        assert!(matches!(told, ToHost::Opened { request: 3, lost: true, .. }) && copies.is_empty());
        let copy = || Ok(vec![std::fs::File::open("/dev/null").unwrap().into()]);
        let (told, copies) = with_copies(opened(false), copy()).unwrap();
        assert!(matches!(told, ToHost::Opened { lost: false, .. }) && copies.len() == 1);
        assert!(with_copies(ToHost::Rings { peer: host(1, 2) }, none()).is_err());
    }

    fn object(index: u32) -> ObjectId {
        mobula_proto::TaskId::numbered(host(1, 1), 1).object(index)
    }

    fn reclaim(index: u32) -> ToHost {
        ToHost::Reclaim { objects: vec![(object(index), 1)], give_back: index == 3 }
    }

    /// More than any outbox has room for.
    const MANY: u32 = 3 * RECLAIM_OBJECTS_MAX as u32 / 2;

    #[tokio::test]
    async fn what_a_host_has_to_reclaim_is_said_together_while_it_reads_nothing() {
        let (outbox, mut queue) = Outbox::socket();
        for index in 0..MANY {
            outbox.tell(reclaim(index), Vec::new()).unwrap();
        }
        let item = queue.items.recv().await.unwrap();
        assert!(matches!(item.what, What::Reclaim) && queue.items.try_recv().is_err(), "one item for all");
        let mut all = Vec::new();
        let messages = queue.direct.reclaims.lock().take();
        assert_eq!(messages.len(), 2);
        for (message, last) in messages.into_iter().zip([false, true]) {
            let ToHost::Reclaim { objects, give_back } = message else { panic!("{message:?}") };
            assert!(objects.len() <= RECLAIM_OBJECTS_MAX && give_back == last);
            all.extend(objects);
        }
        assert_eq!(all, (0..MANY).map(|index| (object(index), 1)).collect::<Vec<_>>());
        outbox.tell(reclaim(0), Vec::new()).unwrap();
        assert!(matches!(queue.items.recv().await.unwrap().what, What::Reclaim), "said again");
    }

    #[tokio::test]
    async fn a_host_in_this_process_hears_of_all_that_it_has_to_reclaim() {
        let (link, _from_host, to_host) = super::super::local::LocalLink::new();
        let outbox = Outbox::local(to_host);
        for index in 0..MANY {
            outbox.tell(reclaim(index), Vec::new()).unwrap();
        }
        let read = tokio::task::spawn_blocking(move || {
            let (mut all, mut messages) = (Vec::new(), 0);
            while all.len() < MANY as usize {
                let (message, _) = link.receiver.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
                let ToHost::Reclaim { objects, .. } = message else { panic!("{message:?}") };
                all.extend(objects);
                messages += 1;
            }
            (all, messages)
        });
        let (all, messages) = read.await.unwrap();
        assert_eq!(all, (0..MANY).map(|index| (object(index), 1)).collect::<Vec<_>>());
        assert!(messages <= super::super::local::TO_HOST_MAX + 3, "{messages}");
    }

    #[tokio::test]
    async fn nothing_more_is_read_of_a_host_that_has_most_answers_before_it() {
        let (outbox, mut queue) = Outbox::socket();
        let answer = || ToHost::RegionGranted { request: 1 };
        for _ in 0..=ANSWERS_MAX {
            outbox.tell(answer(), Vec::new()).unwrap();
        }
        let mut heard = std::pin::pin!(outbox.heard());
        assert!(heard.as_mut().now_or_never().is_none());
        let item = queue.items.recv().await.unwrap();
        queue.direct.done(&item);
        heard.await;
        outbox.tell(answer(), Vec::new()).unwrap();
        let mut heard = std::pin::pin!(outbox.heard());
        assert!(heard.as_mut().now_or_never().is_none());
        queue.direct.end();
        heard.await;

        let (link, _from_host, to_host) = super::super::local::LocalLink::new();
        let outbox = Outbox::local(to_host);
        for _ in 0..=FROM_OTHERS_MAX + ANSWERS_MAX {
            outbox.tell(answer(), Vec::new()).unwrap();
        }
        let mut heard = std::pin::pin!(outbox.heard());
        assert!(heard.as_mut().now_or_never().is_none());
        link.receiver.try_recv().unwrap();
        heard.await;
    }
}
