//! Slots that others wait for, and slots that do not come.

use std::sync::Arc;

use mobula_proto::resource::Isolation;

use super::*;

/// The call has returned after so long.
fn took(call: &Call, nanos: u64) -> Message {
    let Message::Done(done) = done(call, value(1)) else { unreachable!() };
    Message::Done(Done { nanos, ..done })
}

#[test]
fn what_others_wait_for_goes_back_sooner_once_tasks_take_longer() {
    let mut bench = Bench::new();
    for _ in 0..5000 {
        bench.submit(TASK, Vec::new());
    }
    let mut running = runs(&bench.granted(grant(1, 1)));
    let took = |bench: &mut Bench, running: &mut Vec<Call>, nanos| {
        let ended = took(&running.remove(0), nanos);
        running.extend(runs(&bench.message(ended)));
    };
    took(&mut bench, &mut running, 5_000);
    bench.core.revoked(LeaseId { number: 1 }, Revocation::Idle, &mut Vec::new());
    let pushed = running.len();
    // One that was stopped before it ran tells nothing of the others.
    took(&mut bench, &mut running, 0);
    assert_eq!(running.len(), pushed, "one for one");
    while running.len() > 1 {
        took(&mut bench, &mut running, 15_000_000);
    }
    // It was allowed 4,000 as they were at first, and is asked again, as it is each second.
    bench.core.revoked(LeaseId { number: 1 }, Revocation::Idle, &mut Vec::new());
    took(&mut bench, &mut running, 15_000_000);
    took(&mut bench, &mut running, 15_000_000);
    assert!(running.is_empty(), "none but one more is pushed");
    assert_eq!(bench.core.lease_count(), 0);
}

#[test]
fn who_has_a_process_of_its_own_keeps_it_for_more_than_its_start() {
    let mut bench = Bench::new();
    for _ in 0..1000 {
        let mut spec = spec(TASK, Vec::new());
        Arc::get_mut(&mut spec.template).unwrap().class.isolation = Isolation::Process;
        bench.core.submit(spec, &mut Vec::new());
    }
    let mut running = runs(&bench.granted(grant(1, 1)));
    bench.core.revoked(LeaseId { number: 1 }, Revocation::Idle, &mut Vec::new());
    let mut ran = 0;
    while let Some(call) = running.pop() {
        let ended = took(&call, if ran == 0 { 3_000_000_000 } else { 1_000_000 });
        running.extend(runs(&bench.message(ended)));
        ran += 1;
    }
    assert_eq!(ran, 2, "the first took the start along");
    assert_eq!(bench.core.lease_count(), 0);
}

#[test]
fn a_host_that_does_not_start_is_not_the_end_of_what_waits() {
    let mut bench = Bench::new();
    let objects: Vec<ObjectId> = (0..3).map(|_| bench.submit(TASK, Vec::new()).0).collect();
    let failure = Failure::new(FailureKind::HostDied, "a library is missing");
    let fails = |bench: &mut Bench| bench.core.infeasible(0, &failure, &mut Vec::new());
    // How many ticks later it asks again.
    let pause = |bench: &mut Bench| {
        (1..100).find(|_| {
            let mut out = Vec::new();
            bench.core.tick(&mut out);
            out.iter().any(|a| matches!(a, Action::Tell(ToAgent::Demand { backlog: 1.., .. })))
        })
    };
    fails(&mut bench);
    assert_eq!(pause(&mut bench), Some(2));
    fails(&mut bench);
    assert_eq!(pause(&mut bench), Some(4));
    // Elsewhere it runs: others go on trying for as long as it does.
    assert_eq!(runs(&bench.granted(grant(1, 1))).len(), 1);
    for pauses in [2, 4, 8, 16, 32, 32] {
        fails(&mut bench);
        assert_eq!(pause(&mut bench), Some(pauses));
    }
    assert!(
        objects.iter().all(|object| bench
            .core
            .objects
            .state(*object)
            .is_some_and(|s| !matches!(s, State::Failed(_))))
    );
    bench.core.revoked(LeaseId { number: 1 }, Revocation::Lost, &mut Vec::new());
    fails(&mut bench);
    for object in &objects[1..] {
        assert_eq!(bench.failure(*object).kind, FailureKind::HostDied);
    }
}
