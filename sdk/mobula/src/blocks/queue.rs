//! A queue that any process puts into and takes from.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mobula_proto::ObjectId;
use rkyv::with::Skip;
use tokio::{sync::Notify, time::Instant};

use super::{end_in, left, turn, while_wanted};
use crate::{Data, Error, ErrorKind, Lifeline, ObjectRef, Packed, Result};

/// A first-in-first-out queue with a bound, in an actor. Its handle travels as an argument; the queue lives
/// as long as one does, and ends with the process that made it (a task's, where a task did).
///
/// Items are kept in the memory of the queue's process (refs in them stay refs, so put large values with
/// [`crate::put`] and queue the refs).
///
/// No item is lost on its way: it keeps its place, and counts for the bound, until `get` returns it. Where a `get` is
/// dropped before, or its process dies, the item is the next to be got, though others may have got what came behind it
/// meanwhile. Whoever drops a `get` and then asks again through the same handle gets items in order all the same; that
/// takes one more exchange with the queue. What `get` has returned nobody else gets, and it is gone if the process that
/// has it dies. Only where that dies before the queue has heard of it, within moments, another gets the item too.
///
/// ```
/// # use mobula::prelude::*;
/// # #[mobula::main]
/// # async fn main(_cluster: Cluster) -> mobula::Result<()> {
/// let queue = mobula::Queue::<u64>::new(100).await?;
/// queue.put(&1).await?;
/// queue.put(&2).await?;
/// queue.close().await?;
/// assert_eq!(queue.get().await?, Some(1));
/// assert_eq!(queue.get().await?, Some(2));
/// assert_eq!(queue.get().await?, None);
/// # Ok(())
/// # }
/// ```
#[crate::data]
pub struct Queue<T> {
    store: StoreHandle,
    /// Gets of this process that were dropped, and of which the queue has not said yet that it knows.
    #[rkyv(with = Skip)]
    dropped: Arc<Mutex<Vec<ObjectRef<()>>>>,
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), dropped: self.dropped.clone(), kind: PhantomData }
    }
}

impl<T> std::fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({})", self.store.id())
    }
}

impl<T: Data> Queue<T> {
    /// An empty queue of at most so many items; at least 1.
    pub async fn new(capacity: u32) -> Result<Self> {
        Ok(Self { store: Store::spawn(capacity.max(1)).await?, dropped: Arc::default(), kind: PhantomData })
    }

    /// Puts an item behind all others; waits for as long as the queue is full. Fails with `Closed` if it is closed. Where
    /// this is dropped before its end, the item may be in the queue or not.
    pub async fn put(&self, item: &T) -> Result<()> {
        self.put_until(item, None).await
    }

    /// [`Self::put`]; fails with `TimedOut` if the queue stays full for so long.
    pub async fn put_within(&self, item: &T, wait: Duration) -> Result<()> {
        self.put_until(item, end_in(wait)).await
    }

    async fn put_until(&self, item: &T, end: Option<Instant>) -> Result<()> {
        let item = crate::put(&Packed::new(item)?)?;
        let mut lifeline = None;
        loop {
            let left = left(end, || "the queue stayed full for as long as was given".to_owned())?;
            let wanted = lifeline.as_ref().map(Lifeline::watch);
            match self.store.put(&item, Wait { ms: turn(left), wanted }).await? {
                Put::Done => return Ok(()),
                Put::Full if lifeline.is_none() => lifeline = Some(Lifeline::new()?),
                Put::Full => {}
                Put::Closed => {
                    return Err(Error::new(ErrorKind::Closed, "the queue is closed: nothing may be put"));
                }
            }
        }
    }

    /// Takes the first item; waits while there is none. `None` once the queue is closed and empty.
    pub async fn get(&self) -> Result<Option<T>> {
        Ok(self.get_until(1, None).await?.pop())
    }

    /// [`Self::get`]; fails with `TimedOut` if nothing comes for so long.
    pub async fn get_within(&self, wait: Duration) -> Result<Option<T>> {
        Ok(self.get_until(1, end_in(wait)).await?.pop())
    }

    /// Takes the first items, at most so many and as many as are there; waits for the first. Empty once the queue is
    /// closed and empty. Fails with `TimedOut` if nothing comes for so long.
    pub async fn get_batch(&self, most: u32, wait: Option<Duration>) -> Result<Vec<T>> {
        self.get_until(most.max(1), wait.and_then(end_in)).await
    }

    async fn get_until(&self, most: u32, end: Option<Instant>) -> Result<Vec<T>> {
        loop {
            self.take_back().await?;
            let left = left(end, || "nothing came into the queue for as long as was given".to_owned())?;
            let getter = Getter { lifeline: Lifeline::new()?, dropped: &self.dropped };
            let wish = Wish { most, wait_ms: turn(left), getter: getter.lifeline.watch() };
            let items = self.store.get(wish).await?;
            // Nothing is awaited from here on: what the queue is told to be here is returned.
            getter.lifeline.complete()?;
            if let Some(items) = items {
                return items.iter().map(Packed::open).collect();
            }
        }
    }

    /// Waits until what was on its way to gets that were dropped is at its place again, so that the next here does not
    /// overtake it.
    async fn take_back(&self) -> Result<()> {
        let dropped = lock(&self.dropped).clone();
        if !dropped.is_empty() {
            let ids: HashSet<_> = dropped.iter().map(ObjectRef::id).collect();
            self.store.take_back(dropped).await?;
            lock(&self.dropped).retain(|getter| !ids.contains(&getter.id()));
        }
        Ok(())
    }

    /// Lets nothing in any more: puts fail with `Closed`, also those that wait. What is there can still be taken.
    pub async fn close(&self) -> Result<()> {
        self.store.close().await
    }

    /// How many items are there now, without those on their way to who gets them.
    pub async fn len(&self) -> Result<u32> {
        self.store.len().await
    }

    /// Whether there are none now.
    pub async fn is_empty(&self) -> Result<bool> {
        Ok(self.len().await? == 0)
    }
}

/// A get that is under way.
struct Getter<'a> {
    lifeline: Lifeline,
    dropped: &'a Mutex<Vec<ObjectRef<()>>>,
}

impl Drop for Getter<'_> {
    fn drop(&mut self) {
        let watch = self.lifeline.watch();
        if !watch.is_ready() {
            lock(self.dropped).push(watch);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a put waits, and for whom.
#[crate::data]
struct Wait {
    ms: u64,
    /// Not at all without one.
    wanted: Option<ObjectRef<()>>,
}

/// What a get asks for.
#[crate::data]
struct Wish {
    most: u32,
    wait_ms: u64,
    /// Has a value once the items are there, and fails with who asked for them.
    getter: ObjectRef<()>,
}

/// What became of an item.
#[crate::data]
enum Put {
    Done,
    Full,
    Closed,
}

struct Store {
    capacity: usize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Something came, or the queue was closed.
    came: Notify,
    /// Something went, or the queue was closed.
    went: Notify,
}

#[derive(Default)]
struct State {
    /// By their places.
    items: BTreeMap<u64, Packed>,
    last_place: u64,
    /// What was handed to getters which have not said yet that they have it, and how many items that is.
    handed: HashMap<ObjectId, Batch>,
    handed_items: usize,
    closed: bool,
}

/// Items with their places.
type Batch = Vec<(u64, Packed)>;

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Hands over the first items, at most so many; none where none will ever come. `None` if nothing is there and
    /// something may come.
    fn hand(&self, most: u32, getter: &ObjectRef<()>) -> Option<Vec<Packed>> {
        let mut state = self.state();
        if getter.is_ready() {
            // It has gone, and nobody hears the answer. What it was woken for is the next one's.
            self.came.notify_one();
            return Some(Vec::new());
        }
        // What is on its way to somebody else may come back.
        if state.items.is_empty() && (!state.closed || state.handed_items > 0) {
            return None;
        }
        let batch: Batch = std::iter::from_fn(|| state.items.pop_first()).take(most as usize).collect();
        let items = batch.iter().map(|(_, item)| item.clone()).collect();
        if !batch.is_empty() {
            state.handed_items += batch.len();
            state.handed.insert(getter.id(), batch);
        }
        if !state.items.is_empty() || state.closed {
            self.came.notify_one();
        }
        Some(items)
    }

    /// Waits until what was handed to somebody is there, or that one has gone: then it is at its place again.
    async fn settle(&self, getter: ObjectRef<()>) {
        let id = getter.id();
        let is_there = getter.await.is_ok();
        let mut state = self.state();
        let Some(batch) = state.handed.remove(&id) else { return };
        state.handed_items -= batch.len();
        if is_there {
            self.went.notify_one();
        } else {
            state.items.extend(batch);
        }
        // The end of a closed queue may be now.
        if !is_there || state.closed {
            self.came.notify_one();
        }
    }
}

// Who waits for an item must not keep out who brings one, nor the other way round.
#[crate::actor(name = "mobula::Queue", groups(put = 4096, get = 4096))]
impl Store {
    fn new(capacity: u32) -> Self {
        Self { capacity: capacity as usize, shared: Arc::default() }
    }

    #[method(group = "put")]
    async fn put(&self, item: Packed, wait: Wait) -> Put {
        let put = async {
            let mut item = Some(item);
            loop {
                let went = self.shared.went.notified();
                {
                    let mut state = self.shared.state();
                    if state.closed {
                        return Put::Closed;
                    }
                    // What was handed to somebody may come back to its place.
                    if state.items.len() + state.handed_items < self.capacity {
                        state.last_place += 1;
                        let place = state.last_place;
                        state.items.extend(item.take().map(|item| (place, item)));
                        self.shared.came.notify_one();
                        if state.items.len() + state.handed_items < self.capacity {
                            self.shared.went.notify_one();
                        }
                        return Put::Done;
                    }
                }
                went.await;
            }
        };
        while_wanted(put, wait.ms, wait.wanted.as_ref()).await.unwrap_or(Put::Full)
    }

    #[method(group = "get")]
    async fn get(&self, wish: Wish) -> Option<Vec<Packed>> {
        let Wish { most, wait_ms, getter } = wish;
        let get = async {
            loop {
                let came = self.shared.came.notified();
                if let Some(items) = self.shared.hand(most, &getter) {
                    return items;
                }
                came.await;
            }
        };
        let items = while_wanted(get, wait_ms, Some(&getter)).await?;
        if !items.is_empty() {
            let shared = self.shared.clone();
            drop(mobula_telemetry::task::spawn("queue", async move { shared.settle(getter).await }));
        }
        Some(items)
    }

    /// Goes on once these are known to have gone; none of them is handed anything any more.
    #[method(group = "get")]
    async fn take_back(&self, dropped: Vec<ObjectRef<()>>) {
        for getter in dropped {
            self.shared.settle(getter).await;
        }
    }

    fn close(&self) {
        self.shared.state().closed = true;
        // Each who wakes wakes the next.
        self.shared.came.notify_one();
        self.shared.went.notify_waiters();
    }

    fn len(&self) -> u32 {
        u32::try_from(self.shared.state().items.len()).unwrap_or(u32::MAX)
    }
}
