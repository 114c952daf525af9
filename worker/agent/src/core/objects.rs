//! The node's object table: regions, what is sealed in them, who reads it, and who waits for room.
//!
//! - **O-1** The bytes of all regions, of those granted but not made yet, and of those dropped that a reader of a living
//!   job has still mapped, never exceed the capacity.
//! - **O-2** Room is granted in the order in which it was asked for; a large request is not overtaken for ever.
//! - **O-3** A writer is told to reuse an object's memory only once the object is freed and nobody has it pinned.
//! - **O-4** A region outlives its writer while an object in it lives or a reader has it mapped, and no longer.
//! - **O-5** A region's descriptor only ever goes to hosts of the job that the region belongs to.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::fd::OwnedFd,
    sync::Arc,
    time::Instant,
};

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, NodeId, ObjectId, RegionId, host::Request, inventory::Why,
    resource::bytes_text,
};

use super::stock;

mod holders;

pub use holders::{FAN_OUT, Holders, SPREAD_BYTES_MIN};

/// Most requests for a region that wait at once; a further one is refused.
pub const WAITING_MAX: usize = 4096;
/// Most regions on a node: each costs the agent a descriptor.
pub const REGIONS_MAX: usize = 65_536;
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
    /// A table is full.
    #[error("this node has {0} {1} already, the most it may")]
    TooMany(usize, &'static str),
}

/// What became of a request for a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// It may be made.
    Granted,
    /// It waits; [`Objects::grants`] or [`Objects::expire`] answers.
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
    /// Copies (object, attempt) whose memory their writer (maybe the agent itself) may reuse.
    pub reclaim: BTreeMap<HostId, Vec<(ObjectId, u32)>>,
    /// Nodes that shall drop the copies that they pulled.
    pub drop_at: Vec<(NodeId, ObjectId)>,
    /// Hosts that shall unmap regions, which go with their last mapping.
    pub unmap: Vec<(HostId, RegionId)>,
}

impl Gone {
    fn reclaim(&mut self, writer: HostId, copy: (ObjectId, u32)) {
        self.reclaim.entry(writer).or_default().push(copy);
    }
}

#[derive(Debug)]
struct Region {
    fd: Arc<OwnedFd>,
    bytes: u64,
    job: JobId,
    live: u64,
    /// Its writer is gone: it is dropped with its last object.
    orphan: bool,
    /// Its writer was asked to give it back since the last object in it was sealed.
    asked: bool,
    /// Who has it mapped, to read.
    mapped: BTreeSet<HostId>,
    /// Its writer dropped it: it goes with its last mapping.
    dropped: bool,
}

#[derive(Debug)]
struct Entry {
    region: RegionId,
    offset: u64,
    bytes: u64,
    pins: BTreeMap<HostId, u32>,
    freed: bool,
    /// Where it was pulled from; `None` for a primary.
    origin: Option<NodeId>,
    holders: Holders,
    /// The place in the program that made it; empty where that is not known.
    site: Arc<str>,
    used_at: u64,
}

#[derive(Debug)]
struct Waiting {
    writer: HostId,
    request: Request,
    bytes: u64,
    deadline: Instant,
    wait_ms: u64,
}

/// The table. See the module's text for what it guarantees.
#[derive(Debug)]
pub struct Objects {
    capacity: u64,
    used: u64,
    /// Bytes of dropped regions, which come free when their readers have unmapped them.
    going: u64,
    granted: BTreeMap<HostId, Vec<u64>>,
    regions: BTreeMap<RegionId, Region>,
    copies: BTreeMap<(ObjectId, u32), Entry>,
    pinned: u64,
    waiting: VecDeque<Waiting>,
    clock: u64,
    nowhere: Arc<str>,
}

impl Objects {
    /// An empty store of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            used: 0,
            going: 0,
            granted: BTreeMap::new(),
            regions: BTreeMap::new(),
            copies: BTreeMap::new(),
            pinned: 0,
            waiting: VecDeque::new(),
            clock: 0,
            nowhere: Arc::from(""),
        }
    }

    /// How many requests for a region wait for room.
    pub fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// What is here, by what it has in common.
    pub fn groups(&self) -> BTreeMap<stock::Key, stock::Amount> {
        let mut groups: BTreeMap<stock::Key, stock::Amount> = BTreeMap::new();
        for ((object, _), entry) in &self.copies {
            let Some(region) = self.regions.get(&entry.region) else { continue };
            let why = match (entry.freed, entry.origin) {
                (true, _) => Why::Read,
                (false, Some(_)) => Why::Copy,
                (false, None) => Why::Held,
            };
            let amount = groups.entry((Arc::clone(&entry.site), region.job, object.owner, why)).or_default();
            amount.objects += 1;
            amount.bytes += entry.bytes;
            amount.pinned += u64::from(!entry.pins.is_empty());
        }
        groups
    }

    /// Bytes of all regions, made or granted.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The store's size in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// How many copies are sealed here.
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

    /// Asks for a region of `bytes` for `writer`, waiting until `deadline` (`wait_ms` from now) for room.
    pub fn want(
        &mut self,
        writer: HostId,
        request: Request,
        bytes: u64,
        deadline: Instant,
        wait_ms: u64,
    ) -> Want {
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
        if self.regions.len() >= REGIONS_MAX {
            return Want::Refused(Failure::new(
                FailureKind::Limit,
                format!("this node has {REGIONS_MAX} regions already, the most it may"),
            ));
        }
        if self.waiting.is_empty() && self.fits(bytes) {
            self.grant(writer, bytes);
            return Want::Granted;
        }
        if self.waiting.len() >= WAITING_MAX {
            return Want::Refused(Failure::new(
                FailureKind::Limit,
                format!("{WAITING_MAX} requests wait for room in the store already, the most that may"),
            ));
        }
        self.waiting.push_back(Waiting { writer, request, bytes, deadline, wait_ms });
        Want::Waiting
    }

    fn fits(&self, bytes: u64) -> bool {
        self.used.checked_add(bytes).is_some_and(|sum| sum <= self.capacity)
    }

    fn grant(&mut self, writer: HostId, bytes: u64) {
        self.used += bytes;
        self.granted.entry(writer).or_default().push(bytes);
    }

    /// Grants what fits now, in order.
    pub fn grants(&mut self) -> Vec<(HostId, Request)> {
        let mut out = Vec::new();
        while let Some(first) = self.waiting.front()
            && self.fits(first.bytes)
        {
            let (writer, request, bytes) = (first.writer, first.request, first.bytes);
            self.waiting.pop_front();
            self.grant(writer, bytes);
            out.push((writer, request));
        }
        out
    }

    /// How many bytes the first request in line lacks, beside those that come free by themselves; zero where nobody
    /// waits.
    pub fn short_by(&self) -> u64 {
        let staying = self.used - self.going;
        self.waiting.front().map_or(0, |first| (staying + first.bytes).saturating_sub(self.capacity))
    }

    /// While somebody waits for room: the writers of regions in which nothing lies, each once for a region. They keep
    /// them for reuse, and may give them back.
    pub fn idle_writers(&mut self) -> BTreeSet<HostId> {
        let mut writers = BTreeSet::new();
        if self.short_by() > 0 {
            for (id, region) in &mut self.regions {
                let kept = region.live == 0 && !region.orphan && !region.dropped;
                if kept && !std::mem::replace(&mut region.asked, true) {
                    writers.insert(id.writer);
                }
            }
        }
        writers
    }

    /// Refuses what waited too long.
    pub fn expire(&mut self, now: Instant) -> Vec<(HostId, Request, Failure)> {
        let (used, capacity) = (self.used, self.capacity);
        let mut out = Vec::new();
        self.waiting.retain(|waiting| {
            if waiting.deadline > now {
                return true;
            }
            let failure = Failure::new(
                FailureKind::StoreFull,
                format!(
                    "no room for a region of {} within {} ms: {} of the store's {} are in use",
                    bytes_text(waiting.bytes),
                    waiting.wait_ms,
                    bytes_text(used),
                    bytes_text(capacity)
                ),
            );
            out.push((waiting.writer, waiting.request, failure));
            false
        });
        out
    }

    /// When [`Objects::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.deadline).min()
    }

    /// Notes a region that was granted.
    ///
    /// # Errors
    /// Where it was not, or exists.
    pub fn add_region(
        &mut self,
        region: RegionId,
        job: JobId,
        bytes: u64,
        fd: Arc<OwnedFd>,
    ) -> Result<(), Error> {
        if self.regions.contains_key(&region) {
            return Err(Error::RegionTwice(region));
        }
        let granted = self.granted.get_mut(&region.writer);
        let found = granted.and_then(|list| {
            let at = list.iter().position(|granted| *granted == bytes)?;
            Some(list.remove(at))
        });
        if found.is_none() {
            return Err(Error::NotGranted { region, bytes });
        }
        self.regions.insert(
            region,
            Region {
                fd,
                bytes,
                job,
                live: 0,
                orphan: false,
                asked: false,
                mapped: BTreeSet::new(),
                dropped: false,
            },
        );
        Ok(())
    }

    /// Sets room aside for the agent's own use, if there is room and nobody waits for any. [`Self::ungrant`] gives it
    /// back.
    pub fn reserve(&mut self, agent: HostId, bytes: u64) -> bool {
        let may = self.waiting.is_empty() && self.fits(bytes);
        if may {
            self.grant(agent, bytes);
        }
        may
    }

    /// Gives back a grant whose region could not be made, or is not needed.
    pub fn ungrant(&mut self, writer: HostId, bytes: u64) {
        if let Some(list) = self.granted.get_mut(&writer)
            && let Some(at) = list.iter().position(|granted| *granted == bytes)
        {
            list.remove(at);
            self.used -= bytes;
        }
    }

    /// Notes that a writer dropped an empty region.
    ///
    /// # Errors
    /// Where it is unknown, or not empty.
    pub fn remove_region(&mut self, region: RegionId) -> Result<Gone, Error> {
        match self.regions.get(&region).filter(|found| !found.dropped) {
            None => Err(Error::UnknownRegion(region)),
            Some(found) if found.live > 0 => Err(Error::RegionInUse { region, live: found.live }),
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
            self.going += region.bytes;
            gone.unmap.extend(region.mapped.iter().map(|host| (*host, id)));
        }
    }

    fn remove_from_table(&mut self, id: RegionId) {
        if let Some(region) = self.regions.remove(&id) {
            self.used -= region.bytes;
            if region.dropped {
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

    /// Notes a complete object. `origin` says from where the agent pulled it; `None` for a primary.
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
        origin: Option<NodeId>,
    ) -> Result<(), Error> {
        if self.copies.len() >= OBJECTS_MAX {
            return Err(Error::TooMany(OBJECTS_MAX, "objects"));
        }
        if self.copies.contains_key(&(object, attempt)) {
            return Err(Error::SealedTwice { object, attempt });
        }
        let found = self.regions.get_mut(&region).filter(|region| !region.dropped);
        let found = found.ok_or(Error::UnknownRegion(region))?;
        if offset.checked_add(bytes).is_none_or(|end| end > found.bytes) {
            return Err(Error::OutOfBounds { object, region, offset, bytes });
        }
        found.live += 1;
        found.asked = false;
        self.clock += 1;
        self.copies.insert(
            (object, attempt),
            Entry {
                region,
                offset,
                bytes,
                pins: BTreeMap::new(),
                freed: false,
                origin,
                holders: Holders::default(),
                site: Arc::clone(&self.nowhere),
                used_at: self.clock,
            },
        );
        Ok(())
    }

    /// Notes which place in the program made a copy.
    pub fn made_at(&mut self, object: ObjectId, attempt: u32, site: Arc<str>) {
        if let Some(entry) = self.copies.get_mut(&(object, attempt)) {
            entry.site = site;
        }
    }

    /// Where this attempt's copy lies and whose it is, unless it is missing or freed.
    pub fn find(&self, object: ObjectId, attempt: u32) -> Option<(Place, JobId)> {
        let entry = self.copies.get(&(object, attempt)).filter(|entry| !entry.freed)?;
        let region = self.regions.get(&entry.region)?;
        let place = Place {
            region: entry.region,
            region_bytes: region.bytes,
            offset: entry.offset,
            bytes: entry.bytes,
            attempt,
        };
        Some((place, region.job))
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

    /// Pins a copy once more for `reader`; `None` where it is missing or freed.
    pub fn pin(&mut self, object: ObjectId, attempt: u32, reader: HostId) -> Option<Place> {
        let (place, _) = self.find(object, attempt)?;
        self.clock += 1;
        let clock = self.clock;
        let entry = self.copies.get_mut(&(object, attempt))?;
        entry.used_at = clock;
        if entry.pins.is_empty() {
            self.pinned += 1;
        }
        *entry.pins.entry(reader).or_default() += 1;
        Some(place)
    }

    /// `by` wants this primary copy, and did not get it from `tried`: another holder where it shall ask (`None`: here),
    /// and some more that there are. It is told when the object goes.
    pub fn placed(
        &mut self,
        object: ObjectId,
        attempt: u32,
        by: NodeId,
        tried: &[NodeId],
    ) -> (Option<NodeId>, Vec<NodeId>) {
        let Some(entry) = self.copies.get_mut(&(object, attempt)) else { return (None, Vec::new()) };
        let source = entry.holders.place(by, entry.bytes, tried);
        (source, entry.holders.others(by))
    }

    /// Takes back one pin of `reader` (of a freed copy first, where it has several attempts pinned).
    pub fn unpin(&mut self, object: ObjectId, reader: HostId) -> Gone {
        let mut gone = Gone::default();
        let mut pinned: Vec<(bool, u32)> = self
            .copies
            .range((object, 0)..=(object, u32::MAX))
            .filter(|(_, entry)| entry.pins.contains_key(&reader))
            .map(|((_, attempt), entry)| (!entry.freed, *attempt))
            .collect();
        pinned.sort_unstable();
        if let Some((_, attempt)) = pinned.first() {
            self.drop_pins((object, *attempt), reader, 1, &mut gone);
        }
        gone
    }

    fn drop_pins(&mut self, key: (ObjectId, u32), reader: HostId, count: u32, gone: &mut Gone) {
        let Some(entry) = self.copies.get_mut(&key) else { return };
        let Some(pins) = entry.pins.get_mut(&reader) else { return };
        *pins = pins.saturating_sub(count);
        if *pins > 0 {
            return;
        }
        entry.pins.remove(&reader);
        if entry.pins.is_empty() {
            self.pinned -= 1;
            if entry.freed {
                self.remove(key, gone);
            }
        }
    }

    /// The object is freed: its copies here go, at once or with their last pin.
    pub fn free(&mut self, object: ObjectId) -> Gone {
        let mut gone = Gone::default();
        let keys: Vec<_> = self.copies.range((object, 0)..=(object, u32::MAX)).map(|(key, _)| *key).collect();
        for key in keys {
            self.free_copy(key, &mut gone);
        }
        gone
    }

    fn free_copy(&mut self, key: (ObjectId, u32), gone: &mut Gone) {
        let Some(entry) = self.copies.get_mut(&key) else { return };
        entry.freed = true;
        gone.drop_at.extend(std::mem::take(&mut entry.holders).nodes().map(|node| (node, key.0)));
        if entry.pins.is_empty() {
            self.remove(key, gone);
        }
    }

    fn remove(&mut self, key: (ObjectId, u32), gone: &mut Gone) {
        let Some(entry) = self.copies.remove(&key) else { return };
        let Some(region) = self.regions.get_mut(&entry.region) else { return };
        region.live -= 1;
        if !region.orphan {
            gone.reclaim(entry.region.writer, key);
        } else if region.live == 0 {
            self.drop_region(entry.region, gone);
        }
    }

    /// Drops unpinned copies of other nodes' objects, least recently used first, until `bytes` are dropped or
    /// none is left.
    pub fn evict(&mut self, bytes: u64) -> Gone {
        let mut gone = Gone::default();
        let mut idle: Vec<_> = self
            .copies
            .iter()
            .filter(|(_, entry)| entry.origin.is_some() && entry.pins.is_empty())
            .map(|(key, entry)| (entry.used_at, *key, entry.bytes))
            .collect();
        idle.sort_unstable();
        let mut dropped = 0u64;
        for (_, key, size) in idle {
            if dropped >= bytes {
                break;
            }
            dropped += size;
            self.free_copy(key, &mut gone);
        }
        gone
    }

    /// A host is gone: its pins, mappings, grants and requests go; its regions stay while objects in them live.
    pub fn host_gone(&mut self, host: HostId) -> Gone {
        let mut gone = Gone::default();
        self.waiting.retain(|waiting| waiting.writer != host);
        for bytes in self.granted.remove(&host).unwrap_or_default() {
            self.used -= bytes;
        }
        let regions: Vec<_> = self.regions.keys().copied().collect();
        regions.into_iter().for_each(|id| self.unmapped(id, host));
        for id in self.regions_of(host) {
            let Some(region) = self.regions.get_mut(&id) else { continue };
            region.orphan = true;
            if region.live == 0 {
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
        let regions: Vec<_> =
            self.regions.iter().filter(|(_, region)| region.job == job).map(|(id, _)| *id).collect();
        let regions: BTreeSet<_> = regions.into_iter().collect();
        let keys: Vec<_> = self
            .copies
            .iter()
            .filter(|(_, entry)| regions.contains(&entry.region))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if let Some(entry) = self.copies.remove(&key) {
                gone.drop_at.extend(entry.holders.nodes().map(|node| (node, key.0)));
                if !entry.pins.is_empty() {
                    self.pinned -= 1;
                }
            }
        }
        regions.into_iter().for_each(|id| self.remove_from_table(id));
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
