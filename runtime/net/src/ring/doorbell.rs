//! Sleeping until somebody has work for this process, without losing a wake-up and without needless ones.
//!
//! Each receiving process has one doorbell: a word in a page of shared memory that every producer of any of its
//! rings maps. Its threads agree among themselves (with a lock or a baton) on one **poller** at a time, which
//! drains the rings and is the only one to call the methods of the receiving side.
//!
//! | state | meaning | who sets it |
//! |---|---|---|
//! | `POLLING` | somebody is awake and will look at the rings: producers need not wake | the poller |
//! | `SLEEPING` | nobody looks: whoever publishes must wake | the poller |
//! | `NOTIFIED` | somebody published and has taken it upon himself to wake | one producer |
//! | `UNATTENDED` | there is no poller at all: whoever publishes must call the watcher | the poller that leaves |
//! | `CALLED` | somebody published and has taken it upon himself to call the watcher | one producer |
//!
//! A process whose threads poll only while they wait for something has a **watcher** besides: one thread that
//! sleeps in [`Doorbell::watch`], on a word of its own, until something comes while there is no poller. It then
//! becomes the poller, if no other thread has meanwhile.
//!
//! The poller runs this loop; a producer publishes, then calls [`Doorbell::ring`]:
//! ```text
//! begin_polling()
//! loop {
//!     drain the rings (and spin a little: see Spin)
//!     end_polling()                          // POLLING → SLEEPING
//!     if any ring has something { begin_polling(); continue }
//!     wait(timeout)
//!     begin_polling()                        // → POLLING
//! }
//! ```
//!
//! # Why no wake-up is lost
//! - **DB-1** A producer *stores the tail*, then a SeqCst fence, then *loads the state*. The poller *stores
//!   `SLEEPING`*, then a SeqCst fence, then *loads the tails*. The fences have one order. If the producer's is
//!   first, the poller sees the frame and does not sleep; if the poller's is first, the producer sees `SLEEPING`
//!   (or `NOTIFIED`, below) and wakes.
//! - **DB-2** Of all producers that see `SLEEPING`, one wins the compare-and-swap to `NOTIFIED` and wakes: one
//!   system call for each transition. The others need not: the poller leaves `wait` and drains everything.
//! - **DB-3** `wait` sleeps only while the word is `SLEEPING`, which the kernel checks under the lock that the
//!   wake takes: a notice between the last look and the sleep makes the sleep return at once.
//! - **DB-5** `leave` stores `UNATTENDED` as `end_polling` stores `SLEEPING`, and DB-1 and DB-2 hold for it with
//!   `CALLED` for `NOTIFIED`. The producer raises the count of calls after `CALLED` and before it wakes; the
//!   watcher reads the count, then the state, and sleeps only while the count is what it read.
//! - **DB-6** A producer that is killed, or stopped, after its compare-and-swap and before its wake leaves `NOTIFIED` or
//!   `CALLED` behind: nobody wakes, and the others rely on it. So the receiving process calls [`Doorbell::remind`] from time
//!   to time.
//! - **DB-4** `begin_polling` writes `POLLING` over a `NOTIFIED`, and that forgets nothing: it acquires what the
//!   notice released, the poller drains after it, and before its next sleep goes through DB-1 again.
//!
//! A test searches all interleavings of a model of this, store buffers included, and finds the hang when either fence
//! is taken out. `tests/models` searches those of this code itself, under the memory model of the language.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    Error,
    map::Map,
    sync::{Arc, AtomicU32, Ordering, fence, futex},
};

const MAGIC: u64 = u64::from_le_bytes(*b"mobbell\x01");
const PAGE_BYTES: usize = 4096;
const MAGIC_AT: usize = 0;
/// The word has a pair of cache lines of its own.
const STATE_AT: usize = 256;

/// What the watcher sleeps on.
const CALLS_AT: usize = 512;

const POLLING: u32 = 0;
const SLEEPING: u32 = 1;
const NOTIFIED: u32 = 2;
const UNATTENDED: u32 = 3;
const CALLED: u32 = 4;

/// Longest that a single [`Spin`] lasts; about twice what parking and being woken costs.
pub const SPIN_NANOS_MAX: u64 = 50_000;
/// Shortest spin that is tried while spinning has not been worth it.
pub const SPIN_NANOS_MIN: u64 = 1_000;
/// Fruitless spins, one after the other, after which no more are tried until something came by another way.
const SPIN_MISSES_MAX: u32 = 8;

/// How a [`Doorbell::wait`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Somebody rang, or the state was not `SLEEPING` in the first place.
    Rung,
    /// The time was up.
    TimedOut,
}

/// One process's doorbell; clones share the word. The receiving side calls [`begin_polling`](Self::begin_polling),
/// [`end_polling`](Self::end_polling) and [`wait`](Self::wait), one thread at a time; anybody calls
/// [`ring`](Self::ring), threads of the same process too.
#[derive(Clone)]
pub struct Doorbell {
    map: Arc<Map>,
}

impl Doorbell {
    /// Makes a doorbell in state `POLLING`, and the descriptor that producers map.
    pub fn create() -> Result<(Self, OwnedFd), Error> {
        let fd = super::map::create("mobula-doorbell", PAGE_BYTES, &MAGIC.to_ne_bytes())?;
        let own = fd.try_clone().map_err(|source| Error::System { call: "fcntl", source })?;
        Ok((Self::map(own)?, fd))
    }

    /// Maps a doorbell that another process (or this one) made.
    pub fn map(fd: OwnedFd) -> Result<Self, Error> {
        let map = Map::open(fd, PAGE_BYTES)?;
        if map.len() != PAGE_BYTES || map.word64(MAGIC_AT).load(Ordering::Relaxed) != MAGIC {
            return Err(Error::Foreign { detail: "it is not a doorbell of this version" });
        }
        Ok(Self { map: Arc::new(map) })
    }

    #[inline]
    fn state(&self) -> &AtomicU32 {
        self.map.word32(STATE_AT)
    }

    /// Wakes the receiver if it sleeps. Call it after publishing, once for any number of frames. Returns whether
    /// this call was the one that woke; while the receiver polls this is a fence and a load.
    #[inline]
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        match self.state().load(Ordering::Relaxed) {
            SLEEPING => self.wake(),
            UNATTENDED => self.call(),
            _ => false,
        }
    }

    /// As [`ring`](Self::ring) for a receiver that does not sleep on the doorbell itself but on something that the
    /// caller can write to: `true` where the caller must do so now.
    #[inline]
    pub fn notice(&self) -> bool {
        fence(Ordering::SeqCst);
        self.state().load(Ordering::Relaxed) == SLEEPING
            && self.state().compare_exchange(SLEEPING, NOTIFIED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Wakes the poller if it sleeps, and nobody else: for threads of its own process whose news did not come
    /// through a ring. Publish the news first.
    #[inline]
    pub fn nudge(&self) -> bool {
        fence(Ordering::SeqCst);
        self.state().load(Ordering::Relaxed) == SLEEPING && self.wake()
    }

    #[cold]
    fn call(&self) -> bool {
        if self.state().compare_exchange(UNATTENDED, CALLED, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.rouse();
        true
    }

    #[inline]
    fn calls(&self) -> &AtomicU32 {
        self.map.word32(CALLS_AT)
    }

    /// The poller goes, and there may be no next one. It **must** look at every ring again after this, and call
    /// [`ring`](Self::ring) when one has something.
    #[inline]
    pub fn leave(&self) {
        self.state().store(UNATTENDED, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Sleeps until somebody rings while there is no poller: then `true`, and the caller, the one watcher of the process,
    /// tries to become the poller. `false` after [`Self::rouse`], or when the time is up that `timeout` gave; that
    /// is asked when nothing from then on is missed.
    pub fn watch(&self, timeout: impl FnOnce() -> Option<Duration>) -> bool {
        let calls = self.calls().load(Ordering::Acquire);
        if self.state().load(Ordering::Acquire) != CALLED {
            let timespec = timeout().and_then(|time| futex::Timespec::try_from(time).ok());
            // Whatever ends the sleep, the state tells what it means.
            let _ = futex::wait(self.calls(), futex::Flags::empty(), calls, timespec.as_ref());
        }
        self.state().load(Ordering::Acquire) == CALLED
    }

    /// Makes [`Self::watch`] return and its caller ask anew for how long to sleep. Publish the reason first.
    pub fn rouse(&self) {
        self.calls().fetch_add(1, Ordering::AcqRel);
        // It can fail only for an address that is not mapped, and this one is.
        let _ = futex::wake(self.calls(), futex::Flags::empty(), 1);
    }

    #[cold]
    fn wake(&self) -> bool {
        if self.state().compare_exchange(SLEEPING, NOTIFIED, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.wake_poller();
        true
    }

    fn wake_poller(&self) {
        // It can fail only for an address that is not mapped, and this one is.
        let _ = futex::wake(self.state(), futex::Flags::empty(), 1);
    }

    /// Does what a producer has taken upon itself, which may have died before it did so (DB-6). For threads of the receiving
    /// process; costs a load where nobody has.
    pub fn remind(&self) {
        match self.state().load(Ordering::Acquire) {
            NOTIFIED => self.wake_poller(),
            CALLED => self.rouse(),
            _ => {}
        }
    }

    /// The caller is awake and will drain: producers need not wake from here on.
    #[inline]
    pub fn begin_polling(&self) {
        self.state().swap(POLLING, Ordering::AcqRel);
    }

    /// The caller is about to sleep. It **must** look at every ring again after this, and not before, and call
    /// [`begin_polling`](Self::begin_polling) instead of sleeping when one has something.
    #[inline]
    pub fn end_polling(&self) {
        self.state().store(SLEEPING, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Sleeps until somebody rings or `timeout` is over (`None`: for as long as it takes).
    pub fn wait(&self, timeout: Option<Duration>) -> Wake {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        while self.state().load(Ordering::Acquire) == SLEEPING {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Wake::TimedOut;
            }
            let timespec = left.and_then(|l| futex::Timespec::try_from(l).ok());
            match futex::wait(self.state(), futex::Flags::empty(), SLEEPING, timespec.as_ref()) {
                // Woken, or rung before it slept: the loop's condition tells.
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::TIMEDOUT) => return Wake::TimedOut,
                // Impossible for a mapped, aligned word; going round the rings once more is always safe.
                Err(_) => return Wake::Rung,
            }
        }
        Wake::Rung
    }
}

/// Decides how long to spin before parking, from how it went before: a spin that paid makes the next one longer,
/// one in vain shorter, and after several in vain there are none at all until [`Spin::slept`] is told of a
/// sleep so short that a spin would have bridged it. So an idle process does not spin, and a busy exchange does not park.
pub struct Spin {
    nanos: u64,
    misses: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Self { nanos: SPIN_NANOS_MAX / 2, misses: 0 }
    }
}

impl Spin {
    /// Spins until `ready` says so or the budget is spent; returns what it said last. The doorbell must be in
    /// state `POLLING` meanwhile, so that producers save the wake.
    #[inline]
    pub fn until(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        if ready() {
            return true;
        }
        if self.misses >= SPIN_MISSES_MAX {
            return false;
        }
        let start = Instant::now();
        let limit = Duration::from_nanos(self.nanos);
        loop {
            // Reading the clock costs as much as some twenty looks.
            for _ in 0..32 {
                std::hint::spin_loop();
                if ready() {
                    self.nanos = (self.nanos * 2).min(SPIN_NANOS_MAX);
                    self.misses = 0;
                    return true;
                }
            }
            if start.elapsed() >= limit {
                self.nanos = (self.nanos / 2).max(SPIN_NANOS_MIN);
                self.misses += 1;
                return false;
            }
        }
    }

    /// Something is about to come: the next spin is the longest that there is, however it went before.
    pub fn expect(&mut self) {
        self.nanos = SPIN_NANOS_MAX;
        self.misses = 0;
    }

    /// Tells how long the sleep that followed a spin in vain lasted: after a short one spinning is tried again.
    pub fn slept(&mut self, time: Duration) {
        if time < Duration::from_nanos(SPIN_NANOS_MAX) {
            self.nanos = (self.nanos * 2).min(SPIN_NANOS_MAX);
            self.misses = 0;
        }
    }
}

#[cfg(test)]
#[path = "doorbell/model.rs"]
mod model;
#[cfg(test)]
#[path = "doorbell/tests.rs"]
mod tests;
