//! Calls whose time runs out before their code ends.

use mobula_proto::{
    Failure, FailureKind,
    host::{Eviction, Revocation},
    peer::{Call, Done, Item, Message, Outcome, Returned, State, Value, Window},
};
use smallvec::smallvec;

use super::{Bench, TASK, actor, any, cancels, done, grant, method, runs, spec, value};
use crate::core::{Action, Input, Kind, Maker, Returns, Taken};

fn expired(call: &Call) -> Message {
    let failure =
        Box::new(Failure::new(FailureKind::TimedOut, "it ran longer than the 5 ms that it was given"));
    Message::Expired { task: call.task, attempt: call.attempt, failure }
}

fn late(call: &Call) -> Message {
    done(call, Outcome::failed(Failure::new(FailureKind::TimedOut, "it ran too long")))
}

fn terminates(actions: &[Action]) -> bool {
    let ends = |action: &Action| matches!(action, Action::Send { message: Message::Terminate { .. }, .. });
    actions.iter().any(ends)
}

#[test]
fn it_fails_at_once_and_its_slot_and_what_it_was_given_stay_its_until_it_ends() {
    let mut bench = Bench::new();
    let (given, _) = bench.submit(TASK, Vec::new());
    let (object, _) = bench.submit(TASK, vec![Input::List(vec![given])]);
    let calls = runs(&bench.granted(grant(1, 1)));
    // It takes long, so that none is pushed ahead.
    let (task, attempt, retained) = (calls[0].task, 1, Vec::new());
    let slow = Done { task, attempt, outcome: value(1), retained, nanos: 50_000_000 };
    let call = runs(&bench.message(Message::Done(slow))).remove(0);
    bench.core.drop_ref(given, &mut Vec::new());
    bench.message(expired(&call));
    let failure = bench.failure(object);
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert!(failure.to_string().contains("task test::f#2"), "{failure}");
    assert!(bench.core.explain(object.task()).unwrap().why.contains("its time has run out"));
    let (next, out) = bench.submit(TASK, Vec::new());
    assert!(runs(&out).is_empty(), "its code still runs in the slot");
    assert!(bench.core.objects.state(given).is_some(), "its code may have kept it");
    // It gives up no more than that; force may still end its process.
    let mut out = Vec::new();
    assert!(!bench.core.cancel(object, false, &mut out));
    assert!(out.is_empty() && bench.core.cancel(object, true, &mut out));
    assert!(
        matches!(&out[..], [Action::Send { message: Message::Cancel { force: true, .. }, .. }]),
        "{out:?}"
    );
    // The executor kept the ref.
    let (task, attempt, outcome) = (call.task, call.attempt, Outcome::failed(failure));
    let ended = Message::Done(Done { task, attempt, outcome, retained: vec![given], nanos: 1 });
    assert_eq!(runs(&bench.message(ended))[0].task, next.task());
    assert!(bench.core.objects.state(given).is_some());
    bench.message(Message::Return { object: given, count: 1 });
    assert!(bench.core.objects.state(given).is_none());
    assert_eq!(bench.core.unfinished(), 1);
}

#[test]
fn it_is_not_tried_again_whatever_becomes_of_its_host() {
    for dies in [false, true] {
        let mut bench = Bench::new();
        let (object, _) = bench.submit(TASK, Vec::new());
        let held = grant(1, 2);
        let call = runs(&bench.granted(held.clone())).remove(0);
        bench.message(expired(&call));
        let out = if dies {
            bench.died()
        } else {
            let mut out = Vec::new();
            let kind = Revocation::Evicted { keep: 0, why: Eviction::Preempted };
            bench.core.revoked(held.lease, kind, &mut out);
            assert_eq!(cancels(&out), [call.task]);
            out
        };
        assert!(runs(&out).is_empty() && runs(&bench.granted(grant(2, 2))).is_empty());
        assert_eq!(bench.failure(object).kind, FailureKind::TimedOut);
        assert_eq!(bench.core.unfinished(), 0);
        bench.message(late(&call));
        assert_eq!(bench.core.unfinished(), 0);
    }
}

#[test]
fn word_of_it_that_comes_late_does_not_count() {
    let mut bench = Bench::new();
    let (first, _) = bench.submit(TASK, Vec::new());
    let call = runs(&bench.granted(grant(1, 1))).remove(0);
    bench.died();
    let again = runs(&bench.granted(grant(2, 1))).remove(0);
    assert_eq!(again.attempt, 2);
    bench.message(expired(&call));
    assert_eq!(bench.core.objects.state(first), Some(&State::Pending), "another attempt has its own time");
    bench.message(done(&again, value(1)));
    bench.message(expired(&again));
    assert!(matches!(bench.core.objects.state(first), Some(State::Inline { .. })), "it had ended");
    let (second, _) = bench.submit(TASK, Vec::new());
    let call = runs(&bench.granted(grant(3, 1))).pop();
    bench.core.cancel(second, false, &mut Vec::new());
    call.iter().for_each(|call| drop(bench.message(expired(call))));
    assert_eq!(bench.failure(second).kind, FailureKind::Cancelled);
}

#[test]
fn a_construction_keeps_its_slot_until_it_ends_and_its_actor_never_lives() {
    for forgotten in [false, true] {
        let mut bench = Bench::new();
        let (actor, _) = bench.submit(Kind::Construct { restarts: 1 }, Vec::new());
        let (waits, _) = method(&mut bench, actor, Maker::Outside);
        let call = runs(&bench.granted(grant(1, 1))).remove(0);
        bench.message(expired(&call));
        assert_eq!(bench.failure(actor).kind, FailureKind::TimedOut);
        assert_eq!(bench.failure(waits).kind, FailureKind::ActorDied);
        let (next, out) = bench.submit(TASK, Vec::new());
        assert!(runs(&out).is_empty(), "`new` still runs");
        let mut out = Vec::new();
        if forgotten {
            bench.core.drop_ref(actor, &mut out);
        } else {
            bench.core.kill(actor.task(), &mut out);
        }
        assert!(runs(&out).is_empty(), "{out:?}");
        // As if word of both had crossed.
        let out = bench.message(done(&call, Outcome::Values(smallvec![])));
        assert!(terminates(&out), "{out:?}");
        assert_eq!(runs(&out)[0].task, next.task());
        assert_eq!(bench.core.unfinished(), 1);
    }
}

#[test]
fn a_method_keeps_its_place_with_its_actor() {
    let mut bench = Bench::new();
    let actor = actor(&mut bench);
    let (object, out) = method(&mut bench, actor, Maker::Outside);
    let call = runs(&out).remove(0);
    bench.message(expired(&call));
    assert_eq!(bench.failure(object).kind, FailureKind::TimedOut);
    assert!(bench.core.take_refused(object, any).is_none());
    assert_eq!(bench.core.unfinished(), 1);
    bench.message(late(&call));
    assert_eq!(bench.core.unfinished(), 0);
}

#[test]
fn what_a_stream_gave_in_time_is_read() {
    let mut bench = Bench::new();
    let mut stream = spec(TASK, Vec::new());
    let template = std::sync::Arc::get_mut(&mut stream.template).unwrap();
    template.returns = Returns::Stream(Window { items: 4, bytes: 1 << 20 });
    let mut out = Vec::new();
    let object = bench.core.submit(stream, &mut out);
    let call = match &bench.granted(grant(1, 1))[0] {
        Action::Send { message: Message::RunStream(stream), .. } => stream.call.clone(),
        other => panic!("{other:?}"),
    };
    let item = |index| {
        let blob = mobula_proto::Blob::from_slice(&[index as u8]);
        let returned = Returned { value: Value::Inline(blob), contains: Vec::new() };
        Message::Item(Item { task: call.task, attempt: 1, index, returned })
    };
    bench.message(item(0));
    bench.message(expired(&call));
    bench.message(item(1));
    assert_eq!(bench.failure(object).kind, FailureKind::TimedOut);
    assert_eq!(bench.core.take_item(object, &mut out), Taken::Item(object.task().object(1)));
    assert_eq!(bench.core.take_item(object, &mut out), Taken::End);
    bench.message(late(&call));
    assert_eq!(bench.core.unfinished(), 0);
}
