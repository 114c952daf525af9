//! A shared mapping of a memory file: the one place that maps and unmaps.

use std::{ffi::c_void, os::fd::BorrowedFd, ptr::NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::Error;

/// A shared mapping of the first `len` bytes of a file, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory that any thread may address; who may read or write which part of it is
// decided by the types that hold it (ST-4 in the crate's text).
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods here only hand out addresses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` > 0 bytes, writable or read-only, at a place that the kernel chooses.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, writable: bool) -> Result<Self, Error> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: without a hint and MAP_FIXED the kernel takes unused addresses; no memory of ours changes.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, fd, 0) }
                .map_err(|errno| Error::os("mapping a region", len as u64, errno))?;
        match NonNull::new(start.cast::<u8>()) {
            Some(start) => Ok(Self { start, len }),
            // Page zero is never chosen without a hint; were it, we would not want it.
            None => Err(Error::os("mapping a region", len as u64, rustix::io::Errno::NOMEM)),
        }
    }

    /// Bytes mapped.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of the byte at `offset`, which the caller has checked against [`Self::len`]; one past the
    /// end for `offset == len`.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset <= self.len);
        // SAFETY: at most one past the end of the mapping (callers check), so the sum neither wraps nor
        // leaves the allocation.
        unsafe { self.start.add(offset.min(self.len)) }
    }

    /// Advises the kernel about the pages from `offset` (rounded down to a page) for `len` bytes.
    /// Only for advice that never changes contents.
    fn advise(&self, offset: usize, len: usize, advice: Advice) -> Result<(), rustix::io::Errno> {
        let start = offset - offset % rustix::param::page_size();
        let end = (offset + len).min(self.len);
        // SAFETY: the range lies in this mapping (rounded down to a page, cut at the end), and the two kinds
        // of advice used below leave contents alone.
        unsafe { rustix::mm::madvise(self.at(start).as_ptr().cast::<c_void>(), end - start, advice) }
    }

    /// Takes the page faults of a range now, for writing. False where the kernel cannot (before Linux 5.14).
    pub(crate) fn populate(&self, offset: usize, len: usize) -> Result<bool, Error> {
        use rustix::io::Errno;
        loop {
            return match self.advise(offset, len, Advice::LinuxPopulateWrite) {
                Ok(()) => Ok(true),
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(Errno::INVAL | Errno::NOSYS) => Ok(false),
                // A fault that would have killed the process (no memory, control group's limit).
                Err(Errno::FAULT) => Err(Error::os("warming a region", len as u64, Errno::NOMEM)),
                Err(errno) => Err(Error::os("warming a region", len as u64, errno)),
            };
        }
    }

    /// Asks for huge pages where the system leaves that to programs.
    pub(crate) fn prefer_huge_pages(&self) {
        // Only advice: most kernels refuse it for shared memory, and all works without.
        let _ = self.advise(0, self.len, Advice::LinuxHugepage);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are what mmap returned and took; everything that points into the mapping
        // holds it by `Arc` (ST-1), so nothing does any more. The only failure is a range that was never
        // mapped, which this is not.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast::<c_void>(), self.len) };
    }
}
