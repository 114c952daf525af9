//! What becomes of calls and actors, in a host on its own.

use std::{
    future::poll_fn,
    sync::{
        atomic::Ordering,
        mpsc::{self, Receiver, Sender},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, NodeId, ObjectId, TaskId,
    host::{ToAgent, ToHost},
    limits::Limits,
    peer::{Argument, Copy, Message, Outcome, Part, State as Known, StreamCall, Target, Window},
};
use parking_lot::{Mutex, MutexGuard};

use crate::{
    codec::{Arguments, Results},
    context,
    registry::{ActorState, Entry, Function, Invocation, Rules},
    runtime::{Awaited, Waiting},
    testing::{Alone, alone, async_function, call, function, lease, other},
};

const WAIT: Duration = Duration::from_secs(20);

/// Whoever has it lets no actor be made.
static GATE: Mutex<()> = Mutex::new(());
/// Who hears what actors do.
static HEARS: Mutex<Option<Sender<&'static str>>> = Mutex::new(None);

fn say(what: &'static str) {
    if let Some(hears) = &*HEARS.lock() {
        hears.send(what).unwrap();
    }
}

fn eventually(is_so: impl Fn() -> bool) {
    let end = Instant::now() + WAIT;
    while !is_so() {
        assert!(Instant::now() < end, "it does not come about");
        std::thread::yield_now();
    }
}

struct State;

impl Drop for State {
    fn drop(&mut self) {
        say("it is gone");
    }
}

fn made(_: Arguments) -> Invocation<ActorState> {
    say("it is being made");
    let _open = GATE.lock();
    let state: ActorState = std::sync::Arc::new(State);
    Invocation::Finished(Ok(state))
}

/// What tasks wait for.
static AWAITED: Mutex<Option<ObjectId>> = Mutex::new(None);

fn waits(_: Arguments) -> Invocation<Results> {
    let runtime = context::runtime().unwrap();
    drop(GATE.lock());
    let awaited = AWAITED.lock().unwrap();
    let ready = runtime.wait(&[awaited], 1, None);
    Invocation::Finished(ready.map(|_| Results::new()))
}

fn leaf(_: Arguments) -> Invocation<Results> {
    Invocation::Finished(Ok(Results::new()))
}

#[test]
fn what_no_thread_will_run_fails() {
    let [waits, leaf] =
        [function("test::waits", Entry::Task(waits)), function("test::leaf", Entry::Task(leaf))];
    let alone = alone(&[waits, leaf]);
    let runtime = &alone.runtime;
    runtime.executor().threads_max.store(2, Ordering::Relaxed);
    *AWAITED.lock() = Some(runtime.pending());
    let run = |function, seq| {
        let target = Target::Task { lease: lease(1), slots: 10 };
        runtime.on_peer(other(2), true, call(function, TaskId { owner: other(2), seq, key: 7 }, target));
    };
    let blocked = || runtime.executor().state.lock().blocked;
    run(waits, 1);
    eventually(|| blocked() == 1);
    // When the last call arrives, one thread runs; then it waits, too.
    let gate = GATE.lock();
    run(waits, 2);
    eventually(|| runtime.executor().state.lock().ready.is_empty());
    run(leaf, 3);
    drop(gate);
    let outcome = |seq: u64| match alone.next_sent() {
        (_, Message::Done(done)) if done.task.seq == seq => done.outcome,
        sent => panic!("{sent:?}"),
    };
    let Outcome::Failed(failure) = outcome(3) else { panic!("it ran") };
    assert_eq!(failure.kind, FailureKind::Limit, "{failure:?}");
    assert!(failure.message.contains("all 2 threads"), "{failure:?}");
    runtime.fail(AWAITED.lock().unwrap(), Failure::new(FailureKind::Cancelled, "enough"));
    for _ in 0..2 {
        let (_, Message::Done(done)) = alone.next_sent() else { panic!("no result") };
        assert!(matches!(done.outcome, Outcome::Values(_)));
    }
    run(leaf, 4);
    assert!(matches!(outcome(4), Outcome::Values(_)));
}

/// This call, with so little time that it runs out at once.
fn hurried(message: Message) -> Message {
    let Message::Run(mut call) = message else { unreachable!() };
    call.timeout_ms = 1;
    Message::Run(call)
}

fn is_out_of_time(failure: &Failure, what: &str) -> bool {
    let attempts = (failure.attempt, failure.attempts_max);
    failure.kind == FailureKind::TimedOut && failure.what.contains(what) && attempts == (1, 1)
}

fn gated(_: Arguments) -> Invocation<Results> {
    drop(GATE.lock());
    Invocation::Finished(Ok(Results::new()))
}

#[test]
fn what_has_ended_leaves_no_timer() {
    const CALLS: u64 = 100;
    let [leaf] = [function("test::leaf", Entry::Task(leaf))];
    let alone = alone(&[leaf]);
    let runtime = &alone.runtime;
    let target = Target::Task { lease: lease(1), slots: 1 };
    let before = runtime.user().metrics().num_alive_tasks();
    for seq in 1..=CALLS {
        let Message::Run(mut call) = call(leaf, TaskId { owner: other(2), seq, key: 7 }, target) else {
            unreachable!()
        };
        call.timeout_ms = 3_600_000;
        runtime.on_peer(other(2), true, Message::Run(call));
        let (_, Message::Done(_)) = alone.next_sent() else { panic!("no result") };
    }
    eventually(|| runtime.user().metrics().num_alive_tasks() <= before);
}

#[test]
fn a_call_whose_time_ran_out_keeps_its_slot_until_it_ends() {
    let [gated, leaf] =
        [function("test::gated", Entry::Task(gated)), function("test::leaf", Entry::Task(leaf))];
    let alone = alone(&[gated, leaf]);
    let runtime = &alone.runtime;
    let task = |seq| TaskId { owner: other(2), seq, key: 7 };
    let target = Target::Task { lease: lease(1), slots: 1 };
    let gate = GATE.lock();
    runtime.on_peer(other(2), true, hurried(call(gated, task(1), target)));
    let (to, Message::Expired { task: late, attempt: 1, failure }) = alone.next_sent() else {
        panic!("its time does not run out")
    };
    assert!((to, late) == (other(2), task(1)) && is_out_of_time(&failure, "test::gated"), "{failure:?}");
    runtime.on_peer(other(2), true, call(leaf, task(2), target));
    assert_eq!(runtime.executor().recall(other(2), lease(1)), [(task(2), 1)], "it does not run beside it");
    assert_eq!(runtime.load().1, 1);
    drop(gate);
    let (to, Message::Done(done)) = alone.next_sent() else { panic!("its end is not told") };
    assert_eq!((to, done.task), (other(2), task(1)));
    let Outcome::Failed(failure) = done.outcome else { panic!("nobody wants its value") };
    assert!(is_out_of_time(&failure, "test::gated") && done.nanos > 0, "{failure:?}");
    assert_eq!(runtime.load().1, 0);
    runtime.on_peer(other(2), true, call(leaf, task(3), target));
    let (_, Message::Done(done)) = alone.next_sent() else { panic!("the slot is not free") };
    assert!(matches!(done.outcome, Outcome::Values(_)));
}

fn reads_a_stream(_: Arguments) -> Invocation<Results> {
    let stream = AWAITED.lock().unwrap();
    let item = context::runtime().unwrap().next_item(stream);
    Invocation::Finished(item.map(|_| Results::new()))
}

fn waits_for_very_many(_: Arguments) -> Invocation<Results> {
    let awaited = vec![AWAITED.lock().unwrap(); 3000];
    let ready = context::runtime().unwrap().wait(&awaited, awaited.len(), None);
    Invocation::Finished(ready.map(|_| Results::new()))
}

#[test]
fn a_call_that_waits_is_woken_when_it_is_cancelled_or_its_time_runs_out() {
    let [one, many, stream] = [
        function("test::waits", Entry::Task(waits)),
        function("test::waits_for_very_many", Entry::Task(waits_for_very_many)),
        function("test::reads_a_stream", Entry::Task(reads_a_stream)),
    ];
    let alone = alone(&[one, many, stream]);
    let runtime = &alone.runtime;
    *AWAITED.lock() = Some(runtime.pending());
    let target = Target::Task { lease: lease(1), slots: 1 };
    let ends = |task, kind| match alone.next_sent() {
        (_, Message::Done(done)) if done.task == task => match done.outcome {
            Outcome::Failed(failure) => assert_eq!(failure.kind, kind, "{failure:?}"),
            outcome => panic!("{outcome:?}"),
        },
        sent => panic!("{sent:?}"),
    };
    for (seq, function) in (1..).zip([one, many, stream]) {
        let task = TaskId { owner: other(2), seq, key: 7 };
        runtime.on_peer(other(2), true, call(function, task, target));
        eventually(|| runtime.waits() > 0 && runtime.executor().state.lock().blocked == 1);
        runtime.on_peer(other(2), true, Message::Cancel { task, force: false });
        ends(task, FailureKind::Cancelled);
        assert_eq!(runtime.waits(), 0);

        let task = TaskId { owner: other(2), seq: seq + 10, key: 7 };
        runtime.on_peer(other(2), true, hurried(call(function, task, target)));
        let (_, Message::Expired { .. }) = alone.next_sent() else { panic!("its time does not run out") };
        ends(task, FailureKind::TimedOut);
        assert_eq!(runtime.waits(), 0);
    }
}

/// Each of them ends a poll of [`polled`].
static POLLS: Mutex<Option<Receiver<()>>> = Mutex::new(None);
/// What wakes [`polled`] at any time.
static WAKES: Mutex<Option<Waker>> = Mutex::new(None);

/// Waits for an object, and does something else in each poll.
fn polled(_: Arguments) -> Invocation<Results> {
    Invocation::Future(Box::pin(async {
        let runtime = context::runtime().unwrap();
        let object = AWAITED.lock().unwrap();
        let (mut waiting, mut awaited) = (Waiting::default(), None);
        poll_fn(|poller| {
            let ready = runtime.poll_ready(object, &mut waiting, poller.waker());
            awaited = if ready { None } else { awaited.take().or_else(|| Awaited::begin(&runtime)) };
            *WAKES.lock() = Some(poller.waker().clone());
            say("polled");
            POLLS.lock().as_ref().unwrap().recv().unwrap();
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        Ok(Results::new())
    }))
}

#[test]
fn a_call_lends_its_slot_only_while_none_of_its_code_is_polled() {
    let [stopped, polled] =
        ["test::stopped", "test::polled"].map(|name| async_function(name, Entry::Task(polled)));
    // As far as is known it takes no time, so a thread of the pool polls it first, and at once the runtime for async code.
    polled.nanos.store(1, Ordering::Relaxed);
    let leaf = function("test::leaf", Entry::Task(leaf));
    let alone = alone(&[polled, stopped, leaf]);
    let runtime = &alone.runtime;
    let (hears, heard) = mpsc::channel();
    let (ends, polls) = mpsc::channel();
    (*HEARS.lock(), *POLLS.lock(), *AWAITED.lock()) = (Some(hears), Some(polls), Some(runtime.pending()));
    let next = |what| assert_eq!(heard.recv_timeout(WAIT), Ok(what));
    let says = |told| match told {
        ToAgent::Block { .. } => Some("lent"),
        ToAgent::Unblock { .. } => Some("back"),
        ToAgent::Relay { .. } => Some("a result"),
        _ => None,
    };
    let said = || alone.told.try_iter().filter_map(says).collect::<Vec<_>>();
    let will_say = |what| loop {
        if let Some(told) = says(alone.told.recv_timeout(WAIT).unwrap()) {
            break assert_eq!(told, what);
        }
    };
    let run = |function, seq| {
        let target = Target::Task { lease: lease(1), slots: 1 };
        runtime.on_peer(other(2), true, call(function, TaskId { owner: other(2), seq, key: 7 }, target));
    };
    run(polled, 1);
    next("polled");
    run(leaf, 2);
    assert!(said().is_empty(), "it waits, and goes on beside that");
    ends.send(()).unwrap();
    next("polled");
    assert!(said().is_empty(), "it has not rested");
    ends.send(()).unwrap();
    // The other has its slot, and then nobody here.
    will_say("lent");
    will_say("a result");
    for _ in 0..3 {
        WAKES.lock().take().unwrap().wake();
        next("polled");
        assert_eq!(said(), ["back"]);
        ends.send(()).unwrap();
        will_say("lent");
    }
    runtime.fail(AWAITED.lock().unwrap(), Failure::new(FailureKind::Cancelled, "enough"));
    next("polled");
    assert_eq!(said(), ["back"]);
    ends.send(()).unwrap();
    will_say("a result");
    eventually(|| runtime.executor().state.lock().leases.is_empty());
    // Nor does it leave a slot lent where it is stopped.
    *AWAITED.lock() = Some(runtime.pending());
    run(stopped, 3);
    next("polled");
    ends.send(()).unwrap();
    will_say("lent");
    runtime.on_peer(
        other(2),
        true,
        Message::Cancel { task: TaskId { owner: other(2), seq: 3, key: 7 }, force: false },
    );
    will_say("back");
    will_say("a result");
    eventually(|| runtime.executor().state.lock().leases.is_empty());
}

struct Bench {
    alone: Alone,
    actor: &'static Function,
    heard: Receiver<&'static str>,
}

impl Bench {
    fn new() -> Self {
        let actor = function("test::Actor", Entry::Construct { call: made, rules: Rules::DEFAULT });
        let (hears, heard) = mpsc::channel();
        *HEARS.lock() = Some(hears);
        Self { alone: alone(&[actor]), actor, heard }
    }

    fn constructs(&self, owner: HostId) {
        let target = Target::Construct { lease: lease(1), incarnation: 1 };
        let message = call(self.actor, TaskId { owner, seq: 1, key: 7 }, target);
        self.alone.runtime.on_peer(owner, true, message);
    }

    fn hears(&self, what: &str) {
        assert_eq!(self.heard.recv_timeout(WAIT), Ok(what));
    }

    /// Whether a construction succeeded, as its owner is told.
    fn answers(&self, owner: HostId) -> bool {
        match self.alone.next_sent() {
            (to, Message::Done(done)) if to == owner => matches!(done.outcome, Outcome::Values(_)),
            sent => panic!("{sent:?}"),
        }
    }

    fn dies(&self, host: HostId) {
        let failure = Failure::new(FailureKind::HostDied, "killed");
        self.alone.runtime.on_agent(ToHost::HostDied { host, failure }, Vec::new());
    }

    fn actors(&self) -> usize {
        self.alone.runtime.load().2
    }
}

#[test]
fn actors_end_with_their_owners() {
    let bench = Bench::new();
    let stays = other(9);
    bench.constructs(stays);
    bench.hears("it is being made");
    assert!(bench.answers(stays));

    bench.constructs(other(2));
    bench.hears("it is being made");
    assert!(bench.answers(other(2)));
    assert_eq!(bench.actors(), 2);
    bench.dies(other(2));
    bench.hears("it is gone");
    assert_eq!(bench.actors(), 1);

    // While it is being made.
    let gate: MutexGuard<'_, ()> = GATE.lock();
    bench.constructs(other(3));
    bench.hears("it is being made");
    bench.dies(other(3));
    assert_eq!(bench.actors(), 1);
    drop(gate);
    bench.hears("it is gone");
    assert!(!bench.answers(other(3)));

    // What it had sent before its death arrives behind the news.
    bench.dies(other(4));
    bench.constructs(other(4));
    assert!(!bench.answers(other(4)));
    assert_eq!(bench.actors(), 1);

    let node = NodeId { number: 2, incarnation: 1 };
    let far = HostId { node, seq: 5 };
    bench.constructs(far);
    bench.hears("it is being made");
    assert!(bench.answers(far));
    let failure = Failure::new(FailureKind::NodeDied, "killed");
    bench.alone.runtime.on_agent(ToHost::NodeDied { node, failure }, Vec::new());
    bench.hears("it is gone");
    assert_eq!(bench.actors(), 1, "one whose owner lives stays");
}

#[test]
fn an_actor_whose_construction_took_too_long_does_not_live() {
    let bench = Bench::new();
    let gate: MutexGuard<'_, ()> = GATE.lock();
    let target = Target::Construct { lease: lease(1), incarnation: 1 };
    let message = call(bench.actor, TaskId { owner: other(2), seq: 1, key: 7 }, target);
    bench.alone.runtime.on_peer(other(2), true, hurried(message));
    bench.hears("it is being made");
    let (_, Message::Expired { failure, .. }) = bench.alone.next_sent() else { panic!("it has all time") };
    assert!(is_out_of_time(&failure, "test::Actor"), "{failure:?}");
    assert_eq!(bench.alone.runtime.load().1, 1, "it is being made still");
    drop(gate);
    bench.hears("it is gone");
    assert!(!bench.answers(other(2)));
    assert_eq!(bench.actors(), 0);
}

fn plain(_: Arguments) -> Invocation<ActorState> {
    let state: ActorState = std::sync::Arc::new(());
    Invocation::Finished(Ok(state))
}

fn method(_: &ActorState, _: Arguments) -> Invocation<Results> {
    Invocation::Finished(Ok(Results::new()))
}

/// The next copy that the agent is asked for, with the number of the request.
fn asks(alone: &Alone) -> (u64, (ObjectId, Copy)) {
    loop {
        match alone.told.recv_timeout(WAIT).unwrap() {
            ToAgent::BudgetWanted { more, .. } => {
                alone.runtime.on_agent(ToHost::Budget { more }, Vec::new());
            }
            ToAgent::Open { request, object, copy, .. } => return (request, (object, copy)),
            _ => {}
        }
    }
}

fn is_lost(alone: &Alone, request: u64) {
    let failure = Failure::new(FailureKind::ObjectLost, "its node is gone");
    alone.runtime.on_agent(ToHost::OpenFailed { request, failure }, Vec::new());
}

/// The next copy that the agent is asked for, which it says is lost.
fn loses(alone: &Alone) -> (ObjectId, Copy) {
    let (request, asked) = asks(alone);
    is_lost(alone, request);
    asked
}

#[test]
fn a_call_whose_argument_is_lost_keeps_its_place_and_a_task_goes_back() {
    let construct = function("test::Actor", Entry::Construct { call: plain, rules: Rules::DEFAULT });
    let entry = Entry::Method { call: method, exclusive: true, group: 0, unordered: false };
    let [method, leaf] = [function("test::method", entry), function("test::leaf", Entry::Task(leaf))];
    let alone = alone(&[construct, method, leaf]);
    let (runtime, caller, owner) = (&alone.runtime, other(2), other(3));
    let task = |seq| TaskId { owner: caller, seq, key: 7 };
    let object = TaskId { owner, seq: 1, key: 7 }.object(0);
    let [first, second] = [1, 2].map(|number| {
        let node = NodeId { number: 5, incarnation: number };
        Copy { node, bytes: 9, attempt: number, job: JobId { number: 1 } }
    });
    let run = |function, seq, target, given: bool| {
        let Message::Run(mut message) = call(function, task(seq), target) else { unreachable!() };
        if given {
            message.arguments.push(Argument::One(Part::Stored { object, copy: first }));
        }
        runtime.on_peer(caller, true, Message::Run(message));
    };
    let answer = || match alone.next_sent() {
        (to, Message::Done(done)) if to == caller => (done.task.seq, done.outcome),
        sent => panic!("{sent:?}"),
    };
    run(construct, 1, Target::Construct { lease: lease(1), incarnation: 1 }, false);
    assert!(matches!(answer(), (1, Outcome::Values(_))));

    let target = Target::Method { actor: task(1), incarnation: 1 };
    run(method, 2, target, true);
    run(method, 3, target, false);
    for (copy, now) in [
        (first, Known::Stored(second)),
        (second, {
            let encoded = crate::codec::encode(&7_u64).unwrap().encoded;
            Known::Inline { bytes: encoded.to_blob().unwrap(), contains: Vec::new() }
        }),
    ] {
        assert_eq!(loses(&alone), (object, copy));
        assert_eq!(alone.next_sent(), (owner, Message::Lost { object, copy }));
        assert_eq!(alone.next_sent(), (owner, Message::Resolve { object }));
        runtime.on_peer(owner, true, Message::Resolved { object, state: now });
    }
    for seq in [2, 3] {
        let (answered, outcome) = answer();
        assert!(matches!(outcome, Outcome::Values(_)), "{outcome:?}");
        assert_eq!(answered, seq);
    }
    eventually(|| runtime.counts().borrowed == 0);

    // Whoever gives up on one does not wait for its argument.
    run(method, 4, target, true);
    assert_eq!(loses(&alone), (object, first));
    assert_eq!(alone.next_sent(), (owner, Message::Lost { object, copy: first }));
    assert_eq!(alone.next_sent(), (owner, Message::Resolve { object }));
    runtime.on_peer(caller, true, Message::Cancel { task: task(4), force: false });
    match answer() {
        (4, Outcome::Failed(failure)) => assert_eq!(failure.kind, FailureKind::Cancelled),
        answered => panic!("{answered:?}"),
    }
    eventually(|| runtime.counts().borrowed == 0);

    run(leaf, 5, Target::Task { lease: lease(1), slots: 1 }, true);
    assert_eq!(loses(&alone), (object, first));
    assert_eq!(answer(), (5, Outcome::Lost(vec![(object, first)])));
    assert_eq!(runtime.load().1, 0);
}

fn streams(_: Arguments) -> Invocation<Results> {
    Invocation::Finished(crate::stream::produce(1..=3_u64, Ok))
}

#[test]
fn the_end_of_an_attempt_leaves_the_next_one_listed() {
    let function = function("test::streams", Entry::Task(streams));
    for cancels in [true, false] {
        let alone = alone(&[function]);
        let (runtime, caller) = (&alone.runtime, other(2));
        let task = TaskId { owner: caller, seq: 1, key: 7 };
        let node = NodeId { number: 5, incarnation: 1 };
        let copy = Copy { node, bytes: 9, attempt: 1, job: JobId { number: 1 } };
        let runs = |attempt, given: Option<Part>| {
            let target = Target::Task { lease: lease(attempt), slots: 1 };
            let Message::Run(mut call) = call(function, task, target) else { unreachable!() };
            call.attempt = attempt as u32;
            call.arguments.extend(given.map(Argument::One));
            let window = Window { items: 1, bytes: 100 };
            let stream = StreamCall { call, skip: 0, delivered: 0, window, unread: Window::default() };
            runtime.on_peer(caller, true, Message::RunStream(Box::new(stream)));
        };
        let gives = |index| match alone.next_sent() {
            (to, Message::Item(item)) if to == caller => assert_eq!((item.attempt, item.index), (2, index)),
            sent => panic!("{sent:?}"),
        };
        let ends = |attempt| match alone.next_sent() {
            (to, Message::Done(done)) if to == caller && done.attempt == attempt => done.outcome,
            sent => panic!("{sent:?}"),
        };
        let object = TaskId { owner: other(3), seq: 1, key: 7 }.object(0);
        runs(1, Some(Part::Stored { object, copy }));
        let (request, asked) = asks(&alone);
        assert_eq!(asked, (object, copy));
        if cancels {
            runtime.on_peer(caller, true, Message::Cancel { task, force: false });
        }
        runs(2, None);
        gives(0);
        // The first ends now, and its code has not begun.
        is_lost(&alone, request);
        match ends(1) {
            Outcome::Failed(failure) => assert!(cancels && failure.kind == FailureKind::Cancelled),
            Outcome::Lost(lost) => assert!(!cancels && lost.len() == 1),
            outcome => panic!("{outcome:?}"),
        }
        assert_eq!(runtime.load().1, 1, "the second runs");
        for index in 1..3 {
            let (items, bytes) = (index.into(), 8 * u64::from(index));
            runtime.on_peer(caller, true, Message::Consumed { task, attempt: 2, items, bytes });
            gives(index);
        }
        runtime.on_peer(caller, true, Message::Consumed { task, attempt: 2, items: 3, bytes: 24 });
        assert!(matches!(ends(2), Outcome::Values(_)));
        assert_eq!(runtime.load().1, 0);
    }
}

fn first(_: &ActorState, _: Arguments) -> Invocation<Results> {
    say("one begins");
    drop(GATE.lock());
    Invocation::Finished(Ok(Results::new()))
}

#[test]
fn what_an_old_incarnations_call_does_is_nothing_to_the_next() {
    let construct = function("test::Actor", Entry::Construct { call: plain, rules: Rules::DEFAULT });
    let entry = Entry::Method { call: first, exclusive: false, group: 0, unordered: false };
    let method = function("test::first", entry);
    let alone = alone(&[construct, method]);
    let (runtime, caller) = (&alone.runtime, other(2));
    let executor = runtime.executor();
    let (hears, heard) = mpsc::channel();
    *HEARS.lock() = Some(hears);
    let task = |seq| TaskId { owner: caller, seq, key: 7 };
    let actor = task(1);
    let made = |incarnation| {
        let limits = Limits { concurrency: 1, ..Limits::default() };
        runtime.on_peer(caller, true, Message::Limits { actor, incarnation, limits });
        let target = Target::Construct { lease: lease(incarnation.into()), incarnation };
        runtime.on_peer(caller, true, call(construct, actor, target));
        let (_, Message::Done(done)) = alone.next_sent() else { panic!("it is not made") };
        assert!(matches!(done.outcome, Outcome::Values(_)), "{done:?}");
    };
    let runs = |seq, incarnation| {
        let target = Target::Method { actor, incarnation };
        runtime.on_peer(caller, true, call(method, task(seq), target));
        assert_eq!(heard.recv_timeout(WAIT), Ok("one begins"));
        executor.state.lock().running[&task(seq)].clone()
    };
    let gate = GATE.lock();
    made(1);
    let old = runs(2, 1);
    executor.block(runtime, &old, false);
    runtime.on_peer(caller, true, Message::Terminate { actor, incarnation: 1 });
    made(2);
    let new = runs(3, 2);
    executor.block(runtime, &new, false);
    // The old one goes on to its end; the new one waits still, so that another may run beside it.
    executor.unblock(runtime, &old, false);
    runs(4, 2);
    drop(gate);
}
