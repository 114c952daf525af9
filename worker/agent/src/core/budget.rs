//! How much of the store the arguments of calls may take that run here, or are about to.
//!
//! What a call reads is pinned, and what is pinned cannot make room for what others still need. Each host admits calls
//! within what it has of the node's budget, and asks for more when that is not enough; so no two processes hold what
//! both wait for.
//!
//! - **BU-1** What hosts have together fits into the budget, unless all of it is one host's, for one call.
//! - **BU-2** Nobody is overtaken by who asked later.
//! - **BU-3** Who asks first while nobody has anything gets it, however much.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mobula_proto::{HostId, host::ToHost};

use super::Core;

/// The budget takes one part in so many of the store; the rest is for results.
const STORE_SHARE: u64 = 2;
/// A host is given at least one part in so many of the budget at once where there is enough, so that it asks rarely.
const GIVEN_SHARE: u64 = 4;

/// A host waits for more.
#[derive(Debug)]
struct Wish {
    host: HostId,
    more: u64,
    /// Nothing of what it has is in use.
    alone: bool,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Budget {
    bound: u64,
    given: BTreeMap<HostId, u64>,
    total: u64,
    waiting: VecDeque<Wish>,
    /// Those who were asked to give back what they do not need.
    asked: BTreeSet<HostId>,
}

impl Budget {
    /// Of a store of so many bytes.
    pub(super) fn new(store_bytes: u64) -> Self {
        Self {
            bound: store_bytes / STORE_SHARE,
            given: BTreeMap::new(),
            total: 0,
            waiting: VecDeque::new(),
            asked: BTreeSet::new(),
        }
    }

    /// A host wants more, or so much instead of what it wanted before.
    fn want(&mut self, host: HostId, more: u64, alone: bool) {
        match self.waiting.iter_mut().find(|wish| wish.host == host) {
            Some(wish) => (wish.more, wish.alone) = (more, alone),
            None => self.waiting.push_back(Wish { host, more, alone }),
        }
    }

    /// A host has so much less.
    fn back(&mut self, host: HostId, bytes: u64) {
        if let Some(given) = self.given.get_mut(&host) {
            let bytes = bytes.min(*given);
            *given -= bytes;
            self.total -= bytes;
            if *given == 0 {
                self.given.remove(&host);
            }
        }
    }

    /// A host is gone, and has and wants nothing.
    fn gone(&mut self, host: HostId) {
        self.total -= self.given.remove(&host).unwrap_or(0);
        self.waiting.retain(|wish| wish.host != host);
        self.asked.remove(&host);
    }

    /// The next one that gets what it wants, and how much more it has from now on.
    fn next(&mut self) -> Option<(HostId, u64)> {
        let Wish { host, more, alone } = *self.waiting.front()?;
        let given = self.given.get(&host).copied().unwrap_or(0);
        let free = self.bound.saturating_sub(self.total);
        if more > free && !(alone && given == self.total) {
            return None;
        }
        self.waiting.pop_front();
        let plenty = if self.waiting.is_empty() { (self.bound / GIVEN_SHARE).min(free) } else { 0 };
        let more = more.max(plenty);
        *self.given.entry(host).or_insert(0) += more;
        self.total = self.total.saturating_add(more);
        // It keeps what it does not need until it is asked again.
        self.asked.remove(&host);
        Some((host, more))
    }

    /// Who is to give back what is not needed, since somebody waits, and does not know yet.
    fn ask(&mut self) -> Vec<HostId> {
        let Some(first) = self.waiting.front() else { return Vec::new() };
        let others = self.given.keys().filter(|host| **host != first.host);
        let new: Vec<HostId> = others.filter(|host| !self.asked.contains(host)).copied().collect();
        self.asked.extend(&new);
        new
    }
}

impl Core {
    pub(super) fn budget_wanted(&mut self, host: HostId, more: u64, alone: bool) {
        self.budget.want(host, more, alone);
        self.share_budget();
    }

    pub(super) fn budget_back(&mut self, host: HostId, bytes: u64) {
        self.budget.back(host, bytes);
        self.share_budget();
    }

    pub(super) fn budget_without(&mut self, host: HostId) {
        self.budget.gone(host);
        self.share_budget();
    }

    fn share_budget(&mut self) {
        while let Some((host, more)) = self.budget.next() {
            self.tell(host, ToHost::Budget { more });
        }
        for host in self.budget.ask() {
            self.tell(host, ToHost::BudgetWanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::NodeId;

    use super::*;

    fn host(seq: u32) -> HostId {
        HostId { node: NodeId::EMBEDDED, seq }
    }

    /// Of 16 bytes.
    fn budget() -> Budget {
        Budget::new(32)
    }

    #[test]
    fn bu_1_bu_2_oldest_first_within_the_bound() {
        let mut budget = budget();
        budget.want(host(1), 10, true);
        assert_eq!(budget.next(), Some((host(1), 10)));
        budget.want(host(2), 9, true);
        budget.want(host(3), 1, true);
        assert_eq!(budget.next(), None, "and nobody overtakes");
        assert_eq!(budget.ask(), [host(1)]);
        assert_eq!(budget.ask(), [], "once is enough");
        budget.back(host(1), 3);
        assert_eq!(budget.next(), Some((host(2), 9)));
        assert_eq!(budget.ask(), [host(2)], "the third waits, and the first knows");
        budget.gone(host(2));
        assert_eq!(budget.next(), Some((host(3), 4)), "with some more, since nobody waits");
        assert_eq!(budget.total, 11);
    }

    #[test]
    fn bu_3_what_never_fits_is_given_to_one_that_is_alone() {
        let mut budget = budget();
        budget.want(host(1), 2, true);
        assert_eq!(budget.next(), Some((host(1), 4)));
        budget.want(host(1), 100, false);
        budget.want(host(2), 1, true);
        assert_eq!(budget.next(), None, "some of what it has is in use");
        budget.want(host(1), 98, true);
        assert_eq!(budget.next(), Some((host(1), 98)));
        assert_eq!(budget.next(), None);
        assert_eq!(budget.ask(), [host(1)]);
        budget.back(host(1), 500);
        assert_eq!(budget.next(), Some((host(2), 4)));
        assert_eq!(budget.total, 4);
    }

    #[test]
    fn who_is_gone_wants_nothing() {
        let mut budget = budget();
        budget.want(host(1), 16, true);
        assert_eq!(budget.next(), Some((host(1), 16)));
        budget.want(host(2), 16, true);
        budget.want(host(3), 3, true);
        budget.gone(host(2));
        budget.back(host(1), 16);
        assert_eq!(budget.next(), Some((host(3), 4)));
        budget.gone(host(1));
        assert_eq!((budget.total, budget.next()), (4, None));
    }
}
