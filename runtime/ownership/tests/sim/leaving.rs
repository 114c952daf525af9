//! Nodes that leave: what their agents inherited is kept elsewhere first, as far as there is time.

use mobula_proto::{NodeId, ObjectId, peer::Copy};

use super::{JOB, Wire, World, agents::News};

impl World {
    /// Whether a copy lies in the store of a node.
    pub fn is_at(&self, key: (ObjectId, u32), node: NodeId) -> bool {
        let at_its_place = self.hosts[self.places[&key]].id.node == node && !self.is_stranded(key);
        at_its_place || self.given.get(&key) == Some(&node) || self.is_double(key, node)
    }

    /// Whether the copy exists, but not where it is looked for.
    pub fn is_elsewhere(&self, object: ObjectId, copy: Copy) -> bool {
        let key = (object, copy.attempt);
        self.values.contains_key(&key) && !self.is_at(key, copy.node)
    }

    /// A stored value goes to the node of `to`, and its owner hears of it.
    pub fn relocate(&mut self, to: usize) {
        let keys: Vec<(ObjectId, u32)> = self.values.keys().copied().collect();
        if keys.is_empty() {
            return;
        }
        let (object, attempt) = keys[self.random.below(keys.len())];
        let owner = self.number(object.owner);
        if !self.hosts[owner].alive || self.is_stranded((object, attempt)) {
            return;
        }
        let from = self.hosts[self.places[&(object, attempt)]].id.node;
        let copy = Copy { node: self.hosts[to].id.node, bytes: 1, attempt, job: JOB };
        // It does not come back while a message about its absence may be under way: that takes another drain.
        if !self.been.insert((object, attempt, copy.node)) {
            return;
        }
        let key = (object, attempt);
        if self.is_double(key, copy.node) || self.double(key, from).is_some() {
            return;
        }
        if self.with(owner, |own, fx| own.moved(object, from, copy, fx)) {
            self.places.insert(key, to);
            self.pulled_of(key, from, copy.node);
            self.relocated += 1;
        }
    }

    /// A node is to leave, and gives what it inherited to others.
    pub fn leave(&mut self) {
        let alive: Vec<usize> = (0..self.agents.len()).filter(|at| self.agents[*at].alive).collect();
        if self.leaving.is_some() || alive.len() < 2 {
            return;
        }
        let mut kept: Vec<(usize, (ObjectId, u32))> = Vec::new();
        for at in &alive {
            let node = self.agents[*at].node;
            let here = |key: &&(ObjectId, u32)| self.hosts[self.places[key]].id.node == node;
            let all = self.values.keys().filter(here);
            kept.extend(all.filter(|key| self.has(*at, key.0)).map(|key| (*at, *key)));
        }
        if kept.is_empty() {
            return;
        }
        let from = kept[self.random.below(kept.len())].0;
        self.leaving = Some(self.agents[from].node);
        for (_, key) in kept.into_iter().filter(|(at, _)| *at == from) {
            let to = alive[self.random.below(alive.len())];
            if to != from {
                let (from, to) = (self.hosts.len() + from, self.hosts.len() + to);
                self.send(from, to, Wire::News(News::Give(key)));
            }
        }
    }

    /// The node that was to leave does, whether or not all of that arrived.
    pub fn left(&mut self) {
        let Some(node) = self.leaving else { return };
        let living = self.living();
        let here = |at: &usize| self.hosts[*at].id.node == node;
        let others = living.iter().any(|at| !here(at));
        let may = !self.strict || living.iter().filter(|at| here(at)).all(|at| self.calls_nobody(*at));
        if others && may {
            self.leaving = None;
            if self.agents.iter().any(|agent| agent.node == node && agent.alive) {
                self.kill_node(node);
            }
        }
    }

    /// What lay on a node that is gone or was freed there lies where it was given to; `false` where that is nowhere.
    pub fn succeed(&mut self, key: (ObjectId, u32)) -> bool {
        let Some(node) = self.given.remove(&key) else { return false };
        let heir = self.hosts.iter().position(|host| host.id.node == node).unwrap();
        self.places.insert(key, heir);
        self.willed += 1;
        true
    }
}
