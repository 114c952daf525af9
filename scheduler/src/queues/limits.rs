//! What limits leave, and what is set aside of that.

use std::sync::Arc;

use mobula_proto::{Quantity, resource::Kind};

use super::{Branch, Queues};
use crate::{
    Limit, Millis,
    scheduler::starve::Oldest,
    shapes::ShapeId,
    stock::{Kinds, Need},
};

/// What is set aside in limits for somebody who has waited longest.
#[derive(Debug)]
pub(crate) struct Aside {
    pub who: Oldest,
    pub queue: u32,
    pub shape: ShapeId,
    pub need: Arc<Need>,
    /// When it is set aside no longer; or is again, where it is not now.
    pub until: Millis,
    pub paused: bool,
}

impl Branch {
    /// What its limit of a kind leaves to this shape of this queue.
    fn left_for(&self, who: (u32, ShapeId), kind: usize, limit: i64) -> i128 {
        let others = self.aside.as_ref().filter(|(queue, shape, _)| (*queue, *shape) != who);
        let aside = others.map_or(0, |(.., need)| need.get(kind));
        i128::from(limit) - self.used(kind) - i128::from(aside)
    }
}

impl Queues {
    /// How many slots of a shape the limits above a queue still allow. What is set aside for others is not allowed.
    pub fn headroom(&self, queue: u32, shape: ShapeId, need: &Need) -> u32 {
        let mut most = i128::from(u32::MAX);
        for at in &self.all[queue as usize].limited {
            let limited = &self.all[*at as usize];
            for (kind, limit) in &limited.most {
                let each = i128::from(need.get(*kind));
                if each > 0 {
                    most = most.min(limited.left_for((queue, shape), *kind, *limit) / each);
                }
            }
        }
        u32::try_from(most.max(0)).unwrap_or(u32::MAX)
    }

    /// The limits above a queue that allow no slot of a shape more: whose, and of what.
    pub fn full_limits(&self, queue: u32, shape: ShapeId, need: &Need) -> Vec<(u32, usize)> {
        self.full_with(queue, shape, need, |_, _| 0)
    }

    /// The same once what is being given up is gone, and what room is being made for is there.
    pub fn full_after(&self, queue: u32, shape: ShapeId, need: &Need) -> Vec<(u32, usize)> {
        let of = |list: &[i128], kind: usize| list.get(kind).copied().unwrap_or(0);
        self.full_with(queue, shape, need, |branch, kind| {
            of(&branch.leaving, kind) - of(&branch.coming, kind)
        })
    }

    fn full_with(
        &self,
        queue: u32,
        shape: ShapeId,
        need: &Need,
        more: impl Fn(&Branch, usize) -> i128,
    ) -> Vec<(u32, usize)> {
        let mut full = Vec::new();
        for at in &self.all[queue as usize].limited {
            let limited = &self.all[*at as usize];
            for (kind, limit) in &limited.most {
                let each = i128::from(need.get(*kind));
                let left = || limited.left_for((queue, shape), *kind, *limit) + more(limited, *kind);
                if each > 0 && left() < each {
                    full.push((*at, *kind));
                }
            }
        }
        full
    }

    /// Sets what one slot of a shape needs aside in the limits above a queue, unless something is in one of them: two might
    /// wait for each other for ever.
    pub fn set_aside(&mut self, aside: Aside) {
        let limited = self.all[aside.queue as usize].limited.clone();
        let is_free = |at: &u32| self.all[*at as usize].aside.is_none();
        if !self.aside.contains_key(&aside.who) && limited.iter().all(is_free) {
            for at in limited {
                self.all[at as usize].aside = Some((aside.queue, aside.shape, Arc::clone(&aside.need)));
            }
            self.aside.insert(aside.who, aside);
        }
    }

    fn clear_aside(&mut self, queue: u32) {
        for at in self.all[queue as usize].limited.clone() {
            self.all[at as usize].aside = None;
        }
    }

    /// Nothing is set aside for somebody any longer.
    pub fn forget_aside(&mut self, who: Oldest) {
        if let Some(aside) = self.aside.remove(&who).filter(|aside| !aside.paused) {
            self.clear_aside(aside.queue);
        }
    }

    /// What is set aside for others in the limits above a queue, which would allow more slots of a shape without it.
    pub fn asides_against(&self, queue: u32, shape: ShapeId, need: &Need) -> Vec<&Aside> {
        let full = self.full_limits(queue, shape, need);
        let others = |aside: &&Aside| {
            let is_it = |(at, kind): &(u32, usize)| {
                let held = self.all[*at as usize].aside.as_ref();
                held.is_some_and(|(queue, shape, _)| (*queue, *shape) == (aside.queue, aside.shape))
                    && aside.need.get(*kind) > 0
            };
            !aside.paused && (aside.queue, aside.shape) != (queue, shape) && full.iter().any(is_it)
        };
        self.aside.values().filter(others).collect()
    }

    /// Nothing is set aside for somebody until then, whatever comes first.
    pub fn pause_aside(&mut self, who: Oldest, until: Millis) {
        if let Some(aside) = self.aside.get_mut(&who).filter(|aside| !aside.paused) {
            (aside.paused, aside.until) = (true, until);
            let queue = aside.queue;
            self.clear_aside(queue);
        }
    }

    /// Whether any queue has a limit.
    pub fn any_limited(&self) -> bool {
        self.all.iter().any(|branch| !branch.limit.is_empty())
    }

    /// What was set aside for as long as this is not for as long.
    pub fn pause_asides(&mut self, now: Millis, span: Millis) {
        self.aside.retain(|_, aside| !aside.paused || aside.until > now);
        let mut late = Vec::new();
        for aside in self.aside.values_mut().filter(|aside| aside.until <= now) {
            (aside.paused, aside.until) = (true, now.plus(span));
            late.push(aside.queue);
        }
        late.into_iter().for_each(|queue| self.clear_aside(queue));
    }

    /// Whether the limit of a queue is one of this kind.
    pub fn limits(&self, queue: u32, kind: usize) -> bool {
        self.all[queue as usize].most.iter().any(|(limited, _)| *limited == kind)
    }

    /// The queues whose limits hold for a queue: itself and those above it.
    pub fn limited(&self, queue: u32) -> &[u32] {
        &self.all[queue as usize].limited
    }

    /// What the limit of a queue leaves.
    pub fn left(&self, queue: u32, kinds: &Kinds) -> Limit {
        let branch = &self.all[queue as usize];
        let left = |(kind, limit): &(Kind, Quantity)| {
            // Of a kind that no node has nothing is in use.
            let used = kinds.find(kind).map_or(0, |kind| branch.used(kind));
            let units = i64::try_from((i128::from(limit.units()) - used).max(0)).unwrap_or(i64::MAX);
            (kind.clone(), Quantity::from_units(units).unwrap_or(Quantity::MAX))
        };
        Limit { queue: branch.name.clone(), left: branch.limit.iter().map(left).collect() }
    }

    /// Of the limits above a queue one that allows no slot more, if any: whose, of what, how much it is, and how much
    /// of it is in use.
    pub fn full(&self, queue: u32, need: &Need) -> Option<(&str, usize, i64, i128)> {
        let limits = self.all[queue as usize].limited.iter().flat_map(|at| {
            let limited = &self.all[*at as usize];
            limited.most.iter().map(move |(kind, limit)| (limited, *kind, *limit))
        });
        let over = |(limited, kind, limit): &(&Branch, usize, i64)| {
            let used = limited.used(*kind);
            need.get(*kind) > 0 && used + i128::from(need.get(*kind)) > i128::from(*limit)
        };
        let found = limits.into_iter().find(over);
        found.map(|(limited, kind, limit)| (limited.name.as_str(), kind, limit, limited.used(kind)))
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
}
