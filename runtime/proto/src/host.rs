//! Messages between a host and the agent of its node.
//!
//! Launched hosts speak over the socket they inherit, drivers over the agent's Unix socket, and in an embedded
//! cluster the same messages go through memory. Requests carry a number that the answer repeats.

#![allow(missing_docs, reason = "the derive of rkyv makes mirror types with undocumented fields")]

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    BinaryHash, Failure, Group, GroupId, HostId, JobId, LeaseId, NodeId, ObjectId, RegionId, TaskId,
    inventory::Held,
    peer::{Copy, Record},
    resource::{Class, DeviceGrant},
    wire::Hello,
};

/// Number that pairs a request with its answer; counted by whoever asks.
pub type Request = u64;

/// What a host tells its agent.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub enum ToAgent {
    /// First message: who is there. Six descriptors may travel with it, for messages to and from hosts that no ring
    /// leads to (see [`crate::relay`]): the ring to the agent, the ring from the agent, the agent's doorbell for the
    /// first, the host's for the second, the agent's bell, and the agent's end of the lane in which descriptors lie that
    /// belong to messages in the ring from the agent. The agent does not sleep on its doorbell: where that has to
    /// be rung, because there is something in the ring to the agent or room in the other, the host writes to the bell, an
    /// eventfd.
    Hello {
        /// Version and role.
        hello: Hello,
        /// Its process.
        pid: u32,
        /// What a driver brings; `None` from a launched host.
        driver: Option<Driver>,
        /// Fingerprint over every registered function's name and signature.
        registry: u64,
    },
    /// A descriptor travels with it: the host's doorbell, to be handed to peers.
    Doorbell,
    /// Slots wanted now beyond those held; replaces what was said for this key before. 0 withdraws.
    Demand {
        /// The class, as this host numbers its classes.
        key: u32,
        /// What it needs.
        class: Class,
        /// How many slots.
        backlog: u32,
        /// Where its largest arguments are, with their bytes; sorted.
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
    /// From an executor: running tasks of this lease wait, so their CPU is free. The head hears of it where they have one
    /// and go on waiting for about a millisecond.
    Block {
        /// The lease.
        lease: LeaseId,
        /// How many.
        slots: u32,
    },
    /// From an executor: they run again.
    Unblock {
        /// The lease.
        lease: LeaseId,
        /// How many.
        slots: u32,
    },
    /// This host's share of the budget for arguments of what runs does not do for the next call, which waits for
    /// [`ToHost::Budget`]. Once more before that: it wants so much instead.
    BudgetWanted {
        /// So much more, in bytes.
        more: u64,
        /// Nothing of the share is in use.
        alone: bool,
    },
    /// This host's share is lower from now on.
    BudgetBack {
        /// By so many bytes.
        bytes: u64,
    },
    /// Answer to [`ToHost::MayMakeRoom`].
    MakesRoom {
        /// Whether it may.
        may: bool,
    },
    /// Answer to [`ToHost::Mark`], behind all that this host has said before.
    Marked {
        /// Of the mark.
        number: u64,
    },
    /// May this host have a region of so many bytes? Answered when there is room.
    RegionWanted {
        /// Pairs with the answer.
        request: Request,
        /// Its size.
        bytes: u64,
        /// How long to wait for room before the store counts as full.
        wait_ms: u64,
    },
    /// The region is not needed any more: room came free in those that the host has. What was granted for it meanwhile
    /// goes back, and what answers it is not waited for.
    RegionUnwanted {
        /// From the request.
        request: Request,
    },
    /// What was kept for reuse alone is given back, as [`ToHost::Reclaim`] asks for: the
    /// [`ToAgent::RegionRemoved`] that come of it came before.
    Trimmed,
    /// The region, made after [`ToHost::RegionGranted`]; its descriptor travels with the message.
    RegionAdded {
        /// That it was granted to.
        request: Request,
        /// Which of this writer's regions, from 1.
        seq: u32,
        /// Its size.
        bytes: u64,
    },
    /// The writer dropped an empty region.
    RegionRemoved {
        /// Which.
        seq: u32,
    },
    /// An object is complete and will not change until the agent says [`ToHost::Reclaim`].
    Sealed {
        /// The object.
        object: ObjectId,
        /// The attempt that made it.
        attempt: u32,
        /// The region, one of this host's.
        region: u32,
        /// Where in the region.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// The place in the program that made it, as [`ToAgent::Site`] named it; 0: it has no name.
        site: u32,
    },
    /// What [`ToAgent::Sealed`] calls a place in the program by number from now on.
    Site {
        /// Its number, one more than the last one's, from 1.
        number: u32,
        /// Its name, at most [`crate::inventory::SITE_BYTES_MAX`].
        name: String,
    },
    /// In front of [`ToAgent::Sealed`], with no refs inside other values between them: refs inside that value, or some more
    /// of them.
    Contains {
        /// The object.
        object: ObjectId,
        /// The attempt that made it.
        attempt: u32,
        /// The refs; at most [`crate::peer::CONTAINS_MAX`] in all.
        refs: Vec<ObjectId>,
    },
    /// The owners of these are dead: whoever has a primary copy of one is to keep it for this host. Each is answered in
    /// [`ToHost::Claimed`].
    Claim {
        /// The objects, and where their primary copies were last; at most [`crate::peer::CLAIMS_MAX`].
        objects: Vec<(ObjectId, Option<NodeId>)>,
    },
    /// Copies of what this host owns are lost which lay on this node: if that is gone, whoever has others is to keep them.
    /// Answered with [`ToHost::Salvaged`].
    Salvage {
        /// The node.
        node: NodeId,
    },
    /// This host holds an object no more that it claimed.
    Unclaim {
        /// The object.
        object: ObjectId,
        /// Who keeps it for this host.
        node: NodeId,
    },
    /// Answer to [`ToHost::HostDied`], and, with the node's agent for its hosts, to [`ToHost::NodeDied`]: all that this
    /// host holds of what the dead owned is claimed.
    Mourned {
        /// The dead.
        host: HostId,
    },
    /// From the owner: nobody can reach the object any more, whichever attempt made it. `copy` says where its primary is.
    Free {
        /// The object.
        object: ObjectId,
        /// Its primary copy.
        copy: Copy,
    },
    /// From the owner: this copy need not count, since that one does: it is that one's, as if it had been pulled from there.
    Spare {
        /// The object.
        object: ObjectId,
        /// The copy.
        copy: Copy,
        /// The one that counts.
        primary: Copy,
    },
    /// From the owner: this copy does not count, and one that another attempt made may. Or from a host of the job in whose
    /// memory a copy on this node lies, which was never told to the owner.
    Decline {
        /// The object.
        object: ObjectId,
        /// The copy.
        copy: Copy,
    },
    /// From the owner: what a host of `node` made of a task before it died is garbage, as far as the owner was not told where
    /// it lies: this value and those behind it.
    Discard {
        /// Where that host was.
        node: NodeId,
        /// The first of these values.
        object: ObjectId,
        /// The index of the last one.
        last: u32,
        /// The attempt; what other attempts made stays.
        attempt: u32,
    },
    /// Make the object readable here, pulling it if need be, and pin it for this host.
    Open {
        /// Pairs with the answer.
        request: Request,
        /// The object.
        object: ObjectId,
        /// Its primary copy.
        copy: Copy,
        /// Nothing waits for it yet: a pull for what something waits for comes first.
        ahead: bool,
    },
    /// Something waits now for what was asked for ahead.
    Hurry {
        /// The object.
        object: ObjectId,
    },
    /// This host dropped its last view of what [`ToHost::Opened`] gave; one for each `Opened`.
    Unpin {
        /// The object.
        object: ObjectId,
    },
    /// This host has mapped the region: from now on what lies in it is opened without its descriptor.
    Mapped {
        /// The region.
        region: RegionId,
    },
    /// It has not any more.
    Unmapped {
        /// The region.
        region: RegionId,
    },
    /// Set up rings with a host of the same job on this node.
    Connect {
        /// The other host.
        peer: HostId,
    },
    /// A message for a host that no ring leads to, where none leads to the agent either.
    Relay {
        /// The other host.
        to: HostId,
        /// An encoded [`crate::peer::Message`].
        body: Vec<u8>,
    },
    /// A question for the head.
    Ask {
        /// Pairs with the answer.
        request: Request,
        /// The question.
        question: Question,
    },
    /// Answer to [`ToHost::Explain`]; `None`: this host knows nothing of it any more.
    Explained {
        /// From the question.
        request: Request,
        /// What it is, and what it waits for.
        found: Option<Explained>,
    },
    /// Answer to [`ToHost::Moved`].
    Noted {
        /// The object.
        object: ObjectId,
        /// Where its primary copy is now.
        copy: Copy,
        /// What the owner did.
        noted: Noted,
    },
    /// Answer to [`ToHost::WhatHolds`], for each object in order.
    Holds {
        /// From the question.
        asker: NodeId,
        /// From the question.
        number: u64,
        /// At most [`crate::inventory::HELD_MAX`].
        held: Vec<Held>,
    },
    /// Answer to [`ToHost::AreYouIdle`].
    Idle {
        /// Whether nothing would be lost if the host ended: it runs nothing, waits for nothing, and all that it owns lies in
        /// stores, from where others claim what they hold of it.
        idle: bool,
    },
    /// Answer to [`ToHost::AreYouAtRest`], at once; and again when that changes to yes.
    AtRest {
        /// From the question; the last one, where there were several.
        request: Request,
        /// Whether no task and no actor is here.
        at_rest: bool,
    },
    /// From a driver: `main` has ended; so does the job.
    JobDone,
}

/// What an owner did when it heard that the primary copy of an object is elsewhere.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// It looks for the object there from now on.
    Yes,
    /// It knows of no such copy: it was freed, or is so new that its owner has not heard of it.
    Unknown,
    /// The owner is gone.
    Gone,
}

/// What an owner says of something that it submitted.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// What it is: `task crawl::fetch#81`.
    pub what: String,
    /// What it waits for, or what became of it, as far as its owner knows: `waits for a lease`.
    pub why: String,
    /// The number of its class at its owner, where it waits for a lease.
    pub key: Option<u32>,
}

/// What a driver brings.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub struct Driver {
    /// A name for people: the program's.
    pub name: String,
    /// The namespace of its named actors; empty for one of the job's own.
    pub namespace: String,
    /// The queue that is charged for what names no other; empty for the default one.
    pub queue: String,
    /// The program, as an absolute path readable by the agent; empty where nothing is ever launched from it.
    pub program: String,
    /// The program's hash; zeros in an embedded cluster, which never hashes.
    pub binary: BinaryHash,
    /// What the program is given when it is executed as a host; only a test harness needs any.
    pub arguments: Vec<String>,
    /// Files that travel beside it: name, absolute path on the driver's machine, hash.
    pub files: Vec<(String, String, BinaryHash)>,
}

/// What a host may ask the head, through its agent.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub enum Question {
    /// Claim a name for an actor; if it is taken, says whose it is.
    NameClaim {
        /// The namespace; empty for the job's own.
        namespace: String,
        /// The name.
        name: String,
        /// The actor that shall have it.
        actor: TaskId,
        /// The registered name of its type.
        actor_type: String,
    },
    /// Who has this name?
    NameFind {
        /// The namespace; empty for the job's own.
        namespace: String,
        /// The name.
        name: String,
    },
    /// Give a name up; only its holder may.
    NameDrop {
        /// The namespace; empty for the job's own.
        namespace: String,
        /// The name.
        name: String,
        /// The holder.
        actor: TaskId,
    },
    /// The cluster as [`crate::head::Snapshot`], encoded as JSON.
    Snapshot,
    /// What something waits for, as [`crate::head::Explanation`], encoded as JSON.
    Why {
        /// What is meant: see [`crate::head::Explanation`].
        id: String,
    },
    /// The host that owns this job's detached actors; started if there is none yet.
    Steward,
    /// Reserve a placement group; answered with [`Answer::Group`] at once, placed or not.
    GroupCreate {
        /// What it reserves.
        group: Group,
        /// A name under which others find it; empty for none.
        name: String,
        /// The name's namespace; empty for the job's own.
        namespace: String,
        /// It outlives its job, and a restart of the head; needs a name.
        detached: bool,
    },
    /// Answered with [`Answer::Group`] once all its bundles are reserved.
    GroupReady {
        /// The group.
        group: GroupId,
    },
    /// Which group has this name? Answered with [`Answer::Group`], or [`Answer::NoSuchName`].
    GroupFind {
        /// The namespace; empty for the job's own.
        namespace: String,
        /// The name.
        name: String,
    },
    /// Give a group up, with what runs in it.
    GroupRemove {
        /// The group.
        group: GroupId,
    },
}

/// The head's answer to a [`Question`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub enum Answer {
    /// Done.
    Done,
    /// The actor that has the name.
    Actor {
        /// The actor.
        actor: TaskId,
        /// The registered name of its type.
        actor_type: String,
    },
    /// A host.
    Host(HostId),
    /// A placement group.
    Group {
        /// The group.
        group: GroupId,
        /// How many bundles it has.
        bundles: u32,
        /// Whether all of them are reserved.
        placed: bool,
    },
    /// Nobody has that name.
    NoSuchName,
    /// JSON text.
    Json(String),
    /// It could not be done.
    Failed(Failure),
}

/// What an agent tells a host.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub enum ToHost {
    /// Answer to the hello: who the host is.
    Welcome(Welcome),
    /// The hello was refused, and the connection ends.
    Refused(Failure),
    /// Slots were granted.
    Granted(Grant),
    /// A lease ends, or should.
    Revoked {
        /// The lease.
        lease: LeaseId,
        /// Why.
        kind: Revocation,
    },
    /// No node could ever satisfy the class.
    Infeasible {
        /// The class.
        key: u32,
        /// The missing resource, and what there is.
        failure: Failure,
    },
    /// The host may make a region of the size it asked for.
    RegionGranted {
        /// From the request.
        request: Request,
    },
    /// It may not.
    RegionRefused {
        /// From the request.
        request: Request,
        /// Store full, or the region is larger than the store.
        failure: Failure,
    },
    /// Nobody reads these any more; their writer may reuse the memory.
    Reclaim {
        /// The objects, each with the attempt that made the copy.
        objects: Vec<(ObjectId, u32)>,
        /// Others lack room, or have more right to it: regions that hold nothing any more go before anybody writes there
        /// again.
        give_back: bool,
    },
    /// The object lies in this region, whose descriptor travels along unless this host has it mapped.
    Opened {
        /// From the request.
        request: Request,
        /// The region.
        region: RegionId,
        /// The region's size.
        region_bytes: u64,
        /// Where in the region.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// The descriptor was lost on its way, since a process may have no more open. The object is pinned none the less.
        lost: bool,
    },
    /// It cannot be read.
    OpenFailed {
        /// From the request.
        request: Request,
        /// Why.
        failure: Failure,
    },
    /// The region's memory is to be given back: nothing lies in it any more. Answered by [`ToAgent::Unmapped`].
    Unmap {
        /// The region.
        region: RegionId,
    },
    /// Rings to and from a peer; three descriptors travel along: the ring to read, the ring to write, the
    /// peer's doorbell. Without them there will be no rings, and messages go through the agent.
    Rings {
        /// The peer.
        peer: HostId,
    },
    /// A message from a host that no ring leads to, where none leads from the agent either.
    Relayed {
        /// The other host.
        from: HostId,
        /// Whether both belong to the same job; if not, the message is from outside the trust domain.
        same_job: bool,
        /// An encoded [`crate::peer::Message`].
        body: Vec<u8>,
    },
    /// A host of this job, or one that this host has talked to, is gone.
    HostDied {
        /// The host.
        host: HostId,
        /// Why.
        failure: Failure,
    },
    /// Answers to [`ToAgent::Claim`]: what is kept for this host, or `None` where no living node has a primary copy.
    Claimed {
        /// At most [`crate::peer::CLAIMS_MAX`].
        answers: Vec<(ObjectId, Option<Record>)>,
    },
    /// Every host has claimed what it holds of what this one owned; what this one held is held by others now, or by
    /// nobody. An agent stands for all hosts of its node.
    Buried {
        /// The dead.
        host: HostId,
    },
    /// A node is gone, and all hosts and objects on it.
    NodeDied {
        /// The node.
        node: NodeId,
        /// Why.
        failure: Failure,
    },
    /// Arguments of what runs in this host may take more of the store from now on.
    Budget {
        /// By so many bytes.
        more: u64,
    },
    /// Others wait for the budget: what this host does not need goes back ([`ToAgent::BudgetBack`]), now and until it is
    /// given something again.
    BudgetWanted,
    /// Somebody has waited for room in the store for long: may some come free because a call ends that runs here? Answered
    /// with [`ToAgent::MakesRoom`].
    MayMakeRoom,
    /// The agent wants to know when it has heard all that this host has said by now. Answered with [`ToAgent::Marked`].
    Mark {
        /// Which mark.
        number: u64,
    },
    /// Answer to [`ToAgent::Ask`].
    Answered {
        /// From the request.
        request: Request,
        /// The answer.
        answer: Answer,
    },
    /// What does this call or actor, which this host owns, wait for? Answered with [`ToAgent::Explained`].
    Explain {
        /// Pairs with the answer.
        request: Request,
        /// Its name.
        task: TaskId,
    },
    /// The primary copy of an object that this host owns is elsewhere now. Answered with [`ToAgent::Noted`].
    Moved {
        /// The object.
        object: ObjectId,
        /// Where it was.
        from: NodeId,
        /// Where it is.
        copy: Copy,
    },
    /// Answer to [`ToAgent::Salvage`], or a part of it.
    Salvaged {
        /// From the question.
        node: NodeId,
        /// Copies of what lay there, which are primary ones from now on; at most [`crate::peer::CLAIMS_MAX`].
        copies: Vec<(ObjectId, Copy)>,
        /// Whether more follows. Without, that was all that there is.
        more: bool,
    },
    /// What holds these objects, which this host owns and which lie on the asker's node? Answered with [`ToAgent::Holds`].
    WhatHolds {
        /// Whose agent wants to know.
        asker: NodeId,
        /// Pairs with the answer.
        number: u64,
        /// At most [`crate::inventory::HELD_MAX`].
        objects: Vec<ObjectId>,
    },
    /// The node is to leave: would anything be lost if this host ended? One that has nothing to do moves the values that it
    /// keeps itself into the store, and answers with [`ToAgent::Idle`].
    AreYouIdle,
    /// Does no task run here, and does no actor live here? Answered with [`ToAgent::AtRest`].
    AreYouAtRest {
        /// Pairs with the answer.
        request: Request,
    },
    /// To a driver: a line that one of its hosts printed.
    Output {
        /// Which host.
        host: HostId,
        /// Whether on standard error.
        stderr: bool,
        /// The line, without its end.
        line: String,
    },
    /// To a driver, behind the last [`ToHost::Output`]: the job has ended and its hosts are gone, or the driver is
    /// not needed any more since detached actors keep the job. Its waits fail from now on.
    JobEnded(Failure),
}

/// Who a host is.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub struct Welcome {
    /// Its name.
    pub host: HostId,
    /// Its job.
    pub job: JobId,
    /// The job's driver.
    pub driver: HostId,
    /// The job's namespace.
    pub namespace: String,
    /// CPUs of the node, rounded up; sizes thread pools.
    pub cpus: u32,
    /// The store's capacity on this node.
    pub store_bytes: u64,
    /// Devices that this host has to itself.
    pub devices: Vec<DeviceGrant>,
    /// Whether this host is shared by its job on this node (else it belongs to one lease).
    pub shared: bool,
}

/// Granted slots.
#[derive(Archive, Serialize, Deserialize, Clone, Debug)]
pub struct Grant {
    /// The lease.
    pub lease: LeaseId,
    /// The class it is for.
    pub key: u32,
    /// The host that will execute.
    pub host: HostId,
    /// How many tasks at once.
    pub slots: u32,
    /// The lease ends after so long without [`ToAgent::Renew`].
    pub term_ms: u64,
    /// Devices of each slot; empty without devices.
    pub devices: Vec<DeviceGrant>,
}

/// What slots were taken away for.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Others have more right to them, and its owner did not give them back within the grace.
    Preempted,
    /// They were in a placement group that was removed.
    GroupRemoved,
    /// Their node leaves, and has no more time.
    NodeLeaves,
}

/// Why a lease ends.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// Somebody else waits: give it back if it is idle.
    Idle,
    /// It was not renewed.
    Expired,
    /// Its node or host is gone.
    Lost,
    /// Others have more right to some of its slots: no further pushes to those, and unstarted tasks come back.
    Preempted {
        /// How many slots it goes on with; none ends it.
        keep: u32,
    },
    /// Slots were taken away: what still runs in them is stopped, and tried again elsewhere.
    Evicted {
        /// How many slots it goes on with; none has ended it.
        keep: u32,
        /// What for.
        why: Eviction,
    },
    /// Its node is to leave: no further pushes, unstarted tasks come back, and actors that may be restarted move.
    Draining,
}
