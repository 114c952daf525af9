//! The owner's side: states, results, who else holds what.

use mobula_proto::{
    Failure, HostId, NodeId, ObjectId,
    peer::{Copy, Message, State},
};

use crate::{Effect, Ownership, Via, entry::Entry, freed};

impl Ownership {
    /// A new object of this host: pending, with one local reference. `rebuildable` if its task may be run again
    /// when its stored value is lost.
    pub fn create(&mut self, object: ObjectId, rebuildable: bool) {
        debug_assert_eq!(object.owner, self.me, "only the owner creates an object");
        let mut entry = Entry::new(State::Pending, 1);
        entry.rebuildable = rebuildable;
        self.objects.insert(object, entry);
    }

    /// A new object whose value this host made itself: final, with one local reference. The value's refs are held
    /// by local references only; no owner counts this host once more for them (unlike in [`Self::complete`]).
    pub fn put(&mut self, object: ObjectId, state: State, contains: Vec<ObjectId>, fx: &mut Vec<Effect>) {
        self.create(object, false);
        let contains = refs_of(&state, contains);
        for inner in &contains {
            self.receive(*inner, Via::Argument, fx);
        }
        self.finish(object, state, contains, fx);
    }

    /// The result of a task that `from` ran: the first accepted wins (O4). `contains` are the refs inside the value, one for
    /// each occurrence that the executor lent; [`Self::took`] follows. The object holds a local reference on each as long as
    /// it exists.
    ///
    /// False if the object is final already or unknown: then its refs were given back, and its stored copy freed.
    pub fn complete(
        &mut self,
        from: HostId,
        object: ObjectId,
        state: State,
        contains: Vec<ObjectId>,
        fx: &mut Vec<Effect>,
    ) -> bool {
        let contains = refs_of(&state, contains);
        let known = self.objects.get(&object).map(|entry| &entry.state);
        if !matches!(known, Some(State::Pending)) || matches!(state, State::Pending) {
            self.decline(from, object, state, contains, fx);
            return false;
        }
        for inner in &contains {
            let via = if inner.owner == from { Via::Registered } else { Via::Lent };
            self.receive(*inner, via, fx);
        }
        self.stop_seeking(object, fx);
        self.finish(object, state, contains, fx);
        true
    }

    /// A result of a task that `from` ran which does not count, since its attempt was given up or another one was faster:
    /// the stored copy is freed, unless it is the one that the object has, and the refs of `from` in it are given back.
    pub fn decline(
        &mut self,
        from: HostId,
        object: ObjectId,
        state: State,
        contains: Vec<ObjectId>,
        fx: &mut Vec<Effect>,
    ) {
        let contains = refs_of(&state, contains);
        if let State::Stored(copy) = state
            && self.state(object) != Some(&state)
        {
            fx.push(Effect::Decline { object, copy });
        }
        for inner in contains.into_iter().filter(|inner| inner.owner == from) {
            self.give_back(inner, fx);
        }
    }

    /// The new state of an owned actor: `Actor` when it is up, `Pending` while it is being restarted, `Failed` at
    /// its end, after which nothing changes any more. Every borrower that asked is told each time.
    pub fn set_actor(&mut self, object: ObjectId, state: State, fx: &mut Vec<Effect>) {
        let Some(entry) = self.objects.get(&object) else { return };
        if matches!(entry.state, State::Pending | State::Actor { .. }) && entry.state != state {
            self.finish(object, state, Vec::new(), fx);
        }
    }

    /// An owned object that is pending, stored or an actor fails; nothing for one that is final otherwise.
    pub fn fail(&mut self, object: ObjectId, failure: Failure, fx: &mut Vec<Effect>) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        match entry.state {
            State::Pending | State::Actor { .. } => {}
            State::Stored(copy) => {
                entry.value_lost();
                entry.state = State::Pending;
                fx.push(Effect::Free { object, copy });
            }
            State::Inline { .. } | State::Failed(_) => return,
        }
        self.stop_seeking(object, fx);
        self.finish(object, State::failed(failure), Vec::new(), fx);
    }

    /// The submitter's part of `Done.retained`: notes `by` as borrower of each, once more. Must come before the
    /// call's arguments lose their references, and also if the result itself comes too late to count.
    pub fn retained(&mut self, by: HostId, objects: &[ObjectId]) {
        for object in objects {
            self.note(*object, by, 1);
        }
    }

    /// A copy could not be read. An owned object stored there is pending until another copy is found ([`Effect::Salvage`]);
    /// else it is rebuilt if possible and fails otherwise. A borrowed one is pending again, and its owner is told and asked; if
    /// the owner is dead it fails. Nothing if the object lies elsewhere by now.
    pub fn lost(&mut self, object: ObjectId, lost: &Copy, fx: &mut Vec<Effect>) {
        let owner = object.owner;
        let Some(entry) = self.objects.get_mut(&object) else { return };
        let State::Stored(copy) = entry.state else { return };
        if copy != *lost {
            return;
        }
        if owner == self.me {
            if self.seek(object, copy) {
                fx.push(Effect::Salvage { node: copy.node });
            }
            return;
        }
        entry.value_lost();
        entry.state = State::Pending;
        if self.dead.host(owner) {
            self.claim_again(object, copy.node, fx);
        } else {
            entry.asked = true;
            fx.push(Effect::Send { to: owner, message: Message::Lost { object, copy } });
            fx.push(Effect::Send { to: owner, message: Message::Resolve { object } });
        }
    }

    /// The primary copy of an owned object, by the same attempt, is elsewhere now. False where the object does not lie
    /// where that copy came from, or the copy's node is dead: then it is not needed. Borrowers who ask for the old copy in
    /// vain ask here next; so it must not come back to a node within the time that such a message takes.
    pub fn moved(&mut self, object: ObjectId, from: NodeId, copy: Copy, fx: &mut Vec<Effect>) -> bool {
        let dead = self.dead.node(copy.node);
        if !dead && self.found(object, copy, fx) {
            return true;
        }
        let Some(entry) = self.objects.get_mut(&object).filter(|_| object.owner == self.me && !dead) else {
            return false;
        };
        match &mut entry.state {
            State::Stored(known) if Copy { node: from, ..copy } == *known || *known == copy => {
                *known = copy;
                true
            }
            _ => false,
        }
    }

    /// The objects that others could hold whose values this host keeps itself, with the refs inside each.
    pub fn kept_here(&self) -> Vec<(ObjectId, State)> {
        let inline = |state: &State| matches!(state, State::Inline { .. });
        let ours =
            self.objects.iter().filter(|(object, entry)| object.owner == self.me && inline(&entry.state));
        let mut kept: Vec<(ObjectId, State)> =
            ours.map(|(object, entry)| (object, entry.state.clone())).collect();
        kept.sort_unstable_by_key(|(object, _)| *object);
        kept
    }

    /// A value that this host kept itself is in a store as well: from now on it lies there. The copy goes again where
    /// nobody holds the object any more.
    pub fn stored(&mut self, object: ObjectId, copy: Copy, fx: &mut Vec<Effect>) {
        let entry = self.objects.get_mut(&object).filter(|_| object.owner == self.me);
        let Some(entry) = entry.filter(|entry| matches!(entry.state, State::Inline { .. })) else {
            return fx.push(Effect::Free { object, copy });
        };
        if let State::Inline { contains, .. } = std::mem::replace(&mut entry.state, State::Stored(copy)) {
            entry.set_contains(contains);
        }
    }

    /// Gives an owned object its next state, and tells everybody who wants to know.
    pub(crate) fn finish(
        &mut self,
        object: ObjectId,
        state: State,
        contains: Vec<ObjectId>,
        fx: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        change(entry, object, state, fx);
        entry.set_contains(contains);
        for to in entry.take_audience() {
            self.answer(to, object, fx);
        }
    }

    /// Sends an owned object's state, having noted the receiver for those refs in it that this host owns.
    fn answer(&mut self, to: HostId, object: ObjectId, fx: &mut Vec<Effect>) {
        let Some(entry) = self.objects.get(&object) else { return };
        let state = entry.state.clone();
        if let State::Inline { contains, .. } = &state {
            for inner in contains {
                self.note(*inner, to, 1);
            }
        }
        fx.push(Effect::Send { to, message: Message::Resolved { object, state } });
    }

    pub(crate) fn on_resolve(&mut self, from: HostId, object: ObjectId, fx: &mut Vec<Effect>) {
        match self.objects.get_mut(&object) {
            Some(entry) if object.owner == self.me => {
                if matches!(entry.state, State::Pending | State::Actor { .. }) {
                    entry.add_waiter(from);
                }
                if !entry.is_pending() {
                    self.answer(from, object, fx);
                }
            }
            _ => fx.push(Effect::Send {
                to: from,
                message: Message::Resolved { object, state: State::failed(freed(object)) },
            }),
        }
    }

    pub(crate) fn on_return(&mut self, from: HostId, object: ObjectId, count: u32, fx: &mut Vec<Effect>) {
        if object.owner != self.me {
            return;
        }
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.count(from, -i64::from(count));
            // It held no ref when it sent this; if it gets one again it asks again.
            entry.remove_waiter(from);
            self.collect(object, fx);
        }
    }

    /// Counts `borrower` for an owned object; nothing for others' objects, this host and the dead (O6).
    pub(crate) fn note(&mut self, object: ObjectId, borrower: HostId, by: i64) {
        if object.owner == self.me
            && borrower != self.me
            && !self.dead.host(borrower)
            && let Some(entry) = self.objects.get_mut(&object)
        {
            entry.count(borrower, by);
        }
    }
}

/// The refs in a value, which an inline one may name itself.
fn refs_of(state: &State, contains: Vec<ObjectId>) -> Vec<ObjectId> {
    match state {
        State::Inline { contains: within, .. } if contains.is_empty() => within.clone(),
        _ => contains,
    }
}

/// Sets a state, owned or borrowed, and says what that means here.
pub(crate) fn change(entry: &mut Entry, object: ObjectId, state: State, fx: &mut Vec<Effect>) {
    if entry.is_pending() && !matches!(state, State::Pending) {
        fx.push(Effect::Ready { object });
    }
    if entry.was_actor {
        fx.push(Effect::ActorMoved { object });
    }
    entry.was_actor |= matches!(state, State::Actor { .. });
    entry.state = state;
}
