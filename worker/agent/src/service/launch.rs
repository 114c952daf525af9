//! A launched host, from its program's arrival to its end.

use std::{
    collections::VecDeque,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use mobula_net::link::split_async;
use mobula_proto::{Failure, FailureKind, HostId, resource::Device};
use mobula_telemetry::task;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, BufReader},
    sync::watch,
    time::timeout,
};
use tracing::{info, warn};

use super::{
    actor::Post,
    link::{End, HELLO_TIMEOUT, read_all, write_all},
    provision::{Provision, Provisioned},
    routes::{Outbox, Routes},
};
use crate::{
    core::Launch,
    launcher::{
        Exit, Launched, Launcher, Output, Spec, device_env,
        memory::{Group, Limits},
        thread_env,
    },
    users::{User, Users},
};

/// Longest line of output that is passed on, in bytes; a longer one is cut into several.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// How many of a host's last lines on standard error are quoted when it fails.
pub const LAST_LINES_MAX: usize = 20;
/// How long a job's program may take to arrive.
pub const PROVISION_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a host may live after it closed its link.
const EXIT_GRACE: Duration = Duration::from_millis(500);
/// How long what a dead host left in its socket and pipes is read.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// What launching needs of the agent.
#[derive(Clone)]
pub(super) struct Launching {
    pub(super) launcher: Arc<dyn Launcher>,
    pub(super) provision: Arc<Provision>,
    pub(super) routes: Arc<Routes>,
    pub(super) post: Post,
    pub(super) devices: Arc<Vec<Device>>,
    pub(super) tpu_chips: u32,
    pub(super) env: Arc<Vec<(String, String)>>,
    pub(super) limits: Option<Arc<Limits>>,
    /// Where jobs have users of their own.
    pub(super) users: Option<Arc<Users>>,
}

type LastLines = Arc<Mutex<VecDeque<String>>>;

/// Starts a host, and sees it to its end, which the actor is told of exactly once. `killed` turns true when the
/// host shall end. Its `user` is kept until then.
pub(super) async fn run(
    launching: Launching,
    launch: Launch,
    user: Option<Arc<User>>,
    killed: watch::Receiver<bool>,
) {
    let host = launch.host;
    let last = LastLines::default();
    let failure = match live(&launching, launch, user.as_deref(), killed, Arc::clone(&last)).await {
        Ok((kind, why)) => {
            let mut failure = Failure::new(kind, why);
            failure.causes = last.lock().iter().map(|line| format!("stderr: {line}")).collect();
            failure
        }
        Err(failure) => failure,
    };
    let failure = failure.of(host.to_string());
    drop(user);
    launching.post.ended(host, failure);
}

/// Returns once the host shall end, because the actor said so or is gone.
async fn told_to_end(killed: &mut watch::Receiver<bool>) {
    // An error means that the actor is gone.
    let _gone = killed.wait_for(|killed| *killed).await.is_err();
}

/// How it ended, or why it never was.
async fn live(
    launching: &Launching,
    launch: Launch,
    user: Option<&User>,
    mut killed: watch::Receiver<bool>,
    last: LastLines,
) -> Result<(FailureKind, String), Failure> {
    let Launch { host, job, bounds } = launch;
    let died = |why: String| (FailureKind::HostDied, why);
    let never = |why: String| Failure::new(FailureKind::HostDied, why);
    let preparing = async {
        let user = match user {
            Some(user) => Some(user.uid().await?),
            None => None,
        };
        Ok::<_, Failure>((launching.provision.prepare(&job, user).await?, user))
    };
    let (prepared, user) = tokio::select! {
        prepared = timeout(PROVISION_TIMEOUT, preparing) => match prepared {
            Ok(prepared) => prepared?,
            Err(_) => return Err(never(format!("its program did not arrive within {PROVISION_TIMEOUT:?}"))),
        },
        () = told_to_end(&mut killed) => return Ok(died("it was ended before it had started".to_owned())),
    };
    let (ours, theirs) = UnixStream::pair().map_err(|error| never(format!("no socket for it: {error}")))?;
    let memory = bounds.memory.and_then(|bytes| group(launching, host, bytes));
    let spec = Spec {
        program: prepared.program.clone(),
        args: job.arguments.clone(),
        // What an operator set goes before what follows from the lease and the job's user.
        env: thread_env(bounds.threads)
            .into_iter()
            .chain(user_env(&prepared))
            .chain(launching.env.iter().cloned())
            .collect(),
        device_env: device_env(&bounds.devices, &launching.devices, launching.tpu_chips),
        boot_fd: OwnedFd::from(theirs),
        cwd: prepared.cwd.clone(),
        user,
        memory: memory.clone(),
    };
    let launched = launching.launcher.launch(spec).map_err(|error| never(error.to_string()))?;
    let Launched { pid, stdout, stderr, exit, killer } = launched;
    info!(%host, job = %job.job, pid, "host started");
    let (sender, receiver) =
        split_async(ours).map_err(|error| never(format!("its socket cannot be used: {error}")))?;
    let (outbox, queue) = Outbox::socket();
    launching.post.linked(host, outbox.clone(), memory);
    let writing = task::spawn("host-write", write_all(sender, queue));
    let output = |stderr, stream, last| {
        let routes = Arc::clone(&launching.routes);
        task::spawn("host-output", pass_output(routes, job.driver, host, stderr, stream, last))
    };
    let out = output(false, stdout, None);
    let err = output(true, stderr, Some(last));
    let reading = task::spawn(
        "host-read",
        read_all(host, receiver, outbox, launching.post.clone(), Arc::clone(&launching.routes)),
    );
    tokio::pin!(exit, reading);
    let mut drained = false;
    let ended = tokio::select! {
        exit = &mut exit => how(&exit),
        end = &mut reading => {
            drained = true;
            match end.unwrap_or(End::Closed) {
                End::Closed => match timeout(EXIT_GRACE, &mut exit).await {
                    Ok(exit) => how(&exit),
                    Err(_) => {
                        killer.kill();
                        exit.await;
                        died("it closed its link to the agent, and was killed".to_owned())
                    }
                },
                End::Broken(why) => {
                    killer.kill();
                    exit.await;
                    died(format!("its link broke: {why}; it was killed"))
                }
                End::NoHello => {
                    killer.kill();
                    exit.await;
                    died(format!("it did not say hello within {HELLO_TIMEOUT:?}, and was killed"))
                }
            }
        },
        () = told_to_end(&mut killed) => {
            killer.kill();
            exit.await;
            died("the agent ended it".to_owned())
        }
    };
    // What it said last counts: results that were sealed, lines that explain its end.
    if !drained && timeout(DRAIN_TIMEOUT, &mut reading).await.is_err() {
        reading.abort();
    }
    let pipes = async {
        // A task that panicked has nothing more to read either.
        let _ended = (out.await, err.await);
    };
    let _late = timeout(DRAIN_TIMEOUT, pipes).await;
    writing.abort();
    drop(prepared);
    Ok(ended)
}

/// A job with a user of its own has neither root's home nor the folder for everybody's temporary files.
fn user_env(prepared: &Provisioned) -> Vec<(String, String)> {
    let named = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
    match (&prepared.temporary, &prepared.cwd) {
        (Some(temporary), Some(home)) => vec![named("HOME", home), named("TMPDIR", temporary)],
        _ => Vec::new(),
    }
}

fn how(exit: &Exit) -> (FailureKind, String) {
    let kind = match exit {
        Exit::OutOfMemory(_) => FailureKind::OutOfMemory,
        Exit::Code(_) | Exit::Signal(_) | Exit::Unknown(_) => FailureKind::HostDied,
    };
    (kind, exit.to_string())
}

/// What limits the memory of a host; `None` where nothing can.
fn group(launching: &Launching, host: HostId, bytes: u64) -> Option<Arc<Group>> {
    match launching.limits.as_ref()?.group(bytes) {
        Ok(group) => Some(group),
        Err(error) => {
            warn!(%host, %error, "a host is without its memory limit");
            None
        }
    }
}

async fn pass_output(
    routes: Arc<Routes>,
    driver: HostId,
    host: HostId,
    stderr: bool,
    stream: Output,
    last: Option<LastLines>,
) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let read = match reader.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        for piece in chunk[..read].split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            let whole = line.last() == Some(&b'\n');
            if whole {
                line.pop();
            }
            if whole || line.len() >= LINE_BYTES_MAX {
                pass_line(&routes, driver, host, stderr, &mut line, last.as_ref()).await;
            }
        }
    }
    if !line.is_empty() {
        pass_line(&routes, driver, host, stderr, &mut line, last.as_ref()).await;
    }
}

async fn pass_line(
    routes: &Routes,
    driver: HostId,
    host: HostId,
    stderr: bool,
    line: &mut Vec<u8>,
    last: Option<&LastLines>,
) {
    let cut = line.len().min(LINE_BYTES_MAX);
    let text = String::from_utf8_lossy(&line[..cut]).trim_end_matches('\r').to_owned();
    line.drain(..cut);
    if let Some(last) = last {
        let mut last = last.lock();
        if last.len() >= LAST_LINES_MAX {
            last.pop_front();
        }
        last.push_back(text.clone());
    }
    routes.output(driver, host, stderr, text).await;
}
