//! Terms, nodes and owners that come and go, and what is ignored.

use super::*;

#[test]
fn a_lease_lasts_for_its_term() {
    let mut world = World::new(&["1 cpu"]);
    world.ask(host(9), 0, &class("1 cpu"), 1);
    assert_eq!(world.scheduler.next_tick(), Some(Millis(1000)));
    assert_eq!(show(&world.tick(999)), "");
    world.step(Event::Renew { lease: LeaseId { number: 1 } });
    assert_eq!(show(&world.tick(999)), "");
    assert_eq!(show(&world.tick(1)), "expired lease-1, ended lease-1");
    assert_eq!(world.scheduler.next_tick(), None);
    assert_eq!(world.available(1), "1 CPU");
}

#[test]
fn what_expires_goes_to_who_waits() {
    let mut world = World::new(&["1 cpu"]);
    world.ask(host(9), 0, &class("1 cpu"), 1);
    world.ask(host(8), 0, &class("1 cpu"), 1);
    assert_eq!(show(&world.tick(1000)), "expired lease-1, ended lease-1, node-1 x1");
}

#[test]
fn time_does_not_run_backwards() {
    let mut world = World::new(&["1 cpu"]);
    world.tick(5000);
    world.now = Millis(10);
    world.ask(host(9), 0, &class("1 cpu"), 1);
    assert_eq!(world.scheduler.next_tick(), Some(Millis(6000)));
}

#[test]
fn a_lost_node_loses_its_leases_and_its_hosts() {
    let mut world = World::new(&["1 cpu", "1 cpu"]);
    world.ask(host(9), 0, &class("1 cpu"), 2);
    world.release(2);
    world.ask(host(1), 0, &class("1 cpu"), 2);
    assert_eq!(world.scheduler.leases().count(), 2);
    // Lease 1 is on node 1; lease 3 belongs to its host, and so does a demand.
    assert_eq!(
        show(&world.step(Event::NodeDown { node: node(1) })),
        "lost lease-1, ended lease-1, ended lease-3"
    );
    assert_eq!(world.scheduler.demands().count(), 0);
    assert_eq!(world.available(2), "1 CPU");
    assert_eq!(show(&world.step(Event::NodeDown { node: node(1) })), "");
}

#[test]
fn stale_incarnations_are_fenced() {
    let mut world = World::new(&["1 cpu"]);
    let again = NodeId { number: 1, incarnation: 2 };
    world.ask(host(9), 0, &class("1 cpu"), 2);
    assert_eq!(show(&world.up(again, "1 cpu")), "lost lease-1, ended lease-1, node-1.2 x1");
    assert_eq!(show(&world.up(node(1), "64 cpu")), "");
    assert_eq!(show(&world.up(again, "64 cpu")), "");
    assert_eq!(show(&world.step(Event::NodeDown { node: node(1) })), "");
    world.step(Event::NodeDrain { node: node(1) });
    assert!(!world.scheduler.nodes().next().unwrap().draining);
    world.ask(host(1), 0, &class("1 cpu"), 1);
    assert_eq!(world.scheduler.demands().count(), 0, "its host is of the old incarnation");
    world.step(Event::NodeDown { node: again });
    assert_eq!(show(&world.up(again, "1 cpu")), "", "the dead do not come back");
    assert_eq!(world.scheduler.nodes().count(), 0);
}

#[test]
fn hosts_that_asked_before_their_node_joined_go_with_it() {
    let mut world = World::new(&["1 cpu"]);
    world.ask(host(3), 0, &class("1 cpu"), 2);
    world.up(NodeId { number: 3, incarnation: 2 }, "");
    assert_eq!((world.scheduler.leases().count(), world.scheduler.demands().count()), (0, 0));
    world.ask(host(4), 0, &class("1 cpu"), 2);
    world.step(Event::NodeDown { node: node(4) });
    assert_eq!((world.scheduler.leases().count(), world.scheduler.demands().count()), (0, 0));
}

#[test]
fn a_draining_node_gets_nothing_new() {
    let mut world = World::new(&["2 cpu", "2 cpu"]);
    world.ask(host(9), 0, &class("1 cpu"), 1);
    world.step(Event::NodeDrain { node: node(1) });
    assert_eq!(show(&world.ask(host(9), 1, &class("1 cpu"), 3)), "node-2 x2");
    assert_eq!(show(&world.release(1)), "ended lease-1");
    assert_eq!(show(&world.step(Event::NodeResume { node: node(1) })), "node-1 x1");
}

#[test]
fn an_owner_that_is_gone_holds_and_wants_nothing() {
    let mut world = World::new(&["2 cpu"]);
    world.ask(host(9), 0, &class("1 cpu"), 1);
    world.ask(host(9), 1, &class("1 cpu"), 5);
    world.ask(host(8), 0, &class("1 cpu"), 9);
    assert_eq!(
        show(&world.step(Event::OwnerGone { owner: host(9) })),
        "ended lease-1, ended lease-2, node-1 x2"
    );
}

#[test]
fn a_demand_replaces_the_former_one_and_keeps_its_turn() {
    let mut world = World::new(&["1 cpu"]);
    let one = class("1 cpu");
    world.ask(host(9), 0, &one, 1);
    world.ask(host(8), 0, &one, 1);
    world.ask(host(7), 0, &one, 1);
    world.ask(host(8), 0, &one, 4);
    let next = |world: &mut World, lease| {
        world.release(lease);
        world.scheduler.leases().next().unwrap().lease.owner.node.number
    };
    assert_eq!(next(&mut world, 1), 8);
    world.ask(host(8), 0, &one, 0);
    assert_eq!(next(&mut world, 2), 7);
    assert_eq!(world.scheduler.demands().count(), 0);
}

#[test]
fn late_and_malformed_events_change_nothing() {
    let mut world = World::new(&["2 cpu"]);
    let lease = LeaseId { number: 77 };
    let refused = |event: Event| {
        let mut world = World::new(&[]);
        let text = event.validate().unwrap_err().to_string();
        assert_eq!(world.step(event), []);
        assert_eq!(world.scheduler.nodes().count(), 0);
        text
    };
    for event in [
        Event::Renew { lease },
        Event::Release { lease },
        Event::Block { lease, slots: 3 },
        Event::Unblock { lease, slots: 3 },
        Event::OwnerGone { owner: host(70) },
        Event::NodeDown { node: node(70) },
        Event::NodeDrain { node: node(70) },
        Event::Tick,
    ] {
        assert_eq!(world.step(event), []);
    }
    let up = |total: &str, devices: Vec<(Kind, u32)>, labels: &[(&str, &str)]| Event::NodeUp {
        node: node(2),
        total: resources(total),
        devices: devices
            .into_iter()
            .map(|(kind, index)| mobula_proto::resource::Device {
                kind,
                index,
                model: String::new(),
                memory_bytes: 0,
                uuid: String::new(),
            })
            .collect(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    assert!(refused(up("0.5 gpu", vec![], &[])).starts_with("0.5 GPU are not allowed on a node"));
    assert!(refused(up("9999 gpu", vec![], &[])).starts_with("9999 GPU are not allowed on a node"));
    assert!(
        refused(up("2 gpu", vec![(Kind::Gpu, 0)], &[])).starts_with("2 GPU are advertised, but 1 devices")
    );
    let twice = vec![(Kind::Gpu, 0), (Kind::Gpu, 0)];
    assert!(refused(up("2 gpu", twice, &[])).starts_with("GPU 0 is listed twice"));
    assert!(refused(up("", vec![(Kind::Cpu, 0)], &[])).starts_with("CPU is not a device"));
    assert!(refused(up("", vec![], &[("a", "x"), ("a", "y")])).starts_with("label a is given twice"));
    assert!(refused(up("", vec![], &[("a b", "x")])).starts_with("name \"a b\" is not allowed"));
    assert_eq!(
        show(&world.ask(host(9), 0, &class("1.5 gpu"), 1)),
        "infeasible: 1.5 GPU is not allowed: ask for a fraction of one device or for a whole number of devices"
    );
}

#[test]
fn amounts_beyond_all_measure_are_counted_right() {
    // Together more than 64 bits hold: 50 TB each, in ten-thousandths of a byte.
    let mut world = World::new(&["50000000000000 memory"; 40]);
    world.step(Event::Queues(vec![super::sharing::queue("a"), super::sharing::queue("b")]));
    let ask = |world: &mut World, job: u64, queue: &str| {
        let class = Class { queue: queue.to_owned(), ..class("10000000000000 memory") };
        world.ask_as(job, host(90), job as u32, &class, 1000, &[]);
    };
    ask(&mut world, 1, "a");
    assert_eq!(world.scheduler.leases().map(|view| view.lease.slots).sum::<u32>(), 200);
    // What one queue has counts for its share, and the other gets what comes free.
    ask(&mut world, 2, "b");
    let all: Vec<LeaseId> = world.scheduler.leases().map(|view| view.lease.id).collect();
    let granted: Vec<Effect> =
        all.into_iter().take(20).flat_map(|lease| world.release(lease.number)).collect();
    let of_b = |e: &&Effect| matches!(e, Effect::Grant(lease) if lease.class.queue == "b");
    assert_eq!(granted.iter().filter(of_b).count(), 20);
    // Nodes leave again, and a group of as much as can be said is refused.
    for number in 1..=20 {
        world.step(Event::NodeDown { node: node(number) });
    }
    let huge = mobula_proto::Group {
        bundles: vec![Resources::from_list([(Kind::Memory, Quantity::MAX)]).unwrap(); 1024],
        ..mobula_proto::Group::default()
    };
    let (group, job, spec) = (mobula_proto::GroupId { number: 1 }, JobId { number: 1 }, Arc::new(huge));
    let said = show(&world.step(Event::Group { group, job, spec }));
    assert!(said.starts_with("group-1 infeasible: bundle 0: no node has"), "{said}");
}

#[test]
fn one_owner_cannot_ask_without_end() {
    let mut world = World { scheduler: Scheduler::new(Options::default()), now: Millis(0) };
    let one = Arc::new(class("1 cpu"));
    let mut ask = |key| {
        let (owner, job, class) = (host(9), JobId { number: 1 }, Arc::clone(&one));
        let event = Event::Demand { owner, key, job, class, backlog: 1, attempt: 0, locality: Vec::new() };
        show(&world.scheduler.step(event, Millis(0)))
    };
    for key in 0..4096 {
        assert_eq!(ask(key), "");
    }
    assert_eq!(ask(4096), "infeasible: node-9/host-1 already waits for 4096 classes, the most that it may");
    assert_eq!(ask(7), "", "one that waits may change");
}
