//! Nothing starves: a bound in numbers, checked after each step of clusters in which everybody wants more than there is.
//!
//! Who could run on some node is placed for the first time, or again after the last of his leases has ended, within
//!
//! > (1 + how much higher the highest priority is) × ageing + (1 + how many others wait) × (longest lease + grace +
//! > [`SLACK`])
//!
//! Some leases end by themselves, others are held by owners who have always more to do: they end only when their owners
//! were told that others wait, after at most as long.
//!
//! The first part is for how long what matters more goes ahead. After that each of the others may go ahead once more,
//! and in the worst case one behind the other: then a node must come free, which takes until the longest lease there has
//! ended, or what made room for somebody else by then has had its grace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{
    Group, GroupId, HostId, JobId, LeaseId, Quantity, Queue,
    group::Arrange,
    resource::{Class, Kind, LabelRule},
};
use mobula_scheduler::{Effect, Event, Millis, Options, Preempt, Scheduler, sim::Random};

use crate::{amounts, node};

/// Between two looks of the simulation.
const STEP: Millis = Millis(50);
/// So many steps.
const STEPS: usize = 400;
/// No lease and no group lasts longer.
const LONGEST: u64 = 600;
pub const AGEING: Millis = Millis(1000);
pub const PREEMPT: Preempt =
    Preempt { patience: Millis(100), grace: Millis(200), churn: 250, reserve: Millis(500) };
/// Looks are taken from time to time, at 32 that wait at a time; and the simulation itself looks only each [`STEP`].
const SLACK: u64 = 200;
const PRIORITIES: [i32; 4] = [0, 0, 1, 2];
const HIGHEST: i32 = 2;

const NODES: [&str; 4] = ["4 cpu", "8 cpu 2 gpu", "6 cpu 4 gpu", "2 cpu"];
const NEEDS: [&str; 7] = ["1 cpu", "0.5 cpu", "2 cpu", "4 cpu", "1 gpu 1 cpu", "0.5 gpu", "6 cpu"];
const BUNDLES: [&str; 3] = ["1 cpu", "2 cpu", "1 gpu"];
const QUEUES: [&str; 4] = ["", "a", "b1", "b2"];

struct Waits {
    since: Millis,
    priority: i32,
}

struct World {
    random: Random,
    scheduler: Scheduler,
    now: Millis,
    /// When each lease and each reserved group ends.
    leases: BTreeMap<LeaseId, (u32, Millis)>,
    /// Classes whose leases end when it is asked for them.
    endless: BTreeSet<u32>,
    groups: BTreeMap<GroupId, (Arc<Group>, Option<Millis>)>,
    classes: BTreeMap<u32, Arc<Class>>,
    /// By class, and by group.
    waits: BTreeMap<u32, Waits>,
    group_waits: BTreeMap<GroupId, Waits>,
    next_group: u64,
    /// The longest wait, as a part of what it may be.
    worst: f64,
}

fn owner(key: u32) -> HostId {
    HostId { node: node(20 + key, 1), seq: 1 }
}

impl World {
    fn step(&mut self, event: Event) {
        let effects = self.scheduler.step(event, self.now);
        for effect in effects {
            match effect {
                Effect::Grant(lease) => {
                    let until = match self.endless.contains(&lease.key) {
                        true => Millis(u64::MAX),
                        false => self.now.plus(Millis(self.random.between(50, LONGEST))),
                    };
                    self.leases.insert(lease.id, (lease.key, until));
                    self.waits.get_mut(&lease.key).expect("it was asked for").since = self.now;
                }
                Effect::Ended { lease, .. } => {
                    let (key, _) = self.leases.remove(&lease).expect("a lease ends once");
                    self.waits.get_mut(&key).expect("it was asked for").since = self.now;
                }
                Effect::Infeasible { key, .. } => {
                    self.waits.remove(&key);
                    self.classes.remove(&key);
                }
                Effect::GroupPlaced { group, .. } => {
                    self.group_waits.remove(&group);
                    let until = self.now.plus(Millis(self.random.between(50, LONGEST)));
                    self.groups.get_mut(&group).expect("it was asked for").1 = Some(until);
                }
                Effect::GroupLost { group, .. } => {
                    let known = self.groups.get_mut(&group).expect("it was asked for");
                    known.1 = None;
                    let priority = known.0.priority;
                    self.group_waits.insert(group, Waits { since: self.now, priority });
                }
                Effect::GroupInfeasible { group, .. } => {
                    self.group_waits.remove(&group);
                    self.groups.remove(&group);
                }
                // What was taken away has ended.
                Effect::Revoke { lease, .. } => {
                    let until = self.now.plus(Millis(self.random.between(50, LONGEST)));
                    if let Some((_, end)) = self.leases.get_mut(&lease) {
                        *end = until.min(*end);
                    }
                }
                Effect::GroupRevoked { .. } => {}
            }
        }
    }

    fn class(&mut self, key: u32) {
        let labels = if self.random.chance(20) {
            vec![LabelRule::In("zone".to_owned(), vec!["eu".to_owned()])]
        } else {
            Vec::new()
        };
        let class = Arc::new(Class {
            function: format!("work{key}"),
            resources: amounts(self.random.pick::<&str>(&NEEDS)),
            labels,
            priority: *self.random.pick(&PRIORITIES),
            queue: (*self.random.pick(&QUEUES)).to_owned(),
            restartable: self.random.chance(30),
            ..Class::default()
        });
        if self.random.chance(40) {
            self.endless.insert(key);
        }
        self.waits.insert(key, Waits { since: self.now, priority: class.priority });
        self.classes.insert(key, class);
    }

    /// Asks for more, as one does who has more to do than he ever gets.
    fn ask(&mut self, key: u32) {
        let Some(class) = self.classes.get(&key).cloned() else { return };
        let backlog = *self.random.pick(&[1, 3, 40]);
        let job = JobId { number: 1 + u64::from(key) % 3 };
        let locality = Vec::new();
        self.step(Event::Demand { owner: owner(key), key, job, class, backlog, attempt: 0, locality });
    }

    fn group(&mut self) {
        let alike = self.random.chance(50);
        let mut bundles = vec![amounts(self.random.pick::<&str>(&BUNDLES))];
        for _ in 0..self.random.below(4) {
            bundles.push(match bundles.first() {
                Some(first) if alike => first.clone(),
                _ => amounts(self.random.pick::<&str>(&BUNDLES)),
            });
        }
        let arranges = [Arrange::Pack, Arrange::Spread, Arrange::StrictPack, Arrange::StrictSpread];
        let spec = Arc::new(Group {
            bundles,
            arrange: *self.random.pick(&arranges),
            place: String::new(),
            labels: Vec::new(),
            priority: *self.random.pick(&PRIORITIES),
            queue: (*self.random.pick(&QUEUES)).to_owned(),
            wait_for_node: false,
            restartable: self.random.chance(30),
        });
        if !self.could_hold(&spec) {
            return;
        }
        let group = GroupId { number: self.next_group };
        self.next_group += 1;
        self.group_waits.insert(group, Waits { since: self.now, priority: spec.priority });
        self.groups.insert(group, (Arc::clone(&spec), None));
        self.step(Event::Group { group, job: JobId { number: 1 }, spec });
    }

    /// Whether the cluster has room for a group if nothing else is there.
    fn could_hold(&self, spec: &Group) -> bool {
        let mut empty = Scheduler::new(Options::default());
        let nodes = self.scheduler.nodes().map(|view| (view.node, view.total.clone(), view.labels.to_vec()));
        for (node, total, labels) in nodes {
            empty.step(Event::NodeUp { node, total, devices: Vec::new(), labels }, Millis(0));
        }
        let spec = Arc::new(Group { queue: String::new(), ..spec.clone() });
        let (group, job) = (GroupId { number: 1 }, JobId { number: 1 });
        let said = empty.step(Event::Group { group, job, spec }, Millis(0));
        said.iter().any(|effect| matches!(effect, Effect::GroupPlaced { .. }))
    }

    /// What is over ends, what goes on is renewed, and everybody asks for more.
    fn turn(&mut self) {
        self.now = self.now.plus(STEP);
        let all: Vec<(LeaseId, Millis)> =
            self.leases.iter().map(|(lease, (_, until))| (*lease, *until)).collect();
        for (lease, until) in all {
            let event = if until <= self.now { Event::Release { lease } } else { Event::Renew { lease } };
            self.step(event);
        }
        let over = |(_, (_, until)): &(&GroupId, &(Arc<Group>, Option<Millis>))| {
            until.is_some_and(|until| until <= self.now)
        };
        let over: Vec<GroupId> = self.groups.iter().filter(over).map(|(group, _)| *group).collect();
        for group in over {
            self.groups.remove(&group);
            self.step(Event::GroupGone { group });
            self.group();
        }
        let keys: Vec<u32> = self.classes.keys().copied().collect();
        for key in keys {
            let idle = !self.scheduler.demands().any(|demand| demand.key == key);
            if idle || self.leases.values().any(|(of, _)| *of == key) {
                self.waits.get_mut(&key).expect("each has one").since = self.now;
            }
            if idle || self.random.chance(10) {
                self.ask(key);
            }
        }
        self.step(Event::Tick);
    }

    /// The bound.
    fn check(&mut self, enforced: bool) {
        let others = (self.waits.len() + self.group_waits.len()) as u64;
        let bound = |priority: i32| {
            let ahead = u64::from((HIGHEST - priority).unsigned_abs()) + 1;
            ahead * AGEING.0 + others * (LONGEST + PREEMPT.grace.0 + SLACK)
        };
        let classes = self.waits.iter().map(|(key, waits)| (format!("class {key}"), waits));
        let groups = self.group_waits.iter().map(|(group, waits)| (group.to_string(), waits));
        for (who, waits) in classes.chain(groups) {
            let (waited, most) = (self.now.0 - waits.since.0, bound(waits.priority));
            self.worst = self.worst.max(waited as f64 / most as f64);
            assert!(!enforced || waited <= most, "{who} has waited for {waited} ms, more than {most} ms");
        }
    }
}

/// One run with these options; the longest wait, as a part of what it may be, which it must not exceed if that is
/// `enforced`.
pub fn run(seed: u64, ageing: Millis, preempt: Preempt, enforced: bool) -> f64 {
    let scheduler = Scheduler::new(Options { seed, ageing, preempt, ..Options::default() });
    let mut world = World {
        random: Random::new(seed ^ 0x5741_5256),
        scheduler,
        now: Millis(0),
        leases: BTreeMap::new(),
        endless: BTreeSet::new(),
        groups: BTreeMap::new(),
        classes: BTreeMap::new(),
        waits: BTreeMap::new(),
        group_waits: BTreeMap::new(),
        next_group: 1,
        worst: 0.0,
    };
    let mut queues = Vec::new();
    for (name, parent) in [("a", ""), ("b", ""), ("b1", "b"), ("b2", "b")] {
        let mut queue = Queue { parent: parent.to_owned(), ..Queue::new(name) };
        // No guarantees: who waits for what is guaranteed to him goes ahead of all this.
        queue.weight = Quantity::whole(1 + world.random.below(3) as u64);
        if world.random.chance(30) {
            let limit = Quantity::whole(6 + world.random.below(6) as u64);
            queue.limit = vec![(Kind::Cpu, limit)];
        }
        queues.push(queue);
    }
    world.step(Event::Queues(queues));
    for number in 1..=1 + world.random.below(5) as u32 {
        let total = amounts(world.random.pick::<&str>(&NODES));
        let zone = (*world.random.pick(&["eu", "us"])).to_owned();
        let labels = vec![("zone".to_owned(), zone)];
        world.step(Event::NodeUp { node: node(number, 1), total, devices: Vec::new(), labels });
    }
    for key in 0..3 + world.random.below(6) as u32 {
        world.class(key);
        world.ask(key);
    }
    for _ in 0..world.random.below(3) {
        world.group();
    }
    for step in 0..STEPS {
        world.turn();
        if step.is_multiple_of(40) {
            world.scheduler.conserved().unwrap();
        }
        world.check(enforced);
    }
    world.worst
}
