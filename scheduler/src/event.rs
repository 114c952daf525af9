//! What the scheduler is told, and what it answers.

use std::{collections::BTreeSet, sync::Arc};

use mobula_proto::{
    Group, GroupId, HostId, JobId, LeaseId, NodeId, Quantity, Queue, Resources, group, queue,
    resource::{self, Class, Device, DeviceGrant, ENTRIES_MAX, Kind, Label, check_name},
};

use crate::{Lease, Millis};

/// Most devices of one kind on one node.
pub const DEVICES_MAX: u32 = 1024;

/// Something that happened.
///
/// What names an unknown lease, node or demand, or a stale incarnation, changes nothing: such messages are late,
/// not wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node joined. A newer incarnation replaces an older one, whose leases are lost; the same or an older one
    /// is ignored. A node with no resources at all (a driver's own agent) is never granted anything.
    NodeUp {
        /// The node.
        node: NodeId,
        /// All it has. Device kinds must agree with `devices`, unless that lists none of the kind: then the
        /// devices are numbered from 0.
        total: Resources,
        /// Its devices; at most [`DEVICES_MAX`] of a kind.
        devices: Vec<Device>,
        /// Its labels, in any order, each key once.
        labels: Vec<Label>,
    },
    /// A node is dead. Its leases are lost, and the hosts that ran on it are gone.
    NodeDown {
        /// The node.
        node: NodeId,
    },
    /// A node gets no new grants; what it runs may finish. Bundles of groups in which nothing runs move elsewhere.
    NodeDrain {
        /// The node.
        node: NodeId,
    },
    /// A node that drained gets new grants again.
    NodeResume {
        /// The node.
        node: NodeId,
    },
    /// What an owner wants. Replaces what it said before about the same key.
    Demand {
        /// Who wants it.
        owner: HostId,
        /// The class, as the owner counts its classes.
        key: u32,
        /// The job that is charged.
        job: JobId,
        /// What one slot needs.
        class: Arc<Class>,
        /// Slots wanted now, beyond the leases already held; 0 withdraws the demand.
        backlog: u32,
        /// Copied to the leases.
        attempt: u32,
        /// Bytes of the work's arguments by node; the [`crate::demand::LOCALITY_MAX`] largest are considered.
        locality: Vec<(NodeId, u64)>,
    },
    /// Its owner hears of a lease now: its term begins, and one that is in no group is asked for where that would help
    /// somebody at once.
    Announced {
        /// The lease.
        lease: LeaseId,
    },
    /// A lease still has work: its term begins anew.
    Renew {
        /// The lease.
        lease: LeaseId,
    },
    /// Its owner gives a lease back.
    Release {
        /// The lease.
        lease: LeaseId,
    },
    /// Its owner gives some slots of a lease back, that do not wait; all of them end it.
    Shrink {
        /// The lease.
        lease: LeaseId,
        /// How many; those beyond its slots are ignored.
        slots: u32,
    },
    /// Running tasks of a lease wait and give their CPU back, and only that.
    Block {
        /// The lease.
        lease: LeaseId,
        /// How many more of its slots wait; those beyond its slots are ignored.
        slots: u32,
    },
    /// Waiting tasks of a lease resume and take their CPU back at once, even where it is no longer there.
    Unblock {
        /// The lease.
        lease: LeaseId,
        /// How many fewer of its slots wait; those beyond the waiting ones are ignored.
        slots: u32,
    },
    /// An owner is gone, with its demands and leases.
    OwnerGone {
        /// The owner.
        owner: HostId,
    },
    /// A job is over, with its demands, groups and leases.
    JobGone {
        /// The job.
        job: JobId,
    },
    /// All the queues, in place of those before. What a queue that is no longer there holds is charged to the
    /// default one; what waits in it is refused, and so is what alone needs more than a limit. A group that was placed
    /// is not: it waits for the bundles that it lacks.
    Queues(Vec<Queue>),
    /// A placement group is wanted. One that is known already is not asked for again.
    Group {
        /// The group.
        group: GroupId,
        /// The job that is charged.
        job: JobId,
        /// What it asks for.
        spec: Arc<Group>,
    },
    /// A placement group of nobody's job, which a predecessor of this scheduler took on. It is never refused for its
    /// queue: where that is gone it is the default one's, and where it needs more than the limits are now, it waits.
    Promised {
        /// The group.
        group: GroupId,
        /// What it asks for.
        spec: Arc<Group>,
    },
    /// A placement group is removed, with what waits for it and the leases inside it.
    GroupGone {
        /// The group.
        group: GroupId,
    },
    /// Time passed: terms may have ended. [`crate::Scheduler::next_tick`] says when the next one is due.
    Tick,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell the node's agent and the owner of a new lease.
    Grant(Lease),
    /// Tell the owner.
    Revoke {
        /// The lease.
        lease: LeaseId,
        /// Its owner.
        owner: HostId,
        /// Its node.
        node: NodeId,
        /// How many of its slots are meant: all of them, unless it is to shrink.
        slots: u32,
        /// Why.
        kind: RevokeKind,
    },
    /// A lease is over and its resources are free: the node's agent may forget it. Exactly one for each lease.
    Ended {
        /// The lease.
        lease: LeaseId,
        /// Its node.
        node: NodeId,
    },
    /// Tell the owner that no living node could ever hold its class, or that the demand is malformed. The demand
    /// is forgotten; asking again is judged anew.
    Infeasible {
        /// Who asked.
        owner: HostId,
        /// For which of its classes.
        key: u32,
        /// Why.
        error: Error,
    },
    /// Bundles of a group are reserved. All of it is, once this is done.
    GroupPlaced {
        /// The group.
        group: GroupId,
        /// The bundles that are new: all of them, or those that were lost.
        bundles: Vec<BundlePlace>,
    },
    /// A group is to be given up within its grace: its leases are revoked like it.
    GroupRevoked {
        /// The group.
        group: GroupId,
        /// When it is taken away.
        until: Millis,
    },
    /// Bundles of a group are gone, with the leases in them; on a node that drains, as soon as none is in them. The group
    /// waits again, for those.
    GroupLost {
        /// The group.
        group: GroupId,
        /// Which, in ascending order.
        bundles: Vec<u32>,
        /// [`RevokeKind::NodeLost`], [`RevokeKind::Evicted`] or [`RevokeKind::Draining`].
        kind: RevokeKind,
    },
    /// No living nodes could ever hold the group, which was never placed, or it is malformed. It is forgotten.
    GroupInfeasible {
        /// The group.
        group: GroupId,
        /// Why.
        error: Error,
    },
}

/// Where a bundle of a group is reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundlePlace {
    /// Which bundle, from 0.
    pub bundle: u32,
    /// Its node.
    pub node: NodeId,
    /// The devices reserved for it.
    pub devices: Vec<DeviceGrant>,
}

/// Why a lease is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RevokeKind {
    /// Someone else waits for what it holds: give it back if it is idle. The lease goes on until released.
    Idle,
    /// It was not renewed within its term. It has ended.
    Expired,
    /// Its node is dead. It has ended.
    NodeLost,
    /// Others have more right to it: push no more, and give it back when what runs has ended, until then at the
    /// latest. Without a time it may take as long as it takes.
    Preempted {
        /// When it is taken away.
        until: Option<Millis>,
    },
    /// It was not given back within its grace. The slots are gone: what still runs on them must be stopped.
    Evicted,
    /// It was in a group that was removed. It has ended: what still runs must be stopped.
    Removed,
    /// Its node is to leave. Said of bundles only; the head asks for leases there.
    Draining,
}

/// Why an event was ignored as malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A resource amount, name or count is not allowed.
    #[error(transparent)]
    Resource(#[from] resource::Error),
    /// A device list has something that is not a device.
    #[error("{0} is not a device: list only GPU and TPU")]
    NotADevice(Kind),
    /// A device list has the same device twice.
    #[error("{kind} {index} is listed twice: list each device once")]
    DuplicateDevice {
        /// The kind.
        kind: Kind,
        /// Its index.
        index: u32,
    },
    /// The total of a device kind differs from the devices listed.
    #[error("{total} {kind} are advertised, but {listed} devices are listed: make them agree")]
    DeviceCount {
        /// The kind.
        kind: Kind,
        /// What the total says.
        total: Quantity,
        /// How many are listed.
        listed: u32,
    },
    /// The total of a device kind is not a whole number up to [`DEVICES_MAX`].
    #[error("{total} {kind} are not allowed on a node: advertise a whole number up to {DEVICES_MAX}")]
    DeviceTotal {
        /// The kind.
        kind: Kind,
        /// What the total says.
        total: Quantity,
    },
    /// The same label key twice.
    #[error("label {0} is given twice: give it once")]
    DuplicateLabel(String),
    /// The queues are not a tree, or one of them is malformed.
    #[error(transparent)]
    Queue(#[from] queue::Error),
    /// A group is malformed.
    #[error(transparent)]
    Group(#[from] group::Error),
    /// No such queue.
    #[error("queue {0} is unknown: define it, or leave the queue empty")]
    UnknownQueue(String),
    /// No such group.
    #[error("{0} is unknown: it was removed, or refused")]
    UnknownGroup(GroupId),
    /// The group belongs to another job.
    #[error("{0} belongs to another job")]
    ForeignGroup(GroupId),
    /// The group has no such bundle.
    #[error("{group} has no bundle {bundle}: it has {count}, counted from 0")]
    UnknownBundle {
        /// The group.
        group: GroupId,
        /// The bundle asked for.
        bundle: u32,
        /// How many there are.
        count: u32,
    },
    /// The class is larger than the bundle that it is to be a part of.
    #[error("{0}")]
    LargerThanBundle(String),
    /// A class in a group has label rules of its own.
    #[error("work in {0} runs where its bundles are: leave its label rules out, or give them to the group")]
    LabelsInGroup(GroupId),
    /// The label that makes places of nodes is on no node.
    #[error("no node has label {0}, whose values were to be the places of the group")]
    UnknownPlace(String),
    /// More than the queue may ever use.
    #[error(
        "one slot has more {kind} than the limit of queue {queue}, which is {limit}: raise it, or use another queue"
    )]
    AboveLimit {
        /// The queue, or one above it.
        queue: String,
        /// Of what.
        kind: Kind,
        /// How much it may use.
        limit: Quantity,
    },
    /// Too many demands or groups of one owner or job.
    #[error("{who} already waits for {max} {what}, the most that it may")]
    TooMany {
        /// Whose.
        who: String,
        /// Of what.
        what: &'static str,
        /// How many may be.
        max: usize,
    },
    /// No living node could ever hold it: what is missing, and the most that there is.
    #[error("{0}")]
    Infeasible(String),
}

impl Event {
    /// Checks what came from outside. [`crate::Scheduler::step`] ignores a node or queues that fail this, and answers
    /// a demand or a group that does with [`Effect::Infeasible`] or [`Effect::GroupInfeasible`].
    pub fn validate(&self) -> Result<(), Error> {
        match self {
            Self::NodeUp { total, devices, labels, .. } => check_node(total, devices, labels),
            Self::Demand { class, .. } => Ok(class.validate()?),
            Self::Queues(queues) => Ok(queue::validate(queues)?),
            Self::Group { spec, .. } | Self::Promised { spec, .. } => Ok(spec.validate()?),
            _ => Ok(()),
        }
    }
}

fn check_node(total: &Resources, devices: &[Device], labels: &[Label]) -> Result<(), Error> {
    total.validate()?;
    let mut seen = BTreeSet::new();
    for device in devices {
        if !device.kind.is_device() {
            return Err(Error::NotADevice(device.kind.clone()));
        }
        if !seen.insert((&device.kind, device.index)) {
            return Err(Error::DuplicateDevice { kind: device.kind.clone(), index: device.index });
        }
    }
    for kind in [Kind::Gpu, Kind::Tpu] {
        let amount = total.get(&kind);
        let listed = devices.iter().filter(|d| d.kind == kind).count().try_into().unwrap_or(u32::MAX);
        let whole = amount.units() % Quantity::PER_ONE == 0;
        if !whole || amount > Quantity::whole(DEVICES_MAX.into()) {
            return Err(Error::DeviceTotal { kind, total: amount });
        }
        if listed != 0 && Quantity::whole(listed.into()) != amount {
            return Err(Error::DeviceCount { kind, total: amount, listed });
        }
    }
    if labels.len() > ENTRIES_MAX {
        return Err(resource::Error::TooMany(labels.len()).into());
    }
    let mut keys = BTreeSet::new();
    for (key, value) in labels {
        check_name(key)?;
        check_name(value)?;
        if !keys.insert(key) {
            return Err(Error::DuplicateLabel(key.clone()));
        }
    }
    Ok(())
}
