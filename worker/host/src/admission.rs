//! Which tasks' arguments are made readable. Pure; carried out in [`crate::executor`].
//!
//! What a task reads is pinned, and what is pinned cannot make room for what others still need. If tasks pinned their
//! arguments one by one, some could wait for ever for the last of theirs while others hold it off. So all of a task's are
//! admitted together or none, oldest first, within a bound that leaves the rest of the store to results.
//!
//! - **AD-1** What is admitted fits into the bound, unless it is a single task's, or tasks that waited go on.
//! - **AD-2** Nobody is overtaken by whoever asked later.
//! - **AD-3** Where nothing is in use, the first in line is admitted, however large.

use std::collections::VecDeque;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Admission<T> {
    bound: u64,
    in_use: u64,
    waiting: VecDeque<(u64, T)>,
}

impl<T> Admission<T> {
    /// Admits up to `bound` bytes at once.
    pub(crate) fn new(bound: u64) -> Self {
        Self { bound, in_use: 0, waiting: VecDeque::new() }
    }

    /// Asks for `bytes`: `what` comes back where they are admitted at once, else later from [`Self::next`]. Its caller
    /// bounds how many wait: each is a call that was sent here.
    pub(crate) fn ask(&mut self, bytes: u64, what: T) -> Option<T> {
        self.waiting.push_back((bytes, what));
        if self.waiting.len() == 1 { self.next() } else { None }
    }

    /// The next one that is admitted.
    pub(crate) fn next(&mut self) -> Option<T> {
        let (bytes, _) = self.waiting.front()?;
        let fits = self.in_use == 0 || self.in_use.saturating_add(*bytes) <= self.bound;
        let (bytes, what) = if fits { self.waiting.pop_front()? } else { return None };
        self.in_use += bytes;
        Some(what)
    }

    /// These are not in use any more, or not while their task waits for others.
    pub(crate) fn release(&mut self, bytes: u64) {
        self.in_use = self.in_use.saturating_sub(bytes);
    }

    /// A task that had waited for others goes on, and its arguments are in use again.
    pub(crate) fn resume(&mut self, bytes: u64) {
        self.in_use += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ad_1_ad_2_oldest_first_within_the_bound() {
        let mut admission = Admission::new(10);
        assert_eq!(admission.ask(6, "a"), Some("a"));
        assert_eq!(admission.ask(5, "b"), None);
        assert_eq!(admission.ask(1, "c"), None, "it would fit, but is not first");
        assert_eq!(admission.next(), None);
        admission.release(6);
        assert_eq!((admission.next(), admission.next(), admission.next()), (Some("b"), Some("c"), None));
        assert_eq!(admission.ask(4, "d"), Some("d"));
    }

    #[test]
    fn ad_3_what_never_fits_runs_alone() {
        let mut admission = Admission::new(10);
        assert_eq!(admission.ask(1, "a"), Some("a"));
        assert_eq!(admission.ask(100, "b"), None);
        admission.release(1);
        assert_eq!(admission.next(), Some("b"));
        assert_eq!(admission.ask(1, "c"), None);
        admission.release(100);
        assert_eq!(admission.next(), Some("c"));
    }

    #[test]
    fn who_waits_for_others_lets_them_in() {
        let mut admission = Admission::new(10);
        assert_eq!(admission.ask(10, "parent"), Some("parent"));
        assert_eq!(admission.ask(10, "child"), None);
        admission.release(10);
        assert_eq!(admission.next(), Some("child"));
        admission.resume(10);
        admission.release(10);
        assert_eq!(admission.ask(1, "other"), None);
        admission.release(10);
        assert_eq!(admission.next(), Some("other"));
    }
}
