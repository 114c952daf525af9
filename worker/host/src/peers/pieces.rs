//! Messages longer than one may be on its way: cut into pieces here, joined again there.

use mobula_proto::{HostId, IdMap, peer::Message, wire};
use parking_lot::Mutex;
use rkyv::util::AlignedVec;

/// Longest message between two hosts, over all of its pieces. What makes a message long (refs, and values that travel
/// inside it) is bounded where it is made, so that none is longer; see [`REFS_MAX`](crate::codec::REFS_MAX) and
/// [`ARGUMENT_BYTES_MAX`](crate::core::ARGUMENT_BYTES_MAX). Unit: bytes.
pub const LONG_BYTES_MAX: usize = 256 << 20;
/// How long a piece is. Unit: bytes.
pub(super) const PIECE_BYTES: usize = 4 << 20;

/// The pieces of an encoded message, in order.
pub(super) fn cut(bytes: &[u8]) -> impl Iterator<Item = Message> {
    let mut pieces = bytes.chunks(PIECE_BYTES).peekable();
    std::iter::from_fn(move || {
        let bytes = pieces.next()?.to_vec();
        Some(Message::Piece { more: pieces.peek().is_some(), bytes })
    })
}

/// A message that has come in part.
#[derive(Default)]
struct Begun {
    bytes: AlignedVec,
    /// It turned out to be too long; its further pieces are dropped.
    refused: bool,
}

/// What other hosts have sent in part: at most one message of each.
#[derive(Default)]
pub(super) struct Pieces(Mutex<IdMap<HostId, Begun>>);

impl Pieces {
    /// Takes a piece; gives the message when it was the last.
    pub(super) fn join(&self, from: HostId, more: bool, bytes: &[u8]) -> Option<Message> {
        let mut all = self.0.lock();
        let begun = all.entry(from).or_default();
        begun.refused |= begun.bytes.len() + bytes.len() > LONG_BYTES_MAX;
        if begun.refused {
            begun.bytes = AlignedVec::new();
        } else {
            begun.bytes.extend_from_slice(bytes);
        }
        if more {
            return None;
        }
        let begun = all.remove(&from)?;
        drop(all);
        if begun.refused {
            tracing::error!(%from, limit = LONG_BYTES_MAX, "dropped a message that is too long");
            return None;
        }
        match wire::decode(&begun.bytes) {
            Ok(Message::Piece { .. }) => {
                tracing::warn!(%from, "dropped a piece inside of pieces");
                None
            }
            Ok(message) => Some(message),
            Err(error) => {
                tracing::warn!(%from, %error, "dropped a malformed message");
                None
            }
        }
    }

    /// These hosts send nothing more.
    pub(super) fn forget(&self, gone: impl Fn(HostId) -> bool) {
        self.0.lock().retain(|from, _| !gone(*from));
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::{LeaseId, NodeId, TaskId};

    use super::*;

    fn host(seq: u32) -> HostId {
        HostId { node: NodeId { number: 7, incarnation: 9 }, seq }
    }

    /// Of about so many bytes.
    fn long(bytes: usize) -> Message {
        let tasks = (0..bytes as u64 / 40).map(|seq| (TaskId::numbered(host(1), seq), 1)).collect();
        Message::Recalled { lease: LeaseId { number: 3 }, tasks }
    }

    fn join_all(pieces: &Pieces, from: HostId, parts: impl IntoIterator<Item = Message>) -> Vec<Message> {
        let joined = parts.into_iter().filter_map(|part| match part {
            Message::Piece { more, bytes } => pieces.join(from, more, &bytes),
            other => Some(other),
        });
        joined.collect()
    }

    #[test]
    fn what_is_cut_is_joined_whoever_sends_in_between() {
        let pieces = Pieces::default();
        let (one, other) = (long(3 * PIECE_BYTES), long(PIECE_BYTES + 100));
        let (one_bytes, other_bytes) = (wire::encode(&one).unwrap(), wire::encode(&other).unwrap());
        let mut others = cut(&other_bytes);
        let mut got = Vec::new();
        for piece in cut(&one_bytes) {
            got.extend(join_all(&pieces, host(1), [piece]));
            got.extend(join_all(&pieces, host(2), others.next()));
        }
        assert_eq!(got, [other, one]);
        assert!(pieces.0.lock().is_empty());
    }

    #[test]
    fn what_is_too_long_malformed_or_cut_twice_is_dropped_and_the_next_message_comes_through() {
        let pieces = Pieces::default();
        let small = wire::encode(&long(100)).unwrap();
        let piece = |more, bytes: &[u8]| Message::Piece { more, bytes: bytes.to_vec() };
        let zeros = vec![0; PIECE_BYTES];
        let endless = (0..=LONG_BYTES_MAX / PIECE_BYTES).map(|_| piece(true, &zeros));
        assert!(join_all(&pieces, host(1), endless).is_empty());
        assert!(pieces.0.lock()[&host(1)].bytes.is_empty(), "it takes no memory");
        let nested = wire::encode(&piece(false, &small)).unwrap();
        for last in [&zeros[..], b"no message", &nested] {
            assert!(join_all(&pieces, host(1), [piece(false, last)]).is_empty());
            assert_eq!(join_all(&pieces, host(1), cut(&small)), [long(100)]);
        }
        join_all(&pieces, host(1), [piece(true, &zeros)]);
        pieces.forget(|host| host.seq == 1);
        assert_eq!(join_all(&pieces, host(1), cut(&small)), [long(100)]);
    }
}
