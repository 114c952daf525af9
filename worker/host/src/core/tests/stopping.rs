//! Code that was told to end and goes on for a while: its slot is nobody's until it has ended.

use mobula_proto::{
    Failure, FailureKind, LeaseId, ObjectId, TaskId,
    host::{Eviction, Revocation, ToAgent},
    peer::{Call, Message, Outcome},
};
use smallvec::smallvec;

use super::{Bench, TASK, cancels, done, grant, recalls, runs, value};
use crate::core::{Action, Kind};

const LEASE: LeaseId = LeaseId { number: 1 };

fn evict(bench: &mut Bench, keep: u32) -> Vec<Action> {
    let mut out = Vec::new();
    bench.core.revoked(LEASE, Revocation::Evicted { keep, why: Eviction::Preempted }, &mut out);
    out
}

fn stopped(call: &Call) -> Message {
    done(call, Outcome::failed(Failure::new(FailureKind::Cancelled, "it was cancelled")))
}

fn tasks(calls: &[Call]) -> Vec<TaskId> {
    calls.iter().map(|call| call.task).collect()
}

/// So many tasks that run under a lease of as many slots.
fn running(bench: &mut Bench, slots: u32) -> (Vec<ObjectId>, Vec<Call>) {
    let objects = (0..slots).map(|_| bench.submit(TASK, Vec::new()).0).collect();
    let calls = runs(&bench.granted(grant(LEASE.number, slots)));
    assert_eq!(calls.len(), slots as usize);
    (objects, calls)
}

fn is_released(out: &[Action]) -> bool {
    out.iter().any(|action| matches!(action, Action::Tell(ToAgent::Release { lease: LEASE })))
}

#[test]
fn what_was_evicted_has_a_kept_slot_until_its_code_has_ended() {
    let mut bench = Bench::new();
    let (_, calls) = running(&mut bench, 2);
    assert_eq!(cancels(&evict(&mut bench, 1)), [calls[1].task]);
    let out = bench.message(done(&calls[0], value(0)));
    assert!(runs(&out).is_empty(), "the evicted one still runs in the place of the other: {out:?}");
    // Another host's word does not count, nor that of another attempt.
    let mut other = calls[1].clone();
    other.attempt = 2;
    assert!(runs(&bench.message(stopped(&other))).is_empty());
    let again = runs(&bench.message(stopped(&calls[1])));
    assert_eq!((tasks(&again), again[0].attempt), (vec![calls[1].task], 2));
    assert!(runs(&bench.message(stopped(&calls[1]))).is_empty(), "it counts once");
    bench.message(done(&again[0], value(1)));
    assert_eq!((bench.core.unfinished(), bench.core.stopping.len()), (0, 0));
}

#[test]
fn a_lease_is_not_given_back_before_what_was_evicted_of_it_has_ended() {
    let mut bench = Bench::new();
    let (_, calls) = running(&mut bench, 3);
    evict(&mut bench, 2);
    let mut out = Vec::new();
    bench.core.revoked(LEASE, Revocation::Draining, &mut out);
    for call in &calls[..2] {
        out.extend(bench.message(done(call, value(0))));
    }
    for _ in 0..10 {
        bench.core.tick(&mut out);
    }
    assert!(!is_released(&out), "{out:?}");
    assert!(is_released(&bench.message(stopped(&calls[2]))));
}

#[test]
fn what_was_evicted_and_comes_back_unstarted_has_no_slot() {
    let mut bench = Bench::new();
    let (_, first) = running(&mut bench, 2);
    // They are over so soon that more are pushed behind the next ones.
    for call in &first {
        bench.message(done(call, value(0)));
    }
    let calls: Vec<_> = (0..4).flat_map(|_| runs(&bench.submit(TASK, Vec::new()).1)).collect();
    assert_eq!(calls.len(), 4);
    let mut out = Vec::new();
    bench.core.revoked(LEASE, Revocation::Preempted { keep: 1 }, &mut out);
    assert_eq!(recalls(&out), 1);
    assert_eq!(cancels(&evict(&mut bench, 1)), tasks(&calls[1..]));
    // The executor answers what was asked first, and finds none of these when it is told to cancel them.
    let back = calls[2..].iter().map(|call| (call.task, call.attempt)).collect();
    assert!(runs(&bench.message(Message::Recalled { lease: LEASE, tasks: back })).is_empty());
    assert!(runs(&bench.message(done(&calls[0], value(0)))).is_empty(), "one still runs");
    let again = runs(&bench.message(stopped(&calls[1])));
    assert!(tasks(&again).contains(&calls[1].task), "{again:?}");
    assert!(bench.core.stopping.is_empty());
}

#[test]
fn an_attempt_that_is_new_does_not_come_back_with_an_old_one() {
    let mut bench = Bench::new();
    let (_, calls) = running(&mut bench, 2);
    evict(&mut bench, 1);
    let again = runs(&bench.granted(grant(2, 1)));
    assert_eq!(tasks(&again), [calls[1].task]);
    let out = bench.message(Message::Recalled { lease: LEASE, tasks: vec![(calls[1].task, 1)] });
    assert!(runs(&out).is_empty(), "it runs elsewhere: {out:?}");
    assert!(bench.core.stopping.is_empty());
    bench.message(done(&again[0], value(1)));
    assert_eq!(bench.core.unfinished(), 1);
}

#[test]
fn a_construction_that_was_stopped_keeps_its_slot_until_it_ends() {
    for forgotten in [false, true] {
        let mut bench = Bench::new();
        let (actor, _) = bench.submit(Kind::Construct { restarts: 1 }, Vec::new());
        let call = runs(&bench.granted(grant(1, 1))).remove(0);
        let (next, _) = bench.submit(TASK, Vec::new());
        let mut out = Vec::new();
        if forgotten {
            bench.core.drop_ref(actor, &mut out);
        } else {
            bench.core.kill(actor.task(), &mut out);
            assert_eq!(bench.failure(actor).kind, FailureKind::ActorDied);
        }
        let ends =
            |action: &Action| matches!(action, Action::Send { message: Message::Terminate { .. }, .. });
        assert!(out.iter().any(ends), "{out:?}");
        assert!(runs(&out).is_empty(), "`new` still runs: {out:?}");
        // As if word of both had crossed, in one case.
        let ended = if forgotten { stopped(&call) } else { done(&call, Outcome::Values(smallvec![])) };
        assert_eq!(tasks(&runs(&bench.message(ended))), [next.task()]);
        assert_eq!((bench.core.unfinished(), bench.core.stopping.len()), (1, 0));
    }
}

#[test]
fn an_evicted_construction_has_a_kept_slot_and_an_actor_that_lived_has_none() {
    let mut bench = Bench::new();
    let actor = Kind::Construct { restarts: 1 };
    let objects: Vec<ObjectId> = (0..3).map(|_| bench.submit(actor, Vec::new()).0).collect();
    let calls = runs(&bench.granted(grant(1, 3)));
    // The newest goes first: it is being made, and the one before it lives.
    for call in &calls[..2] {
        bench.message(done(call, Outcome::Values(smallvec![])));
    }
    evict(&mut bench, 2);
    let mut out = Vec::new();
    bench.core.kill(objects[0].task(), &mut out);
    assert!(runs(&out).is_empty(), "`new` of the evicted one still runs: {out:?}");
    let again = runs(&bench.message(stopped(&calls[2])));
    assert_eq!(tasks(&again), [objects[2].task()]);
    bench.message(done(&again[0], Outcome::Values(smallvec![])));
    evict(&mut bench, 1);
    assert!(bench.core.stopping.is_empty(), "nothing of it runs");
    out.clear();
    bench.core.kill(objects[1].task(), &mut out);
    assert_eq!(tasks(&runs(&out)), [objects[2].task()]);
}

#[test]
fn nothing_is_left_of_what_was_stopped_on_a_host_that_died() {
    let mut bench = Bench::new();
    let (_, calls) = running(&mut bench, 2);
    evict(&mut bench, 1);
    assert_eq!(bench.core.stopping.len(), 1);
    bench.died();
    assert!(bench.core.stopping.is_empty());
    bench.message(stopped(&calls[1]));
    assert_eq!(bench.core.lease_count(), 0);
}
