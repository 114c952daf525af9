//! Calls, objects, starts and idle costs: what every program uses.

use std::time::Duration;

use super::{Subject, calls, cost, groups, nodes, own, ray, scale, starts};
use crate::{
    limits::{memory, pair, quic},
    row::{Probe, Row},
};

/// All of it.
pub const SUBJECT: Subject = Subject {
    name: "core",
    probes,
    sums: &[
        Row::more(pair::BATCHES, "1/s").is_sum(&[(1.0 / pair::MESSAGE_BATCH as f64, pair::MESSAGES)], 0.0),
        Row::less(calls::FIRST_GET, "µs").is_sum(&[(1.0, pair::SOCKET)], 20.0),
        Row::less(nodes::NEAR_RAW, "µs").is_sum(&[(1.0, quic::ROUND_TRIP), (3.0, pair::SOCKET)], 0.0),
    ],
    loops: include_str!("../peer/core.py"),
    limit: Duration::from_secs(60),
};

fn probes() -> Vec<Probe> {
    let mut all = vec![pair::PROBE, memory::PROBE, quic::PROBE, quic::MESSAGES_PROBE];
    all.extend_from_slice(ray::PROBES);
    all.extend_from_slice(groups::PROBES);
    all.extend_from_slice(calls::PROBES);
    all.extend_from_slice(cost::PROBES);
    all.extend_from_slice(nodes::PROBES);
    all.extend_from_slice(own::PROBES);
    all.push(own::up_probe());
    all.extend_from_slice(starts::PROBES);
    all.extend_from_slice(scale::PROBES);
    all.extend_from_slice(scale::MEMORY_PROBES);
    all
}
