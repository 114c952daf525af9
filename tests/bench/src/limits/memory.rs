//! Copying memory.

use std::hint::black_box;

use crate::{
    measure::{Result, rate},
    row::{Place, Probe, Row, Stage},
};

/// Names of the limits.
pub const MEMCPY: &str = "memcpy warm, one thread";
/// Names of the limits.
pub const MEMCPY_TWO: &str = "memcpy warm, two threads";

/// Bytes of what one client puts.
const ONE_BYTES: usize = 800 << 20;
/// Bytes of what each of several clients puts.
const EACH_BYTES: usize = 80 << 20;

/// The buffers of the rows that put, pages touched before.
pub const PROBE: Probe = Probe {
    rows: &[Row::more(MEMCPY, "GB/s").is_limit(), Row::more(MEMCPY_TWO, "GB/s").is_limit()],
    stage: Stage::Alone,
    run,
};

fn run(place: &Place) -> Result<Vec<f64>> {
    let two = || -> Result<f64> {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| copies(place, EACH_BYTES));
            let own = copies(place, EACH_BYTES)?;
            Ok(own + other.join().map_err(|_| "a copying thread panicked")??)
        })
    };
    Ok(vec![copies(place, ONE_BYTES)?, two()?])
}

fn copies(place: &Place, bytes: usize) -> Result<f64> {
    let source = vec![1u8; bytes];
    let mut dest = vec![2u8; bytes];
    rate(place.scale, bytes as f64 / 1e9, || {
        black_box(&mut dest).copy_from_slice(black_box(&source));
        Ok(())
    })
}
