//! Copies that are lost, and others that are found.

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, Names, NodeId, ObjectId, TaskId,
    peer::{Copy, Message, State},
};

use crate::{Effect, Ownership};

const NODE: NodeId = NodeId { number: 1, incarnation: 1 };
const AWAY: NodeId = NodeId { number: 2, incarnation: 1 };
const THIRD: NodeId = NodeId { number: 3, incarnation: 1 };
/// The owner.
const O: HostId = HostId { node: NODE, seq: 1 };
/// A borrower.
const B: HostId = HostId { node: NODE, seq: 2 };
/// The executor.
const E: HostId = HostId { node: AWAY, seq: 1 };

fn object(seq: u64) -> ObjectId {
    TaskId::numbered(O, seq).object(0)
}

fn at(node: NodeId, attempt: u32) -> Copy {
    Copy { node, bytes: 9, attempt, job: JobId { number: 1 } }
}

fn died() -> Failure {
    Failure::new(FailureKind::NodeDied, "killed")
}

/// An owner of objects of these numbers, stored by the executor, with a ref to one of its own inside each. None can be made
/// again.
fn owner(seqs: impl IntoIterator<Item = u64>) -> Ownership {
    let mut own = Ownership::new(Names::plain(O));
    for seq in seqs {
        own.create(object(seq), false);
        own.complete(E, object(seq), State::Stored(at(AWAY, 1)), vec![inner()], &mut vec![]);
    }
    own
}

fn inner() -> ObjectId {
    TaskId::numbered(E, 100).object(0)
}

/// The effects of one call.
fn fx<T>(own: &mut Ownership, call: impl FnOnce(&mut Ownership, &mut Vec<Effect>) -> T) -> Vec<Effect> {
    let mut effects = Vec::new();
    call(own, &mut effects);
    effects
}

#[test]
fn what_lies_elsewhere_is_not_lost_with_its_node() {
    let mut own = owner([1, 2]);
    own.retained(B, &[object(1)]);
    own.on_message(B, Message::Resolve { object: object(1) }, &mut vec![]).unwrap();
    assert_eq!(
        fx(&mut own, |own, fx| own.node_died(AWAY, &died(), fx)),
        [Effect::Claim { objects: vec![(inner(), None)] }, Effect::Salvage { node: AWAY }]
    );
    assert_eq!(
        fx(&mut own, |own, fx| own.on_message(B, Message::Resolve { object: object(1) }, fx).unwrap()),
        []
    );
    // Two have it: the first counts. What nobody knows, or of another attempt, is of no use.
    let found = [
        (object(1), at(THIRD, 1)),
        (object(1), at(NODE, 1)),
        (object(2), at(THIRD, 2)),
        (object(3), at(THIRD, 1)),
    ];
    let state = State::Stored(at(THIRD, 1));
    assert_eq!(
        fx(&mut own, |own, fx| own.salvaged(AWAY, &found, true, fx)),
        [
            Effect::Ready { object: object(1) },
            Effect::Send { to: B, message: Message::Resolved { object: object(1), state: state.clone() } },
            Effect::Spare { object: object(1), copy: at(NODE, 1), primary: at(THIRD, 1) },
            Effect::Decline { object: object(2), copy: at(THIRD, 2) },
            Effect::Decline { object: object(3), copy: at(THIRD, 1) },
        ]
    );
    assert_eq!(own.contains(object(1)), [inner()], "what is inside stays held");
    // Who is asked twice says it twice.
    assert_eq!(fx(&mut own, |own, fx| own.salvaged(AWAY, &found[..1], true, fx)), []);
    assert_eq!(
        fx(&mut own, |own, fx| own.salvaged(AWAY, &[], false, fx)),
        [Effect::Ready { object: object(2) }]
    );
    assert!(
        matches!(own.state(object(2)), Some(State::Failed(failure)) if failure.kind == FailureKind::ObjectLost)
    );
    assert_eq!(own.state(object(1)), Some(&state));
    // The inner one is claimed, too, before it has mourned.
    let mourned = fx(&mut own, |own, fx| own.claimed(inner(), None, fx));
    assert_eq!(mourned.last(), Some(&Effect::Mourned { host: AWAY.agent() }));
    assert_eq!(fx(&mut own, |own, fx| own.salvaged(AWAY, &[], false, fx)), [], "it was not asked again");
}

#[test]
fn a_copy_is_not_sought_for_what_has_a_value_or_is_gone() {
    let mut own = owner([1, 2, 3, 4]);
    for seq in 1..=4 {
        let asked = if seq == 1 { vec![Effect::Salvage { node: AWAY }] } else { vec![] };
        assert_eq!(fx(&mut own, |own, fx| own.lost(object(seq), &at(AWAY, 1), fx)), asked);
    }
    // The node lives: what it has left of each goes, once.
    let free = |seq| Effect::Free { object: object(seq), copy: at(AWAY, 1) };
    let failed = fx(&mut own, |own, fx| own.fail(object(1), died(), fx));
    assert_eq!(failed, [free(1), Effect::Ready { object: object(1) }]);
    let made = fx(&mut own, |own, fx| {
        assert!(own.complete(E, object(2), State::Stored(at(AWAY, 2)), vec![], fx));
    });
    assert_eq!(made, [free(2), Effect::Ready { object: object(2) }]);
    let dropped = fx(&mut own, |own, fx| own.drop_ref(object(3), fx));
    assert_eq!(dropped, [free(3), Effect::Forgotten { object: object(3) }]);
    let late = [1, 2, 3].map(|seq| (object(seq), at(THIRD, 1)));
    let declined = late.map(|(object, copy)| Effect::Decline { object, copy });
    assert_eq!(fx(&mut own, |own, fx| own.salvaged(AWAY, &late, true, fx)), declined);
    assert_eq!(
        fx(&mut own, |own, fx| own.salvaged(AWAY, &[], false, fx)),
        [free(4), Effect::Ready { object: object(4) }]
    );
    // All of them held what was inside.
    let returned = |seq, own: &mut Ownership| {
        let dropped = fx(own, |own, fx| own.drop_ref(object(seq), fx));
        dropped
            .into_iter()
            .any(|effect| matches!(effect, Effect::Send { message: Message::Return { .. }, .. }))
    };
    assert!(!returned(1, &mut own) && !returned(2, &mut own) && returned(4, &mut own));
}

/// The node that was chosen dies while another one's answer is under way.
#[test]
fn a_copy_counts_wherever_the_object_was_lost_last() {
    let mut own = owner([1]);
    own.node_died(AWAY, &died(), &mut vec![]);
    own.salvaged(AWAY, &[(object(1), at(THIRD, 1))], true, &mut vec![]);
    own.node_died(THIRD, &died(), &mut vec![]);
    assert_eq!(own.state(object(1)), Some(&State::Pending));
    assert_eq!(
        fx(&mut own, |own, fx| own.salvaged(AWAY, &[(object(1), at(NODE, 1))], true, fx)),
        [Effect::Ready { object: object(1) }]
    );
    for node in [AWAY, THIRD] {
        own.salvaged(node, &[], false, &mut vec![]);
    }
    assert_eq!(own.state(object(1)), Some(&State::Stored(at(NODE, 1))));
}
