//! Invariants S1 to S3, checked from scratch.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{HostId, JobId, LeaseId, Quantity, resource::Kind};

use super::Scheduler;
use crate::{
    node::Node,
    queues::TOP,
    stock::{CPU, GPU, TPU},
};

impl Scheduler {
    /// Checks that on each node what is available and what its leases hold add up to its total, device by device,
    /// and that every index agrees with the tables. The error says what differs. For tests and debugging: it looks
    /// at everything.
    pub fn conserved(&self) -> Result<(), String> {
        for (at, node) in self.nodes_by_number() {
            self.check_node(at, node)?;
        }
        self.check_owners()?;
        self.check_queues()?;
        self.check_demands()
    }

    /// Checks that nothing that waits would fit anywhere. For tests and debugging: it looks at everything.
    pub fn settled(&self) -> Result<(), String> {
        for demand in self.demands() {
            let Some(shape) = self.shapes.get(demand.shape) else {
                return Err("a demand without shape".into());
            };
            if self.queues.headroom(demand.queue, &shape.need) == 0 {
                continue;
            }
            if let Some((_, node)) = self.nodes_by_number().find(|(at, _)| self.cluster.has_room(shape, *at))
            {
                return Err(format!(
                    "class {} of {} waits, but {} has room",
                    demand.key, demand.owner, node.id
                ));
            }
        }
        Ok(())
    }

    fn check_node(&self, at: u32, node: &Node) -> Result<(), String> {
        let id = node.id;
        let mut sums: BTreeMap<usize, i64> = node.stock.left().collect();
        let mut devices: BTreeMap<(usize, u32), i64> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for entry in self.leases.values().filter(|entry| entry.lease.node == id) {
            ids.insert(entry.lease.id);
            for (kind, each) in &entry.need.amounts {
                let slots = if *kind == CPU { entry.running() } else { entry.lease.slots };
                *sums.entry(*kind).or_default() += each * i64::from(slots);
            }
            for grant in &entry.lease.devices {
                let kind = if grant.kind == Kind::Gpu { GPU } else { TPU };
                *devices.entry((kind, grant.index)).or_default() += grant.share.units();
            }
        }
        let overdraft = node.stock.overdraft();
        *sums.entry(CPU).or_default() -= overdraft.units();
        sums.retain(|_, amount| *amount != 0);
        let totals: BTreeMap<usize, i64> = node.stock.totals().collect();
        if sums != totals {
            return Err(format!("{id}: available and held are {sums:?}, but its total is {totals:?}"));
        }
        if !overdraft.is_zero() && node.stock.free_of(CPU) > 0 {
            return Err(format!("{id}: CPU is both overdrawn and available"));
        }
        for (kind, index, free, full) in node.stock.devices() {
            let held = devices.remove(&(kind, index)).unwrap_or_default();
            if free + held != full || full != Quantity::ONE.units() {
                return Err(format!("{id}: device {index} has {free} free and {held} held"));
            }
        }
        if let Some((_, index)) = devices.keys().next() {
            return Err(format!("{id}: device {index} is held, but there is none"));
        }
        if ids != node.leases {
            return Err(format!("{id}: its leases are {ids:?}, but it counts {:?}", node.leases));
        }
        if !node.stale && *self.cluster.index.summary(node.spot) != node.summary() {
            return Err(format!("{id}: the index knows something else of it"));
        }
        for (number, kin) in self.cluster.kins.iter() {
            let of_kin = self.leases.values().filter(|e| e.kin == Some(number) && e.lease.node == id);
            let slots: u32 = of_kin.map(|e| e.lease.slots).sum();
            if slots != kin.on.get(&at).copied().unwrap_or(0) {
                return Err(format!("{id} has {slots} slots of {}, but {:?}", kin.class.function, kin.on));
            }
        }
        Ok(())
    }

    fn check_owners(&self) -> Result<(), String> {
        let mut owners: BTreeMap<HostId, (BTreeSet<LeaseId>, usize)> = BTreeMap::new();
        for (id, entry) in &self.leases {
            let lease = &entry.lease;
            owners.entry(lease.owner).or_default().0.insert(*id);
            if self.cluster.find(lease.node) != Some(entry.at) {
                return Err(format!("{id} is on {}, which is gone", lease.node));
            }
            let one_with_devices = lease.devices.is_empty() || lease.slots == 1;
            if lease.slots == 0 || entry.blocked > lease.slots || !one_with_devices {
                return Err(format!("{id} has {} slots, {} of them waiting", lease.slots, entry.blocked));
            }
            let due = self.expiries.iter().filter(|queued| queued.0.1 == *id && queued.0.0 <= lease.expires);
            if due.count() != 1 {
                return Err(format!("{id} is not among the expiries once"));
            }
        }
        for key in self.by_key.keys() {
            owners.entry(key.owner).or_default().1 += 1;
        }
        let counted = self.owners.iter().map(|(owner, has)| (*owner, (has.leases.clone(), has.demands)));
        if owners != counted.collect() {
            return Err("the table of owners disagrees with what they have".into());
        }
        Ok(())
    }

    fn check_queues(&self) -> Result<(), String> {
        let mut held: BTreeMap<(u32, JobId), u64> = BTreeMap::new();
        let mut usage: BTreeMap<(u32, usize), i64> = BTreeMap::new();
        for entry in self.leases.values() {
            *held.entry((entry.queue, entry.lease.job)).or_default() += u64::from(entry.lease.slots);
            for queue in self.queues.above(entry.queue) {
                for (kind, each) in &entry.need.amounts {
                    let slots = if *kind == CPU { entry.running() } else { entry.lease.slots };
                    *usage.entry((queue, *kind)).or_default() += each * i64::from(slots);
                }
            }
        }
        let mut waiting = 0;
        for (queue, job, lane) in self.queues.lanes() {
            if held.remove(&(queue, job)).unwrap_or_default() != lane.held {
                return Err(format!("{job} does not hold {} slots", lane.held));
            }
            waiting += lane.waiting.values().map(BTreeSet::len).sum::<usize>();
        }
        if !held.is_empty() || waiting != self.by_key.len() || waiting != self.queues.waiting() as usize {
            return Err(format!("{waiting} demands have a turn, and {} wait", self.by_key.len()));
        }
        for queue in 0..self.queues.len() {
            for kind in 0..self.cluster.kinds.len() {
                let uses = usage.get(&(queue, kind)).copied().unwrap_or_default();
                if uses != self.queues.usage(queue, kind) {
                    return Err(format!("queue {} does not use {uses}", self.queues.get(queue).name));
                }
            }
        }
        debug_assert_eq!(self.queues.get(TOP).parent, None);
        Ok(())
    }

    fn check_demands(&self) -> Result<(), String> {
        let mut users: BTreeMap<u32, u32> = BTreeMap::new();
        for (key, at) in &self.by_key {
            let Some(demand) = self.demands.get(*at) else { return Err("a key without demand".into()) };
            *users.entry(demand.shape).or_default() += 1;
            let turn = demand.turn(*at, self.options.ageing);
            let lane = self.queues.lane(demand.queue, demand.job);
            let turns = lane.and_then(|lane| lane.waiting.get(&demand.shape));
            if demand.id() != *key || demand.backlog == 0 || !turns.is_some_and(|turns| turns.contains(&turn))
            {
                return Err(format!("{key:?} does not wait in its turn"));
            }
        }
        let counted: BTreeMap<u32, u32> = self.shapes.iter().map(|(id, shape)| (id, shape.users)).collect();
        if users != counted {
            return Err(format!("shapes are used {users:?}, but count {counted:?}"));
        }
        Ok(())
    }
}
