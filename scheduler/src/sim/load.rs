//! Clusters and work as they may be found, made from a seed: for benchmarks.

use std::sync::Arc;

use mobula_proto::{
    Group, GroupId, JobId, NodeId, Quantity, Queue, Resources,
    group::Arrange,
    resource::{Class, Kind, Label, LabelRule, Strategy},
};

use super::Random;
use crate::Event;

const GIB: u64 = 1 << 30;
/// CPU, memory in GiB, GPU, and the label `kind` of each kind of node.
const KINDS: [(u64, u64, u64, &str); 8] = [
    (16, 64, 0, "small"),
    (32, 128, 0, "medium"),
    (64, 256, 0, "large"),
    (96, 768, 0, "memory"),
    (48, 192, 4, "gpu-4"),
    (96, 512, 8, "gpu-8"),
    (64, 256, 0, "spot"),
    (32, 256, 1, "gpu-1"),
];
const ZONES: [&str; 3] = ["a", "b", "c"];

fn zone(at: usize) -> &'static str {
    ZONES[at % ZONES.len()]
}

fn amounts(list: &[(Kind, u64)]) -> Resources {
    let mut all = Resources::none();
    for (kind, amount) in list {
        all.set(kind.clone(), Quantity::whole(*amount));
    }
    all
}

/// Nodes of eight kinds in three zones, each a node's join, numbered from 1.
pub fn nodes(count: u32) -> impl Iterator<Item = Event> {
    (1..=count).map(|number| {
        let (cpu, memory, gpu, kind) = KINDS[number as usize % KINDS.len()];
        let zone = zone((number / 8) as usize);
        let label = |key: &str, value: &str| -> Label { (key.to_owned(), value.to_owned()) };
        Event::NodeUp {
            node: NodeId { number, incarnation: 1 },
            total: amounts(&[(Kind::Cpu, cpu), (Kind::Memory, memory * GIB), (Kind::Gpu, gpu)]),
            devices: Vec::new(),
            labels: vec![label("kind", kind), label("zone", zone)]
                .into_iter()
                .chain((number % 5 == 0).then(|| label("nvme", "2")))
                .collect(),
        }
    })
}

/// Queues of several weights in a tree: ten at the top, the others below them.
pub fn queues(count: usize) -> Vec<Queue> {
    let name = |at: usize| format!("q{at}");
    let queue = |at: usize| Queue {
        parent: if at < 10 { String::new() } else { name(at % 10) },
        weight: Quantity::whole(1 + at as u64 % 4),
        ..Queue::new(name(at))
    };
    (0..count).map(queue).collect()
}

/// The `at`-th class of a seed, in one of so many queues: a quarter hybrid, and a twelfth for each of these: spread, preferring a
/// node, pinned to one, never two on a node, in a kind of node, in a zone, out of one, where a label is, and in a zone with
/// others to fall back on.
pub fn class(random: &mut Random, at: usize, queues: usize, nodes: u32) -> Class {
    let cpu = *random.pick(&[1, 1, 1, 2, 2, 4, 8]);
    let memory = *random.pick(&[0, 1, 2, 4, 8]) * cpu;
    let mut resources = amounts(&[(Kind::Cpu, cpu), (Kind::Memory, memory * GIB)]);
    if random.chance(10) {
        let units = *random.pick(&[
            Quantity::PER_ONE / 4,
            Quantity::PER_ONE / 2,
            Quantity::PER_ONE,
            2 * Quantity::PER_ONE,
        ]);
        resources.set(Kind::Gpu, Quantity::from_units(units).unwrap_or_default());
    }
    let (mut strategy, mut labels, mut fallbacks) = (Strategy::Hybrid, Vec::new(), Vec::new());
    match random.below(12) {
        0 => strategy = Strategy::Spread,
        1 => {
            let number = 1 + random.below(nodes as usize) as u32;
            strategy = Strategy::Node { node: NodeId { number, incarnation: 1 }, soft: true };
        }
        2 if resources.get(&Kind::Gpu).is_zero() => {
            let kind = *random.pick(&["large", "memory", "spot"]);
            labels = vec![LabelRule::In("kind".to_owned(), vec![kind.to_owned()])];
        }
        3 => labels = vec![LabelRule::one_of("zone", [*random.pick(&ZONES)])],
        4 => strategy = Strategy::Apart,
        5 if resources.get(&Kind::Gpu).is_zero() => {
            let number = 1 + (at as u32).wrapping_mul(7) % nodes;
            strategy = Strategy::Node { node: NodeId { number, incarnation: 1 }, soft: false };
        }
        6 => labels = vec![LabelRule::NotIn("zone".to_owned(), vec![zone(at).to_owned()])],
        7 => labels = vec![LabelRule::Exists("nvme".to_owned())],
        8 => {
            labels = vec![LabelRule::one_of("zone", [zone(at)])];
            fallbacks = vec![vec![LabelRule::one_of("zone", [zone(at + 1)])], Vec::new()];
        }
        _ => {}
    }
    let priority = if random.chance(10) { 1 } else { 0 };
    Class {
        function: format!("work-{at}"),
        resources,
        strategy,
        labels,
        fallbacks,
        priority,
        queue: if queues == 0 { String::new() } else { format!("q{}", random.below(queues)) },
        ..Class::default()
    }
}

/// The `at`-th group of a seed, as it is asked for: bundles alike, in one of the arrangements and of so many queues; some
/// need GPUs.
pub fn group(random: &mut Random, at: usize, bundles: usize, queues: usize) -> Event {
    let cpu = *random.pick(&[1, 1, 2, 4]);
    let memory = *random.pick(&[0, 1, 2, 4]) * cpu;
    let arranges = [Arrange::Pack, Arrange::Spread, Arrange::StrictPack, Arrange::StrictSpread];
    let arrange = *random.pick(&arranges);
    // As many GPUs together as groups need would soon be on no node.
    let gpu = if arrange != Arrange::StrictPack && random.chance(10) { 1 } else { 0 };
    let bundle = amounts(&[(Kind::Cpu, cpu), (Kind::Memory, memory * GIB), (Kind::Gpu, gpu)]);
    let spec = Group {
        bundles: vec![bundle; bundles],
        arrange,
        queue: if queues == 0 { String::new() } else { format!("q{}", random.below(queues)) },
        ..Group::default()
    };
    Event::Group {
        group: GroupId { number: 1 + at as u64 },
        job: JobId { number: 1 + (at % 100) as u64 },
        spec: Arc::new(spec),
    }
}
