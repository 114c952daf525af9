//! Placement groups.

use std::time::{Duration, Instant};

use mobula::{Cluster, ErrorKind, LabelRule, NodeId, ObjectRef, PlacementGroup, Result, private};
use mobula_e2e::{Env, Witness, env::witness, eventually};
use mobula_rig::{GroupSnapshot, Part, Rig};

use super::driver::Outcome;

#[mobula::task]
fn place() -> Result<NodeId> {
    Ok(mobula::context::current()?.node())
}

/// Runs one more inside of the group that it is given.
#[mobula::task(cpu = 0)]
async fn inner(group: PlacementGroup) -> Result<NodeId> {
    group.ready().await?;
    place.options().in_group(&group, None).remote().await
}

#[mobula::task(cpu = 0.25)]
async fn asleep(begun: String) {
    witness::note(&begun);
    std::future::pending::<()>().await;
}

/// Ends when somebody gives up on it, and notes that.
#[mobula::task(cpu = 0.25)]
fn awake(begun: String, ended: String) {
    witness::note(&begun);
    while !mobula::context::cancelled() {
        std::thread::sleep(Duration::from_millis(5));
    }
    witness::note(&ended);
}

struct Guest;

#[mobula::actor]
impl Guest {
    fn new() -> Self {
        Self
    }

    fn place(&self) -> Result<NodeId> {
        Ok(mobula::context::current()?.node())
    }
}

async fn shown(env: &Env, group: PlacementGroup) -> Result<Option<GroupSnapshot>> {
    let groups = env.cluster.snapshot().await?.groups;
    Ok(groups.into_iter().find(|shown| shown.group == group.id().to_string()))
}

/// CPUs that are free on all nodes together.
async fn free(env: &Env) -> Result<f64> {
    let snapshot = env.cluster.snapshot().await?;
    Ok(snapshot.nodes.iter().filter_map(|node| node.available.get("CPU")).sum())
}

async fn all_is_free(env: &Env) -> Result<()> {
    let total = 2.0 * env.nodes().await?.len() as f64;
    eventually("all CPUs to be free again", async || Ok(free(env).await? == total)).await
}

pub async fn bundles_are_used_and_given_back(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let count = nodes.len();
    let group = PlacementGroup::spread().bundles(count, &[("cpu", 1.0)]).name("gang").reserve().await?;
    assert_eq!(group.bundles() as usize, count);
    group.ready().await?;
    let seen = shown(&env, group).await?.unwrap();
    assert_eq!((seen.placed as usize, seen.bundles as usize, seen.nodes.len()), (count, count, count));
    assert_eq!(
        (seen.arrange.as_str(), seen.resources["CPU"], seen.why.as_str()),
        ("spread", count as f64, "")
    );
    eventually("half of the CPUs to be reserved", async || Ok(free(&env).await? == count as f64)).await?;
    assert_eq!(PlacementGroup::find("gang", "").await?, group);

    let mut used = Vec::new();
    for bundle in 0..group.bundles() {
        used.push(place.options().in_group(&group, bundle).remote().await?);
    }
    used.sort_unstable();
    assert_eq!(used, nodes);
    let guest = Guest::spawn().options(|options| options.cpu(1.0).in_group(&group, 0)).await?;
    assert!(nodes.contains(&guest.place().await?));
    drop(guest);
    assert!(nodes.contains(&inner.remote(group).await?));
    for (wrong, word) in [
        (place.options().cpu(2.0).in_group(&group, 0), "bundle 0"),
        (place.options().cpu(2.0).in_group(&group, None), "any bundle"),
        (place.options().in_group(&group, 1024), "no bundle 1024"),
    ] {
        let error = wrong.remote().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
        assert!(error.to_string().contains(word), "{word} is not in {error}");
    }

    group.remove().await?;
    assert_eq!(shown(&env, group).await?, None);
    let error = place.options().in_group(&group, 0).remote().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    for error in [group.ready().await.unwrap_err(), group.remove().await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    }
    let error = PlacementGroup::find("gang", "").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    // A group in a loop costs nothing that stays.
    for _ in 0..50 {
        PlacementGroup::pack().bundle(&[("cpu", 1.0)]).reserve().await?.give_up()?;
    }
    all_is_free(&env).await
}

pub async fn what_runs_inside_ends_with_it(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let group = PlacementGroup::pack().bundle(&[("cpu", 1.0)]).reserve().await?;
    let dropped = asleep.options().in_group(&group, 0).remote(witness.place("dropped"));
    let own = asleep.options().isolation("process").in_group(&group, 0).remote(witness.place("own"));
    let asked = awake.options().in_group(&group, 0).remote(witness.place("asked"), witness.place("heard"));
    let guest = Guest::spawn().options(|options| options.cpu(0.25).restarts(9).in_group(&group, 0)).await?;
    for begun in ["dropped", "own", "asked"] {
        witness.sees(begun).await?;
    }
    let waits = place.options().in_group(&group, 0).remote();
    group.remove().await?;
    for (what, error) in [
        ("dropped", dropped.await.unwrap_err()),
        ("own", own.await.unwrap_err()),
        ("asked", asked.await.unwrap_err()),
        ("waits", waits.await.unwrap_err()),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unknown, "{what}: {error}");
        assert!(error.to_string().contains(&group.id().to_string()), "{what}: {error}");
    }
    witness.sees("heard").await?;
    eventually("the actor's end", async || match guest.place().await {
        Ok(_) => Ok(false),
        Err(error) => Ok(error.kind() == ErrorKind::ActorDied),
    })
    .await?;
    assert_eq!(witness.count("dropped") + witness.count("own") + witness.count("asked"), 3, "none ran twice");
    all_is_free(&env).await
}

/// Some work.
#[mobula::task]
fn spin() {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2) {
        std::hint::spin_loop();
    }
}

/// More than is worked off while one who waits has his turn.
const FLOOD: usize = 20_000;

/// Whoever always has more to do gives back some for those who wait: for a group, and inside of one.
pub async fn a_flood_passes_nobody_over(env: Env) -> Result<()> {
    let went_on = async |flood: Vec<ObjectRef<()>>| -> Result<()> {
        let (ready, _) = mobula::wait(&flood, flood.len(), Some(Duration::ZERO)).await?;
        assert!(ready.len() < FLOOD, "the flood was over before");
        for one in &flood {
            one.cancel();
        }
        Ok(())
    };
    let outside: Vec<_> = (0..FLOOD).map(|_| spin.remote()).collect();
    mobula::wait(&outside, 1, None).await?;
    let group = PlacementGroup::pack().bundle(&[("cpu", 1.0)]).reserve().await?;
    group.ready().await?;
    went_on(outside).await?;
    let inside: Vec<_> = (0..FLOOD).map(|_| spin.options().in_group(&group, 0).remote()).collect();
    place.options().in_group(&group, 0).remote().await?;
    went_on(inside).await?;
    group.remove().await?;
    all_is_free(&env).await
}

pub async fn impossible_groups_are_named(env: Env) -> Result<()> {
    let one: &[(&str, f64)] = &[("cpu", 1.0)];
    for (wrong, word) in [
        (PlacementGroup::pack().bundle(&[("cpu", 1000.0)]), "1000 CPU"),
        (PlacementGroup::pack().bundle(&[("unobtainium", 1.0)]), "unobtainium"),
        (PlacementGroup::strict_pack().bundles(8, one), "8 CPU"),
        (PlacementGroup::strict_spread().bundles(4, one), "4 bundles"),
        (PlacementGroup::spread().bundles(2, one).by("rack"), "rack"),
        (PlacementGroup::spread().bundles(2, one).by("no rack"), "no rack"),
        (PlacementGroup::pack().bundle(one).label_rule(LabelRule::exists("tape")), "tape"),
        (PlacementGroup::pack(), "no bundles"),
        (PlacementGroup::pack().bundle(&[]), "bundle 0 is empty"),
        (PlacementGroup::pack().bundles(5000, one), "too many"),
        (PlacementGroup::pack().bundle(one).bundle(&[("cpu", -1.0)]), "bundle 1: resource amount -1"),
        (PlacementGroup::pack().bundle(&[("cpu", f64::NAN)]), "NaN"),
        (PlacementGroup::pack().bundle(&[("cpu", 1e300)]), "out of range"),
        (PlacementGroup::pack().bundle(&[("gpu", 1.5)]), "1.5 GPU"),
        (PlacementGroup::pack().bundle(one).detached(), "name"),
    ] {
        let error = wrong.reserve().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Infeasible, "{word}: {error}");
        assert!(error.to_string().contains(word), "{word} is not in {error}");
    }
    let error = PlacementGroup::pack().bundle(one).queue("nowhere").create().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Queue, "{error}");
    let named = PlacementGroup::pack().bundle(one).name("taken").create().await?;
    let error = PlacementGroup::pack().bundle(one).name("taken").create().await.unwrap_err();
    assert!(error.to_string().contains(&named.id().to_string()), "{error}");
    // Those of a job end with it: this one is left.
    assert_eq!(env.cluster.snapshot().await?.groups.len(), 1);
    Ok(())
}

pub async fn a_waiting_group_says_why(env: Env) -> Result<()> {
    let count = env.nodes().await?.len();
    let whole = || PlacementGroup::spread().bundles(count, &[("cpu", 2.0)]);
    let first = whole().reserve().await?;
    let [second, third] = [whole().create().await?, whole().create().await?];
    let why = env.cluster.why(second.id()).await?;
    assert_eq!(why.what, format!("placement group {}", second.id()));
    let wanted = match count {
        1 => "needs 1 bundle of 2 CPU (spread); ".to_owned(),
        count => format!("needs {count} bundles of 2 CPU each (spread); "),
    };
    assert!(why.reasons[0].starts_with(&wanted) && why.reasons[0].contains("; position "), "{why}");
    assert!(env.cluster.why(first.id()).await?.reasons[0].starts_with("all of its"));
    let inside = place.options().in_group(&third, 0).remote();
    eventually("what is to run inside to wait", async || {
        let why = env.cluster.why(inside.id()).await?;
        Ok(why.reasons.get(1).is_some_and(|why| why.contains(&third.id().to_string())))
    })
    .await?;
    let (removed, ()) = tokio::join!(third.ready(), async { third.give_up().unwrap() });
    assert_eq!(removed.unwrap_err().kind(), ErrorKind::Unknown);
    assert_eq!(inside.await.unwrap_err().kind(), ErrorKind::Unknown);
    let (ready, ()) = tokio::join!(second.ready(), async { first.give_up().unwrap() });
    ready?;
    assert_eq!(env.cluster.snapshot().await?.groups.len(), 1);
    second.remove().await?;
    all_is_free(&env).await
}

pub async fn bundles_lie_as_asked(env: Env) -> Result<()> {
    let one: &[(&str, f64)] = &[("cpu", 1.0)];
    for (builder, mut wanted) in [
        (PlacementGroup::strict_spread().bundles(2, one), vec![1, 1]),
        (PlacementGroup::spread().bundles(3, one), vec![1, 2]),
        (PlacementGroup::strict_pack().bundles(2, one), vec![2]),
        (PlacementGroup::pack().bundles(2, one), vec![2]),
        (PlacementGroup::pack().bundles(3, one), vec![1, 2]),
        (PlacementGroup::strict_spread().bundles(2, one).by("rig"), vec![1, 1]),
        (PlacementGroup::strict_pack().bundles(2, one).by("rig"), vec![2]),
        (PlacementGroup::spread().bundles(2, one).label_rule(LabelRule::one_of("rig", ["1"])), vec![2]),
    ] {
        let said = format!("{builder:?}");
        let group = builder.reserve().await?;
        let mut counts: Vec<u32> = shown(&env, group).await?.unwrap().nodes.into_values().collect();
        counts.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(counts, wanted, "{said}");
        group.remove().await?;
    }
    all_is_free(&env).await
}

pub async fn a_lost_bundle_is_reserved_again(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let numbers: Vec<u32> = {
        let rig = env.rig().unwrap();
        (0..2).map(|at| rig.number(at).unwrap()).collect()
    };
    let group = PlacementGroup::spread().bundles(2, &[("cpu", 1.0)]).reserve().await?;
    let mut on = Vec::new();
    for bundle in 0..2 {
        on.push(place.options().in_group(&group, bundle).remote().await?.number);
    }
    let lost = on.iter().position(|number| *number == numbers[1]).unwrap() as u32;
    let ended = witness.place("never");
    let runs = awake.options().in_group(&group, lost).remote(witness.place("begun"), ended);
    witness.sees("begun").await?;
    env.rig().unwrap().kill(Part::Node(1)).unwrap();
    eventually("the head to notice, and to reserve it elsewhere", async || {
        let seen = shown(&env, group).await?.unwrap();
        Ok(seen.placed == 2 && seen.nodes.values().eq(&[2]))
    })
    .await?;
    group.ready().await?;
    eventually("what ran there to run again", async || Ok(witness.count("begun") == 2)).await?;
    assert!(runs.cancel());
    assert_eq!(place.options().in_group(&group, 1 - lost).remote().await?.number, numbers[0]);
    group.remove().await
}

pub fn detached_groups_outlive_their_job() -> Outcome {
    let rig = Rig::nodes(1).cpus(2.0).start()?;
    let builder = || Ok::<_, mobula_rig::Error>(Cluster::connect(&rig.socket(0)?).quiet());
    let (outcome, _) = private::drive(builder()?, async |_: Cluster| {
        let one: &[(&str, f64)] = &[("cpu", 1.0)];
        PlacementGroup::pack().bundle(one).create().await?;
        PlacementGroup::pack().bundle(one).name("gang").namespace("lab").detached().reserve().await
    })?;
    let group = outcome?;
    let groups = rig.snapshot()?.groups;
    assert_eq!(groups.len(), 1, "the other ended with its job: {groups:?}");
    assert_eq!((groups[0].name.as_str(), groups[0].job.as_str(), groups[0].placed), ("lab/gang", "", 1));
    let (outcome, _) = private::drive(builder()?, async |cluster: Cluster| {
        let found = PlacementGroup::find("gang", "lab").await?;
        assert_eq!(found, group);
        place.options().in_group(&found, 0).remote().await?;
        assert!(cluster.why(found.id()).await?.what.contains("lab/gang"));
        found.remove().await
    })?;
    outcome?;
    assert!(rig.snapshot()?.groups.is_empty());
    rig.finish()?;
    Ok(())
}
