//! Calls whose arguments and results fit into the store one by one, and not together.

use std::time::Duration;

use mobula::{NodeId, Result, prelude::*};
use mobula_e2e::{
    Env, Witness,
    env::{on, witness},
    eventually,
};

const MIB: usize = 1 << 20;
/// Of each argument: a store of 64 MiB holds three, and little besides.
const GIVEN: usize = 19 * MIB;
/// Longer than anybody waits for room while nothing goes on.
const LONG: Duration = Duration::from_secs(8);

fn filled(bytes: usize, seed: u8) -> Result<Tensor> {
    Tensor::from_vec(&[bytes], vec![seed; bytes])
}

fn is_filled(tensor: &Tensor, bytes: usize, seed: u8) -> bool {
    tensor.as_slice::<u8>().is_ok_and(|found| found.len() == bytes && found.iter().all(|byte| *byte == seed))
}

#[mobula::task]
fn make(bytes: usize, seed: u8) -> Result<Tensor> {
    filled(bytes, seed)
}

/// A sum, of which each part is right or the call fails.
#[mobula::task(retries = 0)]
fn add(given: Tensor, seed: u8) -> Result<Tensor> {
    assert!(is_filled(&given, GIVEN, seed), "the argument is another");
    filled(GIVEN, seed + 1)
}

#[mobula::task(retries = 0)]
fn give(given: Tensor, seed: u8, bytes: usize, started: String, go: String) -> Result<Tensor> {
    assert_eq!(given.as_slice::<u8>()?.first(), Some(&seed), "the argument is another");
    witness::note(&started);
    witness::pass(&go);
    filled(bytes, seed)
}

#[mobula::task(retries = 0)]
fn puts(given: Tensor, seed: u8, bytes: usize, started: String, go: String) -> Result<u8> {
    witness::note(&started);
    witness::pass(&go);
    let put = mobula::put(&filled(bytes, seed)?)?;
    assert!(is_filled(&put.get()?, bytes, seed) && is_filled(&given, GIVEN, seed), "other bytes were put");
    Ok(seed)
}

async fn made(node: NodeId, sizes: &[usize]) -> Result<Vec<ObjectRef<Tensor>>> {
    let one = |(bytes, seed): (&usize, u8)| make.options().strategy(on(node)).remote(*bytes, seed);
    let made: Vec<_> = sizes.iter().zip(0..).map(one).collect();
    mobula::wait(&made, made.len(), None).await?;
    Ok(made)
}

/// Many, each with an argument from another node and a result as large.
pub async fn many_large_calls_share_the_store(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let made = made(nodes[1], &[GIVEN; 16]).await?;
    let sums: Vec<_> = made
        .iter()
        .zip(0..)
        .map(|(given, seed)| add.options().strategy(on(nodes[0])).remote(given, seed))
        .collect();
    drop(made);
    for (sum, seed) in sums.into_iter().zip(1..) {
        assert!(is_filled(&sum.await?, GIVEN, seed), "the sum is another");
    }
    env.stores_empty().await
}

/// The arguments of calls that go on for long leave no room for what another returns, which waits and does not fail.
pub async fn a_result_waits_for_the_end_of_other_calls(env: Env) -> Result<()> {
    const RESULT: usize = 30 * MIB;
    let nodes = env.nodes().await?;
    let made = made(nodes[1], &[GIVEN; 3]).await?;
    let witness = Witness::new()?;
    let (mut gates, mut results) = (Vec::new(), Vec::new());
    for (given, seed) in made.iter().zip(0..) {
        let gate = witness.gate(&format!("go-{seed}"))?;
        let started = format!("started-{seed}");
        let place = witness.place(&started);
        let call = give.options().strategy(on(nodes[0]));
        results.push(call.remote(given, seed, RESULT, place, gate.place()));
        gates.push(gate);
        // Each further one is let in because it has waited for long.
        witness.sees(&started).await?;
    }
    drop(made);
    gates[0].open()?;
    let early = tokio::time::timeout(LONG, &results[0]).await;
    assert!(early.is_err(), "there was room for it after all");
    gates[1].open()?;
    assert!(is_filled(&(&results[0]).await?, RESULT, 0), "the result is another");
    gates[2].open()?;
    for (result, seed) in results.into_iter().zip(0..) {
        assert!(is_filled(&result.await?, RESULT, seed), "the result is another");
    }
    env.stores_empty().await
}

/// Of two calls that put values, one has enough room for its own, and the other for its own once the first has ended.
pub async fn what_fits_does_not_wait_behind_what_waits_for_its_end(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let made = made(nodes[1], &[GIVEN; 2]).await?;
    let witness = Witness::new()?;
    let (mut gates, mut calls) = (Vec::new(), Vec::new());
    for ((given, seed), bytes) in made.iter().zip(0..).zip([30 * MIB, 10 * MIB]) {
        let gate = witness.gate(&format!("go-{seed}"))?;
        let started = format!("started-{seed}");
        let place = witness.place(&started);
        let call = puts.options().strategy(on(nodes[0]));
        calls.push(call.remote(given, seed, bytes, place, gate.place()));
        gates.push(gate);
        witness.sees(&started).await?;
    }
    drop(made);
    gates[0].open()?;
    eventually("the first to lack room", async || {
        Ok(env.cluster.snapshot().await?.nodes.iter().any(|node| node.usage.waiting > 0))
    })
    .await?;
    gates[1].open()?;
    assert_eq!(mobula::get_all(&calls).await?, [0, 1]);
    drop(calls);
    env.stores_empty().await
}

/// What a call returns has no room beside the argument of the next one that has its slot, which goes on all the same.
pub async fn a_result_waits_for_the_next_call_of_its_slot(env: Env) -> Result<()> {
    const RESULTS: [usize; 2] = [40 * MIB, MIB];
    let nodes = env.nodes().await?;
    let made = made(nodes[1], &[GIVEN, 28 * MIB]).await?;
    let witness = Witness::new()?;
    let go = witness.gate("go")?;
    let call = |(given, seed): (&ObjectRef<Tensor>, u8)| {
        let place = witness.place(&format!("started-{seed}"));
        let call = give.options().strategy(on(nodes[0]));
        call.remote(given, seed, RESULTS[usize::from(seed)], place, go.place())
    };
    let mut results = vec![call((&made[0], 0))];
    witness.sees("started-0").await?;
    results.push(call((&made[1], 1)));
    drop(made);
    eventually("the next one's argument", async || {
        let nodes = env.cluster.snapshot().await?.nodes;
        Ok(nodes.iter().any(|node| node.usage.pinned == 2))
    })
    .await?;
    assert!(!witness.saw("started-1"), "it has a slot of its own");
    go.open()?;
    for (result, seed) in results.into_iter().zip(0..) {
        assert!(is_filled(&result.await?, RESULTS[usize::from(seed)], seed), "the result is another");
    }
    env.stores_empty().await
}
