//! Nodes that leave by themselves because nothing needs them: what must not go with them.

use mobula_proto::{
    head::{Left, Usage},
    resource::{LABEL_NODE_TYPE, Strategy},
};
use mobula_scheduler::autoscale::{self, NodeType, Plan};

use super::*;

/// How long a node has to leave.
const TIME: Millis = Millis(600_000);

fn objects(objects: u64) -> ToHead {
    ToHead::Draining(Left { objects, ..Left::default() })
}

impl World {
    /// A cluster that may have two nodes, and may do without any.
    fn scaled() -> Self {
        let mut world = Self::new();
        world.core.options.node_types = vec![NodeType {
            name: "small".to_owned(),
            resources: Resources::cpu(Quantity::whole(2)),
            labels: Vec::new(),
            min: 0,
            max: 2,
            idle_timeout: Millis(1000),
        }];
        world
    }

    /// A node that was started because work waited.
    fn worker(&mut self, name: &str) -> Agent {
        let link = Link(self.next_link);
        self.next_link += 1;
        let node = Register {
            name: name.to_owned(),
            address: "127.0.0.1:1".to_owned(),
            total: Resources::cpu(Quantity::whole(2)),
            devices: Vec::new(),
            labels: vec![(LABEL_NODE_TYPE.to_owned(), "small".to_owned())],
            store_bytes: 1 << 30,
            multi_tenant: false,
        };
        let peer = Peer { kind: PeerKind::Agent, name: name.to_owned() };
        self.step(Event::Register { link, peer, hello: Hello::new(Role::Agent), node: Box::new(node) });
        let Some(ToAgent::Registered { node, .. }) = self.first(link) else { panic!("{:?}", self.said) };
        Agent { link, node }
    }

    /// A program on a machine that offers nothing, and its job.
    fn laptop(&mut self) -> (Agent, JobId) {
        let name = format!("laptop{}", self.next_link);
        let link = self.register(PeerKind::Driver, &name, Hello::new(Role::Agent), Resources::none());
        let Some(ToAgent::Registered { node, .. }) = self.first(link) else { panic!("{:?}", self.said) };
        let laptop = Agent { link, node };
        (laptop, self.start_job(laptop, 1).job)
    }

    fn holds(&mut self, node: Agent, primaries: u64) {
        self.says(node.link, ToHead::Usage(Usage { objects: primaries, primaries, ..Usage::default() }));
    }

    fn plan_now(&mut self) -> Plan {
        let scene = self.core.scene(self.now);
        let types = &self.core.options.node_types;
        autoscale::plan(types, &scene.members, &BTreeMap::new(), &scene.unmet, scene.now).unwrap()
    }

    fn carry_out(&mut self, plan: &Plan) {
        let done = self.core.settle(&plan.stay, &plan.drain, TIME, self.now);
        self.keep(Ok(done)).unwrap();
    }

    /// Looks once a second, as the service does.
    fn looks(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let plan = self.plan_now();
            self.carry_out(&plan);
            self.pass(1000);
        }
    }

    fn drains(&self) -> Vec<u32> {
        let all = self.core.nodes.values().filter(|member| member.drain.is_some());
        all.map(|member| member.node.number).collect()
    }
}

#[test]
fn objects_keep_an_idle_node_until_somebody_has_taken_them() {
    let mut world = World::scaled();
    let (b, c) = (world.worker("b"), world.worker("c"));
    world.laptop();
    for node in [b, c] {
        world.holds(node, 3);
    }
    world.all(b.link);
    world.looks(3);
    assert_eq!(world.drains(), [b.node.number], "the other takes what lies there");
    let heard = world.all(b.link);
    assert!(matches!(&heard[..], [.., ToAgent::Drain { to }] if to[..] == [c.node]), "{heard:?}");
    world.says(b.link, objects(3));
    // What cannot be moved in time stays, and so does the node.
    world.looks(TIME.0 / 1000 - 2);
    assert!(world.drains().is_empty());
    assert!(matches!(world.all(b.link)[..], [ToAgent::Resume]));
    world.looks(3);
    world.says(b.link, objects(0));
    assert_eq!(world.closed, [b.link], "it has left");
    // The last one has all of it now, and nobody to give it to.
    world.looks(2 * TIME.0 / 1000);
    assert!(world.drains().is_empty());
    assert!(!world.all(c.link).iter().any(|said| matches!(said, ToAgent::Drain { .. } | ToAgent::Dismissed)));
    world.holds(c, 0);
    world.looks(3);
    assert_eq!(world.drains(), [c.node.number]);
    // What was said of its store was not the newest.
    world.says(c.link, objects(1));
    assert!(world.drains().is_empty());
    assert_eq!(world.closed, [b.link]);
    assert!(
        !world.records.iter().any(|record| matches!(record, Record::Drain { .. })),
        "it is nobody's wish"
    );
}

/// Two workers that were idle for long enough, and a driver elsewhere.
fn leaving() -> (World, Agent, Agent, Agent, JobId) {
    let mut world = World::scaled();
    let (b, c) = (world.worker("b"), world.worker("c"));
    let (laptop, job) = world.laptop();
    world.looks(3);
    assert_eq!(world.drains(), [b.node.number, c.node.number]);
    world.all(b.link);
    world.all(c.link);
    (world, b, c, laptop, job)
}

#[test]
fn a_steward_keeps_its_node() {
    let (mut world, b, c, laptop, job) = leaving();
    let asks = |world: &mut World, from: Agent, job| {
        world.says(
            from.link,
            ToHead::Ask { host: from.host(1), job, request: 5, question: Question::Steward },
        );
    };
    // All leave, but none was told to: one stays for it.
    asks(&mut world, laptop, job);
    assert!(matches!(&world.all(b.link)[..], [ToAgent::Resume, .., ToAgent::StartSteward { .. }]));
    assert_eq!(world.drains(), [c.node.number]);
    world.looks(3);
    world.says(b.link, ToHead::StewardReady { job, host: b.host(7) });
    world.looks(TIME.0 / 1000);
    assert!(!world.all(b.link).iter().any(|said| matches!(said, ToAgent::Drain { .. })));
    assert!(world.closed.is_empty(), "and the other one had not said that it is empty");

    // Where there is a node that does not drain, it is not started on one that does, though it asks.
    world.looks(3);
    assert_eq!(world.drains(), [c.node.number]);
    let done = world.core.drain("c", Millis(60_000), world.now);
    world.keep(done).unwrap();
    let (_, other) = world.laptop();
    world.all(b.link);
    asks(&mut world, c, other);
    assert!(matches!(&world.all(b.link)[..], [ToAgent::StartSteward { .. }]));
}

#[test]
fn what_came_since_it_was_planned_keeps_a_node() {
    let mut world = World::scaled();
    let (b, c) = (world.worker("b"), world.worker("c"));
    let (laptop, job) = world.laptop();
    world.looks(1);
    world.pass(1000);
    let plan = world.plan_now();
    assert_eq!(plan.drain, [b.node, c.node]);
    world.demand(laptop, laptop.host(1), job, 2, 1);
    let on = if world.core.scheduler.node(b.node).unwrap().leases > 0 { b } else { c };
    world.carry_out(&plan);
    assert!(!world.drains().contains(&on.node.number), "{:?}", world.drains());
    assert_eq!(world.drains().len(), 1);
}

#[test]
fn an_idle_node_is_called_back() {
    // By work that would wait beside it: there may be no more than these two nodes.
    let (mut world, b, c, laptop, job) = leaving();
    world.demand(laptop, laptop.host(1), job, 2, 2);
    world.looks(1);
    for node in [b, c] {
        let heard = world.all(node.link);
        assert!(matches!(&heard[..], [.., ToAgent::Resume, ToAgent::Reserve { .. }]), "{heard:?}");
    }
    // By work that is for it alone.
    let (mut world, _, c, laptop, job) = leaving();
    let strategy = Strategy::Node { node: c.node, soft: false };
    let class = Class { resources: Resources::cpu(Quantity::ONE), strategy, ..Class::default() };
    let (owner, locality) = (laptop.host(1), Vec::new());
    world.says(laptop.link, ToHead::Demand { owner, job, key: 1, class, backlog: 1, locality });
    let heard = world.all(c.link);
    assert!(matches!(&heard[..], [.., ToAgent::Resume, ToAgent::Reserve { .. }]), "{heard:?}");
    // By a job that is started there, or is about to be.
    let (mut world, b, c, ..) = leaving();
    world.says(b.link, ToHead::Draining(Left { drivers: 1, ..Left::default() }));
    assert_eq!(world.drains(), [c.node.number]);
    world.says(c.link, job_start(c.host(1)));
    assert!(world.drains().is_empty());
    // Who is told to leave meanwhile leaves.
    let (mut world, b, c, laptop, job) = leaving();
    let done = world.core.drain("b", Millis(5000), world.now);
    world.keep(done).unwrap();
    assert!(matches!(world.records.last(), Some(Record::Drain { .. })));
    world.demand(laptop, laptop.host(1), job, 2, 2);
    world.looks(1);
    assert_eq!(world.drains(), [b.node.number]);
    assert!(matches!(&world.all(c.link)[..], [.., ToAgent::Resume, ToAgent::Reserve { .. }]));
    world.says(b.link, objects(2));
    world.pass(5000 + DRAIN_GRACE_MS + 200);
    assert_eq!(world.closed, [b.link]);
}
