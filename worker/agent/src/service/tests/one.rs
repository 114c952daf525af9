//! One agent, its head in memory.

use mobula_net::{link::lane, ring};
use mobula_proto::{FailureKind, NodeId, head::Usage, peer::Copy, relay, wire};
use mobula_store::region::{Reader, Writer};
use mobula_telemetry::task;

use super::{
    super::{
        local::{FROM_OTHERS_MAX, TO_AGENT_MAX, TO_HOST_MAX},
        routes::ANSWERS_MAX,
    },
    *,
};

pub(super) struct One {
    pub(super) handle: Handle,
    head: FakeHead,
    started: mpsc::UnboundedReceiver<Started>,
    _home: tempfile::TempDir,
    socket: PathBuf,
}

async fn one(in_process_executor: bool) -> One {
    one_with(|options| options.in_process_executor = in_process_executor).await
}

pub(super) async fn one_with(set: impl FnOnce(&mut Options)) -> One {
    let home = tempfile::tempdir().unwrap();
    let (to_head, mut from_agent) = mpsc::channel(1024);
    let (to_agent, from_head) = mpsc::channel(1024);
    let (launcher, started) = launcher();
    let socket = home.path().join("run").join("agent.sock");
    let mut options = Options::new(
        "here",
        home.path().join("home"),
        HeadLink::Memory { to_head, from_head },
        detected(),
        launcher,
    );
    options.store_bytes = 8 * MIB;
    options.socket = Some(socket.clone());
    options.env = vec![("MOBULA_TEST".to_owned(), "1".to_owned())];
    set(&mut options);
    let registered = ToAgentOfHead::Registered { node: NodeId::EMBEDDED, nodes: vec![] };
    to_agent.send(registered).await.unwrap();
    let handle = soon(Agent::start(options)).await.unwrap();
    let Some(ToHead::Register { node, .. }) = from_agent.recv().await else { panic!("no registration") };
    assert_eq!((node.name.as_str(), node.store_bytes), ("here", 8 * MIB));
    One { handle, head: FakeHead { from_agent, to_agent }, started, _home: home, socket }
}

/// Two machines may have homes at the same path, and a folder that both see.
#[tokio::test(flavor = "multi_thread")]
async fn agents_with_one_home_path_have_folders_of_their_own_in_a_shared_one() {
    let machines = tempfile::tempdir().unwrap();
    let [home, shared, away] = ["home", "shared", "away"].map(|name| machines.path().join(name));
    let start = async || {
        let one = one_with(|options| {
            options.home = home.clone();
            options.spill_to = SpillTo::Folder(shared.clone());
        })
        .await;
        let own = one.handle.spill_folder().unwrap().to_owned();
        assert_eq!(own.parent(), Some(&*shared));
        let file = own.join("1.spill");
        std::fs::write(&file, "").unwrap();
        (one, own, file)
    };
    let (first, one, file) = start().await;
    std::fs::rename(&home, &away).unwrap();
    let (second, other, _) = start().await;
    assert!(one != other && file.exists(), "{one:?} and {other:?}");
    soon(second.handle.shutdown()).await.unwrap();
    assert!(file.exists() && !other.exists());
    soon(first.handle.shutdown()).await.unwrap();
    assert!(!one.exists());
}

impl One {
    /// An in-process driver whose job runs.
    pub(super) async fn driver(&mut self) -> (LocalLink, Job) {
        let link = self.handle.attach();
        link.send(driver_hello("/bin/program", BinaryHash([0; 32]), vec![]), vec![]).unwrap();
        let job = self.head.start_job().await;
        let (ToHost::Welcome(welcome), _) = local(&link) else { panic!("no welcome") };
        assert_eq!((welcome.host, welcome.driver, welcome.cpus), (job.driver, job.driver, 4));
        (link, job)
    }

    async fn host(&mut self, job: &Job) -> (Started, HostId) {
        self.head.send(reserve(1, job.clone(), Class::default())).await;
        let mut started = soon(self.started.recv()).await.unwrap();
        assert_eq!(started.program, PathBuf::from("/bin/program"));
        assert_eq!(started.args, ["--child"]);
        let (own, threads) = started.env.split_last().unwrap();
        assert_eq!(*own, ("MOBULA_TEST".to_owned(), "1".to_owned()));
        assert!(threads.contains(&("OMP_NUM_THREADS".to_owned(), "4".to_owned())), "{threads:?}");
        let welcome = started.link.welcome().await;
        assert!(welcome.shared && welcome.job == JOB);
        let ToHead::LeaseReady { host, .. } = self.head.recv().await else { panic!("no lease") };
        assert_eq!(host, welcome.host);
        (started, host)
    }
}

/// Its own thread may be the one that would read, and wait until the agent takes what it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_in_this_process_that_reads_nothing_is_read_and_answered() {
    const ASKED: u32 = (FROM_OTHERS_MAX + ANSWERS_MAX + TO_AGENT_MAX + 100) as u32;
    const RELAYED: u32 = 2 * TO_HOST_MAX as u32;
    let mut one = one(false).await;
    let (link, job) = one.driver().await;
    let (mut started, _host) = one.host(&job).await;
    let (ToHost::Output { .. }, _) = local(&link) else { panic!("no output") };
    // More than there is room for, all of which is for others to say.
    let relaying = task::spawn("test-relays", async move {
        for _ in 0..RELAYED {
            started.link.send(ToAgent::Relay { to: job.driver, body: vec![1] }).await;
        }
        started
    });
    let (asked, asking) = oneshot::channel();
    std::thread::spawn(move || {
        for request in 0..u64::from(ASKED) {
            link.send(ToAgent::RegionWanted { request, bytes: 9 * MIB, wait_ms: 0 }, vec![]).unwrap();
        }
        asked.send(link).unwrap();
    });
    let link = timeout(SOON, asking).await.expect("all is taken in time").unwrap();
    let (mut answered, mut relayed) = (0, 0);
    while answered < ASKED || relayed < RELAYED {
        match local(&link).0 {
            ToHost::RegionRefused { .. } => answered += 1,
            ToHost::Relayed { .. } => relayed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((answered, relayed), (ASKED, RELAYED));
    let started = relaying.await.unwrap();
    drop((link, started));
    soon(one.handle.shutdown()).await.unwrap();
}

/// It could not be mapped by anybody else, nor be written to disk together with others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_a_region_without_seals_is_ended() {
    let mut one = one(false).await;
    let (link, _job) = one.driver().await;
    link.send(ToAgent::RegionWanted { request: 1, bytes: 4 * MIB, wait_ms: 1000 }, vec![]).unwrap();
    assert!(matches!(local(&link).0, ToHost::RegionGranted { request: 1 }));
    let open = rustix::fs::memfd_create(c"open", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&open, 4 * MIB).unwrap();
    link.send(ToAgent::RegionAdded { request: 1, seq: 1, bytes: 4 * MIB }, vec![open]).unwrap();
    let heard = tokio::task::block_in_place(|| link.receiver.recv_timeout(SOON).map(|heard| heard.0));
    assert!(matches!(heard, Err(std::sync::mpsc::RecvTimeoutError::Disconnected)), "{heard:?}");
    assert_eq!(one.handle.usage().await.store_used_bytes, 0);
    soon(one.handle.shutdown()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_relays_goes_through_its_rings() {
    let mut one = one(false).await;
    let (link, job) = one.driver().await;
    one.head.send(reserve(1, job.clone(), Class::default())).await;
    let mut started = soon(one.started.recv()).await.unwrap();
    let (forth, back) = (ring::create(1 << 16).unwrap(), ring::create(1 << 16).unwrap());
    let ((bell, bell_fd), (own, own_fd)) =
        (ring::doorbell::Doorbell::create().unwrap(), ring::doorbell::Doorbell::create().unwrap());
    let mut to_agent = ring::Sender::map(forth.try_clone().unwrap()).unwrap();
    let mut from_agent = ring::Receiver::map(back.try_clone().unwrap()).unwrap();
    let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let tell = || rustix::io::write(&wake, &1_u64.to_ne_bytes()).unwrap();
    let (give, taker) = lane().unwrap();
    let descriptors = [forth, back, bell_fd, own_fd, wake.try_clone().unwrap(), give];
    started.link.send_with(host_hello(), &descriptors).await;
    drop(descriptors);
    let (ToHost::Welcome(welcome), _) = started.link.recv().await else { panic!("no welcome") };
    let (ToHost::Output { .. }, _) = local(&link) else { panic!("no output") };

    for body in 0..3_u8 {
        to_agent.send(&relay::head(job.driver, 0), &[body]).unwrap();
    }
    assert!(bell.notice() && !bell.notice(), "told once");
    tell();
    for body in 0..3 {
        let (ToHost::Relayed { from, same_job: true, body: got }, _) = local(&link) else { panic!() };
        assert_eq!((from, got), (welcome.host, vec![body]));
    }
    own.end_polling();
    link.send(ToAgent::Relay { to: welcome.host, body: vec![9] }, vec![]).unwrap();
    let rung = tokio::task::block_in_place(|| own.wait(Some(SOON)));
    assert_eq!(rung, ring::doorbell::Wake::Rung, "the agent rings for what it relays");
    let got = from_agent.recv_with(|message| {
        let (from, word, body) = relay::split(message).unwrap();
        (from, word, body.to_vec())
    });
    assert_eq!(got.unwrap(), Some((job.driver, relay::SAME_JOB, vec![9])));

    // What the agent itself answers: through the ring as well, where a descriptor goes along with that in its lane.
    link.send(ToAgent::RegionWanted { request: 1, bytes: 4 * MIB, wait_ms: 1000 }, vec![]).unwrap();
    assert!(matches!(local(&link).0, ToHost::RegionGranted { request: 1 }));
    let region = Writer::create(4 * MIB).unwrap().share().unwrap();
    link.send(ToAgent::RegionAdded { request: 1, seq: 1, bytes: 4 * MIB }, vec![region]).unwrap();
    let made = object(job.driver, 1);
    let sealed = ToAgent::Sealed { object: made, attempt: 1, region: 1, offset: 64, bytes: 32, site: 0 };
    link.send(sealed, vec![]).unwrap();
    let copy = Copy { node: NodeId::EMBEDDED, bytes: 32, attempt: 1, job: job.job };
    let open = |request| ToAgent::Open { ahead: false, request, object: made, copy };
    let mut say = |message: Option<ToAgent>| {
        let body = message.map_or_else(Vec::new, |message| wire::encode(&message).unwrap().to_vec());
        to_agent.send(&relay::agent_head(), &body).unwrap();
        tell();
    };
    let mut answer = |say: &mut dyn FnMut(Option<ToAgent>), request| {
        own.end_polling();
        say(Some(open(request)));
        let rung = tokio::task::block_in_place(|| own.wait(Some(SOON)));
        assert_eq!(rung, ring::doorbell::Wake::Rung, "the agent rings for what it answers");
        let got = from_agent.recv_with(|message| {
            let (_, word, body) = relay::split(message).unwrap();
            (word, wire::decode(body).unwrap())
        });
        let Some((word, ToHost::Opened { request: answered, region, .. })) = got.unwrap() else {
            panic!("not opened")
        };
        assert_eq!(answered, request);
        (word, region)
    };
    let (word, region) = answer(&mut say, 1);
    assert_eq!(word, relay::FROM_AGENT | relay::WITH_DESCRIPTOR);
    Reader::map(taker.take().unwrap(), 4 * MIB).unwrap();
    // Nobody takes from the lane.
    drop(taker);
    say(Some(open(2)));
    let (ToHost::Opened { request: 2, region: same, .. }, fds) = started.link.recv().await else {
        panic!("not opened again")
    };
    assert_eq!((same, fds.len()), (region, 1));
    say(Some(ToAgent::Mapped { region }));
    assert_eq!(answer(&mut say, 3), (relay::FROM_AGENT, region));

    // What has a descriptor is in the socket, and waits there for its turn in the ring.
    say(Some(ToAgent::RegionWanted { request: 7, bytes: 4 * MIB, wait_ms: 1000 }));
    let (ToHost::RegionGranted { request: 7 }, _) = started.link.recv().await else { panic!("no region") };
    let region = Writer::create(4 * MIB).unwrap().share().unwrap();
    started.link.send_with(ToAgent::RegionAdded { request: 7, seq: 1, bytes: 4 * MIB }, &[region]).await;
    say(Some(ToAgent::Site { number: 1, name: "here".to_owned() }));
    say(None);
    let theirs = object(welcome.host, 1);
    let sealed = |object| ToAgent::Sealed { object, attempt: 1, region: 1, offset: 64, bytes: 32, site: 1 };
    say(Some(sealed(theirs)));
    link.send(ToAgent::Open { ahead: false, request: 8, object: theirs, copy }, vec![]).unwrap();
    assert!(matches!(local(&link).0, ToHost::Opened { request: 8, .. }));

    // To nobody; and what is no message ends the host.
    to_agent.send(&relay::head(HostId { seq: 99, ..welcome.host }, 0), &[1]).unwrap();
    to_agent.send(b"short", &[]).unwrap();
    tell();
    let (ToHost::HostDied { host, failure }, _) = local(&link) else { panic!("no notice") };
    assert!(host == welcome.host && failure.message.contains("malformed"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_launched_talks_shares_objects_and_ends() {
    let mut one = one(false).await;
    let (link, job) = one.driver().await;
    let (mut started, host) = one.host(&job).await;
    let driver = job.driver;

    // Output, from the first line.
    let (ToHost::Output { line, stderr: false, .. }, _) = local(&link) else { panic!("no output") };
    assert_eq!(line, "hello from stdout");

    // Rings, through which bytes pass.
    let bell = |_| ring::doorbell::Doorbell::create().unwrap().1;
    link.send(ToAgent::Doorbell, vec![bell(0)]).unwrap();
    link.send(ToAgent::Connect { peer: host }, vec![]).unwrap();
    started.link.send_with(ToAgent::Doorbell, &[bell(1)]).await;
    let (ToHost::Rings { peer }, mut ours) = local(&link) else { panic!("no rings") };
    assert_eq!((peer, ours.len()), (host, 3));
    let (ToHost::Rings { peer }, mut theirs) = started.link.recv().await else { panic!("no rings") };
    assert_eq!((peer, theirs.len()), (driver, 3));
    for (write, read) in [(ours.remove(1), theirs.remove(0)), (theirs.remove(0), ours.remove(0))] {
        let mut producer = ring::Sender::map(write).unwrap();
        let mut consumer = ring::Receiver::map(read).unwrap();
        producer.send(b"he", b"llo").unwrap();
        assert_eq!(consumer.recv_with(<[u8]>::to_vec).unwrap().unwrap(), b"hello");
    }

    // Relays, both ways, and to nobody.
    started.link.send(ToAgent::Relay { to: driver, body: vec![1, 2] }).await;
    let (ToHost::Relayed { from, same_job: true, body }, _) = local(&link) else { panic!("no relay") };
    assert_eq!((from, body), (host, vec![1, 2]));
    link.send(ToAgent::Relay { to: host, body: vec![3] }, vec![]).unwrap();
    let (ToHost::Relayed { from, .. }, _) = started.link.recv().await else { panic!("no relay") };
    assert_eq!(from, driver);
    let nobody = HostId { seq: 99, ..host };
    link.send(ToAgent::Relay { to: nobody, body: vec![3] }, vec![]).unwrap();
    let (ToHost::HostDied { host: dead, .. }, _) = local(&link) else { panic!("no notice") };
    assert_eq!(dead, nobody);

    // An object of the host's, read by the driver.
    started.link.send(ToAgent::RegionWanted { request: 1, bytes: 4 * MIB, wait_ms: 1000 }).await;
    assert!(matches!(started.link.recv().await.0, ToHost::RegionGranted { request: 1 }));
    let writer = Writer::create(4 * MIB).unwrap();
    let fd = writer.share().unwrap();
    started.link.send_with(ToAgent::RegionAdded { request: 1, seq: 1, bytes: 4 * MIB }, &[fd]).await;
    let made = object(driver, 1);
    started
        .link
        .send(ToAgent::Sealed { object: made, attempt: 1, region: 1, offset: 64, bytes: 32, site: 0 })
        .await;
    started.link.send(ToAgent::Relay { to: driver, body: vec![4] }).await;
    assert!(matches!(local(&link).0, ToHost::Relayed { .. }), "sent after it was sealed");
    let copy = Copy { node: NodeId::EMBEDDED, bytes: 32, attempt: 1, job: job.job };
    link.send(ToAgent::Open { ahead: false, request: 2, object: made, copy }, vec![]).unwrap();
    let (ToHost::Opened { request: 2, region_bytes, offset: 64, bytes: 32, .. }, mut fds) = local(&link)
    else {
        panic!("not opened")
    };
    let reader = Reader::map(fds.remove(0), region_bytes).unwrap();
    assert_eq!(reader.bytes(64, 32, None).unwrap().len(), 32);
    let usage = one.handle.usage().await;
    assert_eq!((usage.objects, usage.pinned, usage.store_used_bytes, usage.hosts), (1, 1, 4 * MIB, 2));
    link.send(ToAgent::Free { object: made, copy }, vec![]).unwrap();
    link.send(ToAgent::Unpin { object: made }, vec![]).unwrap();
    let (ToHost::Reclaim { objects, .. }, _) = started.link.recv().await else { panic!("not reclaimed") };
    assert_eq!(objects, [(made, 1)]);

    // A store that stays full.
    started.link.send(ToAgent::RegionWanted { request: 3, bytes: 5 * MIB, wait_ms: 30 }).await;
    let (ToHost::Reclaim { objects, .. }, _) = started.link.recv().await else {
        panic!("not asked for its region")
    };
    assert_eq!(objects, []);
    let (ToHost::RegionRefused { request: 3, failure }, _) = started.link.recv().await else { panic!() };
    assert_eq!(failure.kind, FailureKind::StoreFull);

    // Its end, with its last words.
    started.fail(101, "thread panicked\n").await;
    let (ToHost::Output { line, stderr: true, .. }, _) = local(&link) else { panic!("no output") };
    assert_eq!(line, "thread panicked");
    let (ToHost::HostDied { host: dead, failure }, _) = local(&link) else { panic!("no notice") };
    assert_eq!((dead, failure.message.as_str()), (host, "exited with code 101"));
    assert_eq!(failure.causes, ["stderr: thread panicked"]);
    assert!(matches!(one.head.recv().await, ToHead::HostEnded { host: dead, .. } if dead == host));
    assert_eq!(one.handle.usage().await.store_used_bytes, 0, "an orphaned region without objects goes");

    // And the driver's.
    drop(link);
    assert!(matches!(one.head.recv().await, ToHead::HostEnded { .. }));
    assert!(matches!(one.head.recv().await, ToHead::JobEnd { job: JOB, .. }));
    assert_eq!(one.handle.usage().await, Usage::default());
    soon(one.handle.shutdown()).await.unwrap();
    assert!(!one.socket.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_ends_before_its_hello_fails_its_lease() {
    let mut one = one(false).await;
    let (_link, job) = one.driver().await;
    one.head.send(reserve(1, job, Class::default())).await;
    soon(one.started.recv()).await.unwrap().fail(3, "no such library\n").await;
    let ToHead::LeaseFailed { failure, .. } = one.head.recv().await else { panic!("no failure") };
    assert_eq!(failure.message, "exited with code 3");
    assert_eq!(failure.causes, ["stderr: no such library"]);
    soon(one.handle.shutdown()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_process_nothing_is_started_and_jobs_end_with_their_hosts() {
    let mut one = one(true).await;
    let (link, job) = one.driver().await;
    one.head.send(reserve(1, job.clone(), Class::default())).await;
    assert!(matches!(one.head.recv().await, ToHead::LeaseReady { host, .. } if host == job.driver));
    let own = Class { isolation: mobula_proto::resource::Isolation::Process, ..Class::default() };
    one.head.send(reserve(2, job.clone(), own)).await;
    let mut started = soon(one.started.recv()).await.unwrap();
    assert!(!started.link.welcome().await.shared);
    assert!(matches!(one.head.recv().await, ToHead::LeaseReady { .. }));
    link.send(ToAgent::JobDone, vec![]).unwrap();
    one.head.end_job().await;
    assert!(soon(started.link.receiver.recv()).await.unwrap_or(None).is_none(), "it was killed");
    assert!(matches!(one.head.recv().await, ToHead::HostEnded { .. }));
    soon(one.handle.shutdown()).await.unwrap();
    let lost = loop {
        if let Err(lost) = link.receiver.recv_timeout(SOON) {
            break lost;
        }
    };
    assert_eq!(lost, std::sync::mpsc::RecvTimeoutError::Disconnected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_attach_over_the_socket() {
    use std::os::unix::fs::PermissionsExt;
    let mut one = one(false).await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&one.socket), mode(one.socket.parent().unwrap())), (0o600, 0o700));
    let mut link = HostLink::new(UnixStream::connect(&one.socket).unwrap());
    link.send(driver_hello("/bin/program", BinaryHash([0; 32]), vec![])).await;
    let job = one.head.start_job().await;
    assert!(matches!(link.recv().await.0, ToHost::Welcome(welcome) if welcome.host == job.driver));
    let (mut started, host) = one.host(&job).await;
    // A second one that is no driver.
    let mut stranger = HostLink::new(UnixStream::connect(&one.socket).unwrap());
    stranger.send(host_hello()).await;
    assert!(matches!(stranger.recv().await.0, ToHost::Refused(_)));
    // The job goes with its driver, and its host with it.
    drop(link);
    assert!(matches!(one.head.recv().await, ToHead::HostEnded { .. }));
    one.head.end_job().await;
    assert!(matches!(one.head.recv().await, ToHead::HostEnded { host: dead, .. } if dead == host));
    while let Ok(Some(_)) = soon(started.link.receiver.recv()).await {}
    soon(one.handle.shutdown()).await.unwrap();
}

/// A driver over the socket whose job has that number, with a region.
async fn driver_of(one: &mut One, number: u64) -> (HostLink, HostId) {
    let mut link = HostLink::new(UnixStream::connect(&one.socket).unwrap());
    link.send(driver_hello("/bin/program", BinaryHash([0; 32]), vec![])).await;
    let ToHead::JobStart { request, driver, binary, files, .. } = one.head.recv().await else {
        panic!("no job to start")
    };
    let job = Job { job: JobId { number }, ..job(driver, binary, files) };
    one.head.send(ToAgentOfHead::JobStarted { request, job }).await;
    assert!(matches!(link.recv().await.0, ToHost::Welcome(welcome) if welcome.host == driver));
    link.send(ToAgent::RegionWanted { request: 1, bytes: MIB, wait_ms: 0 }).await;
    assert!(matches!(link.recv().await.0, ToHost::RegionGranted { .. }));
    let writer = Writer::create(MIB).unwrap();
    link.send_with(ToAgent::RegionAdded { request: 1, seq: 1, bytes: MIB }, &[writer.share().unwrap()]).await;
    let heap = mobula_store::heap::Heap::new(Default::default());
    heap.add_region(1, writer).unwrap();
    let mut block = heap.allocate(64).unwrap();
    block.as_mut_slice().fill(number as u8);
    assert_eq!(block.location().offset, 0);
    (link, driver)
}

/// It was told the name, and gives it to other bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o8_who_forges_a_copy_of_another_jobs_object_is_ended() {
    let mut one = one(false).await;
    let (mut link, owner) = driver_of(&mut one, 7).await;
    let (mut thief, thiefs) = driver_of(&mut one, 8).await;
    let made = object(owner, 1);
    let sealed =
        |attempt| ToAgent::Sealed { object: made, attempt, region: 1, offset: 0, bytes: 64, site: 0 };
    link.send(sealed(1)).await;
    // Which it answers once it has read what was sent before; what asks the agent itself comes behind that.
    link.send(ToAgent::Relay { to: owner, body: vec![1] }).await;
    assert!(matches!(link.recv().await.0, ToHost::Relayed { .. }));
    assert_eq!(one.handle.usage().await.objects, 1);
    thief.send(sealed(2)).await;
    assert!(!matches!(soon(thief.receiver.recv()).await, Ok(Some(_))), "its link goes on");
    assert!(matches!(one.head.recv().await, ToHead::HostEnded { host, .. } if host == thiefs));
    assert_eq!(one.handle.usage().await.objects, 1);
    let copy = Copy { node: NodeId::EMBEDDED, bytes: 64, attempt: 1, job: JOB };
    link.send(ToAgent::Open { ahead: false, request: 2, object: made, copy }).await;
    assert!(matches!(link.recv().await.0, ToHost::HostDied { host, .. } if host == thiefs));
    let (ToHost::Opened { region_bytes, offset, bytes, .. }, mut fds) = link.recv().await else { panic!() };
    let reader = Reader::map(fds.remove(0), region_bytes).unwrap();
    assert_eq!(reader.bytes(offset, bytes, None).unwrap()[..], [7; 64]);
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_ends_with_its_head() {
    let mut one = one(false).await;
    let (link, job) = one.driver().await;
    let (_started, _) = one.host(&job).await;
    drop(one.head);
    soon(one.handle.closed()).await.unwrap();
    while link.receiver.recv_timeout(SOON).is_ok() {}
}

/// What a host says stands behind its messages for one that takes none. A reader that heard of its objects in another way
/// waits for them, however long that is, and who says nothing at all does not keep it waiting for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_behind_messages_that_nobody_takes_is_not_lost() {
    let mut one = one(false).await;
    let (link, job) = one.driver().await;
    let (mut started, _host) = one.host(&job).await;
    let (ToHost::Output { .. }, _) = local(&link) else { panic!("no output") };
    let (mut busy, to) = driver_of(&mut one, 8).await;
    started.link.send(ToAgent::RegionWanted { request: 1, bytes: 4 * MIB, wait_ms: 1000 }).await;
    assert!(matches!(started.link.recv().await.0, ToHost::RegionGranted { request: 1 }));
    let fd = Writer::create(4 * MIB).unwrap().share().unwrap();
    started.link.send_with(ToAgent::RegionAdded { request: 1, seq: 1, bytes: 4 * MIB }, &[fd]).await;

    const RELAYED: usize = 40;
    let (read, freed) = (object(job.driver, 1), object(job.driver, 2));
    let (mark, marked) = oneshot::channel();
    let HostLink { sender, mut receiver } = started.link;
    let saying = task::spawn("test-says", async move {
        let mut sender = sender;
        let mut say =
            async |message: ToAgent| sender.send(&wire::encode(&message).unwrap(), &[]).await.unwrap();
        for _ in 0..RELAYED {
            say(ToAgent::Relay { to, body: vec![1; MIB as usize] }).await;
        }
        for (object, offset) in [(read, 0), (freed, 64)] {
            say(ToAgent::Sealed { object, attempt: 1, region: 1, offset, bytes: 32, site: 0 }).await;
        }
        say(ToAgent::Marked { number: marked.await.unwrap() }).await;
        sender
    });
    let copy = Copy { node: NodeId::EMBEDDED, bytes: 32, attempt: 1, job: job.job };
    link.send(ToAgent::Open { ahead: false, request: 1, object: read, copy }, vec![]).unwrap();
    link.send(ToAgent::Free { object: freed, copy }, vec![]).unwrap();
    let (ToHost::Mark { number }, _) = local(&link) else { panic!("not asked whether there is more") };
    link.send(ToAgent::Marked { number }, vec![]).unwrap();
    let asked = soon(receiver.recv()).await.unwrap().unwrap();
    assert!(matches!(wire::decode(&asked.body).unwrap(), ToHost::Mark { number: other } if other == number));
    assert_eq!(one.handle.usage().await.objects, 0, "nothing is heard of them");
    mark.send(number).unwrap();
    for _ in 0..RELAYED {
        assert!(matches!(busy.recv().await.0, ToHost::Relayed { .. }));
    }
    let sender = saying.await.unwrap();
    let (ToHost::Opened { request: 1, .. }, _) = local(&link) else { panic!("it is lost") };
    let reclaimed = soon(receiver.recv()).await.unwrap().unwrap();
    let ToHost::Reclaim { objects, .. } = wire::decode(&reclaimed.body).unwrap() else { panic!("it stays") };
    assert_eq!((objects, one.handle.usage().await.objects), (vec![(freed, 1)], 1));
    drop((link, busy, sender));
    soon(one.handle.shutdown()).await.unwrap();
}

/// A driver drops objects faster than the host whose memory they are in reads that it may use that again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_does_not_read_keeps_what_it_is_to_reclaim_and_lives() {
    const OBJECTS: u32 = 3 * super::super::routes::CONTROL_MAX as u32;
    let mut one = one(false).await;
    let (link, job) = one.driver().await;
    let (mut started, host) = one.host(&job).await;
    let (ToHost::Output { .. }, _) = local(&link) else { panic!("no output") };
    started.link.send(ToAgent::RegionWanted { request: 1, bytes: 4 * MIB, wait_ms: 1000 }).await;
    assert!(matches!(started.link.recv().await.0, ToHost::RegionGranted { request: 1 }));
    let fd = Writer::create(4 * MIB).unwrap().share().unwrap();
    started.link.send_with(ToAgent::RegionAdded { request: 1, seq: 1, bytes: 4 * MIB }, &[fd]).await;
    for index in 0..OBJECTS {
        let (object, offset) = (object(job.driver, index.into()), 64 * u64::from(index));
        let sealed = ToAgent::Sealed { object, attempt: 1, region: 1, offset, bytes: 32, site: 0 };
        started.link.send(sealed).await;
    }
    let copy = Copy { node: NodeId::EMBEDDED, bytes: 32, attempt: 1, job: job.job };
    let (driver, host_of) = (job.driver, host);
    // On a thread that may wait while the agent's queue is full.
    let frees = std::thread::spawn(move || {
        for index in 0..OBJECTS {
            // It may be sealed only after this: then it is reclaimed as soon as it is.
            link.send(ToAgent::Free { object: object(driver, index.into()), copy }, vec![]).unwrap();
        }
        link.send(ToAgent::RegionWanted { request: 2, bytes: MIB, wait_ms: 1000 }, vec![]).unwrap();
        link
    });
    let link = tokio::task::block_in_place(|| frees.join()).unwrap();
    loop {
        match local(&link).0 {
            ToHost::RegionGranted { request: 2 } => break,
            // What is freed so long before it is sealed is asked after.
            ToHost::Mark { .. } => {}
            other => panic!("the driver was not heard: {other:?}"),
        }
    }
    assert_eq!(one.handle.usage().await.hosts, 2, "{host_of} was ended");
    let (mut all, mut messages) = (Vec::new(), 0);
    while all.len() < OBJECTS as usize {
        match started.link.recv().await.0 {
            ToHost::Reclaim { objects, .. } => all.extend(objects),
            ToHost::Mark { .. } => continue,
            other => panic!("not reclaimed: {other:?}"),
        }
        messages += 1;
    }
    all.sort_unstable();
    assert_eq!(
        all,
        (0..OBJECTS).map(|index| (object(driver, index.into()), 1)).collect::<Vec<_>>(),
        "each once"
    );
    assert!(messages < OBJECTS, "together: {messages}");
    drop(link);
    soon(one.handle.shutdown()).await.unwrap();
}
