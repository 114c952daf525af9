//! The host's side of the object store: the regions that it writes, and views into those that others wrote.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use mobula_proto::{
    Failure, FailureKind, HostId, ObjectId, SeqMap,
    host::{ToAgent, Welcome},
    peer::{CLAIMS_MAX, Copy},
};
use mobula_store::{Block, Bytes, Encoded, Extent, Heap, HeapOptions, Reader, Writer, heap::WeakExtent};
use parking_lot::Mutex;

use crate::{
    context::{self, Context},
    link::AgentSender,
    runtime::Runtime,
    site::{Site, Sites},
};

mod sync;
mod views;

pub(crate) use views::{Callback, Place, Views};

/// How long a writer waits for room before the store counts as full; longer while the agent writes objects to disk, or calls
/// run on the node whose end may make room.
pub const STORE_FULL_WAIT: Duration = Duration::from_secs(5);
/// How long a writer waits for room before it gives back what it only keeps for reuse.
const PRESSURE_WAIT: Duration = Duration::from_millis(50);
/// Touched memory that a writer keeps for reuse while it is in use: one part in so many of the node's store. More makes
/// large objects cheap to write again and again (a warm page takes a copy, a new one a page fault as well); what is
/// kept counts as used in the store's budget until the agent asks for it or [`KEEP_TIME`] is over.
const KEEP_SHARE: u64 = 4;
/// The same once nothing was written for [`KEEP_TIME`], in bytes.
const KEEP_IDLE_BYTES: u64 = 64 * 1024 * 1024;
/// How long after its last write a writer keeps all that.
const KEEP_TIME: Duration = Duration::from_secs(30);
/// How long a writer gives back at once what comes free, after the agent lacked room.
const PRESSURE_TIME: Duration = Duration::from_secs(5);
/// How many ticks ([`Store::tidy`], each 250 ms) after its start a driver, or a job's shared host, warms its first region,
/// so that what it writes later meets no page fault. Whatever is over sooner does not pay for it.
const WARM_AFTER_TICKS: u32 = 2;
/// The thread that does it yields to what has work to do: it gets about a quarter of a busy core.
const WARM_NICE: i32 = 5;
/// Smallest region, unless the store itself is small.
const REGION_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// How many regions even a small store should have room for.
const REGIONS_MIN: u64 = 8;

/// What lies in regions of this host, by the attempt that made it: of two that ran here each has its copy, since the agent
/// frees them one by one. Most objects have one copy, and are first values of tasks of this host, or put by it, which count
/// up.
struct Kept {
    me: HostId,
    first: SeqMap<(u32, Extent)>,
    others: HashMap<(ObjectId, u32), Extent>,
}

impl Kept {
    fn is_first(&self, object: &ObjectId) -> bool {
        object.index == 0 && object.owner == self.me
    }

    fn get(&self, object: ObjectId, attempt: u32) -> Option<&Extent> {
        if self.is_first(&object)
            && let Some((made_by, extent)) = self.first.get(&object.seq)
            && *made_by == attempt
        {
            return Some(extent);
        }
        self.others.get(&(object, attempt))
    }

    fn insert(&mut self, object: ObjectId, attempt: u32, extent: Extent) {
        if self.is_first(&object) && self.first.get(&object.seq).is_none() {
            self.first.insert(object.seq, (attempt, extent));
        } else {
            self.others.insert((object, attempt), extent);
        }
    }

    fn remove(&mut self, object: ObjectId, attempt: u32) -> Option<Extent> {
        let by = |(made_by, _): &(u32, Extent)| *made_by == attempt;
        if self.is_first(&object) && self.first.get(&object.seq).is_some_and(by) {
            return self.first.remove(&object.seq).map(|(_, extent)| extent);
        }
        self.others.remove(&(object, attempt))
    }
}

/// See the module's text.
pub struct Store {
    me: HostId,
    heap: Heap,
    next_region: AtomicU32,
    next_request: AtomicU64,
    kept: Mutex<Kept>,
    sites: Mutex<Sites>,
    /// What lay there, and that the agent has elsewhere by now, while it is still read in this process.
    left: Mutex<HashMap<(ObjectId, u32), WeakExtent>>,
    /// What lies in regions of others.
    views: Views,
    growing: Mutex<()>,
    /// For how many regions that were asked for the agent has no room: none is kept empty meanwhile.
    pressed: AtomicU32,
    /// The same for others' regions: when the agent said so last.
    asked: Mutex<Option<Instant>>,
    keep_bytes: u64,
    /// Held while the agent is told of one value with refs inside.
    naming: Mutex<()>,
    /// Ticks until the first region is warmed; zero once that is done, or where it is not to be.
    warm_in: AtomicU32,
    /// When something was written last; `None` once what only serves reuse is given back.
    written: Mutex<Option<Instant>>,
    /// `None` once nothing will be answered any more.
    answers: Mutex<Option<HashMap<u64, Growing>>>,
}

/// A thread that waits for a region, since it lacks room for so many bytes.
struct Growing {
    wanted: u64,
    answer: SyncSender<Result<Room, Failure>>,
    _call: Option<Lacking>,
}

/// A call waits for room, until the answer is here: what is asked after that finds one that goes on, though its thread may not
/// have run yet.
struct Lacking(Arc<Context>);

impl Lacking {
    fn new(call: Arc<Context>) -> Self {
        call.lacking.fetch_add(1, Ordering::AcqRel);
        Self(call)
    }
}

impl Drop for Lacking {
    fn drop(&mut self) {
        self.0.lacking.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why objects could not be opened.
pub(crate) struct Unopened {
    pub(crate) failure: Failure,
    /// Those that are not where they were said to lie, if that is all.
    pub(crate) lost: Vec<(ObjectId, Copy)>,
}

/// What helps it.
enum Room {
    /// The agent lets it make a region.
    Region,
    /// Room came free where there are regions already.
    Here(Block),
}

impl Store {
    /// Nothing written and nothing open.
    pub fn new(welcome: &Welcome, agent: AgentSender) -> Self {
        let region_bytes_min = REGION_BYTES_MIN.min(welcome.store_bytes / REGIONS_MIN).max(1);
        Self {
            me: welcome.host,
            heap: Heap::new(HeapOptions { region_bytes_min }),
            views: Views::new(agent),
            next_region: AtomicU32::new(1),
            next_request: AtomicU64::new(1),
            kept: Mutex::new(Kept { me: welcome.host, first: SeqMap::default(), others: HashMap::new() }),
            sites: Mutex::default(),
            left: Mutex::default(),
            growing: Mutex::default(),
            pressed: AtomicU32::new(0),
            asked: Mutex::default(),
            warm_in: AtomicU32::new(if welcome.shared || welcome.host == welcome.driver {
                WARM_AFTER_TICKS
            } else {
                0
            }),
            keep_bytes: welcome.store_bytes / KEEP_SHARE,
            naming: Mutex::default(),
            written: Mutex::default(),
            answers: Mutex::new(Some(HashMap::new())),
        }
    }

    /// Writes a value, in which are these refs, into shared memory, once, and tells the agent where it is. One that was built in place
    /// ([`Self::allocate`]) lies there already. Waits up to [`STORE_FULL_WAIT`] for room. What another attempt left here is
    /// another copy, of which the agent may have heard that it counts no more.
    pub fn keep(
        &self,
        runtime: &Arc<Runtime>,
        object: ObjectId,
        attempt: u32,
        (encoded, refs): (&Encoded, &[ObjectId]),
        site: Site,
    ) -> Result<Copy, Failure> {
        let extent = match encoded.in_place().filter(|extent| self.heap.owns(extent)) {
            Some(extent) => extent,
            None => {
                let mut block = self.allocate(runtime, encoded.len())?;
                encoded
                    .write_into(block.as_mut_slice())
                    .map_err(|error| Failure::new(FailureKind::Codec, error.to_string()))?;
                block.seal()
            }
        };
        let location = extent.location();
        self.kept.lock().insert(object, attempt, extent);
        let site = {
            // Named before any other thread uses the number.
            let mut sites = self.sites.lock();
            let (number, name) = sites.number(site);
            if let Some(name) = name {
                runtime.tell(ToAgent::Site { number, name });
            }
            number
        };
        // No refs inside of another value come between these and what they are in.
        let _one = (!refs.is_empty()).then(|| self.naming.lock());
        for refs in refs.chunks(CLAIMS_MAX) {
            runtime.tell(ToAgent::Contains { object, attempt, refs: refs.to_vec() });
            runtime.peers().wait_for_agent(runtime);
        }
        runtime.tell(ToAgent::Sealed {
            object,
            attempt,
            region: location.region_seq,
            offset: location.offset,
            bytes: location.len,
            site,
        });
        runtime.peers().wait_for_agent(runtime);
        Ok(Copy { node: runtime.me().node, bytes: location.len, attempt, job: runtime.job() })
    }

    /// Shared memory to write into, its page faults taken. What lies there is unspecified. Waits up to
    /// [`STORE_FULL_WAIT`] for room.
    pub fn allocate(&self, runtime: &Arc<Runtime>, bytes: u64) -> Result<Block, Failure> {
        let block = loop {
            match self.heap.allocate(bytes) {
                Ok(block) => break block,
                Err(need) => {
                    let grow = || self.grow(runtime, bytes, need.bytes);
                    let here = if context::is_async() { tokio::task::block_in_place(grow) } else { grow() };
                    if let Some(block) = here? {
                        break block;
                    }
                }
            }
        };
        *self.written.lock() = Some(Instant::now());
        if let Some(warming) = block.warming() {
            warming.finish().map_err(|error| Failure::new(FailureKind::StoreFull, error.to_string()))?;
        }
        Ok(block)
    }

    /// Adds a region, with the agent's leave, unless memory comes free meanwhile. One thread at a time: the others find
    /// room when it is done. While there is none each waits by itself, since what is too little for one may be enough for
    /// another, whose end is what the first waits for. Waits as long as the agent makes room.
    fn grow(&self, runtime: &Arc<Runtime>, wanted: u64, bytes: u64) -> Result<Option<Block>, Failure> {
        let mut turn = self.growing.try_lock_for(PRESSURE_WAIT);
        if let Ok(block) = self.heap.allocate(wanted) {
            return Ok(Some(block));
        }
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = sync_channel(1);
        let growing = Growing { wanted, answer: sender, _call: context::task().map(Lacking::new) };
        match self.answers.lock().as_mut() {
            Some(answers) => drop(answers.insert(request, growing)),
            None => return Err(ended(runtime)),
        }
        let wait_ms = u64::try_from(STORE_FULL_WAIT.as_millis()).unwrap_or(u64::MAX);
        runtime.tell(ToAgent::RegionWanted { request, bytes, wait_ms });
        let answer = receiver.recv_timeout(PRESSURE_WAIT).or_else(|_| {
            turn = None;
            self.pressed.fetch_add(1, Ordering::AcqRel);
            self.trim(runtime, 0);
            // It answers in any case, unless the link to it ends.
            let answer = receiver.recv();
            self.pressed.fetch_sub(1, Ordering::AcqRel);
            answer
        });
        match answer {
            Ok(Ok(Room::Region)) => {}
            Ok(Ok(Room::Here(block))) => {
                runtime.tell(ToAgent::RegionUnwanted { request });
                return Ok(Some(block));
            }
            Ok(Err(failure)) => return self.heap.allocate(wanted).map(Some).map_err(|_| failure),
            Err(_) => return Err(ended(runtime)),
        }
        let trouble = |error: mobula_store::Error| {
            // What was granted goes back.
            runtime.tell(ToAgent::RegionUnwanted { request });
            Failure::new(FailureKind::StoreFull, error.to_string())
        };
        let writer = Writer::create(bytes).map_err(trouble)?;
        let descriptor = writer.share().map_err(trouble)?;
        let seq = self.next_region.fetch_add(1, Ordering::Relaxed);
        let bytes = writer.len();
        if let Ok(block) = self.heap.allocate(wanted) {
            // What was freed before the region was asked for has come back before the answer, and is warm: the new
            // region goes as it came, untouched.
            runtime.tell_with(ToAgent::RegionAdded { request, seq, bytes }, vec![descriptor]);
            runtime.tell(ToAgent::RegionRemoved { seq });
            return Ok(Some(block));
        }
        // Told first: as soon as it is in the heap, other threads say what they made there.
        runtime.tell_with(ToAgent::RegionAdded { request, seq, bytes }, vec![descriptor]);
        if let Err(error) = self.heap.add_region(seq, writer) {
            runtime.tell(ToAgent::RegionRemoved { seq });
            return Err(Failure::new(FailureKind::StoreFull, error.to_string()));
        }
        // Of those who wait by themselves, some may find room beside what this one is for.
        let block = self.heap.allocate(wanted).ok();
        self.freed();
        Ok(block)
    }

    pub(crate) fn region_answer(&self, request: u64, answer: Result<(), Failure>) {
        // Nobody waits where room came free in another way: then the agent knows by now.
        let growing = self.answers.lock().as_mut().and_then(|answers| answers.remove(&request));
        if let Some(growing) = growing {
            let _ended = growing.answer.try_send(answer.map(|()| Room::Region));
        }
    }

    /// Memory came free: who waits for a region may need none.
    fn freed(&self) {
        let mut answers = self.answers.lock();
        let Some(answers) = answers.as_mut() else { return };
        let mut waiting: Vec<(u64, u64)> =
            answers.iter().map(|(request, growing)| (*request, growing.wanted)).collect();
        waiting.sort_unstable();
        for (request, wanted) in waiting {
            if let Ok(block) = self.heap.allocate(wanted)
                && let Some(growing) = answers.remove(&request)
            {
                let _ended = growing.answer.try_send(Ok(Room::Here(block)));
            }
        }
    }

    /// The agent says that nobody reads these in this host's memory any more; and maybe that others have more right to what
    /// comes free.
    pub(crate) fn reclaim(&self, runtime: &Arc<Runtime>, objects: &[(ObjectId, u32)], give_back: bool) {
        let gone: Vec<_> = {
            let mut kept = self.kept.lock();
            // What another attempt made stays.
            let mut take = |made: &(ObjectId, u32)| Some((*made, kept.remove(made.0, made.1)?));
            objects.iter().filter_map(&mut take).collect()
        };
        let left: Vec<_> = gone.iter().map(|(made, extent)| (*made, extent.downgrade())).collect();
        drop(gone);
        self.left.lock().extend(left.into_iter().filter(|(_, extent)| !extent.is_gone()));
        if give_back {
            *self.asked.lock() = Some(Instant::now());
            // Before whoever waits here for room can write there.
            self.trim(runtime, self.keep_bytes());
        }
        self.freed();
        self.trim(runtime, self.keep_bytes());
        if give_back {
            runtime.tell(ToAgent::Trimmed);
        }
    }

    /// What may be kept for reuse just now.
    fn keep_bytes(&self) -> u64 {
        if self.asked.lock().is_some() || self.pressed.load(Ordering::Acquire) > 0 {
            0
        } else if self.written.lock().is_some() {
            self.keep_bytes
        } else {
            KEEP_IDLE_BYTES.min(self.keep_bytes)
        }
    }

    fn trim(&self, runtime: &Arc<Runtime>, keep_bytes: u64) {
        for seq in self.heap.remove_empty_regions(keep_bytes) {
            runtime.tell(ToAgent::RegionRemoved { seq });
        }
    }

    /// Now and then: forgets views that nobody holds, and gives back memory that is kept for nothing.
    pub(crate) fn tidy(&self, runtime: &Arc<Runtime>) {
        let warm_in = self.warm_in.load(Ordering::Relaxed);
        if warm_in > 0 {
            self.warm_in.store(warm_in - 1, Ordering::Relaxed);
            if warm_in == 1 {
                Self::warm_first(runtime);
            }
        }
        if self.asked.lock().is_some() {
            // As in `reclaim`.
            self.trim(runtime, self.keep_bytes());
        }
        // Views of what the agent has elsewhere by now may have gone.
        self.freed();
        self.written.lock().take_if(|at| at.elapsed() >= KEEP_TIME);
        let nothing_left = {
            let mut left = self.left.lock();
            left.retain(|_, extent| !extent.is_gone());
            left.is_empty()
        };
        // Also of what was built in place and never put, of whose end nobody hears.
        self.trim(runtime, self.keep_bytes());
        // What is still read here comes free later, and others may wait for that.
        if nothing_left {
            self.asked.lock().take_if(|at| at.elapsed() >= PRESSURE_TIME);
        }
        self.views.tidy(Instant::now());
    }

    /// Makes the first region, if there is none yet and room for one, and takes its page faults, on a thread of its own.
    fn warm_first(runtime: &Arc<Runtime>) {
        let runtime = Arc::downgrade(runtime);
        let warm = move || {
            let Some(runtime) = runtime.upgrade() else { return };
            let store = runtime.store();
            let bytes = store.heap.region_bytes_for(0);
            *store.written.lock() = Some(Instant::now());
            if store.heap.capacity_bytes() == 0 && store.grow(&runtime, 1, bytes).is_err() {
                return;
            }
            let heap = store.heap.clone();
            drop(runtime);
            // Where that is not allowed, the thread is like any other.
            let _nice = rustix::process::setpriority_process(None, WARM_NICE);
            if let Err(error) = heap.warm(bytes) {
                tracing::debug!(%error, "the first region is not warmed");
            }
        };
        let started = std::thread::Builder::new().name("mobula-warm".to_owned()).spawn(warm);
        if let Err(error) = started {
            tracing::debug!(%error, "the first region is not warmed");
        }
    }

    /// Bytes of this host's regions in use, and their size.
    pub fn usage(&self) -> (u64, u64) {
        (self.heap.used_bytes(), self.heap.capacity_bytes())
    }

    /// Makes all of these readable, then calls `done` once. `ahead`: nothing waits for them yet. Where some are lost, all
    /// that are get known before.
    pub(crate) fn open_all(
        &self,
        wanted: Vec<(ObjectId, Copy)>,
        ahead: bool,
        done: impl FnOnce(Result<HashMap<ObjectId, Bytes>, Unopened>) + Send + 'static,
    ) {
        struct Gather<F> {
            left: usize,
            found: HashMap<ObjectId, Bytes>,
            unopened: Option<Unopened>,
            done: Option<F>,
        }
        let distinct: HashMap<ObjectId, Copy> = wanted.into_iter().collect();
        let (left, found) = (distinct.len(), HashMap::new());
        let gather = Arc::new(Mutex::new(Gather { left, found, unopened: None, done: Some(done) }));
        for (object, copy) in distinct {
            let gather = gather.clone();
            let one = Box::new(move |result: Result<Bytes, Failure>| {
                let mut state = gather.lock();
                state.left -= 1;
                let mut over = state.left == 0;
                match result {
                    Ok(bytes) => drop(state.found.insert(object, bytes)),
                    Err(failure) if failure.kind == FailureKind::ObjectLost => {
                        let lost = Vec::new();
                        state.unopened.get_or_insert(Unopened { failure, lost }).lost.push((object, copy));
                    }
                    Err(failure) => {
                        state.unopened = Some(Unopened { failure, lost: Vec::new() });
                        over = true;
                    }
                }
                if over && let Some(done) = state.done.take() {
                    let (found, unopened) = (std::mem::take(&mut state.found), state.unopened.take());
                    drop(state);
                    done(unopened.map_or(Ok(found), Err));
                }
            });
            self.open(object, copy, ahead, one);
        }
    }

    /// Makes one readable, then calls `done` once; see [`Self::open_all`].
    pub(crate) fn open(&self, object: ObjectId, copy: Copy, ahead: bool, done: Callback) {
        let own = self.kept.lock().get(object, copy.attempt).map(Extent::bytes);
        let left = || self.left.lock().get(&(object, copy.attempt))?.upgrade().map(|extent| extent.bytes());
        if let Some(bytes) = own.or_else(left) {
            return done(Ok(bytes));
        }
        self.views.open(object, copy, ahead, done);
    }

    /// What lies in regions of others, and is read here.
    pub(crate) fn views(&self) -> &Views {
        &self.views
    }

    /// The connection to the agent is gone: nothing will be answered any more.
    pub(crate) fn end(&self, failure: &Failure) {
        *self.answers.lock() = None;
        self.views.end(failure);
    }

    /// This host's regions.
    pub fn writer(&self) -> HostId {
        self.me
    }
}

fn ended(runtime: &Runtime) -> Failure {
    runtime.ended().unwrap_or_else(|| Failure::new(FailureKind::JobEnded, "the job is over"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Alone, ME, alone, other};

    /// Longest that a thread may take to come back.
    const WAIT: Duration = Duration::from_secs(20);

    #[test]
    fn of_two_attempts_each_makes_its_copy_and_each_goes_by_itself() {
        let Alone { runtime, told: said, user: _user } = alone(&[]);
        let objects = [ME, other(2)].map(|owner| mobula_proto::TaskId::numbered(owner, 1).object(0));
        let keep = |object: ObjectId, attempt: u32| {
            let runtime = runtime.clone();
            std::thread::spawn(move || {
                let value = Encoded::from(mobula_proto::Blob::from_slice(&[attempt as u8; 100]));
                let made = (&value, &[][..]);
                runtime.store().keep(&runtime, object, attempt, made, Site::Results("test")).unwrap()
            })
        };
        let first = keep(objects[0], 1);
        let wish =
            std::iter::repeat_with(|| said.recv_timeout(WAIT).expect("it asks for room")).find_map(|told| {
                if let ToAgent::RegionWanted { request, .. } = told { Some(request) } else { None }
            });
        runtime.store().region_answer(wish.unwrap(), Ok(()));
        first.join().unwrap();
        // Where the agent has been told to free the first, and has not said so here yet, that is not given out again.
        let rest = [(objects[0], 2), (objects[1], 1), (objects[1], 2)];
        for (object, attempt) in rest {
            assert_eq!(keep(object, attempt).join().unwrap().attempt, attempt);
        }
        let sealed = |message| match message {
            ToAgent::Sealed { object, attempt, .. } => Some((object, attempt)),
            _ => None,
        };
        let told: Vec<_> = said.try_iter().filter_map(sealed).collect();
        assert_eq!(told, [(objects[0], 1), rest[0], rest[1], rest[2]]);
        let byte = |object, attempt| {
            let copy = Copy { node: ME.node, bytes: 100, attempt, job: runtime.job() };
            let (tell, hear) = std::sync::mpsc::channel();
            runtime.store().open(object, copy, false, Box::new(move |bytes| drop(tell.send(bytes))));
            hear.try_recv().ok().map(|bytes| bytes.unwrap()[0])
        };
        for object in objects {
            assert_eq!([1, 2].map(|attempt| byte(object, attempt)), [Some(1), Some(2)]);
            runtime.store().reclaim(&runtime, &[(object, 1), (object, 3)], false);
            assert_eq!([1, 2].map(|attempt| byte(object, attempt)), [None, Some(2)]);
            runtime.store().reclaim(&runtime, &[(object, 2)], false);
            assert_eq!(byte(object, 2), None);
        }
    }

    #[test]
    fn what_was_built_in_place_and_never_put_is_given_back_whenever_it_is_dropped() {
        let Alone { runtime, told, user: _user } = alone(&[]);
        let store = runtime.store();
        let block = std::thread::scope(|scope| {
            let building = scope.spawn(|| store.allocate(&runtime, KEEP_IDLE_BYTES + 1));
            let wish = std::iter::repeat_with(|| told.recv_timeout(WAIT).expect("it asks for room"))
                .find_map(|told| {
                    if let ToAgent::RegionWanted { request, .. } = told { Some(request) } else { None }
                });
            store.region_answer(wish.unwrap(), Ok(()));
            building.join().unwrap().unwrap()
        });
        let gone = || told.try_iter().any(|said| matches!(said, ToAgent::RegionRemoved { .. }));
        // Others lack room, while it is in use; that, and the time for which it is kept for reuse, is long over when it is
        // dropped.
        store.reclaim(&runtime, &[], true);
        *store.asked.lock() = Instant::now().checked_sub(PRESSURE_TIME);
        *store.written.lock() = Instant::now().checked_sub(KEEP_TIME);
        store.tidy(&runtime);
        store.tidy(&runtime);
        assert!(!gone(), "it is in use");
        drop(block);
        store.tidy(&runtime);
        assert!(gone());
        assert_eq!(store.usage(), (0, 0));
    }

    #[test]
    fn once_the_job_has_ended_nobody_waits_for_room() {
        let Alone { runtime, told: wishes, user: _user } = alone(&[]);
        let (told, answers) = std::sync::mpsc::channel();
        let ask = || {
            let (runtime, told) = (runtime.clone(), told.clone());
            std::thread::spawn(move || told.send(runtime.store().allocate(&runtime, 1 << 20).map(drop)))
        };
        let first = ask();
        let is_wish = |message: ToAgent| matches!(message, ToAgent::RegionWanted { .. });
        while !is_wish(wishes.recv_timeout(WAIT).expect("a wish for a region")) {}
        runtime.end(Failure::new(FailureKind::JobEnded, "its driver left"));
        let second = ask();
        for asker in [first, second] {
            let failure = answers.recv_timeout(WAIT).expect("no answer to who waits for room").unwrap_err();
            assert_eq!(failure.kind, FailureKind::JobEnded);
            asker.join().unwrap().unwrap();
        }
    }
}
