//! Rounds: every probe once, in its stage's cluster, the order alternating.

use std::time::Duration;

use mobula::{Cluster, NodeId};
use tokio::runtime::Handle;

use crate::{
    Options,
    measure::{Result, Scale, TimeUp, bounded},
    peer::{self, Ray},
    report::{Measured, Outcomes, Report},
    row::{Place, Probe, Row, Side, Stage},
    subjects::Subject,
    system,
};

/// Longest that a cluster may take to start or to end.
const CLUSTER_LIMIT: Duration = Duration::from_secs(30);

/// Those that fill a row of this name, or a limit of one.
fn chosen(subject: &Subject, filter: &str) -> Vec<Probe> {
    let all = (subject.probes)();
    let matches = |row: &Row| row.name.contains(filter);
    let mut limits: Vec<&str> = Vec::new();
    for row in all.iter().flat_map(|probe| probe.rows).filter(|row| matches(row)) {
        limits.extend(row.limit);
    }
    for sum in subject.sums {
        if limits.contains(&sum.name)
            && let Side::Sum(parts, _) = sum.side
        {
            limits.extend(parts.iter().map(|(_, name)| *name));
        }
    }
    let wanted = |row: &Row| matches(row) || limits.contains(&row.name);
    all.into_iter().filter(|probe| probe.rows.iter().any(wanted)).collect()
}

/// Measures, prints and saves.
pub fn subject(subject: &'static Subject, options: &Options, runtime: &Handle) -> Result<()> {
    let probes = chosen(subject, &options.rows);
    let mut rows: Vec<Row> = probes.iter().flat_map(|probe| probe.rows).copied().collect();
    rows.extend_from_slice(subject.sums);
    let there = |name: &str| probes.iter().flat_map(|probe| probe.rows).any(|row| row.name == name);
    rows.retain(|row| match row.side {
        Side::Sum(parts, _) => parts.iter().all(|(_, name)| there(name)),
        Side::Mobula | Side::Limit => true,
    });
    let ray = options.against_ray.then(Ray::installed).transpose()?;
    let mut machine = system::machine();
    machine.insert("rounds".into(), options.rounds().into());
    machine.insert("window_s".into(), options.scale().window.as_secs_f64().into());
    if ray.is_some() {
        machine.insert("ray".into(), peer::VERSION.into());
    }
    let commit = system::commit();
    let report =
        |measured: &Measured| Report::new(subject.name, machine.clone(), commit.clone(), &rows, measured);
    let mut measured = Measured { peer_name: format!("Ray {}", peer::VERSION), ..Measured::default() };
    for round in 0..options.rounds() {
        eprintln!("round {} of {}", round + 1, options.rounds());
        let mobula_first = round.is_multiple_of(2);
        for mobula in [mobula_first, !mobula_first] {
            if mobula {
                own_round(subject, options, runtime, round, &probes, &mut measured.mobula);
            } else if let Some(ray) = &ray {
                peer_round(ray, subject, options, &rows, &mut measured.peer)?;
            }
        }
        if let Some(path) = &options.json {
            report(&measured).save(path)?;
        }
    }
    println!("{}", report(&measured).table());
    Ok(())
}

fn own_round(
    subject: &Subject,
    options: &Options,
    runtime: &Handle,
    round: usize,
    probes: &[Probe],
    outcomes: &mut Outcomes,
) {
    let mut stages =
        [Stage::Alone, Stage::Fresh, Stage::Starts, Stage::OneNode, Stage::TwoNodes, Stage::Scale];
    let mut order = probes.to_vec();
    if round % 2 == 1 {
        stages.reverse();
        order.reverse();
    }
    for stage in stages {
        let of_stage: Vec<Probe> = order.iter().filter(|probe| probe.stage == stage).copied().collect();
        let limit = options.limit(subject);
        Round { scale: options.scale(), limit, runtime, round, stage }.run(&of_stage, outcomes);
    }
}

fn peer_round(
    ray: &Ray,
    subject: &Subject,
    options: &Options,
    rows: &[Row],
    outcomes: &mut Outcomes,
) -> Result<()> {
    let mut wanted: Vec<&'static str> = rows.iter().filter_map(|row| row.peer).collect();
    wanted.sort_unstable();
    wanted.dedup();
    // What failed once would only fail again, slowly; the start is measured whatever else is.
    wanted.retain(|name| {
        *name != peer::FIRST && outcomes.get(*name).is_none_or(|before| before.error.is_none())
    });
    for (name, value) in ray.measure(subject.loops, &wanted, options.scale())? {
        let outcome = outcomes.entry(name.into()).or_default();
        match value {
            Ok(value) => outcome.values.push(value),
            Err(error) => outcome.error = Some(error.to_string()),
        }
    }
    Ok(())
}

struct Round<'a> {
    scale: Scale,
    limit: Duration,
    runtime: &'a Handle,
    round: usize,
    stage: Stage,
}

/// A cluster, and a node of it that is not the driver's.
type Started = (Option<Cluster>, Option<NodeId>);

impl Round<'_> {
    fn run(&self, probes: &[Probe], outcomes: &mut Outcomes) {
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
                    let result = self.measure(probe, &cluster);
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

    fn measure(&self, probe: &Probe, (cluster, far): &Started) -> Result<Vec<f64>> {
        let place = Place {
            round: self.round,
            scale: self.scale,
            runtime: self.runtime.clone(),
            cluster: cluster.clone(),
            far: *far,
        };
        let run = probe.run;
        bounded(probe.rows[0].name, self.limit, move || run(&place))
    }

    fn start(&self) -> Result<Started> {
        let nodes = match self.stage {
            Stage::Alone => return Ok((None, None)),
            Stage::OneNode | Stage::Fresh | Stage::Starts | Stage::Scale => 1,
            Stage::TwoNodes => 2,
        };
        let runtime = self.runtime.clone();
        bounded("the start of the cluster", CLUSTER_LIMIT, move || {
            let cluster = runtime.block_on(Cluster::local().nodes(nodes).start())?;
            let own = mobula::put(&0u64)?.id().owner.node;
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

fn record(probe: &Probe, result: Result<Vec<f64>>, outcomes: &mut Outcomes) {
    for (at, row) in probe.rows.iter().enumerate() {
        let outcome = outcomes.entry(row.name.into()).or_default();
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
