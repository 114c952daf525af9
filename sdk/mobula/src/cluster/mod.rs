//! Where a program's tasks run: in its own process, in a cluster of processes on this machine, or in a cluster that
//! others run. The program is the same.

mod embedded;
mod entry;
mod exit;
mod held;
mod home;
mod local;
mod over;
mod remote;
pub mod roles;
mod spill;

use std::sync::{Arc, Mutex, PoisonError};

use mobula_host::{
    boot, context,
    link::{self, AgentReceiver, AgentSender},
    registry::Registry,
    runtime::Runtime,
};
use mobula_net::quic::MTU_BYTES;
use mobula_proto::{
    BinaryHash, Failure, FailureKind,
    head::{Explanation, Snapshot},
    host::{Answer, Driver, Question},
};

use crate::{Error, ErrorKind, Result};

use over::Over;

pub use entry::{Outcome, drive, drive_within, run_as_child, run_main, run_test};

/// Names the head of a cluster that others run, as `HOST:PORT`; or, as `unix:PATH`, the socket of an agent on this
/// machine.
pub const ADDRESS_VARIABLE: &str = "MOBULA_ADDRESS";
/// A token that lets this program join that cluster as a driver: `mobula token create --role driver`.
pub const TOKEN_VARIABLE: &str = "MOBULA_TOKEN";
/// Names the queue to which this program's job belongs, unless [`Builder::queue`] does.
pub const QUEUE_VARIABLE: &str = "MOBULA_QUEUE";

/// A running cluster, as its driver sees it. Clones are the same cluster; when the last one goes, the job ends and
/// everything that was started for it with it.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Arc<Runtime>,
    mode: &'static str,
    /// What keeps the cluster up, dropped after the job has ended; nothing where others run it.
    keeper: Mutex<Option<Box<dyn Keeper>>>,
    over: Arc<Over>,
}

/// What was started for a driver; dropping it ends that.
trait Keeper: Send + Sync {
    /// What it still holds, in words, although its job is over: nothing in good order.
    fn left(&self) -> Vec<String>;
}

/// How a cluster is started.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    mode: Mode,
    cpus: Option<f64>,
    resources: Vec<(String, f64)>,
    labels: Vec<(String, String)>,
    store_bytes: Option<u64>,
    mtu: Option<u16>,
    spill_to: Option<std::path::PathBuf>,
    spill: spill::Limits,
    namespace: String,
    queue: Option<String>,
    queues: Vec<mobula_proto::Queue>,
    quiet: bool,
    budget: Option<usize>,
    files: Vec<std::path::PathBuf>,
    /// What this program is given when it is executed again.
    arguments: Vec<String>,
}

#[derive(Clone, Debug, Default)]
enum Mode {
    #[default]
    Auto,
    Embedded,
    Local(u32),
    Remote {
        address: String,
        token: Option<String>,
    },
}

impl Cluster {
    /// The cluster that [`ADDRESS_VARIABLE`] names, or an embedded one where it is unset.
    pub fn auto() -> Builder {
        Builder::default()
    }

    /// Everything in this process: ready in milliseconds, nothing is spawned until a task asks for a process of
    /// its own.
    pub fn embedded() -> Builder {
        Builder { mode: Mode::Embedded, ..Builder::default() }
    }

    /// A head and agents as processes on this machine, this program executed again: nothing to install.
    pub fn local() -> Builder {
        Builder { mode: Mode::Local(1), ..Builder::default() }
    }

    /// A cluster that others run: the head's `HOST:PORT`, or `unix:PATH` of an agent's socket on this machine.
    /// The token comes from [`TOKEN_VARIABLE`] unless [`Builder::token`] is given.
    pub fn connect(address: &str) -> Builder {
        Builder { mode: Mode::Remote { address: address.to_owned(), token: None }, ..Builder::default() }
    }

    /// `embedded`, `local` or `remote`.
    pub fn mode(&self) -> &'static str {
        self.inner.mode
    }

    /// What the cluster looks like now: nodes with what they offer and what is free, jobs, and what waits, why.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let runtime = self.inner.runtime.clone();
        let user = runtime.user().clone();
        let answer = user.spawn_blocking(move || runtime.ask(Question::Snapshot)).await;
        read_json(answer)
    }

    /// Why something waits: what its owner knows of it, joined with what the scheduler knows of its class. `id` is that
    /// of an [`ObjectRef`](crate::ObjectRef) or an actor's handle, as text; or the name of an actor, a job (`job-3`), a
    /// queue (`queue:research`) or a function (`crawl::fetch`).
    pub async fn why(&self, id: impl std::fmt::Display) -> Result<Explanation> {
        let runtime = self.inner.runtime.clone();
        let (user, id) = (runtime.user().clone(), id.to_string());
        let answer = user.spawn_blocking(move || runtime.ask(Question::Why { id })).await;
        read_json(answer)
    }

    /// The nodes that offer anything, by number.
    pub async fn nodes(&self) -> Result<Vec<mobula_proto::NodeId>> {
        let snapshot = self.snapshot().await?;
        let offering = snapshot.nodes.iter().filter(|node| !node.total.is_empty());
        offering
            .map(|node| {
                node.node
                    .parse()
                    .map_err(|error| Error::new(ErrorKind::Internal, format!("the head said {error}")))
            })
            .collect()
    }

    /// What this process still holds: objects owned and borrowed, leases, running calls and living actors. All
    /// zero when a program has let go of everything.
    pub fn leftovers(&self) -> Leftovers {
        let counts = self.inner.runtime.counts();
        let (leases, calls, actors) = self.inner.runtime.load();
        let (store_bytes, _) = self.inner.runtime.store().usage();
        Leftovers { objects: counts.owned + counts.borrowed, leases, calls, actors, store_bytes }
    }

    /// What is held, in words: by this process; and where it started the cluster, by anybody in that, as long as the job
    /// goes on. Blocks while the head is asked.
    fn held(&self) -> Vec<String> {
        let own = self.leftovers();
        if own != Leftovers::default() {
            return vec![format!("this process holds {own:?}")];
        }
        let runtime = &self.inner.runtime;
        if self.inner.mode == remote::MODE || runtime.ended().is_some() {
            return Vec::new();
        }
        match read_json(Ok(runtime.ask(Question::Snapshot))) {
            Ok(snapshot) => held::in_cluster(&snapshot),
            Err(error) => vec![format!("the head does not say what is held: {error}")],
        }
    }

    /// Ends the job: every wait fails from now on, and everything that was started for it goes.
    pub fn shutdown(self) {
        self.inner.end();
    }

    fn new(
        runtime: Arc<Runtime>,
        mode: &'static str,
        keeper: Option<Box<dyn Keeper>>,
        over: Arc<Over>,
    ) -> Self {
        let inner = Arc::new(Inner { runtime, mode, keeper: Mutex::new(keeper), over });
        exit::remember(&inner);
        Self { inner }
    }

    pub(crate) fn runtime(&self) -> &Arc<Runtime> {
        &self.inner.runtime
    }
}

/// What the head said in JSON.
fn read_json<T: serde::de::DeserializeOwned>(answer: Result<Answer, tokio::task::JoinError>) -> Result<T> {
    match answer {
        Ok(Answer::Json(text)) => serde_json::from_str(&text)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("the head's answer: {error}"))),
        Ok(Answer::Failed(failure)) => Err(failure.into()),
        Ok(other) => Err(Error::new(ErrorKind::Internal, format!("the head answered {other:?}"))),
        Err(error) => Err(Error::new(ErrorKind::Internal, error.to_string())),
    }
}

/// What a driver's process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Objects owned or borrowed.
    pub objects: usize,
    /// Leases held (given back half a second after their last use).
    pub leases: usize,
    /// Calls running here.
    pub calls: usize,
    /// Actors living here.
    pub actors: usize,
    /// Bytes of objects in this process's part of the store.
    pub store_bytes: u64,
}

impl Inner {
    /// Ends the job, and what was started for it.
    fn leave(&self) {
        self.end();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(keeper);
    }

    /// Ends the job, but not what was started for it.
    fn end_alone(&self) -> Option<Box<dyn Keeper>> {
        self.end();
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn end(&self) {
        let first = self.over.begin();
        if first {
            self.runtime.job_done();
        }
        self.runtime.end(Failure::new(FailureKind::JobEnded, "the job has ended"));
        if first {
            self.over.wait();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Builder {
    /// How many nodes a local cluster has.
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.mode = Mode::Local(nodes);
        self
    }

    /// CPUs that each node offers; those of the machine unless set. For embedded and local clusters.
    pub fn cpus(mut self, cpus: f64) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// A custom resource that each node offers, or how many of `gpu` or `tpu` in place of those found: they are
    /// believed, and numbered. For embedded and local clusters.
    pub fn resource(mut self, name: &str, amount: f64) -> Self {
        self.resources.push((name.to_owned(), amount));
        self
    }

    /// A label that each node carries. For embedded and local clusters.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The capacity of each node's object store; 30% of its memory unless set. For embedded and local clusters.
    pub fn store_bytes(mut self, bytes: u64) -> Self {
        self.store_bytes = Some(bytes);
        self
    }

    /// Where nodes write objects that their stores have no room for: a folder, in which each makes one of its own, or
    /// with the feature `object-store` a URL of an object store, such as `s3://bucket/folder`, with credentials in the
    /// environment. A folder beside the node's own files unless set. For embedded and local clusters. What cannot be used
    /// is an error of [`Builder::start`].
    ///
    /// What a cluster leaves in a folder whose process is killed, the next one there on a machine of the same name removes,
    /// if the file system has locks. At a URL it stays for ever, since each cluster writes under a name of its own: give the
    /// bucket a lifecycle rule that ends incomplete uploads, and what lies under this prefix an expiry, longer than any
    /// cluster lives.
    pub fn spill_to(mut self, place: impl Into<std::path::PathBuf>) -> Self {
        self.spill_to = Some(place.into());
        self
    }

    /// Disk that each node's spilled objects may take, in bytes; 64 GiB unless set. 0 turns spilling off: a store that is
    /// full then makes writers wait, and fail as `StoreFull`. For embedded and local clusters, like all of these.
    pub fn spill_disk(mut self, bytes: u64) -> Self {
        self.spill.disk_bytes = Some(bytes);
        self
    }

    /// The share of each store, 0 to 1, above which objects that lie only in memory are written ahead of need; 0.8 unless
    /// set. Lower ones keep the disk busy with what may be freed soon; with 1, writers wait for the disk once the store is
    /// full.
    pub fn spill_above(mut self, share: f64) -> Self {
        self.spill.above = Some(share);
        self
    }

    /// The share of each store, at most [`Builder::spill_above`], below which that ends; 0.6 unless set.
    pub fn spill_below(mut self, share: f64) -> Self {
        self.spill.below = Some(share);
        self
    }

    /// Bytes from which on a file of spilled objects takes no more; 64 MiB unless set. Small ones are slow on many disks,
    /// and large ones stay for long, since a file goes with the last object in it.
    pub fn spill_file(mut self, bytes: u64) -> Self {
        self.spill.file_bytes = Some(bytes);
        self
    }

    /// How long the disk may take for one file while somebody waits for room, and give nothing of what is read back; 60 s
    /// unless set.
    pub fn spill_stall(mut self, time: std::time::Duration) -> Self {
        self.spill.stall = Some(time);
        self
    }

    /// The share of each store, 0 to 1, that is kept for what is read back while anything is spilled; 0.125 unless set.
    pub fn restore_share(mut self, share: f64) -> Self {
        self.spill.restore = Some(share);
        self
    }

    /// Bytes of UDP payload in each packet between nodes, 1200 to 65,000; what the path carries unless set. To see on one
    /// machine what a network allows: 1452 is what Ethernet carries. For local clusters, and for what this program sends
    /// to a cluster that it connects to; an embedded one sends nothing. Others are an error of [`Builder::start`].
    pub fn mtu(mut self, bytes: u16) -> Self {
        self.mtu = Some(bytes);
        self
    }

    /// The namespace of this job's named actors; one of its own unless set.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// The queue to which this job belongs: it is charged for all that names no other. Unless set, the one that
    /// `MOBULA_QUEUE` names, or the default queue, which needs no definition. A queue that there is not is an error of
    /// [`Builder::start`].
    pub fn queue(mut self, queue: &str) -> Self {
        self.queue = Some(queue.to_owned());
        self
    }

    /// Defines a queue, after those of which it is a part. For embedded and local clusters; in others, operators do
    /// with `mobula queue set`.
    pub fn define_queue(mut self, queue: mobula_proto::Queue) -> Self {
        self.queues.push(queue);
        self
    }

    fn own_queue(&self) -> String {
        self.queue.clone().or_else(|| std::env::var(QUEUE_VARIABLE).ok()).unwrap_or_default()
    }

    /// A file that travels with the job: hosts find it in their working folder under its own name. In an embedded
    /// cluster, the working folder is the program's.
    pub fn file(mut self, path: impl Into<std::path::PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    fn hashed_files(&self) -> Result<Vec<(String, String, BinaryHash)>> {
        let hashed = self.files.iter().map(|path| {
            let trouble = |error: &dyn std::fmt::Display| {
                Error::new(ErrorKind::Binary, format!("the job's file {}: {error}", path.display()))
            };
            let whole = std::path::absolute(path).map_err(|error| trouble(&error))?;
            let name = whole.file_name().ok_or_else(|| trouble(&"it has no name"))?;
            let hash = mobula_agent::binaries::hash_file(&whole).map_err(|error| trouble(&error))?;
            Ok((name.to_string_lossy().into_owned(), whole.to_string_lossy().into_owned(), hash))
        });
        hashed.collect()
    }

    /// The token for a remote cluster.
    pub fn token(mut self, text: &str) -> Self {
        if let Mode::Remote { token, .. } = &mut self.mode {
            *token = Some(text.to_owned());
        }
        self
    }

    /// How many calls this program may have submitted that are not done yet; 1,048,576 unless set. More of them
    /// make `remote` wait, `try_remote` hand the call back and `submit` wait without a thread. Each takes some
    /// hundred bytes and its arguments.
    pub fn budget(mut self, calls: usize) -> Self {
        self.budget = Some(calls);
        self
    }

    /// Does not print what the job's hosts print.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// For a test harness: executed again, the program must come back to this test, which then becomes what the
    /// process is to be.
    pub(crate) fn test(mut self, name: &str) -> Self {
        let within = name.split_once("::").map_or(name, |(_, rest)| rest);
        self.arguments = [within, "--exact", "--nocapture", "--test-threads=1"].map(str::to_owned).to_vec();
        self
    }

    /// Starts it, or connects to it.
    pub async fn start(self) -> Result<Cluster> {
        let user = tokio::runtime::Handle::current();
        let task = user.clone();
        // Starting waits for processes and sockets; not on a thread that runs async code.
        task.spawn_blocking(move || self.start_blocking(&user))
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?
    }

    pub(crate) fn start_blocking(self, user: &tokio::runtime::Handle) -> Result<Cluster> {
        if let Some(bytes) = self.mtu.filter(|bytes| !MTU_BYTES.contains(bytes)) {
            let (least, most) = (MTU_BYTES.start(), MTU_BYTES.end());
            return Err(Error::new(
                ErrorKind::Limit,
                format!("a packet (mtu) has {least} to {most} bytes, not {bytes}"),
            ));
        }
        self.spill.check()?;
        let mode = match &self.mode {
            Mode::Auto => match std::env::var(ADDRESS_VARIABLE) {
                Ok(address) if !address.is_empty() => Mode::Remote { address, token: None },
                _ => Mode::Embedded,
            },
            other => other.clone(),
        };
        match mode {
            Mode::Auto | Mode::Embedded => embedded::start(&self, user),
            Mode::Local(nodes) => local::start(&self, nodes, user),
            Mode::Remote { address, token } => remote::start(&self, &address, token, user),
        }
    }

    /// Joins as the driver over this link, and prints what its hosts print.
    fn join(
        &self,
        link: (AgentSender, AgentReceiver),
        program: Program,
        rings: bool,
        user: &tokio::runtime::Handle,
    ) -> Result<(Arc<Runtime>, Arc<Over>)> {
        let registry =
            Registry::linked().map_err(|error| Error::new(ErrorKind::UnknownFunction, error.to_string()))?;
        let driver = Driver {
            name: program.name,
            namespace: self.namespace.clone(),
            queue: self.own_queue(),
            program: program.path,
            binary: program.hash,
            arguments: self.arguments.clone(),
            files: if program.hash == UNHASHED { Vec::new() } else { self.hashed_files()? },
        };
        let (runtime, receive) = boot::join(link.0, link.1, Some(driver), registry, user.clone(), rings)?;
        let over = Arc::<Over>::default();
        let receive = over.listen(receive);
        let weak = Arc::downgrade(&runtime);
        link::pump(&runtime, receive, move || {
            if let Some(runtime) = weak.upgrade() {
                runtime.end(Failure::new(FailureKind::Unreachable, "the connection to the agent was lost"));
            }
        })
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        if let Some(calls) = self.budget {
            runtime.set_budget(calls);
        }
        if !self.quiet {
            runtime.set_output(Box::new(entry::print_line));
        }
        Ok((runtime, over))
    }
}

/// Stands for the program in an embedded cluster.
const UNHASHED: BinaryHash = BinaryHash([0; 32]);

/// The program that hosts execute.
struct Program {
    name: String,
    path: String,
    hash: BinaryHash,
}

impl Program {
    /// This program; hashed only where other nodes must be able to name it.
    fn current(hashed: bool) -> Result<Self> {
        let path = std::env::current_exe()
            .map_err(|error| Error::new(ErrorKind::Binary, format!("this program's own file: {error}")))?;
        let hash = if hashed {
            // What runs, even if another file has the name by now.
            mobula_agent::binaries::hash_file(&mobula_agent::service::own_program(path.clone()))
                .map_err(|error| Error::new(ErrorKind::Binary, error.to_string()))?
        } else {
            UNHASHED
        };
        let name =
            path.file_name().map_or_else(|| "job".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, path: path.to_string_lossy().into_owned(), hash })
    }
}

/// The cluster of the current thread.
pub(crate) fn current() -> Result<Arc<Runtime>> {
    context::runtime().ok_or_else(|| {
        Error::new(
            ErrorKind::Internal,
            "there is no cluster: use `#[mobula::main]`, or start one with `Cluster::auto().start()`",
        )
    })
}

/// The cluster of the current thread; an embedded one is started where there is none.
pub(crate) fn current_or_stray() -> Arc<Runtime> {
    static STRAY: std::sync::OnceLock<(Cluster, tokio::runtime::Runtime)> = std::sync::OnceLock::new();
    if let Some(runtime) = context::runtime() {
        return runtime;
    }
    let start = || {
        let user =
            boot::user_runtime(None).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        let cluster = Cluster::auto().start_blocking(user.handle())?;
        Ok::<_, Error>((cluster, user))
    };
    let (cluster, _) = STRAY.get_or_init(|| match std::thread::scope(|scope| scope.spawn(start).join()) {
        Ok(Ok(started)) => started,
        Ok(Err(error)) => {
            eprintln!("mobula: no cluster could be started: {error}");
            std::process::exit(entry::EXIT_NO_CLUSTER);
        }
        Err(_) => std::process::exit(entry::EXIT_NO_CLUSTER),
    });
    cluster.inner.runtime.clone()
}
