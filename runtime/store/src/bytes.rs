//! Immutable bytes that are cheap to clone and to slice, wherever they lie: in ordinary memory, in a region
//! that this process reads, or in one that it writes.

use std::{
    any::Any,
    fmt,
    mem::MaybeUninit,
    ops::{Bound, Deref, RangeBounds},
    ptr::NonNull,
};

use mobula_proto::Blob;

use crate::{ALIGN, Error, heap::Extent, region::Reader, sync::Arc};

/// Something that is kept as long as bytes of a mapped region are, and whose drop tells the writer that they
/// are no longer used.
pub type Pin = Arc<dyn Any + Send + Sync>;

/// What ordinary memory is allocated in. The allocator gives 16-byte alignment for nothing but takes four
/// times as long for 64; so a little more is allocated, and used from the first multiple of [`ALIGN`] on.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Unit([u8; UNIT_BYTES]);

const UNIT_BYTES: usize = 16;

#[repr(align(64))]
struct Aligned([u8; 0]);

const _: () = assert!(align_of::<Aligned>() == ALIGN && ALIGN.is_multiple_of(UNIT_BYTES));

static EMPTY: Aligned = Aligned([]);

/// What keeps the bytes where they are. Held for its drop above all.
#[derive(Clone)]
#[expect(dead_code, reason = "most owners are held for their drop alone")]
enum Owner {
    /// Nobody: the bytes are static.
    Static,
    /// Ordinary memory, count and bytes in one allocation; initialised where the bytes are.
    Units(std::sync::Arc<[MaybeUninit<Unit>]>),
    /// What came inside a message, in memory of its own.
    Blob(Blob),
    /// A vector, or what else shows bytes, as it was given and at its own alignment.
    Vector(std::sync::Arc<dyn Any + Send + Sync>),
    /// A region that another process writes.
    Mapped(Arc<Reader>, Option<Pin>),
    /// Memory that this process allocated and sealed.
    Extent(Extent),
}

/// Immutable bytes. A clone or a slice costs a reference count; the memory goes with the last of them.
#[derive(Clone)]
pub struct Bytes {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

// SAFETY: `start` points at memory that `owner` keeps alive (ST-1) and that nobody writes (ST-4, ST-5);
// every owner is itself `Send` and `Sync`, which the assertion below has the compiler check.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

const _: () = {
    const fn threads<T: Send + Sync>() {}
    threads::<Owner>();
};

impl Bytes {
    /// No bytes, at an aligned address.
    pub const fn new() -> Self {
        Self { start: NonNull::from_ref(&EMPTY.0).cast(), len: 0, owner: Owner::Static }
    }

    /// Bytes of the program itself.
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self { start: NonNull::from_ref(bytes).cast(), len: bytes.len(), owner: Owner::Static }
    }

    /// A copy of `bytes` at 64-byte alignment.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut builder = Builder::with_len(bytes.len());
        builder.append(bytes);
        builder.finish()
    }

    /// The vector itself, not copied, at the alignment of its elements. What must lie at 64 bytes (an
    /// encoded object read in place) goes through [`Self::from_slice`] instead.
    pub fn from_vec<T: bytemuck::NoUninit + Send + Sync>(vec: Vec<T>) -> Self {
        if vec.is_empty() {
            return Self::new();
        }
        let vec = std::sync::Arc::new(vec);
        let slice: &[u8] = bytemuck::cast_slice(&vec[..]);
        Self { start: NonNull::from_ref(slice).cast(), len: slice.len(), owner: Owner::Vector(vec) }
    }

    /// What `owner` shows, not copied, wherever and however aligned that is. The owner is asked once, and kept.
    pub fn from_owner<T: AsRef<[u8]> + Send + Sync + 'static>(owner: T) -> Self {
        let owner = std::sync::Arc::new(owner);
        let shown: &[u8] = T::as_ref(&owner);
        if shown.is_empty() {
            return Self::new();
        }
        // What a shared reference showed stays as it is as long as the owner is there and nobody has another kind of
        // reference to it: it does not move in its `Arc`, and nobody ever gets at it there.
        Self { start: NonNull::from_ref(shown).cast(), len: shown.len(), owner: Owner::Vector(owner) }
    }

    /// Bytes of a reader's mapping, whose bounds the caller has checked.
    pub(crate) fn mapped(reader: Arc<Reader>, start: usize, len: usize, pin: Option<Pin>) -> Self {
        Self { start: reader.mapping().at(start), len, owner: Owner::Mapped(reader, pin) }
    }

    /// All bytes of an extent.
    pub(crate) fn extent(extent: Extent) -> Self {
        Self {
            start: NonNull::from_ref(extent.as_slice()).cast(),
            len: extent.len(),
            owner: Owner::Extent(extent),
        }
    }

    /// The extent of which these are a part.
    pub(crate) fn extent_owner(&self) -> Option<&Extent> {
        match &self.owner {
            Owner::Extent(extent) => Some(extent),
            _ => None,
        }
    }

    /// A part of the bytes, without a copy; keeps the whole (and its pin) alive. Fails where `range` is not
    /// inside them.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<Self, Error> {
        let from = match range.start_bound() {
            Bound::Included(&at) => Some(at),
            Bound::Excluded(&at) => at.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let to = match range.end_bound() {
            Bound::Included(&at) => at.checked_add(1),
            Bound::Excluded(&at) => Some(at),
            Bound::Unbounded => Some(self.len),
        };
        match (from, to) {
            (Some(from), Some(to)) if from <= to && to <= self.len => {
                // SAFETY: `from` is at most `len`, so the address is in the memory of `owner` or one past it.
                let start = unsafe { self.start.add(from) };
                Ok(Self { start, len: to - from, owner: self.owner.clone() })
            }
            _ => Err(Error::OutOfBounds {
                what: "bytes",
                offset: from.unwrap_or(usize::MAX) as u64,
                len: to.unwrap_or(usize::MAX).saturating_sub(from.unwrap_or(0)) as u64,
                size: self.len as u64,
            }),
        }
    }

    /// Whether they start at a multiple of `align`, as a raw buffer read in place must.
    pub fn is_aligned_to(&self, align: usize) -> bool {
        align != 0 && self.start.addr().get().is_multiple_of(align)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` and `len` describe initialised memory that `owner` keeps alive and that nobody
        // writes as long as it does (ST-1, ST-4, ST-5). `len` is at most `isize::MAX`: it is the length of a
        // slice or of a part of a mapping.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.owner {
            Owner::Static => "static",
            Owner::Units(_) | Owner::Vector(_) | Owner::Blob(_) => "in memory",
            Owner::Mapped(..) => "mapped",
            Owner::Extent(_) => "in the heap",
        };
        write!(f, "Bytes({} {place})", self.len)
    }
}

/// The same memory, at a multiple of 16 bytes; a copy of what lies in the blob itself.
impl From<Blob> for Bytes {
    fn from(blob: Blob) -> Self {
        if blob.is_empty() {
            return Self::new();
        }
        // `start` stays where it is when the owner is moved.
        let blob = blob.into_shared();
        let bytes: &[u8] = &blob;
        Self { start: NonNull::from_ref(bytes).cast(), len: bytes.len(), owner: Owner::Blob(blob) }
    }
}

/// For sending: the network's type, around the same memory.
impl From<Bytes> for ::bytes::Bytes {
    fn from(bytes: Bytes) -> Self {
        Self::from_owner(bytes)
    }
}

/// Fills aligned memory from its start to its end, once, without zeroing it first.
pub struct Builder {
    units: std::sync::Arc<[MaybeUninit<Unit>]>,
    /// The first aligned byte of `units`, with the right to write: nobody else has them before
    /// [`Self::finish`].
    start: NonNull<u8>,
    /// Bytes from `start` that there are.
    len: usize,
    /// Bytes from `start` that are initialised; at most `len`.
    written: usize,
}

// SAFETY: `start` points into `units`, which is this builder's alone and moves with it.
unsafe impl Send for Builder {}
// SAFETY: as above; nothing is read or written through a shared reference.
unsafe impl Sync for Builder {}

impl Builder {
    /// Memory for exactly `len` bytes.
    pub fn with_len(len: usize) -> Self {
        let mut units =
            std::sync::Arc::new_uninit_slice(len.saturating_add(ALIGN - UNIT_BYTES).div_ceil(UNIT_BYTES));
        // A new `Arc` is always unique; were it not, nothing could be written and `len` would be 0.
        let Some(unique) = std::sync::Arc::get_mut(&mut units) else {
            return Self { units, start: NonNull::from_ref(&EMPTY.0).cast(), len: 0, written: 0 };
        };
        let base = NonNull::from_mut(unique).cast::<u8>();
        let skip = base.addr().get().next_multiple_of(ALIGN) - base.addr().get();
        // SAFETY: `base` is a multiple of 16, so at most 48 bytes are skipped, and that many more than `len`
        // were allocated.
        let start = unsafe { base.add(skip) };
        Self { units, start, len, written: 0 }
    }

    /// Bytes that are still to come.
    pub fn remaining(&self) -> usize {
        self.len - self.written
    }

    /// Appends as much of `bytes` as there is room for, and returns how much that was.
    #[inline]
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let take = bytes.len().min(self.remaining());
        // SAFETY: `written + take <= len`, and `len` bytes are allocated at `start`; the source is another
        // allocation, for this one is uniquely ours.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(self.written).as_ptr(), take) };
        self.written += take;
        take
    }

    /// Appends up to `count` zeros, as many as there is room for.
    pub fn pad(&mut self, count: usize) {
        let take = count.min(self.remaining());
        // SAFETY: as in `append`.
        unsafe { self.start.add(self.written).write_bytes(0, take) };
        self.written += take;
    }

    /// The finished bytes; what was not written is zero.
    pub fn finish(mut self) -> Bytes {
        if self.len == 0 {
            return Bytes::new();
        }
        self.pad(self.len);
        Bytes { start: self.start, len: self.len, owner: Owner::Units(self.units) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_and_check_their_bounds() {
        let bytes = Bytes::from_slice(&(0..=255).collect::<Vec<u8>>());
        assert!(bytes.is_aligned_to(64));
        let part = bytes.slice(64..128).unwrap();
        assert!(part.is_aligned_to(64));
        assert_eq!(part.as_ptr(), bytes[64..].as_ptr());
        drop(bytes);
        assert_eq!(part.slice(1..=2).unwrap()[..], [65, 66]);
        assert_eq!(part.slice(64..).unwrap().len(), 0);
        assert!(part.slice(..65).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "the point of the test")]
        let reversed = part.slice(3..2);
        assert!(reversed.is_err());
        assert!(part.slice(0..=usize::MAX).is_err());
        assert!(part.slice(usize::MAX..).is_err());
    }

    #[test]
    fn vectors_are_not_copied() {
        let vec = vec![1.5f32, 2.5];
        let at = vec.as_ptr().cast::<u8>();
        let bytes = Bytes::from_vec(vec);
        assert_eq!(bytes.as_ptr(), at);
        assert_eq!(bytes.len(), 8);
        assert!(Bytes::from_vec(Vec::<u64>::new()).is_empty());
    }

    #[test]
    fn what_an_owner_shows_is_kept_with_it() {
        struct Told(std::sync::Arc<Vec<u8>>);
        impl AsRef<[u8]> for Told {
            fn as_ref(&self) -> &[u8] {
                &self.0[1..]
            }
        }
        let all = std::sync::Arc::new(vec![1, 2, 3]);
        let bytes = Bytes::from_owner(Told(all.clone())).slice(..1).unwrap();
        assert_eq!((bytes.as_ptr(), &bytes[..]), (all[1..].as_ptr(), &[2][..]));
        assert_eq!(std::sync::Arc::strong_count(&all), 2);
        drop(bytes);
        assert_eq!(std::sync::Arc::strong_count(&all), 1);
        assert!(Bytes::from_owner(Vec::new()).is_empty());
    }

    #[test]
    fn builders_fill_what_was_left_out() {
        for len in [0usize, 1, 63, 64, 65, 200] {
            let mut builder = Builder::with_len(len);
            let took = builder.append(&[7; 100]);
            assert_eq!(took, len.min(100));
            builder.pad(1);
            let bytes = builder.finish();
            assert_eq!(bytes.len(), len);
            assert!(bytes.is_aligned_to(64));
            assert!(bytes.iter().enumerate().all(|(i, b)| *b == if i < 100 { 7 } else { 0 }));
        }
        assert_eq!(Bytes::default(), Bytes::from_static(b""));
    }

    #[test]
    fn the_network_takes_them_without_a_copy() {
        let bytes = Bytes::from_slice(b"one copy at most");
        let at = bytes.as_ptr();
        let sent = ::bytes::Bytes::from(bytes);
        assert_eq!(sent.as_ptr(), at);
        assert_eq!(&sent[..], b"one copy at most");
    }
}
