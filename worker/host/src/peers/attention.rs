//! Rings that are attended to by threads which do other things in between.
//!
//! A thread that submits one call after the other, and one of the pool that runs short ones, looks at the rings every
//! few microseconds anyway. As long as they do, the doorbell says that somebody polls, and nobody wakes the watcher,
//! which would only contend with them for a processor and for the core. A guard hands the rings back as soon as a
//! millisecond has passed without such a look, since nobody can know how long user code takes; while nothing is attended
//! to there is no guard either.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::Peers;
use crate::runtime::Runtime;

/// Every so many submitted calls the submitter drains the rings.
const SUBMITTED_CALLS: u32 = 16;
/// Longest that something may lie in a ring because a thread was expected to look that then did something else; twice
/// that at worst.
const GUARD_WAIT: Duration = Duration::from_millis(1);

impl Peers {
    /// After each call that a thread submits: now and then it drains the rings.
    #[inline]
    pub(crate) fn submitted(&self, runtime: &Arc<Runtime>) {
        if self.submitted.fetch_add(1, Ordering::Relaxed) % SUBMITTED_CALLS == SUBMITTED_CALLS - 1 {
            self.look(runtime);
        }
    }

    fn look(&self, runtime: &Arc<Runtime>) {
        let Some(doorbell) = &self.doorbell else { return };
        let Some(lead) = self.lead.try_lock() else { return };
        doorbell.begin_polling();
        self.drain(runtime);
        drop(lead);
        self.stay_attended(runtime);
    }

    /// The thread does something short now and looks again then; the doorbell is left in state `POLLING`. Called after it
    /// has let go of `lead`, so that a guard which found that taken, and went, is followed by another.
    pub(super) fn stay_attended(&self, runtime: &Arc<Runtime>) {
        self.looks.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut *self.attended.lock(), true) {
            self.guard_attention(runtime);
        }
    }

    /// The thread will be busy for longer.
    pub(crate) fn end_attention(&self) {
        if *self.attended.lock() {
            self.hand_back();
        }
    }

    /// To the watcher; unless a thread leads, which does that itself.
    fn hand_back(&self) {
        let Some(doorbell) = &self.doorbell else { return };
        let Some(_lead) = self.lead.try_lock() else { return };
        doorbell.leave();
        self.after_leaving(doorbell);
    }

    fn guard_attention(&self, runtime: &Arc<Runtime>) {
        let weak = Arc::downgrade(runtime);
        let mut before = self.looks.load(Ordering::Relaxed);
        runtime.user().spawn(async move {
            loop {
                tokio::time::sleep(GUARD_WAIT).await;
                let Some(runtime) = weak.upgrade() else { return };
                let peers = runtime.peers();
                let now = peers.looks.load(Ordering::Relaxed);
                if std::mem::replace(&mut before, now) == now {
                    let mut attended = peers.attended.lock();
                    *attended = false;
                    return peers.hand_back();
                }
            }
        });
    }
}
