//! Processes that stand still for a while, as on a machine that swaps or is suspended.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use mobula::{Error, ErrorKind, NodeId, ObjectRef, Result, blocking};
use mobula_e2e::{
    Env, Part, Witness,
    env::{Standing, WAIT, on, witness},
    eventually,
};

/// Longer than a lease's term, shorter than it takes to give up a node or a driver.
const PAUSE: Duration = Duration::from_millis(1500);
/// Calls of each kind.
const CALLS: usize = 40;

#[mobula::task(cpu = 0.25)]
fn noted(place: String, at: usize) -> usize {
    witness::note(&place);
    std::thread::sleep(Duration::from_millis(20));
    at
}

struct Counter {
    count: usize,
}

#[mobula::actor]
impl Counter {
    fn new() -> Self {
        Self { count: 0 }
    }

    fn add(&mut self) -> usize {
        std::thread::sleep(Duration::from_millis(10));
        self.count += 1;
        self.count
    }

    fn quick(&mut self) -> usize {
        self.count += 1;
        self.count
    }

    fn process(&self) -> u32 {
        std::process::id()
    }
}

/// Tasks anywhere and calls of an actor on each node, while `stop` stands still for a while in their midst.
async fn go_on(env: &Env, stop: impl AsyncFn(NodeId, u32) -> Part) -> Result<()> {
    let witness = Witness::new()?;
    let mut counters = Vec::new();
    for node in env.nodes().await? {
        let counter = Counter::spawn().options(|options| options.cpu(0.25).strategy(on(node))).await?;
        counters.push((node, counter));
    }
    let (node, counter) = &counters[counters.len() - 1];
    let part = stop(*node, counter.process().await?).await;
    let fact = |at: usize| format!("task {at}");
    let tasks: Vec<_> = (0..CALLS).map(|at| noted.remote(witness.place(&fact(at)), at)).collect();
    let calls: Vec<Vec<_>> =
        counters.iter().map(|(_, counter)| (0..CALLS).map(|_| counter.add()).collect()).collect();
    witness.sees(&fact(0)).await?;
    env.rig().unwrap().stop(part).unwrap();
    tokio::time::sleep(PAUSE).await;
    env.rig().unwrap().resume(part).unwrap();
    assert_eq!(mobula::get_all(&tasks).await?, (0..CALLS).collect::<Vec<_>>());
    for calls in &calls {
        assert_eq!(mobula::get_all(calls).await?, (1..=CALLS).collect::<Vec<_>>());
    }
    for at in 0..CALLS {
        assert_eq!(witness.count(&fact(at)), 1, "task {at} ran once");
    }
    // And it is of use again.
    for (_, counter) in &counters {
        assert_eq!(counter.add().await?, CALLS + 1);
    }
    assert_eq!(env.nodes().await?.len(), 2, "nobody was given up");
    Ok(())
}

pub async fn a_stopped_host_goes_on(env: Env) -> Result<()> {
    go_on(&env, async |_, process| Part::Host(process)).await
}

/// In the mode with a socket it is the driver's own agent.
pub async fn a_stopped_agent_goes_on(env: Env) -> Result<()> {
    let socket = env.mode == mobula_e2e::Mode::Socket;
    go_on(&env, async |node, _| {
        if socket {
            return Part::Node(0);
        }
        let rig = env.rig().unwrap();
        Part::Node((0..2).find(|at| rig.number(*at).unwrap() == node.number).unwrap())
    })
    .await
}

pub async fn a_stopped_head_goes_on(env: Env) -> Result<()> {
    go_on(&env, async |_, _| Part::Head).await
}

/// Longer than two terms.
const LONG_PAUSE: Duration = Duration::from_secs(2);
/// Longer than an agent keeps a process in which nothing runs.
const KEPT: Duration = Duration::from_secs(11);

/// Owns an actor that has a process to itself.
struct Keeper {
    kept: Option<CounterHandle>,
}

#[mobula::actor]
impl Keeper {
    fn new() -> Self {
        Self { kept: None }
    }

    fn process(&self) -> u32 {
        std::process::id()
    }

    async fn begin(&mut self) -> Result<CounterHandle> {
        let kept = Counter::spawn().options(|options| options.isolation("process")).await?;
        kept.quick().await?;
        self.kept = Some(kept.clone());
        Ok(kept)
    }
}

/// Nothing says for longer than a lease's term that actors in processes of their own are used: the head stands still, and
/// hears nobody; and then the process that owns one of them. They live on, as they were.
pub async fn what_runs_alone_outlives_who_stands_still(env: Env) -> Result<()> {
    let ours = Counter::spawn().options(|options| options.isolation("process")).await?;
    let keeper = Keeper::spawn().await?;
    let theirs = keeper.begin().await?;
    let processes = [ours.process().await?, theirs.process().await?];
    for part in [Part::Head, Part::Host(keeper.process().await?)] {
        env.rig().unwrap().stop(part).unwrap();
        tokio::time::sleep(LONG_PAUSE).await;
        env.rig().unwrap().resume(part).unwrap();
    }
    let until = Instant::now() + KEPT;
    while Instant::now() < until {
        for (counter, process) in [&ours, &theirs].into_iter().zip(processes) {
            assert_eq!(counter.process().await?, process, "it is where it was");
        }
        tokio::time::sleep(PAUSE).await;
    }
    assert_eq!((ours.quick().await?, theirs.quick().await?), (1, 2), "with what it had");
    assert_eq!(env.nodes().await?.len(), 2, "nobody was given up");
    Ok(())
}

#[mobula::task]
fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

/// At no CPU's cost, so that its lease and that of [`echo`] are held together.
#[mobula::task(cpu = 0)]
async fn echo_async(at: usize) -> usize {
    tokio::task::yield_now().await;
    at
}

struct Chatter;

#[mobula::actor(concurrency = 4)]
impl Chatter {
    fn new() -> Self {
        Self
    }

    async fn say(&self, at: usize) -> usize {
        tokio::task::yield_now().await;
        at
    }
}

/// Waits for what it calls, and has no CPU that it could lend meanwhile.
#[mobula::task(cpu = 0)]
async fn asks(chatter: ChatterHandle, at: usize) -> Result<usize> {
    chatter.say(at).await
}

/// Calls that a call makes and does not wait for.
#[mobula::task(cpu = 0)]
fn calls_on(chatter: ChatterHandle, at: usize) -> ObjectRef<usize> {
    chatter.say(at)
}

/// Rounds of calls that are made while the head stands still: less work than its silence is borne for.
const ROUNDS: usize = 40;

/// Tasks, an actor's calls and large objects on one node, once there is a lease for them.
pub async fn steady_calls_never_wait_for_the_head(env: Env) -> Result<()> {
    let steady = Steady::new(env.nodes().await?[0]).await?;
    steady.calls(20).await?;
    env.rig().unwrap().stop(Part::Head).unwrap();
    let went_on = tokio::time::timeout(WAIT, steady.calls(ROUNDS)).await;
    env.rig().unwrap().resume(Part::Head).unwrap();
    went_on.expect("no call waits for the head")
}

/// The same, for nothing but calls.
struct Steady {
    node: NodeId,
    counter: CounterHandle,
    chatter: ChatterHandle,
}

impl Steady {
    async fn new(node: NodeId) -> Result<Self> {
        let counter = Counter::spawn().options(|options| options.strategy(on(node))).await?;
        let chatter = Chatter::spawn().options(|options| options.strategy(on(node))).await?;
        Ok(Self { node, counter, chatter })
    }

    async fn calls(&self, rounds: usize) -> Result<()> {
        let here = echo.options().strategy(on(self.node));
        for at in 0..rounds {
            assert_eq!(here.remote(vec![at as u8]).await?, [at as u8]);
            let large = mobula::put(&vec![at as u8; 200_000])?;
            assert_eq!(here.remote(&large).await?, vec![at as u8; 200_000]);
            self.counter.quick().await?;
        }
        Ok(())
    }

    /// Many at once: async tasks, an actor's async calls, and such calls that are made inside calls.
    async fn batches(&self, rounds: usize) -> Result<()> {
        let expected: Vec<_> = (0..BATCH).collect();
        let there = echo_async.options().strategy(on(self.node));
        let inside = calls_on.options().strategy(on(self.node));
        let asking = asks.options().strategy(on(self.node));
        for _ in 0..rounds {
            let tasks: Vec<_> = (0..BATCH).map(|at| there.remote(at)).collect();
            let said: Vec<_> = (0..BATCH).map(|at| self.chatter.say(at)).collect();
            let asked: Vec<_> = (0..BATCH).map(|at| asking.remote(self.chatter.clone(), at)).collect();
            let nested: Vec<_> = (0..BATCH).map(|at| inside.remote(self.chatter.clone(), at)).collect();
            assert_eq!(mobula::get_all(&tasks).await?, expected);
            assert_eq!(mobula::get_all(&said).await?, expected);
            assert_eq!(mobula::get_all(&asked).await?, expected);
            assert_eq!(mobula::get_all(&mobula::get_all(&nested).await?).await?, expected);
        }
        Ok(())
    }
}

/// Each process that has leases says so often that they are in use, and each node what is in its store.
const RENEWED_EVERY: Duration = Duration::from_millis(250);
const REPORTED_EVERY: Duration = Duration::from_secs(2);
/// So many more of each, which were due before or are counted with the count itself.
const MORE_BY_CLOCK: u64 = 8;
/// What is slow makes the head hear of it: a slot is lent while arguments come and comes back, a lease that nobody used for half
/// a second is given back, and where calls wait another is asked for. A machine that stalls does that now and then; five
/// batches, or fifty rounds, have no more than one of each.
const BY_STALLS: [&str; 6] = ["block", "unblock", "release", "demand", "lease-ready", "ask"];
const STALLS_MAX: u64 = 20;
/// Rounds of which each would be seen, and the calls of each kind in one of the batches.
const COUNTED_ROUNDS: usize = 1000;
const COUNTED_BATCHES: usize = 100;
const BATCH: usize = 16;

/// The head is told nothing of them either: neither by the node on which they run nor by the driver's.
pub async fn steady_calls_never_touch_the_head(env: Env) -> Result<()> {
    let steady = Steady::new(env.nodes().await?[0]).await?;
    let told = async || -> Result<(u64, BTreeMap<String, u64>)> {
        let nodes = env.cluster.snapshot().await?.nodes;
        let (count, mut sum) = (nodes.len() as u64, BTreeMap::new());
        for (kind, messages) in nodes.into_iter().flat_map(|node| node.told) {
            *sum.entry(kind).or_default() += messages;
        }
        Ok((count, sum))
    };
    steady.calls(20).await?;
    let since = Instant::now();
    let (_, before) = told().await?;
    assert!(before.contains_key("demand") && before.contains_key("lease-ready"), "{before:?}");
    steady.calls(COUNTED_ROUNDS).await?;
    few_are_told(told().await?, before, since, "one after the other");
    // The leases of what comes now.
    steady.batches(20).await?;
    let since = Instant::now();
    let (_, before) = told().await?;
    steady.batches(COUNTED_BATCHES).await?;
    few_are_told(told().await?, before, since, "many at once");
    Ok(())
}

/// Nothing but what is told by the clock and by what stalls: far less than once for each call.
fn few_are_told(
    (nodes, mut more): (u64, BTreeMap<String, u64>),
    before: BTreeMap<String, u64>,
    since: Instant,
    calls: &str,
) {
    let elapsed = since.elapsed();
    let times = |every: Duration| (elapsed.as_nanos() / every.as_nanos()) as u64;
    for (kind, messages) in before {
        *more.get_mut(&kind).unwrap() -= messages;
    }
    more.retain(|kind, messages| {
        let most = match kind.as_str() {
            // The driver alone has leases here.
            "renew" => times(RENEWED_EVERY) + MORE_BY_CLOCK,
            "usage" => nodes * times(REPORTED_EVERY) + MORE_BY_CLOCK,
            kind if BY_STALLS.contains(&kind) => STALLS_MAX,
            _ => 0,
        };
        *messages > most
    });
    assert!(more.is_empty(), "of calls {calls}, in {elapsed:?}: {more:?}");
}

/// More calls than fit into a ring and what lay beside it once.
const MANY_CALLS: usize = 400_000;

pub async fn a_stopped_host_loses_none_of_many_calls(env: Env) -> Result<()> {
    let counter = Counter::spawn().await?;
    let host = Part::Host(counter.process().await?);
    env.rig().unwrap().stop(host).unwrap();
    let calls: Vec<_> = (0..MANY_CALLS).map(|_| counter.quick()).collect();
    env.rig().unwrap().resume(host).unwrap();
    assert_eq!(mobula::get_all(&calls).await?, (1..=MANY_CALLS).collect::<Vec<_>>());
    Ok(())
}

struct Sink {
    calls: usize,
}

#[mobula::actor]
impl Sink {
    fn new() -> Self {
        Self { calls: 0 }
    }

    fn take(&mut self, _bytes: Vec<u8>) -> usize {
        self.calls += 1;
        self.calls
    }

    fn process(&self) -> u32 {
        std::process::id()
    }
}

/// More calls than may wait for one host, fewer than may be unfinished; and the bytes of each.
const SINK_CALLS: usize = 700_000;
const SINK_BYTES: usize = 80;

/// A host takes nothing for a while: whoever calls it is held back before anything is lost, and those who call others are
/// not.
pub async fn callers_of_a_stopped_host_wait_and_others_do_not(env: Env) -> Result<()> {
    let near = env.rig().unwrap().number(0).unwrap();
    let (near, far): (Vec<_>, Vec<_>) = env.nodes().await?.into_iter().partition(|node| node.number == near);
    let sink = Sink::spawn().options(|options| options.strategy(on(near[0]))).await?;
    let other = Sink::spawn().options(|options| options.strategy(on(far[0]))).await?;
    assert_eq!(other.take(vec![0_u8]).await?, 1);
    let host = Part::Host(sink.process().await?);
    env.rig().unwrap().stop(host).unwrap();
    let submitted = Arc::new(AtomicUsize::new(0));
    let (count, held) = (Arc::clone(&submitted), sink.clone());
    let submitting = tokio::task::spawn_blocking(move || {
        let calls = (0..SINK_CALLS).map(|_| {
            count.fetch_add(1, Ordering::Relaxed);
            sink.take(vec![7; SINK_BYTES])
        });
        calls.collect::<Vec<_>>()
    });
    // Looked at once: there is none as soon as callers are held back.
    eventually("the caller to be held back", async || {
        Ok(tokio::time::timeout(Duration::ZERO, held.room()).await.is_err())
    })
    .await?;
    assert!(submitted.load(Ordering::Relaxed) < SINK_CALLS, "all were submitted");
    assert_eq!(other.take(vec![0_u8]).await?, 2, "whoever calls another goes on");
    env.rig().unwrap().resume(host).unwrap();
    let calls = submitting.await.expect("it goes on");
    assert_eq!(mobula::get_all(&calls).await?, (1..=SINK_CALLS).collect::<Vec<_>>());
    Ok(())
}

struct Narrow;

#[mobula::actor(inbox = 1)]
impl Narrow {
    fn new() -> Self {
        Self
    }

    fn hold(&mut self, started: String, gate: String) {
        witness::note(&started);
        witness::pass(&gate);
    }

    fn quick(&mut self) -> bool {
        true
    }
}

#[derive(Default)]
struct Caller(Mutex<Option<ObjectRef<bool>>>);

#[mobula::actor]
impl Caller {
    fn new() -> Self {
        Self::default()
    }

    fn call(&self, narrow: NarrowHandle) {
        *self.0.lock().unwrap() = Some(narrow.quick());
    }

    /// Whether its call waits for room.
    async fn waits(&self, narrow: NarrowHandle) -> bool {
        tokio::time::timeout(Duration::ZERO, narrow.room()).await.is_err()
    }

    async fn called(&self) -> Result<bool> {
        let call = self.0.lock().unwrap().take();
        call.expect("it has called").await
    }

    fn process(&self) -> u32 {
        std::process::id()
    }
}

/// An actor's only place is kept for a caller that does not take it: others have it then, and the caller another one once it
/// goes on.
pub async fn room_that_is_kept_for_a_stopped_caller_goes_to_others(env: Env) -> Result<()> {
    let near = env.rig().unwrap().number(0).unwrap();
    let (near, far): (Vec<_>, Vec<_>) = env.nodes().await?.into_iter().partition(|node| node.number == near);
    let narrow = Narrow::spawn().options(|options| options.strategy(on(near[0]))).await?;
    let caller = Caller::spawn().options(|options| options.strategy(on(far[0]))).await?;
    let host = Part::Host(caller.process().await?);
    let witness = Witness::new()?;
    let gate = witness.gate("gate")?;
    let held = narrow.hold(witness.place("started"), gate.place());
    witness.sees("started").await?;
    let full = narrow.quick();
    caller.call(narrow.clone()).await?;
    eventually("the caller to wait", async || caller.waits(narrow.clone()).await).await?;
    env.rig().unwrap().stop(host).unwrap();
    gate.open()?;
    held.await?;
    assert!(full.await?);
    let other = tokio::time::timeout(WAIT, narrow.quick()).await;
    env.rig().unwrap().resume(host).unwrap();
    assert!(other.expect("others have the place")?);
    assert!(caller.called().await?, "it is let in later");
    assert_eq!(env.nodes().await?.len(), 2, "nobody was given up");
    Ok(())
}

struct Flooder {
    taken: AtomicUsize,
    is_held: AtomicBool,
}

/// One call floods, one takes, and one looks.
#[mobula::actor(concurrency = 3)]
impl Flooder {
    fn new() -> Self {
        Self { taken: AtomicUsize::new(0), is_held: AtomicBool::new(false) }
    }

    fn take(&self, _bytes: Vec<u8>) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    fn flood(&self, other: FlooderHandle, calls: usize, bytes: usize) -> Result<()> {
        let calls = make(&other, calls, bytes, || self.is_held.store(true, Ordering::Relaxed));
        blocking::get_all(&calls).map(drop)
    }

    fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    fn process(&self) -> u32 {
        std::process::id()
    }
}

/// Makes so many calls; says whenever callers are held back.
fn make(other: &FlooderHandle, calls: usize, bytes: usize, is_held: impl Fn()) -> Vec<ObjectRef<()>> {
    let calls = (0..calls).map(|_| {
        // Looked at once: there is no room as soon as callers are held back, and then the call waits.
        let room = pin!(other.room());
        if room.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            is_held();
        }
        other.take(vec![7; bytes])
    });
    calls.collect()
}

async fn is_held_back(flooder: &FlooderHandle) -> Result<()> {
    eventually("a flood to be held back", async || flooder.is_held().await).await
}

/// Each of two hosts calls the other more often than may wait for it while the other stands still, so that both hold
/// back their callers: they let go of each other. In every mode each is a process of its own.
pub async fn hosts_that_hold_each_other_back_go_on(env: Env) -> Result<()> {
    let node = env.nodes().await?[0];
    let start = || Flooder::spawn().options(|options| options.strategy(on(node)).isolation("process"));
    let (one, other) = (start().await?, start().await?);
    let hosts = [one.process().await?, other.process().await?];
    let other_stands = Standing::still(hosts[1])?;
    let forth = one.flood(other.clone(), SINK_CALLS, SINK_BYTES);
    is_held_back(&one).await?;
    let one_stands = Standing::still(hosts[0])?;
    drop(other_stands);
    let back = other.flood(one.clone(), SINK_CALLS, SINK_BYTES);
    is_held_back(&other).await?;
    drop(one_stands);
    mobula::get_all(&[forth, back]).await?;
    for flooder in [&one, &other] {
        assert_eq!(flooder.taken().await?, SINK_CALLS, "each call ran once");
    }
    Ok(())
}

/// Calls of a flood between two nodes, and the bytes of each: more than anything between them has room for.
const FLOODS: [(usize, usize); 2] = [(300_000, SINK_BYTES), (2_000, 64 << 10)];
/// Longest that one may take.
const FLOOD_WAIT: Duration = Duration::from_secs(25);

/// Both floods come to their end, with each call taken once.
async fn all_is_taken(
    floods: [ObjectRef<()>; 2],
    takers: [&FlooderHandle; 2],
    calls: usize,
    bytes: usize,
) -> Result<()> {
    let taken = async || mobula::get_all(&takers.map(|taker| taker.taken())).await;
    match tokio::time::timeout(FLOOD_WAIT, mobula::get_all(&floods)).await {
        Ok(done) => drop(done?),
        Err(_) => {
            let came = tokio::time::timeout(PAUSE, taken()).await;
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "waited {FLOOD_WAIT:?} for two nodes to take {calls} calls of {bytes} bytes from each other; so \
                     many came: {came:?}"
                ),
            ));
        }
    }
    assert_eq!(taken().await?, [calls; 2], "each call ran once");
    Ok(())
}

/// Each of two hosts calls the other as fast as it can, and neither waits for the other to read before it reads itself.
pub async fn hosts_on_two_nodes_that_flood_each_other_go_on(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let start = |node| Flooder::spawn().options(|options| options.strategy(on(node)));
    for (calls, bytes) in FLOODS {
        let (one, other) = (start(nodes[0]).await?, start(nodes[1]).await?);
        assert_ne!(one.process().await?, other.process().await?);
        let floods = [one.flood(other.clone(), calls, bytes), other.flood(one.clone(), calls, bytes)];
        all_is_taken(floods, [&one, &other], calls, bytes).await?;
    }
    Ok(())
}

/// [`FLOODS`] that a host can make while nothing at all is taken: what is put into the store needs the way to the agent.
const FILLS: [(usize, usize); 2] = [(300_000, SINK_BYTES), (900, 64 << 10)];

/// Notes when it is held back, or has made all its calls. It cannot be asked, since what it says goes behind them.
#[mobula::task(cpu = 0, retries = 0, isolation = "process")]
fn flood_and_note(other: FlooderHandle, calls: usize, bytes: usize, full: String) -> Result<()> {
    let calls = make(&other, calls, bytes, || witness::note(&full));
    witness::note(&full);
    blocking::get_all(&calls).map(drop)
}

/// Between two nodes all ways are full in both directions, because hosts on both stand still: when these go on, neither
/// node waits for the other to read before it reads itself.
pub async fn nodes_with_all_ways_full_between_them_go_on(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let start = |node| Flooder::spawn().options(|options| options.strategy(on(node)).isolation("process"));
    for (calls, bytes) in FILLS {
        let witness = Witness::new()?;
        let takers = [start(nodes[1]).await?, start(nodes[0]).await?];
        let mut hosts = Vec::new();
        for taker in &takers {
            hosts.push(Part::Host(taker.process().await?));
        }
        hosts.iter().for_each(|host| env.rig().unwrap().stop(*host).unwrap());
        let full = ["full there", "full here"];
        let floods = [0, 1].map(|at| {
            let options = flood_and_note.options().strategy(on(nodes[at]));
            options.remote(takers[at].clone(), calls, bytes, witness.place(full[at]))
        });
        witness.sees(full[0]).await?;
        witness.sees(full[1]).await?;
        hosts.iter().for_each(|host| env.rig().unwrap().resume(*host).unwrap());
        all_is_taken(floods, [&takers[0], &takers[1]], calls, bytes).await?;
    }
    Ok(())
}
