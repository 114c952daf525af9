//! Clocks, windows and what is made of samples.

use std::{
    error::Error,
    sync::mpsc::{RecvTimeoutError, channel, sync_channel},
    thread,
    time::{Duration, Instant},
};

/// How often [`watched`] looks.
const LOOK: Duration = Duration::from_millis(20);

/// Errors are told, not handled: the row that meets one shows its text.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Only to see that everything works.
    pub quick: bool,
    /// How long one measurement lasts.
    pub window: Duration,
    /// Bytes of one large transfer.
    pub bulk_bytes: usize,
    /// How long an idle cluster is looked at.
    pub idle: Duration,
    /// How often a start is repeated in one round.
    pub starts: usize,
}

impl Scale {
    /// Numbers to compare.
    pub const FULL: Self = Self {
        quick: false,
        window: Duration::from_millis(500),
        bulk_bytes: 1 << 30,
        idle: Duration::from_secs(5),
        starts: 5,
    };
    /// Only to see that everything works.
    pub const QUICK: Self = Self {
        quick: true,
        window: Duration::from_millis(200),
        bulk_bytes: 256 << 20,
        idle: Duration::from_secs(2),
        starts: 1,
    };

    /// Spent before the clock starts.
    fn warm_up(self) -> Duration {
        self.window / 4
    }
}

/// Operations a second: calls for one window, after a warm-up of at least one call.
pub fn rate(scale: Scale, operations_each: f64, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let warm = Instant::now();
    call()?;
    while warm.elapsed() < scale.warm_up() {
        call()?;
    }
    let begun = Instant::now();
    let mut calls = 0.0;
    loop {
        call()?;
        calls += 1.0;
        let elapsed = begun.elapsed();
        if elapsed >= scale.window {
            return Ok(calls * operations_each / elapsed.as_secs_f64());
        }
    }
}

/// How long each call takes, in seconds, in ascending order: calls for one window, after a warm-up.
pub fn latencies(scale: Scale, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let warm = Instant::now();
    call()?;
    while warm.elapsed() < scale.warm_up() {
        call()?;
    }
    let mut all = Vec::new();
    let begun = Instant::now();
    while all.is_empty() || begun.elapsed() < scale.window {
        let start = Instant::now();
        call()?;
        all.push(start.elapsed().as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    Ok(all)
}

/// The value below which this share of the ascending samples lies, between two of them by its distance to either; 0 without
/// samples.
pub fn quantile(ascending: &[f64], share: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else { return 0.0 };
    // In range: a share is from 0 to 1.
    let place = share * last as f64;
    let (below, above) = (ascending[place.floor() as usize], ascending[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The median, the 99th and the 99.9th percentile, in units of which a second has so many.
pub fn percentiles(ascending: &[f64], units: f64) -> Vec<f64> {
    [0.5, 0.99, 0.999].iter().map(|share| quantile(ascending, *share) * units).collect()
}

/// Runs it on a thread of its own and gives up after `limit`. The thread is then left behind.
pub fn bounded<T: Send + 'static>(
    name: &str,
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = sync_channel(1);
    std::thread::Builder::new().name("measure".to_owned()).spawn(move || {
        // Nobody listens any more once the time was up.
        let _late = sender.send(work());
    })?;
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(Box::new(TimeUp(format!("{name}: not done within {limit:?}")))),
        Err(RecvTimeoutError::Disconnected) => Err(format!("{name}: it panicked").into()),
    }
}

/// Does `work`, while another thread looks every [`LOOK`], and once more at its end; gives the most of each figure.
pub fn watched<T, const N: usize>(
    look: impl Fn() -> Result<[f64; N]> + Send,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, [f64; N])> {
    let (working, done) = channel::<()>();
    thread::scope(|scope| {
        let watching = scope.spawn(move || -> Result<[f64; N]> {
            let mut most = look()?;
            loop {
                // The other end goes when the work has ended, or has panicked.
                let ended = !matches!(done.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout));
                for (most, now) in most.iter_mut().zip(look()?) {
                    *most = most.max(now);
                }
                if ended {
                    return Ok(most);
                }
            }
        });
        let worked = work();
        drop(working);
        let most = watching.join().map_err(|_| "the thread that watches panicked")?;
        Ok((worked?, most?))
    })
}

/// Something did not end in its time.
#[derive(Debug)]
pub struct TimeUp(String);

impl std::fmt::Display for TimeUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for TimeUp {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn quantiles_of_few_samples() {
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[3.0], 0.99), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 1.0), 3.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
    }

    #[test]
    fn the_most_that_was_seen_is_told() {
        let now = std::sync::atomic::AtomicU32::new(1);
        let seen = std::sync::atomic::AtomicU32::new(0);
        let look = || {
            seen.fetch_add(1, Relaxed);
            Ok([f64::from(now.load(Relaxed)), -1.0])
        };
        let (result, most) = watched(look, || {
            now.store(7, Relaxed);
            let (before, begun) = (seen.load(Relaxed), Instant::now());
            while seen.load(Relaxed) < before + 2 && begun.elapsed() < Duration::from_secs(10) {
                thread::yield_now();
            }
            now.store(3, Relaxed);
            Ok("done")
        })
        .unwrap();
        assert_eq!((result, most), ("done", [7.0, -1.0]));
        let error = watched(|| Ok([0.0]), || Err::<(), _>("no".into())).unwrap_err();
        assert_eq!(error.to_string(), "no");
        let error = watched::<_, 1>(|| Err("blind".into()), || Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "blind");
    }

    #[test]
    fn what_hangs_is_given_up() {
        let (_keep, never) = sync_channel::<()>(1);
        let hanging = move || Ok(never.recv()?);
        let error = bounded("row", Duration::from_millis(1), hanging).unwrap_err();
        assert!(error.is::<TimeUp>(), "{error}");
        let error = bounded("row", Duration::from_secs(10), || Err::<(), _>("no".into())).unwrap_err();
        assert_eq!(error.to_string(), "no");
    }
}
