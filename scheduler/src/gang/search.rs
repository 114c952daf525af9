//! Places for bundles of different sizes, looked for where taking them one by one found none.
//!
//! Who puts bundles one by one where it is emptiest may end with a large one that fits nowhere, though all would fit in
//! another order: bundles of 3, 2 and 2 on nodes of 4 and 3. So what is left over is looked for in earnest:
//!
//! 1. Of the nodes as many are looked at for each size of bundle as there are bundles, the emptiest. More are of no use:
//!    a size that fits on so many nodes finds one that the others leave alone.
//! 2. Bundles that need places of their own are matched with places, each giving way to another where it has a choice.
//!    This finds all of them places if there are any.
//! 3. Else the largest go first, each where it leaves least (spread: first where none is yet).
//! 4. Where that fails, all ways are tried in that order, but those that differ only by bundles that are alike, or by
//!    nodes with as much left. This finds places if there are any, unless it takes more than [`LOOKS_MAX`] looks; then
//!    the group waits until something else comes free, and [`crate::Scheduler::why_group`] says that it was given up.
//!
//! All searches together take at most [`LOOKS_EACH`] looks in [`SPAN`]; what is put off by that is tried again then.

use std::{
    cell::{Cell, OnceCell},
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{group::Arrange, resource::DeviceGrant};

use super::{Gang, place_of, size};
use crate::{
    Millis,
    cluster::Cluster,
    index::{Area, Which},
    node::Node,
    stock::{Need, Stock},
};

/// Most looks of one search: each holds a bundle against a node. About two milliseconds.
pub const LOOKS_MAX: u32 = 65_536;
/// Most looks of all searches in [`SPAN`], so that groups which find no place leave time for all else.
pub const LOOKS_EACH: u32 = 4 * LOOKS_MAX;
/// In this time.
pub const SPAN: Millis = Millis(100);

/// Bundles, by number, each with its node and the devices there.
pub(crate) type Places = Vec<(u32, u32, Vec<DeviceGrant>)>;

/// How many looks may still be taken, and who waits for more.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    since: Millis,
    taken: u32,
    /// Groups whose search was put off.
    pub put_off: BTreeSet<u32>,
}

impl Allowance {
    pub fn left(&mut self, now: Millis) -> u32 {
        if now >= self.since.plus(SPAN) {
            (self.since, self.taken) = (now, 0);
        }
        LOOKS_EACH.saturating_sub(self.taken)
    }

    pub fn take(&mut self, looks: u32) {
        self.taken = self.taken.saturating_add(looks);
    }

    /// When those that were put off may be tried again, if there are any.
    pub fn next(&self) -> Option<Millis> {
        (!self.put_off.is_empty()).then(|| self.since.plus(SPAN))
    }
}

/// On which nodes places are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// As they are, those that the index finds: it must have been told of all changes.
    Indexed,
    /// The same without the index.
    Listed,
    /// As if nothing but the group itself were on them.
    Emptied,
}

/// What a search found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Places(Places),
    /// There are no places.
    Nowhere,
    /// Not known: there were too many ways to try.
    GaveUp,
}

/// Looks for places for the missing bundles of a group. Takes no more than `looks`, nor than [`LOOKS_MAX`].
pub(crate) fn find(cluster: &Cluster, gang: &Gang, arrange: Arrange, nodes: Nodes, looks: &mut u32) -> Found {
    if *looks == 0 {
        return Found::GaveUp;
    }
    let mut items: Vec<Item> = Vec::new();
    let mut needs: Vec<Arc<Need>> = Vec::new();
    let mut missing = gang.missing();
    missing.sort_by_key(|number| (Reverse(size(cluster, &gang.needs[*number as usize])), *number));
    for number in missing {
        let need = &gang.needs[number as usize];
        let known = needs.iter().position(|known| known == need);
        let kind = known.unwrap_or_else(|| {
            needs.push(Arc::clone(need));
            needs.len() - 1
        });
        items.push(Item { number, kind });
    }
    // Those that are alike stand together.
    items.sort_by_key(|item| item.kind);
    let may = (*looks).min(LOOKS_MAX);
    let left = Cell::new(may);
    let lying = OnceCell::new();
    let search = Search { cluster, gang, arrange, nodes, needs, items, left: &left, lying };
    let found = match arrange {
        Arrange::StrictPack => search.in_one(),
        Arrange::StrictSpread => search.apart(),
        Arrange::Pack | Arrange::Spread => search.inside(None),
    };
    let over = left.get() == 0;
    *looks -= may - left.get();
    match found {
        Some(mut places) => {
            places.sort_by_key(|(number, ..)| *number);
            Found::Places(places)
        }
        None if over => Found::GaveUp,
        None => Found::Nowhere,
    }
}

/// A bundle, and which of the sizes it has.
#[derive(Clone, Copy, Debug)]
struct Item {
    number: u32,
    kind: usize,
}

struct Search<'a> {
    cluster: &'a Cluster,
    gang: &'a Gang,
    arrange: Arrange,
    nodes: Nodes,
    /// The sizes of the missing bundles, largest first.
    needs: Vec<Arc<Need>>,
    items: Vec<Item>,
    /// Looks that may still be taken.
    left: &'a Cell<u32>,
    /// The nodes that lie in each place, by number, where the index does not say it.
    lying: OnceCell<BTreeMap<Area, Vec<u32>>>,
}

impl Search<'_> {
    fn is_open(&self, node: &Node) -> bool {
        if self.nodes == Nodes::Emptied { !node.draining && node.works() } else { self.gang.may_use(node) }
    }

    /// What of a node may be taken.
    fn stock(&self, at: u32, node: &Node) -> Stock {
        if self.nodes != Nodes::Emptied {
            return node.stock.clone();
        }
        let mut stock = node.stock.emptied();
        for (need, bundle) in self.gang.needs.iter().zip(&self.gang.bundles) {
            if let Some(bundle) = bundle.as_ref().filter(|bundle| bundle.at == at) {
                stock.take_these(need, &bundle.devices);
            }
        }
        stock
    }

    /// The node if the group may use it at all.
    fn admitted(&self, at: u32) -> Option<&Node> {
        let (index, [rules, places]) = (&self.cluster.index, self.gang.rules);
        let admits = |node: &&Node| index.admits(rules, node.spot) && index.admits(places, node.spot);
        self.cluster.nodes.get(at).filter(|node| self.is_open(node)).filter(admits)
    }

    fn look(&self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.left.set(self.left.get().saturating_sub(count));
    }

    fn is_over(&self) -> bool {
        self.left.get() == 0
    }

    /// The emptiest nodes with room for a bundle, at most so many.
    fn with_room(&self, need: &Need, inside: Option<&Area>, most: usize) -> Vec<u32> {
        let mut fullness = |at: u32| {
            self.look(1);
            let node = self.admitted(at)?;
            if self.nodes != Nodes::Emptied {
                return node.stock.fits(need).then(|| node.stock.fullness(need));
            }
            if !self.gang.bundles.iter().flatten().any(|bundle| bundle.at == at) {
                return node.stock.could_ever(need).then(|| node.stock.fullness_emptied(need));
            }
            let stock = self.stock(at, node);
            stock.fits(need).then(|| stock.fullness(need))
        };
        match inside {
            Some(Area::Node(at)) => fullness(*at).map(|_| *at).into_iter().collect(),
            _ if self.nodes == Nodes::Indexed => {
                let from = (self.gang.rules[0], Which::All);
                self.cluster.index.emptiest_of(inside, from, need, most, &mut fullness)
            }
            _ => {
                let all: Box<dyn Iterator<Item = u32> + '_> = match inside {
                    None => Box::new(self.cluster.by_number.values().copied()),
                    Some(place) => Box::new(self.lying().get(place).into_iter().flatten().copied()),
                };
                let mut all: Vec<(f64, u32)> = all.filter_map(|at| Some((fullness(at)?, at))).collect();
                all.sort_by(|a, b| a.0.total_cmp(&b.0));
                all.into_iter().map(|(_, at)| at).take(most).collect()
            }
        }
    }

    fn lying(&self) -> &BTreeMap<Area, Vec<u32>> {
        self.lying.get_or_init(|| {
            let mut lying: BTreeMap<Area, Vec<u32>> = BTreeMap::new();
            self.look(self.cluster.by_number.len());
            for at in self.cluster.by_number.values().copied() {
                self.place(at).into_iter().for_each(|place| lying.entry(place).or_default().push(at));
            }
            lying
        })
    }

    fn place(&self, at: u32) -> Option<Area> {
        place_of(self.cluster, self.gang, at)
    }

    /// Places that hold some of it.
    fn used(&self) -> BTreeSet<Area> {
        self.gang.bundles.iter().flatten().filter_map(|bundle| self.place(bundle.at)).collect()
    }

    fn labelled(&self) -> BTreeSet<Area> {
        self.cluster.index.areas(self.gang.rules[0], &self.gang.spec.place)
    }

    /// All of it in one place.
    fn in_one(&self) -> Option<Places> {
        let used = self.used();
        let places: Vec<Area> = if used.len() > 1 {
            Vec::new()
        } else if !used.is_empty() {
            used.into_iter().collect()
        } else if !self.gang.spec.place.is_empty() {
            self.labelled().into_iter().collect()
        } else {
            let all = super::sum(self.items.iter().map(|item| &self.needs[item.kind]));
            let fits = |at: &u32| {
                self.look(1);
                self.admitted(*at).is_some_and(|node| match self.nodes {
                    Nodes::Emptied => node.stock.could_ever(&all),
                    _ => node.stock.has(&all),
                })
            };
            self.cluster.by_number.values().copied().filter(fits).map(Area::Node).collect()
        };
        places.iter().take_while(|_| !self.is_over()).find_map(|place| self.inside(Some(place)))
    }

    /// Wherever there is room, or wherever in one place.
    fn inside(&self, inside: Option<&Area>) -> Option<Places> {
        let count = self.items.len();
        let (mut nodes, mut plenty) = (BTreeSet::new(), Vec::new());
        for need in &self.needs {
            let found = self.with_room(need, inside, count);
            if found.is_empty() || self.is_over() {
                return None;
            }
            plenty.push(found.len() >= count);
            nodes.extend(found);
        }
        let mut numbers: BTreeMap<Area, usize> = BTreeMap::new();
        let mut number = |place: Area| {
            let next = numbers.len();
            *numbers.entry(place).or_insert(next)
        };
        let bins: Vec<Bin> = nodes
            .into_iter()
            .filter_map(|at| {
                let stock = self.stock(at, self.cluster.nodes.get(at)?);
                Some(Bin { at, stock, place: number(self.place(at)?) })
            })
            .collect();
        let used: BTreeSet<usize> = self.used().into_iter().map(&mut number).collect();
        let held = (0..numbers.len()).map(|at| u32::from(used.contains(&at))).collect();
        Packing { search: self, items: self.items.clone(), bins, held, plenty, taken: Vec::new() }.find()
    }

    /// Each in a place of its own.
    fn apart(&self) -> Option<Places> {
        let used = self.used();
        let mut numbers: BTreeMap<Area, usize> = BTreeMap::new();
        // By size, the places that have room, with the node there.
        let mut rooms: Vec<Vec<(usize, u32)>> = vec![Vec::new(); self.needs.len()];
        let mut add = |kind: usize, place: Area, node: u32| {
            let next = numbers.len();
            rooms[kind].push((*numbers.entry(place).or_insert(next), node));
        };
        if self.gang.spec.place.is_empty() {
            for (kind, need) in self.needs.iter().enumerate().take_while(|_| !self.is_over()) {
                let nodes = self.with_room(need, None, self.items.len() + used.len());
                let free = nodes.into_iter().map(|at| (Area::Node(at), at));
                free.filter(|(place, _)| !used.contains(place)).for_each(|(place, at)| add(kind, place, at));
            }
        } else {
            let free = self.labelled().into_iter().filter(|place| !used.contains(place));
            for place in free.take_while(|_| !self.is_over()) {
                for (kind, need) in self.needs.iter().enumerate() {
                    if let Some(at) = self.with_room(need, Some(&place), 1).first() {
                        add(kind, place.clone(), *at);
                    }
                }
            }
        }
        let mut matching = Matching { search: self, rooms, holder: vec![None; numbers.len()] };
        if !(0..self.items.len()).all(|item| matching.settle(item, &mut BTreeSet::new())) {
            return None;
        }
        let held = matching.holder.iter().flatten();
        let places = held.map(|(item, at)| {
            let item = self.items[*item];
            let stock = self.stock(*at, self.cluster.nodes.get(*at)?);
            let picks = stock.picks(&self.needs[item.kind], &self.cluster.kinds);
            Some((item.number, *at, picks.into_iter().next()?))
        });
        places.collect()
    }
}

/// Which place is whose: a maximum matching, by augmenting paths.
struct Matching<'s, 'a> {
    search: &'s Search<'a>,
    rooms: Vec<Vec<(usize, u32)>>,
    /// By place, the bundle there and its node.
    holder: Vec<Option<(usize, u32)>>,
}

impl Matching<'_, '_> {
    /// Finds a place for a bundle, for which others may move to other places.
    fn settle(&mut self, item: usize, seen: &mut BTreeSet<usize>) -> bool {
        let kind = self.search.items[item].kind;
        for at in 0..self.rooms[kind].len() {
            let (place, node) = self.rooms[kind][at];
            self.search.look(1);
            if self.search.is_over() {
                return false;
            }
            if !seen.insert(place) {
                continue;
            }
            let free = match self.holder[place] {
                None => true,
                Some((other, _)) => self.settle(other, seen),
            };
            if free {
                self.holder[place] = Some((item, node));
                return true;
            }
        }
        false
    }
}

/// A node, with what is left of it.
struct Bin {
    at: u32,
    stock: Stock,
    /// Its place, by number.
    place: usize,
}

/// Bundles on the way to their nodes.
struct Packing<'s, 'a> {
    search: &'s Search<'a>,
    items: Vec<Item>,
    bins: Vec<Bin>,
    /// How much of the group each place has.
    held: Vec<u32>,
    /// Which sizes fit on so many nodes that each bundle finds one which no other uses.
    plenty: Vec<bool>,
    /// The nodes of the first items, and the devices there.
    taken: Vec<(usize, Vec<DeviceGrant>)>,
}

impl Packing<'_, '_> {
    fn find(mut self) -> Option<Places> {
        if !self.is_enough() {
            return None;
        }
        if !self.dive() {
            while !self.taken.is_empty() {
                self.give();
            }
            // What is sure to find a place goes last, so that nobody goes back on what was tried for it.
            let plenty = self.plenty.clone();
            self.items.sort_by_key(|item| plenty[item.kind]);
            if !self.descend() {
                return None;
            }
        }
        let taken = self.items.iter().zip(self.taken);
        Some(taken.map(|(item, (bin, devices))| (item.number, self.bins[bin].at, devices)).collect())
    }

    /// Whether there is as much as all need together.
    fn is_enough(&self) -> bool {
        let scarce = self.items.iter().filter(|item| !self.plenty[item.kind]);
        let all = super::sum(scarce.map(|item| &self.search.needs[item.kind]));
        all.amounts.iter().all(|(kind, amount)| {
            let free: i128 = self.bins.iter().map(|bin| i128::from(bin.stock.free_of(*kind))).sum();
            free >= i128::from(*amount)
        })
    }

    /// The nodes from a number on that have room for a bundle, the best first.
    fn order(&self, need: &Need, first: usize) -> Vec<usize> {
        let spread = self.search.arrange == Arrange::Spread;
        self.search.look(self.bins.len() - first);
        let fits = (first..).zip(&self.bins[first..]).filter(|(_, bin)| bin.stock.fits(need));
        let rank = |(at, bin): (usize, &Bin)| {
            // Where some of it is, or where none of it is; then where least is left.
            let other = (self.held[bin.place] > 0) == spread;
            (other, -bin.stock.fullness(need), at)
        };
        let mut all: Vec<(bool, f64, usize)> = fits.map(rank).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        all.into_iter().map(|(.., at)| at).collect()
    }

    fn take(&mut self, need: &Need, bin: usize, devices: Vec<DeviceGrant>) {
        self.bins[bin].stock.take_these(need, &devices);
        self.held[self.bins[bin].place] += 1;
        self.taken.push((bin, devices));
    }

    /// Gives back the last.
    fn give(&mut self) {
        let Some((bin, devices)) = self.taken.pop() else { return };
        let need = &self.search.needs[self.items[self.taken.len()].kind];
        self.bins[bin].stock.give(need, 1, 0, &devices);
        self.held[self.bins[bin].place] -= 1;
    }

    /// The largest first, each where it is best, whatever follows.
    fn dive(&mut self) -> bool {
        for at in 0..self.items.len() {
            let need = Arc::clone(&self.search.needs[self.items[at].kind]);
            let Some(bin) = self.order(&need, 0).first().copied() else { return false };
            if self.search.is_over() {
                return false;
            }
            let picks = self.bins[bin].stock.picks(&need, &self.search.cluster.kinds);
            let Some(devices) = picks.into_iter().next() else { return false };
            self.take(&need, bin, devices);
        }
        true
    }

    /// Tries all ways for what is not taken yet.
    fn descend(&mut self) -> bool {
        let level = self.taken.len();
        let Some(item) = self.items.get(level).copied() else { return true };
        let need = Arc::clone(&self.search.needs[item.kind]);
        // Which of several alike is where makes no difference: each goes no further back than the one before it.
        let before = level.checked_sub(1).filter(|before| self.items[*before].kind == item.kind);
        let first = before.filter(|_| !self.plenty[item.kind]).map_or(0, |before| self.taken[before].0);
        let mut tried: Vec<usize> = Vec::new();
        for bin in self.order(&need, first) {
            let stock = &self.bins[bin].stock;
            if tried.iter().any(|other| self.bins[*other].stock.has_same_left(stock)) {
                continue;
            }
            for devices in stock.picks(&need, &self.search.cluster.kinds) {
                if self.search.is_over() {
                    return false;
                }
                self.take(&need, bin, devices);
                if self.descend() {
                    return true;
                }
                self.give();
            }
            tried.push(bin);
        }
        false
    }
}
