//! One object in the table.

use mobula_proto::{HostId, ObjectId, peer::State};
use smallvec::SmallVec;

/// What a host knows of one object. Most objects live and die without `rare`.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) state: State,
    /// Local references.
    pub(crate) local: u32,
    /// Borrowed: how often the owner counts this host; where that is dead, 1 if an agent keeps the object for this host.
    pub(crate) registered: u32,
    /// Owned: whether its task can be run again.
    pub(crate) rebuildable: bool,
    /// Whether it ever was a living actor.
    pub(crate) was_actor: bool,
    /// Borrowed: `Resolve` was sent.
    pub(crate) asked: bool,
    /// Owned: it was forgotten already; this stands in for a ref that came back too late.
    pub(crate) stale: bool,
    pub(crate) rare: Option<Box<Rare>>,
}

/// What few objects have.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    /// Owned: other hosts and how often each is registered; sorted. Below zero while a `Return` is ahead of the
    /// `Done.retained` that it answers; never zero. Few objects have more than one.
    borrowers: SmallVec<[(HostId, i64); 1]>,
    /// Borrowed: the token of our own `Borrow`, or claim, under way.
    pub(crate) ack: Option<u64>,
    /// What fewer still have.
    lists: Option<Box<Lists>>,
}

#[derive(Debug, Default)]
struct Lists {
    /// Owned: who waits for the state or, for an actor, follows it; sorted.
    waiters: Vec<HostId>,
    /// The refs inside the stored value, of an object that is owned, or claimed.
    contains: Vec<ObjectId>,
    /// Owned: the refs inside values that were lost since.
    lost: Vec<ObjectId>,
}

impl Entry {
    pub(crate) fn new(state: State, local: u32) -> Self {
        Self {
            state,
            local,
            registered: 0,
            rebuildable: false,
            was_actor: false,
            asked: false,
            stale: false,
            rare: None,
        }
    }

    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending)
    }

    pub(crate) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn lists(&mut self) -> &mut Lists {
        self.rare().lists.get_or_insert_default()
    }

    fn some_lists(&mut self) -> Option<&mut Lists> {
        self.rare.as_mut()?.lists.as_deref_mut()
    }

    /// Whether nothing holds it: no reference, no borrower, no acknowledgement under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.local == 0
            && self
                .rare
                .as_ref()
                .is_none_or(|rare| rare.ack.is_none() && rare.borrowers.iter().all(|(_, count)| *count < 0))
    }

    pub(crate) fn ack(&self) -> Option<u64> {
        self.rare.as_ref().and_then(|rare| rare.ack)
    }

    pub(crate) fn contains(&self) -> &[ObjectId] {
        match (&self.state, &self.rare) {
            (State::Inline { contains, .. }, _) => contains,
            (State::Stored(_), Some(rare)) => rare.lists.as_ref().map_or(&[], |lists| &lists.contains),
            _ => &[],
        }
    }

    /// Everything on which this entry holds a reference, once for each.
    pub(crate) fn holds(&self) -> impl Iterator<Item = ObjectId> {
        let inline = match &self.state {
            State::Inline { contains, .. } => &contains[..],
            _ => &[],
        };
        let lists = self.rare.as_ref().and_then(|rare| rare.lists.as_ref());
        let listed = lists.into_iter().flat_map(|lists| lists.contains.iter().chain(&lists.lost));
        inline.iter().chain(listed).copied()
    }

    /// Other hosts that hold it.
    pub(crate) fn borrowers(&self) -> impl Iterator<Item = HostId> {
        let all = self.rare.as_ref().into_iter().flat_map(|rare| &rare.borrowers);
        all.filter(|(_, count)| *count > 0).map(|(host, _)| *host)
    }

    pub(crate) fn set_contains(&mut self, refs: Vec<ObjectId>) {
        match &mut self.state {
            State::Inline { contains, .. } => *contains = refs,
            _ if refs.is_empty() => {}
            _ => self.lists().contains = refs,
        }
    }

    /// The stored value is gone; the refs inside it stay held (O7).
    pub(crate) fn value_lost(&mut self) {
        if let Some(lists) = self.some_lists() {
            lists.lost.append(&mut lists.contains);
        }
    }

    /// Everything on which this entry held a reference.
    pub(crate) fn into_held(self, into: &mut Vec<ObjectId>) {
        if let State::Inline { contains, .. } = self.state {
            into.extend(contains);
        }
        if let Some(lists) = self.rare.and_then(|rare| rare.lists) {
            into.extend(lists.contains);
            into.extend(lists.lost);
        }
    }

    /// Changes a borrower's count.
    pub(crate) fn count(&mut self, host: HostId, by: i64) {
        let borrowers = &mut self.rare().borrowers;
        match borrowers.binary_search_by_key(&host, |(host, _)| *host) {
            Ok(at) => {
                borrowers[at].1 += by;
                if borrowers[at].1 == 0 {
                    borrowers.remove(at);
                }
            }
            Err(at) => borrowers.insert(at, (host, by)),
        }
    }

    /// Forgets hosts that hold it. Whether there was any.
    pub(crate) fn forget_borrowers(&mut self, gone: impl Fn(HostId) -> bool) -> bool {
        let Some(rare) = &mut self.rare else { return false };
        let before = rare.borrowers.len();
        rare.borrowers.retain(|(host, _)| !gone(*host));
        before != rare.borrowers.len()
    }

    /// Forgets hosts that want to be told of its state.
    pub(crate) fn forget_waiters(&mut self, gone: impl Fn(HostId) -> bool) {
        if let Some(lists) = self.some_lists() {
            lists.waiters.retain(|host| !gone(*host));
        }
    }

    pub(crate) fn waiters(&self) -> &[HostId] {
        let lists = self.rare.as_ref().and_then(|rare| rare.lists.as_ref());
        lists.map_or(&[], |lists| &lists.waiters)
    }

    pub(crate) fn add_waiter(&mut self, host: HostId) {
        let waiters = &mut self.lists().waiters;
        if let Err(at) = waiters.binary_search(&host) {
            waiters.insert(at, host);
        }
    }

    pub(crate) fn remove_waiter(&mut self, host: HostId) {
        if let Some(lists) = self.some_lists()
            && let Ok(at) = lists.waiters.binary_search(&host)
        {
            lists.waiters.remove(at);
        }
    }

    /// Those to be told of the present state. They stay on the list while an actor may change again.
    pub(crate) fn take_audience(&mut self) -> Vec<HostId> {
        let stay = matches!(self.state, State::Actor { .. } | State::Pending);
        match self.some_lists() {
            None => Vec::new(),
            Some(lists) if stay => lists.waiters.clone(),
            Some(lists) => std::mem::take(&mut lists.waiters),
        }
    }
}
