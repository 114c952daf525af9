//! What is in the table, for people.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
};

use mobula_ownership::Estate;
use mobula_proto::{
    HostId, IdMap, NodeId, ObjectId,
    inventory::{Held, Why},
};

use super::Objects;
use crate::core::stock;

impl Objects {
    /// What is here, by what it has in common; and what owners say that holds it.
    pub fn groups(
        &self,
        node: NodeId,
        estate: &Estate,
        held: &IdMap<ObjectId, Held>,
    ) -> BTreeMap<stock::Key, stock::Amount> {
        let mut groups: BTreeMap<stock::Key, stock::Amount> = BTreeMap::new();
        for ((object, _, job), entry) in &self.copies {
            let claimants = estate.claimants(*object);
            let (why, held) = match (entry.freed, entry.origin) {
                (true, _) if entry.pins.is_empty() => (Why::Written, None),
                (true, _) => (Why::Read, None),
                (false, Some(_)) => (Why::Copy, None),
                (false, None) if claimants.is_some() => (Why::Inherited, None),
                (false, None) => (Why::Held, held.get(object)),
            };
            let owner = if why == Why::Inherited { node.agent() } else { object.owner };
            let by = held.map_or_else(Vec::new, |held| held.by.clone());
            let key = stock::Key { site: Arc::clone(&entry.site), job: *job, owner, why, by };
            let amount = groups.entry(key).or_default();
            amount.objects += 1;
            amount.bytes += entry.bytes;
            amount.pinned += u64::from(!entry.pins.is_empty());
            amount.on_disk += u64::from(entry.memory.is_none());
            match why {
                Why::Inherited => amount.hosts.extend(claimants.into_iter().flatten()),
                Why::Held => {
                    amount.hosts.extend(held.into_iter().flat_map(|held| &held.hosts));
                    let more = held.map_or(0, |held| held.more_hosts.into());
                    amount.more_hosts = amount.more_hosts.max(more);
                }
                _ => amount.hosts.extend(entry.pins.keys()),
            }
        }
        groups
    }

    /// What owners hold of what is here: of each at most so many, those with the most bytes.
    pub fn held(&self, most: usize, estate: &Estate) -> BTreeMap<HostId, Vec<ObjectId>> {
        let mut found: BTreeMap<HostId, BinaryHeap<Reverse<(u64, ObjectId)>>> = BTreeMap::new();
        for ((object, ..), entry) in &self.copies {
            if !entry.freed && entry.origin.is_none() && !estate.has(*object) {
                let largest = found.entry(object.owner).or_default();
                largest.push(Reverse((entry.bytes, *object)));
                if largest.len() > most {
                    largest.pop();
                }
            }
        }
        let objects = |heap: BinaryHeap<Reverse<(u64, ObjectId)>>| {
            heap.into_iter().map(|Reverse((_, object))| object).collect()
        };
        found.into_iter().map(|(owner, heap)| (owner, objects(heap))).collect()
    }
}
