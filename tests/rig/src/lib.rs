//! Real clusters of processes for tests, benchmarks and examples: a head and agents on ports of the system's choice
//! in temporary folders, with hosts that come and go as jobs need them; any of them can be killed, stopped and
//! resumed. At the end, [`Rig::finish`] looks whether everything was given back.
//!
//! The processes are the program itself, executed again: its `main` is `#[mobula::main]`, or begins with
//! [`become_child`].
//!
//! ```no_run
//! use std::time::Duration;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     if mobula_rig::become_child().is_some() {
//!         return Ok(());
//!     }
//!     let mut rig = mobula_rig::Rig::nodes(2).cpus(2.0).start()?;
//!     println!("MOBULA_ADDRESS={} MOBULA_TOKEN={}", rig.address(), rig.driver_token()?);
//!     rig.kill(mobula_rig::Part::Node(1))?;
//!     rig.wait("the head to notice", Duration::from_secs(30), |rig| Ok(rig.snapshot()?.nodes.len() == 1))?;
//!     rig.finish()?;
//!     Ok(())
//! }
//! ```

#![forbid(unsafe_code)]

mod error;
mod finish;
mod head;
pub mod processes;

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use error::{Error, Result};
pub use head::For;
use mobula::roles::{self, Ready, Task};
pub use mobula::{private::become_child, roles::Offer};
pub use mobula_proto::{
    head::GroupSnapshot,
    inventory::{Hold, Why},
};
use mobula_proto::{head::Snapshot, inventory::Inventory};
use processes::Process;
pub use processes::groups_of;
use rustix::{
    io::Errno,
    process::{Pid, Signal},
};

/// Most nodes of a rig.
pub const NODES_MAX: usize = 64;
/// How long tokens are good.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(120);
/// Between two looks at a condition.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Something that can be killed, stopped and resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The head.
    Head,
    /// The agent of this node, from 0.
    Node(usize),
    /// A host, by its process number; see [`Rig::hosts`].
    Host(u32),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("the head"),
            Self::Node(at) => write!(f, "node {at}"),
            Self::Host(pid) => write!(f, "host {pid}"),
        }
    }
}

/// How a rig is started.
#[derive(Clone, Debug)]
pub struct Builder {
    offers: Vec<Offer>,
    queues: Vec<mobula_proto::Queue>,
    alone: bool,
}

impl Builder {
    /// CPUs that each node offers; those of the machine unless set.
    pub fn cpus(self, cpus: f64) -> Self {
        self.each(|offer| offer.cpus = Some(cpus))
    }

    /// A custom resource that each node offers.
    pub fn resource(self, name: &str, amount: f64) -> Self {
        self.each(|offer| offer.resources.push((name.to_owned(), amount)))
    }

    /// A label that each node carries.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.each(|offer| offer.labels.push((key.to_owned(), value.to_owned())))
    }

    /// Bytes of each node's store.
    pub fn store_bytes(self, bytes: u64) -> Self {
        self.each(|offer| offer.store_bytes = Some(bytes))
    }

    /// Where each node spills to, as [`mobula::Builder::spill_to`] takes it.
    pub fn spill_to(self, place: &Path) -> Self {
        self.each(|offer| offer.spill_to = Some(place.to_owned()))
    }

    /// Users for the jobs of each node, so many, from `first` on; of a rig that runs as root.
    pub fn job_uids(mut self, first: u32, each: u32) -> Self {
        for (at, offer) in (0..).zip(&mut self.offers) {
            let first = first + at * each;
            offer.job_uids = Some(format!("{first}-{}", first + each - 1));
        }
        self
    }

    /// A queue with which the head begins, after those of which it is a part.
    pub fn queue(mut self, queue: mobula_proto::Queue) -> Self {
        self.queues.push(queue);
        self
    }

    /// Changes what one node offers, from 0; nothing where there is no such node.
    pub fn node(mut self, at: usize, change: impl FnOnce(&mut Offer)) -> Self {
        if let Some(offer) = self.offers.get_mut(at) {
            change(offer);
        }
        self
    }

    /// Nothing else opens descriptors in this process meanwhile, so [`Rig::finish`] counts them too.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    fn each(mut self, change: impl Fn(&mut Offer)) -> Self {
        self.offers.iter_mut().for_each(change);
        self
    }

    /// Starts the head, then all agents at once; returns when they are members. Blocks for their start.
    pub fn start(self) -> Result<Rig> {
        let descriptors = self.alone.then(processes::descriptors);
        let program = std::env::current_exe().map_err(error::system("find this program's own file"))?;
        let home = tempfile::Builder::new()
            .prefix("mobula-rig-")
            .tempdir()
            .map_err(error::system("make a folder"))?;
        if self.offers.iter().any(|offer| offer.job_uids.is_some()) {
            // Programs of jobs lie below it.
            let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
            std::fs::set_permissions(home.path(), passable)
                .map_err(error::system("let the users of jobs pass through a folder"))?;
        }
        let count = u32::try_from(self.offers.len()).unwrap_or(u32::MAX);
        let task = Task::Head { home: home.path().join("head"), tokens: count, queues: self.queues };
        let (head, ready) = start("the head", &program, &task)?;
        let Ready::Head { quic, http, tokens, admin } = ready else {
            return Err(unexpected("the head", &ready));
        };
        let started: Vec<Result<Node>> = std::thread::scope(|scope| {
            let program = &program;
            let threads: Vec<_> = self
                .offers
                .into_iter()
                .zip(tokens)
                .enumerate()
                .map(|(at, (offer, token))| {
                    let home = home.path().join(format!("node-{at}"));
                    scope.spawn(move || Node::start(at, program, home, quic, token, offer))
                })
                .collect();
            threads
                .into_iter()
                .enumerate()
                .map(|(at, thread)| {
                    thread.join().unwrap_or_else(|_| Err(Error::NotRunning(Part::Node(at).to_string())))
                })
                .collect()
        });
        let mut rig = Rig {
            nodes: Vec::new(),
            head: Some(head),
            api: head::Head::new(http, admin),
            address: quic,
            program,
            stopped: BTreeSet::new(),
            seen: BTreeSet::new(),
            descriptors,
            home,
        };
        for node in started {
            rig.nodes.push(node?);
        }
        Ok(rig)
    }
}

fn unexpected(who: &str, ready: &Ready) -> Error {
    let source = mobula::Error::new(mobula::ErrorKind::Internal, format!("it said {ready:?}"));
    Error::Start { who: who.to_owned(), source }
}

fn start(who: &str, program: &Path, task: &Task) -> Result<(roles::Process, Ready)> {
    roles::Process::start(program, &[], task).map_err(|source| Error::Start { who: who.to_owned(), source })
}

struct Node {
    process: Option<roles::Process>,
    number: u32,
    socket: PathBuf,
    home: PathBuf,
    /// Where it keeps files of spilled objects, if that is a folder.
    spill: Option<PathBuf>,
}

impl Node {
    fn start(
        at: usize,
        program: &Path,
        home: PathBuf,
        head: SocketAddr,
        token: String,
        offer: Offer,
    ) -> Result<Self> {
        let who = Part::Node(at).to_string();
        let task =
            Task::Node { home: home.clone(), head, token, name: format!("rig-{at}"), offer: Box::new(offer) };
        let (process, ready) = start(&who, program, &task)?;
        let Ready::Node { node, socket, spill } = ready else { return Err(unexpected(&who, &ready)) };
        Ok(Self { process: Some(process), number: node, socket, home, spill })
    }
}

/// A running cluster of processes. Dropping it ends them all.
pub struct Rig {
    // Agents end before their head does.
    nodes: Vec<Node>,
    head: Option<roles::Process>,
    api: head::Head,
    address: SocketAddr,
    program: PathBuf,
    stopped: BTreeSet<u32>,
    /// Processes that were seen as the agents' children, whatever has become of them.
    seen: BTreeSet<Process>,
    descriptors: Option<Vec<String>>,
    home: tempfile::TempDir,
}

impl Rig {
    /// A head and so many agents, at most [`NODES_MAX`].
    pub fn nodes(count: usize) -> Builder {
        Builder { offers: vec![Offer::default(); count.min(NODES_MAX)], queues: Vec::new(), alone: false }
    }

    /// Where the head is, for `MOBULA_ADDRESS`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// A fresh token for one driver, for `MOBULA_TOKEN`.
    pub fn driver_token(&self) -> Result<String> {
        self.token(For::Driver, TOKEN_LIFETIME)
    }

    /// A fresh token.
    pub fn token(&self, role: For, lifetime: Duration) -> Result<String> {
        self.api.token(role, lifetime)
    }

    /// The socket of this node's agent, for drivers on this machine, as `MOBULA_ADDRESS` takes it.
    pub fn socket(&self, node: usize) -> Result<String> {
        let node = self.member(node)?;
        Ok(format!("unix:{}", node.socket.display()))
    }

    /// The number that the head gave this node.
    pub fn number(&self, node: usize) -> Result<u32> {
        self.member(node).map(|node| node.number)
    }

    /// The folder of this node's agent.
    pub fn home(&self, node: usize) -> Result<&Path> {
        self.member(node).map(|node| node.home.as_path())
    }

    /// The cluster, as its head sees it.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.api.snapshot()
    }

    /// What is in the stores.
    pub fn memory(&self) -> Result<Inventory> {
        self.api.memory()
    }

    /// One more node, with this token; see [`Rig::token`]. Returns its place.
    pub fn add_node(&mut self, token: String, offer: Offer) -> Result<usize> {
        let at = self.nodes.len();
        let home = self.home.path().join(format!("node-{at}"));
        self.nodes.push(Node::start(at, &self.program, home, self.address, token, offer)?);
        Ok(at)
    }

    /// Has this node leave, within so many whole seconds; its process ends then.
    pub fn drain(&self, node: usize, within: Duration) -> Result<()> {
        self.member(node)?;
        self.api.drain(&format!("rig-{node}"), within)
    }

    /// Lets a node that drains stay.
    pub fn undrain(&self, node: usize) -> Result<()> {
        self.member(node)?;
        self.api.resume(&format!("rig-{node}"))
    }

    /// Waits until this node's agent has ended by itself, and counts no longer on it.
    pub fn left(&mut self, node: usize, deadline: Duration) -> Result<()> {
        let pid = self.pid(Part::Node(node))?;
        self.wait("a node to leave", deadline, |rig| {
            rig.seen.extend(processes::children(pid));
            Ok(Process::find(pid).is_none_or(|process| !process.is_alive()))
        })?;
        if let Some(process) = self.nodes.get_mut(node).and_then(|node| node.process.take()) {
            process.kill();
        }
        Ok(())
    }

    /// The process number of a part.
    pub fn pid(&self, part: Part) -> Result<u32> {
        let process = match part {
            Part::Head => self.head.as_ref(),
            Part::Node(at) => self.nodes.get(at).and_then(|node| node.process.as_ref()),
            Part::Host(pid) => return Ok(pid),
        };
        process.map(roles::Process::id).ok_or_else(|| Error::NotRunning(part.to_string()))
    }

    /// The hosts of this node: the children of its agent.
    pub fn hosts(&mut self, node: usize) -> Result<Vec<u32>> {
        let children = processes::children(self.pid(Part::Node(node))?);
        self.seen.extend(&children);
        Ok(children.into_iter().map(|child| child.pid).collect())
    }

    /// Kills it (`SIGKILL`). An agent's hosts are left to notice by themselves.
    pub fn kill(&mut self, part: Part) -> Result<()> {
        let pid = self.pid(part)?;
        self.stopped.remove(&pid);
        match part {
            Part::Head => {
                if let Some(head) = self.head.take() {
                    head.kill();
                }
            }
            Part::Node(at) => {
                self.seen.extend(processes::children(pid));
                if let Some(process) = self.nodes.get_mut(at).and_then(|node| node.process.take()) {
                    process.kill();
                }
            }
            Part::Host(pid) => {
                self.seen.extend(Process::find(pid));
                signal(pid, Signal::KILL)?;
            }
        }
        Ok(())
    }

    /// Stops it where it is (`SIGSTOP`), as a machine that hangs or cannot be reached.
    pub fn stop(&mut self, part: Part) -> Result<()> {
        let pid = self.pid(part)?;
        signal(pid, Signal::STOP)?;
        self.stopped.insert(pid);
        Ok(())
    }

    /// Lets it go on (`SIGCONT`).
    pub fn resume(&mut self, part: Part) -> Result<()> {
        let pid = self.pid(part)?;
        self.stopped.remove(&pid);
        signal(pid, Signal::CONT)
    }

    /// Waits until the condition holds; `what` completes the sentence "waited for …". An error of the condition
    /// counts as "not yet" and is part of the error when the time is up.
    pub fn wait(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let met = condition(self);
            if matches!(met, Ok(true)) {
                return Ok(());
            }
            if Instant::now() >= end {
                let detail = met.err().map_or_else(String::new, |error| format!(": {error}"));
                return Err(Error::Late { what: what.to_owned(), waited: deadline, detail });
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    fn member(&self, at: usize) -> Result<&Node> {
        self.nodes.get(at).ok_or_else(|| Error::NotRunning(Part::Node(at).to_string()))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // What is stopped could not end by itself.
        for pid in std::mem::take(&mut self.stopped) {
            // An error means that it is gone.
            let _gone = signal(pid, Signal::CONT);
        }
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            process.ask_to_end();
        }
        self.nodes.clear();
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let what = format!("send {signal:?} to process {pid}");
    let target = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::NotRunning(format!("process {pid}")))?;
    match rustix::process::kill_process(target, signal) {
        Err(Errno::SRCH) => Err(Error::NotRunning(format!("process {pid}"))),
        sent => sent.map_err(|error| error::system(what)(error.into())),
    }
}
