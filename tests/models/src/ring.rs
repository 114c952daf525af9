//! The rings' sources, on memory of the model checker.

#[path = "../../../runtime/net/src/ring/buffer.rs"]
mod buffer;
#[path = "../../../runtime/net/src/ring/doorbell.rs"]
pub mod doorbell;
#[path = "../../../runtime/net/src/ring/error.rs"]
mod error;
#[path = "ring/map.rs"]
mod map;
#[path = "ring/sync.rs"]
mod sync;

pub use buffer::{Consumer, Producer};
pub use error::Error;

/// Two frames of 16 bytes fill the smallest ring, so that a few show what a long run would.
pub const CAPACITY_BYTES_MIN: u32 = 64;
/// As in the rings.
pub const CAPACITY_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// As in the rings.
pub const HEADER_BYTES: usize = 16;

/// As in the rings.
pub fn create(capacity_bytes: u32) -> Result<std::os::fd::OwnedFd, Error> {
    buffer::create(capacity_bytes)
}
