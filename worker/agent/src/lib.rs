//! The agent: one on each machine. It says what the machine offers, starts and watches hosts, and keeps the
//! binaries they run.
//!
//! | module | what |
//! |---|---|
//! | [`detect`] | processors, memory, devices and labels of this machine |
//! | [`launcher`] | starting hosts, and noticing their end |
//! | [`binaries`] | executables and job files, by hash |
//! | [`users`] | users of jobs' own |
//! | [`core`] | what the agent decides: objects, leases, hosts; no IO |
//! | [`service`] | the actor around it, and all its links; [`Agent`], [`Handle`], [`Options`] |

#![forbid(unsafe_code)]

pub mod binaries;
pub mod core;
pub mod detect;
pub mod launcher;
pub mod service;
#[cfg(test)]
mod skipped;
pub mod users;

pub use service::{Agent, Error, Handle, HeadLink, LocalLink, Options, SendError};
