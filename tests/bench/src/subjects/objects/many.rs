//! Many objects: a shuffle that is larger than the store, and a million small ones. Each in a new program, whose memory
//! is looked at.

use std::{
    thread,
    time::{Duration, Instant},
};

use mobula::{Cluster, blocking, prelude::*};
use tokio::runtime::Handle;

use crate::{
    measure::{Result, watched},
    row::{Probe, Row, Stage, Target},
    subjects::scale::{in_new_program, same},
    system::private_memory,
};

/// Tasks on each side of the shuffle: each of the first makes a part for each of the second.
const SIDE: u32 = 200;
/// 8-byte elements of a part: 50 kB, so that all parts are 2 GB.
const ELEMENTS: usize = 6_250;
/// The store's size in bytes.
pub const SHUFFLE_STORE_BYTES: u64 = 512 << 20;
/// How many small objects there are.
const SMALL: usize = 1_000_000;
/// How long they may take to be gone.
const GOING: Duration = Duration::from_secs(20);

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::less("shuffle of 2 GB, 200 × 200 parts, in a store of 512 MB", "s").peer("shuffle of 2 GB"),
            Row::less("memory that the owner takes for it", "MB").targets(&[Target::AtMost(128.0)]),
        ],
        stage: Stage::Alone,
        run: |_| in_new_program("shuffle"),
    },
    Probe {
        rows: &[
            Row::less(
                "memory of one of a million small stored objects that another host borrows, in its owner",
                "bytes",
            )
            .targets(&[Target::AtMost(300.0)]),
            Row::less("a million small stored objects, from being dropped to being gone", "s")
                .targets(&[Target::AtMost(2.0)]),
        ],
        stage: Stage::Alone,
        run: |_| in_new_program("small"),
    },
];

/// The first element of the part that `from` makes for `to`; those after it count up.
fn first(from: u32, to: u32) -> u64 {
    // Far apart, so that no part can stand for another.
    u64::from(from * SIDE + to + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Of all elements, wrapping.
fn sum(of: impl Iterator<Item = u64>) -> u64 {
    of.fold(0, u64::wrapping_add)
}

#[mobula::task(returns)]
fn split(from: u32) -> mobula::Result<Vec<Tensor>> {
    let part = |to| {
        let begin = first(from, to);
        Tensor::from_vec(&[ELEMENTS], (0..ELEMENTS as u64).map(|at| begin.wrapping_add(at)).collect())
    };
    (0..SIDE).map(part).collect()
}

#[mobula::task]
fn merge(parts: Vec<Tensor>) -> mobula::Result<u64> {
    let sums = parts.iter().map(|part| Ok(sum(part.as_slice::<u64>()?.iter().copied())));
    Ok(sum(sums.collect::<mobula::Result<Vec<_>>>()?.into_iter()))
}

/// Seconds, and by how many MB the driver's memory grew at most.
pub fn shuffle() -> Result<Vec<f64>> {
    let own = std::process::id();
    let before = private_memory(own)?;
    let look = || Ok([private_memory(own)? - before]);
    let ((sums, seconds), [most]) = watched(look, || {
        let begun = Instant::now();
        let sums = shuffled()?;
        Ok((sums, begun.elapsed().as_secs_f64()))
    })?;
    let elements = ELEMENTS as u64;
    for (to, found) in (0..SIDE).zip(sums) {
        let of = |from| first(from, to).wrapping_mul(elements).wrapping_add(elements * (elements - 1) / 2);
        same(found, sum((0..SIDE).map(of)))?;
    }
    Ok(vec![seconds, most / 1e6])
}

fn shuffled() -> Result<Vec<u64>> {
    let mut parts: Vec<Vec<ObjectRef<Tensor>>> =
        (0..SIDE).map(|from| split.options().returns(SIDE).remote(from)).collect();
    // All of one side are made before the other begins: nothing is read from where it was just written.
    for of_one in &parts {
        let left = blocking::wait(of_one, of_one.len(), None)?.1;
        same(left.len(), 0)?;
    }
    let merged: Vec<_> = (0..SIDE)
        .rev()
        .map(|_| {
            let of_one: Vec<_> = parts.iter_mut().filter_map(Vec::pop).collect();
            merge.remote(&of_one[..])
        })
        .collect();
    let mut sums = blocking::get_all(&merged)?;
    sums.reverse();
    Ok(sums)
}

/// Borrows.
struct Holder(Vec<ObjectRef<u64>>);

#[mobula::actor]
impl Holder {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn hold(&mut self, objects: Vec<ObjectRef<u64>>) -> usize {
        self.0.extend(objects);
        self.0.len()
    }

    /// The sum of what some of them hold, so that it is seen that they are there.
    fn look(&self) -> mobula::Result<u64> {
        Ok(blocking::get_all(&self.0[..100])?.iter().sum())
    }

    fn let_go(&mut self) {
        self.0 = Vec::new();
    }
}

/// How many objects the store has, as its agent says now.
fn stored(cluster: &Cluster, runtime: &Handle) -> Result<u64> {
    let snapshot = runtime.block_on(cluster.snapshot())?;
    Ok(snapshot.nodes.iter().map(|node| node.usage.objects).sum())
}

/// Bytes each, and seconds.
pub fn small(cluster: &Cluster, runtime: &Handle) -> Result<Vec<f64>> {
    let holder = Holder::spawn().start();
    let object = mobula::put_shared(&0u64)?;
    same(holder.hold(vec![object]).get()?, 1)?;
    holder.let_go().get()?;
    let own = std::process::id();
    let (before, objects_before) = (private_memory(own)?, cluster.leftovers().objects);
    let objects =
        (0..SMALL as u64).map(|value| mobula::put_shared(&value)).collect::<mobula::Result<Vec<_>>>()?;
    // In portions: a list of refs travels inside a message.
    for portion in objects.chunks(50_000) {
        holder.hold(portion.to_vec()).get()?;
    }
    let each = (private_memory(own)? - before) / SMALL as f64;
    same(holder.look().get()?, 99 * 100 / 2)?;
    same(stored(cluster, runtime)?, SMALL as u64)?;
    let begun = Instant::now();
    drop(objects);
    holder.let_go().get()?;
    while cluster.leftovers().objects > objects_before || stored(cluster, runtime)? > 0 {
        if begun.elapsed() > GOING {
            let left = stored(cluster, runtime)?;
            return Err(format!(
                "of {SMALL} objects {left} are in the store, {:?} left",
                cluster.leftovers()
            )
            .into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(vec![each, begun.elapsed().as_secs_f64()])
}
