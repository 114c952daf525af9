//! Why those that wait do so: one of them, or many within bounds.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
};

use mobula_proto::{GroupId, HostId};

use super::{Scheduler, starve::Oldest};
use crate::{demand, why::Told};

/// Says of many that wait why they do. Each reason is bounded, but a thousand of them may take long, so it counts its looks:
/// one is a node, or something on it, that is held against what waits, and takes some ten nanoseconds.
pub struct Reasons<'a> {
    scheduler: &'a Scheduler,
    told: Told<'a>,
    most: u64,
}

impl Scheduler {
    /// Reasons for those that are asked about until that took so many looks; the last may take more.
    pub fn reasons(&self, most: u64) -> Reasons<'_> {
        let kept_for = |at: &u32| match self.oldest_on(*at)? {
            Oldest::Gang(group) => Some(group),
            Oldest::Demand(_) => None,
        };
        let told = Told {
            cluster: &self.cluster,
            queues: &self.queues,
            leases: &self.leases,
            gangs: &self.gangs,
            kept_for: self.preempting.kept.iter().filter_map(kept_for).collect::<BTreeSet<GroupId>>(),
            looks: Cell::new(0),
            known: RefCell::new(BTreeMap::new()),
        };
        Reasons { scheduler: self, told, most }
    }

    /// What a demand waits for, in a sentence; `None` when nothing of it waits.
    pub fn why(&self, owner: HostId, key: u32) -> Option<String> {
        self.reasons(u64::MAX).why(owner, key)
    }

    /// What a placement group waits for, in a sentence; `None` when all of it is reserved, or there is no such group.
    pub fn why_group(&self, group: GroupId) -> Option<String> {
        self.reasons(u64::MAX).why_group(group)
    }
}

impl Reasons<'_> {
    /// Whether no more should be asked.
    pub fn is_spent(&self) -> bool {
        self.looks() >= self.most
    }

    /// How many looks were taken.
    pub fn looks(&self) -> u64 {
        self.told.looks.get()
    }

    /// Counts looks that somebody else took for the same.
    pub fn count(&self, looks: usize) {
        self.told.look(looks);
    }

    /// As [`Scheduler::why`].
    pub fn why(&self, owner: HostId, key: u32) -> Option<String> {
        let known = self.scheduler;
        let at = *known.by_key.get(&demand::Key { owner, key })?;
        let demand = known.demands.get(at)?;
        let turn = demand.turn(at, known.options.ageing);
        match demand.gang {
            Some(gang) => {
                let gang = known.gangs.get(gang)?;
                self.count(3 * gang.bundles.len());
                Some(gang.why_inside(demand, turn, &known.cluster))
            }
            None => Some(self.told.waits(demand, known.shapes.get(demand.shape?)?, turn)),
        }
    }

    /// As [`Scheduler::why_group`].
    pub fn why_group(&self, group: GroupId) -> Option<String> {
        let known = self.scheduler;
        let at = *known.gang_of.get(&group)?;
        let gang = known.gangs.get(at)?;
        let turn = gang.turn(at, known.options.ageing);
        Some(self.told.gang_waits(gang, known.shapes.get(gang.shape?)?, turn))
    }
}
