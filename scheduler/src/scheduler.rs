//! The state of the scheduler, and how an event changes it.

mod ask;
mod check;
mod export;
pub mod groups;
mod place;
pub mod preempt;
mod reasons;
pub(crate) mod starve;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    ops::RangeInclusive,
};

use mobula_proto::{
    GroupId, HostId, JobId, LeaseId, NodeId, Quantity, Queue, Resources,
    resource::{Device, Kind, Label, Strategy},
};

use crate::{
    Demand, Effect, Error, Event, LeaseView, Millis, NodeView, RevokeKind,
    cluster::Cluster,
    demand::{self, PER_OWNER_MAX},
    gang::{Bundle, Gang, pace::Pace, search::Allowance},
    lease::{Entry, Leases},
    node::Node,
    queues::{DEFAULT, Queues},
    shapes::{self, ShapeId, Shapes},
    slab::Slab,
    stock::{CPU, Need},
    why,
};

pub use preempt::Preempt;
pub use reasons::Reasons;

/// How a scheduler behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Decides the order of equally good nodes; 0 prefers the lowest node number. Default 0.
    pub seed: u64,
    /// How long a lease lasts unless renewed. Default 1 s. Shorter frees the leases of a silent owner sooner and
    /// costs more renewals.
    pub term: Millis,
    /// The number of the first lease granted, above all granted by a predecessor. Default 1.
    pub first_lease: u64,
    /// How long something waits until it counts as if its priority were one higher. Default 30 s. Longer lets what
    /// matters more go first for longer; what matters less then waits longer, at most this times the difference. What
    /// has waited so long, and once more for each priority that others are ahead, has a node kept for it alone.
    pub ageing: Millis,
    /// When others must make room for what waits.
    pub preempt: Preempt,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            term: Millis(1000),
            first_lease: 1,
            ageing: Millis(30_000),
            preempt: Preempt::default(),
        }
    }
}

/// What an owner has: at least one lease or demand.
#[derive(Debug)]
struct Owner {
    id: HostId,
    /// By place, in no order.
    leases: Vec<u32>,
    /// How many of its classes wait.
    demands: usize,
}

/// How often labels that tell nodes apart for nobody any more are forgotten: as a rule they are named again before.
const TIDIED_EACH: Millis = Millis(60_000);

/// Decides which node runs the work of which class. See the text of the crate.
#[derive(Debug)]
pub struct Scheduler {
    options: Options,
    now: Millis,
    next_lease: u64,
    next_arrival: u64,
    cluster: Cluster,
    /// The newest incarnation seen of each node number.
    newest: BTreeMap<u32, u32>,
    leases: Leases,
    /// When each lease ends, soonest first, as of some time ago: what was renewed since is put back when its time comes,
    /// and what has ended is dropped.
    expiries: BinaryHeap<Reverse<(Millis, LeaseId)>>,
    owners: Slab<Owner>,
    owner_of: BTreeMap<HostId, u32>,
    demands: Slab<Demand>,
    by_key: BTreeMap<demand::Key, u32>,
    shapes: Shapes,
    gangs: Slab<Gang>,
    gang_of: BTreeMap<GroupId, u32>,
    /// How many groups each job has.
    groups_of: BTreeMap<JobId, usize>,
    /// Groups inside of which something became free in this step, and where.
    roomy: BTreeMap<u32, groups::Roomy>,
    /// Groups inside of which bundles are held, and until when at least one of them is.
    holding: BTreeMap<u32, Millis>,
    /// Nodes that drain.
    draining: BTreeSet<u32>,
    queues: Queues,
    /// Nodes where capacity became free in this step.
    freed: Vec<u32>,
    asking: ask::Asking,
    preempting: preempt::Preempting,
    /// Groups that lack bundles.
    waiting_gangs: usize,
    searching: Allowance,
    pace: Pace,
    /// When labels were last forgotten.
    tidied: Millis,
    /// How often all that waits was judged.
    #[cfg(test)]
    pub(crate) judged: usize,
    /// How many nodes were looked at to judge groups.
    #[cfg(test)]
    pub(crate) visited: std::cell::Cell<usize>,
}

impl Scheduler {
    /// A scheduler that knows no nodes yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            now: Millis(0),
            next_lease: options.first_lease,
            next_arrival: 0,
            cluster: Cluster::new(options.seed),
            newest: BTreeMap::new(),
            leases: Leases::default(),
            expiries: BinaryHeap::new(),
            owners: Slab::new(),
            owner_of: BTreeMap::new(),
            demands: Slab::new(),
            by_key: BTreeMap::new(),
            shapes: Shapes::new(),
            gangs: Slab::new(),
            gang_of: BTreeMap::new(),
            groups_of: BTreeMap::new(),
            roomy: BTreeMap::new(),
            holding: BTreeMap::new(),
            draining: BTreeSet::new(),
            queues: Queues::new(),
            freed: Vec::new(),
            asking: ask::Asking::default(),
            preempting: preempt::Preempting::default(),
            waiting_gangs: 0,
            searching: Allowance::default(),
            pace: Pace::default(),
            tidied: Millis(0),
            #[cfg(test)]
            judged: 0,
            #[cfg(test)]
            visited: std::cell::Cell::new(0),
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
                    self.node_up(node, total, &devices, labels, out);
                }
            }
            Event::NodeDown { node } => {
                if let Some(at) = self.cluster.find(node) {
                    self.node_lost(at, out);
                    self.judge_all(out);
                } else {
                    self.hosts_gone(node..=node, out);
                }
            }
            Event::NodeDrain { node } => self.set_draining(node, true),
            Event::NodeResume { node } => self.set_draining(node, false),
            Event::Demand { owner, key, job, class, backlog, attempt, locality } => {
                let now = self.now;
                let new = Demand {
                    owner,
                    key,
                    job,
                    class,
                    backlog,
                    attempt,
                    arrival: self.next_arrival,
                    since: now,
                    locality: demand::tidy_locality(&locality),
                    served: now,
                    shape: None,
                    queue: DEFAULT,
                    who: 0,
                    kin: None,
                    gang: None,
                    asked_from: 0,
                    looked_from: 0,
                };
                let key = new.id();
                self.demand(new, valid, out);
                self.place_all(out);
                self.ask_for(key, out);
            }
            Event::Announced { lease } => {
                self.renew(lease);
                self.ask_newcomer(lease, out);
            }
            Event::Renew { lease } => self.renew(lease),
            Event::Release { lease } => self.end(lease, None, out),
            Event::Shrink { lease, slots } => self.shrink(lease, slots, out),
            Event::JobGone { job } => self.job_gone(job, out),
            Event::Queues(queues) => {
                if valid.is_ok() {
                    self.set_queues(queues, out);
                }
            }
            Event::Group { group, job, spec } => self.group(group, job, spec, valid, out),
            Event::Promised { group, spec } => self.promised(group, spec, valid, out),
            Event::GroupGone { group } => {
                let at = self.gang_of.get(&group).copied();
                at.into_iter().for_each(|at| self.group_gone(at, out));
            }
            Event::Block { lease, slots } => self.block(lease, slots),
            Event::Unblock { lease, slots } => self.unblock(lease, slots),
            Event::OwnerGone { owner } => self.owner_gone(owner, out),
            Event::Tick => {
                self.search_again();
                self.hold_no_longer();
                if self.now >= self.tidied.plus(TIDIED_EACH) {
                    self.tidied = self.now;
                    self.cluster.forget_keys();
                }
                self.expire(out);
                self.evict(out);
                // Ask only for those who wait even after that.
                self.place_all(out);
                self.ask_some(out);
                self.preempt_some(out);
            }
        }
        self.place_all(out);
        self.tidy_expiries();
    }

    /// When [`Event::Tick`] is next of use: when a term ends, or holders may be asked again for those who wait.
    pub fn next_tick(&self) -> Option<Millis> {
        let expiry = self.expiries.peek().map(|Reverse((at, _))| *at);
        let search = self.searching.next().into_iter().chain(self.pace.next());
        let held = self.holding.values().copied().min();
        let looks = self.next_ask().into_iter().chain(self.next_preempt());
        expiry.into_iter().chain(looks).chain(search).chain(held).min()
    }

    /// How many groups of nodes searches tell apart.
    #[cfg(test)]
    pub(crate) fn node_groups(&self) -> usize {
        self.cluster.index.count()
    }

    /// How many leases the last look looked through, to make room for demands.
    #[cfg(test)]
    pub(crate) fn looked(&self) -> usize {
        self.preempting.looked
    }

    /// How often places were looked for, for one bundle of a group.
    #[cfg(test)]
    pub(crate) fn takes(&self) -> usize {
        self.cluster.takes
    }

    /// How many leases were looked at to make room, and how often it was asked whether something may be taken from another
    /// queue.
    #[cfg(test)]
    pub(crate) fn examined(&self) -> (usize, usize) {
        self.preempting.examined.get()
    }

    /// What is free of each of a node's devices, by kind and index.
    pub fn free_devices(&self, node: NodeId) -> Vec<(Kind, Quantity)> {
        let found = self.cluster.find(node).and_then(|at| self.cluster.nodes.get(at));
        found.map(|found| found.stock.free_devices(&self.cluster.kinds)).unwrap_or_default()
    }

    fn set_draining(&mut self, node: NodeId, draining: bool) {
        let Some(at) = self.cluster.find(node) else { return };
        if let Some(found) = self.cluster.nodes.get_mut(at) {
            found.draining = draining;
            // Their bundles are granted from again, or may be empty and move.
            for (gang, bundle) in &found.bundles {
                self.roomy.entry(*gang).or_default().bundles.insert(*bundle);
            }
        }
        if draining {
            self.draining.insert(at);
            self.lift_with(at);
        } else {
            self.draining.remove(&at);
        }
        self.cluster.touch(at);
        if !draining {
            self.freed.push(at);
        }
    }

    /// The living nodes, by number.
    pub fn nodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.nodes_by_number().map(|(_, node)| node.view(&self.cluster.kinds))
    }

    /// One node.
    pub fn node(&self, node: NodeId) -> Option<NodeView<'_>> {
        let at = self.cluster.find(node)?;
        Some(self.cluster.nodes.get(at)?.view(&self.cluster.kinds))
    }

    fn nodes_by_number(&self) -> impl Iterator<Item = (u32, &Node)> {
        let all = self.cluster.by_number.values();
        all.filter_map(|at| Some((*at, self.cluster.nodes.get(*at)?)))
    }

    /// The leases, oldest first.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView<'_>> {
        let mut all: Vec<&Entry> = self.leases.iter().collect();
        all.sort_unstable_by_key(|entry| entry.lease.id);
        all.into_iter().map(|entry| entry.view())
    }

    /// One lease.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView<'_>> {
        self.leases.get(id).map(|entry| entry.view())
    }

    /// What waits, by owner and key.
    pub fn demands(&self) -> impl Iterator<Item = &Demand> {
        self.by_key.values().filter_map(|at| self.demands.get(*at))
    }

    /// Whether this incarnation of a node is known to be over. One that has not joined yet is not.
    fn is_over(&self, node: NodeId) -> bool {
        self.cluster.find(node).is_none()
            && self.newest.get(&node.number).is_some_and(|n| *n >= node.incarnation)
    }

    fn node_up(
        &mut self,
        id: NodeId,
        total: Resources,
        devices: &[Device],
        labels: Vec<Label>,
        out: &mut Vec<Effect>,
    ) {
        if self.newest.get(&id.number).is_some_and(|newest| *newest >= id.incarnation) {
            return;
        }
        let replaces = self.cluster.by_number.get(&id.number).copied();
        if let Some(old) = replaces {
            self.node_lost(old, out);
        }
        let first = self.cluster.workers == 0;
        // Hosts may have asked before their node joined.
        let oldest = NodeId { number: id.number, incarnation: 0 };
        if let Some(before) = id.incarnation.checked_sub(1) {
            self.hosts_gone(oldest..=NodeId { number: id.number, incarnation: before }, out);
        }
        self.newest.insert(id.number, id.incarnation);
        let (at, learnt) = self.cluster.add(id, total, devices, labels);
        if learnt {
            self.shapes.learn(&self.cluster.kinds);
            self.queues.learn(&self.cluster.kinds);
            self.learn_gangs();
        }
        self.queues.totals(&self.cluster.totals);
        self.freed.push(at);
        // What another node could hold is no less possible with one more.
        if first || replaces.is_some() {
            self.judge_all(out);
        }
    }

    fn node_lost(&mut self, at: u32, out: &mut Vec<Effect>) {
        self.lift_with(at);
        self.draining.remove(&at);
        let Some(node) = self.cluster.remove(at) else { return };
        self.freed.retain(|freed| *freed != at);
        self.queues.totals(&self.cluster.totals);
        for lease in self.leases.ids(&node.leases) {
            let orphan = self.leases.get(lease).is_some_and(|entry| entry.lease.owner.node == node.id);
            self.end(lease, (!orphan).then_some(RevokeKind::NodeLost), out);
        }
        self.bundles_lost(node.bundles, RevokeKind::NodeLost, out);
        self.hosts_gone(node.id..=node.id, out);
    }

    /// No host of these incarnations of a node lives any more.
    fn hosts_gone(&mut self, nodes: RangeInclusive<NodeId>, out: &mut Vec<Effect>) {
        let first = HostId { node: *nodes.start(), seq: 0 };
        let last = HostId { node: *nodes.end(), seq: u32::MAX };
        let gone: Vec<HostId> = self.owner_of.range(first..=last).map(|(owner, _)| *owner).collect();
        for owner in gone {
            self.owner_gone(owner, out);
        }
    }

    fn owner_gone(&mut self, owner: HostId, out: &mut Vec<Effect>) {
        let demands: Vec<u32> =
            self.by_key.range(demand::Key::all_of(owner)).map(|(_, demand)| *demand).collect();
        for demand in demands {
            self.withdraw(demand);
        }
        let owned = self.owner_of.get(&owner).and_then(|at| self.owners.get(*at));
        let leases = owned.map(|owner| self.leases.ids(&owner.leases));
        for lease in leases.into_iter().flatten() {
            self.end(lease, None, out);
        }
    }

    fn job_gone(&mut self, job: JobId, out: &mut Vec<Effect>) {
        let demands: Vec<u32> = self.demands.iter().filter(|(_, d)| d.job == job).map(|(at, _)| at).collect();
        for demand in demands {
            self.withdraw(demand);
        }
        let of_job = self.leases.iter().filter(|e| e.lease.job == job);
        let mut leases: Vec<LeaseId> = of_job.map(|e| e.lease.id).collect();
        leases.sort_unstable();
        for lease in leases {
            self.end(lease, None, out);
        }
        let gangs: Vec<u32> = self.gangs.iter().filter(|(_, g)| g.job == job).map(|(at, _)| at).collect();
        for gang in gangs {
            self.group_gone(gang, out);
        }
    }

    fn demand(&mut self, mut new: Demand, valid: Result<(), Error>, out: &mut Vec<Effect>) {
        let key = new.id();
        if self.is_over(new.owner.node) {
            return;
        }
        let known = self.by_key.get(&key).copied();
        if new.backlog == 0 {
            known.into_iter().for_each(|at| drop(self.withdraw(at)));
            return;
        }
        if let Some((at, old)) = known.and_then(|at| Some((at, self.demands.get_mut(at)?)))
            && old.job == new.job
            && old.class == new.class
        {
            // The same wish, longer or shorter: it keeps its turn.
            (old.backlog, old.attempt, old.locality) = (new.backlog, new.attempt, new.locality);
            if let Some(gang) = old.gang {
                self.roomy.entry(gang).or_default().demands.insert(at);
            }
            self.look_again(at);
            return;
        }
        known.into_iter().for_each(|at| drop(self.withdraw(at)));
        let place = valid.and_then(|()| self.check(&new, known.is_some()));
        (new.queue, new.gang) = match place {
            Ok(place) => place,
            Err(error) => {
                out.push(Effect::Infeasible { owner: new.owner, key: new.key, error });
                return;
            }
        };
        self.next_arrival += 1;
        let at = self.enter(new);
        self.judge(at, out);
    }

    /// In which queue or group a demand is to wait, if it may.
    fn check(&self, new: &Demand, replaces: bool) -> Result<(u32, Option<u32>), Error> {
        let class = &new.class;
        let owner = self.owner_of.get(&new.owner).and_then(|at| self.owners.get(*at));
        if !replaces && owner.is_some_and(|owner| owner.demands >= PER_OWNER_MAX) {
            return Err(Error::TooMany { who: new.owner.to_string(), what: "classes", max: PER_OWNER_MAX });
        }
        if let Strategy::Group { group, bundle } = class.strategy {
            return Ok((DEFAULT, Some(self.check_inside(new, group, bundle)?)));
        }
        let queue = self.queues.find(&class.queue);
        let queue = queue.ok_or_else(|| Error::UnknownQueue(class.queue.clone()))?;
        match self.queues.above_limit(queue, &class.resources) {
            Some((queue, kind, limit)) => Err(Error::AboveLimit { queue, kind, limit }),
            None => Ok((queue, None)),
        }
    }

    /// Lets a demand wait.
    fn enter(&mut self, mut new: Demand) -> u32 {
        new.who = self.owner(new.owner);
        if let Some(owner) = self.owners.get_mut(new.who) {
            owner.demands += 1;
        }
        if new.gang.is_none() {
            self.shape(&mut new);
        }
        let (id, queue, job, shape, gang) = (new.id(), new.queue, new.job, new.shape, new.gang);
        let at = self.demands.insert(new);
        self.by_key.insert(id, at);
        let turn = self.demands.get(at).map(|d| d.turn(at, self.options.ageing));
        let Some(turn) = turn else { return at };
        match shape {
            Some(shape) => self.queues.wait(queue, job, shape, turn),
            None => {
                if let Some((gang, inside)) = gang.and_then(|at| Some((self.gangs.get_mut(at)?, at))) {
                    gang.waiting.insert(turn);
                    self.roomy.entry(inside).or_default().demands.insert(at);
                }
            }
        }
        at
    }

    /// Finds out what a demand has in common with others.
    fn shape(&mut self, new: &mut Demand) {
        let need = Need::of(&new.class.resources, &self.cluster.kinds);
        new.kin = self.cluster.kin(new.job, &new.class, &need);
        let mut rules = vec![self.cluster.rules(&new.class.labels)];
        rules.extend(new.class.fallbacks.iter().map(|list| self.cluster.rules(list)));
        let key = shapes::Key {
            resources: new.class.resources.clone(),
            rules,
            pin: match &new.class.strategy {
                Strategy::Node { node, soft: false } => Some(*node),
                _ => None,
            },
            kin: new.kin.filter(|_| need.tiny || new.class.strategy == Strategy::Apart),
            gang: None,
        };
        let (shape, fresh) = self.shapes.enter(key.clone(), &self.cluster.kinds);
        if !fresh {
            // The shape uses its rules once, however many demands have it.
            key.rules.iter().for_each(|rules| self.cluster.index.forget_rules(*rules));
        }
        new.shape = Some(shape);
    }

    fn withdraw(&mut self, at: u32) -> Option<Demand> {
        let demand = self.demands.remove(at)?;
        self.by_key.remove(&demand.id());
        self.lift_oldest(starve::Oldest::Demand(demand.id()));
        let turn = demand.turn(at, self.options.ageing);
        if let Some((gang, inside)) = demand.gang.and_then(|at| Some((self.gangs.get_mut(at)?, at))) {
            gang.waiting.remove(&turn);
            if gang.held.values().any(|keeper| *keeper == turn) {
                self.roomy.entry(inside).or_default();
            }
        }
        if let Some(shape) = demand.shape {
            self.queues.stop_waiting(demand.queue, demand.job, shape, turn);
            self.leave_shape(shape);
        }
        self.cluster.forget_kin(demand.kin);
        if let Some(owner) = self.owners.get_mut(demand.who) {
            owner.demands = owner.demands.saturating_sub(1);
        }
        self.forget_owner(demand.who);
        Some(demand)
    }

    /// A shape is used once less.
    fn leave_shape(&mut self, shape: ShapeId) {
        let Some(key) = self.shapes.leave(shape) else { return };
        match key.gang {
            Some(_) => self.pace.forget(shape),
            None => key.rules.iter().for_each(|rules| self.cluster.index.forget_rules(*rules)),
        }
        self.lift_shape(shape);
    }

    /// The place of an owner, who has something from now on.
    fn owner(&mut self, id: HostId) -> u32 {
        let owners = &mut self.owners;
        let new = || owners.insert(Owner { id, leases: Vec::new(), demands: 0 });
        *self.owner_of.entry(id).or_insert_with(new)
    }

    fn forget_owner(&mut self, at: u32) {
        if self.owners.get(at).is_some_and(|owner| owner.demands == 0 && owner.leases.is_empty())
            && let Some(owner) = self.owners.remove(at)
        {
            self.owner_of.remove(&owner.id);
        }
    }

    /// Nothing that waits for a shape fits anywhere, as long as a search found none; so a longer backlog needs no new
    /// search, unless the class counts its slots.
    fn look_again(&mut self, at: u32) {
        let shape = self.demands.get(at).filter(|d| d.kin.is_some()).and_then(|d| d.shape);
        shape.into_iter().for_each(|shape| self.shapes.reopen(shape));
    }

    /// Whether the demand may wait. Reports and forgets one that no living node could ever satisfy.
    fn judge(&mut self, at: u32, out: &mut Vec<Effect>) -> bool {
        let Some(demand) = self.demands.get(at) else { return false };
        if self.cluster.workers == 0 || demand.class.wait_for_node {
            return true;
        }
        self.cluster.refresh();
        let Some(shape) = demand.shape.and_then(|shape| self.shapes.get(shape)) else { return true };
        if self.cluster.could_ever(shape) {
            return true;
        }
        let error = Error::Infeasible(why::missing(&demand.class, &self.cluster));
        out.push(Effect::Infeasible { owner: demand.owner, key: demand.key, error });
        self.withdraw(at);
        false
    }

    fn judge_all(&mut self, out: &mut Vec<Effect>) {
        #[cfg(test)]
        {
            self.judged += 1;
        }
        self.judge_gangs(out);
        self.cluster.refresh();
        let classes = self.shapes.iter().filter(|(_, shape)| shape.key.gang.is_none());
        let hopeless: BTreeSet<u32> =
            classes.filter(|(_, s)| !self.cluster.could_ever(s)).map(|(id, _)| id).collect();
        if hopeless.is_empty() {
            return;
        }
        let ageing = self.options.ageing;
        let of_those = self.demands.iter().filter(|(_, d)| d.shape.is_some_and(|s| hopeless.contains(&s)));
        let mut judged: Vec<_> = of_those.map(|(at, d)| d.turn(at, ageing)).collect();
        judged.sort_unstable();
        for (.., at) in judged {
            self.judge(at, out);
        }
    }

    /// Charges everything anew. What waits in a queue that is no longer there, or could never go beyond its limits, is
    /// refused.
    fn set_queues(&mut self, queues: Vec<Queue>, out: &mut Vec<Effect>) {
        self.lift_all();
        self.queues.replace(&queues, &self.cluster.kinds);
        self.queues.totals(&self.cluster.totals);
        for entry in self.leases.iter_mut().filter(|entry| entry.inside.is_none()) {
            entry.queue = self.queues.find(&entry.lease.class.queue).unwrap_or(DEFAULT);
            let (queue, job, slots) = (entry.queue, entry.lease.job, entry.lease.slots);
            entry.job = self.queues.hold(queue, job, slots);
            self.queues.charge(queue, &entry.need.amounts, slots.into());
            let cpu = entry.need.get(CPU);
            self.queues.charge(queue, &[(CPU, cpu)], -i64::from(entry.blocked));
            self.queues.leaves(queue, &entry.need, (0, 0), entry.leaving());
        }
        self.charge_gangs(out);
        let all: Vec<u32> = self.by_key.values().copied().collect();
        for at in all {
            let Some(demand) = self.demands.get_mut(at) else { continue };
            let Some(shape) = demand.shape else { continue };
            let queue = self.queues.find(&demand.class.queue);
            demand.queue = queue.unwrap_or(DEFAULT);
            let turn = demand.turn(at, self.options.ageing);
            self.queues.wait(demand.queue, demand.job, shape, turn);
            self.shapes.reopen(shape);
            let (owner, key) = (demand.owner, demand.key);
            let above = self.queues.above_limit(demand.queue, &demand.class.resources);
            let error = match (queue, above) {
                (None, _) => Error::UnknownQueue(demand.class.queue.clone()),
                (_, Some((queue, kind, limit))) => Error::AboveLimit { queue, kind, limit },
                _ => continue,
            };
            self.withdraw(at);
            out.push(Effect::Infeasible { owner, key, error });
        }
    }

    fn renew(&mut self, id: LeaseId) {
        if let Some(entry) = self.leases.get_mut(id) {
            entry.lease.expires = self.now.plus(entry.lease.term);
        }
    }

    fn expire(&mut self, out: &mut Vec<Effect>) {
        self.tidy_expiries();
        while let Some(Reverse((_, id))) =
            self.expiries.peek().copied().filter(|Reverse((at, _))| *at <= self.now)
        {
            self.end(id, Some(RevokeKind::Expired), out);
            self.tidy_expiries();
        }
    }

    /// Makes the first expiry one that is true.
    fn tidy_expiries(&mut self) {
        while let Some(Reverse((at, id))) = self.expiries.peek().copied() {
            match self.leases.get(id).map(|entry| entry.lease.expires) {
                Some(expires) if expires == at => return,
                Some(expires) => {
                    self.expiries.pop();
                    self.expiries.push(Reverse((expires, id)));
                }
                None => drop(self.expiries.pop()),
            }
        }
    }

    fn block(&mut self, id: LeaseId, slots: u32) {
        let Some(entry) = self.leases.get_mut(id) else { return };
        let (slots, before) = (slots.min(entry.running()), entry.leaving());
        entry.blocked += slots;
        self.queues.leaves(entry.queue, &entry.need, before, entry.leaving());
        let cpu = entry.need.get(CPU) * i64::from(slots);
        if cpu > 0 {
            let (at, queue, inside) = (entry.at, entry.queue, entry.inside);
            self.change_cpu(at, queue, inside, cpu);
        }
    }

    fn unblock(&mut self, id: LeaseId, slots: u32) {
        let Some(entry) = self.leases.get_mut(id) else { return };
        let (slots, before) = (slots.min(entry.blocked), entry.leaving());
        entry.blocked -= slots;
        self.queues.leaves(entry.queue, &entry.need, before, entry.leaving());
        let cpu = entry.need.get(CPU) * i64::from(slots);
        let (at, queue, inside) = (entry.at, entry.queue, entry.inside);
        self.change_cpu(at, queue, inside, -cpu);
    }

    fn bundle(&mut self, (gang, bundle): (u32, u32)) -> Option<&mut Bundle> {
        self.gangs.get_mut(gang)?.bundles.get_mut(bundle as usize)?.as_mut()
    }

    /// Frees CPU on a node or in a bundle, or takes it whether or not it is there.
    fn change_cpu(&mut self, at: u32, queue: u32, inside: Option<(u32, u32)>, freed: i64) {
        if let Some(inside) = inside {
            if let Some(bundle) = self.bundle(inside) {
                bundle.stock.add(CPU, freed);
            }
            if freed > 0 {
                self.roomy.entry(inside.0).or_default().bundles.insert(inside.1);
            }
            return;
        }
        if freed > 0 {
            self.freed.push(at);
        }
        if let Some(node) = self.cluster.nodes.get_mut(at) {
            node.stock.add(CPU, freed);
        }
        self.cluster.touch(at);
        self.queues.charge(queue, &[(CPU, -freed)], 1);
    }

    /// Ends a lease and frees what it held, telling its owner where `kind` says why.
    fn end(&mut self, id: LeaseId, kind: Option<RevokeKind>, out: &mut Vec<Effect>) {
        let Some((entry, listed)) = self.leases.remove(id) else { return };
        let lease = &entry.lease;
        if let Some(owner) = self.owners.get_mut(entry.owner) {
            owner.leases.swap_remove(listed.of_owner as usize);
            let moved = owner.leases.get(listed.of_owner as usize);
            if let Some(moved) = moved.and_then(|at| self.leases.listed_mut(*at)) {
                moved.of_owner = listed.of_owner;
            }
        }
        self.forget_owner(entry.owner);
        self.free(&entry, lease.slots, entry.blocked);
        self.cluster.forget_kin(entry.kin);
        if let Some(node) = self.cluster.nodes.get_mut(entry.at).filter(|n| n.id == lease.node) {
            node.leases.swap_remove(listed.on_node as usize);
            let moved = node.leases.get(listed.on_node as usize);
            if let Some(moved) = moved.and_then(|at| self.leases.listed_mut(*at)) {
                moved.on_node = listed.on_node;
            }
        }
        if let Some(kind) = kind {
            let slots = lease.slots;
            out.push(Effect::Revoke { lease: id, owner: lease.owner, node: lease.node, slots, kind });
        }
        out.push(Effect::Ended { lease: id, node: lease.node });
    }

    /// Frees what some slots of a lease hold, of which some wait.
    fn free(&mut self, entry: &Entry, slots: u32, waited: u32) {
        let lease = &entry.lease;
        if let Some(inside) = entry.inside {
            if let Some(bundle) = self.bundle(inside) {
                bundle.stock.give(&entry.need, slots, waited, &lease.devices);
            }
            self.roomy.entry(inside.0).or_default().bundles.insert(inside.1);
            return;
        }
        let giving = entry.giving.saturating_sub(slots);
        let running = lease.slots.saturating_sub(slots).saturating_sub(entry.blocked.saturating_sub(waited));
        self.queues.leaves(entry.queue, &entry.need, entry.leaving(), (giving, giving.min(running)));
        self.queues.drop_held(entry.queue, entry.job, slots);
        self.queues.charge(entry.queue, &entry.need.amounts, -i64::from(slots));
        self.queues.charge(entry.queue, &[(CPU, entry.need.get(CPU))], waited.into());
        let living = |n: &&mut Node| n.id == lease.node;
        if let Some(node) = self.cluster.nodes.get_mut(entry.at).filter(living) {
            node.stock.give(&entry.need, slots, waited, &lease.devices);
            self.cluster.count_kin(entry.kin, entry.at, -i64::from(slots));
            self.cluster.touch(entry.at);
            self.freed.push(entry.at);
        }
    }

    /// Gives slots of a lease back that do not wait.
    fn shrink(&mut self, id: LeaseId, slots: u32, out: &mut Vec<Effect>) {
        let Some(running) = self.leases.get(id).map(Entry::running) else { return };
        let slots = slots.min(running);
        if slots == 0 {
            return;
        }
        if self.leases.get(id).is_some_and(|entry| entry.lease.slots == slots) {
            return self.end(id, None, out);
        }
        self.cut(id, slots, 0);
    }

    /// Takes fewer slots than all from a lease, of which some wait.
    fn cut(&mut self, id: LeaseId, slots: u32, waited: u32) {
        let Some((at, mut entry)) = self.leases.lend(id) else { return };
        // Fewer than all means more than one: it has no devices.
        self.free(&entry, slots, waited);
        entry.giving -= entry.giving.min(slots);
        entry.blocked -= waited.min(entry.blocked);
        entry.lease.slots -= slots;
        self.leases.give_back(at, entry);
    }
}
