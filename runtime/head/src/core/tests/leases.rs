use super::*;

fn granted(message: Option<ToAgent>) -> mobula_proto::host::Grant {
    match message {
        Some(ToAgent::Granted { grant, .. }) => grant,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_demand_becomes_a_reservation_then_a_grant() {
    let mut world = World::new();
    let a = world.join("a", 2);
    let b = world.join("b", 2);
    let job = world.start_job(a, 1);
    world.all(a.link);
    world.demand(a, a.host(1), job.job, 1, 4);
    let (lease_a, slots_a) = world.reserved(a);
    let reserve = world.first(b.link);
    let Some(ToAgent::Reserve { lease: lease_b, job: told, slots: slots_b, .. }) = reserve else {
        panic!("{reserve:?}")
    };
    assert_eq!((slots_a, slots_b), (2, 2));
    assert_eq!(told, job);
    assert!(world.said.is_empty(), "nobody is told before a host is named");

    world.says(b.link, ToHead::LeaseReady { lease: lease_b, host: b.host(1) });
    let grant = granted(world.first(a.link));
    assert_eq!((grant.lease, grant.host, grant.slots, grant.key), (lease_b, b.host(1), 2, 1));
    assert_eq!(grant.term_ms, 1000);
    world.says(a.link, ToHead::LeaseReady { lease: lease_a, host: a.host(2) });
    assert_eq!(granted(world.first(a.link)).host, a.host(2));

    // A lease that is renewed lasts; one that is not ends within its term, and both sides hear of it.
    for _ in 0..5 {
        world.pass(500);
        world.says(a.link, ToHead::Renew { leases: vec![lease_a] });
    }
    let heard = world.all(a.link);
    assert!(
        matches!(heard[..], [ToAgent::Revoked { owner, lease, kind: Revocation::Expired }]
            if owner == a.host(1) && lease == lease_b),
        "{heard:?}"
    );
    assert!(matches!(world.first(b.link), Some(ToAgent::LeaseEnded { lease, .. }) if lease == lease_b));
    world.says(a.link, ToHead::Release { lease: lease_a });
    assert!(matches!(world.first(a.link), Some(ToAgent::LeaseEnded { lease, .. }) if lease == lease_a));
    world.says(a.link, ToHead::JobEnd { job: job.job, failure: died() });
    // The driver's node waits for what the other printed; that one has nothing to wait for.
    let ended = |message: Option<ToAgent>| match message {
        Some(ToAgent::JobEnded { nodes, .. }) => nodes,
        other => panic!("{other:?}"),
    };
    assert!(ended(world.first(b.link)).is_empty());
    assert_eq!(ended(world.first(a.link)), [b.node]);
    world.assert_idle();
}

#[test]
fn the_shapes_of_what_waits_are_shown() {
    let mut world = World::new();
    let a = world.join("a", 2);
    let job = world.start_job(a, 1);
    world.demand(a, a.host(1), job.job, 1, 5);
    let told = world.core.snapshot().unmet;
    let cpus = told.iter().map(|shape| (shape.resources.get("CPU").copied(), shape.count));
    assert_eq!(cpus.collect::<Vec<_>>(), [(Some(1.0), 3)], "two of five run: {told:?}");
}

#[test]
fn who_is_pinned_to_a_node_waits_for_no_other() {
    let mut world = World::new();
    world.core.options.node_types = vec![mobula_scheduler::autoscale::NodeType {
        name: "small".to_owned(),
        resources: Resources::cpu(Quantity::whole(4)),
        labels: Vec::new(),
        min: 0,
        max: 1,
        idle_timeout: Millis(1000),
    }];
    let a = world.join("a", 1);
    let job = world.start_job(a, 1).job;
    // Nodes that may be started could hold it.
    world.demand(a, a.host(1), job, 2, 1);
    assert!(world.first(a.link).is_none());
    let class = Class {
        function: "f".to_owned(),
        resources: Resources::cpu(Quantity::whole(2)),
        strategy: mobula_proto::resource::Strategy::Node { node: a.node, soft: false },
        ..Class::default()
    };
    let (owner, locality) = (a.host(1), Vec::new());
    world.says(a.link, ToHead::Demand { owner, job, key: 2, class, backlog: 1, locality });
    let heard = world.first(a.link);
    assert!(matches!(heard, Some(ToAgent::Infeasible { key: 2, .. })), "{heard:?}");
}

#[test]
fn a_tick_looks_only_at_leases_that_wait_for_a_host() {
    let mut world = World::new();
    let a = world.join("a", 10_001);
    let job = world.start_job(a, 1).job;
    let class = Class {
        function: "f".to_owned(),
        resources: Resources::cpu(Quantity::ONE),
        isolation: mobula_proto::resource::Isolation::Process,
        ..Class::default()
    };
    let (owner, locality) = (a.host(1), Vec::new());
    world.says(a.link, ToHead::Demand { owner, job, key: 1, class, backlog: 10_001, locality });
    let leases: Vec<LeaseId> = (0..10_001).map(|_| world.reserved(a).0).collect();
    for lease in &leases[1..] {
        world.says(a.link, ToHead::LeaseReady { lease: *lease, host: a.host(2) });
    }
    world.core.leases.looked.take();
    world.step(Event::Tick);
    assert!(world.core.next_tick().is_some());
    assert_eq!(
        world.core.leases.looked.take(),
        2,
        "one waits for its host: for its renewal, and the next tick"
    );
    world.says(a.link, ToHead::LeaseReady { lease: leases[0], host: a.host(3) });
    world.step(Event::Tick);
    assert_eq!(world.core.leases.looked.take(), 0);
}

#[test]
fn a_slow_start_keeps_its_reservation_until_the_limit_and_then_goes_back() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 1);
    let (first, _) = world.reserved(a);
    world.pass(RESERVE_MS_MAX - 200);
    assert!(world.said.is_empty(), "{:?}", world.said);
    world.pass(1500);
    assert!(matches!(world.first(a.link), Some(ToAgent::LeaseEnded { lease, .. }) if lease == first));
    let (second, _) = world.reserved(a);
    assert!(second > first);
    // The answer to the first one comes too late, and the reservation is taken back.
    world.says(a.link, ToHead::LeaseReady { lease: first, host: a.host(2) });
    assert!(matches!(world.first(a.link), Some(ToAgent::LeaseEnded { lease, .. }) if lease == first));
    world.says(a.link, ToHead::LeaseReady { lease: second, host: a.host(2) });
    assert_eq!(granted(world.first(a.link)).lease, second);
}

#[test]
fn who_hears_of_a_lease_that_others_wait_for_hears_of_them_too() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 1);
    let (lease, _) = world.reserved(a);
    world.demand(a, a.host(2), job, 1, 1);
    world.pass(100);
    assert!(world.said.is_empty(), "nobody could give it back yet: {:?}", world.said);
    world.says(a.link, ToHead::LeaseReady { lease, host: a.host(3) });
    let heard = world.all(a.link);
    assert!(
        matches!(&heard[..], [ToAgent::Granted { grant, .. }, ToAgent::Revoked { lease: wanted, kind: Revocation::Idle, .. }]
            if grant.lease == lease && *wanted == lease),
        "{heard:?}"
    );
    world.says(a.link, ToHead::Release { lease });
    assert!(matches!(world.first(a.link), Some(ToAgent::LeaseEnded { .. })));
    assert!(world.reserved(a).0 > lease);
    // The same for who waited before it was granted, though no time passes.
    let mut first = World::new();
    let a = first.join("a", 1);
    let job = first.start_job(a, 1).job;
    for owner in 1..=3 {
        first.demand(a, a.host(owner), job, 1, 1);
    }
    for _ in 0..2 {
        let (lease, _) = first.reserved(a);
        first.says(a.link, ToHead::LeaseReady { lease, host: a.host(9) });
        let heard = first.all(a.link);
        assert!(matches!(
            heard[..],
            [ToAgent::Granted { .. }, ToAgent::Revoked { kind: Revocation::Idle, .. }]
        ));
        first.says(a.link, ToHead::Release { lease });
        assert!(matches!(first.first(a.link), Some(ToAgent::LeaseEnded { .. })));
    }
    let (lease, _) = first.reserved(a);
    first.says(a.link, ToHead::LeaseReady { lease, host: a.host(9) });
    assert!(matches!(first.all(a.link)[..], [ToAgent::Granted { .. }]), "nobody waits any more");
}

#[test]
fn a_node_that_dies_while_it_starts_a_host_costs_the_owner_nothing_but_time() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let b = world.join("b", 1);
    let job = world.start_job(a, 1).job;
    world.all(a.link);
    world.demand(a, a.host(1), job, 1, 2);
    let (on_a, _) = world.reserved(a);
    world.reserved(b);
    world.says(a.link, ToHead::LeaseReady { lease: on_a, host: a.host(2) });
    granted(world.first(a.link));
    world.step(Event::Lost { link: b.link, why: "gone".to_owned() });
    let heard = world.all(a.link);
    assert!(matches!(heard[..], [ToAgent::NodeDown { .. }]), "{heard:?}");
    // The wish is back in the queue, and is granted where there is room next.
    world.says(a.link, ToHead::Release { lease: on_a });
    assert!(matches!(world.first(a.link), Some(ToAgent::LeaseEnded { .. })));
    let (next, slots) = world.reserved(a);
    assert_eq!(slots, 1);
    assert!(next > on_a);
}

#[test]
fn repeating_a_demand_while_slots_are_reserved_does_not_double_it() {
    let mut world = World::new();
    let a = world.join("a", 8);
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 2);
    let (lease, slots) = world.reserved(a);
    assert_eq!(slots, 2);
    world.demand(a, a.host(1), job, 1, 3);
    let (more, slots) = world.reserved(a);
    assert_eq!(slots, 1);
    for lease in [lease, more] {
        world.says(a.link, ToHead::LeaseReady { lease, host: a.host(2) });
        granted(world.first(a.link));
    }
    assert!(world.said.is_empty());
    assert_eq!(world.core.scheduler.demands().count(), 0);
}

#[test]
fn a_dead_executor_ends_its_leases_and_everyone_hears_of_it() {
    let mut world = World::new();
    let a = world.join("a", 0);
    let b = world.join("b", 2);
    let job = world.start_job(a, 1).job;
    world.all(a.link);
    world.demand(a, a.host(1), job, 1, 2);
    let (lease, _) = world.reserved(b);
    world.says(b.link, ToHead::LeaseReady { lease, host: b.host(1) });
    granted(world.first(a.link));
    world.says(b.link, ToHead::HostEnded { host: b.host(1), job, failure: died() });
    let (to_a, to_b) = (world.all(a.link), world.all(b.link));
    assert!(
        matches!(to_a[..], [ToAgent::HostEnded { .. }, ToAgent::Revoked { kind: Revocation::Lost, .. }]),
        "{to_a:?}"
    );
    assert!(matches!(to_b[..], [ToAgent::HostEnded { .. }, ToAgent::LeaseEnded { .. }]), "{to_b:?}");
    world.says(a.link, ToHead::HostEnded { host: a.host(1), job, failure: died() });
    assert!(world.all(b.link).iter().any(|m| matches!(m, ToAgent::JobEnded { .. })));
    world.assert_idle();
}

#[test]
fn a_process_of_its_own_keeps_what_it_holds_while_something_runs_in_it() {
    let mut world = World::new();
    let a = world.join("a", 0);
    let b = world.join("b", 1);
    let job = world.start_job(a, 1).job;
    world.all(a.link);
    let alone = || Class { isolation: mobula_proto::resource::Isolation::Process, ..Class::default() };
    let lease_of = |world: &mut World| {
        world.demand_of(a, 1, job, alone(), 1);
        let (lease, _) = world.reserved(b);
        world.says(b.link, ToHead::LeaseReady { lease, host: b.host(1) });
        granted(world.first(a.link));
        lease
    };
    let lease = lease_of(&mut world);
    world.pass(900);
    world.says(a.link, ToHead::Renew { leases: vec![lease] });
    world.pass(900);
    assert!(world.said.is_empty(), "its owner was heard of: {:?}", world.said);
    // Its owner stands still, and it is asked for each term.
    for _ in 0..3 {
        world.pass(1000);
        let heard = world.all(b.link);
        assert!(matches!(heard[..], [ToAgent::Overdue { lease: of }] if of == lease), "{heard:?}");
    }
    assert!(world.said.is_empty(), "it goes on: {:?}", world.said);
    // Its owner was slow, and so is what its node says.
    world.says(a.link, ToHead::Renew { leases: vec![lease] });
    world.says(b.link, ToHead::AtRest { lease });
    assert!(world.said.is_empty(), "{:?}", world.said);
    world.pass(1500);
    assert!(matches!(world.first(b.link), Some(ToAgent::Overdue { .. })));
    world.says(a.link, ToHead::AtRest { lease });
    assert!(world.said.is_empty(), "only its node can say so: {:?}", world.said);
    world.says(b.link, ToHead::AtRest { lease });
    let heard = world.all(a.link);
    assert!(matches!(heard[..], [ToAgent::Revoked { kind: Revocation::Expired, .. }]), "{heard:?}");
    assert!(matches!(world.all(b.link)[..], [ToAgent::LeaseEnded { evicted: false, .. }]));
    // A dead owner's goes at once, with what runs in it.
    let lease = lease_of(&mut world);
    world.says(a.link, ToHead::HostEnded { host: a.host(1), job, failure: died() });
    let heard = world.all(b.link);
    let ended =
        |said: &ToAgent| matches!(said, ToAgent::LeaseEnded { lease: of, evicted: true } if *of == lease);
    assert!(heard.iter().any(ended), "{heard:?}");
    world.assert_idle();
}

#[test]
fn what_can_never_run_and_what_failed_to_start_is_said() {
    let mut world = World::new();
    let a = world.join("a", 2);
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 3, 1);
    match world.first(a.link) {
        Some(ToAgent::Infeasible { owner, key: 1, failure }) => {
            assert_eq!(owner, a.host(1));
            assert_eq!(failure.kind, mobula_proto::FailureKind::Infeasible);
            assert!(failure.message.contains("CPU"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    world.demand(a, a.host(1), job, 2, 3);
    let (lease, _) = world.reserved(a);
    world.says(a.link, ToHead::LeaseFailed { lease, failure: died() });
    let heard = world.all(a.link);
    assert!(
        matches!(&heard[..], [ToAgent::LeaseEnded { .. }, ToAgent::Infeasible { failure, .. }]
            if failure.kind == mobula_proto::FailureKind::HostDied && failure.place == "node-1"),
        "{heard:?}"
    );
    world.demand(a, a.host(1), JobId { number: 99 }, 1, 1);
    assert!(matches!(world.first(a.link), Some(ToAgent::Infeasible { .. })));
    assert_eq!(world.core.scheduler.demands().count(), 0);
    world.says(a.link, ToHead::JobEnd { job, failure: died() });
    world.assert_idle();
}

#[test]
fn waiting_tasks_give_their_cpu_to_others() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 2);
    let (lease, _) = world.reserved(a);
    world.says(a.link, ToHead::LeaseReady { lease, host: a.host(2) });
    granted(world.first(a.link));
    world.says(a.link, ToHead::Block { lease, slots: 1 });
    let (second, _) = world.reserved(a);
    world.says(a.link, ToHead::Release { lease: second });
    world.says(a.link, ToHead::Unblock { lease, slots: 1 });
    world.says(a.link, ToHead::Release { lease });
    world.says(a.link, ToHead::JobEnd { job, failure: died() });
    world.assert_idle();
}

#[test]
fn a_failure_too_long_for_everyone_is_cut() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let job = world.start_job(a, 1).job;
    let mut failure = Failure::new(mobula_proto::FailureKind::Panicked, "ä".repeat(FAILURE_BYTES_MAX));
    failure.causes = vec!["why".to_owned(); 2 * FAILURE_CAUSES_MAX];
    world.says(a.link, ToHead::HostEnded { host: a.host(2), job, failure });
    match world.first(a.link) {
        Some(ToAgent::HostEnded { failure, .. }) => {
            assert!(failure.message.len() <= FAILURE_BYTES_MAX + '…'.len_utf8());
            assert!(failure.message.ends_with('…'));
            assert_eq!(failure.causes.len(), FAILURE_CAUSES_MAX);
        }
        other => panic!("{other:?}"),
    }
}

impl World {
    /// As [`World::demand`], of a class that may be stopped, or of one that matters more.
    fn demand_of(&mut self, agent: Agent, key: u32, job: JobId, class: Class, backlog: u32) {
        let (owner, locality) = (agent.host(1), Vec::new());
        let class = Class { resources: Resources::cpu(Quantity::ONE), ..class };
        self.says(agent.link, ToHead::Demand { owner, job, key, class, backlog, locality });
    }

    /// Lets time pass in which the owner renews what it holds.
    fn pass_renewed(&mut self, owner: Agent, ms: u64) {
        for _ in 0..ms / 100 {
            let leases = self.core.scheduler.leases().map(|view| view.lease.id).collect();
            self.says(owner.link, ToHead::Renew { leases });
            self.pass(100);
        }
    }
}

#[test]
fn of_a_lease_only_the_slots_that_others_need_are_taken() {
    use mobula_proto::host::Eviction;
    let low = Class { restartable: true, ..Class::default() };
    let high = Class { function: "high".to_owned(), priority: 1, ..Class::default() };
    // Whether the owner gives the slot back in time.
    for gives in [true, false] {
        let mut world = World::new();
        let a = world.join("a", 0);
        let b = world.join("b", 4);
        let job = world.start_job(a, 1).job;
        world.all(b.link);
        world.demand_of(a, 1, job, low.clone(), 4);
        let (lease, slots) = world.reserved(b);
        assert_eq!(slots, 4);
        world.says(b.link, ToHead::LeaseReady { lease, host: b.host(1) });
        world.all(a.link);
        world.demand_of(a, 2, job, high.clone(), 1);
        world.pass_renewed(a, 700);
        let told = world.all(a.link);
        let preempted = |said: &ToAgent| matches!(said, ToAgent::Revoked { lease: of, kind: Revocation::Preempted { keep: 3 }, .. } if *of == lease);
        assert_eq!(told.iter().filter(|said| preempted(said)).count(), 1, "{told:?}");
        if gives {
            world.says(a.link, ToHead::Shrink { lease, keep: 3 });
            // Said twice, or by somebody else, it changes nothing.
            world.says(a.link, ToHead::Shrink { lease, keep: 3 });
            world.says(b.link, ToHead::Shrink { lease, keep: 1 });
        } else {
            world.pass_renewed(a, 1200);
            let told = world.all(a.link);
            let kind = Revocation::Evicted { keep: 3, why: Eviction::Preempted };
            let evicted = |said: &ToAgent| matches!(said, ToAgent::Revoked { kind: how, .. } if *how == kind);
            assert_eq!(told.iter().filter(|said| evicted(said)).count(), 1, "{told:?}");
        }
        let left = world.core.scheduler.lease(lease).map(|view| view.lease.slots);
        let said = world.all(b.link);
        let ended = said.iter().any(|said| matches!(said, ToAgent::LeaseEnded { evicted: true, .. }));
        assert_eq!((left, ended), (Some(3), false));
        let next =
            |said: &ToAgent| matches!(said, ToAgent::Reserve { slots: 1, class, .. } if class.priority == 1);
        assert_eq!(said.iter().filter(|said| next(said)).count(), 1, "{said:?}");
    }
}

#[test]
fn of_processes_only_one_is_stopped_where_others_need_one() {
    use mobula_proto::{host::Eviction, resource::Isolation};
    let mut world = World::new();
    let a = world.join("a", 0);
    let b = world.join("b", 4);
    let job = world.start_job(a, 1).job;
    world.all(b.link);
    let low = Class { restartable: true, isolation: Isolation::Process, ..Class::default() };
    world.demand_of(a, 1, job, low, 4);
    let reserved = |said: ToAgent| match said {
        ToAgent::Reserve { lease, slots, .. } => Some((lease, slots)),
        _ => None,
    };
    let all: Vec<_> = world.all(b.link).into_iter().filter_map(reserved).collect();
    assert_eq!(all.iter().map(|(_, slots)| *slots).collect::<Vec<_>>(), [1; 4], "a process each");
    for (at, (lease, _)) in (1..).zip(&all) {
        world.says(b.link, ToHead::LeaseReady { lease: *lease, host: b.host(at) });
    }
    world.demand_of(a, 2, job, Class { function: "high".to_owned(), priority: 1, ..Class::default() }, 1);
    world.all(a.link);
    world.pass_renewed(a, 2000);
    let told = world.all(a.link);
    for kind in [Revocation::Preempted { keep: 0 }, Revocation::Evicted { keep: 0, why: Eviction::Preempted }]
    {
        let so = |said: &&ToAgent| matches!(said, ToAgent::Revoked { kind: how, .. } if *how == kind);
        assert_eq!(told.iter().filter(so).count(), 1, "{told:?}");
    }
    let ended = |said: &&ToAgent| matches!(said, ToAgent::LeaseEnded { evicted: true, .. });
    assert_eq!(world.all(b.link).iter().filter(ended).count(), 1);
    assert_eq!(world.core.scheduler.leases().count(), 4, "three of them, and the other");
}

#[test]
fn slots_that_still_count_as_waiting_go_when_that_is_over() {
    let mut world = World::new();
    let a = world.join("a", 0);
    let b = world.join("b", 2);
    let job = world.start_job(a, 1).job;
    world.all(b.link);
    world.demand_of(a, 1, job, Class::default(), 2);
    let (lease, _) = world.reserved(b);
    world.says(b.link, ToHead::LeaseReady { lease, host: b.host(1) });
    let slots = |world: &World| world.core.scheduler.lease(lease).unwrap().lease.slots;
    // Both waited; the owner has heard that one has ended before the head hears that it went on.
    world.says(b.link, ToHead::Block { lease, slots: 2 });
    world.says(a.link, ToHead::Shrink { lease, keep: 1 });
    assert_eq!(slots(&world), 2);
    world.says(b.link, ToHead::Unblock { lease, slots: 1 });
    assert_eq!(slots(&world), 1);
}

#[test]
fn a_lease_of_which_some_is_taken_before_it_is_announced_is_announced_with_the_rest() {
    let mut world = World::new();
    let a = world.join("a", 0);
    let b = world.join("b", 4);
    let job = world.start_job(a, 1).job;
    world.all(b.link);
    world.demand_of(a, 1, job, Class { restartable: true, ..Class::default() }, 4);
    let (lease, _) = world.reserved(b);
    let high = Class { function: "high".to_owned(), priority: 1, ..Class::default() };
    world.demand_of(a, 2, job, high, 1);
    world.pass(2000);
    world.says(b.link, ToHead::LeaseReady { lease, host: b.host(1) });
    let told = world.all(a.link);
    let grants: Vec<u32> = told
        .iter()
        .filter_map(|said| match said {
            ToAgent::Granted { grant, .. } => Some(grant.slots),
            _ => None,
        })
        .collect();
    assert_eq!(grants, [3], "{told:?}");
    // What was taken is wanted again.
    let waiting: Vec<u32> = world.core.scheduler.demands().map(|demand| demand.backlog).collect();
    assert_eq!(waiting, [1]);
}
