//! What overtook the news of an object's completion.
//!
//! An executor tells its agent in one ring that an object is sealed, and the owner in another that its task is done. So
//! the owner, or a reader it told, may ask for the object or free it before the first message is read here. Such
//! wishes wait a moment.

use std::{
    collections::{BTreeMap, VecDeque},
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
pub struct Early {
    wishes: BTreeMap<Key, Wish>,
    /// When each ends, in order, since all wait equally long; also of wishes that are fulfilled by now.
    ends: VecDeque<(Instant, Key)>,
}

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
        if self.wishes.len() >= EARLY_MAX && !self.wishes.contains_key(&key) {
            return None;
        }
        let entry = self.wishes.entry(key).or_default();
        if entry.until.is_none() {
            entry.until = Some(now + EARLY_WAIT);
            self.ends.push_back((now + EARLY_WAIT, key));
        }
        Some(entry)
    }

    /// The object is there: what was wanted of it.
    pub fn take(&mut self, key: Key) -> Option<Wish> {
        let wish = if self.wishes.is_empty() { None } else { self.wishes.remove(&key) };
        if wish.is_some() {
            self.tidy();
        }
        wish
    }

    /// Forgets when wishes would have ended that are fulfilled, as far as they are first.
    fn tidy(&mut self) {
        let ends = |wish: &Wish, at: Instant| wish.until == Some(at);
        while self
            .ends
            .pop_front_if(|(at, key)| !self.wishes.get(key).is_some_and(|wish| ends(wish, *at)))
            .is_some()
        {}
    }

    /// Opens that have waited long enough.
    pub fn expire(&mut self, now: Instant) -> Vec<(Key, Open)> {
        let mut opens = Vec::new();
        while let Some((_, key)) = self.ends.pop_front_if(|(at, _)| *at <= now) {
            if self.wishes.get(&key).is_some_and(|wish| wish.until.is_some_and(|until| until <= now)) {
                let wish = self.wishes.remove(&key).unwrap_or_default();
                opens.extend(wish.opens.into_iter().map(|open| (key, open)));
            }
        }
        self.tidy();
        opens
    }

    /// When [`Early::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.ends.front().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::{NodeId, TaskId};

    use super::*;

    #[test]
    fn wishes_end_in_order_and_what_is_fulfilled_is_forgotten() {
        let (job, node) = (JobId { number: 1 }, NodeId::EMBEDDED);
        let key = |seq| (TaskId::numbered(node.agent(), seq).object(0), 1, job);
        let copy = Copy { node, bytes: 1, attempt: 1, job };
        let open = |request| Open { host: node.agent(), job, request, ahead: false, copy };
        let (mut early, start) = (Early::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for seq in 1..=4 {
            assert!(early.open(key(seq), at(seq), open(seq)));
        }
        assert!(early.open(key(2), at(9), open(5)), "one more for the same, which ends with it");
        assert!(early.take(key(1)).is_some() && early.take(key(3)).is_some());
        // Wished for anew, it waits anew.
        assert!(early.free(key(1), at(20)));
        assert_eq!(early.next_deadline(), Some(at(2) + EARLY_WAIT));
        let ended = early.expire(at(10) + EARLY_WAIT);
        assert_eq!(ended.iter().map(|(_, open)| open.request).collect::<Vec<_>>(), [2, 5, 4]);
        assert_eq!(early.next_deadline(), Some(at(20) + EARLY_WAIT));
        assert!(early.take(key(1)).is_some_and(|wish| wish.freed));
        assert_eq!((early.next_deadline(), early.ends.len()), (None, 0));
    }
}
