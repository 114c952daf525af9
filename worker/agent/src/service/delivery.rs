//! The way to one other agent: what waits for it, what it may not have, and the stream, whichever that is.
//!
//! All that one agent says to another goes through [`core::delivery`](crate::core::delivery): it arrives once and in order
//! for as long as both live, however often their connection breaks. Where a stream breaks, the next one carries what the
//! other side has not said to have.
//!
//! How long that may take is bounded for messages between hosts, since somebody may wait for what they ask for. A node that
//! the head counts as living, and that is not reached for [`CONNECT_TIMEOUT`], is not dead; but for each pair of hosts of
//! which a message waits by then, **the break is the death of the pair**: the one host is told that the other died, what
//! waits is given up, and nothing is passed on between the two ever again, in either direction. The other host is told the
//! same of the first as soon as its agent can be reached ([`Between::Severed`]). Nothing less would do: what was given up
//! may have arrived, or not; hosts count on the order of what they say to one another, and on every message, but they do
//! know what to do about a death. Objects that the one holds of the other are kept too long then, until one of them ends,
//! and never freed too early. A host that its job's driver is severed from is ended by its agent: nobody is left to say
//! what becomes of what it does, and the job could never use it again, but has another one there with its next lease.
//! Lines of output that wait are lost. What agents have to say to one another waits on.

use std::{
    collections::{BTreeSet, VecDeque},
    future::Future,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use mobula_net::quic::{self, StreamKind};
use mobula_proto::{
    Failure, HostId, NodeId,
    head::{Between, SEVERED_MAX},
    relay as wire_relay, wire,
};
use mobula_telemetry::task;
use parking_lot::{Mutex, RwLock};
use rkyv::util::AlignedVec;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    garbage::Garbage,
    peers::{CONNECT_TIMEOUT, Error, Line, Peers, RETRY_PAUSE},
    routes::{CONTROL_MAX, ROOM_UNITS, Undelivered, receivers, units, unreachable},
};
use crate::core::delivery::{Begin, Outgoing};

/// Most messages to another agent that are taken together, and as many again about garbage.
const BATCH_MAX: usize = 64;
/// How long it waits before it tries again to reach a node that was not reached in time.
const UNREACHED_PAUSE: Duration = Duration::from_secs(1);
/// Longest message that comes back on a stream. Unit: bytes.
const RECEIVED_BYTES_MAX: usize = 1024;

/// Pairs of hosts, the first of this node, that count each other as dead since messages between them were given up.
#[derive(Debug, Default)]
pub(super) struct Severed {
    /// Whether there are any.
    any: AtomicBool,
    /// At most as many as pairs of living hosts.
    pairs: RwLock<BTreeSet<(HostId, HostId)>>,
}

impl Severed {
    fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(super) fn has(&self, here: HostId, there: HostId) -> bool {
        self.any() && self.pairs.read().contains(&(here, there))
    }

    /// Whether it is news.
    pub(super) fn add(&self, here: HostId, there: HostId) -> bool {
        let mut pairs = self.pairs.write();
        self.any.store(true, Ordering::Release);
        pairs.insert((here, there))
    }

    /// Hosts are gone, and nothing comes from them or for them any more.
    pub(super) fn forget(&self, gone: impl Fn(HostId) -> bool) {
        if self.any() {
            let mut pairs = self.pairs.write();
            pairs.retain(|(here, there)| !gone(*here) && !gone(*there));
            self.any.store(!pairs.is_empty(), Ordering::Release);
        }
    }

    /// Whether some of a message may not be sent.
    fn concerns(&self, message: &Between) -> bool {
        let Between::Relay { from, batch, .. } = message else { return false };
        self.any() && receivers(batch).into_iter().any(|to| self.has(*from, to))
    }

    /// What of a message may be sent, and for whom the rest is.
    fn pass(&self, message: Between) -> (Option<Between>, BTreeSet<HostId>) {
        let mut dead = BTreeSet::new();
        if !self.concerns(&message) {
            return (Some(message), dead);
        }
        let Between::Relay { from, job, batch } = message else { return (None, dead) };
        let mut rest = Vec::new();
        let mut at = 0;
        for entry in wire_relay::entries(&batch).map_while(Result::ok) {
            if self.has(from, entry.to) {
                dead.insert(entry.to);
            } else {
                rest.extend_from_slice(&batch[at..at + entry.bytes]);
            }
            at += entry.bytes;
        }
        ((!rest.is_empty()).then_some(Between::Relay { from, job, batch: rest }), dead)
    }
}

/// What one outbox carries to another agent.
pub(super) struct ForPeer {
    pub(super) message: Between,
    /// Whether it counts among [`Stream::queued`].
    queued: bool,
    _room: Option<OwnedSemaphorePermit>,
}

impl ForPeer {
    fn unasked(message: Between) -> Self {
        Self { message, queued: false, _room: None }
    }
}

/// The stream to another agent, into which whoever has a message for it writes while none waits in the queue.
#[derive(Default)]
pub(super) struct Stream {
    /// Whoever has it numbers messages, and writes them in that order.
    sender: tokio::sync::Mutex<Option<quic::Sender>>,
    kept: Mutex<Outgoing>,
    /// Messages of the queue that are not numbered yet.
    queued: AtomicUsize,
    /// [`Sending`] has something to do beside the queue: there is room again for what is kept, the stream broke, or something
    /// lies in it that is not written.
    attend: Notify,
    /// The last stream on which nothing more comes back.
    broken: AtomicU64,
    /// The last stream on which something came back.
    answered: AtomicU64,
    severed: Arc<Severed>,
}

/// Has what is in the stream written by [`Sending`], if whoever wrote it does not come to its end.
struct Unwritten<'a>(Option<&'a Notify>);

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        if let Some(attend) = self.0 {
            attend.notify_one();
        }
    }
}

impl Stream {
    /// Writes a message past the queue; `false` where that is not possible. While the peer takes nothing, who writes
    /// waits, and everybody else's messages gather behind.
    async fn write(&self, message: &Between) -> bool {
        if self.queued.load(Ordering::Acquire) > 0 {
            return false;
        }
        let Ok(mut sender) = self.sender.try_lock() else { return false };
        if self.severed.concerns(message) {
            return false;
        }
        let (Some(stream), Ok(body)) = (&mut *sender, wire::encode(message)) else { return false };
        if !self.put(stream, body) {
            return false;
        }
        let mut unwritten = Unwritten(Some(&self.attend));
        match stream.flush().await {
            Ok(()) => unwritten.0 = None,
            // What is in it is kept, and goes with the next one.
            Err(_) => *sender = None,
        }
        true
    }

    /// Numbers a message and puts it into the stream, where there is room for it. At once, so that the two can never
    /// differ.
    fn put(&self, stream: &mut quic::Sender, body: AlignedVec) -> bool {
        let mut kept = self.kept.lock();
        let put = kept.has_room() && stream.buffer(&body).is_ok();
        if put {
            kept.push(body);
        }
        put
    }

    /// A further stream: says who writes, and writes all that the peer may not have.
    async fn begin(self: &Arc<Self>, peers: &Arc<Peers>, node: NodeId) -> Result<quic::Sender, Error> {
        let connection = peers.connection(node, Line::Relay).await?;
        let (mut sender, mut receiver) = timeout(CONNECT_TIMEOUT, connection.open(StreamKind::Relay))
            .await
            .map_err(|_| Error::Timeout(node))??;
        let (Begin { stream, first }, next) = {
            let mut kept = self.kept.lock();
            (kept.begin(), kept.next())
        };
        sender.buffer(&peers.hello()?)?;
        sender.buffer(&wire::encode(&Between::Begin { stream, first })?)?;
        receiver.limit(RECEIVED_BYTES_MAX);
        drop(task::spawn("peer-received", received(Arc::clone(self), stream, receiver)));
        let mut number = first;
        loop {
            {
                let kept = self.kept.lock();
                while number < next && !sender.is_full() {
                    sender.buffer(kept.frame(number))?;
                    number += 1;
                }
            }
            sender.flush().await?;
            if number >= next {
                return Ok(sender);
            }
        }
    }
}

/// Takes what comes back on a stream.
async fn received(stream: Arc<Stream>, number: u64, mut receiver: quic::Receiver) {
    let all = async {
        while let Some(bytes) = receiver.recv().await? {
            let Between::Received { next } = wire::decode(&bytes)? else { return Err(Error::NoBegin) };
            stream.answered.fetch_max(number, Ordering::AcqRel);
            let has_room = {
                let mut kept = stream.kept.lock();
                let had_room = kept.has_room();
                kept.received(next)?;
                !had_room && kept.has_room()
            };
            if has_room {
                stream.attend.notify_one();
            }
        }
        Ok(())
    };
    if let Err(error) = all.await {
        debug!(%error, "a stream to a node ended");
    }
    stream.broken.fetch_max(number, Ordering::AcqRel);
    stream.attend.notify_one();
}

/// The way to one other agent.
#[derive(Clone)]
pub(super) struct PeerOutbox {
    sender: mpsc::Sender<ForPeer>,
    stream: Arc<Stream>,
    garbage: Arc<Pending>,
    room: Arc<Semaphore>,
}

/// What there is for one other agent.
pub(super) struct PeerQueue {
    messages: mpsc::Receiver<ForPeer>,
    garbage: Arc<Pending>,
    stream: Arc<Stream>,
}

/// What may go at the other agent's node, and whoever waits to say so.
#[derive(Default)]
struct Pending {
    garbage: Mutex<Garbage>,
    more: Notify,
}

impl PeerQueue {
    /// The next ones, once there are any; none of them where something else is to be done. `None` at the end.
    pub(super) async fn next(&mut self) -> Option<VecDeque<ForPeer>> {
        let mut batch = VecDeque::new();
        loop {
            while batch.len() < BATCH_MAX
                && let Ok(next) = self.messages.try_recv()
            {
                batch.push_back(next);
            }
            {
                let mut garbage = self.garbage.garbage.lock();
                garbage.queue_moved(batch.len(), self.messages.len());
                let told = std::iter::from_fn(|| garbage.next()).take(BATCH_MAX);
                batch.extend(told.map(ForPeer::unasked));
            }
            if !batch.is_empty() {
                return Some(batch);
            }
            tokio::select! {
                first = self.messages.recv() => batch.push_back(first?),
                () = self.garbage.more.notified() => {}
                () = self.stream.attend.notified() => return Some(batch),
            }
        }
    }
}

impl PeerOutbox {
    pub(super) fn new(severed: Arc<Severed>) -> (Self, PeerQueue) {
        let (sender, messages) = mpsc::channel(CONTROL_MAX + ROOM_UNITS);
        let (stream, garbage) =
            (Arc::new(Stream { severed, ..Stream::default() }), Arc::<Pending>::default());
        let queue = PeerQueue { messages, garbage: Arc::clone(&garbage), stream: Arc::clone(&stream) };
        (Self { sender, stream, garbage, room: Arc::new(Semaphore::new(ROOM_UNITS)) }, queue)
    }

    /// Sends what the agent says itself.
    pub(super) fn tell(&self, message: Between) -> Result<(), Undelivered> {
        let message = match self.garbage.garbage.lock().add(message) {
            Ok(()) => {
                self.garbage.more.notify_one();
                return Ok(());
            }
            Err(message) => message,
        };
        self.stream.queued.fetch_add(1, Ordering::Relaxed);
        let item = ForPeer { message, queued: true, _room: None };
        self.sender.try_send(item).map_err(|error| {
            self.stream.queued.fetch_sub(1, Ordering::Release);
            match error {
                mpsc::error::TrySendError::Full(_) => Undelivered::Full,
                mpsc::error::TrySendError::Closed(_) => Undelivered::Closed,
            }
        })
    }

    /// Sends a message of hosts of about `bytes` once there is room; fails where the node is gone.
    pub(super) async fn relay(&self, message: Between, bytes: usize) -> Result<(), Undelivered> {
        if self.stream.write(&message).await {
            return Ok(());
        }
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(units(bytes)).await.map_err(|_| Undelivered::Closed)?;
        self.stream.queued.fetch_add(1, Ordering::Relaxed);
        let sent = self.sender.send(ForPeer { message, queued: true, _room: Some(room) }).await;
        sent.map_err(|_| Undelivered::Closed)
    }

    /// Wakes whoever waits for room: the node is gone.
    pub(super) fn close(&self) {
        self.room.close();
    }

    /// What is known of the stream, for tests that wait in vain.
    #[cfg(test)]
    pub(super) fn describe(&self) -> String {
        let Stream { sender, kept, queued, broken, answered, .. } = &*self.stream;
        let numbers = [broken, answered].map(|number| number.load(Ordering::Acquire));
        let kept = kept.try_lock().map(|kept| (kept.stream(), kept.next(), kept.is_empty(), kept.has_room()));
        let sender = sender.try_lock().map(|sender| sender.is_some());
        format!(
            "stream, next, empty, room {kept:?}; broken, answered {numbers:?}; queued {queued:?}; sender {sender:?}"
        )
    }
}

/// Sends what is queued for one node, until it is gone.
pub(super) fn send_all(
    peers: Weak<Peers>,
    node: NodeId,
    queue: PeerQueue,
) -> impl Future<Output = ()> + Send + 'static {
    let stream = Arc::clone(&queue.stream);
    Sending { peers, node, queue, stream, at_hand: VecDeque::new(), unreached: None }.run()
}

/// What stands behind the queue for one node.
struct Sending {
    peers: Weak<Peers>,
    node: NodeId,
    queue: PeerQueue,
    stream: Arc<Stream>,
    /// Taken out of the queue and not numbered.
    at_hand: VecDeque<ForPeer>,
    /// Since when nothing has come back.
    unreached: Option<Instant>,
}

/// There is no stream, or none any more.
struct Broken;

impl Sending {
    async fn run(mut self) {
        let stream = Arc::clone(&self.stream);
        loop {
            if self.at_hand.is_empty() {
                let Some(batch) = self.queue.next().await else { return };
                self.at_hand = batch;
            }
            let mut sender = stream.sender.lock().await;
            while let Err(Broken) = self.write(&mut sender).await {
                *sender = None;
                if self.at_hand.is_empty() && stream.kept.lock().is_empty() {
                    // The next message finds a way.
                    break;
                }
                if !self.reach(&mut sender).await {
                    return;
                }
            }
        }
    }

    fn is_broken(&self) -> bool {
        let last = self.stream.kept.lock().stream();
        self.stream.broken.load(Ordering::Acquire) >= last
    }

    /// Writes what is at hand.
    async fn write(&mut self, sender: &mut Option<quic::Sender>) -> Result<(), Broken> {
        let sender = sender.as_mut().filter(|_| !self.is_broken()).ok_or(Broken)?;
        while let Some(item) = self.at_hand.front() {
            if !self.stream.kept.lock().has_room() {
                sender.flush().await.map_err(|_| Broken)?;
                // Of what happens meanwhile, it is told.
                self.stream.attend.notified().await;
                if self.is_broken() {
                    return Err(Broken);
                }
                continue;
            }
            let queued = item.queued;
            let Some(ForPeer { message, .. }) = self.at_hand.pop_front() else { break };
            if queued {
                self.stream.queued.fetch_sub(1, Ordering::Release);
            }
            let Some(message) = self.pass(message) else { continue };
            // There is room, so it fails only for what is too long to be sent.
            let put = wire::encode(&message).map(|body| self.stream.put(sender, body));
            if !matches!(put, Ok(true)) {
                self.lost(&[message], "a message is too long");
            }
            if sender.is_full() {
                sender.flush().await.map_err(|_| Broken)?;
            }
        }
        sender.flush().await.map_err(|_| Broken)
    }

    /// What of a message may be sent. Whoever says the rest is told again that nobody hears it.
    fn pass(&self, message: Between) -> Option<Between> {
        let from = if let Between::Relay { from, .. } = &message { Some(*from) } else { None };
        let (message, dead) = self.stream.severed.pass(message);
        if let (Some(from), false, Some(peers)) = (from, dead.is_empty(), self.peers.upgrade()) {
            dead.into_iter().for_each(|to| peers.routes().still_severed(from, to));
        }
        message
    }

    /// Waits for a stream on which all is written that the peer may not have; `false` where the node is gone.
    async fn reach(&mut self, sender: &mut Option<quic::Sender>) -> bool {
        let last = self.stream.kept.lock().stream();
        if self.stream.answered.load(Ordering::Acquire) >= last {
            self.unreached = None;
        }
        loop {
            let since = *self.unreached.get_or_insert_with(Instant::now);
            let Some(peers) = self.peers.upgrade() else { return false };
            let error = match self.stream.begin(&peers, self.node).await {
                Ok(stream) => {
                    *sender = Some(stream);
                    return true;
                }
                Err(Error::Gone(_)) => return false,
                Err(error) => error,
            };
            drop(peers);
            if since.elapsed() < CONNECT_TIMEOUT {
                debug!(peer = %self.node, %error, "a stream to a node broke");
                sleep(RETRY_PAUSE).await;
                continue;
            }
            self.give_up(&error);
            self.unreached = None;
            sleep(UNREACHED_PAUSE).await;
        }
    }

    /// The node was not reached in time: messages between hosts wait no longer.
    fn give_up(&mut self, error: &Error) {
        let mut lost = Vec::new();
        self.stream.kept.lock().give_up(|frame| match wire::decode::<Between>(frame) {
            Ok(message @ (Between::Relay { .. } | Between::Output { .. })) => {
                lost.push(message);
                true
            }
            Ok(_) | Err(_) => false,
        });
        let mut all = std::mem::take(&mut self.at_hand);
        while let Some(item) = all.pop_front().or_else(|| self.queue.messages.try_recv().ok()) {
            let of_hosts = matches!(item.message, Between::Relay { .. } | Between::Output { .. });
            if !of_hosts && self.at_hand.len() < CONTROL_MAX {
                self.at_hand.push_back(item);
                continue;
            }
            if item.queued {
                self.stream.queued.fetch_sub(1, Ordering::Release);
            }
            lost.push(item.message);
        }
        if !lost.is_empty() {
            warn!(peer = %self.node, %error, messages = lost.len(), "messages to a node are given up");
            self.lost(&lost, &error.to_string());
        }
    }

    /// These are not sent: each pair of hosts between which there was one is severed.
    fn lost(&mut self, messages: &[Between], why: &str) {
        let Some(peers) = self.peers.upgrade() else { return };
        let mut pairs = BTreeSet::new();
        for message in messages {
            match message {
                Between::Relay { from, batch, .. } => {
                    pairs.extend(receivers(batch).into_iter().map(|to| (*from, to)));
                }
                Between::Output { .. } => {}
                _ => warn!(peer = %self.node, why, "what this agent has to say to another is lost"),
            }
        }
        for (from, to) in &pairs {
            peers.sever(*from, *to, unreached(self.node, *to, why));
        }
        let pairs: Vec<_> = pairs.into_iter().collect();
        for pairs in pairs.chunks(SEVERED_MAX) {
            self.at_hand.push_back(ForPeer::unasked(Between::Severed { pairs: pairs.to_vec() }));
        }
    }
}

/// What a host is told of another to which its messages were given up, or the other way round.
pub(super) fn unreached(node: NodeId, host: HostId, why: &str) -> Failure {
    unreachable(node, why).of(host.to_string())
}

#[cfg(test)]
mod tests {
    use mobula_proto::JobId;

    use super::*;

    fn host(node: u32, seq: u32) -> HostId {
        HostId { node: NodeId { number: node, incarnation: 1 }, seq }
    }

    fn batch(to: &[HostId]) -> Vec<u8> {
        let mut batch = Vec::new();
        to.iter().for_each(|to| wire_relay::push(&mut batch, *to, b"hello").unwrap());
        batch
    }

    #[test]
    fn nothing_passes_between_hosts_that_count_each_other_as_dead() {
        let (from, other, to, well) = (host(1, 1), host(1, 2), host(2, 1), host(2, 2));
        let severed = Severed::default();
        let pass = |from, to: &[HostId]| {
            let message = Between::Relay { from, job: JobId { number: 7 }, batch: batch(to) };
            let (passed, dead) = severed.pass(message);
            let batch = if let Some(Between::Relay { batch, .. }) = passed { batch } else { Vec::new() };
            let passed = wire_relay::entries(&batch).map(|entry| entry.unwrap().to).collect::<Vec<_>>();
            (passed, dead.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(pass(from, &[to, well]), (vec![to, well], vec![]));
        assert!(severed.add(from, to) && !severed.add(from, to));
        assert_eq!(pass(from, &[to, well, to, well]), (vec![well, well], vec![to]));
        assert_eq!(pass(from, &[to]), (vec![], vec![to]));
        assert_eq!(pass(other, &[to]), (vec![to], vec![]));
        severed.forget(|host| host == well);
        assert!(severed.has(from, to));
        severed.forget(|host| host == to);
        assert_eq!(pass(from, &[to]), (vec![to], vec![]));
    }
}
