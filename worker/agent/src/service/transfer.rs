//! Copies on their way: the task that pulls one, and what is served of those that are here or on their way.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use mobula_net::bulk::{self, Progress, Range};
use mobula_proto::{Failure, FailureKind, NodeId, ObjectId, RegionId, head::Sources, peer::Copy, wire};
use mobula_store::{
    heap::{Block, Extent, Location, Warming},
    region::Reader,
};
use mobula_telemetry::task;
use tokio::sync::{Notify, oneshot, watch};
use tracing::debug;

use super::{
    actor::{Message, Post, State},
    pulling::{Pulling, Unpulled},
};
use crate::core::{
    objects::{Key, Place},
    transfer::{PART_READERS_MAX, Pulls, Serve, Wish},
};

/// The answer to another agent.
pub(super) type Answered = Result<Answer, bulk::Refusal>;

/// What another agent gets.
pub(super) enum Answer {
    /// The range, behind a note. What it lies in stays in place for as long as it is lent.
    Range(Vec<u8>, Range, Lent),
    /// It is to be had elsewhere, as this note says.
    Elsewhere(Vec<u8>),
    /// It is read back from disk first, or its writer's word of it comes: the answer follows.
    Later(oneshot::Receiver<Answered>),
}

/// A copy that is being sent to a node; that it was is said when this is dropped, wherever that is.
pub(super) struct Lent {
    key: Key,
    by: NodeId,
    post: Post,
    /// How many bytes have left.
    pub(super) sent: u64,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.post.cast(Message::Served(self.key, self.by, self.sent));
    }
}

/// What another agent asked for, from which byte on, and where it waits.
type Asked = (Wish, u64, oneshot::Sender<Answered>);

/// A copy that came in, and the refs inside it, where they are known.
pub(super) type Pulled = (Block, Option<Vec<ObjectId>>);

/// A copy that is coming in.
#[derive(Debug)]
struct Coming {
    progress: Arc<watch::Sender<Progress>>,
    place: Location,
    bytes: u64,
    /// Ends its pull.
    end: Arc<Notify>,
}

/// All copies that are coming in.
pub(super) struct Transfers {
    pulls: Pulls,
    coming: BTreeMap<Key, Coming>,
    /// Other agents that wait until a copy is read back from disk.
    waiting: BTreeMap<Key, Vec<Asked>>,
}

impl Transfers {
    pub(super) fn new(pulls: Pulls) -> Self {
        Self { pulls, coming: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    fn wait(&mut self, key: Key, wish: Wish, from: u64) -> Answered {
        let waiting = self.waiting.entry(key).or_default();
        waiting.retain(|(_, _, reply)| !reply.is_closed());
        if waiting.len() >= PART_READERS_MAX {
            return Err(busy(format!("{PART_READERS_MAX} nodes wait for it already, the most that may")));
        }
        let (reply, answer) = oneshot::channel();
        waiting.push((wish, from, reply));
        Ok(Answer::Later(answer))
    }
}

/// Keeps memory in place for as long as a slice of it is being sent.
struct Sent {
    bytes: mobula_store::Bytes,
    /// Whoever frees the memory of a pull that failed waits until nobody has this.
    _part: watch::Receiver<Progress>,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn busy(error: impl std::fmt::Display) -> bulk::Refusal {
    bulk::Refusal::Busy(error.to_string())
}

fn note(nodes: Vec<NodeId>, refs: Option<&[ObjectId]>) -> Result<Vec<u8>, bulk::Refusal> {
    let note = wire::encode(&Sources { nodes, refs: refs.map(<[_]>::to_vec) }).map_err(busy)?;
    Ok(note.to_vec())
}

fn whole(place: Place, fd: &OwnedFd, from: u64) -> Result<Range, bulk::Refusal> {
    let fd = fd.as_fd().try_clone_to_owned().map_err(busy)?;
    let reader = Reader::map_known(fd, place.region_bytes).map_err(busy)?;
    let bytes = reader.bytes(place.offset, place.bytes, None).map_err(busy)?;
    Ok(Range::whole(Bytes::from_owner(bytes), from))
}

impl State {
    pub(super) fn serve(&mut self, wish: Wish, from: u64) -> Answered {
        let by = wish.by;
        let (key, range) = match self.core.serve(&wish, Instant::now()) {
            Serve::Later(key) => return self.transfers.wait(key, wish, from),
            Serve::No(why) => return Err(bulk::Refusal::Absent(why)),
            Serve::NotNow(why) => return Err(busy(why)),
            Serve::Elsewhere(nodes) => {
                let key = (wish.object, wish.copy.attempt, wish.copy.job);
                return note(nodes, self.core.objects.refs_for_readers(key)).map(Answer::Elsewhere);
            }
            Serve::Whole(key, place, fd, others) => {
                let note = note(others, self.core.objects.refs_for_readers(key));
                (key, note.and_then(|note| Ok((note, whole(place, &fd, from)?))))
            }
            Serve::Part(key) => (key, self.part(key, from).map(|range| (Vec::new(), range))),
        };
        let lent = Lent { key, by, post: self.post.clone(), sent: 0 };
        range.map(|(note, range)| Answer::Range(note, range, lent))
    }

    /// Those that waited until a copy was read back can have it, or not.
    pub(super) fn serve_waiting(&mut self, key: Key, served: &Result<(), Failure>) {
        for (wish, from, reply) in self.transfers.waiting.remove(&key).unwrap_or_default() {
            let answer = match served {
                Ok(()) => self.serve(wish, from),
                Err(failure) => {
                    let why = failure.message.clone();
                    let lost = failure.kind == FailureKind::ObjectLost;
                    Err(if lost { bulk::Refusal::Absent(why) } else { busy(why) })
                }
            };
            // Who asked may have left: what it was lent comes back.
            let _left = reply.send(answer);
        }
    }

    fn part(&self, key: Key, from: u64) -> Result<Range, bulk::Refusal> {
        let coming = self.transfers.coming.get(&key);
        let Coming { progress, place, bytes, .. } =
            coming.ok_or_else(|| busy("it has not begun to come in"))?;
        let (location, len, ready) = (*place, *bytes, progress.subscribe());
        let region = RegionId { writer: self.core.node().agent(), seq: location.region_seq };
        let (fd, region_bytes) =
            self.core.objects.region(region).ok_or_else(|| busy("its memory is gone"))?;
        let fd = fd.as_fd().try_clone_to_owned().map_err(busy)?;
        let reader = Reader::map_known(fd, region_bytes).map_err(busy)?;
        let part = ready.clone();
        let slice = move |at: u64, len: usize| {
            let bytes = reader.bytes(location.offset + at, len as u64, None);
            let bytes = bytes.map_err(|error| error.to_string())?;
            Ok(Bytes::from_owner(Sent { bytes, _part: part.clone() }))
        };
        Ok(Range::growing(len, from, ready, slice))
    }

    pub(super) fn pull(&mut self, key: Key, copy: Copy, mut block: Block) {
        let object = key.0;
        let (peers, post, me) = (Arc::clone(&self.peers), self.post.clone(), self.core.node());
        let pulls = self.transfers.pulls;
        // One of its own that it lost.
        let lost = copy.node == me && copy.job == key.2;
        let among = lost.then(|| self.core.objects.lies_with(key).unwrap_or_default().0);
        let progress = Arc::new(watch::Sender::new(Progress::Have(0)));
        let (end, place) = (Arc::new(Notify::new()), block.location());
        let coming =
            Coming { progress: Arc::clone(&progress), place, bytes: copy.bytes, end: Arc::clone(&end) };
        self.transfers.coming.insert(key, coming);
        let region = RegionId { writer: me.agent(), seq: place.region_seq };
        self.core.pull_began(key, region);
        drop(task::spawn("pull", async move {
            let begun = Instant::now();
            // Where they have to be, page faults are taken ahead of what comes in, on another thread.
            let by_file = block.fill_by_file();
            let warming = if matches!(by_file, Ok(true)) { None } else { block.warming() };
            let cold = warming.as_ref().map_or(0, Warming::left);
            let mut warmed = warming.map(|warming| tokio::task::spawn_blocking(move || warming.finish()));
            let warm = async {
                let Some(warmed) = &mut warmed else { return Ok(()) };
                // Not even started where the runtime ends: then so does the pull.
                warmed.await.unwrap_or(Ok(())).map_err(|error| Unpulled::no_memory(error.to_string()))
            };
            let pulling = Pulling { peers: &peers, post: &post, pulls, me, key, copy, among };
            let pull = pulling.run(&mut block, &progress);
            let pulled = tokio::select! {
                pulled = futures_util::future::try_join(pull, warm) => pulled,
                () = end.notified() => Err(Unpulled::unwanted()),
            };
            match pulled {
                Ok((refs, ())) => {
                    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    debug!(%object, bytes = copy.bytes, cold, ms, "pulled");
                    post.pulled(key, copy, Ok((block, refs)));
                }
                Err(Unpulled { kind, why }) => {
                    progress.send_replace(Progress::Failed);
                    let text = format!("it could not be copied from {}: {why}", copy.node);
                    post.pulled(key, copy, Err(Failure::new(kind, text)));
                    // Its memory is another's once nobody sends any of it, or takes its page faults.
                    progress.closed().await;
                    if let Some(warmed) = warmed.filter(|warmed| !warmed.is_finished()) {
                        let _left = warmed.await;
                    }
                    block.abandon();
                    post.cast(Message::PullLeft(key.2, region, copy.bytes));
                }
            }
        }));
    }

    /// Nobody wants what is being pulled any more.
    pub(super) fn end_pull(&mut self, key: Key) {
        if let Some(coming) = self.transfers.coming.get(&key) {
            coming.end.notify_one();
        } else if let Some(steps) = self.memory.unwant(key) {
            let Unpulled { kind, why } = Unpulled::unwanted();
            self.core.pulled(key, Err(Failure::new(kind, why)));
            self.steps(steps);
        }
    }

    pub(super) fn pulled(&mut self, key: Key, copy: Copy, result: Result<Pulled, Failure>) {
        let coming = self.transfers.coming.remove(&key);
        match result {
            Ok((block, refs)) => {
                if let Some(refs) = refs {
                    self.core.pull_names(key, refs);
                }
                let extent = block.seal();
                let place = extent.location();
                let region = RegionId { writer: self.core.node().agent(), seq: place.region_seq };
                if self.core.pulled(key, Ok((region, place.offset, copy.bytes))) {
                    self.memory.keep(key, extent);
                } else if let Some(coming) = coming {
                    drop(task::spawn("pull-leaves", leave(key, extent, coming, region, self.post.clone())));
                }
                self.warm_ahead();
            }
            Err(failure) => {
                self.core.pulled(key, Err(failure));
            }
        }
    }

    /// Sets memory aside for what is pulled next.
    fn warm_ahead(&mut self) {
        let Some(bytes) = self.memory.spare_wanted(Instant::now()) else { return };
        let agent = self.core.node().agent();
        debug!(bytes, "memory is warmed ahead for pulls");
        if self.core.objects.reserve(agent, bytes)
            && let Err(failure) = self.memory.make_spare(bytes)
        {
            debug!(%failure, "no memory is set aside for pulls");
            self.core.spare_dropped(bytes);
        }
    }
}

/// A copy that nobody wants any more goes once nobody sends any of it.
async fn leave(key: Key, extent: Extent, coming: Coming, region: RegionId, post: Post) {
    coming.progress.closed().await;
    drop(extent);
    post.cast(Message::PullLeft(key.2, region, coming.bytes));
}
