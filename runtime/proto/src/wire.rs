//! Encoding and checked decoding of messages.
//!
//! A message is an rkyv archive. It travels in frames of at most [`FRAME_BYTES_MAX`]; one that is longer is
//! split by the link and joined again, up to [`MESSAGE_BYTES_MAX`]. Decoding always validates (invariant I8):
//! a message that does not hold together is an [`Error`], never a panic.

use std::cell::RefCell;

use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor,
    ser::allocator::ArenaHandle,
    util::AlignedVec,
};

/// Longest frame on any socket, stream or ring, header included.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Longest message; a longer one is refused before memory is taken for it.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Values up to this many bytes travel inside messages, and all arguments of one task together too.
pub const INLINE_BYTES_MAX: usize = 100 * 1024;
/// The version of every protocol that this build speaks.
pub const PROTOCOL_CURRENT: u32 = 1;
/// The oldest version that this build still understands.
pub const PROTOCOL_OLDEST: u32 = 1;
/// First field of every hello; says that a Mobula process is talking.
pub const MAGIC: u32 = 0x6d6f_6275;

/// Why a message was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not a valid message of the type expected.
    #[error("malformed {what} message of {bytes} bytes: {detail}")]
    Malformed {
        /// The type expected.
        what: &'static str,
        /// How long it was.
        bytes: usize,
        /// What is wrong.
        detail: String,
    },
    /// The message is longer than any may be.
    #[error("a {what} message of {bytes} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// The type.
        what: &'static str,
        /// How long it would be.
        bytes: usize,
    },
    /// The other side speaks a protocol that this build does not.
    #[error(
        "the other side speaks protocol {theirs}, this build {PROTOCOL_OLDEST} to {PROTOCOL_CURRENT}: upgrade the older of the two"
    )]
    Protocol {
        /// Their version.
        theirs: u32,
    },
    /// The first message was not a hello.
    #[error("the other side is not a Mobula process (its first bytes are no hello)")]
    NotMobula,
}

/// What can travel as a message; implemented for every type that derives rkyv's traits.
pub trait Message:
    Archive<
        Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
                      + Deserialize<Self, HighDeserializer<rancor::Error>>,
    > + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
    + Sized
{
}

impl<T> Message for T where
    T: Archive<
            Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
                          + Deserialize<Self, HighDeserializer<rancor::Error>>,
        > + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
        + Sized
{
}

/// Encodes a message.
pub fn encode<T: Message>(message: &T) -> Result<AlignedVec, Error> {
    let bytes = rkyv::to_bytes::<rancor::Error>(message).map_err(|e| Error::Malformed {
        what: short_name::<T>(),
        bytes: 0,
        detail: e.to_string(),
    })?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Error::TooLong { what: short_name::<T>(), bytes: bytes.len() });
    }
    Ok(bytes)
}

thread_local! {
    /// For [`encode_with`]; taken out while it is in use.
    static SCRATCH: RefCell<AlignedVec> = RefCell::default();
}

/// Longest buffer that a thread keeps between two messages. Unit: bytes.
const SCRATCH_BYTES_KEPT: usize = 2 * INLINE_BYTES_MAX;

/// Encodes a message after `head` bytes of zero (a multiple of 16), into a buffer that the thread keeps for the
/// next one. `then` gets the buffer; it may take it.
pub fn encode_with<T: Message, R>(
    message: &T,
    head: usize,
    then: impl FnOnce(&mut AlignedVec) -> R,
) -> Result<R, Error> {
    let mut buffer = SCRATCH.take();
    buffer.clear();
    buffer.resize(head, 0);
    let mut buffer = rkyv::api::high::to_bytes_in::<_, rancor::Error>(message, buffer)
        .map_err(|e| Error::Malformed { what: short_name::<T>(), bytes: 0, detail: e.to_string() })?;
    let result = then(&mut buffer);
    if (1..=SCRATCH_BYTES_KEPT).contains(&buffer.capacity()) {
        SCRATCH.set(buffer);
    }
    Ok(result)
}

/// Validates and decodes a message. `bytes` may lie at any alignment; aligned to 16 it is not copied first.
pub fn decode<T: Message>(bytes: &[u8]) -> Result<T, Error> {
    let malformed = |e: rancor::Error| Error::Malformed {
        what: short_name::<T>(),
        bytes: bytes.len(),
        detail: e.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    if (bytes.as_ptr() as usize).is_multiple_of(16) {
        rkyv::from_bytes::<T, rancor::Error>(bytes).map_err(malformed)
    } else {
        let mut aligned: AlignedVec = AlignedVec::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        rkyv::from_bytes::<T, rancor::Error>(&aligned).map_err(malformed)
    }
}

fn short_name<T>() -> &'static str {
    let full = std::any::type_name::<T>();
    full.rsplit("::").next().unwrap_or(full)
}

/// Which part the other side of a connection plays.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The control plane.
    Head,
    /// A machine's agent.
    Agent,
    /// A host that an agent started.
    Host,
    /// The host whose `main` runs.
    Driver,
}

/// First message in either direction on every control connection.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: u32,
    /// The sender's [`PROTOCOL_OLDEST`].
    pub protocol_min: u32,
    /// The sender's [`PROTOCOL_CURRENT`].
    pub protocol: u32,
    /// The sender's role.
    pub role: Role,
}

impl Hello {
    /// This build's hello.
    pub fn new(role: Role) -> Self {
        Self { magic: MAGIC, protocol_min: PROTOCOL_OLDEST, protocol: PROTOCOL_CURRENT, role }
    }

    /// Whether the two sides can talk, and whether the other plays an expected part.
    pub fn check(&self, expected: &[Role]) -> Result<(), Error> {
        if self.magic != MAGIC || !expected.contains(&self.role) {
            return Err(Error::NotMobula);
        }
        if self.protocol < PROTOCOL_OLDEST || self.protocol_min > PROTOCOL_CURRENT {
            return Err(Error::Protocol { theirs: self.protocol });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_any_alignment() {
        let hello = Hello::new(Role::Agent);
        let bytes = encode(&hello).unwrap();
        for shift in 0..16 {
            let mut moved = vec![0u8; shift];
            moved.extend_from_slice(&bytes);
            assert_eq!(decode::<Hello>(&moved[shift..]).unwrap(), hello);
        }
    }

    #[test]
    fn malformed_and_old_messages_are_errors() {
        let mut bytes = encode(&Hello::new(Role::Agent)).unwrap();
        assert!(decode::<Hello>(&bytes[..bytes.len() - 1]).is_err());
        let last = bytes.len() - 4;
        bytes[last] = 0xff;
        assert!(decode::<Hello>(&bytes).is_err());
        let old = Hello { protocol: 0, protocol_min: 0, ..Hello::new(Role::Agent) };
        assert!(old.check(&[Role::Agent]).unwrap_err().to_string().contains("upgrade"));
        assert!(Hello::new(Role::Host).check(&[Role::Agent]).is_err());
    }
}
