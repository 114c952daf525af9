//! Placement groups: from the wish to the last bundle given back, and what runs inside.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mobula_proto::{
    Group, GroupId, JobId, LeaseId, Resources,
    group::Arrange,
    resource::{Class, LabelRule},
};

use super::{
    Scheduler,
    place::Round,
    starve::{Oldest, lack},
};
use crate::{
    BundlePlace, Demand, Effect, Error, Millis, RevokeKind,
    gang::{self, Bundle, Gang, Placing},
    queues::{DEFAULT, Pick, Turn},
    shapes::{self, ShapeId},
    stock::{Need, Stock},
    why,
};

/// Most groups of one job.
pub const PER_JOB_MAX: usize = 16_384;

/// The job of groups that outlive theirs: what any job runs may be in them.
pub const ANYBODYS: JobId = JobId { number: 0 };

/// For so many of those that have waited longest inside of a group bundles are held at a time.
const HELD_MAX: usize = 4;

/// What is new inside of a group.
#[derive(Debug, Default)]
pub(super) struct Roomy {
    /// Whether it may be anything.
    pub anywhere: bool,
    /// Bundles where something became free.
    pub bundles: BTreeSet<u32>,
    /// Demands that are new, or want more.
    pub demands: BTreeSet<u32>,
}

/// What nodes have of each kind that a group needs.
struct Totals<'a> {
    /// How many nodes they are, and what all have.
    count: usize,
    sums: Vec<i128>,
    /// What those with each value of the label have that makes its places.
    places: BTreeMap<&'a str, Vec<i128>>,
}

impl Scheduler {
    pub(super) fn group(
        &mut self,
        id: GroupId,
        job: JobId,
        spec: Arc<Group>,
        valid: Result<(), Error>,
        out: &mut Vec<Effect>,
    ) {
        if self.gang_of.contains_key(&id) {
            return;
        }
        match valid.and_then(|()| self.check_group(job, &spec)) {
            Ok(queue) => self.enter_gang(id, job, queue, spec, false, out),
            Err(error) => out.push(Effect::GroupInfeasible { group: id, error }),
        }
    }

    pub(super) fn promised(
        &mut self,
        id: GroupId,
        spec: Arc<Group>,
        valid: Result<(), Error>,
        out: &mut Vec<Effect>,
    ) {
        if self.gang_of.contains_key(&id) {
            return;
        }
        let queue = self.queues.find(&spec.queue).unwrap_or(DEFAULT);
        match valid {
            Ok(()) => self.enter_gang(id, ANYBODYS, queue, spec, true, out),
            Err(error) => out.push(Effect::GroupInfeasible { group: id, error }),
        }
    }

    /// Lets a new group wait.
    fn enter_gang(
        &mut self,
        id: GroupId,
        job: JobId,
        queue: u32,
        spec: Arc<Group>,
        placed: bool,
        out: &mut Vec<Effect>,
    ) {
        *self.groups_of.entry(job).or_default() += 1;
        let gang = Gang {
            id,
            job,
            queue,
            rules: [0; 2],
            needs: self.needs_of(&spec),
            bundles: spec.bundles.iter().map(|_| None).collect(),
            spec,
            arrival: self.next_arrival,
            since: self.now,
            shape: None,
            waiting: BTreeSet::new(),
            held: BTreeMap::new(),
            placed,
            beyond: false,
            until: None,
            asked_from: 0,
        };
        self.next_arrival += 1;
        let at = self.gangs.insert(gang);
        self.gang_of.insert(id, at);
        self.wait_gang(at);
        self.judge_gang(at, out);
    }

    fn check_group(&self, job: JobId, spec: &Group) -> Result<u32, Error> {
        if self.groups_of.get(&job).is_some_and(|count| *count >= PER_JOB_MAX) {
            return Err(Error::TooMany { who: job.to_string(), what: "groups", max: PER_JOB_MAX });
        }
        let queue = self.queues.find(&spec.queue).ok_or_else(|| Error::UnknownQueue(spec.queue.clone()))?;
        self.above_limit(queue, spec).map_or(Ok(queue), Err)
    }

    /// The limit that a group would break even if it had all that this allows.
    fn above_limit(&self, queue: u32, spec: &Group) -> Option<Error> {
        let mut all = Resources::none();
        spec.bundles.iter().for_each(|bundle| all.add(bundle));
        let (queue, kind, limit) = self.queues.above_limit(queue, &all)?;
        Some(Error::AboveLimit { queue, kind, limit })
    }

    fn needs_of(&self, spec: &Group) -> Vec<Arc<Need>> {
        let mut needs: Vec<Arc<Need>> = Vec::with_capacity(spec.bundles.len());
        for (at, bundle) in spec.bundles.iter().enumerate() {
            // As a rule all are alike.
            match spec.bundles[..at]
                .last()
                .filter(|before| *before == bundle)
                .and_then(|_| needs.last().cloned())
            {
                Some(same) => needs.push(same),
                None => needs.push(Arc::new(Need::of(bundle, &self.cluster.kinds))),
            }
        }
        needs
    }

    /// Lets a group wait for the bundles that it lacks.
    fn wait_gang(&mut self, at: u32) {
        let Some(spec) = self.gangs.get(at).map(|gang| Arc::clone(&gang.spec)) else { return };
        let place = (!spec.place.is_empty()).then(|| LabelRule::Exists(spec.place.clone()));
        let rules = [self.cluster.rules(&spec.labels), self.cluster.rules(place.as_slice())];
        let beyond = self.gangs.get(at).is_some_and(|gang| self.above_limit(gang.queue, &spec).is_some());
        let Some(gang) = self.gangs.get_mut(at) else { return };
        (gang.rules, gang.beyond) = (rules, beyond);
        let missing = gang.missing();
        let needs = missing.iter().filter_map(|number| gang.needs.get(*number as usize));
        let mut need = gang::sum(needs.clone());
        needs.for_each(|each| need.lower_bounds(each));
        let some_placed = missing.len() < gang.bundles.len();
        let wanted =
            shapes::Wanted { spec: Arc::clone(&gang.spec), missing, gang: some_placed.then_some(at) };
        let shape = self.shapes.enter_gang(wanted, gang.rules[0], need);
        gang.shape = Some(shape);
        self.waiting_gangs += 1;
        let (queue, job, turn) = (gang.queue, gang.job, gang.turn(at, self.options.ageing));
        self.queues.wait(queue, job, shape, turn);
    }

    fn stop_gang(&mut self, at: u32) {
        self.searching.put_off.remove(&at);
        let Some(gang) = self.gangs.get_mut(at) else { return };
        if let Some(shape) = gang.shape.take() {
            self.queues.stop_waiting(gang.queue, gang.job, shape, gang.turn(at, self.options.ageing));
            self.waiting_gangs -= 1;
            let (who, rules) = (Oldest::Gang(gang.id), gang.rules);
            self.leave_shape(shape);
            // What has its places needs no nodes told apart.
            rules.iter().for_each(|rules| self.cluster.index.forget_rules(*rules));
            self.lift_oldest(who);
        }
    }

    /// Places are looked for again for groups for which that was put off, when it may be.
    pub(super) fn search_again(&mut self) {
        if self.searching.next().is_some_and(|at| at <= self.now) {
            let gangs = std::mem::take(&mut self.searching.put_off);
            let shapes = gangs.iter().filter_map(|at| self.gangs.get(*at)?.shape);
            shapes.for_each(|shape| self.shapes.reopen(shape));
        }
        while let Some(shape) = self.pace.rested(self.now) {
            self.shapes.reopen(shape);
        }
    }

    /// Reserves all that a group lacks, or finds that there is no room for it.
    pub(super) fn place_gang(&mut self, pick: Pick, round: &mut Round) {
        if !self.pace.may_try(pick.shape, self.now) {
            return self.shapes.close(pick.shape);
        }
        let Some(gang) = self.gangs.get(pick.demand) else { return self.shapes.close(pick.shape) };
        let allowed = self.searching.left(self.now);
        let mut looks = allowed;
        let found = Placing::new(&mut self.cluster, gang).place(&mut looks);
        self.searching.take(allowed - looks);
        let found = match found {
            Ok(found) => found,
            Err(took) => {
                if looks == 0 && !gang.is_alike() {
                    self.searching.put_off.insert(pick.demand);
                }
                self.pace.failed(pick.shape, took, self.now);
                return self.shapes.close(pick.shape);
            }
        };
        self.stop_gang(pick.demand);
        let Some(gang) = self.gangs.get_mut(pick.demand) else { return };
        gang.placed = true;
        let (who, nodes) = (Oldest::Gang(gang.id), found.iter().map(|(_, at, _)| *at).collect());
        let mut places = Vec::with_capacity(found.len());
        for (number, at, devices) in found {
            let slot = number as usize;
            let (Some(node), Some(need)) = (self.cluster.nodes.get_mut(at), gang.needs.get(slot)) else {
                continue;
            };
            node.bundles.insert((pick.demand, number));
            self.queues.charge(gang.queue, &need.amounts, 1);
            self.queues.hold(gang.queue, gang.job, 1);
            let stock = Stock::new(&gang.spec.bundles[slot], devices.iter().cloned(), &self.cluster.kinds);
            places.push(BundlePlace { bundle: number, node: node.id, devices: devices.clone() });
            gang.bundles[slot] = Some(Bundle { at, stock, devices });
            self.roomy.entry(pick.demand).or_default().bundles.insert(number);
        }
        round.groups.push(Effect::GroupPlaced { group: gang.id, bundles: places });
        self.used_kept_by_gang(who, pick.shape, &nodes);
    }

    /// Grants what waits inside of groups where something became free.
    ///
    /// What has waited for long has a bundle held for it, as it would have a node kept for it outside: nobody whose turn
    /// comes later is granted anything there, or what comes free bit by bit would go to whatever small fits first.
    pub(super) fn place_inside(&mut self, round: &mut Round) {
        while let Some((at, roomy)) = self.roomy.pop_first() {
            let Some(gang) = self.gangs.get(at) else { continue };
            let turns: Vec<Turn> = gang.waiting.iter().copied().collect();
            let (mut held, mut until, mut tried) = (BTreeMap::new(), Millis(u64::MAX), 0);
            for turn in turns {
                let mut granted = false;
                for (Reverse(room), bundle, node) in self.rooms_inside(at, turn.2, &roomy, &held) {
                    let slots = self.demands.get(turn.2).map_or(0, |demand| demand.backlog.min(room));
                    if slots == 0 {
                        break;
                    }
                    self.grant(turn.2, node, slots, Some((at, bundle)), round);
                    granted = true;
                }
                if granted {
                    self.settle(turn.2);
                } else if tried < HELD_MAX
                    && let Some((round, end)) = self.hold_span(turn.2)
                {
                    tried += 1;
                    if let Some(bundle) = self.to_hold(at, turn.2, round, &held) {
                        held.insert(bundle, turn);
                        until = until.min(end);
                    }
                }
            }
            self.hold_inside(at, held, until);
        }
    }

    /// Bundles that have room for a demand, of those that are new to it: those with the most room first, each with its
    /// node.
    fn rooms_inside(
        &self,
        at: u32,
        place: u32,
        roomy: &Roomy,
        held: &BTreeMap<u32, Turn>,
    ) -> Vec<(Reverse<u32>, u32, u32)> {
        let Some((gang, demand)) = self.gangs.get(at).zip(self.demands.get(place)) else { return Vec::new() };
        if gang.until.is_some() {
            return Vec::new();
        }
        let need = Need::of(&demand.class.resources, &self.cluster.kinds);
        let room = |number: u32| {
            let node = gang.bundles.get(number as usize)?.as_ref()?.at;
            let room = self.room_inside(at, number, demand, &need).filter(|_| !held.contains_key(&number))?;
            Some((Reverse(room), number, node))
        };
        let everywhere = roomy.anywhere || roomy.demands.contains(&place);
        let mut rooms: Vec<_> = match demand.bundle() {
            Some(wanted) if everywhere || roomy.bundles.contains(&wanted) => {
                room(wanted).into_iter().collect()
            }
            Some(_) => Vec::new(),
            None if everywhere => gang.numbers().filter_map(room).collect(),
            None => roomy.bundles.iter().copied().filter_map(room).collect(),
        };
        rooms.sort_unstable();
        rooms
    }

    /// How many slots of a demand a bundle has room for, if any.
    fn room_inside(&self, at: u32, number: u32, demand: &Demand, need: &Need) -> Option<u32> {
        let bundle = self.gangs.get(at)?.bundles.get(number as usize)?.as_ref()?;
        let most = crate::node::slots_max(&demand.class).saturating_sub(self.held_inside(at, number, demand));
        let room = bundle.stock.room(need).min(most);
        let open = self.cluster.nodes.get(bundle.at).is_some_and(|node| !node.draining);
        (open && room > 0).then_some(room)
    }

    /// Whether a demand that waits could be granted something inside of its group. For tests and debugging.
    pub(super) fn fits_inside(&self, at: u32, place: u32) -> bool {
        let Some((gang, demand)) = self.gangs.get(at).zip(self.demands.get(place)) else { return false };
        let need = Need::of(&demand.class.resources, &self.cluster.kinds);
        let turn = demand.turn(place, self.options.ageing);
        let mut may = gang.numbers().filter(|number| {
            demand.bundle().is_none_or(|wanted| wanted == *number) && !gang.is_held_from(*number, turn)
        });
        gang.until.is_none() && may.any(|number| self.room_inside(at, number, demand, &need).is_some())
    }

    /// Whether a demand has waited so long that a bundle is held for it now: for the how manyth time, and until when. Half
    /// of the time at most, since what it lacks may never end, or wait itself for what comes later.
    fn hold_span(&self, place: u32) -> Option<(u64, Millis)> {
        let since = self.demands.get(place)?.served;
        let reserve = self.options.preempt.reserve;
        if !self.waited(since, reserve) {
            return None;
        }
        let (start, span) = (since.plus(reserve), self.aside_span().0.max(1));
        let times = self.now.0.saturating_sub(start.0) / span;
        let end = Millis(start.0.saturating_add((times + 1).saturating_mul(span)));
        (times % 2 == 0).then_some((times / 2, end))
    }

    /// The bundle that is held for a demand: the one that lacks the least for it, but each time that this was of no use one
    /// after the other.
    fn to_hold(&self, at: u32, place: u32, times: u64, held: &BTreeMap<u32, Turn>) -> Option<u32> {
        let (gang, demand) = self.gangs.get(at).zip(self.demands.get(place))?;
        let need = Need::of(&demand.class.resources, &self.cluster.kinds);
        let lacks = |number: u32| {
            let bundle = gang.bundles.get(number as usize)?.as_ref()?;
            let open = self.cluster.nodes.get(bundle.at).is_some_and(|node| !node.draining);
            let may = open && bundle.stock.could_ever(&need) && !bundle.stock.fits(&need);
            (may && !held.contains_key(&number)).then(|| (lack(&bundle.stock, &need), number))
        };
        let mut all = match demand.bundle() {
            Some(wanted) => wanted..wanted.saturating_add(1),
            None => gang.numbers(),
        };
        match times.checked_sub(1) {
            None => all.filter_map(lacks).min().map(|(_, number)| number),
            Some(others) => {
                let count = u64::try_from(all.clone().filter_map(lacks).count()).unwrap_or(u64::MAX).max(1);
                all.by_ref().filter_map(lacks).nth(usize::try_from(others % count).ok()?).map(|(_, n)| n)
            }
        }
    }

    /// Notes which bundles are held, and until when. What was held and is no longer, or for somebody else, is granted from
    /// again.
    fn hold_inside(&mut self, at: u32, held: BTreeMap<u32, Turn>, until: Millis) {
        let Some(gang) = self.gangs.get_mut(at) else { return };
        match held.is_empty() {
            true => self.holding.remove(&at),
            false => self.holding.insert(at, until),
        };
        let before = std::mem::replace(&mut gang.held, held);
        let changed = before.into_iter().filter(|(bundle, keeper)| gang.held.get(bundle) != Some(keeper));
        let changed: BTreeSet<u32> = changed.map(|(bundle, _)| bundle).collect();
        if !changed.is_empty() {
            self.roomy.entry(at).or_default().bundles.extend(changed);
        }
    }

    /// Looks anew at what was held long enough.
    pub(super) fn hold_no_longer(&mut self) {
        let late = self.holding.iter().filter(|(_, until)| **until <= self.now).map(|(at, _)| *at);
        for at in late {
            self.roomy.entry(at).or_default();
        }
    }

    /// Slots of a class of an owner in a bundle.
    fn held_inside(&self, at: u32, bundle: u32, demand: &Demand) -> u32 {
        if demand.class.resources.is_empty() {
            let owned = self.owners.get(demand.who).map(|owner| &owner.leases);
            let leases = owned.into_iter().flatten().filter_map(|at| self.leases.at(*at));
            leases
                .filter(|e| e.inside == Some((at, bundle)) && e.lease.key == demand.key)
                .map(|e| e.lease.slots)
                .sum()
        } else {
            0
        }
    }

    /// Where a demand inside of a group waits.
    pub(super) fn check_inside(&self, new: &Demand, id: GroupId, bundle: Option<u32>) -> Result<u32, Error> {
        let at = *self.gang_of.get(&id).ok_or(Error::UnknownGroup(id))?;
        let gang = self.gangs.get(at).ok_or(Error::UnknownGroup(id))?;
        if gang.job != new.job && gang.job != ANYBODYS {
            return Err(Error::ForeignGroup(id));
        }
        if !new.class.labels.is_empty() || !new.class.fallbacks.is_empty() {
            return Err(Error::LabelsInGroup(id));
        }
        let count = u32::try_from(gang.bundles.len()).unwrap_or(u32::MAX);
        let spec = &gang.spec.bundles;
        match bundle {
            Some(bundle) if bundle >= count => Err(Error::UnknownBundle { group: id, bundle, count }),
            Some(bundle) => match spec[bundle as usize].first_short(&new.class.resources) {
                Some((kind, has)) => Err(Error::LargerThanBundle(format!(
                    "one slot needs {}, but bundle {bundle} of {id} has {has} {kind}",
                    new.class.resources
                ))),
                None => Ok(at),
            },
            None if spec.iter().any(|bundle| bundle.covers(&new.class.resources)) => Ok(at),
            None => Err(Error::LargerThanBundle(format!(
                "one slot needs {}, more than any bundle of {id} has",
                new.class.resources
            ))),
        }
    }

    /// Bundles on nodes that drain, in which nothing runs any more, are given up and wait for another place: so a group
    /// has moved before its node leaves. What runs there is its owner's to end; it is granted nothing more meanwhile.
    pub(super) fn move_bundles(&mut self, out: &mut Vec<Effect>) {
        if self.draining.is_empty() || self.roomy.is_empty() {
            return;
        }
        let mut empty = BTreeSet::new();
        for at in self.roomy.keys() {
            // One that is being given up loses all of them soon.
            let Some(gang) = self.gangs.get(*at).filter(|gang| gang.until.is_none()) else { continue };
            let placed =
                (0..).zip(&gang.bundles).filter_map(|(number, bundle)| Some((number, bundle.as_ref()?.at)));
            for (number, node) in placed.filter(|(_, node)| self.draining.contains(node)) {
                let leases = self.cluster.nodes.get(node).into_iter().flat_map(|node| &node.leases);
                let mut inside = leases.filter_map(|lease| self.leases.at(*lease)?.inside);
                if inside.all(|of| of != (*at, number)) {
                    empty.insert((*at, number));
                }
            }
        }
        self.bundles_lost(empty, RevokeKind::Draining, out);
    }

    /// Bundles were on a node that is gone, or that is to leave.
    pub(super) fn bundles_lost(
        &mut self,
        lost: BTreeSet<(u32, u32)>,
        kind: RevokeKind,
        out: &mut Vec<Effect>,
    ) {
        let gangs: BTreeSet<u32> = lost.iter().map(|(gang, _)| *gang).collect();
        for at in gangs {
            let bundles: Vec<u32> = lost.range((at, 0)..=(at, u32::MAX)).map(|(_, number)| *number).collect();
            self.stop_gang(at);
            self.not_given_up(at);
            for number in &bundles {
                self.give_bundle(at, *number);
            }
            // What was there once is wanted back as if it had waited since.
            let Some(gang) = self.gangs.get(at) else { continue };
            out.push(Effect::GroupLost { group: gang.id, bundles, kind });
            self.wait_gang(at);
        }
    }

    /// A bundle is reserved no longer.
    fn give_bundle(&mut self, at: u32, number: u32) {
        let Some(gang) = self.gangs.get_mut(at) else { return };
        let Some(bundle) = gang.bundles.get_mut(number as usize).and_then(Option::take) else { return };
        let need = &gang.needs[number as usize];
        self.queues.charge(gang.queue, &need.amounts, -1);
        if let Some(job) = self.queues.job(gang.queue, gang.job) {
            self.queues.drop_held(gang.queue, job, 1);
        }
        if let Some(node) = self.cluster.nodes.get_mut(bundle.at)
            && node.bundles.remove(&(at, number))
        {
            node.stock.give(need, 1, 0, &bundle.devices);
            self.cluster.touch(bundle.at);
            self.freed.push(bundle.at);
        }
    }

    /// The leases inside of a group, oldest first.
    pub(super) fn leases_inside(&self, at: u32) -> Vec<LeaseId> {
        let Some(gang) = self.gangs.get(at) else { return Vec::new() };
        let nodes: BTreeSet<u32> = gang.bundles.iter().flatten().map(|bundle| bundle.at).collect();
        let leases =
            nodes.iter().filter_map(|node| self.cluster.nodes.get(*node)).flat_map(|node| &node.leases);
        let inside = |lease: &&u32| {
            self.leases.at(**lease).is_some_and(|entry| entry.inside.is_some_and(|(gang, _)| gang == at))
        };
        self.leases.ids(leases.filter(inside))
    }

    /// Ends what runs inside of a group.
    pub(super) fn end_inside(&mut self, at: u32, kind: RevokeKind, out: &mut Vec<Effect>) {
        for id in self.leases_inside(at) {
            self.end(id, Some(kind), out);
        }
    }

    /// Takes a group's bundles away, which it did not give back in time. It waits again, behind the others.
    pub(super) fn evict_gang(&mut self, at: u32, out: &mut Vec<Effect>) {
        self.not_given_up(at);
        self.end_inside(at, RevokeKind::Evicted, out);
        self.stop_gang(at);
        let Some(gang) = self.gangs.get_mut(at) else { return };
        gang.since = self.now;
        let placed = (0..).zip(&gang.bundles).filter(|(_, bundle)| bundle.is_some());
        let (group, bundles) = (gang.id, placed.map(|(number, _)| number).collect::<Vec<u32>>());
        bundles.iter().for_each(|number| self.give_bundle(at, *number));
        out.push(Effect::GroupLost { group, bundles, kind: RevokeKind::Evicted });
        self.wait_gang(at);
    }

    /// Removes a group with all it holds.
    pub(super) fn group_gone(&mut self, at: u32, out: &mut Vec<Effect>) {
        let Some(gang) = self.gangs.get(at) else { return };
        let (id, waiting) = (gang.id, gang.waiting.clone());
        for (.., demand) in waiting {
            if let Some(demand) = self.withdraw(demand) {
                let error = Error::UnknownGroup(id);
                out.push(Effect::Infeasible { owner: demand.owner, key: demand.key, error });
            }
        }
        self.end_inside(at, RevokeKind::Removed, out);
        self.not_given_up(at);
        self.stop_gang(at);
        let count = self.gangs.get(at).map_or(0, |gang| gang.bundles.len());
        (0..count).for_each(|number| self.give_bundle(at, u32::try_from(number).unwrap_or(u32::MAX)));
        self.roomy.remove(&at);
        self.holding.remove(&at);
        let Some(gang) = self.gangs.remove(at) else { return };
        self.gang_of.remove(&gang.id);
        if let Some(count) = self.groups_of.get_mut(&gang.job) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.groups_of.remove(&gang.job);
            }
        }
    }

    /// Reports and forgets a group that no living nodes could ever hold. One that was placed before keeps what it has left,
    /// with the work in it, and waits for nodes that can hold the rest.
    fn judge_gang(&mut self, at: u32, out: &mut Vec<Effect>) {
        self.judge_those([at], out);
    }

    pub(super) fn judge_gangs(&mut self, out: &mut Vec<Effect>) {
        let waiting: Vec<u32> =
            self.gangs.iter().filter(|(_, g)| g.shape.is_some()).map(|(at, _)| at).collect();
        self.judge_those(waiting, out);
    }

    fn judge_those(&mut self, gangs: impl IntoIterator<Item = u32>, out: &mut Vec<Effect>) {
        if self.cluster.workers == 0 {
            return;
        }
        self.cluster.refresh();
        // What is said of one is true of all that are alike.
        let mut known: BTreeMap<ShapeId, Result<(), Error>> = BTreeMap::new();
        for at in gangs {
            let Some(gang) = self.gangs.get(at).filter(|gang| !gang.spec.wait_for_node && !gang.placed)
            else {
                continue;
            };
            let Some(shape) = gang.shape else { continue };
            if let Err(error) = known.entry(shape).or_insert_with(|| self.could_hold(gang)) {
                out.push(Effect::GroupInfeasible { group: gang.id, error: error.clone() });
                self.group_gone(at, out);
            }
        }
    }

    fn could_hold(&self, gang: &Gang) -> Result<(), Error> {
        let (spec, cluster) = (&gang.spec, &self.cluster);
        let could = |at: u32, need: &Need| cluster.nodes.get(at).is_some_and(|n| n.stock.could_ever(need));
        for (number, need) in gang.needs.iter().enumerate() {
            // As a rule all are alike.
            if number > 0 && Arc::ptr_eq(need, &gang.needs[number - 1]) {
                continue;
            }
            if cluster.index.first_able(gang.rules[0], need, &mut |at| could(at, need)).is_none() {
                let resources = spec.bundles[number].clone();
                let class = Class { resources, labels: spec.labels.clone(), ..Class::default() };
                return Err(Error::Infeasible(format!("bundle {number}: {}", why::missing(&class, cluster))));
            }
        }
        let labelled = !spec.place.is_empty();
        let all = gang::sum(gang.needs.iter());
        let of_all = |(kind, _): &(usize, i64)| cluster.totals.get(*kind).copied().unwrap_or(0);
        // As a rule any node may have any of it: then there is no need to look at them one by one.
        let has = match !labelled && spec.labels.is_empty() {
            true => Totals {
                count: cluster.workers,
                sums: all.amounts.iter().map(of_all).collect(),
                places: BTreeMap::new(),
            },
            false => self.totals_for(gang, &all),
        };
        if labelled && has.places.is_empty() {
            return Err(Error::UnknownPlace(spec.place.clone()));
        }
        let covers =
            |sums: &[i128]| all.amounts.iter().zip(sums).all(|((_, each), sum)| *sum >= i128::from(*each));
        let count = if labelled { has.places.len() } else { has.count };
        let together = match spec.arrange {
            Arrange::StrictSpread if count < spec.bundles.len() => {
                return Err(Error::Infeasible(format!(
                    "{} bundles need as many places, and there are {count}",
                    spec.bundles.len()
                )));
            }
            Arrange::StrictPack if labelled => has.places.values().any(|sums| covers(sums)),
            Arrange::StrictPack => {
                cluster.index.first_able(gang.rules[0], &all, &mut |at| could(at, &all)).is_some()
            }
            _ => covers(&has.sums),
        };
        if together {
            return Ok(());
        }
        let total = cluster.kinds.resources(all.amounts.iter().copied());
        let place = match spec.arrange {
            Arrange::StrictPack if labelled => format!("no {} has", spec.place),
            Arrange::StrictPack => "no node has".to_owned(),
            _ => "the nodes that fit do not have".to_owned(),
        };
        Err(Error::Infeasible(format!("{place} {total}, which all bundles need together")))
    }

    /// What the nodes that a group may use have of what it needs, found by looking at each once: a label may have as many
    /// values as there are nodes.
    fn totals_for(&self, gang: &Gang, all: &Need) -> Totals<'_> {
        let mut has = Totals { count: 0, sums: vec![0; all.amounts.len()], places: BTreeMap::new() };
        for (_, node) in self.nodes_by_number() {
            #[cfg(test)]
            self.visited.set(self.visited.get() + 1);
            if !node.works() || !self.cluster.index.admits(gang.rules[0], node.spot) {
                continue;
            }
            let add = |sums: &mut Vec<i128>| {
                for ((kind, _), sum) in all.amounts.iter().zip(sums) {
                    *sum += i128::from(node.stock.total_of(*kind));
                }
            };
            has.count += 1;
            add(&mut has.sums);
            if let Some((_, value)) = node.labels.iter().find(|(key, _)| *key == gang.spec.place) {
                add(has.places.entry(value).or_insert_with(|| vec![0; all.amounts.len()]));
            }
        }
        has
    }

    /// There are new kinds of resources, which groups may wait for.
    pub(super) fn learn_gangs(&mut self) {
        let unknown = |gang: &Gang| gang.needs.iter().any(|need| !need.known);
        let all: Vec<u32> = self.gangs.iter().filter(|(_, gang)| unknown(gang)).map(|(at, _)| at).collect();
        for at in all {
            self.stop_gang(at);
            let needs = self.gangs.get(at).map(|gang| self.needs_of(&gang.spec));
            if let Some((gang, needs)) = self.gangs.get_mut(at).zip(needs) {
                gang.needs = needs;
            }
            self.wait_gang(at);
        }
    }

    /// Charges the bundles of all groups anew, and lets wait again what waited. Those whose queue is no longer there, or
    /// that need more than its limits are now, are removed if they were never placed: in others there is work that runs.
    pub(super) fn charge_gangs(&mut self, out: &mut Vec<Effect>) {
        let all: Vec<u32> = self.gangs.iter().map(|(at, _)| at).collect();
        for at in all {
            let Some(gang) = self.gangs.get_mut(at) else { continue };
            let queue = self.queues.find(&gang.spec.queue);
            gang.queue = queue.unwrap_or(DEFAULT);
            for (need, _) in gang.needs.iter().zip(&gang.bundles).filter(|(_, bundle)| bundle.is_some()) {
                self.queues.charge(gang.queue, &need.amounts, 1);
                self.queues.hold(gang.queue, gang.job, 1);
            }
            if gang.until.is_some() {
                let all = gang::sum(gang.needs.iter());
                self.queues.leave(gang.queue, &all.amounts, 1);
            }
            let Some(shape) = gang.shape else { continue };
            self.queues.wait(gang.queue, gang.job, shape, gang.turn(at, self.options.ageing));
            self.shapes.reopen(shape);
            let (id, spec) = (gang.id, Arc::clone(&gang.spec));
            let above = self.above_limit(queue.unwrap_or(DEFAULT), &spec);
            let Some(gang) = self.gangs.get_mut(at) else { continue };
            gang.beyond = above.is_some();
            if gang.placed {
                continue;
            }
            let error = match (queue, above) {
                (None, _) => Error::UnknownQueue(spec.queue.clone()),
                (_, Some(error)) => error,
                _ => continue,
            };
            out.push(Effect::GroupInfeasible { group: id, error });
            self.group_gone(at, out);
        }
    }
}
