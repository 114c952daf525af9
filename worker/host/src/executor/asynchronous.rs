//! Async calls.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context as Poller, Poll, Waker},
    time::Instant,
};

use futures_util::future::{AbortHandle, Abortable};
use mobula_proto::{Failure, FailureKind};
use tokio::task::LocalSet;

use super::{Run, nanos_since, watch_timeout};
use crate::{
    codec::Arguments,
    context::Context,
    guarded,
    registry::{Entry, Invocation},
    runtime::Runtime,
};

/// On the runtime for user code.
pub(super) fn spawn(runtime: &Arc<Runtime>, run: Box<Run>) {
    if run.call.timeout_ms > 0 {
        watch_timeout(runtime, &run);
    }
    runtime.user().spawn(drive(runtime.clone(), run, false));
}

type Polling = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A tokio task of one thread of the pool, which polls one call after the other: so user code finds there what it finds
/// in a task of the runtime (an id; a budget after which what is always ready lets others run), at less than the cost
/// of a task for each call.
#[derive(Default)]
pub(super) struct Shell(Option<(LocalSet, Rc<Desk>)>);

/// What a thread and the task of its [`Shell`] hand each other.
#[derive(Default)]
struct Desk {
    call: Cell<Option<Polling>>,
    /// Of the task.
    waker: Cell<Option<Waker>>,
}

impl Desk {
    /// Takes what lies there as far as it comes without waiting, again and again.
    fn poll(&self, poller: &Poller<'_>) -> Poll<()> {
        self.waker.set(Some(poller.waker().clone()));
        if let Some(mut call) = self.call.take() {
            // Whatever would wake it now need not: the task that it gets asks it again at once.
            let polled = call.as_mut().poll(&mut Poller::from_waker(Waker::noop()));
            self.call.set(polled.is_pending().then_some(call));
        }
        Poll::Pending
    }
}

impl Shell {
    /// Polls a call once; gives it back where it waits for something.
    fn poll(&mut self, call: Polling) -> Option<Polling> {
        let (set, desk) = self.0.get_or_insert_with(|| {
            let (set, desk) = (LocalSet::new(), Rc::<Desk>::default());
            let task = Rc::clone(&desk);
            // Ends with the set.
            drop(set.spawn_local(poll_fn(move |poller| task.poll(poller))));
            (set, desk)
        });
        desk.call.set(Some(call));
        if let Some(waker) = desk.waker.take() {
            waker.wake();
        }
        // It never ends.
        let _pending = Pin::new(set).poll(&mut Poller::from_waker(Waker::noop()));
        desk.call.take()
    }
}

/// On this thread, as far as it comes without waiting: most short calls are done then, and a task of the runtime for each
/// would cost more than they do. One that waits gets its task then, whose id is another than that of the [`Shell`].
pub(super) fn begin(runtime: &Arc<Runtime>, shell: &mut Shell, run: Box<Run>) {
    let _entered = runtime.user().enter();
    if let Some(call) = shell.poll(Box::pin(drive(runtime.clone(), run, true))) {
        runtime.user().spawn(call);
    }
}

/// One call, from its first poll to its result; `twice`: a second one follows right away.
async fn drive(runtime: Arc<Runtime>, mut run: Box<Run>, twice: bool) {
    let arguments = Arguments::new(std::mem::take(&mut run.arguments));
    let started = Instant::now();
    run.context.begun.store(true, Ordering::Release);
    let executor = runtime.executor();
    match &run.function.entry {
        Entry::Task(call) => {
            let call = *call;
            let result = polled(&runtime, &run.context, move || call(arguments), twice).await;
            executor.finish(&runtime, run, nanos_since(started), result);
        }
        Entry::Construct { call, .. } => {
            let call = *call;
            let result = polled(&runtime, &run.context, move || call(arguments), twice).await;
            if let Some(next) = executor.constructed(&runtime, run, nanos_since(started), result) {
                executor.start(&runtime, next);
            }
        }
        Entry::Method { call, .. } => {
            let call = *call;
            let state = run.actor.as_ref().and_then(|actor| actor.inner.lock().state.clone());
            let result = match state {
                Some(state) => polled(&runtime, &run.context, move || call(&state, arguments), twice).await,
                None => Err(Failure::new(FailureKind::ActorDied, "the actor ended")),
            };
            executor.finish(&runtime, run, nanos_since(started), result);
        }
    }
}

/// User code, until it is done or aborted.
async fn polled<T: Send + 'static>(
    runtime: &Arc<Runtime>,
    context: &Arc<Context>,
    call: impl FnOnce() -> Invocation<T> + Send + 'static,
    twice: bool,
) -> Result<T, Failure> {
    let (handle, registration) = AbortHandle::new_pair();
    *context.abort.lock() = Some(handle.clone());
    if context.cancelled() {
        handle.abort();
    }
    let polled = guarded::Polled::new(runtime.clone(), context.clone(), call, twice);
    let mut inner = Abortable::new(polled, registration);
    let result = (&mut inner).await;
    guarded::end(inner);
    result.unwrap_or_else(|_aborted| Err(Failure::new(FailureKind::Cancelled, "it was cancelled")))
}
