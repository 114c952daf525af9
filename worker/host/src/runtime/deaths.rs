//! What a host does when it hears that others died.

use std::sync::Arc;

use mobula_proto::{Failure, HostId, NodeId};

use super::Runtime;
use crate::core::{Action, Core};

impl Runtime {
    pub(super) fn on_host_died(self: &Arc<Self>, host: HostId, failure: &Failure) {
        self.peers.forget(self, host);
        self.are_gone(|other| other == host, |core, out| core.host_died(host, failure, out));
    }

    pub(super) fn on_node_died(self: &Arc<Self>, node: NodeId, failure: &Failure) {
        // Any of them may have had a part there.
        self.placed.lock().clear();
        self.peers.forget_node(self, node);
        self.are_gone(|other| other.node == node, |core, out| core.node_died(node, failure, out));
    }

    fn are_gone(
        self: &Arc<Self>,
        gone: impl Fn(HostId) -> bool,
        step: impl FnOnce(&mut Core, &mut Vec<Action>),
    ) {
        self.executor.callers_died(self, &gone);
        self.executor.forget(self, &gone);
        self.step(step);
        // Once the core knows: a construction that arrives behind this asks it (`is_gone`).
        self.executor.owners_died(self, &gone);
    }

    /// Whether this host was told that another died.
    pub(crate) fn is_gone(&self, host: HostId) -> bool {
        self.core.lock().objects.is_dead(host)
    }
}
