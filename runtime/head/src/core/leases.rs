//! Demands and leases: between owners, the scheduler and the granting nodes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, LeaseId, NodeId,
    head::ToAgent,
    host::{Eviction, Grant, Revocation},
    resource::{Class, Strategy},
};
use mobula_scheduler::{self as scheduler, Lease, Millis, RevokeKind, demand::LOCALITY_MAX};
use tracing::warn;

use super::{
    Core, DEMANDS_MAX, Link, RESERVE_MS_MAX, TEXT_BYTES_MAX, refused,
    scaling::{bundles_of, slots_of},
};

/// An owner's class: who, and its number there.
type Key = (HostId, u32);

/// What an owner says it wants.
pub(super) struct Wish {
    pub owner: HostId,
    pub job: JobId,
    pub key: u32,
    pub class: Class,
    pub backlog: u32,
    pub locality: Vec<(NodeId, u64)>,
}

/// What an owner waits for: with slots that are reserved but not announced, which the scheduler no longer counts.
#[derive(Debug)]
struct Wanted {
    job: JobId,
    class: Arc<Class>,
    backlog: u32,
    locality: Vec<(NodeId, u64)>,
}

#[derive(Debug)]
struct Held {
    owner: HostId,
    key: u32,
    node: NodeId,
    slots: u32,
    /// How many of them its owner said last that it goes on with.
    keep: u32,
    phase: Phase,
    /// It was taken away: what runs under it is to be stopped.
    evicted: bool,
    /// Its owner was not heard of for a term, and its node was asked whether anything runs.
    overdue: bool,
    /// Others wanted it before its owner knew of it, who hears of that next.
    wanted_back: Option<Revocation>,
}

#[derive(Debug)]
enum Phase {
    /// The node was asked to name a host, until then at most.
    Reserving(Millis),
    /// The owner knows of it.
    Announced(HostId),
}

/// Leases with what the scheduler does not know of them.
#[derive(Debug, Default)]
pub(super) struct Table {
    wanted: BTreeMap<Key, Wanted>,
    held: BTreeMap<LeaseId, Held>,
    /// Slots reserved but not announced.
    reserving: BTreeMap<Key, u32>,
    /// The leases in [`Phase::Reserving`], by its time: few, of what may be very many.
    starting: BTreeSet<(Millis, LeaseId)>,
    by_host: BTreeMap<HostId, BTreeSet<LeaseId>>,
    /// Announced leases with a process of their own, by the ends of their terms as of some time ago: what was renewed since
    /// is put back when its time comes, and what has ended is dropped.
    alone: BTreeSet<(Millis, LeaseId)>,
    /// How many leases were looked at for [`Self::starting`].
    #[cfg(test)]
    pub looked: std::cell::Cell<usize>,
}

impl Table {
    /// When a node must have named its host at the latest. (Renewals are due with the scheduler's own ticks.)
    pub fn next_deadline(&self) -> Option<Millis> {
        self.starting().next().map(|(until, _)| until)
    }

    /// The leases whose nodes are to name a host, with the time until when, soonest first.
    fn starting(&self) -> impl Iterator<Item = (Millis, LeaseId)> {
        self.starting.iter().copied().inspect(|_| {
            #[cfg(test)]
            self.looked.set(self.looked.get() + 1);
        })
    }

    /// Whether nobody wants or holds anything.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        let starting = self.reserving.is_empty() && self.starting.is_empty();
        self.wanted.is_empty() && self.held.is_empty() && starting && self.by_host.is_empty()
    }

    /// Forgets what these owners wait for. What still runs under their leases, which end next, is nobody's any more.
    pub fn forget_owners(&mut self, gone: impl Fn(HostId) -> bool) {
        self.wanted.retain(|(owner, _), _| !gone(*owner));
        self.held.values_mut().filter(|held| gone(held.owner)).for_each(|held| held.evicted = true);
    }

    /// Nodes that were asked for a host for this class and have not named one yet; each once.
    pub fn reserved_on(&self, owner: HostId, key: u32) -> BTreeSet<NodeId> {
        if self.reserving((owner, key)) == 0 {
            return BTreeSet::new();
        }
        let all = self.starting().filter_map(|(_, lease)| self.held.get(&lease));
        all.filter(|held| (held.owner, held.key) == (owner, key)).map(|held| held.node).collect()
    }

    /// How many leases are on a node.
    pub fn on_node(&self, node: NodeId) -> usize {
        self.held.values().filter(|held| held.node == node).count()
    }

    /// Those of them that their owners know of.
    pub fn announced_on(&self, node: NodeId) -> Vec<(LeaseId, HostId)> {
        let announced = |held: &Held| held.node == node && matches!(held.phase, Phase::Announced(_));
        let all = self.held.iter().filter(|(_, held)| announced(held));
        all.map(|(lease, held)| (*lease, held.owner)).collect()
    }

    /// All leases on a node are taken away; they are to be released next.
    pub fn evict_on(&mut self, node: NodeId) -> Vec<(LeaseId, HostId)> {
        let all = self.held.iter_mut().filter(|(_, held)| held.node == node);
        let evicted = all.map(|(lease, held)| {
            held.evicted = true;
            (*lease, held.owner)
        });
        evicted.collect()
    }

    fn reserving(&self, key: Key) -> u32 {
        self.reserving.get(&key).copied().unwrap_or(0)
    }

    /// What the scheduler should know of a wish.
    fn event(&self, key: Key) -> Option<scheduler::Event> {
        let wanted = self.wanted.get(&key)?;
        Some(scheduler::Event::Demand {
            owner: key.0,
            key: key.1,
            job: wanted.job,
            class: Arc::clone(&wanted.class),
            backlog: wanted.backlog.saturating_sub(self.reserving(key)),
            attempt: 0,
            locality: wanted.locality.clone(),
        })
    }

    fn withdrawal(key: Key, job: JobId) -> scheduler::Event {
        scheduler::Event::Demand {
            owner: key.0,
            key: key.1,
            job,
            class: Arc::default(),
            backlog: 0,
            attempt: 0,
            locality: Vec::new(),
        }
    }

    /// The lease is no longer being reserved.
    fn settle(&mut self, key: Key, slots: u32) {
        if let Some(count) = self.reserving.get_mut(&key) {
            *count = count.saturating_sub(slots);
            if *count == 0 {
                self.reserving.remove(&key);
            }
        }
    }
}

/// Why the scheduler refuses a class or a group.
fn refusal(error: &scheduler::Error) -> Failure {
    let kind = match error {
        scheduler::Error::UnknownQueue(_) => FailureKind::Queue,
        scheduler::Error::UnknownGroup(_) => FailureKind::Unknown,
        _ => FailureKind::Infeasible,
    };
    Failure::new(kind, error.to_string())
}

impl Core {
    pub(super) fn demand(&mut self, wish: Wish) {
        let Wish { owner, job, key, mut class, backlog, mut locality } = wish;
        let at = (owner, key);
        if backlog == 0 {
            self.leases.wanted.remove(&at);
            return self.schedule(Table::withdrawal(at, job));
        }
        if class.queue.is_empty()
            && let Some(entry) = self.jobs.get(&job)
        {
            class.queue.clone_from(&entry.job.queue);
        }
        let refused = if !self.jobs.contains_key(&job) {
            Some(Failure::new(FailureKind::JobEnded, format!("{job} has ended")))
        } else if let Err(e) = class.validate() {
            Some(Failure::new(FailureKind::Infeasible, e.to_string()))
        } else if class.function.len() > TEXT_BYTES_MAX {
            let text = format!("the function's name is longer than {TEXT_BYTES_MAX} bytes");
            Some(Failure::new(FailureKind::Infeasible, text))
        } else if self.leases.wanted.len() >= DEMANDS_MAX && !self.leases.wanted.contains_key(&at) {
            let text = format!("{DEMANDS_MAX} classes wait for slots, the most that may");
            Some(Failure::new(FailureKind::Limit, text))
        } else {
            None
        };
        if let Some(failure) = refused {
            return self.send_to_agent_of(owner.node, ToAgent::Infeasible { owner, key, failure });
        }
        if let Strategy::Node { node, .. } = class.strategy {
            self.call_back(node);
        }
        class.wait_for_node |= slots_of(&class, 1).first().is_some_and(|slot| self.may_come(slot));
        let class = match self.leases.wanted.get(&at) {
            Some(known) if *known.class == class => Arc::clone(&known.class),
            _ => Arc::new(class),
        };
        locality.sort_unstable_by_key(|(node, bytes)| (Reverse(*bytes), *node));
        locality.truncate(LOCALITY_MAX);
        self.leases.wanted.insert(at, Wanted { job, class, backlog, locality });
        if let Some(event) = self.leases.event(at) {
            self.schedule(event);
        }
    }

    /// Withdraws what a job waits for and ends what it holds.
    pub(super) fn end_leases_of(&mut self, job: JobId) {
        self.leases.wanted.retain(|_, wanted| wanted.job != job);
        self.schedule(scheduler::Event::JobGone { job });
    }

    pub(super) fn renew(&mut self, from: NodeId, leases: &[LeaseId]) {
        for lease in leases {
            if let Some(held) = self.leases.held.get_mut(lease).filter(|held| held.owner.node == from) {
                held.overdue = false;
                self.schedule(scheduler::Event::Renew { lease: *lease });
            }
        }
    }

    pub(super) fn release(&mut self, from: NodeId, lease: LeaseId) {
        match self.leases.held.get(&lease) {
            Some(held) if held.owner.node == from => self.schedule(scheduler::Event::Release { lease }),
            Some(_) => warn!(node = %from, %lease, "ignored the release of a lease that another node holds"),
            None => {}
        }
    }

    /// An owner goes on with fewer slots of a lease. What was taken from it meanwhile counts.
    pub(super) fn shrink(&mut self, from: NodeId, lease: LeaseId, keep: u32) {
        match self.leases.held.get_mut(&lease) {
            Some(held) if held.owner.node == from => {
                held.keep = held.keep.min(keep);
                self.shrink_to_kept(lease);
            }
            Some(_) => warn!(node = %from, %lease, "ignored slots of a lease that another node holds"),
            None => {}
        }
    }

    /// Frees the slots that an owner gave back. One of them may still count as waiting, since its executor's word on that
    /// comes another way: it goes when that is here.
    fn shrink_to_kept(&mut self, lease: LeaseId) {
        let Some(keep) = self.leases.held.get(&lease).map(|held| held.keep) else { return };
        let slots = self.scheduler.lease(lease).map_or(0, |view| view.lease.slots.saturating_sub(keep));
        if slots > 0 {
            self.schedule(scheduler::Event::Shrink { lease, slots });
        }
        let left = self.scheduler.lease(lease).map(|view| view.lease.slots);
        if let Some((held, left)) = self.leases.held.get_mut(&lease).zip(left) {
            held.slots = left;
        }
    }

    pub(super) fn block(&mut self, from: NodeId, lease: LeaseId, slots: u32, block: bool) {
        match self.leases.held.get(&lease) {
            Some(held) if held.node == from => {
                let more = held.slots > held.keep;
                self.schedule(match block {
                    true => scheduler::Event::Block { lease, slots },
                    false => scheduler::Event::Unblock { lease, slots },
                });
                if more && !block {
                    self.shrink_to_kept(lease);
                }
            }
            Some(_) => {
                warn!(node = %from, %lease, "ignored a lease's waits from a node that did not grant it")
            }
            None => {}
        }
    }

    pub(super) fn lease_ready(&mut self, link: Link, from: NodeId, lease: LeaseId, host: HostId) {
        let Some(held) = self.leases.held.get_mut(&lease) else {
            // It ended while the host was starting; the notice crossed this one.
            return self.send(link, ToAgent::LeaseEnded { lease, evicted: false });
        };
        let Phase::Reserving(until) = held.phase else {
            warn!(node = %from, %lease, "ignored a further host for a lease");
            return;
        };
        if held.node != from {
            warn!(node = %from, %lease, "ignored a host for a lease that another node grants");
            return;
        }
        held.phase = Phase::Announced(host);
        self.leases.starting.remove(&(until, lease));
        let (owner, key, slots, wanted_back) = (held.owner, held.key, held.slots, held.wanted_back.take());
        self.leases.by_host.entry(host).or_default().insert(lease);
        self.leases.settle((owner, key), slots);
        if let Some(wanted) = self.leases.wanted.get_mut(&(owner, key)) {
            wanted.backlog = wanted.backlog.saturating_sub(slots);
            if wanted.backlog == 0 {
                self.leases.wanted.remove(&(owner, key));
            }
        }
        let Some(view) = self.scheduler.lease(lease) else { return };
        if view.lease.class.has_own_process() {
            self.leases.alone.insert((view.lease.expires, lease));
        }
        let grant = Grant {
            lease,
            key,
            host,
            slots,
            term_ms: view.lease.term.0,
            devices: view.lease.devices.clone(),
        };
        self.send_to_agent_of(owner.node, ToAgent::Granted { owner, grant });
        if let Some(kind) = wanted_back {
            self.send_to_agent_of(owner.node, ToAgent::Revoked { owner, lease, kind });
        }
        // What it has to say of it comes behind the grant.
        self.schedule(scheduler::Event::Announced { lease });
        self.announced(lease, owner, from);
    }

    pub(super) fn lease_failed(&mut self, from: NodeId, lease: LeaseId, failure: Failure) {
        let Some(held) = self.leases.held.get(&lease) else { return };
        if held.node != from || !matches!(held.phase, Phase::Reserving(_)) {
            warn!(node = %from, %lease, "ignored the failure of a lease that waits for no host from this node");
            return;
        }
        let (owner, key) = (held.owner, held.key);
        // The owner decides whether to ask again: asking for it here could go round for ever. Withdrawn first, or
        // what the release frees would answer it.
        if let Some(wanted) = self.leases.wanted.remove(&(owner, key)) {
            self.schedule(Table::withdrawal((owner, key), wanted.job));
        }
        self.schedule(scheduler::Event::Release { lease });
        let failure = failure.on(from.to_string());
        self.send_to_agent_of(owner.node, ToAgent::Infeasible { owner, key, failure });
    }

    /// Ends the leases whose executing host is gone.
    pub(super) fn lose_leases_on(&mut self, host: HostId) {
        for lease in self.leases.by_host.remove(&host).unwrap_or_default() {
            let Some(held) = self.leases.held.get(&lease) else { continue };
            let owner = held.owner;
            self.send_to_agent_of(owner.node, ToAgent::Revoked { owner, lease, kind: Revocation::Lost });
            self.schedule(scheduler::Event::Release { lease });
        }
    }

    /// Keeps reservations alive while their nodes start hosts; puts the wish of one that takes too long back.
    pub(super) fn renew_pending(&mut self) {
        let (late, renew): (Vec<_>, Vec<_>) =
            self.leases.starting().partition(|(until, _)| *until <= self.now);
        for (_, lease) in renew {
            self.schedule(scheduler::Event::Renew { lease });
        }
        for (_, lease) in late {
            warn!(%lease, "its node named no host within {RESERVE_MS_MAX} ms");
            let key = self.leases.held.get(&lease).map(|held| (held.owner, held.key));
            self.schedule(scheduler::Event::Release { lease });
            if let Some(event) = key.and_then(|key| self.leases.event(key)) {
                self.schedule(event);
            }
        }
    }

    /// A lease with a process of its own does not end because its owner stands still, as long as anything runs in that: what
    /// it holds could not be another's. So its node is asked, once a term, and the lease ends when that says so.
    pub(super) fn ask_of_overdue(&mut self) {
        while let Some((ends, lease)) =
            self.leases.alone.first().copied().filter(|(ends, _)| *ends <= self.now)
        {
            self.leases.alone.remove(&(ends, lease));
            let Some(view) = self.scheduler.lease(lease) else { continue };
            let (expires, term) = (view.lease.expires, view.lease.term);
            if expires > self.now {
                self.leases.alone.insert((expires, lease));
                continue;
            }
            let Some(held) = self.leases.held.get_mut(&lease) else { continue };
            held.overdue = true;
            let node = held.node;
            self.leases.alone.insert((self.now.plus(term), lease));
            self.schedule(scheduler::Event::Renew { lease });
            self.send_to_agent_of(node, ToAgent::Overdue { lease });
        }
    }

    /// Nothing runs under a lease; so it ends, unless its owner was heard of meanwhile.
    pub(super) fn at_rest(&mut self, from: NodeId, lease: LeaseId) {
        let Some(held) = self.leases.held.get(&lease).filter(|held| held.overdue) else { return };
        if held.node != from {
            warn!(node = %from, %lease, "ignored what a node says of a lease that another one grants");
            return;
        }
        let owner = held.owner;
        self.send_to_agent_of(owner.node, ToAgent::Revoked { owner, lease, kind: Revocation::Expired });
        self.schedule(scheduler::Event::Release { lease });
    }

    /// Steps the scheduler and carries out what it says.
    pub(super) fn schedule(&mut self, event: scheduler::Event) {
        let mut effects = self.scheduler.step(event, self.now);
        // Wishes whose reservation was lost before the owner knew of it.
        let mut again = BTreeSet::new();
        loop {
            for effect in effects {
                self.carry_out(effect, &mut again);
            }
            let Some(event) = again.pop_first().and_then(|key| self.leases.event(key)) else {
                if again.is_empty() {
                    break;
                }
                effects = Vec::new();
                continue;
            };
            effects = self.scheduler.step(event, self.now);
        }
    }

    fn carry_out(&mut self, effect: scheduler::Effect, again: &mut BTreeSet<Key>) {
        match effect {
            scheduler::Effect::Grant(lease) => self.granted(lease),
            scheduler::Effect::Revoke { lease, owner, kind, .. } => {
                let Some(kind) = self.revocation(lease, kind) else { return };
                self.revoke(lease, owner, kind, again);
            }
            scheduler::Effect::Ended { lease, node } => {
                let mut evicted = false;
                if let Some(held) = self.leases.held.remove(&lease) {
                    evicted = held.evicted;
                    match held.phase {
                        Phase::Reserving(until) => {
                            self.leases.starting.remove(&(until, lease));
                            self.leases.settle((held.owner, held.key), held.slots);
                        }
                        Phase::Announced(host) => {
                            if let Some(on_host) = self.leases.by_host.get_mut(&host) {
                                on_host.remove(&lease);
                                if on_host.is_empty() {
                                    self.leases.by_host.remove(&host);
                                }
                            }
                        }
                    }
                }
                self.send_to_agent_of(node, ToAgent::LeaseEnded { lease, evicted });
            }
            scheduler::Effect::Infeasible { owner, key, error } => {
                if let Some(Wanted { class, backlog, .. }) = self.leases.wanted.remove(&(owner, key)) {
                    self.note_refused(&class.function, slots_of(&class, backlog.into()), &error);
                }
                let failure = refusal(&error);
                self.send_to_agent_of(owner.node, ToAgent::Infeasible { owner, key, failure });
            }
            scheduler::Effect::GroupPlaced { group, bundles } => self.group_placed(group, bundles),
            scheduler::Effect::GroupLost { group, bundles, .. } => self.group_lost(group, &bundles),
            scheduler::Effect::GroupInfeasible { group, error } => {
                let shapes = self.groups.spec(group).map(|spec| bundles_of(group, spec));
                self.note_refused(refused::GROUP, shapes.unwrap_or_default(), &error);
                self.group_refused(group, &refusal(&error));
            }
            // Its leases are revoked one by one.
            scheduler::Effect::GroupRevoked { .. } => {}
        }
    }

    /// How owners are told. `None` for a lease that is unknown.
    fn revocation(&self, lease: LeaseId, kind: RevokeKind) -> Option<Revocation> {
        self.leases.held.get(&lease)?;
        let view = self.scheduler.lease(lease);
        Some(match kind {
            RevokeKind::Idle => Revocation::Idle,
            RevokeKind::Expired => Revocation::Expired,
            RevokeKind::NodeLost => Revocation::Lost,
            RevokeKind::Draining => Revocation::Draining,
            RevokeKind::Preempted { .. } => Revocation::Preempted {
                // A group is given up with all that is in it.
                keep: view.filter(|v| v.lease.bundle.is_none()).map_or(0, |v| v.lease.slots - v.giving),
            },
            RevokeKind::Evicted => {
                Revocation::Evicted { keep: view.map_or(0, |v| v.lease.slots), why: Eviction::Preempted }
            }
            RevokeKind::Removed => Revocation::Evicted { keep: 0, why: Eviction::GroupRemoved },
        })
    }

    fn revoke(&mut self, lease: LeaseId, owner: HostId, kind: Revocation, again: &mut BTreeSet<Key>) {
        let Some(held) = self.leases.held.get_mut(&lease) else { return };
        let mut fewer = 0;
        if let Revocation::Evicted { keep, .. } = kind {
            held.evicted |= keep == 0;
            held.keep = held.keep.min(keep);
            if keep > 0 {
                fewer = held.slots.saturating_sub(keep);
                held.slots -= fewer;
            }
        }
        let key = (owner, held.key);
        match (&held.phase, kind) {
            (Phase::Announced(_), _) => {
                self.send_to_agent_of(owner.node, ToAgent::Revoked { owner, lease, kind });
            }
            (Phase::Reserving(_), Revocation::Expired | Revocation::Lost | Revocation::Evicted { .. }) => {
                // What goes on will be announced with fewer slots; those that are gone are wanted again.
                self.leases.settle(key, fewer);
                again.insert(key);
            }
            // The scheduler asks once a term only: unheard, it would keep others waiting until then.
            (Phase::Reserving(_), Revocation::Idle) => drop(held.wanted_back.get_or_insert(kind)),
            (Phase::Reserving(_), _) => held.wanted_back = Some(kind),
        }
        // What is left of a process's own ends with it, and its owner asks again.
        if matches!(kind, Revocation::Evicted { keep: 0, .. }) && self.scheduler.lease(lease).is_some() {
            self.schedule(scheduler::Event::Release { lease });
        }
    }

    fn granted(&mut self, lease: Lease) {
        let placed = self.jobs.get_mut(&lease.job).map(|entry| {
            entry.placed_on(lease.node);
            entry.job.clone()
        });
        let Some(job) = placed else {
            // Its job's demands are withdrawn with it, so only a defect leads here; give it back all the same.
            warn!(lease = %lease.id, job = %lease.job, "a lease for a job that has ended");
            return self.schedule(scheduler::Event::Release { lease: lease.id });
        };
        let key = (lease.owner, lease.key);
        let until = self.now.plus(Millis(RESERVE_MS_MAX));
        let held = Held {
            owner: lease.owner,
            key: lease.key,
            node: lease.node,
            slots: lease.slots,
            keep: lease.slots,
            phase: Phase::Reserving(until),
            evicted: false,
            overdue: false,
            wanted_back: None,
        };
        self.leases.held.insert(lease.id, held);
        self.leases.starting.insert((until, lease.id));
        let count = self.leases.reserving.entry(key).or_default();
        *count = count.saturating_add(lease.slots);
        let reserve = ToAgent::Reserve {
            lease: lease.id,
            job,
            class: (*lease.class).clone(),
            slots: lease.slots,
            devices: lease.devices,
        };
        self.send_to_agent_of(lease.node, reserve);
    }
}
