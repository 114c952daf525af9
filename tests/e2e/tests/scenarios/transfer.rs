//! Copies between nodes, counted by the bytes that leave each.

use std::time::Duration;

use mobula::{Builder, Cluster, NodeId, Result, prelude::*, private};
use mobula_e2e::env::on;
use mobula_rig::{Part, Rig, processes};

use super::driver::Outcome;

const MIB: u64 = 1 << 20;
/// Until what the nodes have counted is known, which they report every two seconds.
const COUNTED_WAIT: Duration = Duration::from_secs(20);

#[mobula::data]
struct Holding(ObjectRef<Tensor>);

#[mobula::task]
fn make(bytes: u64) -> Result<Tensor> {
    let bytes = bytes as usize;
    Tensor::from_vec(&[bytes], (0..bytes).map(|at| (at % 251) as u8).collect())
}

/// Whether it is what [`make`] makes.
#[mobula::task]
fn right(tensor: Tensor) -> Result<bool> {
    Ok(tensor.as_slice::<u8>()?.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8))
}

/// Over at once.
#[mobula::task]
fn length(tensor: Tensor) -> Result<u64> {
    Ok(tensor.as_slice::<u8>()?.len() as u64)
}

/// Takes long enough for a slot to have one at a time.
#[mobula::task]
fn long(tensor: Tensor) -> Result<u64> {
    std::thread::sleep(Duration::from_millis(20));
    Ok(tensor.as_slice::<u8>()?.len() as u64)
}

/// Reads on the node where it is.
struct Reader;

#[mobula::actor]
impl Reader {
    fn new() -> Self {
        Self
    }

    fn ready(&self) -> bool {
        true
    }

    fn read(&self, held: Holding) -> Result<bool> {
        let tensor = held.0.get()?;
        Ok(tensor.as_slice::<u8>()?.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8))
    }
}

async fn reader(node: NodeId) -> Result<ReaderHandle> {
    let reader = Reader::spawn().options(|options| options.strategy(on(node))).await?;
    assert!(reader.ready().await?);
    Ok(reader)
}

pub(super) fn drive(builder: Builder, run: impl AsyncFnOnce(Cluster) -> Result<()>) -> Outcome {
    let (outcome, left) = private::drive(builder.quiet(), async |cluster: Cluster| run(cluster).await)?;
    outcome?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// What each node of the rig has counted, by its place: bytes pulled and bytes served.
fn counted(rig: &Rig, nodes: usize) -> mobula_rig::Result<Vec<(u64, u64)>> {
    let snapshot = rig.snapshot()?;
    let usage = |at| {
        let number = rig.number(at)?;
        let name = format!("node-{number}");
        let found = snapshot.nodes.iter().find(|node| node.node == name);
        Ok(found.map_or((0, 0), |node| (node.usage.pulled_bytes, node.usage.served_bytes)))
    };
    (0..nodes).map(usage).collect()
}

/// The nodes by their place in the rig, whichever joined first.
pub(super) async fn placed(rig: &Rig, cluster: &Cluster) -> Result<Vec<NodeId>> {
    let mut nodes = cluster.nodes().await?;
    let place = |node: &NodeId| (0..).find(|at| rig.number(*at).unwrap() == node.number);
    nodes.sort_by_key(place);
    Ok(nodes)
}

/// Eight readers of one object on as many nodes: the node where it is sends a few copies and the readers the others. And
/// twenty more readers on one of the nodes cost nothing. Some of the nodes send packets of sizes of their own.
pub fn a_broadcast_is_shared_by_its_readers() -> Outcome {
    const BYTES: u64 = 16 * MIB;
    let mut rig = Rig::nodes(9)
        .cpus(1.0)
        .store_bytes(128 * MIB)
        .node(0, |offer| offer.mtu = Some(1452))
        .node(3, |offer| offer.mtu = Some(9000))
        .start()?;
    drive(Cluster::connect(&rig.socket(0)?), async |cluster| {
        let nodes = placed(&rig, &cluster).await?;
        let object = make.options().strategy(on(nodes[0])).remote(BYTES);
        mobula::wait(std::slice::from_ref(&object), 1, None).await?;
        let mut readers = Vec::new();
        for node in &nodes[1..] {
            readers.push(reader(*node).await?);
        }
        let reads: Vec<_> = readers.iter().map(|reader| reader.read(Holding(object.clone()))).collect();
        for read in reads {
            assert!(read.await?);
        }
        let again: Vec<_> =
            (0..20).map(|_| right.options().cpu(0.05).strategy(on(nodes[8])).remote(&object)).collect();
        assert!(mobula::get_all(&again).await?.into_iter().all(|is_right| is_right));
        Ok(())
    })?;
    rig.wait("eight copies to be counted", COUNTED_WAIT, |rig| {
        let counted = counted(rig, 9)?;
        Ok(counted[0].0 == 0 && counted[1..].iter().all(|(pulled, _)| pulled / BYTES == 1))
    })?;
    rig.wait("all that was sent to be counted", COUNTED_WAIT, |rig| {
        let sent: Vec<_> = counted(rig, 9)?.into_iter().map(|(_, served)| served / BYTES).collect();
        Ok(sent.iter().sum::<u64>() == 8 && sent[0] <= 3)
    })?;
    rig.finish()?;
    Ok(())
}

/// The node that a reader copies from hangs midway, and is dead then: another that has a copy sends the rest.
pub fn a_transfer_outlives_its_source() -> Outcome {
    const BYTES: u64 = 256 * MIB;
    let mut rig = Rig::nodes(4).cpus(1.0).store_bytes(768 * MIB).start()?;
    let builder = Cluster::connect(&rig.socket(0)?);
    let rig_there = &mut rig;
    drive(builder, async |cluster| {
        let nodes = placed(rig_there, &cluster).await?;
        let object = make.options().strategy(on(nodes[1])).remote(BYTES);
        let first = reader(nodes[2]).await?;
        assert!(first.read(Holding(object.clone())).await?);
        let second = reader(nodes[3]).await?;
        let before = processes::memory_file_bytes(rig_there.pid(Part::Node(3)).unwrap());
        let read = second.read(Holding(object.clone()));
        rig_there
            .wait("some of it to come in", COUNTED_WAIT, |rig| {
                Ok(processes::memory_file_bytes(rig.pid(Part::Node(3))?) > before + 16 * MIB)
            })
            .unwrap();
        rig_there.stop(Part::Node(1)).unwrap();
        rig_there.kill(Part::Node(1)).unwrap();
        assert!(read.await?);
        drop((object, first, second));
        rig_there
            .wait("the copies to go with the last ref", COUNTED_WAIT, |rig| {
                Ok(rig.snapshot()?.nodes.iter().all(|node| node.usage.objects == 0))
            })
            .unwrap();
        Ok(())
    })?;
    rig.wait("both copies to be counted", COUNTED_WAIT, |rig| {
        let counted = counted(rig, 4)?;
        Ok(counted[2].0 >= BYTES && counted[3].0 >= BYTES && counted[2].1 > 0)
    })?;
    let rest = counted(&rig, 4)?[2].1;
    assert!(rest < BYTES, "what had come in was kept: only {rest} bytes were sent again");
    rig.finish()?;
    Ok(())
}

/// A node that has only a part so far, and that another copies from, dies midway: both it and the reader began while the
/// source was sending, and the reader has the rest from others.
pub fn a_transfer_outlives_a_source_that_has_a_part() -> Outcome {
    const BYTES: u64 = 256 * MIB;
    let mut rig = Rig::nodes(5).cpus(1.0).store_bytes(768 * MIB).start()?;
    let builder = Cluster::connect(&rig.socket(0)?);
    let rig_there = &mut rig;
    drive(builder, async |cluster| {
        let nodes = placed(rig_there, &cluster).await?;
        let object = make.options().strategy(on(nodes[1])).remote(BYTES);
        mobula::wait(std::slice::from_ref(&object), 1, None).await?;
        let mut readers = Vec::new();
        for node in &nodes[2..] {
            readers.push(reader(*node).await?);
        }
        // The first two are served by the source, the third one by the first.
        let mut reads = Vec::new();
        for (at, reader) in (2..).zip(&readers) {
            let there = |rig: &Rig| rig.pid(Part::Node(at)).map(processes::memory_file_bytes).unwrap();
            let before = there(rig_there);
            reads.push(reader.read(Holding(object.clone())));
            let begun = |rig: &mut Rig| Ok(there(rig) > before + 16 * MIB);
            rig_there.wait("some of it to come in", COUNTED_WAIT, begun).unwrap();
        }
        // From here on the first has no more than a part.
        rig_there.stop(Part::Node(1)).unwrap();
        assert!(
            reads.iter().all(|read| !read.is_ready()),
            "a copy was complete before its source was stopped"
        );
        rig_there.kill(Part::Node(2)).unwrap();
        rig_there.resume(Part::Node(1)).unwrap();
        let third = reads.pop().unwrap();
        let second = reads.pop().unwrap();
        assert!(third.await?);
        assert!(second.await?);
        let first = reads.pop().unwrap();
        assert!(first.await.is_err(), "the first has died");
        Ok(())
    })?;
    rig.wait("both copies to be counted", COUNTED_WAIT, |rig| {
        let counted = counted(rig, 5)?;
        Ok(counted[3].0 / BYTES == 1 && counted[4].0 / BYTES == 1)
    })?;
    rig.finish()?;
    Ok(())
}

/// A call whose argument does not come holds up no other on the only CPU of its node: of those known to be short several
/// are sent at once; of long ones the next is sent ahead for what it is given, and gets the slot first; and other functions
/// have the slot lent.
pub fn what_is_fetched_takes_no_slot() -> Outcome {
    const BYTES: u64 = 16 * MIB;
    let mut rig = Rig::nodes(3).cpus(1.0).resource("seat", 1.0).store_bytes(128 * MIB).start()?;
    let builder = Cluster::connect(&rig.socket(0)?);
    let rig_there = &mut rig;
    drive(builder, async |cluster| {
        let nodes = placed(rig_there, &cluster).await?;
        let made = |at: usize, bytes| make.options().strategy(on(nodes[at])).remote(bytes);
        let (far, other, near) = (made(1, BYTES), made(0, MIB), made(2, MIB));
        mobula::wait(&[far.clone(), other.clone(), near.clone()], 3, None).await?;
        let short = |object: &ObjectRef<Tensor>| length.options().strategy(on(nodes[2])).remote(object);
        // What this one waits for cannot be lent, unlike a CPU.
        let seated = |object: &ObjectRef<Tensor>| {
            long.options().strategy(on(nodes[2])).resource("seat", 1.0).remote(object)
        };
        for _ in 0..8 {
            assert_eq!(short(&near).await?, MIB);
        }
        assert_eq!(seated(&near).await?, MIB);
        rig_there.stop(Part::Node(1)).unwrap();
        let waits = short(&far);
        assert_eq!(short(&near).await?, MIB);
        assert!(!waits.is_ready(), "it was the argument of the other that came");
        assert_eq!(long.options().strategy(on(nodes[2])).remote(&near).await?, MIB);
        let seated_waits = seated(&far);
        assert_eq!(seated(&other).await?, MIB);
        assert!(!seated_waits.is_ready() && !waits.is_ready(), "neither has what it is given");
        rig_there.resume(Part::Node(1)).unwrap();
        assert_eq!((waits.await?, seated_waits.await?), (BYTES, BYTES));
        Ok(())
    })?;
    rig.finish()?;
    Ok(())
}
