//! What the deaths of hosts and nodes mean for the objects here.

use mobula_proto::{
    Failure, FailureKind, HostId, NodeId, ObjectId,
    peer::{Copy, State},
};

use crate::{Effect, Ownership, owner::change};

impl Ownership {
    /// A host died of `failure`. Its borrows end. What waits for one of its objects fails with `OwnerDied`, and so
    /// do its actors; values stay readable, as their copies may outlive it. What it has not acknowledged counts as
    /// acknowledged. Nothing from it is handled afterwards: hand in first what arrived before.
    pub fn host_died(&mut self, host: HostId, failure: &Failure, fx: &mut Vec<Effect>) {
        if !self.dead.host(host) {
            self.dead.add_host(host);
            self.bury(|other| other == host, failure, fx);
        }
    }

    /// A node died of `failure`, and all its hosts with it. Owned objects stored there are lost.
    pub fn node_died(&mut self, node: NodeId, failure: &Failure, fx: &mut Vec<Effect>) {
        if self.dead.node(node) {
            return;
        }
        self.dead.add_node(node);
        self.bury(|host| host.node == node, failure, fx);
        let mut lost: Vec<(ObjectId, Copy)> = self
            .objects
            .iter()
            .filter(|(object, _)| object.owner == self.me)
            .filter_map(|(object, entry)| match entry.state {
                State::Stored(copy) if copy.node == node => Some((object, copy)),
                _ => None,
            })
            .collect();
        // Sorted, a task's values come together, so that its rebuilding is said once.
        lost.sort_unstable_by_key(|(object, _)| *object);
        for (object, copy) in lost {
            self.lost(object, &copy, fx);
        }
    }

    fn bury(&mut self, gone: impl Fn(HostId) -> bool, failure: &Failure, fx: &mut Vec<Effect>) {
        let me = self.me;
        let mut orphans = Vec::new();
        let mut unheld = Vec::new();
        for (object, entry) in self.objects.iter_mut() {
            if object.owner == me {
                if entry.forget_hosts(&gone) && entry.is_idle() {
                    unheld.push(object);
                }
            } else if gone(object.owner) && matches!(entry.state, State::Pending | State::Actor { .. }) {
                orphans.push(object);
            }
        }
        orphans.sort_unstable();
        for object in orphans {
            if let Some(entry) = self.objects.get_mut(&object) {
                change(entry, object, State::failed(owner_died(object, Some(failure))), fx);
            }
        }
        let mut tokens: Vec<u64> = self
            .outstanding
            .iter()
            .filter(|(_, outstanding)| gone(outstanding.to))
            .map(|(token, _)| *token)
            .collect();
        tokens.sort_unstable();
        for token in tokens {
            self.acknowledge(token, false, fx);
        }
        unheld.sort_unstable();
        for object in unheld {
            self.collect(object, fx);
        }
    }
}

/// The failure of what a dead owner had not finished.
pub(crate) fn owner_died(object: ObjectId, cause: Option<&Failure>) -> Failure {
    let mut failure =
        Failure::new(FailureKind::OwnerDied, format!("its owner {} ended before it was final", object.owner))
            .of(format!("object {object}"));
    if let Some(cause) = cause {
        failure.causes.push(cause.headline());
        failure.causes.extend(cause.causes.iter().cloned());
    }
    failure
}
