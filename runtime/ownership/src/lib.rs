//! Who owns, borrows and rebuilds an object.
//!
//! One [`Ownership`] lives in each host. It knows every object that the host owns (because it submitted the task
//! that makes it, or `put` it) or borrows (because a ref to it arrived), and it speaks the reference-counting part
//! of [`peer`](mobula_proto::peer) with the other hosts. It does no IO, reads no clock and draws no random number:
//! calls and messages go in, [`Effect`]s come out, and the same input always gives the same effects in the same
//! order.
//!
//! # The protocol
//!
//! An owner counts *local references* (handles, arguments of calls in flight, refs inside values it keeps) and, for
//! each other host, *registrations*. A borrower counts its local references and how often it is registered; when
//! the last local reference goes, it sends one `Return` with all its registrations. What matters is that a host is
//! registered before whatever kept the object alive until then lets go:
//!
//! | how a ref reaches a host | what keeps the object alive | how the host gets registered |
//! |---|---|---|
//! | in an argument | the caller, until the call's `Done` | [`Ownership::settle`] at the task's end: by `Done.retained` where the caller is the owner, else by `Borrow`, and `Done` waits for `Borrowed` |
//! | in a value returned by a task, owned by the executor | the executor, until `Done` has left | [`Ownership::lend`] by the executor, before `Done` |
//! | the same, owned by a third host | the executor, until the receiver has said `Took` | `Borrow` by the receiver |
//! | in an `Inline` value that an owner sent, owned by that owner | the owner | by the owner, before it answers |
//! | in any other value read here | the object it was read out of, of which the reader keeps a reference | `Borrow` by the reader; the kept reference goes with `Borrowed` |
//!
//! Messages of one pair of hosts keep their order; nothing is assumed across pairs.
//!
//! # Invariants
//!
//! - **O1.** An owned object lives while it has a local reference or a living registered borrower, and no longer.
//! - **O2.** A host that holds a ref is registered, or something that will outlive its registration's arrival at
//!   the owner keeps the object (the table above).
//! - **O3.** Registrations are counted, so that giving back old ones never ends one under way. A `Return` may
//!   overtake the `Done.retained` it answers: the count dips below zero and comes back while the caller's argument
//!   keeps the object.
//! - **O4.** The first accepted result wins. The copy that a later one brought is freed and its refs are given back.
//! - **O5.** Nothing waits for ever: a `Resolve` for an unknown object is answered with `ObjectFreed`; when an owner
//!   dies, whatever waits for its objects or its acknowledgements goes on, as soon as the agents have answered.
//! - **O6.** The dead stay dead: nothing is accepted from, counted for or sent to a host known to have died.
//! - **O7.** Refs inside a value are held as long as the entry of the object exists, even after that value was lost.
//! - **O8.** Effects come in a reproducible order; no hash order shows.
//! - **O9.** When no ref is left and all messages have arrived, no entry is left, whoever dies. Refs that form a cycle are
//!   never freed.
//! - **O10.** A value in a store outlives its owner for as long as a living host holds a ref to it, or to what it is in.
//!
//! # When an owner dies
//!
//! The agent with the primary copy becomes the *owner of record* ([`Estate`]):
//!
//! 1. Every host is told of the death and *claims* what it holds of the dead host's objects ([`Effect::Claim`]). Its agent
//!    asks the node where the copy was last, or all of them. Who has a primary copy keeps it for that host, and answers
//!    with the place and the refs inside it, as the maker of the value named them when it sealed it. Those the host
//!    registers for, or claims, in turn; only then is its claim made. Where nobody has a copy, the object fails with
//!    `OwnerDied`.
//! 2. A host says [`Effect::Mourned`] once its claims are made, and what it took from the dead host is counted for it, its
//!    agent once all its hosts have, and the head, once all living nodes have, that the dead is *buried*. Nothing is freed
//!    because of a death before that burial: owners count the dead host until then, and so do the owners of record, for
//!    what it had claimed; and what was lent to it is kept. Then what nobody has claimed goes.
//! 3. From then on a claim is taken back with the last ref ([`Effect::Unclaim`]), and the copy goes with the last claim.
//!
//! Why nothing slips through between two hosts: who sends a ref of a third host on in a value keeps it until its receiver
//! has said `Took`, and the receiver says so once somebody counts it: the owner, or, where that is dead, the owner of
//! record. So at the moment in which a host hears of the death, each ref that it has
//! passed on is claimed by it, or has reached a host that claims it when it hears, or has claimed it already.
//!
//! Where the node with the primary copy died, too, whoever has pulled one keeps that, as long as it was told of the refs
//! inside. If the node of the owner of record dies, all that was claimed there is claimed anew, and the copy is lost unless
//! another node has one. One that leaves gave it to another, which keeps it for that agent ([`Estate::claim_for_agent`]) until it is
//! buried: by then whoever holds the object has claimed it. What
//! was not in a store when its owner died (inline values, results not made yet, actors) is not inherited by anybody. A host
//! that ends because its node leaves moves its inline values into the store first ([`Ownership::stored`]).
//!
//! A node that dies before it has mourned others is mourned first: what it held of those is held by whoever holds what it
//! owned, and claimed only then.
//!
//! # When a copy is lost
//!
//! What its owner knows to be lost is pending until all agents have said whether they have another ([`Effect::Salvage`]): who
//! pulled one from a node that is gone keeps it from then on as the primary one. Only then is it made again, or fails. An
//! owner has mourned a node only once it has heard all of them, so nobody drops such a copy before.
//!
//! If a caller dies, its arguments' refs that are not registered yet may go stale: using one gives `ObjectFreed`.

#![forbid(unsafe_code)]

mod borrower;
mod dead;
mod death;
mod entry;
mod estate;
mod objects;
mod orphan;
mod owner;
mod salvage;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use mobula_proto::{
    Failure, FailureKind, HostId, IdMap, Names, NodeId, ObjectId, TaskId,
    peer::{Copy, Message, State},
};

pub use crate::estate::{Act, Answers, Estate};
use crate::{borrower::Outstanding, dead::Dead, entry::Entry, objects::Objects, orphan::Mourning};

/// What the host must do after a call. Effects are meant to be carried out in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send to another host; never to this one, never to one known to be dead.
    Send {
        /// The receiver.
        to: HostId,
        /// The message.
        message: Message,
    },
    /// A copy of an owned object is garbage, and so is what earlier attempts made: tell the agents.
    Free {
        /// The object.
        object: ObjectId,
        /// The copy.
        copy: Copy,
    },
    /// A copy that never counted is garbage, and it alone: what another attempt made may be the object's value.
    Decline {
        /// The object.
        object: ObjectId,
        /// The copy.
        copy: Copy,
    },
    /// One copy that counts of an owned object is as good as another: this one is that one's from now on, as if it had been
    /// pulled from there.
    Spare {
        /// The object.
        object: ObjectId,
        /// The copy that need not count.
        copy: Copy,
        /// The one that does.
        primary: Copy,
    },
    /// The object became final: it was pending, or its stored value was lost or given up and it has failed now.
    Ready {
        /// The object.
        object: ObjectId,
    },
    /// An owned object's entry is gone, once for each object: its lineage may be dropped, and an actor it stood for must end.
    Forgotten {
        /// The object.
        object: ObjectId,
    },
    /// Copies of owned objects that lay on this node are lost: if it is gone, have the agents keep those that they have, and
    /// say which. Answered with [`Ownership::salvaged`], whose last part comes once all agents have answered, or once the
    /// node says that it lives.
    Salvage {
        /// Where they lay.
        node: NodeId,
    },
    /// An owned object's stored value was lost and the object is pending again: run its task once more. May come
    /// again while the task runs, for another of its values.
    Rebuild {
        /// The task.
        task: TaskId,
    },
    /// Something that is or was a living actor changed: it moved, is being restarted (pending) or has failed. When
    /// it is up again after a restart, [`Effect::Ready`] comes first and this next.
    ActorMoved {
        /// The actor's object.
        object: ObjectId,
    },
    /// The owners of these are dead: have the agents say who has primary copies, which is then kept for this host.
    /// Answered by [`Ownership::claimed`] for each.
    Claim {
        /// The objects, and where their primary copies were last; at most [`CLAIMS_MAX`](mobula_proto::peer::CLAIMS_MAX).
        objects: Vec<(ObjectId, Option<NodeId>)>,
    },
    /// What was claimed is not held here any more.
    Unclaim {
        /// The object.
        object: ObjectId,
        /// Who keeps it.
        node: NodeId,
    },
    /// All that is held here of what a dead host owned is claimed; [`Ownership::buried`] follows once all hosts have
    /// said so. An agent stands for the hosts of its node.
    Mourned {
        /// The dead.
        host: HostId,
    },
    /// Every registration that [`Ownership::settle`] began under this token is noted.
    Settled {
        /// The caller's token.
        token: u64,
    },
}

/// How a ref reached this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// In a call's argument: the caller keeps the object until our `Done`.
    Argument,
    /// Read out of this object's value. The host must hold a reference on it at that moment.
    Container(ObjectId),
    /// The object's owner has counted this host once more for it.
    Registered,
    /// In a value from a host that does not own it, and keeps the object until this one says that it [took](Ownership::took)
    /// it.
    Lent,
}

/// What [`Ownership::settle`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// For `Done.retained`: refs still held here whose owner is the caller.
    pub retained: Vec<ObjectId>,
    /// Whether `Done` must wait for [`Effect::Settled`].
    pub waiting: bool,
}

/// How much there is; all zero after a clean end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects of this host.
    pub owned: usize,
    /// Objects of other hosts.
    pub borrowed: usize,
    /// How many of both are not final.
    pub pending: usize,
    /// Local references on both.
    pub references: u64,
    /// Registrations and claims begun here that are not acknowledged yet, and refs lent that are not taken.
    pub unacknowledged: usize,
}

/// Every object that one host owns or borrows.
#[derive(Debug)]
pub struct Ownership {
    me: HostId,
    objects: Objects,
    /// `Borrow`s sent and not acknowledged, by their token.
    outstanding: IdMap<u64, Outstanding>,
    /// How many acknowledgements each settling task still waits for, by the task's token.
    settling: IdMap<u64, u32>,
    next_token: u64,
    dead: Dead,
    /// Deaths of which something is still to be claimed; an agent stands for its node.
    mourning: BTreeMap<HostId, Mourning>,
    /// Third parties' objects that are kept for whom they were lent to, with a reference for each occurrence.
    lent: BTreeMap<HostId, BTreeMap<ObjectId, u32>>,
    /// Owned objects, pending, of which others are asked for copies: by the node where they lay, with the copy lost there.
    sought: BTreeMap<NodeId, BTreeMap<ObjectId, Copy>>,
}

impl Ownership {
    /// Nothing owned and nothing borrowed yet. What this host owns has these names.
    pub fn new(names: Names) -> Self {
        Self {
            me: names.owner(),
            objects: Objects::new(names),
            outstanding: IdMap::default(),
            settling: IdMap::default(),
            next_token: 1,
            dead: Dead::default(),
            mourning: BTreeMap::new(),
            lent: BTreeMap::new(),
            sought: BTreeMap::new(),
        }
    }

    /// One more local reference: a clone of a handle, an argument in flight. Nothing for an unknown object.
    pub fn add_ref(&mut self, object: ObjectId) {
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.local += 1;
        }
    }

    /// One local reference less. Without local references and borrowers an owned object goes: [`Effect::Free`] if
    /// it is stored, then [`Effect::Forgotten`], and what its value contains loses a reference each. A borrowed one
    /// is given back as soon as no acknowledgement is under way for it.
    pub fn drop_ref(&mut self, object: ObjectId, fx: &mut Vec<Effect>) {
        let mut next = Vec::new();
        self.release(object, &mut next, fx);
        while let Some(object) = next.pop() {
            self.release(object, &mut next, fx);
        }
    }

    /// The object's state; `None` if it was never received or is forgotten.
    pub fn state(&self, object: ObjectId) -> Option<&State> {
        self.objects.get(&object).map(|entry| &entry.state)
    }

    /// The refs inside the object's value, as far as this host knows them: all for an object of its own, those of
    /// an inline value for a borrowed one.
    pub fn contains(&self, object: ObjectId) -> &[ObjectId] {
        self.objects.get(&object).map_or(&[], Entry::contains)
    }

    /// How many local references an object has, and which other hosts hold it, where it is owned here; `None` for one that
    /// is not known.
    pub fn holders(&self, object: ObjectId) -> Option<(u32, impl Iterator<Item = HostId>)> {
        self.objects.get(&object).map(|entry| (entry.local, entry.borrowers()))
    }

    /// Each ref inside a value that counts here as a local reference, once for each place. Walks the whole table, in no
    /// order.
    pub fn inside_values(&self) -> impl Iterator<Item = ObjectId> {
        self.objects.iter().flat_map(|(_, entry)| entry.holds())
    }

    /// How much there is. Walks the whole table.
    pub fn counts(&self) -> Counts {
        let mut counts =
            Counts { unacknowledged: self.outstanding.len() + self.lent_count(), ..Counts::default() };
        for (object, entry) in self.objects.iter() {
            if object.owner == self.me {
                counts.owned += 1;
            } else {
                counts.borrowed += 1;
            }
            counts.pending += usize::from(entry.is_pending());
            counts.references += u64::from(entry.local);
        }
        counts
    }

    /// Whether nothing is lost with this host: nothing is under way, and all that it owns lies in stores, where it outlives
    /// its owner (O10), or has failed.
    pub fn may_end(&self) -> bool {
        let outlives = |state: &State| matches!(state, State::Stored(_) | State::Failed(_));
        self.outstanding.is_empty()
            && self.lent.is_empty()
            && self.objects.iter().all(|(object, entry)| object.owner != self.me || outlives(&entry.state))
    }

    /// Whether this host was told that another died: nothing of it counts any more (O6).
    pub fn is_dead(&self, host: HostId) -> bool {
        self.dead.host(host)
    }

    /// Handles `Resolve`, `Resolved`, `Borrow`, `Borrowed`, `Return`, `Took` and `Lost`.
    ///
    /// # Errors
    /// Any other message is handed back.
    #[expect(clippy::result_large_err, reason = "the message comes back by value to be handled elsewhere")]
    pub fn on_message(
        &mut self,
        from: HostId,
        message: Message,
        fx: &mut Vec<Effect>,
    ) -> Result<(), Message> {
        match message {
            Message::Resolve { .. }
            | Message::Resolved { .. }
            | Message::Borrow { .. }
            | Message::Borrowed { .. }
            | Message::Return { .. }
            | Message::Took { .. }
            | Message::Lost { .. }
                if self.dead.host(from) => {}
            Message::Resolve { object } => self.on_resolve(from, object, fx),
            Message::Resolved { object, state } => self.on_resolved(from, object, state, fx),
            Message::Borrow { object, token } => {
                self.note(object, from, 1);
                fx.push(Effect::Send { to: from, message: Message::Borrowed { token } });
            }
            Message::Borrowed { token } => {
                if self.outstanding.get(&token).is_some_and(|outstanding| outstanding.to == from) {
                    self.acknowledge(token, true, fx);
                }
            }
            Message::Return { object, count } => self.on_return(from, object, count, fx),
            Message::Took { objects } => self.on_took(from, &objects, fx),
            Message::Lost { object, copy } => {
                if object.owner == self.me {
                    self.lost(object, &copy, fx);
                }
            }
            other => return Err(other),
        }
        Ok(())
    }

    /// Takes one local reference away; what loses a reference in turn is pushed onto `next`.
    fn release(&mut self, object: ObjectId, next: &mut Vec<ObjectId>, fx: &mut Vec<Effect>) {
        if let Some(entry) = self.objects.get_mut(&object) {
            debug_assert!(entry.local > 0, "{object} has no local reference to drop");
            entry.local = entry.local.saturating_sub(1);
            if entry.is_idle() {
                self.remove(object, next, fx);
            }
        }
    }

    /// Removes the entry if nothing holds it any more, and whatever it alone held.
    fn collect(&mut self, object: ObjectId, fx: &mut Vec<Effect>) {
        if self.objects.get(&object).is_some_and(Entry::is_idle) {
            let mut next = Vec::new();
            self.remove(object, &mut next, fx);
            while let Some(object) = next.pop() {
                self.release(object, &mut next, fx);
            }
        }
    }

    /// Removes an idle entry and says so to whom it concerns.
    fn remove(&mut self, object: ObjectId, next: &mut Vec<ObjectId>, fx: &mut Vec<Effect>) {
        let Some(entry) = self.objects.remove(&object) else { return };
        let owner = object.owner;
        if owner == self.me {
            if let State::Stored(copy) = entry.state {
                fx.push(Effect::Free { object, copy });
            }
            if entry.is_pending() {
                self.stop_seeking(object, fx);
                // Whoever still waits has dropped its refs; it is told all the same (O5).
                for to in entry.waiters() {
                    fx.push(Effect::Send {
                        to: *to,
                        message: Message::Resolved { object, state: State::failed(freed(object)) },
                    });
                }
            }
            if !entry.stale {
                fx.push(Effect::Forgotten { object });
            }
        } else if entry.registered > 0 && !self.dead.host(owner) {
            fx.push(Effect::Send { to: owner, message: Message::Return { object, count: entry.registered } });
        } else if entry.registered > 0
            && let State::Stored(copy) = entry.state
            && !self.dead.node(copy.node)
        {
            fx.push(Effect::Unclaim { object, node: copy.node });
        }
        entry.into_held(next);
    }
}

/// The failure of an object that nobody knows any more.
fn freed(object: ObjectId) -> Failure {
    Failure::new(FailureKind::ObjectFreed, "it was freed: nothing referred to it any more")
        .of(format!("object {object}"))
}
