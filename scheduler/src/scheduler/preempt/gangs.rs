//! Making room for groups.
//!
//! For one all nodes are looked through, with all that is leased there: its bundles may lie anywhere, and must do so
//! together. In a large cluster that is much for one look, and the next group has to wait for as many looks as it was worth.

use std::{collections::BTreeSet, sync::Arc};

use super::{Claim, Given, Oldest, Plan, Rights, Scheduler};
use crate::{
    Effect,
    gang::{self, Gang},
    node::{Kept, Purpose},
    queues::Turn,
    shapes::ShapeId,
    stock::Need,
};

/// So many nodes may be looked through in each look, beside those for the first group.
pub(in crate::scheduler) const NODES_EACH: usize = 256;
/// So many leases, or bundles, that are looked through count as a node.
const LEASES_AS_NODE: usize = 32;
/// A slot that is given up on trial counts as so many leases.
const GIVEN_AS_LEASES: usize = 8;

/// As how many nodes so many leases count.
pub(in crate::scheduler) fn as_nodes(leases: usize) -> usize {
    leases / LEASES_AS_NODE
}

impl Scheduler {
    /// Makes room for some of the groups that wait: by turns those whose turn is first, and each after the other.
    pub(super) fn preempt_for_gangs(&mut self, turns: &[(Turn, u32, ShapeId)], out: &mut Vec<Effect>) {
        self.preempting.debt = self.preempting.debt.saturating_sub(NODES_EACH);
        if self.preempting.taken == 0.0
            && let Some(at) = self.preempting.put_off.take()
        {
            self.preempt_for_gang(at, out);
        }
        if self.waiting_gangs == 0 || self.preempting.debt >= NODES_EACH {
            return;
        }
        let patience = self.options.preempt.patience;
        let due = |gang: &Gang| gang.shape.is_some() && self.waited(gang.since, patience);
        let of_gang = |shape: ShapeId| self.shapes.get(shape).is_some_and(|shape| shape.key.gang.is_some());
        let first = turns.iter().filter(|(.., shape)| of_gang(*shape)).map(|((.., at), ..)| *at);
        let first: Vec<u32> = first.filter(|at| self.gangs.get(*at).is_some_and(due)).collect();
        let mut each: Vec<u32> = self.gangs.iter().filter(|(_, gang)| due(gang)).map(|(at, _)| at).collect();
        let from = each.partition_point(|at| *at < self.preempting.gang);
        each.rotate_left(from);
        let mut first = first.into_iter();
        let mut each = each.into_iter();
        while self.preempting.debt < NODES_EACH {
            self.preempting.by_turn = !self.preempting.by_turn;
            let next = if self.preempting.by_turn { first.next() } else { None };
            let Some(at) = next.or_else(|| each.next().inspect(|at| self.preempting.gang = at + 1)) else {
                break;
            };
            // That it was looked at is worth something as well.
            self.preempting.debt += 1;
            self.preempt_for_gang(at, out);
        }
    }

    /// Makes room for a group that waits, where it can be.
    fn preempt_for_gang(&mut self, at: u32, out: &mut Vec<Effect>) {
        let Some(gang) = self.gangs.get(at) else { return };
        let Some(shape) = gang.shape else { return };
        let (who, turn) = (Oldest::Gang(gang.id), gang.turn(at, self.options.ageing).0);
        let claim = Claim { who, at, shape, queue: gang.queue, priority: gang.spec.priority, turn };
        if self.coming(&claim) > 0 {
            return;
        }
        self.preempting.debt += self.cluster.by_number.len() + gang.bundles.len();
        let need = Arc::clone(self.shapes.need(shape));
        self.pass_asides(&claim, &need);
        // As if what yields was kept for nobody.
        let lent = self.lend_kept(&claim);
        let plans = self.plan_gang(at, &claim, !lent.is_empty());
        self.keep_again(lent);
        let Some(plans) = plans else { return };
        let all: Vec<&Plan> = plans.iter().map(|(_, plan, _)| plan).collect();
        let harsh = all.iter().any(|plan| plan.harsh() > 0);
        let takes = all.iter().any(|plan| !plan.taken.is_empty());
        // There may be room, but kept for somebody who comes after it.
        let frees = || plans.iter().any(|(node, ..)| self.preempting.kept.contains(node));
        let helps = takes || frees() && self.queues.headroom(claim.queue, shape, &need) > 0;
        if !helps {
            return;
        }
        if takes && !self.commit(&all, out) {
            // It may need more than is ever left of a second in which others took some.
            self.preempting.put_off.get_or_insert(at);
            return;
        }
        for (node, _, need) in plans {
            self.keep(node, &claim, Arc::new(need), 1, Purpose::Room, harsh);
        }
    }

    /// A group was placed on these nodes. Where they were kept for others like it, those have what was kept for it.
    pub(in crate::scheduler) fn used_kept_by_gang(
        &mut self,
        who: Oldest,
        shape: ShapeId,
        nodes: &BTreeSet<u32>,
    ) {
        let kept = self.preempting.kept.iter().copied();
        let kept = kept.filter_map(|at| Some((at, self.cluster.nodes.get(at)?.kept.as_ref()?)));
        let of_shape = kept.filter(|(_, kept)| kept.shape == shape);
        let all: Vec<(u32, Oldest)> = of_shape.map(|(at, kept)| (at, kept.who)).collect();
        let (used, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(at, _)| nodes.contains(at));
        for (at, other) in used {
            self.lift(at);
            if other != who {
                self.pass_on(shape, who, other, 1);
            }
        }
        let own = |at: &u32| {
            self.cluster.nodes.get(*at).and_then(|n| n.kept.as_ref()).is_some_and(|kept| kept.who == who)
        };
        let rest: Vec<u32> = others.into_iter().map(|(at, _)| at).filter(own).collect();
        rest.into_iter().for_each(|at| self.lift(at));
    }

    /// Nodes that are kept for those who come after somebody are so for nobody, until [`Scheduler::keep_again`].
    fn lend_kept(&mut self, claim: &Claim) -> Vec<(u32, Kept)> {
        let kept = self.preempting.kept.iter().copied();
        let is_open = |at: &u32| self.cluster.nodes.get(*at).is_some_and(|node| self.is_open(node, claim));
        let open: Vec<u32> = kept.filter(is_open).collect();
        open.iter().for_each(|at| self.come_kept(*at, -1));
        let kept = open.into_iter().filter_map(|at| Some((at, self.cluster.nodes.get_mut(at)?.kept.take()?)));
        kept.collect()
    }

    fn keep_again(&mut self, lent: Vec<(u32, Kept)>) {
        for (at, kept) in lent {
            if let Some(node) = self.cluster.nodes.get_mut(at) {
                node.kept = Some(kept);
            }
            self.come_kept(at, 1);
        }
    }

    /// How room is made for all that a group lacks, if it can be: node by node just what is needed, and what goes there.
    fn plan_gang(&mut self, at: u32, claim: &Claim, lent: bool) -> Option<Vec<(u32, Plan, Need)>> {
        let found = self.places_for_gang(at, claim, lent)?;
        let nodes: BTreeSet<u32> = found.iter().map(|(_, node)| *node).collect();
        let (mut plans, mut whole, mut given) = (Vec::new(), true, Given::default());
        for node in nodes {
            let here: Vec<Arc<Need>> = found
                .iter()
                .filter(|(_, at)| *at == node)
                .filter_map(|(number, _)| self.gangs.get(at)?.needs.get(*number as usize).cloned())
                .collect();
            let plan = self.plan(node, claim, here.iter(), &mut given);
            whole &= plan.slots as usize == here.len();
            plans.push((node, plan, gang::sum(here.iter())));
        }
        plans.iter().for_each(|(_, plan, _)| self.undo(plan));
        whole.then_some(plans)
    }

    /// Where the bundles that a group lacks could go if all made room who must. If nobody must, there is no room, unless
    /// it was kept for others until now: `lent`.
    fn places_for_gang(&mut self, at: u32, claim: &Claim, lent: bool) -> Option<Vec<(u32, u32)>> {
        let need = Arc::clone(self.shapes.need(claim.shape));
        let (mut before, mut left, mut given) = (Vec::new(), Vec::new(), Given::default());
        let (mut rights, mut looked) = (Rights::default(), 0);
        for node_at in self.nodes_for(claim) {
            looked +=
                self.cluster.nodes.get(node_at).map_or(0, |node| node.leases.len() + node.bundles.len());
            for victim in self.victims(node_at, claim, Some(&need), &given, &mut rights) {
                let mut slots = 0;
                while slots < victim.slots && self.may_take(claim, &need, &victim, &given) {
                    if self.give_up(&victim, &mut given) {
                        left.push((victim.queue, Arc::clone(&victim.all)));
                        rights = Rights::default();
                        looked += GIVEN_AS_LEASES;
                    }
                    slots += 1;
                }
                let Some(node) = self.cluster.nodes.get_mut(node_at).filter(|_| slots > 0) else { continue };
                if before.last().is_none_or(|(at, _)| *at != node_at) {
                    before.push((node_at, node.stock.clone()));
                }
                node.stock.give(&victim.need, slots, 0, &victim.devices);
                self.cluster.touch(node_at);
            }
        }
        self.preempting.debt += as_nodes(looked);
        for (queue, all) in left {
            self.queues.leave(queue, &all.amounts, -1);
        }
        if before.is_empty() && !lent {
            return None;
        }
        self.places_with(at, before)
    }
}
