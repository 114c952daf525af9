//! What can go wrong with a ring.

use super::{CAPACITY_BYTES_MAX, CAPACITY_BYTES_MIN};

/// Why a ring or a doorbell could not be made, mapped or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No room now. The payload is still the caller's; try again when the consumer has drained.
    #[error("the ring is full")]
    Full,
    /// Longer than a frame or a message may be.
    #[error("{bytes} bytes are over the ring's limit of {limit}")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// The most there can be.
        limit: usize,
    },
    /// What lies in the shared memory does not hold together: the peer is broken. Drop the ring.
    #[error("the ring is corrupt: {detail}")]
    Corrupt {
        /// What was found.
        detail: &'static str,
    },
    /// A capacity that is no power of two between [`CAPACITY_BYTES_MIN`] and [`CAPACITY_BYTES_MAX`].
    #[error(
        "a ring of {bytes} bytes: must be a power of two from {CAPACITY_BYTES_MIN} to {CAPACITY_BYTES_MAX}"
    )]
    Capacity {
        /// The capacity asked for.
        bytes: u32,
    },
    /// The descriptor is not that of a ring or doorbell that this build can use.
    #[error("the descriptor is not usable: {detail}")]
    Foreign {
        /// What is wrong with it.
        detail: &'static str,
    },
    /// This end of the ring was mapped before.
    #[error("the ring's {end} was mapped before: each ring has one producer and one consumer in its life")]
    Claimed {
        /// `producer` or `consumer`.
        end: &'static str,
    },
    /// The system refused.
    #[error("{call}: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
}

impl Error {
    pub(super) fn system(call: &'static str, errno: rustix::io::Errno) -> Self {
        Self::System { call, source: errno.into() }
    }

    /// Whether this is [`Error::Full`]: trying again later can help. No other error of a ring passes by itself.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full)
    }
}
