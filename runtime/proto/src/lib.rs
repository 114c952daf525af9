//! What crosses a boundary between Mobula's roles: identifiers, resources, failures and messages.
//!
//! No IO lives here, and nothing that depends on a clock. Every type is either `Copy` or made of sorted
//! vectors, so that the same value always encodes to the same bytes (invariant I2 needs that).
//!
//! | module | what |
//! |---|---|
//! | [`id`] | names of jobs, nodes, hosts, tasks, objects, leases; each carries its incarnation |
//! | [`resource`] | exact quantities of CPU, memory, GPU, TPU and custom resources; labels; strategies |
//! | [`group`] | placement groups: bundles of resources that are reserved together |
//! | [`queue`] | queues, between which the cluster is shared |
//! | [`failure`] | the one error that crosses the wire, with its code, place and causes |
//! | [`wire`] | encoding and checked decoding of messages, and the limits on them |
//! | [`head`] | messages between an agent and the head |
//! | [`host`] | messages between a host and its agent |
//! | [`peer`] | messages between two hosts |
//! | [`relay`] | how those travel through agents
//! | [`limits`] | how many calls an actor runs and keeps waiting, and in which order
//! | [`blob`] | encoded values inside messages |

#![forbid(unsafe_code)]

pub mod blob;
pub mod failure;
pub mod group;
pub mod head;
pub mod host;
pub mod id;
pub mod inventory;
pub mod limits;
pub mod peer;
pub mod queue;
pub mod relay;
pub mod resource;
pub mod seq;
pub mod wire;

pub use blob::Blob;
pub use failure::{Failure, Kind as FailureKind};
pub use group::Group;
pub use id::{BinaryHash, GroupId, HostId, IdMap, JobId, LeaseId, Names, NodeId, ObjectId, RegionId, TaskId};
pub use queue::Queue;
pub use resource::{Quantity, Resources};
pub use seq::SeqMap;
