//! Calls between a driver and the host of its node, and how they hold up under load.

use std::time::Duration;

use mobula::blocking;

use super::functions::{Echo, small_value, spin};
use crate::{
    limits::pair::PARKED,
    measure::{Result, latencies, quantile, rate},
    row::{Place, Probe, Row, Stage, Target},
    system::cores,
};

/// Calls on their way at once.
const BATCH: usize = 10_000;
/// Spinning tasks end by themselves after this long beyond the measurement.
const SPIN_SPARE_MS: u64 = 5000;

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::less("task round trip sync", "µs").limit(PARKED).targets(&[Target::AtMost(25.0)]),
            Row::less("task round trip sync p99", "µs").limit(PARKED),
        ],
        stage: Stage::OneNode,
        run: task_round_trip,
    },
    Probe {
        rows: &[
            Row::less("actor round trip sync", "µs").limit(PARKED).targets(&[Target::AtMost(25.0)]),
            Row::less("actor round trip sync p99", "µs").limit(PARKED),
        ],
        stage: Stage::OneNode,
        run: actor_round_trip,
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
        rows: &[Row::less("echo actor p99 with twice as many spinning tasks as cores", "ms")
            .targets(&[Target::AtMost(10.0)])],
        stage: Stage::OneNode,
        run: echo_under_load,
    },
];

fn task_round_trip(place: &Place) -> Result<Vec<f64>> {
    let all = latencies(place.scale, || Ok(small_value.remote().get().map(drop)?))?;
    Ok(vec![quantile(&all, 0.5) * 1e6, quantile(&all, 0.99) * 1e6])
}

fn actor_round_trip(place: &Place) -> Result<Vec<f64>> {
    let actor = Echo::spawn().start();
    let all = latencies(place.scale, || Ok(actor.small_value().get().map(drop)?))?;
    Ok(vec![quantile(&all, 0.5) * 1e6, quantile(&all, 0.99) * 1e6])
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
    Ok(vec![quantile(&all?, 0.99) * 1e3])
}
