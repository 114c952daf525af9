//! What overtook the news of an object's completion.
//!
//! An executor tells its agent in one ring that an object is sealed, and others in rings of their own that it is there. So
//! the owner, or a reader here or on another node that was told of it, may ask for the object or free it before the first
//! message is read here. How long that takes has no bound: the same ring carries what is relayed, which waits while nobody
//! takes it. Such wishes wait a moment; then all hosts of the job here are asked for a mark ([`ToHost::Mark`]), which comes
//! behind all that they have said before. Once each of them has given it, or is gone, an object that is still not there does
//! not exist. A reader is not kept waiting for a host that says nothing at all, and may try again; that something is
//! garbage is not forgotten.
//!
//! [`ToHost::Mark`]: mobula_proto::host::ToHost::Mark

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mobula_proto::{HostId, JobId, host::Request, peer::Copy};

use super::{objects::Key, transfer::PULL_WAITERS_MAX};

/// How long a wish waits for its object until hosts are asked for marks: most are fulfilled sooner, and cost no message.
pub const EARLY_WAIT: Duration = Duration::from_millis(250);
/// How long a reader waits for marks.
pub const MARK_WAIT: Duration = Duration::from_secs(20);
/// Most objects with early wishes; one more is answered as what may be there later.
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
    /// Other nodes wait for it, too.
    pub nodes: bool,
    /// It is garbage already.
    pub freed: bool,
    /// When something is to be done about it next; nothing where only marks are waited for.
    at: Option<Instant>,
    /// Whether it is among what marks were or will be asked for.
    asked: bool,
}

/// The marks that the hosts of a job were asked for.
#[derive(Debug, Default)]
struct Marks {
    number: u64,
    /// Who has not given it.
    silent: BTreeSet<HostId>,
    /// What is there by then, or never.
    keys: BTreeSet<Key>,
    /// What was wanted since, and needs marks of its own.
    next: BTreeSet<Key>,
}

/// What is to be done about wishes.
#[derive(Debug)]
pub enum Due {
    /// All hosts of this job here are to be asked for this mark; [`Early::asked`] follows.
    Ask(JobId, u64),
    /// There is no such object.
    Absent(Key, Wish),
    /// Whether there is such an object is not known: these hosts have not given their mark.
    Unknown(Key, Wish, Vec<HostId>),
}

/// Wishes by what will be there.
#[derive(Debug, Default)]
pub struct Early {
    wishes: BTreeMap<Key, Wish>,
    times: BTreeSet<(Instant, Key)>,
    /// At most one mark of each job is on its way at any time.
    marks: BTreeMap<JobId, Marks>,
    last: u64,
}

impl Early {
    /// Somebody wants to read it, and marks are asked for after `wait`; `false` where too many do.
    pub fn open(&mut self, key: Key, now: Instant, wait: Duration, open: Open) -> bool {
        let Some(wish) = self.wish(key, now, wait).filter(|wish| wish.opens.len() < PULL_WAITERS_MAX) else {
            return false;
        };
        wish.opens.push(open);
        true
    }

    /// Other nodes want it; `false` where too much is wanted that is not there.
    pub fn serve(&mut self, key: Key, now: Instant, wait: Duration) -> bool {
        self.wish(key, now, wait).map(|wish| wish.nodes = true).is_some()
    }

    /// It is garbage already; `false` where too much is wanted that is not there.
    pub fn free(&mut self, key: Key, now: Instant) -> bool {
        self.wish(key, now, EARLY_WAIT).map(|wish| wish.freed = true).is_some()
    }

    fn wish(&mut self, key: Key, now: Instant, wait: Duration) -> Option<&mut Wish> {
        if self.wishes.len() >= EARLY_MAX && !self.wishes.contains_key(&key) {
            return None;
        }
        let wish = self.wishes.entry(key).or_default();
        if wish.at.is_none() {
            // Of what is known to be garbage alone, the marks may be on their way already.
            let at = now + if wish.asked { MARK_WAIT } else { wait };
            wish.at = Some(at);
            self.times.insert((at, key));
        }
        Some(wish)
    }

    /// The object is there: what was wanted of it.
    pub fn take(&mut self, key: Key) -> Option<Wish> {
        let wish = if self.wishes.is_empty() { None } else { self.wishes.remove(&key) }?;
        if let Some(at) = wish.at {
            self.times.remove(&(at, key));
        }
        if wish.asked
            && let Some(marks) = self.marks.get_mut(&key.2)
        {
            marks.keys.remove(&key);
            marks.next.remove(&key);
        }
        Some(wish)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        while let Some((at, key)) = self.times.first().copied().filter(|(at, _)| *at <= now) {
            self.times.remove(&(at, key));
            let Some(wish) = self.wishes.get_mut(&key) else { continue };
            if !wish.asked {
                wish.asked = true;
                wish.at = Some(now + MARK_WAIT);
                self.times.insert((now + MARK_WAIT, key));
                match self.marks.get_mut(&key.2) {
                    None => due.push(self.ask(key.2, BTreeSet::from([key]))),
                    // Nobody was asked yet.
                    Some(marks) if marks.silent.is_empty() => drop(marks.keys.insert(key)),
                    Some(marks) => drop(marks.next.insert(key)),
                }
                continue;
            }
            wish.at = None;
            let given_up = if wish.freed {
                let (opens, nodes) = (std::mem::take(&mut wish.opens), std::mem::take(&mut wish.nodes));
                Some(Wish { opens, nodes, ..Wish::default() })
            } else {
                self.take(key)
            };
            let silent = self.marks.get(&key.2).map(|marks| marks.silent.iter().copied().collect());
            due.extend(given_up.map(|wish| Due::Unknown(key, wish, silent.unwrap_or_default())));
        }
        due
    }

    fn ask(&mut self, job: JobId, keys: BTreeSet<Key>) -> Due {
        self.last += 1;
        self.marks.insert(job, Marks { number: self.last, keys, ..Marks::default() });
        Due::Ask(job, self.last)
    }

    /// These were asked for the mark of a job.
    pub fn asked(&mut self, job: JobId, hosts: impl IntoIterator<Item = HostId>) -> Vec<Due> {
        self.heard(job, |marks| marks.silent.extend(hosts))
    }

    /// A host gives its mark.
    pub fn marked(&mut self, job: JobId, host: HostId, number: u64) -> Vec<Due> {
        self.heard(job, |marks| {
            if marks.number == number {
                marks.silent.remove(&host);
            }
        })
    }

    /// A host of this job is gone, and all that is heard of it was heard.
    pub fn host_gone(&mut self, job: JobId, host: HostId) -> Vec<Due> {
        for wish in self.wishes.values_mut() {
            wish.opens.retain(|open| open.host != host);
        }
        self.heard(job, |marks| {
            marks.silent.remove(&host);
        })
    }

    /// What is not there once nobody is silent is not coming.
    fn heard(&mut self, job: JobId, hear: impl FnOnce(&mut Marks)) -> Vec<Due> {
        let Some(marks) = self.marks.get_mut(&job) else { return Vec::new() };
        hear(marks);
        if !marks.silent.is_empty() {
            return Vec::new();
        }
        let Marks { keys, next, .. } = std::mem::take(marks);
        self.marks.remove(&job);
        let mut due = self.absent(keys);
        if !next.is_empty() {
            due.push(self.ask(job, next));
        }
        due
    }

    fn absent(&mut self, keys: impl IntoIterator<Item = Key>) -> Vec<Due> {
        keys.into_iter().filter_map(|key| Some(Due::Absent(key, self.take(key)?))).collect()
    }

    /// A job is over: nothing more comes of it.
    pub fn job_gone(&mut self, job: JobId) -> Vec<Due> {
        self.marks.remove(&job);
        let keys: Vec<_> = self.wishes.keys().filter(|key| key.2 == job).copied().collect();
        self.absent(keys)
    }

    /// When [`Early::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.times.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::{NodeId, TaskId};

    use super::*;

    const JOB: JobId = JobId { number: 1 };

    fn key(seq: u64) -> Key {
        (TaskId::numbered(NodeId::EMBEDDED.agent(), seq).object(0), 1, JOB)
    }

    fn host(seq: u32) -> HostId {
        HostId { node: NodeId::EMBEDDED, seq }
    }

    fn open(request: Request) -> Open {
        let copy = Copy { node: NodeId::EMBEDDED, bytes: 1, attempt: 1, job: JOB };
        Open { host: host(1), job: JOB, request, ahead: false, copy }
    }

    /// Which mark is asked for; what does not exist, and of what that is not known, by number, with the requests for it.
    fn lines(due: Vec<Due>) -> Vec<String> {
        let line = |what: &str, key: Key, wish: Wish| {
            let requests: Vec<_> = wish.opens.iter().map(|open| open.request).collect();
            format!("{what} {} {requests:?}", key.0.seq)
        };
        let line = |due| match due {
            Due::Ask(JOB, number) => format!("ask {number}"),
            Due::Ask(..) => panic!("of another job"),
            Due::Absent(key, wish) => line("absent", key, wish),
            Due::Unknown(key, wish, silent) => line("unknown", key, wish) + &format!(" {}", silent.len()),
        };
        due.into_iter().map(line).collect()
    }

    #[test]
    fn what_is_not_there_when_all_were_heard_does_not_exist() {
        let (mut early, start) = (Early::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(early.open(key(1), at(0), EARLY_WAIT, open(1)));
        assert!(early.open(key(1), at(9), EARLY_WAIT, open(2)), "one more for the same, which ends with it");
        assert!(early.free(key(2), at(1)));
        assert!(early.open(key(3), at(2), EARLY_WAIT, open(3)));
        assert!(early.take(key(3)).is_some());
        assert_eq!(early.next_deadline(), Some(at(0) + EARLY_WAIT));
        assert_eq!(lines(early.tick(at(1) + EARLY_WAIT)), ["ask 1"]);
        assert!(early.asked(JOB, [host(1), host(2)]).is_empty());
        // What is wanted since may have been said behind the mark.
        assert!(early.open(key(4), at(2), Duration::ZERO, open(4)));
        assert!(early.tick(at(1) + EARLY_WAIT).is_empty());
        assert!(early.marked(JOB, host(1), 1).is_empty());
        assert!(early.marked(JOB, host(1), 1).is_empty() && early.marked(JOB, host(2), 9).is_empty());
        assert!(early.take(key(2)).is_some_and(|wish| wish.freed), "it came");
        assert_eq!(lines(early.marked(JOB, host(2), 1)), ["absent 1 [1, 2]", "ask 2"]);
        assert!(early.asked(JOB, [host(1), host(2)]).is_empty());
        assert!(early.marked(JOB, host(1), 2).is_empty());
        assert_eq!(lines(early.host_gone(JOB, host(2))), ["absent 4 [4]"]);
        assert_eq!((early.next_deadline(), early.wishes.len(), early.marks.len()), (None, 0, 0));
        // With nobody left who might say so.
        assert!(early.open(key(5), at(3), Duration::ZERO, open(5)));
        assert_eq!(lines(early.tick(at(3))), ["ask 3"]);
        assert_eq!(lines(early.asked(JOB, [])), ["absent 5 [5]"]);
    }

    #[test]
    fn garbage_is_remembered_for_as_long_as_it_may_come() {
        let (mut early, start) = (Early::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(early.open(key(1), start, EARLY_WAIT, open(1)) && early.free(key(1), start));
        assert!(early.open(key(2), start, EARLY_WAIT, open(2)));
        assert_eq!(lines(early.tick(at(0) + EARLY_WAIT)), ["ask 1"]);
        early.asked(JOB, [host(2)]);
        let late = early.next_deadline().unwrap();
        assert_eq!(late, start + EARLY_WAIT + MARK_WAIT);
        assert_eq!(lines(early.tick(late)), ["unknown 1 [1] 1", "unknown 2 [2] 1"]);
        assert_eq!(early.next_deadline(), None);
        // Its reader tries again, while the same mark is waited for.
        assert!(early.open(key(1), late, EARLY_WAIT, open(3)));
        assert_eq!(early.next_deadline(), Some(late + MARK_WAIT));
        assert!(early.take(key(1)).is_some_and(|wish| wish.freed && wish.opens.len() == 1));
        assert!(early.take(key(2)).is_none());
        assert!(early.marked(JOB, host(2), 1).is_empty());
        assert_eq!((early.next_deadline(), early.wishes.len(), early.marks.len()), (None, 0, 0));
    }

    #[test]
    fn nothing_of_a_job_is_waited_for_that_is_over() {
        let (mut early, start) = (Early::default(), Instant::now());
        let other = (key(2).0, 1, JobId { number: 2 });
        assert!(early.open(key(1), start, EARLY_WAIT, open(1)) && early.free(key(2), start));
        assert!(early.free(other, start) && early.open(other, start, EARLY_WAIT, open(2)));
        assert_eq!(early.tick(start + EARLY_WAIT).len(), 2);
        early.asked(JOB, [host(1), host(2)]);
        early.asked(other.2, [host(3)]);
        assert!(early.host_gone(JOB, host(1)).is_empty());
        assert_eq!(lines(early.job_gone(JOB)), ["absent 1 []", "absent 2 []"]);
        assert!(early.marked(JOB, host(2), 1).is_empty());
        assert!(early.take(other).is_some_and(|wish| wish.freed && wish.opens.is_empty()));
        assert_eq!((early.next_deadline(), early.wishes.len()), (None, 0));
    }
}
