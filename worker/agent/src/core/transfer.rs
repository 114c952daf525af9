//! Copies on their way between nodes: what this agent pulls for its hosts, and what it serves to other agents.
//!
//! - **TR-1** However many hosts here wait for a copy, it is pulled once.
//! - **TR-2** A copy is put together of bytes of one attempt only, from its beginning on, whoever they come from.
//! - **TR-4** What is being pulled at any time is no more than a share of the store ([`Pulls::in_flight`]), or one copy; what
//!   something waits for is pulled before what is fetched ahead, and each in the order in which it was asked for.
//! - **TR-3** What is served, whole or in part, stays in place until it was served ([`Core::served`]).

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, NodeId, ObjectId, RegionId,
    host::{Request, ToHost},
    peer::Copy,
};

use super::{Core, Effect, Reader, objects::Place};

/// Most pulls at once; an open that would start another fails with a retryable error.
pub const PULLS_MAX: usize = 4096;
/// Most opens that wait for one pull.
pub const PULL_WAITERS_MAX: usize = 4096;
/// Most other nodes at once that get a part of one copy that is being pulled; a further one is turned away.
pub const PART_READERS_MAX: usize = 64;
/// Most times that one pull turns to a node; then it fails.
pub const TURNS_MAX: u32 = 32;

/// How copies are pulled from other nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pulls {
    /// What is being pulled at any time is at most this share of the store, or one copy; default 0.25. More would share
    /// the same network among more pulls, each slower, and hold memory for parts that nobody can read yet; less leaves
    /// the network idle between small ones.
    pub in_flight: f64,
    /// How long a pull waits for a source that sends nothing, until it turns to another; default 10 s. One that has no
    /// other fails after twice that.
    pub stall: Duration,
}

impl Default for Pulls {
    fn default() -> Self {
        Self { in_flight: 0.25, stall: Duration::from_secs(10) }
    }
}

/// Pulls that wait for their turn, and the bytes of those that have begun.
#[derive(Debug)]
pub(super) struct Queue {
    in_flight_max: u64,
    in_flight: u64,
    begun: BTreeMap<(ObjectId, u32), u64>,
    waiting: VecDeque<(ObjectId, Copy)>,
    /// For what nothing waits yet.
    ahead: VecDeque<(ObjectId, Copy)>,
}

impl Queue {
    pub(super) fn new(store_bytes: u64, in_flight: f64) -> Self {
        Self {
            in_flight_max: (store_bytes as f64 * in_flight.clamp(0.0, 1.0)) as u64,
            in_flight: 0,
            begun: BTreeMap::new(),
            waiting: VecDeque::new(),
            ahead: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, pull: (ObjectId, Copy), ahead: bool) {
        if ahead { &mut self.ahead } else { &mut self.waiting }.push_back(pull);
    }

    /// Something waits now for what was to be fetched ahead.
    pub(super) fn hurry(&mut self, object: ObjectId) {
        while let Some(at) = self.ahead.iter().position(|(other, _)| *other == object) {
            self.waiting.extend(self.ahead.remove(at));
        }
    }

    /// The next one whose turn it is.
    fn next(&mut self) -> Option<(ObjectId, Copy)> {
        let queue = if self.waiting.is_empty() { &mut self.ahead } else { &mut self.waiting };
        let (object, copy) = *queue.front()?;
        if self.in_flight > 0 && self.in_flight.saturating_add(copy.bytes) > self.in_flight_max {
            return None;
        }
        queue.pop_front();
        self.in_flight += copy.bytes;
        self.begun.insert((object, copy.attempt), copy.bytes);
        Some((object, copy))
    }

    /// A pull is over, or shall not begin any more.
    fn over(&mut self, object: ObjectId, attempt: u32) {
        match self.begun.remove(&(object, attempt)) {
            Some(bytes) => self.in_flight -= bytes,
            None => {
                for queue in [&mut self.waiting, &mut self.ahead] {
                    queue.retain(|(other, copy)| (*other, copy.attempt) != (object, attempt));
                }
            }
        }
    }
}

/// A copy that is being pulled.
#[derive(Debug)]
pub(super) struct Pull {
    pub(super) node: NodeId,
    pub(super) job: JobId,
    pub(super) bytes: u64,
    pub(super) waiting: Vec<(HostId, Request)>,
    /// Nodes that are served what has come in.
    serving: Vec<NodeId>,
    /// The object was freed meanwhile: it goes with its last pin.
    pub(super) dropped: bool,
    /// The node that it comes from drains, and gives it to this one.
    pub(super) keep: bool,
}

impl Pull {
    pub(super) fn new(node: NodeId, job: JobId, bytes: u64) -> Self {
        Self { node, job, bytes, waiting: Vec::new(), serving: Vec::new(), dropped: false, keep: false }
    }
}

/// What another agent gets that asked for an object.
#[derive(Debug)]
pub enum Serve {
    /// All of it: where it lies, and others that have it. Pinned until [`Core::served`].
    Whole(Place, Arc<OwnedFd>, Vec<NodeId>),
    /// What has come in of it, and what comes. Stays until [`Core::served`].
    Part,
    /// It is to ask these, the first of them first.
    Elsewhere(Vec<NodeId>),
    /// It is read back from disk first; [`Effect::Serve`] follows.
    Later,
    /// There is none here.
    No(String),
}

/// What another agent wants.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The object.
    pub object: ObjectId,
    /// The copy that is meant.
    pub copy: Copy,
    /// Who wants it.
    pub by: NodeId,
    /// Nodes from which it could not be had.
    pub tried: Vec<NodeId>,
    /// Only a whole copy will do.
    pub whole: bool,
}

impl Core {
    /// Begins the pulls whose turn it is. One that nobody wants any more is left out.
    pub(super) fn start_pulls(&mut self) {
        while let Some((object, copy)) = self.queue.next() {
            let Some(pull) = self.pulls.get(&(object, copy.attempt)) else {
                self.queue.over(object, copy.attempt);
                continue;
            };
            self.effects.push(Effect::Pull(object, copy, pull.job));
        }
    }

    /// A job is over: nobody wants what is pulled for it.
    pub(super) fn drop_pulls(&mut self, job: JobId) {
        let gone: Vec<_> = self.pulls.extract_if(.., |_, pull| pull.job == job).map(|(key, _)| key).collect();
        for (object, attempt) in gone {
            self.queue.over(object, attempt);
        }
        self.start_pulls();
    }

    /// A host of `job` waits now for what it asked for ahead.
    pub(super) fn hurry(&mut self, job: JobId, object: ObjectId) {
        let mut attempts = self.pulls.range((object, 0)..=(object, u32::MAX));
        if attempts.any(|(_, pull)| pull.job == job) {
            self.queue.hurry(object);
        }
    }

    /// A pull ended: where the agent put the copy, or why there is none. Returns whether the copy is in the table;
    /// if not, its memory is the caller's to free.
    pub fn pulled(
        &mut self,
        object: ObjectId,
        attempt: u32,
        result: Result<(RegionId, u64, u64), Failure>,
    ) -> bool {
        self.queue.over(object, attempt);
        self.start_pulls();
        let Some(pull) = self.pulls.remove(&(object, attempt)) else { return false };
        let sealed = result.and_then(|(region, offset, bytes)| {
            self.pulled_bytes += bytes;
            self.objects
                .seal(object, attempt, region, offset, bytes, Some(pull.node))
                .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
        });
        match sealed {
            Ok(()) => {
                for by in pull.serving {
                    self.objects.pin(object, attempt, by.agent());
                }
                for (host, request) in pull.waiting {
                    self.opened(host, request, object, attempt);
                }
                if pull.keep {
                    self.keep_here((object, attempt), pull.node);
                }
                if pull.dropped {
                    let gone = self.objects.free(object, attempt);
                    self.gone(gone);
                }
                true
            }
            Err(failure) => {
                if pull.keep {
                    self.not_kept((object, attempt), pull.node);
                }
                let failure = failure.of(object.to_string());
                for (host, request) in pull.waiting {
                    let message = ToHost::OpenFailed { request, failure: failure.clone() };
                    self.effects.push(Effect::Tell(host, message, Vec::new()));
                }
                false
            }
        }
    }

    /// Another agent wants to copy an object from here.
    pub fn serve(&mut self, wish: &Wish) -> Serve {
        let Wish { object, copy: Copy { attempt, .. }, by, .. } = *wish;
        if let Some((place, job)) = self.objects.find(object, attempt) {
            let mut others = Vec::new();
            if wish.copy.node == self.config.node {
                let (elsewhere, known) = self.objects.placed(object, attempt, by, &wish.tried);
                if let Some(node) = elsewhere {
                    others = known.into_iter().filter(|known| *known != node).collect();
                    others.insert(0, node);
                    return Serve::Elsewhere(others);
                }
                others = known;
            }
            let Some(place) = place else {
                return match self.restore(object, attempt, job, Reader::Nodes) {
                    Ok(()) => Serve::Later,
                    Err(why) => Serve::No(why),
                };
            };
            if let Some((fd, _)) = self.objects.region(place.region) {
                self.objects.pin(object, attempt, by.agent());
                return Serve::Whole(place, fd, others);
            }
        } else if !wish.whole
            && let Some(pull) = self.pulls.get_mut(&(object, attempt))
            && pull.serving.len() < PART_READERS_MAX
        {
            pull.serving.push(by);
            return Serve::Part;
        }
        Serve::No(format!("{} has no copy of {object} by attempt {attempt}", self.config.node))
    }

    /// `by` has it, or gave up, after so many bytes.
    pub fn served(&mut self, object: ObjectId, attempt: u32, by: NodeId, bytes: u64) {
        self.served_bytes += bytes;
        if let Some(pull) = self.pulls.get_mut(&(object, attempt))
            && let Some(at) = pull.serving.iter().position(|node| *node == by)
        {
            pull.serving.swap_remove(at);
            return;
        }
        let gone = self.objects.unpin(object, by.agent());
        self.gone(gone);
        self.pump();
    }
}

/// From where one pull gets its bytes, until it has all of them or nobody is left to ask.
///
/// It asks at the node with the primary copy, which serves it or names others, and asks there again when one of those
/// fails. Once that node itself fails, the others that it named are asked in turn for a whole copy.
#[derive(Debug)]
pub struct Search {
    primary: NodeId,
    at: NodeId,
    /// Others that have it or a part of it, as the primary's node said last.
    known: Vec<NodeId>,
    tried: Vec<NodeId>,
    again: bool,
    lost: bool,
    turns: u32,
}

impl Search {
    /// A pull of a copy whose primary is on this node.
    pub fn new(primary: NodeId) -> Self {
        Self {
            primary,
            at: primary,
            known: Vec::new(),
            tried: Vec::new(),
            again: true,
            lost: false,
            turns: 0,
        }
    }

    /// Whom to ask now.
    pub fn at(&self) -> NodeId {
        self.at
    }

    /// From whom it could not be had.
    pub fn tried(&self) -> &[NodeId] {
        &self.tried
    }

    /// Whether only a whole copy will do.
    pub fn whole(&self) -> bool {
        self.lost
    }

    /// The primary's node said in passing who else has it.
    pub fn others(&mut self, nodes: Vec<NodeId>) {
        if self.at == self.primary {
            self.known = nodes;
        }
    }

    /// Who is asked names others instead. Says whether to go on.
    pub fn elsewhere(&mut self, nodes: Vec<NodeId>) -> bool {
        let first = nodes.first().copied().filter(|node| *node != self.primary);
        match first.filter(|_| self.at == self.primary && !self.lost) {
            Some(node) => {
                self.known = nodes;
                self.turn(node)
            }
            None => self.failed(false),
        }
    }

    /// Who is asked failed; `retryable` says that trying there again may help. Says whether to go on.
    pub fn failed(&mut self, retryable: bool) -> bool {
        if self.lost {
            self.tried.push(self.at);
            self.known.retain(|node| *node != self.at);
            return self.next_known();
        }
        if self.at != self.primary {
            self.tried.push(self.at);
            return self.turn(self.primary);
        }
        if retryable && std::mem::replace(&mut self.again, false) {
            return self.turn(self.primary);
        }
        self.lost = true;
        self.next_known()
    }

    fn next_known(&mut self) -> bool {
        // The first came earliest, and is the likeliest to have all of it.
        self.known.first().copied().is_some_and(|node| self.turn(node))
    }

    fn turn(&mut self, node: NodeId) -> bool {
        self.at = node;
        self.turns += 1;
        self.turns < TURNS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u32) -> NodeId {
        NodeId { number, incarnation: 1 }
    }

    #[test]
    fn a_pull_goes_on_elsewhere() {
        let mut search = Search::new(node(1));
        assert_eq!((search.at(), search.whole()), (node(1), false));
        assert!(search.elsewhere(vec![node(2), node(3), node(4)]));
        assert_eq!(search.at(), node(2));
        // It dies; the primary's node knows better.
        assert!(search.failed(true));
        assert_eq!((search.at(), search.tried()), (node(1), &[node(2)][..]));
        search.others(vec![node(3), node(4)]);
        // So does that node, after a second try.
        assert!(search.failed(true));
        assert_eq!(search.at(), node(1));
        assert!(search.failed(true));
        assert_eq!((search.at(), search.whole()), (node(3), true));
        assert!(search.failed(false));
        assert_eq!(search.at(), node(4));
        assert!(!search.failed(true), "nobody is left");
    }

    #[test]
    fn tr4_what_something_waits_for_comes_first() {
        let object = |index| ObjectId { owner: node(1).agent(), seq: 1, index };
        let copy = |bytes| Copy { node: node(2), bytes, attempt: 1 };
        let mut queue = Queue::new(400, 0.25);
        queue.add((object(0), copy(90)), true);
        queue.add((object(1), copy(60)), true);
        queue.add((object(2), copy(20)), false);
        queue.add((object(3), copy(500)), false);
        let next = |queue: &mut Queue| queue.next().map(|(object, _)| object);
        assert_eq!(next(&mut queue), Some(object(2)));
        assert_eq!(
            next(&mut queue),
            None,
            "100 bytes at once, and nothing overtakes what something waits for"
        );
        queue.over(object(2), 1);
        assert_eq!(next(&mut queue), Some(object(3)), "one larger than all that comes alone");
        assert_eq!(next(&mut queue), None);
        queue.hurry(object(1));
        queue.over(object(3), 1);
        assert_eq!(next(&mut queue), Some(object(1)));
        assert_eq!(next(&mut queue), None);
        queue.over(object(0), 1);
        queue.over(object(1), 1);
        assert_eq!((next(&mut queue), queue.in_flight), (None, 0));
    }

    #[test]
    fn a_pull_is_not_led_in_circles() {
        let mut search = Search::new(node(1));
        assert!(!search.elsewhere(vec![]), "nobody is named");
        let mut search = Search::new(node(1));
        assert!(!search.elsewhere(vec![node(1)]), "it names itself");
        let mut search = Search::new(node(1));
        let mut turns = 0;
        while search.elsewhere(vec![node(2)]) && search.failed(false) {
            turns += 1;
        }
        assert!(turns <= TURNS_MAX);
        // Only the primary's node is asked where else to go.
        let mut search = Search::new(node(1));
        assert!(search.elsewhere(vec![node(2)]));
        assert!(search.elsewhere(vec![node(3)]));
        assert_eq!(search.at(), node(1));
    }
}
