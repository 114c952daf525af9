//! The state of the scheduler, and how an event changes it.

mod ask;
mod check;
mod place;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use mobula_proto::{
    HostId, JobId, LeaseId, NodeId, Resources,
    resource::{Kind, LabelRule},
};

use crate::{
    Demand, Effect, Error, Event, LeaseView, Millis, NodeView, RevokeKind, Unmet,
    demand::{self, PER_OWNER_MAX, Turn},
    lease::Entry,
    node::{Node, times},
    why,
};

/// How a scheduler behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Breaks ties between equally good nodes; 0 prefers the lowest node number. Default 0.
    pub seed: u64,
    /// How long a lease lasts unless renewed. Default 1 s. Shorter frees the leases of a silent owner sooner and
    /// costs more renewals.
    pub term: Millis,
    /// The number of the first lease granted, above all granted by a predecessor. Default 1.
    pub first_lease: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, term: Millis(1000), first_lease: 1 }
    }
}

/// Decides which node runs the work of which class. See the text of the crate.
#[derive(Debug)]
pub struct Scheduler {
    options: Options,
    now: Millis,
    next_lease: u64,
    next_arrival: u64,
    /// Living nodes by number.
    nodes: BTreeMap<u32, Node>,
    /// The newest incarnation seen of each node number.
    newest: BTreeMap<u32, u32>,
    leases: BTreeMap<LeaseId, Entry>,
    /// When each lease ends, soonest first.
    expiries: BTreeSet<(Millis, LeaseId)>,
    by_owner: BTreeMap<HostId, BTreeSet<LeaseId>>,
    /// Slots that each job holds.
    slots_held: BTreeMap<JobId, u64>,
    demands: BTreeMap<demand::Key, Demand>,
    /// The same demands in the order in which they are looked at.
    waiting: BTreeSet<Turn>,
    /// Nodes where capacity became free in this step.
    freed: BTreeSet<u32>,
}

impl Scheduler {
    /// A scheduler that knows no nodes yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            now: Millis(0),
            next_lease: options.first_lease,
            next_arrival: 0,
            nodes: BTreeMap::new(),
            newest: BTreeMap::new(),
            leases: BTreeMap::new(),
            expiries: BTreeSet::new(),
            by_owner: BTreeMap::new(),
            slots_held: BTreeMap::new(),
            demands: BTreeMap::new(),
            waiting: BTreeSet::new(),
            freed: BTreeSet::new(),
        }
    }

    /// What follows from `event`, in the order in which it should be done.
    pub fn step(&mut self, event: Event, now: Millis) -> Vec<Effect> {
        let mut out = Vec::new();
        self.step_into(event, now, &mut out);
        out
    }

    /// As [`Scheduler::step`], appending to `out`. A `now` before an earlier one counts as the earlier one.
    pub fn step_into(&mut self, event: Event, now: Millis, out: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        let valid = event.validate();
        match event {
            Event::NodeUp { node, total, devices, labels } => {
                if valid.is_ok() {
                    self.node_up(node, || Node::new(node, total, &devices, labels), out);
                }
            }
            Event::NodeDown { node } => {
                if self.is_current(node) {
                    self.node_lost(node, out);
                    self.judge_all(out);
                } else {
                    self.hosts_gone(node..=node, out);
                }
            }
            Event::NodeDrain { node } => {
                if let Some(found) = self.nodes.get_mut(&node.number).filter(|n| n.id == node) {
                    found.draining = true;
                }
            }
            Event::Demand { owner, key, job, class, backlog, attempt, locality } => {
                let new = Demand {
                    owner,
                    key,
                    job,
                    class,
                    backlog,
                    attempt,
                    arrival: self.next_arrival,
                    since: self.now,
                    locality: demand::tidy_locality(&locality),
                    asked: None,
                };
                self.demand(new, valid, out);
            }
            Event::Renew { lease } => self.renew(lease),
            Event::Release { lease } => self.end(lease, None, out),
            Event::Shrink { lease, .. } => self.end(lease, None, out),
            Event::JobGone { job } => self.job_gone(job, out),
            Event::Queues(_) | Event::GroupGone { .. } => {}
            Event::Group { group, .. } => {
                let error = Error::Infeasible("groups cannot be placed yet".to_owned());
                out.push(Effect::GroupInfeasible { group, error });
            }
            Event::Block { lease, slots } => self.block(lease, slots),
            Event::Unblock { lease, slots } => self.unblock(lease, slots),
            Event::OwnerGone { owner } => self.owner_gone(owner, out),
            Event::Tick => {
                self.expire(out);
                // Ask only for those who wait even after that.
                self.place_freed(out);
                self.ask_all(out);
            }
        }
        self.place_freed(out);
    }

    /// When [`Event::Tick`] is next of use: when a term ends, or holders may be asked again for those who wait.
    pub fn next_tick(&self) -> Option<Millis> {
        let expiry = self.expiries.first().map(|(at, _)| *at);
        let ask = self.demands.values().map(|d| d.asked.unwrap_or(d.since).plus(ask::ASK_INTERVAL)).min();
        expiry.into_iter().chain(ask).min()
    }

    /// What a demand waits for, in a sentence; `None` when nothing of it waits.
    pub fn why(&self, owner: HostId, key: u32) -> Option<String> {
        let demand = self.demands.get(&demand::Key { owner, key })?;
        Some(why::waits(demand, &self.nodes))
    }

    /// What waits, as shapes for which nodes could be added; what waits for its turn in a queue that has a limit is
    /// counted only up to that.
    pub fn unmet(&self) -> Vec<Unmet> {
        let mut shapes: BTreeMap<(&Resources, &[LabelRule]), u64> = BTreeMap::new();
        for demand in self.demands.values() {
            let shape = (&demand.class.resources, demand.class.labels.as_slice());
            *shapes.entry(shape).or_default() += u64::from(demand.backlog);
        }
        let gang = None;
        let shape = |((resources, labels), count): ((&Resources, &[LabelRule]), u64)| Unmet {
            resources: resources.clone(),
            labels: labels.to_vec(),
            count,
            gang,
        };
        shapes.into_iter().map(shape).collect()
    }

    /// The living nodes, by number.
    pub fn nodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.nodes.values().map(Node::view)
    }

    /// The leases, oldest first.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView<'_>> {
        self.leases.values().map(|entry| LeaseView { lease: &entry.lease, blocked: entry.blocked })
    }

    /// One lease.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView<'_>> {
        self.leases.get(&id).map(|entry| LeaseView { lease: &entry.lease, blocked: entry.blocked })
    }

    /// What waits, by owner and key.
    pub fn demands(&self) -> impl Iterator<Item = &Demand> {
        self.demands.values()
    }

    fn is_current(&self, node: NodeId) -> bool {
        self.nodes.get(&node.number).is_some_and(|n| n.id == node)
    }

    /// Whether this incarnation of a node is known to be over. One that has not joined yet is not.
    fn is_over(&self, node: NodeId) -> bool {
        !self.is_current(node) && self.newest.get(&node.number).is_some_and(|n| *n >= node.incarnation)
    }

    fn node_up(&mut self, id: NodeId, make: impl FnOnce() -> Node, out: &mut Vec<Effect>) {
        if self.newest.get(&id.number).is_some_and(|newest| *newest >= id.incarnation) {
            return;
        }
        if let Some(old) = self.nodes.get(&id.number).map(|n| n.id) {
            self.node_lost(old, out);
        }
        // Hosts may have asked before their node joined.
        let oldest = NodeId { number: id.number, incarnation: 0 };
        if let Some(before) = id.incarnation.checked_sub(1) {
            self.hosts_gone(oldest..=NodeId { number: id.number, incarnation: before }, out);
        }
        self.newest.insert(id.number, id.incarnation);
        self.nodes.insert(id.number, make());
        self.freed.insert(id.number);
        self.judge_all(out);
    }

    fn node_lost(&mut self, id: NodeId, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.remove(&id.number) else { return };
        self.freed.remove(&id.number);
        for lease in node.leases {
            let orphan = self.leases.get(&lease).is_some_and(|entry| entry.lease.owner.node == id);
            self.end(lease, (!orphan).then_some(RevokeKind::NodeLost), out);
        }
        self.hosts_gone(id..=id, out);
    }

    /// No host of these incarnations of a node lives any more.
    fn hosts_gone(&mut self, nodes: RangeInclusive<NodeId>, out: &mut Vec<Effect>) {
        let first = HostId { node: *nodes.start(), seq: 0 };
        let last = HostId { node: *nodes.end(), seq: u32::MAX };
        let mut gone: BTreeSet<HostId> = self.by_owner.range(first..=last).map(|(owner, _)| *owner).collect();
        let keys = demand::Key { owner: first, key: 0 }..=demand::Key { owner: last, key: u32::MAX };
        gone.extend(self.demands.range(keys).map(|(key, _)| key.owner));
        for owner in gone {
            self.owner_gone(owner, out);
        }
    }

    fn owner_gone(&mut self, owner: HostId, out: &mut Vec<Effect>) {
        let keys: Vec<_> = self.demands.range(demand::Key::all_of(owner)).map(|(key, _)| *key).collect();
        for key in keys {
            self.withdraw(key);
        }
        for lease in self.by_owner.get(&owner).cloned().unwrap_or_default() {
            self.end(lease, None, out);
        }
    }

    fn job_gone(&mut self, job: JobId, out: &mut Vec<Effect>) {
        let keys: Vec<_> = self.demands.values().filter(|d| d.job == job).map(Demand::id).collect();
        for key in keys {
            self.withdraw(key);
        }
        let leases: Vec<_> =
            self.leases.values().filter(|e| e.lease.job == job).map(|e| e.lease.id).collect();
        for lease in leases {
            self.end(lease, None, out);
        }
    }

    fn demand(&mut self, mut new: Demand, valid: Result<(), Error>, out: &mut Vec<Effect>) {
        let key = new.id();
        if self.is_over(new.owner.node) {
            return;
        }
        let old = self.withdraw(key);
        if new.backlog == 0 {
            return;
        }
        let valid = valid.and_then(|()| match old {
            None if self.demands.range(demand::Key::all_of(new.owner)).count() >= PER_OWNER_MAX => {
                Err(Error::TooMany { who: new.owner.to_string(), what: "classes", max: PER_OWNER_MAX })
            }
            _ => Ok(()),
        });
        if let Err(error) = valid {
            out.push(Effect::Infeasible { owner: new.owner, key: new.key, error });
            return;
        }
        match old {
            Some(old) if old.class == new.class && old.job == new.job => {
                // The same wish, longer or shorter: it keeps its turn.
                (new.class, new.arrival, new.since, new.asked) =
                    (old.class, old.arrival, old.since, old.asked);
            }
            _ => self.next_arrival += 1,
        }
        self.waiting.insert(new.turn());
        self.demands.insert(key, new);
        if self.judge(key, out) {
            self.place_one(key, out);
            self.ask(key, out);
        }
    }

    fn withdraw(&mut self, key: demand::Key) -> Option<Demand> {
        let demand = self.demands.remove(&key)?;
        self.waiting.remove(&demand.turn());
        Some(demand)
    }

    /// Whether the demand may wait. Reports and forgets one that no living node could ever satisfy.
    fn judge(&mut self, key: demand::Key, out: &mut Vec<Effect>) -> bool {
        let Some(demand) = self.demands.get(&key) else { return false };
        let class = &demand.class;
        let hopeless =
            self.nodes.values().any(Node::works) && !self.nodes.values().any(|n| n.could_ever(class));
        if !hopeless || class.wait_for_node {
            return true;
        }
        let error = Error::Infeasible(why::missing(class, &self.nodes));
        out.push(Effect::Infeasible { owner: key.owner, key: key.key, error });
        self.withdraw(key);
        false
    }

    fn judge_all(&mut self, out: &mut Vec<Effect>) {
        let keys: Vec<_> = self.waiting.iter().map(|turn| turn.3).collect();
        for key in keys {
            self.judge(key, out);
        }
    }

    fn renew(&mut self, id: LeaseId) {
        let Some(entry) = self.leases.get_mut(&id) else { return };
        self.expiries.remove(&(entry.lease.expires, id));
        entry.lease.expires = self.now.plus(entry.lease.term);
        self.expiries.insert((entry.lease.expires, id));
    }

    fn expire(&mut self, out: &mut Vec<Effect>) {
        while let Some((at, id)) = self.expiries.first().copied().filter(|(at, _)| *at <= self.now) {
            self.end(id, Some(RevokeKind::Expired), out);
            // Ending removes it; this only makes the loop's end evident.
            self.expiries.remove(&(at, id));
        }
    }

    fn block(&mut self, id: LeaseId, slots: u32) {
        let Some(entry) = self.leases.get_mut(&id) else { return };
        let slots = slots.min(entry.lease.slots - entry.blocked);
        entry.blocked += slots;
        let cpu = times(entry.lease.class.resources.get(&Kind::Cpu), slots);
        if let Some(node) = self.nodes.get_mut(&entry.lease.node.number).filter(|_| !cpu.is_zero()) {
            node.give(&Kind::Cpu, cpu);
            self.freed.insert(entry.lease.node.number);
        }
    }

    fn unblock(&mut self, id: LeaseId, slots: u32) {
        let Some(entry) = self.leases.get_mut(&id) else { return };
        let slots = slots.min(entry.blocked);
        entry.blocked -= slots;
        let cpu = times(entry.lease.class.resources.get(&Kind::Cpu), slots);
        if let Some(node) = self.nodes.get_mut(&entry.lease.node.number) {
            node.take_cpu_back(cpu);
        }
    }

    /// Ends a lease and frees what it held, telling its owner where `kind` says why.
    fn end(&mut self, id: LeaseId, kind: Option<RevokeKind>, out: &mut Vec<Effect>) {
        let Some(entry) = self.leases.remove(&id) else { return };
        let lease = &entry.lease;
        self.expiries.remove(&(lease.expires, id));
        if let Some(ids) = self.by_owner.get_mut(&lease.owner) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_owner.remove(&lease.owner);
            }
        }
        if let Some(held) = self.slots_held.get_mut(&lease.job) {
            *held = held.saturating_sub(lease.slots.into());
            if *held == 0 {
                self.slots_held.remove(&lease.job);
            }
        }
        if let Some(node) = self.nodes.get_mut(&lease.node.number).filter(|n| n.id == lease.node) {
            for (kind, amount) in entry.held() {
                node.give(kind, amount);
            }
            node.give_devices(&lease.devices);
            node.forget_slots(lease.job, &lease.class, lease.slots);
            node.leases.remove(&id);
            self.freed.insert(lease.node.number);
        }
        if let Some(kind) = kind {
            let slots = lease.slots;
            out.push(Effect::Revoke { lease: id, owner: lease.owner, node: lease.node, slots, kind });
        }
        out.push(Effect::Ended { lease: id, node: lease.node });
    }
}
