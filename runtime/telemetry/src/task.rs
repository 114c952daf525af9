//! Background tasks with a declared name.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::{Instrument, debug_span};

/// Starts a background task on the current runtime. `name` says what it is for and appears in its spans; the
/// handle's owner decides what its end means (a dropped handle leaves the task running until it ends by itself).
#[expect(clippy::disallowed_methods, reason = "this is the one place where tasks are spawned")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(debug_span!("task", name)))
}

/// A background task that is aborted when this is dropped.
#[derive(Debug)]
pub struct Guard(tokio::task::AbortHandle);

/// Starts a background task that ends when the returned guard is dropped.
pub fn scoped<F>(name: &'static str, future: F) -> Guard
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Guard(spawn(name, future).abort_handle())
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}
