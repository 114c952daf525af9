//! Nodes that are to leave. Nothing new is granted there; tasks run to their end, actors that may be restarted and
//! primary copies of objects move to other nodes, and when nothing is left, or the time is over, the node goes. The wish is
//! on disk: after a restart of the head it holds as soon as the node is back.
//!
//! A node that is to leave because it is idle ([`Core::settle`]) leaves only if nothing is lost with it: if its time is over
//! before that, or it is needed, it stays. That wish is on no disk.

use std::{cmp::Reverse, collections::BTreeMap};

use mobula_proto::{
    Failure, FailureKind, LeaseId, NodeId,
    head::{DRAIN_TARGETS_MAX, DrainSnapshot, Left, ToAgent},
    host::{Eviction, Revocation},
};
use mobula_scheduler::{self as scheduler, Millis};
use tracing::{info, warn};

use super::{Core, Effect, Link, PeerKind, members::Member};
use crate::state::Record;

/// Longest time that a node may take to drain.
pub const DRAIN_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// When the time is over, what runs is taken away; so long it then has to be stopped and to start elsewhere.
pub const DRAIN_GRACE_MS: u64 = 3000;

/// A node that is to leave.
#[derive(Debug)]
pub(super) struct Drain {
    /// When the next step is due: what runs is taken away, or then the node goes.
    until: Millis,
    /// What ran was taken away.
    late: bool,
    /// Nobody told it to leave: it stays where it is needed, or anything would be lost with it.
    idle: bool,
    /// What the agent said last.
    left: Option<Left>,
    /// Where its copies go.
    to: Vec<NodeId>,
}

impl Drain {
    pub fn deadline(&self) -> Millis {
        self.until
    }

    /// Whether it drains only because it is idle.
    pub fn is_idle(&self) -> bool {
        self.idle
    }
}

/// Nodes that were to leave when the head ended, and have not come back yet.
#[derive(Debug)]
pub(super) struct Recovered {
    /// When the time of each is over, in milliseconds of Unix time, by the name in its certificate.
    waiting: BTreeMap<String, u64>,
    /// Who is not back by then has left.
    until: Millis,
}

impl Recovered {
    pub fn new(until: Millis) -> Self {
        Self { waiting: BTreeMap::new(), until }
    }

    pub fn insert(&mut self, name: String, until_unix_ms: u64) {
        self.waiting.insert(name, until_unix_ms);
    }

    fn deadline(&self) -> Option<Millis> {
        (!self.waiting.is_empty()).then_some(self.until)
    }
}

impl Core {
    /// Has a node leave, within `time` at the latest: `node` is its name or number (`node-3`). Said again of one that
    /// drains, it changes the time. It holds once the effects are applied.
    pub fn drain(&mut self, node: &str, time: Millis, now: Millis) -> Result<Vec<Effect>, Failure> {
        self.now = self.now.max(now);
        let id = self.node_called(node)?;
        let until = self.now.plus(Millis(time.0.min(DRAIN_MS_MAX)));
        match self.drain_of(id) {
            Some(drain) if !drain.late => (drain.until, drain.idle) = (until, false),
            Some(_) => return Err(refuse(format!("the time of {id} is over: it leaves now"))),
            None => self.begin_drain(id, until, false),
        }
        if let Some(member) = self.nodes.get(&id.number) {
            let until_unix_ms = self.options.begun_unix_ms.saturating_add(until.0);
            let record = Record::Drain { name: member.certificate.clone(), until_unix_ms };
            // Before any message that follows from it.
            self.out.insert(0, Effect::Persist(record));
        }
        Ok(std::mem::take(&mut self.out))
    }

    /// A node that drains stays after all.
    pub fn resume(&mut self, node: &str, now: Millis) -> Result<Vec<Effect>, Failure> {
        self.now = self.now.max(now);
        let id = self.node_called(node)?;
        if self.drain_of(id).is_none_or(|drain| drain.late) {
            return Err(refuse(format!("{id} does not drain, or leaves already")));
        }
        self.stay(id);
        Ok(std::mem::take(&mut self.out))
    }

    fn stay(&mut self, node: NodeId) {
        info!(%node, "a node stays after all");
        if let Some(member) = self.nodes.get_mut(&node.number) {
            // It is idle anew from here on.
            member.idle_since = None;
            let told = member.drain.take().is_some_and(|drain| !drain.idle);
            let record = told.then(|| Record::DrainGone { name: member.certificate.clone() });
            record.into_iter().for_each(|record| self.persist(record));
        }
        self.send_to_agent_of(node, ToAgent::Resume);
        self.schedule(scheduler::Event::NodeResume { node });
        self.aim_drains();
    }

    /// A node is needed: if it drains only because it was idle, it stays. Whether that was so.
    pub(super) fn call_back(&mut self, node: NodeId) -> bool {
        let idle = self.drain_of(node).is_some_and(|drain| drain.idle);
        if idle {
            self.stay(node);
        }
        idle
    }

    /// A living node of the cluster's own, by name or number.
    fn node_called(&self, name: &str) -> Result<NodeId, Failure> {
        let called = |member: &&Member| member.node.to_string() == name || member.register.name == name;
        let mut found = self.nodes.values().filter(called);
        match (found.next(), found.next()) {
            (Some(member), None) if member.kind == PeerKind::Agent => Ok(member.node),
            (Some(member), None) => {
                Err(refuse(format!("{} is a driver's own: it leaves when its program ends", member.node)))
            }
            (Some(one), Some(other)) => {
                Err(refuse(format!("{} and {} have this name: say which", one.node, other.node)))
            }
            (None, _) => {
                let name: String = name.chars().take(mobula_proto::resource::NAME_BYTES_MAX).collect();
                Err(refuse(format!("there is no node {name:?}: `mobula status` lists them")))
            }
        }
    }

    fn drain_of(&mut self, node: NodeId) -> Option<&mut Drain> {
        self.nodes.get_mut(&node.number).filter(|member| member.node == node)?.drain.as_mut()
    }

    /// A node that was to leave before the head ended is back: it goes on to drain, for as long as it had.
    pub(super) fn drain_again(&mut self, node: NodeId) {
        let member = self.nodes.get(&node.number).filter(|member| member.kind == PeerKind::Agent);
        let Some(until) = member.and_then(|member| self.recovered.waiting.remove(&member.certificate)) else {
            return;
        };
        let until = Millis(until.saturating_sub(self.options.begun_unix_ms)).max(self.now);
        self.begin_drain(node, until, false);
    }

    /// From here on a node drains: because it is `idle`, or since it was told to.
    pub(super) fn begin_drain(&mut self, node: NodeId, until: Millis, idle: bool) {
        info!(%node, "a node drains");
        if let Some(member) = self.nodes.get_mut(&node.number) {
            member.drain = Some(Drain { until, late: false, idle, left: None, to: Vec::new() });
        }
        self.schedule(scheduler::Event::NodeDrain { node });
        for (lease, owner) in self.leases.announced_on(node) {
            self.send_to_agent_of(owner.node, ToAgent::Revoked { owner, lease, kind: Revocation::Draining });
        }
        // It is told even where there is nowhere to go.
        self.send_to_agent_of(node, ToAgent::Drain { to: Vec::new() });
        self.aim_drains();
    }

    /// A lease is announced: one on a node that drains is wanted back at once.
    pub(super) fn announced(&mut self, lease: LeaseId, owner: mobula_proto::HostId, node: NodeId) {
        if self.drain_of(node).is_some() {
            self.send_to_agent_of(owner.node, ToAgent::Revoked { owner, lease, kind: Revocation::Draining });
        }
    }

    /// Tells nodes that drain where their copies may go, where that has changed.
    pub(super) fn aim_drains(&mut self) {
        if self.nodes.values().all(|member| member.drain.is_none()) {
            return;
        }
        let may = |member: &&Member| {
            member.drain.is_none() && member.kind == PeerKind::Agent && member.register.store_bytes > 0
        };
        let mut to: Vec<(Reverse<u64>, NodeId)> = self
            .nodes
            .values()
            .filter(may)
            .map(|member| {
                let free = member.register.store_bytes.saturating_sub(member.usage.store_used_bytes);
                (Reverse(free), member.node)
            })
            .collect();
        to.sort_unstable();
        let to: Vec<NodeId> = to.into_iter().take(DRAIN_TARGETS_MAX).map(|(_, node)| node).collect();
        let mut told = Vec::new();
        for member in self.nodes.values_mut() {
            let Some(drain) = &mut member.drain else { continue };
            let same = drain.to.len() == to.len() && drain.to.iter().all(|node| to.contains(node));
            if !same {
                drain.to.clone_from(&to);
                told.push(member.node);
            }
        }
        for node in told {
            self.send_to_agent_of(node, ToAgent::Drain { to: to.clone() });
        }
    }

    /// A node that drains says what is left there.
    pub(super) fn draining(&mut self, from: NodeId, left: Left) {
        let Some(drain) = self.drain_of(from) else { return };
        drain.left = Some(left);
        if drain.idle && (left.drivers > 0 || left.objects > 0 && drain.to.is_empty()) {
            // It was not known when it began: a job runs there, or nobody can take what lies there.
            return self.stay(from);
        }
        self.dismiss_if_empty(from);
    }

    fn dismiss_if_empty(&mut self, node: NodeId) {
        let empty = self.drain_of(node).is_some_and(|drain| drain.left == Some(Left::default()));
        if empty && self.leases.on_node(node) == 0 {
            self.dismiss(node);
        }
    }

    fn dismiss(&mut self, node: NodeId) {
        let Some((link, late)) =
            self.nodes.get(&node.number).and_then(|member| Some((member.link, member.drain.as_ref()?.late)))
        else {
            return;
        };
        let how = if late { "had no more time to drain" } else { "has drained" };
        info!(%node, "a node {how}, and leaves");
        self.part(
            link,
            ToAgent::Dismissed,
            Failure::new(FailureKind::NodeDied, format!("{node} {how}, and left")),
        );
    }

    /// The last word to a node, which is gone with it.
    fn part(&mut self, link: Link, message: ToAgent, failure: Failure) {
        self.send(link, message);
        self.out.push(Effect::Close(link));
        self.node_lost(link, failure);
    }

    /// The time of nodes that drain may be over.
    pub(super) fn time_out_drains(&mut self) {
        let due: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|member| member.drain.as_ref().is_some_and(|drain| drain.until <= self.now))
            .map(|member| member.node)
            .collect();
        for node in due {
            let grace = self.now.plus(Millis(DRAIN_GRACE_MS));
            if self.call_back(node) {
                continue;
            }
            let Some(drain) = self.drain_of(node) else { continue };
            if std::mem::replace(&mut drain.late, true) {
                self.dismiss(node);
                continue;
            }
            drain.until = grace;
            warn!(%node, "a node has no more time to drain: what runs there is taken away");
            for (lease, owner) in self.leases.evict_on(node) {
                let kind = Revocation::Evicted { keep: 0, why: Eviction::NodeLeaves };
                self.send_to_agent_of(owner.node, ToAgent::Revoked { owner, lease, kind });
                self.schedule(scheduler::Event::Release { lease });
            }
        }
        if self.recovered.deadline().is_some_and(|until| until <= self.now) {
            for name in std::mem::take(&mut self.recovered.waiting).into_keys() {
                self.persist(Record::DrainGone { name });
            }
        }
        let draining: Vec<NodeId> =
            self.nodes.values().filter(|member| member.drain.is_some()).map(|member| member.node).collect();
        draining.into_iter().for_each(|node| self.dismiss_if_empty(node));
    }

    /// When the time of a node that drains is over.
    pub(super) fn drain_deadline(&self) -> Option<Millis> {
        let nodes = self.nodes.values().filter_map(|member| member.drain.as_ref()).map(Drain::deadline);
        nodes.chain(self.recovered.deadline()).min()
    }

    /// A node that drains, for people.
    pub(super) fn drain_snapshot(&self, member: &Member) -> Option<DrainSnapshot> {
        let drain = member.drain.as_ref()?;
        let more = if drain.late { 0 } else { drain.until.0.saturating_sub(self.now.0) };
        Some(DrainSnapshot {
            leases: self.leases.on_node(member.node) as u64,
            counted: drain.left.is_some(),
            left: drain.left.unwrap_or_default(),
            seconds_left: more as f64 / 1000.0,
        })
    }
}

fn refuse(why: String) -> Failure {
    Failure::new(FailureKind::Node, why)
}
