//! What a host says.

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, ObjectId, RegionId,
    head::{Between, ToHead},
    host::{Driver, Explained, Question, Request, ToAgent, ToHost},
    inventory::SITE_BYTES_MAX,
    peer::{CLAIMS_MAX, Copy},
    wire::{Hello, Role},
};

use super::{Core, Effect, early::Open, hosts::Connect, hosts::Kind, objects::Error};

/// Most files that travel with a job, and most arguments of its hosts.
pub const FILES_MAX: usize = 256;
/// Longest name, namespace or path that a driver brings, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Longest that a region may be waited for, whatever the host says.
pub const REGION_WAIT_MAX: Duration = Duration::from_secs(3600);

/// What becomes of a copy that a host has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sealing {
    Yes,
    /// It has taken another's name.
    No,
    /// Its owner is dead, and another copy is its heir's.
    Late,
}

impl Core {
    /// A message of a host's, with the descriptors that came along. Relays do not come here.
    pub fn from_host(&mut self, id: HostId, message: ToAgent, fds: Vec<OwnedFd>, now: Instant) {
        self.objects.at(now);
        if self.objects.heard(id) {
            self.pump();
        }
        let Some(host) = self.hosts.get(id) else { return };
        if let ToAgent::Hello { hello, driver, registry, .. } = message {
            self.hello(id, hello, driver, registry, now);
            return;
        }
        if !host.ready {
            self.violation(id, &"it spoke before it was welcomed");
            return;
        }
        if let ToAgent::Mourned { host } = message {
            return self.host_mourned(id, host);
        }
        // A job that ended takes its hosts' wishes along.
        let Some(job) = self.job_of(id) else { return };
        match message {
            ToAgent::Hello { .. } | ToAgent::Relay { .. } | ToAgent::Mourned { .. } => {}
            ToAgent::Doorbell => {
                let Some(fd) = fds.into_iter().next() else {
                    self.violation(id, &"its doorbell came without a descriptor");
                    return;
                };
                for (from, to) in self.hosts.doorbell(id, Arc::new(fd)) {
                    self.rings(from, to);
                }
            }
            ToAgent::Demand { key, class, backlog, locality } => match class.validate() {
                Ok(()) => {
                    let demand = ToHead::Demand { owner: id, job, key, class, backlog, locality };
                    self.effects.push(Effect::Head(demand));
                }
                Err(error) => {
                    let failure = Failure::new(FailureKind::Infeasible, error.to_string()).of(class.function);
                    self.effects.push(Effect::Tell(id, ToHost::Infeasible { key, failure }, Vec::new()));
                }
            },
            ToAgent::Renew { leases } => self.effects.push(Effect::Head(ToHead::Renew { leases })),
            ToAgent::Release { lease } => self.effects.push(Effect::Head(ToHead::Release { lease })),
            ToAgent::Shrink { lease, keep } => {
                self.effects.push(Effect::Head(ToHead::Shrink { lease, keep }));
            }
            // One without a CPU has none to lend.
            ToAgent::Block { lease, .. } | ToAgent::Unblock { lease, .. } if !self.leases.has_cpu(lease) => {}
            ToAgent::Block { lease, slots } => self.waits.left(lease, slots, now),
            ToAgent::Unblock { lease, slots } => {
                let slots = self.waits.taken(lease, slots);
                if slots > 0 {
                    self.effects.push(Effect::Head(ToHead::Unblock { lease, slots }));
                }
            }
            ToAgent::BudgetWanted { more, alone } => self.budget_wanted(id, more, alone, now),
            ToAgent::Marked { number } => {
                let due = self.early.marked(job, id, number);
                self.wishes_due(due);
            }
            ToAgent::MakesRoom { may } => self.budget.makes_room(id, may),
            ToAgent::BudgetBack { bytes } => self.budget_back(id, bytes, now),
            ToAgent::RegionWanted { request, bytes, wait_ms } => {
                let wait = Duration::from_millis(wait_ms).min(REGION_WAIT_MAX);
                self.want_region(id, request, bytes, wait, now);
            }
            ToAgent::RegionUnwanted { request } => self.unwant_region(id, request),
            ToAgent::Trimmed => {
                self.objects.trimmed(id);
                self.pump();
            }
            ToAgent::RegionAdded { request, seq, bytes } => {
                self.region_added((id, job), request, seq, bytes, fds);
            }
            ToAgent::RegionRemoved { seq } => {
                let region = RegionId { writer: id, seq };
                match self.objects.remove_region(region) {
                    Ok(gone) => self.gone(gone),
                    Err(error) => {
                        self.violation(id, &error);
                        return;
                    }
                }
                self.pump();
            }
            ToAgent::Site { number, name } => {
                if name.len() > SITE_BYTES_MAX || !self.hosts.name_site(id, number, name) {
                    self.violation(id, &"a place in its program has no proper name or number");
                }
            }
            ToAgent::Sealed { object, attempt, region, offset, bytes, site } => {
                let region = RegionId { writer: id, seq: region };
                // What it owns itself it may give any bytes.
                let sealing = if object.owner == id { Sealing::Yes } else { self.sealing(object, job) };
                if sealing == Sealing::No {
                    return self.violation(id, &Error::OfAnotherJob { object });
                }
                match self.objects.seal(object, attempt, region, offset, bytes, None) {
                    Ok(key) => {
                        self.objects.set_contains(key, self.hosts.contained(id, (object, attempt)));
                        if let Some(site) = self.hosts.site(id, site) {
                            self.objects.made_at(key, site);
                        }
                        if sealing == Sealing::Late {
                            let gone = self.objects.free_one(key);
                            self.gone(gone);
                        }
                        self.sealed(key, now);
                        self.pump();
                    }
                    Err(error) => self.violation(id, &error),
                }
            }
            ToAgent::Contains { object, attempt, refs } => {
                if !self.hosts.contain(id, (object, attempt), &refs) {
                    self.violation(id, &"a value of it holds more refs than one may");
                }
            }
            ToAgent::Claim { objects } => {
                if objects.len() > CLAIMS_MAX {
                    self.violation(id, &"it claims more at once than it may");
                } else {
                    self.claim(id, objects, now);
                }
            }
            ToAgent::Unclaim { object, node } => self.release(id, object, node),
            ToAgent::Salvage { node } => self.salvage(id, node, now),
            ToAgent::Spare { object, .. } if object.owner != id => {
                self.violation(id, &format!("it spoke for {object}, which is not its own"));
            }
            ToAgent::Spare { object, copy, primary } => self.spare(object, copy, primary),
            ToAgent::Free { object, .. } if object.owner != id => {
                self.violation(id, &format!("it freed {object}, which is not its own"));
            }
            ToAgent::Free { object, copy } => self.free(object, copy, now),
            ToAgent::Decline { object, copy } => self.decline((id, job), object, copy, now),
            ToAgent::Discard { object, .. } if object.owner != id => {
                self.violation(id, &format!("it discarded {object}, which is not its own"));
            }
            ToAgent::Discard { node, object, last, attempt } => {
                if node == self.config.node {
                    self.discard_here(object, last, attempt, None);
                } else if self.nodes.contains_key(&node) {
                    let message = Between::Discard { object, last, attempt, job: None };
                    self.effects.push(Effect::Peer(node, message));
                }
            }
            ToAgent::Open { request, object, copy, ahead } => {
                self.open(Open { host: id, job, request, ahead, copy }, object, now);
            }
            ToAgent::Hurry { object } => self.hurry(job, object),
            ToAgent::Unpin { object } => {
                let gone = self.objects.unpin(object, id);
                self.gone(gone);
                self.pump();
            }
            ToAgent::Mapped { region } => {
                let gone = self.objects.mapped(region, job, id);
                self.gone(gone);
            }
            ToAgent::Unmapped { region } => {
                self.objects.unmapped(region, id);
                self.pump();
            }
            ToAgent::Connect { peer } => match self.hosts.connect(id, peer) {
                Connect::Now => self.rings(id, peer),
                Connect::Nothing => {}
                Connect::Relay => self.effects.push(Effect::Tell(id, ToHost::Rings { peer }, Vec::new())),
                Connect::NoSuchHost => {
                    let failure = no_such_host(peer);
                    self.effects.push(Effect::Tell(id, ToHost::HostDied { host: peer, failure }, Vec::new()));
                }
            },
            ToAgent::Ask { request, question } => {
                if matches!(question, Question::Snapshot) {
                    // So that whoever asks finds its own node as it is, not as it was at the last report.
                    self.effects.push(Effect::Head(ToHead::Usage(self.usage())));
                }
                self.effects.push(Effect::Head(ToHead::Ask { host: id, job, request, question }));
            }
            ToAgent::Explained { request, found } => {
                self.effects.push(Effect::Head(ToHead::Explained { request, found: found.map(short) }));
            }
            ToAgent::Noted { object, copy, noted } => {
                if object.owner == id {
                    self.owner_noted(object, copy, noted);
                } else {
                    self.violation(id, &format!("it answered for {object}, which is not its own"));
                }
            }
            ToAgent::Holds { asker, number, held } => self.owner_holds(id, asker, number, held),
            ToAgent::Idle { idle } => self.host_idle(id, idle),
            ToAgent::AtRest { request, at_rest } => {
                for lease in self.leases.answered(id, request, at_rest, now) {
                    self.effects.push(Effect::Head(ToHead::AtRest { lease }));
                }
                self.place_waiting();
            }
            ToAgent::JobDone => {
                if self.hosts.get(id).is_some_and(|host| host.kind.is_driver()) {
                    let failure = Failure::new(FailureKind::JobEnded, "main has ended").of(job.to_string());
                    // The head says whether the job ends with it: detached actors may keep it.
                    self.effects.push(Effect::Head(ToHead::JobEnd { job, failure }));
                } else {
                    self.violation(id, &"only a driver may end its job");
                }
            }
        }
    }

    /// What becomes of a copy of an object that a host of this job has made (O-8).
    fn sealing(&mut self, object: ObjectId, job: JobId) -> Sealing {
        if !self.objects.is_made_by_others(object, job) {
            return Sealing::Yes;
        }
        let owner = object.owner;
        match self.hosts.get(owner).and_then(|host| host.job) {
            Some(its) if its == job => {
                let gone = self.objects.free_of_others(object, job);
                self.gone(gone);
                Sealing::Yes
            }
            Some(its) if self.objects.is_made_by(object, its) => Sealing::No,
            None if owner.node == self.config.node || self.has_gone(owner.node) => Sealing::Late,
            // Its owner, wherever it is, tells its readers whose is meant.
            Some(_) | None => Sealing::Yes,
        }
    }

    fn hello(&mut self, id: HostId, hello: Hello, driver: Option<Driver>, registry: u64, now: Instant) {
        let Some(host) = self.hosts.get(id) else { return };
        if host.ready || self.drivers.contains_key(&id) {
            self.violation(id, &"it said hello twice");
            return;
        }
        let kind = host.kind;
        let expected = if kind.is_driver() { Role::Driver } else { Role::Host };
        if let Err(error) = hello.check(&[expected]) {
            self.refuse(id, Failure::new(FailureKind::Unreachable, error.to_string()));
            return;
        }
        match (kind.is_driver(), driver) {
            (true, Some(driver)) => self.driver_hello(id, driver, registry),
            (false, None) => self.launched_hello(id, registry, now),
            (true, None) => {
                self.refuse(id, Failure::new(FailureKind::Codec, "a driver must say what it runs"))
            }
            (false, Some(_)) => {
                self.refuse(id, Failure::new(FailureKind::Codec, "a host cannot be a driver"))
            }
        }
    }

    pub(super) fn refuse(&mut self, id: HostId, failure: Failure) {
        let launched = self.hosts.get(id).is_some_and(|host| host.kind.is_launched());
        self.effects.push(Effect::Tell(id, ToHost::Refused(failure), Vec::new()));
        self.effects.push(if launched { Effect::Kill(id) } else { Effect::Close(id) });
    }

    fn driver_hello(&mut self, id: HostId, driver: Driver, registry: u64) {
        let texts = [&driver.name, &driver.namespace, &driver.queue, &driver.program];
        let names = driver.files.iter().flat_map(|(name, path, _)| [name, path]).chain(&driver.arguments);
        let many = driver.files.len() > FILES_MAX || driver.arguments.len() > FILES_MAX;
        if many || texts.into_iter().chain(names).any(|t| t.len() > TEXT_BYTES_MAX) {
            let text = format!(
                "a job has at most {FILES_MAX} files and arguments, of {TEXT_BYTES_MAX} bytes of text each"
            );
            self.refuse(id, Failure::new(FailureKind::Limit, text));
            return;
        }
        self.drivers.insert(id, registry);
        let files = driver.files.into_iter().map(|(name, _, hash)| (name, hash)).collect();
        self.effects.push(Effect::Head(ToHead::JobStart {
            request: u64::from(id.seq),
            driver: id,
            name: driver.name,
            namespace: driver.namespace,
            queue: driver.queue,
            binary: driver.binary,
            arguments: driver.arguments,
            files,
        }));
    }

    fn launched_hello(&mut self, id: HostId, registry: u64, now: Instant) {
        let Some(job) = self.job_of(id) else { return };
        let ours = self.jobs.get(&job).and_then(|state| state.registry);
        if ours.is_some_and(|ours| ours != registry) {
            let text =
                "the program that was started registers other functions than its driver: start the job again";
            self.refuse(id, Failure::new(FailureKind::Binary, text));
            return;
        }
        if let Some(host) = self.hosts.get_mut(id) {
            host.ready = true;
        }
        self.welcomed(id, job);
        for lease in self.leases.host_ready(id, now) {
            self.effects.push(Effect::Head(ToHead::LeaseReady { lease, host: id }));
        }
        if self.stewards.contains(&id) && self.hosts.get(id).is_some_and(|host| host.kind == Kind::Steward) {
            self.effects.push(Effect::Head(ToHead::StewardReady { job, host: id }));
        }
    }

    fn region_added(
        &mut self,
        (id, job): (HostId, JobId),
        request: Request,
        seq: u32,
        bytes: u64,
        fds: Vec<OwnedFd>,
    ) {
        let region = RegionId { writer: id, seq };
        let Some(fd) = fds.into_iter().next() else {
            self.violation(id, &format!("{region} came without a descriptor"));
            return;
        };
        if let Err(error) = self.objects.add_region(region, request, job, bytes, Arc::new(fd)) {
            self.violation(id, &error);
        }
    }

    fn free(&mut self, object: ObjectId, copy: Copy, now: Instant) {
        if self.is_to_come(object, copy, now) {
            return;
        }
        if copy.node != self.config.node && self.nodes.contains_key(&copy.node) {
            self.effects.push(Effect::Peer(copy.node, Between::Free { object, copy }));
        } else {
            // Of one on a node that is gone, nobody is left who would say that a copy here may go.
            self.free_here(object, 0..=copy.attempt, None);
        }
    }

    fn decline(&mut self, (id, job): (HostId, JobId), object: ObjectId, copy: Copy, now: Instant) {
        let attempt = copy.attempt;
        if object.owner != id {
            // Of what was made for somebody else, only what its job has in memory here.
            if copy.node == self.config.node && copy.job == job {
                self.free_here(object, attempt..=attempt, Some(job));
            } else {
                self.violation(id, &format!("it declined {object}, which is not its own"));
            }
            return;
        }
        if self.is_to_come(object, copy, now) {
            return;
        }
        if copy.node == self.config.node {
            self.free_here(object, attempt..=attempt, Some(copy.job));
        } else if self.nodes.contains_key(&copy.node) {
            let message = Between::Discard { object, last: object.index, attempt, job: Some(copy.job) };
            self.effects.push(Effect::Peer(copy.node, message));
        }
    }

    /// Whether this copy, which is garbage, will be here only in a moment: then it goes at once.
    fn is_to_come(&mut self, object: ObjectId, copy: Copy, now: Instant) -> bool {
        let key = (object, copy.attempt, copy.job);
        if copy.node != self.config.node || self.objects.has(key) {
            return false;
        }
        // With too many early wishes already, the object goes with its job.
        let _noted = self.early.free(key, now);
        true
    }

    fn rings(&mut self, one: HostId, other: HostId) {
        let bell = |id| self.hosts.get(id).and_then(|host| host.doorbell.clone());
        if let (Some(first), Some(second)) = (bell(one), bell(other)) {
            self.effects.push(Effect::Rings([(one, first), (other, second)]));
        }
    }
}

/// What a host is told whose message found nobody.
pub fn no_such_host(host: HostId) -> Failure {
    Failure::new(FailureKind::HostDied, format!("{host} is not there (any more)")).of(host.to_string())
}

/// No longer than a message to the head may be.
fn short(mut found: Explained) -> Explained {
    for text in [&mut found.what, &mut found.why] {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    }
    found
}
