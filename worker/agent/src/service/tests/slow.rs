//! Disks that are slow, or do not answer at all.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Instant,
};

use mobula_net::{
    identity::{Authority, Role as Part},
    quic::Options as Network,
};
use mobula_proto::{FailureKind, NodeId, ObjectId, peer::Copy};
use mobula_store::{
    Error as StoreError,
    heap::{Extent, Heap},
    region::{Reader, Writer},
    spill::{Folder, Sink, Source, Target},
};
use parking_lot::{Condvar, Mutex};

use super::{
    super::{
        disk::READS_MAX,
        peers::{SERVED_MAX, WAITING_MAX},
    },
    one::{One, one_with},
    two::accept_agent,
    *,
};

/// A disk that does nothing while it is shut.
#[derive(Clone, Debug)]
struct Gated {
    folder: Arc<Folder>,
    shut: Arc<(Mutex<bool>, Condvar)>,
    /// It is shut for so many more only.
    most: Arc<AtomicU32>,
    /// So many files cannot be opened that are there.
    trouble: Arc<AtomicU32>,
    /// So many files cannot be deleted.
    stuck: Arc<AtomicU32>,
    /// Hears of each file that is to be written or read, or could not be deleted.
    asked: mpsc::UnboundedSender<u64>,
}

impl Gated {
    fn new(path: PathBuf) -> (Self, mpsc::UnboundedReceiver<u64>) {
        let (asked, hears) = mpsc::unbounded_channel();
        let folder = Arc::new(Folder::new(path).unwrap());
        let most = Arc::new(AtomicU32::new(u32::MAX));
        let [trouble, stuck] = [Arc::default(), Arc::default()];
        (Self { folder, shut: Arc::default(), most, trouble, stuck, asked }, hears)
    }

    fn shut(&self, shut: bool) {
        *self.shut.0.lock() = shut;
        self.shut.1.notify_all();
    }

    fn pass(&self, file: u64) {
        self.asked.send(file).ok();
        if self.most.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err() {
            return;
        }
        let mut shut = self.shut.0.lock();
        let late = self.shut.1.wait_while_for(&mut shut, |shut| *shut, SOON * 3);
        assert!(!late.timed_out(), "the disk was never opened");
    }
}

impl Target for Gated {
    fn create(&self, file: u64, bytes: u64) -> Result<Box<dyn Sink>, StoreError> {
        self.pass(file);
        self.folder.create(file, bytes)
    }

    fn open(&self, file: u64) -> Result<Box<dyn Source>, StoreError> {
        self.pass(file);
        if self.trouble.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            let detail = "503 Slow Down".to_owned();
            return Err(StoreError::Target { what: "reading", target: "a disk".to_owned(), detail });
        }
        self.folder.open(file)
    }

    fn delete(&self, file: u64) -> Result<(), StoreError> {
        if self.stuck.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            self.asked.send(file).ok();
            let detail = "503 Slow Down".to_owned();
            return Err(StoreError::Target { what: "removing", target: "a disk".to_owned(), detail });
        }
        self.folder.delete(file)
    }
}

const BYTES: u64 = MIB / 2;

/// An object in a region of 8 MiB, which fills a store.
fn made() -> (OwnedFd, Heap, Extent) {
    let (fd, heap, mut extents) = made_in(8 * MIB, 1, BYTES);
    (fd, heap, extents.remove(0))
}

/// So many objects of so many bytes in a region.
fn made_in(region_bytes: u64, count: usize, bytes: u64) -> (OwnedFd, Heap, Vec<Extent>) {
    let heap = Heap::new(Default::default());
    let writer = Writer::create(region_bytes).unwrap();
    let fd = writer.share().unwrap();
    heap.add_region(1, writer).unwrap();
    let extents = (0..count).map(|_| {
        let mut block = heap.allocate(bytes).unwrap();
        block.as_mut_slice().iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 249) as u8);
        block.seal()
    });
    let extents = extents.collect();
    (fd, heap, extents)
}

/// Fills an agent's store from the driver that owns the object; it lies there for as long as the rest lives.
fn fill(link: &LocalLink, driver: HostId) -> (ObjectId, Heap, Extent) {
    link.send(ToAgent::RegionWanted { request: 1, bytes: 8 * MIB, wait_ms: 0 }, vec![]).unwrap();
    assert!(matches!(local(link).0, ToHost::RegionGranted { request: 1 }));
    let (fd, heap, extent) = made();
    link.send(ToAgent::RegionAdded { request: 1, seq: 1, bytes: 8 * MIB }, vec![fd]).unwrap();
    let (object, offset) = (object(driver, 1), extent.location().offset);
    link.send(ToAgent::Sealed { object, attempt: 1, region: 1, offset, bytes: BYTES, site: 0 }, vec![])
        .unwrap();
    (object, heap, extent)
}

/// An agent that spills to this disk, the link of its driver, and an object of that which fills the store.
async fn full(disk: &Gated) -> (One, LocalLink, ObjectId, Copy, (Heap, Extent)) {
    full_with(disk, |_| {}).await
}

async fn full_with(
    disk: &Gated,
    set: impl FnOnce(&mut Options),
) -> (One, LocalLink, ObjectId, Copy, (Heap, Extent)) {
    let target = disk.clone();
    let mut one = one_with(|options| {
        options.spill.above = 1.0;
        options.spill_to = SpillTo::Target(Arc::new(target));
        set(options);
    })
    .await;
    let (link, job) = one.driver().await;
    let (object, heap, extent) = fill(&link, job.driver);
    let copy = Copy { node: NodeId::EMBEDDED, bytes: BYTES, attempt: 1, job: job.job };
    (one, link, object, copy, (heap, extent))
}

fn is_right(bytes: &[u8]) -> bool {
    bytes.len() as u64 == BYTES && bytes.iter().enumerate().all(|(i, byte)| *byte == (i % 249) as u8)
}

/// Opens an object through its agent: the size of its region, and where it lies there.
fn opened(link: &LocalLink, object: ObjectId, copy: Copy) -> Result<((u64, u64), Vec<OwnedFd>), Failure> {
    link.send(ToAgent::Open { ahead: false, request: 9, object, copy }, vec![]).unwrap();
    match local(link) {
        (ToHost::Opened { request: 9, region_bytes, offset, bytes: BYTES, .. }, fds) => {
            Ok(((region_bytes, offset), fds))
        }
        (ToHost::OpenFailed { request: 9, failure }, _) => Err(failure),
        other => panic!("not opened: {other:?}"),
    }
}

/// Reads an object through its agent.
fn open(link: &LocalLink, object: ObjectId, copy: Copy) -> Result<(), Failure> {
    let ((region_bytes, offset), mut fds) = opened(link, object, copy)?;
    let read = Reader::map(fds.remove(0), region_bytes).unwrap().bytes(offset, BYTES, None).unwrap();
    assert!(is_right(&read), "other bytes");
    link.send(ToAgent::Unpin { object }, vec![]).unwrap();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_holds_writers_up_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (disk, mut asked) = Gated::new(home.path().join("disk"));
    disk.shut(true);
    let (one, link, object, copy, _lies_there) = full(&disk).await;

    // A writer waits for the disk, past what it waits for room.
    link.send(ToAgent::RegionWanted { request: 2, bytes: 4 * MIB, wait_ms: 20 }, vec![]).unwrap();
    assert_eq!(soon(asked.recv()).await, Some(1));
    let heard = tokio::task::block_in_place(|| {
        link.receiver.recv_timeout(Duration::from_millis(300)).map(|heard| heard.0)
    });
    assert!(heard.is_err(), "it does not wait: {heard:?}");
    assert_eq!(open(&link, object, copy), Ok(()), "it is in memory meanwhile");
    disk.shut(false);
    let (ToHost::Reclaim { objects, .. }, _) = local(&link) else { panic!("not asked for its region") };
    assert_eq!(objects, [(object, 1)]);
    link.send(ToAgent::RegionRemoved { seq: 1 }, vec![]).unwrap();
    // It is asked for the region, too.
    assert!(matches!(local(&link).0, ToHost::Reclaim { .. }));
    assert!(matches!(local(&link).0, ToHost::RegionGranted { request: 2 }));
    assert_eq!(open(&link, object, copy), Ok(()), "it comes back from disk");
    let usage = one.handle.usage().await;
    assert_eq!((usage.spilled, usage.restored), (1, 1));
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
}

/// An agent and its driver, whose one object lies on this disk alone.
async fn spilled(
    disk: &Gated,
    asked: &mut mpsc::UnboundedReceiver<u64>,
) -> (One, LocalLink, ObjectId, Copy, (Heap, Extent)) {
    spilled_with(disk, asked, |_| {}).await
}

async fn spilled_with(
    disk: &Gated,
    asked: &mut mpsc::UnboundedReceiver<u64>,
    set: impl FnOnce(&mut Options),
) -> (One, LocalLink, ObjectId, Copy, (Heap, Extent)) {
    let full = full_with(disk, set).await;
    let link = &full.1;
    link.send(ToAgent::RegionWanted { request: 2, bytes: 4 * MIB, wait_ms: 5000 }, vec![]).unwrap();
    assert_eq!(soon(asked.recv()).await, Some(1));
    assert!(matches!(local(link).0, ToHost::Reclaim { .. }));
    link.send(ToAgent::RegionRemoved { seq: 1 }, vec![]).unwrap();
    assert!(matches!(local(link).0, ToHost::Reclaim { .. }));
    assert!(matches!(local(link).0, ToHost::RegionGranted { request: 2 }));
    full
}

/// What the disk does not let go of counts as used, and is tried again for as long as that takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_deleted_counts_until_it_is() {
    let home = tempfile::tempdir().unwrap();
    let (disk, mut asked) = Gated::new(home.path().join("disk"));
    let (one, link, object, copy, _lies_there) = spilled(&disk, &mut asked).await;
    let there = one.handle.usage().await.spill_used_bytes;
    assert!(there > BYTES);
    disk.stuck.store(u32::MAX, Relaxed);
    link.send(ToAgent::Free { object, copy }, vec![]).unwrap();
    for _ in 0..3 {
        assert_eq!(soon(asked.recv()).await, Some(1), "it is tried again");
        let usage = one.handle.usage().await;
        assert_eq!((usage.objects, usage.spill_used_bytes), (0, there), "it is still there");
    }
    disk.stuck.store(0, Relaxed);
    // Each look goes through the agent's queue, in which the word of the deletion stands.
    soon(async { while one.handle.usage().await.spill_used_bytes > 0 {} }).await;
    assert_eq!(std::fs::read_dir(home.path().join("disk")).unwrap().count(), 0);
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
}

/// What cannot be deleted holds nobody up at the end, and the place with all that lies there goes with the agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_deleted_goes_with_its_agent() {
    let home = tempfile::tempdir().unwrap();
    let (disk, mut asked) = Gated::new(home.path().join("disk"));
    let (one, link, object, copy, _lies_there) = spilled(&disk, &mut asked).await;
    disk.stuck.store(u32::MAX, Relaxed);
    link.send(ToAgent::Free { object, copy }, vec![]).unwrap();
    // From the third on the pauses are long enough to end in one.
    for _ in 0..3 {
        assert_eq!(soon(asked.recv()).await, Some(1));
    }
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
    drop(disk);
    // The last hears of it when nobody has the disk any more: neither the agent, nor who waits to try again.
    soon(async { while asked.recv().await.is_some() {} }).await;
    assert!(!home.path().join("disk").exists());
}

/// A place that cannot be reached for a while says nothing about what lies there: that is kept, whoever asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cannot_be_reached_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (disk, mut asked) = Gated::new(home.path().join("disk"));
    let (one, link, object, copy, _lies_there) = spilled(&disk, &mut asked).await;
    disk.trouble.store(u32::MAX, Relaxed);
    let failure = open(&link, object, copy).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    assert!(
        failure.to_string().contains("503") && failure.to_string().contains("try again later"),
        "{failure}"
    );
    assert_eq!(one.handle.usage().await.objects, 1, "it is kept");
    // What passes while it is read is not even seen.
    disk.trouble.store(2, Relaxed);
    assert_eq!(open(&link, object, copy), Ok(()));
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_is_a_typed_error_at_its_limit() {
    let home = tempfile::tempdir().unwrap();
    let (disk, mut asked) = Gated::new(home.path().join("disk"));
    disk.shut(true);
    let target = disk.clone();
    let mut one = one_with(|options| {
        options.spill.above = 1.0;
        options.spill.stall = Duration::from_millis(200);
        options.spill_to = SpillTo::Target(Arc::new(target));
    })
    .await;
    let (link, job) = one.driver().await;
    let (object, _heap, _extent) = fill(&link, job.driver);
    let began = Instant::now();
    link.send(ToAgent::RegionWanted { request: 2, bytes: 4 * MIB, wait_ms: 20 }, vec![]).unwrap();
    assert_eq!(soon(asked.recv()).await, Some(1));
    let (ToHost::RegionRefused { request: 2, failure }, _) = local(&link) else { panic!("not refused") };
    assert_eq!(failure.kind, FailureKind::StoreFull, "{failure}");
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    let copy = Copy { node: NodeId::EMBEDDED, bytes: BYTES, attempt: 1, job: job.job };
    assert_eq!(open(&link, object, copy), Ok(()), "nothing is lost");
    disk.shut(false);
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
}

/// A read of which nothing comes ends for whoever waits for it, and for all others, whatever becomes of its thread; what that
/// writes when it goes on after all is in memory of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_hangs_is_given_up_and_holds_up_no_other() {
    const STALL: Duration = Duration::from_millis(200);
    const HUNG: u32 = READS_MAX as u32 + 1;
    let home = tempfile::tempdir().unwrap();
    let (disk, mut asked) = Gated::new(home.path().join("disk"));
    let (one, link, object, copy, _lies_there) =
        spilled_with(&disk, &mut asked, |options| options.spill.stall = STALL).await;
    disk.most.store(HUNG, Relaxed);
    disk.shut(true);
    for _ in 0..HUNG {
        let began = Instant::now();
        let failure = tokio::task::block_in_place(|| open(&link, object, copy)).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
        assert!(failure.to_string().contains("try again later"), "{failure}");
        assert!(began.elapsed() >= STALL, "{:?}", began.elapsed());
        assert_eq!(soon(asked.recv()).await, Some(1), "it is asked for by each");
        assert_eq!(one.handle.usage().await.objects, 1, "it is kept");
    }
    // All of them still hang.
    let (place, mut fds) = opened(&link, object, copy).unwrap();
    let read = Reader::map(fds.remove(0), place.0).unwrap().bytes(place.1, BYTES, None).unwrap();
    assert!(is_right(&read), "other bytes");
    assert_eq!(one.handle.usage().await.store_used_bytes, 8 * MIB, "their memory is theirs");
    disk.shut(false);
    link.send(ToAgent::Unpin { object }, vec![]).unwrap();
    link.send(ToAgent::Free { object, copy }, vec![]).unwrap();
    // There is room once they have returned.
    link.send(ToAgent::RegionWanted { request: 3, bytes: 2 * MIB, wait_ms: 10_000 }, vec![]).unwrap();
    while !matches!(local(&link).0, ToHost::RegionGranted { request: 3 }) {}
    assert!(is_right(&read), "other bytes");
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
}

/// An object of another node that cannot be read back there now is no lost one: whoever pulls it hears that a later try
/// may help, and it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_from_a_disk_that_hangs_can_be_tried_again() {
    const STALL: Duration = Duration::from_millis(500);
    pull_from(STALL, async |pulling| {
        let (link, object, copy) = (pulling.link(), pulling.object, pulling.copy);
        let began = Instant::now();
        let failure = open(link, object, copy).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
        let text = failure.to_string();
        assert!(text.contains("try again later") && text.contains("spill_stall"), "{failure}");
        assert!(began.elapsed() >= STALL, "{:?}", began.elapsed());
        pulling.disk.shut(false);
        assert_eq!(open(link, object, copy), Ok(()));
    })
    .await;
}

/// Nothing comes of it for longer than a source may say nothing, but the disk may still do what is in front of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_from_a_disk_that_is_slow_is_waited_for() {
    pull_from(SOON, async |pulling| {
        pulling.begin().await;
        let heard = tokio::task::block_in_place(|| {
            pulling.link().receiver.recv_timeout(4 * PULL_STALL).map(|heard| heard.0)
        });
        assert!(heard.is_err(), "it is given up: {heard:?}");
        pulling.disk.shut(false);
        assert!(matches!(local(pulling.link()).0, ToHost::Opened { request: 9, .. }));
        assert!(pulling.asked.try_recv().is_err(), "it was asked for once more");
        pulling.link().send(ToAgent::Unpin { object: pulling.object }, vec![]).unwrap();
    })
    .await;
}

/// What it takes counts until its task has ended, which waits for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_ends_with_its_job() {
    pull_from(SOON, async |pulling| {
        pulling.begin().await;
        assert!(pulling.driver.usage().await.store_used_bytes >= BYTES);
        pulling.link = None;
        assert!(matches!(pulling.head.recv().await, ToHead::HostEnded { .. }));
        pulling.head.end_job().await;
        // Each look goes through the agent's queue.
        soon(async { while pulling.driver.usage().await.store_used_bytes > 0 {} }).await;
        pulling.disk.shut(false);
    })
    .await;
}

/// However many requests wait for a disk, what lies in memory is sent meanwhile; and those that are too many come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_that_wait_for_a_disk_hold_up_no_other() {
    const COUNT: usize = WAITING_MAX + SERVED_MAX;
    const LAST: u64 = COUNT as u64 + 1;
    pull_many_from(SOON, SOON, COUNT, async |pulling| {
        // The region that made room for itself.
        let (fd, _heap, extents) = made_in(4 * MIB, 1, BYTES);
        pulling.host.link.send_with(ToAgent::RegionAdded { request: 2, seq: 2, bytes: 4 * MIB }, &[fd]).await;
        let object = |seq| object(pulling.object.owner, seq);
        let offset = extents[0].location().offset;
        let sealed =
            ToAgent::Sealed { object: object(LAST), attempt: 1, region: 2, offset, bytes: BYTES, site: 0 };
        pulling.host.link.send(sealed).await;
        let small = Copy { bytes: BYTES / COUNT as u64, ..pulling.copy };
        let open = |seq, copy| ToAgent::Open { ahead: false, request: seq, object: object(seq), copy };
        let first = open(LAST, pulling.copy);
        (1..LAST).for_each(|seq| pulling.link().send(open(seq, small), vec![]).unwrap());
        for _ in 0..READS_MAX {
            assert_eq!(soon(pulling.asked.recv()).await, Some(1));
        }
        pulling.link().send(first, vec![]).unwrap();
        let opened = |link: &LocalLink| match local(link).0 {
            ToHost::Opened { request, .. } => request,
            other => panic!("not opened: {other:?}"),
        };
        assert_eq!(opened(pulling.link()), LAST);
        pulling.disk.shut(false);
        let mut rest: Vec<u64> = (1..LAST).map(|_| opened(pulling.link())).collect();
        rest.sort_unstable();
        assert_eq!(rest, (1..LAST).collect::<Vec<_>>());
    })
    .await;
}

/// What is asked for a region that no store has room for: refused at once, and so all that was said before is heard.
const TOO_LARGE: ToAgent = ToAgent::RegionWanted { request: 99, bytes: 1 << 40, wait_ms: 0 };

/// It waits, since the store is full: nothing has answered it when the agent has heard of it.
fn waits(link: &LocalLink, open: ToAgent) {
    link.send(open, vec![]).unwrap();
    link.send(TOO_LARGE, vec![]).unwrap();
    match local(link).0 {
        ToHost::RegionRefused { request: 99, .. } => {}
        other => panic!("it does not wait: {other:?}"),
    }
}

/// The requests that are answered next, each with whether it was opened; anything else is passed over.
fn answered(link: &LocalLink, count: usize) -> Vec<(u64, bool)> {
    let mut out = Vec::new();
    while out.len() < count {
        match local(link).0 {
            ToHost::Opened { request, .. } => out.push((request, true)),
            ToHost::OpenFailed { request, .. } => out.push((request, false)),
            _ => {}
        }
    }
    out.sort_unstable();
    out
}

/// How large the agent's own regions are in a store of 8 MiB: four of these objects.
const OWN: u64 = 2 * MIB;

/// Room comes free in the agent's own region, which something else keeps from going: whoever waits for memory has it then,
/// not when it has waited for a region for so long that it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_a_pull_that_failed_goes_to_who_waits() {
    pull_from(SOON, async |pulling| {
        // Behind the region that made room for itself.
        let (fd, _heap, extents) = made_in(4 * MIB, 1, OWN - BYTES);
        pulling.host.link.send_with(ToAgent::RegionAdded { request: 2, seq: 2, bytes: 4 * MIB }, &[fd]).await;
        let object = |seq| object(pulling.object.owner, seq);
        let offset = extents[0].location().offset;
        let there = [(2, OWN - BYTES), (3, 4096)].map(|(seq, bytes)| (seq, Copy { bytes, ..pulling.copy }));
        for (seq, Copy { bytes, .. }) in there {
            let sealed =
                ToAgent::Sealed { object: object(seq), attempt: 1, region: 2, offset, bytes, site: 0 };
            pulling.host.link.send(sealed).await;
        }
        let [large, small] =
            there.map(|(seq, copy)| ToAgent::Open { ahead: false, request: seq, object: object(seq), copy });
        let link = pulling.link();
        link.send(ToAgent::RegionWanted { request: 1, bytes: 8 * MIB - OWN, wait_ms: 0 }, vec![]).unwrap();
        assert!(matches!(local(link).0, ToHost::RegionGranted { .. }));
        link.send(large, vec![]).unwrap();
        assert_eq!(answered(link, 1), [(2, true)]);
        pulling.begin().await;
        waits(pulling.link(), small);
        pulling.disk.trouble.store(u32::MAX, Relaxed);
        pulling.disk.shut(false);
        assert_eq!(answered(pulling.link(), 2), [(3, true), (9, false)]);
    })
    .await;
}

/// An agent whose driver has five objects on disk, and the first of them open: it keeps the only region that there is room
/// for beside the driver's. The disk is shut from then on.
async fn five(
    disk: &Gated,
    asked: &mut mpsc::UnboundedReceiver<u64>,
    stall: Duration,
) -> (One, LocalLink, ObjectId, Copy) {
    let (one, link, first, copy, (_heap, extent)) =
        full_with(disk, |options| options.spill.stall = stall).await;
    for seq in 2..=5 {
        let (object, offset) = (object(first.owner, seq), extent.location().offset);
        let sealed = ToAgent::Sealed { object, attempt: 1, region: 1, offset, bytes: BYTES, site: 0 };
        link.send(sealed, vec![]).unwrap();
    }
    link.send(ToAgent::RegionWanted { request: 2, bytes: 8 * MIB - OWN, wait_ms: 5000 }, vec![]).unwrap();
    let mut left = 5;
    while left > 0 {
        let (ToHost::Reclaim { objects, .. }, _) = local(&link) else { panic!("not asked for them") };
        left -= objects.len();
    }
    link.send(ToAgent::RegionRemoved { seq: 1 }, vec![]).unwrap();
    while !matches!(local(&link).0, ToHost::RegionGranted { request: 2 }) {}
    link.send(open_of(first, 1, copy), vec![]).unwrap();
    assert_eq!(answered(&link, 1), [(1, true)]);
    while asked.try_recv().is_ok() {}
    disk.shut(true);
    (one, link, first, copy)
}

/// One of the objects of who owns this one.
fn open_of(first: ObjectId, seq: u64, copy: Copy) -> ToAgent {
    ToAgent::Open { ahead: false, request: seq, object: object(first.owner, seq), copy }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_what_was_freed_while_it_was_read_goes_to_who_waits() {
    let home = tempfile::tempdir().unwrap();
    let (disk, mut asked) = Gated::new(home.path().join("disk"));
    let (one, link, first, copy) = five(&disk, &mut asked, SOON).await;
    for seq in 2..=4 {
        link.send(open_of(first, seq, copy), vec![]).unwrap();
        assert!(soon(asked.recv()).await.is_some());
    }
    waits(&link, open_of(first, 5, copy));
    link.send(ToAgent::Free { object: object(first.owner, 2), copy }, vec![]).unwrap();
    disk.shut(false);
    assert_eq!(answered(&link, 4), [(2, false), (3, true), (4, true), (5, true)]);
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_a_read_that_returns_late_goes_to_who_waits() {
    let home = tempfile::tempdir().unwrap();
    let (disk, mut asked) = Gated::new(home.path().join("disk"));
    let (one, link, first, copy) = five(&disk, &mut asked, Duration::from_millis(200)).await;
    for seq in 2..=4 {
        link.send(open_of(first, seq, copy), vec![]).unwrap();
        assert!(soon(asked.recv()).await.is_some());
    }
    assert_eq!(answered(&link, 3), [(2, false), (3, false), (4, false)], "they are given up");
    waits(&link, open_of(first, 5, copy));
    disk.shut(false);
    assert_eq!(answered(&link, 1), [(5, true)]);
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
}

/// A pull, and what it pulls.
struct FromDisk {
    disk: Gated,
    asked: mpsc::UnboundedReceiver<u64>,
    object: ObjectId,
    copy: Copy,
    driver: Handle,
    head: FakeHead,
    link: Option<LocalLink>,
    /// Whoever made it.
    host: Started,
}

impl FromDisk {
    fn link(&self) -> &LocalLink {
        self.link.as_ref().unwrap()
    }

    /// Request 9 is for the object, and the disk has been asked.
    async fn begin(&mut self) {
        let open = ToAgent::Open { ahead: false, request: 9, object: self.object, copy: self.copy };
        self.link().send(open, vec![]).unwrap();
        assert_eq!(soon(self.asked.recv()).await, Some(1));
    }
}

const PULL_STALL: Duration = Duration::from_millis(250);

/// With an object that lies on another node's disk alone, which is shut and gives up what does not come for `stall`.
async fn pull_from(stall: Duration, check: impl AsyncFnOnce(&mut FromDisk)) {
    pull_many_from(stall, PULL_STALL, 1, check).await;
}

/// The same with so many, [`BYTES`] in all, each of which is tried for at least `reach`.
async fn pull_many_from(
    stall: Duration,
    reach: Duration,
    count: usize,
    check: impl AsyncFnOnce(&mut FromDisk),
) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create(&folder.path().join("ca"), "test").unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let identity = authority.identity(Part::Head, "head").unwrap();
    let head = Endpoint::bind(any, identity, Network::default()).unwrap();
    let address = head.local_addr().unwrap();
    let (disk, mut asked) = Gated::new(folder.path().join("disk"));
    let start = |name: &str, part, listen, target: Option<Gated>| {
        let (launcher, started) = launcher();
        let identity = authority.identity(part, name).unwrap();
        let link = HeadLink::Quic { address, identity, network: Network::default() };
        let mut options = Options::new(name, folder.path().join(name), link, detected(), launcher);
        options.listen = listen;
        options.store_bytes = 8 * MIB;
        options.spill.above = 1.0;
        options.spill.stall = stall;
        options.pulls.stall = PULL_STALL;
        options.pulls.reach = reach;
        options.spill_to = target.map_or(SpillTo::Home, |target| SpillTo::Target(Arc::new(target)));
        (Agent::start(options), started)
    };
    let (worker, mut started) = start("worker", Part::Agent, Some(any), Some(disk.clone()));
    let (worker, (mut worker_head, worker_node)) = tokio::join!(worker, accept_agent(&head, 1, vec![]));
    let worker = worker.unwrap();
    let (driver, _driver_started) = start("laptop", Part::Driver, None, None);
    let known = vec![worker_node.clone()];
    let (driver, (mut driver_head, driver_node)) = tokio::join!(driver, accept_agent(&head, 2, known));
    let driver = driver.unwrap();
    worker_head.send(ToAgentOfHead::NodeUp(driver_node)).await;
    let program = folder.path().join("program");
    std::fs::write(&program, b"#!/bin/sh\n").unwrap();
    let link = driver.attach();
    let hash = binaries::hash_file(&program).unwrap();
    link.send(driver_hello(&program.display().to_string(), hash, vec![]), vec![]).unwrap();
    let job = driver_head.start_job().await;
    assert!(matches!(local(&link).0, ToHost::Welcome(_)));
    worker_head.send(reserve(1, job.clone(), Class::default())).await;
    let mut host = tokio::select! {
        started = soon(started.recv()) => started.unwrap(),
        other = worker_head.recv() => panic!("not started: {other:?}"),
    };
    host.link.welcome().await;
    let (ToHost::Output { .. }, _) = local(&link) else { panic!("no output") };

    // What the host makes goes to disk, and leaves memory.
    host.link.send(ToAgent::RegionWanted { request: 1, bytes: 8 * MIB, wait_ms: 0 }).await;
    assert!(matches!(host.link.recv().await.0, ToHost::RegionGranted { .. }));
    let bytes = BYTES / count as u64;
    let (fd, _heap, extents) = made_in(8 * MIB, count, bytes);
    host.link.send_with(ToAgent::RegionAdded { request: 1, seq: 1, bytes: 8 * MIB }, &[fd]).await;
    for (seq, extent) in (1..).zip(&extents) {
        let (object, offset) = (object(job.driver, seq), extent.location().offset);
        host.link.send(ToAgent::Sealed { object, attempt: 1, region: 1, offset, bytes, site: 0 }).await;
    }
    let object = object(job.driver, 1);
    let copy = Copy { node: worker_node.node, bytes: BYTES, attempt: 1, job: job.job };
    host.link.send(ToAgent::RegionWanted { request: 2, bytes: 4 * MIB, wait_ms: 5000 }).await;
    // Its objects, and its region: in one message, if the second comes before the first is said.
    loop {
        let ToHost::Reclaim { give_back, .. } = host.link.recv().await.0 else { panic!("not asked for it") };
        if give_back {
            break;
        }
    }
    host.link.send(ToAgent::RegionRemoved { seq: 1 }).await;
    assert!(matches!(host.link.recv().await.0, ToHost::RegionGranted { request: 2 }));
    assert_eq!(soon(asked.recv()).await, Some(1));

    disk.shut(true);
    let link = Some(link);
    let mut pulling = FromDisk { disk, asked, object, copy, driver, head: driver_head, link, host };
    check(&mut pulling).await;
    let FromDisk { driver, .. } = pulling;
    soon(driver.shutdown()).await.unwrap();
    soon(worker.shutdown()).await.unwrap();
}
