//! A place where processes wait for each other.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::while_wanted;
use crate::{Error, ErrorKind, Lifeline, ObjectRef, Result};

/// Lets so many parties go on together, again and again, in an actor. Its handle travels as an argument; the barrier
/// lives as long as one does, and ends with the process that made it (a task's, where a task did).
///
/// A party is here while it waits: one that is cancelled or gives up its wait counts no longer, nor does one whose
/// process dies. The barrier watches a [`Lifeline`] of each, so it learns that as soon as the cluster does.
///
/// ```
/// # use mobula::prelude::*;
/// # use std::time::Duration;
/// #[mobula::task(cpu = 0)]
/// async fn step(barrier: mobula::Barrier) -> mobula::Result<u64> {
///     // … this party's part …
///     barrier.wait(Duration::from_secs(10)).await
/// }
/// # #[mobula::main]
/// # async fn main(_cluster: Cluster) -> mobula::Result<()> {
/// let barrier = mobula::Barrier::new(3).await?;
/// let steps: Vec<_> = (0..3).map(|_| step.remote(barrier.clone())).collect();
/// assert_eq!(mobula::get_all(&steps).await?, [1, 1, 1]);
/// # Ok(())
/// # }
/// ```
#[crate::data]
#[derive(Clone, Debug)]
pub struct Barrier {
    meeting: MeetingHandle,
}

impl Barrier {
    /// For so many parties; at least 1.
    pub async fn new(parties: u32) -> Result<Self> {
        // All that wait are running calls.
        let room = parties.max(1).saturating_mul(2);
        let meeting = Meeting::spawn(parties.max(1)).options(|options| options.group("wait", room)).await?;
        Ok(Self { meeting })
    }

    /// Waits until all parties are here; gives the generation, counted from 1, which is the same for all of them.
    ///
    /// If this party has waited for so long in vain, it and all that wait with it fail with `TimedOut`, and the next
    /// to come begin anew: so a party that never comes is noticed by the others' time. Who drops the wait before its
    /// end has left; the others wait on, for somebody else in its place.
    pub async fn wait(&self, longest: Duration) -> Result<u64> {
        let longest_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        let here = Lifeline::new()?;
        match self.meeting.wait(Party { longest_ms, here: here.watch() }).await? {
            Outcome::Complete(generation) => Ok(generation),
            Outcome::Broken { came, parties } => Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "{came} of {parties} parties came to the barrier before the time of one of them was up"
                ),
            )),
        }
    }

    /// How many parties are here now, of those for which it waits.
    pub async fn waiting(&self) -> Result<u32> {
        self.meeting.waiting().await
    }
}

#[crate::data]
struct Party {
    longest_ms: u64,
    here: ObjectRef<()>,
}

/// How a generation ended.
#[crate::data]
#[derive(Clone, Copy)]
enum Outcome {
    Complete(u64),
    Broken { came: u32, parties: u32 },
}

struct Meeting {
    parties: u32,
    state: Mutex<State>,
}

struct State {
    /// Complete ones.
    generations: u64,
    round: u64,
    /// The parties, by what ends with each of them.
    here: Vec<ObjectRef<()>>,
    ends: watch::Sender<Option<Outcome>>,
}

impl State {
    /// Ends the round for all who are here, and begins the next.
    fn end(&mut self, outcome: Outcome) {
        self.ends.send_replace(Some(outcome));
        self.ends = watch::Sender::new(None);
        self.here.clear();
        self.round += 1;
    }

    /// How many parties are here, without those that are known to have left.
    fn count(&mut self) -> u32 {
        self.here.retain(|party| !party.is_ready());
        u32::try_from(self.here.len()).unwrap_or(u32::MAX)
    }
}

impl Meeting {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[crate::actor(name = "mobula::Barrier", groups(wait = 1024))]
impl Meeting {
    fn new(parties: u32) -> Self {
        let state = State { generations: 0, round: 0, here: Vec::new(), ends: watch::Sender::new(None) };
        Self { parties, state: Mutex::new(state) }
    }

    #[method(group = "wait")]
    async fn wait(&self, party: Party) -> Outcome {
        let Party { longest_ms, here } = party;
        let (mut end, round) = {
            let mut state = self.state();
            let (end, round) = (state.ends.subscribe(), state.round);
            state.here.push(here.clone());
            // Whoever left is looked for once it matters, so that many parties do not each look at all others.
            if state.here.len() >= self.parties as usize && state.count() == self.parties {
                state.generations += 1;
                let outcome = Outcome::Complete(state.generations);
                state.end(outcome);
            }
            (end, round)
        };
        let ended = async { end.wait_for(Option::is_some).await.ok().and_then(|outcome| *outcome) };
        if let Some(Some(outcome)) = while_wanted(ended, longest_ms, Some(&here)).await {
            return outcome;
        }
        let mut state = self.state();
        let broken = Outcome::Broken { came: state.count(), parties: self.parties };
        if state.round == round {
            // One that has left ends nothing for the others, and nobody hears what it is told.
            if !here.is_ready() {
                state.end(broken);
            }
            return broken;
        }
        // It ended between the two.
        drop(state);
        let outcome = *end.borrow();
        outcome.unwrap_or(broken)
    }

    fn waiting(&self) -> u32 {
        self.state().count()
    }
}
