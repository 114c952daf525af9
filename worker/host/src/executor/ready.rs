//! Calls that wait for a thread of the pool, and how much work they are.

use std::{collections::VecDeque, sync::atomic::Ordering};

use super::Run;
use crate::registry::Function;

/// A call that may take longer than this keeps its thread from others for longer than waking another takes.
const WAKE_NANOS: u64 = 30_000;
/// What is ready must be worth so much time before another thread is woken to share it: several wakings, since both
/// threads then contend for what is left.
const SHARE_NANOS: u64 = 250_000;

/// How far into the queue an estimate looks.
const ESTIMATE_MAX: usize = 16;

/// Whether a call of this function may keep a thread for longer than waking another takes.
pub(super) fn is_long(function: &Function) -> bool {
    let nanos = function.nanos.load(Ordering::Relaxed);
    // Of one that never ran it is not known.
    nanos == 0 || nanos >= WAKE_NANOS
}

/// First in, first out. Functions lie beside their calls, so that an estimate touches no call.
#[derive(Default)]
pub(super) struct Ready(VecDeque<(&'static Function, Box<Run>)>);

impl Ready {
    pub(super) fn push(&mut self, run: Box<Run>) {
        self.0.push_back((run.function, run));
    }

    pub(super) fn pop(&mut self) -> Option<Box<Run>> {
        self.0.pop_front().map(|(_, run)| run)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of it is quick work, and there is some.
    pub(super) fn is_short(&self) -> bool {
        !self.is_empty() && !self.0.iter().take(ESTIMATE_MAX).any(|(function, _)| is_long(function))
    }

    /// Whether it is worth waking another thread for; its first call is somebody's already if `first_is_taken`.
    pub(super) fn is_worth_sharing(&self, first_is_taken: bool) -> bool {
        let (mut nanos, mut seen) = (0, 0);
        for (function, _) in self.0.iter().skip(usize::from(first_is_taken)).take(ESTIMATE_MAX) {
            if is_long(function) {
                return true;
            }
            nanos += function.nanos.load(Ordering::Relaxed);
            seen += 1;
        }
        seen > 0 && nanos / seen * self.len() as u64 >= SHARE_NANOS
    }
}
