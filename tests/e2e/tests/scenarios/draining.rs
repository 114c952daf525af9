//! Nodes that leave when they are told to: what they have moves, and nothing is lost.

use std::{collections::VecDeque, time::Duration};

use mobula::{ErrorKind, NodeId, ObjectRef, Result, Strategy, Tensor};
use mobula_e2e::{
    Env, Witness,
    env::{WAIT, on, witness},
    eventually,
};

const MADE_BYTES: usize = 1 << 20;
const MADE: usize = 12;
/// Calls of one caller that have no result yet, and most calls until it is given up that the actor moves.
const UNDER_WAY: usize = 16;
const CALLS_MAX: u32 = 100_000;
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(3600);

/// There as long as it may be.
fn at(node: NodeId) -> Strategy {
    Strategy::Node { node, soft: true }
}

#[mobula::task]
fn make(fill: u8, place: String) -> Vec<u8> {
    witness::note(&place);
    vec![fill; MADE_BYTES]
}

#[mobula::task]
fn sum(bytes: Vec<u8>) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

/// What it is given is in no store here before.
#[mobula::task]
fn sum_when(made: Vec<ObjectRef<Vec<u8>>>, started: String, go: String) -> Result<Vec<u64>> {
    witness::note(&started);
    witness::pass(&go);
    made.iter().map(|one| Ok(one.get()?.iter().map(|byte| u64::from(*byte)).sum())).collect()
}

#[mobula::task]
fn node_when(started: String, go: String) -> Result<(NodeId, u32)> {
    witness::note(&started);
    witness::pass(&go);
    let me = mobula::context::current()?;
    Ok((me.node(), me.attempt))
}

struct Ledger {
    place: String,
}

#[mobula::actor(restarts = 1)]
impl Ledger {
    fn new(place: String) -> Self {
        Self { place }
    }

    /// Notes a line, in the order in which calls run, whichever process runs them.
    fn enter(&mut self, caller: String, number: u32) -> Result<NodeId> {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.place)
            .map_err(|error| mobula::Error::new(ErrorKind::Returned, error.to_string()))?;
        writeln!(file, "{caller} {number}")
            .map_err(|error| mobula::Error::new(ErrorKind::Returned, error.to_string()))?;
        Ok(mobula::context::current()?.node())
    }

    async fn wait(&mut self, started: String, go: String) -> Result<u32> {
        witness::note(&started);
        while !witness::noted(&go) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(1)
    }
}

/// Calls, some of them under way at any time, until one ran elsewhere than the first; where each ran.
#[mobula::task]
fn enter_until_moved(ledger: LedgerHandle, started: String) -> Result<Vec<NodeId>> {
    let (mut calls, mut nodes) = (VecDeque::new(), Vec::new());
    for number in 0..CALLS_MAX {
        calls.push_back(ledger.enter("task".to_owned(), number));
        if calls.len() > UNDER_WAY
            && let Some(first) = calls.pop_front()
        {
            nodes.push(first.get()?);
        }
        if nodes.len() == 1 {
            witness::note(&started);
        }
        if nodes.last() != nodes.first() {
            break;
        }
    }
    nodes.extend(mobula::blocking::get_all(calls.make_contiguous())?);
    Ok(nodes)
}

/// The node of the rig that is `node`.
fn place_of(env: &Env, node: NodeId) -> usize {
    let rig = env.rig().unwrap();
    (0..2).find(|at| rig.number(*at).unwrap() == node.number).unwrap()
}

pub async fn a_node_that_drains_loses_nothing(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let go = witness.gate("go")?;
    let nodes = env.nodes().await?;
    let (stays, leaves) = (nodes[0], nodes[1]);
    let place = place_of(&env, leaves);

    let made: Vec<_> = (0..MADE)
        .map(|i| make.options().strategy(at(leaves)).remote(i as u8, witness.place(&format!("made {i}"))))
        .collect();
    mobula::wait(&made, MADE, Some(WAIT)).await?;
    let held = sum_when.options().strategy(on(stays)).cpu(0.0).remote(
        made.clone(),
        witness.place("reader started"),
        go.place(),
    );
    let running =
        node_when.options().strategy(on(leaves)).retries(0).remote(witness.place("task started"), go.place());
    let ledger = Ledger::spawn(witness.place("ledger")).options(|o| o.strategy(at(leaves))).await?;
    assert_eq!(ledger.node(), Some(leaves));
    witness.sees("reader started").await?;
    witness.sees("task started").await?;
    let entries = enter_until_moved
        .options()
        .strategy(on(stays))
        .cpu(0.0)
        .remote(ledger.clone(), witness.place("entering"));
    witness.sees("entering").await?;
    let (mut calls, mut by_driver) = (VecDeque::new(), Vec::new());
    for number in 0..CALLS_MAX {
        calls.push_back(ledger.enter("driver".to_owned(), number));
        if calls.len() > UNDER_WAY
            && let Some(first) = calls.pop_front()
        {
            by_driver.push(first.await?);
        }
        if by_driver.len() == UNDER_WAY {
            env.rig().unwrap().drain(place, Duration::from_secs(60)).unwrap();
        }
        if by_driver.last() != by_driver.first() {
            break;
        }
    }
    by_driver.extend(mobula::get_all(calls.make_contiguous()).await?);

    // The running task keeps it there, and it gets nothing new.
    let snapshot = env.cluster.snapshot().await?;
    let shown = snapshot.nodes.iter().find(|node| node.node == leaves.to_string());
    let shown = shown.unwrap_or_else(|| panic!("{leaves} has left: {snapshot:?}"));
    assert!(shown.draining.as_ref().is_some_and(|draining| draining.leases > 0), "{shown:?}");
    let elsewhere =
        node_when.options().strategy(at(leaves)).cpu(0.0).remote(witness.place("new"), go.place());
    witness.sees("new").await?;
    go.open()?;
    assert_eq!(elsewhere.await?.0, stays);
    assert_eq!(running.await?, (leaves, 1), "it ran to its end where it was");

    // Each call ran once, in its caller's order, and the actor is elsewhere now.
    let by_task = entries.await?;
    for nodes in [&by_task, &by_driver] {
        assert_eq!((nodes.first(), nodes.last()), (Some(&leaves), Some(&stays)));
        assert!(nodes.is_sorted_by_key(|node| *node != leaves), "it moved once");
    }
    let ledger_lines = std::fs::read_to_string(witness.place("ledger")).unwrap();
    for (caller, count) in [("task", by_task.len()), ("driver", by_driver.len())] {
        let numbers: Vec<usize> =
            ledger_lines.lines().filter_map(|line| line.strip_prefix(caller)?.trim().parse().ok()).collect();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "of the {caller}");
    }

    env.rig().unwrap().left(place, WAIT).unwrap();
    eventually("the node to be gone", async || Ok(env.nodes().await? == [stays])).await?;
    let sums: Vec<u64> = (0..MADE as u64).map(|i| i * MADE_BYTES as u64).collect();
    assert_eq!(held.await?, sums, "a reader that knew where they were");
    let again: Vec<_> = made.iter().map(|one| sum.remote(one)).collect();
    assert_eq!(mobula::get_all(&again).await?, sums);
    for i in 0..MADE {
        assert_eq!(witness.count(&format!("made {i}")), 1, "nothing is made again");
    }
    drop((made, again));
    env.stores_empty().await
}

#[mobula::data]
struct Held(Vec<ObjectRef<Tensor>>);

/// Ends before others do who hold what it made.
struct Ancestor;

#[mobula::actor]
impl Ancestor {
    fn new() -> Self {
        Self
    }

    /// Of its own node, and made by a task on another.
    fn make(&self, other: NodeId) -> Result<Held> {
        let bytes = Tensor::from_vec(&[MADE_BYTES], vec![7u8; MADE_BYTES])?;
        let far = tensor.options().strategy(on(other)).remote(7);
        mobula::blocking::wait(std::slice::from_ref(&far), 1, Some(WAIT))?;
        Ok(Held(vec![mobula::put(&bytes)?, far]))
    }

    fn crash(&self) {
        std::process::abort();
    }
}

#[mobula::task]
fn tensor(fill: u8) -> Result<Tensor> {
    Tensor::from_vec(&[MADE_BYTES], vec![fill; MADE_BYTES])
}

/// What a node keeps for owners that died is elsewhere before it leaves, for as long as anybody holds it.
pub async fn what_was_inherited_moves_too(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let (stays, leaves) = (nodes[0], nodes[1]);
    let place = place_of(&env, leaves);
    let mut held = Vec::new();
    for (node, other) in [(leaves, stays), (stays, leaves)] {
        let ancestor = Ancestor::spawn().options(|o| o.strategy(on(node)).isolation("process")).await?;
        held.extend(ancestor.make(other).await?.0);
        assert!(ancestor.crash().await.is_err());
    }
    env.rig().unwrap().drain(place, Duration::from_secs(60)).unwrap();
    env.rig().unwrap().left(place, WAIT).unwrap();
    eventually("the node to be gone", async || Ok(env.nodes().await? == [stays])).await?;
    for object in &held {
        let value = object.await?;
        let bytes = value.view::<u8>()?;
        assert_eq!((bytes.len(), bytes.iter().all(|byte| *byte == 7)), (MADE_BYTES, true));
    }
    drop(held);
    env.stores_empty().await
}

/// Owned by the host that made it: large and small values, one inside of another.
#[mobula::data]
struct Own {
    large: ObjectRef<Tensor>,
    small: ObjectRef<u64>,
    outer: ObjectRef<Inner>,
    stored: ObjectRef<Inner>,
}

#[mobula::data]
struct Inner(ObjectRef<u64>);

fn own() -> Result<Own> {
    Ok(Own {
        large: mobula::put(&Tensor::from_vec(&[MADE_BYTES], vec![7u8; MADE_BYTES])?)?,
        small: mobula::put(&1)?,
        outer: mobula::put(&Inner(mobula::put(&2)?))?,
        stored: mobula::put_shared(&Inner(mobula::put(&3)?))?,
    })
}

#[mobula::task]
fn make_own() -> Result<Own> {
    own()
}

struct Maker;

#[mobula::actor(restarts = 1)]
impl Maker {
    fn new() -> Self {
        Self
    }

    fn make(&self) -> Result<Own> {
        own()
    }
}

async fn check(own: &Own) -> Result<()> {
    let large = (&own.large).await?;
    let bytes = large.view::<u8>()?;
    assert_eq!((bytes.len(), bytes.iter().all(|byte| *byte == 7)), (MADE_BYTES, true));
    assert_eq!((&own.small).await?, 1);
    assert_eq!((&own.outer).await?.0.await?, 2);
    assert_eq!((&own.stored).await?.0.await?, 3);
    Ok(())
}

/// Reads what it was given only later, and passes it on.
#[mobula::task]
async fn check_when(own: Own, started: String, go: String) -> Result<Own> {
    witness::note(&started);
    let passed = tokio::task::spawn_blocking(move || witness::pass(&go)).await;
    passed.map_err(|error| mobula::Error::new(ErrorKind::Internal, error.to_string()))?;
    check(&own).await?;
    Ok(own)
}

/// A node does not wait until its time is over for what its own hosts own, if they have nothing else to do; and whoever
/// holds that can read it when the node has left.
pub async fn what_hosts_there_own_moves_too(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let go = witness.gate("go")?;
    let nodes = env.nodes().await?;
    let (stays, leaves) = (nodes[0], nodes[1]);
    let place = place_of(&env, leaves);
    let held = make_own.options().strategy(on(leaves)).remote().await?;
    let maker = Maker::spawn().options(|o| o.strategy(at(leaves))).await?;
    assert_eq!(maker.node(), Some(leaves));
    let actors = maker.make().await?;
    let given = make_own.options().strategy(on(leaves)).remote().await?;
    let reader =
        check_when.options().strategy(on(stays)).cpu(0.0).remote(given, witness.place("reader"), go.place());
    witness.sees("reader").await?;
    env.rig().unwrap().drain(place, LONG).unwrap();
    env.rig().unwrap().left(place, WAIT).unwrap();
    eventually("the node to be gone", async || Ok(env.nodes().await? == [stays])).await?;
    go.open()?;
    for own in [held, actors, reader.await?] {
        check(&own).await?;
    }
    drop(maker);
    env.stores_empty().await
}

pub async fn what_is_left_at_the_end_is_taken_away(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let go = witness.gate("go")?;
    let nodes = env.nodes().await?;
    let (stays, leaves) = (nodes[0], nodes[1]);
    let place = place_of(&env, leaves);
    let mortal = Ledger::spawn(witness.place("a")).options(|o| o.strategy(at(leaves)).restarts(0)).await?;
    let busy = Ledger::spawn(witness.place("b")).options(|o| o.strategy(at(leaves))).await?;
    let waits = busy.wait(witness.place("busy"), witness.place("never"));
    let task = node_when
        .options()
        .strategy(at(leaves))
        .isolation("process")
        .retries(1)
        .remote(witness.place("task"), go.place());
    witness.sees("busy").await?;
    witness.sees("task").await?;
    env.rig().unwrap().drain(place, Duration::from_secs(1)).unwrap();
    env.rig().unwrap().left(place, WAIT).unwrap();
    let error = mortal.enter(String::new(), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ActorDied, "{error}");
    assert!(error.to_string().contains("its node is to leave"), "{error}");
    let error = waits.await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::MaybeExecuted | ErrorKind::ActorDied), "{error}");
    assert_eq!(busy.enter(String::new(), 0).await?, stays, "made again");
    go.open()?;
    assert_eq!(task.await?.0, stays, "it runs again");
    Ok(())
}

pub async fn a_node_may_stay_after_all(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let go = witness.gate("go")?;
    let leaves = env.nodes().await?[1];
    let place = place_of(&env, leaves);
    let task = node_when.options().strategy(on(leaves)).remote(witness.place("task"), go.place());
    witness.sees("task").await?;
    env.rig().unwrap().drain(place, Duration::from_secs(60)).unwrap();
    let waits = node_when.options().strategy(on(leaves)).remote(witness.place("next"), go.place());
    eventually("the reason", async || {
        let snapshot = env.cluster.snapshot().await?;
        Ok(snapshot.waiting.iter().any(|class| class.why.contains("not draining")))
    })
    .await?;
    env.rig().unwrap().undrain(place).unwrap();
    witness.sees("next").await?;
    go.open()?;
    assert_eq!((task.await?.0, waits.await?.0), (leaves, leaves));
    let error = env.rig().unwrap().undrain(place).unwrap_err();
    assert!(error.to_string().contains("409") || error.to_string().contains("status"), "{error}");
    Ok(())
}
