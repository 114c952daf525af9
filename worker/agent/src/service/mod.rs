//! The agent as something that runs: its options, its start, its handle.
//!
//! | module | what |
//! |---|---|
//! | `actor` | messages in, [`crate::core`]'s effects out |
//! | `head` | the link to the head |
//! | `link`, `local`, `launch` | links to hosts: sockets, memory, and processes with their output |
//! | `routes`, `peers`, `delivery` | bounded ways out, to hosts and to other agents |
//! | `memory`, `disk`, `provision` | copies pulled from elsewhere or read back; spilled ones; programs and files of jobs |

mod actor;
mod delivery;
mod disk;
mod garbage;
mod head;
mod launch;
mod link;
mod local;
mod memory;
mod peers;
mod provision;
mod pulling;
mod relay;
mod routes;
#[cfg(test)]
mod tests;
mod transfer;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mobula_net::{
    identity::Identity,
    quic::{self, Endpoint},
    ring,
};
use mobula_proto::{
    Failure, FailureKind, NodeId, Quantity, Resources,
    head::{Register, ToAgent, ToHead, Usage},
    resource::{ENTRIES_MAX, Kind},
};
use mobula_telemetry::task;
use ractor::Actor;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tracing::info;

pub use head::Error as HeadError;
pub use local::{LocalLink, LocalReceiver, LocalSender, SendError, TO_AGENT_MAX, TO_HOST_MAX};
pub use provision::own_program;
pub use routes::{CONTROL_MAX, ROOM_UNIT_BYTES, ROOM_UNITS};

use mobula_store::spill::{Folder, Target};

pub use crate::core::{objects::Limits, transfer::Pulls};
use crate::{
    binaries,
    core::Config,
    detect::Detected,
    launcher::Launcher,
    users::{self, Uids, Users},
};

/// How often use is reported to the head, where it changed.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// How long hosts may take to be gone when the agent ends.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// The label that says whether the memory of hosts of their own is limited to what was asked for: `enforced` or `none`.
pub const LABEL_MEMORY_LIMIT: &str = "mobula.io/memory-limit";
/// Smallest store, in bytes.
pub const STORE_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// How the agent reaches its head.
#[derive(Debug)]
pub enum HeadLink {
    /// Over the network, as a member of the cluster.
    Quic {
        /// Where the head is.
        address: SocketAddr,
        /// Who this agent is; the name in it is the node's name.
        identity: Identity,
        /// The network's knobs.
        network: quic::Options,
    },
    /// In this process: what `mobula_head::Head::start_embedded` returns. There are no other nodes then.
    Memory {
        /// To the head.
        to_head: mpsc::Sender<ToHead>,
        /// From the head.
        from_head: mpsc::Receiver<ToAgent>,
    },
}

/// Where spilled objects are written.
#[derive(Clone, Debug, Default)]
pub enum SpillTo {
    /// The folder `spill` in the agent's home.
    #[default]
    Home,
    /// A folder that is made in this one, as [`Folder::within`] does: others may use it too.
    Folder(PathBuf),
    /// Somewhere else, which is this agent's alone.
    Target(Arc<dyn Target>),
}

impl SpillTo {
    /// With the folder, where it is one.
    fn open(self, home: &Path) -> Result<(Arc<dyn Target>, Option<PathBuf>), mobula_store::Error> {
        let folder = match self {
            Self::Home => Folder::new(home.join("spill"))?,
            Self::Folder(within) => Folder::within(within)?,
            Self::Target(target) => return Ok((target, None)),
        };
        let path = folder.path().to_owned();
        Ok((Arc::new(folder), Some(path)))
    }
}

/// What an agent is started with.
pub struct Options {
    /// A name for people; over QUIC the certificate's name stands instead.
    pub name: String,
    /// Where it keeps binaries and jobs' folders; made if absent (0700). One agent at a time.
    pub home: PathBuf,
    /// The way to the head.
    pub head: HeadLink,
    /// The UDP address on which other agents reach this one; `None` for one that only dials outward.
    pub listen: Option<SocketAddr>,
    /// Where peers reach it, if that is not what it listens on (a port that is forwarded, say).
    pub advertise: Option<String>,
    /// The Unix socket for drivers, in a folder that becomes 0700; `None` for none.
    pub socket: Option<PathBuf>,
    /// What the node offers; an agent that only carries a driver offers nothing.
    pub resources: Detected,
    /// Capacity of the object store, in bytes; default [`store_bytes_default`].
    pub store_bytes: u64,
    /// What may be spilled from it, and when.
    pub spill: Limits,
    /// Where they are written.
    pub spill_to: SpillTo,
    /// How copies are pulled from other nodes.
    pub pulls: Pulls,
    /// Starts hosts.
    pub launcher: Arc<dyn Launcher>,
    /// Whether a driver that is attached in this process executes its job's shared classes.
    pub in_process_executor: bool,
    /// Variables that every launched host gets.
    pub env: Vec<(String, String)>,
    /// Processors that hosts size their thread pools by; default: those of `resources`, at least one.
    pub cpus: Option<u32>,
    /// Bytes of each ring between two hosts, a power of two; default 1 MiB. Smaller ones make large messages take
    /// more turns; larger ones cost memory for each pair of hosts.
    pub ring_bytes: u32,
    /// How long a host of one lease waits for another; default 10 s. Longer keeps memory and devices' contexts,
    /// shorter starts more processes.
    pub idle_timeout: Duration,
    /// How long the head may be lost before the agent kills its hosts and ends; default 10 s.
    pub head_lost_max: Duration,
    /// Disk that programs and files of jobs may take, in bytes; default 20 GiB.
    pub binaries_bytes: u64,
    /// Users from which each job gets one of its own, and nobody else has; default: all jobs run as the agent's user, and
    /// are not protected from one another.
    pub job_uids: Option<Uids>,
}

impl Options {
    /// Options with every default: no socket, dial-only, no in-process executor.
    pub fn new(
        name: impl Into<String>,
        home: impl Into<PathBuf>,
        head: HeadLink,
        resources: Detected,
        launcher: Arc<dyn Launcher>,
    ) -> Self {
        Self {
            name: name.into(),
            home: home.into(),
            head,
            listen: None,
            advertise: None,
            socket: None,
            store_bytes: store_bytes_default(&resources.total),
            spill: Limits::default(),
            spill_to: SpillTo::Home,
            pulls: Pulls::default(),
            resources,
            launcher,
            in_process_executor: false,
            env: Vec::new(),
            cpus: None,
            ring_bytes: ring::CAPACITY_BYTES_DEFAULT,
            idle_timeout: Duration::from_secs(10),
            head_lost_max: Duration::from_secs(10),
            binaries_bytes: 20 * 1024 * 1024 * 1024,
            job_uids: None,
        }
    }
}

/// 30 % of the memory, at least [`STORE_BYTES_MIN`].
pub fn store_bytes_default(total: &Resources) -> u64 {
    let bytes = u64::try_from(total.get(&Kind::Memory).units() / Quantity::PER_ONE).unwrap_or(0);
    (bytes / 10 * 3).max(STORE_BYTES_MIN)
}

/// Why an agent did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, folder or socket could not be made.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store of binaries could not be opened.
    #[error(transparent)]
    Binaries(#[from] binaries::Error),
    /// Jobs cannot have users of their own.
    #[error(transparent)]
    Users(#[from] users::Error),
    /// The folder for spilled objects could not be made.
    #[error(transparent)]
    Spill(#[from] mobula_store::Error),
    /// The port could not be opened.
    #[error(transparent)]
    Net(#[from] quic::Error),
    /// The head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// An agent without a network cannot listen.
    #[error("an agent whose head is in its own process has no network to listen on")]
    ListenWithoutNetwork,
    /// The actor did not start.
    #[error("the agent's actor did not start: {0}")]
    Actor(String),
}

/// A running agent. Cheap to clone; the agent runs until [`Handle::shutdown`], or until its head is gone.
#[derive(Clone)]
pub struct Handle {
    node: NodeId,
    address: Option<SocketAddr>,
    spill_folder: Option<PathBuf>,
    post: actor::Post,
    routes: Arc<routes::Routes>,
    stop: Arc<Notify>,
    closed: watch::Receiver<Option<Result<(), Arc<Error>>>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The agent; see [`Agent::start`].
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Starts an agent on the current tokio runtime; returns once the head has registered it.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left running then.
    pub async fn start(mut options: Options) -> Result<Handle, Error> {
        let io = |path: &PathBuf| {
            let path = path.clone();
            move |source| Error::Io { path, source }
        };
        provision::create_private(&options.home).map_err(io(&options.home))?;
        let jobs = options.home.join("jobs");
        // What an agent that was killed left behind.
        let _absent = std::fs::remove_dir_all(&jobs);
        let users = match options.job_uids {
            Some(uids) => {
                // Jobs are told of it, wherever they are.
                options.home = std::fs::canonicalize(&options.home).map_err(io(&options.home))?;
                provision::create_private(&jobs).map_err(io(&jobs))?;
                let users = Users::new(uids, &options.home)?;
                info!(%uids, "each job has a user of its own");
                Some(users)
            }
            None => None,
        };
        let (spill, spill_folder) = match options.spill.disk_bytes {
            0 => (None, None),
            _ => {
                let (target, folder) = options.spill_to.open(&options.home)?;
                (Some(target), folder)
            }
        };
        let store = binaries::Store::open(options.home.join("binaries"), options.binaries_bytes)?;
        let store_bytes = options.store_bytes.max(STORE_BYTES_MIN);
        let cpus = options.cpus.unwrap_or_else(|| whole_cpus(&options.resources.total));
        let devices = Arc::new(options.resources.devices.clone());
        let tpu_chips = options.resources.tpu_chips;
        let limits = match options.launcher.memory_limits() {
            Ok(limits) => {
                info!(folder = %limits.folder().display(), "hosts of their own are held to their memory");
                Some(Arc::new(limits))
            }
            Err(why) => {
                info!(%why, "hosts have no memory limit");
                None
            }
        };
        let mut labels = options.resources.labels;
        let said = if limits.is_some() { "enforced" } else { "none" };
        if let Err(at) = labels.binary_search_by(|(key, _)| key.as_str().cmp(LABEL_MEMORY_LIMIT))
            && labels.len() < ENTRIES_MAX
        {
            labels.insert(at, (LABEL_MEMORY_LIMIT.to_owned(), said.to_owned()));
        }
        let mut register = Register {
            name: options.name,
            address: String::new(),
            total: options.resources.total,
            devices: options.resources.devices,
            labels,
            store_bytes,
            multi_tenant: users.is_some(),
        };
        let (link, registered, endpoint) = match options.head {
            HeadLink::Memory { to_head, from_head } => {
                if options.listen.is_some() {
                    return Err(Error::ListenWithoutNetwork);
                }
                let (link, registered) = head::register_memory(to_head, from_head, register).await?;
                (link, registered, None)
            }
            HeadLink::Quic { address, identity, network } => {
                // Peers hold the certificate's name against the head's list.
                register.name = identity.peer().name.clone();
                let endpoint = match options.listen {
                    Some(listen) => Endpoint::bind(listen, identity, network)?,
                    None => Endpoint::client(identity, network)?,
                };
                if options.listen.is_some() {
                    register.address = match options.advertise {
                        Some(advertise) => advertise,
                        None => endpoint.local_addr()?.to_string(),
                    };
                }
                let endpoint = Arc::new(endpoint);
                let (link, registered) =
                    head::register_quic(Arc::clone(&endpoint), address, register, options.head_lost_max)
                        .await?;
                (link, registered, Some(endpoint))
            }
        };
        let node = registered.node;
        let socket = options.socket.as_ref().map(|path| {
            let listener = link::listen(path).map_err(io(path))?;
            Ok::<_, Error>((listener, link::SocketFile(path.clone())))
        });
        let socket = socket.transpose()?;
        if users.is_some() {
            // The socket may lie there, and who makes it closes its folder.
            users::make_passable(&options.home).map_err(io(&options.home))?;
        }
        let routes = Arc::new(routes::Routes::new(node));
        let provision = provision::Provision::new(node, options.home, store);
        let (to_head, queue) = mpsc::channel(head::QUEUE_MAX);
        let desk = actor::Desk::default();
        let arguments = actor::Arguments {
            desk: Arc::clone(&desk),
            config: Config {
                node,
                cpus,
                store_bytes,
                spill: options.spill,
                pulls: options.pulls,
                in_process_executor: options.in_process_executor,
                idle_timeout: options.idle_timeout,
            },
            spill,
            ring_bytes: options.ring_bytes,
            nodes: registered.nodes,
            to_head,
            routes: Arc::clone(&routes),
            provision,
            endpoint: endpoint.clone(),
            listens: options.listen.is_some(),
            launcher: options.launcher,
            devices,
            tpu_chips,
            env: Arc::new(options.env),
            limits,
            users: users.clone(),
        };
        let (actor, ended) = actor::Service::spawn(None, actor::Service, arguments)
            .await
            .map_err(|error| Error::Actor(error.to_string()))?;
        let post = actor::Post::new(actor, desk);
        info!(%node, store_bytes, "agent started");
        let stop = Arc::new(Notify::new());
        let (close, closed) = watch::channel(None);
        let address = endpoint.as_ref().and_then(|endpoint| endpoint.local_addr().ok());
        let running = Running { post: post.clone(), ended, stop: Arc::clone(&stop), endpoint, users };
        let drivers = socket.map(|(listener, file)| {
            let accepting = link::accept(listener, post.clone(), Arc::clone(&routes));
            (task::scoped("driver-accept", accepting), file)
        });
        let heading = task::spawn("head-link", head::run(link, node, queue, post.clone()));
        drop(task::spawn("agent", async move {
            let result = running.run(heading).await;
            drop(drivers);
            close.send_replace(Some(result.map_err(Arc::new)));
        }));
        Ok(Handle { node, address, spill_folder, post, routes, stop, closed })
    }
}

fn whole_cpus(total: &Resources) -> u32 {
    let units = total.get(&Kind::Cpu).units();
    u32::try_from((units + Quantity::PER_ONE - 1) / Quantity::PER_ONE).unwrap_or(u32::MAX).max(1)
}

struct Running {
    post: actor::Post,
    ended: tokio::task::JoinHandle<()>,
    stop: Arc<Notify>,
    endpoint: Option<Arc<Endpoint>>,
    users: Option<Arc<Users>>,
}

impl Running {
    async fn run(self, mut heading: tokio::task::JoinHandle<Result<(), HeadError>>) -> Result<(), Error> {
        let reporting = self.post.clone();
        let _report = task::scoped("agent-report", async move {
            let mut every = tokio::time::interval(REPORT_INTERVAL);
            loop {
                every.tick().await;
                reporting.report();
            }
        });
        let mut ended = self.ended;
        let lost = tokio::select! {
            () = self.stop.notified() => None,
            lost = &mut heading => Some(match lost {
                Ok(Err(error)) => error,
                // Neither ends by itself while the actor lives.
                Ok(Ok(())) | Err(_) => HeadError::NoAnswer,
            }),
            _ = &mut ended => {
                heading.abort();
                return Err(Error::Actor("it ended by itself".to_owned()));
            }
        };
        let why = match &lost {
            Some(error) => Failure::new(FailureKind::Unreachable, error.to_string()),
            None => Failure::new(FailureKind::JobEnded, "the agent ended"),
        };
        // Past the limit, hosts die with their killers.
        let _late = timeout(STOP_TIMEOUT, self.post.stop(why)).await;
        self.post.halt();
        let _late = timeout(STOP_TIMEOUT, ended).await;
        if let Some(users) = &self.users {
            let _late = timeout(STOP_TIMEOUT, users.all_gone()).await;
        }
        let result = match lost {
            Some(HeadError::Shutdown) => Ok(()),
            Some(error) => Err(error.into()),
            None => {
                // The actor is gone, so the queue ends once all is said.
                let _late = timeout(STOP_TIMEOUT, heading).await;
                Ok(())
            }
        };
        if let Some(endpoint) = self.endpoint {
            endpoint.close("the agent ended");
            endpoint.wait_idle(Duration::from_millis(200)).await;
        }
        result
    }
}

impl Handle {
    /// Who this agent is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The UDP address that it has open, if any.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The folder in which it keeps files of spilled objects, if that is one.
    pub fn spill_folder(&self) -> Option<&Path> {
        self.spill_folder.as_deref()
    }

    /// Links a driver in this process. Must be called inside a tokio runtime. The first message must be
    /// [`mobula_proto::host::ToAgent::Hello`] with a driver's role; dropping the link ends the job.
    pub fn attach(&self) -> LocalLink {
        let (link, from_host, to_host) = LocalLink::new();
        let serving = link::local(from_host, to_host, self.post.clone(), Arc::clone(&self.routes));
        drop(task::spawn("in-process-host", serving));
        link
    }

    /// What the node uses; all zeros once the agent has ended.
    pub async fn usage(&self) -> Usage {
        self.post.usage().await.unwrap_or_default()
    }

    /// Ends all jobs of drivers here and all hosts, leaves the cluster, and returns once that is done.
    ///
    /// # Errors
    /// The agent had ended already, and why.
    pub async fn shutdown(&self) -> Result<(), Arc<Error>> {
        self.stop.notify_one();
        self.closed().await
    }

    /// Waits until the agent has ended, and says why, if not in good order.
    ///
    /// # Errors
    /// Its head was lost or refused it, or its actor failed.
    pub async fn closed(&self) -> Result<(), Arc<Error>> {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            // The runtime is ending.
            Err(_) => Ok(()),
        }
    }
}
