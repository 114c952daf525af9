//! Which node is chosen.

use super::*;

/// Owner: a host of node 1, which is in the cluster. The first class may have bytes on nodes.
#[track_caller]
fn check(nodes: &[&str], bytes: &[(u32, u64)], asks: &[(&Class, u32)], want: &str) {
    let mut world = World::new(nodes);
    let mut all = Vec::new();
    for (key, (class, backlog)) in (0..).zip(asks) {
        let locality: Vec<_> = bytes.iter().map(|(n, b)| (node(*n), *b)).collect();
        all.extend(world.ask_as(1, host(1), key, class, *backlog, &locality));
    }
    assert_eq!(show(&all), want);
}

#[test]
fn hybrid_packs_then_spreads() {
    let one = class("1 cpu");
    let three = ["4 cpu", "4 cpu", "4 cpu"];
    // The owner's node while under half full.
    check(&three, &[], &[(&one, 1)], "node-1 x1");
    // With the second slot the owner's node would be half full, so the next one is packed.
    check(&three, &[], &[(&one, 1), (&one, 1)], "node-1 x1, node-2 x1");
    // None stays under half: the least full. All are equal again after that.
    check(&three, &[], &[(&class("2 cpu"), 1), (&class("2 cpu"), 1)], "node-1 x1, node-2 x1");
    // The fullest under half before the emptier ones.
    check(
        &["1 cpu", "10 cpu", "10 cpu"],
        &[],
        &[(&one, 1), (&one, 1), (&one, 1)],
        "node-2 x1, node-2 x1, node-2 x1",
    );
    // A long backlog fills the best node, then the next.
    check(&three, &[], &[(&one, 9)], "node-1 x4, node-2 x4, node-3 x1");
    // More than there is waits.
    check(&["2 cpu"], &[], &[(&one, 9)], "node-1 x2");
}

#[test]
fn hybrid_goes_to_the_bytes_if_there_is_room() {
    let one = class("1 cpu");
    check(&["4 cpu", "4 cpu", "1 cpu"], &[(2, 5), (3, 9)], &[(&one, 1)], "node-3 x1");
    check(&["4 cpu", "4 cpu", "1 cpu"], &[(2, 5), (3, 9)], &[(&one, 3)], "node-3 x1, node-2 x2");
    // Listed twice, it counts twice; unknown nodes count for nothing.
    check(&["4 cpu", "4 cpu", "4 cpu"], &[(2, 5), (2, 5), (3, 9), (8, 99)], &[(&one, 1)], "node-2 x1");
}

#[test]
fn work_without_devices_leaves_them_to_others() {
    let one = class("1 cpu");
    check(&["8 cpu 1 gpu", "2 cpu"], &[], &[(&one, 1)], "node-2 x1");
    check(&["8 cpu 1 gpu", "2 cpu"], &[], &[(&one, 3)], "node-2 x2, node-1 x1");
    check(&["8 cpu 1 gpu", "2 cpu"], &[], &[(&class("1 cpu 1 gpu"), 1)], "node-1 GPU 0:1");
}

#[test]
fn spread_levels_the_slots_of_a_class() {
    let one = spread("1 cpu");
    let three = ["4 cpu", "4 cpu", "4 cpu"];
    check(&three, &[], &[(&one, 3)], "node-1 x1, node-2 x1, node-3 x1");
    check(&three, &[], &[(&one, 5)], "node-1 x2, node-2 x2, node-3 x1");
    // Another class is there already: fewest slots of its own class, then the least full.
    check(&three, &[], &[(&class("1 cpu"), 1), (&one, 1)], "node-1 x1, node-2 x1");
    // The small node would be full at once, so it comes last; the others go on.
    check(&["1 cpu", "4 cpu", "4 cpu"], &[], &[(&one, 7)], "node-2 x3, node-3 x3, node-1 x1");
    // Nothing to hold is spread, too.
    check(&three, &[], &[(&spread(""), 30)], "node-1 x10, node-2 x10, node-3 x10");
}

#[test]
fn spread_fills_up_to_a_level() {
    let mut world = World::new(&["8 cpu"]);
    world.ask(host(1), 0, &spread("1 cpu"), 3);
    world.up(node(2), "8 cpu");
    assert_eq!(show(&world.ask(host(1), 0, &spread("1 cpu"), 5)), "node-2 x4, node-1 x1");
}

#[test]
fn node_affinity_is_hard_or_soft() {
    let two = ["2 cpu", "2 cpu"];
    check(&two, &[], &[(&on(2, false, "1 cpu"), 3)], "node-2 x2");
    check(&two, &[], &[(&on(2, true, "1 cpu"), 3)], "node-2 x2, node-1 x1");
    check(&two, &[(1, 9)], &[(&on(2, true, "1 cpu"), 1)], "node-2 x1");
    // Soft: it can never run there.
    check(&["4 cpu", "2 cpu"], &[], &[(&on(2, true, "3 cpu"), 1)], "node-1 x1");
    check(&["4 cpu"], &[], &[(&on(7, true, "3 cpu"), 1)], "node-1 x1");
}

#[test]
fn label_rules_filter() {
    let nodes = ["4 cpu|zone=us", "4 cpu|zone=eu disk=ssd", "4 cpu"];
    let exists = LabelRule::Exists("zone".to_owned());
    let absent = LabelRule::Absent("zone".to_owned());
    let not_us = LabelRule::NotIn("zone".to_owned(), vec!["us".to_owned()]);
    let eu = is_in("zone", &["eu", "asia"]);
    check(&nodes, &[], &[(&labelled(std::slice::from_ref(&eu), "1 cpu"), 9)], "node-2 x4");
    check(&nodes, &[], &[(&labelled(&[exists], "1 cpu"), 9)], "node-1 x4, node-2 x4");
    check(&nodes, &[], &[(&labelled(&[absent], "1 cpu"), 9)], "node-3 x4");
    check(&nodes, &[], &[(&labelled(std::slice::from_ref(&not_us), "1 cpu"), 9)], "node-2 x4, node-3 x4");
    check(&nodes, &[], &[(&labelled(&[not_us, eu], "1 cpu"), 9)], "node-2 x4");
}

#[test]
fn other_labels_will_do_where_those_before_have_no_room() {
    let nodes = ["2 cpu|zone=us", "2 cpu|zone=eu disk=ssd", "2 cpu|zone=asia"];
    let zone = |name: &str| is_in("zone", &[name]);
    let first = |labels: &[LabelRule], fallbacks: &[Vec<LabelRule>]| Class {
        fallbacks: fallbacks.to_vec(),
        ..labelled(labels, "1 cpu")
    };
    let eu_then = |fallbacks: &[Vec<LabelRule>]| first(&[zone("eu")], fallbacks);
    check(&nodes, &[], &[(&eu_then(&[]), 9)], "node-2 x2");
    check(&nodes, &[], &[(&eu_then(&[vec![zone("asia")]]), 9)], "node-2 x2, node-3 x2");
    // In their order, and the empty list last: anywhere.
    check(&nodes, &[], &[(&eu_then(&[vec![zone("asia")], vec![]]), 9)], "node-2 x2, node-3 x2, node-1 x2");
    // All rules of a list must hold.
    let ssd = LabelRule::Exists("disk".to_owned());
    check(
        &nodes,
        &[],
        &[(&first(&[zone("mars")], &[vec![zone("us"), ssd.clone()], vec![ssd]]), 9)],
        "node-2 x2",
    );
    // They decide before the bytes do.
    check(&nodes, &[(1, 99)], &[(&eu_then(&[vec![]]), 1)], "node-2 x1");
}

#[test]
fn what_keeps_apart_has_one_slot_on_a_node() {
    let apart = Class { strategy: Strategy::Apart, ..class("1 cpu") };
    let three = ["4 cpu", "4 cpu", "4 cpu"];
    check(&three, &[], &[(&apart, 9)], "node-1 x1, node-2 x1, node-3 x1");
    // From its own kind only: another class, or the same of another job, is no matter.
    let other = Class { function: "g".to_owned(), ..apart.clone() };
    check(&["4 cpu"], &[], &[(&apart, 9), (&other, 9)], "node-1 x1, node-1 x1");
    let mut world = World::new(&["4 cpu"]);
    world.ask_as(1, host(9), 0, &apart, 9, &[]);
    assert_eq!(show(&world.ask_as(2, host(8), 0, &apart, 9, &[])), "node-1 x1");
    // The next has its place as soon as the one there ends.
    assert_eq!(show(&world.release(1)), "ended lease-1, node-1 x1");
    // Where the bytes are, if none of its kind is there.
    check(&three, &[(3, 9)], &[(&apart, 2)], "node-3 x1, node-1 x1");
    check(&["4 cpu 1 gpu", "4 cpu"], &[], &[(&apart, 2)], "node-2 x1, node-1 x1");
}

#[test]
fn bytes_count_for_more_than_idle_devices_do() {
    let one = class("1 cpu");
    check(&["4 cpu", "4 cpu 1 gpu"], &[(2, 9)], &[(&one, 1)], "node-2 x1");
    check(&["4 cpu", "4 cpu 4 tpu"], &[], &[(&one, 5)], "node-1 x4, node-2 x1");
    // What needs them goes nowhere else, whatever the bytes.
    check(
        &["4 cpu", "4 cpu 4 tpu"],
        &[(1, 9)],
        &[(&class("4 tpu"), 1)],
        "node-2 TPU 0:1+TPU 1:1+TPU 2:1+TPU 3:1",
    );
}

#[test]
fn the_seed_breaks_ties() {
    let nodes = ["4 cpu"; 16];
    let first = |seed| {
        let mut world = World::with(Options { seed, ..Options::default() }, &nodes);
        show(&world.ask(host(99), 0, &spread("1 cpu"), 1))
    };
    assert_eq!(first(0), "node-1 x1");
    assert_eq!(first(7), first(7));
    let distinct: std::collections::BTreeSet<_> = (1..20).map(first).collect();
    assert!(distinct.len() > 4, "{distinct:?}");
}
