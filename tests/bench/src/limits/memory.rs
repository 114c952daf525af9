//! Copying memory.

use std::hint::black_box;

use crate::{
    measure::{Result, rate},
    row::{Place, Probe, Row, Stage},
};

/// Bytes of one copy: more than any cache holds.
const COPY_BYTES: usize = 256 << 20;

/// The name of the limit.
pub const MEMCPY: &str = "memcpy warm, one thread";

/// One thread, pages touched before.
pub const PROBE: Probe = Probe { rows: &[Row::more(MEMCPY, "GB/s").is_limit()], stage: Stage::Alone, run };

fn run(place: &Place) -> Result<Vec<f64>> {
    let source = vec![1u8; COPY_BYTES];
    let mut dest = vec![2u8; COPY_BYTES];
    let rate = rate(place.scale, COPY_BYTES as f64 / 1e9, || {
        black_box(&mut dest).copy_from_slice(black_box(&source));
        Ok(())
    })?;
    Ok(vec![rate])
}
