use std::thread;

use super::*;

const MIB: u64 = 1024 * 1024;

fn heap_of(regions: &[u64]) -> Heap {
    let heap = Heap::new(Options { region_bytes_min: MIB });
    for (seq, bytes) in regions.iter().enumerate() {
        heap.add_region(seq as u32, Writer::create(*bytes).unwrap()).unwrap();
    }
    heap
}

#[test]
fn a_weak_extent_keeps_nothing() {
    let heap = Heap::new(Options::default());
    heap.add_region(1, Writer::create(1 << 20).unwrap()).unwrap();
    let extent = heap.allocate(100).unwrap().seal();
    let weak = extent.downgrade();
    let bytes = extent.bytes();
    drop(extent);
    assert_eq!(weak.upgrade().unwrap().location().len, 100);
    drop(bytes);
    assert!(weak.is_gone() && weak.upgrade().is_none());
    assert_eq!(heap.used_bytes(), 0);
}

#[test]
fn the_heap_says_how_large_a_region_it_needs() {
    let heap = Heap::new(Options::default());
    assert_eq!(heap.allocate(1).unwrap_err().bytes, 64 * MIB);
    assert_eq!(heap.allocate(64 * MIB + 1).unwrap_err().bytes, 66 * MIB);
    assert_eq!(heap.allocate(u64::MAX).unwrap_err().bytes, u64::MAX);
    let need = heap.allocate(65 * MIB).unwrap_err();
    heap.add_region(9, Writer::create(need.bytes).unwrap()).unwrap();
    let block = heap.allocate(65 * MIB).unwrap();
    assert_eq!(block.location(), Location { region_seq: 9, offset: 0, len: 65 * MIB });
}

#[test]
fn memory_is_reused_after_the_last_handle_goes() {
    let heap = heap_of(&[MIB]);
    let extent = heap.allocate(1000).unwrap().seal();
    let at = extent.location();
    assert_eq!(heap.used_bytes(), 1024);
    let (clone, bytes) = (extent.clone(), extent.bytes());
    drop(extent);
    drop(clone);
    let part = bytes.slice(10..20).unwrap();
    drop(bytes);
    assert_ne!(heap.allocate(1000).unwrap().location().offset, at.offset);
    drop(part);
    assert_eq!(heap.used_bytes(), 0);
    assert_eq!(heap.allocate(1000).unwrap().location(), at);
}

#[test]
fn a_block_dropped_unsealed_is_freed() {
    let heap = heap_of(&[MIB]);
    drop(heap.allocate(MIB).unwrap());
    assert_eq!(heap.allocate(MIB).unwrap().location().offset, 0);
}

#[test]
fn st_1_bytes_outlive_extent_and_heap() {
    let heap = heap_of(&[MIB]);
    let mut block = heap.allocate(100).unwrap();
    block.fill(5);
    let bytes = block.seal().bytes();
    drop(heap);
    assert_eq!(bytes[..], [5; 100]);
}

#[test]
fn warm_memory_of_any_region_goes_before_untouched() {
    let heap = heap_of(&[MIB, MIB]);
    let first = heap.allocate(MIB).unwrap();
    let second = heap.allocate(64 * 1024).unwrap();
    assert_eq!(second.location().region_seq, 1);
    drop(first);
    drop(second);
    // The tightest fit keeps the large range whole.
    assert_eq!(heap.allocate(64).unwrap().location().region_seq, 1);
    assert_eq!(heap.allocate(128 * 1024).unwrap().location().region_seq, 0);
    assert_eq!(heap.touched_bytes(), MIB + 64 * 1024);
}

#[test]
fn empty_regions_are_kept_up_to_the_limit() {
    let heap = heap_of(&[MIB, MIB, MIB]);
    let blocks: Vec<_> = (0..3).map(|_| heap.allocate(MIB).unwrap()).collect();
    assert!(heap.idle_regions().is_empty());
    drop(blocks);
    assert_eq!(heap.idle_regions(), [0, 1, 2]);
    assert_eq!(heap.remove_empty_regions(2 * MIB), [2]);
    let held = heap.allocate(1).unwrap();
    assert_eq!(heap.remove_empty_regions(0), [1 - held.location().region_seq]);
    assert_eq!(heap.capacity_bytes(), MIB);
    // What was never touched is no use.
    heap.add_region(7, Writer::create(MIB).unwrap()).unwrap();
    assert_eq!(heap.remove_empty_regions(u64::MAX), [7]);
}

#[test]
fn a_block_is_warmed_ahead_with_the_rest_of_its_page() {
    let heap = heap_of(&[64 * MIB]);
    let mut block = heap.allocate(33 * MIB).unwrap();
    block[0] = 7;
    let mut warming = block.warming().unwrap();
    assert_eq!(warming.left(), 33 * MIB);
    if !warming.step().unwrap() && warming.left() == 0 && heap.touched_bytes() == 33 * MIB {
        return; // An older kernel.
    }
    assert_eq!(warming.left(), MIB);
    warming.finish().unwrap();
    assert_eq!((heap.touched_bytes(), heap.warm_free_bytes()), (34 * MIB, MIB));
    assert_eq!((block[0], block[33 * MIB as usize - 1]), (7, 0));
    let next = heap.allocate(MIB).unwrap();
    assert_eq!(next.location().offset, 33 * MIB);
    assert!(next.warming().is_none());
    drop(block);
    assert!(heap.allocate(33 * MIB).unwrap().warming().is_none());
}

#[test]
fn numbers_of_regions_are_unique() {
    let heap = heap_of(&[MIB]);
    let again = heap.add_region(0, Writer::create(MIB).unwrap());
    assert!(matches!(again, Err(Error::RegionExists { seq: 0 })));
    assert!(matches!(heap.share(7), Err(Error::NoRegion { seq: 7 })));
    let (fd, len) = heap.share(0).unwrap();
    assert_eq!(crate::region::Reader::map(fd, len).unwrap().len(), MIB);
}

#[test]
fn chunks_are_filled_by_several_threads() {
    let heap = heap_of(&[MIB]);
    let mut block = heap.allocate(1000).unwrap();
    thread::scope(|scope| {
        for (i, chunk) in block.split_chunks(300).enumerate() {
            scope.spawn(move || chunk.fill(i as u8));
        }
    });
    let extent = block.seal();
    assert_eq!(extent.as_slice()[299..301], [0, 1]);
    assert_eq!(extent.as_slice()[999], 3);
}

#[test]
fn empty_objects_have_a_place_too() {
    let heap = heap_of(&[MIB]);
    let (a, b) = (heap.allocate(0).unwrap().seal(), heap.allocate(0).unwrap().seal());
    assert_ne!(a.location().offset, b.location().offset);
    assert!(a.is_empty() && a.bytes().is_empty());
}

#[test]
fn threads_share_a_heap_without_mixing_their_bytes() {
    let heap = heap_of(&[MIB, MIB]);
    thread::scope(|scope| {
        for id in 0..4u8 {
            let heap = heap.clone();
            scope.spawn(move || {
                let mut kept = Vec::new();
                for round in 0..500usize {
                    let len = (round * 37) % 5000;
                    let mut block = heap.allocate(len as u64).unwrap();
                    block.fill(id);
                    kept.push(block.seal().bytes());
                    if kept.len() > 20 {
                        let bytes = kept.swap_remove(round % 20);
                        assert!(bytes.iter().all(|b| *b == id));
                    }
                }
            });
        }
    });
    assert_eq!(heap.used_bytes(), 0);
    assert_eq!(heap.idle_regions(), [0, 1]);
}

#[test]
fn a_region_is_as_large_as_was_asked() {
    for region_bytes_min in [1, 4096, 4097, 10_066_329, 64 << 20] {
        let heap = Heap::new(Options { region_bytes_min });
        for len in [0, 1, 3 << 20] {
            let bytes = heap.region_bytes_for(len);
            assert_eq!(Writer::create(bytes).unwrap().len(), bytes, "{region_bytes_min} for {len}");
        }
    }
}

#[test]
fn new_memory_is_filled_through_the_file_until_others_see_it() {
    // Too small for a huge page, so that what the machine makes of those does not matter.
    let heap = Heap::new(Options { region_bytes_min: MIB });
    let writer = Writer::create(MIB).unwrap();
    let fd = writer.descriptor().unwrap();
    let resident = || rustix::fs::fstat(&fd).unwrap().st_blocks as u64 * 512;
    heap.add_region(1, writer).unwrap();
    let mut first = heap.allocate(10_000).unwrap();
    let mut second = heap.allocate(100_000).unwrap();
    first.as_mut_slice().fill(1);
    assert!(second.fill_by_file().unwrap());
    let data: Vec<u8> = (0..100_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let parts = |from: usize, to: usize| -> Vec<IoSlice<'_>> {
        let mut parts: Vec<_> = data[from..to].chunks(9_999).map(IoSlice::new).collect();
        parts.insert(1, IoSlice::new(&[]));
        parts
    };
    // In parts that end within pages, the second over some of the first.
    second.write_at(0, &parts(0, 30_001)).unwrap();
    second.write_at(29_000, &parts(29_000, 60_000)).unwrap();
    assert_eq!(resident(), 72 * 1024, "only what was written has memory");
    // What others see cannot be written through the file, and is written all the same.
    drop(heap.share(1).unwrap());
    second.write_at(60_000, &parts(60_000, 100_000)).unwrap();
    assert!(second[..] == data[..], "the same bytes");
    assert!(first.iter().all(|byte| *byte == 1), "and nothing in front of them");
    for (at, len) in [(100_000, 1), (99_999, 2), (u64::MAX, 1)] {
        let outside = second.write_at(at, &[IoSlice::new(&data[..len])]);
        assert!(matches!(outside, Err(Error::OutOfBounds { .. })), "{at} {len}");
    }
    // Memory that was used is not new, nor is that of a region that others have seen.
    assert!(!second.fill_by_file().unwrap());
    drop((first, second));
    assert!(!heap.allocate(10_000).unwrap().fill_by_file().unwrap());
}

#[test]
fn what_was_given_up_before_it_was_filled_is_new_memory_still() {
    let heap = heap_of(&[MIB]);
    let before = heap.allocate(64).unwrap();
    let mut block = heap.allocate(500_000).unwrap();
    assert!(block.fill_by_file().unwrap());
    block.write_at(0, &[IoSlice::new(&[1; 100_000])]).unwrap();
    block.abandon();
    assert_eq!(heap.touched_bytes(), 102_400, "25 pages");
    assert_eq!(heap.warm_free_bytes(), 102_400 - 64);
    let mut again = heap.allocate(500_000).unwrap();
    assert!(again.fill_by_file().unwrap());
    // Not what others have taken meanwhile.
    let behind = heap.allocate(64).unwrap();
    again.abandon();
    assert!(heap.touched_bytes() > 500_000);
    drop((before, behind));
}
