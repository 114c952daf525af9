use mobula_proto::queue::Change;

use super::*;

pub(super) fn named(name: &str) -> Change {
    Change { name: name.to_owned(), ..Change::default() }
}

impl World {
    /// Notes the records, as the service does before anybody is told.
    pub(super) fn keep(&mut self, effects: Result<Vec<Effect>, Failure>) -> Result<(), String> {
        for effect in effects.map_err(|failure| format!("{} {failure}", failure.kind.code()))? {
            match effect {
                Effect::Persist(record) => self.records.push(record),
                Effect::Send { to, message } => self.said.push((to, message)),
                other => panic!("{other:?}"),
            }
        }
        Ok(())
    }

    pub(super) fn set(&mut self, change: Change) -> Result<(), String> {
        let done = self.core.set_queue(change, self.now);
        self.keep(done)
    }

    fn remove(&mut self, name: &str) -> Result<(), String> {
        let done = self.core.remove_queue(name, self.now);
        self.keep(done)
    }

    fn demand_in(&mut self, agent: Agent, job: JobId, key: u32, queue: &str) {
        let resources = Resources::cpu(Quantity::ONE);
        let class = Class { resources, queue: queue.to_owned(), ..Class::default() };
        let (owner, locality) = (agent.host(1), Vec::new());
        self.says(agent.link, ToHead::Demand { owner, job, key, class, backlog: 1, locality });
    }
}

#[test]
fn queues_are_kept_and_what_is_used_stays() {
    let mut world = World::new();
    world.set(named("research")).unwrap();
    world.set(Change { parent: Some("research".to_owned()), ..named("vision") }).unwrap();
    world.set(Change { weight: Some(Quantity::whole(3)), ..named("vision") }).unwrap();
    let vision =
        |core: &Core| core.queue_snapshots().into_iter().find(|queue| queue.name == "vision").unwrap();
    assert_eq!((vision(&world.core).weight, vision(&world.core).parent.as_str()), (3.0, "research"));
    let again = World::with(world.records.clone());
    assert_eq!(again.core.queue_snapshots(), world.core.queue_snapshots());

    let agent = world.join("a", 2);
    let job = world.start_job(agent, 1);
    world.demand_in(agent, job.job, 1, "vision");
    let (lease, _) = world.reserved(agent);
    world.says(agent.link, ToHead::LeaseReady { lease, host: agent.host(2) });
    assert_eq!((vision(&world.core).slots, vision(&world.core).used.get("CPU")), (1, Some(&1.0)));
    for (name, why) in [
        ("research", "1 queue is a part of it"),
        ("vision", "1 lease is charged to it"),
        ("nobody", "no queue"),
        ("", "default"),
    ] {
        let refused = world.remove(name).unwrap_err();
        assert!(refused.starts_with("MOB4002") && refused.contains(why), "{refused}");
    }
    world.says(agent.link, ToHead::Release { lease });
    world.remove("vision").unwrap();
    world.remove("research").unwrap();
    assert!(world.core.queue_snapshots().is_empty());
    let gone: Vec<&Record> = world.records.iter().filter(|record| record.removes()).collect();
    assert_eq!(gone.len(), 2, "{gone:?}");

    world.all(agent.link);
    world.demand_in(agent, job.job, 1, "vision");
    match world.first(agent.link) {
        Some(ToAgent::Infeasible { failure, .. }) => {
            assert_eq!(failure.kind, mobula_proto::FailureKind::Queue, "{failure}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_is_charged_to_its_own_queue() {
    let mut world = World::new();
    world.set(named("research")).unwrap();
    let agent = world.join("a", 2);
    let start = |queue: &str| ToHead::JobStart {
        request: 7,
        driver: agent.host(1),
        name: "test".to_owned(),
        namespace: String::new(),
        queue: queue.to_owned(),
        binary: BinaryHash([0; 32]),
        arguments: Vec::new(),
        files: Vec::new(),
    };
    world.all(agent.link);
    world.says(agent.link, start("nobody"));
    match world.first(agent.link) {
        Some(ToAgent::Answered { answer: Answer::Failed(failure), .. }) => {
            assert_eq!(failure.kind, mobula_proto::FailureKind::Queue, "{failure}");
        }
        other => panic!("{other:?}"),
    }
    world.says(agent.link, start("research"));
    let Some(ToAgent::JobStarted { job, .. }) = world.first(agent.link) else { panic!("{:?}", world.said) };
    world.demand_in(agent, job.job, 1, "");
    assert_eq!(world.core.queue_snapshots()[1].slots, 1);
    let refused = world.remove("research").unwrap_err();
    assert!(refused.contains("1 job belongs to it"), "{refused}");
}
