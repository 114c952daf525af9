//! A node dies, and others have read what lay there.

use std::time::Duration;

use mobula::{Cluster, ErrorKind, NodeId, Result, prelude::*};
use mobula_e2e::env::on;
use mobula_rig::{Part, Rig};

use super::{
    driver::Outcome,
    transfer::{drive, placed},
};

/// More than is kept by its owner.
const BYTES: usize = 1 << 20;
/// Until the last copies have gone, which nodes report every two seconds.
const GONE_WAIT: Duration = Duration::from_secs(20);

#[mobula::data]
struct Held(ObjectRef<Vec<u8>>);

#[mobula::data]
struct Outer {
    bytes: Vec<u8>,
    inner: Vec<Held>,
}

#[mobula::data]
struct HeldOuter(ObjectRef<Outer>);

fn sum_of(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

#[mobula::task(cpu = 0)]
fn make(fill: u8) -> Vec<u8> {
    vec![fill; BYTES]
}

struct Maker;

#[mobula::actor]
impl Maker {
    fn new() -> Self {
        Self
    }

    fn make(&self, fill: u8) -> Vec<u8> {
        vec![fill; BYTES]
    }

    fn put(&self, fill: u8) -> Result<Held> {
        Ok(Held(mobula::put(&vec![fill; BYTES])?))
    }

    /// Each inside of it put, too.
    fn nest(&self, fill: u8, inside: usize) -> Result<HeldOuter> {
        let inner = (0..inside).map(|_| Ok(Held(mobula::put(&vec![fill; BYTES])?))).collect::<Result<_>>()?;
        Ok(HeldOuter(mobula::put(&Outer { bytes: vec![fill; BYTES], inner })?))
    }
}

struct Reader;

#[mobula::actor]
impl Reader {
    fn new() -> Self {
        Self
    }

    fn sum(&self, held: Held) -> Result<u64> {
        Ok(sum_of(&held.0.get()?))
    }

    /// Of it alone.
    fn outer(&self, held: HeldOuter) -> Result<u64> {
        Ok(sum_of(&held.0.get()?.bytes))
    }

    /// Of all of it.
    fn all(&self, held: HeldOuter) -> Result<u64> {
        let outer = held.0.get()?;
        let inner = outer.inner.iter().map(|held| Ok(sum_of(&held.0.get()?))).sum::<Result<u64>>()?;
        Ok(sum_of(&outer.bytes) + inner)
    }
}

async fn reader(node: NodeId) -> Result<ReaderHandle> {
    Reader::spawn().options(|options| options.strategy(on(node))).await
}

/// What cannot be made again, or whose owner died with the node, is read from where it was read before, and what nobody has
/// read is lost, with an error that says so.
pub fn what_others_have_read_outlives_its_node() -> Outcome {
    let sum = |fill: u8| BYTES as u64 * u64::from(fill);
    let mut rig = Rig::nodes(4).cpus(2.0).store_bytes(128 << 20).start()?;
    let builder = Cluster::connect(&rig.socket(0)?);
    let rig_there = &mut rig;
    drive(builder, async |cluster| {
        let nodes = placed(rig_there, &cluster).await?;
        let maker = Maker::spawn().options(|options| options.strategy(on(nodes[1]))).await?;
        let (first, second) = (reader(nodes[2]).await?, reader(nodes[3]).await?);
        let made = maker.make(1);
        let once = make.options().strategy(on(nodes[1])).retries(0).remote(2);
        let twice = maker.make(8);
        let (held, nested) = (maker.put(3).await?, maker.nest(4, 1).await?);
        // More refs than are named to who pulls a value: it is known whole to its owner alone.
        let many = maker.nest(5, 65).await?;
        for reader in [&first, &second] {
            assert_eq!(reader.sum(Held(made.clone())).await?, sum(1));
            assert_eq!(reader.sum(Held(once.clone())).await?, sum(2));
            assert_eq!(reader.sum(Held(twice.clone())).await?, sum(8));
            assert_eq!(reader.sum(Held(held.0.clone())).await?, sum(3));
            assert_eq!(reader.all(HeldOuter(nested.0.clone())).await?, 2 * sum(4));
            assert_eq!(reader.outer(HeldOuter(many.0.clone())).await?, sum(5));
        }
        let (unread, unread_put) = (maker.make(6), maker.put(7).await?);
        mobula::wait(std::slice::from_ref(&unread), 1, None).await?;
        rig_there.kill(Part::Node(1)).unwrap();
        // Neither has been read by who asks.
        assert_eq!(sum_of(&made.await?), sum(1));
        assert_eq!(sum_of(&once.clone().await?), sum(2));
        assert_eq!(sum_of(&held.0.await?), sum(3));
        let outer = nested.0.await?;
        assert_eq!(sum_of(&outer.bytes), sum(4));
        assert_eq!(sum_of(&outer.inner[0].0.clone().await?), sum(4));
        let lost = unread.await.unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::ObjectLost);
        assert!(lost.to_string().contains("no other node has a copy"), "{lost}");
        assert_eq!(unread_put.0.await.unwrap_err().kind(), ErrorKind::OwnerDied);
        assert_eq!(many.0.await.map(drop).unwrap_err().kind(), ErrorKind::OwnerDied);
        // As good as any: it goes on when its new node dies, too.
        assert_eq!(first.sum(Held(once.clone())).await?, sum(2));
        rig_there.kill(Part::Node(2)).unwrap();
        assert_eq!(second.sum(Held(once)).await?, sum(2));
        // Nobody has read this one since the first death; both had it.
        assert_eq!(sum_of(&twice.await?), sum(8));
        drop((maker, first, second, outer));
        rig_there
            .wait("the copies to go with the last ref", GONE_WAIT, |rig| {
                Ok(rig.snapshot()?.nodes.iter().all(|node| node.usage.objects == 0))
            })
            .unwrap();
        Ok(())
    })?;
    rig.finish()?;
    Ok(())
}
