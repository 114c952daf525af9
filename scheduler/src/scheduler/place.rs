//! Granting what fits: whose turn it is, where, and how many slots.

use std::{collections::BTreeMap, sync::Arc};

use mobula_proto::{LeaseId, resource::Isolation};

use super::{Scheduler, starve::Oldest};
use crate::{
    Effect, Lease,
    lease::{Entry, Listed},
    queues::Pick,
    stock::Need,
    strategy,
};

/// A demand, a node, and the group and bundle there.
type Spot = (u32, u32, Option<(u32, u32)>);

/// The leases made in one step. Several grants to one demand on one node become one lease.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// By place, with what each was granted for.
    granted: Vec<(Spot, u32)>,
    /// The same by that, of all but the newest.
    before: BTreeMap<Spot, u32>,
    /// How many are in there.
    known: usize,
    /// Groups that were placed.
    pub groups: Vec<Effect>,
}

/// So many of the newest leases are looked through one by one.
const NEWEST: usize = 16;

impl Round {
    fn note(&mut self, spot: Spot, lease: u32) {
        self.granted.push((spot, lease));
        if self.granted.len() >= self.known + 2 * NEWEST {
            let newer = &self.granted[self.known..self.known + NEWEST];
            self.before.extend(newer.iter().copied());
            self.known += NEWEST;
        }
    }

    fn is_empty(&self) -> bool {
        self.granted.is_empty() && self.groups.is_empty()
    }

    fn find(&self, spot: Spot) -> Option<u32> {
        let newest = self.granted[self.known..].iter().rev().find(|(of, _)| *of == spot);
        newest.map(|(_, lease)| *lease).or_else(|| self.before.get(&spot).copied())
    }
}

impl Scheduler {
    /// Places all that fits, and says so.
    pub(super) fn place_all(&mut self, out: &mut Vec<Effect>) {
        let mut round = Round::default();
        self.move_bundles(out);
        self.serve_oldest(&mut round);
        self.note_freed();
        if !self.shapes.any_open() && self.roomy.is_empty() && round.is_empty() {
            return;
        }
        loop {
            while self.shapes.any_open() {
                let Some(pick) = self.queues.pick(&self.shapes, self.now, self.options.ageing) else { break };
                if self.shapes.get(pick.shape).is_some_and(|shape| shape.key.gang.is_some()) {
                    self.place_gang(pick, &mut round);
                } else {
                    self.place(pick, &mut round);
                }
            }
            self.shapes.step_over();
            // Nodes that were kept for what was granted now are anybody's.
            if self.freed.is_empty() {
                break;
            }
            self.note_freed();
        }
        self.place_inside(&mut round);
        self.announce(round, out);
    }

    /// Notes which shapes have room where something became free.
    fn note_freed(&mut self) {
        let mut freed = std::mem::take(&mut self.freed);
        freed.sort_unstable();
        freed.dedup();
        for at in freed.drain(..) {
            if let Some(node) = self.cluster.nodes.get(at).filter(|node| !node.draining) {
                self.shapes.freed(at, node, &self.cluster);
            }
        }
        self.freed = freed;
    }

    /// Grants what was picked up to its share, or finds that there is no room for its shape.
    fn place(&mut self, pick: Pick, round: &mut Round) {
        let (Some(demand), Some(shape)) = (self.demands.get(pick.demand), self.shapes.get(pick.shape)) else {
            return self.shapes.close(pick.shape);
        };
        let allowed = self.queues.headroom(demand.queue, pick.shape, &shape.need);
        let mut want = demand.backlog.min(pick.slots).min(allowed);
        if let Some(at) = self.shapes.only(pick.shape) {
            let room = self.cluster.room(shape, at).min(allowed);
            return self.grant_part(pick, at, room, want, round);
        }
        self.cluster.refresh();
        let found = strategy::choose(&self.cluster, demand, shape, want);
        match found[..] {
            [] => self.shapes.close(pick.shape),
            [(at, room)] => self.grant_part(pick, at, room, want, round),
            _ => {
                for (at, room) in found {
                    let slots = room.min(want);
                    if slots > 0 {
                        want -= slots;
                        self.grant(pick.demand, at, slots, None, round);
                    }
                }
                self.settle(pick.demand);
            }
        }
    }

    /// Grants on one node what is a demand's part of the room there.
    fn grant_part(&mut self, pick: Pick, at: u32, room: u32, want: u32, round: &mut Round) {
        // At least one of any room.
        let part = (f64::from(room) * pick.part).ceil() as u32;
        match part.max(pick.quantum).min(room).min(want) {
            0 => self.shapes.close(pick.shape),
            slots => {
                self.grant(pick.demand, at, slots, None, round);
                self.settle(pick.demand);
                self.close_full(at);
            }
        }
    }

    /// Notes which shapes had room on a node alone, and have it no longer: all at once, since each would else have its
    /// turn to find that out.
    fn close_full(&mut self, at: u32) {
        if let Some(node) = self.cluster.nodes.get(at) {
            self.shapes.taken(at, node, &self.cluster);
        }
    }

    /// What was granted all it wanted is forgotten; what was not goes behind those that wait like it.
    pub(super) fn settle(&mut self, at: u32) {
        let (now, ageing) = (self.now, self.options.ageing);
        let Some(demand) = self.demands.get_mut(at) else { return };
        if demand.backlog == 0 {
            self.withdraw(at);
        } else if demand.served != now {
            let old = demand.turn(at, ageing);
            demand.served = now;
            let (key, new) = (demand.id(), demand.turn(at, ageing));
            match (demand.shape, demand.gang.and_then(|gang| self.gangs.get_mut(gang))) {
                (Some(shape), _) => {
                    self.queues.turn_again(demand.queue, demand.job, shape, (old, new));
                    self.lift_oldest(Oldest::Demand(key));
                }
                (None, Some(gang)) => {
                    gang.waiting.remove(&old);
                    gang.waiting.insert(new);
                }
                (None, None) => {}
            }
        }
    }

    /// Leases `slots` on a node that has room for them, or in a bundle there that has.
    pub(super) fn grant(
        &mut self,
        at: u32,
        node_at: u32,
        slots: u32,
        inside: Option<(u32, u32)>,
        round: &mut Round,
    ) {
        let Some(demand) = self.demands.get_mut(at) else { return };
        let need = match demand.shape {
            Some(shape) => Arc::clone(self.shapes.need(shape)),
            None => Arc::new(Need::of(&demand.class.resources, &self.cluster.kinds)),
        };
        let bundle = inside
            .and_then(|(gang, bundle)| self.gangs.get_mut(gang)?.bundles.get_mut(bundle as usize)?.as_mut());
        let mut bundle = bundle.map(|bundle| &mut bundle.stock);
        let Some(node) = self.cluster.nodes.get_mut(node_at) else { return };
        demand.backlog -= slots;
        let job = match inside {
            Some(_) => 0,
            None => self.queues.hold(demand.queue, demand.job, slots),
        };
        // Devices are one slot's, and so are a process and what bounds it.
        let alone = need.devices || demand.class.isolation == Isolation::Process;
        let (grants, each) = if alone { (slots, 1) } else { (1, slots) };
        for _ in 0..grants {
            let stock = bundle.as_deref_mut().unwrap_or(&mut node.stock);
            let devices = stock.take(&need, each, &self.cluster.kinds);
            let fresh = if alone { None } else { round.find((at, node_at, inside)) };
            if let Some(entry) = fresh.and_then(|lease| self.leases.at_mut(lease)) {
                entry.lease.slots += each;
                continue;
            }
            let id = LeaseId { number: self.next_lease };
            self.next_lease += 1;
            let lease = Lease {
                id,
                owner: demand.owner,
                key: demand.key,
                job: demand.job,
                node: node.id,
                slots: each,
                class: Arc::clone(&demand.class),
                bundle: inside.map(|(_, bundle)| bundle),
                devices,
                priority: demand.class.priority,
                attempt: demand.attempt,
                incarnation: node.id.incarnation,
                term: self.options.term,
                expires: self.now.plus(self.options.term),
            };
            self.expiries.push(std::cmp::Reverse((lease.expires, id)));
            let Some(owner) = self.owners.get_mut(demand.who) else { return };
            let place = |list: &[u32]| u32::try_from(list.len()).unwrap_or(u32::MAX);
            let listed = Listed { on_node: place(&node.leases), of_owner: place(&owner.leases) };
            let entry = Entry {
                lease,
                blocked: 0,
                asked: None,
                giving: 0,
                until: None,
                need: Arc::clone(&need),
                at: node_at,
                owner: demand.who,
                queue: demand.queue,
                job,
                kin: demand.kin,
                inside,
            };
            let lease = self.leases.insert(entry, listed);
            node.leases.push(lease);
            owner.leases.push(lease);
            if let Some(kin) = demand.kin.and_then(|kin| self.cluster.kins.get_mut(kin)) {
                kin.users += 1;
            }
            round.note((at, node_at, inside), lease);
        }
        if inside.is_some() {
            return;
        }
        let (queue, kin) = (demand.queue, demand.kin);
        self.queues.charge(queue, &need.amounts, slots.into());
        self.cluster.count_kin(kin, node_at, slots.into());
        self.cluster.touch(node_at);
        if !self.preempting.kept.is_empty() {
            let who = self.demands.get(at).map(|demand| Oldest::Demand(demand.id()));
            who.into_iter().for_each(|who| self.used_kept(node_at, slots, who));
        }
    }

    fn announce(&self, round: Round, out: &mut Vec<Effect>) {
        out.extend(round.groups);
        let entries = round.granted.iter().filter_map(|(_, lease)| self.leases.at(*lease));
        out.extend(entries.map(|entry| Effect::Grant(entry.lease.clone())));
    }
}
