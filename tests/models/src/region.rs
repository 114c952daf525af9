//! In place of the store's regions.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use loom::sync::atomic::{AtomicUsize, Ordering};
use rustix::fs::MemfdFlags;

use crate::{
    Error,
    bytes::{Bytes, Pin},
    free::Space,
    map::{self, Mapping},
    sync::{Arc, Weak},
};

/// As in the store.
pub const BYTES_MAX: u64 = 1 << 46;

loom::lazy_static! {
    /// What readers map, by the numbers of the files that their descriptors lead to.
    static ref SHARED: Mutex<HashMap<u64, Weak<Mapping>>> = Mutex::default();
    /// How many mappings readers have. The checker's own, so that it tries all orders of whoever looks and unmaps.
    static ref MAPPED: AtomicUsize = AtomicUsize::new(0);
}

/// How many mappings there are of readers.
pub fn mapped() -> usize {
    // What changes a value sees the last one.
    MAPPED.fetch_add(0, Ordering::Relaxed)
}

fn memory_file() -> Result<OwnedFd, Error> {
    let made = rustix::fs::memfd_create(c"mobula-model", MemfdFlags::CLOEXEC);
    made.map_err(|errno| Error::os("creating a region", 0, errno))
}

pub(crate) fn file(bytes: u64) -> Result<(OwnedFd, usize), Error> {
    let (fd, len) = (memory_file()?, bytes as usize);
    map::add_file(fd.as_fd(), len)?;
    Ok((fd, len))
}

pub(crate) fn size(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), Error> {
    map::resize(fd, bytes as usize)
}

/// Nothing is written through files here.
pub(crate) fn is_sealed(_file: BorrowedFd<'_>) -> bool {
    true
}

pub(crate) fn check(what: &'static str, offset: u64, len: u64, size: usize) -> Result<usize, Error> {
    let size = size as u64;
    let inside = offset + len <= size;
    inside.then_some(offset as usize).ok_or(Error::OutOfBounds { what, offset, len, size })
}

/// The only writer of a region.
pub struct Writer {
    mapping: Arc<Mapping>,
    space: Space,
}

impl Writer {
    /// A region of so many bytes.
    pub fn create(bytes: u64) -> Self {
        Self { mapping: Arc::new(Mapping::of(bytes as usize)), space: Space::new(bytes) }
    }

    pub(crate) fn from_mapping(mapping: Mapping, warmed: u64) -> Self {
        mapping.check_populated(warmed as usize);
        let mut space = Space::new(mapping.len() as u64);
        space.touch(warmed);
        Self { mapping: Arc::new(mapping), space }
    }

    /// Its size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "as in the store")]
    pub fn len(&self) -> u64 {
        self.space.size()
    }

    /// How many of them count as touched.
    pub fn touched(&self) -> u64 {
        self.space.touched()
    }

    /// A descriptor by which readers map it.
    pub fn share(&self) -> Result<OwnedFd, Error> {
        let fd = memory_file()?;
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.insert(map::number(fd.as_fd())?, Arc::downgrade(&self.mapping));
        Ok(fd)
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    pub(crate) fn space_mut(&mut self) -> &mut Space {
        &mut self.space
    }
}

/// A mapping of a region that another process writes.
pub struct Reader {
    mapping: Arc<Mapping>,
}

impl Reader {
    /// As in the store. What the kernel keeps as long as a descriptor leads there, the writer has to keep here.
    pub fn map(fd: OwnedFd, expected_len: u64) -> Result<Arc<Self>, Error> {
        let found = {
            let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            shared.get(&map::number(fd.as_fd())?).cloned()
        };
        let mapping = found.and_then(|mapping| mapping.upgrade()).ok_or(Error::NotARegion)?;
        assert_eq!(mapping.len() as u64, expected_len);
        MAPPED.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { mapping }))
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        MAPPED.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Arc<Reader> {
    /// As in the store.
    pub fn bytes(&self, offset: u64, len: u64, pin: Option<Pin>) -> Result<Bytes, Error> {
        let start = check("region", offset, len, self.mapping.len())?;
        Ok(Bytes::mapped(self.clone(), start, len as usize, pin))
    }
}
