//! Calls of one actor that have not left yet.

use std::collections::VecDeque;

use mobula_proto::SeqMap;

use super::{Phase, Task};

/// Whether this number in an outbox is that of a call, which waits in it.
pub(super) fn waits(tasks: &SeqMap<Task>, seq: u64) -> bool {
    tasks.get(&seq).is_some_and(|task| task.phase == Phase::Waiting)
}

/// Numbers of calls, in the order in which they leave. One that is given up stays as the number of nothing until it comes to
/// the front or such are the half, so that giving up many takes no look at all the others for each. The caller knows which
/// numbers those are: it says so with `is_there`.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    numbers: VecDeque<u64>,
    /// How many of them are of nothing.
    gone: usize,
}

impl Outbox {
    /// How many calls are in it.
    pub(super) fn len(&self) -> usize {
        self.numbers.len() - self.gone
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push_back(&mut self, seq: u64) {
        self.numbers.push_back(seq);
    }

    pub(super) fn push_front(&mut self, seq: u64) {
        self.numbers.push_front(seq);
    }

    /// The call that leaves next, or a number of nothing.
    pub(super) fn front(&self) -> Option<u64> {
        self.numbers.front().copied()
    }

    /// Takes out the call that [`Self::front`] gave.
    pub(super) fn pop_front(&mut self) {
        self.numbers.pop_front();
    }

    /// The same where it is the number of nothing.
    pub(super) fn skip_front(&mut self) {
        self.numbers.pop_front();
        self.gone = self.gone.saturating_sub(1);
    }

    /// A call that is in it is given up: its number is of nothing from now on.
    pub(super) fn give_up(&mut self, seq: u64, is_there: impl Fn(u64) -> bool) {
        self.gone += 1;
        if self.gone > self.numbers.len() / 2 {
            self.numbers.retain(|other| *other != seq && is_there(*other));
            self.gone = 0;
        }
    }

    /// The calls in it, in order.
    pub(super) fn iter(&self, is_there: impl Fn(u64) -> bool) -> impl Iterator<Item = u64> {
        self.numbers.iter().copied().filter(move |seq| is_there(*seq))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeSet,
    };

    use super::*;

    #[test]
    fn giving_up_many_looks_at_each_a_few_times() {
        const MANY: u64 = 10_000;
        // In order, from the end, and as they come.
        let orders: [fn(u64) -> u64; 3] = [|turn| turn, |turn| MANY - 1 - turn, |turn| turn * 7919 % MANY];
        for order in orders {
            let mut outbox = Outbox::default();
            (0..MANY).for_each(|seq| outbox.push_back(seq));
            let there = RefCell::new((0..MANY).collect::<BTreeSet<u64>>());
            let looks = Cell::new(0);
            let is_there = |seq| {
                looks.set(looks.get() + 1);
                there.borrow().contains(&seq)
            };
            for turn in 0..MANY {
                let seq = order(turn);
                outbox.give_up(seq, is_there);
                there.borrow_mut().remove(&seq);
                assert_eq!(outbox.len() as u64, MANY - 1 - turn);
                if turn == MANY / 3 {
                    assert!(outbox.iter(is_there).eq(there.borrow().iter().copied()));
                    while outbox.front().is_some_and(|seq| !is_there(seq)) {
                        outbox.skip_front();
                    }
                    assert_eq!(outbox.front(), there.borrow().first().copied());
                    assert_eq!(outbox.len(), there.borrow().len());
                }
            }
            assert!(looks.get() < 5 * MANY, "{}", looks.get());
            assert_eq!((outbox.is_empty(), outbox.numbers.len()), (true, 0));
        }
    }
}
