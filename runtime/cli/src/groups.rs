//! `mobula groups`.

use std::collections::BTreeMap;

use mobula_proto::{head::GroupSnapshot, resource::bytes_text};

use crate::{
    api::Api,
    args::GroupsArgs,
    error::{self, Error},
    home::Home,
    queue::DEFAULT,
    ready::say,
    status::table,
};

/// Most nodes that are named for one group.
const NODES_MAX: usize = 4;

/// Shows the placement groups.
pub fn run(args: &GroupsArgs) -> Result<(), Error> {
    let (_, snapshot) = Api::open(&Home::of(&args.home)?)?.status()?;
    if args.json {
        let json = serde_json::to_string(&snapshot.groups).map_err(std::io::Error::other);
        say(&json.map_err(error::system("write JSON"))?);
    } else {
        say(text(&snapshot.groups).trim_end());
    }
    Ok(())
}

/// The groups for people.
pub fn text(groups: &[GroupSnapshot]) -> String {
    if groups.is_empty() {
        return "No placement groups.\n".to_owned();
    }
    let rows = groups.iter().map(|group| {
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        vec![
            group.group.clone(),
            or_none(&group.name),
            if group.job.is_empty() { "(detached)".to_owned() } else { group.job.clone() },
            if group.queue.is_empty() { DEFAULT.to_owned() } else { group.queue.clone() },
            group.arrange.clone(),
            format!("{} of {}", group.placed, group.bundles),
            amounts(&group.resources),
            nodes(&group.nodes),
            or_none(&group.why),
        ]
    });
    table(&["GROUP", "NAME", "JOB", "QUEUE", "LIES", "RESERVED", "OF ALL", "ON", "WHY"], rows)
}

fn nodes(all: &BTreeMap<String, u32>) -> String {
    let named: Vec<String> = all
        .iter()
        .take(NODES_MAX)
        .map(|(node, count)| if *count == 1 { node.clone() } else { format!("{node} ({count})") })
        .collect();
    match all.len() - named.len() {
        0 if named.is_empty() => "-".to_owned(),
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// Amounts by resource name.
pub fn amounts(all: &BTreeMap<String, f64>) -> String {
    let one = |(kind, amount): (&String, &f64)| match kind.as_str() {
        "memory" => format!("{} memory", bytes_text(*amount as u64)),
        kind => format!("{amount} {kind}"),
    };
    let all: Vec<String> = all.iter().map(one).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_can_read_them() {
        let placed = GroupSnapshot {
            group: "group-3".to_owned(),
            name: "lab/gang".to_owned(),
            arrange: "strict spread by rack".to_owned(),
            bundles: 7,
            placed: 7,
            nodes: (1..=6).map(|node| (format!("node-{node}"), if node == 1 { 2 } else { 1 })).collect(),
            ..GroupSnapshot::default()
        };
        let why = "waits for 1 of its 1 bundles".to_owned();
        let waits = GroupSnapshot { job: "job-7".to_owned(), bundles: 1, why, ..GroupSnapshot::default() };
        let text = text(&[placed, waits]);
        for part in [
            "lab/gang",
            "(detached)",
            "strict spread by rack",
            "7 of 7",
            "node-1 (2), node-2, node-3, node-4 and 2 more",
            "job-7",
            "0 of 1",
            "waits for 1 of its 1 bundles",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(self::text(&[]).contains("No placement groups"));
    }
}
