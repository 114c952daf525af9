//! Devices, classes without resources, order, fairness, and asking for idle leases.

use mobula_proto::{Group, GroupId, group::Arrange, resource::Isolation};

use super::*;
use crate::Preempt;

#[track_caller]
fn check(nodes: &[&str], asks: &[(&Class, u32)], want: &str) -> World {
    let mut world = World::new(nodes);
    let mut all = Vec::new();
    for (key, (class, backlog)) in (0..).zip(asks) {
        all.extend(world.ask(host(9), key, class, *backlog));
    }
    assert_eq!(show(&all), want);
    world
}

#[test]
fn devices_are_granted_one_slot_a_lease() {
    let half = class("0.5 gpu");
    let third = class("0.3 gpu");
    check(&["8 cpu 2 gpu"], &[(&half, 3)], "node-1 GPU 0:0.5, node-1 GPU 0:0.5, node-1 GPU 1:0.5");
    // Fractions share a device; what is left of several is not one.
    let world = check(
        &["8 cpu 2 gpu"],
        &[(&third, 6), (&half, 1)],
        "node-1 GPU 0:0.3, node-1 GPU 0:0.3, node-1 GPU 0:0.3, \
         node-1 GPU 1:0.3, node-1 GPU 1:0.3, node-1 GPU 1:0.3, \
         idle? lease-1, idle? lease-2, idle? lease-3, idle? lease-4, idle? lease-5, idle? lease-6",
    );
    assert_eq!(world.available(1), "8 CPU, 0.2 GPU");
    // Above one, whole ones.
    check(
        &["4 gpu"],
        &[(&class("0.1 gpu"), 1), (&class("2 gpu"), 2)],
        "node-1 GPU 0:0.1, node-1 GPU 1:1+GPU 2:1, idle? lease-1",
    );
    check(&["1 gpu 1 tpu"], &[(&class("1 gpu 0.5 tpu"), 1)], "node-1 GPU 0:1+TPU 0:0.5");
}

#[test]
fn a_process_is_one_slots() {
    let process = Class { isolation: Isolation::Process, ..class("1 cpu") };
    check(&["4 cpu"], &[(&process, 3)], "node-1 x1, node-1 x1, node-1 x1");
    let mut world = check(&["4 cpu"], &[(&process, 1)], "node-1 x1");
    assert_eq!(show(&world.ask(host(9), 0, &process, 2)), "node-1 x1, node-1 x1");
    // Nobody starts processes without end.
    let idle = Class { isolation: Isolation::Process, ..class("") };
    let mut world = World::new(&["4 cpu"]);
    assert_eq!(world.ask(host(9), 0, &idle, 5000).len(), 1024);
    assert_eq!(show(&world.release(1)), "ended lease-1, node-1 x1");
}

#[test]
fn fractions_fill_the_fullest_device_first() {
    let mut world = World::new(&["2 gpu"]);
    world.ask(host(9), 0, &class("0.6 gpu"), 2);
    world.release(1);
    assert_eq!(show(&world.ask(host(9), 1, &class("0.4 gpu"), 1)), "node-1 GPU 1:0.4");
    assert_eq!(show(&world.ask(host(9), 2, &class("1 gpu"), 1)), "node-1 GPU 0:1");
}

#[test]
fn listed_devices_keep_their_indices() {
    let mut world = World::new(&[]);
    let device = |index| mobula_proto::resource::Device {
        kind: Kind::Gpu,
        index,
        model: String::new(),
        memory_bytes: 0,
        uuid: String::new(),
    };
    world.step(Event::NodeUp {
        node: node(1),
        total: resources("2 gpu"),
        devices: vec![device(7), device(3)],
        labels: Vec::new(),
    });
    assert_eq!(show(&world.ask(host(9), 0, &class("2 gpu"), 1)), "node-1 GPU 3:1+GPU 7:1");
}

#[test]
fn nothing_to_hold_is_granted_in_thousands() {
    let nothing = class("");
    check(&["1 cpu"], &[(&nothing, 5_000)], "node-1 x5000");
    check(&["1 cpu", "1 cpu"], &[(&nothing, 5_000_000)], "node-1 x4194304, node-2 x805696");
    let mut world = check(&["1 cpu"], &[(&nothing, 5_000_000)], "node-1 x4194304");
    assert_eq!(world.available(1), "1 CPU");
    assert_eq!(show(&world.release(1)), "ended lease-1, node-1 x805696");
    // A driver's own agent runs nothing.
    check(&["", "1 cpu"], &[(&nothing, 1)], "node-2 x1");
}

#[test]
fn a_lease_says_what_was_asked() {
    let mut world = World::new(&["4 cpu"]);
    world.now = Millis(50);
    world.step(Event::Queues(vec![mobula_proto::Queue::new("night")]));
    let class = Class { queue: "night".to_owned(), priority: -3, ..class("1 cpu") };
    let effects = world.step(Event::Demand {
        owner: host(9),
        key: 6,
        job: JobId { number: 4 },
        class: Arc::new(class.clone()),
        backlog: 2,
        attempt: 5,
        locality: Vec::new(),
    });
    let want = Lease {
        id: LeaseId { number: 1 },
        owner: host(9),
        key: 6,
        job: JobId { number: 4 },
        node: node(1),
        slots: 2,
        class: Arc::new(class),
        bundle: None,
        devices: Vec::new(),
        priority: -3,
        attempt: 5,
        incarnation: 1,
        term: Millis(1000),
        expires: Millis(1050),
    };
    assert_eq!(effects, [Effect::Grant(want)]);
}

/// Demands wait on a node of 6 CPU that someone holds; then it is freed. What each job gets of it, by job.
#[track_caller]
fn check_order(asks: &[(u64, i32, &str, u32)], want: &[(u64, u32)]) {
    let mut world = World::new(&["6 cpu"]);
    world.ask_as(99, host(50), 0, &class("6 cpu"), 1, &[]);
    for (i, (job, priority, text, backlog)) in (0..).zip(asks) {
        let class = Class { priority: *priority, ..class(text) };
        world.ask_as(*job, host(10 + i), 0, &class, *backlog, &[]);
    }
    let got: Vec<_> = world
        .release(1)
        .iter()
        .filter_map(|effect| match effect {
            Effect::Grant(lease) => Some((lease.job.number, lease.slots)),
            _ => None,
        })
        .collect();
    assert_eq!(got, want);
}

#[test]
fn order_is_priority_then_fewest_slots_then_arrival() {
    let one = "1 cpu";
    // Within a job, first come, first served.
    check_order(&[(1, 0, one, 4), (1, 0, one, 4)], &[(1, 4), (1, 2)]);
    // Priority goes first.
    check_order(&[(1, 0, one, 9), (2, 1, one, 4)], &[(2, 4), (1, 2)]);
    // A huge backlog does not starve another job; nor do many demands.
    check_order(&[(1, 0, one, 9999), (2, 0, one, 9999)], &[(1, 3), (2, 3)]);
    check_order(&[(1, 0, one, 9999), (2, 0, one, 1)], &[(1, 5), (2, 1)]);
    check_order(&[(1, 0, one, 3), (1, 0, one, 3), (2, 0, one, 3)], &[(1, 3), (2, 3)]);
    check_order(&[(1, 0, one, 9), (2, 0, one, 9), (3, 0, one, 9)], &[(1, 2), (2, 2), (3, 2)]);
    // What does not fit lets others go ahead.
    check_order(&[(1, 5, "4 cpu", 2), (2, 0, one, 9)], &[(1, 1), (2, 2)]);
}

#[test]
fn who_holds_fewer_goes_first_later_on() {
    let mut world = World::new(&["4 cpu"]);
    let one = class("1 cpu");
    for key in 0..4 {
        world.ask_as(1, host(10), key, &one, 1, &[]);
    }
    world.ask_as(1, host(10), 4, &one, 100, &[]);
    world.ask_as(2, host(20), 0, &one, 100, &[]);
    let owners: Vec<u64> = (1..5)
        .flat_map(|lease| world.release(lease))
        .filter_map(|e| if let Effect::Grant(lease) = e { Some(lease.job.number) } else { None })
        .collect();
    assert_eq!(owners, [2, 2, 1, 1], "job 2 until it is level with job 1, then the older demand");
}

#[test]
fn holders_of_what_is_short_are_asked_once_a_term() {
    let preempt = Preempt { patience: Millis(u64::MAX), ..Preempt::default() };
    let mut world = World::with(Options { preempt, ..Options::default() }, &["2 cpu", "1 cpu 1 gpu"]);
    let (low, high) = (class("1 cpu"), Class { priority: 2, ..class("1 cpu") });
    assert_eq!(show(&world.ask(host(10), 0, &low, 3)), "node-1 x2, node-2 x1");
    assert_eq!(show(&world.ask(host(10), 1, &class("1 gpu"), 1)), "node-2 GPU 0:1");
    assert_eq!(show(&world.ask(host(20), 0, &high, 1)), "idle? lease-1, idle? lease-2", "not the GPU's");
    assert_eq!(show(&world.ask(host(30), 0, &high, 1)), "", "asked already");
    let renew = |world: &mut World| {
        for number in 1..=4 {
            world.step(Event::Renew { lease: LeaseId { number } });
        }
    };
    world.now = Millis(600);
    renew(&mut world);
    assert_eq!(show(&world.tick(0)), "");
    assert_eq!(world.scheduler.next_tick(), Some(Millis(650)), "for leases that others got meanwhile");
    assert_eq!(show(&world.tick(400)), "idle? lease-1, idle? lease-2");
    assert_eq!(show(&world.release(2)), "ended lease-2, node-2 x1");
    // What matters more is not asked for what matters less, until that has waited long enough to matter as much.
    let mut quiet = World::new(&["1 cpu"]);
    quiet.ask(host(10), 0, &high, 1);
    assert_eq!(show(&quiet.ask(host(20), 0, &low, 1)), "");
    let mut later = |second: u64| {
        quiet.now = Millis(second * 1000);
        quiet.step(Event::Renew { lease: LeaseId { number: 1 } });
        show(&quiet.tick(0))
    };
    assert_eq!([later(59), later(60)], ["", "idle? lease-1"]);
    // Between queues priority is nothing.
    let mut two = World::new(&["1 cpu"]);
    two.step(Event::Queues(vec![mobula_proto::Queue::new("a")]));
    two.ask(host(10), 0, &high, 1);
    let other = Class { queue: "a".to_owned(), ..low };
    assert_eq!(show(&two.ask(host(20), 0, &other, 1)), "idle? lease-1");
}

#[test]
fn who_hears_of_a_lease_hears_who_waits_for_it() {
    let mut world = World::new(&["2 cpu 1 gpu"]);
    let (one, low) = (class("1 cpu"), Class { priority: -1, ..class("1 cpu") });
    let hears = |world: &mut World, number| show(&world.step(Event::Announced { lease: LeaseId { number } }));
    assert_eq!(show(&world.ask(host(10), 0, &one, 1)), "node-1 x1");
    assert_eq!(hears(&mut world, 1), "", "nobody waits");
    assert_eq!(show(&world.ask(host(10), 1, &class("1 gpu"), 1)), "node-1 GPU 0:1");
    assert_eq!(show(&world.ask(host(20), 0, &one, 1)), "node-1 x1");
    assert_eq!(show(&world.ask(host(20), 1, &low, 1)), "", "what matters more is not asked for");
    assert_eq!(hears(&mut world, 3), "", "nor when it is heard of");
    assert_eq!(show(&world.ask(host(30), 0, &one, 2)), "idle? lease-1, idle? lease-3");
    assert_eq!(show(&world.release(1)), "ended lease-1, node-1 x1");
    assert_eq!(hears(&mut world, 2), "", "a GPU helps nobody");
    assert_eq!(hears(&mut world, 4), "", "its own next slot waits");
    assert_eq!(show(&world.ask(host(40), 0, &one, 1)), "idle? lease-4");
    assert_eq!(show(&world.release(3)), "ended lease-3, node-1 x1");
    assert_eq!(hears(&mut world, 5), "idle? lease-5");
    assert_eq!(hears(&mut world, 5), "", "once a term");
    assert_eq!(hears(&mut world, 3), "", "it has ended");

    // What it holds is not all that is lacking.
    let mut world = World::new(&["4 cpu"]);
    assert_eq!(show(&world.ask(host(10), 0, &class("2 cpu"), 1)), "node-1 x1");
    assert_eq!(show(&world.ask(host(20), 0, &class("4 cpu"), 1)), "idle? lease-1");
    assert_eq!(show(&world.ask(host(30), 0, &one, 1)), "node-1 x1");
    assert_eq!(hears(&mut world, 2), "");
    assert_eq!(
        show(&world.ask(host(40), 0, &class("3 cpu"), 1)),
        "idle? lease-2",
        "one who asks for himself"
    );
    world.release(1);
    // It would not be its turn: what it gave up would come back.
    let mut world = World::new(&["3 cpu"]);
    let queue =
        |name, weight| mobula_proto::Queue { weight: amount(weight), ..mobula_proto::Queue::new(name) };
    world.step(Event::Queues(vec![queue("a", "9"), queue("b", "1")]));
    let of = |queue: &str| Class { queue: queue.to_owned(), ..class("1 cpu") };
    for (owner, queue) in [(10, "b"), (20, "a"), (30, "b"), (21, "a"), (31, "b")] {
        world.ask(host(owner), 0, &of(queue), 1);
    }
    assert_eq!(show(&world.release(1)), "ended lease-1, node-1 x1");
    assert_eq!(world.scheduler.lease(LeaseId { number: 4 }).unwrap().lease.owner, host(21));
    assert_eq!(hears(&mut world, 4), "");
}

#[test]
fn whoever_waits_comes_to_every_node() {
    // Each look is at a part of the nodes; those who wait, and look one after the other, must not always see the same part.
    for (nodes, waiting) in [(128, 2), (256, 4), (192, 3), (320, 1)] {
        let preempt = Preempt { patience: Millis(u64::MAX), reserve: Millis(u64::MAX), ..Preempt::default() };
        let texts: Vec<String> = (1..=nodes).map(|number| format!("1 cpu|node=n{number}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut world =
            World { scheduler: Scheduler::new(Options { preempt, ..Options::default() }), now: Millis(0) };
        for (number, text) in (1..).zip(&texts) {
            let (amounts, label) = text.split_once('|').unwrap();
            let labels = vec![("node".to_owned(), label.split_once('=').unwrap().1.to_owned())];
            let total = resources(amounts);
            world
                .scheduler
                .step(Event::NodeUp { node: node(number), total, devices: Vec::new(), labels }, world.now);
        }
        let one = |owner: u32, key: u32, class: Class, backlog: u32| Event::Demand {
            owner: host(1000 + owner),
            key,
            job: JobId { number: owner.into() },
            class: Arc::new(class),
            backlog,
            attempt: 0,
            locality: Vec::new(),
        };
        world.scheduler.step(one(1, 0, spread("1 cpu"), nodes), world.now);
        assert_eq!(world.scheduler.leases().count(), nodes as usize);
        for far in (1..=nodes).step_by(37) {
            let holder = world.scheduler.leases().find(|view| view.lease.node == node(far)).unwrap().lease.id;
            let mut asked = Vec::new();
            for other in 0..waiting {
                let class = match other {
                    0 => labelled(&[is_in("node", &[&format!("n{far}")])], "1 cpu"),
                    _ => labelled(&[is_in("node", &["n1"])], "1 cpu"),
                };
                asked.extend(world.scheduler.step(one(2, other, class, 1), world.now));
            }
            for _ in 0..100 {
                world.now = world.now.plus(Millis(50));
                let ids: Vec<LeaseId> = world.scheduler.leases().map(|view| view.lease.id).collect();
                for lease in ids {
                    world.scheduler.step(Event::Renew { lease }, world.now);
                }
                asked.extend(world.scheduler.step(Event::Tick, world.now));
            }
            let heard = |effect: &Effect| matches!(effect, Effect::Revoke { lease, .. } if *lease == holder);
            assert!(
                asked.iter().any(heard),
                "{waiting} wait on {nodes} nodes, and node-{far} was never asked"
            );
            world.scheduler.step(Event::OwnerGone { owner: host(1002) }, world.now);
        }
    }
}

#[test]
fn waiting_tasks_give_back_their_cpu_only() {
    let mut world = World::new(&["2 cpu 100 memory"]);
    let lease = LeaseId { number: 1 };
    world.ask(host(10), 0, &class("1 cpu 40 memory"), 2);
    assert_eq!(world.available(1), "20 B memory");
    world.ask(host(10), 1, &class("1 cpu"), 5);
    assert_eq!(show(&world.step(Event::Block { lease, slots: 1 })), "node-1 x1");
    // More than there are is as many as there are.
    assert_eq!(show(&world.step(Event::Block { lease, slots: 9 })), "node-1 x1");
    assert_eq!(show(&world.step(Event::Unblock { lease, slots: 1 })), "");
    assert_eq!(world.scheduler.nodes().next().unwrap().overdraft, amount("1"));
    // What is given back pays for that first.
    assert_eq!(show(&world.release(2)), "ended lease-2");
    assert_eq!(world.scheduler.lease(lease).unwrap().blocked, 1);
    assert_eq!(show(&world.release(3)), "ended lease-3, node-1 x1");
    world.ask(host(10), 1, &class("1 cpu"), 0);
    world.release(1);
    world.release(4);
    assert_eq!(world.available(1), "2 CPU, 100 B memory");
}

#[test]
fn labels_tell_nodes_apart_only_as_long_as_some_rule_names_them() {
    let nodes: Vec<String> =
        (0..50).map(|number| format!("2 cpu|host=h{number} zone=z{}", number % 2)).collect();
    let mut world = World::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(world.scheduler.node_groups(), 1);
    world.ask(host(99), 1, &labelled(&[is_in("zone", &["z1"])], "1 cpu"), 99);
    world.ask(host(99), 2, &labelled(&[is_in("host", &["h7"])], "2 cpu"), 1);
    assert_eq!(world.scheduler.node_groups(), 50);
    world.ask(host(99), 2, &class("2 cpu"), 0);
    world.tick(60_000);
    assert_eq!(world.scheduler.node_groups(), 2, "one rule is still used");
    // Of the same key as before.
    world.ask(host(99), 3, &labelled(&[is_in("host", &["h8"])], "2 cpu"), 1);
    assert_eq!(world.scheduler.node_groups(), 50);
}

#[test]
fn groups_tell_nodes_apart_only_as_long_as_they_look_for_places() {
    let nodes: Vec<String> = (0..20).map(|number| format!("2 cpu|host=h{}", number / 2)).collect();
    let mut world = World::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
    let (group, job) = (GroupId { number: 1 }, JobId { number: 1 });
    let spec = Group {
        bundles: vec![resources("2 cpu"); 2],
        arrange: Arrange::StrictPack,
        place: "host".to_owned(),
        ..Group::default()
    };
    let placed = world.step(Event::Group { group, job, spec: Arc::new(spec) });
    assert_eq!(show(&placed), "group-1 0:node-1+1:node-2");
    assert_eq!(world.scheduler.node_groups(), 10);
    world.tick(60_000);
    assert_eq!(world.scheduler.node_groups(), 1);
    // What it lost is looked for as before.
    assert_eq!(show(&world.step(Event::NodeDown { node: node(2) })), "group-1 lost [1]");
    assert_eq!(world.scheduler.node_groups(), 10);
    world.tick(60_000);
    assert_eq!(world.scheduler.node_groups(), 10);
    assert_eq!(show(&world.up(node(21), "2 cpu|host=h0")), "group-1 1:node-21");
    // Nodes that have gone leave nothing behind, however many there were.
    let patient = Class { wait_for_node: true, ..labelled(&[is_in("host", &["none"])], "1 cpu") };
    world.ask(host(99), 1, &patient, 1);
    for number in 30..60 {
        world.up(node(number), &format!("2 cpu|host=new{number}"));
        assert_eq!(world.scheduler.node_groups(), 11);
        world.step(Event::NodeDown { node: node(number) });
        assert_eq!(world.scheduler.node_groups(), 10);
    }
}
