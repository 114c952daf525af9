//! Jobs, their drivers, and the stewards of their detached actors.

use std::collections::BTreeSet;

use mobula_proto::{
    BinaryHash, Failure, FailureKind, HostId, JobId, NodeId,
    head::{Job, ToAgent},
    host::{Answer, Request},
    resource::check_name,
};
use mobula_scheduler::{self as scheduler, Millis};
use tracing::{info, warn};

use super::{
    Asker, Core, FILE_NAME_BYTES_MAX, JOB_ARGUMENTS_MAX, JOB_FILES_MAX, JOB_NUMBERS_BLOCK, JOBS_MAX, Link,
    PeerKind, STEWARD_START_MS_MAX, STEWARD_WAITERS_MAX, members::Member,
};
use crate::state::Record;

/// A running job.
#[derive(Debug)]
pub(super) struct Entry {
    pub job: Job,
    steward: Steward,
    /// The nodes that were asked for hosts.
    places: BTreeSet<NodeId>,
    /// The driver is over; detached actors keep the job going.
    detached: bool,
}

/// The host that owns a job's detached actors.
#[derive(Debug)]
enum Steward {
    None,
    Starting { on: NodeId, until: Millis, waiters: Vec<Asker> },
    Ready(HostId),
}

impl Entry {
    pub fn steward(&self) -> Option<HostId> {
        match self.steward {
            Steward::Ready(host) => Some(host),
            _ => None,
        }
    }

    /// The job has, or will have, hosts on this node.
    pub fn placed_on(&mut self, node: NodeId) {
        self.places.insert(node);
    }

    /// This node is gone, and its hosts with it.
    pub fn left_by(&mut self, node: NodeId) {
        self.places.remove(&node);
    }

    /// The nodes with which the job would end: its driver's, and its steward's.
    pub fn needs(&self) -> impl Iterator<Item = NodeId> {
        let driver = (!self.detached).then_some(self.job.driver.node);
        let steward = match self.steward {
            Steward::None => None,
            Steward::Starting { on, .. } => Some(on),
            Steward::Ready(host) => Some(host.node),
        };
        driver.into_iter().chain(steward)
    }

    pub fn deadline(&self) -> Option<Millis> {
        match self.steward {
            Steward::Starting { until, .. } => Some(until),
            _ => None,
        }
    }
}

/// What a driver wants started.
pub(super) struct Start {
    pub request: Request,
    pub driver: HostId,
    pub name: String,
    pub namespace: String,
    pub queue: String,
    pub binary: BinaryHash,
    /// What the program is given when it is executed as a host.
    pub arguments: Vec<String>,
    pub files: Vec<(String, BinaryHash)>,
}

impl Core {
    pub(super) fn job_start(&mut self, link: Link, start: Start) {
        if let Err(failure) = self.may_start(&start) {
            let Start { request, driver: host, .. } = start;
            return self.send(link, ToAgent::Answered { host, request, answer: Answer::Failed(failure) });
        }
        let job = JobId { number: self.next_job };
        self.next_job = self.next_job.saturating_add(1);
        if job.number >= self.reserved_jobs {
            self.reserved_jobs = job.number.saturating_add(JOB_NUMBERS_BLOCK);
            self.persist(Record::NextJob { number: self.reserved_jobs });
        }
        let Start { request, driver, name, namespace, queue, binary, arguments, files } = start;
        let namespace = if namespace.is_empty() { job.to_string() } else { namespace };
        let job = Job { job, driver, name, namespace, queue, binary, arguments, files };
        info!(job = %job.job, name = job.name, driver = %driver, "job started");
        let entry =
            Entry { job: job.clone(), steward: Steward::None, places: BTreeSet::new(), detached: false };
        self.jobs.insert(job.job, entry);
        self.call_back(driver.node);
        self.send(link, ToAgent::JobStarted { request, job });
    }

    fn may_start(&self, start: &Start) -> Result<(), Failure> {
        let refuse =
            |why: String| Failure::new(FailureKind::Internal, format!("the job cannot start: {why}"));
        if self.jobs.len() >= JOBS_MAX {
            return Err(Failure::new(
                FailureKind::Limit,
                format!("the cluster runs {JOBS_MAX} jobs, the most that it may"),
            ));
        }
        if self.jobs.values().any(|entry| entry.job.driver == start.driver) {
            return Err(refuse(format!("{} already drives one", start.driver)));
        }
        if start.name.len() > FILE_NAME_BYTES_MAX {
            return Err(refuse(format!("its name is longer than {FILE_NAME_BYTES_MAX} bytes")));
        }
        if !start.namespace.is_empty() {
            check_name(&start.namespace).map_err(|e| refuse(format!("its namespace: {e}")))?;
        }
        self.known_queue(&start.queue)?;
        let (count_max, bytes_max) = JOB_ARGUMENTS_MAX;
        let bytes: usize = start.arguments.iter().map(String::len).sum();
        if start.arguments.len() > count_max || bytes > bytes_max {
            return Err(refuse(format!(
                "it has over {count_max} arguments, or over {bytes_max} bytes of them"
            )));
        }
        if start.files.len() > JOB_FILES_MAX {
            return Err(refuse(format!("it has {} files, over {JOB_FILES_MAX}", start.files.len())));
        }
        if start.files.iter().any(|(name, _)| name.is_empty() || name.len() > FILE_NAME_BYTES_MAX) {
            return Err(refuse(format!("a file's name is empty or longer than {FILE_NAME_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    pub(super) fn job_end(&mut self, from: NodeId, job: JobId, failure: Failure) {
        match self.jobs.get(&job) {
            Some(entry) if entry.job.driver.node == from => self.driver_over(job, failure),
            Some(_) => warn!(node = %from, %job, "ignored the end of a job that another node drives"),
            None => {}
        }
    }

    pub(super) fn host_ended(&mut self, host: HostId, job: JobId, failure: Failure) {
        self.broadcast(None, ToAgent::HostEnded { host, job, failure: failure.clone() });
        self.begin_burial(host);
        self.leases.forget_owners(|owner| owner == host);
        self.schedule(scheduler::Event::OwnerGone { owner: host });
        self.lose_leases_on(host);
        self.drop_names(|_, actor| actor.owner == host);
        self.groups.forget_waiters(|waiter| waiter == host);
        self.hosts_gone(|gone| gone == host, &failure);
    }

    /// Ends what depends on hosts that are gone: stewards, and jobs whose driver or only keeper they were.
    pub(super) fn hosts_gone(&mut self, gone: impl Fn(HostId) -> bool, failure: &Failure) {
        let (mut over, mut driverless, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for (job, entry) in &mut self.jobs {
            let steward_gone = match &mut entry.steward {
                Steward::Ready(host) => gone(*host),
                // A steward has no name before it is ready; only its node can be known to be gone.
                Steward::Starting { on, waiters, .. } => {
                    let lost = gone(HostId { node: *on, seq: 0 });
                    if lost {
                        waiting.append(waiters);
                    }
                    lost
                }
                Steward::None => false,
            };
            if steward_gone {
                entry.steward = Steward::None;
            }
            if entry.detached && matches!(entry.steward, Steward::None) {
                over.push(*job);
            } else if !entry.detached && gone(entry.job.driver) {
                driverless.push(*job);
            }
        }
        for asker in waiting {
            let failure = failure.cause_of("the start of the steward");
            self.answer(asker, Answer::Failed(failure));
        }
        let ended = |what: &str, job: &JobId| {
            let mut ended = failure.cause_of(&job.to_string());
            ended.kind = FailureKind::JobEnded;
            ended.message = format!("its {what} is gone");
            ended
        };
        for job in &over {
            self.end(*job, ended("steward", job));
        }
        for job in &driverless {
            self.driver_over(*job, ended("driver", job));
        }
    }

    /// The driver is done or dead: ends the job, unless it has detached actors.
    fn driver_over(&mut self, job: JobId, failure: Failure) {
        let has_names = self.has_detached_names(job);
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        if entry.detached {
            return;
        }
        let driver = entry.job.driver;
        if !has_names {
            return self.end(job, failure);
        }
        entry.detached = true;
        info!(%job, "the driver ended; detached actors keep the job");
        self.broadcast(None, ToAgent::HostEnded { host: driver, job, failure });
        self.leases.forget_owners(|owner| owner == driver);
        self.schedule(scheduler::Event::OwnerGone { owner: driver });
        self.lose_leases_on(driver);
        self.drop_names(|_, actor| actor.owner == driver);
    }

    /// Ends a detached job whose last detached name is gone.
    pub(super) fn end_if_forgotten(&mut self, job: JobId) {
        if self.jobs.get(&job).is_some_and(|entry| entry.detached) && !self.has_detached_names(job) {
            self.end(
                job,
                Failure::new(FailureKind::JobEnded, format!("the last detached actor of {job} ended")),
            );
        }
    }

    fn end(&mut self, job: JobId, failure: Failure) {
        let Some(entry) = self.jobs.remove(&job) else { return };
        info!(%job, name = entry.job.name, %failure, "job ended");
        if let Steward::Starting { waiters, .. } = entry.steward {
            for asker in waiters {
                self.answer(asker, Answer::Failed(failure.clone()));
            }
        }
        // The driver's agent waits for what the others' hosts printed last.
        let home = entry.job.driver.node;
        let link = self.link_of(home);
        self.broadcast(link, ToAgent::JobEnded { job, failure: failure.clone(), nodes: Vec::new() });
        if let Some(link) = link {
            let living = |node: &NodeId| *node != home && self.link_of(*node).is_some();
            let nodes = entry.places.into_iter().filter(living).collect();
            self.send(link, ToAgent::JobEnded { job, failure, nodes });
        }
        self.groups.end_job(job);
        self.end_leases_of(job);
        self.drop_names(|entry_job, _| entry_job == job);
    }

    pub(super) fn steward_wanted(&mut self, asker: Asker) {
        let until = self.now.plus(Millis(STEWARD_START_MS_MAX));
        let place = self.steward_place(asker.host.node);
        let Some(entry) = self.jobs.get_mut(&asker.job) else { return };
        match &mut entry.steward {
            Steward::Ready(host) => {
                let host = *host;
                self.answer(asker, Answer::Host(host));
            }
            Steward::Starting { waiters, .. } if waiters.len() < STEWARD_WAITERS_MAX => waiters.push(asker),
            Steward::Starting { .. } => {
                let failure = format!("{STEWARD_WAITERS_MAX} hosts wait for the steward, the most that may");
                self.answer(asker, Answer::Failed(Failure::new(FailureKind::Limit, failure)));
            }
            Steward::None => {
                entry.steward = Steward::Starting { on: place, until, waiters: vec![asker] };
                entry.placed_on(place);
                let job = entry.job.clone();
                self.call_back(place);
                self.send_to_agent_of(place, ToAgent::StartSteward { job });
            }
        }
    }

    /// The asking node, unless it only carries a driver, or drains, and another could do. One that was told to leave is
    /// the last: its steward, and the job, would end with it.
    fn steward_place(&self, asking: NodeId) -> NodeId {
        let lasting = self.nodes.values().filter(|member| member.kind == PeerKind::Agent);
        let rank = |member: &&Member| {
            let drain = member.drain.as_ref();
            (drain.is_some_and(|drain| !drain.is_idle()), drain.is_some(), member.node != asking)
        };
        lasting.min_by_key(rank).map_or(asking, |member| member.node)
    }

    pub(super) fn steward_ready(&mut self, job: JobId, host: HostId) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let Steward::Starting { on, waiters, .. } = &mut entry.steward else {
            warn!(%job, %host, "ignored a steward that nobody waits for");
            return;
        };
        if *on != host.node {
            warn!(%job, %host, "ignored a steward from a node that was not asked");
            return;
        }
        let waiters = std::mem::take(waiters);
        entry.steward = Steward::Ready(host);
        for asker in waiters {
            self.answer(asker, Answer::Host(host));
        }
    }

    pub(super) fn time_out_stewards(&mut self) {
        let mut late = Vec::new();
        for entry in self.jobs.values_mut() {
            if let Steward::Starting { until, waiters, .. } = &mut entry.steward
                && *until <= self.now
            {
                late.append(waiters);
                entry.steward = Steward::None;
            }
        }
        for asker in late {
            let failure = format!("the steward did not start within {STEWARD_START_MS_MAX} ms");
            self.answer(asker, Answer::Failed(Failure::new(FailureKind::TimedOut, failure)));
        }
    }
}
