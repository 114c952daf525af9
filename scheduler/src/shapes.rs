//! Shapes: what many demands have in common as far as room is concerned, and where there may be room for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{Group, NodeId, Resources};

use crate::{
    bits::Bits,
    cluster::Cluster,
    fit::Fit,
    node::Node,
    slab::Slab,
    stock::{Kinds, Need},
};

pub(crate) type ShapeId = u32;

/// Two demands with equal ones fit into the same nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub resources: Resources,
    /// Rules for labels, as the index numbers them: the next are for where the ones before find no room.
    pub rules: Vec<u32>,
    /// The only node.
    pub pin: Option<NodeId>,
    /// Kin of which a node may only hold so many.
    pub kin: Option<u32>,
    /// Bundles that are wanted together.
    pub gang: Option<Wanted>,
}

/// What a group lacks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted {
    pub spec: Arc<Group>,
    pub missing: Vec<u32>,
    /// The group where it has other bundles, beside which these must lie as they should.
    pub gang: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Shape {
    pub id: ShapeId,
    pub key: Key,
    pub need: Arc<Need>,
    /// Demands that wait.
    pub users: u32,
}

/// Shapes with the same rules for labels.
#[derive(Debug)]
struct Ruled {
    rules: Vec<u32>,
    shapes: Bits,
    count: u32,
}

/// All shapes of which something waits.
///
/// One of them is *open* if there may be room for it: on the node `here` alone if it is in `on`, else anywhere.
#[derive(Debug)]
pub(crate) struct Shapes {
    all: Slab<Shape>,
    by_key: BTreeMap<Key, ShapeId>,
    fit: Fit,
    ruled: Slab<Ruled>,
    ruled_of: BTreeMap<Vec<u32>, u32>,
    /// What `ruled` says by group of nodes, as far as it was asked, of this version of the index.
    admitted: Vec<Option<Bits>>,
    version: u64,
    pinned: BTreeMap<NodeId, BTreeSet<ShapeId>>,
    /// What keeps apart from its own kin, by that.
    apart: Vec<Option<ShapeId>>,
    /// What needs a closer look: kinds that share a bound, unknown ones, very small ones, and what is pinned.
    special: Bits,
    gangs: Bits,
    /// What needs some of a kind, by that.
    needing: Vec<Bits>,
    open: Bits,
    here: u32,
    on: Bits,
    nothing: Arc<Need>,
    /// Kept for their memory.
    scratch: [Bits; 2],
}

impl Shapes {
    pub fn new() -> Self {
        Self {
            all: Slab::new(),
            by_key: BTreeMap::new(),
            fit: Fit::new(),
            ruled: Slab::new(),
            ruled_of: BTreeMap::new(),
            admitted: Vec::new(),
            version: 0,
            pinned: BTreeMap::new(),
            apart: Vec::new(),
            special: Bits::new(),
            gangs: Bits::new(),
            needing: Vec::new(),
            open: Bits::new(),
            here: 0,
            on: Bits::new(),
            nothing: Arc::new(Need::of(&Resources::none(), &Kinds::new())),
            scratch: [Bits::new(), Bits::new()],
        }
    }

    /// The shape of this key, used once more; and whether it is new.
    pub fn enter(&mut self, key: Key, kinds: &Kinds) -> (ShapeId, bool) {
        self.enter_as(key, |key| Need::of(&key.resources, kinds))
    }

    /// The shape of what a group lacks, used once more. `need` is what all bundles need, with the bounds of the smallest.
    pub fn enter_gang(&mut self, wanted: Wanted, rules: u32, need: Need) -> ShapeId {
        let (resources, rules, gang) = (Resources::none(), vec![rules], Some(wanted));
        self.enter_as(Key { resources, rules, pin: None, kin: None, gang }, |_| need).0
    }

    fn enter_as(&mut self, key: Key, need: impl FnOnce(&Key) -> Need) -> (ShapeId, bool) {
        if let Some(id) = self.by_key.get(&key) {
            if let Some(shape) = self.all.get_mut(*id) {
                shape.users += 1;
            }
            return (*id, false);
        }
        let need = Arc::new(need(&key));
        let id = self.all.insert(Shape { id: 0, key: key.clone(), need, users: 1 });
        if let Some(shape) = self.all.get_mut(id) {
            shape.id = id;
        }
        match key.pin {
            Some(node) => drop(self.pinned.entry(node).or_default().insert(id)),
            None => self.rule(id, &key.rules),
        }
        if let Some(kin) = apart(&key, self.need(id)) {
            let kin = kin as usize;
            self.apart.resize(self.apart.len().max(kin + 1), None);
            self.apart[kin] = Some(id);
        }
        self.by_key.insert(key, id);
        self.sort(id);
        self.open.insert(id);
        (id, true)
    }

    fn rule(&mut self, id: ShapeId, rules: &[u32]) {
        self.admitted.clear();
        let at = match self.ruled_of.get(rules) {
            Some(at) => *at,
            None => {
                let at = self.ruled.insert(Ruled { rules: rules.to_vec(), shapes: Bits::new(), count: 0 });
                self.ruled_of.insert(rules.to_vec(), at);
                at
            }
        };
        if let Some(ruled) = self.ruled.get_mut(at) {
            ruled.shapes.insert(id);
            ruled.count += 1;
        }
    }

    /// Puts a shape among those that its needs are compared with.
    fn sort(&mut self, id: ShapeId) {
        let Some(shape) = self.all.get(id) else { return };
        self.fit.insert(id, &shape.need.dims);
        for (kind, _) in &shape.need.amounts {
            if self.needing.len() <= *kind {
                self.needing.resize(*kind + 1, Bits::new());
            }
            self.needing[*kind].insert(id);
        }
        if shape.key.gang.is_some() {
            self.gangs.insert(id);
        } else if shape.key.pin.is_some() || shape.need.tiny || !shape.need.is_bounded() {
            self.special.insert(id);
        }
    }

    /// Used once less. Gives the key of a shape that is no longer used at all.
    pub fn leave(&mut self, id: ShapeId) -> Option<Key> {
        let shape = self.all.get_mut(id)?;
        shape.users = shape.users.saturating_sub(1);
        if shape.users > 0 {
            return None;
        }
        let Shape { key, need, .. } = self.all.remove(id)?;
        self.fit.remove(id, &need.dims);
        self.by_key.remove(&key);
        if let Some(kin) = apart(&key, &need) {
            self.apart[kin as usize] = None;
        }
        for bits in [&mut self.special, &mut self.gangs, &mut self.open, &mut self.on] {
            bits.remove(id);
        }
        self.needing.iter_mut().for_each(|bits| bits.remove(id));
        if let Some(node) = key.pin {
            if let Some(pinned) = self.pinned.get_mut(&node) {
                pinned.remove(&id);
                if pinned.is_empty() {
                    self.pinned.remove(&node);
                }
            }
        } else if let Some(at) = self.ruled_of.get(&key.rules).copied()
            && let Some(ruled) = self.ruled.get_mut(at)
        {
            self.admitted.clear();
            ruled.shapes.remove(id);
            ruled.count -= 1;
            if ruled.count == 0 {
                self.ruled.remove(at);
                self.ruled_of.remove(&key.rules);
            }
        }
        Some(key)
    }

    pub fn get(&self, id: ShapeId) -> Option<&Shape> {
        self.all.get(id)
    }

    pub fn need(&self, id: ShapeId) -> &Arc<Need> {
        self.all.get(id).map_or(&self.nothing, |shape| &shape.need)
    }

    pub fn iter(&self) -> impl Iterator<Item = (ShapeId, &Shape)> {
        self.all.iter()
    }

    /// Those that need some of a kind.
    pub fn needing(&self, kind: usize) -> &Bits {
        const NONE: &Bits = &Bits::new();
        self.needing.get(kind).unwrap_or(NONE)
    }

    /// Those for which there may be room.
    pub fn open(&self) -> &Bits {
        &self.open
    }

    pub fn any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The only node where there is room for an open shape, if it is known that there is none elsewhere.
    pub fn only(&self, id: ShapeId) -> Option<u32> {
        self.on.contains(id).then_some(self.here)
    }

    /// There may be room anywhere.
    pub fn reopen(&mut self, id: ShapeId) {
        if self.all.get(id).is_some() {
            self.open.insert(id);
            self.on.remove(id);
        }
    }

    /// There is no room.
    pub fn close(&mut self, id: ShapeId) {
        self.open.remove(id);
        self.on.remove(id);
    }

    /// Something became free on a node, which is not draining: opens what fits there.
    pub fn freed(&mut self, at: u32, node: &Node, cluster: &Cluster) {
        let [mut fits, mut unsure] = std::mem::take(&mut self.scratch);
        fits.copy(self.admitted(node, cluster));
        unsure.copy(&self.special);
        self.pinned.get(&node.id).into_iter().flatten().for_each(|id| fits.insert(*id));
        self.fit.keep(&mut fits, &node.free(), &mut unsure);
        self.keep_apart(node, &mut fits);
        self.look_at(at, cluster, &mut fits, &mut unsure);
        only_kept(node, &mut fits);
        if self.on.is_empty() {
            self.here = at;
        }
        if self.here == at {
            // What was not open has room here alone. Groups may need several nodes.
            unsure.copy(&fits);
            unsure.without(&self.open);
            unsure.without(&self.gangs);
            self.on.add(&unsure);
        } else {
            self.on.without(&fits);
        }
        self.open.add(&fits);
        self.scratch = [fits, unsure];
    }

    /// Something was taken from a node: closes what had room there alone, and has it no longer.
    pub fn taken(&mut self, at: u32, node: &Node, cluster: &Cluster) {
        if self.here != at || self.on.is_empty() {
            return;
        }
        let [mut fits, mut unsure] = std::mem::take(&mut self.scratch);
        fits.copy(&self.on);
        unsure.copy(&self.special);
        self.fit.keep(&mut fits, &node.free(), &mut unsure);
        self.keep_apart(node, &mut fits);
        self.look_at(at, cluster, &mut fits, &mut unsure);
        only_kept(node, &mut fits);
        self.open.without(&self.on);
        self.open.add(&fits);
        self.on.copy(&fits);
        self.scratch = [fits, unsure];
    }

    /// What waits whose rules admit a node.
    fn admitted(&mut self, node: &Node, cluster: &Cluster) -> &Bits {
        let version = cluster.index.version();
        if std::mem::replace(&mut self.version, version) != version {
            self.admitted.clear();
        }
        let group = node.spot.group as usize;
        if self.admitted.len() <= group {
            self.admitted.resize(group + 1, None);
        }
        self.admitted[group].get_or_insert_with(|| {
            let mut all = Bits::new();
            for (_, ruled) in self.ruled.iter() {
                if ruled.rules.iter().any(|rules| cluster.index.admits(*rules, node.spot)) {
                    all.add(&ruled.shapes);
                }
            }
            all
        })
    }

    /// Takes out what keeps apart from its own kin, of which some is there.
    fn keep_apart(&self, node: &Node, fits: &mut Bits) {
        for kin in &node.apart {
            if let Some(Some(id)) = self.apart.get(*kin as usize) {
                fits.remove(*id);
            }
        }
    }

    /// Takes out what was unsure and does not fit.
    fn look_at(&self, at: u32, cluster: &Cluster, fits: &mut Bits, unsure: &mut Bits) {
        unsure.keep(fits);
        for id in unsure.iter() {
            if self.all.get(id).is_none_or(|shape| !cluster.has_room(shape, at)) {
                fits.remove(id);
            }
        }
    }

    /// The step is over: what is open still, since limits hold it back, is looked for everywhere from now on.
    pub fn step_over(&mut self) {
        self.on.clear();
    }

    /// There are new kinds of resources.
    pub fn learn(&mut self, kinds: &Kinds) {
        let unknown = self.all.iter().filter(|(_, s)| !s.need.known && s.key.gang.is_none());
        let unknown: Vec<ShapeId> = unknown.map(|(id, _)| id).collect();
        for id in unknown {
            let Some(shape) = self.all.get_mut(id) else { continue };
            let new = Arc::new(Need::of(&shape.key.resources, kinds));
            let old = std::mem::replace(&mut shape.need, new);
            self.fit.remove(id, &old.dims);
            self.special.remove(id);
            self.sort(id);
        }
    }
}

/// The kin from which a shape of this key keeps apart, if it does. (What is very small has one, too, to be counted.)
fn apart(key: &Key, need: &Need) -> Option<u32> {
    key.kin.filter(|_| !need.tiny)
}

/// What a node is kept for is all that may get anything there.
fn only_kept(node: &Node, fits: &mut Bits) {
    if let Some(kept) = &node.kept {
        let fine = kept.oldest().is_none() && fits.contains(kept.shape);
        fits.clear();
        if fine {
            fits.insert(kept.shape);
        }
    }
}
