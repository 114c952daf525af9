//! What people are told.

use mobula_proto::{Group, GroupId, group::Arrange, resource::Isolation};

use super::{sharing::queue, *};
use crate::{Limit, Reasons, Unmet, unmet};

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
    let asia = Class {
        fallbacks: vec![vec![is_in("zone", &["asia"])]],
        ..labelled(&[is_in("zone", &["eu"])], "3 cpu")
    };
    check(
        &["4 cpu|zone=us", "2 cpu|zone=asia"],
        &asia,
        "infeasible: no node has label zone in (eu); nor has one with the labels of its fallback",
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
fn what_waits_is_judged_when_hope_goes_and_not_when_a_node_comes() {
    let mut world = World::new(&[]);
    let judged = |world: &World| world.scheduler.judged;
    assert_eq!(judged(&world), 0);
    // The first that runs work is what there is to judge by.
    world.up(node(1), "");
    world.ask(host(9), 0, &class("2 gpu"), 3);
    let before = judged(&world);
    assert_eq!(show(&world.up(node(2), "4 gpu")), "node-2 GPU 0:1+GPU 1:1, node-2 GPU 2:1+GPU 3:1");
    assert_eq!(judged(&world), before + 1);
    for number in 3..9 {
        world.up(node(number), "4 cpu");
    }
    assert_eq!(judged(&world), before + 1);
    // One that comes again with less is a loss.
    let again = world.up(NodeId { number: 2, incarnation: 2 }, "1 gpu");
    assert!(
        show(&again).ends_with("infeasible: no node has 2 GPU: the most any node has is 1 (node-2.2)"),
        "{}",
        show(&again)
    );
    assert_eq!(judged(&world), before + 2);
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
        "needs 2 CPU, 3 times; 2 nodes could hold it, none with more than 1 CPU free (node-1) beside job-1 at the same \
         priority; position 1 of the default queue",
    );
    check_why(
        &["4 cpu", "8 cpu"],
        &[(&class("5 cpu"), 1)],
        &class("6 cpu"),
        1,
        "needs 6 CPU; node-2 alone could hold it, 3 of its 8 CPU free beside job-1 at the same priority; \
         position 1 of the default queue",
    );
    check_why(
        &["2 gpu"],
        &[(&class("0.6 gpu"), 2)],
        &class("0.5 gpu"),
        1,
        "needs 0.5 GPU; node-1 alone could hold it, no single GPU with 0.5 free beside job-1 at the same priority; \
         position 1 of the default queue",
    );
    check_why(
        &["3 gpu"],
        &[(&class("0.6 gpu"), 3)],
        &class("1 gpu"),
        1,
        "needs 1 GPU; node-1 alone could hold it, fewer than 1 whole GPU free beside job-1 at the same priority; \
         position 1 of the default queue",
    );
    check_why(
        &["1 cpu"],
        &[],
        &class(""),
        (1 << 22) + 1,
        "needs no resources; node-1 alone could hold it, with as many slots of it as there may be; \
         position 1 of the default queue",
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
fn why_counts_nodes_that_a_fallback_allows_as_such() {
    let anywhere = Class { fallbacks: vec![vec![]], ..labelled(&[is_in("zone", &["eu"])], "2 cpu") };
    check_why(
        &["2 cpu|zone=eu", "2 cpu|zone=us"],
        &[(&class("2 cpu"), 2)],
        &anywhere,
        1,
        "needs 2 CPU; 2 nodes have the label, or those of a fallback, both full with job-1 at the same priority; \
         position 1 of the default queue",
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

#[test]
fn why_names_who_is_in_the_way_and_the_place_in_the_queue() {
    let mut world = World::new(&["4 cpu 1 tpu|tpu=v5e", "4 cpu 1 tpu|tpu=v5e", "4 cpu"]);
    world.step(Event::Queues(vec![queue("research"), queue("small; limit 2 cpu"), queue("other")]));
    let of = |queue: &str, priority: i32, class: Class| Class { queue: queue.to_owned(), priority, ..class };
    let chip = labelled(&[is_in("tpu", &["v5e"])], "1 tpu");
    world.ask_as(7, host(7), 0, &of("research", 5, chip.clone()), 2, &[]);
    for key in 0..13 {
        world.ask_as(8, host(8), key, &of("research", 0, chip.clone()), 1, &[]);
    }
    let why = |world: &World, key: u32| world.scheduler.why(host(9), key).unwrap();
    world.ask_as(9, host(9), 0, &of("research", 0, chip.clone()), 1, &[]);
    assert_eq!(
        why(&world, 0),
        "needs 1 TPU; 2 nodes have the label, both full with job-7 at higher priority; position 14 of queue research"
    );
    // Between queues priority says nothing.
    world.ask_as(9, host(9), 1, &of("other", 9, chip), 1, &[]);
    assert_eq!(
        why(&world, 1),
        "needs 1 TPU; 2 nodes have the label, both full with job-7 of queue research; position 1 of queue other"
    );
    // The limit of a queue, whatever is free.
    world.ask_as(9, host(9), 2, &of("small", 0, class("1 cpu")), 5, &[]);
    assert_eq!(
        why(&world, 2),
        "needs 1 CPU, 3 times; queue small is at its limit of 2 CPU; position 1 of queue small"
    );
    // Who makes room.
    let mut world = World::new(&["1 cpu"]);
    world.ask_as(1, host(1), 0, &Class { restartable: true, ..class("1 cpu") }, 1, &[]);
    world.ask_as(2, host(9), 0, &of("", 1, class("1 cpu")), 1, &[]);
    world.tick(600);
    assert_eq!(
        why(&world, 0),
        "needs 1 CPU; node-1 alone could hold it, full with job-1 at lower priority, which makes room; \
         position 1 of the default queue"
    );
    // What came free meanwhile is not for everybody.
    world.ask_as(3, host(9), 1, &class("0.5 cpu"), 1, &[]);
    world.ask_as(2, host(9), 0, &Class { priority: 1, ..class("1 cpu") }, 2, &[]);
    assert!(why(&world, 1).contains("which makes room"), "{}", why(&world, 1));
}

#[test]
fn why_speaks_of_those_who_hold_what_is_short() {
    let why = |before: &[(u64, i32, &str, u32)]| {
        let mut world = World::new(&["4 cpu 8 memory", "4 cpu 8 memory"]);
        for (key, (job, priority, each, slots)) in (1..).zip(before) {
            let class = Class { priority: *priority, ..class(each) };
            world.ask_as(*job, host(*job as u32), key, &class, *slots, &[]);
        }
        world.ask_as(3, host(9), 0, &class("1 cpu"), 1, &[]);
        let why = world.scheduler.why(host(9), 0).unwrap();
        why.split_once("could hold it, ").unwrap().1.split_once(';').unwrap().0.to_owned()
    };
    assert_eq!(why(&[(1, 0, "1 cpu", 8)]), "both full with job-1 at the same priority");
    // What else it has there, of which nothing is short, has nothing to do with it.
    assert_eq!(
        why(&[(1, 0, "1 cpu", 8), (1, 5, "1 memory", 2)]),
        "both full with job-1 at the same priority"
    );
    // There is another one, which has fewer, as many, or none.
    assert_eq!(
        why(&[(1, 0, "1 cpu", 3), (2, 5, "1 cpu", 5)]),
        "both full mostly with job-2 at higher priority"
    );
    assert_eq!(
        why(&[(1, 0, "1 cpu", 4), (2, 5, "1 cpu", 4)]),
        "both full with others and job-1 at the same priority"
    );
    assert_eq!(
        why(&[(1, 0, "1 cpu", 8), (2, 5, "1 memory", 8)]),
        "both full with job-1 at the same priority"
    );
    // One lease of many says nothing of the others.
    assert_eq!(
        why(&[(1, 0, "1 cpu", 7), (1, 5, "1 cpu", 1)]),
        "both full with job-1, some of it at higher priority"
    );
    assert_eq!(
        why(&[(1, -5, "1 cpu", 3), (1, 0, "1 cpu", 3), (2, 5, "1 cpu", 2)]),
        "both full mostly with job-1, some of it at the same priority"
    );
}

#[test]
fn why_says_no_more_of_all_than_is_so_of_them() {
    let why = |world: &mut World, class: &Class| {
        world.ask_as(3, host(9), 0, class, 1, &[]);
        let why = world.scheduler.why(host(9), 0).unwrap();
        why.split_once("could hold it, ").unwrap().1.split_once(';').unwrap().0.to_owned()
    };
    // All nodes are looked at.
    let mut world = World::new(&["1 cpu"; 33]);
    for number in 1..=33 {
        let job = if number <= 16 { 7 } else { 8 };
        world.ask_as(job, host(10), number, &on(number, false, "1 cpu"), 1, &[]);
    }
    assert_eq!(why(&mut world, &class("1 cpu")), "all full mostly with job-8 at the same priority");
    // Or it is said how many.
    let mut world = World::new(&["40000 cpu", "1 cpu"]);
    let isolated = Class { isolation: Isolation::Process, ..class("1 cpu") };
    world.ask_as(7, host(10), 1, &isolated, 40_001, &[]);
    assert_eq!(
        why(&mut world, &class("1 cpu")),
        "both full with job-7 at the same priority on the first of them"
    );
    // Of three kinds each is short somewhere, none on most.
    let mut world = World::new(&["2 cpu 2 memory 2 gpu"; 3]);
    for (number, part) in (1..).zip(["1 cpu", "1 memory", "1 gpu"]) {
        world.ask_as(7, host(10), number, &on(number, false, part), 1, &[]);
    }
    let all = class("2 cpu 2 memory 2 gpu");
    assert_eq!(
        why(&mut world, &all),
        "none with all of that free, 1 of 3 lack 2 CPU beside job-7 at the same priority"
    );
    world.ask_as(7, host(10), 9, &on(3, false, "1 cpu"), 1, &[]);
    assert_eq!(
        why(&mut world, &all),
        "none with all of that free, most lack 2 CPU beside job-7 at the same priority"
    );
    // Of two slots one makes room.
    let mut world = World::new(&["2 cpu"]);
    world.ask_as(1, host(1), 0, &Class { restartable: true, ..class("1 cpu") }, 2, &[]);
    let urgent = Class { priority: 1, ..class("1 cpu") };
    world.ask_as(3, host(9), 0, &urgent, 1, &[]);
    world.tick(600);
    assert_eq!(why(&mut world, &urgent), "full with job-1 at lower priority, some of which makes room");
}

#[test]
fn reasons_for_many_take_no_more_than_they_may() {
    let nodes = 100;
    let mut world = World::new(&vec!["1 cpu"; nodes]);
    world.ask_as(7, host(10), 0, &class("0.9 cpu"), 100, &[]);
    for number in 1..=300 {
        // All of different shapes.
        let text = format!("0.{} cpu", 200 + number);
        world.ask(host(9), number, &class(&text), 1);
        let (id, job) = (GroupId { number: number.into() }, JobId { number: 1 });
        let spec = Arc::new(group(Arrange::Pack, "", &[&text, "0.9 cpu", "0.8 cpu"]));
        world.step(Event::Group { group: id, job, spec });
    }
    // What one reason may take here: some passes over the nodes and what is on them, and three searches.
    let one = |of: &Reasons<'_>| of.looks();
    let single = world.scheduler.reasons(u64::MAX);
    single.why(host(9), 1).unwrap();
    assert!((nodes as u64..20 * nodes as u64).contains(&one(&single)), "{}", one(&single));
    let gang = world.scheduler.reasons(u64::MAX);
    gang.why_group(GroupId { number: 1 }).unwrap();
    assert!((nodes as u64..100 * nodes as u64).contains(&one(&gang)), "{}", one(&gang));
    for most in [20_000, 40_000] {
        let (slots, groups) = (world.scheduler.reasons(most), world.scheduler.reasons(most));
        let mut told = 0;
        for number in 1..=300 {
            if !slots.is_spent() {
                assert_eq!(slots.why(host(9), number), world.scheduler.why(host(9), number));
                told += 1;
            }
            let id = GroupId { number: number.into() };
            if !groups.is_spent() {
                assert_eq!(groups.why_group(id), world.scheduler.why_group(id));
            }
        }
        assert!((5..200).contains(&told), "{told}");
        assert!(slots.is_spent() && slots.looks() < most + 2 * one(&single), "{}", slots.looks());
        assert!(groups.is_spent() && groups.looks() < most + 2 * one(&gang), "{}", groups.looks());
    }
    // What is alike has the same reason, but for its place in the queue, which is found once.
    let mut world = World::new(&vec!["1 cpu"; nodes]);
    world.ask_as(7, host(10), 0, &class("1 cpu"), 100, &[]);
    for number in 1..=200 {
        world.ask(host(9), number, &class("1 cpu"), 1);
        let (id, job) = (GroupId { number: number.into() }, JobId { number: 1 });
        let spec = Arc::new(group(Arrange::Pack, "", &["1 cpu"; 2]));
        world.step(Event::Group { group: id, job, spec });
    }
    let reasons = world.scheduler.reasons(u64::MAX);
    for number in 1..=200 {
        assert_eq!(reasons.why(host(9), number), world.scheduler.why(host(9), number));
        let id = GroupId { number: number.into() };
        assert_eq!(reasons.why_group(id), world.scheduler.why_group(id));
    }
    // Each has on average as many before it in the queue as there are of the others.
    assert!(reasons.looks() < 2 * 200 * 210 + 4 * one(&gang), "{}", reasons.looks());
}

#[test]
fn a_group_of_many_sizes_by_a_label_of_its_own_is_told_of_within_bounds() {
    let names: Vec<String> = (1..=300).map(|number| format!("1 cpu|host=h{number}")).collect();
    let mut world = World::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    world.ask_as(7, host(10), 0, &class("0.6 cpu"), 300, &[]);
    let sizes: Vec<String> = (0..400).map(|number| format!("0.{} cpu", 500 + number)).collect();
    let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
    for arrange in [Arrange::Pack, Arrange::StrictSpread, Arrange::Spread] {
        let spec = Group { wait_for_node: true, ..group(arrange, "host", &sizes) };
        let group = GroupId { number: arrange as u64 + 1 };
        world.step(Event::Group { group, job: JobId { number: 1 }, spec: Arc::new(spec) });
        let reasons = world.scheduler.reasons(u64::MAX);
        reasons.why_group(group).unwrap();
        // Each search is given up, and so is which of the bundles finds no node.
        assert!(reasons.looks() < 4 * 65_536 + 20_000, "{}", reasons.looks());
    }
}

#[track_caller]
fn check_group(nodes: &[&str], before: &Class, spec: &Group, want: &str) {
    let mut world = World::new(nodes);
    world.ask(host(9), 0, before, 1);
    let (group, job) = (GroupId { number: 3 }, JobId { number: 2 });
    world.step(Event::Group { group, job, spec: Arc::new(spec.clone()) });
    assert_eq!(world.scheduler.why_group(group).unwrap_or_default(), want);
}

fn group(arrange: Arrange, place: &str, bundles: &[&str]) -> Group {
    let bundles = bundles.iter().map(|text| resources(text)).collect();
    Group { bundles, arrange, place: place.to_owned(), ..Group::default() }
}

#[test]
fn why_says_what_a_group_waits_for() {
    let (two, some) = (["2 cpu", "2 cpu"], class("1 cpu"));
    check_group(&two, &some, &group(Arrange::Pack, "", &["1 cpu"; 2]), "");
    check_group(
        &two,
        &some,
        &group(Arrange::Pack, "", &["2 cpu"; 2]),
        "needs 2 bundles of 2 CPU each (pack); there is room for 1 of them now; position 1 of the default queue",
    );
    check_group(
        &["1 cpu|rack=a", "1 cpu|rack=a", "2 cpu|rack=b"],
        &class("2 cpu"),
        &group(Arrange::StrictSpread, "rack", &["1 cpu", "1 cpu"]),
        "needs 2 bundles of 1 CPU each (strict spread by rack); there is room for that, but not each in a rack of its \
         own; position 1 of the default queue",
    );
    check_group(
        &["3 gpu"],
        &class("2 gpu"),
        &group(Arrange::Pack, "", &["2 gpu", "1 gpu"]),
        "needs 2 bundles of 3 GPU together (pack); its bundle of 2 GPU finds no node: node-1 alone could hold it, 1 of its 3 GPU free beside job-1 at the \
         same priority; position 1 of the default queue",
    );
    let patient = Group { wait_for_node: true, ..group(Arrange::Pack, "", &["9 cpu"]) };
    check_group(
        &two,
        &some,
        &patient,
        "waits for a node that fits: no node has 9 CPU: the most any node has is 2 (node-1)",
    );
}

#[test]
fn what_nodes_could_be_added_for_is_told() {
    let mut world = World::new(&["1 cpu"]);
    world.step(Event::Queues(vec![queue("small; limit 2 cpu")]));
    world.ask(host(9), 0, &class("1 cpu"), 4);
    let patient = Class { wait_for_node: true, ..labelled(&[is_in("zone", &["eu"])], "2 gpu") };
    world.ask(host(9), 1, &patient, 2);
    world.ask(host(8), 2, &patient, 1);
    world.ask(host(9), 2, &Class { queue: "small".to_owned(), ..class("1 cpu") }, 9);
    let spec =
        Group { wait_for_node: true, ..group(Arrange::StrictPack, "rack", &["4 cpu", "4 cpu", "1 cpu"]) };
    let (id, job) = (GroupId { number: 3 }, JobId { number: 2 });
    world.step(Event::Group { group: id, job, spec: Arc::new(spec) });
    let of = |text: &str, labels: &[LabelRule], count: u64, gang: Option<unmet::Gang>| Unmet {
        resources: resources(text),
        labels: labels.to_vec(),
        fallbacks: Vec::new(),
        count,
        gang,
        apart: None,
        limits: Vec::new(),
        turn: 0,
    };
    let gang = || {
        let (arrange, place) = (Arrange::StrictPack, "rack".to_owned());
        Some(unmet::Gang { group: id, arrange, place, on: Vec::new() })
    };
    let left = vec![(Kind::Cpu, amount("2"))];
    let mut want = vec![
        of("1 cpu", &[], 3, None),
        // As many of the queue as its limit allows.
        Unmet { limits: vec![Limit { queue: "small".to_owned(), left }], ..of("1 cpu", &[], 2, None) },
        of("2 gpu", &[is_in("zone", &["eu"])], 3, None),
        of("1 cpu", &[], 1, gang()),
        of("4 cpu", &[], 2, gang()),
    ];
    want.sort();
    let mut told = world.scheduler.unmet();
    told.sort();
    assert_eq!(told, want);
}

#[test]
fn what_keeps_apart_is_told_with_where_it_is_and_what_is_pinned_is_not() {
    let mut world = World::new(&["4 cpu", "4 cpu", "1 gpu"]);
    let apart = Class { strategy: Strategy::Apart, ..class("1 cpu") };
    assert_eq!(show(&world.ask(host(9), 0, &apart, 5)), "node-1 x1, node-2 x1");
    // Others of the same kind count with it; another job's are another kind.
    world.ask(host(8), 0, &apart, 1);
    world.ask_as(2, host(7), 0, &apart, 3, &[]);
    // No other node is of use to the one, any is to the other.
    world.ask(host(9), 1, &on(1, false, "1.5 cpu"), 3);
    world.ask(host(9), 2, &on(1, true, "2 cpu"), 7);
    let told: Vec<_> = world
        .scheduler
        .unmet()
        .into_iter()
        .map(|u| (u.resources.to_string(), u.count, u.apart.map(|apart| apart.on)))
        .collect();
    let both = Some(vec![node(1), node(2)]);
    assert_eq!(
        told,
        [("1 CPU".to_owned(), 4, both.clone()), ("1 CPU".to_owned(), 1, both), ("2 CPU".to_owned(), 6, None),]
    );
}

#[test]
fn why_says_for_whom_something_is_kept_or_set_aside() {
    let options = || Options { term: Millis(1_000_000), ..Options::default() };
    let shrink = |world: &mut World| {
        world.step(Event::Shrink { lease: LeaseId { number: 1 }, slots: 1 });
    };
    // What a limit leaves is set aside for what has waited longest, which one slot is not enough for.
    let mut world = World::with(options(), &["99 cpu"]);
    world.step(Event::Queues(vec![queue("b; limit 8 cpu")]));
    let of = |text: &str| Class { queue: "b".to_owned(), ..class(text) };
    world.ask(host(9), 0, &of("1 cpu"), 8);
    world.ask_as(2, host(8), 0, &of("6 cpu"), 1, &[]);
    world.tick(31_000);
    shrink(&mut world);
    world.ask(host(9), 1, &of("1 cpu"), 1);
    let aside = "what the limit of queue b leaves is set aside for what has waited longer";
    assert_eq!(
        world.scheduler.why(host(9), 1).unwrap(),
        format!("needs 1 CPU; {aside}; position 2 of queue b")
    );
    let spec = Group { queue: "b".to_owned(), ..group(Arrange::Pack, "", &["1 cpu"]) };
    let (id, job) = (GroupId { number: 3 }, JobId { number: 2 });
    world.step(Event::Group { group: id, job, spec: Arc::new(spec) });
    assert_eq!(
        world.scheduler.why_group(id).unwrap(),
        format!("needs 1 bundle of 1 CPU (pack); {aside}; position 3 of queue b")
    );
    // A node is kept for what room is made for, or for what has waited longest.
    for (priority, kept_for) in [(1, "goes before it"), (0, "has waited longer")] {
        let mut world = World::with(options(), &["4 cpu"]);
        world.ask(host(9), 0, &class("1 cpu"), 4);
        world.ask_as(2, host(8), 0, &Class { priority, ..class("4 cpu") }, 1, &[]);
        world.tick(if priority > 0 { 600 } else { 31_000 });
        shrink(&mut world);
        world.ask(host(9), 1, &class("1 cpu"), 1);
        assert_eq!(
            world.scheduler.why(host(9), 1).unwrap(),
            format!(
                "needs 1 CPU; node-1 alone could hold it, what is free is kept for what {kept_for}; position 2 of the \
                 default queue"
            )
        );
    }
}

#[test]
fn why_says_what_a_limit_leaves() {
    let mut world = World::new(&["16 cpu"]);
    world.step(Event::Queues(vec![queue("b; limit 8 cpu")]));
    let of = |text: &str| Class { queue: "b".to_owned(), ..class(text) };
    world.ask(host(9), 0, &of("1 cpu"), 6);
    world.ask(host(9), 1, &of("4 cpu"), 1);
    assert_eq!(
        world.scheduler.why(host(9), 1).unwrap(),
        "needs 4 CPU; queue b has 2 left of its limit of 8 CPU; position 1 of queue b"
    );
}

#[test]
fn why_says_of_a_bundle_that_its_node_drains() {
    let mut world = World::new(&["4 cpu"]);
    let (id, job) = (GroupId { number: 1 }, JobId { number: 1 });
    let spec = Arc::new(group(Arrange::Pack, "", &["4 cpu"]));
    world.step(Event::Group { group: id, job, spec });
    let inside = Class { strategy: Strategy::Group { group: id, bundle: None }, ..class("1 cpu") };
    assert_eq!(show(&world.ask(host(9), 0, &inside, 1)), "node-1 x1");
    world.step(Event::NodeDrain { node: node(1) });
    assert_eq!(show(&world.ask(host(9), 1, &inside, 1)), "");
    assert_eq!(
        world.scheduler.why(host(9), 1).unwrap(),
        "waits for 1 slot of 1 CPU each: node-1 drains, and bundle 0 of group-1 moves when what runs in it has ended"
    );
}
