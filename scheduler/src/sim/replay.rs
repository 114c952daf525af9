//! Traces replayed in virtual time: tasks arrive, wait, run as long as they said, and end; nodes may be lost meanwhile.
//!
//! Each job has an owner that does as a host's owner would: it asks for as many slots as tasks wait of a class, runs one
//! task in each slot after the other, gives slots back when nothing waits or when it is asked to, and runs again what was
//! taken from it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    fmt::Write as _,
    sync::Arc,
};

use mobula_proto::{
    HostId, JobId, LeaseId, NodeId, Quantity, Queue, Resources,
    resource::{Class, Kind},
};

use super::trace::Task;
use crate::{Effect, Event, Millis, Options, RevokeKind, Scheduler};

/// Numbers of nodes that owners are on start here, above those of the cluster.
const OWNERS: u32 = 1 << 30;
/// Classes that one owner has at most, below [`crate::demand::PER_OWNER_MAX`].
const CLASSES_EACH: usize = 4096;
/// The scheduler's invariants are checked each time that it has taken a step for so many things that a check looks at,
/// each lease and each class on each node: so that checks take a small part of the time, however large the cluster.
const CHECKED_EACH: usize = 2;

/// How long tasks of one kind waited until they ran first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delay {
    /// What each holds.
    pub resources: Resources,
    /// At which priority.
    pub priority: i32,
    /// How many ran.
    pub tasks: usize,
    /// On average.
    pub mean: Millis,
    /// Half of them at most so long.
    pub p50: Millis,
    /// All but one in a hundred at most so long.
    pub p99: Millis,
    /// The longest.
    pub most: Millis,
}

/// What became of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Tasks of the trace.
    pub tasks: usize,
    /// Those that ran to their end.
    pub finished: usize,
    /// Those that no node could hold when they waited, or whose queue is not there, with the first reason.
    pub refused: usize,
    /// Why the first of those was refused.
    pub reason: Option<String>,
    /// From the first arrival to the last end.
    pub span: Millis,
    /// Of each kind that nodes have, the part that was in use over all that time.
    pub utilisation: Vec<(Kind, f64)>,
    /// By resources and priority.
    pub delays: Vec<Delay>,
    /// Jain's index over the jobs of how much longer their tasks took than they ran, on average: 1 where all were held up
    /// alike.
    pub fairness: f64,
    /// Leases that were to make room.
    pub preemptions: u64,
    /// Nodes that were lost.
    pub nodes_lost: u64,
    /// Tasks that were stopped to make room or with their node, and ran again.
    pub stopped: u64,
    /// The time that those had run in vain.
    pub lost: Millis,
    /// Of all that the scheduler said: the same for the same trace, nodes, queues and options on every machine.
    pub hash: u64,
    /// What the scheduler did that it must never do: that is a mistake in it. `None` as far as it was checked.
    pub broken: Option<String>,
}

/// A class of one owner.
struct Kindred {
    class: Arc<Class>,
    owner: HostId,
    key: u32,
    job: JobId,
    waiting: VecDeque<usize>,
    refused: bool,
}

/// A lease, as its owner knows it.
struct Held {
    class: usize,
    slots: u32,
    /// Its slots that are not to be used again.
    leaving: u32,
    /// Tasks that run in it, with when each began.
    running: Vec<(usize, Millis)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    End { lease: LeaseId, task: usize },
    Arrive(usize),
    Lose(NodeId),
}

/// A trace that is being replayed.
pub struct Replay<'a> {
    tasks: &'a [Task],
    scheduler: Scheduler,
    now: Millis,
    due: BinaryHeap<Reverse<(Millis, What)>>,
    classes: Vec<Kindred>,
    class_of: Vec<usize>,
    by_demand: BTreeMap<(HostId, u32), usize>,
    leases: BTreeMap<LeaseId, Held>,
    todo: VecDeque<Event>,
    first_run: Vec<Option<Millis>>,
    ended: Vec<Option<Millis>>,
    /// What all nodes have, of each kind. (A petabyte of memory is more than a quantity holds.)
    totals: BTreeMap<Kind, i128>,
    /// Nodes that were lost, with what each had and when.
    gone: Vec<(Resources, Millis)>,
    steps: usize,
    /// How many steps may be taken before the next check, and how many things a check pays for with each.
    unchecked: usize,
    check_each: usize,
    broken: Option<String>,
    /// Of each kind, what is held, and the sum of that over the milliseconds so far.
    used: BTreeMap<Kind, (i128, f64)>,
    preemptions: u64,
    stopped: u64,
    lost: u64,
    reason: Option<String>,
    hash: u64,
    text: String,
}

impl<'a> Replay<'a> {
    /// Tasks in the order of their arrival, as [`super::trace::parse`] gives them; nodes, as they join, numbered below
    /// 2^30; and queues.
    pub fn new(
        tasks: &'a [Task],
        nodes: impl IntoIterator<Item = Event>,
        queues: Vec<Queue>,
        options: Options,
    ) -> Self {
        // Owners are never silent here.
        let scheduler = Scheduler::new(Options { term: Millis(u64::MAX / 2), ..options });
        let mut replay = Self {
            tasks,
            scheduler,
            now: Millis(0),
            due: BinaryHeap::new(),
            classes: Vec::new(),
            class_of: Vec::new(),
            by_demand: BTreeMap::new(),
            leases: BTreeMap::new(),
            todo: VecDeque::new(),
            first_run: vec![None; tasks.len()],
            ended: vec![None; tasks.len()],
            totals: BTreeMap::new(),
            gone: Vec::new(),
            steps: 0,
            unchecked: 0,
            check_each: CHECKED_EACH,
            broken: None,
            used: BTreeMap::new(),
            preemptions: 0,
            stopped: 0,
            lost: 0,
            reason: None,
            hash: 0xcbf2_9ce4_8422_2325,
            text: String::new(),
        };
        replay.step(Event::Queues(queues));
        for node in nodes {
            if let Event::NodeUp { total, .. } = &node {
                for (kind, amount) in total.iter() {
                    *replay.totals.entry(kind.clone()).or_default() += i128::from(amount.units());
                }
            }
            replay.step(node);
        }
        replay.sort();
        replay
    }

    /// Gives each task its class.
    fn sort(&mut self) {
        let mut jobs: BTreeMap<&str, u64> = BTreeMap::new();
        let mut known: BTreeMap<(u64, Class), usize> = BTreeMap::new();
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for (at, task) in self.tasks.iter().enumerate() {
            let next = jobs.len() as u64 + 1;
            let job = *jobs.entry(&task.job).or_insert(next);
            let class = Class {
                function: task.job.clone(),
                resources: task.resources.clone(),
                priority: task.priority,
                queue: task.queue.clone(),
                restartable: task.restartable,
                ..Class::default()
            };
            let count = counts.entry(job).or_default();
            let class = *known.entry((job, class.clone())).or_insert_with(|| {
                // A job with very many classes has several owners.
                let number = OWNERS + u32::try_from(job).unwrap_or(u32::MAX / 4);
                let seq = 1 + u32::try_from(*count / CLASSES_EACH).unwrap_or(0);
                let owner = HostId { node: NodeId { number, incarnation: 1 }, seq };
                let key = (*count % CLASSES_EACH) as u32;
                *count += 1;
                self.by_demand.insert((owner, key), self.classes.len());
                let (class, job) = (Arc::new(class), JobId { number: job });
                let waiting = VecDeque::new();
                self.classes.push(Kindred { class, owner, key, job, waiting, refused: false });
                self.classes.len() - 1
            });
            self.class_of.push(class);
            self.due.push(Reverse((task.arrival, What::Arrive(at))));
        }
    }

    /// A node is to be lost at a time, with what runs on it, which runs again elsewhere.
    pub fn lose(&mut self, node: NodeId, at: Millis) {
        self.due.push(Reverse((at.max(self.now), What::Lose(node))));
    }

    /// From now on the scheduler's invariants are checked after each step, which takes much longer.
    pub fn check_each_step(&mut self) {
        (self.check_each, self.unchecked) = (usize::MAX, 0);
    }

    /// Replays up to a time, or to the end where that comes before; false then.
    pub fn run_until(&mut self, until: Millis) -> bool {
        loop {
            let next = self.due.peek().map(|Reverse((at, _))| *at);
            // Without anything due nothing changes any more: what waits, waits for ever.
            let Some(next) = next else { return false };
            let tick = self.scheduler.next_tick().filter(|tick| *tick <= next).map(|tick| tick.max(self.now));
            let at = tick.unwrap_or(next);
            if at > until {
                self.pass(until);
                return true;
            }
            self.pass(at);
            match tick {
                Some(_) => self.step(Event::Tick),
                None => {
                    if let Some(Reverse((_, what))) = self.due.pop() {
                        self.happens(what);
                    }
                }
            }
        }
    }

    /// Replays all of it.
    pub fn run(mut self) -> Summary {
        self.run_until(Millis(u64::MAX));
        self.check();
        self.summary()
    }

    /// The scheduler, to look at.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// How much of a kind the tasks of a job hold now.
    pub fn held(&self, job: &str, kind: &Kind) -> Quantity {
        let of_job = self.leases.values().filter(|held| self.classes[held.class].class.function == job);
        let each = |held: &Held| {
            i128::from(self.classes[held.class].class.resources.get(kind).units()) * i128::from(held.slots)
        };
        let units = i64::try_from(of_job.map(each).sum::<i128>()).ok();
        units.and_then(|units| Quantity::from_units(units).ok()).unwrap_or(Quantity::MAX)
    }

    /// When a task began to run first, by its place in the trace.
    pub fn began(&self, task: usize) -> Option<Millis> {
        self.first_run.get(task).copied().flatten()
    }

    /// Time passes, in which what runs uses what it holds.
    fn pass(&mut self, to: Millis) {
        let span = to.0.saturating_sub(self.now.0) as f64;
        for (held, used) in self.used.values_mut() {
            *used += *held as f64 * span;
        }
        self.now = self.now.max(to);
    }

    /// More slots of a class are held, or fewer.
    fn hold(&mut self, class: usize, slots: i64) {
        for (kind, amount) in self.classes[class].class.resources.iter() {
            self.used.entry(kind.clone()).or_default().0 += i128::from(amount.units()) * i128::from(slots);
        }
    }

    fn happens(&mut self, what: What) {
        match what {
            What::Arrive(task) => {
                let class = self.class_of[task];
                self.classes[class].waiting.push_back(task);
                self.ask(class);
            }
            What::End { lease, task } => {
                let Some(held) = self.leases.get_mut(&lease) else { return };
                let before = held.running.len();
                // Of a task that was stopped there is an end, too, that never came.
                held.running
                    .retain(|(at, began)| *at != task || began.plus(self.tasks[task].duration) != self.now);
                if held.running.len() < before {
                    self.ended[task] = Some(self.now);
                    self.use_slots(lease);
                }
            }
            What::Lose(node) => {
                let had =
                    self.scheduler.nodes().find(|view| view.node == node).map(|view| view.total.clone());
                self.gone.extend(had.map(|had| (had, self.now)));
                self.todo.push_back(Event::NodeDown { node });
            }
        }
        self.work_off();
    }

    /// Whether the scheduler keeps its promises: nothing is held twice, and nothing waits for which there is room.
    fn check(&mut self) {
        if self.broken.is_none() {
            let checked = self.scheduler.conserved().and_then(|()| self.scheduler.settled());
            self.broken = checked.err().map(|what| format!("after {} ms: {what}", self.now.0));
        }
        let nodes = self.scheduler.nodes().count();
        let others = self.leases.len() + self.scheduler.demands().count() + 1;
        self.unchecked = self.steps + nodes * others / self.check_each.max(1);
    }

    fn step(&mut self, event: Event) {
        self.todo.push_back(event);
        self.work_off();
    }

    fn work_off(&mut self) {
        while let Some(event) = self.todo.pop_front() {
            for effect in self.scheduler.step(event, self.now) {
                self.text.clear();
                // Writing to a string cannot fail.
                let _ = write!(self.text, "{effect:?}");
                for byte in self.text.bytes() {
                    self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
                self.learn(effect);
            }
            self.steps += 1;
            if self.steps > self.unchecked {
                self.check();
            }
        }
    }

    /// Tells how much is wanted of a class.
    fn ask(&mut self, class: usize) {
        let of = &self.classes[class];
        if of.refused {
            return;
        }
        let backlog = u32::try_from(of.waiting.len()).unwrap_or(u32::MAX);
        self.todo.push_back(Event::Demand {
            owner: of.owner,
            key: of.key,
            job: of.job,
            class: Arc::clone(&of.class),
            backlog,
            attempt: 0,
            locality: Vec::new(),
        });
    }

    /// Runs what waits in the free slots of a lease, and gives back those that are not needed.
    fn use_slots(&mut self, lease: LeaseId) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        let class = held.class;
        let mut began = false;
        while (held.running.len() as u32) < held.slots - held.leaving {
            let Some(task) = self.classes[class].waiting.pop_front() else { break };
            began = true;
            self.first_run[task].get_or_insert(self.now);
            held.running.push((task, self.now));
            let end = self.now.plus(self.tasks[task].duration);
            self.due.push(Reverse((end, What::End { lease, task })));
        }
        let spare = held.slots - held.running.len() as u32;
        if spare > 0 {
            held.slots -= spare;
            held.leaving = held.leaving.saturating_sub(spare);
            self.hold(class, -i64::from(spare));
            self.todo.push_back(Event::Shrink { lease, slots: spare });
        }
        if began {
            self.ask(class);
        }
    }

    fn learn(&mut self, effect: Effect) {
        match effect {
            Effect::Grant(lease) => {
                let Some(class) = self.by_demand.get(&(lease.owner, lease.key)).copied() else { return };
                let held = Held { class, slots: lease.slots, leaving: 0, running: Vec::new() };
                self.leases.insert(lease.id, held);
                self.hold(class, lease.slots.into());
                self.use_slots(lease.id);
            }
            Effect::Revoke { lease, slots, kind, .. } => {
                let Some(held) = self.leases.get_mut(&lease) else { return };
                match kind {
                    RevokeKind::Idle | RevokeKind::Draining => held.leaving = held.slots,
                    RevokeKind::Preempted { .. } => {
                        self.preemptions += 1;
                        held.leaving = (held.leaving + slots).min(held.slots);
                    }
                    RevokeKind::Evicted => self.stop(lease, slots),
                    RevokeKind::Expired | RevokeKind::NodeLost | RevokeKind::Removed => {
                        self.stop(lease, u32::MAX);
                    }
                }
            }
            Effect::Ended { lease, .. } => {
                if let Some(held) = self.leases.remove(&lease) {
                    self.hold(held.class, -i64::from(held.slots));
                }
            }
            Effect::Infeasible { owner, key, error } => {
                let Some(class) = self.by_demand.get(&(owner, key)).copied() else { return };
                self.classes[class].refused = true;
                self.reason.get_or_insert_with(|| error.to_string());
            }
            _ => {}
        }
    }

    /// Slots were taken away: what ran in them waits again, before the others of its class.
    fn stop(&mut self, lease: LeaseId, slots: u32) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        let slots = slots.min(held.slots);
        held.slots -= slots;
        held.leaving = held.leaving.saturating_sub(slots);
        let class = held.class;
        // The newest have lost the least.
        while held.running.len() as u32 > held.slots {
            let Some((task, began)) = held.running.pop() else { break };
            self.stopped += 1;
            self.lost += self.now.0.saturating_sub(began.0);
            self.classes[class].waiting.push_front(task);
        }
        self.hold(class, -i64::from(slots));
        self.ask(class);
    }

    /// What became of it so far.
    pub fn summary(&self) -> Summary {
        let first = self.tasks.first().map_or(Millis(0), |task| task.arrival);
        let last = self.ended.iter().flatten().max().copied().unwrap_or(first);
        let span = last.0.saturating_sub(first.0);
        let part = |(kind, total): (&Kind, &i128)| {
            // What was lost is not there for the rest of the time.
            let rest = |(had, at): &(Resources, Millis)| {
                had.get(kind).units() as f64 * last.0.saturating_sub(at.0.max(first.0)) as f64
            };
            let all = *total as f64 * span as f64 - self.gone.iter().map(rest).sum::<f64>();
            let used = self.used.get(kind).map_or(0.0, |(_, used)| *used);
            (kind.clone(), if all > 0.0 { used / all } else { 0.0 })
        };
        let refused = (0..self.tasks.len())
            .filter(|task| self.ended[*task].is_none() && self.classes[self.class_of[*task]].refused);
        Summary {
            tasks: self.tasks.len(),
            finished: self.ended.iter().flatten().count(),
            refused: refused.count(),
            reason: self.reason.clone(),
            span: Millis(span),
            utilisation: self.totals.iter().map(part).collect(),
            delays: self.delays(),
            fairness: self.fairness(),
            preemptions: self.preemptions,
            nodes_lost: self.gone.len() as u64,
            stopped: self.stopped,
            lost: Millis(self.lost),
            hash: self.hash,
            broken: self.broken.clone(),
        }
    }

    fn delays(&self) -> Vec<Delay> {
        let mut all: BTreeMap<(i32, &Resources), Vec<u64>> = BTreeMap::new();
        for (task, began) in self.tasks.iter().zip(&self.first_run) {
            if let Some(began) = began {
                let waited = began.0.saturating_sub(task.arrival.0);
                all.entry((task.priority, &task.resources)).or_default().push(waited);
            }
        }
        let delay = |((priority, resources), mut waited): ((i32, &Resources), Vec<u64>)| {
            waited.sort_unstable();
            let at = |part: usize| Millis(waited[(waited.len() - 1) * part / 100]);
            Delay {
                resources: resources.clone(),
                priority,
                tasks: waited.len(),
                mean: Millis(waited.iter().sum::<u64>() / waited.len() as u64),
                p50: at(50),
                p99: at(99),
                most: at(100),
            }
        };
        all.into_iter().map(delay).collect()
    }

    fn fairness(&self) -> f64 {
        let mut jobs: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for (task, ended) in self.tasks.iter().zip(&self.ended) {
            if let Some(ended) = ended {
                let took = ended.0.saturating_sub(task.arrival.0).max(1) as f64;
                let sums = jobs.entry(&task.job).or_default();
                (sums.0, sums.1) = (sums.0 + took / task.duration.0.max(1) as f64, sums.1 + 1.0);
            }
        }
        let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
        for (slow, tasks) in jobs.values() {
            let each = slow / tasks;
            (sum, squares, count) = (sum + each, squares + each * each, count + 1.0);
        }
        if count > 0.0 { sum * sum / (count * squares) } else { 1.0 }
    }
}
