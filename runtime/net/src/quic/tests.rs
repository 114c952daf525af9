use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mobula_proto::wire::{self, MESSAGE_BYTES_MAX};
use mobula_telemetry::task;
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;

use super::{
    testing::{ANY, Cluster, Pair},
    tls::{ServerVerifier, Trust},
    *,
};
use crate::identity::{Identity, JoinToken, Role, SecretHash};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_know_each_other_and_streams_keep_their_kind() {
    let pair = Pair::new().await;
    assert_eq!(pair.dialled.peer().to_string(), "head head");
    assert_eq!(pair.accepted.peer().to_string(), "agent node-1");
    // Either end may open streams.
    for (opener, other) in [(&pair.dialled, &pair.accepted), (&pair.accepted, &pair.dialled)] {
        for kind in [StreamKind::Control, StreamKind::Relay, StreamKind::Bulk] {
            let (mut to, mut from) = opener.open(kind).await.unwrap();
            let (seen, mut back, mut there) = Pair::soon(other.accept_stream()).await.unwrap();
            assert_eq!(seen, kind);
            let large = vec![kind as u8; 300_000];
            to.send_all([&b"one"[..], b"", &large]).await.unwrap();
            to.finish().await.unwrap();
            assert_eq!(&there.recv().await.unwrap().unwrap()[..], b"one");
            assert!(there.recv().await.unwrap().unwrap().is_empty());
            let message = there.recv().await.unwrap().unwrap();
            assert_eq!(&message[..], &large[..]);
            assert!((message.as_ptr() as usize).is_multiple_of(16));
            assert!(there.recv().await.unwrap().is_none());
            back.send(b"heard").await.unwrap();
            assert_eq!(&Pair::soon(from.recv()).await.unwrap().unwrap()[..], b"heard");
        }
    }
    pair.dialled.close("bye");
    assert_eq!(Pair::soon(pair.accepted.closed()).await, Closed::ByPeer { reason: "bye".to_owned() });
    assert_eq!(pair.dialled.closed().await, Closed::Here);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_leave_together() {
    let pair = Pair::new().await;
    let (mut to, _) = pair.dialled.open(StreamKind::Control).await.unwrap();
    let (_, _, mut there) = Pair::soon(pair.accepted.accept_stream()).await.unwrap();
    to.send(b"first").await.unwrap();
    there.recv().await.unwrap();
    let before = pair.dialled.stats().frame_tx.stream;
    let bodies = vec![&b"small"[..]; 1000];
    to.send_all(bodies).await.unwrap();
    for _ in 0..1000 {
        Pair::soon(there.recv()).await.unwrap().unwrap();
    }
    let frames = pair.dialled.stats().frame_tx.stream - before;
    assert!(frames <= 2, "{frames} QUIC frames for a thousand messages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_packet_size_works_on_loopback() {
    let cluster = Cluster::new();
    for mtu in [Mtu::Fixed(1200), Mtu::Fixed(6500), Mtu::Fixed(9000), Mtu::Fixed(65_000), Mtu::Auto] {
        let end = |name| {
            let identity = cluster.authority.identity(Role::Agent, name).unwrap();
            Endpoint::bind(ANY.into(), identity, Options { mtu, ..Options::default() }).unwrap()
        };
        let (a, b) = (end("a"), end("b"));
        let addr = b.local_addr().unwrap();
        let (dialled, accepted) =
            Pair::soon(async { tokio::join!(a.connect(addr, Role::Agent), b.accept()) }).await;
        let (mut to, _) = dialled.unwrap().open(StreamKind::Relay).await.unwrap();
        let Some(Incoming::Peer(accepted)) = accepted else { panic!("{accepted:?}") };
        let (_, _, mut there) = Pair::soon(accepted.accept_stream()).await.unwrap();
        if let Mtu::Fixed(bytes) = mtu {
            assert_eq!(accepted.stats().path.current_mtu, bytes);
        }
        let body = vec![3; 4 << 20];
        let (sent, got) = Pair::soon(async { tokio::join!(to.send(&body), there.recv()) }).await;
        sent.unwrap();
        assert_eq!(&got.unwrap().unwrap()[..], &body[..], "{mtu:?}");
    }
    for mtu in [0, 1199, 65_001] {
        let identity = cluster.authority.identity(Role::Agent, "c").unwrap();
        let options = Options { mtu: Mtu::Fixed(mtu), ..Options::default() };
        assert!(matches!(
            Endpoint::bind(ANY.into(), identity, options),
            Err(Error::Option { knob: "mtu", .. })
        ));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_message_passes_and_a_longer_one_is_given_back() {
    let pair = Pair::new().await;
    let (mut to, _) = pair.dialled.open(StreamKind::Relay).await.unwrap();
    let (_, _, mut there) = Pair::soon(pair.accepted.accept_stream()).await.unwrap();
    let longest = vec![7; MESSAGE_BYTES_MAX];
    let (sent, got) = Pair::soon(async { tokio::join!(to.send(&longest), there.recv()) }).await;
    sent.unwrap();
    assert_eq!(&got.unwrap().unwrap()[..], &longest[..]);
    let longer = vec![7; MESSAGE_BYTES_MAX + 1];
    assert!(matches!(to.send(&longer).await, Err(Error::TooLong { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_streams_are_typed_errors_and_the_connection_goes_on() {
    let pair = Pair::new().await;
    let header = |bits: u32| bits.to_le_bytes().to_vec();
    let mut over = Vec::new();
    for _ in 0..=MESSAGE_BYTES_MAX / 65_532 {
        over.extend_from_slice(&header(65_532 | 1 << 31));
        over.resize(over.len() + 65_532, 1);
    }
    let cases: [(Vec<u8>, Malformed); 7] = [
        (vec![1, 2], Malformed::Truncated),
        ([header(9), vec![1; 8]].concat(), Malformed::Truncated),
        ([header(2 | 1 << 31), vec![1; 2]].concat(), Malformed::Truncated),
        (header(0xffff), Malformed::FrameTooLong { bytes: 0xffff }),
        (header(1 << 20), Malformed::ReservedBits { header: 1 << 20 }),
        (header(1 << 31), Malformed::EmptyContinuation),
        (over, Malformed::MessageTooLong { limit: MESSAGE_BYTES_MAX }),
    ];
    for (bytes, expected) in cases {
        let (mut to, _) = pair.dialled.open(StreamKind::Control).await.unwrap();
        let (_, _, mut there) = Pair::soon(pair.accepted.accept_stream()).await.unwrap();
        let sending = task::spawn("test-send", async move {
            // Fails once the receiver is gone.
            let _over = to.stream().write_all(&bytes).await;
            let _over = to.finish().await;
            to
        });
        match Pair::soon(there.recv()).await {
            Err(Error::Malformed(found)) => assert_eq!(found, expected),
            other => panic!("{expected:?}: {other:?}"),
        }
        drop(there);
        Pair::soon(sending).await.unwrap();
    }
    let (mut send, _recv) = pair.dialled.open_raw().await;
    send.write_all(&[9]).await.unwrap();
    match Pair::soon(pair.accepted.accept_stream()).await {
        Err(Error::Malformed(found)) => assert_eq!(found, Malformed::StreamKind(9)),
        other => panic!("{other:?}"),
    }
    let (mut to, _) = pair.dialled.open(StreamKind::Control).await.unwrap();
    to.send(b"still here").await.unwrap();
    let (_, _, mut there) = Pair::soon(pair.accepted.accept_stream()).await.unwrap();
    assert_eq!(&Pair::soon(there.recv()).await.unwrap().unwrap()[..], b"still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused_with_the_cure() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (_head, addr) = theirs.endpoint(Role::Head, "head");
    let (agent, _) = ours.endpoint(Role::Agent, "node-1");
    let error = Pair::soon(agent.connect(addr, Role::Head)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::OtherCluster { .. }), "{text}");
    assert!(text.contains(theirs.authority.cluster_id()) && text.contains(ours.authority.cluster_id()));
    assert!(text.contains("join again with a token"), "{text}");
}

/// Dials with a hand-made configuration, as a hostile peer may.
async fn dial_by_hand(
    addr: SocketAddr,
    identity: Option<&Identity>,
    trust: Trust,
    alpn: &[u8],
) -> quinn::Connection {
    let verifier = ServerVerifier::new(trust);
    let config = tls::client_with_alpn(identity, verifier, alpn).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(config));
    let buffers = Buffers { receive_bytes: 1 << 20, send_bytes: 1 << 20 };
    config.transport_config(Options::default().transport(addr.ip(), buffers).unwrap());
    let endpoint = quinn::Endpoint::client(ANY.into()).unwrap();
    endpoint.connect_with(config, addr, "mobula").unwrap().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_foreigners_reach_nothing() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    for role in [Role::Head, Role::Agent] {
        let (server, addr) = ours.endpoint(role, "n");
        let server = Arc::new(server);
        let member = ours.authority.identity(Role::Agent, "x").unwrap();
        let trust = Trust::Member { ca: member.ca().clone(), role };
        // A member's protocol without a certificate, and with another cluster's.
        let foreign = theirs.authority.identity(Role::Agent, "x").unwrap();
        for identity in [None, Some(&foreign)] {
            let connection = Pair::soon(dial_by_hand(addr, identity, trust.clone(), ALPN)).await;
            let closed = Pair::soon(connection.closed()).await.to_string();
            assert!(closed.contains("certificate") || closed.contains("alert"), "{closed}");
        }
        // None of them was let in: the next to arrive is a member.
        let (agent, _) = ours.endpoint(Role::Agent, "node-1");
        let accepting = {
            let server = server.clone();
            task::spawn("test-accept", async move { server.accept().await })
        };
        Pair::soon(agent.connect(addr, role)).await.unwrap();
        let Some(Incoming::Peer(peer)) = Pair::soon(accepting).await.unwrap() else { panic!("no peer") };
        assert_eq!(peer.peer().name, "node-1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_role_and_an_ended_certificate_are_named() {
    let cluster = Cluster::new();
    let (_node, addr) = cluster.endpoint(Role::Agent, "node-1");
    let (other, _) = cluster.endpoint(Role::Agent, "node-2");
    let error = Pair::soon(other.connect(addr, Role::Head)).await.unwrap_err();
    assert!(matches!(error, Error::WrongRole { expected: Role::Head, found: Role::Agent, .. }), "{error}");

    // A certificate that was good half an hour ago.
    let then = SystemTime::now() - Duration::from_mins(30);
    let request = crate::identity::Request::new().unwrap();
    let ca = &cluster.authority;
    let cert = ca.issue_at(request.csr(), Role::Agent, "brief", Duration::from_mins(1), then).unwrap();
    let then = then.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let brief = request.accept_at(&cert, ca.ca_pem(), UnixTime::since_unix_epoch(then));
    let endpoint = Endpoint::bind(ANY.into(), brief, Options::default()).unwrap();
    let error = Pair::soon(endpoint.connect(addr, Role::Agent)).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains("expired"), "{error}");
    let error = Pair::soon(other.connect(endpoint.local_addr().unwrap(), Role::Agent)).await.unwrap_err();
    assert!(matches!(&error, Error::Untrusted { detail, .. } if detail.contains("xpired")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_said_within_the_limit() {
    let cluster = Cluster::new();
    let silent = std::net::UdpSocket::bind(SocketAddr::from(ANY)).unwrap();
    let options = Options { connect_timeout: Duration::from_millis(300), ..Options::default() };
    let driver = cluster.authority.identity(Role::Driver, "laptop").unwrap();
    let endpoint = Endpoint::client(driver, options).unwrap();
    let begun = Instant::now();
    let error = endpoint.connect(silent.local_addr().unwrap(), Role::Agent).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(matches!(error, Error::Unreachable { .. }) && error.retryable(), "{error}");
    assert!(error.to_string().contains("UDP port"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_dials_out_and_cannot_serve() {
    let cluster = Cluster::new();
    let (agent, addr) = cluster.endpoint(Role::Agent, "node-1");
    let driver = cluster.authority.identity(Role::Driver, "laptop").unwrap();
    assert!(Endpoint::bind(ANY.into(), driver.clone(), Options::default()).is_err());
    let endpoint = Endpoint::client(driver, Options::default()).unwrap();
    let (dialled, accepted) =
        Pair::soon(async { tokio::join!(endpoint.connect(addr, Role::Agent), agent.accept()) }).await;
    dialled.unwrap();
    let Some(Incoming::Peer(peer)) = accepted else { panic!("{accepted:?}") };
    assert_eq!(peer.peer().role, Role::Driver);
    assert!(endpoint.accept().await.is_none());
}

/// A head's book of tokens, as the head would keep it.
struct Tokens(Mutex<HashMap<[u8; 8], (SecretHash, Instant, bool)>>);

impl Tokens {
    fn spend(&self, request: &JoinRequest) -> Result<(), String> {
        let mut book = self.0.lock();
        let (hash, until, used) = book.get_mut(&request.token_id).ok_or("unknown token")?;
        match () {
            () if !hash.matches(&request.secret_hash) => Err("unknown token".to_owned()),
            () if *until <= Instant::now() => Err("this token has expired".to_owned()),
            () if std::mem::replace(used, true) => Err("this token was used already".to_owned()),
            () => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_joins_once_and_only_its_own_cluster() {
    let cluster = Arc::new(Cluster::new());
    let (head, addr) = cluster.endpoint(Role::Head, "head");
    let head = Arc::new(head);
    let token = || JoinToken::new(cluster.authority.fingerprint()).unwrap();
    let (good, expired, unknown) = (token(), token(), token());
    let later = Instant::now() + Duration::from_hours(1);
    let book = HashMap::from([
        (good.id(), (good.secret_hash(), later, false)),
        (expired.id(), (expired.secret_hash(), Instant::now(), false)),
        // The right id with another secret.
        (unknown.id(), (token().secret_hash(), later, false)),
    ]);
    let tokens = Tokens(Mutex::new(book));
    let (serving_head, serving_cluster) = (head.clone(), cluster.clone());
    let peers = task::spawn("test-head", async move {
        loop {
            match serving_head.accept().await {
                Some(Incoming::Join(join)) => {
                    let served = join.serve(async |request: JoinRequest| {
                        tokens.spend(&request)?;
                        let ca = &serving_cluster.authority;
                        let lifetime = crate::identity::NODE_LIFETIME;
                        ca.issue(&request.csr, request.role, &request.name, lifetime)
                            .map_err(|e| e.to_string())
                    });
                    match served.await {
                        Ok(()) | Err(Error::Protocol { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                Some(Incoming::Peer(peer)) => return peer,
                None => panic!("the head's endpoint closed"),
            }
        }
    });

    for (token, reason) in [(&expired, "expired"), (&unknown, "unknown token")] {
        let error = Pair::soon(join(addr, token, Role::Agent, "node-1")).await.unwrap_err();
        assert!(matches!(&error, Error::JoinRefused { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let foreign = JoinToken::new(Cluster::new().authority.fingerprint()).unwrap();
    let error = Pair::soon(join(addr, &foreign, Role::Agent, "node-1")).await.unwrap_err();
    assert!(matches!(error, Error::ForeignToken { .. }), "{error}");

    // A build of another protocol spends no token, and is told so.
    for protocols in [wire::PROTOCOL_CURRENT + 1..=wire::PROTOCOL_CURRENT + 2, 0..=wire::PROTOCOL_OLDEST - 1]
    {
        let joining = join::join_speaking(protocols, addr, &good, Role::Agent, "node-1");
        let error = Pair::soon(joining).await.unwrap_err();
        assert!(matches!(&error, Error::Protocol { detail, .. } if detail.contains("the head")), "{error}");
    }

    let joined = Pair::soon(join(addr, &good, Role::Agent, "node-1")).await.unwrap();
    assert_eq!(joined.identity.peer().to_string(), "agent node-1");
    let error = Pair::soon(join(addr, &good, Role::Agent, "node-2")).await.unwrap_err();
    assert!(error.to_string().contains("used already"), "{error}");

    let agent = Endpoint::bind(ANY.into(), joined.identity, Options::default()).unwrap();
    let _dialled = Pair::soon(agent.connect(addr, Role::Head)).await.unwrap();
    assert_eq!(Pair::soon(peers).await.unwrap().peer().name, "node-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_do_not_let_anyone_join() {
    let cluster = Cluster::new();
    let (_agent, addr) = cluster.endpoint(Role::Agent, "node-1");
    let token = JoinToken::new(cluster.authority.fingerprint()).unwrap();
    let error = Pair::soon(join(addr, &token, Role::Agent, "node-2")).await.unwrap_err();
    assert!(matches!(error, Error::NotOffered { .. }), "{error}");
    let identity = cluster.authority.identity(Role::Agent, "x").unwrap();
    let options = Options { accept_join: true, ..Options::default() };
    assert!(matches!(Endpoint::bind(ANY.into(), identity, options), Err(Error::Option { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepting_streams_survives_cancellation() {
    let pair = Pair::new().await;
    let (mut send, _recv) = pair.dialled.open_raw().await;
    // The stream exists at the other side only once something of it arrives; an empty write is nothing.
    for _ in 0..3 {
        let waiting = tokio::time::timeout(Duration::from_millis(5), pair.accepted.accept_stream()).await;
        assert!(waiting.is_err());
    }
    send.write_all(&[StreamKind::Relay as u8]).await.unwrap();
    assert_eq!(Pair::soon(pair.accepted.accept_stream()).await.unwrap().0, StreamKind::Relay);
}
