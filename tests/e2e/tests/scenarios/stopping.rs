//! Processes that stand still for a while, as on a machine that swaps or is suspended.

use std::time::Duration;

use mobula::{NodeId, Result};
use mobula_e2e::{
    Env, Part, Witness,
    env::{WAIT, on, witness},
};

/// Longer than a lease's term, shorter than it takes to give up a node or a driver.
const PAUSE: Duration = Duration::from_millis(1500);
/// Calls of each kind.
const CALLS: usize = 40;

#[mobula::task(cpu = 0.25)]
fn noted(place: String, at: usize) -> usize {
    witness::note(&place);
    std::thread::sleep(Duration::from_millis(20));
    at
}

struct Counter {
    count: usize,
}

#[mobula::actor]
impl Counter {
    fn new() -> Self {
        Self { count: 0 }
    }

    fn add(&mut self) -> usize {
        std::thread::sleep(Duration::from_millis(10));
        self.count += 1;
        self.count
    }

    fn quick(&mut self) -> usize {
        self.count += 1;
        self.count
    }

    fn process(&self) -> u32 {
        std::process::id()
    }
}

/// Tasks anywhere and calls of an actor on each node, while `stop` stands still for a while in their midst.
async fn go_on(env: &Env, stop: impl AsyncFn(NodeId, u32) -> Part) -> Result<()> {
    let witness = Witness::new()?;
    let mut counters = Vec::new();
    for node in env.nodes().await? {
        let counter = Counter::spawn().options(|options| options.cpu(0.25).strategy(on(node))).await?;
        counters.push((node, counter));
    }
    let (node, counter) = &counters[counters.len() - 1];
    let part = stop(*node, counter.process().await?).await;
    let fact = |at: usize| format!("task {at}");
    let tasks: Vec<_> = (0..CALLS).map(|at| noted.remote(witness.place(&fact(at)), at)).collect();
    let calls: Vec<Vec<_>> =
        counters.iter().map(|(_, counter)| (0..CALLS).map(|_| counter.add()).collect()).collect();
    witness.sees(&fact(0)).await?;
    env.rig().unwrap().stop(part).unwrap();
    tokio::time::sleep(PAUSE).await;
    env.rig().unwrap().resume(part).unwrap();
    assert_eq!(mobula::get_all(&tasks).await?, (0..CALLS).collect::<Vec<_>>());
    for calls in &calls {
        assert_eq!(mobula::get_all(calls).await?, (1..=CALLS).collect::<Vec<_>>());
    }
    for at in 0..CALLS {
        assert_eq!(witness.count(&fact(at)), 1, "task {at} ran once");
    }
    // And it is of use again.
    for (_, counter) in &counters {
        assert_eq!(counter.add().await?, CALLS + 1);
    }
    assert_eq!(env.nodes().await?.len(), 2, "nobody was given up");
    Ok(())
}

pub async fn a_stopped_host_goes_on(env: Env) -> Result<()> {
    go_on(&env, async |_, process| Part::Host(process)).await
}

/// In the mode with a socket it is the driver's own agent.
pub async fn a_stopped_agent_goes_on(env: Env) -> Result<()> {
    let socket = env.mode == mobula_e2e::Mode::Socket;
    go_on(&env, async |node, _| {
        if socket {
            return Part::Node(0);
        }
        let rig = env.rig().unwrap();
        Part::Node((0..2).find(|at| rig.number(*at).unwrap() == node.number).unwrap())
    })
    .await
}

pub async fn a_stopped_head_goes_on(env: Env) -> Result<()> {
    go_on(&env, async |_, _| Part::Head).await
}

#[mobula::task]
fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

/// Rounds of calls that are made while the head stands still: less work than its silence is borne for.
const ROUNDS: usize = 40;

/// Tasks, an actor's calls and large objects on one node, once there is a lease for them.
pub async fn steady_calls_never_touch_the_head(env: Env) -> Result<()> {
    let node = env.nodes().await?[0];
    let here = echo.options().strategy(on(node));
    let counter = Counter::spawn().options(|options| options.strategy(on(node))).await?;
    let calls = async |rounds: usize| -> Result<()> {
        for at in 0..rounds {
            assert_eq!(here.remote(vec![at as u8]).await?, [at as u8]);
            let large = mobula::put(&vec![at as u8; 200_000])?;
            assert_eq!(here.remote(&large).await?, vec![at as u8; 200_000]);
            counter.quick().await?;
        }
        Ok(())
    };
    calls(20).await?;
    env.rig().unwrap().stop(Part::Head).unwrap();
    let steady = tokio::time::timeout(WAIT, calls(ROUNDS)).await;
    env.rig().unwrap().resume(Part::Head).unwrap();
    steady.expect("no call asks the head for anything")
}

/// More calls than fit into a ring and what lay beside it once.
const MANY_CALLS: usize = 400_000;

pub async fn a_stopped_host_loses_none_of_many_calls(env: Env) -> Result<()> {
    let counter = Counter::spawn().await?;
    let host = Part::Host(counter.process().await?);
    env.rig().unwrap().stop(host).unwrap();
    let calls: Vec<_> = (0..MANY_CALLS).map(|_| counter.quick()).collect();
    env.rig().unwrap().resume(host).unwrap();
    assert_eq!(mobula::get_all(&calls).await?, (1..=MANY_CALLS).collect::<Vec<_>>());
    Ok(())
}
