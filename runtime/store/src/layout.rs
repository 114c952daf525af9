//! The encoded form of one object: a small rkyv archive and raw buffers beside it, in one blob, so that a
//! large tensor is neither scanned when it is read nor limited by what an archive can address.
//!
//! ```text
//! 0        magic and version  u32
//! 4        buffer count n     u32   ≤ BUFFERS_MAX
//! 8        archive length     u64
//! 16       n × (offset u64, length u64), offsets from the start of the blob
//! 16+16n   archive            at a multiple of 16
//!          buffers            each at a multiple of 64
//! ```
//! All numbers are little-endian; gaps are zero. A blob without buffers must lie at a multiple of 16 bytes to
//! be read in place, one with buffers at a multiple of 64. A blob shorter than a header is an archive alone, as numbers and
//! units are: those need no memory of their own while they travel ([`Blob`]).

use std::ops::Range;

use mobula_proto::{Blob, wire::INLINE_BYTES_MAX};
use rkyv::util::AlignedVec;

use crate::{ALIGN, Error, bytes::Bytes, heap::Extent};

/// Most buffers in one object.
pub const BUFFERS_MAX: usize = 65_536;

/// First bytes of every blob: what it is, and version 1.
const MAGIC: u32 = u32::from_le_bytes(*b"mob\x01");
/// Bytes in front of an archive that has no buffers beside it.
pub const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

const _: () = assert!(Blob::SMALL_BYTES_MAX < HEADER_BYTES, "its length tells an archive alone");

/// Longest archive for which [`Encoded::in_place`] compares: those of tensors have some hundred bytes.
const FRONT_BYTES_MAX: usize = 64 * 1024;
/// Alignment of archives, as rkyv writes them.
const ARCHIVE_ALIGN: usize = 16;

/// An object ready to be written: its archive, and the buffers that the archive refers to by index.
#[derive(Debug, Default)]
pub struct Encoded(Form);

#[derive(Debug)]
enum Form {
    /// As it will lie in memory.
    Whole(Blob),
    /// Room for the header and what rkyv wrote after it; raw buffers.
    Parts { front: AlignedVec, buffers: Vec<Bytes> },
}

impl Default for Form {
    fn default() -> Self {
        Self::Whole(Blob::default())
    }
}

impl From<Blob> for Encoded {
    /// What [`Encoded::to_blob`] made.
    fn from(blob: Blob) -> Self {
        Self(Form::Whole(blob))
    }
}

impl Encoded {
    /// The object whose archive is in `front`, after [`HEADER_BYTES`] of room, and whose buffers are these, at most
    /// [`BUFFERS_MAX`]. A small archive alone is copied out of `front`, so that whoever wrote it can use the memory
    /// again; else `front` is taken.
    pub fn new(front: &mut AlignedVec, buffers: Vec<Bytes>) -> Self {
        if front.len() < HEADER_BYTES {
            front.resize(HEADER_BYTES, 0);
        }
        let bytes = front.len();
        if buffers.is_empty() && bytes <= HEADER_BYTES + Blob::SMALL_BYTES_MAX {
            return Self(Form::Whole(Blob::from_slice(&front[HEADER_BYTES..])));
        }
        if buffers.is_empty() && bytes <= INLINE_BYTES_MAX {
            front[..HEADER_BYTES].copy_from_slice(&header(0, bytes - HEADER_BYTES));
            return Self(Form::Whole(Blob::from_slice(front)));
        }
        Self(Form::Parts { front: std::mem::take(front), buffers })
    }

    /// How many bytes the blob has.
    #[expect(clippy::len_without_is_empty, reason = "empty is what a unit is, and of no use to know")]
    pub fn len(&self) -> u64 {
        match &self.0 {
            Form::Whole(blob) => blob.len() as u64,
            Form::Parts { front, buffers } => {
                let mut end = (front.len() + ENTRY_BYTES * buffers.len()) as u64;
                for buffer in buffers {
                    end = aligned(end) + buffer.len() as u64;
                }
                end
            }
        }
    }

    /// Writes the blob over all of `target`, which has exactly [`Self::len`] bytes; gaps become zero. For
    /// reading in place `target` must be aligned, as blocks of a heap are.
    pub fn write_into(&self, target: &mut [u8]) -> Result<(), Error> {
        let expected = self.len();
        if target.len() as u64 != expected {
            return Err(Error::WrongSize {
                what: "the target of an object",
                expected,
                found: target.len() as u64,
            });
        }
        let mut rest = target;
        self.emit(|part| {
            // Always enough: the parts are `len` bytes together, as was just checked.
            if let Some((now, later)) = std::mem::take(&mut rest).split_at_mut_checked(part.len()) {
                now.copy_from_slice(part);
                rest = later;
            }
        })
    }

    /// The blob in ordinary memory: for what is small enough to travel inside a message.
    pub fn to_blob(&self) -> Result<Blob, Error> {
        match &self.0 {
            Form::Whole(blob) => Ok(blob.clone()),
            Form::Parts { .. } => Blob::build(self.len() as usize, |target| self.write_into(target)),
        }
    }

    /// The heap's memory in which exactly this blob lies already, because its one buffer was written behind the
    /// [`front_of`] it; then nothing needs to be copied.
    pub fn in_place(&self) -> Option<Extent> {
        let Form::Parts { buffers, .. } = &self.0 else { return None };
        let [buffer] = &buffers[..] else { return None };
        let extent = buffer.extent_owner()?;
        let mut rest = extent.as_slice();
        let mut same = rest.len() as u64 == self.len();
        self.emit(|part| match rest.split_at_checked(part.len()) {
            Some((there, later)) => {
                // The buffer is compared by its place alone: reading it would cost as much as copying it.
                let lies_there = std::ptr::eq(there.as_ptr(), part.as_ptr());
                same &= lies_there
                    || (part.len() <= FRONT_BYTES_MAX && part.as_ptr() != buffer.as_ptr() && there == part);
                rest = later;
            }
            None => same = false,
        })
        .ok()?;
        same.then(|| extent.clone())
    }

    /// Hands out the parts of the blob, in order and without gaps.
    fn emit(&self, mut put: impl FnMut(&[u8])) -> Result<(), Error> {
        let (front, buffers) = match &self.0 {
            Form::Whole(blob) => {
                put(blob);
                return Ok(());
            }
            Form::Parts { front, buffers } => (front, buffers),
        };
        if buffers.len() > BUFFERS_MAX {
            return Err(Error::TooManyBuffers { buffers: buffers.len() as u64 });
        }
        let archive = &front[HEADER_BYTES..];
        put(&header(buffers.len() as u32, archive.len()));
        let archive_end = (front.len() + ENTRY_BYTES * buffers.len()) as u64;
        let mut end = archive_end;
        for buffer in buffers {
            let mut entry = [0; ENTRY_BYTES];
            entry[..8].copy_from_slice(&aligned(end).to_le_bytes());
            entry[8..].copy_from_slice(&(buffer.len() as u64).to_le_bytes());
            put(&entry);
            end = aligned(end) + buffer.len() as u64;
        }
        put(archive);
        let mut end = archive_end;
        for buffer in buffers {
            put(&[0; ALIGN][..(aligned(end) - end) as usize]);
            put(buffer);
            end = aligned(end) + buffer.len() as u64;
        }
        Ok(())
    }
}

/// What lies in front of the buffer of an object that has only one, of so many bytes: header, table, and the archive
/// that is in `front` after [`HEADER_BYTES`] of room. The buffer follows at once.
pub fn front_of(front: &AlignedVec, buffer_bytes: u64) -> Vec<u8> {
    let archive = front.get(HEADER_BYTES..).unwrap_or_default();
    let end = HEADER_BYTES + ENTRY_BYTES + archive.len();
    let start = aligned(end as u64);
    let mut bytes = Vec::with_capacity(start as usize);
    bytes.extend_from_slice(&header(1, archive.len()));
    bytes.extend_from_slice(&start.to_le_bytes());
    bytes.extend_from_slice(&buffer_bytes.to_le_bytes());
    bytes.extend_from_slice(archive);
    bytes.resize(start as usize, 0);
    bytes
}

fn header(buffers: u32, archive_len: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..8].copy_from_slice(&buffers.to_le_bytes());
    header[8..].copy_from_slice(&(archive_len as u64).to_le_bytes());
    header
}

fn aligned(offset: u64) -> u64 {
    // Sums of lengths of what is in memory: far from the end of u64.
    offset.next_multiple_of(ALIGN as u64)
}

/// An encoded object, read where it lies. All of its structure was checked; what its archive holds was not
/// (that is [`crate::archived`]).
#[derive(Clone, Debug)]
pub struct Object {
    blob: Bytes,
    buffers: u32,
    archive: Range<usize>,
}

impl Object {
    /// [`Self::parse`] for what came inside a message: read where it lies, unless it has buffers, which need their
    /// alignment and so are copied.
    pub fn from_message(blob: Blob) -> Result<Self, Error> {
        if blob.len() < HEADER_BYTES || u32_at(&blob, 4) == Some(0) {
            return Self::parse(Bytes::from(blob));
        }
        Self::parse(Bytes::from_slice(&blob))
    }

    /// Checks a blob: kind and version, counts, and that archive and every buffer are aligned and inside it.
    /// Buffers may share bytes. Takes no memory, however many buffers there are.
    pub fn parse(blob: Bytes) -> Result<Self, Error> {
        let malformed = |detail| Error::Malformed { bytes: blob.len() as u64, detail };
        let unaligned = "not aligned in memory: copy it to aligned memory first";
        if blob.len() < HEADER_BYTES {
            let archive = 0..blob.len();
            return match blob.is_aligned_to(ARCHIVE_ALIGN) {
                true => Ok(Self { blob, buffers: 0, archive }),
                false => Err(malformed(unaligned)),
            };
        }
        let (Some(magic), Some(buffers), Some(archive_len)) =
            (u32_at(&blob, 0), u32_at(&blob, 4), u64_at(&blob, 8))
        else {
            return Err(malformed("shorter than its header"));
        };
        if magic != MAGIC {
            return Err(malformed("it does not start as an object of this version does"));
        }
        if buffers as usize > BUFFERS_MAX {
            return Err(Error::TooManyBuffers { buffers: u64::from(buffers) });
        }
        let align = if buffers == 0 { ARCHIVE_ALIGN } else { ALIGN };
        if !blob.is_aligned_to(align) {
            return Err(malformed(unaligned));
        }
        let archive = archive_start(buffers);
        let archive_len =
            usize::try_from(archive_len).map_err(|_| malformed("its archive ends outside of it"))?;
        let archive_end = archive.checked_add(archive_len).filter(|end| *end <= blob.len());
        let Some(archive_end) = archive_end else {
            return Err(malformed("its archive ends outside of it"));
        };
        for index in 0..buffers {
            let (Some(offset), Some(len)) = entry(&blob, index) else {
                return Err(malformed("its table ends outside of it"));
            };
            if !offset.is_multiple_of(ALIGN as u64) {
                return Err(malformed("a buffer is not aligned"));
            }
            if offset < archive_end as u64
                || offset.checked_add(len).is_none_or(|end| end > blob.len() as u64)
            {
                return Err(malformed("a buffer lies outside of it"));
            }
        }
        Ok(Self { blob, buffers, archive: archive..archive_end })
    }

    /// The archive, at a multiple of 16 bytes.
    pub fn archive(&self) -> &[u8] {
        // Never empty by failure: `parse` checked the range.
        self.blob.get(self.archive.clone()).unwrap_or_default()
    }

    /// How many buffers there are.
    pub fn buffers(&self) -> usize {
        self.buffers as usize
    }

    /// A buffer, at a multiple of 64 bytes, without a copy; it keeps the whole blob alive. Fails where there
    /// is no such buffer.
    pub fn buffer(&self, index: usize) -> Result<Bytes, Error> {
        let out_of_bounds = Error::OutOfBounds {
            what: "object's buffers",
            offset: index as u64,
            len: 1,
            size: self.buffers as usize as u64,
        };
        if index >= self.buffers() {
            return Err(out_of_bounds);
        }
        match entry(&self.blob, index as u32) {
            // Sliced with checks all the same: the numbers are read anew from memory that, if it is shared,
            // only its writer's good faith keeps as it was.
            (Some(offset), Some(len)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end =
                    usize::try_from(len).ok().and_then(|len| start.checked_add(len)).unwrap_or(usize::MAX);
                self.blob.slice(start..end)
            }
            _ => Err(out_of_bounds),
        }
    }

    /// The whole blob, to be passed on.
    pub fn blob(&self) -> &Bytes {
        &self.blob
    }
}

fn archive_start(buffers: u32) -> usize {
    HEADER_BYTES + ENTRY_BYTES * buffers as usize
}

fn entry(blob: &[u8], index: u32) -> (Option<u64>, Option<u64>) {
    let at = HEADER_BYTES + ENTRY_BYTES * index as usize;
    (u64_at(blob, at), u64_at(blob, at + 8))
}

fn u32_at(blob: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*blob.get(at..)?.first_chunk()?))
}

fn u64_at(blob: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*blob.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests;
