//! Starts nodes when work waits for them, and has those that nothing needs leave.
//!
//! Once a second the head looks what waits and which nodes there are ([`crate::core::scaling::Scene`]), plans
//! ([`mobula_scheduler::autoscale`]), has a [`Provider`] start what is missing, and drains what is idle. A node that
//! does not come, or cannot be started, is not asked for again at once: the pause doubles with each failure of its type.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mobula_net::identity::Role;
use mobula_proto::head::{NodeTypeSnapshot, ScalingSnapshot};
use mobula_scheduler::autoscale::{self, NodeType, Plan};
use tracing::{info, warn};

use crate::{
    core::{amounts, scaling::Scene, shape},
    service::{Error, Poster},
};

/// Between two looks.
pub const LOOK: Duration = Duration::from_secs(1);
/// How long a node may take from its start until it is a member.
pub const JOIN_WAIT: Duration = Duration::from_secs(300);
/// How long a node that is not needed has to move what it holds to others.
pub const DRAIN_TIME: Duration = Duration::from_secs(600);
/// The pause after a first failure, and the longest.
pub const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Most nodes that are asked for in one look.
pub const STARTS_MAX: u32 = 64;

/// A node that is wanted.
#[derive(Clone, Debug)]
pub struct Order {
    /// What it shall offer.
    pub node_type: NodeType,
    /// With this join token, a secret.
    pub token: String,
    /// The head's UDP address, as the head has it open.
    pub head: SocketAddr,
}

/// Whoever has machines: a cloud, a batch system, or this very machine. Its methods may block.
///
/// A node that it starts carries the labels [`mobula_proto::resource::LABEL_NODE_TYPE`] with its type's name and
/// [`mobula_proto::resource::LABEL_INSTANCE`] with the name that [`Provider::start`] returned.
pub trait Provider: Send + Sync {
    /// Starts a node, which joins by itself; returns what it is called here, unique among those that there are.
    ///
    /// # Errors
    /// Why there will be none, for people.
    fn start(&self, order: &Order) -> Result<String, String>;

    /// What was started and has not ended, whether it has joined or not; by name, with its type's.
    ///
    /// # Errors
    /// Why that is not known at the moment, for people.
    fn instances(&self) -> Result<BTreeMap<String, String>, String>;

    /// Ends one, whatever it does. One that has drained ends by itself, and may need to be given back all the same.
    fn end(&self, instance: &str);
}

/// Which nodes may be started, and by whom.
#[derive(Clone)]
pub struct Scaling {
    /// The types.
    pub types: Vec<NodeType>,
    /// Who starts them.
    pub provider: Arc<dyn Provider>,
}

impl fmt::Debug for Scaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scaling").field("types", &self.types).finish_non_exhaustive()
    }
}

/// What is remembered between two looks.
#[derive(Debug, Default)]
struct Memory {
    /// Those that were started here, by name, with their type's: since when they are waited for, while they have not
    /// joined.
    coming: BTreeMap<String, (String, Option<Instant>)>,
    /// Types that are not started until then, and the pause after the next failure.
    paused: BTreeMap<String, (Instant, Duration)>,
}

impl Memory {
    fn failed(&mut self, of: &str, now: Instant) {
        let (_, pause) = self.paused.get(of).copied().unwrap_or((now, PAUSE.0));
        self.paused.insert(of.to_owned(), (now + pause, (pause * 2).min(PAUSE.1)));
    }

    fn is_paused(&self, of: &str, now: Instant) -> bool {
        self.paused.get(of).is_some_and(|(until, _)| *until > now)
    }

    /// Which of those that run have not joined, by type; those that took too long, and those that are of no use any
    /// more, are to be ended.
    fn sort(
        &mut self,
        running: &BTreeMap<String, String>,
        joined: &BTreeSet<String>,
        now: Instant,
    ) -> (BTreeMap<String, u32>, Vec<String>) {
        let (mut coming, mut end) = (BTreeMap::new(), Vec::new());
        for (name, of) in running {
            if joined.contains(name) {
                self.coming.insert(name.clone(), (of.clone(), None));
                // It can be done.
                self.paused.remove(of);
                continue;
            }
            match &self.coming.entry(name.clone()).or_insert_with(|| (of.clone(), Some(now))).1 {
                Some(since) if now.duration_since(*since) < JOIN_WAIT => {
                    *coming.entry(of.clone()).or_insert(0) += 1;
                }
                Some(_) => {
                    warn!(instance = name, "a node that was started did not join within {JOIN_WAIT:?}");
                    self.failed(of, now);
                    end.push(name.clone());
                }
                // It was a member, and has left or was lost.
                None => end.push(name.clone()),
            }
        }
        let gone: Vec<_> = self.coming.extract_if(.., |name, _| !running.contains_key(name)).collect();
        for (name, (of, since)) in gone {
            if since.is_some() {
                warn!(instance = name, "a node that was started ended before it joined");
                self.failed(&of, now);
            }
        }
        (coming, end)
    }
}

/// Looks again and again, until the head ends.
pub(crate) async fn run(scaling: Scaling, poster: Poster, head: SocketAddr) {
    let mut memory = Memory::default();
    loop {
        match look(&scaling, &mut memory, &poster, head).await {
            Ok(()) => {}
            Err(Error::Ended) => return,
            Err(error) => warn!(%error, "nodes are not started or drained by themselves at the moment"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(
    scaling: &Scaling,
    memory: &mut Memory,
    poster: &Poster,
    head: SocketAddr,
) -> Result<(), Error> {
    let provider = Arc::clone(&scaling.provider);
    let running = blocking(move || provider.instances()).await?;
    let scene = poster.scene().await?;
    let now = Instant::now();
    let (coming, end) = memory.sort(&running, &scene.instances, now);
    for name in end {
        let provider = Arc::clone(&scaling.provider);
        blocking(move || {
            provider.end(&name);
            Ok(())
        })
        .await?;
    }
    // Of a type that makes trouble there are as many as there are.
    let types: Vec<NodeType> = scaling
        .types
        .iter()
        .map(|of| match memory.is_paused(&of.name, now) {
            true => NodeType { min: 0, max: there(&scene, &coming, of), ..of.clone() },
            false => of.clone(),
        })
        .collect();
    let plan = autoscale::plan(&types, &scene.members, &coming, &scene.unmet, scene.now)
        .map_err(|error| Error::Start(error.to_string()))?;
    poster.scaled(told(scaling, memory, &scene, &coming, &plan, now)).await?;
    start(scaling, memory, poster, head, &plan).await?;
    for node in &plan.drain {
        info!(%node, "a node is not needed any more");
        if let Err(error) = poster.drain(node.to_string(), DRAIN_TIME).await {
            warn!(%node, %error, "a node that is not needed cannot be drained");
        }
    }
    Ok(())
}

async fn start(
    scaling: &Scaling,
    memory: &mut Memory,
    poster: &Poster,
    head: SocketAddr,
    plan: &Plan,
) -> Result<(), Error> {
    let mut left = STARTS_MAX;
    for (name, count) in &plan.start {
        let Some(of) = scaling.types.iter().find(|of| of.name == *name) else { continue };
        for _ in 0..(*count).min(left) {
            left -= 1;
            let token = poster.create_token(Role::Agent, JOIN_WAIT).await?;
            let order = Order { node_type: of.clone(), token, head };
            let provider = Arc::clone(&scaling.provider);
            match blocking(move || provider.start(&order)).await {
                Ok(instance) => {
                    info!(instance, "a node is started, since work waits for it");
                    memory.coming.insert(instance, (name.clone(), Some(Instant::now())));
                }
                Err(error) => {
                    warn!(node_type = name, %error, "a node could not be started");
                    memory.failed(name, Instant::now());
                    break;
                }
            }
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| Error::Start(error.to_string()))?
        .map_err(Error::Start)
}

/// How many nodes of a type there are, those on their way included.
fn there(scene: &Scene, coming: &BTreeMap<String, u32>, of: &NodeType) -> u32 {
    let joined = scene.members.iter().filter(|member| member.kind.as_ref() == Some(&of.name)).count();
    u32::try_from(joined).unwrap_or(u32::MAX).saturating_add(coming.get(&of.name).copied().unwrap_or(0))
}

fn told(
    scaling: &Scaling,
    memory: &Memory,
    scene: &Scene,
    coming: &BTreeMap<String, u32>,
    plan: &Plan,
    now: Instant,
) -> ScalingSnapshot {
    let types = scaling.types.iter().map(|of| {
        let coming = coming.get(&of.name).copied().unwrap_or(0);
        NodeTypeSnapshot {
            name: of.name.clone(),
            resources: amounts(&of.resources),
            min: of.min,
            max: of.max,
            nodes: there(scene, &BTreeMap::new(), of),
            coming: coming + plan.start.get(&of.name).copied().unwrap_or(0),
            paused: memory.is_paused(&of.name, now),
        }
    });
    let left = plan.left.iter().take(UNMET_TOLD_MAX).map(shape);
    ScalingSnapshot { types: types.collect(), left: left.collect() }
}

/// Most shapes for which no node could be started that are told to people.
const UNMET_TOLD_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_was_started_joins_or_is_given_up() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let running = BTreeMap::from(["a-1", "a-2"].map(|name| (name.to_owned(), "a".to_owned())));
        let sorted = |memory: &mut Memory, joined: &[&str], after| {
            let (coming, end) = memory.sort(&running, &names(joined), start + after);
            (coming.get("a").copied().unwrap_or(0), end)
        };
        assert_eq!(sorted(&mut memory, &[], Duration::ZERO), (2, vec![]));
        assert_eq!(sorted(&mut memory, &["a-1"], LOOK), (1, vec![]));
        assert!(!memory.is_paused("a", start));
        // The one left again, the other never came.
        assert_eq!(sorted(&mut memory, &[], JOIN_WAIT), (0, vec!["a-1".to_owned(), "a-2".to_owned()]));
        assert!(memory.is_paused("a", start + JOIN_WAIT), "it makes trouble");
        assert!(!memory.is_paused("a", start + JOIN_WAIT + PAUSE.0));
        memory.failed("a", start);
        assert!(memory.is_paused("a", start + PAUSE.0 * 3 / 2), "the pause doubles");
        // One that ends before it joins is trouble, too.
        let mut memory = Memory::default();
        memory.sort(&running, &names(&["a-1"]), start);
        memory.sort(&BTreeMap::new(), &names(&[]), start);
        assert!(memory.is_paused("a", start));
        assert!(memory.coming.is_empty());
    }
}
