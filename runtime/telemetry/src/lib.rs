//! Logs and background tasks, the same way in every role.

#![forbid(unsafe_code)]

pub mod log;
pub mod task;
