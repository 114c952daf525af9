//! The hosts of this node: what they are, how far they are, and which of them have rings to each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::Arc,
};

use mobula_proto::{
    HostId, JobId, ObjectId, inventory::SITES_MAX, peer::CONTAINS_MAX, resource::DeviceGrant,
};

/// Most hosts on a node, drivers included: each costs the agent a link and some descriptors.
pub const HOSTS_MAX: usize = 4096;

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A job's `main`, in a process of its own.
    Driver,
    /// A job's `main` in the agent's own process, which may execute tasks too.
    InProcess,
    /// The host that a job shares on this node.
    Shared,
    /// The host of one lease.
    Own,
    /// The owner of a job's detached actors.
    Steward,
}

impl Kind {
    /// Whether the job ends with it.
    pub fn is_driver(self) -> bool {
        matches!(self, Self::Driver | Self::InProcess)
    }

    /// Whether this agent started its process.
    pub fn is_launched(self) -> bool {
        !self.is_driver()
    }
}

/// One host.
#[derive(Debug)]
pub struct Host {
    /// What it is.
    pub kind: Kind,
    /// Its job; `None` for a driver whose job has no number yet.
    pub job: Option<JobId>,
    /// Whether it said hello and was welcomed.
    pub ready: bool,
    /// Devices that it has to itself.
    pub devices: Vec<DeviceGrant>,
    /// What wakes it.
    pub doorbell: Option<Arc<OwnedFd>>,
    /// Names of places in its program.
    sites: Vec<Arc<str>>,
    /// The value that it is about to seal, and the refs inside that.
    contains: Option<((ObjectId, u32), Vec<ObjectId>)>,
    peers: BTreeSet<HostId>,
    wanted: BTreeSet<HostId>,
}

/// What became of a wish for rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Make them now.
    Now,
    /// They exist, or will when the other side's doorbell is here.
    Nothing,
    /// There is no such host of the same job here.
    NoSuchHost,
    /// They are of different jobs, which share no memory: messages go through the agent.
    Relay,
}

/// The table.
#[derive(Debug, Default)]
pub struct Hosts {
    next: u32,
    hosts: BTreeMap<HostId, Host>,
}

impl Hosts {
    /// The next host's number, from 1.
    pub fn next_seq(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Adds a host that is starting; `false` where the table is full.
    pub fn add(&mut self, id: HostId, kind: Kind, job: Option<JobId>, devices: Vec<DeviceGrant>) -> bool {
        if self.hosts.len() >= HOSTS_MAX {
            return false;
        }
        let host = Host {
            kind,
            job,
            ready: false,
            devices,
            doorbell: None,
            sites: Vec::new(),
            contains: None,
            peers: BTreeSet::new(),
            wanted: BTreeSet::new(),
        };
        self.hosts.insert(id, host);
        true
    }

    /// A host.
    pub fn get(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(&id)
    }

    /// A host, to be changed.
    pub fn get_mut(&mut self, id: HostId) -> Option<&mut Host> {
        self.hosts.get_mut(&id)
    }

    /// A host names a place in its program; `false` where that is not the next number, or one too many.
    pub fn name_site(&mut self, id: HostId, number: u32, name: String) -> bool {
        let Some(host) = self.hosts.get_mut(&id) else { return true };
        let is_next = number as usize == host.sites.len() + 1 && host.sites.len() < SITES_MAX;
        if is_next {
            host.sites.push(name.into());
        }
        is_next
    }

    /// A host names refs inside a value that it is about to seal; `false` where there are too many.
    pub fn contain(&mut self, id: HostId, value: (ObjectId, u32), refs: &[ObjectId]) -> bool {
        let Some(host) = self.hosts.get_mut(&id) else { return true };
        let (_, known) = match &mut host.contains {
            Some(known) if known.0 == value => known,
            other => other.insert((value, Vec::new())),
        };
        let fits = known.len() + refs.len() <= CONTAINS_MAX;
        if fits {
            known.extend_from_slice(refs);
        }
        fits
    }

    /// The refs inside a value that a host has sealed.
    pub fn contained(&mut self, id: HostId, value: (ObjectId, u32)) -> Vec<ObjectId> {
        let Some(host) = self.hosts.get_mut(&id) else { return Vec::new() };
        // Others without refs may be sealed meanwhile.
        let named = host.contains.take_if(|(of, _)| *of == value);
        named.map(|(_, refs)| refs).unwrap_or_default()
    }

    /// The name of such a place.
    pub fn site(&self, id: HostId, number: u32) -> Option<Arc<str>> {
        let at = (number as usize).checked_sub(1)?;
        self.hosts.get(&id)?.sites.get(at).cloned()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// All hosts, by number.
    pub fn iter(&self) -> impl Iterator<Item = (HostId, &Host)> {
        self.hosts.iter().map(|(id, host)| (*id, host))
    }

    /// The hosts of a job, by number.
    pub fn of_job(&self, job: JobId) -> Vec<HostId> {
        self.iter().filter(|(_, host)| host.job == Some(job)).map(|(id, _)| id).collect()
    }

    /// Whether a host of the job is here that has been welcomed.
    pub fn runs(&self, job: JobId) -> bool {
        self.hosts.values().any(|host| host.ready && host.job == Some(job))
    }

    /// Removes a host, and every memory of rings with it.
    pub fn remove(&mut self, id: HostId) -> Option<Host> {
        let gone = self.hosts.remove(&id)?;
        for host in self.hosts.values_mut() {
            host.peers.remove(&id);
            host.wanted.remove(&id);
        }
        Some(gone)
    }

    /// `from` wants rings with `to`.
    pub fn connect(&mut self, from: HostId, to: HostId) -> Connect {
        let (Some(one), Some(other)) = (self.hosts.get(&from), self.hosts.get(&to)) else {
            return Connect::NoSuchHost;
        };
        if from == to || one.job.is_none() {
            return Connect::NoSuchHost;
        }
        if one.job != other.job {
            return Connect::Relay;
        }
        if one.peers.contains(&to) {
            return Connect::Nothing;
        }
        let both = one.doorbell.is_some() && other.doorbell.is_some();
        if let Some(one) = self.hosts.get_mut(&from) {
            if both {
                one.peers.insert(to);
            } else {
                one.wanted.insert(to);
                return Connect::Nothing;
            }
        }
        if let Some(other) = self.hosts.get_mut(&to) {
            other.peers.insert(from);
            other.wanted.remove(&from);
        }
        Connect::Now
    }

    /// A host's doorbell is here: which pairs that waited for it to make rings for now.
    pub fn doorbell(&mut self, id: HostId, fd: Arc<OwnedFd>) -> Vec<(HostId, HostId)> {
        let Some(host) = self.hosts.get_mut(&id) else { return Vec::new() };
        host.doorbell = Some(fd);
        let mut pairs: Vec<_> = std::mem::take(&mut host.wanted).into_iter().map(|to| (id, to)).collect();
        for (from, other) in &mut self.hosts {
            if other.wanted.remove(&id) {
                pairs.push((*from, id));
            }
        }
        pairs.retain(|(from, to)| self.connect(*from, *to) == Connect::Now);
        pairs
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::NodeId;

    use super::*;

    fn fd() -> Arc<OwnedFd> {
        Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()))
    }

    #[test]
    fn rings_are_made_once_both_doorbells_are_here() {
        let id = |seq| HostId { node: NodeId::EMBEDDED, seq };
        let (job, other) = (Some(JobId { number: 1 }), Some(JobId { number: 2 }));
        let mut hosts = Hosts::default();
        hosts.add(id(1), Kind::Driver, job, vec![]);
        hosts.add(id(2), Kind::Shared, job, vec![]);
        hosts.add(id(3), Kind::Shared, other, vec![]);
        assert_eq!(hosts.connect(id(1), id(3)), Connect::Relay, "another job's");
        assert_eq!(hosts.connect(id(1), id(9)), Connect::NoSuchHost);
        assert_eq!(hosts.doorbell(id(1), fd()), vec![]);
        assert_eq!(hosts.connect(id(1), id(2)), Connect::Nothing);
        assert_eq!(hosts.connect(id(2), id(1)), Connect::Nothing);
        assert_eq!(hosts.doorbell(id(2), fd()), vec![(id(2), id(1))], "once for the pair");
        assert_eq!(hosts.connect(id(1), id(2)), Connect::Nothing, "they exist");
        hosts.remove(id(2));
        assert_eq!(hosts.connect(id(1), id(2)), Connect::NoSuchHost);
        hosts.add(id(4), Kind::Own, job, vec![]);
        hosts.doorbell(id(4), fd());
        assert_eq!(hosts.connect(id(4), id(1)), Connect::Now);
    }
}
