//! Async calls.

use std::{
    future::Future,
    sync::Arc,
    task::{Context as Poller, Waker},
    time::Instant,
};

use futures_util::future::{AbortHandle, Abortable};
use mobula_proto::{Failure, FailureKind};

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
    runtime.user().spawn(drive(runtime.clone(), run));
}

/// On this thread, as far as it comes without waiting: most short calls are done then, and a task of the runtime for each
/// would cost more than they do.
pub(super) fn begin(runtime: &Arc<Runtime>, run: Box<Run>) {
    let mut call = Box::pin(drive(runtime.clone(), run));
    let pending = {
        let _entered = runtime.user().enter();
        // Whatever would wake it now need not: the task that it gets asks it again at once.
        call.as_mut().poll(&mut Poller::from_waker(Waker::noop())).is_pending()
    };
    if pending {
        runtime.user().spawn(call);
    }
}

/// One call, from its first poll to its result.
async fn drive(runtime: Arc<Runtime>, mut run: Box<Run>) {
    let arguments = Arguments::new(std::mem::take(&mut run.arguments));
    let started = Instant::now();
    let executor = runtime.executor();
    match &run.function.entry {
        Entry::Task(call) => {
            let call = *call;
            let result = polled(&runtime, &run.context, move || call(arguments)).await;
            executor.finish(&runtime, run, nanos_since(started), result);
        }
        Entry::Construct { call, .. } => {
            let call = *call;
            let result = polled(&runtime, &run.context, move || call(arguments)).await;
            if let Some(next) = executor.constructed(&runtime, run, nanos_since(started), result) {
                executor.start(&runtime, next);
            }
        }
        Entry::Method { call, .. } => {
            let call = *call;
            let state = run.actor.as_ref().and_then(|actor| actor.inner.lock().state.clone());
            let result = match state {
                Some(state) => polled(&runtime, &run.context, move || call(&state, arguments)).await,
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
) -> Result<T, Failure> {
    let (handle, registration) = AbortHandle::new_pair();
    *context.abort.lock() = Some(handle.clone());
    if context.cancelled() {
        handle.abort();
    }
    let polled = guarded::Polled::new(runtime.clone(), context.clone(), call);
    let mut inner = Abortable::new(polled, registration);
    let result = (&mut inner).await;
    guarded::end(inner);
    result.unwrap_or_else(|_aborted| Err(Failure::new(FailureKind::Cancelled, "it was cancelled")))
}
