//! Memory limits of processes, where the machine lets agents set them.

use mobula::{Cluster, ErrorKind, ObjectRef, Result, Tensor, private};
use mobula_e2e::{Env, Witness, env::witness, eventually, skipped};
use mobula_rig::{Offer, Part, Rig, groups_of};

use super::driver::Outcome;

const MIB: usize = 1 << 20;
/// The label that says whether a node sets limits.
const LABEL: &str = "mobula.io/memory-limit";

/// Whether all nodes set limits; says so where one does not.
async fn is_enforced(cluster: &Cluster) -> Result<bool> {
    let nodes = cluster.snapshot().await?.nodes;
    let found = nodes.iter().filter(|node| node.total.get("CPU").is_some_and(|cpus| *cpus > 0.0));
    let enforced = found.map(|node| node.labels.get(LABEL).map(String::as_str));
    let all = enforced.collect::<Vec<_>>().iter().all(|said| *said == Some("enforced"));
    if !all {
        skipped("this machine's control groups let no agent limit memory (see the agents' logs)");
    }
    Ok(all)
}

/// Has so much memory at once, and nothing of it in the end.
#[mobula::task(memory = "64 MiB", isolation = "process", retries = 0)]
fn take(bytes: usize, begun: String) -> usize {
    witness::note(&begun);
    std::hint::black_box(vec![1u8; bytes]).len()
}

/// Writes so many objects of 16 MiB, and keeps them until it returns.
#[mobula::task(memory = "64 MiB", isolation = "process", retries = 0)]
fn store(count: usize) -> Result<usize> {
    let value = Tensor::from_vec(&[16 * MIB], vec![1u8; 16 * MIB])?;
    let kept: Vec<ObjectRef<Tensor>> = (0..count).map(|_| mobula::put(&value)).collect::<Result<_>>()?;
    Ok(kept.len())
}

struct Hoard(Vec<Vec<u8>>);

#[mobula::actor(memory = "64 MiB", isolation = "process")]
impl Hoard {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, bytes: usize) -> usize {
        self.0.push(vec![1; bytes]);
        self.0.len()
    }
}

pub async fn a_process_is_held_to_its_memory(env: Env) -> Result<()> {
    if !is_enforced(&env.cluster).await? {
        return Ok(());
    }
    let witness = Witness::new()?;
    let fits = take.remote(56 * MIB, witness.place("fits")).await?;
    assert_eq!(fits, 56 * MIB);
    let error = take.options().retries(1).remote(256 * MIB, witness.place("runs")).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::OutOfMemory, "MOB3016"), "{error}");
    let text = error.to_string();
    assert!(text.contains("ran out of its memory limit of 64.0 MiB"), "{text}");
    assert!(text.contains("take#") && text.contains("(attempt 2 of 2)"), "{text}");
    assert_eq!(witness.count("runs"), 2, "a retry may need less");
    // What it writes into the store is bounded there.
    assert_eq!(store.remote(10).await?, 10);
    // Asking for more gets more.
    let more = take.options().memory("512 MiB").remote(256 * MIB, witness.place("more")).await?;
    assert_eq!(more, 256 * MIB);
    Ok(())
}

pub async fn an_actor_is_held_to_its_memory(env: Env) -> Result<()> {
    if !is_enforced(&env.cluster).await? {
        return Ok(());
    }
    let hoard = Hoard::spawn().options(|options| options.restarts(1)).await?;
    assert_eq!(hoard.add(40 * MIB).await?, 1);
    let error = hoard.add(256 * MIB).await.unwrap_err();
    assert!(error.to_string().contains("ran out of its memory limit of 64.0 MiB"), "{error}");
    // It is another one, with nothing in it.
    eventually("the actor to start again", async || Ok(hoard.add(1).await.is_ok_and(|count| count <= 2)))
        .await
}

/// An agent that is killed removes nothing; the next one does.
pub fn a_killed_agents_groups_are_removed() -> Outcome {
    let mut rig = Rig::nodes(2).cpus(1.0).start()?;
    let pid = rig.pid(Part::Node(1))?;
    let offer = Offer { labels: vec![("later".to_owned(), "yes".to_owned())], ..Offer::default() };
    let token = rig.token(mobula_rig::For::Agent, std::time::Duration::from_secs(60))?;
    let builder = Cluster::connect(&rig.socket(0)?).quiet();
    let there = &mut rig;
    let (outcome, _) = private::drive(builder, async |cluster: Cluster| {
        if !is_enforced(&cluster).await? {
            return Ok::<_, mobula::Error>(());
        }
        let number = there.number(1).map_err(|error| failed(&error))?;
        let nodes = cluster.nodes().await?;
        let node = nodes.into_iter().find(|node| node.number == number);
        let far = mobula_e2e::env::on(node.ok_or_else(|| failed(&"the node is not there"))?);
        let witness = Witness::new()?;
        take.options().strategy(far).remote(MIB, witness.place("far")).await?;
        assert_eq!(groups_of(pid).len(), 1, "its host is idle, and limited");
        there.kill(Part::Node(1)).map_err(|error| failed(&error))?;
        assert_eq!(groups_of(pid).len(), 1, "nobody removed it");
        // The next one looks when it starts, and each time that it limits a host.
        there.add_node(token, offer).map_err(|error| failed(&error))?;
        let later = take.options().label("later", "yes");
        eventually("the groups of the killed agent to go", async || {
            later.remote(MIB, witness.place("later")).await?;
            Ok(groups_of(pid).is_empty())
        })
        .await
    })?;
    outcome?;
    rig.finish()?;
    Ok(())
}

fn failed(error: &dyn std::fmt::Display) -> mobula::Error {
    mobula::Error::new(ErrorKind::Internal, error.to_string())
}
