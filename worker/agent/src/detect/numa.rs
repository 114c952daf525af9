//! How many parts of the machine have memory of their own.

use std::path::Path;

use super::{cpus, files};

/// The label that carries how many memory nodes have processors that the agent may use.
pub const LABEL_NODES: &str = "mobula.io/numa-nodes";
/// The kernel's list of memory nodes.
const NODES: &str = "sys/devices/system/node";
/// Most nodes that are looked at.
const NODES_MAX: usize = 1024;

/// How many nodes have some of these processors; `None` where the kernel does not say.
pub(super) fn count(root: &Path, usable: &cpus::Set) -> Option<usize> {
    let folder = root.join(NODES);
    let lists = files::numbered(&folder, "node", NODES_MAX)
        .into_iter()
        .filter_map(|node| files::parsed(&folder.join(format!("node{node}/cpulist")), cpus::parse));
    let count = lists.filter(|processors| !processors.is_disjoint(usable)).count();
    (count > 0).then_some(count)
}
