//! One rule each, between hosts whose messages the test carries by hand.

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, Names, NodeId, ObjectId, TaskId,
    peer::{Copy, Message, Record, State},
};

use crate::{Counts, Effect, Ownership, Settled, Via, entry::Entry};

const NODE: NodeId = NodeId { number: 1, incarnation: 1 };
const AWAY: NodeId = NodeId { number: 2, incarnation: 1 };
/// The owner.
const O: HostId = HostId { node: NODE, seq: 1 };
/// A borrower.
const B: HostId = HostId { node: NODE, seq: 2 };
/// An executor, or another third host.
const E: HostId = HostId { node: AWAY, seq: 1 };

fn object(owner: HostId, seq: u64) -> ObjectId {
    TaskId::numbered(owner, seq).object(0)
}

fn copy(attempt: u32) -> Copy {
    Copy { node: AWAY, bytes: 9, attempt, job: JobId { number: 1 } }
}

fn inline(contains: Vec<ObjectId>) -> State {
    State::Inline { bytes: mobula_proto::Blob::from_slice(&[7]), contains }
}

fn killed() -> Failure {
    Failure::new(FailureKind::HostDied, "killed")
}

/// The effects of one call.
fn fx<T>(own: &mut Ownership, call: impl FnOnce(&mut Ownership, &mut Vec<Effect>) -> T) -> Vec<Effect> {
    let mut effects = Vec::new();
    call(own, &mut effects);
    effects
}

fn message(own: &mut Ownership, from: HostId, message: Message) -> Vec<Effect> {
    fx(own, |own, fx| own.on_message(from, message, fx).unwrap())
}

fn sent(to: HostId, message: Message) -> Effect {
    Effect::Send { to, message }
}

fn kind(own: &Ownership, object: ObjectId) -> FailureKind {
    match own.state(object) {
        Some(State::Failed(failure)) => failure.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_entry_is_small() {
    assert!(size_of::<(ObjectId, Entry)>() <= 200, "{}", size_of::<(ObjectId, Entry)>());
}

#[test]
fn a_host_may_end_once_all_that_it_owns_is_in_stores() {
    let mut own = Ownership::new(Names::plain(O));
    let (x, y, z) = (object(O, 1), object(O, 2), object(O, 3));
    assert!(own.may_end());
    own.create(x, true);
    assert!(!own.may_end(), "it is not made yet");
    fx(&mut own, |own, fx| own.complete(E, x, State::Stored(copy(1)), vec![], fx));
    assert!(own.may_end());
    // It keeps two itself, one of which is inside of the other, and of a third holds a ref.
    fx(&mut own, |own, fx| own.put(y, inline(vec![]), vec![], fx));
    fx(&mut own, |own, fx| own.put(z, inline(vec![y]), vec![y], fx));
    let kept: Vec<ObjectId> = own.kept_here().into_iter().map(|(object, _)| object).collect();
    assert_eq!(kept, [y, z]);
    for object in kept {
        assert!(!own.may_end());
        assert_eq!(fx(&mut own, |own, fx| own.stored(object, copy(1), fx)), []);
        assert_eq!(own.state(object), Some(&State::Stored(copy(1))));
    }
    assert_eq!(own.contains(z), [y]);
    assert!(own.may_end() && own.kept_here().is_empty());
    // Who holds it is counted as before, and it goes with the last.
    fx(&mut own, |own, fx| own.drop_ref(y, fx));
    let free = |object| Effect::Free { object, copy: copy(1) };
    let gone = |object| [free(object), Effect::Forgotten { object }];
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(z, fx)), [gone(z), gone(y)].concat());
    // One that went meanwhile.
    assert_eq!(fx(&mut own, |own, fx| own.stored(z, copy(1), fx)), [free(z)]);
    // What is lent is still to be taken, and what is borrowed to be acknowledged.
    let theirs = object(E, 1);
    fx(&mut own, |own, fx| own.receive(theirs, Via::Container(x), fx));
    assert!(!own.may_end());
}

#[test]
fn o1_an_owned_object_goes_with_its_last_reference() {
    let mut own = Ownership::new(Names::plain(O));
    let x = object(O, 1);
    own.create(x, true);
    own.add_ref(x);
    let ready = fx(&mut own, |own, fx| assert!(own.complete(E, x, State::Stored(copy(1)), vec![], fx)));
    assert_eq!(ready, [Effect::Ready { object: x }]);
    assert_eq!(own.counts(), Counts { owned: 1, references: 2, ..Counts::default() });
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), []);
    assert_eq!(
        fx(&mut own, |own, fx| own.drop_ref(x, fx)),
        [Effect::Free { object: x, copy: copy(1) }, Effect::Forgotten { object: x }]
    );
    assert_eq!(own.state(x), None);
    assert_eq!(own.counts(), Counts::default());
}

#[test]
fn o1_a_borrower_keeps_an_object_and_gives_it_back_once() {
    let (mut own, mut borrower) = (Ownership::new(Names::plain(O)), Ownership::new(Names::plain(B)));
    let x = object(O, 1);
    own.create(x, false);
    // An argument that the executor keeps, twice held there.
    borrower.receive(x, Via::Argument, &mut vec![]);
    borrower.add_ref(x);
    let mut effects = vec![];
    let settled = borrower.settle(O, &[x, x], 1, &mut effects);
    assert_eq!(settled, Settled { retained: vec![x], waiting: false });
    assert_eq!(effects, []);
    own.retained(B, &settled.retained);
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), []);
    assert_eq!(fx(&mut borrower, |own, fx| own.drop_ref(x, fx)), []);
    let back = Message::Return { object: x, count: 1 };
    assert_eq!(fx(&mut borrower, |own, fx| own.drop_ref(x, fx)), [sent(O, back.clone())]);
    assert_eq!(message(&mut own, B, back), [Effect::Forgotten { object: x }]);
}

#[test]
fn an_argument_dropped_before_the_end_costs_no_message() {
    let mut own = Ownership::new(Names::plain(B));
    let x = object(O, 1);
    own.receive(x, Via::Argument, &mut vec![]);
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), []);
    let mut effects = vec![];
    assert_eq!(own.settle(O, &[x], 1, &mut effects), Settled::default());
    assert_eq!((effects, own.counts()), (vec![], Counts::default()));
}

#[test]
fn o2_an_argument_of_a_third_owner_holds_done_back() {
    let mut own = Ownership::new(Names::plain(E));
    let x = object(O, 1);
    own.receive(x, Via::Argument, &mut vec![]);
    let mut effects = vec![];
    assert!(own.settle(B, &[x], 5, &mut effects).waiting);
    own.lend(B, &[x]);
    assert_eq!(effects, [sent(O, Message::Borrow { object: x, token: 1 })]);
    assert_eq!(message(&mut own, O, Message::Borrowed { token: 1 }), [Effect::Settled { token: 5 }]);
    // It is given back once the receiver has taken what was lent to it.
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), []);
    assert_eq!(
        message(&mut own, B, Message::Took { objects: vec![x] }),
        [sent(O, Message::Return { object: x, count: 1 })]
    );
}

#[test]
fn o2_lending_asks_nobody_where_caller_or_executor_is_the_owner() {
    let mut own = Ownership::new(Names::plain(E));
    let (mine, theirs) = (object(E, 1), object(B, 1));
    own.create(mine, false);
    own.receive(theirs, Via::Argument, &mut vec![]);
    own.lend(B, &[mine, theirs]);
    // The borrower keeps it from now on.
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(mine, fx)), []);
    assert_eq!(
        message(&mut own, B, Message::Return { object: mine, count: 1 }),
        [Effect::Forgotten { object: mine }]
    );
}

#[test]
fn o2_a_container_is_kept_until_what_was_read_from_it_is_registered() {
    let mut own = Ownership::new(Names::plain(B));
    let (container, x) = (object(E, 1), object(O, 1));
    own.receive(container, Via::Registered, &mut vec![]);
    assert_eq!(
        fx(&mut own, |own, fx| own.receive(x, Via::Container(container), fx)),
        [sent(O, Message::Borrow { object: x, token: 1 })]
    );
    // Read again meanwhile: registered once.
    assert_eq!(fx(&mut own, |own, fx| own.receive(x, Via::Container(container), fx)), []);
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(container, fx)), []);
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), []);
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), [], "the acknowledgement is under way");
    assert_eq!(
        message(&mut own, O, Message::Borrowed { token: 1 }),
        [
            sent(O, Message::Return { object: x, count: 1 }),
            sent(E, Message::Return { object: container, count: 1 }),
        ]
    );
    assert_eq!(own.counts(), Counts::default());
}

#[test]
fn o2_an_inline_answer_registers_the_asker_for_the_owners_refs() {
    let (mut own, mut borrower) = (Ownership::new(Names::plain(O)), Ownership::new(Names::plain(B)));
    let (outer, inner, third) = (object(O, 1), object(O, 2), object(E, 1));
    own.create(inner, false);
    own.receive(third, Via::Registered, &mut vec![]);
    let put = fx(&mut own, |own, fx| own.put(outer, inline(vec![]), vec![inner, third], fx));
    assert_eq!(put, [Effect::Ready { object: outer }]);
    assert_eq!(own.contains(outer), [inner, third]);
    own.retained(B, &[outer]);
    for dropped in [inner, third, outer] {
        assert_eq!(fx(&mut own, |own, fx| own.drop_ref(dropped, fx)), []);
    }

    borrower.receive(outer, Via::Registered, &mut vec![]);
    let ask = Message::Resolve { object: outer };
    assert_eq!(fx(&mut borrower, |own, fx| own.want(outer, fx)), [sent(O, ask.clone())]);
    assert_eq!(fx(&mut borrower, |own, fx| own.want(outer, fx)), [], "asked once");
    let answer = Message::Resolved { object: outer, state: inline(vec![inner, third]) };
    assert_eq!(message(&mut own, B, ask), [sent(B, answer.clone())]);
    assert_eq!(
        message(&mut borrower, O, answer.clone()),
        [sent(E, Message::Borrow { object: third, token: 1 }), Effect::Ready { object: outer },]
    );
    assert_eq!(borrower.contains(outer), [inner, third]);
    // A second answer brings a second registration, which is given back with the first.
    assert_eq!(message(&mut borrower, O, answer), []);
    assert_eq!(message(&mut borrower, E, Message::Borrowed { token: 1 }), []);
    assert_eq!(
        fx(&mut borrower, |own, fx| own.drop_ref(outer, fx)),
        [
            sent(O, Message::Return { object: outer, count: 1 }),
            sent(E, Message::Return { object: third, count: 1 }),
            sent(O, Message::Return { object: inner, count: 2 }),
        ]
    );
    // The owner gets it back: all three go there.
    assert_eq!(message(&mut own, B, Message::Return { object: inner, count: 1 }), []);
    assert_eq!(
        message(&mut own, B, Message::Return { object: outer, count: 1 }),
        [
            Effect::Forgotten { object: outer },
            sent(E, Message::Return { object: third, count: 1 }),
            Effect::Forgotten { object: inner },
        ]
    );
}

#[test]
fn an_answer_that_nobody_wants_any_more_is_given_back() {
    let mut own = Ownership::new(Names::plain(B));
    let (outer, inner, third) = (object(O, 1), object(O, 2), object(E, 1));
    let answer = Message::Resolved { object: outer, state: inline(vec![inner, third]) };
    assert_eq!(message(&mut own, O, answer), [sent(O, Message::Return { object: inner, count: 1 })]);
}

#[test]
fn o3_a_return_does_not_end_a_registration_under_way() {
    let mut own = Ownership::new(Names::plain(O));
    let x = object(O, 1);
    own.create(x, false);
    own.retained(B, &[x]);
    assert_eq!(
        message(&mut own, B, Message::Borrow { object: x, token: 3 }),
        [sent(B, Message::Borrowed { token: 3 })]
    );
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), []);
    assert_eq!(message(&mut own, B, Message::Return { object: x, count: 1 }), []);
    assert_eq!(
        message(&mut own, B, Message::Return { object: x, count: 1 }),
        [Effect::Forgotten { object: x }]
    );
}

#[test]
fn o3_a_return_may_overtake_done() {
    let mut own = Ownership::new(Names::plain(O));
    let x = object(O, 1);
    own.create(x, false);
    assert_eq!(message(&mut own, B, Message::Return { object: x, count: 1 }), []);
    own.retained(B, &[x]);
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), [Effect::Forgotten { object: x }]);
}

#[test]
fn o4_the_first_result_wins() {
    let mut own = Ownership::new(Names::plain(O));
    let (x, inner) = (object(O, 1), object(E, 1));
    own.create(x, true);
    own.complete(E, x, State::Stored(copy(1)), vec![], &mut vec![]);
    let late = fx(&mut own, |own, fx| assert!(!own.complete(E, x, State::Stored(copy(2)), vec![inner], fx)));
    assert_eq!(
        late,
        [Effect::Decline { object: x, copy: copy(2) }, sent(E, Message::Return { object: inner, count: 1 }),]
    );
    // The same result twice frees nothing, and a result for a forgotten object everything.
    assert_eq!(fx(&mut own, |own, fx| own.complete(E, x, State::Stored(copy(1)), vec![], fx)), []);
    own.drop_ref(x, &mut vec![]);
    assert_eq!(
        fx(&mut own, |own, fx| own.complete(E, x, State::Stored(copy(3)), vec![], fx)),
        [Effect::Decline { object: x, copy: copy(3) }]
    );
}

#[test]
fn o5_an_unknown_object_counts_as_freed() {
    let mut own = Ownership::new(Names::plain(O));
    let x = object(O, 1);
    let answers = message(&mut own, B, Message::Resolve { object: x });
    assert!(matches!(
        &answers[..],
        [Effect::Send { to: B, message: Message::Resolved { state: State::Failed(failure), .. } }]
            if failure.kind == FailureKind::ObjectFreed
    ));
    // So it does when a ref comes home too late; no second end is announced.
    own.receive(x, Via::Argument, &mut vec![]);
    assert_eq!(kind(&own, x), FailureKind::ObjectFreed);
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), []);
}

#[test]
fn o5_waiters_are_told_when_it_is_ready_and_when_it_fails() {
    let mut own = Ownership::new(Names::plain(O));
    for (x, fails) in [(object(O, 1), false), (object(O, 2), true)] {
        own.create(x, false);
        assert_eq!(message(&mut own, E, Message::Resolve { object: x }), []);
        assert_eq!(message(&mut own, B, Message::Resolve { object: x }), []);
        let state = if fails { State::failed(killed()) } else { inline(vec![]) };
        let effects = fx(&mut own, |own, fx| {
            if fails {
                own.fail(x, killed(), fx)
            } else {
                assert!(own.complete(E, x, inline(vec![]), vec![], fx))
            }
        });
        let answer = Message::Resolved { object: x, state };
        assert_eq!(effects, [Effect::Ready { object: x }, sent(B, answer.clone()), sent(E, answer)]);
        assert_eq!(fx(&mut own, |own, fx| own.fail(x, killed(), fx)), [], "final is final");
    }
}

#[test]
fn an_actors_place_is_learned_only_by_who_asked_for_it() {
    let mut own = Ownership::new(Names::plain(B));
    let actor = object(O, 1);
    let up = |incarnation| State::Actor { host: E, incarnation };
    own.receive(actor, Via::Registered, &mut vec![]);
    own.want(actor, &mut vec![]);
    // Given back, it is told nothing more of what comes next; the answer was under way, and another ref, too.
    own.drop_ref(actor, &mut vec![]);
    own.receive(actor, Via::Registered, &mut vec![]);
    message(&mut own, O, Message::Resolved { object: actor, state: up(4) });
    assert_eq!(own.state(actor), Some(&State::Pending));
    let asks = fx(&mut own, |own, fx| own.want(actor, fx));
    assert_eq!(asks, [sent(O, Message::Resolve { object: actor })]);
    message(&mut own, O, Message::Resolved { object: actor, state: up(6) });
    assert_eq!(own.state(actor), Some(&up(6)));
}

#[test]
fn o5_an_owners_death_ends_every_wait() {
    let mut own = Ownership::new(Names::plain(B));
    let (waiting, small, stored, actor) = (object(O, 4), object(O, 2), object(O, 3), object(O, 1));
    let container = object(E, 1);
    for x in [waiting, small, stored, actor, container] {
        own.receive(x, Via::Registered, &mut vec![]);
    }
    own.want(actor, &mut vec![]);
    let up = State::Actor { host: E, incarnation: 1 };
    for (object, state) in [(small, inline(vec![])), (stored, State::Stored(copy(1))), (actor, up)] {
        message(&mut own, O, Message::Resolved { object, state });
    }
    own.want(waiting, &mut vec![]);
    own.receive(object(O, 5), Via::Container(container), &mut vec![]);
    own.receive(object(O, 6), Via::Argument, &mut vec![]);
    assert!(own.settle(E, &[object(O, 6)], 7, &mut vec![]).waiting);
    own.drop_ref(container, &mut vec![]);
    let effects = fx(&mut own, |own, fx| own.host_died(O, &killed(), fx));
    let objects = vec![(stored, Some(AWAY)), (waiting, None), (object(O, 5), None), (object(O, 6), None)];
    assert_eq!(effects, [Effect::ActorMoved { object: actor }, Effect::Claim { objects }]);
    // O10: some agent has the one, and nobody the others.
    let record = Record { copy: copy(1), at: 0, contains: vec![], more: false };
    assert_eq!(fx(&mut own, |own, fx| own.claimed(stored, Some(record.clone()), fx)), []);
    assert_eq!(fx(&mut own, |own, fx| own.claimed(waiting, None, fx)), [Effect::Ready { object: waiting }]);
    assert_eq!(
        fx(&mut own, |own, fx| own.claimed(object(O, 5), None, fx)),
        [Effect::Ready { object: object(O, 5) }, sent(E, Message::Return { object: container, count: 1 })]
    );
    assert_eq!(
        fx(&mut own, |own, fx| own.claimed(object(O, 6), None, fx)),
        [Effect::Ready { object: object(O, 6) }, Effect::Settled { token: 7 }, Effect::Mourned { host: O }]
    );
    assert_eq!(kind(&own, waiting), FailureKind::OwnerDied);
    assert_eq!(own.state(small), Some(&inline(vec![])));
    assert_eq!(own.state(stored), Some(&State::Stored(copy(1))));
    // Its copy is gone too: whoever has another may say so.
    assert_eq!(
        fx(&mut own, |own, fx| own.lost(stored, &copy(1), fx)),
        [Effect::Unclaim { object: stored, node: AWAY }, Effect::Claim { objects: vec![(stored, None)] }]
    );
    assert_eq!(fx(&mut own, |own, fx| own.claimed(stored, None, fx)), [Effect::Ready { object: stored }]);
    assert_eq!(kind(&own, stored), FailureKind::OwnerDied);
    // O6: nothing goes back to the dead for a ref that arrives later.
    let late = object(O, 9);
    assert_eq!(
        fx(&mut own, |own, fx| own.receive(late, Via::Container(small), fx)),
        [Effect::Claim { objects: vec![(late, None)] }]
    );
    own.claimed(late, None, &mut vec![]);
    assert_eq!(kind(&own, late), FailureKind::OwnerDied);
    for x in [waiting, small, stored, actor, object(O, 5), object(O, 6), object(O, 9)] {
        assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), []);
    }
    assert_eq!(own.counts(), Counts::default());
}

#[test]
fn o6_a_borrowers_death_ends_its_borrows_for_good() {
    let mut own = Ownership::new(Names::plain(O));
    let (x, y) = (object(O, 1), object(O, 2));
    for object in [y, x] {
        own.create(object, false);
        own.retained(B, &[object]);
        own.drop_ref(object, &mut vec![]);
    }
    own.create(object(O, 3), false);
    message(&mut own, B, Message::Resolve { object: object(O, 3) });
    assert_eq!(
        fx(&mut own, |own, fx| own.host_died(B, &killed(), fx)),
        [Effect::Mourned { host: B }],
        "what it held others may hold for it"
    );
    assert_eq!(
        fx(&mut own, |own, fx| own.buried(B, fx)),
        [Effect::Forgotten { object: x }, Effect::Forgotten { object: y }]
    );
    assert_eq!(
        fx(&mut own, |own, fx| own.host_died(B, &killed(), fx)),
        [Effect::Mourned { host: B }],
        "each time"
    );
    // Late messages about it or from it change nothing.
    message(&mut own, B, Message::Borrow { object: object(O, 3), token: 1 });
    assert_eq!(message(&mut own, B, Message::Resolve { object: object(O, 3) }), []);
    own.retained(B, &[object(O, 3)]);
    assert_eq!(
        fx(&mut own, |own, fx| own.drop_ref(object(O, 3), fx)),
        [Effect::Forgotten { object: object(O, 3) }]
    );
}

#[test]
fn o7_refs_inside_a_lost_value_are_held_until_the_object_goes() {
    let mut own = Ownership::new(Names::plain(O));
    let (x, old, new) = (object(O, 1), object(E, 1), object(E, 2));
    own.create(x, true);
    own.complete(E, x, State::Stored(copy(1)), vec![old], &mut vec![]);
    assert_eq!(fx(&mut own, |own, fx| own.lost(x, &copy(1), fx)), [Effect::Salvage { node: AWAY }]);
    assert_eq!(own.state(x), Some(&State::Pending));
    assert_eq!(
        fx(&mut own, |own, fx| own.salvaged(AWAY, &[], false, fx)),
        [Effect::Free { object: x, copy: copy(1) }, Effect::Rebuild { task: x.task() }]
    );
    assert_eq!(fx(&mut own, |own, fx| own.lost(x, &copy(1), fx)), [], "known already");
    assert!(own.complete(E, x, State::Stored(copy(2)), vec![new], &mut vec![]));
    assert_eq!(own.contains(x), [new]);
    assert_eq!(fx(&mut own, |own, fx| own.lost(x, &copy(1), fx)), [], "another attempt's copy");
    assert_eq!(
        fx(&mut own, |own, fx| own.drop_ref(x, fx)),
        [
            Effect::Free { object: x, copy: copy(2) },
            Effect::Forgotten { object: x },
            sent(E, Message::Return { object: old, count: 1 }),
            sent(E, Message::Return { object: new, count: 1 }),
        ]
    );
}

#[test]
fn a_borrower_reports_a_lost_copy_and_asks_again() {
    let (mut own, mut borrower) = (Ownership::new(Names::plain(O)), Ownership::new(Names::plain(B)));
    let x = object(O, 1);
    own.create(x, true);
    own.complete(E, x, State::Stored(copy(1)), vec![], &mut vec![]);
    borrower.receive(x, Via::Argument, &mut vec![]);
    message(&mut borrower, O, Message::Resolved { object: x, state: State::Stored(copy(1)) });
    let (lost, ask) = (Message::Lost { object: x, copy: copy(1) }, Message::Resolve { object: x });
    assert_eq!(
        fx(&mut borrower, |own, fx| own.lost(x, &copy(1), fx)),
        [sent(O, lost.clone()), sent(O, ask.clone())]
    );
    assert_eq!(message(&mut own, B, lost), [Effect::Salvage { node: AWAY }]);
    assert_eq!(message(&mut own, B, ask), []);
    assert_eq!(
        fx(&mut own, |own, fx| own.salvaged(AWAY, &[], false, fx)),
        [Effect::Free { object: x, copy: copy(1) }, Effect::Rebuild { task: x.task() }]
    );
    let answer = Message::Resolved { object: x, state: State::Stored(copy(2)) };
    let rebuilt = fx(&mut own, |own, fx| assert!(own.complete(E, x, State::Stored(copy(2)), vec![], fx)));
    assert_eq!(rebuilt, [Effect::Ready { object: x }, sent(B, answer.clone())]);
    assert_eq!(message(&mut borrower, O, answer), [Effect::Ready { object: x }]);
}

#[test]
fn a_nodes_death_loses_what_it_stored() {
    let mut own = Ownership::new(Names::plain(O));
    let task = TaskId::numbered(O, 8);
    let put = object(O, 1);
    for (x, rebuildable) in [(task.object(1), true), (task.object(0), true), (put, false)] {
        own.create(x, rebuildable);
        own.complete(E, x, State::Stored(copy(1)), vec![], &mut vec![]);
    }
    own.retained(E, &[put]);
    assert_eq!(fx(&mut own, |own, fx| own.node_died(AWAY, &killed(), fx)), [Effect::Salvage { node: AWAY }]);
    assert_eq!(own.counts().pending, 3);
    // It has mourned only when it knows, since others keep what they have until it has.
    assert_eq!(
        fx(&mut own, |own, fx| own.salvaged(AWAY, &[], false, fx)),
        [Effect::Ready { object: put }, Effect::Rebuild { task }, Effect::Mourned { host: AWAY.agent() }]
    );
    assert_eq!(kind(&own, put), FailureKind::ObjectLost);
    assert_eq!(own.counts().pending, 2);
    // Its hosts died with it.
    assert_eq!(message(&mut own, E, Message::Resolve { object: put }), []);
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(put, fx)), []);
    assert_eq!(fx(&mut own, |own, fx| own.buried(AWAY.agent(), fx)), [Effect::Forgotten { object: put }]);
}

#[test]
fn o10_a_claim_holds_what_is_inside_before_it_counts() {
    let mut own = Ownership::new(Names::plain(B));
    let (outer, inner, lost) = (object(O, 1), object(E, 1), object(O, 2));
    own.receive(outer, Via::Argument, &mut vec![]);
    own.host_died(O, &killed(), &mut vec![]);
    let record = Record { copy: copy(1), at: 0, contains: vec![inner, lost], more: false };
    let effects = fx(&mut own, |own, fx| own.claimed(outer, Some(record), fx));
    let token = match &effects[..] {
        [
            Effect::Ready { object },
            Effect::Send { to: E, message: Message::Borrow { object: borrowed, token } },
            Effect::Claim { objects },
        ] if *object == outer && *borrowed == inner && *objects == [(lost, None)] => *token,
        other => panic!("{other:?}"),
    };
    // What it waits for is settled in any order; only then has it mourned, and may an executor's `Done` leave.
    assert_eq!(own.counts().unacknowledged, 3);
    assert_eq!(message(&mut own, E, Message::Borrowed { token }), []);
    assert_eq!(
        fx(&mut own, |own, fx| own.claimed(lost, None, fx)),
        [Effect::Ready { object: lost }, Effect::Mourned { host: O }]
    );
    assert_eq!(
        fx(&mut own, |own, fx| own.drop_ref(outer, fx)),
        [Effect::Unclaim { object: outer, node: AWAY }, sent(E, Message::Return { object: inner, count: 1 })]
    );
    assert_eq!(own.counts(), Counts::default());
}

#[test]
fn o10_nobody_inherits_what_another_job_made_under_the_name() {
    let mut own = Ownership::new(Names::plain(B));
    let x = object(O, 1);
    own.receive(x, Via::Argument, &mut vec![]);
    message(&mut own, O, Message::Resolved { object: x, state: State::Stored(copy(1)) });
    own.host_died(O, &killed(), &mut vec![]);
    let fake = Copy { job: JobId { number: 2 }, ..copy(7) };
    let record = Record { copy: fake, at: 0, contains: vec![], more: false };
    assert_eq!(
        fx(&mut own, |own, fx| own.claimed(x, Some(record), fx)),
        [Effect::Unclaim { object: x, node: AWAY }, Effect::Mourned { host: O }]
    );
    assert_eq!(own.state(x), Some(&State::Stored(copy(1))));
}

#[test]
fn o10_a_ref_is_kept_for_whom_it_was_lent_to() {
    let (mut own, mut caller) = (Ownership::new(Names::plain(E)), Ownership::new(Names::plain(B)));
    let (x, result) = (object(O, 1), object(B, 1));
    own.receive(x, Via::Registered, &mut vec![]);
    own.host_died(O, &killed(), &mut vec![]);
    let record = || Some(Record { copy: copy(1), at: 0, contains: vec![], more: false });
    own.claimed(x, record(), &mut vec![]);
    // The caller does not know yet that the owner is dead, and asks there.
    own.lend(B, &[x]);
    assert_eq!(fx(&mut own, |own, fx| own.drop_ref(x, fx)), [], "kept until the caller has taken it");
    caller.create(result, false);
    let effects = fx(&mut caller, |own, fx| {
        assert!(own.complete(E, result, inline(vec![]), vec![x], fx));
        own.took(E, &[x], fx);
    });
    assert_eq!(effects, [sent(O, Message::Borrow { object: x, token: 1 }), Effect::Ready { object: result }]);
    caller.host_died(O, &killed(), &mut vec![]);
    let took = Message::Took { objects: vec![x] };
    assert_eq!(
        fx(&mut caller, |own, fx| own.claimed(x, record(), fx)),
        [Effect::Ready { object: x }, sent(E, took.clone()), Effect::Mourned { host: O }]
    );
    assert_eq!(message(&mut own, B, took), [Effect::Unclaim { object: x, node: AWAY }]);
    assert_eq!(own.counts(), Counts::default());
    assert_eq!(
        fx(&mut caller, |own, fx| own.drop_ref(result, fx)),
        [Effect::Forgotten { object: result }, Effect::Unclaim { object: x, node: AWAY }]
    );
}

#[test]
fn o9_what_a_dead_executor_lent_is_counted_for_its_caller_before_the_burial() {
    let mut caller = Ownership::new(Names::plain(B));
    let (x, y, result) = (object(O, 1), object(O, 2), object(B, 1));
    caller.create(result, false);
    // Of two refs it keeps one.
    caller.receive(y, Via::Argument, &mut vec![]);
    let effects = fx(&mut caller, |own, fx| {
        assert!(own.complete(E, result, inline(vec![]), vec![x, y], fx));
        own.took(E, &[x, y], fx);
    });
    let borrow = |object, token| sent(O, Message::Borrow { object, token });
    assert_eq!(effects, [borrow(x, 1), borrow(y, 2), Effect::Ready { object: result }]);
    assert_eq!(fx(&mut caller, |own, fx| own.host_died(E, &killed(), fx)), [], "not before it is counted");
    assert_eq!(message(&mut caller, O, Message::Borrowed { token: 1 }), []);
    assert_eq!(message(&mut caller, O, Message::Borrowed { token: 2 }), [Effect::Mourned { host: E }]);
    let gone = fx(&mut caller, |own, fx| own.drop_ref(result, fx));
    assert_eq!(
        gone,
        [Effect::Forgotten { object: result }, sent(O, Message::Return { object: x, count: 1 })]
    );
    caller.drop_ref(y, &mut vec![]);
    assert_eq!(caller.counts(), Counts::default());
}

#[test]
fn o9_what_was_lent_to_the_dead_is_kept_until_the_burial() {
    let mut own = Ownership::new(Names::plain(E));
    let x = object(O, 1);
    own.receive(x, Via::Registered, &mut vec![]);
    own.lend(B, &[x]);
    own.drop_ref(x, &mut vec![]);
    // It may only be this host that counts it as dead.
    assert_eq!(fx(&mut own, |own, fx| own.host_died(B, &killed(), fx)), [Effect::Mourned { host: B }]);
    assert_eq!(fx(&mut own, |own, fx| own.buried(B, fx)), [sent(O, Message::Return { object: x, count: 1 })]);
    assert_eq!(own.counts(), Counts::default());
}

#[test]
fn an_actors_borrowers_follow_it() {
    let (mut own, mut borrower) = (Ownership::new(Names::plain(O)), Ownership::new(Names::plain(B)));
    let x = object(O, 1);
    own.create(x, false);
    own.retained(B, &[x]);
    borrower.receive(x, Via::Registered, &mut vec![]);
    borrower.want(x, &mut vec![]);
    assert_eq!(message(&mut own, B, Message::Resolve { object: x }), []);
    let (ready, moved) = (Effect::Ready { object: x }, Effect::ActorMoved { object: x });
    let up = |incarnation| State::Actor { host: E, incarnation };
    let steps = [
        (up(1), vec![ready.clone()]),
        (State::Pending, vec![moved.clone()]),
        (up(2), vec![ready, moved.clone()]),
        (State::failed(killed()), vec![moved]),
    ];
    for (state, news) in steps {
        let answer = Message::Resolved { object: x, state: state.clone() };
        let mut expected = news.clone();
        expected.push(sent(B, answer.clone()));
        assert_eq!(fx(&mut own, |own, fx| own.set_actor(x, state.clone(), fx)), expected);
        assert_eq!(fx(&mut own, |own, fx| own.set_actor(x, state.clone(), fx)), [], "no news");
        assert_eq!(message(&mut borrower, O, answer), news);
        assert_eq!(borrower.state(x), Some(&state));
    }
    assert_eq!(fx(&mut own, |own, fx| own.set_actor(x, up(3), fx)), [], "it ended for good");
}

#[test]
fn other_messages_are_handed_back() {
    let mut own = Ownership::new(Names::plain(O));
    let kill = Message::Kill { actor: object(O, 1).task() };
    assert_eq!(own.on_message(B, kill.clone(), &mut vec![]), Err(kill));
}

#[test]
fn a_long_chain_of_values_goes_at_once() {
    let mut own = Ownership::new(Names::plain(O));
    let mut effects = vec![];
    own.put(object(O, 0), inline(vec![]), vec![], &mut effects);
    for seq in 1..200_000 {
        own.put(object(O, seq), inline(vec![]), vec![object(O, seq - 1)], &mut effects);
        own.drop_ref(object(O, seq - 1), &mut effects);
    }
    own.drop_ref(object(O, 199_999), &mut effects);
    assert_eq!(own.counts(), Counts::default());
}

#[test]
fn o10_what_lay_on_a_node_that_is_gone_is_claimed_anew_before_that_is_mourned() {
    let mut own = Ownership::new(Names::plain(B));
    let far = HostId { node: NodeId { number: 5, incarnation: 1 }, seq: 1 };
    let (outer, inner) = (object(O, 1), object(far, 1));
    own.receive(outer, Via::Argument, &mut vec![]);
    own.host_died(O, &killed(), &mut vec![]);
    let record = |copy| Some(Record { copy, at: 0, contains: vec![inner], more: false });
    let effects = fx(&mut own, |own, fx| own.claimed(outer, record(copy(1)), fx));
    let Some(Effect::Send { message: Message::Borrow { token, .. }, .. }) = effects.last().cloned() else {
        panic!("{effects:?}");
    };
    // Its claim was answered, and waits for what is inside.
    let gone = fx(&mut own, |own, fx| own.node_died(AWAY, &killed(), fx));
    assert_eq!(gone, [Effect::Claim { objects: vec![(outer, None)] }]);
    let third = Copy { node: NodeId { number: 3, incarnation: 1 }, ..copy(1) };
    assert_eq!(fx(&mut own, |own, fx| own.claimed(outer, record(third), fx)), [], "not before that");
    assert!(matches!(own.state(outer), Some(State::Stored(copy)) if *copy == third));
    let mut mourned = message(&mut own, far, Message::Borrowed { token });
    mourned.sort_by_key(|effect| format!("{effect:?}"));
    assert_eq!(mourned, [O, AWAY.agent()].map(|host| Effect::Mourned { host }));
    // With nothing under way it is the same.
    let there = third.node;
    let gone = fx(&mut own, |own, fx| own.node_died(there, &killed(), fx));
    assert_eq!(gone, [Effect::Claim { objects: vec![(outer, None)] }]);
    let last = Copy { node: NodeId { number: 4, incarnation: 1 }, ..copy(1) };
    assert_eq!(
        fx(&mut own, |own, fx| own.claimed(outer, record(last), fx)),
        [Effect::Mourned { host: there.agent() }]
    );
    assert_eq!(
        fx(&mut own, |own, fx| own.drop_ref(outer, fx)),
        [
            Effect::Unclaim { object: outer, node: last.node },
            sent(far, Message::Return { object: inner, count: 1 })
        ]
    );
    assert_eq!(own.counts(), Counts::default());
}
