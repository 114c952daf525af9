//! Queues: a tree of shares of the cluster, to which the work of jobs is charged.

#![allow(missing_docs, reason = "the derive of rkyv makes mirror types with undocumented fields")]

use std::collections::{BTreeMap, BTreeSet};

use rkyv::{Archive, Deserialize, Serialize};

use crate::resource::{self, ENTRIES_MAX, Kind, Quantity, Resources, check_name};

/// Most queues of a cluster.
pub const QUEUES_MAX: usize = 1024;
/// Most queues from the top of the tree to any one.
pub const DEPTH_MAX: usize = 16;

/// One queue. Among the children of one parent capacity is shared by their weights, each counted by the resource of
/// which it uses the largest part; what one does not use the others may borrow until it asks. A group that is not
/// restartable ([`Group::restartable`](crate::Group::restartable)) keeps what it has borrowed until it ends.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub struct Queue {
    /// Its name, unique in the cluster.
    pub name: String,
    /// The queue of which it is a part; empty at the top.
    pub parent: String,
    /// Its part relative to its siblings'; above zero.
    pub weight: Quantity,
    /// What it gets before others get more than is guaranteed to them.
    pub guaranteed: Resources,
    /// What it and its children may use at most; kinds not listed are unlimited. An amount of zero forbids a kind.
    pub limit: Vec<(Kind, Quantity)>,
}

impl Queue {
    /// A queue at the top with weight one, nothing guaranteed, unlimited.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            parent: String::new(),
            weight: Quantity::ONE,
            guaranteed: Resources::none(),
            limit: Vec::new(),
        }
    }
}

/// What shall be changed of a queue; what is `None` stays as it is, or as in [`Queue::new`] where there is none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// As [`Queue::parent`].
    pub parent: Option<String>,
    /// As [`Queue::weight`].
    pub weight: Option<Quantity>,
    /// As [`Queue::guaranteed`].
    pub guaranteed: Option<Resources>,
    /// As [`Queue::limit`].
    pub limit: Option<Vec<(Kind, Quantity)>>,
}

impl Change {
    /// The queue as it shall be; `old` is what it was.
    pub fn of(self, old: Option<&Queue>) -> Queue {
        let mut queue = old.cloned().unwrap_or_else(|| Queue::new(self.name));
        queue.parent = self.parent.unwrap_or(queue.parent);
        queue.weight = self.weight.unwrap_or(queue.weight);
        queue.guaranteed = self.guaranteed.unwrap_or(queue.guaranteed);
        queue.limit = self.limit.unwrap_or(queue.limit);
        queue
    }
}

impl From<Queue> for Change {
    fn from(queue: Queue) -> Self {
        let Queue { name, parent, weight, guaranteed, limit } = queue;
        Self {
            name,
            parent: Some(parent),
            weight: Some(weight),
            guaranteed: Some(guaranteed),
            limit: Some(limit),
        }
    }
}

/// Why a list of queues was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name, an amount or a count is not allowed.
    #[error("queue {queue}: {error}")]
    Resource {
        /// Where.
        queue: String,
        /// Why.
        error: resource::Error,
    },
    /// Too many queues.
    #[error("{0} queues are too many: have at most {QUEUES_MAX}")]
    TooMany(usize),
    /// The same name twice.
    #[error("queue {0} is listed twice: list each queue once")]
    Duplicate(String),
    /// A weight of zero.
    #[error("queue {0} has weight 0, with which it would never get anything: give it a weight above 0")]
    ZeroWeight(String),
    /// The parent is not listed.
    #[error("queue {queue} has parent {parent}, which is not listed: list it, or leave the parent empty")]
    UnknownParent {
        /// The child.
        queue: String,
        /// What it names.
        parent: String,
    },
    /// It is its own ancestor.
    #[error("queue {0} is its own ancestor: give one queue of the cycle another parent")]
    Cycle(String),
    /// The tree is too deep.
    #[error("queue {0} is more than {DEPTH_MAX} queues from the top: make the tree flatter")]
    TooDeep(String),
    /// More is guaranteed than allowed.
    #[error("queue {queue} is guaranteed more {kind} than its limit: lower the one or raise the other")]
    AboveLimit {
        /// Where.
        queue: String,
        /// Of what.
        kind: Kind,
    },
    /// The children of a queue are guaranteed more than it is.
    #[error(
        "the children of queue {queue} are guaranteed more {kind} together than it: raise its own, or lower theirs"
    )]
    ChildrenAbove {
        /// The parent.
        queue: String,
        /// Of what.
        kind: Kind,
    },
}

/// Checks all the queues of a cluster: names, amounts, and that they are a tree.
pub fn validate(queues: &[Queue]) -> Result<(), Error> {
    if queues.len() > QUEUES_MAX {
        return Err(Error::TooMany(queues.len()));
    }
    let mut by_name = BTreeMap::new();
    for queue in queues {
        check_one(queue)?;
        if by_name.insert(queue.name.as_str(), queue).is_some() {
            return Err(Error::Duplicate(queue.name.clone()));
        }
    }
    let mut promised: BTreeMap<&str, Resources> = BTreeMap::new();
    for queue in queues {
        check_ancestors(queue, &by_name)?;
        if !queue.parent.is_empty() {
            promised.entry(&queue.parent).or_default().add(&queue.guaranteed);
        }
    }
    for (parent, sum) in promised {
        let own = by_name.get(parent).map(|queue| &queue.guaranteed);
        // A parent that promises nothing only groups its children.
        if let Some((kind, _)) = own.filter(|own| !own.is_empty()).and_then(|own| own.first_short(&sum)) {
            return Err(Error::ChildrenAbove { queue: parent.to_owned(), kind });
        }
    }
    Ok(())
}

fn check_one(queue: &Queue) -> Result<(), Error> {
    let wrong = |error| Error::Resource { queue: queue.name.chars().take(128).collect(), error };
    check_name(&queue.name).map_err(wrong)?;
    if queue.weight.is_zero() {
        return Err(Error::ZeroWeight(queue.name.clone()));
    }
    Quantity::from_units(queue.weight.units()).map_err(wrong)?;
    queue.guaranteed.validate().map_err(wrong)?;
    if queue.limit.len() > ENTRIES_MAX {
        return Err(wrong(resource::Error::TooMany(queue.limit.len())));
    }
    let mut seen = BTreeSet::new();
    for (kind, amount) in &queue.limit {
        Quantity::from_units(amount.units()).map_err(wrong)?;
        if let Kind::Custom(name) = kind {
            check_name(name).map_err(wrong)?;
        }
        if !seen.insert(kind) {
            return Err(wrong(resource::Error::Duplicate(kind.to_string())));
        }
        if queue.guaranteed.get(kind) > *amount {
            return Err(Error::AboveLimit { queue: queue.name.clone(), kind: kind.clone() });
        }
    }
    Ok(())
}

fn check_ancestors(queue: &Queue, by_name: &BTreeMap<&str, &Queue>) -> Result<(), Error> {
    let mut at = queue;
    for _ in 0..DEPTH_MAX {
        if at.parent.is_empty() {
            return Ok(());
        }
        at = by_name
            .get(at.parent.as_str())
            .ok_or_else(|| Error::UnknownParent { queue: at.name.clone(), parent: at.parent.clone() })?;
        if at.name == queue.name {
            return Err(Error::Cycle(queue.name.clone()));
        }
    }
    // Deep, or above a cycle of others: which reports itself.
    Err(Error::TooDeep(queue.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str, parent: &str) -> Queue {
        Queue { parent: parent.to_owned(), ..Queue::new(name) }
    }

    #[track_caller]
    fn check(queues: &[Queue], want: &str) {
        assert_eq!(validate(queues).map_or_else(|e| e.to_string(), |()| "fine".to_owned()), want);
    }

    #[test]
    fn queues_are_a_tree() {
        let cpu = |n| Resources::cpu(Quantity::whole(n));
        check(&[], "fine");
        check(&[queue("b", "a"), queue("a", "")], "fine");
        check(&[queue("a", ""), queue("a", "")], "queue a is listed twice: list each queue once");
        check(
            &[queue("a", "z")],
            "queue a has parent z, which is not listed: list it, or leave the parent empty",
        );
        for cycle in [vec![queue("a", "a")], vec![queue("a", "b"), queue("b", "a")]] {
            check(&cycle, "queue a is its own ancestor: give one queue of the cycle another parent");
        }
        check(
            &[Queue { weight: Quantity::ZERO, ..queue("a", "") }],
            "queue a has weight 0, with which it would never get anything: give it a weight above 0",
        );
        let over = Queue { guaranteed: cpu(2), limit: vec![(Kind::Cpu, Quantity::ONE)], ..queue("a", "") };
        check(&[over], "queue a is guaranteed more CPU than its limit: lower the one or raise the other");
        let child = |name| Queue { guaranteed: cpu(2), ..queue(name, "top") };
        check(
            &[Queue { guaranteed: cpu(3), ..queue("top", "") }, child("a"), child("b")],
            "the children of queue top are guaranteed more CPU together than it: raise its own, or lower theirs",
        );
        check(&[queue("top", ""), child("a"), child("b")], "fine");
        let long: Vec<Queue> = (0..20_u32)
            .map(|n| queue(&format!("q{n}"), &n.checked_sub(1).map_or(String::new(), |p| format!("q{p}"))))
            .collect();
        check(&long, "queue q16 is more than 16 queues from the top: make the tree flatter");
    }
}
