//! The placement engine: which node runs the work of which scheduling class.
//!
//! It is pure: [`Scheduler::step`] takes an [`Event`] and the time and returns [`Effect`]s. It has no clock, no
//! socket and no randomness but the seed in [`Options`], and it iterates over nothing but sorted collections, so
//! the same events give the same effects (invariant I2). It never sees a single task: it sees *demands* (so many
//! slots of a class, wanted by one owner) and answers them with *leases* (so many slots on a node).
//!
//! # How one decision is made
//!
//! 1. **What changed.** A new demand can only be placed where there is room now, so it alone is tried, on every
//!    node. Freed capacity can only help where it was freed, so all that waits is tried, on those nodes. Between
//!    two steps nothing that waits fits anywhere.
//! 2. **Who goes first.** The highest priority; within it the job that holds the fewest slots; within that the
//!    demand that has waited longest. While several jobs compete, each is given no more at once than brings it
//!    level with the next ([`scheduler`]). Nothing is reserved: what fits goes ahead of what matters more but
//!    does not fit.
//! 3. **Which nodes may.** Not draining, every label rule holds, the strategy allows it, and at least one slot
//!    fits into what is available, down to single devices.
//! 4. **Which node is best.** The [`strategy`] ranks them. The best takes as many slots as fit, then the next.
//! 5. **What if none.** A class that no living node could ever hold is reported as infeasible, once, with what is
//!    missing, unless it waits for such a node. Otherwise holders of helpful leases are asked, at most once a
//!    term each, to give them back if idle. [`Scheduler::why`] says in a sentence what a demand waits for.
//!
//! # Invariants
//!
//! - **S1** For each node, what is available and what leases hold add up to its total ([`Scheduler::conserved`]).
//! - **S2** Grants never exceed what is available. Only a task that resumes after [`Event::Block`] may put a node
//!   over its CPU, by at most what was given back; until that is paid off, nothing that needs CPU is granted.
//! - **S3** After a step, nothing waits that would fit.
//! - **S4** Each granted lease ends with exactly one [`Effect::Ended`].
//! - **S5** What carries a stale incarnation changes nothing.
//!
//! | module | what |
//! |---|---|
//! | [`event`] | what comes in and what goes out |
//! | [`scheduler`] | the state, and the step |
//! | [`strategy`] | the order of the nodes |
//! | [`lease`], [`demand`], [`node`] | the three tables |
//! | `why` | sentences for people |

#![forbid(unsafe_code)]

mod cluster;
pub mod demand;
pub mod event;
mod index;
pub mod lease;
pub mod node;
mod queues;
pub mod scheduler;
mod shapes;
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
pub use scheduler::{Options, Scheduler};
pub use unmet::{Gang, Unmet};

/// A moment or a span in milliseconds, on whatever clock the caller keeps; it need only never run backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// This long after `self`.
    pub fn plus(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}
