//! The disk for spilled objects. What takes as long as the disk takes is done on threads for that, a bounded number at
//! once, so that a slow disk slows only what waits for it.
//!
//! A read of which nothing has come for `spill.stall` is given up: its readers fail, others take its turn, and the copy stays
//! where it is. The thread cannot be stopped, and may yet write what it read: so the memory is the thread's own, counts as
//! used, and is free again when it returns.

use std::{
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mobula_proto::{Failure, FailureKind, ObjectId, RegionId};
use mobula_store::{
    Error,
    heap::Block,
    region::Reader,
    spill::{self, Target},
};
use mobula_telemetry::task;
use tokio::{sync::Semaphore, time::timeout};
use tracing::{debug, warn};

use super::{
    actor::{Message, Post},
    memory::Wanted,
};
use crate::core::objects::{Slot, Spill};

/// Most objects that are read at once. A single one does not keep a disk busy; more cost a thread and a chunk
/// ([`spill::CHUNK_BYTES`]) each.
pub const READS_MAX: usize = 4;

/// Most threads that are held by reads which were given up and have not returned. Once there are so many, nothing more is
/// read until one returns.
pub const HUNG_MAX: usize = 64;

/// How often an object is read that cannot be read for a reason that may pass.
pub const READ_TRIES: u32 = 5;
/// Between the first two tries; twice as long between the next two, and so on.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// Most files that are deleted at once. A place that answers late must not take the threads that others are read with.
const DELETES_MAX: usize = 4;
/// Between the first two tries to delete a file; twice as long between the next two, and so on up to
/// [`DELETE_PAUSE_MAX`]: then the disk is full of what nobody needs for no longer than that once it answers again.
const DELETE_PAUSE: Duration = Duration::from_millis(100);
const DELETE_PAUSE_MAX: Duration = Duration::from_secs(30);

/// See the module's text.
pub(super) struct Disk {
    target: Option<Arc<dyn Target>>,
    reading: Arc<Semaphore>,
    /// Threads of reads, given up or not.
    threads: Arc<Semaphore>,
    /// Counts what comes from the disk, of any read.
    moved: Arc<AtomicU64>,
    stall: Duration,
    deleting: Arc<Semaphore>,
    post: Post,
}

/// What a slot's hash covers beside the bytes: whose they are.
fn name(object: ObjectId, attempt: u32) -> Vec<u8> {
    let ObjectId { owner, seq, key, index } = object;
    let mut name = Vec::with_capacity(40);
    for number in [owner.node.number, owner.node.incarnation, owner.seq, attempt] {
        name.extend_from_slice(&number.to_le_bytes());
    }
    for number in [seq, key, u64::from(index)] {
        name.extend_from_slice(&number.to_le_bytes());
    }
    name
}

impl Disk {
    /// Spills nothing where there is no target.
    pub(super) fn new(target: Option<Arc<dyn Target>>, stall: Duration, post: Post) -> Self {
        let most = |count| Arc::new(Semaphore::new(count));
        let (reading, threads) = (most(READS_MAX), most(READS_MAX + HUNG_MAX));
        Self { target, reading, threads, moved: Arc::default(), stall, deleting: most(DELETES_MAX), post }
    }

    /// Writes a file; [`Message::Spilled`] follows.
    pub(super) fn write(&self, spill: Spill, region_fd: impl Fn(RegionId) -> Option<Arc<OwnedFd>>) {
        let file = spill.file;
        let post = self.post.clone();
        let (Some(target), Ok(objects)) = (self.target.clone(), mapped(&spill, region_fd)) else {
            post.cast(Message::Spilled(
                file,
                Err("the memory that is to be spilled cannot be read".to_owned()),
            ));
            return;
        };
        drop(task::spawn("spill", async move {
            let written = tokio::task::spawn_blocking(move || spill::write(&*target, file, &objects));
            // Not even started where the runtime ends.
            let Ok(written) = written.await else { return };
            if let Err(error) = &written {
                warn!(%error, "objects are not spilled");
            }
            post.cast(Message::Spilled(file, written.map_err(|error| error.to_string())));
        }));
    }

    /// Reads a copy back; [`Message::Restored`] follows.
    pub(super) fn read(&self, wanted: Wanted, slot: Slot, mut block: Block) {
        let (target, post, stall) = (self.target.clone(), self.post.clone(), self.stall);
        let [reading, threads] = [&self.reading, &self.threads].map(Arc::clone);
        let all = Arc::clone(&self.moved);
        drop(task::spawn("restore", async move {
            let Wanted { key: (object, attempt, job), bytes, .. } = wanted;
            let Some(target) = target else { return };
            let (mut tries, mut pause) = (0, READ_PAUSE);
            let result = loop {
                let turn = async {
                    let turn = Arc::clone(&reading).acquire_owned().await.ok()?;
                    Some((turn, Arc::clone(&threads).acquire_owned().await.ok()?))
                };
                let Some(turn) = unless_stalled(&all, stall, turn).await else {
                    // Before that is said: then others may have its memory.
                    drop(block);
                    break Err(hung(stall));
                };
                let Some((turn, thread)) = turn else { return };
                let target = Arc::clone(&target);
                let own = Arc::new(AtomicU64::new(0));
                let moved = [Arc::clone(&own), Arc::clone(&all)];
                let read = tokio::task::spawn_blocking(move || {
                    let moved = || {
                        for count in &moved {
                            count.fetch_add(1, Relaxed);
                        }
                    };
                    let read = read_into(&*target, &mut block, bytes, slot, &name(object, attempt), &moved);
                    moved();
                    drop(thread);
                    (block, read)
                });
                let mut read = pin!(read);
                let Some(read) = unless_stalled(&own, stall, &mut read).await else {
                    warn!(%object, ?stall, "a spilled object is not waited for any more: the disk does not answer");
                    drop(turn);
                    post.cast(Message::Restored(wanted, Err(hung(stall))));
                    drop(read.await);
                    debug!(%object, "a read that was given up has returned");
                    return post.cast(Message::ReadLeft(job));
                };
                drop(turn);
                // Not even started where the runtime ends.
                let Ok((back, read)) = read else { return };
                tries += 1;
                let Err(error) = read else { break Ok(back) };
                warn!(%object, %error, tries, "a spilled object cannot be read");
                if error.is_loss() {
                    let text = format!("it cannot be read from disk: {error}");
                    break Err(Failure::new(FailureKind::ObjectLost, text));
                }
                if tries == READ_TRIES {
                    let text = format!(
                        "it lies on disk, and could not be read {READ_TRIES} times ({error}): it is kept, try again later"
                    );
                    break Err(Failure::new(FailureKind::Unreachable, text));
                }
                block = back;
                tokio::time::sleep(pause).await;
                pause *= 2;
            };
            post.cast(Message::Restored(wanted, result));
        }));
    }

    /// Removes a file, trying until that succeeds; [`Message::Deleted`] follows.
    pub(super) fn delete(&self, file: u64) {
        let Some(target) = &self.target else { return self.post.cast(Message::Deleted(file)) };
        // Whoever waits here must not keep the target: it goes with the agent, and all its files with it.
        let (target, post) = (Arc::downgrade(target), self.post.clone());
        let deleting = Arc::clone(&self.deleting);
        drop(task::spawn("delete", async move {
            let mut pause = DELETE_PAUSE;
            let mut warned = false;
            loop {
                let Ok(permit) = Arc::clone(&deleting).acquire_owned().await else { return };
                let Some(target) = target.upgrade() else { return };
                let deleted = tokio::task::spawn_blocking(move || {
                    let deleted = target.delete(file);
                    drop(permit);
                    deleted
                });
                // Not even started where the runtime ends.
                let Ok(deleted) = deleted.await else { return };
                let Err(error) = deleted else { break };
                if warned {
                    debug!(%error, file, "a file of spilled objects cannot be deleted yet");
                } else {
                    warn!(%error, file, "a file of spilled objects cannot be deleted, counts as used, and is tried again");
                    warned = true;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(DELETE_PAUSE_MAX);
            }
            post.cast(Message::Deleted(file));
        }));
    }
}

/// What the future gives; `None` where nothing has moved for `stall`, and it is not there yet.
async fn unless_stalled<T>(moved: &AtomicU64, stall: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    loop {
        let before = moved.load(Relaxed);
        match timeout(stall, &mut future).await {
            Ok(out) => return Some(out),
            Err(_) if moved.load(Relaxed) == before => return None,
            Err(_) => {}
        }
    }
}

fn hung(stall: Duration) -> Failure {
    let text = format!(
        "it lies on disk, of which nothing has come for {stall:?} (`spill_stall`): it is kept, try again later"
    );
    Failure::new(FailureKind::Unreachable, text)
}

fn read_into(
    target: &dyn Target,
    block: &mut Block,
    bytes: u64,
    slot: Slot,
    name: &[u8],
    moved: &dyn Fn(),
) -> Result<(), Error> {
    if let Some(warming) = block.warming() {
        warming.finish()?;
        moved();
    }
    let into = block.as_mut_slice();
    let len = usize::try_from(bytes).unwrap_or(usize::MAX).min(into.len());
    spill::read_watched(target, slot.file, slot.offset, name, &mut into[..len], moved)
}

/// The bytes of what is to be written, each with its name.
fn mapped(
    spill: &Spill,
    region_fd: impl Fn(RegionId) -> Option<Arc<OwnedFd>>,
) -> Result<Vec<(Vec<u8>, mobula_store::Bytes)>, Error> {
    let mut readers: std::collections::BTreeMap<RegionId, Arc<Reader>> = std::collections::BTreeMap::new();
    let mut objects = Vec::with_capacity(spill.items.len());
    for item in &spill.items {
        let place = item.place;
        let reader = match readers.get(&place.region) {
            Some(reader) => reader,
            None => {
                let os = |source| Error::Os { what: "looking into a region", source };
                let gone = || os(std::io::ErrorKind::NotFound.into());
                let fd = region_fd(place.region).ok_or_else(gone)?;
                let fd = fd.as_fd().try_clone_to_owned().map_err(os)?;
                readers.entry(place.region).or_insert(Reader::map_known(fd, place.region_bytes)?)
            }
        };
        objects.push((name(item.key.0, item.key.1), reader.bytes(place.offset, place.bytes, None)?));
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::mpsc, task::Poll};

    use mobula_proto::{HostId, JobId, NodeId};
    use mobula_store::{
        heap::Heap,
        region::Writer,
        spill::{BLOCK_BYTES, Sink, Source},
    };
    use parking_lot::{Condvar, Mutex};
    use ractor::{Actor, ActorProcessingErr, ActorRef};
    use tokio::sync::mpsc::{Receiver, Sender, channel};

    use super::{super::memory::From, *};

    #[tokio::test]
    async fn what_moves_is_waited_for_however_long_it_takes() {
        const STALL: Duration = Duration::from_millis(10);
        let moved = AtomicU64::new(0);
        // Nobody wakes it, so it is looked at again only when the time is over: it has moved each time.
        let slow = poll_fn(|_| match moved.fetch_add(1, Relaxed) {
            0..10 => Poll::Pending,
            _ => Poll::Ready(()),
        });
        assert_eq!(unless_stalled(&moved, STALL, slow).await, Some(()));
        assert_eq!(unless_stalled(&moved, STALL, std::future::pending::<()>()).await, None);
    }

    /// In the place of the agent's actor: hands on what it is told.
    struct Hears;

    impl Actor for Hears {
        type Msg = Message;
        type State = Sender<Message>;
        type Arguments = Sender<Message>;

        async fn pre_start(
            &self,
            _: ActorRef<Message>,
            to: Sender<Message>,
        ) -> Result<Sender<Message>, ActorProcessingErr> {
            Ok(to)
        }

        async fn handle(
            &self,
            _: ActorRef<Message>,
            message: Message,
            to: &mut Sender<Message>,
        ) -> Result<(), ActorProcessingErr> {
            to.send(message).await.ok();
            Ok(())
        }
    }

    /// A disk on which no file is opened before it is let go; then none has what was wanted.
    #[derive(Debug)]
    struct Shut {
        open: Mutex<bool>,
        changed: Condvar,
        /// Hears of each file that somebody begins to open.
        asked: mpsc::Sender<u64>,
    }

    impl Target for Shut {
        fn create(&self, _: u64, _: u64) -> Result<Box<dyn Sink>, Error> {
            unreachable!("nothing is written here")
        }

        fn open(&self, file: u64) -> Result<Box<dyn Source>, Error> {
            self.asked.send(file).ok();
            let mut open = self.open.lock();
            let late = self.changed.wait_while_for(&mut open, |open| !*open, SOON * 3);
            assert!(!late.timed_out(), "the disk was never let go");
            Err(Error::Damaged { file, offset: 0, bytes: 1 })
        }

        fn delete(&self, _: u64) -> Result<(), Error> {
            Ok(())
        }
    }

    /// Longest that anything here may take that does not hang.
    const SOON: Duration = Duration::from_secs(20);

    async fn heard(from: &mut Receiver<Message>) -> Message {
        timeout(SOON, from.recv()).await.unwrap().unwrap()
    }

    /// Threads that never return are no more than so many: whoever wants to read then is told at once, and the disk is not even
    /// asked. Each that returns makes room for one, and the agent looks who waits for the memory that it had.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_more_reads_hang_than_may_and_each_that_returns_is_told_of() {
        const STALL: Duration = Duration::from_millis(20);
        const MOST: usize = READS_MAX + HUNG_MAX;
        let (to, mut told) = channel(MOST);
        let (actor, ended) = Actor::spawn(None, Hears, to).await.unwrap();
        let (asked, asks) = mpsc::channel();
        let shut = Arc::new(Shut { open: Mutex::new(false), changed: Condvar::new(), asked });
        let disk = Disk::new(Some(shut.clone()), STALL, Post::new(actor.clone(), Arc::default()));
        let heap = Heap::new(Default::default());
        heap.add_region(1, Writer::create((MOST as u64 + 2) * BLOCK_BYTES).unwrap()).unwrap();
        let read = |file| {
            let owner = HostId { node: NodeId::EMBEDDED, seq: 1 };
            let key = (ObjectId { owner, seq: file, key: 0, index: 0 }, 1, JobId { number: 1 });
            let slot = Slot { file, offset: 0 };
            let wanted = Wanted { key, bytes: 1, from: From::Disk(slot), ahead: false };
            disk.read(wanted, slot, heap.allocate(1).unwrap());
        };
        let given_up = |message| match message {
            Message::Restored(_, Err(failure)) => {
                assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}")
            }
            _ => panic!("not given up"),
        };
        // As many at once as have a turn at once, so that each is asked for.
        for first in (0..MOST).step_by(READS_MAX) {
            (first..first + READS_MAX).for_each(|file| read(file as u64));
            for _ in 0..READS_MAX {
                given_up(heard(&mut told).await);
                tokio::task::block_in_place(|| asks.recv_timeout(SOON)).unwrap();
            }
        }
        read(MOST as u64);
        given_up(heard(&mut told).await);
        assert!(asks.try_recv().is_err(), "one more thread hangs");
        assert!(told.try_recv().is_err(), "none has returned");

        *shut.open.lock() = true;
        shut.changed.notify_all();
        for at in 0..MOST {
            let left = heard(&mut told).await;
            assert!(matches!(left, Message::ReadLeft(_)), "the agent is told of all, not of {at}");
        }
        read(MOST as u64);
        assert_eq!(
            tokio::task::block_in_place(|| asks.recv_timeout(SOON)),
            Ok(MOST as u64),
            "it is asked again"
        );
        actor.stop(None);
        ended.await.unwrap();
    }
}
