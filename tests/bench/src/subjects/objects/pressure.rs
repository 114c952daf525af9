//! More objects than the store holds, beside what the disk can do with the same sizes.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use mobula::{Cluster, prelude::*};
use mobula_scheduler::sim::Random;
use rustix::fs::OFlags;

use crate::{
    measure::{Result, watched},
    row::{Place, Probe, Row, Stage, Target},
    system::{cluster_processes, memory_files, private_memory},
};

/// The store's size in bytes; the objects are four times that.
const STORE_BYTES: u64 = 256 << 20;
/// The same with `--quick`, where the objects are smaller, too.
const QUICK_STORE_BYTES: u64 = 64 << 20;
/// How many are read at once.
const READERS: usize = 4;
/// How much of a file is read at once, in bytes.
const CHUNK_BYTES: usize = 4 << 20;
/// What direct IO asks for.
const BLOCK_BYTES: usize = 4096;
/// Of the order in which they are read.
const SEED: u64 = 1;
/// Name of the limit.
const DISK: &str = "disk, direct reads of 16–64 MiB in random order, four at once";

/// All of them.
pub const PROBES: &[Probe] = &[Probe {
    rows: &[
        Row::more(DISK, "GB/s").is_limit(),
        Row::more("working set 4× the store, random access, four readers", "GB/s")
            .limit(DISK)
            .targets(&[Target::OfLimit(0.7)]),
        Row::more("putting a working set 4× the store", "GB/s"),
        Row::less("memory that the store takes at most for a working set 4× the store", "times the store")
            .targets(&[Target::AtMost(1.1)]),
        Row::less("memory beside the store that the node's processes gain for it at most", "MB")
            .targets(&[Target::AtMost(64.0)]),
    ],
    stage: Stage::Alone,
    run,
}];

/// Sizes of 16, 32, 48 and 64 MiB (a quarter of that in a small store), in turn, until they are four stores.
fn sizes(store: u64) -> Vec<usize> {
    let unit = (store / 16) as usize;
    let mut left = store as usize * 4;
    let mut sizes = Vec::new();
    for at in 0.. {
        let size = unit * (at % 4 + 1);
        if size > left {
            break;
        }
        left -= size;
        sizes.push(size);
    }
    sizes
}

/// Does `read` for each of `count`, in a random order that is always the same, by four threads; gives the seconds. So
/// whatever is read again was last read as long ago as can be.
fn each(count: usize, read: impl Fn(usize) -> Result<()> + Sync) -> Result<f64> {
    let next = AtomicUsize::new(0);
    let mut order: Vec<usize> = (0..count).collect();
    let mut random = Random::new(SEED);
    for at in (1..count).rev() {
        order.swap(at, random.below(at + 1));
    }
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| -> std::result::Result<(), String> {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(at) = order.get(at) else { return Ok(()) };
                        read(*at).map_err(|error| error.to_string())?;
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.join().map_err(|_| "a reading thread panicked")??;
        }
        Ok(begun.elapsed().as_secs_f64())
    })
}

fn run(place: &Place) -> Result<Vec<f64>> {
    let store = if place.scale.quick { QUICK_STORE_BYTES } else { STORE_BYTES };
    let sizes = sizes(store);
    let total = sizes.iter().sum::<usize>() as f64 / 1e9;
    let disk = total / disk(&sizes)?;
    let cluster = place.runtime.block_on(Cluster::local().nodes(1).store_bytes(store).quiet().start())?;
    let measured = pressed(&sizes);
    cluster.shutdown();
    let [read, put, most, gained] = measured?;
    Ok(vec![disk, total / read, total / put, most / store as f64, gained / 1e6])
}

/// Seconds for reading and for putting, and bytes: the most in the store, and the most that was gained beside it.
fn pressed(sizes: &[usize]) -> Result<[f64; 4]> {
    let own = std::process::id();
    let processes: Vec<u32> = cluster_processes()?.iter().map(|(pid, _)| *pid).chain([own]).collect();
    let private = || processes.iter().map(|pid| private_memory(*pid)).sum::<Result<f64>>();
    let before = private()?;
    let look = || Ok([memory_files(&processes)?, private()?]);
    // Read once so that all have been on disk, and once for the time: whoever looks how much memory there is stops the
    // processes from mapping any, and so would cost time.
    let ((objects, put), [most, private]) = watched(look, || {
        let put = put(sizes)?;
        each(sizes.len(), |at| read(&put.0, at))?;
        Ok(put)
    })?;
    let read = each(sizes.len(), |at| read(&objects, at))?;
    if cluster_processes()?.iter().any(|(pid, _)| !processes.contains(pid)) {
        return Err("a process has come that nobody watched".into());
    }
    Ok([read, put, most, private - before])
}

/// Objects of these sizes, and the seconds that putting them took.
fn put(sizes: &[usize]) -> Result<(Vec<ObjectRef<Tensor>>, f64)> {
    let begun = Instant::now();
    // Of each all bytes are its number, counted from 1. Written in its place, no copy of it lies elsewhere.
    let put = |(size, fill): (&usize, u8)| {
        mobula::put(&Tensor::build(&[*size], |elements: &mut [u8]| elements.fill(fill))?)
    };
    let objects = sizes.iter().zip(1..).map(put).collect::<mobula::Result<Vec<_>>>()?;
    Ok((objects, begun.elapsed().as_secs_f64()))
}

/// Reads one of them.
fn read(objects: &[ObjectRef<Tensor>], at: usize) -> Result<()> {
    let tensor = objects[at].get()?;
    let bytes = tensor.as_bytes()?;
    // The ends and the middle are touched: the checksum has seen the rest.
    let fill = at as u8 + 1;
    if [0, bytes.len() / 2, bytes.len() - 1].iter().any(|at| bytes[*at] != fill) {
        return Err(format!("object {at} is another").into());
    }
    Ok(())
}

/// Seconds that the disk takes to read files of these sizes.
fn disk(sizes: &[usize]) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let mut buffer = vec![7u8; CHUNK_BYTES + BLOCK_BYTES];
    for (at, size) in sizes.iter().enumerate() {
        let file = direct(&folder.path().join(at.to_string()), true)?;
        for begin in (0..*size).step_by(CHUNK_BYTES) {
            file.write_all_at(&aligned(&mut buffer)[..CHUNK_BYTES.min(size - begin)], begin as u64)?;
        }
    }
    each(sizes.len(), |at| {
        let file = direct(&folder.path().join(at.to_string()), false)?;
        let mut buffer = vec![0u8; CHUNK_BYTES + BLOCK_BYTES];
        for begin in (0..sizes[at]).step_by(CHUNK_BYTES) {
            let chunk = &mut aligned(&mut buffer)[..CHUNK_BYTES.min(sizes[at] - begin)];
            file.read_exact_at(chunk, begin as u64)?;
        }
        Ok(())
    })
}

fn aligned(buffer: &mut [u8]) -> &mut [u8] {
    let start = buffer.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
    &mut buffer[start..start + CHUNK_BYTES]
}

fn direct(path: &Path, write: bool) -> std::io::Result<File> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    OpenOptions::new().read(!write).write(write).create(write).custom_flags(flags).open(path)
}
