//! QUIC between agents, the head and drivers: mutual TLS under the cluster's CA, one UDP port for everything.
//!
//! | part | what |
//! |---|---|
//! | [`Endpoint`] | the port: accepts and dials |
//! | [`Connection`] | an authenticated peer; opens and accepts streams of a [`StreamKind`] |
//! | [`Sender`], [`Receiver`] | whole messages on a stream, in bounded frames |
//! | [`Join`], [`join()`] | how a machine without a certificate gets one |
//! | [`Options`] | every knob, with its price |
//!
//! ALPN `mobula/1` is for members: the server presents a certificate and so must the client. ALPN
//! `mobula-join/1` is for machines that want to become one; only heads serve it, and nothing else can be done
//! there. Trust comes from the chain and the URI in the certificate; DNS names and addresses play no part.
//!
//! Control, relayed frames and bulk data are different streams with different priorities; bulk data has a
//! connection of its own beside it (see [`crate::bulk`]), so that it never holds up the others.

mod connection;
mod endpoint;
mod error;
mod framing;
mod join;
mod options;
mod port;
mod tls;

pub use connection::{Connection, StreamKind};
pub use endpoint::{Endpoint, Incoming};
pub use error::{Closed, Error, Malformed};
pub use framing::{COALESCE_BYTES_MAX, Receiver, Sender};
pub use join::{Join, JoinRequest, Joined, join};
pub use options::{Buffers, MTU_BYTES, Mtu, Options};

/// ALPN of connections between members.
pub const ALPN: &[u8] = b"mobula/1";
/// ALPN of joining.
pub const ALPN_JOIN: &[u8] = b"mobula-join/1";
/// Handshakes in progress and connections not yet taken by [`Endpoint::accept`]; more are refused, and past half
/// of it a dialler must first prove its address.
pub const HANDSHAKES_MAX: usize = 256;
/// Joins in progress; more are told to come again.
pub const JOINS_MAX: usize = 16;
/// Longest message while joining, in bytes: its sender is a stranger.
pub const JOIN_BYTES_MAX: usize = 48 * 1024;
/// Longest text that says why a connection was closed, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
