use mobula_proto::head::Left;

use super::*;

impl World {
    fn drain(&mut self, node: &str, ms: u64) -> Result<(), String> {
        let done = self.core.drain(node, Millis(ms), self.now);
        self.keep(done)
    }

    /// A lease of `slots` for `owner`, held on `on`.
    fn lease(&mut self, owner: Agent, job: JobId, on: Agent, slots: u32) -> LeaseId {
        self.demand(owner, owner.host(1), job, 1, slots);
        let (lease, _) = self.reserved(on);
        self.says(on.link, ToHead::LeaseReady { lease, host: on.host(1) });
        self.all(owner.link);
        lease
    }
}

fn is_drained(said: &[ToAgent]) -> bool {
    matches!(said, [ToAgent::Revoked { kind: Revocation::Draining, .. }])
}

#[test]
fn a_node_drains_and_goes_when_nothing_is_left() {
    let mut world = World::new();
    let a = world.join("a", 0);
    let b = world.join("b", 2);
    let job = world.start_job(a, 1).job;
    world.all(b.link);
    let lease = world.lease(a, job, b, 1);
    assert_eq!(world.drain("b", 60_000), Ok(()));
    assert!(is_drained(&world.all(a.link)));
    assert!(matches!(&world.all(b.link)[..], [ToAgent::Drain { to }] if to.is_empty()));

    // Nothing new is placed there, and what was about to be is wanted back at once.
    world.demand(a, a.host(1), job, 1, 5);
    assert!(world.all(b.link).is_empty());
    let left = |objects, hosts| ToHead::Draining(Left { objects, hosts, ..Left::default() });
    world.says(b.link, left(3, 1));
    let told = world.core.snapshot();
    let draining = told.nodes[1].draining.clone().unwrap();
    assert_eq!((draining.leases, draining.left.objects, draining.seconds_left), (1, 3, 60.0));
    world.says(a.link, ToHead::Release { lease });
    world.says(b.link, left(0, 1));
    assert!(world.closed.is_empty());
    world.says(b.link, left(0, 0));
    assert_eq!(world.closed, [b.link]);
    assert!(matches!(world.all(b.link).last(), Some(ToAgent::Dismissed)));
    let heard = world.all(a.link);
    let text = "node-2 has drained, and left";
    assert!(
        matches!(&heard[..], [.., ToAgent::NodeDown { failure, .. }] if failure.message == text),
        "{heard:?}"
    );
}

#[test]
fn what_is_left_at_the_end_is_taken_away() {
    let mut world = World::new();
    let a = world.join("a", 0);
    let b = world.join("b", 2);
    let job = world.start_job(a, 1).job;
    world.all(b.link);
    world.lease(a, job, b, 1);
    assert_eq!(world.drain("node-2", 5000), Ok(()));
    assert_eq!(world.drain("node-2", 1000), Ok(()), "said again, it changes the time");
    world.all(a.link);
    let renew = |world: &mut World| {
        let leases = world.core.scheduler.leases().map(|view| view.lease.id).collect();
        world.says(a.link, ToHead::Renew { leases });
    };
    for _ in 0..2 {
        renew(&mut world);
        world.pass(600);
    }
    let heard = world.all(a.link);
    assert!(matches!(heard[..], [ToAgent::Revoked { kind: Revocation::Evicted, .. }]), "{heard:?}");
    let heard = world.all(b.link);
    assert!(matches!(heard[..], [.., ToAgent::LeaseEnded { evicted: true, .. }]), "{heard:?}");
    assert!(world.core.resume("node-2", world.now).is_err(), "too late");
    assert!(world.closed.is_empty(), "what was taken away has a moment to end");
    world.pass(DRAIN_GRACE_MS + 200);
    assert_eq!(world.closed, [b.link]);
}

#[test]
fn nodes_may_stay_and_others_take_what_leaves() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let b = world.join("b", 1);
    for (name, part) in [("c", "there is no node"), ("", "there is no node"), ("node-9", "there is no node")]
    {
        let error = world.drain(name, 1000).unwrap_err();
        assert!(error.contains("MOB4005") && error.contains(part), "{error}");
    }
    world.drain("b", 10_000).unwrap();
    world.all(b.link);
    // One with a store joins: that is where copies go.
    let node = Register {
        name: "c".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        total: Resources::cpu(Quantity::ONE),
        devices: Vec::new(),
        labels: Vec::new(),
        store_bytes: 1 << 20,
        multi_tenant: false,
    };
    let peer = Peer { kind: PeerKind::Agent, name: "c".to_owned() };
    world.step(Event::Register {
        link: Link(77),
        peer,
        hello: Hello::new(Role::Agent),
        node: Box::new(node),
    });
    let heard = world.all(b.link);
    assert!(
        heard.iter().any(|said| matches!(said, ToAgent::Drain { to } if to.len() == 1 && to[0].number == 3)),
        "{heard:?}"
    );
    let done = world.core.resume("b", world.now);
    world.keep(done).unwrap();
    assert!(matches!(world.all(b.link)[..], [ToAgent::Resume]));
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 3);
    assert!(matches!(world.all(b.link)[..], [.., ToAgent::Reserve { .. }]), "it is as before");
    // What it says of its drain now is late.
    world.says(b.link, ToHead::Draining(Left::default()));
    assert!(world.closed.is_empty());
}
