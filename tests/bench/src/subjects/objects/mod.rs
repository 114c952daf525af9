//! The object store: on one node, between nodes, and under pressure. Each file fills some of the rows.

mod local;
pub mod many;
mod pressure;
mod transfer;

use std::time::Duration;

use super::Subject;
use crate::{
    limits::{memory, quic},
    row::Probe,
};

/// All of it.
pub const SUBJECT: Subject = Subject {
    name: "objects",
    probes,
    sums: &[],
    loops: include_str!("../../peer/objects.py"),
    limit: Duration::from_secs(300),
};

fn probes() -> Vec<Probe> {
    let mut all = vec![memory::PROBE, quic::PLAIN_PROBE, quic::ETHERNET_PROBE];
    all.extend_from_slice(local::PROBES);
    all.extend_from_slice(transfer::PROBES);
    all.extend_from_slice(pressure::PROBES);
    all.extend_from_slice(many::PROBES);
    all
}
