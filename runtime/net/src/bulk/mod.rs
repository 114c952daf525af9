//! Large ranges, pulled over QUIC straight into the buffer where they are wanted.
//!
//! The reader opens a [`StreamKind::Bulk`] stream, on a connection kept for such streams, sends one message that
//! says what it wants and ends its half. The server answers with 16 bytes, status (1 byte), zeros (3), length of a note
//! (4, little-endian) and length of the range (8, little-endian), then the note, whose meaning is the callers', and then
//! the range. There is no staging on either side: the server hands quinn slices of the memory that it serves, and the
//! reader copies decrypted chunks to their place ([`Dest`]).
//!
//! What a server has only a part of yet it serves as it comes in ([`Range::growing`]), so that a reader can be the
//! source of the next one. Bytes come in order: what a reader has of a range is always its front, and another server
//! can go on where one left off.

use std::{fmt, future::Future, pin::pin, slice, time::Duration};

use bytes::Bytes;
use quinn::RecvStream;
use rkyv::util::AlignedVec;
use tokio::{sync::watch, time::timeout};

use crate::quic::{self, Connection, Malformed, Receiver, Sender, StreamKind};

/// Longest request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Longest note, in bytes.
pub const NOTE_BYTES_MAX: usize = 4 * 1024;
/// How long a server waits for its reader, or for more of what it has only a part of, to move at all.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The server hands out its memory in pieces of this many bytes. quinn counts a piece against the send window until
/// all of it is acknowledged, and looks through all pieces for each packet: too large stalls, too small crawls.
const PIECE_BYTES: usize = 256 << 10;
/// A reader says how far it has come in steps of this many bytes: each may wake the servers of its part.
const PROGRESS_BYTES: u64 = PIECE_BYTES as u64;
/// Most chunks that a reader copies at once.
const CHUNKS: usize = 16;
const HEADER_BYTES: usize = 16;
const STATUS_RANGE: u8 = 0;
const STATUS_REFUSED: u8 = 1;
const STATUS_ELSEWHERE: u8 = 2;
const STATUS_BUSY: u8 = 3;
/// Another header follows: the server is still getting what it was asked for.
const STATUS_WAIT: u8 = 4;

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
    /// The server has it, and cannot give it for the moment.
    #[error("the peer cannot give it now: {reason}")]
    Busy {
        /// What it said.
        reason: String,
    },
    /// The server names others that have it.
    #[error("the peer names others that have it")]
    Elsewhere {
        /// The names, in the callers' own words.
        note: Vec<u8>,
    },
    /// The range is not as long as the buffer.
    #[error("the peer has {got} bytes where {want} were wanted")]
    Length {
        /// The buffer's length.
        want: u64,
        /// The range's.
        got: u64,
    },
    /// Nothing moved for so long, though the connection lives.
    #[error("the transfer stood still for {time:?} after {bytes} bytes")]
    Stalled {
        /// For how long.
        time: Duration,
        /// How far it had come.
        bytes: u64,
    },
    /// What came in cannot be put in its place.
    #[error("what came in has no place here: {reason}")]
    Place {
        /// Why.
        reason: String,
    },
    /// The server cannot get, or read, the rest of what it serves.
    #[error("the rest cannot be served: {reason}")]
    Source {
        /// Why.
        reason: String,
    },
}

impl Error {
    /// Whether trying again, at this peer or another, can help.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Net(error) => error.retryable(),
            Self::Stalled { .. } | Self::Source { .. } | Self::Busy { .. } => true,
            Self::Refused { .. } | Self::Elsewhere { .. } | Self::Length { .. } | Self::Place { .. } => false,
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

/// How far a range has come that is still being pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes, from its beginning, are there and will not change.
    Have(u64),
    /// The rest does not come.
    Failed,
}

type Slice = dyn Fn(u64, usize) -> Result<Bytes, String> + Send + Sync;

/// What a server serves: memory, from some offset on.
pub struct Range {
    from: u64,
    end: u64,
    ready: Option<watch::Receiver<Progress>>,
    slice: Box<Slice>,
}

impl Range {
    /// All of `bytes` from `from` on; [`Bytes::from_owner`] keeps shared memory alive and copies nothing. Nothing where
    /// `from` lies behind the end.
    pub fn whole(bytes: Bytes, from: u64) -> Self {
        let end = bytes.len() as u64;
        // Both lie within `bytes`: see `Range::next`.
        let slice = move |at: u64, len: usize| Ok(bytes.slice(at as usize..at as usize + len));
        Self { from: from.min(end), end, ready: None, slice: Box::new(slice) }
    }

    /// `len` bytes, from `from` on, of which `ready` says how many are there. `slice` gives `(offset, length)` of those.
    pub fn growing(
        len: u64,
        from: u64,
        ready: watch::Receiver<Progress>,
        slice: impl Fn(u64, usize) -> Result<Bytes, String> + Send + Sync + 'static,
    ) -> Self {
        Self { from: from.min(len), end: len, ready: Some(ready), slice: Box::new(slice) }
    }

    /// The next piece, at most [`PIECE_BYTES`], once it is there; nothing at the end.
    async fn next(&mut self) -> Result<Bytes, Error> {
        let from = self.from;
        if from >= self.end {
            return Ok(Bytes::new());
        }
        let there = match &mut self.ready {
            None => self.end,
            Some(ready) => {
                let more = |now: &Progress| !matches!(now, Progress::Have(have) if *have <= from);
                match ready.wait_for(more).await.map(|now| *now) {
                    Ok(Progress::Have(have)) => have.min(self.end),
                    Ok(Progress::Failed) | Err(_) => {
                        return Err(Error::Source { reason: "it does not come in any more".to_owned() });
                    }
                }
            }
        };
        // At most `PIECE_BYTES`.
        let len = there.saturating_sub(from).min(PIECE_BYTES as u64) as usize;
        self.from += len as u64;
        (self.slice)(from, len).map_err(|reason| Error::Source { reason })
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Range").field("bytes", &(self.from..self.end)).finish_non_exhaustive()
    }
}

/// What a server answers.
#[derive(Debug)]
pub enum Answer {
    /// The range, behind a note of at most [`NOTE_BYTES_MAX`].
    Range(Vec<u8>, Range),
    /// It is to be had elsewhere, as this note says.
    Elsewhere(Vec<u8>),
}

/// Why a server gives nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not have what was asked for, or will not give it.
    Absent(String),
    /// It has it, and cannot give it for the moment.
    Busy(String),
}

/// Where a range is put.
pub trait Dest {
    /// How many bytes it takes.
    fn bytes(&self) -> u64;

    /// Copies `parts` to `at`, one behind the other; all of it lies within.
    ///
    /// # Errors
    /// Why it cannot, for people.
    fn put(&mut self, at: u64, parts: &[Bytes]) -> Result<(), String>;
}

impl<T: AsRef<[u8]> + AsMut<[u8]> + ?Sized> Dest for T {
    fn bytes(&self) -> u64 {
        self.as_ref().len() as u64
    }

    fn put(&mut self, at: u64, parts: &[Bytes]) -> Result<(), String> {
        let mut space = self.as_mut().get_mut(at as usize..).unwrap_or_default();
        for part in parts {
            let (first, rest) = space.split_at_mut_checked(part.len()).ok_or("it is too long")?;
            first.copy_from_slice(part);
            space = rest;
        }
        Ok(())
    }
}

/// Who hears of a pull. What it says last holds when the pull ends, however that is.
pub trait Sink {
    /// The note in front of the range.
    fn note(&mut self, _note: &[u8]) {}

    /// So many bytes more are in their place, counted from where this pull began.
    fn filled(&mut self, _bytes: u64) {}
}

impl Sink for () {}

/// Fails with [`Error::Stalled`] when one step takes too long.
async fn moving<T, E: Into<Error>>(
    time: Duration,
    bytes: u64,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    timeout(time, step).await.map_err(|_| Error::Stalled { time, bytes })?.map_err(Into::into)
}

/// Fills `dest` with what `request` (at most [`REQUEST_BYTES_MAX`]) names at the peer; the range must be exactly as
/// long. A peer that sends nothing for `stall`, not even that it is still getting it, is given up. After an error, or when cancelled, the front of `dest` is
/// filled as far as `sink` has heard, or further.
pub async fn pull(
    connection: &Connection,
    request: &[u8],
    dest: &mut (impl Dest + ?Sized),
    stall: Duration,
    sink: &mut impl Sink,
) -> Result<(), Error> {
    if request.len() > REQUEST_BYTES_MAX {
        return Err(quic::Error::TooLong { bytes: request.len() }.into());
    }
    let (mut sender, mut receiver) = moving(stall, 0, connection.open_quietly(StreamKind::Bulk)).await?;
    moving(stall, 0, async {
        sender.send(request).await?;
        sender.finish().await
    })
    .await?;
    let pulled = answer(receiver.stream(), dest, stall, sink).await;
    if pulled.is_err() {
        receiver.stop();
    }
    pulled
}

async fn answer(
    stream: &mut RecvStream,
    dest: &mut (impl Dest + ?Sized),
    stall: Duration,
    sink: &mut impl Sink,
) -> Result<(), Error> {
    let mut header = [0; HEADER_BYTES];
    loop {
        exactly(stream, &mut header, stall).await?;
        if header != wait_header() {
            break;
        }
    }
    let (head, length) = header.split_at(8);
    let (&[status, 0, 0, 0, ..], Ok(length)) = (head, length.try_into().map(u64::from_le_bytes)) else {
        return Err(Malformed::BulkHeader.into());
    };
    let note = head[4..].try_into().map(u32::from_le_bytes).map_err(|_| Malformed::BulkHeader)?;
    let known = matches!(status, STATUS_RANGE | STATUS_REFUSED | STATUS_ELSEWHERE | STATUS_BUSY);
    if !known || note as usize > NOTE_BYTES_MAX || (status != STATUS_RANGE && length > 0) {
        return Err(Malformed::BulkHeader.into());
    }
    // Bounded just above.
    let mut text = vec![0; note as usize];
    exactly(stream, &mut text, stall).await?;
    match status {
        STATUS_RANGE if length == dest.bytes() => {
            sink.note(&text);
            fill(stream, dest, stall, sink).await
        }
        STATUS_RANGE => Err(Error::Length { want: dest.bytes(), got: length }),
        STATUS_ELSEWHERE => Err(Error::Elsewhere { note: text }),
        STATUS_BUSY => Err(Error::Busy { reason: String::from_utf8_lossy(&text).into_owned() }),
        _ => Err(Error::Refused { reason: String::from_utf8_lossy(&text).into_owned() }),
    }
}

fn wait_header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = STATUS_WAIT;
    header
}

async fn exactly(stream: &mut RecvStream, dest: &mut [u8], stall: Duration) -> Result<(), Error> {
    moving(stall, 0, async {
        match stream.read_exact(dest).await {
            Ok(()) => Ok(()),
            Err(quinn::ReadExactError::FinishedEarly(_)) => Err(Error::from(Malformed::Truncated)),
            Err(quinn::ReadExactError::ReadError(error)) => Err(error.into()),
        }
    })
    .await
}

/// Copies chunks to their place until the stream ends.
async fn fill(
    stream: &mut RecvStream,
    dest: &mut (impl Dest + ?Sized),
    stall: Duration,
    sink: &mut impl Sink,
) -> Result<(), Error> {
    let mut chunks: [Bytes; CHUNKS] = Default::default();
    let (mut filled, mut said) = (0, 0);
    loop {
        let come = moving(stall, filled, stream.read_chunks(&mut chunks)).await;
        if said < filled && (filled - said >= PROGRESS_BYTES || filled == dest.bytes() || come.is_err()) {
            sink.filled(filled - said);
            said = filled;
        }
        let Some(come) = come? else {
            return if filled == dest.bytes() { Ok(()) } else { Err(Malformed::Truncated.into()) };
        };
        // At most all of them.
        let chunks = &mut chunks[..come];
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if bytes > dest.bytes() - filled {
            return Err(Malformed::BulkHeader.into());
        }
        dest.put(filled, chunks).map_err(|reason| Error::Place { reason })?;
        filled += bytes;
        // What they lie in is for the next.
        chunks.fill(Bytes::new());
    }
}

/// Fills `dest` with a range of this process; it must be exactly as long.
///
/// # Errors
/// Where it is not, or cannot be read to its end. The front of `dest` is filled as far as `sink` has heard, or further.
pub async fn copy(
    mut range: Range,
    dest: &mut (impl Dest + ?Sized),
    sink: &mut impl Sink,
) -> Result<(), Error> {
    let (want, got) = (dest.bytes(), range.end - range.from);
    if want != got {
        return Err(Error::Length { want, got });
    }
    let mut filled = 0;
    while filled < want {
        let piece = range.next().await?;
        let bytes = piece.len() as u64;
        dest.put(filled, &[piece]).map_err(|reason| Error::Place { reason })?;
        filled += bytes;
        sink.filled(bytes);
        // Others have something to do, too.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Answers one bulk stream: `source` maps the request to an answer, or to a refusal that the reader sees. While that takes
/// its time the reader hears so, each time that `pause` is over: how long it may take is the source's to say. `sent` is
/// raised by what left for the reader, also where that failed in the end. Returns once the reader has all of it. No
/// more than the send window is in flight.
pub async fn serve<F>(
    (mut sender, mut receiver): (Sender, Receiver),
    source: impl FnOnce(AlignedVec) -> F,
    pause: Duration,
    sent: &mut u64,
) -> Result<(), Error>
where
    F: Future<Output = Result<Answer, Refusal>>,
{
    receiver.limit(REQUEST_BYTES_MAX);
    let request = moving(STALL_TIMEOUT, 0, receiver.recv()).await?.ok_or(Malformed::Truncated)?;
    let mut source = pin!(source(request));
    let answer = loop {
        if let Ok(answer) = timeout(pause, &mut source).await {
            break answer;
        }
        moving(STALL_TIMEOUT, 0, sender.stream().write_all(&wait_header())).await?;
    };
    let (status, note, range) = match answer {
        Ok(Answer::Range(note, range)) => (STATUS_RANGE, note, Some(range)),
        Ok(Answer::Elsewhere(note)) => (STATUS_ELSEWHERE, note, None),
        Err(refusal) => {
            let (status, reason) = match refusal {
                Refusal::Absent(reason) => (STATUS_REFUSED, reason),
                Refusal::Busy(reason) => (STATUS_BUSY, reason),
            };
            let reason: String = reason.chars().take(NOTE_BYTES_MAX / 4).collect();
            (status, reason.into_bytes(), None)
        }
    };
    let served = send(&mut sender, status, &note, range, sent).await;
    if served.is_err() {
        // A stream that is only dropped would end in order.
        sender.abort();
    }
    served
}

async fn send(
    sender: &mut Sender,
    status: u8,
    note: &[u8],
    range: Option<Range>,
    sent: &mut u64,
) -> Result<(), Error> {
    let length = range.as_ref().map_or(0, |range| range.end - range.from);
    let mut header = [0; HEADER_BYTES];
    header[0] = status;
    let note_bytes = u32::try_from(note.len()).ok().filter(|bytes| *bytes as usize <= NOTE_BYTES_MAX);
    let note_bytes = note_bytes.ok_or(quic::Error::TooLong { bytes: note.len() })?;
    header[4..8].copy_from_slice(&note_bytes.to_le_bytes());
    header[8..].copy_from_slice(&length.to_le_bytes());
    moving(STALL_TIMEOUT, 0, sender.stream().write_all(&[&header, note].concat())).await?;
    if let Some(mut range) = range {
        loop {
            // A reader that leaves is not kept waiting for.
            let next = async {
                tokio::select! {
                    biased;
                    piece = range.next() => piece,
                    left = sender.delivered() => Err(left.map_or_else(Error::from, |()| Malformed::Truncated.into())),
                }
            };
            let mut piece = moving(STALL_TIMEOUT, *sent, next).await?;
            if piece.is_empty() {
                break;
            }
            while !piece.is_empty() {
                let before = piece.len();
                let stream = sender.stream();
                moving(STALL_TIMEOUT, *sent, stream.write_chunks(slice::from_mut(&mut piece))).await?;
                *sent += (before - piece.len()) as u64;
            }
        }
    }
    sender.finish().await?;
    moving(STALL_TIMEOUT, *sent, sender.delivered()).await
}

#[cfg(test)]
mod tests;
