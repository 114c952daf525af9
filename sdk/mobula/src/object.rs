//! Refs to objects, and waiting for them.

use std::{
    fmt,
    future::{Future, IntoFuture},
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mobula_host::{
    Via,
    codec::{self, Data},
    context,
    runtime::{Awaited, Runtime, Waiting},
    site::Site,
};
use mobula_proto::{Failure, ObjectId, peer::Copy};
use mobula_store::Object;
use rkyv::{
    Archive, Deserialize, Place, Resolver, Serialize,
    rancor::{Fallible, Source},
};
use tokio::sync::oneshot;

use crate::{Error, Result, View};

mod all;

pub use all::get_all;

/// A value that is being made somewhere, or lies there.
///
/// It is an argument wherever a `T` is one. The value lives as long as a ref to it does, in whichever process.
/// Awaiting it (or a reference to it) gives the value.
pub struct ObjectRef<T> {
    pub(crate) raw: Raw,
    kind: PhantomData<fn() -> T>,
}

/// One counted reference.
pub(crate) struct Raw {
    pub(crate) id: ObjectId,
    pub(crate) runtime: Arc<Runtime>,
}

impl Clone for Raw {
    fn clone(&self) -> Self {
        self.runtime.add_ref(self.id);
        Self { id: self.id, runtime: self.runtime.clone() }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.runtime.drop_ref(self.id);
    }
}

impl<T> ObjectRef<T> {
    /// Takes over one reference.
    pub(crate) fn adopt(runtime: Arc<Runtime>, id: ObjectId) -> Self {
        Self { raw: Raw { id, runtime }, kind: PhantomData }
    }

    pub(crate) fn of(raw: Raw) -> Self {
        Self { raw, kind: PhantomData }
    }

    /// The object's name in the cluster.
    pub fn id(&self) -> ObjectId {
        self.raw.id
    }

    /// In which runtime it is which.
    pub(crate) fn origin(&self) -> (&Arc<Runtime>, ObjectId) {
        (&self.raw.runtime, self.raw.id)
    }

    /// Whether its value or its failure is there.
    pub fn is_ready(&self) -> bool {
        self.raw.runtime.is_ready(self.raw.id)
    }

    /// Gives up on the task that makes it; the ref then fails with `Cancelled`, and so do the refs to the task's other
    /// results. Async code is dropped at its next `await`; sync code is asked through [`crate::context::cancelled`], and
    /// where it waits for an object that fails as `Cancelled`. Returns `false` where the task is done already or was
    /// submitted elsewhere.
    pub fn cancel(&self) -> bool {
        self.raw.runtime.cancel(self.raw.id, false)
    }

    /// Like [`ObjectRef::cancel`], and ends the process that runs it: for tasks of `isolation = "process"`, also of those that
    /// were cancelled, or whose time has run out, and have not stopped.
    pub fn cancel_by_force(&self) -> Result<bool> {
        self.raw.runtime.check_force(self.raw.id)?;
        Ok(self.raw.runtime.cancel(self.raw.id, true))
    }
}

/// The name of an object without a hold on it: its value may go while this lives.
#[derive(Clone)]
pub struct WeakRef {
    id: ObjectId,
    runtime: Arc<Runtime>,
}

impl WeakRef {
    /// Whether the object's value or failure is there, or nobody in this process holds a ref to it any more.
    pub fn is_ready(&self) -> bool {
        self.runtime.is_ready(self.id)
    }
}

impl fmt::Debug for WeakRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeakRef({})", self.id)
    }
}

impl<T> ObjectRef<T> {
    /// Something that tells whether the object is there without keeping it.
    pub fn downgrade(&self) -> WeakRef {
        WeakRef { id: self.raw.id, runtime: self.raw.runtime.clone() }
    }

    /// One that has failed already.
    pub(crate) fn failed(error: Error) -> Self {
        let runtime = crate::cluster::current_or_stray();
        let id = runtime.failed(error.into());
        Self::adopt(runtime, id)
    }
}

impl<T: Data> ObjectRef<T> {
    /// Waits for the value on this thread. For sync code; in async code it is a typed error, await the ref
    /// instead.
    pub fn get(&self) -> Result<T> {
        crate::blocking::wait_raw(std::slice::from_ref(&self.raw), 1, None)?;
        self.decode(crate::blocking::read_raw(&self.raw)?)
    }

    /// Waits for the value on this thread and looks at it where it lies.
    pub fn view(&self) -> Result<View<T>> {
        crate::blocking::wait_raw(std::slice::from_ref(&self.raw), 1, None)?;
        Ok(View::new(crate::blocking::read_raw(&self.raw)?)?)
    }

    /// A look at the value where it lies, when it is there.
    pub fn fetch_view(&self) -> impl Future<Output = Result<View<T>>> + Send + 'static {
        let reading = Reading::new(self.raw.clone());
        async move { Ok(View::new(reading.await?)?) }
    }

    pub(crate) fn decode(&self, object: Object) -> Result<T> {
        decode(&self.raw, &object)
    }
}

fn decode<T: Data>(raw: &Raw, object: &Object) -> Result<T> {
    let _entered = context::enter(&raw.runtime, context::task(), context::is_async());
    Ok(codec::decode(object, Via::Container(raw.id))?)
}

impl<T> Clone for ObjectRef<T> {
    fn clone(&self) -> Self {
        Self { raw: self.raw.clone(), kind: PhantomData }
    }
}

impl<T> fmt::Debug for ObjectRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectRef({})", self.raw.id)
    }
}

/// How a counted reference lies in an archive.
#[derive(Archive, Serialize, Deserialize)]
pub struct RefName(ObjectId);

/// How a ref to a value lies in an archive: with the place of the value, if it lies in a store and whoever wrote the ref
/// knew. So whoever reads it need not ask the owner first.
#[derive(Archive, Serialize, Deserialize)]
pub struct PlacedRef {
    name: RefName,
    place: Option<Copy>,
}

impl Raw {
    pub(crate) fn name(&self) -> RefName {
        RefName(self.id)
    }
}

impl ArchivedRefName {
    /// Takes a reference for this process.
    pub(crate) fn receive<D>(
        &self,
        place: Option<Copy>,
        deserializer: &mut D,
    ) -> std::result::Result<Raw, D::Error>
    where
        D: Fallible + ?Sized,
        D::Error: Source,
    {
        let id: ObjectId = self.0.deserialize(deserializer)?;
        let runtime = codec::receive_ref(id, place).map_err(D::Error::new)?;
        Ok(Raw { id, runtime })
    }
}

impl<T> Archive for ObjectRef<T> {
    type Archived = ArchivedPlacedRef;
    /// As it was when it was serialized: where the value lies may change meanwhile.
    type Resolver = (PlacedRef, Resolver<PlacedRef>);

    fn resolve(&self, (placed, resolver): Self::Resolver, out: Place<Self::Archived>) {
        placed.resolve(resolver, out);
    }
}

impl<T, S> Serialize<S> for ObjectRef<T>
where
    S: Fallible + ?Sized,
    S::Error: Source,
{
    fn serialize(&self, serializer: &mut S) -> std::result::Result<Self::Resolver, S::Error> {
        let place = codec::collect_ref(&self.raw.runtime, self.raw.id).map_err(S::Error::new)?;
        let placed = PlacedRef { name: self.raw.name(), place };
        let resolver = placed.serialize(serializer)?;
        Ok((placed, resolver))
    }
}

impl<T, D> Deserialize<ObjectRef<T>, D> for ArchivedPlacedRef
where
    D: Fallible + ?Sized,
    D::Error: Source,
{
    fn deserialize(&self, deserializer: &mut D) -> std::result::Result<ObjectRef<T>, D::Error> {
        let place = self.place.deserialize(deserializer)?;
        Ok(ObjectRef { raw: self.name.receive(place, deserializer)?, kind: PhantomData })
    }
}

/// Waits until an object is final, then reads it.
pub(crate) struct Reading {
    raw: Raw,
    waits: Waits,
    answer: Option<oneshot::Receiver<Result<Object, Failure>>>,
}

impl Reading {
    pub(crate) fn new(raw: Raw) -> Self {
        Self { raw, waits: Waits::default(), answer: None }
    }

    /// Nobody asks for it for a while.
    pub(crate) fn rest(&mut self) {
        self.waits = Waits::default();
    }

    pub(crate) fn into_raw(self) -> Raw {
        self.raw
    }

    /// The object is not final, as far as was seen.
    fn waits(&self) -> bool {
        self.answer.is_none()
    }
}

impl Future for Reading {
    type Output = Result<Object>;

    fn poll(self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.answer.is_none() {
            if !this.waits.poll_ready(&this.raw, poller) {
                return Poll::Pending;
            }
            let (sender, receiver) = oneshot::channel();
            // The receiver may be gone by then: nobody wants the value any more.
            this.raw.runtime.read(this.raw.id, move |result| drop(sender.send(result)));
            this.answer = Some(receiver);
        }
        let Some(answer) = this.answer.as_mut() else { return Poll::Pending };
        match Pin::new(answer).poll(poller) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(result)) => Poll::Ready(result.map_err(Error::from)),
            Poll::Ready(Err(_)) => Poll::Ready(Err(this.raw.runtime.ended().map_or_else(
                || Error::new(mobula_proto::FailureKind::Internal, "the runtime dropped a read"),
                Error::from,
            ))),
        }
    }
}

/// What a wait has until it is over.
#[derive(Default)]
struct Waits {
    waiting: Waiting,
    /// The slot of the current call serves others.
    awaited: Option<Awaited>,
}

impl Waits {
    fn poll_ready(&mut self, raw: &Raw, poller: &Context<'_>) -> bool {
        if raw.runtime.poll_ready(raw.id, &mut self.waiting, poller.waker()) {
            self.awaited = None;
            return true;
        }
        if self.awaited.is_none() {
            self.awaited = Awaited::begin(&raw.runtime);
        }
        false
    }
}

/// The future of a value.
pub struct Get<T> {
    reading: Reading,
    kind: PhantomData<fn() -> T>,
}

impl<T: Data> Future for Get<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match Pin::new(&mut this.reading).poll(poller) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(object)) => Poll::Ready(decode(&this.reading.raw, &object)),
        }
    }
}

impl<T: Data> IntoFuture for ObjectRef<T> {
    type Output = Result<T>;
    type IntoFuture = Get<T>;

    fn into_future(self) -> Get<T> {
        Get { reading: Reading::new(self.raw), kind: PhantomData }
    }
}

impl<T: Data> IntoFuture for &ObjectRef<T> {
    type Output = Result<T>;
    type IntoFuture = Get<T>;

    fn into_future(self) -> Get<T> {
        self.clone().into_future()
    }
}

/// Waits until an object is final, whatever it is.
pub(crate) struct Settled {
    raw: Raw,
    waits: Waits,
}

impl Settled {
    pub(crate) fn new(raw: Raw) -> Self {
        Self { raw, waits: Waits::default() }
    }
}

impl Future for Settled {
    type Output = ();

    fn poll(self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.waits.poll_ready(&this.raw, poller) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Puts a value into the store of this node (or, up to 100 KiB, into this process), one copy, and gives a ref.
///
/// Fails with `StoreFull` where there was no room for five seconds (longer while the disk makes some, or calls run on this
/// node that may), and with `ObjectTooLarge` where there never will be.
#[track_caller]
pub fn put<T: Data>(value: &T) -> Result<ObjectRef<T>> {
    put_by(value, Runtime::put, Site::here())
}

/// Like [`put`], but into the store however small the value is: for what many processes of this node look at, without
/// asking this one for it. Costs more than keeping it here.
#[track_caller]
pub fn put_shared<T: Data>(value: &T) -> Result<ObjectRef<T>> {
    put_by(value, Runtime::put_stored, Site::here())
}

fn put_by<T: Data>(
    value: &T,
    put: fn(&Arc<Runtime>, &codec::Output, Site) -> std::result::Result<ObjectId, Failure>,
    site: Site,
) -> Result<ObjectRef<T>> {
    let runtime = crate::cluster::current()?;
    let id = put(&runtime, &codec::encode(value)?, site)?;
    Ok(ObjectRef::adopt(runtime, id))
}

/// Waits until `count` of the refs are ready or the time is up; gives the positions of the first so many that are
/// (fewer if time ran out), and those of all others, both in order.
pub async fn wait<T>(
    refs: &[ObjectRef<T>],
    count: usize,
    timeout: Option<Duration>,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let Some(first) = refs.first() else { return Ok(Default::default()) };
    let runtime = &first.raw.runtime;
    let ids: Vec<_> = refs.iter().map(|one| one.raw.id).collect();
    let mut waits = Waits::default();
    let enough = std::future::poll_fn(|poller| {
        match runtime.poll_ready_among(&ids, count, &mut waits.waiting, poller.waker()) {
            Some(ready) => Poll::Ready(ready),
            None => {
                waits.awaited = waits.awaited.take().or_else(|| Awaited::begin(runtime));
                Poll::Pending
            }
        }
    });
    let ready = match timeout {
        None => enough.await,
        // Running out of time is an answer here, not an error.
        Some(timeout) => match tokio::time::timeout(timeout, enough).await {
            Ok(ready) => ready,
            Err(_) => runtime.ready_among(&ids, count),
        },
    };
    Ok(split(refs.len(), &ready))
}

/// The positions in `ready`, which are in order, and all others below `len`.
pub(crate) fn split(len: usize, ready: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut rest = Vec::with_capacity(len - ready.len());
    let mut from = 0;
    for at in ready {
        rest.extend(from..*at);
        from = at + 1;
    }
    rest.extend(from..len);
    (ready.to_vec(), rest)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use mobula_proto::FailureKind;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    async fn give_up<F: IntoFuture>(wait: F) {
        assert!(tokio::time::timeout(SOON, wait).await.is_err(), "nothing comes");
    }

    #[test]
    fn a_wait_that_was_given_up_leaves_nothing_and_takes_no_other_with_it() {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let cluster = crate::Cluster::embedded().start().await.unwrap();
            let runtime = crate::cluster::current().unwrap();
            let id = runtime.pending();
            let pending = ObjectRef::<u64>::adopt(runtime.clone(), id);
            let refs = [pending.clone(), pending.clone()];
            for _ in 0..3 {
                give_up(&pending).await;
                give_up(pending.fetch_view()).await;
                give_up(Settled::new(pending.raw.clone())).await;
                give_up(wait(&refs, 1, None)).await;
                assert_eq!(wait(&refs, 1, Some(SOON)).await.unwrap(), (vec![], vec![0, 1]));
            }
            assert_eq!(runtime.waits(), 0);
            // Two waits of one task.
            let mut stays = pin!(pending.clone().into_future());
            let mut goes = Box::pin(pending.clone().into_future());
            std::future::poll_fn(|poller| {
                assert!(stays.as_mut().poll(poller).is_pending() && goes.as_mut().poll(poller).is_pending());
                assert!(goes.as_mut().poll(poller).is_pending(), "asked again, it is there once");
                Poll::Ready(())
            })
            .await;
            assert_eq!(runtime.waits(), 2);
            drop(goes);
            assert_eq!(runtime.waits(), 1);
            runtime.fail(id, Failure::new(FailureKind::Cancelled, "enough"));
            assert_eq!(stays.await.unwrap_err().kind(), FailureKind::Cancelled);
            assert_eq!(runtime.waits(), 0);
            drop((pending, refs));
            cluster.shutdown();
        });
    }
}
