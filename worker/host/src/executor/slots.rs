//! What the slots of one lease are used for, as pure logic.
//!
//! - **SL-1** As many calls run as there are slots, and beyond that only those that go on after they had waited.
//! - **SL-2** A slot that a call leaves unused while it waits serves the next call here; with none here it is lent to
//!   whoever the head chooses. It comes back, whether or not it is free, when that call goes on.
//! - **SL-3** A slot that is free since arguments are fetched for the call that is to have it is lent likewise, once that
//!   has taken one or two of the [`LEND_TICK`]s. It comes back when they are here, or when another call has a use for it.
//! - **SL-4** No more slots are lent than calls wait, or have arguments fetched for them.

use std::{collections::VecDeque, time::Duration};

/// How often it is looked for slots that may be lent while arguments are fetched. What is here already, or small, comes in
/// much less; what the head needs to find another use for a slot is a small part of it.
pub(super) const LEND_TICK: Duration = Duration::from_millis(20);

/// A lease that calls came with.
#[derive(Debug)]
pub(super) struct Slots<R> {
    slots: u32,
    running: u32,
    /// Calls that have started and wait; none of them is among `running`.
    waiting: u32,
    /// Calls whose arguments are being fetched.
    fetching: u32,
    /// How many of those there were at the last [`Slots::tick`].
    slow: u32,
    lent: u32,
    queue: VecDeque<R>,
}

impl<R> Default for Slots<R> {
    fn default() -> Self {
        Self { slots: 0, running: 0, waiting: 0, fetching: 0, slow: 0, lent: 0, queue: VecDeque::new() }
    }
}

/// What becomes of a slot that a call leaves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left<R> {
    /// This call starts.
    To(R),
    /// Others may have it.
    Lent,
    /// It stays free, or more calls ran than there are slots.
    Free,
}

impl<R> Slots<R> {
    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.slots
    }

    /// A call came whose arguments are fetched, under a lease of so many slots. Whether it could not start if they were
    /// here.
    pub(super) fn fetch(&mut self, slots: u32) -> bool {
        self.slots = slots;
        self.fetching += 1;
        self.running >= slots
    }

    /// The fetching for a call is over, one way or the other. `true`: a lent slot comes back.
    pub(super) fn fetched(&mut self) -> bool {
        self.fetching = self.fetching.saturating_sub(1);
        self.slow = self.slow.saturating_sub(1);
        self.take_back(self.waiting + self.fetching)
    }

    /// A lent slot comes back if more than so many are lent.
    fn take_back(&mut self, most: u32) -> bool {
        let back = self.lent > most;
        self.lent -= u32::from(back);
        back
    }

    /// A call could start, under a lease of so many slots. It comes back if it does; with it, whether a lent slot comes
    /// back.
    pub(super) fn offer(&mut self, run: R, slots: u32) -> (Option<R>, bool) {
        self.slots = slots;
        if self.running >= slots {
            self.queue.push_back(run);
            return (None, false);
        }
        self.running += 1;
        let back = self.running + self.lent > slots && self.take_back(self.waiting);
        (Some(run), back)
    }

    /// A running call waits for an object.
    pub(super) fn wait(&mut self) -> Left<R> {
        self.running = self.running.saturating_sub(1);
        self.waiting += 1;
        // Others may run already in the place of calls that waited before and went on.
        let next = if self.running < self.slots { self.queue.pop_back() } else { None };
        match next {
            // Newest first: children before further parents.
            Some(run) => {
                self.running += 1;
                Left::To(run)
            }
            None => self.lend(),
        }
    }

    fn lend(&mut self) -> Left<R> {
        if self.lent < self.waiting && self.running + self.lent < self.slots {
            self.lent += 1;
            return Left::Lent;
        }
        Left::Free
    }

    /// A call that waited goes on. `true`: a lent slot comes back.
    pub(super) fn go_on(&mut self) -> bool {
        self.running += 1;
        self.waiting = self.waiting.saturating_sub(1);
        let back = self.lent > 0;
        self.lent -= u32::from(back);
        back
    }

    /// A running call has ended.
    pub(super) fn end(&mut self) -> Left<R> {
        self.running = self.running.saturating_sub(1);
        let next = if self.running < self.slots { self.queue.pop_front() } else { None };
        match next {
            Some(run) => {
                self.running += 1;
                Left::To(run)
            }
            // It had taken over the slot of a call that still waits, and nothing is here to take it next.
            None => self.lend(),
        }
    }

    /// Takes a call out that has not started. [`Slots::end`] is to follow, as if it had.
    pub(super) fn take_out(&mut self, is: impl Fn(&R) -> bool) -> Option<R> {
        let at = self.queue.iter().position(is)?;
        self.running += 1;
        self.queue.remove(at)
    }

    /// Takes out all of these that have not started; in order.
    pub(super) fn take_all(&mut self, are: impl Fn(&R) -> bool) -> Vec<R> {
        let (back, stay): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.queue).into_iter().partition(are);
        self.queue = stay;
        back.into()
    }

    /// Nothing is known of it that would be missed.
    pub(super) fn is_unused(&self) -> bool {
        self.running == 0 && self.waiting == 0 && self.fetching == 0 && self.queue.is_empty()
    }

    /// Whether arguments are being fetched.
    pub(super) fn is_fetching(&self) -> bool {
        self.fetching > 0
    }

    /// How many of its slots are lent because arguments are fetched.
    pub(super) fn lent_for_arguments(&self) -> u32 {
        self.lent.saturating_sub(self.waiting)
    }

    /// Every [`LEND_TICK`]: lends slots that were free all the time since the last tick because arguments are fetched, at most so
    /// many more. How many that are.
    pub(super) fn tick(&mut self, most: u32) -> u32 {
        let free = self.slots.saturating_sub(self.running + self.lent);
        let slow = self.slow.saturating_sub(self.lent_for_arguments());
        let more = free.min(slow).min(most);
        self.lent += more;
        self.slow = self.fetching;
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call of the test: which one.
    type Calls = Slots<u32>;

    fn running(slots: u32) -> Calls {
        let mut calls = Calls::default();
        for call in 0..slots {
            assert_eq!(calls.offer(call, slots), (Some(call), false));
        }
        calls
    }

    #[test]
    fn sl1_more_than_there_are_slots_wait() {
        let mut calls = running(2);
        assert_eq!(calls.offer(2, 2), (None, false));
        assert_eq!(calls.offer(3, 2), (None, false));
        assert_eq!(calls.end(), Left::To(2));
        assert_eq!(calls.take_out(|call| *call == 3), Some(3));
        assert_eq!((calls.end(), calls.end(), calls.end()), (Left::Free, Left::Free, Left::Free));
        assert!(calls.is_unused());
    }

    #[test]
    fn sl2_a_slot_of_one_that_waits_is_used_here_or_lent() {
        let mut calls = running(1);
        calls.offer(1, 1);
        calls.offer(2, 1);
        assert_eq!(calls.wait(), Left::To(2), "the newest, which may be what it waits for");
        assert_eq!(calls.wait(), Left::To(1));
        assert_eq!(calls.end(), Left::Lent);
        assert!(calls.go_on(), "the lent one");
        assert!(!calls.go_on(), "there was one slot, and one was lent");
        assert_eq!((calls.end(), calls.end()), (Left::Free, Left::Free));
        assert!(calls.is_unused());
    }

    #[test]
    fn sl3_a_slot_is_lent_while_arguments_are_slow_to_come() {
        let mut calls = Calls::default();
        assert!(!calls.fetch(2), "there is a slot free for it");
        assert_eq!(calls.tick(9), 0, "they have only begun to come");
        assert_eq!((calls.tick(0), calls.tick(9)), (0, 1));
        assert_eq!((calls.tick(9), calls.lent_for_arguments()), (0, 1));
        // Another has a use for both slots.
        assert_eq!((calls.offer(1, 2), calls.offer(2, 2)), ((Some(1), false), (Some(2), true)));
        assert_eq!((calls.tick(9), calls.end(), calls.tick(9)), (0, Left::Free, 1));
        assert!(calls.fetched() && !calls.is_unused());
        assert_eq!(calls.offer(0, 2), (Some(0), false));
        assert_eq!((calls.end(), calls.end()), (Left::Free, Left::Free));
        assert!(calls.is_unused());
    }

    #[test]
    fn random_calls_are_neither_lost_nor_are_more_slots_lent_than_may_be() {
        for seed in 0..2_000_u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % below
            };
            let slots = 1 + next(4) as u32;
            let mut calls = Calls::default();
            // What the agent was told, and where the calls are: fetching, queued, running, waiting.
            let (mut lent, mut fetching, mut queued, mut ran, mut waiting) =
                (0_u32, 0_u32, 0_u32, 0_u32, 0_u32);
            let left = |left: Left<u32>, lent: &mut u32, queued: &mut u32, ran: &mut u32| match left {
                Left::To(_) => (*queued, *ran) = (*queued - 1, *ran + 1),
                Left::Lent => *lent += 1,
                Left::Free => {}
            };
            for step in 0..200 {
                match next(8) {
                    0 => {
                        calls.fetch(slots);
                        fetching += 1;
                    }
                    op @ (1 | 2) => {
                        if op == 1 && fetching > 0 {
                            fetching -= 1;
                            lent -= u32::from(calls.fetched());
                        }
                        let (starts, back) = calls.offer(step, slots);
                        lent -= u32::from(back);
                        *(if starts.is_some() { &mut ran } else { &mut queued }) += 1;
                    }
                    3 | 4 if ran > 0 => {
                        ran -= 1;
                        left(calls.end(), &mut lent, &mut queued, &mut ran);
                    }
                    5 if ran > 0 => {
                        (ran, waiting) = (ran - 1, waiting + 1);
                        left(calls.wait(), &mut lent, &mut queued, &mut ran);
                    }
                    6 if waiting > 0 => {
                        (ran, waiting) = (ran + 1, waiting - 1);
                        lent -= u32::from(calls.go_on());
                    }
                    _ => lent += calls.tick(next(3) as u32),
                }
                assert_eq!((calls.lent, calls.fetching), (lent, fetching));
                assert_eq!((calls.queue.len() as u32, calls.running, calls.waiting), (queued, ran, waiting));
                assert!(lent <= waiting + fetching && lent <= slots, "seed {seed}, SL-4: {calls:?}");
                assert!(queued == 0 || ran >= slots, "seed {seed}, SL-1: {calls:?}");
            }
            while fetching > 0 {
                fetching -= 1;
                lent -= u32::from(calls.fetched());
            }
            while waiting > 0 {
                (ran, waiting) = (ran + 1, waiting - 1);
                lent -= u32::from(calls.go_on());
            }
            while ran > 0 {
                ran -= 1;
                left(calls.end(), &mut lent, &mut queued, &mut ran);
            }
            assert!(calls.is_unused() && lent == 0, "seed {seed}: {calls:?}");
        }
    }
}
