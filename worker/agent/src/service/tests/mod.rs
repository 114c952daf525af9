//! Whole agents, with a head and hosts that the tests play themselves.

mod broken;
mod one;
mod slow;
mod two;

use std::{
    io::Cursor,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mobula_net::link::{AsyncReceiver, AsyncSender, split_async};
use mobula_proto::{
    BinaryHash, HostId, JobId, LeaseId, Quantity, Resources, TaskId,
    head::Job,
    host::{Driver, ToAgent, ToHost, Welcome},
    resource::Class,
    wire::{self, Hello, Role},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::*;
use crate::launcher::{Error as LaunchError, Exit, Exited, Killer, Launched, Spec};

const JOB: JobId = JobId { number: 7 };
const SOON: Duration = Duration::from_secs(10);
const MIB: u64 = 1024 * 1024;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("in time")
}

/// A host that the agent believes to have started; the test plays it.
struct Started {
    program: PathBuf,
    cwd: Option<PathBuf>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    link: HostLink,
    stderr: DuplexStream,
    exit: Exiting,
}

#[derive(Clone)]
struct Exiting(Arc<Mutex<Option<oneshot::Sender<Exit>>>>);

impl Exiting {
    fn exit(&self, exit: Exit) {
        if let Some(report) = self.0.lock().take() {
            report.send(exit).ok();
        }
    }
}

struct HostLink {
    sender: AsyncSender,
    receiver: AsyncReceiver,
}

impl HostLink {
    fn new(stream: UnixStream) -> Self {
        let (sender, receiver) = split_async(stream).unwrap();
        Self { sender, receiver }
    }

    async fn send(&mut self, message: ToAgent) {
        self.send_with(message, &[]).await;
    }

    async fn send_with(&mut self, message: ToAgent, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.sender.send(&wire::encode(&message).unwrap(), &fds).await.unwrap();
    }

    async fn recv(&mut self) -> (ToHost, Vec<OwnedFd>) {
        let message = soon(self.receiver.recv()).await.unwrap().expect("a message, not the end");
        (wire::decode(&message.body).unwrap(), message.descriptors)
    }

    async fn welcome(&mut self) -> Welcome {
        self.send(host_hello()).await;
        match self.recv().await.0 {
            ToHost::Welcome(welcome) => welcome,
            other => panic!("no welcome: {other:?}"),
        }
    }
}

/// "Starts" hosts by handing them to the test.
struct FakeLauncher(mpsc::UnboundedSender<Started>);

impl Launcher for FakeLauncher {
    fn launch(&self, spec: Spec) -> Result<Launched, LaunchError> {
        let (report, exit) = Exited::channel();
        let exiting = Exiting(Arc::new(Mutex::new(Some(report))));
        let (stderr, ours) = tokio::io::duplex(4096);
        let killed = exiting.clone();
        let started = Started {
            program: spec.program,
            cwd: spec.cwd,
            args: spec.args,
            env: spec.env,
            link: HostLink::new(UnixStream::from(spec.boot_fd)),
            stderr,
            exit: exiting,
        };
        self.0.send(started).ok();
        Ok(Launched {
            pid: 1,
            stdout: Box::new(Cursor::new(b"hello from stdout\n".to_vec())),
            stderr: Box::new(ours),
            exit,
            killer: Killer::new(move || killed.exit(Exit::Signal(9))),
        })
    }
}

fn launcher() -> (Arc<dyn Launcher>, mpsc::UnboundedReceiver<Started>) {
    let (sender, started) = mpsc::unbounded_channel();
    (Arc::new(FakeLauncher(sender)), started)
}

fn detected() -> Detected {
    Detected {
        total: Resources::cpu(Quantity::whole(4)),
        devices: vec![],
        tpu_chips: 0,
        labels: vec![],
        hostname: "here".to_owned(),
    }
}

fn host_hello() -> ToAgent {
    ToAgent::Hello { hello: Hello::new(Role::Host), pid: 1, driver: None, registry: 5 }
}

fn driver_hello(program: &str, binary: BinaryHash, files: Vec<(String, String, BinaryHash)>) -> ToAgent {
    let driver = Driver {
        name: "test".to_owned(),
        namespace: String::new(),
        queue: String::new(),
        program: program.to_owned(),
        binary,
        arguments: vec!["--child".to_owned()],
        files,
    };
    ToAgent::Hello { hello: Hello::new(Role::Driver), pid: 1, driver: Some(driver), registry: 5 }
}

fn job(driver: HostId, binary: BinaryHash, files: Vec<(String, BinaryHash)>) -> Job {
    Job {
        job: JOB,
        driver,
        name: "test".to_owned(),
        namespace: "test".to_owned(),
        queue: String::new(),
        binary,
        arguments: vec!["--child".to_owned()],
        files,
    }
}

fn reserve(number: u64, job: Job, class: Class) -> ToAgentOfHead {
    ToAgentOfHead::Reserve { lease: LeaseId { number }, job, class, slots: 1, devices: vec![] }
}

use mobula_proto::head::ToAgent as ToAgentOfHead;

/// The head of one agent, played by the test.
struct FakeHead {
    from_agent: mpsc::Receiver<ToHead>,
    to_agent: mpsc::Sender<ToAgentOfHead>,
}

impl FakeHead {
    /// The next message that is no report of use.
    async fn recv(&mut self) -> ToHead {
        loop {
            match soon(self.from_agent.recv()).await.expect("a message, not the end") {
                // Each death is answered, in its own time.
                ToHead::Usage(_) | ToHead::Mourned { .. } => {}
                other => return other,
            }
        }
    }

    async fn send(&self, message: ToAgentOfHead) {
        self.to_agent.send(message).await.unwrap();
    }

    /// A driver's job gets its number.
    async fn start_job(&mut self) -> Job {
        let ToHead::JobStart { request, driver, binary, files, .. } = self.recv().await else {
            panic!("no job to start")
        };
        let job = job(driver, binary, files);
        self.send(ToAgentOfHead::JobStarted { request, job: job.clone() }).await;
        job
    }

    /// The driver's agent says that the job is over, and it is.
    async fn end_job(&mut self) {
        let ToHead::JobEnd { job, failure } = self.recv().await else { panic!("no end") };
        self.send(ToAgentOfHead::JobEnded { job, failure, nodes: Vec::new() }).await;
    }
}

/// The next message to an in-process host.
fn local(link: &LocalLink) -> (ToHost, Vec<OwnedFd>) {
    tokio::task::block_in_place(|| link.receiver.recv_timeout(SOON)).expect("a message in time")
}

fn object(owner: HostId, seq: u64) -> mobula_proto::ObjectId {
    TaskId::numbered(owner, seq).object(0)
}

impl Started {
    async fn fail(mut self, code: i32, last_words: &str) {
        self.stderr.write_all(last_words.as_bytes()).await.unwrap();
        self.stderr.shutdown().await.unwrap();
        self.exit.exit(Exit::Code(code));
    }
}
