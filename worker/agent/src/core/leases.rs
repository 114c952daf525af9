//! Leases reserved on this node, and which host runs each.
//!
//! A lease of a shared class runs in the one host that its job has here. Any other has a host to itself, which
//! waits in a pool by (job, devices, threads, memory) when the lease ends, and is killed when nobody wanted it for a while.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use mobula_proto::{
    HostId, JobId, LeaseId, Quantity, Resources,
    resource::{DeviceGrant, Kind},
};

/// Most leases on a node; the head grants far fewer.
pub const LEASES_MAX: usize = 65_536;

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

/// The table.
#[derive(Debug)]
pub struct Leases {
    idle_timeout: Duration,
    leases: BTreeMap<LeaseId, Lease>,
    hosts: BTreeMap<HostId, Host>,
    shared: BTreeMap<JobId, HostId>,
    /// Idle hosts, the longest idle first.
    idle: VecDeque<(Instant, HostId)>,
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
        }
    }

    /// How many leases are reserved.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Finds a host for a lease, whose calls have CPUs or not. Asking again for the same lease gives the same answer.
    pub fn reserve(&mut self, lease: LeaseId, need: Need, cpu: bool) -> Placed {
        if let Some(host) = self.leases.get(&lease).and_then(|known| known.host) {
            return self.placed(host);
        }
        if self.leases.len() >= LEASES_MAX {
            return Placed::Full;
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

    /// A lease is over; its host, if it had it for itself, goes to the pool.
    pub fn ended(&mut self, lease: LeaseId, now: Instant) {
        let Some(host) = self.leases.remove(&lease).and_then(|lease| lease.host) else { return };
        let Some(found) = self.hosts.get_mut(&host) else { return };
        found.leases.remove(&lease);
        if found.ready && found.leases.is_empty() && matches!(found.need, Need::Own(..)) {
            self.idle.push_back((now, host));
        }
    }

    /// A lease was taken away: its host, if it had it for itself, is to be killed.
    pub fn evicted(&mut self, lease: LeaseId) -> Option<HostId> {
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
        self.shared.remove(&job);
        for host in self.hosts.values_mut().filter(|host| host.need.job() == job) {
            host.leases.clear();
        }
        let hosts = &self.hosts;
        self.idle.retain(|(_, host)| hosts.get(host).is_some_and(|host| host.need.job() != job));
    }

    /// Takes the hosts that were idle too long out of the pool: kill them.
    pub fn expire(&mut self, now: Instant) -> Vec<HostId> {
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
        self.idle.front().map(|(since, _)| *since + self.idle_timeout)
    }

    /// Takes the idle hosts that see one of these devices, but not exactly for this need, out of the pool: a
    /// device that was granted anew must not be held by a process that waits for work.
    pub fn evict_overlapping(&mut self, need: &Need) -> Vec<HostId> {
        let Need::Own(_, Bounds { devices, .. }) = need else { return Vec::new() };
        let hosts = &self.hosts;
        let overlaps = |host: &HostId| match hosts.get(host).map(|host| &host.need) {
            Some(other @ Need::Own(_, held)) if other != need => held
                .devices
                .iter()
                .any(|held| devices.iter().any(|new| new.kind == held.kind && new.index == held.index)),
            _ => false,
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
        leases.ended(lease(1), now);
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
        leases.ended(lease(1), now);
        leases.ended(lease(2), now);
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
        leases.ended(lease(2), now);
        assert_eq!(leases.host_ready(host(2), now), vec![], "its lease ended while it started");
        leases.ended(lease(1), now + Duration::from_secs(1));
        assert_eq!(leases.reserve(lease(3), need.clone(), true), Placed::Ready(host(1)), "the warmest");
        assert_eq!(leases.next_deadline(), Some(now + Duration::from_secs(10)));
        assert_eq!(leases.expire(now + Duration::from_secs(10)), vec![host(2)]);
        assert_eq!(leases.host_gone(host(2)), vec![]);
        leases.ended(lease(3), now);
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
