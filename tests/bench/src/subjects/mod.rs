//! What is measured of Mobula, by subject.

pub mod agents;
pub mod calls;
pub mod core;
pub mod cost;
pub mod fairness;
pub mod functions;
pub mod groups;
pub mod nodes;
pub mod objects;
pub mod own;
pub mod ray;
pub mod scale;
pub mod scheduler;
pub mod starts;

use std::time::Duration;

use crate::row::{Probe, Row};

/// What is measured and reported together, by one command of this program.
pub struct Subject {
    /// The command's name, and the heading of its section.
    pub name: &'static str,
    /// What fills its rows, in the order of the table.
    pub probes: fn() -> Vec<Probe>,
    /// Limits that others add up to.
    pub sums: &'static [Row],
    /// Ray's side: a Python program with a function for each row that has a peer, over `peer/harness.py`.
    pub loops: &'static str,
    /// How long a row may take unless `--limit` says otherwise.
    pub limit: Duration,
}

/// Of all rows that there are.
#[cfg(test)]
pub fn row_names() -> Vec<&'static str> {
    [core::SUBJECT, objects::SUBJECT, scheduler::SUBJECT]
        .iter()
        .flat_map(|subject| (subject.probes)().into_iter().flat_map(|probe| probe.rows).chain(subject.sums))
        .map(|row| row.name)
        .collect()
}
