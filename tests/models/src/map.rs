//! In place of the store's mappings: ordinary memory, beside which accesses are checked.

use std::{
    collections::HashMap,
    io::IoSlice,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    rc::Rc,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use loom::sync::atomic::{AtomicBool, AtomicUsize};
use rustix::io::Errno;

use crate::{Error, memory::Memory, sync::Arc};

pub(crate) const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;
/// A page, so that a spare of a few has several steps.
pub(crate) const STEP_BYTES: u64 = 4096;

loom::lazy_static! {
    /// Where mappings start, and the checks of accesses to them.
    static ref MAPPINGS: Mutex<Vec<(usize, Rc<Memory>)>> = Mutex::default();
    /// By the number that the system gave them, which descriptors lead to.
    static ref FILES: Mutex<HashMap<u64, std::sync::Arc<File>>> = Mutex::default();
}

/// A memory file whose size may change.
struct File {
    bytes: AtomicUsize,
    /// Which of its steps were populated.
    populated: Vec<AtomicBool>,
}

pub(crate) fn number(fd: BorrowedFd<'_>) -> Result<u64, Error> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| Error::os("measuring a region", 0, errno))?;
    Ok(stat.st_ino)
}

/// Notes a new file.
pub(crate) fn add_file(fd: BorrowedFd<'_>, bytes: usize) -> Result<(), Error> {
    let steps = bytes.div_ceil(STEP_BYTES as usize);
    let populated = (0..steps).map(|_| AtomicBool::new(false)).collect();
    let file = std::sync::Arc::new(File { bytes: AtomicUsize::new(bytes), populated });
    FILES.lock().unwrap_or_else(PoisonError::into_inner).insert(number(fd)?, file);
    Ok(())
}

fn file(fd: BorrowedFd<'_>) -> Result<std::sync::Arc<File>, Error> {
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    files.get(&number(fd)?).cloned().ok_or(Error::NotARegion)
}

/// Gives the file another size, under the kernel's lock, which whoever populates it takes as well.
pub(crate) fn resize(fd: BorrowedFd<'_>, bytes: usize) -> Result<(), Error> {
    file(fd)?.bytes.swap(bytes, Ordering::AcqRel);
    Ok(())
}

pub(crate) struct Mapping {
    bytes: std::sync::Arc<Bytes>,
    len: usize,
    /// `None` where the size stays.
    file: Option<std::sync::Arc<File>>,
    /// What leads to it.
    fd: Option<OwnedFd>,
    /// As in the store. Goes last, so that whoever drops the bytes has heard of all who used them.
    whole: Option<Arc<Mapping>>,
}

struct Bytes(Box<[AtomicU8]>);

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        check(&self.0, true);
        let at = self.0.as_ptr().addr();
        MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(start, _)| *start != at);
    }
}

impl Mapping {
    /// Of a file whose size stays.
    pub(crate) fn of(len: usize) -> Self {
        let bytes: Box<[AtomicU8]> = (0..len).map(|_| AtomicU8::new(0)).collect();
        let mut mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.push((bytes.as_ptr().addr(), Rc::new(Memory::new(len))));
        Self { bytes: std::sync::Arc::new(Bytes(bytes)), len, file: None, fd: None, whole: None }
    }

    pub(crate) fn writable(fd: OwnedFd, len: usize) -> Result<Self, Error> {
        Ok(Self { file: Some(file(fd.as_fd())?), fd: Some(fd), ..Self::of(len) })
    }

    pub(crate) fn part(whole: Arc<Self>, len: usize) -> Self {
        let (bytes, file) = (std::sync::Arc::clone(&whole.bytes), whole.file.clone());
        Self { bytes, len: len.min(whole.len), file, fd: None, whole: Some(whole) }
    }

    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.whole {
            Some(whole) => whole.file(),
            None => self.fd.as_ref().map(AsFd::as_fd),
        }
    }

    pub(crate) fn populate_pages(&self, offset: usize, len: usize) -> Result<bool, Error> {
        self.populate(offset, len)
    }

    pub(crate) fn only_small(&self, _range: Range<u64>) -> Result<bool, Error> {
        Ok(false)
    }

    pub(crate) fn write(&self, _offset: u64, _parts: &[IoSlice<'_>]) -> Result<bool, Error> {
        Ok(false)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        NonNull::from_ref(&self.bytes.0[offset]).cast()
    }

    pub(crate) fn prefer_huge_pages(&self) {}

    pub(crate) fn populate(&self, offset: usize, len: usize) -> Result<bool, Error> {
        if let Some(file) = &self.file {
            let steps = offset / STEP_BYTES as usize..(offset + len).div_ceil(STEP_BYTES as usize);
            for step in steps {
                // The same lock as in `resize`.
                let end = file.bytes.fetch_add(0, Ordering::AcqRel);
                if (offset + len).min((step + 1) * STEP_BYTES as usize) > end {
                    return Err(Error::os("warming a region", len as u64, Errno::NOMEM));
                }
                file.populated[step].store(true, Ordering::Relaxed);
            }
        }
        // As the kernel does it: whatever is there stays.
        for byte in &self.bytes.0[offset..offset + len] {
            byte.fetch_or(0, Ordering::Relaxed);
        }
        Ok(true)
    }

    /// Fails the model unless all before `end` was populated, and this thread knows.
    pub(crate) fn check_populated(&self, end: usize) {
        let populated = self.file.iter().flat_map(|file| &file.populated);
        for (step, there) in populated.take(end.div_ceil(STEP_BYTES as usize)).enumerate() {
            assert!(there.load(Ordering::Relaxed), "step {step} counts as warm and is not");
        }
    }
}

/// Unmapping counts as a write: nobody may be about to read or write there.
fn check<T>(bytes: &[T], writes: bool) {
    let at = bytes.as_ptr().addr();
    let found = {
        let mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.iter().find(|(start, memory)| (*start..start + memory.len()).contains(&at)).cloned()
    };
    assert!(found.is_some(), "memory is used that is not mapped");
    if let Some((start, memory)) = found {
        memory.check(at - start, bytes.len(), writes);
    }
}

/// What lies there; fails the model where a write of another thread is not ordered with this.
pub fn read(bytes: &[u8]) -> &[u8] {
    check(bytes, false);
    bytes
}

/// Fills the bytes; fails the model where an access of another thread is not ordered with this.
pub fn write(bytes: &mut [u8], value: u8) {
    check(bytes, true);
    bytes.fill(value);
}
