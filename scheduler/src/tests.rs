//! Scenarios read like tables: a world, what happens, and which grants or texts follow.

mod arrange;
mod effort;
mod groups;
mod lifecycle;
mod preempt;
mod property;
mod rules;
mod sharing;
mod strategies;
mod texts;

use std::sync::Arc;

use mobula_proto::{
    HostId, JobId, LeaseId, NodeId, Quantity, Resources,
    resource::{Class, Kind, Label, LabelRule, Strategy},
};

use crate::{Effect, Event, Lease, Millis, Options, RevokeKind, Scheduler};

pub(crate) fn node(number: u32) -> NodeId {
    NodeId { number, incarnation: 1 }
}

/// The first host of a node that is not part of the cluster, unless the node is.
pub(crate) fn host(number: u32) -> HostId {
    HostId { node: node(number), seq: 1 }
}

/// `"2 cpu 0.5 gpu 1GiB memory"`.
pub(crate) fn resources(text: &str) -> Resources {
    let words: Vec<&str> = text.split_whitespace().collect();
    let pairs = words.chunks(2).map(|pair| (Kind::parse(pair[1]).unwrap(), pair[0].parse().unwrap()));
    Resources::from_list(pairs).unwrap()
}

pub(crate) fn class(text: &str) -> Class {
    Class { function: "f".to_owned(), resources: resources(text), ..Class::default() }
}

pub(crate) fn spread(text: &str) -> Class {
    Class { strategy: Strategy::Spread, ..class(text) }
}

pub(crate) fn on(number: u32, soft: bool, text: &str) -> Class {
    Class { strategy: Strategy::Node { node: node(number), soft }, ..class(text) }
}

pub(crate) fn labelled(rules: &[LabelRule], text: &str) -> Class {
    Class { labels: rules.to_vec(), ..class(text) }
}

pub(crate) fn is_in(key: &str, values: &[&str]) -> LabelRule {
    LabelRule::In(key.to_owned(), values.iter().map(|v| (*v).to_owned()).collect())
}

/// A scheduler and its time, with short ways to say what happens.
pub(crate) struct World {
    pub scheduler: Scheduler,
    pub now: Millis,
}

impl World {
    /// Nodes numbered from 1, each as [`resources`] reads it, with labels `key=value` after a bar.
    pub fn new(nodes: &[&str]) -> Self {
        Self::with(Options::default(), nodes)
    }

    pub fn with(options: Options, nodes: &[&str]) -> Self {
        let mut world = Self { scheduler: Scheduler::new(options), now: Millis(0) };
        for (number, text) in (1..).zip(nodes) {
            world.up(node(number), text);
        }
        world
    }

    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.scheduler.step(event, self.now);
        self.scheduler.conserved().unwrap();
        self.scheduler.settled().unwrap();
        effects
    }

    pub fn up(&mut self, node: NodeId, text: &str) -> Vec<Effect> {
        let (amounts, labels) = text.split_once('|').unwrap_or((text, ""));
        let label = |word: &str| -> Label {
            let (key, value) = word.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        };
        let labels = labels.split_whitespace().map(label).collect();
        self.step(Event::NodeUp { node, total: resources(amounts), devices: Vec::new(), labels })
    }

    /// Asks as job 1.
    pub fn ask(&mut self, owner: HostId, key: u32, class: &Class, backlog: u32) -> Vec<Effect> {
        self.ask_as(1, owner, key, class, backlog, &[])
    }

    pub fn ask_as(
        &mut self,
        job: u64,
        owner: HostId,
        key: u32,
        class: &Class,
        backlog: u32,
        locality: &[(NodeId, u64)],
    ) -> Vec<Effect> {
        self.step(Event::Demand {
            owner,
            key,
            job: JobId { number: job },
            class: Arc::new(class.clone()),
            backlog,
            attempt: 0,
            locality: locality.to_vec(),
        })
    }

    pub fn release(&mut self, number: u64) -> Vec<Effect> {
        self.step(Event::Release { lease: LeaseId { number } })
    }

    pub fn tick(&mut self, after: u64) -> Vec<Effect> {
        self.now = self.now.plus(Millis(after));
        self.step(Event::Tick)
    }

    pub fn available(&self, number: u32) -> String {
        self.scheduler.nodes().find(|n| n.node.number == number).unwrap().available.to_string()
    }
}

/// `node-1 x2, node-2 x1`; devices as `node-1 GPU 0:0.5`; other effects by name.
pub(crate) fn show(effects: &[Effect]) -> String {
    let one = |effect: &Effect| match effect {
        Effect::Grant(lease) if lease.devices.is_empty() => format!("{} x{}", lease.node, lease.slots),
        Effect::Grant(lease) => {
            let devices: Vec<_> =
                lease.devices.iter().map(|d| format!("{} {}:{}", d.kind, d.index, d.share)).collect();
            format!("{} {}", lease.node, devices.join("+"))
        }
        Effect::Revoke { lease, kind, .. } => format!(
            "{} {lease}",
            match kind {
                RevokeKind::Idle => "idle?",
                RevokeKind::Expired => "expired",
                RevokeKind::NodeLost => "lost",
                RevokeKind::Preempted { .. } => "preempted",
                RevokeKind::Evicted => "evicted",
                RevokeKind::Removed => "removed",
                RevokeKind::Draining => "draining",
            }
        ),
        Effect::Ended { lease, .. } => format!("ended {lease}"),
        Effect::Infeasible { error, .. } => format!("infeasible: {error}"),
        Effect::GroupPlaced { group, bundles } => {
            let places: Vec<_> = bundles.iter().map(|b| format!("{}:{}", b.bundle, b.node)).collect();
            format!("{group} {}", places.join("+"))
        }
        Effect::GroupRevoked { group, .. } => format!("{group} revoked"),
        Effect::GroupLost { group, bundles, .. } => format!("{group} lost {bundles:?}"),
        Effect::GroupInfeasible { group, error } => format!("{group} infeasible: {error}"),
    };
    effects.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A fraction as the tests write it.
pub(crate) fn amount(text: &str) -> Quantity {
    text.parse().unwrap()
}
