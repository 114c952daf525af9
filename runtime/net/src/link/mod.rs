//! Unix-domain sockets between a node's agent and its hosts: framed messages, with descriptors beside them.
//!
//! A link carries control messages and brokers the descriptors of memory regions, rings and doorbells. Hosts use
//! the blocking half ([`split`]), agents the asynchronous one ([`split_async`]); the bytes are the same.
//!
//! # Frame
//! | bytes | what |
//! |---|---|
//! | 4 | length of the body, little-endian; at most [`FRAME_BODY_BYTES_MAX`] |
//! | 1 | descriptors with this frame; at most [`DESCRIPTORS_MAX`], and only with a message's first frame |
//! | 1 | flags: bit 0 says that the message goes on in the next frame |
//! | 2 | reserved, zero |
//!
//! A longer message is split, and joined again up to [`MESSAGE_BYTES_MAX`]. Descriptors travel with the first byte
//! of their frame. They arrive close-on-exec.
//!
//! The agent reads what hosts write, so everything is checked at this boundary (invariant I8): every way in which a
//! stream can be wrong is an [`Error`] of its own, after which the link is of no use; descriptors that were received
//! and not handed out are closed with it. Bodies are bytes in memory of the receiver's own, 16-aligned; what they
//! mean is for [`mobula_proto::wire::decode`] to check.

mod asynchronous;
mod blocking;
mod frame;
mod lane;

use std::os::fd::OwnedFd;

use mobula_proto::wire::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use rkyv::util::AlignedVec;

pub use asynchronous::{AsyncReceiver, AsyncSender, split_async};
pub use blocking::{Receiver, Sender, split};
pub use lane::{Giver, Taker, lane};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;
/// Longest body of one frame.
pub const FRAME_BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;
/// Most descriptors with one message.
pub const DESCRIPTORS_MAX: usize = 8;

/// Why a link could not send or receive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side closed its end (or its process died): nothing more can be sent.
    #[error("the other side of the link closed it")]
    Closed,
    /// The stream ended inside a message.
    #[error("the link ended inside a message")]
    Truncated,
    /// A frame's header breaks a rule.
    #[error("malformed frame on the link: {detail}")]
    Malformed {
        /// The rule.
        detail: &'static str,
    },
    /// A frame or a message is longer than any may be.
    #[error("{bytes} bytes on the link are over the limit of {limit}")]
    TooLong {
        /// How long it is, as far as known.
        bytes: usize,
        /// The limit that it breaks.
        limit: usize,
    },
    /// More descriptors than a message can carry were to be sent.
    #[error("{count} descriptors with one message are over the limit of {DESCRIPTORS_MAX}")]
    TooManyDescriptors {
        /// How many there are.
        count: usize,
    },
    /// Descriptors came that no frame announced. They were closed.
    #[error("the link brought descriptors that no frame announced")]
    UnexpectedDescriptors,
    /// A frame announced descriptors that did not come with it.
    #[error("a frame announced {announced} descriptors, but {arrived} came with it")]
    MissingDescriptors {
        /// The number in the header.
        announced: usize,
        /// How many there are.
        arrived: usize,
    },
    /// The kernel dropped descriptors on arrival: there were too many, or this process has too many open.
    #[error(
        "descriptors were lost on arrival: too many at once, or this process's limit on open files is reached"
    )]
    DescriptorsLost,
    /// A send was given up in the middle of a message, so that nothing sensible can follow on this link.
    #[error("an earlier send on the link was given up half way")]
    Interrupted,
    /// The system refused.
    #[error("{call} on the link: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
}

/// What came over a link: a body, 16-aligned unless it is empty, and the descriptors that came with it.
#[derive(Debug)]
pub struct Message {
    /// The body's bytes.
    pub body: AlignedVec,
    /// The descriptors, in the order in which they were sent; at most [`DESCRIPTORS_MAX`].
    pub descriptors: Vec<OwnedFd>,
    /// It had some, and the kernel dropped them on arrival (see [`Error::DescriptorsLost`]). The link goes on.
    pub lost: bool,
}

impl Message {
    /// Of what cannot do without its descriptors.
    ///
    /// # Errors
    /// Where they were lost.
    pub fn whole(self) -> Result<Self, Error> {
        if self.lost { Err(Error::DescriptorsLost) } else { Ok(self) }
    }
}

/// What a sender may be asked to send.
fn check_outgoing(body: usize, descriptors: usize) -> Result<(), Error> {
    if body > MESSAGE_BYTES_MAX {
        return Err(Error::TooLong { bytes: body, limit: MESSAGE_BYTES_MAX });
    }
    if descriptors > DESCRIPTORS_MAX {
        return Err(Error::TooManyDescriptors { count: descriptors });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
