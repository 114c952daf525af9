//! Making room for what waits too long: from those that have less right to what they hold, and by keeping nodes.
//!
//! | who waits | may take from |
//! |---|---|
//! | in the same queue | what has a lower priority |
//! | a queue below what is guaranteed to it | queues that are beyond what is guaranteed to them, down to that |
//! | a queue with a smaller share | what is restartable, of queues that have a larger one even without it |
//!
//! The rule is the order of the queues ([`crate::queues`]), and never allows the same exchange back: a queue whose share is
//! the same as another's takes nothing of it, even where the exchange would leave both shares as they are. On one node are
//! taken just the slots that are needed: restartable ones first, then those that matter least, the newest first. Their
//! owners are told ([`RevokeKind::Preempted`]). What is restartable is taken away after its grace; anything else may run
//! to its end, but gets no more work. A group is given up as a whole, and only if it is restartable: work in any other may
//! start as long as the group is there, so that nothing would end by itself, and it keeps what it has borrowed.
//!
//! Who waits at the limit of a queue may take what that is of from those below it, on a node where he may run then.
//!
//! What comes free bit by bit would go to whatever small fits first. So the node is *kept* for the shape for which room
//! is made, until that is granted or it took too long. In the same way a node is kept for something large that has
//! waited for long, and for which several slots must end; but not from what is due before it, since nobody makes room.

mod gangs;

pub(super) use gangs::{NODES_EACH, as_nodes};

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{LeaseId, resource::DeviceGrant};

use super::{
    Scheduler,
    starve::{Oldest, lack},
};
use crate::{
    Effect, Millis, RevokeKind,
    gang::{self, Gang},
    lease::Entry,
    node::{Kept, Node, Purpose},
    queues::{Right, Turn},
    shapes::ShapeId,
    stock::{CPU, Need},
};

/// How long until another look is taken.
const INTERVAL: Millis = Millis(50);
/// Most demands for which room is looked for at a time.
const DEMANDS_MAX: usize = 32;
/// Most nodes that are looked at for one of them.
const NODES_MAX: usize = 64;
/// Most leases that are looked through in one look, in equal parts for those for whom it is taken; for each those of one
/// node at least.
const LEASES_MAX: usize = 65_536;
/// Most slots for which room is made on one node at a time.
const SLOTS_MAX: u32 = 64;
/// A node of so many may be kept for what is large.
const KEPT_PART: usize = 16;

/// When others must make room for what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preempt {
    /// How long something waits until room is made for it. Default 500 ms. Shorter stops more work that would have made
    /// room by itself; `Millis(u64::MAX)` stops none.
    pub patience: Millis,
    /// How long what is restartable may run on after it was told. Default 1 s. Shorter makes room sooner and loses more
    /// work.
    pub grace: Millis,
    /// Most that is taken in one second, in thousandths of what the cluster has of a kind, but always what one slot needs.
    /// Default 250. Less stops less work at a time; what is borrowed then comes back later.
    pub churn: u32,
    /// How long something waits until a node is kept for it, if several slots must end for it. Default 10 s. Shorter leaves
    /// more capacity idle, longer lets large requests wait behind small ones; `Millis(u64::MAX)` keeps none.
    pub reserve: Millis,
}

impl Default for Preempt {
    fn default() -> Self {
        Self { patience: Millis(500), grace: Millis(1000), churn: 250, reserve: Millis(10_000) }
    }
}

/// What is being made room for.
#[derive(Debug, Default)]
pub(super) struct Preempting {
    last: Millis,
    /// The demand and the group that are looked at first, of those that are so each after the other.
    demand: Option<crate::demand::Key>,
    gang: u32,
    /// Whether the last group was one whose turn was first.
    by_turn: bool,
    /// How many leases were looked through for demands in this look.
    pub looked: usize,
    /// How many nodes were looked through for groups, with their leases, less what each look allows; and to keep some for
    /// one.
    debt: usize,
    pub keep_debt: usize,
    /// The last group for which none could be kept.
    pub kept_after: Option<Turn>,
    /// A group that took too much for what was left of a second.
    put_off: Option<u32>,
    /// Since when what was taken is counted, and how much that was, as a part of the cluster.
    since: Millis,
    taken: f64,
    /// Nodes that are kept for somebody.
    pub kept: BTreeSet<u32>,
    /// When leases and groups that must make room are taken away.
    leases: BTreeSet<(Millis, LeaseId)>,
    gangs: BTreeSet<(Millis, u32)>,
    /// How many leases were looked at, and how often it was asked whether something may be taken from another queue.
    #[cfg(test)]
    pub examined: std::cell::Cell<(usize, usize)>,
}

/// Who waits.
pub(super) struct Claim {
    pub who: Oldest,
    /// The demand, or the group, by place.
    pub at: u32,
    pub shape: ShapeId,
    pub queue: u32,
    pub priority: i32,
    /// When its turn is: see [`crate::queues::Turn`].
    pub turn: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    /// A lease, by place.
    Lease(u32),
    /// A group that has bundles there.
    Gang(u32),
}

/// Somebody who holds something on a node.
#[derive(Debug)]
struct Victim {
    holder: Holder,
    queue: u32,
    priority: i32,
    restartable: bool,
    /// How many times it can be taken, and what that frees on the node each time.
    slots: u32,
    need: Arc<Need>,
    devices: Vec<DeviceGrant>,
    /// What it gives up each time, wherever that is.
    all: Arc<Need>,
}

/// How room is made on one node.
#[derive(Debug, Default)]
struct Plan {
    /// For so many slots or bundles.
    slots: u32,
    /// Whose, how many of theirs, and whether they are restartable.
    taken: Vec<(Holder, u32, bool)>,
    /// What was taken of and added to queues on trial.
    trial: Vec<(u32, Arc<Need>, bool)>,
    /// The part of the cluster that is taken.
    part: f64,
}

/// Groups that are given up on trial. Each is so as a whole, for all of its bundles, wherever they are.
#[derive(Debug, Default)]
struct Given(BTreeSet<u32>);

impl Given {
    fn has(&self, victim: &Victim) -> bool {
        matches!(victim.holder, Holder::Gang(at) if self.0.contains(&at))
    }
}

/// Whether something may be taken from another queue, for who waits and as long as nothing else is given up: by that queue,
/// whether it is restartable, and what each slot of it is, which all that was granted to one shape shares.
#[derive(Debug, Default)]
struct Rights(BTreeMap<(u32, bool, *const Need), bool>);

impl Plan {
    fn harsh(&self) -> u32 {
        self.taken.iter().filter(|(.., restartable)| !restartable).map(|(_, slots, _)| slots).sum()
    }
}

impl Scheduler {
    /// When [`Scheduler::preempt_some`] or [`Scheduler::evict`] is next of use.
    pub(super) fn next_preempt(&self) -> Option<Millis> {
        let preempting = &self.preempting;
        let leases = preempting.leases.first().map(|(at, _)| *at);
        let gangs = preempting.gangs.first().map(|(at, _)| *at);
        let kept =
            preempting.kept.iter().filter_map(|at| Some(self.cluster.nodes.get(*at)?.kept.as_ref()?.until));
        let enabled = self.options.preempt.patience.min(self.options.preempt.reserve) < Millis(u64::MAX);
        let waits = enabled
            && (self.waiting_gangs > 0 || !self.by_key.is_empty())
            && (self.placed_gangs() || !self.leases.is_empty());
        let look = waits.then(|| preempting.last.plus(INTERVAL));
        leases.into_iter().chain(gangs).chain(kept).chain(look).min()
    }

    fn placed_gangs(&self) -> bool {
        self.gangs.len() > self.waiting_gangs
    }

    /// Takes away what was not given back in time, and keeps nodes no longer for what took too long.
    pub(super) fn evict(&mut self, out: &mut Vec<Effect>) {
        while let Some((until, id)) =
            self.preempting.leases.first().copied().filter(|(at, _)| *at <= self.now)
        {
            self.preempting.leases.remove(&(until, id));
            let Some(entry) = self.leases.get(id).filter(|e| e.until == Some(until)) else { continue };
            let (slots, lease) = (entry.giving, &entry.lease);
            // Those that run go before those that wait, which hold less.
            let waited = slots.saturating_sub(entry.running());
            if slots >= lease.slots {
                self.end(id, Some(RevokeKind::Evicted), out);
            } else if slots > 0 {
                let (owner, node, kind) = (lease.owner, lease.node, RevokeKind::Evicted);
                out.push(Effect::Revoke { lease: id, owner, node, slots, kind });
                self.cut(id, slots, waited);
            }
        }
        while let Some((until, at)) = self.preempting.gangs.first().copied().filter(|(at, _)| *at <= self.now)
        {
            self.preempting.gangs.remove(&(until, at));
            if self.gangs.get(at).is_some_and(|gang| gang.until == Some(until)) {
                self.evict_gang(at, out);
            }
        }
        let late = |at: &u32| {
            self.cluster.nodes.get(*at).and_then(|n| n.kept.as_ref()).is_none_or(|k| k.until <= self.now)
        };
        let late: Vec<u32> = self.preempting.kept.iter().copied().filter(late).collect();
        late.into_iter().for_each(|at| self.lift(at));
    }

    /// A node is kept no longer.
    pub(super) fn lift(&mut self, at: u32) {
        self.preempting.kept.remove(&at);
        let Some(kept) = self.cluster.nodes.get_mut(at).and_then(|node| node.kept.take()) else { return };
        self.queues.come(kept.queue, &kept.need.amounts, -i64::from(kept.slots));
        self.freed.push(at);
    }

    /// No node is kept any longer.
    pub(super) fn lift_all(&mut self) {
        let all: Vec<u32> = self.preempting.kept.iter().copied().collect();
        all.into_iter().for_each(|at| self.lift(at));
    }

    /// No node is kept for a shape any longer.
    pub(super) fn lift_shape(&mut self, shape: ShapeId) {
        if self.preempting.kept.is_empty() {
            return;
        }
        let of_it = |at: &u32| {
            self.cluster.nodes.get(*at).is_some_and(|n| n.kept.as_ref().is_some_and(|k| k.shape == shape))
        };
        let all: Vec<u32> = self.preempting.kept.iter().copied().filter(of_it).collect();
        all.into_iter().for_each(|at| self.lift(at));
    }

    /// Somebody was granted slots on a node that was kept for them.
    pub(super) fn used_kept(&mut self, at: u32, slots: u32, who: Oldest) {
        let Some(kept) = self.cluster.nodes.get_mut(at).and_then(|node| node.kept.as_mut()) else { return };
        let used = slots.min(kept.slots);
        kept.slots -= used;
        let (queue, need, over) = (kept.queue, Arc::clone(&kept.need), kept.slots == 0);
        let (shape, other) = (kept.shape, kept.who);
        self.queues.come(queue, &need.amounts, -i64::from(used));
        if over {
            self.lift(at);
        }
        if other != who {
            self.pass_on(shape, who, other, used);
        }
    }

    /// So many slots that were kept for another were granted to one like him: as many that are kept for this one, or less
    /// if their nodes are kept for more, are the other's now, or he would have others make room once more.
    pub(super) fn pass_on(&mut self, shape: ShapeId, who: Oldest, other: Oldest, mut slots: u32) {
        for at in &self.preempting.kept {
            let Some(kept) = self.cluster.nodes.get_mut(*at).and_then(|node| node.kept.as_mut()) else {
                continue;
            };
            let same = kept.shape == shape && kept.who == who && kept.purpose != Purpose::Oldest;
            if same && kept.slots <= slots {
                kept.who = other;
                slots -= kept.slots;
            }
        }
    }

    /// Makes room for some of those that wait.
    pub(super) fn preempt_some(&mut self, out: &mut Vec<Effect>) {
        if self.now < self.preempting.last.plus(INTERVAL) && self.preempting.last != Millis(0) {
            return;
        }
        self.preempting.last = self.now;
        if self.now >= self.preempting.since.plus(Millis(1000)) {
            (self.preempting.since, self.preempting.taken) = (self.now, 0.0);
        }
        let soonest = self.options.preempt.patience.min(self.options.preempt.reserve);
        if soonest == Millis(u64::MAX) {
            return;
        }
        if self.waiting_gangs == 0 && self.by_key.is_empty() {
            return;
        }
        let turns = self.first_turns();
        self.keep_for_oldest(&turns);
        self.preempt_for_gangs(&turns, out);
        // Half of those whose turn is first, and the others each after the other.
        let mut next: Vec<u32> = Vec::new();
        if self.by_key.len() > DEMANDS_MAX {
            let soonest = |at: &u32| self.demands.get(*at).is_some_and(|d| self.waited(d.served, soonest));
            let single = |shape: ShapeId| self.shapes.get(shape).is_some_and(|s| s.key.gang.is_none());
            let first = turns.iter().filter(|(.., shape)| single(*shape)).map(|((.., at), ..)| *at);
            next.extend(first.filter(soonest).take(DEMANDS_MAX / 2));
        }
        let from = self.preempting.demand;
        let rest = self.by_key.iter().filter(|(key, _)| from.is_none_or(|from| **key >= from));
        let before = self.by_key.iter().filter(|(key, _)| from.is_some_and(|from| **key < from));
        let mut others = rest.chain(before).filter(|(_, at)| !next.contains(at));
        let each: Vec<u32> = others.by_ref().take(DEMANDS_MAX - next.len()).map(|(_, at)| *at).collect();
        self.preempting.demand = others.next().map(|(key, _)| *key);
        next.extend(each);
        // Those that have waited longest for what they are due.
        next.sort_by_key(|at| self.demands.get(*at).map(|d| d.turn(*at, self.options.ageing)));
        self.preempting.looked = 0;
        // For each once to make room, and once to keep a node.
        let share = LEASES_MAX / (2 * next.len().max(1));
        for at in next {
            self.preempt_for(at, share, out);
        }
    }

    pub(super) fn waited(&self, since: Millis, at_least: Millis) -> bool {
        at_least < Millis(u64::MAX) && since.plus(at_least) <= self.now
    }

    /// Makes room for one of those that wait, or keeps a node for it. For either about as many leases are looked through.
    fn preempt_for(&mut self, at: u32, share: usize, out: &mut Vec<Effect>) {
        let Some(demand) = self.demands.get(at) else { return };
        let Some(id) = demand.shape else { return };
        let (patience, reserve) = (self.options.preempt.patience, self.options.preempt.reserve);
        if !self.waited(demand.served, patience.min(reserve)) {
            return;
        }
        let need = Arc::clone(self.shapes.need(id));
        let (who, turn) = (Oldest::Demand(demand.id()), demand.turn(at, self.options.ageing).0);
        let claim = Claim { who, at, shape: id, queue: demand.queue, priority: demand.class.priority, turn };
        let want = demand.backlog.saturating_sub(self.coming(&claim)).min(SLOTS_MAX);
        if want == 0 {
            return;
        }
        let (since, from) = (demand.served, demand.looked_from);
        let most = self.preempting.looked + share;
        let mut best: Option<(u32, Plan)> = None;
        if self.waited(since, patience) {
            self.pass_asides(&claim, &need);
            for at in self.nodes_for(&claim) {
                let Some(room) = self.kin_room(id, at) else { continue };
                if !self.may_look(&claim, at, most) {
                    break;
                }
                let needs = std::iter::repeat_n(&need, want.min(room) as usize);
                self.come_kept(at, -1);
                let plan = self.plan(at, &claim, needs, &mut Given::default());
                self.undo(&plan);
                self.come_kept(at, 1);
                // There is room, but kept for somebody who comes after it.
                if plan.slots > 0
                    && plan.taken.is_empty()
                    && self.queues.headroom(claim.queue, id, &need) > 0
                    && self.preempting.kept.contains(&at)
                {
                    return self.keep(at, &claim, need, plan.slots, Purpose::Room, false);
                }
                if plan.slots == 0 || plan.taken.is_empty() {
                    continue;
                }
                let harsh = plan.harsh();
                if best.as_ref().is_none_or(|(_, best)| harsh < best.harsh()) {
                    best = Some((at, plan));
                }
                if harsh == 0 {
                    break;
                }
            }
        }
        match best {
            Some((at, plan)) => {
                let slots = plan.slots;
                let harsh = plan.harsh() > 0;
                if self.commit(&[&plan], out) {
                    self.keep(at, &claim, need, slots, Purpose::Room, harsh);
                }
            }
            None if self.waited(since, reserve)
                && self.kept_for(id, claim.queue).next().is_none()
                && self.queues.headroom(claim.queue, id, &need) > 0 =>
            {
                // The same nodes.
                self.demands.get_mut(at).into_iter().for_each(|demand| demand.looked_from = from);
                self.reserve(&claim, &need, share);
            }
            None => {}
        }
    }

    /// For whom nodes are kept that a shape of a queue waits for.
    fn kept_for(&self, shape: ShapeId, queue: u32) -> impl Iterator<Item = &Kept> {
        let kept = self.preempting.kept.iter().filter_map(|at| self.cluster.nodes.get(*at)?.kept.as_ref());
        kept.filter(move |kept| kept.shape == shape && kept.queue == queue)
    }

    /// Slots for which nodes are kept for who waits. What is kept for others like him is not counted: he would wait until
    /// they have it, each in turn.
    fn coming(&self, claim: &Claim) -> u32 {
        let kept = self.kept_for(claim.shape, claim.queue);
        kept.filter(|kept| kept.who == claim.who).map(|kept| kept.slots).sum()
    }

    /// Notes so many times more that room comes for whom a node is kept.
    fn come_kept(&mut self, at: u32, times: i64) {
        let Some(kept) = self.cluster.nodes.get(at).and_then(|node| node.kept.as_ref()) else { return };
        self.queues.come(kept.queue, &kept.need.amounts, times * i64::from(kept.slots));
    }

    pub(super) fn kin_room(&self, shape: ShapeId, at: u32) -> Option<u32> {
        let kin = self.shapes.get(shape)?.key.kin;
        Some(self.cluster.kin_room(kin, at)).filter(|room| *room > 0)
    }

    /// Nodes that could hold what waits, and are kept for nobody, or for somebody who comes after it: for a group all, since
    /// it may need any of them together; else some, each time others if there are many.
    pub(super) fn nodes_for(&mut self, claim: &Claim) -> Vec<u32> {
        let Some(shape) = self.shapes.get(claim.shape) else { return Vec::new() };
        let fine = |node: &Node| self.is_open(node, claim) && self.cluster.admits(shape, node);
        if shape.key.gang.is_some() {
            let Some(gang) = self.gangs.get(claim.at) else { return Vec::new() };
            let has_place = |node: &Node| {
                gang.spec.place.is_empty() || self.cluster.index.admits(gang.rules[1], node.spot)
            };
            let all = self.cluster.by_number.values().copied();
            return all
                .filter(|at| self.cluster.nodes.get(*at).is_some_and(|n| fine(n) && has_place(n)))
                .collect();
        }
        let from = self.demands.get(claim.at).map_or(0, |demand| demand.looked_from);
        let numbers = self.cluster.by_number.range(from..).chain(self.cluster.by_number.range(..from));
        let (mut all, mut next) = (Vec::new(), 0);
        for (looked, (number, at)) in numbers.enumerate() {
            if looked == 4 * NODES_MAX || all.len() == NODES_MAX {
                next = *number;
                break;
            }
            let node = self.cluster.nodes.get(*at);
            if node.is_some_and(|node| fine(node) && node.stock.could_ever(&shape.need)) {
                all.push(*at);
            }
        }
        self.demands.get_mut(claim.at).into_iter().for_each(|demand| demand.looked_from = next);
        all
    }

    /// Whether what is on a node may be looked through, too. Where it may not, the next look for who waits begins there.
    fn may_look(&mut self, claim: &Claim, at: u32, most: usize) -> bool {
        let Some(node) = self.cluster.nodes.get(at) else { return false };
        let looked = &mut self.preempting.looked;
        if *looked >= most {
            self.demands.get_mut(claim.at).into_iter().for_each(|d| d.looked_from = node.id.number);
            return false;
        }
        *looked += node.leases.len().max(1);
        true
    }

    /// Who holds something on a node that may be taken, in the order in which it is taken from them. What other queues hold
    /// that must not be taken for `need` is left out as well, if that is given: else that is looked at later.
    fn victims(
        &self,
        at: u32,
        claim: &Claim,
        need: Option<&Need>,
        given: &Given,
        rights: &mut Rights,
    ) -> Vec<Victim> {
        let Some(node) = self.cluster.nodes.get(at) else { return Vec::new() };
        let leases = node.leases.iter().filter_map(|place| {
            #[cfg(test)]
            self.count_examined(1, 0);
            let entry = self.leases.at(*place).filter(|entry| entry.inside.is_none())?;
            if entry.queue == claim.queue {
                return (entry.lease.priority < claim.priority).then_some((place, entry));
            }
            // Those that wait hold less: that is looked at later.
            let Some(need) = need.filter(|_| entry.blocked == 0) else { return Some((place, entry)) };
            let restartable = entry.lease.class.restartable;
            // As a rule many hold the same, of which nothing may be taken.
            let same = (entry.queue, restartable, Arc::as_ptr(&entry.need));
            let may = rights
                .0
                .entry(same)
                .or_insert_with(|| self.may_have(claim, need, entry.queue, restartable, &entry.need));
            may.then_some((place, entry))
        });
        let leases = leases.flat_map(|(place, entry)| {
            let running = entry.running().saturating_sub(entry.giving);
            // Those that wait have given their CPU back, and hold the rest.
            let waiting = entry.lease.slots.saturating_sub(entry.giving) - running;
            let victim = move |slots: u32, need: Arc<Need>| Victim {
                holder: Holder::Lease(*place),
                queue: entry.queue,
                priority: entry.lease.priority,
                restartable: entry.lease.class.restartable,
                slots,
                need: Arc::clone(&need),
                devices: entry.lease.devices.clone(),
                all: need,
            };
            let running = (running > 0).then(|| victim(running, Arc::clone(&entry.need)));
            let waiting = (waiting > 0).then(|| victim(waiting, Arc::new(entry.need.without(CPU))));
            running.into_iter().chain(waiting)
        });
        let gangs: BTreeSet<u32> = node.bundles.iter().map(|(gang, _)| *gang).collect();
        let gangs = gangs.into_iter().filter_map(|at| {
            let placed = |gang: &&Gang| gang.until.is_none() && gang.shape.is_none();
            let gang = self.gangs.get(at).filter(placed).filter(|gang| gang.spec.restartable)?;
            let below = gang.queue != claim.queue || gang.spec.priority < claim.priority;
            if !below && !given.0.contains(&at) {
                return None;
            }
            let here = || node.bundles.range((at, 0)..=(at, u32::MAX)).map(|(_, number)| *number as usize);
            let bundles = here().filter_map(|number| gang.bundles[number].as_ref());
            Some(Victim {
                holder: Holder::Gang(at),
                queue: gang.queue,
                priority: gang.spec.priority,
                restartable: true,
                slots: 1,
                need: Arc::new(gang::sum(here().map(|number| &gang.needs[number]))),
                devices: bundles.flat_map(|bundle| bundle.devices.iter().cloned()).collect(),
                all: Arc::new(gang::sum(gang.needs.iter())),
            })
        });
        let mut all: Vec<Victim> = leases.chain(gangs).collect();
        let newest = |holder: &Holder| match holder {
            Holder::Lease(place) => self.leases.at(*place).map(|entry| entry.lease.id.number),
            Holder::Gang(_) => None,
        };
        // Single leases before whole groups.
        all.sort_by_key(|v| {
            (
                !v.restartable,
                v.priority,
                matches!(v.holder, Holder::Gang(_)),
                std::cmp::Reverse(newest(&v.holder)),
                v.holder,
            )
        });
        all
    }

    fn may_take(&self, claim: &Claim, need: &Need, victim: &Victim, given: &Given) -> bool {
        if given.has(victim) {
            return true;
        }
        if claim.queue == victim.queue {
            return claim.priority > victim.priority;
        }
        self.may_have(claim, need, victim.queue, victim.restartable, &victim.all)
    }

    /// Whether who waits may take something from another queue.
    fn may_have(&self, claim: &Claim, need: &Need, queue: u32, restartable: bool, all: &Need) -> bool {
        #[cfg(test)]
        self.count_examined(0, 1);
        match self.queues.right(claim.queue, need, queue, (all, -1)) {
            Right::Owed => true,
            Right::Share => restartable,
            Right::None => false,
        }
    }

    #[cfg(test)]
    pub(super) fn count_examined(&self, leases: usize, rights: usize) {
        let before = self.preempting.examined.get();
        self.preempting.examined.set((before.0 + leases, before.1 + rights));
    }

    /// Notes on trial that a victim gives up what it holds, and whether that was not known before.
    fn give_up(&mut self, victim: &Victim, given: &mut Given) -> bool {
        if given.has(victim) {
            return false;
        }
        if let Holder::Gang(at) = victim.holder {
            given.0.insert(at);
        }
        self.queues.leave(victim.queue, &victim.all.amounts, 1);
        true
    }

    fn keep_after_all(&mut self, victim: &Victim, given: &mut Given) {
        if let Holder::Gang(at) = victim.holder {
            given.0.remove(&at);
        }
        self.queues.leave(victim.queue, &victim.all.amounts, -1);
    }

    /// Whose slots on a node would make room for these needs, one after the other, as far as possible. What that does to
    /// the queues is noted there, until [`Scheduler::undo`]; which groups are given up, in `given`.
    fn plan<'a>(
        &mut self,
        at: u32,
        claim: &Claim,
        needs: impl Iterator<Item = &'a Arc<Need>>,
        given: &mut Given,
    ) -> Plan {
        let gang = self.shapes.get(claim.shape).is_some_and(|shape| shape.key.gang.is_some());
        let single = (!gang).then(|| &**self.shapes.need(claim.shape));
        let mut victims = self.victims(at, claim, single, given, &mut Rights::default());
        // What is given up already for bundles elsewhere costs nothing.
        victims.sort_by_key(|victim| !given.has(victim));
        let mut plan = Plan::default();
        let Some(mut trial) = self.cluster.nodes.get(at).map(|node| node.stock.clone()) else { return plan };
        // How much of each is taken, and which is looked at next.
        let (mut used, mut next) = (vec![0; victims.len()], 0);
        'needs: for need in needs {
            // About as much is taken as is given.
            if plan.slots > 0 && plan.part + self.queues.part(need) > self.budget() && !gang {
                break;
            }
            // By number, and whether the queues know of it by this.
            let mut took: Vec<(usize, bool)> = Vec::new();
            loop {
                let full = self.queues.full_after(claim.queue, claim.shape, need);
                if full.is_empty() && trial.fits(need) {
                    break;
                }
                let Some(victim) = victims.get(next) else {
                    // Not for this one: what was taken for it stays where it is.
                    for (number, _) in took.iter().filter(|(_, new)| *new) {
                        self.keep_after_all(&victims[*number], given);
                    }
                    break 'needs;
                };
                let lacks = |kind: &(usize, i64)| trial.is_short(kind.0, kind.1);
                let here = need.amounts.iter().any(|kind| victim.need.get(kind.0) > 0 && lacks(kind));
                let below = |(queue, kind): &(u32, usize)| {
                    victim.all.get(*kind) > 0 && self.queues.is_below(victim.queue, *queue)
                };
                let helps = here || !given.has(victim) && full.iter().any(below);
                if used[next] < victim.slots && helps && self.may_take(claim, need, victim, given) {
                    trial.give(&victim.need, 1, 0, &victim.devices);
                    took.push((next, self.give_up(victim, given)));
                    used[next] += 1;
                } else {
                    next += 1;
                }
            }
            // What was taken later may be enough without what was taken before: what matters most is spared first.
            let mut needed = None;
            for place in (0..took.len()).rev() {
                let (number, new) = took[place];
                if !new || needed == Some(number) {
                    continue;
                }
                let victim = &victims[number];
                trial.take_these(&victim.need, &victim.devices);
                self.keep_after_all(victim, given);
                if trial.fits(need) && self.queues.full_after(claim.queue, claim.shape, need).is_empty() {
                    took.remove(place);
                    used[number] -= 1;
                    next = next.min(number);
                } else {
                    trial.give(&victim.need, 1, 0, &victim.devices);
                    self.give_up(victim, given);
                    needed = Some(number);
                }
            }
            for (number, new) in took {
                let victim = &victims[number];
                if new {
                    plan.trial.push((victim.queue, Arc::clone(&victim.all), false));
                    plan.part += self.queues.part(&victim.all);
                }
                match plan.taken.last_mut().filter(|(holder, ..)| *holder == victim.holder) {
                    Some((_, slots, _)) => *slots += 1,
                    None => plan.taken.push((victim.holder, 1, victim.restartable)),
                }
            }
            trial.take(need, 1, &self.cluster.kinds);
            self.queues.come(claim.queue, &need.amounts, 1);
            plan.trial.push((claim.queue, Arc::clone(need), true));
            plan.slots += 1;
        }
        plan
    }

    fn undo(&mut self, plan: &Plan) {
        for (queue, need, coming) in &plan.trial {
            match coming {
                true => self.queues.come(*queue, &need.amounts, -1),
                false => self.queues.leave(*queue, &need.amounts, -1),
            }
        }
    }

    /// How much may still be taken, as a part of the cluster.
    fn budget(&self) -> f64 {
        f64::from(self.options.preempt.churn) / 1000.0 - self.preempting.taken
    }

    /// Tells those who are to make room, unless too much was taken lately.
    fn commit(&mut self, plans: &[&Plan], out: &mut Vec<Effect>) -> bool {
        let part: f64 = plans.iter().map(|plan| plan.part).sum();
        // The least that helps anybody is always allowed, but then nothing more.
        if self.preempting.taken > 0.0 && part > self.budget() {
            return false;
        }
        self.preempting.taken += part;
        let until = self.now.plus(self.options.preempt.grace);
        for (holder, slots, restartable) in plans.iter().flat_map(|plan| &plan.taken) {
            match holder {
                Holder::Lease(place) => self.preempt_lease(*place, *slots, restartable.then_some(until), out),
                Holder::Gang(gang) => self.preempt_gang(*gang, until, out),
            }
        }
        true
    }

    fn preempt_lease(&mut self, place: u32, slots: u32, until: Option<Millis>, out: &mut Vec<Effect>) {
        let Some(entry) = self.leases.at_mut(place) else { return };
        let before = entry.leaving();
        entry.giving += slots;
        entry.until = until;
        let lease = entry.lease.id;
        let (owner, node, kind) = (entry.lease.owner, entry.lease.node, RevokeKind::Preempted { until });
        self.queues.leaves(entry.queue, &entry.need, before, entry.leaving());
        out.push(Effect::Revoke { lease, owner, node, slots, kind });
        self.preempting.leases.extend(until.map(|until| (until, lease)));
    }

    fn preempt_gang(&mut self, at: u32, until: Millis, out: &mut Vec<Effect>) {
        let Some(gang) = self.gangs.get_mut(at).filter(|gang| gang.until.is_none()) else { return };
        gang.until = Some(until);
        let (group, queue) = (gang.id, gang.queue);
        let all = gang::sum(gang.needs.iter());
        self.queues.leave(queue, &all.amounts, 1);
        self.preempting.gangs.insert((until, at));
        out.push(Effect::GroupRevoked { group, until });
        for lease in self.leases_inside(at) {
            let Some(entry) = self.leases.get(lease) else { continue };
            let (owner, node, slots) = (entry.lease.owner, entry.lease.node, entry.lease.slots);
            let kind = RevokeKind::Preempted { until: Some(until) };
            out.push(Effect::Revoke { lease, owner, node, slots, kind });
        }
    }

    /// A group is no longer to be given up: it is gone, or has lost bundles otherwise.
    pub(super) fn not_given_up(&mut self, at: u32) {
        let Some(gang) = self.gangs.get_mut(at) else { return };
        if let Some(until) = gang.until.take() {
            let all = gang::sum(gang.needs.iter());
            self.queues.leave(gang.queue, &all.amounts, -1);
            self.preempting.gangs.remove(&(until, at));
            // What it still has is granted from again.
            self.roomy.entry(at).or_default().anywhere = true;
        }
    }

    /// Nobody else gets anything of a node until these slots were granted there.
    pub(super) fn keep(
        &mut self,
        at: u32,
        claim: &Claim,
        need: Arc<Need>,
        slots: u32,
        purpose: Purpose,
        long: bool,
    ) {
        match self.oldest_on(at) {
            Some(who) => self.lift_oldest(who),
            None => self.lift(at),
        }
        let Some(node) = self.cluster.nodes.get_mut(at) else { return };
        let span = if long { self.options.ageing } else { self.options.preempt.grace.plus(Millis(2000)) };
        self.queues.come(claim.queue, &need.amounts, slots.into());
        let until = self.now.plus(span);
        let (shape, queue, who) = (claim.shape, claim.queue, claim.who);
        node.kept = Some(Kept { shape, queue, need, slots, until, who, purpose });
        self.preempting.kept.insert(at);
    }

    /// Keeps a node for something large: the one on which the least must end for it.
    fn reserve(&mut self, claim: &Claim, need: &Arc<Need>, share: usize) {
        let most = self.cluster.workers.div_ceil(KEPT_PART);
        if self.preempting.kept.len() >= most {
            return;
        }
        let most = self.preempting.looked + share;
        let mut best: Option<(u64, u32)> = None;
        for at in self.nodes_for(claim) {
            if !self.may_look(claim, at, most) {
                break;
            }
            let Some(node) = self.cluster.nodes.get(at) else { continue };
            // What fits as soon as any one slot ends has its turn without this.
            let soon = |entry: &Entry| {
                let enough =
                    |(kind, each): &(usize, i64)| node.stock.free_of(*kind) + entry.need.get(*kind) >= *each;
                need.amounts.iter().all(enough) && {
                    let mut trial = node.stock.clone();
                    trial.give(&entry.need, 1, 0, &entry.lease.devices);
                    trial.fits(need)
                }
            };
            // What is inside of a bundle holds nothing of the node.
            let leases = node.leases.iter().filter_map(|place| self.leases.at(*place));
            let mut leases = leases.filter(|entry| entry.inside.is_none()).peekable();
            if leases.peek().is_some() && !leases.any(soon) {
                let new = (lack(&node.stock, need), at);
                best = Some(best.map_or(new, |best| best.min(new)));
            }
        }
        if let Some((_, at)) = best {
            self.keep(at, claim, Arc::clone(need), 1, Purpose::Large, true);
        }
    }

    /// Whether room may be made on a node for somebody.
    fn is_open(&self, node: &Node, claim: &Claim) -> bool {
        let free = node.kept.as_ref().is_none_or(|kept| self.yields(kept, claim));
        !node.draining && node.works() && free
    }
}
