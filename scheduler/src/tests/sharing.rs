//! Queues: who gets how much.

use mobula_proto::Queue;

use super::*;
use crate::autoscale::{self, NodeType};

/// `"name; parent a; weight 2; guaranteed 4 cpu; limit 8 cpu"`.
pub(super) fn queue(text: &str) -> Queue {
    let mut parts = text.split(';').map(str::trim);
    let mut queue = Queue::new(parts.next().unwrap());
    for part in parts {
        let (what, value) = part.split_once(' ').unwrap();
        match what {
            "parent" => queue.parent = value.to_owned(),
            "weight" => queue.weight = amount(value),
            "guaranteed" => queue.guaranteed = resources(value),
            "limit" => {
                let words: Vec<&str> = value.split_whitespace().collect();
                let pairs = words.chunks(2).map(|pair| (Kind::parse(pair[1]).unwrap(), amount(pair[0])));
                queue.limit = pairs.collect();
            }
            _ => panic!("{what}"),
        }
    }
    queue
}

fn queues(world: &mut World, list: &[&str]) -> Vec<Effect> {
    world.step(Event::Queues(list.iter().map(|text| queue(text)).collect()))
}

fn of(queue: &str, text: &str) -> Class {
    Class { queue: queue.to_owned(), ..class(text) }
}

/// How many slots each queue was granted, by name.
fn granted(effects: &[Effect]) -> String {
    let mut sums = std::collections::BTreeMap::new();
    for effect in effects {
        if let Effect::Grant(lease) = effect {
            *sums.entry(lease.class.queue.clone()).or_insert(0) += lease.slots;
        }
    }
    let texts: Vec<_> = sums.iter().map(|(queue, slots)| format!("{queue} {slots}")).collect();
    texts.join(", ")
}

/// A node is full; queues ask, each as a job of its own, for much of a class; the node is freed at once. Who gets how
/// many slots?
#[track_caller]
fn check(node: &str, list: &[&str], asks: &[(&str, &str, u32)], want: &str) {
    let mut world = World::new(&[node]);
    queues(&mut world, list);
    world.ask_as(99, host(50), 0, &class(node), 1, &[]);
    for (job, (queue, each, backlog)) in (1..).zip(asks) {
        world.ask_as(job, host(10), job as u32, &of(queue, each), *backlog, &[]);
    }
    assert_eq!(granted(&world.release(1)), want);
}

#[test]
fn weights_share_what_all_want() {
    let one = "1 cpu";
    check("12 cpu", &["a", "b"], &[("a", one, 99), ("b", one, 99)], "a 6, b 6");
    check("12 cpu", &["a", "b; weight 2"], &[("a", one, 99), ("b", one, 99)], "a 4, b 8");
    // A flood of many jobs is no more than one.
    check(
        "12 cpu",
        &["a", "b"],
        &[("a", one, 99), ("a", one, 99), ("a", one, 99), ("b", one, 99)],
        "a 6, b 6",
    );
    // What one does not use the others get.
    check("12 cpu", &["a", "b; weight 9"], &[("a", one, 99), ("b", one, 2)], "a 10, b 2");
    // The default queue is one like the others.
    check("12 cpu", &["a"], &[("a", one, 99), ("", one, 99)], " 6, a 6");
}

#[test]
fn the_dominant_resource_counts() {
    // As in the paper that named it: 9 CPU and 18 GB; one wants 1 CPU and 4 GB each, the other 3 CPU and 1 GB.
    check(
        "9 cpu 18 memory",
        &["a", "b"],
        &[("a", "1 cpu 4 memory", 99), ("b", "3 cpu 1 memory", 99)],
        "a 3, b 2",
    );
}

#[test]
fn children_share_what_their_parent_gets() {
    let one = "1 cpu";
    let tree = ["a", "b", "b1; parent b", "b2; parent b; weight 2"];
    check("12 cpu", &tree, &[("a", one, 99), ("b1", one, 99), ("b2", one, 99)], "a 6, b1 2, b2 4");
    check("12 cpu", &tree, &[("b1", one, 99), ("b2", one, 99)], "b1 4, b2 8");
    // Work of the parent itself is a child's.
    check("12 cpu", &tree, &[("a", one, 99), ("b", one, 99), ("b1", one, 99)], "a 6, b 3, b1 3");
}

#[test]
fn what_is_guaranteed_goes_first() {
    let one = "1 cpu";
    let list = ["a; weight 9", "b; guaranteed 4 cpu"];
    check("6 cpu", &list, &[("a", one, 99), ("b", one, 99)], "a 2, b 4");
    check("6 cpu", &list, &[("a", one, 99), ("b", one, 1)], "a 5, b 1");
    // Of two that are owed, the one that has the smaller part of it.
    let both = ["a; guaranteed 2 cpu", "b; guaranteed 4 cpu"];
    check("3 cpu", &both, &[("a", one, 99), ("b", one, 99)], "a 1, b 2");
    // Of a queue that only groups others, what is guaranteed to those, and to nobody else there.
    let below = ["a; weight 9", "p", "b; parent p; guaranteed 4 cpu", "c; parent p"];
    check("6 cpu", &below, &[("a", one, 99), ("b", one, 99)], "a 2, b 4");
    check("6 cpu", &below, &[("a", one, 99), ("b", one, 99), ("c", one, 99)], "a 2, b 4");
    let below = ["a; weight 2", "p", "b; parent p; guaranteed 4 cpu", "c; parent p"];
    check("6 cpu", &below, &[("a", one, 99), ("c", one, 99)], "a 4, c 2");
    // Where others below a queue use all that is guaranteed to it, still.
    let mut world = World::new(&["9 cpu"]);
    queues(
        &mut world,
        &["a; weight 9", "p; guaranteed 4 cpu", "b; parent p; guaranteed 2 cpu", "c; parent p"],
    );
    assert_eq!(granted(&world.ask_as(1, host(10), 0, &of("c", one), 7, &[])), "c 7");
    world.ask_as(2, host(10), 1, &class("2 cpu"), 1, &[]);
    world.ask_as(3, host(10), 2, &of("a", one), 9, &[]);
    world.ask_as(4, host(10), 3, &of("b", one), 9, &[]);
    assert_eq!(granted(&world.release(2)), "b 2");
}

#[test]
fn what_is_guaranteed_is_so_of_its_kind() {
    let (cpu, gpu, both) = ("1 cpu", "1 gpu", "1 cpu 1 gpu");
    let node = "6 cpu 2 gpu";
    let list = ["a", "b; guaranteed 2 gpu"];
    // Work that needs no GPU is owed nothing, however little of them is in use.
    check(node, &list, &[("a", cpu, 99), ("b", cpu, 99)], "a 3, b 3");
    check(node, &list, &[("a", both, 99), ("b", both, 99)], "b 2");
    check(node, &list, &[("a", both, 99), ("b", cpu, 99), ("b", gpu, 1)], "a 1, b 6");
    // All that is guaranteed of one kind in use, what needs the other is owed still; what needs both is not.
    let list = ["a; weight 99", "b; guaranteed 2 cpu 1 gpu"];
    check(node, &list, &[("a", cpu, 99), ("a", gpu, 99), ("b", cpu, 2), ("b", gpu, 99)], "a 5, b 3");
    let list = ["a; weight 99", "b; guaranteed 1 cpu 2 gpu"];
    check(node, &list, &[("a", both, 99), ("b", cpu, 1), ("b", both, 99)], "a 2, b 1");
    // A parent's guarantee is for what its children need.
    let tree = ["a", "p; guaranteed 2 gpu", "b; parent p", "c; parent p"];
    check(node, &tree, &[("a", both, 99), ("b", cpu, 99), ("c", both, 1)], "a 1, b 4, c 1");
}

#[test]
fn limits_hold_whatever_is_free() {
    let one = "1 cpu";
    check("12 cpu", &["a; limit 5 cpu"], &[("a", one, 99)], "a 5");
    check("12 cpu", &["a; limit 5 cpu"], &[("a", "2 cpu", 99)], "a 2");
    check(
        "12 cpu",
        &["a; limit 5 cpu", "b; parent a", "c; parent a; limit 2 cpu"],
        &[("b", one, 99), ("c", one, 99)],
        "b 3, c 2",
    );
    check("12 cpu", &["a; limit 0 gpu"], &[("a", one, 99)], "a 12");
}

#[test]
fn what_a_limit_held_back_goes_on_when_it_allows_it() {
    let mut world = World::new(&["4 cpu", "4 cpu"]);
    queues(&mut world, &["a; limit 2 cpu", "b"]);
    assert_eq!(show(&world.ask(host(9), 0, &of("a", "1 cpu"), 5)), "node-1 x2");
    // Its own lease shrinks on a node, and the next slot may be on any.
    let lease = LeaseId { number: 1 };
    assert_eq!(show(&world.step(Event::Shrink { lease, slots: 1 })), "node-2 x1");
    // Waiting tasks do not count.
    assert_eq!(show(&world.step(Event::Block { lease, slots: 1 })), "node-1 x1");
    // Others are not held back by it.
    assert_eq!(show(&world.ask(host(9), 1, &of("b", "1 cpu"), 6)), "node-1 x3, node-2 x3");
    // What resumes may go beyond it; until that is paid off, nothing is granted.
    assert_eq!(show(&world.step(Event::Unblock { lease, slots: 1 })), "");
    assert_eq!(show(&world.release(4)), "ended lease-4");
    // A higher limit.
    assert_eq!(show(&queues(&mut world, &["a; limit 4 cpu", "b"])), "node-1 x1");
}

#[test]
fn holders_are_asked_for_what_a_limit_is_of() {
    let mut world = World::new(&["9 cpu", "9 cpu 1 gpu|zone=eu"]);
    queues(&mut world, &["p; limit 4 cpu", "b; parent p", "c; parent p", "d"]);
    let apart = Class { strategy: Strategy::Spread, ..of("b", "1 cpu") };
    world.ask_as(1, host(10), 0, &of("d", "1 cpu"), 1, &[]);
    assert_eq!(granted(&world.ask_as(2, host(10), 1, &apart, 99, &[])), "b 4");
    let said = show(&world.ask_as(3, host(11), 0, &of("c", "1 cpu"), 9, &[]));
    assert_eq!(said, "idle? lease-3, idle? lease-2", "wherever they are, but not others'");
    let shrunk = |world: &mut World, number| {
        granted(&world.step(Event::Shrink { lease: LeaseId { number }, slots: 2 }))
    };
    assert_eq!(shrunk(&mut world, 2), "c 2", "it has the smaller share");
    // In one queue, too: what has waited is asked for, what matters more is not.
    let mut world = World::new(&["9 cpu"]);
    queues(&mut world, &["b; limit 2 cpu"]);
    world.ask_as(1, host(10), 0, &Class { priority: 1, ..of("b", "1 cpu") }, 99, &[]);
    assert_eq!(show(&world.ask_as(2, host(11), 0, &of("b", "1 cpu"), 1, &[])), "");
    let urgent = Class { priority: 2, ..of("b", "1 cpu") };
    assert_eq!(show(&world.ask_as(3, host(12), 0, &urgent, 1, &[])), "idle? lease-1");
    // What needs nothing of what the limit is of is not at it.
    let mut world = World::new(&["9 cpu 1 gpu"]);
    queues(&mut world, &["b; limit 2 cpu"]);
    world.ask_as(1, host(10), 0, &of("b", "1 cpu"), 99, &[]);
    world.ask_as(2, host(10), 1, &class("1 gpu"), 1, &[]);
    assert_eq!(show(&world.ask_as(2, host(11), 0, &of("b", "1 gpu"), 1, &[])), "idle? lease-2");
}

#[test]
fn something_large_gets_its_part_of_a_limit() {
    // In a queue that may use four of many CPUs are always more than four tasks, of which one ends each second. One that needs
    // three would never begin.
    let mut world = World::new(&["99 cpu"]);
    queues(&mut world, &["b; limit 4 cpu"]);
    let (small, large) = (of("b", "1 cpu"), of("b", "3 cpu"));
    for key in 0..4 {
        world.ask_as(1, host(10), key, &small, 1, &[]);
    }
    world.ask_as(2, host(20), 0, &large, 1, &[]);
    for second in 1..100 {
        for _ in 0..20 {
            world.now = world.now.plus(Millis(50));
            let ids: Vec<LeaseId> = world.scheduler.leases().map(|view| view.lease.id).collect();
            ids.into_iter().for_each(|lease| drop(world.step(Event::Renew { lease })));
            world.step(Event::Tick);
        }
        world.ask_as(1, host(10), 10 + second, &small, 1, &[]);
        let oldest = world.scheduler.leases().next().unwrap().lease.id;
        if granted(&world.step(Event::Release { lease: oldest })) == "b 1"
            && world.scheduler.leases().any(|view| view.lease.owner == host(20))
        {
            assert!((30..40).contains(&second), "it began after {second} s");
            return;
        }
    }
    panic!("it never began");
}

#[test]
fn idle_capacity_is_borrowed() {
    let mut world = World::new(&["8 cpu"]);
    queues(&mut world, &["a; guaranteed 4 cpu", "b"]);
    assert_eq!(granted(&world.ask(host(9), 0, &of("b", "1 cpu"), 99)), "b 8");
    // Who it belongs to asks: the holder is asked at once whether it is idle, and what comes back goes to the owner.
    assert_eq!(show(&world.ask(host(8), 0, &of("a", "1 cpu"), 99)), "idle? lease-1");
    let lease = LeaseId { number: 1 };
    assert_eq!(granted(&world.step(Event::Shrink { lease, slots: 5 })), "a 4, b 1");
}

#[test]
fn queues_that_are_not_there_or_too_small_are_refused() {
    let mut world = World::new(&["8 cpu"]);
    queues(&mut world, &["a", "b; limit 2 cpu", "c; parent b"]);
    assert_eq!(
        show(&world.ask(host(9), 0, &of("x", "1 cpu"), 1)),
        "infeasible: queue x is unknown: define it, or leave the queue empty"
    );
    let above = "infeasible: one slot has more CPU than the limit of queue b, which is 2: raise it, or use another queue";
    assert_eq!(show(&world.ask(host(9), 0, &of("b", "3 cpu"), 1)), above);
    assert_eq!(show(&world.ask(host(9), 0, &of("c", "3 cpu"), 1)), above);
    assert_eq!(show(&queues(&mut world, &["a", "a"])), "", "ignored");
    // What waits in a queue that goes is refused; what it holds is the default queue's.
    world.ask(host(9), 1, &of("a", "1 cpu"), 99);
    assert_eq!(
        show(&queues(&mut world, &["b"])),
        "infeasible: queue a is unknown: define it, or leave the queue empty"
    );
    world.ask_as(2, host(9), 2, &of("b", "1 cpu"), 99, &[]);
    world.ask_as(3, host(9), 3, &class("1 cpu"), 99, &[]);
    let lease = LeaseId { number: 1 };
    assert_eq!(granted(&world.step(Event::Shrink { lease, slots: 2 })), "b 2");
}

#[test]
fn nothing_waits_for_ever() {
    let mut world = World::new(&["1 cpu"]);
    let (low, high) = (class("1 cpu"), Class { priority: 2, ..class("1 cpu") });
    world.ask(host(10), 0, &high, 1);
    world.ask(host(10), 1, &low, 1);
    // Somebody always has something that matters more.
    let mut lease = 1;
    for second in 1.. {
        world.now = Millis(second * 1000);
        world.ask(host(20), second as u32, &high, 1);
        world.release(lease);
        lease += 1;
        let holder = world.scheduler.leases().next().unwrap().lease.clone();
        assert_eq!(holder.id.number, lease);
        if holder.priority == 0 {
            // It was two levels behind, and each took the 30 s of ageing.
            assert_eq!(second, 60);
            return;
        }
    }
}

/// Which nodes of four CPUs would be started now, and for how much of what waits there is a queue's word: `1: q 4, q 4`.
fn planned(world: &World) -> String {
    let of = NodeType {
        name: "four".to_owned(),
        resources: resources("4 cpu"),
        labels: Vec::new(),
        min: 0,
        max: 100,
        idle_timeout: Millis(1000),
    };
    let unmet = world.scheduler.unmet();
    let plan = autoscale::plan(&[of], &[], &std::collections::BTreeMap::new(), &unmet, world.now).unwrap();
    let told: Vec<String> = unmet
        .iter()
        .map(|unmet| {
            let queues: Vec<&str> = unmet.limits.iter().map(|limit| limit.queue.as_str()).collect();
            format!("{} {} x {}", queues.join("<"), unmet.count, unmet.resources)
        })
        .collect();
    format!("{}: {}", plan.start.values().sum::<u32>(), told.join(", "))
}

#[test]
fn nodes_are_planned_for_what_a_limit_leaves_to_all_together() {
    let mut world = World::new(&["1 cpu"]);
    queues(&mut world, &["lab; limit 9 cpu", "q; parent lab; limit 8 cpu", "r; parent lab"]);
    world.ask_as(9, host(50), 0, &of("q", "1 cpu"), 1, &[]);
    assert_eq!(planned(&world), "0: ");
    // One shape is counted once, whoever waits for it: the node's CPU is charged already.
    for owner in 1..=3 {
        world.ask_as(owner.into(), host(owner), 0, &of("q", "1 cpu"), 5, &[]);
    }
    assert_eq!(planned(&world), "2: q<lab 7 x 1 CPU");
    // Another shape has no more than the rest; nor have all below the queue above.
    let four = Class { wait_for_node: true, ..of("q", "4 cpu") };
    world.ask_as(4, host(4), 0, &four, 2, &[]);
    assert_eq!(planned(&world), "2: q<lab 7 x 1 CPU, q<lab 1 x 4 CPU");
    world.ask_as(5, host(5), 0, &of("r", "1 cpu"), 100, &[]);
    assert_eq!(planned(&world), "2: lab 8 x 1 CPU, q<lab 7 x 1 CPU, q<lab 1 x 4 CPU");
    // Other queues are none of theirs.
    world.ask_as(6, host(6), 0, &of("", "1 cpu"), 4, &[]);
    assert_eq!(planned(&world), "3:  4 x 1 CPU, lab 8 x 1 CPU, q<lab 7 x 1 CPU, q<lab 1 x 4 CPU");
}
