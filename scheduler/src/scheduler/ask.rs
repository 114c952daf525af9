//! Asking holders of idle leases to give them back for those who wait.

use super::Scheduler;
use crate::{Demand, Effect, Millis, RevokeKind, demand, lease::Entry, node::Node};

/// How long a demand waits before it looks again for leases that would help it.
pub(super) const ASK_INTERVAL: Millis = Millis(50);

impl Scheduler {
    /// Asks on behalf of all that waits.
    pub(super) fn ask_all(&mut self, out: &mut Vec<Effect>) {
        let keys: Vec<_> = self.waiting.iter().map(|turn| turn.3).collect();
        for key in keys {
            self.ask(key, out);
        }
    }

    /// Asks each holder of a lease that would help this demand, unless the same lease was asked for less than a term
    /// ago. Those that were granted to others since the last time are found after [`ASK_INTERVAL`].
    ///
    /// All of them, since nobody here knows which leases are idle; an owner that is busy ignores it.
    pub(super) fn ask(&mut self, key: demand::Key, out: &mut Vec<Effect>) {
        let (now, term) = (self.now, self.options.term);
        let due = |asked: Option<Millis>| asked.is_none_or(|at| at.plus(term) <= now);
        let again = |d: &&mut Demand| d.asked.is_none_or(|at| at.plus(ASK_INTERVAL) <= now);
        let Some(demand) = self.demands.get_mut(&key).filter(again) else { return };
        demand.asked = Some(now);
        for node in self.nodes.values().filter(|n| !n.draining && n.could_ever(&demand.class)) {
            for id in &node.leases {
                let Some(entry) = self.leases.get_mut(id) else { continue };
                if due(entry.asked) && would_help(entry, node, demand) {
                    entry.asked = Some(now);
                    let (owner, node, slots) = (entry.lease.owner, entry.lease.node, entry.lease.slots);
                    out.push(Effect::Revoke { lease: *id, owner, node, slots, kind: RevokeKind::Idle });
                }
            }
        }
    }
}

/// Whether a lease holds something that the demand lacks on this node, and matters no more than the demand.
fn would_help(entry: &Entry, node: &Node, demand: &Demand) -> bool {
    let same = entry.demand() == demand.id() && entry.lease.class == demand.class;
    if same || entry.lease.priority > demand.class.priority {
        return false;
    }
    demand.class.resources.iter().any(|(kind, each)| {
        let short = node.available.get(kind) < each || kind.is_device() && node.device_room(kind, each) == 0;
        short && entry.holds(kind)
    })
}
