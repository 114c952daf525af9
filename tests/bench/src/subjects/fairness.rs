//! Sharing, on a real cluster of processes: what two equal queues get while one of them is flooded, and how soon something
//! runs there that matters more.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mobula::{Cluster, JobQueue, ObjectRef};

use crate::{
    measure::Result,
    row::{Place, Probe, Row, Stage, Target},
};

/// Tasks that are there at once in the flooded queue.
const FLOOD: usize = 10_000;
/// How long each takes, in milliseconds.
const TASK_MS: u64 = 30;
/// Nodes of the cluster, and CPUs of each: tasks sleep, so they need not be there.
const NODES: u32 = 2;
const CPUS: f64 = 2.0;
/// How many tasks the other queue has waiting or running at any time.
const STEADY: usize = 12;
/// Windows of other rows for which shares are looked at: a minute, unless `--window` or `--quick` says otherwise.
const WINDOWS: u32 = 120;
/// Until both have their leases.
const WARM_UP: Duration = Duration::from_secs(2);
/// How often something urgent arrives, and how long after the last: its lease has gone back by then.
const URGENT: usize = 10;
const URGENT_PAUSE: Duration = Duration::from_secs(1);
/// How often where what runs has to be stopped for it, and how long that ran then.
const STOPPING: usize = 3;
const STOPPING_PAUSE: Duration = Duration::from_secs(2);

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::more("two equal queues, one flooded, for 60 s: the lesser share, of what is due", "of 1")
                .targets(&[Target::AtLeast(0.95)]),
            Row::less("until an urgent task runs in the flooded queue, the longest of ten", "s")
                .targets(&[Target::AtMost(2.0)]),
        ],
        stage: Stage::Alone,
        run: |place| in_cluster(place, flooded),
    },
    Probe {
        rows: &[Row::less(
            "until an urgent task runs where all that runs is endless, the longest of three",
            "s",
        )
        .targets(&[Target::AtMost(2.0)])],
        stage: Stage::Alone,
        run: |place| in_cluster(place, |_| endless()),
    },
];

fn in_cluster(place: &Place, measure: impl FnOnce(&Place) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    let cluster = Cluster::local().nodes(NODES).cpus(CPUS).quiet();
    let cluster =
        ["flooded", "steady"].into_iter().map(JobQueue::new).fold(cluster, mobula::Builder::define_queue);
    let cluster = place.runtime.block_on(cluster.start())?;
    let measured = measure(place);
    cluster.shutdown();
    measured
}

/// Milliseconds since 1970, by the clock that all processes share.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// When it ended.
#[mobula::task]
fn nap() -> u64 {
    std::thread::sleep(Duration::from_millis(TASK_MS));
    now()
}

/// When it began.
#[mobula::task]
fn begun() -> u64 {
    now()
}

/// Somebody else who has work, in a process of its own.
struct Other;

#[mobula::actor(isolation = "process")]
impl Other {
    fn new() -> Self {
        Self
    }

    /// When each of its tasks ended, of which so many are there until a moment.
    fn work(&mut self, at_once: u64, until: u64) -> mobula::Result<Vec<u64>> {
        let one = || nap.options().queue("steady").remote();
        let mut there: VecDeque<ObjectRef<u64>> = (0..at_once).map(|_| one()).collect();
        let mut ends = Vec::new();
        while let Some(oldest) = there.pop_front() {
            ends.push(oldest.get()?);
            if now() < until {
                there.push_back(one());
            }
        }
        Ok(ends)
    }
}

fn flooded(place: &Place) -> Result<Vec<f64>> {
    let window = place.scale.window * WINDOWS;
    let other = Other::spawn().start();
    other.work(1, 0).get()?;
    let flood: Vec<_> = (0..FLOOD).map(|_| nap.options().queue("flooded").remote()).collect();
    let from = now() + u64::try_from(WARM_UP.as_millis())?;
    let to = from + u64::try_from(window.as_millis())?;
    let others = other.work(STEADY as u64, to);
    std::thread::sleep(WARM_UP + window);
    let done: Vec<u64> =
        flood.iter().filter(|one| one.is_ready()).map(|one| Ok(one.get()?)).collect::<Result<_>>()?;
    let inside = |ends: &[u64]| ends.iter().filter(|end| (from..to).contains(*end)).count() as f64;
    if done.len() == FLOOD {
        return Err("the flood was over before the time was".into());
    }
    // Then it has all of the cluster.
    let theirs = inside(&others.get()?);
    let ours = inside(&done);
    eprintln!("    {ours} of the flooded queue, {theirs} of the other");
    let due = (ours + theirs) / 2.0;
    let share = ours.min(theirs) / due;
    let urgent = || begun.options().queue("flooded").priority(10).remote();
    let urgent = longest(URGENT, URGENT_PAUSE, &urgent)?;
    for one in &flood {
        one.cancel();
    }
    Ok(vec![share, urgent])
}

/// Runs until it is stopped.
#[mobula::task]
async fn for_ever() {
    std::future::pending::<()>().await;
}

fn endless() -> Result<Vec<f64>> {
    let count = NODES as usize * CPUS as usize * 4;
    let all: Vec<_> =
        (0..count).map(|_| for_ever.options().queue("flooded").restartable(true).remote()).collect();
    std::thread::sleep(STOPPING_PAUSE);
    let urgent = || begun.options().queue("flooded").priority(10).remote();
    let urgent = longest(STOPPING, STOPPING_PAUSE, &urgent)?;
    for one in &all {
        one.cancel();
    }
    Ok(vec![urgent])
}

/// The longest, in seconds, that one of so many tasks waits until it begins.
fn longest(count: usize, pause: Duration, urgent: &dyn Fn() -> ObjectRef<u64>) -> Result<f64> {
    let mut longest = 0;
    for _ in 0..count {
        let asked = now();
        longest = longest.max(urgent().get()?.saturating_sub(asked));
        std::thread::sleep(pause);
    }
    Ok(longest as f64 / 1e3)
}
