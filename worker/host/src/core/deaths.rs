//! Hosts and nodes that died, and what becomes of what was there (C-4).

use std::cmp::Reverse;

use mobula_proto::{
    Failure, FailureKind, HostId, LeaseId, NodeId, ObjectId,
    host::{Eviction, ToAgent},
    peer::{Message, State},
};

use super::{Action, Core, Kind, NO_LEASE, Phase, Task, clients::actor_died};

impl Core {
    /// A host is gone: retry or fail what was pushed there, restart its actors (C-4).
    pub fn host_died(&mut self, host: HostId, failure: &Failure, out: &mut Vec<Action>) {
        self.discard_made_by(host, out);
        self.lost(&|other| other == host, failure, out);
        self.objects.host_died(host, failure, &mut self.effects);
        self.drain(out);
    }

    /// A node is gone, and every host on it.
    pub fn node_died(&mut self, node: NodeId, failure: &Failure, out: &mut Vec<Action>) {
        // First what was lost there, so that streams that are tried again make it again too.
        self.objects.node_died(node, failure, &mut self.effects);
        self.lost(&|other| other.node == node, failure, out);
        self.drain(out);
    }

    /// What the host has made of the calls that it had is garbage where its results are not here yet. Where some come later,
    /// they are freed once more.
    fn discard_made_by(&mut self, host: HostId, out: &mut Vec<Action>) {
        let mut all: Vec<(ObjectId, u32, u32)> = self
            .tasks
            .iter()
            .filter(|(_, task)| matches!(task.phase, Phase::Pushed { host: other, .. } if other == host))
            .flat_map(|(seq, task)| {
                let missing = self.not_here(self.ids.task(seq), task.spec.template.returns);
                missing.into_iter().map(|(first, last)| (first, last, task.attempt))
            })
            .collect();
        all.sort_unstable();
        let discard = |(object, last, attempt)| ToAgent::Discard { node: host.node, object, last, attempt };
        out.extend(all.into_iter().map(discard).map(Action::Tell));
    }

    /// Whether what this call makes was discarded, since its host is dead, though it is not sent anew before its actor lives
    /// again. Word of the death may have been faster than the result.
    pub(super) fn is_discarded(&self, seq: u64, task: &Task, from: HostId) -> bool {
        let Kind::Method { actor } = task.spec.kind else { return false };
        let client = self.clients.get(&actor).filter(|client| !client.limbo.is_empty());
        client.is_some_and(|client| client.limbo.contains(&seq)) && self.objects.is_dead(from)
    }

    fn lost(&mut self, gone: &dyn Fn(HostId) -> bool, failure: &Failure, out: &mut Vec<Action>) {
        let on_lost_lease: Vec<LeaseId> =
            self.leases.iter().filter(|(_, held)| gone(held.host)).map(|(id, _)| *id).collect();
        let mut seqs: Vec<u64> = self
            .tasks
            .iter()
            .filter(|(_, task)| match task.phase {
                Phase::Pushed { host, .. } => gone(host),
                Phase::Kept => on_lost_lease.contains(&task.holds),
                Phase::Waiting | Phase::Queued => false,
            })
            .map(|(seq, _)| seq)
            .collect();
        seqs.sort_unstable();
        for lease in on_lost_lease {
            self.forget_lease(lease);
            out.push(Action::Tell(ToAgent::Release { lease }));
        }
        for client in self.clients.values_mut() {
            if let Some((host, incarnation)) = client.at.filter(|(host, _)| gone(*host)) {
                let _ = host;
                if client.flow.take().is_some() {
                    self.held_back -= 1;
                }
                client.at = None;
                client.dead_incarnation = incarnation;
                client.limbo.extend(std::mem::take(&mut client.in_flight));
                client.death = (!client.limbo.is_empty()).then(|| Box::new(failure.clone()));
            }
        }
        for seq in seqs {
            self.retry_or_fail(seq, failure, out);
        }
        // What an owner elsewhere makes of the actor's death arrives as a new state; ours was decided above.
        self.wake_submitters(out);
        let moved: Vec<ObjectId> = self.clients.keys().copied().collect();
        for actor in moved {
            self.on_actor(actor, out);
        }
    }

    /// Slots of a lease were taken away: what runs in them is stopped and, if it may run again, does so without losing an
    /// attempt. Where the lease goes on, the newest tasks go first, which have lost the least, and then actors. For the head
    /// those slots are gone at once; as long as code still runs that was to end, it is one of the others that is not used.
    pub(super) fn evicted(&mut self, lease: LeaseId, keep: u32, why: Eviction, out: &mut Vec<Action>) {
        let Some(held) = self.leases.get(&lease) else { return };
        let (host, key) = (held.host, held.key);
        let node = host.node;
        let text = match why {
            Eviction::Preempted => {
                format!("it was preempted: others have more right to what it held of {lease} on {node}")
            }
            Eviction::GroupRemoved => format!("the placement group in which it ran on {node} was removed"),
            Eviction::NodeLeaves => {
                format!("its node is to leave, and {node} had no more time for what still ran there")
            }
        };
        let failure = Failure::new(FailureKind::Evicted, text);
        let under = |task: &Task| match task.phase {
            Phase::Pushed { lease: under, .. } => under == lease,
            Phase::Kept => task.holds == lease,
            Phase::Waiting | Phase::Queued => false,
        };
        let is_actor = |task: &Task| matches!(task.spec.kind, Kind::Construct { .. });
        let mut all: Vec<(bool, Reverse<u64>)> = self
            .tasks
            .iter()
            .filter(|(_, task)| under(task))
            .map(|(seq, task)| (is_actor(task), Reverse(seq)))
            .collect();
        if keep > 0 {
            all.sort_unstable();
            all.truncate(all.len().saturating_sub(keep as usize));
        }
        let mut seqs: Vec<u64> = all.iter().map(|(_, Reverse(seq))| *seq).collect();
        seqs.sort_unstable();
        if keep == 0 {
            self.forget_lease(lease);
        } else {
            self.cut_lease(lease, keep);
            for seq in &seqs {
                self.keep_slot(*seq);
                // Of an actor that lives nothing needs to end.
                self.give_slot_back(*seq);
            }
        }
        let mut actors = Vec::new();
        for seq in &seqs {
            let id = self.ids.task(*seq);
            let Some(task) = self.tasks.get_mut(seq) else { continue };
            let (stop, again) = match task.spec.kind {
                Kind::Construct { restarts } => {
                    let incarnation = task.incarnation;
                    task.holds = NO_LEASE;
                    actors.push((id.object(0), incarnation));
                    (Message::Terminate { actor: id, incarnation }, restarts > 0)
                }
                _ => (Message::Cancel { task: id, force: false }, task.spec.template.attempts_max > 1),
            };
            task.evictions += u32::from(again || task.spec.template.class.restartable);
            out.push(Action::Send { to: host, message: stop });
        }
        for (actor, incarnation) in &actors {
            let Some(client) = self.clients.get_mut(actor) else { continue };
            if client.flow.take().is_some() {
                self.held_back -= 1;
            }
            client.at = None;
            client.dead_incarnation = *incarnation;
            client.limbo.extend(std::mem::take(&mut client.in_flight));
            client.death = (!client.limbo.is_empty()).then(|| Box::new(failure.clone()));
        }
        for seq in seqs {
            self.retry_or_fail(seq, &failure, out);
        }
        self.wake_submitters(out);
        for (actor, _) in actors {
            self.on_actor(actor, out);
        }
        self.open_lease(lease);
        self.pump(key, out);
    }

    fn retry_or_fail(&mut self, seq: u64, failure: &Failure, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(&seq) else { return };
        let object = self.ids.task(seq).object(0);
        match task.spec.kind {
            // Decided with the actor: see `limbo`.
            Kind::Method { .. } => {}
            Kind::Direct { .. } => self.conclude(seq, failure.clone(), out),
            Kind::Construct { restarts } => {
                let was_alive = task.phase == Phase::Kept;
                if task.incarnation <= restarts.saturating_add(task.evictions) && !task.cancelled {
                    task.incarnation += 1;
                    task.attempt += 1;
                    task.holds = NO_LEASE;
                    if was_alive {
                        self.unfinished += 1;
                    }
                    self.objects.set_actor(object, State::Pending, &mut self.effects);
                    self.drain(out);
                    self.enqueue(seq, true, out);
                } else {
                    let incarnations = restarts + 1;
                    let mut failure = actor_died(failure);
                    if restarts > 0 {
                        failure.message =
                            format!("{} (incarnation {incarnations} of {incarnations})", failure.message);
                    }
                    self.conclude(seq, failure, out);
                }
            }
            Kind::Task { .. } => {
                if task.may_run_again() && !task.cancelled {
                    task.attempt += 1;
                    self.enqueue(seq, true, out);
                } else {
                    let mut failure = failure.clone();
                    // What failed is the task; the host is why.
                    if !failure.what.is_empty() {
                        let host = std::mem::take(&mut failure.what);
                        failure.message = format!("{host} ended: {}", failure.message);
                    }
                    failure.attempt = task.attempt;
                    failure.attempts_max = task.attempts_max();
                    self.conclude(seq, failure, out);
                }
            }
        }
    }
}
