//! Places a million slots and says how fast that went: for a profiler, and to try a change without the benchmarks'
//! other dependencies. `cargo run --release -p mobula-scheduler --example placements -- [NODES
//! [SLOTS]]`

#![allow(clippy::print_stdout, reason = "it is a program that prints")]

use std::time::Instant;

use mobula_proto::NodeId;
use mobula_scheduler::{
    Effect, Event, Millis, Options, Scheduler,
    sim::{Drain, Random, ask, load},
};

const CLASSES: usize = 5_000;
const QUEUES: usize = 50;
const SLOTS: u64 = 1_000_000;

fn main() {
    memory();
    let number = |at| std::env::args().nth(at).and_then(|text| text.parse::<u32>().ok());
    let (nodes, slots) = (number(1).unwrap_or(2_000), number(2).map_or(SLOTS, u64::from));
    let mut scheduler = Scheduler::new(Options::default());
    let now = Millis(1);
    scheduler.step(Event::Queues(load::queues(QUEUES)), now);
    for up in load::nodes(nodes) {
        scheduler.step(up, now);
    }
    let mut drain = Drain::new(1, CLASSES, (SLOTS / CLASSES as u64) as u32, QUEUES, nodes);
    let (mut out, mut times) = (Vec::new(), Vec::new());
    let (mut asks, mut asked) = (Vec::new(), 0);
    let begun = Instant::now();
    while drain.placed < slots {
        let Some(event) = drain.next_event() else { break };
        let ask = matches!(event, Event::Demand { .. });
        let from = Instant::now();
        scheduler.step_into(event, now, &mut out);
        let took = from.elapsed();
        times.push(took);
        if ask {
            asks.push(took);
        }
        out.drain(..).for_each(|effect| drain.learn(&effect));
        if ask {
            asked = drain.placed;
        }
    }
    let all = begun.elapsed();
    times.sort_unstable();
    asks.sort_unstable();
    println!(
        "{nodes} nodes: {} slots in {all:.2?}, {:.0}/s; {} leases; {} steps, p50 {:.2?}, p99 {:.2?}, most {:.2?}",
        drain.placed,
        drain.placed as f64 / all.as_secs_f64(),
        drain.leases,
        times.len(),
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1],
    );
    println!(
        "  of those {} asks, which placed {asked} slots in {:.2?}: p50 {:.2?}, p99 {:.2?}",
        asks.len(),
        asks.iter().sum::<std::time::Duration>(),
        asks[asks.len() / 2],
        asks[asks.len() * 99 / 100],
    );
    groups();
}

/// Bytes of this process's memory that are its own.
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096.0
}

/// What nodes and classes that wait take.
fn memory() {
    const NODES: u32 = 10_000;
    const MANY: usize = 50_000;
    let now = Millis(1);
    let empty = resident();
    let mut scheduler = Scheduler::new(Options::default());
    scheduler.step(Event::Queues(load::queues(QUEUES)), now);
    for up in load::nodes(NODES) {
        scheduler.step(up, now);
    }
    let nodes = resident();
    for number in 1..=NODES {
        scheduler.step(Event::NodeDrain { node: NodeId { number, incarnation: 1 } }, now);
    }
    let mut random = Random::new(1);
    let drained = resident();
    for at in 0..MANY {
        scheduler.step(ask(&mut random, at, QUEUES, NODES, 100), now);
    }
    let waiting = resident();
    println!(
        "{:.0} bytes for a node, {:.0} for a class that waits",
        (nodes - empty) / f64::from(NODES),
        (waiting - drained) / MANY as f64
    );
}

/// A thousand groups on a thousand nodes.
fn groups() {
    let (mut scheduler, now) = (Scheduler::new(Options::default()), Millis(1));
    scheduler.step(Event::Queues(load::queues(QUEUES)), now);
    for up in load::nodes(1_000) {
        scheduler.step(up, now);
    }
    let mut random = Random::new(1);
    let events: Vec<Event> = (0..1_000).map(|at| load::group(&mut random, at, 8, QUEUES)).collect();
    let mut out = Vec::new();
    let begun = Instant::now();
    for event in events {
        scheduler.step_into(event, now, &mut out);
    }
    let took = begun.elapsed();
    let placed = out.iter().filter(|effect| matches!(effect, Effect::GroupPlaced { .. })).count();
    println!("{placed} of 1000 groups of 8 bundles on 1000 nodes in {took:.2?}");
}
