//! How much of the store the arguments of calls may take that run here, or are about to.
//!
//! What a call reads is pinned, and what is pinned cannot make room for what others still need. Each host admits calls
//! within what it has of the node's budget, and asks for more when that is not enough; so what they hold together leaves
//! room for the rest of what each of them waits for.
//!
//! - **BU-1** What hosts have together fits into half of the store, unless all of it is one host's, for one call; for who
//!   has waited for a while into three quarters, and in the end into all of it. For what runs may do so for hours, and
//!   wait for the very call that has no room.
//! - **BU-2** The oldest that fits comes first; nobody waits for others who need more. So who needs more than a quarter may
//!   wait for a lull.
//! - **BU-3** Who asks while nobody has anything gets it, however much.
//! - **BU-4** Who waits for room in the store, to put what a call made, does not fail as long as other calls go on whose end
//!   may make some: meanwhile nobody is given more than half of the store. Where none goes on, since each waits for room,
//!   what is enough for any of them is given to that one, before somebody is refused.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use mobula_proto::{HostId, host::ToHost};

use super::Core;

/// How many eighths of the store the budget takes for those who have waited so long; the rest is for results.
const EIGHTHS: [(Duration, u64); 3] =
    [(Duration::ZERO, 4), (Duration::from_secs(1), 6), (Duration::from_secs(10), 8)];
/// A host is given at least one part in so many of the store at once where there is enough, so that it asks rarely.
const GIVEN_SHARE: u64 = 8;

/// How often hosts are asked whether calls there may make room, while somebody waits longer than it should.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A host waits for more.
#[derive(Debug)]
struct Wish {
    host: HostId,
    more: u64,
    /// Nothing of what it has is in use.
    alone: bool,
    since: Instant,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Budget {
    store_bytes: u64,
    given: BTreeMap<HostId, u64>,
    total: u64,
    waiting: VecDeque<Wish>,
    /// Those who were asked to give back what they do not need.
    asked: BTreeSet<HostId>,
    /// Those who ever had anything, and whether calls there may make room, where they have answered that.
    makes_room: BTreeMap<HostId, Option<bool>>,
    /// Somebody waits for room for longer than it should.
    short: bool,
    /// When it was looked at who may have more.
    last: Option<Instant>,
}

impl Budget {
    /// Of a store of so many bytes.
    pub(super) fn new(store_bytes: u64) -> Self {
        Self {
            store_bytes,
            given: BTreeMap::new(),
            total: 0,
            waiting: VecDeque::new(),
            asked: BTreeSet::new(),
            makes_room: BTreeMap::new(),
            short: false,
            last: None,
        }
    }

    /// A host wants more, or so much instead of what it wanted before.
    fn want(&mut self, host: HostId, more: u64, alone: bool, now: Instant) {
        match self.waiting.iter_mut().find(|wish| wish.host == host) {
            Some(wish) => (wish.more, wish.alone) = (more, alone),
            None => self.waiting.push_back(Wish { host, more, alone, since: now }),
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
        self.makes_room.remove(&host);
    }

    /// Whether calls there may make room when they end.
    pub(super) fn makes_room(&mut self, host: HostId, may: bool) {
        if let Some(said) = self.makes_room.get_mut(&host) {
            *said = Some(may);
        }
    }

    /// Whether calls anywhere may make room; who has not answered since the last time may. Then all are to be asked again.
    fn may_come(&mut self) -> bool {
        let mut any = false;
        for said in self.makes_room.values_mut() {
            any |= said.take() != Some(false);
        }
        any
    }

    /// What all may have together where one has waited for so long.
    fn bound(&self, waited: Duration) -> u64 {
        let eighths =
            EIGHTHS.iter().rev().find(|(after, _)| waited >= *after).map_or(0, |(_, eighths)| *eighths);
        let eighths = if self.short { eighths.min(EIGHTHS[0].1) } else { eighths };
        // In this order it cannot be too large.
        self.store_bytes / 8 * eighths + self.store_bytes % 8 * eighths / 8
    }

    /// The next one that gets what it wants, and how much more it has from now on.
    fn next(&mut self, now: Instant) -> Option<(HostId, u64)> {
        let fits = |wish: &Wish| {
            let given = self.given.get(&wish.host).copied().unwrap_or(0);
            let bound = self.bound(now.saturating_duration_since(wish.since));
            self.total.saturating_add(wish.more) <= bound || wish.alone && given == self.total
        };
        let at = self.waiting.iter().position(fits)?;
        let Wish { host, more, .. } = self.waiting.remove(at)?;
        let free = self.bound(Duration::ZERO).saturating_sub(self.total);
        let plenty = if self.waiting.is_empty() { (self.store_bytes / GIVEN_SHARE).min(free) } else { 0 };
        let more = more.max(plenty);
        *self.given.entry(host).or_insert(0) += more;
        self.makes_room.entry(host).or_insert(None);
        self.total = self.total.saturating_add(more);
        // It keeps what it does not need until it is asked again.
        self.asked.remove(&host);
        Some((host, more))
    }

    /// When somebody who waits may have more than before.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let last = self.last?;
        let ends = self.waiting.iter().flat_map(|wish| EIGHTHS.map(|(after, _)| wish.since + after));
        ends.filter(|end| *end > last).min()
    }

    /// Who is to give back what is not needed, since somebody else waits, and does not know yet.
    fn ask(&mut self) -> Vec<HostId> {
        let waits = |host: HostId| self.waiting.iter().any(|wish| wish.host != host);
        let new = self.given.keys().filter(|host| waits(**host) && !self.asked.contains(host));
        let new: Vec<HostId> = new.copied().collect();
        self.asked.extend(&new);
        new
    }
}

impl Core {
    pub(super) fn budget_wanted(&mut self, host: HostId, more: u64, alone: bool, now: Instant) {
        self.budget.want(host, more, alone, now);
        self.share_budget(now);
    }

    pub(super) fn budget_back(&mut self, host: HostId, bytes: u64, now: Instant) {
        self.budget.back(host, bytes);
        self.share_budget(now);
    }

    pub(super) fn budget_without(&mut self, host: HostId) {
        self.budget.gone(host);
        if let Some(last) = self.budget.last {
            self.share_budget(last);
        }
    }

    /// Somebody has waited for room for too long: goes on waiting while there is hope, else is refused.
    pub(super) fn look_for_room(&mut self, now: Instant) {
        let hosts: Vec<HostId> = self.budget.makes_room.keys().copied().collect();
        let comes_in = !self.pulls.is_empty() || !self.restores.is_empty();
        let may_come = self.budget.may_come() || comes_in && !self.objects.agent_waits();
        // Where no call ever had arguments, there is nobody to wait for.
        let hope = !hosts.is_empty() && may_come && self.objects.go_on(now, LOOK_AGAIN);
        if !hope {
            let granted = if hosts.is_empty() { Vec::new() } else { self.objects.grants_out_of_turn() };
            if granted.is_empty() || !self.objects.go_on(now, LOOK_AGAIN) {
                for (writer, request, failure) in self.objects.refuse(now, hosts.is_empty()) {
                    self.room(writer, request, Err(failure.on(self.config.node.to_string())));
                }
            }
            for (writer, request) in granted {
                self.room(writer, request, Ok(()));
            }
        }
        if self.objects.is_late() {
            self.budget.short = true;
            for host in hosts {
                self.tell(host, ToHost::MayMakeRoom);
            }
        }
    }

    /// If nobody waits for too long any more, the budget is what it was.
    pub(super) fn no_longer_short(&mut self) {
        if self.budget.short
            && !self.objects.is_late()
            && let Some(last) = self.budget.last
        {
            self.budget.short = false;
            self.share_budget(last);
        }
    }

    /// Gives what there is to who waits for it.
    pub(super) fn share_budget(&mut self, now: Instant) {
        self.budget.last = Some(now);
        while let Some((host, more)) = self.budget.next(now) {
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

    /// Of a store of 32 bytes.
    fn budget() -> (Budget, Instant) {
        (Budget::new(32), Instant::now())
    }

    #[test]
    fn bu_1_bu_2_oldest_first_of_what_fits() {
        let (mut budget, now) = budget();
        budget.want(host(1), 10, true, now);
        assert_eq!(budget.next(now), Some((host(1), 10)));
        budget.want(host(2), 9, true, now);
        assert_eq!(budget.next(now), None);
        assert_eq!(budget.ask(), [host(1)]);
        assert_eq!(budget.ask(), [], "once is enough");
        budget.want(host(3), 1, true, now);
        assert_eq!(budget.next(now), Some((host(3), 1)), "it does not wait for the second");
        budget.back(host(1), 4);
        assert_eq!(budget.next(now), Some((host(2), 9)));
        budget.gone(host(2));
        assert_eq!((budget.total, budget.next(now)), (7, None));
    }

    #[test]
    fn bu_1_who_waits_for_long_gets_more_of_the_store() {
        let (mut budget, start) = budget();
        let after = |ms| start + Duration::from_millis(ms);
        budget.want(host(1), 12, true, start);
        assert_eq!(budget.next(start), Some((host(1), 12)));
        budget.want(host(2), 12, true, start);
        budget.want(host(3), 8, true, start);
        budget.last = Some(start);
        assert_eq!((budget.next(after(999)), budget.next_deadline()), (None, Some(after(1000))));
        assert_eq!(budget.next(after(1000)), Some((host(2), 12)), "three quarters");
        budget.last = Some(after(1000));
        assert_eq!((budget.next(after(9999)), budget.next_deadline()), (None, Some(after(10_000))));
        assert_eq!(budget.next(after(10_000)), Some((host(3), 8)), "all of it");
        budget.want(host(4), 1, true, after(10_000));
        assert_eq!(budget.next(after(90_000)), None, "there is no more");
    }

    #[test]
    fn bu_3_what_never_fits_is_given_to_one_that_is_alone() {
        let (mut budget, now) = budget();
        budget.want(host(1), 2, true, now);
        assert_eq!(budget.next(now), Some((host(1), 4)), "with some more, since nobody waits");
        budget.want(host(1), 100, false, now);
        assert_eq!(budget.next(now), None, "some of what it has is in use");
        budget.want(host(1), 98, true, now);
        assert_eq!(budget.next(now), Some((host(1), 98)));
        budget.want(host(2), 1, true, now);
        assert_eq!(budget.next(now), None);
        assert_eq!(budget.ask(), [host(1)]);
        budget.back(host(1), 500);
        assert_eq!(budget.next(now), Some((host(2), 4)));
        assert_eq!(budget.total, 4);
    }

    #[test]
    fn who_is_gone_wants_nothing() {
        let (mut budget, now) = budget();
        budget.want(host(1), 16, true, now);
        assert_eq!(budget.next(now), Some((host(1), 16)));
        budget.want(host(2), 16, true, now);
        budget.want(host(3), 3, true, now);
        budget.gone(host(2));
        budget.back(host(1), 16);
        assert_eq!(budget.next(now), Some((host(3), 4)));
        budget.gone(host(1));
        assert_eq!((budget.total, budget.next(now)), (4, None));
    }
}
