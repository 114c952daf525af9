//! The rows of `ray microbenchmark`, under its names, with its loop sizes.
//!
//! Drivers and what they call are different processes. What Ray runs as client processes are actors and tasks here with
//! `isolation = "process"`.

use mobula::{ObjectRef, blocking};

use super::functions::{
    AsyncClient, AsyncEcho, AsyncEchoHandle, Client, ConcurrentEcho, Echo, EchoHandle, PUT_BYTES, SMALL,
    async_work, create_object_containing_refs, do_put, do_put_own, do_put_small, ones, small_value, work,
};
use crate::{
    limits::{
        memory::{MEMCPY, MEMCPY_TWO},
        pair::{BATCHES, MESSAGE_BATCH, MESSAGES, SPINNING},
    },
    measure::{Result, rate},
    row::{
        Place, Probe, Row, Stage,
        Target::{self, OfLimit, OfPeer},
    },
    system::cores,
};

/// Calls that one client makes to each server.
const CALLS: u64 = 5000;
/// Calls that one client has on their way at once: as many messages as the limit has.
const BATCH: usize = MESSAGE_BATCH;
/// Tasks that each client submits.
const TASKS: u64 = 10_000;
/// Clients.
const CLIENTS: u64 = 4;

macro_rules! probes {
    ($($row:expr, $run:expr;)*) => {
        &[$(Probe { rows: &[$row], stage: Stage::OneNode, run: |place| Ok(vec![$run(place)?]) }),*]
    };
}

const fn calls(name: &'static str, targets: &'static [Target]) -> Row {
    Row::more(name, "1/s").peer(name).targets(targets)
}

/// Calls that are made one after the other, which no one can make faster than messages go there and back.
const fn sync(name: &'static str, targets: &'static [Target]) -> Row {
    calls(name, targets).limit(SPINNING)
}

/// Calls of which many are on their way at once.
const fn many(name: &'static str, targets: &'static [Target]) -> Row {
    calls(name, targets).limit(MESSAGES)
}

const fn gigabytes(name: &'static str, limit: &'static str) -> Row {
    Row::more(name, "GB/s").peer(name).limit(limit).targets(&[OfLimit(0.85)])
}

/// A row of Ray's that another row is held against.
pub const TASKS_SYNC: &str = "single client tasks sync";

/// All of them, in Ray's order.
pub const PROBES: &[Probe] = probes! {
    calls("single client get calls (Plasma Store)", &[OfPeer(100.0)]), |place| gets(place, mobula::put_shared);
    calls("single client put calls (Plasma Store)", &[OfPeer(200.0)]), |place| puts(place, mobula::put_shared);
    calls("multi client put calls (Plasma Store)", &[OfPeer(200.0)]), |place| puts_of_tasks(place, || do_put_small.remote());
    Row::more("single client get calls, of what it keeps itself", "1/s"), |place| gets(place, mobula::put);
    Row::more("single client put calls, of what it keeps itself", "1/s"), |place| puts(place, mobula::put);
    Row::more("multi client put calls, of what they keep themselves", "1/s"), |place| puts_of_tasks(place, || do_put_own.remote());
    gigabytes("single client put gigabytes", MEMCPY), put_large;
    calls("single client tasks and get batch", &[OfPeer(150.0)]).limit(BATCHES), |place| batches(place, 1.0);
    gigabytes("multi client put gigabytes", MEMCPY_TWO), put_multi;
    calls("single client get object containing 10k refs", &[OfPeer(25.0)]), get_containing_refs;
    calls("single client wait 1k refs", &[OfPeer(60.0)]).limit(BATCHES), wait_multiple_refs;
    sync(TASKS_SYNC, &[OfPeer(40.0)]), task_sync;
    many("single client tasks async", &[OfPeer(150.0)]), |place| batches(place, BATCH as f64);
    many("multi client tasks async", &[OfPeer(150.0)]), multi_task;
    sync("1:1 actor calls sync", &[OfPeer(20.0)]), actor_sync;
    many("1:1 actor calls async", &[OfPeer(100.0)]), actor_async;
    many("1:1 actor calls concurrent", &[OfPeer(100.0)]), actor_concurrent;
    many("1:n actor calls async", &[OfPeer(100.0)]), actor_async_direct;
    many("n:n actor calls async", &[OfPeer(100.0)]), actor_multi;
    many("n:n actor calls with arg async", &[OfPeer(150.0)]), actor_multi_direct_arg;
    sync("1:1 async-actor calls sync", &[OfPeer(20.0)]), async_actor_sync;
    many("1:1 async-actor calls async", &[OfPeer(100.0)]), async_actor;
    many("1:1 async-actor calls with args async", &[OfPeer(100.0)]), async_actor_args;
    many("1:n async-actor calls async", &[OfPeer(100.0)]), async_actor_async;
    many("n:n async-actor calls async", &[OfPeer(100.0)]), async_actor_multi;
};

fn servers() -> usize {
    (cores() / 2).max(1)
}

fn process(options: mobula::Options) -> mobula::Options {
    options.isolation("process")
}

fn all<T: mobula::Data>(refs: &[ObjectRef<T>]) -> Result<()> {
    Ok(blocking::get_all(refs).map(drop)?)
}

/// How a small value is put: [`mobula::put_shared`] or [`mobula::put`].
type Put = fn(&u64) -> mobula::Result<ObjectRef<u64>>;

fn gets(place: &Place, put: Put) -> Result<f64> {
    let value = put(&SMALL)?;
    rate(place.scale, 1.0, || Ok(value.get().map(drop)?))
}

fn puts(place: &Place, put: Put) -> Result<f64> {
    rate(place.scale, 1.0, || Ok(put(&SMALL).map(drop)?))
}

/// Of ten tasks, each of which puts a hundred.
fn puts_of_tasks(place: &Place, start: fn() -> ObjectRef<()>) -> Result<f64> {
    rate(place.scale, 1000.0, || all(&(0..10).map(|_| start()).collect::<Vec<_>>()))
}

fn put_large(place: &Place) -> Result<f64> {
    let array = ones(100 * 1024 * 1024)?;
    rate(place.scale, array.as_bytes()?.len() as f64 / 1e9, || Ok(mobula::put(&array).map(drop)?))
}

fn batches(place: &Place, operations: f64) -> Result<f64> {
    rate(place.scale, operations, || all(&(0..BATCH).map(|_| small_value.remote()).collect::<Vec<_>>()))
}

fn put_multi(place: &Place) -> Result<f64> {
    rate(place.scale, 10.0 * PUT_BYTES as f64 / 1e9, || {
        all(&(0..10).map(|_| do_put.remote()).collect::<Vec<_>>())
    })
}

fn get_containing_refs(place: &Place) -> Result<f64> {
    let object = create_object_containing_refs.remote();
    rate(place.scale, 1.0, || Ok(object.get().map(drop)?))
}

fn wait_multiple_refs(place: &Place) -> Result<f64> {
    rate(place.scale, 1.0, || {
        let mut waiting: Vec<_> = (0..1000).map(|_| small_value.remote()).collect();
        while !waiting.is_empty() {
            let (ready, _) = blocking::wait(&waiting, 1, None)?;
            // One for each wait, though more may be ready.
            waiting.swap_remove(*ready.first().ok_or("a wait gave nothing")?);
        }
        Ok(())
    })
}

fn task_sync(place: &Place) -> Result<f64> {
    rate(place.scale, 1.0, || Ok(small_value.remote().get().map(drop)?))
}

fn multi_task(place: &Place) -> Result<f64> {
    let actors: Vec<_> = (0..CLIENTS).map(|_| Echo::spawn().options(process).start()).collect();
    rate(place.scale, (TASKS * CLIENTS) as f64, || {
        all(&actors.iter().map(|actor| actor.small_value_batch(TASKS)).collect::<Vec<_>>())
    })
}

fn actor_sync(place: &Place) -> Result<f64> {
    let actor = Echo::spawn().start();
    rate(place.scale, 1.0, || Ok(actor.small_value().get().map(drop)?))
}

fn actor_async(place: &Place) -> Result<f64> {
    let actor = Echo::spawn().start();
    rate(place.scale, BATCH as f64, || all(&(0..BATCH).map(|_| actor.small_value()).collect::<Vec<_>>()))
}

fn actor_concurrent(place: &Place) -> Result<f64> {
    let actor = ConcurrentEcho::spawn().start();
    rate(place.scale, BATCH as f64, || all(&(0..BATCH).map(|_| actor.small_value()).collect::<Vec<_>>()))
}

fn echoes() -> Vec<EchoHandle> {
    (0..servers()).map(|_| Echo::spawn().start()).collect()
}

fn async_echoes() -> Vec<AsyncEchoHandle> {
    (0..servers()).map(|_| AsyncEcho::spawn().start()).collect()
}

fn actor_async_direct(place: &Place) -> Result<f64> {
    let client = Client::spawn(echoes()).options(process).start();
    rate(place.scale, (CALLS * servers() as u64) as f64, || Ok(client.small_value_batch(CALLS).get()?))
}

fn actor_multi(place: &Place) -> Result<f64> {
    let actors: Vec<_> = (0..servers()).map(|_| Echo::spawn().options(process).start()).collect();
    rate(place.scale, (CLIENTS * CALLS) as f64, || {
        all(&(0..CLIENTS).map(|_| work.remote(actors.clone(), CALLS)).collect::<Vec<_>>())
    })
}

fn actor_multi_direct_arg(place: &Place) -> Result<f64> {
    let clients: Vec<_> =
        echoes().into_iter().map(|echo| Client::spawn(vec![echo]).options(process).start()).collect();
    rate(place.scale, (1000 * clients.len()) as f64, || {
        all(&clients.iter().map(|client| client.small_value_batch_arg(1000)).collect::<Vec<_>>())
    })
}

fn async_actor_sync(place: &Place) -> Result<f64> {
    let actor = AsyncEcho::spawn().start();
    rate(place.scale, 1.0, || Ok(actor.small_value().get().map(drop)?))
}

fn async_actor(place: &Place) -> Result<f64> {
    let actor = AsyncEcho::spawn().start();
    rate(place.scale, BATCH as f64, || all(&(0..BATCH).map(|_| actor.small_value()).collect::<Vec<_>>()))
}

fn async_actor_args(place: &Place) -> Result<f64> {
    let actor = AsyncEcho::spawn().start();
    rate(place.scale, BATCH as f64, || {
        all(&(0..BATCH as u64).map(|i| actor.small_value_with_arg(i)).collect::<Vec<_>>())
    })
}

fn async_actor_async(place: &Place) -> Result<f64> {
    let client = AsyncClient::spawn(async_echoes()).options(process).start();
    rate(place.scale, (CALLS * servers() as u64) as f64, || Ok(client.small_value_batch(CALLS).get()?))
}

fn async_actor_multi(place: &Place) -> Result<f64> {
    let actors: Vec<_> = (0..servers()).map(|_| AsyncEcho::spawn().options(process).start()).collect();
    rate(place.scale, (CLIENTS * CALLS) as f64, || {
        all(&(0..CLIENTS).map(|_| async_work.remote(actors.clone(), CALLS)).collect::<Vec<_>>())
    })
}
