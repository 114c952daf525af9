//! Two agents whose connection breaks, again and again or for long, while both live.

use std::{
    net::UdpSocket as StdSocket,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Instant,
};

use mobula_net::{
    identity::{Authority, Role as Part},
    quic::Options as Network,
};
use mobula_proto::{FailureKind, head::Node};
use mobula_telemetry::task;
use tokio::net::UdpSocket;

use super::{two::accept_agent, *};

/// A worker that listens, with a host, and a driver's agent that only dials outward.
struct Pair {
    worker: Handle,
    worker_head: FakeHead,
    host: Started,
    host_id: HostId,
    started: mpsc::UnboundedReceiver<Started>,
    job: Job,
    driver: Handle,
    driver_head: FakeHead,
    link: LocalLink,
    driver_id: HostId,
    _folder: tempfile::TempDir,
    _heads: Endpoint,
}

/// The driver finds the worker where `way` says.
async fn pair(network: Network, way: impl AsyncFnOnce(Node) -> Node) -> Pair {
    mobula_telemetry::log::init("warn");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create(&folder.path().join("ca"), "test").unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let identity = authority.identity(Part::Head, "head").unwrap();
    let heads = Endpoint::bind(any, identity, network.clone()).unwrap();
    let address = heads.local_addr().unwrap();
    let start = |name: &str, part, listen| {
        let (launcher, started) = launcher();
        let identity = authority.identity(part, name).unwrap();
        let link = HeadLink::Quic { address, identity, network: network.clone() };
        let mut options = Options::new(name, folder.path().join(name), link, detected(), launcher);
        options.listen = listen;
        options.store_bytes = 64 * MIB;
        (Agent::start(options), started)
    };
    let (worker, mut started) = start("worker", Part::Agent, Some(any));
    let (worker, (mut worker_head, worker_node)) = tokio::join!(worker, accept_agent(&heads, 1, vec![]));
    let (driver, _none) = start("laptop", Part::Driver, None);
    let known = vec![way(worker_node).await];
    let (driver, (mut driver_head, driver_node)) = tokio::join!(driver, accept_agent(&heads, 2, known));
    let (worker, driver) = (worker.unwrap(), driver.unwrap());
    worker_head.send(ToAgentOfHead::NodeUp(driver_node)).await;
    let program = folder.path().join("program");
    std::fs::write(&program, b"#!/bin/sh\n").unwrap();
    let hash = binaries::hash_file(&program).unwrap();
    let link = driver.attach();
    link.send(driver_hello(&program.display().to_string(), hash, vec![]), vec![]).unwrap();
    let job = driver_head.start_job().await;
    assert!(matches!(local(&link).0, ToHost::Welcome(_)));
    worker_head.send(reserve(1, job.clone(), Class::default())).await;
    let mut host = tokio::select! {
        started = soon(started.recv()) => started.unwrap(),
        other = worker_head.recv() => panic!("not started: {other:?}"),
    };
    let host_id = host.link.welcome().await.host;
    assert!(matches!(worker_head.recv().await, ToHead::LeaseReady { .. }));
    assert!(matches!(local(&link).0, ToHost::Output { .. }), "its first line");
    Pair {
        worker,
        worker_head,
        host,
        host_id,
        started,
        driver,
        driver_head,
        link,
        driver_id: job.driver,
        job,
        _folder: folder,
        _heads: heads,
    }
}

impl Pair {
    async fn end(mut self) {
        drop(self.link);
        assert!(matches!(self.driver_head.recv().await, ToHead::HostEnded { .. }));
        soon(self.driver.shutdown()).await.unwrap();
        drop(self.host);
        soon(self.worker.shutdown()).await.unwrap();
        while !matches!(self.worker_head.recv().await, ToHead::Leave) {}
    }
}

/// Small ones, and now and then one of many frames.
fn body(number: u32) -> Vec<u8> {
    let mut body = number.to_le_bytes().to_vec();
    body.resize(if number.is_multiple_of(97) { 300_000 } else { 20 }, number as u8);
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_each_message_comes_once_and_in_order() {
    const MESSAGES: u32 = 3000;
    /// Of those that came, on either side.
    const BREAK_EVERY: u32 = 150;
    /// Several times what it takes to find out by silence.
    const PATIENCE: Duration = Duration::from_secs(30);
    // Word of a connection's end may be lost itself: who is not told finds out by silence.
    let network = Network {
        keep_alive: Duration::from_millis(500),
        idle_timeout: Duration::from_secs(3),
        ..Network::default()
    };
    let pair = pair(network, async |node| node).await;
    let Pair { host, host_id, link, driver_id, .. } = pair;
    let LocalLink { sender, receiver } = link;
    let relay = |to, number| ToAgent::Relay { to, body: body(number) };
    // On a thread that may wait for room.
    let sending = std::thread::spawn(move || {
        (0..MESSAGES).for_each(|number| sender.send(relay(host_id, number), vec![]).unwrap());
        sender
    });
    let HostLink { sender: mut answer, receiver: mut hear } = host.link;
    let answering = async {
        for number in 0..MESSAGES {
            answer.send(&wire::encode(&relay(driver_id, number)).unwrap(), &[]).await.unwrap();
        }
        answer
    };
    let (break_there, break_here) = (pair.worker.post.peers().unwrap(), pair.driver.post.peers().unwrap());
    let (there, here) = (Arc::clone(&break_there), Arc::clone(&break_here));
    let none = move |number: u32| -> ! {
        panic!("message {number} does not come. There: {}. Here: {}", there.describe(), here.describe())
    };
    let none_here = none.clone();
    let hearing = async {
        for number in 0..MESSAGES {
            let Ok(message) = timeout(PATIENCE, hear.recv()).await else { none(number) };
            let message = message.unwrap();
            let message = message.expect("a message, not the end");
            let message = wire::decode(&message.body).unwrap();
            let ToHost::Relayed { from, body: came, .. } = message else { panic!("{message:?}") };
            assert!(from == driver_id && came == body(number), "{number}: {:?} came", &came[..4]);
            if number.is_multiple_of(BREAK_EVERY) {
                break_there.break_relays();
            }
        }
        hear
    };
    let receiving = tokio::task::spawn_blocking(move || {
        for number in 0..MESSAGES {
            let Ok((message, _)) = receiver.recv_timeout(PATIENCE) else { none_here(number) };
            let ToHost::Relayed { from, body: came, .. } = message else { panic!("{message:?}") };
            assert!(from == host_id && came == body(number), "{number}: {:?} came", &came[..4]);
            if number % BREAK_EVERY == BREAK_EVERY / 2 {
                break_here.break_relays();
            }
        }
        receiver
    });
    let (answer, hear, receiver) = tokio::join!(answering, hearing, receiving);
    let link = LocalLink { sender: sending.join().unwrap(), receiver: receiver.unwrap() };
    let host = Started { link: HostLink { sender: answer, receiver: hear }, ..host };
    Pair { host, link, ..pair }.end().await;
}

/// A network between two agents, which may be cut.
struct Cut(Arc<AtomicBool>);

impl Cut {
    /// A pair with such a network between its two.
    async fn between(network: Network) -> (Self, Pair) {
        let mut cut = None;
        let pair = pair(network, async |mut node| {
            cut = Some(Self::to(&mut node).await);
            node
        })
        .await;
        (cut.unwrap(), pair)
    }

    /// A way to a node.
    async fn to(node: &mut Node) -> Self {
        let bind = || {
            let socket = StdSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            Arc::new(UdpSocket::from_std(socket).unwrap())
        };
        let (front, back) = (bind(), bind());
        back.connect(node.address.parse::<SocketAddr>().unwrap()).await.unwrap();
        node.address = front.local_addr().unwrap().to_string();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        task::spawn("test-network", async move {
            let (mut forth, mut to_and_fro) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            let mut client = None;
            loop {
                // What a socket has no room for is lost, as on any network.
                tokio::select! {
                    Ok((bytes, from)) = front.recv_from(&mut forth) => {
                        client = Some(from);
                        if !is_cut.load(Relaxed) {
                            back.send(&forth[..bytes]).await.ok();
                        }
                    }
                    Ok(bytes) = back.recv(&mut to_and_fro) => {
                        if let (Some(client), false) = (client, is_cut.load(Relaxed)) {
                            front.send_to(&to_and_fro[..bytes], client).await.ok();
                        }
                    }
                    else => break,
                }
            }
        });
        Self(cut)
    }

    fn set(&self, cut: bool) {
        self.0.store(cut, Relaxed);
    }
}

/// Waits until an agent has no connection for relays left.
async fn lost(handle: &Handle) {
    let peers = handle.post.peers().unwrap();
    let start = Instant::now();
    while peers.relays() > 0 {
        assert!(start.elapsed() < SOON, "the connection is not given up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Who accepts connections cannot tell by itself that one is over if word of its end is lost: what says so is that the
/// other dials again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_end_was_not_heard_of_is_over_when_its_dialler_dials_again() {
    // Nobody finds out by silence within the test.
    let network = Network { idle_timeout: SOON * 10, keep_alive: SOON * 4, ..Network::default() };
    let (cut, mut pair) = Cut::between(network).await;
    let (host_id, driver_id) = (pair.host_id, pair.driver_id);
    // There is a stream each way.
    pair.link.send(ToAgent::Relay { to: host_id, body: vec![1] }, vec![]).unwrap();
    assert!(matches!(pair.host.link.recv().await.0, ToHost::Relayed { body, .. } if body == [1]));
    pair.host.link.send(ToAgent::Relay { to: driver_id, body: vec![2] }).await;
    assert!(matches!(local(&pair.link).0, ToHost::Relayed { body, .. } if body == [2]));

    cut.set(true);
    pair.driver.post.peers().unwrap().break_relays();
    // It is dropped by the network, as the word that the connection is over.
    pair.host.link.send(ToAgent::Relay { to: driver_id, body: vec![3] }).await;
    lost(&pair.driver).await;
    assert_eq!(pair.worker.post.peers().unwrap().relays(), 1, "it has not heard of it");
    cut.set(false);
    assert!(matches!(local(&pair.link).0, ToHost::Relayed { body, .. } if body == [3]));
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_of_hosts_outlives_a_short_break_and_is_severed_by_a_long_one() {
    let network = Network {
        idle_timeout: Duration::from_secs(3),
        keep_alive: Duration::from_secs(1),
        ..Network::default()
    };
    let (cut, mut pair) = Cut::between(network).await;
    let (host_id, driver_id) = (pair.host_id, pair.driver_id);

    // What is said while it is cut comes once it is not, though all connections are new.
    cut.set(true);
    for number in 1..=3 {
        pair.link.send(ToAgent::Relay { to: host_id, body: vec![number] }, vec![]).unwrap();
        pair.host.link.send(ToAgent::Relay { to: driver_id, body: vec![number] }).await;
    }
    lost(&pair.driver).await;
    lost(&pair.worker).await;
    cut.set(false);
    for number in 1..=3 {
        let (ToHost::Relayed { body, .. }, _) = pair.host.link.recv().await else { panic!() };
        assert_eq!(body, [number]);
        let (ToHost::Relayed { body, .. }, _) = local(&pair.link) else { panic!() };
        assert_eq!(body, [number]);
    }

    // For long: who waits to be heard counts the other as dead.
    cut.set(true);
    pair.link.send(ToAgent::Relay { to: host_id, body: vec![4] }, vec![]).unwrap();
    let told = tokio::task::block_in_place(|| pair.link.receiver.recv_timeout(SOON * 3)).unwrap();
    let (ToHost::HostDied { host, failure }, _) = told else { panic!("{told:?}") };
    assert_eq!((host, failure.kind), (host_id, FailureKind::Unreachable));
    cut.set(false);
    // Who says more is told again, since it may wait for an answer.
    pair.link.send(ToAgent::Relay { to: host_id, body: vec![5] }, vec![]).unwrap();
    let (told, _) = local(&pair.link);
    assert!(matches!(told, ToHost::HostDied { host, .. } if host == host_id), "{told:?}");
    // The other is told too, as soon as it can be, and ends, since that was its driver. Nothing that was given up comes.
    cut.set(false);
    let ended = pair.worker_head.recv().await;
    assert!(matches!(ended, ToHead::HostEnded { host, .. } if host == host_id), "{ended:?}");
    let mut told = Vec::new();
    while let Ok(Some(message)) = soon(pair.host.link.receiver.recv()).await {
        told.push(wire::decode::<ToHost>(&message.body).unwrap());
    }
    let died = |told: &ToHost| matches!(told, ToHost::HostDied { host, .. } if *host == driver_id);
    assert!(told.iter().all(died), "{told:?}");
    // The job's next host there has nothing to do with that.
    pair.worker_head.send(reserve(2, pair.job.clone(), Class::default())).await;
    pair.host = tokio::select! {
        started = soon(pair.started.recv()) => started.unwrap(),
        other = pair.worker_head.recv() => panic!("not started: {other:?}"),
    };
    let next = pair.host.link.welcome().await.host;
    pair.link.send(ToAgent::Relay { to: next, body: vec![6] }, vec![]).unwrap();
    loop {
        match pair.host.link.recv().await.0 {
            ToHost::HostDied { .. } => {}
            told => {
                assert!(matches!(&told, ToHost::Relayed { body, .. } if body == &[6]), "{told:?}");
                break;
            }
        }
    }
    pair.end().await;
}
