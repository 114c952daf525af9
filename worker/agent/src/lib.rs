//! The agent: one on each machine. It says what the machine offers, starts and watches hosts, and keeps the
//! binaries they run.
//!
//! | module | what |
//! |---|---|
//! | [`detect`] | processors, memory, devices and labels of this machine |
//! | [`launcher`] | starting hosts, and noticing their end |
//! | [`binaries`] | executables and job files, by hash |

#![forbid(unsafe_code)]

pub mod binaries;
pub mod detect;
pub mod launcher;
