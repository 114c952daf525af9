//! The scheduler alone, in this process: no sockets, no hosts, one thread. And what it decides, in a head with many agents
//! and in a cluster of processes.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mobula_proto::NodeId;
use mobula_scheduler::{
    Effect, Event, Millis, Options, Scheduler,
    sim::{Drain, Packing, Random, ask, load, packing},
};

use super::{Subject, agents, fairness};
use crate::{
    measure::{Result, quantile},
    row::{Place, Probe, Row, Stage, Target},
    system::private_memory,
};

/// What the new program that measures memory is to be.
pub const ROLE: &str = "measure-scheduler-memory";

const SEED: u64 = 1;
/// How many clusters are packed.
const SEEDS: u64 = 20;
/// When it begins.
const NOW: Millis = Millis(1);
/// About as many steps as a millisecond has room for.
const STEPS_EACH_MS: u64 = 300;
const QUEUES: usize = 50;
const CLASSES: usize = 5_000;
const SLOTS: u64 = 1_000_000;

/// All of it.
pub const SUBJECT: Subject = Subject {
    name: "scheduler",
    probes: || [PROBES, agents::PROBES, fairness::PROBES].concat(),
    sums: &[],
    loops: include_str!("../peer/scheduler.py"),
    limit: Duration::from_secs(600),
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
        rows: &[Row::less("1,000 placement groups of 8 bundles, 1,000 nodes", "ms")
            .targets(&[Target::AtMost(100.0)])],
        stage: Stage::Alone,
        run: |_| groups(),
    },
    Probe {
        rows: &[
            Row::more(
                "work placed on 200 nodes, of what best-fit-decreasing places, mean of 20 seeds",
                "of 1",
            )
            .targets(&[Target::AtLeast(0.95)]),
            Row::more("the same, the least of 20 seeds", "of 1"),
            Row::more(
                "the same, of what it places if work comes one by one and it may move all each time",
                "of 1",
            )
            .targets(&[Target::AtLeast(0.95)]),
        ],
        stage: Stage::Alone,
        run: |_| Ok(packed()),
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

/// Places a million slots: as many as there is room for, then always some where a lease has ended, until all are placed.
/// Gives the placements a second, quantiles of the time of a step, and how many leases that took.
fn drain(place: &Place, nodes: u32) -> Result<Vec<f64>> {
    let slots = if place.scale.quick { SLOTS / 10 } else { SLOTS };
    let mut scheduler = cluster(nodes);
    let mut drain = Drain::new(SEED, CLASSES, u32::try_from(slots / CLASSES as u64)?, QUEUES, nodes);
    let mut times = Vec::new();
    let mut out = Vec::new();
    let begun = Instant::now();
    while drain.placed < slots {
        // As much time goes by as it takes, and what is due then is done, as in a head.
        let now = Millis(NOW.0 + times.len() as u64 / STEPS_EACH_MS);
        let due = scheduler.next_tick().is_some_and(|due| due <= now);
        let Some(event) = due.then_some(Event::Tick).or_else(|| drain.next_event()) else {
            return Err(format!("only {} of {slots} found a place", drain.placed).into());
        };
        let from = Instant::now();
        scheduler.step_into(event, now, &mut out);
        times.push(from.elapsed().as_secs_f64() * 1e6);
        out.drain(..).for_each(|effect| drain.learn(&effect));
    }
    let rate = drain.placed as f64 / begun.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    Ok(vec![rate, quantile(&times, 0.5), quantile(&times, 0.99), drain.leases as f64])
}

/// A scheduler with the queues, and so many nodes.
fn cluster(nodes: u32) -> Scheduler {
    let mut scheduler = Scheduler::new(Options::default());
    scheduler.step(Event::Queues(load::queues(QUEUES)), NOW);
    for up in load::nodes(nodes) {
        scheduler.step(up, NOW);
    }
    scheduler
}

/// Places groups of eight bundles, in all arrangements, and gives the milliseconds that all took.
fn groups() -> Result<Vec<f64>> {
    const GROUPS: usize = 1_000;
    let mut scheduler = cluster(1_000);
    let mut random = Random::new(SEED);
    let events: Vec<Event> = (0..GROUPS).map(|at| load::group(&mut random, at, 8, QUEUES)).collect();
    let (mut out, mut placed) = (Vec::new(), 0);
    let begun = Instant::now();
    for event in events {
        scheduler.step_into(event, NOW, &mut out);
        placed += out.drain(..).filter(|effect| matches!(effect, Effect::GroupPlaced { .. })).count();
    }
    let took = begun.elapsed().as_secs_f64() * 1e3;
    if placed != GROUPS {
        return Err(format!("only {placed} of {GROUPS} groups found a place").into());
    }
    Ok(vec![took])
}

/// Work that was placed, of what an oracle places that sees all of it first: on average, and for the worst seed; and for
/// the worst seed of what one places that takes work as it comes.
fn packed() -> Vec<f64> {
    let (mut sum, mut least, mut least_moving) = (0.0, f64::INFINITY, f64::INFINITY);
    for seed in 0..SEEDS {
        let Packing { ours, oracle, moving } = packing(seed, 200);
        sum += ours / oracle;
        least = least.min(ours / oracle);
        least_moving = least_moving.min(ours / moving);
    }
    vec![sum / SEEDS as f64, least, least_moving]
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
    let empty = memory()?;
    let mut scheduler = cluster(NODES);
    let mut random = Random::new(SEED);
    let nodes = memory()?;
    // Nothing of it is granted: only what waits is counted.
    for number in 1..=NODES {
        scheduler.step(Event::NodeDrain { node: NodeId { number, incarnation: 1 } }, NOW);
    }
    let drained = memory()?;
    let mut asks: Vec<Event> = (0..MANY).map(|at| ask(&mut random, at, QUEUES, NODES, 100)).collect();
    for ask in &asks {
        scheduler.step(ask.clone(), NOW);
    }
    let waiting = memory()?;
    for ask in &mut asks {
        if let Event::Demand { backlog, .. } = ask {
            *backlog = 200;
        }
        scheduler.step(ask.clone(), NOW);
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
