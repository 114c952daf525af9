//! Placement groups: who asked for which, what is reserved of them, and who waits for that.
//!
//! The scheduler places them. Here they have numbers, names and an end: with their job, unless they are detached; then
//! they are on disk, belong to no job, and wait for nodes instead of being refused.

use std::{collections::BTreeMap, sync::Arc};

use mobula_proto::{
    Failure, FailureKind, Group, GroupId, HostId, JobId, NodeId, Resources,
    head::{Explanation, GroupSnapshot},
    host::Answer,
};
use mobula_scheduler::{self as scheduler, BundlePlace, scheduler::groups::ANYBODYS};
use tracing::{error, info};

use super::{
    Asker, Core, GROUP_NUMBERS_BLOCK, GROUP_WAITERS_MAX, GROUPS_MAX,
    names::Key,
    snapshot::amounts,
    why::{REASON_LOOKS_MAX, later},
};
use crate::state::Record;

#[derive(Debug)]
struct Entry {
    /// The job with which it ends; `None` for a detached one.
    job: Option<JobId>,
    spec: Arc<Group>,
    name: Option<Key>,
    /// Where each bundle is reserved.
    places: Vec<Option<NodeId>>,
    /// Bundles that are not reserved.
    missing: usize,
    /// Who created it, until that is answered.
    creator: Option<Asker>,
    waiters: Vec<Asker>,
}

impl Entry {
    fn new(job: Option<JobId>, spec: Group, name: Option<Key>) -> Self {
        let count = spec.bundles.len();
        Self {
            job,
            spec: Arc::new(spec),
            name,
            places: vec![None; count],
            missing: count,
            creator: None,
            waiters: Vec::new(),
        }
    }

    fn answer(&self, group: GroupId) -> Answer {
        let bundles = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        Answer::Group { group, bundles, placed: self.missing == 0 }
    }

    fn snapshot(&self, group: GroupId, why: String) -> GroupSnapshot {
        let mut nodes = BTreeMap::new();
        for node in self.places.iter().flatten() {
            *nodes.entry(node.to_string()).or_insert(0) += 1;
        }
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        GroupSnapshot {
            group: group.to_string(),
            name: self.name.as_ref().map_or_else(String::new, |(space, name)| format!("{space}/{name}")),
            job: self.job.map_or_else(String::new, |job| job.to_string()),
            arrange: match self.spec.place.as_str() {
                "" => self.spec.arrange.to_string(),
                place => format!("{} by {place}", self.spec.arrange),
            },
            queue: self.spec.queue.clone(),
            bundles: count(self.places.len()),
            placed: count(self.places.len() - self.missing),
            resources: amounts(&self.sum(|_| true)),
            nodes,
            why,
        }
    }

    /// What the bundles that `wanted` names have together.
    fn sum(&self, wanted: impl Fn(usize) -> bool) -> Resources {
        let mut sum = Resources::none();
        let bundles = self.spec.bundles.iter().enumerate();
        bundles.filter(|(at, _)| wanted(*at)).for_each(|(_, bundle)| sum.add(bundle));
        sum
    }
}

/// The groups that there are.
#[derive(Debug, Default)]
pub(super) struct Groups {
    all: BTreeMap<GroupId, Entry>,
    by_name: BTreeMap<Key, GroupId>,
    /// The last number given, and those below which are reserved on disk.
    last: u64,
    reserved: u64,
}

impl Groups {
    /// Numbers below this are taken.
    pub fn numbers_from(&mut self, first_free: u64) {
        self.reserved = self.reserved.max(first_free);
        self.last = self.last.max(first_free.saturating_sub(1));
    }

    /// A detached group found on disk.
    pub fn recover(&mut self, group: GroupId, name: Key, spec: Group) {
        self.last = self.last.max(group.number);
        self.by_name.insert(name.clone(), group);
        self.all.insert(group, Entry::new(None, spec, Some(name)));
    }

    /// Forgets the groups that end with a job.
    pub fn end_job(&mut self, job: JobId) {
        let names = &mut self.by_name;
        self.all.retain(|_, entry| {
            let stays = entry.job != Some(job);
            if let Some(name) = entry.name.as_ref().filter(|_| !stays) {
                names.remove(name);
            }
            stays
        });
    }

    /// What was asked for.
    pub fn spec(&self, group: GroupId) -> Option<&Group> {
        self.all.get(&group).map(|entry| &*entry.spec)
    }

    pub fn forget_waiters(&mut self, gone: impl Fn(HostId) -> bool) {
        for entry in self.all.values_mut().filter(|entry| !entry.waiters.is_empty()) {
            entry.waiters.retain(|waiter| !gone(waiter.host));
        }
    }

    /// How many groups there are of a kind.
    pub fn count(&self, of: impl Fn(&Group) -> bool) -> usize {
        self.all.values().filter(|entry| of(&entry.spec)).count()
    }

    /// What is reserved, with the queue that is charged.
    pub fn reserved(&self) -> impl Iterator<Item = (&str, Resources)> {
        let placed = |entry: &Entry| entry.sum(|at| entry.places[at].is_some());
        self.all.values().map(move |entry| (entry.spec.queue.as_str(), placed(entry)))
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.by_name.is_empty()
    }
}

fn unknown(group: GroupId) -> Failure {
    let text = format!("there is no {group}: it was removed, or refused, or ended with its job");
    Failure::new(FailureKind::Unknown, text)
}

impl Core {
    pub(super) fn group_create(&mut self, asker: Asker, spec: Group, name: Key, detached: bool) {
        if let Err(answer) = self.try_group_create(asker, spec, name, detached) {
            self.answer(asker, answer);
        }
    }

    fn try_group_create(
        &mut self,
        asker: Asker,
        mut spec: Group,
        (namespace, name): Key,
        detached: bool,
    ) -> Result<(), Answer> {
        let refuse = |kind, text: String| Answer::Failed(Failure::new(kind, text));
        spec.validate().map_err(|e| refuse(FailureKind::Infeasible, e.to_string()))?;
        if spec.queue.is_empty()
            && let Some(entry) = self.jobs.get(&asker.job)
        {
            spec.queue.clone_from(&entry.job.queue);
        }
        self.known_queue(&spec.queue).map_err(Answer::Failed)?;
        if detached && (name.is_empty() || namespace.is_empty()) {
            let text = "a detached group needs a name and a namespace, by which others find it";
            return Err(refuse(FailureKind::Infeasible, text.to_owned()));
        }
        let name = match name.is_empty() {
            true => None,
            false => Some(self.name_key(asker, namespace, name)?),
        };
        if let Some((other, key)) = name.as_ref().and_then(|key| Some((self.groups.by_name.get(key)?, key))) {
            let text = format!("{other} has the name {:?} already: remove it, or use another", key.1);
            return Err(refuse(FailureKind::Infeasible, text));
        }
        if self.groups.all.len() >= GROUPS_MAX {
            let text = format!("the cluster has {GROUPS_MAX} placement groups, the most that it may");
            return Err(refuse(FailureKind::Limit, text));
        }
        // A promise that outlives its nodes is kept when others join.
        spec.wait_for_node |= detached || self.group_may_come(&spec);
        self.groups.last += 1;
        let group = GroupId { number: self.groups.last };
        if group.number >= self.groups.reserved {
            self.groups.reserved = group.number.saturating_add(GROUP_NUMBERS_BLOCK);
            self.persist(Record::NextGroup { number: self.groups.reserved });
        }
        if let (true, Some((namespace, name))) = (detached, name.clone()) {
            info!(%group, namespace, name, "detached placement group created");
            self.persist(Record::Group { number: group.number, namespace, name, group: spec.clone() });
        }
        let job = (!detached).then_some(asker.job);
        if let Some(name) = name.clone() {
            self.groups.by_name.insert(name, group);
        }
        let mut entry = Entry::new(job, spec, name);
        entry.creator = Some(asker);
        let spec = Arc::clone(&entry.spec);
        self.groups.all.insert(group, entry);
        self.schedule(scheduler::Event::Group { group, job: job.unwrap_or(ANYBODYS), spec });
        // Refused, and answered, unless it is still there.
        if let Some(entry) = self.groups.all.get_mut(&group) {
            entry.creator = None;
            let answer = entry.answer(group);
            self.answer(asker, answer);
        }
        Ok(())
    }

    pub(super) fn group_ready(&mut self, asker: Asker, group: GroupId) {
        let answer = match self.groups.all.get_mut(&group).filter(|entry| of_job(entry, asker.job)) {
            None => Answer::Failed(unknown(group)),
            Some(entry) if entry.missing == 0 => entry.answer(group),
            Some(entry) if entry.waiters.len() < GROUP_WAITERS_MAX => return entry.waiters.push(asker),
            Some(_) => {
                let text = format!("{GROUP_WAITERS_MAX} wait for {group}, the most that may");
                Answer::Failed(Failure::new(FailureKind::Limit, text))
            }
        };
        self.answer(asker, answer);
    }

    pub(super) fn group_find(&mut self, asker: Asker, namespace: String, name: String) {
        let answer = self.name_key(asker, namespace, name).map_or_else(
            |refusal| refusal,
            |key| {
                let found = self.groups.by_name.get(&key);
                let found = found.and_then(|group| Some((*group, self.groups.all.get(group)?)));
                match found.filter(|(_, entry)| of_job(entry, asker.job)) {
                    Some((group, entry)) => entry.answer(group),
                    None => Answer::NoSuchName,
                }
            },
        );
        self.answer(asker, answer);
    }

    pub(super) fn group_remove(&mut self, asker: Asker, group: GroupId) {
        let known = self.groups.all.get(&group).is_some_and(|entry| of_job(entry, asker.job));
        if known {
            self.drop_group(group, &unknown(group));
            self.schedule(scheduler::Event::GroupGone { group });
        }
        self.answer(asker, if known { Answer::Done } else { Answer::Failed(unknown(group)) });
    }

    /// Forgets a group, and tells who waits for it.
    fn drop_group(&mut self, group: GroupId, failure: &Failure) {
        let Some(entry) = self.groups.all.remove(&group) else { return };
        if let Some(name) = &entry.name {
            self.groups.by_name.remove(name);
        }
        if entry.job.is_none() {
            self.persist(Record::GroupGone { number: group.number });
        }
        for waiter in entry.waiters.into_iter().chain(entry.creator) {
            self.answer(waiter, Answer::Failed(failure.clone()));
        }
    }

    /// Tells the scheduler of the groups found on disk.
    pub(super) fn announce_groups(&mut self) {
        let all: Vec<_> =
            self.groups.all.iter().map(|(group, entry)| (*group, Arc::clone(&entry.spec))).collect();
        for (group, spec) in all {
            self.schedule(scheduler::Event::Promised { group, spec });
        }
    }

    pub(super) fn group_placed(&mut self, group: GroupId, bundles: Vec<BundlePlace>) {
        let Some(entry) = self.groups.all.get_mut(&group) else { return };
        for bundle in bundles {
            if let Some(place) = entry.places.get_mut(bundle.bundle as usize)
                && place.replace(bundle.node).is_none()
            {
                entry.missing = entry.missing.saturating_sub(1);
            }
        }
        if entry.missing > 0 {
            return;
        }
        let answer = entry.answer(group);
        for waiter in std::mem::take(&mut entry.waiters) {
            self.answer(waiter, answer.clone());
        }
    }

    pub(super) fn group_lost(&mut self, group: GroupId, bundles: &[u32]) {
        let Some(entry) = self.groups.all.get_mut(&group) else { return };
        info!(%group, bundles = bundles.len(), "bundles of a placement group lost their node, and wait for another");
        for bundle in bundles {
            if entry.places.get_mut(*bundle as usize).and_then(Option::take).is_some() {
                entry.missing += 1;
            }
        }
    }

    /// The scheduler has forgotten it.
    pub(super) fn group_refused(&mut self, group: GroupId, failure: &Failure) {
        if self.groups.all.get(&group).is_some_and(|entry| entry.job.is_none()) {
            error!(%group, %failure, "a detached placement group is given up");
        }
        self.drop_group(group, failure);
    }

    /// The groups, the oldest first, at most `rows`.
    pub fn group_snapshots(&self, rows: usize) -> Vec<GroupSnapshot> {
        let reasons = self.scheduler.reasons(REASON_LOOKS_MAX);
        let why = |group: GroupId, entry: &Entry| match reasons.is_spent() {
            _ if entry.missing == 0 => String::new(),
            true => later(&group.to_string()),
            false => reasons.why_group(group).unwrap_or_default(),
        };
        let all = self.groups.all.iter().take(rows);
        all.map(|(group, entry)| entry.snapshot(*group, why(*group, entry))).collect()
    }

    pub(super) fn why_group(&self, id: &str, group: GroupId) -> Result<Explanation, Failure> {
        let entry = self.groups.all.get(&group).ok_or_else(|| unknown(group))?;
        let shown = entry.snapshot(group, self.scheduler.why_group(group).unwrap_or_default());
        let name = if shown.name.is_empty() { String::new() } else { format!(" ({})", shown.name) };
        let places = || {
            let on: Vec<String> =
                shown.nodes.iter().map(|(node, count)| format!("{count} on {node}")).collect();
            format!("all of its {} bundles are reserved: {}", shown.bundles, on.join(", "))
        };
        let mut reasons = vec![if shown.why.is_empty() { places() } else { shown.why.clone() }];
        reasons.extend(self.why_no_node(&self.scheduler.unmet_of_group(group)));
        Ok(Explanation { id: id.to_owned(), what: format!("placement group {group}{name}"), reasons })
    }
}

/// Whether a job may use a group: its own, or a detached one.
fn of_job(entry: &Entry, job: JobId) -> bool {
    entry.job.is_none_or(|own| own == job)
}
