//! Calls of an actor on another node, over QUIC between two agents.

use mobula::{Strategy, blocking};

use super::functions::{Echo, EchoHandle};
use crate::{
    limits::quic::{MESSAGE_BATCH, MESSAGES},
    measure::{Result, latencies, percentiles, rate},
    row::{Place, Probe, Row, Stage, Target},
    system::{cluster_processes, cpu_seconds, loopback_traffic},
};

/// What a call costs at least: the way over the network, and those between the processes of either node.
pub const NEAR_RAW: &str = "quinn round trip + 3 Unix socket round trips";

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::less("call of an actor on another node", "µs")
                .limit(NEAR_RAW)
                .targets(&[Target::WithinLimit(1.0)]),
            Row::less("call of an actor on another node p99", "µs").limit(NEAR_RAW),
            Row::less("call of an actor on another node p99.9", "µs").limit(NEAR_RAW),
        ],
        stage: Stage::TwoNodes,
        run: sync,
    },
    Probe {
        rows: &[
            Row::more("calls of an actor on another node, a thousand at once", "1/s")
                .limit(MESSAGES)
                .targets(&[Target::OfLimit(0.5)]),
            Row::less("bytes on the wire for 1,000 calls of an actor on another node", "bytes"),
            Row::less("processor time of 1,000 calls of an actor on another node, batched", "ms"),
        ],
        stage: Stage::TwoNodes,
        run: many,
    },
];

fn far_actor(place: &Place) -> Result<EchoHandle> {
    let node = place.far.ok_or("the cluster has no second node")?;
    let actor =
        Echo::spawn().options(move |options| options.strategy(Strategy::Node { node, soft: false })).start();
    actor.small_value().get()?;
    Ok(actor)
}

fn sync(place: &Place) -> Result<Vec<f64>> {
    let actor = far_actor(place)?;
    let all = latencies(place.scale, || Ok(actor.small_value().get().map(drop)?))?;
    Ok(percentiles(&all, 1e6))
}

fn many(place: &Place) -> Result<Vec<f64>> {
    let actor = far_actor(place)?;
    let processes: Vec<u32> =
        cluster_processes()?.iter().map(|(pid, _)| *pid).chain([std::process::id()]).collect();
    let used = || processes.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let (mut calls, bytes, cpu) = (0.0, loopback_traffic()?.bytes, used());
    let rate = rate(place.scale, MESSAGE_BATCH as f64, || {
        calls += MESSAGE_BATCH as f64;
        let batch: Vec<_> = (0..MESSAGE_BATCH).map(|_| actor.small_value()).collect();
        Ok(blocking::get_all(&batch).map(drop)?)
    })?;
    Ok(vec![rate, (loopback_traffic()?.bytes - bytes) / calls * 1e3, (used() - cpu) * 1e3 / calls * 1e3])
}
