//! A model of the protocol, small enough to search every interleaving of it, with processors that delay their
//! stores (each has a buffer of stores that the others do not see yet, as x86 has; a fence empties it).

use std::collections::HashSet;

const PRODUCERS: usize = 2;
const FRAMES_EACH: u8 = 2;

/// Where a producer is: publish, fence, look at the state, compare-and-swap, wake.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Publish,
    Fence,
    Look,
    Swap,
    Wake,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Producer {
    at: At,
    published: u8,
    /// Whether its last store of the tail is still in its buffer.
    delayed: bool,
}

/// Where the poller is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Poller {
    /// Draining ring `n`.
    Drain(usize),
    /// Storing `SLEEPING`.
    EndPolling,
    Fence,
    /// Looking at ring `n` once more.
    Recheck(usize),
    BeginPolling,
    /// Entering the kernel, which compares the word and sleeps, at once.
    Wait,
    Asleep,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    producers: [Producer; PRODUCERS],
    poller: Poller,
    /// The word as everybody sees it.
    state: u32,
    /// Whether the poller's store of `SLEEPING` is still in its buffer.
    sleeping_delayed: bool,
    /// Tails as everybody sees them, and how far the poller has read.
    tails: [u8; PRODUCERS],
    heads: [u8; PRODUCERS],
    /// Woken by a call, while asleep.
    wakes: u8,
}

#[derive(Clone, Copy)]
struct Fences {
    producer: bool,
    poller: bool,
}

fn successors(world: &World, fences: Fences) -> Vec<World> {
    use super::{NOTIFIED, POLLING, SLEEPING};
    let mut next = Vec::new();
    // Either buffer may empty at any time.
    for p in 0..PRODUCERS {
        if world.producers[p].delayed {
            let mut w = world.clone();
            w.producers[p].delayed = false;
            w.tails[p] = w.producers[p].published;
            next.push(w);
        }
    }
    if world.sleeping_delayed {
        let mut w = world.clone();
        w.sleeping_delayed = false;
        w.state = SLEEPING;
        next.push(w);
    }
    for p in 0..PRODUCERS {
        let mut w = world.clone();
        let flush = |w: &mut World| {
            w.producers[p].delayed = false;
            w.tails[p] = w.producers[p].published;
        };
        w.producers[p].at = match world.producers[p].at {
            At::Publish if w.producers[p].published == FRAMES_EACH => continue,
            At::Publish => {
                w.producers[p].published += 1;
                w.producers[p].delayed = true;
                At::Fence
            }
            At::Fence => {
                if fences.producer {
                    flush(&mut w);
                }
                At::Look
            }
            At::Look if w.state == SLEEPING => At::Swap,
            At::Look => At::Publish,
            At::Swap => {
                // A locked instruction empties the buffer.
                flush(&mut w);
                if w.state == SLEEPING {
                    w.state = NOTIFIED;
                    At::Wake
                } else {
                    At::Publish
                }
            }
            At::Wake => {
                if w.poller == Poller::Asleep {
                    w.poller = Poller::Wait;
                    w.wakes += 1;
                }
                At::Publish
            }
        };
        next.push(w);
    }
    let mut w = world.clone();
    w.poller = match world.poller {
        Poller::Drain(ring) => {
            w.heads[ring] = w.tails[ring];
            if ring + 1 < PRODUCERS { Poller::Drain(ring + 1) } else { Poller::EndPolling }
        }
        Poller::EndPolling => {
            w.sleeping_delayed = true;
            Poller::Fence
        }
        Poller::Fence => {
            if fences.poller && w.sleeping_delayed {
                w.sleeping_delayed = false;
                w.state = SLEEPING;
            }
            Poller::Recheck(0)
        }
        Poller::Recheck(ring) if w.tails[ring] != w.heads[ring] => Poller::BeginPolling,
        Poller::Recheck(ring) if ring + 1 < PRODUCERS => Poller::Recheck(ring + 1),
        Poller::Recheck(_) => Poller::Wait,
        Poller::Wait => {
            // The kernel's lock empties the buffer.
            if w.sleeping_delayed {
                w.sleeping_delayed = false;
                w.state = SLEEPING;
            }
            if w.state == SLEEPING { Poller::Asleep } else { Poller::BeginPolling }
        }
        Poller::Asleep => return next,
        Poller::BeginPolling => {
            // A swap: a locked instruction.
            w.sleeping_delayed = false;
            w.state = POLLING;
            Poller::Drain(0)
        }
    };
    next.push(w);
    next
}

/// Searches all interleavings; returns how many states there are, and one in which the poller sleeps for ever over
/// a frame, if there is one.
fn search(fences: Fences) -> (usize, Option<World>) {
    let producer = Producer { at: At::Publish, published: 0, delayed: false };
    let start = World {
        producers: [producer; PRODUCERS],
        poller: Poller::Drain(0),
        state: super::POLLING,
        sleeping_delayed: false,
        tails: [0; PRODUCERS],
        heads: [0; PRODUCERS],
        wakes: 0,
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(world) = open.pop() {
        assert!(world.wakes <= PRODUCERS as u8 * FRAMES_EACH);
        let next = successors(&world, fences);
        if next.is_empty() && world.heads != [FRAMES_EACH; PRODUCERS] {
            return (seen.len(), Some(world));
        }
        open.extend(next.into_iter().filter(|w| seen.insert(w.clone())));
    }
    (seen.len(), None)
}

#[test]
fn db_1_to_db_4_no_interleaving_loses_a_wake_up() {
    let (states, lost) = search(Fences { producer: true, poller: true });
    assert!(lost.is_none(), "{lost:?}");
    assert!(states > 5_000, "the search saw only {states} states");
}

#[test]
fn db_1_each_fence_is_needed() {
    assert!(search(Fences { producer: false, poller: true }).1.is_some());
    assert!(search(Fences { producer: true, poller: false }).1.is_some());
}
