//! Leases: asking for them, pushing tasks under them, renewing them and giving them back.

use std::time::Duration;

use mobula_proto::{
    Failure, FailureKind, HostId, LeaseId, TaskId,
    host::{Grant, Revocation, ToAgent},
    peer::{Message, Target},
};

use super::{Action, Core, Kind, LeaseState, Phase};

/// How long a pushed but unstarted task may wait behind others on its slot: deeper pipelines hide the round trip
/// to the executor, shallower ones keep work free to go elsewhere.
const PIPELINE_NANOS: u64 = 2_000_000;
/// Most tasks in flight for each slot.
const PIPELINE_TASKS_MAX: u64 = 512;
/// Most slots asked for at once for one class.
const BACKLOG_SLOTS_MAX: usize = 16_384;
/// How often [`Core::tick`] is called.
pub const TICK: Duration = Duration::from_millis(250);
/// Ticks after which an idle lease is given back.
const IDLE_TICKS_MAX: u32 = 2;
/// Ticks without a result after which what waits behind a lease's running tasks is recalled.
const QUIET_TICKS_MAX: u32 = 2;

impl Core {
    /// Pushes what the class's leases have room for, and asks for more slots where work is left.
    pub(super) fn pump(&mut self, key: u32, out: &mut Vec<Action>) {
        loop {
            let class = &self.classes[key as usize];
            let Some(seq) = class.queue.front().copied() else { break };
            let depth = match class.nanos {
                0 => 1,
                nanos => (PIPELINE_NANOS / nanos.max(1)).clamp(1, PIPELINE_TASKS_MAX),
            };
            let is_actor = self.tasks.get(&seq).is_some_and(|task| task.spec.kind != Kind::Task);
            let room = |lease: &LeaseState| {
                let slots = u64::from(lease.slots.saturating_sub(lease.actors));
                let depth = if is_actor { 1 } else { depth };
                (slots * depth).saturating_sub(u64::from(lease.in_flight))
            };
            let best = class
                .leases
                .iter()
                .filter_map(|id| Some((*id, self.leases.get(id)?)))
                .filter(|(_, lease)| !lease.wanted_back)
                .map(|(id, lease)| (id, room(lease)))
                .filter(|(_, room)| *room > 0)
                .max_by_key(|(id, room)| (*room, std::cmp::Reverse(*id)));
            let Some((lease, _)) = best else { break };
            self.classes[key as usize].queue.pop_front();
            self.push(seq, lease, out);
        }
        let class = &mut self.classes[key as usize];
        let wanted = class.queue.len().min(BACKLOG_SLOTS_MAX) as u32;
        // Asking again for every task would be a message each; the head needs the order of magnitude.
        let news = (wanted == 0) != (class.asked == 0) || wanted >= class.asked.saturating_mul(2);
        if news && wanted != class.asked {
            class.asked = wanted;
            out.push(Action::Tell(ToAgent::Demand {
                key,
                class: class.class.clone(),
                backlog: wanted,
                locality: Vec::new(),
            }));
        }
    }

    pub(super) fn push(&mut self, seq: u64, lease: LeaseId, out: &mut Vec<Action>) {
        let id = TaskId { owner: self.me, seq };
        let Some(task) = self.tasks.get(&seq) else { return };
        let arguments = match self.arguments(&task.spec) {
            Ok(arguments) => arguments,
            Err(failure) => {
                let title = task.spec.title(id);
                return self.conclude(seq, failure.cause_of(&title), out);
            }
        };
        let Some(held) = self.leases.get_mut(&lease) else { return };
        held.idle_ticks = 0;
        if held.in_flight == 0 {
            held.quiet_ticks = 0;
        }
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        let target = match task.spec.kind {
            Kind::Construct { .. } => {
                held.actors += 1;
                task.holds = Some(lease);
                Target::Construct { lease, incarnation: task.incarnation }
            }
            Kind::Task | Kind::Method { .. } | Kind::Direct { .. } => {
                held.in_flight += 1;
                Target::Task { lease, slots: held.slots }
            }
        };
        task.phase = Phase::Pushed { host: held.host, lease };
        let to = held.host;
        if let Some(task) = self.tasks.get(&seq) {
            if let (Kind::Construct { .. }, Some(limits)) = (task.spec.kind, &task.spec.template.limits) {
                let limits = (**limits).clone();
                let message = Message::Limits { actor: id, incarnation: task.incarnation, limits };
                out.push(Action::Send { to, message });
            }
            out.push(Action::Send { to, message: self.call(seq, task, target, arguments) });
        }
    }

    /// Slots were granted.
    pub fn granted(&mut self, grant: &Grant, out: &mut Vec<Action>) {
        let Some(class) = self.classes.get_mut(grant.key as usize) else {
            out.push(Action::Tell(ToAgent::Release { lease: grant.lease }));
            return;
        };
        class.leases.push(grant.lease);
        class.asked = class.asked.saturating_sub(grant.slots);
        self.leases.insert(
            grant.lease,
            LeaseState {
                key: grant.key,
                host: grant.host,
                slots: grant.slots,
                in_flight: 0,
                actors: 0,
                idle_ticks: 0,
                quiet_ticks: 0,
                recalling: false,
                wanted_back: false,
            },
        );
        self.pump(grant.key, out);
        self.drain(out);
    }

    /// Asks for what has not started under a lease, at most once at a time.
    pub(super) fn recall(&mut self, lease: LeaseId, out: &mut Vec<Action>) {
        if let Some(held) = self.leases.get_mut(&lease).filter(|held| !held.recalling) {
            held.recalling = true;
            out.push(Action::Send { to: held.host, message: Message::Recall { lease } });
        }
    }

    /// These wait again, in front of what was submitted after them (C-5).
    pub(super) fn on_recalled(
        &mut self,
        from: HostId,
        lease: LeaseId,
        tasks: &[TaskId],
        out: &mut Vec<Action>,
    ) {
        let mut key = None;
        for id in tasks.iter().rev() {
            let Some(task) = self.tasks.get_mut(&id.seq) else { continue };
            if id.owner != self.me || task.phase != (Phase::Pushed { host: from, lease }) {
                continue;
            }
            if let Some(held) = self.leases.get_mut(&lease) {
                held.in_flight = held.in_flight.saturating_sub(1);
            }
            if task.cancelled {
                self.conclude(id.seq, Failure::new(FailureKind::Cancelled, "it was cancelled"), out);
                continue;
            }
            task.phase = Phase::Queued;
            key = Some(task.key);
            self.classes[task.key as usize].queue.push_front(id.seq);
        }
        if let Some(held) = self.leases.get_mut(&lease) {
            held.recalling = false;
        }
        if let Some(key) = key {
            self.pump(key, out);
        }
        self.maybe_release(lease, out);
    }

    /// A lease ends, or should.
    pub fn revoked(&mut self, lease: LeaseId, kind: Revocation, out: &mut Vec<Action>) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        match kind {
            Revocation::Idle | Revocation::Preempted => {
                held.wanted_back = true;
                if held.in_flight > held.slots {
                    self.recall(lease, out);
                }
                self.maybe_release(lease, out);
            }
            Revocation::Expired | Revocation::Lost => {
                let key = held.key;
                self.forget_lease(lease);
                self.pump(key, out);
            }
        }
        self.drain(out);
    }

    pub(super) fn forget_lease(&mut self, lease: LeaseId) {
        if let Some(held) = self.leases.remove(&lease) {
            self.classes[held.key as usize].leases.retain(|other| *other != lease);
        }
    }

    pub(super) fn maybe_release(&mut self, lease: LeaseId, out: &mut Vec<Action>) {
        let idle = self
            .leases
            .get(&lease)
            .is_some_and(|held| held.wanted_back && held.in_flight == 0 && held.actors == 0);
        if idle {
            self.forget_lease(lease);
            out.push(Action::Tell(ToAgent::Release { lease }));
        }
    }

    /// No node could ever satisfy the class.
    pub fn infeasible(&mut self, key: u32, failure: &Failure, out: &mut Vec<Action>) {
        let Some(class) = self.classes.get_mut(key as usize) else { return };
        class.asked = 0;
        for seq in std::mem::take(&mut class.queue) {
            self.conclude(seq, failure.clone(), out);
        }
        self.drain(out);
    }

    /// Every [`TICK`]: renews leases with work, gives idle ones back, recalls what waits behind slow work.
    pub fn tick(&mut self, out: &mut Vec<Action>) {
        let mut renew = Vec::new();
        let mut idle = Vec::new();
        let mut stuck = Vec::new();
        for (id, held) in &mut self.leases {
            if held.in_flight > 0 || held.actors > 0 {
                renew.push(*id);
                held.quiet_ticks += 1;
                if held.in_flight > held.slots && held.quiet_ticks > QUIET_TICKS_MAX {
                    // Its tasks take longer than the last ones did: none ahead until that is known better.
                    let class = &mut self.classes[held.key as usize];
                    class.nanos = class.nanos.max(TICK.as_nanos() as u64);
                    stuck.push(*id);
                }
            } else {
                held.idle_ticks += 1;
                if held.idle_ticks > IDLE_TICKS_MAX {
                    idle.push(*id);
                } else {
                    renew.push(*id);
                }
            }
        }
        if !renew.is_empty() {
            out.push(Action::Tell(ToAgent::Renew { leases: renew }));
        }
        for lease in stuck {
            self.recall(lease, out);
        }
        for lease in idle {
            self.forget_lease(lease);
            out.push(Action::Tell(ToAgent::Release { lease }));
        }
        let gone: Vec<_> =
            self.clients.keys().copied().filter(|actor| self.objects.state(*actor).is_none()).collect();
        for actor in gone {
            self.end_flow(actor, out);
            self.clients.remove(&actor);
        }
    }
}
