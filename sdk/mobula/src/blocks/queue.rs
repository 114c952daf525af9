//! A queue that any process puts into and takes from.

use std::{
    collections::VecDeque,
    marker::PhantomData,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{left, turn, while_wanted};
use crate::{Data, Error, ErrorKind, Lifeline, ObjectRef, Packed, Result};

/// A first-in-first-out queue with a bound, in an actor. Its handle travels as an argument; the queue lives as long as
/// one does.
///
/// Items are kept in the memory of the queue's process (refs in them stay refs, so put large values with
/// [`crate::put`] and queue the refs). An item that was handed to a consumer which then dies is gone with it.
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
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), kind: PhantomData }
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
        Ok(Self { store: Store::spawn(capacity.max(1)).await?, kind: PhantomData })
    }

    /// Puts an item behind all others; waits for as long as the queue is full. Fails with `Returned` if it is closed.
    pub async fn put(&self, item: &T) -> Result<()> {
        self.put_until(item, None).await
    }

    /// [`Self::put`]; fails with `TimedOut` if the queue stays full for so long.
    pub async fn put_within(&self, item: &T, wait: Duration) -> Result<()> {
        self.put_until(item, Some(Instant::now() + wait)).await
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
                    return Err(Error::new(ErrorKind::Returned, "the queue is closed: nothing may be put"));
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
        Ok(self.get_until(1, Some(Instant::now() + wait)).await?.pop())
    }

    /// Takes the first items, at most so many and as many as are there; waits for the first. Empty once the queue is
    /// closed and empty. Fails with `TimedOut` if nothing comes for so long.
    pub async fn get_batch(&self, most: u32, wait: Option<Duration>) -> Result<Vec<T>> {
        self.get_until(most.max(1), wait.map(|wait| Instant::now() + wait)).await
    }

    async fn get_until(&self, most: u32, end: Option<Instant>) -> Result<Vec<T>> {
        let open = |items: Vec<Packed>| items.iter().map(Packed::open).collect::<Result<Vec<T>>>();
        if let Some(items) = self.store.take(most).await? {
            return open(items);
        }
        let lifeline = Lifeline::new()?;
        loop {
            let left = left(end, || "nothing came into the queue for as long as was given".to_owned())?;
            let wait = Wait { ms: turn(left), wanted: Some(lifeline.watch()) };
            if let Some(items) = self.store.get(most, wait).await? {
                return open(items);
            }
        }
    }

    /// Lets nothing in any more; what is there can still be taken.
    pub async fn close(&self) -> Result<()> {
        self.store.close().await
    }

    /// How many items are there now.
    pub async fn len(&self) -> Result<u32> {
        self.store.len().await
    }

    /// Whether there are none now.
    pub async fn is_empty(&self) -> Result<bool> {
        Ok(self.len().await? == 0)
    }
}

/// How long a call waits, and for whom.
#[crate::data]
struct Wait {
    ms: u64,
    /// Not at all without one.
    wanted: Option<ObjectRef<()>>,
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
    state: Mutex<State>,
    /// Something came, or the queue was closed.
    came: Notify,
    /// Something went, or the queue was closed.
    went: Notify,
}

#[derive(Default)]
struct State {
    items: VecDeque<Packed>,
    closed: bool,
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Who waits for an item must not keep out who brings one, nor the other way round.
#[crate::actor(name = "mobula::Queue", groups(put = 4096, get = 4096))]
impl Store {
    fn new(capacity: u32) -> Self {
        Self {
            capacity: capacity as usize,
            state: Mutex::default(),
            came: Notify::new(),
            went: Notify::new(),
        }
    }

    #[method(group = "put")]
    async fn put(&self, item: Packed, wait: Wait) -> Put {
        let put = async {
            let mut item = Some(item);
            loop {
                let went = self.went.notified();
                {
                    let mut state = self.state();
                    if state.closed {
                        return Put::Closed;
                    }
                    if state.items.len() < self.capacity {
                        state.items.extend(item.take());
                        self.came.notify_one();
                        if state.items.len() < self.capacity {
                            self.went.notify_one();
                        }
                        return Put::Done;
                    }
                }
                went.await;
            }
        };
        while_wanted(put, wait.ms, wait.wanted.as_ref()).await.unwrap_or(Put::Full)
    }

    /// What is there, at most so many; `None` if nothing is and something may come.
    fn take(&self, most: u32) -> Option<Vec<Packed>> {
        let mut state = self.state();
        if state.items.is_empty() && !state.closed {
            return None;
        }
        let many = state.items.len().min(most as usize);
        let items: Vec<_> = state.items.drain(..many).collect();
        if !items.is_empty() {
            self.went.notify_one();
        }
        if !state.items.is_empty() || state.closed {
            self.came.notify_one();
        }
        Some(items)
    }

    #[method(group = "get")]
    async fn get(&self, most: u32, wait: Wait) -> Option<Vec<Packed>> {
        let get = async {
            loop {
                let came = self.came.notified();
                if let Some(items) = self.take(most) {
                    return items;
                }
                came.await;
            }
        };
        while_wanted(get, wait.ms, wait.wanted.as_ref()).await
    }

    fn close(&self) {
        self.state().closed = true;
        // Each who wakes wakes the next.
        self.came.notify_one();
        self.went.notify_waiters();
    }

    fn len(&self) -> u32 {
        u32::try_from(self.state().items.len()).unwrap_or(u32::MAX)
    }
}
