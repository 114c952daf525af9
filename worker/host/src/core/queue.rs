//! A queue of tasks by number.

use std::collections::VecDeque;

/// Numbers in some order. Those that count up, as most do, take no memory for each.
#[derive(Debug, Default)]
pub(super) struct Queue {
    runs: VecDeque<Run>,
    len: usize,
}

/// `len` numbers from `first` on; never empty.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    len: u64,
}

impl Run {
    fn end(self) -> u64 {
        self.first + self.len
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn front(&self) -> Option<u64> {
        self.runs.front().map(|run| run.first)
    }

    pub(super) fn push_back(&mut self, seq: u64) {
        self.len += 1;
        match self.runs.back_mut() {
            Some(run) if run.end() == seq => run.len += 1,
            _ => self.runs.push_back(Run { first: seq, len: 1 }),
        }
    }

    pub(super) fn push_front(&mut self, seq: u64) {
        self.len += 1;
        match self.runs.front_mut() {
            Some(run) if run.first == seq + 1 => {
                run.first = seq;
                run.len += 1;
            }
            _ => self.runs.push_front(Run { first: seq, len: 1 }),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<u64> {
        let run = self.runs.front_mut()?;
        let seq = run.first;
        run.first += 1;
        run.len -= 1;
        if run.len == 0 {
            self.runs.pop_front();
        }
        self.len -= 1;
        Some(seq)
    }

    /// Takes a number out, wherever it is.
    pub(super) fn remove(&mut self, seq: u64) {
        let Some(at) = self.runs.iter().position(|run| (run.first..run.end()).contains(&seq)) else { return };
        let run = self.runs[at];
        self.len -= 1;
        let before = Run { first: run.first, len: seq - run.first };
        let after = Run { first: seq + 1, len: run.end() - seq - 1 };
        match (before.len, after.len) {
            (0, 0) => drop(self.runs.remove(at)),
            (0, _) => self.runs[at] = after,
            (_, 0) => self.runs[at] = before,
            (_, _) => {
                self.runs[at] = before;
                self.runs.insert(at + 1, after);
            }
        }
    }
}

impl Iterator for Queue {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_queue() {
        let mut queue = Queue::default();
        let mut model = VecDeque::new();
        // A generator of numbers that is the same each time.
        let mut number = 1_u64;
        let (mut last, mut first) = (1_000_000, 1_000_000);
        for _ in 0..100_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match number >> 60 {
                0..5 => {
                    queue.push_back(last);
                    model.push_back(last);
                    last += 1;
                }
                // Out of order.
                5 => {
                    queue.push_back(last + 1);
                    model.push_back(last + 1);
                    last += 2;
                }
                6..8 => {
                    first -= 1 + (number >> 59 & 1);
                    queue.push_front(first);
                    model.push_front(first);
                }
                8..10 if !model.is_empty() => {
                    let seq = model.remove((number >> 20) as usize % model.len()).unwrap();
                    queue.remove(seq);
                    queue.remove(seq);
                }
                _ => assert_eq!(queue.pop_front(), model.pop_front()),
            }
            assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
            assert_eq!(queue.front(), model.front().copied());
        }
        assert!(queue.eq(model));
    }

    #[test]
    fn numbers_that_count_up_are_one_run() {
        let mut queue = Queue::default();
        (10..1000).for_each(|seq| queue.push_back(seq));
        (0..10).rev().for_each(|seq| queue.push_front(seq));
        assert_eq!(queue.runs.len(), 1);
        queue.remove(500);
        assert_eq!((queue.runs.len(), queue.len()), (2, 999));
    }
}
