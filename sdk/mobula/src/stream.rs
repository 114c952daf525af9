//! Results that are read as they are made.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use mobula_host::{codec::Data, runtime::Awaited};
use mobula_proto::{FailureKind, peer::State};

use crate::{Error, ObjectRef, Result, object::Reading};

/// How many items of a stream may be made and not yet read, unless its options say otherwise.
pub const BUFFER_ITEMS_DEFAULT: u32 = 256;
/// How many bytes of items may be made and not yet read, unless the stream's options say otherwise.
pub const BUFFER_BYTES_DEFAULT: u64 = 32 << 20;

/// What a task or method that returns `impl Iterator` or `impl Stream` gives: its items, in order, as they are made.
///
/// It is a [`Stream`] of values; [`ObjectStream::next_ref`] and [`ObjectStream::refs`] give refs instead, which can be
/// passed on without touching the items. On a plain thread, and in sync tasks, iterate over it: that waits as
/// [`ObjectRef::get`] does, and is the same typed error in async code.
///
/// - **Back-pressure.** At most [`Options::buffer_items`](crate::Options::buffer_items) items (256) and
///   [`Options::buffer_bytes`](crate::Options::buffer_bytes) bytes (32 MiB; the item that reaches it may go past it) are
///   made and not yet read. A producer at the limit waits, and its CPU serves others meanwhile. Refs that the reader
///   holds do not count.
/// - **Nearness.** While values are read one by one, the next few that lie on other nodes are on their way here already.
/// - **The end.** An `Err` item, a panic or a lost host ends the stream, after the items that came before, with one
///   error; then there is `None`. If a single item cannot be read, that item is an error and the next follows.
/// - **Failures of the system.** The function is run again, as often as its retries allow, and what was delivered is
///   skipped: so it must give the same items each time. Items in the store of a lost node are made again in the same
///   way, as long as a ref to them exists.
/// - **Giving up.** Dropping or cancelling the stream frees the items that nobody has read and stops the function:
///   async code at its next `await`, sync code at its next item.
///
/// A time limit on the call counts from its start to its last item, waiting included.
#[must_use = "dropping a stream cancels the call that makes it"]
pub struct ObjectStream<T> {
    call: Closing<T>,
    awaited: Option<Awaited>,
    reading: Option<Reading>,
    ended: bool,
}

/// The object that stands for the stream's end; with it goes the stream.
struct Closing<T>(ObjectRef<T>);

impl<T> Drop for Closing<T> {
    fn drop(&mut self) {
        self.0.raw.runtime.close_stream(self.0.raw.id);
    }
}

/// A stream whose next item somebody waits for. Who gives that up waits no more, though the stream stays.
struct Asked<'a, T>(&'a mut ObjectStream<T>);

impl<T> Drop for Asked<'_, T> {
    fn drop(&mut self) {
        self.0.awaited = None;
        if let Some(reading) = &mut self.0.reading {
            reading.rest();
        }
    }
}

impl<T> ObjectStream<T> {
    pub(crate) fn of(call: ObjectRef<T>) -> Self {
        Self { call: Closing(call), awaited: None, reading: None, ended: false }
    }

    /// The object that stands for its end.
    pub(crate) fn call(&self) -> &ObjectRef<T> {
        &self.call.0
    }

    /// Gives up on it: what is unread is freed, and the next item is the error `Cancelled`. Async code is dropped at
    /// its next `await`; sync code ends at its next item. Returns `false` where it has ended already.
    pub fn cancel(&self) -> bool {
        self.call.0.cancel()
    }

    /// The same items as refs, to be passed on without touching them.
    pub fn refs(self) -> RefStream<T> {
        RefStream(self)
    }

    /// The next item as a ref, when there is one; `None` at the end.
    pub async fn next_ref(&mut self) -> Option<Result<ObjectRef<T>>> {
        let asked = Asked(self);
        poll_fn(|poller| asked.0.poll_ref(poller)).await
    }

    /// Waits for the next item on this thread, and gives a ref to it; `None` at the end. For sync code; in async code
    /// it is a typed error, use [`ObjectStream::next_ref`] instead.
    pub fn get_next_ref(&mut self) -> Option<Result<ObjectRef<T>>> {
        if let Some(reading) = self.reading.take() {
            return Some(Ok(ObjectRef::of(reading.into_raw())));
        }
        if self.ended {
            return None;
        }
        let raw = &self.call.0.raw;
        match raw.runtime.next_item(raw.id) {
            Ok(Some(item)) => Some(Ok(ObjectRef::adopt(raw.runtime.clone(), item))),
            Ok(None) => self.end(),
            Err(failure) => Some(Err(failure.into())),
        }
    }

    fn poll_ref(&mut self, poller: &mut Context<'_>) -> Poll<Option<Result<ObjectRef<T>>>> {
        if let Some(reading) = self.reading.take() {
            return Poll::Ready(Some(Ok(ObjectRef::of(reading.into_raw()))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let raw = &self.call.0.raw;
        let next = raw.runtime.poll_item(raw.id, poller.waker());
        match next {
            Poll::Pending => {
                // While it waits, the slot of the current call serves others.
                if self.awaited.is_none() {
                    self.awaited = Awaited::begin(&raw.runtime);
                }
                Poll::Pending
            }
            Poll::Ready(Some(item)) => {
                let item = ObjectRef::adopt(raw.runtime.clone(), item);
                self.awaited = None;
                Poll::Ready(Some(Ok(item)))
            }
            Poll::Ready(None) => {
                self.awaited = None;
                Poll::Ready(self.end())
            }
        }
    }

    /// Why there are no more items: an error, once, or nothing.
    fn end<R>(&mut self) -> Option<Result<R>> {
        self.ended = true;
        let raw = &self.call.0.raw;
        match raw.runtime.state(raw.id) {
            Some(State::Failed(failure)) => Some(Err((*failure).into())),
            Some(State::Pending) | None => Some(Err(raw.runtime.ended().map_or_else(
                || Error::new(FailureKind::Internal, "the stream was forgotten before its end"),
                Error::from,
            ))),
            Some(_) => None,
        }
    }
}

impl<T: Data> ObjectStream<T> {
    /// The next item, when there is one; `None` at the end. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Result<T>> {
        let asked = Asked(self);
        poll_fn(|poller| asked.0.poll_value(poller)).await
    }

    /// Waits for the next item on this thread; `None` at the end. For sync code; in async code it is a typed error,
    /// use [`ObjectStream::next`] instead.
    pub fn get_next(&mut self) -> Option<Result<T>> {
        let item = self.get_next_ref()?;
        Some(item.and_then(|item| {
            if let Some(here) = item.raw.runtime.read_here(item.raw.id) {
                return here.map_err(Error::from).and_then(|object| item.decode(object));
            }
            self.call.0.raw.runtime.fetch_ahead(self.call.0.raw.id);
            item.get()
        }))
    }

    fn poll_value(&mut self, poller: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let Poll::Ready(object) = Pin::new(&mut *reading).poll(poller) else { return Poll::Pending };
                let item = self.reading.take().map(|reading| ObjectRef::<T>::of(reading.into_raw()));
                return Poll::Ready(item.map(|item| object.and_then(|object| item.decode(object))));
            }
            let Poll::Ready(next) = self.poll_ref(poller) else { return Poll::Pending };
            match next {
                Some(Ok(item)) => {
                    if let Some(here) = item.raw.runtime.read_here(item.raw.id) {
                        return Poll::Ready(Some(here.map_err(Error::from).and_then(|it| item.decode(it))));
                    }
                    self.call.0.raw.runtime.fetch_ahead(self.call.0.raw.id);
                    self.reading = Some(Reading::new(item.raw));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl<T: Data> Stream for ObjectStream<T> {
    type Item = Result<T>;

    fn poll_next(self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_value(poller)
    }
}

// Nothing in it is pinned in place.
impl<T> Unpin for ObjectStream<T> {}

impl<T> fmt::Debug for ObjectStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectStream({})", self.call.0.raw.id.task())
    }
}

/// Whether waiting for the next item would fail so again: in async code, or in a call that was cancelled.
fn is_for_ever(error: &Error) -> bool {
    matches!(error.kind(), FailureKind::BlockingInAsync | FailureKind::Cancelled)
}

/// The items of an [`ObjectStream`] as values, waited for on this thread.
#[derive(Debug)]
pub struct Items<T>(ObjectStream<T>);

impl<T: Data> Iterator for Items<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.0.get_next();
        self.0.ended |= matches!(&next, Some(Err(error)) if is_for_ever(error));
        next
    }
}

impl<T: Data> IntoIterator for ObjectStream<T> {
    type Item = Result<T>;
    type IntoIter = Items<T>;

    fn into_iter(self) -> Items<T> {
        Items(self)
    }
}

/// The items of an [`ObjectStream`] as refs: a [`Stream`], and an iterator for plain threads and sync tasks.
#[must_use = "dropping a stream cancels the call that makes it"]
#[derive(Debug)]
pub struct RefStream<T>(ObjectStream<T>);

impl<T> RefStream<T> {
    /// The next item, when there is one; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<ObjectRef<T>>> {
        self.0.next_ref().await
    }
}

impl<T> Stream for RefStream<T> {
    type Item = Result<ObjectRef<T>>;

    fn poll_next(self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_ref(poller)
    }
}

/// The items of an [`ObjectStream`] as refs, waited for on this thread.
#[derive(Debug)]
pub struct Refs<T>(ObjectStream<T>);

impl<T> Iterator for Refs<T> {
    type Item = Result<ObjectRef<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.0.get_next_ref();
        self.0.ended |= matches!(&next, Some(Err(error)) if is_for_ever(error));
        next
    }
}

impl<T> IntoIterator for RefStream<T> {
    type Item = Result<ObjectRef<T>>;
    type IntoIter = Refs<T>;

    fn into_iter(self) -> Refs<T> {
        Refs(self.0)
    }
}
