//! Pools, queues, semaphores and barriers.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use mobula::{ActorPool, Barrier, Error, ErrorKind, Lifeline, ObjectRef, Packed, Queue, Result, Semaphore};
use mobula_e2e::{Env, eventually};

/// Longest that anything here waits for what comes.
const LONG: Duration = Duration::from_secs(20);
/// How long something is waited for that does not come.
const SHORT: Duration = Duration::from_millis(50);

/// So many numbers are read from the store, which takes more than one poll.
const LARGE: usize = 20_000;

struct Worker {
    done: u64,
}

#[mobula::actor]
impl Worker {
    fn new() -> Self {
        Self { done: 0 }
    }

    fn double(&mut self, x: u64) -> u64 {
        self.done += 1;
        2 * x
    }

    async fn hold(&mut self, gate: Vec<ObjectRef<()>>) {
        for one in gate {
            let _ended = one.await;
        }
    }

    fn done(&self) -> u64 {
        self.done
    }

    fn fill(&self, x: u64) -> Vec<u64> {
        vec![x; LARGE]
    }
}

#[mobula::task]
async fn double_all(pool: ActorPool<Worker>, count: u64) -> Result<u64> {
    Ok(pool.map(0..count, |worker, x| worker.double(x)).await?.into_iter().sum())
}

pub async fn a_pool_shares_work(_env: Env) -> Result<()> {
    let mut pool = ActorPool::<Worker>::spawn(3, |_| Worker::spawn()).await?;
    let doubled = pool.map(0..60, |worker, x| worker.double(x)).await?;
    assert_eq!(doubled, (0..60).map(|x| 2 * x).collect::<Vec<_>>());
    assert_eq!(double_all.remote(pool.clone(), 10).await?, 90);

    // The busy one gets nothing more.
    let lifeline = Lifeline::new()?;
    let held = pool.call(|worker| worker.hold(vec![lifeline.watch()]));
    let busy = pool.in_flight().iter().position(|calls| *calls == 1).expect("one has a call");
    let count_others = async || -> Result<u64> {
        let done: Vec<_> = pool.members().iter().map(|worker| worker.done()).collect();
        let others = done.iter().enumerate().filter(|(at, _)| *at != busy).map(|(_, done)| done.clone());
        Ok(mobula::get_all(&others.collect::<Vec<_>>()).await?.iter().sum())
    };
    let before = count_others().await?;
    for x in 0..10 {
        assert_eq!(pool.call(|worker| worker.double(x)).await?, 2 * x);
    }
    drop(lifeline);
    held.await?;
    assert_eq!(count_others().await?, before + 10);

    // Results as they come.
    let mut results = pool.map_unordered(0..20, |worker, x| worker.double(x));
    let mut seen = Vec::new();
    while let Some((at, result)) = results.next().await {
        assert_eq!(result?, 2 * at as u64);
        seen.push(at);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..20).collect::<Vec<_>>());

    // Dead members get nothing.
    pool.members()[0].kill();
    eventually("the death to be known", async || Ok(pool.members()[0].is_dead())).await?;
    assert_eq!(pool.map(0..10, |worker, x| worker.double(x)).await?.len(), 10);
    // What the others have in flight still counts once there is a new one.
    let lifeline = Lifeline::new()?;
    let held = pool.call(|worker| worker.hold(vec![lifeline.watch()]));
    let busy = pool.in_flight();
    assert_eq!(pool.replace_dead(|_| Worker::spawn()).await?, 1);
    assert_eq!((pool.in_flight(), busy.iter().sum()), (busy, 1));
    drop(lifeline);
    held.await?;
    for member in pool.members() {
        member.kill();
    }
    eventually("all deaths to be known", async || Ok(pool.members().iter().all(|one| one.is_dead()))).await?;
    let error = pool.call(|worker| worker.double(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ActorDied, "{error}");
    assert!(error.to_string().contains("replace_dead"), "{error}");
    assert_eq!(pool.replace_dead(|_| Worker::spawn()).await?, 3);
    assert_eq!(pool.call(|worker| worker.double(4)).await?, 8);
    Ok(())
}

pub async fn a_pool_counts_calls_from_when_it_chooses(_env: Env) -> Result<()> {
    let pool = ActorPool::<Worker>::spawn(3, |_| Worker::spawn()).await?;
    let lifeline = Lifeline::new()?;
    // Each of three threads has chosen before any has called.
    let all_chose = Arc::new(std::sync::Barrier::new(3));
    let calling = (0..3).map(|_| {
        let (pool, all_chose, watch) = (pool.clone(), all_chose.clone(), lifeline.watch());
        tokio::task::spawn_blocking(move || {
            pool.call(|worker| {
                all_chose.wait();
                worker.hold(vec![watch])
            })
        })
    });
    let mut held = Vec::new();
    for call in calling.collect::<Vec<_>>() {
        held.push(call.await.expect("it does not panic"));
    }
    assert_eq!(pool.in_flight(), [1; 3]);
    // What was not called after all, does not count.
    let panics = std::panic::AssertUnwindSafe(|| pool.call::<u64>(|_| panic!("nothing is called")));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!(pool.in_flight(), [1; 3]);
    drop(lifeline);
    mobula::get_all(&held).await?;
    assert_eq!(pool.in_flight(), [0; 3]);
    Ok(())
}

pub async fn a_pool_loses_no_result_that_nobody_took(_env: Env) -> Result<()> {
    const ITEMS: u64 = 30;
    let pool = ActorPool::<Worker>::spawn(2, |_| Worker::spawn()).await?;
    let mut results = pool.map_unordered(0..ITEMS, |worker, x| worker.fill(x));
    let mut seen = Vec::new();
    let (mut waited, end) = (0, Instant::now() + LONG);
    loop {
        // Asked once, and given up.
        let next = {
            let mut next = Box::pin(results.next());
            poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await
        };
        match next {
            Poll::Ready(Some((at, result))) => {
                assert_eq!(result?, vec![at as u64; LARGE]);
                seen.push(at as u64);
            }
            Poll::Ready(None) => break,
            Poll::Pending => {
                assert!(Instant::now() < end, "{seen:?} came, and no others");
                waited += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..ITEMS).collect::<Vec<_>>());
    assert!(waited > 0, "nothing was given up");
    Ok(())
}

#[mobula::task(cpu = 0)]
async fn produce(queue: Queue<u64>, from: u64, count: u64) -> Result<()> {
    for item in from..from + count {
        queue.put(&item).await?;
    }
    Ok(())
}

#[mobula::task(cpu = 0)]
async fn consume(queue: Queue<u64>) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    loop {
        let items = queue.get_batch(3, Some(LONG)).await?;
        if items.is_empty() {
            return Ok(all);
        }
        all.extend(items);
    }
}

pub async fn a_queue_passes_items(_env: Env) -> Result<()> {
    let queue = Queue::<u64>::new(4).await?;
    let consumers: Vec<_> = (0..3).map(|_| consume.remote(queue.clone())).collect();
    let producers: Vec<_> = (0..3).map(|i| produce.remote(queue.clone(), 100 * i, 40)).collect();
    mobula::get_all(&producers).await?;
    queue.close().await?;
    let lists = mobula::get_all(&consumers).await?;
    for list in &lists {
        // In each producer's order, whoever got them.
        for producer in 0..3 {
            assert!(list.iter().filter(|item| *item / 100 == producer).is_sorted(), "{list:?}");
        }
    }
    let mut all: Vec<u64> = lists.into_iter().flatten().collect();
    all.sort_unstable();
    let expected: Vec<u64> = (0..3).flat_map(|i| 100 * i..100 * i + 40).collect();
    assert_eq!(all, expected);
    Ok(())
}

pub async fn a_queue_waits_no_longer_than_it_may(_env: Env) -> Result<()> {
    let queue = Queue::<String>::new(2).await?;
    assert_eq!(queue.get_within(SHORT).await.unwrap_err().kind(), ErrorKind::TimedOut);
    queue.put(&"a".to_owned()).await?;
    queue.put(&"b".to_owned()).await?;
    let full = queue.put_within(&"c".to_owned(), SHORT).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::TimedOut, "{full}");
    // A wait that is given up takes nothing.
    let more = queue.clone();
    let item = "d".to_owned();
    let (put, got) = tokio::join!(more.put(&item), queue.get_batch(2, None));
    put?;
    assert_eq!(got?, ["a", "b"]);
    assert_eq!(queue.get().await?.as_deref(), Some("d"));
    assert!(queue.is_empty().await?);
    queue.close().await?;
    assert_eq!(queue.get().await?, None);
    let closed = queue.put(&"e".to_owned()).await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Closed, "{closed}");
    assert!(!closed.is_retryable() && closed.to_string().contains("closed"), "{closed}");
    // So it is for who waits for room meanwhile.
    let queue = Queue::<String>::new(1).await?;
    queue.put(&"f".to_owned()).await?;
    let (item, full) = ("g".to_owned(), queue.clone());
    let mut put = Box::pin(full.put(&item));
    assert!(tokio::time::timeout(SHORT, &mut put).await.is_err(), "it is full");
    queue.close().await?;
    assert_eq!(put.await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(queue.get().await?.as_deref(), Some("f"));
    assert_eq!(queue.get().await?, None);
    Ok(())
}

/// Asks for an item that is not there yet, and no more.
async fn ask<T>(get: &mut Pin<Box<impl Future<Output = T>>>) {
    let asked = poll_fn(|cx| Poll::Ready(get.as_mut().poll(cx).is_pending())).await;
    assert!(asked, "nothing was to be got yet");
}

async fn holds(queue: &Queue<u64>, count: u32) -> Result<()> {
    eventually(&format!("the queue to hold {count} items"), async || Ok(queue.len().await? == count)).await
}

#[mobula::task(cpu = 0, retries = 0, isolation = "process")]
async fn die_getting(queue: Queue<u64>, asked: Queue<u64>, end: Vec<ObjectRef<()>>) -> Result<()> {
    let mut get = Box::pin(queue.get());
    ask(&mut get).await;
    asked.put(&1).await?;
    let _ended = end[0].clone().await;
    std::process::abort()
}

pub async fn an_item_that_nobody_got_stays_in_its_place(_env: Env) -> Result<()> {
    let queue = Queue::<u64>::new(3).await?;
    let mut given_up = Box::pin(queue.get());
    ask(&mut given_up).await;
    for item in 1..=3 {
        queue.put(&item).await?;
    }
    // The first is on its way, and has its place still.
    holds(&queue, 2).await?;
    assert_eq!(queue.put_within(&4, SHORT).await.unwrap_err().kind(), ErrorKind::TimedOut);
    drop(given_up);
    assert_eq!(queue.get_batch(3, Some(LONG)).await?, [1, 2, 3]);

    // So it is where the process dies that asked for it.
    let end = Lifeline::new()?;
    let asked = Queue::<u64>::new(1).await?;
    let dying = die_getting.remote(queue.clone(), asked.clone(), vec![end.watch()]);
    asked.get_within(LONG).await?;
    queue.put(&5).await?;
    holds(&queue, 0).await?;
    drop(end);
    assert_eq!(dying.await.unwrap_err().kind(), ErrorKind::HostDied);
    assert_eq!(queue.get_within(LONG).await?, Some(5));

    // A closed queue is not at its end before what is on its way is there.
    let mut given_up = Box::pin(queue.get());
    ask(&mut given_up).await;
    queue.put(&6).await?;
    holds(&queue, 0).await?;
    queue.close().await?;
    let mut next = Box::pin(queue.get_within(LONG));
    assert!(tokio::time::timeout(SHORT, &mut next).await.is_err(), "the sixth may come back");
    drop(given_up);
    assert_eq!(next.await?, Some(6));
    assert_eq!(queue.get().await?, None);
    Ok(())
}

/// Gets what there is, again and again without the patience to wait for it.
#[mobula::task(cpu = 0)]
async fn consume_impatiently(queue: Queue<u64>) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for patience in (0..4).cycle().map(Duration::from_millis) {
        match tokio::time::timeout(patience, queue.get()).await {
            Ok(Ok(Some(item))) => all.push(item),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(error),
            Err(_given_up) => {}
        }
    }
    Ok(all)
}

pub async fn impatient_consumers_lose_nothing(_env: Env) -> Result<()> {
    const ITEMS: u64 = 400;
    let queue = Queue::<u64>::new(8).await?;
    let consumers: Vec<_> = (0..3).map(|_| consume_impatiently.remote(queue.clone())).collect();
    produce.remote(queue.clone(), 0, ITEMS).await?;
    queue.close().await?;
    let mut all: Vec<u64> = mobula::get_all(&consumers).await?.into_iter().flatten().collect();
    all.sort_unstable();
    assert_eq!(all, (0..ITEMS).collect::<Vec<_>>());

    // In order, where there is but one.
    let queue = Queue::<u64>::new(8).await?;
    let consumer = consume_impatiently.remote(queue.clone());
    produce.remote(queue.clone(), 0, ITEMS).await?;
    queue.close().await?;
    assert_eq!(consumer.await?, (0..ITEMS).collect::<Vec<_>>());
    Ok(())
}

#[mobula::task(cpu = 0)]
async fn hold_for_a_while(semaphore: Semaphore) -> Result<u32> {
    let _permit = semaphore.acquire_within(2, LONG).await?;
    semaphore.available().await
}

pub async fn a_semaphore_bounds(_env: Env) -> Result<()> {
    let semaphore = Semaphore::new(3).await?;
    // Two of three each: one at a time.
    let holders: Vec<_> = (0..6).map(|_| hold_for_a_while.remote(semaphore.clone())).collect();
    assert_eq!(mobula::get_all(&holders).await?, [1; 6]);
    let all = semaphore.acquire_within(3, LONG).await?;
    let none = semaphore.acquire_within(1, SHORT).await.map(|_| ()).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::TimedOut, "{none}");
    let never = semaphore.acquire(4).await.map(|_| ()).unwrap_err();
    assert_eq!(never.kind(), ErrorKind::Limit, "{never}");
    drop(all);
    drop(semaphore.acquire_within(3, LONG).await?);
    eventually("all permits to be back", async || Ok(semaphore.available().await? == 3)).await
}

#[mobula::task(cpu = 0, retries = 0, isolation = "process")]
async fn die_with_permits(semaphore: Semaphore) -> Result<()> {
    let _permits = semaphore.acquire(2).await?;
    std::process::abort()
}

pub async fn a_dead_holders_permits_come_back(_env: Env) -> Result<()> {
    let semaphore = Semaphore::new(2).await?;
    let error = die_with_permits.remote(semaphore.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostDied, "{error}");
    let permit = semaphore.acquire_within(2, LONG).await?;
    drop(permit);
    Ok(())
}

#[mobula::task(cpu = 0)]
async fn arrive(barrier: Barrier, times: u64) -> Result<Vec<u64>> {
    let mut generations = Vec::new();
    for _ in 0..times {
        generations.push(barrier.wait(LONG).await?);
    }
    Ok(generations)
}

#[mobula::task(cpu = 0)]
async fn arrive_briefly(barrier: Barrier, ms: u64) -> Result<String> {
    match barrier.wait(Duration::from_millis(ms)).await {
        Ok(generation) => Err(Error::new(ErrorKind::Internal, format!("generation {generation}"))),
        Err(error) => Ok(format!("{:?}: {error}", error.kind())),
    }
}

pub async fn a_barrier_lets_all_go_on_or_none(_env: Env) -> Result<()> {
    let barrier = Barrier::new(3).await?;
    let parties: Vec<_> = (0..3).map(|_| arrive.remote(barrier.clone(), 4)).collect();
    for generations in mobula::get_all(&parties).await? {
        assert_eq!(generations, [1, 2, 3, 4]);
    }
    // One of three never comes: the time of the first that is up ends it for both.
    let both = [arrive_briefly.remote(barrier.clone(), 300), arrive_briefly.remote(barrier.clone(), 20_000)];
    for text in mobula::get_all(&both).await? {
        assert!(text.starts_with("TimedOut") && text.contains("of 3 parties"), "{text}");
    }
    let parties: Vec<_> = (0..3).map(|_| arrive.remote(barrier.clone(), 1)).collect();
    assert_eq!(mobula::get_all(&parties).await?, [[5]; 3]);
    Ok(())
}

/// Waits at the barrier until it is told to die there.
#[mobula::task(cpu = 0, retries = 0, isolation = "process")]
async fn die_at(barrier: Barrier, end: Vec<ObjectRef<()>>) -> Result<()> {
    tokio::select! {
        biased;
        came = barrier.wait(LONG) => came.map(drop),
        _ended = end[0].clone() => std::process::abort(),
    }
}

pub async fn a_barrier_counts_who_is_there(_env: Env) -> Result<()> {
    let barrier = Barrier::new(3).await?;
    let are_there = async |count: u32| {
        eventually(&format!("{count} parties to be at the barrier"), async || {
            Ok(barrier.waiting().await? == count)
        })
        .await
    };
    let end = Lifeline::new()?;
    let dying = die_at.remote(barrier.clone(), vec![end.watch()]);
    are_there(1).await?;
    let cancelled = arrive.remote(barrier.clone(), 1);
    are_there(2).await?;
    // The first dies, the second is cancelled, and a third gives up its wait.
    drop(end);
    assert_eq!(dying.await.unwrap_err().kind(), ErrorKind::HostDied);
    are_there(1).await?;
    assert!(cancelled.cancel());
    are_there(0).await?;
    let mut given_up = Box::pin(barrier.wait(LONG));
    tokio::select! {
        biased;
        came = &mut given_up => assert_eq!(came?, 0, "nobody else is there"),
        there = are_there(1) => there?,
    }
    drop(given_up);
    are_there(0).await?;
    // Two of three: whoever left is none of them.
    let both = [arrive_briefly.remote(barrier.clone(), 300), arrive_briefly.remote(barrier.clone(), 20_000)];
    for text in mobula::get_all(&both).await? {
        assert!(text.starts_with("TimedOut") && text.contains("2 of 3 parties"), "{text}");
    }
    // Nor does who leaves take the others with it.
    let two: Vec<_> = (0..2).map(|_| arrive.remote(barrier.clone(), 1)).collect();
    are_there(2).await?;
    assert!(two[1].cancel());
    are_there(1).await?;
    let others: Vec<_> = (0..2).map(|_| arrive.remote(barrier.clone(), 1)).collect();
    assert_eq!(mobula::get_all(&others).await?, [[1]; 2]);
    assert_eq!(two[0].clone().await?, [1]);
    Ok(())
}

#[mobula::task]
async fn unpack(packed: Packed) -> Result<(String, u64)> {
    let (text, inner) = packed.open::<(String, ObjectRef<u64>)>()?;
    drop(packed);
    Ok((text, inner.await?))
}

pub async fn packed_values_keep_their_refs(_env: Env) -> Result<()> {
    let inner = mobula::put(&41_u64)?;
    let packed = Packed::new(&("text".to_owned(), inner.clone()))?;
    drop(inner);
    assert_eq!(unpack.remote(packed.clone()).await?, ("text".to_owned(), 41));
    let error = packed.open::<u64>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
    Ok(())
}
