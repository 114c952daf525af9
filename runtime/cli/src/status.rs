//! `mobula status`.

use std::collections::BTreeSet;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use mobula_proto::{
    head::{NodeSnapshot, RefusedSnapshot, ScalingSnapshot, Snapshot, UnmetSnapshot},
    resource::bytes_text,
};

use crate::{api::Api, args::StatusArgs, drain, error::Error, groups, home::Home, queue, ready::say};

/// Labels that every node carries; they are in `--json` only.
const OWN_LABELS: &str = "mobula.io/";

/// Shows the cluster.
pub fn run(args: &StatusArgs) -> Result<(), Error> {
    let (json, snapshot) = Api::open(&Home::of(&args.home)?)?.status()?;
    say(if args.json { json } else { text(&snapshot) }.trim_end());
    Ok(())
}

/// The snapshot for people.
fn text(snapshot: &Snapshot) -> String {
    let mut text = format!("Cluster {}, {} granted\n\n", snapshot.cluster, count(snapshot.leases, "lease"));
    if snapshot.nodes.is_empty() {
        text.push_str("No nodes: add one with `mobula node`, and a token from `mobula token create`.\n");
    } else {
        text.push_str(&nodes(&snapshot.nodes));
    }
    for node in &snapshot.nodes {
        if let Some(draining) = &node.draining {
            let (name, left) = (&node.name, drain::left(draining));
            text.push_str(&format!(
                "\n{} ({name}) drains: {left}; within {:.0} s.\n",
                node.node, draining.seconds_left
            ));
        }
    }
    if let Some(scaling) = &snapshot.scaling {
        text.push_str(&format!("\n{}", started(scaling)));
    }
    if !snapshot.jobs.is_empty() {
        let rows = snapshot.jobs.iter().map(|job| {
            let queue = if job.queue.is_empty() { queue::DEFAULT } else { &job.queue };
            let slots = job.slots.to_string();
            vec![job.job.clone(), job.name.clone(), queue.to_owned(), job.driver.clone(), slots]
        });
        text.push_str(&format!("\n{}", table(&["JOB", "NAME", "QUEUE", "DRIVER", "SLOTS"], rows)));
    }
    if !snapshot.queues.is_empty() {
        text.push_str(&format!("\n{}", queue::text(&snapshot.queues)));
    }
    if !snapshot.groups.is_empty() {
        text.push_str(&format!("\n{}", groups::text(&snapshot.groups)));
    }
    if !snapshot.waiting.is_empty() {
        let rows = snapshot.waiting.iter().map(|class| {
            vec![class.function.clone(), class.owner.clone(), class.backlog.to_string(), class.why.clone()]
        });
        text.push_str(&format!("\n{}", table(&["WAITING", "OF", "SLOTS", "WHY"], rows)));
    }
    if !snapshot.refused.is_empty() {
        text.push('\n');
        text.extend(snapshot.refused.iter().map(refused));
    }
    if !snapshot.names.is_empty() {
        let rows = snapshot.names.iter().map(|name| {
            vec![name.name.clone(), name.namespace.clone(), name.actor_type.clone(), name.actor.clone()]
        });
        text.push_str(&format!("\n{}", table(&["NAMED ACTOR", "NAMESPACE", "TYPE", "ACTOR"], rows)));
    }
    let single: Vec<&str> =
        snapshot.nodes.iter().filter(|node| !node.multi_tenant).map(|node| node.name.as_str()).collect();
    if !single.is_empty() {
        let all = single.len() == snapshot.nodes.len();
        let which = if all { "All nodes".to_owned() } else { single.join(", ") };
        text.push_str(&format!(
            "\n{which} are single-tenant: their jobs run as one user, and are not protected from one another.\n"
        ));
    }
    text
}

/// Nodes that are started by themselves.
fn started(scaling: &ScalingSnapshot) -> String {
    let rows = scaling.types.iter().map(|of| {
        let paused = if of.paused { " (starting one failed; see the head's log)" } else { "" };
        vec![
            of.name.clone(),
            groups::amounts(&of.resources),
            format!("{} to {}", of.min, of.max),
            of.nodes.to_string(),
            format!("{}{paused}", of.coming),
        ]
    });
    let mut text = table(&["NODE TYPE", "OFFERS", "MAY BE", "THERE", "COMING"], rows);
    for unmet in &scaling.left {
        text.push_str(&format!("No node can be started for {}.\n", shape(unmet)));
    }
    text
}

/// `3 x 1 GPU, zone in [a] of group-4 (strict spread by rack)`.
fn shape(unmet: &UnmetSnapshot) -> String {
    let (needs, group) = (groups::amounts(&unmet.resources), &unmet.group);
    let of = match (group.is_empty(), unmet.apart) {
        (true, false) => String::new(),
        (true, true) => ", each on a node of its own".to_owned(),
        (false, _) if unmet.arrange.is_empty() => format!(" of {group}"),
        (false, _) => format!(" of {group} ({})", unmet.arrange),
    };
    let labels = unmet.labels.iter().map(|rule| format!(", {rule}")).collect::<String>();
    let labels = unmet.fallbacks.iter().fold(labels, |labels, other| match other.join(", ") {
        rules if rules.is_empty() => labels + ", or any labels",
        rules => labels + ", or " + &rules,
    });
    format!("{} x {needs}{labels}{of}", unmet.count)
}

/// What failed, since no node could ever hold it.
fn refused(refused: &RefusedSnapshot) -> String {
    let RefusedSnapshot { what, shapes, times, seconds_ago, why } = refused;
    let shapes: Vec<String> = shapes.iter().map(shape).collect();
    let times = if *times == 1 { "once".to_owned() } else { format!("{times} times, last") };
    format!("Refused {times} {seconds_ago:.0} s ago: {what}, {}: {why}.\n", shapes.join(" and "))
}

fn nodes(nodes: &[NodeSnapshot]) -> String {
    // CPU and memory on every node; the others where any has them.
    let mut kinds = vec!["CPU", "memory"];
    let others: BTreeSet<&str> =
        nodes.iter().flat_map(|node| node.total.keys().map(String::as_str)).collect();
    kinds.extend(["GPU", "TPU"].iter().filter(|kind| others.contains(*kind)));
    kinds.extend(others.iter().filter(|kind| !["CPU", "memory", "GPU", "TPU"].contains(kind)));
    let mut header = vec!["NODE".to_owned(), "NAME".to_owned(), "ADDRESS".to_owned()];
    header.extend(kinds.iter().map(|kind| format!("{} FREE", kind_title(kind))));
    let spilled = nodes.iter().any(|node| node.usage.spilled > 0);
    header.push("STORE USED".to_owned());
    header.extend(spilled.then(|| "SPILLED".to_owned()));
    let evicted = nodes.iter().any(|node| node.usage.evicted > 0);
    header.extend(evicted.then(|| "EVICTED".to_owned()));
    header.extend(["HOSTS", "LABELS"].map(str::to_owned));
    let rows = nodes.iter().map(|node| {
        let address = if node.address.is_empty() { "(dials only)".to_owned() } else { node.address.clone() };
        let mut row = vec![node.node.clone(), node.name.clone(), address];
        row.extend(kinds.iter().map(|kind| {
            let total = node.total.get(*kind).copied().unwrap_or(0.0);
            let free = node.available.get(*kind).copied().unwrap_or(0.0);
            match *kind {
                _ if total == 0.0 => "-".to_owned(),
                "memory" => format!("{} of {}", bytes_text(free as u64), bytes_text(total as u64)),
                _ => format!("{free} of {total}"),
            }
        }));
        row.push(format!("{} of {}", bytes_text(node.usage.store_used_bytes), bytes_text(node.store_bytes)));
        let usage = &node.usage;
        row.extend(spilled.then(|| {
            format!(
                "{} on disk, {} read back, {} waiting",
                bytes_text(usage.spill_used_bytes),
                bytes_text(usage.restored_bytes),
                usage.waiting
            )
        }));
        row.extend(evicted.then(|| bytes_text(usage.evicted_bytes)));
        row.push(usage.hosts.to_string());
        let labels: Vec<String> = node
            .labels
            .iter()
            .filter(|(key, _)| !key.starts_with(OWN_LABELS))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        row.push(labels.join(" "));
        row
    });
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    table(&header, rows)
}

/// Built-in kinds as titles; custom ones as they are named.
fn kind_title(kind: &str) -> &str {
    if kind == "memory" { "MEMORY" } else { kind }
}

pub fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

pub fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2)).set_cell_alignment(CellAlignment::Left);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mobula_proto::head::{DrainSnapshot, Usage, WaitingSnapshot};

    use super::*;

    #[test]
    fn a_person_can_read_it() {
        let amounts = |cpu: f64, gpu: f64| {
            BTreeMap::from([
                ("CPU".to_owned(), cpu),
                ("memory".to_owned(), 1024.0 * 1024.0 * 1024.0),
                ("GPU".to_owned(), gpu),
                ("licence".to_owned(), 2.0),
            ])
        };
        let node = NodeSnapshot {
            node: "node-3".to_owned(),
            name: "gpu-box".to_owned(),
            address: "10.0.0.3:7422".to_owned(),
            total: amounts(8.0, 2.0),
            available: amounts(6.5, 0.5),
            devices: Vec::new(),
            labels: BTreeMap::from([
                ("zone".to_owned(), "a".to_owned()),
                ("mobula.io/os".to_owned(), "linux".to_owned()),
            ]),
            store_bytes: 512 * 1024 * 1024,
            multi_tenant: false,
            usage: Usage {
                hosts: 3,
                spilled: 7,
                spill_used_bytes: 3 << 20,
                restored_bytes: 2 << 20,
                evicted: 4,
                evicted_bytes: 9 << 20,
                waiting: 1,
                ..Usage::default()
            },
            told: BTreeMap::new(),
            draining: Some(DrainSnapshot {
                leases: 2,
                counted: true,
                seconds_left: 59.6,
                ..DrainSnapshot::default()
            }),
        };
        let waiting = WaitingSnapshot {
            owner: "host-1".to_owned(),
            function: "train::step".to_owned(),
            queue: "research".to_owned(),
            backlog: 4,
            why: "no GPU is free".to_owned(),
        };
        let snapshot = Snapshot { nodes: vec![node], waiting: vec![waiting], ..Snapshot::default() };
        let text = text(&snapshot);
        for part in [
            "node-3",
            "gpu-box",
            "10.0.0.3:7422",
            "CPU FREE",
            "6.5 of 8",
            "1.0 GiB of 1.0 GiB",
            "0.5 of 2",
            "licence FREE",
            "zone=a",
            "0 B of 512.0 MiB",
            "SPILLED",
            "3.0 MiB on disk, 2.0 MiB read back, 1 waiting",
            "EVICTED",
            "9.0 MiB",
            "node-3 (gpu-box) drains: left are 2 leases; within 60 s.",
            "single-tenant",
            "train::step",
            "no GPU is free",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        let unmet = UnmetSnapshot {
            resources: BTreeMap::from([("GPU".to_owned(), 1.0)]),
            labels: vec!["zone in [a]".to_owned()],
            fallbacks: vec![vec!["zone in [b]".to_owned(), "rack exists".to_owned()], vec![]],
            count: 3,
            ..UnmetSnapshot::default()
        };
        let refused = RefusedSnapshot {
            what: "train::step".to_owned(),
            shapes: vec![unmet.clone()],
            times: 2,
            seconds_ago: 3.7,
            why: "no node has 1 GPU: none has any".to_owned(),
        };
        let said = self::text(&Snapshot { refused: vec![refused], ..Snapshot::default() });
        assert!(
            said.contains(
                "Refused 2 times, last 4 s ago: train::step, 3 x 1 GPU, zone in [a], or zone in [b]"
            ) && said.contains(": no node has 1 GPU: none has any.\n"),
            "{said}"
        );
        let apart = UnmetSnapshot { apart: true, ..unmet.clone() };
        let (group, arrange) = ("group-4".to_owned(), "strict spread by rack".to_owned());
        let bundles =
            UnmetSnapshot { labels: Vec::new(), fallbacks: Vec::new(), group, arrange, ..unmet.clone() };
        let left = vec![unmet, apart, bundles];
        let told = started(&ScalingSnapshot { left, ..ScalingSnapshot::default() });
        for want in
            ["or any labels, each on a node of its own.", "for 3 x 1 GPU of group-4 (strict spread by rack)."]
        {
            assert!(told.contains(want), "{told}");
        }
        assert!(
            told.contains("for 3 x 1 GPU, zone in [a], or zone in [b], rack exists, or any labels."),
            "{told}"
        );
        assert!(!text.contains("mobula.io"), "{text}");
        assert!(self::text(&Snapshot::default()).contains("mobula token create"));
    }
}
