use mobula_net::identity::{Fingerprint, JoinToken, Role as CertificateRole};

use super::*;

#[test]
fn a_node_keeps_its_number_and_a_newer_incarnation_fences_the_older() {
    let mut world = World::new();
    let a = world.join("a", 4);
    let b = world.join("b", 4);
    assert_eq!(a.node, NodeId { number: 1, incarnation: 1 });
    assert_eq!(b.node, NodeId { number: 2, incarnation: 1 });
    assert!(matches!(world.first(a.link), Some(ToAgent::NodeUp(node)) if node.node == b.node));

    let again = world.join("a", 4);
    assert_eq!(again.node, NodeId { number: 1, incarnation: 2 });
    assert_eq!(world.closed, [a.link]);
    let heard = world.all(b.link);
    assert!(matches!(heard[0], ToAgent::NodeDown { node, .. } if node == a.node), "{heard:?}");
    assert!(matches!(&heard[1], ToAgent::NodeUp(node) if node.node == again.node), "{heard:?}");

    // What the old incarnation still says, on its old link or about its old hosts, changes nothing.
    world.says(a.link, ToHead::Leave);
    let start = ToHead::JobStart {
        request: 1,
        driver: a.host(1),
        name: String::new(),
        namespace: String::new(),
        queue: String::new(),
        binary: BinaryHash([0; 32]),
        arguments: Vec::new(),
        files: Vec::new(),
    };
    world.says(again.link, start);
    world.step(Event::Lost { link: a.link, why: "late".to_owned() });
    assert!(world.said.is_empty(), "{:?}", world.said);
    assert!(world.core.jobs.is_empty());
}

#[test]
fn numbers_incarnations_jobs_and_leases_go_on_after_a_restart() {
    let mut world = World::new();
    let a = world.join("a", 4);
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 1);
    let (lease, _) = world.reserved(a);

    let mut later = World::with(world.records);
    let a2 = later.join("a", 4);
    let b = later.join("b", 4);
    assert_eq!(a2.node, NodeId { number: 1, incarnation: 2 });
    assert_eq!(b.node.number, 2);
    let job2 = later.start_job(a2, 1).job;
    assert!(job2 > job);
    later.all(a2.link);
    later.demand(a2, a2.host(1), job2, 1, 1);
    assert!(later.reserved(a2).0 > lease);
}

#[test]
fn whoever_does_not_fit_is_refused_with_a_reason() {
    let check = |kind, hello, total: Resources, want: &str| {
        let mut world = World::new();
        let link = world.register(kind, "x", hello, total);
        match world.first(link) {
            Some(ToAgent::Refused(failure)) => assert!(failure.message.contains(want), "{failure}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(world.closed, [link]);
        assert!(world.core.nodes.is_empty());
    };
    let agent = Hello::new(Role::Agent);
    let one = Resources::cpu(Quantity::ONE);
    check(PeerKind::Agent, Hello { magic: 1, ..agent }, one.clone(), "not a Mobula process");
    check(PeerKind::Agent, Hello { protocol: 0, protocol_min: 0, ..agent }, one.clone(), "upgrade");
    check(PeerKind::Agent, Hello::new(Role::Driver), one.clone(), "not a Mobula process");
    check(PeerKind::Driver, Hello::new(Role::Driver), one, "no resources");
    let half_a_gpu =
        Resources::from_list([(mobula_proto::resource::Kind::Gpu, Quantity::from_f64(0.5).unwrap())])
            .unwrap();
    check(PeerKind::Agent, agent, half_a_gpu, "GPU");
}

#[test]
fn a_lost_node_takes_its_drivers_jobs_with_it() {
    let mut world = World::new();
    let a = world.join("a", 4);
    let b = world.join("b", 4);
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 6);
    world.all(b.link);
    world.step(Event::Lost { link: a.link, why: "unreachable".to_owned() });
    let heard = world.all(b.link);
    assert!(matches!(heard[0], ToAgent::NodeDown { node, .. } if node == a.node), "{heard:?}");
    assert!(heard.iter().any(|m| matches!(m, ToAgent::LeaseEnded { .. })), "{heard:?}");
    let ended = heard.iter().find_map(|m| match m {
        ToAgent::JobEnded { job: ended, failure, .. } => Some((*ended, failure.clone())),
        _ => None,
    });
    let (ended, failure) = ended.unwrap();
    assert_eq!(ended, job);
    assert!(failure.causes[0].contains("unreachable"), "{failure:?}");
    world.assert_idle();
}

#[test]
fn what_a_node_says_about_anothers_hosts_is_ignored() {
    let mut world = World::new();
    let a = world.join("a", 4);
    let b = world.join("b", 4);
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 1);
    let (lease, _) = world.reserved(a);
    world.all(a.link);
    world.all(b.link);
    for forged in [
        ToHead::HostEnded { host: a.host(1), job, failure: died() },
        ToHead::JobEnd { job, failure: died() },
        ToHead::Release { lease },
        ToHead::Block { lease, slots: 1 },
        ToHead::LeaseReady { lease, host: b.host(1) },
        ToHead::LeaseReady { lease, host: a.host(1) },
        ToHead::LeaseFailed { lease, failure: died() },
        ToHead::StewardReady { job, host: b.host(2) },
        ToHead::Ask { host: a.host(1), job, request: 1, question: Question::Snapshot },
        ToHead::Ask { host: b.node.agent(), job, request: 1, question: Question::Snapshot },
    ] {
        world.says(b.link, forged);
        assert!(world.said.is_empty(), "{:?}", world.said);
    }
    assert!(world.core.jobs.contains_key(&job));
    assert!(world.core.scheduler.lease(lease).is_some());
    // A link that never registered says nothing at all.
    world.says(Link(99), ToHead::JobEnd { job, failure: died() });
    assert!(world.said.is_empty());
}

#[test]
fn drivers_come_and_go_without_leaving_names_behind() {
    let mut world = World::new();
    let agent = world.join("a", 1);
    let first = world.register(PeerKind::Driver, "laptop", Hello::new(Role::Agent), Resources::none());
    let second = world.register(PeerKind::Driver, "laptop", Hello::new(Role::Agent), Resources::none());
    let number = |message| match message {
        Some(ToAgent::Registered { node, .. }) => node.number,
        other => panic!("{other:?}"),
    };
    assert_eq!(number(world.first(first)), 2);
    assert_eq!(number(world.first(second)), 3);
    assert!(world.closed.is_empty());
    world.says(first, ToHead::Leave);
    assert_eq!(world.closed, [first]);
    assert_eq!(world.core.known.len(), 1);
    world.all(agent.link);

    let mut later = World::with(world.records);
    assert_eq!(later.join("b", 1).node.number, 4);
}

#[test]
fn a_token_is_spent_once_in_time_and_for_its_role() {
    let mut world = World::new();
    world.join("a", 1);
    let make = |world: &mut World, role, expires| {
        let token = JoinToken::new(Fingerprint([1; 32])).unwrap();
        world.core.create_token(&token, role, expires, 100).unwrap();
        token
    };
    let redeem = |world: &mut World, token: &JoinToken, role, name: &str, now| {
        world
            .core
            .redeem(token.id(), &token.secret_hash(), role, name, now)
            .map(|(redeemed, effects)| {
                assert!(effects.iter().all(|e| matches!(e, Effect::Persist(_))));
                redeemed.name
            })
            .map_err(|failure| failure.message)
    };
    let agent = CertificateRole::Agent;
    let token = make(&mut world, agent, 200);
    let other = JoinToken::new(Fingerprint([1; 32])).unwrap();
    let wrong = world.core.redeem(token.id(), &other.secret_hash(), agent, "b", 150).unwrap_err();
    assert!(wrong.message.contains("does not know"));
    assert!(redeem(&mut world, &other, agent, "b", 150).unwrap_err().contains("does not know"));
    assert!(redeem(&mut world, &token, agent, "b", 200).unwrap_err().contains("expired"));
    let other_role = redeem(&mut world, &token, CertificateRole::Driver, "b", 150).unwrap_err();
    assert!(
        other_role
            .contains("for a node, not a driver: make a new one with `mobula token create --role driver`")
    );
    assert!(redeem(&mut world, &token, agent, "no spaces", 150).is_err());
    // The name of a node that exists is not to be had.
    assert_eq!(redeem(&mut world, &token, agent, "a", 150).unwrap(), "a-2");
    assert!(redeem(&mut world, &token, agent, "b", 150).unwrap_err().contains("used"));
    assert!(world.core.create_token(&other, CertificateRole::Head, 200, 100).is_err());

    let effects = world.core.create_token(&other, agent, 900, 300).unwrap();
    assert!(matches!(effects[0], Effect::Persist(Record::TokenGone { id }) if id == token.id()));
}

#[test]
fn the_dead_are_buried_once_every_living_node_has_mourned() {
    let mut world = World::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| world.join(name, 2));
    let job = world.start_job(a, 1).job;
    let dead = b.host(1);
    world.says(b.link, ToHead::HostEnded { host: dead, job, failure: died() });
    for agent in [a, b, c] {
        let heard = world.all(agent.link);
        assert!(matches!(heard.last(), Some(ToAgent::HostEnded { .. })), "{heard:?}");
    }
    // Saying it twice counts once, and who joins only now has held nothing.
    for agent in [a, b, a] {
        world.says(agent.link, ToHead::Mourned { host: dead });
    }
    let d = world.join("d", 2);
    let is_buried = |world: &mut World, agent: Agent, who: HostId| {
        let heard = world.all(agent.link);
        heard.iter().any(|message| matches!(message, ToAgent::Buried { host } if *host == who))
    };
    assert!(!is_buried(&mut world, a, dead), "one has not answered");
    // Who is lost mourns nobody any more, and is mourned itself, whereby others hold what it held of the first.
    world.step(Event::Lost { link: c.link, why: "unreachable".to_owned() });
    let node = c.node.agent();
    for agent in [a, b, d] {
        assert!(!is_buried(&mut world, agent, dead));
        world.says(agent.link, ToHead::Mourned { host: node });
    }
    for agent in [a, b, d] {
        let buried: Vec<HostId> = world
            .all(agent.link)
            .into_iter()
            .filter_map(|message| if let ToAgent::Buried { host } = message { Some(host) } else { None })
            .collect();
        assert_eq!(buried, [node, dead]);
    }
    world.says(a.link, ToHead::Mourned { host: node });
    assert!(!is_buried(&mut world, a, node), "it is long over");
}
