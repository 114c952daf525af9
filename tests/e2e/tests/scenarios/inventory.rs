//! What `mobula memory` shows.

use std::{collections::BTreeSet, time::Duration};

use mobula::{Cluster, NodeId, Result, prelude::*, private};
use mobula_e2e::{
    Witness,
    env::{on, witness},
};
use mobula_rig::{Hold, Rig, Why};

use super::driver::Outcome;

const MIB: usize = 1 << 20;
const WAIT: Duration = Duration::from_secs(15);

#[mobula::data]
struct Holding(ObjectRef<Tensor>);

#[mobula::task]
fn filled(bytes: usize) -> Result<Tensor> {
    Tensor::from_vec(&[bytes], vec![1u8; bytes])
}

/// An object of a MiB, and the place that makes it as people are shown it.
fn put() -> Result<(ObjectRef<Tensor>, String)> {
    let value = Tensor::from_vec(&[MIB], vec![0u8; MIB])?;
    let place = format!("{}:{}", file!(), line!() + 1);
    let object = mobula::put(&value)?;
    Ok((object, place))
}

/// Holds its arguments, and gives something that does not.
#[mobula::task]
fn count_behind(gate: String, tensor: Tensor) -> usize {
    witness::pass(&gate);
    tensor.len()
}

/// As large as its argument, so that it lies in the store; made again if it is lost.
#[mobula::task]
fn doubled(tensor: Tensor) -> Result<Tensor> {
    let twice: Vec<u8> = tensor.as_slice::<u8>()?.iter().map(|byte| 2 * byte).collect();
    Tensor::from_vec(&[twice.len()], twice)
}

struct Shelf {
    read: Vec<Tensor>,
    own: Option<ObjectRef<Tensor>>,
    held: Vec<Holding>,
}

#[mobula::actor]
impl Shelf {
    fn new() -> Self {
        Self { read: Vec::new(), own: None, held: Vec::new() }
    }

    /// Keeps a ref to somebody else's object; returns which host that is.
    fn hold(&mut self, held: Holding) -> Result<String> {
        self.held.push(held);
        Ok(mobula::context::current()?.host.to_string())
    }

    fn read(&mut self, held: Holding) -> Result<usize> {
        let tensor = held.0.get()?;
        let bytes = tensor.len();
        self.read.push(tensor);
        Ok(bytes)
    }

    /// Keeps an object of its own; returns which host that is.
    fn put(&mut self) -> Result<String> {
        self.own = Some(put()?.0);
        Ok(mobula::context::current()?.host.to_string())
    }

    fn clear(&mut self) {
        self.read.clear();
        self.held.clear();
        self.own = None;
    }
}

/// What all nodes have of which site and why: objects, bytes, pinned.
fn amounts(rig: &Rig, site: &str, why: Why) -> mobula_rig::Result<(u64, u64, u64)> {
    let inventory = rig.memory()?;
    let groups = inventory.stores.iter().flat_map(|store| &store.groups);
    let found = groups.filter(|group| group.site.contains(site) && group.why == why);
    Ok(found.fold((0, 0, 0), |sum, group| (sum.0 + group.objects, sum.1 + group.bytes, sum.2 + group.pinned)))
}

/// What people are told of objects: what made them, whose they are (job and owner), why they are there, and how many.
type Line = (String, String, String, Why, u64);

fn line(site: &str, job: &str, owner: &str, why: Why, objects: u64) -> Line {
    (site.to_owned(), job.to_owned(), owner.to_owned(), why, objects)
}

fn lines(rig: &Rig, node: NodeId) -> mobula_rig::Result<BTreeSet<Line>> {
    let inventory = rig.memory()?;
    let here = inventory.stores.iter().filter(|store| store.node == node.to_string());
    let groups = here.flat_map(|store| &store.groups);
    Ok(groups.map(|of| line(&of.site, &of.job, &of.owner, of.why, of.objects)).collect())
}

/// Objects are shown with the place that made them and the reason why they are there, and are gone when they are.
pub fn objects_are_shown_with_what_made_them() -> Outcome {
    let mut rig = Rig::nodes(2).cpus(1.0).store_bytes(128 << 20).start()?;
    // So that the job is not the first there is.
    let ((), _) = private::drive(Cluster::connect(&rig.socket(0)?).quiet(), async |_| ())?;
    let builder = Cluster::connect(&rig.socket(0)?).quiet();
    let numbers = [rig.number(0)?, rig.number(1)?];
    let seen = &mut rig;
    let (outcome, left) = private::drive(builder, async move |cluster: Cluster| -> Result<()> {
        let nodes = cluster.nodes().await?;
        let other = *nodes.iter().find(|node: &&NodeId| node.number == numbers[1]).unwrap();
        let here = *nodes.iter().find(|node: &&NodeId| node.number == numbers[0]).unwrap();
        let jobs = cluster.snapshot().await?.jobs;
        let [job] = &jobs[..] else { panic!("one job: {jobs:?}") };
        let (job, driver) = (job.job.as_str(), job.driver.as_str());
        let (put, place): (Vec<_>, Vec<_>) = [put()?, put()?].into_iter().unzip();
        let made = filled.options().strategy(on(other)).remote(2 * MIB);
        mobula::wait(std::slice::from_ref(&made), 1, None).await?;
        let shelf = Shelf::spawn().options(|options| options.strategy(on(other))).await?;
        assert_eq!(shelf.read(Holding(put[0].clone())).await?, MIB);
        let host = shelf.put().await?;
        assert!(host != driver, "{host}");
        let all = [
            BTreeSet::from([line(&place[0], job, driver, Why::Held, 2)]),
            BTreeSet::from([
                line(&place[0], job, &host, Why::Held, 1),
                line(&format!("results of {}::filled", module_path!()), job, driver, Why::Held, 1),
                line("", job, driver, Why::Copy, 1),
            ]),
        ];
        let mut last = Default::default();
        seen.wait("all of it to be shown", WAIT, |rig| {
            last = [lines(rig, here)?, lines(rig, other)?];
            Ok(last == all)
        })
        .unwrap_or_else(|error| panic!("{error}: {last:#?}, not {all:#?}"));
        let (objects, bytes, _) = amounts(seen, "inventory.rs:", Why::Held).unwrap();
        assert!(objects == 3 && bytes >= 3 * MIB as u64, "{bytes} bytes of {objects} objects");
        let (copies, _, read) = amounts(seen, "", Why::Copy).unwrap();
        assert_eq!((copies, read), (1, 1));
        // Freed, but still read where it was copied to.
        drop(put);
        seen.wait("the copy to be all that is left of them", WAIT, |rig| {
            let read = amounts(rig, "", Why::Read)?;
            Ok(lines(rig, here)?.is_empty() && (read.0, read.2) == (1, 1))
        })
        .unwrap();
        shelf.clear().await?;
        drop(made);
        Ok(())
    })?;
    outcome?;
    assert!(left.is_empty(), "{left:?}");
    rig.wait("nothing to be left", WAIT, |rig| {
        let inventory = rig.memory()?;
        Ok(inventory.silent.is_empty() && inventory.stores.iter().all(|store| store.groups.is_empty()))
    })?;
    rig.finish()?;
    Ok(())
}

/// MiB that are held, by what, and by which other hosts.
type Holders = (u64, Vec<Hold>, Vec<String>);

/// Objects of this owner that are held.
fn held(rig: &Rig, owner: &str) -> mobula_rig::Result<BTreeSet<Holders>> {
    let inventory = rig.memory()?;
    let groups = inventory.stores.iter().flat_map(|store| &store.groups);
    let held = groups.filter(|group| group.owner == owner && group.why == Why::Held);
    Ok(held.map(|group| (group.bytes >> 20, group.by.clone(), group.hosts.clone())).collect())
}

/// What keeps an object alive is shown for each, by its owner, wherever it lies.
pub fn what_holds_an_object_is_shown() -> Outcome {
    let mut rig = Rig::nodes(2).cpus(1.0).store_bytes(128 << 20).start()?;
    let builder = Cluster::connect(&rig.socket(0)?).quiet();
    let there = rig.number(1)?;
    let seen = &mut rig;
    super::detaching::drive(builder, async move |cluster: Cluster| {
        let nodes = cluster.nodes().await?;
        let [here, other] = [false, true]
            .map(|is| *nodes.iter().find(|node: &&NodeId| (node.number == there) == is).unwrap());
        let driver = cluster.snapshot().await?.jobs[0].driver.clone();
        let sized = |mib: usize| {
            // Lines of a table go by places in programs, too.
            let value = Tensor::from_vec(&[mib * MIB], vec![mib as u8; mib * MIB])?;
            mobula::put(&value)
        };
        let (variable, nested) = (sized(1)?, sized(2)?);
        let outer = mobula::put_shared(&Holding(nested))?;
        let witness = Witness::new()?;
        let gate = witness.gate("gate")?;
        let running = count_behind.options().strategy(on(other)).remote(gate.place(), &sized(3)?);
        let shelf = Shelf::spawn().options(|options| options.cpu(0.0).strategy(on(other))).await?;
        let host = shelf.hold(Holding(sized(4)?)).await?;
        let elsewhere = doubled.options().strategy(on(here)).remote(&sized(5)?);
        mobula::wait(std::slice::from_ref(&elsewhere), 1, None).await?;
        let is = |mib, by: &[Hold], hosts: &[&String]| {
            (mib, by.to_vec(), hosts.iter().map(|host| (*host).clone()).collect::<Vec<_>>())
        };
        let all = BTreeSet::from([
            is(1, &[Hold::Owner], &[]),
            is(2, &[Hold::Values], &[]),
            is(3, &[Hold::Calls], &[]),
            is(4, &[Hold::Hosts], &[&host]),
            is(5, &[Hold::Again], &[]),
        ]);
        let mut last = Default::default();
        seen.wait("what holds each to be shown", WAIT, |rig| {
            last = held(rig, &driver)?;
            // And what was made of them, which variables hold.
            Ok(last.is_superset(&all))
        })
        .unwrap_or_else(|error| panic!("{error}: {last:#?}, not {all:#?}"));
        gate.open()?;
        assert_eq!(running.await?, 3 * MIB);
        shelf.clear().await?;
        drop((variable, outer, elsewhere));
        Ok(())
    })?;
    rig.finish()?;
    Ok(())
}
