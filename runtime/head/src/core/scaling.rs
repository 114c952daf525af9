//! Nodes that are started when they are needed and drained when they are not: what the core knows about that. Who
//! starts them, and the plan, are outside: see [`crate::scaling`].

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{
    Group, GroupId, NodeId, Quantity, Resources,
    head::{Register, ScalingSnapshot},
    resource::{Class, Kind, LABEL_INSTANCE, LABEL_NODE_TYPE, Strategy},
};
use mobula_scheduler::{
    Apart, Gang, Millis, NodeView, Unmet,
    autoscale::{self, NodeType},
};
use tracing::info;

use super::{Core, Effect, PeerKind, drain::Drain, jobs::Entry, members::Member};

/// Most idle nodes that begin to drain in one step.
const DRAINS_MAX: usize = 64;
/// Most types of nodes that are named where several could hold what waits.
const TYPES_TOLD_MAX: usize = 3;

/// The cluster as a plan needs it.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// The nodes that are there, drivers' own left out.
    pub members: Vec<autoscale::Member>,
    /// Those of them that somebody started for the plan, by what that one calls them.
    pub instances: BTreeSet<String>,
    /// What waits.
    pub unmet: Vec<Unmet>,
    /// The head's time.
    pub now: Millis,
}

/// What speaks against draining a node on which nothing is granted.
struct Needs {
    /// Jobs would end with these.
    of_jobs: BTreeSet<NodeId>,
    /// These can take what lies in the stores of others.
    takers: BTreeSet<NodeId>,
}

impl Needs {
    /// Whether nothing would be lost with a node, and nothing is granted there.
    fn spare(&self, member: &Member, view: &NodeView<'_>) -> bool {
        let empty = member.usage.primaries == 0 || self.takers.iter().any(|taker| *taker != member.node);
        view.leases == 0 && view.available == *view.total && !self.of_jobs.contains(&member.node) && empty
    }
}

fn label<'a>(member: &'a Member, key: &str) -> Option<&'a str> {
    member.register.labels.iter().find(|(has, _)| has == key).map(|(_, value)| value.as_str())
}

impl Core {
    /// What a plan is made of. It is looked at in the same step which nodes run nothing, and since when.
    pub fn scene(&mut self, now: Millis) -> Scene {
        self.now = self.now.max(now);
        let needs = self.needs();
        let views: BTreeMap<_, _> = self.scheduler.nodes().map(|view| (view.node, view)).collect();
        let mut scene = Scene { unmet: self.scheduler.unmet(), now: self.now, ..Scene::default() };
        for member in self.nodes.values_mut().filter(|member| member.kind == PeerKind::Agent) {
            let Some(view) = views.get(&member.node) else { continue };
            member.idle_since = match member.idle_since {
                _ if !needs.spare(member, view) => None,
                None => Some(self.now),
                since => since,
            };
            scene.instances.extend(label(member, LABEL_INSTANCE).map(str::to_owned));
            scene.members.push(autoscale::Member {
                node: member.node,
                kind: label(member, LABEL_NODE_TYPE).map(str::to_owned),
                available: view.available.clone(),
                devices: self.scheduler.free_devices(member.node),
                labels: view.labels.to_vec(),
                idle_since: member.idle_since,
                draining: view.draining,
                may_stay: member.drain.as_ref().is_some_and(Drain::is_idle),
            });
        }
        scene
    }

    fn needs(&self) -> Needs {
        let of_jobs = self.jobs.values().flat_map(Entry::needs).collect();
        let takes = |member: &&Member| {
            member.kind == PeerKind::Agent && member.drain.is_none() && member.register.store_bytes > 0
        };
        Needs { of_jobs, takers: self.nodes.values().filter(takes).map(|member| member.node).collect() }
    }

    /// Carries out what was planned, as far as it still holds: nodes that drain because they were idle `stay`, and those
    /// of `drain` that are idle now, too, have `time` to leave.
    pub fn settle(&mut self, stay: &[NodeId], drain: &[NodeId], time: Millis, now: Millis) -> Vec<Effect> {
        self.now = self.now.max(now);
        for node in stay {
            self.call_back(*node);
        }
        let mut needs = self.needs();
        let mut room = DRAINS_MAX;
        for node in drain {
            let member = self.nodes.get(&node.number).filter(|member| member.node == *node);
            let free = |member: &Member| {
                let view = self.scheduler.node(*node);
                member.kind == PeerKind::Agent
                    && member.drain.is_none()
                    && view.is_some_and(|view| needs.spare(member, &view))
            };
            if room == 0 || !member.is_some_and(free) {
                continue;
            }
            room -= 1;
            info!(%node, "a node is not needed any more");
            self.begin_drain(*node, self.now.plus(time), true);
            needs.takers.remove(node);
        }
        std::mem::take(&mut self.out)
    }

    /// What was planned last, for people.
    pub fn scaled(&mut self, told: ScalingSnapshot) {
        self.scaling = Some(told);
    }

    /// Whether a node that could be started could hold this.
    pub(super) fn may_come(&self, slot: &Unmet) -> bool {
        self.startable().any(|of| autoscale::could_hold(of, slot))
    }

    /// Whether nodes that could be started would be of use to a group: all of it fits onto them, or onto them and those
    /// that are there.
    pub(super) fn group_may_come(&self, spec: &Group) -> bool {
        let types: Vec<NodeType> = self.startable().cloned().collect();
        if types.is_empty() {
            return false;
        }
        let bundles = bundles_of(GroupId { number: 0 }, spec);
        if autoscale::could_hold_all(&types, &[], &bundles) {
            return true;
        }
        let members = self.emptied();
        autoscale::could_hold_all(&types, &members, &bundles)
            && !autoscale::could_hold_all(&[], &members, &bundles)
    }

    /// What is done for shapes for which there is no room, in words: which nodes are on their way, or why none is. `None`
    /// where the head starts no nodes, or none would be of use.
    pub(super) fn why_no_node(&self, shapes: &[Unmet]) -> Option<String> {
        let types: Vec<NodeType> = self.startable().cloned().collect();
        if types.is_empty() || shapes.is_empty() {
            return None;
        }
        let fitting: Vec<&NodeType> = types
            .iter()
            .filter(|of| shapes.iter().any(|shape| autoscale::could_hold(of, shape)))
            .take(TYPES_TOLD_MAX)
            .collect();
        let group = shapes.iter().any(|shape| shape.gang.is_some());
        if fitting.is_empty() || group && !autoscale::could_hold_all(&types, &self.emptied(), shapes) {
            return Some("no node that may be started could hold it".to_owned());
        }
        let what = if group { "some of it" } else { "it" };
        let told: Vec<String> = fitting.into_iter().map(|of| self.why_none_of(of, what)).collect();
        Some(told.join("; "))
    }

    /// What the last look found of a type that could hold what waits, or `what` of it.
    fn why_none_of(&self, of: &NodeType, what: &str) -> String {
        let known =
            self.scaling.iter().flat_map(|scaling| &scaling.types).find(|known| known.name == of.name);
        let (name, max) = (&of.name, of.max);
        match known {
            Some(known) if known.coming == 1 => format!("a node of type {name} is on its way"),
            Some(known) if known.coming > 1 => {
                format!("{} nodes of type {name} are on their way", known.coming)
            }
            Some(known) if known.paused => {
                format!(
                    "a node of type {name} could hold {what}, but starting one failed, and is tried again later"
                )
            }
            Some(known) if known.nodes >= max => {
                format!(
                    "a node of type {name} could hold {what}, but there are {max} already, the most that may be"
                )
            }
            _ => format!("a node of type {name} could hold {what}, and may be started"),
        }
    }

    /// The types of which nodes may be started.
    fn startable(&self) -> impl Iterator<Item = &NodeType> {
        self.options.node_types.iter().filter(|of| of.max > 0)
    }

    /// The members that stay, as they would be with nothing on them.
    pub(super) fn emptied(&self) -> Vec<autoscale::Member> {
        let stays = |member: &&Member| {
            member.kind == PeerKind::Agent && member.drain.as_ref().is_none_or(Drain::is_idle)
        };
        let emptied = |member: &Member| autoscale::Member {
            node: member.node,
            kind: label(member, LABEL_NODE_TYPE).map(str::to_owned),
            available: member.register.total.clone(),
            devices: devices(&member.register),
            labels: member.register.labels.clone(),
            idle_since: None,
            draining: false,
            may_stay: false,
        };
        self.nodes.values().filter(stays).map(emptied).collect()
    }
}

/// A node's devices, whole. It may say how many there are without listing them.
fn devices(register: &Register) -> Vec<(Kind, Quantity)> {
    let counted = register.total.iter().filter(|(kind, _)| kind.is_device()).flat_map(|(kind, amount)| {
        let count = usize::try_from(amount.times(Quantity::ONE)).unwrap_or(0);
        std::iter::repeat_n((kind.clone(), Quantity::ONE), count)
    });
    counted.collect()
}

/// Slots of a class as a shape for which nodes could be added; none where no other node would be of use to it.
pub(super) fn slots_of(class: &Class, count: u64) -> Vec<Unmet> {
    if matches!(class.strategy, Strategy::Node { soft: false, .. } | Strategy::Group { .. }) {
        return Vec::new();
    }
    let apart = (class.strategy == Strategy::Apart).then(|| Apart { kind: 0, on: Vec::new() });
    vec![Unmet {
        resources: class.resources.clone(),
        labels: class.labels.clone(),
        fallbacks: class.fallbacks.clone(),
        count,
        gang: None,
        apart,
        limits: Vec::new(),
        turn: 0,
    }]
}

/// The same of all bundles of a group.
pub(super) fn bundles_of(group: GroupId, spec: &Group) -> Vec<Unmet> {
    let (arrange, place) = (spec.arrange, spec.place.clone());
    let gang = Gang { group, arrange, place, on: Vec::new() };
    let mut counts: BTreeMap<&Resources, u64> = BTreeMap::new();
    spec.bundles.iter().for_each(|bundle| *counts.entry(bundle).or_default() += 1);
    let shape = |(resources, count): (&Resources, u64)| Unmet {
        resources: resources.clone(),
        labels: spec.labels.clone(),
        fallbacks: Vec::new(),
        count,
        gang: Some(gang.clone()),
        apart: None,
        limits: Vec::new(),
        turn: 0,
    };
    counts.into_iter().map(shape).collect()
}
