//! Write ordinary functions and structs; run them as tasks and actors on one laptop or a thousand machines, and
//! pass objects, tensors above all, between them without copying.
//!
//! ```
//! use mobula::prelude::*;
//!
//! #[mobula::task]
//! fn square(x: u64) -> u64 {
//!     x * x
//! }
//!
//! #[mobula::task]
//! fn total(all: Vec<u64>) -> u64 {
//!     all.iter().sum()
//! }
//!
//! #[mobula::main]
//! async fn main(_cluster: Cluster) -> mobula::Result<()> {
//!     let squares: Vec<ObjectRef<u64>> = (0..10).map(|i| square.remote(i)).collect();
//!     assert_eq!(total.remote(&squares[..]).await?, 285);
//!     Ok(())
//! }
//! ```
//!
//! | to do this | use |
//! |---|---|
//! | run a function elsewhere | [`task`], then `function.remote(…)` |
//! | keep state somewhere | [`actor`], then `Type::spawn(…)` |
//! | get several results, a ref for each | `#[task(returns)]` |
//! | read results as they are made | return `impl Iterator` or `impl Stream`: calls give an [`ObjectStream`] |
//! | wait for a result | `.await` on an [`ObjectRef`], [`get_all`], [`wait()`], or [`blocking`] in sync code |
//! | share work among actors, pass values between them, bound or time what they do together | [`ActorPool`], [`Queue`], [`Semaphore`], [`Barrier`] |
//! | reserve resources of several nodes together | [`PlacementGroup`] |
//! | share a large value | [`put`], [`put_shared`], [`View`], [`Tensor`] |
//! | read and write files of tensors | [`safetensors`] |
//! | share tables with data tools | `arrow::Batch`, with the feature `arrow` |
//! | make a type travel | [`data`] |
//! | choose where it all runs | [`Cluster`] |

#![forbid(unsafe_code)]

// The macros name this crate from outside, and are used inside too.
extern crate self as mobula;

mod actor;
mod argument;
mod blocks;
mod cluster;
mod detached;
mod error;
mod group;
mod handle;
mod lifeline;
mod object;
mod options;
mod packed;
mod serde_value;
mod stream;
mod task;
mod tensor;
mod view;

#[doc(hidden)]
pub mod private;

/// What processes of a cluster are started as; for the tools that start them.
#[doc(hidden)]
pub mod roles {
    pub use crate::cluster::roles::*;
}

pub mod blocking;
pub mod context;
pub mod safetensors;

#[cfg(feature = "arrow")]
pub use mobula_arrow as arrow;

pub use actor::{Actor, ActorHandle, Spawn, find_actor};
pub use argument::IntoArgument;
pub use blocks::{ActorPool, Barrier, Permit, Queue, Semaphore, Unordered};
pub use cluster::{Builder, Cluster, Leftovers};
pub use error::{Error, Result};
pub use futures_core::Stream;
pub use group::{GroupBuilder, PlacementGroup};
pub use handle::{Handle, Several};
pub use lifeline::Lifeline;
pub use mobula_host::codec::Data;
pub use mobula_macros::{actor, data, main, task, test};
pub use mobula_proto::{
    FailureKind as ErrorKind, NodeId, Quantity, Queue as JobQueue, Resources,
    group::Arrange,
    head::Explanation,
    resource::{Kind as ResourceKind, LabelRule, Strategy},
};
pub use object::{ObjectRef, WeakRef, get_all, put, put_shared, wait};
pub use options::Options;
pub use packed::Packed;
pub use rkyv;
pub use serde_value::Serde;
pub use stream::{BUFFER_BYTES_DEFAULT, BUFFER_ITEMS_DEFAULT, Items, ObjectStream, RefStream, Refs};
pub use task::{Refused, Submission};
pub use tensor::{Dtype, Element, Tensor};
pub use view::View;

/// What most programs need.
pub mod prelude {
    pub use crate::{Cluster, Data, Handle, IntoArgument, ObjectRef, ObjectStream, Tensor, View};
}
