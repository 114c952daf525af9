//! A backlog that is worked off: the load of the benchmark of placements.

use std::{collections::BTreeSet, sync::Arc};

use mobula_proto::{HostId, JobId, LeaseId, NodeId};

use super::{Random, load};
use crate::{Effect, Event};

/// Classes that one owner has.
const CLASSES_EACH: usize = 50;
/// Jobs to which the classes belong.
const JOBS: usize = 100;

/// First all classes ask, then always some lease ends, until all slots are placed.
#[derive(Debug)]
pub struct Drain {
    random: Random,
    asks: std::vec::IntoIter<Event>,
    running: Vec<LeaseId>,
    /// The last that was released here.
    released: Option<LeaseId>,
    /// Those in `running` that ended otherwise.
    ended: BTreeSet<LeaseId>,
    /// Slots granted so far.
    pub placed: u64,
    /// Leases granted so far.
    pub leases: u64,
}

/// The `at`-th class's demand.
pub fn ask(random: &mut Random, at: usize, queues: usize, nodes: u32, backlog: u32) -> Event {
    let number = 1_000_000 + u32::try_from(at / CLASSES_EACH).unwrap_or(0);
    Event::Demand {
        owner: HostId { node: NodeId { number, incarnation: 1 }, seq: 1 },
        key: (at % CLASSES_EACH) as u32,
        job: JobId { number: 1 + (at % JOBS) as u64 },
        class: Arc::new(load::class(random, at, queues, nodes)),
        backlog,
        attempt: 0,
        locality: Vec::new(),
    }
}

impl Drain {
    /// So many classes, each with a backlog of so many slots, in queues as [`load::queues`] makes them, for as many
    /// nodes as [`load::nodes`] makes.
    pub fn new(seed: u64, classes: usize, each: u32, queues: usize, nodes: u32) -> Self {
        let mut random = Random::new(seed);
        let asks: Vec<Event> = (0..classes).map(|at| ask(&mut random, at, queues, nodes, each)).collect();
        Self {
            random,
            asks: asks.into_iter(),
            running: Vec::new(),
            released: None,
            ended: BTreeSet::new(),
            placed: 0,
            leases: 0,
        }
    }

    /// What happens next; `None` where nothing waits to ask and nothing runs.
    pub fn next_event(&mut self) -> Option<Event> {
        if let Some(ask) = self.asks.next() {
            return Some(ask);
        }
        while !self.running.is_empty() {
            let at = self.random.below(self.running.len());
            let lease = self.running.swap_remove(at);
            if !self.ended.remove(&lease) {
                self.released = Some(lease);
                return Some(Event::Release { lease });
            }
        }
        None
    }

    /// What followed from it.
    pub fn learn(&mut self, effect: &Effect) {
        match effect {
            Effect::Grant(lease) => {
                self.placed += u64::from(lease.slots);
                self.leases += 1;
                self.running.push(lease.id);
            }
            Effect::Ended { lease, .. } if self.released != Some(*lease) => drop(self.ended.insert(*lease)),
            _ => {}
        }
    }
}
