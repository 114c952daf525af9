//! Running user code so that a panic becomes a [`Failure`] that names the source line.

use std::{
    any::Any,
    cell::RefCell,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Once, atomic::Ordering},
    task::{Context as Poller, Poll},
};

use mobula_proto::{Failure, FailureKind};

use crate::{
    context::{self, Context},
    registry::{Invocation, Running},
    runtime::Runtime,
};

thread_local! {
    /// `Some` while user code runs; a panic leaves its place there.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Remembers where a panic in user code happened. Panics elsewhere are reported as before.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let noted = PLACE.with_borrow_mut(|place| match place {
                Some(place) => {
                    *place = info
                        .location()
                        .map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
                    true
                }
                None => false,
            });
            if !noted {
                before(info);
            }
        }));
    });
}

fn catching<R>(run: impl FnOnce() -> R) -> Result<R, Failure> {
    install_hook();
    let outer = PLACE.replace(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(run));
    let place = PLACE.replace(outer).unwrap_or_default();
    result.map_err(|payload| {
        Failure::new(FailureKind::Panicked, format!("panicked{place}: {}", panic_text(payload.as_ref())))
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is not text".to_owned())
}

/// Calls sync user code.
pub fn call<R>(run: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    catching(run).and_then(|result| result)
}

/// Drops what belongs to user code that was aborted, and whose destructors may panic.
pub fn end<T>(what: T) {
    if let Err(failure) = catching(|| drop(what)) {
        tracing::warn!(%failure, "a destructor of an aborted call panicked");
    }
}

/// Async user code, polled with its context entered and its panics caught. While it waits for objects, and none of it is
/// polled, its slot serves others.
pub struct Polled<T, C> {
    runtime: Arc<Runtime>,
    context: Arc<Context>,
    call: Option<C>,
    running: Option<Running<T>>,
    /// The second poll comes right behind the first, whatever that gives.
    twice: bool,
    /// Its slot serves others.
    lent: bool,
}

impl<T, C> Polled<T, C> {
    /// Calls `call` at the first poll, which another follows right away if it shall be polled `twice`.
    pub fn new(runtime: Arc<Runtime>, context: Arc<Context>, call: C, twice: bool) -> Self {
        Self { runtime, context, call: Some(call), running: None, twice, lent: false }
    }

    /// Nothing of it runs until it is polled again.
    fn rest(&mut self) {
        // A wait may end elsewhere, if its future was moved there. The next poll looks again.
        self.lent = self.context.awaits.load(Ordering::Acquire) > 0;
        if self.lent {
            self.runtime.executor().block(&self.runtime, &self.context, false);
        }
    }

    /// It runs.
    fn go_on(&mut self) {
        if std::mem::take(&mut self.lent) {
            self.runtime.executor().unblock(&self.runtime, &self.context, false);
        }
    }
}

// Nothing in it is pinned in place: the future inside is boxed.
impl<T, C> Unpin for Polled<T, C> {}

impl<T, C: FnOnce() -> Invocation<T>> Future for Polled<T, C> {
    type Output = Result<T, Failure>;

    fn poll(self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.go_on();
        let twice = std::mem::take(&mut this.twice);
        let _entered = context::enter(&this.runtime, Some(this.context.clone()), true);
        if let Some(call) = this.call.take() {
            match catching(call) {
                Err(failure) => return Poll::Ready(Err(failure)),
                Ok(Invocation::Finished(result)) => return Poll::Ready(result),
                Ok(Invocation::Future(running)) => this.running = Some(running),
            }
        }
        let Some(running) = this.running.as_mut() else {
            return Poll::Ready(Err(Failure::new(FailureKind::Internal, "polled after its end")));
        };
        let polled = catching(|| running.as_mut().poll(poller));
        let result = match polled {
            Ok(Poll::Pending) => {
                if !twice {
                    this.rest();
                }
                return Poll::Pending;
            }
            Ok(Poll::Ready(result)) => result,
            Err(failure) => Err(failure),
        };
        match catching(|| this.running = None) {
            Ok(()) => Poll::Ready(result),
            Err(failure) => Poll::Ready(Err(failure)),
        }
    }
}

impl<T, C> Drop for Polled<T, C> {
    fn drop(&mut self) {
        self.go_on();
        // Refs inside the future are given back to the right runtime.
        let _entered = context::enter(&self.runtime, Some(self.context.clone()), true);
        self.running = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_names_its_line() {
        let failure = call::<()>(|| panic!("index {} out of bounds", 7)).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Panicked);
        assert!(failure.message.starts_with("panicked at worker/host/src/guarded.rs:"), "{failure}");
        assert!(failure.message.ends_with("index 7 out of bounds"), "{failure}");
    }
}
