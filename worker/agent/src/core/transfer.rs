//! Copies on their way between nodes: what this agent pulls for its hosts, and what it serves to other agents.
//!
//! - **TR-1** However many hosts of a job here wait for a copy, it is pulled once.
//! - **TR-2** A copy is put together of bytes of one attempt only, from its beginning on, whoever they come from.
//! - **TR-4** What is being pulled at any time is no more than a share of the store ([`Pulls::in_flight`]), or one copy; what
//!   something waits for is pulled before what is fetched ahead, and each in the order in which it was asked for.
//! - **TR-5** A pull that nobody waits for any more ends, and what it takes counts until it has ended.
//! - **TR-3** What is served, whole or in part, stays in place until it was served ([`Core::served`]).

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, NodeId, ObjectId, RegionId,
    host::{Request, ToHost},
    peer::Copy,
};

use super::{
    Core, Effect, Reader,
    drain::Gift,
    objects::{Key, Origin, Place, up_to},
};

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
    /// How long a pull waits for a source that sends nothing, until it turns to another; default 10 s. One that reads it
    /// back from disk says so meanwhile.
    pub stall: Duration,
    /// How long a pull of which nothing comes in tries again, until it fails; default 20 s. Longer than the head takes to
    /// declare a silent node dead, so that what was lost with its node is found to be lost.
    pub reach: Duration,
}

impl Default for Pulls {
    fn default() -> Self {
        Self { in_flight: 0.25, stall: Duration::from_secs(10), reach: Duration::from_secs(20) }
    }
}

/// Pulls that wait for their turn, and the bytes of those that have begun.
#[derive(Debug)]
pub(super) struct Queue {
    in_flight_max: u64,
    in_flight: u64,
    begun: BTreeMap<Key, Begun>,
    waiting: VecDeque<(Key, Copy)>,
    /// For what nothing waits yet.
    ahead: VecDeque<(Key, Copy)>,
}

#[derive(Debug)]
struct Begun {
    bytes: u64,
    /// Nothing waited for it yet.
    ahead: bool,
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

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.in_flight == 0 && self.begun.is_empty() && self.waiting.is_empty() && self.ahead.is_empty()
    }

    pub(super) fn add(&mut self, pull: (Key, Copy), ahead: bool) {
        if ahead { &mut self.ahead } else { &mut self.waiting }.push_back(pull);
    }

    /// Something waits now for what was to be fetched ahead. Which pulls have begun so.
    fn hurry(&mut self, object: ObjectId, job: JobId) -> Vec<Key> {
        while let Some(at) = self.ahead.iter().position(|(key, _)| (key.0, key.2) == (object, job)) {
            self.waiting.extend(self.ahead.remove(at));
        }
        let begun = self.begun.range_mut(up_to(object, u32::MAX)).filter(|(key, _)| key.2 == job);
        begun.filter_map(|(key, begun)| std::mem::take(&mut begun.ahead).then_some(*key)).collect()
    }

    /// The next one whose turn it is, and whether nothing waits for it yet.
    fn next(&mut self) -> Option<(Key, Copy, bool)> {
        let ahead = self.waiting.is_empty();
        let queue = if ahead { &self.ahead } else { &self.waiting };
        let (key, copy) = *queue.front()?;
        if !self.fits(&copy) {
            return None;
        }
        if ahead { &mut self.ahead } else { &mut self.waiting }.pop_front();
        self.begin(key, copy.bytes, ahead);
        Some((key, copy, ahead))
    }

    /// It begins, whatever else is under way.
    pub(super) fn begin(&mut self, key: Key, bytes: u64, ahead: bool) {
        self.in_flight += bytes;
        self.begun.insert(key, Begun { bytes, ahead });
    }

    fn fits(&self, copy: &Copy) -> bool {
        self.in_flight == 0 || self.in_flight.saturating_add(copy.bytes) <= self.in_flight_max
    }

    /// Those that have begun ahead, where something waits for one that may not begin beside them.
    fn in_the_way(&self) -> impl Iterator<Item = Key> {
        let waits = self.waiting.front().is_some_and(|(_, copy)| !self.fits(copy));
        self.begun.iter().filter(move |(_, begun)| waits && begun.ahead).map(|(key, _)| *key)
    }

    /// One of them goes back to the front of its line.
    fn put_back(&mut self, key: Key, copy: Copy) {
        if let Some(begun) = self.begun.remove(&key) {
            self.in_flight -= begun.bytes;
            let queue = if begun.ahead { &mut self.ahead } else { &mut self.waiting };
            queue.push_front((key, copy));
        }
    }

    /// A pull came to nothing, and what it takes still counts: [`Self::left`] follows.
    fn leaves(&mut self, key: Key) {
        self.begun.remove(&key);
    }

    fn left(&mut self, bytes: u64) {
        self.in_flight -= bytes;
    }

    /// A pull is over, or shall not begin any more.
    fn over(&mut self, key: Key) {
        match self.begun.remove(&key) {
            Some(begun) => self.in_flight -= begun.bytes,
            None => {
                for queue in [&mut self.waiting, &mut self.ahead] {
                    queue.retain(|(other, _)| *other != key);
                }
            }
        }
    }
}

/// Where pulls write to.
#[derive(Debug, Default)]
pub(super) struct Filling {
    pulls: BTreeMap<Key, RegionId>,
    /// How many pulls write to a region, those that came to nothing and have not let go of it among them.
    regions: BTreeMap<RegionId, usize>,
}

/// A copy that is being pulled.
#[derive(Debug)]
pub(super) struct Pull {
    /// The primary copy.
    pub(super) copy: Copy,
    /// Who waits for it, with the primary copy that it knows of: where this one dies, that may be another.
    pub(super) waiting: Vec<(HostId, Request, Copy)>,
    /// Nodes that are served what has come in.
    serving: Vec<NodeId>,
    /// The object was freed meanwhile: it goes with its last pin.
    pub(super) dropped: bool,
    /// It is told to end.
    ended: bool,
    /// The node that it comes from drains, and gives it to this one, with these refs inside it.
    pub(super) keep: Option<Gift>,
    /// The refs inside it, where its source named them.
    refs: Option<Vec<ObjectId>>,
}

impl Pull {
    pub(super) fn new(copy: Copy) -> Self {
        Self {
            copy,
            waiting: Vec::new(),
            serving: Vec::new(),
            dropped: false,
            ended: false,
            keep: None,
            refs: None,
        }
    }

    /// Nobody here or elsewhere waits for it; one that is fetched back ([`Core::fetch_back`]) has its readers elsewhere.
    fn is_for_nobody(&self) -> bool {
        self.waiting.is_empty() && self.serving.is_empty() && self.keep.is_none()
    }
}

/// What another agent gets that asked for an object.
#[derive(Debug)]
pub enum Serve {
    /// All of it, as this copy: where it lies, and others that have it. Pinned until [`Core::served`].
    Whole(Key, Place, Arc<OwnedFd>, Vec<NodeId>),
    /// What has come in of it as this copy, and what comes. Stays until [`Core::served`].
    Part(Key),
    /// It is to ask these, the first of them first.
    Elsewhere(Vec<NodeId>),
    /// This copy is read back from disk, or its writer's word of it comes, first; [`Effect::Serve`] follows.
    Later(Key),
    /// There is none here.
    No(String),
    /// It is here, and cannot be had for the moment.
    NotNow(String),
}

/// What another agent wants.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The object.
    pub object: ObjectId,
    /// The copy that is meant.
    pub copy: Copy,
    /// Who wants it; this agent itself for readers of another job than that in whose memory it lies.
    pub by: NodeId,
    /// Nodes from which it could not be had.
    pub tried: Vec<NodeId>,
    /// Only a whole copy will do.
    pub whole: bool,
}

impl Core {
    /// Begins the pulls whose turn it is. One that nobody wants any more is left out.
    pub(super) fn start_pulls(&mut self) {
        while let Some((key, copy, ahead)) = self.queue.next() {
            if self.pulls.contains_key(&key) {
                self.effects.push(Effect::Pull(key, copy, ahead));
            } else {
                self.queue.over(key);
            }
        }
        // What is fetched ahead, and waits for memory yet, gives its turn to what something waits for.
        let lacks_memory = |key: &Key| !self.filling.pulls.contains_key(key);
        self.effects.extend(self.queue.in_the_way().filter(lacks_memory).map(Effect::Recall));
    }

    /// A pull that was recalled has taken no memory.
    pub fn pull_recalled(&mut self, key: Key) {
        if let Some(pull) = self.pulls.get(&key) {
            self.queue.put_back(key, pull.copy);
            self.start_pulls();
        }
    }

    /// A job is over: nobody wants what is pulled for it.
    pub(super) fn drop_pulls(&mut self, job: JobId) {
        let gone: Vec<_> = self.pulls.extract_if(.., |key, _| key.2 == job).map(|(key, _)| key).collect();
        gone.into_iter().for_each(|key| self.end_pull(key));
        self.start_pulls();
    }

    /// A host is gone: nobody wants what was pulled for it alone.
    pub(super) fn pulls_without(&mut self, host: HostId) {
        let mut unread = Vec::new();
        for (key, pull) in &mut self.pulls {
            let before = pull.waiting.len();
            pull.waiting.retain(|(waiting, ..)| *waiting != host);
            if pull.waiting.len() < before && pull.is_for_nobody() {
                unread.push(*key);
            }
        }
        for key in unread {
            self.end_pull(key);
        }
        self.start_pulls();
    }

    fn end_pull(&mut self, key: Key) {
        if self.queue.begun.contains_key(&key) {
            if let Some(pull) = self.pulls.get_mut(&key) {
                pull.ended = true;
            }
            self.effects.push(Effect::EndPull(key));
        } else {
            self.pulls.remove(&key);
            self.queue.over(key);
        }
    }

    /// A pull writes to this region, which stays until [`Core::pulled`] says that it is sealed, or [`Core::pull_left`].
    pub fn pull_began(&mut self, key: Key, region: RegionId) {
        self.filling.pulls.insert(key, region);
        *self.filling.regions.entry(region).or_default() += 1;
        let gone = self.objects.mapped(region, key.2, region.writer);
        self.gone(gone);
    }

    /// What is pulled has these refs inside; [`Core::pulled`] follows.
    pub fn pull_names(&mut self, key: Key, refs: Vec<ObjectId>) {
        if let Some(pull) = self.pulls.get_mut(&key) {
            pull.refs = Some(refs);
        }
    }

    fn filled(&mut self, region: RegionId) {
        let Some(count) = self.filling.regions.get_mut(&region) else { return };
        *count -= 1;
        if *count == 0 {
            self.filling.regions.remove(&region);
            self.objects.unmapped(region, region.writer);
        }
    }

    /// Nobody writes to, or sends, any more what was to be a copy of so many bytes in this region.
    pub fn pull_left(&mut self, region: RegionId, bytes: u64) {
        self.queue.left(bytes);
        self.filled(region);
        self.start_pulls();
        self.pump();
    }

    /// A host of `job` waits now for what it asked for ahead.
    pub(super) fn hurry(&mut self, job: JobId, object: ObjectId) {
        let restores = self.restores.range_mut(up_to(object, u32::MAX)).filter(|(key, _)| key.2 == job);
        let hurried =
            restores.filter_map(|(key, restore)| std::mem::take(&mut restore.ahead).then_some(*key));
        self.effects.extend(hurried.map(Effect::Hurry));
        // What has begun may lack memory.
        let pulls = self.pulls.range(up_to(object, u32::MAX)).any(|(key, _)| key.2 == job);
        let begun = if pulls { self.queue.hurry(object, job) } else { Vec::new() };
        self.effects.extend(begun.into_iter().map(Effect::Hurry));
    }

    /// A pull ended: where the agent put the copy, or why there is none. Returns whether the copy is in the table;
    /// if not, its memory is the caller's to free, and to say so where it had begun ([`Core::pull_left`]).
    pub fn pulled(&mut self, key: Key, result: Result<(RegionId, u64, u64), Failure>) -> bool {
        let region = self.filling.pulls.remove(&key);
        let sealed = self.pulled_to(key, result);
        match region {
            Some(region) if sealed => {
                self.queue.over(key);
                self.filled(region);
            }
            Some(_) => self.queue.leaves(key),
            None => self.queue.over(key),
        }
        self.start_pulls();
        sealed
    }

    fn pulled_to(&mut self, key: Key, result: Result<(RegionId, u64, u64), Failure>) -> bool {
        let (object, attempt, _) = key;
        let Some(mut pull) = self.pulls.remove(&key) else { return false };
        let Copy { node, job, .. } = pull.copy;
        // Not for a reader of another job.
        if node == self.config.node && job == key.2 {
            self.pulled_bytes += result.as_ref().map_or(0, |(_, _, bytes)| *bytes);
            return self.restored(key, result.map(|(region, offset, _)| (region, offset)));
        }
        if result.is_err() && std::mem::take(&mut pull.ended) && !pull.waiting.is_empty() {
            // Somebody came who wants it after all.
            self.queue.add((key, pull.copy), false);
            self.pulls.insert(key, pull);
            return false;
        }
        let sealed = result.and_then(|(region, offset, bytes)| {
            if node != self.config.node {
                self.pulled_bytes += bytes;
            }
            self.objects
                .seal(object, attempt, region, offset, bytes, Some(Origin { node, job }))
                .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
        });
        match sealed {
            Ok(key) => {
                if let Some(refs) = pull.refs {
                    self.objects.set_contains(key, refs);
                }
                for by in pull.serving {
                    self.objects.pin(key, by.agent());
                }
                for (host, request, _) in pull.waiting {
                    self.opened(host, request, key);
                }
                if let Some(gift) = pull.keep {
                    self.keep_here(key, node, gift);
                }
                // What came from this very node may have been freed there meanwhile.
                if pull.dropped
                    || (node == self.config.node && self.objects.find((object, attempt, job)).is_none())
                {
                    let gone = self.objects.drop_pulled(object, attempt, job);
                    self.gone(gone);
                } else if self.is_buried(node) {
                    let gone = self.objects.free_one(key);
                    self.gone(gone);
                }
                true
            }
            Err(failure) => {
                if pull.keep.is_some() {
                    self.not_kept(key, node);
                }
                // What is lost there may lie elsewhere by now.
                let is_lost = failure.kind == FailureKind::ObjectLost;
                let elsewhere = |(_, _, copy): &(HostId, Request, Copy)| is_lost && copy.node != node;
                let (again, failed): (Vec<_>, Vec<_>) = pull.waiting.into_iter().partition(elsewhere);
                if let Some((_, _, copy)) = again.first().copied() {
                    self.pulls.insert(key, Pull { waiting: again, ..Pull::new(copy) });
                    self.queue.add((key, copy), false);
                }
                let failure = failure.of(object.to_string());
                for (host, request, _) in failed {
                    let message = ToHost::OpenFailed { request, failure: failure.clone() };
                    self.effects.push(Effect::Tell(host, message, Vec::new()));
                }
                false
            }
        }
    }

    /// Another agent wants to copy an object from here.
    pub fn serve(&mut self, wish: &Wish, now: Instant) -> Serve {
        let Wish { object, copy, by, .. } = *wish;
        if let Some(key) = self.objects.for_readers(object, &copy) {
            let mut others = Vec::new();
            if copy.node == self.config.node && by != copy.node {
                let primary = (object, copy.attempt, copy.job);
                let (elsewhere, known) = self.objects.placed(primary, by, &wish.tried);
                if let Some(node) = elsewhere {
                    others = known.into_iter().filter(|known| *known != node).collect();
                    others.insert(0, node);
                    return Serve::Elsewhere(others);
                }
                others = known;
            }
            let Some(place) = self.objects.find(key).flatten() else {
                return match self.restore(key, Reader::Nodes, false) {
                    Ok(()) => Serve::Later(key),
                    Err(why) => Serve::NotNow(why),
                };
            };
            if let Some((fd, _)) = self.objects.region(place.region) {
                self.objects.pin(key, by.agent());
                return Serve::Whole(key, place, fd, others);
            }
        } else if !wish.whole && by != self.config.node {
            let may = |key: &Key, pull: &Pull| {
                key.1 == copy.attempt && pull.copy.job == copy.job && pull.serving.len() < PART_READERS_MAX
            };
            let mut coming = self.pulls.range_mut(up_to(object, copy.attempt));
            if let Some((key, pull)) = coming.find(|(key, pull)| may(key, pull)) {
                pull.serving.push(by);
                return Serve::Part(*key);
            }
        }
        // Who told of it may have been faster than its writer's own word.
        if copy.node == self.config.node && by != copy.node && self.hosts.runs(copy.job) {
            let key = (object, copy.attempt, copy.job);
            return if self.early.serve(key, now, self.early_wait()) {
                Serve::Later(key)
            } else {
                Serve::NotNow("too many wait for what is not here yet".to_owned())
            };
        }
        Serve::No(self.no_copy(copy.attempt))
    }

    /// `by` has this copy, or gave up, after so many bytes. It may have been served others of the same object, in memory
    /// of other jobs, which stay.
    pub fn served(&mut self, key: Key, by: NodeId, bytes: u64) {
        if by != self.config.node {
            self.served_bytes += bytes;
        }
        if let Some(pull) = self.pulls.get_mut(&key)
            && let Some(at) = pull.serving.iter().position(|node| *node == by)
        {
            pull.serving.swap_remove(at);
            let fetched_back = pull.copy.node == self.config.node && pull.copy.job == key.2;
            if pull.is_for_nobody() && !fetched_back {
                self.end_pull(key);
                self.start_pulls();
            }
            return;
        }
        let gone = self.objects.unpin_copy(key, by.agent());
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

    /// A pull of a primary copy that is to be on this node, `me`, and which these may have.
    pub fn among(me: NodeId, nodes: Vec<NodeId>) -> Self {
        let at = nodes.first().copied().unwrap_or(me);
        Self { at, known: nodes, lost: true, ..Self::new(me) }
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
    use mobula_proto::TaskId;

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
        let key = |index| (TaskId::numbered(node(1).agent(), 1).object(index), 1, JobId { number: 1 });
        let copy = |bytes| Copy { node: node(2), bytes, attempt: 1, job: JobId { number: 1 } };
        let mut queue = Queue::new(400, 0.25);
        queue.add((key(0), copy(90)), true);
        queue.add((key(1), copy(60)), true);
        queue.add((key(2), copy(20)), false);
        queue.add((key(3), copy(500)), false);
        let next = |queue: &mut Queue| queue.next().map(|(key, ..)| key);
        assert_eq!(next(&mut queue), Some(key(2)));
        assert_eq!(
            next(&mut queue),
            None,
            "100 bytes at once, and nothing overtakes what something waits for"
        );
        queue.over(key(2));
        assert_eq!(next(&mut queue), Some(key(3)), "one larger than all that comes alone");
        assert_eq!(next(&mut queue), None);
        queue.hurry(key(1).0, JobId { number: 1 });
        queue.over(key(3));
        assert_eq!(next(&mut queue), Some(key(1)));
        assert_eq!(next(&mut queue), None);
        queue.over(key(0));
        queue.over(key(1));
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
