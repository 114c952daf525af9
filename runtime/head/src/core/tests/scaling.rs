//! What waits or is refused, as those see it who start nodes.

use mobula_proto::{
    Group,
    group::Arrange,
    head::{Explanation, NodeTypeSnapshot, RefusedSnapshot, ScalingSnapshot},
    queue::Change,
    resource::{Kind, LABEL_NODE_TYPE, LabelRule, Strategy},
};
use mobula_scheduler::autoscale::{self, NodeType};

use super::{queues::named, *};

fn node_type(name: &str, cpus: u64, max: u32) -> NodeType {
    NodeType {
        name: name.to_owned(),
        resources: Resources::cpu(Quantity::whole(cpus)),
        labels: Vec::new(),
        min: 0,
        max,
        idle_timeout: Millis(1000),
    }
}

impl World {
    fn why(&mut self, agent: Agent, job: JobId, id: &str) -> Vec<String> {
        let Answer::Json(json) = self.ask(agent, 1, job, Question::Why { id: id.to_owned() }) else {
            panic!("nothing is known of {id}");
        };
        serde_json::from_str::<Explanation>(&json).unwrap().reasons
    }

    /// Which nodes would be started now: `big=1`; and what finds no room even then.
    fn plan(&mut self) -> (String, u64) {
        let scene = self.core.scene(self.now);
        let types = &self.core.options.node_types;
        let plan = autoscale::plan(types, &scene.members, &BTreeMap::new(), &scene.unmet, scene.now).unwrap();
        let start: Vec<String> = plan.start.iter().map(|(name, count)| format!("{name}={count}")).collect();
        (start.join(" "), plan.left.iter().map(|left| left.count).sum())
    }

    fn asks_for(&mut self, agent: Agent, job: JobId, class: Class) -> Option<ToAgent> {
        let (owner, locality) = (agent.host(1), Vec::new());
        let class = Class { function: "f".to_owned(), ..class };
        self.says(agent.link, ToHead::Demand { owner, job, key: 1, class, backlog: 1, locality });
        self.first(agent.link)
    }
}

fn cpus(count: u64) -> Class {
    Class { resources: Resources::cpu(Quantity::whole(count)), ..Class::default() }
}

#[test]
fn what_only_a_node_that_may_be_started_could_hold_waits_and_starts_it() {
    let mut world = World::new();
    world.core.options.node_types = vec![node_type("big", 8, 2)];
    let a = world.join("a", 2);
    let job = world.start_job(a, 1).job;
    assert!(world.asks_for(a, job, cpus(6)).is_none(), "it waits");
    assert_eq!(world.plan(), ("big=1".to_owned(), 0));
    let why = world.why(a, job, "f").remove(0);
    assert!(why.contains("no node has 6 CPU: the most any node has is 2 (node-1)"), "{why}");
    assert!(why.ends_with("; a node of type big could hold it, and may be started"), "{why}");
    // What the last look did is said.
    let mut told = NodeTypeSnapshot { name: "big".to_owned(), max: 2, coming: 1, ..Default::default() };
    for (coming, paused, nodes, want) in [
        (1, false, 0, "; a node of type big is on its way"),
        (2, false, 0, "; 2 nodes of type big are on their way"),
        (0, true, 1, "but starting one failed, and is tried again later"),
        (0, false, 2, "but there are 2 already, the most that may be"),
    ] {
        (told.coming, told.paused, told.nodes) = (coming, paused, nodes);
        world.core.scaled(ScalingSnapshot { types: vec![told.clone()], left: Vec::new() });
        let why = world.core.snapshot().waiting[0].why.clone();
        assert!(why.ends_with(want), "{why}");
    }
    assert!(world.core.snapshot().refused.is_empty());
}

#[test]
fn nodes_that_are_started_carry_their_types_name() {
    let mut world = World::new();
    world.core.options.node_types = vec![node_type("small", 2, 1), node_type("big", 8, 1)];
    let a = world.join("a", 2);
    let job = world.start_job(a, 1).job;
    let of = |name: &str| LabelRule::In(LABEL_NODE_TYPE.to_owned(), vec![name.to_owned()]);
    assert!(world.asks_for(a, job, Class { labels: vec![of("big")], ..cpus(1) }).is_none());
    assert_eq!(world.plan(), ("big=1".to_owned(), 0));
    let refused = world.asks_for(a, job, Class { labels: vec![of("huge")], ..cpus(1) });
    assert!(matches!(refused, Some(ToAgent::Infeasible { .. })), "{refused:?}");
}

#[test]
fn what_no_node_could_ever_hold_is_refused_and_shown() {
    let mut world = World::new();
    world.core.options.node_types = vec![node_type("small", 4, 1)];
    let a = world.join("a", 2);
    let job = world.start_job(a, 1).job;
    for backlog in [1, 5, 2] {
        world.demand(a, a.host(1), job, 6, backlog);
        assert!(matches!(world.first(a.link), Some(ToAgent::Infeasible { .. })));
    }
    world.pass(3000);
    let told = world.core.snapshot();
    assert!(told.unmet.is_empty(), "it does not wait: {:?}", told.unmet);
    let [RefusedSnapshot { what, shapes, times, seconds_ago, why }] = &told.refused[..] else {
        panic!("{:?}", told.refused)
    };
    assert_eq!((what.as_str(), *times, shapes.len()), ("f", 3, 1));
    assert_eq!((shapes[0].count, shapes[0].resources["CPU"]), (5, 6.0), "as many as at once");
    assert_eq!(why, "no node has 6 CPU: the most any node has is 2 (node-1)");
    assert!((0.0..=3.0).contains(seconds_ago), "{seconds_ago}");
    let said = world.why(a, job, "f").remove(0);
    assert!(
        said.starts_with("was refused 3 s ago, 5 slots at once, and waits no more: no node has"),
        "{said}"
    );

    // What waits for such a node all the same is told as any that waits.
    assert!(world.asks_for(a, job, Class { wait_for_node: true, ..cpus(6) }).is_none());
    assert_eq!(world.plan(), (String::new(), 1));
    assert_eq!(world.core.snapshot().unmet[0].resources["CPU"], 6.0);
    let said = world.why(a, job, "f").remove(0);
    assert!(said.ends_with("; no node that may be started could hold it"), "{said}");
    // Where there is such a node, nothing is refused any more.
    world.join("b", 6);
    assert!(world.core.snapshot().refused.is_empty());
}

#[test]
fn what_is_refused_for_other_reasons_or_long_ago_is_not_shown() {
    let mut world = World::new();
    world.set(named("narrow")).unwrap();
    let narrow = Change { limit: Some(vec![(Kind::Cpu, Quantity::ONE)]), ..named("narrow") };
    world.set(narrow).unwrap();
    let a = world.join("a", 2);
    let job = world.start_job(a, 1).job;
    let here = Strategy::Node { node: a.node, soft: false };
    for class in [
        Class { queue: "narrow".to_owned(), ..cpus(2) },
        Class { queue: "nobody".to_owned(), ..cpus(1) },
        Class { strategy: here, ..cpus(4) },
    ] {
        let refused = world.asks_for(a, job, class);
        assert!(matches!(refused, Some(ToAgent::Infeasible { .. })), "{refused:?}");
    }
    assert!(world.core.snapshot().refused.is_empty(), "no node would help");
    world.asks_for(a, job, cpus(4));
    assert_eq!(world.core.snapshot().refused.len(), 1);
    world.now = world.now.plus(Millis(600_000));
    world.step(Event::Tick);
    assert!(world.core.snapshot().refused.is_empty());
    // The last of many.
    for cpus in 100..=210 {
        world.demand(a, a.host(1), job, cpus, 1);
        world.now = world.now.plus(Millis(1));
    }
    let told = world.core.snapshot().refused;
    let asked: Vec<f64> = told.iter().map(|refused| refused.shapes[0].resources["CPU"]).collect();
    assert_eq!(asked, (111..=210).rev().map(f64::from).collect::<Vec<_>>());
}

#[test]
fn groups_wait_where_nodes_that_may_be_started_are_of_use() {
    let bundles = |cpus: &[u64]| cpus.iter().map(|cpus| Resources::cpu(Quantity::whole(*cpus))).collect();
    let group = |arrange, cpus: &[u64]| Group { bundles: bundles(cpus), arrange, ..Group::default() };
    // Two CPUs are there, and nodes of four may be started, two at most.
    for (spec, want) in [
        (group(Arrange::Pack, &[4, 4]), "small=2"),
        // One of them beside what is there already.
        (group(Arrange::StrictSpread, &[2, 4, 4]), "small=2"),
        (group(Arrange::Pack, &[1, 4]), "small=1"),
        (group(Arrange::StrictPack, &[2, 2]), "small=1"),
        // Each alone would fit.
        (group(Arrange::StrictPack, &[3, 3]), "no node has 3 CPU"),
        (group(Arrange::Pack, &[2, 2, 2, 2, 2, 2]), "the nodes that fit do not have 12 CPU"),
        (group(Arrange::StrictSpread, &[1, 1, 1, 1]), "4 bundles need as many places, and there are 1"),
        (group(Arrange::Pack, &[5]), "no node has 5 CPU"),
    ] {
        let mut world = World::new();
        world.core.options.node_types = vec![node_type("small", 4, 2)];
        let a = world.join("a", 2);
        let job = world.start_job(a, 1).job;
        world.all(a.link);
        let (name, namespace) = (String::new(), String::new());
        let create = Question::GroupCreate { group: spec.clone(), name, namespace, detached: false };
        let refused = world.core.snapshot().refused;
        assert!(refused.is_empty());
        match world.ask(a, 1, job, create) {
            Answer::Group { group, placed: false, .. } => {
                assert_eq!(world.plan(), (want.to_owned(), 0), "{spec:?}");
                let why = world.why(a, job, &group.to_string());
                assert_eq!(why[1], "a node of type small could hold some of it, and may be started");
            }
            Answer::Failed(failure) => {
                assert!(failure.message.contains(want), "{spec:?}: {failure}");
                let told = world.core.snapshot().refused;
                let sum: u64 = told[0].shapes.iter().map(|shape| shape.count).sum();
                assert_eq!((told[0].what.as_str(), sum), ("a placement group", spec.bundles.len() as u64));
                assert!(told[0].why.contains(want), "{}", told[0].why);
                assert!(told[0].shapes.iter().all(|shape| !shape.group.is_empty()));
            }
            other => panic!("{spec:?}: {other:?}"),
        }
    }
}
