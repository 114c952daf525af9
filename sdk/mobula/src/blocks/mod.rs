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

/// The end of so long a wait; `None` where that is beyond all time.
fn end_in(wait: Duration) -> Option<tokio::time::Instant> {
    tokio::time::Instant::now().checked_add(wait)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Queue, Semaphore};

    #[test]
    fn a_wait_may_be_as_long_as_can_be_said() {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let cluster = crate::Cluster::embedded().start().await.unwrap();
            let queue = Queue::<u64>::new(4).await.unwrap();
            for item in 1..=2 {
                queue.put_within(&item, Duration::MAX).await.unwrap();
            }
            assert_eq!(queue.get_within(Duration::MAX).await.unwrap(), Some(1));
            assert_eq!(queue.get_batch(4, Some(Duration::MAX)).await.unwrap(), [2]);
            let permits = Semaphore::new(1).await.unwrap().acquire_within(1, Duration::MAX).await.unwrap();
            let one = [crate::put(&1_u64).unwrap()];
            let (ready, _) = crate::wait(&one, 1, Some(Duration::MAX)).await.unwrap();
            assert_eq!(ready, [0]);
            let waits = std::thread::spawn(move || crate::blocking::wait(&one, 1, Some(Duration::MAX)));
            assert_eq!(waits.join().unwrap().unwrap().0, [0]);
            drop((permits, queue));
            drop(cluster);
        });
    }
}
