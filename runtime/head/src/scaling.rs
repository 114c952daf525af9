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
/// How long a node that is not needed has to move what it holds to others; if it is not empty then, it stays.
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
    /// Those that were started here, by name, with their type's: since when they are waited for, until they have joined or
    /// are given up.
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
                if let Some((_, Some(_))) = self.coming.insert(name.clone(), (of.clone(), None)) {
                    // It can be done.
                    self.paused.remove(of);
                }
                continue;
            }
            let waited = &mut self.coming.entry(name.clone()).or_insert_with(|| (of.clone(), Some(now))).1;
            match waited {
                Some(since) if now.duration_since(*since) < JOIN_WAIT => {
                    *coming.entry(of.clone()).or_insert(0) += 1;
                }
                Some(_) => {
                    warn!(instance = name, "a node that was started did not join within {JOIN_WAIT:?}");
                    // Once, however long it takes to end.
                    *waited = None;
                    self.failed(of, now);
                    end.push(name.clone());
                }
                // It was a member, and has left or was lost; or it was given up.
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
    let types = startable(&scaling.types, memory, &scene, &coming, now);
    // Where much waits and there are many nodes, it takes a good part of a second.
    let (scene, coming, plan) = blocking(move || {
        let plan = autoscale::plan(&types, &scene.members, &coming, &scene.unmet, scene.now);
        Ok((scene, coming, plan.map_err(|error| error.to_string())?))
    })
    .await?;
    poster.scaled(told(scaling, memory, &scene, &coming, &plan, now)).await?;
    // Before nodes are started, which may take long: what was seen is true no longer then.
    poster.settle(plan.stay.clone(), plan.drain.clone(), DRAIN_TIME).await?;
    start(scaling, memory, poster, head, &plan).await
}

/// The types as they are now: of one that makes trouble there are as many as there are.
fn startable(
    types: &[NodeType],
    memory: &Memory,
    scene: &Scene,
    coming: &BTreeMap<String, u32>,
    now: Instant,
) -> Vec<NodeType> {
    let as_it_is = |of: &NodeType| {
        let there = there(scene, coming, of);
        match memory.is_paused(&of.name, now) {
            true => NodeType { min: of.min.min(there), max: there, ..of.clone() },
            false => of.clone(),
        }
    };
    types.iter().map(as_it_is).collect()
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
    use mobula_proto::{NodeId, Quantity, Resources};
    use mobula_scheduler::{Millis, autoscale::Member};

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
        // However long it then takes to end, it failed once.
        for after in 1..10 {
            assert_eq!(sorted(&mut memory, &[], JOIN_WAIT + LOOK * after).1.len(), 2);
        }
        memory.sort(&BTreeMap::new(), &names(&[]), start + JOIN_WAIT + LOOK * 10);
        assert!(!memory.is_paused("a", start + JOIN_WAIT + PAUSE.0));
        memory.failed("a", start);
        assert!(memory.is_paused("a", start + PAUSE.0 * 3 / 2), "the pause doubles");
        assert!(!memory.is_paused("a", start + PAUSE.0 * 2));
        // One that ends before it joins is trouble, too.
        let mut memory = Memory::default();
        memory.sort(&running, &names(&["a-1"]), start);
        memory.sort(&BTreeMap::new(), &names(&[]), start);
        assert!(memory.is_paused("a", start));
        assert!(memory.coming.is_empty());
        // That there is one already does not say that there may be more of them, but that one more has come does.
        let one = BTreeMap::from([("a-1".to_owned(), "a".to_owned())]);
        memory.sort(&one, &names(&["a-1"]), start);
        memory.sort(&one, &names(&["a-1"]), start + LOOK);
        assert!(memory.is_paused("a", start + LOOK));
        memory.sort(&running, &names(&["a-1"]), start + LOOK);
        memory.sort(&running, &names(&["a-1", "a-2"]), start + LOOK * 2);
        assert!(!memory.is_paused("a", start + LOOK * 2));
    }

    #[test]
    fn a_type_that_makes_trouble_keeps_its_minimum() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let types = [NodeType {
            name: "a".to_owned(),
            resources: Resources::cpu(Quantity::ONE),
            labels: Vec::new(),
            min: 2,
            max: 4,
            idle_timeout: Millis(0),
        }];
        let member = |number| Member {
            node: NodeId { number, incarnation: 1 },
            kind: Some("a".to_owned()),
            available: Resources::cpu(Quantity::ONE),
            devices: Vec::new(),
            labels: Vec::new(),
            idle_since: Some(Millis(0)),
            draining: false,
            may_stay: false,
        };
        let mut plan = |count, coming: u32| {
            let scene = Scene { members: (1..=count).map(member).collect(), ..Scene::default() };
            let coming = BTreeMap::from([("a".to_owned(), coming)]);
            memory.failed("a", now);
            let types = startable(&types, &memory, &scene, &coming, now);
            let plan = autoscale::plan(&types, &scene.members, &coming, &[], Millis(1000)).unwrap();
            (plan.start.len(), plan.drain.len())
        };
        assert_eq!(plan(2, 0), (0, 0));
        assert_eq!(plan(1, 0), (0, 0), "nor is another started now");
        assert_eq!(plan(1, 1), (0, 0));
        assert_eq!(plan(3, 0), (0, 1));
        assert_eq!(plan(0, 0), (0, 0));
    }
}
