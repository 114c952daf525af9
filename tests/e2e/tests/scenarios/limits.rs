//! How many calls an actor runs, how many wait for it, and what becomes of more.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    task::{Context, Waker},
    time::Duration,
};

use mobula::{ErrorKind, Handle, Lifeline, NodeId, ObjectRef, Result};
use mobula_e2e::{
    Env, Witness,
    env::{on, witness},
    eventually,
};
use tokio::sync::watch;

/// Ends when the lifelines behind it do. Refs inside a value are not waited for before the call starts.
type Gate = Vec<ObjectRef<()>>;

async fn pass(gate: Gate) {
    for one in gate {
        // It has no value, and fails when the lifeline goes.
        let _ended = one.await;
    }
}

#[mobula::task]
fn ones(bytes: usize) -> Vec<u8> {
    vec![1; bytes]
}

#[mobula::task]
fn bytes_of(all: Vec<Vec<u8>>) -> usize {
    all.iter().map(Vec::len).sum()
}

#[mobula::task]
fn copies(of: Vec<ObjectRef<u64>>, count: usize) -> Vec<ObjectRef<u64>> {
    of.iter().cycle().take(count).cloned().collect()
}

#[mobula::task]
fn complains(bytes: usize) -> Result<()> {
    Err(mobula::Error::new(ErrorKind::Returned, "é".repeat(bytes / 2)))
}

/// Longer than 16 MiB, which is all that one message may be on its way.
pub async fn long_messages_arrive(env: Env) -> Result<()> {
    // Values so small that they travel inside the message.
    let parts: Vec<_> = (0..300).map(|_| ones.remote(60_000)).collect();
    let one = mobula::put(&7u64)?;
    for node in env.nodes().await? {
        assert_eq!(bytes_of.options().strategy(on(node)).remote(&parts).await?, 18_000_000);
        // Names of 32 bytes each.
        let refs = copies.options().strategy(on(node)).remote(vec![one.clone()], 720_000).await?;
        assert_eq!((refs.len(), refs[719_999].clone().await?), (720_000, 7));
        let error = complains.options().strategy(on(node)).remote(20_000_000).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Returned);
        assert!(error.to_string().contains("éé…"), "it is cut");
    }
    let many: Vec<_> = parts.iter().cycle().take(4_000).cloned().collect();
    let error = bytes_of.remote(&many).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    Ok(())
}

struct Gauge {
    here: [AtomicUsize; 2],
    peak: [watch::Sender<usize>; 2],
}

#[mobula::actor(concurrency = 2, groups(io = 3))]
impl Gauge {
    fn new() -> Self {
        Self { here: Default::default(), peak: Default::default() }
    }

    #[local]
    async fn stay(&self, at: usize, until: usize) -> usize {
        let here = self.here[at].fetch_add(1, Ordering::SeqCst) + 1;
        self.peak[at].send_if_modified(|peak| std::mem::replace(peak, here.max(*peak)) < here);
        // Until as many were here at once as may be.
        self.peak[at].subscribe().wait_for(|peak| *peak >= until).await.expect("the actor holds the sender");
        tokio::task::yield_now().await;
        self.here[at].fetch_sub(1, Ordering::SeqCst);
        until
    }

    async fn compute(&self, until: usize) -> usize {
        self.stay(0, until).await
    }

    #[method(group = "io")]
    async fn load(&self, until: usize) -> usize {
        self.stay(1, until).await
    }

    /// On a thread, until the gate is open.
    #[local]
    fn stand(&self, at: usize, came: &str, gate: &str) {
        let here = self.here[at].fetch_add(1, Ordering::SeqCst) + 1;
        self.peak[at].send_if_modified(|peak| std::mem::replace(peak, here.max(*peak)) < here);
        witness::note(came);
        witness::pass(gate);
        self.here[at].fetch_sub(1, Ordering::SeqCst);
    }

    fn compute_plainly(&self, came: String, gate: String) {
        self.stand(0, &came, &gate);
    }

    #[method(group = "io")]
    fn load_plainly(&self, came: String, gate: String) {
        self.stand(1, &came, &gate);
    }

    fn peaks(&mut self) -> Vec<usize> {
        self.peak.iter().map(|peak| peak.send_replace(0)).collect()
    }
}

pub async fn groups_bound_what_runs_at_once(_env: Env) -> Result<()> {
    let gauge = Gauge::spawn().await?;
    let mut calls: Vec<_> = (0..20).map(|_| gauge.compute(2)).collect();
    calls.extend((0..20).map(|_| gauge.load(3)));
    // Submitted last, it runs after all of them.
    let peaks = gauge.peaks();
    mobula::get_all(&calls).await?;
    assert_eq!(peaks.await?, [2, 3]);

    let one = Gauge::spawn().options(|options| options.concurrency(1).group("io", 4)).await?;
    let mut calls: Vec<_> = (0..20).map(|_| one.compute(1)).collect();
    calls.extend((0..20).map(|_| one.load(4)));
    let peaks = one.peaks();
    mobula::get_all(&calls).await?;
    assert_eq!(peaks.await?, [1, 4]);
    Ok(())
}

/// The same with methods that are not async, and with both kinds in one group.
pub async fn groups_bound_what_runs_on_threads(_env: Env) -> Result<()> {
    let declared = Gauge::spawn().await?;
    let given = Gauge::spawn().options(|options| options.concurrency(1).group("io", 4)).await?;
    for (gauge, most) in [(declared, [2, 3]), (given, [1, 4])] {
        let witness = Witness::new()?;
        let gate = witness.gate("gate")?;
        let here = || [witness.count("compute"), witness.count("load")];
        // Group by group: as many as may be are there together, and all others wait behind them.
        let mut calls: Vec<_> =
            (0..20).map(|_| gauge.compute_plainly(witness.place("compute"), gate.place())).collect();
        eventually("as many calls of no group as may run at once", async || Ok(here()[0] >= most[0])).await?;
        // It came after the others, and is of a group that has room.
        gauge.load(0).await?;
        assert_eq!(here(), [most[0], 0]);
        calls.extend((0..20).map(|_| gauge.load_plainly(witness.place("load"), gate.place())));
        eventually("as many calls of a group as may run at once", async || Ok(here()[1] >= most[1])).await?;
        let async_calls: Vec<_> = (0..4).map(|_| gauge.load(0)).collect();
        let peaks = gauge.peaks();
        gate.open()?;
        mobula::get_all(&calls).await?;
        mobula::get_all(&async_calls).await?;
        assert_eq!(peaks.await?, most, "one kind or the other");
        assert_eq!(here(), [20; 2]);
    }
    Ok(())
}

pub async fn mistakes_in_limits_are_named(_env: Env) -> Result<()> {
    let error = Gauge::spawn().options(|options| options.group("disk", 4)).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("no group \"disk\""), "{error}");
    let error = Gauge::spawn().options(|options| options.inbox(0)).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("at least 1"), "{error}");
    let error = Gauge::spawn().options(|options| options.when_full("drop")).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("\"wait\" or \"refuse\""), "{error}");
    Ok(())
}

struct Heap {
    values: Vec<u64>,
}

#[mobula::actor(unordered)]
impl Heap {
    fn new() -> Self {
        Self { values: Vec::new() }
    }

    fn push(&mut self, value: u64) -> Vec<u64> {
        self.values.push(value);
        self.values.clone()
    }
}

#[mobula::task(cpu = 0)]
async fn after(gate: Gate, value: u64) -> u64 {
    pass(gate).await;
    value
}

pub async fn unordered_calls_overtake(_env: Env) -> Result<()> {
    let heap = Heap::spawn().await?;
    let lifeline = Lifeline::new()?;
    let late = heap.push(&after.remote(vec![lifeline.watch()], 1));
    assert_eq!(heap.push(2).await?, [2]);
    assert_eq!(heap.push(3).await?, [2, 3]);
    drop(lifeline);
    assert_eq!(late.await?, [2, 3, 1]);
    // What waits for its arguments ends with the actor.
    let lifeline = Lifeline::new()?;
    let never = heap.push(&after.remote(vec![lifeline.watch()], 4));
    heap.kill();
    assert_eq!(never.await.unwrap_err().kind(), ErrorKind::ActorDied);
    Ok(())
}

struct Slow {
    taken: u64,
}

#[mobula::actor(inbox = 2, when_full = "refuse")]
impl Slow {
    fn new() -> Self {
        Self { taken: 0 }
    }

    async fn hold(&mut self, gate: Gate) {
        pass(gate).await;
    }

    fn take(&mut self, text: String) -> String {
        self.taken += 1;
        format!("{text} as number {}", self.taken)
    }

    #[method(returns)]
    fn take_two(&mut self, text: String) -> (String, u64) {
        (self.take(text), self.taken)
    }

    fn letters(&mut self, text: String) -> impl Iterator<Item = char> {
        text.chars().collect::<Vec<_>>().into_iter()
    }
}

pub async fn a_full_inbox_refuses_and_gives_calls_back(_env: Env) -> Result<()> {
    let slow = Slow::spawn().await?;
    let lifeline = Lifeline::new()?;
    let held = slow.hold(vec![lifeline.watch()]);
    let calls: Vec<_> = ["one", "two", "three", "four"].into_iter().map(|text| slow.take(text)).collect();
    let error = calls[2].clone().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(error.is_retryable() && error.to_string().contains("2 calls wait already"), "{error}");
    assert_eq!(calls[3].clone().await.unwrap_err().code(), "MOB3014");
    assert!(calls[0].take_refused().is_none(), "it was not refused");
    let refused = calls[2].take_refused().expect("the call comes back");
    assert!(calls[2].take_refused().is_none(), "once");
    // So is one of several results, and a stream.
    let two = slow.take_two("five");
    for error in [two.0.clone().await.unwrap_err(), two.1.clone().await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    }
    let mut letters = slow.letters("abc");
    let error = letters.next().await.expect("an error").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(letters.next().await.is_none(), "it has ended");
    assert!(two.0.take_refused().is_none(), "it is one of two");
    let (two, letters) = (two.take_refused().expect("both"), letters.take_refused().expect("the stream"));
    drop(lifeline);
    held.await?;
    assert_eq!(calls[1].clone().await?, "two as number 2");
    let again = refused.submit().await;
    assert_eq!(again.await?, "three as number 3");
    let (text, taken) = two.submit().await;
    assert_eq!((text.await?.as_str(), taken.await?), ("five as number 4", 4));
    assert_eq!(letters.submit().await.next().await.transpose()?, Some('a'));
    // One that nobody takes is forgotten with its ref; the harness sees what is left.
    Ok(())
}

struct Sink {
    bytes: u64,
}

#[mobula::actor(inbox = 8)]
impl Sink {
    fn new() -> Self {
        Self { bytes: 0 }
    }

    async fn hold(&mut self, gate: Gate) {
        pass(gate).await;
    }

    fn take(&mut self, number: u64, bytes: Vec<u8>) -> u64 {
        self.bytes += bytes.len() as u64;
        number
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Calls of a flood, and their size: 655 MB in all.
const FLOOD: u64 = 40_000;
const FLOOD_BYTES: usize = 16 << 10;
/// Calls that a flood may have unfinished at once: the inbox, as many in its process, and what was on its way before
/// the first found the inbox full, which takes as long as the actor's process is kept from running.
const FLOOD_PEAK: usize = 20_000;

/// By so much the memory of a process may grow meanwhile, shared memory included: well below what a flood sends.
const FLOOD_RESIDENT: u64 = 400 << 20;

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("its second field") * 4096
}

/// Makes the calls as fast as it can; gives the most that were unfinished at once.
fn flood_from_here(sink: &SinkHandle, calls: u64) -> Result<usize> {
    let mut unfinished: VecDeque<ObjectRef<u64>> = VecDeque::new();
    let mut peak = 0;
    let mut next = 0;
    let before = resident();
    for number in 0..calls {
        unfinished.push_back(sink.take(number, vec![7; FLOOD_BYTES]));
        while unfinished.front().is_some_and(ObjectRef::is_ready) {
            // In the order in which they were made.
            assert_eq!(unfinished.pop_front().map(|call| call.get()).transpose()?, Some(next));
            next += 1;
        }
        peak = peak.max(unfinished.len());
        if number % 256 == 0 {
            let grown = resident().saturating_sub(before);
            assert!(grown <= FLOOD_RESIDENT, "{grown} bytes more with {} unfinished", unfinished.len());
        }
    }
    for call in unfinished {
        assert_eq!(call.get()?, next);
        next += 1;
    }
    Ok(peak)
}

/// Whether calls would have to wait.
async fn is_full(sink: &mobula::ActorHandle) -> bool {
    tokio::time::timeout(Duration::ZERO, sink.room()).await.is_err()
}

/// Most calls that [`fill`] makes of an actor that takes none.
const FILL: u64 = 500_000;

/// Async code is held up where it asks for room: says how many calls it could make before that.
#[mobula::task(cpu = 0)]
async fn fill(sink: SinkHandle) -> u64 {
    let mut calls = Vec::new();
    while (calls.len() as u64) < FILL && !is_full(&sink).await {
        calls.push(sink.take(0, Vec::<u8>::new()));
    }
    calls.len() as u64
}

pub async fn a_flood_waits(_env: Env) -> Result<()> {
    let sink = Sink::spawn().await?;
    let lifeline = Lifeline::new()?;
    let held = sink.hold(vec![lifeline.watch()]);
    let made = fill.remote(sink.clone()).await?;
    assert!((8..FILL).contains(&made), "{made} calls before there was no room");
    let flooded = sink.clone();
    let own = tokio::task::spawn_blocking(move || flood_from_here(&flooded, FLOOD));
    eventually("the flood to be held up", async || Ok(is_full(&sink).await)).await?;
    assert!(!own.is_finished());
    drop(lifeline);
    held.await?;
    let peak = own.await.expect("the flood does not panic")?;
    assert!(peak <= FLOOD_PEAK, "{peak} calls were unfinished at once");
    assert_eq!(sink.bytes().await?, FLOOD * FLOOD_BYTES as u64);
    Ok(())
}

#[mobula::task]
fn flood(sink: SinkHandle, calls: u64) -> Result<usize> {
    flood_from_here(&sink, calls)
}

pub async fn a_flood_from_several_hosts_waits(env: Env) -> Result<()> {
    let sink = Sink::spawn().await?;
    let lifeline = Lifeline::new()?;
    let held = sink.hold(vec![lifeline.watch()]);
    let nodes = env.nodes().await?;
    let floods: Vec<_> = nodes
        .iter()
        .chain(&nodes)
        .map(|node| flood.options().strategy(on(*node)).remote(sink.clone(), FLOOD / 4))
        .collect();
    let own = sink.clone();
    let own = tokio::task::spawn_blocking(move || flood_from_here(&own, FLOOD / 4));
    eventually("a flood to be held up", async || Ok(is_full(&sink).await)).await?;
    drop(lifeline);
    held.await?;
    for peak in mobula::get_all(&floods).await? {
        assert!(peak <= FLOOD_PEAK, "{peak} calls were unfinished at once");
    }
    own.await.expect("the flood does not panic")?;
    let calls = FLOOD / 4 * (floods.len() as u64 + 1);
    assert_eq!(sink.bytes().await?, calls * FLOOD_BYTES as u64);
    Ok(())
}

struct Rival {
    taken: AtomicU64,
}

/// One call floods, and the others take.
#[mobula::actor(concurrency = 3, inbox = 8)]
impl Rival {
    fn new() -> Self {
        Self { taken: AtomicU64::new(0) }
    }

    /// Calls the other until there is no room, and goes on, as soon as there is, for many more calls than fit into an inbox;
    /// says how many it made.
    async fn flood(&self, other: RivalHandle, go: Gate, notes: Vec<String>, take: String) -> Result<u64> {
        witness::note(&notes[0]);
        pass(go).await;
        let mut calls = Vec::new();
        while (calls.len() as u64) < FILL && !is_full(&other).await {
            calls.push(other.take(calls.len() as u64, take.clone()));
        }
        witness::note(&notes[1]);
        for _ in 0..MUTUAL_CALLS {
            other.room().await;
            calls.push(other.take(calls.len() as u64, take.clone()));
        }
        let numbers = mobula::get_all(&calls).await?;
        assert!(numbers.into_iter().eq(0..calls.len() as u64), "each call has its own answer");
        Ok(calls.len() as u64)
    }

    /// Waits in a way that the runtime knows nothing of, so that the actor does not count as one that waits.
    fn take(&self, number: u64, take: String) -> u64 {
        witness::pass(&take);
        self.taken.fetch_add(1, Ordering::Relaxed);
        number
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Calls of each of two actors to the other once it was held back.
const MUTUAL_CALLS: u64 = 2000;

/// Two actors flood each other until both are held back by the other's full inbox; then both go on to the end. They are on
/// two nodes where a cluster has them, and then in two processes of one node.
pub async fn actors_that_flood_each_other_go_on(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let (first, last) = (nodes[0], nodes[nodes.len() - 1]);
    for (of_one, of_other, isolation) in [(first, last, "shared"), (first, first, "process")] {
        let witness = Witness::new()?;
        let (lifeline, take) = (Lifeline::new()?, witness.gate("take")?);
        let start = |node: NodeId| {
            Rival::spawn().options(move |options| options.strategy(on(node)).isolation(isolation))
        };
        let (one, other) = (start(of_one).await?, start(of_other).await?);
        let begin = |rival: &RivalHandle, at: &RivalHandle, name: &str| {
            let notes = ["is here", "is held back"].map(|what| witness.place(&format!("{name} {what}")));
            rival.flood(at.clone(), vec![lifeline.watch()], notes.to_vec(), take.place())
        };
        let floods = [begin(&one, &other, "one"), begin(&other, &one, "the other")];
        // Both run before either begins: in a full inbox, the second would wait behind what the first floods it with.
        for note in ["one is here", "the other is here"] {
            witness.sees(note).await?;
        }
        drop(lifeline);
        for note in ["one is held back", "the other is held back"] {
            witness.sees(note).await?;
        }
        assert!(!floods.iter().any(ObjectRef::is_ready), "nothing was taken yet");
        take.open()?;
        let made = mobula::get_all(&floods).await?;
        assert!(made.iter().all(|calls| (MUTUAL_CALLS + 8..MUTUAL_CALLS + FILL).contains(calls)), "{made:?}");
        assert_eq!([other.taken().await?, one.taken().await?], made[..], "each call ran once");
    }
    Ok(())
}

struct Player;

#[mobula::actor(concurrency = 1, inbox = 2)]
impl Player {
    fn new() -> Self {
        Self
    }

    async fn play(&self, me: PlayerHandle, other: PlayerHandle, rounds: u32) -> Result<u32> {
        if rounds == 0 {
            return Ok(0);
        }
        Ok(other.play(other.clone(), me, rounds - 1).await? + 1)
    }
}

pub async fn circles_of_shared_calls_go_on(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let (first, last) = (nodes[0], nodes[nodes.len() - 1]);
    let one = Player::spawn().options(|options| options.strategy(on(first))).await?;
    let two = Player::spawn().options(|options| options.strategy(on(last))).await?;
    let mut calls = Vec::new();
    for _ in 0..50 {
        calls.push(one.play(one.clone(), two.clone(), 6));
        calls.push(two.play(two.clone(), one.clone(), 6));
        // The driver's own calls shall not be what is in the way of theirs.
        tokio::join!(one.room(), two.room());
    }
    assert_eq!(mobula::get_all(&calls).await?, [6; 100]);
    Ok(())
}

struct Stubborn;

#[mobula::actor(inbox = 1)]
impl Stubborn {
    fn new() -> Self {
        Self
    }

    async fn go(&mut self, me: StubbornHandle, other: StubbornHandle, gate: Gate) -> Result<()> {
        pass(gate).await;
        other.back(me).await
    }

    async fn back(&mut self, first: StubbornHandle) -> Result<()> {
        first.poke().await.map(|_| ())
    }

    fn poke(&mut self) -> bool {
        true
    }
}

pub async fn circles_of_exclusive_calls_end(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let (first, last) = (nodes[0], nodes[nodes.len() - 1]);
    let one = Stubborn::spawn().options(|options| options.strategy(on(first))).await?;
    let two = Stubborn::spawn().options(|options| options.strategy(on(last))).await?;
    let lifeline = Lifeline::new()?;
    let circle = one.go(one.clone(), two.clone(), vec![lifeline.watch()]);
    // One waits there and one here; a third would be held up.
    let pokes = [one.poke(), one.poke()];
    eventually("the inbox to be full", async || Ok(is_full(&one).await)).await?;
    drop(lifeline);
    let error = circle.await.unwrap_err();
    assert!(error.to_string().contains("do not wait for calls in a circle"), "{error}");
    // Nobody else noticed.
    assert_eq!(mobula::get_all(&pokes).await?, [true; 2]);
    Ok(())
}

/// Tasks that are submitted faster than they run, and the bytes of the argument of each: more than the cluster keeps in
/// memory, and than the program may.
const TASK_FLOOD: u64 = 20_000;
const TASK_FLOOD_BYTES: usize = 48 * 1024;
/// By so much the program's own memory may grow meanwhile, less than half of what it sends; what lies in the store is
/// bounded by that.
const TASK_FLOOD_OWN: u64 = 450 << 20;

/// Bytes of memory that this process shares with nobody.
pub fn own_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux 4.5");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[mobula::task]
fn first_of(bytes: Vec<u8>) -> u64 {
    u64::from(bytes[0])
}

pub async fn a_flood_of_tasks_is_slowed_down(env: Env) -> Result<()> {
    let before = own_memory();
    let mut peak = 0;
    let mut all = Vec::new();
    for at in 0..TASK_FLOOD {
        all.push(first_of.submit(vec![(at % 251) as u8; TASK_FLOOD_BYTES]).await);
        if at % 256 == 0 {
            peak = peak.max(own_memory());
        }
    }
    let sum: u64 = mobula::get_all(&all).await?.iter().sum();
    assert_eq!(sum, (0..TASK_FLOOD).map(|at| at % 251).sum::<u64>());
    assert!(peak < before + TASK_FLOOD_OWN, "from {before} to {peak} bytes");
    drop(all);
    env.stores_empty().await
}

/// Calls that may be unfinished at once.
pub const BUDGET: usize = 8;

/// Waits in a way that the runtime knows nothing of.
#[mobula::task(cpu = 0)]
fn behind(gate: String, number: u64) -> u64 {
    witness::pass(&gate);
    number
}

pub async fn a_full_budget_holds_submitters_back(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let gate = witness.gate("gate")?;
    let full: Vec<_> = (0..BUDGET as u64).map(|number| behind.remote(gate.place(), number)).collect();
    // Without waiting: the call comes back, and says what to do.
    let refused = behind.try_remote(gate.place(), 8).unwrap_err();
    assert!(refused.to_string().contains("await some"), "{refused}");
    let refused = refused.try_again().unwrap_err();
    // With a thread that waits, and with async code that does.
    let place = gate.place();
    let waiting = tokio::task::spawn_blocking(move || behind.remote(place, 9));
    let mut submission = Box::pin(behind.submit(gate.place(), 10));
    assert!(submission.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(!waiting.is_finished());
    gate.open()?;
    let late = [refused.submit().await, waiting.await.expect("it does not panic"), submission.await];
    assert_eq!(mobula::get_all(&late).await?, [8, 9, 10]);
    assert_eq!(mobula::get_all(&full).await?, (0..BUDGET as u64).collect::<Vec<_>>());
    Ok(())
}

/// Children that are more than may be unfinished at once.
#[mobula::task]
async fn submits(count: u64) -> Result<u64> {
    let mut children = Vec::new();
    for number in 0..count {
        children.push(double.submit(number).await);
    }
    Ok(mobula::get_all(&children).await?.iter().sum())
}

#[mobula::task]
fn double(number: u64) -> u64 {
    2 * number
}

/// With the one CPU there is.
pub async fn who_awaits_room_in_the_budget_lends_its_cpu(_env: Env) -> Result<()> {
    const CHILDREN: u64 = 20;
    assert_eq!(submits.remote(CHILDREN).await?, CHILDREN * (CHILDREN - 1));
    Ok(())
}
