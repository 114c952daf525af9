//! The owner of record: one rule each, between agents whose messages the test carries by hand.

use std::collections::BTreeSet;

use mobula_proto::{
    HostId, JobId, NodeId, ObjectId, TaskId,
    peer::{Copy, Record},
};

use crate::{Act, Answers, Estate};

const HERE: NodeId = NodeId { number: 1, incarnation: 1 };
const THERE: NodeId = NodeId { number: 2, incarnation: 1 };
const THIRD: NodeId = NodeId { number: 3, incarnation: 1 };
/// Who claims, on this node.
const HOST: HostId = HostId { node: HERE, seq: 1 };
const DEAD: HostId = HostId { node: THIRD, seq: 9 };

fn object(seq: u64) -> ObjectId {
    TaskId::numbered(DEAD, seq).object(0)
}

fn record(at: u32, contains: &[u64], more: bool) -> Record {
    let copy = Copy { node: THERE, bytes: 9, attempt: 1, job: JobId { number: 1 } };
    Record { copy, at, contains: contains.iter().map(|seq| object(*seq)).collect(), more }
}

fn acts(call: impl FnOnce(&mut Vec<Act>)) -> Vec<Act> {
    let mut acts = Vec::new();
    call(&mut acts);
    acts
}

/// The agent of the host that claims, and what it asked whom with which number.
fn claims(hint: Option<NodeId>) -> (Estate, BTreeSet<NodeId>, Vec<(NodeId, u64)>) {
    let (mut estate, nodes) = (Estate::with_parts(HERE, 2), BTreeSet::from([THERE, THIRD]));
    let asked = acts(|acts| estate.claim(HOST, vec![(object(1), hint)], &nodes, |_| None, acts));
    let asked = asks(&asked);
    (estate, nodes, asked)
}

fn asks(acts: &[Act]) -> Vec<(NodeId, u64)> {
    let ask = |act: &Act| match act {
        Act::Ask { node, host: HOST, number, objects } if *objects == [object(1)] => (*node, *number),
        other => panic!("no question: {other:?}"),
    };
    acts.iter().map(ask).collect()
}

fn unclaim(node: NodeId) -> Act {
    Act::Unclaim { node, host: HOST, object: object(1) }
}

fn told(answers: Answers) -> Act {
    Act::Tell { host: HOST, answers }
}

#[test]
fn each_claim_is_taken_back_by_itself() {
    let mut estate = Estate::new(THERE);
    let find = |of: ObjectId| (of == object(1)).then(|| record(0, &[], false));
    for number in [1, 2] {
        let answered = acts(|acts| estate.on_claim(HOST, number, vec![object(1), object(2)], find, acts));
        let answers = vec![(object(1), find(object(1))), (object(2), None)];
        assert_eq!(answered, [Act::Answer { node: HERE, host: HOST, number, answers }]);
    }
    assert_eq!(
        acts(|acts| estate.buried(DEAD, [object(1), object(2)], acts)),
        [Act::Free { object: object(2) }]
    );
    assert_eq!(acts(|acts| estate.unclaim(HOST, object(1), acts)), [], "the question was asked twice");
    assert!(estate.has(object(1)) && !estate.is_late(object(1)));
    assert_eq!(acts(|acts| estate.unclaim(HOST, object(1), acts)), [Act::Free { object: object(1) }]);
    assert!(estate.is_late(object(1)), "sealed again, it would go at once");
    // With who claimed it, all of its claims go.
    let mut estate = Estate::new(THERE);
    for number in [1, 2] {
        acts(|acts| estate.on_claim(HOST, number, vec![object(1)], find, acts));
    }
    acts(|acts| estate.buried(DEAD, [object(1)], acts));
    assert_eq!(acts(|acts| estate.buried(HOST, [], acts)), [Act::Free { object: object(1) }]);
    assert_eq!(
        acts(|acts| estate.on_claim(HOST, 3, vec![object(1)], find, acts)),
        [Act::Answer { node: HERE, host: HOST, number: 3, answers: vec![(object(1), None)] }],
        "the buried claim nothing"
    );
}

#[test]
fn a_record_that_lacks_a_part_is_asked_for_again() {
    let (mut estate, nodes, asked) = claims(Some(THERE));
    assert_eq!(asked, [(THERE, 1)], "the likeliest alone");
    let say = |estate: &mut Estate, number, record| {
        acts(|acts| {
            estate.on_claimed(THERE, (HOST, number), vec![(object(1), Some(record))], &nodes, |_| None, acts)
        })
    };
    assert_eq!(say(&mut estate, 1, record(0, &[2, 3], true)), []);
    // The next part was lost: the last stands for the claim, and is of no use.
    assert_eq!(say(&mut estate, 1, record(4, &[6], false)), [unclaim(THERE)]);
    assert_eq!(acts(|acts| estate.ask_again(acts)), [], "it was asked a moment ago");
    assert_eq!(asks(&acts(|acts| estate.ask_again(acts))), [(THERE, 2)]);
    assert_eq!(say(&mut estate, 1, record(0, &[2, 3], true)), [], "late");
    assert_eq!(say(&mut estate, 2, record(0, &[2, 3], true)), []);
    assert_eq!(say(&mut estate, 2, record(2, &[4, 5], true)), []);
    assert_eq!(
        say(&mut estate, 2, record(4, &[6], false)),
        [
            told(vec![(object(1), Some(record(0, &[2, 3], true)))]),
            told(vec![(object(1), Some(record(2, &[4, 5], true)))]),
            told(vec![(object(1), Some(record(4, &[6], false)))]),
        ]
    );
    assert!(!estate.is_asking());
    assert_eq!(say(&mut estate, 2, record(0, &[], false)), [unclaim(THERE)], "told already");
}

#[test]
fn who_is_gone_has_no_answer_and_all_others_are_asked() {
    let (mut estate, mut nodes, asked) = claims(Some(THERE));
    assert_eq!(asked, [(THERE, 1)]);
    nodes.remove(&THERE);
    assert_eq!(asks(&acts(|acts| estate.node_gone(THERE, &nodes, |_| None, acts))), [(THIRD, 2)]);
    let none = vec![(object(1), None)];
    assert_eq!(
        acts(|acts| estate.on_claimed(THIRD, (HOST, 1), none.clone(), &nodes, |_| None, acts)),
        [],
        "not to this question"
    );
    assert_eq!(
        acts(|acts| estate.on_claimed(THIRD, (HOST, 2), none.clone(), &nodes, |_| None, acts)),
        [told(none)]
    );
    assert!(!estate.is_asking());
    // Of two that have it, the slower one keeps it for nothing.
    let (mut estate, nodes, asked) = claims(None);
    assert_eq!(asked, [(THERE, 1), (THIRD, 1)]);
    let found = || vec![(object(1), Some(record(0, &[], false)))];
    assert_eq!(
        acts(|acts| estate.on_claimed(THERE, (HOST, 1), found(), &nodes, |_| None, acts)),
        [told(found())]
    );
    assert_eq!(
        acts(|acts| estate.on_claimed(THIRD, (HOST, 1), found(), &nodes, |_| None, acts)),
        [unclaim(THIRD)]
    );
}

#[test]
fn a_node_that_is_gone_may_have_given_what_it_had_to_any_other() {
    let (mut estate, mut nodes, asked) = claims(None);
    assert_eq!(asked, [(THERE, 1), (THIRD, 1)]);
    let none = vec![(object(1), None)];
    assert_eq!(acts(|acts| estate.on_claimed(THIRD, (HOST, 1), none, &nodes, |_| None, acts)), []);
    nodes.remove(&THERE);
    let gone = |estate: &mut Estate, node, nodes: &BTreeSet<NodeId>, here: Option<Record>| {
        acts(|acts| estate.node_gone(node, nodes, |_| here.clone(), acts))
    };
    assert_eq!(asks(&gone(&mut estate, THERE, &nodes, None)), [(THIRD, 2)], "it had none before");
    nodes.remove(&THIRD);
    let here = record(0, &[], false);
    assert_eq!(
        gone(&mut estate, THIRD, &nodes, Some(here.clone())),
        [told(vec![(object(1), Some(here))])],
        "to this one"
    );
    assert!(estate.has(object(1)) && !estate.is_asking());
}

#[test]
fn what_is_kept_for_an_agent_goes_when_it_says_so_or_is_buried() {
    for says in [true, false] {
        let mut estate = Estate::new(HERE);
        acts(|acts| estate.buried(DEAD, [], acts));
        estate.claim_for_agent(THERE, object(1));
        estate.claim_for_agent(THERE, object(1));
        let freed = if says {
            acts(|acts| estate.unclaim(THERE.agent(), object(1), acts))
        } else {
            acts(|acts| estate.buried(THERE.agent(), [], acts))
        };
        assert_eq!(freed, [Act::Free { object: object(1) }]);
    }
}
