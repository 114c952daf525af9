//! Hosts that are killed in the middle of what they do with the store: 1,000 of them, and then nothing is left.
//!
//! `MOBULA_SEED` says what each host does and after how long it dies, as far as that is ours to say; it is printed at the
//! start.

#![allow(missing_docs, reason = "tests")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};
use mobula::{Cluster, ErrorKind, NodeId, ObjectRef, ObjectStream, Result, Strategy, Tensor, private};
use mobula_rig::{Part, Rig, Why};
use tokio::net::UnixDatagram;

type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Jobs, one after the other. After each nothing may be left on any node.
const JOBS: u64 = 10;
/// Hosts that are killed in each.
const KILLS: u64 = 100;
/// How many of them work at once on each node.
const LANES: u64 = 2;
/// A host is killed within this time from the start of its work, in microseconds: about as long as the work takes.
const WITHIN_US: u64 = 12_000;
/// Bytes of what tasks take, put and return: each is an object in the store.
const BYTES: usize = 1 << 20;
/// Bytes of each node's store. The driver holds more than that, so that what tasks make and read goes over the disk.
const STORE_BYTES: u64 = 24 << 20;
/// How many objects of [`BYTES`] the driver holds.
const HELD: usize = 28;
/// Longest that the tasks of all lanes may take, with all that are killed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest that it may take until what killed hosts have made is gone.
const TIDY_WAIT: Duration = Duration::from_secs(10);
/// A task may be tried again so often: whoever is unlucky is killed each time.
const RETRIES: u32 = 1_000;

fn main() -> ExitCode {
    // This binary is also every head, agent and host that it starts.
    if let Some(code) = mobula_rig::become_child() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let kills = Trial::test("killed_hosts_leave_nothing_in_the_store", || {
        killed_hosts_leave_nothing_in_the_store().map_err(|error| error.to_string().into())
    });
    libtest_mimic::run(&arguments, vec![kills]).exit_code()
}

/// What a host does when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    /// Writes objects of its own, and reads them.
    Put,
    /// Reads what lies on another node, or on the disk.
    Pull,
    /// Makes items one after the other, which its caller reads.
    Stream,
    /// As `Put`, in the host that all tasks of the job share on a node, so that all of them die at once.
    Share,
    /// Returns refs to objects of an actor, which its caller then reads.
    Lend,
    /// Is made as an actor, answers calls with objects, and is made again elsewhere.
    Act,
}

const ALL: [Doing; 6] = [Doing::Put, Doing::Pull, Doing::Stream, Doing::Share, Doing::Lend, Doing::Act];

/// Tells the test which process is about to begin.
fn begin(place: &str) -> Result<()> {
    let failed = |error: std::io::Error| mobula::Error::new(ErrorKind::Internal, error.to_string());
    let socket = std::os::unix::net::UnixDatagram::unbound().map_err(failed)?;
    socket.send_to(&std::process::id().to_le_bytes(), place).map_err(failed)?;
    Ok(())
}

fn filled(value: u8) -> Result<Tensor> {
    Tensor::from_vec(&[BYTES], vec![value; BYTES])
}

fn is_filled(tensor: &Tensor, value: u8) -> bool {
    tensor.as_slice::<u8>().is_ok_and(|bytes| bytes.len() == BYTES && bytes.iter().all(|byte| *byte == value))
}

/// What a task returns that found other bytes than those that were put.
fn wrong<T>(what: &str) -> Result<T> {
    Err(mobula::Error::new(ErrorKind::Returned, format!("{what} has other bytes than were put")))
}

#[mobula::task]
fn puts(place: String, rounds: u8) -> Result<Tensor> {
    begin(&place)?;
    for round in 0..rounds {
        let object = mobula::put(&filled(round)?)?;
        if !is_filled(&object.get()?, round) {
            return wrong("an object of the host");
        }
    }
    filled(rounds)
}

#[mobula::data]
struct Held(Vec<(ObjectRef<Tensor>, u8)>);

#[mobula::task]
fn pulls(place: String, held: Held) -> Result<Tensor> {
    begin(&place)?;
    let count = held.0.len() as u8;
    for (object, value) in held.0 {
        if !is_filled(&object.get()?, value) {
            return wrong("an object of the driver");
        }
    }
    filled(count)
}

/// Owns what tasks return refs to. It is never killed.
struct Keeper;

#[mobula::actor]
impl Keeper {
    fn new() -> Self {
        Self
    }

    fn make(&mut self, count: u8) -> Result<Held> {
        let made = (0..count).map(|value| Ok((mobula::put(&filled(value)?)?, value)));
        made.collect::<Result<_>>().map(Held)
    }
}

#[mobula::task]
fn lends(place: String, keeper: KeeperHandle, count: u8) -> Result<Held> {
    begin(&place)?;
    keeper.make(count).get()
}

/// Its calls may be made again, so none of them may fail, and no value that one returned may be lost.
struct Maker;

#[mobula::actor(restarts = 1_000, call_retries = 1_000, isolation = "process", cpu = 0.5)]
impl Maker {
    fn new(place: String) -> Result<Self> {
        begin(&place)?;
        Ok(Self)
    }

    fn make(&mut self, value: u8) -> Result<Tensor> {
        filled(value)
    }
}

#[mobula::task]
fn streams(place: String, rounds: u8) -> Result<impl Iterator<Item = Result<Tensor>>> {
    begin(&place)?;
    Ok((0..rounds).map(filled))
}

fn killed_hosts_leave_nothing_in_the_store() -> Outcome<()> {
    let seed = match std::env::var("MOBULA_SEED") {
        Ok(text) => text.parse().map_err(|_| format!("MOBULA_SEED is a number, not {text:?}"))?,
        Err(_) => 0,
    };
    eprintln!("MOBULA_SEED={seed}");
    run(seed).map_err(|error| format!("MOBULA_SEED={seed}: {error}").into())
}

fn run(seed: u64) -> Outcome<()> {
    let began = Instant::now();
    let folder = tempfile::tempdir()?;
    let mut rig = Rig::nodes(2).cpus(LANES as f64).store_bytes(STORE_BYTES).start()?;
    let mut random = Random(seed);
    let mut killed = BTreeMap::new();
    for number in 0..JOBS {
        let place = folder.path().join(format!("begun-{number}"));
        let builder = Cluster::connect(&rig.socket(0)?).quiet();
        let (outcome, left) = private::drive(builder, async |cluster: Cluster| {
            job(&cluster, &mut rig, place, &mut random, &mut killed).await
        })?;
        outcome.map_err(|error| format!("job {number}: {error}"))?;
        if !left.is_empty() {
            return Err(format!("job {number}: the driver still holds {left:?}").into());
        }
        rig.emptied().map_err(|error| format!("after job {number}: {error}"))?;
    }
    let count: u64 = killed.values().sum();
    eprintln!("{count} hosts were killed in {:.0} s: {killed:?}", began.elapsed().as_secs_f64());
    let usage: Vec<_> = rig.snapshot()?.nodes.into_iter().map(|node| node.usage).collect();
    rig.finish()?;
    if count < JOBS * KILLS || ALL.iter().any(|doing| !killed.contains_key(doing)) {
        return Err(format!("too few were killed: {killed:?}").into());
    }
    let [spilled, pulled] = [
        usage.iter().map(|usage| usage.spilled).sum::<u64>(),
        usage.iter().map(|usage| usage.pulled_bytes).sum(),
    ];
    eprintln!("{spilled} objects were written to disk meanwhile, and {pulled} bytes went between the nodes");
    if spilled == 0 || pulled == 0 {
        return Err("neither the disk nor the way between the nodes may have been left out".into());
    }
    Ok(())
}

/// One job, with at least [`KILLS`] hosts killed.
async fn job(
    cluster: &Cluster,
    rig: &mut Rig,
    place: PathBuf,
    random: &mut Random,
    killed: &mut BTreeMap<Doing, u64>,
) -> Outcome<()> {
    let nodes = cluster.nodes().await?;
    let held = (0..HELD as u8)
        .map(|value| Ok((mobula::put(&filled(value)?)?, value)))
        .collect::<Result<Vec<_>>>()?;
    let keeper = Keeper::spawn().options(|options| options.isolation("process").cpu(0.0)).await?;
    let mut here = 0;
    while here < KILLS {
        let doing = ALL[random.below(ALL.len() as u64) as usize];
        let work = round(&nodes, rig, &place, doing, &held, &keeper, random);
        let Ok(count) = tokio::time::timeout(PATIENCE, work).await else {
            return Err(hung(cluster, rig, doing).await.into());
        };
        let count = count?;
        only_held(rig).map_err(|error| format!("{doing:?}: {error}"))?;
        here += count;
        *killed.entry(doing).or_default() += count;
    }
    Ok(())
}

/// What is known of tasks that do not end.
async fn hung(cluster: &Cluster, rig: &Rig, doing: Doing) -> String {
    let function = match doing {
        Doing::Put | Doing::Share => "chaos::puts",
        Doing::Pull => "chaos::pulls",
        Doing::Stream => "chaos::streams",
        Doing::Lend => "chaos::lends",
        Doing::Act => "chaos::Maker::make",
    };
    let why = cluster.why(function).await;
    let (snapshot, memory) = (rig.snapshot(), rig.memory());
    format!("{doing:?}: tasks did not end within {PATIENCE:?}: {why:#?}\n{snapshot:#?}\n{memory:#?}")
}

/// Waits until there is nothing in the stores but what the driver holds, and copies of that, while its job goes on.
fn only_held(rig: &mut Rig) -> Outcome<()> {
    let tidy = rig.wait("what killed hosts have made to go", TIDY_WAIT, |rig| {
        let stores = rig.memory()?.stores;
        let groups = || stores.iter().flat_map(|store| &store.groups);
        let held: u64 = groups().filter(|group| group.why == Why::Held).map(|group| group.objects).sum();
        let idle = groups().all(|group| matches!(group.why, Why::Held | Why::Copy) && group.pinned == 0);
        Ok(held == HELD as u64 && idle)
    });
    tidy.map_err(|error| format!("{error}: {:#?}", rig.memory()).into())
}

/// All lanes of all nodes do the same, and some of them die of it; returns how many.
async fn round(
    nodes: &[NodeId],
    rig: &mut Rig,
    place: &Path,
    doing: Doing,
    held: &[(ObjectRef<Tensor>, u8)],
    keeper: &KeeperHandle,
    random: &mut Random,
) -> Outcome<u64> {
    let mailbox = UnixDatagram::bind(place)?;
    let text = place.display().to_string();
    // One of each node stays there, the others go where there is room, so that what died on one node ends on another.
    let stays = |node: &NodeId| Strategy::Node { node: *node, soft: false };
    let lanes: Vec<_> = (0..LANES)
        .flat_map(|lane| {
            nodes.iter().map(move |node| if lane == 0 { stays(node) } else { Strategy::default() })
        })
        .collect();
    let rounds: Vec<u8> = lanes.iter().map(|_| 2 + random.below(6) as u8).collect();
    let mut values = Vec::new();
    let mut items = Vec::new();
    let mut lent = Vec::new();
    let mut made = Vec::new();
    for (on, rounds) in lanes.into_iter().zip(&rounds) {
        match doing {
            Doing::Put | Doing::Share => {
                let isolation = if doing == Doing::Put { "process" } else { "shared" };
                let options = puts.options().strategy(on).isolation(isolation).retries(RETRIES);
                values.push(options.remote(text.clone(), *rounds));
            }
            Doing::Pull => {
                let from = random.below(HELD as u64) as usize;
                let some = held.iter().cycle().skip(from).take(usize::from(*rounds)).cloned().collect();
                let options = pulls.options().strategy(on).isolation("process").retries(RETRIES);
                values.push(options.remote(text.clone(), Held(some)));
            }
            Doing::Stream => {
                let options = streams.options().strategy(on).isolation("process").retries(RETRIES);
                items.push(options.remote(text.clone(), *rounds));
            }
            Doing::Lend => {
                let options = lends.options().strategy(on).isolation("process").retries(RETRIES);
                lent.push(options.remote(text.clone(), keeper.clone(), *rounds));
            }
            Doing::Act => {
                let maker = Maker::spawn(text.clone()).options(|options| options.strategy(on)).await?;
                let calls: Vec<_> = (0..*rounds).map(|value| maker.make(value)).collect();
                made.push((maker, calls));
            }
        }
    }
    let work = async {
        let mut right = true;
        for (value, rounds) in values.into_iter().zip(&rounds) {
            right &= is_filled(&value.await?, *rounds);
        }
        for (stream, rounds) in items.into_iter().zip(&rounds) {
            right &= read(stream).await? == *rounds;
        }
        for (refs, rounds) in lent.into_iter().zip(&rounds) {
            let refs = refs.await?.0;
            right &= refs.len() == usize::from(*rounds);
            for (object, value) in refs {
                right &= is_filled(&object.await?, value);
            }
        }
        for (maker, calls) in made {
            for (value, call) in calls.into_iter().enumerate() {
                right &= is_filled(&call.await?, value as u8);
            }
            drop(maker);
        }
        Ok::<_, mobula::Error>(right)
    };
    let (right, count) = attack(rig, &mailbox, random, work).await?;
    std::fs::remove_file(place)?;
    if right { Ok(count) } else { Err(format!("{doing:?}: other bytes came back than were made").into()) }
}

/// How many items came before the first that is another than it should be.
async fn read(mut stream: ObjectStream<Tensor>) -> Result<u8> {
    let mut right = 0;
    while let Some(item) = stream.next().await {
        if !is_filled(&item?, right) {
            break;
        }
        right += 1;
    }
    Ok(right)
}

/// Kills hosts that have begun to work, while the work is awaited: each with a chance of two in three, so that it ends.
async fn attack<T>(
    rig: &mut Rig,
    mailbox: &UnixDatagram,
    random: &mut Random,
    work: impl Future<Output = Result<T>>,
) -> Outcome<(T, u64)> {
    let mut work = std::pin::pin!(work);
    let mut killed = 0;
    loop {
        let mut pid = [0; 4];
        tokio::select! {
            done = &mut work => return Ok((done?, killed)),
            received = mailbox.recv(&mut pid) => drop(received?),
        }
        if random.below(3) > 0 {
            // The work goes on meanwhile; if it ends, there is nobody left to kill.
            let pause = tokio::time::sleep(Duration::from_micros(random.below(WITHIN_US)));
            tokio::select! {
                done = &mut work => return Ok((done?, killed)),
                () = pause => {}
            }
            let pid = u32::from_le_bytes(pid);
            if rig.hosts(0)?.contains(&pid) || rig.hosts(1)?.contains(&pid) {
                match rig.kill(Part::Host(pid)) {
                    Ok(()) => killed += 1,
                    // It ended at this moment.
                    Err(mobula_rig::Error::NotRunning(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
