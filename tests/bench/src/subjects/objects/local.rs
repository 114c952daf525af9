//! Objects on their own node: reading a large one, and putting one right after a job's start.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use mobula::{Cluster, ErrorKind, prelude::*};

use crate::{
    limits::memory::MEMCPY,
    measure::{Result, quantile},
    row::{Place, Probe, Row, Stage, Target},
    subjects::functions::ones,
    system::{anonymous_memory, cluster_processes, cpu_seconds},
};

/// Elements, of 8 bytes each, of the large object: 800 MiB.
const LARGE_ELEMENTS: usize = 100 << 20;
/// The same with `--quick`.
const QUICK_ELEMENTS: usize = 10 << 20;
/// New processes that look at it, one after the other: each for the first time.
const READERS: usize = 9;
/// How often it is looked at again by each.
const AGAIN: usize = 100;
/// How long after the start of its job an object is put.
const AFTER_START: Duration = Duration::from_secs(2);
/// Its elements: 48 MB.
const EARLY_ELEMENTS: usize = 6_000_000;

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::less("get of a local 800 MiB object, the first time in a process", "µs")
                .targets(&[Target::AtMost(150.0)]),
            Row::less("get of a local 800 MiB object, mapped", "µs").targets(&[Target::AtMost(20.0)]),
            Row::less("anonymous memory that reading a local 800 MiB object costs", "MB")
                .targets(&[Target::AtMost(1.0)]),
        ],
        stage: Stage::OneNode,
        run: large,
    },
    Probe {
        rows: &[
            Row::more("put of 48 MB right after start", "GB/s")
                .limit(MEMCPY)
                .targets(&[Target::OfLimit(0.5)]),
            Row::less("processor time that warming takes in a job's first 2 s", "% of a core"),
        ],
        stage: Stage::Alone,
        run: early,
    },
];

/// Reads in a process of its own.
struct Reader;

#[mobula::actor]
impl Reader {
    fn new() -> Self {
        Self
    }

    /// Its process, the microseconds of the first look and of a later one, and how many bytes of anonymous memory reading all
    /// of it took.
    fn read(&mut self, objects: Vec<ObjectRef<Tensor>>) -> mobula::Result<Vec<f64>> {
        let failed =
            |error: &dyn std::fmt::Display| mobula::Error::new(ErrorKind::Internal, error.to_string());
        let object = objects.first().ok_or_else(|| failed(&"nothing to read"))?;
        let memory = || anonymous_memory(std::process::id()).map_err(|error| failed(&error));
        let before = memory()?;
        let look = || -> mobula::Result<(f64, Tensor)> {
            let begun = Instant::now();
            let tensor = object.get()?;
            Ok((begun.elapsed().as_secs_f64() * 1e6, tensor))
        };
        let (first, tensor) = look()?;
        let mut again = (0..AGAIN).map(|_| Ok(look()?.0)).collect::<mobula::Result<Vec<_>>>()?;
        again.sort_by(f64::total_cmp);
        let sum: i64 = tensor.as_slice::<i64>()?.iter().sum();
        black_box(sum);
        let process = f64::from(std::process::id());
        Ok(vec![process, first, quantile(&again, 0.5), (memory()? - before).max(0.0)])
    }
}

fn large(place: &Place) -> Result<Vec<f64>> {
    let elements = if place.scale.quick { QUICK_ELEMENTS } else { LARGE_ELEMENTS };
    let object = mobula::put(&ones(elements)?)?;
    let (mut first, mut again, mut gained) = (Vec::new(), Vec::new(), 0_f64);
    // All live until the end: the next one would have the process of one that is gone, which has the object's region mapped.
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let reader = Reader::spawn().options(|options| options.isolation("process").cpu(0.0)).start();
        // As an element of a value in a field a ref stays a ref.
        let read = reader.read(vec![object.clone()]).get()?;
        let [process, once, then, more] = read[..] else {
            return Err("the reader said something else".into());
        };
        readers.push((process, reader));
        first.push(once);
        again.push(then);
        gained = gained.max(more);
    }
    readers.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    readers.dedup_by_key(|(process, _)| *process);
    if readers.len() < READERS {
        return Err("two readers had one process".into());
    }
    first.sort_by(f64::total_cmp);
    again.sort_by(f64::total_cmp);
    Ok(vec![quantile(&first, 0.5), quantile(&again, 0.5), gained / 1e6])
}

fn early(place: &Place) -> Result<Vec<f64>> {
    let value = ones(EARLY_ELEMENTS)?;
    let own = std::process::id();
    let (before, asked) = (cpu_seconds(own), Instant::now());
    let cluster = place.runtime.block_on(Cluster::local().nodes(1).quiet().start())?;
    std::thread::sleep(AFTER_START.saturating_sub(asked.elapsed()));
    let used = || -> Result<f64> {
        let others = cluster_processes()?;
        Ok(cpu_seconds(own) - before + others.iter().map(|(pid, _)| cpu_seconds(*pid)).sum::<f64>())
    };
    let share = used()? / AFTER_START.as_secs_f64() * 100.0;
    let begun = Instant::now();
    let made = mobula::put(&value)?;
    let rate = value.as_bytes()?.len() as f64 / begun.elapsed().as_secs_f64() / 1e9;
    drop(made);
    cluster.shutdown();
    Ok(vec![rate, share])
}
