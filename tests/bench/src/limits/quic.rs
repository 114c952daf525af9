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
    quic::{Connection, Endpoint, Incoming, Mtu, Options, StreamKind},
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
/// Names of the limits: a stream of 1 GiB, 64 MiB and 1 MiB, with the largest packets that loopback carries.
pub const PLAIN: &str = "quinn stream 1 GiB, tuned by hand, MTU 65000";
/// Names of the limits.
pub const PLAIN_64_MIB: &str = "quinn stream 64 MiB, tuned by hand, MTU 65000";
/// Names of the limits.
pub const PLAIN_1_MIB: &str = "quinn stream 1 MiB, tuned by hand, MTU 65000";
/// Names of the limits: the same with packets as on Ethernet.
pub const ETHERNET: &str = "quinn stream 1 GiB, tuned by hand, MTU 1452";
/// Names of the limits.
pub const ETHERNET_64_MIB: &str = "quinn stream 64 MiB, tuned by hand, MTU 1452";
/// Names of the limits.
pub const ETHERNET_1_MIB: &str = "quinn stream 1 MiB, tuned by hand, MTU 1452";
/// Names of the limits: all that a broadcast to [`BROADCAST_NODES`] has to move.
pub const BROADCAST: &str = "1 GiB eight times through a quinn stream, tuned by hand, MTU 65000";
/// How many nodes a broadcast goes to.
pub const BROADCAST_NODES: usize = 8;
/// UDP payload in bytes, as rows' names say it: an Ethernet packet without the headers of IPv6 and UDP.
pub const ETHERNET_MTU: u16 = 1452;
/// The same for what loopback carries.
const LOOPBACK_MTU: u16 = 65_000;
/// Small transfers of one measurement are so many bytes together.
const TOGETHER_BYTES: usize = 256 << 20;

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

/// As between two agents: the size that was the fastest of those tried.
const PIECE_BYTES: usize = 256 << 10;
const NAME: &str = "plain";
/// In the folder that both processes share.
const CERTIFICATE: &str = "plain.der";

/// GB/s, the two in turns.
pub const PROBE: Probe = Probe {
    rows: &[
        Row::more("agent to agent 1 GiB pull, MTU 65000", "GB/s")
            .limit(PLAIN)
            .targets(&[Target::OfLimit(0.8)]),
        Row::more(PLAIN, "GB/s").is_limit(),
    ],
    stage: Stage::Alone,
    run,
};

/// GB/s and seconds, of plain streams alone.
pub const PLAIN_PROBE: Probe = Probe {
    rows: &[
        Row::more(PLAIN, "GB/s").is_limit(),
        Row::more(PLAIN_64_MIB, "GB/s").is_limit(),
        Row::more(PLAIN_1_MIB, "GB/s").is_limit(),
        Row::less(BROADCAST, "s").is_limit(),
    ],
    stage: Stage::Alone,
    run: plain,
};

/// GB/s with packets as on Ethernet, the two in turns for each size.
pub const ETHERNET_PROBE: Probe = Probe {
    rows: &[
        Row::more("agent to agent 1 GiB pull, MTU 1452", "GB/s")
            .limit(ETHERNET)
            .targets(&[Target::OfLimit(0.8)]),
        Row::more(ETHERNET, "GB/s").is_limit(),
        Row::more("agent to agent 64 MiB pull, MTU 1452", "GB/s")
            .limit(ETHERNET_64_MIB)
            .targets(&[Target::OfLimit(0.8)]),
        Row::more(ETHERNET_64_MIB, "GB/s").is_limit(),
        Row::more("agent to agent 1 MiB pull, MTU 1452", "GB/s")
            .limit(ETHERNET_1_MIB)
            .targets(&[Target::OfLimit(0.8)]),
        Row::more(ETHERNET_1_MIB, "GB/s").is_limit(),
    ],
    stage: Stage::Alone,
    run: ethernet,
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
    /// `mtu` is that of both servers; `None` leaves it at what suits loopback.
    fn start(bytes: usize, mtu: Option<u16>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::create(&folder.path().join("ca"), "bench")?;
        authority.identity(Role::Agent, "server")?.save(&folder.path().join("server"))?;
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
        std::fs::write(folder.path().join(CERTIFICATE), made.cert.der())?;
        std::fs::write(folder.path().join("plain.pem"), made.signing_key.serialize_pem())?;

        let (here, there) = UnixStream::pair()?;
        let at = folder.path().to_str().ok_or("the temporary folder's name is no text")?;
        let process = Peer::start(&[ROLE, at, &bytes.to_string(), &mtu.unwrap_or(0).to_string()], there)?;
        let mut line = String::new();
        BufReader::new(&here).read_line(&mut line)?;
        let (bulk, plain) = line.trim().split_once(' ').ok_or("the server did not start")?;
        let (bulk, plain) = (bulk.parse()?, plain.parse()?);
        Ok(Self { folder, authority, bulk, plain, _process: process, _socket: here })
    }
}

/// Both ways to pull from one server.
struct Lines {
    _endpoints: (Endpoint, quinn::Endpoint),
    ours: Connection,
    plain: quinn::Connection,
}

impl Lines {
    async fn open(server: &Server, mtu: Option<u16>) -> Result<Self> {
        let (plain_endpoint, plain) = plain_connection(server.plain, server.folder.path(), mtu).await?;
        let identity = server.authority.identity(Role::Agent, "client")?;
        let endpoint = Endpoint::client(identity, options(mtu))?;
        let ours = endpoint.connect(server.bulk, Role::Agent).await?;
        let named = mtu.unwrap_or(LOOPBACK_MTU);
        for (whose, used) in [("our", ours.stats()), ("the plain", plain.stats())] {
            let used = used.path.current_mtu;
            if used != named {
                return Err(format!("{whose} connection has an MTU of {used}, not {named}").into());
            }
        }
        Ok(Self { _endpoints: (endpoint, plain_endpoint), ours, plain })
    }

    /// GB/s, of as many pulls as make a measurement.
    async fn rate(&self, ours: bool, dest: &mut [u8]) -> Result<f64> {
        let times = (TOGETHER_BYTES / dest.len()).max(1);
        dest.fill(1);
        let length = (dest.len() as u64).to_le_bytes();
        let begun = Instant::now();
        for _ in 0..times {
            if ours {
                bulk::pull(&self.ours, &length, dest, bulk::STALL_TIMEOUT, &mut ()).await?;
            } else {
                pull_plain(&self.plain, dest).await?;
            }
        }
        let rate = (dest.len() * times) as f64 / begun.elapsed().as_secs_f64() / 1e9;
        check(dest)?;
        Ok(rate)
    }

    /// Ours and the plain one, in turns: the second of each counts, when windows are open and pages are mapped.
    async fn both(&self, place: &Place, dest: &mut [u8]) -> Result<[f64; 2]> {
        let mut rates = [0.0; 2];
        for turn in 0..4 {
            let ours = (turn + place.round).is_multiple_of(2);
            rates[usize::from(!ours)] = self.rate(ours, dest).await?;
        }
        Ok(rates)
    }
}

fn options(mtu: Option<u16>) -> Options {
    let mtu = mtu.map_or(Mtu::Auto, Mtu::Fixed);
    Options { mtu, ..Options::default() }
}

fn run(place: &Place) -> Result<Vec<f64>> {
    let bytes = place.scale.bulk_bytes;
    let server = Server::start(bytes, None)?;
    let mut dest = vec![1; bytes];
    place.runtime.block_on(async {
        let lines = Lines::open(&server, None).await?;
        Ok(lines.both(place, &mut dest).await?.to_vec())
    })
}

fn plain(place: &Place) -> Result<Vec<f64>> {
    let bytes = place.scale.bulk_bytes;
    let server = Server::start(bytes, None)?;
    let mut dest = vec![1; bytes];
    place.runtime.block_on(async {
        let lines = Lines::open(&server, None).await?;
        let mut rates = Vec::new();
        for size in [bytes, bytes / 16, bytes / 1024] {
            lines.rate(false, &mut dest[..size]).await?;
            rates.push(lines.rate(false, &mut dest[..size]).await?);
        }
        rates.push((BROADCAST_NODES * bytes) as f64 / 1e9 / rates[0]);
        Ok(rates)
    })
}

fn ethernet(place: &Place) -> Result<Vec<f64>> {
    let bytes = place.scale.bulk_bytes;
    let server = Server::start(bytes, Some(ETHERNET_MTU))?;
    let mut dest = vec![1; bytes];
    place.runtime.block_on(async {
        let lines = Lines::open(&server, Some(ETHERNET_MTU)).await?;
        let mut rates = Vec::new();
        for size in [bytes, bytes / 16, bytes / 1024] {
            rates.extend(lines.both(place, &mut dest[..size]).await?);
        }
        Ok(rates)
    })
}

fn messages(place: &Place) -> Result<Vec<f64>> {
    let server = Server::start(0, None)?;
    let window = place.scale.window;
    // On a thread of the runtime, where what arrives is seen without waking another.
    let measured = place.runtime.spawn(async move {
        let (_endpoint, connection) = plain_connection(server.plain, server.folder.path(), None).await?;
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
pub async fn serve(folder: &Path, bytes: usize, mtu: u16) -> Result<()> {
    let mtu = (mtu > 0).then_some(mtu);
    let range = Bytes::from((0..bytes).map(pattern).collect::<Vec<_>>());
    let identity = Identity::load(&folder.join("server"))?;
    let plain = plain_endpoint(Some(folder), mtu)?;
    let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), identity, options(mtu))?;
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
            let mut sent = 0;
            let answered = bulk::serve(
                (sender, receiver),
                async |request| {
                    let absent = || bulk::Refusal::Absent("a length is wanted".to_owned());
                    let wanted = length(&request).ok_or_else(absent)?.min(range.len());
                    Ok(bulk::Answer::Range(Vec::new(), bulk::Range::whole(range.slice(..wanted), 0)))
                },
                bulk::STALL_TIMEOUT,
                &mut sent,
            );
            answered.await
        });
    }
}

/// What a client wants: so many bytes from the beginning.
fn length(said: &[u8]) -> Option<usize> {
    said.try_into().ok().map(u64::from_le_bytes)?.try_into().ok()
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
            let mut wanted = [0; 8];
            receive.read_exact(&mut wanted).await?;
            let wanted =
                length(&wanted).and_then(|wanted| range.get(..wanted)).ok_or("too much is wanted")?;
            for piece in wanted.chunks(PIECE_BYTES) {
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
    send.write_all(&(dest.len() as u64).to_le_bytes()).await?;
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
fn plain_transport(mtu: Option<u16>) -> Arc<TransportConfig> {
    let mut congestion = CubicConfig::default();
    congestion.initial_window(4 << 20);
    let mut transport = TransportConfig::default();
    transport
        .mtu_discovery_config(None)
        // Half of the socket's buffer, as between agents on loopback: more is lost there.
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(8 << 20))
        .send_window(32 << 20)
        .congestion_controller_factory(Arc::new(congestion))
        .keep_alive_interval(Some(Duration::from_secs(2)));
    match mtu {
        Some(mtu) => transport.initial_mtu(mtu),
        None => transport.initial_mtu(65_000).min_mtu(16_000).enable_segmentation_offload(false),
    };
    Arc::new(transport)
}

/// A server's where a folder with its certificate is given.
fn plain_endpoint(server: Option<&Path>, mtu: Option<u16>) -> Result<quinn::Endpoint> {
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
    let server = server.map(|folder| plain_server(folder, mtu)).transpose()?;
    Ok(quinn::Endpoint::new(config, server, socket.into(), Arc::new(TokioRuntime))?)
}

fn plain_server(folder: &Path, mtu: Option<u16>) -> Result<ServerConfig> {
    let key = PrivateKeyDer::from_pem_file(folder.join("plain.pem"))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate(folder)?], key)?;
    tls.alpn_protocols = vec![NAME.into()];
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(plain_transport(mtu));
    Ok(server)
}

fn certificate(folder: &Path) -> Result<CertificateDer<'static>> {
    Ok(std::fs::read(folder.join(CERTIFICATE))?.into())
}

async fn plain_connection(
    addr: SocketAddr,
    folder: &Path,
    mtu: Option<u16>,
) -> Result<(quinn::Endpoint, quinn::Connection)> {
    let endpoint = plain_endpoint(None, mtu)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate(folder)?)?;
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![NAME.into()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(plain_transport(mtu));
    let connection = endpoint.connect_with(config, addr, NAME)?.await?;
    Ok((endpoint, connection))
}

/// The same cipher as Mobula's.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}
