use std::{
    fs,
    os::fd::AsRawFd,
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::*;
use crate::heap::{Heap, Options};

const MIB: u64 = 1024 * 1024;

fn map_writable(fd: &impl AsFd, len: usize) -> rustix::io::Result<()> {
    let flags = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice; unmapped at once where it came about.
    unsafe {
        let start = rustix::mm::mmap(std::ptr::null_mut(), len, flags, MapFlags::SHARED, fd, 0)?;
        rustix::mm::munmap(start, len)
    }
}

#[test]
fn st_2_nobody_can_write_a_shared_region() {
    let writer = Writer::create(MIB).unwrap();
    let shared = writer.share().unwrap();
    // Through the descriptor itself, and through one opened anew with all rights.
    let again =
        fs::OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", shared.as_raw_fd()));
    let again = OwnedFd::from(again.unwrap());
    for fd in [&shared, &again] {
        assert_eq!(map_writable(fd, 4096), Err(Errno::PERM));
        assert_eq!(rustix::io::pwrite(fd, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(fd, 4096), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(fd, 2 * MIB), Err(Errno::PERM));
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert_eq!(rustix::fs::fallocate(fd, punch, 0, 4096), Err(Errno::PERM));
        assert_eq!(rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE), Err(Errno::PERM));
    }
    // A read-only mapping stays one.
    let reader = Reader::map(shared, MIB).unwrap();
    let start = reader.mapping().at(0).as_ptr().cast();
    // SAFETY: the range is the reader's whole mapping; the call must fail, and then changes nothing.
    let made_writable =
        unsafe { rustix::mm::mprotect(start, MIB as usize, MprotectFlags::READ | MprotectFlags::WRITE) };
    assert_eq!(made_writable, Err(Errno::ACCESS));
    // SAFETY: as above; were it to succeed, it would drop pages of a region that holds nothing.
    let removed = unsafe { rustix::mm::madvise(start, MIB as usize, rustix::mm::Advice::LinuxRemove) };
    assert!(removed.is_err());
}

#[test]
fn a_region_is_this_process_s_alone_until_it_is_shared() {
    let writer = Writer::create(MIB).unwrap();
    let alone = writer.descriptor().unwrap();
    assert!(matches!(Reader::map(alone.try_clone().unwrap(), MIB), Err(Error::Unsealed { .. })));
    let here = Reader::map_known(alone.try_clone().unwrap(), MIB).unwrap();
    assert_eq!(rustix::io::pwrite(&alone, b"x", 0), Ok(1));
    let heap = Heap::new(Options::default());
    heap.add_region(1, writer).unwrap();
    // Once is enough, through whichever descriptor, and from then on nobody writes.
    seal(&alone).unwrap();
    seal(heap.share(1).unwrap().0).unwrap();
    assert_eq!(rustix::io::pwrite(&alone, b"y", 0), Err(Errno::PERM));
    assert_eq!(here.bytes(0, 1, None).unwrap()[..], *b"x");
    assert_eq!(Reader::map(alone, MIB).unwrap().bytes(0, 1, None).unwrap()[..], *b"x");
    assert!(seal(fs::File::open("/proc/self/exe").unwrap()).is_err());
}

#[test]
fn shared_descriptors_do_not_survive_exec() {
    let shared = Writer::create(1).unwrap().share().unwrap();
    let flags = rustix::io::fcntl_getfd(&shared).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn two_readers_see_what_the_writer_wrote() {
    let heap = Heap::new(Options::default());
    let writer = Writer::create(MIB).unwrap();
    let readers: Vec<_> = (0..2).map(|_| Reader::map(writer.share().unwrap(), MIB).unwrap()).collect();
    heap.add_region(3, writer).unwrap();
    let mut block = heap.allocate(1000).unwrap();
    block.fill(42);
    let place = block.seal();
    let at = place.location();
    assert_eq!(at.region_seq, 3);
    for reader in &readers {
        let bytes = reader.bytes(at.offset, at.len, None).unwrap();
        assert_eq!(bytes[..], [42; 1000]);
        assert_ne!(bytes.as_ptr(), place.bytes().as_ptr());
    }
}

#[test]
fn bounds_are_checked_without_overflow() {
    let writer = Writer::create(4096).unwrap();
    let reader = Reader::map(writer.share().unwrap(), 4096).unwrap();
    assert_eq!(reader.bytes(0, 4096, None).unwrap().len(), 4096);
    assert_eq!(reader.bytes(4096, 0, None).unwrap().len(), 0);
    for (offset, len) in [(0, 4097), (4096, 1), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        assert!(matches!(reader.bytes(offset, len, None), Err(Error::OutOfBounds { .. })), "{offset} {len}");
    }
    assert!(writer.warm(0..4097).is_err());
}

#[test]
fn st_1_pins_and_mappings_last_as_long_as_the_bytes() {
    struct Count(Arc<AtomicUsize>);
    impl Drop for Count {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let drops = Arc::new(AtomicUsize::new(0));
    let writer = Writer::create(4096).unwrap();
    let reader = Reader::map(writer.share().unwrap(), 4096).unwrap();
    let pin: Pin = Arc::new(Count(Arc::clone(&drops)));
    let bytes = reader.bytes(64, 128, Some(pin)).unwrap();
    let part = bytes.slice(8..16).unwrap();
    drop((reader, writer, bytes));
    assert_eq!(drops.load(Ordering::SeqCst), 0);
    assert_eq!(part[..], [0; 8]);
    drop(part);
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_no_sealed_region_is_refused() {
    let file = OwnedFd::from(fs::File::open("/proc/self/exe").unwrap());
    assert!(matches!(Reader::map(file, 4096), Err(Error::NotARegion)));

    let unsealed = rustix::fs::memfd_create(c"test", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, 4096).unwrap();
    rustix::fs::fcntl_add_seals(&unsealed, SealFlags::GROW | SealFlags::SEAL).unwrap();
    match Reader::map(unsealed, 4096) {
        Err(Error::Unsealed { missing }) => assert_eq!(missing, "F_SEAL_FUTURE_WRITE, F_SEAL_SHRINK"),
        other => panic!("{other:?}"),
    }

    let writer = Writer::create(4096).unwrap();
    for expected_len in [0, 4095, 8192] {
        let error = Reader::map(writer.share().unwrap(), expected_len).unwrap_err();
        assert!(matches!(error, Error::WrongSize { found: 4096, .. }), "{error}");
    }
}

#[test]
fn sizes_are_rounded_and_limited() {
    assert!(matches!(Writer::create(0), Err(Error::RegionSize { bytes: 0 })));
    assert!(matches!(Writer::create(u64::MAX), Err(Error::RegionSize { .. })));
    assert_eq!(Writer::create(1).unwrap().len(), rustix::param::page_size() as u64);
}

#[test]
fn warming_takes_pages_and_keeps_contents() {
    let heap = Heap::new(Options::default());
    let writer = Writer::create(8 * MIB).unwrap();
    let shared = writer.share().unwrap();
    let blocks = || rustix::fs::fstat(&shared).unwrap().st_blocks as u64 * 512;
    assert_eq!(blocks(), 0);
    let warmed = writer.warm(MIB..2 * MIB).unwrap();
    if warmed == 0 {
        return; // An older kernel.
    }
    assert_eq!(warmed, MIB);
    assert!(blocks() >= MIB);
    heap.add_region(0, writer).unwrap();
    let mut block = heap.allocate(100).unwrap();
    block.fill(9);
    let warmed = heap.warm(3 * MIB).unwrap();
    assert_eq!(warmed.next_multiple_of(rustix::param::page_size() as u64), heap.touched_bytes());
    assert!((3 * MIB..4 * MIB).contains(&warmed));
    assert!(blocks() >= 3 * MIB);
    assert_eq!(block[..], [9; 100]);
    assert_eq!(heap.warm(100 * MIB).unwrap(), 8 * MIB - 128 - warmed);
    assert_eq!(heap.warm_free_bytes(), 8 * MIB - 128);
}

#[test]
fn a_removed_region_returns_its_memory_to_the_system() {
    let heap = Heap::new(Options::default());
    let writer = Writer::create(4 * MIB).unwrap();
    let inode = rustix::fs::fstat(writer.mapping.file().unwrap()).unwrap().st_ino;
    let mapped = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| {
            line.contains("memfd:mobula-region") && line.split_whitespace().nth(4) == Some(&inode.to_string())
        })
    };
    let open = || {
        fs::read_dir("/proc/self/fd").unwrap().flatten().any(|entry| {
            use std::os::unix::fs::MetadataExt;
            let is_region = fs::read_link(entry.path())
                .is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:mobula-region"));
            is_region && fs::metadata(entry.path()).is_ok_and(|meta| meta.ino() == inode)
        })
    };
    heap.add_region(0, writer).unwrap();
    let mut block = heap.allocate(MIB).unwrap();
    block.fill(1);
    let bytes = block.seal().bytes();
    assert!(heap.remove_empty_regions(0).is_empty(), "it is in use");
    assert!(mapped() && open());
    drop(bytes);
    assert_eq!(heap.remove_empty_regions(0), [0]);
    assert!(!mapped() && !open());
    assert_eq!(heap.capacity_bytes(), 0);
}

#[test]
fn errors_say_what_to_do() {
    let error = Error::os("creating a region", 64, Errno::MFILE);
    assert!(error.kind().retryable());
    assert!(error.to_string().contains("raise the memory or descriptor limit"), "{error}");
}
