//! Nodes: what each has, what is left of it, and which devices are free.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{
    JobId, LeaseId, NodeId, Quantity, Resources,
    resource::{Class, Device, DeviceGrant, Kind, Label, Strategy},
};

/// Most slots that any one class of a job holds on one node, however little each needs: tasks that run at once, and
/// actors that live.
pub const SLOTS_MAX: u32 = 1 << 22;
/// Utilisation is counted in ten-thousandths.
pub(crate) const FULL: i64 = 10_000;

/// A node as the scheduler sees it now.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// The node.
    pub node: NodeId,
    /// All it has.
    pub total: &'a Resources,
    /// What no lease holds.
    pub available: &'a Resources,
    /// CPU in use beyond the total, because waiting tasks resumed; zero while any CPU is available.
    pub overdraft: Quantity,
    /// Its labels, sorted by key.
    pub labels: &'a [Label],
    /// The leases on it.
    pub leases: &'a BTreeSet<LeaseId>,
    /// Whether it gets no new grants.
    pub draining: bool,
}

#[derive(Debug)]
struct DeviceState {
    kind: Kind,
    index: u32,
    free: Quantity,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub id: NodeId,
    pub total: Resources,
    pub available: Resources,
    pub overdraft: Quantity,
    pub labels: Vec<Label>,
    pub draining: bool,
    pub leases: BTreeSet<LeaseId>,
    /// Slots that each job's classes hold here.
    pub slots: BTreeMap<(JobId, Arc<Class>), u32>,
    devices: Vec<DeviceState>,
}

/// `each * n`, at most [`Quantity::MAX`].
pub(crate) fn times(each: Quantity, n: u32) -> Quantity {
    Quantity::from_units(each.units().saturating_mul(n.into())).unwrap_or(Quantity::MAX)
}

/// Whether a class needs indexed devices, and so gets one slot for each lease.
pub(crate) fn needs_devices(class: &Class) -> bool {
    class.resources.iter().any(|(kind, _)| kind.is_device())
}

impl Node {
    /// A node that passed [`crate::Event::validate`].
    pub fn new(id: NodeId, total: Resources, listed: &[Device], mut labels: Vec<Label>) -> Self {
        labels.sort();
        let mut devices = Vec::new();
        for kind in [Kind::Gpu, Kind::Tpu] {
            let mut indices: Vec<u32> = listed.iter().filter(|d| d.kind == kind).map(|d| d.index).collect();
            if indices.is_empty() {
                let count = total.get(&kind).times(Quantity::ONE);
                indices.extend(0..u32::try_from(count).unwrap_or(0));
            }
            indices.sort_unstable();
            devices.extend(indices.into_iter().map(|index| DeviceState {
                kind: kind.clone(),
                index,
                free: Quantity::ONE,
            }));
        }
        Self {
            id,
            available: total.clone(),
            total,
            overdraft: Quantity::ZERO,
            labels,
            draining: false,
            leases: BTreeSet::new(),
            slots: BTreeMap::new(),
            devices,
        }
    }

    pub fn view(&self) -> NodeView<'_> {
        NodeView {
            node: self.id,
            total: &self.total,
            available: &self.available,
            overdraft: self.overdraft,
            labels: &self.labels,
            leases: &self.leases,
            draining: self.draining,
        }
    }

    /// Whether it can run anything at all.
    pub fn works(&self) -> bool {
        !self.total.is_empty()
    }

    pub fn has_devices(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Whether all label rules hold here and the strategy allows it.
    pub fn admits(&self, class: &Class) -> bool {
        let allowed = match &class.strategy {
            Strategy::Node { node, soft: false } => *node == self.id,
            _ => true,
        };
        allowed && self.works() && class.labels.iter().all(|rule| rule.holds(&self.labels))
    }

    /// Whether it could hold a slot of this class if nothing else ran.
    pub fn could_ever(&self, class: &Class) -> bool {
        self.admits(class) && self.total.covers(&class.resources)
    }

    /// How many slots of the class `job` holds here.
    pub fn slots_of(&self, job: JobId, class: &Arc<Class>) -> u32 {
        self.slots.get(&(job, Arc::clone(class))).copied().unwrap_or(0)
    }

    /// How many more slots fit now, whatever the labels and the strategy say.
    pub fn room(&self, job: JobId, class: &Arc<Class>) -> u32 {
        let fits = class.resources.iter().map(|(kind, each)| {
            let amount = self.available.get(kind).times(each);
            if kind.is_device() { amount.min(self.device_room(kind, each)) } else { amount }
        });
        let fits = fits.min().and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
        if fits == 0 { 0 } else { fits.min(SLOTS_MAX.saturating_sub(self.slots_of(job, class))) }
    }

    /// How many times `each` fits into the devices of a kind: a fraction into one, more into whole ones.
    pub fn device_room(&self, kind: &Kind, each: Quantity) -> u64 {
        let free = self.devices.iter().filter(|d| d.kind == *kind).map(|d| d.free);
        if each < Quantity::ONE {
            free.map(|f| f.times(each)).sum()
        } else {
            let whole = free.filter(|f| *f == Quantity::ONE).count() as u64;
            whole / each.times(Quantity::ONE).max(1)
        }
    }

    /// How full the scarcest resource would be, in ten-thousandths, with one more slot of `need`. Processors, memory
    /// and what is needed count; a custom resource that nobody here wants does not.
    pub fn utilisation_with(&self, need: &Resources) -> i64 {
        let full = |kind: &Kind, total: Quantity| {
            let over = if *kind == Kind::Cpu { self.overdraft.units() } else { 0 };
            let used = total.units() - self.available.get(kind).units() + over + need.get(kind).units();
            i64::try_from(i128::from(used) * i128::from(FULL) / i128::from(total.units().max(1)))
                .unwrap_or(i64::MAX)
        };
        self.total
            .iter()
            .filter(|(kind, _)| matches!(kind, Kind::Cpu | Kind::Memory) || !need.get(kind).is_zero())
            .map(|(kind, total)| full(kind, total))
            .max()
            .unwrap_or(0)
    }

    /// Takes `slots` (at most [`Node::room`], and 1 where there are devices) and picks the devices.
    pub fn take(&mut self, job: JobId, class: &Arc<Class>, slots: u32) -> Vec<DeviceGrant> {
        let mut grants = Vec::new();
        for (kind, each) in class.resources.iter() {
            let rest = self.available.get(kind).minus(times(each, slots));
            debug_assert!(rest.is_some(), "took more {kind} than {} has", self.id);
            self.available.set(kind.clone(), rest.unwrap_or_default());
            if kind.is_device() {
                self.take_devices(kind, each, &mut grants);
            }
        }
        let held = self.slots.entry((job, Arc::clone(class))).or_default();
        *held = held.saturating_add(slots);
        grants
    }

    /// Fractions go to the fullest device that has room, so that whole ones stay whole.
    fn take_devices(&mut self, kind: &Kind, each: Quantity, grants: &mut Vec<DeviceGrant>) {
        let (share, count) =
            if each < Quantity::ONE { (each, 1) } else { (Quantity::ONE, each.times(Quantity::ONE)) };
        for _ in 0..count {
            let fitting = self.devices.iter_mut().filter(|d| d.kind == *kind && d.free >= share);
            let Some(device) = fitting.min_by_key(|d| (d.free, d.index)) else { return };
            device.free = device.free.minus(share).unwrap_or_default();
            grants.push(DeviceGrant { kind: kind.clone(), index: device.index, share });
        }
    }

    /// Gives back one kind; CPU pays off the overdraft first.
    pub fn give(&mut self, kind: &Kind, mut amount: Quantity) {
        if *kind == Kind::Cpu && !self.overdraft.is_zero() {
            let paid = amount.min(self.overdraft);
            self.overdraft = self.overdraft.minus(paid).unwrap_or_default();
            amount = amount.minus(paid).unwrap_or_default();
        }
        self.available.set(kind.clone(), self.available.get(kind).plus(amount));
    }

    /// Takes CPU whether or not it is there.
    pub fn take_cpu_back(&mut self, amount: Quantity) {
        let have = self.available.get(&Kind::Cpu);
        let taken = have.min(amount);
        self.available.set(Kind::Cpu, have.minus(taken).unwrap_or_default());
        self.overdraft = self.overdraft.plus(amount.minus(taken).unwrap_or_default());
    }

    pub fn give_devices(&mut self, grants: &[DeviceGrant]) {
        for grant in grants {
            if let Some(d) = self.devices.iter_mut().find(|d| d.kind == grant.kind && d.index == grant.index)
            {
                d.free = d.free.plus(grant.share).min(Quantity::ONE);
            }
        }
    }

    /// Forgets slots that [`Node::take`] counted.
    pub fn forget_slots(&mut self, job: JobId, class: &Arc<Class>, slots: u32) {
        let key = (job, Arc::clone(class));
        if let Some(held) = self.slots.get_mut(&key) {
            *held = held.saturating_sub(slots);
            if *held == 0 {
                self.slots.remove(&key);
            }
        }
    }

    /// How much of each device is free, in a fixed order.
    pub fn devices_free(&self) -> impl Iterator<Item = (&Kind, u32, Quantity)> {
        self.devices.iter().map(|d| (&d.kind, d.index, d.free))
    }
}
