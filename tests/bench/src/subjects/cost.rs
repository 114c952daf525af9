//! What calls cost: processor time, and bytes between processes.

use std::{fs, io::Read, io::Seek, io::SeekFrom, time::Instant};

use mobula::blocking;

use super::functions::small_value;
use crate::{
    measure::Result,
    row::{Place, Probe, Row, Stage},
    system::{cluster_processes, cpu_seconds},
};

const BATCH: u32 = 1000;
/// The kernel counts processor time in hundredths of a second, so one measurement takes some windows.
const WINDOWS: u32 = 2;

/// All of them.
pub const PROBES: &[Probe] = &[
    Probe {
        rows: &[
            Row::less("processor time of 1,000 tasks, batched", "ms"),
            Row::less("bytes between processes for 1,000 tasks, batched", "bytes"),
        ],
        stage: Stage::OneNode,
        run: |place| {
            cost(place, BATCH, || {
                Ok(blocking::get_all(&(0..BATCH).map(|_| small_value.remote()).collect::<Vec<_>>())
                    .map(drop)?)
            })
        },
    },
    Probe {
        rows: &[
            Row::less("processor time of 1,000 tasks, one after the other", "ms"),
            Row::less("bytes between processes for 1,000 tasks, one after the other", "bytes"),
        ],
        stage: Stage::OneNode,
        run: |place| cost(place, 1, || Ok(small_value.remote().get().map(drop)?)),
    },
];

/// For 1,000 calls each: milliseconds of all processes' processor time, and bytes in the rings.
fn cost(place: &Place, each: u32, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    call()?;
    let mut processes: Vec<u32> = cluster_processes()?.iter().map(|(pid, _)| *pid).collect();
    processes.push(std::process::id());
    let used = || processes.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let (cpu, bytes, begun) = (used(), ring_bytes()?, Instant::now());
    let mut calls = 0.0;
    while begun.elapsed() < place.scale.window * WINDOWS {
        call()?;
        calls += f64::from(each);
    }
    let (cpu, bytes) = (used() - cpu, ring_bytes()? - bytes);
    Ok(vec![cpu * 1e3 / calls * 1e3, bytes / calls * 1e3])
}

/// Bytes that went through the rings of this process, both ways, since they were made.
///
/// A ring counts them itself, in its header; this reads it where it is mapped.
fn ring_bytes() -> Result<f64> {
    const MAGIC: &[u8] = b"mobring\x01";
    const TAIL_AT: u64 = 256;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut memory = fs::File::open("/proc/self/mem")?;
    let mut word = |at: u64| -> Result<[u8; 8]> {
        let mut bytes = [0; 8];
        memory.seek(SeekFrom::Start(at))?;
        memory.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    let mut total = 0;
    for line in maps.lines().filter(|line| line.contains("/memfd:mobula-ring")) {
        let mut fields = line.split_whitespace();
        let begin = fields.next().and_then(|range| range.split_once('-')).map(|(begin, _)| begin);
        // Only the first pages of a ring are its header.
        if fields.nth(1).is_none_or(|offset| offset.bytes().any(|digit| digit != b'0')) {
            continue;
        }
        let at = u64::from_str_radix(begin.ok_or("a line of /proc/self/maps without an address")?, 16)?;
        if word(at)? == MAGIC {
            total += u64::from_ne_bytes(word(at + TAIL_AT)?);
        }
    }
    if total == 0 {
        return Err("no ring was found in this process: has their layout changed?".into());
    }
    Ok(total as f64)
}
