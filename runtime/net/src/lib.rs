//! How Mobula's processes talk: QUIC between machines, rings and sockets on one, framing, cluster identity.

#![deny(unsafe_code)]

pub mod bulk;
pub mod code;
mod descriptors;
pub mod identity;
pub mod link;
pub mod quic;
mod readiness;
#[allow(unsafe_code, reason = "frames are read and written in memory that two processes share")]
pub mod ring;

pub use descriptors::raise_limit as raise_descriptor_limit;
pub use readiness::readiness;
