use mobula_proto::{FailureKind, Group, GroupId, group::Arrange};

use super::*;

impl World {
    fn group(&mut self, agent: Agent, job: JobId, cpus: &[u64], detached: bool) -> Answer {
        self.group_in("", agent, job, cpus, detached)
    }

    fn group_in(&mut self, queue: &str, agent: Agent, job: JobId, cpus: &[u64], detached: bool) -> Answer {
        let bundles = cpus.iter().map(|cpus| Resources::cpu(Quantity::whole(*cpus))).collect();
        let group = Group { bundles, arrange: Arrange::Pack, queue: queue.to_owned(), ..Group::default() };
        let (name, namespace) = match detached {
            true => ("gang".to_owned(), "lab".to_owned()),
            false => (String::new(), String::new()),
        };
        self.ask(agent, 1, job, Question::GroupCreate { group, name, namespace, detached })
    }
}

#[track_caller]
fn placed(answer: Answer) -> (GroupId, bool) {
    match answer {
        Answer::Group { group, placed, .. } => (group, placed),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn failed(answer: Answer) -> FailureKind {
    match answer {
        Answer::Failed(failure) => failure.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_group_waits_is_placed_and_ends_with_its_job() {
    let mut world = World::new();
    let a = world.join("a", 2);
    let (one, two) = (world.start_job(a, 1).job, world.start_job(a, 2).job);
    world.all(a.link);
    let (first, ready) = placed(world.group(a, one, &[1, 1], false));
    assert!(ready);
    let (second, ready) = placed(world.group(a, two, &[2], false));
    assert!(!ready);
    assert_eq!(failed(world.group(a, one, &[3], false)), FailureKind::Infeasible);
    assert_eq!(failed(world.group(a, one, &[], false)), FailureKind::Infeasible);
    let strangers = world.ask(a, 1, one, Question::GroupRemove { group: second });
    assert_eq!(failed(strangers), FailureKind::Unknown, "it is another job's");
    let why = world.core.group_snapshots(10)[1].why.clone();
    assert!(why.starts_with("needs 1 bundle of 2 CPU (pack)"), "{why}");

    let wait = Question::GroupReady { group: second };
    world.says(a.link, ToHead::Ask { host: a.host(2), job: two, request: 9, question: wait });
    assert!(world.said.is_empty(), "{:?}", world.said);
    world.says(a.link, ToHead::JobEnd { job: one, failure: died() });
    let answered = world.all(a.link).into_iter().find_map(|message| match message {
        ToAgent::Answered { request: 9, answer, .. } => Some(answer),
        _ => None,
    });
    assert_eq!(
        placed(answered.unwrap()),
        (second, true),
        "room came with the end of the job that had {first}"
    );
    let (third, _) = placed(world.group(a, two, &[1], false));
    assert!(third > second);
    assert!(matches!(world.ask(a, 2, two, Question::GroupRemove { group: second }), Answer::Done));
    world.says(a.link, ToHead::JobEnd { job: two, failure: died() });
    assert!(world.core.groups.is_empty());
    world.assert_idle();
}

#[test]
fn a_detached_group_outlives_the_head_and_waits_for_nodes() {
    let mut world = World::new();
    let a = world.join("a", 2);
    let job = world.start_job(a, 1).job;
    world.all(a.link);
    let (group, ready) = placed(world.group(a, job, &[2], true));
    assert!(ready);
    assert_eq!(failed(world.group(a, job, &[1], true)), FailureKind::Infeasible, "the name is taken");
    let (other, _) = placed(world.group(a, job, &[1], false));

    let mut records = world.records;
    let mut world = World::with(records.clone());
    // The first node to come back is too small: it waits.
    let b = world.join("b", 1);
    let job = world.start_job(b, 1).job;
    world.all(b.link);
    let find = Question::GroupFind { namespace: "lab".to_owned(), name: "gang".to_owned() };
    assert_eq!(placed(world.ask(b, 1, job, find.clone())), (group, false));
    let a = world.join("a", 2);
    world.all(a.link);
    world.all(b.link);
    assert_eq!(placed(world.ask(b, 1, job, find)), (group, true));
    let (fresh, _) = placed(world.group(b, job, &[1], false));
    assert!(fresh > other, "numbers are never used twice");

    // Any job may run in it, and take it away.
    let class = Class {
        resources: Resources::cpu(Quantity::ONE),
        strategy: mobula_proto::resource::Strategy::Group { group, bundle: None },
        ..Class::default()
    };
    let demand = ToHead::Demand { owner: b.host(1), job, key: 1, class, backlog: 1, locality: Vec::new() };
    world.says(b.link, demand);
    let (lease, _) = world.reserved(a);
    world.says(a.link, ToHead::LeaseReady { lease, host: a.host(3) });
    world.all(b.link);
    let remove = Question::GroupRemove { group };
    world.says(b.link, ToHead::Ask { host: b.host(1), job, request: 4, question: remove });
    let ended = world.all(a.link);
    assert!(matches!(ended[..], [ToAgent::LeaseEnded { evicted: true, .. }]), "{ended:?}");
    let told = world.all(b.link);
    assert!(
        matches!(
            told[..],
            [
                ToAgent::Revoked { kind: Revocation::Evicted { keep: 0, .. }, .. },
                ToAgent::Answered { request: 4, answer: Answer::Done, .. }
            ]
        ),
        "{told:?}"
    );
    records.extend(world.records);
    let gone = records.iter().filter(|record| matches!(record, Record::GroupGone { .. }));
    assert_eq!(gone.count(), 1, "it is gone from disk too");
}

#[test]
fn a_detached_group_outlives_a_limit_that_was_lowered() {
    let mut world = World::new();
    let limit = |cpus| {
        let most = vec![(mobula_proto::resource::Kind::Cpu, Quantity::whole(cpus))];
        mobula_proto::queue::Change { name: "lab".to_owned(), limit: Some(most), ..Default::default() }
    };
    world.set(limit(4)).unwrap();
    let a = world.join("a", 4);
    let job = world.start_job(a, 1).job;
    world.all(a.link);
    let (group, ready) = placed(world.group_in("lab", a, job, &[1, 1, 1], true));
    assert!(ready);
    world.set(limit(2)).unwrap();
    assert!(!world.records.iter().any(|record| matches!(record, Record::GroupGone { .. })));

    // A further head finds it on disk, above the limit.
    let mut world = World::with(world.records.clone());
    let a = world.join("a", 4);
    let job = world.start_job(a, 1).job;
    world.all(a.link);
    let find = Question::GroupFind { namespace: "lab".to_owned(), name: "gang".to_owned() };
    assert_eq!(placed(world.ask(a, 1, job, find.clone())), (group, false), "{:?}", world.records);
    let why = world.core.group_snapshots(1)[0].why.clone();
    assert!(why.contains("limit of 2 CPU, less than all of it needs"), "{why}");
    world.set(limit(3)).unwrap();
    assert_eq!(placed(world.ask(a, 1, job, find)), (group, true));
}

#[test]
fn a_snapshot_of_many_that_wait_gives_reasons_within_bounds() {
    let mut world = World::new();
    let first = world.join("n0", 1);
    for number in 1..40 {
        world.join(&format!("n{number}"), 1);
    }
    let job = world.start_job(first, 1).job;
    world.all(first.link);
    let spec = |cpus: Vec<Resources>| Group { bundles: cpus, arrange: Arrange::Pack, ..Group::default() };
    let create = |world: &mut World, group: Group| {
        let (name, namespace) = (String::new(), String::new());
        world.ask(first, 1, job, Question::GroupCreate { group, name, namespace, detached: false })
    };
    // One has all there is; then all of different sizes.
    assert!(placed(create(&mut world, spec(vec![Resources::cpu(Quantity::ONE); 40]))).1);
    for number in 1..=600_u32 {
        let part = |of: u32| Resources::cpu(format!("0.{}", 1000 + of).parse().unwrap());
        create(&mut world, spec(vec![part(number), part(2 * number)]));
        let function = format!("f{number}");
        let class = Class { function, resources: part(number), ..Class::default() };
        let (owner, locality) = (first.host(1), Vec::new());
        world.says(first.link, ToHead::Demand { owner, job, key: number, class, backlog: 1, locality });
    }
    let snapshot = world.core.snapshot();
    let later = |why: &String| why.starts_with("not looked at among so many: `mobula why ");
    let groups: Vec<&String> = snapshot.groups[1..].iter().map(|group| &group.why).collect();
    let classes: Vec<&String> = snapshot.waiting.iter().map(|class| &class.why).collect();
    for whys in [groups, classes] {
        let count = whys.iter().take_while(|why| !later(why)).count();
        assert!((50..550).contains(&count), "{count} of {}", whys.len());
        assert!(whys[..count].iter().all(|why| why.starts_with("needs ")), "{whys:?}");
        assert!(whys[count..].iter().all(|why| later(why)), "{whys:?}");
    }
    assert_eq!(snapshot.groups[0].why, "", "it waits for nothing");
    // What is named gives the reason.
    let last = snapshot.waiting.last().unwrap();
    assert!(last.why.contains(&format!("`mobula why {}`", last.function)), "{}", last.why);
    let told = world.core.why_group("group-601", GroupId { number: 601 }).unwrap();
    assert!(told.reasons[0].starts_with("needs 2 bundles of "), "{told:?}");
}
