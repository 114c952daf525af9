//! The borrower's side: refs that arrive, registrations, questions to owners.

use mobula_proto::{
    HostId, ObjectId,
    peer::{Message, State},
};

use crate::{Effect, Ownership, Settled, Via, entry::Entry, freed, owner::change};

/// A `Borrow` that its owner has not acknowledged.
#[derive(Debug)]
pub(crate) struct Outstanding {
    /// Whom it was sent to.
    pub(crate) to: HostId,
    object: ObjectId,
    /// Whether it registers this host rather than one that a ref was lent to.
    own: bool,
    /// Objects that are kept, by a local reference each, until it is acknowledged.
    holds: Vec<ObjectId>,
    /// Tokens of settling tasks that wait for it.
    settles: Vec<u64>,
}

impl Ownership {
    /// A ref was read here: one more local reference. See [`Via`] for what else that takes. A ref of this host's
    /// own object that is unknown by now stands for a failed one (`ObjectFreed`).
    pub fn receive(&mut self, object: ObjectId, via: Via, fx: &mut Vec<Effect>) {
        let owner = object.owner;
        let owner_dead = self.dead.host(owner);
        let me = self.me;
        if self.objects.get(&object).is_none() {
            let state = if owner == me {
                State::failed(freed(object))
            } else if owner_dead {
                State::failed(crate::death::owner_died(object, None))
            } else {
                State::Pending
            };
            let mut entry = Entry::new(state, 0);
            entry.stale = owner == me;
            self.objects.insert(object, entry);
        }
        let Some(entry) = self.objects.get_mut(&object) else { return };
        entry.local += 1;
        if owner == me || owner_dead {
            return;
        }
        match via {
            Via::Argument => {}
            Via::Registered => entry.registered += 1,
            Via::Container(container) => {
                if entry.registered == 0 {
                    let token = self.register(object, fx);
                    self.hold(token, container);
                }
            }
        }
    }

    /// Someone here waits for the object: asks its owner if that was not done yet.
    pub fn want(&mut self, object: ObjectId, fx: &mut Vec<Effect>) {
        let to = object.owner;
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
            if owner == self.me || self.dead.host(owner) {
                continue;
            }
            let Some(entry) = self.objects.get_mut(object) else { continue };
            if entry.local == 0 || entry.registered > 0 {
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

    /// Before a value with these refs goes to `to`: sees to it that the owner of each counts `to`, once for each
    /// occurrence. True if the value must wait for [`Effect::Settled`]. This host holds a reference on each until
    /// the value has left.
    pub fn lend(&mut self, to: HostId, contains: &[ObjectId], token: u64, fx: &mut Vec<Effect>) -> bool {
        let mut waiting = false;
        for object in contains {
            let owner = object.owner;
            if owner == to || self.dead.host(owner) {
                continue;
            }
            if owner == self.me {
                self.note(*object, to, 1);
            } else {
                let ack = self.borrow(*object, to, false, fx);
                self.wait_for(ack, token);
                waiting = true;
            }
        }
        waiting
    }

    /// The token of our own registration under way; begins one if there is none.
    fn register(&mut self, object: ObjectId, fx: &mut Vec<Effect>) -> u64 {
        if let Some(token) = self.objects.get(&object).and_then(Entry::ack) {
            return token;
        }
        let token = self.borrow(object, self.me, true, fx);
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.rare().ack = Some(token);
        }
        token
    }

    fn borrow(&mut self, object: ObjectId, borrower: HostId, own: bool, fx: &mut Vec<Effect>) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let to = object.owner;
        let outstanding = Outstanding { to, object, own, holds: Vec::new(), settles: Vec::new() };
        self.outstanding.insert(token, outstanding);
        fx.push(Effect::Send { to, message: Message::Borrow { object, borrower, token } });
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
        let Some(outstanding) = self.outstanding.remove(&token) else { return };
        if outstanding.own
            && let Some(entry) = self.objects.get_mut(&outstanding.object)
        {
            entry.rare().ack = None;
            entry.registered += u32::from(counted);
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
    }

    /// The owner's answer, or news of an actor.
    pub(crate) fn on_resolved(&mut self, from: HostId, object: ObjectId, state: State, fx: &mut Vec<Effect>) {
        if object.owner != from {
            return;
        }
        let wanted = match self.objects.get(&object) {
            None => false,
            Some(entry) => match &entry.state {
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
