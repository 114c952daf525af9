//! What the running task may ask about itself.

use std::sync::Arc;

use mobula_host::context as host;
pub use mobula_host::context::Context;

use crate::{Error, ErrorKind, Result};

/// The task, constructor or method that runs on this thread: its ids, its attempt, its devices, and whether
/// somebody gave up on it.
pub fn current() -> Result<Arc<Context>> {
    host::task().ok_or_else(|| Error::new(ErrorKind::Internal, "no task runs on this thread"))
}

/// Whether somebody gave up on the running task, or its time has run out; `false` outside one. Waiting for objects on its
/// thread then fails as `Cancelled`.
pub fn cancelled() -> bool {
    host::task().is_some_and(|task| task.cancelled())
}
