//! The borrower's side: refs that arrive, registrations, questions to owners.

use std::collections::BTreeMap;

use mobula_proto::{
    HostId, ObjectId,
    peer::{Copy, Message, State},
};

use crate::{Effect, Ownership, Settled, Via, entry::Entry, freed, owner::change};

/// A `Borrow` that its owner has not acknowledged, or a claim that no agent has answered.
#[derive(Debug)]
pub(crate) struct Outstanding {
    /// Whom it was sent to; this host for a claim.
    pub(crate) to: HostId,
    object: ObjectId,
    /// Objects that are kept, by a local reference each, until it is acknowledged.
    holds: Vec<ObjectId>,
    /// Tokens of settling tasks that wait for it.
    settles: Vec<u64>,
    /// For what it still waits: itself, and the refs inside a claimed value.
    pub(crate) left: u32,
    /// The refs inside a claimed value, as far as they are named.
    pub(crate) contains: Vec<ObjectId>,
    /// Claims of values that this ref is inside of.
    pub(crate) outer: Vec<u64>,
    /// Deaths that are mourned once it is done.
    pub(crate) mourns: Vec<HostId>,
    /// Who may let go of the object once it is done, once for each occurrence.
    pub(crate) took: Vec<(HostId, ObjectId)>,
}

impl Ownership {
    /// A ref was read here: one more local reference. See [`Via`] for what else that takes. A ref of this host's
    /// own object that is unknown by now stands for a failed one (`ObjectFreed`).
    pub fn receive(&mut self, object: ObjectId, via: Via, fx: &mut Vec<Effect>) {
        let owner = object.owner;
        let owner_dead = self.dead.host(owner);
        let me = self.me;
        if self.objects.get(&object).is_none() {
            let state = if owner == me { State::failed(freed(object)) } else { State::Pending };
            let mut entry = Entry::new(state, 0);
            entry.stale = owner == me;
            self.objects.insert(object, entry);
        }
        let Some(entry) = self.objects.get_mut(&object) else { return };
        entry.local += 1;
        if owner == me {
            return;
        }
        if owner_dead {
            if self.is_unclaimed(object) {
                self.register(object, fx);
            }
            if let Via::Container(container) = via
                && let Some(token) = self.objects.get(&object).and_then(Entry::ack)
            {
                self.hold(token, container);
            }
            return;
        }
        match via {
            Via::Argument => {}
            Via::Registered => entry.registered += 1,
            Via::Lent => {
                if entry.registered == 0 {
                    self.register(object, fx);
                }
            }
            Via::Container(container) => {
                if entry.registered == 0 {
                    let token = self.register(object, fx);
                    self.hold(token, container);
                }
            }
        }
    }

    /// Whoever gave a ref, just received, says where its value lies. It counts as an answer of the owner's, which would
    /// have to be asked else, and may be out of date as such an answer may be later: then [`Self::lost`] asks. Nothing for
    /// an object of which more is known, or whose owner or place is dead.
    pub fn placed(&mut self, object: ObjectId, copy: Copy) {
        if object.owner == self.me || self.dead.host(object.owner) || self.dead.node(copy.node) {
            return;
        }
        if let Some(entry) = self.objects.get_mut(&object)
            && entry.is_pending()
            && !entry.asked
        {
            entry.state = State::Stored(copy);
        }
    }

    /// Someone here waits for the object: asks its owner if that was not done yet.
    pub fn want(&mut self, object: ObjectId, fx: &mut Vec<Effect>) {
        let to = object.owner;
        if self.dead.host(to) {
            if self.is_unclaimed(object) {
                self.register(object, fx);
            }
            return;
        }
        if to != self.me
            && let Some(entry) = self.objects.get_mut(&object)
            && entry.is_pending()
            && !entry.asked
        {
            entry.asked = true;
            fx.push(Effect::Send { to, message: Message::Resolve { object } });
        }
    }

    /// At a task's end, after it dropped its own references: registers this host for every argument ref that is
    /// still held here. `Done` may leave when nothing is `waiting`, or with [`Effect::Settled`]; call this and
    /// [`Self::lend`] with the same `token` one after the other, with no message handled in between. The references
    /// that carry the returned refs to the caller are dropped after `Done` left.
    pub fn settle(
        &mut self,
        caller: HostId,
        arguments: &[ObjectId],
        token: u64,
        fx: &mut Vec<Effect>,
    ) -> Settled {
        let mut settled = Settled::default();
        for object in arguments {
            let owner = object.owner;
            if owner == self.me {
                continue;
            }
            let Some(entry) = self.objects.get_mut(object) else { continue };
            if entry.local == 0 || entry.registered > 0 {
                continue;
            }
            if self.dead.host(owner) {
                if let Some(ack) = entry.ack() {
                    self.wait_for(ack, token);
                    settled.waiting = true;
                }
                continue;
            }
            if owner == caller {
                entry.registered += 1;
                settled.retained.push(*object);
            } else {
                let ack = self.register(*object, fx);
                self.wait_for(ack, token);
                settled.waiting = true;
            }
        }
        settled
    }

    /// Before a value with these refs goes to `to`: counts `to` for those that this host owns, once for each occurrence, and
    /// keeps those of third parties until `to` has taken them. This host holds a reference on each until the value has left.
    pub fn lend(&mut self, to: HostId, contains: &[ObjectId]) {
        if to == self.me || self.dead.host(to) {
            return;
        }
        for object in contains {
            if object.owner == self.me {
                self.note(*object, to, 1);
            } else if object.owner != to {
                self.keep_for(*object, to);
            }
        }
    }

    /// The token of our own registration under way, with the owner or, if that is dead, with whoever has the value;
    /// begins one if there is none.
    pub(crate) fn register(&mut self, object: ObjectId, fx: &mut Vec<Effect>) -> u64 {
        if let Some(token) = self.objects.get(&object).and_then(Entry::ack) {
            return token;
        }
        if self.dead.host(object.owner) {
            fx.push(Effect::Claim { objects: vec![(object, self.hint(object))] });
            return self.begin_claim(object);
        }
        let to = object.owner;
        let token = self.begin(to, object);
        fx.push(Effect::Send { to, message: Message::Borrow { object, token } });
        token
    }

    /// A claim, which the caller makes.
    pub(crate) fn begin_claim(&mut self, object: ObjectId) -> u64 {
        self.begin(self.me, object)
    }

    fn begin(&mut self, to: HostId, object: ObjectId) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let outstanding = Outstanding {
            to,
            object,
            holds: Vec::new(),
            settles: Vec::new(),
            left: 1,
            contains: Vec::new(),
            outer: Vec::new(),
            mourns: Vec::new(),
            took: Vec::new(),
        };
        self.outstanding.insert(token, outstanding);
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.rare().ack = Some(token);
        }
        token
    }

    /// Keeps the object out of which a ref was read until the ref is registered.
    fn hold(&mut self, token: u64, container: ObjectId) {
        if let Some(outstanding) = self.outstanding.get_mut(&token)
            && !outstanding.holds.contains(&container)
            && let Some(entry) = self.objects.get_mut(&container)
        {
            entry.local += 1;
            outstanding.holds.push(container);
        }
    }

    fn wait_for(&mut self, ack: u64, token: u64) {
        if let Some(outstanding) = self.outstanding.get_mut(&ack)
            && !outstanding.settles.contains(&token)
        {
            outstanding.settles.push(token);
            *self.settling.entry(token).or_default() += 1;
        }
    }

    /// An owner has noted what we asked for (`counted`), or died.
    pub(crate) fn acknowledge(&mut self, token: u64, counted: bool, fx: &mut Vec<Effect>) {
        if counted
            && let Some(outstanding) = self.outstanding.get(&token)
            && let Some(entry) = self.objects.get_mut(&outstanding.object)
        {
            entry.registered += 1;
        }
        self.part_done(token, fx);
    }

    /// One thing less for which what was begun under this token waits; goes on with what waits for it in turn.
    pub(crate) fn part_done(&mut self, token: u64, fx: &mut Vec<Effect>) {
        let mut next = vec![token];
        while let Some(token) = next.pop() {
            let Some(outstanding) = self.outstanding.get_mut(&token) else { continue };
            outstanding.left -= 1;
            if outstanding.left > 0 {
                continue;
            }
            if let Some(outstanding) = self.outstanding.remove(&token) {
                next.append(&mut self.done(outstanding, fx));
            }
        }
    }

    /// All that was asked for is noted: says so to whoever waits. Returns the claims that wait for it.
    fn done(&mut self, outstanding: Outstanding, fx: &mut Vec<Effect>) -> Vec<u64> {
        let mut took: BTreeMap<HostId, Vec<ObjectId>> = BTreeMap::new();
        for (from, object) in outstanding.took {
            took.entry(from).or_default().push(object);
        }
        for (to, objects) in took {
            if !self.dead.host(to) {
                fx.push(Effect::Send { to, message: Message::Took { objects } });
            }
        }
        if let Some(entry) = self.objects.get_mut(&outstanding.object) {
            entry.rare().ack = None;
            self.collect(outstanding.object, fx);
        }
        for container in outstanding.holds {
            self.drop_ref(container, fx);
        }
        for token in outstanding.settles {
            let left = self.settling.get_mut(&token).map(|left| {
                *left -= 1;
                *left
            });
            if left == Some(0) {
                self.settling.remove(&token);
                fx.push(Effect::Settled { token });
            }
        }
        for dead in outstanding.mourns {
            self.mourned_one(dead, fx);
        }
        outstanding.outer
    }

    /// The owner's answer, or news of an actor.
    pub(crate) fn on_resolved(&mut self, from: HostId, object: ObjectId, state: State, fx: &mut Vec<Effect>) {
        if object.owner != from {
            return;
        }
        let wanted = match self.objects.get(&object) {
            None => false,
            Some(entry) => match &entry.state {
                // What an actor becomes next is told only to who asked for this entry, not for one before it.
                State::Pending if !entry.asked => !matches!(state, State::Pending | State::Actor { .. }),
                State::Pending => !matches!(state, State::Pending),
                State::Actor { .. } => entry.state != state,
                State::Inline { .. } | State::Stored(_) | State::Failed(_) => false,
            },
        };
        if !wanted {
            // Asked twice, or not interested any more; the owner has noted us for its refs all the same.
            if let State::Inline { contains, .. } = state {
                for inner in contains.into_iter().filter(|inner| inner.owner == from) {
                    self.give_back(inner, fx);
                }
            }
            return;
        }
        if let State::Inline { contains, .. } = &state {
            for inner in contains {
                let via = if inner.owner == from { Via::Registered } else { Via::Container(object) };
                self.receive(*inner, via, fx);
            }
        }
        if let Some(entry) = self.objects.get_mut(&object) {
            change(entry, object, state, fx);
        }
    }

    /// Its owner counts us once more for a ref that we do not take.
    pub(crate) fn give_back(&mut self, object: ObjectId, fx: &mut Vec<Effect>) {
        let to = object.owner;
        if to == self.me || self.dead.host(to) {
            return;
        }
        match self.objects.get_mut(&object) {
            Some(entry) => entry.registered += 1,
            None => fx.push(Effect::Send { to, message: Message::Return { object, count: 1 } }),
        }
    }
}
