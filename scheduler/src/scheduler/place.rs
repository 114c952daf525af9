//! Who goes first, and how many slots each gets at once.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    sync::Arc,
};

use mobula_proto::{JobId, LeaseId};

use super::Scheduler;
use crate::{
    Demand, Effect, Lease,
    demand::{self, Turn},
    lease::Entry,
    node::needs_devices,
    strategy::{self, Candidate},
};

/// How much of what fits a demand may take at once.
#[derive(Clone, Copy, Debug)]
enum Share {
    /// Nobody competes.
    All,
    /// This many slots bring its job level with the next.
    Gap(u64),
    /// So many jobs hold equally little.
    OneOf(usize),
}

impl Share {
    fn of(self, backlog: u32, room: u64) -> u32 {
        let allowed = match self {
            Self::All => u64::MAX,
            Self::Gap(gap) => gap,
            Self::OneOf(jobs) => room.div_ceil(jobs.max(1) as u64),
        };
        backlog.min(u32::try_from(allowed).unwrap_or(u32::MAX)).max(1)
    }
}

/// The leases made in one step. Several grants to one demand on one node become one lease.
#[derive(Debug, Default)]
struct Round {
    granted: Vec<LeaseId>,
    fresh: BTreeMap<(demand::Key, u32), LeaseId>,
}

impl Scheduler {
    /// Places one demand wherever there is room: everything else that waits fits nowhere, so nobody competes.
    pub(super) fn place_one(&mut self, key: demand::Key, out: &mut Vec<Effect>) {
        let mut round = Round::default();
        self.try_place(key, Share::All, None, &mut round);
        self.announce(round, out);
    }

    /// Places what waits where capacity became free.
    pub(super) fn place_freed(&mut self, out: &mut Vec<Effect>) {
        let freed = std::mem::take(&mut self.freed);
        if freed.is_empty() || self.waiting.is_empty() {
            return;
        }
        let mut round = Round::default();
        let turns: Vec<Turn> = self.waiting.iter().copied().collect();
        for level in turns.chunk_by(|a, b| a.0 == b.0) {
            self.place_level(level, &freed, &mut round);
        }
        self.announce(round, out);
    }

    /// Places the demands of one priority: always the oldest of the job that holds the fewest slots, until none fits.
    fn place_level(&mut self, level: &[Turn], freed: &BTreeSet<u32>, round: &mut Round) {
        let mut queues: BTreeMap<JobId, VecDeque<(u64, demand::Key)>> = BTreeMap::new();
        for (_, job, arrival, key) in level {
            queues.entry(*job).or_default().push_back((*arrival, *key));
        }
        let held = |this: &Self, job: JobId| this.slots_held.get(&job).copied().unwrap_or(0);
        let mut order: BTreeSet<(u64, u64, JobId)> = queues
            .iter()
            .filter_map(|(job, queue)| Some((held(self, *job), queue.front()?.0, *job)))
            .collect();
        while let Some((least, _, job)) = order.pop_first() {
            let Some(queue) = queues.get_mut(&job) else { continue };
            let Some((_, key)) = queue.front().copied() else { continue };
            let share = match order.first() {
                None => Share::All,
                Some((next, ..)) if *next > least => Share::Gap(next - least),
                Some(_) => Share::OneOf(order.len() + 1),
            };
            if self.try_place(key, share, Some(freed), round) == 0 || !self.demands.contains_key(&key) {
                queue.pop_front();
            }
            if let Some((arrival, _)) = queue.front() {
                order.insert((held(self, job), *arrival, job));
            }
        }
    }

    /// Grants a demand up to its share, and returns how many slots that was. One that has all it wanted is forgotten.
    fn try_place(
        &mut self,
        key: demand::Key,
        share: Share,
        among: Option<&BTreeSet<u32>>,
        round: &mut Round,
    ) -> u32 {
        let Some(mut demand) = self.demands.remove(&key) else { return 0 };
        let mut placed = 0;
        let mut want = None;
        loop {
            let found = match among {
                None => strategy::candidates(&demand, self.nodes.values(), self.options.seed),
                Some(numbers) => {
                    let nodes = numbers.iter().filter_map(|number| self.nodes.get(number));
                    strategy::candidates(&demand, nodes, self.options.seed)
                }
            };
            let room = found.iter().map(|c| u64::from(c.room)).sum();
            let want = *want.get_or_insert_with(|| share.of(demand.backlog, room));
            let before = placed;
            let mut best: BinaryHeap<Reverse<Candidate>> = found.into_iter().map(Reverse).collect();
            while placed < want {
                let Some(Reverse(candidate)) = best.pop() else { break };
                placed += self.grant(&demand, candidate.number, candidate.cap.min(want - placed), round);
            }
            if placed >= want || placed == before {
                break;
            }
        }
        demand.backlog -= placed;
        if demand.backlog == 0 {
            self.waiting.remove(&demand.turn());
        } else {
            self.demands.insert(key, demand);
        }
        placed
    }

    /// Leases `slots` on a node that has room for them.
    fn grant(&mut self, demand: &Demand, number: u32, slots: u32, round: &mut Round) -> u32 {
        let (grants, each) = if needs_devices(&demand.class) { (slots, 1) } else { (1, slots) };
        for _ in 0..grants {
            let Some(node) = self.nodes.get_mut(&number) else { return 0 };
            let devices = node.take(demand.job, &demand.class, each);
            let fresh = round.fresh.get(&(demand.id(), number)).filter(|_| devices.is_empty());
            if let Some(entry) = fresh.and_then(|id| self.leases.get_mut(id)) {
                entry.lease.slots += each;
                continue;
            }
            let id = LeaseId { number: self.next_lease };
            self.next_lease += 1;
            let lease = Lease {
                id,
                owner: demand.owner,
                key: demand.key,
                job: demand.job,
                node: node.id,
                slots: each,
                class: Arc::clone(&demand.class),
                bundle: None,
                devices,
                queue: demand.class.queue.clone(),
                priority: demand.class.priority,
                attempt: demand.attempt,
                incarnation: node.id.incarnation,
                term: self.options.term,
                expires: self.now.plus(self.options.term),
            };
            node.leases.insert(id);
            self.expiries.insert((lease.expires, id));
            self.by_owner.entry(lease.owner).or_default().insert(id);
            self.leases.insert(id, Entry { lease, blocked: 0, asked: None });
            round.fresh.insert((demand.id(), number), id);
            round.granted.push(id);
        }
        *self.slots_held.entry(demand.job).or_default() += u64::from(slots);
        slots
    }

    fn announce(&self, round: Round, out: &mut Vec<Effect>) {
        let entries = round.granted.iter().filter_map(|id| self.leases.get(id));
        out.extend(entries.map(|entry| Effect::Grant(entry.lease.clone())));
    }
}
