//! A host: where a job's tasks and actors run, and from where they are submitted.
//!
//! | module | what |
//! |---|---|
//! | [`registry`] | the binary's functions, gathered at link time |
//! | [`codec`] | values to bytes and back; refs and tensors inside them |
//! | [`core`] | pure: what was submitted, and what it waits for |
//! | [`executor`] | where calls run |
//! | `admission` | pure: whose arguments are made readable |
//! | `strangers` | pure: what hosts of other jobs may say |
//! | `inbox` | pure: which calls of an actor may start, and which are let in |
//! | [`runtime`] | ties these to the agent's link and to other hosts |
//! | [`store`] | the host's side of the object store |
//! | [`peers`] | rings to other hosts, and the threads that drain them |
//! | [`boot`] | how a process becomes a host |
//! | [`exit`] | what a process does last |

#![deny(unsafe_code)]

mod admission;
pub mod boot;
pub mod codec;
pub mod context;
pub mod core;
pub mod descriptors;
pub mod executor;
pub mod exit;
mod fetch;
mod guarded;
mod inbox;
pub mod link;
pub mod peers;
pub mod registry;
pub mod runtime;
pub mod site;
pub mod store;
mod strangers;
pub mod stream;
#[cfg(test)]
mod testing;
mod wait;

pub use linkme;
pub use mobula_ownership::Via;
