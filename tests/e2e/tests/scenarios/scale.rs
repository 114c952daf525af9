//! Much of everything at once: it finishes, and nothing is left behind.

use std::sync::LazyLock;

use mobula::{NodeId, ObjectRef, Result, Tensor, View};
use mobula_e2e::{
    Env, Witness,
    env::{on, witness},
};
use tokio::sync::watch;

use super::limits::own_memory;

/// Refs among the arguments of one task, and objects in one `get`.
const REFS: u64 = 10_000;
/// Results of one task.
const RESULTS: u32 = 3000;
/// Async tasks that sleep at the same time.
const SLEEPERS: u32 = 10_000;
/// Tasks that are queued at once, and the memory that each may take meanwhile.
const QUEUED: u64 = 100_000;
const QUEUED_BYTES: u64 = 300;
/// Elements of an object that no 32-bit offset reaches. Memory is taken for what is written of it only.
const FAR: usize = (4 << 30) / 8 + 1000;
/// Actors that wait for calls at the same time.
const IDLE: u32 = 10_000;
const LAYERS: usize = 20;
const LAYER_TASKS: u64 = 500;

fn wrapping_sum(first: u64, rest: &[u64]) -> u64 {
    rest.iter().fold(first, |total, one| total.wrapping_add(*one))
}

#[mobula::task]
fn add_all(first: u64, rest: Vec<u64>) -> u64 {
    wrapping_sum(first, &rest)
}

#[mobula::task(returns)]
fn numbers(count: u64) -> Vec<u64> {
    (0..count).collect()
}

/// In the store of the node on which it runs, owned by the host that runs it.
#[mobula::task]
fn stored(count: u64) -> Result<Vec<ObjectRef<u64>>> {
    (0..count).map(|value| mobula::put_shared(&value)).collect()
}

pub async fn many_refs_and_results(env: Env) -> Result<()> {
    let all = (0..REFS).map(|value| mobula::put(&value)).collect::<Result<Vec<_>>>()?;
    assert_eq!(add_all.remote(0, &all[..]).await?, REFS * (REFS - 1) / 2);
    drop(all);
    let results = numbers.options().returns(RESULTS).remote(u64::from(RESULTS));
    assert_eq!(mobula::get_all(&results).await?, (0..u64::from(RESULTS)).collect::<Vec<_>>());
    drop(results);
    let made = stored.remote(REFS).await?;
    assert_eq!(mobula::get_all(&made).await?, (0..REFS).collect::<Vec<_>>());
    drop(made);
    env.stores_empty().await
}

/// All processors of a node, until the gate is open.
#[mobula::task(cpu = 2, retries = 0)]
fn occupy(here: String, gate: String) {
    witness::note(&here);
    witness::pass(&gate);
}

#[mobula::task]
fn same(value: u64) -> u64 {
    value
}

pub async fn many_tasks_are_queued(env: Env) -> Result<()> {
    let (witness, nodes) = (Witness::new()?, env.nodes().await?);
    let gate = witness.gate("gate")?;
    let here = |node: &NodeId| format!("{node} is occupied");
    let occupied: Vec<_> = nodes
        .iter()
        .map(|node| occupy.options().strategy(on(*node)).remote(witness.place(&here(node)), gate.place()))
        .collect();
    for node in &nodes {
        witness.sees(&here(node)).await?;
    }
    let before = own_memory();
    let all: Vec<_> = (0..QUEUED).map(|value| same.remote(value)).collect();
    let each = own_memory().saturating_sub(before) / QUEUED;
    assert!(each <= QUEUED_BYTES, "each of {QUEUED} queued tasks takes {each} bytes");
    assert!(!all.iter().any(ObjectRef::is_ready), "no processor was free");
    gate.open()?;
    assert_eq!(mobula::get_all(&all).await?, (0..QUEUED).collect::<Vec<_>>());
    mobula::get_all(&occupied).await.map(drop)
}

#[mobula::task]
fn far_built() -> Result<Tensor> {
    Tensor::build(&[FAR], |all: &mut [u64]| (all[0], all[FAR - 1]) = (3, 4))
}

#[mobula::task(cpu = 0, isolation = "process")]
fn far_ends(tensor: View<Tensor>) -> Result<(u64, u64)> {
    let tensor = tensor.tensor()?;
    let all = tensor.as_slice::<u64>()?;
    Ok((all[0], all[all.len() - 1]))
}

pub async fn an_object_beyond_four_gibibytes(env: Env) -> Result<()> {
    let here = on(env.nodes().await?[0]);
    let built = far_built.options().strategy(here.clone()).remote();
    assert_eq!(far_ends.options().strategy(here).remote(&built).await?, (3, 4));
    drop(built);
    env.stores_empty().await
}

/// How many sleep in this process.
static ASLEEP: LazyLock<watch::Sender<u32>> = LazyLock::new(|| watch::Sender::new(0));

/// Sleeps until so many of them do at once in this process, so that none returns before all have begun; 0 where they do
/// not come together.
#[mobula::task(cpu = 0)]
async fn sleep_together(count: u32) -> u32 {
    // Only the last wakes the others.
    ASLEEP.send_if_modified(|asleep| {
        *asleep += 1;
        *asleep >= count
    });
    let mut asleep = ASLEEP.subscribe();
    tokio::select! {
        () = tokio::time::sleep(mobula_e2e::env::WAIT) => 0,
        all = asleep.wait_for(|asleep| *asleep >= count) => u32::from(all.is_ok()),
    }
}

pub async fn many_tasks_sleep_at_once(env: Env) -> Result<()> {
    let node = env.nodes().await?[0];
    let here = sleep_together.options().strategy(mobula_e2e::env::on(node));
    let all: Vec<_> = (0..SLEEPERS).map(|_| here.remote(SLEEPERS)).collect();
    assert_eq!(mobula::get_all(&all).await?.iter().sum::<u32>(), SLEEPERS);
    Ok(())
}

pub async fn many_layers_of_many_dependencies(env: Env) -> Result<()> {
    let mut layer: Vec<ObjectRef<u64>> =
        (0..LAYER_TASKS).map(|at| add_all.remote(at, Vec::<u64>::new())).collect();
    let mut wanted: Vec<u64> = (0..LAYER_TASKS).collect();
    for _ in 1..LAYERS {
        layer = (0..LAYER_TASKS).map(|at| add_all.remote(at, &layer[..])).collect();
        let before = wrapping_sum(0, &wanted);
        wanted = (0..LAYER_TASKS).map(|at| at.wrapping_add(before)).collect();
    }
    assert_eq!(mobula::get_all(&layer).await?, wanted);
    drop(layer);
    env.stores_empty().await
}

#[mobula::task]
async fn async_leaves(depth: u32) -> Result<u64> {
    if depth == 0 {
        return Ok(1);
    }
    let (left, right) = (async_leaves.remote(depth - 1), async_leaves.remote(depth - 1));
    Ok(left.await? + right.await?)
}

#[mobula::task]
fn sync_leaves(depth: u32) -> Result<u64> {
    if depth == 0 {
        return Ok(1);
    }
    let (left, right) = (sync_leaves.remote(depth - 1), sync_leaves.remote(depth - 1));
    Ok(left.get()? + right.get()?)
}

pub async fn trees_of_tasks(_env: Env) -> Result<()> {
    assert_eq!(async_leaves.remote(16).await?, 65_536);
    assert_eq!(sync_leaves.remote(8).await?, 256);
    Ok(())
}

struct Idler {
    number: u32,
}

#[mobula::actor]
impl Idler {
    fn new(number: u32) -> Self {
        Self { number }
    }

    fn number(&self) -> u32 {
        self.number
    }
}

pub async fn many_actors_wait_for_calls(env: Env) -> Result<()> {
    let actors = (0..IDLE).map(|number| Idler::spawn(number).start()).collect::<Vec<_>>();
    for _ in 0..2 {
        let calls: Vec<_> = actors.iter().map(|actor| actor.number()).collect();
        assert_eq!(mobula::get_all(&calls).await?, (0..IDLE).collect::<Vec<_>>());
    }
    drop(actors);
    env.stores_empty().await
}
