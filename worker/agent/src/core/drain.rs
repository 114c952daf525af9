//! A node that is to leave: primary copies move to other nodes, and hosts that nothing needs end.
//!
//! The node that drains asks another to keep a copy ([`Between::Keep`]). That one pulls it, or has it, makes it the
//! primary one and tells the owner ([`Between::Moved`]), which looks for the object there from then on. Only when the
//! owner has said so is the old copy freed ([`Between::Kept`]): whatever dies in between, the owner knows of a copy.
//!
//! What a host of the node itself owns would end with that. A host that has nothing to do moves the values that it keeps
//! itself into the store ([`ToHost::AreYouIdle`]), and ends; whoever holds what it owned claims that, and so the node inherits
//! it. Of what it inherited a node that drains is the owner of record, and stays so. The copy that it gives away is claimed for
//! its agent; when it leaves, all hosts claim anew what they hold of what lay there, and find that copy, before the agent
//! is buried and its own claims end.
//!
//! - **DR-1** A copy that drains is freed only once its owner has noted another as the primary one.
//! - **DR-2** What a node that drains has inherited is kept elsewhere for as long as it is kept there, and until that node
//!   is buried.
//! - **DR-3** At most [`KEEPS_MAX`] copies, or [`KEEP_BYTES_MAX`] bytes, are on their way at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mobula_proto::{
    HostId, NodeId, ObjectId,
    head::{Between, Left, Taken, ToHead},
    host::{Noted, ToHost},
    peer::{CONTAINS_MAX, Copy, RECORD_REFS_MAX},
};

use super::{
    Core, Effect,
    objects::{Key, up_to},
    transfer::{PULLS_MAX, Pull},
};

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
    /// This node is owner of record.
    inherited: bool,
    /// When the node is asked again, since word of it may be lost; to be asked twice changes nothing.
    again: Instant,
}

impl Keep {
    /// Says what is to be kept, with the refs inside.
    fn say(
        &self,
        me: NodeId,
        (object, attempt, job): Key,
        contains: Option<&[ObjectId]>,
        effects: &mut Vec<Effect>,
    ) {
        let (copy, inherited) = (Copy { node: me, bytes: self.bytes, attempt, job }, self.inherited);
        let count = |refs: usize| u32::try_from(refs).unwrap_or(u32::MAX);
        let mut at = 0;
        for refs in contains.unwrap_or_default().chunks(RECORD_REFS_MAX) {
            let message = Between::Contains { object, copy, at: count(at), refs: refs.to_vec() };
            effects.push(Effect::Peer(self.to, message));
            at += refs.len();
        }
        let refs = contains.map(|refs| count(refs.len()));
        effects.push(Effect::Peer(self.to, Between::Keep { object, copy, refs, inherited }));
    }
}

/// What a node that drains remembers.
#[derive(Debug)]
pub(super) struct Draining {
    to: Vec<NodeId>,
    /// Whose turn it is among them.
    turn: usize,
    keeps: BTreeMap<Key, Keep>,
    /// What was inherited and is claimed elsewhere for this node: where.
    willed: BTreeMap<Key, NodeId>,
    /// Where the next look goes on.
    from: Option<Key>,
    look_at: Instant,
    /// Hosts that were asked whether anything would be lost with them.
    asked: BTreeSet<HostId>,
    said: Option<Left>,
}

/// What is known of a copy that is to be kept here.
#[derive(Debug)]
pub(super) struct Gift {
    /// `None` where nobody but its owner knows.
    contains: Option<Vec<ObjectId>>,
    /// For the agent of the node that gives it.
    inherited: bool,
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
                    willed: BTreeMap::new(),
                    from: None,
                    look_at: now,
                    asked: BTreeSet::new(),
                    said: None,
                });
            }
        }
        self.look(now);
    }

    /// It is to stay after all. What is on its way arrives.
    pub(super) fn resume(&mut self) {
        let Some(draining) = self.draining.take() else { return };
        for (key, by) in draining.willed {
            self.unclaim_at(by, key.0);
        }
    }

    /// What was inherited, and is claimed elsewhere for this node, need not be there.
    fn unclaim_at(&mut self, by: NodeId, object: ObjectId) {
        let host = self.config.node.agent();
        self.effects.push(Effect::Peer(by, Between::Unclaim { host, object }));
    }

    /// Nobody claims here any more what was inherited.
    pub(super) fn unwill(&mut self, object: ObjectId) {
        let Some(draining) = &mut self.draining else { return };
        let all = draining.willed.range(up_to(object, u32::MAX));
        let gone: Vec<(Key, NodeId)> = all.map(|(key, by)| (*key, *by)).collect();
        for (key, by) in gone {
            if let Some(draining) = &mut self.draining {
                draining.willed.remove(&key);
            }
            self.unclaim_at(by, object);
        }
    }

    /// Objects have gone with their job, here and elsewhere.
    pub(super) fn will_without(&mut self) {
        if let Some(draining) = &mut self.draining {
            draining.willed.retain(|key, _| self.objects.find(*key).is_some());
        }
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
            // With an owner here the object ends with that, wherever it lies: it moves once the owner has ended and somebody
            // claims it.
            let inherited = self.estate.has(key.0);
            let ours = key.0.owner.node == me && !inherited;
            // Of a dead owner's, who claims it is not known yet.
            let owner = key.0.owner;
            let died = self.deaths.contains_key(&owner) || self.deaths.contains_key(&owner.node.agent());
            if ours
                || died && !inherited
                || self.salvages.keeps(key)
                || draining.keeps.contains_key(&key)
                || draining.willed.contains_key(&key)
            {
                continue;
            }
            let to = draining.to[draining.turn % draining.to.len()];
            draining.turn = draining.turn.wrapping_add(1);
            bytes = bytes.saturating_add(copy_bytes);
            let keep = Keep { to, bytes: copy_bytes, inherited, again: now + KEEP_AGAIN };
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
        // What lies elsewhere too is not left behind.
        let willed = self.draining.iter().flat_map(|draining| draining.willed.keys());
        let willed = willed.filter_map(|key| self.objects.primary(key.0, self.config.node, |_| false));
        let (objects, bytes) = willed.fold((objects, bytes), |(objects, bytes), record| {
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
    pub(super) fn keep(&mut self, object: ObjectId, copy: Copy, refs: Option<u32>, inherited: bool) {
        let key = (object, copy.attempt, copy.job);
        let (from, contains) = self.given.remove(&key).unwrap_or((copy.node, Vec::new()));
        let full = self.noting.len() >= NOTING_MAX && !self.noting.contains_key(&key);
        let named = from == copy.node && refs.is_none_or(|refs| contains.len() == refs as usize);
        // Of two copies that are kept for their owner it may have chosen either.
        if !named
            || self.salvages.keeps(key)
            || self.draining.is_some()
            || full
            || !self.nodes.contains_key(&copy.node)
        {
            return self.not_kept(key, copy.node);
        }
        let gift = Gift { contains: refs.map(|_| contains), inherited };
        if self.objects.find(key).is_some() {
            return self.keep_here(key, copy.node, gift);
        }
        let known = self.pulls.contains_key(&key);
        if !known && self.pulls.len() >= PULLS_MAX {
            return self.not_kept(key, copy.node);
        }
        let pull = self.pulls.entry(key).or_insert_with(|| Pull::new(copy));
        pull.keep = Some(gift);
        if !known {
            self.queue.add((key, copy), true);
        }
        self.start_pulls();
    }

    /// There is a copy here, which is the primary one from now on; it came from `from`.
    pub(super) fn keep_here(&mut self, key: Key, from: NodeId, gift: Gift) {
        let (object, attempt, job) = key;
        if gift.inherited && !self.nodes.contains_key(&from) {
            // It was buried before it could be kept for it.
            let gone = self.objects.drop_pulled(object, attempt, job);
            return self.gone(gone);
        }
        let Some(bytes) = self.objects.promote(key) else {
            return self.not_kept(key, from);
        };
        if let Some(contains) = gift.contains {
            self.objects.set_contains(key, contains);
        }
        if gift.inherited {
            self.estate.claim_for_agent(from, object);
            return self.say_taken(key, from, Taken::Inherited);
        }
        self.noting.insert(key, from);
        let copy = Copy { node: self.config.node, bytes, attempt, job };
        self.tell_owner(object, from, copy);
    }

    pub(super) fn not_kept(&mut self, key: Key, from: NodeId) {
        self.say_taken(key, from, Taken::No);
    }

    fn say_taken(&mut self, (object, attempt, job): Key, from: NodeId, taken: Taken) {
        let by = self.config.node;
        self.effects.push(Effect::Peer(from, Between::Kept { object, attempt, job, taken, by }));
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
        // Of a dead owner's the node that drains may be the owner of record, by now or soon.
        let taken = if noted == Noted::Yes { Taken::Yes } else { Taken::No };
        self.say_taken((object, attempt, job), from, taken);
        if noted != Noted::Yes {
            let gone = self.objects.free(object, attempt..=attempt, Some(job));
            self.gone(gone);
            self.pump();
        }
    }

    /// Another node has a copy now whose owner knows of it, or could not take it.
    pub(super) fn kept(&mut self, key: Key, taken: Taken, by: NodeId) {
        let (object, attempt, job) = key;
        if let Some(draining) = &mut self.draining {
            draining.keeps.remove(&key);
            if taken == Taken::No {
                // The next look begins anew, and comes to it again.
                draining.from = None;
            } else {
                // There is room for more: the next look is due.
                draining.look_at = draining.look_at.checked_sub(LOOK).unwrap_or(draining.look_at);
            }
        }
        match taken {
            Taken::No => return,
            Taken::Inherited => return self.willed(key, by),
            Taken::Yes => {}
        }
        if self.objects.find(key).is_none() {
            // Its job ended here first, and there before the copy was.
            let copy = Copy { node: by, bytes: 0, attempt, job };
            self.effects.push(Effect::Peer(by, Between::Free { object, copy }));
            return;
        }
        self.give_holders(key, by);
        let gone = self.objects.free(object, attempt..=attempt, Some(job));
        self.gone(gone);
        self.pump();
    }

    /// Another node has a copy now of what was inherited, and keeps it for this one.
    fn willed(&mut self, key: Key, by: NodeId) {
        let is_kept = self.estate.has(key.0) && self.objects.find(key).is_some();
        match &mut self.draining {
            Some(draining) if is_kept => {
                draining.willed.insert(key, by);
                self.give_holders(key, by);
            }
            _ => self.unclaim_at(by, key.0),
        }
    }

    /// Says who has copies to whom a copy was given.
    fn give_holders(&mut self, key: Key, by: NodeId) {
        let (object, attempt, job) = key;
        let nodes = self.objects.give_away(key);
        if !nodes.is_empty() {
            self.effects.push(Effect::Peer(by, Between::Held { object, attempt, job, nodes }));
        }
    }

    /// Others have copies of what was given to this node.
    pub(super) fn held(&mut self, key: Key, nodes: Vec<NodeId>) {
        let me = self.config.node;
        let others: Vec<NodeId> =
            nodes.into_iter().filter(|node| *node != me && self.nodes.contains_key(node)).collect();
        let (object, attempt, job) = key;
        let bytes = self.objects.held_by(key, &others);
        for node in others {
            let message = match bytes {
                Some(bytes) => Between::LiesHere { object, copy: Copy { node: me, bytes, attempt, job } },
                None => Between::Drop { object, attempt, job },
            };
            self.effects.push(Effect::Peer(node, message));
        }
    }

    /// A node is gone: what was on its way there goes elsewhere, and what it owned is nobody's.
    pub(super) fn drain_without(&mut self, node: NodeId) {
        if let Some(draining) = &mut self.draining {
            draining.to.retain(|to| *to != node);
            draining.keeps.retain(|_, keep| keep.to != node);
            draining.willed.retain(|_, by| *by != node);
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
