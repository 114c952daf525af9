//! What overtook the news of an object's completion.
//!
//! An executor tells its agent in one ring that an object is sealed, and the owner in another that its task is done. So
//! the owner, or a reader it told, may ask for the object or free it before the first message is read here. Such
//! wishes wait a moment.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use mobula_proto::{HostId, JobId, ObjectId, host::Request};

/// How long a wish waits for its object.
pub const EARLY_WAIT: Duration = Duration::from_secs(2);
/// Most objects with early wishes; one more is answered as if its object did not exist.
pub const EARLY_MAX: usize = 65_536;

/// Who waits to read an object.
pub type Open = (HostId, JobId, Request);

/// What is wanted of an object that is not there yet.
#[derive(Debug, Default)]
pub struct Wish {
    /// Opens to be answered.
    pub opens: Vec<Open>,
    /// It is garbage already.
    pub freed: bool,
    until: Option<Instant>,
}

/// Wishes by object and attempt.
#[derive(Debug, Default)]
pub struct Early(BTreeMap<(ObjectId, u32), Wish>);

impl Early {
    /// Notes a wish; `false` where there are too many.
    pub fn note(
        &mut self,
        object: ObjectId,
        attempt: u32,
        now: Instant,
        wish: impl FnOnce(&mut Wish),
    ) -> bool {
        if self.0.len() >= EARLY_MAX && !self.0.contains_key(&(object, attempt)) {
            return false;
        }
        let entry = self.0.entry((object, attempt)).or_default();
        entry.until.get_or_insert(now + EARLY_WAIT);
        wish(entry);
        true
    }

    /// The object is there: what was wanted of it.
    pub fn take(&mut self, object: ObjectId, attempt: u32) -> Option<Wish> {
        if self.0.is_empty() { None } else { self.0.remove(&(object, attempt)) }
    }

    /// Opens that have waited long enough.
    pub fn expire(&mut self, now: Instant) -> Vec<(ObjectId, u32, Open)> {
        let over: Vec<_> = self
            .0
            .iter()
            .filter(|(_, wish)| wish.until.is_some_and(|until| until <= now))
            .map(|(key, _)| *key)
            .collect();
        let mut opens = Vec::new();
        for (object, attempt) in over {
            let wish = self.take(object, attempt).unwrap_or_default();
            opens.extend(wish.opens.into_iter().map(|open| (object, attempt, open)));
        }
        opens
    }

    /// When [`Early::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(|wish| wish.until).min()
    }
}
