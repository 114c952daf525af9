//! Demands: what owners want beyond the leases they hold.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use mobula_proto::{
    HostId, JobId, NodeId,
    resource::{Class, Strategy},
};

use crate::{Millis, queues, shapes::ShapeId};

/// Most nodes of a demand's locality that are considered: those with the most bytes.
pub const LOCALITY_MAX: usize = 16;
/// Most demands that one owner may have waiting.
pub const PER_OWNER_MAX: usize = 4096;

/// Which demand: an owner's key is only its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub owner: HostId,
    pub key: u32,
}

impl Key {
    /// All keys of an owner.
    pub fn all_of(owner: HostId) -> std::ops::RangeInclusive<Self> {
        Self { owner, key: 0 }..=Self { owner, key: u32::MAX }
    }
}

/// Slots that an owner waits for.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Who waits.
    pub owner: HostId,
    /// For which of its classes.
    pub key: u32,
    /// The job that is charged.
    pub job: JobId,
    /// What one slot needs.
    pub class: Arc<Class>,
    /// Slots not granted yet; at least 1.
    pub backlog: u32,
    /// Copied to the leases.
    pub attempt: u32,
    /// Counts the demands: lower has waited longer.
    pub arrival: u64,
    /// Since when it waits.
    pub since: Millis,
    /// Bytes of arguments by node, sorted by node.
    pub(crate) locality: Vec<(NodeId, u64)>,
    /// When it was last granted something, or since when it waits.
    pub(crate) served: Millis,
    /// What it has in common with others; nothing where it is a part of a group.
    pub(crate) shape: Option<ShapeId>,
    /// Where it waits.
    pub(crate) queue: u32,
    /// Its owner's place.
    pub(crate) who: u32,
    /// Under what its slots are counted by node, if they are.
    pub(crate) kin: Option<u32>,
    /// The group of which it is to be a part, where it waits instead.
    pub(crate) gang: Option<u32>,
    /// The number of the node, or in a group the bundle, from which on holders are asked next for it; and of the one from
    /// which on it is looked for room.
    pub(crate) asked_from: u32,
    pub(crate) looked_from: u32,
}

impl Demand {
    pub(crate) fn id(&self) -> Key {
        Key { owner: self.owner, key: self.key }
    }

    /// The only bundle of its group that it may use, if it names one.
    pub(crate) fn bundle(&self) -> Option<u32> {
        match self.class.strategy {
            Strategy::Group { bundle, .. } => bundle,
            _ => None,
        }
    }

    /// When its turn is in its queue. `at` is its own number.
    pub(crate) fn turn(&self, at: u32, ageing: Millis) -> queues::Turn {
        let signed = |span: Millis| i64::try_from(span.0).unwrap_or(i64::MAX);
        let lead = i64::from(self.class.priority).saturating_mul(signed(ageing));
        (signed(self.served).saturating_sub(lead), self.arrival, at)
    }
}

/// Sums what is listed twice, keeps the largest, and sorts by node.
pub(crate) fn tidy_locality(list: &[(NodeId, u64)]) -> Vec<(NodeId, u64)> {
    let mut sums: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (node, bytes) in list {
        let sum = sums.entry(*node).or_default();
        *sum = sum.saturating_add(*bytes);
    }
    let mut tidy: Vec<_> = sums.into_iter().filter(|(_, bytes)| *bytes > 0).collect();
    tidy.sort_by_key(|(node, bytes)| (Reverse(*bytes), *node));
    tidy.truncate(LOCALITY_MAX);
    tidy.sort_unstable();
    tidy
}
