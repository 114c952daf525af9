//! The shared-memory object store, as one process sees it: no networking, no threads, no global state.
//!
//! | module | what it holds |
//! |---|---|
//! | [`region`] | one `memfd`: mapped writable by its only writer, sealed for others, mapped read-only by readers |
//! | [`spare`] | memory that is warmed before it is known what for |
//! | [`heap`] | the allocator of one writer, over as many regions as it needs |
//! | [`bytes`] | immutable bytes that are cheap to clone, wherever they lie |
//! | [`spill`] | objects in files, while memory is short |
//! | [`layout`] | the encoded form of one object: an archive and raw aligned buffers in one blob |
//! | [`archived`] | a value read where it lies, validated once |
//!
//! # Why the unsafe code is sound
//!
//! - **ST-1** A mapping lives as long as anything that points into it: blocks, extents and byte slices hold
//!   an `Arc` of the mapping, not only of the region that made it.
//! - **ST-2** A region has one writer. [`region::Writer::create`] makes the only writable mapping, and before anybody else
//!   gets a descriptor the file is sealed: the kernel refuses every later one, in this process too. (Who may open this
//!   process's descriptors in `/proc`, its own user where jobs have none of their own, could be faster; he could as well
//!   attach a debugger.)
//! - **ST-3** A region never shrinks (a spare is cut before it becomes one): while it is here alone nobody does that, and
//!   from then on the seals forbid it, so no access inside a mapping meets the end of the file. Readers refuse a
//!   descriptor without the seals.
//! - **ST-4** Ranges handed out never overlap ([`heap`]'s free lists, property-tested). So one
//!   [`heap::Block`] is the only way to its memory, until it is sealed; from then on nobody writes there
//!   until the last [`heap::Extent`] of it, and every [`bytes::Bytes`] made from that, is gone.
//! - **ST-5** In *another* process, memory stays as it is while the writer keeps the extent. Who keeps it is
//!   agreed between processes by pins ([`bytes::Pin`]); hosts of one job trust one another with that. An
//!   agent never parses memory that a host can still write: it copies, then checks.
//!
//! # What the kernel does not promise
//!
//! The first touch of a page takes memory. Where there is none, or the control group's limit is reached, the
//! kernel kills (out of memory) or raises `SIGBUS`; it has no error to return for a plain store. Warm memory
//! first ([`heap::Heap::warm`]), and admit by the node's budget, not by what the kernel lets pass.

pub mod archived;
pub mod bytes;
mod error;
mod free;
pub mod heap;
pub mod layout;
mod map;
pub mod region;
pub mod spare;
pub mod spill;
mod sync;

pub use self::{
    archived::Archived,
    bytes::Bytes,
    error::Error,
    heap::{Block, Extent, Heap, Options as HeapOptions},
    layout::{Encoded, Object},
    region::{Reader, Writer},
    spare::Spare,
};

/// Alignment of every allocation and of every raw buffer in an object, in bytes: a cache line, and what the
/// widest vector instructions want.
pub const ALIGN: usize = 64;
