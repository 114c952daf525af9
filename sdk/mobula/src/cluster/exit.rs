//! Clusters of a process that exits before it dropped them: by [`std::process::exit`], or because a signal came while
//! `main` does not let go. Their jobs end in good order all the same, so that nobody has to find out by silence.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use mobula_host::exit::at_exit;

use super::Inner;

/// Longest that an exit is held up. An orderly end takes milliseconds, and over a network a tenth of a second.
pub(super) const EXIT_WAIT: Duration = Duration::from_millis(700);

/// The clusters that may still run.
static RUNNING: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// Sees to it that this cluster's job ends with the process.
pub(super) fn remember(inner: &Arc<Inner>) {
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    running.retain(|other| other.strong_count() > 0);
    running.push(Arc::downgrade(inner));
    watch();
}

/// From now on an exit of this process is noticed.
pub(super) fn watch() {
    if !at_exit(leave_all) {
        tracing::debug!("an exit will not be noticed at once");
    }
}

/// How many threads are ending clusters, and the news that one has finished.
static LEAVING: Mutex<usize> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

fn leaving() -> MutexGuard<'static, usize> {
    LEAVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends all that still run; returns when none does any more, after [`EXIT_WAIT`] at the latest. What is open then, the
/// system closes.
pub(super) fn leave_all() {
    let running = std::mem::take(&mut *RUNNING.lock().unwrap_or_else(PoisonError::into_inner));
    let running: Vec<Arc<Inner>> = running.iter().filter_map(Weak::upgrade).collect();
    if !running.is_empty() {
        *leaving() += 1;
        // On a thread of its own: the calling one may hold a lock that is needed.
        let thread = std::thread::Builder::new().name("mobula-exit".to_owned()).spawn(move || {
            for inner in &running {
                inner.leave();
            }
            *leaving() -= 1;
            LEFT.notify_all();
        });
        if thread.is_err() {
            *leaving() -= 1;
        }
    }
    let _late = LEFT.wait_timeout_while(leaving(), EXIT_WAIT, |count| *count > 0);
    super::home::remove_all();
}
