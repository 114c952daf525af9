//! Objects outside of memory: files that hold many objects, written once from front to end, and read in parts.
//!
//! Each object has a slot of its own: its bytes, then a trailer with its length and a BLAKE3 hash over its name, its
//! length and its bytes, then zeros up to a multiple of [`BLOCK_BYTES`]. So any slot is read with direct IO, and what is
//! read is the named object's bytes or an error: never others, never a part of them.
//!
//! Everything here blocks the calling thread for as long as the disk takes.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::Error;

mod folder;

pub use folder::Folder;

/// Slots begin and end at multiples of so many bytes: what direct IO asks for on the disks in use.
pub const BLOCK_BYTES: u64 = 4096;
/// How much is written or read at once, in bytes. The disk here gave 0.3 GB/s by 1 MiB, 1.0 by 4 MiB.
pub const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// What a trailer begins with.
const MARK: [u8; 8] = *b"mobula-1";
const TRAILER_BYTES: usize = MARK.len() + size_of::<u64>() + blake3::OUT_LEN;

/// Where spilled objects go, as people write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder; [`Folder`] writes there.
    Folder(PathBuf),
    /// A URL, such as `s3://bucket/folder`: for a [`Target`] of another crate.
    Url(String),
}

impl Place {
    /// What has a scheme is a URL; all else is a path.
    pub fn of(text: &Path) -> Self {
        let url = text.to_str().filter(|text| {
            text.split_once("://").is_some_and(|(scheme, _)| {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
                scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(plain)
            })
        });
        url.map_or_else(|| Self::Folder(text.to_owned()), |url| Self::Url(url.to_owned()))
    }
}

/// Where files of spilled objects lie. [`Folder`] is one; another is in the crate `mobula-object-store`.
///
/// Chunks that go to [`Sink::write`] and [`Source::read_at`] begin in memory, and in the file, at multiples of
/// [`BLOCK_BYTES`], and are as long as a multiple of that.
pub trait Target: Send + Sync + fmt::Debug {
    /// Begins file number `file`, which will have `bytes`. A number is used once.
    ///
    /// # Errors
    /// Where there is no room, or the target cannot be reached.
    fn create(&self, file: u64, bytes: u64) -> Result<Box<dyn Sink>, Error>;
    /// Opens a file that is complete.
    ///
    /// # Errors
    /// Where it is not there, or the target cannot be reached.
    fn open(&self, file: u64) -> Result<Box<dyn Source>, Error>;
    /// Removes a file, complete or not; one that is not there is no error.
    ///
    /// # Errors
    /// Where the target cannot be reached.
    fn delete(&self, file: u64) -> Result<(), Error>;
}

/// A file that is being written.
pub trait Sink {
    /// Writes what comes next.
    ///
    /// # Errors
    /// Where there is no room, or the target cannot be reached.
    fn write(&mut self, chunk: &[u8]) -> Result<(), Error>;
    /// The file is complete.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn finish(self: Box<Self>) -> Result<(), Error>;
}

/// A file that can be read.
pub trait Source {
    /// Fills `chunk` with what lies at `offset`.
    ///
    /// # Errors
    /// Where the file ends before, or the target cannot be reached.
    fn read_at(&mut self, offset: u64, chunk: &mut [u8]) -> Result<(), Error>;
}

/// How many bytes the slot of an object of `len` bytes takes in a file; `None` where that overflows.
pub fn slot_bytes(len: u64) -> Option<u64> {
    len.checked_add(TRAILER_BYTES as u64)?.checked_next_multiple_of(BLOCK_BYTES)
}

/// Memory that begins at a multiple of [`BLOCK_BYTES`].
struct Chunk {
    memory: Vec<u8>,
    start: usize,
}

impl Chunk {
    fn new(bytes: usize) -> Self {
        let memory = vec![0; bytes + BLOCK_BYTES as usize];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES as usize).min(BLOCK_BYTES as usize);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let end = self.memory.len() - (BLOCK_BYTES as usize - self.start);
        &mut self.memory[self.start..end]
    }
}

fn hasher(name: &[u8], len: u64) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(&len.to_le_bytes());
    hasher
}

fn trailer(hasher: &blake3::Hasher, len: u64) -> [u8; TRAILER_BYTES] {
    let mut out = [0; TRAILER_BYTES];
    out[..8].copy_from_slice(&MARK);
    out[8..16].copy_from_slice(&len.to_le_bytes());
    out[16..].copy_from_slice(hasher.finalize().as_bytes());
    out
}

/// Writes a file of these objects (name and bytes), in this order, each slot behind the one before. What is hashed is
/// what is written, whatever somebody does to the bytes meanwhile.
///
/// # Errors
/// Where there is no room or the target cannot be reached; no file is left then, as far as that can be removed.
pub fn write<B: AsRef<[u8]>>(target: &dyn Target, file: u64, objects: &[(Vec<u8>, B)]) -> Result<(), Error> {
    let sizes = objects.iter().map(|(_, bytes)| slot_bytes(bytes.as_ref().len() as u64));
    let total = sizes.sum::<Option<u64>>().ok_or(Error::RegionSize { bytes: u64::MAX })?;
    let written = target.create(file, total).and_then(|sink| write_all(sink, total, objects));
    if written.is_err() {
        // Why it was not written is the error to be told.
        let _gone = target.delete(file);
    }
    written
}

fn write_all<B: AsRef<[u8]>>(
    mut sink: Box<dyn Sink>,
    total: u64,
    objects: &[(Vec<u8>, B)],
) -> Result<(), Error> {
    let mut chunk = Chunk::new(usize::try_from(total).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES));
    let mut filled = 0;
    // Copies into the chunk, and has `seen` look at the copy; what is full is written.
    let mut push = |sink: &mut dyn Sink, mut bytes: &[u8], seen: &mut dyn FnMut(&[u8])| {
        while !bytes.is_empty() {
            let buffer = chunk.bytes();
            let take = bytes.len().min(buffer.len() - filled);
            let (now, rest) = bytes.split_at(take);
            let to = &mut buffer[filled..filled + take];
            to.copy_from_slice(now);
            seen(to);
            (filled, bytes) = (filled + take, rest);
            if filled == buffer.len() {
                sink.write(buffer)?;
                filled = 0;
            }
        }
        Ok::<_, Error>(filled)
    };
    let zeros = [0; BLOCK_BYTES as usize];
    for (name, bytes) in objects {
        let bytes = bytes.as_ref();
        let mut hasher = hasher(name, bytes.len() as u64);
        push(&mut *sink, bytes, &mut |copied| {
            hasher.update(copied);
        })?;
        let filled = push(&mut *sink, &trailer(&hasher, bytes.len() as u64), &mut |_| {})?;
        push(&mut *sink, &zeros[..filled.next_multiple_of(zeros.len()) - filled], &mut |_| {})?;
    }
    let filled = push(&mut *sink, &[], &mut |_| {})?;
    if filled > 0 {
        sink.write(&chunk.bytes()[..filled])?;
    }
    sink.finish()
}

/// Fills `into` with the object of that name and length, whose slot begins at `offset` of the file. On an error what is
/// in `into` is nobody's.
///
/// # Errors
/// [`Error::Damaged`] where something else lies there; or the target cannot be reached.
pub fn read(target: &dyn Target, file: u64, offset: u64, name: &[u8], into: &mut [u8]) -> Result<(), Error> {
    read_watched(target, file, offset, name, into, &|| {})
}

/// As [`read`], and calls `moved` each time that the target has given something.
///
/// # Errors
/// As [`read`].
pub fn read_watched(
    target: &dyn Target,
    file: u64,
    offset: u64,
    name: &[u8],
    into: &mut [u8],
    moved: &dyn Fn(),
) -> Result<(), Error> {
    let len = into.len() as u64;
    let slot = slot_bytes(len).and_then(|slot| usize::try_from(slot).ok());
    let slot = slot.ok_or(Error::RegionSize { bytes: len })?;
    let mut source = target.open(file)?;
    moved();
    let mut chunk = Chunk::new(slot.min(CHUNK_BYTES));
    let mut hasher = hasher(name, len);
    let mut found = Vec::with_capacity(TRAILER_BYTES);
    let mut done = 0;
    while done < slot {
        let buffer = chunk.bytes();
        let take = buffer.len().min(slot - done);
        let read = &mut buffer[..take];
        source.read_at(offset + done as u64, read)?;
        moved();
        let (data, rest) = read.split_at(into.len().saturating_sub(done).min(take));
        hasher.update(data);
        into[done.min(len as usize)..][..data.len()].copy_from_slice(data);
        found.extend_from_slice(&rest[..rest.len().min(TRAILER_BYTES - found.len())]);
        done += take;
    }
    if found != trailer(&hasher, len) {
        return Err(Error::Damaged { file, offset, bytes: len });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
