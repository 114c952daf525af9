//! Stores that are too small for what they hold: the disk takes the rest.

use mobula::{Builder, NodeId, Result, prelude::*};
use mobula_e2e::{
    Env, Part,
    env::{Standing, on},
    eventually,
};

use super::{detaching::drive, driver::Outcome};

const MIB: usize = 1 << 20;
/// Of each object. A store of 32 MiB holds ten.
pub const BYTES: usize = 3 * MIB;
/// So many are four stores full.
const COUNT: usize = 43;

/// Bytes that are different for each object, and at each place of it.
pub fn bytes(seed: usize) -> Vec<u8> {
    (0..BYTES).map(|at| ((at >> 3) ^ (at >> 11) ^ (seed * 31)) as u8).collect()
}

pub fn is_right(tensor: &Tensor, seed: usize) -> bool {
    tensor.as_slice::<u8>().is_ok_and(|found| found == bytes(seed))
}

#[mobula::task]
pub fn make(seed: usize) -> Result<Tensor> {
    Tensor::from_vec(&[BYTES], bytes(seed))
}

#[mobula::task]
pub fn check(tensor: Tensor, seed: usize) -> bool {
    is_right(&tensor, seed)
}

/// All of them in an order in which no two neighbours follow one another.
fn shuffled() -> impl Iterator<Item = usize> {
    (0..COUNT).map(|at| at * 17 % COUNT)
}

async fn spilled(env: &Env) -> Result<(u64, u64)> {
    let nodes = env.cluster.snapshot().await?.nodes;
    let spilled = nodes.iter().map(|node| node.usage.spilled).sum();
    Ok((spilled, nodes.iter().map(|node| node.usage.restored).sum()))
}

async fn have_spilled(env: &Env) -> Result<()> {
    eventually("objects on disk and back", async || {
        let (spilled, restored) = spilled(env).await?;
        Ok(spilled > 0 && restored > 0)
    })
    .await
}

pub async fn a_driver_puts_four_stores_full(env: Env) -> Result<()> {
    let held: Vec<_> = (0..COUNT)
        .map(|seed| mobula::put(&Tensor::from_vec(&[BYTES], bytes(seed))?))
        .collect::<Result<_>>()?;
    for seed in shuffled() {
        assert!(is_right(&(&held[seed]).await?, seed), "object {seed} is another");
    }
    // Tasks read them too, wherever they run.
    let right: Vec<_> = shuffled().map(|seed| check.remote(&held[seed], seed)).collect();
    assert!(mobula::get_all(&right).await?.into_iter().all(|right| right));
    have_spilled(&env).await?;
    drop(held);
    env.stores_empty().await
}

/// As with a disk: in whatever process the node is, and with what tasks make.
pub async fn an_object_store_takes_the_rest(env: Env) -> Result<()> {
    a_driver_puts_four_stores_full(env.clone()).await?;
    results_outgrow_the_store(env).await
}

pub async fn results_outgrow_the_store(env: Env) -> Result<()> {
    results_outgrow(&env, env.nodes().await?[0]).await?;
    env.stores_empty().await
}

async fn results_outgrow(env: &Env, node: NodeId) -> Result<()> {
    let made: Vec<_> = (0..COUNT).map(|seed| make.options().strategy(on(node)).remote(seed)).collect();
    mobula::wait(&made, COUNT, None).await?;
    for seed in shuffled() {
        let right = check.options().strategy(on(node)).remote(&made[seed], seed);
        assert!(right.await?, "object {seed} is another");
    }
    have_spilled(env).await
}

struct Hoarder {
    held: Vec<ObjectRef<Tensor>>,
}

#[mobula::actor(cpu = 0)]
impl Hoarder {
    fn new() -> Self {
        Self { held: Vec::new() }
    }

    /// Puts twice as many, so that it keeps memory for more beside what it holds.
    fn hold(&mut self, count: usize) -> Result<u32> {
        let put = |seed| mobula::put(&Tensor::from_vec(&[BYTES], bytes(seed))?);
        self.held = (0..2 * count).map(put).collect::<Result<_>>()?;
        self.held.truncate(count);
        Ok(std::process::id())
    }

    async fn all_right(&self) -> Result<bool> {
        let all = mobula::get_all(&self.held).await?;
        Ok(all.iter().enumerate().all(|(seed, tensor)| is_right(tensor, seed)))
    }
}

/// Half of the store is a process's that is stopped, and gives nothing back: others have the other half.
pub async fn a_stopped_process_keeps_nobody_else_from_room(env: Env) -> Result<()> {
    let node: NodeId = env.nodes().await?[0];
    let hoarder = Hoarder::spawn().options(|o| o.strategy(on(node)).isolation("process")).await?;
    let process = Standing::still(hoarder.hold(2).await?)?;
    results_outgrow(&env, node).await?;
    drop(process);
    assert!(hoarder.all_right().await?);
    drop(hoarder);
    env.stores_empty().await
}

/// What a killed host has in memory and on disk is read all the same; what it was about to write is made again.
pub async fn a_host_killed_meanwhile_leaves_nothing(env: Env) -> Result<()> {
    let node: NodeId = env.nodes().await?[0];
    let made: Vec<_> =
        (0..COUNT).map(|seed| make.options().strategy(on(node)).retries(10).remote(seed)).collect();
    mobula::wait(&made, COUNT / 2, None).await?;
    {
        let mut rig = env.rig().unwrap();
        let place = usize::from(rig.number(0).unwrap() != node.number);
        for host in rig.hosts(place).unwrap() {
            rig.kill(Part::Host(host)).unwrap();
        }
    }
    for seed in shuffled() {
        assert!(is_right(&(&made[seed]).await?, seed), "object {seed} is another");
    }
    have_spilled(&env).await?;
    drop(made);
    env.stores_empty().await
}

#[mobula::task]
fn mixed(one: Tensor, other: Tensor, seeds: (usize, usize)) -> Result<Tensor> {
    assert!(is_right(&one, seeds.0) && is_right(&other, seeds.1), "an argument is another");
    Tensor::from_vec(&[BYTES], bytes(seeds.0 + seeds.1))
}

/// Each is what [`mixed`] makes of its pair, as tasks on this node see it.
async fn are_right(node: NodeId, results: Vec<ObjectRef<Tensor>>, pairs: Vec<(usize, usize)>) -> Result<()> {
    for (result, (one, other)) in results.into_iter().zip(pairs) {
        let right = check.options().strategy(on(node)).remote(&result, one + other);
        assert!(right.await?, "the result for {one} and {other} is another");
    }
    Ok(())
}

/// Each task needs two arguments and room for a result: none waits for ever for what the others hold.
pub async fn arguments_and_results_share_the_store(env: Env) -> Result<()> {
    let node: NodeId = env.nodes().await?[0];
    let made: Vec<_> = (0..COUNT).map(|seed| make.options().strategy(on(node)).remote(seed)).collect();
    let pairs: Vec<_> = shuffled().zip(shuffled().skip(1)).collect();
    let results: Vec<_> = pairs
        .iter()
        .map(|(one, other)| {
            mixed.options().strategy(on(node)).remote(&made[*one], &made[*other], (*one, *other))
        })
        .collect();
    drop(made);
    are_right(node, results, pairs).await?;
    have_spilled(&env).await?;
    env.stores_empty().await
}

struct Mixer;

#[mobula::actor]
impl Mixer {
    fn new() -> Self {
        Self
    }

    fn mix(&mut self, one: Tensor, other: Tensor, seeds: (usize, usize)) -> Result<Tensor> {
        mixed.local(one, other, seeds)
    }
}

/// What waits in an actor's inbox does not take all room with its arguments: each call finds some for its result.
pub async fn calls_that_wait_leave_room_for_results(env: Env) -> Result<()> {
    let node: NodeId = env.nodes().await?[0];
    let made: Vec<_> = (0..COUNT).map(|seed| make.options().strategy(on(node)).remote(seed)).collect();
    mobula::wait(&made, COUNT, None).await?;
    let pairs: Vec<_> = shuffled().zip(shuffled().skip(1)).collect();
    let mixer = async |node| Mixer::spawn().options(|o| o.strategy(on(node)).cpu(0.5)).await;
    let mixers = [mixer(node).await?, mixer(*env.nodes().await?.last().unwrap()).await?];
    let results: Vec<_> = pairs
        .iter()
        .zip(mixers.iter().cycle())
        .map(|((one, other), mixer)| mixer.mix(&made[*one], &made[*other], (*one, *other)))
        .collect();
    drop(made);
    are_right(node, results, pairs).await?;
    have_spilled(&env).await?;
    drop(mixers);
    env.stores_empty().await
}

struct Judge;

#[mobula::actor(cpu = 0.1)]
impl Judge {
    fn new() -> Self {
        Self
    }

    fn all_right(&mut self, tensors: Vec<Tensor>, seeds: Vec<usize>) -> bool {
        tensors.len() == seeds.len() && tensors.iter().zip(seeds).all(|(tensor, seed)| is_right(tensor, seed))
    }
}

/// Processes whose arguments together are several times what fits: no two hold what both wait for.
pub async fn processes_share_the_store(env: Env) -> Result<()> {
    let node: NodeId = env.nodes().await?[0];
    let made: Vec<_> = (0..COUNT).map(|seed| make.options().strategy(on(node)).remote(seed)).collect();
    mobula::wait(&made, COUNT, None).await?;
    let mut judges = Vec::new();
    for _ in 0..8 {
        judges.push(Judge::spawn().options(|o| o.strategy(on(node)).isolation("process")).await?);
    }
    let order: Vec<_> = (0..4).flat_map(|_| shuffled()).collect();
    let right: Vec<_> = order
        .chunks(4)
        .zip(judges.iter().cycle())
        .map(|(seeds, judge)| {
            let tensors: Vec<_> = seeds.iter().map(|seed| made[*seed].clone()).collect();
            judge.all_right(&tensors[..], seeds.to_vec())
        })
        .collect();
    drop(made);
    for right in right {
        assert!(right.await?);
    }
    drop(judges);
    have_spilled(&env).await?;
    env.stores_empty().await
}

#[mobula::task]
fn deeper(tensor: Tensor, seed: usize, depth: usize) -> Result<bool> {
    if !is_right(&tensor, seed) {
        return Ok(false);
    }
    if depth == 0 { Ok(true) } else { deeper.remote(mobula::put(&tensor)?, seed, depth - 1).get() }
}

/// What waits for others keeps its argument, and lets theirs in.
pub async fn parents_let_their_children_in(env: Env) -> Result<()> {
    // Five arguments are let in at once, and six are needed.
    let all: Vec<_> = (0..2)
        .map(|seed| Ok(deeper.remote(mobula::put(&Tensor::from_vec(&[BYTES], bytes(seed))?)?, seed, 2)))
        .collect::<Result<_>>()?;
    assert_eq!(mobula::get_all(&all).await?, [true, true]);
    drop(all);
    env.stores_empty().await
}

/// Tasks on each side of a shuffle, and bytes of what each of the first makes for each of the second: four stores full.
const SIDE: usize = 32;
const PART_BYTES: usize = 128 << 10;

fn part(from: usize, to: usize) -> Vec<u8> {
    (0..PART_BYTES).map(|at| ((at >> 9) ^ (from * SIDE + to)) as u8).collect()
}

#[mobula::task(returns)]
fn split(from: usize) -> Result<Vec<Tensor>> {
    (0..SIDE).map(|to| Tensor::from_vec(&[PART_BYTES], part(from, to))).collect()
}

#[mobula::task]
fn merge(parts: Vec<Tensor>, to: usize) -> bool {
    let right =
        |(from, tensor): (usize, &Tensor)| tensor.as_slice::<u8>().is_ok_and(|found| found == part(from, to));
    parts.len() == SIDE && parts.iter().enumerate().all(right)
}

/// What each task needs lies in pieces all over the store, and the rest on disk: the pieces that some hold on to do not
/// keep what others wait for from coming back.
pub async fn a_shuffle_outgrows_the_store(env: Env) -> Result<()> {
    let node: NodeId = env.nodes().await?[0];
    shuffle(&env, &[node]).await
}

/// Where each task needs pieces from two stores, both too small.
pub async fn a_shuffle_outgrows_two_stores(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    shuffle(&env, &nodes).await
}

/// Its tasks in turn on these nodes.
async fn shuffle(env: &Env, nodes: &[NodeId]) -> Result<()> {
    let at = |number: usize| on(nodes[number % nodes.len()]);
    let parts: Vec<Vec<ObjectRef<Tensor>>> =
        (0..SIDE).map(|from| split.options().strategy(at(from)).returns(SIDE as u32).remote(from)).collect();
    for of_one in &parts {
        mobula::wait(of_one, SIDE, None).await?;
    }
    let merged: Vec<_> = (0..SIDE)
        .map(|to| {
            let of_all: Vec<_> = parts.iter().map(|of_one| of_one[to].clone()).collect();
            merge.options().strategy(at(to)).remote(&of_all[..], to)
        })
        .collect();
    drop(parts);
    assert!(mobula::get_all(&merged).await?.into_iter().all(|right| right));
    have_spilled(env).await?;
    env.stores_empty().await
}

/// A program that starts its own cluster says how full a store may be before the disk has what lies there: a tenth of it
/// is far below what would be written ahead otherwise.
pub fn an_author_says_when_objects_are_spilled() -> Outcome {
    let clusters: [fn() -> Builder; 2] = [Cluster::embedded, || Cluster::local().nodes(1)];
    for cluster in clusters {
        let builder = cluster().cpus(1.0).store_bytes(32 << 20).spill_above(0.1).spill_below(0.0);
        drive(builder, async |cluster| {
            let held: Vec<_> = (0..3)
                .map(|seed| mobula::put(&Tensor::from_vec(&[BYTES], bytes(seed))?))
                .collect::<Result<_>>()?;
            // The last one alone is less than that.
            eventually("all but one of them on disk", async || {
                let nodes = cluster.snapshot().await?.nodes;
                let spilled: u64 = nodes.iter().map(|node| node.usage.spilled).sum();
                Ok(spilled >= held.len() as u64 - 1)
            })
            .await
        })?;
    }
    Ok(())
}
