//! Permits that are shared by processes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{end_in, left, turn, while_wanted};
use crate::{Error, ErrorKind, Lifeline, ObjectRef, Result};

/// So many permits, in an actor; whoever acquires some holds a [`Permit`] until it is dropped. Its handle travels as
/// an argument; the semaphore lives as long as one does, and ends with the process that made it (a task's, where a
/// task did).
///
/// Who asked first is served first. Permits come back when the [`Permit`] is dropped, and when the process that holds
/// it dies: the semaphore watches a [`Lifeline`] of each holder, so it learns that as soon as the cluster does.
///
/// ```
/// # use mobula::prelude::*;
/// # #[mobula::main]
/// # async fn main(_cluster: Cluster) -> mobula::Result<()> {
/// let licences = mobula::Semaphore::new(2).await?;
/// let permit = licences.acquire(1).await?;
/// // … use what is limited …
/// drop(permit);
/// # Ok(())
/// # }
/// ```
#[crate::data]
#[derive(Clone, Debug)]
pub struct Semaphore {
    permits: PermitsHandle,
}

/// Permits that are held until this is dropped.
#[derive(Debug)]
#[must_use = "the permits go back when it is dropped"]
pub struct Permit {
    /// The semaphore lives while its permits are out.
    _semaphore: Semaphore,
    _lifeline: Lifeline,
}

impl Semaphore {
    /// With so many permits.
    pub async fn new(permits: u32) -> Result<Self> {
        Ok(Self { permits: Permits::spawn(permits).await? })
    }

    /// So many permits at once; waits until they are free. Fails with `Limit` if there are not that many in all.
    pub async fn acquire(&self, permits: u32) -> Result<Permit> {
        self.acquire_until(permits, None).await
    }

    /// [`Self::acquire`]; fails with `TimedOut` if they do not become free for so long.
    pub async fn acquire_within(&self, permits: u32, wait: Duration) -> Result<Permit> {
        self.acquire_until(permits, end_in(wait)).await
    }

    async fn acquire_until(&self, permits: u32, end: Option<Instant>) -> Result<Permit> {
        let lifeline = Lifeline::new()?;
        let mut claim = 0;
        loop {
            let left =
                left(end, || format!("{permits} permits did not become free for as long as was given"))?;
            let wish = Wish { permits, claim, wait_ms: turn(left), holder: lifeline.watch() };
            match self.permits.acquire(wish).await? {
                Acquired::Yes => return Ok(Permit { _semaphore: self.clone(), _lifeline: lifeline }),
                // Its place in the queue is kept.
                Acquired::NotYet(number) => claim = number,
                Acquired::Never(all) => {
                    return Err(Error::new(
                        ErrorKind::Limit,
                        format!("{permits} permits are wanted, and the semaphore has {all} in all"),
                    ));
                }
            }
        }
    }

    /// How many permits are free now.
    pub async fn available(&self) -> Result<u32> {
        self.permits.available().await
    }
}

#[crate::data]
struct Wish {
    permits: u32,
    /// Of a wish that was made before; 0 for a new one.
    claim: u64,
    wait_ms: u64,
    holder: ObjectRef<()>,
}

#[crate::data]
enum Acquired {
    Yes,
    NotYet(u64),
    Never(u32),
}

struct Permits {
    all: u32,
    state: Arc<Mutex<State>>,
}

struct State {
    free: u32,
    last_claim: u64,
    waiting: VecDeque<Claim>,
    /// Granted claims that nobody has heard of yet.
    granted: Vec<u64>,
}

struct Claim {
    number: u64,
    permits: u32,
    /// Tells the call that waits now, if one does.
    granted: Option<oneshot::Sender<()>>,
}

impl State {
    /// Hands out what is free, in the order of the claims.
    fn grant(&mut self) {
        while self.waiting.front().is_some_and(|claim| claim.permits <= self.free) {
            let Some(claim) = self.waiting.pop_front() else { return };
            self.free -= claim.permits;
            self.granted.push(claim.number);
            if let Some(granted) = claim.granted {
                // Nobody listens between two calls of one holder; the next finds it among the granted.
                let _unheard = granted.send(());
            }
        }
    }

    /// The holder of a claim is gone.
    fn end(&mut self, number: u64, permits: u32) {
        let before = self.waiting.len();
        self.waiting.retain(|claim| claim.number != number);
        self.granted.retain(|granted| *granted != number);
        if self.waiting.len() == before {
            self.free += permits;
        }
        self.grant();
    }

    fn take_granted(&mut self, number: u64) -> bool {
        let at = self.granted.iter().position(|granted| *granted == number);
        at.map(|at| self.granted.swap_remove(at)).is_some()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

// Permits come back without a call, so who waits keeps out nobody but who waits too.
#[crate::actor(name = "mobula::Semaphore", groups(acquire = 4096))]
impl Permits {
    fn new(permits: u32) -> Self {
        let state = State { free: permits, last_claim: 0, waiting: VecDeque::new(), granted: Vec::new() };
        Self { all: permits, state: Arc::new(Mutex::new(state)) }
    }

    #[method(group = "acquire")]
    async fn acquire(&self, wish: Wish) -> Acquired {
        let Wish { permits, claim, wait_ms, holder } = wish;
        if permits > self.all {
            return Acquired::Never(self.all);
        }
        let (sender, granted) = oneshot::channel();
        let number = {
            let mut state = lock(&self.state);
            match state.waiting.iter_mut().find(|waiting| waiting.number == claim) {
                Some(waiting) => {
                    waiting.granted = Some(sender);
                    claim
                }
                None if claim != 0 => {
                    // It was granted between two calls.
                    state.take_granted(claim);
                    return Acquired::Yes;
                }
                None => {
                    state.last_claim += 1;
                    let number = state.last_claim;
                    state.waiting.push_back(Claim { number, permits, granted: Some(sender) });
                    number
                }
            }
        };
        if claim == 0 {
            let (state, watch) = (self.state.clone(), holder.clone());
            drop(mobula_telemetry::task::spawn("permit", async move {
                // It ends with the holder, one way or the other; it has no value.
                let _ended = watch.await;
                lock(&state).end(number, permits);
            }));
        }
        lock(&self.state).grant();
        // The channel also ends when the holder is gone, with whom the answer goes.
        while_wanted(granted, wait_ms, Some(&holder)).await;
        if lock(&self.state).take_granted(number) { Acquired::Yes } else { Acquired::NotYet(number) }
    }

    fn available(&self) -> u32 {
        lock(&self.state).free
    }
}
