//! What lies in the stores, as people see it: what `mobula memory` prints and the HTTP API serves.

#![allow(missing_docs, reason = "the derive of rkyv makes mirror types with undocumented fields")]

use rkyv::{Archive, Deserialize, Serialize};

use crate::HostId;

/// Most groups that one node lists: those with the most bytes.
pub const GROUPS_MAX: usize = 256;
/// Most places in a program that one host names; objects of further ones have none.
pub const SITES_MAX: usize = 4096;
/// Longest name of a place in a program that made an object, in bytes; longer ones are cut.
pub const SITE_BYTES_MAX: usize = 200;

/// Of how many objects one owner is asked what holds them, each time that somebody wants to know what a node has: those with
/// the most bytes. Of others is only said that they are held.
pub const HELD_MAX: usize = 4096;
/// Most hosts that are named for an object, or a group.
pub const HOLDERS_MAX: usize = 8;

/// Why an object is in a store.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// Its owner holds it: [`Group::by`] says for what.
    Held,
    /// Its owner is dead; this node is its owner of record, as long as some host holds a ref to it.
    Inherited,
    /// Nobody can reach it any more, but somebody still reads it, or copies it.
    Read,
    /// Nobody can reach it any more, nor reads it; but it is being written to disk.
    Written,
    /// A copy of what lies on another node; it goes when room is needed and nobody reads it.
    Copy,
    /// A copy that is coming in.
    Coming,
}

impl Why {
    /// As people read it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Held => "held by refs",
            Self::Inherited => "held by refs, its owner is dead",
            Self::Read => "freed, still read",
            Self::Written => "freed, still written",
            Self::Copy => "copy",
            Self::Coming => "coming in",
        }
    }
}

/// What holds an object for its owner; several of these may.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Refs in the owner's own process, beside those below: in a variable, a stream, an actor, or a call that runs there.
    Owner,
    /// Calls that the owner has submitted, and that are not done: it is one of their arguments, or in one.
    Calls,
    /// The same of calls that are done, and actors that live: they may have to be run again.
    Again,
    /// Values that the owner keeps, with refs inside.
    Values,
    /// Other hosts, which have refs: they have borrowed it.
    Hosts,
}

impl Hold {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Owner, Self::Calls, Self::Again, Self::Values, Self::Hosts];

    /// As people read it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Owner => "its owner",
            Self::Calls => "calls",
            Self::Again => "calls to run again",
            Self::Values => "values",
            Self::Hosts => "other hosts",
        }
    }
}

/// What an owner says of one of its objects.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// By what it is held, in order; nothing for an object that it does not know (any more).
    pub by: Vec<Hold>,
    /// The hosts of [`Hold::Hosts`]: at most [`HOLDERS_MAX`].
    pub hosts: Vec<HostId>,
    /// How many more.
    pub more_hosts: u32,
}

/// Objects of one node that have all this in common.
#[derive(
    Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize, Clone, Debug, PartialEq, Eq,
)]
pub struct Group {
    /// The place in the program that made them: the function whose results they are, or where they were put. Empty
    /// where this node does not know it, as of copies.
    pub site: String,
    /// Their job.
    pub job: String,
    /// The host that owns them; the agent that is their owner of record, where that is dead.
    pub owner: String,
    /// Why they are there.
    pub why: Why,
    /// By what they are held, each of them by all of it; nothing where their owner has not said so (in time), and of what
    /// is not held by an owner.
    #[serde(default)]
    pub by: Vec<Hold>,
    /// Hosts that have refs to some of them, where those are held or inherited, and that read some of them, where not: at
    /// most [`HOLDERS_MAX`].
    #[serde(default)]
    pub hosts: Vec<String>,
    /// How many more, at least.
    #[serde(default)]
    pub more_hosts: u64,
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them somebody reads at the moment.
    pub pinned: u64,
    /// How many of them lie on disk alone, since others needed their room in memory.
    pub on_disk: u64,
}

/// The store of one node.
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
pub struct Store {
    /// The node.
    pub node: String,
    /// The store's size in bytes.
    pub store_bytes: u64,
    /// Bytes given to regions, with what lies free in them.
    pub used_bytes: u64,
    /// Bytes of the objects in them, and of those on disk.
    pub object_bytes: u64,
    /// Bytes of the files of spilled objects.
    pub spill_used_bytes: u64,
    /// Bytes of those of them in which nothing lives any more, and which could not be deleted yet.
    pub undeleted_bytes: u64,
    /// Bytes of objects written to such files since the agent started.
    pub spilled_bytes: u64,
    /// Bytes of objects read back from them since the agent started.
    pub restored_bytes: u64,
    /// Bytes of copies dropped from memory since the agent started to make room, since they lie on disk or on another node.
    #[serde(default)]
    pub evicted_bytes: u64,
    /// Requests for a region that wait for room.
    pub waiting: u64,
    /// Bytes pulled from other nodes since the agent started.
    pub pulled_bytes: u64,
    /// Bytes served to other nodes since the agent started.
    pub served_bytes: u64,
    /// What is in it, the most bytes first; at most [`GROUPS_MAX`].
    pub groups: Vec<Group>,
    /// Groups that are not listed, since there were too many.
    pub more_groups: u64,
}

/// All stores.
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Those that answered in time.
    pub stores: Vec<Store>,
    /// Nodes that did not.
    pub silent: Vec<String>,
}
