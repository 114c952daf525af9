//! Rings that are attended to by threads which do other things in between.
//!
//! A thread that submits one call after the other, and one of the pool that runs short ones, looks at the rings every
//! few microseconds anyway. As long as they do, the doorbell says that somebody polls, and nobody wakes the watcher,
//! which would only contend with them for a processor and for the core. Since nobody can know how long user code takes,
//! the watcher takes the rings back as soon as a millisecond has passed without such a look; while nothing is attended
//! to it sleeps until it is called.

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
        self.stay_attended();
    }

    /// The thread does something short now and looks again then; the doorbell is left in state `POLLING`. Called after it
    /// has let go of `lead`, so that a watcher which found that taken, and went to sleep, is roused again.
    pub(super) fn stay_attended(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut *self.attended.lock(), true)
            && let Some(doorbell) = &self.doorbell
        {
            doorbell.rouse();
        }
    }

    /// How long the watcher may sleep without a call.
    pub(super) fn watch_timeout(&self) -> Option<Duration> {
        self.attended.lock().then_some(GUARD_WAIT)
    }

    /// The watcher was not called: takes the rings back if nobody has looked since it saw so many `looks`.
    pub(super) fn check_attention(&self, runtime: &Arc<Runtime>, looks: &mut u32) {
        let mut attended = self.attended.lock();
        let now = self.looks.load(Ordering::Relaxed);
        if std::mem::replace(looks, now) == now && std::mem::replace(&mut *attended, false) {
            self.hand_back(runtime);
        }
    }

    /// The thread will be busy for longer.
    pub(crate) fn end_attention(&self, runtime: &Arc<Runtime>) {
        if *self.attended.lock() {
            self.hand_back(runtime);
        }
    }

    /// To the watcher; unless a thread leads, which does that itself.
    fn hand_back(&self, runtime: &Arc<Runtime>) {
        let Some(doorbell) = &self.doorbell else { return };
        let Some(_lead) = self.lead.try_lock() else { return };
        doorbell.leave();
        self.after_leaving(runtime, doorbell);
    }
}
