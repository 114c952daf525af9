//! A real head with many agents, of which nearly all are idle: what it costs the head to place work among them.
//!
//! The agents are the agents' own code, with sessions, joining and registration as ever, all in one other process;
//! only the hosts that they start are simulated ([`crowd`]).

pub mod crowd;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use mobula::roles::{Process, Ready, Task};

use crate::{
    measure::Result,
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

macro_rules! rows {
    ($count:literal, $cost:expr) => {
        &[
            $cost,
            Row::less(concat!($count, " agents: from a demand to its lease, p50"), "ms"),
            Row::less(concat!($count, " agents: from a demand to its lease, p99"), "ms"),
            Row::more(concat!($count, " agents: leases, of 64 that want one all the time"), "1/s"),
            Row::less(concat!($count, " idle agents: the head's processor time"), "ms a second"),
            Row::less(concat!($count, " idle agents: the head's memory for each"), "kB"),
        ]
    };
}

const COST_10: &str = "10 agents: the head's processor time for 1,000 leases";

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: rows!("10", Row::less(COST_10, "ms")),
        stage: Stage::Alone,
        run: |place| measure(place, 10),
    },
    Probe {
        rows: rows!(
            "100",
            Row::less("100 agents: the head's processor time for 1,000 leases", "ms")
                .limit(COST_10)
                .targets(&[Target::WithinLimit(1.25)])
        ),
        stage: Stage::Alone,
        run: |place| measure(place, 100),
    },
    Probe {
        rows: rows!(
            "500",
            Row::less("500 agents: the head's processor time for 1,000 leases", "ms")
                .limit(COST_10)
                .targets(&[Target::WithinLimit(1.25)])
        ),
        stage: Stage::Alone,
        run: |place| measure(place, 500),
    },
];

/// A head, then so many agents, idle, then at work.
fn measure(place: &Place, count: u32) -> Result<Vec<f64>> {
    let home = tempfile::tempdir()?;
    let task = Task::Head { home: home.path().join("head"), tokens: count, queues: Vec::new() };
    let (head, ready) = Process::start(&std::env::current_exe()?, &[], &task)?;
    let Ready::Head { quic, tokens, .. } = ready else {
        return Err(format!("the head said {ready:?}").into());
    };
    let alone = private_memory(head.id())?;
    let tasks = if place.scale.quick { TASKS_QUICK } else { TASKS };
    let mut crowd = Crowd::start(&quic.to_string(), tasks, &tokens)?;
    crowd.hear()?;
    std::thread::sleep(SETTLE);
    let memory = (private_memory(head.id())? - alone) / f64::from(count);
    let (begun, before) = (Instant::now(), cpu_seconds(head.id()));
    std::thread::sleep(place.scale.idle);
    let idle = (cpu_seconds(head.id()) - before) / begun.elapsed().as_secs_f64();
    let before = cpu_seconds(head.id());
    crowd.say()?;
    let told = crowd.hear()?;
    let used = cpu_seconds(head.id()) - before;
    let told: Vec<f64> = told.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [p50, p99, rate] = told[..] else { return Err(format!("the agents said {told:?}").into()) };
    crowd.end()?;
    Ok(vec![used * 1e3 / (tasks as f64 / 1e3), p50 * 1e3, p99 * 1e3, rate, idle * 1e3, memory / 1e3])
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

    fn say(&mut self) -> Result<()> {
        Ok(self.to.as_mut().map_or(Ok(()), |to| writeln!(to))?)
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
