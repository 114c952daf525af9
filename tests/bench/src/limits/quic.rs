//! One large range between two processes: `mobula_net::bulk`, against a plain quinn stream tuned by hand.
//!
//! Both read in one process into the same warm buffer what another process serves from touched memory.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mobula_net::{
    bulk,
    identity::{Authority, Identity, Role},
    quic::{Connection, Endpoint, Incoming, Options, StreamKind},
};
use mobula_telemetry::task;
use quinn::{
    ClientConfig, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{Peer, own_socket};
use crate::{
    measure::{Result, quantile},
    row::{Place, Probe, Row, Stage, Target},
};

/// What the child is to be; takes a folder and a number of bytes.
pub const ROLE: &str = "peer-quic";
/// The name of the limit.
pub const PLAIN: &str = "quinn stream 1 GiB, tuned by hand";

/// Names of the limits.
pub const ROUND_TRIP: &str = "quinn round trip";
/// Names of the limits.
pub const MESSAGES: &str = "quinn messages there and back, a thousand at once";
/// Bytes of a message: about those of a small call.
const MESSAGE_BYTES: usize = 176;
/// Messages that are on their way at once.
pub const MESSAGE_BATCH: usize = 1000;
/// What a client says first on a stream that is to come back.
const ECHO: [u8; 3] = *b"ech";
/// What a client says first on a stream whose messages are to come back one by one.
const MANY: [u8; 3] = *b"man";
/// Messages travel together up to about this: as between two agents.
const BATCH_BYTES: usize = 56 * 1024;
/// What a client says first on a stream that is to bring the range.
const ALL: [u8; 3] = *b"all";

const PIECE_BYTES: usize = 1 << 20;
const NAME: &str = "plain";
/// In the folder that both processes share.
const CERTIFICATE: &str = "plain.der";

/// GB/s, the two in turns.
pub const PROBE: Probe = Probe {
    rows: &[
        Row::more("agent to agent 1 GiB pull", "GB/s").limit(PLAIN).targets(&[Target::OfLimit(0.8)]),
        Row::more(PLAIN, "GB/s").is_limit(),
    ],
    stage: Stage::Alone,
    run,
};

/// Small messages over a connection of its own.
pub const MESSAGES_PROBE: Probe = Probe {
    rows: &[Row::less(ROUND_TRIP, "µs").is_limit(), Row::more(MESSAGES, "1/s").is_limit()],
    stage: Stage::Alone,
    run: messages,
};

/// The server process, and what it shares with this one.
struct Server {
    folder: tempfile::TempDir,
    authority: Authority,
    bulk: SocketAddr,
    plain: SocketAddr,
    _process: Peer,
    _socket: UnixStream,
}

impl Server {
    fn start(bytes: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::create(&folder.path().join("ca"), "bench")?;
        authority.identity(Role::Agent, "server")?.save(&folder.path().join("server"))?;
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
        std::fs::write(folder.path().join(CERTIFICATE), made.cert.der())?;
        std::fs::write(folder.path().join("plain.pem"), made.signing_key.serialize_pem())?;

        let (here, there) = UnixStream::pair()?;
        let at = folder.path().to_str().ok_or("the temporary folder's name is no text")?;
        let process = Peer::start(&[ROLE, at, &bytes.to_string()], there)?;
        let mut line = String::new();
        BufReader::new(&here).read_line(&mut line)?;
        let (bulk, plain) = line.trim().split_once(' ').ok_or("the server did not start")?;
        let (bulk, plain) = (bulk.parse()?, plain.parse()?);
        Ok(Self { folder, authority, bulk, plain, _process: process, _socket: here })
    }
}

fn run(place: &Place) -> Result<Vec<f64>> {
    let bytes = place.scale.bulk_bytes;
    let server = Server::start(bytes)?;
    let identity = server.authority.identity(Role::Agent, "client")?;
    let mut dest = vec![1; bytes];
    let (mut pulled, mut plain) = (0.0, 0.0);
    place.runtime.block_on(async {
        let (_plain_endpoint, plain_connection) =
            plain_connection(server.plain, server.folder.path()).await?;
        let endpoint = Endpoint::client(identity, Options::default())?;
        let connection = endpoint.connect(server.bulk, Role::Agent).await?;
        // Two of each, in turns; the second counts, when windows are open and pages are mapped.
        for turn in 0..4 {
            let begun = Instant::now();
            let ours = (turn + place.round).is_multiple_of(2);
            if ours {
                bulk::pull(&connection, b"all", &mut dest).await?;
            } else {
                pull_plain(&plain_connection, &mut dest).await?;
            }
            let rate = bytes as f64 / begun.elapsed().as_secs_f64() / 1e9;
            *(if ours { &mut pulled } else { &mut plain }) = rate;
            check(&dest)?;
            dest.fill(1);
        }
        Result::Ok(())
    })?;
    Ok(vec![pulled, plain])
}

fn messages(place: &Place) -> Result<Vec<f64>> {
    let server = Server::start(0)?;
    let window = place.scale.window;
    // On a thread of the runtime, where what arrives is seen without waking another.
    let measured = place.runtime.spawn(async move {
        let (_endpoint, connection) = plain_connection(server.plain, server.folder.path()).await?;
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(&ECHO).await?;
        let mut one = [1; MESSAGE_BYTES];
        let mut all = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < window {
            let start = Instant::now();
            send.write_all(&one).await?;
            receive.read_exact(&mut one).await?;
            all.push(start.elapsed().as_secs_f64());
        }
        all.sort_by(f64::total_cmp);
        send.finish()?;
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(&MANY).await?;
        let (begun, mut batches) = (Instant::now(), 0);
        while begun.elapsed() < window {
            // Both ways at once: neither side holds a whole batch back.
            let sending = async {
                let mut batch = Vec::new();
                for _ in 0..MESSAGE_BATCH {
                    add(&mut batch, &one);
                    if batch.len() >= BATCH_BYTES {
                        send.write_all(&batch).await?;
                        batch.clear();
                    }
                }
                Result::Ok(send.write_all(&batch).await?)
            };
            let receiving = async {
                let (mut gathered, mut got) = (Vec::new(), Vec::with_capacity(MESSAGE_BATCH));
                while got.len() < MESSAGE_BATCH {
                    let chunk = receive.read_chunk(usize::MAX, true).await?.ok_or("the echo ended")?;
                    gathered.extend_from_slice(&chunk.bytes);
                    take(&mut gathered, |message| got.push(Box::<[u8]>::from(message)));
                }
                Result::Ok(got)
            };
            let ((), got) = tokio::try_join!(sending, receiving)?;
            if got.iter().any(|message| **message != one) {
                return Err("the echo is another".into());
            }
            batches += 1;
        }
        let rate = f64::from(batches) * MESSAGE_BATCH as f64 / begun.elapsed().as_secs_f64();
        Result::Ok(vec![quantile(&all, 0.5) * 1e6, rate])
    });
    place.runtime.block_on(measured)?
}

/// Adds a message behind its length.
fn add(batch: &mut Vec<u8>, message: &[u8]) {
    batch.extend_from_slice(&(message.len() as u32).to_le_bytes());
    batch.extend_from_slice(message);
}

/// Takes whole messages off the front.
fn take(gathered: &mut Vec<u8>, mut with: impl FnMut(&[u8])) {
    let mut rest = &gathered[..];
    while let Some((length, behind)) = rest.split_first_chunk::<4>()
        && let Some((message, behind)) = behind.split_at_checked(u32::from_le_bytes(*length) as usize)
    {
        with(message);
        rest = behind;
    }
    let left = rest.len();
    gathered.drain(..gathered.len() - left);
}

/// Sends back message by message, in batches of what has arrived.
async fn echo_many(send: &mut quinn::SendStream, receive: &mut quinn::RecvStream) -> Result<()> {
    let (mut gathered, mut batch) = (Vec::new(), Vec::new());
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        gathered.extend_from_slice(&chunk.bytes);
        // Each on its own, as if it were for somebody else.
        let mut messages = Vec::new();
        take(&mut gathered, |message| messages.push(Box::<[u8]>::from(message)));
        for message in messages {
            add(&mut batch, &message);
            if batch.len() >= BATCH_BYTES {
                send.write_all(&batch).await?;
                batch.clear();
            }
        }
        send.write_all(&batch).await?;
        batch.clear();
    }
    Ok(())
}

fn check(dest: &[u8]) -> Result<()> {
    let wrong = dest.iter().enumerate().step_by(4093).find(|(at, byte)| **byte != pattern(*at));
    wrong.map_or(Ok(()), |(at, _)| Err(format!("byte {at} is wrong").into()))
}

fn pattern(at: usize) -> u8 {
    (at % 251) as u8 + 1
}

/// The server process: says its two addresses and runs until its socket ends.
pub async fn serve(folder: &Path, bytes: usize) -> Result<()> {
    let range = Bytes::from((0..bytes).map(pattern).collect::<Vec<_>>());
    let identity = Identity::load(&folder.join("server"))?;
    let plain = plain_endpoint(Some(folder))?;
    let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), identity, Options::default())?;
    let mut socket = own_socket()?;
    writeln!(socket, "{} {}", endpoint.local_addr()?, plain.local_addr()?)?;
    task::spawn("bench-plain", serve_plain(plain, range.clone()));
    task::spawn("bench-bulk", async move {
        while let Some(Incoming::Peer(connection)) = endpoint.accept().await {
            task::spawn("bench-bulk-connection", serve_bulk(connection, range.clone()));
        }
    });
    tokio::task::spawn_blocking(move || std::io::copy(&mut socket, &mut std::io::sink())).await??;
    Ok(())
}

async fn serve_bulk(connection: Connection, range: Bytes) {
    while let Ok((StreamKind::Bulk, sender, receiver)) = connection.accept_stream().await {
        let range = range.clone();
        task::spawn("bench-bulk-stream", async move {
            bulk::serve((sender, receiver), async |_request| Ok(range)).await
        });
    }
}

async fn serve_plain(endpoint: quinn::Endpoint, range: Bytes) -> Result<()> {
    while let Some(incoming) = endpoint.accept().await {
        let connection = incoming.await?;
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            let mut wanted = ALL;
            receive.read_exact(&mut wanted).await?;
            if wanted == ECHO {
                while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
                    send.write_chunk(chunk.bytes).await?;
                }
                continue;
            }
            if wanted == MANY {
                echo_many(&mut send, &mut receive).await?;
                continue;
            }
            for piece in range.chunks(PIECE_BYTES) {
                send.write_chunk(range.slice_ref(piece)).await?;
            }
            send.finish()?;
        }
    }
    Ok(())
}

async fn pull_plain(connection: &quinn::Connection, dest: &mut [u8]) -> Result<()> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&ALL).await?;
    send.finish()?;
    let mut filled = 0;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        let space = dest.get_mut(filled..filled + chunk.bytes.len()).ok_or("the plain stream is too long")?;
        space.copy_from_slice(&chunk.bytes);
        filled += chunk.bytes.len();
    }
    if filled == dest.len() { Ok(()) } else { Err("the plain stream ended early".into()) }
}

/// What a careful author would set by hand on loopback.
fn plain_transport() -> Arc<TransportConfig> {
    let mut congestion = CubicConfig::default();
    congestion.initial_window(4 << 20);
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(65_000)
        .min_mtu(16_000)
        .mtu_discovery_config(None)
        .enable_segmentation_offload(false)
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(8 << 20))
        .send_window(32 << 20)
        .congestion_controller_factory(Arc::new(congestion))
        .keep_alive_interval(Some(Duration::from_secs(2)));
    Arc::new(transport)
}

/// A server's where a folder with its certificate is given.
fn plain_endpoint(server: Option<&Path>) -> Result<quinn::Endpoint> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).is_err() {
        socket.set_recv_buffer_size(16 << 20)?;
    }
    if rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, 4 << 20).is_err() {
        socket.set_send_buffer_size(4 << 20)?;
    }
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(65_507)?;
    let server = server.map(plain_server).transpose()?;
    Ok(quinn::Endpoint::new(config, server, socket.into(), Arc::new(TokioRuntime))?)
}

fn plain_server(folder: &Path) -> Result<ServerConfig> {
    let key = PrivateKeyDer::from_pem_file(folder.join("plain.pem"))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate(folder)?], key)?;
    tls.alpn_protocols = vec![NAME.into()];
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(plain_transport());
    Ok(server)
}

fn certificate(folder: &Path) -> Result<CertificateDer<'static>> {
    Ok(std::fs::read(folder.join(CERTIFICATE))?.into())
}

async fn plain_connection(addr: SocketAddr, folder: &Path) -> Result<(quinn::Endpoint, quinn::Connection)> {
    let endpoint = plain_endpoint(None)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate(folder)?)?;
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![NAME.into()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(plain_transport());
    let connection = endpoint.connect_with(config, addr, NAME)?.await?;
    Ok((endpoint, connection))
}

/// The same cipher as Mobula's.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}
