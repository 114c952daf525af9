//! Actors: calling them in order, and ending those that were made here.

use std::collections::{BTreeSet, VecDeque};

use mobula_proto::{
    Failure, FailureKind, HostId, ObjectId, TaskId,
    host::{Question, ToAgent},
    peer::{Message, State, Target},
};

use super::{
    Action, Core, Kind, NO_LEASE, Phase, UNASKED,
    flow::Flow,
    outbox::{Outbox, waits},
};

/// What this host knows of an actor that it calls.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) at: Option<(HostId, u32)>,
    pub(super) outbox: Outbox,
    /// Calls of an unordered actor that wait for their arguments; they join the outbox then.
    pub(super) unready: BTreeSet<u64>,
    pub(super) in_flight: VecDeque<u64>,
    /// Were in flight when the actor's host died: failed once it is known what became of the actor.
    pub(super) limbo: Vec<u64>,
    /// Of what it died, while something is in limbo.
    pub(super) death: Option<Box<Failure>>,
    pub(super) dead_incarnation: u32,
    /// The actor's inbox was full.
    pub(super) flow: Option<Flow>,
    /// The actor is not where it was, but calls are on their way there: they are answered or come back, and until then
    /// none leaves for where it is now (C-2).
    pub(super) moving: bool,
}

impl Core {
    /// Remembers that an actor made here has this name.
    pub fn named(&mut self, actor: ObjectId, namespace: &str, name: &str) {
        self.names.insert(actor, (namespace.to_owned(), name.to_owned()));
    }

    pub(super) fn give_name_up(&mut self, actor: ObjectId, out: &mut Vec<Action>) {
        if let Some((namespace, name)) = self.names.remove(&actor) {
            let question = Question::NameDrop { namespace, name, actor: actor.task() };
            out.push(Action::Tell(ToAgent::Ask { request: UNASKED, question }));
        }
    }

    /// The construction object of an actor changed.
    pub(super) fn on_actor(&mut self, object: ObjectId, out: &mut Vec<Action>) {
        let Some(client) = self.clients.get_mut(&object) else { return };
        let alive = match self.objects.state(object) {
            Some(State::Actor { host, incarnation }) => Some((*host, *incarnation)),
            _ => None,
        };
        let lost = matches!(self.objects.state(object), Some(State::Failed(_)));
        client.moving = !lost && client.at.is_some() && client.at != alive && !client.in_flight.is_empty();
        if client.moving {
            return;
        }
        if client.flow.is_some() && client.at != alive {
            // Room was another incarnation's.
            self.end_flow(object, out);
        }
        let Some(client) = self.clients.get_mut(&object) else { return };
        match self.objects.state(object) {
            Some(State::Actor { host, incarnation }) if *incarnation > client.dead_incarnation => {
                client.at = Some((*host, *incarnation));
                let mut again = Vec::new();
                let death = client.death.take();
                for seq in std::mem::take(&mut client.limbo) {
                    if let Some(task) = self.tasks.get_mut(&seq)
                        && task.attempt < task.spec.template.attempts_max
                        && !task.cancelled
                    {
                        task.attempt += 1;
                        task.phase = Phase::Waiting;
                        again.push(seq);
                        continue;
                    }
                    let mut failure = Failure::new(
                        FailureKind::MaybeExecuted,
                        "the actor's host died during the call, which may have run; the actor was restarted",
                    );
                    if let Some(death) = &death {
                        failure.causes.push(death.headline());
                        failure.causes.extend(death.causes.iter().cloned());
                    }
                    self.conclude(seq, failure, out);
                }
                if let Some(client) = self.clients.get_mut(&object) {
                    for seq in again.into_iter().rev() {
                        client.outbox.push_front(seq);
                    }
                }
                self.pump_client(object, out);
            }
            Some(State::Failed(failure)) => {
                let failure = actor_died(failure);
                client.at = None;
                let mut lost = std::mem::take(&mut client.limbo);
                lost.extend(std::mem::take(&mut client.in_flight));
                lost.extend(std::mem::take(&mut client.outbox).iter(|seq| waits(&self.tasks, seq)));
                lost.extend(std::mem::take(&mut client.unready));
                for seq in lost {
                    self.conclude(seq, failure.clone(), out);
                }
            }
            _ => client.at = None,
        }
    }

    /// Sends the calls at the front of the outbox that are ready (C-2).
    pub(super) fn pump_client(&mut self, actor: ObjectId, out: &mut Vec<Action>) {
        if !matches!(self.objects.state(actor), Some(State::Actor { .. })) {
            if let Some(State::Failed(_)) = self.objects.state(actor) {
                return self.on_actor(actor, out);
            }
            self.objects.want(actor, &mut self.effects);
            return;
        }
        let Some(client) = self.clients.get_mut(&actor).filter(|client| !client.moving) else { return };
        if client.at.is_none()
            && let Some(State::Actor { host, incarnation }) = self.objects.state(actor)
            && *incarnation > client.dead_incarnation
        {
            client.at = Some((*host, *incarnation));
        }
        while let Some(client) = self.clients.get_mut(&actor) {
            let (Some((host, incarnation)), Some(seq)) = (client.at, client.outbox.front()) else { break };
            let Some(task) = self.tasks.get(&seq).filter(|task| task.phase == Phase::Waiting) else {
                client.outbox.skip_front();
                continue;
            };
            if task.missing > 0 || !Flow::take(&mut client.flow) {
                break;
            }
            client.outbox.pop_front();
            let id = self.ids.task(seq);
            match self.arguments(&task.spec) {
                Err(failure) => {
                    let (title, overtaken) = (task.spec.title(id), task.spec.template.unordered);
                    if self.has_arguments(seq) {
                        self.conclude(seq, failure.cause_of(&title), out);
                        continue;
                    }
                    // Some were lost since it was made: it waits for them where it was, and its place with the actor for it or
                    // for another.
                    let Some(client) = self.clients.get_mut(&actor) else { break };
                    Flow::give_back(&mut client.flow);
                    if !overtaken {
                        client.outbox.push_front(seq);
                        break;
                    }
                    client.unready.insert(seq);
                }
                Ok(arguments) => {
                    if let Some(client) = self.clients.get_mut(&actor) {
                        client.in_flight.push_back(seq);
                    }
                    let Some(task) = self.tasks.get_mut(&seq) else { continue };
                    task.phase = Phase::Pushed { host, lease: NO_LEASE };
                    let target = Target::Method { actor: actor.task(), incarnation };
                    self.send_call(seq, host, target, arguments, out);
                }
            }
        }
        if self.held_back > 0 {
            self.after_leaving(actor, out);
        }
    }

    /// A call was answered, or came back: where it was the last one that was sent to where its actor is no more, others go
    /// to where it is.
    pub(super) fn arrived(&mut self, actor: ObjectId, out: &mut Vec<Action>) {
        if self.clients.get(&actor).is_some_and(|client| client.moving && client.in_flight.is_empty()) {
            self.on_actor(actor, out);
        }
    }

    /// All calls that were let in have ended: the actor is made again elsewhere.
    pub(super) fn on_retired(
        &mut self,
        from: HostId,
        actor: TaskId,
        incarnation: u32,
        out: &mut Vec<Action>,
    ) {
        let Some(task) = self.tasks.get(&actor.seq).filter(|_| actor.owner == self.me) else { return };
        let lease = task.holds;
        let living = matches!(task.spec.kind, Kind::Construct { .. }) && task.phase == Phase::Kept;
        if !living || task.incarnation != incarnation || self.lease_host(lease) != Some(from) {
            return;
        }
        self.give_slot_back(actor.seq);
        if let Some(task) = self.tasks.get_mut(&actor.seq) {
            task.incarnation += 1;
            task.attempt += 1;
            task.evictions += 1;
        }
        self.unfinished += 1;
        self.objects.set_actor(actor.object(0), State::Pending, &mut self.effects);
        self.drain(out);
        self.enqueue(actor.seq, true, out);
        self.maybe_release(lease, out);
    }

    /// Ends an actor for good, wherever it is owned. Calls of this host fail from now on, however long the owner takes.
    pub fn kill(&mut self, actor: TaskId, out: &mut Vec<Action>) {
        if actor.owner == self.me {
            return self.end_actor(actor, killed(), out);
        }
        out.push(Action::Send { to: actor.owner, message: Message::Kill { actor } });
        // What the owner will say; of such messages none comes back.
        let said = Message::Resolved { object: actor.object(0), state: State::failed(killed()) };
        let _handled = self.on_message(actor.owner, said, out);
    }

    /// Ends an owned actor for good.
    pub fn end_actor(&mut self, actor: TaskId, failure: Failure, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get(&actor.seq).filter(|_| actor.owner == self.me) else { return };
        let is_given_up = task.cancelled && matches!(task.phase, Phase::Pushed { .. });
        if !matches!(task.spec.kind, Kind::Construct { .. }) || is_given_up {
            return;
        }
        let at = match task.phase {
            Phase::Pushed { host, .. } => Some(host),
            _ => self.lease_host(task.holds),
        };
        let (incarnation, lease, key) = (task.incarnation, task.holds, task.key);
        if let Some(host) = at {
            out.push(Action::Send { to: host, message: Message::Terminate { actor, incarnation } });
        }
        self.keep_slot(actor.seq);
        self.withdraw(actor.seq);
        self.conclude(actor.seq, failure, out);
        self.drain(out);
        self.pump(key, out);
        self.maybe_release(lease, out);
    }
}

pub(super) fn killed() -> Failure {
    Failure::new(FailureKind::ActorDied, "the actor was killed")
}

/// The failure of a call whose actor is gone for this reason.
pub(super) fn actor_died(failure: &Failure) -> Failure {
    if failure.kind == FailureKind::ActorDied {
        return failure.clone();
    }
    let mut died = Failure::new(FailureKind::ActorDied, "the actor is gone");
    died.causes.push(failure.headline());
    died.causes.extend(failure.causes.iter().cloned());
    died
}
