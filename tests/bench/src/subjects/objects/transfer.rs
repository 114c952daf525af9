//! Objects that go from node to node: one reader, twenty on one node, and eight nodes.

use std::time::{Duration, Instant};

use mobula::{Cluster, NodeId, Strategy, blocking, prelude::*};

use crate::{
    limits::quic::{BROADCAST, BROADCAST_NODES, PLAIN, PLAIN_1_MIB, PLAIN_64_MIB},
    measure::{Result, quantile},
    row::{Place, Probe, Row, Stage, Target},
    subjects::functions::make_tensor,
    system::loopback_bytes,
};

/// Of the small objects so many are pulled one after the other.
const SMALL: usize = 20;
/// Tasks that read one object.
const READERS: usize = 20;
/// How often a broadcast's counts are looked at, and how long at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(20));

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::more("pull of 1 GiB between two nodes", "GB/s")
                .limit(PLAIN)
                .peer("transfer of 1 GiB")
                .targets(&[Target::OfLimit(0.8), Target::OfPeer(1.0)]),
            Row::more("pull of 64 MiB between two nodes", "GB/s")
                .limit(PLAIN_64_MIB)
                .peer("transfer of 64 MiB")
                .targets(&[Target::OfLimit(0.8), Target::OfPeer(1.0)]),
            Row::more("pull of 1 MiB between two nodes", "GB/s")
                .limit(PLAIN_1_MIB)
                .peer("transfer of 1 MiB")
                .targets(&[Target::OfLimit(0.8), Target::OfPeer(3.0)]),
        ],
        stage: Stage::TwoNodes,
        run: pulls,
    },
    Probe {
        rows: &[Row::more("256 MiB on the wire for 20 tasks of a node that read one object", "times")
            .targets(&[Target::AtMost(1.05)])],
        stage: Stage::TwoNodes,
        run: shared,
    },
    Probe {
        rows: &[
            Row::less("broadcast of 1 GiB to 8 nodes", "s")
                .limit(BROADCAST)
                .peer("broadcast of 1 GiB to 8 nodes")
                .targets(&[Target::WithinLimit(1.8)]),
            Row::less("copies that the source of a broadcast to 8 nodes sends", "copies")
                .targets(&[Target::AtMost(3.0)]),
        ],
        stage: Stage::Alone,
        run: broadcast,
    },
];

/// Reads where it is.
struct Reader;

#[mobula::actor]
impl Reader {
    fn new() -> Self {
        Self
    }

    fn ready(&self) -> bool {
        true
    }

    fn read(&self, objects: Vec<ObjectRef<Tensor>>) -> mobula::Result<u64> {
        let mut bytes = 0;
        for object in &objects {
            bytes += object.get()?.as_bytes()?.len() as u64;
        }
        Ok(bytes)
    }
}

#[mobula::task]
fn length(tensor: Tensor) -> mobula::Result<u64> {
    Ok(tensor.as_bytes()?.len() as u64)
}

fn on(node: NodeId) -> Strategy {
    Strategy::Node { node, soft: false }
}

fn far(place: &Place) -> Result<NodeId> {
    place.far.ok_or_else(|| "the cluster has no second node".into())
}

fn made(bytes: usize, node: NodeId) -> Result<ObjectRef<Tensor>> {
    let made = make_tensor.options().strategy(on(node)).remote(bytes as u64);
    blocking::wait(std::slice::from_ref(&made), 1, None)?;
    Ok(made)
}

fn pulls(place: &Place) -> Result<Vec<f64>> {
    let node = far(place)?;
    let bytes = place.scale.bulk_bytes;
    // Once for the hosts, the connection, and memory that the next ones find warm.
    made(bytes, node)?.get()?;
    let mut rates = Vec::new();
    for (bytes, times) in [(bytes, 2), (bytes / 16, 5), (bytes / 1024, SMALL)] {
        let mut taken = Vec::new();
        for _ in 0..times {
            let object = made(bytes, node)?;
            let begun = Instant::now();
            let tensor = object.get()?;
            taken.push(bytes as f64 / begun.elapsed().as_secs_f64() / 1e9);
            let whole = tensor.as_bytes()?.len() == bytes;
            if !whole || tensor.as_slice::<i64>()?.iter().any(|element| *element != 1) {
                return Err("the tensor arrived changed".into());
            }
        }
        taken.sort_by(f64::total_cmp);
        rates.push(quantile(&taken, 0.5));
    }
    Ok(rates)
}

fn shared(place: &Place) -> Result<Vec<f64>> {
    let node = far(place)?;
    let bytes = place.scale.bulk_bytes / 4;
    // The driver's node has it; the other one reads.
    let elements = vec![1i64; bytes / size_of::<i64>()];
    let object = mobula::put(&Tensor::from_vec(&[elements.len()], elements)?)?;
    length.options().strategy(on(node)).remote(Tensor::from_vec(&[1], vec![0u8])?).get()?;
    let before = loopback_bytes()?;
    let reads: Vec<_> =
        (0..READERS).map(|_| length.options().cpu(0.05).strategy(on(node)).remote(&object)).collect();
    if blocking::get_all(&reads)?.iter().any(|read| *read != bytes as u64) {
        return Err("a task read something else".into());
    }
    Ok(vec![(loopback_bytes()? - before) / bytes as f64])
}

fn broadcast(place: &Place) -> Result<Vec<f64>> {
    let bytes = place.scale.bulk_bytes;
    let nodes = BROADCAST_NODES as u32 + 1;
    let store = bytes as u64 + bytes as u64 / 2;
    let cluster =
        place.runtime.block_on(Cluster::local().nodes(nodes).cpus(1.0).store_bytes(store).quiet().start())?;
    let measured = measure_broadcast(place, &cluster, bytes);
    cluster.shutdown();
    measured
}

fn measure_broadcast(place: &Place, cluster: &Cluster, bytes: usize) -> Result<Vec<f64>> {
    let own = mobula::put(&0u64)?.id().owner.node;
    let others: Vec<_> =
        place.runtime.block_on(cluster.nodes())?.into_iter().filter(|node| *node != own).collect();
    let readers: Vec<_> = others
        .iter()
        .map(|node| {
            let node = *node;
            Reader::spawn().options(move |options| options.strategy(on(node))).start()
        })
        .collect();
    for reader in &readers {
        reader.ready().get()?;
    }
    let elements = vec![1i64; bytes / size_of::<i64>()];
    let object = mobula::put(&Tensor::from_vec(&[elements.len()], elements)?)?;
    let begun = Instant::now();
    let reads: Vec<_> = readers.iter().map(|reader| reader.read(vec![object.clone()])).collect();
    if blocking::get_all(&reads)?.iter().any(|read| *read != bytes as u64) {
        return Err("a node read something else".into());
    }
    let seconds = begun.elapsed().as_secs_f64();
    // Nodes say every two seconds what they sent.
    let end = Instant::now() + LOOK.1;
    loop {
        let snapshot = place.runtime.block_on(cluster.snapshot())?;
        let sent: u64 = snapshot.nodes.iter().map(|node| node.usage.served_bytes).sum();
        if sent >= (readers.len() * bytes) as u64 {
            let source = snapshot.nodes.iter().find(|node| node.node == own.to_string());
            let source = source.ok_or("the source is not among the nodes")?.usage.served_bytes;
            return Ok(vec![seconds, source as f64 / bytes as f64]);
        }
        if Instant::now() > end {
            return Err(format!("only {sent} bytes were counted within {:?}", LOOK.1).into());
        }
        std::thread::sleep(LOOK.0);
    }
}
