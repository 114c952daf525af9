//! Objects that go from node to node: one reader, twenty on one node, and eight nodes.

use std::time::{Duration, Instant};

use mobula::{Cluster, Error, ErrorKind, NodeId, Strategy, blocking, prelude::*};

use crate::{
    limits::quic::{
        BROADCAST, BROADCAST_NODES, ETHERNET, ETHERNET_1_MIB, ETHERNET_64_MIB, ETHERNET_MTU, PLAIN,
        PLAIN_1_MIB, PLAIN_64_MIB,
    },
    measure::{Result, quantile},
    row::{Place, Probe, Row, Stage, Target},
    subjects::functions::make_tensor,
    system::{anonymous_memory, loopback_traffic},
};

/// Of the small objects so many are pulled one after the other.
const SMALL: usize = 20;
/// Ten packets as on Ethernet, which loopback counts as one where they were sent together, are smaller; packets as on
/// loopback are larger, the acknowledgements between them included. In bytes.
const APART_BYTES: f64 = 20_000.0;
/// Tasks that read one object.
const READERS: usize = 20;
/// How long they may take.
const READ: Duration = Duration::from_secs(60);
/// How often a broadcast's counts are looked at, and how long at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(20));

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::more("pull of 1 GiB between two nodes, MTU 65000", "GB/s")
                .limit(PLAIN)
                .peer("transfer of 1 GiB")
                .targets(&[Target::OfLimit(0.8), Target::OfPeer(1.0)]),
            Row::more("pull of 64 MiB between two nodes, MTU 65000", "GB/s")
                .limit(PLAIN_64_MIB)
                .peer("transfer of 64 MiB")
                .targets(&[Target::OfLimit(0.8), Target::OfPeer(1.0)]),
            Row::more("pull of 1 MiB between two nodes, MTU 65000", "GB/s")
                .limit(PLAIN_1_MIB)
                .peer("transfer of 1 MiB")
                .targets(&[Target::OfLimit(0.8), Target::OfPeer(3.0)]),
        ],
        stage: Stage::TwoNodes,
        run: |place| pulls(place, far(place)?, false),
    },
    Probe {
        rows: &[
            Row::more("pull of 1 GiB between two nodes, MTU 1452", "GB/s")
                .limit(ETHERNET)
                .targets(&[Target::OfLimit(0.8)]),
            Row::more("pull of 64 MiB between two nodes, MTU 1452", "GB/s")
                .limit(ETHERNET_64_MIB)
                .targets(&[Target::OfLimit(0.8)]),
            Row::more("pull of 1 MiB between two nodes, MTU 1452", "GB/s")
                .limit(ETHERNET_1_MIB)
                .targets(&[Target::OfLimit(0.8)]),
        ],
        stage: Stage::Alone,
        run: small_packets,
    },
    Probe {
        rows: &[
            Row::less("256 MiB on the wire for 20 tasks of a node that read one object", "times")
                .targets(&[Target::AtMost(1.05)]),
            Row::less("anonymous memory that those 20 tasks take together", "MB")
                .targets(&[Target::AtMost(1.0)]),
        ],
        stage: Stage::TwoNodes,
        run: shared,
    },
    Probe {
        rows: &[
            Row::less("broadcast of 1 GiB to 8 nodes, MTU 65000", "s")
                .limit(BROADCAST)
                .peer("broadcast of 1 GiB to 8 nodes")
                .targets(&[Target::WithinLimit(1.8)]),
            Row::less("copies that the source of a broadcast to 8 nodes sends", "copies")
                .targets(&[Target::AtMost(3.0)]),
            Row::less("another broadcast of 1 GiB to the 8 nodes, after the first has gone, MTU 65000", "s")
                .limit(BROADCAST)
                .targets(&[Target::WithinLimit(1.8)]),
            Row::less("copies that the source of another broadcast to 8 nodes sends", "copies")
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

/// What a task has seen while all of them had read the object and none had let go of it.
#[mobula::data]
struct Seen {
    process: u32,
    sum: i64,
    /// Of its process, in bytes.
    anonymous: f64,
}

#[mobula::task(cpu = 0.05)]
async fn read_together(tensor: Tensor, barrier: mobula::Barrier) -> mobula::Result<Seen> {
    let sum = tensor.as_slice::<i64>()?.iter().sum();
    barrier.wait(READ).await?;
    let process = std::process::id();
    let anonymous =
        anonymous_memory(process).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    // Nobody lets go of it before everybody has looked.
    barrier.wait(READ).await?;
    Ok(Seen { process, sum, anonymous })
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

fn small_packets(place: &Place) -> Result<Vec<f64>> {
    let start = Cluster::local().nodes(2).mtu(ETHERNET_MTU).quiet().start();
    let cluster = place.runtime.block_on(start)?;
    let measured = || {
        let own = mobula::put(&0u64)?.id().owner.node;
        let far = place.runtime.block_on(cluster.nodes())?.into_iter().find(|node| *node != own);
        pulls(place, far.ok_or("the cluster has no second node")?, true)
    };
    let rates = measured();
    cluster.shutdown();
    rates
}

/// GB/s of a large object, of a sixteenth of that and of a thousandth. Whether packets were small, as rows' names say, is
/// held against what the loopback interface counts.
fn pulls(place: &Place, node: NodeId, small_packets: bool) -> Result<Vec<f64>> {
    let bytes = place.scale.bulk_bytes;
    // Once for the hosts, the connection, and memory that the next ones find warm.
    made(bytes, node)?.get()?;
    let (before, mut rates) = (loopback_traffic()?, Vec::new());
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
    let after = loopback_traffic()?;
    let mean = (after.bytes - before.bytes) / (after.packets - before.packets);
    if (mean < APART_BYTES) != small_packets {
        return Err(format!("packets had {mean:.0} bytes on average, unlike what the row's name says").into());
    }
    Ok(rates)
}

fn shared(place: &Place) -> Result<Vec<f64>> {
    let node = far(place)?;
    let barrier = place.runtime.block_on(mobula::Barrier::new(READERS as u32))?;
    // The driver's node has it; the other one reads.
    let read_by_all = |elements: usize| -> Result<(f64, Vec<Seen>)> {
        let object = mobula::put_shared(&Tensor::from_vec(&[elements], vec![1i64; elements])?)?;
        let before = loopback_traffic()?.bytes;
        let reads: Vec<_> = (0..READERS)
            .map(|_| read_together.options().strategy(on(node)).remote(&object, barrier.clone()))
            .collect();
        let seen = blocking::get_all(&reads)?;
        if seen.iter().any(|seen| seen.sum != elements as i64) {
            return Err("a task read something else".into());
        }
        if seen.iter().any(|each| each.process != seen[0].process) {
            return Err("the tasks are in several processes".into());
        }
        Ok((loopback_traffic()?.bytes - before, seen))
    };
    // Their process is there, and has had so many tasks.
    let (_, before) = read_by_all(1)?;
    let bytes = place.scale.bulk_bytes / 4;
    let (on_wire, after) = read_by_all(bytes / size_of::<i64>())?;
    if after[0].process != before[0].process {
        return Err("the tasks are in another process than those before".into());
    }
    let most = |seen: &[Seen]| seen.iter().map(|seen| seen.anonymous).fold(0.0, f64::max);
    let gained = (most(&after) - most(&before)).max(0.0);
    Ok(vec![on_wire / bytes as f64, gained / 1e6])
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
    let mut values = Vec::new();
    let mut before = [0.0; 2];
    for _ in 0..2 {
        let elements = vec![1i64; bytes / size_of::<i64>()];
        let object = mobula::put(&Tensor::from_vec(&[elements.len()], elements)?)?;
        let begun = Instant::now();
        let reads: Vec<_> = readers.iter().map(|reader| reader.read(vec![object.clone()])).collect();
        if blocking::get_all(&reads)?.iter().any(|read| *read != bytes as u64) {
            return Err("a node read something else".into());
        }
        values.push(begun.elapsed().as_secs_f64());
        let all = before[0] + (readers.len() * bytes) as f64;
        let sent = counted(place, cluster, own, &|[sent, ..]| sent >= all)?;
        values.push((sent[1] - before[1]) / bytes as f64);
        before = [sent[0], sent[1]];
        drop((reads, object));
        counted(place, cluster, own, &|[.., objects]| objects == 0.0)?;
    }
    Ok(values)
}

/// What nodes count, once that is enough: bytes that all have sent, those that one has, and objects in all stores.
fn counted(
    place: &Place,
    cluster: &Cluster,
    of: NodeId,
    enough: &dyn Fn([f64; 3]) -> bool,
) -> Result<[f64; 3]> {
    let of = of.to_string();
    // Nodes say it every two seconds.
    let end = Instant::now() + LOOK.1;
    loop {
        let nodes = place.runtime.block_on(cluster.snapshot())?.nodes;
        let sent: u64 = nodes.iter().map(|node| node.usage.served_bytes).sum();
        let objects: u64 = nodes.iter().map(|node| node.usage.objects).sum();
        let one = nodes.iter().find(|node| node.node == of).ok_or("the source is not among the nodes")?;
        let counts = [sent as f64, one.usage.served_bytes as f64, objects as f64];
        if enough(counts) {
            return Ok(counts);
        }
        if Instant::now() > end {
            return Err(format!(
                "bytes sent by all, by one, and objects in stores: {counts:?} after {:?}",
                LOOK.1
            )
            .into());
        }
        std::thread::sleep(LOOK.0);
    }
}
