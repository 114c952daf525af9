//! Sealed shared memory, mapped once and checked before use.

use std::{
    ffi::c_void,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

use super::Error;

/// Seals that every ring and doorbell carries: its size can never change, so a mapping of it never faults.
const SEALS: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// Makes a memory file of `bytes` bytes that starts with `header` and can be neither grown nor shrunk.
pub(super) fn create(name: &str, bytes: usize, header: &[u8]) -> Result<OwnedFd, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag; the memory is never mapped executable anyway.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    }
    .map_err(|e| Error::system("memfd_create", e))?;
    rustix::fs::ftruncate(&fd, bytes as u64).map_err(|e| Error::system("ftruncate", e))?;
    let mut written = 0;
    while written < header.len() {
        match rustix::io::pwrite(&fd, &header[written..], written as u64) {
            Ok(0) => return Err(Error::system("pwrite", Errno::IO)),
            Ok(n) => written += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::system("pwrite", e)),
        }
    }
    rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(|e| Error::system("fcntl", e))?;
    Ok(fd)
}

/// A shared mapping of a whole sealed memory file.
///
/// Other processes read and write the same bytes, so nothing here ever makes a plain reference into it: words
/// are reached as atomics and bytes by raw copies, whose callers prove that nobody else writes them meanwhile.
pub(super) struct Map {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain shared memory owned by this value until it is dropped. It is reached only through
// atomics and through `unsafe` functions whose contracts rule out data races, so it may move between threads.
unsafe impl Send for Map {}
// SAFETY: as above; no method hands out more than `&Atomic…` without an `unsafe` contract.
unsafe impl Sync for Map {}

impl Map {
    /// Maps all of `fd`, which must carry the seals on its size and be at least `bytes_min` long.
    pub(super) fn open(fd: OwnedFd, bytes_min: usize) -> Result<Self, Error> {
        // Without the seals the other side could cut the file short and kill this process with SIGBUS.
        let seals = rustix::fs::fcntl_get_seals(fd.as_fd())
            .map_err(|_| Error::Foreign { detail: "it is not a memory file" })?;
        if !seals.contains(SealFlags::GROW | SealFlags::SHRINK) {
            return Err(Error::Foreign { detail: "its size is not sealed" });
        }
        let stat = rustix::fs::fstat(fd.as_fd()).map_err(|e| Error::system("fstat", e))?;
        let bytes =
            usize::try_from(stat.st_size).map_err(|_| Error::Foreign { detail: "its size is negative" })?;
        if bytes < bytes_min {
            return Err(Error::Foreign { detail: "it is shorter than its header" });
        }
        // SAFETY: a fresh mapping chosen by the kernel (no fixed address) of a file whose size is sealed; it
        // aliases no Rust object, and is unmapped only in `drop`.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd.as_fd(),
                0,
            )
        }
        .map_err(|e| Error::system("mmap", e))?;
        let base =
            NonNull::new(base.cast::<u8>()).ok_or(Error::Foreign { detail: "it mapped at address 0" })?;
        Ok(Self { base, bytes })
    }

    /// Length of the mapping.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// The 64-bit word at `offset`, a multiple of 8 inside the mapping. Every caller masks or names its
    /// offset; nothing read from the memory comes in here unchecked.
    #[inline]
    pub(super) fn word64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes);
        // SAFETY: in bounds (checked just above) and aligned (the base is page-aligned); the mapping lives as
        // long as `self`, and words reached here are only ever reached as atomics while they are shared.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// The 32-bit word at `offset`, a multiple of 4 inside the mapping; as for `word64`.
    #[inline]
    pub(super) fn word32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bytes);
        // SAFETY: as for `word64`.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Copies `from` to the mapping at `offset`.
    ///
    /// # Safety
    /// `offset + from.len()` must not exceed the mapping, and nobody may read or write these bytes until the
    /// caller publishes them.
    #[inline]
    pub(super) unsafe fn write(&self, offset: usize, from: &[u8]) {
        debug_assert!(offset + from.len() <= self.bytes);
        // SAFETY: in bounds and unshared by the contract; `from` is a live Rust slice, which never overlaps the
        // mapping's unpublished part.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr().add(offset), from.len());
        }
    }

    /// Appends `bytes` bytes at `offset` to `out`, whoever writes them meanwhile: they are read as atomics, so that the
    /// worst that a peer can do is to garble the copy. `offset` is a multiple of 8, and so is the mapping's length.
    pub(super) fn copy(&self, offset: usize, bytes: usize, out: &mut Vec<u8>) {
        out.reserve(bytes);
        let mut left = bytes;
        for at in (offset..offset + bytes).step_by(8) {
            let word = self.word64(at).load(Ordering::Relaxed).to_ne_bytes();
            out.extend_from_slice(&word[..left.min(8)]);
            left -= left.min(8);
        }
    }

    /// Borrows `bytes` bytes at `offset`.
    ///
    /// # Safety
    /// `offset + bytes` must not exceed the mapping, the bytes must have been published to this thread, and
    /// nobody may write them while the slice lives.
    #[inline]
    pub(super) unsafe fn read(&self, offset: usize, bytes: usize) -> &[u8] {
        debug_assert!(offset + bytes <= self.bytes);
        // SAFETY: in bounds, published and unchanging by the contract; bytes of a file are always initialised.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), bytes) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `open` mapped, unmapped once; every borrow of it ended with `self`.
        // Failure is impossible for a whole valid mapping, and there would be nothing to do about it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_sealed_memory_files_are_mapped() {
        let file: OwnedFd = tempfile_like();
        assert!(matches!(Map::open(file, 1), Err(Error::Foreign { .. })));
        let open = rustix::fs::memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&open, 4096).unwrap();
        assert!(matches!(Map::open(open, 1), Err(Error::Foreign { detail: "its size is not sealed" })));
        let short = create("short", 16, &[1]).unwrap();
        assert!(matches!(Map::open(short, 17), Err(Error::Foreign { .. })));
    }

    #[test]
    fn the_size_is_sealed() {
        let fd = create("sealed", 4096, &[7]).unwrap();
        assert_eq!(rustix::fs::ftruncate(&fd, 8192), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&fd, 0), Err(Errno::PERM));
        let map = Map::open(fd, 4096).unwrap();
        assert_eq!(map.word32(0).load(std::sync::atomic::Ordering::Relaxed), 7);
        assert_eq!(map.len(), 4096);
    }

    fn tempfile_like() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }
}
