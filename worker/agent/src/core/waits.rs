//! Slots that calls leave while they wait: the head hears of those that are left for long.
//!
//! A call that waits for one that it has just made is over with that, as a rule, before the head could have found another
//! use for its CPU. Two messages for each such call would make the head a part of the way of every call.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use mobula_proto::LeaseId;

/// How long a slot is left before the head is told: several calls from one host to another of the node, and no more than a
/// small part of what the task that gets the CPU should take. More leaves CPUs idle, less tells the head of waits that end
/// before it can do anything about them.
pub(super) const HELD_BACK: Duration = Duration::from_millis(1);

/// What the head has not been told. Each lease has no more entries than slots that were left at different times.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// When so many slots of a lease were left, the oldest first.
    new: BTreeMap<LeaseId, VecDeque<(Instant, u32)>>,
    /// The same by time; some of them have ended.
    due: VecDeque<(Instant, LeaseId)>,
}

impl Waits {
    /// Calls under a lease left so many slots.
    pub(super) fn left(&mut self, lease: LeaseId, slots: u32, now: Instant) {
        self.new.entry(lease).or_default().push_back((now, slots));
        self.due.push_back((now, lease));
    }

    /// They are taken again: of how many the head knows.
    pub(super) fn taken(&mut self, lease: LeaseId, mut slots: u32) -> u32 {
        let Some(new) = self.new.get_mut(&lease) else { return slots };
        // The newest, so that what lasts is told in time.
        while slots > 0
            && let Some((_, left)) = new.back_mut()
        {
            let both = slots.min(*left);
            (slots, *left) = (slots - both, *left - both);
            if *left == 0 {
                new.pop_back();
            }
        }
        if new.is_empty() {
            self.new.remove(&lease);
        }
        slots
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        // Nothing is due where all has ended, whatever is left of it.
        self.due.front().filter(|_| !self.new.is_empty()).map(|(at, _)| *at + HELD_BACK)
    }

    /// Of what the head is to be told now.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<(LeaseId, u32)> {
        let mut lasting = Vec::new();
        if self.new.is_empty() {
            self.due.clear();
        }
        while let Some((at, lease)) = self.due.pop_front_if(|(at, _)| *at + HELD_BACK <= now) {
            let Some(new) = self.new.get_mut(&lease) else { continue };
            while let Some((_, slots)) = new.pop_front_if(|(left, _)| *left <= at) {
                lasting.push((lease, slots));
            }
            if new.is_empty() {
                self.new.remove(&lease);
            }
        }
        lasting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: LeaseId = LeaseId { number: 1 };
    const OTHER: LeaseId = LeaseId { number: 2 };

    #[test]
    fn only_what_lasts_is_told() {
        let mut waits = Waits::default();
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        for call in 0..10 {
            waits.left(LEASE, 1, at(call * 200));
            assert_eq!(waits.taken(LEASE, 1), 0);
            assert!(waits.tick(at(call * 200)).is_empty());
        }
        assert_eq!(waits.next_deadline(), None);

        // One goes on before it is told, and others wait.
        waits.left(LEASE, 1, at(5000));
        waits.left(OTHER, 2, at(5100));
        waits.left(LEASE, 3, at(5200));
        assert_eq!(waits.next_deadline(), Some(at(6000)));
        assert_eq!(waits.taken(LEASE, 2), 0);
        assert_eq!(waits.tick(at(5999)), []);
        assert_eq!(waits.tick(at(6100)), [(LEASE, 1), (OTHER, 2)]);
        assert_eq!(waits.taken(LEASE, 2), 1, "the head knows of one");
        assert_eq!(waits.taken(OTHER, 2), 2);
        assert_eq!((waits.next_deadline(), waits.tick(at(9000))), (None, vec![]));
        assert!(waits.due.is_empty());
    }
}
