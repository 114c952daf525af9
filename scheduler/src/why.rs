//! Sentences for people: what is missing, and what a demand or a group waits for.

use std::{
    cell::{Cell, RefCell},
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet},
};

use mobula_proto::{
    Group, GroupId, JobId, Quantity, Resources,
    group::Arrange,
    resource::{Class, Kind, LabelRule, Strategy, bytes_text},
};

use crate::{
    Demand,
    cluster::Cluster,
    gang::{
        self, Gang,
        search::{self, Found, Nodes},
    },
    lease::Leases,
    node::Node,
    queues::Queues,
    shapes::{Shape, ShapeId},
    slab::Slab,
    stock::{CPU, Kinds, Need},
};

/// Most that is looked at for who holds what is short: nodes, and what holds something there. About a millisecond.
const HOLDERS_MAX: usize = 32_768;
/// Most looks, each of a bundle at a node, for a bundle of a group that finds none.
const ROOMS_MAX: usize = 65_536;
/// Most places before one in its queue that are counted.
const POSITION_MAX: usize = 1000;

/// What the sentences are about.
pub(crate) struct Told<'a> {
    pub cluster: &'a Cluster,
    pub queues: &'a Queues,
    pub leases: &'a Leases,
    pub gangs: &'a Slab<Gang>,
    /// Groups for which nodes are kept.
    pub kept_for: BTreeSet<GroupId>,
    /// How much was looked at: nodes, leases, turns and bundles, each as often as it was.
    pub looks: Cell<u64>,
    /// What keeps those waiting that are alike, as far as it was asked.
    pub known: RefCell<BTreeMap<Alike, Result<String, String>>>,
}

/// All that has the same reason but for its place in the queue: shape, queue, priority, and the group that has nodes kept
/// for it.
pub(crate) type Alike = (ShapeId, u32, i32, Option<GroupId>);

/// Who waits, and for what each time.
struct Wish<'a> {
    class: &'a Class,
    need: &'a Need,
    shape: &'a Shape,
    queue: u32,
    priority: i32,
}

impl Told<'_> {
    /// What a demand waits for. `turn` is when it is its turn.
    pub fn waits(&self, demand: &Demand, shape: &Shape, turn: crate::queues::Turn) -> String {
        let class = &*demand.class;
        let (need, queue) = (&*shape.need, demand.queue);
        let wish = Wish { class, need, shape, queue, priority: class.priority };
        let times = if demand.backlog == 1 { String::new() } else { format!(", {} times", demand.backlog) };
        let text = self.of_alike((shape.id, queue, wish.priority, None), || match self.limit(queue, shape) {
            Some(limit) => Ok(limit),
            None => self.lacks(&wish),
        });
        match text {
            Ok(text) => format!("needs {}{times}; {text}; {}", class.resources, self.position(queue, turn)),
            // There is nothing that could be waited for in a queue.
            Err(text) => text,
        }
    }

    /// What is so of all that are alike is found out once.
    fn of_alike(
        &self,
        alike: Alike,
        text: impl FnOnce() -> Result<String, String>,
    ) -> Result<String, String> {
        if let Some(text) = self.known.borrow().get(&alike) {
            return text.clone();
        }
        let text = text();
        self.known.borrow_mut().insert(alike, text.clone());
        text
    }

    pub fn look(&self, count: usize) {
        self.looks.set(self.looks.get() + u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// What a group waits for.
    pub fn gang_waits(&self, gang: &Gang, shape: &Shape, turn: crate::queues::Turn) -> String {
        let spec = &*gang.spec;
        let missing = gang.missing();
        let mut head = format!("needs {}", bundles(spec, &missing));
        let keeps = spec.bundles.len() - missing.len();
        if keeps > 0 {
            head += &format!(" beside the {keeps} that it has");
        }
        self.look(spec.bundles.len());
        let own = self.kept_for.contains(&gang.id).then_some(gang.id);
        let text = self
            .of_alike((shape.id, gang.queue, spec.priority, own), || self.gang_lacks(gang, shape, &missing));
        match text {
            Ok(text) => format!("{head}; {text}; {}", self.position(gang.queue, turn)),
            Err(text) if keeps > 0 => format!("{head}; {text}"),
            Err(text) => text,
        }
    }

    /// The same of all groups that lack the same bundles; an error where there are no nodes that could ever have them.
    fn gang_lacks(&self, gang: &Gang, shape: &Shape, missing: &[u32]) -> Result<String, String> {
        let spec = &*gang.spec;
        if let Some(limit) = self.limit(gang.queue, shape) {
            let beyond = if gang.beyond { ", less than all of it needs: raise that limit" } else { "" };
            return Ok(format!("{limit}{beyond}"));
        }
        // The largest is what is hardest to find room for.
        let mut sizes = missing.to_vec();
        sizes.sort_by_cached_key(|number| Reverse(gang::size(self.cluster, &gang.needs[*number as usize])));
        sizes.dedup_by_key(|number| &gang.needs[*number as usize]);
        let admitted = |n: &&Node| gang.rules.iter().all(|rules| self.cluster.index.admits(*rules, n.spot));
        let open: Vec<&Node> = self.nodes().filter(|n| gang.may_use(n)).filter(admitted).collect();
        let room = |number: u32, node: &Node| u64::from(node.stock.room(&gang.needs[number as usize]));
        let (mut without, mut looked) = (None, 0);
        for number in sizes.iter().copied() {
            if without.is_some() || looked >= ROOMS_MAX {
                break;
            }
            let found = open.iter().position(|node| room(number, node) > 0);
            looked += found.unwrap_or(open.len());
            without = found.is_none().then_some(number);
        }
        self.look(looked);
        let Some(wanted) = without.or(sizes.first().copied()) else { return Ok("lacks nothing".to_owned()) };
        let class = Class {
            resources: spec.bundles[wanted as usize].clone(),
            labels: spec.labels.clone(),
            ..Class::default()
        };
        let need = &*gang.needs[wanted as usize];
        let wish = Wish { class: &class, need, shape, queue: gang.queue, priority: spec.priority };
        let text = self.lacks(&wish)?;
        Ok(match self.arrangement(gang) {
            Some(text) => text,
            None if without.is_some() && gang.is_alike() => text,
            None if without.is_some() => format!("its bundle of {} finds no node: {text}", class.resources),
            None if gang.is_alike() => {
                self.look(open.len());
                let room: u64 = open.iter().map(|node| room(wanted, node)).sum();
                format!("there is room for {room} of them now")
            }
            // Not each of so many was held against all nodes.
            None if looked >= ROOMS_MAX => "there is no room for all of it at once".to_owned(),
            None => "there is room for each of them, but not for all at once".to_owned(),
        })
    }

    /// What keeps a group waiting that has to do with all its bundles together, if anything.
    fn arrangement(&self, gang: &Gang) -> Option<String> {
        let spec = &*gang.spec;
        let find = |arrange, nodes| {
            let mut left = search::LOOKS_MAX;
            let found = search::find(self.cluster, gang, arrange, nodes, &mut left);
            self.look((search::LOOKS_MAX - left) as usize);
            found
        };
        // Many groups may be asked about at once.
        let now = if self.cluster.is_fresh() { Nodes::Indexed } else { Nodes::Listed };
        match find(spec.arrange, now) {
            // Its search was put off, or others are due before it.
            Found::Places(_) => return Some("there is room for it, and it is looked for soon".to_owned()),
            Found::GaveUp => {
                return Some(format!(
                    "no way to place all of it was found in {} looks, and it is looked for again when something comes \
                     free",
                    search::LOOKS_MAX
                ));
            }
            Found::Nowhere => {}
        }
        if find(spec.arrange, Nodes::Emptied) == Found::Nowhere {
            let drains = self.nodes().any(|n| n.draining);
            let but = if drains { ", but for those that drain," } else { "" };
            return Some(format!("the nodes{but} have no room for all of it even with nothing else on them"));
        }
        let place = if spec.place.is_empty() { "node" } else { &spec.place };
        let strict = match spec.arrange {
            Arrange::StrictPack => format!("there is room for that, but not in one {place}"),
            Arrange::StrictSpread => format!("there is room for that, but not each in a {place} of its own"),
            Arrange::Pack | Arrange::Spread => return None,
        };
        matches!(find(Arrange::Pack, now), Found::Places(_)).then_some(strict)
    }

    /// The limit that allows no slot more, if one does.
    fn limit(&self, queue: u32, shape: &Shape) -> Option<String> {
        let Some((name, kind, limit, used)) = self.queues.full(queue, &shape.need) else {
            let (aside, _) = *self.queues.full_limits(queue, shape.id, &shape.need).first()?;
            let name = queue_name(&self.queues.get(aside).name);
            return Some(format!("what the limit of {name} leaves is set aside for what has waited longer"));
        };
        let has = Quantity::from_units(limit).unwrap_or_default();
        let (kind, name) = (self.cluster.kinds.name(kind)?, queue_name(name));
        let left = i64::try_from(i128::from(limit) - used).ok().filter(|left| *left > 0);
        let left = left.and_then(|left| Quantity::from_units(left).ok());
        Some(match left {
            Some(left) => {
                format!("{name} has {} left of its limit of {}", quantity(kind, left), amount(kind, has))
            }
            None => format!("{name} is at its limit of {}", amount(kind, has)),
        })
    }

    fn position(&self, queue: u32, turn: crate::queues::Turn) -> String {
        let (before, looked) = self.queues.before(queue, turn, POSITION_MAX);
        self.look(looked);
        let name = queue_name(&self.queues.get(queue).name);
        if before >= POSITION_MAX {
            return format!("{POSITION_MAX} others or more before it in {name}");
        }
        format!("position {} of {name}", before + 1)
    }

    /// Why there is no room; an error where there are no nodes that could ever have it.
    fn lacks(&self, wish: &Wish<'_>) -> Result<String, String> {
        let all: Vec<&Node> = self.nodes().collect();
        if all.is_empty() {
            return Err("waits for a first node: the cluster has none that runs work".to_owned());
        }
        // For what is kept, and a few times for each resource.
        self.look(all.len() * (3 + 2 * wish.need.amounts.len()));
        let could = |n: &&Node| self.cluster.admits(wish.shape, n) && n.stock.could_ever(wish.need);
        let able: Vec<&Node> = all.into_iter().filter(could).collect();
        if able.is_empty() {
            return Err(format!("waits for a node that fits: {}", missing(wish.class, self.cluster)));
        }
        let open: Vec<&Node> = able.iter().copied().filter(|n| !n.draining).collect();
        if open.is_empty() {
            return Err(format!("waits for a node that is not draining: {} would fit", names(&able)));
        }
        let count = match (&open[..], wish.class.labels.is_empty()) {
            ([node], true) => format!("{} alone could hold it", node.id),
            ([node], false) => format!("{} alone has the {}", node.id, labels(wish.class)),
            (_, true) => format!("{} nodes could hold it", open.len()),
            (_, false) => format!("{} nodes have the {}", open.len(), labels(wish.class)),
        };
        let kept = |n: &&Node| n.is_kept_from(Some(wish.shape.id)) && n.stock.fits(wish.need);
        let kept = open.iter().copied().find(kept).and_then(|n| n.kept.as_ref());
        let text = match kept.map(|kept| kept.oldest().is_some()) {
            Some(true) => "what is free is kept for what has waited longer".to_owned(),
            Some(false) => "what is free is kept for what goes before it".to_owned(),
            None => self
                .busy(wish, &open)
                .unwrap_or_else(|| "with as many slots of it as there may be".to_owned()),
        };
        Ok(format!("{count}, {text}"))
    }

    /// Why none of the nodes, which all could hold it, has room now.
    fn busy(&self, wish: &Wish<'_>, nodes: &[&Node]) -> Option<String> {
        let kinds: &Kinds = &self.cluster.kinds;
        let free =
            |node: &Node, kind: usize| Quantity::from_units(node.stock.free_of(kind)).unwrap_or_default();
        let resources = &wish.class.resources;
        let wanted: Vec<(&Kind, usize, Quantity)> =
            resources.iter().filter_map(|(kind, each)| Some((kind, kinds.find(kind)?, each))).collect();
        // The resource that is short on the most nodes is the one to name.
        let counted = wanted.iter().map(|(kind, at, each)| {
            let count = nodes.iter().filter(|n| free(n, *at) < *each).count();
            (count, *kind, *at, *each)
        });
        // The first of equals.
        let (count, kind, at, each) = counted.reduce(|a, b| if b.0 > a.0 { b } else { a })?;
        let with = || self.holder(wish, nodes, at);
        if count == nodes.len() {
            let (most, node) = most(nodes, |n| free(n, at))?;
            let full = match nodes.len() {
                1 => "full",
                2 => "both full",
                _ => "all full",
            };
            return Some(match (nodes.len(), most.is_zero()) {
                (_, true) => {
                    format!("{full}{}", by("with", with()))
                }
                (1, _) => {
                    let (free, total) = (quantity(kind, most), amount(kind, node.total.get(kind)));
                    format!("{free} of its {total} free{}", by("beside", with()))
                }
                _ => {
                    format!(
                        "none with more than {} free ({}){}",
                        amount(kind, most),
                        node.id,
                        by("beside", with())
                    )
                }
            });
        }
        let scattered = wanted.iter().find(|(kind, at, each)| {
            kind.is_device() && nodes.iter().all(|n| n.stock.is_short(*at, each.units()))
        });
        if let Some((kind, at, each)) = scattered {
            let what = if *each < Quantity::ONE {
                format!("no single {kind} with {each} free")
            } else {
                format!("fewer than {each} whole {kind} free")
            };
            return Some(format!("{what}{}", by("beside", self.holder(wish, nodes, *at))));
        }
        let full = nodes.iter().all(|n| !n.stock.fits(wish.need));
        (full && count > 0).then(|| {
            let lack = amount(kind, each);
            let lacking = if count * 2 > nodes.len() {
                "most".to_owned()
            } else {
                format!("{count} of {}", nodes.len())
            };
            format!("none with all of that free, {lacking} lack {lack}{}", by("beside", with()))
        })
    }

    /// Who holds most of a kind on some nodes, and by what right. What holds none of it says nothing about that.
    fn holder(&self, wish: &Wish<'_>, nodes: &[&Node], kind: usize) -> Option<Holder> {
        let mut all: BTreeMap<(u32, JobId), Held> = BTreeMap::new();
        let (mut looked, mut first) = (0, 0);
        for node in nodes {
            if looked >= HOLDERS_MAX {
                break;
            }
            looked += 1 + node.leases.len() + node.bundles.len();
            first += 1;
            for entry in
                node.leases.iter().filter_map(|at| self.leases.at(*at)).filter(|e| e.inside.is_none())
            {
                if !entry.holds(kind) {
                    continue;
                }
                let (giving, running) = entry.leaving();
                let (slots, leave) =
                    if kind == CPU { (entry.running(), running) } else { (entry.lease.slots, giving) };
                let each = entry.need.get(kind);
                let held = all.entry((entry.queue, entry.lease.job)).or_default();
                held.add(entry.lease.priority.cmp(&wish.priority), each * i64::from(slots));
                held.leaves += each * i64::from(leave);
            }
            for (at, number) in &node.bundles {
                let Some(gang) = self.gangs.get(*at) else { continue };
                let amount = gang.needs[*number as usize].get(kind);
                if amount == 0 {
                    continue;
                }
                let held = all.entry((gang.queue, gang.job)).or_default();
                held.add(gang.spec.priority.cmp(&wish.priority), amount);
                held.leaves += if gang.until.is_some() { amount } else { 0 };
            }
        }
        self.look(looked);
        let sum: i128 = all.values().map(|held| i128::from(held.all())).sum();
        let most = all.into_iter().max_by_key(|(who, held)| (held.all(), Reverse(*who)));
        let ((queue, job), held) = most?;
        let part = match i128::from(held.all()) {
            amount if amount == sum => Part::All,
            amount if amount * 2 > sum => Part::MoreThanHalf,
            _ => Part::Most,
        };
        let right = match held.right() {
            _ if queue != wish.queue => format!(" of {}", queue_name(&self.queues.get(queue).name)),
            (priority, true) => format!(" at {priority} priority"),
            (priority, false) => format!(", some of it at {priority} priority"),
        };
        let leaves = match held.leaves {
            0 => "",
            leaves if leaves == held.all() => ", which makes room",
            _ => ", some of which makes room",
        };
        let on = match first {
            all if all == nodes.len() => String::new(),
            1 => " on the first of them".to_owned(),
            some => format!(" on the first {some} of them"),
        };
        Some(Holder { who: format!("{job}{right}{leaves}{on}"), part })
    }

    /// Those that run work, by number.
    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.look(self.cluster.by_number.len());
        nodes(self.cluster)
    }
}

/// What a job holds of something in a queue.
#[derive(Debug, Default)]
struct Held {
    /// At a lower priority than that of who waits, at the same, and at a higher one.
    by_priority: [i64; 3],
    /// How much of it makes room.
    leaves: i64,
}

impl Held {
    fn add(&mut self, priority: Ordering, amount: i64) {
        let at = match priority {
            Ordering::Less => 0,
            Ordering::Equal => 1,
            Ordering::Greater => 2,
        };
        self.by_priority[at] += amount;
    }

    fn all(&self) -> i64 {
        self.by_priority.iter().sum()
    }

    /// The highest priority at which it holds some, and whether all of it is at that.
    fn right(&self) -> (&'static str, bool) {
        let names = ["lower", "the same", "higher"];
        let highest = (0..names.len()).rev().find(|at| self.by_priority[*at] > 0).unwrap_or(1);
        (names[highest], self.by_priority[highest] == self.all())
    }
}

/// A holder, and how much of what is held that one has.
struct Holder {
    who: String,
    part: Part,
}

/// Which part of what is held one has that has more than each other.
enum Part {
    All,
    MoreThanHalf,
    Most,
}

/// ` with job-7 at higher priority`, or what is true of it where others hold some, too.
fn by(word: &str, holder: Option<Holder>) -> String {
    let Some(Holder { who, part }) = holder else { return String::new() };
    match part {
        Part::All => format!(" {word} {who}"),
        Part::MoreThanHalf => format!(" mostly {word} {who}"),
        Part::Most => format!(" {word} others and {who}"),
    }
}

fn queue_name(name: &str) -> String {
    if name.is_empty() { "the default queue".to_owned() } else { format!("queue {name}") }
}

fn labels(class: &Class) -> &'static str {
    match (class.labels.len(), class.fallbacks.is_empty()) {
        (1, true) => "label",
        (_, true) => "labels",
        (1, false) => "label, or those of a fallback",
        (_, false) => "labels, or those of a fallback",
    }
}

/// `8 bundles of 1 GPU each (strict pack by rack)`.
fn bundles(spec: &Group, missing: &[u32]) -> String {
    let of = |number: &u32| &spec.bundles[*number as usize];
    let first: &Resources = match missing.first() {
        Some(first) => of(first),
        None => return "nothing".to_owned(),
    };
    let place = if spec.place.is_empty() { String::new() } else { format!(" by {}", spec.place) };
    let alike = missing.iter().all(|number| of(number) == first);
    let what = match (missing.len(), alike) {
        (1, _) => format!("1 bundle of {first}"),
        (count, true) => format!("{count} bundles of {first} each"),
        (count, false) => {
            let mut all = Resources::none();
            missing.iter().for_each(|number| all.add(of(number)));
            format!("{count} bundles of {all} together")
        }
    };
    format!("{what} ({}{place})", spec.arrange)
}

/// Those that run work, by number.
fn nodes(cluster: &Cluster) -> impl Iterator<Item = &Node> {
    cluster.by_number.values().filter_map(|at| cluster.nodes.get(*at)).filter(|n| n.works())
}

/// What is missing for a class that no node could ever hold.
pub(crate) fn missing(class: &Class, cluster: &Cluster) -> String {
    let text = missing_first(class, cluster);
    match class.fallbacks.len() {
        0 => text,
        1 => format!("{text}; nor has one with the labels of its fallback"),
        count => format!("{text}; nor has one with the labels of any of its {count} fallbacks"),
    }
}

/// The same by the class's own labels alone.
fn missing_first(class: &Class, cluster: &Cluster) -> String {
    let mut fitting: Vec<&Node> = nodes(cluster).collect();
    let mut only = None;
    if let Strategy::Node { node, soft: false } = &class.strategy {
        fitting.retain(|n| n.id == *node);
        if fitting.is_empty() {
            return format!("{node} is not in the cluster, or runs no work");
        }
        only = Some(*node);
    }
    let subject = only.map_or_else(|| "no node".to_owned(), |node| node.to_string());
    for rule in &class.labels {
        if !fitting.iter().any(|n| rule.holds(&n.labels)) {
            return lacks_label(only.map(|n| n.to_string()), rule);
        }
    }
    fitting.retain(|n| class.labels.iter().all(|rule| rule.holds(&n.labels)));
    let rules: Vec<String> = class.labels.iter().map(LabelRule::to_string).collect();
    if fitting.is_empty() {
        return format!("{subject} fulfils all of these label rules: {}", rules.join("; "));
    }
    let with_label =
        if rules.is_empty() { String::new() } else { format!(" with label {}", rules.join("; ")) };
    for (kind, each) in class.resources.iter() {
        let Some((most, node)) = most(&fitting, |n| n.total.get(kind)) else { continue };
        if most >= each {
            continue;
        }
        let need = amount(kind, each);
        let has = quantity(kind, most);
        return match only {
            Some(node) => format!("{node} has {}, not {}", amount(kind, most), quantity(kind, each)),
            None if most.is_zero() => format!("no node{with_label} has {need}: none has any"),
            None => format!("no node{with_label} has {need}: the most any node has is {has} ({})", node.id),
        };
    }
    // Each resource alone is there somewhere: name the node that comes closest.
    let lacking = |n: &Node| class.resources.iter().filter(|(kind, each)| n.total.get(kind) < *each).count();
    let closest = fitting.iter().min_by_key(|n| lacking(n));
    let detail = closest.and_then(|n| {
        let (kind, has) = n.total.first_short(&class.resources)?;
        Some(format!(": {} comes closest, with {}", n.id, amount(&kind, has)))
    });
    format!("no node{with_label} has {} together{}", class.resources, detail.unwrap_or_default())
}

fn lacks_label(only: Option<String>, rule: &LabelRule) -> String {
    match (only, rule) {
        (None, LabelRule::In(..)) => format!("no node has label {rule}"),
        (None, LabelRule::Exists(key)) => format!("no node has label {key}"),
        (None, LabelRule::NotIn(key, values)) => {
            format!("every node has label {key} in ({})", values.join(", "))
        }
        (None, LabelRule::Absent(key)) => format!("every node has label {key}"),
        (Some(node), _) => format!("{node} does not fulfil label rule {rule}"),
    }
}

/// The largest amount, and the first node that has it.
fn most<'a>(nodes: &[&'a Node], of: impl Fn(&Node) -> Quantity) -> Option<(Quantity, &'a Node)> {
    nodes.iter().map(|n| (of(n), *n)).reduce(|a, b| if b.0 > a.0 { b } else { a })
}

fn quantity(kind: &Kind, amount: Quantity) -> String {
    match kind {
        Kind::Memory => bytes_text(amount.units().unsigned_abs() / Quantity::PER_ONE.unsigned_abs()),
        _ => amount.to_string(),
    }
}

fn amount(kind: &Kind, of: Quantity) -> String {
    format!("{} {kind}", quantity(kind, of))
}

fn names(nodes: &[&Node]) -> String {
    let names: Vec<String> = nodes.iter().take(3).map(|n| n.id.to_string()).collect();
    let more = nodes.len().saturating_sub(names.len());
    if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
}
