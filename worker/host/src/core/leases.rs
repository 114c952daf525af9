//! Leases: asking for them, pushing tasks under them, renewing them and giving them back.

use std::{
    cmp::Reverse,
    ops::Bound::{Excluded, Unbounded},
    time::Duration,
};

use mobula_proto::{
    Failure, FailureKind, HostId, LeaseId, NodeId, TaskId,
    host::{Grant, Revocation, ToAgent},
    peer::{Message, State, Target},
    resource::{Isolation, Strategy},
};

use smallvec::SmallVec;

use super::{Action, ClassState, Classes, Core, Kind, LeaseState, Phase, Task};

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
/// How much longer a lease that others wait for may be used, by what its tasks took of late: changing hands costs both
/// sides a round trip to the head.
const QUANTUM_NANOS: u64 = 20_000_000;
/// The same where each lease has a process of its own: who gets the slot next starts one, and what it loads.
const OWN_QUANTUM_NANOS: u64 = 2_000_000_000;
/// Hosts of a class that fail to start, one after the other with no grant between and no lease held, until what is queued
/// fails as they did.
const STARTS_MAX: u32 = 3;
/// Longest pause after one, in ticks.
const START_PAUSE_TICKS_MAX: u32 = 32;
/// Fewest bytes of arguments on a node for which a task goes there: pulling them takes about a millisecond, asking the
/// head for a lease less.
const NEAR_BYTES_MIN: u64 = 1 << 20;
/// Ticks without a result after which what waits behind a lease's running tasks is recalled.
const QUIET_TICKS_MAX: u32 = 2;
/// Most actors that a tick looks at, whether anything refers to them still: a fraction of a millisecond.
const CLIENTS_SWEPT: usize = 2048;
/// Ticks for which more slots of a class are wanted and none comes, after which its leases' next tasks are sent ahead
/// where that lets them fetch what they are given (C-9).
const UNSERVED_TICKS_MAX: u32 = 2;

impl LeaseState {
    /// How many more tasks it takes, if each slot has up to `depth` pushed to it.
    fn room(&self, depth: u64) -> u64 {
        let slots = u64::from(self.keep.saturating_sub(self.actors.saturating_add(self.stopping)));
        // What is pushed ahead would keep slots that are to go back.
        let depth = if self.keep < self.slots { 1 } else { depth };
        (slots * depth).saturating_sub(u64::from(self.in_flight))
    }

    /// For how many something runs, waits, lives or still ends.
    fn used(&self) -> u32 {
        self.in_flight.saturating_add(self.actors).saturating_add(self.stopping)
    }

    /// How many calls run, or wait behind those that do, beyond its slots.
    fn behind(&self) -> u32 {
        self.in_flight.saturating_sub(self.keep)
    }

    /// How many more calls it takes whose arguments are to be fetched while those before them run: one for each slot.
    fn room_ahead(&self) -> u64 {
        let goes_on = !self.wanted_back && self.pushes_left.is_none() && self.keep == self.slots;
        if goes_on { self.room(2) } else { 0 }
    }

    /// [`Core::open_lease`].
    pub(super) fn reopen(&mut self, id: LeaseId, classes: &mut Classes) {
        if !std::mem::replace(&mut self.open, true) {
            classes[self.key].open.push(id);
        }
    }
}

impl ClassState {
    /// How many tasks each slot may have pushed to it: as many as are over soon.
    fn depth(&self) -> u64 {
        match self.nanos {
            0 => 1,
            nanos => (PIPELINE_NANOS / nanos).clamp(1, PIPELINE_TASKS_MAX),
        }
    }

    /// How many more tasks each slot may have pushed to it once others wait for it.
    fn quantum(&self) -> u64 {
        match (self.class.has_own_process(), self.nanos) {
            (false, 0) => 0,
            // The first one took the start along.
            (true, 0) => 1,
            (false, nanos) => QUANTUM_NANOS / nanos,
            (true, nanos) => OWN_QUANTUM_NANOS / nanos,
        }
    }

    /// More slots were wanted for some time, and there are none.
    fn is_unserved(&self) -> bool {
        self.unserved_ticks >= UNSERVED_TICKS_MAX
    }
}

impl Core {
    /// The node that holds most of a task's arguments, if pulling them from there takes longer than asking for a
    /// lease; and their bytes.
    fn near(&self, seq: u64) -> Option<(NodeId, u64)> {
        let spec = &self.tasks.get(&seq)?.spec;
        if spec.template.class.strategy != Strategy::Hybrid {
            return None;
        }
        let mut nodes: SmallVec<[(NodeId, u64); 4]> = SmallVec::new();
        for object in spec.dependencies() {
            let Some(State::Stored(copy)) = self.objects.state(object) else { continue };
            match nodes.iter_mut().find(|(node, _)| *node == copy.node) {
                Some((_, bytes)) => *bytes += copy.bytes,
                None => nodes.push((copy.node, copy.bytes)),
            }
        }
        nodes.into_iter().max_by_key(|(_, bytes)| *bytes).filter(|(_, bytes)| *bytes >= NEAR_BYTES_MIN)
    }

    /// A task whose arguments lie where its class has no lease queues with others of its class and place, which ask
    /// for leases there.
    pub(super) fn go_near(&mut self, seq: u64) {
        let Some((node, bytes)) = self.near(seq) else { return };
        let Some(template) = self.tasks.get(&seq).map(|task| task.spec.template.clone()) else { return };
        let plain = self.key(&template);
        let known = |lease: &LeaseId| self.leases.get(lease).is_some_and(|held| held.host.node == node);
        let key = if self.classes[plain].leases.iter().any(known) {
            plain
        } else if let Some(key) = self.near_keys.get(&(plain, node)) {
            *key
        } else {
            let key = self.add_class(template.class.clone(), Some((node, bytes)));
            self.near_keys.insert((plain, node), key);
            key
        };
        if let Some(task) = self.tasks.get_mut(&seq) {
            task.key = key;
        }
    }

    /// Pushes what the class's leases have room for, and asks for more slots where work is left.
    pub(super) fn pump(&mut self, key: u32, out: &mut Vec<Action>) {
        loop {
            let class = &self.classes[key];
            let Some(seq) = class.queue.front() else { break };
            let is_actor = self.tasks.get(&seq).is_some_and(|task| !task.spec.kind.is_task());
            let depth = if is_actor { 1 } else { class.depth() };
            let near = if class.open.len() > 1 { self.near(seq) } else { None };
            let mut best = None;
            let mut full: SmallVec<[LeaseId; 4]> = SmallVec::new();
            for id in &class.open {
                let Some(lease) = self.leases.get(id) else { continue };
                let room = lease.room(depth);
                if room == 0 || lease.wanted_back {
                    full.push(*id);
                    continue;
                }
                // Only while it starts there at once: locality is not worth waiting for.
                let is_near = lease.room(1) > 0 && near.is_some_and(|(node, _)| node == lease.host.node);
                best = best.max(Some((is_near, room, Reverse(*id))));
            }
            for id in full {
                self.close_lease(id);
            }
            let lease = match best {
                Some((.., Reverse(lease))) => lease,
                None if depth == 1 && !is_actor => {
                    let Some(lease) = self.lease_ahead(key, seq) else { break };
                    self.classes[key].ahead = true;
                    lease
                }
                None => break,
            };
            self.classes[key].queue.pop_front();
            self.push(seq, lease, out);
        }
        let behind = self.sent_ahead(key, out);
        let class = &mut self.classes[key];
        let mut wanted = (class.queue.len() + behind).min(BACKLOG_SLOTS_MAX) as u32;
        if wanted > 0 && class.class.resources.is_empty() && class.class.isolation == Isolation::Shared {
            // Slots that cost nothing: as many again as there are, or a million actors would hold leases by the thousand.
            wanted = wanted.max(class.slots.min(BACKLOG_SLOTS_MAX as u64) as u32);
        }
        if class.pause_ticks > 0 {
            return;
        }
        // Asking again for every task would be a message each; the head needs the order of magnitude.
        let news = (wanted == 0) != (class.asked == 0) || wanted >= class.asked.saturating_mul(2);
        if news && wanted != class.asked {
            class.asked = wanted;
            self.ask(key, out);
        }
    }

    /// The lease under which a task may be sent ahead, where no slot is free and none is to be had: those of its
    /// arguments that lie on other nodes than the lease are fetched before a slot is free for it.
    fn lease_ahead(&self, key: u32, seq: u64) -> Option<LeaseId> {
        let class = &self.classes[key];
        if !class.is_unserved() {
            return None;
        }
        let spec = &self.tasks.get(&seq)?.spec;
        let at = |object| match self.objects.state(object) {
            Some(State::Stored(copy)) => Some(copy.node),
            _ => None,
        };
        let nodes: SmallVec<[NodeId; 4]> = spec.dependencies().filter_map(at).collect();
        let room = |id: &LeaseId| {
            let held = self.leases.get(id)?;
            let is_far = nodes.iter().any(|node| *node != held.host.node);
            let room = if is_far { held.room_ahead() } else { 0 };
            (room > 0).then_some((room, Reverse(*id)))
        };
        if nodes.is_empty() {
            return None;
        }
        class.leases.iter().filter_map(room).max().map(|(_, Reverse(id))| id)
    }

    /// How many tasks of a class were sent ahead and have no slot yet: slots are wanted for them still. Where one is free
    /// elsewhere, they are recalled, as far as they have not started.
    fn sent_ahead(&mut self, key: u32, out: &mut Vec<Action>) -> usize {
        let class = &mut self.classes[key];
        if !class.ahead {
            return 0;
        }
        let mut behind: SmallVec<[LeaseId; 4]> = SmallVec::new();
        let (mut tasks, mut is_free) = (0, false);
        for id in &class.leases {
            let Some(held) = self.leases.get(id) else { continue };
            is_free |= held.room(1) > 0 && !held.wanted_back;
            if held.behind() > 0 {
                tasks += held.behind() as usize;
                behind.push(*id);
            }
        }
        class.ahead = tasks > 0;
        if is_free && class.queue.is_empty() {
            for id in behind {
                self.recall(id, out);
            }
        }
        tasks
    }

    /// It has no room until [`Self::open_lease`] says otherwise, and need not be looked at.
    fn close_lease(&mut self, id: LeaseId) {
        if let Some(held) = self.leases.get_mut(&id) {
            held.open = false;
            self.classes[held.key].open.retain(|other| *other != id);
        }
    }

    /// Something under it has ended.
    pub(super) fn open_lease(&mut self, id: LeaseId) {
        if let Some(held) = self.leases.get_mut(&id) {
            held.reopen(id, &mut self.classes);
        }
    }

    /// Sends a task under a lease that has room. Only [`Self::pump`] does, which is not called in here: of as many as fail
    /// here one after the other, each would be inside of the one before it.
    fn push(&mut self, seq: u64, lease: LeaseId, out: &mut Vec<Action>) {
        let id = self.ids.task(seq);
        let Some(task) = self.tasks.get(&seq) else { return };
        let arguments = match self.arguments(&task.spec) {
            Ok(arguments) => arguments,
            Err(failure) => {
                // Some may have been lost since it was queued.
                if self.has_arguments(seq) {
                    self.cannot_start(seq, &failure, out);
                }
                return;
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
                task.holds = lease;
                Target::Construct { lease, incarnation: task.incarnation }
            }
            Kind::Task { .. } | Kind::Method { .. } | Kind::Direct { .. } => {
                held.in_flight += 1;
                Target::Task { lease, slots: held.keep }
            }
        };
        if let Some(left) = &mut held.pushes_left {
            *left = left.saturating_sub(1);
            held.wanted_back |= *left == 0;
        }
        task.phase = Phase::Pushed { host: held.host, lease };
        let to = held.host;
        if let Some(task) = self.tasks.get(&seq)
            && let (Kind::Construct { .. }, Some(limits)) = (task.spec.kind, &task.spec.template.limits)
        {
            let limits = (**limits).clone();
            let message = Message::Limits { actor: id, incarnation: task.incarnation, limits };
            out.push(Action::Send { to, message });
        }
        self.send_call(seq, to, target, arguments, out);
    }

    /// Slots were granted.
    pub fn granted(&mut self, grant: &Grant, out: &mut Vec<Action>) {
        let Some(class) = self.classes.get_mut(grant.key) else {
            out.push(Action::Tell(ToAgent::Release { lease: grant.lease }));
            return;
        };
        class.leases.push(grant.lease);
        class.open.push(grant.lease);
        class.slots += u64::from(grant.slots);
        class.asked = class.asked.saturating_sub(grant.slots);
        class.unserved_ticks = 0;
        class.failed_starts = 0;
        self.leases.insert(
            grant.lease,
            LeaseState {
                key: grant.key,
                host: grant.host,
                slots: grant.slots,
                keep: grant.slots,
                in_flight: 0,
                actors: 0,
                stopping: 0,
                idle_ticks: 0,
                quiet_ticks: 0,
                recalling: false,
                open: true,
                pushes_left: None,
                wanted_back: false,
            },
        );
        self.pump(grant.key, out);
        let class = &self.classes[grant.key];
        if class.asked == 0 && class.queue.is_empty() {
            // What was asked for last may have crossed this grant, so that the head counts these slots as wanted still.
            self.ask(grant.key, out);
        }
        self.drain(out);
    }

    /// Says how many slots of a class are wanted.
    fn ask(&self, key: u32, out: &mut Vec<Action>) {
        let class = &self.classes[key];
        out.push(Action::Tell(ToAgent::Demand {
            key,
            class: class.class.clone(),
            backlog: class.asked,
            locality: class.near.into_iter().collect(),
        }));
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
        tasks: &[(TaskId, u32)],
        out: &mut Vec<Action>,
    ) {
        let mut key = None;
        for (id, attempt) in tasks.iter().rev() {
            let is_meant = |task: &&mut Task| {
                id.owner == self.me
                    && task.phase == (Phase::Pushed { host: from, lease })
                    && task.attempt == *attempt
            };
            let Some(task) = self.tasks.get_mut(&id.seq).filter(is_meant) else {
                // It was told to end meanwhile.
                self.code_ended(from, *id, *attempt, out);
                continue;
            };
            if let Some(held) = self.leases.get_mut(&lease) {
                held.in_flight = held.in_flight.saturating_sub(1);
            }
            if task.cancelled {
                self.conclude(id.seq, Failure::new(FailureKind::Cancelled, "it was cancelled"), out);
                continue;
            }
            task.phase = Phase::Queued;
            key = Some(task.key);
            self.classes[task.key].queue.push_front(id.seq);
        }
        if let Some(held) = self.leases.get_mut(&lease) {
            held.recalling = false;
        }
        self.open_lease(lease);
        if let Some(key) = key {
            self.pump(key, out);
        }
        self.maybe_release(lease, out);
    }

    /// A lease ends, or should.
    pub fn revoked(&mut self, lease: LeaseId, kind: Revocation, out: &mut Vec<Action>) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        match kind {
            Revocation::Idle => {
                let class = &self.classes[held.key];
                let more = if class.queue.is_empty() { 0 } else { class.quantum() * u64::from(held.slots) };
                // Its tasks may take longer than those before them did.
                let left = held.pushes_left.map_or(more, |left| left.min(more));
                held.pushes_left = Some(left);
                held.wanted_back |= left == 0;
                if held.wanted_back && held.in_flight > held.slots {
                    self.recall(lease, out);
                }
                self.maybe_release(lease, out);
            }
            Revocation::Preempted { keep } => {
                held.keep = held.keep.min(keep);
                held.wanted_back |= keep == 0;
                let (keep, in_flight, actors) = (held.keep, held.in_flight, held.actors);
                if in_flight > keep {
                    self.recall(lease, out);
                }
                // Tasks come to their end, and their slots are not used again. Actors would not.
                self.retire_actors(lease, actors.saturating_sub(keep), true, out);
                self.maybe_release(lease, out);
            }
            Revocation::Draining => {
                held.wanted_back = true;
                let (in_flight, slots) = (held.in_flight, held.slots);
                if in_flight > slots {
                    self.recall(lease, out);
                }
                self.retire_actors(lease, u32::MAX, false, out);
                self.maybe_release(lease, out);
            }
            Revocation::Evicted { keep, why } => self.evicted(lease, keep, why, out),
            Revocation::Expired | Revocation::Lost => {
                let (key, actors) = (held.key, held.actors);
                if actors == 0 {
                    self.forget_lease(lease);
                } else {
                    // They go on where they are, and are ended there, or die with it.
                    held.wanted_back = true;
                    self.cut_lease(lease, actors);
                }
                self.pump(key, out);
            }
        }
        self.drain(out);
    }

    /// So many actors of a lease that may be made again come to their end, so that they are, elsewhere: the newest. Those
    /// that make room must be restartable, or would be asked for what they may not give.
    fn retire_actors(&self, lease: LeaseId, most: u32, preempted: bool, out: &mut Vec<Action>) {
        let Some(held) = self.leases.get(&lease).filter(|_| most > 0) else { return };
        if preempted && !self.classes[held.key].class.restartable {
            return;
        }
        let may =
            |task: &Task| matches!(task.spec.kind, Kind::Construct { restarts } if preempted || restarts > 0);
        let mut seqs: Vec<u64> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.holds == lease && may(task))
            .map(|(seq, _)| seq)
            .collect();
        seqs.sort_unstable_by_key(|seq| Reverse(*seq));
        seqs.truncate(most as usize);
        for seq in seqs {
            let Some(task) = self.tasks.get(&seq) else { continue };
            let actor = self.ids.task(seq);
            let message = Message::Retire { actor, incarnation: task.incarnation };
            out.push(Action::Send { to: held.host, message });
        }
    }

    /// Slots that are to go back do, where no more than the others are in use.
    fn maybe_shrink(&mut self, lease: LeaseId, out: &mut Vec<Action>) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        let keep = held.keep;
        if keep == 0 || keep == held.slots || held.used() > keep {
            return;
        }
        self.cut_lease(lease, keep);
        out.push(Action::Tell(ToAgent::Shrink { lease, keep }));
    }

    /// It has so many slots from now on.
    pub(super) fn cut_lease(&mut self, lease: LeaseId, keep: u32) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        let fewer = held.slots.saturating_sub(keep);
        held.slots -= fewer;
        held.keep = held.keep.min(keep);
        self.classes[held.key].slots -= u64::from(fewer);
    }

    pub(super) fn forget_lease(&mut self, lease: LeaseId) {
        if let Some(held) = self.leases.remove(&lease) {
            let class = &mut self.classes[held.key];
            class.leases.retain(|other| *other != lease);
            class.open.retain(|other| *other != lease);
            class.slots -= u64::from(held.slots);
            if held.stopping > 0 {
                self.stopping.retain(|_, under| *under != lease);
            }
        }
    }

    pub(super) fn maybe_release(&mut self, lease: LeaseId, out: &mut Vec<Action>) {
        self.maybe_shrink(lease, out);
        let Some(held) = self.leases.get(&lease) else { return };
        let asked = held.pushes_left.is_some() && self.classes[held.key].queue.is_empty();
        if (held.wanted_back || asked) && held.used() == 0 {
            self.forget_lease(lease);
            out.push(Action::Tell(ToAgent::Release { lease }));
        }
    }

    /// No node could ever satisfy the class; or a host that was to run it has not started, which may be that node's
    /// trouble alone: then slots are asked for again after a pause, for as long as others run it, or a few times.
    pub fn infeasible(&mut self, key: u32, failure: &Failure, out: &mut Vec<Action>) {
        let Some(class) = self.classes.get_mut(key) else { return };
        class.asked = 0;
        if failure.kind.is_system() {
            class.failed_starts = class.failed_starts.saturating_add(1);
            if !class.leases.is_empty() || class.failed_starts < STARTS_MAX {
                class.pause_ticks = (1 << class.failed_starts.min(8)).min(START_PAUSE_TICKS_MAX);
                return;
            }
            class.failed_starts = 0;
        }
        for seq in std::mem::take(&mut class.queue) {
            self.conclude(seq, failure.clone(), out);
        }
        self.drain(out);
    }

    /// Every [`TICK`]: renews leases with work, gives back idle ones and idle slots of those that others wait for, recalls
    /// what waits behind slow work.
    pub fn tick(&mut self, out: &mut Vec<Action>) {
        let mut renew = Vec::new();
        let mut idle = Vec::new();
        let mut stuck = Vec::new();
        let mut fewer = Vec::new();
        for (id, held) in &mut self.leases {
            let used = held.used();
            if used > 0 {
                renew.push(*id);
                held.quiet_ticks += 1;
                let class = &mut self.classes[held.key];
                let over = held.wanted_back || held.pushes_left.is_some() && class.queue.is_empty();
                if over && used < held.slots {
                    // One that takes long does not hold those that are done.
                    held.keep = held.keep.min(used);
                    fewer.push(*id);
                }
                // Beside those that were sent ahead because nothing is to be had elsewhere.
                let most = if class.ahead { held.slots.saturating_mul(2) } else { held.slots };
                if held.in_flight > most && held.quiet_ticks > QUIET_TICKS_MAX {
                    // Its tasks take longer than the last ones did: none ahead until that is known better.
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
        for lease in fewer {
            self.maybe_shrink(lease, out);
        }
        for lease in idle {
            self.forget_lease(lease);
            out.push(Action::Tell(ToAgent::Release { lease }));
        }
        let mut unserved = Vec::new();
        for (key, class) in self.classes.iter_mut() {
            class.unserved_ticks = if class.asked > 0 { class.unserved_ticks.saturating_add(1) } else { 0 };
            let paused = class.pause_ticks > 0;
            class.pause_ticks = class.pause_ticks.saturating_sub(1);
            if class.unserved_ticks == UNSERVED_TICKS_MAX || paused && class.pause_ticks == 0 {
                unserved.push(key);
            }
        }
        unserved.sort_unstable();
        for key in unserved {
            self.pump(key, out);
        }
        self.forget_classes();
        self.sweep_clients(out);
    }

    /// Forgets actors that were called and that nothing here refers to any more: those behind the last one that was
    /// looked at, a few at a time, for there may be a million.
    fn sweep_clients(&mut self, out: &mut Vec<Action>) {
        let behind = self.swept.map_or(Unbounded, Excluded);
        let actors = self.clients.range((behind, Unbounded)).map(|(actor, _)| *actor);
        let actors: Vec<_> = actors.take(CLIENTS_SWEPT).collect();
        self.swept = actors.last().copied().filter(|_| actors.len() == CLIENTS_SWEPT);
        for actor in actors {
            if self.objects.state(actor).is_some() {
                continue;
            }
            self.end_flow(actor, out);
            self.clients.remove(&actor);
        }
    }
}
