//! Invariants S1 to S3, checked from scratch.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{
    HostId, JobId, LeaseId, Quantity,
    resource::{Kind, Strategy},
};

use super::Scheduler;
use crate::{
    gang::{Bundle, Gang, Placing, search::LOOKS_MAX},
    lease::Entry,
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
    pub fn settled(&mut self) -> Result<(), String> {
        for (at, gang) in self.gangs.iter() {
            let later = |shape: &u32| self.searching.put_off.contains(&at) || self.pace.rests(*shape);
            let Some(shape) = gang.shape.filter(|shape| !later(shape)) else { continue };
            if self.queues.headroom(gang.queue, shape, self.shapes.need(shape)) > 0
                && let Ok(found) = Placing::new(&mut self.cluster, gang).place(&mut LOOKS_MAX.clone())
            {
                return Err(format!("{} waits, but there is room: {found:?}", gang.id));
            }
        }
        for demand in self.demands() {
            let Some(at) = demand.shape else {
                let waits = self.by_key.get(&demand.id()).copied();
                if demand.gang.zip(waits).is_some_and(|(gang, at)| self.fits_inside(gang, at)) {
                    return Err(format!(
                        "class {} of {} waits, but its group has room",
                        demand.key, demand.owner
                    ));
                }
                continue;
            };
            let Some(shape) = self.shapes.get(at) else { return Err("a demand without shape".into()) };
            if self.queues.headroom(demand.queue, at, &shape.need) == 0 {
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
        for entry in self.leases.iter().filter(|entry| entry.lease.node == id) {
            ids.insert(entry.lease.id);
            let found = self.leases.find(entry.lease.id);
            let place = found.and_then(|at| node.leases.get(self.leases.listed(at).on_node as usize));
            if place.copied() != found {
                return Err(format!("{id}: {} is not in its place", entry.lease.id));
            }
            if entry.inside.is_some() {
                continue;
            }
            for (kind, each) in &entry.need.amounts {
                let slots = if *kind == CPU { entry.running() } else { entry.lease.slots };
                *sums.entry(*kind).or_default() += each * i64::from(slots);
            }
            for grant in &entry.lease.devices {
                let kind = if grant.kind == Kind::Gpu { GPU } else { TPU };
                *devices.entry((kind, grant.index)).or_default() += grant.share.units();
            }
        }
        let mut bundles = BTreeSet::new();
        for (at, gang) in self.gangs.iter() {
            for (number, bundle) in (0..).zip(&gang.bundles) {
                let Some(bundle) =
                    bundle.as_ref().filter(|b| self.cluster.nodes.get(b.at).is_some_and(|n| n.id == id))
                else {
                    continue;
                };
                bundles.insert((at, number));
                for (kind, each) in &gang.needs[number as usize].amounts {
                    *sums.entry(*kind).or_default() += each;
                }
                for grant in &bundle.devices {
                    let kind = if grant.kind == Kind::Gpu { GPU } else { TPU };
                    *devices.entry((kind, grant.index)).or_default() += grant.share.units();
                }
                self.check_bundle(at, number, bundle)?;
            }
        }
        if bundles != node.bundles {
            return Err(format!("{id}: its bundles are {bundles:?}, but it counts {:?}", node.bundles));
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
        if ids.len() != node.leases.len() {
            return Err(format!("{id}: its leases are {ids:?}, but it counts {:?}", node.leases));
        }
        if !node.stale && *self.cluster.index.summary(node.spot) != node.summary() {
            return Err(format!("{id}: the index knows something else of it"));
        }
        for (number, kin) in self.cluster.kins.iter() {
            let of_kin = self.leases.iter().filter(|e| e.kin == Some(number) && e.lease.node == id);
            let slots: u32 = of_kin.map(|e| e.lease.slots).sum();
            if slots != kin.on.get(&at).copied().unwrap_or(0) {
                return Err(format!("{id} has {slots} slots of {}, but {:?}", kin.class.function, kin.on));
            }
            let apart = kin.class.strategy == Strategy::Apart && slots > 0;
            if apart != node.apart.contains(&number) {
                return Err(format!(
                    "{id} has {slots} slots of {}, but {:?}",
                    kin.class.function, node.apart
                ));
            }
        }
        Ok(())
    }

    fn check_bundle(&self, at: u32, number: u32, bundle: &Bundle) -> Result<(), String> {
        let mut sums: BTreeMap<usize, i64> = bundle.stock.left().collect();
        let mut devices: BTreeMap<(usize, u32), i64> = BTreeMap::new();
        for entry in self.leases.iter().filter(|entry| entry.inside == Some((at, number))) {
            for (kind, each) in &entry.need.amounts {
                let slots = if *kind == CPU { entry.running() } else { entry.lease.slots };
                *sums.entry(*kind).or_default() += each * i64::from(slots);
            }
            for grant in &entry.lease.devices {
                let kind = if grant.kind == Kind::Gpu { GPU } else { TPU };
                *devices.entry((kind, grant.index)).or_default() += grant.share.units();
            }
        }
        *sums.entry(CPU).or_default() -= bundle.stock.overdraft().units();
        sums.retain(|_, amount| *amount != 0);
        let totals: BTreeMap<usize, i64> = bundle.stock.totals().collect();
        let mut each = bundle.stock.devices();
        if sums != totals
            || each.any(|(kind, index, free, full)| free + devices.get(&(kind, index)).unwrap_or(&0) != full)
        {
            return Err(format!("bundle {number} has {sums:?} in use and free, of {totals:?}"));
        }
        Ok(())
    }

    fn check_owners(&self) -> Result<(), String> {
        let mut owners: BTreeMap<HostId, (BTreeSet<LeaseId>, usize)> = BTreeMap::new();
        for entry in self.leases.iter() {
            let (lease, id) = (&entry.lease, entry.lease.id);
            owners.entry(lease.owner).or_default().0.insert(id);
            let owner = self.owners.get(entry.owner).filter(|owner| owner.id == lease.owner);
            let found = self.leases.find(id);
            let listed = found.map(|at| self.leases.listed(at).of_owner as usize);
            let place = owner.zip(listed).and_then(|(owner, listed)| owner.leases.get(listed));
            if place.copied() != found {
                return Err(format!("{id} is not in its place at {}", lease.owner));
            }
            if self.cluster.find(lease.node) != Some(entry.at) {
                return Err(format!("{id} is on {}, which is gone", lease.node));
            }
            let one_with_devices = lease.devices.is_empty() || lease.slots == 1;
            if lease.slots == 0 || entry.blocked > lease.slots || !one_with_devices {
                return Err(format!("{id} has {} slots, {} of them waiting", lease.slots, entry.blocked));
            }
            let due = self.expiries.iter().filter(|queued| queued.0.1 == id && queued.0.0 <= lease.expires);
            if due.count() != 1 {
                return Err(format!("{id} is not among the expiries once"));
            }
        }
        for key in self.by_key.keys() {
            owners.entry(key.owner).or_default().1 += 1;
        }
        let counted = self.owner_of.iter().filter_map(|(owner, at)| Some((*owner, self.owners.get(*at)?)));
        let ids = |list: &[u32]| self.leases.ids(list).into_iter().collect::<BTreeSet<LeaseId>>();
        if owners != counted.map(|(owner, has)| (owner, (ids(&has.leases), has.demands))).collect() {
            return Err("the table of owners disagrees with what they have".into());
        }
        let known = |demand: &crate::Demand| {
            self.owners.get(demand.who).is_some_and(|owner| owner.id == demand.owner)
        };
        if self.owners.len() != owners.len() || !self.demands().all(known) {
            return Err("an owner is not in its place".into());
        }
        Ok(())
    }

    fn check_queues(&self) -> Result<(), String> {
        let mut held: BTreeMap<(u32, JobId), u64> = BTreeMap::new();
        let mut usage: BTreeMap<(u32, usize), i128> = BTreeMap::new();
        let mut gangs = 0;
        for (_, gang) in self.gangs.iter() {
            gangs += usize::from(gang.shape.is_some());
            let placed = gang.needs.iter().zip(&gang.bundles).filter(|(_, bundle)| bundle.is_some());
            for (need, _) in placed {
                *held.entry((gang.queue, gang.job)).or_default() += 1;
                for queue in self.queues.above(gang.queue) {
                    for (kind, each) in &need.amounts {
                        *usage.entry((queue, *kind)).or_default() += i128::from(*each);
                    }
                }
            }
            if gang.shape.is_some() == gang.missing().is_empty() {
                return Err(format!("{} waits, and lacks {:?}", gang.id, gang.missing()));
            }
            // All or nothing: what was placed once may lose bundles, but none is there before all were.
            if gang.bundles.iter().all(Option::is_none) && self.leases.iter().any(|e| self.is_inside(e, gang))
            {
                return Err(format!("{} has leases, but no bundles", gang.id));
            }
        }
        for entry in self.leases.iter().filter(|entry| entry.inside.is_none()) {
            if self.queues.job(entry.queue, entry.lease.job) != Some(entry.job) {
                return Err(format!("{} is not charged to its job", entry.lease.id));
            }
            *held.entry((entry.queue, entry.lease.job)).or_default() += u64::from(entry.lease.slots);
            for queue in self.queues.above(entry.queue) {
                for (kind, each) in &entry.need.amounts {
                    let slots = if *kind == CPU { entry.running() } else { entry.lease.slots };
                    *usage.entry((queue, *kind)).or_default() += i128::from(*each) * i128::from(slots);
                }
            }
        }
        let mut waiting = 0;
        for queue in 0..self.queues.len() {
            for (job, slots) in self.queues.held(queue) {
                if held.remove(&(queue, job)) != Some(slots) {
                    return Err(format!("{job} does not hold {slots} slots"));
                }
            }
            waiting += self.queues.waiting(queue).count();
        }
        let inside = self.demands().filter(|demand| demand.gang.is_some()).count();
        let wait = self.by_key.len() - inside + gangs;
        if !held.is_empty() || waiting != wait || waiting != self.queues.count(TOP) {
            return Err(format!("{waiting} demands have a turn, and {wait} wait"));
        }
        self.check_shifts()?;
        for queue in 0..self.queues.len() {
            for kind in 0..self.cluster.kinds.len() {
                let uses = usage.get(&(queue, kind)).copied().unwrap_or_default();
                if uses != self.queues.usage(queue, kind) || (uses != 0) != self.queues.uses(queue, kind) {
                    return Err(format!("queue {} does not use {uses}", self.queues.get(queue).name));
                }
            }
        }
        debug_assert_eq!(self.queues.get(TOP).parent, None);
        Ok(())
    }

    /// What is being given up, and what nodes are kept for.
    fn check_shifts(&self) -> Result<(), String> {
        let mut shifts: BTreeMap<(u32, usize), (i128, i128)> = BTreeMap::new();
        let mut add = |queue: u32, amounts: &[(usize, i64)], leaving: i128, coming: i128| {
            for queue in self.queues.above(queue) {
                for (kind, each) in amounts {
                    let sums = shifts.entry((queue, *kind)).or_default();
                    (sums.0, sums.1) =
                        (sums.0 + i128::from(*each) * leaving, sums.1 + i128::from(*each) * coming);
                }
            }
        };
        for entry in self.leases.iter() {
            if entry.giving > entry.lease.slots || entry.giving > 0 && entry.inside.is_some() {
                return Err(format!("{} gives up {} slots", entry.lease.id, entry.giving));
            }
            let (giving, running) = entry.leaving();
            for (kind, each) in &entry.need.amounts {
                let slots = if *kind == CPU { running } else { giving };
                add(entry.queue, &[(*kind, *each)], slots.into(), 0);
            }
        }
        for gang in self.gangs.iter().map(|(_, gang)| gang).filter(|gang| gang.until.is_some()) {
            gang.needs.iter().for_each(|need| add(gang.queue, &need.amounts, 1, 0));
        }
        for (at, node) in self.nodes_by_number() {
            if node.kept.is_some() != self.preempting.kept.contains(&at) {
                return Err(format!("{} is kept, or not", node.id));
            }
            if let Some(kept) = &node.kept {
                add(kept.queue, &kept.need.amounts, 0, kept.slots.into());
                if self.shapes.get(kept.shape).is_none() || kept.slots == 0 {
                    return Err(format!("{} is kept for nothing", node.id));
                }
            }
        }
        for queue in 0..self.queues.len() {
            for kind in 0..self.cluster.kinds.len() {
                let sums = shifts.get(&(queue, kind)).copied().unwrap_or_default();
                if sums != self.queues.shifts(queue, kind) {
                    return Err(format!(
                        "queue {} does not give up and get {sums:?}",
                        self.queues.get(queue).name
                    ));
                }
            }
        }
        Ok(())
    }

    fn is_inside(&self, entry: &Entry, gang: &Gang) -> bool {
        entry.inside.and_then(|(at, _)| self.gangs.get(at)).is_some_and(|of| of.id == gang.id)
    }

    fn check_demands(&self) -> Result<(), String> {
        let mut users: BTreeMap<u32, u32> = BTreeMap::new();
        for (key, at) in &self.by_key {
            let Some(demand) = self.demands.get(*at) else { return Err("a key without demand".into()) };
            let turn = demand.turn(*at, self.options.ageing);
            let waits = match (demand.shape, demand.gang) {
                (Some(shape), None) => {
                    *users.entry(shape).or_default() += 1;
                    self.queues.waits(demand.queue, demand.job, shape, turn)
                }
                (None, Some(gang)) => self.gangs.get(gang).is_some_and(|gang| gang.waiting.contains(&turn)),
                _ => false,
            };
            if demand.id() != *key || demand.backlog == 0 || !waits {
                return Err(format!("{key:?} does not wait in its turn"));
            }
        }
        self.gangs
            .iter()
            .filter_map(|(_, gang)| gang.shape)
            .for_each(|shape| *users.entry(shape).or_default() += 1);
        let counted: BTreeMap<u32, u32> = self.shapes.iter().map(|(id, shape)| (id, shape.users)).collect();
        if users != counted {
            return Err(format!("shapes are used {users:?}, but count {counted:?}"));
        }
        Ok(())
    }
}
