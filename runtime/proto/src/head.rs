//! Messages between an agent and the head, and between two agents.

#![allow(missing_docs, reason = "the derive of rkyv makes mirror types with undocumented fields")]

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    BinaryHash, Failure, HostId, JobId, LeaseId, NodeId, ObjectId, Resources, TaskId,
    host::{Answer, Explained, Question, Request, Revocation},
    peer::{Copy, Record},
    resource::{Class, Device, DeviceGrant, Label},
    wire::Hello,
};

/// What an agent tells the head.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub enum ToHead {
    /// First message on the control stream.
    Register {
        /// Version and role.
        hello: Hello,
        /// What it is.
        node: Register,
    },
    /// A driver attached.
    JobStart {
        /// Pairs with [`ToAgent::JobStarted`].
        request: Request,
        /// The driver.
        driver: HostId,
        /// A name for people.
        name: String,
        /// The namespace of its named actors; empty for one of the job's own.
        namespace: String,
        /// The queue that is charged for what names no other; empty for the default one.
        queue: String,
        /// Its program.
        binary: BinaryHash,
        /// What the program is given when it is executed as a host.
        arguments: Vec<String>,
        /// Files that travel beside it: name and hash.
        files: Vec<(String, BinaryHash)>,
    },
    /// The driver ended, well or not.
    JobEnd {
        /// The job.
        job: JobId,
        /// Why.
        failure: Failure,
    },
    /// Slots wanted by a host; see [`crate::host::ToAgent::Demand`].
    Demand {
        /// The host.
        owner: HostId,
        /// Its job.
        job: JobId,
        /// Its number for the class.
        key: u32,
        /// The class.
        class: Class,
        /// How many slots.
        backlog: u32,
        /// Where its largest arguments are.
        locality: Vec<(NodeId, u64)>,
    },
    /// There is still work for these leases.
    Renew {
        /// The leases.
        leases: Vec<LeaseId>,
    },
    /// The lease is not needed any more.
    Release {
        /// The lease.
        lease: LeaseId,
    },
    /// Some slots of the lease are not needed any more.
    Shrink {
        /// The lease.
        lease: LeaseId,
        /// How many it goes on with; at least 1.
        keep: u32,
    },
    /// Running tasks of this lease wait.
    Block {
        /// The lease.
        lease: LeaseId,
        /// How many.
        slots: u32,
    },
    /// They run again.
    Unblock {
        /// The lease.
        lease: LeaseId,
        /// How many.
        slots: u32,
    },
    /// Answer to [`ToAgent::Reserve`]: the host that will execute.
    LeaseReady {
        /// The lease.
        lease: LeaseId,
        /// The host.
        host: HostId,
    },
    /// Answer to [`ToAgent::Reserve`]: there will be none.
    LeaseFailed {
        /// The lease.
        lease: LeaseId,
        /// Why.
        failure: Failure,
    },
    /// Answer to [`ToAgent::Overdue`]: nothing runs under the lease, so that it may end.
    AtRest {
        /// The lease.
        lease: LeaseId,
    },
    /// A host ended.
    HostEnded {
        /// The host.
        host: HostId,
        /// Its job.
        job: JobId,
        /// How.
        failure: Failure,
    },
    /// Every host of this node has claimed what it holds of what a dead host owned. Where the dead is an agent, it stands
    /// for the hosts of its node.
    Mourned {
        /// The dead.
        host: HostId,
    },
    /// A host's question.
    Ask {
        /// The host.
        host: HostId,
        /// Its job.
        job: JobId,
        /// The host's number for it.
        request: Request,
        /// The question.
        question: Question,
    },
    /// Answer to [`ToAgent::StartSteward`].
    StewardReady {
        /// The job whose detached actors it owns.
        job: JobId,
        /// The host.
        host: HostId,
    },
    /// What the node uses, for people; at most every two seconds, and only when it changed.
    Usage(Usage),
    /// Answer to [`ToAgent::TakeStock`].
    Stock {
        /// From the question.
        request: u64,
        /// What the store holds.
        store: crate::inventory::Store,
    },
    /// Answer to [`ToAgent::Explain`]; `None`: its owner is gone, or knows nothing of it any more.
    Explained {
        /// From the question.
        request: u64,
        /// What it is, and what it waits for.
        found: Option<Explained>,
    },
    /// From a node that drains, whenever it changed: what is still there.
    Draining(Left),
    /// The agent leaves in good order.
    Leave,
}

impl ToHead {
    /// What kind of message it is, for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Register { .. } => "register",
            Self::JobStart { .. } => "job-start",
            Self::JobEnd { .. } => "job-end",
            Self::Demand { .. } => "demand",
            Self::Renew { .. } => "renew",
            Self::Release { .. } => "release",
            Self::Shrink { .. } => "shrink",
            Self::Block { .. } => "block",
            Self::Unblock { .. } => "unblock",
            Self::LeaseReady { .. } => "lease-ready",
            Self::LeaseFailed { .. } => "lease-failed",
            Self::AtRest { .. } => "at-rest",
            Self::HostEnded { .. } => "host-ended",
            Self::Mourned { .. } => "mourned",
            Self::Ask { .. } => "ask",
            Self::StewardReady { .. } => "steward-ready",
            Self::Usage(_) => "usage",
            Self::Stock { .. } => "stock",
            Self::Explained { .. } => "explained",
            Self::Draining(_) => "draining",
            Self::Leave => "leave",
        }
    }
}

/// What is still on a node that drains, apart from leases, of which the head knows itself.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
)]
pub struct Left {
    /// Primary copies of objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Hosts that run something, or own objects that are in use.
    pub hosts: u32,
    /// Drivers, whose jobs end with the node.
    pub drivers: u32,
}

/// What a node is when it registers.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub struct Register {
    /// A name for people: the host name unless set.
    pub name: String,
    /// Where peers reach its UDP port (`IP:PORT`); empty for one that only dials outward.
    pub address: String,
    /// What it offers.
    pub total: Resources,
    /// Its indexed devices.
    pub devices: Vec<Device>,
    /// Its labels, sorted by key.
    pub labels: Vec<Label>,
    /// The capacity of its object store.
    pub store_bytes: u64,
    /// Whether each job runs as a user of its own.
    pub multi_tenant: bool,
}

/// What a node uses at the moment.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
)]
pub struct Usage {
    /// Bytes of the store given to regions.
    pub store_used_bytes: u64,
    /// Objects sealed in the store, copies included.
    pub objects: u64,
    /// Of these, primary copies: what would be lost with the node.
    pub primaries: u64,
    /// Objects pinned by readers.
    pub pinned: u64,
    /// Running hosts.
    pub hosts: u32,
    /// Bytes pulled from other nodes since the agent started.
    pub pulled_bytes: u64,
    /// Bytes served to other nodes since the agent started.
    pub served_bytes: u64,
    /// Requests for room in the store that wait.
    pub waiting: u64,
    /// Bytes of files of spilled objects.
    pub spill_used_bytes: u64,
    /// Bytes of objects spilled since the agent started.
    pub spilled_bytes: u64,
    /// How many objects those were.
    pub spilled: u64,
    /// Bytes of spilled objects read back since the agent started.
    pub restored_bytes: u64,
    /// How many objects those were.
    pub restored: u64,
    /// Bytes of copies that were dropped from memory since the agent started, since they lie on disk or on another node.
    pub evicted_bytes: u64,
    /// How many copies those were.
    pub evicted: u64,
}

/// A node as others need to know it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its incarnation.
    pub node: NodeId,
    /// Its name for people.
    pub name: String,
    /// Where it is reached; empty for one that only dials outward.
    pub address: String,
}

/// What the head tells an agent.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub enum ToAgent {
    /// Answer to [`ToHead::Register`].
    Registered {
        /// Who the agent is from now on.
        node: NodeId,
        /// The other nodes.
        nodes: Vec<Node>,
    },
    /// The registration was refused, and the connection ends.
    Refused(Failure),
    /// A node joined.
    NodeUp(Node),
    /// A node is gone.
    NodeDown {
        /// The node.
        node: NodeId,
        /// Why.
        failure: Failure,
    },
    /// The job has a number.
    JobStarted {
        /// From the request.
        request: Request,
        /// The job.
        job: Job,
    },
    /// The job ended: kill its hosts, free its objects.
    JobEnded {
        /// The job.
        job: JobId,
        /// Why.
        failure: Failure,
        /// To the driver's agent: the other nodes that were asked for hosts of the job. Each sends it
        /// [`Between::OutputEnded`]. Empty to everyone else.
        nodes: Vec<NodeId>,
    },
    /// Reserve slots, start a host if none is warm, answer with [`ToHead::LeaseReady`].
    Reserve {
        /// The lease.
        lease: LeaseId,
        /// The job it is for.
        job: Job,
        /// The class.
        class: Class,
        /// How many slots.
        slots: u32,
        /// The devices.
        devices: Vec<DeviceGrant>,
    },
    /// The lease is over. A host that it had for itself waits for another one, once nothing runs in it.
    LeaseEnded {
        /// The lease.
        lease: LeaseId,
        /// It was taken away: a host that it had for itself is killed.
        evicted: bool,
    },
    /// The owner of this lease, which has a process of its own on this node, was not heard of for a term: does anything run
    /// in that? Answered with [`ToHead::AtRest`] once nothing does.
    Overdue {
        /// The lease.
        lease: LeaseId,
    },
    /// Start the host that owns a job's detached actors.
    StartSteward {
        /// The job.
        job: Job,
    },
    /// For a host here: slots were granted.
    Granted {
        /// The host that asked.
        owner: HostId,
        /// What it got.
        grant: crate::host::Grant,
    },
    /// For a host here: a lease ends, or should.
    Revoked {
        /// The host that holds it.
        owner: HostId,
        /// The lease.
        lease: LeaseId,
        /// Why.
        kind: Revocation,
    },
    /// For a host here: no node could ever satisfy the class.
    Infeasible {
        /// The host that asked.
        owner: HostId,
        /// Its number for the class.
        key: u32,
        /// What is missing.
        failure: Failure,
    },
    /// A host somewhere ended; hosts of the same job here are told.
    HostEnded {
        /// The host.
        host: HostId,
        /// Its job.
        job: JobId,
        /// How.
        failure: Failure,
    },
    /// Every node has answered [`ToHead::Mourned`]: what nobody has claimed of what the dead owned may go, and what it
    /// held is held by others now, or by nobody.
    Buried {
        /// The dead; an agent stands for the hosts of its node.
        host: HostId,
    },
    /// For a host here: the answer to its question.
    Answered {
        /// The host.
        host: HostId,
        /// Its number for it.
        request: Request,
        /// The answer.
        answer: Answer,
    },
    /// What is in the store? Answered with [`ToHead::Stock`].
    TakeStock {
        /// Pairs with the answer.
        request: u64,
    },
    /// What does this call or actor wait for, which a host here owns? Answered with [`ToHead::Explained`].
    Explain {
        /// Pairs with the answer.
        request: u64,
        /// Its name.
        task: TaskId,
    },
    /// The node is to leave: move the primary copies of objects to these nodes, the first of which have the most room,
    /// and end the hosts that nothing needs. Replaces an earlier list. Answered with [`ToHead::Draining`].
    Drain {
        /// Where to; at most [`DRAIN_TARGETS_MAX`].
        to: Vec<NodeId>,
    },
    /// It is to stay after all.
    Resume,
    /// It has drained, or had no more time for it: the head counts it out, and it ends.
    Dismissed,
    /// The head ends in good order and the cluster with it.
    Shutdown,
}

/// Most nodes in [`ToAgent::Drain`].
pub const DRAIN_TARGETS_MAX: usize = 64;

/// What an agent must know of a job to run its hosts.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The job.
    pub job: JobId,
    /// Its driver; output goes there, and the binary is first found on its node.
    pub driver: HostId,
    /// A name for people.
    pub name: String,
    /// The namespace of its named actors.
    pub namespace: String,
    /// The queue that is charged for what names no other; empty for the default one.
    pub queue: String,
    /// Its program.
    pub binary: BinaryHash,
    /// What the program is given when it is executed as a host.
    pub arguments: Vec<String>,
    /// Files that travel beside it: name and hash.
    pub files: Vec<(String, BinaryHash)>,
}

/// What became of a copy that a node that drains gives to another.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is not there.
    No,
    /// It may go where it was: its owner knows of the other.
    Yes,
    /// It is there, and claimed for the agent of the node that drains.
    Inherited,
}

/// What one agent tells another, on the relay stream between them.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub enum Between {
    /// First message in either direction: who is talking.
    Hello {
        /// Version and role.
        hello: Hello,
        /// The sender's incarnation.
        node: NodeId,
    },
    /// Behind [`Between::Hello`] on a relay stream that carries more: what follows is numbered, from `first` on. A message
    /// of no bytes stands for one that was given up, or need not come again.
    Begin {
        /// Which of the sender's streams to the receiver, from 1.
        stream: u64,
        /// The number of the message behind this one.
        first: u64,
    },
    /// Back on such a stream: all messages before this number were handed on.
    Received {
        /// The number.
        next: u64,
    },
    /// For each of these pairs, the sender's agent has told the first host that it counts the second, a host of the
    /// receiver's, as dead, since messages for it could not be delivered: the second is to be told the same of the first.
    Severed {
        /// At most [`SEVERED_MAX`].
        pairs: Vec<(HostId, HostId)>,
    },
    /// Messages of one host to others, in order.
    Relay {
        /// The sending host.
        from: HostId,
        /// The sender's job.
        job: JobId,
        /// Encoded [`crate::peer::Message`]s; see [`crate::relay`].
        batch: Vec<u8>,
    },
    /// A line for a driver's terminal.
    Output {
        /// The driver.
        to: HostId,
        /// Who printed it.
        from: HostId,
        /// Whether on standard error.
        stderr: bool,
        /// The line.
        line: String,
    },
    /// To the driver's agent, behind the last [`Between::Output`]: the job's hosts on the sending node are gone, and
    /// all that they printed was sent.
    OutputEnded {
        /// The job.
        job: JobId,
        /// The sender's incarnation.
        node: NodeId,
    },
    /// From an owner's agent to the one with the primary copy: nobody can reach the object any more.
    Free {
        /// The object.
        object: ObjectId,
        /// The copy.
        copy: Copy,
    },
    /// From an owner's agent to that of a host that died; see [`ToAgent::Discard`](crate::host::ToAgent::Discard).
    Discard {
        /// The first of the values.
        object: ObjectId,
        /// The index of the last one.
        last: u32,
        /// The attempt.
        attempt: u32,
        /// Only what was made in memory of this job.
        job: Option<JobId>,
    },
    /// From the agent with the primary copy to one that pulled it: drop your copies by this and earlier attempts.
    Drop {
        /// The object.
        object: ObjectId,
        /// The attempt that made the primary copy.
        attempt: u32,
        /// The job in whose memory that lay.
        job: JobId,
    },
    /// A message of `from`'s found no such host here.
    NotHere {
        /// Who sent it.
        from: HostId,
        /// Who is not here, any more.
        host: HostId,
    },
    /// From the agent of a host that holds refs to objects of dead owners: who has primary copies of them is to keep them
    /// for that host. Answered with [`Between::Claimed`].
    Claim {
        /// The host.
        host: HostId,
        /// Pairs with the answer.
        number: u64,
        /// The objects; at most [`crate::peer::CLAIMS_MAX`].
        objects: Vec<ObjectId>,
        /// Nodes that are gone, of which the receiver may not have heard yet: what was pulled from there is as good as a
        /// primary copy.
        gone: Vec<NodeId>,
    },
    /// Answer to [`Between::Claim`].
    Claimed {
        /// From the question.
        host: HostId,
        /// From the question.
        number: u64,
        /// Who answers.
        by: NodeId,
        /// What it keeps for the host, or `None` where it has no primary copy.
        answers: Vec<(ObjectId, Option<Record>)>,
    },
    /// A host does not hold an object any more that is kept for it.
    Unclaim {
        /// The host.
        host: HostId,
        /// The object.
        object: ObjectId,
    },
    /// In front of [`Between::Keep`]: refs inside that value, or some more of them.
    Contains {
        /// The object.
        object: ObjectId,
        /// The copy.
        copy: Copy,
        /// How many were named before.
        at: u32,
        /// At most [`crate::peer::RECORD_REFS_MAX`].
        refs: Vec<ObjectId>,
    },
    /// From a node that drains: pull this copy, let it be the primary one, and tell its owner. Answered with
    /// [`Between::Kept`].
    Keep {
        /// The object.
        object: ObjectId,
        /// The copy.
        copy: Copy,
        /// How many refs are inside it; `None` where only its owner knows.
        refs: Option<u32>,
        /// Its owner is dead, and the node that drains is owner of record: the copy is claimed for that node's agent, until
        /// it takes that back or is buried.
        inherited: bool,
    },
    /// From the agent of an owner that lost copies on a node. To that node: do you live? To all others, where it is gone: what
    /// you pulled from there of what this host owns is the primary copy from now on. Answered with [`Between::Salvaged`].
    Salvage {
        /// The owner.
        owner: HostId,
        /// Where the copies were.
        node: NodeId,
    },
    /// Answer to [`Between::Salvage`].
    Salvaged {
        /// From the question.
        owner: HostId,
        /// From the question.
        node: NodeId,
        /// Who answers.
        by: NodeId,
        /// What it has; at most [`crate::peer::CLAIMS_MAX`].
        copies: Vec<(ObjectId, Copy)>,
        /// Whether more follows.
        more: bool,
    },
    /// From the node that has the primary copy now to the owner's: tell it. Answered with [`Between::Noted`].
    Moved {
        /// The object.
        object: ObjectId,
        /// Where it was.
        from: NodeId,
        /// Where it is.
        copy: Copy,
    },
    /// To a node that has copied an object, from the one that has the primary copy now: it is here.
    LiesHere {
        /// The object.
        object: ObjectId,
        /// The primary copy.
        copy: Copy,
    },
    /// The owner's answer to [`Between::Moved`].
    Noted {
        /// The object.
        object: ObjectId,
        /// From the question.
        copy: Copy,
        /// What it said.
        noted: crate::host::Noted,
    },
    /// From a node where these objects lie to their owner's: what holds them? Answered with [`Between::Holds`].
    WhatHolds {
        /// Who wants to know.
        by: NodeId,
        /// The owner.
        owner: HostId,
        /// Pairs with the answer.
        number: u64,
        /// At most [`crate::inventory::HELD_MAX`].
        objects: Vec<ObjectId>,
    },
    /// The owner's answer to [`Between::WhatHolds`], for each object in order; for none where the owner is gone.
    Holds {
        /// From the question.
        owner: HostId,
        /// From the question.
        number: u64,
        /// What it said.
        held: Vec<crate::inventory::Held>,
    },
    /// Answer to [`Between::Keep`].
    Kept {
        /// The object.
        object: ObjectId,
        /// From the question.
        attempt: u32,
        /// From the question.
        job: JobId,
        /// What became of it.
        taken: Taken,
        /// Who answers.
        by: NodeId,
    },
    /// Behind [`Between::Kept`], from the node that drained: these have copies, and are to be told when the object goes.
    Held {
        /// The object.
        object: ObjectId,
        /// The attempt that made the copies.
        attempt: u32,
        /// The job in whose memory the primary one lies.
        job: JobId,
        /// Who.
        nodes: Vec<NodeId>,
    },
}

/// Most pairs in [`Between::Severed`].
pub const SEVERED_MAX: usize = 4096;

/// First message on a bulk stream: what is wanted. The answer is a note, a length and the bytes.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub enum Pull {
    /// An object.
    Object {
        /// The object.
        object: ObjectId,
        /// The copy that is meant.
        copy: Copy,
        /// Who pulls. At the node with the primary copy: will be told to drop its own.
        by: NodeId,
        /// So many bytes are there already, from the beginning.
        from: u64,
        /// Nodes from which it could not be had.
        tried: Vec<NodeId>,
        /// Only a whole copy will do: one that is being pulled may wait for this very reader.
        whole: bool,
    },
    /// A job's program or file.
    Binary {
        /// Its hash.
        hash: BinaryHash,
    },
}

/// Most nodes in [`Sources`].
pub const SOURCES_MAX: usize = 8;
/// Most refs inside a value that [`Sources`] names.
pub const SOURCE_REFS_MAX: usize = 64;

/// The note in an answer to [`Pull::Object`] of the node with the primary copy: others that have it, or a part of it.
/// Where the answer is no range, the first of them is to be asked.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// At most [`SOURCES_MAX`].
    pub nodes: Vec<NodeId>,
    /// The refs inside the value; `None` where they are more than [`SOURCE_REFS_MAX`], or not known.
    pub refs: Option<Vec<ObjectId>>,
}

/// The cluster as people see it: what `mobula status` prints and the HTTP API serves.
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default)]
pub struct Snapshot {
    /// The cluster's name (hex digits of its CA).
    pub cluster: String,
    /// The nodes that are alive, by number.
    pub nodes: Vec<NodeSnapshot>,
    /// The running jobs.
    pub jobs: Vec<JobSnapshot>,
    /// The queues, by name; without the default one where there is no other.
    pub queues: Vec<QueueSnapshot>,
    /// The granted leases.
    pub leases: u64,
    /// Classes that wait for slots, each with the reason.
    pub waiting: Vec<WaitingSnapshot>,
    /// Named actors.
    pub names: Vec<NameSnapshot>,
    /// Placement groups.
    pub groups: Vec<GroupSnapshot>,
    /// The shapes of what waits and finds no room, as an autoscaler outside of the cluster needs them, whether the head
    /// starts nodes itself or not.
    #[serde(default)]
    pub unmet: Vec<UnmetSnapshot>,
    /// What was refused in the last minutes because no node could ever hold it, and would be still: it waits no more, but
    /// nodes that could hold it would be of use to who asks again.
    #[serde(default)]
    pub refused: Vec<RefusedSnapshot>,
    /// Nodes that may be started by themselves; `None` where none may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingSnapshot>,
}

/// Nodes that are started and drained by themselves.
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default, PartialEq)]
pub struct ScalingSnapshot {
    /// Their types.
    pub types: Vec<NodeTypeSnapshot>,
    /// What waits and finds room on none that may be started.
    pub left: Vec<UnmetSnapshot>,
}

/// One type of nodes in a [`ScalingSnapshot`].
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default, PartialEq)]
pub struct NodeTypeSnapshot {
    /// Its name.
    pub name: String,
    /// What a node offers: amounts by resource name.
    pub resources: std::collections::BTreeMap<String, f64>,
    /// How many there are at least.
    pub min: u32,
    /// How many there are at most.
    pub max: u32,
    /// How many are there.
    pub nodes: u32,
    /// How many are on their way.
    pub coming: u32,
    /// Starting one failed, and is not tried again for a while.
    pub paused: bool,
}

/// What waits, in a [`Snapshot`] or a [`ScalingSnapshot`].
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default, PartialEq)]
pub struct UnmetSnapshot {
    /// What each needs: amounts by resource name.
    pub resources: std::collections::BTreeMap<String, f64>,
    /// Conditions on the node's labels; all must hold, or all of one of the `fallbacks`.
    pub labels: Vec<String>,
    /// Other conditions that will do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<Vec<String>>,
    /// How many there are.
    pub count: u64,
    /// The placement group of which they are bundles; empty for single slots.
    pub group: String,
    /// How the bundles of that group lie to each other, as in `strict spread by rack`; empty for single slots.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arrange: String,
    /// Whether each must be on a node without another of its kind.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub apart: bool,
    /// The queues whose limits hold for these: `count` is what they leave to these alone, and all that waits under one of
    /// them may have no more together (see [`QueueSnapshot::limit`] and [`QueueSnapshot::used`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<String>,
}

/// Requests of one kind that were refused, in a [`Snapshot`].
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default, PartialEq)]
pub struct RefusedSnapshot {
    /// The function; for a placement group, just that.
    pub what: String,
    /// What it asked for: one shape, with the most slots that were asked for at once, or those of a whole group.
    pub shapes: Vec<UnmetSnapshot>,
    /// How often.
    pub times: u64,
    /// When that was last, in seconds before now.
    pub seconds_ago: f64,
    /// What was missing.
    pub why: String,
}

/// One node in a [`Snapshot`].
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug)]
pub struct NodeSnapshot {
    /// The node.
    pub node: String,
    /// Its name for people.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// What it offers: amounts by resource name.
    pub total: std::collections::BTreeMap<String, f64>,
    /// What of that is free.
    pub available: std::collections::BTreeMap<String, f64>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// Its labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Capacity of its store.
    pub store_bytes: u64,
    /// Whether each job runs as a user of its own.
    pub multi_tenant: bool,
    /// What it uses.
    pub usage: Usage,
    /// How many messages its agent has sent to this head since it joined, by kind. Calls under a lease add none.
    #[serde(default)]
    pub told: std::collections::BTreeMap<String, u64>,
    /// What is still there, where it is to leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<DrainSnapshot>,
}

/// A node that is to leave.
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default, PartialEq)]
pub struct DrainSnapshot {
    /// Leases on it: of tasks that run to their end, and of actors that have not moved yet or may not.
    pub leases: u64,
    /// Whether the agent has said what else is there.
    pub counted: bool,
    /// That.
    #[serde(flatten)]
    pub left: Left,
    /// After so long what is left ends with the node.
    pub seconds_left: f64,
}

/// One job in a [`Snapshot`].
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug)]
pub struct JobSnapshot {
    /// The job.
    pub job: String,
    /// Its name for people.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// The queue to which it belongs; empty for the default one.
    pub queue: String,
    /// Slots it holds.
    pub slots: u64,
}

/// One queue in a [`Snapshot`].
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default, PartialEq)]
pub struct QueueSnapshot {
    /// Its name; empty for the default one.
    pub name: String,
    /// The queue of which it is a part; empty at the top.
    pub parent: String,
    /// Its part relative to its siblings'.
    pub weight: f64,
    /// What it gets before others get more than is guaranteed to them: amounts by resource name.
    pub guaranteed: std::collections::BTreeMap<String, f64>,
    /// What it and its children may use at most.
    pub limit: std::collections::BTreeMap<String, f64>,
    /// What is used by work of its own, without its children's.
    pub used: std::collections::BTreeMap<String, f64>,
    /// Running jobs that belong to it.
    pub jobs: u64,
    /// Slots that its own work holds.
    pub slots: u64,
    /// Slots for which its own work waits.
    pub waiting: u64,
}

/// One waiting class in a [`Snapshot`].
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug)]
pub struct WaitingSnapshot {
    /// Whose.
    pub owner: String,
    /// The function.
    pub function: String,
    /// The queue in which it waits; empty for the default one.
    pub queue: String,
    /// Slots wanted.
    pub backlog: u32,
    /// Why it waits; or, among very many, how to ask for that.
    pub why: String,
}

/// One placement group in a [`Snapshot`].
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default, PartialEq)]
pub struct GroupSnapshot {
    /// The group.
    pub group: String,
    /// Its name, as `NAMESPACE/NAME`; empty where it has none.
    pub name: String,
    /// The job with which it ends; empty for a detached one.
    pub job: String,
    /// How its bundles lie to each other: `pack`, `strict spread`; with the label whose values are the places, where
    /// there is one.
    pub arrange: String,
    /// The queue that is charged; empty for the default one.
    pub queue: String,
    /// How many bundles it has.
    pub bundles: u32,
    /// How many of them are reserved.
    pub placed: u32,
    /// What all bundles have together: amounts by resource name.
    pub resources: std::collections::BTreeMap<String, f64>,
    /// How many bundles are on each node.
    pub nodes: std::collections::BTreeMap<String, u32>,
    /// Why it waits; or, among very many, how to ask for that; empty where all of it is reserved.
    pub why: String,
}

/// Why something waits, for people: what `mobula why` prints.
///
/// What is asked about is a task or an actor (`node-1/host-2#81`), an object (`node-1/host-2#81.0`), a named actor
/// (`NAME`, or `NAMESPACE/NAME`), a placement group (`group-3`), or what waits for slots of a job (`job-3`), of a queue
/// (`queue:research`) or of a function (`crawl::fetch`).
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// What was asked about.
    pub id: String,
    /// What that is: `task crawl::fetch#81`.
    pub what: String,
    /// Why it waits or what became of it, in sentences, the owner's first; at most [`REASONS_MAX`].
    pub reasons: Vec<String>,
}

/// Most reasons in an [`Explanation`].
pub const REASONS_MAX: usize = 100;

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        self.reasons.iter().try_for_each(|reason| write!(f, "\n  {reason}"))
    }
}

/// One named actor in a [`Snapshot`].
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug)]
pub struct NameSnapshot {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The actor.
    pub actor: String,
    /// Its type.
    pub actor_type: String,
}
