//! Copies on their way: the task that pulls one, and what is served of those that are here or on their way.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mobula_net::bulk::{self, Progress, Range};
use mobula_proto::{
    Failure, FailureKind, JobId, NodeId, ObjectId, RegionId,
    head::{Pull, SOURCES_MAX, Sources},
    peer::Copy,
    wire,
};
use mobula_store::{
    heap::{Block, Extent, Location, Warming},
    region::Reader,
};
use mobula_telemetry::task;
use tokio::sync::{oneshot, watch};
use tracing::debug;

use super::{
    actor::State,
    memory::Wanted,
    peers::{Line, Peers},
};
use crate::core::{
    objects::Place,
    transfer::{PART_READERS_MAX, Search, Serve, Wish},
};

/// The answer to another agent.
pub(super) type Answer = Result<bulk::Answer, String>;

/// What another agent asked for, from which byte on, and where it waits.
type Asked = (Wish, u64, oneshot::Sender<Answer>);

/// A copy that is coming in.
#[derive(Debug)]
struct Coming {
    progress: Arc<watch::Sender<Progress>>,
    place: Location,
    bytes: u64,
}

/// All copies that are coming in.
#[derive(Debug)]
pub(super) struct Transfers {
    /// How long a source may send nothing.
    stall: Duration,
    coming: BTreeMap<(ObjectId, u32), Coming>,
    /// Other agents that wait until a copy is read back from disk.
    waiting: BTreeMap<(ObjectId, u32), Vec<Asked>>,
}

impl Transfers {
    pub(super) fn new(stall: Duration) -> Self {
        Self { stall, coming: BTreeMap::new(), waiting: BTreeMap::new() }
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

fn note(nodes: Vec<NodeId>) -> Result<Vec<u8>, String> {
    let note = wire::encode(&Sources { nodes }).map_err(|error| error.to_string())?;
    Ok(note.to_vec())
}

fn whole(place: Place, fd: &OwnedFd, from: u64) -> Result<Range, String> {
    let fd = fd.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let reader = Reader::map(fd, place.region_bytes).map_err(|error| error.to_string())?;
    let bytes = reader.bytes(place.offset, place.bytes, None).map_err(|error| error.to_string())?;
    Ok(Range::whole(Bytes::from_owner(bytes), from))
}

impl State {
    pub(super) fn serve(&mut self, wish: Wish, from: u64, reply: oneshot::Sender<Answer>) {
        let wish = &wish;
        let answer = match self.core.serve(wish) {
            Serve::Later => {
                let waiting = self.transfers.waiting.entry((wish.object, wish.copy.attempt)).or_default();
                if waiting.len() < PART_READERS_MAX {
                    waiting.push((wish.clone(), from, reply));
                }
                return;
            }
            Serve::No(why) => {
                let _left = reply.send(Err(why));
                return;
            }
            Serve::Elsewhere(nodes) => {
                let _left = reply.send(note(nodes).map(bulk::Answer::Elsewhere));
                return;
            }
            Serve::Whole(place, fd, others) => {
                note(others).and_then(|note| Ok(bulk::Answer::Range(note, whole(place, &fd, from)?)))
            }
            Serve::Part => self.part(wish, from).map(|range| bulk::Answer::Range(Vec::new(), range)),
        };
        let failed = answer.is_err();
        if reply.send(answer).is_err() || failed {
            self.core.served(wish.object, wish.copy.attempt, wish.by, 0);
        }
    }

    /// Those that waited until a copy was read back can have it, or not.
    pub(super) fn serve_waiting(&mut self, object: ObjectId, attempt: u32, served: &Result<(), Failure>) {
        for (wish, from, reply) in self.transfers.waiting.remove(&(object, attempt)).unwrap_or_default() {
            match served {
                Ok(()) => self.serve(wish, from, reply),
                // It is there all the same: who still waits goes on waiting for room.
                Err(failure) if failure.kind == FailureKind::StoreFull => {
                    if !reply.is_closed() {
                        self.serve(wish, from, reply);
                    }
                }
                Err(failure) => {
                    let _left = reply.send(Err(failure.message.clone()));
                }
            }
        }
    }

    fn part(&self, wish: &Wish, from: u64) -> Result<Range, String> {
        let coming = self.transfers.coming.get(&(wish.object, wish.copy.attempt));
        let Coming { progress, place, bytes } = coming.ok_or("it has not begun to come in")?;
        let (location, len, ready) = (*place, *bytes, progress.subscribe());
        let region = RegionId { writer: self.core.node().agent(), seq: location.region_seq };
        let (fd, region_bytes) = self.core.objects.region(region).ok_or("its memory is gone")?;
        let fd = fd.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        let reader = Reader::map(fd, region_bytes).map_err(|error| error.to_string())?;
        let part = ready.clone();
        let slice = move |at: u64, len: usize| {
            let bytes = reader.bytes(location.offset + at, len as u64, None);
            let bytes = bytes.map_err(|error| error.to_string())?;
            Ok(Bytes::from_owner(Sent { bytes, _part: part.clone() }))
        };
        Ok(Range::growing(len, from, ready, slice))
    }

    pub(super) fn pull(&mut self, job: JobId, wanted: Wanted, node: NodeId, mut block: Block) {
        let Wanted { object, attempt, bytes, .. } = wanted;
        let copy = Copy { node, bytes, attempt };
        let (peers, post, me) = (Arc::clone(&self.peers), self.post.clone(), self.core.node());
        let stall = self.transfers.stall;
        let progress = Arc::new(watch::Sender::new(Progress::Have(0)));
        let coming = Coming { progress: Arc::clone(&progress), place: block.location(), bytes: copy.bytes };
        self.transfers.coming.insert((object, copy.attempt), coming);
        drop(task::spawn("pull", async move {
            let begun = Instant::now();
            // Page faults are taken ahead of what comes in, on another thread.
            let warming = block.warming();
            let cold = warming.as_ref().map_or(0, Warming::left);
            let warm = async {
                let Some(warming) = warming else { return Ok(()) };
                let warmed = tokio::task::spawn_blocking(move || warming.finish());
                // Not even started where the runtime ends: then so does the pull.
                warmed.await.unwrap_or(Ok(())).map_err(|error| Unpulled::lost(error.to_string()))
            };
            let pull = pull_into(&peers, stall, me, object, copy, &mut block, &progress);
            match futures_util::future::try_join(pull, warm).await {
                Ok(((), ())) => {
                    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    debug!(%object, bytes = copy.bytes, cold, ms, "pulled");
                    post.pulled(object, copy, job, Ok(block));
                }
                Err(Unpulled { kind, why }) => {
                    progress.send_replace(Progress::Failed);
                    let text = format!("it could not be copied from {}: {why}", copy.node);
                    post.pulled(object, copy, job, Err(Failure::new(kind, text)));
                    // Its memory is another's once nobody sends any of it.
                    progress.closed().await;
                    drop(block);
                }
            }
        }));
    }

    pub(super) fn pulled(
        &mut self,
        object: ObjectId,
        copy: Copy,
        job: JobId,
        result: Result<Block, Failure>,
    ) {
        let coming = self.transfers.coming.remove(&(object, copy.attempt));
        match result {
            Ok(block) => {
                let extent = block.seal();
                let place = extent.location();
                let region = RegionId { writer: self.core.node().agent(), seq: place.region_seq };
                if self.core.pulled(object, copy.attempt, Ok((region, place.offset, copy.bytes))) {
                    self.memory.keep(object, copy.attempt, job, extent);
                } else if let Some(coming) = coming {
                    drop(task::spawn("pull-leaves", leave(extent, coming)));
                }
                self.warm_ahead();
            }
            Err(failure) => {
                self.core.pulled(object, copy.attempt, Err(failure));
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
async fn leave(extent: Extent, coming: Coming) {
    coming.progress.closed().await;
    drop(extent);
}

/// What a pull hears, kept from one source to the next.
struct Filled<'a> {
    progress: &'a watch::Sender<Progress>,
    bytes: u64,
    others: Option<Vec<NodeId>>,
}

impl bulk::Sink for Filled<'_> {
    fn note(&mut self, note: &[u8]) {
        self.others = sources(note);
    }

    fn filled(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.progress.send_replace(Progress::Have(self.bytes));
    }
}

fn sources(note: &[u8]) -> Option<Vec<NodeId>> {
    // As long as the reader allows; and copied to where its parts are aligned.
    let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(note.len());
    aligned.extend_from_slice(note);
    let Sources { nodes } = wire::decode(&aligned).ok()?;
    (nodes.len() <= SOURCES_MAX).then_some(nodes)
}

/// Why a pull came to nothing.
struct Unpulled {
    kind: FailureKind,
    why: String,
}

impl Unpulled {
    fn lost(why: impl Into<String>) -> Self {
        Self { kind: FailureKind::ObjectLost, why: why.into() }
    }
}

async fn pull_into(
    peers: &Arc<Peers>,
    stall: Duration,
    me: NodeId,
    object: ObjectId,
    copy: Copy,
    block: &mut Block,
    progress: &watch::Sender<Progress>,
) -> Result<(), Unpulled> {
    let size = usize::try_from(copy.bytes).map_err(|error| Unpulled::lost(error.to_string()))?;
    let mut stalled = false;
    let mut search = Search::new(copy.node);
    let mut sink = Filled { progress, bytes: 0, others: None };
    loop {
        let wish = Pull::Object {
            object,
            copy,
            by: me,
            from: sink.bytes,
            tried: search.tried().to_vec(),
            whole: search.whole(),
        };
        let request = wire::encode(&wish).map_err(|error| Unpulled::lost(error.to_string()))?;
        // Never more than `size`.
        let dest = block
            .as_mut_slice()
            .get_mut(sink.bytes as usize..size)
            .ok_or_else(|| Unpulled::lost("its memory is too small"))?;
        let connection = match peers.connection(search.at(), Line::Bulk).await {
            Ok(connection) => connection,
            Err(error) => {
                debug!(%object, source = %search.at(), %error, "a source is not reached");
                if search.failed(false) {
                    continue;
                }
                return Err(Unpulled::lost(error.to_string()));
            }
        };
        let result = bulk::pull(&connection, &request, dest, stall, &mut sink).await;
        if let Some(others) = sink.others.take() {
            search.others(others);
        }
        let (goes_on, why) = match result {
            Ok(()) => return Ok(()),
            Err(bulk::Error::Elsewhere { note }) => {
                let nodes = sources(&note).unwrap_or_default();
                (search.elsewhere(nodes), "nobody is named who has it".to_owned())
            }
            Err(error) => {
                debug!(%object, source = %search.at(), have = sink.bytes, %error, "a source is left");
                if search.at() == copy.node {
                    stalled = matches!(error, bulk::Error::Stalled { .. });
                }
                (search.failed(error.retryable()), error.to_string())
            }
        };
        if !goes_on && stalled {
            // A node that is gone breaks the connection; one that lives and sends nothing has the object on disk.
            let why = format!("{why}; it may lack room to read it back from disk: try again later");
            return Err(Unpulled { kind: FailureKind::StoreFull, why });
        }
        if !goes_on {
            return Err(Unpulled::lost(why));
        }
    }
}
