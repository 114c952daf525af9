//! A node that is to leave: primary copies move to other nodes, and hosts that nothing needs end.
//!
//! The node that drains asks another to keep a copy ([`Between::Keep`]). That one pulls it, or has it, makes it the
//! primary one and tells the owner ([`Between::Moved`]), which looks for the object there from then on. Only when the
//! owner has said so is the old copy freed ([`Between::Kept`]): whatever dies in between, the owner knows of a copy.
//!
//! - **DR-1** A copy that drains is freed only once its owner has noted another as the primary one, or is gone itself.
//! - **DR-2** At most [`KEEPS_MAX`] copies, or [`KEEP_BYTES_MAX`] bytes, are on their way at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mobula_proto::{
    HostId, NodeId, ObjectId,
    head::{Between, Left, ToHead},
    host::{Noted, ToHost},
    peer::{CONTAINS_MAX, Copy, RECORD_REFS_MAX},
};

use super::{Core, Effect, objects::Key, transfer::PULLS_MAX, transfer::Pull};

/// Most copies that are on their way to other nodes at once.
pub const KEEPS_MAX: usize = 64;
/// Most of their bytes, but for a single one.
pub const KEEP_BYTES_MAX: u64 = 1 << 30;
/// Most copies that one node has been given and whose owners have not answered yet.
pub const NOTING_MAX: usize = 4096;
/// A node that has not answered for so long is asked again.
const KEEP_AGAIN: Duration = Duration::from_secs(10);
/// So often it is looked at what is left.
const LOOK: Duration = Duration::from_millis(250);
/// Most copies that one look goes through; the next goes on from there.
const LOOKED_AT_MAX: usize = 16_384;

/// A copy that is on its way.
#[derive(Debug)]
struct Keep {
    to: NodeId,
    bytes: u64,
    /// When the node is asked again, since word of it may be lost; to be asked twice changes nothing.
    again: Instant,
}

impl Keep {
    /// Says what is to be kept, with the refs inside.
    fn say(&self, me: NodeId, (object, attempt, job): Key, contains: &[ObjectId], effects: &mut Vec<Effect>) {
        let copy = Copy { node: me, bytes: self.bytes, attempt, job };
        let count = |refs: usize| u32::try_from(refs).unwrap_or(u32::MAX);
        let mut at = 0;
        for refs in contains.chunks(RECORD_REFS_MAX) {
            let message = Between::Contains { object, copy, at: count(at), refs: refs.to_vec() };
            effects.push(Effect::Peer(self.to, message));
            at += refs.len();
        }
        effects.push(Effect::Peer(self.to, Between::Keep { object, copy, refs: count(at) }));
    }
}

/// What a node that drains remembers.
#[derive(Debug)]
pub(super) struct Draining {
    to: Vec<NodeId>,
    /// Whose turn it is among them.
    turn: usize,
    keeps: BTreeMap<Key, Keep>,
    /// Where the next look goes on.
    from: Option<Key>,
    look_at: Instant,
    /// Hosts that were asked whether anything would be lost with them.
    asked: BTreeSet<HostId>,
    said: Option<Left>,
}

/// On a node that was given copies: from whom, until their owners have noted it.
pub(super) type Noting = BTreeMap<Key, NodeId>;

/// The same, of copies that are about to be given: the refs inside each, as far as they are named.
pub(super) type Given = BTreeMap<Key, (NodeId, Vec<ObjectId>)>;

impl Core {
    /// The node is to leave; its copies go to these others.
    pub(super) fn drain(&mut self, to: Vec<NodeId>, now: Instant) {
        match &mut self.draining {
            Some(draining) => draining.to = to,
            None => {
                self.draining = Some(Draining {
                    to,
                    turn: 0,
                    keeps: BTreeMap::new(),
                    from: None,
                    look_at: now,
                    asked: BTreeSet::new(),
                    said: None,
                });
            }
        }
        for idle in self.leases.take_idle() {
            self.effects.push(Effect::Kill(idle));
        }
        self.look(now);
    }

    /// It is to stay after all. What is on its way arrives.
    pub(super) fn resume(&mut self) {
        self.draining = None;
    }

    /// The next look is due.
    #[cfg(test)]
    pub(super) fn drain_look_now(&mut self) {
        if let Some(draining) = &mut self.draining {
            draining.look_at = draining.look_at.checked_sub(LOOK).unwrap_or(draining.look_at);
        }
    }

    /// When [`Self::look`] has something to do.
    pub(super) fn drain_deadline(&self) -> Option<Instant> {
        self.draining.as_ref().map(|draining| draining.look_at)
    }

    /// Sends more copies away, asks hosts whether they are needed, and says what is left.
    pub(super) fn look(&mut self, now: Instant) {
        let Some(draining) = &mut self.draining else { return };
        if draining.look_at > now {
            return;
        }
        draining.look_at = now + LOOK;
        self.send_copies(now);
        self.ask_hosts();
        self.say_left();
    }

    fn send_copies(&mut self, now: Instant) {
        let me = self.config.node;
        let Some(draining) = &mut self.draining else { return };
        if draining.to.is_empty() {
            return;
        }
        for (key, keep) in draining.keeps.iter_mut().filter(|(_, keep)| keep.again <= now) {
            keep.again = now + KEEP_AGAIN;
            keep.say(me, *key, self.objects.contained(*key), &mut self.effects);
        }
        let mut bytes: u64 = draining.keeps.values().map(|keep| keep.bytes).sum();
        let mut last = None;
        for (key, copy_bytes) in self.objects.primaries_after(draining.from).take(LOOKED_AT_MAX) {
            let room = draining.keeps.is_empty() || bytes.saturating_add(copy_bytes) <= KEEP_BYTES_MAX;
            if draining.keeps.len() >= KEEPS_MAX || !room {
                break;
            }
            last = Some(key);
            // With an owner here, or this node as owner of record, the object ends with the node, wherever it lies.
            let ours = key.0.owner.node == me || self.estate.has(key.0);
            if ours || draining.keeps.contains_key(&key) {
                continue;
            }
            let to = draining.to[draining.turn % draining.to.len()];
            draining.turn = draining.turn.wrapping_add(1);
            bytes = bytes.saturating_add(copy_bytes);
            let keep = Keep { to, bytes: copy_bytes, again: now + KEEP_AGAIN };
            keep.say(me, key, self.objects.contained(key), &mut self.effects);
            draining.keeps.insert(key, keep);
        }
        // At the end it begins anew.
        draining.from = last;
    }

    fn ask_hosts(&mut self) {
        let Some(draining) = &mut self.draining else { return };
        let leases = &self.leases;
        let unneeded = self
            .hosts
            .iter()
            .filter(|(id, host)| host.kind.is_launched() && host.ready && !leases.has_leases(*id));
        for (host, _) in unneeded {
            if draining.asked.insert(host) {
                self.effects.push(Effect::Tell(host, ToHost::AreYouIdle, Vec::new()));
            }
        }
    }

    /// A host says whether anything would be lost with it.
    pub(super) fn host_idle(&mut self, host: HostId, idle: bool) {
        let leases = self.leases.has_leases(host);
        let Some(draining) = &mut self.draining else { return };
        if draining.asked.remove(&host) && idle && !leases {
            self.effects.push(Effect::Kill(host));
        }
    }

    fn say_left(&mut self) {
        let (objects, bytes) = self.objects.primaries();
        // Nothing waits for what cannot move.
        let inherited =
            self.estate.kept().filter_map(|object| self.objects.primary(object, self.config.node));
        let (objects, bytes) = inherited.fold((objects, bytes), |(objects, bytes), record| {
            (objects.saturating_sub(1), bytes.saturating_sub(record.copy.bytes))
        });
        let count = |launched| {
            let kind = self.hosts.iter().filter(|(_, host)| host.kind.is_launched() == launched);
            u32::try_from(kind.count()).unwrap_or(u32::MAX)
        };
        let left = Left { objects, bytes, hosts: count(true), drivers: count(false) };
        let Some(draining) = &mut self.draining else { return };
        if draining.said.replace(left) != Some(left) {
            self.effects.push(Effect::Head(ToHead::Draining(left)));
        }
    }

    /// The refs inside of what a node that drains is about to give to this one, or some more of them.
    pub(super) fn given_contains(&mut self, object: ObjectId, copy: Copy, at: u32, refs: &[ObjectId]) {
        let key = (object, copy.attempt, copy.job);
        let full = self.given.len() >= NOTING_MAX && !self.given.contains_key(&key);
        if full || !self.nodes.contains_key(&copy.node) {
            return;
        }
        let (from, known) = self.given.entry(key).or_insert((copy.node, Vec::new()));
        if at == 0 {
            (*from, *known) = (copy.node, Vec::new());
        }
        // Where some are missing, it is not kept: it is given again.
        if *from == copy.node && at as usize == known.len() && known.len() + refs.len() <= CONTAINS_MAX {
            known.extend_from_slice(refs);
        }
    }

    /// A node that drains gives a copy away to this one.
    pub(super) fn keep(&mut self, object: ObjectId, copy: Copy, refs: u32) {
        let key = (object, copy.attempt, copy.job);
        let (from, contains) = self.given.remove(&key).unwrap_or((copy.node, Vec::new()));
        let full = self.noting.len() >= NOTING_MAX && !self.noting.contains_key(&key);
        let named = from == copy.node && contains.len() == refs as usize;
        if !named || self.draining.is_some() || full || !self.nodes.contains_key(&copy.node) {
            return self.not_kept(key, copy.node);
        }
        if self.objects.find(key).is_some() {
            return self.keep_here(key, copy.node, contains);
        }
        let known = self.pulls.contains_key(&key);
        if !known && self.pulls.len() >= PULLS_MAX {
            return self.not_kept(key, copy.node);
        }
        let pull = self.pulls.entry(key).or_insert_with(|| Pull::new(copy));
        pull.keep = Some(contains);
        if !known {
            self.queue.add((key, copy), true);
        }
        self.start_pulls();
    }

    /// There is a copy here, which is the primary one from now on; it came from `from`.
    pub(super) fn keep_here(&mut self, key: Key, from: NodeId, contains: Vec<ObjectId>) {
        let Some(bytes) = self.objects.promote(key) else {
            return self.not_kept(key, from);
        };
        if self.objects.contained(key).is_empty() {
            self.objects.set_contains(key, contains);
        }
        self.noting.insert(key, from);
        let (object, attempt, job) = key;
        let copy = Copy { node: self.config.node, bytes, attempt, job };
        self.tell_owner(object, from, copy);
    }

    pub(super) fn not_kept(&mut self, (object, attempt, job): Key, from: NodeId) {
        let by = self.config.node;
        self.effects.push(Effect::Peer(from, Between::Kept { object, attempt, job, kept: false, by }));
    }

    fn tell_owner(&mut self, object: ObjectId, from: NodeId, copy: Copy) {
        let owner = object.owner.node;
        if owner == self.config.node {
            self.moved(object, from, copy);
        } else if self.nodes.contains_key(&owner) {
            self.effects.push(Effect::Peer(owner, Between::Moved { object, from, copy }));
        } else {
            self.noted(object, copy, Noted::Gone);
        }
    }

    /// The owner, which is or was here, is to look for an object elsewhere.
    pub(super) fn moved(&mut self, object: ObjectId, from: NodeId, copy: Copy) {
        if self.hosts.get(object.owner).is_some_and(|host| host.ready) {
            let message = ToHost::Moved { object, from, copy };
            self.effects.push(Effect::Tell(object.owner, message, Vec::new()));
        } else {
            self.owner_noted(object, copy, Noted::Gone);
        }
    }

    /// What an owner here said of that.
    pub(super) fn owner_noted(&mut self, object: ObjectId, copy: Copy, noted: Noted) {
        if copy.node == self.config.node {
            self.noted(object, copy, noted);
        } else if self.nodes.contains_key(&copy.node) {
            self.effects.push(Effect::Peer(copy.node, Between::Noted { object, copy, noted }));
        }
    }

    /// What the owner of a copy that was given to this node says: the node that drains may free its own, or not (DR-1).
    pub(super) fn noted(&mut self, object: ObjectId, copy: Copy, noted: Noted) {
        let Copy { attempt, job, .. } = copy;
        let Some(from) = self.noting.remove(&(object, attempt, job)) else { return };
        let (kept, by) = (noted != Noted::Unknown, self.config.node);
        self.effects.push(Effect::Peer(from, Between::Kept { object, attempt, job, kept, by }));
        if noted != Noted::Yes {
            // What it owned may still be read where it was, for as long as that is there.
            let gone = self.objects.free(object, attempt, Some(job));
            self.gone(gone);
            self.pump();
        }
    }

    /// Another node has a copy now whose owner knows of it, or could not take it.
    pub(super) fn kept(&mut self, key: Key, kept: bool, by: NodeId) {
        let (object, attempt, job) = key;
        if let Some(draining) = &mut self.draining {
            draining.keeps.remove(&key);
            if !kept {
                // The next look begins anew, and comes to it again.
                draining.from = None;
            }
        }
        if !kept {
            return;
        }
        if let Some(draining) = &mut self.draining {
            // There is room for more: the next look is due.
            draining.look_at = draining.look_at.checked_sub(LOOK).unwrap_or(draining.look_at);
        }
        if self.objects.find(key).is_none() {
            // Its job ended here first, and there before the copy was.
            let copy = Copy { node: by, bytes: 0, attempt, job };
            self.effects.push(Effect::Peer(by, Between::Free { object, copy }));
            return;
        }
        let nodes = self.objects.give_away(key);
        if !nodes.is_empty() {
            self.effects.push(Effect::Peer(by, Between::Held { object, attempt, job, nodes }));
        }
        let gone = self.objects.free(object, attempt, Some(job));
        self.gone(gone);
        self.pump();
    }

    /// Others have copies of what was given to this node.
    pub(super) fn held(&mut self, key: Key, nodes: Vec<NodeId>) {
        let me = self.config.node;
        let others: Vec<NodeId> =
            nodes.into_iter().filter(|node| *node != me && self.nodes.contains_key(node)).collect();
        if !self.objects.held_by(key, &others) {
            let (object, attempt, job) = key;
            for node in others {
                self.effects.push(Effect::Peer(node, Between::Drop { object, attempt, job }));
            }
        }
    }

    /// A node is gone: what was on its way there goes elsewhere, and what it owned is nobody's.
    pub(super) fn drain_without(&mut self, node: NodeId) {
        if let Some(draining) = &mut self.draining {
            draining.to.retain(|to| *to != node);
            draining.keeps.retain(|_, keep| keep.to != node);
        }
        self.given.retain(|_, (from, _)| *from != node);
        let orphans: Vec<Key> =
            self.noting.keys().filter(|(object, ..)| object.owner.node == node).copied().collect();
        for (object, attempt, job) in orphans {
            let copy = Copy { node: self.config.node, bytes: 0, attempt, job };
            self.noted(object, copy, Noted::Gone);
        }
    }

    /// A job has ended, and its objects have gone.
    pub(super) fn noting_without(&mut self) {
        let objects = &self.objects;
        self.noting.retain(|key, _| objects.find(*key).is_some());
    }
}
