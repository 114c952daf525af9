//! Several actors of one type that share their work.

use std::{
    collections::VecDeque,
    fmt,
    future::IntoFuture,
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rkyv::with::Skip;

use crate::{Actor, ActorHandle, Data, Error, ErrorKind, ObjectRef, Result, Spawn, WeakRef, object::Get};

/// Calls of a [`ActorPool::map`] that each member has at once: one that runs and one that is there when it ends.
const AHEAD: usize = 2;

/// Actors of one type that share work: each call goes to the member with the fewest calls of this pool in flight.
///
/// Only what was called through this value and its clones is counted. A pool travels as an argument, and whoever gets it
/// counts from zero: a member that is busy with calls of others, through their own copies or by its handle, looks idle
/// here. Where several callers share members whose calls take very different times, let one of them do the calling, for
/// example an actor that holds the pool.
///
/// Members that are known to have died get no calls. A call that was on its way to one fails as it does without a
/// pool (`ActorDied` or `MaybeExecuted`); where no member is left, calls fail with `ActorDied` at once.
///
/// ```
/// # use mobula::prelude::*;
/// struct Squarer;
///
/// #[mobula::actor]
/// impl Squarer {
///     fn new() -> Self {
///         Self
///     }
///
///     fn square(&mut self, x: u64) -> u64 {
///         x * x
///     }
/// }
///
/// # #[mobula::main]
/// # async fn main(_cluster: Cluster) -> mobula::Result<()> {
/// let pool = mobula::ActorPool::<Squarer>::spawn(3, |_| Squarer::spawn()).await?;
/// assert_eq!(pool.call(|squarer| squarer.square(7)).await?, 49);
/// let squares = pool.map(0..100, |squarer, x| squarer.square(x)).await?;
/// assert_eq!(squares[99], 99 * 99);
/// # Ok(())
/// # }
/// ```
#[crate::data]
pub struct ActorPool<A: Actor> {
    members: Vec<ActorHandle>,
    /// What this value and its clones have in flight, member for member.
    #[rkyv(with = Skip)]
    load: Arc<Mutex<Vec<Load>>>,
    kind: PhantomData<fn() -> A>,
}

/// The calls of one member.
#[derive(Clone, Default)]
struct Load {
    calls: VecDeque<WeakRef>,
    /// Calls that are being made, and have no ref yet.
    reserved: usize,
    /// Calls since all were looked at.
    since: usize,
}

impl Load {
    fn in_flight(&mut self) -> usize {
        while self.calls.front().is_some_and(WeakRef::is_ready) {
            self.calls.pop_front();
        }
        // One that takes long may stand in front of many that are done.
        if self.since > self.calls.len() / 2 {
            self.calls.retain(|call| !call.is_ready());
            self.since = 0;
        }
        self.calls.len() + self.reserved
    }
}

/// A place for a call at a member, from when that is chosen. It is the call's once that is made; else it comes back.
struct Reserved<'a, A: Actor> {
    pool: &'a ActorPool<A>,
    at: usize,
    made: Option<WeakRef>,
}

impl<A: Actor> Drop for Reserved<'_, A> {
    fn drop(&mut self) {
        let load = &mut self.pool.load()[self.at];
        load.reserved -= 1;
        if let Some(call) = self.made.take() {
            load.calls.push_back(call);
            load.since += 1;
        }
    }
}

impl<A: Actor> Clone for ActorPool<A> {
    fn clone(&self) -> Self {
        Self { members: self.members.clone(), load: self.load.clone(), kind: PhantomData }
    }
}

impl<A: Actor> fmt::Debug for ActorPool<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.members).finish()
    }
}

impl<A: Actor> ActorPool<A> {
    /// Of these actors.
    pub fn new(members: impl IntoIterator<Item = A::Handle>) -> Self {
        let members = members.into_iter().map(|member| ActorHandle::clone(&member)).collect();
        Self { members, load: Arc::default(), kind: PhantomData }
    }

    /// Of so many new actors, made at once; `spawn` is given their numbers, from 0. The first failure otherwise.
    pub async fn spawn(count: usize, spawn: impl Fn(usize) -> Spawn<A>) -> Result<Self> {
        let members: Vec<A::Handle> = (0..count).map(|number| spawn(number).start()).collect();
        for member in &members {
            member.constructed().await?;
        }
        Ok(Self::new(members))
    }

    /// A handle to each member, dead ones included.
    pub fn members(&self) -> Vec<A::Handle> {
        self.members.iter().cloned().map(A::Handle::from).collect()
    }

    /// Makes a new member in place of each that is known to be dead, in this value of the pool; says how many.
    pub async fn replace_dead(&mut self, spawn: impl Fn(usize) -> Spawn<A>) -> Result<usize> {
        let mut members = self.members.clone();
        // A place has another member for this value of the pool alone.
        let mut load = self.load().clone();
        // Calls that are being made count where they began, and end there.
        load.iter_mut().for_each(|load| load.reserved = 0);
        let mut replaced = 0;
        for (number, member) in members.iter_mut().enumerate().filter(|(_, member)| member.is_dead()) {
            let new: A::Handle = spawn(number).await?;
            *member = ActorHandle::clone(&new);
            load[number] = Load::default();
            replaced += 1;
        }
        *self = Self { members, load: Arc::new(Mutex::new(load)), kind: PhantomData };
        Ok(replaced)
    }

    fn load(&self) -> MutexGuard<'_, Vec<Load>> {
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        load.resize_with(self.members.len(), Load::default);
        load
    }

    /// Calls in flight at each member: made through this value or a clone of it, not done, and not given up by
    /// dropping their refs.
    pub fn in_flight(&self) -> Vec<usize> {
        self.load().iter_mut().map(Load::in_flight).collect()
    }

    /// The living member with the fewest calls in flight.
    fn choose(&self, load: &mut [Load]) -> Result<usize> {
        let alive = self.members.iter().enumerate().filter(|(_, member)| !member.is_dead());
        let least = alive.map(|(at, _)| (load[at].in_flight(), at)).min();
        least.map(|(_, at)| at).ok_or_else(|| {
            Error::new(
                ErrorKind::ActorDied,
                "every member of the pool is dead: make new ones with `replace_dead`",
            )
        })
    }

    fn try_call<R>(&self, call: impl FnOnce(&A::Handle) -> ObjectRef<R>) -> Result<ObjectRef<R>> {
        // In one step, so that others who choose meanwhile see it.
        let mut place = {
            let mut load = self.load();
            let at = self.choose(&mut load)?;
            load[at].reserved += 1;
            Reserved { pool: self, at, made: None }
        };
        // Not under the lock: it may have to wait.
        let made = call(&A::Handle::from(self.members[place.at].clone()));
        place.made = Some(made.downgrade());
        Ok(made)
    }

    /// Makes a call of the member with the fewest in flight. A pool without living members gives a ref that fails.
    pub fn call<R>(&self, call: impl FnOnce(&A::Handle) -> ObjectRef<R>) -> ObjectRef<R> {
        self.try_call(call).unwrap_or_else(ObjectRef::failed)
    }

    /// Makes one call for each item, two at a time at each member, and gives the results in the order of the items.
    /// The first failure otherwise; calls that were made go on.
    pub async fn map<I, R: Data>(
        &self,
        items: impl IntoIterator<Item = I>,
        call: impl Fn(&A::Handle, I) -> ObjectRef<R>,
    ) -> Result<Vec<R>> {
        let mut results = self.map_unordered(items, call);
        let mut all: Vec<Option<R>> = Vec::new();
        while let Some((at, result)) = results.next().await {
            if all.len() <= at {
                all.resize_with(at + 1, || None);
            }
            all[at] = Some(result?);
        }
        Ok(all.into_iter().flatten().collect())
    }

    /// [`Self::map`], but results are to be had one by one as they come, each with its item's place, and a failure
    /// ends nothing but its own call. Items are taken as members become free.
    pub fn map_unordered<I: IntoIterator, R, F: Fn(&A::Handle, I::Item) -> ObjectRef<R>>(
        &self,
        items: I,
        call: F,
    ) -> Unordered<A, I::IntoIter, R, F> {
        Unordered {
            pool: self.clone(),
            items: items.into_iter(),
            call,
            taken: 0,
            running: Vec::new(),
            reading: None,
        }
    }
}

/// Results of [`ActorPool::map_unordered`].
pub struct Unordered<A: Actor, I, R, F> {
    pool: ActorPool<A>,
    items: I,
    call: F,
    taken: usize,
    running: Vec<(usize, ObjectRef<R>)>,
    /// What is there and on its way to whoever asked for the next one, or asks next.
    reading: Option<(usize, Get<R>)>,
}

impl<A, I, R, F> Unordered<A, I, R, F>
where
    A: Actor,
    I: Iterator,
    R: Data,
    F: Fn(&A::Handle, I::Item) -> ObjectRef<R>,
{
    /// The next result, and the place of its item from 0; `None` after the last. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<(usize, Result<R>)> {
        loop {
            while self.running.len() < AHEAD * self.pool.members.len().max(1) {
                let Some(item) = self.items.next() else { break };
                let call = &self.call;
                self.running.push((self.taken, self.pool.call(|member| call(member, item))));
                self.taken += 1;
            }
            if let Some((place, get)) = &mut self.reading {
                let next = (*place, get.await);
                self.reading = None;
                return Some(next);
            }
            if self.running.is_empty() {
                return None;
            }
            if let Some(at) = self.running.iter().position(|(_, one)| one.is_ready()) {
                let (place, one) = self.running.swap_remove(at);
                self.reading = Some((place, one.into_future()));
                continue;
            }
            let refs: Vec<_> = self.running.iter().map(|(_, one)| one.clone()).collect();
            if let Err(error) = crate::wait(&refs, 1, None).await {
                let (place, _) = self.running.swap_remove(0);
                return Some((place, Err(error)));
            }
        }
    }
}
