//! Models of what several threads or processes do at once without a lock: the rings and doorbells of `mobula-net`, and
//! the heap of `mobula-store` with its blocks, seals, pins and spares, and a host's views into regions of others.
//!
//! The code is the real one, compiled here a second time: only its `sync` module is another, and the mapped memory under
//! it. Both are the model checker's (loom), which runs a test once for each order in which its threads can meet, and for
//! each value that the language's memory model lets a load see. Plain bytes have no such orders, so each access to them
//! is checked instead: it fails where nothing orders it with an earlier one of another thread.

// The sources' own tests have no place here.
#![cfg(not(test))]
#![allow(
    dead_code,
    unused_unsafe,
    reason = "the sources are used in part, and the memory under them is without unsafe code here"
)]

pub mod host;
mod memory;
pub mod ring;

// What the store's sources find in their crate.
#[path = "../../../runtime/store/src/bytes.rs"]
pub mod bytes;
#[path = "../../../runtime/store/src/error.rs"]
mod error;
#[path = "../../../runtime/store/src/free.rs"]
mod free;
#[path = "../../../runtime/store/src/heap.rs"]
pub mod heap;
mod map;
pub mod region;
#[path = "../../../runtime/store/src/spare.rs"]
pub mod spare;
mod sync;

/// What the store's errors name.
mod layout {
    pub(crate) const BUFFERS_MAX: usize = 65_536;
}

pub use error::Error;
pub use map::{read, write};

/// As in the store.
pub const ALIGN: usize = 64;
