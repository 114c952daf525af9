//! Arguments that are not where they were said to lie, or nowhere any more: they are found or made again.

use std::time::Duration;

use mobula::{NodeId, Result, Strategy, prelude::*};
use mobula_e2e::{
    Env, Part, Witness,
    env::{on, witness},
    eventually,
};

const MADE_BYTES: usize = 1 << 20;
const FILL: u8 = 3;
const SUM: u64 = MADE_BYTES as u64 * FILL as u64;

/// There as long as there is such a node.
fn at(node: NodeId) -> Strategy {
    Strategy::Node { node, soft: true }
}

/// Whoever makes it once more waits until the gate is open.
#[mobula::task(cpu = 0)]
fn make(made: String, again: String, gate: String) -> Vec<u8> {
    if witness::noted(&made) {
        witness::note(&again);
        witness::pass(&gate);
    }
    witness::note(&made);
    vec![FILL; MADE_BYTES]
}

fn sum_of(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

#[mobula::task(cpu = 0)]
fn sum(bytes: Vec<u8>) -> u64 {
    sum_of(&bytes)
}

#[mobula::task(cpu = 0)]
fn sum_when(bytes: Vec<u8>, started: String, go: String) -> u64 {
    witness::note(&started);
    witness::pass(&go);
    sum_of(&bytes)
}

struct Adder {
    base: u64,
}

#[mobula::actor]
impl Adder {
    fn new(bytes: Vec<u8>) -> Self {
        Self { base: sum_of(&bytes) }
    }

    fn add(&mut self, bytes: Vec<u8>) -> u64 {
        self.base += sum_of(&bytes);
        self.base
    }

    fn base(&mut self) -> u64 {
        self.base
    }
}

#[mobula::data]
struct Held(ObjectRef<Vec<u8>>);

/// Gives what it holds to tasks and actors on these nodes that may not be tried again.
#[mobula::task(cpu = 0)]
fn pass_on(held: Held, nodes: Vec<NodeId>, started: String, go: String) -> Result<Vec<u64>> {
    let spawn = |node| Adder::spawn(vec![FILL]).options(|o| o.strategy(on(node))).start();
    let adders: Vec<_> = nodes.iter().map(|node| spawn(*node)).collect();
    adders.iter().try_for_each(|adder| adder.base().get().map(drop))?;
    witness::note(&started);
    witness::pass(&go);
    let mut sums = Vec::new();
    for (node, adder) in nodes.into_iter().zip(adders) {
        // In the order in which they are called, whatever they wait for.
        let (added, base) = (adder.add(&held.0), adder.base());
        sums.push(sum.options().strategy(on(node)).retries(0).remote(&held.0).get()?);
        sums.extend([added.get()? - u64::from(FILL), base.get()? - u64::from(FILL)]);
        let made = Adder::spawn(&held.0).options(|o| o.strategy(on(node)).restarts(0)).start();
        sums.push(made.base().get()?);
    }
    Ok(sums)
}

/// The place in the rig of a node.
fn place_of(env: &Env, node: NodeId, nodes: usize) -> usize {
    let rig = env.rig().unwrap();
    (0..nodes).find(|at| rig.number(*at).unwrap() == node.number).unwrap()
}

async fn kill(env: &Env, node: NodeId) -> Result<()> {
    let place = place_of(env, node, 2);
    env.rig().unwrap().kill(Part::Node(place)).unwrap();
    eventually("the loss of a node", async || Ok(env.nodes().await?.len() == 1)).await
}

/// A task that ran where its argument lay waits until that is made again, wherever there is room for it before.
pub async fn a_task_waits_for_an_argument_that_died_with_it(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (go, again) = (witness.gate("go")?, witness.gate("gate")?);
    let last = env.nodes().await?[1];
    let made = make.options().strategy(at(last)).remote(
        witness.place("made"),
        witness.place("again"),
        again.place(),
    );
    mobula::wait(std::slice::from_ref(&made), 1, None).await?;
    let class = sum_when.options().strategy(at(last));
    let runs = class.clone().remote(&made, witness.place("started"), go.place());
    witness.sees("started").await?;
    kill(&env, last).await?;
    witness.sees("again").await?;
    // Of the same class, and behind it: where this one runs, the other one could.
    let behind = class.remote(vec![FILL], witness.place("behind"), go.place());
    witness.sees("behind").await?;
    assert!(!runs.is_ready());
    again.open()?;
    go.open()?;
    assert_eq!((runs.await?, behind.await?), (SUM, u64::from(FILL)));
    assert_eq!((witness.count("made"), witness.count("started")), (2, 2));
    Ok(())
}

/// Who borrows a ref may know of a place that is gone, and passes that on.
pub async fn a_borrowers_arguments_are_made_again(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (go, again) = (witness.gate("go")?, witness.gate("gate")?);
    again.open()?;
    let nodes = env.nodes().await?;
    let made = make.options().strategy(at(nodes[1])).remote(
        witness.place("made"),
        witness.place("again"),
        again.place(),
    );
    mobula::wait(std::slice::from_ref(&made), 1, None).await?;
    let passes = pass_on.options().strategy(on(nodes[0])).retries(0).remote(
        Held(made.clone()),
        vec![nodes[0]],
        witness.place("started"),
        go.place(),
    );
    witness.sees("started").await?;
    kill(&env, nodes[1]).await?;
    go.open()?;
    assert_eq!(passes.await?, [SUM; 4]);
    assert_eq!(witness.count("made"), 2);
    Ok(())
}

/// Who borrows a ref does not know where a node that left took the object: it is found.
pub async fn a_borrowers_arguments_are_found_where_they_moved(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (go, again) = (witness.gate("go")?, witness.gate("gate")?);
    again.open()?;
    let [reads, leaves] = env.nodes().await?[..] else { unreachable!("a rig has two nodes") };
    {
        let mut rig = env.rig().unwrap();
        let token = rig.token(mobula_rig::For::Agent, Duration::from_secs(60)).unwrap();
        rig.add_node(token, mobula_rig::Offer::default()).unwrap();
    }
    eventually("a third node", async || Ok(env.nodes().await?.len() == 3)).await?;
    let made = make.options().strategy(at(leaves)).remote(
        witness.place("made"),
        witness.place("again"),
        again.place(),
    );
    mobula::wait(std::slice::from_ref(&made), 1, None).await?;
    let stay: Vec<NodeId> = env.nodes().await?.into_iter().filter(|node| *node != leaves).collect();
    let passes = pass_on.options().strategy(on(reads)).retries(0).remote(
        Held(made.clone()),
        stay,
        witness.place("started"),
        go.place(),
    );
    witness.sees("started").await?;
    let place = place_of(&env, leaves, 3);
    env.rig().unwrap().drain(place, Duration::from_secs(60)).unwrap();
    env.rig().unwrap().left(place, mobula_e2e::env::WAIT).unwrap();
    eventually("the node to be gone", async || Ok(env.nodes().await?.len() == 2)).await?;
    go.open()?;
    assert_eq!(passes.await?, [SUM; 8]);
    assert_eq!(witness.count("made"), 1, "it was moved");
    drop(made);
    env.stores_empty().await
}
