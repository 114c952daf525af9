//! How often places are looked for in vain.
//!
//! What comes free on any node may be what a group waits for, and only trying tells. A large group takes long to try, and
//! where it lacks nodes that are not there, each try is in vain. So what a try took must be paid for in time before the
//! next one, at a rate at which all that wait take at most twice [`LOOKS_EACH`] looks in [`SPAN`]. The cheaper of two counts for each:
//!
//! - that all are tried equally often: it waits for as long as one try of each would take,
//! - that all get an equal part of the looks: it waits for as many tries of its own as there are others.
//!
//! So what is small is not kept from its place by what is large, nor the last by those before it. What is paid for within
//! [`SPAN`] need not wait: few groups, or small ones, are tried whenever something comes free.

use std::collections::{BTreeMap, BTreeSet};

use super::search::{LOOKS_EACH, SPAN};
use crate::{Millis, shapes::ShapeId};

/// So many parts of a millisecond are counted.
const PARTS: u64 = 1000;

#[derive(Debug)]
struct Tried {
    /// What the last try took.
    looks: u64,
    /// When all tries are paid for, in parts of milliseconds.
    paid: u64,
    /// When it is tried again, if something came free meanwhile.
    again: Option<Millis>,
}

/// What groups wait for, by shape, of which places were looked for in vain.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    tried: BTreeMap<ShapeId, Tried>,
    /// What the last tries of all took.
    looks: u64,
    resting: BTreeSet<(Millis, ShapeId)>,
}

impl Pace {
    /// Whether places may be looked for now. If not, they should be at [`Pace::next`].
    pub fn may_try(&mut self, shape: ShapeId, now: Millis) -> bool {
        let Some(tried) = self.tried.get_mut(&shape) else { return true };
        let at = Millis(tried.paid.div_ceil(PARTS).saturating_sub(SPAN.0));
        if at <= now {
            return true;
        }
        if tried.again.is_none() {
            tried.again = Some(at);
            self.resting.insert((at, shape));
        }
        false
    }

    /// Places were looked for in vain.
    pub fn failed(&mut self, shape: ShapeId, looks: u32, now: Millis) {
        let looks = u64::from(looks);
        let tried = self.tried.entry(shape).or_insert(Tried { looks: 0, paid: 0, again: None });
        self.looks = self.looks - tried.looks + looks;
        tried.looks = looks;
        let now = now.0.saturating_mul(PARTS);
        tried.paid = tried.paid.max(now);
        let count = u64::try_from(self.tried.len()).unwrap_or(u64::MAX);
        let due = self.looks.min(looks.saturating_mul(count)).saturating_mul(SPAN.0 * PARTS);
        if let Some(tried) = self.tried.get_mut(&shape) {
            tried.paid = tried.paid.saturating_add(due / u64::from(LOOKS_EACH));
        }
    }

    /// Nothing waits for this any more.
    pub fn forget(&mut self, shape: ShapeId) {
        if let Some(tried) = self.tried.remove(&shape) {
            self.looks -= tried.looks;
            if let Some(at) = tried.again {
                self.resting.remove(&(at, shape));
            }
        }
    }

    /// Whether places are to be looked for later.
    pub fn rests(&self, shape: ShapeId) -> bool {
        self.tried.get(&shape).is_some_and(|tried| tried.again.is_some())
    }

    /// When what rests may be tried again, if anything does.
    pub fn next(&self) -> Option<Millis> {
        self.resting.first().map(|(at, _)| *at)
    }

    /// Takes out one that has rested long enough.
    pub fn rested(&mut self, now: Millis) -> Option<ShapeId> {
        let (at, shape) = self.resting.first().copied().filter(|(at, _)| *at <= now)?;
        self.resting.remove(&(at, shape));
        self.tried.get_mut(&shape).into_iter().for_each(|tried| tried.again = None);
        Some(shape)
    }
}
