//! What people are told.

use super::*;

#[track_caller]
fn check(nodes: &[&str], class: &Class, want: &str) {
    let mut world = World::new(nodes);
    assert_eq!(show(&world.ask(host(9), 0, class, 1)), want);
    assert_eq!(world.scheduler.why(host(9), 0), None);
}

#[test]
fn infeasible_names_what_is_missing() {
    check(
        &["4 cpu", "4 cpu 1 gpu"],
        &class("4 gpu"),
        "infeasible: no node has 4 GPU: the most any node has is 1 (node-2)",
    );
    check(&["4 cpu"], &class("1 gpu"), "infeasible: no node has 1 GPU: none has any");
    check(
        &["4 cpu 1GiB memory"],
        &class("2GiB memory"),
        "infeasible: no node has 2.0 GiB memory: the most any node has is 1.0 GiB (node-1)",
    );
    check(
        &["4 cpu", "1 cpu 1 gpu"],
        &class("2 cpu 1 gpu"),
        "infeasible: no node has 2 CPU, 1 GPU together: node-1 comes closest, with 0 GPU",
    );
    let zone = |rule| labelled(&[rule], "1 cpu");
    let eu = is_in("zone", &["eu"]);
    check(&["4 cpu|zone=us"], &zone(eu.clone()), "infeasible: no node has label zone in (eu)");
    check(&["4 cpu"], &zone(LabelRule::Exists("zone".to_owned())), "infeasible: no node has label zone");
    check(
        &["4 cpu|zone=us"],
        &zone(LabelRule::Absent("zone".to_owned())),
        "infeasible: every node has label zone",
    );
    check(
        &["4 cpu|zone=eu"],
        &zone(LabelRule::NotIn("zone".to_owned(), vec!["eu".to_owned()])),
        "infeasible: every node has label zone in (eu)",
    );
    check(
        &["4 cpu|zone=eu", "4 cpu|disk=ssd"],
        &labelled(&[eu.clone(), LabelRule::Exists("disk".to_owned())], "1 cpu"),
        "infeasible: no node fulfils all of these label rules: zone in (eu); disk exists",
    );
    check(
        &["2 cpu|zone=eu", "4 cpu"],
        &labelled(&[eu], "3 cpu"),
        "infeasible: no node with label zone in (eu) has 3 CPU: the most any node has is 2 (node-1)",
    );
    check(&["2 cpu"], &on(1, false, "3 cpu"), "infeasible: node-1 has 2 CPU, not 3");
    check(&["2 cpu"], &on(4, false, "1 cpu"), "infeasible: node-4 is not in the cluster, or runs no work");
}

#[test]
fn infeasible_when_the_last_hope_goes() {
    let mut world = World::new(&["4 cpu", "1 gpu"]);
    world.ask(host(9), 0, &class("1 gpu"), 2);
    assert_eq!(
        show(&world.step(Event::NodeDown { node: node(2) })),
        "lost lease-1, ended lease-1, infeasible: no node has 1 GPU: none has any"
    );
}

#[test]
fn without_nodes_everything_waits() {
    let mut world = World::new(&[""]);
    assert_eq!(show(&world.ask(host(9), 0, &class("1 gpu"), 1)), "");
    assert_eq!(show(&world.ask(host(9), 1, &class("1 cpu"), 1)), "");
    let why = "waits for a first node: the cluster has none that runs work";
    assert_eq!(world.scheduler.why(host(9), 0).unwrap(), why);
    assert_eq!(show(&world.up(node(2), "2 cpu")), "infeasible: no node has 1 GPU: none has any, node-2 x1");
}

#[track_caller]
fn check_why(nodes: &[&str], before: &[(&Class, u32)], class: &Class, backlog: u32, want: &str) {
    let mut world = World::new(nodes);
    for (key, (class, backlog)) in (1..).zip(before) {
        world.ask(host(9), key, class, *backlog);
    }
    world.ask(host(9), 0, class, backlog);
    assert_eq!(world.scheduler.why(host(9), 0).unwrap(), want);
}

#[test]
fn why_says_what_is_short() {
    let one = class("1 cpu");
    check_why(
        &["4 cpu", "4 cpu"],
        &[(&class("3 cpu"), 2)],
        &class("2 cpu"),
        3,
        "waits for 3 slots of 2 CPU each: none of the 2 nodes that fit has more than 1 of its CPU free (node-1)",
    );
    check_why(
        &["4 cpu", "8 cpu"],
        &[(&class("5 cpu"), 1)],
        &class("6 cpu"),
        1,
        "waits for 1 slot of 6 CPU each: node-2, the only node that fits, has 3 of 8 CPU free",
    );
    check_why(
        &["2 gpu"],
        &[(&class("0.6 gpu"), 2)],
        &class("0.5 gpu"),
        1,
        "waits for 1 slot of 0.5 GPU each: no node that fits has 0.5 of one GPU free",
    );
    check_why(
        &["3 gpu"],
        &[(&class("0.6 gpu"), 3)],
        &class("1 gpu"),
        1,
        "waits for 1 slot of 1 GPU each: no node that fits has 1 whole GPU free",
    );
    check_why(
        &["1 cpu"],
        &[],
        &class(""),
        (1 << 22) + 1,
        "waits for 1 slot of no resources each: the nodes that fit hold as many slots as they may",
    );
    let patient = Class { wait_for_node: true, ..class("4 gpu") };
    check_why(&["1 cpu"], &[], &patient, 1, "waits for a node that fits: no node has 4 GPU: none has any");
    let mut world = World::new(&["2 cpu"]);
    world.step(Event::NodeDrain { node: node(1) });
    world.ask(host(9), 0, &one, 1);
    assert_eq!(
        world.scheduler.why(host(9), 0).unwrap(),
        "waits for a node that is not draining: node-1 would fit"
    );
}

#[test]
fn a_patient_demand_is_placed_when_its_node_comes() {
    let mut world = World::new(&["1 cpu"]);
    let patient = Class { wait_for_node: true, ..class("4 gpu") };
    assert_eq!(show(&world.ask(host(9), 0, &patient, 1)), "");
    assert_eq!(show(&world.up(node(2), "4 gpu")), "node-2 GPU 0:1+GPU 1:1+GPU 2:1+GPU 3:1");
    assert_eq!(world.scheduler.why(host(9), 0), None);
}
