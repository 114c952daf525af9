//! The queues between which the cluster is shared: durable, and the scheduler's to obey.

use std::collections::BTreeMap;

use mobula_proto::{
    Failure, FailureKind, Quantity, Queue,
    head::QueueSnapshot,
    queue::{self, Change},
    resource::Kind,
};
use mobula_scheduler::{self as scheduler, Millis};
use tracing::{error, info};

use super::{Core, Effect, snapshot::amounts};
use crate::state::Record;

fn refuse(why: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Queue, why)
}

impl Core {
    /// Defines a queue, or changes it. It holds once the effects are applied.
    pub fn set_queue(&mut self, change: Change, now: Millis) -> Result<Vec<Effect>, Failure> {
        self.now = self.now.max(now);
        let old = self.queues.get(&change.name);
        let queue = change.of(old);
        let mut all = self.queues.clone();
        all.insert(queue.name.clone(), queue.clone());
        let all: Vec<Queue> = all.into_values().collect();
        queue::validate(&all).map_err(|error| refuse(error.to_string()))?;
        info!(queue = queue.name, parent = queue.parent, "queue set");
        self.queues.insert(queue.name.clone(), queue.clone());
        self.persist(Record::Queue { queue });
        self.announce_queues();
        Ok(std::mem::take(&mut self.out))
    }

    /// Removes a queue that nothing uses. It is gone once the effects are applied.
    pub fn remove_queue(&mut self, name: &str, now: Millis) -> Result<Vec<Effect>, Failure> {
        self.now = self.now.max(now);
        self.known_queue(name)?;
        if name.is_empty() {
            return Err(refuse("the default queue stays: name another"));
        }
        let uses = self.uses_of(name);
        if !uses.is_empty() {
            let uses = uses.join(", ");
            return Err(refuse(format!("queue {name} is in use ({uses}): end or move these first")));
        }
        info!(queue = name, "queue removed");
        self.queues.remove(name);
        self.persist(Record::QueueGone { name: name.to_owned() });
        self.announce_queues();
        Ok(std::mem::take(&mut self.out))
    }

    /// The queues with what they use, by name, the default one first.
    pub fn queue_snapshots(&self) -> Vec<QueueSnapshot> {
        if self.queues.is_empty() {
            return Vec::new();
        }
        let default = Queue::new("");
        let mut all: BTreeMap<&str, QueueSnapshot> = std::iter::once(&default)
            .chain(self.queues.values())
            .map(|q| (q.name.as_str(), shown(q)))
            .collect();
        for entry in self.jobs.values() {
            if let Some(queue) = all.get_mut(entry.job.queue.as_str()) {
                queue.jobs += 1;
            }
        }
        for view in self.scheduler.leases() {
            // What runs inside of a group is part of what the group is charged.
            if view.lease.bundle.is_some() {
                continue;
            }
            let Some(queue) = all.get_mut(view.lease.class.queue.as_str()) else { continue };
            queue.slots += u64::from(view.lease.slots);
            for (kind, amount) in view.lease.class.resources.iter() {
                // Slots that wait have given their CPU back.
                let held = match kind {
                    Kind::Cpu => view.lease.slots.saturating_sub(view.blocked),
                    _ => view.lease.slots,
                };
                *queue.used.entry(kind.to_string()).or_default() += amount.as_f64() * f64::from(held);
            }
        }
        for (queue, reserved) in self.groups.reserved() {
            let Some(queue) = all.get_mut(queue) else { continue };
            for (kind, amount) in reserved.iter() {
                *queue.used.entry(kind.to_string()).or_default() += amount.as_f64();
            }
        }
        for demand in self.scheduler.demands() {
            if let Some(queue) = all.get_mut(demand.class.queue.as_str()) {
                queue.waiting += u64::from(demand.backlog);
            }
        }
        all.into_values().collect()
    }

    /// Refuses what names a queue that there is not. The empty name is the default one's.
    pub(super) fn known_queue(&self, name: &str) -> Result<(), Failure> {
        if name.is_empty() || self.queues.contains_key(name) {
            return Ok(());
        }
        let name: String = name.chars().take(mobula_proto::resource::NAME_BYTES_MAX).collect();
        Err(refuse(format!("there is no queue {name:?}: define it with `mobula queue set`, or name another")))
    }

    /// Tells the scheduler which queues there are.
    pub(super) fn announce_queues(&mut self) {
        let all: Vec<Queue> = self.queues.values().cloned().collect();
        if let Err(error) = queue::validate(&all) {
            // Only what was valid was ever written.
            error!(%error, "the queues found on disk are not used");
            return self.queues.clear();
        }
        self.schedule(scheduler::Event::Queues(all));
    }

    /// What keeps a queue from being removed.
    fn uses_of(&self, name: &str) -> Vec<String> {
        let counted = |count: usize, one: &str, many: &str| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            count => Some(format!("{count} {many}")),
        };
        let children = self.queues.values().filter(|queue| queue.parent == name).count();
        let jobs = self.jobs.values().filter(|entry| entry.job.queue == name).count();
        let leases = self.scheduler.leases().filter(|view| view.lease.class.queue == name).count();
        let waiting = self.scheduler.demands().filter(|demand| demand.class.queue == name).count();
        let groups = self.groups.count(|group| group.queue == name);
        let all = [
            counted(children, "queue is a part of it", "queues are parts of it"),
            counted(jobs, "job belongs to it", "jobs belong to it"),
            counted(leases, "lease is charged to it", "leases are charged to it"),
            counted(groups, "placement group is charged to it", "placement groups are charged to it"),
            counted(waiting, "class of tasks waits in it", "classes of tasks wait in it"),
        ];
        all.into_iter().flatten().collect()
    }
}

fn shown(queue: &Queue) -> QueueSnapshot {
    let amount = |(kind, amount): &(Kind, Quantity)| (kind.to_string(), amount.as_f64());
    QueueSnapshot {
        name: queue.name.clone(),
        parent: queue.parent.clone(),
        weight: queue.weight.as_f64(),
        guaranteed: amounts(&queue.guaranteed),
        limit: queue.limit.iter().map(amount).collect(),
        ..QueueSnapshot::default()
    }
}
