//! Hosts and nodes that die.

use mobula::{ErrorKind, Result, prelude::*};
use mobula_e2e::{
    Env, Part, Witness,
    env::{on, witness},
    eventually,
};

#[mobula::task]
fn dies_until(attempt: u32, place: String) -> Result<u32> {
    witness::note(&place);
    let me = mobula::context::current()?;
    if me.attempt < attempt {
        std::process::abort();
    }
    Ok(me.attempt)
}

#[mobula::task]
fn plus_one(x: u32) -> u32 {
    x + 1
}

pub async fn a_task_is_tried_again(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let tried = dies_until.options().isolation("process").remote(2, witness.place("own"));
    assert_eq!(plus_one.remote(&tried).await?, 3);
    assert_eq!(witness.count("own"), 2);
    if env.has_processes() {
        // What shares the host dies with it, and is tried again too.
        let mut others: Vec<_> = (0..20).map(|i| plus_one.remote(i)).collect();
        let tried = dies_until.remote(3, witness.place("shared"));
        others.extend((20..40).map(|i| plus_one.remote(i)));
        assert_eq!(tried.await?, 3);
        assert_eq!(mobula::get_all(&others).await?, (1..41).collect::<Vec<_>>());
    }
    Ok(())
}

pub async fn attempts_end(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let options = dies_until.options().isolation("process").retries(1);
    let error = options.remote(9, witness.place("runs")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostDied, "{error}");
    let text = error.to_string();
    assert!(text.contains("dies_until#") && text.contains("(attempt 2 of 2)"), "{text}");
    assert!(text.contains("SIGABRT"), "{text}");
    assert_eq!(witness.count("runs"), 2);
    let error = options.retries(0).remote(9, witness.place("once")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostDied, "{error}");
    assert_eq!(witness.count("once"), 1);
    Ok(())
}

struct Fragile {
    calls: u32,
}

#[mobula::actor]
impl Fragile {
    fn new(place: String) -> Self {
        witness::note(&place);
        Self { calls: 0 }
    }

    fn call(&mut self) -> u32 {
        self.calls += 1;
        self.calls
    }

    fn crash(&mut self) {
        std::process::abort();
    }

    fn process(&self) -> u32 {
        std::process::id()
    }

    async fn wait(&self) {
        std::future::pending::<()>().await;
    }
}

pub async fn an_actor_starts_again(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let expendable = env.expendable();
    let fragile = Fragile::spawn(witness.place("made"))
        .options(|options| options.restarts(2).isolation(expendable))
        .await?;
    assert_eq!(fragile.call().await?, 1);
    assert_eq!(fragile.call().await?, 2);
    let error = fragile.crash().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MaybeExecuted, "{error}");
    assert!(error.is_retryable());
    assert_eq!(fragile.call().await?, 1, "its state is new");
    assert_eq!(witness.count("made"), 2);
    Ok(())
}

pub async fn restarts_end(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let expendable = env.expendable();
    let fragile = Fragile::spawn(witness.place("made"))
        .options(|options| options.restarts(1).isolation(expendable))
        .await?;
    let error = fragile.crash().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MaybeExecuted, "{error}");
    let error = fragile.crash().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ActorDied, "{error}");
    assert!(error.to_string().contains("SIGABRT"), "{error}");
    let error = fragile.call().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ActorDied, "{error}");
    assert_eq!(witness.count("made"), 2);
    Ok(())
}

#[mobula::task]
fn process_when(started: String, go: String) -> u32 {
    witness::note(&started);
    witness::pass(&go);
    std::process::id()
}

pub async fn a_killed_host_is_replaced(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let go = witness.gate("go")?;
    let fragile = Fragile::spawn(witness.place("made")).options(|options| options.restarts(1)).await?;
    let host = fragile.process().await?;
    let waits = fragile.wait();
    let node = mobula::Strategy::Node { node: fragile.node().unwrap(), soft: true };
    let task = process_when.options().strategy(node).remote(witness.place("started"), go.place());
    witness.sees("started").await?;
    env.rig().unwrap().kill(Part::Host(host)).unwrap();
    go.open()?;
    let error = waits.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MaybeExecuted, "{error}");
    assert_ne!(task.await?, host);
    let host_now = fragile.process().await?;
    assert_ne!(host_now, host);
    let known: Vec<u32> = {
        let mut rig = env.rig().unwrap();
        (0..2).flat_map(|at| rig.hosts(at).unwrap()).collect()
    };
    assert!(known.contains(&host_now) && !known.contains(&host), "{host_now} among {known:?}");
    Ok(())
}

pub async fn a_killed_node_is_replaced(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (go, never) = (witness.gate("go")?, witness.gate("never")?);
    let nodes = env.nodes().await?;
    let place = usize::from(env.rig().unwrap().number(1).unwrap() == nodes[1].number);
    let soft = mobula::Strategy::Node { node: nodes[1], soft: true };
    let tasks: Vec<_> = (0..2)
        .map(|at| {
            let started = witness.place(&format!("started {at}"));
            process_when.options().strategy(soft.clone()).remote(started, go.place())
        })
        .collect();
    for at in 0..2 {
        witness.sees(&format!("started {at}")).await?;
    }
    let bound = process_when
        .options()
        .strategy(on(nodes[1]))
        .cpu(0.0)
        .retries(0)
        .remote(witness.place("bound"), never.place());
    witness.sees("bound").await?;
    env.rig().unwrap().kill(Part::Node(place)).unwrap();
    go.open()?;
    let error = bound.await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NodeDied | ErrorKind::HostDied), "{error}");
    mobula::get_all(&tasks).await?;
    eventually("the loss of a node", async || Ok(env.nodes().await?.len() == 1)).await?;
    assert_eq!(plus_one.remote(1).await?, 2);
    // The hosts of a lost agent end by themselves.
    Ok(())
}

struct Clerk {
    place: String,
}

#[mobula::actor(restarts = 1, call_retries = 1)]
impl Clerk {
    fn new(place: String) -> Self {
        Self { place }
    }

    /// Dies the first time it is called with `fatal`.
    fn stamp(&mut self, number: u32, fatal: bool) -> Result<(u32, u32)> {
        let before = std::fs::metadata(&self.place).is_ok();
        witness::note(&self.place);
        if fatal && !before {
            std::process::abort();
        }
        Ok((number, mobula::context::current()?.attempt))
    }
}

pub async fn calls_allowed_at_least_once_are_tried_again(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let expendable = env.expendable();
    let clerk =
        Clerk::spawn(witness.place("stamped")).options(|options| options.isolation(expendable)).await?;
    let calls: Vec<_> = (0..5).map(|number| clerk.stamp(number, number == 0)).collect();
    let stamped = mobula::get_all(&calls).await?;
    let numbers: Vec<u32> = stamped.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    assert_eq!(stamped[0].1, 2, "the call that died ran again");
    assert_eq!(witness.count("stamped"), 6);
    Ok(())
}

/// Notes when it goes.
struct Noting(String);

impl Drop for Noting {
    fn drop(&mut self) {
        witness::note(&self.0);
    }
}

#[mobula::data]
#[derive(Clone)]
struct Given(ObjectRef<Tensor>);

struct Orphan {
    _given: Given,
    _gone: Noting,
}

#[mobula::actor(cpu = 0.0)]
impl Orphan {
    fn new(begun: String, go: String, given: Given, gone: String) -> Self {
        witness::note(&begun);
        witness::pass(&go);
        Self { _given: given, _gone: Noting(gone) }
    }

    async fn wait(&self, called: String, stopped: String) {
        let _stopped = Noting(stopped);
        witness::note(&called);
        std::future::pending::<()>().await;
    }
}

/// Dies while one actor of its runs a call and another is being made.
#[mobula::task(isolation = "process", retries = 0)]
async fn makes_actors_and_dies(folder: String, given: Given) -> Result<()> {
    let at = |fact| format!("{folder}{fact}");
    let made = Orphan::spawn(at("made"), at("no gate"), given.clone(), at("made is gone")).await?;
    let _call = made.wait(at("called"), at("stopped"));
    let _half = Orphan::spawn(at("half made"), at("gate"), given, at("half made is gone")).start();
    // In a thread that may wait: the call is sent by the others.
    let death = at("death");
    let go = tokio::task::spawn_blocking(move || witness::pass(&death));
    go.await.expect("it does not panic");
    std::process::abort();
}

/// Though they live in hosts that go on: their state, what it holds, and what they run.
pub async fn actors_end_with_their_owner(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (gate, death) = (witness.gate("gate")?, witness.gate("death")?);
    let given = Given(mobula::put(&Tensor::from_vec(&[1 << 20], vec![7u8; 1 << 20])?)?);
    let creator = makes_actors_and_dies.remote(witness.place(""), given.clone());
    for note in ["called", "half made"] {
        witness.sees(note).await?;
    }
    death.open()?;
    let error = creator.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostDied, "{error}");
    witness.sees("stopped").await?;
    witness.sees("made is gone").await?;
    assert!(!witness.saw("half made is gone"));
    gate.open()?;
    witness.sees("half made is gone").await?;
    drop(given);
    env.stores_empty().await
}
