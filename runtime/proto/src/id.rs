//! Identifiers. An identifier names one *incarnation*: a node that restarts keeps its number and gets a new
//! incarnation, so whatever still carries the old one is recognised as stale and refused (invariant I6).

use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
};

use rkyv::{Archive, Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type),+ }
    };
}

id! {
    /// One incarnation of an agent.
    NodeId {
        /// The node's number in the cluster, from 1; stable across restarts of the same node.
        number: u32,
        /// Counts the registrations of that node, from 1.
        incarnation: u32,
    }
}
id! {
    /// One host process (or, with `seq` 0, the agent itself).
    HostId {
        /// The node it runs on.
        node: NodeId,
        /// Counts the hosts that this incarnation of the agent started, from 1.
        seq: u32,
    }
}
id! {
    /// A job: one run of one driver.
    JobId {
        /// Counts the cluster's jobs, from 1.
        number: u64,
    }
}
/// A task, an actor (named by the task that constructs it) or a `put`, named by the host that owns it.
///
/// A name is a capability: hosts of other jobs are given what they can name, so its key is in no text, and only hosts
/// that were given a ref know it. Text therefore names it without.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
)]
pub struct TaskId {
    /// The host that submitted it and owns what it returns.
    pub owner: HostId,
    /// Counts what that host submitted, from 1.
    pub seq: u64,
    /// A number that nobody can guess who knows others; from [`Names`].
    #[serde(default)]
    pub key: u64,
}

/// One value that a task returns, or that was `put`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId {
    /// The host that owns it, and the task that makes it.
    pub owner: HostId,
    /// That task's number.
    pub seq: u64,
    /// That task's key.
    pub key: u64,
    /// Which of the task's values, from 0.
    pub index: u32,
}

id! {
    /// A grant of slots on a node.
    LeaseId {
        /// Counts the head's grants, from 1; never reused, so a late message about an ended lease is harmless.
        number: u64,
    }
}
id! {
    /// A placement group.
    GroupId {
        /// Counts the cluster's groups, from 1; never reused.
        number: u64,
    }
}
id! {
    /// A shared-memory region, named by its only writer.
    RegionId {
        /// The host that writes it, or the agent (`seq` 0) for what it pulled.
        writer: HostId,
        /// Counts that writer's regions, from 1.
        seq: u32,
    }
}

/// The BLAKE3 hash of an executable or of a file that travels with a job.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub struct BinaryHash(pub [u8; 32]);

impl NodeId {
    /// The node of an embedded cluster.
    pub const EMBEDDED: Self = Self { number: 1, incarnation: 1 };

    /// The agent of this node, as a party to messages.
    pub fn agent(self) -> HostId {
        HostId { node: self, seq: 0 }
    }
}

impl HostId {
    /// Whether this names an agent rather than a host.
    pub fn is_agent(self) -> bool {
        self.seq == 0
    }
}

/// Names for what one host submits and puts.
#[derive(Clone, Debug)]
pub struct Names {
    owner: HostId,
    /// What keys are made with: a keyed hash (SipHash-1-3, as the standard library has it), whose 128 random bits never
    /// leave this process.
    secret: Option<RandomState>,
}

impl Names {
    /// Names that nobody else can guess.
    pub fn new(owner: HostId) -> Self {
        Self { owner, secret: Some(RandomState::new()) }
    }

    /// Names with the key 0, where everything is to be the same each time, as in a simulation.
    pub fn plain(owner: HostId) -> Self {
        Self { owner, secret: None }
    }

    /// Whose names these are.
    pub fn owner(&self) -> HostId {
        self.owner
    }

    /// The name with this number.
    #[inline]
    pub fn task(&self, seq: u64) -> TaskId {
        let key = self.secret.as_ref().map_or(0, |secret| secret.hash_one(seq));
        TaskId { owner: self.owner, seq, key }
    }

    /// Whether a name is one of these, or somebody else's.
    pub fn is_true(&self, name: TaskId) -> bool {
        name.owner != self.owner || name == self.task(name.seq)
    }
}

impl TaskId {
    /// A name as text gives it, without its key.
    pub fn numbered(owner: HostId, seq: u64) -> Self {
        Self { owner, seq, key: 0 }
    }

    /// The `index`-th value of this task.
    pub fn object(self, index: u32) -> ObjectId {
        ObjectId { owner: self.owner, seq: self.seq, key: self.key, index }
    }
}

impl ObjectId {
    /// The task that makes it.
    pub fn task(self) -> TaskId {
        TaskId { owner: self.owner, seq: self.seq, key: self.key }
    }
}

// Without keys, so that neighbours stay neighbours (see `IdHasher`).
impl Hash for TaskId {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.owner.hash(state);
        self.seq.hash(state);
    }
}

impl Hash for ObjectId {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.owner.hash(state);
        self.seq.hash(state);
        self.index.hash(state);
    }
}

// Not of a `TaskId` and a number, which would be padded twice: processes hold them by the million.
const _: () = assert!(size_of::<ObjectId>() == 32);

/// A hash table by identifier. Looked up, never iterated where the order could show.
pub type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// A hash for identifiers: cheap, enough inside a trust domain, and kind to the processor's caches. What was
/// submitted one after the other is looked up one after the other; so each run of 8 numbers shares its place in the
/// table, and runs are scattered.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher {
    number: u64,
    rest: u64,
}

impl IdHasher {
    const FACTOR: u64 = 0xf135_7aea_2e62_a9c5;
    const RUN: u64 = 8;
}

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.rest = self.rest.wrapping_add(u64::from(word)).wrapping_mul(Self::FACTOR);
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.rest = self.rest.wrapping_add(self.number / Self::RUN);
        self.number = word;
    }

    #[inline]
    fn finish(&self) -> u64 {
        let run = (self.number / Self::RUN).wrapping_add(self.rest).wrapping_mul(Self::FACTOR);
        // The good bits of a product are its high ones. The table picks the bucket by the low bits, and tells
        // neighbours apart by the highest seven.
        let within = self.number % Self::RUN;
        (run.rotate_left(26) & !(Self::RUN - 1) | within) ^ (within << 57)
    }
}

/// Text that names no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no node: write node-3, or node-3.2 for its second incarnation")]
pub struct NodeIdError(String);

impl std::str::FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let error = || NodeIdError(text.chars().take(64).collect());
        let rest = text.strip_prefix("node-").ok_or_else(error)?;
        let (number, incarnation) = rest.split_once('.').unwrap_or((rest, "1"));
        let parse = |digits: &str| digits.parse().map_err(|_| error());
        Ok(Self { number: parse(number)?, incarnation: parse(incarnation)? })
    }
}

/// Text that names no task or actor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no task or actor: write for example node-1/host-2#81, as errors and `mobula status` do")]
pub struct TaskIdError(String);

impl std::str::FromStr for TaskId {
    type Err = TaskIdError;

    /// Also takes the name of one of its objects, such as `node-1/host-2#81.0`.
    fn from_str(text: &str) -> Result<Self, TaskIdError> {
        let parsed = || {
            let (host, rest) = text.split_once('#')?;
            let (node, seq) = host.split_once("/host-")?;
            let (number, index) = rest.split_once('.').unwrap_or((rest, "0"));
            index.parse::<u32>().ok()?;
            let owner = HostId { node: node.parse().ok()?, seq: seq.parse().ok().filter(|seq| *seq > 0)? };
            Some(Self::numbered(owner, number.parse().ok()?))
        };
        parsed().ok_or_else(|| TaskIdError(text.chars().take(64).collect()))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.incarnation <= 1 {
            write!(f, "node-{}", self.number)
        } else {
            write!(f, "node-{}.{}", self.number, self.incarnation)
        }
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_agent() {
            write!(f, "{}/agent", self.node)
        } else {
            write!(f, "{}/host-{}", self.node, self.seq)
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}", self.number)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.owner, self.seq)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.task(), self.index)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease-{}", self.number)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group-{}", self.number)
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/region-{}", self.writer, self.seq)
    }
}

impl fmt::Display for BinaryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BinaryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BinaryHash({})", &hex::encode(self.0)[..12])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_the_incarnation_only_when_it_matters() {
        let node = NodeId { number: 3, incarnation: 1 };
        let again = NodeId { number: 3, incarnation: 2 };
        let host = HostId { node, seq: 5 };
        assert_eq!(node.to_string(), "node-3");
        assert_eq!(again.to_string(), "node-3.2");
        assert_eq!(host.to_string(), "node-3/host-5");
        assert_eq!("node-3.2".parse(), Ok(again));
        assert!("node-x".parse::<NodeId>().is_err());
        assert_eq!(node.agent().to_string(), "node-3/agent");
        assert_eq!(TaskId::numbered(host, 81).object(0).to_string(), "node-3/host-5#81.0");
    }

    #[test]
    fn a_name_is_known_by_its_key_which_no_text_gives_away() {
        let owner = HostId { node: NodeId::EMBEDDED, seq: 1 };
        let (names, others) = (Names::new(owner), Names::new(owner));
        let name = names.task(7);
        assert_eq!(name, names.task(7));
        assert!(names.is_true(name) && !others.is_true(name));
        assert_ne!(name.key, names.task(8).key);
        assert_eq!(name.object(3).task(), name);
        assert_eq!(format!("{name:?} {:?}", name.object(3)), "node-1/host-1#7 node-1/host-1#7.3");
        assert_eq!("node-1/host-1#7".parse(), Ok(TaskId::numbered(owner, 7)));
        assert!(!names.is_true(TaskId::numbered(owner, 7)));
        assert!(names.is_true(TaskId::numbered(HostId { seq: 2, ..owner }, 7)), "not its own");
    }
}
