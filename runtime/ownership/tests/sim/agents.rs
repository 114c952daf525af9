//! Agents and the head, as far as the dead concern them: who hears of a death when, who mourns, who keeps what for whom.

use std::collections::{BTreeMap, BTreeSet};

use mobula_ownership::{Act, Answers, Estate};
use mobula_proto::{
    Failure, FailureKind, HostId, NodeId, ObjectId,
    peer::{Copy, Record, State},
};

use super::{Event, JOB, Time, Wire, World};

/// The longest that the head takes to notice that a node is dead.
const NOTICED_WITHIN: Time = 100_000;

/// The agent of one node.
pub struct Agent {
    pub node: NodeId,
    pub alive: bool,
    estate: Estate,
    /// The other nodes that live, as far as it knows.
    nodes: BTreeSet<NodeId>,
    /// Hosts here whose end it has seen.
    gone: BTreeSet<HostId>,
    /// What it inherited and others keep for it.
    willed: BTreeSet<(ObjectId, u32)>,
}

impl Agent {
    pub fn new(node: NodeId, nodes: &BTreeSet<NodeId>, part_refs: usize) -> Self {
        let nodes = nodes.iter().copied().filter(|other| *other != node).collect();
        Self {
            node,
            alive: true,
            estate: Estate::with_parts(node, part_refs),
            nodes,
            gone: BTreeSet::new(),
            willed: BTreeSet::new(),
        }
    }

    /// Whether it has not heard that this other node is gone.
    pub fn knows(&self, node: NodeId) -> bool {
        self.nodes.contains(&node)
    }

    /// The other nodes that live.
    pub fn others(&self) -> BTreeSet<NodeId> {
        self.nodes.clone()
    }
}

/// The head: for whom which nodes have not mourned yet.
#[derive(Default)]
pub struct Head {
    nodes: BTreeSet<NodeId>,
    burials: BTreeMap<HostId, BTreeSet<NodeId>>,
}

impl Head {
    pub fn new(nodes: BTreeSet<NodeId>) -> Self {
        Self { nodes, burials: BTreeMap::new() }
    }
}

/// What travels between hosts, agents and the head.
pub enum News {
    // A host to its agent.
    Claim(Vec<(ObjectId, Option<NodeId>)>),
    Unclaim(ObjectId, NodeId),
    Mourned(HostId),
    Lost(NodeId),
    // An agent to a host.
    Claimed(Answers),
    Copies(NodeId, Vec<(ObjectId, Copy)>, bool),
    // An agent to another.
    Ask(HostId, u64, Vec<ObjectId>, BTreeSet<NodeId>),
    Answer(HostId, u64, Answers),
    Release(HostId, ObjectId),
    Give((ObjectId, u32)),
    Given((ObjectId, u32)),
    Salvage(HostId, NodeId),
    Salvaged(HostId, NodeId, Vec<(ObjectId, Copy)>),
    // An agent to the head.
    Ended(HostId),
    AllMourned(HostId),
    // The head to agents, and those to hosts. An agent stands for the hosts of its node.
    Died(HostId),
    Buried(HostId),
}

impl World {
    /// The party that an agent is; the head comes behind the last.
    pub fn agent_party(&self, node: NodeId) -> usize {
        self.hosts.len() + self.agents.iter().position(|agent| agent.node == node).unwrap()
    }

    pub fn head_party(&self) -> usize {
        self.hosts.len() + self.agents.len()
    }

    /// A host tells its agent something.
    pub fn tell_agent(&mut self, at: usize, news: News) {
        let agent = self.agent_party(self.hosts[at].id.node);
        self.send(at, agent, Wire::News(news));
    }

    /// What the store of a node has of an object: the newest attempt's copy.
    fn find(&self, node: NodeId, object: ObjectId, from: impl Fn(NodeId) -> bool) -> Option<Record> {
        let here = |key: &&(ObjectId, u32)| self.is_at(**key, node);
        let mut all = self.values.range((object, 0)..=(object, u32::MAX));
        let found = all.rfind(|(key, _)| here(key)).map(|(key, _)| *key);
        let key = found.or_else(|| self.pulled_to(node, object, from))?;
        if !self.is_named(key, node) {
            return None;
        }
        let ((_, attempt), contains) = self.values.get_key_value(&key)?;
        Some(Record {
            copy: Copy { node, bytes: 1, attempt: *attempt, job: JOB },
            at: 0,
            contains: contains.clone(),
            more: false,
        })
    }

    fn with_estate(&mut self, agent: usize, call: impl FnOnce(&mut Estate, &Self, &mut Vec<Act>)) {
        let (node, mut acts) = (self.agents[agent].node, Vec::new());
        let mut estate = std::mem::replace(&mut self.agents[agent].estate, Estate::new(node));
        call(&mut estate, self, &mut acts);
        self.agents[agent].estate = estate;
        self.act_on(agent, acts);
    }

    fn act_on(&mut self, agent: usize, acts: Vec<Act>) {
        let (node, party) = (self.agents[agent].node, self.hosts.len() + agent);
        for act in acts {
            if let Act::Answer { answers, .. } | Act::Tell { answers, .. } = &act {
                let records =
                    answers.iter().filter_map(|(object, record)| Some((*object, record.as_ref()?.copy)));
                for (object, copy) in records.filter(|(_, copy)| copy.node == node) {
                    self.copies.salvaged[1] += u64::from(self.keep((object, copy.attempt), node));
                }
            }
            let (to, news) = match act {
                Act::Ask { node, host, number, objects } => {
                    let gone = self.gone_for(agent);
                    (self.agent_party(node), News::Ask(host, number, objects, gone))
                }
                Act::Answer { node, host, number, answers } => {
                    (self.agent_party(node), News::Answer(host, number, answers))
                }
                Act::Tell { host, answers } => (self.number(host), News::Claimed(answers)),
                Act::Unclaim { node, host, object } => (self.agent_party(node), News::Release(host, object)),
                Act::Mourned { host } => (self.head_party(), News::AllMourned(host)),
                Act::Free { object } => {
                    self.free_orphan(node, object);
                    continue;
                }
            };
            self.send(party, to, Wire::News(news));
        }
    }

    fn free_orphan(&mut self, node: NodeId, object: ObjectId) {
        assert!(!self.hosts[self.number(object.owner)].alive, "the owner of {object} lives");
        let is_here = |key: &(ObjectId, u32)| self.is_at(*key, node);
        let all = self.values.range((object, 0)..=(object, u32::MAX));
        let here: Vec<(ObjectId, u32)> = all.map(|(key, _)| *key).filter(is_here).collect();
        // A result that its owner did not want may lie here, too.
        let last = self.hosts[self.number(object.owner)].own.state(object);
        let doubled = |key| self.is_double(key, node) || self.double(key, node).is_some();
        let elsewhere = here.iter().any(|key| self.given.contains_key(key) || doubled(*key));
        if !here.is_empty() && !elsewhere && !matches!(last, Some(State::Failed(_) | State::Inline { .. })) {
            self.assert_unreachable(object);
        }
        self.inherited += here.len() as u64;
        for key in here {
            let heir = self.given.get(&key).copied();
            if heir == Some(node) {
                self.given.remove(&key);
            } else if self.is_double(key, node) || !self.succeed(key) {
                self.remove_at(key, node);
            } else if let Some(heir) = heir {
                let agent = self.agent_party(node);
                if self.agents[agent - self.hosts.len()].willed.remove(&key) {
                    self.send(agent, self.agent_party(heir), Wire::News(News::Release(node.agent(), object)));
                }
            }
        }
    }

    /// Whether an agent is the owner of record.
    pub fn has(&self, agent: usize, object: ObjectId) -> bool {
        self.agents[agent].estate.has(object)
    }

    /// Something was sealed in the store of a node.
    pub fn sealed(&mut self, node: NodeId, object: ObjectId) {
        let agent = self.agents.iter().position(|agent| agent.node == node).unwrap();
        if self.agents[agent].estate.is_late(object) {
            self.free_orphan(node, object);
        }
    }

    /// Nodes that an agent knows to be gone.
    fn gone_for(&self, agent: usize) -> BTreeSet<NodeId> {
        let Agent { node, ref nodes, .. } = self.agents[agent];
        let all = self.agents.iter().map(|agent| agent.node);
        all.filter(|other| *other != node && !nodes.contains(other)).collect()
    }

    fn hosts_at(&self, node: NodeId) -> Vec<HostId> {
        self.hosts.iter().filter(|host| host.born && host.id.node == node).map(|host| host.id).collect()
    }

    /// An agent hears of a death, and tells its hosts.
    fn agent_hears(&mut self, agent: usize, dead: HostId) {
        let Agent { node, ref gone, .. } = self.agents[agent];
        let hosts: Vec<HostId> =
            self.hosts_at(node).into_iter().filter(|host| *host != dead && !gone.contains(host)).collect();
        if dead.is_agent() {
            self.agents[agent].nodes.remove(&dead.node);
            self.salvage_without(agent, dead.node);
            let nodes = self.agents[agent].nodes.clone();
            self.with_estate(agent, |estate, world, acts| {
                let gone = |from| from != node && !nodes.contains(&from);
                estate.node_gone(dead.node, &nodes, |object| world.find(node, object, gone), acts);
            });
        }
        for host in &hosts {
            let to = self.number(*host);
            self.send(self.hosts.len() + agent, to, Wire::News(News::Died(dead)));
        }
        self.with_estate(agent, |estate, _, acts| estate.died(dead, hosts, acts));
    }

    /// The agent of a host sees its end.
    pub fn host_ended(&mut self, at: usize) {
        let host = self.hosts[at].id;
        let agent = self.agent_party(host.node) - self.hosts.len();
        if !self.agents[agent].alive {
            return;
        }
        self.agents[agent].gone.insert(host);
        self.with_estate(agent, |estate, _, acts| estate.host_gone(host, acts));
        self.send(self.hosts.len() + agent, self.head_party(), Wire::News(News::Ended(host)));
        self.agent_hears(agent, host);
    }

    /// A host begins.
    pub fn born(&mut self, at: usize) {
        let agent = self.agent_party(self.hosts[at].id.node);
        self.hosts[at].born = true;
        // Before anything else: it is told in the same breath that welcomes it.
        for dead in self.agents[agent - self.hosts.len()].estate.unburied().collect::<Vec<_>>() {
            self.host_news(at, News::Died(dead));
        }
    }

    /// A message found nobody: the sender is told, unless it hears of the death all the same.
    pub fn nobody_there(&mut self, from: usize, to: usize) {
        let node = self.hosts[to].id.node;
        let agent = &self.agents[self.agent_party(node) - self.hosts.len()];
        let known = agent.gone.contains(&self.hosts[to].id);
        if known || !agent.alive && !self.head.nodes.contains(&node) {
            let due = self.now + 1 + self.random.next() % self.latency[&(to, from)];
            self.at(due, Event::HostMissed { host: to, to: from });
        }
    }

    /// The node is gone; the head notices some time.
    pub fn node_ended(&mut self, node: NodeId) {
        let agent = self.agent_party(node) - self.hosts.len();
        self.agents[agent].alive = false;
        let due = self.now + 1 + self.random.next() % NOTICED_WITHIN;
        self.at(due, Event::NodeMissed { node });
    }

    pub fn node_missed(&mut self, node: NodeId) {
        self.head.nodes.remove(&node);
        self.head_hears(node.agent());
    }

    fn head_hears(&mut self, dead: HostId) {
        self.head.burials.insert(dead, self.head.nodes.clone());
        self.broadcast(|| News::Died(dead));
    }

    fn node_mourned(&mut self, node: NodeId, dead: HostId) {
        let Some(left) = self.head.burials.get_mut(&dead) else { return };
        left.remove(&node);
        if left.is_empty() {
            self.head.burials.remove(&dead);
            self.broadcast(|| News::Buried(dead));
            if dead.is_agent() {
                // Whom that node was to mourn.
                for other in self.head.burials.keys().copied().collect::<Vec<_>>() {
                    self.node_mourned(dead.node, other);
                }
            }
        }
    }

    fn broadcast(&mut self, news: impl Fn() -> News) {
        for node in self.head.nodes.clone() {
            let to = self.agent_party(node);
            self.send(self.head_party(), to, Wire::News(news()));
        }
    }

    /// Something arrives at a host, an agent or the head.
    pub fn news(&mut self, from: usize, to: usize, news: News) {
        if to < self.hosts.len() {
            if self.hosts[to].alive {
                self.host_news(to, news);
            }
            return;
        }
        if to == self.head_party() {
            let node = self.agents[from - self.hosts.len()].node;
            match news {
                _ if !self.head.nodes.contains(&node) => {}
                News::Ended(host) => self.head_hears(host),
                News::AllMourned(dead) => self.node_mourned(node, dead),
                _ => panic!("not for the head"),
            }
            return;
        }
        let agent = to - self.hosts.len();
        if self.agents[agent].alive && !self.is_lost(from, &news) {
            self.agent_news(from, agent, news);
        }
    }

    /// A connection between agents may break. What is claimed in vain is kept for too long; but that a claim is taken back
    /// is said until it is heard.
    fn is_lost(&mut self, from: usize, news: &News) -> bool {
        let between = (self.hosts.len()..self.head_party()).contains(&from);
        if !between || matches!(news, News::Release(..)) || !self.breaks || !self.random.one_in(4) {
            return false;
        }
        match news {
            News::Answer(_, _, answers) => {
                let found = answers.iter().filter(|(_, record)| record.is_some());
                self.leaky.extend(found.map(|(object, _)| *object));
            }
            News::Give((object, _)) | News::Given((object, _)) => drop(self.leaky.insert(*object)),
            _ => {}
        }
        true
    }

    /// Claims that nobody answers are made again; whether there are any.
    pub fn ask_again(&mut self) -> bool {
        let mut any = false;
        for agent in 0..self.agents.len() {
            if self.agents[agent].alive && self.agents[agent].estate.is_asking() {
                any = true;
                self.with_estate(agent, |estate, _, acts| estate.ask_again(acts));
            }
        }
        any
    }

    fn host_news(&mut self, at: usize, news: News) {
        match news {
            News::Claimed(answers) => {
                for (object, found) in answers {
                    if found.as_ref().is_some_and(|record| !record.more) {
                        self.hosts[at].registered.insert(object);
                        self.claims += 1;
                    }
                    self.with(at, |own, fx| own.claimed(object, found, fx));
                }
            }
            News::Copies(node, copies, more) => self.copies_found(at, node, &copies, more),
            News::Died(dead) if dead.is_agent() => self.hear_of_node(at, dead.node),
            News::Died(dead) => self.hear_of_host(at, self.number(dead)),
            News::Buried(dead) => self.with(at, |own, fx| own.buried(dead, fx)),
            _ => panic!("not for a host"),
        }
    }

    fn agent_news(&mut self, from: usize, agent: usize, news: News) {
        let node = self.agents[agent].node;
        let nodes = self.agents[agent].nodes.clone();
        let host = self.hosts.get(from).map(|host| host.id);
        if host.is_some_and(|host| self.agents[agent].gone.contains(&host)) {
            return;
        }
        let peer = self.agents.get(from.wrapping_sub(self.hosts.len())).map(|agent| agent.node);
        if peer.is_some_and(|peer| !nodes.contains(&peer)) {
            return;
        }
        match news {
            News::Claim(objects) => self.with_estate(agent, |estate, world, acts| {
                let gone = |from| from != node && !nodes.contains(&from);
                estate.claim(host.unwrap(), objects, &nodes, |object| world.find(node, object, gone), acts);
            }),
            News::Unclaim(object, at) => self.with_estate(agent, |estate, _, acts| {
                if at == node || nodes.contains(&at) {
                    estate.release(host.unwrap(), object, at, acts);
                }
            }),
            News::Mourned(dead) => {
                self.with_estate(agent, |estate, _, acts| estate.mourned(host.unwrap(), dead, acts));
            }
            News::Ask(host, number, objects, gone) => self.with_estate(agent, |estate, world, acts| {
                // Whoever asks may have heard of deaths of which nobody has heard here.
                let gone = |from| gone.contains(&from) || from != node && !nodes.contains(&from);
                estate.on_claim(host, number, objects, |object| world.find(node, object, gone), acts);
            }),
            News::Answer(host, number, answers) => self.with_estate(agent, |estate, world, acts| {
                let gone = |from| from != node && !nodes.contains(&from);
                let find = |object| world.find(node, object, gone);
                estate.on_claimed(peer.unwrap(), (host, number), answers, &nodes, find, acts);
            }),
            News::Release(host, object) => {
                self.with_estate(agent, |estate, _, acts| estate.unclaim(host, object, acts));
            }
            News::Give(key) => {
                let from = peer.unwrap();
                let is_there = self.values.contains_key(&key) && self.is_at(key, from);
                if is_there && !self.given.contains_key(&key) && !self.is_at(key, node) {
                    self.given.insert(key, node);
                    self.told_of_refs(key, node);
                    self.agents[agent].estate.claim_for_agent(from, key.0);
                    let to = self.agent_party(from);
                    self.send(self.hosts.len() + agent, to, Wire::News(News::Given(key)));
                }
            }
            News::Given(key) => {
                if self.agents[agent].estate.has(key.0) && self.given.contains_key(&key) {
                    self.agents[agent].willed.insert(key);
                } else {
                    let release = News::Release(node.agent(), key.0);
                    self.send(self.hosts.len() + agent, from, Wire::News(release));
                }
            }
            News::Lost(lost) => self.salvage(agent, host.unwrap(), lost),
            News::Salvage(owner, lost) => {
                let copies = self.keep_salvaged(node, lost, owner);
                self.send(self.hosts.len() + agent, from, Wire::News(News::Salvaged(owner, lost, copies)));
            }
            News::Salvaged(owner, lost, copies) => self.salvaged(agent, peer.unwrap(), (owner, lost), copies),
            News::Died(dead) if dead.node == node => {}
            News::Died(dead) => self.agent_hears(agent, dead),
            News::Buried(dead) => {
                for host in self.hosts_at(node) {
                    let to = self.number(host);
                    self.send(self.hosts.len() + agent, to, Wire::News(News::Buried(dead)));
                }
                self.with_estate(agent, |estate, world, acts| {
                    let is_of = |owner: HostId| owner == dead || dead.is_agent() && owner.node == dead.node;
                    let here = |key: &&(ObjectId, u32)| world.is_at(**key, node);
                    let owned = world.values.keys().filter(here).map(|(object, _)| *object);
                    estate.buried(dead, owned.filter(|object| is_of(object.owner)), acts);
                });
                if dead.is_agent() {
                    self.drop_pulled_from(node, dead.node);
                }
            }
            News::Claimed(_) | News::Copies(..) | News::Ended(_) | News::AllMourned(_) => {
                panic!("not for an agent")
            }
        }
    }

    /// What hosts fail with that heard of a death.
    pub fn killed() -> Failure {
        Failure::new(FailureKind::HostDied, "killed")
    }

    /// A value that there is already is made once more, as the others of a task are of which one was lost: it does not count,
    /// and what counts stays.
    pub(super) fn make_again(&mut self) {
        let alive = self.living();
        let (at, by) = (alive[self.random.below(alive.len())], alive[self.random.below(alive.len())]);
        let me = self.hosts[at].id;
        let own: Vec<_> = self.hosts[at].handles.iter().filter(|held| held.owner == me).copied().collect();
        if own.is_empty() {
            return;
        }
        let object = own[self.random.below(own.len())];
        let Some(State::Stored(copy)) = self.hosts[at].own.state(object).cloned() else { return };
        let was = self.values.contains_key(&(object, copy.attempt));
        self.token += 1;
        let (from, state) = (self.hosts[by].id, self.seal(by, object, 10 + self.token as u32, Vec::new()));
        let counts = self.with(at, |own, fx| own.complete(from, object, state, Vec::new(), fx));
        assert!(!counts && was == self.values.contains_key(&(object, copy.attempt)), "{object} is gone");
        self.made_again += 1;
    }
}
