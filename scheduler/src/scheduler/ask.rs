//! Asking holders of idle leases to give them back for those who wait.

use super::Scheduler;
use crate::{
    Demand, Effect, Millis, RevokeKind, cluster::Cluster, demand, lease::Entry, node::Node, shapes::Shape,
};

/// How long those who wait stay without another look at leases that would help them.
const INTERVAL: Millis = Millis(50);
/// Most leases that are looked at for one demand at a time.
const LEASES_MAX: usize = 256;
/// Most nodes that are looked at for one demand at a time.
const NODES_MAX: usize = 64;
/// Most demands for which leases are looked at in one [`crate::Event::Tick`].
const DEMANDS_MAX: usize = 32;

/// Who is asked next.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// When some were last asked on behalf of all.
    last: Millis,
    /// The number of the node that is looked at first.
    node: u32,
    /// The demand on whose behalf is asked first.
    demand: Option<demand::Key>,
}

impl Scheduler {
    /// When [`Scheduler::ask_some`] is next of use.
    pub(super) fn next_ask(&self) -> Option<Millis> {
        (!self.by_key.is_empty() && !self.leases.is_empty()).then(|| self.asking.last.plus(INTERVAL))
    }

    /// Asks on behalf of those that wait, some at a time.
    pub(super) fn ask_some(&mut self, out: &mut Vec<Effect>) {
        if self.now < self.asking.last.plus(INTERVAL) && self.asking.last != Millis(0) {
            return;
        }
        self.asking.last = self.now;
        let from = self.asking.demand;
        let rest = self.by_key.iter().filter(|(key, _)| from.is_none_or(|from| **key >= from));
        let before = self.by_key.iter().filter(|(key, _)| from.is_some_and(|from| **key < from));
        let mut keys: Vec<_> = rest.chain(before).map(|(key, _)| *key).take(DEMANDS_MAX + 1).collect();
        self.asking.demand = if keys.len() > DEMANDS_MAX { keys.pop() } else { None };
        for key in keys {
            self.ask_for(key, out);
        }
    }

    /// Asks each holder of a lease that would help this demand, unless the same lease was asked for less than a term
    /// ago. Those that were granted to others since the last time are found after [`INTERVAL`].
    ///
    /// All of them, since nobody here knows which leases are idle; an owner that is busy ignores it. In a large cluster
    /// a part of them at a time.
    pub(super) fn ask_for(&mut self, key: demand::Key, out: &mut Vec<Effect>) {
        let (now, term) = (self.now, self.options.term);
        let due = |asked: Option<Millis>| asked.is_none_or(|at| at.plus(term) <= now);
        let Some(demand) = self.by_key.get(&key).and_then(|at| self.demands.get(*at)) else { return };
        let Some(shape) = demand.shape.and_then(|shape| self.shapes.get(shape)) else { return };
        if self.queues.headroom(demand.queue, &shape.need) == 0 {
            return;
        }
        let numbers = self.cluster.by_number.range(self.asking.node..);
        let numbers = numbers.chain(self.cluster.by_number.range(..self.asking.node));
        let (mut leases, mut next) = (0, 0);
        for (looked, (number, at)) in numbers.enumerate() {
            if looked == NODES_MAX || leases >= LEASES_MAX {
                next = *number;
                break;
            }
            let Some(node) = self.cluster.nodes.get(*at).filter(|node| !node.draining) else { continue };
            if !self.cluster.admits(shape, node) || !node.stock.could_ever(&shape.need) {
                continue;
            }
            for lease in &node.leases {
                leases += 1;
                let Some(entry) = self.leases.at_mut(*lease) else { continue };
                if due(entry.asked) && would_help(entry, node, demand, shape, &self.cluster) {
                    entry.asked = Some(now);
                    let (owner, node, slots) = (entry.lease.owner, entry.lease.node, entry.lease.slots);
                    out.push(Effect::Revoke {
                        lease: entry.lease.id,
                        owner,
                        node,
                        slots,
                        kind: RevokeKind::Idle,
                    });
                }
            }
        }
        self.asking.node = next;
    }
}

/// Whether a lease holds something that the demand lacks on this node, and matters no more than the demand.
fn would_help(entry: &Entry, node: &Node, demand: &Demand, shape: &Shape, cluster: &Cluster) -> bool {
    let same = entry.demand() == demand.id() && entry.lease.class == demand.class;
    if same || entry.lease.priority > demand.class.priority {
        return false;
    }
    if entry.kin.is_some() && entry.kin == shape.key.kin && cluster.kin_room(entry.kin, entry.at) == 0 {
        return true;
    }
    shape.need.amounts.iter().any(|(kind, each)| node.stock.is_short(*kind, *each) && entry.holds(*kind))
}
