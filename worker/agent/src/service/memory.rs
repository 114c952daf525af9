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
}

/// Where it comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    /// The node of this primary copy, or others that it names.
    Node(Copy),
    Disk(Slot),
}

#[derive(Debug)]
struct JobHeap {
    heap: Heap,
    waiting: VecDeque<Wanted>,
    /// The request for a region that is under way, and its size.
    asked: Option<(Request, u64)>,
    /// When it pulled last.
    pulled: Instant,
    /// The largest copy that it pulled from a node, in bytes.
    largest: u64,
}

impl JobHeap {
    /// Whether memory is warmed ahead for it, so much at once: it moves large copies, and they fit.
    fn warms(&self, bytes: u64) -> bool {
        self.largest >= LARGE_BYTES && self.largest <= bytes
    }
}

/// A step of the pulls of one job.
#[derive(Debug)]
pub(super) enum Step {
    /// There is memory for this one.
    Start(Wanted, Block),
    /// A region of so many bytes is needed.
    Ask(Request, u64),
    /// It is not any more.
    Unask(Request, u64),
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
    spare: Option<Spare>,
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
            spare: None,
        }
    }

    /// Queues a copy and says what can be done at once.
    pub(super) fn want(&mut self, wanted: Wanted) -> Vec<Step> {
        let job = wanted.key.2;
        let region_bytes_min = self.region_bytes;
        let entry = self.jobs.entry(job).or_insert_with(|| JobHeap {
            heap: Heap::new(heap::Options { region_bytes_min }),
            waiting: VecDeque::new(),
            asked: None,
            pulled: Instant::now(),
            largest: 0,
        });
        entry.pulled = Instant::now();
        if matches!(wanted.from, From::Node(_)) {
            entry.largest = entry.largest.max(wanted.bytes);
        }
        entry.waiting.push_back(wanted);
        self.steps(job)
    }

    fn steps(&mut self, job: JobId) -> Vec<Step> {
        let mut steps = Vec::new();
        let Some(entry) = self.jobs.get_mut(&job) else { return steps };
        if entry.asked.is_some() {
            return steps;
        }
        while let Some(first) = entry.waiting.front().copied() {
            // A block of nothing would have no place of its own.
            match entry.heap.allocate(first.bytes.max(1)) {
                Ok(block) => {
                    entry.waiting.pop_front();
                    steps.push(Step::Start(first, block));
                }
                Err(need) => {
                    self.requests += 1;
                    // A spare is cut for a copy that takes most of it, and holds many smaller ones whole: cutting it
                    // each time would throw away nearly all that was warmed.
                    let spare = self.spare.as_ref().map(Spare::len).filter(|len| entry.warms(*len));
                    let bytes = spare.filter(|len| need.bytes <= len / 2).unwrap_or(need.bytes);
                    entry.asked = Some((self.requests, bytes));
                    steps.push(Step::Ask(self.requests, bytes));
                    break;
                }
            }
        }
        steps
    }

    /// Which job asked for room, and how much.
    pub(super) fn asked(&self, request: Request) -> Option<(JobId, u64)> {
        self.jobs.iter().find_map(|(job, entry)| match entry.asked {
            Some((asked, bytes)) if asked == request => Some((*job, bytes)),
            _ => None,
        })
    }

    /// Makes the region that was granted: its number, size and a descriptor to share.
    pub(super) fn make_region(&mut self, job: JobId) -> Result<(u32, u64, OwnedFd), Failure> {
        let failed = |error: mobula_store::Error| Failure::new(FailureKind::StoreFull, error.to_string());
        let entry =
            self.jobs.get_mut(&job).ok_or_else(|| Failure::new(FailureKind::JobEnded, "the job ended"))?;
        let Some((_, bytes)) = entry.asked else {
            return Err(Failure::new(FailureKind::Internal, "room was granted that nobody asked for"));
        };
        let writer = match self.spare.take_if(|spare| entry.warms(spare.len()) && spare.len() >= bytes) {
            Some(spare) => spare.into_writer(bytes),
            None => Writer::create(bytes),
        };
        let writer = writer.map_err(failed)?;
        let fd = writer.share().map_err(failed)?;
        self.regions += 1;
        entry.heap.add_region(self.regions, writer).map_err(failed)?;
        Ok((self.regions, bytes, fd))
    }

    /// The region is there: what can go on.
    pub(super) fn granted(&mut self, job: JobId) -> Vec<Step> {
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.asked = None;
        }
        self.steps(job)
    }

    /// There is no room: the first copy in line fails, the others try again.
    pub(super) fn refused(&mut self, job: JobId) -> (Option<Wanted>, Vec<Step>) {
        let Some(entry) = self.jobs.get_mut(&job) else { return (None, Vec::new()) };
        entry.asked = None;
        let failed = entry.waiting.pop_front();
        (failed, self.steps(job))
    }

    /// A node is gone: the pulls from there that have no memory yet will not begin.
    pub(super) fn without(&mut self, node: NodeId) -> Vec<Wanted> {
        let mut gone = Vec::new();
        for entry in self.jobs.values_mut() {
            entry.waiting.retain(|wanted| {
                let stays = !matches!(wanted.from, From::Node(copy) if copy.node == node);
                if !stays {
                    gone.push(*wanted);
                }
                stays
            });
        }
        gone
    }

    /// The pull of this copy is not to begin any more; nothing where it does not wait for memory.
    pub(super) fn unwant(&mut self, key: Key) -> Option<Vec<Step>> {
        let waiting = &mut self.jobs.get_mut(&key.2)?.waiting;
        let at =
            waiting.iter().position(|wanted| wanted.key == key && matches!(wanted.from, From::Node(_)))?;
        waiting.remove(at);
        Some(self.start_waiting(key.2))
    }

    /// Keeps a copy that is in the table now.
    pub(super) fn keep(&mut self, key: Key, extent: Extent) {
        self.extents.insert(key, extent);
    }

    /// Frees copies; what waits for memory may have it, which is warm, rather than a region of its own.
    pub(super) fn reclaim(&mut self, copies: &[Key]) -> Vec<(JobId, Vec<Step>)> {
        let gone = copies.iter().filter(|key| self.extents.remove(*key).is_some());
        let jobs: BTreeSet<_> = gone.map(|key| key.2).collect();
        jobs.into_iter().map(|job| (job, self.start_waiting(job))).collect()
    }

    fn start_waiting(&mut self, job: JobId) -> Vec<Step> {
        let mut steps = Vec::new();
        let Some(entry) = self.jobs.get_mut(&job) else { return steps };
        while let Some(first) = entry.waiting.front().copied()
            && let Ok(block) = entry.heap.allocate(first.bytes.max(1))
        {
            entry.waiting.pop_front();
            steps.push(Step::Start(first, block));
        }
        if entry.waiting.is_empty()
            && let Some((request, bytes)) = entry.asked.take()
        {
            steps.push(Step::Unask(request, bytes));
        }
        steps
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
        if self.spare.is_some() || !self.busy(now) {
            return None;
        }
        // What is being pulled comes first.
        if self.jobs.values().any(|entry| entry.asked.is_some()) {
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
        self.spare = Some(spare);
        Ok(())
    }

    /// The bytes of the spare, where this job's region of `bytes` would be made of it.
    pub(super) fn spare_for(&self, job: JobId, bytes: u64) -> Option<u64> {
        let entry = self.jobs.get(&job)?;
        self.spare.as_ref().map(Spare::len).filter(|len| entry.warms(*len) && *len >= bytes)
    }

    /// Drops the spare where it has no use (any more) or somebody lacks room, and says how many bytes that were.
    pub(super) fn drop_spare(&mut self, short: bool, now: Instant) -> Option<u64> {
        let useless = short || !self.busy(now);
        self.spare.take_if(|_| useless).map(|spare| spare.len())
    }

    /// A job is gone, and all its memory here.
    pub(super) fn job_gone(&mut self, job: JobId) -> Option<(Request, u64)> {
        self.extents.retain(|key, _| key.2 != job);
        self.jobs.remove(&job).and_then(|entry| entry.asked)
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

    /// Takes memory for a copy from another node; says whether a region was made for it.
    fn pull(memory: &mut Memory, key: Key, bytes: u64) -> bool {
        let copy = Copy { node: key.0.owner.node, bytes, attempt: 1, job: JOB };
        let mut steps = memory.want(Wanted { key, bytes, from: From::Node(copy) });
        let made = matches!(steps[..], [Step::Ask(..)]);
        if made {
            memory.make_region(JOB).unwrap();
            steps = memory.granted(JOB);
        }
        let Some(Step::Start(_, block)) = steps.pop() else { panic!("no memory") };
        memory.keep(key, block.seal());
        made
    }

    #[test]
    fn a_job_keeps_what_it_touched_while_it_pulls_unless_somebody_lacks_room() {
        const AGENT: HostId = HostId { node: NodeId::EMBEDDED, seq: 0 };
        let mut memory = Memory::new(1500 * MIB);
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        // More than half of the store.
        assert!(pull(&mut memory, key(1), 1024 * MIB));
        assert_eq!(memory.empty_bytes(), 0, "something lies there");
        assert!(memory.reclaim(&[key(1)])[0].1.is_empty());
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
