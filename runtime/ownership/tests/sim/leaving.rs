//! Nodes that leave: what their agents inherited is kept elsewhere first, as far as there is time.

use mobula_proto::{NodeId, ObjectId};

use super::{Wire, World, agents::News};

impl World {
    /// Whether a copy lies in the store of a node.
    pub fn is_at(&self, key: (ObjectId, u32), node: NodeId) -> bool {
        self.hosts[self.places[&key]].id.node == node || self.given.get(&key) == Some(&node)
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
