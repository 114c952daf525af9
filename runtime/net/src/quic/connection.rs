//! A connection to an authenticated peer.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{RecvStream, SendStream};
use tokio::sync::Mutex;

use super::{
    Closed, Malformed, REASON_BYTES_MAX, Receiver, Sender,
    error::{Error, code},
};
use crate::identity::PeerName;

/// What a stream is for; its first byte. Where packets are short, control goes first and bulk last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Small messages of the control plane.
    Control = 1,
    /// Frames between hosts, relayed by their agents.
    Relay = 2,
    /// Large ranges of objects.
    Bulk = 3,
}

impl StreamKind {
    fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            1 => Ok(Self::Control),
            2 => Ok(Self::Relay),
            3 => Ok(Self::Bulk),
            other => Err(Malformed::StreamKind(other)),
        }
    }

    fn priority(self) -> i32 {
        match self {
            Self::Control => 2,
            Self::Relay => 1,
            Self::Bulk => 0,
        }
    }
}

/// A connection to a member of this cluster. Cheap to clone; it closes when the last clone and stream are gone.
#[derive(Clone)]
pub struct Connection {
    inner: quinn::Connection,
    peer: Arc<PeerName>,
    /// A stream whose first byte has not been read yet: [`Connection::accept_stream`] may be cancelled there.
    unnamed: Arc<Mutex<Option<(SendStream, RecvStream)>>>,
}

impl Connection {
    pub(super) fn new(inner: quinn::Connection, peer: PeerName) -> Self {
        Self { inner, peer: Arc::new(peer), unnamed: Arc::default() }
    }

    /// Whether both are one connection.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.unnamed, &other.unnamed)
    }

    /// Who the peer is, by its certificate.
    pub fn peer(&self) -> &PeerName {
        &self.peer
    }

    /// Where the peer is now.
    pub fn remote_address(&self) -> SocketAddr {
        let addr = self.inner.remote_address();
        SocketAddr::new(addr.ip().to_canonical(), addr.port())
    }

    /// The smoothed round trip.
    pub fn round_trip(&self) -> Duration {
        self.inner.rtt()
    }

    /// quinn's counters, for metrics and diagnosis.
    pub fn stats(&self) -> quinn::ConnectionStats {
        self.inner.stats()
    }

    /// Opens a stream; the peer learns of it at once. Waits while the peer allows no more streams.
    pub async fn open(&self, kind: StreamKind) -> Result<(Sender, Receiver), Error> {
        let (mut sender, receiver) = self.open_quietly(kind).await?;
        sender.flush().await?;
        Ok((sender, receiver))
    }

    /// As [`Connection::open`], but the peer learns of it with the first message.
    pub(crate) async fn open_quietly(&self, kind: StreamKind) -> Result<(Sender, Receiver), Error> {
        let (send, recv) = self.inner.open_bi().await?;
        // An error means that the stream is over; the next write says so.
        let _over = send.set_priority(kind.priority());
        let mut sender = Sender::new(send);
        sender.gather_raw(&[kind as u8]);
        Ok((sender, Receiver::new(recv)))
    }

    #[cfg(test)]
    pub(crate) async fn open_raw(&self) -> (SendStream, RecvStream) {
        self.inner.open_bi().await.unwrap()
    }

    /// The next stream that the peer opens. Cancel-safe. A stream of unknown kind is turned away and is an error;
    /// the connection goes on.
    pub async fn accept_stream(&self) -> Result<(StreamKind, Sender, Receiver), Error> {
        let mut unnamed = self.unnamed.lock().await;
        if unnamed.is_none() {
            *unnamed = Some(self.inner.accept_bi().await?);
        }
        let first = match unnamed.as_mut() {
            Some((_, recv)) => recv.read_chunk(1, true).await,
            None => return Err(Closed::Here.into()),
        };
        let Some((mut send, mut recv)) = unnamed.take() else { return Err(Closed::Here.into()) };
        let kind = match first? {
            Some(chunk) => StreamKind::from_byte(chunk.bytes.first().copied().unwrap_or(0)),
            None => Err(Malformed::Truncated),
        };
        match kind {
            Ok(kind) => {
                // As in `open_quietly`.
                let _over = send.set_priority(kind.priority());
                Ok((kind, Sender::new(send), Receiver::new(recv)))
            }
            Err(malformed) => {
                let _over = send.reset(code::MALFORMED);
                let _over = recv.stop(code::MALFORMED);
                Err(malformed.into())
            }
        }
    }

    /// Closes the connection and everything on it; the peer reads `reason`, cut to [`REASON_BYTES_MAX`].
    pub fn close(&self, reason: &str) {
        let bytes = reason.as_bytes();
        self.inner.close(code::DONE, &bytes[..bytes.len().min(REASON_BYTES_MAX)]);
    }

    /// Waits for the connection's end, and says how it came.
    pub async fn closed(&self) -> Closed {
        self.inner.closed().await.into()
    }

    /// How the connection ended, if it has.
    pub fn close_reason(&self) -> Option<Closed> {
        self.inner.close_reason().map(Closed::from)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({} at {})", self.peer, self.remote_address())
    }
}
