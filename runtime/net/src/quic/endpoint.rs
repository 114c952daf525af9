//! The port: it accepts and dials, members and machines that join.
//!
//! Handshakes run beside one another, each with a deadline, so that a slow or hostile dialler holds up nobody.
//! After a member's handshake the server sends a greeting on a one-way stream: the magic number and the protocols
//! it speaks. The dialler waits for it, because in TLS 1.3 a client is done before its own certificate is judged.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mobula_proto::wire::{MAGIC, PROTOCOL_CURRENT, PROTOCOL_OLDEST};
use mobula_telemetry::task;
use parking_lot::RwLock;
use quinn::{
    ConnectionError, TokioRuntime, TransportErrorCode,
    crypto::rustls::{HandshakeData, QuicServerConfig},
};
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use super::{
    ALPN, ALPN_JOIN, Buffers, Connection, Error, HANDSHAKES_MAX, JOINS_MAX, Join, Options,
    error::code,
    port::Port,
    tls::{self, Refusal, ServerVerifier, Trust},
};
use crate::identity::{Identity, PeerName, Role, presented};

/// What stands in TLS where a host name would; nothing depends on it.
const SERVER_NAME: &str = "mobula";
const GREETING_BYTES: usize = 12;
/// TLS alerts that say "not with this certificate", from `bad_certificate` to `unknown_ca`, and
/// `certificate_required`.
const ALERTS_CERTIFICATE: [u64; 9] = [42, 43, 44, 45, 46, 48, 49, 51, 116];
/// The TLS alert `no_application_protocol`.
const ALERT_ALPN: u64 = 120;

/// One UDP port with this process's identity. It closes, with all its connections, when dropped.
#[derive(Debug)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    shared: Arc<Shared>,
    arrivals: Mutex<mpsc::Receiver<Incoming>>,
    _accepting: Option<task::Guard>,
}

#[derive(Debug)]
struct Shared {
    identity: RwLock<Identity>,
    options: Options,
    buffers: Buffers,
}

/// Who arrived.
#[derive(Debug)]
pub enum Incoming {
    /// A member of this cluster.
    Peer(Connection),
    /// A machine that wants to become one.
    Join(Join),
}

impl Endpoint {
    /// Opens `addr` (port 0 for any) for accepting and dialling. Must be called inside a tokio runtime.
    pub fn bind(addr: SocketAddr, identity: Identity, options: Options) -> Result<Self, Error> {
        if options.accept_join && identity.peer().role != Role::Head {
            return Err(Error::Option {
                knob: "accept_join",
                detail: "only a head can let others join".to_owned(),
            });
        }
        if identity.peer().role == Role::Driver {
            return Err(Error::Option {
                knob: "bind",
                detail: "a driver's certificate cannot serve".to_owned(),
            });
        }
        let (inner, shared) = open(addr, identity, options)?;
        // What it is does not matter: each connection is accepted with one of its own.
        let default = shared.server_config(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
        inner.set_server_config(Some(default));
        let (arrived, arrivals) = mpsc::channel(HANDSHAKES_MAX);
        let accepting = task::scoped("quic-accept", accept_all(inner.clone(), shared.clone(), arrived));
        Ok(Self { inner, shared, arrivals: Mutex::new(arrivals), _accepting: Some(accepting) })
    }

    /// Opens any port for dialling only. Must be called inside a tokio runtime.
    pub fn client(identity: Identity, options: Options) -> Result<Self, Error> {
        // Both families where the machine has both.
        let opened = open((Ipv6Addr::UNSPECIFIED, 0).into(), identity.clone(), options.clone());
        let (inner, shared) = match opened {
            Err(Error::Bind { .. }) => open((Ipv4Addr::UNSPECIFIED, 0).into(), identity, options)?,
            other => other?,
        };
        let (_, arrivals) = mpsc::channel(1);
        Ok(Self { inner, shared, arrivals: Mutex::new(arrivals), _accepting: None })
    }

    /// The address that was opened, with the port that the system chose.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        self.inner.local_addr().map_err(|source| Error::Bind { addr, source })
    }

    /// The socket buffers that the kernel granted.
    pub fn buffers(&self) -> Buffers {
        self.shared.buffers
    }

    /// The identity that new connections use.
    pub fn identity(&self) -> Identity {
        self.shared.identity.read().clone()
    }

    /// Uses a renewed certificate from now on; connections that exist keep theirs.
    pub fn set_identity(&self, identity: Identity) {
        *self.shared.identity.write() = identity;
    }

    /// The next arrival, authenticated; `None` once the endpoint is closed. Cancel-safe.
    pub async fn accept(&self) -> Option<Incoming> {
        self.arrivals.lock().await.recv().await
    }

    /// Dials the node at `addr`, which must be a member of this cluster in the role `expect`.
    pub async fn connect(&self, addr: SocketAddr, expect: Role) -> Result<Connection, Error> {
        let identity = self.identity();
        let verifier = ServerVerifier::new(Trust::Member { ca: identity.ca().clone(), role: expect });
        let crypto = tls::client(Some(&identity), verifier.clone())?;
        let after = self.shared.options.connect_timeout;
        let greeted = async {
            let connection = dial(&self.inner, &self.shared, addr, crypto, &verifier).await?;
            greeting(&connection, addr).await?;
            let (_, peer) = peer_of(&connection)
                .ok_or_else(|| Error::Untrusted { addr, detail: "it presented no certificate".to_owned() })?;
            Ok(Connection::new(connection, peer))
        };
        timeout(after, greeted).await.unwrap_or(Err(Error::Unreachable { addr, after }))
    }

    /// Closes every connection with this reason, and the port for good.
    pub fn close(&self, reason: &str) {
        self.inner.close(code::DONE, reason.as_bytes());
    }

    /// Waits, at most `limit`, until the peers have heard of [`Endpoint::close`].
    pub async fn wait_idle(&self, limit: Duration) {
        // Past the limit they find out by themselves.
        let _late = timeout(limit, self.inner.wait_idle()).await;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.inner.close(code::DONE, b"the node went away");
    }
}

fn open(
    addr: SocketAddr,
    identity: Identity,
    options: Options,
) -> Result<(quinn::Endpoint, Arc<Shared>), Error> {
    options.check()?;
    let (socket, buffers) = options.socket(addr)?;
    let failed = |source| Error::Bind { addr, source };
    let port = Port::new(socket).map_err(failed)?;
    let config = options.endpoint()?;
    let inner = quinn::Endpoint::new_with_abstract_socket(config, None, port, Arc::new(TokioRuntime))
        .map_err(failed)?;
    Ok((inner, Arc::new(Shared { identity: RwLock::new(identity), options, buffers })))
}

impl Shared {
    fn server_config(&self, peer: SocketAddr) -> Result<quinn::ServerConfig, Error> {
        let crypto: QuicServerConfig = tls::server(&self.identity.read().clone(), self.options.accept_join)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(self.options.transport(peer.ip(), self.buffers)?);
        config.max_incoming(HANDSHAKES_MAX);
        Ok(config)
    }
}

/// Completes the TLS handshake as the dialler.
async fn dial(
    endpoint: &quinn::Endpoint,
    shared: &Shared,
    addr: SocketAddr,
    crypto: quinn::crypto::rustls::QuicClientConfig,
    verifier: &ServerVerifier,
) -> Result<quinn::Connection, Error> {
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(shared.options.transport(addr.ip(), shared.buffers)?);
    let connecting = endpoint
        .connect_with(config, addr, SERVER_NAME)
        .map_err(|e| Error::Refused { addr, detail: e.to_string() })?;
    let after = shared.options.connect_timeout;
    connecting.await.map_err(|error| judged(addr, after, error, verifier))
}

/// What a failed handshake means, given why the verifier turned the server down, if it did.
fn judged(addr: SocketAddr, after: Duration, error: ConnectionError, verifier: &ServerVerifier) -> Error {
    match verifier.refusal() {
        Some(Refusal::OtherCluster { theirs, ours }) => Error::OtherCluster { addr, theirs, ours },
        Some(Refusal::OtherAuthority) => Error::ForeignToken { addr },
        Some(Refusal::WrongRole { expected, found }) => Error::WrongRole { addr, expected, found },
        Some(Refusal::Bad(detail)) => Error::Untrusted { addr, detail },
        None => refused(addr, after, error),
    }
}

/// Dials without an identity, to get one. Returns the connection with the port that it needs to live.
pub(super) async fn dial_to_join(
    addr: SocketAddr,
    trust: Trust,
    options: Options,
) -> Result<(quinn::Endpoint, quinn::Connection), Error> {
    options.check()?;
    let any: SocketAddr = match addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let (socket, buffers) = options.socket(any)?;
    let failed = |source| Error::Bind { addr: any, source };
    let port = Port::new(socket).map_err(failed)?;
    let endpoint =
        quinn::Endpoint::new_with_abstract_socket(options.endpoint()?, None, port, Arc::new(TokioRuntime))
            .map_err(failed)?;
    let verifier = ServerVerifier::new(trust);
    let crypto = tls::client(None, verifier.clone())?;
    let after = options.connect_timeout;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(options.transport(addr.ip(), buffers)?);
    let connecting = endpoint
        .connect_with(config, addr, SERVER_NAME)
        .map_err(|e| Error::Refused { addr, detail: e.to_string() })?;
    let connection = timeout(after, connecting)
        .await
        .map_err(|_| Error::Unreachable { addr, after })?
        .map_err(|error| judged(addr, after, error, &verifier))?;
    Ok((endpoint, connection))
}

/// What a failed handshake means to whoever dialled.
fn refused(addr: SocketAddr, after: Duration, error: ConnectionError) -> Error {
    match error {
        ConnectionError::TimedOut => Error::Unreachable { addr, after },
        ConnectionError::VersionMismatch => {
            Error::Protocol { addr, detail: "no QUIC version in common".to_owned() }
        }
        ConnectionError::ConnectionClosed(close) => {
            let alert = u64::from(close.error_code).checked_sub(u64::from(TransportErrorCode::crypto(0)));
            match alert {
                Some(ALERT_ALPN) => Error::NotOffered { addr },
                Some(alert) if ALERTS_CERTIFICATE.contains(&alert) => Error::Refused {
                    addr,
                    detail:
                        "it does not accept this node's certificate, which may have expired or be of another \
                             cluster: join again"
                            .to_owned(),
                },
                _ => Error::Refused { addr, detail: close.to_string() },
            }
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == code::PROTOCOL => {
            Error::Protocol { addr, detail: String::from_utf8_lossy(&close.reason).into_owned() }
        }
        other => Error::Refused { addr, detail: super::Closed::from(other).to_string() },
    }
}

/// Waits for the server's greeting, which says that it accepts us, and checks its protocol.
async fn greeting(connection: &quinn::Connection, addr: SocketAddr) -> Result<(), Error> {
    let lost = |error| refused(addr, Duration::ZERO, error);
    let mut stream = connection.accept_uni().await.map_err(lost)?;
    let mut bytes = [0; GREETING_BYTES];
    stream.read_exact(&mut bytes).await.map_err(|error| match error {
        quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error)) => lost(error),
        _ => Error::Protocol { addr, detail: "it sent no greeting".to_owned() },
    })?;
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (magic, oldest, current) = (word(0), word(4), word(8));
    if magic != MAGIC || current < PROTOCOL_OLDEST || oldest > PROTOCOL_CURRENT {
        connection.close(code::PROTOCOL, b"no protocol in common");
        let ours = format!("this build {PROTOCOL_OLDEST} to {PROTOCOL_CURRENT}");
        return Err(Error::Protocol { addr, detail: format!("it {oldest} to {current}, {ours}") });
    }
    Ok(())
}

async fn greet(connection: &quinn::Connection) -> Result<(), Error> {
    let mut bytes = [0; GREETING_BYTES];
    for (at, word) in [MAGIC, PROTOCOL_OLDEST, PROTOCOL_CURRENT].into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
    }
    let mut stream = connection.open_uni().await?;
    stream.write_all(&bytes).await?;
    stream.finish().map_err(|_| Error::StreamFinished)
}

/// The verified certificate's cluster and name.
fn peer_of(connection: &quinn::Connection) -> Option<(String, PeerName)> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    presented(chain.first()?).ok()
}

/// Takes in connections until the endpoint closes.
async fn accept_all(endpoint: quinn::Endpoint, shared: Arc<Shared>, arrived: mpsc::Sender<Incoming>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let joins = Arc::new(Semaphore::new(JOINS_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        if handshakes.available_permits() < HANDSHAKES_MAX / 2 && incoming.may_retry() {
            // An error means that it may not; `may_retry` said that it may.
            let _impossible = incoming.retry();
            continue;
        }
        let arrival =
            Arrival { shared: shared.clone(), joins: joins.clone(), arrived: arrived.clone(), permit };
        // Bounded by the permits; each ends by its deadline or when `accept` takes its result.
        task::spawn("quic-handshake", arrival.complete(incoming));
    }
}

struct Arrival {
    shared: Arc<Shared>,
    joins: Arc<Semaphore>,
    arrived: mpsc::Sender<Incoming>,
    permit: OwnedSemaphorePermit,
}

impl Arrival {
    async fn complete(self, incoming: quinn::Incoming) {
        let from = incoming.remote_address();
        match timeout(self.shared.options.connect_timeout, self.handshake(incoming)).await {
            // An error means that the endpoint is gone, and the connection goes with it.
            Ok(Ok(arrival)) => drop(self.arrived.send(arrival).await),
            Ok(Err(error)) => tracing::debug!(%from, %error, "a connection was turned away"),
            Err(_) => tracing::debug!(%from, "a handshake took too long"),
        }
        drop(self.permit);
    }

    async fn handshake(&self, incoming: quinn::Incoming) -> Result<Incoming, Error> {
        let from = incoming.remote_address();
        let config = Arc::new(self.shared.server_config(from)?);
        let connection = incoming.accept_with(config)?.await?;
        let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let protocol = data.and_then(|data| data.protocol);
        match protocol.as_deref() {
            Some(ALPN) => match peer_of(&connection) {
                Some((_, peer)) => {
                    greet(&connection).await?;
                    Ok(Incoming::Peer(Connection::new(connection, peer)))
                }
                None => {
                    connection
                        .close(code::UNAUTHENTICATED, b"a member must present a certificate: join first");
                    Err(Error::Refused { addr: from, detail: "it presented no certificate".to_owned() })
                }
            },
            Some(ALPN_JOIN) if self.shared.options.accept_join => {
                let Ok(permit) = self.joins.clone().try_acquire_owned() else {
                    connection.close(code::BUSY, b"too many nodes are joining: try again in a moment");
                    return Err(Error::Refused { addr: from, detail: "too many joins at once".to_owned() });
                };
                let identity = self.shared.identity.read().clone();
                Ok(Incoming::Join(Join::new(connection, identity, permit)))
            }
            _ => {
                connection.close(code::PROTOCOL, b"unknown protocol");
                Err(Error::Protocol { addr: from, detail: "unknown protocol".to_owned() })
            }
        }
    }
}
