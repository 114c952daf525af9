//! Building blocks: small actors, written with what every program has.

mod barrier;
mod pool;
mod queue;
mod semaphore;

use std::{future::Future, time::Duration};

pub use barrier::Barrier;
pub use pool::{ActorPool, Unordered};
pub use queue::Queue;
pub use semaphore::{Permit, Semaphore};

/// Longest that one call of a block waits in its actor; who waits longer calls again. So what waits never fills a
/// block for good, and what was forgotten there ends.
const TURN: Duration = Duration::from_secs(10);

/// What is left of `wait`, at most a turn, in milliseconds.
fn turn(left: Option<Duration>) -> u64 {
    let turn = left.map_or(TURN, |left| left.min(TURN));
    u64::try_from(turn.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// What is left until `end`; `None` where nothing ends it, and an error once it is over.
fn left(end: Option<tokio::time::Instant>, what: impl FnOnce() -> String) -> crate::Result<Option<Duration>> {
    let Some(end) = end else { return Ok(None) };
    let left = end.saturating_duration_since(tokio::time::Instant::now());
    if left.is_zero() {
        return Err(crate::Error::new(crate::ErrorKind::TimedOut, what()));
    }
    Ok(Some(left))
}

/// Waits for `done`, for so many milliseconds, and no longer than whoever wants it is there; not at all without a
/// `watch`. `None` where it did not come.
async fn while_wanted<T>(
    done: impl Future<Output = T>,
    wait_ms: u64,
    watch: Option<&crate::ObjectRef<()>>,
) -> Option<T> {
    let Some(watch) = watch else {
        return tokio::select! {
            biased;
            done = done => Some(done),
            () = std::future::ready(()) => None,
        };
    };
    let in_time = tokio::time::timeout(Duration::from_millis(wait_ms), async {
        tokio::select! {
            biased;
            done = done => Some(done),
            _gone = std::future::IntoFuture::into_future(watch) => None,
        }
    });
    in_time.await.ok().flatten()
}
