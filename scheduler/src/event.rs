//! What the scheduler is told, and what it answers.

use std::{collections::BTreeSet, sync::Arc};

use mobula_proto::{
    HostId, JobId, LeaseId, NodeId, Quantity, Resources,
    resource::{self, Class, Device, ENTRIES_MAX, Kind, Label, check_name},
};

use crate::Lease;

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
    /// A node gets no new grants; what it runs may finish.
    NodeDrain {
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
        /// What is missing, and the most that there is; for people.
        missing: String,
    },
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
    /// More important work needs it: push no more, and give it back when what runs has ended. Not sent yet.
    Preempted,
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
}

impl Event {
    /// Checks what came from outside. [`crate::Scheduler::step`] ignores a node that fails this, and answers a
    /// demand that does with [`Effect::Infeasible`].
    pub fn validate(&self) -> Result<(), Error> {
        match self {
            Self::NodeUp { total, devices, labels, .. } => check_node(total, devices, labels),
            Self::Demand { class, .. } => Ok(class.validate()?),
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
