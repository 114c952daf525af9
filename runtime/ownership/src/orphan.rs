//! Objects of dead owners, as those who hold refs to them see them: claimed from the agents that have their values.

use std::collections::BTreeMap;

use mobula_proto::{
    Failure, HostId, NodeId, ObjectId,
    peer::{CLAIMS_MAX, Message, Record, State},
};

use crate::{Effect, Ownership, Via, death::owner_died, owner::change};

/// A death of which something here is still to be claimed.
#[derive(Debug)]
pub(crate) struct Mourning {
    /// Registrations under way, plus one while they are begun.
    left: u32,
    failure: Failure,
}

impl Ownership {
    /// Whether the object is held here, belongs to a dead host, and nobody keeps it for this one or is asked to.
    pub(crate) fn is_unclaimed(&self, object: ObjectId) -> bool {
        self.dead.host(object.owner)
            && self.objects.get(&object).is_some_and(|entry| {
                let kept = entry.registered > 0 || entry.ack().is_some();
                !kept && matches!(entry.state, State::Pending | State::Stored(_))
            })
    }

    /// Where the primary copy was last, as far as is known here.
    pub(crate) fn hint(&self, object: ObjectId) -> Option<NodeId> {
        match self.objects.get(&object)?.state {
            State::Stored(copy) if !self.dead.node(copy.node) => Some(copy.node),
            _ => None,
        }
    }

    /// The answer to [`Effect::Claim`] for one object, or a part of it: it is kept for this host by the agent of the copy's
    /// node, or no living node has a primary copy.
    pub fn claimed(&mut self, object: ObjectId, found: Option<Record>, fx: &mut Vec<Effect>) {
        let token = self.objects.get(&object).and_then(|entry| entry.ack());
        let Some((token, outstanding)) =
            token.and_then(|token| Some((token, self.outstanding.get_mut(&token)?)))
        else {
            // Not asked for.
            if let Some(Record { copy, more: false, .. }) = found {
                fx.push(Effect::Unclaim { object, node: copy.node });
            }
            return;
        };
        let found = match found {
            Some(Record { contains, more: true, .. }) => return outstanding.contains.extend(contains),
            Some(Record { copy, contains: last, .. }) => {
                let mut contains = std::mem::take(&mut outstanding.contains);
                contains.extend(last);
                Some((copy, contains))
            }
            None => None,
        };
        let cause = self.mourned_failure(object.owner);
        let Some(entry) = self.objects.get_mut(&object) else { return };
        let Some((copy, contains)) = found else {
            // What lies in a store that has not said so may still be read there.
            if entry.is_pending() {
                change(entry, object, State::failed(owner_died(object, cause.as_ref())), fx);
            }
            return self.acknowledge(token, false, fx);
        };
        match entry.state {
            State::Pending => change(entry, object, State::Stored(copy), fx),
            // Somebody else, who was given the name, has given it to other bytes.
            State::Stored(known) if known.job != copy.job => {
                fx.push(Effect::Unclaim { object, node: copy.node });
                return self.acknowledge(token, false, fx);
            }
            State::Stored(_) => entry.state = State::Stored(copy),
            State::Inline { .. } | State::Actor { .. } | State::Failed(_) => {
                fx.push(Effect::Unclaim { object, node: copy.node });
                return self.acknowledge(token, false, fx);
            }
        }
        entry.registered = 1;
        if entry.contains().is_empty() {
            self.hold_inner(object, token, contains, fx);
        }
        self.part_done(token, fx);
    }

    /// The refs inside a claimed value are this host's from now on: the claim is made once they are registered, too.
    fn hold_inner(&mut self, object: ObjectId, token: u64, contains: Vec<ObjectId>, fx: &mut Vec<Effect>) {
        for inner in &contains {
            self.receive(*inner, Via::Argument, fx);
            let unregistered = |entry: &crate::Entry| entry.registered == 0 && entry.ack().is_none();
            if inner.owner != self.me
                && !self.dead.host(inner.owner)
                && self.objects.get(inner).is_some_and(unregistered)
            {
                self.register(*inner, fx);
            }
            let under_way = self.objects.get(inner).and_then(|entry| entry.ack());
            if let Some(outstanding) = under_way.and_then(|inner| self.outstanding.get_mut(&inner)) {
                outstanding.outer.push(token);
                if let Some(outer) = self.outstanding.get_mut(&token) {
                    outer.left += 1;
                }
            }
        }
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.set_contains(contains);
        }
    }

    /// Why the owner died, where that was heard a moment ago.
    fn mourned_failure(&self, owner: HostId) -> Option<Failure> {
        let of = |host: HostId| self.mourning.get(&host).map(|mourning| mourning.failure.clone());
        of(owner).or_else(|| of(owner.node.agent()))
    }

    /// Claims what is held here of the hosts that are `gone`, and says [`Effect::Mourned`] once that is done.
    pub(crate) fn mourn(
        &mut self,
        dead: HostId,
        gone: &dyn Fn(HostId) -> bool,
        failure: &Failure,
        fx: &mut Vec<Effect>,
    ) {
        // With a node, hosts may die of which that was heard before: what they owned is claimed, or being claimed. But what
        // the agent of that node kept it may have given to another before it left.
        let was_there =
            |state: &State| dead.is_agent() && matches!(state, State::Stored(copy) if copy.node == dead.node);
        let mut held = Vec::new();
        for (object, entry) in self.objects.iter().filter(|(object, _)| object.owner != self.me) {
            let (is_gone, was_there) = (gone(object.owner), was_there(&entry.state));
            let heard = match is_gone {
                true => dead.is_agent() && self.dead.is_host(object.owner),
                false => was_there && self.dead.host(object.owner),
            };
            if is_gone || heard {
                // Where a claim is not answered yet, it asks others if that node does not.
                let asks = entry.ack().is_some() && entry.registered == 0;
                held.push((object, heard, heard && (asks || !was_there)));
            }
        }
        held.sort_unstable();
        let mut mourning = Mourning { left: 1, failure: failure.clone() };
        // What others copied from there goes at the burial.
        mourning.left += u32::from(dead.is_agent() && self.sought.contains_key(&dead.node));
        // What it lent is counted for this host before it is not counted for the dead any more.
        for outstanding in self.outstanding.values_mut() {
            if outstanding.took.iter().any(|(from, _)| gone(*from)) {
                outstanding.mourns.push(dead);
                mourning.left += 1;
            }
        }
        self.mourning.insert(dead, mourning);
        let mut wanted = Vec::new();
        for (object, heard, known) in held {
            let Some(entry) = self.objects.get_mut(&object) else { continue };
            let under_way = entry.ack();
            if known && under_way.is_none() {
                continue;
            }
            // An answer counts no more; its claim waits for what is inside the value.
            let answered = heard && !known && under_way.is_some();
            if !known {
                entry.registered = 0;
            }
            let claims = known || entry.local > 0 && matches!(entry.state, State::Pending | State::Stored(_));
            let token = match (under_way, claims) {
                // The dead owner will not answer; whoever waits for that waits for the claim.
                (Some(token), true) => {
                    if let Some(outstanding) = self.outstanding.get_mut(&token) {
                        outstanding.to = self.me;
                        outstanding.left += u32::from(answered);
                    }
                    token
                }
                (Some(_), false) if answered => continue,
                (Some(token), false) => {
                    self.acknowledge(token, false, fx);
                    continue;
                }
                (None, true) => self.begin_claim(object),
                (None, false) => continue,
            };
            if !known {
                wanted.push((object, self.hint(object)));
            }
            if let Some(outstanding) = self.outstanding.get_mut(&token) {
                outstanding.mourns.push(dead);
                if let Some(mourning) = self.mourning.get_mut(&dead) {
                    mourning.left += 1;
                }
            }
        }
        for objects in wanted.chunks(CLAIMS_MAX) {
            fx.push(Effect::Claim { objects: objects.to_vec() });
        }
    }

    /// One thing less is to be claimed of what a dead host owned.
    pub(crate) fn mourned_one(&mut self, dead: HostId, fx: &mut Vec<Effect>) {
        if let Some(mourning) = self.mourning.get_mut(&dead) {
            mourning.left -= 1;
            if mourning.left == 0 {
                self.mourning.remove(&dead);
                fx.push(Effect::Mourned { host: dead });
            }
        }
    }

    /// Every host has claimed what it holds of what `dead` owned (an agent stands for all hosts of its node): what that
    /// one borrowed here is held by others, or by nobody.
    pub fn buried(&mut self, dead: HostId, fx: &mut Vec<Effect>) {
        let gone = |host: HostId| host == dead || dead.is_agent() && host.node == dead.node;
        let me = self.me;
        self.take_back(&gone, fx);
        let mut unheld: Vec<ObjectId> = self
            .objects
            .iter_mut()
            .filter(|(object, _)| object.owner == me)
            .filter_map(|(object, entry)| (entry.forget_borrowers(gone) && entry.is_idle()).then_some(object))
            .collect();
        unheld.sort_unstable();
        for object in unheld {
            self.collect(object, fx);
        }
    }

    /// An orphan's copy cannot be read: whoever has another keeps that, from now on.
    pub(crate) fn claim_again(&mut self, object: ObjectId, from: NodeId, fx: &mut Vec<Effect>) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        let was_claimed = std::mem::take(&mut entry.registered) > 0;
        let under_way = entry.ack();
        if was_claimed && !self.dead.node(from) {
            fx.push(Effect::Unclaim { object, node: from });
        }
        // Where that claim waits for what is inside, it waits for this one, too.
        if was_claimed && let Some(outstanding) = under_way.and_then(|token| self.outstanding.get_mut(&token))
        {
            outstanding.left += 1;
            fx.push(Effect::Claim { objects: vec![(object, None)] });
        } else if self.is_unclaimed(object) {
            self.register(object, fx);
        }
    }

    /// A value came from `from` with these refs in it, and is dealt with: `from` may let go of each of a third party as soon
    /// as it is counted for this host, or not held here.
    pub fn took(&mut self, from: HostId, objects: &[ObjectId], fx: &mut Vec<Effect>) {
        if from == self.me || self.dead.host(from) {
            return;
        }
        let mut now = Vec::new();
        for object in objects {
            if object.owner == self.me || object.owner == from {
                continue;
            }
            let under_way = self.objects.get(object).and_then(|entry| entry.ack());
            match under_way.and_then(|token| self.outstanding.get_mut(&token)) {
                Some(outstanding) => outstanding.took.push((from, *object)),
                None => now.push(*object),
            }
        }
        if !now.is_empty() {
            fx.push(Effect::Send { to: from, message: Message::Took { objects: now } });
        }
    }

    /// This host keeps the object until `to`, to which it goes, has taken it.
    pub(crate) fn keep_for(&mut self, object: ObjectId, to: HostId) {
        self.add_ref(object);
        *self.lent.entry(to).or_default().entry(object).or_default() += 1;
    }

    pub(crate) fn on_took(&mut self, from: HostId, objects: &[ObjectId], fx: &mut Vec<Effect>) {
        for object in objects {
            let Some(lent) = self.lent.get_mut(&from) else { return };
            let Some(count) = lent.get_mut(object) else { continue };
            *count -= 1;
            if *count == 0 {
                lent.remove(object);
            }
            if lent.is_empty() {
                self.lent.remove(&from);
            }
            self.drop_ref(*object, fx);
        }
    }

    /// What was lent to hosts that are buried is taken by nobody any more. Not before: one that only this host counts as dead
    /// may have taken it, and not be counted for it yet.
    fn take_back(&mut self, gone: &dyn Fn(HostId) -> bool, fx: &mut Vec<Effect>) {
        let to: Vec<HostId> = self.lent.keys().filter(|to| gone(**to)).copied().collect();
        for lent in to.into_iter().filter_map(|to| self.lent.remove(&to)).collect::<Vec<_>>() {
            for (object, count) in lent {
                for _ in 0..count {
                    self.drop_ref(object, fx);
                }
            }
        }
    }

    /// How many refs wait for their receivers to take them.
    pub(crate) fn lent_count(&self) -> usize {
        self.lent.values().map(BTreeMap::len).sum()
    }
}
