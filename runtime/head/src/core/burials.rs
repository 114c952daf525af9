//! Deaths that living nodes have still to mourn: whoever holds refs to what the dead owned claims that first; then
//! everybody hears that the dead is buried, and what nobody has claimed goes.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{HostId, NodeId, head::ToAgent};

use super::Core;

/// Who is dead (an agent stands for the hosts of its node), and which nodes have not said that they mourned. As many as
/// hosts die within the time that it takes.
#[derive(Debug, Default)]
pub(super) struct Burials(BTreeMap<HostId, BTreeSet<NodeId>>);

impl Core {
    /// All nodes are told of a death, and answer.
    pub(super) fn begin_burial(&mut self, dead: HostId) {
        let nodes: BTreeSet<NodeId> = self.nodes.values().map(|member| member.node).collect();
        if !nodes.is_empty() {
            self.burials.0.insert(dead, nodes);
        }
    }

    /// A node has mourned, or was buried itself.
    pub(super) fn mourned(&mut self, node: NodeId, dead: HostId) {
        let mut next = vec![(node, dead)];
        while let Some((node, dead)) = next.pop() {
            let Some(left) = self.burials.0.get_mut(&dead) else { continue };
            left.remove(&node);
            if left.is_empty() {
                self.burials.0.remove(&dead);
                self.broadcast(None, ToAgent::Buried { host: dead });
                if dead.is_agent() {
                    next.extend(self.burials.0.keys().map(|other| (dead.node, *other)));
                }
            }
        }
    }

    /// A node is gone, with all its hosts. Others hold what it held, and claim what was in that only when they mourn this node:
    /// until they have, whom it was to mourn is not buried either.
    pub(super) fn bury_node(&mut self, node: NodeId) {
        self.begin_burial(node.agent());
        if !self.burials.0.contains_key(&node.agent()) {
            for dead in self.burials.0.keys().copied().collect::<Vec<_>>() {
                self.mourned(node, dead);
            }
        }
    }
}
