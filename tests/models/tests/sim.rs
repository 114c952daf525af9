//! The models. Each checks every order up to a number of preemptions, which the test names, or all where it names none.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicUsize, Ordering};

use loom::{model::Builder, thread};
use mobula_models::{
    bytes::Pin,
    heap::{Heap, Options},
    read,
    region::{Reader, Writer},
    ring::{CAPACITY_BYTES_MIN, Consumer, Error, Producer, create, doorbell::Doorbell},
    spare::Spare,
    write,
};

#[path = "sim/views.rs"]
mod views;

/// Runs a model in every order with at most so many preemptions, of which there are at least `orders_min`: a model whose
/// threads do not meet would show nothing.
fn model(preemptions: Option<usize>, orders_min: usize, run: impl Fn() + Send + Sync + 'static) {
    let orders = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&orders);
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        run();
    });
    let orders = orders.load(Ordering::Relaxed);
    eprintln!("{orders} orders");
    assert!(orders >= orders_min, "{orders} orders are fewer than the {orders_min} that there were");
}

fn ring() -> (Producer, Consumer) {
    let fd = create(CAPACITY_BYTES_MIN).unwrap();
    (Producer::map(fd.try_clone().unwrap()).unwrap(), Consumer::map(fd).unwrap())
}

fn body(number: u8) -> [u8; 16] {
    [number; 16]
}

/// RG-1 and RG-2: frames come whole and in order, and what is read is not written meanwhile, where a ring of two
/// frames goes round.
#[test]
fn frames_are_published_whole_and_kept_while_they_are_read() {
    model(Some(5), 10_000, || {
        let (mut producer, mut consumer) = ring();
        let writer = thread::spawn(move || {
            let mut number = 0;
            for _ in 0..4 {
                match producer.try_push(&[&body(number)]) {
                    Ok(()) => number += 1,
                    Err(Error::Full) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(number >= 2, "an empty ring has room");
        });
        let mut expected = 0;
        for _ in 0..4 {
            if let Some(frame) = consumer.pop().unwrap() {
                assert_eq!(*frame, body(expected));
                expected += 1;
            }
        }
        writer.join().unwrap();
        while let Some(frame) = consumer.pop().unwrap() {
            assert_eq!(*frame, body(expected));
            expected += 1;
        }
        assert!(expected >= 2);
    });
}

/// RG-3: of several that map the same end of a ring, one gets it.
#[test]
fn an_end_has_one_owner() {
    model(None, 50, || {
        let fd = create(CAPACITY_BYTES_MIN).unwrap();
        let others = [fd.try_clone().unwrap(), fd.try_clone().unwrap()];
        let others = others.map(|fd| thread::spawn(move || Producer::map(fd).ok()));
        let mut owners = Vec::from_iter(Producer::map(fd).ok());
        owners.extend(others.into_iter().filter_map(|other| other.join().unwrap()));
        assert_eq!(owners.len(), 1);
    });
}

/// The end of the ring is skipped, and the frame after it is whole as well.
#[test]
fn frames_after_a_skipped_end_are_whole() {
    model(None, 60, || {
        let (mut producer, mut consumer) = ring();
        producer.try_push(&[]).unwrap();
        producer.try_push(&[&body(1)]).unwrap();
        drop(consumer.pop().unwrap().unwrap());
        let writer = thread::spawn(move || {
            while producer.try_push(&[&body(2)]).is_err() {
                thread::yield_now()
            }
        });
        for number in [1, 2] {
            loop {
                if let Some(frame) = consumer.pop().unwrap() {
                    assert_eq!(*frame, body(number));
                    break;
                }
                thread::yield_now();
            }
        }
        writer.join().unwrap();
    });
}

/// The poller's loop of the doorbell's text, until so many frames came.
fn poll(doorbell: &Doorbell, consumers: &mut [Consumer], frames: usize) {
    let mut seen = 0;
    doorbell.begin_polling();
    loop {
        for consumer in &mut *consumers {
            while let Some(frame) = consumer.pop().unwrap() {
                assert_eq!(*frame, body(7));
                drop(frame);
                seen += 1;
            }
        }
        if seen == frames {
            return;
        }
        doorbell.end_polling();
        if consumers.iter().all(Consumer::is_empty) {
            doorbell.wait(None);
        }
        doorbell.begin_polling();
    }
}

/// DB-1 to DB-4: nobody sleeps over a frame for ever, which the checker sees as a deadlock.
#[test]
fn no_wake_up_is_lost() {
    model(Some(3), 10_000, || {
        let (doorbell, _fd) = Doorbell::create().unwrap();
        let mut consumers = Vec::new();
        let producers: Vec<_> = (0..2)
            .map(|_| {
                let (mut producer, consumer) = ring();
                consumers.push(consumer);
                let doorbell = doorbell.clone();
                thread::spawn(move || {
                    producer.try_push(&[&body(7)]).unwrap();
                    doorbell.ring();
                })
            })
            .collect();
        poll(&doorbell, &mut consumers, 2);
        for producer in producers {
            producer.join().unwrap();
        }
    });
}

/// DB-5: what comes when there is no poller calls the watcher.
#[test]
fn no_call_is_lost() {
    model(None, 500, || {
        let (doorbell, _fd) = Doorbell::create().unwrap();
        let (mut producer, mut consumer) = ring();
        let there = doorbell.clone();
        let writer = thread::spawn(move || {
            producer.try_push(&[&body(7)]).unwrap();
            there.ring();
        });
        doorbell.begin_polling();
        doorbell.leave();
        if consumer.is_empty() {
            while !doorbell.watch(|| None) {}
        }
        doorbell.begin_polling();
        assert_eq!(**consumer.pop().unwrap().as_ref().unwrap(), body(7));
        writer.join().unwrap();
    });
}

/// A producer that finds the ring full is told when there is room: it sleeps on a doorbell of its own until then.
#[test]
fn no_sign_of_room_is_lost() {
    model(None, 1_000, || {
        let (mut producer, mut consumer) = ring();
        let (room, _fd) = Doorbell::create().unwrap();
        let there = room.clone();
        producer.try_push(&[&body(7)]).unwrap();
        producer.try_push(&[&body(7)]).unwrap();
        let writer = thread::spawn(move || {
            room.begin_polling();
            while let Err(Error::Full) = producer.try_push(&[&body(7)]) {
                room.end_polling();
                if producer.is_waiting_for_space() {
                    room.wait(None);
                }
                room.begin_polling();
            }
        });
        while consumer.pop().unwrap().is_some() {}
        if consumer.take_space_wanted() {
            there.ring();
        }
        writer.join().unwrap();
    });
}

fn heap(bytes: u64) -> Heap {
    let heap = Heap::new(Options { region_bytes_min: bytes });
    heap.add_region(0, Writer::create(bytes)).unwrap();
    heap
}

/// ST-4: blocks never overlap, and memory is written anew only after the last read of what was there, whoever dropped
/// it last: an extent, or bytes that were made from it.
#[test]
fn memory_is_reused_after_the_last_reader() {
    model(Some(4), 5_000, || {
        // Room for two blocks; so the third is one of the others' memory.
        let heap = heap(128);
        let mut block = heap.allocate(64).unwrap();
        write(&mut block, 1);
        let extent = block.seal();
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let bytes = extent.bytes();
                let heap = heap.clone();
                thread::spawn(move || {
                    assert_eq!(read(&bytes), [1; 64]);
                    drop(bytes);
                    if let Ok(mut block) = heap.allocate(64) {
                        write(&mut block, 2);
                        assert_eq!(read(&block.seal().bytes()), [2; 64]);
                    }
                })
            })
            .collect();
        drop(extent);
        let mut block = heap.allocate(64).ok();
        if let Some(block) = &mut block {
            write(block, 3);
            assert_eq!(read(block), [3; 64]);
        }
        for reader in readers {
            reader.join().unwrap();
        }
        drop(block);
        assert_eq!(heap.used_bytes(), 0);
    });
}

/// What looks for an extent by a weak handle finds it whole or not at all, and keeps its memory once it has it.
#[test]
fn a_weak_extent_is_found_whole_or_not_at_all() {
    model(None, 40, || {
        let heap = heap(64);
        let mut block = heap.allocate(64).unwrap();
        write(&mut block, 1);
        let extent = block.seal();
        let weak = extent.downgrade();
        let finder = thread::spawn(move || {
            if let Some(found) = weak.upgrade() {
                assert_eq!(read(&found.bytes()), [1; 64]);
            }
            weak
        });
        drop(extent);
        if let Ok(mut block) = heap.allocate(64) {
            write(&mut block, 2);
            assert_eq!(read(&block), [2; 64]);
        }
        let weak = finder.join().unwrap();
        assert!(weak.is_gone() && weak.upgrade().is_none());
        assert_eq!(heap.used_bytes(), 0);
    });
}

/// ST-1: a region that is dropped while others allocate, write and warm it takes nobody's memory away.
#[test]
fn a_region_goes_only_when_nothing_lies_in_it() {
    model(None, 20_000, || {
        let heap = heap(128);
        let writers: Vec<_> = (1..=2)
            .map(|value| {
                let heap = heap.clone();
                thread::spawn(move || {
                    let mut block = heap.allocate(64).ok()?;
                    write(&mut block, value);
                    Some(block.seal().bytes())
                })
            })
            .collect();
        let warmed = heap.warm(128).unwrap();
        assert!(warmed <= 128);
        let removed = heap.remove_empty_regions(0);
        let kept: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        for (bytes, value) in kept.iter().zip(1..) {
            if let Some(bytes) = bytes {
                assert_eq!(read(bytes), [value; 64]);
            }
        }
        let there = kept.iter().flatten().count();
        assert!(removed.is_empty() || there < 2, "{removed:?} went under {there} blocks");
        assert_eq!(heap.used_bytes(), 64 * there as u64);
        drop(kept);
        assert_eq!(heap.used_bytes(), 0);
        assert_eq!(removed.len() + heap.remove_empty_regions(0).len(), 1);
    });
}

/// Tells the writer that memory is in use no more, as the message does that a pin's drop sends.
struct Told(loom::sync::mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

/// ST-5: a pin goes once, after the last read of any slice or clone of the bytes that it pins.
#[test]
fn a_pin_outlasts_every_reader() {
    model(None, 5_000, || {
        let heap = Heap::new(Options { region_bytes_min: 64 });
        let region = Writer::create(64);
        let reader = Reader::map(region.share().unwrap(), 64).unwrap();
        heap.add_region(0, region).unwrap();
        let mut block = heap.allocate(64).unwrap();
        write(&mut block, 1);
        let extent = block.seal();
        let (told, unpinned) = loom::sync::mpsc::channel();
        let pin = Pin::from_std(std::sync::Arc::new(Told(told)));
        let bytes = reader.bytes(0, 64, Some(pin)).unwrap();
        drop(reader);
        let part = bytes.slice(16..32).unwrap();
        let readers = [(bytes, 64), (part, 16)].map(|(bytes, len)| {
            thread::spawn(move || {
                let clone = bytes.clone();
                drop(bytes);
                assert_eq!(read(&clone), vec![1; len]);
            })
        });
        unpinned.recv().unwrap();
        drop(extent);
        write(&mut heap.allocate(64).unwrap(), 2);
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(unpinned.try_recv().is_err(), "it went twice");
    });
}

/// A spare is cut while a thread warms it: what its region counts as warm is warm, no warming fails since the file has
/// ended meanwhile, and memory stays as it was written. Dropped instead, it ends the warming as well.
#[test]
fn a_spare_is_cut_while_it_is_warmed() {
    const PAGE: u64 = 4096;
    for cut in [Some(1), Some(2), Some(3), None] {
        model(None, 200, move || {
            let spare = Spare::create(3 * PAGE).unwrap();
            let mut warming = spare.warming();
            let warmer = thread::spawn(move || {
                let mut steps = 0;
                while warming.step().unwrap() {
                    steps += 1;
                    assert!(steps < 3, "it has three steps");
                }
                assert!(!warming.step().unwrap(), "what is over goes on");
            });
            let Some(pages) = cut else {
                drop(spare);
                return warmer.join().unwrap();
            };
            let seen = spare.warmed();
            let writer = spare.into_writer(pages * PAGE).unwrap();
            assert_eq!(writer.len(), pages * PAGE);
            let touched = writer.touched();
            assert!((seen.min(pages * PAGE)..=pages * PAGE).contains(&touched), "{seen}, then {touched}");
            let heap = Heap::new(Options { region_bytes_min: PAGE });
            heap.add_region(1, writer).unwrap();
            let mut block = heap.allocate(pages * PAGE).unwrap();
            write(&mut block, 1);
            let bytes = block.seal().bytes();
            warmer.join().unwrap();
            assert!(read(&bytes).iter().all(|byte| *byte == 1));
        });
    }
}
