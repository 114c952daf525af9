//! Resources and labels.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use mobula::{Barrier, ErrorKind, NodeId, ObjectRef, Result, Tensor, View};
use mobula_e2e::{
    Env, Witness,
    env::{WAIT, on, witness},
    eventually,
};

/// How many run at once in this process, and the most that ever did.
static NOW: AtomicUsize = AtomicUsize::new(0);

#[mobula::task(cpu = 0)]
fn crowd(millis: u64) -> usize {
    let here = NOW.fetch_add(1, Ordering::SeqCst) + 1;
    std::thread::sleep(Duration::from_millis(millis));
    NOW.fetch_sub(1, Ordering::SeqCst);
    here
}

#[mobula::task]
fn nothing() {}

pub async fn resources_bound_what_runs_at_once(env: Env) -> Result<()> {
    let one_by_one: Vec<_> = (0..12).map(|_| crowd.options().resource("token", 1.0).remote(3)).collect();
    assert_eq!(mobula::get_all(&one_by_one).await?, [1; 12]);
    let halves: Vec<_> = (0..12).map(|_| crowd.options().resource("token", 0.5).remote(3)).collect();
    assert!(mobula::get_all(&halves).await?.iter().all(|here| *here <= 2));
    let snapshot = env.cluster.snapshot().await?;
    let tokens: f64 = snapshot.nodes.iter().filter_map(|node| node.total.get("token")).sum();
    assert_eq!(tokens, if env.has_processes() { 2.0 } else { 1.0 });
    Ok(())
}

/// Until the gate is open, which is no wait that the runtime knows of: it keeps all that it was given.
#[mobula::task(cpu = 0)]
fn stay(came: String, gate: String) {
    witness::note(&came);
    witness::pass(&gate);
}

/// So many that each need this are on the node together, and one more waits for room there until one of them ends.
async fn together_on(env: &Env, node: NodeId, most: usize, memory: &str) -> Result<()> {
    let witness = Witness::new()?;
    let place = |at: usize| format!("task {at} of {memory}");
    let here = |count: usize| (0..count).filter(|at| witness.saw(&place(*at))).count();
    let gates: Vec<_> = (0..=most).map(|at| witness.gate(&format!("gate {at}"))).collect::<Result<_>>()?;
    let start = |at: usize| -> ObjectRef<()> {
        let options = stay.options().memory(memory).strategy(on(node));
        options.remote(witness.place(&place(at)), gates[at].place())
    };
    let mut tasks: Vec<_> = (0..most).map(start).collect();
    eventually(&format!("{most} tasks of {memory} at once"), async || Ok(here(most) == most)).await?;
    tasks.push(start(most));
    let waits = async || {
        let said = env.cluster.why(tasks[most].id().to_string()).await?;
        assert!(!witness.saw(&place(most)), "more than {most} tasks of {memory} at once: {said}");
        Ok(said.reasons.len() > 1 && said.reasons[0].starts_with("waits for a lease"))
    };
    eventually(&format!("one more task of {memory} to wait for room"), waits).await?;
    gates[0].open()?;
    tasks.remove(0).await?;
    witness.sees(&place(most)).await?;
    gates.iter().try_for_each(|gate| gate.open())?;
    mobula::get_all(&tasks).await.map(drop)
}

pub async fn memory_is_admitted(env: Env) -> Result<()> {
    // Each node offers four.
    for node in env.nodes().await? {
        together_on(&env, node, 2, "2GiB").await?;
        together_on(&env, node, 1, "3 GiB").await?;
    }
    let error = nothing.options().memory("5GiB").remote().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
    assert!(error.to_string().contains("memory"), "{error}");
    Ok(())
}

/// Bytes of [`heavy`].
const HEAVY_BYTES: usize = 4 << 20;

#[mobula::task(cpu = 0)]
fn heavy() -> Result<Tensor> {
    Tensor::zeros::<u8>(&[HEAVY_BYTES])
}

#[mobula::task]
fn weigh(tensor: View<Tensor>, _other: View<Tensor>) -> Result<(NodeId, usize)> {
    Ok((mobula::context::current()?.node(), tensor.tensor()?.len()))
}

pub async fn tasks_go_where_their_arguments_are(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let mut heavies = Vec::new();
    for node in &nodes {
        heavies.push(heavy.options().strategy(on(*node)).remote());
    }
    let light = mobula::put(&Tensor::zeros::<u8>(&[HEAVY_BYTES / 4])?)?;
    mobula::wait(&heavies, heavies.len(), None).await?;
    // One by one, so that wherever the argument lies nobody else is: a lease that is at hand elsewhere does not count.
    for round in 0..3 {
        for (node, tensor) in nodes.iter().zip(&heavies) {
            let ran = weigh.remote(tensor, &light).await?;
            assert_eq!(ran, (*node, HEAVY_BYTES), "in round {round}");
        }
    }
    Ok(())
}

/// All of a node, until it is told to end.
#[mobula::task(cpu = 2)]
fn occupy(here: String, end: String) {
    witness::note(&here);
    witness::pass(&end);
}

/// Below what any wait for the sake of locality would take.
const AT_ONCE: Duration = Duration::from_millis(250);

pub async fn tasks_do_not_wait_for_the_node_of_their_arguments(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let (near, far) = (nodes[0], nodes[1]);
    let witness = Witness::new()?;
    let end = witness.gate("end")?;
    let tensor = heavy.options().strategy(on(near)).remote();
    let light = mobula::put(&Tensor::zeros::<u8>(&[1])?)?;
    mobula::wait(std::slice::from_ref(&tensor), 1, None).await?;
    assert_eq!(weigh.remote(&tensor, &light).await?, (near, HEAVY_BYTES), "while there is room");
    let busy = occupy.options().strategy(on(near)).remote(witness.place("busy"), end.place());
    witness.sees("busy").await?;
    // Each of a class of its own, which has no lease anywhere; the first also waits for a process.
    let mut soonest = Duration::MAX;
    for at in 0..6 {
        let options = weigh.options().cpu(1.0 - f64::from(at) / 100.0);
        let since = Instant::now();
        assert_eq!(options.remote(&tensor, &light).await?, (far, HEAVY_BYTES));
        soonest = soonest.min(since.elapsed());
    }
    assert!(soonest < AT_ONCE, "the soonest of them took {soonest:?}");
    end.open()?;
    busy.await
}

pub async fn fractions_and_zero(_env: Env) -> Result<()> {
    let most = async |cpu: f64| -> Result<usize> {
        let all: Vec<_> = (0..24).map(|_| crowd.options().cpu(cpu).remote(3)).collect();
        Ok(mobula::get_all(&all).await?.into_iter().max().unwrap_or(0))
    };
    assert_eq!(most(1.0).await?, 1);
    assert!(most(0.25).await? <= 4);
    assert_eq!(crowd.options().cpu(0.0).remote(0).await?, 1);
    Ok(())
}

pub async fn the_impossible_is_named(_env: Env) -> Result<()> {
    let error = nothing.options().resource("unobtainium", 1.0).remote().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
    assert!(error.to_string().contains("unobtainium"), "{error}");
    let error = nothing.options().cpu(10_000.0).remote().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
    assert!(error.to_string().contains("CPU") && error.to_string().contains("10000"), "{error}");
    let error = nothing.options().gpu(64.0).remote().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
    nothing.remote().await
}

pub async fn labels_choose(_env: Env) -> Result<()> {
    nothing.options().label("disk", "fast").remote().await?;
    nothing.options().label_rule(mobula::LabelRule::Exists("disk".to_owned())).remote().await?;
    nothing.options().label_rule(mobula::LabelRule::Absent("tape".to_owned())).remote().await?;
    let error = nothing.options().label("disk", "slow").remote().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
    assert!(error.to_string().contains("disk"), "{error}");
    Ok(())
}

pub async fn mistakes_are_reported_by_the_ref(_env: Env) -> Result<()> {
    for (wrong, word) in [
        (nothing.options().cpu(-1.0), "CPU"),
        (nothing.options().memory("much"), "memory"),
        (nothing.options().isolation("hermit"), "hermit"),
    ] {
        let error = wrong.remote().await.unwrap_err();
        assert!(error.to_string().contains(word), "{word} is not in {error}");
    }
    Ok(())
}

/// Short, until it is told otherwise; then as long as it takes for somebody else to run on another node.
#[mobula::task(cpu = 1, retries = 0)]
fn sudden(long: bool, here: String, done: String) -> Result<u32> {
    let node = mobula::context::current()?.node().number;
    if long {
        witness::note(&format!("{here} {node}"));
        witness::pass(&done);
    }
    Ok(node)
}

pub async fn what_waits_behind_slow_work_goes_to_another_node(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let (here, gate) = (witness.place("on"), witness.gate("done")?);
    let done = gate.place();
    // They are known to be short, so many are pushed ahead to whoever has a lease.
    let short: Vec<_> = (0..200).map(|_| sudden.remote(false, here.as_str(), done.as_str())).collect();
    mobula::get_all(&short).await?;
    // More than one node has slots for.
    let long: Vec<_> = (0..4).map(|_| sudden.remote(true, here.as_str(), done.as_str())).collect();
    let nodes = env.nodes().await?;
    for node in &nodes {
        witness.sees(&format!("on {}", node.number)).await?;
    }
    gate.open()?;
    let mut ran = mobula::get_all(&long).await?;
    ran.sort_unstable();
    ran.dedup();
    assert_eq!(ran, nodes.iter().map(|node| node.number).collect::<Vec<_>>());
    Ok(())
}

/// The variables of the process that runs this, one a line, without those that are absent.
#[mobula::task]
fn environment() -> String {
    let names = [
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "TPU_VISIBLE_CHIPS",
        "OMP_NUM_THREADS",
        "RAYON_NUM_THREADS",
    ];
    let present = names.iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
    std::iter::once(std::process::id().to_string()).chain(present).collect::<Vec<_>>().join(" ")
}

/// The process, and its variables with lists of devices as how many these are.
fn told(seen: &str) -> (u32, String) {
    let mut words = seen.split(' ');
    let process = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let counted = words.map(|word| match word.split_once('=') {
        Some((name, list)) if name.ends_with("_DEVICES") || name.ends_with("_CHIPS") => {
            let mut devices: Vec<&str> =
                list.split(',').filter(|one| !one.is_empty() && *one != "-1").collect();
            devices.sort_unstable();
            devices.dedup();
            format!("{name}:{}", devices.len())
        }
        _ => word.to_owned(),
    });
    (process, counted.collect::<Vec<_>>().join(" "))
}

pub async fn what_is_granted_is_what_the_process_sees(env: Env) -> Result<()> {
    // Each node states four GPUs and eight TPU chips.
    let here = on(env.nodes().await?[0]);
    let options = || environment.options().strategy(here.clone());
    let visible = |gpus: u32, chips: u32| {
        format!("CUDA_VISIBLE_DEVICES:{gpus} HIP_VISIBLE_DEVICES:0 TPU_VISIBLE_CHIPS:{chips}")
    };
    let none = visible(0, 0);
    let threads = |count: u32| format!("OMP_NUM_THREADS={count} RAYON_NUM_THREADS={count}");
    let (own, seen) = told(&options().isolation("process").remote().await?);
    assert_eq!(seen, format!("{none} {}", threads(1)));
    let (_, seen) = told(&options().isolation("process").cpu(1.5).remote().await?);
    assert_eq!(seen, format!("{none} {}", threads(2)));
    let one_gpu = format!("{} {}", visible(1, 0), threads(1));
    let (with_gpu, seen) = told(&options().gpu(1.0).remote().await?);
    assert_eq!(seen, one_gpu);
    assert!(with_gpu != own && with_gpu != std::process::id(), "{with_gpu}, {own}");
    // The next of the same job with the same device finds the process warm.
    assert_eq!(told(&options().gpu(1.0).remote().await?), (with_gpu, one_gpu));
    let (_, seen) = told(&options().gpu(2.0).remote().await?);
    assert_eq!(seen, format!("{} {}", visible(2, 0), threads(1)));
    let (_, seen) = told(&options().tpu(2.0).remote().await?);
    assert_eq!(seen, format!("{} {}", visible(0, 2), threads(1)));
    let error = options().tpu(3.0).remote().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Infeasible, "{error}");
    assert!(error.to_string().contains("1, 2, 4 or 8"), "{error}");
    if env.has_processes() {
        // The shared host has the threads of all the node's CPUs.
        let (_, seen) = told(&options().remote().await?);
        assert_eq!(seen, format!("{none} {}", threads(2)));
    }
    Ok(())
}

/// Who runs it, once all parties do.
#[mobula::task(cpu = 0.5, isolation = "process")]
async fn together(barrier: Barrier) -> Result<u32> {
    barrier.wait(WAIT).await?;
    Ok(std::process::id())
}

pub async fn each_that_runs_alone_has_a_process(env: Env) -> Result<()> {
    let here = on(env.nodes().await?[0]);
    let barrier = Barrier::new(4).await?;
    let run = |_| together.options().strategy(here.clone()).remote(barrier.clone());
    let mut processes = mobula::get_all(&(0..4).map(run).collect::<Vec<_>>()).await?;
    processes.sort_unstable();
    processes.dedup();
    assert_eq!(processes.len(), 4, "each has its own: {processes:?}");
    Ok(())
}

pub async fn devices_are_shared_out_and_never_twice(env: Env) -> Result<()> {
    let nodes = env.nodes().await?.len();
    let witness = Witness::new()?;
    let gate = witness.gate("done")?;
    let all: Vec<_> = (0..4 * nodes)
        .map(|n| holds_a_gpu.options().gpu(1.0).remote(witness.place(&format!("holds {n}")), gate.place()))
        .collect();
    for n in 0..4 * nodes {
        witness.sees(&format!("holds {n}")).await?;
    }
    gate.open()?;
    let mut held = mobula::get_all(&all).await?;
    held.sort();
    held.dedup();
    // Each was held by one alone, while all of them were.
    assert_eq!(held.len(), 4 * nodes, "{held:?}");
    Ok(())
}

#[mobula::task(cpu = 0, retries = 0)]
fn holds_a_gpu(here: String, done: String) -> Result<(NodeId, String)> {
    witness::note(&here);
    witness::pass(&done);
    Ok((mobula::context::current()?.node(), std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default()))
}
