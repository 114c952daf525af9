//! Results that are read as they are made.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use mobula::{ErrorKind, Result, Stream, prelude::*};
use mobula_e2e::{
    Env, Part, Witness,
    env::{on, witness},
    eventually,
};

#[mobula::task]
fn count(n: u64) -> impl Iterator<Item = u64> {
    0..n
}

/// Gives what `next` gives, and is not ready before each: it is polled once more.
struct Ticks<F> {
    next: F,
    is_ready: bool,
}

fn ticks<F>(next: F) -> Ticks<F> {
    Ticks { next, is_ready: false }
}

impl<T, F: FnMut() -> Option<T> + Unpin> Stream for Ticks<F> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<Option<T>> {
        let this = self.get_mut();
        this.is_ready = !this.is_ready;
        if this.is_ready {
            poller.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready((this.next)())
    }
}

#[mobula::task]
async fn squares(n: u64) -> Result<impl Stream<Item = Result<u64>>> {
    if n == 0 {
        return Err(mobula::Error::new(ErrorKind::Returned, "none at all"));
    }
    let mut all = 0..n;
    Ok(ticks(move || all.next().map(|i| Ok(i * i))))
}

#[mobula::task]
fn double(x: u64) -> u64 {
    x * 2
}

async fn collect<T: Data>(mut stream: ObjectStream<T>) -> Result<Vec<T>> {
    let mut all = Vec::new();
    while let Some(item) = stream.next().await {
        all.push(item?);
    }
    assert!(stream.next().await.is_none(), "the end is the end");
    Ok(all)
}

pub async fn items_come_in_order(env: Env) -> Result<()> {
    for node in env.nodes().await? {
        let there = on(node);
        // More than the window holds.
        let all = collect(count.options().strategy(there.clone()).remote(2000)).await?;
        assert_eq!(all, (0..2000).collect::<Vec<_>>());
        assert!(collect(count.options().strategy(there.clone()).remote(0)).await?.is_empty());
        let all = collect(squares.options().strategy(there.clone()).buffer_items(1).remote(50)).await?;
        assert_eq!(all, (0..50).map(|i| i * i).collect::<Vec<_>>());
        let mut refs = count.options().strategy(there).remote(20).refs();
        let mut doubled = Vec::new();
        while let Some(item) = refs.next().await {
            doubled.push(double.remote(item?));
        }
        assert_eq!(mobula::get_all(&doubled).await?, (0..20).map(|i| i * 2).collect::<Vec<_>>());
    }
    let mut stream = pin!(count.try_remote(3).unwrap());
    let first = poll_fn(|poller| stream.as_mut().poll_next(poller)).await;
    assert_eq!(first.unwrap()?, 0);
    assert_eq!(stream.next_ref().await.unwrap()?.await?, 1);
    let error = collect(squares.remote(0)).await.unwrap_err();
    assert!(error.to_string().contains("none at all"), "{error}");
    Ok(())
}

#[mobula::task]
fn sum_of(n: u64) -> Result<u64> {
    let mut sum = 0;
    for item in count.options().buffer_items(2).remote(n) {
        sum += item?;
    }
    for item in count.remote(3).refs() {
        sum += item?.get()?;
    }
    Ok(sum)
}

#[mobula::task]
async fn iterates() -> Result<u64> {
    let first = count.remote(3).into_iter().next();
    first.unwrap_or(Ok(0))
}

/// On one CPU: who waits for an item, and who waits for room, gives it back.
pub async fn plain_threads_iterate(_env: Env) -> Result<()> {
    assert_eq!(sum_of.remote(100).await?, 4950 + 3);
    let elsewhere = tokio::task::spawn_blocking(|| count.remote(300).into_iter().sum::<Result<u64>>());
    assert_eq!(elsewhere.await.unwrap()?, 44_850);
    let mut items = count.remote(3).into_iter();
    let error = items.next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BlockingInAsync, "{error}");
    assert!(items.next().is_none());
    let error = iterates.remote().await.unwrap_err();
    assert!(error.to_string().contains("blocking"), "{error}");
    Ok(())
}

/// Notes that it is dropped.
struct Noted(String);

impl Drop for Noted {
    fn drop(&mut self) {
        witness::note(&self.0);
    }
}

#[mobula::task]
fn endless(made: String, bytes: usize, dropped: String) -> impl Iterator<Item = Vec<u8>> {
    let noted = Noted(dropped);
    (0u8..251).cycle().map(move |byte| {
        let _held = &noted;
        witness::note(&made);
        vec![byte; bytes]
    })
}

#[mobula::task]
async fn endless_async(made: String, bytes: usize, dropped: String) -> impl Stream<Item = Vec<u8>> {
    let noted = Noted(dropped);
    let mut byte = 0u8;
    ticks(move || {
        let _held = &noted;
        witness::note(&made);
        byte = (byte + 1) % 251;
        Some(vec![byte.wrapping_sub(1); bytes])
    })
}

/// Reads so many, and checks after each that no more were made than the bound allows.
async fn reads_slowly(
    mut stream: ObjectStream<Vec<u8>>,
    witness: &Witness,
    bound: usize,
    bytes: usize,
) -> Result<()> {
    for read in 0..3 * bound {
        // It gets as far as it may before the next item is taken.
        let enough = async || Ok(witness.count("made") >= read + bound / 2);
        eventually("items ahead of their reader", enough).await?;
        let made = witness.count("made");
        assert!(made <= read + bound, "{made} items made and {read} read, with a bound of {bound}");
        let item = stream.next().await.unwrap()?;
        assert!(item.len() == bytes && item[0] == (read % 251) as u8, "item {read} is {}", item[0]);
    }
    let made = witness.count("made");
    assert!(made <= 4 * bound, "{made} items made");
    Ok(())
}

pub async fn an_endless_one_stays_within_its_bound(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let there = on(nodes[nodes.len() - 1]);
    // By items, and by bytes: the item that reaches the limit may go past it.
    for (bytes, buffer_items, buffer_bytes) in
        [(10, 6, u64::MAX), (200_000, 6, u64::MAX), (200_000, 64, 1_000_001)]
    {
        let witness = Witness::new()?;
        let options = endless.options().strategy(there.clone());
        let options = options.buffer_items(buffer_items).buffer_bytes(buffer_bytes);
        let stream = options.remote(witness.place("made"), bytes, witness.place("dropped"));
        reads_slowly(stream, &witness, 6, bytes).await?;
        witness.sees("dropped").await?;
        let witness = Witness::new()?;
        let options = endless_async.options().strategy(there.clone());
        let options = options.buffer_items(buffer_items).buffer_bytes(buffer_bytes);
        let stream = options.remote(witness.place("made"), bytes, witness.place("dropped"));
        reads_slowly(stream, &witness, 6, bytes).await?;
        witness.sees("dropped").await?;
    }
    env.stores_empty().await
}

/// On one CPU for each node: what waits for its reader leaves it to others.
pub async fn a_waiting_producer_gives_its_cpu_back(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let nodes = env.nodes().await?;
    let there = on(nodes[0]);
    let options = endless.options().strategy(there.clone()).buffer_items(2);
    let stream = options.remote(witness.place("made"), 10, witness.place("dropped"));
    eventually("a full window", async || Ok(witness.count("made") == 2)).await?;
    assert_eq!(double.options().strategy(there).remote(4).await?, 8);
    drop(stream);
    Ok(())
}

pub async fn items_cross_nodes(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    for from in &nodes {
        let mut stream = large.options().strategy(on(*from)).remote(6, 300_000);
        let mut sums = Vec::new();
        while let Some(item) = stream.next_ref().await {
            let item = item?;
            for to in &nodes {
                sums.push((sums.len() / nodes.len(), sum_up.options().strategy(on(*to)).remote(&item)));
            }
        }
        for (at, one) in sums {
            assert_eq!(one.await?, at as u64 * 300_000);
        }
    }
    env.stores_empty().await
}

#[mobula::task]
fn large(n: u8, bytes: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..n).map(move |byte| vec![byte; bytes])
}

#[mobula::task]
fn sum_up(bytes: Vec<u8>) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

#[mobula::task]
fn fails_at(n: u64, place: String) -> impl Iterator<Item = Result<Vec<u8>>> {
    (0u8..).map(move |i| {
        witness::note(&place);
        if u64::from(i) == n {
            Err(mobula::Error::new(ErrorKind::Returned, "the disk is full"))
        } else {
            Ok(vec![i; 150_000])
        }
    })
}

#[mobula::task]
async fn panics_at(n: u64) -> impl Stream<Item = u64> {
    let mut all = 0..;
    ticks(move || {
        let next = all.next();
        assert!(next != Some(n), "no more than {n}");
        next
    })
}

pub async fn an_error_comes_after_the_items_before_it(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let mut stream = fails_at.remote(4, witness.place("made"));
    for i in 0..4 {
        assert_eq!(stream.next().await.unwrap()?, vec![i; 150_000]);
    }
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Returned, "{error}");
    let text = error.to_string();
    assert!(text.contains("the disk is full") && text.contains("fails_at#"), "{text}");
    assert!(stream.next().await.is_none());
    assert_eq!(witness.count("made"), 5);
    let mut stream = panics_at.remote(3);
    for i in 0..3 {
        assert_eq!(stream.next().await.unwrap()?, i);
    }
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
    assert!(
        error.to_string().contains("streaming.rs") && error.to_string().contains("no more than 3"),
        "{error}"
    );
    drop(stream);
    env.stores_empty().await
}

/// Whoever reads it drops it in the middle: its code ends, and nothing is left.
pub async fn a_dropped_one_leaves_nothing(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let witness = Witness::new()?;
    let there = on(nodes[nodes.len() - 1]);
    let options = endless.options().strategy(there.clone());
    let mut stream = options.remote(witness.place("made"), 200_000, witness.place("sync dropped"));
    let kept = stream.next_ref().await.unwrap()?;
    assert_eq!(stream.next().await.unwrap()?[0], 1);
    assert!(!witness.saw("sync dropped"));
    drop(stream);
    witness.sees("sync dropped").await?;
    assert_eq!((&kept).await?[0], 0, "what somebody holds stays");
    drop(kept);
    let options = endless_async.options().strategy(there.clone());
    let mut stream = options.remote(witness.place("async"), 200_000, witness.place("dropped"));
    assert_eq!(stream.next().await.unwrap()?[0], 0);
    drop(stream);
    witness.sees("dropped").await?;
    env.stores_empty().await?;
    // Before it starts, too.
    let options = endless.options().strategy(there);
    drop(options.remote(witness.place("unread"), 10, witness.place("unread dropped")));
    for node in nodes {
        let ended = format!("cancelled on {node} dropped");
        let options = endless.options().strategy(on(node));
        let mut stream = options.remote(witness.place("cancelled"), 200_000, witness.place(&ended));
        stream.next().await.unwrap()?;
        assert!(!witness.saw(&ended));
        assert!(stream.cancel());
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        assert!(stream.next().await.is_none());
        assert!(!stream.cancel());
        // While it is held: its end comes of the cancelling, not of its drop.
        witness.sees(&ended).await?;
        drop(stream);
    }
    let ended = async || {
        let snapshot = env.cluster.snapshot().await?;
        Ok(snapshot.nodes.iter().all(|node| node.usage.objects == 0))
    };
    eventually("the end of what was cancelled", ended).await?;
    env.stores_empty().await
}

#[mobula::task]
fn dies_in_the_middle(place: String, at: u64, attempts: u32) -> Result<impl Iterator<Item = (u64, u32)>> {
    let attempt = mobula::context::current()?.attempt;
    witness::note(&place);
    Ok((0..40).map(move |i| {
        if i == at * u64::from(attempt) && attempt <= attempts {
            std::process::abort();
        }
        (i, attempt)
    }))
}

/// Each item comes once, though the code that makes them starts again.
pub async fn a_dead_host_is_no_loss(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let options = dies_in_the_middle.options().isolation("process").buffer_items(3);
    let items = collect(options.clone().remote(witness.place("ran"), 10, 2)).await?;
    assert_eq!(items.iter().map(|(i, _)| *i).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
    assert_eq!((items[0].1, items[39].1), (1, 3), "{items:?}");
    assert_eq!(witness.count("ran"), 3);
    let mut stream = options.retries(1).remote(witness.place("ends"), 5, 9);
    let mut items = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok((i, _)) => assert_eq!(std::mem::replace(&mut items, i + 1), i),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::HostDied, "{error}");
    assert!(error.to_string().contains("(attempt 2 of 2)"), "{error}");
    assert!(items <= 10 && stream.next().await.is_none());
    assert_eq!(witness.count("ends"), 2);
    Ok(())
}

#[mobula::task]
fn waits_halfway(place: String, n: u8, gate: String) -> impl Iterator<Item = Vec<u8>> {
    witness::note(&place);
    (0..n).map(move |i| {
        if i == n / 2 {
            witness::pass(&gate);
        }
        vec![i; 200_000]
    })
}

/// The node on which it runs dies, and with it what lies there, read or not: all of it is made again.
pub async fn a_dead_node_is_no_loss(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let gate = witness.gate("gate")?;
    let nodes = env.nodes().await?;
    let last = nodes[nodes.len() - 1];
    let soft = mobula::Strategy::Node { node: last, soft: true };
    let mut stream = waits_halfway.options().strategy(soft).remote(witness.place("ran"), 8, gate.place());
    let mut refs = vec![stream.next_ref().await.unwrap()?, stream.next_ref().await.unwrap()?];
    drop(refs.remove(0));
    witness.sees("ran").await?;
    {
        let mut rig = env.rig().unwrap();
        let place = usize::from(rig.number(1).unwrap() == last.number);
        rig.kill(Part::Node(place)).unwrap();
    }
    gate.open()?;
    eventually("the loss of a node", async || Ok(env.nodes().await?.len() == 1)).await?;
    while let Some(item) = stream.next_ref().await {
        refs.push(item?);
    }
    let values = mobula::get_all(&refs).await?;
    assert_eq!(values.iter().map(|value| value[0]).collect::<Vec<_>>(), (1..8).collect::<Vec<_>>());
    assert!(witness.count("ran") >= 2);
    drop((stream, refs));
    env.stores_empty().await
}

/// The same with a full window, whose reader waits for what has to be made again.
pub async fn a_full_window_is_made_again(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let nodes = env.nodes().await?;
    let last = nodes[nodes.len() - 1];
    let soft = mobula::Strategy::Node { node: last, soft: true };
    let options = endless.options().strategy(soft).buffer_items(3);
    let mut stream = options.remote(witness.place("made"), 200_000, witness.place("dropped"));
    let kept = stream.next_ref().await.unwrap()?;
    eventually("a full window", async || Ok(witness.count("made") >= 3)).await?;
    {
        let mut rig = env.rig().unwrap();
        let place = usize::from(rig.number(1).unwrap() == last.number);
        rig.kill(Part::Node(place)).unwrap();
    }
    eventually("the loss of a node", async || Ok(env.nodes().await?.len() == 1)).await?;
    for i in 1..20 {
        assert_eq!(stream.next().await.unwrap()?, [i; 200_000]);
    }
    assert_eq!((&kept).await?, [0; 200_000]);
    drop((stream, kept));
    env.stores_empty().await
}

#[mobula::task]
fn many_refs(n: u64) -> impl Iterator<Item = ObjectRef<u64>> {
    (0..n).map(|i| double.remote(i))
}

#[mobula::task]
fn passed_on(given: ObjectRefs, n: usize) -> impl Iterator<Item = ObjectRef<u64>> {
    (0..n).map(move |i| given.0[i % given.0.len()].clone())
}

#[mobula::data]
struct ObjectRefs(Vec<ObjectRef<u64>>);

#[mobula::task]
async fn of_another_owner() -> Result<u64> {
    let mine = ObjectRefs(vec![mobula::put(&3u64)?, mobula::put(&4u64)?]);
    let mut stream = passed_on.options().buffer_items(2).remote(mine, 11);
    let mut all = Vec::new();
    while let Some(item) = stream.next().await {
        all.push(item?);
    }
    Ok(mobula::get_all(&all).await?.iter().sum())
}

pub async fn refs_travel_inside_items(_env: Env) -> Result<()> {
    let refs = collect(many_refs.remote(30)).await?;
    assert_eq!(mobula::get_all(&refs).await?, (0..30).map(|i| i * 2).collect::<Vec<_>>());
    let mine = ObjectRefs(vec![mobula::put(&7u64)?]);
    let again = collect(passed_on.remote(mine, 5)).await?;
    assert_eq!(mobula::get_all(&again).await?, [7; 5]);
    assert_eq!(of_another_owner.remote().await?, 6 * 3 + 5 * 4);
    // Those of a stream that is dropped go too, which the end of the scenario checks.
    let mut stream = many_refs.options().buffer_items(4).remote(1000);
    assert_eq!(stream.next().await.unwrap()?.await?, 0);
    Ok(())
}

struct Log {
    lines: Vec<String>,
}

#[mobula::actor]
impl Log {
    fn new() -> Self {
        Self { lines: Vec::new() }
    }

    fn add(&mut self, line: String) -> usize {
        self.lines.push(line);
        self.lines.len()
    }

    #[method(buffer_items = 2)]
    fn drain(&mut self) -> impl Iterator<Item = String> {
        self.lines.drain(..)
    }

    fn all(&self) -> impl Iterator<Item = Result<String>> {
        self.lines.iter().map(|line| Ok(line.clone()))
    }

    async fn slowly(&self) -> Result<impl Stream<Item = String>> {
        let mut lines = self.lines.iter();
        Ok(ticks(move || lines.next().cloned()))
    }
}

pub async fn methods_stream(_env: Env) -> Result<()> {
    let log = Log::spawn().await?;
    for i in 0..8 {
        log.add(format!("line {i}"));
    }
    let (one, two) = (log.all(), log.slowly());
    assert_eq!(collect(one).await?, collect(two).await?);
    let mut drained = log.drain();
    assert_eq!(drained.next().await.unwrap()?, "line 0");
    // The actor is busy while an exclusive method streams.
    let after = log.add("after".to_owned());
    assert!(!after.is_ready());
    assert_eq!(collect(drained).await?.len(), 7);
    assert_eq!(after.await?, 1);
    // Dropped in the middle, it is free again, and what it had is gone with the iterator.
    log.add("more".to_owned()).await?;
    let mut drained = log.drain();
    assert_eq!(drained.next().await.unwrap()?, "after");
    drop(drained);
    assert_eq!(log.add("last".to_owned()).await?, 1);
    Ok(())
}

/// A reader that is gone leaves no producer behind: here the process of the task that reads.
#[mobula::task(isolation = "process", retries = 0)]
async fn reads_and_dies(made: String, dropped: String) -> Result<()> {
    let mut stream = endless_async.options().cpu(0.0).remote(made, 1000, dropped);
    let _first = stream.next().await;
    std::process::abort();
}

pub async fn a_dead_reader_ends_it(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let error = reads_and_dies.remote(witness.place("made"), witness.place("dropped")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostDied, "{error}");
    let began = Instant::now();
    witness.sees("dropped").await?;
    assert!(began.elapsed() < Duration::from_secs(10));
    Ok(())
}
