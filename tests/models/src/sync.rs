//! In place of the store's `sync`.

use std::{
    fmt,
    ops::Deref,
    sync::{Mutex as Plain, PoisonError},
};

use loom::sync::atomic::{AtomicUsize, fence};

pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

/// Counts as the standard one does, in atomics of the model checker, whose own has no weak handles.
pub struct Arc<T: ?Sized> {
    shared: std::sync::Arc<Shared<T>>,
    /// Gone before the count goes down, so that whoever counts to zero has the last.
    value: Option<std::sync::Arc<T>>,
}

/// A handle that keeps nothing.
pub struct Weak<T: ?Sized>(std::sync::Arc<Shared<T>>);

struct Shared<T: ?Sized> {
    strong: AtomicUsize,
    /// Locked for a clone or a take, never while another thread may run.
    home: Plain<Option<std::sync::Arc<T>>>,
}

impl<T: ?Sized> Shared<T> {
    fn home<R>(&self, with: impl FnOnce(&mut Option<std::sync::Arc<T>>) -> R) -> R {
        with(&mut self.home.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Arc<T> {
    /// The first handle.
    pub fn new(value: T) -> Self {
        Self::from_std(std::sync::Arc::new(value))
    }
}

impl<T: ?Sized> Arc<T> {
    /// The first handle to what the only handle of another kind leads to.
    pub fn from_std(value: std::sync::Arc<T>) -> Self {
        let home = Plain::new(Some(std::sync::Arc::clone(&value)));
        let shared = std::sync::Arc::new(Shared { strong: AtomicUsize::new(1), home });
        Self { shared, value: Some(value) }
    }

    pub(crate) fn ptr_eq(this: &Self, other: &Self) -> bool {
        std::sync::Arc::ptr_eq(&this.shared, &other.shared)
    }

    pub(crate) fn strong_count(this: &Self) -> usize {
        this.shared.strong.load(Ordering::Relaxed)
    }

    pub(crate) fn downgrade(this: &Self) -> Weak<T> {
        Weak(std::sync::Arc::clone(&this.shared))
    }
}

impl<T: ?Sized> Clone for Arc<T> {
    fn clone(&self) -> Self {
        self.shared.strong.fetch_add(1, Ordering::Relaxed);
        Self { shared: std::sync::Arc::clone(&self.shared), value: self.value.clone() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Arc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized> Deref for Arc<T> {
    type Target = T;

    #[expect(clippy::expect_used, reason = "it goes in `drop` alone")]
    fn deref(&self) -> &T {
        self.value.as_deref().expect("a handle has its value")
    }
}

impl<T: ?Sized> Drop for Arc<T> {
    fn drop(&mut self) {
        self.value = None;
        if self.shared.strong.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // Dropped outside of the lock: other threads run meanwhile.
            let value = self.shared.home(Option::take);
            drop(value);
        }
    }
}

impl<T: ?Sized> Clone for Weak<T> {
    fn clone(&self) -> Self {
        Self(std::sync::Arc::clone(&self.0))
    }
}

impl<T: ?Sized> Weak<T> {
    pub(crate) fn upgrade(&self) -> Option<Arc<T>> {
        let more = |count: usize| (count > 0).then(|| count + 1);
        self.0.strong.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(Arc { shared: std::sync::Arc::clone(&self.0), value: self.0.home(|home| home.clone()) })
    }

    pub(crate) fn strong_count(&self) -> usize {
        self.0.strong.load(Ordering::Relaxed)
    }
}

/// A lock as the store's is: without poison.
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self(loom::sync::Mutex::new(T::default()))
    }
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
