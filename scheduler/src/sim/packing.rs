//! How well work is packed, against oracles that pack it by best fit, the largest first.

use std::{cmp::Reverse, sync::Arc};

use mobula_proto::{
    HostId, JobId, NodeId, Resources,
    resource::{Class, Kind, Strategy},
};

use super::{Random, load};
use crate::{Effect, Event, Millis, Options, Scheduler};

/// What becomes of requests for more than so many nodes have of each kind, that come one by one in no order: the part of
/// the cluster that was granted to them. A request counts by the scarcest kind of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packing {
    /// By the scheduler, which places each as it comes.
    pub ours: f64,
    /// By an oracle that sees all of them before it places any, and may choose those that it likes best.
    pub oracle: f64,
    /// By one that must take them as they come, but may move all that it has taken before, for each anew.
    pub moving: f64,
}

/// Packs requests of a seed onto so many nodes.
pub fn packing(seed: u64, nodes: u32) -> Packing {
    let mut random = Random::new(seed);
    let mut scheduler = Scheduler::new(Options::default());
    let mut bins = Bins { totals: [0; 3], all: Vec::new() };
    for up in load::nodes(nodes) {
        if let Event::NodeUp { total, .. } = &up {
            bins.add(amounts(total));
        }
        scheduler.step(up, Millis(0));
    }
    let (mut wanted, mut sum) = (Vec::new(), 0.0);
    while sum < 3.0 {
        let class = load::class(&mut random, wanted.len(), 0, nodes);
        // Each on its own, so that all may put it anywhere.
        let class = Class {
            labels: Vec::new(),
            fallbacks: Vec::new(),
            strategy: Strategy::Hybrid,
            priority: 0,
            ..class
        };
        sum += bins.part(&amounts(&class.resources));
        wanted.push(class);
    }
    let needs: Vec<Amounts> = wanted.iter().map(|class| amounts(&class.resources)).collect();
    let mut ours = 0.0;
    for (at, (class, need)) in wanted.into_iter().zip(&needs).enumerate() {
        let number = 1_000_000 + u32::try_from(at / 1000).unwrap_or(0);
        let effects = scheduler.step(
            Event::Demand {
                owner: HostId { node: NodeId { number, incarnation: 1 }, seq: 1 },
                key: (at % 1000) as u32,
                job: JobId { number: 1 },
                class: Arc::new(class),
                backlog: 1,
                attempt: 0,
                locality: Vec::new(),
            },
            Millis(0),
        );
        let granted = effects.iter().any(|effect| matches!(effect, Effect::Grant(_)));
        ours += if granted { bins.part(need) } else { 0.0 };
    }
    Packing { ours, oracle: bins.clone().all_at_once(&needs), moving: bins.one_by_one(&needs) }
}

/// CPU, memory and GPUs.
type Amounts = [i64; 3];

fn amounts(resources: &Resources) -> Amounts {
    [Kind::Cpu, Kind::Memory, Kind::Gpu].map(|kind| resources.get(&kind).units())
}

/// What is left on each node.
#[derive(Clone)]
struct Bins {
    totals: Amounts,
    all: Vec<Amounts>,
}

impl Bins {
    fn add(&mut self, bin: Amounts) {
        self.all.push(bin);
        self.totals.iter_mut().zip(bin).for_each(|(total, amount)| *total += amount);
    }

    /// The part of the cluster that this is of its scarcest kind.
    fn part(&self, need: &Amounts) -> f64 {
        let parts = need.iter().zip(self.totals).map(|(amount, total)| *amount as f64 / total.max(1) as f64);
        parts.fold(0.0, f64::max)
    }

    /// Takes something where it fits best: on the fullest node that has room.
    fn take(&mut self, need: &Amounts) -> bool {
        let totals = self.totals;
        let left = |bin: &Amounts| -> f64 {
            bin.iter().zip(totals).map(|(amount, total)| *amount as f64 / total.max(1) as f64).sum()
        };
        let fits = |bin: &&mut Amounts| bin.iter().zip(need).all(|(has, wants)| has >= wants);
        let best = self.all.iter_mut().filter(fits).min_by(|a, b| left(a).total_cmp(&left(b)));
        best.map(|bin| bin.iter_mut().zip(need).for_each(|(has, wants)| *has -= wants)).is_some()
    }

    /// The largest first.
    fn sort(&self, needs: &mut [Amounts]) {
        needs.sort_by_key(|need| Reverse((self.part(need) * 1e12) as u64));
    }

    fn all_at_once(mut self, needs: &[Amounts]) -> f64 {
        let mut needs = needs.to_vec();
        self.sort(&mut needs);
        needs.iter().map(|need| if self.take(need) { self.part(need) } else { 0.0 }).sum()
    }

    fn one_by_one(self, needs: &[Amounts]) -> f64 {
        let (mut bins, mut taken, mut sum) = (self.clone(), Vec::new(), 0.0);
        for need in needs {
            let room = |kind: usize| bins.all.iter().map(|bin| bin[kind]).sum::<i64>() >= need[kind];
            if !(0..need.len()).all(room) {
                continue;
            }
            taken.push(*need);
            if !bins.take(need) {
                let (mut moved, mut all) = (self.clone(), taken.clone());
                self.sort(&mut all);
                if !all.iter().all(|each| moved.take(each)) {
                    taken.pop();
                    continue;
                }
                bins = moved;
            }
            sum += self.part(need);
        }
        sum
    }
}
