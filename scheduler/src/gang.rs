//! Where the bundles of a placement group go: all of them, or none.
//!
//! | arrangement | order |
//! |---|---|
//! | strict pack | the first place that holds all |
//! | pack | that; else the place for the largest bundle, with all others that fit there, again and again |
//! | spread | for each bundle the least full place that has none yet; else the least full |
//! | strict spread | the same without the last |
//!
//! Bundles are taken from the nodes as they are found, and given back where one of them finds none. Where they are of
//! different sizes, another order may find places even so: those are looked for by [`search`].

pub mod pace;
pub mod search;

use std::{
    cell::Cell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use mobula_proto::{GroupId, JobId, group, group::Arrange, resource::DeviceGrant};

use search::{Found, Places};

use crate::{
    Millis,
    cluster::Cluster,
    index::{Area, Which},
    node::{Kept, Node},
    queues,
    scheduler::starve::Oldest,
    shapes::ShapeId,
    stock::{Need, Stock},
};

/// A reserved part of a node.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// The node's place.
    pub at: u32,
    pub stock: Stock,
    pub devices: Vec<DeviceGrant>,
}

/// A placement group.
#[derive(Debug)]
pub(crate) struct Gang {
    pub id: GroupId,
    pub job: JobId,
    pub spec: Arc<group::Group>,
    pub queue: u32,
    /// Rules for the labels of its nodes, as the index numbers them while it waits; and that the label of its places is
    /// there.
    pub rules: [u32; 2],
    /// What each bundle needs.
    pub needs: Vec<Arc<Need>>,
    /// By number; `None` where it is not reserved.
    pub bundles: Vec<Option<Bundle>>,
    pub arrival: u64,
    pub since: Millis,
    /// As what it waits, while bundles are missing.
    pub shape: Option<ShapeId>,
    /// Classes that wait for room inside.
    pub waiting: BTreeSet<queues::Turn>,
    /// Bundles of which nobody is granted anything whose turn comes after that of who has waited for long.
    pub held: BTreeMap<u32, queues::Turn>,
    /// Whether all of it was reserved once, or may have been: then it waits for what it lacks, and is refused no more.
    pub placed: bool,
    /// Whether all of it is more than the limits of its queue are: then it waits until they are raised.
    pub beyond: bool,
    /// When it is taken away, if it is.
    pub until: Option<Millis>,
    /// As of a [`crate::Demand`].
    pub asked_from: u32,
}

impl Gang {
    pub fn missing(&self) -> Vec<u32> {
        (0..).zip(&self.bundles).filter(|(_, bundle)| bundle.is_none()).map(|(number, _)| number).collect()
    }

    /// The numbers of its bundles.
    pub fn numbers(&self) -> Range<u32> {
        0..u32::try_from(self.bundles.len()).unwrap_or(u32::MAX)
    }

    /// Whether a bundle is held for somebody whose turn comes before this one.
    pub fn is_held_from(&self, number: u32, turn: queues::Turn) -> bool {
        self.held.get(&number).is_some_and(|keeper| *keeper < turn)
    }

    /// Whether all that is missing is alike: then it does not matter in which order it is placed.
    pub fn is_alike(&self) -> bool {
        let mut missing =
            self.needs.iter().zip(&self.bundles).filter(|(_, b)| b.is_none()).map(|(need, _)| need);
        let first = missing.next();
        missing.all(|need| Some(need) == first)
    }

    /// Whether anything of it may be placed on a node, if it has room.
    pub fn may_use(&self, node: &Node) -> bool {
        let own = |kept: &Kept| kept.oldest() == Some(Oldest::Gang(self.id));
        let may = !node.is_kept_from(self.shape) || node.kept.as_ref().is_some_and(own);
        !node.draining && node.works() && may
    }

    pub fn turn(&self, at: u32, ageing: Millis) -> queues::Turn {
        let signed = |span: Millis| i64::try_from(span.0).unwrap_or(i64::MAX);
        let lead = i64::from(self.spec.priority).saturating_mul(signed(ageing));
        (signed(self.since).saturating_sub(lead), self.arrival, at)
    }
}

/// What several bundles need together.
pub(crate) fn sum<'a>(needs: impl Iterator<Item = &'a Arc<Need>>) -> Need {
    let mut all = Need::nothing();
    needs.for_each(|need| all.add(need));
    all
}

/// How much of the cluster's scarcest a bundle needs, in millionths.
pub(crate) fn size(cluster: &Cluster, need: &Need) -> u64 {
    let part = |(kind, each): &(usize, i64)| {
        *each as f64 / cluster.totals.get(*kind).copied().unwrap_or(0).max(1) as f64
    };
    (need.amounts.iter().map(part).fold(0.0, f64::max) * 1e6) as u64
}

/// The place of a node, as a group counts them.
fn place_of(cluster: &Cluster, gang: &Gang, at: u32) -> Option<Area> {
    match &gang.spec.place {
        key if key.is_empty() => Some(Area::Node(at)),
        key => Some(Area::Label(key.clone(), value_of(cluster, key, at)?.to_owned())),
    }
}

fn value_of<'a>(cluster: &'a Cluster, key: &str, at: u32) -> Option<&'a str> {
    let (_, value) = cluster.nodes.get(at)?.labels.iter().find(|(k, _)| k == key)?;
    Some(value)
}

/// As how many looks it counts that a place is found for one bundle, beside those at nodes.
const TAKE: u32 = 32;

/// Places of a group that hold some of it: nodes, or values of a label.
#[derive(Debug, Default)]
struct Used {
    nodes: BTreeSet<u32>,
    values: BTreeSet<String>,
}

impl Used {
    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.values.is_empty()
    }

    fn add(&mut self, place: Area) {
        match place {
            Area::Node(at) => drop(self.nodes.insert(at)),
            Area::Label(_, value) => drop(self.values.insert(value)),
        }
    }

    /// Whether a node lies in none of them, but in another place.
    fn is_outside(&self, cluster: &Cluster, gang: &Gang, at: u32) -> bool {
        match gang.spec.place.as_str() {
            "" => !self.nodes.contains(&at),
            key => value_of(cluster, key, at).is_some_and(|value| !self.values.contains(value)),
        }
    }
}

/// Finds places for the missing bundles of a group and takes them, or changes nothing.
pub(crate) struct Placing<'a> {
    cluster: &'a mut Cluster,
    gang: &'a Gang,
    /// Bundles that were found a node, and what was taken there.
    taken: Places,
    /// What it took so far, in looks.
    looks: Cell<u32>,
}

impl<'a> Placing<'a> {
    pub fn new(cluster: &'a mut Cluster, gang: &'a Gang) -> Self {
        Self { cluster, gang, taken: Vec::new(), looks: Cell::new(0) }
    }

    /// Bundles with their node and what was taken there, by number; or what it took to find that there is no room, in
    /// looks. Where they must be searched for, that takes from `looks`, and is put off where there are too few.
    pub fn place(mut self, looks: &mut u32) -> Result<Places, u32> {
        let mut left = self.gang.missing();
        // The largest first: where they fit the others may, too.
        left.sort_by_cached_key(|number| (Reverse(size(self.cluster, self.need(*number))), *number));
        let fine = match self.gang.spec.arrange {
            Arrange::StrictPack => self.pack_all(&left),
            Arrange::Pack => self.pack_all(&left) || self.pack(left),
            Arrange::Spread => self.spread(&left, false),
            Arrange::StrictSpread => self.spread(&left, true),
        };
        if !fine {
            self.give_back(0);
            if self.gang.is_alike() {
                return Err(self.looks.get());
            }
            let before = *looks;
            let found = self.search(looks);
            self.look(before - *looks);
            if !found {
                return Err(self.looks.get());
            }
        }
        self.taken.sort_by_key(|(number, ..)| *number);
        Ok(self.taken)
    }

    fn look(&self, looks: u32) {
        self.looks.set(self.looks.get().saturating_add(looks));
    }

    /// Looks for places in earnest.
    fn search(&mut self, looks: &mut u32) -> bool {
        self.cluster.refresh();
        let (arrange, nodes) = (self.gang.spec.arrange, search::Nodes::Indexed);
        let Found::Places(found) = search::find(self.cluster, self.gang, arrange, nodes, looks) else {
            return false;
        };
        for (number, at, devices) in found {
            let need = Arc::clone(self.need(number));
            if let Some(node) = self.cluster.nodes.get_mut(at) {
                node.stock.take_these(&need, &devices);
            }
            self.cluster.touch(at);
            self.taken.push((number, at, devices));
        }
        true
    }

    fn need(&self, number: u32) -> &Arc<Need> {
        &self.gang.needs[number as usize]
    }

    fn take(&mut self, number: u32, at: u32) {
        let need = Arc::clone(self.need(number));
        if let Some(node) = self.cluster.nodes.get_mut(at) {
            let devices = node.stock.take(&need, 1, &self.cluster.kinds);
            self.taken.push((number, at, devices));
        }
        self.cluster.touch(at);
    }

    /// Gives back all but the first.
    fn give_back(&mut self, keep: usize) {
        for (number, at, devices) in self.taken.split_off(keep) {
            let need = Arc::clone(self.need(number));
            if let Some(node) = self.cluster.nodes.get_mut(at) {
                node.stock.give(&need, 1, 0, &devices);
            }
            self.cluster.touch(at);
        }
    }

    fn place_of(&self, at: u32) -> Option<Area> {
        place_of(self.cluster, self.gang, at)
    }

    /// Places that hold some of it.
    fn used(&self) -> BTreeSet<Area> {
        let before = self.gang.bundles.iter().flatten().map(|bundle| bundle.at);
        before.chain(self.taken.iter().map(|(_, at, _)| *at)).filter_map(|at| self.place_of(at)).collect()
    }

    /// Takes a bundle where it is least full, of the nodes in one place, or of those in none of some.
    fn take_one(&mut self, number: u32, inside: Option<&Area>, outside: &Used) -> bool {
        self.look(TAKE);
        #[cfg(test)]
        {
            self.cluster.takes += 1;
        }
        self.cluster.refresh();
        let (need, cluster) = (self.need(number), &*self.cluster);
        let labelled = !self.gang.spec.place.is_empty();
        let fullness = |at: u32| {
            self.look(1);
            let node = cluster.nodes.get(at).filter(|n| self.gang.may_use(n) && n.stock.fits(need))?;
            let out = outside.is_empty() || outside.is_outside(cluster, self.gang, at);
            let label = !labelled || cluster.index.admits(self.gang.rules[1], node.spot);
            (out && label).then(|| node.stock.fullness(need))
        };
        let found = match inside {
            Some(Area::Node(at)) => {
                let admitted = |n: &&Node| cluster.index.admits(self.gang.rules[0], n.spot);
                cluster.nodes.get(*at).filter(admitted).and_then(|_| fullness(*at)).map(|_| *at)
            }
            _ => {
                let mut fullness = fullness;
                let which = if need.devices { Which::All } else { Which::Plain };
                let index = &cluster.index;
                let found = index.emptiest_in(inside, (self.gang.rules[0], which), need, &mut fullness);
                let rest = (self.gang.rules[0], Which::All);
                found.or_else(|| index.emptiest_in(inside, rest, need, &mut fullness))
            }
        };
        found.inspect(|at| self.take(number, *at)).is_some()
    }

    fn take_all(&mut self, numbers: &[u32], inside: &Area) -> bool {
        let before = self.taken.len();
        let fine = numbers.iter().all(|number| self.take_one(*number, Some(inside), &Used::default()));
        if !fine {
            self.give_back(before);
        }
        fine
    }

    /// All in one place.
    fn pack_all(&mut self, numbers: &[u32]) -> bool {
        let used = self.used();
        if used.len() > 1 {
            return false;
        }
        if let Some(place) = used.first() {
            return self.take_all(numbers, place);
        }
        if !self.gang.spec.place.is_empty() {
            let places = self.cluster.index.areas(self.gang.rules[0], &self.gang.spec.place);
            return places.iter().any(|place| self.take_all(numbers, place));
        }
        self.cluster.refresh();
        let (most, cluster) = (sum(numbers.iter().map(|n| self.need(*n))), &*self.cluster);
        let first = numbers.first().map(|number| self.need(*number));
        let alike = |need: &Arc<Need>| numbers.iter().all(|number| Arc::ptr_eq(self.need(*number), need));
        let alike = first.filter(|need| !need.devices && alike(need));
        let mut holds = |at: u32| {
            self.look(1);
            let node = cluster.nodes.get(at).filter(|n| self.gang.may_use(n) && n.stock.has(&most))?;
            let fits = match alike {
                Some(need) => node.stock.room(need) as usize >= numbers.len(),
                None => {
                    self.look(u32::try_from(numbers.len()).unwrap_or(u32::MAX));
                    let mut trial = node.stock.clone();
                    numbers.iter().all(|number| {
                        let need = self.need(*number);
                        trial.fits(need) && {
                            trial.take(need, 1, &cluster.kinds);
                            true
                        }
                    })
                }
            };
            fits.then(|| node.stock.fullness(&most))
        };
        let which = if most.devices { Which::All } else { Which::Plain };
        let (index, rules) = (&cluster.index, self.gang.rules[0]);
        let found = index.emptiest_in(None, (rules, which), &most, &mut holds);
        let found = found.or_else(|| index.emptiest_in(None, (rules, Which::All), &most, &mut holds));
        found.is_some_and(|at| self.take_all(numbers, &Area::Node(at)))
    }

    /// In few places: each gets all that fits.
    fn pack(&mut self, mut left: Vec<u32>) -> bool {
        let mut places: Vec<Area> = self.used().into_iter().collect();
        let anywhere = Used::default();
        loop {
            for place in &places {
                // Where one has found no room, none that is alike does.
                let mut full: Option<Arc<Need>> = None;
                left.retain(|number| {
                    let need = self.need(*number);
                    if full.as_ref() == Some(need) {
                        return true;
                    }
                    let need = Arc::clone(need);
                    let fits = self.take_one(*number, Some(place), &anywhere);
                    full = if fits { full.take() } else { Some(need) };
                    !fits
                });
            }
            let Some(first) = left.first().copied() else { return true };
            if !self.take_one(first, None, &anywhere) {
                return false;
            }
            left.remove(0);
            places = self.taken.last().and_then(|(_, at, _)| self.place_of(*at)).into_iter().collect();
        }
    }

    fn spread(&mut self, numbers: &[u32], strict: bool) -> bool {
        let (mut used, anywhere) = (Used::default(), Used::default());
        self.used().into_iter().for_each(|place| used.add(place));
        // Where one has found no place that has none yet, none that is alike does.
        let mut full: Option<Arc<Need>> = None;
        numbers.iter().all(|number| {
            let need = self.need(*number);
            let mut fits = full.as_ref() != Some(need) && {
                let need = Arc::clone(need);
                let fits = self.take_one(*number, None, &used);
                full = if fits { full.take() } else { Some(need) };
                fits
            };
            fits = fits || !strict && self.take_one(*number, None, &anywhere);
            if let Some((_, at, _)) = self.taken.last().filter(|_| fits) {
                self.place_of(*at).into_iter().for_each(|place| used.add(place));
            }
            fits
        })
    }
}

impl Gang {
    /// What a class waits for inside of it. `turn` is when it is its turn.
    pub fn why_inside(&self, demand: &crate::Demand, turn: queues::Turn, cluster: &Cluster) -> String {
        let slots =
            if demand.backlog == 1 { "1 slot".to_owned() } else { format!("{} slots", demand.backlog) };
        let waits = format!("waits for {slots} of {} each", demand.class.resources);
        if self.until.is_some() {
            return format!("{waits}: {} is being given up", self.id);
        }
        let need = Need::of(&demand.class.resources, &cluster.kinds);
        let fits = |number: u32| {
            let bundle = self.bundles.get(number as usize)?.as_ref()?;
            let wanted = demand.bundle().is_none_or(|wanted| wanted == number);
            (wanted && bundle.stock.fits(&need)).then_some((number, cluster.nodes.get(bundle.at)?))
        };
        let drains = |(_, node): &(u32, &Node)| node.draining;
        if self
            .numbers()
            .filter_map(fits)
            .any(|(number, node)| !node.draining && self.is_held_from(number, turn))
        {
            return format!("{waits}: what is free in {} is kept for what has waited longer", self.id);
        }
        if let Some((number, node)) = self.numbers().filter_map(fits).find(drains) {
            return format!(
                "{waits}: {} drains, and bundle {number} of {} moves when what runs in it has ended",
                node.id, self.id
            );
        }
        match self.missing().len() {
            0 => format!("{waits}: the bundles of {} that fit are in use", self.id),
            missing => {
                format!(
                    "{waits}: {} of the {} bundles of {} are not reserved",
                    missing,
                    self.bundles.len(),
                    self.id
                )
            }
        }
    }
}
