//! The placement engine: which node runs the work of which scheduling class.
//!
//! It is pure: [`Scheduler::step`] takes an [`Event`] and the time and returns [`Effect`]s. It has no clock, no
//! socket and no randomness but the seed in [`Options`], and it iterates over nothing but sorted collections, so
//! the same events give the same effects (invariant I2). It never sees a single task: it sees *demands* (so many
//! slots of a class, wanted by one owner) and answers them with *leases* (so many slots on a node).
//!
//! # How one decision is made
//!
//! No decision looks at all nodes, or at all that waits.
//!
//! 1. **What changed.** Demands that fit into the same nodes have one *shape* (`shapes`). For each it is known where
//!    there may be room: nowhere, on one node, or anywhere. A new shape may fit anywhere; what becomes free on a node is
//!    held against all shapes that wait, and those that fit are *open* there. Between two steps no shape is open unless
//!    the limits of queues hold it back.
//! 2. **Whose turn it is.** Down the tree of `queues`: what is guaranteed, then the smallest dominant share for its
//!    weight; in a queue the highest priority, counted up with the time waited; then the job that holds the fewest
//!    slots, and what has waited longest. Only open shapes count. Where others have the same right, each is given no
//!    more at once than brings it level with them, or a 4096th of the cluster. Nothing is reserved: what fits goes ahead
//!    of what matters more but does not fit.
//! 3. **Which nodes may.** Not draining, the label rules hold, the strategy allows it, and at least one slot fits into
//!    what is available, down to single devices (`cluster`).
//! 4. **Which node is best.** The `strategy` says; the `index` finds it, a few trees whose inner places bound what lies
//!    below. It takes as many slots as fit, then the next.
//! 5. **What if none.** Then the shape is open nowhere, and is not looked at again before something changes for it. A
//!    class that no living node could ever hold is reported as infeasible, once, with what is missing, unless it waits
//!    for such a node. Otherwise holders of helpful leases are asked, at most once a term each, to give them back if
//!    idle. [`Scheduler::why`] says in a sentence what a demand waits for.
//!
//! 6. **Who must make room.** What has waited for long takes from those with less right to what they hold, and nodes are
//!    kept for what would never get enough at once ([`scheduler::preempt`]). What has waited longest of all has a node
//!    kept for it alone, and gets its first slot there whatever the shares of others (`scheduler/starve.rs`).
//!
//! A placement group waits in its queue like a class, as one shape that is all it lacks. When its turn is due, `gang` finds
//! places for all its bundles or takes none, so two groups never hold what the other lacks. Where taking them one by one
//! finds none, `gang/search.rs` looks for another way, and says how far. What runs inside of a group
//! is granted from its bundles, which are charged already.
//!
//! # Invariants
//!
//! - **S1** For each node, what is available and what leases hold add up to its total ([`Scheduler::conserved`]).
//! - **S2** Grants never exceed what is available. Only a task that resumes after [`Event::Block`] may put a node
//!   over its CPU, by at most what was given back; until that is paid off, nothing that needs CPU is granted.
//! - **S3** After a step, nothing waits that would fit, and that the limits of its queue allow, but beside what a node is
//!   kept for, and groups of bundles of different sizes for which a search of bounded length found no places
//!   (`gang/search.rs`).
//! - **S4** Each granted lease ends with exactly one [`Effect::Ended`].
//! - **S5** All bundles of a group are reserved, or none, until a node that held some is lost or drains.
//! - **S6** What carries a stale incarnation changes nothing.
//! - **S7** In one second no more is taken from those who hold it than [`Preempt::churn`] allows, or what the first request
//!   in it needs; and nothing is taken away before its grace is over. Seconds are counted one after the other: where two
//!   meet, twice as much may be taken in less than one.
//! - **S8** Nothing starves. Where no lease lasts longer than [`Options::ageing`] and no queue lacks what is guaranteed
//!   to it, what could run on some node, and whose queue's limits leave room for it, is placed within the ageing, once
//!   more for each priority that others are ahead, and the longest lease, with the grace of who makes room, for each that
//!   waits beside it (`tests/sim/starve.rs`).
//!
//! | module | what |
//! |---|---|
//! | [`event`] | what comes in and what goes out |
//! | [`scheduler`] | the state, and the step |
//! | `queues` | whose turn it is |
//! | `shapes`, `fit` | what waits, by what it needs, and where there may be room for it |
//! | `gang` | where the bundles of a group go, in order or by a search |
//! | `strategy`, `index` | the order of the nodes, and how the first is found |
//! | [`lease`], [`demand`], [`node`], `cluster` | the tables |
//! | `stock` | amounts, whole and in use, and single devices |
//! | `bits`, `slab` | sets of small numbers, and values under them |
//! | `why` | sentences for people |
//! | [`autoscale`] | which nodes to start and which to drain, from what waits |
//! | [`sim`] | loads for tests and benchmarks, and traces replayed in virtual time |

#![forbid(unsafe_code)]

pub mod autoscale;
mod bits;
mod cluster;
pub mod demand;
pub mod event;
mod fit;
mod gang;
mod index;
pub mod lease;
pub mod node;
mod queues;
pub mod scheduler;
mod shapes;
pub mod sim;
mod slab;
mod stock;
mod strategy;
pub mod unmet;
mod why;

#[cfg(test)]
mod tests;

pub use demand::Demand;
pub use event::{BundlePlace, Effect, Error, Event, RevokeKind};
pub use lease::{Lease, LeaseView};
pub use node::NodeView;
pub use scheduler::{Options, Preempt, Reasons, Scheduler};
pub use unmet::{Apart, Gang, Limit, Unmet};

/// A moment or a span in milliseconds, on whatever clock the caller keeps; it need only never run backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// This long after `self`.
    pub fn plus(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}
