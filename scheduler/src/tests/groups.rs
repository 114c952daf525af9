//! Placement groups: where their bundles go, what runs inside, and how they end.

use mobula_proto::{Group, GroupId, group::Arrange};

use super::*;

fn group(arrange: Arrange, bundles: &[&str]) -> Group {
    Group { bundles: bundles.iter().map(|text| resources(text)).collect(), arrange, ..Group::default() }
}

fn ask(world: &mut World, number: u64, spec: &Group) -> Vec<Effect> {
    let (group, job) = (GroupId { number }, JobId { number: 1 });
    world.step(Event::Group { group, job, spec: Arc::new(spec.clone()) })
}

fn inside(number: u64, bundle: Option<u32>, text: &str) -> Class {
    Class { strategy: Strategy::Group { group: GroupId { number }, bundle }, ..class(text) }
}

#[track_caller]
fn check(nodes: &[&str], spec: &Group, want: &str) {
    let mut world = World::new(nodes);
    assert_eq!(show(&ask(&mut world, 1, spec)), want);
}

#[test]
fn bundles_lie_as_they_should_to_each_other() {
    let two = ["1 cpu", "1 cpu"];
    let nodes = ["4 cpu", "4 cpu", "1 cpu"];
    check(&nodes, &group(Arrange::Pack, &two), "group-1 0:node-1+1:node-1");
    check(&nodes, &group(Arrange::StrictPack, &two), "group-1 0:node-1+1:node-1");
    check(&nodes, &group(Arrange::Spread, &two), "group-1 0:node-1+1:node-2");
    check(&nodes, &group(Arrange::StrictSpread, &two), "group-1 0:node-1+1:node-2");
    // More than one place can hold: as few as there need be.
    check(
        &["3 cpu", "3 cpu"],
        &group(Arrange::Pack, &["2 cpu", "2 cpu", "1 cpu"]),
        "group-1 0:node-1+1:node-2+2:node-1",
    );
    // More bundles than places: as many as there are.
    check(&["4 cpu", "4 cpu"], &group(Arrange::Spread, &["1 cpu"; 3]), "group-1 0:node-1+1:node-2+2:node-1");
}

#[test]
fn a_label_makes_places_of_nodes() {
    let nodes = ["2 cpu|rack=a", "2 cpu|rack=b", "2 cpu|rack=a", "2 cpu"];
    let racks = |arrange, bundles: &[&str]| Group { place: "rack".to_owned(), ..group(arrange, bundles) };
    check(&nodes, &racks(Arrange::StrictPack, &["2 cpu", "2 cpu"]), "group-1 0:node-1+1:node-3");
    check(&nodes, &racks(Arrange::StrictSpread, &["1 cpu", "1 cpu"]), "group-1 0:node-1+1:node-2");
    check(
        &nodes,
        &racks(Arrange::StrictSpread, &["1 cpu"; 3]),
        "group-1 infeasible: 3 bundles need as many places, and there are 2",
    );
    check(
        &nodes,
        &racks(Arrange::StrictPack, &["2 cpu"; 3]),
        "group-1 infeasible: no rack has 6 CPU, which all bundles need together",
    );
    check(
        &["2 cpu"],
        &racks(Arrange::Pack, &["1 cpu"]),
        "group-1 infeasible: no node has label rack, whose values were to be the places of the group",
    );
}

#[test]
fn places_are_kept_to_as_far_as_the_arrangement_says() {
    let by =
        |place: &str, arrange, bundles: &[&str]| Group { place: place.to_owned(), ..group(arrange, bundles) };
    // Hosts of two slices of TPUs, and of two domains of fast links between GPUs.
    let slices =
        ["4 tpu|mobula.io/tpu-slice=a", "4 tpu|mobula.io/tpu-slice=b", "4 tpu|mobula.io/tpu-slice=b"];
    check(
        &slices,
        &by("mobula.io/tpu-slice", Arrange::StrictPack, &["4 tpu"; 2]),
        "group-1 0:node-2+1:node-3",
    );
    let domains = ["8 gpu|nvlink=x", "8 gpu|nvlink=y", "8 gpu|nvlink=x"];
    check(&domains, &by("nvlink", Arrange::StrictPack, &["8 gpu"; 2]), "group-1 0:node-1+1:node-3");
    check(&domains, &by("nvlink", Arrange::StrictSpread, &["8 gpu"; 2]), "group-1 0:node-1+1:node-2");
    // One place if it has room for all, else as few as there need be.
    let racks = ["2 cpu|rack=a", "2 cpu|rack=b", "2 cpu|rack=b"];
    check(&racks, &by("rack", Arrange::Pack, &["2 cpu"; 2]), "group-1 0:node-2+1:node-3");
    check(&racks, &by("rack", Arrange::Pack, &["2 cpu"; 3]), "group-1 0:node-1+1:node-2+2:node-3");
    // As many places as there are, then again.
    check(&racks, &by("rack", Arrange::Spread, &["1 cpu"; 3]), "group-1 0:node-1+1:node-2+2:node-3");
    check(&racks, &by("rack", Arrange::Spread, &["1 cpu"; 2]), "group-1 0:node-1+1:node-2");
    // Only nodes that fulfil the rules, devices as bundles of their own.
    let eu = Group { labels: vec![is_in("rack", &["b"])], ..group(Arrange::Spread, &["1 cpu", "1 cpu"]) };
    check(&racks, &eu, "group-1 0:node-2+1:node-3");
    check(
        &["2 cpu", "2 cpu 2 gpu"],
        &group(Arrange::Pack, &["1 cpu", "1 gpu", "0.5 gpu"]),
        "group-1 0:node-2+1:node-2+2:node-2",
    );
}

#[test]
fn groups_share_as_their_queues_do() {
    let queue = super::sharing::queue;
    let of = |name: &str, bundles: &[&str]| Group { queue: name.to_owned(), ..group(Arrange::Pack, bundles) };
    let mut world = World::new(&["8 cpu"]);
    world.step(Event::Queues(vec![queue("a; limit 4 cpu"), queue("b"), queue("c; guaranteed 2 cpu")]));
    assert_eq!(
        show(&ask(&mut world, 1, &of("a", &["2 cpu"; 3]))),
        "group-1 infeasible: one slot has more CPU than the limit of queue a, which is 4: raise it, or use another queue"
    );
    assert_eq!(show(&ask(&mut world, 2, &of("a", &["1 cpu"; 3]))), "group-2 0:node-1+1:node-1+2:node-1");
    // All of it or nothing, of what the limit leaves.
    assert_eq!(show(&ask(&mut world, 3, &of("a", &["1 cpu"; 2]))), "");
    let filler = Class { queue: "b".to_owned(), ..class("5 cpu") };
    assert_eq!(show(&world.ask_as(2, host(9), 0, &filler, 1, &[])), "node-1 x1");
    // A group holds what its bundles do: of two queues the one with the smaller share goes first, what is guaranteed before
    // both.
    ask(&mut world, 4, &of("b", &["2 cpu"]));
    ask(&mut world, 5, &of("c", &["1 cpu"; 2]));
    let gone = |number| Event::GroupGone { group: GroupId { number } };
    assert_eq!(show(&world.step(gone(2))), "group-5 0:node-1+1:node-1");
    assert_eq!(show(&world.step(gone(5))), "group-3 0:node-1+1:node-1");
    // Priority within a queue, for groups and classes alike.
    let mut world = World::new(&["2 cpu"]);
    world.ask(host(9), 0, &class("2 cpu"), 1);
    world.ask(host(9), 1, &Class { priority: 1, ..class("2 cpu") }, 1);
    ask(&mut world, 1, &group(Arrange::Pack, &["2 cpu"]));
    ask(&mut world, 2, &Group { priority: 2, ..group(Arrange::Pack, &["2 cpu"]) });
    assert_eq!(show(&world.release(1)), "ended lease-1, group-2 0:node-1");
    assert_eq!(show(&world.step(gone(2))), "node-1 x1");
    assert_eq!(show(&world.release(2)), "ended lease-2, group-1 0:node-1");
}

#[test]
fn a_limit_that_is_lowered_ends_no_group_that_runs() {
    let queues = |limit: &str| Event::Queues(vec![super::sharing::queue(&format!("a; limit {limit} cpu"))]);
    let spec = |bundles: &[&str]| Group { queue: "a".to_owned(), ..group(Arrange::Spread, bundles) };
    let mut world = World::new(&["2 cpu", "2 cpu"]);
    world.step(queues("4"));
    assert_eq!(show(&ask(&mut world, 1, &spec(&["2 cpu"; 2]))), "group-1 0:node-1+1:node-2");
    assert_eq!(show(&world.ask(host(9), 0, &inside(1, Some(0), "1 cpu"), 1)), "node-1 x1");
    ask(&mut world, 2, &spec(&["1 cpu"; 3]));
    // It lacks a bundle at this moment; another was never placed.
    assert_eq!(show(&world.step(Event::NodeDrain { node: node(2) })), "group-1 lost [1]");
    assert_eq!(
        show(&world.step(queues("2"))),
        "group-2 infeasible: one slot has more CPU than the limit of queue a, which is 2: raise it, or use another queue"
    );
    assert_eq!(show(&world.step(Event::NodeResume { node: node(2) })), "", "the limit leaves nothing");
    let why = |world: &World| world.scheduler.why_group(GroupId { number: 1 }).unwrap();
    assert_eq!(
        why(&world),
        "needs 1 bundle of 2 CPU (spread) beside the 1 that it has; queue a is at its limit of 2 CPU, less than all of it \
         needs: raise that limit; position 1 of queue a"
    );
    assert_eq!(show(&world.step(queues("4"))), "group-1 1:node-2");
    // Nor does a queue that is no longer there.
    world.step(Event::NodeDrain { node: node(2) });
    assert_eq!(show(&world.step(Event::Queues(Vec::new()))), "");
    assert_eq!(show(&world.step(Event::NodeResume { node: node(2) })), "group-1 1:node-2");
}

#[test]
fn what_was_promised_waits_for_its_limit_and_holds_up_nobody() {
    let queues = |limit: &str| Event::Queues(vec![super::sharing::queue(&format!("a; limit {limit} cpu"))]);
    let spec = Group { queue: "a".to_owned(), ..group(Arrange::Pack, &["1 cpu"; 3]) };
    let promise = |world: &mut World, number: u64, spec: &Group| {
        show(&world.step(Event::Promised { group: GroupId { number }, spec: Arc::new(spec.clone()) }))
    };
    let options = Options { term: Millis(1_000_000), ..Options::default() };
    let mut world = World::with(options, &["4 cpu"]);
    world.step(queues("2"));
    assert_eq!(promise(&mut world, 1, &spec), "");
    assert_eq!(
        promise(&mut world, 2, &group(Arrange::Pack, &["1 cpu"; 1025])).split(':').next(),
        Some("group-2 infeasible")
    );
    assert_eq!(
        promise(&mut world, 3, &Group { queue: "gone".to_owned(), ..group(Arrange::Pack, &["1 cpu"]) }),
        "group-3 0:node-1"
    );
    let why = |world: &World| world.scheduler.why_group(GroupId { number: 1 }).unwrap();
    assert_eq!(
        why(&world),
        "needs 3 bundles of 1 CPU each (pack); queue a has 2 left of its limit of 2 CPU, less than all of it needs: raise \
         that limit; position 1 of queue a"
    );
    // However long it waits, nothing of the limit is set aside for it, and nobody is asked for what would be of no use.
    let of_a = Class { queue: "a".to_owned(), ..class("1 cpu") };
    world.ask(host(9), 0, &of_a, 2);
    for _ in 0..2 {
        assert_eq!(show(&world.tick(31_000)), "");
    }
    world.ask(host(8), 0, &of_a, 1);
    let shrunk = Event::Shrink { lease: LeaseId { number: 1 }, slots: 1 };
    assert_eq!(show(&world.step(shrunk)), "node-1 x1");
    assert_eq!(show(&world.step(queues("1"))), "", "it stays where the limit is lowered further");
    world.step(Event::JobGone { job: JobId { number: 1 } });
    assert_eq!(show(&world.step(queues("3"))), "group-1 0:node-1+1:node-1+2:node-1");
}

#[test]
fn what_could_never_be_is_said() {
    check(
        &["2 cpu", "2 cpu"],
        &group(Arrange::Pack, &["1 cpu", "3 cpu"]),
        "group-1 infeasible: bundle 1: no node has 3 CPU: the most any node has is 2 (node-1)",
    );
    check(
        &["2 cpu", "2 cpu"],
        &group(Arrange::Pack, &["2 cpu"; 3]),
        "group-1 infeasible: the nodes that fit do not have 6 CPU, which all bundles need together",
    );
    check(
        &["2 cpu", "2 cpu"],
        &group(Arrange::StrictPack, &["2 cpu"; 2]),
        "group-1 infeasible: no node has 4 CPU, which all bundles need together",
    );
    check(
        &["2 cpu"],
        &group(Arrange::Pack, &[]),
        "group-1 infeasible: the group has no bundles: give at least one",
    );
    check(
        &["2 cpu"],
        &group(Arrange::Pack, &["1 cpu"; 1025]),
        "group-1 infeasible: 1025 bundles are too many: give at most 1024, or several groups",
    );
    let unknown = Group { queue: "x".to_owned(), ..group(Arrange::Pack, &["1 cpu"]) };
    check(
        &["2 cpu"],
        &unknown,
        "group-1 infeasible: queue x is unknown: define it, or leave the queue empty",
    );
}

#[test]
fn groups_are_judged_by_one_look_at_each_node() {
    let nodes: Vec<String> = (0..200).map(|number| format!("2 cpu|name=n{number}")).collect();
    let mut world = World::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
    let named = |arrange, bundles: &[&str]| Group { place: "name".to_owned(), ..group(arrange, bundles) };
    let visited = |world: &World| world.scheduler.visited.take();
    // As many places as nodes, of which none holds it.
    let refused = "group-1 infeasible: no name has 4 CPU, which all bundles need together";
    assert_eq!(show(&ask(&mut world, 1, &named(Arrange::StrictPack, &["2 cpu"; 2]))), refused);
    assert!((1..=200).contains(&visited(&world)));
    // Those that are alike are judged once.
    for number in 1..=200 {
        let whole = on(number, false, "2 cpu");
        world.ask(host(300), number, &whole, 1);
    }
    let spec = named(Arrange::StrictSpread, &["2 cpu"; 200]);
    for number in 2..=11 {
        assert_eq!(show(&ask(&mut world, number, &spec)), "");
    }
    visited(&world);
    let lost = show(&world.step(Event::NodeDown { node: node(200) }));
    assert!(lost.contains("group-2 infeasible") && lost.contains("group-11 infeasible"), "{lost}");
    assert!((1..=200).contains(&visited(&world)));
}

#[test]
fn all_of_it_or_nothing() {
    let mut world = World::new(&["2 cpu", "2 cpu"]);
    world.ask(host(9), 0, &class("1 cpu"), 1);
    assert_eq!(show(&ask(&mut world, 1, &group(Arrange::Pack, &["2 cpu", "2 cpu"]))), "");
    // Nothing is held for it: two gangs cannot hold what the other lacks.
    assert_eq!(show(&ask(&mut world, 2, &group(Arrange::Pack, &["2 cpu"]))), "group-2 0:node-2");
    assert_eq!(show(&world.release(1)), "ended lease-1");
    let gone = Event::GroupGone { group: GroupId { number: 2 } };
    assert_eq!(show(&world.step(gone)), "group-1 0:node-1+1:node-2");
}

#[test]
fn work_runs_inside() {
    let mut world = World::new(&["4 cpu 2 gpu"]);
    ask(&mut world, 1, &group(Arrange::Pack, &["2 cpu", "1 gpu"]));
    assert_eq!(world.available(1), "2 CPU, 1 GPU");
    assert_eq!(show(&world.ask(host(9), 0, &inside(1, None, "1 cpu"), 5)), "node-1 x2");
    assert_eq!(
        world.scheduler.why(host(9), 0).unwrap(),
        "waits for 3 slots of 1 CPU each: the bundles of group-1 that fit are in use"
    );
    assert_eq!(show(&world.ask(host(9), 1, &inside(1, Some(1), "0.5 gpu"), 1)), "node-1 GPU 0:0.5");
    assert_eq!(world.available(1), "2 CPU, 1 GPU", "charged already");
    // What ends inside serves those inside; a task that waits gives its CPU to them.
    assert_eq!(show(&world.release(1)), "ended lease-1, node-1 x2");
    let lease = LeaseId { number: 3 };
    assert_eq!(show(&world.step(Event::Block { lease, slots: 1 })), "node-1 x1");
    let refused = |world: &mut World, class: &Class| show(&world.ask(host(9), 7, class, 1));
    assert_eq!(
        refused(&mut world, &inside(1, Some(2), "1 cpu")),
        "infeasible: group-1 has no bundle 2: it has 2, counted from 0"
    );
    assert_eq!(
        refused(&mut world, &inside(1, Some(1), "1 cpu")),
        "infeasible: one slot needs 1 CPU, but bundle 1 of group-1 has 0 CPU"
    );
    assert_eq!(
        refused(&mut world, &inside(1, None, "3 cpu")),
        "infeasible: one slot needs 3 CPU, more than any bundle of group-1 has"
    );
    assert_eq!(
        refused(&mut world, &inside(5, None, "1 cpu")),
        "infeasible: group-5 is unknown: it was removed, or refused"
    );
    let foreign = inside(1, None, "1 cpu");
    assert_eq!(
        show(&world.ask_as(2, host(8), 0, &foreign, 1, &[])),
        "infeasible: group-1 belongs to another job"
    );
}

#[test]
fn a_removed_group_takes_all_with_it() {
    let mut world = World::new(&["4 cpu"]);
    ask(&mut world, 1, &group(Arrange::Pack, &["2 cpu"]));
    world.ask(host(9), 0, &inside(1, None, "1 cpu"), 3);
    world.ask(host(9), 1, &class("4 cpu"), 1);
    assert_eq!(
        show(&world.step(Event::GroupGone { group: GroupId { number: 1 } })),
        "infeasible: group-1 is unknown: it was removed, or refused, removed lease-1, ended lease-1, node-1 x1"
    );
}

#[test]
fn what_a_dead_node_held_is_placed_again() {
    // The node that is left cannot hold the rest: what is there goes on, and the rest waits for another node.
    let mut world = World::new(&["2 cpu", "2 cpu"]);
    ask(&mut world, 1, &group(Arrange::StrictSpread, &["1 cpu", "1 cpu"]));
    world.ask(host(9), 0, &inside(1, Some(1), "1 cpu"), 2);
    assert_eq!(show(&world.ask(host(9), 1, &inside(1, Some(0), "1 cpu"), 1)), "node-1 x1");
    let down = |number| Event::NodeDown { node: node(number) };
    assert_eq!(show(&world.step(down(2))), "lost lease-1, ended lease-1, group-1 lost [1]");
    let why = |world: &World| world.scheduler.why_group(GroupId { number: 1 }).unwrap();
    assert_eq!(
        why(&world),
        "needs 1 bundle of 1 CPU (strict spread) beside the 1 that it has; the nodes have no room for all of it even \
         with nothing else on them; position 1 of the default queue"
    );
    let unmet = world.scheduler.unmet();
    let told: Vec<_> = unmet.iter().map(|u| (u.resources.to_string(), u.count, u.gang.is_some())).collect();
    assert_eq!(told, [("1 CPU".to_owned(), 1, true)]);
    // Nor is it refused later, whatever else comes and goes.
    assert_eq!(show(&world.up(node(3), "1 gpu")), "");
    assert_eq!(show(&world.step(down(3))), "");
    assert_eq!(show(&world.up(node(4), "2 cpu")), "group-1 1:node-4, node-4 x1");
    // Even where nothing of it is left, and no node is of a size for it.
    let mut world = World::new(&["4 cpu", "2 cpu"]);
    ask(&mut world, 1, &group(Arrange::Pack, &["3 cpu"]));
    assert_eq!(show(&world.step(down(1))), "group-1 lost [0]");
    assert_eq!(
        why(&world),
        "waits for a node that fits: no node has 3 CPU: the most any node has is 2 (node-2)"
    );
    assert_eq!(show(&world.up(node(3), "4 cpu")), "group-1 0:node-3");
    // One that never was there is impossible.
    let mut world = World::new(&["2 cpu", "2 cpu", "1 cpu"]);
    world.ask(host(9), 0, &on(3, false, "1 cpu"), 1);
    assert_eq!(show(&ask(&mut world, 1, &group(Arrange::StrictSpread, &["1 cpu"; 3]))), "");
    assert_eq!(
        show(&world.step(down(2))),
        "group-1 infeasible: 3 bundles need as many places, and there are 2"
    );
}

#[test]
fn bundles_move_while_their_node_drains() {
    let drain = |number| Event::NodeDrain { node: node(number) };
    let resume = |number| Event::NodeResume { node: node(number) };
    let mut world = World::new(&["2 cpu", "2 cpu", "2 cpu"]);
    ask(&mut world, 1, &group(Arrange::Spread, &["1 cpu"; 2]));
    // Nothing runs in it: at once.
    assert_eq!(show(&world.step(drain(1))), "group-1 lost [0], group-1 0:node-3");
    // What runs in it ends first, and gets nothing more meanwhile; what waits inside goes along.
    world.ask(host(9), 0, &inside(1, Some(1), "0.5 cpu"), 3);
    assert_eq!(show(&world.step(drain(2))), "");
    let lease = LeaseId { number: 1 };
    assert_eq!(show(&world.step(Event::Shrink { lease, slots: 1 })), "");
    assert_eq!(show(&world.release(1)), "ended lease-1, group-1 lost [1], group-1 1:node-3, node-3 x1");

    // Strictly together: only when the last of them is empty, and nowhere while there is no other place.
    let mut world = World::new(&["4 cpu", "1 cpu"]);
    ask(&mut world, 1, &group(Arrange::StrictPack, &["1 cpu"; 2]));
    world.ask(host(9), 0, &inside(1, Some(0), "1 cpu"), 1);
    assert_eq!(show(&world.step(drain(1))), "group-1 lost [1]");
    assert_eq!(show(&world.release(1)), "ended lease-1, group-1 lost [0]");
    assert_eq!(
        world.scheduler.why_group(GroupId { number: 1 }).unwrap(),
        "needs 2 bundles of 1 CPU each (strict pack); the nodes, but for those that drain, have no room for all of it even \
         with nothing else on them; position 1 of the default queue"
    );
    assert_eq!(show(&world.step(resume(1))), "group-1 0:node-1+1:node-1", "it stays after all");
    world.step(drain(1));
    assert_eq!(show(&world.up(node(3), "2 cpu")), "group-1 0:node-3+1:node-3");
    assert_eq!(show(&world.step(Event::NodeDown { node: node(1) })), "", "nothing of it was left there");
}

#[test]
fn a_group_that_waits_asks_holders_as_classes_do() {
    let idle = |world: &mut World| show(&world.tick(50));
    let mut world = World::new(&["2 cpu", "1 cpu 1 gpu"]);
    world.ask(host(9), 0, &class("1 gpu"), 1);
    assert_eq!(show(&world.ask_as(2, host(10), 0, &class("1 cpu"), 99, &[])), "node-1 x2, node-2 x1");
    assert_eq!(show(&ask(&mut world, 1, &group(Arrange::Pack, &["1 cpu"]))), "");
    assert_eq!(idle(&mut world), "idle? lease-2, idle? lease-3", "not the GPU's");
    let shrunk = Event::Shrink { lease: LeaseId { number: 2 }, slots: 1 };
    assert_eq!(
        show(&world.step(shrunk)),
        "group-1 0:node-1",
        "its turn came before that of whoever holds all"
    );
    // Not for what could never go there, nor of queues that have less than their share.
    let mut world = World::new(&["2 cpu", "2 cpu 1 gpu"]);
    world.step(Event::Queues(vec![super::sharing::queue("a"), super::sharing::queue("b")]));
    let of = |queue: &str, text| Class { queue: queue.to_owned(), ..class(text) };
    world.ask_as(1, host(10), 0, &of("a", "1 cpu"), 2, &[]);
    world.ask_as(2, host(11), 0, &of("b", "2 cpu 1 gpu"), 1, &[]);
    let with_gpu = |queue: &str| Group { queue: queue.to_owned(), ..group(Arrange::Pack, &["1 cpu 1 gpu"]) };
    ask(&mut world, 1, &with_gpu("a"));
    assert_eq!(idle(&mut world), "");
    ask(&mut world, 2, &with_gpu(""));
    assert_eq!(idle(&mut world), "idle? lease-2");
    let mut world = World::new(&["2 cpu"]);
    world.step(Event::Queues(vec![super::sharing::queue("a"), super::sharing::queue("b; weight 9")]));
    world.ask_as(1, host(10), 0, &of("a", "1 cpu"), 1, &[]);
    world.ask_as(2, host(11), 0, &of("b", "0.5 cpu"), 2, &[]);
    ask(&mut world, 1, &Group { queue: "a".to_owned(), ..group(Arrange::Pack, &["0.5 cpu"]) });
    assert_eq!(idle(&mut world), "idle? lease-1");
    // Nor does it ask what matters more, before it has waited long enough.
    let mut world = World::new(&["1 cpu"]);
    world.ask(host(10), 0, &Class { priority: 1, ..class("1 cpu") }, 99);
    ask(&mut world, 1, &group(Arrange::Pack, &["1 cpu"]));
    assert_eq!(idle(&mut world), "");
    world.now = Millis(29_900);
    world.step(Event::Renew { lease: LeaseId { number: 1 } });
    assert_eq!(idle(&mut world), "");
    assert_eq!(idle(&mut world), "idle? lease-1");
}

#[test]
fn in_a_group_everybody_has_a_turn() {
    let mut world = World::new(&["4 cpu", "4 cpu"]);
    ask(&mut world, 1, &group(Arrange::Spread, &["2 cpu", "2 cpu"]));
    let (train, eval) = (inside(1, Some(0), "1 cpu"), inside(1, None, "1 cpu"));
    assert_eq!(show(&world.ask(host(9), 0, &train, 99)), "node-1 x2");
    assert_eq!(show(&world.ask(host(9), 1, &inside(1, Some(1), "2 cpu"), 1)), "node-2 x1");
    let last = |world: &World| world.scheduler.leases().last().unwrap().lease.owner;
    world.now = Millis(100);
    assert_eq!(show(&world.ask(host(8), 0, &eval, 9)), "idle? lease-1, idle? lease-2");
    // What comes back goes to whose turn it is, not to who always has more to do.
    for (second, owner) in [(2, host(9)), (3, host(8)), (4, host(9)), (5, host(8))] {
        world.now = Millis(second * 100);
        let newest = world.scheduler.leases().last().unwrap().lease.id.number;
        let lease = if second == 2 { 1 } else { newest };
        assert_eq!(show(&world.release(lease)), format!("ended lease-{lease}, node-1 x2"));
        assert_eq!(last(&world), owner);
    }
    // Priority counts there, too: what matters more goes first, and is not asked for.
    let urgent = Class { priority: 1, ..train };
    assert_eq!(show(&world.ask(host(7), 0, &urgent, 2)), "idle? lease-6");
    assert_eq!(show(&world.release(6)), "ended lease-6, node-1 x2");
    assert_eq!(last(&world), host(7));
    world.now = Millis(1600);
    let all: Vec<LeaseId> = world.scheduler.leases().map(|view| view.lease.id).collect();
    all.into_iter().for_each(|lease| drop(world.step(Event::Renew { lease })));
    assert_eq!(show(&world.tick(0)), "idle? lease-2");
}

/// A bundle of 8 CPU full of short work of which there is always more, and what needs all of it and matters more.
fn crowded(large: &Class) -> World {
    let mut world = World::with(Options { term: Millis(1_000_000), ..Options::default() }, &["8 cpu"]);
    ask(&mut world, 1, &group(Arrange::Pack, &["8 cpu"]));
    assert_eq!(show(&world.ask(host(9), 0, &inside(1, None, "1 cpu"), 9999)), "node-1 x8");
    assert_eq!(granted(world.ask(host(8), 0, large, 1)), "");
    world
}

/// What is granted of all that happens.
fn granted(mut effects: Vec<Effect>) -> String {
    effects.retain(|effect| matches!(effect, Effect::Grant(_)));
    show(&effects)
}

/// One slot of the oldest lease ends.
fn one_ends(world: &mut World) -> String {
    let lease = world.scheduler.leases().next().unwrap().lease.id;
    granted(world.step(Event::Shrink { lease, slots: 1 }))
}

#[test]
fn nothing_starves_inside() {
    let mut world = crowded(&Class { priority: 10, ..inside(1, None, "8 cpu") });
    for second in 1..=9 {
        world.tick(1000);
        assert_eq!(one_ends(&mut world), "node-1 x1", "after {second} s");
    }
    // From now on nothing goes ahead of it, until all of the bundle came free.
    for _ in 0..7 {
        world.tick(1000);
        assert_eq!(one_ends(&mut world), "");
    }
    assert_eq!(
        world.scheduler.why(host(9), 0).unwrap(),
        "waits for 9982 slots of 1 CPU each: what is free in group-1 is kept for what has waited longer"
    );
    assert_eq!(one_ends(&mut world), "node-1 x1");
    let newest = world.scheduler.leases().last().unwrap().lease.clone();
    assert_eq!(newest.owner, host(8));
    assert_eq!(granted(world.release(newest.id.number)), "node-1 x8");
}

#[test]
fn what_could_not_be_granted_inside_in_time_holds_up_the_others_half_of_the_time() {
    let large = Class { priority: 1, ..inside(1, None, "8 cpu") };
    let mut world = crowded(&large);
    world.tick(10_000);
    assert_eq!(one_ends(&mut world), "");
    assert_eq!(one_ends(&mut world), "");
    // What is left runs for ever.
    world.tick(59_900);
    assert_eq!(granted(world.tick(50)), "");
    let next = world.scheduler.next_tick().unwrap();
    assert!(next <= Millis(70_000), "{next:?}");
    assert_eq!(granted(world.tick(50)), "node-1 x2");
    assert_eq!(one_ends(&mut world), "node-1 x1");
    world.tick(60_000);
    assert_eq!(one_ends(&mut world), "");
    // Who waits no longer holds up nobody.
    assert_eq!(granted(world.ask(host(8), 0, &large, 0)), "node-1 x1");
    // Nor does what waits for other bundles, or has not waited for long.
    let mut world = World::with(Options { term: Millis(1_000_000), ..Options::default() }, &["8 cpu"; 2]);
    ask(&mut world, 1, &group(Arrange::Spread, &["4 cpu", "4 cpu"]));
    world.ask(host(9), 0, &inside(1, None, "1 cpu"), 9999);
    world.ask(host(8), 0, &inside(1, Some(1), "3 cpu"), 1);
    world.tick(10_000);
    world.ask(host(8), 1, &inside(1, Some(0), "4 cpu"), 1);
    assert_eq!(granted(world.step(Event::Shrink { lease: LeaseId { number: 1 }, slots: 1 })), "node-1 x1");
    assert_eq!(granted(world.step(Event::Shrink { lease: LeaseId { number: 2 }, slots: 2 })), "");
    assert_eq!(granted(world.step(Event::Shrink { lease: LeaseId { number: 2 }, slots: 1 })), "node-2 x1");
}

#[test]
fn label_rules_are_the_groups() {
    let mut world = World::new(&["2 cpu|zone=us", "2 cpu|zone=eu"]);
    ask(&mut world, 1, &group(Arrange::Spread, &["1 cpu", "1 cpu"]));
    let rules = vec![is_in("zone", &["eu"])];
    let want = "infeasible: work in group-1 runs where its bundles are: leave its label rules out, or give them to the group";
    let labelled = Class { labels: rules.clone(), ..inside(1, None, "1 cpu") };
    assert_eq!(show(&world.ask(host(9), 0, &labelled, 1)), want);
    let fallback = Class { fallbacks: vec![rules], ..inside(1, None, "1 cpu") };
    assert_eq!(show(&world.ask(host(9), 0, &fallback, 1)), want);
}
