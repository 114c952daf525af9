//! Arguments that are lost after their call was ready (C-1).

use mobula_ownership::Via;
use mobula_proto::{
    Failure, FailureKind, HostId, NodeId, ObjectId, TaskId,
    host::ToAgent,
    peer::{
        Argument, Call, Copy, Done, Item, Message, Outcome, Part, Returned, State, Target, Value, Window,
    },
};
use smallvec::smallvec;

use super::{Bench, JOB, NODE, TASK, THERE, actor, done, grant, runs, spec, value};
use crate::core::{Action, Input, Kind, Returns};

const ELSEWHERE: NodeId = NodeId { number: 2, incarnation: 1 };
const FAR: HostId = HostId { node: ELSEWHERE, seq: 1 };

fn copy(node: NodeId, attempt: u32) -> Copy {
    Copy { node, bytes: 9, attempt, job: JOB }
}

/// What a task that took long returns: an object that lies on a node. None is sent ahead of a slot then.
fn stored(call: &Call, node: NodeId) -> Message {
    let returned = Returned { value: Value::Stored(copy(node, call.attempt)), contains: Vec::new() };
    let outcome = Outcome::Values(smallvec![returned]);
    let (task, attempt, retained) = (call.task, call.attempt, Vec::new());
    Message::Done(Done { task, attempt, outcome, retained, nanos: 50_000_000 })
}

fn tasks(actions: &[Action]) -> Vec<TaskId> {
    runs(actions).iter().map(|call| call.task).collect()
}

impl Bench {
    fn node_dies(&mut self) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.node_died(ELSEWHERE, &Failure::new(FailureKind::NodeDied, "no power"), &mut out);
        assert!(tasks(&out).is_empty(), "others are asked first: {out:?}");
        self.nobody_has(ELSEWHERE, &mut out);
        out
    }

    /// A result that lies elsewhere, of a task that ran on the first of two slots.
    fn result(&mut self) -> ObjectId {
        let (object, out) = self.submit(TASK, Vec::new());
        let mut calls = runs(&out);
        if calls.is_empty() {
            calls = runs(&self.granted(grant(1, 2)));
        }
        self.message(stored(&calls[0], ELSEWHERE));
        object
    }

    fn is_pending(&self, object: ObjectId) -> bool {
        self.core.objects.state(object) == Some(&State::Pending)
    }
}

#[test]
fn c1_what_is_queued_waits_for_an_argument_that_is_lost() {
    let mut bench = Bench::new();
    let object = bench.result();
    let running: Vec<_> = (0..2).flat_map(|_| runs(&bench.submit(TASK, Vec::new()).1)).collect();
    assert_eq!(running.len(), 2);
    let (user, out) = bench.submit(TASK, vec![Input::Ref(object)]);
    assert!(runs(&out).is_empty());
    bench.node_dies();
    let again = runs(&bench.granted(grant(2, 4)));
    assert_eq!(again.iter().map(|call| call.task).collect::<Vec<_>>(), [object.task()]);
    assert!(bench.is_pending(user));
    let after = runs(&bench.message(stored(&again[0], NODE)));
    let part = Part::Stored { object, copy: copy(NODE, 2) };
    assert_eq!(
        (after[0].task, after[0].attempt, &after[0].arguments[..]),
        (user.task(), 1, &[Argument::One(part)][..])
    );
}

#[test]
fn c1_what_is_queued_waits_until_another_copy_is_found() {
    let mut bench = Bench::new();
    let object = bench.result();
    let _busy: Vec<_> = (0..2).flat_map(|_| runs(&bench.submit(TASK, Vec::new()).1)).collect();
    let (user, _) = bench.submit(TASK, vec![Input::Ref(object)]);
    let mut out = Vec::new();
    bench.core.node_died(ELSEWHERE, &Failure::new(FailureKind::NodeDied, "no power"), &mut out);
    out.extend(bench.granted(grant(2, 4)));
    assert!(tasks(&out).is_empty() && bench.is_pending(object));
    assert!(bench.core.explain(object.task()).unwrap().why.contains("other nodes are asked"));
    let found = [(object, copy(NODE, 1))];
    bench.core.own(&mut out, |objects, fx| objects.salvaged(ELSEWHERE, &found, true, fx));
    let after = runs(&out);
    let part = Part::Stored { object, copy: copy(NODE, 1) };
    assert_eq!(
        (after[0].task, after[0].attempt, &after[0].arguments[..]),
        (user.task(), 1, &[Argument::One(part)][..])
    );
    bench.core.own(&mut out, |objects, fx| objects.salvaged(ELSEWHERE, &[], false, fx));
    assert_eq!(tasks(&out), [user.task()], "nothing is made again");
}

#[test]
fn c1_what_ran_there_is_tried_again_only_with_its_argument() {
    let mut bench = Bench::new();
    let object = bench.result();
    let _busy: Vec<_> = (0..2).flat_map(|_| runs(&bench.submit(TASK, Vec::new()).1)).collect();
    let (user, _) = bench.submit(TASK, vec![Input::Ref(object)]);
    let mut there = grant(2, 1);
    there.host = FAR;
    assert_eq!(tasks(&bench.granted(there)), [user.task()]);
    // More of its class could run.
    bench.granted(grant(3, 4));
    let again = runs(&bench.node_dies());
    assert_eq!(again.iter().map(|call| call.task).collect::<Vec<_>>(), [object.task()]);
    let after = runs(&bench.message(stored(&again[0], NODE)));
    assert_eq!((after[0].task, after[0].attempt), (user.task(), 2));
}

#[test]
fn c1_one_argument_is_lost_while_another_is_made() {
    let mut bench = Bench::new();
    let object = bench.result();
    let (late, out) = bench.submit(TASK, Vec::new());
    let late_call = runs(&out).remove(0);
    let (user, _) = bench.submit(TASK, vec![Input::List(vec![object, late, object])]);
    let again = runs(&bench.node_dies()).remove(0);
    assert!(tasks(&bench.message(done(&late_call, value(1)))).is_empty());
    assert!(bench.is_pending(user));
    assert_eq!(tasks(&bench.message(stored(&again, NODE))), [user.task()]);
}

#[test]
fn c1_one_whose_argument_cannot_be_made_again_says_so() {
    let mut bench = Bench::new();
    let object = bench.result();
    let _busy: Vec<_> = (0..2).flat_map(|_| runs(&bench.submit(TASK, Vec::new()).1)).collect();
    let (user, _) = bench.submit(TASK, vec![Input::Ref(object)]);
    bench.node_dies();
    let again = runs(&bench.granted(grant(2, 4))).remove(0);
    bench.message(done(&again, Outcome::failed(Failure::new(FailureKind::Returned, "no disk"))));
    let failure = bench.failure(user);
    assert_eq!((failure.kind, bench.core.objects.state(object).is_some()), (FailureKind::Returned, true));
}

/// As many as overflow the stack of a thread, were each failed inside of the one before it.
const MANY: usize = 100_000;

#[test]
fn c1_those_whose_argument_has_failed_say_so_at_once_and_want_no_slot() {
    let mut bench = Bench::new();
    let (argument, out) = bench.submit(TASK, Vec::new());
    assert!(matches!(&out[..], [Action::Tell(ToAgent::Demand { backlog: 1, .. })]), "{out:?}");
    let made = runs(&bench.granted(grant(1, 1))).remove(0);
    let users: Vec<_> = (0..MANY).map(|_| bench.submit(TASK, vec![Input::Ref(argument)]).0).collect();
    let failure = Outcome::failed(Failure::new(FailureKind::Returned, "no disk"));
    let out = bench.message(done(&made, failure));
    assert!(!out.iter().any(|action| matches!(action, Action::Tell(ToAgent::Demand { .. }))));
    for user in &users {
        let failure = bench.failure(*user);
        assert_eq!((failure.kind, &failure.message[..]), (FailureKind::Returned, "an argument failed"));
    }
    let (late, out) = bench.submit(TASK, vec![Input::Ref(argument)]);
    assert!(!out.iter().any(|action| matches!(action, Action::Send { .. } | Action::Tell(_))), "{out:?}");
    assert_eq!(bench.failure(late).kind, FailureKind::Returned);
    assert_eq!(bench.core.unfinished(), 0);
}

/// An object that was put, so that it can not be made again, and lies on a node that will die.
fn put_elsewhere(bench: &mut Bench) -> ObjectId {
    let object = bench.core.next_task().object(0);
    let place = State::Stored(copy(ELSEWHERE, 1));
    bench.core.own(&mut Vec::new(), |objects, fx| objects.put(object, place, Vec::new(), fx));
    object
}

#[test]
fn c1_those_whose_argument_failed_while_they_queued_fail_one_after_the_other() {
    let mut bench = Bench::new();
    let object = put_elsewhere(&mut bench);
    let users: Vec<_> = (0..MANY).map(|_| bench.submit(TASK, vec![Input::Ref(object)]).0).collect();
    let (other, _) = bench.submit(TASK, Vec::new());
    bench.node_dies();
    assert!(bench.is_pending(users[0]), "it queues for a slot");
    assert_eq!(tasks(&bench.granted(grant(1, 1))), [other.task()]);
    for user in &users {
        assert_eq!(bench.failure(*user).kind, FailureKind::ObjectLost);
    }
    assert_eq!(bench.core.unfinished(), 1);
}

/// However often it may be tried.
#[test]
fn c8_a_stream_whose_argument_is_lost_for_good_is_not_made_again() {
    let mut bench = Bench::new();
    let object = put_elsewhere(&mut bench);
    let mut spec = spec(TASK, vec![Input::Ref(object)]);
    let template = std::sync::Arc::get_mut(&mut spec.template).unwrap();
    template.returns = Returns::Stream(Window { items: 4, bytes: 1000 });
    template.attempts_max = u32::MAX;
    let stream = bench.core.submit(spec, &mut Vec::new());
    let out = bench.granted(grant(1, 1));
    let sent = out.iter().find_map(|action| match action {
        Action::Send { message: Message::RunStream(stream), .. } => Some(stream.call.clone()),
        _ => None,
    });
    let call = sent.unwrap();
    let returned = Returned { value: Value::Stored(copy(ELSEWHERE, 1)), contains: Vec::new() };
    bench.message(Message::Item(Item { task: call.task, attempt: 1, index: 0, returned }));
    bench.message(done(&call, value(0)));
    bench.node_dies();
    assert_eq!(bench.failure(stream.task().object(1)).kind, FailureKind::ObjectLost);
    assert_eq!(bench.core.unfinished(), 0);
}

#[test]
fn c2_calls_of_an_actor_wait_for_a_lost_argument_in_order() {
    for unordered in [false, true] {
        let mut bench = Bench::new();
        let actor = actor(&mut bench);
        bench.granted(grant(2, 2));
        let object = bench.result();
        let (late, out) = bench.submit(TASK, Vec::new());
        let late_call = runs(&out).remove(0);
        let call = |bench: &mut Bench, inputs| {
            let mut call = spec(Kind::Method { actor }, inputs);
            std::sync::Arc::get_mut(&mut call.template).unwrap().unordered = unordered;
            let mut out = Vec::new();
            (bench.core.submit(call, &mut out), tasks(&out))
        };
        let (first, _) = call(&mut bench, vec![Input::List(vec![late, object])]);
        let (second, sent) = call(&mut bench, Vec::new());
        assert_eq!(sent, if unordered { vec![second.task()] } else { vec![] });
        let again = runs(&bench.node_dies()).remove(0);
        assert!(tasks(&bench.message(done(&late_call, value(1)))).is_empty());
        let (third, sent) = call(&mut bench, Vec::new());
        assert_eq!(sent, if unordered { vec![third.task()] } else { vec![] });
        let after = tasks(&bench.message(stored(&again, NODE)));
        let rest = if unordered { vec![first] } else { vec![first, second, third] };
        assert_eq!(after, rest.iter().map(|object| object.task()).collect::<Vec<_>>());
    }
}

/// As a borrower may know of a place where the object is no more.
#[test]
fn what_comes_back_for_a_lost_argument_asks_its_owner_and_loses_no_attempt() {
    let mut bench = Bench::new();
    let object = TaskId::numbered(FAR, 7).object(0);
    bench.core.own(&mut Vec::new(), |objects, fx| {
        objects.receive(object, Via::Registered, fx);
        objects.placed(object, copy(ELSEWHERE, 1));
    });
    let mut once = spec(TASK, vec![Input::Ref(object)]);
    std::sync::Arc::get_mut(&mut once.template).unwrap().attempts_max = 1;
    let mut out = Vec::new();
    let user = bench.core.submit(once, &mut out);
    let call = runs(&bench.granted(grant(1, 1))).remove(0);
    let lost = Outcome::Lost(vec![(object, copy(ELSEWHERE, 1))]);
    let out = bench.message(done(&call, lost));
    let asks = |message: Message| {
        out.iter().any(|action| matches!(action, Action::Send { to: FAR, message: sent } if *sent == message))
    };
    assert!(asks(Message::Lost { object, copy: copy(ELSEWHERE, 1) }) && asks(Message::Resolve { object }));
    assert!(bench.is_pending(user));
    assert_eq!(runs(&bench.submit(TASK, Vec::new()).1).len(), 1, "its slot is free");
    bench.granted(grant(2, 1));
    let mut out = Vec::new();
    let now = Message::Resolved { object, state: State::Stored(copy(NODE, 1)) };
    bench.core.on_message(FAR, now, &mut out).unwrap();
    let part = Part::Stored { object, copy: copy(NODE, 1) };
    let again = runs(&out).remove(0);
    assert_eq!((again.attempt, &again.arguments[..]), (1, &[Argument::One(part)][..]));
    // Where it is known by then that the object is elsewhere, nobody is asked.
    let out = bench.message(done(&again, Outcome::Lost(vec![(object, copy(ELSEWHERE, 1))])));
    assert_eq!((out.len(), tasks(&out)), (1, vec![user.task()]));
    // And a call that was cancelled is over.
    let mut out = Vec::new();
    assert!(bench.core.cancel(user, false, &mut out));
    bench.message(done(&again, Outcome::Lost(vec![(object, copy(NODE, 1))])));
    assert_eq!(bench.failure(user).kind, FailureKind::Cancelled);
    assert_eq!(bench.core.objects.state(object), Some(&State::Stored(copy(NODE, 1))));
}

#[test]
fn a_construction_that_comes_back_gives_its_slot_up_until_its_argument_is_there() {
    let mut bench = Bench::new();
    let object = bench.result();
    let (user, out) = bench.submit(Kind::Construct { restarts: 0 }, vec![Input::Ref(object)]);
    let call = runs(&out).remove(0);
    let mut out = bench.message(done(&call, Outcome::Lost(vec![(object, copy(ELSEWHERE, 1))])));
    bench.nobody_has(ELSEWHERE, &mut out);
    let again = runs(&out).remove(0);
    assert_eq!(again.task, object.task(), "one of ours is made again");
    assert_eq!(runs(&bench.submit(TASK, Vec::new()).1).len(), 1, "the slot serves others");
    let after = runs(&bench.message(stored(&again, NODE)));
    assert_eq!((after[0].task, after[0].attempt), (user.task(), 1));
    assert!(matches!(after[0].target, Target::Construct { incarnation: 1, .. }));
    bench.message(done(&after[0], Outcome::Values(smallvec![])));
    assert!(matches!(bench.core.objects.state(user), Some(State::Actor { host: THERE, .. })));
}
