use super::*;

fn actor(owner: HostId, seq: u64) -> TaskId {
    TaskId::numbered(owner, seq)
}

fn claim(name: &str, actor: TaskId) -> Question {
    let actor_type = "crate::Counter".to_owned();
    Question::NameClaim { namespace: String::new(), name: name.to_owned(), actor, actor_type }
}

fn find(namespace: &str, name: &str) -> Question {
    Question::NameFind { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn drop_name(namespace: &str, name: &str, actor: TaskId) -> Question {
    Question::NameDrop { namespace: namespace.to_owned(), name: name.to_owned(), actor }
}

#[test]
fn the_first_claim_of_a_name_wins() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let job = world.start_job(a, 1).job;
    let (one, two) = (actor(a.host(1), 1), actor(a.host(2), 1));
    assert!(matches!(world.ask(a, 1, job, claim("hits", one)), Answer::Done));
    assert!(matches!(world.ask(a, 1, job, claim("hits", one)), Answer::Done), "a repeated claim is the same");
    assert!(matches!(world.ask(a, 2, job, claim("hits", two)), Answer::Actor { actor, .. } if actor == one));
    assert!(matches!(world.ask(a, 2, job, find("", "hits")), Answer::Actor { actor, .. } if actor == one));
    assert!(matches!(world.ask(a, 2, job, find("job-1", "hits")), Answer::Actor { .. }));
    assert!(matches!(world.ask(a, 2, job, find("other", "hits")), Answer::NoSuchName));
    assert!(matches!(world.ask(a, 2, job, drop_name("", "hits", two)), Answer::Failed(_)));
    assert!(matches!(world.ask(a, 2, job, claim("two words", two)), Answer::Failed(_)));
    let dead = NodeId { number: 9, incarnation: 1 };
    assert!(matches!(
        world.ask(a, 2, job, claim("ghost", actor(HostId { node: dead, seq: 1 }, 1))),
        Answer::Failed(_)
    ));
    assert!(matches!(world.ask(a, 1, job, drop_name("", "hits", one)), Answer::Done));
    assert!(matches!(world.ask(a, 2, job, find("", "hits")), Answer::NoSuchName));
    assert!(matches!(world.ask(a, 2, job, claim("hits", two)), Answer::Done));
    assert!(!world.records.iter().any(|r| matches!(r, Record::Name { .. })), "only detached ones are kept");

    world.says(a.link, ToHead::HostEnded { host: a.host(2), job, failure: died() });
    world.all(a.link);
    assert!(matches!(world.ask(a, 1, job, find("", "hits")), Answer::NoSuchName), "it died with its owner");
    assert!(matches!(world.ask(a, 1, job, claim("hits", one)), Answer::Done));
    world.says(a.link, ToHead::JobEnd { job, failure: died() });
    world.assert_idle();
}

/// A job with a steward on node b, ready, and one detached actor with a name.
fn with_steward(world: &mut World) -> (Agent, Agent, JobId, TaskId) {
    let a = world.join("a", 0);
    let b = world.join("b", 1);
    let job = world.start_job(b, 1).job;
    world.all(a.link);
    world.says(b.link, ToHead::Ask { host: b.host(1), job, request: 5, question: Question::Steward });
    assert!(matches!(world.first(b.link), Some(ToAgent::StartSteward { job: told }) if told.job == job));
    // Whoever asks meanwhile waits for the same one.
    world.says(b.link, ToHead::Ask { host: b.host(2), job, request: 6, question: Question::Steward });
    assert!(world.said.is_empty());
    world.says(b.link, ToHead::StewardReady { job, host: b.host(3) });
    let heard = world.all(b.link);
    assert!(
        matches!(heard[..], [
            ToAgent::Answered { request: 5, answer: Answer::Host(one), .. },
            ToAgent::Answered { request: 6, answer: Answer::Host(two), .. },
        ] if one == b.host(3) && two == one),
        "{heard:?}"
    );
    let detached = actor(b.host(3), 1);
    assert!(matches!(world.ask(b, 1, job, claim("kept", detached)), Answer::Done));
    (a, b, job, detached)
}

#[test]
fn detached_actors_keep_their_job_until_the_last_name_goes() {
    let mut world = World::new();
    let (a, b, job, detached) = with_steward(&mut world);
    let own = actor(b.host(1), 9);
    assert!(matches!(world.ask(b, 1, job, claim("lost", own)), Answer::Done));
    world.says(b.link, ToHead::JobEnd { job, failure: died() });
    let heard = world.all(a.link);
    assert!(matches!(heard[..], [ToAgent::HostEnded { host, .. }] if host == b.host(1)), "{heard:?}");
    world.all(b.link);

    let second = world.start_job(a, 1).job;
    assert!(matches!(
        world.ask(a, 1, second, find("job-1", "kept")),
        Answer::Actor { actor, .. } if actor == detached
    ));
    assert!(matches!(world.ask(a, 1, second, find("job-1", "lost")), Answer::NoSuchName));
    // The steward still schedules for its job.
    world.demand(b, b.host(3), job, 1, 1);
    world.reserved(b);
    assert!(matches!(world.ask(a, 1, second, drop_name("job-1", "kept", detached)), Answer::Done));
    let heard = world.all(b.link);
    assert!(
        heard.iter().any(|m| matches!(m, ToAgent::JobEnded { job: ended, .. } if *ended == job)),
        "{heard:?}"
    );
    world.says(a.link, ToHead::JobEnd { job: second, failure: died() });
    world.assert_idle();
}

#[test]
fn a_detached_job_ends_with_its_steward() {
    let mut world = World::new();
    let (a, b, job, _) = with_steward(&mut world);
    world.says(b.link, ToHead::HostEnded { host: b.host(1), job, failure: died() });
    assert!(world.core.jobs.contains_key(&job));
    world.says(b.link, ToHead::HostEnded { host: b.host(3), job, failure: died() });
    let heard = world.all(a.link);
    assert!(matches!(heard.last(), Some(ToAgent::JobEnded { .. })), "{heard:?}");
    world.assert_idle();
}

#[test]
fn a_steward_that_does_not_start_is_not_waited_for_for_ever() {
    let mut world = World::new();
    let a = world.join("a", 1);
    let job = world.start_job(a, 1).job;
    let ask = ToHead::Ask { host: a.host(1), job, request: 5, question: Question::Steward };
    world.says(a.link, ask.clone());
    assert!(matches!(world.first(a.link), Some(ToAgent::StartSteward { .. })));
    world.pass(STEWARD_START_MS_MAX + 100);
    assert!(matches!(
        world.first(a.link),
        Some(ToAgent::Answered { answer: Answer::Failed(failure), .. })
            if failure.kind == mobula_proto::FailureKind::TimedOut
    ));
    world.says(a.link, ToHead::StewardReady { job, host: a.host(2) });
    assert!(world.said.is_empty());
    world.says(a.link, ask);
    assert!(matches!(world.first(a.link), Some(ToAgent::StartSteward { .. })));

    // Nor one whose node is lost.
    let driver = world.register(PeerKind::Driver, "laptop", Hello::new(Role::Agent), Resources::none());
    let Some(ToAgent::Registered { node, .. }) = world.first(driver) else { panic!() };
    let laptop = Agent { link: driver, node };
    let job = world.start_job(laptop, 1).job;
    world.all(a.link);
    world.says(driver, ToHead::Ask { host: laptop.host(1), job, request: 5, question: Question::Steward });
    assert!(matches!(world.first(a.link), Some(ToAgent::StartSteward { .. })), "not on the laptop");
    world.step(Event::Lost { link: a.link, why: "gone".to_owned() });
    let heard = world.all(driver);
    assert!(
        heard.iter().any(|m| matches!(m, ToAgent::Answered { answer: Answer::Failed(_), .. })),
        "{heard:?}"
    );
}

#[test]
fn names_of_detached_actors_outlive_the_head_until_their_node_is_known_to_be_gone() {
    let mut world = World::new();
    let (_, _, _, detached) = with_steward(&mut world);
    let records = world.records;
    assert!(records.iter().any(|r| matches!(r, Record::Name { actor, .. } if *actor == detached)));

    let check = |node: &str, wait: u64, still_there: bool| {
        let mut later = World::with(records.clone());
        let other = later.join(node, 1);
        let job = later.start_job(other, 1).job;
        later.pass(wait);
        let found = later.ask(other, 1, job, find("job-1", "kept"));
        assert_eq!(matches!(found, Answer::Actor { .. }), still_there, "{node} after {wait}: {found:?}");
        let gone = later.records.iter().any(|r| matches!(r, Record::NameGone { .. }));
        assert_eq!(gone, !still_there);
    };
    check("a", RECOVERY_MS - 1000, true);
    check("a", RECOVERY_MS + 1000, false);
    check("b", 0, false);
}
