//! What waits, as an autoscaler needs to know it: shapes and counts.

use mobula_proto::{
    GroupId, NodeId, Quantity, Resources,
    group::Arrange,
    resource::{Kind, Label, LabelRule},
};

/// Slots or bundles of one shape for which there is no room.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unmet {
    /// What each needs, on one node.
    pub resources: Resources,
    /// Conditions on that node's labels; all must hold, or all of one of the `fallbacks`.
    pub labels: Vec<LabelRule>,
    /// Other conditions that will do.
    pub fallbacks: Vec<Vec<LabelRule>>,
    /// How many; at least 1.
    pub count: u64,
    /// The group of which they are bundles: useless unless there is room for all of the group's shapes.
    pub gang: Option<Gang>,
    /// Of which kind they are, where each must be on a node without another of its kind.
    pub apart: Option<Apart>,
    /// What the limits of their queue, and of those above it, leave: to them alone it would be enough for `count`.
    pub limits: Vec<Limit>,
    /// When it is the turn of the first of them, among those under the same limit: lower goes first.
    pub turn: i64,
}

/// What the limit of a queue leaves to all that waits in and below it, together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit {
    /// The queue.
    pub queue: String,
    /// How much more it may have, of the kinds that are limited.
    pub left: Vec<(Kind, Quantity)>,
}

/// Slots that keep apart from their own kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Apart {
    /// Tells kinds apart; that of one kind stays the same while some of it waits.
    pub kind: u32,
    /// Nodes that have one, in ascending order.
    pub on: Vec<NodeId>,
}

impl Unmet {
    /// Whether a node with these labels will do.
    pub fn admits(&self, labels: &[Label]) -> bool {
        let holds = |rules: &Vec<LabelRule>| rules.iter().all(|rule| rule.holds(labels));
        holds(&self.labels) || self.fallbacks.iter().any(holds)
    }
}

/// A group that waits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gang {
    /// The group.
    pub group: GroupId,
    /// How its bundles lie to each other.
    pub arrange: Arrange,
    /// The label whose values are the places for that; empty where each node is one.
    pub place: String,
    /// The nodes of the bundles that it has, in ascending order, each once: those that wait must lie to them as all do to
    /// each other.
    pub on: Vec<NodeId>,
}
