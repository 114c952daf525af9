//! Large ranges, pulled over QUIC straight into the buffer where they are wanted.
//!
//! The reader opens a [`StreamKind::Bulk`] stream, on a connection kept for such streams, sends one message that
//! says what it wants and ends its half. The server answers with 16 bytes, status (1 byte), zeros (7) and length
//! (8, little-endian), and then the range itself, or a text that says why not. There is no staging on either side:
//! the server hands quinn slices of the memory that it serves, and the reader copies each decrypted chunk to its
//! place, in whatever order chunks come.

use std::{future::Future, slice, time::Duration};

use bytes::Bytes;
use quinn::RecvStream;
use rkyv::util::AlignedVec;
use tokio::time::timeout;

use crate::quic::{self, Connection, Malformed, Receiver, Sender, StreamKind};

/// Longest request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Longest text of a refusal, in bytes.
pub const REFUSAL_BYTES_MAX: usize = 4 * 1024;
/// How long either side waits for the other to move at all.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The server hands out its memory in pieces of this many bytes. quinn counts a piece against the send window until
/// all of it is acknowledged, and looks through all pieces for each packet: too large stalls, too small crawls.
const PIECE_BYTES: usize = 256 << 10;
const HEADER_BYTES: usize = 16;
const STATUS_RANGE: u8 = 0;
const STATUS_REFUSED: u8 = 1;

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection or stream failed, or the peer broke the protocol.
    #[error(transparent)]
    Net(#[from] quic::Error),
    /// The server does not have it, or will not give it.
    #[error("refused by the peer: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// The range is not as long as the buffer.
    #[error("the peer has {got} bytes where {want} were wanted")]
    Length {
        /// The buffer's length.
        want: u64,
        /// The range's.
        got: u64,
    },
    /// Nothing moved for [`STALL_TIMEOUT`], though the connection lives.
    #[error("the transfer stood still for {:?} after {bytes} bytes", STALL_TIMEOUT)]
    Stalled {
        /// How far it had come.
        bytes: u64,
    },
}

impl Error {
    /// Whether trying again, at this peer or another, can help.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Net(error) => error.retryable(),
            Self::Stalled { .. } => true,
            Self::Refused { .. } | Self::Length { .. } => false,
        }
    }
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        Self::Net(error.into())
    }
}

impl From<quinn::ReadError> for Error {
    fn from(error: quinn::ReadError) -> Self {
        Self::Net(error.into())
    }
}

impl From<quinn::WriteError> for Error {
    fn from(error: quinn::WriteError) -> Self {
        Self::Net(error.into())
    }
}

/// Fails with [`Error::Stalled`] when one step takes too long.
async fn moving<T, E: Into<Error>>(bytes: u64, step: impl Future<Output = Result<T, E>>) -> Result<T, Error> {
    timeout(STALL_TIMEOUT, step).await.map_err(|_| Error::Stalled { bytes })?.map_err(Into::into)
}

/// Fills `dest` with what `request` (at most [`REQUEST_BYTES_MAX`]) names at the peer; the range must be exactly as
/// long. After an error, or when cancelled, `dest` holds parts of it.
pub async fn pull(connection: &Connection, request: &[u8], dest: &mut [u8]) -> Result<(), Error> {
    if request.len() > REQUEST_BYTES_MAX {
        return Err(quic::Error::TooLong { bytes: request.len() }.into());
    }
    let (mut sender, mut receiver) = moving(0, connection.open_quietly(StreamKind::Bulk)).await?;
    moving(0, async {
        sender.send(request).await?;
        sender.finish().await
    })
    .await?;
    let stream = receiver.stream();
    let (status, length) = read_header(stream).await?;
    match status {
        STATUS_RANGE if length == dest.len() as u64 => fill(stream, dest).await,
        STATUS_RANGE => {
            receiver.stop();
            Err(Error::Length { want: dest.len() as u64, got: length })
        }
        STATUS_REFUSED if length <= REFUSAL_BYTES_MAX as u64 => {
            // Bounded just above.
            let mut reason = vec![0; length as usize];
            fill(stream, &mut reason).await?;
            Err(Error::Refused { reason: String::from_utf8_lossy(&reason).into_owned() })
        }
        _ => {
            receiver.stop();
            Err(Malformed::BulkHeader.into())
        }
    }
}

async fn read_header(stream: &mut RecvStream) -> Result<(u8, u64), Error> {
    let mut header = [0; HEADER_BYTES];
    moving(0, async {
        match stream.read_exact(&mut header).await {
            Ok(()) => Ok(()),
            Err(quinn::ReadExactError::FinishedEarly(_)) => Err(Error::from(Malformed::Truncated)),
            Err(quinn::ReadExactError::ReadError(error)) => Err(error.into()),
        }
    })
    .await?;
    let (head, length) = header.split_at(8);
    if head[1..] != [0; 7] {
        return Err(Malformed::BulkHeader.into());
    }
    let length = length.try_into().map(u64::from_le_bytes).map_err(|_| Malformed::BulkHeader)?;
    Ok((head[0], length))
}

/// Copies every chunk to its place until the stream ends. quinn hands out each byte once.
async fn fill(stream: &mut RecvStream, dest: &mut [u8]) -> Result<(), Error> {
    let mut filled = 0;
    loop {
        let Some(chunk) = moving(filled as u64, stream.read_chunk(usize::MAX, false)).await? else {
            return if filled == dest.len() { Ok(()) } else { Err(Malformed::Truncated.into()) };
        };
        let place = chunk.offset.checked_sub(HEADER_BYTES as u64).and_then(|at| usize::try_from(at).ok());
        let space = place.and_then(|at| dest.get_mut(at..at.checked_add(chunk.bytes.len())?));
        match space {
            Some(space) => space.copy_from_slice(&chunk.bytes),
            None => return Err(Malformed::BulkHeader.into()),
        }
        filled += chunk.bytes.len();
    }
}

/// Answers one bulk stream: `source` maps the request to the range, as [`Bytes`] that keep its memory alive
/// ([`Bytes::from_owner`] for shared memory, so that nothing is copied), or to a refusal that the reader sees.
/// Returns the range's length once the reader has all of it. No more than the send window is in flight.
pub async fn serve<F>(
    (mut sender, mut receiver): (Sender, Receiver),
    source: impl FnOnce(AlignedVec) -> F,
) -> Result<u64, Error>
where
    F: Future<Output = Result<Bytes, String>>,
{
    receiver.limit(REQUEST_BYTES_MAX);
    let request = moving(0, receiver.recv()).await?.ok_or(Malformed::Truncated)?;
    let (status, mut range) = match source(request).await {
        Ok(range) => (STATUS_RANGE, range),
        Err(reason) => {
            let reason: String = reason.chars().take(REFUSAL_BYTES_MAX / 4).collect();
            (STATUS_REFUSED, Bytes::from(reason))
        }
    };
    let length = range.len() as u64;
    let mut header = [0; HEADER_BYTES];
    header[0] = status;
    header[8..].copy_from_slice(&length.to_le_bytes());
    let stream = sender.stream();
    moving(0, stream.write_all(&header)).await?;
    while !range.is_empty() {
        let mut piece = range.split_to(range.len().min(PIECE_BYTES));
        while !piece.is_empty() {
            let sent = length - (range.len() + piece.len()) as u64;
            moving(sent, stream.write_chunks(slice::from_mut(&mut piece))).await?;
        }
    }
    sender.finish().await?;
    moving(length, sender.delivered()).await?;
    Ok(length)
}

#[cfg(test)]
mod tests;
