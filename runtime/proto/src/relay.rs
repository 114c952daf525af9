//! Messages between hosts that no ring joins, on their way through their agents: many at once, and read by nobody on
//! the way. What a host and its own agent tell each other goes the same way, where no descriptor travels with it.
//!
//! A host puts each message into its ring to the agent behind a head of [`HEAD_BYTES`]: for whom it is. The agent
//! forwards what it finds there at once as one *batch*, which another agent, or the same one, takes apart into the
//! rings to the receiving hosts; there the head says from whom it is. A batch is a row of entries, each a head, a body
//! and zeros up to a multiple of 16.
//!
//! A head is four little-endian words: a host's node (number, incarnation), its number there, and one word more: the
//! body's length in a batch, [`SAME_JOB`] or zero in a ring to a host, zero in a ring to an agent.
//!
//! Between a host and its own agent the head is [`agent_head`]. The ring to a host carries what its agent tells it where
//! that may overtake what the agent says over the socket; a descriptor that goes with it lies in a lane of its own by then,
//! as [`WITH_DESCRIPTOR`] says. The ring to the agent carries all that the host tells it, in order:
//! where a descriptor travels with a message, that is in the socket, and an empty body says here when it is its turn.

use crate::{HostId, NodeId, wire::MESSAGE_BYTES_MAX};

/// Bytes of a head; a multiple of 16, so that bodies are aligned where heads are.
pub const HEAD_BYTES: usize = 16;
/// A batch takes no further message once it is as long as this: with the rest of the frame around it, it is then one
/// frame unless its last message is long. Unit: bytes.
pub const BATCH_BYTES: usize = 56 * 1024;
/// Longest body: as the last of a batch, and with what is around that, it makes no longer message than any may be.
pub const BODY_BYTES_MAX: usize = MESSAGE_BYTES_MAX - BATCH_BYTES - 2048;
/// In a head: the sender is of the receiver's job.
pub const SAME_JOB: u32 = 1;
/// In a head in a ring to a host: the body is a [`ToHost`](crate::host::ToHost) of the receiver's own agent.
pub const FROM_AGENT: u32 = 2;
/// In such a head: the next descriptor in the lane beside the ring belongs to the message.
pub const WITH_DESCRIPTOR: u32 = 4;
/// In a head in a ring to an agent, and in a batch of that: the body is a [`ToAgent`](crate::host::ToAgent) for that agent
/// itself, or empty for the next one in the socket.
pub const TO_AGENT: HostId = HostId { node: NodeId { number: 0, incarnation: 0 }, seq: 0 };

/// What was to be a head, or a batch, is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed relay: {0}")]
pub struct Malformed(&'static str);

/// The head for a host.
pub fn head(host: HostId, word: u32) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    let words = [host.node.number, host.node.incarnation, host.seq, word];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The head of what a host and its own agent tell each other.
pub fn agent_head() -> [u8; HEAD_BYTES] {
    head(TO_AGENT, FROM_AGENT)
}

/// [`agent_head`], of a message to which a descriptor belongs.
pub fn agent_head_with_descriptor() -> [u8; HEAD_BYTES] {
    head(TO_AGENT, FROM_AGENT | WITH_DESCRIPTOR)
}

/// Splits a message into what its head says and its body.
pub fn split(message: &[u8]) -> Result<(HostId, u32, &[u8]), Malformed> {
    let (head, body) =
        message.split_first_chunk::<HEAD_BYTES>().ok_or(Malformed("it is shorter than a head"))?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let host = HostId { node: NodeId { number: word(0), incarnation: word(4) }, seq: word(8) };
    Ok((host, word(12), body))
}

/// Adds a message to a batch.
pub fn push(batch: &mut Vec<u8>, to: HostId, body: &[u8]) -> Result<(), Malformed> {
    let start = batch.len();
    batch.extend_from_slice(&head(to, 0));
    batch.extend_from_slice(body);
    close(batch, start).inspect_err(|_| batch.truncate(start))
}

/// Makes what was added to a batch from `start` on, a head and its body, an entry.
pub fn close(batch: &mut Vec<u8>, start: usize) -> Result<(), Malformed> {
    let body = batch.len().saturating_sub(start + HEAD_BYTES);
    if body > BODY_BYTES_MAX {
        return Err(Malformed("it is longer than any may be"));
    }
    let length =
        batch.get_mut(start + 12..start + HEAD_BYTES).ok_or(Malformed("it is shorter than a head"))?;
    // At most `BODY_BYTES_MAX`, which fits.
    length.copy_from_slice(&(body as u32).to_le_bytes());
    batch.resize(batch.len().next_multiple_of(HEAD_BYTES), 0);
    Ok(())
}

/// One message of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// For whom it is.
    pub to: HostId,
    /// The message.
    pub body: &'a [u8],
    /// What it takes in the batch, from its head on. Unit: bytes.
    pub bytes: usize,
}

/// The messages of a batch, in order; an error is the last.
#[derive(Clone, Debug)]
pub struct Entries<'a>(&'a [u8]);

/// The messages of a batch.
pub fn entries(batch: &[u8]) -> Entries<'_> {
    Entries(batch)
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let batch = std::mem::take(&mut self.0);
        let entry = (|| {
            let (to, length, rest) = split(batch)?;
            let length = length as usize;
            if length > BODY_BYTES_MAX {
                return Err(Malformed("it is longer than any may be"));
            }
            let body = rest.get(..length).ok_or(Malformed("it is longer than its batch"))?;
            let bytes = HEAD_BYTES + length.next_multiple_of(HEAD_BYTES);
            self.0 = batch.get(bytes..).ok_or(Malformed("its batch ends early"))?;
            Ok(Entry { to, body, bytes })
        })();
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(seq: u32) -> HostId {
        HostId { node: NodeId { number: 7, incarnation: 9 }, seq }
    }

    #[test]
    fn a_batch_keeps_order_and_bytes() {
        let mut batch = Vec::new();
        let bodies: Vec<Vec<u8>> =
            [0, 1, 15, 16, 17, 300].iter().map(|length| vec![*length as u8; *length]).collect();
        for (seq, body) in bodies.iter().enumerate() {
            push(&mut batch, host(seq as u32), body).unwrap();
        }
        let mut at = 0;
        for (seq, (entry, body)) in entries(&batch).zip(&bodies).enumerate() {
            let entry = entry.unwrap();
            assert_eq!((entry.to, entry.body), (host(seq as u32), &body[..]));
            assert!(at % 16 == 0);
            at += entry.bytes;
        }
        assert_eq!((at, entries(&batch).count()), (batch.len(), bodies.len()));
        assert_eq!(entries(&[]).count(), 0);
    }

    #[test]
    fn heads_survive_the_trip() {
        let mut message = head(host(3), SAME_JOB).to_vec();
        message.extend_from_slice(b"body");
        assert_eq!(split(&message).unwrap(), (host(3), SAME_JOB, &b"body"[..]));
        assert!(split(&message[..15]).is_err());
    }

    #[test]
    fn malformed_batches_end_with_an_error() {
        let mut batch = Vec::new();
        push(&mut batch, host(1), b"good").unwrap();
        let good = batch.len();
        push(&mut batch, host(2), &[5; 40]).unwrap();
        // Cut anywhere inside the second entry, the first still comes out, and then one error.
        for cut in good + 1..batch.len() {
            let all: Vec<_> = entries(&batch[..cut]).collect();
            assert_eq!(all.len(), 2, "cut at {cut}");
            assert!(all[0].is_ok() && all[1].is_err());
        }
        // A length that lies, by little and by much.
        for length in [57, 1 << 20, BODY_BYTES_MAX as u32 + 1, u32::MAX] {
            let mut lies = batch.clone();
            lies[good + 12..good + 16].copy_from_slice(&length.to_le_bytes());
            assert!(entries(&lies).nth(1).unwrap().is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_too_long_or_too_short_becomes_no_entry() {
        let mut batch = head(host(1), 0).to_vec();
        batch.resize(HEAD_BYTES + BODY_BYTES_MAX + 1, 0);
        assert!(close(&mut batch, 0).is_err());
        assert!(close(&mut vec![0; 12], 0).is_err());
        assert!(close(&mut vec![0; 12], 4).is_err());
    }
}
