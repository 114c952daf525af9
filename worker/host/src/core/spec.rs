//! What can be submitted.

use mobula_proto::{HostId, ObjectId, TaskId, resource::Class};
use mobula_store::Bytes;

/// One input of a call.
#[derive(Clone, Debug)]
pub enum Input {
    /// An encoded value.
    Value(Bytes),
    /// The value of an object.
    Ref(ObjectId),
    /// The values of several objects, as one vector.
    List(Vec<ObjectId>),
}

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A task.
    Task,
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

/// What to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The registered function.
    pub function: u64,
    /// For people: `crate::function` or `Counter::add`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its scheduling class; unused for methods.
    pub class: Class,
    /// Its inputs.
    pub inputs: Vec<Input>,
    /// Refs inside the encoded inputs.
    pub nested: Vec<ObjectId>,
    /// How many times it may start; more than once only after failures of the system, unless `retry_errors`.
    pub attempts_max: u32,
    /// Whether an `Err` or a panic is retried too.
    pub retry_errors: bool,
    /// From its start; 0 for none.
    pub timeout_ms: u64,
}

impl Spec {
    pub(super) fn refs(&self) -> impl Iterator<Item = ObjectId> {
        let tops = self.inputs.iter().flat_map(|input| match input {
            Input::Value(_) => &[][..],
            Input::Ref(object) => std::slice::from_ref(object),
            Input::List(objects) => &objects[..],
        });
        let actor = match self.kind {
            Kind::Method { actor } => Some(actor),
            Kind::Task | Kind::Construct { .. } | Kind::Direct { .. } => None,
        };
        tops.chain(self.nested.iter()).copied().chain(actor)
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
        title(self.kind_word(), &self.name, task)
    }

    fn kind_word(&self) -> &'static str {
        match self.kind {
            Kind::Task | Kind::Direct { .. } => "task",
            Kind::Construct { .. } => "actor",
            Kind::Method { .. } => "call",
        }
    }
}

/// `task crawl::fetch#81`.
pub fn title(kind: &str, name: &str, task: TaskId) -> String {
    format!("{kind} {name}#{}", task.seq)
}
