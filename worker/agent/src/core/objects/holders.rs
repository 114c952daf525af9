//! Who copies an object from where, kept by the node with the primary copy.
//!
//! Every reader asks there first. The first [`FAN_OUT`] readers get it from there; each further one is sent to a
//! reader that came before and has not been given so many yet, whether that has all of it or only a part so far. So a
//! broadcast is a tree that nobody plans, and no node sends more than [`FAN_OUT`] copies while others could.

use mobula_proto::{NodeId, head::SOURCES_MAX};

/// How many readers one node is given for one object while there are others that could be.
pub const FAN_OUT: u32 = 2;
/// Objects of fewer bytes are served by whoever is asked: being sent elsewhere would take longer.
pub const SPREAD_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// A node that pulled the object, or is about to.
#[derive(Debug)]
struct Holder {
    node: NodeId,
    /// From where, where that is a holder too.
    source: Option<NodeId>,
    /// How many were sent there.
    given: u32,
    /// It was found not to have it (any more).
    barren: bool,
}

/// All of one object's, in the order in which they came.
#[derive(Debug, Default)]
pub struct Holders {
    own: u32,
    list: Vec<Holder>,
}

impl Holders {
    /// `by` wants the object, and did not get it from `tried`: the holder where it shall ask, or `None` where it is
    /// served here. It is one of the holders from now on.
    pub fn place(&mut self, by: NodeId, bytes: u64, tried: &[NodeId]) -> Option<NodeId> {
        for holder in self.list.iter_mut().filter(|holder| tried.contains(&holder.node)) {
            holder.barren = true;
        }
        // Who asks again leaves where it was.
        match self.find(by).map(|at| self.list[at].source) {
            Some(Some(source)) => {
                if let Some(at) = self.find(source) {
                    self.list[at].given = self.list[at].given.saturating_sub(1);
                }
            }
            Some(None) => self.own = self.own.saturating_sub(1),
            None => self.list.push(Holder { node: by, source: None, given: 0, barren: false }),
        }
        let source = self.source_for(by, bytes);
        if let Some(at) = self.find(by) {
            self.list[at].source = source;
            self.list[at].barren = false;
        }
        match source.and_then(|source| self.find(source)) {
            Some(at) => self.list[at].given += 1,
            None => self.own += 1,
        }
        source
    }

    fn source_for(&self, by: NodeId, bytes: u64) -> Option<NodeId> {
        if bytes < SPREAD_BYTES_MIN || self.own < FAN_OUT {
            return None;
        }
        let may = || self.list.iter().filter(|holder| !holder.barren && !self.feeds(by, holder.node));
        let free = may().find(|holder| holder.given < FAN_OUT);
        let least = free.or_else(|| may().min_by_key(|holder| holder.given));
        least.filter(|holder| holder.given < self.own).map(|holder| holder.node)
    }

    /// Whether what `reader` has comes, maybe in several steps, from `source`; each comes from itself.
    fn feeds(&self, source: NodeId, reader: NodeId) -> bool {
        let mut at = Some(reader);
        // As many steps as there are holders: no chain is longer.
        for _ in 0..=self.list.len() {
            match at {
                Some(node) if node == source => return true,
                Some(node) => at = self.find(node).and_then(|at| self.list[at].source),
                None => return false,
            }
        }
        false
    }

    fn find(&self, node: NodeId) -> Option<usize> {
        self.list.iter().position(|holder| holder.node == node)
    }

    /// Some that may have it, for when this node is gone; not `by`.
    pub fn others(&self, by: NodeId) -> Vec<NodeId> {
        self.fertile().filter(|node| *node != by).take(SOURCES_MAX).collect()
    }

    /// Those that may have it.
    pub fn fertile(&self) -> impl Iterator<Item = NodeId> {
        self.list.iter().filter(|holder| !holder.barren).map(|holder| holder.node)
    }

    /// All of them.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.list.iter().map(|holder| holder.node)
    }

    /// These have it: they were told by another where to get it.
    pub fn add(&mut self, nodes: &[NodeId]) {
        for node in nodes {
            if self.find(*node).is_none() {
                self.list.push(Holder { node: *node, source: None, given: 0, barren: false });
                self.own += 1;
            }
        }
    }

    /// A node is gone.
    pub fn remove(&mut self, node: NodeId) {
        self.list.retain(|holder| holder.node != node);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const LARGE: u64 = SPREAD_BYTES_MIN;

    fn node(number: u32) -> NodeId {
        NodeId { number, incarnation: 1 }
    }

    #[test]
    fn a_broadcast_is_a_tree() {
        let mut holders = Holders::default();
        let places: Vec<_> = (1..=8).map(|by| holders.place(node(by), LARGE, &[])).collect();
        let of = |number| Some(node(number));
        assert_eq!(places, [None, None, of(1), of(1), of(2), of(2), of(3), of(3)]);
        assert_eq!(holders.others(node(2)).len(), 7);
        let mut small = Holders::default();
        assert!((1..=8).all(|by| small.place(node(by), LARGE - 1, &[]).is_none()));
        assert_eq!(small.nodes().count(), 8, "all are told when it goes");
    }

    #[test]
    fn who_has_nothing_is_left_alone() {
        let mut holders = Holders::default();
        for by in 1..=4 {
            holders.place(node(by), LARGE, &[]);
        }
        // 3 and 4 were sent to 1, which dropped its copy.
        assert_eq!(holders.place(node(3), LARGE, &[node(1)]), Some(node(2)));
        assert_eq!(holders.place(node(4), LARGE, &[node(1)]), Some(node(2)));
        assert_eq!(holders.others(node(3)), [node(2), node(4)]);
        // It pulls again, and has what others may have.
        assert_eq!(holders.place(node(1), LARGE, &[]), None);
        assert_eq!(holders.place(node(5), LARGE, &[]), Some(node(1)));
        // Nobody who waits for 2 is sent to where 2 would come from.
        assert_eq!(holders.place(node(2), LARGE, &[]), None);
    }

    proptest! {
        /// Whoever asks, fails and dies: nobody is sent to who waits for it, nor to where it did not get it.
        #[test]
        fn nobody_waits_for_itself(steps in prop::collection::vec((1u32..12, 0u32..12, 0u8..8), 1..200)) {
            let mut holders = Holders::default();
            let mut sources: BTreeMap<NodeId, Option<NodeId>> = BTreeMap::new();
            for (by, other, what) in steps {
                let (by, other) = (node(by), node(other));
                if what == 0 {
                    holders.remove(other);
                    sources.remove(&other);
                    continue;
                }
                let tried = if what == 1 { vec![other] } else { vec![] };
                let source = holders.place(by, LARGE, &tried);
                prop_assert!(source != Some(by));
                prop_assert!(source.is_none_or(|source| !tried.contains(&source)));
                sources.insert(by, source);
                let mut at = source;
                let mut steps = 0;
                while let Some(node) = at {
                    prop_assert!(node != by, "it would wait for itself");
                    at = sources.get(&node).copied().flatten();
                    steps += 1;
                    prop_assert!(steps <= sources.len());
                }
            }
        }
    }
}
