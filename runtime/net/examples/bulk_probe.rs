//! How fast `bulk::pull` is, against a plain quinn stream tuned by hand, between two processes on loopback.
//!
//! `cargo run --release -p mobula-net --example bulk_probe -- [rounds] [MiB]`
//!
//! The program starts itself again as the server. Each round pulls the same range, of touched and non-zero bytes,
//! once each way into the same warm buffer, and the order alternates. The plain stream reads in order and copies
//! into the buffer, so both do the same work. The last rows split one range over several streams, and over two
//! connections.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
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
use rkyv::util::AlignedVec;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio::runtime::Runtime;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const MIB: usize = 1 << 20;
const SERVE: &str = "--serve";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if arguments.get(1).is_some_and(|a| a == SERVE) {
        let [_, _, folder, mib] = &arguments[..] else { return Err("--serve FOLDER MIB".into()) };
        return runtime.block_on(serve(folder, mib.parse::<usize>()? * MIB));
    }
    let rounds = arguments.get(1).map_or(Ok(7), |a| a.parse())?;
    let mib = arguments.get(2).map_or(Ok(1024), |a| a.parse())?;
    measure(&runtime, rounds, mib)
}

/// The server process: prints the two addresses and runs until its standard input ends.
async fn serve(folder: &str, bytes: usize) -> Result<()> {
    let range = Bytes::from((0..bytes).map(|i| (i % 251) as u8 + 1).collect::<Vec<_>>());
    let identity = Identity::load(folder.as_ref())?;
    let plain = plain_endpoint(true)?;
    let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), identity, Options::default())?;
    println!("{} {}", endpoint.local_addr()?, plain.local_addr()?);
    std::io::stdout().flush()?;

    let whole = range.clone();
    task::spawn("probe-plain", async move {
        while let Some(incoming) = plain.accept().await {
            let (connection, range) = (incoming.await?, whole.clone());
            task::spawn("probe-plain-connection", async move {
                while let Ok((mut send, _recv)) = connection.accept_bi().await {
                    for piece in range.chunks(MIB) {
                        send.write_chunk(range.slice_ref(piece)).await?;
                    }
                    send.finish()?;
                }
                Result::Ok(())
            });
        }
        Result::Ok(())
    });
    task::spawn("probe-bulk", async move {
        while let Some(Incoming::Peer(connection)) = endpoint.accept().await {
            let range = range.clone();
            task::spawn("probe-bulk-connection", async move {
                while let Ok((StreamKind::Bulk, sender, receiver)) = connection.accept_stream().await {
                    let range = range.clone();
                    task::spawn("probe-bulk-stream", async move {
                        bulk::serve((sender, receiver), async |request: AlignedVec| part(&range, &request))
                            .await
                    });
                }
            });
        }
    });
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop)).await?;
    Ok(())
}

fn part(range: &Bytes, request: &[u8]) -> std::result::Result<Bytes, String> {
    let text = str::from_utf8(request).map_err(|e| e.to_string())?;
    let (from, to) = text.split_once("..").ok_or("a request is FROM..TO")?;
    let number = |digits: &str| digits.parse::<usize>().map_err(|e| e.to_string());
    Ok(range.slice(number(from)?..number(to)?))
}

fn measure(runtime: &Runtime, rounds: usize, mib: usize) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("mobula-bulk-probe-{}", std::process::id()));
    let outcome = measure_in(runtime, rounds, mib, &folder);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn measure_in(runtime: &Runtime, rounds: usize, mib: usize, folder: &std::path::Path) -> Result<()> {
    let authority = Authority::create(&folder.join("ca"), "probe")?;
    authority.identity(Role::Agent, "server")?.save(&folder.join("server"))?;
    let (mut server, addr, plain_addr) = start_server(&folder.join("server"), mib)?;
    let mut dest = vec![1; mib * MIB];
    let mut rows: Vec<(&str, Vec<f64>)> =
        ["plain quinn", "bulk::pull", "4 streams", "2 connections"].map(|name| (name, Vec::new())).into();
    runtime.block_on(async {
        let identity = authority.identity(Role::Agent, "client")?;
        let plain = plain_connection(plain_addr).await?;
        let endpoint = Endpoint::client(identity, Options::default())?;
        println!("socket buffers: {:?}", endpoint.buffers());
        let one = endpoint.connect(addr, Role::Agent).await?;
        let two = endpoint.connect(addr, Role::Agent).await?;
        for round in 0..=rounds {
            let mut order = [0, 1, 2, 3];
            order.rotate_left(round % 4);
            for way in order {
                let begun = Instant::now();
                match way {
                    0 => pull_plain(&plain.1, &mut dest).await?,
                    1 => pull_split(&[&one], 1, &mut dest).await?,
                    2 => pull_split(&[&one], 4, &mut dest).await?,
                    _ => pull_split(&[&one, &two], 2, &mut dest).await?,
                }
                let rate = dest.len() as f64 / begun.elapsed().as_secs_f64() / 1e9;
                check(&dest)?;
                // The first round warms up.
                if round > 0 {
                    rows[way].1.push(rate);
                }
                dest.fill(1);
            }
        }
        let path = one.stats().path;
        println!(
            "bulk connection: mtu {}, lost packets {}, black holes {}, congestion window {}",
            path.current_mtu, path.lost_packets, path.black_holes_detected, path.cwnd
        );
        Result::Ok(())
    })?;
    drop(server.stdin.take());
    server.wait()?;
    let median = |rates: &[f64]| rates[rates.len() / 2];
    for (_, rates) in &mut rows {
        rates.sort_by(f64::total_cmp);
    }
    let base = median(&rows[0].1);
    for (name, rates) in &rows {
        let (least, most) = (rates[0], rates[rates.len() - 1]);
        let middle = median(rates);
        println!(
            "{name:14} {middle:5.2} GB/s (min {least:.2}, max {most:.2}), {:.2} of plain",
            middle / base
        );
    }
    Ok(())
}

fn start_server(folder: &std::path::Path, mib: usize) -> Result<(Child, SocketAddr, SocketAddr)> {
    let mut server = Command::new(std::env::current_exe()?)
        .arg(SERVE)
        .arg(folder)
        .arg(mib.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let (bulk, plain) = line.trim().split_once(' ').ok_or("the server did not start")?;
    Ok((server, bulk.parse()?, plain.parse()?))
}

fn check(dest: &[u8]) -> Result<()> {
    let wrong = dest.iter().enumerate().step_by(4093).find(|(i, b)| **b != (i % 251) as u8 + 1);
    wrong.map_or(Ok(()), |(i, _)| Err(format!("byte {i} is wrong").into()))
}

async fn pull_split(connections: &[&Connection], parts: usize, dest: &mut [u8]) -> Result<()> {
    let each = dest.len().div_ceil(parts);
    let pulls = dest.chunks_mut(each).enumerate().map(|(i, part)| {
        let connection = connections[i % connections.len()];
        let request = format!("{}..{}", i * each, i * each + part.len());
        async move { bulk::pull(connection, request.as_bytes(), part).await }
    });
    for result in futures_util::future::join_all(pulls).await {
        result?;
    }
    Ok(())
}

async fn pull_plain(connection: &quinn::Connection, dest: &mut [u8]) -> Result<()> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(b"all").await?;
    let mut filled = 0;
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await? {
        dest[filled..filled + chunk.bytes.len()].copy_from_slice(&chunk.bytes);
        filled += chunk.bytes.len();
    }
    if filled == dest.len() { Ok(()) } else { Err("the plain stream ended early".into()) }
}

/// What a careful author would set by hand.
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

fn plain_endpoint(serving: bool) -> Result<quinn::Endpoint> {
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
    let server = match serving {
        true => {
            let made = rcgen::generate_simple_self_signed(vec!["plain".to_owned()])?;
            let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes())
                .map_err(|e| format!("{e:?}"))?;
            let mut tls = rustls::ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)?;
            tls.alpn_protocols = vec![b"plain".to_vec()];
            let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
            server.transport_config(plain_transport());
            Some(server)
        }
        false => None,
    };
    Ok(quinn::Endpoint::new(config, server, socket.into(), Arc::new(TokioRuntime))?)
}

async fn plain_connection(addr: SocketAddr) -> Result<(quinn::Endpoint, quinn::Connection)> {
    let endpoint = plain_endpoint(false)?;
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"plain".to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(plain_transport());
    let connection = endpoint.connect_with(config, addr, "plain")?.await?;
    Ok((endpoint, connection))
}

/// The same cipher as Mobula's.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

/// The plain stream measures data, not trust: its handshake is outside the measurement.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
