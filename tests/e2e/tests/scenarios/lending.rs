//! Values of a megabyte between two jobs: a detached actor of the one, and the driver and tasks of the other.

use mobula::{Builder, Cluster, NodeId, Result, prelude::*};
use mobula_e2e::{env::on, eventually};
use mobula_rig::Rig;

use super::{detaching::drive, driver::Outcome};

const BYTES: usize = 1 << 20;
const NAME: &str = "vault";
const SPACE: &str = "lending";

#[mobula::data]
struct Holding(ObjectRef<Tensor>);

fn tensor(fill: u8) -> Result<Tensor> {
    Tensor::from_vec(&[BYTES], vec![fill; BYTES])
}

fn is_full_of(tensor: &Tensor, fill: u8) -> Result<bool> {
    let bytes = tensor.as_slice::<u8>()?;
    Ok(bytes.len() == BYTES && bytes.iter().all(|byte| *byte == fill))
}

/// Reads on the node where it runs.
#[mobula::task]
fn reads(held: Holding, fill: u8) -> Result<bool> {
    is_full_of(&held.0.get()?, fill)
}

#[mobula::task]
fn make(fill: u8) -> Result<Tensor> {
    tensor(fill)
}

/// Belongs to another job than those who call it.
struct Vault {
    kept: Vec<ObjectRef<Tensor>>,
}

#[mobula::actor]
impl Vault {
    fn new() -> Self {
        Self { kept: Vec::new() }
    }

    fn is_full_of(&self, value: View<Tensor>, fill: u8) -> Result<bool> {
        is_full_of(&value.tensor()?, fill)
    }

    fn make(&self, fill: u8) -> Result<Tensor> {
        tensor(fill)
    }

    fn keep(&mut self, held: Holding, fill: u8) -> Result<bool> {
        let right = is_full_of(&held.0.get()?, fill)?;
        self.kept.push(held.0);
        Ok(right)
    }

    fn lend(&mut self, fill: u8) -> Result<Holding> {
        let own = mobula::put(&tensor(fill)?)?;
        self.kept.push(own.clone());
        Ok(Holding(own))
    }

    fn give_back(&mut self) -> Vec<Holding> {
        self.kept.drain(..).map(Holding).collect()
    }
}

fn socket(rig: &Rig) -> std::result::Result<Builder, mobula_rig::Error> {
    Ok(Cluster::connect(&rig.socket(0)?))
}

async fn exchange(vault: &VaultHandle, nodes: &[NodeId]) -> Result<()> {
    // As an argument, from the driver and from a task on each node.
    let mine = mobula::put(&tensor(1)?)?;
    assert!(vault.is_full_of(&mine, 1).await?);
    assert!(is_full_of(&(&mine).await?, 1)?, "who lends it keeps it");
    for node in nodes {
        let made = make.options().strategy(on(*node)).remote(2);
        assert!(vault.is_full_of(&made, 2).await?);
        assert!(is_full_of(&(&made).await?, 2)?);
    }
    // As a result, read by the driver and on each node.
    let result = vault.make(3);
    assert!(is_full_of(&(&result).await?, 3)?);
    for node in nodes {
        assert!(reads.options().strategy(on(*node)).remote(Holding(result.clone()), 3).await?);
    }
    // As a ref, to and fro.
    assert!(vault.keep(Holding(mine.clone()), 1).await?);
    let lent = vault.lend(4).await?;
    assert!(is_full_of(&(&lent.0).await?, 4)?);
    for node in nodes {
        assert!(reads.options().strategy(on(*node)).remote(Holding(lent.0.clone()), 4).await?);
    }
    let back = vault.give_back().await?;
    assert_eq!(back.len(), 2);
    for (held, fill) in back.iter().zip([1, 4]) {
        assert!(is_full_of(&(&held.0).await?, fill)?);
    }
    assert!(is_full_of(&(&mine).await?, 1)?);
    Ok(())
}

/// On the node of the visitor and on another one. Afterwards nothing is left of what they exchanged, though both jobs run.
pub fn jobs_exchange_large_values() -> Outcome {
    let mut rig = Rig::nodes(2).cpus(2.0).start()?;
    for at in 0..2 {
        drive(socket(&rig)?, async |cluster| {
            let nodes = cluster.nodes().await?;
            let vault = Vault::spawn()
                .options(|options| options.strategy(on(nodes[at])))
                .name(NAME)
                .namespace(SPACE)
                .detached()
                .await?;
            assert!(vault.give_back().await?.is_empty());
            Ok(())
        })?;
        drive(socket(&rig)?, async |cluster| {
            let vault = mobula::find_actor::<Vault>(NAME, SPACE).await?;
            exchange(&vault, &cluster.nodes().await?).await?;
            eventually("the stores to hold nothing of what was exchanged", async || {
                let usage = cluster.snapshot().await?.nodes.into_iter().map(|node| node.usage);
                Ok(usage.map(|usage| usage.objects + usage.pinned).sum::<u64>() == 0)
            })
            .await?;
            vault.kill();
            eventually("the vault's job to end", async || Ok(cluster.snapshot().await?.jobs.len() == 1)).await
        })?;
        rig.idle()?;
    }
    rig.finish()?;
    Ok(())
}
