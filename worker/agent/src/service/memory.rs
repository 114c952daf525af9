//! The agent's own shared memory, for copies that it pulls or reads back from disk: one heap for each job, since descriptors never cross
//! from one job to another.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use tracing::debug;

use crate::core::objects::{Key, Slot};

use mobula_proto::{Failure, FailureKind, JobId, NodeId, RegionId, host::Request, peer::Copy};
use mobula_store::{
    heap::{self, Block, Extent, Heap, REGION_STEP_BYTES},
    region::Writer,
    spare::Spare,
};

/// Largest region that is asked for to hold several copies, in bytes.
const REGION_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A copy of at least so many bytes shows that a job moves large objects; from then on memory is warmed ahead.
const LARGE_BYTES: u64 = 16 * 1024 * 1024;
/// How much is warmed ahead: one part in so many of the store, less what regions have warm and free. It counts as used in
/// the store's budget until it is a region's, somebody lacks room, no job is left, or nothing was pulled for
/// [`KEEP_TIME`].
const WARM_SHARE: u64 = 4;
/// The warming thread yields to everything that has work to do: it gets about a quarter of a busy core.
const WARM_NICE: i32 = 5;
/// Touched memory that is kept for the copies of a job once nothing was pulled for [`KEEP_TIME`], in bytes; before, all of
/// it is, since first touch can cost more than the pull itself. Kept memory counts as used in the store's budget; it goes
/// when somebody lacks room, and when the job ends.
const KEEP_IDLE_BYTES: u64 = 64 * 1024 * 1024;
/// How long after its last pull all of a job's memory is kept.
const KEEP_TIME: Duration = Duration::from_secs(30);
/// How long a pull waits for room in the store.
pub(super) const ROOM_WAIT: Duration = Duration::from_secs(60);

/// A copy that has no memory here yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) key: Key,
    pub(super) bytes: u64,
    pub(super) from: From,
    /// Nothing waits for it yet.
    pub(super) ahead: bool,
}

/// Where it comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    /// The node of this primary copy, or others that it names.
    Node(Copy),
    Disk(Slot),
}

/// What waits for memory, and comes from the same kind of place.
#[derive(Debug, Default)]
struct Line {
    /// What something waits for, then what is fetched ahead; each in the order in which it came.
    waiting: VecDeque<Wanted>,
    /// The region that is asked for the first one.
    asked: Option<Asked>,
}

#[derive(Debug)]
struct Asked {
    request: Request,
    bytes: u64,
    key: Key,
}

impl Line {
    fn add(&mut self, wanted: Wanted) {
        let at = if wanted.ahead {
            self.waiting.len()
        } else {
            self.waiting.partition_point(|other| !other.ahead)
        };
        self.waiting.insert(at, wanted);
    }

    /// Whether the first one has memory now.
    fn start_first(&mut self, heap: &Heap, steps: &mut Vec<Step>) -> Result<bool, heap::NeedRegion> {
        let Some(first) = self.waiting.front() else { return Ok(false) };
        // A block of nothing would have no place of its own.
        let block = heap.allocate(first.bytes.max(1))?;
        steps.extend(self.waiting.pop_front().map(|first| Step::Start(first, block)));
        Ok(true)
    }
}

/// What is read from disk does not wait for what is pulled: it has room of its own in the store, and what it is read for
/// may hold what the pull lacks. It is served first, too.
const LINES: usize = 2;

#[derive(Debug)]
struct JobHeap {
    heap: Heap,
    lines: [Line; LINES],
    /// When it pulled last.
    pulled: Instant,
    /// The largest copy that it pulled from a node, in bytes.
    largest: u64,
}

impl JobHeap {
    /// Whether memory is warmed ahead for it, so much at once.
    fn warms(&self, bytes: u64) -> bool {
        warms(self.largest, bytes)
    }

    fn line(&mut self, from: From) -> &mut Line {
        let [disk, nodes] = &mut self.lines;
        match from {
            From::Disk(_) => disk,
            From::Node(_) => nodes,
        }
    }
}

/// Whether memory is warmed ahead, so much at once, for a job whose largest copy has so many bytes: it moves large ones,
/// and they fit.
fn warms(largest: u64, bytes: u64) -> bool {
    largest >= LARGE_BYTES && largest <= bytes
}

/// A step of the pulls of one job.
#[derive(Debug)]
pub(super) enum Step {
    /// There is memory for this one.
    Start(Wanted, Block),
    /// A region of so many bytes is needed, and becomes of the spare, of so many bytes, where there is one for it.
    Ask(Request, u64, Option<u64>),
    /// It is not any more.
    Unask(Request),
}

/// Memory that is warmed ahead.
#[derive(Debug)]
struct Aside {
    spare: Spare,
    /// The region that it becomes, in whose name it is counted.
    request: Option<Request>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Memory {
    region_bytes: u64,
    keep_idle_bytes: u64,
    jobs: BTreeMap<JobId, JobHeap>,
    extents: HashMap<Key, Extent>,
    requests: Request,
    regions: u32,
    warm_bytes: u64,
    aside: Option<Aside>,
}

impl Memory {
    pub(super) fn new(store_bytes: u64) -> Self {
        let region_bytes = (store_bytes / 16 / REGION_STEP_BYTES * REGION_STEP_BYTES)
            .clamp(REGION_STEP_BYTES, REGION_BYTES_MAX);
        Self {
            region_bytes,
            keep_idle_bytes: KEEP_IDLE_BYTES.min(store_bytes / 4),
            jobs: BTreeMap::new(),
            extents: HashMap::new(),
            requests: 0,
            regions: 0,
            warm_bytes: store_bytes / WARM_SHARE / REGION_STEP_BYTES * REGION_STEP_BYTES,
            aside: None,
        }
    }

    /// Queues a copy and says what can be done at once.
    pub(super) fn want(&mut self, wanted: Wanted) -> Vec<Step> {
        let job = wanted.key.2;
        let region_bytes_min = self.region_bytes;
        let entry = self.jobs.entry(job).or_insert_with(|| JobHeap {
            heap: Heap::new(heap::Options { region_bytes_min }),
            lines: Default::default(),
            pulled: Instant::now(),
            largest: 0,
        });
        entry.pulled = Instant::now();
        if matches!(wanted.from, From::Node(_)) {
            entry.largest = entry.largest.max(wanted.bytes);
        }
        entry.line(wanted.from).add(wanted);
        self.steps(job)
    }

    /// Something waits now for what was to be fetched ahead; nothing happens where it has memory.
    pub(super) fn hurry(&mut self, key: Key) -> Vec<Step> {
        let Some(entry) = self.jobs.get_mut(&key.2) else { return Vec::new() };
        for line in &mut entry.lines {
            let at = line.waiting.iter().position(|wanted| wanted.key == key && wanted.ahead);
            if let Some(wanted) = at.and_then(|at| line.waiting.remove(at)) {
                line.add(Wanted { ahead: false, ..wanted });
            }
        }
        self.steps(key.2)
    }

    /// Gives memory to what is first in each line of a job, and asks for the rest: whenever some came free there, or may
    /// have.
    pub(super) fn steps(&mut self, job: JobId) -> Vec<Step> {
        let mut steps = Vec::new();
        let Some(JobHeap { heap, lines, largest, .. }) = self.jobs.get_mut(&job) else { return steps };
        for line in lines {
            let need = loop {
                match line.start_first(heap, &mut steps) {
                    Ok(true) => {}
                    Ok(false) => break None,
                    Err(need) => break Some(need.bytes),
                }
            };
            let first = line.waiting.front().map(|wanted| wanted.key);
            if let Some(Asked { request, .. }) = line.asked.take_if(|asked| Some(asked.key) != first) {
                self.aside.take_if(|aside| aside.request == Some(request));
                steps.push(Step::Unask(request));
            }
            if let (Some(key), Some(need), None) = (first, need, &line.asked) {
                self.requests += 1;
                let request = self.requests;
                let free = self.aside.as_mut().filter(|aside| {
                    let len = aside.spare.len();
                    aside.request.is_none() && warms(*largest, len) && len >= need
                });
                let spare = free.map(|aside| {
                    aside.request = Some(request);
                    aside.spare.len()
                });
                // A spare is cut for a copy that takes most of it, and holds many smaller ones whole: cutting it
                // each time would throw away nearly all that was warmed.
                let bytes = spare.filter(|len| need <= len / 2).unwrap_or(need);
                line.asked = Some(Asked { request, bytes, key });
                steps.push(Step::Ask(request, bytes, spare));
            }
        }
        steps
    }

    fn line_of(&mut self, request: Request) -> Option<(JobId, &Heap, &mut Line)> {
        let lines = self.jobs.iter_mut().flat_map(|(job, JobHeap { heap, lines, .. })| {
            let heap = &*heap;
            lines.iter_mut().map(move |line| (*job, heap, line))
        });
        lines
            .into_iter()
            .find(|(_, _, line)| line.asked.as_ref().is_some_and(|asked| asked.request == request))
    }

    /// Which job asked for room.
    pub(super) fn asked(&mut self, request: Request) -> Option<JobId> {
        self.line_of(request).map(|(job, ..)| job)
    }

    /// Makes the region that was granted: its number, size and a descriptor, to be sealed before others get it.
    pub(super) fn make_region(&mut self, request: Request) -> Result<(u32, u64, OwnedFd), Failure> {
        let failed = |error: mobula_store::Error| Failure::new(FailureKind::StoreFull, error.to_string());
        let spare = self.aside.take_if(|aside| aside.request == Some(request)).map(|aside| aside.spare);
        let seq = self.regions + 1;
        let Some((_, heap, Line { asked: Some(Asked { bytes, .. }), .. })) = self.line_of(request) else {
            return Err(Failure::new(FailureKind::Internal, "room was granted that nobody asked for"));
        };
        let bytes = *bytes;
        let writer = match spare {
            Some(spare) => spare.into_writer(bytes),
            None => Writer::create(bytes),
        };
        let writer = writer.map_err(failed)?;
        let fd = writer.descriptor().map_err(failed)?;
        heap.add_region(seq, writer).map_err(failed)?;
        self.regions = seq;
        Ok((seq, bytes, fd))
    }

    /// The region is there: what can go on. The copy that it was asked for comes first, so that smaller ones do not take
    /// it piece by piece.
    pub(super) fn granted(&mut self, request: Request) -> Vec<Step> {
        let mut steps = Vec::new();
        let Some((job, heap, line)) = self.line_of(request) else { return steps };
        line.asked = None;
        // It asks again where this is not enough.
        let _started = line.start_first(heap, &mut steps);
        steps.extend(self.steps(job));
        steps
    }

    /// There is no room: the copy that it was asked for fails, unless memory came free meanwhile; the others try again.
    pub(super) fn refused(&mut self, request: Request) -> (Option<Wanted>, Vec<Step>) {
        let mut steps = Vec::new();
        let Some((job, heap, line)) = self.line_of(request) else { return (None, steps) };
        line.asked = None;
        let started = line.start_first(heap, &mut steps).is_ok_and(|started| started);
        let failed = if started { None } else { line.waiting.pop_front() };
        self.aside.take_if(|aside| aside.request == Some(request));
        steps.extend(self.steps(job));
        (failed, steps)
    }

    /// A node is gone: the pulls from there that have no memory yet will not begin.
    pub(super) fn without(&mut self, node: NodeId) -> (Vec<Wanted>, Vec<Step>) {
        let mut gone = Vec::new();
        for line in self.jobs.values_mut().flat_map(|entry| &mut entry.lines) {
            line.waiting.retain(|wanted| {
                let stays = !matches!(wanted.from, From::Node(copy) if copy.node == node);
                if !stays {
                    gone.push(*wanted);
                }
                stays
            });
        }
        let jobs: BTreeSet<_> = gone.iter().map(|wanted| wanted.key.2).collect();
        (gone, jobs.into_iter().flat_map(|job| self.steps(job)).collect())
    }

    /// The pull of this copy is not to begin any more; nothing where it does not wait for memory.
    pub(super) fn unwant(&mut self, key: Key) -> Option<Vec<Step>> {
        let [_, Line { waiting, .. }] = &mut self.jobs.get_mut(&key.2)?.lines;
        let at = waiting.iter().position(|wanted| wanted.key == key)?;
        waiting.remove(at);
        Some(self.steps(key.2))
    }

    /// Keeps a copy that is in the table now.
    pub(super) fn keep(&mut self, key: Key, extent: Extent) {
        self.extents.insert(key, extent);
    }

    /// Frees copies; what waits for memory may have it, which is warm, rather than a region of its own.
    pub(super) fn reclaim(&mut self, copies: &[Key]) -> Vec<Step> {
        let gone = copies.iter().filter(|key| self.extents.remove(*key).is_some());
        let jobs: BTreeSet<_> = gone.map(|key| key.2).collect();
        jobs.into_iter().flat_map(|job| self.steps(job)).collect()
    }

    /// Drops regions in which nothing lies, but for what a job keeps for reuse; `short` says that somebody lacks room,
    /// and so nothing is kept.
    pub(super) fn sweep(&mut self, agent: mobula_proto::HostId, short: bool, now: Instant) -> Vec<RegionId> {
        let mut out = Vec::new();
        for entry in self.jobs.values() {
            let idle = now.saturating_duration_since(entry.pulled) >= KEEP_TIME;
            let keep = match (short, idle) {
                (true, _) => 0,
                (false, true) => self.keep_idle_bytes,
                (false, false) => u64::MAX,
            };
            let removed = entry.heap.remove_empty_regions(keep);
            out.extend(removed.into_iter().map(|seq| RegionId { writer: agent, seq }));
        }
        out
    }

    /// Bytes that [`Self::sweep`] would drop if somebody lacked room.
    pub(super) fn empty_bytes(&self) -> u64 {
        self.jobs.values().map(|entry| entry.heap.empty_bytes()).sum()
    }

    /// How large a spare there should be now; `None` where there is one already, or nobody has use for it.
    pub(super) fn spare_wanted(&self, now: Instant) -> Option<u64> {
        if self.aside.is_some() || !self.busy(now) {
            return None;
        }
        // What is being pulled comes first.
        if self.jobs.values().flat_map(|entry| &entry.lines).any(|line| line.asked.is_some()) {
            return None;
        }
        let warm: u64 = self.jobs.values().map(|entry| entry.heap.warm_free_bytes()).sum();
        let bytes = self.warm_bytes.saturating_sub(warm) / REGION_STEP_BYTES * REGION_STEP_BYTES;
        (bytes >= LARGE_BYTES).then_some(bytes)
    }

    fn busy(&self, now: Instant) -> bool {
        let warms = |entry: &JobHeap| entry.warms(self.warm_bytes);
        self.jobs
            .values()
            .any(|entry| warms(entry) && now.saturating_duration_since(entry.pulled) < KEEP_TIME)
    }

    /// Makes a spare of `bytes`, which are set aside in the budget, and begins to warm it.
    pub(super) fn make_spare(&mut self, bytes: u64) -> Result<(), Failure> {
        let failed = |error: mobula_store::Error| Failure::new(FailureKind::StoreFull, error.to_string());
        let spare = Spare::create(bytes).map_err(failed)?;
        let mut warming = spare.warming();
        let warm = move || {
            // Where that is not allowed, the thread is like any other.
            let _nice = rustix::process::setpriority_process(None, WARM_NICE);
            loop {
                match warming.step() {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => return debug!(%error, "memory is not warmed ahead"),
                }
            }
        };
        std::thread::Builder::new()
            .name("mobula-warm".to_owned())
            .spawn(warm)
            .map_err(|error| Failure::new(FailureKind::StoreFull, error.to_string()))?;
        self.aside = Some(Aside { spare, request: None });
        Ok(())
    }

    /// Drops the spare where it has no use (any more) or somebody lacks room, and says how many bytes are not used by that.
    pub(super) fn drop_spare(&mut self, short: bool, now: Instant) -> Option<u64> {
        let useless = short || !self.busy(now);
        let dropped = self.aside.take_if(|_| useless)?;
        // What is a region's already is counted in its name.
        Some(if dropped.request.is_some() { 0 } else { dropped.spare.len() })
    }

    /// A job is gone, and all its memory here; the regions that are asked for are not needed.
    pub(super) fn job_gone(&mut self, job: JobId) -> Vec<Request> {
        self.extents.retain(|key, _| key.2 != job);
        let Some(JobHeap { lines, .. }) = self.jobs.remove(&job) else { return Vec::new() };
        let asked: Vec<_> = lines.into_iter().filter_map(|line| line.asked).collect();
        self.aside.take_if(|aside| asked.iter().any(|asked| aside.request == Some(asked.request)));
        asked.into_iter().map(|asked| asked.request).collect()
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::{HostId, ObjectId};

    use super::*;

    const JOB: JobId = JobId { number: 1 };
    const MIB: u64 = 1 << 20;

    fn key(seq: u64) -> Key {
        let owner = NodeId { number: 2, incarnation: 1 }.agent();
        (ObjectId { owner, seq, key: 0, index: 0 }, 1, JOB)
    }

    fn from_node(seq: u64, bytes: u64, ahead: bool) -> Wanted {
        let key = key(seq);
        let copy = Copy { node: key.0.owner.node, bytes, attempt: 1, job: JOB };
        Wanted { key, bytes, from: From::Node(copy), ahead }
    }

    fn from_disk(seq: u64, bytes: u64, ahead: bool) -> Wanted {
        Wanted { from: From::Disk(Slot { file: 1, offset: 0 }), ..from_node(seq, bytes, ahead) }
    }

    /// Takes memory for a copy from another node; says whether a region was made for it.
    fn pull(memory: &mut Memory, key: Key, bytes: u64) -> bool {
        let mut steps = memory.want(from_node(key.0.seq, bytes, false));
        let made = match steps[..] {
            [Step::Ask(request, ..)] => Some(request),
            _ => None,
        };
        if let Some(request) = made {
            memory.make_region(request).unwrap();
            steps = memory.granted(request);
        }
        let Some(Step::Start(_, block)) = steps.pop() else { panic!("no memory") };
        memory.keep(key, block.seal());
        made.is_some()
    }

    /// Each step in words; what starts stays where it is.
    fn said(steps: Vec<Step>) -> Vec<String> {
        let line = |step| match step {
            Step::Start(wanted, block) => {
                std::mem::forget(block);
                format!("start {}", wanted.key.0.seq)
            }
            Step::Ask(request, bytes, spare) => {
                format!(
                    "ask {request}: {}{}",
                    bytes / MIB,
                    if spare.is_some() { " of the spare" } else { "" }
                )
            }
            Step::Unask(request) => format!("unask {request}"),
        };
        steps.into_iter().map(line).collect()
    }

    fn granted(memory: &mut Memory, request: Request) -> Vec<String> {
        memory.make_region(request).unwrap();
        said(memory.granted(request))
    }

    #[test]
    fn what_is_read_from_disk_does_not_wait_for_what_is_pulled() {
        let mut memory = Memory::new(256 * MIB);
        assert_eq!(said(memory.want(from_node(1, 100 * MIB, false))), ["ask 1: 100"]);
        assert_eq!(said(memory.want(from_node(2, MIB, false))), [""; 0], "in the order in which they came");
        assert_eq!(said(memory.want(from_disk(3, MIB, false))), ["ask 2: 16"]);
        assert_eq!(said(memory.want(from_disk(4, 2 * MIB, false))), [""; 0]);
        assert_eq!(granted(&mut memory, 2), ["start 3", "start 4"]);
        // What is free is theirs, whatever is asked for.
        assert_eq!(said(memory.want(from_disk(5, 2 * MIB, false))), ["start 5"]);
        assert_eq!(said(memory.want(from_disk(6, 60 * MIB, false))), ["ask 3: 60"]);
        // A region is for what it was asked for: others do not take it piece by piece.
        assert_eq!(granted(&mut memory, 1), ["start 1", "start 2"]);
        assert_eq!(memory.asked(3), Some(JOB));
        let (failed, steps) = memory.refused(3);
        assert_eq!((failed.map(|wanted| wanted.key), steps.len()), (Some(key(6)), 0));
    }

    #[test]
    fn what_something_waits_for_gets_memory_before_what_is_fetched_ahead() {
        for from in [from_node, from_disk] {
            let mut memory = Memory::new(256 * MIB);
            assert_eq!(said(memory.want(from(1, 100 * MIB, true))), ["ask 1: 100"]);
            assert_eq!(said(memory.want(from(2, 100 * MIB, true))), [""; 0]);
            assert_eq!(said(memory.want(from(3, 16 * MIB, false))), ["unask 1", "ask 2: 16"]);
            assert_eq!(said(memory.want(from(4, MIB, false))), [""; 0]);
            assert_eq!(said(memory.hurry(key(2))), [""; 0], "it is not before the others");
            assert_eq!(said(memory.hurry(key(9))), [""; 0]);
            assert_eq!(granted(&mut memory, 2), ["start 3", "ask 3: 16"]);
            assert_eq!(granted(&mut memory, 3), ["start 4", "ask 4: 100"]);
            assert_eq!(granted(&mut memory, 4), ["start 2", "ask 5: 100"]);
            assert_eq!(said(memory.want(from(5, MIB, false))), ["start 5"], "there is room beside");
        }
    }

    #[test]
    fn a_region_is_asked_for_the_first_in_line_only() {
        let mut memory = Memory::new(256 * MIB);
        assert!(pull(&mut memory, key(1), 16 * MIB));
        assert_eq!(said(memory.want(from_node(2, 16 * MIB, false))), ["ask 2: 16"]);
        assert_eq!(said(memory.want(from_node(3, 32 * MIB, false))), [""; 0]);
        assert_eq!(said(memory.reclaim(&[key(1)])), ["start 2", "unask 2", "ask 3: 32"]);
        assert_eq!(said(memory.unwant(key(3)).unwrap()), ["unask 3"]);
        assert!(memory.unwant(key(2)).is_none(), "it has memory");
        assert_eq!(said(memory.want(from_node(4, MIB, false))), ["ask 4: 16"]);
        assert_eq!(said(memory.want(from_disk(5, MIB, false))), ["ask 5: 16"]);
        let (gone, steps) = memory.without(key(4).0.owner.node);
        assert_eq!((gone.len(), said(steps)), (1, vec!["unask 4".to_owned()]));
        assert_eq!(memory.job_gone(JOB), [5]);
    }

    /// Of a copy that came to nothing, in a region that something else keeps.
    #[test]
    fn memory_that_came_free_goes_to_who_waits() {
        let begun = |memory: &mut Memory, seq, bytes| {
            let Some(Step::Start(_, block)) = memory.want(from_node(seq, bytes, false)).pop() else {
                panic!("no memory")
            };
            block
        };
        let mut memory = Memory::new(256 * MIB);
        assert!(pull(&mut memory, key(1), 8 * MIB));
        let block = begun(&mut memory, 2, 8 * MIB);
        assert_eq!(said(memory.want(from_node(3, MIB, false))), ["ask 2: 16"]);
        assert_eq!(said(memory.want(from_node(4, 8 * MIB, false))), [""; 0]);
        drop(block);
        assert_eq!(said(memory.steps(JOB)), ["start 3", "unask 2", "ask 3: 16"]);
        assert_eq!(said(memory.steps(JobId { number: 2 })), [""; 0], "it has no memory here");
        // It was not heard of yet when the region is refused.
        assert_eq!(said(memory.reclaim(&[key(1)])), ["start 4", "unask 3"]);
        let block = begun(&mut memory, 5, 7 * MIB);
        assert_eq!(said(memory.want(from_node(6, 6 * MIB, false))), ["ask 4: 16"]);
        assert_eq!(said(memory.want(from_node(7, 8 * MIB, false))), [""; 0]);
        drop(block);
        let (failed, steps) = memory.refused(4);
        assert_eq!(
            (failed.map(|wanted| wanted.key), said(steps)),
            (None, vec!["start 6".to_owned(), "ask 5: 16".to_owned()])
        );
        let (failed, steps) = memory.refused(5);
        assert_eq!((failed.map(|wanted| wanted.key), said(steps)), (Some(key(7)), vec![]));
    }

    #[test]
    fn a_spare_is_one_regions_and_goes_with_it() {
        let mut memory = Memory::new(1024 * MIB);
        assert!(pull(&mut memory, key(1), 128 * MIB));
        memory.make_spare(256 * MIB).unwrap();
        assert_eq!(said(memory.want(from_node(2, 128 * MIB, false))), ["ask 2: 256 of the spare"]);
        assert_eq!(said(memory.want(from_disk(3, 128 * MIB, false))), ["ask 3: 128"]);
        assert_eq!(said(memory.unwant(key(2)).unwrap()), ["unask 2"]);
        assert_eq!(memory.drop_spare(true, Instant::now()), None, "nobody counts it any more");
        memory.make_spare(256 * MIB).unwrap();
        assert_eq!(said(memory.want(from_node(4, 256 * MIB, false))), ["ask 4: 256 of the spare"]);
        assert_eq!(memory.drop_spare(true, Instant::now()), Some(0), "it is counted as the region");
        assert_eq!(granted(&mut memory, 4), ["start 4"]);
    }

    #[test]
    fn a_job_keeps_what_it_touched_while_it_pulls_unless_somebody_lacks_room() {
        const AGENT: HostId = HostId { node: NodeId::EMBEDDED, seq: 0 };
        let mut memory = Memory::new(1500 * MIB);
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        // More than half of the store.
        assert!(pull(&mut memory, key(1), 1024 * MIB));
        assert_eq!(memory.empty_bytes(), 0, "something lies there");
        assert!(memory.reclaim(&[key(1)]).is_empty());
        assert_eq!(memory.empty_bytes(), 1024 * MIB);
        assert!(memory.sweep(AGENT, false, later(20)).is_empty());
        assert!(!pull(&mut memory, key(2), 1000 * MIB), "it lies where the first lay");
        memory.reclaim(&[key(2)]);
        assert_eq!(memory.sweep(AGENT, false, later(60)), [RegionId { writer: AGENT, seq: 1 }], "idle");
        assert!(pull(&mut memory, key(3), 1024 * MIB));
        memory.reclaim(&[key(3)]);
        assert_eq!(memory.sweep(AGENT, true, later(0)), [RegionId { writer: AGENT, seq: 2 }], "short");
    }

    #[test]
    fn memory_is_warmed_ahead_for_copies_that_fit() {
        let mut memory = Memory::new(1024 * MIB);
        assert!(pull(&mut memory, key(1), MIB));
        assert_eq!(memory.spare_wanted(Instant::now()), None, "it is small");
        assert!(pull(&mut memory, key(2), 128 * MIB));
        let wanted = memory.spare_wanted(Instant::now());
        assert!(wanted.is_some_and(|bytes| (128 * MIB..=256 * MIB).contains(&bytes)), "{wanted:?}");
        assert!(pull(&mut memory, key(3), 512 * MIB));
        assert_eq!(memory.spare_wanted(Instant::now()), None, "the next one would not fit there");
    }
}
