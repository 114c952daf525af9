//! A queue of tasks by number.

use std::collections::VecDeque;

/// Numbers in some order. Runs of those that count up or down, as most do, take no memory for each.
#[derive(Debug, Default)]
pub(super) struct Queue {
    runs: VecDeque<Run>,
    len: usize,
}

/// All numbers from `front` to `back`, up or down.
#[derive(Clone, Copy, Debug)]
struct Run {
    front: u64,
    back: u64,
}

impl Run {
    fn of(seq: u64) -> Self {
        Self { front: seq, back: seq }
    }

    fn contains(self, seq: u64) -> bool {
        (self.front.min(self.back)..=self.front.max(self.back)).contains(&seq)
    }

    /// Whether `before` and `after` are neighbours, in the run's direction.
    fn continues(self, before: u64, after: u64) -> bool {
        (self.front <= self.back && before.checked_add(1) == Some(after))
            || (self.front >= self.back && after.checked_add(1) == Some(before))
    }

    /// The number behind `seq` in the run's direction.
    fn behind(self, seq: u64) -> u64 {
        if self.front <= self.back { seq + 1 } else { seq - 1 }
    }

    /// The number before `seq` in the run's direction.
    fn before(self, seq: u64) -> u64 {
        if self.front <= self.back { seq - 1 } else { seq + 1 }
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
        self.runs.front().map(|run| run.front)
    }

    /// How many come before this one; `None` where it is not in it.
    pub(super) fn before(&self, seq: u64) -> Option<u64> {
        let mut before = 0;
        for run in &self.runs {
            if run.contains(seq) {
                return Some(before + run.front.abs_diff(seq));
            }
            before += run.front.abs_diff(run.back) + 1;
        }
        None
    }

    pub(super) fn push_back(&mut self, seq: u64) {
        self.len += 1;
        match self.runs.back_mut() {
            Some(run) if run.continues(run.back, seq) => run.back = seq,
            _ => self.runs.push_back(Run::of(seq)),
        }
    }

    pub(super) fn push_front(&mut self, seq: u64) {
        self.len += 1;
        match self.runs.front_mut() {
            Some(run) if run.continues(seq, run.front) => run.front = seq,
            _ => self.runs.push_front(Run::of(seq)),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<u64> {
        let run = self.runs.front_mut()?;
        let seq = run.front;
        if seq == run.back {
            self.runs.pop_front();
        } else {
            run.front = run.behind(seq);
        }
        self.len -= 1;
        Some(seq)
    }

    /// Takes a number out, wherever it is.
    pub(super) fn remove(&mut self, seq: u64) {
        let Some(at) = self.runs.iter().position(|run| run.contains(seq)) else { return };
        self.len -= 1;
        let run = &mut self.runs[at];
        match (run.front == seq, run.back == seq) {
            (true, true) => drop(self.runs.remove(at)),
            (true, false) => run.front = run.behind(seq),
            (false, true) => run.back = run.before(seq),
            (false, false) => {
                let rest = Run { front: run.behind(seq), back: run.back };
                run.back = run.before(seq);
                self.runs.insert(at + 1, rest);
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
        for round in 0..200_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // By turns they count up at the back and at the front.
            let step = 1 + (number >> 59 & 1);
            match number >> 60 {
                0..6 => {
                    queue.push_back(last);
                    model.push_back(last);
                    last += step;
                }
                6..9 if round / 1000 % 2 == 0 => {
                    queue.push_front(last);
                    model.push_front(last);
                    last += step;
                }
                6..9 => {
                    first -= step;
                    queue.push_front(first);
                    model.push_front(first);
                }
                9..12 if !model.is_empty() => {
                    let seq = model.remove((number >> 20) as usize % model.len()).unwrap();
                    queue.remove(seq);
                    queue.remove(seq);
                }
                _ => assert_eq!(queue.pop_front(), model.pop_front()),
            }
            if let Some(at) = model.len().checked_sub(1).map(|last| (number >> 30) as usize % (last + 1)) {
                assert_eq!(queue.before(model[at]), Some(at as u64));
            }
            assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
            assert_eq!(queue.front(), model.front().copied());
        }
        assert!(queue.eq(model));
    }

    #[test]
    fn numbers_that_count_up_or_down_are_one_run() {
        let mut queue = Queue::default();
        (10..1000).for_each(|seq| queue.push_back(seq));
        (0..10).rev().for_each(|seq| queue.push_front(seq));
        assert_eq!(queue.runs.len(), 1);
        queue.remove(500);
        assert_eq!((queue.runs.len(), queue.len()), (2, 999));
        // The newest first.
        (1000..2000).for_each(|seq| queue.push_front(seq));
        assert_eq!((queue.runs.len(), queue.len()), (3, 1999));
        assert!(queue.take(1001).eq((1000..2000).rev().chain([0])));
    }
}
