//! What an agent decides, without IO: every method takes what happened, and leaves in [`Core::effects`] what is to
//! be done about it. The service around it owns sockets, processes and clocks.
//!
//! | module | what |
//! |---|---|
//! | [`objects`] | regions, objects, pins, room |
//! | [`transfer`] | copies on their way between nodes |
//! | [`leases`] | which host runs which lease |
//! | [`hosts`] | who is here, and who has rings to whom |
//! | `budget` | how much of the store arguments of what runs may take |
//! | `estate` | objects of dead owners |
//! | [`drain`] | what moves off a node that is to leave |
//! | `salvage` | copies of what lay on nodes that are gone |
//! | [`delivery`] | what must be sent to another agent again, and what came before |

pub mod delivery;
pub mod drain;
pub mod hosts;
pub mod leases;
pub mod objects;
pub mod transfer;
mod waits;

mod budget;
mod early;
mod ending;
mod estate;
mod from_head;
mod from_host;
mod salvage;
mod stock;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mobula_ownership::Estate;
use mobula_proto::{
    Failure, FailureKind, HostId, JobId, LeaseId, NodeId, ObjectId, RegionId,
    head::{Between, Job, Node, ToHead, Usage},
    host::{Request, ToHost, Welcome},
    peer::Copy,
    resource::DeviceGrant,
};

use budget::Budget;
use early::{Due, Open};
pub use from_host::no_such_host;
use hosts::{Hosts, Kind};
use leases::{Bounds, Leases, Need};
use objects::{Gone, Key, Objects, Place, Slot, Spill};
use transfer::{PULL_WAITERS_MAX, PULLS_MAX, Pull};
use waits::Waits;

/// What a core is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this agent is.
    pub node: NodeId,
    /// Its processors, rounded up; sizes hosts' thread pools.
    pub cpus: u32,
    /// The store's capacity.
    pub store_bytes: u64,
    /// What may be spilled from it.
    pub spill: objects::Limits,
    /// How copies are pulled.
    pub pulls: transfer::Pulls,
    /// Whether a driver in this process executes its job's shared classes.
    pub in_process_executor: bool,
    /// How long a host of one lease is kept without one.
    pub idle_timeout: Duration,
}

/// A host to be started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Who it will be.
    pub host: HostId,
    /// Its job.
    pub job: Job,
    /// What it may use: its lease's, or all of the node's CPUs and no device.
    pub bounds: Bounds,
}

/// Something to be done.
#[derive(Debug)]
pub enum Effect {
    /// Send this to a host here, with these descriptors.
    Tell(HostId, ToHost, Vec<Arc<OwnedFd>>),
    /// Send this to the head.
    Head(ToHead),
    /// Send this to another agent.
    Peer(NodeId, Between),
    /// Start a host; `hello` or [`Core::host_ended`] follows.
    Launch(Box<Launch>),
    /// Kill a host and its process group; [`Core::host_ended`] follows.
    Kill(HostId),
    /// End a driver's link once it has what was sent to it; [`Core::host_ended`] follows.
    Close(HostId),
    /// A host is ready to be talked to.
    Ready(HostId, JobId),
    /// Make a pair of rings for these two, with their doorbells.
    Rings([(HostId, Arc<OwnedFd>); 2]),
    /// Pull this, to be this copy in the agent's own memory; [`Core::pulled`] follows. Whether nothing waits for it yet.
    Pull(Key, Copy, bool),
    /// Something waits now for what is pulled or read back, maybe ahead: it is not to wait for memory behind what nothing
    /// waits for.
    Hurry(Key),
    /// If this pull has no memory yet, it is not to begin: [`Core::pull_recalled`] follows, and another [`Effect::Pull`]
    /// some time.
    Recall(Key),
    /// Nobody wants what is being pulled any more: [`Core::pulled`] follows at once.
    EndPull(Key),
    /// Write a file of copies, which stay in memory until [`Core::spilled`] follows.
    Spill(Spill),
    /// Read a copy of so many bytes back into the agent's own memory for its job; [`Core::restored`] follows. Whether
    /// nothing waits for it yet.
    Restore(Key, u64, Slot, bool),
    /// Remove a file of spilled copies.
    DeleteFile(u64),
    /// Other agents that had to wait for this copy can be served now, or not.
    Serve(Key, Result<(), Failure>),
    /// Copies in the agent's own memory may go.
    Reclaim(Vec<Key>),
    /// Room for the agent's own memory was granted, or refused.
    Room(Request, Result<(), Failure>),
    /// A job's memory, files and output may go.
    JobGone(JobId),
}

/// Who waits for a copy to be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Host(HostId, Request),
    /// Other agents, whose wishes are kept outside.
    Nodes,
}

/// A copy that is being read back.
#[derive(Debug)]
struct Restore {
    readers: Vec<Reader>,
    /// None of them waits for it yet.
    ahead: bool,
}

#[derive(Debug)]
struct JobState {
    job: Job,
    /// Fingerprint of the driver's registry, where the driver is here.
    registry: Option<u64>,
    /// Nodes that heard of the job's end first, and have sent all that its hosts printed.
    silent: BTreeSet<NodeId>,
}

/// The whole of it.
#[derive(Debug)]
pub struct Core {
    config: Config,
    /// Objects and regions.
    pub objects: Objects,
    leases: Leases,
    waits: Waits,
    hosts: Hosts,
    jobs: BTreeMap<JobId, JobState>,
    endings: BTreeMap<JobId, ending::Ending>,
    nodes: BTreeMap<NodeId, Node>,
    /// The last incarnation of each node number that is gone.
    gone_nodes: BTreeMap<u32, u32>,
    /// By what they will be here.
    pulls: BTreeMap<Key, Pull>,
    queue: transfer::Queue,
    filling: transfer::Filling,
    restores: BTreeMap<Key, Restore>,
    draining: Option<drain::Draining>,
    noting: drain::Noting,
    given: drain::Given,
    stewards: BTreeSet<HostId>,
    drivers: BTreeMap<HostId, u64>,
    early: early::Early,
    budget: Budget,
    estate: Estate,
    salvages: salvage::Salvages,
    /// How those died who are not buried yet; an agent stands for the hosts of its node.
    deaths: BTreeMap<HostId, Failure>,
    /// How long hosts here may take to say what they hold of what those owned.
    mourn_until: BTreeMap<HostId, Instant>,
    /// When claims that nobody answers are made again.
    ask_again_at: Option<Instant>,
    countings: stock::Countings,
    pulled_bytes: u64,
    served_bytes: u64,
    /// What is to be done, in order; whoever called takes it.
    pub effects: Vec<Effect>,
}

impl Core {
    /// A core that knows of nobody yet.
    pub fn new(config: Config) -> Self {
        Self {
            objects: Objects::new(config.store_bytes, config.spill),
            leases: Leases::new(config.idle_timeout),
            waits: Waits::default(),
            hosts: Hosts::default(),
            jobs: BTreeMap::new(),
            endings: BTreeMap::new(),
            nodes: BTreeMap::new(),
            gone_nodes: BTreeMap::new(),
            pulls: BTreeMap::new(),
            queue: transfer::Queue::new(config.store_bytes, config.pulls.in_flight),
            filling: transfer::Filling::default(),
            restores: BTreeMap::new(),
            draining: None,
            noting: BTreeMap::new(),
            given: BTreeMap::new(),
            stewards: BTreeSet::new(),
            drivers: BTreeMap::new(),
            early: early::Early::default(),
            budget: Budget::new(config.store_bytes),
            estate: Estate::new(config.node),
            salvages: salvage::Salvages::default(),
            deaths: BTreeMap::new(),
            mourn_until: BTreeMap::new(),
            ask_again_at: None,
            countings: stock::Countings::default(),
            pulled_bytes: 0,
            served_bytes: 0,
            effects: Vec::new(),
            config,
        }
    }

    /// Who this agent is.
    pub fn node(&self) -> NodeId {
        self.config.node
    }

    /// The hosts here.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// What the node uses.
    pub fn usage(&self) -> Usage {
        let counters = self.objects.counters();
        Usage {
            spill_used_bytes: self.objects.disk_bytes(),
            spilled_bytes: counters.spilled_bytes,
            spilled: counters.spilled,
            restored_bytes: counters.restored_bytes,
            restored: counters.restored,
            evicted_bytes: counters.evicted_bytes,
            evicted: counters.evicted,
            waiting: self.objects.waiting(),
            store_used_bytes: self.objects.used(),
            objects: self.objects.len(),
            primaries: self.objects.primaries().0,
            pinned: self.objects.pinned(),
            hosts: u32::try_from(self.hosts.len()).unwrap_or(u32::MAX),
            pulled_bytes: self.pulled_bytes,
            served_bytes: self.served_bytes,
        }
    }

    /// The job's driver, where the job is known.
    pub fn driver_of(&self, job: JobId) -> Option<HostId> {
        self.jobs.get(&job).map(|state| state.job.driver)
    }

    /// When [`Core::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.objects.next_deadline(),
            self.leases.next_deadline(),
            self.waits.next_deadline(),
            self.early.next_deadline(),
            self.budget.next_deadline(),
            self.drain_deadline(),
            self.ask_again_at,
            self.salvages.next_deadline(),
            self.countings.next_deadline(),
            self.mourn_until.values().min().copied(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        self.objects.at(now);
        for host in self.leases.expire(now) {
            self.effects.push(Effect::Kill(host));
        }
        self.place_waiting();
        for (lease, slots) in self.waits.tick(now) {
            if self.leases.has_cpu(lease) {
                self.effects.push(Effect::Head(ToHead::Block { lease, slots }));
            }
        }
        let due = self.early.tick(now);
        self.wishes_due(due);
        if self.budget.next_deadline().is_some_and(|at| at <= now) {
            self.share_budget(now);
        }
        self.look(now);
        self.ask_again(now);
        self.salvage_again(now);
        self.bury_without_the_silent(now);
        self.count_no_longer(now);
        self.objects.retry(now);
        self.objects.unanswered(now);
        if self.objects.overdue(now) {
            self.look_for_room(now);
        }
        self.pump();
    }

    /// A connection or an attachment: who it will be, unless there are too many. `in_process` says that it is in
    /// the agent's own process.
    ///
    /// # Errors
    /// A limit, or the wish for tasks of a job that has ended.
    pub fn driver_arrived(&mut self, in_process: bool) -> Result<HostId, Failure> {
        let kind = if in_process { Kind::InProcess } else { Kind::Driver };
        self.add_host(kind, None, Vec::new())
    }

    fn add_host(
        &mut self,
        kind: Kind,
        job: Option<JobId>,
        devices: Vec<DeviceGrant>,
    ) -> Result<HostId, Failure> {
        let id = HostId { node: self.config.node, seq: self.hosts.next_seq() };
        if self.hosts.add(id, kind, job, devices) {
            return Ok(id);
        }
        let text = format!("this node has {} hosts already, the most it may", hosts::HOSTS_MAX);
        Err(Failure::new(FailureKind::Limit, text).on(self.config.node.to_string()))
    }

    fn launch(
        &mut self,
        kind: Kind,
        job: &Job,
        lease: Option<LeaseId>,
        bounds: Bounds,
    ) -> Result<HostId, Failure> {
        let host = self.add_host(kind, Some(job.job), bounds.devices.clone())?;
        if let Some(lease) = lease {
            self.leases.host_started(host, lease);
        }
        self.effects.push(Effect::Launch(Box::new(Launch { host, job: job.clone(), bounds })));
        Ok(host)
    }

    /// What a host may use that runs whatever its job has here.
    fn shared_bounds(&self) -> Bounds {
        Bounds { devices: Vec::new(), threads: self.config.cpus.max(1), memory: None }
    }

    fn welcome(&self, id: HostId) -> Option<Welcome> {
        let host = self.hosts.get(id)?;
        let job = &self.jobs.get(&host.job?)?.job;
        Some(Welcome {
            host: id,
            job: job.job,
            driver: job.driver,
            namespace: job.namespace.clone(),
            cpus: self.config.cpus,
            store_bytes: self.config.store_bytes,
            devices: host.devices.clone(),
            shared: matches!(host.kind, Kind::Shared)
                || (host.kind == Kind::InProcess && self.config.in_process_executor),
        })
    }

    /// A host is gone: its process ended or its link broke. `failure` says how.
    pub fn host_ended(&mut self, id: HostId, failure: Failure, now: Instant) {
        let Some(host) = self.hosts.remove(id) else { return };
        let failure = failure.on(self.config.node.to_string());
        self.drivers.remove(&id);
        self.pulls_without(id);
        for restore in self.restores.values_mut() {
            restore.readers.retain(|reader| !matches!(reader, Reader::Host(host, _) if *host == id));
        }
        let leases = self.leases.host_gone(id);
        self.place_waiting();
        let steward = self.stewards.remove(&id);
        if !host.ready {
            for lease in leases {
                self.effects.push(Effect::Head(ToHead::LeaseFailed { lease, failure: failure.clone() }));
            }
        }
        let gone = self.objects.host_gone(id);
        self.gone(gone);
        self.mourns_no_more(id);
        self.salvages.host_gone(id);
        self.budget_without(id);
        if let Some(job) = host.job {
            if host.ready || steward {
                let ended = ToHead::HostEnded { host: id, job, failure: failure.clone() };
                self.effects.push(Effect::Head(ended));
                self.host_died(id, job, &failure, now);
            }
            if host.kind.is_driver() && self.jobs.contains_key(&job) {
                let why =
                    Failure::new(FailureKind::JobEnded, format!("its driver ended: {}", failure.message))
                        .of(job.to_string());
                // Whether the job ends with it is the head's to say: detached actors may keep it.
                self.effects.push(Effect::Head(ToHead::JobEnd { job, failure: why }));
            }
            self.ending_without(job, host.kind);
            let due = self.early.host_gone(job, id);
            self.wishes_due(due);
        }
        self.pump();
    }

    /// A host broke the protocol: it is ended.
    fn violation(&mut self, id: HostId, what: &dyn std::fmt::Display) {
        tracing::warn!(host = %id, what = %what, "a host broke the protocol and is ended");
        let launched = self.hosts.get(id).is_some_and(|host| host.kind.is_launched());
        self.effects.push(if launched { Effect::Kill(id) } else { Effect::Close(id) });
    }

    fn gone(&mut self, gone: Gone) {
        for (writer, copies) in gone.reclaim {
            if writer.is_agent() {
                self.effects.push(Effect::Reclaim(copies));
            } else {
                let gone = copies.into_iter().map(|(object, attempt, _)| (object, attempt));
                let give_back = self.objects.hosts_have_too_much();
                match self.effects.last_mut() {
                    // As in a row of objects that are freed one by one.
                    Some(Effect::Tell(to, ToHost::Reclaim { objects, give_back: before }, _))
                        if *to == writer && *before == give_back =>
                    {
                        objects.extend(gone);
                    }
                    _ => {
                        let message = ToHost::Reclaim { objects: gone.collect(), give_back };
                        self.effects.push(Effect::Tell(writer, message, Vec::new()));
                    }
                }
            }
        }
        for (node, (object, attempt, job)) in gone.drop_at {
            self.effects.push(Effect::Peer(node, Between::Drop { object, attempt, job }));
        }
        for (host, region) in gone.unmap {
            self.effects.push(Effect::Tell(host, ToHost::Unmap { region }, Vec::new()));
        }
        self.effects.extend(gone.delete.into_iter().map(Effect::DeleteFile));
    }

    /// Grants what fits, after making room where that is needed, or soon will be.
    fn pump(&mut self) {
        let room = self.objects.make_room();
        self.gone(room.gone);
        self.effects.extend(room.spills.into_iter().map(Effect::Spill));
        for writer in self.objects.idle_writers() {
            // The agent's own go by themselves while somebody waits.
            if !writer.is_agent() {
                let message = ToHost::Reclaim { objects: Vec::new(), give_back: true };
                self.effects.push(Effect::Tell(writer, message, Vec::new()));
            }
        }
        for (writer, request) in self.objects.grants() {
            self.room(writer, request, Ok(()));
        }
        self.no_longer_short();
    }

    fn room(&mut self, writer: HostId, request: Request, result: Result<(), Failure>) {
        if writer.is_agent() {
            self.effects.push(Effect::Room(request, result));
            return;
        }
        let message = match result {
            Ok(()) => ToHost::RegionGranted { request },
            Err(failure) => ToHost::RegionRefused { request, failure },
        };
        self.effects.push(Effect::Tell(writer, message, Vec::new()));
    }

    /// `writer` (a host, or this agent) wants a region; the answer is an effect, now or later.
    pub fn want_region(
        &mut self,
        writer: HostId,
        request: Request,
        bytes: u64,
        wait: Duration,
        now: Instant,
    ) {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        match self.objects.want(writer, request, bytes, now + wait, wait_ms) {
            objects::Want::Granted => self.room(writer, request, Ok(())),
            objects::Want::Waiting => self.pump(),
            objects::Want::Refused(failure) => {
                self.room(writer, request, Err(failure.on(self.config.node.to_string())));
            }
        }
    }

    /// `writer` needs no region any more; what it was granted meanwhile comes back.
    pub fn unwant_region(&mut self, writer: HostId, request: Request) {
        self.objects.unwant(writer, request);
        self.pump();
    }

    /// A file of spilled copies was written, or not, and why.
    pub fn spilled(&mut self, file: u64, result: Result<(), String>, now: Instant) {
        let gone = self.objects.spilled(file, result, now);
        self.gone(gone);
        self.pump();
    }

    /// A file was deleted: others may take its place.
    pub fn file_deleted(&mut self, file: u64) {
        self.objects.deleted(file);
        self.pump();
    }

    /// The agent dropped an empty region of its own.
    pub fn own_region_removed(&mut self, region: RegionId) {
        match self.objects.remove_region(region) {
            Ok(gone) => self.gone(gone),
            Err(error) => {
                tracing::error!(%error, "the agent's own memory is not what its table says");
                return;
            }
        }
        self.pump();
    }

    /// So many bytes lie in regions of the agent's own in which nothing lies: it drops them once somebody lacks room, and
    /// nothing else has to leave memory for that. Says whether there are fewer than before while somebody does.
    pub fn own_empty(&mut self, bytes: u64) -> bool {
        let fewer = std::mem::replace(&mut self.objects.own_empty_bytes, bytes) > bytes;
        let short = fewer && self.objects.short_by() > 0;
        if short {
            self.pump();
        }
        short
    }

    /// The agent gave back room that it had set aside.
    pub fn spare_dropped(&mut self, bytes: u64) {
        self.objects.unreserve(self.config.node.agent(), bytes);
        self.pump();
    }

    /// Whether this host's job (if it has one) still runs.
    fn job_of(&self, id: HostId) -> Option<JobId> {
        self.hosts.get(id)?.job.filter(|job| self.jobs.contains_key(job))
    }

    /// Whether a host here runs what a driver gives to it: one that this agent started, for that driver's job. A steward
    /// needs no driver.
    pub fn is_of_driver(&self, host: HostId, driver: HostId) -> bool {
        let job = self.job_of(host).and_then(|job| self.jobs.get(&job));
        let kind = self.hosts.get(host).map(|host| host.kind);
        matches!(kind, Some(Kind::Shared | Kind::Own)) && job.is_some_and(|state| state.job.driver == driver)
    }

    /// Whether the job still runs here.
    pub fn has_job(&self, job: JobId) -> bool {
        self.jobs.contains_key(&job)
    }

    /// Whether the head said that a node is gone. One that it has not told of yet may be a new one.
    pub fn has_gone(&self, node: NodeId) -> bool {
        self.gone_nodes.get(&node.number).is_some_and(|last| node.incarnation <= *last)
    }

    fn no_copy(&self, attempt: u32) -> String {
        format!("{} has no copy of it by attempt {attempt}", self.config.node)
    }

    fn open_failed(&mut self, id: HostId, request: Request, object: ObjectId, why: String) {
        let failure = Failure::new(FailureKind::ObjectLost, why).of(object.to_string());
        self.effects.push(Effect::Tell(id, ToHost::OpenFailed { request, failure }, Vec::new()));
    }

    /// An object is complete: whatever was wanted of it meanwhile.
    fn sealed(&mut self, key: Key, now: Instant) {
        if self.estate.is_late(key.0) {
            self.free_here(key.0, 0..=key.1, None);
        }
        let Some(wish) = self.early.take(key) else { return };
        for open in wish.opens {
            self.open(open, key.0, now);
        }
        if wish.nodes {
            self.effects.push(Effect::Serve(key, Ok(())));
        }
        if wish.freed {
            self.free_here(key.0, key.1..=key.1, None);
        }
    }

    fn open(&mut self, open: Open, object: ObjectId, now: Instant) {
        let Open { host: id, job, request, ahead, copy } = open;
        let failed = |kind: FailureKind, why: String| {
            let failure = Failure::new(kind, why).of(object.to_string());
            Effect::Tell(id, ToHost::OpenFailed { request, failure }, Vec::new())
        };
        let key = (object, copy.attempt, job);
        self.lies_there(object, copy);
        if let Some(place) = self.objects.find(key) {
            if place.is_some() {
                self.opened(id, request, key);
            } else if let Err(why) = self.restore(key, Reader::Host(id, request), ahead) {
                self.effects.push(failed(FailureKind::Limit, why));
            }
            return;
        }
        let me = self.config.node;
        let home = (object, copy.attempt, copy.job);
        // With a copy of another job's here, a further one is made in memory of the reader's.
        let there = job != copy.job && self.objects.find(home).is_some();
        if copy.node == me && there && self.objects.for_readers(object, &copy).is_none() {
            // It was not told of it.
            return self.open_failed(id, request, object, self.no_copy(copy.attempt));
        }
        if copy.node == me && !there {
            if !self.early.open(home, now, self.early_wait(), open) {
                let why = "too many wait for what is not here yet: try again later".to_owned();
                self.effects.push(failed(FailureKind::Unreachable, why));
            }
            return;
        }
        if copy.node != me && self.has_gone(copy.node) {
            self.effects
                .push(failed(FailureKind::ObjectLost, format!("{}, which held it, is gone", copy.node)));
            return;
        }
        let known = self.pulls.contains_key(&key);
        if !known && self.pulls.len() >= PULLS_MAX {
            let why = format!("{PULLS_MAX} pulls are under way already, the most that may");
            self.effects.push(failed(FailureKind::Limit, why));
            return;
        }
        let pull = self.pulls.entry(key).or_insert_with(|| Pull::new(copy));
        if pull.waiting.len() >= PULL_WAITERS_MAX {
            let why = format!("{PULL_WAITERS_MAX} readers wait for it already, the most that may");
            self.effects.push(failed(FailureKind::Limit, why));
            return;
        }
        pull.waiting.push((id, request, copy));
        if !known {
            self.queue.add((key, copy), ahead);
        } else if !ahead {
            self.hurry(job, object);
        }
        self.start_pulls();
    }

    /// How long something may not be there yet before it is asked where it is. Where the node drains, it was most likely
    /// moved, which its owner knows.
    fn early_wait(&self) -> Duration {
        if self.draining.is_some() { Duration::ZERO } else { early::EARLY_WAIT }
    }

    /// Does what is due about objects that are not there yet.
    fn wishes_due(&mut self, due: Vec<Due>) {
        let mut due = VecDeque::from(due);
        while let Some(next) = due.pop_front() {
            let (key, wish, kind, why) = match next {
                Due::Ask(job, number) => {
                    let mut hosts = self.hosts.of_job(job);
                    hosts.retain(|id| self.hosts.get(*id).is_some_and(|host| host.ready));
                    for host in &hosts {
                        self.effects.push(Effect::Tell(*host, ToHost::Mark { number }, Vec::new()));
                    }
                    due.extend(self.early.asked(job, hosts));
                    continue;
                }
                Due::Absent(key, wish) => (key, wish, FailureKind::ObjectLost, self.no_copy(key.1)),
                Due::Unknown(key, wish, silent) => {
                    let silent = silent.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    let why = format!(
                        "{}, and it is not known whether one comes: nothing is heard of {silent}; try again later",
                        self.no_copy(key.1)
                    );
                    (key, wish, FailureKind::Unreachable, why)
                }
            };
            let failure = Failure::new(kind, why).of(key.0.to_string());
            for open in wish.opens {
                let message = ToHost::OpenFailed { request: open.request, failure: failure.clone() };
                self.effects.push(Effect::Tell(open.host, message, Vec::new()));
            }
            if wish.nodes {
                self.effects.push(Effect::Serve(key, Err(failure)));
            }
        }
    }

    /// Has a copy read back from disk for `reader`, or fetched from whom it was given to. It may not wait for it yet
    /// (`ahead`).
    fn restore(&mut self, key: Key, reader: Reader, ahead: bool) -> Result<(), String> {
        let slot = self.objects.on_disk(key);
        if slot.is_none() && self.objects.lies_with(key).is_none() {
            return Err(self.no_copy(key.1));
        }
        let known = self.restores.contains_key(&key);
        if !known && self.restores.len() >= PULLS_MAX {
            return Err(format!("{PULLS_MAX} objects are being read from disk already, the most that may"));
        }
        let Restore { readers, ahead: before } =
            self.restores.entry(key).or_insert_with(|| Restore { readers: Vec::new(), ahead });
        if readers.len() >= PULL_WAITERS_MAX {
            return Err(format!("{PULL_WAITERS_MAX} readers wait for it already, the most that may"));
        }
        if reader != Reader::Nodes || !readers.contains(&Reader::Nodes) {
            readers.push(reader);
        }
        if !known {
            match slot {
                Some((slot, bytes)) => self.effects.push(Effect::Restore(key, bytes, slot, ahead)),
                None => self.fetch_back(key),
            }
        } else if !ahead && std::mem::take(before) {
            self.effects.push(Effect::Hurry(key));
        }
        Ok(())
    }

    /// Pulls a primary copy that cannot be read here any more from whoever has one: [`Core::restored`] follows. It waits
    /// for no other pull, which may wait for this one on another node.
    fn fetch_back(&mut self, key: Key) {
        let (_, bytes) = self.objects.lies_with(key).unwrap_or_default();
        let copy = Copy { node: self.config.node, bytes, attempt: key.1, job: key.2 };
        self.pulls.insert(key, Pull::new(copy));
        self.queue.begin(key, bytes, false);
        self.effects.push(Effect::Pull(key, copy, false));
    }

    /// A copy was read back from disk, or fetched from another node, to there; or why it was not. One that cannot be read is
    /// fetched from whom it was given to, if it was, and else is a copy no more. Returns
    /// whether it is in the table; if not, its memory is the caller's to free.
    pub fn restored(&mut self, key: Key, result: Result<(RegionId, u64), Failure>) -> bool {
        let readers = self.restores.remove(&key).map_or_else(Vec::new, |restore| restore.readers);
        let result = result.and_then(|(region, offset)| {
            if self.objects.restored(key, region, offset) {
                Ok(())
            } else {
                Err(Failure::new(FailureKind::ObjectLost, "it was freed while it was read from disk"))
            }
        });
        let failure = result.err().map(|failure| failure.of(key.0.to_string()));
        if failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::ObjectLost) {
            let on_disk = self.objects.on_disk(key).is_some();
            let gone = if on_disk { self.objects.unreadable(key) } else { self.objects.nowhere(key) };
            self.gone(gone);
            if on_disk && self.objects.has(key) {
                self.restores.insert(key, Restore { readers, ahead: false });
                self.fetch_back(key);
                return false;
            }
        }
        let mut nodes = false;
        for reader in readers {
            match (reader, &failure) {
                (Reader::Host(host, request), None) => self.opened(host, request, key),
                (Reader::Host(host, request), Some(failure)) => {
                    let message = ToHost::OpenFailed { request, failure: failure.clone() };
                    self.effects.push(Effect::Tell(host, message, Vec::new()));
                }
                (Reader::Nodes, failure) => {
                    nodes = true;
                    let served = failure.clone().map_or(Ok(()), Err);
                    self.effects.push(Effect::Serve(key, served));
                }
            }
        }
        // They pin it first.
        if !nodes {
            self.pump();
        }
        failure.is_none()
    }

    /// Nobody waits for what was read from disk for a job that is gone.
    fn restores_without(&mut self) {
        let objects = &self.objects;
        let gone = self.restores.extract_if(.., |key, _| !objects.has(*key));
        for (key, restore) in gone {
            for reader in restore.readers {
                if reader == Reader::Nodes {
                    let failure =
                        Failure::new(FailureKind::ObjectLost, "its job is over").of(key.0.to_string());
                    self.effects.push(Effect::Serve(key, Err(failure)));
                }
            }
        }
    }

    fn opened(&mut self, id: HostId, request: Request, key: Key) {
        let Some(place) = self.objects.pin(key, id) else { return };
        let Place { region, region_bytes, offset, bytes, .. } = place;
        let fds = self.objects.region_fd_for(region, id).into_iter().collect();
        let message = ToHost::Opened { request, region, region_bytes, offset, bytes, lost: false };
        self.effects.push(Effect::Tell(id, message, fds));
    }

    /// Another agent says something that concerns objects; relays and output do not come here.
    pub fn from_peer(&mut self, message: Between) {
        match message {
            Between::Free { object, copy } => self.free_here(object, 0..=copy.attempt, None),
            Between::Discard { object, last, attempt, job } => self.discard_here(object, last, attempt, job),
            Between::Drop { object, attempt, job } => {
                for (_, pull) in self.pulls.range_mut(objects::up_to(object, attempt)) {
                    pull.dropped |= pull.copy.job == job;
                }
                self.drop_salvaged((object, attempt, job));
                let gone = self.objects.drop_pulled(object, attempt, job);
                self.gone(gone);
                self.pump();
            }
            Between::OutputEnded { job, node } => self.output_ended(job, node),
            Between::Claim { host, number, objects, gone } => {
                self.claimed_from_here(host, number, objects, &gone);
            }
            Between::Claimed { host, number, by, answers } => self.claims_answered(by, host, number, answers),
            Between::Unclaim { host, object } => self.unclaimed(host, object),
            Between::Salvage { owner, node } => self.say_salvaged(owner, node),
            Between::Salvaged { owner, node, by, copies, more } => {
                self.salvaged((owner, node), by, copies, more);
            }
            Between::Contains { object, copy, at, refs } => self.given_contains(object, copy, at, &refs),
            Between::Keep { object, copy, refs, inherited } => self.keep(object, copy, refs, inherited),
            Between::Moved { object, from, copy } => self.moved(object, from, copy),
            Between::LiesHere { object, copy } => self.is_spare(object, copy),
            Between::Noted { object, copy, noted } => self.noted(object, copy, noted),
            Between::WhatHolds { by, owner, number, objects } => self.what_holds(by, owner, number, objects),
            Between::Holds { owner, number, held } => self.holds(owner, number, held),
            Between::Kept { object, attempt, job, taken, by } => self.kept((object, attempt, job), taken, by),
            Between::Held { object, attempt, job, nodes } => self.held((object, attempt, job), nodes),
            Between::Hello { .. }
            | Between::Begin { .. }
            | Between::Received { .. }
            | Between::Severed { .. }
            | Between::Relay { .. }
            | Between::NotHere { .. }
            | Between::Output { .. } => {}
        }
    }

    fn free_here(&mut self, object: ObjectId, attempts: RangeInclusive<u32>, home: Option<JobId>) {
        let gone = self.objects.free(object, attempts, home);
        self.gone(gone);
        self.pump();
    }

    fn discard_here(&mut self, first: ObjectId, last: u32, attempt: u32, home: Option<JobId>) {
        let gone = self.objects.discard(first, last, attempt, home);
        self.gone(gone);
        self.pump();
    }

    /// Every job ends at once: the head is gone for good, or the agent is told to stop.
    pub fn end_all(&mut self, failure: &Failure) {
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.end_job(job, failure.clone(), &[]);
        }
        let rest: Vec<_> = self.hosts.iter().map(|(id, host)| (id, host.kind.is_launched())).collect();
        for (id, launched) in rest {
            self.effects.push(if launched { Effect::Kill(id) } else { Effect::Close(id) });
        }
    }

    fn need(job: JobId, class: &mobula_proto::resource::Class, devices: &[DeviceGrant]) -> Need {
        if class.isolation == mobula_proto::resource::Isolation::Process || !devices.is_empty() {
            Need::Own(job, Bounds::new(&class.resources, devices.to_vec()))
        } else {
            Need::Shared(job)
        }
    }
}
