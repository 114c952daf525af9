//! What one agent says to another arrives once and in order, over however many connections.
//!
//! A stream may break with what was written into it, and nobody knows how much of that has arrived. So each message, a
//! *frame*, has a number, which travels nowhere: a stream begins with the number of its first frame, and both sides count.
//! This is the part without IO; `service::delivery` carries it out.
//!
//! - **DL-1** Frames from one incarnation of an agent to one of another are numbered in the order in which they are first
//!   sent, over all streams.
//! - **DL-2** A frame is kept until the receiver has said that it has it. Each further stream begins with the first that is
//!   kept, and carries all of them again.
//! - **DL-3** Of each number one frame is handed on, after all before it. What comes again is dropped; a stream that begins
//!   behind what is expected is refused, since what is between would never come.
//! - **DL-4** Once a stream has begun, nothing more is handed on of those that were opened before it.
//! - **DL-5** What is kept takes at most [`KEPT_BYTES_MAX`] and one frame. Where that is used up, frames wait to be
//!   numbered; none is dropped.
//! - **DL-6** A frame that is given up keeps its number and is sent as nothing. The receiver may have had it before.
//! - **DL-7** What was handed on is said at the latest after [`SAY_FRAMES`], [`SAY_BYTES`] or [`SAY_DELAY`], on the stream
//!   that began last. While nothing was, nothing is said and no time runs. So a call costs nobody another waking.

use std::{collections::VecDeque, time::Duration};

use rkyv::util::AlignedVec;

/// Most memory that frames take which a peer has not said to have. Unit: bytes. Less than bandwidth × round trip, with what
/// the receiver may have without saying so ([`SAY_BYTES`]), and the path stays partly empty.
pub const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a frame that is kept takes beside its bytes, at most. Unit: bytes.
pub const FRAME_BYTES: usize = 64;
/// After so many frames the receiver says that it has them.
pub const SAY_FRAMES: u32 = 256;
/// After so many bytes the receiver says that it has them.
pub const SAY_BYTES: usize = 1024 * 1024;
/// The receiver says that it has a frame so long after it came, if not before.
pub const SAY_DELAY: Duration = Duration::from_millis(100);
/// Frames that were kept leave behind room for so many others; more is given back when the last goes.
const ROOM_KEPT: usize = 64;

/// The other side does not keep to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// DL-3.
    #[error("its stream begins with frame {first}, but {expected} is expected")]
    Gap {
        /// The first frame of the stream.
        first: u64,
        /// The next one that was not handed on.
        expected: u64,
    },
    /// It has what was never sent.
    #[error("it says that it has all frames before {said}, but only those before {sent} were sent")]
    NotSent {
        /// What it says.
        said: u64,
        /// What is true.
        sent: u64,
    },
}

/// How a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Which one it is, from 1.
    pub stream: u64,
    /// The number of its first frame.
    pub first: u64,
}

/// The sender's side: what a peer may not have.
#[derive(Debug)]
pub struct Outgoing {
    frames: VecDeque<AlignedVec>,
    /// The number of the first that is kept.
    first: u64,
    bytes: usize,
    bytes_max: usize,
    /// The last stream.
    stream: u64,
}

fn cost(frame: &AlignedVec) -> usize {
    frame.capacity() + FRAME_BYTES
}

impl Default for Outgoing {
    fn default() -> Self {
        Self::new(KEPT_BYTES_MAX)
    }
}

impl Outgoing {
    /// Keeps so many bytes, and one frame.
    fn new(bytes_max: usize) -> Self {
        Self { frames: VecDeque::new(), first: 0, bytes: 0, bytes_max, stream: 0 }
    }

    /// Whether another frame may be numbered (DL-5).
    pub fn has_room(&self) -> bool {
        self.bytes < self.bytes_max
    }

    /// Whether the peer has all.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Numbers a frame, which is then to be written into the stream, if there is one (DL-1).
    pub fn push(&mut self, frame: AlignedVec) {
        self.bytes += cost(&frame);
        self.frames.push_back(frame);
    }

    /// The number of the next frame.
    pub fn next(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// A further stream begins. All frames from its first on are to be written into it (DL-2); who reads the answers may
    /// have some of them go meanwhile.
    pub fn begin(&mut self) -> Begin {
        self.stream += 1;
        Begin { stream: self.stream, first: self.first }
    }

    /// The last stream, or 0.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// A frame, as it is to be written; empty for one that the peer has by now, or that was given up.
    pub fn frame(&self, number: u64) -> &[u8] {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.frames.get(at)).map_or(&[], |frame| frame.as_slice())
    }

    /// The peer has all frames before this number, as it says on whichever stream.
    pub fn received(&mut self, next: u64) -> Result<(), Violation> {
        if next > self.next() {
            return Err(Violation::NotSent { said: next, sent: self.next() });
        }
        while self.first < next
            && let Some(frame) = self.frames.pop_front()
        {
            self.first += 1;
            self.bytes -= cost(&frame);
        }
        if self.frames.is_empty() {
            self.frames.shrink_to(ROOM_KEPT);
        }
        Ok(())
    }

    /// Gives up the frames of which this is so (DL-6).
    pub fn give_up(&mut self, mut whether: impl FnMut(&[u8]) -> bool) {
        for frame in &mut self.frames {
            if !frame.is_empty() && whether(frame) {
                self.bytes -= frame.capacity();
                *frame = AlignedVec::new();
            }
        }
    }
}

/// What becomes of a frame that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is handed on now, before any other is taken.
    Next,
    /// It came before.
    Again,
    /// Nothing, nor of what follows in its stream: another stream has begun.
    Over,
}

/// When the sender is to be told what was handed on (DL-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// There is nothing to say.
    Nothing,
    /// Within [`SAY_DELAY`] of the first frame of which it was not said.
    Later,
    /// At once.
    Now,
}

/// One stream, as its receiver sees it.
#[derive(Debug)]
pub struct Stream {
    stream: u64,
    /// The number of the next frame in it.
    number: u64,
}

/// The receiver's side: what has come of one peer.
#[derive(Debug, Default)]
pub struct Incoming {
    /// The newest stream.
    stream: u64,
    /// All frames before this one were handed on.
    next: u64,
    unsaid_frames: u32,
    unsaid_bytes: usize,
}

impl Incoming {
    /// A stream begins: whoever sends is to be told at once what it need not send again ([`Incoming::say`]). `None` where
    /// one that was opened later has begun.
    pub fn begin(&mut self, Begin { stream, first }: Begin) -> Result<Option<Stream>, Violation> {
        if stream <= self.stream {
            return Ok(None);
        }
        if first > self.next {
            return Err(Violation::Gap { first, expected: self.next });
        }
        self.stream = stream;
        Ok(Some(Stream { stream, number: first }))
    }

    /// The next frame of a stream, of so many bytes.
    pub fn take(&mut self, stream: &mut Stream, bytes: usize) -> Taken {
        if stream.stream != self.stream {
            return Taken::Over;
        }
        let number = stream.number;
        stream.number += 1;
        // A stream begins with what is expected at the latest, and only one counts on.
        if number < self.next {
            return Taken::Again;
        }
        self.next = stream.number;
        self.unsaid_frames += 1;
        self.unsaid_bytes += bytes;
        Taken::Next
    }

    /// Whether there is something to say.
    pub fn due(&self) -> Say {
        match (self.unsaid_frames, self.unsaid_bytes) {
            (0, _) => Say::Nothing,
            (SAY_FRAMES.., _) | (_, SAY_BYTES..) => Say::Now,
            _ => Say::Later,
        }
    }

    /// What is to be said on a stream now: all frames before this one were handed on. `None` where another has begun.
    pub fn say(&mut self, stream: &Stream) -> Option<u64> {
        if stream.stream != self.stream {
            return None;
        }
        (self.unsaid_frames, self.unsaid_bytes) = (0, 0);
        Some(self.next)
    }
}

#[cfg(test)]
mod tests;
