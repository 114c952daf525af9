//! Which of the nodes that have room is best.
//!
//! | strategy | order |
//! |---|---|
//! | hybrid | most bytes of the arguments; then, leaving nodes with devices to work that needs them: the owner's node while under half full, the first under half, the least full |
//! | spread | fewest slots of the class, then the least full; a slot at a time |
//! | node | that one; if soft and it has no room, hybrid among the others |
//! | apart | hybrid, a slot on each |
//!
//! Fullness is that of the scarcest resource with one more slot placed. The first is that with the lowest number as long
//! as none went; a seed other than 0 gives another order, and so breaks ties.

use mobula_proto::{NodeId, resource::Strategy};

use crate::{Demand, cluster::Cluster, index::Which, shapes::Shape};

/// Most nodes without a slot of a class that are looked for at once.
const FRESH_MAX: usize = 64;

/// Nodes for slots of a demand, best first: each with how many it should get, at most `want` together. Fewer than that
/// only where the rest fits on none of those that were looked at; empty where it fits nowhere.
pub(crate) fn choose(cluster: &Cluster, demand: &Demand, shape: &Shape, want: u32) -> Vec<(u32, u32)> {
    let one = |node: Option<u32>| -> Vec<(u32, u32)> {
        node.map(|at| (at, cluster.room(shape, at).min(want))).into_iter().collect()
    };
    if let Some(pin) = shape.key.pin {
        return one(cluster.find(pin).filter(|at| cluster.has_room(shape, *at)));
    }
    // The next rules count only where those before find no room at all.
    for rules in &shape.key.rules {
        let search = Search { cluster, demand, shape, rules: *rules };
        let found = match &demand.class.strategy {
            Strategy::Spread => search.spread(want),
            Strategy::Node { node, .. } => one(search.wanted(*node).or_else(|| search.hybrid())),
            Strategy::Hybrid | Strategy::Apart | Strategy::Group { .. } => one(search.hybrid()),
        };
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

struct Search<'a> {
    cluster: &'a Cluster,
    demand: &'a Demand,
    shape: &'a Shape,
    rules: u32,
}

impl Search<'_> {
    fn fine(&self, at: u32) -> bool {
        self.cluster.has_room(self.shape, at)
    }

    /// A node by name, if it has room and these rules hold there.
    fn wanted(&self, node: NodeId) -> Option<u32> {
        let at = self.cluster.find(node)?;
        let spot = self.cluster.nodes.get(at)?.spot;
        (self.cluster.index.admits(self.rules, spot) && self.fine(at)).then_some(at)
    }

    fn hybrid(&self) -> Option<u32> {
        let mut near = self.demand.locality.clone();
        near.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let near = near.into_iter().find_map(|(node, _)| self.wanted(node));
        near.or_else(|| match self.shape.need.devices {
            true => self.pack_or_spread(Which::All),
            false => self.pack_or_spread(Which::Plain).or_else(|| self.pack_or_spread(Which::Devices)),
        })
    }

    fn pack_or_spread(&self, which: Which) -> Option<u32> {
        let need = &self.shape.need;
        let low = |at: u32| self.cluster.nodes.get(at).is_some_and(|node| node.stock.under_half(need));
        let own = self.wanted(self.demand.owner.node).filter(|at| {
            let devices = self.cluster.nodes.get(*at).is_some_and(|node| node.stock.has_devices());
            low(*at) && (which == Which::All || devices == (which == Which::Devices))
        });
        let index = &self.cluster.index;
        own.or_else(|| index.first_low((self.rules, which), need, &mut |at| low(at) && self.fine(at)))
            .or_else(|| index.emptiest_in(None, (self.rules, which), need, &mut |at| self.fullness(at)))
    }

    /// How full a node would be, if it has room.
    fn fullness(&self, at: u32) -> Option<f64> {
        let node = self.cluster.nodes.get(at)?;
        self.fine(at).then(|| node.stock.fullness(&self.shape.need))
    }

    /// Nodes without a slot of the class first, one for each; then those with the fewest are brought level.
    fn spread(&self, want: u32) -> Vec<(u32, u32)> {
        let index = &self.cluster.index;
        let kin = self.demand.kin.and_then(|kin| self.cluster.kins.get(kin));
        let Some(kin) = kin else { return Vec::new() };
        let count = FRESH_MAX.min(want as usize);
        let fresh = index.emptiest((self.rules, Which::All), &self.shape.need, count, &mut |at| {
            if kin.on.contains_key(&at) { None } else { self.fullness(at) }
        });
        if !fresh.is_empty() {
            return fresh.into_iter().map(|at| (at, 1)).collect();
        }
        let admitted = |at: u32| self.cluster.nodes.get(at).is_some_and(|n| index.admits(self.rules, n.spot));
        let mut level: Vec<Rung> = Vec::new();
        for (at, held) in kin.on.iter().filter(|(at, _)| admitted(**at)) {
            let Some(full) = self.fullness(*at) else { continue };
            let room = self
                .cluster
                .room(self.shape, *at)
                .min(crate::node::slots_max(&self.demand.class).saturating_sub(*held));
            if room > 0 {
                level.push(Rung { held: *held, full, node: *at, room });
            }
        }
        fill(level, want)
    }
}

/// A node that holds slots of a class already.
struct Rung {
    held: u32,
    full: f64,
    node: u32,
    room: u32,
}

/// Gives to those that hold the fewest until they are level with the next, the least full first.
fn fill(mut rungs: Vec<Rung>, want: u32) -> Vec<(u32, u32)> {
    let Some(fewest) = rungs.iter().map(|r| r.held).min() else { return Vec::new() };
    let next = rungs.iter().map(|r| r.held).filter(|held| *held > fewest).min();
    rungs.retain(|r| r.held == fewest);
    rungs.sort_by(|a, b| a.full.total_cmp(&b.full).then(a.node.cmp(&b.node)));
    let count = u32::try_from(rungs.len()).unwrap_or(u32::MAX);
    let step = next.map_or(u32::MAX, |next| next - fewest).min((want / count).max(1));
    let mut left = want;
    let mut found = Vec::new();
    for rung in rungs {
        let slots = step.min(rung.room).min(left);
        if slots == 0 {
            break;
        }
        left -= slots;
        found.push((rung.node, slots));
    }
    found
}
