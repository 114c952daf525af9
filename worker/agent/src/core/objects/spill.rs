//! Making room: which copies leave memory, and which are written to disk first.
//!
//! Memory comes free region by region, so regions are emptied as a whole, those first that were used least recently:
//! of other nodes' objects, which are dropped; then of primaries that lie in a file; then of primaries that do not,
//! which are written to a file, and dropped when they lie there. Where a large share of the store holds primaries that are
//! in no file, some are written ahead of need, and stay in memory until somebody lacks room.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use mobula_proto::{NodeId, resource::bytes_text};
use mobula_store::spill::slot_bytes;

use super::{Gone, Key, Objects, Place, waits::Lack};

/// Most files that are written at once.
pub const SPILLS_MAX: usize = 2;
/// How long after a file was written its memory may take to come free; and how long after one could not be written the
/// next is tried.
pub const PAUSE: Duration = Duration::from_secs(1);

/// What may be spilled, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Primaries are written ahead of need when those that are in no file take more than this share of the store;
    /// default 0.8.
    pub above: f64,
    /// And until they take less than this; default 0.6.
    pub below: f64,
    /// A file takes no further object once it has so many bytes; default 64 MiB.
    pub file_bytes: u64,
    /// Most bytes of files; 0 turns spilling off. Default 64 GiB.
    pub disk_bytes: u64,
    /// What is read back from disk has this share of the store to itself, while anything lies there; default 0.125.
    /// What it is read for may hold on to pieces of all other regions, none of which then comes free, until it has the
    /// rest of what it needs.
    pub restore: f64,
    /// How long the disk may take for one file while somebody waits for room, and give nothing of what is read back;
    /// default 60 s.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            above: 0.8,
            below: 0.6,
            file_bytes: 64 << 20,
            disk_bytes: 64 << 30,
            restore: 0.125,
            stall: Duration::from_secs(60),
        }
    }
}

/// Where on disk a copy lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The file's number.
    pub file: u64,
    /// Where in it.
    pub offset: u64,
}

/// A file to be written: slots in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Spill {
    /// Its number.
    pub file: u64,
    /// What goes into it.
    pub items: Vec<SpillItem>,
}

/// One copy of a [`Spill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpillItem {
    /// Which one.
    pub key: Key,
    /// Where it lies in memory.
    pub place: Place,
    /// Where it begins in the file.
    pub offset: u64,
}

/// What has been done since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of objects written to disk.
    pub spilled_bytes: u64,
    /// How many objects those were.
    pub spilled: u64,
    /// Bytes of objects read back.
    pub restored_bytes: u64,
    /// How many objects those were.
    pub restored: u64,
    /// Bytes of copies dropped from memory that lie on disk or on another node.
    pub evicted_bytes: u64,
    /// How many copies those were.
    pub evicted: u64,
}

#[derive(Debug)]
struct File {
    bytes: u64,
    live: u64,
}

/// The files, and when to write more.
#[derive(Debug)]
pub(super) struct Disk {
    limits: Limits,
    above_bytes: u64,
    below_bytes: u64,
    restore_bytes: u64,
    /// Bytes of primaries in memory that are in no file, those on their way there included.
    pub(super) dirty_bytes: u64,
    files: BTreeMap<u64, File>,
    /// Bytes of each file in which nothing lives any more, and which the disk still has; and of all of them.
    leaving: BTreeMap<u64, u64>,
    leaving_bytes: u64,
    spills: BTreeMap<u64, Spill>,
    /// Bytes of the objects in `spills`.
    spilling_bytes: u64,
    /// Bytes of all files, complete or not, those that are still to be deleted included.
    bytes: u64,
    next_file: u64,
    /// When a file was complete last.
    progress: Option<Instant>,
    /// Why the last file was not written, or the next is not, and when it is tried again.
    trouble: Option<(Option<Instant>, String)>,
    counters: Counters,
}

impl Disk {
    pub(super) fn new(capacity: u64, limits: Limits) -> Self {
        let share = |of: f64| (capacity as f64 * of.clamp(0.0, 1.0)) as u64;
        Self {
            above_bytes: share(limits.above),
            below_bytes: share(limits.below.min(limits.above)),
            restore_bytes: share(limits.restore),
            limits,
            dirty_bytes: 0,
            files: BTreeMap::new(),
            leaving: BTreeMap::new(),
            leaving_bytes: 0,
            spills: BTreeMap::new(),
            spilling_bytes: 0,
            bytes: 0,
            next_file: 1,
            progress: None,
            trouble: None,
            counters: Counters::default(),
        }
    }

    /// Bytes of the store that are for what is read back: none while nothing lies there, or is on its way.
    pub(super) fn for_reading(&self) -> u64 {
        if self.bytes == self.leaving_bytes { 0 } else { self.restore_bytes }
    }

    /// A copy that lies there is gone.
    pub(super) fn leave(&mut self, slot: Slot, gone: &mut Gone) {
        let Some(file) = self.files.get_mut(&slot.file) else { return };
        file.live -= 1;
        if file.live == 0 {
            self.remove(slot.file, gone);
        }
    }

    fn remove(&mut self, file: u64, gone: &mut Gone) {
        if let Some(removed) = self.files.remove(&file) {
            self.deleting(file, removed.bytes, gone);
        }
    }

    /// Nothing is in this file any more. Its bytes count until the disk has them back ([`Objects::deleted`]).
    fn deleting(&mut self, file: u64, bytes: u64, gone: &mut Gone) {
        self.leaving.insert(file, bytes);
        self.leaving_bytes += bytes;
        gone.delete.push(file);
    }

    /// Until when a wait that should have ended at `deadline` goes on, because the disk is making room.
    pub(super) fn extended(&self, deadline: Instant, now: Instant) -> Option<Instant> {
        let end = if self.spills.is_empty() {
            self.progress? + PAUSE
        } else {
            self.progress.map_or(deadline, |at| at.max(deadline)) + self.limits.stall
        };
        (now < end).then(|| end.min(now + PAUSE))
    }

    /// What an error says about the disk, if it is in trouble.
    pub(super) fn complaint(&self) -> String {
        self.trouble.as_ref().map_or_else(String::new, |(_, why)| format!("; nothing is spilled: {why}"))
    }

    /// When a file is tried again after one could not be written.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.trouble.as_ref().and_then(|(at, _)| *at)
    }

    /// Whether files may take so many bytes more; if not, that is what an error says.
    fn has_place_for(&mut self, bytes: u64) -> bool {
        let has_place = bytes == 0 || self.bytes.saturating_add(bytes) <= self.limits.disk_bytes;
        // What could not be written says more, and is tried again only after a while.
        if !has_place && self.limits.disk_bytes > 0 && self.retry_at().is_none() {
            let (used, most) = (bytes_text(self.bytes), bytes_text(self.limits.disk_bytes));
            let leaving = match self.leaving_bytes {
                0 => String::new(),
                bytes => format!(", {} of that by files yet to be deleted", bytes_text(bytes)),
            };
            self.trouble =
                Some((None, format!("{used} of the {most} that files may take are used{leaving}")));
        }
        has_place
    }

    /// Whether a further file may be begun.
    fn may_begin(&self) -> bool {
        self.limits.disk_bytes > 0 && self.spills.len() < SPILLS_MAX && self.retry_at().is_none()
    }
}

/// What became of copies that were to leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emptied {
    /// They have, or will when they lie on disk.
    Yes,
    /// The disk takes no more so large a one.
    TooLarge,
    /// It takes nothing for the moment, or ever.
    NotNow,
}

/// What is to be done to make room.
#[derive(Debug, Default)]
pub struct Room {
    /// What left memory.
    pub gone: Gone,
    /// What is to be written; [`Objects::spilled`] follows for each.
    pub spills: Vec<Spill>,
    /// The file that is being filled, and its size so far.
    open: Option<(Spill, u64)>,
}

impl Objects {
    /// Empties regions while the first in line lacks room, and begins to write files, also ahead of need.
    pub fn make_room(&mut self) -> Room {
        let mut room = Room::default();
        let mut lacking = match self.first_lacks() {
            lack if lack.is_nothing() => lack,
            lack => self.coming(lack).less(self.own_empty_bytes, true),
        };
        if !lacking.is_nothing() {
            lacking = self.empty_regions(lacking, &mut room);
            // What is left holds something pinned. Room beside that serves its own writer.
            if !lacking.is_nothing()
                && let Some(writer) = self.waiting.front().map(|first| first.writer)
            {
                self.empty_in_part(lacking.bytes(), writer, &mut room);
            }
        }
        self.write_ahead(&mut room);
        self.close(&mut room);
        room
    }

    /// Empties regions, and says what is lacking then.
    fn empty_regions(&mut self, mut lacking: Lack, room: &mut Room) -> Lack {
        let mut regions: Vec<_> = self
            .regions
            .iter()
            .filter(|(id, region)| {
                region.pinned == 0
                    && !region.dropped
                    && region.copies.len() > region.spilling
                    && !self.is_stuck(**id, region)
            })
            .map(|(id, region)| {
                let primary = region.secondary < region.copies.len();
                (u8::from(primary) + u8::from(region.dirty > 0), region.used_at, *id, region.bytes)
            })
            .collect();
        regions.sort_unstable();
        let mut goes_on = true;
        // First those without which nothing else helps.
        for hosts_only in [true, false] {
            regions.retain(|&(_, _, id, bytes)| {
                let of_agent = id.writer.is_agent();
                let rest = if hosts_only { lacking.of_hosts } else { lacking.all };
                if !goes_on || rest == 0 || (hosts_only && of_agent) {
                    return true;
                }
                let dirty = self.regions.get(&id).map_or(0, |region| region.dirty_bytes);
                // A smaller one may have a place on the disk where this one has none.
                if self.disk.has_place_for(dirty) {
                    match self.empty(self.idle_in(id), room) {
                        Emptied::Yes => lacking = lacking.less(bytes, of_agent),
                        Emptied::TooLarge => {}
                        Emptied::NotNow => goes_on = false,
                    }
                }
                false
            });
        }
        lacking
    }

    /// Takes idle copies out of regions that are this writer's, in which something else is pinned.
    fn empty_in_part(&mut self, mut lacking: u64, writer: super::HostId, room: &mut Room) {
        let mut idle: Vec<_> = self.regions_of(writer).into_iter().flat_map(|id| self.idle_in(id)).collect();
        idle.sort_unstable_by_key(|key| self.copies.get(key).map(|entry| entry.used_at));
        for key in idle {
            if lacking == 0 {
                return;
            }
            let bytes = self.copies.get(&key).map_or(0, |entry| entry.bytes);
            match self.empty(vec![key], room) {
                Emptied::Yes => lacking = lacking.saturating_sub(bytes),
                Emptied::TooLarge => {}
                Emptied::NotNow => return,
            }
        }
    }

    /// What is lacking beside what comes free without more being done, but for the agent's own regions that are empty.
    fn coming(&self, mut lacking: Lack) -> Lack {
        for (id, region) in &self.regions {
            let of_agent = id.writer.is_agent();
            let given_back = region.copies.is_empty() && !(region.kept || region.orphan || of_agent);
            let emptied = region.pinned == 0 && region.spilling > 0 && region.spilling == region.copies.len();
            if (given_back || emptied) && !region.dropped && !self.is_stuck(*id, region) {
                lacking = lacking.less(region.bytes, of_agent);
            }
        }
        lacking
    }

    fn idle_in(&self, id: super::RegionId) -> Vec<Key> {
        let copies = self.regions.get(&id).into_iter().flat_map(|region| &region.copies);
        let idle = |key: &&Key| self.copies.get(*key).is_some_and(|entry| entry.is_idle());
        copies.filter(idle).copied().collect()
    }

    /// Takes these idle copies out of memory, now or when they lie on disk; none of them where that has no place for all
    /// that are in no file.
    fn empty(&mut self, keys: Vec<Key>, room: &mut Room) -> Emptied {
        let dirty = keys.iter().filter_map(|key| self.copies.get(key)).filter(|entry| entry.is_dirty());
        let size =
            dirty.fold(0, |sum: u64, entry| sum.saturating_add(slot_bytes(entry.bytes).unwrap_or(u64::MAX)));
        if !self.disk.has_place_for(size) {
            return Emptied::TooLarge;
        }
        for key in keys {
            let Some(entry) = self.copies.get_mut(&key) else { continue };
            if entry.is_dirty() {
                match self.spill(key, room) {
                    Emptied::Yes => continue,
                    not => return not,
                }
            }
            self.disk.counters.evicted += 1;
            self.disk.counters.evicted_bytes += entry.bytes;
            if entry.origin.is_some() {
                self.free_copy(key, &mut room.gone);
            } else if let Some(memory) = entry.memory.take() {
                let bytes = entry.bytes;
                self.leave(key, memory, bytes, false, true, &mut room.gone);
            }
        }
        Emptied::Yes
    }

    /// Puts a copy into the file that is being filled.
    fn spill(&mut self, key: Key, room: &mut Room) -> Emptied {
        let Some(Some(place)) = self.find(key) else { return Emptied::Yes };
        let Some(size) = slot_bytes(place.bytes).filter(|size| self.disk.has_place_for(*size)) else {
            return Emptied::TooLarge;
        };
        if room.open.is_none() && !self.disk.may_begin() {
            return Emptied::NotNow;
        }
        let next = self.disk.next_file;
        let (file, filled) = room.open.get_or_insert_with(|| (Spill { file: next, items: Vec::new() }, 0));
        file.items.push(SpillItem { key, place, offset: *filled });
        *filled += size;
        let full = *filled >= self.disk.limits.file_bytes;
        self.disk.bytes += size;
        self.disk.spilling_bytes += place.bytes;
        if let Some(entry) = self.copies.get_mut(&key) {
            entry.spilling = true;
        }
        if let Some(region) = self.regions.get_mut(&place.region) {
            region.spilling += 1;
        }
        if full {
            self.close(room);
        }
        Emptied::Yes
    }

    fn close(&mut self, room: &mut Room) {
        let Some((spill, _)) = room.open.take() else { return };
        self.disk.next_file += 1;
        self.disk.spills.insert(spill.file, Spill { file: spill.file, items: spill.items.clone() });
        room.spills.push(spill);
    }

    /// Begins to write primaries while too many are in no file.
    fn write_ahead(&mut self, room: &mut Room) {
        let unwritten = |disk: &Disk| disk.dirty_bytes.saturating_sub(disk.spilling_bytes);
        if unwritten(&self.disk) <= self.disk.above_bytes || (room.open.is_none() && !self.disk.may_begin()) {
            return;
        }
        let mut regions: Vec<_> = self
            .regions
            .iter()
            .filter(|(_, region)| region.dirty > region.spilling && region.pinned < region.copies.len())
            .map(|(id, region)| (region.used_at, *id))
            .collect();
        regions.sort_unstable();
        for (_, id) in regions {
            let dirty = self.regions.get(&id).map_or(0, |region| region.dirty_bytes);
            if !self.disk.has_place_for(dirty) {
                continue;
            }
            for key in self.idle_in(id) {
                if unwritten(&self.disk) <= self.disk.below_bytes {
                    return;
                }
                let dirty = self.copies.get(&key).is_some_and(|entry| entry.is_dirty());
                if dirty && self.spill(key, room) == Emptied::NotNow {
                    return;
                }
            }
        }
    }

    /// A file was written, or not.
    pub fn spilled(&mut self, file: u64, result: Result<(), String>, now: Instant) -> Gone {
        let mut gone = Gone::default();
        let Some(spill) = self.disk.spills.remove(&file) else { return gone };
        let size: u64 = spill.items.iter().filter_map(|item| slot_bytes(item.place.bytes)).sum();
        match &result {
            Ok(()) => {
                // It stays until all that lies there is counted: what is freed already comes and goes meanwhile.
                self.disk.files.insert(file, File { bytes: size, live: 1 });
                (self.disk.progress, self.disk.trouble) = (Some(now), None);
            }
            Err(why) => {
                // Who wrote it has tried to remove what there is of it, and cannot say whether that is gone.
                self.disk.deleting(file, size, &mut gone);
                self.disk.trouble = Some((Some(now + PAUSE), why.clone()));
            }
        }
        for SpillItem { key, place, offset } in spill.items {
            self.disk.spilling_bytes -= place.bytes;
            // Those of a job that is gone are gone.
            let Some(entry) = self.copies.get_mut(&key) else { continue };
            entry.spilling = false;
            let mut region = self.regions.get_mut(&place.region);
            if let Some(region) = &mut region {
                region.spilling -= 1;
            }
            if result.is_ok() {
                entry.disk = Some(Slot { file, offset });
                self.disk.dirty_bytes -= entry.bytes;
                self.disk.counters.spilled += 1;
                self.disk.counters.spilled_bytes += entry.bytes;
                if let Some(region) = region {
                    region.dirty -= 1;
                    region.dirty_bytes -= entry.bytes;
                }
                if let Some(file) = self.disk.files.get_mut(&file) {
                    file.live += 1;
                }
            }
            if entry.freed && entry.pins.is_empty() {
                self.remove(key, &mut gone);
            }
        }
        if result.is_ok() {
            self.disk.leave(Slot { file, offset: 0 }, &mut gone);
        }
        gone
    }

    /// The disk has the bytes of this file back, which [`Gone::delete`] named.
    pub fn deleted(&mut self, file: u64) {
        let Some(bytes) = self.disk.leaving.remove(&file) else { return };
        self.disk.leaving_bytes -= bytes;
        self.disk.bytes -= bytes;
    }

    /// Time has passed: what the disk refused is tried again.
    pub fn retry(&mut self, now: Instant) {
        if let Some((at, _)) = &mut self.disk.trouble {
            at.take_if(|at| *at <= now);
        }
    }

    /// Where on disk a copy lies that is not in memory, and its length.
    pub fn on_disk(&self, key: Key) -> Option<(Slot, u64)> {
        let entry = self.copies.get(&key).filter(|entry| entry.memory.is_none())?;
        Some((entry.disk?, entry.bytes))
    }

    /// A copy was read back, or fetched from whom it was given to, into this region; `false` where it is not wanted any
    /// more.
    pub fn restored(&mut self, key: Key, region: super::RegionId, offset: u64) -> bool {
        if self.find(key) != Some(None) || !self.regions.contains_key(&region) {
            return false;
        }
        self.enter(key, region, offset);
        if let Some(entry) = self.copies.get(&key).filter(|entry| entry.disk.is_some()) {
            self.disk.counters.restored += 1;
            self.disk.counters.restored_bytes += entry.bytes;
        }
        true
    }

    /// What there is of a copy on disk cannot be read. It goes, and with it those that others pulled, unless it may be had
    /// back from one of these ([`Self::lies_with`]).
    pub fn unreadable(&mut self, key: Key) -> Gone {
        let mut gone = Gone::default();
        let Some((slot, _)) = self.on_disk(key) else { return gone };
        if let Some(entry) = self.copies.get_mut(&key) {
            entry.disk = None;
        }
        self.disk.leave(slot, &mut gone);
        if self.lies_with(key).is_some_and(|(nodes, _)| nodes.is_empty()) {
            self.free_copy(key, &mut gone);
        }
        gone
    }

    /// Of a primary copy that is here no more, though it counts: who may still have it, and its length.
    pub fn lies_with(&self, key: Key) -> Option<(Vec<NodeId>, u64)> {
        let entry = self.copies.get(&key)?;
        let elsewhere = entry.memory.is_none() && entry.disk.is_none();
        elsewhere.then(|| (entry.holders.fertile().collect(), entry.bytes))
    }

    /// Nobody had it.
    pub fn nowhere(&mut self, key: Key) -> Gone {
        let mut gone = Gone::default();
        if self.lies_with(key).is_some() {
            self.free_copy(key, &mut gone);
        }
        gone
    }

    /// What has been done since the start.
    pub fn counters(&self) -> Counters {
        self.disk.counters
    }

    /// Bytes of files of spilled objects, those that are still to be deleted included.
    pub fn disk_bytes(&self) -> u64 {
        self.disk.bytes
    }

    /// Bytes of those files in which nothing lives any more, and which the disk still has.
    pub fn undeleted_bytes(&self) -> u64 {
        self.disk.leaving_bytes
    }
}
