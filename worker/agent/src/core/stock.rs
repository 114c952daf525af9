//! What is in the store, for people. What lies here the agent knows; what holds it, its owners, which are asked each time.
//!
//! - **SK-1** Whoever asks is answered within [`HOLDS_WAIT`], whatever owners do. Of what they have not said by then is said
//!   that it is held, and no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use mobula_proto::{
    HostId, IdMap, JobId, NodeId, ObjectId,
    head::{Between, ToHead},
    host::{Request, ToHost},
    inventory::{GROUPS_MAX, Group, HELD_MAX, HOLDERS_MAX, Held, Hold, Store, Why},
};

use super::{Core, Effect};

/// How long owners may take to say what holds their objects; the head waits longer for the whole.
pub const HOLDS_WAIT: Duration = Duration::from_secs(1);
/// Most who wait for that at once. Others are answered without.
const COUNTINGS_MAX: usize = 16;

/// What the objects of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The place in the program that made them.
    pub site: Arc<str>,
    /// Their job.
    pub job: JobId,
    /// Whose they are.
    pub owner: HostId,
    /// Why they are here.
    pub why: Why,
    /// What holds them, where their owner has said so.
    pub by: Vec<Hold>,
}

/// How much there is of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them are pinned.
    pub pinned: u64,
    /// How many of them are in no memory.
    pub on_disk: u64,
    /// Who has refs to them, or reads them.
    pub hosts: BTreeSet<HostId>,
    /// How many more who were not named.
    pub more_hosts: u64,
}

/// The head wants to know what is here, and owners are asked.
#[derive(Debug)]
struct Counting {
    request: Request,
    until: Instant,
    /// Who has not answered yet, and what they were asked about.
    asked: BTreeMap<HostId, Vec<ObjectId>>,
    held: IdMap<ObjectId, Held>,
}

/// Those that are under way, by their own number.
#[derive(Debug, Default)]
pub(super) struct Countings {
    last: u64,
    open: BTreeMap<u64, Counting>,
}

impl Countings {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.open.values().map(|counting| counting.until).min()
    }
}

impl Core {
    /// The head wants to know what is here. Looks at every object: about 100 ns each.
    pub(super) fn take_stock(&mut self, request: Request, now: Instant) {
        let mut asked = BTreeMap::new();
        if self.countings.open.len() < COUNTINGS_MAX {
            asked = self.objects.held(HELD_MAX, &self.estate);
            asked.retain(|owner, _| self.can_ask(*owner));
        }
        if asked.is_empty() {
            return self.say_stock(request, &IdMap::default());
        }
        self.countings.last += 1;
        let (number, me) = (self.countings.last, self.config.node);
        for (owner, objects) in &asked {
            let (owner, objects) = (*owner, objects.clone());
            if owner.node == me {
                self.tell(owner, ToHost::WhatHolds { asker: me, number, objects });
            } else {
                let question = Between::WhatHolds { by: me, owner, number, objects };
                self.effects.push(Effect::Peer(owner.node, question));
            }
        }
        let counting = Counting { request, until: now + HOLDS_WAIT, asked, held: IdMap::default() };
        self.countings.open.insert(number, counting);
    }

    fn can_ask(&self, owner: HostId) -> bool {
        if owner.node == self.config.node {
            self.hosts.get(owner).is_some_and(|host| host.ready)
        } else {
            self.nodes.contains_key(&owner.node)
        }
    }

    /// Another node wants to know of an owner that is or was here what holds its objects.
    pub(super) fn what_holds(&mut self, by: NodeId, owner: HostId, number: u64, objects: Vec<ObjectId>) {
        if self.can_ask(owner) && owner.node == self.config.node {
            self.tell(owner, ToHost::WhatHolds { asker: by, number, objects });
        } else if self.nodes.contains_key(&by) {
            self.effects.push(Effect::Peer(by, Between::Holds { owner, number, held: Vec::new() }));
        }
    }

    /// An owner here has said what holds its objects on the asker's node.
    pub(super) fn owner_holds(&mut self, owner: HostId, asker: NodeId, number: u64, held: Vec<Held>) {
        if asker == self.config.node {
            self.holds(owner, number, held);
        } else if self.nodes.contains_key(&asker) {
            self.effects.push(Effect::Peer(asker, Between::Holds { owner, number, held }));
        }
    }

    /// An owner anywhere has said what holds its objects on this node; or that cannot be said.
    pub(super) fn holds(&mut self, owner: HostId, number: u64, held: Vec<Held>) {
        let Some(counting) = self.countings.open.get_mut(&number) else { return };
        let Some(objects) = counting.asked.remove(&owner) else { return };
        if objects.len() == held.len() {
            counting.held.extend(objects.into_iter().zip(held.into_iter().map(bounded)));
        }
        if counting.asked.is_empty()
            && let Some(Counting { request, held, .. }) = self.countings.open.remove(&number)
        {
            self.say_stock(request, &held);
        }
    }

    /// Those who have waited long enough are answered.
    pub(super) fn count_no_longer(&mut self, now: Instant) {
        let late: Vec<_> = self.countings.open.extract_if(.., |_, counting| counting.until <= now).collect();
        for (_, Counting { request, held, .. }) in late {
            self.say_stock(request, &held);
        }
    }

    fn say_stock(&mut self, request: Request, held: &IdMap<ObjectId, Held>) {
        let store = self.stock(held);
        self.effects.push(Effect::Head(ToHead::Stock { request, store }));
    }

    fn stock(&self, held: &IdMap<ObjectId, Held>) -> Store {
        let mut found: BTreeMap<Key, Amount> = self.objects.groups(self.config.node, &self.estate, held);
        for ((object, _, job), pull) in &self.pulls {
            let (site, owner) = (Arc::from(""), object.owner);
            let key = Key { site, job: *job, owner, why: Why::Coming, by: Vec::new() };
            let amount = found.entry(key).or_default();
            amount.objects += 1;
            amount.bytes += pull.copy.bytes;
        }
        let object_bytes =
            found.iter().filter(|(key, _)| key.why != Why::Coming).map(|(_, amount)| amount.bytes);
        let object_bytes = object_bytes.sum();
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_by_key(|(_, amount)| std::cmp::Reverse(amount.bytes));
        let more_groups = found.len().saturating_sub(GROUPS_MAX) as u64;
        let groups = found.into_iter().take(GROUPS_MAX).map(|(key, amount)| Group {
            site: key.site.to_string(),
            job: key.job.to_string(),
            owner: key.owner.to_string(),
            why: key.why,
            by: key.by,
            hosts: amount.hosts.iter().take(HOLDERS_MAX).map(ToString::to_string).collect(),
            more_hosts: amount.hosts.len().saturating_sub(HOLDERS_MAX) as u64 + amount.more_hosts,
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
            evicted_bytes: counters.evicted_bytes,
            waiting: self.objects.waiting(),
            pulled_bytes: self.pulled_bytes,
            served_bytes: self.served_bytes,
            groups: groups.collect(),
            more_groups,
        }
    }
}

/// What a host says is as long as it likes.
fn bounded(mut held: Held) -> Held {
    held.by.sort_unstable();
    held.by.dedup();
    held.hosts.truncate(HOLDERS_MAX);
    held
}
