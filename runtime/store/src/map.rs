//! A shared mapping of a memory file: the one place that maps and unmaps.

use std::{
    ffi::c_void,
    io::IoSlice,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::{
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags},
};

use crate::Error;

/// A huge page, in bytes: what a page table's second level maps at once on the machines in use.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// How much of a spare is warmed at once, in bytes: up to 20 ms, after which a thread sees that it is no longer wanted.
pub(crate) const STEP_BYTES: u64 = 8 * 1024 * 1024;

/// Whether the kernel makes huge pages of shared memory on request: not before Linux 6.1, nor where it is told not to.
static COLLAPSES: AtomicU8 = AtomicU8::new(UNTRIED);
const UNTRIED: u8 = 0;
const YES: u8 = 1;
const NO: u8 = 2;

/// Huge pages that cost more processor time than small ones are not worth having, in bytes for each microsecond; small
/// ones come at about 1.6 KB. On a virtual machine whose host takes free memory back, it takes large free blocks only, and
/// backing them again is three times as dear as small pages; anywhere else huge pages come at 20 KB.
const HUGE_BYTES_PER_US: u64 = 2000;
/// How much is populated with small pages before huge ones are tried again, in bytes; a try costs 4 ms where it fails.
const SMALL_BYTES: usize = 128 * 1024 * 1024;
/// How much of that is left.
static SMALL_LEFT: AtomicUsize = AtomicUsize::new(0);

/// What this thread has computed so far.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// A shared mapping of the first `len` bytes of a file, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// What unmaps it, where this is only its first part.
    whole: Option<Arc<Mapping>>,
    /// The file, where it is mapped to be written.
    file: Option<OwnedFd>,
}

// SAFETY: a mapping is plain memory that any thread may address; who may read or write which part of it is
// decided by the types that hold it (ST-4 in the crate's text).
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods here only hand out addresses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` > 0 bytes to be read, at a place that the kernel chooses.
    pub(crate) fn readable(fd: BorrowedFd<'_>, len: usize) -> Result<Self, Error> {
        Self::new(fd, len, ProtFlags::READ)
    }

    /// The same to be written.
    pub(crate) fn writable(file: OwnedFd, len: usize) -> Result<Self, Error> {
        let mut mapping = Self::new(file.as_fd(), len, ProtFlags::READ | ProtFlags::WRITE)?;
        mapping.file = Some(file);
        Ok(mapping)
    }

    fn new(fd: BorrowedFd<'_>, len: usize, protection: ProtFlags) -> Result<Self, Error> {
        let failed = |errno| Error::os("mapping a region", len as u64, errno);
        let place = Self::place(len).map_err(failed)?;
        let flags = if place.is_null() { MapFlags::SHARED } else { MapFlags::SHARED | MapFlags::FIXED };
        // SAFETY: without a hint and MAP_FIXED the kernel takes unused addresses; with it, the addresses are those
        // that `place` reserved for this and that nothing else uses. No memory of ours changes.
        let start = unsafe { rustix::mm::mmap(place, len, protection, flags, fd, 0) }.map_err(|errno| {
            if !place.is_null() {
                // SAFETY: what `place` reserved, and nobody got to know.
                let _ = unsafe { rustix::mm::munmap(place, len) };
            }
            failed(errno)
        })?;
        match NonNull::new(start.cast::<u8>()) {
            Some(start) => Ok(Self { start, len, whole: None, file: None }),
            // Page zero is never chosen without a hint; were it, we would not want it.
            None => Err(Error::os("mapping a region", len as u64, Errno::NOMEM)),
        }
    }

    /// The first `len` bytes of another mapping, or all where it is shorter.
    pub(crate) fn part(whole: Arc<Mapping>, len: usize) -> Self {
        Self { start: whole.start, len: len.min(whole.len), whole: Some(whole), file: None }
    }

    /// Reserves addresses for `len` bytes at a multiple of a huge page, since only there can one be mapped whole.
    /// Null, for any address, where `len` is smaller than that.
    fn place(len: usize) -> Result<*mut c_void, Errno> {
        let Some(reserved) = len.checked_add(HUGE_PAGE_BYTES).filter(|_| len >= HUGE_PAGE_BYTES) else {
            return Ok(std::ptr::null_mut());
        };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: no hint and no MAP_FIXED: the kernel takes unused addresses.
        let base =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags) }?;
        // Multiples of a page both, for `base` is one.
        let before = base.addr().next_multiple_of(HUGE_PAGE_BYTES) - base.addr();
        let page = rustix::param::page_size();
        let kept = len.next_multiple_of(page);
        let after = reserved.next_multiple_of(page) - before - kept;
        // SAFETY: `before + kept` is at most what was reserved; the two ends that go were reserved just now.
        unsafe {
            let place = base.byte_add(before);
            if before > 0 {
                rustix::mm::munmap(base, before)?;
            }
            if after > 0 {
                rustix::mm::munmap(place.byte_add(kept), after)?;
            }
            Ok(place)
        }
    }

    /// The file, where it is mapped to be written.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.whole {
            Some(whole) => whole.file(),
            None => self.file.as_ref().map(AsFd::as_fd),
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
    fn advise(&self, offset: usize, len: usize, advice: Advice) -> Result<(), Errno> {
        let start = offset - offset % rustix::param::page_size();
        let end = (offset + len).min(self.len);
        // SAFETY: the range lies in this mapping (rounded down to a page, cut at the end), and the two kinds
        // of advice used below leave contents alone.
        unsafe { rustix::mm::madvise(self.at(start).as_ptr().cast::<c_void>(), end - start, advice) }
    }

    /// Takes the page faults of a range now, for writing. False where the kernel cannot (before Linux 5.14).
    pub(crate) fn populate(&self, offset: usize, len: usize) -> Result<bool, Error> {
        // Outwards: a huge page that is half in use is worth having too.
        let start = offset - offset % HUGE_PAGE_BYTES;
        let end = (offset + len).next_multiple_of(HUGE_PAGE_BYTES).min(self.len - self.len % HUGE_PAGE_BYTES);
        let mut at = start;
        while at < end {
            let small = SMALL_LEFT.load(Ordering::Relaxed);
            let step = if small > 0 {
                let step = small.min(end - at);
                // Several threads may count the same bytes; then huge pages are tried again a little later.
                SMALL_LEFT.store(small - step, Ordering::Relaxed);
                let (from, to) = (at.max(offset), (at + step).min(offset + len));
                if from < to && !self.populate_pages(from, to - from)? {
                    return Ok(false);
                }
                step
            } else {
                // One shows whether there are any for nothing; then the rest come at once.
                let step = if at == start { HUGE_PAGE_BYTES } else { end - at };
                let begun = thread_time();
                if !self.collapse(at, at + step)? {
                    return Ok(false);
                }
                let took = thread_time().saturating_sub(begun);
                if took.as_nanos() * u128::from(HUGE_BYTES_PER_US) > step as u128 * 1000 {
                    SMALL_LEFT.store(SMALL_BYTES, Ordering::Relaxed);
                }
                step
            };
            at += step;
        }
        // What is there already costs next to nothing.
        self.populate_pages(offset, len)
    }

    /// Whether huge pages are not to be had, or not worth having, for what lies in a range that nobody has touched: tries
    /// one where that is not known.
    pub(crate) fn only_small(&self, range: Range<u64>) -> Result<bool, Error> {
        let small = || COLLAPSES.load(Ordering::Relaxed) == NO || SMALL_LEFT.load(Ordering::Relaxed) > 0;
        let start = (range.start as usize).next_multiple_of(HUGE_PAGE_BYTES);
        if start + HUGE_PAGE_BYTES > range.end as usize {
            return Ok(true);
        }
        Ok(small() || !self.populate(start, HUGE_PAGE_BYTES)? || small())
    }

    /// Writes to the file at `offset`, which lies in it with all that is written. The kernel fills new pages so without
    /// clearing them first, or a fault for each. False where the file has its seals by now, so that nobody can.
    pub(crate) fn write(&self, mut offset: u64, parts: &[IoSlice<'_>]) -> Result<bool, Error> {
        let Some(file) = self.file() else { return Ok(false) };
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let mut parts = parts.to_vec();
        let mut left = &mut parts[..];
        // Those that are empty in front.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match rustix::io::pwritev(file, left, offset) {
                Ok(written) if written > 0 => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(Errno::INTR) => {}
                Err(Errno::PERM) => return Ok(false),
                Ok(_) | Err(Errno::NOSPC) => {
                    return Err(Error::os("filling a region", bytes as u64, Errno::NOMEM));
                }
                Err(errno) => return Err(Error::os("filling a region", bytes as u64, errno)),
            }
        }
        // Huge pages are tried again after so much of small ones: see `populate`.
        let _counted = SMALL_LEFT
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
        Ok(true)
    }

    /// Puts huge pages where there is nothing or small ones, from `start` to `end`, multiples of a huge page; contents
    /// stay. That can be ten times as fast as faulting in small pages, and reading is faster ever after. Where the
    /// kernel has no huge page, or none for us, all stays as it is. False where it cannot even populate.
    fn collapse(&self, start: usize, end: usize) -> Result<bool, Error> {
        if COLLAPSES.load(Ordering::Relaxed) == NO {
            return Ok(true);
        }
        for at in (start..end).step_by(HUGE_PAGE_BYTES) {
            // The kernel makes no huge page of nothing at all.
            if !self.populate_pages(at, 1)? {
                return Ok(false);
            }
        }
        // SAFETY: the range lies in this mapping, and the advice leaves contents alone. At once rather than page by
        // page, since each call waits for every processor.
        let failed = unsafe {
            libc::madvise(self.at(start).as_ptr().cast::<c_void>(), end - start, libc::MADV_COLLAPSE) != 0
        };
        if !failed {
            COLLAPSES.store(YES, Ordering::Relaxed);
        } else if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
            // Once it has worked, this is about this range alone.
            let _tried = COLLAPSES.compare_exchange(UNTRIED, NO, Ordering::Relaxed, Ordering::Relaxed);
        }
        Ok(true)
    }

    /// The same with small pages only.
    pub(crate) fn populate_pages(&self, offset: usize, len: usize) -> Result<bool, Error> {
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
        // Only advice: a kernel may refuse it for shared memory, and all works without.
        let _ = self.advise(0, self.len, Advice::LinuxHugepage);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.whole.is_some() {
            return;
        }
        // SAFETY: `start` and `len` are what mmap returned and took; everything that points into the mapping
        // holds it by `Arc` (ST-1), so nothing does any more. The only failure is a range that was never
        // mapped, which this is not.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast::<c_void>(), self.len) };
    }
}
