//! Calls with several results.

use std::ops::Range;

use mobula_proto::{
    Failure, FailureKind, HostId, NodeId, ObjectId, TaskId,
    host::ToAgent,
    peer::{Call, Copy, Done, Item, Message, Outcome, Returned, State, StreamCall, Value, Window},
};
use smallvec::smallvec;

use super::{Bench, JOB, NODE, TASK, THERE, actor, any, done, grant, runs, spec, value};
use crate::core::{Action, Kind, Maker, Returns, Taken};

const WINDOW: Window = Window { items: 4, bytes: 1000 };

fn submit(bench: &mut Bench, returns: Returns, attempts_max: u32) -> ObjectId {
    let mut spec = spec(TASK, Vec::new());
    let template = std::sync::Arc::get_mut(&mut spec.template).unwrap();
    template.returns = returns;
    template.attempts_max = attempts_max;
    bench.core.submit(spec, &mut Vec::new())
}

fn stored(attempt: u32, node: NodeId) -> Value {
    Value::Stored(Copy { node, bytes: 100, attempt, job: JOB })
}

fn returned(value: Value) -> Returned {
    Returned { value, contains: Vec::new() }
}

fn streams(actions: &[Action]) -> Vec<StreamCall> {
    let calls = actions.iter().filter_map(|action| match action {
        Action::Send { message: Message::RunStream(call), .. } => Some((**call).clone()),
        _ => None,
    });
    calls.collect()
}

fn item(call: &Call, index: u32, value: Value) -> Message {
    let returned = returned(value);
    Message::Item(Item { task: call.task, attempt: call.attempt, index, returned })
}

impl Bench {
    /// Its host makes these items, in its store.
    fn makes_items(&mut self, call: &Call, indices: Range<u32>) {
        for index in indices {
            self.message(item(call, index, stored(1, THERE.node)));
        }
    }

    fn drop_results(&mut self, object: ObjectId, indices: Range<u32>) {
        for index in indices {
            self.drop_ref(object.task().object(index));
        }
    }
}

fn consumed(actions: &[Action]) -> Vec<u64> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Send { message: Message::Consumed { items, .. }, .. } => Some(*items),
        _ => None,
    });
    told.collect()
}

/// Of which a copy goes, whether it counted or not.
fn freed(actions: &[Action]) -> Vec<ObjectId> {
    let freed = actions.iter().filter_map(|action| match action {
        Action::Tell(ToAgent::Free { object, .. } | ToAgent::Decline { object, .. }) => Some(*object),
        _ => None,
    });
    freed.collect()
}

fn declined(actions: &[Action]) -> Vec<(ObjectId, u32)> {
    let declined = actions.iter().filter_map(|action| match action {
        Action::Tell(ToAgent::Decline { object, copy }) => Some((*object, copy.attempt)),
        _ => None,
    });
    declined.collect()
}

fn discarded(actions: &[Action]) -> Vec<(ObjectId, u32, u32)> {
    let discarded = actions.iter().filter_map(|action| match action {
        Action::Tell(ToAgent::Discard { node, object, last, attempt }) => {
            assert_eq!(*node, THERE.node);
            Some((*object, *last, *attempt))
        }
        _ => None,
    });
    discarded.collect()
}

fn cancels(actions: &[Action]) -> usize {
    let is_cancel = |action: &&Action| matches!(action, Action::Send { message: Message::Cancel { .. }, .. });
    actions.iter().filter(is_cancel).count()
}

impl Bench {
    fn take(&mut self, stream: ObjectId) -> (Taken, Vec<Action>) {
        let mut out = Vec::new();
        let taken = self.core.take_item(stream, &mut out);
        (taken, out)
    }

    fn drop_ref(&mut self, object: ObjectId) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.drop_ref(object, &mut out);
        out
    }

    fn close(&mut self, stream: ObjectId) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.close_stream(stream, &mut out);
        self.core.drop_ref(stream, &mut out);
        out
    }

    fn lost(&mut self, object: ObjectId, attempt: u32) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.own(&mut out, |objects, fx| {
            let State::Stored(copy) = objects.state(object).cloned().unwrap() else { panic!("not stored") };
            objects.lost(object, &Copy { node: THERE.node, attempt, ..copy }, fx);
        });
        self.nobody_has(THERE.node, &mut out);
        out
    }

    /// Nothing is left of anything.
    fn is_clean(&self) {
        assert_eq!(self.core.objects.counts(), mobula_ownership::Counts::default());
        assert!(self.core.several.is_empty(), "{:?}", self.core.several);
        assert!(self.core.tasks.is_empty(), "{:?}", self.core.tasks);
        assert_eq!(self.core.unfinished(), 0);
    }
}

/// A stream that runs.
fn stream(bench: &mut Bench) -> (ObjectId, StreamCall) {
    let object = submit(bench, Returns::Stream(WINDOW), 3);
    let call = streams(&bench.granted(grant(1, 1))).remove(0);
    assert_eq!((call.skip, call.window, call.unread), (0, WINDOW, Window::default()));
    (object, call)
}

#[test]
fn each_of_many_values_is_freed_alone() {
    let mut bench = Bench::new();
    let first = submit(&mut bench, Returns::Many(3), 2);
    let calls = runs(&bench.granted(grant(1, 1)));
    let values = (0..3).map(|_| returned(stored(1, THERE.node))).collect();
    bench.message(done(&calls[0], Outcome::Values(values)));
    let parts: Vec<_> = (0..3).map(|index| first.task().object(index)).collect();
    assert_eq!(freed(&bench.drop_ref(parts[1])), [parts[1]]);
    assert!(matches!(bench.core.objects.state(parts[0]), Some(State::Stored(_))));
    assert_eq!(freed(&bench.drop_ref(parts[0])), [parts[0]]);
    assert!(!bench.core.tasks.is_empty(), "the last may have to be made again");
    assert_eq!(freed(&bench.drop_ref(parts[2])), [parts[2]]);
    bench.is_clean();
}

#[test]
fn c8_values_that_are_lost_are_made_again_once() {
    let mut bench = Bench::new();
    let first = submit(&mut bench, Returns::Many(3), 2);
    let calls = runs(&bench.granted(grant(1, 1)));
    let values = (0..3).map(|_| returned(stored(1, THERE.node))).collect();
    bench.message(done(&calls[0], Outcome::Values(values)));
    let again = runs(&bench.lost(first.task().object(1), 1));
    assert_eq!(again.len(), 1);
    assert!(runs(&bench.lost(first.task().object(2), 1)).is_empty(), "it is on its way");
    let values = (0..3).map(|_| returned(stored(2, THERE.node))).collect();
    let out = bench.message(done(&again[0], Outcome::Values(values)));
    assert_eq!(declined(&out), [(first, 2)], "whose first copy is still there");
    for index in 1..3 {
        let state = bench.core.objects.state(first.task().object(index));
        assert!(matches!(state, Some(State::Stored(copy)) if copy.attempt == 2), "{state:?}");
    }
    bench.lost(first.task().object(1), 2);
    assert_eq!(bench.failure(first.task().object(1)).kind, FailureKind::ObjectLost, "attempts end");
    assert!(matches!(bench.core.objects.state(first), Some(State::Stored(_))), "others stay");
    bench.drop_results(first, 0..3);
    bench.is_clean();
}

#[test]
fn another_number_of_values_fails_all() {
    let mut bench = Bench::new();
    let first = submit(&mut bench, Returns::Many(2), 2);
    let calls = runs(&bench.granted(grant(1, 1)));
    let values = (0..3).map(|_| returned(stored(1, THERE.node))).collect();
    let out = bench.message(done(&calls[0], Outcome::Values(values)));
    assert_eq!(freed(&out).len(), 3);
    for index in 0..2 {
        assert_eq!(bench.failure(first.task().object(index)).kind, FailureKind::ReturnCount);
        bench.drop_ref(first.task().object(index));
    }
    bench.is_clean();
}

#[test]
fn all_that_a_refused_call_would_give_fails_and_the_call_comes_back_once() {
    for (returns, parts) in [(Returns::Many(3), 3), (Returns::Many(0), 0), (Returns::Stream(WINDOW), 1)] {
        for takes in [false, true] {
            let mut bench = Bench::new();
            let actor = actor(&mut bench);
            let mut call = spec(Kind::Method { actor }, Vec::new());
            std::sync::Arc::get_mut(&mut call.template).unwrap().returns = returns;
            let first = bench.core.submit_from(call, Maker::Outside, &mut Vec::new());
            let outcome = Outcome::failed(Failure::new(FailureKind::Overloaded, "full"));
            let task = first.task();
            bench.message(Message::Done(Done {
                task,
                attempt: 1,
                outcome,
                retained: Vec::new(),
                nanos: 1000,
            }));
            for index in 0..parts {
                assert_eq!(bench.failure(task.object(index)).kind, FailureKind::Overloaded);
            }
            assert!(bench.core.take_refused(first, |returns| returns == Returns::One).is_none());
            if takes {
                let taken = bench.core.take_refused(first, any);
                assert_eq!(taken.is_some(), parts > 0);
                let held: Vec<_> = taken.iter().flat_map(|spec| spec.refs()).collect();
                assert_eq!(held, vec![actor; held.len()], "what it holds is the caller's");
                for object in held {
                    bench.drop_ref(object);
                }
                assert!(bench.core.take_refused(first, any).is_none(), "once");
            }
            match returns {
                Returns::Stream(_) => drop(bench.close(first)),
                Returns::One | Returns::Many(_) => bench.drop_results(first, 0..parts),
            }
            bench.drop_ref(actor);
            bench.is_clean();
        }
    }
}

#[test]
fn values_that_nobody_wants_any_more_leave_nothing() {
    let mut bench = Bench::new();
    for returns in [Returns::One, Returns::Many(1)] {
        let first = submit(&mut bench, returns, 2);
        bench.drop_ref(first);
    }
    let calls = runs(&bench.granted(grant(1, 2)));
    let mut out = Vec::new();
    for call in &calls {
        out.extend(bench.message(done(call, Outcome::Values(smallvec![returned(stored(1, THERE.node))]))));
    }
    for call in runs(&out) {
        bench.message(done(&call, Outcome::Values(smallvec![returned(stored(1, THERE.node))])));
    }
    bench.is_clean();
}

#[test]
fn c6_items_are_taken_in_order_and_reported_by_the_half_window() {
    let mut bench = Bench::new();
    let (object, call) = stream(&mut bench);
    assert_eq!(bench.take(object).0, Taken::NotYet);
    for index in 0..3 {
        let out = bench.message(item(&call.call, index, stored(1, THERE.node)));
        assert!(out.iter().any(|action| matches!(action, Action::Wake(of) if *of == object)), "{out:?}");
    }
    let (taken, out) = bench.take(object);
    assert_eq!((taken, consumed(&out)), (Taken::Item(object.task().object(1)), vec![]));
    let (taken, out) = bench.take(object);
    assert_eq!((taken, consumed(&out)), (Taken::Item(object.task().object(2)), vec![2]));
    let out = bench.message(done(&call.call, value(0)));
    assert!(out.iter().any(|action| matches!(action, Action::Wake(of) if *of == object)), "{out:?}");
    assert_eq!(bench.take(object).0, Taken::Item(object.task().object(3)));
    assert_eq!(bench.take(object).0, Taken::End);
    bench.close(object);
    assert!(!bench.core.tasks.is_empty(), "what is held may have to be made again");
    for index in 1..4 {
        assert_eq!(freed(&bench.drop_ref(object.task().object(index))), [object.task().object(index)]);
    }
    bench.is_clean();
}

#[test]
fn c7_what_is_out_of_turn_or_too_much_is_refused() {
    let mut bench = Bench::new();
    let (object, call) = stream(&mut bench);
    let out = bench.message(item(&call.call, 2, stored(1, THERE.node)));
    assert_eq!(freed(&out), [object.task().object(3)]);
    let mut stranger = call.call.clone();
    stranger.attempt = 9;
    let out = bench.message(item(&stranger, 0, stored(9, THERE.node)));
    assert_eq!(freed(&out), [object.task().object(1)]);
    stranger.task = TaskId::numbered(THERE, 1);
    bench.message(item(&stranger, 0, stored(9, THERE.node)));
    for index in 0..4 {
        assert!(freed(&bench.message(item(&call.call, index, stored(1, THERE.node)))).is_empty());
    }
    let out = bench.message(item(&call.call, 4, stored(1, THERE.node)));
    assert_eq!(freed(&out), [object.task().object(5)], "the window is full");
    bench.message(done(&call.call, value(0)));
    assert_eq!(freed(&bench.close(object)).len(), 4);
    bench.is_clean();
}

#[test]
fn c6_another_attempt_goes_on_where_the_last_one_ended() {
    let mut bench = Bench::new();
    let (object, call) = stream(&mut bench);
    for index in 0..3 {
        bench.message(item(&call.call, index, Value::Inline(mobula_proto::Blob::from_slice(&[0; 50]))));
    }
    bench.take(object);
    bench.died();
    let again = streams(&bench.granted(grant(2, 1))).remove(0);
    assert_eq!((again.call.attempt, again.skip), (2, 3));
    assert_eq!(again.unread, Window { items: 2, bytes: 100 });
    // What the first attempt still had on its way does not count any more.
    bench.message(item(&call.call, 3, stored(1, THERE.node)));
    bench.message(item(&again.call, 3, Value::Inline(mobula_proto::Blob::from_slice(&[0; 50]))));
    for index in 2..5 {
        assert_eq!(bench.take(object).0, Taken::Item(object.task().object(index)));
    }
    let failure = Failure::new(FailureKind::Returned, "enough");
    bench.message(done(&again.call, Outcome::failed(failure)));
    assert_eq!(bench.take(object).0, Taken::End);
    assert_eq!(bench.failure(object).kind, FailureKind::Returned);
    bench.close(object);
    bench.drop_results(object, 1..5);
    bench.is_clean();
}

#[test]
fn a_closed_stream_is_cancelled_and_leaves_nothing() {
    let mut bench = Bench::new();
    let (object, call) = stream(&mut bench);
    bench.makes_items(&call.call, 0..2);
    bench.take(object);
    let out = bench.close(object);
    assert_eq!((cancels(&out), freed(&out)), (1, vec![object.task().object(2)]));
    // Sent before the cancellation arrived.
    let out = bench.message(item(&call.call, 2, stored(1, THERE.node)));
    assert_eq!(freed(&out), [object.task().object(3)]);
    let failure = Failure::new(FailureKind::Cancelled, "it was cancelled");
    bench.message(done(&call.call, Outcome::failed(failure)));
    bench.drop_ref(object.task().object(1));
    bench.is_clean();
    // One that never started.
    let mut bench = Bench::new();
    let object = submit(&mut bench, Returns::Stream(WINDOW), 3);
    assert_eq!(cancels(&bench.close(object)), 0);
    bench.is_clean();
    assert!(streams(&bench.granted(grant(1, 1))).is_empty());
}

#[test]
fn c8_a_lost_item_is_made_again_while_the_stream_runs() {
    let mut bench = Bench::new();
    let (object, call) = stream(&mut bench);
    bench.makes_items(&call.call, 0..3);
    bench.take(object);
    let out = bench.lost(object.task().object(2), 1);
    assert_eq!(cancels(&out), 1, "the attempt has passed it");
    assert_eq!(cancels(&bench.lost(object.task().object(3), 1)), 0, "once");
    let failure = Failure::new(FailureKind::Cancelled, "it was cancelled");
    let out = bench.message(done(&call.call, Outcome::failed(failure)));
    let again = streams(&out).remove(0);
    assert_eq!((again.call.attempt, again.skip), (2, 1));
    assert_eq!(again.unread.items, 2);
    for index in 1..3 {
        assert!(freed(&bench.message(item(&again.call, index, stored(2, THERE.node)))).is_empty());
    }
    bench.message(item(&again.call, 3, stored(2, THERE.node)));
    for index in 2..5 {
        let item = object.task().object(index);
        assert_eq!(bench.take(object).0, Taken::Item(item));
        assert!(matches!(bench.core.objects.state(item), Some(State::Stored(copy)) if copy.attempt == 2));
    }
    bench.message(done(&again.call, value(0)));
    bench.close(object);
    bench.drop_results(object, 1..5);
    bench.is_clean();
}

#[test]
fn c8_an_item_of_a_closed_stream_is_made_again_and_no_more() {
    let mut bench = Bench::new();
    let (object, call) = stream(&mut bench);
    bench.makes_items(&call.call, 0..2);
    let kept = object.task().object(1);
    bench.take(object);
    bench.close(object);
    let failure = Failure::new(FailureKind::Cancelled, "it was cancelled");
    bench.message(done(&call.call, Outcome::failed(failure.clone())));
    let again = streams(&bench.lost(kept, 1)).remove(0);
    assert_eq!((again.call.attempt, again.skip), (2, 0));
    let out = bench.message(item(&again.call, 0, stored(2, THERE.node)));
    assert_eq!(cancels(&out), 1, "nothing else is wanted");
    let out = bench.message(item(&again.call, 1, stored(2, THERE.node)));
    assert_eq!(freed(&out), [object.task().object(2)]);
    bench.message(done(&again.call, Outcome::failed(failure)));
    assert!(matches!(bench.core.objects.state(kept), Some(State::Stored(copy)) if copy.attempt == 2));
    // The last attempt that it has does not bring it: it is lost for good.
    let last = streams(&bench.lost(kept, 2)).remove(0);
    assert_eq!(last.call.attempt, 3);
    bench.message(done(&last.call, Outcome::failed(Failure::new(FailureKind::Panicked, "no"))));
    assert_eq!(bench.failure(kept).kind, FailureKind::ObjectLost);
    bench.drop_ref(kept);
    bench.is_clean();
}

#[test]
fn c8_a_dead_node_takes_items_and_their_maker() {
    let mut bench = Bench::new();
    let (object, call) = stream(&mut bench);
    let elsewhere = HostId { node: NodeId { number: 2, incarnation: 1 }, seq: 1 };
    for index in 0..3 {
        bench.message(item(&call.call, index, stored(1, elsewhere.node)));
    }
    let mut out = Vec::new();
    bench.core.node_died(elsewhere.node, &Failure::new(FailureKind::NodeDied, "gone"), &mut out);
    bench.nobody_has(elsewhere.node, &mut out);
    assert_eq!(cancels(&out), 1, "the attempt runs on, on another node, and has passed them");
    bench.died();
    let again = streams(&bench.granted(grant(2, 1))).remove(0);
    assert_eq!((again.skip, again.unread.items), (0, 3), "nothing that was delivered is left");
    // An attempt that does not bring them is followed by another, until nobody wants them.
    let last = streams(&bench.message(done(&again.call, value(0)))).remove(0);
    assert_eq!((last.call.attempt, last.skip), (3, 0));
    assert_eq!(cancels(&bench.close(object)), 1);
    bench.message(done(&last.call, value(0)));
    bench.is_clean();
}

/// A task's attempts are used up while it is asked whether others have a copy of one of its values.
#[test]
fn c8_what_may_still_be_found_does_not_fail_with_its_task() {
    let mut bench = Bench::new();
    let object = submit(&mut bench, Returns::Many(2), 2);
    let call = runs(&bench.granted(grant(1, 1))).remove(0);
    let elsewhere = NodeId { number: 2, incarnation: 1 };
    let both = |first, second| smallvec![returned(stored(1, first)), returned(stored(1, second))];
    bench.message(done(&call, Outcome::Values(both(elsewhere, THERE.node))));
    bench.lost(object.task().object(1), 1);
    bench.granted(grant(2, 1));
    let mut out = Vec::new();
    bench.core.node_died(elsewhere, &Failure::new(FailureKind::NodeDied, "gone"), &mut out);
    bench.died();
    assert_eq!(bench.failure(object.task().object(1)).kind, FailureKind::HostDied);
    let found = [(object, Copy { node: NODE, bytes: 100, attempt: 1, job: JOB })];
    bench.core.own(&mut out, |objects, fx| objects.salvaged(elsewhere, &found, true, fx));
    bench.core.own(&mut out, |objects, fx| objects.salvaged(elsewhere, &[], false, fx));
    assert!(matches!(bench.core.objects.state(object), Some(State::Stored(copy)) if copy.node == NODE));
}

/// The next attempt at a stream begins while it is asked whether others have copies of its items: it makes them, too.
#[test]
fn c8_an_attempt_makes_what_may_still_be_found() {
    let mut bench = Bench::new();
    let object = submit(&mut bench, Returns::Stream(WINDOW), 2);
    let call = streams(&bench.granted(grant(1, 1))).remove(0);
    let elsewhere = HostId { node: NodeId { number: 2, incarnation: 1 }, seq: 1 };
    for index in 0..3 {
        bench.message(item(&call.call, index, stored(1, elsewhere.node)));
    }
    bench.died();
    let mut out = Vec::new();
    bench.core.node_died(elsewhere.node, &Failure::new(FailureKind::NodeDied, "gone"), &mut out);
    out.extend(bench.granted(grant(2, 1)));
    let again = streams(&out).remove(0);
    assert_eq!((again.call.attempt, again.skip), (2, 0));
    bench.makes_items(&again.call, 0..1);
    let found = [(object.task().object(2), Copy { node: NODE, bytes: 100, attempt: 1, job: JOB })];
    let mut out = Vec::new();
    bench.core.own(&mut out, |objects, fx| objects.salvaged(elsewhere.node, &found, true, fx));
    bench.core.own(&mut out, |objects, fx| objects.salvaged(elsewhere.node, &[], false, fx));
    assert_eq!(cancels(&out), 0, "it is on its way");
    bench.makes_items(&again.call, 1..3);
    bench.message(done(&again.call, value(0)));
    bench.close(object);
    bench.is_clean();
}

fn fetched(actions: &[Action]) -> Vec<u32> {
    let fetched = actions.iter().filter_map(|action| match action {
        Action::Fetch(object) => Some(object.index - 1),
        _ => None,
    });
    fetched.collect()
}

#[test]
fn items_on_other_nodes_come_ahead_of_a_reader_that_looks_at_each() {
    const NONE: [u32; 0] = [];
    const FAR: NodeId = NodeId { number: 77, incarnation: 1 };
    let mut bench = Bench::new();
    let (object, start) = stream(&mut bench);
    let call = start.call;
    let take = |bench: &mut Bench, looks: bool| {
        let mut out = Vec::new();
        assert!(matches!(bench.core.take_item(object, &mut out), Taken::Item(_)));
        if looks {
            bench.core.fetch_ahead(object, &mut out);
        }
        fetched(&out)
    };
    for index in 0..3 {
        assert_eq!(fetched(&bench.message(item(&call, index, stored(1, FAR)))), NONE);
    }
    assert_eq!(take(&mut bench, false), NONE, "who takes refs may never want the values");
    assert_eq!(take(&mut bench, true), [2]);
    // Items as they are made, up to the fourth behind what is looked at.
    assert_eq!(fetched(&bench.message(item(&call, 3, stored(1, bench.core.me.node)))), NONE, "it is here");
    assert_eq!(fetched(&bench.message(item(&call, 4, stored(1, FAR)))), [4]);
    assert_eq!(fetched(&bench.message(item(&call, 5, stored(1, FAR)))), [5]);
    assert_eq!(take(&mut bench, true), NONE, "each is asked for once");
    assert_eq!(fetched(&bench.message(item(&call, 6, stored(1, FAR)))), [6]);
    assert_eq!(take(&mut bench, false), NONE);
    assert_eq!(fetched(&bench.message(item(&call, 7, stored(1, FAR)))), NONE);
    assert_eq!(take(&mut bench, true), [7]);
}

#[test]
fn what_a_dead_host_made_of_its_calls_is_discarded() {
    let mut bench = Bench::new();
    let one = submit(&mut bench, Returns::One, 2);
    let many = submit(&mut bench, Returns::Many(3), 2);
    let none = submit(&mut bench, Returns::Many(0), 2);
    let ended = submit(&mut bench, Returns::One, 2);
    let stream = submit(&mut bench, Returns::Stream(WINDOW), 3);
    let actions = bench.granted(grant(1, 5));
    let calls = runs(&actions);
    let called = |object: ObjectId| calls.iter().any(|call| call.task == object.task());
    assert!([one, many, none, ended].into_iter().all(called) && streams(&actions).len() == 1);
    let end = calls.iter().find(|call| call.task == ended.task()).unwrap();
    bench.message(done(end, Outcome::Values(smallvec![returned(stored(1, THERE.node))])));
    let first = streams(&actions)[0].call.clone();
    bench.makes_items(&first, 0..2);
    let item_of = |index| stream.task().object(index);
    let mut expected = vec![(one, 0, 1), (many, 2, 1), (item_of(3), u32::MAX, 1)];
    expected.sort_unstable();
    assert_eq!(discarded(&bench.died()), expected, "not what is here");
    // An item that is lost is made again, and may be made before the host dies that does so.
    bench.lost(item_of(1), 1);
    let again = bench.granted(grant(2, 5));
    let second = streams(&again)[0].call.clone();
    assert_eq!((second.attempt, streams(&again)[0].skip), (2, 0));
    let found = discarded(&bench.died());
    let of_stream: Vec<_> = found.into_iter().filter(|(object, ..)| object.seq == stream.seq).collect();
    assert_eq!(of_stream, [(item_of(1), 1, 2), (item_of(3), u32::MAX, 2)]);
}
