//! Nodes: what each has, what is left of it, and who may find it.

use std::{collections::BTreeSet, sync::Arc};

use mobula_proto::{
    NodeId, Quantity, Resources,
    resource::{Class, Device, DeviceGrant, Isolation, Kind, Label, Strategy},
};

use crate::{
    Millis,
    index::Spot,
    scheduler::starve::Oldest,
    shapes::ShapeId,
    stock::{DIMS, Kinds, Need, Stock, Summary},
};

/// Most slots that any one class of a job holds on one node, however little each needs: tasks that run at once, and
/// actors that live.
pub const SLOTS_MAX: u32 = 1 << 22;
/// The same where each is a process of its own.
pub const PROCESSES_MAX: u32 = 1024;

/// Most slots of a class on one node, however little each needs.
pub(crate) fn slots_max(class: &Class) -> u32 {
    match (&class.strategy, class.isolation) {
        (Strategy::Apart, _) => 1,
        (_, Isolation::Process) => PROCESSES_MAX,
        (_, Isolation::Shared) => SLOTS_MAX,
    }
}

/// A node as the scheduler sees it now.
#[derive(Clone, Debug)]
pub struct NodeView<'a> {
    /// The node.
    pub node: NodeId,
    /// All it has.
    pub total: &'a Resources,
    /// What no lease holds and no group reserves.
    pub available: Resources,
    /// CPU in use beyond the total, because waiting tasks resumed; zero while any CPU is available.
    pub overdraft: Quantity,
    /// Its labels, sorted by key.
    pub labels: &'a [Label],
    /// How many leases are on it.
    pub leases: usize,
    /// Whether it gets no new grants.
    pub draining: bool,
}

/// Why a node is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Others make room there, or would have what is free there later: it is for whatever has the shape.
    Room,
    /// So that enough of it ends for something large, of which nobody was told: the same.
    Large,
    /// Somebody has waited longest: it is for him alone.
    Oldest,
}

/// For whom a node is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    pub shape: ShapeId,
    /// The queue that waits, for how many slots, and what each needs.
    pub queue: u32,
    pub slots: u32,
    pub need: Arc<Need>,
    /// Until then.
    pub until: Millis,
    /// For whom it was kept.
    pub who: Oldest,
    pub purpose: Purpose,
}

impl Kept {
    /// For whom alone, whatever else has this shape.
    pub fn oldest(&self) -> Option<Oldest> {
        (self.purpose == Purpose::Oldest).then_some(self.who)
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub id: NodeId,
    pub total: Resources,
    pub stock: Stock,
    pub labels: Vec<Label>,
    pub draining: bool,
    /// The leases on it, by place, in no order.
    pub leases: Vec<u32>,
    /// Groups, and which of their bundles, that have a part of it.
    pub bundles: BTreeSet<(u32, u32)>,
    /// Kins that keep apart and have a slot on it, in order.
    pub apart: Vec<u32>,
    pub spot: Spot,
    /// The only shape that is granted anything here, if it is kept for one.
    pub kept: Option<Kept>,
    /// Whether the index does not know its newest state.
    pub stale: bool,
}

/// The devices of a node that passed [`crate::Event::validate`]: those listed, or, where none are, numbered from 0.
pub(crate) fn devices(total: &Resources, listed: &[Device]) -> Vec<DeviceGrant> {
    let mut all = Vec::new();
    for kind in [Kind::Gpu, Kind::Tpu] {
        let mut indices: Vec<u32> = listed.iter().filter(|d| d.kind == kind).map(|d| d.index).collect();
        if indices.is_empty() {
            let count = total.get(&kind).times(Quantity::ONE);
            indices.extend(0..u32::try_from(count).unwrap_or(0));
        }
        let whole = |index| DeviceGrant { kind: kind.clone(), index, share: Quantity::ONE };
        all.extend(indices.into_iter().map(whole));
    }
    all
}

impl Node {
    pub fn view(&self, kinds: &Kinds) -> NodeView<'_> {
        NodeView {
            node: self.id,
            total: &self.total,
            available: kinds.resources(self.stock.left()),
            overdraft: self.stock.overdraft(),
            labels: &self.labels,
            leases: self.leases.len(),
            draining: self.draining,
        }
    }

    /// Whether it can run anything at all.
    pub fn works(&self) -> bool {
        !self.stock.is_empty()
    }

    /// The most that a slot may need of each dimension to fit; below zero where none may.
    pub fn free(&self) -> [i64; DIMS] {
        if self.works() && !self.draining { self.stock.bounds() } else { [-1; DIMS] }
    }

    /// Whether a shape may be granted anything here as far as others are concerned.
    pub fn is_kept_from(&self, shape: Option<ShapeId>) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.oldest().is_some() || Some(kept.shape) != shape)
    }

    /// What the index should know of it.
    pub fn summary(&self) -> Summary {
        if !self.works() {
            Summary::NOTHING
        } else if self.draining {
            self.stock.summary().closed()
        } else {
            self.stock.summary()
        }
    }
}
