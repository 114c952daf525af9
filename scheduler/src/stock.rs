//! What a node or a bundle has, and what is left of it: dense numbers for the kinds that everybody has.

use std::collections::BTreeMap;

use mobula_proto::{
    Quantity, Resources,
    resource::{DeviceGrant, Kind},
};

/// Kinds by number.
pub(crate) const CPU: usize = 0;
pub(crate) const MEMORY: usize = 1;
pub(crate) const GPU: usize = 2;
pub(crate) const TPU: usize = 3;
/// Kinds that every stock has a number for, used or not.
pub(crate) const BASE: usize = 4;
/// What summaries of many stocks are kept of: CPU, memory; of GPU and TPU whole ones and the most of one; and
/// custom kinds, which share two.
pub(crate) const DIMS: usize = 8;

const ONE: i64 = Quantity::PER_ONE;

/// Numbers of kinds: the built-in ones, and the custom ones that some node had.
#[derive(Debug)]
pub(crate) struct Kinds {
    names: Vec<Kind>,
    custom: BTreeMap<Kind, u32>,
}

impl Kinds {
    pub fn new() -> Self {
        Self { names: vec![Kind::Cpu, Kind::Memory, Kind::Gpu, Kind::Tpu], custom: BTreeMap::new() }
    }

    pub fn find(&self, kind: &Kind) -> Option<usize> {
        match kind {
            Kind::Cpu => Some(CPU),
            Kind::Memory => Some(MEMORY),
            Kind::Gpu => Some(GPU),
            Kind::Tpu => Some(TPU),
            Kind::Custom(_) => self.custom.get(kind).map(|at| *at as usize),
        }
    }

    /// Whether any of these is new.
    pub fn learn(&mut self, resources: &Resources) -> bool {
        let before = self.names.len();
        for (kind, _) in resources.iter() {
            if self.find(kind).is_none() {
                self.custom.insert(kind.clone(), u32::try_from(self.names.len()).unwrap_or(u32::MAX));
                self.names.push(kind.clone());
            }
        }
        self.names.len() > before
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn name(&self, at: usize) -> Option<&Kind> {
        self.names.get(at)
    }

    pub fn resources(&self, amounts: impl Iterator<Item = (usize, i64)>) -> Resources {
        let mut all = Resources::none();
        for (at, amount) in amounts {
            if let (Some(kind), Ok(amount)) = (self.names.get(at), Quantity::from_units(amount)) {
                all.set(kind.clone(), amount);
            }
        }
        all
    }
}

/// What one slot needs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Need {
    /// Sorted by kind, none zero.
    pub amounts: Vec<(usize, i64)>,
    pub base: [i64; BASE],
    pub dims: [i64; DIMS],
    /// Whether every kind is one that some node had.
    pub known: bool,
    /// Whether it needs indexed devices, and so gets one slot for each lease.
    pub devices: bool,
    /// Whether very many slots would fit into very little.
    pub tiny: bool,
}

impl Need {
    pub fn of(resources: &Resources, kinds: &Kinds) -> Self {
        let mut need = Self {
            amounts: Vec::new(),
            base: [0; BASE],
            dims: [0; DIMS],
            known: true,
            devices: false,
            tiny: resources.iter().all(|(_, each)| each.units() < ONE / 100),
        };
        for (kind, each) in resources.iter() {
            let (Some(at), each) = (kinds.find(kind), each.units()) else {
                need.known = false;
                continue;
            };
            need.amounts.push((at, each));
            if at < BASE {
                need.base[at] = each;
            }
            let dim = dim_of(at, each);
            need.dims[dim] = need.dims[dim].max(each);
            need.devices |= at == GPU || at == TPU;
        }
        need.amounts.sort_unstable();
        need
    }

    pub fn nothing() -> Self {
        Self {
            amounts: Vec::new(),
            base: [0; BASE],
            dims: [0; DIMS],
            known: true,
            devices: false,
            tiny: false,
        }
    }

    /// All it needs but one kind, which is one of the first.
    pub fn without(&self, kind: usize) -> Self {
        let mut rest = self.clone();
        rest.amounts.retain(|(at, _)| *at != kind);
        rest.base[kind] = 0;
        rest.dims[kind] = 0;
        rest
    }

    /// Adds what another needs. Of what is bounded by single devices or shared by kinds, the largest is kept.
    pub fn add(&mut self, other: &Self) {
        for (kind, each) in &other.amounts {
            match self.amounts.binary_search_by_key(kind, |(at, _)| *at) {
                Ok(at) => self.amounts[at].1 = self.amounts[at].1.saturating_add(*each),
                Err(at) => self.amounts.insert(at, (*kind, *each)),
            }
        }
        for kind in 0..BASE {
            self.base[kind] = self.base[kind].saturating_add(other.base[kind]);
        }
        for dim in 0..DIMS {
            self.dims[dim] = match dim {
                CPU | MEMORY => self.dims[dim].saturating_add(other.dims[dim]),
                _ => self.dims[dim].max(other.dims[dim]),
            };
        }
        self.known &= other.known;
        self.devices |= other.devices;
    }

    /// Keeps of each bound the lower one: what must be free at least for one of both.
    pub fn lower_bounds(&mut self, other: &Self) {
        for dim in 0..DIMS {
            self.dims[dim] = self.dims[dim].min(other.dims[dim]);
        }
    }

    /// Whether what has as much of each bound has room for it: it needs no kinds that share one, and knows all.
    pub fn is_bounded(&self) -> bool {
        self.known && self.amounts.iter().all(|(kind, _)| *kind < BASE)
    }

    pub fn get(&self, kind: usize) -> i64 {
        if kind < BASE {
            return self.base[kind];
        }
        self.amounts.iter().find(|(at, _)| *at == kind).map_or(0, |(_, each)| *each)
    }
}

/// Where an amount of a kind counts in summaries.
fn dim_of(kind: usize, amount: i64) -> usize {
    match kind {
        CPU | MEMORY => kind,
        GPU if amount >= ONE => 2,
        GPU => 3,
        TPU if amount >= ONE => 4,
        TPU => 5,
        custom => 6 + custom % 2,
    }
}

#[derive(Clone, Debug)]
struct Device {
    kind: usize,
    index: u32,
    full: i64,
    free: i64,
}

#[derive(Clone, Debug)]
struct Custom {
    kind: usize,
    total: i64,
    free: i64,
}

/// Amounts of resources, some of them taken.
#[derive(Clone, Debug)]
pub(crate) struct Stock {
    total: [i64; BASE],
    free: [i64; BASE],
    /// CPU in use beyond the total; zero while any is free.
    overdraft: i64,
    /// Sorted by kind.
    custom: Vec<Custom>,
    /// Sorted by kind and index.
    devices: Vec<Device>,
    /// Of GPU and TPU: devices of which nothing is taken, and the most that is free of any one.
    whole: [i64; 2],
    most: [i64; 2],
}

impl Stock {
    /// Of whose kinds all are known. Devices are GPU or TPU, an index, and how much of it is here.
    pub fn new(total: &Resources, devices: impl Iterator<Item = DeviceGrant>, kinds: &Kinds) -> Self {
        let mut stock = Self {
            total: [0; BASE],
            free: [0; BASE],
            overdraft: 0,
            custom: Vec::new(),
            devices: Vec::new(),
            whole: [0; 2],
            most: [0; 2],
        };
        for (kind, amount) in total.iter() {
            let amount = amount.units();
            match kinds.find(kind) {
                Some(at) if at < BASE => (stock.total[at], stock.free[at]) = (amount, amount),
                Some(kind) => stock.custom.push(Custom { kind, total: amount, free: amount }),
                None => {}
            }
        }
        stock.custom.sort_unstable_by_key(|c| c.kind);
        stock.devices.extend(devices.filter_map(|d| {
            let (kind, share) = (kinds.find(&d.kind)?, d.share.units());
            Some(Device { kind, index: d.index, full: share, free: share })
        }));
        stock.devices.sort_unstable_by_key(|d| (d.kind, d.index));
        stock.count_devices();
        stock
    }

    fn count_devices(&mut self) {
        (self.whole, self.most) = ([0; 2], [0; 2]);
        for device in &self.devices {
            let at = device.kind - GPU;
            self.whole[at] += i64::from(device.free == ONE);
            self.most[at] = self.most[at].max(device.free);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.total == [0; BASE] && self.custom.is_empty()
    }

    pub fn size(&self) -> Size {
        self.total.map(|total| (i64::BITS - total.leading_zeros()) as u8)
    }

    pub fn has_devices(&self) -> bool {
        !self.devices.is_empty()
    }

    pub fn overdraft(&self) -> Quantity {
        Quantity::from_units(self.overdraft).unwrap_or_default()
    }

    pub fn total_of(&self, kind: usize) -> i64 {
        if kind < BASE { self.total[kind] } else { self.custom(kind).map_or(0, |c| c.total) }
    }

    pub fn free_of(&self, kind: usize) -> i64 {
        if kind < BASE { self.free[kind] } else { self.custom(kind).map_or(0, |c| c.free) }
    }

    fn custom(&self, kind: usize) -> Option<&Custom> {
        self.custom.iter().find(|c| c.kind == kind)
    }

    /// All that it has.
    pub fn totals(&self) -> impl Iterator<Item = (usize, i64)> {
        let base = self.total.iter().copied().enumerate();
        base.chain(self.custom.iter().map(|c| (c.kind, c.total))).filter(|(_, amount)| *amount > 0)
    }

    /// What is free of each device, by kind and index.
    pub fn free_devices(&self, kinds: &Kinds) -> Vec<(Kind, Quantity)> {
        let free = |device: &Device| {
            Some((kinds.name(device.kind)?.clone(), Quantity::from_units(device.free).ok()?))
        };
        self.devices.iter().filter_map(free).collect()
    }

    /// What is left.
    pub fn left(&self) -> impl Iterator<Item = (usize, i64)> {
        let base = self.free.iter().copied().enumerate();
        base.chain(self.custom.iter().map(|c| (c.kind, c.free))).filter(|(_, amount)| *amount > 0)
    }

    /// The same with nothing taken.
    pub fn emptied(&self) -> Self {
        let mut all = self.clone();
        (all.free, all.overdraft) = (all.total, 0);
        all.custom.iter_mut().for_each(|custom| custom.free = custom.total);
        all.devices.iter_mut().for_each(|device| device.free = device.full);
        all.count_devices();
        all
    }

    /// Whether it could hold a slot if nothing else were there.
    pub fn could_ever(&self, need: &Need) -> bool {
        need.known && need.amounts.iter().all(|(kind, each)| self.total_of(*kind) >= *each)
    }

    /// Whether there is as much as that now, whatever of which devices.
    pub fn has(&self, need: &Need) -> bool {
        need.known && need.amounts.iter().all(|(kind, each)| self.free_of(*kind) >= *each)
    }

    /// Whether a slot fits now.
    pub fn fits(&self, need: &Need) -> bool {
        let base = (0..BASE).all(|kind| self.free[kind] >= need.base[kind]);
        base && need.known
            && (!need.devices || self.devices_fit(need))
            && need.amounts.iter().all(|(kind, each)| *kind < BASE || self.free_of(*kind) >= *each)
    }

    fn devices_fit(&self, need: &Need) -> bool {
        [GPU, TPU].into_iter().all(|kind| need.base[kind] == 0 || self.device_room(kind, need.base[kind]) > 0)
    }

    /// How many more slots fit now.
    pub fn room(&self, need: &Need) -> u32 {
        if !self.fits(need) {
            return 0;
        }
        let fits = need.amounts.iter().map(|(kind, each)| {
            let amount = self.free_of(*kind) / each;
            if matches!(*kind, GPU | TPU) { amount.min(self.device_room(*kind, *each)) } else { amount }
        });
        fits.min().and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX)
    }

    /// Whether there is not enough of a kind for one slot.
    pub fn is_short(&self, kind: usize, each: i64) -> bool {
        self.free_of(kind) < each || matches!(kind, GPU | TPU) && self.device_room(kind, each) == 0
    }

    /// How many times `each` fits into the devices of a kind: a fraction into one, more into whole ones.
    pub fn device_room(&self, kind: usize, each: i64) -> i64 {
        if each < ONE {
            if self.most[kind - GPU] < each {
                return 0;
            }
            self.devices.iter().filter(|d| d.kind == kind).map(|d| d.free / each).sum()
        } else {
            self.whole[kind - GPU] / (each / ONE)
        }
    }

    /// How full the scarcest resource would be with one more slot. Processors, memory and what is needed count; a
    /// custom resource that nobody here wants does not.
    pub fn fullness(&self, need: &Need) -> f64 {
        let mut most: f64 = 0.0;
        for kind in [CPU, MEMORY] {
            if self.total[kind] > 0 {
                most = most.max(self.part_used(kind, need.base[kind]));
            }
        }
        for (kind, each) in need.amounts.iter().filter(|(kind, _)| *kind > MEMORY) {
            most = most.max(self.part_used(*kind, *each));
        }
        most
    }

    /// The same of a stock of which nothing is taken.
    pub fn fullness_emptied(&self, need: &Need) -> f64 {
        let part = |(kind, each): &(usize, i64)| *each as f64 / self.total_of(*kind).max(1) as f64;
        need.amounts.iter().map(part).fold(0.0, f64::max)
    }

    fn part_used(&self, kind: usize, more: i64) -> f64 {
        let over = if kind == CPU { self.overdraft } else { 0 };
        let (total, used) = (self.total_of(kind), self.total_of(kind) - self.free_of(kind) + over + more);
        used as f64 / total.max(1) as f64
    }

    /// Whether less than half of it would be in use with one more slot, as [`Stock::fullness`] counts.
    pub fn under_half(&self, need: &Need) -> bool {
        let half = |kind: usize, each: i64| {
            let over = if kind == CPU { self.overdraft } else { 0 };
            let (total, free) = (self.total_of(kind), self.free_of(kind));
            2 * (total - free + over + each) < total
        };
        [CPU, MEMORY].into_iter().all(|kind| self.total[kind] == 0 || half(kind, need.base[kind]))
            && need.amounts.iter().all(|(kind, each)| *kind <= MEMORY || half(*kind, *each))
    }

    /// Takes `slots` (at most [`Stock::room`], and 1 where there are devices) and picks the devices.
    pub fn take(&mut self, need: &Need, slots: u32, kinds: &Kinds) -> Vec<DeviceGrant> {
        let mut grants = Vec::new();
        for (kind, each) in &need.amounts {
            self.add(*kind, -each * i64::from(slots));
            if matches!(*kind, GPU | TPU) {
                self.take_devices(*kind, *each, kinds, &mut grants);
            }
        }
        if need.devices {
            self.count_devices();
        }
        grants
    }

    /// The ways to pick devices for one slot, which must fit, that differ in what they leave; what [`Stock::take`] picks
    /// is the first.
    pub fn picks(&self, need: &Need, kinds: &Kinds) -> Vec<Vec<DeviceGrant>> {
        let mut all = vec![Vec::new()];
        for (kind, each) in need.amounts.iter().filter(|(kind, _)| matches!(*kind, GPU | TPU)) {
            let (share, count) = if *each < ONE { (*each, 1) } else { (ONE, each / ONE) };
            let grant = |device: &Device| DeviceGrant {
                kind: kinds.names[*kind].clone(),
                index: device.index,
                share: Quantity::from_units(share).unwrap_or_default(),
            };
            let fitting = self.devices.iter().filter(|d| d.kind == *kind && d.free >= share);
            let ways: Vec<Vec<DeviceGrant>> = if *each < ONE {
                // Of those with as much free, the first.
                let mut by_free: BTreeMap<i64, &Device> = BTreeMap::new();
                for device in fitting {
                    by_free.entry(device.free).or_insert(device);
                }
                by_free.values().map(|device| vec![grant(device)]).collect()
            } else {
                vec![fitting.take(usize::try_from(count).unwrap_or(usize::MAX)).map(grant).collect()]
            };
            let before = std::mem::take(&mut all);
            all.extend(before.iter().flat_map(|b| ways.iter().map(|way| [&b[..], way].concat())));
        }
        all
    }

    /// Takes one slot on these devices, as [`Stock::picks`] says them.
    pub fn take_these(&mut self, need: &Need, devices: &[DeviceGrant]) {
        for (kind, each) in &need.amounts {
            self.add(*kind, -each);
        }
        for grant in devices {
            let kind = if grant.kind == Kind::Gpu { GPU } else { TPU };
            let same = |d: &&mut Device| d.kind == kind && d.index == grant.index;
            if let Some(device) = self.devices.iter_mut().find(same) {
                device.free -= grant.share.units();
            }
        }
        if need.devices {
            self.count_devices();
        }
    }

    /// Whether exactly the same fits into both.
    pub fn has_same_left(&self, other: &Self) -> bool {
        let custom = |stock: &Self| {
            let all = stock.custom.iter().filter(|c| c.free > 0).map(|c| (c.kind, c.free));
            all.collect::<Vec<(usize, i64)>>()
        };
        let devices = |stock: &Self| {
            let mut all: Vec<(usize, i64)> = stock.devices.iter().map(|d| (d.kind, d.free)).collect();
            all.sort_unstable();
            all
        };
        self.free == other.free
            && (self.whole, self.most) == (other.whole, other.most)
            && custom(self) == custom(other)
            && devices(self) == devices(other)
    }

    /// Fractions go to the fullest device that has room, so that whole ones stay whole.
    fn take_devices(&mut self, kind: usize, each: i64, kinds: &Kinds, grants: &mut Vec<DeviceGrant>) {
        let (share, count) = if each < ONE { (each, 1) } else { (ONE, each / ONE) };
        for _ in 0..count {
            let fitting = self.devices.iter_mut().filter(|d| d.kind == kind && d.free >= share);
            let Some(device) = fitting.min_by_key(|d| (d.free, d.index)) else { return };
            device.free -= share;
            grants.push(DeviceGrant {
                kind: kinds.names[kind].clone(),
                index: device.index,
                share: Quantity::from_units(share).unwrap_or_default(),
            });
        }
    }

    /// Gives back what `slots` held; those that waited had given their CPU back.
    pub fn give(&mut self, need: &Need, slots: u32, waited: u32, grants: &[DeviceGrant]) {
        for (kind, each) in &need.amounts {
            let slots = if *kind == CPU { slots.saturating_sub(waited) } else { slots };
            self.add(*kind, each * i64::from(slots));
        }
        for grant in grants {
            let kind = if grant.kind == Kind::Gpu { GPU } else { TPU };
            let same = |d: &&mut Device| d.kind == kind && d.index == grant.index;
            if let Some(device) = self.devices.iter_mut().find(same) {
                device.free = (device.free + grant.share.units()).min(device.full);
            }
        }
        if !grants.is_empty() {
            self.count_devices();
        }
    }

    /// Changes what is free of one kind; CPU goes below nothing as overdraft.
    pub fn add(&mut self, kind: usize, amount: i64) {
        if kind == CPU {
            let left = self.free[CPU] - self.overdraft + amount;
            (self.free[CPU], self.overdraft) = (left.max(0), (-left).max(0));
        } else if kind < BASE {
            self.free[kind] += amount;
        } else if let Some(custom) = self.custom.iter_mut().find(|c| c.kind == kind) {
            custom.free += amount;
        }
    }

    /// How much of each device is free, and how much of it is here, in a fixed order.
    pub fn devices(&self) -> impl Iterator<Item = (usize, u32, i64, i64)> {
        self.devices.iter().map(|d| (d.kind, d.index, d.free, d.full))
    }

    /// The most that a slot may need of each dimension to fit.
    pub fn bounds(&self) -> [i64; DIMS] {
        let mut free = [0; DIMS];
        (free[CPU], free[MEMORY]) = (self.free[CPU], self.free[MEMORY]);
        for at in 0..2 {
            (free[2 + 2 * at], free[3 + 2 * at]) = (self.whole[at] * ONE, self.most[at]);
        }
        for custom in &self.custom {
            let dim = dim_of(custom.kind, 0);
            free[dim] = free[dim].max(custom.free);
        }
        free
    }

    pub fn summary(&self) -> Summary {
        let mut summary = Summary { used: [0.0; BASE], ..Summary::NOTHING };
        summary.free = self.bounds();
        summary.total = [0; DIMS];
        for kind in [CPU, MEMORY] {
            summary.total[kind] = self.total[kind];
        }
        for (at, kind) in [GPU, TPU].into_iter().enumerate() {
            summary.total[2 + 2 * at] = self.total[kind];
            summary.total[3 + 2 * at] = self.total[kind].min(ONE);
        }
        for custom in &self.custom {
            let dim = dim_of(custom.kind, 0);
            summary.total[dim] = summary.total[dim].max(custom.total);
        }
        for kind in 0..BASE {
            let over = if kind == CPU { self.overdraft } else { 0 };
            let (total, used) = (self.total[kind], self.total[kind] - self.free[kind] + over);
            summary.half[kind] = if total == 0 { 0 } else { (total - 1) / 2 - used };
            summary.used[kind] = if total == 0 { 0.0 } else { used as f64 / total as f64 };
        }
        summary
    }
}

/// About how much there is of each built-in kind, in powers of two; 0 of what there is none of.
pub(crate) type Size = [u8; BASE];

/// What several stocks have at best: a bound, from which single ones are found without looking at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    /// The most that any has free.
    pub free: [i64; DIMS],
    /// The most that any has.
    pub total: [i64; DIMS],
    /// The most by which any may grow while less than half of it is in use.
    pub half: [i64; BASE],
    /// The least part that is in use of any.
    pub used: [f64; BASE],
}

impl Summary {
    pub const NOTHING: Self =
        Self { free: [-1; DIMS], total: [-1; DIMS], half: [-1; BASE], used: [f64::INFINITY; BASE] };

    pub fn join(&mut self, other: &Self) {
        for dim in 0..DIMS {
            self.free[dim] = self.free[dim].max(other.free[dim]);
            self.total[dim] = self.total[dim].max(other.total[dim]);
        }
        for kind in 0..BASE {
            self.half[kind] = self.half[kind].max(other.half[kind]);
            self.used[kind] = self.used[kind].min(other.used[kind]);
        }
    }

    /// Nothing may be placed on it, however much is free.
    pub fn closed(mut self) -> Self {
        self.free = [-1; DIMS];
        self.half = [-1; BASE];
        self
    }

    /// Whether a slot may fit into one of them.
    pub fn may_fit(&self, need: &Need) -> bool {
        (0..DIMS).all(|dim| self.free[dim] >= need.dims[dim])
    }

    /// Whether one of them may be of a size for it.
    pub fn may_ever_fit(&self, need: &Need) -> bool {
        (0..DIMS).all(|dim| self.total[dim] >= need.dims[dim])
    }

    /// Whether one of them may stay under half full.
    pub fn may_stay_low(&self, need: &Need) -> bool {
        let counts = |kind: &usize| *kind <= MEMORY || need.base[*kind] > 0;
        (0..BASE).filter(counts).all(|kind| self.half[kind] >= need.base[kind])
    }

    /// The least that [`Stock::fullness`] may be.
    pub fn least_fullness(&self, need: &Need) -> f64 {
        let part = |kind: usize| {
            let dim = if kind < GPU { kind } else { 2 + 2 * (kind - GPU) };
            self.used[kind] + need.base[kind] as f64 / self.total[dim].max(1) as f64
        };
        (0..BASE)
            .filter(|kind| *kind <= MEMORY || need.base[*kind] > 0)
            .filter(|kind| need.base[*kind] > 0 || self.used[*kind] > 0.0)
            .map(part)
            .fold(0.0, f64::max)
    }
}
