use std::collections::BTreeMap;

use mobula_proto::{Group, group::Arrange, head::Left};

use super::*;

impl World {
    fn drain(&mut self, node: &str, ms: u64) -> Result<(), String> {
        let done = self.core.drain(node, Millis(ms), self.now);
        self.keep(done)
    }

    /// What the head becomes that is started anew on this one's disk, `unix_ms` after this one was.
    fn restart(&self, unix_ms: u64) -> Self {
        let mut disk: BTreeMap<String, Record> = BTreeMap::new();
        for record in &self.records {
            match record.removes() {
                true => drop(disk.remove(&record.key())),
                false => drop(disk.insert(record.key(), record.clone())),
            }
        }
        let options = Options { begun_unix_ms: unix_ms, ..Options::default() };
        let (core, first) = Core::new(options, disk.into_values().collect(), Millis(0));
        let mut world = Self { core, ..Self::new() };
        world.records = [self.records.clone(), first].concat();
        world
    }

    fn draining(&self, node: Agent) -> Option<(u64, f64)> {
        let told = self.core.snapshot();
        let node = told.nodes.iter().find(|known| known.node == node.node.to_string()).unwrap();
        node.draining.as_ref().map(|draining| (draining.leases, draining.seconds_left))
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
    assert!(
        matches!(heard[..], [ToAgent::Revoked { kind: Revocation::Evicted { keep: 0, .. }, .. }]),
        "{heard:?}"
    );
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

#[test]
fn a_node_goes_on_to_drain_when_the_head_is_started_anew() {
    let mut world = World::new();
    world.join("a", 0);
    let b = world.join("b", 2);
    assert_eq!(world.drain("b", 60_000), Ok(()));
    assert_eq!(world.drain("b", 40_000), Ok(()));
    world.pass(10_000);
    assert_eq!(world.draining(b), Some((0, 30.0)));

    // The head was away for five seconds.
    let mut world = world.restart(15_000);
    let a = world.join("a", 0);
    let b = world.join("b", 2);
    assert_eq!(world.draining(a), None);
    assert_eq!(world.draining(b), Some((0, 25.0)));
    assert!(matches!(&world.all(b.link)[..], [.., ToAgent::Drain { .. }]));
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 1);
    assert!(world.all(b.link).is_empty(), "nothing new is placed there");
    world.says(b.link, ToHead::Draining(Left::default()));
    assert_eq!(world.closed, [b.link]);

    // It has left, and may come back as any other.
    let mut world = world.restart(20_000);
    let b = world.join("b", 2);
    assert_eq!(world.draining(b), None);
}

#[test]
fn a_time_that_ended_while_there_was_no_head_is_over() {
    let mut world = World::new();
    world.join("b", 2);
    assert_eq!(world.drain("b", 5000), Ok(()));
    let mut world = world.restart(8000);
    let b = world.join("b", 2);
    world.pass(DRAIN_GRACE_MS + 200);
    assert_eq!(world.closed, [b.link]);
}

#[test]
fn who_was_to_leave_and_is_not_back_in_time_has_left() {
    let mut world = World::new();
    world.join("b", 2);
    world.join("c", 2);
    world.drain("b", 600_000).unwrap();
    world.drain("c", 600_000).unwrap();
    let done = world.core.resume("c", world.now);
    world.keep(done).unwrap();
    let mut world = world.restart(1000);
    let c = world.join("c", 2);
    assert_eq!(world.draining(c), None, "it was to stay");
    world.pass(RECOVERY_MS + 100);
    let b = world.join("b", 2);
    assert_eq!(world.draining(b), None);
    assert!(matches!(world.records.last(), Some(Record::Node { .. })));
    let mut world = world.restart(2000);
    let b = world.join("b", 2);
    assert_eq!(world.draining(b), None, "nor is that forgotten");
}

#[test]
fn groups_have_moved_before_their_node_leaves() {
    let mut world = World::new();
    let a = world.join("a", 0);
    let b = world.join("b", 2);
    let job = world.start_job(a, 1).job;
    let bundles = vec![Resources::cpu(Quantity::ONE); 2];
    let group = Group { bundles, arrange: Arrange::Pack, ..Group::default() };
    let ask = Question::GroupCreate { group, name: String::new(), namespace: String::new(), detached: false };
    let Answer::Group { group, placed: true, .. } = world.ask(a, 1, job, ask) else {
        panic!("there is room for it")
    };
    // Something runs in one of its bundles.
    let strategy = mobula_proto::resource::Strategy::Group { group, bundle: Some(0) };
    let class = Class { resources: Resources::cpu(Quantity::ONE), strategy, ..Class::default() };
    let demand = ToHead::Demand { owner: a.host(1), job, key: 1, class, backlog: 1, locality: Vec::new() };
    world.says(a.link, demand);
    world.all(a.link);
    let (lease, _) = world.reserved(b);
    world.says(b.link, ToHead::LeaseReady { lease, host: b.host(1) });
    world.all(a.link);
    let c = world.join("c", 1);
    let d = world.join("d", 1);
    world.all(a.link);
    world.drain("b", 60_000).unwrap();
    assert!(is_drained(&world.all(a.link)), "its owner is to give it back");
    let places = |world: &World| world.core.group_snapshots(1)[0].nodes.clone();
    let on = |list: &[Agent]| list.iter().map(|agent| (agent.node.to_string(), 1)).collect();
    assert_eq!(places(&world), on(&[b, c]), "the empty one at once");
    world.says(a.link, ToHead::Release { lease });
    assert_eq!(places(&world), on(&[c, d]));
    world.says(b.link, ToHead::Draining(Left::default()));
    assert_eq!(world.closed, [b.link]);
    assert_eq!(world.core.group_snapshots(1)[0].placed, 2, "it lost nothing with the node");
}
