//! Calls that find their actor's inbox full stay here, in order, and leave as room is given (C-6).

use mobula_proto::{
    Failure, FailureKind, HostId, ObjectId, TaskId,
    peer::{Message, State},
};

use super::{Action, Core, Kind, Phase, Returns, Spec, outbox::waits};

/// What is known of an actor whose inbox was full.
#[derive(Debug)]
pub(super) struct Flow {
    /// Calls that may leave now.
    window: u32,
    /// The actor's inbox. As many may wait here; who submits more, waits.
    inbox: usize,
    /// The actor's host was asked for room and has not answered.
    asked: bool,
    /// All that the actor runs has been waiting for long: calls made by calls fail.
    stalled: bool,
}

/// Who makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// Code outside of calls.
    Outside,
    /// Sync code of a call.
    Call,
    /// Async code of a call.
    AsyncCall,
}

/// Why a call that was made by another is not let wait any longer.
pub(super) fn stalled() -> Failure {
    Failure::new(
        FailureKind::Overloaded,
        "the actor's inbox is full, and all that it runs waits for others, perhaps for this very call: give it a larger inbox, or do not wait for calls in a circle",
    )
}

impl Flow {
    /// Takes a place for a call; `false` where there is none.
    pub(super) fn take(flow: &mut Option<Self>) -> bool {
        match flow {
            None => true,
            Some(flow) if flow.window > 0 => {
                flow.window -= 1;
                true
            }
            Some(_) => false,
        }
    }

    /// A place that was taken is not used yet.
    pub(super) fn give_back(flow: &mut Option<Self>) {
        if let Some(flow) = flow {
            flow.window = flow.window.saturating_add(1);
        }
    }
}

impl Core {
    /// Whether this call may be submitted now, by code that runs so. `is_slow` says whether a host takes no more
    /// messages for now.
    pub fn has_room_for(&self, kind: Kind, maker: Maker, is_slow: impl FnOnce(HostId) -> bool) -> bool {
        self.has_room()
            && (self.held_back == 0 || !self.is_held_back(kind, maker))
            && !self.is_for_slow_host(kind, maker, is_slow)
    }

    /// As with a full inbox, async code of a call waits for its results only.
    fn is_for_slow_host(&self, kind: Kind, maker: Maker, is_slow: impl FnOnce(HostId) -> bool) -> bool {
        match kind {
            Kind::Method { actor } if maker != Maker::AsyncCall => {
                self.clients.get(&actor).and_then(|client| client.at).is_some_and(|(host, _)| is_slow(host))
            }
            _ => false,
        }
    }

    fn is_held_back(&self, kind: Kind, maker: Maker) -> bool {
        let Kind::Method { actor } = kind else { return false };
        let Some(client) = self.clients.get(&actor) else { return false };
        client.flow.as_ref().is_some_and(|flow| match maker {
            Maker::Outside => client.outbox.len() >= flow.inbox,
            Maker::Call => client.outbox.len() >= flow.inbox && !flow.stalled,
            // Its thread is not its own, so it waits for its results only.
            Maker::AsyncCall => false,
        })
    }

    /// Whether calls of this actor that another call makes fail now.
    pub(super) fn refuses_inner_calls(&self, actor: ObjectId) -> bool {
        self.clients.get(&actor).is_some_and(|client| client.flow.as_ref().is_some_and(|flow| flow.stalled))
    }

    /// Whoever waits to submit may look again.
    pub(super) fn wake_submitters(&mut self, out: &mut Vec<Action>) {
        if std::mem::take(&mut self.room_wanted) {
            out.push(Action::Room);
        }
    }

    /// Calls of the actor leave as they are made again.
    pub(super) fn end_flow(&mut self, actor: ObjectId, out: &mut Vec<Action>) {
        let ended = self.clients.get_mut(&actor).and_then(|client| client.flow.take());
        if ended.is_some() {
            self.held_back -= 1;
            self.wake_submitters(out);
        }
    }

    /// The call, and all that were sent behind it, come back.
    pub(super) fn on_no_room(&mut self, from: HostId, id: TaskId, inbox: u32, out: &mut Vec<Action>) {
        let sent = |phase| matches!(phase, Phase::Pushed { host, .. } if host == from);
        let actor = match self.tasks.get(&id.seq).filter(|task| id.owner == self.me && sent(task.phase)) {
            Some(task) => match task.spec.kind {
                Kind::Method { actor } => actor,
                Kind::Task { .. } | Kind::Construct { .. } | Kind::Direct { .. } => return,
            },
            // It came back with one that was sent before it.
            None => return,
        };
        let Some(client) = self.clients.get_mut(&actor) else { return };
        let Some(at) = client.in_flight.iter().rposition(|other| *other == id.seq) else { return };
        let mut cancelled = Vec::new();
        for seq in client.in_flight.split_off(at).into_iter().rev() {
            let Some(task) = self.tasks.get_mut(&seq) else { continue };
            if task.cancelled {
                cancelled.push(seq);
            } else {
                task.phase = Phase::Waiting;
                client.outbox.push_front(seq);
            }
        }
        if client.flow.is_none() {
            self.held_back += 1;
        }
        client.flow = Some(Flow { window: 0, inbox: inbox as usize, asked: true, stalled: false });
        for seq in cancelled {
            self.conclude(seq, Failure::new(FailureKind::Cancelled, "it was cancelled"), out);
        }
        self.ask_for_room(actor, true, out);
        self.arrived(actor, out);
    }

    fn ask_for_room(&self, actor: ObjectId, more: bool, out: &mut Vec<Action>) {
        if let Some((host, incarnation)) = self.clients.get(&actor).and_then(|client| client.at) {
            let message = Message::WantRoom { actor: actor.task(), incarnation, more };
            out.push(Action::Send { to: host, message });
        }
    }

    /// The actor has room for so many calls.
    pub(super) fn on_room(
        &mut self,
        from: HostId,
        actor: TaskId,
        incarnation: u32,
        calls: u32,
        out: &mut Vec<Action>,
    ) {
        let actor = actor.object(0);
        let Some(client) = self.clients.get_mut(&actor) else {
            if calls > 0 {
                let message = Message::WantRoom { actor: actor.task(), incarnation, more: false };
                out.push(Action::Send { to: from, message });
            }
            return;
        };
        if client.at != Some((from, incarnation)) {
            return;
        }
        if calls == 0 {
            return self.refuse_inner_calls(actor, out);
        }
        match &mut client.flow {
            Some(flow) => {
                flow.window = calls;
                flow.asked = false;
                flow.stalled = false;
                self.pump_client(actor, out);
                self.wake_submitters(out);
            }
            None => self.ask_for_room(actor, false, out),
        }
    }

    /// Everything that the actor does waits, perhaps for what waits here: calls made by other calls fail. What code
    /// outside of calls submitted cannot be part of a circle, and goes on waiting.
    fn refuse_inner_calls(&mut self, actor: ObjectId, out: &mut Vec<Action>) {
        let Some(client) = self.clients.get_mut(&actor) else { return };
        if let Some(flow) = &mut client.flow {
            flow.stalled = true;
        }
        let tasks = &self.tasks;
        let mut refused = Vec::new();
        for seq in std::mem::take(&mut client.outbox).iter(|seq| waits(tasks, seq)) {
            if tasks.get(&seq).is_some_and(|task| task.inside) {
                refused.push(seq);
            } else {
                client.outbox.push_back(seq);
            }
        }
        for seq in refused {
            self.conclude(seq, stalled(), out);
        }
        self.after_leaving(actor, out);
        self.wake_submitters(out);
    }

    /// After calls left or came: asks for more room, or gives back what is not needed.
    pub(super) fn after_leaving(&mut self, actor: ObjectId, out: &mut Vec<Action>) {
        let Some(client) = self.clients.get_mut(&actor) else { return };
        let Some(flow) = &mut client.flow else { return };
        if client.outbox.is_empty() || (flow.window > 0 && !flow.asked) {
            self.ask_for_room(actor, false, out);
            self.end_flow(actor, out);
        } else if !flow.asked {
            flow.asked = true;
            self.ask_for_room(actor, true, out);
        }
    }

    /// The call behind a result that says [`FailureKind::Overloaded`], to be submitted again. Each object in it
    /// counts one reference, which becomes the caller's. `None` where its results are not what is `expected`.
    pub fn take_refused(&mut self, object: ObjectId, expected: fn(Returns) -> bool) -> Option<Spec> {
        if object.owner != self.me || !matches!(self.objects.state(object), Some(State::Failed(_))) {
            return None;
        }
        let task = self.tasks.get(&object.seq)?;
        if task.phase != Phase::Kept
            || !matches!(task.spec.kind, Kind::Method { .. })
            || !expected(task.spec.template.returns)
        {
            return None;
        }
        let spec = self.tasks.remove(&object.seq)?.spec;
        self.inline_bytes.fetch_sub(spec.inline_bytes(), std::sync::atomic::Ordering::Relaxed);
        Some(spec)
    }
}
