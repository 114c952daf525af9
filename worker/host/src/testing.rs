//! A runtime of its own, for tests.

use std::sync::{
    Arc, OnceLock,
    atomic::AtomicU64,
    mpsc::{self, Receiver},
};

use mobula_proto::{
    HostId, JobId, LeaseId, NodeId, TaskId,
    host::{ToAgent, Welcome},
    peer::{Call, Message, Target},
    wire,
};

use crate::{
    link::AgentSender,
    peers::Peers,
    registry::{Entry, Function, Registry},
    runtime::Runtime,
};

pub(crate) const NODE: NodeId = NodeId { number: 1, incarnation: 1 };
pub(crate) const ME: HostId = HostId { node: NODE, seq: 1 };

/// A host whose agent answers nothing.
pub(crate) struct Alone {
    pub(crate) runtime: Arc<Runtime>,
    /// What the agent hears.
    pub(crate) told: Receiver<ToAgent>,
    /// Runs its async code.
    pub(crate) user: tokio::runtime::Runtime,
}

/// One that knows these functions.
pub(crate) fn alone(functions: &[&'static Function]) -> Alone {
    let welcome = Welcome {
        host: ME,
        job: JobId { number: 1 },
        driver: ME,
        namespace: String::new(),
        cpus: 1,
        store_bytes: 1 << 30,
        devices: Vec::new(),
        shared: true,
    };
    let (tell, told) = mpsc::channel();
    let agent = AgentSender::new(move |parcel| drop(tell.send(parcel.message)));
    let user = tokio::runtime::Runtime::new().unwrap();
    let registry = Registry::new(functions.iter().copied()).unwrap();
    let runtime = Runtime::new(welcome, registry, agent, Peers::new(None, None), user.handle().clone());
    Alone { runtime, told, user }
}

impl Alone {
    /// The next message that it sends to another host, and to which.
    pub(crate) fn next_sent(&self) -> (HostId, Message) {
        loop {
            let told = self.told.recv_timeout(std::time::Duration::from_secs(20)).expect("nothing is sent");
            if let ToAgent::Relay { to, body } = told {
                return (to, wire::decode(&body).unwrap());
            }
        }
    }
}

/// Another host.
pub(crate) fn other(seq: u32) -> HostId {
    HostId { node: NODE, seq }
}

pub(crate) fn function(name: &'static str, entry: Entry) -> &'static Function {
    function_of(name, entry, false)
}

/// One that gives futures.
pub(crate) fn async_function(name: &'static str, entry: Entry) -> &'static Function {
    function_of(name, entry, true)
}

fn function_of(name: &'static str, entry: Entry, is_async: bool) -> &'static Function {
    Box::leak(Box::new(Function {
        name,
        signature: "()",
        file: "src/main.rs",
        line: 7,
        is_async,
        entry,
        id: OnceLock::new(),
        nanos: AtomicU64::new(0),
    }))
}

/// A call of a function without arguments.
pub(crate) fn call(function: &Function, task: TaskId, target: Target) -> Message {
    Message::Run(Call {
        task,
        attempt: 1,
        attempts_max: 1,
        function: function.id(),
        target,
        arguments: smallvec::SmallVec::new(),
        timeout_ms: 0,
    })
}

pub(crate) fn lease(number: u64) -> LeaseId {
    LeaseId { number }
}
