//! Streams: results that are sent one by one while a call runs.
//!
//! The executing host's [`Producer`] takes each item from user code, keeps it where a result of its size belongs,
//! and sends it to the caller. It waits while as much as the caller's window allows is unread, and gives its slot
//! back meanwhile as any waiting call does. The caller's core ([`crate::core::Taken`]) hands the items to the
//! reader, and says from time to time how much was read.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context as Poller, Poll, Waker},
};

use mobula_proto::{
    Failure, FailureKind, ObjectId,
    peer::{ITEMS_MAX, Item, Returned, StreamCall, Window},
};
use parking_lot::Mutex;
use smallvec::smallvec;

use crate::{
    codec::{self, Data, Results},
    context::{self, Context},
    core::Taken,
    runtime::{Awaited, Runtime},
    site::Site,
    wait::{Parker, Waiter},
};

/// After so many items async code that never waits lets other async code run.
const ITEMS_BETWEEN_YIELDS: u32 = 64;

/// What a call that produces a stream has sent, and may send.
#[derive(Debug)]
pub struct Producer {
    window: Window,
    state: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Which item comes next, from 0.
    next: u32,
    /// Items before this one are not sent.
    skip: u32,
    /// Items before this one count as read when they arrive.
    delivered: u32,
    /// What was unread at the start.
    unread: Window,
    /// What was sent since.
    items: u64,
    bytes: u64,
    /// What was read since.
    read_items: u64,
    read_bytes: u64,
    waiter: Option<Waiter>,
}

impl Progress {
    /// Whether the next item may be made.
    fn has_room(&self, window: Window) -> bool {
        if self.next < self.skip {
            return true;
        }
        // What is sent again takes no part of what the reader has yet to take: it may be waiting for just that.
        let unread = if self.next < self.delivered { Window::default() } else { self.unread };
        let items = (u64::from(unread.items) + self.items).saturating_sub(self.read_items);
        let bytes = (unread.bytes + self.bytes).saturating_sub(self.read_bytes);
        items < u64::from(window.items) && bytes < window.bytes
    }
}

impl Producer {
    /// Of a call that arrived.
    pub(crate) fn new(call: &StreamCall) -> Self {
        let (skip, delivered, unread) = (call.skip, call.delivered, call.unread);
        let state = Progress { skip, delivered, unread, ..Progress::default() };
        Self { window: call.window, state: Mutex::new(state) }
    }

    /// The caller has read so much.
    pub(crate) fn consumed(&self, runtime: &Runtime, items: u64, bytes: u64) {
        let mut state = self.state.lock();
        state.read_items = state.read_items.max(items);
        state.read_bytes = state.read_bytes.max(bytes);
        drop(state);
        self.wake(runtime);
    }

    /// Whoever waits looks at what has changed.
    pub(crate) fn wake(&self, runtime: &Runtime) {
        let waiter = self.state.lock().waiter.take();
        if waiter.is_some_and(Waiter::wake) {
            runtime.peers().nudge();
        }
    }

    /// Whether the next item may be made; else `waiter` is woken when that may have changed.
    fn has_room(&self, context: &Context, waiter: impl FnOnce() -> Waiter) -> Result<bool, Failure> {
        let mut state = self.state.lock();
        if context.cancelled() {
            return Err(Failure::new(FailureKind::Cancelled, "it was cancelled"));
        }
        if state.has_room(self.window) {
            return Ok(true);
        }
        state.waiter = Some(waiter());
        Ok(false)
    }

    fn give<T: Data>(&self, runtime: &Arc<Runtime>, context: &Context, item: &T) -> Result<(), Failure> {
        let index = {
            let mut state = self.state.lock();
            let index = state.next;
            if index >= ITEMS_MAX {
                return Err(Failure::new(
                    FailureKind::Limit,
                    format!("a stream has at most {ITEMS_MAX} items"),
                ));
            }
            state.next += 1;
            if index < state.skip {
                return Ok(());
            }
            index
        };
        let output = codec::encode(item)?;
        let object = context.task.object(index + 1);
        let value = runtime.keep_result_for(
            context.caller,
            object,
            context.attempt,
            &output,
            Site::Results(context.function),
        )?;
        {
            let mut state = self.state.lock();
            state.items += 1;
            state.bytes += value.bytes();
        }
        let returned = Returned { value, contains: output.refs.ids().to_vec() };
        let item = Item { task: context.task, attempt: context.attempt, index, returned };
        runtime.send_item(context.caller, item, output.refs);
        Ok(())
    }
}

/// Resolves when a producer may make the next item.
struct Waiting<'a> {
    of: &'a Producing,
    awaited: Option<Awaited>,
}

impl Future for Waiting<'_> {
    type Output = Result<(), Failure>;

    fn poll(self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Producing { runtime, context, producer } = this.of;
        let has = producer.has_room(context, || Waiter::Task(poller.waker().clone()));
        if matches!(has, Ok(false)) {
            if this.awaited.is_none() {
                this.awaited = Awaited::begin(runtime);
            }
            return Poll::Pending;
        }
        this.awaited = None;
        Poll::Ready(has.map(drop))
    }
}

/// The call on this thread.
struct Producing {
    runtime: Arc<Runtime>,
    context: Arc<Context>,
    producer: Arc<Producer>,
}

impl Producing {
    fn current() -> Result<Self, Failure> {
        let found = context::task().and_then(|context| {
            let producer = context.producer.clone()?;
            Some(Self { runtime: context::runtime()?, context, producer })
        });
        found.ok_or_else(|| {
            Failure::new(FailureKind::Internal, "a function that returns a stream was called for one value")
        })
    }

    /// Sends an item, unless the caller has it. It takes the place of its size in the window.
    fn give<T: Data>(&self, item: &T) -> Result<(), Failure> {
        self.producer.give(&self.runtime, &self.context, item)
    }

    /// Waits on this thread. The call's slot serves others meanwhile.
    fn wait(&self) -> Result<(), Failure> {
        let mut blocked = None;
        loop {
            let parker = Parker::new(1);
            if self.producer.has_room(&self.context, || Waiter::Thread(parker.clone()))? {
                return Ok(());
            }
            self.runtime.park(&parker, &mut blocked, None)?;
        }
    }

    /// [`Self::wait`] for async code.
    fn waiting(&self) -> Waiting<'_> {
        Waiting { of: self, awaited: None }
    }
}

fn ended() -> Result<Results, Failure> {
    Ok(smallvec![codec::encode(&())?])
}

/// Sends what an iterator gives, on this thread, until it ends, an item is an error, or nobody wants more.
pub fn produce<I, T: Data>(
    mut items: impl Iterator<Item = I>,
    check: impl Fn(I) -> Result<T, Failure>,
) -> Result<Results, Failure> {
    context::refuse_async()?;
    let call = Producing::current()?;
    loop {
        call.wait()?;
        let Some(item) = items.next() else { return ended() };
        call.give(&check(item)?)?;
    }
}

/// [`produce`] for async code.
pub async fn produce_async<I, T: Data>(
    items: impl futures_core::Stream<Item = I> + Send,
    check: impl Fn(I) -> Result<T, Failure> + Send,
) -> Result<Results, Failure> {
    let call = Producing::current()?;
    let mut items = pin!(items);
    let mut since_yield = 0;
    loop {
        call.waiting().await?;
        let next = std::future::poll_fn(|poller| items.as_mut().poll_next(poller)).await;
        let Some(item) = next else { return ended() };
        call.give(&check(item)?)?;
        since_yield += 1;
        if since_yield == ITEMS_BETWEEN_YIELDS {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
}

impl Runtime {
    /// Takes the next item of a stream submitted here: its ref, with one reference, or `None` at the stream's end,
    /// for which its own object says why. Until one of both is there, `waker` is woken when something has changed.
    pub fn poll_item(self: &Arc<Self>, stream: ObjectId, waker: &Waker) -> Poll<Option<ObjectId>> {
        match self.take_item(stream, || Waiter::Task(waker.clone())) {
            Taken::Item(item) => Poll::Ready(Some(item)),
            Taken::End => Poll::Ready(None),
            Taken::NotYet => Poll::Pending,
        }
    }

    /// [`Runtime::poll_item`] that waits on this thread. A slot that the calling task holds serves others meanwhile.
    /// Fails where that task is cancelled. Refused inside async code.
    pub fn next_item(self: &Arc<Self>, stream: ObjectId) -> Result<Option<ObjectId>, Failure> {
        context::refuse_async()?;
        let mut blocked = None;
        loop {
            let parker = Parker::new(1);
            match self.take_item(stream, || Waiter::Thread(parker.clone())) {
                Taken::Item(item) => return Ok(Some(item)),
                Taken::End => return Ok(None),
                Taken::NotYet => {
                    let waited = self.park(&parker, &mut blocked, None);
                    if waited.is_err() {
                        self.unregister(&[stream], |waiter| waiter.is(&parker));
                    }
                    waited?;
                }
            }
        }
    }

    fn take_item(self: &Arc<Self>, stream: ObjectId, waiter: impl FnOnce() -> Waiter) -> Taken {
        if self.ended().is_some() {
            return Taken::End;
        }
        self.step(|core, out| {
            let taken = core.take_item(stream, out);
            if taken != Taken::NotYet {
                return taken;
            }
            core.want(stream, out);
            if self.await_change(stream, waiter()) { Taken::NotYet } else { Taken::End }
        })
    }

    /// The reader looks at the value of the item that it took last, and will at those of the next.
    pub fn fetch_ahead(self: &Arc<Self>, stream: ObjectId) {
        self.step(|core, out| core.fetch_ahead(stream, out));
    }

    /// Nobody reads the stream any more: its call is cancelled if it has not ended, and what is unread goes.
    pub fn close_stream(self: &Arc<Self>, stream: ObjectId) {
        self.step(|core, out| core.close_stream(stream, out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { items: 4, bytes: 100 };

    #[test]
    fn a_window_bounds_items_and_bytes() {
        let mut state = Progress { items: 3, bytes: 99, ..Progress::default() };
        assert!(state.has_room(WINDOW));
        state.bytes = 100;
        assert!(!state.has_room(WINDOW));
        (state.items, state.bytes) = (4, 10);
        assert!(!state.has_room(WINDOW));
        state.read_items = 1;
        assert!(state.has_room(WINDOW));
        state.unread.items = 1;
        assert!(!state.has_room(WINDOW), "what was unread at the start counts too");
    }

    #[test]
    fn what_is_sent_again_does_not_wait_for_the_reader() {
        let unread = Window { items: 4, bytes: 400 };
        let mut state = Progress { skip: 2, delivered: 6, unread, ..Progress::default() };
        assert!(state.has_room(WINDOW), "skipped");
        state.next = 5;
        assert!(state.has_room(WINDOW), "sent again");
        state.items = 4;
        assert!(!state.has_room(WINDOW), "a window of it at a time");
        (state.next, state.read_items) = (6, 4);
        assert!(!state.has_room(WINDOW), "the reader has taken nothing");
        (state.read_items, state.read_bytes) = (6, 350);
        assert!(state.has_room(WINDOW));
    }
}
