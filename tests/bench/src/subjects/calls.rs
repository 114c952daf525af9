//! Calls between a driver and the host of its node, and how they hold up under load.

use std::time::{Duration, Instant};

use mobula::blocking;

use super::{
    functions::{Echo, ones, small_value, spin},
    ray::TASKS_SYNC,
};
use crate::{
    limits::pair::{MESSAGES, PARKED, SPINNING},
    measure::{Result, latencies, percentiles, quantile, rate},
    row::{Place, Probe, Row, Stage, Target},
    system::cores,
};

/// Calls on their way at once.
const BATCH: usize = 10_000;
/// Spinning tasks end by themselves after this long beyond the measurement.
const SPIN_SPARE_MS: u64 = 5000;

/// One round trip over a socket, and 20 µs.
pub const FIRST_GET: &str = "Unix socket round trip + 20 µs";
/// Threads that wait longer than this do not spin any more.
const PARKING: Duration = Duration::from_millis(2);
/// Objects that are got for the first time.
const FIRST_GETS: u64 = 500;
/// Elements of an object that lies in the store.
const STORED_ELEMENTS: usize = 32 << 10;

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::less("task round trip sync", "µs").limit(SPINNING).targets(&[Target::AtMost(25.0)]),
            Row::less("task round trip sync p99", "µs").limit(PARKED),
            Row::less("task round trip sync p99.9", "µs").limit(PARKED),
        ],
        stage: Stage::OneNode,
        run: task_round_trip,
    },
    Probe {
        rows: &[
            Row::less("actor round trip sync", "µs").limit(SPINNING).targets(&[Target::AtMost(25.0)]),
            Row::less("actor round trip sync p99", "µs").limit(PARKED),
            Row::less("actor round trip sync p99.9", "µs").limit(PARKED),
        ],
        stage: Stage::OneNode,
        run: actor_round_trip,
    },
    Probe {
        rows: &[
            Row::more("single client tasks sync, parked threads", "1/s")
                .limit(PARKED)
                .peer(TASKS_SYNC)
                .targets(&[Target::OfPeer(12.0)]),
            Row::less("task round trip sync, parked threads p50", "µs").limit(PARKED),
            Row::less("task round trip sync, parked threads p99", "µs").limit(PARKED),
            Row::less("task round trip sync, parked threads p99.9", "µs").limit(PARKED),
            Row::less("task round trip sync, parked threads: how often its caller sleeps", "times"),
        ],
        stage: Stage::OneNode,
        run: parked_round_trip,
    },
    Probe {
        rows: &[
            Row::less("first get by another host, small object", "µs")
                .limit(FIRST_GET)
                .targets(&[Target::WithinLimit(1.0)]),
            Row::less("first get by another host, small object p99", "µs").limit(FIRST_GET),
            Row::less("first get by another host, stored object", "µs")
                .limit(FIRST_GET)
                .targets(&[Target::WithinLimit(1.0)]),
            Row::less("first get by another host, stored object p99", "µs").limit(FIRST_GET),
        ],
        stage: Stage::OneNode,
        run: |place| first_gets(place, Duration::ZERO),
    },
    Probe {
        rows: &[
            Row::less("first get by another host, small object, parked threads", "µs").limit(FIRST_GET),
            Row::less("first get by another host, small object, parked threads p99", "µs").limit(FIRST_GET),
            Row::less("first get by another host, stored object, parked threads", "µs").limit(FIRST_GET),
            Row::less("first get by another host, stored object, parked threads p99", "µs").limit(FIRST_GET),
        ],
        stage: Stage::OneNode,
        run: |place| first_gets(place, PARKING),
    },
    Probe {
        rows: &[Row::more("small calls batched", "1/s")
            .limit(MESSAGES)
            .targets(&[Target::AtLeast(300_000.0)])],
        stage: Stage::OneNode,
        run: actor_batches,
    },
    Probe {
        rows: &[Row::more("small calls batched, tasks", "1/s")
            .limit(MESSAGES)
            .targets(&[Target::AtLeast(300_000.0)])],
        stage: Stage::OneNode,
        run: task_batches,
    },
    Probe {
        rows: &[
            Row::less("echo actor p50 with twice as many spinning tasks as cores", "ms"),
            Row::less("echo actor p99 with twice as many spinning tasks as cores", "ms")
                .targets(&[Target::AtMost(10.0)]),
            Row::less("echo actor p99.9 with twice as many spinning tasks as cores", "ms"),
            Row::less("small task p50 with twice as many spinning tasks as cores", "ms"),
            Row::less("small task p99 with twice as many spinning tasks as cores", "ms"),
            Row::less("small task p99.9 with twice as many spinning tasks as cores", "ms"),
        ],
        stage: Stage::OneNode,
        run: under_load,
    },
];

fn task_round_trip(place: &Place) -> Result<Vec<f64>> {
    let all = latencies(place.scale, || Ok(small_value.remote().get().map(drop)?))?;
    Ok(percentiles(&all, 1e6))
}

fn actor_round_trip(place: &Place) -> Result<Vec<f64>> {
    let actor = Echo::spawn().start();
    let all = latencies(place.scale, || Ok(actor.small_value().get().map(drop)?))?;
    Ok(percentiles(&all, 1e6))
}

/// Windows of a measurement of single calls between which all rest.
const RESTED_WINDOWS: u32 = 4;

/// Calls a second that one caller could make if nobody waited for a call when each begins, how long such calls take, and
/// how often the caller sleeps in one.
fn parked_round_trip(place: &Place) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    let (sleeps, begun) = (own_sleeps()?, Instant::now());
    while all.is_empty() || begun.elapsed() < place.scale.window * RESTED_WINDOWS {
        std::thread::sleep(PARKING);
        let start = Instant::now();
        small_value.remote().get()?;
        all.push(start.elapsed().as_secs_f64());
    }
    // One before each call is none of the call's.
    let sleeps = own_sleeps()? - sleeps - all.len() as f64;
    all.sort_by(f64::total_cmp);
    // Of all of them, as Ray's rate is: the slow ones count.
    let mut values = vec![all.len() as f64 / all.iter().sum::<f64>()];
    values.extend(percentiles(&all, 1e6));
    values.push(sleeps / all.len() as f64);
    Ok(values)
}

/// How often this thread has gone to sleep.
fn own_sleeps() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(count.ok_or("/proc/thread-self/status does not count sleeps")?.trim().parse()?)
}

/// What this process put, in the process of the actor, which rests before each.
fn first_gets(_place: &Place, rest: Duration) -> Result<Vec<f64>> {
    let actor = Echo::spawn().start();
    actor.small_value().get()?;
    let rest = u64::try_from(rest.as_micros())?;
    let of = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        [0.5, 0.99].map(|share| quantile(&all, share) * 1e6)
    };
    // As a field of a value a ref stays a ref.
    let small = (0..FIRST_GETS).map(|value| mobula::put(&value)).collect::<mobula::Result<Vec<_>>>()?;
    let small = of(actor.time_gets(small, rest).get()?);
    let tensor = ones(STORED_ELEMENTS)?;
    let stored = (0..FIRST_GETS).map(|_| mobula::put(&tensor)).collect::<mobula::Result<Vec<_>>>()?;
    Ok([small, of(actor.time_views(stored, rest).get()?)].concat())
}

fn actor_batches(place: &Place) -> Result<Vec<f64>> {
    let actor = Echo::spawn().start();
    let rate = rate(place.scale, BATCH as f64, || {
        Ok(blocking::get_all(&(0..BATCH).map(|_| actor.small_value()).collect::<Vec<_>>()).map(drop)?)
    })?;
    Ok(vec![rate])
}

fn task_batches(place: &Place) -> Result<Vec<f64>> {
    let rate = rate(place.scale, BATCH as f64, || {
        Ok(blocking::get_all(&(0..BATCH).map(|_| small_value.remote()).collect::<Vec<_>>()).map(drop)?)
    })?;
    Ok(vec![rate])
}

/// An actor's call and a task, one after the other, while all processors are wanted by others.
fn under_load(place: &Place) -> Result<Vec<f64>> {
    let actor = Echo::spawn().start();
    actor.small_value().get()?;
    // The spinning tasks hold all CPUs.
    let task = small_value.options().cpu(0.0);
    task.clone().remote().get()?;
    let milliseconds = u64::try_from(place.scale.window.as_millis())? * 4 + SPIN_SPARE_MS;
    // Each asks for half a processor, so that all of them run at once.
    let wanted = 2 * cores();
    let spinning: Vec<_> = (0..wanted).map(|_| spin.remote(milliseconds)).collect();
    while actor.spinning().get()? as usize != wanted && !spinning.iter().any(|one| one.is_ready()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let of_actor = latencies(place.scale, || Ok(actor.small_value().get().map(drop)?));
    let of_task = latencies(place.scale, || Ok(task.clone().remote().get().map(drop)?));
    let ended_early = spinning.iter().filter(|one| one.is_ready()).count();
    for one in &spinning {
        one.cancel();
    }
    // Cancelled ones fail, which is what was asked of them; the next row needs the processors.
    let _ended = blocking::wait(&spinning, spinning.len(), None)?;
    if ended_early > 0 {
        return Err(format!("{ended_early} of the spinning tasks did not spin to the end").into());
    }
    Ok([percentiles(&of_actor?, 1e3), percentiles(&of_task?, 1e3)].concat())
}
