//! Scenarios for the core, each citing the invariant that it checks.

use mobula_ownership::Via;
use mobula_proto::{
    Blob, Failure, FailureKind, HostId, JobId, LeaseId, Names, NodeId, ObjectId, TaskId,
    host::{Eviction, Grant, Revocation, ToAgent},
    peer::{Argument, Call, Copy, Done, Message, Outcome, Part, Returned, State, Target, Value},
    resource::Class,
};

use smallvec::smallvec;

mod ahead;
mod classes;
mod expired;
mod held;
mod lost;
mod several;
mod shared;
mod stopping;

use super::{Action, Core, Input, Kind, Maker, Nested, Returns, Spec, Template};

const NODE: NodeId = NodeId { number: 1, incarnation: 1 };
const JOB: JobId = JobId { number: 1 };
const ME: HostId = HostId { node: NODE, seq: 1 };
const THERE: HostId = HostId { node: NODE, seq: 2 };
const TASK: Kind = Kind::Task { is_child: false };

fn spec(kind: Kind, inputs: Vec<Input>) -> Spec {
    let mut template = Template::new(1, "test::f");
    template.class = Class { function: "test::f".to_owned(), ..Class::default() };
    template.attempts_max = if matches!(kind, Kind::Method { .. }) { 1 } else { 2 };
    Spec { template: template.into(), kind, inputs: inputs.into(), nested: Nested::default() }
}

fn grant(lease: u64, slots: u32) -> Grant {
    Grant { lease: LeaseId { number: lease }, key: 0, host: THERE, slots, term_ms: 1000, devices: Vec::new() }
}

fn runs(actions: &[Action]) -> Vec<Call> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Send { message: Message::Run(call), .. } => Some(call.clone()),
            _ => None,
        })
        .collect()
}

fn done(call: &Call, outcome: Outcome) -> Message {
    Message::Done(Done { task: call.task, attempt: call.attempt, outcome, retained: Vec::new(), nanos: 1000 })
}

fn value(byte: u8) -> Outcome {
    Outcome::Values(smallvec![Returned {
        value: Value::Inline(Blob::from_slice(&[byte])),
        contains: Vec::new()
    }])
}

struct Bench {
    core: Core,
}

impl Bench {
    fn new() -> Self {
        Self { core: Core::new(Names::plain(ME)) }
    }

    fn submit(&mut self, kind: Kind, inputs: Vec<Input>) -> (ObjectId, Vec<Action>) {
        let mut out = Vec::new();
        let object = self.core.submit(spec(kind, inputs), &mut out);
        (object, out)
    }

    fn granted(&mut self, grant: Grant) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.granted(&grant, &mut out);
        out
    }

    fn message(&mut self, message: Message) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.on_message(THERE, message, &mut out).unwrap();
        out
    }

    fn died(&mut self) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.host_died(THERE, &Failure::new(FailureKind::HostDied, "killed by signal 9"), &mut out);
        out
    }

    /// No other copies are found of what was lost on that node, as `out` asks.
    fn nobody_has(&mut self, node: NodeId, out: &mut Vec<Action>) {
        let asks = |action: &Action| matches!(action, Action::Tell(ToAgent::Salvage { node: asked }) if *asked == node);
        assert!(out.iter().any(asks), "{out:?}");
        self.core.own(out, |objects, fx| objects.salvaged(node, &[], false, fx));
    }

    fn failure(&self, object: ObjectId) -> Failure {
        match self.core.objects.state(object) {
            Some(State::Failed(failure)) => (**failure).clone(),
            other => panic!("{object} is {other:?}"),
        }
    }
}

#[test]
fn c1_a_task_waits_for_its_arguments() {
    let mut bench = Bench::new();
    let (first, out) = bench.submit(TASK, Vec::new());
    assert!(matches!(&out[..], [Action::Tell(ToAgent::Demand { backlog: 1, .. })]), "{out:?}");
    let (second, out) = bench.submit(TASK, vec![Input::Ref(first)]);
    assert!(runs(&out).is_empty());
    let calls = runs(&bench.granted(grant(1, 4)));
    assert_eq!(calls.len(), 1, "the second waits for the first");
    let out = bench.message(done(&calls[0], value(7)));
    let calls = runs(&out);
    assert_eq!(calls[0].task, second.task());
    assert_eq!(calls[0].arguments[..], [Argument::One(Part::Inline(Blob::from_slice(&[7])))]);
}

#[test]
fn c3_arguments_live_until_the_task_is_done() {
    let mut bench = Bench::new();
    let (first, _) = bench.submit(TASK, Vec::new());
    let (second, _) = bench.submit(TASK, vec![Input::List(vec![first])]);
    let mut out = Vec::new();
    bench.core.drop_ref(first, &mut out);
    let calls = runs(&bench.granted(grant(1, 1)));
    let calls = runs(&bench.message(done(&calls[0], value(1))));
    assert!(bench.core.objects.state(first).is_some());
    bench.message(done(&calls[0], value(2)));
    assert!(bench.core.objects.state(first).is_none());
    bench.core.drop_ref(second, &mut out);
    assert_eq!(bench.core.objects.counts().owned, 0);
    assert_eq!(bench.core.unfinished(), 0);
}

#[test]
fn c4_what_was_pushed_to_a_dead_host_is_retried_then_failed() {
    let mut bench = Bench::new();
    let (object, _) = bench.submit(TASK, Vec::new());
    assert_eq!(runs(&bench.granted(grant(1, 1)))[0].attempt, 1);
    let out = bench.died();
    assert!(out.iter().any(|a| matches!(a, Action::Tell(ToAgent::Release { .. }))), "{out:?}");
    assert_eq!(runs(&bench.granted(grant(2, 1)))[0].attempt, 2);
    bench.died();
    let failure = bench.failure(object);
    assert_eq!(failure.kind, FailureKind::HostDied);
    assert!(
        failure.to_string().contains("task test::f#1 failed: killed by signal 9 (attempt 2 of 2)"),
        "{failure}"
    );
}

#[test]
fn c2_calls_of_an_actor_leave_in_order_and_its_end_fails_them() {
    let mut bench = Bench::new();
    let (actor, _) = bench.submit(Kind::Construct { restarts: 0 }, Vec::new());
    let (late, _) = bench.submit(TASK, Vec::new());
    let method = Kind::Method { actor };
    let (one, _) = bench.submit(method, vec![Input::Ref(late)]);
    let (two, _) = bench.submit(method, Vec::new());
    let calls = runs(&bench.granted(grant(1, 2)));
    assert!(matches!(calls[0].target, Target::Construct { incarnation: 1, .. }));
    let out = bench.message(done(&calls[0], Outcome::Values(smallvec![])));
    assert!(runs(&out).is_empty(), "the first call waits for its argument, and the second for the first");
    let sent: Vec<_> = runs(&bench.message(done(&calls[1], value(1)))).iter().map(|call| call.task).collect();
    assert_eq!(sent, [one.task(), two.task()]);
    bench.died();
    for object in [one, two] {
        let failure = bench.failure(object);
        assert_eq!(failure.kind, FailureKind::ActorDied, "{failure}");
        assert!(failure.to_string().contains("killed by signal 9"), "{failure}");
    }
}

#[test]
fn a_restarted_actor_fails_only_what_was_on_its_way() {
    let mut bench = Bench::new();
    let (actor, _) = bench.submit(Kind::Construct { restarts: 1 }, Vec::new());
    let method = Kind::Method { actor };
    let calls = runs(&bench.granted(grant(1, 1)));
    bench.message(done(&calls[0], Outcome::Values(smallvec![])));
    let (on_its_way, out) = bench.submit(method, Vec::new());
    assert_eq!(runs(&out).len(), 1);
    bench.died();
    let (later, _) = bench.submit(method, Vec::new());
    let calls = runs(&bench.granted(grant(2, 1)));
    assert!(matches!(calls[0].target, Target::Construct { incarnation: 2, .. }));
    let sent = runs(&bench.message(done(&calls[0], Outcome::Values(smallvec![]))));
    assert_eq!(sent.iter().map(|call| call.task).collect::<Vec<_>>(), [later.task()]);
    assert_eq!(bench.failure(on_its_way).kind, FailureKind::MaybeExecuted);
}

/// As where the head stood still for longer than the lease's term.
#[test]
fn an_actor_that_outlives_its_lease_is_ended_where_it_is_and_dies_with_its_host() {
    for host_dies in [false, true] {
        let mut bench = Bench::new();
        let (actor, _) = bench.submit(Kind::Construct { restarts: 1 }, Vec::new());
        let held = grant(1, 2);
        let calls = runs(&bench.granted(held.clone()));
        bench.message(done(&calls[0], Outcome::Values(smallvec![])));
        let mut out = Vec::new();
        bench.core.revoked(held.lease, Revocation::Expired, &mut out);
        assert!(runs(&bench.submit(TASK, Vec::new()).1).is_empty(), "nothing more goes there");
        if host_dies {
            bench.died();
            let calls = runs(&bench.granted(grant(2, 1)));
            assert!(calls.iter().any(|call| matches!(call.target, Target::Construct { incarnation: 2, .. })));
            continue;
        }
        bench.core.drop_ref(actor, &mut out);
        let ends = |action: &Action| {
            matches!(action, Action::Send { to: THERE, message: Message::Terminate { incarnation: 1, .. } })
        };
        assert!(out.iter().any(ends), "{out:?}");
        assert_eq!(bench.core.lease_count(), 0);
    }
}

#[test]
fn calls_of_an_actor_of_another_owner_fail_once_it_was_killed_here() {
    let mut bench = Bench::new();
    let actor = TaskId::numbered(THERE, 7);
    let object = actor.object(0);
    bench.core.own(&mut Vec::new(), |objects, fx| objects.receive(object, Via::Container(object), fx));
    let (call, _) = bench.submit(Kind::Method { actor: object }, Vec::new());
    let alive = State::Actor { host: THERE, incarnation: 1 };
    assert_eq!(runs(&bench.message(Message::Resolved { object, state: alive.clone() })).len(), 1);
    let mut out = Vec::new();
    bench.core.kill(actor, &mut out);
    let told = |action: &Action| matches!(action, Action::Send { to: THERE, message: Message::Kill { .. } });
    assert!(out.iter().any(told), "{out:?}");
    let (later, out) = bench.submit(Kind::Method { actor: object }, Vec::new());
    assert!(runs(&out).is_empty(), "the owner may not have heard of it yet");
    bench.message(Message::Resolved { object, state: alive });
    for object in [call, later] {
        assert_eq!(bench.failure(object).kind, FailureKind::ActorDied);
    }
}

#[test]
fn an_idle_lease_goes_back_when_asked_for_or_after_a_while() {
    let mut bench = Bench::new();
    let (_, _) = bench.submit(TASK, Vec::new());
    let calls = runs(&bench.granted(grant(1, 1)));
    let mut out = Vec::new();
    bench.core.revoked(LeaseId { number: 1 }, Revocation::Idle, &mut out);
    assert!(out.is_empty(), "it is in use");
    let out = bench.message(done(&calls[0], value(1)));
    assert!(out.iter().any(|a| matches!(a, Action::Tell(ToAgent::Release { .. }))), "{out:?}");
    bench.granted(grant(2, 1));
    let mut out = Vec::new();
    for _ in 0..4 {
        bench.core.tick(&mut out);
    }
    assert!(
        matches!(out.last(), Some(Action::Tell(ToAgent::Release { lease })) if lease.number == 2),
        "{out:?}"
    );
    assert_eq!(bench.core.lease_count(), 0);
}

#[test]
fn one_that_takes_long_does_not_hold_the_slots_of_those_that_are_done() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        bench.submit(TASK, Vec::new());
    }
    let calls = runs(&bench.granted(grant(1, 4)));
    assert_eq!(calls.len(), 4);
    bench.core.revoked(LeaseId { number: 1 }, Revocation::Idle, &mut Vec::new());
    let shrinks = |bench: &mut Bench| {
        let mut out = Vec::new();
        bench.core.tick(&mut out);
        out.iter().find_map(|action| match action {
            Action::Tell(ToAgent::Shrink { keep, .. }) => Some(*keep),
            _ => None,
        })
    };
    assert_eq!(shrinks(&mut bench), None, "all are in use");
    for call in &calls[..3] {
        bench.message(done(call, value(1)));
    }
    assert_eq!(shrinks(&mut bench), Some(1));
    assert_eq!(shrinks(&mut bench), None, "said once");
    let (_, out) = bench.submit(TASK, Vec::new());
    assert!(runs(&out).is_empty(), "it is not used for what comes");
    let out = bench.message(done(&calls[3], value(1)));
    assert!(out.iter().any(|a| matches!(a, Action::Tell(ToAgent::Release { .. }))), "{out:?}");
}

#[test]
fn a_cancelled_call_fails_at_once_and_its_slot_is_charged_until_it_ends() {
    let mut bench = Bench::new();
    let (running, _) = bench.submit(TASK, Vec::new());
    let (queued, _) = bench.submit(TASK, Vec::new());
    let calls = runs(&bench.granted(grant(1, 1)));
    assert_eq!(calls.len(), 1);
    let mut out = Vec::new();
    assert!(bench.core.cancel(queued, false, &mut out));
    assert!(bench.core.cancel(running, false, &mut out));
    assert!(out.iter().any(|a| matches!(a, Action::Send { message: Message::Cancel { .. }, .. })));
    assert_eq!(bench.failure(queued).kind, FailureKind::Cancelled);
    assert_eq!(bench.failure(running).kind, FailureKind::Cancelled);
    let (_, out) = bench.submit(TASK, Vec::new());
    assert!(runs(&out).is_empty(), "the slot is still charged");
    let out = bench.message(done(&calls[0], Outcome::failed(Failure::new(FailureKind::Cancelled, ""))));
    assert_eq!(runs(&out).len(), 1);
}

fn recalls(actions: &[Action]) -> usize {
    let is_recall = |action: &&Action| matches!(action, Action::Send { message: Message::Recall { .. }, .. });
    actions.iter().filter(is_recall).count()
}

/// A class whose tasks were short, and a lease with one that is not: what is behind it.
fn behind_slow_work(bench: &mut Bench, tasks: usize) -> Vec<Call> {
    bench.submit(TASK, Vec::new());
    let calls = runs(&bench.granted(grant(1, 1)));
    bench.message(done(&calls[0], value(0)));
    (0..tasks).flat_map(|_| runs(&bench.submit(TASK, Vec::new()).1)).collect()
}

#[test]
fn c5_what_waits_behind_slow_work_goes_elsewhere() {
    let mut bench = Bench::new();
    let calls = behind_slow_work(&mut bench, 4);
    assert_eq!(calls.len(), 4, "all are pushed ahead");
    let mut out = Vec::new();
    for _ in 0..10 {
        bench.core.tick(&mut out);
    }
    assert_eq!(recalls(&out), 1, "once, until it is answered");
    let lease = LeaseId { number: 1 };
    let tasks = calls[1..].iter().map(|call| (call.task, 1)).collect();
    let out = bench.message(Message::Recalled { lease, tasks });
    assert!(runs(&out).is_empty(), "there is no room here");
    assert!(
        out.iter().any(|a| matches!(a, Action::Tell(ToAgent::Demand { backlog: 3, .. }))),
        "more slots are asked for: {out:?}"
    );
    let again = runs(&bench.granted(grant(2, 4)));
    let order: Vec<_> = again.iter().map(|call| (call.task, call.attempt)).collect();
    assert_eq!(order, calls[1..].iter().map(|call| (call.task, 1)).collect::<Vec<_>>());
    bench.message(done(&calls[0], value(1)));
}

#[test]
fn c5_a_cancelled_task_that_comes_back_is_over() {
    let mut bench = Bench::new();
    let calls = behind_slow_work(&mut bench, 2);
    let object = calls[1].task.object(0);
    let mut out = Vec::new();
    assert!(bench.core.cancel(object, false, &mut out));
    let lease = LeaseId { number: 1 };
    let out = bench.message(Message::Recalled { lease, tasks: vec![(calls[1].task, 1), (calls[1].task, 1)] });
    assert!(runs(&out).is_empty());
    assert_eq!(bench.failure(object).kind, FailureKind::Cancelled);
    assert_eq!(bench.core.unfinished(), 1);
    bench.message(done(&calls[0], value(1)));
    assert_eq!(bench.core.unfinished(), 0);
}

#[test]
fn what_a_preempted_lease_has_not_started_comes_back() {
    let mut bench = Bench::new();
    let calls = behind_slow_work(&mut bench, 3);
    let lease = LeaseId { number: 1 };
    let mut out = Vec::new();
    bench.core.revoked(lease, Revocation::Preempted { keep: 0 }, &mut out);
    assert_eq!(recalls(&out), 1);
    bench.message(Message::Recalled { lease, tasks: calls[1..].iter().map(|call| (call.task, 1)).collect() });
    let out = bench.message(done(&calls[0], value(1)));
    assert!(out.iter().any(|a| matches!(a, Action::Tell(ToAgent::Release { .. }))), "{out:?}");
    assert_eq!(runs(&bench.granted(grant(2, 4))).len(), 2);
}

fn shrinks(actions: &[Action]) -> Vec<u32> {
    let kept = |action: &Action| match action {
        Action::Tell(ToAgent::Shrink { keep, .. }) => Some(*keep),
        _ => None,
    };
    actions.iter().filter_map(kept).collect()
}

fn cancels(actions: &[Action]) -> Vec<TaskId> {
    let stopped = |action: &Action| match action {
        Action::Send { message: Message::Cancel { task, .. }, .. } => Some(*task),
        _ => None,
    };
    actions.iter().filter_map(stopped).collect()
}

#[test]
fn a_lease_that_is_to_make_room_gives_back_only_so_many_slots() {
    let mut bench = Bench::new();
    (0..6).for_each(|_| drop(bench.submit(TASK, Vec::new())));
    let calls = runs(&bench.granted(grant(1, 4)));
    assert_eq!(calls.len(), 4);
    let mut out = Vec::new();
    bench.core.revoked(LeaseId { number: 1 }, Revocation::Preempted { keep: 2 }, &mut out);
    assert_eq!((shrinks(&out), runs(&out).len()), (vec![], 0), "all four are in use");
    let out = bench.message(done(&calls[0], value(0)));
    assert_eq!((shrinks(&out), runs(&out).len()), (vec![], 0), "the slot is not used again");
    let out = bench.message(done(&calls[1], value(0)));
    assert_eq!(shrinks(&out), [2]);
    assert!(!out.iter().any(|a| matches!(a, Action::Tell(ToAgent::Release { .. }))), "{out:?}");
    // With the others it goes on.
    let next = runs(&bench.message(done(&calls[2], value(0))));
    assert!(next.iter().all(|call| matches!(call.target, Target::Task { slots: 2, .. })), "{next:?}");
    assert!(!next.is_empty());
}

#[test]
fn only_as_many_slots_as_are_asked_for_are_taken_away() {
    let mut bench = Bench::new();
    let objects: Vec<ObjectId> = (0..4).map(|_| bench.submit(TASK, Vec::new()).0).collect();
    let calls = runs(&bench.granted(grant(1, 4)));
    let lease = LeaseId { number: 1 };
    let mut out = Vec::new();
    bench.core.revoked(lease, Revocation::Preempted { keep: 3 }, &mut out);
    assert!(cancels(&out).is_empty());
    // The newest has lost the least. It waits for another slot, and has as many retries as before.
    for attempt in 1..=3 {
        out.clear();
        let why = Eviction::Preempted;
        bench.core.revoked(lease, Revocation::Evicted { keep: 3, why }, &mut out);
        if attempt == 1 {
            assert_eq!(cancels(&out), [calls[3].task]);
        }
        let other = LeaseId { number: 1 + attempt };
        let again = runs(&bench.granted(grant(other.number, 1)));
        assert_eq!(again.iter().map(|call| call.task).collect::<Vec<_>>(), [calls[3].task]);
        out.clear();
        bench.core.revoked(other, Revocation::Evicted { keep: 0, why }, &mut out);
        assert_eq!(cancels(&out), [calls[3].task]);
    }
    assert!(matches!(bench.core.objects.state(objects[3]), Some(State::Pending)));
    // What it was pushed under before says so late, and is not heard.
    bench.message(done(&calls[3], value(9)));
    assert!(matches!(bench.core.objects.state(objects[3]), Some(State::Pending)));
    // The lease goes on: as soon as one of the others ends, it is pushed there.
    let again = runs(&bench.message(done(&calls[0], value(0))));
    assert_eq!(again.iter().map(|call| call.task).collect::<Vec<_>>(), [calls[3].task]);
    bench.message(done(&again[0], value(1)));
    for call in &calls[1..3] {
        bench.message(done(call, value(0)));
    }
    assert_eq!(bench.core.unfinished(), 0);
}

#[test]
fn what_may_not_run_twice_is_told_why_it_was_stopped() {
    for (why, text) in [
        (
            Eviction::Preempted,
            "it was preempted: others have more right to what it held of lease-1 on node-1",
        ),
        (Eviction::GroupRemoved, "the placement group in which it ran on node-1 was removed"),
        (Eviction::NodeLeaves, "its node is to leave, and node-1 had no more time for what still ran there"),
    ] {
        let mut bench = Bench::new();
        let mut once = spec(TASK, Vec::new());
        std::sync::Arc::get_mut(&mut once.template).unwrap().attempts_max = 1;
        let mut out = Vec::new();
        let object = bench.core.submit(once, &mut out);
        bench.granted(grant(1, 1));
        bench.core.revoked(LeaseId { number: 1 }, Revocation::Evicted { keep: 0, why }, &mut out);
        let failure = bench.failure(object);
        assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Evicted, text));
    }
}

#[test]
fn a_full_budget_says_when_there_is_room() {
    let mut bench = Bench::new();
    bench.core.set_unfinished_max(2);
    bench.submit(TASK, Vec::new());
    assert!(bench.core.has_room());
    bench.submit(TASK, Vec::new());
    assert!(!bench.core.has_room());
    bench.core.want_room();
    let calls = runs(&bench.granted(grant(1, 2)));
    let out = bench.message(done(&calls[0], value(0)));
    assert!(out.iter().any(|a| matches!(a, Action::Room)), "{out:?}");
    let out = bench.message(done(&calls[1], value(0)));
    assert!(!out.iter().any(|a| matches!(a, Action::Room)), "nobody waits any more");
}

fn method(bench: &mut Bench, actor: ObjectId, maker: Maker) -> (ObjectId, Vec<Action>) {
    let mut out = Vec::new();
    let object = bench.core.submit_from(spec(Kind::Method { actor }, Vec::new()), maker, &mut out);
    (object, out)
}

/// An actor that lives.
fn actor(bench: &mut Bench) -> ObjectId {
    let (actor, _) = bench.submit(Kind::Construct { restarts: 0 }, Vec::new());
    let calls = runs(&bench.granted(grant(1, 1)));
    bench.message(done(&calls[0], Outcome::Values(smallvec![])));
    actor
}

fn any(_: Returns) -> bool {
    true
}

fn wants(actions: &[Action]) -> Vec<bool> {
    let wants = actions.iter().filter_map(|action| match action {
        Action::Send { message: Message::WantRoom { more, .. }, .. } => Some(*more),
        _ => None,
    });
    wants.collect()
}

#[test]
fn refs_in_a_result_that_does_not_count_are_given_back() {
    let mut bench = Bench::new();
    let (object, _) = bench.submit(TASK, Vec::new());
    let mut call = runs(&bench.granted(grant(1, 1)))[0].clone();
    call.attempt += 1;
    // One of the executor's own, which it counts this host for, and one of a third host, which it keeps until it is taken.
    let third = HostId { node: NODE, seq: 3 };
    let [own, lent] = [THERE, third].map(|owner| TaskId::numbered(owner, 1).object(0));
    let copy = Copy { node: NODE, bytes: 9, attempt: call.attempt, job: JOB };
    let returned = Returned { value: Value::Stored(copy), contains: vec![own, lent] };
    let out = bench.message(done(&call, Outcome::Values(smallvec![returned])));
    let says = |said: Message| {
        out.iter()
            .any(|action| matches!(action, Action::Send { to, message } if *to == THERE && *message == said))
    };
    let returns =
        says(Message::Return { object: own, count: 1 }) && says(Message::Took { objects: vec![lent] });
    let frees = out.iter().any(
        |action| matches!(action, Action::Tell(ToAgent::Decline { object: freed, copy: gone }) if *freed == object && *gone == copy),
    );
    assert!(returns && frees, "{out:?}");
    assert_eq!(bench.core.objects.state(object), Some(&State::Pending), "the attempt under way still counts");
}

#[test]
fn a_result_that_comes_after_word_of_its_hosts_death_does_not_count() {
    let mut bench = Bench::new();
    let (actor, _) = bench.submit(Kind::Construct { restarts: 1 }, Vec::new());
    let construct = runs(&bench.granted(grant(1, 1)))[0].clone();
    bench.message(done(&construct, Outcome::Values(smallvec![])));
    let (object, out) = method(&mut bench, actor, Maker::Outside);
    let call = runs(&out)[0].clone();
    let discards = |action: &Action| matches!(action, Action::Tell(ToAgent::Discard { object: gone, .. }) if *gone == object);
    assert!(bench.died().iter().any(discards));
    let copy = Copy { node: NODE, bytes: 9, attempt: call.attempt, job: JOB };
    let out = bench.message(done(
        &call,
        Outcome::Values(smallvec![Returned { value: Value::Stored(copy), contains: vec![] }]),
    ));
    let frees = |action: &Action| matches!(action, Action::Tell(ToAgent::Decline { object: gone, .. }) if *gone == object);
    assert!(out.iter().any(frees), "{out:?}");
    assert_eq!(bench.core.objects.state(object), Some(&State::Pending), "its actor is made again");
}

#[test]
fn c6_calls_that_find_no_room_leave_later_in_order() {
    let mut bench = Bench::new();
    let actor = actor(&mut bench);
    let sent: Vec<_> = (0..4).map(|_| method(&mut bench, actor, Maker::Outside).0).collect();
    let no_room = |object: ObjectId| Message::NoRoom { task: object.task(), inbox: 3 };
    // All behind the first that found no room come back with it.
    assert_eq!(wants(&bench.message(no_room(sent[1]))), [true]);
    assert!(bench.message(no_room(sent[2])).is_empty());
    assert!(bench.message(no_room(sent[3])).is_empty());
    let has_room = |bench: &Bench, maker| bench.core.has_room_for(Kind::Method { actor }, maker, |_| false);
    assert!(!has_room(&bench, Maker::Outside), "three wait, as many as the inbox holds");
    assert!(!has_room(&bench, Maker::Call));
    assert!(has_room(&bench, Maker::AsyncCall), "it waits for the result");
    assert!(bench.core.has_room_for(TASK, Maker::Outside, |_| true));
    let (last, out) = method(&mut bench, actor, Maker::Outside);
    assert!(out.is_empty(), "{out:?}");
    let room = |calls| Message::Room { actor: actor.task(), incarnation: 1, calls };
    bench.core.want_room();
    let out = bench.message(room(2));
    let left: Vec<_> = runs(&out).iter().map(|call| call.task.object(0)).collect();
    assert_eq!(left, sent[1..3]);
    assert_eq!(wants(&out), [true]);
    assert!(out.iter().any(|action| matches!(action, Action::Room)), "{out:?}");
    let out = bench.message(room(5));
    let left: Vec<_> = runs(&out).iter().map(|call| call.task.object(0)).collect();
    assert_eq!(left, [sent[3], last]);
    assert_eq!(wants(&out), [false], "what is not needed goes back");
    let (_, out) = method(&mut bench, actor, Maker::Outside);
    assert_eq!(runs(&out).len(), 1, "calls leave as they are made again");
}

#[test]
fn c6_where_all_waits_only_calls_of_calls_are_refused() {
    let mut bench = Bench::new();
    let actor = actor(&mut bench);
    let (outer, _) = method(&mut bench, actor, Maker::Outside);
    let (inner, _) = method(&mut bench, actor, Maker::AsyncCall);
    bench.message(Message::NoRoom { task: outer.task(), inbox: 1 });
    bench.message(Message::Room { actor: actor.task(), incarnation: 1, calls: 0 });
    assert_eq!(bench.failure(inner).kind, FailureKind::Overloaded);
    assert!(matches!(bench.core.objects.state(outer), Some(State::Pending)));
    assert!(bench.core.has_room_for(Kind::Method { actor }, Maker::Call, |_| false), "it fails at once");
    let (sync, out) = method(&mut bench, actor, Maker::Call);
    assert!(runs(&out).is_empty());
    assert_eq!(bench.failure(sync).kind, FailureKind::Overloaded);
    assert!(!bench.core.has_room_for(Kind::Method { actor }, Maker::Outside, |_| false));
    // What was refused may be had back once.
    let spec = bench.core.take_refused(inner, any).unwrap();
    assert_eq!(spec.kind, Kind::Method { actor });
    assert!(bench.core.take_refused(inner, any).is_none());
    let out = bench.message(Message::Room { actor: actor.task(), incarnation: 1, calls: 1 });
    assert_eq!(runs(&out).len(), 1);
}

#[test]
fn c6_what_is_given_up_while_it_waits_for_room_takes_none() {
    let mut bench = Bench::new();
    let actor = actor(&mut bench);
    let calls: Vec<_> = (0..5).map(|_| method(&mut bench, actor, Maker::Outside).0).collect();
    bench.message(Message::NoRoom { task: calls[0].task(), inbox: 4 });
    let has_room = |bench: &Bench| bench.core.has_room_for(Kind::Method { actor }, Maker::Outside, |_| false);
    assert!(!has_room(&bench));
    let mut out = Vec::new();
    for (given_up, room) in [(1, false), (3, true)] {
        assert!(bench.core.cancel(calls[given_up], false, &mut out));
        assert_eq!(has_room(&bench), room, "as many as wait still, of at most four");
    }
    // One that is refused as it is made stays known, to be had back, and does not leave.
    bench.message(Message::Room { actor: actor.task(), incarnation: 1, calls: 0 });
    let (refused, _) = method(&mut bench, actor, Maker::Call);
    let room = |calls| Message::Room { actor: actor.task(), incarnation: 1, calls };
    let out = bench.message(room(2));
    let left: Vec<_> = runs(&out).iter().map(|call| call.task.object(0)).collect();
    assert_eq!((left, wants(&out)), (vec![calls[0], calls[2]], vec![true]));
    let out = bench.message(room(2));
    let left: Vec<_> = runs(&out).iter().map(|call| call.task.object(0)).collect();
    assert_eq!((left, wants(&out)), (vec![calls[4]], vec![false]));
    assert_eq!(bench.failure(refused).kind, FailureKind::Overloaded);
    assert!(bench.core.take_refused(refused, any).is_some());
}

#[test]
fn c6_an_actors_end_ends_what_waits_for_room() {
    let mut bench = Bench::new();
    let actor = actor(&mut bench);
    let calls: Vec<_> = (0..3).map(|_| method(&mut bench, actor, Maker::Outside).0).collect();
    bench.message(Message::NoRoom { task: calls[1].task(), inbox: 1 });
    bench.died();
    for call in &calls[1..] {
        assert_eq!(bench.failure(*call).kind, FailureKind::ActorDied);
    }
    assert!(bench.core.has_room_for(Kind::Method { actor }, Maker::Outside, |_| false));
    assert_eq!(bench.core.unfinished(), 0);
}

#[test]
fn a_refused_call_is_forgotten_with_its_failure() {
    let mut bench = Bench::new();
    let actor = actor(&mut bench);
    let (call, out) = method(&mut bench, actor, Maker::Outside);
    let failure = Failure::new(FailureKind::Overloaded, "full");
    bench.message(done(&runs(&out)[0], Outcome::failed(failure)));
    assert_eq!(bench.failure(call).kind, FailureKind::Overloaded);
    let mut out = Vec::new();
    bench.core.drop_ref(call, &mut out);
    assert!(bench.core.take_refused(call, any).is_none());
    assert!(bench.core.tasks.iter().all(|(seq, _)| seq == actor.seq));
}

#[test]
fn unordered_calls_overtake_what_waits_for_arguments() {
    let mut bench = Bench::new();
    let actor = actor(&mut bench);
    let (argument, _) = bench.submit(TASK, Vec::new());
    let mut unordered = spec(Kind::Method { actor }, vec![Input::Ref(argument)]);
    let mut template = Template::new(1, "test::f");
    template.unordered = true;
    unordered.template = template.into();
    let mut out = Vec::new();
    let first = bench.core.submit(unordered, &mut out);
    assert!(runs(&out).is_empty());
    let (second, out) = method(&mut bench, actor, Maker::Outside);
    assert_eq!(runs(&out)[0].task, second.task());
    let task = runs(&bench.granted(grant(2, 2)));
    let out = bench.message(done(&task[0], value(7)));
    assert_eq!(runs(&out)[0].task, first.task());
}
