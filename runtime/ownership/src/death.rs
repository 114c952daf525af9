//! What the deaths of hosts and nodes mean for the objects here.

use mobula_proto::{
    Failure, FailureKind, HostId, NodeId, ObjectId,
    peer::{Copy, State},
};

use crate::{Effect, Ownership, entry::Entry, owner::change};

impl Ownership {
    /// A host died of `failure`. What is held here of its objects is claimed from whoever has the values; what nobody
    /// has fails with `OwnerDied`, and so do its actors. What it has not acknowledged counts as acknowledged. What it
    /// borrowed stays until [`Ownership::buried`]. Nothing from it is handled afterwards: hand in first what arrived
    /// before. Answered with [`Effect::Mourned`].
    pub fn host_died(&mut self, host: HostId, failure: &Failure, fx: &mut Vec<Effect>) {
        if !self.dead.host(host) {
            self.dead.add_host(host);
            self.bury(host, &|other| other == host, failure, fx);
        } else if !self.mourning.contains_key(&host) {
            fx.push(Effect::Mourned { host });
        }
    }

    /// A node died of `failure`, and all its hosts with it. Owned objects stored there are lost unless others have copies
    /// ([`Effect::Salvage`]). Answered with [`Effect::Mourned`] for the node's agent, once that is known.
    pub fn node_died(&mut self, node: NodeId, failure: &Failure, fx: &mut Vec<Effect>) {
        if self.dead.node(node) {
            return;
        }
        self.dead.add_node(node);
        let stored = |(object, entry): (ObjectId, &Entry)| match entry.state {
            State::Stored(copy) if copy.node == node && object.owner == self.me => Some((object, copy)),
            _ => None,
        };
        let lost: Vec<(ObjectId, Copy)> = self.objects.iter().filter_map(stored).collect();
        for (object, copy) in lost {
            self.seek(object, copy);
        }
        self.bury(node.agent(), &|host| host.node == node, failure, fx);
        if self.sought.contains_key(&node) {
            fx.push(Effect::Salvage { node });
        }
    }

    fn bury(&mut self, dead: HostId, gone: &dyn Fn(HostId) -> bool, failure: &Failure, fx: &mut Vec<Effect>) {
        let me = self.me;
        let mut actors = Vec::new();
        for (object, entry) in self.objects.iter_mut() {
            if object.owner == me {
                entry.forget_waiters(gone);
            } else if gone(object.owner) && (entry.was_actor || matches!(entry.state, State::Actor { .. })) {
                actors.push(object);
            }
        }
        actors.sort_unstable();
        for object in actors {
            if let Some(entry) = self.objects.get_mut(&object)
                && !matches!(entry.state, State::Failed(_))
            {
                change(entry, object, State::failed(owner_died(object, Some(failure))), fx);
            }
        }
        self.mourn(dead, gone, failure, fx);
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
        self.mourned_one(dead, fx);
    }
}

/// The failure of what a dead owner left no value of.
pub(crate) fn owner_died(object: ObjectId, cause: Option<&Failure>) -> Failure {
    let mut failure = Failure::new(
        FailureKind::OwnerDied,
        format!("its owner {} ended, and no store has its value", object.owner),
    )
    .of(format!("object {object}"));
    if let Some(cause) = cause {
        failure.causes.push(cause.headline());
        failure.causes.extend(cause.causes.iter().cloned());
    }
    failure
}
