//! Whose turn it is: the tree of queues, and in each the jobs with what they wait for.
//!
//! From the top down, always the child goes first that has least of what it should have:
//!
//! 1. A queue to which something that waits there is *owed*, or to a queue below it: it needs kinds that are guaranteed to
//!    the queue, and of each of these the queue has less than that. Of several the one that has the smallest part of it. What
//!    needs nothing that is guaranteed is owed to nobody, however little of the guarantee is in use.
//! 2. The others by their *share*: the part that they use of the cluster's resource of which they use the largest part,
//!    over their weight (dominant-resource fairness).
//!
//! In a queue goes first what has the highest priority, counted up by one for each [`crate::Options::ageing`] since it
//! was last granted something; then the job that holds the fewest slots there; then what has waited longest. So
//! everything gets its turn: what goes ahead of it does so for no longer than its head start in priority lasts. But
//! nothing is set aside here for what does not fit when its turn comes ([`crate::scheduler::preempt`] keeps nodes for what
//! is large).
//!
//! Work of a queue that has children is that of a child of its own, with weight one.
//!
//! Each time somebody is given no more than brings it level with the next, or [`QUANTUM`] of the cluster where that is
//! more: so shares differ by about that much, and in a large cluster a lease has more than one slot.
//!
//! Children lie in the order of their ranks, and each queue knows as a set of bits which shapes wait in and below it. So
//! the first child of which something is open is found at once.

mod limits;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{JobId, Quantity, Queue, resource::Kind};

use crate::{
    Millis,
    bits::Bits,
    scheduler::starve::Oldest,
    shapes::{ShapeId, Shapes},
    slab::Slab,
    stock::{CPU, Kinds, Need},
};

pub(crate) use limits::Aside;

/// The part of the cluster, by its scarcest resource, that one may be given at once beyond its share.
const QUANTUM: f64 = 1.0 / 4096.0;

/// The top of the tree, of which all queues without a parent are children.
pub(crate) const TOP: u32 = 0;
/// What names no queue is charged here.
pub(crate) const DEFAULT: u32 = 1;

/// When a demand's turn is in its queue: since when it has waited, in milliseconds, less its head start; then by
/// arrival. The last is the demand.
pub(crate) type Turn = (i64, u64, u32);

#[derive(Debug)]
pub(crate) struct Branch {
    /// As people call it; empty for the top and the default one.
    pub name: String,
    pub parent: Option<u32>,
    /// By share, then by number.
    children: Vec<u32>,
    /// Where it is among its parent's children.
    place: usize,
    weight: f64,
    guaranteed: Vec<(Kind, Quantity)>,
    limit: Vec<(Kind, Quantity)>,
    /// The same by number, of kinds that there are.
    promised: Vec<(usize, i64)>,
    /// Whether anything is guaranteed to it, or to a queue below it.
    promises: bool,
    most: Vec<(usize, i64)>,
    /// By kind. (Memory is counted in ten-thousandths of a byte: a petabyte of it is more than 64 bits hold.)
    usage: Vec<i128>,
    /// The kinds of which that is any: few of all that some node had once.
    uses: Vec<usize>,
    /// Of that is being given up, and what room is being made for.
    leaving: Vec<i128>,
    coming: Vec<i128>,
    /// What it uses over its weight: lower goes first.
    share: f64,
    /// What waits here and below, by shape: how many demands.
    shapes: BTreeMap<ShapeId, u32>,
    /// The same shapes.
    waits: Bits,
    /// What waits here, by shape.
    waiting: Vec<Waiting>,
    /// Jobs of which something waits here or is held.
    jobs: Slab<Job>,
    job_of: BTreeMap<JobId, u32>,
    /// This queue and those above it that have limits.
    limited: Vec<u32>,
    /// What is set aside of its limit for somebody in or below it.
    aside: Option<(u32, ShapeId, Arc<Need>)>,
}

/// What waits for one shape in a queue.
#[derive(Debug)]
struct Waiting {
    shape: ShapeId,
    /// By job.
    lanes: Vec<Lane>,
}

/// What waits of one job for one shape in a queue; at least one.
#[derive(Debug)]
struct Lane {
    job: JobId,
    /// The job's place in the queue.
    at: u32,
    first: Turn,
    turns: BTreeSet<Turn>,
}

#[derive(Debug)]
struct Job {
    id: JobId,
    /// Slots that it holds.
    held: u64,
    lanes: u32,
}

/// Why a queue may have what another one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// It may not.
    None,
    /// Its share is smaller, and stays so.
    Share,
    /// It is guaranteed to it.
    Owed,
}

/// Who goes first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick {
    pub demand: u32,
    pub shape: ShapeId,
    /// Most slots until it would be another's turn.
    pub slots: u32,
    /// Its part of what there is: less than all where others have the same right.
    pub part: f64,
    /// So many slots may always be granted, since they are not worth another look; at least 1.
    pub quantum: u32,
}

/// What a search for a turn notes, kept for its memory.
#[derive(Debug, Default)]
struct Notes {
    /// By a job's place.
    first: Vec<First>,
    search: u64,
    jobs: Vec<u32>,
}

/// A job's first turn in a search.
#[derive(Clone, Copy, Debug, Default)]
struct First {
    /// In which one it was noted.
    search: u64,
    turn: Turn,
    shape: ShapeId,
}

#[derive(Debug)]
pub(crate) struct Queues {
    all: Vec<Branch>,
    /// As a rule nothing.
    aside: BTreeMap<Oldest, Aside>,
    by_name: BTreeMap<String, u32>,
    /// One over what the cluster has, by kind; zero where it has none.
    inverse: Vec<f64>,
    notes: Notes,
}

impl Branch {
    fn new(queue: &Queue, parent: Option<u32>) -> Self {
        Self {
            name: queue.name.clone(),
            parent,
            children: Vec::new(),
            place: 0,
            weight: queue.weight.as_f64(),
            guaranteed: queue.guaranteed.iter().map(|(kind, amount)| (kind.clone(), amount)).collect(),
            limit: queue.limit.clone(),
            promised: Vec::new(),
            promises: false,
            most: Vec::new(),
            usage: Vec::new(),
            uses: Vec::new(),
            leaving: Vec::new(),
            coming: Vec::new(),
            share: 0.0,
            shapes: BTreeMap::new(),
            waits: Bits::new(),
            waiting: Vec::new(),
            jobs: Slab::new(),
            job_of: BTreeMap::new(),
            limited: Vec::new(),
            aside: None,
        }
    }

    fn share_of(&self, usage: impl Fn(usize) -> i128, inverse: &[f64]) -> f64 {
        let parts = inverse.iter().enumerate().map(|(kind, inverse)| float(usage(kind)) * inverse);
        parts.fold(0.0, f64::max) / self.weight
    }

    /// Which part it has of what is guaranteed to it, of the kinds that `need` has; `None` where that is nothing or all.
    fn owed(&self, usage: impl Fn(usize) -> i128, need: &Need) -> Option<f64> {
        let needed = self.promised.iter().filter(|(kind, _)| need.get(*kind) > 0);
        let part = needed.map(|(kind, promised)| float(usage(*kind)) / *promised as f64).reduce(f64::max);
        part.filter(|part| *part < 1.0)
    }

    /// Takes out of `shapes`, all of which wait here, what is owed to nobody.
    fn keep_owed(&self, shapes: &mut Bits, all: &Shapes) {
        let mut some = Bits::new();
        for (kind, _) in &self.promised {
            some.add(all.needing(*kind));
        }
        shapes.keep(&some);
        for (kind, promised) in &self.promised {
            if self.used(*kind) >= i128::from(*promised) {
                shapes.without(all.needing(*kind));
            }
        }
    }

    fn used(&self, kind: usize) -> i128 {
        self.usage.get(kind).copied().unwrap_or(0)
    }

    fn new_share(&self, inverse: &[f64]) -> f64 {
        let inverse = |kind: usize| inverse.get(kind).copied().unwrap_or(0.0);
        let parts = self.uses.iter().map(|kind| float(self.used(*kind)) * inverse(*kind));
        parts.fold(0.0, f64::max) / self.weight
    }

    /// The place of a job, of which something waits here or is held from now on.
    fn job(&mut self, id: JobId) -> u32 {
        match self.job_of.get(&id) {
            Some(at) => *at,
            None => {
                let at = self.jobs.insert(Job { id, held: 0, lanes: 0 });
                self.job_of.insert(id, at);
                at
            }
        }
    }

    fn forget_job(&mut self, at: u32) {
        if self.jobs.get(at).is_some_and(|job| job.held == 0 && job.lanes == 0)
            && let Some(job) = self.jobs.remove(at)
        {
            self.job_of.remove(&job.id);
        }
    }

    fn lane(&self, job: JobId, shape: ShapeId) -> Option<(usize, usize)> {
        let at = self.waiting.binary_search_by_key(&shape, |waiting| waiting.shape).ok()?;
        let lane = self.waiting[at].lanes.binary_search_by_key(&job, |lane| lane.job).ok()?;
        Some((at, lane))
    }

    /// Lets something wait here; false where it did.
    fn insert(&mut self, job: JobId, shape: ShapeId, turn: Turn) -> bool {
        let at = match self.waiting.binary_search_by_key(&shape, |waiting| waiting.shape) {
            Ok(at) => at,
            Err(at) => {
                self.waiting.insert(at, Waiting { shape, lanes: Vec::new() });
                at
            }
        };
        match self.waiting[at].lanes.binary_search_by_key(&job, |lane| lane.job) {
            Ok(lane) => {
                let lane = &mut self.waiting[at].lanes[lane];
                lane.first = lane.first.min(turn);
                lane.turns.insert(turn)
            }
            Err(lane) => {
                let place = self.job(job);
                if let Some(job) = self.jobs.get_mut(place) {
                    job.lanes += 1;
                }
                let turns = BTreeSet::from([turn]);
                self.waiting[at].lanes.insert(lane, Lane { job, at: place, first: turn, turns });
                true
            }
        }
    }

    /// Lets something wait here no longer; false where it did not.
    fn remove(&mut self, job: JobId, shape: ShapeId, turn: Turn) -> bool {
        let Some((at, lane)) = self.lane(job, shape) else { return false };
        let lanes = &mut self.waiting[at].lanes;
        if !lanes[lane].turns.remove(&turn) {
            return false;
        }
        if let Some(first) = lanes[lane].turns.first() {
            lanes[lane].first = *first;
            return true;
        }
        let place = lanes.remove(lane).at;
        if lanes.is_empty() {
            self.waiting.remove(at);
        }
        if let Some(job) = self.jobs.get_mut(place) {
            job.lanes -= 1;
        }
        self.forget_job(place);
        true
    }
}

impl Queues {
    pub fn new() -> Self {
        let (all, by_name, inverse) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut queues = Self { all, aside: BTreeMap::new(), by_name, inverse, notes: Notes::default() };
        queues.replace(&[], &Kinds::new());
        queues
    }

    /// Forgets all that is held and waits, which must be charged anew, and makes the tree of these, which are valid.
    pub fn replace(&mut self, list: &[Queue], kinds: &Kinds) {
        self.by_name.clear();
        self.aside.clear();
        self.all = vec![Branch::new(&Queue::new(""), None), Branch::new(&Queue::new(""), Some(TOP))];
        for (at, queue) in (2..).zip(list) {
            self.all.push(Branch::new(queue, Some(TOP)));
            self.by_name.insert(queue.name.clone(), at);
        }
        for (at, queue) in (2_usize..).zip(list) {
            self.all[at].parent = Some(self.by_name.get(&queue.parent).copied().unwrap_or(TOP));
        }
        let parents: BTreeSet<u32> =
            self.all[2..].iter().filter_map(|q| q.parent).filter(|p| *p != TOP).collect();
        for parent in parents {
            let own = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
            let name = self.all[parent as usize].name.clone();
            self.all.push(Branch::new(&Queue::new(name.clone()), Some(parent)));
            self.by_name.insert(name, own);
        }
        for at in 1..self.all.len() {
            if let Some(parent) = self.all[at].parent {
                self.all[parent as usize].children.push(u32::try_from(at).unwrap_or(u32::MAX));
            }
        }
        for at in 0..self.all.len() {
            let above: Vec<u32> = self.above(u32::try_from(at).unwrap_or(u32::MAX)).collect();
            if !self.all[at].guaranteed.is_empty() {
                above.iter().for_each(|at| self.all[*at as usize].promises = true);
            }
            let above = above.into_iter();
            self.all[at].limited = above.filter(|q| !self.all[*q as usize].limit.is_empty()).collect();
        }
        self.learn(kinds);
    }

    /// The kinds or the totals have changed.
    pub fn learn(&mut self, kinds: &Kinds) {
        let numbers = |list: &[(Kind, Quantity)]| -> Vec<(usize, i64)> {
            list.iter().filter_map(|(kind, amount)| Some((kinds.find(kind)?, amount.units()))).collect()
        };
        for queue in &mut self.all {
            queue.promised = numbers(&queue.guaranteed);
            queue.most = numbers(&queue.limit);
            for amounts in [&mut queue.usage, &mut queue.leaving, &mut queue.coming] {
                amounts.resize(kinds.len(), 0);
            }
        }
        self.inverse.resize(kinds.len(), 0.0);
        self.update_shares();
    }

    /// What the cluster has of each kind.
    pub fn totals(&mut self, totals: &[i128]) {
        self.inverse =
            totals.iter().map(|total| if *total > 0 { 1.0 / *total as f64 } else { 0.0 }).collect();
        self.update_shares();
    }

    fn update_shares(&mut self) {
        for queue in &mut self.all {
            queue.share = queue.new_share(&self.inverse);
        }
        for at in 0..self.all.len() {
            let mut children = std::mem::take(&mut self.all[at].children);
            children.sort_unstable_by(|a, b| self.compare(*a, *b));
            for (place, child) in children.iter().enumerate() {
                self.all[*child as usize].place = place;
            }
            self.all[at].children = children;
        }
    }

    /// Which of two children goes first.
    fn compare(&self, a: u32, b: u32) -> std::cmp::Ordering {
        self.share(a).total_cmp(&self.share(b)).then(a.cmp(&b))
    }

    fn share(&self, queue: u32) -> f64 {
        self.all[queue as usize].share
    }

    /// Puts a queue where its share belongs among its siblings'.
    fn update_share(&mut self, queue: u32) {
        let branch = &mut self.all[queue as usize];
        // The topmost one has nobody to be compared with.
        let Some(parent) = branch.parent else { return };
        let share = branch.new_share(&self.inverse);
        if share.total_cmp(&std::mem::replace(&mut branch.share, share)).is_eq() {
            return;
        }
        let mut place = branch.place;
        let mut siblings = std::mem::take(&mut self.all[parent as usize].children);
        while place > 0 && self.compare(queue, siblings[place - 1]).is_lt() {
            siblings.swap(place, place - 1);
            self.all[siblings[place] as usize].place = place;
            place -= 1;
        }
        while place + 1 < siblings.len() && self.compare(siblings[place + 1], queue).is_lt() {
            siblings.swap(place, place + 1);
            self.all[siblings[place] as usize].place = place;
            place += 1;
        }
        self.all[queue as usize].place = place;
        self.all[parent as usize].children = siblings;
    }

    fn weight(&self, queue: u32) -> f64 {
        self.all[queue as usize].weight
    }

    /// The queue where work of this name waits.
    pub fn find(&self, name: &str) -> Option<u32> {
        if name.is_empty() { Some(DEFAULT) } else { self.by_name.get(name).copied() }
    }

    pub fn get(&self, queue: u32) -> &Branch {
        &self.all[queue as usize]
    }

    pub fn len(&self) -> u32 {
        u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }

    pub fn usage(&self, queue: u32, kind: usize) -> i128 {
        self.all[queue as usize].usage.get(kind).copied().unwrap_or(0)
    }

    /// Whether a queue is known to use some of a kind.
    pub fn uses(&self, queue: u32, kind: usize) -> bool {
        self.all[queue as usize].uses.contains(&kind)
    }

    /// A queue and those above it, up to the top.
    pub fn above(&self, queue: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(Some(queue), |at| self.all[*at as usize].parent)
    }

    /// What waits in a queue.
    pub fn waiting(&self, queue: u32) -> impl Iterator<Item = (JobId, ShapeId, Turn)> {
        let lists = self.all[queue as usize].waiting.iter();
        let lanes = lists.flat_map(|waiting| waiting.lanes.iter().map(|lane| (waiting.shape, lane)));
        lanes.flat_map(|(shape, lane)| lane.turns.iter().map(move |turn| (lane.job, shape, *turn)))
    }

    /// What has waited longest in a queue of each job and shape.
    pub fn first_turns(&self, queue: u32) -> impl Iterator<Item = (Turn, ShapeId)> {
        let lists = self.all[queue as usize].waiting.iter();
        lists.flat_map(|waiting| waiting.lanes.iter().map(|lane| (lane.first, waiting.shape)))
    }

    pub fn waits(&self, queue: u32, job: JobId, shape: ShapeId, turn: Turn) -> bool {
        let branch = &self.all[queue as usize];
        let lane = branch.lane(job, shape).map(|(at, lane)| &branch.waiting[at].lanes[lane]);
        branch.waits.contains(shape)
            && lane.is_some_and(|lane| lane.turns.contains(&turn) && lane.turns.first() == Some(&lane.first))
    }

    /// The slots that jobs hold in a queue; none of them zero.
    pub fn held(&self, queue: u32) -> impl Iterator<Item = (JobId, u64)> {
        let jobs = self.all[queue as usize].jobs.iter();
        jobs.map(|(_, job)| (job.id, job.held)).filter(|(_, held)| *held > 0)
    }

    /// How many demands wait in and below a queue.
    pub fn count(&self, queue: u32) -> usize {
        self.all[queue as usize].shapes.values().map(|count| *count as usize).sum()
    }

    /// Counts slots of a job. Gives the job's place in the queue, which it keeps while it holds any.
    pub fn hold(&mut self, queue: u32, job: JobId, slots: u32) -> u32 {
        let branch = &mut self.all[queue as usize];
        let at = branch.job(job);
        if let Some(job) = branch.jobs.get_mut(at) {
            job.held = job.held.saturating_add(slots.into());
        }
        at
    }

    /// Counts slots of a job, by its place, no longer.
    pub fn drop_held(&mut self, queue: u32, at: u32, slots: u32) {
        let branch = &mut self.all[queue as usize];
        if let Some(job) = branch.jobs.get_mut(at) {
            job.held = job.held.saturating_sub(slots.into());
        }
        branch.forget_job(at);
    }

    /// So much more of what a queue and those above it use is being given up.
    pub fn leave(&mut self, queue: u32, amounts: &[(usize, i64)], times: i64) {
        self.shift(queue, amounts, times, |queue| &mut queue.leaving);
    }

    /// What is being given up of a lease changes: how many of its slots, and how many of those hold CPU ([`crate::lease::Entry::leaving`]).
    pub fn leaves(&mut self, queue: u32, need: &Need, before: (u32, u32), after: (u32, u32)) {
        let slots = i64::from(after.0) - i64::from(before.0);
        let running = i64::from(after.1) - i64::from(before.1);
        self.leave(queue, &need.amounts, slots);
        if slots != running {
            self.leave(queue, &[(CPU, need.get(CPU))], running - slots);
        }
    }

    /// Room is being made for so much more.
    pub fn come(&mut self, queue: u32, amounts: &[(usize, i64)], times: i64) {
        self.shift(queue, amounts, times, |queue| &mut queue.coming);
    }

    fn shift(
        &mut self,
        queue: u32,
        amounts: &[(usize, i64)],
        times: i64,
        of: impl Fn(&mut Branch) -> &mut Vec<i128>,
    ) {
        let mut at = Some(queue);
        while let Some(queue) = at.and_then(|at| self.all.get_mut(at as usize)) {
            for (kind, each) in amounts {
                if let Some(amount) = of(queue).get_mut(*kind) {
                    *amount += i128::from(*each) * i128::from(times);
                }
            }
            at = queue.parent;
        }
    }

    /// What is being given up in and below a queue, and what room is being made for.
    pub fn shifts(&self, queue: u32, kind: usize) -> (i128, i128) {
        let branch = &self.all[queue as usize];
        let of = |list: &[i128]| list.get(kind).copied().unwrap_or(0);
        (of(&branch.leaving), of(&branch.coming))
    }

    /// The part of the cluster that this is of its scarcest resource.
    pub fn part(&self, need: &Need) -> f64 {
        let part =
            |(kind, each): &(usize, i64)| *each as f64 * self.inverse.get(*kind).copied().unwrap_or_default();
        need.amounts.iter().map(part).fold(0.0, f64::max)
    }

    /// What a queue uses once all that is under way is done, with `times` more of `need`.
    fn usage_with(&self, queue: u32, need: &Need, times: i64) -> impl Fn(usize) -> i128 {
        let branch = &self.all[queue as usize];
        let of = |list: &[i128], kind: usize| list.get(kind).copied().unwrap_or(0);
        move |kind| {
            of(&branch.usage, kind) - of(&branch.leaving, kind)
                + of(&branch.coming, kind)
                + i128::from(times) * i128::from(need.get(kind))
        }
    }

    /// What right a queue has to a slot of `need` before another one has, or keeps, `others`: of that so many `times`
    /// more is what the other would have left, so -1 where it would give it up.
    pub fn right(&self, queue: u32, need: &Need, other: u32, others: (&Need, i64)) -> Right {
        self.right_with(queue, (need, 1), other, others)
    }

    /// Whether it would be a queue's turn if another one gave up a slot of `others`.
    pub fn goes_first(&self, queue: u32, need: &Need, other: u32, others: &Need) -> bool {
        queue == other || self.right_with(queue, (need, 0), other, (others, -1)) != Right::None
    }

    /// [`Queues::right`], as if the queue got so many slots of its need.
    fn right_with(
        &self,
        queue: u32,
        (need, more): (&Need, i64),
        other: u32,
        (others, times): (&Need, i64),
    ) -> Right {
        // Where their ways to the top part.
        let siblings = |(a, b): &(u32, u32)| self.all[*a as usize].parent == self.all[*b as usize].parent;
        let pairs = self.above(queue).flat_map(|a| self.above(other).map(move |b| (a, b)));
        let Some((a, b)) = pairs.filter(|(a, b)| a != b).find(siblings) else { return Right::None };
        let (ours, theirs) = (&self.all[a as usize], &self.all[b as usize]);
        // A queue on either way may be guaranteed something.
        let way = |from: u32, to: u32| {
            let mut over = false;
            self.above(from).take_while(move |at| !std::mem::replace(&mut over, *at == to))
        };
        let owed = |at: u32, of: &Need, times: i64| {
            self.all[at as usize].owed(self.usage_with(at, of, times), of).is_some()
        };
        if way(other, b).any(|at| owed(at, others, times)) {
            return Right::None;
        }
        if way(queue, a).any(|at| owed(at, need, 0)) {
            return Right::Owed;
        }
        let share = |more: i64| ours.share_of(self.usage_with(a, need, more), &self.inverse);
        let their_share = |times: i64| theirs.share_of(self.usage_with(b, others, times), &self.inverse);
        // What is exchanged may change neither share, where other kinds make it: then it would be allowed back as well.
        let smaller = more == 0 || share(0) < their_share(0);
        if smaller && share(more) <= their_share(times) { Right::Share } else { Right::None }
    }

    /// The place of a job in a queue where something of it waits or is held.
    pub fn job(&self, queue: u32, job: JobId) -> Option<u32> {
        self.all[queue as usize].job_of.get(&job).copied()
    }

    /// Adds `times` of each amount to what a queue and those above it use.
    pub fn charge(&mut self, queue: u32, amounts: &[(usize, i64)], times: i64) {
        if times == 0 {
            return;
        }
        let mut at = Some(queue);
        while let Some(number) = at {
            let queue = &mut self.all[number as usize];
            for (kind, each) in amounts {
                if let Some(used) = queue.usage.get_mut(*kind) {
                    let any = *used != 0;
                    *used += i128::from(*each) * i128::from(times);
                    match (any, *used != 0) {
                        (false, true) => queue.uses.push(*kind),
                        (true, false) => queue.uses.retain(|used| used != kind),
                        _ => {}
                    }
                }
            }
            at = queue.parent;
            self.update_share(number);
        }
    }

    pub fn wait(&mut self, queue: u32, job: JobId, shape: ShapeId, turn: Turn) {
        if self.all[queue as usize].insert(job, shape, turn) {
            let mut at = Some(queue);
            while let Some(queue) = at.and_then(|at| self.all.get_mut(at as usize)) {
                *queue.shapes.entry(shape).or_default() += 1;
                queue.waits.insert(shape);
                at = queue.parent;
            }
        }
    }

    pub fn stop_waiting(&mut self, queue: u32, job: JobId, shape: ShapeId, turn: Turn) {
        if !self.all[queue as usize].remove(job, shape, turn) {
            return;
        }
        let mut at = Some(queue);
        while let Some(queue) = at.and_then(|at| self.all.get_mut(at as usize)) {
            if let Some(count) = queue.shapes.get_mut(&shape) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    queue.shapes.remove(&shape);
                    queue.waits.remove(shape);
                }
            }
            at = queue.parent;
        }
    }

    /// Changes the turn of what waits.
    pub fn turn_again(&mut self, queue: u32, job: JobId, shape: ShapeId, (old, new): (Turn, Turn)) {
        let branch = &mut self.all[queue as usize];
        if let Some((at, lane)) = branch.lane(job, shape) {
            let lane = &mut branch.waiting[at].lanes[lane];
            if lane.turns.remove(&old) {
                lane.turns.insert(new);
                lane.first = lane.turns.first().copied().unwrap_or(new);
            }
        }
    }

    /// Whether a queue is another one, or below it.
    pub fn is_below(&self, queue: u32, above: u32) -> bool {
        self.above(queue).any(|at| at == above)
    }

    /// How many turns come before one in its queue, at most so many; and how much was looked at for that.
    pub fn before(&self, queue: u32, turn: Turn, most: usize) -> (usize, usize) {
        let lanes = self.all[queue as usize].waiting.iter().flat_map(|waiting| &waiting.lanes);
        let (mut before, mut looked) = (0, 0);
        for lane in lanes {
            if before == most {
                break;
            }
            before += lane.turns.range(..turn).take(most - before).count();
            looked += 1;
        }
        (before, before + looked)
    }

    /// Whose turn it is, of those whose shape is open and whose limits allow a slot.
    pub fn pick(&mut self, shapes: &Shapes, now: Millis, ageing: Millis) -> Option<Pick> {
        let mut notes = std::mem::take(&mut self.notes);
        let pick = self.descend(TOP, shapes.open(), &Turns { shapes, now, ageing }, &mut notes);
        self.notes = notes;
        pick
    }

    /// The same of what waits in and below a queue, of the shapes in `open`.
    fn descend(&self, queue: u32, open: &Bits, turns: &Turns<'_>, notes: &mut Notes) -> Option<Pick> {
        let branch = &self.all[queue as usize];
        if branch.children.is_empty() {
            return self.pick_lane(queue, open, turns, notes);
        }
        self.descend_owed(queue, open, turns, notes).or_else(|| self.descend_fair(queue, open, turns, notes))
    }

    /// Of what is owed to children, or to those below them.
    fn descend_owed(&self, queue: u32, open: &Bits, turns: &Turns<'_>, notes: &mut Notes) -> Option<Pick> {
        // What it has changes with each: it is looked at again soon.
        let pick = self.most_owed(queue, open, turns, notes)?.1;
        Some(Pick { slots: pick.slots.min(pick.quantum), ..pick })
    }

    /// The same, with the part that the queue has of what is guaranteed to it.
    fn most_owed(
        &self,
        queue: u32,
        open: &Bits,
        turns: &Turns<'_>,
        notes: &mut Notes,
    ) -> Option<(f64, Pick)> {
        let mut best: Option<(f64, u32, Pick)> = None;
        for child in &self.all[queue as usize].children {
            let branch = &self.all[*child as usize];
            if !branch.promises || !branch.waits.meets(open) {
                continue;
            }
            let (mut found, mut rest) = (None, branch.waits.clone());
            rest.keep(open);
            if !branch.promised.is_empty() {
                let mut owed = rest.clone();
                branch.keep_owed(&mut owed, turns.shapes);
                rest.without(&owed);
                let pick = if owed.is_empty() { None } else { self.descend(*child, &owed, turns, notes) };
                found = pick.map(|pick| {
                    let part = branch.owed(|kind| branch.used(kind), turns.shapes.need(pick.shape));
                    (part.unwrap_or(1.0), pick)
                });
            }
            // What it has of its own may be in use by others below it, or nothing may be guaranteed to it.
            let Some((part, pick)) = found.or_else(|| self.most_owed(*child, &rest, turns, notes)) else {
                continue;
            };
            if best.is_none_or(|(least, number, _)| part.total_cmp(&least).then(child.cmp(&number)).is_lt()) {
                best = Some((part, *child, pick));
            }
        }
        best.map(|(part, _, pick)| (part, pick))
    }

    /// Of the child with the smallest share.
    fn descend_fair(&self, queue: u32, open: &Bits, turns: &Turns<'_>, notes: &mut Notes) -> Option<Pick> {
        let waits = |child: &&u32| self.all[**child as usize].waits.meets(open);
        let mut children = self.all[queue as usize].children.iter().filter(waits);
        loop {
            let child = *children.next()?;
            let Some(mut pick) = self.descend(child, open, turns, notes) else { continue };
            let share = self.share(child);
            // Weights of those that have the same right, and the share of the one after it.
            let mut same = self.weight(child);
            let mut next = None;
            for other in children {
                let other = &self.all[*other as usize];
                next.get_or_insert(other.share);
                if share.total_cmp(&other.share).is_ne() {
                    break;
                }
                same += other.weight;
            }
            if let Some(next) = next {
                if same > self.weight(child) {
                    pick.part = pick.part.min(self.weight(child) / same);
                } else {
                    let lead = self.lead(child, share, next, turns.shapes.need(pick.shape));
                    pick.slots = pick.slots.min(lead.max(pick.quantum));
                }
            }
            return Some(pick);
        }
    }

    /// How many slots bring a queue level with the next one; at least 1.
    fn lead(&self, queue: u32, share: f64, next: f64, need: &Need) -> u32 {
        let each = self.all[queue as usize].share_of(|kind| need.get(kind).into(), &self.inverse);
        let slots = (next - share) / each;
        if slots.is_nan() || slots >= f64::from(u32::MAX) { u32::MAX } else { (slots as u32).max(1) }
    }

    /// How many slots are a [`QUANTUM`]; at least 1.
    fn quantum(&self, need: &Need) -> u32 {
        let part =
            |(kind, each): &(usize, i64)| *each as f64 * self.inverse.get(*kind).copied().unwrap_or_default();
        let each = need.amounts.iter().map(part).fold(0.0, f64::max);
        if each > 0.0 { ((QUANTUM / each) as u32).max(1) } else { 1 }
    }

    /// The turn that is due in a queue. A job's turns together are its lane.
    fn pick_lane(&self, queue: u32, open: &Bits, turns: &Turns<'_>, notes: &mut Notes) -> Option<Pick> {
        let branch = &self.all[queue as usize];
        let limited = !branch.limited.is_empty();
        notes.search += 1;
        notes.jobs.clear();
        notes.first.resize(notes.first.len().max(branch.jobs.places()), First::default());
        let mut oldest = i64::MAX;
        for waiting in branch.waiting.iter().filter(|waiting| open.contains(waiting.shape)) {
            if limited && self.headroom(queue, waiting.shape, turns.shapes.need(waiting.shape)) == 0 {
                continue;
            }
            for lane in &waiting.lanes {
                let Some(first) = notes.first.get_mut(lane.at as usize) else { continue };
                if first.search != notes.search {
                    notes.jobs.push(lane.at);
                } else if lane.first >= first.turn {
                    continue;
                }
                *first = First { search: notes.search, turn: lane.first, shape: waiting.shape };
                oldest = oldest.min(lane.first.0);
            }
        }
        // Only the highest level counts: all that waits since then.
        let since = level_since(oldest, turns.now, turns.ageing);
        let mut best: Option<(u64, Turn, ShapeId)> = None;
        let (mut next, mut same) = (None::<u64>, 0_u32);
        for at in &notes.jobs {
            let First { turn, shape, .. } = notes.first[*at as usize];
            if turn.0 > since {
                continue;
            }
            let held = branch.jobs.get(*at).map_or(0, |job| job.held);
            let before = best.map(|best| best.0);
            same = match before {
                Some(least) if held > least => same,
                Some(least) if held == least => same + 1,
                _ => 1,
            };
            if best.is_none_or(|best| (held, turn) < (best.0, best.1)) {
                next = before.or(next);
                best = Some((held, turn, shape));
            } else {
                next = Some(next.map_or(held, |next| next.min(held)));
            }
        }
        let (held, (.., demand), shape) = best?;
        let quantum = self.quantum(turns.shapes.need(shape));
        let slots = match next {
            Some(next) if next > held => u32::try_from(next - held).unwrap_or(u32::MAX).max(quantum),
            _ => u32::MAX,
        };
        Some(Pick { demand, shape, slots, part: 1.0 / f64::from(same), quantum })
    }
}

/// A sum as a floating-point number. What fits into 64 bits, as all but petabytes do, is converted by the processor.
fn float(sum: i128) -> f64 {
    const HIGH: f64 = 18_446_744_073_709_551_616.0;
    let size = sum.unsigned_abs();
    let size = (size >> 64) as u64 as f64 * HIGH + size as u64 as f64;
    if sum < 0 { -size } else { size }
}

/// What a pick looks at.
struct Turns<'a> {
    shapes: &'a Shapes,
    now: Millis,
    ageing: Millis,
}

/// What has waited since then, or longer, is of the same [`level`] as what has waited since `oldest`, or above it.
fn level_since(oldest: i64, now: Millis, ageing: Millis) -> i64 {
    let signed = |span: Millis| i64::try_from(span.0).unwrap_or(i64::MAX);
    let level = level((oldest, 0, 0), now, ageing);
    signed(now).saturating_sub(level.saturating_mul(signed(Millis(ageing.0.max(1)))))
}

/// Priority, counted up by the time that it has waited.
pub(crate) fn level(turn: Turn, now: Millis, ageing: Millis) -> i64 {
    let waited = i64::try_from(now.0).unwrap_or(i64::MAX).saturating_sub(turn.0);
    waited.div_euclid(i64::try_from(ageing.0.max(1)).unwrap_or(i64::MAX))
}
