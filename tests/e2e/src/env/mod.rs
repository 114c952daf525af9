//! What a scenario is given.

pub mod witness;

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mobula::{Cluster, Error, ErrorKind, NodeId, Result, Strategy};
use mobula_rig::Rig;

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
