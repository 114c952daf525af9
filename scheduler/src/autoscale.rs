//! How many nodes of which type would make room for what waits, and which nodes nobody needs.
//!
//! [`plan`] is pure: the same types, members and demand give the same plan, in whatever order they are listed. It packs
//! what waits into the room that there is, that is on its way, and that could be started:
//!
//! 1. Each type is brought up to its minimum.
//! 2. Where all that waits in a queue is more than its limit leaves, it goes before what has no such limit, in the order of
//!    its turns, until the limit is reached. So what the limit leaves is planned for once, and for whom it will be: what
//!    finds no room uses none of it up.
//! 3. Then groups go first, each whole or not at all: half a group is of no use, and its room may be another's.
//! 4. Single slots follow, the largest first, since small ones fit into what large ones leave. Each that keeps apart from
//!    its own kind goes to a node of its own.
//! 5. Each goes where there is room, else to a node that drains only because nothing needed it, which then stays, else
//!    to a new node of the type of which it would use the largest part; so work without a GPU does not start nodes that
//!    have some.
//! 6. A node that nothing was packed onto, and that has been idle for its type's time, is drained, down to the minimum.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use mobula_proto::{
    NodeId, Quantity, Resources,
    group::Arrange,
    resource::{self, Kind, LABEL_NODE_TYPE, Label, check_name},
};

use crate::{Gang, Millis, Unmet, event::DEVICES_MAX};

/// Most types of nodes.
pub const TYPES_MAX: usize = 64;
/// Most nodes of all types together.
pub const NODES_MAX: u32 = 16_384;
/// Most shapes of demand that one plan looks at, groups first; the rest waits for the next.
pub const SHAPES_MAX: usize = 16_384;
/// Shares are counted in ten-thousandths.
const WHOLE: u128 = 10_000;

/// Nodes of one type that may be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeType {
    /// Its name, unique among the types.
    pub name: String,
    /// What one node offers. Devices are a whole number, at most [`DEVICES_MAX`] of a kind.
    pub resources: Resources,
    /// The labels that one node carries.
    pub labels: Vec<Label>,
    /// How many there are at least.
    pub min: u32,
    /// How many there are at most.
    pub max: u32,
    /// How long a node runs nothing before it is drained.
    pub idle_timeout: Millis,
}

/// A node that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Its type; `None` for a node that somebody started by hand, which is never drained.
    pub kind: Option<String>,
    /// What nothing holds.
    pub available: Resources,
    /// What is free of each of its devices.
    pub devices: Vec<(Kind, Quantity)>,
    /// Its labels.
    pub labels: Vec<Label>,
    /// Since when it runs nothing; `None` while it runs something.
    pub idle_since: Option<Millis>,
    /// Whether it is being drained: nothing is packed onto it, but it counts as long as it is there.
    pub draining: bool,
    /// Whether it is drained only because it was idle: it stays where something is packed onto it after all.
    pub may_stay: bool,
}

impl Member {
    /// Whether it drains, and stays if it is needed.
    fn may_come_back(&self) -> bool {
        self.draining && self.may_stay
    }
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How many nodes to start of which type, by name; none of zero.
    pub start: BTreeMap<String, u32>,
    /// Which of the nodes that drain shall stay, by number.
    pub stay: Vec<NodeId>,
    /// Which nodes to drain, the longest idle first.
    pub drain: Vec<NodeId>,
    /// What finds no room even so, because the types are at their maximum or none could hold it; what its queue may not
    /// have beside the others is not among it. A group is listed with all its shapes.
    pub left: Vec<Unmet>,
}

/// Why types were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too many types.
    #[error("{0} types of nodes are too many: have at most {TYPES_MAX}")]
    TooManyTypes(usize),
    /// The same name twice.
    #[error("node type {0} is listed twice: list each type once")]
    Duplicate(String),
    /// A name, an amount or a label is not allowed.
    #[error("node type {name}: {error}")]
    Resource {
        /// The type.
        name: String,
        /// Why.
        error: resource::Error,
    },
    /// It offers nothing.
    #[error("node type {0} offers nothing: give it some resource")]
    Empty(String),
    /// A part of a device, or too many.
    #[error("node type {name} has {amount} {kind}: give it a whole number up to {DEVICES_MAX}")]
    Devices {
        /// The type.
        name: String,
        /// The kind.
        kind: Kind,
        /// How many.
        amount: Quantity,
    },
    /// The minimum is above the maximum.
    #[error(
        "node type {name} has a minimum of {min}, above its maximum of {max}: lower the one or raise the other"
    )]
    MinAboveMax {
        /// The type.
        name: String,
        /// Its minimum.
        min: u32,
        /// Its maximum.
        max: u32,
    },
    /// All the maxima together are too many.
    #[error("the node types allow {0} nodes together, more than {NODES_MAX}: lower their maxima")]
    TooManyNodes(u64),
}

/// Checks what came from outside.
///
/// # Errors
/// What is wrong with the first type that is wrong; see [`Error`].
pub fn validate(types: &[NodeType]) -> Result<(), Error> {
    if types.len() > TYPES_MAX {
        return Err(Error::TooManyTypes(types.len()));
    }
    let mut names = BTreeSet::new();
    for one in types {
        let name: String = one.name.chars().take(resource::NAME_BYTES_MAX).collect();
        let wrong = |error| Error::Resource { name: name.clone(), error };
        check_name(&one.name).map_err(wrong)?;
        if !names.insert(&one.name) {
            return Err(Error::Duplicate(name));
        }
        one.resources.validate().map_err(wrong)?;
        if one.resources.is_empty() {
            return Err(Error::Empty(name));
        }
        for (kind, amount) in one.resources.iter().filter(|(kind, _)| kind.is_device()) {
            let whole = amount.units() % Quantity::PER_ONE == 0;
            if !whole || amount > Quantity::whole(DEVICES_MAX.into()) {
                return Err(Error::Devices { name, kind: kind.clone(), amount });
            }
        }
        if one.labels.len() > resource::ENTRIES_MAX {
            return Err(wrong(resource::Error::TooMany(one.labels.len())));
        }
        for (key, value) in &one.labels {
            check_name(key).and_then(|_| check_name(value)).map_err(wrong)?;
        }
        if one.min > one.max {
            return Err(Error::MinAboveMax { name, min: one.min, max: one.max });
        }
    }
    let all: u64 = types.iter().map(|one| u64::from(one.max)).sum();
    if all > u64::from(NODES_MAX) { Err(Error::TooManyNodes(all)) } else { Ok(()) }
}

/// Whether a node of this type that runs nothing else has room for a slot of this shape.
pub fn could_hold(of: &NodeType, shape: &Unmet) -> bool {
    Bin::empty(&carrying_its_name(of)).room(shape) > 0
}

/// Whether all of this would find room on these members and on nodes of these types, as many as there may be of each.
/// No types and no members are allowed; types that [`validate`] refuses hold nothing.
pub fn could_hold_all(types: &[NodeType], members: &[Member], all: &[Unmet]) -> bool {
    let types: Vec<NodeType> = types.iter().map(|of| NodeType { min: 0, ..of.clone() }).collect();
    let plan = plan(&types, members, &BTreeMap::new(), all, Millis(0));
    plan.is_ok_and(|plan| plan.left.is_empty())
}

/// A type whose nodes carry its name as a label, as those do that are started.
fn carrying_its_name(of: &NodeType) -> NodeType {
    let mut of = of.clone();
    of.labels.retain(|(key, _)| key != LABEL_NODE_TYPE);
    of.labels.push((LABEL_NODE_TYPE.to_owned(), of.name.clone()));
    of
}

/// What to start and what to drain. `coming` says how many nodes of each type were started and have not joined yet;
/// `unmet` is what waits and does not fit into what the members have.
///
/// # Errors
/// As for [`validate`].
pub fn plan(
    types: &[NodeType],
    members: &[Member],
    coming: &BTreeMap<String, u32>,
    unmet: &[Unmet],
    now: Millis,
) -> Result<Plan, Error> {
    validate(types)?;
    let types: Vec<NodeType> = types.iter().map(carrying_its_name).collect();
    let mut packing = Packing::new(&types, members, coming);
    let mut shares = Shares::new(unmet);
    let mut left = Vec::new();
    for wish in wishes(unmet, &packing, &shares) {
        match wish {
            Wish::Group(gang, shapes) => {
                // What its queue may have is counted for all of it.
                if !shapes.iter().copied().all(|shape| shares.take(shape, shape.count)) {
                    shares.undo();
                    continue;
                }
                packing.begin();
                if !packing.place_group(gang, &shapes) {
                    packing.undo();
                    shares.undo();
                    left.extend(shapes.into_iter().cloned());
                }
                shares.done();
            }
            Wish::Single(shape) => {
                let most = shares.most(shape);
                let wanted = Unmet { count: most, ..shape.clone() };
                let count = match &shape.apart {
                    None => packing.place(&wanted, Where::Any, &mut BTreeSet::new()),
                    Some(apart) => {
                        let on = Where::Apart("");
                        let mut taken = packing.places(&apart.on, on);
                        packing.place(&wanted, on, &mut taken)
                    }
                };
                shares.take(shape, most - count);
                shares.done();
                if count > 0 {
                    left.push(Unmet { count, ..wanted });
                }
            }
        }
    }
    left.sort();
    let (start, stay) = (packing.started(), packing.staying());
    let drain = packing.idle(now);
    Ok(Plan { start, stay, drain, left })
}

/// What is packed as one.
#[derive(Debug)]
enum Wish<'a> {
    Group(&'a Gang, Vec<&'a Unmet>),
    Single(&'a Unmet),
}

/// What to pack, in order; at most [`SHAPES_MAX`] shapes of it.
fn wishes<'a>(unmet: &'a [Unmet], packing: &Packing<'_>, shares: &Shares<'_>) -> Vec<Wish<'a>> {
    let mut groups: BTreeMap<&Gang, Vec<&Unmet>> = BTreeMap::new();
    let mut all = Vec::new();
    let size = |shape: &Unmet| Reverse(packing.size(&shape.resources));
    // Under a limit by turns, else groups first.
    let rank = |narrow: bool, shape: &'a Unmet| {
        (!narrow, if narrow { shape.turn } else { 0 }, shape.gang.is_none(), shape.gang.as_ref())
    };
    for shape in unmet {
        match &shape.gang {
            Some(gang) => groups.entry(gang).or_default().push(shape),
            None => all.push((rank(shares.narrow(shape), shape), size(shape), shape, Wish::Single(shape))),
        }
    }
    for (gang, mut shapes) in groups {
        shapes.sort_by_cached_key(|shape| (size(shape), *shape));
        let Some(first) = shapes.first().copied() else { continue };
        let narrow = shapes.iter().any(|shape| shares.narrow(shape));
        all.push((rank(narrow, first), size(first), first, Wish::Group(gang, shapes)));
    }
    all.sort_by(|a, b| (&a.0, &a.1, a.2).cmp(&(&b.0, &b.1, b.2)));
    let mut room = SHAPES_MAX;
    let fits = |wish: &Wish<'_>| {
        let shapes = if let Wish::Group(_, shapes) = wish { shapes.len() } else { 1 };
        room.checked_sub(shapes).map(|rest| room = rest).is_some()
    };
    all.into_iter().map(|(.., wish)| wish).take_while(fits).collect()
}

/// What the limits of queues leave, of those that are too narrow for all that waits under them.
#[derive(Debug)]
struct Shares<'a> {
    left: BTreeMap<(&'a str, &'a Kind), Quantity>,
    /// What was taken of it, until that is [`Shares::done`].
    taken: Vec<(&'a Unmet, u64)>,
}

impl<'a> Shares<'a> {
    fn new(unmet: &'a [Unmet]) -> Self {
        let mut sums: BTreeMap<(&str, &Kind), (Quantity, u128)> = BTreeMap::new();
        for shape in unmet {
            for (key, left) in limits(shape) {
                let each = u128::from(shape.resources.get(key.1).units().unsigned_abs());
                sums.entry(key).or_insert((left, 0)).1 += each * u128::from(shape.count);
            }
        }
        let narrow = sums.into_iter().filter(|(_, (left, all))| *all > left.units().unsigned_abs().into());
        Self { left: narrow.map(|(key, (left, _))| (key, left)).collect(), taken: Vec::new() }
    }

    /// Whether a shape is under a limit that is too narrow.
    fn narrow(&self, shape: &Unmet) -> bool {
        limits(shape).any(|(key, _)| self.left.contains_key(&key))
    }

    /// How many of a shape the limits leave room for, of those that wait.
    fn most(&self, shape: &Unmet) -> u64 {
        let left = limits(shape).filter_map(|(key, _)| Some((*self.left.get(&key)?, key.1)));
        left.map(|(left, kind)| left.times(shape.resources.get(kind))).fold(shape.count, u64::min)
    }

    /// Takes `count` of a shape, unless that is more than the limits leave.
    fn take(&mut self, shape: &'a Unmet, count: u64) -> bool {
        let enough = self.most(shape) >= count;
        if enough {
            self.change(shape, |left, each| left.minus(times(each, count)).unwrap_or_default());
            self.taken.push((shape, count));
        }
        enough
    }

    /// Gives back what was taken.
    fn undo(&mut self) {
        for (shape, count) in std::mem::take(&mut self.taken) {
            self.change(shape, |left, each| left.plus(times(each, count)));
        }
    }

    /// What was taken is used.
    fn done(&mut self) {
        self.taken.clear();
    }

    fn change(&mut self, shape: &'a Unmet, to: impl Fn(Quantity, Quantity) -> Quantity) {
        for (key, _) in limits(shape) {
            if let Some(left) = self.left.get_mut(&key) {
                *left = to(*left, shape.resources.get(key.1));
            }
        }
    }
}

/// The limits of which a shape uses something up: of which queue and kind, and what they leave.
fn limits(shape: &Unmet) -> impl Iterator<Item = ((&str, &Kind), Quantity)> {
    let all =
        shape.limits.iter().flat_map(|of| of.left.iter().map(|(kind, left)| ((&*of.queue, kind), *left)));
    all.filter(|((_, kind), _)| !shape.resources.get(kind).is_zero())
}

/// A node, with what is left of it.
#[derive(Clone, Debug)]
struct Bin<'a> {
    labels: &'a [Label],
    free: Resources,
    devices: Vec<(Kind, Quantity)>,
    member: Option<&'a Member>,
    used: bool,
}

impl<'a> Bin<'a> {
    fn empty(of: &'a NodeType) -> Self {
        let devices = of.resources.iter().filter(|(kind, _)| kind.is_device()).flat_map(|(kind, amount)| {
            let count = usize::try_from(amount.times(Quantity::ONE)).unwrap_or(0);
            std::iter::repeat_n((kind.clone(), Quantity::ONE), count)
        });
        Self {
            labels: &of.labels,
            free: of.resources.clone(),
            devices: devices.collect(),
            member: None,
            used: false,
        }
    }

    fn of(member: &'a Member) -> Self {
        Self {
            labels: &member.labels,
            free: member.available.clone(),
            devices: member.devices.clone(),
            member: Some(member),
            used: false,
        }
    }

    /// Whether it drains, and stays if something is packed onto it.
    fn may_come_back(&self) -> bool {
        self.member.is_some_and(Member::may_come_back)
    }

    /// Whether it is of this type.
    fn is_of(&self, of: &NodeType) -> bool {
        self.member.is_some_and(|member| member.kind.as_ref() == Some(&of.name))
    }

    /// Whether it is this node.
    fn is(&self, node: NodeId) -> bool {
        self.member.is_some_and(|member| member.node == node)
    }

    /// How many of a shape fit.
    fn room(&self, shape: &Unmet) -> u64 {
        if !shape.admits(self.labels) {
            return 0;
        }
        let each = shape.resources.iter().map(|(kind, each)| {
            if !kind.is_device() {
                return self.free.get(kind).times(each);
            }
            let devices = self.devices.iter().filter(|(have, _)| have == kind);
            if each <= Quantity::ONE {
                devices.map(|(_, free)| free.times(each)).sum()
            } else {
                let whole = devices.filter(|(_, free)| *free == Quantity::ONE).count() as u64;
                whole / whole_devices(each)
            }
        });
        each.min().unwrap_or(u64::MAX)
    }

    /// Takes `count` of a shape, no more than there is room for.
    fn take(&mut self, shape: &Unmet, count: u64) {
        self.used = true;
        for (kind, each) in shape.resources.iter() {
            if !kind.is_device() {
                let rest = self.free.get(kind).minus(times(each, count)).unwrap_or_default();
                self.free.set(kind.clone(), rest);
                continue;
            }
            let devices = self.devices.iter_mut().filter(|(have, _)| have == kind);
            if each <= Quantity::ONE {
                let mut left = count;
                for (_, free) in devices {
                    let here = free.times(each).min(left);
                    *free = free.minus(times(each, here)).unwrap_or_default();
                    left -= here;
                }
            } else {
                let wanted = usize::try_from(whole_devices(each).saturating_mul(count)).unwrap_or(usize::MAX);
                devices.filter(|(_, free)| *free == Quantity::ONE).take(wanted).for_each(|(_, free)| {
                    *free = Quantity::ZERO;
                });
            }
        }
    }
}

/// How many devices a request of more than one is for; a request is whole, and what is not is rounded up.
fn whole_devices(each: Quantity) -> u64 {
    let one = Quantity::PER_ONE.unsigned_abs();
    each.units().unsigned_abs().div_ceil(one).max(1)
}

/// `each * count`, at most [`Quantity::MAX`].
fn times(each: Quantity, count: u64) -> Quantity {
    let units = i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(each.units());
    Quantity::from_units(units).unwrap_or(Quantity::MAX)
}

/// `part` of `all` in ten-thousandths.
fn share(part: Quantity, all: Quantity) -> u128 {
    let (part, all) = (u128::from(part.units().unsigned_abs()), u128::from(all.units().unsigned_abs()));
    (part * WHOLE).checked_div(all).unwrap_or(0)
}

/// A node, by its number among the bins, or the value of a label that nodes share.
type Place = Result<usize, String>;

/// Where bundles of a group may be.
#[derive(Clone, Copy, Debug)]
enum Where<'p> {
    Any,
    /// On nodes with this label, whatever its value.
    With(&'p str),
    /// On nodes with this label and value.
    In(&'p str, &'p str),
    /// Each on nodes with another value of this label; where that is empty, on another node.
    Apart(&'p str),
}

impl Where<'_> {
    /// The place of a node with these labels; `None` where it may not be used.
    fn place(self, labels: &[Label], at: usize) -> Option<Place> {
        let value = |key: &str| labels.iter().find(|(has, _)| has == key).map(|(_, value)| value);
        match self {
            Self::Any | Self::Apart("") => Some(Ok(at)),
            Self::With(key) => value(key).map(|_| Ok(at)),
            Self::In(key, wanted) => (value(key)? == wanted).then_some(Ok(at)),
            Self::Apart(key) => Some(Err(value(key)?.clone())),
        }
    }
}

/// How many nodes there are of a type.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// All of them: those that are there, that are on their way, and that are to be started.
    all: u32,
    /// Of these, those that are not draining.
    staying: u32,
    /// Of these, those that are to be started.
    start: u32,
}

/// The nodes, with what was packed onto them.
#[derive(Debug)]
struct Packing<'a> {
    types: Vec<&'a NodeType>,
    counts: BTreeMap<&'a str, Count>,
    bins: Vec<Bin<'a>>,
    /// The nodes that were packed onto since [`Packing::begin`], as they were before, and the types of those opened.
    before: Vec<(usize, Bin<'a>)>,
    opened: Vec<&'a str>,
    /// The labels of all members, those that drain among them.
    labels: BTreeMap<NodeId, &'a [Label]>,
}

impl<'a> Packing<'a> {
    fn new(types: &'a [NodeType], members: &'a [Member], coming: &BTreeMap<String, u32>) -> Self {
        let mut types: Vec<&NodeType> = types.iter().collect();
        types.sort_by(|a, b| a.name.cmp(&b.name));
        let counts = types.iter().map(|of| (of.name.as_str(), Count::default())).collect();
        let labels = members.iter().map(|member| (member.node, member.labels.as_slice())).collect();
        let (bins, before, opened) = (Vec::new(), Vec::new(), Vec::new());
        let mut packing = Self { types, counts, bins, before, opened, labels };
        let mut members: Vec<&Member> = members.iter().collect();
        members.sort_by_key(|member| member.node);
        for member in &members {
            let count = member.kind.as_ref().and_then(|kind| packing.counts.get_mut(kind.as_str()));
            if let Some(count) = count {
                count.all += 1;
                count.staying += u32::from(!member.draining);
            }
            if !member.draining {
                packing.bins.push(Bin::of(member));
            }
        }
        // Those that have to be called back come after those that are there.
        packing
            .bins
            .extend(members.iter().filter(|member| member.may_come_back()).map(|member| Bin::of(member)));
        for of in packing.types.clone() {
            let on_its_way = coming.get(&of.name).copied().unwrap_or(0).min(NODES_MAX);
            packing.bins.extend((0..on_its_way).map(|_| Bin::empty(of)));
            if let Some(count) = packing.counts.get_mut(of.name.as_str()) {
                count.all = count.all.saturating_add(on_its_way);
                count.staying = count.staying.saturating_add(on_its_way);
            }
            let short = of.min.saturating_sub(packing.count(of).staying);
            let back = packing.bins.iter_mut().filter(|bin| bin.may_come_back() && bin.is_of(of));
            back.take(usize::try_from(short).unwrap_or(usize::MAX)).for_each(|bin| bin.used = true);
            while packing.count(of).staying.saturating_add(packing.back(of)) < of.min && packing.may(of) {
                packing.open(of);
            }
        }
        packing
    }

    fn count(&self, of: &NodeType) -> Count {
        self.counts.get(of.name.as_str()).copied().unwrap_or_default()
    }

    /// How many of a type stay though they drained.
    fn back(&self, of: &NodeType) -> u32 {
        let back = self.bins.iter().filter(|bin| bin.used && bin.may_come_back() && bin.is_of(of));
        u32::try_from(back.count()).unwrap_or(u32::MAX)
    }

    /// Whether there may be one more of a type.
    fn may(&self, of: &NodeType) -> bool {
        self.count(of).all < of.max
    }

    /// A new node; its number among the bins.
    fn open(&mut self, of: &'a NodeType) -> usize {
        let count = self.counts.entry(&of.name).or_default();
        count.all += 1;
        count.staying += 1;
        count.start += 1;
        self.opened.push(&of.name);
        self.bins.push(Bin::empty(of));
        self.bins.len() - 1
    }

    /// What is packed from here on can be undone.
    fn begin(&mut self) {
        self.before.clear();
        self.opened.clear();
    }

    /// Nothing was packed since [`Packing::begin`].
    fn undo(&mut self) {
        for (at, before) in self.before.drain(..).rev() {
            if let Some(bin) = self.bins.get_mut(at) {
                *bin = before;
            }
        }
        for name in self.opened.drain(..) {
            self.bins.pop();
            if let Some(count) = self.counts.get_mut(name) {
                count.all -= 1;
                count.staying -= 1;
                count.start -= 1;
            }
        }
    }

    /// Packs up to `most` of a shape onto one node; how many it were.
    fn fill(&mut self, at: usize, shape: &Unmet, most: u64) -> u64 {
        let Some(bin) = self.bins.get_mut(at) else { return 0 };
        let here = bin.room(shape).min(most);
        if here > 0 {
            self.before.push((at, bin.clone()));
            bin.take(shape, here);
        }
        here
    }

    /// The places of nodes, as far as they are known.
    fn places(&self, nodes: &[NodeId], on: Where<'_>) -> BTreeSet<Place> {
        let bin = |node: NodeId| self.bins.iter().position(|bin| bin.is(node));
        let place = |node: &NodeId| match on {
            Where::Apart(key) if !key.is_empty() => on.place(self.labels.get(node)?, 0),
            _ => Some(Ok(bin(*node)?)),
        };
        nodes.iter().filter_map(place).collect()
    }

    /// How much of the largest node a shape is, by the resource of which it needs the largest part.
    fn size(&self, need: &Resources) -> u128 {
        let largest =
            |kind: &Kind| self.types.iter().map(|of| of.resources.get(kind)).max().unwrap_or_default();
        need.iter().map(|(kind, each)| share(each, largest(kind))).max().unwrap_or(0)
    }

    /// Packs what a shape asks for, and says how many found no room. `taken` are the places that may not be used, to
    /// which those that are used are added.
    fn place(&mut self, shape: &Unmet, on: Where<'_>, taken: &mut BTreeSet<Place>) -> u64 {
        let mut left = shape.count;
        let most = if matches!(on, Where::Apart(_)) { 1 } else { u64::MAX };
        for at in 0..self.bins.len() {
            if left == 0 {
                return 0;
            }
            let Some(place) = self.bins.get(at).and_then(|bin| on.place(bin.labels, at)) else { continue };
            if most == 1 && taken.contains(&place) {
                continue;
            }
            let here = self.fill(at, shape, left.min(most));
            if here > 0 {
                taken.insert(place);
                left -= here;
            }
        }
        while left > 0
            && let Some((of, place)) = self.best(shape, left.min(most), on, taken)
        {
            let at = self.open(of);
            // The type was chosen because some fit.
            let here = self.fill(at, shape, left.min(most)).max(1);
            taken.insert(place);
            left -= here;
        }
        left
    }

    /// The type, of those that may have one more node and could hold the shape, of which `count` of it would use the
    /// largest part, over all that a node has; and the place where that node would be.
    fn best(
        &self,
        shape: &Unmet,
        count: u64,
        on: Where<'_>,
        taken: &BTreeSet<Place>,
    ) -> Option<(&'a NodeType, Place)> {
        let next = self.bins.len();
        let scored = self.types.iter().filter(|of| self.may(of)).filter_map(|of| {
            let place = on.place(&of.labels, next)?;
            if matches!(on, Where::Apart(_)) && taken.contains(&place) {
                return None;
            }
            let fit = Bin::empty(of).room(shape).min(count);
            let used = |(kind, all)| share(times(shape.resources.get(kind), fit), all);
            let kinds = of.resources.iter().count().max(1) as u128;
            let score = of.resources.iter().map(used).sum::<u128>() / kinds;
            // Devices that it would not use are for others.
            let spare =
                of.resources.iter().any(|(kind, _)| kind.is_device() && shape.resources.get(kind).is_zero());
            (fit > 0).then_some(((spare, Reverse(score)), (*of, place)))
        });
        // The first of equals, by name.
        scored.min_by_key(|(rank, _)| *rank).map(|(_, found)| found)
    }

    /// Packs a whole group; `false` where some of it finds no room, and what is packed then is of no use.
    fn place_group(&mut self, gang: &Gang, shapes: &[&Unmet]) -> bool {
        match gang.arrange {
            Arrange::StrictPack if gang.place.is_empty() => {
                // Beside those that it has, if it has any.
                let may = |bin: &Bin<'_>| gang.on.iter().all(|node| bin.is(*node));
                let at = self.bins.iter().position(|bin| may(bin) && all_in(bin, shapes));
                let open = |of: &&&'a NodeType| {
                    gang.on.is_empty() && self.may(of) && all_in(&Bin::empty(of), shapes)
                };
                let at = match (at, self.types.iter().find(open).copied()) {
                    (Some(at), _) => at,
                    (None, Some(of)) => self.open(of),
                    (None, None) => return false,
                };
                shapes.iter().all(|shape| self.fill(at, shape, shape.count) == shape.count)
            }
            Arrange::StrictPack => {
                let labels = self.bins.iter().flat_map(|bin| bin.labels);
                let labels = labels.chain(self.types.iter().flat_map(|of| &of.labels));
                let values: BTreeSet<&'a str> =
                    labels.filter(|(key, _)| *key == gang.place).map(|(_, value)| value.as_str()).collect();
                let beside = self.places(&gang.on, Where::Apart(&gang.place));
                let may = |value: &&str| beside.iter().all(|place| *place == Err((*value).to_owned()));
                values.into_iter().filter(may).any(|value| {
                    self.undo();
                    let on = Where::In(&gang.place, value);
                    shapes.iter().all(|shape| self.place(shape, on, &mut BTreeSet::new()) == 0)
                })
            }
            Arrange::StrictSpread => {
                let on = Where::Apart(&gang.place);
                let mut taken = self.places(&gang.on, on);
                shapes.iter().all(|shape| self.place(shape, on, &mut taken) == 0)
            }
            Arrange::Pack | Arrange::Spread => {
                // A node that is in no place is of no use to it, and would be kept for it for ever.
                let on = if gang.place.is_empty() { Where::Any } else { Where::With(&gang.place) };
                shapes.iter().all(|shape| self.place(shape, on, &mut BTreeSet::new()) == 0)
            }
        }
    }

    fn started(&self) -> BTreeMap<String, u32> {
        let some = self.counts.iter().filter(|(_, count)| count.start > 0);
        some.map(|(name, count)| ((*name).to_owned(), count.start)).collect()
    }

    /// The members that drained and are needed.
    fn staying(&self) -> Vec<NodeId> {
        let back = self.bins.iter().filter(|bin| bin.used && bin.may_come_back());
        back.filter_map(|bin| Some(bin.member?.node)).collect()
    }

    /// The members that nobody needs.
    fn idle(&self, now: Millis) -> Vec<NodeId> {
        let spare = |of: &'a NodeType| {
            let staying = self.count(of).staying.saturating_add(self.back(of));
            (of.name.as_str(), staying.saturating_sub(of.min))
        };
        let mut spare: BTreeMap<&str, u32> = self.types.iter().copied().map(spare).collect();
        let mut idle: Vec<(Millis, NodeId, &str)> = Vec::new();
        for bin in self.bins.iter().filter(|bin| !bin.used && !bin.may_come_back()) {
            let Some(member) = bin.member else { continue };
            let of = self.types.iter().find(|of| Some(&of.name) == member.kind.as_ref());
            let (Some(of), Some(since)) = (of, member.idle_since) else { continue };
            if since.plus(of.idle_timeout) <= now {
                idle.push((since, member.node, &of.name));
            }
        }
        idle.sort();
        idle.retain(|(_, _, name)| match spare.get_mut(name) {
            Some(spare) if *spare > 0 => {
                *spare -= 1;
                true
            }
            _ => false,
        });
        idle.into_iter().map(|(_, node, _)| node).collect()
    }
}

/// Whether all of a group fits onto one node.
fn all_in(bin: &Bin<'_>, shapes: &[&Unmet]) -> bool {
    let mut bin = bin.clone();
    shapes.iter().all(|shape| {
        let fits = bin.room(shape) >= shape.count;
        if fits {
            bin.take(shape, shape.count);
        }
        fits
    })
}

#[cfg(test)]
mod tests;
