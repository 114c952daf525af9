//! Why something waits.

use mobula::{ErrorKind, ObjectRef, Result};
use mobula_e2e::{Env, Witness, env::witness, eventually};

#[mobula::task]
fn pass(gate: String) -> u64 {
    witness::pass(&gate);
    1
}

#[mobula::task]
fn next(before: u64) -> u64 {
    before + 1
}

struct Idler;

#[mobula::actor]
impl Idler {
    fn new(_after: u64) -> Self {
        Self
    }

    fn rest(&mut self) {}
}

/// One of these waits for a lease, since each node has one CPU.
pub async fn owner_and_scheduler_both_say(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let gate = witness.gate("all")?;
    let count = env.nodes().await?.len() + 1;
    let held: Vec<ObjectRef<u64>> = (0..count).map(|_| pass.remote(gate.place())).collect();
    let then = next.remote(&held[count - 1]);
    let idler = Idler::spawn(&then).start();
    let called = idler.rest();
    let why = async |id: String| env.cluster.why(id).await;
    eventually("one of them to wait for a lease, and the others to run", async || {
        let mut said = Vec::new();
        for object in &held {
            said.push(why(object.id().to_string()).await?);
        }
        let waiting: Vec<_> =
            said.iter().filter(|why| why.reasons[0].starts_with("waits for a lease")).collect();
        let [waiting] = waiting[..] else { return Ok(false) };
        // A demand that has just been answered in part is known to the owner alone.
        let Some(by_scheduler) = waiting.reasons.get(1) else { return Ok(false) };
        assert!(waiting.what.starts_with("task ") && waiting.what.contains("explaining::pass#"), "{waiting}");
        assert!(
            by_scheduler.starts_with("needs 1 CPU") && by_scheduler.contains("full with job-"),
            "{waiting}"
        );
        Ok(said.iter().filter(|why| why.reasons[0].starts_with("was sent to node-")).count() == count - 1)
    })
    .await?;
    let then_waits = why(then.id().to_string()).await?;
    let argument = format!("explaining::pass#{} ({})", held[count - 1].id().seq, held[count - 1].id().task());
    assert!(then_waits.reasons[0].starts_with("waits for an argument: the result of task "), "{then_waits}");
    assert!(then_waits.reasons[0].contains(&argument), "{then_waits}");
    let actor = why(idler.id().to_string()).await?;
    assert!(
        actor.what.starts_with("actor ") && actor.reasons[0].contains("waits for an argument"),
        "{actor}"
    );
    let call = why(called.id().to_string()).await?;
    assert!(call.what.starts_with("call ") && call.reasons[0].starts_with("waits for actor "), "{call}");

    // An actor of its own CPU waits for one as a task does.
    let wants = Idler::spawn(0).options(|options| options.cpu(1.0)).start();
    eventually("the scheduler to say why the actor waits", async || {
        let said = why(wants.id().to_string()).await?;
        assert!(said.what.starts_with("actor "), "{said}");
        Ok(matches!(&said.reasons[..], [by_owner, by_scheduler]
            if by_owner.starts_with("waits for a lease")
                && by_scheduler.starts_with("needs 1 CPU") && by_scheduler.contains("full with job-")))
    })
    .await?;
    wants.kill();

    let snapshot = env.cluster.snapshot().await?;
    let function = snapshot.waiting[0].function.clone();
    assert!(function.ends_with("explaining::pass"), "{function}");
    for (id, what) in [
        (function.clone(), format!("function {function}")),
        (snapshot.jobs[0].job.clone(), "job-".to_owned()),
    ] {
        let said = why(id).await?;
        assert!(said.what.starts_with(&what) && said.reasons.len() == 1, "{said}");
        assert!(said.reasons[0].starts_with(&function) && said.reasons[0].contains("needs 1 CPU"), "{said}");
    }

    gate.open()?;
    called.await?;
    assert!(why(then.id().to_string()).await?.reasons[0].starts_with("is there"));
    assert!(why(idler.id().to_string()).await?.reasons[0].starts_with("lives on node-"));
    let gone = then.id().to_string();
    // The actor keeps what it was given, so that it can be made again.
    drop((then, held, idler));
    eventually("the result to be forgotten", async || match why(gone.clone()).await {
        Ok(_) => Ok(false),
        Err(error) => Ok(error.kind() == ErrorKind::Unknown && error.to_string().contains(&gone)),
    })
    .await?;
    for nothing in ["nobody", "job-4000", "queue:nowhere", "node-9/host-1#1", ""] {
        let error = why(nothing.to_owned()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unknown | ErrorKind::Queue), "{nothing:?} {error}");
    }
    Ok(())
}
