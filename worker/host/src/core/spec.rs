//! What can be submitted.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use mobula_proto::{Blob, HostId, ObjectId, TaskId, limits::Limits, peer::Window, resource::Class};
use smallvec::SmallVec;

/// One input of a call.
#[derive(Clone, Debug)]
pub enum Input {
    /// An encoded value.
    Value(Blob),
    /// The value of an object.
    Ref(ObjectId),
    /// The values of several objects, as one vector.
    List(Vec<ObjectId>),
}

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A task.
    Task {
        /// Whether a task submits it. The newest of such run first, so that a tree of tasks is worked off in depth, with
        /// few of them waiting at any time, rather than in breadth.
        is_child: bool,
    },
    /// An actor's construction; the actor is restarted so many times.
    Construct {
        /// Restarts after the death of its host.
        restarts: u32,
    },
    /// A call that this very host runs at once, without a lease; it has no refs among its inputs.
    Direct {
        /// The host.
        host: HostId,
    },
    /// A call of this actor.
    Method {
        /// The actor's construction object.
        actor: ObjectId,
    },
}

/// What a call gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Returns {
    /// One value.
    #[default]
    One,
    /// So many values, each an object of its own.
    Many(u32),
    /// A stream, of which so much may be made and not yet read.
    Stream(Window),
}

/// What calls have in common that were put together alike; made once for a function and its options.
#[derive(Debug)]
pub struct Template {
    /// The registered function.
    pub function: u64,
    /// For people: `crate::function` or `Counter::add`.
    pub name: &'static str,
    /// The scheduling class; unused for methods.
    pub class: Class,
    /// How many times a call may start; more than once only after failures of the system, unless `retry_errors`.
    pub attempts_max: u32,
    /// Whether an `Err` or a panic is retried too.
    pub retry_errors: bool,
    /// From its start; 0 for none.
    pub timeout_ms: u64,
    /// What it gives.
    pub returns: Returns,
    /// Of a method: whether its calls may overtake those of this host that wait for their arguments.
    pub unordered: bool,
    /// Of a constructor: the actor's limits, where they are not its type's.
    pub limits: Option<Box<Limits>>,
    /// The number of its class, below that of the core in which it has it.
    key: AtomicU64,
}

/// Tells the cores of a process apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CoreNumber(u32);

impl CoreNumber {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Template {
    /// Of this function, run once and in the default class.
    pub fn new(function: u64, name: &'static str) -> Self {
        Self {
            function,
            name,
            class: Class::default(),
            attempts_max: 1,
            retry_errors: false,
            timeout_ms: 0,
            returns: Returns::One,
            unordered: false,
            limits: None,
            key: AtomicU64::new(0),
        }
    }

    /// The number that its class had in `core`. A template serves one cluster as a rule; in others its class is looked up
    /// for each call.
    pub(super) fn key(&self, core: CoreNumber) -> Option<u32> {
        let kept = self.key.load(Ordering::Relaxed);
        (kept >> 32 == u64::from(core.0)).then_some(kept as u32)
    }

    /// It has this one now.
    pub(super) fn keep_key(&self, core: CoreNumber, key: u32) {
        if matches!(self.key.load(Ordering::Relaxed) >> 32, known if known == 0 || known == u64::from(core.0))
        {
            self.key.store(u64::from(core.0) << 32 | u64::from(key), Ordering::Relaxed);
        }
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What it shares with its like.
    pub template: Arc<Template>,
    /// What it is.
    pub kind: Kind,
    /// Its inputs.
    pub inputs: SmallVec<[Input; 1]>,
    /// Refs inside the encoded inputs.
    pub nested: Nested,
}

/// Refs inside encoded inputs. Most calls have none, and there may be millions of calls.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(clippy::box_collection, reason = "it takes half of the place where it is empty")]
pub struct Nested(Option<Box<Vec<ObjectId>>>);

impl From<Vec<ObjectId>> for Nested {
    fn from(refs: Vec<ObjectId>) -> Self {
        Self((!refs.is_empty()).then(|| Box::new(refs)))
    }
}

impl Kind {
    /// Whether it is a task.
    pub fn is_task(self) -> bool {
        matches!(self, Self::Task { .. })
    }
}

impl Spec {
    /// Every object in it, once for each place.
    pub fn refs(&self) -> impl Iterator<Item = ObjectId> {
        let tops = self.inputs.iter().flat_map(|input| match input {
            Input::Value(_) => &[][..],
            Input::Ref(object) => std::slice::from_ref(object),
            Input::List(objects) => &objects[..],
        });
        let actor = match self.kind {
            Kind::Method { actor } => Some(actor),
            Kind::Task { .. } | Kind::Construct { .. } | Kind::Direct { .. } => None,
        };
        let nested = self.nested.0.iter().flat_map(|refs| refs.iter());
        tops.chain(nested).copied().chain(actor)
    }

    /// Bytes of its encoded values.
    pub(super) fn inline_bytes(&self) -> u64 {
        let bytes = self.inputs.iter().map(|input| match input {
            Input::Value(blob) => blob.len() as u64,
            Input::Ref(_) | Input::List(_) => 0,
        });
        bytes.sum()
    }

    pub(super) fn dependencies(&self) -> impl Iterator<Item = ObjectId> {
        self.inputs
            .iter()
            .flat_map(|input| match input {
                Input::Value(_) => &[][..],
                Input::Ref(object) => std::slice::from_ref(object),
                Input::List(objects) => &objects[..],
            })
            .copied()
    }

    /// `task crawl::fetch#81`, as errors name it.
    pub fn title(&self, task: TaskId) -> String {
        title(self.kind_word(), self.template.name, task)
    }

    fn kind_word(&self) -> &'static str {
        match self.kind {
            Kind::Task { .. } | Kind::Direct { .. } => "task",
            Kind::Construct { .. } => "actor",
            Kind::Method { .. } => "call",
        }
    }
}

/// `task crawl::fetch#81`.
pub fn title(kind: &str, name: &str, task: TaskId) -> String {
    format!("{kind} {name}#{}", task.seq)
}
