//! The head as a running service: an actor around the core, and the IO around the actor.
//!
//! | part | what |
//! |---|---|
//! | `actor` | messages and handlers; applies the core's effects in order |
//! | `network` | the QUIC port: links of agents and drivers, and machines that join |
//! | `embedded` | the same link through memory, for a cluster inside one process |
//! | `home` | the folder: CA, identity, admin token, and where others find this head |

mod actor;
mod embedded;
mod home;
mod network;
#[cfg(test)]
mod tests;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mobula_net::{identity, quic};
use mobula_proto::{
    Failure,
    head::{Explanation, Snapshot},
    queue::Change,
};
use mobula_scheduler::autoscale;
use mobula_telemetry::task;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    core, http,
    scaling::{self, Scaling},
    state,
};

pub(crate) use actor::Poster;
pub use embedded::EmbeddedHead;
pub use home::{Whereabouts, private_folder};
pub use identity::Role;

/// UDP port of the head unless set.
pub const QUIC_PORT: u16 = 7420;
/// TCP port of the HTTP API unless set.
pub const HTTP_PORT: u16 = 7421;
/// Messages that wait for the actor; a link that has more waits, and with it its agent.
pub const MAILBOX_MAX: usize = 4096;
/// Messages that wait to be sent on one link. An agent that falls so far behind is given up.
pub const LINK_QUEUE_MAX: usize = 4096;
/// Shortest time between two ticks, in milliseconds: how late the end of a lease's term may be noticed.
pub const TICK_MS_MIN: u64 = 50;
/// Longest time between two ticks while anything waits, in milliseconds.
pub const TICK_MS_MAX: u64 = 250;
/// How much later than it was set for a tick may be handled, in milliseconds, until the head counts as having stood still
/// since: it heard nobody meanwhile, so nobody's time runs out. With [`TICK_MS_MAX`], much less than the term of a lease.
pub const LATE_MS_MAX: u64 = 100;
/// Longest life of a join token.
pub const TOKEN_TTL_MAX: Duration = Duration::from_hours(30 * 24);
/// How long [`Handle::shutdown`] waits for agents to hear of it.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// How long the last packets, which say that the port closes, have to leave. Nodes have heard of the end by then; a
/// peer that is gone already never answers them.
const CLOSE_GRACE: Duration = Duration::from_millis(200);

/// How a head starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder with all it keeps; made with mode 0700 where there is none.
    pub home: PathBuf,
    /// The UDP port for agents and drivers; port 0 for any. Default 0.0.0.0:7420.
    pub quic_address: SocketAddr,
    /// The TCP port for people and scripts; port 0 for any. Must be loopback. Default 127.0.0.1:7421.
    pub http_address: SocketAddr,
    /// A name for people, in the CA's certificate. Default `mobula`.
    pub cluster_name: String,
    /// Silence after which an agent counts as lost. Default 6 s, must be over 4 s. Longer means later failover;
    /// shorter, that a stopped process or a second without network counts as death.
    pub idle_timeout: Duration,
    /// Breaks ties between equally good nodes. Default 0: the lowest number.
    pub seed: u64,
    /// Nodes that are started when work waits for them, and drained when idle. Default: none.
    pub scaling: Option<Scaling>,
}

impl Options {
    /// The defaults, with this folder.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            quic_address: (Ipv4Addr::UNSPECIFIED, QUIC_PORT).into(),
            http_address: (Ipv4Addr::LOCALHOST, HTTP_PORT).into(),
            cluster_name: "mobula".to_owned(),
            idle_timeout: Duration::from_secs(6),
            seed: 0,
            scaling: None,
        }
    }
}

/// Why the head did not start, or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder under the head's home.
    #[error("cannot {what} {}: {source}", path.display())]
    Home {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder for secrets that others may enter.
    #[error("the folder {} is open to other users (mode {mode:04o})", path.display())]
    OpenFolder {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is a cluster's state, but not its CA.
    #[error("the state of a cluster is here, but its certificate authority is not: no whole one is in {}", folder.display())]
    AuthorityLost {
        /// Where it should be.
        folder: PathBuf,
    },
    /// The CA or the head's own certificate.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The UDP port.
    #[error(transparent)]
    Network(#[from] quic::Error),
    /// The types of nodes that may be started.
    #[error(transparent)]
    NodeTypes(#[from] autoscale::Error),
    /// The durable state.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The HTTP API would be open to the network without encryption.
    #[error(
        "refusing to serve HTTP on {address}: without TLS, tokens would cross the network in the clear. Use a loopback address (127.0.0.1 or ::1) and reach it through an SSH tunnel or a TLS proxy on this machine"
    )]
    HttpNotLoopback {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The HTTP port.
    #[error("cannot open TCP port {address} for the HTTP API: {source}")]
    HttpBind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The request was understood and refused.
    #[error("{0}")]
    Refused(Failure),
    /// The head has ended.
    #[error("the head has ended")]
    Ended,
    /// A part of the head could not be started.
    #[error("the head could not start: {0}")]
    Start(String),
}

/// Starts heads.
#[derive(Debug)]
pub struct Head;

impl Head {
    /// Starts a head on its folder and ports. The first start makes the cluster: its CA, its admin token. Must be
    /// called inside a tokio runtime with time and IO.
    pub async fn start(options: Options) -> Result<Handle, Error> {
        mobula_net::raise_descriptor_limit();
        if !options.http_address.ip().is_loopback() {
            return Err(Error::HttpNotLoopback { address: options.http_address });
        }
        let node_types = options.scaling.as_ref().map(|scaling| scaling.types.clone()).unwrap_or_default();
        autoscale::validate(&node_types)?;
        let at = options.clone();
        let home = tokio::task::spawn_blocking(move || home::Home::open(&at.home, &at.cluster_name))
            .await
            .map_err(|e| Error::Start(e.to_string()))??;
        let listener = http::bind(options.http_address)
            .await
            .map_err(|source| Error::HttpBind { address: options.http_address, source })?;
        let endpoint = network::bind(&options, home.identity.clone())?;
        let quic_address = endpoint.local_addr()?;
        let http_address = listener
            .local_addr()
            .map_err(|source| Error::HttpBind { address: options.http_address, source })?;
        let core_options = core::Options {
            cluster: home.authority.cluster_id().to_owned(),
            seed: options.seed,
            node_types,
            ..core::Options::default()
        };
        let started = actor::start(core_options, home.journal, Some(home.authority)).await?;
        home::announce(&options.home, quic_address, http_address, started.poster.cluster())?;
        let endpoint = Arc::new(endpoint);
        let links = network::Links::default();
        let mut guards = vec![
            task::scoped(
                "head-accept",
                network::accept(endpoint.clone(), links.clone(), started.poster.clone()),
            ),
            task::scoped(
                "head-http",
                http::serve(listener, http::Api::new(started.poster.clone(), home.admin_hash)),
            ),
        ];
        if let Some(scaling) = options.scaling {
            let running = scaling::run(scaling, started.poster.clone(), quic_address);
            guards.push(task::scoped("head-scaling", running));
        }
        let ports = Ports { endpoint, links, home: options.home, _guards: guards };
        Ok(Handle(Arc::new(Inner {
            poster: started.poster,
            closed: started.closed,
            quic_address: Some(quic_address),
            http_address: Some(http_address),
            admin_token: home.admin_token,
            ports: Mutex::new(Some(ports)),
        })))
    }

    /// Starts a head in memory, for exactly one agent in this process: no port, no file, ready in well under a
    /// millisecond. It ends with the last [`Handle`].
    pub async fn start_embedded() -> Result<EmbeddedHead, Error> {
        embedded::start(Arc::new(state::Memory::default())).await
    }
}

/// A running head. Cheap to clone; the head ends when the last one is dropped, in good order after
/// [`Handle::shutdown`].
#[derive(Clone, Debug)]
pub struct Handle(Arc<Inner>);

struct Inner {
    poster: Poster,
    closed: watch::Receiver<()>,
    quic_address: Option<SocketAddr>,
    http_address: Option<SocketAddr>,
    admin_token: String,
    ports: Mutex<Option<Ports>>,
}

struct Ports {
    endpoint: Arc<quic::Endpoint>,
    links: network::Links,
    home: PathBuf,
    _guards: Vec<task::Guard>,
}

impl Handle {
    /// The UDP port in use; `None` in an embedded head.
    pub fn quic_address(&self) -> Option<SocketAddr> {
        self.0.quic_address
    }

    /// The TCP port of the HTTP API in use; `None` in an embedded head.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.0.http_address
    }

    /// The token for the HTTP API, a secret; empty in an embedded head.
    pub fn admin_token(&self) -> &str {
        &self.0.admin_token
    }

    /// The cluster's name: 32 hexadecimal digits, or `embedded`.
    pub fn cluster(&self) -> &str {
        self.0.poster.cluster()
    }

    /// Makes a join token, a secret that lets one machine in, once, within `ttl` (at most [`TOKEN_TTL_MAX`]).
    pub async fn create_join_token(&self, role: Role, ttl: Duration) -> Result<String, Error> {
        self.0.poster.create_token(role, ttl).await
    }

    /// The cluster now.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        self.0.poster.snapshot().await
    }

    /// Why something waits; see [`Explanation`].
    pub async fn explain(&self, id: &str) -> Result<Explanation, Error> {
        self.0.poster.explain(id.to_owned()).await
    }

    /// Defines a queue or changes it; durable when it returns.
    pub async fn set_queue(&self, change: Change) -> Result<(), Error> {
        self.0.poster.set_queue(change).await
    }

    /// Removes a queue that nothing uses; durable when it returns.
    pub async fn remove_queue(&self, name: &str) -> Result<(), Error> {
        self.0.poster.remove_queue(name.to_owned()).await
    }

    /// Has a node (its name, or its number as `node-3`) leave: nothing new is granted there, tasks run to their end,
    /// actors that may be restarted and objects move to other nodes. What is left after `time` (at most
    /// [`core::DRAIN_MS_MAX`]) is taken away. Said again, it changes the time.
    pub async fn drain(&self, node: &str, time: Duration) -> Result<(), Error> {
        self.0.poster.drain(node.to_owned(), time).await
    }

    /// A node that drains stays after all.
    pub async fn resume(&self, node: &str) -> Result<(), Error> {
        self.0.poster.resume(node.to_owned()).await
    }

    /// Ends the cluster: agents are told, and with them their hosts end. Returns once they have heard, or after
    /// about [`SHUTDOWN_GRACE`]; a second call changes nothing.
    pub async fn shutdown(&self) {
        // An error means that it has ended already.
        let _ended = self.0.poster.shutdown().await;
        self.closed().await;
        let ports = self.0.ports.lock().take();
        if let Some(Ports { endpoint, links, home, .. }) = ports {
            home::withdraw(&home);
            links.wait_gone(SHUTDOWN_GRACE).await;
            endpoint.close("the head has ended");
            endpoint.wait_idle(CLOSE_GRACE).await;
        }
    }

    /// Waits until the head has ended, for whatever reason.
    pub async fn closed(&self) {
        let mut closed = self.0.closed.clone();
        // Nothing is ever sent: an error is the end that is waited for.
        let _end = closed.changed().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.poster.stop();
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Head")
            .field("cluster", &self.poster.cluster())
            .field("quic", &self.quic_address)
            .field("http", &self.http_address)
            .finish_non_exhaustive()
    }
}
