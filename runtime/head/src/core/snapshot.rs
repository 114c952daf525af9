//! The cluster as people see it.

use std::collections::BTreeMap;

use mobula_proto::{
    Resources,
    head::{JobSnapshot, NameSnapshot, NodeSnapshot, Snapshot, UnmetSnapshot, WaitingSnapshot},
    resource::LabelRule,
};
use mobula_scheduler::Unmet;

use super::{Core, why::REASON_LOOKS_MAX};

/// Most waiting classes, shapes, names and groups that a snapshot lists; the first ones by owner and name.
pub const ROWS_MAX: usize = 1000;

pub(crate) fn amounts(resources: &Resources) -> BTreeMap<String, f64> {
    resources.iter().map(|(kind, amount)| (kind.to_string(), amount.as_f64())).collect()
}

fn arrange(gang: &mobula_scheduler::Gang) -> String {
    match gang.place.as_str() {
        "" => gang.arrange.to_string(),
        place => format!("{} by {place}", gang.arrange),
    }
}

/// What waits, for who starts nodes.
pub(crate) fn shape(unmet: &Unmet) -> UnmetSnapshot {
    let rules = |list: &[LabelRule]| list.iter().map(ToString::to_string).collect();
    UnmetSnapshot {
        resources: amounts(&unmet.resources),
        labels: rules(&unmet.labels),
        fallbacks: unmet.fallbacks.iter().map(|list| rules(list)).collect(),
        count: unmet.count,
        group: unmet.gang.as_ref().map(|gang| gang.group.to_string()).unwrap_or_default(),
        arrange: unmet.gang.as_ref().map(arrange).unwrap_or_default(),
        apart: unmet.apart.is_some(),
        queues: unmet.limits.iter().map(|limit| limit.queue.clone()).collect(),
    }
}

impl Core {
    /// The cluster now. Lists at most [`ROWS_MAX`] of what there may be many of, and why it waits as far as
    /// [`REASON_LOOKS_MAX`] suffices: others say how to ask for theirs.
    pub fn snapshot(&self) -> Snapshot {
        let available: BTreeMap<_, _> =
            self.scheduler.nodes().map(|view| (view.node, amounts(&view.available))).collect();
        let nodes = self.nodes.values().map(|member| NodeSnapshot {
            node: member.node.to_string(),
            name: member.register.name.clone(),
            address: member.register.address.clone(),
            total: amounts(&member.register.total),
            available: available.get(&member.node).cloned().unwrap_or_default(),
            devices: member.register.devices.clone(),
            labels: member.register.labels.iter().cloned().collect(),
            store_bytes: member.register.store_bytes,
            multi_tenant: member.register.multi_tenant,
            usage: member.usage.clone(),
            told: member.told.iter().map(|(kind, messages)| ((*kind).to_owned(), *messages)).collect(),
            draining: self.drain_snapshot(member),
        });
        let (mut slots, mut leases) = (BTreeMap::new(), 0);
        for view in self.scheduler.leases() {
            leases += 1;
            *slots.entry(view.lease.job).or_insert(0) += u64::from(view.lease.slots);
        }
        let jobs = self.jobs.values().map(|entry| JobSnapshot {
            job: entry.job.job.to_string(),
            name: entry.job.name.clone(),
            driver: entry.job.driver.to_string(),
            queue: entry.job.queue.clone(),
            slots: slots.get(&entry.job.job).copied().unwrap_or(0),
        });
        let reasons = self.scheduler.reasons(REASON_LOOKS_MAX);
        let waiting = self.scheduler.demands().take(ROWS_MAX).map(|demand| WaitingSnapshot {
            owner: demand.owner.to_string(),
            function: demand.class.function.clone(),
            queue: demand.class.queue.clone(),
            backlog: demand.backlog,
            why: self.why_demand_among(demand, &reasons),
        });
        let names = self.names.names.iter().take(ROWS_MAX).map(|((namespace, name), held)| NameSnapshot {
            namespace: namespace.clone(),
            name: name.clone(),
            actor: held.actor.to_string(),
            actor_type: held.actor_type.clone(),
        });
        Snapshot {
            cluster: self.options.cluster.clone(),
            nodes: nodes.collect(),
            jobs: jobs.collect(),
            queues: self.queue_snapshots(),
            leases,
            waiting: waiting.collect(),
            names: names.collect(),
            groups: self.group_snapshots(ROWS_MAX),
            unmet: self.scheduler.unmet().iter().take(ROWS_MAX).map(shape).collect(),
            refused: self.refused(|_| true),
            scaling: self.scaling.clone(),
        }
    }
}
