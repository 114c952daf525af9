//! Random events: the invariants of the crate's text hold after each.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::resource::Strategy;
use proptest::{prelude::*, strategy::Strategy as Generate};

use super::*;
use crate::{Preempt, demand};

/// What a random event refers to is drawn from small sets, so that events meet.
#[derive(Clone, Debug)]
enum Op {
    Up(u32, u32, usize),
    Down(u32, u32),
    Drain(u32),
    Resume(u32),
    Ask { owner: (u32, u32, u32), key: u32, job: u64, class: usize, backlog: u32, bytes: Vec<(u32, u64)> },
    Renew(usize),
    Release(usize),
    Block(usize, u32),
    Unblock(usize, u32),
    Gone(u32, u32, u32),
    Tick(u64),
}

const NODES: [&str; 7] = [
    "",
    "2 cpu",
    "4 cpu 1000 memory|zone=eu",
    "8 cpu 2 gpu|zone=us",
    "1 cpu 4 gpu 2 tpu",
    "3.5 cpu 7 blue|zone=eu disk=ssd",
    "0.5 gpu",
];

fn classes() -> Vec<Class> {
    let important = Class { priority: 3, ..class("2 cpu") };
    let lowly = Class { priority: -1, ..class("1 cpu") };
    let patient = Class { wait_for_node: true, ..class("3 gpu") };
    vec![
        class("1 cpu"),
        class("0.5 cpu 100 memory"),
        class(""),
        spread("1 cpu"),
        spread("0.3 gpu"),
        class("0.5 gpu 1 cpu"),
        class("2 gpu"),
        class("1 gpu 0.5 tpu"),
        class("1.5 gpu"),
        class("0.0001 blue"),
        on(1, false, "1 cpu"),
        on(2, true, "1 cpu"),
        labelled(&[is_in("zone", &["eu"])], "1 cpu"),
        labelled(&[LabelRule::Absent("zone".to_owned())], "1 cpu"),
        important,
        lowly,
        patient,
    ]
}

fn op() -> impl Generate<Value = Op> {
    // Mostly the first incarnation, so that what begins also goes on.
    let incarnation = || prop_oneof![12 => Just(1_u32), 1 => 2..4_u32];
    let owner = move || (1..5_u32, incarnation(), 0..3_u32);
    let bytes = prop::collection::vec((1..5_u32, 0..100_u64), 0..3);
    let backlog = prop_oneof![5 => 0..6_u32, 1 => Just(30_000), 1 => Just(u32::MAX)];
    prop_oneof![
        2 => (1..5_u32, incarnation(), 0..NODES.len()).prop_map(|(n, i, t)| Op::Up(n, i, t)),
        1 => (1..5_u32, incarnation()).prop_map(|(n, i)| Op::Down(n, i)),
        1 => (1..5_u32).prop_map(Op::Drain),
        1 => (1..5_u32).prop_map(Op::Resume),
        12 => (owner(), 0..4_u32, 1..4_u64, 0..classes().len(), backlog, bytes)
            .prop_map(|(owner, key, job, class, backlog, bytes)| Op::Ask { owner, key, job, class, backlog, bytes }),
        2 => (0..40_usize).prop_map(Op::Renew),
        4 => (0..12_usize).prop_map(Op::Release),
        6 => (0..12_usize, 0..4_u32).prop_map(|(l, n)| Op::Block(l, n)),
        6 => (0..12_usize, 0..4_u32).prop_map(|(l, n)| Op::Unblock(l, n)),
        1 => owner().prop_map(|(n, i, s)| Op::Gone(n, i, s)),
        2 => (0..800_u64).prop_map(Op::Tick),
    ]
}

fn owner((number, incarnation, seq): (u32, u32, u32)) -> HostId {
    HostId { node: NodeId { number, incarnation }, seq }
}

/// `each * n`, at most [`Quantity::MAX`].
fn times(each: Quantity, n: u32) -> Quantity {
    Quantity::from_units(each.units().saturating_mul(n.into())).unwrap_or(Quantity::MAX)
}

/// What an observer of events and effects knows.
#[derive(Default)]
struct Observer {
    wanted: BTreeMap<demand::Key, (Arc<Class>, u32)>,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: u64,
}

impl Observer {
    fn effects(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Grant(lease) => {
                    let key = demand::Key { owner: lease.owner, key: lease.key };
                    let (class, backlog) = self.wanted.get_mut(&key).expect("a grant answers a demand");
                    assert_eq!(*class, lease.class);
                    assert!(lease.slots > 0 && lease.slots <= *backlog, "{} of {backlog}", lease.slots);
                    *backlog -= lease.slots;
                    assert!(lease.id.number > self.last_lease, "lease ids only grow");
                    self.last_lease = lease.id.number;
                    check_devices(lease);
                    assert_eq!(lease.incarnation, lease.node.incarnation);
                    self.leases.insert(lease.id, lease.clone());
                }
                Effect::Ended { lease, node } => {
                    let ended = self.leases.remove(lease).expect("a lease ends once");
                    assert_eq!(ended.node, *node);
                }
                Effect::Revoke { lease, owner, node, .. } => {
                    let known = &self.leases[lease];
                    assert_eq!((known.owner, known.node), (*owner, *node));
                }
                Effect::Infeasible { owner, key, error } => {
                    assert!(!error.to_string().is_empty());
                    self.wanted.remove(&demand::Key { owner: *owner, key: *key }).expect("it was asked for");
                }
                other => panic!("{other:?} without groups"),
            }
        }
    }
}

fn check_devices(lease: &Lease) {
    for kind in [Kind::Gpu, Kind::Tpu] {
        let of_kind: Vec<_> = lease.devices.iter().filter(|d| d.kind == kind).collect();
        let need = lease.class.resources.get(&kind);
        let sum = of_kind.iter().fold(Quantity::ZERO, |sum, d| sum.plus(d.share));
        assert_eq!(sum, need);
        assert!(need > Quantity::ONE || of_kind.len() <= 1, "a fraction is of one device");
        assert!(of_kind.windows(2).all(|pair| pair[0].index < pair[1].index));
    }
}

fn event(op: &Op, classes: &[Class], leases: &BTreeMap<LeaseId, Lease>) -> Event {
    // Mostly living leases; past the end, one that never was.
    let lease = |i: usize| leases.keys().nth(i).copied().unwrap_or(LeaseId { number: 1_000_000 });
    match op.clone() {
        Op::Up(number, incarnation, text) => {
            let (amounts, labels) = NODES[text].split_once('|').unwrap_or((NODES[text], ""));
            let labels = labels.split_whitespace().filter_map(|word| word.split_once('='));
            Event::NodeUp {
                node: NodeId { number, incarnation },
                total: resources(amounts),
                devices: Vec::new(),
                labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            }
        }
        Op::Down(number, incarnation) => Event::NodeDown { node: NodeId { number, incarnation } },
        Op::Drain(number) => Event::NodeDrain { node: node(number) },
        Op::Resume(number) => Event::NodeResume { node: node(number) },
        Op::Ask { owner: by, key, job, class, backlog, bytes } => Event::Demand {
            owner: owner(by),
            key,
            job: JobId { number: job },
            class: Arc::new(classes[class].clone()),
            backlog,
            attempt: 0,
            locality: bytes.into_iter().map(|(n, b)| (node(n), b)).collect(),
        },
        Op::Renew(i) => Event::Renew { lease: lease(i) },
        Op::Release(i) => Event::Release { lease: lease(i) },
        Op::Block(i, slots) => Event::Block { lease: lease(i), slots },
        Op::Unblock(i, slots) => Event::Unblock { lease: lease(i), slots },
        Op::Gone(n, i, s) => Event::OwnerGone { owner: owner((n, i, s)) },
        Op::Tick(_) => Event::Tick,
    }
}

/// One run with every check; returns all effects.
fn run(seed: u64, ops: &[Op]) -> Vec<Effect> {
    let classes = classes();
    // Nodes that are kept for others would make what waits beside them look forgotten.
    let never = Millis(u64::MAX);
    let preempt = Preempt { patience: never, reserve: never, ..Preempt::default() };
    let mut world = World::with(Options { seed, preempt, ..Options::default() }, &[]);
    let mut observer = Observer::default();
    let mut all = Vec::new();
    for op in ops {
        if let Op::Tick(after) = op {
            world.now = world.now.plus(Millis(*after));
        }
        let event = event(op, &classes, &observer.leases);
        step(&mut world, &mut observer, event, &mut all);
    }
    settle(&mut world, &mut observer, &mut all);
    // Everything given back: available is total (I9).
    let mut owners: BTreeSet<HostId> = world.scheduler.demands().map(|d| d.owner).collect();
    owners.extend(observer.leases.values().map(|lease| lease.owner));
    for owner in owners {
        step(&mut world, &mut observer, Event::OwnerGone { owner }, &mut all);
    }
    assert_eq!((world.scheduler.leases().count(), world.scheduler.demands().count()), (0, 0));
    for node in world.scheduler.nodes() {
        assert_eq!((&node.available, node.overdraft), (node.total, Quantity::ZERO));
    }
    all
}

/// One step, and what must hold after it.
fn step(world: &mut World, observer: &mut Observer, event: Event, all: &mut Vec<Effect>) {
    let before: BTreeMap<NodeId, Quantity> = world.scheduler.nodes().map(|n| (n.node, n.overdraft)).collect();
    let resumed = match &event {
        Event::Unblock { lease, slots } => world.scheduler.lease(*lease).map(|view| {
            let cpu = view.lease.class.resources.get(&Kind::Cpu);
            (view.lease.node, times(cpu, (*slots).min(view.blocked)))
        }),
        _ => None,
    };
    if let Event::Demand { owner, key, class, backlog, .. } = &event {
        observer.wanted.insert(demand::Key { owner: *owner, key: *key }, (Arc::clone(class), *backlog));
    }
    // Conservation (S1) and settledness (S3) are checked in here.
    let effects = world.step(event);
    observer.effects(&effects);
    // S2: only resuming goes over, by no more than what resumed.
    for node in world.scheduler.nodes() {
        let allowed = resumed.filter(|(on, _)| *on == node.node).map_or(Quantity::ZERO, |(_, cpu)| cpu);
        let old = before.get(&node.node).copied().unwrap_or_default();
        assert!(node.overdraft <= old.plus(allowed));
        assert!(node.total.covers(&node.available));
    }
    // S4, and what waits is what the observer thinks.
    let ids: Vec<_> = world.scheduler.leases().map(|view| view.lease.id).collect();
    assert_eq!(ids, observer.leases.keys().copied().collect::<Vec<_>>());
    for demand in world.scheduler.demands() {
        assert_eq!(observer.wanted[&demand.id()].1, demand.backlog);
        assert!(!world.scheduler.why(demand.owner, demand.key).unwrap().is_empty());
    }
    all.extend(effects);
}

/// Nobody has work: who is asked gives back at once. Then whatever still waits is held up only by leases that
/// matter more, by its own, or by the lack of a node.
fn settle(world: &mut World, observer: &mut Observer, all: &mut Vec<Effect>) {
    // Long backlogs are cut short so that this ends soon.
    let long: Vec<_> = world.scheduler.demands().filter(|d| d.backlog > 5).cloned().collect();
    for d in long {
        let (owner, key, job, class, locality) = (d.owner, d.key, d.job, d.class, d.locality);
        let event = Event::Demand { owner, key, job, class, backlog: 5, attempt: 0, locality };
        step(world, observer, event, all);
    }
    let mut rounds = 0;
    loop {
        rounds += 1;
        assert!(rounds < 2000, "it settles");
        world.now = world.now.plus(Millis(1000));
        for id in observer.leases.keys().copied().collect::<Vec<_>>() {
            step(world, observer, Event::Renew { lease: id }, all);
        }
        let from = all.len();
        step(world, observer, Event::Tick, all);
        let asked: Vec<LeaseId> = all[from..]
            .iter()
            .filter_map(|effect| match effect {
                Effect::Revoke { lease, kind: RevokeKind::Idle, .. } => Some(*lease),
                _ => None,
            })
            .collect();
        if asked.is_empty() {
            break;
        }
        for lease in asked {
            step(world, observer, Event::Release { lease }, all);
        }
    }
    for demand in world.scheduler.demands() {
        for node in world.scheduler.nodes().filter(|n| !n.draining) {
            let class = &demand.class;
            let labels = class.labels.iter().all(|rule| rule.holds(node.labels));
            let here = !matches!(&class.strategy, Strategy::Node { node: n, soft: false } if *n != node.node);
            if !labels || !here || class.resources.is_empty() || !node.total.covers(&class.resources) {
                continue;
            }
            let holds_up = world.scheduler.leases().any(|view| {
                let lease = view.lease;
                let same = (lease.owner, lease.key) == (demand.owner, demand.key);
                lease.node == node.node && (same || lease.priority > class.priority)
            });
            assert!(holds_up, "{demand:?} waits beside {node:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_and_runs_repeat(
        seed in 0..4_u64,
        begun in any::<bool>(),
        rest in prop::collection::vec(op(), 0..120),
    ) {
        let mut ops = if begun { vec![Op::Up(1, 1, 2), Op::Up(2, 1, 3)] } else { Vec::new() };
        ops.extend(rest);
        let first = run(seed, &ops);
        prop_assert_eq!(first, run(seed, &ops));
    }
}
