//! What `mobula memory` shows.

use std::time::Duration;

use mobula::{Cluster, NodeId, Result, prelude::*, private};
use mobula_e2e::env::on;
use mobula_rig::{Rig, Why};

use super::driver::Outcome;

const MIB: usize = 1 << 20;
const WAIT: Duration = Duration::from_secs(15);

#[mobula::data]
struct Holding(ObjectRef<Tensor>);

#[mobula::task]
fn filled(bytes: usize) -> Result<Tensor> {
    Tensor::from_vec(&[bytes], vec![1u8; bytes])
}

struct Shelf {
    read: Vec<Tensor>,
}

#[mobula::actor]
impl Shelf {
    fn new() -> Self {
        Self { read: Vec::new() }
    }

    fn read(&mut self, held: Holding) -> Result<usize> {
        let tensor = held.0.get()?;
        let bytes = tensor.len();
        self.read.push(tensor);
        Ok(bytes)
    }

    fn clear(&mut self) {
        self.read.clear();
    }
}

/// What all nodes have of which site and why: objects, bytes, pinned.
fn amounts(rig: &Rig, site: &str, why: Why) -> mobula_rig::Result<(u64, u64, u64)> {
    let inventory = rig.memory()?;
    let groups = inventory.stores.iter().flat_map(|store| &store.groups);
    let found = groups.filter(|group| group.site.contains(site) && group.why == why);
    Ok(found.fold((0, 0, 0), |sum, group| (sum.0 + group.objects, sum.1 + group.bytes, sum.2 + group.pinned)))
}

/// Objects are shown with the place that made them and the reason why they are there, and are gone when they are.
pub fn objects_are_shown_with_what_made_them() -> Outcome {
    let mut rig = Rig::nodes(2).cpus(1.0).store_bytes(128 << 20).start()?;
    let builder = Cluster::connect(&rig.socket(0)?).quiet();
    let numbers = [rig.number(0)?, rig.number(1)?];
    let seen = &mut rig;
    let (outcome, left) = private::drive(builder, async move |cluster: Cluster| -> Result<()> {
        let nodes = cluster.nodes().await?;
        let other = *nodes.iter().find(|node: &&NodeId| node.number == numbers[1]).unwrap();
        let put: Vec<_> =
            (0..2).map(|_| mobula::put(&Tensor::from_vec(&[MIB], vec![0u8; MIB])?)).collect::<Result<_>>()?;
        let made = filled.options().strategy(on(other)).remote(2 * MIB);
        mobula::wait(std::slice::from_ref(&made), 1, None).await?;
        let shelf = Shelf::spawn().options(|options| options.strategy(on(other))).await?;
        assert_eq!(shelf.read(Holding(put[0].clone())).await?, MIB);
        seen.wait("all of it to be shown", WAIT, |rig| {
            let (objects, bytes, _) = amounts(rig, "inventory.rs:", Why::Held)?;
            let results = amounts(rig, "results of", Why::Held)?;
            let (copies, _, read) = amounts(rig, "", Why::Copy)?;
            Ok(objects == 2 && bytes >= 2 * MIB as u64 && results.0 == 1 && (copies, read) == (1, 1))
        })
        .unwrap();
        // Freed, but still read where it was copied to.
        drop(put);
        seen.wait("the copy to be all that is left of them", WAIT, |rig| {
            let read = amounts(rig, "", Why::Read)?;
            Ok(amounts(rig, "inventory.rs:", Why::Held)?.0 == 0 && (read.0, read.2) == (1, 1))
        })
        .unwrap();
        shelf.clear().await?;
        drop(made);
        Ok(())
    })?;
    outcome?;
    assert_eq!(left, private::Leftovers::default());
    rig.wait("nothing to be left", WAIT, |rig| {
        let inventory = rig.memory()?;
        Ok(inventory.silent.is_empty() && inventory.stores.iter().all(|store| store.groups.is_empty()))
    })?;
    rig.finish()?;
    Ok(())
}
