//! `mobula memory`.

use mobula_proto::{
    inventory::{Group, Inventory, Store},
    resource::bytes_text,
};

use crate::{api::Api, args::MemoryArgs, error::Error, home::Home, ready::say, status::table};

/// What the columns mean, and each reason why an object is there.
pub const COLUMNS: &str = "\
The first table has a line for each node:
  STORE USED      memory given out to programs, what lies free in it included
  OBJECTS         bytes of the objects there, in memory and on disk
  WAIT FOR ROOM   requests for memory that wait until there is some
  ON DISK         bytes of the files of objects that memory had no room for, and
                  of those in which nothing is any more, and which the place
                  they lie at would not delete yet
  SPILLED, READ BACK, EVICTED, PULLED, SERVED
                  bytes written to such files, read from them, dropped from
                  memory since they lie there or on another node, fetched from
                  other nodes, sent to them, since the node's start

The second has a line for all objects that have this in common:
  MADE BY         FILE:LINE that put them, `results of` the function that made
                  them, or `arguments of calls` too large for a message; - where
                  the node does not know it, as of copies
  JOB, NODE       whose they are, and where they lie
  OWNER           the host that counts their refs; where it is dead, the node
                  that does
  WHY             held by what is named, one or more of:
                    its owner: a variable, a stream, an actor or a running call
                    of its owner's process has a ref
                    calls: it is in an argument of a call that is not done
                    calls to run again: the same of one that is done, or of an
                    actor that lives, and may be run again after a failure
                    values: its owner keeps a value with a ref inside
                    other hosts: those that are named have refs
                  held by refs: its owner has not said by what within a second,
                    or has more than 4,096 there, of which these are the smaller
                  held by refs, its owner is dead: the hosts that are named have
                    some, and the node counts them
                  copy: of another node's, read here; goes when room is needed
                  coming in: such a copy, on its way
                  freed, still read: no ref is left; goes with its last reader
                  freed, still written: the same, when it lies on disk
                  In brackets: who has refs; of what nobody holds, who reads it
  OBJECTS, BYTES  how many there are, and their size
  READ NOW        how many of them a process has open, or copies: until it lets
                  go, they cannot leave memory
  ON DISK         how many lie on disk alone; who reads one has it read back";

const STORES: [&str; 10] = [
    "NODE",
    "STORE USED",
    "OBJECTS",
    "WAIT FOR ROOM",
    "ON DISK",
    "SPILLED",
    "READ BACK",
    "EVICTED",
    "PULLED",
    "SERVED",
];
const GROUPS: [&str; 9] =
    ["MADE BY", "JOB", "OWNER", "NODE", "WHY", "OBJECTS", "BYTES", "READ NOW", "ON DISK"];

/// Shows what is in the stores.
pub fn run(args: &MemoryArgs) -> Result<(), Error> {
    let (json, inventory) = Api::open(&Home::of(&args.home)?)?.memory()?;
    say(if args.json { json } else { text(&inventory) }.trim_end());
    Ok(())
}

/// The same for people.
fn text(inventory: &Inventory) -> String {
    let stores = inventory.stores.iter().map(|store| {
        vec![
            store.node.clone(),
            format!("{} of {}", bytes_text(store.used_bytes), bytes_text(store.store_bytes)),
            bytes_text(store.object_bytes),
            store.waiting.to_string(),
            match store.undeleted_bytes {
                0 => bytes_text(store.spill_used_bytes),
                left => {
                    format!("{}, {} to be deleted", bytes_text(store.spill_used_bytes), bytes_text(left))
                }
            },
            bytes_text(store.spilled_bytes),
            bytes_text(store.restored_bytes),
            bytes_text(store.evicted_bytes),
            bytes_text(store.pulled_bytes),
            bytes_text(store.served_bytes),
        ]
    });
    let mut text = table(&STORES, stores);
    let mut groups: Vec<(&Store, &Group)> = inventory
        .stores
        .iter()
        .flat_map(|store| store.groups.iter().map(move |group| (store, group)))
        .collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.bytes));
    if groups.is_empty() {
        text.push_str("\nNo objects.\n");
    } else {
        let rows = groups.iter().map(|(store, group)| {
            vec![
                if group.site.is_empty() { "-".to_owned() } else { group.site.clone() },
                group.job.clone(),
                group.owner.clone(),
                store.node.clone(),
                why(group),
                group.objects.to_string(),
                bytes_text(group.bytes),
                group.pinned.to_string(),
                group.on_disk.to_string(),
            ]
        });
        text.push_str(&format!("\n{}", table(&GROUPS, rows)));
    }
    let more: u64 = inventory.stores.iter().map(|store| store.more_groups).sum();
    if more > 0 {
        text.push_str(&format!("\n{more} smaller groups are left out.\n"));
    }
    if !inventory.silent.is_empty() {
        text.push_str(&format!("\nNo answer in time from {}.\n", inventory.silent.join(", ")));
    }
    text
}

/// Why a group is there, and who has to do with that.
fn why(group: &Group) -> String {
    let mut text = match &group.by[..] {
        [] => group.why.text().to_owned(),
        by => format!("held by {}", by.iter().map(|hold| hold.text()).collect::<Vec<_>>().join(", ")),
    };
    if !group.hosts.is_empty() {
        let more = match group.more_hosts {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        text.push_str(&format!(" ({}{more})", group.hosts.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use mobula_proto::inventory::{HELD_MAX, Hold, Why};

    use super::*;

    #[test]
    fn the_help_has_each_column_and_each_reason() {
        let (stores, groups) = COLUMNS.split_once("\n\n").unwrap();
        for (columns, help) in [(&STORES[1..], stores), (&GROUPS[..], groups)] {
            for column in columns {
                let told = help.lines().filter(|line| line.starts_with("  ") && line.contains(column));
                assert_eq!(told.count(), 1, "{column} in\n{help}");
            }
        }
        let whys = [Why::Held, Why::Inherited, Why::Read, Why::Written, Why::Copy, Why::Coming];
        for text in whys.map(Why::text).into_iter().chain(Hold::ALL.map(Hold::text)) {
            assert!(groups.contains(&format!(" {text}: ")), "{text:?} in\n{groups}");
        }
        assert_eq!(HELD_MAX, 4096, "as they say");
        // Of a narrow terminal.
        assert!(COLUMNS.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn a_person_can_read_it() {
        let group = |site: &str, why, bytes| Group {
            site: site.to_owned(),
            job: "job-7".to_owned(),
            owner: "host-1".to_owned(),
            why,
            by: Vec::new(),
            hosts: Vec::new(),
            more_hosts: 0,
            objects: 3,
            bytes,
            pinned: 2,
            on_disk: 1,
        };
        let store = Store {
            node: "node-1".to_owned(),
            store_bytes: 1 << 30,
            used_bytes: 64 << 20,
            spill_used_bytes: 48 << 20,
            undeleted_bytes: 16 << 20,
            spilled_bytes: 5 << 30,
            evicted_bytes: 7 << 30,
            groups: vec![
                group("results of crawl::fetch", Why::Held, 1 << 20),
                Group { hosts: vec!["host-5".to_owned()], ..group("", Why::Copy, 2 << 20) },
                Group {
                    by: vec![Hold::Owner, Hold::Hosts],
                    hosts: vec!["host-2".to_owned(), "host-3".to_owned()],
                    more_hosts: 4,
                    ..group("arguments of calls", Why::Held, 1 << 19)
                },
            ],
            more_groups: 4,
            ..Store::default()
        };
        let text = text(&Inventory { stores: vec![store], silent: vec!["node-2".to_owned()] });
        for part in [
            "64.0 MiB of 1.0 GiB",
            "48.0 MiB, 16.0 MiB to be deleted",
            "5.0 GiB",
            "7.0 GiB",
            "results of crawl::fetch",
            "held by refs",
            "copy (host-5)",
            "held by its owner, other hosts (host-2, host-3 and 4 more)",
            "4 smaller",
            "from node-2",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(text.find("2.0 MiB").unwrap() < text.find("1.0 MiB").unwrap(), "the largest first:\n{text}");
        assert!(self::text(&Inventory::default()).contains("No objects"));
    }
}
