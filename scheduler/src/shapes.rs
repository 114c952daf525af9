//! Shapes: what many demands have in common as far as room is concerned, and where there may be room for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{Group, NodeId, Resources};

use crate::{
    slab::Slab,
    stock::{DIMS, Kinds, Need, Summary},
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

/// Where there may be room for a shape that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// Nowhere, as was found out.
    Nowhere,
    /// On this node, and on no other.
    On(u32),
    /// Nobody has looked.
    Anywhere,
}

#[derive(Debug)]
pub(crate) struct Shape {
    pub key: Key,
    pub need: Arc<Need>,
    pub place: Where,
    /// Demands that wait.
    pub users: u32,
}

/// All shapes of which something waits.
#[derive(Debug)]
pub(crate) struct Shapes {
    all: Slab<Shape>,
    /// What each needs, together: all of them are held against a node on which something became free.
    dims: Vec<[i64; DIMS]>,
    by_key: BTreeMap<Key, ShapeId>,
    open: BTreeSet<ShapeId>,
    nothing: Arc<Need>,
}

impl Shapes {
    pub fn new() -> Self {
        Self {
            all: Slab::new(),
            dims: Vec::new(),
            by_key: BTreeMap::new(),
            open: BTreeSet::new(),
            nothing: Arc::new(Need::of(&Resources::none(), &Kinds::new())),
        }
    }

    /// The shape of this key, used once more; and whether it is new.
    pub fn enter(&mut self, key: Key, kinds: &Kinds) -> (ShapeId, bool) {
        if let Some(id) = self.by_key.get(&key) {
            if let Some(shape) = self.all.get_mut(*id) {
                shape.users += 1;
            }
            return (*id, false);
        }
        let need = Arc::new(Need::of(&key.resources, kinds));
        let dims = need.dims;
        let id = self.all.insert(Shape { key: key.clone(), need, place: Where::Anywhere, users: 1 });
        self.dims.resize(self.dims.len().max(id as usize + 1), [i64::MAX; DIMS]);
        self.dims[id as usize] = dims;
        self.by_key.insert(key, id);
        self.open.insert(id);
        (id, true)
    }

    /// The shape of what a group lacks, used once more. `need` is what all bundles need, with the bounds of the smallest.
    pub fn enter_gang(&mut self, wanted: Wanted, rules: u32, need: Need) -> ShapeId {
        let (resources, rules, gang) = (Resources::none(), vec![rules], Some(wanted));
        let (id, fresh) = self.enter(Key { resources, rules, pin: None, kin: None, gang }, &Kinds::new());
        if fresh && let Some(shape) = self.all.get_mut(id) {
            self.dims[id as usize] = need.dims;
            shape.need = Arc::new(need);
        }
        id
    }

    /// Used once less. Gives the key of a shape that is no longer used at all.
    pub fn leave(&mut self, id: ShapeId) -> Option<Key> {
        let shape = self.all.get_mut(id)?;
        shape.users = shape.users.saturating_sub(1);
        if shape.users > 0 {
            return None;
        }
        let shape = self.all.remove(id)?;
        self.dims[id as usize] = [i64::MAX; DIMS];
        self.by_key.remove(&shape.key);
        self.open.remove(&id);
        Some(shape.key)
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

    /// Those for which there may be room.
    pub fn open(&self) -> impl Iterator<Item = ShapeId> {
        self.open.iter().copied()
    }

    pub fn any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Says where there may be room.
    pub fn set(&mut self, id: ShapeId, place: Where) {
        if let Some(shape) = self.all.get_mut(id) {
            shape.place = place;
            match place {
                Where::Nowhere => self.open.remove(&id),
                _ => self.open.insert(id),
            };
        }
    }

    /// Shapes that may fit into a node, and of which it is not known yet that they do.
    pub fn fitting(&self, node: u32, free: &Summary) -> Vec<ShapeId> {
        let fits = |dims: &[i64; DIMS]| (0..DIMS).all(|dim| dims[dim] <= free.free[dim]);
        let known = |id: &ShapeId| {
            self.all.get(*id).is_none_or(|s| matches!(s.place, Where::Anywhere) || s.place == Where::On(node))
        };
        let all = (0..).zip(&self.dims).filter(|(_, dims)| fits(dims));
        all.map(|(id, _)| id).filter(|id| !known(id)).collect()
    }

    /// Shapes that had room on this node only, which is gone.
    pub fn on(&self, node: u32) -> Vec<(ShapeId, Where)> {
        let there = self.all.iter().filter(|(_, shape)| shape.place == Where::On(node));
        there.map(|(id, _)| (id, Where::Nowhere)).collect()
    }

    /// There are new kinds of resources.
    pub fn learn(&mut self, kinds: &Kinds) {
        for (id, shape) in self.all.iter_mut() {
            if !shape.need.known && shape.key.gang.is_none() {
                shape.need = Arc::new(Need::of(&shape.key.resources, kinds));
                self.dims[id as usize] = shape.need.dims;
            }
        }
    }
}
