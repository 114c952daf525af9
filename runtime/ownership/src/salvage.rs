//! Copies that are lost, and whether others have some: asked before a task runs again or a value is given up.

use mobula_proto::{
    Failure, FailureKind, NodeId, ObjectId,
    peer::{Copy, State},
};

use crate::{Effect, Ownership};

impl Ownership {
    /// An owned object's copy is lost: it is pending, and what is inside it stays held, until another is
    /// [found](Self::found) or nobody has one. Whether that is to be asked about its node.
    pub(crate) fn seek(&mut self, object: ObjectId, copy: Copy) -> bool {
        let Some(entry) = self.objects.get_mut(&object) else { return false };
        entry.state = State::Pending;
        let is_first = !self.sought.contains_key(&copy.node);
        self.sought.entry(copy.node).or_default().insert(object, copy);
        is_first
    }

    /// Whether an owned object's copy was lost, and it is not known yet whether there is another.
    pub fn is_sought(&self, object: ObjectId) -> bool {
        self.sought.values().any(|sought| sought.contains_key(&object))
    }

    /// There is a copy of an owned object that is sought, wherever it was lost.
    pub(crate) fn found(&mut self, object: ObjectId, copy: Copy, fx: &mut Vec<Effect>) -> bool {
        let is_lost = |was: &Copy| Copy { node: copy.node, ..*was } == copy;
        let mut sought = self.sought.values_mut();
        let Some(sought) = sought.find(|sought| sought.get(&object).is_some_and(is_lost)) else {
            return false;
        };
        sought.remove(&object);
        self.finish(object, State::Stored(copy), Vec::new(), fx);
        true
    }

    /// An owned object has another value, or none, or is gone: its lost copy is not sought any more.
    pub(crate) fn stop_seeking(&mut self, object: ObjectId, fx: &mut Vec<Effect>) {
        let mut sought = self.sought.values_mut();
        let Some(copy) = sought.find_map(|sought| sought.remove(&object)) else { return };
        self.give_up(object, copy, fx);
    }

    /// A copy is lost for good; what was inside it stays held (O7).
    fn give_up(&mut self, object: ObjectId, copy: Copy, fx: &mut Vec<Effect>) {
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.value_lost();
        }
        if !self.dead.node(copy.node) {
            fx.push(Effect::Free { object, copy });
        }
    }

    /// The answer to [`Effect::Salvage`], or a part of it: these copies there are of what lay on this node. Without `more`,
    /// what has not been found by now is made again, or is lost for good.
    pub fn salvaged(&mut self, node: NodeId, copies: &[(ObjectId, Copy)], more: bool, fx: &mut Vec<Effect>) {
        for (object, copy) in copies {
            if self.moved(*object, node, *copy, fx) {
                continue;
            }
            fx.push(match self.state(*object) {
                Some(State::Stored(primary)) if Copy { node: copy.node, ..*primary } == *copy => {
                    Effect::Spare { object: *object, copy: *copy, primary: *primary }
                }
                _ => Effect::Decline { object: *object, copy: *copy },
            });
        }
        if more {
            return;
        }
        let Some(left) = self.sought.remove(&node) else { return };
        let node_died = self.dead.node(node);
        // In order, a task's values come together, so that its rebuilding is said once.
        for (object, copy) in left {
            self.give_up(object, copy, fx);
            if self.objects.get(&object).is_some_and(|entry| entry.rebuildable) {
                let rebuild = Effect::Rebuild { task: object.task() };
                if fx.last() != Some(&rebuild) {
                    fx.push(rebuild);
                }
                continue;
            }
            let why = if node_died {
                format!(
                    "{node}, which held it, is gone, no other node has a copy, and it cannot be made again"
                )
            } else {
                format!("its copy on {node} cannot be read, and it cannot be made again")
            };
            let mut failure = Failure::new(FailureKind::ObjectLost, why).of(format!("object {object}"));
            failure.attempt = copy.attempt;
            self.finish(object, State::failed(failure), Vec::new(), fx);
        }
        self.mourned_one(node.agent(), fx);
    }
}
