//! Calls between a driver and the host of its node, and how they hold up under load.

use std::time::{Duration, Instant};

use mobula::blocking;

use super::{
    functions::{Echo, ones, small_value, spin},
    ray::TASKS_SYNC,
};
use crate::{
    limits::pair::{PARKED, SPINNING},
    measure::{Result, latencies, quantile, rate},
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
const FIRST_GETS: u64 = 200;
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
        rows: &[Row::more("single client tasks sync, parked threads", "1/s")
            .limit(PARKED)
            .peer(TASKS_SYNC)
            .targets(&[Target::OfPeer(12.0)])],
        stage: Stage::OneNode,
        run: parked_round_trip,
    },
    Probe {
        rows: &[
            Row::less("first get by another host, small object", "µs")
                .limit(FIRST_GET)
                .targets(&[Target::WithinLimit(1.0)]),
            Row::less("first get by another host, stored object", "µs")
                .limit(FIRST_GET)
                .targets(&[Target::WithinLimit(1.0)]),
        ],
        stage: Stage::OneNode,
        run: first_gets,
    },
    Probe {
        rows: &[Row::more("small calls batched", "1/s").targets(&[Target::AtLeast(300_000.0)])],
        stage: Stage::OneNode,
        run: actor_batches,
    },
    Probe {
        rows: &[Row::more("small calls batched, tasks", "1/s").targets(&[Target::AtLeast(300_000.0)])],
        stage: Stage::OneNode,
        run: task_batches,
    },
    Probe {
        rows: &[
            Row::less("echo actor p50 with twice as many spinning tasks as cores", "ms"),
            Row::less("echo actor p99 with twice as many spinning tasks as cores", "ms")
                .targets(&[Target::AtMost(10.0)]),
            Row::less("echo actor p99.9 with twice as many spinning tasks as cores", "ms"),
        ],
        stage: Stage::OneNode,
        run: echo_under_load,
    },
];

/// The median, the 99th and the 99.9th percentile, in units of which a second has so many.
fn percentiles(ascending: &[f64], units: f64) -> Vec<f64> {
    [0.5, 0.99, 0.999].iter().map(|share| quantile(ascending, *share) * units).collect()
}

fn task_round_trip(place: &Place) -> Result<Vec<f64>> {
    let all = latencies(place.scale, || Ok(small_value.remote().get().map(drop)?))?;
    Ok(percentiles(&all, 1e6))
}

fn actor_round_trip(place: &Place) -> Result<Vec<f64>> {
    let actor = Echo::spawn().start();
    let all = latencies(place.scale, || Ok(actor.small_value().get().map(drop)?))?;
    Ok(percentiles(&all, 1e6))
}

/// Calls a second that one caller could make were all threads asleep when each begins.
fn parked_round_trip(place: &Place) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    let begun = Instant::now();
    while all.is_empty() || begun.elapsed() < place.scale.window {
        std::thread::sleep(PARKING);
        let start = Instant::now();
        small_value.remote().get()?;
        all.push(start.elapsed().as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    Ok(vec![1.0 / quantile(&all, 0.5)])
}

/// What this process put, in the process of the actor.
fn first_gets(_place: &Place) -> Result<Vec<f64>> {
    let actor = Echo::spawn().start();
    actor.small_value().get()?;
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        quantile(&all, 0.5) * 1e6
    };
    // As a field of a value a ref stays a ref.
    let small = (0..FIRST_GETS).map(|value| mobula::put(&value)).collect::<mobula::Result<Vec<_>>>()?;
    let tensor = ones(STORED_ELEMENTS)?;
    let stored = (0..FIRST_GETS).map(|_| mobula::put(&tensor)).collect::<mobula::Result<Vec<_>>>()?;
    Ok(vec![median(actor.time_gets(small).get()?), median(actor.time_views(stored).get()?)])
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

fn echo_under_load(place: &Place) -> Result<Vec<f64>> {
    let actor = Echo::spawn().start();
    actor.small_value().get()?;
    let milliseconds = u64::try_from(place.scale.window.as_millis())? * 2 + SPIN_SPARE_MS;
    // Each asks for half a processor, so that all of them run at once.
    let wanted = 2 * cores();
    let spinning: Vec<_> = (0..wanted).map(|_| spin.remote(milliseconds)).collect();
    while actor.spinning().get()? as usize != wanted && !spinning.iter().any(|one| one.is_ready()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let all = latencies(place.scale, || Ok(actor.small_value().get().map(drop)?));
    let ended_early = spinning.iter().filter(|one| one.is_ready()).count();
    for one in &spinning {
        one.cancel();
    }
    // Cancelled ones fail, which is what was asked of them; the next row needs the processors.
    let _ended = blocking::wait(&spinning, spinning.len(), None)?;
    if ended_early > 0 {
        return Err(format!("{ended_early} of the spinning tasks did not spin to the end").into());
    }
    Ok(percentiles(&all?, 1e3))
}
