//! Who waits for an object.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    thread::Thread,
    time::Instant,
};

/// A waiting thread.
#[derive(Debug)]
pub struct Parker {
    woken: AtomicBool,
    thread: Thread,
}

impl Parker {
    /// For the current thread.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { woken: AtomicBool::new(false), thread: std::thread::current() })
    }

    /// Before registering anew.
    pub fn reset(&self) {
        self.woken.store(false, Ordering::Release);
    }

    /// Whether somebody woke it since the last reset.
    pub fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
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
#[derive(Debug)]
pub enum Waiter {
    /// A thread.
    Thread(Arc<Parker>),
    /// An async task.
    Task(Waker),
}

impl Waiter {
    /// Wakes it; says whether it is a thread other than this one, which may be parked elsewhere than in
    /// [`Parker::park`].
    pub fn wake(self) -> bool {
        match self {
            Self::Thread(parker) => {
                parker.woken.store(true, Ordering::Release);
                let other = parker.thread.id() != std::thread::current().id();
                if other {
                    parker.thread.unpark();
                }
                other
            }
            Self::Task(waker) => {
                waker.wake();
                false
            }
        }
    }

    /// Whether it is this thread's.
    pub fn is(&self, parker: &Arc<Parker>) -> bool {
        matches!(self, Self::Thread(own) if Arc::ptr_eq(own, parker))
    }

    /// Whether it would wake the same task.
    pub fn will_wake(&self, waker: &Waker) -> bool {
        matches!(self, Self::Task(own) if own.will_wake(waker))
    }
}
