//! The ring itself: frames from one producer to one consumer.

use std::{ops::Deref, os::fd::OwnedFd};

use mobula_proto::wire::FRAME_BYTES_MAX;

use super::{
    CAPACITY_BYTES_MAX, CAPACITY_BYTES_MIN, Error, HEADER_BYTES,
    map::Map,
    sync::{Arc, AtomicU32, AtomicU64, Ordering, fence},
};

/// "mobring" and the layout's version.
const MAGIC: u64 = u64::from_le_bytes(*b"mobring\x01");
/// Data starts here: a page, so that the data is page-aligned.
const DATA_AT: usize = 4096;

// Fields of the header. Those that the two sides write lie 256 bytes apart: processors fetch lines in pairs.
const MAGIC_AT: usize = 0;
const CAPACITY_AT: usize = 8;
const PRODUCER_CLAIM_AT: usize = 16;
const CONSUMER_CLAIM_AT: usize = 20;
const TAIL_AT: usize = 256;
const HEAD_AT: usize = 512;
const SPACE_WANTED_AT: usize = 768;

/// States of a claim word.
const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const GONE: u32 = 2;

/// Kinds of a frame's header, in its bits 32 to 47. Neither is zero, so fresh memory is no valid header.
const KIND_DATA: u64 = 0x4652;
const KIND_SKIP: u64 = 0x534b;
/// Flag, in a header's bits 48 to 63: the message goes on in the next frame.
pub(super) const MORE: u16 = 1;
/// Flag: the message began in an earlier frame.
pub(super) const CONTINUED: u16 = 2;
/// Every flag that there is.
const FLAGS: u16 = MORE | CONTINUED;

pub(super) fn create(capacity_bytes: u32) -> Result<OwnedFd, Error> {
    if !capacity_is_valid(capacity_bytes) {
        return Err(Error::Capacity { bytes: capacity_bytes });
    }
    let mut header = [0u8; CAPACITY_AT + 4];
    header[MAGIC_AT..MAGIC_AT + 8].copy_from_slice(&MAGIC.to_ne_bytes());
    header[CAPACITY_AT..].copy_from_slice(&capacity_bytes.to_ne_bytes());
    super::map::create("mobula-ring", DATA_AT + capacity_bytes as usize, &header)
}

fn capacity_is_valid(bytes: u32) -> bool {
    bytes.is_power_of_two() && (CAPACITY_BYTES_MIN..=CAPACITY_BYTES_MAX).contains(&bytes)
}

/// Bytes that a frame takes in the ring.
#[inline]
fn frame_bytes(body: usize) -> usize {
    (HEADER_BYTES + body).next_multiple_of(HEADER_BYTES)
}

/// A ring's mapping, and what was read from its header once.
struct Shared {
    map: Map,
    capacity: u64,
}

impl Shared {
    fn open(fd: OwnedFd, claim_at: usize, end: &'static str) -> Result<Arc<Self>, Error> {
        let map = Map::open(fd, DATA_AT + CAPACITY_BYTES_MIN as usize)?;
        if map.word64(MAGIC_AT).load(Ordering::Relaxed) != MAGIC {
            return Err(Error::Foreign { detail: "it is not a ring of this version" });
        }
        let capacity = map.word32(CAPACITY_AT).load(Ordering::Relaxed);
        if !capacity_is_valid(capacity) || map.len() != DATA_AT + capacity as usize {
            return Err(Error::Foreign { detail: "the ring's capacity is not its file's" });
        }
        map.word32(claim_at)
            .compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(|_| Error::Claimed { end })?;
        Ok(Arc::new(Self { map, capacity: u64::from(capacity) }))
    }

    #[inline]
    fn tail(&self) -> &AtomicU64 {
        self.map.word64(TAIL_AT)
    }

    #[inline]
    fn head(&self) -> &AtomicU64 {
        self.map.word64(HEAD_AT)
    }

    #[inline]
    fn space_wanted(&self) -> &AtomicU32 {
        self.map.word32(SPACE_WANTED_AT)
    }

    /// Offset in the mapping of a position.
    #[inline]
    fn offset(&self, position: u64) -> usize {
        DATA_AT + (position & (self.capacity - 1)) as usize
    }

    /// Bytes from a position to the end of the data.
    #[inline]
    fn until_end(&self, position: u64) -> u64 {
        self.capacity - (position & (self.capacity - 1))
    }

    /// Longest body of a frame: half of the ring at most, so that an empty ring always takes a frame, wherever
    /// it stands (what is skipped is shorter than the frame, and the two together are shorter than the ring).
    fn body_bytes_max(&self) -> usize {
        FRAME_BYTES_MAX.min(self.capacity as usize / 2) - HEADER_BYTES
    }

    fn is_gone(&self, claim_at: usize) -> bool {
        self.map.word32(claim_at).load(Ordering::Acquire) == GONE
    }
}

/// The end that writes frames.
pub struct Producer {
    shared: Arc<Shared>,
    /// Where the next frame goes. Never read back from the shared memory.
    tail: u64,
    /// The consumer's position when last looked at; it is looked at only when this says that there is no room.
    head_seen: u64,
    body_bytes_max: usize,
}

impl Producer {
    /// Maps the producer's end of a ring; refuses what is not a ring, and an end that was mapped before.
    pub fn map(fd: OwnedFd) -> Result<Self, Error> {
        let shared = Shared::open(fd, PRODUCER_CLAIM_AT, "producer")?;
        let body_bytes_max = shared.body_bytes_max();
        Ok(Self { shared, tail: 0, head_seen: 0, body_bytes_max })
    }

    /// Longest body that one frame can have, in bytes: a little under 64 KiB, or under half of a small ring.
    pub fn body_bytes_max(&self) -> usize {
        self.body_bytes_max
    }

    /// The ring's capacity in bytes, headers included.
    pub fn capacity_bytes(&self) -> usize {
        self.shared.capacity as usize
    }

    /// Appends one frame whose body is `parts`, one after the other. Ring the consumer's doorbell afterwards,
    /// once for as many frames as there are.
    ///
    /// On [`Error::Full`] nothing was written, and the consumer was told to say when half of the ring is free
    /// (see [`Consumer::take_space_wanted`]).
    #[inline]
    pub fn try_push(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        let body = parts.iter().map(|p| p.len()).sum();
        self.push(parts, body, body, 0)
    }

    /// Appends one frame with flags; `message` is the length of the whole message that it belongs to.
    #[inline]
    pub(super) fn push(
        &mut self,
        parts: &[&[u8]],
        body: usize,
        message: usize,
        flags: u16,
    ) -> Result<(), Error> {
        if body > self.body_bytes_max {
            return Err(Error::TooLong { bytes: body, limit: self.body_bytes_max });
        }
        let frame = frame_bytes(body) as u64;
        let until_end = self.shared.until_end(self.tail);
        let skip = if frame > until_end { until_end } else { 0 };
        if skip + frame > self.shared.capacity - (self.tail - self.head_seen) {
            self.make_room(skip + frame)?;
        }
        if skip > 0 {
            let at = self.shared.offset(self.tail);
            self.shared.map.word64(at).store(KIND_SKIP << 32, Ordering::Relaxed);
        }
        let at = self.shared.offset(self.tail + skip);
        let word = body as u64 | (KIND_DATA << 32) | (u64::from(flags) << 48);
        self.shared.map.word64(at).store(word, Ordering::Relaxed);
        self.shared.map.word64(at + 8).store(message as u64, Ordering::Relaxed);
        let mut to = at + HEADER_BYTES;
        let mut left = body;
        for part in parts {
            // The caller's sum is what was checked: never write past it.
            let part = &part[..part.len().min(left)];
            // SAFETY: `skip + frame` bytes from `tail` are inside the ring and free (checked above against the
            // consumer's position, RG-2), the frame does not wrap, and `left` keeps the parts inside its body.
            // They are published only below (RG-1).
            unsafe { self.shared.map.write(to, part) };
            to += part.len();
            left -= part.len();
        }
        self.tail += skip + frame;
        self.shared.tail().store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Looks at the consumer's position again; asks for a sign when there still is no room for `needed` bytes.
    #[cold]
    fn make_room(&mut self, needed: u64) -> Result<(), Error> {
        if self.has_room(needed)? {
            return Ok(());
        }
        self.shared.space_wanted().store(1, Ordering::Relaxed);
        // Pairs with the fence in `take_space_wanted`: either the consumer sees the flag after it freed bytes,
        // or the bytes that it freed are seen here.
        fence(Ordering::SeqCst);
        if self.has_room(needed)? { Ok(()) } else { Err(Error::Full) }
    }

    fn has_room(&mut self, needed: u64) -> Result<bool, Error> {
        let head = self.shared.head().load(Ordering::Acquire);
        // It lies between where it was and where we are, on a frame's start; else the peer is broken (RG-4).
        if head < self.head_seen || head > self.tail || !head.is_multiple_of(HEADER_BYTES as u64) {
            return Err(Error::Corrupt { detail: "the consumer's position is outside the ring" });
        }
        self.head_seen = head;
        Ok(needed <= self.shared.capacity - (self.tail - head))
    }

    /// Whether a producer that found the ring full still waits for the consumer's sign.
    pub fn is_waiting_for_space(&self) -> bool {
        self.shared.space_wanted().load(Ordering::Relaxed) != 0
    }

    /// Whether the consumer has read everything.
    pub fn is_drained(&self) -> bool {
        self.shared.head().load(Ordering::Acquire) == self.tail
    }

    /// Whether the consumer dropped its end in good order. The death of its process is told by other means.
    pub fn is_consumer_gone(&self) -> bool {
        self.shared.is_gone(CONSUMER_CLAIM_AT)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.map.word32(PRODUCER_CLAIM_AT).store(GONE, Ordering::Release);
    }
}

/// The end that reads frames.
pub struct Consumer {
    shared: Arc<Shared>,
    /// The next frame to read. Never read back from the shared memory.
    head: u64,
    /// The producer's position when last looked at; it is looked at only when all before it was read.
    tail_seen: u64,
}

impl Consumer {
    /// Maps the consumer's end of a ring; refuses what is not a ring, and an end that was mapped before.
    pub fn map(fd: OwnedFd) -> Result<Self, Error> {
        let shared = Shared::open(fd, CONSUMER_CLAIM_AT, "consumer")?;
        Ok(Self { shared, head: 0, tail_seen: 0 })
    }

    /// The next frame, borrowed where it lies and released when dropped; `None` when there is none yet.
    ///
    /// [`Error::Corrupt`] is for good: the ring stays where it is and says so again.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Frame<'_>>, Error> {
        loop {
            let mut ready = self.tail_seen - self.head;
            if ready == 0 {
                let tail = self.shared.tail().load(Ordering::Acquire);
                if tail == self.head {
                    return Ok(None);
                }
                if tail < self.head
                    || tail - self.head > self.shared.capacity
                    || !tail.is_multiple_of(HEADER_BYTES as u64)
                {
                    return Err(Error::Corrupt { detail: "the producer's position is outside the ring" });
                }
                self.tail_seen = tail;
                ready = tail - self.head;
            }
            let at = self.shared.offset(self.head);
            let until_end = self.shared.until_end(self.head);
            // Copied out once; what is checked below is what is used (RG-4).
            let word = self.shared.map.word64(at).load(Ordering::Relaxed);
            match (word >> 32) & 0xffff {
                KIND_DATA => {
                    let body = (word & 0xffff_ffff) as usize;
                    let flags = (word >> 48) as u16;
                    if body > FRAME_BYTES_MAX - HEADER_BYTES || flags & !FLAGS != 0 {
                        return Err(Error::Corrupt { detail: "a frame's header is malformed" });
                    }
                    let frame = frame_bytes(body) as u64;
                    if frame > ready.min(until_end) {
                        return Err(Error::Corrupt { detail: "a frame is longer than what was published" });
                    }
                    let message = self.shared.map.word64(at + 8).load(Ordering::Relaxed);
                    let next = self.head + frame;
                    return Ok(Some(Frame {
                        consumer: self,
                        at: at + HEADER_BYTES,
                        body,
                        flags,
                        message,
                        next,
                    }));
                }
                KIND_SKIP if until_end <= ready => self.advance(self.head + until_end),
                _ => return Err(Error::Corrupt { detail: "there is no frame where one should start" }),
            }
        }
    }

    #[inline]
    fn advance(&mut self, head: u64) {
        self.head = head;
        // The line is the consumer's own: the producer looks at it only when it is out of room.
        self.shared.head().store(head, Ordering::Release);
    }

    /// Whether all that was published has been read. Two loads; see [`Consumer::watch`] for other threads.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.shared.tail().load(Ordering::Acquire) == self.head
    }

    /// Bytes that were published and not read; never more than the capacity.
    pub(super) fn ready_bytes(&self) -> usize {
        let ready = self.shared.tail().load(Ordering::Acquire).wrapping_sub(self.head);
        ready.min(self.shared.capacity) as usize
    }

    /// A handle that any thread can ask whether there is something to read.
    pub fn watch(&self) -> Watch {
        Watch { shared: self.shared.clone() }
    }

    /// Whether the producer found the ring full and should be told, by ringing its doorbell, that at least half
    /// of it is free now. Says yes once for each time that the producer asked.
    ///
    /// Call it after each drain, before sleeping. When less than half is free there are still frames to read, so
    /// the consumer comes by again: the sign is never lost.
    pub fn take_space_wanted(&mut self) -> bool {
        // Pairs with the fence in `make_room`. It must stand before the look at the flag, and after the last
        // store of the head.
        fence(Ordering::SeqCst);
        let wanted = self.shared.space_wanted();
        if wanted.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let used = self.shared.tail().load(Ordering::Acquire).wrapping_sub(self.head);
        used <= self.shared.capacity / 2 && wanted.swap(0, Ordering::AcqRel) != 0
    }

    /// Whether the producer dropped its end in good order; frames that it left can still be read. The death of
    /// its process is told by other means.
    pub fn is_producer_gone(&self) -> bool {
        self.shared.is_gone(PRODUCER_CLAIM_AT)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.map.word32(CONSUMER_CLAIM_AT).store(GONE, Ordering::Release);
    }
}

/// One frame, borrowed where it lies in the ring. Its body is 16-aligned. Dropping it gives its bytes back to the
/// producer; a frame that is forgotten instead comes again.
pub struct Frame<'a> {
    consumer: &'a mut Consumer,
    at: usize,
    body: usize,
    flags: u16,
    message: u64,
    next: u64,
}

impl Frame<'_> {
    pub(super) fn flags(&self) -> u16 {
        self.flags
    }

    /// Length of the whole message, as the sender announced it.
    pub(super) fn message_bytes(&self) -> u64 {
        self.message
    }
}

impl Frame<'_> {
    /// Appends the body to `out`, also where the producer does not keep to RG-2.
    pub(super) fn copy_to(&self, out: &mut Vec<u8>) {
        self.consumer.shared.map.copy(self.at, self.body, out);
    }

    pub(super) fn body_bytes(&self) -> usize {
        self.body
    }
}

impl Deref for Frame<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `pop` checked that the body lies inside what was published, with Acquire (RG-1), and inside
        // the mapping; the producer leaves it alone until `drop` moves the head past it (RG-2), and the slice
        // cannot outlive the frame.
        unsafe { self.consumer.shared.map.read(self.at, self.body) }
    }
}

impl Drop for Frame<'_> {
    #[inline]
    fn drop(&mut self) {
        self.consumer.advance(self.next);
    }
}

/// Tells any thread whether a ring has something to read, without access to its consumer.
#[derive(Clone)]
pub struct Watch {
    shared: Arc<Shared>,
}

impl Watch {
    /// Whether all that was published has been read, at some moment during the call.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // The head first: it never passes the tail, so equality means that both stood there at once.
        let head = self.shared.head().load(Ordering::Acquire);
        self.shared.tail().load(Ordering::Acquire) == head
    }
}

#[cfg(test)]
#[path = "buffer/tests.rs"]
mod tests;
