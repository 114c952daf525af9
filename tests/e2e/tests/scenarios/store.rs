//! Objects in the shared store: room, pressure, loss.

use std::time::{Duration, Instant};

use mobula::{ErrorKind, Result, prelude::*};
use mobula_e2e::{
    Env, Part, Witness,
    env::{on, witness},
    eventually,
};

const MIB: usize = 1 << 20;

#[mobula::task]
fn make(bytes: usize) -> Result<Tensor> {
    Tensor::from_vec(&[bytes], vec![1u8; bytes])
}

#[mobula::task]
fn length(tensor: Tensor) -> usize {
    tensor.len()
}

#[mobula::data]
struct Holding(ObjectRef<Tensor>);

#[mobula::task]
fn give(bytes: usize) -> Result<Holding> {
    Ok(Holding(mobula::put(&Tensor::from_vec(&[bytes], vec![2u8; bytes])?)?))
}

struct Keeper {
    kept: Vec<ObjectRef<Tensor>>,
}

#[mobula::actor]
impl Keeper {
    fn new() -> Self {
        Self { kept: Vec::new() }
    }

    fn keep(&mut self, held: Holding) -> usize {
        self.kept.push(held.0);
        self.kept.len()
    }

    async fn lengths(&self) -> Result<Vec<usize>> {
        let mut all = Vec::new();
        for one in &self.kept {
            all.push(one.await?.len());
        }
        Ok(all)
    }

    fn drop_all(&mut self) {
        self.kept.clear();
    }
}

pub async fn big_objects_are_freed_with_their_last_ref(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    {
        let put = mobula::put(&Tensor::from_vec(&[MIB], vec![0u8; MIB])?)?;
        let made: Vec<_> = nodes.iter().map(|node| make.options().strategy(on(*node)).remote(MIB)).collect();
        for node in &nodes {
            for tensor in made.iter().chain([&put]) {
                assert_eq!(length.options().strategy(on(*node)).remote(tensor).await?, MIB);
            }
        }
        let given = give.options().strategy(on(nodes[0])).remote(MIB).await?;
        assert_eq!(given.0.await?.len(), MIB);
    }
    env.stores_empty().await
}

pub async fn borrowed_objects_outlive_the_first_ref(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let last = nodes[nodes.len() - 1];
    let keeper = Keeper::spawn().options(|options| options.strategy(on(last))).await?;
    let put = mobula::put(&Tensor::from_vec(&[MIB], vec![0u8; MIB])?)?;
    keeper.keep(Holding(put)).await?;
    keeper.keep(Holding(make.options().strategy(on(nodes[0])).remote(2 * MIB))).await?;
    keeper.keep(give.remote(3 * MIB).await?).await?;
    assert_eq!(keeper.lengths().await?, [MIB, 2 * MIB, 3 * MIB]);
    keeper.drop_all().await?;
    env.stores_empty().await?;
    assert!(keeper.lengths().await?.is_empty());
    Ok(())
}

pub async fn a_full_store_says_so(env: Env) -> Result<()> {
    let mut held = Vec::new();
    let tensor = Tensor::from_vec(&[5 * MIB], vec![1u8; 5 * MIB])?;
    let error = loop {
        let began = Instant::now();
        match mobula::put(&tensor) {
            // A view of what this process wrote keeps the memory, whatever lies on disk besides.
            Ok(object) => held.push(((&object).await?, object)),
            Err(error) => {
                assert!(began.elapsed() > Duration::from_secs(1), "it waits for room before it gives up");
                break error;
            }
        }
        assert!(held.len() < 8, "40 MiB do not fit into 32");
    };
    assert_eq!(error.kind(), ErrorKind::StoreFull, "{error}");
    assert!(error.is_retryable());
    assert!(held.len() >= 3, "only {} of 5 MiB each fitted into 32", held.len());
    assert_eq!((&held[0].1).await?.len(), 5 * MIB, "what is in it stays readable");
    held.pop();
    let again = mobula::put(&tensor)?;
    assert_eq!(again.await?, tensor);
    drop(held);
    env.stores_empty().await
}

pub async fn too_large_for_the_store(_env: Env) -> Result<()> {
    let tensor = Tensor::from_vec(&[64 * MIB], vec![1u8; 64 * MIB])?;
    let began = Instant::now();
    let error = mobula::put(&tensor).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ObjectTooLarge, "{error}");
    assert!(!error.is_retryable());
    assert!(began.elapsed() < Duration::from_secs(4), "there is nothing to wait for");
    let error = make.remote(64 * MIB).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ObjectTooLarge, "{error}");
    Ok(())
}

#[mobula::task]
fn counted(place: String, bytes: usize) -> Result<Tensor> {
    witness::note(&place);
    Tensor::from_vec(&[bytes], vec![3u8; bytes])
}

/// The node with the only copy dies; the task that made the value runs again elsewhere.
pub async fn a_lost_object_is_made_again(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let nodes = env.nodes().await?;
    let last = nodes[nodes.len() - 1];
    let object = counted
        .options()
        .strategy(mobula::Strategy::Node { node: last, soft: true })
        .remote(witness.place("made"), MIB);
    mobula::wait(std::slice::from_ref(&object), 1, None).await?;
    assert_eq!(witness.count("made"), 1);
    {
        let mut rig = env.rig().unwrap();
        let place = usize::from(rig.number(1).unwrap() == last.number);
        rig.kill(Part::Node(place)).unwrap();
    }
    eventually("the loss of a node", async || Ok(env.nodes().await?.len() == 1)).await?;
    assert_eq!(length.remote(&object).await?, MIB);
    assert_eq!(object.await?.len(), MIB);
    assert_eq!(witness.count("made"), 2);
    Ok(())
}

#[mobula::task(cpu = 0)]
fn made_behind(gate: String, bytes: usize) -> Result<Tensor> {
    witness::pass(&gate);
    Tensor::from_vec(&[bytes], vec![4u8; bytes])
}

/// A thread waits for all, of which one was there already and is lost meanwhile.
pub async fn one_that_is_lost_before_others_are_there_is_waited_for(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let gate = witness.gate("gate")?;
    let nodes = env.nodes().await?;
    let (first, last) = (nodes[0], nodes[nodes.len() - 1]);
    let late = made_behind.options().strategy(on(first)).remote(gate.place(), MIB);
    let there = counted
        .options()
        .strategy(mobula::Strategy::Node { node: last, soft: true })
        .remote(witness.place("made"), MIB);
    mobula::wait(std::slice::from_ref(&there), 1, None).await?;
    let reader = tokio::task::spawn_blocking(move || mobula::blocking::get_all(&[late, there]));
    {
        let mut rig = env.rig().unwrap();
        let place = usize::from(rig.number(1).unwrap() == last.number);
        rig.kill(Part::Node(place)).unwrap();
    }
    eventually("the loss of a node", async || Ok(env.nodes().await?.len() == 1)).await?;
    gate.open()?;
    let tensors = reader.await.unwrap()?;
    assert!(tensors.iter().all(|tensor| tensor.len() == MIB));
    assert_eq!(witness.count("made"), 2);
    Ok(())
}
