//! The control plane: membership, jobs, leases and names.
//!
//! The head never sees a task, nor a task's bytes (invariant I3): it sees which nodes there are, which jobs run,
//! which scheduling classes wait for slots, and who is called what.
//!
//! | module | what |
//! |---|---|
//! | [`core`] | everything that is decided, as `step(event, now) -> effects`; no IO, no clock |
//! | [`state`] | what survives a restart: a journal of records, on disk or in memory |
//! | [`service`] | the actor around the core; QUIC, timers, files; [`Head`] and [`Handle`] |
//! | [`http`] | the HTTP API for people and scripts |
//! | [`scaling`] | starts nodes when work waits for them, through a [`scaling::Provider`], and drains idle ones |
//!
//! Data flows one way: a link's message becomes an event, the core answers with effects, and the service applies
//! them in order. A promise that must outlive the head (a node's number, a token, the name of a detached actor)
//! leaves only after the record before it is on disk.

#![forbid(unsafe_code)]

pub mod core;
pub mod http;
pub mod scaling;
pub mod service;
pub mod state;

pub use service::{EmbeddedHead, Error, Handle, Head, Options};
