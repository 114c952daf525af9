use mobula_proto::{
    BinaryHash, Quantity, Resources, TaskId,
    head::ToAgent as FromHead,
    host::{Driver, ToAgent},
    resource::{Class, Isolation, Kind as ResourceKind},
    wire::{Hello, Role},
};

use super::{
    transfer::{Serve, Wish},
    *,
};

mod drain;
mod estate;
mod jobs;
mod lost;
mod pulls;
mod resting;
mod room;
mod salvage;
mod stock;

const JOB: JobId = JobId { number: 7 };
const MIB: u64 = 1024 * 1024;
const REGISTRY: u64 = 99;

fn other_node() -> Node {
    let node = NodeId { number: 2, incarnation: 1 };
    Node { node, name: "two".to_owned(), address: "127.0.0.1:1".to_owned() }
}

fn id(seq: u32) -> HostId {
    HostId { node: NodeId::EMBEDDED, seq }
}

fn lease(number: u64) -> LeaseId {
    LeaseId { number }
}

fn fd() -> OwnedFd {
    OwnedFd::from(std::fs::File::open("/dev/null").unwrap())
}

fn hello(role: Role, driver: Option<Driver>, registry: u64) -> ToAgent {
    ToAgent::Hello { hello: Hello::new(role), pid: 1, driver, registry }
}

fn driver() -> Driver {
    Driver {
        name: "crawl".to_owned(),
        namespace: String::new(),
        queue: String::new(),
        program: "/bin/crawl".to_owned(),
        binary: BinaryHash([1; 32]),
        arguments: vec![],
        files: vec![],
    }
}

struct Rig {
    core: Core,
    now: Instant,
}

impl Rig {
    fn new(in_process: bool) -> Self {
        let mut core = Core::new(Config {
            node: NodeId::EMBEDDED,
            cpus: 4,
            store_bytes: 4 * MIB,
            spill: objects::Limits::default(),
            pulls: transfer::Pulls::default(),
            in_process_executor: in_process,
            idle_timeout: Duration::from_secs(10),
        });
        core.node_up(other_node());
        Self { core, now: Instant::now() }
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.core.effects)
    }

    /// What comes of a host's message, one line each.
    fn host(&mut self, host: HostId, message: ToAgent) -> Vec<String> {
        self.host_with(host, message, vec![])
    }

    fn host_with(&mut self, host: HostId, message: ToAgent, fds: Vec<OwnedFd>) -> Vec<String> {
        self.core.from_host(host, message, fds, self.now);
        self.lines()
    }

    fn head(&mut self, message: FromHead) -> Vec<String> {
        self.core.from_head(message, self.now);
        self.lines()
    }

    fn lines(&mut self) -> Vec<String> {
        self.take().iter().map(line).collect()
    }

    /// What comes of it that all hosts are asked whether they have said more, and had not.
    fn all_heard(&mut self) -> Vec<String> {
        self.now += early::EARLY_WAIT;
        self.core.tick(self.now);
        let mut lines = Vec::new();
        let mut effects = self.take();
        while !effects.is_empty() {
            for effect in effects {
                match effect {
                    Effect::Tell(host, ToHost::Mark { number }, _) => {
                        self.core.from_host(host, ToAgent::Marked { number }, vec![], self.now);
                    }
                    other => lines.push(line(&other)),
                }
            }
            effects = self.take();
        }
        lines
    }

    /// A driver whose job runs.
    fn driver(&mut self, in_process: bool) -> HostId {
        let host = self.core.driver_arrived(in_process).unwrap();
        let said = self.host(host, hello(Role::Driver, Some(driver()), REGISTRY));
        assert_eq!(said, ["head JobStart"]);
        let said = self.head(FromHead::JobStarted { request: u64::from(host.seq), job: job(host) });
        assert_eq!(said, ["ready host-1", "host-1 < Welcome"]);
        host
    }

    fn launched(&mut self, number: u64, class: Class) -> HostId {
        let said = self.head(reserve(number, class));
        let host = id(self.core.hosts.iter().last().unwrap().0.seq);
        assert_eq!(said, [format!("launch host-{}", host.seq)]);
        let said = self.host(host, hello(Role::Host, None, REGISTRY));
        let n = host.seq;
        assert_eq!(
            said,
            [format!("ready host-{n}"), format!("host-{n} < Welcome"), format!("head LeaseReady host-{n}")]
        );
        host
    }
}

fn job(driver: HostId) -> Job {
    Job {
        job: JOB,
        driver,
        name: "crawl".to_owned(),
        namespace: "x".to_owned(),
        queue: String::new(),
        binary: BinaryHash([1; 32]),
        arguments: vec![],
        files: vec![],
    }
}

fn reserve(number: u64, class: Class) -> FromHead {
    FromHead::Reserve { lease: lease(number), job: job(id(1)), class, slots: 1, devices: vec![] }
}

fn own() -> Class {
    Class { isolation: Isolation::Process, ..Class::default() }
}

fn short(id: &HostId) -> String {
    if id.is_agent() { "agent".to_owned() } else { format!("host-{}", id.seq) }
}

fn name_of(debug: &impl std::fmt::Debug) -> String {
    let text = format!("{debug:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn line(effect: &Effect) -> String {
    match effect {
        Effect::Tell(host, message, fds) => {
            let fds = if fds.is_empty() { String::new() } else { format!(" +{}fd", fds.len()) };
            let detail = match message {
                ToHost::RegionRefused { failure, .. } | ToHost::OpenFailed { failure, .. } => {
                    format!(" {:?}", failure.kind)
                }
                ToHost::HostDied { host, .. } => format!(" {}", short(host)),
                ToHost::Reclaim { objects, give_back: true } => format!(" {} and give back", objects.len()),
                ToHost::Reclaim { objects, give_back: false } => format!(" {}", objects.len()),
                _ => String::new(),
            };
            format!("{} < {}{detail}{fds}", short(host), name_of(message))
        }
        Effect::Head(ToHead::LeaseReady { host, .. }) => format!("head LeaseReady {}", short(host)),
        Effect::Head(message) => format!("head {}", name_of(message)),
        Effect::Peer(node, message) => format!("{node} {}", name_of(message)),
        Effect::Launch(launch) => format!("launch {}", short(&launch.host)),
        Effect::Kill(host) => format!("kill {}", short(host)),
        Effect::Close(host) => format!("close {}", short(host)),
        Effect::Ready(host, _) => format!("ready {}", short(host)),
        Effect::Rings([(one, _), (other, _)]) => format!("rings {} {}", short(one), short(other)),
        Effect::Pull(key, copy, _) => format!("pull {} from {}", key.0, copy.node),
        Effect::Hurry(key) => format!("hurry {}", key.0),
        Effect::Recall(key) => format!("recall {}", key.0),
        Effect::EndPull((object, ..)) => format!("end the pull of {object}"),
        Effect::Spill(spill) => format!("spill {} into {}", spill.items.len(), spill.file),
        Effect::Restore((object, ..), ..) => format!("restore {object}"),
        Effect::DeleteFile(file) => format!("delete {file}"),
        Effect::Serve(_, served) => {
            let served = served.as_ref().map_or_else(|f| format!("{:?}", f.kind), |()| "it".to_owned());
            format!("serve {served}")
        }
        Effect::Reclaim(copies) => format!("reclaim {}", copies.len()),
        Effect::Room(request, result) => format!("room {request} {}", result.is_ok()),
        Effect::JobGone(job) => format!("gone {job}"),
    }
}

fn object(seq: u64) -> ObjectId {
    TaskId::numbered(id(1), seq).object(0)
}

fn copy(node: NodeId, attempt: u32) -> Copy {
    Copy { node, bytes: 100, attempt, job: JOB }
}

/// By its first attempt, in its writer's first region.
fn sealed(seq: u64, offset: u64, bytes: u64) -> ToAgent {
    ToAgent::Sealed { object: object(seq), attempt: 1, region: 1, offset, bytes, site: 0 }
}

#[test]
fn a_driver_whose_job_may_not_start_is_told_why() {
    let mut rig = Rig::new(false);
    let host = rig.core.driver_arrived(false).unwrap();
    rig.host(host, hello(Role::Driver, Some(driver()), REGISTRY));
    let answer = mobula_proto::host::Answer::Failed(Failure::new(FailureKind::Queue, "no such queue"));
    let said = rig.head(FromHead::Answered { host, request: u64::from(host.seq), answer });
    assert_eq!(said, ["host-1 < Refused", "close host-1"]);
}

#[test]
fn a_lease_starts_the_shared_host_once() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    assert_eq!(rig.head(reserve(1, Class::default())), ["launch host-2"]);
    assert_eq!(rig.head(reserve(2, Class::default())), [""; 0]);
    let said = rig.host(id(2), hello(Role::Host, None, REGISTRY));
    assert_eq!(
        said,
        ["ready host-2", "host-2 < Welcome", "head LeaseReady host-2", "head LeaseReady host-2"]
    );
    assert_eq!(rig.head(reserve(3, Class::default())), ["head LeaseReady host-2"]);
    assert_eq!(rig.head(reserve(4, own())), ["launch host-3"]);
    rig.core.host_ended(id(3), Failure::new(FailureKind::HostDied, "exited with code 101"), rig.now);
    assert_eq!(rig.lines(), ["head LeaseFailed"]);
    rig.core.host_ended(id(2), Failure::new(FailureKind::HostDied, "killed by signal 9"), rig.now);
    assert_eq!(rig.lines(), ["head HostEnded", "host-1 < HostDied host-2"]);
}

#[test]
fn the_head_hears_of_waits_that_last_and_of_cpus() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let cpu = Class { resources: Resources::cpu(Quantity::ONE), ..Class::default() };
    let host = rig.launched(1, cpu);
    rig.head(reserve(2, Class { resources: Resources::none(), ..Class::default() }));
    let block = |number| ToAgent::Block { lease: lease(number), slots: 1 };
    let unblock = |number| ToAgent::Unblock { lease: lease(number), slots: 1 };
    for number in [1, 2] {
        assert_eq!(rig.host(host, block(number)), [""; 0]);
        assert_eq!(rig.host(host, unblock(number)), [""; 0]);
        assert_eq!(rig.host(host, block(number)), [""; 0]);
    }
    rig.now = rig.core.waits.next_deadline().unwrap();
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["head Block"]);
    assert_eq!(rig.host(host, unblock(2)), [""; 0]);
    assert_eq!(rig.host(host, unblock(1)), ["head Unblock"]);
    assert_eq!(rig.core.waits.next_deadline(), None);
}

#[test]
fn a_host_of_another_program_is_refused() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    rig.head(reserve(1, Class::default()));
    let said = rig.host(id(2), hello(Role::Host, None, REGISTRY + 1));
    assert_eq!(said, ["host-2 < Refused", "kill host-2"]);
    assert_eq!(rig.host(id(2), ToAgent::JobDone), ["kill host-2"], "it was not welcomed");
}

#[test]
fn in_process_the_driver_executes() {
    let mut rig = Rig::new(true);
    rig.driver(true);
    assert_eq!(rig.head(reserve(1, Class::default())), ["head LeaseReady host-1"]);
    assert_eq!(rig.head(reserve(2, own())), ["launch host-2"]);
    assert_eq!(rig.head(FromHead::StartSteward { job: job(id(1)) }), ["head StewardReady"]);
}

#[test]
fn what_a_host_made_before_it_died_is_discarded() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, Class::default());
    rig.host(host, ToAgent::RegionWanted { request: 5, bytes: 3 * MIB, wait_ms: 0 });
    rig.host_with(host, ToAgent::RegionAdded { request: 5, seq: 1, bytes: 3 * MIB }, vec![fd()]);
    let value = |index| object(1).task().object(index);
    for (at, (index, attempt)) in [(0, 2), (1, 1), (1, 2), (2, 2), (3, 2)].into_iter().enumerate() {
        let offset = 64 * (at as u64 + 1);
        let (object, bytes) = (value(index), 10);
        rig.host(host, ToAgent::Sealed { object, attempt, region: 1, offset, bytes, site: 0 });
    }
    rig.host(host, sealed(2, 640, 10));
    let discard = |node, object: ObjectId, last| ToAgent::Discard { node, object, last, attempt: 2 };
    let here = NodeId::EMBEDDED;
    assert_eq!(rig.host(id(1), discard(here, value(3), 2)), [""; 0], "none from the fourth to the third");
    assert_eq!(rig.host(id(1), discard(here, value(1), 2)), ["host-2 < Reclaim 2"]);
    let left = [(0, 2), (1, 1), (3, 2)];
    for (index, attempt) in left {
        assert!(rig.core.objects.find((value(index), attempt, JOB)).is_some(), "{index} by {attempt}");
    }
    assert_eq!(rig.core.usage().objects, 4, "that of another task stays, too");
    rig.core.from_peer(Between::Discard { object: value(0), last: u32::MAX, attempt: 2, job: None });
    assert_eq!((rig.lines(), rig.core.usage().objects), (vec!["host-2 < Reclaim 2".to_owned()], 2));
    rig.head(FromHead::NodeUp(other_node()));
    assert_eq!(rig.host(id(1), discard(other_node().node, value(1), 2)), ["node-2 Discard"]);
    assert_eq!(rig.host(host, discard(here, value(1), 2)), ["kill host-2"], "it is not its own");
}

/// The value of one attempt, when a later one makes it again since another of its values was lost.
#[test]
fn what_is_declined_takes_nothing_along() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, Class::default());
    rig.host(host, ToAgent::RegionWanted { request: 5, bytes: 3 * MIB, wait_ms: 0 });
    rig.host_with(host, ToAgent::RegionAdded { request: 5, seq: 1, bytes: 3 * MIB }, vec![fd()]);
    let sealed = |attempt: u32| {
        let (object, offset) = (object(1), u64::from(attempt) * 64);
        ToAgent::Sealed { object, attempt, region: 1, offset, bytes: 10, site: 0 }
    };
    let copy = |attempt| Copy { attempt, ..copy(NodeId::EMBEDDED, 1) };
    let decline = |attempt| ToAgent::Decline { object: object(1), copy: copy(attempt) };
    let there = |rig: &Rig| [1, 2].map(|attempt| rig.core.objects.find((object(1), attempt, JOB)).is_some());
    rig.host(host, sealed(1));
    rig.host(host, sealed(2));
    assert_eq!(rig.host(id(1), decline(2)), ["host-2 < Reclaim 1"]);
    assert_eq!(there(&rig), [true, false]);
    // Word of it may be faster than the writer's own.
    assert_eq!(rig.host(id(1), decline(2)), [""; 0]);
    assert_eq!(rig.host(host, sealed(2)), ["host-2 < Reclaim 1"]);
    assert_eq!(there(&rig), [true, false]);
    // Who made it for another may take back what it never told of, and nothing else.
    rig.host(host, sealed(2));
    assert_eq!(rig.host(host, decline(2)), ["host-2 < Reclaim 1"]);
    assert_eq!(there(&rig), [true, false]);
    rig.head(FromHead::NodeUp(other_node()));
    let elsewhere = Copy { node: other_node().node, ..copy(2) };
    let decline =
        |by: HostId, rig: &mut Rig| rig.host(by, ToAgent::Decline { object: object(1), copy: elsewhere });
    assert_eq!(decline(id(1), &mut rig), ["node-2 Discard"]);
    assert_eq!(decline(host, &mut rig), ["kill host-2"]);
}

#[test]
fn objects_are_opened_pinned_freed_and_reclaimed() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, Class::default());
    let wanted = ToAgent::RegionWanted { request: 5, bytes: 3 * MIB, wait_ms: 0 };
    assert_eq!(rig.host(host, wanted), ["host-2 < RegionGranted"]);
    let added = ToAgent::RegionAdded { request: 5, seq: 1, bytes: 3 * MIB };
    assert_eq!(rig.host_with(host, added, vec![fd()]), [""; 0]);
    assert_eq!(rig.host(host, sealed(1, 64, 100)), [""; 0]);
    let here = copy(NodeId::EMBEDDED, 1);
    let open = |attempt| ToAgent::Open {
        ahead: false,
        request: 9,
        object: object(1),
        copy: Copy { attempt, ..here },
    };
    assert_eq!(rig.host(id(1), open(2)), [""; 0], "its completion may not have been heard of yet");
    assert_eq!(rig.all_heard(), ["host-1 < OpenFailed ObjectLost"]);
    assert_eq!(rig.host(id(1), open(1)), ["host-1 < Opened +1fd"]);
    assert_eq!(
        rig.host(id(1), open(1)),
        ["host-1 < Opened +1fd"],
        "the reader has not mapped the region yet"
    );
    let region = RegionId { writer: host, seq: 1 };
    assert_eq!(rig.host(id(1), ToAgent::Mapped { region }), [""; 0]);
    assert_eq!(rig.host(id(1), open(1)), ["host-1 < Opened"]);
    assert_eq!(rig.host(id(1), ToAgent::Unpin { object: object(1) }), [""; 0]);
    assert_eq!(rig.host(id(1), ToAgent::Free { object: object(1), copy: here }), [""; 0]);
    assert_eq!(rig.host(id(1), ToAgent::Unpin { object: object(1) }), [""; 0]);
    assert_eq!(rig.host(id(1), ToAgent::Unpin { object: object(1) }), ["host-2 < Reclaim 1"]);
    // A reader, or the owner's last ref, may be faster than the writer's own word.
    let early = |request| ToAgent::Open { ahead: false, request, object: object(7), copy: here };
    assert_eq!(rig.host(id(1), early(1)), [""; 0]);
    assert_eq!(rig.host(id(1), ToAgent::Free { object: object(7), copy: here }), [""; 0]);
    assert_eq!(rig.host(host, sealed(7, 128, 10)), ["host-1 < Opened"]);
    assert_eq!(rig.host(id(1), ToAgent::Unpin { object: object(7) }), ["host-2 < Reclaim 1"]);
    // No room for a second region until the first one goes, wherever it is mapped.
    let wanted = ToAgent::RegionWanted { request: 6, bytes: 2 * MIB, wait_ms: 100 };
    assert_eq!(
        rig.host(host, wanted.clone()),
        ["host-2 < Reclaim 0 and give back"],
        "it keeps one for reuse alone"
    );
    rig.now += Duration::from_millis(100);
    assert_eq!(rig.core.next_deadline(), Some(rig.now));
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["host-2 < RegionRefused StoreFull"]);
    assert_eq!(rig.host(host, wanted), [""; 0]);
    assert_eq!(rig.host(host, ToAgent::RegionRemoved { seq: 1 }), ["host-1 < Unmap"]);
    assert_eq!(rig.host(id(1), ToAgent::Unmapped { region }), ["host-2 < RegionGranted"]);
    assert_eq!(rig.host(host, sealed(2, 0, 1)), ["kill host-2"], "there is no such region");
}

/// What a host says may stand for long behind messages that nobody takes.
#[test]
fn what_is_not_heard_of_yet_is_not_lost() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, Class::default());
    rig.host(host, ToAgent::RegionWanted { request: 5, bytes: 3 * MIB, wait_ms: 0 });
    rig.host_with(host, ToAgent::RegionAdded { request: 5, seq: 1, bytes: 3 * MIB }, vec![fd()]);
    let here = copy(NodeId::EMBEDDED, 1);
    let open = |seq| ToAgent::Open { ahead: false, request: seq, object: object(seq), copy: here };
    let by = other_node().node;
    let wish = |seq| Wish { object: object(seq), copy: here, by, tried: vec![], whole: false };
    assert_eq!(rig.host(id(1), open(1)), [""; 0]);
    assert_eq!(rig.host(id(1), ToAgent::Free { object: object(2), copy: here }), [""; 0]);
    assert!(matches!(rig.core.serve(&wish(1), rig.now), Serve::Later(_)));
    assert!(matches!(rig.core.serve(&wish(3), rig.now), Serve::Later(_)));
    rig.now += early::EARLY_WAIT;
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["host-1 < Mark", "host-2 < Mark"]);
    assert_eq!(rig.host(id(1), ToAgent::Marked { number: 1 }), [""; 0]);
    rig.now += early::MARK_WAIT - Duration::from_millis(1);
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), [""; 0]);
    rig.now += Duration::from_millis(1);
    rig.core.tick(rig.now);
    let given_up = ["host-1 < OpenFailed Unreachable", "serve Unreachable", "serve Unreachable"];
    assert_eq!(rig.lines(), given_up, "tried again, it may be there");
    rig.host(id(1), open(1));
    assert!(matches!(rig.core.serve(&wish(1), rig.now), Serve::Later(_)));
    assert_eq!(rig.host(host, sealed(1, 64, 100)), ["host-1 < Opened +1fd", "serve it"]);
    assert_eq!(rig.host(host, sealed(2, 192, 100)), ["host-2 < Reclaim 1"], "however late");
    assert_eq!(rig.host(host, ToAgent::Marked { number: 1 }), [""; 0]);

    // Whoever is gone has nothing more to say, and the end of a job is the end of what it would have made.
    rig.host(id(1), open(4));
    assert!(matches!(rig.core.serve(&wish(5), rig.now), Serve::Later(_)));
    rig.now += early::EARLY_WAIT;
    rig.core.tick(rig.now);
    assert_eq!(rig.lines(), ["host-1 < Mark", "host-2 < Mark"]);
    assert_eq!(rig.host(id(1), ToAgent::Marked { number: 2 }), [""; 0]);
    rig.core.host_ended(host, Failure::new(FailureKind::HostDied, "killed"), rig.now);
    let said = rig.lines();
    assert!(
        said.ends_with(&["host-1 < OpenFailed ObjectLost".to_owned(), "serve ObjectLost".to_owned()]),
        "{said:?}"
    );
    assert!(matches!(rig.core.serve(&wish(6), rig.now), Serve::Later(_)));
    let failure = Failure::new(FailureKind::JobEnded, "over");
    let said = rig.head(FromHead::JobEnded { job: JOB, failure, nodes: vec![] });
    assert!(said.contains(&"serve ObjectLost".to_owned()), "{said:?}");
    assert_eq!(rig.core.early.next_deadline(), None);
}

#[test]
fn pulls_are_shared_and_go_with_the_primary() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, Class::default());
    let there = copy(other_node().node, 3);
    let open = ToAgent::Open { ahead: false, request: 1, object: object(1), copy: there };
    assert_eq!(rig.host(id(1), open.clone()).len(), 1, "one pull");
    assert_eq!(rig.host(host, open.clone()), [""; 0]);
    // What the service does: room, region, copy.
    let agent = NodeId::EMBEDDED.agent();
    rig.core.want_region(agent, 1, MIB, Duration::ZERO, rig.now);
    assert_eq!(rig.lines(), ["room 1 true"]);
    let region = RegionId { writer: agent, seq: 1 };
    rig.core.objects.add_region(region, 1, JOB, MIB, Arc::new(fd())).unwrap();
    assert!(rig.core.pulled((object(1), 3, JOB), Ok((region, 0, 100))));
    assert_eq!(rig.lines(), ["host-1 < Opened +1fd", "host-2 < Opened +1fd"]);
    rig.core.from_peer(Between::Drop { object: object(1), attempt: 3, job: JOB });
    rig.host(id(1), ToAgent::Unpin { object: object(1) });
    assert_eq!(rig.host(host, ToAgent::Unpin { object: object(1) }), ["reclaim 1"]);
    // Freed at its owner: the node with the primary is told.
    assert_eq!(rig.host(id(1), ToAgent::Free { object: object(1), copy: there }), ["node-2 Free"]);
    // The node goes while it is pulled from.
    let open = ToAgent::Open { ahead: false, request: 1, object: object(2), copy: there };
    assert_eq!(rig.host(id(1), open.clone()).len(), 1);
    let failure = Failure::new(FailureKind::NodeDied, "gone");
    let said = rig.head(FromHead::NodeDown { node: there.node, failure });
    assert_eq!(said, ["host-1 < NodeDied", "host-2 < NodeDied"], "it may be had elsewhere");
    let why = Failure::new(FailureKind::ObjectLost, "there is no other");
    assert!(!rig.core.pulled((object(2), 3, JOB), Err(why)));
    assert_eq!(rig.lines(), ["host-1 < OpenFailed ObjectLost"]);
    assert!(!rig.core.pulled((object(2), 3, JOB), Ok((region, 0, 100))), "nobody waits for it any more");
    assert_eq!(rig.host(id(1), open), ["host-1 < OpenFailed ObjectLost"]);
}

/// The service says that a pull has begun, in a region of the agent's own.
fn began(rig: &mut Rig, seq: u64) -> RegionId {
    let agent = NodeId::EMBEDDED.agent();
    rig.core.want_region(agent, 1, MIB, Duration::ZERO, rig.now);
    let region = RegionId { writer: agent, seq: 1 };
    rig.core.objects.add_region(region, 1, JOB, MIB, Arc::new(fd())).unwrap();
    rig.core.pull_began((object(seq), 3, JOB), region);
    rig.take();
    region
}

#[test]
fn tr5_a_pull_ends_with_its_job_and_counts_until_it_has_ended() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let there = Copy { bytes: MIB, ..copy(other_node().node, 3) };
    let open = |seq| ToAgent::Open { ahead: false, request: 1, object: object(seq), copy: there };
    rig.host(id(1), open(1));
    let region = began(&mut rig, 1);
    assert_eq!(rig.host(id(1), open(2)), [""; 0], "a quarter of the store is under way");
    let said = rig.head(ended(vec![]));
    assert_eq!(said[..2], [format!("end the pull of {}", object(1)), "gone job-7".to_owned()], "{said:?}");
    assert_eq!(rig.core.usage().store_used_bytes, MIB);
    let unwanted = Failure::new(FailureKind::Unreachable, "nobody waited");
    assert!(!rig.core.pulled((object(1), 3, JOB), Err(unwanted)));
    assert_eq!(rig.core.usage().store_used_bytes, MIB, "a part of it may still be sent");
    assert!(!rig.core.queue.is_empty());
    rig.core.pull_left(region, MIB);
    assert_eq!(rig.core.usage().store_used_bytes, 0);
    assert!(rig.core.queue.is_empty());
}

#[test]
fn tr3_a_part_stays_until_it_was_served() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let there = copy(other_node().node, 3);
    let open = ToAgent::Open { ahead: false, request: 1, object: object(1), copy: there };
    rig.host(id(1), open);
    let third = NodeId { number: 3, incarnation: 1 };
    let wish = |whole| Wish { object: object(1), copy: there, by: third, tried: vec![], whole };
    assert!(matches!(rig.core.serve(&wish(true), rig.now), Serve::No(_)), "there is only a part");
    assert!(matches!(rig.core.serve(&wish(false), rig.now), Serve::Part(_)));
    assert!(matches!(rig.core.serve(&wish(false), rig.now), Serve::Part(_)));
    let other = Wish { copy: copy(there.node, 4), ..wish(false) };
    assert!(matches!(rig.core.serve(&other, rig.now), Serve::No(_)), "attempts are never mixed");
    rig.core.served((object(1), 3, JOB), third, 10);
    let agent = NodeId::EMBEDDED.agent();
    rig.core.want_region(agent, 1, MIB, Duration::ZERO, rig.now);
    let region = RegionId { writer: agent, seq: 1 };
    rig.core.objects.add_region(region, 1, JOB, MIB, Arc::new(fd())).unwrap();
    assert!(rig.core.pulled((object(1), 3, JOB), Ok((region, 0, 100))));
    rig.lines();
    rig.core.from_peer(Between::Drop { object: object(1), attempt: 3, job: JOB });
    assert_eq!(rig.host(id(1), ToAgent::Unpin { object: object(1) }), [""; 0], "it is still served");
    rig.core.served((object(1), 3, JOB), third, 90);
    assert_eq!(rig.lines(), ["reclaim 1"]);
    assert_eq!((rig.core.usage().served_bytes, rig.core.usage().pinned), (100, 0));
    // A pull that fails leaves nothing behind.
    let open = ToAgent::Open { ahead: false, request: 1, object: object(2), copy: there };
    rig.host(id(1), open);
    let wish = Wish { object: object(2), ..wish(false) };
    assert!(matches!(rig.core.serve(&wish, rig.now), Serve::Part(_)));
    rig.core.pulled((object(2), 3, JOB), Err(Failure::new(FailureKind::ObjectLost, "gone")));
    rig.core.served((object(2), 3, JOB), third, 0);
    assert_eq!((rig.core.usage().objects, rig.core.usage().pinned), (0, 0));
}

#[test]
fn tr4_what_is_waited_for_is_pulled_before_what_is_fetched_ahead() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    // As much as may be pulled at once.
    let there = Copy { bytes: MIB, ..copy(other_node().node, 3) };
    let begun = |rig: &mut Rig| {
        let pulls = rig.take().into_iter().filter_map(|effect| match effect {
            Effect::Pull(key, ..) => Some(key.0.seq),
            _ => None,
        });
        pulls.collect::<Vec<_>>()
    };
    let hurry = |rig: &mut Rig, seq| {
        rig.core.from_host(id(1), ToAgent::Hurry { object: object(seq) }, vec![], rig.now);
        begun(rig)
    };
    let asked = [(1, true), (2, true), (3, true), (6, true), (4, false), (5, false), (3, false)];
    assert_eq!(hurry(&mut rig, 7), [0; 0], "nothing of that name was asked for");
    for (request, (seq, ahead)) in (1..).zip(asked) {
        let open = ToAgent::Open { ahead, request, object: object(seq), copy: there };
        rig.core.from_host(id(1), open, vec![], rig.now);
        assert_eq!(begun(&mut rig), if request == 1 { vec![1] } else { vec![] }, "one at a time");
    }
    assert_eq!(hurry(&mut rig, 6), [0; 0]);
    let again = ToAgent::Open { ahead: false, request: 9, object: object(1), copy: there };
    let said = rig.host(id(1), again.clone());
    assert_eq!(said, ["hurry node-1/host-1#1.0"], "it may lack memory");
    assert_eq!(rig.host(id(1), again), [""; 0], "that is known");
    let mut order = vec![1];
    while let Some(seq) = order.last().filter(|_| order.len() < asked.len()) {
        let gone = Failure::new(FailureKind::ObjectLost, "gone");
        rig.core.pulled((object(*seq), 3, JOB), Err(gone));
        let next = begun(&mut rig);
        if next.is_empty() {
            break;
        }
        order.extend(next);
    }
    assert_eq!(order, [1, 4, 5, 3, 6, 2]);
}

#[test]
fn served_objects_are_dropped_where_they_were_pulled() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let wanted = ToAgent::RegionWanted { request: 5, bytes: MIB, wait_ms: 0 };
    rig.host(id(1), wanted);
    rig.host_with(id(1), ToAgent::RegionAdded { request: 5, seq: 1, bytes: MIB }, vec![fd()]);
    rig.host(id(1), sealed(1, 0, 100));
    let by = other_node().node;
    let wish = |attempt| Wish {
        object: object(1),
        copy: copy(NodeId::EMBEDDED, attempt),
        by,
        tried: vec![],
        whole: false,
    };
    assert!(matches!(rig.core.serve(&wish(2), rig.now), Serve::Later(_)));
    assert_eq!(rig.all_heard(), ["serve ObjectLost"]);
    let Serve::Whole(key, place, _fd, others) = rig.core.serve(&wish(1), rig.now) else {
        panic!("not served")
    };
    assert!(others.is_empty());
    assert_eq!((place.bytes, place.region_bytes), (100, MIB));
    let free = ToAgent::Free { object: object(1), copy: copy(NodeId::EMBEDDED, 1) };
    assert_eq!(rig.host(id(1), free), ["node-2 Drop"], "it is still read");
    rig.core.served(key, by, 100);
    assert_eq!(rig.lines(), ["host-1 < Reclaim 1"]);
    assert_eq!(rig.core.usage().served_bytes, 100);
}

/// What lies on disk alone is read back before another node gets it, and pinned for that; what cannot be read is a copy no
/// more, and whoever waits for it is told.
#[test]
fn what_is_on_disk_is_served_later_or_not_at_all() {
    for readable in [true, false] {
        let mut rig = Rig::new(false);
        rig.driver(false);
        let host = rig.launched(1, Class::default());
        rig.host(host, ToAgent::RegionWanted { request: 5, bytes: 4 * MIB, wait_ms: 0 });
        rig.host_with(host, ToAgent::RegionAdded { request: 5, seq: 1, bytes: 4 * MIB }, vec![fd()]);
        rig.host(host, sealed(1, 0, 100));
        let wanted = ToAgent::RegionWanted { request: 6, bytes: MIB, wait_ms: 1000 };
        assert_eq!(rig.host(id(1), wanted), ["spill 1 into 1"]);
        rig.core.spilled(1, Ok(()), rig.now);
        assert_eq!(rig.lines()[0], "host-2 < Reclaim 1 and give back", "a part is for reading from now on");
        let by = other_node().node;
        let wish =
            Wish { object: object(1), copy: copy(NodeId::EMBEDDED, 1), by, tried: vec![], whole: false };
        assert!(matches!(rig.core.serve(&wish, rig.now), Serve::Later(_)));
        assert_eq!(rig.lines(), [format!("restore {}", object(1))]);
        assert!(matches!(rig.core.serve(&wish, rig.now), Serve::Later(_)));
        assert_eq!(rig.lines(), [""; 0], "once is enough for all");
        assert_eq!(rig.core.usage().pinned, 0, "nobody has it yet");
        let lost = Failure::new(FailureKind::ObjectLost, "a bit is another");
        let region = RegionId { writer: NodeId::EMBEDDED.agent(), seq: 1 };
        if readable {
            rig.host(host, ToAgent::RegionRemoved { seq: 1 });
            rig.core.want_region(region.writer, 1, MIB, Duration::ZERO, rig.now);
            rig.core.objects.add_region(region, 1, JOB, MIB, Arc::new(fd())).unwrap();
            rig.lines();
            assert!(rig.core.restored((object(1), 1, JOB), Ok((region, 0))));
            assert_eq!(rig.lines(), ["serve it"]);
            let Serve::Whole(_, place, ..) = rig.core.serve(&wish, rig.now) else {
                panic!("it is not served")
            };
            assert_eq!((place.region, place.bytes, rig.core.usage().pinned), (region, 100, 1));
        } else {
            assert!(!rig.core.restored((object(1), 1, JOB), Err(lost)));
            // Who asks for it may have it.
            assert_eq!(rig.lines()[..2], ["delete 1", &format!("pull {} from node-1", object(1))]);
            let lost = Failure::new(FailureKind::ObjectLost, "it does not");
            assert!(!rig.core.pulled((object(1), 1, JOB), Err(lost)));
            assert_eq!(rig.lines()[..2], ["node-2 Drop", "serve ObjectLost"]);
            assert!(matches!(rig.core.serve(&wish, rig.now), Serve::Later(_)));
            assert_eq!(rig.all_heard(), ["serve ObjectLost"]);
            assert_eq!((rig.core.usage().objects, rig.core.usage().pinned), (0, 0));
        }
    }
}

#[test]
fn the_job_ends_with_its_driver() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, Class::default());
    rig.host(host, ToAgent::RegionWanted { request: 5, bytes: MIB, wait_ms: 0 });
    rig.host_with(host, ToAgent::RegionAdded { request: 5, seq: 1, bytes: MIB }, vec![fd()]);
    rig.core.host_ended(id(1), Failure::new(FailureKind::HostDied, "it closed its link"), rig.now);
    assert_eq!(rig.lines(), ["head HostEnded", "host-2 < HostDied host-1", "head JobEnd"]);
    assert_eq!(rig.head(ended(vec![])), ["kill host-2", "gone job-7"]);
    assert_eq!(rig.host(host, ToAgent::RegionWanted { request: 6, bytes: MIB, wait_ms: 0 }), [""; 0]);
    rig.core.host_ended(host, Failure::new(FailureKind::HostDied, "killed by signal 9"), rig.now);
    let usage = rig.core.usage();
    assert_eq!((usage.store_used_bytes, usage.hosts, usage.objects), (0, 0, 0));
    // A number for a driver that left meanwhile.
    let gone = rig.core.driver_arrived(false).unwrap();
    rig.host(gone, hello(Role::Driver, Some(driver()), REGISTRY));
    rig.core.host_ended(gone, Failure::new(FailureKind::HostDied, "left"), rig.now);
    rig.lines();
    let started = FromHead::JobStarted { request: u64::from(gone.seq), job: job(gone) };
    assert_eq!(rig.head(started), ["head JobEnd"]);
}

fn ended(nodes: Vec<NodeId>) -> FromHead {
    FromHead::JobEnded { job: JOB, failure: Failure::new(FailureKind::JobEnded, "main has ended"), nodes }
}

#[test]
fn a_driver_hears_of_the_end_behind_the_last_output() {
    let other = other_node().node;
    let died = || Failure::new(FailureKind::HostDied, "killed by signal 9");
    let begin = |nodes| {
        let mut rig = Rig::new(false);
        rig.driver(false);
        let host = rig.launched(1, Class::default());
        assert_eq!(rig.host(id(1), ToAgent::JobDone), ["head JobEnd"], "the head decides");
        assert_eq!(rig.head(ended(nodes)), ["kill host-2", "gone job-7"]);
        (rig, host)
    };
    let gone = ["head HostEnded", "host-1 < HostDied host-2"];
    let last = ["head HostEnded", "host-1 < HostDied host-2", "host-1 < JobEnded"];
    let said = || Between::OutputEnded { job: JOB, node: other };
    // The hosts here first, the other node first, and one that is lost.
    let (mut rig, host) = begin(vec![other]);
    rig.core.host_ended(host, died(), rig.now);
    assert_eq!(rig.lines(), gone);
    rig.core.from_peer(said());
    assert_eq!(rig.lines(), ["host-1 < JobEnded"]);
    let (mut rig, host) = begin(vec![other]);
    rig.core.from_peer(said());
    rig.core.host_ended(host, died(), rig.now);
    assert_eq!(rig.lines(), last);
    let (mut rig, host) = begin(vec![other]);
    rig.head(FromHead::NodeDown { node: other, failure: died() });
    rig.core.host_ended(host, died(), rig.now);
    assert_eq!(rig.lines(), last);
    // A node that nobody asked for hosts, or that is gone, has nothing to say.
    let (mut rig, host) = begin(vec![NodeId { number: 9, incarnation: 1 }]);
    rig.core.host_ended(host, died(), rig.now);
    assert_eq!(rig.lines(), last);
    assert!(rig.core.endings.is_empty());
    // The other node may hear of the end before the driver's own.
    let mut rig = Rig::new(false);
    rig.driver(false);
    rig.core.from_peer(said());
    assert_eq!(rig.head(ended(vec![other])), ["gone job-7", "host-1 < JobEnded"]);
    // A driver that does not wait is not waited for.
    let (mut rig, host) = begin(vec![other]);
    rig.core.host_ended(id(1), died(), rig.now);
    rig.core.host_ended(host, died(), rig.now);
    rig.core.from_peer(said());
    assert!(rig.core.endings.is_empty());
}

#[test]
fn a_node_tells_the_drivers_when_its_hosts_are_silent() {
    let mut rig = Rig::new(false);
    let theirs = Job { driver: HostId { node: other_node().node, seq: 1 }, ..job(id(1)) };
    let reserve = FromHead::Reserve {
        lease: lease(1),
        job: theirs.clone(),
        class: Class::default(),
        slots: 1,
        devices: vec![],
    };
    assert_eq!(rig.head(reserve), ["launch host-1"]);
    assert_eq!(rig.head(ended(vec![])), ["kill host-1", "gone job-7"]);
    rig.core.host_ended(id(1), Failure::new(FailureKind::HostDied, "killed by signal 9"), rig.now);
    assert_eq!(rig.lines().last().map(String::as_str), Some("node-2 OutputEnded"));
    assert!(rig.core.endings.is_empty());
}

#[test]
fn a_driver_goes_and_detached_actors_stay() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    rig.launched(1, Class::default());
    assert_eq!(rig.host(id(1), ToAgent::JobDone), ["head JobEnd"]);
    let failure = Failure::new(FailureKind::JobEnded, "main has ended");
    let dismissed = FromHead::HostEnded { host: id(1), job: JOB, failure };
    assert_eq!(rig.head(dismissed), ["host-1 < JobEnded"]);
    rig.core.host_ended(id(1), Failure::new(FailureKind::HostDied, "it closed its link"), rig.now);
    assert_eq!(rig.lines(), ["head HostEnded", "host-2 < HostDied host-1", "head JobEnd"]);
    assert!(rig.core.has_job(JOB), "the head says when it ends");
}

#[test]
fn demands_are_checked_and_rings_brokered() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let mut class = Class::default();
    let demand =
        |class: &Class| ToAgent::Demand { key: 1, class: class.clone(), backlog: 1, locality: vec![] };
    assert_eq!(rig.host(id(1), demand(&class)), ["head Demand"]);
    class.resources =
        Resources::from_list([(ResourceKind::Gpu, Quantity::from_units(15_000).unwrap())]).unwrap();
    assert_eq!(rig.host(id(1), demand(&class)), ["host-1 < Infeasible"]);
    assert_eq!(rig.host_with(id(1), ToAgent::Doorbell, vec![fd()]), [""; 0]);
    assert_eq!(rig.host(id(1), ToAgent::Connect { peer: id(2) }), ["host-1 < HostDied host-2"]);
    let host = rig.launched(1, Class::default());
    assert_eq!(rig.host(id(1), ToAgent::Connect { peer: host }), [""; 0]);
    assert_eq!(rig.host_with(host, ToAgent::Doorbell, vec![fd()]), ["rings host-1 host-2"]);
    assert_eq!(rig.host(host, ToAgent::Doorbell), ["kill host-2"], "without a descriptor");
}
