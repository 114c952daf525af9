//! What can go wrong on the network, said so that its reader knows what to do.

use std::{net::SocketAddr, time::Duration};

use mobula_proto::{FailureKind, wire};
use quinn::{ConnectionError, ReadError, WriteError};

use crate::{
    code as codes,
    identity::{self, Role},
};

/// Application close and reset codes.
pub(super) mod code {
    use quinn::VarInt;

    /// An orderly end.
    pub(crate) const DONE: VarInt = VarInt::from_u32(0);
    /// A member's connection without a certificate.
    pub(crate) const UNAUTHENTICATED: VarInt = VarInt::from_u32(1);
    /// Bytes that break the protocol.
    pub(crate) const MALFORMED: VarInt = VarInt::from_u32(2);
    /// Too many of these at once.
    pub(crate) const BUSY: VarInt = VarInt::from_u32(3);
    /// The two builds have no protocol in common.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(4);
}

/// How a frame breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Truncated,
    /// A frame longer than any may be.
    #[error("a frame of {bytes} bytes is over the limit")]
    FrameTooLong {
        /// Its length without header.
        bytes: usize,
    },
    /// A message longer than this stream takes.
    #[error("a message is over the limit of {limit} bytes")]
    MessageTooLong {
        /// The limit.
        limit: usize,
    },
    /// Bits that must be zero in this version.
    #[error("a frame header has reserved bits set: {header:#010x}")]
    ReservedBits {
        /// The header.
        header: u32,
    },
    /// A frame that carries nothing and says that more follows.
    #[error("an empty frame says that more follows")]
    EmptyContinuation,
    /// The first byte of a stream is no [`super::StreamKind`].
    #[error("a stream of unknown kind {0}")]
    StreamKind(u8),
    /// A bulk reply whose header does not hold together.
    #[error("a bulk reply with a bad header")]
    BulkHeader,
}

/// How a connection ended. *Ended* and *unreachable* are different news: after the first the peer is known to have
/// let go; after the second it may live on behind a broken network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// This side closed it.
    #[error("closed on this side")]
    Here,
    /// The peer closed it and said why.
    #[error("closed by the peer: {reason}")]
    ByPeer {
        /// What it said, at most [`super::REASON_BYTES_MAX`] bytes.
        reason: String,
    },
    /// The peer's process is another one now.
    #[error("the peer restarted")]
    Restarted,
    /// Nothing was heard for the idle timeout.
    #[error("the peer is unreachable: nothing heard within the idle timeout")]
    Unreachable,
    /// The peer, or the network, broke QUIC's or TLS's rules.
    #[error("the connection broke: {detail}")]
    Broken {
        /// What happened.
        detail: String,
    },
}

impl Closed {
    /// Whether the peer may still be alive behind a broken network.
    pub fn peer_may_live(&self) -> bool {
        matches!(self, Self::Unreachable | Self::Broken { .. })
    }
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::LocallyClosed => Self::Here,
            ConnectionError::ApplicationClosed(close) => {
                let text = &close.reason[..close.reason.len().min(super::REASON_BYTES_MAX)];
                Self::ByPeer { reason: String::from_utf8_lossy(text).into_owned() }
            }
            ConnectionError::Reset => Self::Restarted,
            ConnectionError::TimedOut => Self::Unreachable,
            other => Self::Broken { detail: other.to_string() },
        }
    }
}

/// Why something on the network failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port could not be opened.
    #[error("cannot open UDP port {addr}: {source}")]
    Bind {
        /// The address wanted.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A setting that cannot work.
    #[error("{knob}: {detail}")]
    Option {
        /// The field of [`super::Options`].
        knob: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// Nobody answered.
    #[error(
        "no answer from {addr} within {after:?}: check the address, that the node there runs, and that UDP port {} is open between the two",
        addr.port()
    )]
    Unreachable {
        /// Whom we dialled.
        addr: SocketAddr,
        /// For how long.
        after: Duration,
    },
    /// The other side belongs to another cluster.
    #[error(
        "the node at {addr} belongs to cluster {theirs}, this one to {ours}: join again with a token of that cluster"
    )]
    OtherCluster {
        /// Whom we dialled.
        addr: SocketAddr,
        /// Its cluster.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// The other side's certificate is not good.
    #[error("the node at {addr} is not to be trusted: {detail}")]
    Untrusted {
        /// Whom we dialled.
        addr: SocketAddr,
        /// What is wrong with its certificate.
        detail: String,
    },
    /// The other side plays another part than expected.
    #[error("the node at {addr} is {found}, not {expected}: check the address")]
    WrongRole {
        /// Whom we dialled.
        addr: SocketAddr,
        /// Whom we wanted.
        expected: Role,
        /// Whom we found.
        found: Role,
    },
    /// The other side does not accept us.
    #[error("the node at {addr} refused this one: {detail}")]
    Refused {
        /// Whom we dialled.
        addr: SocketAddr,
        /// What it said.
        detail: String,
    },
    /// No protocol in common.
    #[error("the node at {addr} speaks another protocol ({detail}): upgrade the older of the two")]
    Protocol {
        /// Whom we dialled.
        addr: SocketAddr,
        /// What it speaks.
        detail: String,
    },
    /// It offers no service under the name that was asked for.
    #[error(
        "what listens at {addr} does not offer what was asked for: it may be a node rather than a head (a head's UDP port is 7420 unless set; `mobula status` on its machine says), or another version of Mobula"
    )]
    NotOffered {
        /// Whom we dialled.
        addr: SocketAddr,
    },
    /// The head did not give a certificate.
    #[error("the head at {addr} did not let this {} join: {reason}", role.word())]
    JoinRefused {
        /// The head.
        addr: SocketAddr,
        /// As what this process asked to join.
        role: Role,
        /// What it said.
        reason: String,
    },
    /// The join token is for another cluster than the head's.
    #[error(
        "the head at {addr} belongs to another cluster than this join token: ask its operator for a token"
    )]
    ForeignToken {
        /// The head.
        addr: SocketAddr,
    },
    /// A wait ended without an answer.
    #[error("{what} took longer than {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The connection is gone.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The peer stopped reading or sending on this stream.
    #[error("the peer gave up this stream (code {code})")]
    StreamReset {
        /// Its code.
        code: u64,
    },
    /// This side has already ended the stream.
    #[error("this stream is already finished")]
    StreamFinished,
    /// The peer breaks the protocol.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// A message could not be encoded or decoded.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// A message that is too long to send.
    #[error("a message of {bytes} bytes is over the limit of {}", wire::MESSAGE_BYTES_MAX)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// An identity is not good.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// TLS could not be set up.
    #[error("TLS: {0}")]
    Tls(String),
}

impl Error {
    /// The code under which it is documented.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bind { .. } => codes::PORT,
            Self::Option { .. } => codes::SETTING,
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Closed(_) | Self::StreamReset { .. } => {
                FailureKind::Unreachable.code()
            }
            Self::OtherCluster { .. }
            | Self::Untrusted { .. }
            | Self::WrongRole { .. }
            | Self::Refused { .. }
            | Self::Tls(_) => codes::PEER,
            Self::Protocol { .. } | Self::NotOffered { .. } | Self::Malformed(_) | Self::Wire(_) => {
                codes::PROTOCOL
            }
            Self::JoinRefused { .. } | Self::ForeignToken { .. } => codes::JOIN,
            Self::TooLong { .. } => FailureKind::Limit.code(),
            Self::StreamFinished => FailureKind::Internal.code(),
            Self::Identity(error) => error.code(),
        }
    }

    /// Whether trying again later, unchanged, can help.
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Closed(_) | Self::StreamReset { .. }
        )
    }
}

impl From<ConnectionError> for Error {
    fn from(error: ConnectionError) -> Self {
        Self::Closed(error.into())
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::StreamReset { code: code.into_inner() },
            WriteError::ConnectionLost(error) => error.into(),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::StreamFinished,
        }
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::StreamReset { code: code.into_inner() },
            ReadError::ConnectionLost(error) => error.into(),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::StreamFinished
            }
        }
    }
}
