//! Objects of dead owners: what [`Estate`](mobula_ownership::Estate) decides, carried out. It says what is kept for whom;
//! the head says when all living hosts have been heard ([`ToHead::Mourned`] of every node, then `Buried`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mobula_ownership::{Act, Answers, Estate};
use mobula_proto::{
    Failure, HostId, JobId, NodeId, ObjectId,
    head::{Between, ToHead},
    host::ToHost,
    peer::Record,
};

use super::{Core, Effect, objects::Objects};

/// Claims that are not answered are made again at least so much later, and at most twice as much.
const CLAIM_AGAIN: Duration = Duration::from_secs(2);
/// How long a host may take to say what it holds of what a dead one owned. One that is stopped says nothing, and meanwhile
/// nothing goes that the dead one owned or borrowed, whosever it is.
const MOURN_WAIT: Duration = Duration::from_secs(60);

/// What this node has of an object: the primary copy, or one that was pulled from a node that is gone.
fn here<'a>(
    objects: &'a Objects,
    me: NodeId,
    gone: &'a BTreeMap<u32, u32>,
) -> impl Fn(ObjectId) -> Option<Record> + 'a {
    move |object| objects.primary(object, me, |node| is_gone(gone, node))
}

/// Whether the head said that a node is gone.
pub(super) fn is_gone(gone: &BTreeMap<u32, u32>, node: NodeId) -> bool {
    gone.get(&node.number).is_some_and(|last| node.incarnation <= *last)
}

impl Core {
    fn with_estate(&mut self, step: impl FnOnce(&mut Estate, &mut Vec<Act>)) {
        let mut acts = Vec::new();
        step(&mut self.estate, &mut acts);
        self.carry_out(acts);
    }

    fn carry_out(&mut self, acts: Vec<Act>) {
        for act in acts {
            if let Act::Answer { answers, .. } | Act::Tell { answers, .. } = &act {
                self.keep_what_is_claimed(answers);
            }
            let (to, message) = match act {
                Act::Ask { node, host, number, objects } => {
                    let gone =
                        self.deaths.keys().filter(|dead| dead.is_agent()).map(|dead| dead.node).collect();
                    (node, Between::Claim { host, number, objects, gone })
                }
                Act::Answer { node, host, number, answers } => {
                    (node, Between::Claimed { host, number, by: self.config.node, answers })
                }
                Act::Unclaim { node, host, object } => (node, Between::Unclaim { host, object }),
                Act::Tell { host, answers } => {
                    self.tell(host, ToHost::Claimed { answers });
                    continue;
                }
                Act::Mourned { host } => {
                    self.mourn_until.remove(&host);
                    self.effects.push(Effect::Head(ToHead::Mourned { host }));
                    continue;
                }
                Act::Free { object } => {
                    self.unwill(object);
                    self.free_here(object, 0..=u32::MAX, None);
                    continue;
                }
            };
            if self.nodes.contains_key(&to) {
                self.effects.push(Effect::Peer(to, message));
            }
        }
    }

    /// What was pulled, and is kept for somebody now, is the primary copy.
    fn keep_what_is_claimed(&mut self, answers: &Answers) {
        let me = self.config.node;
        let records = answers.iter().filter_map(|(object, record)| Some((*object, record.as_ref()?.copy)));
        for (object, copy) in records.filter(|(_, copy)| copy.node == me) {
            // Its owner may live, whatever its claimant has heard, and look for it.
            self.keep_salvaged((object, copy.attempt, copy.job));
        }
    }

    fn others(&self) -> BTreeSet<NodeId> {
        self.nodes.keys().copied().filter(|node| *node != self.config.node).collect()
    }

    fn ready_hosts(&self) -> Vec<HostId> {
        self.hosts.iter().filter(|(_, host)| host.ready).map(|(id, _)| id).collect()
    }

    /// A host is ready: it is welcomed, and told of the deaths that others still mourn, before anybody knows of it.
    pub(super) fn welcomed(&mut self, id: HostId, job: JobId) {
        self.effects.push(Effect::Ready(id, job));
        if let Some(welcome) = self.welcome(id) {
            self.effects.push(Effect::Tell(id, ToHost::Welcome(welcome), Vec::new()));
        }
        for dead in self.estate.unburied() {
            let failure = self.deaths.get(&dead).cloned().unwrap_or_else(|| super::no_such_host(dead));
            let message = if dead.is_agent() {
                ToHost::NodeDied { node: dead.node, failure }
            } else {
                ToHost::HostDied { host: dead, failure }
            };
            self.effects.push(Effect::Tell(id, message, Vec::new()));
        }
    }

    /// A host died, here or elsewhere: those here are told, and mourn.
    pub(super) fn host_died(&mut self, dead: HostId, job: JobId, failure: &Failure, now: Instant) {
        for object in self.objects.taken_from(dead, job) {
            let gone = self.objects.free_of_others(object, job);
            self.gone(gone);
        }
        let hosts = self.ready_hosts();
        for host in hosts.iter().filter(|host| **host != dead) {
            self.tell(*host, ToHost::HostDied { host: dead, failure: failure.clone() });
        }
        self.deaths.insert(dead, failure.clone());
        self.mourn_until.insert(dead, now + MOURN_WAIT);
        self.with_estate(|estate, acts| estate.died(dead, hosts, acts));
    }

    /// A node died, of which the hosts here were told.
    pub(super) fn node_mourned(&mut self, node: NodeId, failure: Failure, now: Instant) {
        self.deaths.insert(node.agent(), failure);
        self.mourn_until.insert(node.agent(), now + MOURN_WAIT);
        let (hosts, others, mut acts) = (self.ready_hosts(), self.others(), Vec::new());
        let find = here(&self.objects, self.config.node, &self.gone_nodes);
        self.estate.node_gone(node, &others, find, &mut acts);
        self.estate.died(node.agent(), hosts, &mut acts);
        self.carry_out(acts);
    }

    /// A host here is gone, and mourns nobody any more.
    pub(super) fn mourns_no_more(&mut self, host: HostId) {
        self.with_estate(|estate, acts| estate.host_gone(host, acts));
    }

    /// A host here has claimed what it holds of what a dead one owned.
    pub(super) fn host_mourned(&mut self, by: HostId, dead: HostId) {
        self.with_estate(|estate, acts| estate.mourned(by, dead, acts));
    }

    /// Waits no longer for hosts that do not say what they hold: the memory of others is not theirs to keep.
    pub(super) fn bury_without_the_silent(&mut self, now: Instant) {
        let over: Vec<HostId> =
            self.mourn_until.iter().filter(|(_, until)| **until <= now).map(|(dead, _)| *dead).collect();
        for dead in over {
            self.mourn_until.remove(&dead);
            let mut silent = BTreeSet::new();
            self.with_estate(|estate, acts| silent = estate.waited(dead, acts));
            for host in silent {
                tracing::warn!(
                    %host, %dead,
                    "a host has not said for {} s what it holds of what a dead one owned, and is not waited for: is it stopped?",
                    MOURN_WAIT.as_secs()
                );
            }
        }
    }

    /// A host here claims objects of dead owners.
    pub(super) fn claim(&mut self, host: HostId, objects: Vec<(ObjectId, Option<NodeId>)>, now: Instant) {
        let (nodes, mut acts) = (self.others(), Vec::new());
        let find = here(&self.objects, self.config.node, &self.gone_nodes);
        self.estate.claim(host, objects, &nodes, find, &mut acts);
        self.carry_out(acts);
        if self.estate.is_asking() {
            self.ask_again_at.get_or_insert(now + CLAIM_AGAIN);
        }
    }

    /// Claims again what nobody has answered for a while: where too many messages wait for a node, further ones are lost.
    pub(super) fn ask_again(&mut self, now: Instant) {
        if self.ask_again_at.is_some_and(|at| at <= now) {
            self.with_estate(Estate::ask_again);
            self.ask_again_at = self.estate.is_asking().then(|| now + CLAIM_AGAIN);
        }
    }

    /// Another agent claims objects for a host of its own.
    pub(super) fn claimed_from_here(
        &mut self,
        host: HostId,
        number: u64,
        objects: Vec<ObjectId>,
        gone: &[NodeId],
    ) {
        let (me, here, known, mut acts) = (self.config.node, &self.objects, &self.gone_nodes, Vec::new());
        let is_gone = |node: NodeId| is_gone(known, node) || gone.contains(&node);
        let find = |object| here.primary(object, me, is_gone);
        self.estate.on_claim(host, number, objects, find, &mut acts);
        self.carry_out(acts);
    }

    /// The answer of another agent.
    pub(super) fn claims_answered(&mut self, from: NodeId, host: HostId, number: u64, answers: Answers) {
        let (nodes, mut acts) = (self.others(), Vec::new());
        let find = here(&self.objects, self.config.node, &self.gone_nodes);
        self.estate.on_claimed(from, (host, number), answers, &nodes, find, &mut acts);
        self.carry_out(acts);
    }

    /// A host here holds an object no more that `node` keeps for it.
    pub(super) fn release(&mut self, host: HostId, object: ObjectId, node: NodeId) {
        self.with_estate(|estate, acts| estate.release(host, object, node, acts));
    }

    /// An object here need not be kept for a host elsewhere any more.
    pub(super) fn unclaimed(&mut self, host: HostId, object: ObjectId) {
        self.with_estate(|estate, acts| estate.unclaim(host, object, acts));
    }

    /// Every living host was heard: what nobody has claimed of what the dead owned goes.
    pub(super) fn buried(&mut self, dead: HostId) {
        self.deaths.remove(&dead);
        for host in self.ready_hosts() {
            self.tell(host, ToHost::Buried { host: dead });
        }
        let (nodes, me) = (&self.nodes, self.config.node);
        let owned = self.objects.owned_by(dead, |node| node == me || nodes.contains_key(&node));
        self.with_estate(|estate, acts| estate.buried(dead, owned, acts));
        if dead.is_agent() {
            // Owners have looked elsewhere by now, and nobody says any more when these are to go.
            let objects = &self.objects;
            self.salvages.buried(dead.node, |key| objects.primary_bytes(key).is_some());
            let gone = self.objects.drop_pulled_from(dead.node);
            self.gone(gone);
            self.pump();
        }
    }

    /// Whether a node is gone, and every living host was heard about that.
    pub(super) fn is_buried(&self, node: NodeId) -> bool {
        self.has_gone(node) && !self.deaths.contains_key(&node.agent())
    }

    /// A job has ended, and its objects have gone.
    pub(super) fn estate_without(&mut self) {
        let (objects, me) = (&self.objects, self.config.node);
        self.salvages.retain(|key| objects.primary_bytes(key).is_some());
        self.estate.retain(|object| objects.primary(object, me, |_| false).is_some());
        self.will_without();
    }
}
