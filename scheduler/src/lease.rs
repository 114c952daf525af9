//! Leases: slots of one class on one node, held by one owner for a term.

use std::sync::Arc;

use mobula_proto::{
    HostId, JobId, LeaseId, NodeId, SeqMap,
    resource::{Class, DeviceGrant},
};

use crate::{
    Millis, demand,
    slab::Slab,
    stock::{CPU, Need},
};

/// Slots of one class on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name, never reused.
    pub id: LeaseId,
    /// Who may run work under it.
    pub owner: HostId,
    /// The owner's key of the class.
    pub key: u32,
    /// The job that is charged.
    pub job: JobId,
    /// Where.
    pub node: NodeId,
    /// How many tasks may run at once; at least 1, and exactly 1 where `devices` are granted, or each has a process of its own.
    pub slots: u32,
    /// What each slot holds, how it was placed, and the queue that is charged.
    pub class: Arc<Class>,
    /// The bundle of the class's group that it is a part of; `None` for a class that is in no group.
    pub bundle: Option<u32>,
    /// The devices granted; empty unless the class needs some.
    pub devices: Vec<DeviceGrant>,
    /// The class's priority.
    pub priority: i32,
    /// The attempt of the demand that it answers.
    pub attempt: u32,
    /// The incarnation of the node.
    pub incarnation: u32,
    /// How long it lasts from its grant or its last renewal.
    pub term: Millis,
    /// When it ends unless it is renewed, as of its grant or its last renewal.
    pub expires: Millis,
}

/// A lease as the scheduler sees it now.
#[derive(Clone, Copy, Debug)]
pub struct LeaseView<'a> {
    /// The lease.
    pub lease: &'a Lease,
    /// How many of its slots wait and have given their CPU back.
    pub blocked: u32,
    /// How many of its slots are to make room.
    pub giving: u32,
}

/// A lease with what only the scheduler needs to know.
#[derive(Debug)]
pub(crate) struct Entry {
    pub lease: Lease,
    pub blocked: u32,
    /// When its owner was last asked to give it back if idle.
    pub asked: Option<Millis>,
    /// How many of its slots are to be given up, and when they are taken away, if they are.
    pub giving: u32,
    pub until: Option<Millis>,
    /// What each slot needs.
    pub need: Arc<Need>,
    /// Its node's place.
    pub at: u32,
    /// Its owner's place.
    pub owner: u32,
    /// The queue that is charged, and the job's place there.
    pub queue: u32,
    pub job: u32,
    /// Under what its slots are counted by node, if they are.
    pub kin: Option<u32>,
    /// The group and the bundle of which it is a part.
    pub inside: Option<(u32, u32)>,
}

impl Entry {
    pub fn view(&self) -> LeaseView<'_> {
        LeaseView { lease: &self.lease, blocked: self.blocked, giving: self.giving }
    }

    pub fn demand(&self) -> demand::Key {
        demand::Key { owner: self.lease.owner, key: self.lease.key }
    }

    /// How many of its slots are given up, and how many of those hold CPU.
    pub fn leaving(&self) -> (u32, u32) {
        (self.giving, self.giving.min(self.running()))
    }

    /// How many of its slots run.
    pub fn running(&self) -> u32 {
        self.lease.slots.saturating_sub(self.blocked)
    }

    /// Whether it holds any of a kind: waiting slots hold no CPU.
    pub fn holds(&self, kind: usize) -> bool {
        self.need.get(kind) > 0 && (kind != CPU || self.running() > 0)
    }
}

/// Where a lease is in the lists of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Among the leases of its node.
    pub on_node: u32,
    /// Among those of its owner.
    pub of_owner: u32,
}

/// All leases. Each has a place, which is used again after its end; lists of leases are lists of those.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    all: Slab<Entry>,
    /// By place: apart from the rest, since the end of a lease changes them of two others, anywhere in memory.
    listed: Vec<Listed>,
    by_number: SeqMap<u32>,
}

impl Leases {
    pub fn insert(&mut self, entry: Entry, listed: Listed) -> u32 {
        let number = entry.lease.id.number;
        let at = self.all.insert(entry);
        if self.listed.len() <= at as usize {
            self.listed.resize(at as usize + 1, Listed::default());
        }
        self.listed[at as usize] = listed;
        self.by_number.insert(number, at);
        at
    }

    /// Takes out a lease, which lists of others name still.
    pub fn remove(&mut self, id: LeaseId) -> Option<(Entry, Listed)> {
        let at = self.by_number.remove(&id.number)?;
        Some((self.all.remove(at)?, self.listed[at as usize]))
    }

    pub fn listed(&self, at: u32) -> Listed {
        self.listed.get(at as usize).copied().unwrap_or_default()
    }

    pub fn listed_mut(&mut self, at: u32) -> Option<&mut Listed> {
        self.listed.get_mut(at as usize)
    }

    /// Takes an entry out for a moment, with its place.
    pub fn lend(&mut self, id: LeaseId) -> Option<(u32, Entry)> {
        let at = self.find(id)?;
        Some((at, self.all.lend(at)?))
    }

    /// Puts back what was lent.
    pub fn give_back(&mut self, at: u32, entry: Entry) {
        self.all.give_back(at, entry);
    }

    pub fn find(&self, id: LeaseId) -> Option<u32> {
        self.by_number.get(&id.number).copied()
    }

    pub fn get(&self, id: LeaseId) -> Option<&Entry> {
        self.all.get(self.find(id)?)
    }

    pub fn get_mut(&mut self, id: LeaseId) -> Option<&mut Entry> {
        self.all.get_mut(*self.by_number.get(&id.number)?)
    }

    pub fn at(&self, at: u32) -> Option<&Entry> {
        self.all.get(at)
    }

    pub fn at_mut(&mut self, at: u32) -> Option<&mut Entry> {
        self.all.get_mut(at)
    }

    pub fn is_empty(&self) -> bool {
        self.all.len() == 0
    }

    /// By place.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.all.iter().map(|(_, entry)| entry)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.all.iter_mut().map(|(_, entry)| entry)
    }

    /// The names of those at these places, oldest first.
    pub fn ids<'a>(&self, places: impl IntoIterator<Item = &'a u32>) -> Vec<LeaseId> {
        let entries = places.into_iter().filter_map(|at| self.all.get(*at));
        let mut ids: Vec<LeaseId> = entries.map(|entry| entry.lease.id).collect();
        ids.sort_unstable();
        ids
    }
}
