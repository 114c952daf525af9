//! Nodes that are started when they are needed and drained when they are not: what the core knows about that. Who
//! starts them, and the plan, are outside: see [`crate::scaling`].

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{
    Resources,
    head::ScalingSnapshot,
    resource::{LABEL_INSTANCE, LABEL_NODE_TYPE, LabelRule},
};
use mobula_scheduler::{Millis, NodeView, Unmet, autoscale};

use super::{Core, PeerKind, members::Member};

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

fn label<'a>(member: &'a Member, key: &str) -> Option<&'a str> {
    member.register.labels.iter().find(|(has, _)| has == key).map(|(_, value)| value.as_str())
}

impl Core {
    /// What a plan is made of. It is looked at in the same step which nodes run nothing, and since when.
    pub fn scene(&mut self, now: Millis) -> Scene {
        self.now = self.now.max(now);
        let drivers: BTreeSet<_> = self.jobs.values().map(|entry| entry.job.driver.node).collect();
        let views: BTreeMap<_, _> = self.scheduler.nodes().map(|view| (view.node, view)).collect();
        let mut scene = Scene { unmet: self.scheduler.unmet(), now: self.now, ..Scene::default() };
        for member in self.nodes.values_mut().filter(|member| member.kind == PeerKind::Agent) {
            let Some(view) = views.get(&member.node) else { continue };
            let rests = |view: &NodeView<'_>| view.leases == 0 && view.available == *view.total;
            member.idle_since = match member.idle_since {
                _ if !rests(view) || drivers.contains(&member.node) => None,
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
            });
        }
        scene
    }

    /// What was planned last, for people.
    pub fn scaled(&mut self, told: ScalingSnapshot) {
        self.scaling = Some(told);
    }

    /// Whether a node that could be started could hold this.
    pub(super) fn may_come(
        &self,
        resources: &Resources,
        labels: &[LabelRule],
        fallbacks: &[Vec<LabelRule>],
    ) -> bool {
        let mut types = self.options.node_types.iter().filter(|of| of.max > 0).peekable();
        if types.peek().is_none() {
            return false;
        }
        let shape = Unmet {
            resources: resources.clone(),
            labels: labels.to_vec(),
            fallbacks: fallbacks.to_vec(),
            count: 1,
            gang: None,
            apart: None,
        };
        types.any(|of| autoscale::could_hold(of, &shape))
    }
}
