//! Asking holders of leases to give them back for those who wait: an idle one at once, a busy one after a little more of
//! its work. What comes back goes to whose turn it is.
//!
//! | who waits | whose holders are asked |
//! |---|---|
//! | a class | leases on nodes where it may run, of what is short there |
//! | a placement group | the same, of what is short there for a bundle that it lacks; where a node is kept for it, for all that is to be there; of other queues only those before whom it would be its turn |
//! | either, at the limit of a queue | leases of that queue and those below it, of what the limit is of |
//! | a class in a group | leases in the bundles where it may run, of what is short there |
//!
//! In its own queue, and in its group, who waits asks nobody of a higher priority until waiting has raised its own
//! ([`crate::Options::ageing`]): else the few slots that come free go to what matters more anyway. Between queues
//! priority is nothing.

use std::sync::Arc;

use mobula_proto::{
    LeaseId,
    resource::{Class, Strategy},
};

use super::Scheduler;
use crate::{
    Effect, Millis, RevokeKind,
    cluster::Cluster,
    demand,
    lease::Entry,
    node::{Kept, Node},
    queues,
    shapes::Shape,
    stock::Need,
};

/// How long those who wait stay without another look at leases that would help them.
const INTERVAL: Millis = Millis(50);
/// Most leases that are looked at for one who waits at a time.
const LEASES_MAX: usize = 256;
/// Most nodes that are looked at for one who waits at a time, or bundles.
const NODES_MAX: usize = 64;
/// Most classes for which leases are looked at in one [`crate::Event::Tick`].
const DEMANDS_MAX: usize = 32;
/// Most groups.
const GANGS_MAX: usize = 8;
/// Most of those who wait that are looked at when an owner hears of a lease.
const NEWCOMER_DEMANDS_MAX: usize = 8;

/// Who is asked next.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// When some were last asked on behalf of all.
    last: Millis,
    /// The demand and the group on whose behalf is asked first.
    demand: Option<demand::Key>,
    gang: u32,
}

/// Somebody who waits.
struct Asker<'a> {
    /// Who does not ask himself.
    class: Option<(demand::Key, &'a Arc<Class>)>,
    queue: u32,
    /// Its priority, counted up by the time that it has waited.
    level: i64,
    shape: &'a Shape,
    /// What each slot needs; or each bundle that is missing, and all of those together.
    needs: Vec<&'a Need>,
    /// Queues whose limits it is at, and of which kinds.
    full: Vec<(u32, usize)>,
}

impl Scheduler {
    /// When [`Scheduler::ask_some`] is next of use.
    pub(super) fn next_ask(&self) -> Option<Millis> {
        let waits = !self.by_key.is_empty() || self.waiting_gangs > 0;
        (waits && !self.leases.is_empty()).then(|| self.asking.last.plus(INTERVAL))
    }

    /// Asks on behalf of those that wait, some at a time.
    pub(super) fn ask_some(&mut self, out: &mut Vec<Effect>) {
        if self.now < self.asking.last.plus(INTERVAL) && self.asking.last != Millis(0) {
            return;
        }
        self.asking.last = self.now;
        let mut keys: Vec<_> = self.waiting().map(|(key, _)| *key).take(DEMANDS_MAX + 1).collect();
        self.asking.demand = if keys.len() > DEMANDS_MAX { keys.pop() } else { None };
        for key in keys {
            self.ask_for(key, out);
        }
        if self.waiting_gangs > 0 {
            let from = self.asking.gang;
            let waiting = |(at, gang): (u32, &crate::gang::Gang)| gang.shape.map(|_| at);
            let rest = self.gangs.iter().filter(|(at, _)| *at >= from).filter_map(waiting);
            let before = self.gangs.iter().filter(|(at, _)| *at < from).filter_map(waiting);
            let mut gangs: Vec<u32> = rest.chain(before).take(GANGS_MAX + 1).collect();
            self.asking.gang = if gangs.len() > GANGS_MAX { gangs.pop().unwrap_or(0) } else { 0 };
            for at in gangs {
                self.ask_for_gang(at, out);
            }
        }
    }

    /// Asks each holder of a lease that would help this demand, unless the same lease was asked for less than a term
    /// ago. Those that were granted to others since the last time are found after [`INTERVAL`].
    ///
    /// All of them, since nobody here knows which leases are idle. In a large cluster a part of them at a time.
    pub(super) fn ask_for(&mut self, key: demand::Key, out: &mut Vec<Effect>) {
        let Some(at) = self.by_key.get(&key).copied() else { return };
        let Some(demand) = self.demands.get(at) else { return };
        let from = demand.asked_from;
        let (found, next) = match (demand.gang, self.asker(at)) {
            (Some(gang), _) => {
                let level =
                    queues::level(demand.turn(at, self.options.ageing), self.now, self.options.ageing);
                self.who_helps_inside(gang, demand, level, from)
            }
            (None, Some(asker)) => self.who_helps(&asker, from),
            (None, None) => return,
        };
        if let Some(demand) = self.demands.get_mut(at) {
            demand.asked_from = next;
        }
        self.ask(found, out);
    }

    /// A demand that waits, if it is not for room in a group.
    fn asker(&self, at: u32) -> Option<Asker<'_>> {
        let demand = self.demands.get(at)?;
        let shape = self.shapes.get(demand.shape?)?;
        Some(Asker {
            class: Some((demand.id(), &demand.class)),
            queue: demand.queue,
            level: queues::level(demand.turn(at, self.options.ageing), self.now, self.options.ageing),
            shape,
            needs: vec![&*shape.need],
            full: self.queues.full_limits(demand.queue, shape.id, &shape.need),
        })
    }

    /// Asks for a lease of which its owner hears now, if what it holds is all that some of those who wait lack there, and it
    /// would be their turn: else it lay idle until the next look wherever its owner needs it for less time than that takes.
    pub(super) fn ask_newcomer(&mut self, lease: LeaseId, out: &mut Vec<Effect>) {
        let Some(at) = self.leases.find(lease) else { return };
        let Some(entry) = self.leases.at(at) else { return };
        let Some(node) = self.cluster.nodes.get(entry.at) else { return };
        if entry.inside.is_some() || node.draining || !self.may_be_asked(entry) {
            return;
        }
        let gets = |need: &Need| {
            let back = |kind| entry.need.get(kind).saturating_mul(entry.lease.slots.into());
            need.amounts
                .iter()
                .all(|(kind, each)| node.stock.free_of(*kind).saturating_add(back(*kind)) >= *each)
        };
        let helps = |asker: &Asker<'_>| {
            let mut lacks = asker.lacks(node);
            lacks.retain(|need| {
                gets(need) && self.queues.goes_first(asker.queue, need, entry.queue, &entry.need)
            });
            !lacks.is_empty() && self.may_help(asker, node, &lacks) && self.helps(asker, node, &lacks, entry)
        };
        let mut askers =
            self.waiting().take(NEWCOMER_DEMANDS_MAX).filter_map(|(_, demand)| self.asker(*demand));
        if askers.any(|asker| helps(&asker)) {
            drop(askers);
            self.ask(vec![at], out);
        }
    }

    /// Demands that wait, from the one on whose behalf is asked next.
    fn waiting(&self) -> impl Iterator<Item = (&demand::Key, &u32)> {
        let (rest, before) = match self.asking.demand {
            Some(from) => (self.by_key.range(from..), Some(self.by_key.range(..from))),
            None => (self.by_key.range(..), None),
        };
        rest.chain(before.into_iter().flatten())
    }

    /// The same for a group that lacks bundles.
    fn ask_for_gang(&mut self, at: u32, out: &mut Vec<Effect>) {
        // What others give back is of no use where the limit itself is too low.
        let Some(gang) = self.gangs.get(at).filter(|gang| !gang.beyond) else { return };
        let Some(shape) = gang.shape.and_then(|shape| self.shapes.get(shape)) else { return };
        let level = queues::level(gang.turn(at, self.options.ageing), self.now, self.options.ageing);
        let full = self.queues.full_limits(gang.queue, shape.id, &shape.need);
        let missing = gang.needs.iter().zip(&gang.bundles).filter(|(_, bundle)| bundle.is_none());
        let mut needs: Vec<&Need> = missing.map(|(need, _)| &**need).collect();
        needs.dedup();
        // Where one node could hold all of it.
        needs.push(&shape.need);
        let asker = Asker { class: None, queue: gang.queue, level, shape, needs, full };
        let (found, next) = self.who_helps(&asker, gang.asked_from);
        if let Some(gang) = self.gangs.get_mut(at) {
            gang.asked_from = next;
        }
        self.ask(found, out);
    }

    fn ask(&mut self, leases: Vec<u32>, out: &mut Vec<Effect>) {
        for at in leases {
            let Some(entry) = self.leases.at_mut(at) else { continue };
            entry.asked = Some(self.now);
            let (lease, owner) = (entry.lease.id, entry.lease.owner);
            let (node, slots, kind) = (entry.lease.node, entry.lease.slots, RevokeKind::Idle);
            out.push(Effect::Revoke { lease, owner, node, slots, kind });
        }
    }

    fn may_be_asked(&self, entry: &Entry) -> bool {
        entry.asked.is_none_or(|at| at.plus(self.options.term) <= self.now)
    }

    /// Leases that would help, on nodes from this number on, and the number of the next node.
    fn who_helps(&self, asker: &Asker<'_>, from: u32) -> (Vec<u32>, u32) {
        let numbers = self.cluster.by_number.range(from..).chain(self.cluster.by_number.range(..from));
        let (mut found, mut leases) = (Vec::new(), 0);
        for (looked, (number, at)) in numbers.enumerate() {
            if looked == NODES_MAX || leases >= LEASES_MAX {
                return (found, *number);
            }
            let Some(node) = self.cluster.nodes.get(*at).filter(|node| !node.draining) else { continue };
            let lacks = asker.lacks(node);
            if !self.may_help(asker, node, &lacks) {
                continue;
            }
            leases += node.leases.len();
            let may = |entry: &Entry| {
                entry.inside.is_none() && self.may_be_asked(entry) && self.helps(asker, node, &lacks, entry)
            };
            found.extend(node.leases.iter().filter(|lease| self.leases.at(**lease).is_some_and(may)));
        }
        (found, 0)
    }

    /// Whether leases on a node may help who lacks this there. What counts for a limit does so wherever it runs.
    fn may_help(&self, asker: &Asker<'_>, node: &Node, lacks: &[&Need]) -> bool {
        !asker.full.is_empty() || !lacks.is_empty() && self.cluster.admits(asker.shape, node)
    }

    /// Whether this one does.
    fn helps(&self, asker: &Asker<'_>, node: &Node, lacks: &[&Need], entry: &Entry) -> bool {
        if asker.full.is_empty() {
            return asker.is_helped(entry, node, lacks, &self.cluster)
                && (asker.has_kept(node).is_some() || self.has_right(asker, lacks, entry));
        }
        let below =
            |(queue, kind): &(u32, usize)| entry.holds(*kind) && self.queues.is_below(entry.queue, *queue);
        asker.may_ask(entry) && asker.full.iter().any(below)
    }

    /// Whether a slot that comes back may be for who asks. A class asks anyway: what is idle is to come back at once.
    fn has_right(&self, asker: &Asker<'_>, needs: &[&Need], entry: &Entry) -> bool {
        let mut first =
            needs.iter().map(|need| self.queues.goes_first(asker.queue, need, entry.queue, &entry.need));
        asker.class.is_some() || first.any(|first| first)
    }

    /// Leases in bundles of a group, from this one on, that would help what waits there, and the next bundle.
    fn who_helps_inside(&self, gang: u32, demand: &crate::Demand, level: i64, from: u32) -> (Vec<u32>, u32) {
        let Some(known) = self.gangs.get(gang) else { return (Vec::new(), 0) };
        let need = Need::of(&demand.class.resources, &self.cluster.kinds);
        let wanted = match demand.class.strategy {
            Strategy::Group { bundle, .. } => bundle,
            _ => None,
        };
        let all = (0..).zip(&known.bundles);
        let bundles = all.clone().filter(|(number, _)| *number >= from);
        let bundles = bundles.chain(all.filter(|(number, _)| *number < from));
        let bundles = bundles.filter(|(number, _)| wanted.is_none_or(|wanted| wanted == *number));
        let (mut found, mut leases) = (Vec::new(), 0);
        for (looked, (number, bundle)) in bundles.enumerate() {
            if looked == NODES_MAX || leases >= LEASES_MAX {
                return (found, number);
            }
            let Some(bundle) = bundle else { continue };
            let Some(node) = self.cluster.nodes.get(bundle.at) else { continue };
            leases += node.leases.len();
            let helps = |entry: &Entry| {
                let same = entry.demand() == demand.id() && entry.lease.class == demand.class;
                let short =
                    |(kind, each): &(usize, i64)| bundle.stock.is_short(*kind, *each) && entry.holds(*kind);
                entry.inside == Some((gang, number))
                    && !same
                    && i64::from(entry.lease.priority) <= level
                    && need.amounts.iter().any(short)
                    && self.may_be_asked(entry)
            };
            found.extend(node.leases.iter().filter(|lease| self.leases.at(**lease).is_some_and(helps)));
        }
        (found, 0)
    }
}

impl<'a> Asker<'a> {
    /// What is kept for it on a node.
    fn has_kept(&self, node: &'a Node) -> Option<&'a Kept> {
        node.kept.as_ref().filter(|kept| kept.shape == self.shape.id)
    }

    /// What it lacks on a node: all that is kept for it there, or what could ever be there of its needs.
    fn lacks(&self, node: &'a Node) -> Vec<&'a Need> {
        match self.has_kept(node) {
            Some(kept) => vec![&*kept.need],
            None => self.needs.iter().copied().filter(|need| node.stock.could_ever(need)).collect(),
        }
    }

    fn may_ask(&self, entry: &Entry) -> bool {
        let own = self.class.is_some_and(|(key, class)| entry.demand() == key && entry.lease.class == *class);
        !own && (entry.queue != self.queue || i64::from(entry.lease.priority) <= self.level)
    }

    /// Whether a lease holds something that is lacking on its node for one of these.
    fn is_helped(&self, entry: &Entry, node: &Node, needs: &[&Need], cluster: &Cluster) -> bool {
        let kin = self.shape.key.kin;
        let crowds = kin.is_some() && entry.kin == kin && cluster.kin_room(kin, entry.at) == 0;
        let short = |(kind, each): &(usize, i64)| node.stock.is_short(*kind, *each) && entry.holds(*kind);
        self.may_ask(entry) && (crowds || needs.iter().any(|need| need.amounts.iter().any(short)))
    }
}
