//! The node's object table: regions, what is sealed in them, who reads it, and who waits for room.
//!
//! - **O-1** The bytes of all regions, of those granted but not made yet, and of those dropped that a reader of a living
//!   job has still mapped, never exceed the capacity.
//! - **O-2** Room is granted in the order in which it was asked for; a large request is not overtaken for ever.
//! - **O-3** A writer is told to reuse an object's memory only once the object is freed and nobody has it pinned.
//! - **O-4** A region outlives its writer while an object in it lives or a reader has it mapped, and no longer.
//! - **O-5** A region's descriptor only ever goes to hosts of the job that the region belongs to. So a reader of another job
//!   gets a copy in a region of its own job, and only if it knows the object's name with its key ([`ObjectId`]).
//! - **O-8** What lies here in memory of its owner's job counts, whatever other jobs say to have made under its name; where
//!   several say so, and it is not known whose it is, nobody inherits any of it.
//! - **O-6** A primary leaves memory only once it lies in a complete file, and a file stays while an object in it lives.
//! - **O-7** The bytes of all files never exceed what they may take: those of a file count from before it is begun until the
//!   disk has deleted it.
//! - **O-9** Nobody waits for memory of a process that says nothing: who does not answer within [`ANSWER_WAIT`] when it is told to
//!   let go of some is not counted on until it speaks, and others' memory comes free instead.
//!
//! What lies on disk is in [`spill`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::{Bound, RangeBounds, RangeInclusive},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, NodeId, ObjectId, RegionId,
    head::SOURCE_REFS_MAX,
    host::Request,
    peer::{self as wire, Record},
    resource::bytes_text,
};

mod answers;
mod copies;
mod holders;
mod makers;
mod shown;
mod spill;
mod waits;

pub use answers::{ANSWER_WAIT, ASK_AGAIN};
pub use holders::{FAN_OUT, Holders, SPREAD_BYTES_MIN};
pub use spill::{Limits, Slot, Spill, SpillItem};
pub use waits::BUSY_WAIT_MAX;

/// Most requests for a region that wait at once; a further one is refused.
pub const WAITING_MAX: usize = 4096;
/// Most regions on a node: each costs the agent a descriptor.
pub const REGIONS_MAX: usize = 65_536;
/// Most regions of one writer, made or granted.
const REGIONS_OF_ONE_MAX: usize = 16_384;
/// Most objects on a node: each costs the agent about 300 bytes.
pub const OBJECTS_MAX: usize = 8 * 1024 * 1024;

/// A writer broke its contract; the agent ends it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A region that nobody granted.
    #[error("{region} of {bytes} bytes was never granted")]
    NotGranted {
        /// The region.
        region: RegionId,
        /// Its size.
        bytes: u64,
    },
    /// There is no such region.
    #[error("{0} is unknown")]
    UnknownRegion(RegionId),
    /// A name used twice.
    #[error("{0} was added twice")]
    RegionTwice(RegionId),
    /// Dropped while objects in it live.
    #[error("{region} was dropped with {live} living objects in it")]
    RegionInUse {
        /// The region.
        region: RegionId,
        /// How many.
        live: u64,
    },
    /// Outside of its region.
    #[error("{object} lies outside of {region}: {bytes} bytes at {offset}")]
    OutOfBounds {
        /// The object.
        object: ObjectId,
        /// The region.
        region: RegionId,
        /// Where it is said to begin.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// Sealed twice by the same attempt.
    #[error("{object} was sealed twice by attempt {attempt}")]
    SealedTwice {
        /// The object.
        object: ObjectId,
        /// The attempt.
        attempt: u32,
    },
    /// Made by another job.
    #[error("{object} was sealed, which lies here in memory of another job, its owner's")]
    OfAnotherJob {
        /// The object.
        object: ObjectId,
    },
    /// A table is full.
    #[error("this node has {0} {1} already, the most it may")]
    TooMany(usize, &'static str),
}

/// What became of a request for a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// It may be made.
    Granted,
    /// It waits; [`Objects::grants`] or [`Objects::refuse`] answers.
    Waiting,
    /// It may not.
    Refused(Failure),
}

/// Where a copy lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region.
    pub region: RegionId,
    /// The region's size.
    pub region_bytes: u64,
    /// Where in the region.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// The attempt that made it.
    pub attempt: u32,
}

/// What follows when objects go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Copies whose memory their writer (maybe the agent itself) may reuse.
    pub reclaim: BTreeMap<HostId, Vec<Key>>,
    /// Nodes that shall drop the copies that they pulled of this one.
    pub drop_at: Vec<(NodeId, Key)>,
    /// Hosts that shall unmap regions, which go with their last mapping.
    pub unmap: Vec<(HostId, RegionId)>,
    /// Files of spilled objects in which nothing lives any more; [`Objects::deleted`] follows for each.
    pub delete: Vec<u64>,
}

impl Gone {
    fn reclaim(&mut self, writer: HostId, copy: Key) {
        self.reclaim.entry(writer).or_default().push(copy);
    }
}

#[derive(Debug)]
struct Region {
    fd: Arc<OwnedFd>,
    bytes: u64,
    job: JobId,
    /// What lies in it.
    copies: BTreeSet<Key>,
    /// How many of them are pinned, being spilled, copies of other nodes' objects, and primaries that are in no file.
    pinned: usize,
    spilling: usize,
    secondary: usize,
    dirty: usize,
    /// Bytes of the latter.
    dirty_bytes: u64,
    /// When one of them was used last.
    used_at: u64,
    /// It does not come free by itself: its writer still reads what lay there, or who was told to let go of it says nothing.
    kept: bool,
    /// Its writer is gone: it is dropped with its last object.
    orphan: bool,
    /// Its writer was asked to give it back since the last object in it was sealed.
    asked: bool,
    /// When that was.
    asked_at: Option<Instant>,
    /// When somebody was told last to let go of it.
    told_at: u64,
    /// Who has it mapped, to read.
    mapped: BTreeSet<HostId>,
    /// Its writer dropped it: it goes with its last mapping.
    dropped: bool,
}

/// A copy: which object, by which attempt, and the job in whose memory it lies.
pub type Key = (ObjectId, u32, JobId);

/// All copies of an object by attempts up to this one.
pub(super) fn up_to(object: ObjectId, attempt: u32) -> RangeInclusive<Key> {
    (object, 0, JobId { number: 0 })..=(object, attempt, JobId { number: u64::MAX })
}

/// All copies of what a host owns; with an agent, of what the hosts of its node own.
pub(super) fn of_owner(owner: HostId) -> RangeInclusive<Key> {
    let last = if owner.is_agent() { HostId { seq: u32::MAX, ..owner } } else { owner };
    let from = *up_to(ObjectId { owner, seq: 0, key: 0, index: 0 }, 0).start();
    let to = ObjectId { owner: last, seq: u64::MAX, key: u64::MAX, index: u32::MAX };
    from..=*up_to(to, u32::MAX).end()
}

/// Where a copy came from that is no primary one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The node: this one, where it was made for readers of another job.
    pub node: NodeId,
    /// The job in whose memory the primary one lies.
    pub job: JobId,
}

/// Whether the primary copy lies in memory of `home`, if that is given.
fn is_of(home: Option<JobId>, key: &Key, origin: Option<Origin>) -> bool {
    home.is_none_or(|home| origin.map_or(key.2, |origin| origin.job) == home)
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    /// Where in memory it lies.
    memory: Option<(RegionId, u64)>,
    /// Where on disk.
    disk: Option<Slot>,
    /// It is on its way to the disk, and stays in memory meanwhile.
    spilling: bool,
    pins: BTreeMap<HostId, u32>,
    freed: bool,
    /// `None` for a primary.
    origin: Option<Origin>,
    holders: Holders,
    /// The refs inside it, and whether they are known.
    contains: Vec<ObjectId>,
    named: bool,
    /// The place in the program that made it; empty where that is not known.
    site: Arc<str>,
    used_at: u64,
}

impl Entry {
    /// A primary that is in no file.
    fn is_dirty(&self) -> bool {
        self.origin.is_none() && self.disk.is_none()
    }

    fn is_idle(&self) -> bool {
        self.pins.is_empty() && !self.spilling
    }

    /// Nobody counts on it any more. Whether nothing holds it, so that it goes now.
    fn free(&mut self, key: Key, gone: &mut Gone) -> bool {
        self.freed = true;
        gone.drop_at.extend(std::mem::take(&mut self.holders).nodes().map(|node| (node, key)));
        self.is_idle()
    }
}

/// Room for a region that is not made yet.
#[derive(Debug)]
struct Grant {
    /// What asked for it; nothing did where it is set aside ([`Objects::reserve`]).
    request: Option<Request>,
    bytes: u64,
}

/// The table. See the module's text for what it guarantees.
#[derive(Debug)]
pub struct Objects {
    capacity: u64,
    used: u64,
    /// Bytes of dropped regions, which come free when their readers have unmapped them; but for those whose readers say
    /// nothing.
    going: u64,
    /// What time it is, as far as that is known.
    now: Option<Instant>,
    /// Who has each of these regions is to let go of it until then, having been told at that time.
    answers: VecDeque<(Instant, RegionId, u64)>,
    /// Who did not.
    silent: BTreeSet<HostId>,
    granted: BTreeMap<HostId, Vec<Grant>>,
    regions: BTreeMap<RegionId, Region>,
    copies: BTreeMap<Key, Entry>,
    /// How many of them are primary ones, and their bytes.
    primaries: (u64, u64),
    pinned: u64,
    /// Most regions.
    regions_max: usize,
    waiting: VecDeque<waits::Waiting>,
    clock: u64,
    nowhere: Arc<str>,
    disk: spill::Disk,
    /// Bytes of the agent's own regions that it drops by itself while somebody lacks room, since nothing lies in them.
    pub(super) own_empty_bytes: u64,
}

impl Objects {
    /// An empty store of `capacity` bytes, and what may be spilled from it.
    pub fn new(capacity: u64, limits: Limits) -> Self {
        Self {
            capacity,
            used: 0,
            going: 0,
            now: None,
            answers: VecDeque::new(),
            silent: BTreeSet::new(),
            granted: BTreeMap::new(),
            regions: BTreeMap::new(),
            regions_max: REGIONS_MAX,
            copies: BTreeMap::new(),
            primaries: (0, 0),
            pinned: 0,
            waiting: VecDeque::new(),
            clock: 0,
            nowhere: Arc::from(""),
            disk: spill::Disk::new(capacity, limits),
            own_empty_bytes: 0,
        }
    }

    /// How many requests for a region wait for room.
    pub fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// Bytes of all regions, made or granted.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The store's size in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// How many copies are sealed here, in memory or on disk.
    pub fn len(&self) -> u64 {
        self.copies.len() as u64
    }

    /// Whether nothing is sealed here.
    pub fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// How many copies somebody has pinned.
    pub fn pinned(&self) -> u64 {
        self.pinned
    }

    /// The agent may have so many descriptors: half of them are for regions.
    pub fn limit_descriptors(&mut self, descriptors: u64) {
        self.regions_max = usize::try_from(descriptors / 2).unwrap_or(usize::MAX).min(REGIONS_MAX);
    }

    /// Asks for a region of `bytes` for `writer`, waiting until `deadline` (`wait_ms` from now) for room.
    pub fn want(
        &mut self,
        writer: HostId,
        request: Request,
        bytes: u64,
        deadline: Instant,
        wait_ms: u64,
    ) -> Want {
        if let Some(now) = deadline.checked_sub(Duration::from_millis(wait_ms)) {
            self.at(now);
        }
        if bytes > self.capacity {
            return Want::Refused(Failure::new(
                FailureKind::ObjectTooLarge,
                format!(
                    "a region of {} is larger than the whole store of {}",
                    bytes_text(bytes),
                    bytes_text(self.capacity)
                ),
            ));
        }
        let granted = |writer| self.granted.get(&writer).map_or(0, Vec::len);
        let of_writer = self.regions_of(writer).len() + granted(writer);
        let most = self.regions_max;
        if self.regions.len() >= most || of_writer >= REGIONS_OF_ONE_MAX {
            let all = self.regions.len();
            let text = format!(
                "its regions are {of_writer} of {REGIONS_OF_ONE_MAX}, the node's {all} of {most}: free some, or raise \
                 the agent's limit of open descriptors, half of which regions may take"
            );
            return Want::Refused(Failure::new(FailureKind::Limit, text));
        }
        if self.is_next(writer, bytes, self.waiting.is_empty()) {
            self.grant(writer, Some(request), bytes);
            return Want::Granted;
        }
        if self.waiting.len() >= WAITING_MAX {
            return Want::Refused(Failure::new(
                FailureKind::Limit,
                format!("{WAITING_MAX} requests wait for room in the store already, the most that may"),
            ));
        }
        let first_deadline = deadline;
        self.waiting.push_back(waits::Waiting { writer, request, bytes, deadline, first_deadline, wait_ms });
        Want::Waiting
    }

    fn fits(&self, bytes: u64) -> bool {
        self.used.checked_add(bytes).is_some_and(|sum| sum <= self.capacity)
    }

    /// What the agent's own regions may take whatever hosts ask for, while anything lies on disk.
    fn for_reading(&self) -> u64 {
        self.disk.for_reading()
    }

    /// Bytes of the agent's own regions, made or granted.
    fn of_agent(&self) -> u64 {
        let made = self.regions.iter().filter(|(id, _)| id.writer.is_agent()).map(|(_, region)| region.bytes);
        let granted = self.granted.iter().filter(|(writer, _)| writer.is_agent()).flat_map(|(_, list)| list);
        made.sum::<u64>() + granted.map(|grant| grant.bytes).sum::<u64>()
    }

    /// Bytes of a writer's regions, made or granted, and dropped ones that somebody still has mapped.
    pub fn of_writer(&self, writer: HostId) -> u64 {
        let made = self.regions_of(writer).into_iter().filter_map(|id| self.regions.get(&id));
        let granted = self.granted.get(&writer).into_iter().flatten();
        made.map(|region| region.bytes).sum::<u64>() + granted.map(|grant| grant.bytes).sum::<u64>()
    }

    /// Whether hosts have some of what is for reading, as they may from before anything lay on disk: what comes free of
    /// theirs is not for them to write into again.
    pub fn hosts_have_too_much(&self) -> bool {
        let reserve = self.for_reading();
        reserve > 0 && self.used.saturating_sub(self.of_agent()) > self.capacity - reserve
    }

    /// Whether a region is granted now; `first` says that nobody waits who asked before.
    fn is_next(&self, writer: HostId, bytes: u64, first: bool) -> bool {
        let reserved = || writer.is_agent() && self.of_agent().saturating_add(bytes) <= self.for_reading();
        (first || reserved()) && self.lacks(writer, bytes, self.used).is_nothing()
    }

    fn grant(&mut self, writer: HostId, request: Option<Request>, bytes: u64) {
        self.used += bytes;
        self.granted.entry(writer).or_default().push(Grant { request, bytes });
    }

    /// The grant is one no more; its bytes are still counted.
    fn take_grant(&mut self, writer: HostId, is_it: impl Fn(&Grant) -> bool) -> Option<Grant> {
        let list = self.granted.get_mut(&writer)?;
        let at = list.iter().position(is_it)?;
        Some(list.swap_remove(at))
    }

    /// Notes a region that was granted to this request.
    ///
    /// # Errors
    /// Where it was not, or exists.
    pub fn add_region(
        &mut self,
        region: RegionId,
        request: Request,
        job: JobId,
        bytes: u64,
        fd: Arc<OwnedFd>,
    ) -> Result<(), Error> {
        if self.regions.contains_key(&region) {
            return Err(Error::RegionTwice(region));
        }
        let is_it = |grant: &Grant| (grant.request, grant.bytes) == (Some(request), bytes);
        if self.take_grant(region.writer, is_it).is_none() {
            return Err(Error::NotGranted { region, bytes });
        }
        self.regions.insert(
            region,
            Region {
                fd,
                bytes,
                job,
                copies: BTreeSet::new(),
                pinned: 0,
                spilling: 0,
                secondary: 0,
                dirty: 0,
                dirty_bytes: 0,
                used_at: 0,
                kept: false,
                orphan: false,
                asked: false,
                asked_at: None,
                told_at: 0,
                mapped: BTreeSet::new(),
                dropped: false,
            },
        );
        Ok(())
    }

    /// Sets room aside for the agent's own use, if there is room and nobody waits for any. [`Self::unreserve`] gives
    /// it back.
    pub fn reserve(&mut self, agent: HostId, bytes: u64) -> bool {
        let may = self.waiting.is_empty() && self.fits(bytes);
        if may {
            self.grant(agent, None, bytes);
        }
        may
    }

    /// Gives back what was set aside.
    pub fn unreserve(&mut self, agent: HostId, bytes: u64) {
        let grant = self.take_grant(agent, |grant| (grant.request, grant.bytes) == (None, bytes));
        self.used -= grant.map_or(0, |grant| grant.bytes);
    }

    /// Gives back a grant whose region could not be made, or is not needed.
    pub fn ungrant(&mut self, writer: HostId, request: Request) {
        let grant = self.take_grant(writer, |grant| grant.request == Some(request));
        self.used -= grant.map_or(0, |grant| grant.bytes);
    }

    /// Notes that a writer dropped an empty region.
    ///
    /// # Errors
    /// Where it is unknown, or not empty.
    pub fn remove_region(&mut self, region: RegionId) -> Result<Gone, Error> {
        match self.regions.get(&region).filter(|found| !found.dropped) {
            None => Err(Error::UnknownRegion(region)),
            Some(found) if !found.copies.is_empty() => {
                Err(Error::RegionInUse { region, live: found.copies.len() as u64 })
            }
            Some(_) => {
                let mut gone = Gone::default();
                self.drop_region(region, &mut gone);
                Ok(gone)
            }
        }
    }

    /// Nothing lies in the region any more, and nothing will: its memory is free once nobody has it mapped.
    fn drop_region(&mut self, id: RegionId, gone: &mut Gone) {
        let Some(region) = self.regions.get_mut(&id) else { return };
        if region.mapped.is_empty() {
            self.remove_from_table(id);
        } else if !std::mem::replace(&mut region.dropped, true) {
            region.kept = false;
            self.going += region.bytes;
            gone.unmap.extend(region.mapped.iter().map(|host| (*host, id)));
            self.told(id);
        }
    }

    fn remove_from_table(&mut self, id: RegionId) {
        if let Some(region) = self.regions.remove(&id) {
            self.used -= region.bytes;
            if region.dropped && !region.kept {
                self.going -= region.bytes;
            }
        }
    }

    /// A host of `job` has mapped a region that it was given, to read; one that went meanwhile it shall unmap again.
    pub fn mapped(&mut self, id: RegionId, job: JobId, host: HostId) -> Gone {
        let mut gone = Gone::default();
        match self.regions.get_mut(&id) {
            Some(region) if region.job == job => {
                region.mapped.insert(host);
                if region.dropped {
                    gone.unmap.push((host, id));
                }
            }
            Some(_) => {}
            None => gone.unmap.push((host, id)),
        }
        gone
    }

    /// It has not any more.
    pub fn unmapped(&mut self, id: RegionId, host: HostId) {
        if let Some(region) = self.regions.get_mut(&id)
            && region.mapped.remove(&host)
            && region.dropped
        {
            self.drop_region(id, &mut Gone::default());
        }
    }

    /// Notes a complete object. `origin` says from where the agent pulled it; `None` for a primary. Readers of other jobs get
    /// it once [`Self::set_pass`] was called.
    ///
    /// # Errors
    /// Where it is no object of that region, or was sealed before.
    pub fn seal(
        &mut self,
        object: ObjectId,
        attempt: u32,
        region: RegionId,
        offset: u64,
        bytes: u64,
        origin: Option<Origin>,
    ) -> Result<Key, Error> {
        if self.copies.len() >= OBJECTS_MAX {
            return Err(Error::TooMany(OBJECTS_MAX, "objects"));
        }
        let found = self.regions.get(&region).filter(|region| !region.dropped);
        let found = found.ok_or(Error::UnknownRegion(region))?;
        let key = (object, attempt, found.job);
        if self.copies.contains_key(&key) {
            return Err(Error::SealedTwice { object, attempt });
        }
        if offset.checked_add(bytes).is_none_or(|end| end > found.bytes) {
            return Err(Error::OutOfBounds { object, region, offset, bytes });
        }
        let entry = Entry {
            bytes,
            memory: None,
            disk: None,
            spilling: false,
            pins: BTreeMap::new(),
            freed: false,
            origin,
            holders: Holders::default(),
            contains: Vec::new(),
            named: origin.is_none(),
            site: Arc::clone(&self.nowhere),
            used_at: 0,
        };
        self.copies.insert(key, entry);
        self.count_primary(origin.is_none(), bytes, true);
        self.enter(key, region, offset);
        Ok(key)
    }

    /// Notes which place in the program made a copy.
    pub fn made_at(&mut self, key: Key, site: Arc<str>) {
        if let Some(entry) = self.copies.get_mut(&key) {
            entry.site = site;
        }
    }

    /// Notes the refs inside a copy.
    pub fn set_contains(&mut self, key: Key, refs: Vec<ObjectId>) {
        if let Some(entry) = self.copies.get_mut(&key) {
            (entry.contains, entry.named) = (refs, true);
        }
    }

    /// The refs inside a copy for whoever pulls it; `None` where they are not known here, or too many for that.
    pub fn refs_for_readers(&self, key: Key) -> Option<&[ObjectId]> {
        self.contained(key).filter(|refs| refs.len() <= SOURCE_REFS_MAX)
    }

    /// The refs inside a copy; `None` where they are not known here.
    pub fn contained(&self, key: Key) -> Option<&[ObjectId]> {
        self.copies.get(&key).filter(|entry| entry.named).map(|entry| &entry.contains[..])
    }

    /// The newest primary copy of an object, and the refs inside it, or the newest one that was pulled from a node that
    /// `from` says yes to; `None` where those are not known here, or several jobs say to have made it (O-8).
    pub fn primary(&self, object: ObjectId, node: NodeId, from: impl Fn(NodeId) -> bool) -> Option<Record> {
        let may = |key: &Key, origin: Origin| origin.job == key.2 && from(origin.node);
        let all = self.copies.range(up_to(object, u32::MAX)).filter(|(_, entry)| !entry.freed);
        let newest = all
            .filter(|(key, entry)| entry.origin.is_none_or(|origin| may(key, origin)))
            .max_by_key(|(key, entry)| (entry.origin.is_none(), **key));
        // Of what holds refs that are not known here, those could go while it stays.
        let ((_, attempt, job), entry) = newest.filter(|(_, entry)| entry.named)?;
        if self.is_made_by_others(object, *job) {
            return None;
        }
        let copy = wire::Copy { node, bytes: entry.bytes, attempt: *attempt, job: *job };
        Some(Record { copy, at: 0, contains: entry.contains.clone(), more: false })
    }

    /// What is here of what a host owned; with an agent, of what the hosts of its node owned. Copies of what lay on a node
    /// that is not among `nodes` are among it, others' copies are not.
    pub fn owned_by(&self, owner: HostId, nodes: impl Fn(NodeId) -> bool) -> BTreeSet<ObjectId> {
        let all = self.copies.range(of_owner(owner));
        let here = all.filter(|(_, entry)| entry.origin.is_none_or(|origin| !nodes(origin.node)));
        here.map(|((object, ..), _)| *object).collect()
    }

    /// A copy that is in the table lies in memory from now on.
    fn enter(&mut self, key: Key, id: RegionId, offset: u64) {
        self.clock += 1;
        let (Some(entry), Some(region)) = (self.copies.get_mut(&key), self.regions.get_mut(&id)) else {
            return;
        };
        entry.memory = Some((id, offset));
        (entry.used_at, region.used_at) = (self.clock, self.clock);
        (region.asked, region.kept) = (false, false);
        region.copies.insert(key);
        region.pinned += usize::from(!entry.pins.is_empty());
        region.secondary += usize::from(entry.origin.is_some());
        region.dirty += usize::from(entry.is_dirty());
        let dirty_bytes = if entry.is_dirty() { entry.bytes } else { 0 };
        region.dirty_bytes += dirty_bytes;
        self.disk.dirty_bytes += dirty_bytes;
    }

    /// A copy, in the table or not any more, lies in memory no more: its writer may reuse that. It is not pinned, and
    /// not being spilled.
    fn leave(
        &mut self,
        key: Key,
        (id, _): (RegionId, u64),
        bytes: u64,
        dirty: bool,
        primary: bool,
        gone: &mut Gone,
    ) {
        let dirty_bytes = if dirty { bytes } else { 0 };
        self.disk.dirty_bytes -= dirty_bytes;
        let Some(region) = self.regions.get_mut(&id) else { return };
        region.copies.remove(&key);
        region.dirty -= usize::from(dirty);
        region.dirty_bytes -= dirty_bytes;
        region.secondary -= usize::from(!primary);
        if !region.orphan {
            gone.reclaim(id.writer, key);
        } else if region.copies.is_empty() {
            self.drop_region(id, gone);
        }
    }

    /// Whether there is such a copy, which was not freed.
    pub fn has(&self, key: Key) -> bool {
        self.copies.get(&key).is_some_and(|entry| !entry.freed)
    }

    /// Where a copy lies in memory, if it does; `None` where it is missing or freed.
    pub fn find(&self, key: Key) -> Option<Option<Place>> {
        let entry = self.copies.get(&key).filter(|entry| !entry.freed)?;
        Some(entry.memory.and_then(|(id, offset)| {
            let region = self.regions.get(&id)?;
            Some(Place { region: id, region_bytes: region.bytes, offset, bytes: entry.bytes, attempt: key.1 })
        }))
    }

    /// The copy that readers are given who know of `copy`: one of the same bytes, if possible in memory.
    pub fn for_readers(&self, object: ObjectId, copy: &wire::Copy) -> Option<Key> {
        let may = |key: &Key, entry: &Entry| {
            let home = entry.origin.map_or(key.2, |origin| origin.job);
            !entry.freed && home == copy.job
        };
        let all = self.copies.range(up_to(object, copy.attempt));
        all.filter(|(key, entry)| key.1 == copy.attempt && may(key, entry))
            .max_by_key(|(_, entry)| entry.memory.is_some())
            .map(|(key, _)| *key)
    }

    /// The descriptor of a region, and its size in bytes.
    pub fn region(&self, region: RegionId) -> Option<(Arc<OwnedFd>, u64)> {
        self.regions.get(&region).map(|region| (Arc::clone(&region.fd), region.bytes))
    }

    /// The descriptor of a region for `reader`; `None` where that has it mapped.
    pub fn region_fd_for(&self, region: RegionId, reader: HostId) -> Option<Arc<OwnedFd>> {
        let region = self.regions.get(&region).filter(|region| !region.mapped.contains(&reader))?;
        Some(Arc::clone(&region.fd))
    }

    /// Pins a copy once more for `reader`; `None` where it is missing, freed, or not in memory.
    pub fn pin(&mut self, key: Key, reader: HostId) -> Option<Place> {
        let place = self.find(key)??;
        self.clock += 1;
        let entry = self.copies.get_mut(&key)?;
        let region = self.regions.get_mut(&place.region)?;
        (entry.used_at, region.used_at) = (self.clock, self.clock);
        if entry.pins.is_empty() {
            self.pinned += 1;
            region.pinned += 1;
        }
        *entry.pins.entry(reader).or_default() += 1;
        Some(place)
    }

    /// `by` wants this primary copy, and did not get it from `tried`: another holder where it shall ask (`None`: here),
    /// and some more that there are. It is told when the object goes.
    pub fn placed(&mut self, key: Key, by: NodeId, tried: &[NodeId]) -> (Option<NodeId>, Vec<NodeId>) {
        let Some(entry) = self.copies.get_mut(&key) else { return (None, Vec::new()) };
        let source = entry.holders.place(by, entry.bytes, tried);
        (source, entry.holders.others(by))
    }

    fn count_primary(&mut self, primary: bool, bytes: u64, more: bool) {
        let (count, sum) = &mut self.primaries;
        match (primary, more) {
            (true, true) => (*count, *sum) = (*count + 1, *sum + bytes),
            (true, false) => (*count, *sum) = (*count - 1, *sum - bytes),
            (false, _) => {}
        }
    }

    /// How many primary copies there are, and their bytes.
    pub fn primaries(&self) -> (u64, u64) {
        self.primaries
    }

    /// The primary copies that are not freed, with their bytes; in order, behind `after`.
    pub fn primaries_after(&self, after: Option<Key>) -> impl Iterator<Item = (Key, u64)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let all = self.copies.range((from, Bound::Unbounded));
        let primary = |(_, entry): &(&Key, &Entry)| entry.origin.is_none() && !entry.freed;
        all.filter(primary).map(|(key, entry)| (*key, entry.bytes))
    }

    /// Takes back one pin of `reader` (of a freed copy first, where it has several attempts pinned).
    pub fn unpin(&mut self, object: ObjectId, reader: HostId) -> Gone {
        let mut gone = Gone::default();
        let pinned = self
            .copies
            .range(up_to(object, u32::MAX))
            .filter(|(_, entry)| entry.pins.contains_key(&reader))
            .min_by_key(|(key, entry)| (!entry.freed, **key))
            .map(|(key, _)| *key);
        if let Some(key) = pinned {
            self.drop_pins(key, reader, 1, &mut gone);
        }
        gone
    }

    /// Takes back one pin of `reader` on this very copy.
    pub fn unpin_copy(&mut self, key: Key, reader: HostId) -> Gone {
        let mut gone = Gone::default();
        self.drop_pins(key, reader, 1, &mut gone);
        gone
    }

    fn drop_pins(&mut self, key: Key, reader: HostId, count: u32, gone: &mut Gone) {
        let Some(entry) = self.copies.get_mut(&key) else { return };
        let Some(pins) = entry.pins.get_mut(&reader) else { return };
        *pins = pins.saturating_sub(count);
        if *pins > 0 {
            return;
        }
        entry.pins.remove(&reader);
        if entry.pins.is_empty() {
            self.pinned -= 1;
            if let Some(region) = entry.memory.and_then(|(id, _)| self.regions.get_mut(&id)) {
                region.pinned -= 1;
            }
            if entry.freed && !entry.spilling {
                self.remove(key, gone);
            }
        }
    }

    /// The object's copies by these attempts are freed: they go at once or with their last pin. Only those of which the
    /// primary one lies in memory of `home`, if that is given.
    pub fn free(&mut self, object: ObjectId, attempts: RangeInclusive<u32>, home: Option<JobId>) -> Gone {
        self.free_all(up_to(object, *attempts.end()), |key, origin| {
            attempts.contains(&key.1) && is_of(home, key, origin)
        })
    }

    /// The primary copy, in memory of `home`, is gone, and those that were pulled of it go too.
    pub fn drop_pulled(&mut self, object: ObjectId, attempt: u32, home: JobId) -> Gone {
        self.free_all(up_to(object, attempt), |_, origin| origin.is_some_and(|origin| origin.job == home))
    }

    /// The values of a task from this one to that with index `last`, by this attempt alone, go as if each were freed; only those
    /// of which the primary one lies in memory of `home`, if that is given.
    pub fn discard(&mut self, first: ObjectId, last: u32, attempt: u32, home: Option<JobId>) -> Gone {
        if last < first.index {
            return Gone::default();
        }
        let last = ObjectId { index: last, ..first };
        let range = *up_to(first, 0).start()..=*up_to(last, attempt).end();
        self.free_all(range, |key, origin| key.1 == attempt && is_of(home, key, origin))
    }

    /// What was pulled of primary copies that lay on this node is of no use any more.
    pub fn drop_pulled_from(&mut self, node: NodeId) -> Gone {
        self.free_all(.., |_, origin| origin.is_some_and(|origin| origin.node == node))
    }

    fn free_all(
        &mut self,
        range: impl RangeBounds<Key>,
        which: impl Fn(&Key, Option<Origin>) -> bool,
    ) -> Gone {
        let mut gone = Gone::default();
        let goes = |key: &Key, entry: &mut Entry| which(key, entry.origin) && entry.free(*key, &mut gone);
        let idle: Vec<_> = self.copies.extract_if(range, goes).collect();
        for (key, entry) in idle {
            self.removed(key, &entry, &mut gone);
        }
        gone
    }

    fn free_copy(&mut self, key: Key, gone: &mut Gone) {
        if self.copies.get_mut(&key).is_some_and(|entry| entry.free(key, gone)) {
            self.remove(key, gone);
        }
    }

    fn remove(&mut self, key: Key, gone: &mut Gone) {
        if let Some(entry) = self.copies.remove(&key) {
            self.removed(key, &entry, gone);
        }
    }

    /// A copy is out of the table.
    fn removed(&mut self, key: Key, entry: &Entry, gone: &mut Gone) {
        self.count_primary(entry.origin.is_none(), entry.bytes, false);
        if let Some(memory) = entry.memory {
            self.leave(key, memory, entry.bytes, entry.is_dirty(), entry.origin.is_none(), gone);
        }
        if let Some(slot) = entry.disk {
            self.disk.leave(slot, gone);
        }
    }

    /// A host is gone: its pins, mappings, grants and requests go; its regions stay while objects in them live.
    pub fn host_gone(&mut self, host: HostId) -> Gone {
        let mut gone = Gone::default();
        self.silent.remove(&host);
        self.waiting.retain(|waiting| waiting.writer != host);
        for grant in self.granted.remove(&host).unwrap_or_default() {
            self.used -= grant.bytes;
        }
        let regions: Vec<_> = self.regions.keys().copied().collect();
        regions.into_iter().for_each(|id| self.unmapped(id, host));
        for id in self.regions_of(host) {
            let Some(region) = self.regions.get_mut(&id) else { continue };
            region.orphan = true;
            if region.copies.is_empty() {
                self.drop_region(id, &mut gone);
            }
        }
        let pinned: Vec<_> = self
            .copies
            .iter()
            .filter(|(_, entry)| entry.pins.contains_key(&host))
            .map(|(key, _)| *key)
            .collect();
        for key in pinned {
            self.drop_pins(key, host, u32::MAX, &mut gone);
        }
        gone
    }

    fn regions_of(&self, host: HostId) -> Vec<RegionId> {
        let range = RegionId { writer: host, seq: 0 }..=RegionId { writer: host, seq: u32::MAX };
        self.regions.range(range).map(|(id, _)| *id).collect()
    }

    /// A job is gone, and its objects, pins and regions with it. Its hosts are gone or about to be killed, so no
    /// pin protects anything any more.
    pub fn job_gone(&mut self, job: JobId) -> Gone {
        let mut gone = Gone::default();
        let keys: Vec<_> = self.copies.keys().filter(|key| key.2 == job).copied().collect();
        for key in keys {
            let Some(entry) = self.copies.remove(&key) else { continue };
            self.count_primary(entry.origin.is_none(), entry.bytes, false);
            gone.drop_at.extend(entry.holders.nodes().map(|node| (node, key)));
            self.pinned -= u64::from(!entry.pins.is_empty());
            self.disk.dirty_bytes -= if entry.memory.is_some() && entry.is_dirty() { entry.bytes } else { 0 };
            if let Some(slot) = entry.disk {
                self.disk.leave(slot, &mut gone);
            }
        }
        // What others were given of its objects.
        let given = |(key, entry): (&Key, &Entry)| {
            entry.origin.is_some_and(|origin| origin.job == job).then_some(*key)
        };
        for key in self.copies.iter().filter_map(given).collect::<Vec<_>>() {
            self.free_copy(key, &mut gone);
        }
        let regions: Vec<_> =
            self.regions.iter().filter(|(_, region)| region.job == job).map(|(id, _)| *id).collect();
        for id in regions {
            match self.regions.get_mut(&id) {
                // The agent still writes there, and says when it does not any more.
                Some(region) if region.mapped.contains(&id.writer) => {
                    region.mapped.retain(|host| *host == id.writer);
                    region.copies.clear();
                    [region.pinned, region.spilling, region.secondary, region.dirty] = [0; 4];
                    region.dirty_bytes = 0;
                    if !std::mem::replace(&mut region.dropped, true) {
                        region.kept = false;
                        self.going += region.bytes;
                    }
                }
                _ => self.remove_from_table(id),
            }
        }
        gone
    }

    /// A node is gone: nobody there needs to be told anything, and what was pulled from there stays as it is.
    pub fn node_gone(&mut self, node: NodeId) {
        for entry in self.copies.values_mut() {
            entry.holders.remove(node);
        }
    }
}

#[cfg(test)]
mod tests;
