//! Frames to and from bytes, and the two system calls that move them.

use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use mobula_proto::wire::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use rkyv::util::AlignedVec;
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    },
};

use super::{DESCRIPTORS_MAX, Error, FRAME_BODY_BYTES_MAX, HEADER_BYTES, Message};

/// Flag: the message goes on in the next frame.
const MORE: u8 = 1;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    body: usize,
    descriptors: usize,
    more: bool,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        // Both fit: the senders check them against their limits.
        bytes[..4].copy_from_slice(&(self.body as u32).to_le_bytes());
        bytes[4] = self.descriptors as u8;
        bytes[5] = if self.more { MORE } else { 0 };
        bytes
    }

    fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, Error> {
        let [a, b, c, d, descriptors, flags, reserved_low, reserved_high] = bytes;
        let body = u32::from_le_bytes([a, b, c, d]) as usize;
        let more = flags & MORE != 0;
        if flags & !MORE != 0 {
            return Err(Error::Malformed { detail: "a flag that this version does not know" });
        }
        if (reserved_low, reserved_high) != (0, 0) {
            return Err(Error::Malformed { detail: "the reserved bytes are not zero" });
        }
        if body > FRAME_BODY_BYTES_MAX {
            return Err(Error::TooLong { bytes: body, limit: FRAME_BODY_BYTES_MAX });
        }
        if usize::from(descriptors) > DESCRIPTORS_MAX {
            return Err(Error::Malformed { detail: "more descriptors than a message can carry" });
        }
        if more && body == 0 {
            // A stream of these would be a message that never ends and never reaches its limit.
            return Err(Error::Malformed { detail: "an empty frame of a message that goes on" });
        }
        Ok(Self { body, descriptors: usize::from(descriptors), more })
    }
}

/// A message on its way out: what of it the kernel has taken.
pub(super) struct Outgoing<'a> {
    body: &'a [u8],
    descriptors: &'a [BorrowedFd<'a>],
    /// Start of the frame being sent.
    frame_at: usize,
    /// Bytes of that frame, header included, that are sent.
    frame_sent: usize,
    done: bool,
}

impl<'a> Outgoing<'a> {
    /// A message whose size and number of descriptors were checked.
    pub(super) fn new(body: &'a [u8], descriptors: &'a [BorrowedFd<'a>]) -> Self {
        Self { body, descriptors, frame_at: 0, frame_sent: 0, done: false }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether nothing of it was sent, so that giving it up would do no harm.
    pub(super) fn is_untouched(&self) -> bool {
        self.frame_at == 0 && self.frame_sent == 0
    }

    /// One `sendmsg` of what is left of the current frame.
    pub(super) fn step(&mut self, socket: impl AsFd) -> Result<(), Errno> {
        let length = (self.body.len() - self.frame_at).min(FRAME_BODY_BYTES_MAX);
        let frame = &self.body[self.frame_at..self.frame_at + length];
        let first = self.frame_at == 0;
        let header = Header {
            body: length,
            descriptors: if first { self.descriptors.len() } else { 0 },
            more: self.frame_at + length < self.body.len(),
        }
        .encode();
        let header_left = &header[self.frame_sent.min(HEADER_BYTES)..];
        let body_left = &frame[self.frame_sent.saturating_sub(HEADER_BYTES)..];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        // Descriptors go with the first byte, whatever happens to the others.
        if first && self.frame_sent == 0 && !self.descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(self.descriptors));
        }
        let slices = [IoSlice::new(header_left), IoSlice::new(body_left)];
        let sent = rustix::net::sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL)?;
        self.frame_sent += sent;
        if self.frame_sent == HEADER_BYTES + length {
            self.frame_at += length;
            self.frame_sent = 0;
            self.done = self.frame_at == self.body.len();
        }
        Ok(())
    }
}

/// A stream on its way in: bytes and descriptors that were received and not yet handed out.
///
/// The kernel ends a read after the bytes that descriptors came with. So those of one read belong to one frame, the newest
/// to the last frame in the buffer, and those that are left when the buffer has run dry belong to none.
pub(super) struct Incoming {
    buffer: Box<[u8]>,
    /// What is in the buffer and not handed out: `start..end`.
    start: usize,
    end: usize,
    arrived: VecDeque<Arrived>,
    /// A split message while its frames come in.
    open: Option<Message>,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
            start: 0,
            end: 0,
            arrived: VecDeque::new(),
            open: None,
        }
    }

    /// One `recvmsg`; returns how many bytes came, 0 at the end of the stream. Call it only when [`next`] said that
    /// there is no whole message: then there is room.
    ///
    /// [`next`]: Self::next
    pub(super) fn step(&mut self, socket: impl AsFd) -> Result<usize, Stop> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut self.buffer[self.end..])];
        let got = match rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => got,
            // The other side closed with our messages unread. All it had sent was handed out before this.
            Err(Errno::CONNRESET) => return Ok(0),
            Err(errno) => return Err(Stop::System(errno)),
        };
        let rights = |message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        };
        let descriptors: Vec<OwnedFd> = control.drain().filter_map(rights).flatten().collect();
        let lost = got.flags.contains(ReturnFlags::CTRUNC);
        if lost || !descriptors.is_empty() {
            self.arrived.push_back(Arrived { descriptors, lost });
        }
        // One frame's may wait for the rest of it, and the next one's come along with that rest; no more.
        if self.arrived.len() > 2 {
            return Err(Stop::Broken(Error::UnexpectedDescriptors));
        }
        self.end += got.bytes;
        Ok(got.bytes)
    }

    /// The next whole message among what was received.
    pub(super) fn next(&mut self) -> Result<Option<Message>, Error> {
        loop {
            let ready = &self.buffer[self.start..self.end];
            let Some((header, rest)) = ready.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
            let header = Header::decode(*header)?;
            if self.open.is_some() && header.descriptors > 0 {
                return Err(Error::Malformed { detail: "descriptors in the middle of a message" });
            }
            let Some(body) = rest.get(..header.body) else { return Ok(None) };
            let arrived = match header.descriptors {
                0 => Arrived::default(),
                announced => {
                    let arrived = self.arrived.pop_front().unwrap_or_default();
                    let count = arrived.descriptors.len();
                    if !arrived.lost && count < announced {
                        return Err(Error::MissingDescriptors { announced, arrived: count });
                    }
                    if !arrived.lost && count > announced {
                        return Err(Error::UnexpectedDescriptors);
                    }
                    arrived
                }
            };
            let mut message = self.open.take().unwrap_or_else(|| Message {
                body: AlignedVec::new(),
                // Of some that were lost nobody knows which these are.
                descriptors: if arrived.lost { Vec::new() } else { arrived.descriptors },
                lost: arrived.lost,
            });
            let length = message.body.len() + body.len();
            if length > MESSAGE_BYTES_MAX {
                return Err(Error::TooLong { bytes: length, limit: MESSAGE_BYTES_MAX });
            }
            message.body.extend_from_slice(body);
            self.start += HEADER_BYTES + header.body;
            if self.start == self.end && !self.arrived.is_empty() {
                return Err(Error::UnexpectedDescriptors);
            }
            if !header.more {
                return Ok(Some(message));
            }
            self.open = Some(message);
        }
    }

    /// Whether the stream may end here.
    pub(super) fn end(&self) -> Result<(), Error> {
        if self.start != self.end || self.open.is_some() {
            return Err(Error::Truncated);
        }
        if !self.arrived.is_empty() {
            return Err(Error::UnexpectedDescriptors);
        }
        Ok(())
    }
}

/// The descriptors that one read brought.
#[derive(Default)]
struct Arrived {
    descriptors: Vec<OwnedFd>,
    /// The kernel dropped some, or all.
    lost: bool,
}

/// Why a receiving step brought nothing.
pub(super) enum Stop {
    /// The call failed; interrupted and would-block are for the caller to handle.
    System(Errno),
    /// What came is not acceptable.
    Broken(Error),
}

/// What a failed send means.
pub(super) fn send_error(errno: Errno) -> Error {
    match errno {
        Errno::PIPE | Errno::CONNRESET => Error::Closed,
        other => Error::System { call: "sendmsg", source: other.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_trip() {
        for header in [
            Header { body: 0, descriptors: 0, more: false },
            Header { body: FRAME_BODY_BYTES_MAX, descriptors: DESCRIPTORS_MAX, more: true },
        ] {
            assert_eq!(Header::decode(header.encode()).unwrap(), header);
        }
    }
}
