//! Much of everything on one node: each row checks what came out, and that nothing is left behind.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use mobula::{Cluster, Leftovers, ObjectRef, Tensor, View, blocking};
use mobula_proto::head::Usage;
use tokio::runtime::Handle;

use super::{
    functions::{Echo, ones},
    objects::many,
};
use crate::{
    limits::pair::MESSAGES,
    measure::{Result, bounded},
    row::{Probe, Row, Stage, Target},
    system::{available_memory, cluster_memory, cores},
};

/// How long what a row let go of may take to be gone.
const GOING: Duration = Duration::from_secs(20);
/// How often that is looked at. Nodes say what they hold every two seconds.
const LOOK: Duration = Duration::from_millis(20);
/// Tasks that are queued at once: just below the default budget of a program.
const QUEUED: usize = 1_000_000;
/// Actors that idle at once, for their memory, and then for their number.
const ACTORS: usize = 5_000;
const PORTION_MAX: usize = 10_000;
const ACTORS_MANY: usize = 1_000_000;
const ACTORS_TIME: Duration = Duration::from_secs(55);
/// Bytes of an object that no 32-bit offset reaches.
const LARGE_BYTES: usize = 4_100 << 20;
/// What a stored object holds at least: less travels with the call.
const STORED_BYTES: usize = 104 << 10;
const LAYERS: usize = 20;
const LAYER_TASKS: u64 = 500;

macro_rules! probes {
    ($($row:expr, $run:expr;)*) => {
        &[$(Probe {
            rows: &[$row],
            stage: Stage::Scale,
            run: |place| {
                let cluster = place.cluster.as_ref().ok_or("there is no cluster")?;
                clean(cluster, &place.runtime, || Ok(vec![timed($run)?]))
            },
        }),*]
    };
}

/// Those that fill one row with the seconds they take.
pub const PROBES: &[Probe] = probes! {
    Row::less("a task with 10,000 refs as arguments", "s"), many_arguments;
    Row::less("a task that makes 3,000 objects, all read", "s"), many_results;
    Row::less("one get of 10,000 stored objects", "s"), many_stored;
    Row::less("an object larger than 4 GiB, put and read in another process", "s"), large_object;
    Row::less("10,000 sleeping async tasks at once", "s"), many_sleeping;
    Row::less("20 layers of 500 tasks with 500 dependencies each", "s").targets(&[Target::AtMost(10.0)]), layers;
    Row::less("a tree of async tasks, 65,536 leaves", "s"), async_tree;
    Row::less("a tree of sync tasks, 256 leaves", "s"), sync_tree;
};

/// Those that look at memory too, each in a new program with a cluster of its own: what others have freed would
/// be used again, and nothing would seem to be needed.
pub const MEMORY_PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::less("a million queued tasks, submitted and drained", "s").targets(&[Target::AtMost(4.0)]),
            Row::less("memory of a queued task", "bytes").targets(&[Target::AtMost(300.0)]),
        ],
        stage: Stage::Alone,
        run: |_| in_new_program("queued"),
    },
    Probe {
        rows: &[
            Row::more("actor creation", "1/s")
                .peer("actor creation")
                .limit(MESSAGES)
                .targets(&[Target::AtLeast(50_000.0)]),
            Row::less("memory of an idle actor", "kB")
                .peer("memory of an idle actor")
                .targets(&[Target::AtMost(10.0)]),
        ],
        stage: Stage::Alone,
        run: |_| in_new_program("actors"),
    },
    Probe {
        rows: &[
            Row::more("actor creation, a million that stay", "1/s").limit(MESSAGES),
            Row::less("memory of one of a million idle actors", "kB").targets(&[Target::AtMost(10.0)]),
        ],
        stage: Stage::Alone,
        run: |_| in_new_program("many-actors"),
    },
];

/// What the new program is to be; takes what it is to measure.
pub const ROLE: &str = "measure-memory";
/// How long it may take: less than a row, so that it has ended when the row is given up.
const PROGRAM_LIMIT: Duration = Duration::from_secs(50);
/// 2 GB through the disk.
const SHUFFLE_LIMIT: Duration = Duration::from_secs(240);

/// The values that the new program prints.
pub fn in_new_program(what: &str) -> Result<Vec<f64>> {
    let output = Command::new(std::env::current_exe()?)
        .args([ROLE, what])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
    }
    let words = String::from_utf8(output.stdout)?;
    Ok(words.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
}

/// The new program.
pub async fn serve(what: String) -> Result<()> {
    let mut of = Cluster::local().nodes(1).quiet();
    if what == "shuffle" {
        of = of.store_bytes(many::SHUFFLE_STORE_BYTES);
    }
    let cluster = of.start().await?;
    let (of, runtime) = (cluster.clone(), tokio::runtime::Handle::current());
    let measured = tokio::task::spawn_blocking(move || {
        let limit = if what == "shuffle" { SHUFFLE_LIMIT } else { PROGRAM_LIMIT };
        bounded(&what.clone(), limit, move || {
            clean(&of, &runtime, || match what.as_str() {
                "queued" => queued(),
                "actors" => actors(ACTORS),
                "many-actors" => actors(ACTORS_MANY),
                "shuffle" => many::shuffle(),
                "small" => many::small(&of, &runtime),
                _ => Err(format!("{what} is nothing to measure").into()),
            })
        })
    });
    let measured = measured.await?;
    cluster.shutdown();
    let texts: Vec<String> = measured?.iter().map(f64::to_string).collect();
    println!("{}", texts.join(" "));
    Ok(())
}

/// Seconds that it takes.
fn timed(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    run()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// What a row has taken and must give back: of this process, and of the whole cluster.
#[derive(Debug)]
struct Held {
    here: Leftovers,
    /// Objects in the stores of all nodes, what waits there, and leases.
    everywhere: [u64; 3],
}

impl Held {
    fn now(cluster: &Cluster, runtime: &Handle) -> Result<Self> {
        let all = runtime.block_on(cluster.snapshot())?;
        let of = |what: fn(&Usage) -> u64| all.nodes.iter().map(|node| what(&node.usage)).sum();
        let everywhere = [of(|usage| usage.objects), of(|usage| usage.waiting), all.leases];
        Ok(Self { here: cluster.leftovers(), everywhere })
    }

    fn is_within(&self, before: &Self) -> bool {
        let (here, then) = (&self.here, &before.here);
        here.objects <= then.objects
            && here.calls <= then.calls
            && here.actors <= then.actors
            && here.store_bytes <= then.store_bytes
            && self.everywhere.iter().zip(before.everywhere).all(|(now, then)| *now <= then)
    }
}

/// Measures, and fails where something is left behind.
fn clean(cluster: &Cluster, runtime: &Handle, run: impl FnOnce() -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    let before = Held::now(cluster, runtime)?;
    let values = run()?;
    let deadline = Instant::now() + GOING;
    loop {
        let after = Held::now(cluster, runtime)?;
        if after.is_within(&before) {
            return Ok(values);
        }
        if Instant::now() >= deadline {
            return Err(format!("left behind: {after:?}, where there was {before:?}").into());
        }
        std::thread::sleep(LOOK);
    }
}

/// Fails where it is not what was wanted.
pub fn same<T: PartialEq + std::fmt::Debug>(got: T, wanted: T) -> Result<()> {
    if got == wanted { Ok(()) } else { Err(format!("the result is {got:?}, not {wanted:?}").into()) }
}

fn wrapping_sum(first: u64, rest: &[u64]) -> u64 {
    rest.iter().fold(first, |total, one| total.wrapping_add(*one))
}

#[mobula::task]
fn add_up(all: Vec<u64>) -> u64 {
    wrapping_sum(0, &all)
}

fn many_arguments() -> Result<()> {
    let all = (0..10_000u64).map(|at| mobula::put(&at)).collect::<mobula::Result<Vec<_>>>()?;
    same(add_up.remote(&all[..]).get()?, 49_995_000)
}

#[mobula::task(returns)]
fn make_many(count: u64) -> Vec<u64> {
    (0..count).collect()
}

fn many_results() -> Result<()> {
    let made = make_many.options().returns(3000).remote(3000);
    same(blocking::get_all(&made)?.iter().sum(), 2999 * 3000 / 2)
}

#[mobula::task]
fn make_stored(count: u64) -> mobula::Result<Vec<ObjectRef<Tensor>>> {
    let value = ones(STORED_BYTES / 8)?;
    (0..count).map(|_| mobula::put(&value)).collect()
}

fn many_stored() -> Result<()> {
    let made = make_stored.remote(10_000).get()?;
    let all = blocking::get_all(&made)?;
    let elements: usize = all.iter().map(Tensor::len).sum();
    same(elements, 10_000 * STORED_BYTES / 8)?;
    let first = |tensor: &Tensor| Ok(tensor.as_slice::<i64>()?.iter().step_by(512).sum::<i64>());
    let read = all.iter().map(first).sum::<Result<i64>>()?;
    same(read, 10_000 * (STORED_BYTES / 8).div_ceil(512) as i64)
}

#[mobula::task]
fn sum_tensor(tensor: View<Tensor>) -> mobula::Result<i64> {
    Ok(tensor.tensor()?.as_slice::<i64>()?.iter().sum())
}

fn large_object() -> Result<()> {
    // The value, and its copy in the store.
    let wanted = 2 * LARGE_BYTES as u64 + (2 << 30);
    let available = available_memory()?;
    if available < wanted {
        return Err(format!("it needs {wanted} bytes of free memory, and there are {available}").into());
    }
    let value = ones(LARGE_BYTES / 8)?;
    let made = mobula::put(&value)?;
    drop(value);
    same(sum_tensor.remote(&made).get()?, (LARGE_BYTES / 8) as i64)
}

static AWAKE: AtomicU32 = AtomicU32::new(0);

/// Sleeps until so many of them do at once, so that none returns before all have begun.
#[mobula::task(cpu = 0)]
async fn sleep_together(count: u32) -> u32 {
    AWAKE.fetch_add(1, Ordering::Relaxed);
    while AWAKE.load(Ordering::Relaxed) < count {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    1
}

#[mobula::task(cpu = 0)]
async fn forget_sleepers() {
    AWAKE.store(0, Ordering::Relaxed);
}

fn many_sleeping() -> Result<()> {
    let all: Vec<_> = (0..10_000).map(|_| sleep_together.remote(10_000)).collect();
    let slept: u32 = blocking::get_all(&all)?.iter().sum();
    forget_sleepers.remote().get()?;
    same(slept, 10_000)
}

#[mobula::task]
fn add_all(first: u64, rest: Vec<u64>) -> u64 {
    wrapping_sum(first, &rest)
}

fn layers() -> Result<()> {
    let mut layer: Vec<ObjectRef<u64>> =
        (0..LAYER_TASKS).map(|at| add_all.remote(at, Vec::<u64>::new())).collect();
    let mut wanted: Vec<u64> = (0..LAYER_TASKS).collect();
    for _ in 1..LAYERS {
        layer = (0..LAYER_TASKS).map(|at| add_all.remote(at, &layer[..])).collect();
        let before = wrapping_sum(0, &wanted);
        wanted = (0..LAYER_TASKS).map(|at| at.wrapping_add(before)).collect();
    }
    same(blocking::get_all(&layer)?, wanted)
}

#[mobula::task]
async fn async_leaves(depth: u32) -> mobula::Result<u64> {
    if depth == 0 {
        return Ok(1);
    }
    let (left, right) = (async_leaves.remote(depth - 1), async_leaves.remote(depth - 1));
    Ok(left.await? + right.await?)
}

fn async_tree() -> Result<()> {
    same(async_leaves.remote(16).get()?, 65_536)
}

#[mobula::task]
fn sync_leaves(depth: u32) -> mobula::Result<u64> {
    if depth == 0 {
        return Ok(1);
    }
    let (left, right) = (sync_leaves.remote(depth - 1), sync_leaves.remote(depth - 1));
    Ok(left.get()? + right.get()?)
}

fn sync_tree() -> Result<()> {
    same(sync_leaves.remote(8).get()?, 256)
}

/// Holds a processor without using it until somebody gives up on it.
#[mobula::task(retries = 0)]
fn hold() {
    while !mobula::context::cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[mobula::task]
fn same_number(value: u64) -> u64 {
    value
}

/// All that are queued are so at the same time: the processors are held meanwhile.
fn queued() -> Result<Vec<f64>> {
    same(same_number.remote(1).get()?, 1)?;
    let holding: Vec<_> = (0..cores()).map(|_| hold.remote()).collect();
    let before = cluster_memory()?;
    let begun = Instant::now();
    let all: Vec<_> = (0..QUEUED as u64).map(|value| same_number.remote(value)).collect();
    let submitted = begun.elapsed();
    let bytes_each = (cluster_memory()? - before) / QUEUED as f64;
    let begun = Instant::now();
    for one in &holding {
        one.cancel();
    }
    let total: u64 = blocking::get_all(&all)?.iter().sum();
    let drained = begun.elapsed();
    same(total, (QUEUED as u64 - 1) * QUEUED as u64 / 2)?;
    Ok(vec![(submitted + drained).as_secs_f64(), bytes_each])
}

/// Each has answered a call, so that it exists. Fails where so many take longer than [`ACTORS_TIME`].
fn actors(count: usize) -> Result<Vec<f64>> {
    let first = Echo::spawn().start();
    first.small_value().get()?;
    let before = cluster_memory()?;
    let begun = Instant::now();
    let mut all = Vec::with_capacity(count);
    // In portions, so that a lack of memory or of time shows before it hurts.
    let mut portion = 100;
    while all.len() < count {
        let new: Vec<_> = (0..portion.min(count - all.len())).map(|_| Echo::spawn().start()).collect();
        blocking::get_all(&new.iter().map(|actor| actor.small_value()).collect::<Vec<_>>())?;
        all.extend(new);
        let (available, elapsed) = (available_memory()?, begun.elapsed());
        if available < 4 << 30 {
            return Err(format!("{} actors left only {available} bytes of memory", all.len()).into());
        }
        if elapsed > ACTORS_TIME && all.len() < count {
            return Err(format!("only {} actors after {elapsed:?}", all.len()).into());
        }
        portion = (2 * portion).min(PORTION_MAX);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let bytes = cluster_memory()? - before;
    Ok(vec![count as f64 / seconds, bytes / count as f64 / 1e3])
}
