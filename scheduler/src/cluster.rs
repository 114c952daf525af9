//! The nodes together, with what is counted for each kin, and the index over them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{
    JobId, NodeId, Resources,
    resource::{Class, Device, Label, LabelRule, Strategy},
};

use crate::{
    index::{Index, Spot},
    node::{Node, SLOTS_MAX, devices, slots_max},
    shapes::Shape,
    slab::Slab,
    stock::{Kinds, Need, Stock},
};

/// What one job runs of one class, counted by node, where that matters.
#[derive(Debug)]
pub(crate) struct Kin {
    pub job: JobId,
    pub class: Arc<Class>,
    /// Slots by node.
    pub on: BTreeMap<u32, u32>,
    /// Demands and leases that refer to it.
    pub users: u32,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    pub kinds: Kinds,
    pub nodes: Slab<Node>,
    /// Living nodes by number.
    pub by_number: BTreeMap<u32, u32>,
    pub index: Index,
    pub kins: Slab<Kin>,
    kin_of: BTreeMap<(JobId, Arc<Class>), u32>,
    /// Nodes that changed since the index was told.
    stale: Vec<u32>,
    /// Nodes that run work.
    pub workers: usize,
    /// What all have, by kind.
    pub totals: Vec<i128>,
    /// How often places were looked for, for one bundle of a group.
    #[cfg(test)]
    pub takes: usize,
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        Self {
            kinds: Kinds::new(),
            nodes: Slab::new(),
            by_number: BTreeMap::new(),
            index: Index::new(seed),
            kins: Slab::new(),
            kin_of: BTreeMap::new(),
            stale: Vec::new(),
            workers: 0,
            totals: Vec::new(),
            #[cfg(test)]
            takes: 0,
        }
    }

    /// A new node, and whether it has kinds of resources that are new.
    pub fn add(
        &mut self,
        id: NodeId,
        total: Resources,
        listed: &[Device],
        mut labels: Vec<Label>,
    ) -> (u32, bool) {
        labels.sort();
        let learnt = self.kinds.learn(&total);
        let stock = Stock::new(&total, devices(&total, listed).into_iter(), &self.kinds);
        self.workers += usize::from(!stock.is_empty());
        self.count(&stock, 1);
        let (draining, stale, spot, kept) = (false, false, Spot::default(), None);
        let (leases, bundles, apart) = (Vec::new(), BTreeSet::new(), Vec::new());
        let at = self.nodes.insert(Node {
            id,
            total,
            stock,
            labels,
            draining,
            leases,
            bundles,
            apart,
            spot,
            kept,
            stale,
        });
        self.place_in_index(at);
        self.by_number.insert(id.number, at);
        (at, learnt)
    }

    pub fn remove(&mut self, at: u32) -> Option<Node> {
        let node = self.nodes.remove(at)?;
        self.stale.retain(|stale| *stale != at);
        self.index.remove(node.spot);
        self.by_number.remove(&node.id.number);
        self.workers -= usize::from(node.works());
        self.count(&node.stock, -1);
        for (_, kin) in self.kins.iter_mut() {
            kin.on.remove(&at);
        }
        Some(node)
    }

    fn count(&mut self, stock: &Stock, sign: i64) {
        self.totals.resize(self.kinds.len(), 0);
        for (kind, amount) in stock.totals() {
            self.totals[kind] += i128::from(amount * sign);
        }
    }

    fn place_in_index(&mut self, at: u32) {
        if let Some(node) = self.nodes.get_mut(at) {
            node.spot = self.index.insert(at, &node.labels, node.stock.has_devices(), node.stock.size());
            self.index.update(node.spot, node.summary());
        }
    }

    /// The number of these rules, used once more.
    pub fn rules(&mut self, list: &[LabelRule]) -> u32 {
        let (at, regroup) = self.index.rules(list);
        if regroup {
            self.regroup();
        }
        at
    }

    fn regroup(&mut self) {
        self.index.clear();
        let all: Vec<u32> = self.by_number.values().copied().collect();
        all.into_iter().for_each(|at| self.place_in_index(at));
    }

    /// Nodes are no longer told apart by labels that no rule names any more: each key makes every search slower.
    pub fn forget_keys(&mut self) {
        if self.index.forget_keys() {
            self.regroup();
        }
    }

    /// The index will be told that a node changed, before it is asked.
    pub fn touch(&mut self, at: u32) {
        if let Some(node) = self.nodes.get_mut(at).filter(|node| !node.stale) {
            node.stale = true;
            self.stale.push(at);
        }
    }

    /// Tells the index what changed.
    pub fn refresh(&mut self) {
        while let Some(at) = self.stale.pop() {
            if let Some(node) = self.nodes.get_mut(at) {
                node.stale = false;
                self.index.update(node.spot, node.summary());
            }
        }
    }

    /// Whether the index knows of all changes.
    pub fn is_fresh(&self) -> bool {
        self.stale.is_empty()
    }

    /// The living node of this name.
    pub fn find(&self, id: NodeId) -> Option<u32> {
        let at = *self.by_number.get(&id.number)?;
        self.nodes.get(at).is_some_and(|node| node.id == id).then_some(at)
    }

    /// The kin of a class of a job, used once more; `None` where nothing is counted for it.
    pub fn kin(&mut self, job: JobId, class: &Arc<Class>, need: &Need) -> Option<u32> {
        if !matches!(class.strategy, Strategy::Spread | Strategy::Apart) && !need.tiny {
            return None;
        }
        let key = (job, Arc::clone(class));
        if let Some(at) = self.kin_of.get(&key) {
            if let Some(kin) = self.kins.get_mut(*at) {
                kin.users += 1;
            }
            return Some(*at);
        }
        let kin = Kin { job, class: Arc::clone(class), on: BTreeMap::new(), users: 1 };
        let at = self.kins.insert(kin);
        self.kin_of.insert(key, at);
        Some(at)
    }

    pub fn forget_kin(&mut self, at: Option<u32>) {
        let Some((at, kin)) = at.and_then(|at| Some((at, self.kins.get_mut(at)?))) else { return };
        kin.users = kin.users.saturating_sub(1);
        if kin.users == 0
            && let Some(kin) = self.kins.remove(at)
        {
            self.kin_of.remove(&(kin.job, kin.class));
        }
    }

    /// Counts slots of a kin on a node, or counts them no longer.
    pub fn count_kin(&mut self, kin: Option<u32>, node: u32, slots: i64) {
        let Some((at, kin)) = kin.and_then(|at| Some((at, self.kins.get_mut(at)?))) else { return };
        let held = kin.on.entry(node).or_default();
        let before = *held;
        *held = u32::try_from((i64::from(before) + slots).max(0)).unwrap_or(u32::MAX);
        let now = *held;
        if now == 0 {
            kin.on.remove(&node);
        }
        if kin.class.strategy == Strategy::Apart
            && (before == 0) != (now == 0)
            && let Some(node) = self.nodes.get_mut(node)
        {
            match node.apart.binary_search(&at) {
                Ok(place) if now == 0 => drop(node.apart.remove(place)),
                Err(place) if now > 0 => node.apart.insert(place, at),
                _ => {}
            }
        }
    }

    /// How many more slots of a kin a node may hold, whatever it has.
    pub fn kin_room(&self, kin: Option<u32>, node: u32) -> u32 {
        let Some(kin) = kin.and_then(|at| self.kins.get(at)) else { return SLOTS_MAX };
        slots_max(&kin.class).saturating_sub(kin.on.get(&node).copied().unwrap_or(0))
    }

    /// Whether the labels and the strategy of a shape allow a node.
    pub fn admits(&self, shape: &Shape, node: &Node) -> bool {
        shape.key.pin.is_none_or(|pin| pin == node.id)
            && node.works()
            && shape.key.rules.iter().any(|rules| self.index.admits(*rules, node.spot))
    }

    /// How many slots of a shape fit on a node now.
    pub fn room(&self, shape: &Shape, at: u32) -> u32 {
        match self.nodes.get(at) {
            Some(node)
                if !node.draining && !node.is_kept_from(Some(shape.id)) && self.admits(shape, node) =>
            {
                node.stock.room(&shape.need).min(self.kin_room(shape.key.kin, at))
            }
            _ => 0,
        }
    }

    /// Whether a slot of a shape fits on a node now.
    pub fn has_room(&self, shape: &Shape, at: u32) -> bool {
        self.nodes.get(at).is_some_and(|node| {
            !node.draining
                && !node.is_kept_from(Some(shape.id))
                && (shape.key.gang.is_some() || node.stock.fits(&shape.need))
                && self.admits(shape, node)
                && self.kin_room(shape.key.kin, at) > 0
        })
    }

    /// Whether any living node could hold a slot of a shape if nothing else ran.
    pub fn could_ever(&self, shape: &Shape) -> bool {
        let could = |at: u32| self.nodes.get(at).is_some_and(|node| node.stock.could_ever(&shape.need));
        if let Some(pin) = shape.key.pin {
            let at = self.find(pin);
            let node = at.and_then(|at| Some((at, self.nodes.get(at)?)));
            return node.is_some_and(|(at, node)| self.admits(shape, node) && could(at));
        }
        let mut rules = shape.key.rules.iter();
        rules.any(|rules| self.index.first_able(*rules, &shape.need, &mut |at| could(at)).is_some())
    }
}
