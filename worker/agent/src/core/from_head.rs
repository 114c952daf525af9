//! What the head says.

use std::{collections::BTreeSet, time::Instant};

use mobula_proto::{
    Failure, FailureKind, HostId, LeaseId, NodeId,
    head::{Job, Node, ToAgent, ToHead},
    host::{Answer, Request, ToHost},
    resource::{Class, DeviceGrant, Kind as Resource},
};

use super::{Core, Effect, JobState, hosts::Kind, leases::Need, leases::Placed};

impl Core {
    /// A node is there.
    pub fn node_up(&mut self, node: Node) {
        self.nodes.insert(node.node, node);
    }

    /// A message of the head's; those about the agent's own standing (registration, shutdown) do not come here.
    pub fn from_head(&mut self, message: ToAgent, now: Instant) {
        match message {
            ToAgent::NodeUp(node) => self.node_up(node),
            ToAgent::NodeDown { node, failure } => self.node_down(node, failure, now),
            ToAgent::JobStarted { request, job } => self.job_started(request, job, now),
            ToAgent::JobEnded { job, failure, nodes } => self.end_job(job, failure, &nodes),
            ToAgent::Reserve { lease, job, class, slots: _, devices } => {
                self.reserve(lease, job, &class, &devices);
            }
            ToAgent::LeaseEnded { lease, evicted: true } => {
                // What it runs may not listen; a shared host's other leases have done nothing to be killed for.
                if let Some(host) = self.leases.evicted(lease) {
                    self.effects.push(Effect::Kill(host));
                }
            }
            ToAgent::LeaseEnded { lease, evicted: false } => {
                if let Some((host, request)) = self.leases.ended(lease, now) {
                    self.tell(host, ToHost::AreYouAtRest { request });
                }
            }
            ToAgent::Overdue { lease } => match self.leases.overdue(lease) {
                Some((host, request)) => self.tell(host, ToHost::AreYouAtRest { request }),
                None => self.effects.push(Effect::Head(ToHead::AtRest { lease })),
            },
            ToAgent::StartSteward { job } => self.start_steward(job),
            ToAgent::Granted { owner, grant } => self.tell(owner, ToHost::Granted(grant)),
            ToAgent::Revoked { owner, lease, kind } => self.tell(owner, ToHost::Revoked { lease, kind }),
            ToAgent::Infeasible { owner, key, failure } => {
                self.tell(owner, ToHost::Infeasible { key, failure });
            }
            ToAgent::HostEnded { host, job, failure } => {
                // Of its own hosts the agent knows first, and has told already.
                if host.node != self.config.node {
                    // To hosts of other jobs, refs of this one's may have come by detached actors.
                    self.host_died(host, job, &failure, now);
                } else {
                    self.driver_dismissed(host, failure);
                }
            }
            ToAgent::TakeStock { request } => self.take_stock(request, now),
            ToAgent::Explain { request, task } => {
                if self.hosts.get(task.owner).is_some_and(|host| host.ready) {
                    self.tell(task.owner, ToHost::Explain { request, task });
                } else {
                    self.effects.push(Effect::Head(ToHead::Explained { request, found: None }));
                }
            }
            // A driver whose job may not start was not welcomed yet.
            ToAgent::Answered { host, answer: Answer::Failed(failure), .. } if self.is_arriving(host) => {
                self.refuse(host, failure);
            }
            ToAgent::Answered { host, request, answer } => {
                self.tell(host, ToHost::Answered { request, answer });
            }
            ToAgent::Buried { host } => self.buried(host),
            ToAgent::Drain { to } => self.drain(to, now),
            ToAgent::Resume => self.resume(),
            ToAgent::Registered { .. } | ToAgent::Refused(_) | ToAgent::Dismissed | ToAgent::Shutdown => {}
        }
    }

    /// Whether this is a driver that waits for its job to start.
    fn is_arriving(&self, host: HostId) -> bool {
        self.drivers.contains_key(&host) && self.hosts.get(host).is_some_and(|host| !host.ready)
    }

    /// Tells a host that is here and ready; what comes for any other is late.
    pub(super) fn tell(&mut self, host: HostId, message: ToHost) {
        if self.hosts.get(host).is_some_and(|host| host.ready) {
            self.effects.push(Effect::Tell(host, message, Vec::new()));
        }
    }

    fn node_down(&mut self, node: NodeId, failure: Failure, now: Instant) {
        self.nodes.remove(&node);
        let last = self.gone_nodes.entry(node.number).or_default();
        *last = node.incarnation.max(*last);
        self.endings_without(node);
        self.objects.node_gone(node);
        self.drain_without(node);
        let ready: Vec<_> = self.hosts.iter().filter(|(_, host)| host.ready).map(|(id, _)| id).collect();
        for host in ready {
            self.tell(host, ToHost::NodeDied { node, failure: failure.clone() });
        }
        self.node_mourned(node, failure, now);
        self.salvage_without(node, now);
    }

    fn job_started(&mut self, request: Request, job: Job, now: Instant) {
        let id = job.driver;
        let registry = self.drivers.get(&id).copied();
        let (Some(host), Some(registry)) = (self.hosts.get_mut(id), registry) else {
            let failure = Failure::new(FailureKind::JobEnded, "its driver left before it began");
            self.effects.push(Effect::Head(ToHead::JobEnd { job: job.job, failure }));
            return;
        };
        if host.ready || u64::from(id.seq) != request {
            return;
        }
        let number = job.job;
        host.job = Some(number);
        host.ready = true;
        let executes = host.kind == Kind::InProcess && self.config.in_process_executor;
        self.jobs.insert(number, JobState { job, registry: Some(registry), silent: BTreeSet::new() });
        if executes {
            self.leases.host_attached(id, number);
            self.leases.host_ready(id, now);
        }
        self.welcomed(id, number);
    }

    fn know_job(&mut self, job: &Job) {
        let state = || JobState { job: job.clone(), registry: None, silent: BTreeSet::new() };
        self.jobs.entry(job.job).or_insert_with(state);
    }

    fn reserve(&mut self, lease: LeaseId, job: Job, class: &Class, devices: &[DeviceGrant]) {
        self.know_job(&job);
        let need = Self::need(job.job, class, devices);
        let has_cpu = class.resources.get(&Resource::Cpu).units() > 0;
        self.place(lease, &job, need, has_cpu);
    }

    /// Reserves what waited for hosts to come to rest, as far as they have.
    pub(super) fn place_waiting(&mut self) {
        for (lease, (need, has_cpu)) in self.leases.take_waiting() {
            if let Some(job) = self.jobs.get(&need.job()).map(|state| state.job.clone()) {
                self.place(lease, &job, need, has_cpu);
            }
        }
    }

    fn place(&mut self, lease: LeaseId, job: &Job, need: Need, has_cpu: bool) {
        for idle in self.leases.evict_overlapping(&need) {
            self.effects.push(Effect::Kill(idle));
        }
        match self.leases.reserve(lease, need.clone(), has_cpu) {
            Placed::Ready(host) => self.effects.push(Effect::Head(ToHead::LeaseReady { lease, host })),
            Placed::Starting(_) | Placed::Later => {}
            Placed::None => {
                let (kind, bounds) = match need {
                    Need::Shared(_) => (Kind::Shared, self.shared_bounds()),
                    Need::Own(_, bounds) => (Kind::Own, bounds),
                };
                if let Err(failure) = self.launch(kind, job, Some(lease), bounds) {
                    self.leases.forget(lease);
                    self.effects.push(Effect::Head(ToHead::LeaseFailed { lease, failure }));
                }
            }
            Placed::Full => {
                let text = format!("this node has {} leases already", super::leases::LEASES_MAX);
                let failure = Failure::new(FailureKind::Limit, text).on(self.config.node.to_string());
                self.effects.push(Effect::Head(ToHead::LeaseFailed { lease, failure }));
            }
        }
    }

    fn start_steward(&mut self, job: Job) {
        self.know_job(&job);
        let driver = self.hosts.get(job.driver);
        if self.config.in_process_executor && driver.is_some_and(|host| host.kind == Kind::InProcess) {
            self.effects.push(Effect::Head(ToHead::StewardReady { job: job.job, host: job.driver }));
            return;
        }
        match self.launch(Kind::Steward, &job, None, self.shared_bounds()) {
            Ok(host) => drop(self.stewards.insert(host)),
            Err(failure) => {
                // The head waits for a host of the job: the agent itself stands in for the one that never was.
                let ended = ToHead::HostEnded { host: self.config.node.agent(), job: job.job, failure };
                self.effects.push(Effect::Head(ended));
            }
        }
    }
}
