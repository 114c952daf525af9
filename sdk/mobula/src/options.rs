//! What a call site may override.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use mobula_host::{
    core::Template,
    registry::{Entry, Function, Rules},
};
use mobula_proto::{
    Failure, FailureKind, NodeId, Quantity,
    limits::{Limits, WhenFull},
    peer::Window,
    resource::{self, Class, Isolation, Kind, LabelRule, Strategy},
};

use crate::{
    Handle, PlacementGroup,
    stream::{BUFFER_BYTES_DEFAULT, BUFFER_ITEMS_DEFAULT},
};

/// How a task runs or an actor lives: resources, retries, place. A mistake in a value (a negative amount, say) is
/// reported by the ref that the call returns. A clone costs a reference count.
#[derive(Clone, Debug, Default)]
pub struct Options {
    set: Arc<Set>,
}

/// What replaces the limits that an actor's type declares.
#[derive(Clone, Debug, Default)]
struct Overrides {
    concurrency: Option<u32>,
    groups: Vec<(String, u32)>,
    inbox: Option<u32>,
    when_full: Option<WhenFull>,
}

impl Overrides {
    /// The limits of one actor, where they are not its type's.
    fn apply(&self, rules: &Rules) -> Result<Option<Box<Limits>>, String> {
        let Self { concurrency, groups, inbox, when_full } = self;
        if concurrency.is_none() && groups.is_empty() && inbox.is_none() && when_full.is_none() {
            return Ok(None);
        }
        let mut limits = rules.limits();
        limits.concurrency = concurrency.unwrap_or(limits.concurrency);
        limits.inbox = inbox.unwrap_or(limits.inbox);
        limits.when_full = when_full.unwrap_or(limits.when_full);
        for (name, concurrency) in groups {
            let group = limits.groups.iter_mut().find(|group| group.name == *name);
            let group = group.ok_or_else(|| {
                format!("the actor has no group {name:?}: its type declares them, `groups({name} = 4)`")
            })?;
            group.concurrency = *concurrency;
        }
        let mut all = limits.groups.iter().map(|group| group.concurrency);
        if limits.concurrency == 0 || limits.inbox == 0 || all.any(|concurrency| concurrency == 0) {
            return Err("concurrency, groups and inbox of an actor are at least 1".to_owned());
        }
        Ok(Some(Box::new(limits)))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Set {
    pub(crate) class: Class,
    pub(crate) retries: u32,
    pub(crate) retry_errors: bool,
    pub(crate) restarts: u32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) name: Option<String>,
    pub(crate) namespace: String,
    pub(crate) get_or_create: bool,
    pub(crate) detached: bool,
    pub(crate) returns: Option<u32>,
    pub(crate) buffer: Buffer,
    limits: Overrides,
    mistake: Option<String>,
    /// Made of the above at the first call.
    template: OnceLock<Arc<Template>>,
}

/// How much of a stream may be made and not yet read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer(pub(crate) Window);

impl Default for Buffer {
    fn default() -> Self {
        Self(Window { items: BUFFER_ITEMS_DEFAULT, bytes: BUFFER_BYTES_DEFAULT })
    }
}

impl Clone for Set {
    fn clone(&self) -> Self {
        Self {
            class: self.class.clone(),
            retries: self.retries,
            retry_errors: self.retry_errors,
            restarts: self.restarts,
            timeout: self.timeout,
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            get_or_create: self.get_or_create,
            detached: self.detached,
            returns: self.returns,
            buffer: self.buffer,
            limits: self.limits.clone(),
            mistake: self.mistake.clone(),
            template: OnceLock::new(),
        }
    }
}

/// How often a task is run again after failures of the system, unless it says otherwise.
pub(crate) const RETRIES_DEFAULT: u32 = 3;

impl Options {
    /// The defaults of a task: one CPU, three retries.
    pub fn task() -> Self {
        Self::default().retries(RETRIES_DEFAULT).cpu(1.0)
    }

    /// The defaults of an actor: no resources while it is alive, no restarts.
    pub fn actor() -> Self {
        Self::default()
    }

    /// A method of an actor: run again so often where its host died during the call.
    #[doc(hidden)]
    pub fn method(retries: u32) -> Self {
        Self::default().retries(retries)
    }

    fn change(mut self, change: impl FnOnce(&mut Set)) -> Self {
        let set = Arc::make_mut(&mut self.set);
        set.template = OnceLock::new();
        change(set);
        self
    }

    fn mistaken(self, mistake: String) -> Self {
        self.change(|set| {
            set.mistake.get_or_insert(mistake);
        })
    }

    fn amount(self, kind: Kind, amount: f64) -> Self {
        match Quantity::from_f64(amount) {
            Ok(amount) => self.change(|set| set.class.resources.set(kind, amount)),
            Err(error) => self.mistaken(format!("{kind}: {error}")),
        }
    }

    /// CPUs; fractions are fine, 0 for code that only waits.
    pub fn cpu(self, cores: f64) -> Self {
        self.amount(Kind::Cpu, cores)
    }

    /// GPUs: a fraction of one, or a whole number. Whoever holds one runs in a process that sees only that one.
    pub fn gpu(self, devices: f64) -> Self {
        self.amount(Kind::Gpu, devices)
    }

    /// TPU chips: a fraction of one, or 1, 2, 4 or 8. Whoever holds some runs in a process that sees only those.
    pub fn tpu(self, chips: f64) -> Self {
        self.amount(Kind::Tpu, chips)
    }

    /// Memory: `"2GiB"`, `"500 MB"`, or a number of bytes.
    pub fn memory(self, amount: &str) -> Self {
        match amount.parse::<Quantity>() {
            Ok(amount) => self.change(|set| set.class.resources.set(Kind::Memory, amount)),
            Err(error) => self.mistaken(format!("memory: {error}")),
        }
    }

    /// A custom resource that operators named with `--resource NAME=N`.
    pub fn resource(self, name: &str, amount: f64) -> Self {
        match Kind::parse(name) {
            Ok(kind) => self.amount(kind, amount),
            Err(error) => self.mistaken(error.to_string()),
        }
    }

    /// How often it is run again after its host or node died.
    pub fn retries(self, retries: u32) -> Self {
        self.change(|set| set.retries = retries)
    }

    /// Whether a panic or an `Err` is retried too.
    pub fn retry_errors(self, yes: bool) -> Self {
        self.change(|set| set.retry_errors = yes)
    }

    /// How often an actor is started again after its host died; its state is lost each time.
    pub fn restarts(self, restarts: u32) -> Self {
        self.change(|set| set.restarts = restarts)
    }

    /// How many values a function with `returns` gives that returns a vector: `remote` gives as many refs. At most
    /// 65,536. A call that returns another number fails with `ReturnCount`.
    pub fn returns(self, count: u32) -> Self {
        self.change(|set| set.returns = Some(count))
    }

    /// How many items of a stream may be made and not yet read; 256 unless set, and at least one. Fewer bound what lies
    /// in memory more tightly, more let the producer run further ahead.
    pub fn buffer_items(self, items: u32) -> Self {
        self.change(|set| set.buffer.0.items = items)
    }

    /// How many bytes of a stream's items, encoded, may be made and not yet read; 32 MiB unless set. The item that
    /// reaches the limit may go past it, so one item is always allowed.
    pub fn buffer_bytes(self, bytes: u64) -> Self {
        self.change(|set| set.buffer.0.bytes = bytes)
    }

    /// Longest that it may run, from its start; it then fails with `TimedOut` at once, and its code is asked to stop as by
    /// [`ObjectRef::cancel`](crate::ObjectRef::cancel). It keeps its slot until it returns. With `isolation = "process"`, a
    /// task or an actor's construction that has not returned 5 s later ends with its process.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.change(|set| set.timeout = Some(timeout))
    }

    /// Higher goes first.
    pub fn priority(self, priority: i32) -> Self {
        self.change(|set| set.class.priority = priority)
    }

    /// Whether it may be stopped and run again, as often as others have more right to what it holds: it makes room before
    /// what may not, after a second of grace, and loses none of its retries or restarts by that.
    pub fn restartable(self, yes: bool) -> Self {
        self.change(|set| set.class.restartable = yes)
    }

    /// The queue that is charged.
    pub fn queue(self, queue: &str) -> Self {
        self.change(|set| queue.clone_into(&mut set.class.queue))
    }

    /// How a node is chosen.
    pub fn strategy(self, strategy: Strategy) -> Self {
        self.change(|set| set.class.strategy = strategy)
    }

    /// The least loaded node first, instead of filling one after the other.
    pub fn spread(self) -> Self {
        self.strategy(Strategy::Spread)
    }

    /// Never two of this function, under the same options, on one node at a time.
    pub fn apart(self) -> Self {
        self.strategy(Strategy::Apart)
    }

    /// On this node alone. Fails with `Infeasible` where that is not in the cluster or lacks what is needed; else waits
    /// until it has room.
    pub fn on_node(self, node: NodeId) -> Self {
        self.strategy(Strategy::Node { node, soft: false })
    }

    /// On this node if it has room now, else on another.
    pub fn prefer_node(self, node: NodeId) -> Self {
        self.strategy(Strategy::Node { node, soft: true })
    }

    /// Inside of a placement group, as a part of what it reserves: of this bundle, counted from 0, or of whichever has
    /// room where it is `None`.
    pub fn in_group(self, group: &PlacementGroup, bundle: impl Into<Option<u32>>) -> Self {
        self.strategy(Strategy::Group { group: group.id(), bundle: bundle.into() })
    }

    /// Only nodes with this label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.label_rule(LabelRule::In(key.to_owned(), vec![value.to_owned()]))
    }

    /// Only nodes whose labels fulfil the rule; all rules must hold.
    pub fn label_rule(self, rule: LabelRule) -> Self {
        self.change(|set| set.class.labels.push(rule))
    }

    /// Only nodes whose label of this key has one of these values.
    pub fn label_in(self, key: &str, values: &[&str]) -> Self {
        self.label_rule(LabelRule::one_of(key, values.iter().copied()))
    }

    /// Only nodes that lack this label, or whose value is none of these.
    pub fn label_not_in(self, key: &str, values: &[&str]) -> Self {
        self.label_rule(LabelRule::none_of(key, values.iter().copied()))
    }

    /// Only nodes with a label of this key.
    pub fn label_exists(self, key: &str) -> Self {
        self.label_rule(LabelRule::exists(key))
    }

    /// Only nodes without a label of this key.
    pub fn label_absent(self, key: &str) -> Self {
        self.label_rule(LabelRule::absent(key))
    }

    /// Where no node that fulfils the rules given so far has room, one that fulfils all of these will do; with no rules,
    /// any. Up to eight such lists are tried in order.
    pub fn fallback(self, rules: &[LabelRule]) -> Self {
        self.change(|set| set.class.fallbacks.push(rules.to_vec()))
    }

    /// `"shared"` (the default: one process for each job and node) or `"process"`: a process of its own for each that runs,
    /// up to 1,024 of one function or actor type of a job on a node. When it has ended, another call of the job may use it.
    pub fn isolation(self, isolation: &str) -> Self {
        match isolation {
            "shared" => self.change(|set| set.class.isolation = Isolation::Shared),
            "process" => self.change(|set| set.class.isolation = Isolation::Process),
            other => self.mistaken(format!("isolation {other:?} is unknown: use \"shared\" or \"process\"")),
        }
    }

    /// Waits for a node that could run it instead of failing when there is none.
    pub fn wait_for_node(self, yes: bool) -> Self {
        self.change(|set| set.class.wait_for_node = yes)
    }

    /// A name under which others find the actor; unique in its namespace.
    pub fn name(self, name: &str) -> Self {
        self.change(|set| set.name = Some(name.to_owned()))
    }

    /// The namespace of the name; the job's own unless set.
    pub fn namespace(self, namespace: &str) -> Self {
        self.change(|set| namespace.clone_into(&mut set.namespace))
    }

    /// If the name is taken, gives a handle to whoever has it instead of failing.
    pub fn get_or_create(self, yes: bool) -> Self {
        self.change(|set| set.get_or_create = yes)
    }

    /// Lives until it is killed, even after its job has ended. Needs a name and a namespace.
    pub fn detached(self, yes: bool) -> Self {
        self.change(|set| set.detached = yes)
    }

    /// How many `&self` calls of an actor run at once, outside its groups; at least 1.
    pub fn concurrency(self, calls: u32) -> Self {
        self.change(|set| set.limits.concurrency = Some(calls))
    }

    /// How many calls of this group, which the actor's type declares, run at once; at least 1.
    pub fn group(self, name: &str, calls: u32) -> Self {
        self.change(|set| set.limits.groups.push((name.to_owned(), calls)))
    }

    /// How many calls wait in an actor's inbox; at least 1.
    pub fn inbox(self, calls: u32) -> Self {
        self.change(|set| set.limits.inbox = Some(calls))
    }

    /// What becomes of a call that finds the actor's inbox full: `"wait"` or `"refuse"`.
    pub fn when_full(self, what: &str) -> Self {
        match WhenFull::parse(what) {
            Some(when) => self.change(|set| set.limits.when_full = Some(when)),
            None => self.mistaken(format!("when_full {what:?} is unknown: use \"wait\" or \"refuse\"")),
        }
    }

    /// What was set.
    pub(crate) fn set(&self) -> &Set {
        &self.set
    }

    /// Takes the name out.
    pub(crate) fn take_name(&mut self) -> Option<String> {
        Arc::make_mut(&mut self.set).name.take()
    }

    /// What calls of this function under these options have in common.
    pub(crate) fn template<H: Handle>(&self, function: &'static Function) -> Result<Arc<Template>, Failure> {
        if let Some(template) = self.set.template.get().filter(|made| made.function == function.id()) {
            return Ok(template.clone());
        }
        let set = &self.set;
        if let Some(mistake) = &set.mistake {
            return Err(Failure::new(FailureKind::Infeasible, mistake.clone()));
        }
        set.class
            .validate()
            .map_err(|error: resource::Error| Failure::new(FailureKind::Infeasible, error.to_string()))?;
        let mut template = Template::new(function.id(), function.name);
        template.class = set.class.clone();
        function.name.clone_into(&mut template.class.function);
        template.attempts_max = match function.entry {
            Entry::Task(_) | Entry::Method { .. } => set.retries.saturating_add(1),
            Entry::Construct { .. } => 1,
        };
        template.retry_errors = set.retry_errors;
        template.returns = H::returns(self)?;
        template.timeout_ms =
            set.timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1));
        match &function.entry {
            Entry::Task(_) => {}
            Entry::Construct { rules, .. } => {
                let mistake = |text: String| Failure::new(FailureKind::Infeasible, text);
                template.limits = set.limits.apply(rules).map_err(mistake)?;
            }
            Entry::Method { unordered, .. } => template.unordered = *unordered,
        }
        let template = Arc::new(template);
        // Kept for the next call, unless these options were used with another function before.
        let _other = set.template.set(template.clone());
        Ok(template)
    }
}

/// The setters of [`Options`], for the types that `#[mobula::task]` makes.
#[doc(hidden)]
#[macro_export]
macro_rules! __option_methods {
    () => {
        // Names that no task has, which would be in scope here.
        $crate::__option_methods! { @each
            cpu(__cores: f64), gpu(__devices: f64), tpu(__chips: f64), memory(__amount: &str),
            resource(__name: &str, __amount: f64), retries(__retries: u32), retry_errors(__yes: bool),
            timeout(__timeout: ::core::time::Duration), priority(__priority: i32), queue(__queue: &str),
            returns(__count: u32), buffer_items(__items: u32), buffer_bytes(__bytes: u64),
            strategy(__strategy: $crate::Strategy), spread(), apart(), on_node(__node: $crate::NodeId),
            prefer_node(__node: $crate::NodeId), label(__key: &str, __value: &str),
            in_group(__group: &$crate::PlacementGroup, __bundle: impl ::core::convert::Into<Option<u32>>),
            label_in(__key: &str, __values: &[&str]), label_not_in(__key: &str, __values: &[&str]),
            label_exists(__key: &str), label_absent(__key: &str), fallback(__rules: &[$crate::LabelRule]),
            label_rule(__rule: $crate::LabelRule), isolation(__isolation: &str), wait_for_node(__yes: bool), restartable(__yes: bool),
        }
    };
    (@each $($name:ident($($argument:ident: $type:ty),*)),* $(,)?) => {$(
        #[allow(dead_code, missing_docs)]
        pub fn $name(self, $($argument: $type),*) -> Self {
            Self(self.0.$name($($argument),*))
        }
    )*};
}
