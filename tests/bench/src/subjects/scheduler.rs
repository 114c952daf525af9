//! The scheduler alone, in this process: no sockets, no hosts, one thread.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use mobula_proto::{HostId, JobId, LeaseId, NodeId};
use mobula_scheduler::{
    Effect, Event, Millis, Options, Scheduler,
    sim::{Random, load},
};

use super::Subject;
use crate::{
    measure::{Result, quantile},
    row::{Place, Probe, Row, Stage, Target},
    system::private_memory,
};

/// What the new program that measures memory is to be.
pub const ROLE: &str = "measure-scheduler-memory";

const SEED: u64 = 1;
const QUEUES: usize = 50;
const CLASSES: usize = 5_000;
const SLOTS: u64 = 1_000_000;
/// Classes that one owner has.
const CLASSES_EACH: usize = 50;

/// All of it.
pub const SUBJECT: Subject = Subject {
    name: "scheduler",
    probes: || PROBES.to_vec(),
    sums: &[],
    loops: include_str!("../peer/scheduler.py"),
    limit: Duration::from_secs(120),
};

const FEW: &str = "placements, 2,000 nodes, 5,000 classes, 50 queues";

const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::more(FEW, "1/s").targets(&[Target::AtLeast(300_000.0)]),
            Row::less("one answer of the scheduler, 2,000 nodes, p50", "µs"),
            Row::less("one answer of the scheduler, 2,000 nodes, p99", "µs").targets(&[Target::AtMost(50.0)]),
            Row::less("leases for 1,000,000 placements, 2,000 nodes", "leases"),
        ],
        stage: Stage::Alone,
        run: |place| drain(place, 2_000),
    },
    Probe {
        rows: &[
            Row::more("placements, 10,000 nodes, 5,000 classes, 50 queues", "1/s")
                .limit(FEW)
                .targets(&[Target::OfLimit(0.7)]),
            Row::less("one answer of the scheduler, 10,000 nodes, p50", "µs"),
            Row::less("one answer of the scheduler, 10,000 nodes, p99", "µs")
                .targets(&[Target::AtMost(50.0)]),
            Row::less("leases for 1,000,000 placements, 10,000 nodes", "leases"),
        ],
        stage: Stage::Alone,
        run: |place| drain(place, 10_000),
    },
    Probe {
        rows: &[
            Row::less("the scheduler's memory for a node", "kB").targets(&[Target::AtMost(4.096)]),
            Row::less("the scheduler's memory for a class that waits", "kB")
                .targets(&[Target::AtMost(2.048)]),
            Row::less("the scheduler's memory for a hundred more tasks of each class", "kB")
                .targets(&[Target::AtMost(0.0)]),
        ],
        stage: Stage::Alone,
        run: |_| in_new_program(),
    },
];

fn owner(class: usize) -> HostId {
    let number = 1_000_000 + u32::try_from(class / CLASSES_EACH).unwrap_or(0);
    HostId { node: NodeId { number, incarnation: 1 }, seq: 1 }
}

fn demand(random: &mut Random, at: usize, nodes: u32, backlog: u32) -> Event {
    Event::Demand {
        owner: owner(at),
        key: (at % CLASSES_EACH) as u32,
        job: JobId { number: 1 + (at % 100) as u64 },
        class: Arc::new(load::class(random, at, QUEUES, nodes)),
        backlog,
        attempt: 0,
        locality: Vec::new(),
    }
}

/// Places a million slots: as many as there is room for, then always some where a lease has ended, until all are placed.
/// Gives the placements a second, quantiles of the time of a step, and how many leases that took.
fn drain(place: &Place, nodes: u32) -> Result<Vec<f64>> {
    let slots = if place.scale.quick { SLOTS / 10 } else { SLOTS };
    let mut scheduler = Scheduler::new(Options::default());
    let mut random = Random::new(SEED);
    let now = Millis(1);
    scheduler.step(Event::Queues(load::queues(QUEUES)), now);
    for up in load::nodes(nodes) {
        scheduler.step(up, now);
    }
    let each = u32::try_from(slots / CLASSES as u64)?;
    let mut events: Vec<Event> = (0..CLASSES).map(|at| demand(&mut random, at, nodes, each)).collect();
    events.reverse();

    let mut running: Vec<LeaseId> = Vec::new();
    let mut times = Vec::new();
    let (mut placed, mut leases) = (0, 0);
    let mut out = Vec::new();
    let begun = Instant::now();
    while placed < slots {
        let event = match events.pop() {
            Some(event) => event,
            None if running.is_empty() => {
                return Err(format!("only {placed} of {slots} found a place").into());
            }
            None => Event::Release { lease: running.swap_remove(random.below(running.len())) },
        };
        let from = Instant::now();
        scheduler.step_into(event, now, &mut out);
        times.push(from.elapsed().as_secs_f64() * 1e6);
        for effect in out.drain(..) {
            if let Effect::Grant(lease) = effect {
                placed += u64::from(lease.slots);
                leases += 1;
                running.push(lease.id);
            }
        }
    }
    let rate = placed as f64 / begun.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    Ok(vec![rate, quantile(&times, 0.5), quantile(&times, 0.99), f64::from(leases)])
}

/// The values that the new program prints.
fn in_new_program() -> Result<Vec<f64>> {
    let output = Command::new(std::env::current_exe()?)
        .arg(ROLE)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
    }
    let words = String::from_utf8(output.stdout)?;
    Ok(words.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
}

/// The new program: memory of nodes, of classes, and of more tasks.
pub fn serve() -> Result<()> {
    const NODES: u32 = 10_000;
    const MANY: usize = 50_000;
    let memory = || private_memory(std::process::id());
    let mut scheduler = Scheduler::new(Options::default());
    let mut random = Random::new(SEED);
    let now = Millis(1);
    scheduler.step(Event::Queues(load::queues(QUEUES)), now);
    let empty = memory()?;
    for up in load::nodes(NODES) {
        scheduler.step(up, now);
    }
    let nodes = memory()?;
    // Nothing of it is granted: only what waits is counted.
    for number in 1..=NODES {
        scheduler.step(Event::NodeDrain { node: NodeId { number, incarnation: 1 } }, now);
    }
    let drained = memory()?;
    let mut classes = BTreeMap::new();
    for at in 0..MANY {
        let event = demand(&mut random, at, NODES, 100);
        if let Event::Demand { class, .. } = &event {
            classes.insert(at, Arc::clone(class));
        }
        scheduler.step(event, now);
    }
    let waiting = memory()?;
    for (at, class) in classes {
        let (owner, key, job) =
            (owner(at), (at % CLASSES_EACH) as u32, JobId { number: 1 + (at % 100) as u64 });
        let event = Event::Demand { owner, key, job, class, backlog: 200, attempt: 0, locality: Vec::new() };
        scheduler.step(event, now);
    }
    let more = memory()?;
    println!(
        "{} {} {}",
        (nodes - empty) / f64::from(NODES) / 1e3,
        (waiting - drained) / MANY as f64 / 1e3,
        // Below a page for each hundred classes is what the clock of the machine shows.
        ((more - waiting) / MANY as f64 / 1e3 * 10.0).round() / 10.0,
    );
    Ok(())
}
