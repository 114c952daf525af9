//! Nothing starves: a node is kept for what has waited longest, until it has one slot or its group is placed.
//!
//! Ageing brings everything to the front of its queue. That is not enough where what comes free never fits, since something
//! small always goes ahead; where it goes to other queues, which have a smaller share because this one holds much
//! elsewhere; or where a group needs several nodes at once. So what has waited for [`crate::Options::ageing`], and so
//! much longer as what runs there in its queue is ahead of it by priority, has a node kept for it alone: nobody else is
//! granted anything there, whatever their share, but who is due before it in its queue, or, where it is a single slot,
//! is guaranteed what its queue would have. It then gets the first slot that fits, or its group all it lacks. A class of
//! which something runs waits for no more than its turn.
//!
//! At the limit of a queue it is the same: for whose turn is the first there, what comes free of the limit is set aside,
//! but for the same others. Inside of a group bundles are held instead of nodes, after the shorter time after which
//! outside nodes are kept for what is large.
//!
//! This is little: one slot for each that waits, on no more than a part of the nodes at a time, and one group. It bounds
//! how long anybody waits for his first placement if no lease lasts longer than the ageing: by the ageing, once more for
//! each priority that others are ahead, and the longest lease for each that has waited even longer.

use std::{collections::BTreeSet, sync::Arc};

use mobula_proto::GroupId;

use super::{
    Scheduler,
    place::Round,
    preempt::{Claim, NODES_EACH, as_nodes},
};
use crate::{
    Millis, demand,
    gang::Placing,
    node::{Kept, Purpose},
    queues::{Aside, Pick, Right, Turn},
    shapes::ShapeId,
    stock::{Need, Stock},
};

/// A node of so many may be kept for single slots.
const KEPT_PART: usize = 16;
/// Most of those that have waited longest that are looked at in one look.
const LOOKED_MAX: usize = 256;
/// Most of them for which nodes are looked through.
const TRIED_MAX: usize = 8;

/// For whom a node is kept, or something is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Oldest {
    Demand(demand::Key),
    Gang(GroupId),
}

impl Scheduler {
    /// Keeps nodes for those that have waited longest, and sets aside what limits leave.
    pub(super) fn keep_for_oldest(&mut self, all: &[(Turn, u32, ShapeId)]) {
        let preempt = &self.options.preempt;
        if preempt.reserve == Millis(u64::MAX) {
            return;
        }
        self.preempting.keep_debt = self.preempting.keep_debt.saturating_sub(NODES_EACH);
        self.queues.pause_asides(self.now, self.aside_span());
        let kept = || self.preempting.kept.iter().filter_map(|at| self.oldest_on(*at));
        let mut slots = kept().filter(|who| matches!(who, Oldest::Demand(_))).count();
        let mut gang = kept().any(|who| matches!(who, Oldest::Gang(_)));
        let most = self.cluster.workers.div_ceil(KEPT_PART);
        if gang && slots >= most && !self.queues.any_limited() {
            return;
        }
        self.set_aside(all);
        let mut tried = 0;
        // Those behind the last group for which no nodes could be kept, then the first ones again.
        let (after, mut behind) = (self.preempting.kept_after, false);
        for (turn, queue, shape) in all.iter().copied().take(LOOKED_MAX) {
            let at = turn.2;
            if tried == TRIED_MAX || gang && slots >= most {
                break;
            }
            let Some(known) = self.shapes.get(shape) else { continue };
            let of_gang = known.key.gang.is_some();
            if if of_gang { gang } else { slots >= most }
                || self.queues.headroom(queue, shape, &known.need) == 0
                || self.who_starves(at, of_gang).is_none()
            {
                continue;
            }
            if of_gang {
                if after.is_some_and(|after| turn <= after) {
                    continue;
                }
                behind = true;
                if self.preempting.keep_debt >= NODES_EACH {
                    continue;
                }
                self.preempting.keep_debt += self.cluster.by_number.len();
                tried += 1;
                gang = self.keep_for_gang(at);
                self.preempting.kept_after = (!gang).then_some(turn);
            } else {
                tried += 1;
                slots += usize::from(self.keep_for_slot(at));
            }
        }
        if !behind {
            self.preempting.kept_after = None;
        }
    }

    /// What has waited longest in each queue of each job and shape, in this order.
    pub(super) fn first_turns(&self) -> Vec<(Turn, u32, ShapeId)> {
        let first = |queue| self.queues.first_turns(queue).map(move |(turn, shape)| (turn, queue, shape));
        let mut all: Vec<(Turn, u32, ShapeId)> = (0..self.queues.len()).flat_map(first).collect();
        all.sort_unstable();
        all
    }

    /// Who it is that has waited so long that something is kept for him, if he has.
    fn who_starves(&self, at: u32, of_gang: bool) -> Option<Oldest> {
        if of_gang {
            let gang = self.gangs.get(at)?;
            self.waited(gang.since, self.patience(0)).then_some(Oldest::Gang(gang.id))
        } else {
            let demand = self.demands.get(at)?;
            let starves = self.waited(demand.served, self.patience(0)) && !self.holds_any(demand);
            starves.then_some(Oldest::Demand(demand.id()))
        }
    }

    /// Where a limit leaves too little for whose turn is the first in its queue of those whom it holds for, what comes free
    /// of it is set aside, or something smaller would take it each time. Half of the time at most: what he lacks in the end
    /// may be something else.
    fn set_aside(&mut self, all: &[(Turn, u32, ShapeId)]) {
        if !self.queues.any_limited() {
            return;
        }
        let mut seen = BTreeSet::new();
        for ((.., at), queue, shape) in all.iter().copied() {
            let Some(known) = self.shapes.get(shape) else { continue };
            let is_limited = |limited: &u32| {
                known.need.amounts.iter().any(|(kind, _)| self.queues.limits(*limited, *kind))
            };
            // What all of the limit is too little for would only keep others from it.
            let beyond = known.key.gang.is_some() && self.gangs.get(at).is_some_and(|gang| gang.beyond);
            if beyond || !self.queues.limited(queue).iter().any(is_limited) || !seen.insert(queue) {
                continue;
            }
            if self.queues.headroom(queue, shape, &known.need) > 0 {
                continue;
            }
            if let Some(who) = self.who_starves(at, known.key.gang.is_some()) {
                let (need, until) = (Arc::clone(&known.need), self.now.plus(self.aside_span()));
                self.queues.set_aside(Aside { who, queue, shape, need, until, paused: false });
            }
        }
    }

    /// How long something is set aside before others have their turn.
    pub(super) fn aside_span(&self) -> Millis {
        Millis(self.options.ageing.0.saturating_mul(2))
    }

    /// How long something waits whose priority is so much lower.
    fn patience(&self, lower: i32) -> Millis {
        let times = 1 + u64::from(lower.max(0).unsigned_abs());
        Millis(self.options.ageing.0.saturating_mul(times)).max(self.options.preempt.reserve)
    }

    pub(super) fn oldest_on(&self, at: u32) -> Option<Oldest> {
        self.cluster.nodes.get(at)?.kept.as_ref()?.oldest()
    }

    /// Whether a node that is kept for somebody may be another's: who is due before him in his queue, or is owed what his
    /// queue would have. Not where others make room for him, which would be for nothing.
    pub(super) fn yields(&self, kept: &Kept, claim: &Claim) -> bool {
        if kept.purpose == Purpose::Room {
            return false;
        }
        if kept.queue != claim.queue {
            // A group would begin again on all its nodes.
            if matches!(kept.who, Oldest::Gang(_)) {
                return false;
            }
            let need = self.shapes.need(claim.shape);
            return self.queues.right(claim.queue, need, kept.queue, (&kept.need, 0)) == Right::Owed;
        }
        self.goes_before(claim, kept.who)
    }

    /// Whether it is somebody's turn before that of another one in the same queue.
    fn goes_before(&self, claim: &Claim, who: Oldest) -> bool {
        let ageing = self.options.ageing;
        let turn = match who {
            Oldest::Demand(key) => {
                self.by_key.get(&key).and_then(|at| Some(self.demands.get(*at)?.turn(*at, ageing)))
            }
            Oldest::Gang(group) => {
                self.gang_of.get(&group).and_then(|at| Some(self.gangs.get(*at)?.turn(*at, ageing)))
            }
        };
        turn.is_none_or(|turn| claim.turn < turn.0)
    }

    /// What is set aside in limits may be used by who is due before, or is owed what that queue would have: as for nodes,
    /// see [`Scheduler::yields`]. It is set aside again when there should be the room that is made for him.
    pub(super) fn pass_asides(&mut self, claim: &Claim, need: &Need) {
        let preempt = &self.options.preempt;
        let until = self.now.plus(preempt.patience).plus(preempt.grace);
        let yields = |aside: &&Aside| match aside.queue == claim.queue {
            true => self.goes_before(claim, aside.who),
            false => self.queues.right(claim.queue, need, aside.queue, (&aside.need, 0)) == Right::Owed,
        };
        let against = self.queues.asides_against(claim.queue, claim.shape, need).into_iter();
        let all: Vec<Oldest> = against.filter(yields).map(|aside| aside.who).collect();
        all.into_iter().for_each(|who| self.queues.pause_aside(who, until));
    }

    /// Whether a class of an owner runs anywhere: it gets on, if slowly.
    fn holds_any(&self, demand: &crate::Demand) -> bool {
        let owned = self.owners.get(demand.who).map(|owner| &owner.leases);
        let mut leases = owned.into_iter().flatten().filter_map(|at| self.leases.at(*at));
        leases.any(|entry| entry.lease.key == demand.key)
    }

    /// The highest priority of what a queue has on a node; at least `least`.
    fn highest_on(&self, at: u32, queue: u32, least: i32) -> i32 {
        let Some(node) = self.cluster.nodes.get(at) else { return least };
        #[cfg(test)]
        self.count_examined(node.leases.len(), 0);
        let leases = node.leases.iter().filter_map(|lease| self.leases.at(*lease));
        let leases = leases.filter(|e| e.queue == queue && e.inside.is_none()).map(|e| e.lease.priority);
        let gangs = node.bundles.iter().filter_map(|(gang, _)| self.gangs.get(*gang));
        let gangs = gangs.filter(|gang| gang.queue == queue).map(|gang| gang.spec.priority);
        leases.chain(gangs).fold(least, i32::max)
    }

    /// Whether what waits since then has waited long enough for others not to go ahead of it on a node.
    fn is_due(&self, since: Millis, at: u32, claim: &Claim) -> bool {
        let higher = self.highest_on(at, claim.queue, claim.priority).saturating_sub(claim.priority);
        self.waited(since, self.patience(higher))
    }

    fn keep_for_slot(&mut self, at: u32) -> bool {
        let Some((demand, shape)) = self.demands.get(at).and_then(|demand| Some((demand, demand.shape?)))
        else {
            return false;
        };
        let who = Oldest::Demand(demand.id());
        let turn = demand.turn(at, self.options.ageing).0;
        let claim = Claim { who, at, shape, queue: demand.queue, priority: demand.class.priority, turn };
        let since = demand.served;
        if self.preempting.kept.iter().any(|at| self.oldest_on(*at) == Some(who)) {
            return false;
        }
        let need = Arc::clone(self.shapes.need(shape));
        let nodes = self.nodes_for(&claim);
        let fine = |at: &&u32| self.kin_room(shape, **at).is_some() && self.is_due(since, **at, &claim);
        let lack = |at: &u32| Some((lack(&self.cluster.nodes.get(*at)?.stock, &need), *at));
        let Some((_, best)) = nodes.iter().filter(fine).filter_map(lack).min() else { return false };
        self.keep(best, &claim, need, 1, Purpose::Oldest, true);
        true
    }

    fn keep_for_gang(&mut self, at: u32) -> bool {
        let Some((gang, shape)) = self.gangs.get(at).and_then(|gang| Some((gang, gang.shape?))) else {
            return false;
        };
        let (who, since) = (Oldest::Gang(gang.id), gang.since);
        let turn = gang.turn(at, self.options.ageing).0;
        let claim = Claim { who, at, shape, queue: gang.queue, priority: gang.spec.priority, turn };
        // As if nothing ran there.
        let mut before = Vec::new();
        let mut looked = 0;
        for node_at in self.nodes_for(&claim) {
            looked +=
                self.cluster.nodes.get(node_at).map_or(0, |node| node.leases.len() + node.bundles.len());
            if !self.is_due(since, node_at, &claim) {
                continue;
            }
            if let Some(node) = self.cluster.nodes.get_mut(node_at) {
                let empty = node.stock.emptied();
                before.push((node_at, std::mem::replace(&mut node.stock, empty)));
            }
            self.cluster.touch(node_at);
        }
        self.preempting.keep_debt += as_nodes(looked);
        if before.is_empty() {
            return false;
        }
        let may = before.iter().map(|(at, _)| *at).collect::<Vec<u32>>();
        let Some(found) = self.places_with(at, before) else { return false };
        let mut nodes: Vec<u32> = found.iter().map(|(_, node)| *node).filter(|at| may.contains(at)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        for node in &nodes {
            let here = found.iter().filter(|(_, at)| at == node);
            let needs: Vec<Arc<Need>> = here
                .filter_map(|(number, _)| self.gangs.get(at)?.needs.get(*number as usize).cloned())
                .collect();
            self.keep(*node, &claim, Arc::new(crate::gang::sum(needs.iter())), 1, Purpose::Oldest, true);
        }
        !nodes.is_empty()
    }

    /// Where the bundles that a group lacks would go with the nodes as they are now, which then get back what they had
    /// `before`.
    pub(super) fn places_with(&mut self, at: u32, before: Vec<(u32, Stock)>) -> Option<Vec<(u32, u32)>> {
        let found = match self.gangs.get(at) {
            Some(gang) => {
                let allowed = self.searching.left(self.now);
                let mut looks = allowed;
                let found = Placing::new(&mut self.cluster, gang).place(&mut looks);
                self.searching.take(allowed - looks);
                found.ok()
            }
            _ => None,
        };
        let gang = self.gangs.get(at)?;
        for (number, node_at, devices) in found.iter().flatten() {
            if let Some(node) = self.cluster.nodes.get_mut(*node_at) {
                node.stock.give(&gang.needs[*number as usize], 1, 0, devices);
            }
            self.cluster.touch(*node_at);
        }
        for (node_at, stock) in before {
            if let Some(node) = self.cluster.nodes.get_mut(node_at) {
                node.stock = stock;
            }
            self.cluster.touch(node_at);
        }
        Some(found?.into_iter().map(|(number, node, _)| (number, node)).collect())
    }

    /// Nothing is kept for somebody alone any longer: he was granted something, or waits no more.
    pub(super) fn lift_oldest(&mut self, who: Oldest) {
        self.queues.forget_aside(who);
        self.lift_kept(who);
    }

    /// A node is kept no longer, since it goes; nor are the others of a group, which are of no use without it.
    pub(super) fn lift_with(&mut self, at: u32) {
        match self.oldest_on(at) {
            Some(who) => self.lift_kept(who),
            None => self.lift(at),
        }
    }

    fn lift_kept(&mut self, who: Oldest) {
        if self.preempting.kept.is_empty() {
            return;
        }
        let all: Vec<u32> =
            self.preempting.kept.iter().copied().filter(|at| self.oldest_on(*at) == Some(who)).collect();
        all.into_iter().for_each(|at| self.lift(at));
    }

    /// Grants what became free on nodes that are kept for somebody alone.
    pub(super) fn serve_oldest(&mut self, round: &mut Round) {
        if self.preempting.kept.is_empty() {
            return;
        }
        let freed: Vec<(u32, Oldest)> =
            self.freed.iter().filter_map(|at| Some((*at, self.oldest_on(*at)?))).collect();
        for (node, who) in freed {
            // What was granted meanwhile has no node kept for it.
            if self.oldest_on(node) != Some(who) {
                continue;
            }
            match who {
                Oldest::Demand(key) => {
                    let Some(at) = self.by_key.get(&key).copied() else { continue };
                    let Some((queue, shape)) = self.demands.get(at).and_then(|d| Some((d.queue, d.shape?)))
                    else {
                        continue;
                    };
                    let need = self.shapes.need(shape);
                    let room = self.kin_room(shape, node).is_some()
                        && self.cluster.nodes.get(node).is_some_and(|n| !n.draining && n.stock.fits(need));
                    if room && self.queues.headroom(queue, shape, need) > 0 {
                        self.grant(at, node, 1, None, round);
                        self.settle(at);
                    }
                }
                Oldest::Gang(group) => {
                    let Some(at) = self.gang_of.get(&group).copied() else { continue };
                    let Some((queue, shape)) = self.gangs.get(at).and_then(|g| Some((g.queue, g.shape?)))
                    else {
                        continue;
                    };
                    if self.queues.headroom(queue, shape, self.shapes.need(shape)) > 0 {
                        self.place_gang(Pick { demand: at, shape, slots: 1, part: 1.0, quantum: 1 }, round);
                    }
                }
            }
        }
    }
}

/// What of a need is not free of a stock, in millionths.
pub(super) fn lack(stock: &Stock, need: &Need) -> u64 {
    let part = |kind: &(usize, i64)| {
        let free = stock.free_of(kind.0).min(kind.1);
        ((kind.1 - free) as f64 / kind.1.max(1) as f64 * 1e6) as u64
    };
    need.amounts.iter().map(part).max().unwrap_or(0)
}
