//! What is in the store, for people.

use std::{collections::BTreeMap, sync::Arc};

use mobula_proto::{
    HostId, JobId,
    inventory::{GROUPS_MAX, Group, Store, Why},
};

use super::Core;

/// What the objects of a group have in common.
pub type Key = (Arc<str>, JobId, HostId, Why);

/// How much there is of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them are pinned.
    pub pinned: u64,
    /// How many of them are in no memory.
    pub on_disk: u64,
}

impl Core {
    /// What is in the store, and why. Looks at every object: about 100 ns each.
    pub fn stock(&self) -> Store {
        let mut found: BTreeMap<Key, Amount> =
            self.objects.groups(self.config.node, |object| self.estate.has(object));
        for ((object, _, job), pull) in &self.pulls {
            let amount = found.entry((Arc::from(""), *job, object.owner, Why::Coming)).or_default();
            amount.objects += 1;
            amount.bytes += pull.copy.bytes;
        }
        let object_bytes =
            found.iter().filter(|(key, _)| key.3 != Why::Coming).map(|(_, amount)| amount.bytes);
        let object_bytes = object_bytes.sum();
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_by_key(|(_, amount)| std::cmp::Reverse(amount.bytes));
        let more_groups = found.len().saturating_sub(GROUPS_MAX) as u64;
        let groups = found.into_iter().take(GROUPS_MAX).map(|((site, job, owner, why), amount)| Group {
            site: site.to_string(),
            job: job.to_string(),
            owner: owner.to_string(),
            why,
            objects: amount.objects,
            bytes: amount.bytes,
            pinned: amount.pinned,
            on_disk: amount.on_disk,
        });
        let counters = self.objects.counters();
        Store {
            node: self.config.node.to_string(),
            store_bytes: self.objects.capacity(),
            used_bytes: self.objects.used(),
            object_bytes,
            spill_used_bytes: self.objects.disk_bytes(),
            undeleted_bytes: self.objects.undeleted_bytes(),
            spilled_bytes: counters.spilled_bytes,
            restored_bytes: counters.restored_bytes,
            waiting: self.objects.waiting(),
            pulled_bytes: self.pulled_bytes,
            served_bytes: self.served_bytes,
            groups: groups.collect(),
            more_groups,
        }
    }
}
