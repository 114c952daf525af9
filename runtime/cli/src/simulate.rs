//! `mobula simulate`.

use std::{fmt::Write as _, fs::File, io::Read as _};

use mobula_proto::{NodeId, queue};
use mobula_scheduler::{
    Event, Millis, Options,
    sim::{Replay, Summary, trace},
};

use crate::{
    args::SimulateArgs,
    error::{self, Error},
    ready::say,
    status::table,
};

/// Replays a trace and says how that went.
pub fn run(args: &SimulateArgs) -> Result<(), Error> {
    queue::validate(&args.queue).map_err(Error::Queues)?;
    let mut text = String::new();
    let file = File::open(&args.file).map_err(error::file("open", &args.file))?;
    // One more than may be, so that what is too long is known to be.
    file.take(trace::TEXT_MAX as u64 + 1)
        .read_to_string(&mut text)
        .map_err(error::file("read", &args.file))?;
    let count = args.nodes.iter().map(|nodes| u64::from(nodes.count)).sum();
    if let Some((node, _)) = args.lose.iter().find(|(node, _)| !(1..=count).contains(&u64::from(*node))) {
        return Err(Error::NoSuchNode { node: *node, count });
    }
    let tasks = trace::parse(&text).map_err(|error| Error::Trace { file: args.file.clone(), error })?;
    drop(text);
    let totals = args.nodes.iter().flat_map(|nodes| std::iter::repeat_n(&nodes.total, nodes.count as usize));
    let nodes = (1..).zip(totals).map(|(number, total)| Event::NodeUp {
        node: NodeId { number, incarnation: 1 },
        total: total.clone(),
        devices: Vec::new(),
        labels: Vec::new(),
    });
    let mut replay = Replay::new(&tasks, nodes, args.queue.clone(), Options::default());
    for (number, at) in &args.lose {
        replay.lose(NodeId { number: *number, incarnation: 1 }, *at);
    }
    let summary = replay.run();
    say(if args.json { json(&summary) } else { people(&summary) }.trim_end());
    Ok(())
}

fn seconds(time: Millis) -> f64 {
    time.0 as f64 / 1000.0
}

/// For programs.
fn json(summary: &Summary) -> String {
    let delays = summary.delays.iter().map(|delay| {
        serde_json::json!({
            "resources": delay.resources.to_string(),
            "priority": delay.priority,
            "tasks": delay.tasks,
            "mean_s": seconds(delay.mean),
            "p50_s": seconds(delay.p50),
            "p99_s": seconds(delay.p99),
            "max_s": seconds(delay.most),
        })
    });
    let utilisation: serde_json::Map<String, serde_json::Value> =
        summary.utilisation.iter().map(|(kind, part)| (kind.to_string(), (*part).into())).collect();
    let all = serde_json::json!({
        "tasks": summary.tasks,
        "finished": summary.finished,
        "refused": summary.refused,
        "refused_because": summary.reason,
        "span_s": seconds(summary.span),
        "utilisation": utilisation,
        "queueing_delay": delays.collect::<Vec<_>>(),
        "fairness": summary.fairness,
        "preemptions": summary.preemptions,
        "nodes_lost": summary.nodes_lost,
        "stopped": summary.stopped,
        "lost_s": seconds(summary.lost),
        "hash": format!("{:016x}", summary.hash),
        "broken": summary.broken,
    });
    format!("{all:#}")
}

/// The same for people.
fn people(summary: &Summary) -> String {
    let Summary { tasks, finished, refused, fairness, preemptions, stopped, .. } = summary;
    let mut text = format!("{finished} of {tasks} tasks finished, in {:.1} s\n", seconds(summary.span));
    let mut line = |what: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _fine = text.write_fmt(what);
    };
    if let Some(reason) = &summary.reason {
        line(format_args!("{refused} refused, the first because {reason}\n"));
    }
    for (kind, part) in &summary.utilisation {
        line(format_args!("{:.1}% of {kind} in use\n", part * 100.0));
    }
    line(format_args!("fairness between jobs {fairness:.3} (1 is even)\n"));
    line(format_args!(
        "{preemptions} leases had to make room; {stopped} tasks were stopped, which had run {:.1} s\n",
        seconds(summary.lost)
    ));
    if summary.nodes_lost > 0 {
        line(format_args!("{} nodes were lost\n", summary.nodes_lost));
    }
    if let Some(what) = &summary.broken {
        line(format_args!("This is a mistake in Mobula; please report it: {what}\n"));
    }
    line(format_args!("hash {:016x}\n\n", summary.hash));
    let rows = summary.delays.iter().map(|delay| {
        let time = |time| format!("{:.1} s", seconds(time));
        vec![
            delay.resources.to_string(),
            delay.priority.to_string(),
            delay.tasks.to_string(),
            time(delay.mean),
            time(delay.p50),
            time(delay.p99),
            time(delay.most),
        ]
    });
    text + &table(&["RESOURCES", "PRIORITY", "TASKS", "WAITED (MEAN)", "P50", "P99", "MAX"], rows)
}
