//! The real binary, with homes of its own and ports that the system chooses.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics, and so do its helpers")]

mod cluster;
mod explaining;
mod harness;
mod jobs;
mod nodes;
mod queues;
mod refusals;
mod settings;
mod simulate;
