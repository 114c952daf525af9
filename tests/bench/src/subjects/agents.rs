//! A real head with many agents, of which nearly all are idle: what it costs the head to place work among them.
//!
//! The agents are the agents' own code, with sessions, joining and registration as ever, all in one other process;
//! only the hosts that they start are simulated ([`crowd`]).

pub mod crowd;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use mobula::roles::{Process, Ready, Task};

use crate::{
    measure::{Result, quantile},
    row::{Place, Probe, Row, Stage, Target},
    system::{cpu_seconds, private_memory},
};

/// What the process of the agents is to be.
pub const ROLE: &str = "crowd-of-agents";

/// Tasks that are placed and done, each under a lease of its own.
const TASKS: u64 = 100_000;
/// The same with `--quick`.
const TASKS_QUICK: u64 = 5_000;
/// Agents that have joined are left alone for this long before they are looked at.
const SETTLE: Duration = Duration::from_secs(3);

/// All work is done in so many parts, the clusters taking turns: so whatever else the machine does, it does to all of them.
const PARTS: u64 = 5;

macro_rules! rows {
    ($(($count:literal, $held:expr, $spread:expr)),*) => {
        &[$(
            Row {
                limit: $held,
                targets: flat($held),
                ..Row::less(concat!($count, " agents, 10 with work: the head's time for 1,000 leases"), "ms")
            },
            Row::less(concat!($count, " agents, 10 with work: the same for the first fifth of leases"), "ms"),
            Row::less(concat!($count, " agents, 10 with work: the same for the last fifth of leases"), "ms")
                .limit(concat!($count, " agents, 10 with work: the same for the first fifth of leases"))
                .targets(&[Target::WithinLimit(1.15)]),
            Row::less(concat!($count, " agents, 10 with work: from a demand to its lease, p50"), "ms"),
            Row::less(concat!($count, " agents, 10 with work: from a demand to its lease, p99"), "ms"),
            Row::more(concat!($count, " agents, 10 with work: leases"), "1/s"),
            Row {
                limit: $spread,
                ..Row::less(concat!($count, " agents: the head's processor time for 1,000 leases"), "ms")
            },
            Row::less(concat!($count, " agents: from a demand to its lease, p50"), "ms"),
            Row::less(concat!($count, " agents: from a demand to its lease, p99"), "ms"),
            Row::more(concat!($count, " agents: leases, of 64 that want one all the time"), "1/s"),
            Row::less(concat!($count, " idle agents: the head's processor time"), "ms a second"),
            Row::less(concat!($count, " idle agents: the head's memory for each"), "kB"),
            Row::less(concat!($count, " agents: what the head's memory gained for each when all had worked"), "kB"),
            Row::less(concat!($count, " agents: the head's memory that 1,000 further leases leave behind"), "kB")
                .targets(&[Target::AtMost(10.0)]),
        )*]
    };
}

const HELD_10: Option<&str> = Some("10 agents, 10 with work: the head's time for 1,000 leases");
const SPREAD_10: Option<&str> = Some("10 agents: the head's processor time for 1,000 leases");

/// Where there is a cluster without idle agents to hold it against, it is to cost what that costs.
const fn flat(limit: Option<&str>) -> &'static [Target] {
    match limit {
        Some(_) => &[Target::WithinLimit(1.15)],
        None => &[],
    }
}

/// All of them.
pub const PROBES: &[Probe] = &[Probe {
    rows: rows!(("10", None, None), ("100", HELD_10, SPREAD_10), ("500", HELD_10, SPREAD_10)),
    stage: Stage::Alone,
    run: measure,
}];

/// Heads with few, with many and with very many agents: idle, then at work in ten places each, then in as many as the work
/// finds.
fn measure(place: &Place) -> Result<Vec<f64>> {
    let tasks = if place.scale.quick { TASKS_QUICK } else { TASKS };
    let mut clusters = Vec::new();
    for count in [10, 100, 500] {
        clusters.push(Cluster::start(count, tasks)?);
    }
    std::thread::sleep(SETTLE);
    let before: Vec<f64> = clusters.iter().map(Cluster::time).collect();
    std::thread::sleep(place.scale.idle);
    for (cluster, before) in clusters.iter_mut().zip(before) {
        cluster.idle = (cluster.time() - before) / place.scale.idle.as_secs_f64();
        cluster.memory = private_memory(cluster.head.id())?;
    }
    for how in [crowd::HELD, crowd::SPREAD] {
        for part in 0..PARTS {
            for cluster in &mut clusters {
                cluster.work(how)?;
                if how == crowd::SPREAD && part == 0 {
                    cluster.worked = private_memory(cluster.head.id())?;
                }
            }
        }
    }
    let mut values = Vec::new();
    for cluster in clusters {
        values.extend(cluster.end()?);
    }
    Ok(values)
}

/// A head, and its agents.
struct Cluster {
    // Dropped before the head is.
    crowd: Crowd,
    head: Process,
    _home: tempfile::TempDir,
    count: u32,
    /// Leases in all, of each way to work.
    tasks: u64,
    /// Bytes of the head before there were agents; then before they worked; then after the first part of the work that
    /// goes to all of them.
    alone: f64,
    memory: f64,
    worked: f64,
    /// Processor time that the head takes of each second while nobody works.
    idle: f64,
    /// Of each way to work.
    parts: BTreeMap<&'static str, Vec<Part>>,
}

/// How a part of the work went.
struct Part {
    /// Processor time of the head, in seconds.
    time: f64,
    /// From a demand to its lease, in seconds.
    p50: f64,
    p99: f64,
    /// Leases a second.
    rate: f64,
}

impl Cluster {
    fn start(count: u32, tasks: u64) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let task = Task::Head { home: home.path().join("head"), tokens: count, queues: Vec::new() };
        let (head, ready) = Process::start(&std::env::current_exe()?, &[], &task)?;
        let Ready::Head { quic, tokens, .. } = ready else {
            return Err(format!("the head said {ready:?}").into());
        };
        let alone = private_memory(head.id())?;
        let mut crowd = Crowd::start(&quic.to_string(), tasks / PARTS, &tokens)?;
        crowd.hear()?;
        let parts = BTreeMap::new();
        Ok(Self { crowd, head, _home: home, count, tasks, alone, memory: 0.0, worked: 0.0, idle: 0.0, parts })
    }

    /// Processor time of the head until now, in seconds.
    fn time(&self) -> f64 {
        cpu_seconds(self.head.id())
    }

    /// One part of the work.
    fn work(&mut self, how: &'static str) -> Result<()> {
        let before = self.time();
        self.crowd.say(how)?;
        let told = self.crowd.hear()?;
        let told: Vec<f64> =
            told.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [p50, p99, rate] = told[..] else { return Err(format!("the agents said {told:?}").into()) };
        let part = Part { time: self.time() - before, p50, p99, rate };
        self.parts.entry(how).or_default().push(part);
        Ok(())
    }

    /// The values of its rows.
    fn end(mut self) -> Result<Vec<f64>> {
        let thousands = self.tasks as f64 / 1e3;
        let gained = (self.worked - self.memory) / f64::from(self.count);
        let further = thousands * (PARTS - 1) as f64 / PARTS as f64;
        let left = (private_memory(self.head.id())? - self.worked) / further;
        let mut values = Vec::new();
        for (how, parts) in [crowd::HELD, crowd::SPREAD].map(|how| (how, self.parts.remove(how))) {
            let parts = parts.unwrap_or_default();
            // Each as if all of the work were like it.
            let times = parts.iter().map(|part| part.time * 1e3 / thousands * PARTS as f64);
            let times: Vec<f64> = times.collect();
            values.push(times.iter().sum::<f64>() / PARTS as f64);
            if how == crowd::HELD {
                values.extend(times.first());
                values.extend(times.last());
            }
            values.push(middle(parts.iter().map(|part| part.p50 * 1e3)));
            values.push(middle(parts.iter().map(|part| part.p99 * 1e3)));
            values.push(middle(parts.iter().map(|part| part.rate)));
        }
        let each = (self.memory - self.alone) / f64::from(self.count);
        values.extend([self.idle * 1e3, each / 1e3, gained / 1e3, left / 1e3]);
        self.crowd.end()?;
        Ok(values)
    }
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// The process of the agents.
struct Crowd {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Crowd {
    fn start(head: &str, tasks: u64, tokens: &[String]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([ROLE, head, &tasks.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(mut to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the agents' process has no pipes".into());
        };
        for token in tokens {
            writeln!(to, "{token}")?;
        }
        writeln!(to)?;
        Ok(Self { child, to: Some(to), from: BufReader::new(from) })
    }

    fn say(&mut self, how: &str) -> Result<()> {
        Ok(self.to.as_mut().map_or(Ok(()), |to| writeln!(to, "{how}\n"))?)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.from.read_line(&mut line)? {
            0 => Err("the agents' process ended before its work: see what it wrote above".into()),
            _ => Ok(line),
        }
    }

    fn end(mut self) -> Result<()> {
        drop(self.to.take());
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the agents' process ended with {status}").into()) }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Both fail where it has ended.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
