//! State that lives somewhere.

use std::time::Duration;

use mobula::{ErrorKind, Result};
use mobula_e2e::{Env, Witness, env::witness, eventually};

struct Log {
    entries: Vec<u64>,
}

#[mobula::actor]
impl Log {
    fn new() -> Self {
        Self { entries: Vec::new() }
    }

    fn push(&mut self, entry: u64) -> usize {
        self.entries.push(entry);
        self.entries.len()
    }

    async fn push_slowly(&mut self, entry: u64) -> usize {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.push(entry)
    }

    fn all(&self) -> Vec<u64> {
        self.entries.clone()
    }
}

#[mobula::task]
fn slowly(value: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(5));
    value
}

#[mobula::task]
fn fill(log: LogHandle, from: u64) -> Result<usize> {
    let calls: Vec<_> = (from..from + 50).map(|entry| log.push(entry)).collect();
    mobula::blocking::get_all(&calls).map(|all| all.len())
}

pub async fn calls_keep_their_order(_env: Env) -> Result<()> {
    let log = Log::spawn().await?;
    let mut calls = vec![log.push(&slowly.remote(0)), log.push_slowly(1)];
    calls.extend((2..100).map(|entry| log.push(entry)));
    calls.push(log.push_slowly(&slowly.remote(100)));
    let lengths = mobula::get_all(&calls).await?;
    assert_eq!(lengths, (1..=101).collect::<Vec<_>>());
    assert_eq!(log.all().await?, (0..=100).collect::<Vec<_>>());

    // Several callers, each in its own order.
    let log = Log::spawn().await?;
    let fills: Vec<_> = (0..4).map(|i| fill.remote(log.clone(), i * 1000)).collect();
    mobula::get_all(&fills).await?;
    let all = log.all().await?;
    assert_eq!(all.len(), 200);
    for caller in 0..4 {
        let own: Vec<u64> = all.iter().copied().filter(|entry| entry / 1000 == caller).collect();
        assert_eq!(own, (caller * 1000..caller * 1000 + 50).collect::<Vec<_>>());
    }
    Ok(())
}

struct Meeting {
    here: std::sync::atomic::AtomicUsize,
}

#[mobula::actor]
impl Meeting {
    fn new() -> Self {
        Self { here: 0.into() }
    }

    /// Returns only when so many are here at once.
    async fn meet(&self, count: usize) -> usize {
        use std::sync::atomic::Ordering;
        self.here.fetch_add(1, Ordering::SeqCst);
        while self.here.load(Ordering::SeqCst) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        count
    }

    fn reset(&mut self) -> usize {
        std::mem::take(self.here.get_mut())
    }
}

pub async fn shared_calls_overlap(_env: Env) -> Result<()> {
    let meeting = Meeting::spawn().await?;
    let calls: Vec<_> = (0..10).map(|_| meeting.meet(10)).collect();
    // Submitted meanwhile, it has the actor to itself only after them.
    let reset = meeting.reset();
    assert_eq!(mobula::get_all(&calls).await?, [10; 10]);
    assert_eq!(reset.await?, 10);
    assert_eq!(meeting.reset().await?, 0);
    Ok(())
}

struct Careful {
    value: u32,
}

#[mobula::actor]
impl Careful {
    async fn new(value: u32) -> Result<Self, std::num::TryFromIntError> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        // Anything above 255 is refused.
        Ok(Self { value: u8::try_from(value)?.into() })
    }

    fn value(&self) -> u32 {
        self.value
    }
}

pub async fn constructors_may_wait_and_fail(_env: Env) -> Result<()> {
    assert_eq!(Careful::spawn(7).await?.value().await?, 7);
    assert_eq!(Careful::spawn(&slowly_small.remote(8)).start().value().await?, 8);
    let error = Careful::spawn(256).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("out of range"), "{error}");
    assert!(error.to_string().contains("Careful"), "{error}");
    let handle = Careful::spawn(1000).start();
    let error = handle.value().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ActorDied, "{error}");
    assert!(error.to_string().contains("out of range"), "{error}");
    Ok(())
}

#[mobula::task]
fn slowly_small(value: u32) -> u32 {
    std::thread::sleep(Duration::from_millis(5));
    value
}

#[mobula::data]
struct Introduction {
    to: LogHandle,
    others: Vec<LogHandle>,
}

#[mobula::task]
async fn greet(introduction: Introduction) -> Result<LogHandle> {
    introduction.to.push(1).await?;
    for other in &introduction.others {
        other.push(2).await?;
    }
    Ok(introduction.to)
}

#[mobula::task]
async fn spawned_there() -> Result<LogHandle> {
    let log = Log::spawn().await?;
    log.push(11).await?;
    Ok(log)
}

pub async fn handles_travel(_env: Env) -> Result<()> {
    let (one, two) = (Log::spawn().await?, Log::spawn().await?);
    let others = vec![one.clone(), two.clone()];
    let back = greet.remote(Introduction { to: one, others }).await?;
    back.push(3).await?;
    assert_eq!(back.all().await?, [1, 2, 3]);
    assert_eq!(two.all().await?, [2]);
    // Made in a task that has ended: it lives as long as this handle.
    let theirs = spawned_there.remote().await?;
    theirs.push(12).await?;
    assert_eq!(theirs.all().await?, [11, 12]);
    Ok(())
}

struct Branch {
    below: Option<BranchHandle>,
}

#[mobula::actor(cpu = 0.1)]
impl Branch {
    async fn new(depth: u32) -> Result<Self> {
        let below = if depth == 0 { None } else { Some(Branch::spawn(depth - 1).await?) };
        Ok(Self { below })
    }

    async fn count(&self) -> Result<u32> {
        match &self.below {
            None => Ok(1),
            Some(below) => Ok(below.count().await? + 1),
        }
    }
}

pub async fn nested_actors(_env: Env) -> Result<()> {
    let root = Branch::spawn(4).await?;
    assert_eq!(root.count().await?, 5);
    Ok(())
}

#[mobula::task]
async fn push_by_name(name: String, entry: u64) -> Result<usize> {
    mobula::find_actor::<Log>(&name, "").await?.push(entry).await
}

pub async fn names_are_found_and_freed(env: Env) -> Result<()> {
    let log = Log::spawn().name("log").await?;
    assert_eq!(push_by_name.remote("log", 4).await?, 1);
    assert_eq!(log.all().await?, [4]);
    let taken = Log::spawn().name("log").await.map(|_| ()).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::ActorName, "{taken}");
    assert!(taken.to_string().contains("\"log\""), "{taken}");
    let other = mobula::find_actor::<Meeting>("log", "").await.map(|_| ()).unwrap_err();
    assert!(other.to_string().contains("Log"), "{other}");
    let none = mobula::find_actor::<Log>("nobody", "").await.map(|_| ()).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::ActorName, "{none}");
    let apart = Log::spawn().name("log").namespace("elsewhere").await?;
    assert_eq!(apart.push(1).await?, 1);
    assert_eq!(env.cluster.snapshot().await?.names.len(), 2);
    log.kill();
    eventually("the name to be free", async || Ok(mobula::find_actor::<Log>("log", "").await.is_err()))
        .await?;
    let next = Log::spawn().name("log").await?;
    assert!(next.all().await?.is_empty());
    drop((next, apart));
    eventually("both names to be free", async || Ok(env.cluster.snapshot().await?.names.is_empty())).await
}

#[mobula::task]
async fn join_in(entry: u64) -> Result<usize> {
    let log = Log::spawn().name("shared").get_or_create().await?;
    log.push(entry).await
}

pub async fn get_or_create_makes_one(_env: Env) -> Result<()> {
    let log = Log::spawn().name("shared").get_or_create().await?;
    let joined: Vec<_> = (0..8).map(|entry| join_in.remote(entry)).collect();
    let mut lengths = mobula::get_all(&joined).await?;
    lengths.sort_unstable();
    assert_eq!(lengths, (1..=8).collect::<Vec<_>>());
    assert_eq!(log.all().await?.len(), 8);
    Ok(())
}

pub async fn kill_ends_it_for_good(env: Env) -> Result<()> {
    let meeting = Meeting::spawn().options(|options| options.restarts(3)).await?;
    let waits = meeting.meet(2);
    let shared = meeting.clone();
    meeting.kill();
    for call in [waits, shared.meet(1), meeting.reset()] {
        let error = call.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ActorDied, "{error}");
        assert!(error.to_string().contains("killed"), "{error}");
    }
    meeting.kill();
    eventually("the actor's resources", async || {
        let snapshot = env.cluster.snapshot().await?;
        Ok(snapshot.nodes.iter().all(|node| node.total == node.available))
    })
    .await
}

struct Farewell {
    place: String,
}

#[mobula::actor]
impl Farewell {
    fn new(place: String) -> Self {
        Self { place }
    }

    fn ping(&mut self) {}
}

impl Drop for Farewell {
    fn drop(&mut self) {
        witness::note(&self.place);
    }
}

pub async fn it_ends_with_its_last_handle(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let first = Farewell::spawn(witness.place("gone")).await?;
    let second = first.clone();
    drop(first);
    second.ping().await?;
    assert!(!witness.saw("gone"));
    let last = second.ping();
    drop(second);
    last.await?;
    witness.sees("gone").await
}
