//! How well work is packed, against an oracle that sees all of it before.

use std::{cmp::Reverse, sync::Arc};

use mobula_proto::{
    HostId, JobId, NodeId, Resources,
    resource::{Class, Strategy},
};

use super::{Random, load};
use crate::{Effect, Event, Millis, Options, Scheduler};

/// Requests for more than so many nodes have of each kind, one by one in no order: the part of the cluster that was granted
/// to them, and the part that best-fit-decreasing finds room for. Each is the scarcest kind of a request, summed up.
pub fn packing(seed: u64, nodes: u32) -> (f64, f64) {
    let mut random = Random::new(seed);
    let mut scheduler = Scheduler::new(Options::default());
    let (mut bins, mut totals) = (Vec::new(), Resources::none());
    for up in load::nodes(nodes) {
        if let Event::NodeUp { total, .. } = &up {
            bins.push(total.clone());
            totals.add(total);
        }
        scheduler.step(up, Millis(0));
    }
    let part = |resources: &Resources| {
        let of = |(kind, amount): (&mobula_proto::resource::Kind, mobula_proto::Quantity)| {
            amount.units() as f64 / totals.get(kind).units().max(1) as f64
        };
        resources.iter().map(of).fold(0.0, f64::max)
    };
    let (mut wanted, mut sum) = (Vec::new(), 0.0);
    while sum < 3.0 {
        let class = load::class(&mut random, wanted.len(), 0, nodes);
        // Each on its own, so that both may put it anywhere.
        let class = Class { labels: Vec::new(), strategy: Strategy::Hybrid, priority: 0, ..class };
        sum += part(&class.resources);
        wanted.push(class);
    }
    let mut ours = 0.0;
    for (at, class) in wanted.iter().enumerate() {
        let number = 1_000_000 + u32::try_from(at / 1000).unwrap_or(0);
        let effects = scheduler.step(
            Event::Demand {
                owner: HostId { node: NodeId { number, incarnation: 1 }, seq: 1 },
                key: (at % 1000) as u32,
                job: JobId { number: 1 },
                class: Arc::new(class.clone()),
                backlog: 1,
                attempt: 0,
                locality: Vec::new(),
            },
            Millis(0),
        );
        let granted = effects.iter().any(|effect| matches!(effect, Effect::Grant(_)));
        ours += if granted { part(&class.resources) } else { 0.0 };
    }
    let mut largest: Vec<&Resources> = wanted.iter().map(|class| &class.resources).collect();
    largest.sort_by_key(|resources| Reverse((part(resources) * 1e12) as u64));
    let mut oracle = 0.0;
    for resources in largest {
        // The fullest that has room.
        let left = |bin: &Resources| {
            bin.iter()
                .map(|(kind, amount)| amount.units() as f64 / totals.get(kind).units().max(1) as f64)
                .sum::<f64>()
        };
        let fits = bins.iter_mut().filter(|bin| bin.covers(resources));
        if let Some(bin) = fits.min_by(|a, b| left(a).total_cmp(&left(b))) {
            for (kind, amount) in resources.iter() {
                let rest = mobula_proto::Quantity::from_units(bin.get(kind).units() - amount.units());
                bin.set(kind.clone(), rest.unwrap_or_default());
            }
            oracle += part(resources);
        }
    }
    (ours, oracle)
}
