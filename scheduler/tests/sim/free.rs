//! What is free, counted from what was said alone: nothing waits beside it.
//!
//! The scheduler checks itself by its own accounts of what is free, which may be wrong; this knows only events and effects.

use std::collections::BTreeMap;

use mobula_proto::{
    JobId, NodeId, Quantity, Resources,
    resource::{Class, DeviceGrant, Kind, LabelRule, Strategy},
};

use crate::World;

/// What of a node is free, in the smallest units.
struct Free {
    amounts: BTreeMap<Kind, i64>,
    /// Of GPU and TPU, by index.
    devices: BTreeMap<(Kind, u32), i64>,
}

impl Free {
    fn all(total: &Resources) -> Self {
        let one = Quantity::PER_ONE;
        let kinds = total.iter().filter(|(kind, _)| kind.is_device());
        let devices = kinds.flat_map(|(kind, count)| {
            (0..count.units() / one).map(move |index| ((kind.clone(), index as u32), one))
        });
        Self {
            amounts: total.iter().map(|(kind, amount)| (kind.clone(), amount.units())).collect(),
            devices: devices.collect(),
        }
    }

    /// Slots are in use, of which some wait and have given their CPU back.
    fn take(&mut self, each: &Resources, slots: u32, waits: u32, devices: &[DeviceGrant]) {
        for (kind, amount) in each.iter() {
            let slots = if *kind == Kind::Cpu { slots - waits } else { slots };
            *self.amounts.get_mut(kind).expect("what runs there is there") -=
                amount.units() * i64::from(slots);
        }
        for device in devices {
            let free = self.devices.get_mut(&(device.kind.clone(), device.index)).expect("a device");
            *free -= device.share.units();
            assert!(*free >= 0, "a device is held twice");
        }
    }

    fn fits(&self, each: &Resources) -> bool {
        let one = Quantity::PER_ONE;
        each.iter().all(|(kind, amount)| {
            let amount = amount.units();
            let of_kind = || self.devices.iter().filter(|((of, _), _)| of == kind).map(|(_, free)| *free);
            let devices = match kind.is_device() {
                false => true,
                true if amount < one => of_kind().any(|free| free >= amount),
                true => of_kind().filter(|free| *free == one).count() as i64 * one >= amount,
            };
            devices && self.amounts.get(kind).is_some_and(|free| *free >= amount)
        })
    }
}

impl World {
    fn free(&self) -> BTreeMap<NodeId, Free> {
        let mut all: BTreeMap<NodeId, Free> =
            self.living.iter().map(|(node, total)| (*node, Free::all(total))).collect();
        for lease in self.leases.values().filter(|lease| lease.bundle.is_none()) {
            let free = all.get_mut(&lease.node).expect("it runs on a living node");
            let waits = self.blocked.get(&lease.id).copied().unwrap_or(0);
            free.take(&lease.class.resources, lease.slots, waits, &lease.devices);
        }
        for known in self.groups.values() {
            for (bundle, node) in &known.places {
                let free = all.get_mut(node).expect("it is on a living node");
                free.take(&known.spec.bundles[*bundle as usize], 1, 0, &known.devices[bundle]);
            }
        }
        all
    }

    /// What waits is what the scheduler says; and where nobody holds room back for others, there is none for it.
    pub fn check_free(&self) {
        let waits = self.scheduler.demands().map(|demand| ((demand.owner, demand.key), demand.backlog));
        let wanted = self.wanted.iter().filter(|(_, slots)| **slots > 0).map(|(key, slots)| (*key, *slots));
        assert!(waits.eq(wanted), "what waits is what is wanted");
        if !self.calm {
            return;
        }
        let free = self.free();
        for (owner, key) in self.wanted.iter().filter(|(_, slots)| **slots > 0).map(|(key, _)| *key) {
            let (job, class) = &self.classes[&(owner, key)];
            if !self.is_within_limits(class) {
                continue;
            }
            if let Some((node, _)) = free.iter().find(|(node, free)| self.may(*job, class, **node, free)) {
                panic!("class {key} of {owner} waits, but {node} has room: {class:?}");
            }
        }
    }

    /// Whether the limits above a queue leave room for a slot.
    fn is_within_limits(&self, class: &Class) -> bool {
        self.above(&class.queue).iter().all(|queue| {
            let mut limits = self.limits.get(queue).into_iter().flatten();
            limits.all(|(kind, limit)| {
                let each = class.resources.get(kind).units();
                each == 0 || self.used(queue, kind) + each <= limit.units()
            })
        })
    }

    /// Whether a slot of a class may be granted on a node.
    fn may(&self, job: JobId, class: &Class, node: NodeId, free: &Free) -> bool {
        let holds = |rules: &Vec<LabelRule>| rules.iter().all(|rule| rule.holds(&self.labels[&node]));
        let labels = holds(&class.labels) || class.fallbacks.iter().any(holds);
        let same = || {
            let mut there = self.leases.values().filter(|lease| lease.node == node && lease.job == job);
            there.any(|lease| *lease.class == *class)
        };
        let strategy = match class.strategy {
            Strategy::Node { node: only, soft: false } => only == node,
            Strategy::Apart => !same(),
            Strategy::Group { .. } => false,
            _ => true,
        };
        let works = !free.amounts.is_empty() && !self.draining.contains(&node);
        works && labels && strategy && free.fits(&class.resources)
    }
}
