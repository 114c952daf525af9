//! Starting clusters, what an idle one uses, and large objects between nodes.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use mobula::{Cluster, Strategy};

use super::functions::{make_tensor, ones, small_value};
use crate::{
    limits::{memory::MEMCPY, quic::PLAIN},
    measure::{Result, quantile},
    row::{Place, Probe, Row, Stage, Target},
    system::{Role, cluster_processes, cpu_seconds, mobula_binary, private_memory},
};

/// An idle cluster is left alone for this long before it is looked at.
const SETTLE: Duration = Duration::from_secs(2);

/// Those that are always there.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[Row::less("embedded cluster ready", "ms").targets(&[Target::AtMost(100.0)])],
        stage: Stage::Alone,
        run: embedded_ready,
    },
    Probe {
        rows: &[
            Row::less("idle cluster CPU", "% of a core").targets(&[Target::AtMost(1.0)]),
            Row::less("idle agent memory", "MB").targets(&[Target::AtMost(30.0)]),
            Row::less("host memory no-op job", "MB").targets(&[Target::AtMost(20.0)]),
            Row::less("idle head memory", "MB"),
        ],
        stage: Stage::Fresh,
        run: idle,
    },
    Probe {
        rows: &[
            Row::more("put 48 MB two seconds after a job's start", "GB/s")
                .limit(MEMCPY)
                .targets(&[Target::OfLimit(0.5)]),
            Row::more("put 800 MB, first", "GB/s").limit(MEMCPY),
            Row::more("put 800 MB, after another is gone", "GB/s")
                .limit(MEMCPY)
                .targets(&[Target::OfLimit(0.85)]),
        ],
        stage: Stage::Alone,
        run: puts,
    },
    Probe {
        rows: &[Row::more("1 GiB tensor from node 2 read on node 1, MTU 65000", "GB/s")
            .limit(PLAIN)
            .targets(&[Target::OfLimit(0.8)])],
        stage: Stage::TwoNodes,
        run: pull_tensor,
    },
];

/// `mobula up` where there is such a thing, and what comes closest where there is not.
pub fn up_probe() -> Probe {
    const UP: Row = Row::less("mobula up ready", "s").targets(&[Target::AtMost(1.0)]);
    const LOCAL: Row = Row::less("mobula up ready (measured: Cluster::local().nodes(2) start)", "s")
        .targets(&[Target::AtMost(1.0)]);
    if has_up() {
        Probe { rows: &[UP], stage: Stage::Alone, run: up_ready }
    } else {
        Probe { rows: &[LOCAL], stage: Stage::Alone, run: local_ready }
    }
}

fn median_start(place: &Place, start: impl Fn() -> Result<f64>) -> Result<Vec<f64>> {
    let mut all = (0..place.scale.starts).map(|_| start()).collect::<Result<Vec<_>>>()?;
    all.sort_by(f64::total_cmp);
    Ok(vec![quantile(&all, 0.5)])
}

fn embedded_ready(place: &Place) -> Result<Vec<f64>> {
    median_start(place, || {
        let begun = Instant::now();
        let cluster = place.runtime.block_on(Cluster::embedded().quiet().start())?;
        let ready = begun.elapsed();
        cluster.shutdown();
        Ok(ready.as_secs_f64() * 1e3)
    })
}

fn local_ready(place: &Place) -> Result<Vec<f64>> {
    median_start(place, || {
        let begun = Instant::now();
        let cluster = place.runtime.block_on(Cluster::local().nodes(2).quiet().start())?;
        let ready = begun.elapsed();
        cluster.shutdown();
        Ok(ready.as_secs_f64())
    })
}

fn has_up() -> bool {
    let help = mobula_binary().and_then(|binary| Command::new(binary).args(["up", "--help"]).output().ok());
    help.is_some_and(|output| {
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("up")
    })
}

fn up_ready(place: &Place) -> Result<Vec<f64>> {
    median_start(place, || {
        let binary = mobula_binary().ok_or("there is no `mobula` beside this program any more")?;
        let home = tempfile::tempdir()?;
        let begun = Instant::now();
        let up = Command::new(&binary)
            .args(["up", "--nodes", "2", "--detach"])
            .env("MOBULA_HOME", home.path())
            .output()?;
        let elapsed = begun.elapsed();
        Command::new(&binary).arg("down").env("MOBULA_HOME", home.path()).output()?;
        if up.status.success() {
            Ok(elapsed.as_secs_f64())
        } else {
            Err(format!("`mobula up` failed: {}", String::from_utf8_lossy(&up.stderr)).into())
        }
    })
}

fn idle(place: &Place) -> Result<Vec<f64>> {
    // The host is there and has worked.
    small_value.remote().get()?;
    std::thread::sleep(SETTLE);
    let processes = cluster_processes()?;
    for role in [Role::Head, Role::Agent, Role::Host] {
        if !processes.iter().any(|(_, other)| *other == role) {
            return Err(format!("no {role:?} among the processes of the cluster: {processes:?}").into());
        }
    }
    let used = || processes.iter().map(|(pid, _)| cpu_seconds(*pid)).sum::<f64>();
    let (begun, before) = (Instant::now(), used());
    std::thread::sleep(place.scale.idle);
    let share = (used() - before) / begun.elapsed().as_secs_f64() * 100.0;
    let memory = |role| -> Result<f64> {
        let mut most = 0f64;
        for (pid, _) in processes.iter().filter(|(_, other)| *other == role) {
            most = most.max(private_memory(*pid)?);
        }
        Ok(most / 1e6)
    };
    Ok(vec![share, memory(Role::Agent)?, memory(Role::Host)?, memory(Role::Head)?])
}

fn puts(place: &Place) -> Result<Vec<f64>> {
    let (small, large) = (ones(6_000_000)?, ones(100_000_000)?);
    let cluster = place.runtime.block_on(Cluster::local().nodes(1).quiet().start())?;
    std::thread::sleep(SETTLE);
    let put = |value: &mobula::Tensor| -> Result<f64> {
        let begun = Instant::now();
        let made = mobula::put(value)?;
        let rate = value.as_bytes()?.len() as f64 / begun.elapsed().as_secs_f64() / 1e9;
        drop(made);
        Ok(rate)
    };
    let measure = || -> Result<Vec<f64>> {
        let (early, cold) = (put(&small)?, put(&large)?);
        let mut again = (0..3).map(|_| put(&large)).collect::<Result<Vec<_>>>()?;
        again.sort_by(f64::total_cmp);
        Ok(vec![early, cold, quantile(&again, 0.5)])
    };
    let measured = measure();
    cluster.shutdown();
    measured
}

fn pull_tensor(place: &Place) -> Result<Vec<f64>> {
    let node = place.far.ok_or("the cluster has no second node")?;
    let bytes = place.scale.bulk_bytes;
    let strategy = Strategy::Node { node, soft: false };
    let mut rate = 0.0;
    // The second counts: the first starts the host and the connection between the agents.
    for bytes in [bytes / 16, bytes] {
        let made = make_tensor.options().strategy(strategy.clone()).remote(bytes as u64);
        mobula::blocking::wait(std::slice::from_ref(&made), 1, None)?;
        let begun = Instant::now();
        let tensor = made.get()?;
        rate = bytes as f64 / begun.elapsed().as_secs_f64() / 1e9;
        if tensor.as_bytes()?.len() != bytes || tensor.as_slice::<i64>()?.iter().any(|element| *element != 1)
        {
            return Err("the tensor arrived changed".into());
        }
    }
    Ok(vec![rate])
}
