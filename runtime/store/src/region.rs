//! One region of shared memory: a memory file with one writer and any number of readers.
//!
//! The writer maps the file readable and writable and *then*, before anybody else sees it, seals it against future writes,
//! growth, shrinking and further sealing. Its own mapping goes on working; whoever gets the descriptor afterwards can
//! map it read-only and nothing else: no writable mapping, no `write`, no truncation, no hole punched, and a
//! read-only mapping cannot be made writable either. So a reader that saw the seals needs no trust in the
//! writer for its own memory safety: the mapping cannot end early, and all it can meet is changing contents,
//! about which [`crate`] says who relies on what (ST-5).

use std::{
    any::Any,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
};

use crate::{
    Error,
    bytes::{Bytes, Pin},
    free::Space,
    map::{HUGE_PAGE_BYTES, Mapping},
};

/// Largest region, in bytes: a quarter of the user's address space on the machines in use (64 TiB).
pub const BYTES_MAX: u64 = 1 << 46;

/// The seals of every region that is shared, with their names.
const SEALS: [(SealFlags, &str); 4] = [
    (SealFlags::FUTURE_WRITE, "F_SEAL_FUTURE_WRITE"),
    (SealFlags::GROW, "F_SEAL_GROW"),
    (SealFlags::SHRINK, "F_SEAL_SHRINK"),
    (SealFlags::SEAL, "F_SEAL_SEAL"),
];

fn all_seals() -> SealFlags {
    SEALS.iter().fold(SealFlags::empty(), |all, (seal, _)| all | *seal)
}

/// The only writer of a region. Memory returns to the system when this, every block and extent in it, and
/// every reader's mapping are gone.
#[derive(Debug)]
pub struct Writer {
    mapping: Arc<Mapping>,
    space: Space,
}

impl Writer {
    /// Creates a region of `bytes` (1 to [`BYTES_MAX`], rounded up to a page) and maps it. No page is touched. Fails where the system has no address space or descriptor left.
    pub fn create(bytes: u64) -> Result<Self, Error> {
        let (file, len) = file(bytes)?;
        let mapping = Mapping::writable(file, len)?;
        if len >= HUGE_PAGE_BYTES {
            mapping.prefer_huge_pages();
        }
        Ok(Self::from_mapping(mapping, 0))
    }

    /// Of a file that is mapped, all of it and here alone; its first `warmed` bytes were touched.
    pub(crate) fn from_mapping(mapping: Mapping, warmed: u64) -> Self {
        let mut space = Space::new(mapping.len() as u64);
        space.touch(warmed);
        Self { mapping: Arc::new(mapping), space }
    }

    /// A descriptor to hand to a reader: close-on-exec, and good for nothing but reading. Seals the region, if that has not
    /// been done.
    pub fn share(&self) -> Result<OwnedFd, Error> {
        let fd = self.descriptor()?;
        seal(&fd)?;
        Ok(fd)
    }

    /// A descriptor that stays in this process until it is sealed ([`seal`]). Until then [`crate::Block::write_at`] is
    /// fast, and [`Reader::map_known`] reads it.
    pub fn descriptor(&self) -> Result<OwnedFd, Error> {
        let failed = |errno| Error::os("sharing a region", self.len(), errno);
        let file = self.mapping.file().ok_or_else(|| failed(Errno::BADF))?;
        rustix::io::fcntl_dupfd_cloexec(file, 0).map_err(failed)
    }

    /// Its size in bytes, a multiple of the page size; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> u64 {
        self.space.size()
    }

    /// Takes the page faults of `range` (bytes, widened to pages) ahead of use; contents stay. Returns how
    /// many bytes were warmed: none on a kernel that cannot (before Linux 5.14). Fails where the range is
    /// not in the region or there is no memory.
    pub fn warm(&self, range: Range<u64>) -> Result<u64, Error> {
        let len = range.end.saturating_sub(range.start);
        let offset = check("region", range.start, len, self.mapping.len())?;
        if len == 0 {
            return Ok(0);
        }
        Ok(if self.mapping.populate(offset, len as usize)? { len } else { 0 })
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

/// Gives a region its seals, if it has not got them: from then on it may be handed out.
///
/// # Errors
/// Where the descriptor is none of a region.
pub fn seal(fd: impl AsFd) -> Result<(), Error> {
    if is_sealed(fd.as_fd()) {
        return Ok(());
    }
    match rustix::fs::fcntl_add_seals(&fd, all_seals()) {
        Ok(()) => Ok(()),
        // Another thread was faster.
        Err(Errno::PERM) if is_sealed(fd.as_fd()) => Ok(()),
        Err(errno) => Err(Error::os("sealing a region (needs Linux 5.1)", 0, errno)),
    }
}

/// Checks that a descriptor is of a region with all its seals, of exactly `expected_len` bytes. Takes no other descriptor.
///
/// # Errors
/// What is wrong with it.
pub fn check_shared(fd: BorrowedFd<'_>, expected_len: u64) -> Result<(), Error> {
    let seals = match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) => seals,
        Err(Errno::INVAL) => return Err(Error::NotARegion),
        Err(errno) => return Err(Error::os("reading a region's seals", expected_len, errno)),
    };
    if !seals.contains(all_seals()) {
        let missing: Vec<_> =
            SEALS.iter().filter(|(seal, _)| !seals.contains(*seal)).map(|(_, name)| *name).collect();
        return Err(Error::Unsealed { missing: missing.join(", ") });
    }
    // Only now: what is sealed cannot change its size after the check.
    size_of(fd, expected_len).map(drop)
}

/// The size of a region's file, which must be what is expected.
fn size_of(fd: BorrowedFd<'_>, expected_len: u64) -> Result<u64, Error> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| Error::os("measuring a region", expected_len, errno))?;
    let found = u64::try_from(stat.st_size).unwrap_or(0);
    if found != expected_len {
        return Err(Error::WrongSize { what: "the region", expected: expected_len, found });
    }
    Ok(found)
}

pub(crate) fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(all_seals()))
}

/// A memory file of `bytes`, rounded up to a page, and its size.
pub(crate) fn file(bytes: u64) -> Result<(OwnedFd, usize), Error> {
    if !(1..=BYTES_MAX).contains(&bytes) {
        return Err(Error::RegionSize { bytes });
    }
    let bytes = bytes.next_multiple_of(rustix::param::page_size() as u64);
    let len = usize::try_from(bytes).map_err(|_| Error::RegionSize { bytes })?;
    let fd = memory_file(bytes)?;
    size(fd.as_fd(), bytes)?;
    Ok((fd, len))
}

/// Gives a memory file without seals another size; what lies past that goes back to the system.
pub(crate) fn size(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), Error> {
    rustix::fs::ftruncate(fd, bytes).map_err(|errno| Error::os("sizing a region", bytes, errno))
}

/// A memory file that may be sealed and not executed.
fn memory_file(bytes: u64) -> Result<OwnedFd, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"mobula-region", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 the flag is unknown; on later ones it may be compulsory.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"mobula-region", flags),
        other => other,
    }
    .map_err(|errno| Error::os("creating a region", bytes, errno))
}

/// A read-only mapping of a region that another process (or this one) writes.
#[derive(Debug)]
pub struct Reader {
    mapping: Mapping,
}

impl Reader {
    /// Maps a region read-only, after checking that it is a memory file with all seals and of exactly
    /// `expected_len` bytes ([`Writer::len`]). The descriptor is closed; the mapping stays as long as the
    /// reader and every [`Bytes`] of it.
    pub fn map(fd: OwnedFd, expected_len: u64) -> Result<Arc<Self>, Error> {
        check_shared(fd.as_fd(), expected_len)?;
        Self::map_known(fd, expected_len)
    }

    /// The same for a region that this process writes itself, sealed or not, or whose seals it has checked before.
    pub fn map_known(fd: OwnedFd, expected_len: u64) -> Result<Arc<Self>, Error> {
        let found = size_of(fd.as_fd(), expected_len)?;
        let len = match usize::try_from(found) {
            Ok(len) if (1..=BYTES_MAX).contains(&found) => len,
            _ => return Err(Error::RegionSize { bytes: found }),
        };
        Ok(Arc::new(Self { mapping: Mapping::readable(fd.as_fd(), len)? }))
    }

    /// Its size in bytes; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The `len` bytes at `offset`, without a copy. `pin` is dropped with the last clone and slice of them:
    /// it is what tells the writer that the memory is in use, so without one the caller must know by other
    /// means that the writer keeps it (ST-5).
    pub fn bytes(self: &Arc<Self>, offset: u64, len: u64, pin: Option<Pin>) -> Result<Bytes, Error> {
        let start = check("region", offset, len, self.mapping.len())?;
        Ok(Bytes::mapped(Arc::clone(self), start, len as usize, pin))
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

/// Checks that a range lies inside `size` bytes, without overflow, and returns its start.
pub(crate) fn check(what: &'static str, offset: u64, len: u64, size: usize) -> Result<usize, Error> {
    match offset.checked_add(len) {
        Some(end) if end <= size as u64 => Ok(offset as usize),
        _ => Err(Error::OutOfBounds { what, offset, len, size: size as u64 }),
    }
}

const _: () = {
    // What readers and writers are shared between threads for.
    const fn threads<T: Send + Sync + Any>() {}
    threads::<Writer>();
    threads::<Reader>();
};

#[cfg(test)]
mod tests;
