//! What waits, as shapes for which nodes could be added.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{
    GroupId, HostId, NodeId, Resources,
    resource::{LabelRule, Strategy},
};

use super::Scheduler;
use crate::{Demand, Unmet, demand, gang::Gang, unmet};

/// What tells shapes of single slots apart; the last is a kind that keeps apart.
type Key<'a> = (&'a Resources, &'a [LabelRule], &'a [Vec<LabelRule>], Option<u32>);

impl Scheduler {
    /// What waits, as shapes for which nodes could be added, groups by group; what waits for its turn in a queue that has
    /// a limit is counted only up to that, and what waits for one certain node is left out: no other is of use to it.
    pub fn unmet(&self) -> Vec<Unmet> {
        let mut singles: BTreeMap<Key<'_>, (&Demand, u64)> = BTreeMap::new();
        for demand in self.demands() {
            let class = &demand.class;
            let apart = demand.kin.filter(|_| class.strategy == Strategy::Apart);
            let key = (&class.resources, class.labels.as_slice(), class.fallbacks.as_slice(), apart);
            singles.entry(key).or_insert((demand, 0)).1 += self.wanted(demand);
        }
        let singles = singles.into_values().filter(|(_, count)| *count > 0);
        let mut all: Vec<Unmet> = singles.map(|(demand, count)| self.slots(demand, count)).collect();
        self.gangs.iter().for_each(|(_, gang)| self.bundles(gang, &mut all));
        all
    }

    /// The same of one demand, where nodes that are added could be of use to it.
    pub fn unmet_of(&self, owner: HostId, key: u32) -> Option<Unmet> {
        let demand = self.demands.get(*self.by_key.get(&demand::Key { owner, key })?)?;
        let count = self.wanted(demand);
        (count > 0).then(|| self.slots(demand, count))
    }

    /// The same of one group, shape by shape; nothing where it waits for no nodes.
    pub fn unmet_of_group(&self, group: GroupId) -> Vec<Unmet> {
        let mut all = Vec::new();
        if let Some(gang) = self.gang_of.get(&group).and_then(|at| self.gangs.get(*at)) {
            self.bundles(gang, &mut all);
        }
        all
    }

    /// For how many slots of a demand nodes could be added.
    fn wanted(&self, demand: &Demand) -> u64 {
        let pinned = matches!(demand.class.strategy, Strategy::Node { soft: false, .. });
        let shape = demand.shape.filter(|_| !pinned);
        let allowed = shape.map_or(0, |shape| self.queues.headroom(demand.queue, self.shapes.need(shape)));
        demand.backlog.min(allowed).into()
    }

    fn slots(&self, demand: &Demand, count: u64) -> Unmet {
        let class = &demand.class;
        let apart = |kind: u32| {
            let on = self.cluster.kins.get(kind).map(|kin| self.ids(kin.on.keys().copied()));
            unmet::Apart { kind, on: on.unwrap_or_default() }
        };
        Unmet {
            resources: class.resources.clone(),
            labels: class.labels.clone(),
            fallbacks: class.fallbacks.clone(),
            count,
            gang: None,
            apart: demand.kin.filter(|_| class.strategy == Strategy::Apart).map(apart),
        }
    }

    /// Adds the bundles that a group lacks, as far as its queue may have them.
    fn bundles(&self, gang: &Gang, all: &mut Vec<Unmet>) {
        let Some(shape) = gang.shape else { return };
        if self.queues.headroom(gang.queue, self.shapes.need(shape)) == 0 {
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
        all.extend(counts.into_iter().map(|(resources, count)| Unmet {
            resources: resources.clone(),
            labels: spec.labels.clone(),
            fallbacks: Vec::new(),
            count,
            gang: Some(of.clone()),
            apart: None,
        }));
    }

    /// Nodes by place, in ascending order, each once.
    fn ids(&self, nodes: impl Iterator<Item = u32>) -> Vec<NodeId> {
        let ids = nodes.filter_map(|at| Some(self.cluster.nodes.get(at)?.id));
        ids.collect::<BTreeSet<NodeId>>().into_iter().collect()
    }
}
