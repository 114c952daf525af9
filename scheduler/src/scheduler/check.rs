//! Invariants S1 to S3, checked from scratch.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{HostId, JobId, LeaseId, Quantity, Resources, resource::Kind};

use super::Scheduler;
use crate::{Millis, node::Node, strategy};

impl Scheduler {
    /// Checks that on each node what is available and what its leases hold add up to its total, device by device,
    /// and that every index agrees with the tables. The error says what differs. For tests and debugging: it looks
    /// at everything.
    pub fn conserved(&self) -> Result<(), String> {
        for node in self.nodes.values() {
            self.check_node(node)?;
        }
        self.check_indexes()
    }

    /// Checks that nothing that waits would fit anywhere. For tests and debugging: it looks at everything.
    pub fn settled(&self) -> Result<(), String> {
        for demand in self.demands.values() {
            let found = strategy::candidates(demand, self.nodes.values(), self.options.seed);
            if let Some(candidate) = found.first() {
                let (owner, key) = (demand.owner, demand.key);
                return Err(format!("class {key} of {owner} waits, but node-{} has room", candidate.number));
            }
        }
        Ok(())
    }

    fn check_node(&self, node: &Node) -> Result<(), String> {
        let mut sum = node.available.clone();
        let mut devices: BTreeMap<(Kind, u32), Quantity> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        let mut slots = BTreeMap::new();
        for entry in self.leases.values().filter(|entry| entry.lease.node == node.id) {
            ids.insert(entry.lease.id);
            for (kind, amount) in entry.held() {
                sum.set(kind.clone(), sum.get(kind).plus(amount));
            }
            for grant in &entry.lease.devices {
                let held = devices.entry((grant.kind.clone(), grant.index)).or_default();
                *held = held.plus(grant.share);
            }
            *slots.entry((entry.lease.job, entry.lease.class.clone())).or_default() += entry.lease.slots;
        }
        let mut total: Resources = node.total.clone();
        total.set(Kind::Cpu, total.get(&Kind::Cpu).plus(node.overdraft));
        let id = node.id;
        if sum != total {
            return Err(format!("{id}: available and held are {sum}, but total and overdraft are {total}"));
        }
        if !node.overdraft.is_zero() && !node.available.get(&Kind::Cpu).is_zero() {
            return Err(format!("{id}: CPU is both overdrawn and available"));
        }
        for (kind, index, free) in node.devices_free() {
            let held = devices.remove(&(kind.clone(), index)).unwrap_or_default();
            if free.plus(held) != Quantity::ONE {
                return Err(format!("{id}: {kind} {index} has {free} free and {held} held"));
            }
        }
        if let Some((kind, index)) = devices.keys().next() {
            return Err(format!("{id}: {kind} {index} is held, but there is none"));
        }
        if ids != node.leases || slots != node.slots {
            return Err(format!("{id}: its leases are {ids:?}, but it counts {:?}", node.leases));
        }
        Ok(())
    }

    fn check_indexes(&self) -> Result<(), String> {
        let mut by_owner: BTreeMap<HostId, BTreeSet<LeaseId>> = BTreeMap::new();
        let mut slots_held: BTreeMap<JobId, u64> = BTreeMap::new();
        let mut expiries: BTreeSet<(Millis, LeaseId)> = BTreeSet::new();
        for (id, entry) in &self.leases {
            let lease = &entry.lease;
            by_owner.entry(lease.owner).or_default().insert(*id);
            *slots_held.entry(lease.job).or_default() += u64::from(lease.slots);
            expiries.insert((lease.expires, *id));
            if !self.is_current(lease.node) {
                return Err(format!("{id} is on {}, which is gone", lease.node));
            }
            let one_with_devices = lease.devices.is_empty() || lease.slots == 1;
            if lease.slots == 0 || entry.blocked > lease.slots || !one_with_devices {
                return Err(format!("{id} has {} slots, {} of them waiting", lease.slots, entry.blocked));
            }
        }
        let waiting: BTreeSet<_> = self.demands.values().map(|d| d.turn()).collect();
        for (name, agrees) in [
            ("leases by owner", by_owner == self.by_owner),
            ("slots by job", slots_held == self.slots_held),
            ("expiries", expiries == self.expiries),
            ("turns", waiting == self.waiting),
            ("backlogs", self.demands.values().all(|d| d.backlog > 0)),
        ] {
            if !agrees {
                return Err(format!("the index of {name} disagrees with its table"));
            }
        }
        Ok(())
    }
}
