//! From nothing to a first result, and hosts of a task's own.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mobula::Cluster;

use super::functions::{Echo, own_process, small_value};
use crate::{
    measure::{Result, quantile},
    peer,
    row::{Place, Probe, Row, Stage, Target},
};

/// What the child is to be; takes `embedded` or `local`.
pub const ROLE: &str = "first-result";
/// Leases that nobody uses are gone after this long.
const LEASE_IDLE: Duration = Duration::from_millis(800);

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::less("from nothing to the first result, embedded", "s")
                .peer(peer::FIRST)
                .targets(&[Target::AtMost(0.06)]),
            Row::less("from nothing to the first result, a cluster of processes", "s")
                .peer(peer::FIRST)
                .targets(&[Target::AtMost(0.7)]),
        ],
        stage: Stage::Alone,
        run: first_results,
    },
    Probe {
        rows: &[Row::less("first call of an actor with a process of its own, cold", "ms")
            .targets(&[Target::AtMost(30.0)])],
        stage: Stage::Starts,
        run: cold_host,
    },
    Probe {
        rows: &[Row::less("a task with a process of its own, warm", "ms")],
        stage: Stage::Starts,
        run: warm_host,
    },
];

fn first_results(place: &Place) -> Result<Vec<f64>> {
    ["embedded", "local"]
        .iter()
        .map(|mode| {
            let mut all = (0..place.scale.starts).map(|_| first_result(mode)).collect::<Result<Vec<_>>>()?;
            all.sort_by(f64::total_cmp);
            Ok(quantile(&all, 0.5))
        })
        .collect()
}

/// A program starts, starts a cluster, calls a task and has its result.
fn first_result(mode: &str) -> Result<f64> {
    let begun = Instant::now();
    let mut child = Command::new(std::env::current_exe()?)
        .args([ROLE, mode])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let out = child.stdout.take().ok_or("the program has no output")?;
    let read = BufReader::new(out).read_line(&mut line);
    let elapsed = begun.elapsed();
    let status = child.wait()?;
    read?;
    if line.trim() != "2" || !status.success() {
        return Err(format!("the program said {line:?} and ended with {status}").into());
    }
    Ok(elapsed.as_secs_f64())
}

/// The program of [`first_result`].
pub async fn serve(mode: &str) -> Result<()> {
    let builder = if mode == "local" { Cluster::local().nodes(1) } else { Cluster::embedded() };
    let cluster = builder.quiet().start().await?;
    println!("{}", small_value.remote().await?.len());
    cluster.shutdown();
    Ok(())
}

/// Those before it live on, so that each needs a new process.
fn cold_host(place: &Place) -> Result<Vec<f64>> {
    let mut living = BTreeMap::new();
    let mut all = Vec::new();
    for _ in 0..place.scale.starts {
        let begun = Instant::now();
        let actor = Echo::spawn().options(|options| options.isolation("process")).start();
        let process = actor.process().get()?;
        all.push(begun.elapsed().as_secs_f64() * 1e3);
        if living.insert(process, actor).is_some() {
            return Err(format!("process {process} has two actors").into());
        }
    }
    all.sort_by(f64::total_cmp);
    Ok(vec![quantile(&all, 0.5)])
}

/// Its lease has gone back each time, its process has not.
fn warm_host(place: &Place) -> Result<Vec<f64>> {
    let call = || own_process.options().isolation("process").remote().get();
    let mut process = call()?;
    let mut all = Vec::new();
    for _ in 0..place.scale.starts {
        std::thread::sleep(LEASE_IDLE);
        let begun = Instant::now();
        let next = call()?;
        let elapsed = begun.elapsed();
        if next == process {
            all.push(elapsed.as_secs_f64() * 1e3);
        }
        process = next;
    }
    if all.is_empty() {
        return Err("no process was used twice".into());
    }
    all.sort_by(f64::total_cmp);
    Ok(vec![quantile(&all, 0.5)])
}
