//! Which calls' arguments are made readable. Pure; carried out in [`crate::executor`].
//!
//! What a call reads is pinned, and what is pinned cannot make room for what others still need. If calls pinned their
//! arguments one by one, some could wait for ever for the last of theirs while others hold it off. So all of a call's are
//! admitted together or none, oldest first, within a share of the node's budget for that, which leaves the rest of the
//! store to results. The agent has the budget, and gives each host more of it when it asks.
//!
//! - **AD-1** What is admitted fits into the host's share, unless calls that waited go on.
//! - **AD-2** Nobody is overtaken by whoever asked later in this host.
//! - **AD-3** Somebody waits only while the agent knows: what is missing, and whether anything is in use.
//! - **AD-4** While others wait for the budget, what is not in use is not kept.

use std::collections::VecDeque;

/// What the agent is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// So much more is wanted, and whether nothing of the share is in use; instead of what was wanted before.
    Want(u64, bool),
    /// The share is so much lower.
    Back(u64),
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Admission<T> {
    share: u64,
    in_use: u64,
    waiting: VecDeque<(u64, T)>,
    /// What the agent was told last, since it gave something.
    wanted: Option<(u64, bool)>,
    /// Others wait for the budget.
    pressed: bool,
}

impl<T> Default for Admission<T> {
    /// Without a share.
    fn default() -> Self {
        Self { share: 0, in_use: 0, waiting: VecDeque::new(), wanted: None, pressed: false }
    }
}

impl<T> Admission<T> {
    /// Asks for `bytes`: `what` comes back where they are admitted at once, else later from [`Self::next`]. Its caller
    /// bounds how many wait: each is a call that was sent here.
    pub(crate) fn ask(&mut self, bytes: u64, what: T) -> Option<T> {
        self.waiting.push_back((bytes, what));
        if self.waiting.len() == 1 { self.next() } else { None }
    }

    /// The next one that is admitted. After whatever changed something, until there is none; then [`Self::word`].
    pub(crate) fn next(&mut self) -> Option<T> {
        let (bytes, _) = self.waiting.front()?;
        // While others wait, what comes free is theirs first (AD-4). Of who needs nothing the agent is never asked.
        let fits = *bytes == 0 || !self.pressed && self.in_use.saturating_add(*bytes) <= self.share;
        let (bytes, what) = if fits { self.waiting.pop_front()? } else { return None };
        self.in_use += bytes;
        Some(what)
    }

    /// What the agent is to be told now, if anything.
    pub(crate) fn word(&mut self) -> Option<Word> {
        if self.pressed && self.share > self.in_use {
            let back = self.share - self.in_use;
            self.share = self.in_use;
            return Some(Word::Back(back));
        }
        let (bytes, _) = self.waiting.front()?;
        let want = (self.in_use.saturating_add(*bytes).saturating_sub(self.share), self.in_use == 0);
        if want.0 == 0 || self.wanted == Some(want) {
            return None;
        }
        self.wanted = Some(want);
        Some(Word::Want(want.0, want.1))
    }

    /// The share is so much higher.
    pub(crate) fn give(&mut self, more: u64) {
        self.share = self.share.saturating_add(more);
        self.wanted = None;
        self.pressed = false;
    }

    /// Whether any call has arguments.
    pub(crate) fn is_used(&self) -> bool {
        self.in_use > 0
    }

    /// Others wait for the budget.
    pub(crate) fn press(&mut self) {
        self.pressed = true;
    }

    /// These are not in use any more, or not while their call waits for others.
    pub(crate) fn release(&mut self, bytes: u64) {
        self.in_use = self.in_use.saturating_sub(bytes);
    }

    /// A call that had waited for others goes on, and its arguments are in use again.
    pub(crate) fn resume(&mut self, bytes: u64) {
        self.in_use = self.in_use.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_share(share: u64) -> Admission<&'static str> {
        let mut admission = Admission::default();
        admission.give(share);
        admission
    }

    #[test]
    fn ad_1_ad_2_oldest_first_within_the_share() {
        let mut admission = with_share(10);
        assert_eq!(admission.ask(6, "a"), Some("a"));
        assert_eq!(admission.ask(5, "b"), None);
        assert_eq!(admission.ask(1, "c"), None, "it would fit, but is not first");
        assert_eq!(admission.next(), None);
        admission.release(6);
        assert_eq!((admission.next(), admission.next(), admission.next()), (Some("b"), Some("c"), None));
        assert_eq!(admission.ask(4, "d"), Some("d"));
    }

    #[test]
    fn ad_3_the_agent_knows_what_is_missing() {
        let mut admission = Admission::default();
        assert_eq!(admission.ask(3, "a"), None);
        assert_eq!(admission.word(), Some(Word::Want(3, true)));
        assert_eq!(admission.word(), None, "it knows");
        admission.give(4);
        assert_eq!((admission.next(), admission.word()), (Some("a"), None));
        assert_eq!(admission.ask(100, "b"), None);
        assert_eq!(admission.word(), Some(Word::Want(99, false)));
        admission.release(3);
        assert_eq!((admission.next(), admission.word()), (None, Some(Word::Want(96, true))));
        admission.give(96);
        assert_eq!(admission.next(), Some("b"));
    }

    #[test]
    fn ad_4_others_get_what_is_not_in_use() {
        let mut admission = with_share(10);
        assert_eq!(admission.ask(6, "a"), Some("a"));
        admission.press();
        assert_eq!((admission.word(), admission.word()), (Some(Word::Back(4)), None));
        assert_eq!(admission.ask(2, "b"), None);
        assert_eq!(admission.word(), Some(Word::Want(2, false)));
        admission.release(6);
        assert_eq!(admission.next(), None, "it would fit by now, but others wait");
        assert_eq!(admission.word(), Some(Word::Back(6)));
        assert_eq!((admission.word(), admission.word()), (Some(Word::Want(2, true)), None));
        admission.give(5);
        assert_eq!(admission.next(), Some("b"));
        // What is not in use is kept as long as nobody else waits.
        admission.release(2);
        assert_eq!(admission.word(), None);
        assert_eq!(admission.ask(5, "c"), Some("c"));
    }

    #[test]
    fn ad_3_who_needs_no_room_holds_nobody_up_while_others_wait() {
        let mut admission = with_share(10);
        admission.press();
        assert_eq!(admission.word(), Some(Word::Back(10)));
        assert_eq!(admission.ask(0, "a"), Some("a"));
        assert_eq!(admission.ask(1, "b"), None);
        assert_eq!(admission.word(), Some(Word::Want(1, true)));
        assert_eq!(admission.ask(0, "c"), None, "it is not first");
        admission.give(1);
        assert_eq!((admission.next(), admission.next(), admission.next()), (Some("b"), Some("c"), None));
    }

    #[test]
    fn who_waits_for_others_lets_them_in() {
        let mut admission = with_share(10);
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
