//! Scenarios in virtual time.

mod drain;
mod groups;
mod idle;
mod leases;
mod members;
mod names;
mod queues;
mod random;
mod scaling;

use std::collections::BTreeSet;

use mobula_proto::{
    BinaryHash, LeaseId, Quantity, Resources, TaskId, head::Job, host::Revocation, resource::Class,
    wire::Role,
};

use super::*;

/// A core with its links, and what it said to each.
struct World {
    core: Core,
    now: Millis,
    next_link: u64,
    attached: BTreeSet<Link>,
    said: Vec<(Link, ToAgent)>,
    records: Vec<Record>,
    closed: Vec<Link>,
}

/// An agent that registered.
#[derive(Clone, Copy)]
struct Agent {
    link: Link,
    node: NodeId,
}

impl Agent {
    fn host(self, seq: u32) -> HostId {
        HostId { node: self.node, seq }
    }
}

/// A driver begins a job.
fn job_start(driver: HostId) -> ToHead {
    ToHead::JobStart {
        request: 7,
        driver,
        name: "test".to_owned(),
        namespace: String::new(),
        queue: String::new(),
        binary: BinaryHash([0; 32]),
        arguments: Vec::new(),
        files: Vec::new(),
    }
}

impl World {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    fn with(records: Vec<Record>) -> Self {
        let (core, first) = Core::new(Options::default(), records, Millis(0));
        Self {
            core,
            now: Millis(0),
            next_link: 1,
            attached: BTreeSet::new(),
            said: Vec::new(),
            records: first,
            closed: Vec::new(),
        }
    }

    fn step(&mut self, event: Event) {
        if let Event::Lost { link, .. } = event {
            self.attached.remove(&link);
        }
        for effect in self.core.step(event, self.now) {
            match effect {
                Effect::Persist(record) => self.records.push(record),
                Effect::Send { to, message } => self.said.push((to, message)),
                Effect::Broadcast { except, message } => {
                    let to = self.attached.iter().filter(|link| Some(**link) != except);
                    self.said.extend(to.map(|link| (*link, message.clone())));
                }
                Effect::Explained { .. } => panic!("nobody outside asked"),
                Effect::Attach(link) => drop(self.attached.insert(link)),
                Effect::Close(link) => {
                    self.attached.remove(&link);
                    self.closed.push(link);
                }
            }
        }
    }

    fn says(&mut self, link: Link, message: ToHead) {
        self.step(Event::Message { link, message });
    }

    /// Lets time pass, ticking as the service would.
    fn pass(&mut self, ms: u64) {
        let end = self.now.plus(Millis(ms));
        while self.now < end {
            self.now = self.now.plus(Millis(100)).min(end);
            if self.core.next_tick().is_some() {
                self.step(Event::Tick);
            }
        }
    }

    fn register(&mut self, kind: PeerKind, name: &str, hello: Hello, total: Resources) -> Link {
        let link = Link(self.next_link);
        self.next_link += 1;
        let node = Register {
            name: name.to_owned(),
            address: "127.0.0.1:1".to_owned(),
            total,
            devices: Vec::new(),
            labels: Vec::new(),
            store_bytes: 0,
            multi_tenant: false,
        };
        let peer = Peer { kind, name: name.to_owned() };
        self.step(Event::Register { link, peer, hello, node: Box::new(node) });
        link
    }

    fn join(&mut self, name: &str, cpus: u64) -> Agent {
        let total = Resources::cpu(Quantity::whole(cpus));
        let link = self.register(PeerKind::Agent, name, Hello::new(Role::Agent), total);
        let Some(ToAgent::Registered { node, .. }) = self.first(link) else { panic!("{:?}", self.said) };
        Agent { link, node }
    }

    fn start_job(&mut self, agent: Agent, seq: u32) -> Job {
        let start = job_start(agent.host(seq));
        self.all(agent.link);
        self.says(agent.link, start);
        match self.first(agent.link) {
            Some(ToAgent::JobStarted { request: 7, job }) => job,
            other => panic!("{other:?}"),
        }
    }

    fn demand(&mut self, agent: Agent, owner: HostId, job: JobId, cpus: u64, backlog: u32) {
        let class = Class {
            function: "f".to_owned(),
            resources: Resources::cpu(Quantity::whole(cpus)),
            ..Class::default()
        };
        let locality = Vec::new();
        self.says(agent.link, ToHead::Demand { owner, job, key: 1, class, backlog, locality });
    }

    /// The lease that a node was asked to reserve, with its slots.
    fn reserved(&mut self, agent: Agent) -> (LeaseId, u32) {
        match self.first(agent.link) {
            Some(ToAgent::Reserve { lease, slots, .. }) => (lease, slots),
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, agent: Agent, seq: u32, job: JobId, question: Question) -> Answer {
        let host = agent.host(seq);
        self.says(agent.link, ToHead::Ask { host, job, request: 3, question });
        match self.first(agent.link) {
            Some(ToAgent::Answered { host: to, request: 3, answer }) if to == host => answer,
            other => panic!("{other:?}"),
        }
    }

    /// The oldest unread message to a link.
    fn first(&mut self, link: Link) -> Option<ToAgent> {
        let at = self.said.iter().position(|(to, _)| *to == link)?;
        Some(self.said.remove(at).1)
    }

    /// All unread messages to a link.
    fn all(&mut self, link: Link) -> Vec<ToAgent> {
        std::iter::from_fn(|| self.first(link)).collect()
    }

    /// Invariant I9, once everything has ended.
    fn assert_idle(&self) {
        assert_eq!(self.core.scheduler.leases().count(), 0);
        assert_eq!(self.core.scheduler.demands().count(), 0);
        self.core.scheduler.nodes().for_each(|view| assert_eq!(view.total, &view.available));
        assert!(self.core.leases.is_empty(), "{:?}", self.core.leases);
        assert!(self.core.jobs.is_empty());
        assert!(self.core.names.names.is_empty());
        assert_eq!(self.core.next_tick(), None);
    }
}

fn died() -> Failure {
    Failure::new(mobula_proto::FailureKind::HostDied, "killed")
}

#[test]
fn an_idle_core_wants_no_ticks() {
    let mut world = World::new();
    world.join("a", 4);
    assert_eq!(world.core.next_tick(), None);
    world.assert_idle();
}

#[test]
fn the_snapshot_shows_what_there_is() {
    let mut world = World::new();
    let a = world.join("a", 2);
    let job = world.start_job(a, 1).job;
    world.demand(a, a.host(1), job, 1, 5);
    let Answer::Json(json) = world.snapshot_of(a, job) else { panic!() };
    let seen: mobula_proto::head::Snapshot = serde_json::from_str(&json).unwrap();
    assert_eq!(seen.nodes.len(), 1);
    assert_eq!(seen.nodes[0].name, "a");
    assert_eq!(seen.nodes[0].available.get("CPU"), None);
    assert_eq!(seen.nodes[0].total["CPU"], 2.0);
    assert_eq!((seen.jobs[0].slots, seen.leases), (2, 1));
    assert_eq!((seen.waiting[0].backlog, seen.waiting[0].function.as_str()), (3, "f"));
    assert!(seen.waiting[0].why.contains("CPU"), "{}", seen.waiting[0].why);
}

impl World {
    fn snapshot_of(&mut self, agent: Agent, job: JobId) -> Answer {
        self.all(agent.link);
        self.ask(agent, 1, job, Question::Snapshot)
    }
}
