//! Calls that go on after their time.

use std::{path::Path, time::Duration};

use mobula::{ErrorKind, ObjectRef, Result};
use mobula_e2e::{
    Env, Witness,
    env::{eventually, witness},
};

/// Long enough to begin, however busy the machine is.
const SHORT: Duration = Duration::from_millis(700);

#[mobula::task]
fn passes(pid: String, gate: String) -> u32 {
    let own = std::process::id();
    if !pid.is_empty() {
        std::fs::write(pid, own.to_string()).unwrap();
    }
    witness::pass(&gate);
    own
}

fn out_of_time<T>(result: Result<T>) {
    let error = result.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

#[mobula::data]
struct Given(ObjectRef<u64>);

#[derive(Default)]
struct Keeper {
    kept: Option<ObjectRef<u64>>,
}

#[mobula::actor]
impl Keeper {
    fn new() -> Self {
        Self::default()
    }

    fn keep(&mut self, given: Given, gate: String) {
        self.kept = Some(given.0);
        witness::pass(&gate);
    }

    async fn kept(&self) -> Result<u64> {
        self.kept.as_ref().unwrap().await
    }
}

pub async fn what_a_late_call_kept_is_there(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let gate = witness.gate("gate")?;
    let keeper = Keeper::spawn().await?;
    let value = mobula::put(&7_u64)?;
    let hurried = keeper.with_options(|options| options.timeout(SHORT));
    out_of_time(hurried.keep(Given(value.clone()), gate.place()).await);
    drop(value);
    gate.open()?;
    assert_eq!(keeper.kept().await?, 7);
    Ok(())
}

pub async fn one_that_does_not_stop_keeps_no_other_waiting(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (gate, open) = (witness.gate("gate")?, witness.gate("open")?);
    open.open()?;
    // Its class is known to be short, so that others of it would be sent to its slot ahead.
    passes.remote(String::new(), open.place()).await?;
    let late = passes.options().timeout(SHORT).remote(String::new(), gate.place());
    out_of_time((&late).await);
    let others: Vec<_> = (0..10).map(|_| passes.remote(String::new(), open.place())).collect();
    mobula::get_all(&others).await?;
    assert!(!late.cancel(), "it has its failure");
    assert_eq!(late.cancel_by_force().unwrap_err().kind(), ErrorKind::CannotForce);
    gate.open()
}

async fn ended(pid: &str) -> Result<()> {
    let proc = Path::new("/proc").join(pid);
    eventually("the end of the process", async || Ok(!proc.exists())).await
}

pub async fn a_process_that_does_not_stop_serves_no_other(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (gate, open) = (witness.gate("gate")?, witness.gate("open")?);
    open.open()?;
    let alone = passes.options().isolation("process");
    for force in [true, false] {
        let place = witness.place(&format!("process, {force}"));
        let late = alone.clone().timeout(SHORT).remote(place.clone(), gate.place());
        out_of_time((&late).await);
        let pid = std::fs::read_to_string(place).unwrap();
        if force {
            assert!(late.cancel_by_force()?, "its code runs still");
        } else {
            // By itself after a while.
            let next = alone.remote(String::new(), open.place()).await?;
            assert_ne!(next.to_string(), pid);
        }
        ended(&pid).await?;
        out_of_time(late.await);
    }
    Ok(())
}

struct Late;

#[mobula::actor]
impl Late {
    fn new(gate: String) -> Self {
        witness::pass(&gate);
        Self
    }

    fn touch(&self) {}
}

/// Of one that does, the harness finds a rest.
pub async fn an_actor_that_comes_too_late_does_not_live(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let gate = witness.gate("gate")?;
    let late = Late::spawn(gate.place()).options(|options| options.timeout(SHORT)).start();
    let call = late.touch().await.unwrap_err();
    assert_eq!(call.kind(), ErrorKind::ActorDied, "{call}");
    assert!(call.to_string().contains("ran longer than"), "{call}");
    drop(late);
    gate.open()
}

struct Stubborn(u32);

#[mobula::actor]
impl Stubborn {
    fn new(pid: String, gate: String) -> Self {
        Self(passes.local(pid, gate))
    }

    fn process(&self) -> u32 {
        self.0
    }
}

/// Killed while it is made, it keeps its slot until it has ended, here with its process.
pub async fn a_killed_construction_that_does_not_stop_serves_no_other(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (gate, open) = (witness.gate("gate")?, witness.gate("open")?);
    open.open()?;
    let place = witness.place("process");
    let start = |pid: String, gate: String| {
        Stubborn::spawn(pid, gate).options(|options| options.isolation("process").cpu(1.0)).start()
    };
    let killed = start(place.clone(), gate.place());
    let read = || std::fs::read_to_string(&place).unwrap_or_default();
    eventually("its construction", async || Ok(!read().is_empty())).await?;
    let pid = read();
    killed.kill();
    let died = killed.process().await.unwrap_err();
    assert_eq!(died.kind(), ErrorKind::ActorDied, "{died}");
    let next = start(String::new(), open.place()).process().await?;
    assert_ne!(next.to_string(), pid);
    ended(&pid).await
}
