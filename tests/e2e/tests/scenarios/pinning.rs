//! Which of several nodes.

use std::{collections::BTreeSet, time::Duration};

use mobula::{ErrorKind, LabelRule, Result, Strategy};
use mobula_e2e::{
    Env, Witness,
    env::{on, witness},
    eventually,
};

#[mobula::task]
fn place(millis: u64) -> Result<u32> {
    std::thread::sleep(Duration::from_millis(millis));
    Ok(mobula::context::current()?.node().number)
}

/// Notes beside `notes` where it runs, and waits to be let on.
#[mobula::task]
fn meet(notes: String, gate: String) -> Result<u32> {
    let here = mobula::context::current()?.node().number;
    witness::note(&format!("{notes}-{here}"));
    witness::pass(&gate);
    Ok(here)
}

struct Settler;

#[mobula::actor]
impl Settler {
    fn new() -> Self {
        Self
    }

    fn place(&self) -> Result<u32> {
        Ok(mobula::context::current()?.node().number)
    }
}

pub async fn spread_and_affinity(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    for node in &nodes {
        let there: Vec<_> = (0..8).map(|_| place.options().strategy(on(*node)).remote(0)).collect();
        assert_eq!(mobula::get_all(&there).await?, [node.number; 8]);
        let settler = Settler::spawn().options(|options| options.strategy(on(*node))).await?;
        assert_eq!(settler.place().await?, node.number);
        assert_eq!(settler.node(), Some(*node));
    }
    let witness = Witness::new()?;
    let gate = witness.gate("met")?;
    let spread_out = || meet.options().strategy(Strategy::Spread).remote(witness.place("node"), gate.place());
    let spread: Vec<_> = (0..8).map(|_| spread_out()).collect();
    for node in &nodes {
        witness.sees(&format!("node-{}", node.number)).await?;
    }
    gate.open()?;
    let places: BTreeSet<u32> = mobula::get_all(&spread).await?.into_iter().collect();
    assert_eq!(places.len(), 2, "both nodes do some of it");
    let nowhere = mobula::NodeId { number: 999, incarnation: 1 };
    let error = place.options().strategy(on(nowhere)).remote(0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
    assert!(error.to_string().contains("node-999"), "{error}");
    let soft = Strategy::Node { node: nowhere, soft: true };
    place.options().strategy(soft).remote(0).await?;
    Ok(())
}

pub async fn labels_choose_among_nodes(env: Env) -> Result<()> {
    let numbers: Vec<u32> = {
        let rig = env.rig().unwrap();
        (0..2).map(|at| rig.number(at).unwrap()).collect()
    };
    for (at, number) in numbers.iter().enumerate() {
        let there = place.options().label("rig", &at.to_string()).remote(0);
        assert_eq!(there.await?, *number);
        let other = LabelRule::NotIn("rig".to_owned(), vec![at.to_string()]);
        assert_eq!(place.options().label_rule(other).remote(0).await?, numbers[1 - at]);
    }
    Ok(())
}

pub async fn waiting_for_a_node_is_explained(env: Env) -> Result<()> {
    let waits = place.options().resource("rare", 1.0).wait_for_node(true).remote(0);
    let elsewhere = place.remote(0).await?;
    assert!(elsewhere > 0);
    eventually("the reason", async || {
        let waiting = env.cluster.snapshot().await?.waiting;
        Ok(waiting
            .iter()
            .any(|class| class.function.ends_with("pinning::place") && class.why.contains("rare")))
    })
    .await?;
    assert!(!waits.is_ready());
    let number = {
        let mut rig = env.rig().unwrap();
        let token = rig.token(mobula_rig::For::Agent, Duration::from_secs(60)).unwrap();
        let offer = mobula_rig::Offer {
            cpus: Some(1.0),
            resources: vec![("rare".to_owned(), 1.0)],
            ..mobula_rig::Offer::default()
        };
        let at = rig.add_node(token, offer).unwrap();
        rig.number(at).unwrap()
    };
    assert_eq!(waits.await?, number);
    Ok(())
}

/// Runs `calls`, each of which notes where it is and waits, until each of these nodes has one; returns how many have
/// begun by then on each.
async fn begun(
    witness: &Witness,
    nodes: &[mobula::NodeId],
    calls: Vec<mobula::ObjectRef<u32>>,
    wanted: usize,
    gate: mobula_e2e::env::witness::Gate,
) -> Result<Vec<usize>> {
    let counts =
        || nodes.iter().map(|node| witness.count(&format!("node-{}", node.number))).collect::<Vec<_>>();
    eventually("so many to have begun", async || Ok(counts().iter().sum::<usize>() >= wanted)).await?;
    let counts = counts();
    gate.open()?;
    mobula::get_all(&calls).await?;
    Ok(counts)
}

pub async fn kin_stay_apart(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let witness = Witness::new()?;
    let gate = witness.gate("apart")?;
    let call = || meet.options().cpu(0.5).apart().remote(witness.place("node"), gate.place());
    let calls: Vec<_> = (0..=nodes.len()).map(|_| call()).collect();
    // One more than there are nodes: it waits, though every node has CPUs left.
    eventually("one to wait for a node without its kin", async || {
        let begun: usize = nodes.iter().map(|node| witness.count(&format!("node-{}", node.number))).sum();
        let waiting = env.cluster.snapshot().await?.waiting;
        // An owner that asked while it was being answered may have asked for one too many.
        let waits =
            waiting.iter().any(|class| class.function.ends_with("pinning::meet") && class.backlog > 0);
        Ok(begun >= nodes.len() && waits)
    })
    .await?;
    let counts = begun(&witness, &nodes, calls, nodes.len(), gate).await?;
    assert_eq!(counts, vec![1; nodes.len()]);
    Ok(())
}

pub async fn a_preference_is_no_condition(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    for node in &nodes {
        let settler = Settler::spawn().options(|options| options.cpu(1.0).on_node(*node)).await?;
        assert_eq!(settler.place().await?, node.number);
        assert_eq!(place.options().prefer_node(*node).remote(0).await?, node.number);
    }
    let witness = Witness::new()?;
    let gate = witness.gate("full")?;
    let call = || meet.options().cpu(2.0).prefer_node(nodes[0]).remote(witness.place("node"), gate.place());
    let calls = nodes.iter().map(|_| call()).collect();
    let counts = begun(&witness, &nodes, calls, nodes.len(), gate).await?;
    assert_eq!(counts, vec![1; nodes.len()], "the one preferred was full with the first");
    Ok(())
}

pub async fn labels_have_fallbacks(env: Env) -> Result<()> {
    let numbers: Vec<u32> = {
        let rig = env.rig().unwrap();
        (0..2).map(|at| rig.number(at).unwrap()).collect()
    };
    let second = LabelRule::one_of("rig", ["1", "7"]);
    let slow = place.options().label("disk", "slow");
    assert_eq!(slow.fallback(&[second.clone(), LabelRule::exists("disk")]).remote(0).await?, numbers[1]);
    let slow = place.options().label("disk", "slow");
    assert!(numbers.contains(&slow.fallback(&[]).remote(0).await?));
    assert_eq!(
        place.options().label_in("rig", &["3", "0"]).label_exists("disk").remote(0).await?,
        numbers[0]
    );
    assert_eq!(place.options().label_not_in("rig", &["0"]).label_absent("tape").remote(0).await?, numbers[1]);
    // The first choice while it has room, then the next.
    let witness = Witness::new()?;
    let gate = witness.gate("full")?;
    let first = || meet.options().cpu(2.0).label("rig", "0").fallback(std::slice::from_ref(&second));
    let calls = (0..2).map(|_| first().remote(witness.place("node"), gate.place())).collect();
    let counts = begun(&witness, &env.nodes().await?, calls, 2, gate).await?;
    assert_eq!(counts, [1, 1]);

    for (wrong, word) in [
        (place.options().label("disk", "slow").fallback(&[LabelRule::exists("tape")]), "disk"),
        (place.options().label_not_in("rig", &["0", "1"]), "rig"),
        (place.options().label_absent("rig"), "rig"),
        (place.options().label("a b", "c"), "a b"),
        ((0..9).fold(place.options(), |options, _| options.fallback(&[])), "9 fallbacks"),
    ] {
        let error = wrong.remote(0).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
        assert!(error.to_string().contains(word), "{word} is not in {error}");
    }
    Ok(())
}
