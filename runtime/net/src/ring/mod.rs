//! Rings in shared memory: the fast path between two hosts of one node.
//!
//! A ring carries bytes one way, from one producer to one consumer, usually in two processes. It is a sealed
//! memory file: a page of header, then a power of two of bytes of frames. One side [`create`]s it and passes the
//! descriptor (see [`crate::link`]); each side maps its end, once. Nothing in here makes a system call after that,
//! but for waking and sleeping, which is the [`doorbell`]'s work.
//!
//! | layer | what |
//! |---|---|
//! | [`Producer`], [`Consumer`] | frames, in order, read in place; full is an error that leaves the payload with the caller |
//! | [`Sender`], [`Receiver`] | messages: split over frames and joined again; a bounded overflow when the ring is full |
//! | [`doorbell::Doorbell`] | sleeping until a producer has something, without losing a wake-up |
//!
//! # Layout
//! Positions are 64-bit byte counts that only grow; a position's offset in the data is its low bits. A frame is a
//! 16-byte header (two little-endian words: length, kind and flags; then the whole message's length) and a body,
//! padded to 16 bytes, so that every body is 16-aligned and an rkyv archive is read where it lies. A frame never
//! wraps: what is left at the end is skipped under a marker. Three cache-line pairs keep the sides apart:
//! the producer's position, the consumer's position, and the rarely written flags.
//!
//! # Why this is sound
//! - **RG-1** *Frames are published whole.* The producer writes header and body, then stores its position with
//!   Release; the consumer loads it with Acquire before it reads either.
//! - **RG-2** *A frame being read is never overwritten.* The producer writes only to bytes that the consumer's
//!   position, stored with Release after the last read, has passed.
//! - **RG-3** *One producer, one consumer.* Each end is claimed in the header by compare-and-swap; a second
//!   mapping of the same end is refused, for the life of the ring.
//! - **RG-4** *Nothing read from the ring is believed.* The capacity is read once and held against the file's
//!   size. Every position and length is copied out once, as an atomic, then checked: a ring that does not hold
//!   together is [`Error::Corrupt`], never a read or write outside it.
//!
//! Hosts of one job trust one another (invariant I8), so a peer is assumed to follow RG-2. One that does not can
//! garble the messages it sends, as it always could. Only the rings between a host and its agent cross that line: the
//! agent copies what comes out of one before it looks at it ([`Receiver::recv_copy`]), and the doorbells that it maps
//! are words for waking, which tell nothing. The head maps no rings.

mod buffer;
pub mod doorbell;
#[forbid(unsafe_code)]
mod error;
mod map;
#[forbid(unsafe_code)]
mod message;
mod sync;

use std::os::fd::OwnedFd;

pub use buffer::{Consumer, Frame, Producer, Watch};
pub use error::Error;
pub use message::{Message, OVERFLOW_BYTES_MAX, OVERFLOW_ENTRY_BYTES, Receiver, Sender};

/// Smallest ring: its largest frame is half of it.
pub const CAPACITY_BYTES_MIN: u32 = 4 * 1024;
/// Largest ring.
pub const CAPACITY_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// Capacity that suits a pair of hosts: sixteen of the largest frames, ten thousand small ones.
pub const CAPACITY_BYTES_DEFAULT: u32 = 1024 * 1024;
/// Bytes of a frame's header, and the alignment of its body.
pub const HEADER_BYTES: usize = 16;

/// Makes a ring of `capacity_bytes` (a power of two) and returns its descriptor, close-on-exec and sealed against
/// a change of size. Map a duplicate of it at each end. Memory is taken as frames first touch it.
pub fn create(capacity_bytes: u32) -> Result<OwnedFd, Error> {
    buffer::create(capacity_bytes)
}
