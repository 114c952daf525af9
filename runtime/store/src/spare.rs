//! Memory that is warmed before anybody knows what for.
//!
//! A spare is a memory file without seals that nothing was written to and no other process has seen. A thread of its own
//! takes its page faults; when a region is needed, it is cut to size and becomes one, with all that was warmed
//! until then.

use crate::{
    Error,
    map::{Mapping, STEP_BYTES},
    region::{self, Writer},
    sync::{Arc, AtomicU64, Ordering},
};

/// Nobody needs the rest.
const ENDED: u64 = u64::MAX;

/// See the module's text. Dropped, its memory goes back to the system.
#[derive(Debug)]
pub struct Spare {
    mapping: Arc<Mapping>,
    warmed: Arc<AtomicU64>,
}

/// Warms a [`Spare`], on any thread.
#[derive(Debug)]
pub struct Warming {
    mapping: Arc<Mapping>,
    warmed: Arc<AtomicU64>,
    at: u64,
}

impl Spare {
    /// Room for `bytes` (1 to [`region::BYTES_MAX`], rounded up to a page), of which none is touched.
    ///
    /// # Errors
    /// Where the system has no address space or descriptor left.
    pub fn create(bytes: u64) -> Result<Self, Error> {
        let (file, len) = region::file(bytes)?;
        let mapping = Mapping::writable(file, len)?;
        mapping.prefer_huge_pages();
        Ok(Self { mapping: Arc::new(mapping), warmed: Arc::new(AtomicU64::new(0)) })
    }

    /// Its size in bytes; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a spare is never empty")]
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// How much of it was warmed, from its start.
    pub fn warmed(&self) -> u64 {
        self.warmed.load(Ordering::Acquire)
    }

    /// What warms it; once is enough.
    pub fn warming(&self) -> Warming {
        Warming { mapping: Arc::clone(&self.mapping), warmed: Arc::clone(&self.warmed), at: 0 }
    }

    /// Cuts it to `bytes` (rounded up to a page, at most [`Self::len`]) and makes a region of that. The rest goes back to
    /// the system, and whoever warms it stops.
    ///
    /// # Errors
    /// Where it is too small, or the system refuses another size.
    pub fn into_writer(self, bytes: u64) -> Result<Writer, Error> {
        let page = rustix::param::page_size() as u64;
        let bytes = bytes.max(1).checked_next_multiple_of(page).ok_or(Error::RegionSize { bytes })?;
        let len = region::check("spare", 0, bytes, self.mapping.len()).map(|_| bytes as usize)?;
        let warmed = self.warmed.swap(ENDED, Ordering::AcqRel).min(bytes);
        if let Some(file) = self.mapping.file() {
            region::size(file, bytes)?;
        }
        // From here on no access goes past the file's new end: the mapping that stays is as long as the file.
        let mapping = Mapping::part(Arc::clone(&self.mapping), len);
        Ok(Writer::from_mapping(mapping, warmed))
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.warmed.store(ENDED, Ordering::Release);
    }
}

impl Warming {
    /// Warms a little more and says whether there is more to do: not once the spare is gone, in use, or warm throughout.
    ///
    /// # Errors
    /// Where the system has no memory.
    pub fn step(&mut self) -> Result<bool, Error> {
        let size = self.mapping.len() as u64;
        let end = (self.at + STEP_BYTES).min(size);
        if self.at >= end || self.ended() {
            return Ok(false);
        }
        // Only advice to the kernel: past the end of a file that was cut meanwhile it fails.
        match self.mapping.populate(self.at as usize, (end - self.at) as usize) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(_) if self.ended() => return Ok(false),
            Err(error) => return Err(error),
        }
        // Unless it has ended meanwhile, which stays so.
        let noted = self.warmed.compare_exchange(self.at, end, Ordering::AcqRel, Ordering::Acquire);
        self.at = end;
        Ok(noted.is_ok() && end < size)
    }

    fn ended(&self) -> bool {
        self.warmed.load(Ordering::Acquire) == ENDED
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd};

    use super::*;
    use crate::{Heap, HeapOptions, Reader};

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_warm_spare_becomes_a_region_that_counts_as_touched() {
        let spare = Spare::create(16 * MIB).unwrap();
        let mut warming = spare.warming();
        assert!(warming.step().unwrap());
        assert_eq!(spare.warmed(), STEP_BYTES);
        let writer = spare.into_writer(12 * MIB).unwrap();
        assert!(!warming.step().unwrap());
        assert_eq!(writer.len(), 12 * MIB);
        let heap = Heap::new(HeapOptions::default());
        let reader = Reader::map(writer.share().unwrap(), 12 * MIB).unwrap();
        heap.add_region(1, writer).unwrap();
        assert_eq!(heap.warm_free_bytes(), STEP_BYTES);
        let mut block = heap.allocate(11 * MIB).unwrap();
        assert!(block.warming().is_some());
        block.fill(3);
        assert!(reader.bytes(0, 11 * MIB, None).unwrap().iter().all(|byte| *byte == 3));
        block.warming().unwrap().finish().unwrap();
        assert_eq!(heap.touched_bytes(), 12 * MIB);
        assert!(block.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn what_is_cut_off_or_dropped_goes_back_to_the_system() {
        let spare = Spare::create(16 * MIB).unwrap();
        let mut warming = spare.warming();
        while warming.step().unwrap() {}
        let blocks = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_blocks as u64 * 512;
        assert_eq!(blocks(spare.mapping.file().unwrap()), 16 * MIB);
        let writer = spare.into_writer(4 * MIB).unwrap();
        assert_eq!(blocks(writer.share().unwrap().as_fd()), 4 * MIB);
        let spare = Spare::create(16 * MIB).unwrap();
        let mut warming = spare.warming();
        drop(spare);
        assert!(!warming.step().unwrap());
        assert!(Spare::create(MIB).unwrap().into_writer(2 * MIB).is_err());
    }
}
