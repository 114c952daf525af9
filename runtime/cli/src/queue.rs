//! `mobula queue`.

use mobula_head::http::QueueWanted;
use mobula_proto::head::QueueSnapshot;

use crate::{
    api::Api,
    args::{QueueListArgs, QueueRemoveArgs, QueueSetArgs},
    error::Error,
    groups::amounts,
    home::Home,
    ready::say,
    status::table,
};

/// What the queue of what names none is called.
pub const DEFAULT: &str = "(default)";

/// Defines a queue, or changes it.
pub fn set(args: QueueSetArgs) -> Result<(), Error> {
    let QueueSetArgs { name, parent, weight, guarantee, limit, home } = args;
    let wanted = QueueWanted { name, parent, weight, guarantee, limit };
    Api::open(&Home::of(&home)?)?.set_queue(&wanted)?;
    say(&format!("Queue {} is set.", wanted.name));
    Ok(())
}

/// Shows the queues.
pub fn list(args: &QueueListArgs) -> Result<(), Error> {
    let (json, queues) = Api::open(&Home::of(&args.home)?)?.queues()?;
    say(if args.json { json } else { text(&queues) }.trim_end());
    Ok(())
}

/// Removes a queue.
pub fn remove(args: &QueueRemoveArgs) -> Result<(), Error> {
    Api::open(&Home::of(&args.home)?)?.remove_queue(&args.name)?;
    say(&format!("Queue {} is removed.", args.name));
    Ok(())
}

/// The queues for people, each below the one of which it is a part.
pub fn text(queues: &[QueueSnapshot]) -> String {
    if queues.is_empty() {
        return "No queues: all jobs share the cluster as one. Define one with `mobula queue set`.\n"
            .to_owned();
    }
    let mut rows = Vec::new();
    let mut open: Vec<(usize, &QueueSnapshot)> =
        queues.iter().rev().filter(|queue| queue.parent.is_empty()).map(|queue| (0, queue)).collect();
    while let Some((depth, queue)) = open.pop() {
        rows.push(row(depth, queue));
        let parts = queues.iter().rev().filter(|part| !queue.name.is_empty() && part.parent == queue.name);
        open.extend(parts.map(|part| (depth + 1, part)));
    }
    let header = ["QUEUE", "WEIGHT", "GUARANTEED", "LIMIT", "USED", "JOBS", "SLOTS", "WAITING"];
    table(&header, rows.into_iter())
}

fn row(depth: usize, queue: &QueueSnapshot) -> Vec<String> {
    let name = if queue.name.is_empty() { DEFAULT } else { &queue.name };
    vec![
        format!("{}{name}", "  ".repeat(depth)),
        queue.weight.to_string(),
        amounts(&queue.guaranteed),
        amounts(&queue.limit),
        amounts(&queue.used),
        queue.jobs.to_string(),
        queue.slots.to_string(),
        queue.waiting.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_tree_is_shown_as_one() {
        let queue = |name: &str, parent: &str| QueueSnapshot {
            name: name.to_owned(),
            parent: parent.to_owned(),
            weight: 2.5,
            limit: BTreeMap::from([("memory".to_owned(), 2.0 * 1024.0 * 1024.0), ("GPU".to_owned(), 1.0)]),
            ..QueueSnapshot::default()
        };
        let text = text(&[queue("", ""), queue("a", "z"), queue("b", ""), queue("c", "a"), queue("z", "")]);
        let names: Vec<&str> =
            text.lines().skip(1).map(|line| line.split("  2.5").next().unwrap().trim_end()).collect();
        assert_eq!(names, ["(default)", "b", "z", "  a", "    c"], "{text}");
        assert!(text.contains("1 GPU, 2.0 MiB memory"), "{text}");
        assert!(self::text(&[]).contains("No queues"));
    }
}
