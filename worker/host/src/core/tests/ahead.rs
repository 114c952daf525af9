//! Tasks that are sent before there is a slot for them, since their arguments lie elsewhere (C-9).

use mobula_proto::{
    LeaseId, NodeId, ObjectId,
    host::ToAgent,
    peer::{Call, Copy, Done, Message, Outcome, Returned, Value},
};
use smallvec::smallvec;

use super::{Bench, JOB, NODE, TASK, done, grant, recalls, runs, value};
use crate::core::{Action, Input};

const ELSEWHERE: NodeId = NodeId { number: 2, incarnation: 1 };

/// What a task that took long returns: an object that lies on a node.
fn long(call: &Call, node: NodeId) -> Message {
    let copy = Copy { node, bytes: 9, attempt: call.attempt, job: JOB };
    let returned = Returned { value: Value::Stored(copy), contains: Vec::new() };
    let outcome = Outcome::Values(smallvec![returned]);
    Message::Done(Done {
        task: call.task,
        attempt: call.attempt,
        outcome,
        retained: Vec::new(),
        nanos: 50_000_000,
    })
}

fn ticks(bench: &mut Bench, count: u32) -> Vec<Action> {
    let mut out = Vec::new();
    for _ in 0..count {
        bench.core.tick(&mut out);
    }
    out
}

/// An object that lies there, and a task that runs on the only slot of a lease.
fn busy(node: NodeId) -> (Bench, ObjectId, Call) {
    let mut bench = Bench::new();
    let (object, _) = bench.submit(TASK, Vec::new());
    let first = runs(&bench.granted(grant(1, 1))).remove(0);
    bench.message(long(&first, node));
    let running = runs(&bench.submit(TASK, Vec::new()).1).remove(0);
    (bench, object, running)
}

#[test]
fn c9_the_next_task_of_a_slot_is_sent_ahead_to_fetch_what_it_is_given() {
    let (mut bench, object, running) = busy(ELSEWHERE);
    let uses = |bench: &mut Bench| bench.submit(TASK, vec![Input::Ref(object)]);
    let (next, out) = uses(&mut bench);
    uses(&mut bench);
    assert!(runs(&out).is_empty() && runs(&ticks(&mut bench, 1)).is_empty(), "there may be a slot elsewhere");
    let ahead = runs(&ticks(&mut bench, 1));
    assert_eq!(ahead.iter().map(|call| call.task).collect::<Vec<_>>(), [next.task()], "one for the slot");
    let out = ticks(&mut bench, 10);
    assert_eq!((runs(&out).len(), recalls(&out)), (0, 0), "it waits there, and no other is sent");
    let after = runs(&bench.message(done(&running, value(0))));
    assert_eq!(after.len(), 1, "the other, behind the one that has the slot now");
    let gives_up = |action: &Action| matches!(action, Action::Tell(ToAgent::Demand { backlog: 0, .. }));
    let out = ticks(&mut bench, 10);
    assert!(!out.iter().any(gives_up), "a slot is wanted for it still: {out:?}");
}

#[test]
fn c9_a_slot_that_comes_free_elsewhere_takes_what_was_sent_ahead() {
    let (mut bench, object, _running) = busy(ELSEWHERE);
    bench.submit(TASK, vec![Input::Ref(object)]);
    let ahead = runs(&ticks(&mut bench, 2)).remove(0);
    let out = bench.granted(grant(2, 1));
    assert_eq!((runs(&out).len(), recalls(&out)), (0, 1));
    let recalled =
        Message::Recalled { lease: LeaseId { number: 1 }, tasks: vec![(ahead.task, ahead.attempt)] };
    let again = runs(&bench.message(recalled));
    assert_eq!(again.iter().map(|call| call.task).collect::<Vec<_>>(), [ahead.task]);
    assert_eq!(recalls(&ticks(&mut bench, 10)), 0);
}

#[test]
fn c9_what_has_nothing_to_fetch_waits_for_a_slot() {
    let (mut bench, object, running) = busy(NODE);
    bench.submit(TASK, vec![Input::Ref(object)]);
    bench.submit(TASK, Vec::new());
    assert!(runs(&ticks(&mut bench, 10)).is_empty());
    assert_eq!(runs(&bench.message(done(&running, value(0)))).len(), 1);
}
