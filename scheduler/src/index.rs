//! Which nodes have room, found without looking at all of them.
//!
//! Nodes that no label rule tells apart and that are about as large lie in one *group*, those with devices apart from
//! those without: alike as they are, what is said of several is about true of each. A group is a tree of eight branches: each inner place says what the nodes below have at best ([`Summary`]). A search goes down
//! only where something better than what it has found may be; a change of one node goes up one path.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::resource::{Label, LabelRule};

use crate::stock::{Need, Size, Summary};

const BRANCHES: usize = 8;
/// Fullness that differs by less is the same.
const SAME: f64 = 1e-9;

#[derive(Debug)]
struct Tree {
    /// Nodes by place.
    nodes: Vec<Option<u32>>,
    vacant: BTreeSet<usize>,
    /// The first level is of the nodes; the last has one place.
    levels: Vec<Vec<Summary>>,
}

impl Tree {
    fn new() -> Self {
        Self { nodes: Vec::new(), vacant: BTreeSet::new(), levels: vec![Vec::new()] }
    }

    fn insert(&mut self, node: u32) -> usize {
        if let Some(place) = self.vacant.pop_first() {
            self.nodes[place] = Some(node);
            return place;
        }
        self.nodes.push(Some(node));
        let mut level = 0;
        self.levels[0].push(Summary::NOTHING);
        loop {
            let wanted = self.levels[level].len().div_ceil(BRANCHES);
            if self.levels[level].len() == 1 {
                break;
            }
            level += 1;
            match self.levels.get_mut(level) {
                Some(places) => places.resize(wanted, Summary::NOTHING),
                None => {
                    self.levels.push(vec![Summary::NOTHING; wanted]);
                    // What lay alone at the top so far counts in the new level, too.
                    for at in 0..wanted {
                        self.levels[level][at] = self.joined(level, at);
                    }
                }
            }
        }
        self.nodes.len() - 1
    }

    fn joined(&self, level: usize, at: usize) -> Summary {
        let below = &self.levels[level - 1];
        let mut sum = Summary::NOTHING;
        for child in &below[at * BRANCHES..below.len().min((at + 1) * BRANCHES)] {
            sum.join(child);
        }
        sum
    }

    fn update(&mut self, place: usize, summary: Summary) {
        self.levels[0][place] = summary;
        let mut at = place;
        for level in 1..self.levels.len() {
            at /= BRANCHES;
            let sum = self.joined(level, at);
            if sum == self.levels[level][at] {
                return;
            }
            self.levels[level][at] = sum;
        }
    }

    /// Children in an order that the seed decides.
    fn children(&self, level: usize, at: usize, seed: u64) -> impl Iterator<Item = usize> {
        let turn = (seed >> (3 * level.min(20))) as usize % BRANCHES;
        let len = self.levels[level - 1].len();
        (0..BRANCHES).map(move |i| at * BRANCHES + (i ^ turn)).filter(move |child| *child < len)
    }

    /// The first node that is fine.
    fn first(&self, find: &mut Find<'_>, level: usize, at: usize) -> Option<u32> {
        if !(find.may)(&self.levels[level][at]) {
            return None;
        }
        if level == 0 {
            return self.nodes[at].filter(|node| (find.fine)(*node));
        }
        self.children(level, at, find.seed).find_map(|child| self.first(find, level - 1, child))
    }

    /// The node that would be least full, if that is less than what was found before.
    fn emptiest(&self, find: &mut Emptiest<'_>, level: usize, at: usize) {
        let here = &self.levels[level][at];
        if !here.may_fit(find.need)
            || find.worst().is_some_and(|worst| here.least_fullness(find.need) >= worst - SAME)
        {
            return;
        }
        if level == 0 {
            let Some((node, full)) = self.nodes[at].and_then(|node| Some((node, (find.fullness)(node)?)))
            else {
                return;
            };
            if find.worst().is_none_or(|worst| full < worst - SAME) {
                // Behind equals.
                let place = find.best.partition_point(|(before, _)| *before <= full + SAME);
                find.best.insert(place, (full, node));
                find.best.truncate(find.count);
            }
            return;
        }
        let mut order = [(f64::INFINITY, usize::MAX); BRANCHES];
        let mut count = 0;
        for child in self.children(level, at, find.seed) {
            let summary = &self.levels[level - 1][child];
            if summary.may_fit(find.need) {
                order[count] = (summary.least_fullness(find.need), child);
                count += 1;
            }
        }
        // Stable: equals stay in the order of the seed.
        order[..count].sort_by(|a, b| a.0.total_cmp(&b.0));
        for (_, child) in &order[..count] {
            self.emptiest(find, level - 1, *child);
        }
    }

    fn top(&self) -> Option<usize> {
        (!self.nodes.is_empty()).then(|| self.levels.len() - 1)
    }
}

struct Find<'a> {
    seed: u64,
    may: &'a dyn Fn(&Summary) -> bool,
    fine: &'a mut dyn FnMut(u32) -> bool,
}

struct Emptiest<'a> {
    seed: u64,
    need: &'a Need,
    fullness: &'a mut dyn FnMut(u32) -> Option<f64>,
    /// How many are wanted.
    count: usize,
    /// The best so far, best first.
    best: Vec<(f64, u32)>,
}

impl Emptiest<'_> {
    /// How good another must be to count.
    fn worst(&self) -> Option<f64> {
        if self.best.len() < self.count { None } else { self.best.last().map(|(full, _)| *full) }
    }
}

#[derive(Debug)]
struct Group {
    labels: Vec<Label>,
    devices: bool,
    size: Size,
    tree: Tree,
}

/// Conditions on labels that some class has.
#[derive(Debug)]
struct Rules {
    list: Vec<LabelRule>,
    /// How many shapes have them.
    users: u32,
    /// Which groups fulfil them, by number.
    groups: Vec<bool>,
}

/// A node's place in the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    pub group: u32,
    place: usize,
}

/// Which nodes of a group are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those without devices.
    Plain,
    /// Those with.
    Devices,
    /// All.
    All,
}

/// A part of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Area {
    /// One node, by its place.
    Node(u32),
    /// All nodes with this label.
    Label(String, String),
}

/// All nodes, for searches.
#[derive(Debug)]
pub(crate) struct Index {
    seed: u64,
    groups: Vec<Group>,
    /// Those that have no nodes any more, to be used again.
    vacant: BTreeSet<u32>,
    by_labels: BTreeMap<(Vec<Label>, bool, Size), u32>,
    /// Label keys that some rule has named: the others tell no nodes apart.
    keys: BTreeSet<String>,
    /// Whether rules are used no longer since keys were last forgotten.
    unused: bool,
    rules: Vec<Rules>,
    by_rules: BTreeMap<Vec<LabelRule>, u32>,
    /// Goes up as soon as some rules may admit other groups.
    version: u64,
}

impl Index {
    pub fn new(seed: u64) -> Self {
        Self {
            // Spread over all bits, since each level of a tree uses three.
            seed: if seed == 0 { 0 } else { mix(seed) },
            groups: Vec::new(),
            vacant: BTreeSet::new(),
            by_labels: BTreeMap::new(),
            keys: BTreeSet::new(),
            unused: false,
            rules: Vec::new(),
            by_rules: BTreeMap::new(),
            version: 1,
        }
    }

    /// What [`Index::admits`] said holds as long as this stays as it is.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A place for a node, which [`Index::update`] fills.
    pub fn insert(&mut self, node: u32, labels: &[Label], devices: bool, size: Size) -> Spot {
        let labels: Vec<Label> = labels.iter().filter(|(key, _)| self.keys.contains(key)).cloned().collect();
        let key = (labels, devices, size);
        let group = match self.by_labels.get(&key) {
            Some(group) => *group,
            None => {
                self.version += 1;
                let next = u32::try_from(self.groups.len()).unwrap_or(u32::MAX);
                let group = self.vacant.pop_first().unwrap_or(next);
                if group == next {
                    self.rules.iter_mut().for_each(|rules| rules.groups.push(false));
                    self.groups.push(Group { labels: Vec::new(), devices, size, tree: Tree::new() });
                }
                for rules in &mut self.rules {
                    rules.groups[group as usize] = rules.list.iter().all(|rule| rule.holds(&key.0));
                }
                let labels = key.0.clone();
                self.groups[group as usize] = Group { labels, devices, size, tree: Tree::new() };
                self.by_labels.insert(key, group);
                group
            }
        };
        Spot { group, place: self.groups[group as usize].tree.insert(node) }
    }

    pub fn update(&mut self, spot: Spot, summary: Summary) {
        self.groups[spot.group as usize].tree.update(spot.place, summary);
    }

    pub fn remove(&mut self, spot: Spot) {
        let tree = &mut self.groups[spot.group as usize].tree;
        tree.update(spot.place, Summary::NOTHING);
        tree.nodes[spot.place] = None;
        tree.vacant.insert(spot.place);
        if tree.vacant.len() == tree.nodes.len() {
            let group = &mut self.groups[spot.group as usize];
            group.tree = Tree::new();
            let key = (std::mem::take(&mut group.labels), group.devices, group.size);
            self.by_labels.remove(&key);
            self.vacant.insert(spot.group);
        }
    }

    /// What is known of a node.
    pub fn summary(&self, spot: Spot) -> &Summary {
        &self.groups[spot.group as usize].tree.levels[0][spot.place]
    }

    /// The number of these rules, counted as used once more. Says whether nodes are now told apart by a label that
    /// did not matter before: then all of them must be inserted anew, after [`Index::clear`].
    pub fn rules(&mut self, list: &[LabelRule]) -> (u32, bool) {
        if let Some(at) = self.by_rules.get(list) {
            self.rules[*at as usize].users += 1;
            return (*at, false);
        }
        self.version += 1;
        let before = self.keys.len();
        self.keys.extend(list.iter().map(|rule| key_of(rule).to_owned()));
        let groups = self.groups.iter().map(|g| list.iter().all(|rule| rule.holds(&g.labels))).collect();
        let rules = Rules { list: list.to_vec(), users: 1, groups };
        let vacant = self.rules.iter().position(|r| r.users == 0);
        let at = vacant.unwrap_or(self.rules.len());
        match self.rules.get_mut(at) {
            Some(slot) => *slot = rules,
            None => self.rules.push(rules),
        }
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        self.by_rules.insert(list.to_vec(), at);
        (at, self.keys.len() > before)
    }

    /// These rules are used once less.
    pub fn forget_rules(&mut self, at: u32) {
        let rules = &mut self.rules[at as usize];
        rules.users = rules.users.saturating_sub(1);
        if rules.users == 0 {
            self.unused |= !rules.list.is_empty();
            self.by_rules.remove(&rules.list);
        }
    }

    /// Forgets label keys that only rules named which are used no longer. Says whether there were any: then all nodes must
    /// be inserted anew, after [`Index::clear`].
    pub fn forget_keys(&mut self) -> bool {
        if !std::mem::take(&mut self.unused) {
            return false;
        }
        let used = self.rules.iter().filter(|rules| rules.users > 0).flat_map(|rules| &rules.list);
        let used: BTreeSet<String> = used.map(|rule| key_of(rule).to_owned()).collect();
        let fewer = used.len() < self.keys.len();
        self.keys = used;
        fewer
    }

    /// How many groups of nodes are told apart.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.groups.len() - self.vacant.len()
    }

    /// Forgets all nodes.
    pub fn clear(&mut self) {
        self.version += 1;
        self.groups.clear();
        self.vacant.clear();
        self.by_labels.clear();
        for rules in &mut self.rules {
            rules.groups.clear();
        }
    }

    pub fn admits(&self, rules: u32, spot: Spot) -> bool {
        self.rules[rules as usize].groups[spot.group as usize]
    }

    /// The values of a label of nodes that fulfil some rules. The label must be one that some rule has named.
    pub fn areas(&self, rules: u32, key: &str) -> BTreeSet<Area> {
        let holds = &self.rules[rules as usize].groups;
        let fitting = self.groups.iter().zip(holds).filter(|(_, holds)| **holds);
        let labels = fitting.flat_map(|(group, _)| group.labels.iter().filter(|(k, _)| k == key));
        labels.map(|(key, value)| Area::Label(key.clone(), value.clone())).collect()
    }

    fn trees(&self, rules: u32, which: Which) -> impl Iterator<Item = (&Group, usize)> {
        let rules = &self.rules[rules as usize];
        self.groups.iter().zip(&rules.groups).filter_map(move |(group, holds)| {
            let wanted = match which {
                Which::Plain => !group.devices,
                Which::Devices => group.devices,
                Which::All => true,
            };
            if *holds && wanted { Some((group, group.tree.top()?)) } else { None }
        })
    }

    fn first(
        &self,
        (rules, which): (u32, Which),
        may: &dyn Fn(&Summary) -> bool,
        fine: &mut dyn FnMut(u32) -> bool,
    ) -> Option<u32> {
        let mut find = Find { seed: self.seed, may, fine };
        self.trees(rules, which).find_map(|(group, top)| group.tree.first(&mut find, top, 0))
    }

    /// The first fine node, in a fixed order, that may stay under half full.
    pub fn first_low(
        &self,
        from: (u32, Which),
        need: &Need,
        fine: &mut dyn FnMut(u32) -> bool,
    ) -> Option<u32> {
        self.first(from, &|s| s.may_fit(need) && s.may_stay_low(need), fine)
    }

    /// The first fine node, in a fixed order, on which a slot may ever fit.
    pub fn first_able(&self, rules: u32, need: &Need, fine: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        self.first((rules, Which::All), &|s| s.may_ever_fit(need), fine)
    }

    /// The nodes that are least full with one more slot, at most so many, of those for which `fullness` says how full
    /// that is.
    pub fn emptiest(
        &self,
        from: (u32, Which),
        need: &Need,
        count: usize,
        fullness: &mut dyn FnMut(u32) -> Option<f64>,
    ) -> Vec<u32> {
        self.emptiest_of(None, from, need, count, fullness)
    }

    /// The least full in one part of the cluster. Its label must be one that some rule has named.
    pub fn emptiest_in(
        &self,
        area: Option<&Area>,
        from: (u32, Which),
        need: &Need,
        fullness: &mut dyn FnMut(u32) -> Option<f64>,
    ) -> Option<u32> {
        self.emptiest_of(area, from, need, 1, fullness).first().copied()
    }

    /// The same of one part of the cluster, as [`Index::emptiest_in`].
    pub fn emptiest_of(
        &self,
        area: Option<&Area>,
        (rules, which): (u32, Which),
        need: &Need,
        count: usize,
        fullness: &mut dyn FnMut(u32) -> Option<f64>,
    ) -> Vec<u32> {
        let inside = |group: &Group| match area {
            Some(Area::Label(key, value)) => group.labels.iter().any(|(k, v)| k == key && v == value),
            _ => true,
        };
        let mut find = Emptiest { seed: self.seed, need, fullness, count, best: Vec::new() };
        for (group, top) in self.trees(rules, which).filter(|(group, _)| inside(group)) {
            group.tree.emptiest(&mut find, top, 0);
        }
        find.best.into_iter().map(|(_, node)| node).collect()
    }
}

fn key_of(rule: &LabelRule) -> &str {
    match rule {
        LabelRule::In(key, _)
        | LabelRule::NotIn(key, _)
        | LabelRule::Exists(key)
        | LabelRule::Absent(key) => key,
    }
}

/// SplitMix64's finaliser: spreads neighbouring numbers over all of them.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
