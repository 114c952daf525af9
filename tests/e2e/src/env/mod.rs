//! What a scenario is given.

pub mod witness;

use std::{
    cell::Cell,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mobula::{Cluster, Error, ErrorKind, NodeId, Result, Strategy};
use mobula_rig::Rig;
use rustix::process::{Pid, Signal, kill_process};

/// How the cluster of a scenario is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All in this process.
    Embedded,
    /// A head and two nodes as processes, the driver at one node's socket.
    Local,
    /// A rig of two nodes; the driver joins over the network with a token and an agent of its own.
    Remote,
    /// A rig of two nodes; the driver comes in through the socket of one.
    Socket,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Socket => "socket",
        })
    }
}

/// The cluster of a scenario.
#[derive(Clone)]
pub struct Env {
    /// The cluster.
    pub cluster: Cluster,
    /// How it was made.
    pub mode: Mode,
    pub(crate) rig: Option<Arc<Mutex<Rig>>>,
}

impl Env {
    /// Whether tasks run in other processes than the driver.
    pub fn has_processes(&self) -> bool {
        self.mode != Mode::Embedded
    }

    /// The rig, in the modes that have one.
    pub fn rig(&self) -> Option<MutexGuard<'_, Rig>> {
        self.rig.as_ref().map(|rig| rig.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The isolation under which the death of a host hurts nothing but what is meant to be hurt.
    pub fn expendable(&self) -> &'static str {
        if self.has_processes() { "shared" } else { "process" }
    }

    /// The nodes that offer anything: one embedded, two otherwise.
    pub async fn nodes(&self) -> Result<Vec<NodeId>> {
        self.cluster.nodes().await
    }

    /// Waits until no node's store holds anything.
    pub async fn stores_empty(&self) -> Result<()> {
        let mut last = String::new();
        let end = Instant::now() + WAIT;
        while Instant::now() < end {
            let snapshot = self.cluster.snapshot().await?;
            let used: Vec<_> = snapshot
                .nodes
                .iter()
                .filter(|node| {
                    node.usage.objects > 0 || node.usage.pinned > 0 || node.usage.spill_used_bytes > 0
                })
                .map(|node| format!("{}: {:?}", node.name, node.usage))
                .collect();
            if used.is_empty() && self.cluster.leftovers().store_bytes == 0 {
                return Ok(());
            }
            last = format!("{used:?} and {:?}", self.cluster.leftovers());
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Err(Error::new(ErrorKind::TimedOut, format!("waited {WAIT:?} for empty stores: {last}")))
    }

    /// Waits until the host on each node that runs what has none of its own holds nothing either.
    pub async fn hosts_empty(&self) -> Result<()> {
        if !self.has_processes() {
            return Ok(());
        }
        for node in self.nodes().await? {
            let last = Cell::new((0, 0, 0));
            let empty = async || {
                last.set(held_here.options().strategy(on(node)).remote().await?);
                Ok(last.get() == (0, 1, 0))
            };
            eventually("empty hosts", empty).await.map_err(|error| {
                let (objects, calls, actors) = last.get();
                let what =
                    format!("a host of {node} has {objects} objects, {calls} calls and {actors} actors");
                Error::new(error.kind(), format!("{error}: {what}"))
            })?;
        }
        Ok(())
    }
}

/// Objects owned or borrowed, calls and actors of the host that runs this; it is one of the calls.
#[mobula::task(cpu = 0)]
fn held_here() -> (usize, usize, usize) {
    let Some(runtime) = mobula_host::context::runtime() else { return (0, 0, 0) };
    let (counts, (_leases, calls, actors)) = (runtime.counts(), runtime.load());
    (counts.owned + counts.borrowed, calls, actors)
}

/// A host's process that stands still until this is dropped, in modes without a rig too.
pub struct Standing(Pid);

impl Standing {
    /// Stops it where it is (`SIGSTOP`).
    pub fn still(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::new(ErrorKind::Internal, "that is no process"))?;
        kill_process(pid, Signal::STOP)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("a host cannot be stopped: {error}")))?;
        Ok(Self(pid))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        // An error means that it is gone.
        let _gone = kill_process(self.0, Signal::CONT);
    }
}

/// Where in which file these bytes lie: two mappings of the same shared memory say the same, in whatever process. `None`
/// where they are not in shared memory, or not all of them.
pub fn shared_place(bytes: &[u8]) -> Option<(u64, u64)> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let range = bytes.as_ptr_range();
    let (from, to) = (range.start.addr() as u64, range.end.addr() as u64);
    maps.lines().filter(|line| line.contains("memfd:")).find_map(|line| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        let offset = number(words.nth(1)?)?;
        let inode = words.nth(1)?.parse().ok()?;
        (start <= from && to <= end).then(|| (inode, offset + from - start))
    })
}

/// Exactly this node.
pub fn on(node: NodeId) -> Strategy {
    Strategy::Node { node, soft: false }
}

/// Longest that anything a scenario waits for may take.
pub const WAIT: Duration = Duration::from_secs(15);
/// Between two looks at a condition.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until the condition holds, at most [`WAIT`]; `what` completes the sentence "waited for …".
pub async fn eventually<F: Future<Output = Result<bool>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> Result<()> {
    let end = Instant::now() + WAIT;
    loop {
        if condition().await? {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!("waited {WAIT:?} for {what}, which did not come"),
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
