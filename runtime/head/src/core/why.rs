//! Why something waits: what its owner says of it, joined with what the scheduler says of its class.

use std::collections::BTreeMap;

use mobula_proto::{
    Failure, FailureKind, GroupId, HostId, NodeId, TaskId,
    head::{Explanation, REASONS_MAX, RefusedSnapshot, ToAgent},
    host::{Answer, Explained},
};
use mobula_scheduler::{Demand, Millis, Reasons};

use super::{Asker, Core, Effect};

/// Most questions to owners that are not answered yet.
pub const EXPLAINING_MAX: usize = 1024;
/// How long an owner may take to say why something waits, in milliseconds.
pub const EXPLAIN_MS_MAX: u64 = 3000;

/// Most looks for the reasons in one list; see [`Reasons`]. Some milliseconds, in which the head does nothing else. More
/// gives more of a thousand different ones, and holds up grants for longer.
pub const REASON_LOOKS_MAX: u64 = 131_072;
/// As how many looks it counts to hold a shape against a type of node.
const SHAPE_LOOKS: usize = 16;

/// Who wants to know.
#[derive(Clone, Copy, Debug)]
pub(super) enum Curious {
    /// A host.
    Host(Asker),
    /// Somebody at the service, by the number of the question there.
    Outside(u64),
}

#[derive(Debug)]
struct Asked {
    id: String,
    task: TaskId,
    who: Curious,
    until: Millis,
}

/// Questions to owners.
#[derive(Debug, Default)]
pub(super) struct Questions {
    last: u64,
    open: BTreeMap<u64, Asked>,
}

impl Questions {
    pub fn deadline(&self) -> Option<Millis> {
        // Asked one after the other, each for as long.
        self.open.values().next().map(|asked| asked.until)
    }
}

/// In place of a reason for which the looks did not suffice.
pub(super) fn later(id: &str) -> String {
    format!("not looked at among so many: `mobula why {id}` says it")
}

fn unknown(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Unknown, text)
}

impl Core {
    pub(super) fn explain(&mut self, id: &str, who: Curious) {
        match self.look_up(id) {
            Ok(Found::Here(explanation)) => self.explained(who, Ok(explanation)),
            Ok(Found::Of(task)) => self.ask_owner(id, task, who),
            Err(failure) => self.explained(who, Err(failure)),
        }
    }

    fn explained(&mut self, who: Curious, answer: Result<Explanation, Failure>) {
        match who {
            Curious::Outside(ticket) => self.out.push(Effect::Explained { ticket, answer }),
            Curious::Host(asker) => {
                let json = answer.and_then(|explanation| {
                    serde_json::to_string(&explanation)
                        .map_err(|e| Failure::new(FailureKind::Internal, e.to_string()))
                });
                self.answer(asker, json.map_or_else(Answer::Failed, Answer::Json));
            }
        }
    }

    fn ask_owner(&mut self, id: &str, task: TaskId, who: Curious) {
        let node = task.owner.node;
        let Some(link) = self.link_of(node) else {
            let text = format!("{} is gone, and with it {id}: {node} is not in the cluster", task.owner);
            return self.explained(who, Err(unknown(text)));
        };
        if self.questions.open.len() >= EXPLAINING_MAX {
            let text = format!("{EXPLAINING_MAX} such questions are open, the most that may: ask again soon");
            return self.explained(who, Err(Failure::new(FailureKind::Limit, text)));
        }
        self.questions.last += 1;
        let request = self.questions.last;
        let until = self.now.plus(Millis(EXPLAIN_MS_MAX));
        self.questions.open.insert(request, Asked { id: id.to_owned(), task, who, until });
        self.send(link, ToAgent::Explain { request, task });
    }

    /// An owner's answer.
    pub(super) fn owner_explained(&mut self, from: NodeId, request: u64, found: Option<Explained>) {
        if self.questions.open.get(&request).is_none_or(|asked| asked.task.owner.node != from) {
            return;
        }
        let Some(asked) = self.questions.open.remove(&request) else { return };
        let Some(Explained { what, why, key }) = found else {
            let text = format!(
                "nothing is known of {}: it has ended and nobody holds its result, its owner is gone, or it never was",
                asked.id
            );
            return self.explained(asked.who, Err(unknown(text)));
        };
        let mut reasons = vec![why];
        if let Some(key) = key {
            reasons.extend(self.why_class(asked.task.owner, key));
            reasons.extend(self.why_no_node_for(asked.task.owner, key));
        }
        self.explained(asked.who, Ok(Explanation { id: asked.id, what, reasons }));
    }

    /// What the scheduler says of an owner's class, or that a node gets ready for it.
    fn why_class(&self, owner: HostId, key: u32) -> Option<String> {
        let reserving = || {
            let nodes = self.leases.reserved_on(owner, key);
            let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            (!names.is_empty()).then(|| format!("a process is being started for it on {}", names.join(", ")))
        };
        self.scheduler.why(owner, key).or_else(reserving)
    }

    /// The same in one sentence, with what is done about it where nodes may be started.
    fn why_demand(&self, demand: &Demand, reasons: &Reasons<'_>) -> String {
        let why = reasons.why(demand.owner, demand.key).unwrap_or_default();
        reasons.count(SHAPE_LOOKS * self.options.node_types.len());
        match self.why_no_node_for(demand.owner, demand.key) {
            Some(nodes) => format!("{why}; {nodes}"),
            None => why,
        }
    }

    /// The same as one of many.
    pub(super) fn why_demand_among(&self, demand: &Demand, reasons: &Reasons<'_>) -> String {
        match reasons.is_spent() {
            true => later(&demand.class.function),
            false => self.why_demand(demand, reasons),
        }
    }

    fn why_no_node_for(&self, owner: HostId, key: u32) -> Option<String> {
        self.why_no_node(&[self.scheduler.unmet_of(owner, key)?])
    }

    pub(super) fn time_out_questions(&mut self) {
        while let Some(entry) = self.questions.open.first_entry().filter(|e| e.get().until <= self.now) {
            let asked = entry.remove();
            let text =
                format!("{} did not say within {EXPLAIN_MS_MAX} ms why {} waits", asked.task.owner, asked.id);
            self.explained(asked.who, Err(Failure::new(FailureKind::TimedOut, text)));
        }
    }

    /// Owners that cannot answer any more.
    pub(super) fn drop_questions_to(&mut self, node: NodeId) {
        let gone: Vec<Asked> = self
            .questions
            .open
            .extract_if(.., |_, asked| asked.task.owner.node == node)
            .map(|(_, a)| a)
            .collect();
        for asked in gone {
            let text = format!("{} is gone, and with it {}", asked.task.owner, asked.id);
            self.explained(asked.who, Err(unknown(text)));
        }
    }

    fn look_up(&self, id: &str) -> Result<Found, Failure> {
        if let Ok(task) = id.parse::<TaskId>() {
            return Ok(Found::Of(task));
        }
        if let Some(number) = id.strip_prefix("job-").and_then(|number| number.parse().ok()) {
            let job = mobula_proto::JobId { number };
            let entry = self.jobs.get(&job).ok_or_else(|| unknown(format!("no {id} runs")))?;
            let what = format!("{id} ({})", entry.job.name);
            return Ok(Found::Here(self.waiting(id, what, |demand| demand.job == job)));
        }
        if let Some(number) = id.strip_prefix("group-").and_then(|number| number.parse().ok()) {
            return self.why_group(id, GroupId { number }).map(Found::Here);
        }
        if let Some(name) = id.strip_prefix("queue:") {
            self.known_queue(name)?;
            return Ok(Found::Here(
                self.waiting(id, format!("queue {name}"), |demand| demand.class.queue == name),
            ));
        }
        let named: Vec<(String, TaskId)> = self
            .names
            .names
            .iter()
            .map(|((namespace, name), held)| (format!("{namespace}/{name}"), name, held.actor))
            .filter(|(full, name, _)| full == id || *name == id)
            .map(|(full, _, actor)| (full, actor))
            .collect();
        match &named[..] {
            [(_, actor)] => return Ok(Found::Of(*actor)),
            [] => {}
            several => {
                let names: Vec<&str> = several.iter().take(3).map(|(full, _)| full.as_str()).collect();
                return Err(unknown(format!(
                    "several actors are called {id}: say which, {}",
                    names.join(" or ")
                )));
            }
        }
        let of_function = self.waiting(id, format!("function {id}"), |demand| demand.class.function == id);
        if of_function.reasons.is_empty() || !self.scheduler.demands().any(|d| d.class.function == id) {
            if let Some(refused) = self.why_refused(id) {
                return Ok(Found::Here(refused));
            }
            let shown: String = id.chars().take(128).collect();
            return Err(unknown(format!(
                "nothing is called {shown:?}: name a task or actor (node-1/host-2#81), a job (job-3), a placement group \
                 (group-3), a queue (queue:NAME), a named actor, or a function that waits for slots"
            )));
        }
        Ok(Found::Here(of_function))
    }

    /// What was refused of a function lately.
    fn why_refused(&self, function: &str) -> Option<Explanation> {
        let one = |refused: RefusedSnapshot| {
            let slots: u64 = refused.shapes.iter().map(|shape| shape.count).sum();
            let slots = if slots == 1 { String::new() } else { format!(", {slots} slots at once,") };
            format!("was refused {:.0} s ago{slots} and waits no more: {}", refused.seconds_ago, refused.why)
        };
        let all = self.refused(|what| what == function).into_iter();
        let reasons: Vec<String> = all.take(REASONS_MAX).map(one).collect();
        let what = format!("function {function}");
        (!reasons.is_empty()).then(|| Explanation { id: function.to_owned(), what, reasons })
    }

    /// What waits for slots, of all that is meant.
    fn waiting(&self, id: &str, what: String, meant: impl Fn(&Demand) -> bool) -> Explanation {
        let mut waiting = self.scheduler.demands().filter(|demand| meant(demand)).peekable();
        let (mut reasons, told) = (Vec::new(), self.scheduler.reasons(REASON_LOOKS_MAX));
        while reasons.len() < REASONS_MAX - 1
            && let Some(demand) = waiting.next_if(|_| !told.is_spent())
        {
            let why = self.why_demand(demand, &told);
            reasons.push(format!("{} of {}: {why}", demand.class.function, demand.owner));
        }
        match waiting.count() {
            0 if reasons.is_empty() => reasons.push("nothing of it waits for slots".to_owned()),
            0 => {}
            more => reasons.push(format!("and {more} classes more")),
        }
        Explanation { id: id.to_owned(), what, reasons }
    }
}

/// Where the answer is.
enum Found {
    Here(Explanation),
    Of(TaskId),
}
