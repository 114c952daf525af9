//! Objects whose owners died: values in stores are there for as long as anybody holds a ref to them.

use std::time::Duration;

use mobula::{ErrorKind, Result, prelude::*, private};
use mobula_e2e::{Env, eventually};
use mobula_rig::{Rig, Why};

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
fn pass_on(held: Held) -> Held {
    held
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
    assert_eq!(left.objects, 2, "the actor holds refs to them");
    let held = |rig: &Rig| {
        let inventory = rig.memory()?;
        let groups = inventory.stores.iter().flat_map(|store| &store.groups);
        Ok(groups.filter(|group| group.why == Why::Inherited).map(|group| group.objects).sum::<u64>())
    };
    rig.wait("the values to be inherited", WAIT, |rig| Ok(held(rig)? == 2))?;
    drive(socket(&rig)?, async |_| {
        let keeper = mobula::find_actor::<Keeper>(NAME, SPACE).await?;
        assert_eq!(keeper.read().await?, 2);
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
