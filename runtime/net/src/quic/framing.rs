//! Whole messages on a stream.
//!
//! A frame is a little-endian `u32` header and its bytes. Bits 0 to 15 of the header are the length, bit 31 says
//! that the message goes on in the next frame, the others are zero. A frame, header included, is at most
//! [`FRAME_BYTES_MAX`]; a message at most [`MESSAGE_BYTES_MAX`]. Only what has arrived takes memory.

use std::slice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mobula_proto::wire::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use quinn::{RecvStream, SendStream};
use rkyv::util::AlignedVec;

use super::{
    Malformed,
    error::{Error, code},
};

/// Small messages gather up to this many bytes before they are written without being asked.
pub const COALESCE_BYTES_MAX: usize = FRAME_BYTES_MAX;
const HEADER_BYTES: usize = 4;
const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;
const LENGTH_MASK: u32 = 0xffff;
const MORE: u32 = 1 << 31;

/// Splits a frame header into length and whether more follows.
fn parse_header(header: u32) -> Result<(usize, bool), Malformed> {
    if header & !(LENGTH_MASK | MORE) != 0 {
        return Err(Malformed::ReservedBits { header });
    }
    let bytes = (header & LENGTH_MASK) as usize;
    let more = header & MORE != 0;
    match bytes {
        0 if more => Err(Malformed::EmptyContinuation),
        _ if bytes > BODY_BYTES_MAX => Err(Malformed::FrameTooLong { bytes }),
        _ => Ok((bytes, more)),
    }
}

/// Appends the frames of a message.
fn frame(body: &[u8], out: &mut BytesMut) {
    out.reserve(body.len() + HEADER_BYTES * (body.len() / BODY_BYTES_MAX + 1));
    let mut rest = body;
    loop {
        let (now, later) = rest.split_at(rest.len().min(BODY_BYTES_MAX));
        let more = if later.is_empty() { 0 } else { MORE };
        // At most BODY_BYTES_MAX, which fits 16 bits.
        out.put_u32_le(now.len() as u32 | more);
        out.put_slice(now);
        if later.is_empty() {
            return;
        }
        rest = later;
    }
}

/// The sending half of a stream. What is buffered is lost when this is dropped before a [`Sender::flush`].
#[derive(Debug)]
pub struct Sender {
    stream: SendStream,
    gathered: BytesMut,
    leaving: Bytes,
}

impl Sender {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self { stream, gathered: BytesMut::new(), leaving: Bytes::new() }
    }

    /// Sends one message, at most [`MESSAGE_BYTES_MAX`]. Waits while the peer's window is full. When this is
    /// cancelled, the message stays buffered and leaves with the next one.
    pub async fn send(&mut self, body: &[u8]) -> Result<(), Error> {
        self.gather(body)?;
        self.flush().await
    }

    /// Sends several messages together: small ones leave in one packet.
    pub async fn send_all<'a>(&mut self, bodies: impl IntoIterator<Item = &'a [u8]>) -> Result<(), Error> {
        for body in bodies {
            self.feed(body).await?;
        }
        self.flush().await
    }

    /// Buffers one message; writes only once [`COALESCE_BYTES_MAX`] have gathered. [`Sender::flush`] must follow.
    pub async fn feed(&mut self, body: &[u8]) -> Result<(), Error> {
        self.gather(body)?;
        if self.is_full() { self.flush().await } else { Ok(()) }
    }

    /// As [`Sender::feed`], but leaves all writing to [`Sender::flush`], which must follow, at the latest once this
    /// [is full](Sender::is_full).
    pub fn buffer(&mut self, body: &[u8]) -> Result<(), Error> {
        self.gather(body)
    }

    /// Whether [`COALESCE_BYTES_MAX`] have gathered.
    pub fn is_full(&self) -> bool {
        self.gathered.len() >= COALESCE_BYTES_MAX
    }

    /// Writes everything buffered. Cancel-safe.
    pub async fn flush(&mut self) -> Result<(), Error> {
        loop {
            while !self.leaving.is_empty() {
                self.stream.write_chunks(slice::from_mut(&mut self.leaving)).await?;
            }
            if self.gathered.is_empty() {
                return Ok(());
            }
            // The next ones gather in memory of their own: in what is left of this one they would keep all of it, and
            // idle links would keep what once was the most.
            self.leaving = std::mem::take(&mut self.gathered).freeze();
        }
    }

    /// Writes everything buffered and ends the stream in order.
    pub async fn finish(&mut self) -> Result<(), Error> {
        self.flush().await?;
        self.stream.finish().map_err(|_| Error::StreamFinished)
    }

    /// Waits until the peer has acknowledged everything after [`Sender::finish`], or has stopped reading.
    pub async fn delivered(&mut self) -> Result<(), Error> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(Error::StreamReset { code: code.into_inner() }),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(error.into()),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(Error::StreamFinished),
        }
    }

    /// Gives the stream up; the peer's receiver fails with [`Error::StreamReset`].
    pub fn abort(&mut self) {
        // An error means that it is already over.
        let _over = self.stream.reset(code::DONE);
    }

    pub(crate) fn gather_raw(&mut self, bytes: &[u8]) {
        self.gathered.put_slice(bytes);
    }

    /// The stream itself, for raw bytes. Everything buffered must have been flushed.
    pub(crate) fn stream(&mut self) -> &mut SendStream {
        &mut self.stream
    }

    fn gather(&mut self, body: &[u8]) -> Result<(), Error> {
        if body.len() > MESSAGE_BYTES_MAX {
            return Err(Error::TooLong { bytes: body.len() });
        }
        frame(body, &mut self.gathered);
        Ok(())
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub struct Receiver {
    stream: RecvStream,
    limit: usize,
    chunk: Bytes,
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    /// What is missing of the current frame, and whether another follows; `None` between frames.
    open: Option<(usize, bool)>,
    /// Whether a message has begun.
    begun: bool,
    message: AlignedVec,
}

impl Receiver {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            limit: MESSAGE_BYTES_MAX,
            chunk: Bytes::new(),
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            open: None,
            begun: false,
            message: AlignedVec::new(),
        }
    }

    /// Refuses messages over `bytes`; never more than [`MESSAGE_BYTES_MAX`].
    pub fn limit(&mut self, bytes: usize) {
        self.limit = bytes.min(MESSAGE_BYTES_MAX);
    }

    /// The next message, 16-byte aligned; `None` at the stream's orderly end. Cancel-safe. After an error the
    /// stream is of no more use.
    pub async fn recv(&mut self) -> Result<Option<AlignedVec>, Error> {
        loop {
            if let Some(message) = self.assemble()? {
                return Ok(Some(message));
            }
            match self.stream.read_chunk(usize::MAX, true).await? {
                Some(chunk) => self.chunk = chunk.bytes,
                None if self.begun || self.header_bytes > 0 => return Err(Malformed::Truncated.into()),
                None => return Ok(None),
            }
        }
    }

    /// Uses up the chunk at hand; returns a message once one is whole.
    fn assemble(&mut self) -> Result<Option<AlignedVec>, Malformed> {
        loop {
            let Some((missing, more)) = self.open else {
                let take = self.chunk.len().min(HEADER_BYTES - self.header_bytes);
                self.chunk.copy_to_slice(&mut self.header[self.header_bytes..self.header_bytes + take]);
                self.header_bytes += take;
                if self.header_bytes < HEADER_BYTES {
                    return Ok(None);
                }
                let (bytes, more) = parse_header(u32::from_le_bytes(self.header))?;
                if self.message.len() + bytes > self.limit {
                    return Err(Malformed::MessageTooLong { limit: self.limit });
                }
                // No more than a frame: the rest of a message has yet to come.
                self.message.reserve(bytes);
                self.header_bytes = 0;
                self.begun = true;
                self.open = Some((bytes, more));
                continue;
            };
            let take = self.chunk.len().min(missing);
            self.message.extend_from_slice(&self.chunk[..take]);
            self.chunk.advance(take);
            if take < missing {
                self.open = Some((missing - take, more));
                return Ok(None);
            }
            self.open = None;
            if !more {
                self.begun = false;
                return Ok(Some(std::mem::replace(&mut self.message, AlignedVec::new())));
            }
        }
    }

    /// Tells the peer to stop sending.
    pub fn stop(&mut self) {
        // An error means that it is already over.
        let _over = self.stream.stop(code::DONE);
    }

    /// The stream itself, for raw bytes. Only before the first message.
    pub(crate) fn stream(&mut self) -> &mut RecvStream {
        &mut self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_strictly() {
        assert_eq!(parse_header(0), Ok((0, false)));
        assert_eq!(parse_header(5 | MORE), Ok((5, true)));
        assert_eq!(parse_header(BODY_BYTES_MAX as u32), Ok((BODY_BYTES_MAX, false)));
        assert_eq!(parse_header(MORE), Err(Malformed::EmptyContinuation));
        assert_eq!(parse_header(0xffff), Err(Malformed::FrameTooLong { bytes: 0xffff }));
        for bit in 16..31 {
            let header = 1 | 1 << bit;
            assert_eq!(parse_header(header), Err(Malformed::ReservedBits { header }));
        }
    }

    #[test]
    fn long_messages_are_split_and_none_of_the_frames_is_too_long() {
        for bytes in [0, 1, BODY_BYTES_MAX - 1, BODY_BYTES_MAX, BODY_BYTES_MAX + 1, 3 * BODY_BYTES_MAX] {
            let body: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
            let mut framed = BytesMut::new();
            frame(&body, &mut framed);
            let (mut joined, mut rest) = (Vec::new(), &framed[..]);
            loop {
                let (length, more) = parse_header(rest.get_u32_le()).unwrap();
                joined.extend_from_slice(&rest[..length]);
                rest.advance(length);
                if !more {
                    break;
                }
            }
            assert!(rest.is_empty());
            assert_eq!(joined, body);
        }
    }
}
