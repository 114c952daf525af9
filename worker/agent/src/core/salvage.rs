//! What becomes of copies that lay on a node that is gone: others that were pulled from there are the primary ones from now on.
//!
//! An owner that lost copies with a node has its agent ask all others ([`Between::Salvage`]) before anything is made again or
//! given up. Who has pulled such copies keeps them from then on, whether it has heard of the node's end or not, and says so
//! ([`Between::Salvaged`]). Where several do, the first counts, and the others' are that one's as if they had been pulled from
//! there ([`Core::spare`](super::Core)), so that they are there when it dies as well. What no owner asks for goes at the
//! node's burial ([`Core::buried`](super::Core)), by when all have asked.
//!
//! Where the owner's agent has not heard of any end, the node itself is asked: it answers, and has nothing else, or is
//! declared gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mobula_proto::{
    HostId, NodeId, ObjectId,
    head::Between,
    host::ToHost,
    peer::{CLAIMS_MAX, Copy},
};

use super::{
    Core, Effect,
    estate::is_gone,
    objects::{self, Key, Origin},
};

/// Who has not answered for so long is asked again, since too many messages for one node are lost; to be asked twice changes
/// nothing.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long an owner waits for those that say nothing and are not declared dead either; as long as a pull tries.
const ASK_WAIT: Duration = Duration::from_secs(20);

/// Of whom a host here waits for an answer.
#[derive(Debug)]
struct Asking {
    left: BTreeSet<NodeId>,
    again: Instant,
    until: Instant,
}

/// What is asked, and what was answered.
#[derive(Debug, Default)]
pub(super) struct Salvages {
    /// By the node where the copies were, and their owner.
    asking: BTreeMap<(NodeId, HostId), Asking>,
    /// What is kept here since its owner asked for it, until the owner has said that another copy counts.
    kept: BTreeMap<Key, Kept>,
}

/// A copy that is kept.
#[derive(Debug)]
struct Kept {
    /// Where it had come from.
    from: NodeId,
    /// That node is buried: its owner has asked, and will hardly say anything else.
    settled: bool,
}

impl Salvages {
    /// When [`Core::salvage_again`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.asking.values().map(|asking| asking.again.min(asking.until)).min()
    }

    /// Whether the owner of a copy here may not have said yet whether it counts.
    pub(super) fn keeps(&self, key: Key) -> bool {
        self.kept.get(&key).is_some_and(|kept| !kept.settled)
    }

    /// A host here is gone, and waits for nothing.
    pub(super) fn host_gone(&mut self, host: HostId) {
        self.asking.retain(|(_, owner), _| *owner != host);
    }

    /// A job has ended, and its objects have gone.
    pub(super) fn retain(&mut self, is_here: impl Fn(Key) -> bool) {
        self.kept.retain(|key, _| is_here(*key));
    }

    /// A node is buried: nobody asks for its copies any more. What is said of them may come later.
    pub(super) fn buried(&mut self, node: NodeId, is_here: impl Fn(Key) -> bool) {
        self.kept.retain(|key, kept| {
            kept.settled |= kept.from == node;
            is_here(*key)
        });
    }
}

impl Core {
    /// A host here lost copies of its objects on that node.
    pub(super) fn salvage(&mut self, owner: HostId, node: NodeId, now: Instant) {
        if self.has_gone(node) {
            let left = self.nodes.keys().copied().filter(|other| *other != self.config.node).collect();
            self.say_salvaged(owner, node);
            self.ask_for_salvage(owner, node, left, now);
        } else {
            let lives = |node: &NodeId| *node != self.config.node && self.nodes.contains_key(node);
            self.ask_for_salvage(
                owner,
                node,
                BTreeSet::from([node]).into_iter().filter(lives).collect(),
                now,
            );
        }
    }

    fn ask_for_salvage(&mut self, owner: HostId, node: NodeId, left: BTreeSet<NodeId>, now: Instant) {
        for other in &left {
            self.effects.push(Effect::Peer(*other, Between::Salvage { owner, node }));
        }
        let asking = Asking { left, again: now + ASK_AGAIN, until: now + ASK_WAIT };
        self.salvages.asking.insert((node, owner), asking);
        self.look_at_salvage(owner, node);
    }

    fn look_at_salvage(&mut self, owner: HostId, node: NodeId) {
        if self.salvages.asking.get(&(node, owner)).is_some_and(|asking| asking.left.is_empty()) {
            self.salvages.asking.remove(&(node, owner));
            self.tell(owner, ToHost::Salvaged { node, copies: Vec::new(), more: false });
        }
    }

    /// Asks those again who have not answered, and waits no longer for those that were asked long ago.
    pub(super) fn salvage_again(&mut self, now: Instant) {
        let mut over = Vec::new();
        for ((node, owner), asking) in &mut self.salvages.asking {
            if asking.until <= now {
                tracing::warn!(%node, %owner, silent = ?asking.left, "nothing is heard of other copies of what was lost");
                asking.left.clear();
                over.push((*owner, *node));
            } else if asking.again <= now {
                asking.again = now + ASK_AGAIN;
                for other in &asking.left {
                    self.effects.push(Effect::Peer(*other, Between::Salvage { owner: *owner, node: *node }));
                }
            }
        }
        for (owner, node) in over {
            self.look_at_salvage(owner, node);
        }
    }

    /// A node is gone: it answers nothing, and others have what it had.
    pub(super) fn salvage_without(&mut self, gone: NodeId, now: Instant) {
        let mut waiting = Vec::new();
        for ((node, owner), asking) in &mut self.salvages.asking {
            if asking.left.remove(&gone) {
                waiting.push((*owner, *node));
            }
        }
        for (owner, node) in waiting {
            if node == gone {
                self.salvage(owner, node, now);
            } else {
                self.look_at_salvage(owner, node);
            }
        }
    }

    /// An owner, here or elsewhere, lost copies on a node: what is here of them is kept, and said.
    pub(super) fn say_salvaged(&mut self, owner: HostId, node: NodeId) {
        let me = self.config.node;
        let mut copies: Vec<(ObjectId, Copy)> = Vec::new();
        if node != me {
            if !self.is_buried(node) {
                for key in self.objects.pulled_from(node, owner) {
                    self.keep_salvaged(key);
                }
            }
            // Those of nodes that died before among them: the owner may have chosen one there.
            let of_owner = self.salvages.kept.range(objects::of_owner(owner)).map(|(key, _)| *key);
            copies.extend(of_owner.filter(|key| key.0.owner == owner).filter_map(|key| {
                let bytes = self.objects.primary_bytes(key)?;
                Some((key.0, Copy { node: me, bytes, attempt: key.1, job: key.2 }))
            }));
        }
        let parts = copies.chunks(CLAIMS_MAX).map(<[_]>::to_vec);
        if owner.node == me {
            // What others have comes behind it.
            for copies in parts {
                self.tell(owner, ToHost::Salvaged { node, copies, more: true });
            }
            return;
        }
        let mut parts: Vec<_> = parts.collect();
        let last = parts.pop().unwrap_or_default();
        for (copies, more) in parts.into_iter().map(|part| (part, true)).chain([(last, false)]) {
            let message = Between::Salvaged { owner, node, by: me, copies, more };
            self.effects.push(Effect::Peer(owner.node, message));
        }
    }

    /// A copy counts from now on, if it did not.
    pub(super) fn keep_salvaged(&mut self, key: Key) {
        if let Some(origin) = self.objects.origin(key) {
            self.objects.promote(key);
            self.salvages.kept.insert(key, Kept { from: origin.node, settled: false });
        }
    }

    /// The answer of another agent, or a part of it. One whose owner is gone keeps in vain what it has until that is buried.
    pub(super) fn salvaged(
        &mut self,
        (owner, node): (HostId, NodeId),
        by: NodeId,
        copies: Vec<(ObjectId, Copy)>,
        more: bool,
    ) {
        let copies: Vec<_> = copies.into_iter().filter(|(object, _)| object.owner == owner).collect();
        if !copies.is_empty() {
            self.tell(owner, ToHost::Salvaged { node, copies, more: true });
        }
        if !more && let Some(asking) = self.salvages.asking.get_mut(&(node, owner)) {
            asking.left.remove(&by);
            self.look_at_salvage(owner, node);
        }
    }

    /// An owner here has another copy that counts: this one is that one's.
    pub(super) fn spare(&mut self, object: ObjectId, copy: Copy, primary: Copy) {
        let key = (object, copy.attempt, copy.job);
        if primary.node == self.config.node {
            self.held(key, vec![copy.node]);
        } else if self.nodes.contains_key(&primary.node) {
            let Copy { node, attempt, job, .. } = copy;
            let message = Between::Held { object, attempt, job, nodes: vec![node] };
            self.effects.push(Effect::Peer(primary.node, message));
        }
    }

    /// The primary copy of what was copied here is there. Where the one that it was copied from is gone, that node does not
    /// know of this one.
    pub(super) fn lies_there(&mut self, object: ObjectId, copy: Copy) {
        if copy.node == self.config.node || !self.nodes.contains_key(&copy.node) {
            return;
        }
        let gone = &self.gone_nodes;
        if self.objects.pulled_of(object, &copy, |from| is_gone(gone, from)) {
            let Copy { node, attempt, job, .. } = copy;
            let nodes = vec![self.config.node];
            self.effects.push(Effect::Peer(node, Between::Held { object, attempt, job, nodes }));
        }
    }

    /// The same, whoever said before that this one is the primary copy.
    pub(super) fn is_spare(&mut self, object: ObjectId, copy: Copy) {
        self.lies_there(object, copy);
        let key = (object, copy.attempt, copy.job);
        if self.nodes.contains_key(&copy.node)
            && self.salvages.kept.remove(&key).is_some()
            && !self.estate.has(object)
            && !self.objects.demote(key, Origin { node: copy.node, job: copy.job })
        {
            self.drop_copy(key);
        }
    }

    /// The copy that counted instead of one that is kept here is gone: so is this one, unless somebody claims it.
    pub(super) fn drop_salvaged(&mut self, key: Key) {
        if self.salvages.kept.remove(&key).is_some() && !self.estate.has(key.0) {
            self.drop_copy(key);
        }
    }

    fn drop_copy(&mut self, key: Key) {
        let gone = self.objects.free_one(key);
        self.gone(gone);
        self.pump();
    }
}
