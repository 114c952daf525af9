//! How a process becomes a host.
//!
//! The agent starts the job's own binary with the host's end of a socket as descriptor 0 and
//! [`BOOT_FD_VARIABLE`] set; [`take_boot_socket`] notices. A driver connects to an agent's socket instead, or to
//! an agent inside its own process.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use mobula_net::ring::{self, doorbell::Doorbell};
use mobula_proto::{
    Failure, FailureKind,
    host::{Driver, ToAgent, ToHost, Welcome},
    wire::{Hello, Role},
};

use crate::{
    link::{self, AgentReceiver, AgentSender, Parcel},
    peers::{Peers, Relay},
    registry::Registry,
    runtime::Runtime,
};

/// Set in a launched host to the number of the inherited descriptor.
pub const BOOT_FD_VARIABLE: &str = "MOBULA_BOOT_FD";

/// Whether this process was started as a host.
pub fn is_asked() -> bool {
    std::env::var_os(BOOT_FD_VARIABLE).is_some()
}

/// The inherited socket, if this process was started as a host. The descriptor is moved away from standard
/// input, which reads as empty from then on.
pub fn take_boot_socket() -> std::io::Result<Option<UnixStream>> {
    if !is_asked() {
        return Ok(None);
    }
    let stdin = std::io::stdin();
    let socket: OwnedFd = stdin.as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(Some(UnixStream::from(socket)))
}

/// Greets the agent and becomes the host that it says. `driver` is `None` for a launched host; `rings` says
/// whether other hosts may share memory with this process.
pub fn join(
    agent: AgentSender,
    mut receive: AgentReceiver,
    driver: Option<Driver>,
    registry: Registry,
    user: tokio::runtime::Handle,
    rings: bool,
) -> Result<(Arc<Runtime>, AgentReceiver), Failure> {
    mobula_net::raise_descriptor_limit();
    let role = if driver.is_some() { Role::Driver } else { Role::Host };
    let trouble = |error: mobula_net::ring::Error| Failure::new(FailureKind::Internal, error.to_string());
    let doorbell = rings.then(Doorbell::create).transpose().map_err(trouble)?;
    let (relay, descriptors) = match &doorbell {
        Some((_, own)) if agent.takes_rings() => {
            let own =
                own.try_clone().map_err(|source| trouble(ring::Error::System { call: "fcntl", source }))?;
            let (relay, descriptors) = Relay::create(own).map_err(trouble)?;
            (Some(relay), descriptors)
        }
        _ => (None, Vec::new()),
    };
    agent.send(Parcel {
        message: ToAgent::Hello {
            hello: Hello::new(role),
            pid: std::process::id(),
            driver,
            registry: registry.fingerprint(),
        },
        descriptors,
    });
    if let (Some(relay), Some((doorbell, _))) = (&relay, &doorbell) {
        agent.use_ring(relay.to_agent(doorbell.clone()));
    }
    let welcome: Welcome = match receive().map(|delivery| delivery.message) {
        Some(ToHost::Welcome(welcome)) => welcome,
        Some(ToHost::Refused(failure) | ToHost::JobEnded(failure)) => return Err(failure),
        Some(other) => {
            return Err(Failure::new(FailureKind::Internal, format!("the agent began with {other:?}")));
        }
        None => return Err(Failure::new(FailureKind::Unreachable, "the agent closed the connection")),
    };
    let doorbell = doorbell.map(|(doorbell, descriptor)| {
        agent.send(Parcel { message: ToAgent::Doorbell, descriptors: vec![descriptor] });
        doorbell
    });
    let peers = Peers::new(doorbell, relay);
    Ok((Runtime::new(welcome, registry, agent, peers, user), receive))
}

/// The life of a launched host: runs what it is sent until the agent goes or the job ends. It is not dumpable: no debugger
/// of the same user attaches to it, and it leaves no core. What is to be debugged runs embedded.
pub fn run_host(socket: UnixStream) -> Result<(), Failure> {
    let trouble = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Internal, error.to_string());
    // Other processes, those of the same user too, get neither at its memory nor at its descriptors.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| trouble(&error))?;
    let registry = Registry::linked().map_err(|error| trouble(&error))?;
    let user = user_runtime(None).map_err(|error| trouble(&error))?;
    let (agent, receive) = link::over_socket(socket);
    let (runtime, receive) = join(agent, receive, None, registry, user.handle().clone(), true)?;
    let (sender, receiver) = std::sync::mpsc::sync_channel::<()>(1);
    link::pump(&runtime, receive, move || drop(sender)).map_err(|error| trouble(&error))?;
    // Ends when the link does: nothing is ever sent.
    let _closed = receiver.recv();
    runtime.end(Failure::new(FailureKind::JobEnded, "the agent closed the connection"));
    user.shutdown_background();
    Ok(())
}

/// The runtime for user async code, with as many threads as `cpus` (or the machine) has.
pub fn user_runtime(cpus: Option<usize>) -> std::io::Result<tokio::runtime::Runtime> {
    let threads =
        cpus.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1).max(2);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("mobula-user")
        .enable_all()
        .build()
}
