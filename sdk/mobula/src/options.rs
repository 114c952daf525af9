//! What a call site may override.

use std::time::Duration;

use mobula_proto::{
    Failure, FailureKind, Quantity,
    resource::{self, Class, Isolation, Kind, LabelRule, Strategy},
};

/// How a task runs or an actor lives: resources, retries, place. A mistake in a value (a negative amount, say) is
/// reported by the ref that the call returns.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub(crate) class: Class,
    pub(crate) retries: u32,
    pub(crate) retry_errors: bool,
    pub(crate) restarts: u32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) name: Option<String>,
    pub(crate) namespace: String,
    pub(crate) get_or_create: bool,
    pub(crate) detached: bool,
    mistake: Option<String>,
}

/// How often a task is run again after failures of the system, unless it says otherwise.
pub(crate) const RETRIES_DEFAULT: u32 = 3;

impl Options {
    /// The defaults of a task: one CPU, three retries.
    pub fn task() -> Self {
        let options = Self { retries: RETRIES_DEFAULT, ..Self::default() };
        options.cpu(1.0)
    }

    /// The defaults of an actor: no resources while it is alive, no restarts.
    pub fn actor() -> Self {
        Self::default()
    }

    fn amount(mut self, kind: Kind, amount: f64) -> Self {
        match Quantity::from_f64(amount) {
            Ok(amount) => self.class.resources.set(kind, amount),
            Err(error) => drop(self.mistake.get_or_insert(format!("{kind}: {error}"))),
        }
        self
    }

    /// CPUs; fractions are fine, 0 for code that only waits.
    pub fn cpu(self, cores: f64) -> Self {
        self.amount(Kind::Cpu, cores)
    }

    /// GPUs: a fraction of one, or a whole number. Whoever holds one runs in a process that sees only that one.
    pub fn gpu(self, devices: f64) -> Self {
        self.amount(Kind::Gpu, devices)
    }

    /// TPU chips.
    pub fn tpu(self, chips: f64) -> Self {
        self.amount(Kind::Tpu, chips)
    }

    /// Memory: `"2GiB"`, `"500 MB"`, or a number of bytes.
    pub fn memory(mut self, amount: &str) -> Self {
        match amount.parse::<Quantity>() {
            Ok(amount) => self.class.resources.set(Kind::Memory, amount),
            Err(error) => drop(self.mistake.get_or_insert(format!("memory: {error}"))),
        }
        self
    }

    /// A custom resource that operators named with `--resource NAME=N`.
    pub fn resource(mut self, name: &str, amount: f64) -> Self {
        match Kind::parse(name) {
            Ok(kind) => self.amount(kind, amount),
            Err(error) => {
                self.mistake.get_or_insert(error.to_string());
                self
            }
        }
    }

    /// How often it is run again after its host or node died.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Whether a panic or an `Err` is retried too.
    pub fn retry_errors(mut self, yes: bool) -> Self {
        self.retry_errors = yes;
        self
    }

    /// How often an actor is started again after its host died; its state is lost each time.
    pub fn restarts(mut self, restarts: u32) -> Self {
        self.restarts = restarts;
        self
    }

    /// Longest that it may run, from its start.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Higher goes first.
    pub fn priority(mut self, priority: i32) -> Self {
        self.class.priority = priority;
        self
    }

    /// The queue that is charged.
    pub fn queue(mut self, queue: &str) -> Self {
        queue.clone_into(&mut self.class.queue);
        self
    }

    /// How a node is chosen.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.class.strategy = strategy;
        self
    }

    /// Only nodes with this label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.label_rule(LabelRule::In(key.to_owned(), vec![value.to_owned()]))
    }

    /// Only nodes whose labels fulfil the rule; all rules must hold.
    pub fn label_rule(mut self, rule: LabelRule) -> Self {
        self.class.labels.push(rule);
        self
    }

    /// `"shared"` (the default: one process for each job and node) or `"process"`.
    pub fn isolation(mut self, isolation: &str) -> Self {
        match isolation {
            "shared" => self.class.isolation = Isolation::Shared,
            "process" => self.class.isolation = Isolation::Process,
            other => drop(
                self.mistake
                    .get_or_insert(format!("isolation {other:?} is unknown: use \"shared\" or \"process\"")),
            ),
        }
        self
    }

    /// Waits for a node that could run it instead of failing when there is none.
    pub fn wait_for_node(mut self, yes: bool) -> Self {
        self.class.wait_for_node = yes;
        self
    }

    /// A name under which others find the actor; unique in its namespace.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The namespace of the name; the job's own unless set.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// If the name is taken, gives a handle to whoever has it instead of failing.
    pub fn get_or_create(mut self, yes: bool) -> Self {
        self.get_or_create = yes;
        self
    }

    /// Lives until it is killed, even after its job has ended. Needs a name and a namespace.
    pub fn detached(mut self, yes: bool) -> Self {
        self.detached = yes;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Failure> {
        if let Some(mistake) = &self.mistake {
            return Err(Failure::new(FailureKind::Infeasible, mistake.clone()));
        }
        self.class
            .validate()
            .map_err(|error: resource::Error| Failure::new(FailureKind::Infeasible, error.to_string()))
    }
}

/// The setters of [`Options`], for the types that `#[mobula::task]` makes.
#[doc(hidden)]
#[macro_export]
macro_rules! __option_methods {
    () => {
        $crate::__option_methods! { @each
            cpu(cores: f64), gpu(devices: f64), tpu(chips: f64), memory(amount: &str),
            resource(name: &str, amount: f64), retries(retries: u32), retry_errors(yes: bool),
            timeout(timeout: ::core::time::Duration), priority(priority: i32), queue(queue: &str),
            strategy(strategy: $crate::Strategy), label(key: &str, value: &str),
            label_rule(rule: $crate::LabelRule), isolation(isolation: &str), wait_for_node(yes: bool),
        }
    };
    (@each $($name:ident($($argument:ident: $type:ty),*)),* $(,)?) => {$(
        #[allow(dead_code, missing_docs)]
        pub fn $name(self, $($argument: $type),*) -> Self {
            Self(self.0.$name($($argument),*))
        }
    )*};
}
