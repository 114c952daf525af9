//! Two agents over the real network: one listens, one (a driver's) only dials outward.

use mobula_net::{
    identity::{Authority, Role as Part},
    quic::{Incoming, Options as Network, StreamKind},
};
use mobula_proto::{NodeId, head::Node, peer::Copy};
use mobula_store::region::{Reader, Writer};
use mobula_telemetry::task;

use super::*;

/// A head that only registers, and lets the test do the rest.
pub(super) async fn accept_agent(endpoint: &Endpoint, number: u32, nodes: Vec<Node>) -> (FakeHead, Node) {
    let Some(Incoming::Peer(connection)) = soon(endpoint.accept()).await else { panic!("nobody came") };
    let (kind, mut sender, mut receiver) = soon(connection.accept_stream()).await.unwrap();
    assert_eq!(kind, StreamKind::Control);
    let first = soon(receiver.recv()).await.unwrap().unwrap();
    let ToHead::Register { node: register, .. } = wire::decode(&first).unwrap() else { panic!() };
    let node = NodeId { number, incarnation: 1 };
    let registered = ToAgentOfHead::Registered { node, nodes };
    sender.send(&wire::encode(&registered).unwrap()).await.unwrap();
    let (to_agent, mut outgoing) = mpsc::channel::<ToAgentOfHead>(64);
    let (incoming, from_agent) = mpsc::channel(64);
    task::spawn("fake-head-write", async move {
        while let Some(message) = outgoing.recv().await {
            sender.send(&wire::encode(&message).unwrap()).await.unwrap();
        }
    });
    task::spawn("fake-head-read", async move {
        while let Ok(Some(bytes)) = receiver.recv().await {
            if incoming.send(wire::decode(&bytes).unwrap()).await.is_err() {
                break;
            }
        }
        drop(connection);
    });
    (FakeHead { from_agent, to_agent }, Node { node, name: register.name, address: register.address })
}

struct Side {
    handle: Handle,
    head: FakeHead,
    started: mpsc::UnboundedReceiver<Started>,
}

/// Two agents that know one another: of a machine that works, and of a driver's.
struct Pair {
    worker: Side,
    driver: Side,
    worker_node: Node,
    _head: Endpoint,
}

impl Pair {
    async fn start(folder: &std::path::Path) -> Self {
        mobula_telemetry::log::init("warn");
        let authority = Authority::create(&folder.join("ca"), "test").unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let identity = authority.identity(Part::Head, "head").unwrap();
        let head = Endpoint::bind(any, identity, Network::default()).unwrap();
        let address = head.local_addr().unwrap();
        let start = |name: &str, part, listen| {
            let (launcher, started) = launcher();
            let identity = authority.identity(part, name).unwrap();
            let link = HeadLink::Quic { address, identity, network: Network::default() };
            let mut options = Options::new(name, folder.join(name), link, detected(), launcher);
            options.listen = listen;
            options.store_bytes = 64 * MIB;
            (Agent::start(options), started)
        };
        let (worker, started) = start("worker", Part::Agent, Some(any));
        let (worker, (worker_head, worker_node)) = tokio::join!(worker, accept_agent(&head, 1, vec![]));
        let worker = Side { handle: worker.unwrap(), head: worker_head, started };
        let (driver, started) = start("laptop", Part::Driver, None);
        let known = vec![worker_node.clone()];
        let (driver, (driver_head, driver_node)) = tokio::join!(driver, accept_agent(&head, 2, known));
        let driver = Side { handle: driver.unwrap(), head: driver_head, started };
        assert_eq!(driver_node.address, "");
        // The newcomer dials at once; the head's word of it comes later.
        worker.head.send(ToAgentOfHead::NodeUp(driver_node)).await;
        Self { worker, driver, worker_node, _head: head }
    }
}

/// A host's first region, and what it writes there.
async fn region_of(link: &mut HostLink, bytes: u64) -> mobula_store::heap::Heap {
    link.send(ToAgent::RegionWanted { request: 1, bytes, wait_ms: 0 }).await;
    assert!(matches!(link.recv().await.0, ToHost::RegionGranted { .. }));
    let heap = mobula_store::heap::Heap::new(Default::default());
    let writer = Writer::create(bytes).unwrap();
    let fd = writer.share().unwrap();
    heap.add_region(1, writer).unwrap();
    link.send_with(ToAgent::RegionAdded { request: 1, seq: 1, bytes }, &[fd]).await;
    heap
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_relay_pull_and_ship_programs() {
    let folder = tempfile::tempdir().unwrap();
    let Pair { mut worker, mut driver, worker_node, _head } = Pair::start(folder.path()).await;

    // The job's program is fetched from the driver's machine.
    let program = folder.path().join("program");
    std::fs::write(&program, b"#!/bin/sh\n").unwrap();
    let data = folder.path().join("data.txt");
    std::fs::write(&data, b"data").unwrap();
    let hash = |path: &std::path::Path| binaries::hash_file(path).unwrap();
    let files = vec![("in/data.txt".to_owned(), data.display().to_string(), hash(&data))];
    let link = driver.handle.attach();
    link.send(driver_hello(&program.display().to_string(), hash(&program), files), vec![]).unwrap();
    let job = driver.head.start_job().await;
    assert!(matches!(local(&link).0, ToHost::Welcome(_)));
    worker.head.send(reserve(1, job.clone(), Class::default())).await;
    let mut host = tokio::select! {
        started = soon(worker.started.recv()) => started.unwrap(),
        other = worker.head.recv() => panic!("not started: {other:?}"),
    };
    assert_eq!(std::fs::read(&host.program).unwrap(), b"#!/bin/sh\n");
    let placed = host.cwd.clone().unwrap().join("in/data.txt");
    assert_eq!(std::fs::read(placed).unwrap(), b"data");
    let welcome = host.link.welcome().await;
    assert!(matches!(worker.head.recv().await, ToHead::LeaseReady { .. }));

    // Output and relays cross.
    let (ToHost::Output { host: from, line, .. }, _) = local(&link) else { panic!("no output") };
    assert_eq!((from, line.as_str()), (welcome.host, "hello from stdout"));
    for body in [vec![1; 10], vec![2; 3 * MIB as usize]] {
        link.send(ToAgent::Relay { to: welcome.host, body: body.clone() }, vec![]).unwrap();
        let (ToHost::Relayed { from, same_job: true, body: got }, _) = host.link.recv().await else {
            panic!()
        };
        assert!(from == job.driver && got == body);
        host.link.send(ToAgent::Relay { to: job.driver, body: body.clone() }).await;
        let (ToHost::Relayed { from, same_job: true, body: got }, _) = local(&link) else { panic!() };
        assert!(from == welcome.host && got == body);
    }

    // An object of the worker's is read on the laptop.
    let heap = region_of(&mut host.link, 8 * MIB).await;
    let mut block = heap.allocate(5 * MIB).unwrap();
    block.as_mut_slice().iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8);
    let extent = block.seal();
    let offset = extent.location().offset;
    let made = object(job.driver, 1);
    let copy = Copy { node: worker_node.node, bytes: 5 * MIB, attempt: 2, job: job.job };
    host.link
        .send(ToAgent::Sealed { object: made, attempt: 2, region: 1, offset, bytes: 5 * MIB, site: 0 })
        .await;
    host.link.send(ToAgent::Relay { to: job.driver, body: vec![9] }).await;
    assert!(matches!(local(&link).0, ToHost::Relayed { .. }));
    for request in [1, 2] {
        link.send(ToAgent::Open { ahead: false, request, object: made, copy }, vec![]).unwrap();
    }
    let (ToHost::Opened { region_bytes, offset, bytes, .. }, mut fds) = local(&link) else {
        panic!("not opened")
    };
    let read = Reader::map(fds.remove(0), region_bytes).unwrap().bytes(offset, bytes, None).unwrap();
    assert!(read[..] == *extent.as_slice());
    let (ToHost::Opened { .. }, _) = local(&link) else { panic!("not opened again") };
    let usage = driver.handle.usage().await;
    assert_eq!((usage.pulled_bytes, usage.objects, usage.pinned), (5 * MIB, 1, 1), "pulled once");
    // Another attempt's copy there is none.
    let other = Copy { attempt: 3, ..copy };
    link.send(ToAgent::Open { ahead: false, request: 3, object: made, copy: other }, vec![]).unwrap();
    let ToHost::Mark { number } = host.link.recv().await.0 else { panic!("not asked whether it comes") };
    host.link.send(ToAgent::Marked { number }).await;
    let (ToHost::OpenFailed { request: 3, failure }, _) = local(&link) else { panic!("opened") };
    assert_eq!(failure.kind, FailureKind::ObjectLost);

    // Freed at its owner, it goes on both nodes.
    link.send(ToAgent::Free { object: made, copy }, vec![]).unwrap();
    let (ToHost::Reclaim { objects, .. }, _) = host.link.recv().await else { panic!("not reclaimed") };
    assert_eq!(objects, [(made, 2)]);
    for _ in 0..2 {
        link.send(ToAgent::Unpin { object: made }, vec![]).unwrap();
    }
    soon(async {
        while driver.handle.usage().await.objects > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let usage = worker.handle.usage().await;
    assert_eq!((usage.served_bytes, usage.pinned, usage.objects), (5 * MIB, 0, 0));

    // The job ends with its driver, here and there.
    drop(link);
    assert!(matches!(driver.head.recv().await, ToHead::HostEnded { .. }));
    let ToHead::JobEnd { failure, .. } = driver.head.recv().await else { panic!("no end") };
    let ended = ToAgentOfHead::JobEnded { job: JOB, failure: failure.clone(), nodes: Vec::new() };
    driver.head.send(ended).await;
    worker.head.send(ToAgentOfHead::JobEnded { job: JOB, failure, nodes: Vec::new() }).await;
    assert!(matches!(worker.head.recv().await, ToHead::HostEnded { .. }));
    assert_eq!(worker.handle.usage().await.store_used_bytes, 0);
    soon(async {
        while driver.handle.usage().await.store_used_bytes > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon(driver.handle.shutdown()).await.unwrap();
    assert!(matches!(driver.head.recv().await, ToHead::Leave));
    soon(worker.handle.shutdown()).await.unwrap();
    assert!(driver.started.try_recv().is_err());
}

/// On one way between two nodes: what is fetched ahead, more than may be under way at once, and behind it what something
/// waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tr4_what_is_waited_for_comes_before_what_is_fetched_ahead() {
    /// A quarter of the store is four of them.
    const BYTES: u64 = 4 * MIB;
    const AHEAD: u64 = 40;
    /// What is under way goes first, and of what comes next a few may be faster.
    const BEFORE_MAX: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let Pair { mut worker, mut driver, worker_node, _head } = Pair::start(folder.path()).await;
    let program = folder.path().join("program");
    std::fs::write(&program, b"#!/bin/sh\n").unwrap();
    let link = driver.handle.attach();
    let hash = binaries::hash_file(&program).unwrap();
    link.send(driver_hello(&program.display().to_string(), hash, vec![]), vec![]).unwrap();
    let job = driver.head.start_job().await;
    assert!(matches!(local(&link).0, ToHost::Welcome(_)));
    worker.head.send(reserve(1, job.clone(), Class::default())).await;
    let mut host = tokio::select! {
        started = soon(worker.started.recv()) => started.unwrap(),
        other = worker.head.recv() => panic!("not started: {other:?}"),
    };
    host.link.welcome().await;
    assert!(matches!(local(&link).0, ToHost::Output { .. }));

    // Of as many names as needed, since nobody reads their bytes.
    let heap = region_of(&mut host.link, 8 * MIB).await;
    let extent = heap.allocate(BYTES).unwrap().seal();
    let offset = extent.location().offset;
    let copy = Copy { node: worker_node.node, bytes: BYTES, attempt: 1, job: job.job };
    for seq in 1..=AHEAD + 1 {
        let object = object(job.driver, seq);
        let sealed = ToAgent::Sealed { object, attempt: 1, region: 1, offset, bytes: BYTES, site: 0 };
        host.link.send(sealed).await;
    }
    host.link.send(ToAgent::Relay { to: job.driver, body: vec![9] }).await;
    assert!(matches!(local(&link).0, ToHost::Relayed { .. }));
    // The last one is waited for from the start; the one before it is hurried.
    for request in 1..=AHEAD + 1 {
        let ahead = request <= AHEAD;
        link.send(ToAgent::Open { ahead, request, object: object(job.driver, request), copy }, vec![])
            .unwrap();
    }
    link.send(ToAgent::Hurry { object: object(job.driver, AHEAD) }, vec![]).unwrap();
    // The answer says that all of that was heard.
    link.send(ToAgent::RegionWanted { request: 1, bytes: 1 << 40, wait_ms: 0 }, vec![]).unwrap();
    let (mut order, mut heard) = (Vec::new(), None);
    while order.len() as u64 <= AHEAD || heard.is_none() {
        match local(&link).0 {
            ToHost::Opened { request, .. } => {
                order.push(request);
                link.send(ToAgent::Unpin { object: object(job.driver, request) }, vec![]).unwrap();
            }
            ToHost::RegionRefused { .. } => heard = Some(order.len()),
            other => panic!("{other:?}"),
        }
    }
    let most = heard.unwrap() + BEFORE_MAX;
    let place = |request| order.iter().position(|other| *other == request).unwrap();
    assert!(place(AHEAD + 1) <= most && place(AHEAD) <= most, "{heard:?}: {order:?}");
    assert_eq!(driver.handle.usage().await.pulled_bytes, (AHEAD + 1) * BYTES);
    drop(link);
    soon(driver.handle.shutdown()).await.unwrap();
    soon(worker.handle.shutdown()).await.unwrap();
}
