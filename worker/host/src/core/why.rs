//! What a call or an actor that was submitted here waits for, in words for people.

use mobula_proto::{FailureKind, ObjectId, TaskId, host::Explained, peer::State};

use super::{Core, Kind, Phase, Task, is_final, outbox::waits};

/// Most arguments that are named where several are waited for.
const NAMED_MAX: usize = 3;
/// Of a value whose copy was lost.
const SOUGHT: &str = "was lost with its copy: other nodes are asked whether they have one";

impl Core {
    /// What this is and what it waits for; `None` where nothing is known of it here any more.
    pub fn explain(&self, id: TaskId) -> Option<Explained> {
        if id.owner != self.me {
            return None;
        }
        let Some(task) = self.tasks.get(&id.seq) else { return self.explain_value(id.object(0)) };
        let what = task.spec.title(id);
        let given_up = match (task.cancelled, self.objects.state(id.object(0))) {
            (false, _) => "",
            (true, Some(State::Failed(failure))) if failure.kind == FailureKind::TimedOut => {
                ", but its time has run out: it was asked to stop, and keeps its slot until its code returns"
            }
            (true, _) => ", and was cancelled",
        };
        let attempt = match task.attempt {
            0 | 1 => String::new(),
            attempt => format!(" (attempt {attempt} of {})", task.attempts_max()),
        };
        let (why, key) = self.waits(id, task);
        Some(Explained { what, why: format!("{why}{attempt}{given_up}"), key })
    }

    /// What it waits for, and its class's number where that is a lease.
    fn waits(&self, id: TaskId, task: &Task) -> (String, Option<u32>) {
        match task.phase {
            Phase::Waiting if task.missing > 0 => (self.missing(task), None),
            Phase::Waiting | Phase::Queued => match task.spec.kind {
                Kind::Method { actor } => self.waits_for_actor(actor, id.seq),
                Kind::Direct { host } => (format!("is about to be sent to {host}"), None),
                Kind::Task { .. } | Kind::Construct { .. } => self.waits_for_lease(task.key, id.seq),
            },
            Phase::Pushed { host, lease } => {
                let others = self
                    .leases
                    .get(&lease)
                    .map_or(0, |held| u64::from(held.in_flight.saturating_sub(held.slots)));
                let behind = match others {
                    0 => String::new(),
                    others => format!(", where {others} more were sent than run at once"),
                };
                (
                    format!(
                        "was sent to {host}{behind}: it runs, or starts as soon as those before it have ended"
                    ),
                    None,
                )
            }
            Phase::Kept => match (task.spec.kind, self.objects.state(id.object(0))) {
                (Kind::Construct { .. }, Some(State::Actor { host, incarnation })) => {
                    (format!("lives on {host}, started {}", times(*incarnation)), None)
                }
                _ if self.objects.is_sought(id.object(0)) => (SOUGHT.to_owned(), None),
                _ => (
                    "has ended; what it was given is kept, so that its result can be made again".to_owned(),
                    None,
                ),
            },
        }
    }

    fn missing(&self, task: &Task) -> String {
        let mut missing: Vec<ObjectId> =
            task.spec.dependencies().filter(|object| !is_final(self.objects.state(*object))).collect();
        missing.sort_unstable();
        missing.dedup();
        let count = missing.len();
        let named: Vec<String> =
            missing.into_iter().take(NAMED_MAX).map(|object| self.named_value(object)).collect();
        let more = match count - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let what = if count == 1 { "an argument".to_owned() } else { format!("{count} arguments") };
        format!("waits for {what}: {}{more}", named.join(", "))
    }

    /// What makes this value, with its full name.
    fn named_value(&self, object: ObjectId) -> String {
        let task = self.tasks.get(&object.seq).filter(|_| object.owner == self.me);
        match task {
            Some(task) => format!("the result of {} ({})", task.spec.title(object.task()), object.task()),
            None => format!("object {object}"),
        }
    }

    fn waits_for_lease(&self, key: u32, seq: u64) -> (String, Option<u32>) {
        let Some(class) = self.classes.get(key) else {
            return ("waits for a lease".to_owned(), None);
        };
        let before = match class.queue.before(seq) {
            Some(0) | None => "first of its class".to_owned(),
            Some(before) => format!("behind {before} of its class"),
        };
        let held = match class.slots {
            0 => "which has none".to_owned(),
            slots => format!("which has {}, all in use", plural(slots, "slot")),
        };
        (format!("waits for a lease, {before}, {held}"), Some(key))
    }

    fn waits_for_actor(&self, actor: ObjectId, seq: u64) -> (String, Option<u32>) {
        let client = self.clients.get(&actor);
        let before = client.and_then(|client| {
            client.outbox.iter(|other| waits(&self.tasks, other)).position(|other| other == seq)
        });
        let behind = match before {
            None | Some(0) => String::new(),
            Some(before) => format!(", behind {} to it", plural(before as u64, "call")),
        };
        let up = matches!(self.objects.state(actor), Some(State::Actor { .. }));
        if up && client.is_some_and(|client| client.flow.is_some()) {
            return (format!("waits for room in the inbox of actor {}{behind}", actor.task()), None);
        }
        if up {
            return (format!("waits for its turn at actor {}{behind}", actor.task()), None);
        }
        let constructed = self.tasks.get(&actor.seq).filter(|_| actor.owner == self.me);
        match constructed {
            Some(task) => {
                let (why, key) = self.waits(actor.task(), task);
                (format!("waits for {}{behind}, which {why}", task.spec.title(actor.task())), key)
            }
            None => {
                (format!("waits for actor {}{behind}, which is not up; ask about that", actor.task()), None)
            }
        }
    }

    /// Of something that has no task here any more, or never had one.
    fn explain_value(&self, object: ObjectId) -> Option<Explained> {
        let why = match self.objects.state(object)? {
            State::Inline { .. } => "is there: its value lies with its owner".to_owned(),
            State::Stored(copy) => format!("is there: its value lies in the store of {}", copy.node),
            State::Actor { host, .. } => format!("lives on {host}"),
            State::Failed(failure) => format!("has failed: {}", failure.headline()),
            State::Pending if self.objects.is_sought(object) => SOUGHT.to_owned(),
            State::Pending => "is not there yet".to_owned(),
        };
        Some(Explained { what: format!("object {object}"), why, key: None })
    }
}

fn times(count: u32) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
