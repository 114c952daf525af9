//! Whose turn it is: the tree of queues, and in each the jobs with what they wait for.
//!
//! From the top down, always the child goes first that has least of what it should have:
//!
//! 1. A queue below what is guaranteed to it, by the part of that which it has.
//! 2. The others by their *share*: the part that they use of the cluster's resource of which they use the largest part,
//!    over their weight (dominant-resource fairness).
//!
//! In a queue goes first what has the highest priority, counted up by one for each [`crate::Options::ageing`] since it
//! was last granted something; then the job that holds the fewest slots there; then what has waited longest. So
//! everything gets its turn: what goes ahead of it does so for no longer than its head start in priority lasts. But
//! nothing is set aside for what does not fit when its turn comes: something large can wait for as long as small things
//! keep every node too full for it.
//!
//! Work of a queue that has children is that of a child of its own, with weight one.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use mobula_proto::{JobId, Quantity, Queue, resource::Kind};

use crate::{
    Millis,
    shapes::{ShapeId, Shapes},
    stock::{Kinds, Need},
};

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
    children: Vec<u32>,
    weight: f64,
    guaranteed: Vec<(Kind, Quantity)>,
    limit: Vec<(Kind, Quantity)>,
    /// The same by number, of kinds that there are.
    promised: Vec<(usize, i64)>,
    most: Vec<(usize, i64)>,
    /// By kind.
    usage: Vec<i64>,
    /// Lower goes first.
    rank: Rank,
    /// What waits here and below, by shape: how many demands.
    shapes: BTreeMap<ShapeId, u32>,
    /// What waits here, by shape and job.
    waiting: BTreeMap<ShapeId, BTreeMap<JobId, BTreeSet<Turn>>>,
    /// Slots that each job holds here.
    held: BTreeMap<JobId, u64>,
    /// This queue and those above it that have limits.
    limited: Vec<u32>,
}

/// Whether it is beyond what is guaranteed to it, and the part that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub(crate) struct Rank(pub bool, pub f64);

/// Who goes first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick {
    pub demand: u32,
    pub shape: ShapeId,
    /// Most slots until it would be another's turn.
    pub slots: u32,
    /// Its part of what there is: less than all where others have the same right.
    pub part: f64,
}

#[derive(Debug)]
pub(crate) struct Queues {
    all: Vec<Branch>,
    by_name: BTreeMap<String, u32>,
    /// One over what the cluster has, by kind; zero where it has none.
    inverse: Vec<f64>,
}

impl Branch {
    fn new(queue: &Queue, parent: Option<u32>) -> Self {
        Self {
            name: queue.name.clone(),
            parent,
            children: Vec::new(),
            weight: queue.weight.as_f64(),
            guaranteed: queue.guaranteed.iter().map(|(kind, amount)| (kind.clone(), amount)).collect(),
            limit: queue.limit.clone(),
            promised: Vec::new(),
            most: Vec::new(),
            usage: Vec::new(),
            rank: Rank::default(),
            shapes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            held: BTreeMap::new(),
            limited: Vec::new(),
        }
    }

    fn share_of(&self, usage: impl Fn(usize) -> i64, inverse: &[f64]) -> f64 {
        let parts = inverse.iter().enumerate().map(|(kind, inverse)| usage(kind) as f64 * inverse);
        parts.fold(0.0, f64::max) / self.weight
    }

    fn ranked(&self, usage: impl Fn(usize) -> i64, inverse: &[f64]) -> Rank {
        let part = self.promised.iter().map(|(kind, promised)| usage(*kind) as f64 / *promised as f64);
        match part.reduce(f64::max) {
            Some(part) if part < 1.0 => Rank(false, part),
            _ => Rank(true, self.share_of(usage, inverse)),
        }
    }

    fn update_rank(&mut self, inverse: &[f64]) {
        self.rank = self.ranked(|kind| self.usage.get(kind).copied().unwrap_or(0), inverse);
    }
}

impl Queues {
    pub fn new() -> Self {
        let mut queues = Self { all: Vec::new(), by_name: BTreeMap::new(), inverse: Vec::new() };
        queues.replace(&[], &Kinds::new());
        queues
    }

    /// Forgets all that is held and waits, which must be charged anew, and makes the tree of these, which are valid.
    pub fn replace(&mut self, list: &[Queue], kinds: &Kinds) {
        self.by_name.clear();
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
            let above = self.above(u32::try_from(at).unwrap_or(u32::MAX));
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
            queue.usage.resize(kinds.len(), 0);
        }
        self.inverse.resize(kinds.len(), 0.0);
        self.update_ranks();
    }

    /// What the cluster has of each kind.
    pub fn totals(&mut self, totals: &[i64]) {
        self.inverse =
            totals.iter().map(|total| if *total > 0 { 1.0 / *total as f64 } else { 0.0 }).collect();
        self.update_ranks();
    }

    fn update_ranks(&mut self) {
        for queue in &mut self.all {
            queue.update_rank(&self.inverse);
        }
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

    pub fn usage(&self, queue: u32, kind: usize) -> i64 {
        self.all[queue as usize].usage.get(kind).copied().unwrap_or(0)
    }

    /// A queue and those above it, up to the top.
    pub fn above(&self, queue: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(Some(queue), |at| self.all[*at as usize].parent)
    }

    /// What waits in a queue.
    pub fn waiting(&self, queue: u32) -> impl Iterator<Item = (JobId, ShapeId, Turn)> {
        self.all[queue as usize].waiting.iter().flat_map(|(shape, jobs)| jobs_of(*shape, jobs))
    }

    pub fn waits(&self, queue: u32, job: JobId, shape: ShapeId, turn: Turn) -> bool {
        let jobs = self.all[queue as usize].waiting.get(&shape);
        jobs.and_then(|jobs| jobs.get(&job)).is_some_and(|turns| turns.contains(&turn))
    }

    /// The slots that jobs hold in a queue; none of them zero.
    pub fn held(&self, queue: u32) -> &BTreeMap<JobId, u64> {
        &self.all[queue as usize].held
    }

    /// How many demands wait in and below a queue.
    pub fn count(&self, queue: u32) -> usize {
        self.all[queue as usize].shapes.values().map(|count| *count as usize).sum()
    }

    /// Counts slots of a job.
    pub fn hold(&mut self, queue: u32, job: JobId, slots: u32) {
        let held = self.all[queue as usize].held.entry(job).or_default();
        *held = held.saturating_add(slots.into());
    }

    /// Counts slots of a job no longer.
    pub fn drop_held(&mut self, queue: u32, job: JobId, slots: u32) {
        let all = &mut self.all[queue as usize].held;
        if let Some(held) = all.get_mut(&job) {
            *held = held.saturating_sub(slots.into());
            if *held == 0 {
                all.remove(&job);
            }
        }
    }

    /// Adds `times` of each amount to what a queue and those above it use.
    pub fn charge(&mut self, queue: u32, amounts: &[(usize, i64)], times: i64) {
        let mut at = Some(queue);
        while let Some(queue) = at.and_then(|at| self.all.get_mut(at as usize)) {
            for (kind, each) in amounts {
                if let Some(used) = queue.usage.get_mut(*kind) {
                    *used += each * times;
                }
            }
            queue.update_rank(&self.inverse);
            at = queue.parent;
        }
    }

    pub fn wait(&mut self, queue: u32, job: JobId, shape: ShapeId, turn: Turn) {
        let jobs = self.all[queue as usize].waiting.entry(shape).or_default();
        if jobs.entry(job).or_default().insert(turn) {
            let mut at = Some(queue);
            while let Some(queue) = at.and_then(|at| self.all.get_mut(at as usize)) {
                *queue.shapes.entry(shape).or_default() += 1;
                at = queue.parent;
            }
        }
    }

    pub fn stop_waiting(&mut self, queue: u32, job: JobId, shape: ShapeId, turn: Turn) {
        let waiting = &mut self.all[queue as usize].waiting;
        let Some(jobs) = waiting.get_mut(&shape) else { return };
        let Some(turns) = jobs.get_mut(&job) else { return };
        if !turns.remove(&turn) {
            return;
        }
        if turns.is_empty() {
            jobs.remove(&job);
            if jobs.is_empty() {
                waiting.remove(&shape);
            }
        }
        let mut at = Some(queue);
        while let Some(queue) = at.and_then(|at| self.all.get_mut(at as usize)) {
            if let Some(count) = queue.shapes.get_mut(&shape) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    queue.shapes.remove(&shape);
                }
            }
            at = queue.parent;
        }
    }

    /// Changes the turn of what waits.
    pub fn turn_again(&mut self, queue: u32, job: JobId, shape: ShapeId, (old, new): (Turn, Turn)) {
        let jobs = self.all[queue as usize].waiting.get_mut(&shape);
        if let Some(turns) = jobs.and_then(|jobs| jobs.get_mut(&job))
            && turns.remove(&old)
        {
            turns.insert(new);
        }
    }

    /// How many slots the limits above a queue still allow.
    pub fn headroom(&self, queue: u32, need: &Need) -> u32 {
        let mut most = i64::from(u32::MAX);
        for at in &self.all[queue as usize].limited {
            let limited = &self.all[*at as usize];
            for (kind, limit) in &limited.most {
                let each = need.get(*kind);
                if each > 0 {
                    most = most.min((limit - limited.usage.get(*kind).copied().unwrap_or(0)) / each);
                }
            }
        }
        u32::try_from(most.max(0)).unwrap_or(u32::MAX)
    }

    /// The limit that one slot alone would break, if any.
    pub fn above_limit(
        &self,
        queue: u32,
        resources: &mobula_proto::Resources,
    ) -> Option<(String, Kind, Quantity)> {
        let limits = self.all[queue as usize].limited.iter().flat_map(|at| {
            let limited = &self.all[*at as usize];
            limited.limit.iter().map(move |(kind, limit)| (limited, kind, *limit))
        });
        limits
            .filter(|(_, kind, limit)| resources.get(kind) > *limit)
            .map(|(queue, kind, limit)| (queue.name.clone(), kind.clone(), limit))
            .next()
    }

    /// Whose turn it is, of those whose shape is open and whose limits allow a slot.
    pub fn pick(&self, shapes: &Shapes, now: Millis, ageing: Millis) -> Option<Pick> {
        self.descend(TOP, &Turns { shapes, now, ageing })
    }

    fn descend(&self, queue: u32, turns: &Turns<'_>) -> Option<Pick> {
        let branch = &self.all[queue as usize];
        if branch.children.is_empty() {
            return self.pick_lane(queue, turns);
        }
        let ranked = |at: &u32| {
            let child = &self.all[*at as usize];
            turns.shapes.open().any(|shape| child.shapes.contains_key(&shape)).then_some((child.rank, *at))
        };
        let less = |a: (Rank, u32), b: (Rank, u32)| order(a.0, b.0).then(a.1.cmp(&b.1)).is_lt();
        let mut passed: Option<(Rank, u32)> = None;
        loop {
            // The least that was not tried yet, and the rank of the one after it.
            let (mut best, mut next): (Option<(Rank, u32)>, Option<Rank>) = (None, None);
            // Weights of those that have the same right.
            let mut same = 0.0;
            for child in branch.children.iter().filter_map(ranked) {
                if passed.is_some_and(|passed| !less(passed, child)) {
                    continue;
                }
                if best.is_none_or(|best| less(child, best)) {
                    next = best.map(|best| best.0);
                    same = match best {
                        Some(best) if order(best.0, child.0).is_eq() => same + self.weight(child.1),
                        _ => self.weight(child.1),
                    };
                    best = Some(child);
                } else {
                    if best.is_some_and(|best| order(best.0, child.0).is_eq()) {
                        same += self.weight(child.1);
                    }
                    if next.is_none_or(|next| order(child.0, next).is_lt()) {
                        next = Some(child.0);
                    }
                }
            }
            let (rank, child) = best?;
            passed = best;
            let Some(mut pick) = self.descend(child, turns) else { continue };
            if let Some(next) = next {
                if !rank.0 {
                    pick.slots = 1;
                } else if same > self.weight(child) {
                    pick.part = pick.part.min(self.weight(child) / same);
                } else {
                    pick.slots = pick.slots.min(self.lead(child, rank, next, turns.shapes.need(pick.shape)));
                }
            }
            return Some(pick);
        }
    }

    /// How many slots bring a queue level with the next one; at least 1.
    fn lead(&self, queue: u32, rank: Rank, next: Rank, need: &Need) -> u32 {
        let each = self.all[queue as usize].share_of(|kind| need.get(kind), &self.inverse);
        let slots = (next.1 - rank.1) / each;
        if slots.is_nan() || slots >= f64::from(u32::MAX) { u32::MAX } else { (slots as u32).max(1) }
    }

    /// The turn that is due in a queue. A job's turns together are its lane.
    fn pick_lane(&self, queue: u32, turns: &Turns<'_>) -> Option<Pick> {
        let branch = &self.all[queue as usize];
        let limited = !branch.limited.is_empty();
        let mut lanes: Vec<(JobId, Turn, ShapeId)> = Vec::new();
        for shape in turns.shapes.open() {
            let Some(jobs) = branch.waiting.get(&shape) else { continue };
            if limited && self.headroom(queue, turns.shapes.need(shape)) == 0 {
                continue;
            }
            lanes.extend(jobs.iter().filter_map(|(job, turns)| Some((*job, *turns.first()?, shape))));
        }
        lanes.sort_unstable();
        lanes.dedup_by_key(|(job, ..)| *job);
        let mut best: Option<(Reverse<i64>, u64, Turn, ShapeId)> = None;
        let mut next: Option<u64> = None;
        let mut same = 0_u32;
        for (job, turn, shape) in lanes {
            let held = branch.held.get(&job).copied().unwrap_or(0);
            let found = (Reverse(level(turn, turns.now, turns.ageing)), held, turn, shape);
            match best {
                Some(before) if before < found => {
                    if before.0 == found.0 {
                        same += u32::from(before.1 == found.1);
                        next = Some(next.map_or(found.1, |next| next.min(found.1)));
                    }
                }
                Some(before) => {
                    let level = before.0 == found.0;
                    same = if level && before.1 == found.1 { same + 1 } else { 1 };
                    next = level.then_some(before.1);
                    best = Some(found);
                }
                None => (best, same) = (Some(found), 1),
            }
        }
        let (_, held, (.., demand), shape) = best?;
        let slots = match next {
            Some(next) if next > held => u32::try_from(next - held).unwrap_or(u32::MAX),
            _ => u32::MAX,
        };
        Some(Pick { demand, shape, slots, part: 1.0 / f64::from(same) })
    }
}

fn jobs_of(
    shape: ShapeId,
    jobs: &BTreeMap<JobId, BTreeSet<Turn>>,
) -> impl Iterator<Item = (JobId, ShapeId, Turn)> {
    jobs.iter().flat_map(move |(job, turns)| turns.iter().map(move |turn| (*job, shape, *turn)))
}

/// What a pick looks at.
struct Turns<'a> {
    shapes: &'a Shapes,
    now: Millis,
    ageing: Millis,
}

/// Priority, counted up by the time that it has waited.
pub(crate) fn level(turn: Turn, now: Millis, ageing: Millis) -> i64 {
    let waited = i64::try_from(now.0).unwrap_or(i64::MAX).saturating_sub(turn.0);
    waited.div_euclid(i64::try_from(ageing.0.max(1)).unwrap_or(i64::MAX))
}

fn order(a: Rank, b: Rank) -> std::cmp::Ordering {
    a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
}
