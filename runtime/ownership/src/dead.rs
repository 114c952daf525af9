//! Who is known to have died.

use std::collections::VecDeque;

use mobula_proto::{HostId, IdMap, NodeId};

/// Most hosts, and most nodes, remembered as dead; the oldest are forgotten first. A message about or from a host
/// that died so many deaths ago is not under way any more.
pub(crate) const DEAD_MAX: usize = 65_536;

/// Hosts and nodes that died. Identifiers carry incarnations, so nobody comes back under one.
#[derive(Debug, Default)]
pub(crate) struct Dead {
    hosts: IdMap<HostId, ()>,
    host_order: VecDeque<HostId>,
    nodes: IdMap<NodeId, ()>,
    node_order: VecDeque<NodeId>,
}

impl Dead {
    /// Whether the host, or its node, died.
    pub(crate) fn host(&self, host: HostId) -> bool {
        (!self.hosts.is_empty() && self.hosts.contains_key(&host)) || self.node(host.node)
    }

    /// Whether that of the host was noted, whatever became of its node.
    pub(crate) fn is_host(&self, host: HostId) -> bool {
        self.hosts.contains_key(&host)
    }

    /// Whether the node died.
    pub(crate) fn node(&self, node: NodeId) -> bool {
        !self.nodes.is_empty() && self.nodes.contains_key(&node)
    }

    /// Notes a host.
    pub(crate) fn add_host(&mut self, host: HostId) {
        if self.hosts.insert(host, ()).is_none() {
            self.host_order.push_back(host);
            if self.host_order.len() > DEAD_MAX
                && let Some(oldest) = self.host_order.pop_front()
            {
                self.hosts.remove(&oldest);
            }
        }
    }

    /// Notes a node, and with it all its hosts.
    pub(crate) fn add_node(&mut self, node: NodeId) {
        if self.nodes.insert(node, ()).is_none() {
            self.node_order.push_back(node);
            if self.node_order.len() > DEAD_MAX
                && let Some(oldest) = self.node_order.pop_front()
            {
                self.nodes.remove(&oldest);
            }
        }
    }
}
