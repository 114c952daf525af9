use std::os::fd::OwnedFd;

use super::*;
use crate::ring;

fn pair(capacity: u32) -> (Producer, Consumer) {
    let fd = ring::create(capacity).unwrap();
    (Producer::map(fd.try_clone().unwrap()).unwrap(), Consumer::map(fd).unwrap())
}

/// Repeatable numbers.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % below
    }
}

fn pattern(index: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (index * 31 + i * 7) as u8).collect()
}

#[test]
fn capacities_are_powers_of_two_within_bounds() {
    for bad in [0, 1, 2048, 4097, 6144, CAPACITY_BYTES_MAX + 1, u32::MAX] {
        assert!(matches!(ring::create(bad), Err(Error::Capacity { bytes }) if bytes == bad), "{bad}");
    }
    for good in [CAPACITY_BYTES_MIN, ring::CAPACITY_BYTES_DEFAULT, CAPACITY_BYTES_MAX] {
        assert_eq!(Producer::map(ring::create(good).unwrap()).unwrap().capacity_bytes(), good as usize);
    }
}

#[test]
fn rg_3_each_end_is_mapped_once() {
    let fd = ring::create(CAPACITY_BYTES_MIN).unwrap();
    let again = || fd.try_clone().unwrap();
    let producer = Producer::map(again()).unwrap();
    let consumer = Consumer::map(again()).unwrap();
    assert!(matches!(Producer::map(again()), Err(Error::Claimed { end: "producer" })));
    assert!(matches!(Consumer::map(again()), Err(Error::Claimed { end: "consumer" })));
    assert!(!consumer.is_producer_gone() && !producer.is_consumer_gone());
    drop(producer);
    assert!(consumer.is_producer_gone());
    assert!(matches!(Producer::map(again()), Err(Error::Claimed { .. })), "not even after the first is gone");
}

#[test]
fn what_is_no_ring_is_refused() {
    let refused = |fd: OwnedFd| assert!(matches!(Consumer::map(fd), Err(Error::Foreign { .. })));
    refused(std::fs::File::open("/dev/null").unwrap().into());
    refused(ring::doorbell::Doorbell::create().unwrap().1);
    let make = |capacity: u32, bytes: usize| {
        let mut header = MAGIC.to_ne_bytes().to_vec();
        header.extend(capacity.to_ne_bytes());
        crate::ring::map::create("forged", bytes, &header).unwrap()
    };
    Consumer::map(make(8192, DATA_AT + 8192)).unwrap();
    refused(make(8192, DATA_AT + 4096));
    refused(make(8192, DATA_AT + 16384));
    refused(make(8191, DATA_AT + 8191));
    refused(make(0, DATA_AT + 4096));
    refused(make(1 << 31, DATA_AT + 8192));
}

#[test]
fn frames_arrive_in_order_and_aligned_whatever_their_sizes() {
    for capacity in [4096u32, 16 * 1024, 256 * 1024] {
        let (mut producer, mut consumer) = pair(capacity);
        let most = producer.body_bytes_max();
        assert!(most <= FRAME_BYTES_MAX - HEADER_BYTES && most >= capacity.min(128 * 1024) as usize / 2 - 16);
        let mut numbers = Numbers(u64::from(capacity));
        let (mut pushed, mut popped) = (0usize, 0usize);
        let mut sizes = std::collections::VecDeque::new();
        while popped < 20_000 {
            for _ in 0..numbers.next(20) {
                let length = match numbers.next(10) {
                    0 => numbers.next(most + 1),
                    1 => most,
                    2 => 0,
                    _ => numbers.next(200.min(most)),
                };
                let body = pattern(pushed, length);
                let cut = numbers.next(length + 1);
                match producer.try_push(&[&body[..cut], &[], &body[cut..]]) {
                    Ok(()) => {
                        sizes.push_back(length);
                        pushed += 1;
                    }
                    Err(Error::Full) => break,
                    Err(other) => panic!("{other}"),
                }
            }
            for _ in 0..numbers.next(20) {
                let Some(frame) = consumer.pop().unwrap() else { break };
                assert!((frame.as_ptr() as usize).is_multiple_of(16));
                assert_eq!(*frame, pattern(popped, sizes.pop_front().unwrap()), "frame {popped}");
                popped += 1;
            }
            assert_eq!(consumer.is_empty(), sizes.is_empty());
            assert_eq!(consumer.watch().is_empty(), sizes.is_empty());
            assert_eq!(producer.is_drained(), sizes.is_empty());
        }
    }
}

#[test]
fn an_empty_ring_takes_the_largest_frame_wherever_it_stands() {
    let (mut producer, mut consumer) = pair(4096);
    let largest = vec![9; producer.body_bytes_max()];
    for step in 0..1000 {
        producer.try_push(&[&vec![1; step % 300]]).unwrap();
        drop(consumer.pop().unwrap().unwrap());
        producer.try_push(&[&largest]).unwrap();
        assert_eq!(*consumer.pop().unwrap().unwrap(), largest);
    }
    let error = producer.try_push(&[&largest, &[0]]).unwrap_err();
    assert!(matches!(error, Error::TooLong { bytes: 2033, limit: 2032 }), "{error}");
}

#[test]
fn a_frame_that_is_forgotten_comes_again() {
    let (mut producer, mut consumer) = pair(4096);
    producer.try_push(&[b"once"]).unwrap();
    std::mem::forget(consumer.pop().unwrap().unwrap());
    assert_eq!(**consumer.pop().unwrap().as_ref().unwrap(), *b"once");
    assert!(consumer.pop().unwrap().is_none());
}

#[test]
fn a_full_ring_asks_for_a_sign_at_half() {
    let (mut producer, mut consumer) = pair(4096);
    let mut count = 0;
    while producer.try_push(&[&[0; 112]]).is_ok() {
        count += 1;
        assert!(!consumer.take_space_wanted());
    }
    assert_eq!(count, 32);
    assert!(producer.is_waiting_for_space());
    for left in (0..32).rev() {
        drop(consumer.pop().unwrap().unwrap());
        assert_eq!(consumer.take_space_wanted(), left == 16, "once, when half is free; {left} left");
    }
    assert!(!producer.is_waiting_for_space());
    assert!(consumer.pop().unwrap().is_none());
}

#[test]
fn rg_4_a_corrupt_ring_is_an_error_for_good() {
    /// Forges one word of a ring that holds one frame of 100 bytes; pops until an error.
    fn check(what: &str, forge: impl FnOnce(&Map)) {
        let fd = ring::create(4096).unwrap();
        let map = Map::open(fd.try_clone().unwrap(), 0).unwrap();
        let mut producer = Producer::map(fd.try_clone().unwrap()).unwrap();
        let mut consumer = Consumer::map(fd).unwrap();
        producer.try_push(&[&[7; 100]]).unwrap();
        forge(&map);
        for _ in 0..3 {
            let found = consumer.pop().map(|f| f.map(|f| f.len()));
            assert!(matches!(found, Err(Error::Corrupt { .. })), "{what}: {found:?}");
        }
    }
    let store = |at: usize, value: u64| move |map: &Map| map.word64(at).store(value, Ordering::Relaxed);
    let data = |length: u64, flags: u64| length | (KIND_DATA << 32) | (flags << 48);
    check("tail beyond the capacity", store(TAIL_AT, 4096 + 16));
    check("tail at the end of numbers", store(TAIL_AT, !15));
    check("tail off its alignment", store(TAIL_AT, 120));
    check("no frame there", store(DATA_AT, 0));
    check("unknown kind", store(DATA_AT, 100 | (0xabcd << 32)));
    check("unknown flag", store(DATA_AT, data(100, 4)));
    check("longer than published", store(DATA_AT, data(113, 0)));
    check("longer than the ring", store(DATA_AT, data(5000, 0)));
    check("longest length there is", store(DATA_AT, data(0xffff_ffff, 0)));
    check("skip past what was published", store(DATA_AT, KIND_SKIP << 32));
    check("frame across the end", |map| {
        map.word64(TAIL_AT).store(4096, Ordering::Relaxed);
        map.word64(DATA_AT).store(data(4090, 0), Ordering::Relaxed);
    });
}

#[test]
fn rg_4_a_tail_that_goes_back_is_corrupt() {
    let fd = ring::create(4096).unwrap();
    let map = Map::open(fd.try_clone().unwrap(), 0).unwrap();
    let mut producer = Producer::map(fd.try_clone().unwrap()).unwrap();
    let mut consumer = Consumer::map(fd).unwrap();
    producer.try_push(&[&[7; 100]]).unwrap();
    drop(consumer.pop().unwrap().unwrap());
    map.word64(TAIL_AT).store(16, Ordering::Relaxed);
    assert!(matches!(consumer.pop().map(|_| ()), Err(Error::Corrupt { .. })));
    assert!(!consumer.is_empty(), "the caller comes to see the error");
    consumer.take_space_wanted();
}

#[test]
fn rg_4_a_producer_checks_the_consumer_too() {
    for forged in [16u64 * 300, u64::MAX, 8, 1 << 40] {
        let fd = ring::create(4096).unwrap();
        let map = Map::open(fd.try_clone().unwrap(), 0).unwrap();
        let mut producer = Producer::map(fd).unwrap();
        while producer.try_push(&[&[0; 240]]).is_ok() {}
        map.word64(HEAD_AT).store(forged, Ordering::Relaxed);
        let pushed = producer.try_push(&[&[0; 240]]);
        assert!(matches!(pushed, Err(Error::Corrupt { .. })), "{forged}: {pushed:?}");
    }
}

#[test]
fn forged_bytes_never_panic() {
    let mut numbers = Numbers(42);
    for _ in 0..3000 {
        let fd = ring::create(4096).unwrap();
        let map = Map::open(fd.try_clone().unwrap(), 0).unwrap();
        let mut producer = Producer::map(fd.try_clone().unwrap()).unwrap();
        let mut receiver = ring::Receiver::map(fd).unwrap();
        for _ in 0..numbers.next(8) {
            let _ = producer.try_push(&[&vec![1; numbers.next(600)]]);
        }
        for _ in 0..1 + numbers.next(4) {
            let at = match numbers.next(4) {
                0 => TAIL_AT,
                _ => DATA_AT + numbers.next(64) * 8,
            };
            let value = match numbers.next(3) {
                0 => numbers.next(1 << 20) as u64,
                1 => numbers.next(4096) as u64 | (KIND_DATA << 32) | ((numbers.next(4) as u64) << 48),
                _ => u64::MAX >> numbers.next(64),
            };
            map.word64(at).store(value, Ordering::Relaxed);
        }
        for _ in 0..300 {
            if !matches!(receiver.recv(), Ok(Some(_))) {
                break;
            }
        }
    }
}

#[test]
fn a_million_frames_between_two_threads() {
    const FRAMES: u64 = 1_000_000;
    let (mut producer, mut consumer) = pair(8192);
    let sender = std::thread::spawn(move || {
        for i in 0..FRAMES {
            let body = [i; 40];
            let bytes: &[u8] = &body.map(u64::to_le_bytes).concat()[..8 * (1 + i as usize % 40)];
            while let Err(error) = producer.try_push(&[bytes]) {
                assert!(error.is_full(), "{error}");
                std::thread::yield_now();
            }
        }
    });
    let mut expected = 0;
    while expected < FRAMES {
        let Some(frame) = consumer.pop().unwrap() else {
            std::thread::yield_now();
            continue;
        };
        assert_eq!(frame.len(), 8 * (1 + expected as usize % 40));
        assert!(frame.chunks(8).all(|c| c == expected.to_le_bytes()), "frame {expected}");
        expected += 1;
    }
    sender.join().unwrap();
    assert!(consumer.is_empty() && consumer.is_producer_gone());
}
