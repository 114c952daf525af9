//! Queues, between which a cluster is shared.

use mobula::{Cluster, ErrorKind, JobQueue, Quantity, ResourceKind, Resources, Result, private};
use mobula_e2e::{
    Env, Witness,
    env::{on, witness},
    eventually,
};
use mobula_rig::Rig;

use super::driver::Outcome;

/// Research may use one CPU at most, vision is a part of it, and service gets twice its share of the rest.
pub fn queues() -> Vec<JobQueue> {
    let one_cpu = vec![(ResourceKind::Cpu, Quantity::ONE)];
    vec![
        JobQueue { limit: one_cpu, ..JobQueue::new("research") },
        JobQueue { parent: "research".to_owned(), ..JobQueue::new("vision") },
        JobQueue { weight: Quantity::whole(2), ..JobQueue::new("service") },
    ]
}

#[mobula::task]
fn pass(gate: String) {
    witness::pass(&gate);
}

#[mobula::task]
fn nothing() {}

pub async fn queues_bound_and_are_shown(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let gate = witness.gate("all")?;
    let held: Vec<_> = (0..3).map(|_| pass.options().queue("vision").remote(gate.place())).collect();
    // There are two CPUs at least, so one is free, and is not for them.
    eventually("the limit of the queue above to hold two of three", async || {
        let queues = env.cluster.snapshot().await?.queues;
        let names: Vec<&str> = queues.iter().map(|queue| queue.name.as_str()).collect();
        assert_eq!(names, ["", "research", "service", "vision"]);
        assert_eq!((queues[1].limit.get("CPU"), queues[2].weight), (Some(&1.0), 2.0));
        let vision = &queues[3];
        assert!(vision.slots <= 1, "{vision:?}");
        Ok(vision.waiting > 0 && vision.used.get("CPU") == Some(&1.0) && vision.parent == "research")
    })
    .await?;
    nothing.options().queue("service").remote().await?;
    nothing.remote().await?;
    let waiting = env.cluster.snapshot().await?.waiting;
    assert!(waiting.iter().any(|class| class.queue == "vision" && !class.why.is_empty()), "{waiting:?}");
    gate.open()?;
    mobula::get_all(&held).await?;
    let more = nothing.options().queue("vision").cpu(2.0).remote().await.unwrap_err();
    assert_eq!(more.kind(), ErrorKind::Infeasible, "{more}");
    assert!(more.to_string().contains("limit of queue research"), "{more}");
    Ok(())
}

#[mobula::task(retries = 0)]
async fn asleep(begun: String) {
    witness::note(&begun);
    std::future::pending::<()>().await;
}

/// Does not listen to anybody.
#[mobula::task(retries = 0)]
fn deaf(begun: String) {
    witness::note(&begun);
    loop {
        std::thread::park();
    }
}

pub async fn what_matters_more_takes_room(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let count = env.nodes().await?.len();
    // Every CPU is taken, by what would never end.
    for isolation in ["shared", "process"] {
        let begun = witness.place(isolation);
        let low: Vec<_> = (0..count)
            .map(|_| match isolation {
                "shared" => asleep.options().restartable(true).remote(begun.as_str()),
                own => deaf.options().isolation(own).restartable(true).remote(begun.as_str()),
            })
            .collect();
        eventually("all of it to run", async || Ok(witness.count(isolation) == count)).await?;
        let asked = std::time::Instant::now();
        nothing.options().priority(10).remote().await?;
        let waited = asked.elapsed();
        assert!(waited < std::time::Duration::from_secs(6), "{isolation}: it waited {waited:?}");
        eventually("what made room to run again", async || Ok(witness.count(isolation) == count + 1)).await?;
        for one in &low {
            assert!(!one.is_ready());
            match isolation {
                "shared" => assert!(one.cancel()),
                _ => assert!(one.cancel_by_force()?),
            }
        }
    }
    Ok(())
}

/// Ends once somebody says so, and gives the attempt that this was.
#[mobula::task(retries = 0)]
async fn told_to_end(begun: String, end: String) -> Result<u32> {
    witness::note(&begun);
    while !witness::noted(&end) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    Ok(mobula::context::current()?.attempt)
}

pub async fn what_matters_more_takes_no_more_than_it_needs(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    // All of it waits until whole nodes come free at once, so that each of them has one lease for as much as it can hold.
    let nodes = env.nodes().await?;
    let count = nodes.len() * 4;
    let task = told_to_end.options();
    let first: Vec<_> = nodes
        .iter()
        .map(|node| task.clone().cpu(4.0).strategy(on(*node)))
        .map(|task| task.remote(witness.place("first"), witness.place("first-may-end")))
        .collect();
    eventually("every CPU to be taken", async || Ok(witness.count("first") == nodes.len())).await?;
    let task = task.restartable(true);
    let low: Vec<_> =
        (0..count).map(|_| task.clone().remote(witness.place("low"), witness.place("low-may-end"))).collect();
    eventually("all of it to wait", async || {
        Ok(env.cluster.snapshot().await?.waiting.iter().any(|class| class.backlog as usize == count))
    })
    .await?;
    witness.say("first-may-end");
    mobula::get_all(&first).await?;
    eventually("each node to have one lease for all that it runs", async || {
        let leases = env.cluster.snapshot().await?.leases;
        Ok(witness.count("low") == count && leases == nodes.len() as u64)
    })
    .await?;
    let asked = std::time::Instant::now();
    let high =
        told_to_end.options().priority(10).remote(witness.place("high"), witness.place("high-may-end"));
    witness.sees("high").await?;
    let waited = asked.elapsed();
    assert!(waited < std::time::Duration::from_secs(6), "it waited {waited:?}");
    // One had to stop, for which there is no room now; of the others, none began anew.
    eventually("that which made room to wait", async || {
        let waiting = env.cluster.snapshot().await?.waiting;
        Ok(waiting.iter().any(|class| class.backlog == 1))
    })
    .await?;
    assert_eq!(witness.count("low"), count);
    witness.say("high-may-end");
    assert_eq!(high.await?, 1);
    eventually("what made room to run again", async || Ok(witness.count("low") > count)).await?;
    witness.say("low-may-end");
    let mut attempts = mobula::get_all(&low).await?;
    attempts.sort_unstable();
    let mut expected = vec![1; count - 1];
    expected.push(2);
    assert_eq!(attempts, expected);
    assert_eq!(witness.count("low"), count + 1);
    Ok(())
}

/// Service is due one CPU, whoever uses it meanwhile.
pub fn guaranteed() -> Vec<JobQueue> {
    vec![
        JobQueue { guaranteed: Resources::cpu(Quantity::ONE), ..JobQueue::new("service") },
        JobQueue::new("research"),
    ]
}

pub async fn what_was_borrowed_is_given_back(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let count = env.nodes().await?.len() * 2;
    // While service wants nothing, research has all of it.
    let options = told_to_end.options().queue("research").restartable(true);
    let borrowed: Vec<_> = (0..count)
        .map(|_| options.clone().remote(witness.place("research"), witness.place("research-may-end")))
        .collect();
    eventually("all of it to run", async || Ok(witness.count("research") == count)).await?;
    let asked = std::time::Instant::now();
    let service = told_to_end.options().queue("service");
    let due = service.clone().remote(witness.place("due"), witness.place("service-may-end"));
    witness.sees("due").await?;
    let waited = asked.elapsed();
    assert!(waited < std::time::Duration::from_secs(6), "it waited {waited:?}");
    witness.say("service-may-end");
    assert_eq!(due.await?, 1);
    eventually("what gave it back to run again", async || Ok(witness.count("research") > count)).await?;
    witness.say("research-may-end");
    let mut attempts = mobula::get_all(&borrowed).await?;
    attempts.sort_unstable();
    assert_eq!((attempts.len(), attempts[count - 2], attempts[count - 1]), (count, 1, 2), "{attempts:?}");
    Ok(())
}

pub async fn an_unknown_queue_is_named(_env: Env) -> Result<()> {
    let error = nothing.options().queue("nowhere").remote().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Queue, "MOB4002"), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
    let error = nothing.options().queue("no where").remote().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
    nothing.remote().await
}

pub fn a_job_belongs_to_a_queue() -> Outcome {
    let rig = queues().into_iter().fold(Rig::nodes(1).cpus(2.0), mobula_rig::Builder::queue).start()?;
    let builder = || Ok::<_, mobula_rig::Error>(Cluster::connect(&rig.socket(0)?).quiet());
    let (outcome, _) = private::drive(builder()?.queue("vision"), async |cluster: Cluster| {
        let witness = Witness::new()?;
        let gate = witness.gate("one")?;
        let (in_own, in_other) =
            (pass.remote(gate.place()), pass.options().queue("service").remote(gate.place()));
        eventually("each to be charged to its queue", async || {
            let snapshot = cluster.snapshot().await?;
            assert_eq!(snapshot.jobs[0].queue, "vision");
            let slots: Vec<u64> = snapshot.queues.iter().map(|queue| queue.slots).collect();
            let jobs: Vec<u64> = snapshot.queues.iter().map(|queue| queue.jobs).collect();
            Ok(slots == [0, 0, 1, 1] && jobs == [0, 0, 0, 1])
        })
        .await?;
        gate.open()?;
        in_own.await?;
        in_other.await
    })?;
    outcome?;
    let nowhere = builder()?.queue("nowhere");
    let refused = private::drive(nowhere, async |_: Cluster| ()).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Queue, "{refused}");
    assert!(refused.to_string().contains("nowhere"), "{refused}");
    rig.finish()?;
    Ok(())
}
