//! The allocator of one writer (a host, or an agent for what it pulls) over as many regions as it needs.
//!
//! The heap never makes regions itself: where memory is short, [`Heap::allocate`] says how large a region
//! would help, and whoever keeps the node's budget decides. Any thread may allocate and free; one lock is
//! held for a few map operations, never while memory is copied, touched or unmapped.
//!
//! A [`Block`] is the only handle to its range and alone may write there. [`Block::seal`] turns it into an
//! [`Extent`], which is read-only and shared; the range is free again when the last extent, and the last
//! [`Bytes`] of one, is dropped.

use std::{
    collections::BTreeMap,
    fmt,
    io::IoSlice,
    ops::{Deref, DerefMut},
    os::fd::OwnedFd,
    ptr::NonNull,
};

use crate::{
    Error,
    bytes::Bytes,
    free,
    map::{HUGE_PAGE_BYTES, Mapping},
    region::{self, Writer},
    sync::{Arc, Mutex, Weak},
};

/// Most regions that one heap may hold: each is a descriptor here and a mapping in every reader.
pub const REGIONS_MAX: usize = 4096;

/// Sizes of regions are multiples of this many bytes, a huge page.
pub const REGION_STEP_BYTES: u64 = 2 * 1024 * 1024;

/// How much is warmed at once, in bytes: 2 ms with huge pages, 20 ms without. With huge pages each step waits once or
/// twice for every processor, which smaller ones pay more often.
pub const WARM_STEP_BYTES: u64 = 32 * 1024 * 1024;

/// How a heap grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Smallest region to ask for, in bytes, rounded up to whole pages; default 64 MiB. Smaller ones return memory sooner and cost
    /// more descriptors and mappings; larger ones waste address space only, since untouched pages are free.
    pub region_bytes_min: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { region_bytes_min: 64 * 1024 * 1024 }
    }
}

/// No region has room; one of `bytes` would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the heap needs another region of {bytes} bytes")]
pub struct NeedRegion {
    /// How large the region must be at least.
    pub bytes: u64,
}

/// Where an object lies, as other processes are told.
#[derive(
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub struct Location {
    /// The writer's number of the region.
    pub region_seq: u32,
    /// First byte in it, a multiple of [`crate::ALIGN`].
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// The regions of one writer. A clone is another handle to the same heap.
#[derive(Clone)]
pub struct Heap {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    regions: Mutex<BTreeMap<u32, Writer>>,
}

impl Heap {
    /// A heap without any region yet.
    pub fn new(mut options: Options) -> Self {
        // A region is whole pages, and what is asked for has to be what it will be.
        let page = rustix::param::page_size() as u64;
        options.region_bytes_min =
            options.region_bytes_min.checked_next_multiple_of(page).unwrap_or(u64::MAX);
        Self { shared: Arc::new(Shared { options, regions: Mutex::default() }) }
    }

    /// Memory for `len` bytes at 64-byte alignment; its contents are unspecified (zeros, or what lay there
    /// before). The tightest range of memory that was touched before is taken first, then untouched memory
    /// of the lowest region that has it.
    pub fn allocate(&self, len: u64) -> Result<Block, NeedRegion> {
        let need = NeedRegion { bytes: self.region_bytes_for(len) };
        let (Some(reserved), Ok(bytes)) = (free::rounded(len), usize::try_from(len)) else {
            return Err(need);
        };
        let mut regions = self.shared.regions.lock();
        let tightest = regions
            .iter()
            .filter_map(|(seq, region)| Some((region.space().best_touched(reserved)?, *seq)))
            .min()
            .map(|(_, seq)| seq);
        let seq = tightest
            .or_else(|| {
                regions.iter().find(|(_, region)| region.space().fits_at_end(reserved)).map(|(seq, _)| *seq)
            })
            .ok_or(need)?;
        let region = regions.get_mut(&seq).ok_or(need)?;
        let fresh = region.space().touched();
        let offset = region.space_mut().allocate(reserved).ok_or(need)?;
        let mapping = Arc::clone(region.mapping());
        drop(regions);
        Ok(Block {
            range: Allocation {
                region_seq: seq,
                offset,
                len: bytes,
                heap: Arc::clone(&self.shared),
                mapping,
            },
            fresh: fresh.max(offset).min(offset + reserved),
            by_file: None,
        })
    }

    /// Whether the extent lies in a region of this heap.
    pub fn owns(&self, extent: &Extent) -> bool {
        Arc::ptr_eq(&self.shared, &extent.range.heap)
    }

    /// How large a region to add for an object of `len` bytes: the configured size, or the object's own
    /// rounded up to [`REGION_STEP_BYTES`] where that is more.
    pub fn region_bytes_for(&self, len: u64) -> u64 {
        let own = len.checked_next_multiple_of(REGION_STEP_BYTES).unwrap_or(u64::MAX);
        own.max(self.shared.options.region_bytes_min)
    }

    /// Gives the heap a region under a number of the caller's. Share it first or with [`Self::share`] later.
    pub fn add_region(&self, seq: u32, writer: Writer) -> Result<(), Error> {
        let mut regions = self.shared.regions.lock();
        if regions.contains_key(&seq) {
            return Err(Error::RegionExists { seq });
        }
        if regions.len() >= REGIONS_MAX {
            return Err(Error::TooManyRegions);
        }
        regions.insert(seq, writer);
        Ok(())
    }

    /// Another descriptor of a region, with its size in bytes, for a reader that comes later.
    pub fn share(&self, seq: u32) -> Result<(OwnedFd, u64), Error> {
        let regions = self.shared.regions.lock();
        let region = regions.get(&seq).ok_or(Error::NoRegion { seq })?;
        Ok((region.share()?, region.len()))
    }

    /// Numbers of the regions in which nothing is allocated, lowest first.
    pub fn idle_regions(&self) -> Vec<u32> {
        let regions = self.shared.regions.lock();
        regions.iter().filter(|(_, region)| region.space().used() == 0).map(|(seq, _)| *seq).collect()
    }

    /// Drops regions in which nothing is allocated, and returns their numbers, so that readers can be told.
    /// The lowest stay as long as they have touched at most `keep_bytes` together, for reuse; with 0 all go,
    /// and those that were never touched go anyway.
    /// The system has the memory back once readers have unmapped theirs too.
    pub fn remove_empty_regions(&self, keep_bytes: u64) -> Vec<u32> {
        let mut kept = 0u64;
        let removed: Vec<_> = {
            let mut regions = self.shared.regions.lock();
            let mut goes = |region: &Writer| {
                let space = region.space();
                if space.used() > 0 {
                    return false;
                }
                // What was never touched has nothing to reuse.
                let stays = space.touched() > 0 && kept.saturating_add(space.touched()) <= keep_bytes;
                kept += if stays { space.touched() } else { 0 };
                !stays
            };
            regions.extract_if(.., |_, region| goes(region)).collect()
        };
        // Unmapped after the lock is released: that takes a while for large regions.
        removed.into_iter().map(|(seq, _)| seq).collect()
    }

    /// Touches `bytes` (and the rest of the last page) of memory that was never touched, lowest first, so that
    /// writers do not take the page faults; returns how much it touched. That is less where regions have no more,
    /// and nothing where the kernel cannot (before Linux 5.14). Takes a while (1.3 to 20 GB/s): call it from a
    /// thread of its own, ahead of demand. Fails where the system has no memory.
    pub fn warm(&self, bytes: u64) -> Result<u64, Error> {
        let mut warmed = 0;
        while warmed < bytes {
            let found = {
                let regions = self.shared.regions.lock();
                regions
                    .iter()
                    .find(|(_, region)| region.space().touched() < region.len())
                    .map(|(seq, region)| (*seq, region.space().touched(), Arc::clone(region.mapping())))
            };
            let Some((seq, start, mapping)) = found else { break };
            let page = rustix::param::page_size() as u64;
            let step = (bytes - warmed).min(WARM_STEP_BYTES);
            let end = (start + step).next_multiple_of(page).min(mapping.len() as u64);
            // Without the lock: allocations of the same memory meanwhile are harmless, contents stay.
            if !mapping.populate(start as usize, (end - start) as usize)? {
                break;
            }
            let mut regions = self.shared.regions.lock();
            if let Some(region) = regions.get_mut(&seq)
                && Arc::ptr_eq(region.mapping(), &mapping)
            {
                region.space_mut().touch(end);
            }
            warmed += end - start;
        }
        Ok(warmed)
    }

    /// Bytes allocated, each allocation rounded up to [`crate::ALIGN`].
    pub fn used_bytes(&self) -> u64 {
        self.sum(|region| region.space().used())
    }

    /// Bytes that the regions could hold.
    pub fn capacity_bytes(&self) -> u64 {
        self.sum(Writer::len)
    }

    /// Bytes that were used or warmed at least once: what the regions cost the machine at most.
    pub fn touched_bytes(&self) -> u64 {
        self.sum(|region| region.space().touched())
    }

    /// Bytes that were touched and are free: what can be written without a page fault.
    pub fn warm_free_bytes(&self) -> u64 {
        self.sum(|region| region.space().touched_free())
    }

    /// Bytes of regions in which nothing is allocated: what [`Heap::remove_empty_regions`] would drop with 0.
    pub fn empty_bytes(&self) -> u64 {
        self.sum(|region| if region.space().used() == 0 { region.len() } else { 0 })
    }

    fn sum(&self, of: impl Fn(&Writer) -> u64) -> u64 {
        self.shared.regions.lock().values().map(of).sum()
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap")
            .field("used_bytes", &self.used_bytes())
            .field("capacity_bytes", &self.capacity_bytes())
            .finish_non_exhaustive()
    }
}

/// A range taken from a region, given back when dropped. Processes hold them by the million: what follows from the rest
/// is not kept.
struct Allocation {
    region_seq: u32,
    /// Its first byte; with its length within the mapping.
    offset: u64,
    len: usize,
    heap: Arc<Shared>,
    /// Keeps the memory mapped (ST-1).
    mapping: Arc<Mapping>,
}

impl Allocation {
    fn location(&self) -> Location {
        Location { region_seq: self.region_seq, offset: self.offset, len: self.len as u64 }
    }

    /// What the free list was asked for.
    fn reserved(&self) -> u64 {
        // As it was found to be when it was allocated.
        free::rounded(self.len as u64).unwrap_or(u64::MAX)
    }

    fn start(&self) -> NonNull<u8> {
        // The offset comes from a space as large as the mapping, whose length is a `usize`.
        self.mapping.at(self.offset as usize)
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes of `mapping` (a file's pages, so initialised), which nobody writes while this
        // borrow lasts: a block is borrowed, and of a sealed one there is no writer any more (ST-4).
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // The region is there: one with an allocation is never removed.
        if let Some(region) = self.heap.regions.lock().get_mut(&self.region_seq) {
            region.space_mut().free(self.offset, self.reserved());
        }
    }
}

/// Writable memory of which this is the only handle. Dropped unsealed, its memory is free again.
pub struct Block {
    range: Allocation,
    /// From here to its end it was untouched when it was allocated.
    fresh: u64,
    /// Where [`Block::fill_by_file`] said so: up to here it was filled.
    by_file: Option<u64>,
}

impl Block {
    /// Where it lies.
    pub fn location(&self) -> Location {
        self.range.location()
    }

    /// What takes the page faults of its untouched part, here or on another thread while this one writes; `None`
    /// where all of it was touched before.
    pub fn warming(&self) -> Option<Warming> {
        let Allocation { region_seq, offset, mapping, heap, .. } = &self.range;
        let end = offset + self.range.reserved();
        (self.fresh < end).then(|| Warming {
            mapping: Arc::clone(mapping),
            heap: Arc::clone(heap),
            seq: *region_seq,
            at: self.fresh,
            end,
        })
    }

    /// Whether [`Self::write_at`] goes through the file from now on: where part of the block was never touched, nobody else
    /// has seen its region, and huge pages are not to be had, that takes half the time that new pages take otherwise.
    /// Where it does not, [`Self::warming`] helps.
    ///
    /// # Errors
    /// Where the system has no memory.
    pub fn fill_by_file(&mut self) -> Result<bool, Error> {
        let Allocation { offset, mapping, .. } = &self.range;
        let untouched = self.fresh..offset + self.range.reserved();
        let open = mapping.file().is_some_and(|file| !region::is_sealed(file));
        let by_file = open && !untouched.is_empty() && mapping.only_small(untouched.clone())?;
        self.by_file = by_file.then_some(untouched.start);
        Ok(by_file)
    }

    /// Drops a block that was not filled to its end: what [`Self::write_at`] did not come to is untouched still.
    pub fn abandon(self) {
        let Self { range, by_file, .. } = self;
        let (heap, seq) = (Arc::clone(&range.heap), range.region_seq);
        drop(range);
        if let Some(filled) = by_file
            && let Some(region) = heap.regions.lock().get_mut(&seq)
        {
            region.space_mut().untouch(filled.next_multiple_of(rustix::param::page_size() as u64));
        }
    }

    /// Copies `parts` to `at`, one behind the other.
    ///
    /// # Errors
    /// Where they do not lie in the block, or the system has no memory.
    pub fn write_at(&mut self, at: u64, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        let mut start = region::check("block", at, len, self.range.len)?;
        let offset = self.range.offset + at;
        if let Some(filled) = self.by_file
            && offset + len > self.fresh
        {
            self.by_file = Some(filled.max(offset + len));
            if self.range.mapping.write(offset, parts)? {
                return Ok(());
            }
            // Others have it now. The faults are taken where they can fail.
            self.range.mapping.populate_pages(offset as usize, len as usize)?;
        }
        for part in parts {
            let end = start + part.len();
            self.as_mut_slice()[start..end].copy_from_slice(part);
            start = end;
        }
        Ok(())
    }

    /// Its bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `Allocation::as_slice`, and `&mut self` is the only way to these bytes: ranges never
        // overlap and a block is not cloned (ST-4). Other processes may look, but not write.
        unsafe { std::slice::from_raw_parts_mut(self.range.start().as_ptr(), self.range.len) }
    }

    /// Disjoint parts of `chunk_bytes` each (the last one shorter), to be filled in any order or by several
    /// threads; a chunk of 0 counts as 1.
    pub fn split_chunks(&mut self, chunk_bytes: usize) -> impl ExactSizeIterator<Item = &mut [u8]> + Send {
        self.as_mut_slice().chunks_mut(chunk_bytes.max(1))
    }

    /// Makes it immutable, and so shareable.
    pub fn seal(self) -> Extent {
        Extent { range: Arc::new(self.range) }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.range.as_slice()
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Block").field(&self.location()).finish()
    }
}

/// Takes the page faults of a block's untouched memory ahead of its writer. Contents stay, so the writer need not
/// wait for it.
pub struct Warming {
    mapping: Arc<Mapping>,
    heap: Arc<Shared>,
    seq: u32,
    at: u64,
    end: u64,
}

impl Warming {
    /// Warms up to [`WARM_STEP_BYTES`] more and says whether there is more to do. The last step takes the rest of its
    /// huge page along, for the next small object. Fails where the system has no memory.
    pub fn step(&mut self) -> Result<bool, Error> {
        let size = self.mapping.len() as u64;
        let huge = HUGE_PAGE_BYTES as u64;
        let end = (self.at + WARM_STEP_BYTES).min(self.end).next_multiple_of(huge).min(size);
        if self.at >= self.end || !self.mapping.populate(self.at as usize, (end - self.at) as usize)? {
            self.at = self.end;
            return Ok(false);
        }
        self.at = end;
        if end > self.end {
            let mut regions = self.heap.regions.lock();
            if let Some(region) = regions.get_mut(&self.seq)
                && Arc::ptr_eq(region.mapping(), &self.mapping)
            {
                region.space_mut().touch(end);
            }
        }
        Ok(self.at < self.end)
    }

    /// Bytes that are still to be warmed.
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Warms all of it.
    ///
    /// # Errors
    /// Where the system has no memory.
    pub fn finish(mut self) -> Result<(), Error> {
        while self.step()? {}
        Ok(())
    }
}

impl fmt::Debug for Warming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warming").field("region", &self.seq).field("left", &(self.at..self.end)).finish()
    }
}

/// Immutable memory of this writer, shared by its clones and free again when the last is dropped.
#[derive(Clone)]
pub struct Extent {
    range: Arc<Allocation>,
}

impl Extent {
    /// Where it lies.
    pub fn location(&self) -> Location {
        self.range.location()
    }

    /// Its bytes, keeping the memory as any clone does.
    pub fn bytes(&self) -> Bytes {
        Bytes::extent(self.clone())
    }

    /// A way back to it for as long as somebody else keeps it.
    pub fn downgrade(&self) -> WeakExtent {
        WeakExtent(Arc::downgrade(&self.range))
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.range.as_slice()
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.range.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.len == 0
    }
}

/// An extent that may be gone; keeps no memory.
#[derive(Clone)]
pub struct WeakExtent(Weak<Allocation>);

impl WeakExtent {
    /// The extent, where a clone of it, or [`Bytes`] of it, are left.
    pub fn upgrade(&self) -> Option<Extent> {
        self.0.upgrade().map(|range| Extent { range })
    }

    /// Whether [`Self::upgrade`] has nothing to give, now and for ever.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Extent").field(&self.location()).finish()
    }
}

#[cfg(test)]
#[path = "heap/tests.rs"]
mod tests;
