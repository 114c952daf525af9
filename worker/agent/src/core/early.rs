//! What overtook the news of an object's completion.
//!
//! An executor tells its agent in one ring that an object is sealed, and the owner in another that its task is done. So
//! the owner, or a reader it told, may ask for the object or free it before the first message is read here. Such
//! wishes wait a moment.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use mobula_proto::{HostId, JobId, host::Request, peer::Copy};

use super::{objects::Key, transfer::PULL_WAITERS_MAX};

/// How long a wish waits for its object.
pub const EARLY_WAIT: Duration = Duration::from_secs(2);
/// Most objects with early wishes; one more is answered as if its object did not exist.
pub const EARLY_MAX: usize = 65_536;

/// Who waits to read an object.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// The reader.
    pub host: HostId,
    /// Its job.
    pub job: JobId,
    /// Pairs with the answer.
    pub request: Request,
    /// Nothing waits for it yet.
    pub ahead: bool,
    /// The primary copy, as the reader was told of it.
    pub copy: Copy,
}

/// What is wanted of an object that is not there yet.
#[derive(Debug, Default)]
pub struct Wish {
    /// Opens to be answered; at most [`PULL_WAITERS_MAX`].
    pub opens: Vec<Open>,
    /// It is garbage already.
    pub freed: bool,
    until: Option<Instant>,
}

/// Wishes by what will be there.
#[derive(Debug, Default)]
pub struct Early(BTreeMap<Key, Wish>);

impl Early {
    /// Somebody wants to read it; `false` where too many do.
    pub fn open(&mut self, key: Key, now: Instant, open: Open) -> bool {
        let Some(wish) = self.wish(key, now).filter(|wish| wish.opens.len() < PULL_WAITERS_MAX) else {
            return false;
        };
        wish.opens.push(open);
        true
    }

    /// It is garbage already; `false` where too much is wanted that is not there.
    pub fn free(&mut self, key: Key, now: Instant) -> bool {
        self.wish(key, now).map(|wish| wish.freed = true).is_some()
    }

    fn wish(&mut self, key: Key, now: Instant) -> Option<&mut Wish> {
        if self.0.len() >= EARLY_MAX && !self.0.contains_key(&key) {
            return None;
        }
        let entry = self.0.entry(key).or_default();
        entry.until.get_or_insert(now + EARLY_WAIT);
        Some(entry)
    }

    /// The object is there: what was wanted of it.
    pub fn take(&mut self, key: Key) -> Option<Wish> {
        if self.0.is_empty() { None } else { self.0.remove(&key) }
    }

    /// Opens that have waited long enough.
    pub fn expire(&mut self, now: Instant) -> Vec<(Key, Open)> {
        let over: Vec<_> = self
            .0
            .iter()
            .filter(|(_, wish)| wish.until.is_some_and(|until| until <= now))
            .map(|(key, _)| *key)
            .collect();
        let mut opens = Vec::new();
        for key in over {
            let wish = self.take(key).unwrap_or_default();
            opens.extend(wish.opens.into_iter().map(|open| (key, open)));
        }
        opens
    }

    /// When [`Early::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(|wish| wish.until).min()
    }
}
