//! Who must make room for whom, when, and for how long nothing else may use it.

use std::collections::BTreeMap;

use mobula_proto::{Group, GroupId, Queue, group::Arrange, resource::Isolation};

use super::{sharing::queue, *};
use crate::Preempt;

/// What somebody runs or wants, as `"QUEUE, PRIORITY, SLOTS of RESOURCES"`, with `, restartable` at its end.
fn work(text: &str) -> (Class, u32) {
    let mut parts = text.split(',').map(str::trim);
    let queue = parts.next().unwrap().to_owned();
    let priority = parts.next().unwrap().parse().unwrap();
    let (slots, needs) = parts.next().unwrap().split_once(" of ").unwrap();
    let restartable = parts.next() == Some("restartable");
    (Class { queue, priority, restartable, ..class(needs) }, slots.parse().unwrap())
}

fn queues(world: &mut World, list: &[&str]) {
    world.step(Event::Queues(list.iter().map(|text| queue(text)).collect::<Vec<Queue>>()));
}

/// What was said beside questions whether something is idle.
fn said(effects: &[Effect]) -> String {
    let idle = |e: &&Effect| matches!(e, Effect::Revoke { kind: RevokeKind::Idle, .. });
    let others: Vec<Effect> = effects.iter().filter(|e| !idle(e)).cloned().collect();
    let texts = others.iter().map(|effect| match effect {
        Effect::Revoke { lease, slots, kind: RevokeKind::Preempted { until }, .. } => match until {
            Some(until) => format!("{lease} x{slots} until {}", until.0),
            None => format!("{lease} x{slots} when done"),
        },
        Effect::Revoke { lease, slots, kind: RevokeKind::Evicted, .. } => format!("{lease} x{slots} evicted"),
        other => show(std::slice::from_ref(other)),
    });
    texts.collect::<Vec<_>>().join("; ")
}

/// Time passes; everybody still works.
fn later(world: &mut World, after: u64) -> String {
    let mut all = Vec::new();
    let end = world.now.plus(Millis(after));
    while world.now < end {
        world.now = world.now.plus(Millis(50));
        let ids: Vec<LeaseId> = world.scheduler.leases().map(|view| view.lease.id).collect();
        ids.into_iter().for_each(|lease| drop(world.step(Event::Renew { lease })));
        all.extend(world.step(Event::Tick));
    }
    said(&all)
}

/// On these nodes some run, each as a job of its own; then others want something. What is said within two seconds?
#[track_caller]
fn check(nodes: &[&str], tree: &[&str], runs: &[&str], wants: &[&str], want: &str) {
    let preempt = Preempt { churn: 1000, ..Preempt::default() };
    let mut world = World::with(Options { preempt, ..Options::default() }, nodes);
    queues(&mut world, tree);
    for (at, text) in (1..).zip(runs.iter().chain(wants)) {
        let (class, slots) = work(text);
        let effects = world.ask_as(at, host(10), at as u32, &class, slots, &[]);
        let ran = effects.iter().any(|effect| matches!(effect, Effect::Grant(_)));
        assert_eq!(ran, at as usize <= runs.len(), "{text}");
    }
    assert_eq!(later(&mut world, 2000), want, "{runs:?} {wants:?}");
}

#[test]
fn what_matters_more_takes_from_what_matters_less() {
    let one = ["2 cpu"];
    // Stopped after its grace where it can be run again; else it ends by itself.
    check(
        &one,
        &[],
        &[", 0, 2 of 1 cpu, restartable"],
        &[", 1, 1 of 1 cpu"],
        "lease-1 x1 until 1500; lease-1 x1 evicted; node-1 x1",
    );
    check(&one, &[], &[", 0, 2 of 1 cpu"], &[", 1, 1 of 1 cpu"], "lease-1 x1 when done");
    // Not from equals.
    check(&one, &[], &[", 1, 2 of 1 cpu, restartable"], &[", 1, 1 of 1 cpu"], "");
    check(&one, &[], &[", 2, 2 of 1 cpu, restartable"], &[", 1, 1 of 1 cpu"], "");
    // What can be run again goes before what matters less.
    check(
        &one,
        &[],
        &[", 0, 1 of 1 cpu", ", 1, 1 of 1 cpu, restartable"],
        &[", 2, 1 of 1 cpu"],
        "lease-2 x1 until 1500; lease-2 ended; node-1 x1"
            .replace("lease-2 ended", "lease-2 x1 evicted; ended lease-2")
            .as_str(),
    );
    // On the node where nothing is lost that cannot be run again.
    check(
        &["1 cpu", "1 cpu"],
        &[],
        &[", 0, 1 of 1 cpu", ", 0, 1 of 1 cpu, restartable"],
        &[", 1, 1 of 1 cpu"],
        "lease-2 x1 until 1500; lease-2 x1 evicted; ended lease-2; node-2 x1",
    );
    // As much as it takes, and no more.
    check(
        &["4 cpu"],
        &[],
        &[", 0, 4 of 1 cpu, restartable"],
        &[", 1, 1 of 3 cpu"],
        "lease-1 x3 until 1500; lease-1 x3 evicted; node-1 x1",
    );
    // Not what was not needed after all, once more than that is taken.
    check(
        &["15 cpu"],
        &[],
        &[", 0, 1 of 8 cpu, restartable", ", 0, 1 of 7 cpu, restartable"],
        &[", 1, 1 of 8 cpu"],
        "lease-1 x1 until 1500; lease-1 x1 evicted; ended lease-1; node-1 x1",
    );
    // Nothing that would not help.
    check(
        &["2 cpu 1 gpu"],
        &[],
        &[", 0, 1 of 1 gpu, restartable", ", 0, 2 of 1 cpu, restartable"],
        &[", 1, 1 of 1 cpu"],
        "lease-2 x1 until 1500; lease-2 x1 evicted; node-1 x1",
    );
}

#[test]
fn what_was_borrowed_comes_back() {
    let tree = ["a; guaranteed 2 cpu", "b"];
    // What is guaranteed, whether or not it can be run again.
    check(
        &["4 cpu"],
        &tree,
        &["b, 0, 4 of 1 cpu, restartable"],
        &["a, 0, 9 of 1 cpu"],
        "lease-1 x2 until 1500; lease-1 x2 evicted; node-1 x2",
    );
    check(&["4 cpu"], &tree, &["b, 0, 4 of 1 cpu"], &["a, 0, 9 of 1 cpu"], "lease-1 x2 when done");
    // Not what is guaranteed to others.
    let both = ["a; guaranteed 2 cpu", "b; guaranteed 3 cpu"];
    check(
        &["4 cpu"],
        &both,
        &["b, 0, 4 of 1 cpu, restartable"],
        &["a, 0, 9 of 1 cpu"],
        "lease-1 x1 until 1500; lease-1 x1 evicted; node-1 x1",
    );
    // Only for what needs what is guaranteed, and only of those who have more of that.
    let gpus = ["a; guaranteed 2 gpu", "b"];
    check(&["4 cpu 2 gpu"], &gpus, &["b, 0, 4 of 1 cpu"], &["a, 0, 9 of 1 cpu"], "");
    check(
        &["4 cpu 2 gpu"],
        &gpus,
        &["b, 0, 2 of 1 gpu, restartable"],
        &["a, 0, 1 of 1 gpu"],
        "lease-2 x1 until 1500; lease-2 x1 evicted; ended lease-2; node-1 GPU 1:1",
    );
    check(
        &["4 cpu 2 gpu"],
        &["a; guaranteed 4 cpu", "b; guaranteed 2 gpu"],
        &["b, 0, 2 of 1 cpu 1 gpu, restartable", "b, 0, 2 of 1 cpu"],
        &["a, 0, 9 of 1 cpu"],
        "lease-3 x2 when done",
    );
    // A fair share, of what can be run again; priority is nothing between queues.
    let equal = ["a", "b"];
    check(
        &["4 cpu"],
        &equal,
        &["b, 9, 4 of 1 cpu, restartable"],
        &["a, 0, 9 of 1 cpu"],
        "lease-1 x2 until 1500; lease-1 x2 evicted; node-1 x2",
    );
    check(&["4 cpu"], &equal, &["b, 0, 4 of 1 cpu"], &["a, 9, 9 of 1 cpu"], "");
    // Between the queues where their ways to the top part.
    check(
        &["4 cpu"],
        &["a; guaranteed 2 cpu", "a1; parent a", "b", "b1; parent b", "b2; parent b"],
        &["b1, 0, 3 of 1 cpu, restartable", "b2, 0, 1 of 1 cpu, restartable"],
        &["a1, 0, 9 of 1 cpu"],
        "lease-2 x1 until 1500; lease-1 x1 until 1500; lease-1 x1 evicted; lease-2 x1 evicted; ended lease-2; node-1 x2",
    );
}

#[test]
fn what_is_guaranteed_below_is_nobody_elses() {
    // In no queue on the way, whoever could be run again there.
    let tree = [
        "a; guaranteed 4 cpu",
        "p; guaranteed 8 cpu",
        "c; parent p; guaranteed 4 cpu",
        "d; parent p; guaranteed 4 cpu",
    ];
    check(
        &["12 cpu"],
        &tree,
        &["c, 0, 4 of 1 cpu, restartable", "d, 0, 8 of 1 cpu"],
        &["a, 0, 4 of 1 cpu"],
        "lease-2 x4 when done",
    );
    // A queue that only groups others has what they are guaranteed.
    let tree = ["a; weight 9", "p", "b; parent p; guaranteed 2 cpu"];
    check(
        &["4 cpu"],
        &tree,
        &["a, 0, 4 of 1 cpu, restartable"],
        &["b, 0, 9 of 1 cpu"],
        "lease-1 x2 until 1500; lease-1 x2 evicted; node-1 x2",
    );
}

#[test]
fn at_a_limit_room_is_made_below_it() {
    let tree = ["p; limit 8 cpu", "b; parent p", "c; parent p; guaranteed 2 cpu", "d"];
    // By priority, though the node has room.
    check(
        &["12 cpu"],
        &tree,
        &["d, 0, 1 of 1 cpu, restartable", "b, 0, 8 of 1 cpu, restartable"],
        &["b, 10, 1 of 1 cpu"],
        "lease-2 x1 until 1500; lease-2 x1 evicted; node-1 x1",
    );
    // What is guaranteed below the limit.
    check(&["12 cpu"], &tree, &["b, 0, 8 of 1 cpu"], &["c, 0, 4 of 1 cpu"], "lease-1 x2 when done");
    // By share, not more than that.
    check(
        &["12 cpu"],
        &["p; limit 8 cpu", "b; parent p", "c; parent p"],
        &["b, 0, 8 of 1 cpu, restartable"],
        &["c, 0, 9 of 1 cpu"],
        "lease-1 x4 until 1500; lease-1 x4 evicted; node-1 x4",
    );
    // Not where that does not help with the limit.
    check(
        &["9 cpu 2 gpu"],
        &["b; limit 8 cpu"],
        &["b, 0, 1 of 1 gpu, restartable", "b, 0, 8 of 1 cpu"],
        &["b, 1, 1 of 1 cpu 1 gpu"],
        "lease-2 x1 when done",
    );
}

#[test]
fn at_a_limit_only_what_it_is_of_is_taken() {
    // The limit of GPUs is far; whatever has some is of no help.
    check(
        &["12 cpu 4 gpu"],
        &["b; limit 8 cpu 99 gpu"],
        &["b, 0, 1 of 1 gpu, restartable", "b, 0, 8 of 1 cpu, restartable"],
        &["b, 1, 1 of 1 cpu 1 gpu"],
        "lease-2 x1 until 1500; lease-2 x1 evicted; node-1 GPU 1:1",
    );
    // What waits uses nothing of a limit of CPU, and its end leaves no more of it.
    let preempt = Preempt { churn: 1000, ..Preempt::default() };
    let mut world = World::with(Options { preempt, ..Options::default() }, &["8 cpu 1 gpu", "8 cpu"]);
    queues(&mut world, &["b; limit 2 cpu"]);
    world.ask_as(1, host(10), 1, &work("b, 0, 1 of 1 cpu 1 gpu").0, 1, &[]);
    world.step(Event::Block { lease: LeaseId { number: 1 }, slots: 1 });
    world.ask_as(2, host(10), 2, &work("b, 0, 2 of 1 cpu, restartable").0, 2, &[]);
    world.ask_as(3, host(20), 1, &work("b, 1, 1 of 1 gpu").0, 1, &[]);
    assert_eq!(later(&mut world, 1000), "lease-1 x1 when done");
    world.ask_as(4, host(21), 1, &work("b, 1, 1 of 1 cpu").0, 1, &[]);
    assert_eq!(later(&mut world, 2000), "lease-2 x1 until 2500; lease-2 x1 evicted; node-2 x1");
}

#[test]
fn what_waits_makes_room_with_what_it_holds_still() {
    let preempt = Preempt { churn: 1000, ..Preempt::default() };
    let mut world = World::with(Options { preempt, ..Options::default() }, &["2 cpu 1 gpu"]);
    world.ask_as(1, host(10), 1, &work(", 0, 1 of 1 cpu 1 gpu, restartable").0, 1, &[]);
    world.step(Event::Block { lease: LeaseId { number: 1 }, slots: 1 });
    world.ask_as(2, host(20), 1, &work(", 1, 1 of 1 gpu").0, 1, &[]);
    assert_eq!(
        later(&mut world, 2000),
        "lease-1 x1 until 1500; lease-1 x1 evicted; ended lease-1; node-1 GPU 0:1"
    );
    // But it has given its CPU back.
    let mut world = World::with(Options { preempt, ..Options::default() }, &["2 cpu"]);
    world.ask_as(1, host(10), 1, &work(", 0, 2 of 1 cpu, restartable").0, 2, &[]);
    world.step(Event::Block { lease: LeaseId { number: 1 }, slots: 1 });
    world.ask_as(2, host(20), 1, &work(", 1, 2 of 1 cpu").0, 2, &[]);
    assert_eq!(later(&mut world, 2000), "lease-1 x1 until 1500; lease-1 x1 evicted; node-1 x1");
    assert_eq!(world.scheduler.lease(LeaseId { number: 1 }).unwrap().blocked, 1);
}

#[test]
fn of_processes_just_those_are_taken_that_must_be() {
    let alone = |text: &str| Class { isolation: Isolation::Process, ..work(text).0 };
    let preempt = Preempt { churn: 1000, ..Preempt::default() };
    let mut world = World::with(Options { preempt, ..Options::default() }, &["4 cpu"]);
    world.ask_as(1, host(10), 1, &alone(", 0, 4 of 1 cpu, restartable"), 4, &[]);
    world.ask_as(2, host(20), 1, &work(", 1, 1 of 1 cpu").0, 1, &[]);
    assert_eq!(
        later(&mut world, 2000),
        "lease-4 x1 until 1500; lease-4 x1 evicted; ended lease-4; node-1 x1"
    );
}

#[test]
fn room_is_kept_for_whom_it_is_made() {
    let preempt = Preempt { churn: 1000, ..Preempt::default() };
    let mut world = World::with(Options { preempt, ..Options::default() }, &["4 cpu"]);
    let (small, small_slots) = work(", 0, 4 of 1 cpu");
    let (large, _) = work(", 1, 1 of 4 cpu");
    world.ask_as(1, host(10), 1, &small, small_slots, &[]);
    world.ask_as(1, host(10), 2, &small, 9, &[]);
    world.ask_as(2, host(20), 1, &large, 1, &[]);
    assert_eq!(later(&mut world, 600), "lease-1 x4 when done");
    // They end one after the other; what is free meanwhile is nobody else's.
    let shrink = |world: &mut World| world.step(Event::Shrink { lease: LeaseId { number: 1 }, slots: 1 });
    for _ in 0..3 {
        assert_eq!(said(&shrink(&mut world)), "");
    }
    assert_eq!(said(&shrink(&mut world)), "ended lease-1; node-1 x1");
    // Then it is anybody's.
    assert_eq!(said(&world.release(2)), "ended lease-2; node-1 x4");
}

#[test]
fn something_large_does_not_wait_behind_small_things_for_ever() {
    let run = |reserve: Millis, grouped: bool| {
        let preempt = Preempt { reserve, ..Preempt::default() };
        let node = if grouped { "4 cpu" } else { "2 cpu" };
        let mut world = World::with(Options { preempt, ..Options::default() }, &[node, node]);
        if grouped {
            // What is inside of a group holds nothing that would be anybody else's.
            ask_group(&mut world, 1, &group(&["2 cpu", "2 cpu"], 0, false));
            let strategy = Strategy::Group { group: GroupId { number: 1 }, bundle: None };
            world.ask_as(1, host(9), 1, &Class { strategy, ..class("2 cpu") }, 2, &[]);
        }
        let (small, large) = (class("1 cpu"), class("2 cpu"));
        for key in 0..4 {
            world.ask(host(10), key, &small, 1);
        }
        world.ask_as(2, host(20), 0, &large, 1, &[]);
        // Each second one ends, and another one asks.
        for second in 1..60 {
            later(&mut world, 1000);
            world.ask(host(10), 10 + second, &small, 1);
            let oldest = world.scheduler.leases().find(|view| view.lease.bundle.is_none()).unwrap().lease.id;
            let effects = world.step(Event::Release { lease: oldest });
            if effects.iter().any(|e| matches!(e, Effect::Grant(lease) if lease.job.number == 2)) {
                return second;
            }
        }
        60
    };
    assert_eq!(run(Millis(u64::MAX), false), 60, "never");
    for grouped in [false, true] {
        let began = run(Millis(10_000), grouped);
        assert!((10..15).contains(&began), "within what runs on one node, once a node is kept: {began}");
    }
}

#[test]
fn what_is_due_before_something_large_does_not_wait_for_it() {
    // At these nodes full of small things something large has waited until a node was kept for it.
    let kept = |nodes: &[&str], small: &str, since: u64| {
        let mut world = World::new(nodes);
        let (class, slots) = work(small);
        world.ask_as(1, host(10), 1, &class, slots, &[]);
        world.ask_as(2, host(20), 1, &work(", 0, 1 of 4 cpu").0, 1, &[]);
        assert_eq!(later(&mut world, since), "");
        world
    };
    let small = ", 0, 8 of 1 cpu, restartable";
    // Room is made for what matters more, on that node as on any other, whether or not it needs as much.
    for since in [11_000, 31_000] {
        for (wants, told) in
            [(", 10, 1 of 1 cpu", "lease-1 x1 until"), (", 10, 1 of 4 cpu", "lease-1 x4 until")]
        {
            let mut world = kept(&["8 cpu"], small, since);
            world.ask_as(3, host(30), 1, &work(wants).0, 1, &[]);
            let said = later(&mut world, 1000);
            assert!(said.starts_with(told), "{wants} after {since}: {said}");
            let said = later(&mut world, 2000);
            assert!(said.contains("node-1 x1"), "{wants} after {since}: {said}");
        }
        let mut world = kept(&["8 cpu", "8 cpu"], ", 0, 16 of 1 cpu, restartable", since);
        world.ask_as(3, host(30), 1, &work(", 10, 1 of 4 cpu").0, 1, &[]);
        let said = later(&mut world, 1000);
        assert!(said.contains(" x4 until"), "after {since}: {said}");
        let mut world = kept(&["8 cpu"], small, since);
        ask_group(&mut world, 1, &group(&["1 cpu", "1 cpu"], 10, false));
        let said = later(&mut world, 1000);
        assert!(said.starts_with("lease-1 x2 until"), "after {since}: {said}");
        // It gets what is free there already; what comes after it does not.
        for (wants, got) in [(", 10, 1 of 1 cpu", "node-1 x1"), (", 0, 1 of 1 cpu", "")] {
            let mut world = kept(&["8 cpu"], ", 20, 8 of 1 cpu", since);
            world.step(Event::Shrink { lease: LeaseId { number: 1 }, slots: 1 });
            world.ask_as(3, host(30), 1, &work(wants).0, 1, &[]);
            assert_eq!(later(&mut world, 1000), got, "{wants} after {since}");
        }
        let mut world = kept(&["8 cpu"], ", 20, 8 of 1 cpu", since);
        world.step(Event::Shrink { lease: LeaseId { number: 1 }, slots: 2 });
        ask_group(&mut world, 1, &group(&["1 cpu", "1 cpu"], 10, false));
        assert_eq!(later(&mut world, 1000), "group-1 0:node-1+1:node-1", "after {since}");
    }
    // The same for what is guaranteed to another queue; but not where nothing is.
    for (wants, got) in [("a, 0, 1 of 1 cpu", "node-1 x1"), ("b, 0, 1 of 1 cpu", "")] {
        let mut world = kept(&["8 cpu"], ", 0, 8 of 1 cpu", 0);
        queues(&mut world, &["a; guaranteed 1 cpu", "b"]);
        later(&mut world, 11_000);
        world.step(Event::Shrink { lease: LeaseId { number: 1 }, slots: 1 });
        world.ask_as(3, host(30), 1, &work(wants).0, 1, &[]);
        assert_eq!(later(&mut world, 1000), got, "{wants}");
    }
}

#[test]
fn for_equal_ones_room_is_made_at_once() {
    // 20 groups, or owners, that want the same, where others hold everything. How many slots others are told to give up
    // and how many of the 20 got what they want, when what was to be given up ends, the last node first.
    let run = |groups: bool, restartable: bool| {
        let preempt = Preempt { churn: 500, ..Preempt::default() };
        let options = Options { preempt, term: Millis(1_000_000), ..Options::default() };
        let mut world = World::with(options, &["4 cpu"; 40]);
        let low = Class { restartable, ..work(", 0, 1 of 1 cpu").0 };
        world.ask_as(1, host(50), 1, &low, 160, &[]);
        for number in 1..=20 {
            if groups {
                let spec = Group { arrange: Arrange::StrictSpread, ..group(&["1 cpu", "1 cpu"], 10, false) };
                ask_group(&mut world, number, &spec);
            } else {
                let class = work(", 10, 1 of 1 cpu").0;
                world.ask_as(2, host(60 + number as u32), 1, &class, 1, &[]);
            }
        }
        let (mut told, mut got) = (BTreeMap::new(), 0);
        let mut note = |effects: Vec<Effect>, told: &mut BTreeMap<LeaseId, u32>| {
            for effect in effects {
                match effect {
                    Effect::Revoke { lease, slots, kind: RevokeKind::Preempted { .. }, .. } => {
                        *told.entry(lease).or_insert(0) += slots;
                    }
                    Effect::GroupPlaced { .. } => got += 1,
                    Effect::Grant(lease) if lease.priority == 10 => got += 1,
                    _ => {}
                }
            }
            got
        };
        for _ in 0..60 {
            let effects = world.tick(50);
            note(effects, &mut told);
        }
        let first = told.values().sum::<u32>();
        for (lease, slots) in told.clone().into_iter().rev().filter(|_| !restartable) {
            let effects = world.step(Event::Shrink { lease, slots });
            note(effects, &mut told);
            for _ in 0..2 {
                let effects = world.tick(50);
                note(effects, &mut told);
            }
        }
        let got = note(Vec::new(), &mut told);
        (first, told.values().sum::<u32>(), got)
    };
    for restartable in [true, false] {
        assert_eq!(run(true, restartable), (40, 40, 20));
        assert_eq!(run(false, restartable), (20, 20, 20));
    }
}

#[test]
fn only_so_much_is_taken_in_a_second() {
    let preempt = Preempt { churn: 250, ..Preempt::default() };
    let mut world = World::with(Options { preempt, ..Options::default() }, &["8 cpu"]);
    let (low, _) = work(", 0, 8 of 1 cpu, restartable");
    let (high, _) = work(", 1, 8 of 1 cpu");
    world.ask_as(1, host(10), 1, &low, 8, &[]);
    world.ask_as(2, host(20), 1, &high, 8, &[]);
    let mut taken = Vec::new();
    for _ in 0..5 {
        let said = later(&mut world, 1000);
        taken.push(
            said.split("; ").filter(|text| text.contains("until")).map(str::to_owned).collect::<Vec<_>>(),
        );
    }
    let first: Vec<&str> = taken.iter().flatten().map(String::as_str).collect();
    assert!(first.iter().all(|text| text.contains(" x2 ")), "{first:?}: two of eight are a quarter");
    assert!(taken.iter().all(|second| second.len() <= 1), "{taken:?}");
    assert_eq!(first.len(), 4, "{first:?}");
}

fn group(bundles: &[&str], priority: i32, restartable: bool) -> Group {
    let bundles = bundles.iter().map(|text| resources(text)).collect();
    Group { bundles, arrange: Arrange::Spread, priority, restartable, ..Group::default() }
}

fn ask_group(world: &mut World, number: u64, spec: &Group) -> String {
    let (group, job) = (GroupId { number }, JobId { number });
    said(&world.step(Event::Group { group, job, spec: Arc::new(spec.clone()) }))
}

#[test]
fn a_group_is_given_up_as_a_whole() {
    let mut world = World::new(&["2 cpu", "2 cpu"]);
    assert_eq!(ask_group(&mut world, 1, &group(&["2 cpu", "2 cpu"], 0, true)), "group-1 0:node-1+1:node-2");
    let inside = Class {
        strategy: Strategy::Group { group: GroupId { number: 1 }, bundle: Some(1) },
        ..class("1 cpu")
    };
    world.ask_as(1, host(10), 1, &inside, 1, &[]);
    world.ask_as(2, host(20), 1, &work(", 1, 1 of 1 cpu").0, 1, &[]);
    // It waits again, behind what took its place, and what was free of it meanwhile went to nobody.
    assert_eq!(
        later(&mut world, 2000),
        "group-1 revoked; lease-1 x1 until 1500; lease-1 x1 evicted; ended lease-1; group-1 lost [0, 1]; node-1 x1"
    );
    assert_eq!(said(&world.release(2)), "ended lease-2; group-1 0:node-1+1:node-2");
    // One that cannot be run again stays.
    let mut world = World::new(&["2 cpu"]);
    ask_group(&mut world, 1, &group(&["2 cpu"], 0, false));
    world.ask_as(2, host(20), 1, &work(", 1, 1 of 1 cpu").0, 1, &[]);
    assert_eq!(later(&mut world, 2000), "");
}

#[test]
fn a_group_takes_what_all_of_it_needs_or_nothing() {
    let mut world = World::new(&["2 cpu", "2 cpu"]);
    world.ask_as(1, host(10), 1, &work(", 0, 1 of 2 cpu, restartable").0, 1, &[]);
    world.ask_as(2, host(10), 2, &work(", 0, 2 of 1 cpu, restartable").0, 2, &[]);
    assert_eq!(ask_group(&mut world, 1, &group(&["2 cpu", "2 cpu"], 1, false)), "");
    assert_eq!(
        later(&mut world, 2000),
        "lease-1 x1 until 1500; lease-2 x2 until 1500; lease-1 x1 evicted; ended lease-1; \
         lease-2 x2 evicted; ended lease-2; group-1 0:node-1+1:node-2"
    );
    // One of both places is of something that matters as much: then nobody is told.
    let mut world = World::new(&["2 cpu", "2 cpu"]);
    world.ask_as(1, host(10), 1, &work(", 0, 1 of 2 cpu, restartable").0, 1, &[]);
    world.ask_as(2, host(10), 2, &work(", 1, 1 of 2 cpu, restartable").0, 1, &[]);
    ask_group(&mut world, 1, &group(&["2 cpu", "2 cpu"], 1, false));
    assert_eq!(later(&mut world, 2000), "");
}

#[test]
fn what_one_group_gives_up_counts_once() {
    // By share: of two groups of another queue that holds all, one is enough.
    let mut world = World::new(&["1 cpu"; 8]);
    queues(&mut world, &["a", "b"]);
    let four = |queue: &str| Group { queue: queue.to_owned(), ..group(&["1 cpu"; 4], 0, true) };
    for number in 1..3 {
        assert!(ask_group(&mut world, number, &four("b")).starts_with(&format!("group-{number} 0:")));
    }
    assert_eq!(ask_group(&mut world, 3, &four("a")), "");
    let said = later(&mut world, 2000);
    assert_eq!(said.matches("revoked").count(), 1, "{said}");
    assert!(said.contains("group-3 0:"), "{said}");
    // At a limit: that all of it goes would not be enough.
    let mut world = World::new(&["12 cpu"]);
    queues(&mut world, &["b; limit 8 cpu"]);
    ask_group(&mut world, 1, &Group { queue: "b".to_owned(), ..group(&["2 cpu"; 2], 0, true) });
    world.ask_as(2, host(10), 1, &work("b, 1, 4 of 1 cpu").0, 4, &[]);
    world.ask_as(3, host(20), 1, &work("b, 1, 1 of 6 cpu").0, 1, &[]);
    assert_eq!(later(&mut world, 2000), "");
    world.ask_as(3, host(20), 1, &work("b, 1, 1 of 4 cpu").0, 1, &[]);
    assert_eq!(later(&mut world, 2000), "group-1 revoked; group-1 lost [0, 1]; node-1 x1");
}

#[test]
fn what_was_spared_for_one_bundle_is_taken_for_the_next() {
    let mut world = World::new(&["15 cpu"]);
    world.ask_as(1, host(10), 1, &work(", 0, 1 of 8 cpu, restartable").0, 1, &[]);
    world.ask_as(2, host(10), 2, &work(", 0, 1 of 7 cpu, restartable").0, 1, &[]);
    ask_group(&mut world, 1, &group(&["8 cpu", "7 cpu"], 1, false));
    let said = later(&mut world, 2000);
    assert!(said.ends_with("group-1 0:node-1+1:node-1"), "{said}");
}

#[test]
fn queues_with_the_same_share_take_nothing_from_each_other() {
    // Both use half of the GPUs: that decides, however many of the CPUs they have.
    let mut world = World::new(&["10 cpu 2 gpu"]);
    queues(&mut world, &["a", "b", "c"]);
    world.ask_as(1, host(10), 1, &work("c, 0, 4 of 1 cpu").0, 4, &[]);
    for (job, queue) in (2..).zip(["a", "b"]) {
        world.ask_as(job, host(10), 10 * job as u32, &work(&format!("{queue}, 0, 1 of 1 gpu")).0, 1, &[]);
        let small = work(&format!("{queue}, 0, 3 of 1 cpu, restartable")).0;
        assert_eq!(show(&world.ask_as(job, host(10), job as u32, &small, 3, &[])), "node-1 x3");
    }
    for (job, queue) in (2..).zip(["a", "b"]) {
        let small = work(&format!("{queue}, 0, 3 of 1 cpu, restartable")).0;
        world.ask_as(job, host(10), job as u32, &small, 9, &[]);
    }
    assert_eq!(later(&mut world, 60_000), "");
}

#[test]
fn what_is_set_aside_of_a_limit_is_for_those_before_as_well() {
    let shrink = |world: &mut World, slots: u32| {
        said(&world.step(Event::Shrink { lease: LeaseId { number: 1 }, slots }))
    };
    // Something large has a part of a limit set aside.
    let mut world = World::new(&["99 cpu"]);
    queues(&mut world, &["b; limit 8 cpu"]);
    world.ask_as(1, host(10), 1, &work("b, 0, 8 of 1 cpu").0, 8, &[]);
    world.ask_as(2, host(20), 1, &work("b, 0, 1 of 6 cpu").0, 1, &[]);
    assert_eq!(later(&mut world, 31_000), "");
    // What matters more needs one slot to go, and gets it.
    world.ask_as(3, host(30), 1, &work("b, 10, 1 of 1 cpu").0, 1, &[]);
    assert_eq!(later(&mut world, 1000), "lease-1 x1 when done");
    assert_eq!(shrink(&mut world, 1), "node-1 x1");
    // Then it is set aside again.
    later(&mut world, 2000);
    world.ask_as(1, host(10), 2, &work("b, 0, 9 of 1 cpu").0, 9, &[]);
    assert_eq!(shrink(&mut world, 5), "");
    assert_eq!(shrink(&mut world, 1), "node-1 x1");
    assert!(world.scheduler.leases().any(|view| view.lease.owner == host(20)));
    // The same where it is guaranteed to another queue below the limit; but not where nothing is.
    let tree = ["p; limit 8 cpu", "b; parent p", "c; parent p; guaranteed 2 cpu", "d; parent p"];
    let mut world = World::new(&["99 cpu"]);
    queues(&mut world, &tree);
    world.ask_as(1, host(10), 1, &work("b, 0, 8 of 1 cpu").0, 8, &[]);
    world.ask_as(2, host(20), 1, &work("b, 0, 1 of 6 cpu").0, 1, &[]);
    assert_eq!(later(&mut world, 31_000), "");
    world.ask_as(3, host(30), 1, &work("d, 10, 1 of 1 cpu").0, 1, &[]);
    assert_eq!(later(&mut world, 1000), "");
    assert_eq!(shrink(&mut world, 1), "");
    world.ask_as(4, host(40), 1, &work("c, 0, 1 of 1 cpu").0, 1, &[]);
    assert_eq!(later(&mut world, 1000), "node-1 x1");
    assert!(world.scheduler.leases().any(|view| view.lease.owner == host(40)));
}

#[test]
fn nodes_kept_for_a_group_are_so_together() {
    let mut world = World::new(&["2 cpu", "2 cpu"]);
    world.ask_as(1, host(10), 1, &class("1 cpu"), 9, &[]);
    let spec = Group { arrange: Arrange::StrictSpread, ..group(&["2 cpu", "2 cpu"], 0, false) };
    ask_group(&mut world, 1, &spec);
    later(&mut world, 31_000);
    let lease = world.scheduler.leases().find(|view| view.lease.node == node(1)).unwrap().lease.id;
    assert_eq!(said(&world.step(Event::Shrink { lease, slots: 1 })), "", "it is kept");
    assert_eq!(
        said(&world.step(Event::NodeDrain { node: node(2) })),
        "node-1 x1",
        "without the other it is not"
    );
}

#[test]
fn room_is_made_for_a_group_however_many_nodes_it_needs() {
    let strict = |count: usize, arrange: Arrange, place: &str, priority: i32| Group {
        arrange,
        place: place.to_owned(),
        ..group(&vec!["1 cpu"; count], priority, false)
    };
    // Most of many nodes at once.
    let mut world = World::new(&["1 cpu"; 100]);
    world.ask_as(1, host(200), 1, &work(", 0, 1 of 1 cpu, restartable").0, 100, &[]);
    ask_group(&mut world, 1, &strict(80, Arrange::StrictSpread, "", 1));
    let said = later(&mut world, 2000);
    assert!(said.contains("group-1 0:"), "{said}");
    assert_eq!(world.scheduler.leases().count(), 20, "no more than it needs had to go");
    // All of one place, whose nodes lie among many others.
    let nodes: Vec<String> = (0..300).map(|number| format!("1 cpu|rack=r{}", number % 20)).collect();
    let mut world = World::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
    world.ask_as(1, host(400), 1, &work(", 0, 1 of 1 cpu, restartable").0, 300, &[]);
    ask_group(&mut world, 1, &strict(15, Arrange::StrictPack, "rack", 1));
    let said = later(&mut world, 2000);
    assert!(said.contains("group-1 0:"), "{said}");
    // The same for one that may take from nobody, and waits behind small things: nodes are kept for it.
    let options = Options { term: Millis(1_000_000), ..Options::default() };
    let mut world = World::with(options, &["1 cpu"; 100]);
    world.ask_as(1, host(200), 1, &class("1 cpu"), 999, &[]);
    ask_group(&mut world, 1, &strict(80, Arrange::StrictSpread, "", 0));
    world.tick(31_000);
    let before: Vec<LeaseId> = world.scheduler.leases().map(|view| view.lease.id).collect();
    let all: Vec<Effect> =
        before.into_iter().flat_map(|lease| world.step(Event::Release { lease })).collect();
    assert!(all.iter().any(|effect| matches!(effect, Effect::GroupPlaced { .. })), "{}", show(&all));
}

#[test]
fn what_matters_most_is_looked_at_soon_among_very_many() {
    let mut world = World::new(&["4 cpu", "4 cpu"]);
    world.ask_as(1, host(10), 1, &work(", 0, 1 of 1 cpu, restartable").0, 8, &[]);
    let waits = Arc::new(class("2 cpu"));
    let urgent = Arc::new(Class { priority: 10, ..class("2 cpu") });
    let each = (0..20).flat_map(|owner| (0..100).map(move |key| (20 + owner, key)));
    for (owner, key, class) in each.map(|(o, k)| (o, k, &waits)).chain([(90, 0, &urgent)]) {
        let (owner, job, class) = (host(owner), JobId { number: 2 }, Arc::clone(class));
        let event = Event::Demand { owner, key, job, class, backlog: 1, attempt: 0, locality: Vec::new() };
        world.scheduler.step(event, world.now);
    }
    let told = later(&mut world, 1500);
    assert!(told.contains("lease-1 x2 until") || told.contains("lease-2 x2 until"), "{told}");
    // The same with groups.
    let mut world = World::new(&["4 cpu", "4 cpu"]);
    world.ask_as(1, host(10), 1, &work(", 0, 1 of 1 cpu, restartable").0, 8, &[]);
    for number in 1..=1000 {
        let spec = group(&["2 cpu", "2 cpu"], if number == 1000 { 10 } else { 0 }, false);
        let (group, job) = (GroupId { number }, JobId { number });
        world.scheduler.step(Event::Group { group, job, spec: Arc::new(spec) }, world.now);
    }
    let told = later(&mut world, 1500);
    assert!(told.contains("until"), "{told}");
}

#[test]
fn one_look_goes_through_no_more_leases_than_it_may_and_the_next_ones_through_the_others() {
    let term = Millis(1_000_000);
    let mut scheduler = Scheduler::new(Options { term, ..Options::default() });
    let mut step = |event, now| {
        let effects = scheduler.step(event, Millis(now));
        (effects, scheduler.looked())
    };
    for number in 1..=100 {
        let (node, total) = (node(number), resources("128 cpu"));
        step(Event::NodeUp { node, total, devices: Vec::new(), labels: Vec::new() }, 0);
    }
    let wish = |owner, key, class: Class, backlog| Event::Demand {
        owner,
        key,
        job: JobId { number: 1 },
        class: Arc::new(class),
        backlog,
        attempt: 0,
        locality: Vec::new(),
    };
    // Each slot is a lease. Only those of the last node may be taken.
    let full = |class| Class { isolation: Isolation::Process, ..class };
    step(wish(host(200), 0, full(Class { restartable: true, ..on(100, false, "1 cpu") }), 128), 0);
    step(wish(host(200), 1, full(Class { priority: 5, ..class("1 cpu") }), 99 * 128), 0);
    for key in 0..40 {
        step(wish(host(201), key, Class { priority: 1, ..class(&format!("{} cpu", key + 1)) }, 1), 0);
    }
    // In one look there are 32 that wait, and nodes that each has begun with are looked through.
    let (most, mut first) = (65_536 + 2 * 32 * 128, None);
    for now in (500..3000).step_by(50) {
        let (effects, looked) = step(Event::Tick, now);
        assert!(looked <= most, "{looked}");
        assert!(now > 500 || looked > most / 3, "{looked}");
        let taken = |e: &Effect| matches!(e, Effect::Revoke { node, kind: RevokeKind::Preempted { .. }, .. } if node.number == 100);
        first = first.or(effects.iter().any(taken).then_some(now));
    }
    assert!(first.is_some_and(|first| first <= 1500), "{first:?}");
}
