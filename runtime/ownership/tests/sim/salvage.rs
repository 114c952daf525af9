//! Copies that readers pulled to their nodes: dropped at any time, and salvaged when the node with the primary one dies.

use std::collections::{BTreeMap, BTreeSet};

use mobula_ownership::Effect;
use mobula_proto::{
    HostId, NodeId, ObjectId,
    peer::{Copy, State},
};

use super::{JOB, Wire, World, agents::News};

/// A stored value: the object, and the attempt that made it.
pub type Key = (ObjectId, u32);

/// What there is of stored values beside the copy that counts.
#[derive(Default)]
pub struct Copies {
    /// Which nodes pulled a value, and from where.
    pulled: BTreeMap<Key, BTreeMap<NodeId, NodeId>>,
    /// Pulled without being told of the refs inside.
    unnamed: BTreeSet<(Key, NodeId)>,
    /// Values whose node is gone: only pulled copies are left.
    stranded: BTreeSet<Key>,
    /// Further copies that count.
    doubles: BTreeSet<(Key, NodeId)>,
    /// Of whom agents wait for answers about copies, by the node where those were and their owner.
    asking: BTreeMap<(usize, NodeId, HostId), BTreeSet<NodeId>>,
    /// What agents keep since owners asked for it, and from where it had come.
    kept: BTreeMap<(NodeId, Key), NodeId>,
    /// What they ever kept.
    was_kept: BTreeSet<(NodeId, Key)>,
    /// What hosts lost with nodes: the object, the attempt that made its value, and the node.
    last: Vec<(usize, ObjectId, u32, NodeId)>,
    /// How often hosts or nodes died.
    pub deaths: u32,
    /// How many copies were kept beside one that counts.
    pub spared: u64,
    /// How many values went on as copies for owners that live, and for those of the dead.
    pub salvaged: [u64; 2],
}

impl World {
    /// Whether a value counts nowhere at the moment.
    pub fn is_stranded(&self, key: Key) -> bool {
        self.copies.stranded.contains(&key)
    }

    /// Whether whoever holds a ref can get at a value. Not where only copies are left whose insides nobody knows, nor where
    /// its node has died after others: then what is inside may be gone.
    pub fn may_be_claimed(&self, key: Key) -> bool {
        let mut pulled = self.copies.pulled.get(&key).into_iter().flat_map(|at| at.keys());
        !self.is_stranded(key) || self.copies.deaths < 2 && pulled.any(|node| self.is_named(key, *node))
    }

    /// Whether a further copy that counts lies there.
    pub fn is_double(&self, key: Key, node: NodeId) -> bool {
        self.copies.doubles.contains(&(key, node))
    }

    /// Whether the refs inside are known there.
    pub fn is_named(&self, key: Key, node: NodeId) -> bool {
        !self.copies.unnamed.contains(&(key, node))
    }

    /// Where another copy that counts lies than the one at `node`.
    pub fn double(&self, key: Key, node: NodeId) -> Option<NodeId> {
        let all = self.copies.doubles.range((key, NodeId { number: 0, incarnation: 0 })..);
        all.take_while(|(at, _)| *at == key).map(|(_, at)| *at).find(|at| *at != node)
    }

    /// A value was read on a node from a copy on another: it stays there.
    pub fn pulled(&mut self, key: Key, to: NodeId, from: NodeId) {
        if to != from && self.values.contains_key(&key) && !self.is_at(key, to) && self.random.one_in(2) {
            self.copies.pulled.entry(key).or_default().insert(to, from);
            if self.random.one_in(8) {
                self.copies.unnamed.insert((key, to));
            } else {
                self.copies.unnamed.remove(&(key, to));
            }
        }
    }

    /// The copy that counts is elsewhere, and who pulled it is told.
    pub fn pulled_of(&mut self, key: Key, from: NodeId, to: NodeId) {
        for came in self.copies.pulled.get_mut(&key).into_iter().flat_map(|at| at.values_mut()) {
            if *came == from {
                *came = to;
            }
        }
        self.unpull(key, to);
        self.told_of_refs(key, to);
    }

    /// A node that was given a copy knows what is inside.
    pub fn told_of_refs(&mut self, key: Key, node: NodeId) {
        self.copies.unnamed.remove(&(key, node));
    }

    /// Others have read some of what lies on a node that dies.
    pub fn pull_from(&mut self, node: NodeId) {
        let mut held = BTreeSet::new();
        for at in self.living() {
            let host = &self.hosts[at];
            held.extend(host.handles.iter().filter_map(|handle| match host.own.state(*handle) {
                Some(State::Stored(copy)) if copy.node == node => Some((*handle, copy.attempt)),
                _ => None,
            }));
        }
        let others = self.agents.iter().filter(|agent| agent.alive && agent.node != node);
        let others: Vec<NodeId> = others.map(|agent| agent.node).collect();
        for key in held {
            for to in &others {
                if self.values.contains_key(&key) && self.is_at(key, node) {
                    self.pulled(key, *to, node);
                }
            }
        }
    }

    /// Some copy leaves memory.
    pub fn evict(&mut self) {
        let all: Vec<(Key, NodeId)> = self.pulled_where(|_, _, _| true);
        if !all.is_empty() {
            let (key, node) = all[self.random.below(all.len())];
            self.unpull(key, node);
        }
    }

    fn pulled_where(&self, which: impl Fn(Key, NodeId, NodeId) -> bool) -> Vec<(Key, NodeId)> {
        let all = self.copies.pulled.iter();
        let all = all.flat_map(|(key, at)| at.iter().map(|(node, from)| (*key, *node, *from)));
        all.filter(|(key, node, from)| which(*key, *node, *from)).map(|(key, node, _)| (key, node)).collect()
    }

    fn unpull(&mut self, key: Key, node: NodeId) {
        let Some(at) = self.copies.pulled.get_mut(&key) else { return };
        at.remove(&node);
        if at.is_empty() {
            self.copies.pulled.remove(&key);
            if self.is_stranded(key) {
                self.vanish(key);
            }
        }
    }

    /// Nothing is left of a value.
    pub fn forget_copies(&mut self, key: Key) {
        self.copies.pulled.remove(&key);
        self.copies.stranded.remove(&key);
        self.copies.doubles.retain(|(at, _)| *at != key);
    }

    /// The copy that counted on a node is gone: another counts now. `false` where there is none.
    pub fn is_doubled(&mut self, key: Key, node: NodeId) -> bool {
        if self.copies.doubles.remove(&(key, node)) {
            return true;
        }
        let Some(other) = self.double(key, node) else { return false };
        self.copies.doubles.remove(&(key, other));
        let heir = self.hosts.iter().position(|host| host.id.node == other).unwrap();
        self.places.insert(key, heir);
        true
    }

    /// A copy that counts goes, and the value with the last one. `false` where it is not there; what is only pulled copies of
    /// one that lay there goes when that node is buried.
    pub fn remove_at(&mut self, key: Key, node: NodeId) -> bool {
        if !self.values.contains_key(&key) || !self.is_at(key, node) {
            return self.is_stranded(key);
        }
        if !self.is_doubled(key, node) {
            self.values.remove(&key);
            self.forget_copies(key);
        }
        true
    }

    /// A value's node died: whether pulled copies are left.
    pub fn strand(&mut self, key: Key) -> bool {
        let left = self.values.contains_key(&key) && self.copies.pulled.contains_key(&key);
        if left {
            self.copies.stranded.insert(key);
        }
        left
    }

    /// What was pulled to a node that died.
    pub fn copies_without(&mut self, node: NodeId) {
        self.copies.doubles.retain(|(_, at)| *at != node);
        for (key, at) in self.pulled_where(|_, at, _| at == node) {
            self.unpull(key, at);
        }
    }

    /// The node from which it was pulled is buried.
    pub fn drop_pulled_from(&mut self, node: NodeId, from: NodeId) {
        self.copies.kept.retain(|(at, _), of| (*at, *of) != (node, from));
        for (key, at) in self.pulled_where(|_, at, came| at == node && came == from) {
            self.unpull(key, at);
        }
    }

    /// The newest value of an object that was pulled to a node, from one that `from` says yes to.
    pub fn pulled_to(&self, node: NodeId, object: ObjectId, from: impl Fn(NodeId) -> bool) -> Option<Key> {
        let mut all = self.copies.pulled.range((object, 0)..=(object, u32::MAX));
        let may = |at: &BTreeMap<NodeId, NodeId>| at.get(&node).is_some_and(|came| from(*came));
        all.rfind(|(key, at)| may(at) && self.values.contains_key(key)).map(|(key, _)| *key)
    }

    /// What was pulled to a node counts from now on, if it is there.
    pub fn promote(&mut self, key: Key, node: NodeId) -> bool {
        let pulled = self.copies.pulled.get(&key).is_some_and(|at| at.contains_key(&node));
        if !pulled || self.is_at(key, node) {
            return false;
        }
        if self.copies.stranded.remove(&key) {
            let heir = self.hosts.iter().position(|host| host.id.node == node).unwrap();
            self.places.insert(key, heir);
        } else {
            self.copies.doubles.insert((key, node));
        }
        self.unpull(key, node);
        true
    }

    /// The same, until its owner has said whether it shall.
    pub fn keep(&mut self, key: Key, node: NodeId) -> bool {
        let from = self.copies.pulled.get(&key).and_then(|at| at.get(&node)).copied();
        let Some(from) = from.filter(|_| self.promote(key, node)) else { return false };
        self.copies.kept.insert((node, key), from);
        self.copies.was_kept.insert((node, key))
    }

    /// A host lost copies on a node.
    pub fn salvage(&mut self, agent: usize, owner: HostId, node: NodeId) {
        let Some(me) = self.agents.get(agent).map(|agent| agent.node) else { return };
        let lives = self.agents[agent].knows(node);
        let left = match lives {
            true => BTreeSet::from([node]),
            false if node == me => BTreeSet::new(),
            false => self.agents[agent].others(),
        };
        if !lives {
            let copies = self.keep_salvaged(me, node, owner);
            self.send(
                self.hosts.len() + agent,
                self.number(owner),
                Wire::News(News::Copies(node, copies, true)),
            );
        }
        for other in &left {
            self.ask_for_salvage(agent, *other, node, owner);
        }
        self.copies.asking.insert((agent, node, owner), left);
        self.look_at_salvage(agent, node, owner);
    }

    fn ask_for_salvage(&mut self, agent: usize, whom: NodeId, node: NodeId, owner: HostId) {
        let to = self.agent_party(whom);
        self.send(self.hosts.len() + agent, to, Wire::News(News::Salvage(owner, node)));
    }

    fn look_at_salvage(&mut self, agent: usize, node: NodeId, owner: HostId) {
        if self.copies.asking.get(&(agent, node, owner)).is_some_and(BTreeSet::is_empty) {
            self.copies.asking.remove(&(agent, node, owner));
            let over = News::Copies(node, Vec::new(), false);
            self.send(self.hosts.len() + agent, self.number(owner), Wire::News(over));
        }
    }

    /// What an agent has of what lay on that node; it counts from now on.
    pub fn keep_salvaged(&mut self, me: NodeId, node: NodeId, owner: HostId) -> Vec<(ObjectId, Copy)> {
        if me == node {
            return Vec::new();
        }
        for (key, _) in self.pulled_where(|key, at, came| at == me && came == node && key.0.owner == owner) {
            self.keep(key, me);
        }
        let kept = self.copies.kept.keys().filter(|(at, key)| *at == me && key.0.owner == owner);
        let kept = kept.map(|(_, key)| *key);
        let kept = kept.filter(|key| self.values.contains_key(key) && self.is_at(*key, me));
        kept.map(|(object, attempt)| (object, Copy { node: me, bytes: 1, attempt, job: JOB })).collect()
    }

    /// Whether an agent has kept that for its owner, who may have said more than once that it need not.
    pub fn was_kept(&self, key: Key, node: NodeId) -> bool {
        self.copies.was_kept.contains(&(node, key))
    }

    /// The owner says that another copy counts instead of one that was kept for it: that is as if pulled from there.
    pub fn spare(&mut self, key: Key, node: NodeId, primary: NodeId) {
        if self.copies.kept.remove(&(node, key)).is_none() || !self.is_at(key, node) {
            return;
        }
        let lies_there = self.is_at(key, primary);
        self.remove_at(key, node);
        if lies_there {
            self.copies.pulled.entry(key).or_default().insert(node, primary);
            self.copies.spared += 1;
        }
    }

    /// Another agent has answered.
    pub fn salvaged(
        &mut self,
        agent: usize,
        by: NodeId,
        (owner, node): (HostId, NodeId),
        copies: Vec<(ObjectId, Copy)>,
    ) {
        let to = self.number(owner);
        self.send(self.hosts.len() + agent, to, Wire::News(News::Copies(node, copies, true)));
        if let Some(left) = self.copies.asking.get_mut(&(agent, node, owner)) {
            left.remove(&by);
            self.look_at_salvage(agent, node, owner);
        }
    }

    /// An agent hears of a node's death.
    pub fn salvage_without(&mut self, agent: usize, gone: NodeId) {
        let all: Vec<_> = self.copies.asking.keys().filter(|(at, ..)| *at == agent).copied().collect();
        for (_, node, owner) in all {
            let left = self.copies.asking.get_mut(&(agent, node, owner)).unwrap();
            if left.remove(&gone) && node == gone {
                self.salvage(agent, owner, node);
            } else {
                self.look_at_salvage(agent, node, owner);
            }
        }
    }

    /// Questions that nobody has answered are asked again; whether there are any.
    pub fn salvage_again(&mut self) -> bool {
        let agents = &self.agents;
        self.copies.asking.retain(|(agent, ..), _| agents[*agent].alive);
        let hosts = &self.hosts;
        self.copies.asking.retain(|(.., owner), _| hosts.iter().any(|host| host.id == *owner && host.alive));
        let all: Vec<_> = self.copies.asking.iter().map(|(key, left)| (*key, left.clone())).collect();
        for ((agent, node, owner), left) in &all {
            for whom in left {
                self.ask_for_salvage(*agent, *whom, *node, *owner);
            }
        }
        !all.is_empty()
    }

    /// A host hears of a node's death: what it knows to lie there is lost.
    pub fn note_lost(&mut self, at: usize, node: NodeId) {
        for (object, attempt) in self.values.keys().filter(|(object, _)| object.owner == self.hosts[at].id) {
            if let Some(State::Stored(copy)) = self.hosts[at].own.state(*object)
                && (copy.attempt, copy.node) == (*attempt, node)
            {
                self.copies.last.push((at, *object, *attempt, node));
            }
        }
    }

    /// A host hears what there is of what it lost. What lies anywhere is not given up.
    pub fn copies_found(&mut self, at: usize, node: NodeId, copies: &[(ObjectId, Copy)], more: bool) {
        let pending = |world: &Self, object| world.hosts[at].own.state(object) == Some(&State::Pending);
        let before: Vec<bool> = copies.iter().map(|(object, _)| pending(self, *object)).collect();
        let mut fx: Vec<Effect> = Vec::new();
        self.hosts[at].own.salvaged(node, copies, more, &mut fx);
        for ((object, _), before) in copies.iter().zip(before) {
            self.copies.salvaged[0] += u64::from(before && !pending(self, *object));
        }
        if !more {
            let last = &mut self.copies.last;
            let lost: Vec<_> = last.extract_if(.., |(host, .., lost)| (*host, *lost) == (at, node)).collect();
            for (_, object, attempt, _) in lost {
                let left = self
                    .copies
                    .pulled
                    .get(&(object, attempt))
                    .filter(|_| self.is_stranded((object, attempt)));
                let left = left.is_some_and(|at| at.values().any(|came| *came == node));
                let given_up = self.hosts[at].own.state(object).is_some();
                assert!(!left || !given_up, "{object} is given up though there is a copy");
            }
        }
        self.carry_out(at, fx);
    }
}
