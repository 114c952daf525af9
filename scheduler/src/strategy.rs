//! Which of the nodes that have room is best.
//!
//! | strategy | order |
//! |---|---|
//! | hybrid | most bytes of the arguments; then, leaving nodes with devices to work that needs them: the owner's node while under half full, the fullest under half, the least full |
//! | spread | fewest slots of the class, then the least full; a slot at a time |
//! | node | that one; if soft and it has no room, hybrid among the others |
//!
//! Fullness is that of the scarcest resource with one more slot placed. The seed breaks ties; seed 0 does so by the
//! node's number.

use mobula_proto::resource::Strategy;

use crate::{
    demand::Demand,
    node::{FULL, Node, needs_devices},
};

/// Up to here, hybrid packs; in ten-thousandths.
const PACK_BELOW: i64 = FULL / 2;

/// Lower is better; the last two break ties.
type Rank = (i64, bool, u8, i64, u64, u32);

/// A node that has room. Ordered best first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    rank: Rank,
    /// The node's number.
    pub number: u32,
    /// How many slots fit.
    pub room: u32,
    /// How many it should get before the nodes are ranked anew; at most `room`.
    pub cap: u32,
}

/// The nodes among `nodes` that have room for the demand. Unordered; empty when there is none.
pub(crate) fn candidates<'a>(
    demand: &Demand,
    nodes: impl Iterator<Item = &'a Node>,
    seed: u64,
) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = nodes
        .filter(|node| !node.draining && node.admits(&demand.class))
        .filter_map(|node| {
            let room = node.room(demand.job, &demand.class);
            (room > 0).then(|| Candidate {
                rank: rank(demand, node, seed),
                number: node.id.number,
                room,
                cap: room,
            })
        })
        .collect();
    match &demand.class.strategy {
        Strategy::Hybrid => {}
        Strategy::Apart | Strategy::Group { .. } => found.clear(),
        Strategy::Spread => level(&mut found),
        Strategy::Node { node, .. } => {
            if found.iter().any(|c| c.number == node.number && c.rank.0 == i64::MIN) {
                found.retain(|c| c.rank.0 == i64::MIN);
            }
        }
    }
    found
}

fn rank(demand: &Demand, node: &Node, seed: u64) -> Rank {
    let class = &demand.class;
    let full = node.utilisation_with(&class.resources);
    let tie = if seed == 0 { 0 } else { mix(seed ^ u64::from(node.id.number)) };
    let number = node.id.number;
    match &class.strategy {
        Strategy::Spread => (i64::from(node.slots_of(demand.job, class)), false, 0, full, tie, number),
        Strategy::Node { node: wanted, .. } if *wanted == node.id => (i64::MIN, false, 0, 0, tie, number),
        Strategy::Hybrid | Strategy::Node { .. } | Strategy::Apart | Strategy::Group { .. } => {
            let near = -i64::try_from(demand.bytes_on(node.id)).unwrap_or(i64::MAX);
            let spare_devices = node.has_devices() && !needs_devices(class);
            let (tier, score) = match full < PACK_BELOW {
                true if demand.owner.node == node.id => (0, 0),
                true => (1, -full),
                false => (2, full),
            };
            (near, spare_devices, tier, score, tie, number)
        }
    }
}

/// Keeps the nodes with the fewest slots. Each may get one, or, where it is alone, as many as bring it level.
fn level(found: &mut Vec<Candidate>) {
    let Some(fewest) = found.iter().map(|c| c.rank.0).min() else { return };
    let next = found.iter().map(|c| c.rank.0).filter(|n| *n > fewest).min();
    found.retain(|c| c.rank.0 == fewest);
    let step = match (found.len(), next) {
        (1, Some(next)) => u32::try_from(next - fewest).unwrap_or(u32::MAX),
        (1, None) => u32::MAX,
        _ => 1,
    };
    for candidate in found {
        candidate.cap = candidate.room.min(step);
    }
}

/// SplitMix64's finaliser: spreads neighbouring numbers over all of them.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
