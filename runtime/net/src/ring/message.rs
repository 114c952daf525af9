//! Messages of any length over the frames of a ring.

use std::{collections::VecDeque, ops::Deref, os::fd::OwnedFd};

use mobula_proto::wire::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use rkyv::util::AlignedVec;

use super::{
    Consumer, Error, Frame, Producer, Watch,
    buffer::{CONTINUED, MORE},
};

/// Most bytes that wait beside a full ring, with [`OVERFLOW_ENTRY_BYTES`] added for each message. Unit: bytes for
/// each ring. Past it [`Sender::send`] refuses. Room for as many calls as one host may have unfinished (1,048,576), with
/// the arguments that these may hold: a receiver that stands still for a while loses nothing.
pub const OVERFLOW_BYTES_MAX: usize = 512 * 1024 * 1024;
/// What a waiting message is charged beside its bytes, so that empty ones are bounded too.
pub const OVERFLOW_ENTRY_BYTES: usize = 64;
/// Buffers that a receiver keeps for its next messages.
const POOL_BUFFERS_MAX: usize = 16;
/// Largest buffer that it keeps; larger ones are given back to the system.
const POOL_BUFFER_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// Largest buffer for joining split messages that it keeps.
const ASSEMBLY_BYTES_KEPT: usize = 1024 * 1024;

/// A message, or the rest of one, that waits for room.
struct Waiting {
    bytes: Vec<u8>,
    /// How much of it is in the ring.
    sent: usize,
}

impl Waiting {
    fn charge(&self) -> usize {
        self.bytes.len() + OVERFLOW_ENTRY_BYTES
    }
}

/// Sends messages of up to [`MESSAGE_BYTES_MAX`] into a ring, in order. What does not fit waits beside the ring, up
/// to [`OVERFLOW_BYTES_MAX`]; whoever polls calls [`flush`](Self::flush) when the consumer has made room.
pub struct Sender {
    producer: Producer,
    overflow: VecDeque<Waiting>,
    /// Sum of the charges of `overflow`.
    overflow_bytes: usize,
    overflow_bytes_max: usize,
}

impl Sender {
    /// Maps the producer's end of a ring.
    pub fn map(fd: OwnedFd) -> Result<Self, Error> {
        Ok(Self::new(Producer::map(fd)?))
    }

    /// Sends through `producer`.
    pub fn new(producer: Producer) -> Self {
        Self {
            producer,
            overflow: VecDeque::new(),
            overflow_bytes: 0,
            overflow_bytes_max: OVERFLOW_BYTES_MAX,
        }
    }

    /// Sends one message that consists of `head` and `body`, one after the other: into the ring, or beside it when
    /// the ring is full. Ring the consumer's doorbell afterwards, once for as many messages as there are.
    ///
    /// [`Error::Full`]: the overflow is at its bound too; nothing was taken. [`Error::TooLong`]: over
    /// [`MESSAGE_BYTES_MAX`]. [`Error::Corrupt`]: the consumer is broken; drop the ring.
    #[inline]
    pub fn send(&mut self, head: &[u8], body: &[u8]) -> Result<(), Error> {
        let total = head.len() + body.len();
        if self.overflow.is_empty() && total <= self.producer.body_bytes_max() {
            match self.producer.push(&[head, body], total, total, 0) {
                Err(Error::Full) => {}
                other => return other,
            }
        }
        self.send_slowly(head, body, total)
    }

    #[cold]
    fn send_slowly(&mut self, head: &[u8], body: &[u8], total: usize) -> Result<(), Error> {
        if total > MESSAGE_BYTES_MAX {
            return Err(Error::TooLong { bytes: total, limit: MESSAGE_BYTES_MAX });
        }
        // While the consumer still owes its sign there is no use in looking at its position each time.
        if !self.overflow.is_empty() && !self.producer.is_waiting_for_space() {
            self.flush()?;
        }
        let mut sent = 0;
        if self.overflow.is_empty() {
            sent = self.push_from(head, body, 0)?;
            if sent == total && (total > 0 || self.push_empty()?) {
                return Ok(());
            }
        } else if self.overflow_bytes + total + OVERFLOW_ENTRY_BYTES > self.overflow_bytes_max {
            return Err(Error::Full);
        }
        // An empty overflow takes any message, so that one half of which is in the ring is never refused.
        let mut bytes = Vec::with_capacity(total);
        bytes.extend_from_slice(head);
        bytes.extend_from_slice(body);
        let waiting = Waiting { bytes, sent };
        self.overflow_bytes += waiting.charge();
        self.overflow.push_back(waiting);
        Ok(())
    }

    /// Pushes frames of the message `head`, `body` from its byte `sent` on, until it is through or the ring is
    /// full; returns how much of it is in the ring.
    fn push_from(&mut self, head: &[u8], body: &[u8], mut sent: usize) -> Result<usize, Error> {
        let total = head.len() + body.len();
        let frame_max = self.producer.body_bytes_max();
        while sent < total {
            let length = frame_max.min(total - sent);
            let from_head = &head[sent.min(head.len())..(sent + length).min(head.len())];
            let from = sent.saturating_sub(head.len());
            let from_body = &body[from..from + length - from_head.len()];
            let more = if sent + length < total { MORE } else { 0 };
            let continued = if sent > 0 { CONTINUED } else { 0 };
            match self.producer.push(&[from_head, from_body], length, total, more | continued) {
                Ok(()) => sent += length,
                Err(Error::Full) => break,
                Err(other) => return Err(other),
            }
        }
        Ok(sent)
    }

    /// Pushes a message without bytes; returns whether there was room.
    fn push_empty(&mut self) -> Result<bool, Error> {
        match self.producer.push(&[], 0, 0, 0) {
            Ok(()) => Ok(true),
            Err(Error::Full) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Moves what waits into the ring as far as it goes. Returns whether nothing waits any more; while it does,
    /// the consumer was asked for a sign. Ring the consumer's doorbell afterwards.
    pub fn flush(&mut self) -> Result<bool, Error> {
        while let Some(mut waiting) = self.overflow.pop_front() {
            let charge = waiting.charge();
            let done = if waiting.bytes.is_empty() {
                self.push_empty()
            } else {
                self.push_from(&waiting.bytes, &[], waiting.sent).map(|sent| {
                    waiting.sent = sent;
                    sent == waiting.bytes.len()
                })
            };
            if !matches!(done, Ok(true)) {
                self.overflow.push_front(waiting);
                return done;
            }
            self.overflow_bytes -= charge;
        }
        if self.overflow.capacity() > 1024 {
            self.overflow = VecDeque::new();
        }
        Ok(true)
    }

    /// Bytes that wait beside the ring, [`OVERFLOW_ENTRY_BYTES`] for each message included.
    pub fn overflow_bytes(&self) -> usize {
        self.overflow_bytes
    }

    /// Whether everything sent has been read.
    pub fn is_drained(&self) -> bool {
        self.overflow.is_empty() && self.producer.is_drained()
    }

    /// Whether the consumer dropped its end in good order.
    pub fn is_consumer_gone(&self) -> bool {
        self.producer.is_consumer_gone()
    }
}

/// A received message in a buffer of its own, 16-aligned unless it is empty. Give it back with [`Receiver::recycle`] where that is
/// easy, and the next one costs no allocation.
pub struct Message(AlignedVec);

impl Message {
    /// The buffer.
    pub fn into_inner(self) -> AlignedVec {
        self.0
    }
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Message({} bytes)", self.0.len())
    }
}

/// Receives the messages that a [`Sender`] sent.
pub struct Receiver {
    consumer: Consumer,
    assembly: Assembly,
    copied: Copied,
    pool: Vec<AlignedVec>,
}

/// As [`Assembly`], for [`Receiver::recv_copy`].
#[derive(Default)]
struct Copied {
    bytes: Vec<u8>,
    total: usize,
}

impl Receiver {
    /// Maps the consumer's end of a ring.
    pub fn map(fd: OwnedFd) -> Result<Self, Error> {
        Ok(Self::new(Consumer::map(fd)?))
    }

    /// Receives from `consumer`.
    pub fn new(consumer: Consumer) -> Self {
        Self { consumer, assembly: Assembly::default(), copied: Copied::default(), pool: Vec::new() }
    }

    /// The fast path: hands the next message to `with`, 16-aligned, and returns what it returns. A message of one
    /// frame is borrowed where it lies in the ring, so `with` should be brief: the producer's room is held
    /// meanwhile. `None` when no whole message is there; a message counts as received even if `with` panics.
    #[inline]
    pub fn recv_with<R>(&mut self, with: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Error> {
        loop {
            let Some(frame) = self.consumer.pop()? else { return Ok(None) };
            if frame.flags() == 0 && !self.assembly.is_open() {
                return Ok(Some(with(&frame)));
            }
            if self.assembly.take(frame)? {
                let bytes = self.assembly.close();
                let done = with(&bytes);
                self.assembly.reuse(bytes);
                return Ok(Some(done));
            }
        }
    }

    /// The next message in a buffer of its own; `None` when no whole message is there.
    pub fn recv(&mut self) -> Result<Option<Message>, Error> {
        loop {
            let Some(frame) = self.consumer.pop()? else { return Ok(None) };
            if frame.flags() == 0 && !self.assembly.is_open() {
                let mut buffer = self.pool.pop().unwrap_or_default();
                buffer.extend_from_slice(&frame);
                return Ok(Some(Message(buffer)));
            }
            if self.assembly.take(frame)? {
                return Ok(Some(Message(self.assembly.close())));
            }
        }
    }

    /// Bytes in the ring that were published and not read, headers included: what a reader may make room for.
    pub fn ready_bytes(&self) -> usize {
        self.consumer.ready_bytes()
    }

    /// Appends the next message to `out` and returns how long it is; `None` when no whole message is there. For a
    /// receiver that does not trust the sender: nothing is borrowed from the ring, and bytes that change while they
    /// are read are garbled, no more. A ring is read either in this way or in the others.
    pub fn recv_copy(&mut self, out: &mut Vec<u8>) -> Result<Option<usize>, Error> {
        loop {
            let Some(frame) = self.consumer.pop()? else { return Ok(None) };
            if frame.flags() == 0 && self.copied.total == 0 {
                let bytes = frame.body_bytes();
                frame.copy_to(out);
                return Ok(Some(bytes));
            }
            let (flags, total, bytes) = (frame.flags(), frame.message_bytes(), frame.body_bytes());
            let have = self.copied.bytes.len();
            match follows(flags, total, bytes, have, self.copied.total) {
                Ok(total) => self.copied.total = total,
                Err(detail) => {
                    // It stays in the ring, and with it the error.
                    std::mem::forget(frame);
                    return Err(Error::Corrupt { detail });
                }
            }
            frame.copy_to(&mut self.copied.bytes);
            if flags & MORE == 0 {
                let whole = std::mem::take(&mut self.copied);
                out.extend_from_slice(&whole.bytes);
                return Ok(Some(whole.bytes.len()));
            }
        }
    }

    /// Takes a message's buffer back for a later one.
    pub fn recycle(&mut self, message: Message) {
        let mut buffer = message.into_inner();
        if self.pool.len() < POOL_BUFFERS_MAX && buffer.capacity() <= POOL_BUFFER_BYTES_MAX {
            buffer.clear();
            self.pool.push(buffer);
        }
    }

    /// Whether there is no frame to read. What was read of a message that is not whole yet does not count.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.consumer.is_empty()
    }

    /// A handle that any thread can ask whether there is something to read.
    pub fn watch(&self) -> Watch {
        self.consumer.watch()
    }

    /// Whether the sender waits for room and should be told now; see [`Consumer::take_space_wanted`].
    pub fn take_space_wanted(&mut self) -> bool {
        self.consumer.take_space_wanted()
    }

    /// Whether the producer dropped its end in good order; what it left can still be read.
    pub fn is_producer_gone(&self) -> bool {
        self.consumer.is_producer_gone()
    }
}

/// Whether a frame of `bytes` fits behind the `have` bytes of a message of `open` (0 where none is open) that have come;
/// returns how long the message is.
fn follows(
    flags: u16,
    announced: u64,
    bytes: usize,
    have: usize,
    open: usize,
) -> Result<usize, &'static str> {
    let is_open = open != 0;
    if (flags & CONTINUED != 0) != is_open {
        return Err("a message's frame does not follow the one before it");
    }
    if is_open && announced != open as u64 {
        return Err("a message's frames do not agree on its length");
    }
    if announced == 0 || announced > MESSAGE_BYTES_MAX as u64 {
        return Err("a message is longer than any may be");
    }
    let total = announced as usize;
    let length = have + bytes;
    if length > total || (length < total) != (flags & MORE != 0) || bytes == 0 {
        return Err("a message's frames do not add up to its length");
    }
    Ok(total)
}

/// A split message while its frames come in.
#[derive(Default)]
struct Assembly {
    bytes: AlignedVec,
    /// The length that its first frame announced; 0 while no message is open.
    total: usize,
}

impl Assembly {
    fn is_open(&self) -> bool {
        self.total != 0
    }

    /// Adds a frame; returns whether the message is whole.
    fn take(&mut self, frame: Frame<'_>) -> Result<bool, Error> {
        let flags = frame.flags();
        match follows(flags, frame.message_bytes(), frame.len(), self.bytes.len(), self.total) {
            Ok(total) => {
                if !self.is_open() {
                    self.bytes.reserve(total);
                }
                self.total = total;
            }
            Err(detail) => {
                // It stays in the ring, and with it the error.
                std::mem::forget(frame);
                return Err(Error::Corrupt { detail });
            }
        }
        self.bytes.extend_from_slice(&frame);
        Ok(flags & MORE == 0)
    }

    /// Hands the whole message out; the next one starts afresh.
    fn close(&mut self) -> AlignedVec {
        self.total = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Takes a buffer back for the next split message.
    fn reuse(&mut self, mut bytes: AlignedVec) {
        if bytes.capacity() <= ASSEMBLY_BYTES_KEPT {
            bytes.clear();
            self.bytes = bytes;
        }
    }
}

#[cfg(test)]
mod tests;
