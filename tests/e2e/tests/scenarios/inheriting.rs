//! Objects whose owners died: values in stores are there for as long as anybody holds a ref to them.

use std::time::Duration;

use mobula::{ErrorKind, NodeId, Result, prelude::*, private};
use mobula_e2e::{
    Env, Witness,
    env::{on, witness},
    eventually,
};
use mobula_rig::{Part, Rig, Why};

use super::{
    detaching::{drive, socket},
    driver::Outcome,
};

const BYTES: usize = 1 << 20;
const WAIT: Duration = Duration::from_secs(15);

#[mobula::data]
struct Held(ObjectRef<Tensor>);

#[mobula::data]
struct Nested(ObjectRef<Held>);

#[mobula::data]
struct Small(ObjectRef<u64>);

fn filled() -> Result<Tensor> {
    Tensor::from_vec(&[BYTES], vec![7u8; BYTES])
}

fn check(tensor: &Tensor) -> Result<()> {
    let view = tensor.view::<u8>()?;
    assert_eq!((view.len(), view.iter().all(|byte| *byte == 7)), (BYTES, true));
    Ok(())
}

#[mobula::task]
fn make() -> Result<Tensor> {
    filled()
}

#[mobula::task]
fn make_when(started: String, go: String) -> Result<Tensor> {
    witness::note(&started);
    witness::pass(&go);
    filled()
}

#[mobula::task]
fn pass_on(held: Held) -> Held {
    held
}

/// Reads in its own host; returns which node that is on.
#[mobula::task]
fn reads(held: Held) -> Result<NodeId> {
    check(&held.0.get()?)?;
    Ok(mobula::context::current()?.node())
}

/// What reading this is, where it fails.
fn failure(held: &Held) -> String {
    held.0.get().map_or_else(|error| format!("{:?}", error.kind()), |_| "nothing".to_owned())
}

#[mobula::task]
fn fails(held: Held) -> String {
    failure(&held)
}

struct Owner;

#[mobula::actor]
impl Owner {
    fn new() -> Self {
        Self
    }

    fn put(&self) -> Result<Held> {
        Ok(Held(mobula::put(&filled()?)?))
    }

    fn nest(&self) -> Result<Nested> {
        Ok(Nested(mobula::put_shared(&self.put()?)?))
    }

    async fn submit(&self) -> Result<Held> {
        let made = make.remote();
        mobula::wait(std::slice::from_ref(&made), 1, None).await?;
        Ok(Held(made))
    }

    async fn submit_to(&self, node: NodeId) -> Result<Held> {
        let made = make.options().strategy(on(node)).remote();
        mobula::wait(std::slice::from_ref(&made), 1, None).await?;
        Ok(Held(made))
    }

    fn begin(&self, started: String, go: String) -> Held {
        Held(make_when.remote(started, go))
    }

    fn small(&self) -> Result<Small> {
        Ok(Small(mobula::put(&7u64)?))
    }

    fn crash(&self) {
        std::process::abort();
    }
}

struct Keeper {
    held: Vec<Held>,
}

#[mobula::actor]
impl Keeper {
    fn new() -> Self {
        Self { held: Vec::new() }
    }

    fn keep(&mut self, held: Held) {
        self.held.push(held);
    }

    fn read(&self) -> Result<usize> {
        for held in &self.held {
            check(&held.0.get()?)?;
        }
        Ok(self.held.len())
    }

    fn fails(&self) -> Vec<String> {
        self.held.iter().map(failure).collect()
    }

    fn lend(&self) -> Vec<Held> {
        self.held.iter().map(|held| Held(held.0.clone())).collect()
    }

    fn drop_all(&mut self) {
        self.held.clear();
    }
}

/// Whoever holds a ref reads its value after the owner's death, wherever it got the ref from, and passes it on; what was
/// in no store is an error at once; and when the last ref is gone, so are the values.
pub async fn values_outlive_their_owners(env: Env) -> Result<()> {
    let owner = Owner::spawn().options(|options| options.isolation("process")).await?;
    let keeper = Keeper::spawn().await?;
    let put = owner.put().await?;
    let nested = owner.nest().await?;
    let submitted = owner.submit().await?;
    let small = owner.small().await?;
    keeper.keep(owner.put().await?).await?;
    keeper.keep(Held(put.0.clone())).await?;
    owner.crash().await.unwrap_err();

    check(&(&put.0).await?)?;
    check(&(&(&nested.0).await?.0).await?)?;
    check(&(&submitted.0).await?)?;
    assert_eq!(keeper.read().await?, 2);
    let again = pass_on.remote(Held(put.0.clone())).await?;
    drop(put);
    check(&(&again.0).await?)?;
    keeper.keep(pass_on.remote(again).await?).await?;
    assert_eq!(keeper.read().await?, 3);
    let error = small.0.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OwnerDied, "{error}");

    keeper.drop_all().await?;
    drop((nested, submitted));
    env.stores_empty().await
}

/// With its node an owner is dead, too: who borrows what lies on another node reads it there, and lends it on.
pub async fn values_outlive_the_nodes_of_their_owners(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let place = usize::from(env.rig().unwrap().number(1).unwrap() == nodes[1].number);
    let owner = Owner::spawn().options(|options| options.strategy(on(nodes[1]))).await?;
    let keeper = Keeper::spawn().options(|options| options.strategy(on(nodes[0]))).await?;
    let made = owner.submit_to(nodes[0]).await?;
    keeper.keep(Held(made.0.clone())).await?;
    keeper.keep(owner.submit_to(nodes[0]).await?).await?;
    let lost = owner.put().await?;
    env.rig().unwrap().kill(Part::Node(place)).unwrap();
    eventually("the loss of a node", async || Ok(env.nodes().await?.len() == 1)).await?;

    assert_eq!(keeper.read().await?, 2);
    assert_eq!(reads.remote(Held(made.0.clone())).await?, nodes[0]);
    check(&(&made.0).await?)?;
    // What lay there alone is lost, and says whose it was.
    let error = within("a lost value to be an error", async { (&lost.0).await.unwrap_err() }).await;
    assert!(matches!(error.kind(), ErrorKind::OwnerDied | ErrorKind::ObjectLost), "{error}");
    keeper.drop_all().await?;
    drop((made, lost, owner));
    env.stores_empty().await
}

/// Awaits it for [`WAIT`] at most.
async fn within<T>(what: &str, future: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(WAIT, future.into_future()).await {
        Ok(value) => value,
        Err(_) => panic!("waited {WAIT:?} for {what}"),
    }
}

/// Nobody waits for a result whose owner is gone before there is one: neither who has asked already, nor who asks then.
pub async fn a_result_to_come_is_lost_with_its_owner(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let go = witness.gate("go")?;
    let owner = Owner::spawn().options(|options| options.isolation("process")).await?;
    let keeper = Keeper::spawn().await?;
    let pending = owner.begin(witness.place("started"), go.place()).await?;
    witness.sees("started").await?;
    keeper.keep(Held(pending.0.clone())).await?;
    let asked = fails.options().cpu(0.0).remote(Held(pending.0.clone()));
    let crash = async {
        let error = owner.crash().await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::HostDied | ErrorKind::ActorDied | ErrorKind::MaybeExecuted),
            "{error}"
        );
    };
    let waits = within("the owner's end to reach who waits", async { (&pending.0).await.unwrap_err() });
    let (waited, ()) = tokio::join!(waits, crash);
    let later = within("an error for who asks then", async { (&pending.0).await.unwrap_err() }).await;
    for error in [waited, later] {
        assert_eq!(error.kind(), ErrorKind::OwnerDied, "{error}");
    }
    let died = format!("{:?}", ErrorKind::OwnerDied);
    assert_eq!(within("the owner's end to reach a task", &asked).await?, died);
    assert_eq!(within("the owner's end to reach an actor", keeper.fails()).await?, [died]);
    go.open()?;
    keeper.drop_all().await?;
    drop((pending, asked));
    env.stores_empty().await
}

/// The driver that made a value has ended; the next one reads it by way of the actor that keeps it.
pub fn a_detached_actor_keeps_what_a_driver_left() -> Outcome {
    const NAME: &str = "keeper";
    const SPACE: &str = "heirs";
    let mut rig = Rig::nodes(2).cpus(2.0).start()?;
    let (outcome, left) = private::drive(socket(&rig)?.quiet(), async |_| -> Result<()> {
        let keeper = Keeper::spawn().name(NAME).namespace(SPACE).detached().await?;
        let held = Held(mobula::put(&filled()?)?);
        keeper.keep(held).await?;
        keeper.keep(Held(make.remote())).await
    })?;
    outcome?;
    assert!(left.len() == 1 && left[0].contains("objects: 2,"), "the actor holds refs to them: {left:?}");
    let held = |rig: &Rig| {
        let inventory = rig.memory()?;
        let groups = inventory.stores.iter().flat_map(|store| &store.groups);
        Ok(groups.filter(|group| group.why == Why::Inherited).map(|group| group.objects).sum::<u64>())
    };
    rig.wait("the values to be inherited", WAIT, |rig| Ok(held(rig)? == 2))?;
    drive(socket(&rig)?, async |_| {
        let keeper = mobula::find_actor::<Keeper>(NAME, SPACE).await?;
        assert_eq!(keeper.read().await?, 2);
        Ok(())
    })?;
    // This job's own hosts read them, on each node, and so does its driver; none of them ever heard of the owner.
    drive(socket(&rig)?, async |cluster| {
        let keeper = mobula::find_actor::<Keeper>(NAME, SPACE).await?;
        let lent = keeper.lend().await?;
        assert_eq!(lent.len(), 2);
        for node in cluster.nodes().await? {
            for held in &lent {
                let read = reads.options().strategy(on(node)).remote(Held(held.0.clone()));
                assert_eq!(read.await?, node);
            }
        }
        for held in &lent {
            check(&(&held.0).await?)?;
        }
        keeper.drop_all().await
    })?;
    rig.wait("the values to go", WAIT, |rig| Ok(held(rig)? == 0))?;
    drive(socket(&rig)?, async |cluster| {
        let keeper = mobula::find_actor::<Keeper>(NAME, SPACE).await?;
        keeper.kill();
        eventually("its job to end", async || Ok(cluster.snapshot().await?.names.is_empty())).await
    })?;
    rig.finish()?;
    Ok(())
}
