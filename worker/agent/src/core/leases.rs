//! Leases reserved on this node, and which host runs each.
//!
//! A lease of a shared class runs in the one host that its job has here. Any other has a host to itself, which
//! waits in a pool by (job, devices, threads, memory) when the lease ends, and is killed when nobody wanted it for a while.
//!
//! Invariants, whatever the head says of leases that have ended without being taken away:
//!
//! - **LE-1** A host comes into the pool only when it has said that nothing runs in it. Until then it *lingers*: nobody gets
//!   it, and it is not killed.
//! - **LE-2** A device that a lingering host sees is in use: a lease that is to have it waits until that host is at rest, or
//!   gone.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use mobula_proto::{
    HostId, JobId, LeaseId, Quantity, Resources,
    host::Request,
    resource::{DeviceGrant, Kind},
};

/// Most leases on a node; the head grants far fewer.
pub const LEASES_MAX: usize = 65_536;
/// How long a host may take to say whether anything runs in it, until a lease that could have it to itself gets another.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// What a lease needs in the way of a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The job's shared host.
    Shared(JobId),
    /// A host to itself, with no more than this.
    Own(JobId, Bounds),
}

/// What only a whole process can be given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bounds {
    /// The devices that it sees, sorted.
    pub devices: Vec<DeviceGrant>,
    /// How many threads libraries start in it that start as many as there are processors; at least one.
    pub threads: u32,
    /// Bytes of memory that its author says it needs; `None` where nothing is said.
    pub memory: Option<u64>,
}

impl Bounds {
    /// For these resources, with these devices. A part of a CPU is one thread's.
    pub fn new(resources: &Resources, mut devices: Vec<DeviceGrant>) -> Self {
        devices.sort();
        let whole =
            |kind| resources.get(&kind).units().unsigned_abs().div_ceil(Quantity::PER_ONE.unsigned_abs());
        Self {
            devices,
            threads: u32::try_from(whole(Kind::Cpu)).unwrap_or(u32::MAX).max(1),
            memory: Some(whole(Kind::Memory)).filter(|bytes| *bytes > 0),
        }
    }
}

impl Need {
    /// The job.
    pub fn job(&self) -> JobId {
        match self {
            Self::Shared(job) | Self::Own(job, _) => *job,
        }
    }

    /// Whether both have the same device, or a part of it.
    fn overlaps(&self, other: &Self) -> bool {
        let (Self::Own(_, one), Self::Own(_, other)) = (self, other) else { return false };
        let same =
            |one: &DeviceGrant, other: &DeviceGrant| one.kind == other.kind && one.index == other.index;
        one.devices.iter().any(|one| other.devices.iter().any(|other| same(one, other)))
    }
}

/// What became of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// This host runs it, now.
    Ready(HostId),
    /// A host is starting; [`Leases::host_ready`] tells.
    Starting(HostId),
    /// There is none: start one, and say so with [`Leases::host_started`].
    None,
    /// A host that ends what it ran may have what this needs: [`Leases::take_waiting`] tells when to ask again.
    Later,
    /// The table is full.
    Full,
}

#[derive(Debug)]
struct Lease {
    need: Need,
    cpu: bool,
    host: Option<HostId>,
}

#[derive(Debug)]
struct Host {
    need: Need,
    ready: bool,
    leases: BTreeSet<LeaseId>,
}

/// A host whose lease has ended, and that has not said yet that nothing runs in it.
#[derive(Debug)]
struct Lingering {
    /// What it was asked last.
    request: Request,
    /// Until when its answer is worth waiting for; `None` once it said that something runs, or was silent for so long.
    until: Option<Instant>,
}

/// The table.
#[derive(Debug)]
pub struct Leases {
    idle_timeout: Duration,
    leases: BTreeMap<LeaseId, Lease>,
    hosts: BTreeMap<HostId, Host>,
    shared: BTreeMap<JobId, HostId>,
    /// Idle hosts, the longest idle first.
    idle: VecDeque<(Instant, HostId)>,
    lingering: BTreeMap<HostId, Lingering>,
    /// Leases that wait for one of those.
    waiting: BTreeMap<LeaseId, (Need, bool)>,
    asked: Request,
}

impl Leases {
    /// An empty table; a host of one lease that is idle for `idle_timeout` is to be killed.
    pub fn new(idle_timeout: Duration) -> Self {
        Self {
            idle_timeout,
            leases: BTreeMap::new(),
            hosts: BTreeMap::new(),
            shared: BTreeMap::new(),
            idle: VecDeque::new(),
            lingering: BTreeMap::new(),
            waiting: BTreeMap::new(),
            asked: 0,
        }
    }

    /// How many leases are reserved.
    pub fn len(&self) -> usize {
        self.leases.len() + self.waiting.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds a host for a lease, whose calls have CPUs or not. Asking again for the same lease gives the same answer.
    pub fn reserve(&mut self, lease: LeaseId, need: Need, cpu: bool) -> Placed {
        if let Some(host) = self.leases.get(&lease).and_then(|known| known.host) {
            return self.placed(host);
        }
        if self.len() >= LEASES_MAX {
            return Placed::Full;
        }
        self.waiting.remove(&lease);
        if self.lingers(|_, other| other.overlaps(&need)) {
            self.waiting.insert(lease, (need, cpu));
            return Placed::Later;
        }
        let host = match &need {
            Need::Shared(job) => self.shared.get(job).copied(),
            Need::Own(..) => {
                // The most recently used is the warmest.
                let found = self
                    .idle
                    .iter()
                    .rposition(|(_, host)| self.hosts.get(host).is_some_and(|host| host.need == need));
                found.and_then(|at| self.idle.remove(at)).map(|(_, host)| host)
            }
        };
        if host.is_none() && self.lingers(|lingering, other| lingering.until.is_some() && *other == need) {
            self.waiting.insert(lease, (need, cpu));
            return Placed::Later;
        }
        self.leases.insert(lease, Lease { need, cpu, host });
        match host {
            Some(host) => {
                if let Some(found) = self.hosts.get_mut(&host) {
                    found.leases.insert(lease);
                }
                self.placed(host)
            }
            None => Placed::None,
        }
    }

    fn lingers(&self, such: impl Fn(&Lingering, &Need) -> bool) -> bool {
        let mut all = self.lingering.iter();
        all.any(|(host, lingering)| self.hosts.get(host).is_some_and(|host| such(lingering, &host.need)))
    }

    /// The leases that waited for hosts to come to rest: to be reserved anew.
    pub fn take_waiting(&mut self) -> BTreeMap<LeaseId, (Need, bool)> {
        std::mem::take(&mut self.waiting)
    }

    fn placed(&self, host: HostId) -> Placed {
        match self.hosts.get(&host) {
            Some(found) if found.ready => Placed::Ready(host),
            _ => Placed::Starting(host),
        }
    }

    /// A host was started for a lease; `host_ready` or `host_gone` follows.
    pub fn host_started(&mut self, host: HostId, lease: LeaseId) {
        let Some(found) = self.leases.get_mut(&lease) else { return };
        found.host = Some(host);
        if let Need::Shared(job) = found.need {
            self.shared.insert(job, host);
        }
        let need = found.need.clone();
        self.hosts.insert(host, Host { need, ready: false, leases: BTreeSet::from([lease]) });
    }

    /// A host that nobody had to start (one in the author's own process) runs its job's shared classes.
    pub fn host_attached(&mut self, host: HostId, job: JobId) {
        self.shared.insert(job, host);
        self.hosts.insert(host, Host { need: Need::Shared(job), ready: true, leases: BTreeSet::new() });
    }

    /// A host says hello: which leases were waiting for it.
    pub fn host_ready(&mut self, host: HostId, now: Instant) -> Vec<LeaseId> {
        let Some(found) = self.hosts.get_mut(&host) else { return Vec::new() };
        found.ready = true;
        if found.leases.is_empty() && matches!(found.need, Need::Own(..)) {
            self.idle.push_back((now, host));
        }
        found.leases.iter().copied().collect()
    }

    /// A lease is over. Its host, if it had it for itself, is to be asked this, and goes to the pool when it says that it is at
    /// rest.
    pub fn ended(&mut self, lease: LeaseId, now: Instant) -> Option<(HostId, Request)> {
        self.waiting.remove(&lease);
        let host = self.leases.remove(&lease)?.host?;
        let found = self.hosts.get_mut(&host)?;
        found.leases.remove(&lease);
        if !found.ready || !found.leases.is_empty() || matches!(found.need, Need::Shared(_)) {
            return None;
        }
        self.asked += 1;
        let lingering = Lingering { request: self.asked, until: Some(now + ANSWER_WAIT) };
        self.lingering.insert(host, lingering);
        Some((host, self.asked))
    }

    /// The head has not heard of a lease's owner. Its host, if there is one, is to be asked this.
    pub fn overdue(&mut self, lease: LeaseId) -> Option<(HostId, Request)> {
        let host = self.leases.get(&lease)?.host?;
        self.asked += 1;
        Some((host, self.asked))
    }

    /// A host says whether anything runs in it. Which leases, that have not ended, nothing runs under.
    pub fn answered(&mut self, host: HostId, request: Request, at_rest: bool, now: Instant) -> Vec<LeaseId> {
        match self.lingering.get_mut(&host) {
            Some(lingering) if lingering.request == request => {
                lingering.until = None;
                if at_rest {
                    self.lingering.remove(&host);
                    self.idle.push_back((now, host));
                }
                Vec::new()
            }
            None if at_rest => {
                self.hosts.get(&host).map_or_else(Vec::new, |found| found.leases.iter().copied().collect())
            }
            // It was asked something else since.
            Some(_) | None => Vec::new(),
        }
    }

    /// A lease was taken away: its host, if it had it for itself, is to be killed.
    pub fn evicted(&mut self, lease: LeaseId) -> Option<HostId> {
        self.waiting.remove(&lease);
        let host = self.leases.remove(&lease)?.host?;
        let found = self.hosts.get_mut(&host)?;
        found.leases.remove(&lease);
        matches!(found.need, Need::Own(..)).then_some(host)
    }

    /// A host is gone: which leases went with it.
    pub fn host_gone(&mut self, host: HostId) -> Vec<LeaseId> {
        let Some(found) = self.hosts.remove(&host) else { return Vec::new() };
        if let Need::Shared(job) = found.need
            && self.shared.get(&job) == Some(&host)
        {
            self.shared.remove(&job);
        }
        self.idle.retain(|(_, idle)| *idle != host);
        self.lingering.remove(&host);
        for lease in &found.leases {
            self.leases.remove(lease);
        }
        found.leases.into_iter().collect()
    }

    /// Whether a lease is reserved, and its calls have CPUs.
    pub fn has_cpu(&self, lease: LeaseId) -> bool {
        self.leases.get(&lease).is_some_and(|lease| lease.cpu)
    }

    /// A lease that never got a host is forgotten.
    pub fn forget(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
    }

    /// A job is gone: its leases are forgotten. Its hosts follow one by one with [`Leases::host_gone`].
    pub fn job_gone(&mut self, job: JobId) {
        self.leases.retain(|_, lease| lease.need.job() != job);
        self.waiting.retain(|_, (need, _)| need.job() != job);
        self.shared.remove(&job);
        for host in self.hosts.values_mut().filter(|host| host.need.job() == job) {
            host.leases.clear();
        }
        let hosts = &self.hosts;
        self.idle.retain(|(_, host)| hosts.get(host).is_some_and(|host| host.need.job() != job));
    }

    /// Takes the hosts that were idle too long out of the pool: kill them. Those that do not answer count as busy.
    pub fn expire(&mut self, now: Instant) -> Vec<HostId> {
        for lingering in self.lingering.values_mut() {
            lingering.until = lingering.until.filter(|until| *until > now);
        }
        let mut out = Vec::new();
        while let Some((since, host)) = self.idle.front()
            && *since + self.idle_timeout <= now
        {
            out.push(*host);
            self.idle.pop_front();
        }
        out
    }

    /// Whether a host runs any lease, or is to run one.
    pub fn has_leases(&self, host: HostId) -> bool {
        self.hosts.get(&host).is_some_and(|host| !host.leases.is_empty())
    }

    /// When [`Leases::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let idle = self.idle.front().map(|(since, _)| *since + self.idle_timeout);
        self.lingering.values().filter_map(|lingering| lingering.until).chain(idle).min()
    }

    /// Takes the idle hosts that see one of these devices, but not exactly for this need, out of the pool: a
    /// device that was granted anew must not be held by a process that waits for work.
    pub fn evict_overlapping(&mut self, need: &Need) -> Vec<HostId> {
        let hosts = &self.hosts;
        let overlaps = |host: &HostId| {
            hosts.get(host).is_some_and(|host| host.need != *need && host.need.overlaps(need))
        };
        let out: Vec<_> = self.idle.iter().map(|(_, host)| *host).filter(overlaps).collect();
        self.idle.retain(|(_, host)| !out.contains(host));
        out
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::NodeId;

    use super::*;

    const JOB: JobId = JobId { number: 1 };

    fn host(seq: u32) -> HostId {
        HostId { node: NodeId::EMBEDDED, seq }
    }

    fn lease(number: u64) -> LeaseId {
        LeaseId { number }
    }

    fn gpu(index: u32, units: i64) -> DeviceGrant {
        DeviceGrant { kind: Kind::Gpu, index, share: Quantity::from_units(units).unwrap() }
    }

    fn own(devices: Vec<DeviceGrant>) -> Need {
        Need::Own(JOB, Bounds::new(&Resources::cpu(Quantity::ONE), devices))
    }

    /// A lease ends, and its host says that it is at rest.
    fn ended(leases: &mut Leases, lease: LeaseId, now: Instant) {
        if let Some((host, request)) = leases.ended(lease, now) {
            assert_eq!(leases.answered(host, request, true, now), vec![]);
        }
    }

    #[test]
    fn a_host_has_as_many_threads_as_its_lease_has_cpus() {
        for (cpus, threads) in [("0", 1), ("0.5", 1), ("1", 1), ("1.0001", 2), ("64", 64)] {
            let resources = Resources::cpu(cpus.parse().unwrap());
            assert_eq!(Bounds::new(&resources, vec![]).threads, threads, "{cpus}");
        }
        let now = Instant::now();
        let mut leases = Leases::new(Duration::from_secs(10));
        assert_eq!(leases.reserve(lease(1), own(vec![]), true), Placed::None);
        leases.host_started(host(1), lease(1));
        leases.host_ready(host(1), now);
        ended(&mut leases, lease(1), now);
        let two = Need::Own(JOB, Bounds::new(&Resources::cpu(Quantity::whole(2)), vec![]));
        assert_eq!(leases.reserve(lease(2), two, true), Placed::None, "the idle one has one thread");
        let some = [(Kind::Cpu, Quantity::ONE), (Kind::Memory, Quantity::whole(1 << 20))];
        let limited = Bounds::new(&Resources::from_list(some).unwrap(), vec![]);
        assert_eq!(limited.memory, Some(1 << 20));
        let limited = Need::Own(JOB, limited);
        assert_eq!(leases.reserve(lease(4), limited, true), Placed::None, "the idle one has no limit");
        assert_eq!(leases.reserve(lease(3), own(vec![]), true), Placed::Ready(host(1)));
    }

    #[test]
    fn a_job_has_one_shared_host() {
        let now = Instant::now();
        let mut leases = Leases::new(Duration::from_secs(10));
        assert_eq!(leases.reserve(lease(1), Need::Shared(JOB), true), Placed::None);
        leases.host_started(host(1), lease(1));
        assert_eq!(leases.reserve(lease(2), Need::Shared(JOB), true), Placed::Starting(host(1)));
        assert_eq!(leases.host_ready(host(1), now), vec![lease(1), lease(2)]);
        assert_eq!(leases.reserve(lease(2), Need::Shared(JOB), true), Placed::Ready(host(1)), "asked again");
        ended(&mut leases, lease(1), now);
        ended(&mut leases, lease(2), now);
        assert_eq!(leases.expire(now + Duration::from_secs(60)), vec![], "it stays while its job does");
        assert_eq!(leases.reserve(lease(3), Need::Shared(JOB), true), Placed::Ready(host(1)));
        assert_eq!(leases.host_gone(host(1)), vec![lease(3)]);
        assert_eq!(leases.reserve(lease(4), Need::Shared(JOB), true), Placed::None);
    }

    #[test]
    fn hosts_of_one_lease_are_pooled_then_killed() {
        let now = Instant::now();
        let mut leases = Leases::new(Duration::from_secs(10));
        let need = own(vec![gpu(0, 10_000)]);
        assert_eq!(leases.reserve(lease(1), need.clone(), true), Placed::None);
        leases.host_started(host(1), lease(1));
        leases.host_ready(host(1), now);
        assert_eq!(leases.reserve(lease(2), need.clone(), true), Placed::None, "it is taken");
        leases.host_started(host(2), lease(2));
        ended(&mut leases, lease(2), now);
        assert_eq!(leases.host_ready(host(2), now), vec![], "its lease ended while it started");
        ended(&mut leases, lease(1), now + Duration::from_secs(1));
        assert_eq!(leases.reserve(lease(3), need.clone(), true), Placed::Ready(host(1)), "the warmest");
        assert_eq!(leases.next_deadline(), Some(now + Duration::from_secs(10)));
        assert_eq!(leases.expire(now + Duration::from_secs(10)), vec![host(2)]);
        assert_eq!(leases.host_gone(host(2)), vec![]);
        ended(&mut leases, lease(3), now);
        assert_eq!(leases.evicted(lease(9)), None);
        let half = own(vec![gpu(0, 5_000)]);
        assert_eq!(leases.evict_overlapping(&need), vec![]);
        assert_eq!(leases.evict_overlapping(&half), vec![host(1)]);
        assert_eq!(leases.reserve(lease(4), need, true), Placed::None);
        leases.host_started(host(3), lease(4));
        leases.host_ready(host(3), now);
        assert_eq!(leases.evicted(lease(4)), Some(host(3)));
        assert_eq!(leases.host_gone(host(3)), vec![], "the lease was ended before");
    }

    #[test]
    fn what_still_runs_is_neither_pooled_nor_killed_and_keeps_its_device() {
        let now = Instant::now();
        let mut leases = Leases::new(Duration::from_secs(10));
        let (need, half) = (own(vec![gpu(0, 10_000)]), own(vec![gpu(0, 5_000)]));
        assert_eq!(leases.reserve(lease(1), need.clone(), true), Placed::None);
        leases.host_started(host(1), lease(1));
        leases.host_ready(host(1), now);
        let (asked, first) = leases.ended(lease(1), now).unwrap();
        assert_eq!(asked, host(1));
        assert_eq!(leases.answered(host(1), first, false, now), vec![]);
        let later = now + Duration::from_secs(60);
        assert_eq!(leases.expire(later), vec![], "something runs");
        for (number, need) in [(2, &need), (3, &half)] {
            assert_eq!(leases.evict_overlapping(need), vec![]);
            assert_eq!(leases.reserve(lease(number), need.clone(), true), Placed::Later);
        }
        let other = own(vec![gpu(1, 10_000)]);
        assert_eq!(leases.reserve(lease(4), other, true), Placed::None, "another device is free");
        assert_eq!(leases.len(), 3);
        leases.evicted(lease(3));
        assert_eq!(leases.answered(host(1), first, true, later), vec![]);
        assert_eq!(leases.take_waiting().into_keys().collect::<Vec<_>>(), [lease(2)]);
        assert_eq!(leases.reserve(lease(2), need.clone(), true), Placed::Ready(host(1)));
        // An answer to a question before the last is none.
        let (_, overdue) = leases.overdue(lease(2)).unwrap();
        let (_, second) = leases.ended(lease(2), later).unwrap();
        assert_eq!(leases.answered(host(1), overdue, true, later), vec![]);
        assert_eq!(leases.reserve(lease(5), need.clone(), true), Placed::Later);
        assert_eq!(leases.answered(host(1), second, true, later), vec![]);
        assert_eq!(leases.reserve(lease(5), need.clone(), true), Placed::Ready(host(1)));
        // Of what has not ended, the head hears.
        let (_, overdue) = leases.overdue(lease(5)).unwrap();
        assert_eq!(leases.answered(host(1), overdue, false, later), vec![]);
        assert_eq!(leases.answered(host(1), overdue, true, later), vec![lease(5)]);
        assert_eq!(leases.overdue(lease(9)), None);
        // A host that dies keeps nothing.
        leases.ended(lease(5), later).unwrap();
        assert_eq!(leases.reserve(lease(6), need.clone(), true), Placed::Later);
        leases.host_gone(host(1));
        assert_eq!(leases.reserve(lease(6), need, true), Placed::None);
    }

    #[test]
    fn who_needs_no_device_waits_for_an_answer_and_no_longer() {
        let now = Instant::now();
        let mut leases = Leases::new(Duration::from_secs(10));
        assert_eq!(leases.reserve(lease(1), own(vec![]), true), Placed::None);
        leases.host_started(host(1), lease(1));
        leases.host_ready(host(1), now);
        leases.ended(lease(1), now).unwrap();
        assert_eq!(leases.reserve(lease(2), own(vec![]), true), Placed::Later);
        assert_eq!(leases.next_deadline(), Some(now + ANSWER_WAIT));
        assert_eq!(leases.expire(now + ANSWER_WAIT), vec![]);
        assert_eq!(leases.reserve(lease(2), own(vec![]), true), Placed::None);
        assert_eq!(leases.take_waiting().len(), 0);
        assert_eq!(leases.next_deadline(), None);
    }

    #[test]
    fn a_job_takes_its_leases_along() {
        let now = Instant::now();
        let mut leases = Leases::new(Duration::from_secs(10));
        leases.host_attached(host(1), JOB);
        assert_eq!(leases.reserve(lease(1), Need::Shared(JOB), true), Placed::Ready(host(1)));
        leases.reserve(lease(2), own(vec![]), true);
        leases.host_started(host(2), lease(2));
        leases.job_gone(JOB);
        assert!(leases.is_empty());
        assert_eq!(leases.host_gone(host(2)), vec![]);
        assert_eq!(leases.expire(now + Duration::from_secs(60)), vec![]);
    }
}
