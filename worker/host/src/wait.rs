//! Who waits for an object.

use std::{
    sync::{
        Arc,
        atomic::{AtomicIsize, Ordering},
    },
    task::Waker,
    thread::Thread,
    time::Instant,
};

/// A thread that waits for so many of the objects under which it is registered.
#[derive(Debug)]
pub struct Parker {
    missing: AtomicIsize,
    thread: Thread,
}

impl Parker {
    /// For the current thread.
    pub fn new(count: usize) -> Arc<Self> {
        let missing = isize::try_from(count).unwrap_or(isize::MAX).into();
        Arc::new(Self { missing, thread: std::thread::current() })
    }

    /// Whether enough objects are there.
    pub fn is_woken(&self) -> bool {
        self.missing.load(Ordering::Acquire) <= 0
    }

    /// Wakes it, whatever is missing. Says whether that is a thread other than this one, as [`Waiter::wake`] does.
    pub fn interrupt(&self) -> bool {
        let waits = self.missing.swap(0, Ordering::AcqRel) > 0;
        let other = waits && self.thread.id() != std::thread::current().id();
        if other {
            self.thread.unpark();
        }
        other
    }

    /// Waits until woken or until the deadline.
    pub fn park(&self, deadline: Option<Instant>) {
        while !self.is_woken() {
            match deadline {
                None => std::thread::park(),
                Some(deadline) => {
                    let now = Instant::now();
                    if now >= deadline {
                        return;
                    }
                    std::thread::park_timeout(deadline - now);
                }
            }
        }
    }
}

/// A thread or an async task that waits for an object.
#[derive(Clone, Debug)]
pub enum Waiter {
    /// A thread.
    Thread(Arc<Parker>),
    /// An async task.
    Task(Waker),
    /// A wait in an async task, which may have several that come and go apart: its number.
    Wait(u64, Waker),
}

impl Waiter {
    /// One object is there: wakes whoever has enough now. Says whether that is a thread other than this one, which
    /// may be parked elsewhere than in [`Parker::park`].
    pub fn wake(self) -> bool {
        match self {
            Self::Thread(parker) => {
                let last = parker.missing.fetch_sub(1, Ordering::AcqRel) == 1;
                let other = last && parker.thread.id() != std::thread::current().id();
                if other {
                    parker.thread.unpark();
                }
                other
            }
            Self::Task(waker) | Self::Wait(_, waker) => {
                waker.wake();
                false
            }
        }
    }

    /// Whether it is this thread's.
    pub fn is(&self, parker: &Arc<Parker>) -> bool {
        matches!(self, Self::Thread(own) if Arc::ptr_eq(own, parker))
    }

    /// Whether both are one thread's, one task's or one wait's.
    pub fn is_same(&self, other: &Self) -> bool {
        match other {
            Self::Thread(parker) => self.is(parker),
            Self::Task(waker) => matches!(self, Self::Task(own) if own.will_wake(waker)),
            Self::Wait(number, _) => matches!(self, Self::Wait(own, _) if own == number),
        }
    }
}
