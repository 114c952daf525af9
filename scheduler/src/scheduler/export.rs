//! What waits, as shapes for which nodes could be added.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{
    GroupId, HostId, NodeId, Resources,
    resource::{LabelRule, Strategy},
};

use super::Scheduler;
use crate::{Demand, Limit, Unmet, demand, gang::Gang, unmet};

/// What tells shapes of single slots apart; the last are a kind that keeps apart, and the queues whose limits hold.
type Key<'a> = (&'a Resources, &'a [LabelRule], &'a [Vec<LabelRule>], Option<u32>, &'a [u32]);

impl Scheduler {
    /// What waits, as shapes for which nodes could be added, groups by group; what waits for its turn in a queue that has
    /// a limit is counted only up to that, and what waits for one certain node is left out: no other is of use to it.
    pub fn unmet(&self) -> Vec<Unmet> {
        let mut singles: BTreeMap<Key<'_>, (u32, &Demand, u64)> = BTreeMap::new();
        for (at, demand) in self.by_key.values().filter_map(|at| Some((*at, self.demands.get(*at)?))) {
            let class = &demand.class;
            let apart = demand.kin.filter(|_| class.strategy == Strategy::Apart);
            let limited = self.queues.limited(demand.queue);
            let key = (&class.resources, class.labels.as_slice(), class.fallbacks.as_slice(), apart, limited);
            let wanted = u64::from(demand.backlog).min(self.allowed(demand));
            if wanted == 0 {
                continue;
            }
            let first = singles.entry(key).or_insert((at, demand, 0));
            first.2 += wanted;
            if self.turn(at, demand) < self.turn(first.0, first.1) {
                (first.0, first.1) = (at, demand);
            }
        }
        let mut all: Vec<Unmet> =
            singles.into_values().map(|(at, demand, count)| self.slots(at, demand, count)).collect();
        self.gangs.iter().for_each(|(at, gang)| self.bundles(at, gang, &mut all));
        all
    }

    /// The same of one demand, where nodes that are added could be of use to it.
    pub fn unmet_of(&self, owner: HostId, key: u32) -> Option<Unmet> {
        let at = *self.by_key.get(&demand::Key { owner, key })?;
        let demand = self.demands.get(at)?;
        (self.allowed(demand) > 0).then(|| self.slots(at, demand, demand.backlog.into()))
    }

    /// The same of one group, shape by shape; nothing where it waits for no nodes.
    pub fn unmet_of_group(&self, group: GroupId) -> Vec<Unmet> {
        let mut all = Vec::new();
        if let Some((at, gang)) = self.gang_of.get(&group).and_then(|at| Some((*at, self.gangs.get(*at)?))) {
            self.bundles(at, gang, &mut all);
        }
        all
    }

    fn turn(&self, at: u32, demand: &Demand) -> i64 {
        demand.turn(at, self.options.ageing).0
    }

    /// How many slots like a demand's the limits of its queue allow, if nodes are added for them.
    fn allowed(&self, demand: &Demand) -> u64 {
        let pinned = matches!(demand.class.strategy, Strategy::Node { soft: false, .. });
        let shape = demand.shape.filter(|_| !pinned);
        shape.map_or(0, |shape| self.queues.headroom(demand.queue, shape, self.shapes.need(shape))).into()
    }

    fn limits(&self, queue: u32) -> Vec<Limit> {
        self.queues.limited(queue).iter().map(|at| self.queues.left(*at, &self.cluster.kinds)).collect()
    }

    fn slots(&self, at: u32, demand: &Demand, wanted: u64) -> Unmet {
        let class = &demand.class;
        let apart = |kind: u32| {
            let on = self.cluster.kins.get(kind).map(|kin| self.ids(kin.on.keys().copied()));
            unmet::Apart { kind, on: on.unwrap_or_default() }
        };
        Unmet {
            resources: class.resources.clone(),
            labels: class.labels.clone(),
            fallbacks: class.fallbacks.clone(),
            count: wanted.min(self.allowed(demand)),
            gang: None,
            apart: demand.kin.filter(|_| class.strategy == Strategy::Apart).map(apart),
            limits: self.limits(demand.queue),
            turn: self.turn(at, demand),
        }
    }

    /// Adds the bundles that a group lacks, as far as its queue may have them.
    fn bundles(&self, at: u32, gang: &Gang, all: &mut Vec<Unmet>) {
        let Some(shape) = gang.shape else { return };
        if self.queues.headroom(gang.queue, shape, self.shapes.need(shape)) == 0 {
            return;
        }
        let spec = &gang.spec;
        let of = unmet::Gang {
            group: gang.id,
            arrange: spec.arrange,
            place: spec.place.clone(),
            on: self.ids(gang.bundles.iter().flatten().map(|bundle| bundle.at)),
        };
        let mut counts: BTreeMap<&Resources, u64> = BTreeMap::new();
        for number in gang.missing() {
            *counts.entry(&spec.bundles[number as usize]).or_default() += 1;
        }
        let (limits, turn) = (self.limits(gang.queue), gang.turn(at, self.options.ageing).0);
        all.extend(counts.into_iter().map(|(resources, count)| Unmet {
            resources: resources.clone(),
            labels: spec.labels.clone(),
            fallbacks: Vec::new(),
            count,
            gang: Some(of.clone()),
            apart: None,
            limits: limits.clone(),
            turn,
        }));
    }

    /// Nodes by place, in ascending order, each once.
    fn ids(&self, nodes: impl Iterator<Item = u32>) -> Vec<NodeId> {
        let ids = nodes.filter_map(|at| Some(self.cluster.nodes.get(at)?.id));
        ids.collect::<BTreeSet<NodeId>>().into_iter().collect()
    }
}
