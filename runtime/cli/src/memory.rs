//! `mobula memory`.

use mobula_proto::{
    inventory::{Group, Inventory, Store},
    resource::bytes_text,
};

use crate::{api::Api, args::MemoryArgs, error::Error, home::Home, ready::say, status::table};

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
            bytes_text(store.spill_used_bytes),
            bytes_text(store.spilled_bytes),
            bytes_text(store.restored_bytes),
            bytes_text(store.pulled_bytes),
            bytes_text(store.served_bytes),
        ]
    });
    let header = [
        "NODE",
        "STORE USED",
        "OBJECTS",
        "WAIT FOR ROOM",
        "ON DISK",
        "SPILLED",
        "READ BACK",
        "PULLED",
        "SERVED",
    ];
    let mut text = table(&header, stores);
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
                group.why.text().to_owned(),
                group.objects.to_string(),
                bytes_text(group.bytes),
                group.pinned.to_string(),
                group.on_disk.to_string(),
            ]
        });
        let header = ["MADE BY", "JOB", "OWNER", "NODE", "WHY", "OBJECTS", "BYTES", "READ NOW", "ON DISK"];
        text.push_str(&format!("\n{}", table(&header, rows)));
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

#[cfg(test)]
mod tests {
    use mobula_proto::inventory::Why;

    use super::*;

    #[test]
    fn a_person_can_read_it() {
        let group = |site: &str, why, bytes| Group {
            site: site.to_owned(),
            job: "job-7".to_owned(),
            owner: "host-1".to_owned(),
            why,
            objects: 3,
            bytes,
            pinned: 2,
            on_disk: 1,
        };
        let store = Store {
            node: "node-1".to_owned(),
            store_bytes: 1 << 30,
            used_bytes: 64 << 20,
            spilled_bytes: 5 << 30,
            groups: vec![group("results of crawl::fetch", Why::Held, 1 << 20), group("", Why::Copy, 2 << 20)],
            more_groups: 4,
            ..Store::default()
        };
        let text = text(&Inventory { stores: vec![store], silent: vec!["node-2".to_owned()] });
        for part in [
            "64.0 MiB of 1.0 GiB",
            "5.0 GiB",
            "results of crawl::fetch",
            "held by refs",
            "4 smaller",
            "from node-2",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(text.find("2.0 MiB").unwrap() < text.find("1.0 MiB").unwrap(), "the largest first:\n{text}");
        assert!(self::text(&Inventory::default()).contains("No objects"));
    }
}
