//! Rounds: every probe once, in its stage's cluster, the order alternating.

use std::{collections::BTreeMap, time::Duration};

use mobula::{Cluster, NodeId};
use tokio::runtime::Handle;

use crate::{
    Core,
    limits::{memory, pair, quic},
    measure::{Result, TimeUp, bounded},
    report::{Outcome, Report},
    row::{Place, Probe, Row, Stage},
    subjects::{calls, own, ray},
    system,
};

/// Longest that a cluster may take to start or to end.
const CLUSTER_LIMIT: Duration = Duration::from_secs(30);

/// The order of the rows in the table is that of the probes.
fn probes() -> Vec<Probe> {
    let mut all = vec![pair::PROBE, memory::PROBE, quic::PROBE];
    all.extend_from_slice(ray::PROBES);
    all.extend_from_slice(calls::PROBES);
    all.extend_from_slice(own::PROBES);
    all.push(own::up_probe());
    all
}

/// Those that fill a row of this name, or a limit of one.
fn chosen(filter: &str) -> Vec<Probe> {
    let all = probes();
    let matches = |row: &Row| row.name.contains(filter);
    let limits: Vec<&str> = all
        .iter()
        .flat_map(|probe| probe.rows)
        .filter(|row| matches(row))
        .filter_map(|row| row.limit)
        .collect();
    let wanted = |row: &Row| matches(row) || limits.contains(&row.name);
    all.into_iter().filter(|probe| probe.rows.iter().any(wanted)).collect()
}

/// Measures, prints and saves.
pub fn core(core: &Core, runtime: &Handle) -> Result<()> {
    let probes = chosen(&core.rows);
    let rows: Vec<Row> = probes.iter().flat_map(|probe| probe.rows).copied().collect();
    let (machine, commit) = (system::machine(), system::commit());
    let mut outcomes = BTreeMap::new();
    let mut report = Report::new(machine.clone(), commit.clone(), &rows, &outcomes);
    for round in 0..core.rounds() {
        eprintln!("round {} of {}", round + 1, core.rounds());
        let mut stages = [Stage::Alone, Stage::Fresh, Stage::OneNode, Stage::TwoNodes];
        let mut order = probes.clone();
        if round % 2 == 1 {
            stages.reverse();
            order.reverse();
        }
        for stage in stages {
            let of_stage: Vec<Probe> = order.iter().filter(|probe| probe.stage == stage).copied().collect();
            Round { core, runtime, round, stage }.run(&of_stage, &mut outcomes);
        }
        report = Report::new(machine.clone(), commit.clone(), &rows, &outcomes);
        if let Some(path) = &core.json {
            report.save(path)?;
        }
    }
    println!("{}", report.table());
    Ok(())
}

struct Round<'a> {
    core: &'a Core,
    runtime: &'a Handle,
    round: usize,
    stage: Stage,
}

/// A cluster, and a node of it that is not the driver's.
type Started = (Option<Cluster>, Option<NodeId>);

impl Round<'_> {
    fn run(&self, probes: &[Probe], outcomes: &mut BTreeMap<&'static str, Outcome>) {
        let mut started: Option<Started> = None;
        for probe in probes {
            // What failed once would only fail again, slowly.
            if probe
                .rows
                .iter()
                .any(|row| outcomes.get(row.name).is_some_and(|before| before.error.is_some()))
            {
                continue;
            }
            let result = match started.take().map_or_else(|| self.start(), Ok) {
                Ok(cluster) => {
                    let result = self.measure(probe, cluster.1);
                    if result.as_ref().is_err_and(|error| error.is::<TimeUp>()) {
                        end(cluster);
                    } else {
                        started = Some(cluster);
                    }
                    result
                }
                Err(error) => Err(error),
            };
            record(probe, result, outcomes);
        }
        if let Some(cluster) = started {
            end(cluster);
        }
    }

    fn measure(&self, probe: &Probe, far: Option<NodeId>) -> Result<Vec<f64>> {
        let place = Place { round: self.round, scale: self.core.scale(), runtime: self.runtime.clone(), far };
        let run = probe.run;
        bounded(probe.rows[0].name, self.core.limit(), move || run(&place))
    }

    fn start(&self) -> Result<Started> {
        let nodes = match self.stage {
            Stage::Alone => return Ok((None, None)),
            Stage::OneNode | Stage::Fresh => 1,
            Stage::TwoNodes => 2,
        };
        let runtime = self.runtime.clone();
        bounded("the start of the cluster", CLUSTER_LIMIT, move || {
            let cluster = runtime.block_on(Cluster::local().nodes(nodes).start())?;
            let own = mobula::put(&0u64)?.id().owner().node;
            let far = runtime.block_on(cluster.nodes())?.into_iter().find(|node| *node != own);
            Ok((Some(cluster), far))
        })
    }
}

/// Ends a cluster. One that does not end is left behind, and said so.
fn end((cluster, _): Started) {
    let Some(cluster) = cluster else { return };
    let ended = bounded("the end of the cluster", CLUSTER_LIMIT, move || {
        cluster.shutdown();
        Ok(())
    });
    if let Err(error) = ended {
        eprintln!("{error}");
    }
}

fn record(probe: &Probe, result: Result<Vec<f64>>, outcomes: &mut BTreeMap<&'static str, Outcome>) {
    for (at, row) in probe.rows.iter().enumerate() {
        let outcome = outcomes.entry(row.name).or_default();
        match &result {
            Ok(values) => {
                let value = values.get(at).copied().unwrap_or_default();
                eprintln!("  {}: {value:.3} {}", row.name, row.unit);
                outcome.values.push(value);
            }
            Err(error) => {
                eprintln!("  {}: {error}", row.name);
                outcome.error = Some(error.to_string());
            }
        }
    }
}
