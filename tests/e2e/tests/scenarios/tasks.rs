//! Functions that run elsewhere.

use std::time::Duration;

use mobula::{Error, ErrorKind, Result, Serde, prelude::*};
use mobula_e2e::{Env, Witness, env::witness, eventually};

#[mobula::task]
fn square(x: u64) -> u64 {
    x * x
}

#[mobula::task]
async fn add(a: u64, b: u64) -> Result<u64> {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    Ok(a + b)
}

#[mobula::task]
fn total(all: Vec<u64>) -> u64 {
    all.iter().sum()
}

#[mobula::task]
fn nothing() {}

#[mobula::task]
fn describe(name: String, tags: Vec<String>, of: Option<u32>) -> String {
    format!("{name} {tags:?} {of:?}")
}

tokio::task_local! {
    static DEPTH: u64;
}

/// What this finds missing of what code in a tokio task has.
#[mobula::task]
async fn tokio_task(waits: bool) -> Vec<String> {
    let mut missing = Vec::new();
    let mut check = |there: bool, what: &str| {
        if !there {
            missing.push(what.to_owned());
        }
    };
    check(tokio::task::try_id().is_some(), "an id");
    check(tokio::task::block_in_place(|| true), "blocking in place");
    check(DEPTH.scope(7, async { DEPTH.get() }).await == 7, "task locals");
    if waits {
        let mut set = tokio::task::JoinSet::new();
        set.spawn(async { tokio::task::try_id().is_some() });
        check(matches!(set.join_next().await, Some(Ok(true))), "a set of tasks");
        tokio::task::yield_now().await;
        let soon = std::time::Duration::from_micros(1);
        check(tokio::time::timeout(soon, std::future::pending::<()>()).await.is_err(), "time");
        check(tokio::task::spawn_blocking(|| 5).await.is_ok(), "threads that may block");
        check(tokio::task::try_id().is_some(), "an id behind a wait");
    } else {
        // Always ready: but for the budget of a task, it would never let others run.
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let yields = std::future::poll_fn(|poller| {
            let gives_way = (0..10_000).any(|_| {
                sender.send(()).ok();
                receiver.poll_recv(poller).is_pending()
            });
            std::task::Poll::Ready(gives_way)
        });
        check(yields.await, "a budget");
    }
    missing
}

/// The first calls of a function get a task of the runtime each; when they have turned out to be short, the pool's
/// threads poll them.
pub async fn async_code_is_in_a_tokio_task(_env: Env) -> Result<()> {
    for waits in [false, true] {
        for round in 0..20 {
            let calls: Vec<_> = (0..20).map(|_| tokio_task.remote(waits)).collect();
            for missing in mobula::get_all(&calls).await? {
                assert_eq!(missing, Vec::<String>::new(), "waits: {waits}, round {round}");
            }
        }
    }
    Ok(())
}

pub async fn sync_and_async(env: Env) -> Result<()> {
    assert_eq!(square.remote(7).await?, 49);
    assert_eq!(add.remote(1, 2).await?, 3);
    nothing.remote().await?;
    let text = describe.remote("a ray", vec!["flat".to_owned()], Some(2)).await?;
    assert_eq!(text, "a ray [\"flat\"] Some(2)");
    assert_eq!(square.local(3), 9);
    let many: Vec<_> =
        (0..500).map(|i| if i % 2 == 0 { square.remote(i) } else { add.remote(i * i, 0) }).collect();
    let values = mobula::get_all(&many).await?;
    assert_eq!(values, (0..500).map(|i| i * i).collect::<Vec<u64>>());
    assert_eq!(env.cluster.snapshot().await?.jobs.len(), 1);
    Ok(())
}

pub async fn refs_are_arguments(_env: Env) -> Result<()> {
    let squares: Vec<ObjectRef<u64>> = (0..50).map(|i| square.remote(i)).collect();
    assert_eq!(total.remote(&squares[..]).await?, 40_425);
    assert_eq!(total.remote(&squares).await?, 40_425);
    assert_eq!(total.remote(squares.clone()).await?, 40_425);
    assert_eq!(total.remote(&squares[..0]).await?, 0);
    assert_eq!(total.remote(vec![1, 2, 3]).await?, 6);
    let list = mobula::put(&vec![4u64, 5])?;
    assert_eq!(total.remote(&list).await?, 9);
    assert_eq!(add.remote(&squares[3], squares[4].clone()).await?, 25);
    Ok(())
}

#[mobula::task(cpu = 0)]
fn fails_behind(gate: String) -> Result<u64> {
    witness::pass(&gate);
    Err(Error::new(ErrorKind::Returned, "no disk"))
}

pub async fn many_share_an_argument_that_fails(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let gate = witness.gate("gate")?;
    let argument = fails_behind.options().retries(0).remote(gate.place());
    let users: Vec<_> = (0..20_000).map(|_| square.remote(&argument)).collect();
    gate.open()?;
    for user in users {
        let error = user.await.unwrap_err();
        assert!(error.to_string().contains("no disk"), "{error}");
    }
    assert_eq!(square.remote(3).await?, 9, "the driver lives");
    Ok(())
}

pub async fn a_graph_runs_without_its_driver(_env: Env) -> Result<()> {
    let mut layer: Vec<ObjectRef<u64>> = (0..16).map(|i| square.remote(i)).collect();
    while layer.len() > 1 {
        layer = layer.chunks(2).map(|pair| add.remote(&pair[0], &pair[1])).collect();
    }
    let twice = add.remote(&layer[0], &layer[0]);
    assert_eq!(total.remote(vec![twice, layer.remove(0)]).await?, 3 * 1240);
    Ok(())
}

#[mobula::data]
#[derive(Clone, Debug)]
struct Parcel {
    label: String,
    one: ObjectRef<u64>,
    many: Vec<ObjectRef<u64>>,
    perhaps: Option<ObjectRef<String>>,
}

#[mobula::task]
fn pack(from: u64) -> Result<Parcel> {
    Ok(Parcel {
        label: format!("from {from}"),
        one: square.remote(from),
        many: (from..from + 3).map(|i| square.remote(i)).collect(),
        perhaps: Some(mobula::put(&"x".repeat(200_000))?),
    })
}

#[mobula::task]
async fn unpack(parcel: Parcel) -> Result<u64> {
    let mut sum = parcel.one.await?;
    for one in &parcel.many {
        sum += one.await?;
    }
    if let Some(text) = parcel.perhaps {
        sum += text.await?.len() as u64;
    }
    Ok(sum)
}

#[mobula::task]
fn pass_on(parcels: Vec<Parcel>) -> Vec<Parcel> {
    parcels
}

#[mobula::task]
fn later(from: u64) -> ObjectRef<u64> {
    square.remote(from)
}

pub async fn refs_travel_inside_values(_env: Env) -> Result<()> {
    let parcel = pack.remote(2).await?;
    assert_eq!(parcel.label, "from 2");
    assert_eq!(parcel.clone().one.await?, 4);
    assert_eq!(unpack.remote(parcel.clone()).await?, 4 + 4 + 9 + 16 + 200_000);
    let both = pass_on.remote(vec![pack.remote(1), pack.remote(5)]);
    let mut both = both.await?;
    let second = both.remove(1);
    drop(both);
    assert_eq!(unpack.remote(second).await?, 25 + 25 + 36 + 49 + 200_000);
    let inner = later.remote(9).await?;
    assert_eq!(add.remote(&inner, 1).await?, 82);
    assert_eq!(inner.await?, 81);
    Ok(())
}

#[mobula::task]
fn grow(bytes: Vec<u8>, by: usize) -> Vec<u8> {
    let mut all = bytes;
    all.resize(all.len() + by, 7);
    all
}

#[mobula::task]
fn serde_sum(values: Serde<std::collections::BTreeMap<String, u64>>) -> u64 {
    values.values().sum()
}

pub async fn large_arguments_and_results(_env: Env) -> Result<()> {
    let small = grow.remote(vec![1u8; 10], 10);
    assert_eq!(small.await?.len(), 20);
    let large = grow.remote(vec![1u8; 1 << 20], 1 << 20);
    let larger = grow.remote(&large, 5);
    let bytes = larger.await?;
    assert_eq!(bytes.len(), (2 << 20) + 5);
    assert_eq!((bytes[0], bytes[(1 << 20) - 1], bytes[1 << 20], bytes[(2 << 20) + 4]), (1, 1, 7, 7));
    let map = (0..10_000).map(|i| (format!("key {i}"), i)).collect();
    assert_eq!(serde_sum.remote(Serde(map)).await?, 49_995_000);
    Ok(())
}

#[mobula::task]
fn fibonacci(n: u64) -> Result<u64> {
    if n < 2 {
        return Ok(n);
    }
    let (a, b) = (fibonacci.remote(n - 1), fibonacci.remote(n - 2));
    Ok(a.get()? + b.get()?)
}

#[mobula::task]
async fn depth(n: u64) -> Result<u64> {
    if n == 0 { Ok(0) } else { Ok(depth.remote(n - 1).await? + 1) }
}

pub async fn nested_on_one_cpu(_env: Env) -> Result<()> {
    let (deep, wide) = (depth.remote(60), fibonacci.remote(10));
    assert_eq!(wide.await?, 55);
    assert_eq!(deep.await?, 60);
    Ok(())
}

#[mobula::task(cpu = 0)]
fn behind(gate: String) {
    witness::pass(&gate);
}

#[mobula::task(cpu = 0)]
fn items_behind(gate: String) -> impl Iterator<Item = u64> {
    witness::pass(&gate);
    [1, 2].into_iter()
}

#[mobula::task]
fn note(place: String) {
    witness::note(&place);
}

/// Waits for an object, and beside that goes on with what came before.
#[mobula::task]
async fn waits_and_computes(never: Vec<ObjectRef<()>>, busy: String, go: String) -> Result<()> {
    let compute = async {
        witness::note(&busy);
        witness::pass(&go);
    };
    tokio::join!(&never[0], compute).0
}

/// Gives up waiting for an item, and goes on with something else, of which the runtime knows nothing.
#[mobula::task]
async fn gives_up(gate: String, busy: String, go: String) -> Result<u64> {
    let mut items = items_behind.remote(gate);
    let early = tokio::time::timeout(Duration::from_millis(5), items.next()).await;
    assert!(early.is_err(), "there is none yet");
    witness::note(&busy);
    tokio::task::spawn_blocking(move || witness::pass(&go)).await.expect("a gate does not panic");
    Ok(items.next().await.transpose()?.unwrap_or_default())
}

/// Whoever notes that it is busy keeps the one CPU.
async fn is_busy(env: &Env, witness: &Witness) -> Result<ObjectRef<()>> {
    witness.sees("busy").await?;
    let other = note.remote(witness.place("other"));
    eventually("another call to wait for the CPU", async || {
        let waiting = env.cluster.snapshot().await?.waiting;
        Ok(waiting.iter().any(|class| class.function.ends_with("tasks::note")))
    })
    .await?;
    assert!(!witness.saw("other"), "it has the CPU, too");
    Ok(other)
}

pub async fn who_waits_and_computes_keeps_its_cpu(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let [gate, go] = [witness.gate("gate")?, witness.gate("go")?];
    let never = behind.remote(gate.place());
    let call = waits_and_computes.remote(vec![never], witness.place("busy"), go.place());
    let other = is_busy(&env, &witness).await?;
    go.open()?;
    // From now on it waits, and does nothing besides.
    other.await?;
    gate.open()?;
    call.await
}

pub async fn who_gave_up_waiting_keeps_its_cpu(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let [gate, go] = [witness.gate("gate")?, witness.gate("go")?];
    let call = gives_up.remote(gate.place(), witness.place("busy"), go.place());
    let other = is_busy(&env, &witness).await?;
    go.open()?;
    other.await?;
    gate.open()?;
    assert_eq!(call.await?, 1);
    Ok(())
}

#[mobula::task]
fn who() -> Result<(String, u32, u32, String)> {
    let me = mobula::context::current()?;
    assert!(!me.cancelled());
    assert!(me.actor.is_none() && me.devices.is_empty());
    Ok((me.function.to_owned(), me.attempt, me.attempts_max, me.node().to_string()))
}

pub async fn a_task_knows_itself(env: Env) -> Result<()> {
    let (function, attempt, attempts_max, node) = who.options().retries(4).remote().await?;
    assert!(function.ends_with("tasks::who"), "{function}");
    assert_eq!((attempt, attempts_max), (1, 5));
    let nodes: Vec<String> = env.nodes().await?.iter().map(ToString::to_string).collect();
    assert!(nodes.contains(&node), "{node} of {nodes:?}");
    assert!(mobula::context::current().is_err(), "the driver is no task");
    assert!(!mobula::context::cancelled());
    Ok(())
}

#[mobula::task]
fn process() -> u32 {
    std::process::id()
}

#[mobula::task(isolation = "process")]
fn own_process(of: ObjectRefs) -> (u32, u64) {
    (std::process::id(), of.0.iter().sum())
}

#[mobula::data]
struct ObjectRefs(Vec<u64>);

pub async fn a_process_of_its_own(env: Env) -> Result<()> {
    let own = std::process::id();
    let shared = process.remote().await?;
    assert_eq!(shared == own, !env.has_processes());
    let (isolated, sum) = own_process.remote(ObjectRefs(vec![1, 2])).await?;
    assert_eq!(sum, 3);
    assert!(isolated != own && isolated != shared, "{isolated}, {shared}, {own}");
    let again = process.options().isolation("process").remote().await?;
    assert!(again != own && again != shared);
    let large = mobula::put(&ObjectRefs(vec![2; 100_000]))?;
    assert_eq!(own_process.remote(&large).await?.1, 200_000);
    Ok(())
}
