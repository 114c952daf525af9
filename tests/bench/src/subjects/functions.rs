//! The tasks and actors that the subjects call.

use std::{
    hint::black_box,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mobula::{blocking, prelude::*};

/// Makes all the calls, then waits for all.
fn wait_for<T: mobula::Data>(calls: impl Iterator<Item = ObjectRef<T>>) -> mobula::Result<()> {
    blocking::get_all(&calls.collect::<Vec<_>>()).map(drop)
}

/// `n` calls of one server after those of the other.
fn each<S, T>(servers: &[S], n: u64, call: impl Fn(&S) -> T) -> impl Iterator<Item = T> {
    servers.iter().flat_map(move |server| std::iter::repeat_n(server, n as usize)).map(call)
}

fn timed<T>(call: impl FnOnce() -> mobula::Result<T>) -> mobula::Result<f64> {
    let begun = Instant::now();
    call()?;
    Ok(begun.elapsed().as_secs_f64())
}

fn rested<T>(microseconds: u64, then: impl FnOnce() -> T) -> T {
    if microseconds > 0 {
        std::thread::sleep(Duration::from_micros(microseconds));
    }
    then()
}

/// What every small call returns.
fn ok() -> Vec<u8> {
    b"ok".to_vec()
}

/// The smallest task.
#[mobula::task]
pub fn small_value() -> Vec<u8> {
    ok()
}

/// The process that runs it.
#[mobula::task]
pub fn own_process() -> u32 {
    std::process::id()
}

static SPINNING: AtomicU32 = AtomicU32::new(0);

/// Holds a processor for so long, or until somebody gives up on it.
#[mobula::task(cpu = 0.5, retries = 0)]
pub fn spin(milliseconds: u64) -> u64 {
    SPINNING.fetch_add(1, Ordering::Relaxed);
    let begun = Instant::now();
    let mut turns = 0;
    while begun.elapsed() < Duration::from_millis(milliseconds) && !mobula::context::cancelled() {
        turns += 1;
    }
    SPINNING.fetch_sub(1, Ordering::Relaxed);
    turns
}

/// A tensor of this many bytes, all touched.
#[mobula::task]
pub fn make_tensor(bytes: u64) -> mobula::Result<Tensor> {
    ones(usize::try_from(bytes / 8).unwrap_or(usize::MAX))
}

/// A tensor of so many ones.
pub fn ones(elements: usize) -> mobula::Result<Tensor> {
    Tensor::from_vec(&[elements], vec![1i64; elements])
}

/// What small objects hold.
pub const SMALL: u64 = 0x0123_4567_89AB_CDEF;

/// A hundred small objects in shared memory.
#[mobula::task(isolation = "process")]
pub fn do_put_small() -> mobula::Result<()> {
    for _ in 0..100 {
        mobula::put_shared(&SMALL)?;
    }
    Ok(())
}

/// A hundred that stay in this process.
#[mobula::task(isolation = "process")]
pub fn do_put_own() -> mobula::Result<()> {
    for _ in 0..100 {
        mobula::put(&SMALL)?;
    }
    Ok(())
}

/// Bytes that one [`do_put`] puts.
pub const PUT_BYTES: usize = 10 * 80 * 1024 * 1024;

/// Ten objects of 80 MiB.
#[mobula::task(isolation = "process")]
pub fn do_put() -> mobula::Result<()> {
    static VALUE: OnceLock<mobula::Result<Tensor>> = OnceLock::new();
    let tensor = VALUE.get_or_init(|| ones(10 * 1024 * 1024)).as_ref().map_err(Clone::clone)?;
    for _ in 0..10 {
        mobula::put(tensor)?;
    }
    Ok(())
}

/// One object with 10,000 refs to others.
#[mobula::task]
pub fn create_object_containing_refs() -> mobula::Result<Vec<ObjectRef<u64>>> {
    (0..10_000).map(|_| mobula::put(&1u64)).collect()
}

/// Calls all the actors in turn, `calls` times in all.
#[mobula::task(isolation = "process")]
pub fn work(actors: Vec<EchoHandle>, calls: u64) -> mobula::Result<()> {
    wait_for(actors.iter().cycle().take(calls as usize).map(EchoHandle::small_value))
}

/// Calls all the async actors in turn, `calls` times in all.
#[mobula::task(isolation = "process")]
pub fn async_work(actors: Vec<AsyncEchoHandle>, calls: u64) -> mobula::Result<()> {
    wait_for(actors.iter().cycle().take(calls as usize).map(AsyncEchoHandle::small_value))
}

/// Answers, one call at a time.
pub struct Echo;

#[mobula::actor]
impl Echo {
    fn new() -> Self {
        Self
    }

    fn small_value(&mut self) -> Vec<u8> {
        ok()
    }

    /// How many tasks spin in this actor's process.
    fn spinning(&mut self) -> u32 {
        SPINNING.load(Ordering::Relaxed)
    }

    fn small_value_arg(&mut self, _x: u64) -> Vec<u8> {
        ok()
    }

    fn small_value_batch(&mut self, n: u64) -> mobula::Result<()> {
        wait_for((0..n).map(|_| small_value.remote()))
    }

    /// Where it lives.
    fn process(&mut self) -> u32 {
        std::process::id()
    }

    /// Seconds that each get takes here, until the value is read; so many microseconds after the one before.
    fn time_gets(&mut self, values: Vec<ObjectRef<u64>>, rest: u64) -> mobula::Result<Vec<f64>> {
        let get = |value: &ObjectRef<u64>| timed(|| value.get().map(black_box));
        values.iter().map(|value| rested(rest, || get(value))).collect()
    }

    /// Seconds that each look takes here, until a byte in the middle is read; so many microseconds after the one before.
    fn time_views(&mut self, values: Vec<ObjectRef<Tensor>>, rest: u64) -> mobula::Result<Vec<f64>> {
        let look = |value: &ObjectRef<Tensor>| {
            timed(|| {
                let view = value.view()?;
                let tensor = view.tensor()?;
                let bytes = tensor.as_bytes()?;
                Ok(black_box(bytes[bytes.len() / 2]))
            })
        };
        values.iter().map(|value| rested(rest, || look(value))).collect()
    }
}

/// Answers, many calls at once.
pub struct ConcurrentEcho;

#[mobula::actor]
impl ConcurrentEcho {
    fn new() -> Self {
        Self
    }

    fn small_value(&self) -> Vec<u8> {
        ok()
    }
}

/// Answers from async code.
pub struct AsyncEcho;

#[mobula::actor]
impl AsyncEcho {
    fn new() -> Self {
        Self
    }

    async fn small_value(&self) -> Vec<u8> {
        ok()
    }

    async fn small_value_with_arg(&self, _x: u64) -> Vec<u8> {
        ok()
    }
}

/// Calls other actors.
pub struct Client {
    servers: Vec<EchoHandle>,
}

#[mobula::actor]
impl Client {
    fn new(servers: Vec<EchoHandle>) -> Self {
        Self { servers }
    }

    fn small_value_batch(&mut self, n: u64) -> mobula::Result<()> {
        wait_for(each(&self.servers, n, EchoHandle::small_value))
    }

    fn small_value_batch_arg(&mut self, n: u64) -> mobula::Result<()> {
        let x = mobula::put(&0u64)?;
        wait_for(each(&self.servers, n, |server| server.small_value_arg(&x)))
    }
}

/// Calls other async actors.
pub struct AsyncClient {
    servers: Vec<AsyncEchoHandle>,
}

#[mobula::actor]
impl AsyncClient {
    fn new(servers: Vec<AsyncEchoHandle>) -> Self {
        Self { servers }
    }

    fn small_value_batch(&mut self, n: u64) -> mobula::Result<()> {
        wait_for(each(&self.servers, n, AsyncEchoHandle::small_value))
    }
}
