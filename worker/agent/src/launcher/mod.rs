//! Starting hosts.
//!
//! - **L-1** A host inherits standard input, output and error, and nothing else: its boot socket *is* its
//!   standard input (descriptor 0), which the host moves away before anything can read from it.
//! - **L-2** A host's environment is what [`KEPT`] names, [`KEPT_PREFIX`] begins, and [`Spec`] adds. Credentials
//!   in the agent's own environment never reach it.
//! - **L-3** The end of a host is reported exactly once, and only after its process group was killed too, so that
//!   nothing that it started outlives it.
//! - **L-4** A signal never reaches a stranger: a host is signalled through its pidfd, and its group only while
//!   the host has not been reaped, which is what keeps the group's number from being used again.
//! - **L-5** A host whose [`Killer`] is dropped is killed.

use std::{
    fmt,
    future::Future,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::Pin,
    process::{ExitStatus, Stdio},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mobula_proto::resource::{Device, DeviceGrant, Kind};
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::{
    io::{AsyncRead, Interest},
    process::{Child, Command},
    sync::oneshot,
};
use tracing::{debug, warn};

use crate::detect::is_amd;

pub mod memory;

/// The variable that tells a child that it is a host, and on which descriptor its boot socket is.
pub const BOOT_VARIABLE: &str = "MOBULA_BOOT_FD";
/// The descriptor on which [`ProcessLauncher`] hands over the boot socket.
pub const BOOT_FD: i32 = 0;
/// What a host keeps of the agent's environment, beside what begins with [`KEPT_PREFIX`].
pub const KEPT: [&str; 13] = [
    "PATH",
    "HOME",
    "LANG",
    "TZ",
    "TMPDIR",
    "RUST_BACKTRACE",
    "LD_LIBRARY_PATH",
    "MOBULA_LOG",
    // Which part of a slice this machine is, without which the TPU's library does not find the others.
    "TPU_ACCELERATOR_TYPE",
    "TPU_NAME",
    "TPU_TOPOLOGY",
    "TPU_WORKER_HOSTNAMES",
    "TPU_WORKER_ID",
];
/// Variables that begin so are kept as well.
pub const KEPT_PREFIX: &str = "LC_";
/// What bounds the threads of OpenMP, of rayon, and of the usual libraries of linear algebra.
const THREAD_VARIABLES: [&str; 4] =
    ["OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"];
/// Most bytes of arguments and variables together; the kernel's own limit is some larger.
pub const ARGUMENT_BYTES_MAX: usize = 1024 * 1024;

/// How often a program that another thread's child still holds open for writing is tried again, and after how
/// long: between `fork` and `exec` a child of the agent has every descriptor, that of a binary just written too.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// What to start.
#[derive(Debug)]
pub struct Spec {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments, without the program's own name.
    pub args: Vec<String>,
    /// Variables to add to those that are kept; a later one of the same name wins.
    pub env: Vec<(String, String)>,
    /// Variables that make granted devices visible and hide the rest; see [`device_env`]. These win over `env`.
    pub device_env: Vec<(String, String)>,
    /// The host's end of a Unix stream socket pair; closed here once the host has it.
    pub boot_fd: OwnedFd,
    /// Where it starts; the agent's own folder where this is `None`.
    pub cwd: Option<PathBuf>,
    /// The user and group that it becomes, by one number; then it can also gain no rights by what it executes. The agent's
    /// own where this is `None`; another needs an agent that is root.
    pub user: Option<u32>,
    /// The group that limits its memory, made by the launcher's own [`Launcher::memory_limits`].
    pub memory: Option<Arc<memory::Group>>,
}

/// Why a host was not started. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused. A retry helps where it was short of processes or memory.
    #[error("{program} cannot be started: {source}")]
    Start {
        /// The executable.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A variable's name is empty, or has `=` or a zero byte in it; or its value, or an argument, has a zero byte.
    #[error("{0:?} cannot be an argument or a variable of a program")]
    BadText(String),
    /// The arguments and variables are too long.
    #[error("{0} bytes of arguments and variables are too many: at most {ARGUMENT_BYTES_MAX}")]
    TooLong(usize),
    /// Called outside of a tokio runtime.
    #[error("hosts can be started only inside a tokio runtime with IO enabled")]
    NoRuntime,
}

/// Starts hosts. Tests and embedded clusters bring their own.
pub trait Launcher: Send + Sync + 'static {
    /// Starts one; returns once it runs, long before it is ready.
    ///
    /// # Errors
    /// See [`Error`]; the boot socket is closed then.
    fn launch(&self, spec: Spec) -> Result<Launched, Error>;

    /// What limits the memory of hosts that this starts; asked for once, when the agent starts.
    ///
    /// # Errors
    /// Why nothing does.
    fn memory_limits(&self) -> Result<memory::Limits, memory::Unlimited> {
        Err(memory::Unlimited::Launcher)
    }
}

/// What a host writes to standard output or standard error.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A host that was started. Dropping it, or its killer alone, kills the host.
pub struct Launched {
    /// Its process number, for people.
    pub pid: u32,
    /// Its standard output; has to be read, or the host waits once the pipe is full.
    pub stdout: Output,
    /// Its standard error; as `stdout`.
    pub stderr: Output,
    /// Its end.
    pub exit: Exited,
    /// What ends it.
    pub killer: Killer,
}

impl fmt::Debug for Launched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launched").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// How a host ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code; zero is success.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
    /// The kernel killed it for having more memory than this, in bytes, and what it has beside.
    OutOfMemory(u64),
    /// It ended, or was abandoned at the end of the runtime, in a way that could not be read.
    Unknown(String),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown(status.to_string()),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "killed by signal {signal} ({name})"),
                None => write!(f, "killed by signal {signal}"),
            },
            Self::OutOfMemory(bytes) => {
                write!(f, "ran out of its memory limit of {}", mobula_proto::resource::bytes_text(*bytes))
            }
            Self::Unknown(why) => write!(f, "ended: {why}"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [(Signal, &str); 15] = [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ILL, "SIGILL"),
        (Signal::TRAP, "SIGTRAP"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::KILL, "SIGKILL"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::TERM, "SIGTERM"),
        (Signal::XCPU, "SIGXCPU"),
        (Signal::SYS, "SIGSYS"),
    ];
    NAMES.iter().find(|(known, _)| known.as_raw() == signal).map(|(_, name)| *name)
}

/// A future of how a host ended; ready exactly once.
#[derive(Debug)]
pub struct Exited(oneshot::Receiver<Exit>);

impl Exited {
    /// The reporting end, for launchers: whoever drops it unused reports [`Exit::Unknown`].
    pub fn channel() -> (oneshot::Sender<Exit>, Self) {
        let (report, exit) = oneshot::channel();
        (report, Self(exit))
    }
}

impl Future for Exited {
    type Output = Exit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Exit> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|exit| exit.unwrap_or_else(|_| Exit::Unknown("nobody is left who watched it".to_owned())))
    }
}

/// Ends a host; killing one that has ended does nothing. Dropping this kills it.
pub struct Killer(Box<dyn Fn() + Send + Sync>);

impl Killer {
    /// For launchers: `kill` is called once for each [`Killer::kill`] and once at the drop; it must not block.
    pub fn new(kill: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Box::new(kill))
    }

    /// Kills the host and all in its process group, at once (`SIGKILL`). Its end is reported as any other.
    pub fn kill(&self) {
        (self.0)();
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Killer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Killer")
    }
}

/// Starts hosts as processes of this machine, each leading a process group of its own, so that a terminal's
/// Ctrl-C reaches the driver alone and what a host started is killed with it.
///
/// The agent opens all its descriptors close-on-exec. One that the agent itself inherited without that mark
/// would pass on to hosts: whoever starts an agent must not leave such behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessLauncher;

impl Launcher for ProcessLauncher {
    /// Blocks for the fork and exec: about a millisecond, at the worst 0.1 s (a program that was just written).
    fn launch(&self, mut spec: Spec) -> Result<Launched, Error> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::NoRuntime);
        }
        let (program, memory, user) = (spec.program.clone(), spec.memory.take(), spec.user);
        let mut child = spawn(command(spec)?, user.is_some())
            .map_err(|source| Error::Start { program: program.clone(), source })?;
        // From here on, an early return drops the child, which kills it.
        let failed =
            |what: &str| Error::Start { program: program.clone(), source: std::io::Error::other(what) };
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed("its output is not piped"));
        };
        let pid = child.id().ok_or_else(|| failed("it has no process number"))?;
        let target = Target::open(pid).map_err(|source| Error::Start { program: program.clone(), source })?;
        let (report, exit) = Exited::channel();
        let memory = memory.filter(|group| match group.enter(pid) {
            Ok(()) => true,
            Err(error) => {
                warn!(pid, %error, "a host is without its memory limit");
                false
            }
        });
        let watched = Watched { target: Arc::clone(&target), child, memory };
        // The handle is not needed: the watch ends with the process, and at the end of the runtime kills it.
        drop(mobula_telemetry::task::spawn("host-exit", async move {
            let exit = watched.end().await;
            debug!(pid, %exit, "host ended");
            // Nobody is waiting any more where this fails, which is their right.
            let _unheard = report.send(exit);
        }));
        let killer = Killer::new(move || target.kill());
        Ok(Launched { pid, stdout: Box::new(stdout), stderr: Box::new(stderr), exit, killer })
    }

    fn memory_limits(&self) -> Result<memory::Limits, memory::Unlimited> {
        memory::Limits::detect(Path::new("/"))
    }
}

fn command(spec: Spec) -> Result<Command, Error> {
    let kept = std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| KEPT.contains(&name) || name.starts_with(KEPT_PREFIX))
    });
    let mut bytes = 0;
    for arg in &spec.args {
        check_text(arg)?;
        bytes += arg.len() + 1;
    }
    for (name, value) in spec.env.iter().chain(&spec.device_env) {
        if name.is_empty() || name.contains('=') {
            return Err(Error::BadText(name.clone()));
        }
        check_text(name)?;
        check_text(value)?;
        bytes += name.len() + value.len() + 2;
    }
    if bytes > ARGUMENT_BYTES_MAX {
        return Err(Error::TooLong(bytes));
    }
    let mut command = Command::new(spec.program);
    command
        .args(spec.args)
        .env_clear()
        .envs(kept)
        .envs(spec.env)
        .envs(spec.device_env)
        .env(BOOT_VARIABLE, BOOT_FD.to_string())
        .stdin(Stdio::from(spec.boot_fd))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(cwd) = spec.cwd {
        command.current_dir(cwd);
    }
    if let Some(user) = spec.user {
        // The other groups of root go too. Its name is for all to see, and the program's path is who may read it.
        command.uid(user).gid(user).arg0("mobula-host");
    }
    Ok(command)
}

fn check_text(text: &str) -> Result<(), Error> {
    if text.contains('\0') { Err(Error::BadText(text.to_owned())) } else { Ok(()) }
}

/// Takes the command, so that the agent's copy of the boot socket is closed on return. A `confined` process gains no
/// rights by the programs that it executes.
fn spawn(mut command: Command, confined: bool) -> std::io::Result<Child> {
    if !confined {
        return spawn_here(&mut command);
    }
    // What a thread gave up its children have not, and this thread needs it.
    let runtime = tokio::runtime::Handle::current();
    let spawn = move || {
        rustix::thread::set_no_new_privs(true)?;
        let _inside = runtime.enter();
        spawn_here(&mut command)
    };
    let thread = std::thread::Builder::new().name("host-spawn".to_owned()).spawn(spawn)?;
    thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread that starts it panicked")))
}

fn spawn_here(command: &mut Command) -> std::io::Result<Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            done => return done,
        }
    }
}

/// A started process, as something to signal.
#[derive(Debug)]
struct Target {
    pid: Pid,
    pidfd: OwnedFd,
    /// Set under the lock before the process is reaped; past that its number may belong to another.
    reaped: Mutex<bool>,
}

impl Target {
    /// `pid` must be a child that nobody has waited for yet, so that the number is still its own.
    fn open(pid: u32) -> std::io::Result<Arc<Self>> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Arc::new(Self { pid, pidfd, reaped: Mutex::new(false) }))
    }

    fn kill(&self) {
        let reaped = self.reaped.lock();
        if !*reaped {
            self.signal();
        }
    }

    /// The last kill, of what the process left in its group; afterwards it may be reaped.
    fn kill_rest(&self) {
        let mut reaped = self.reaped.lock();
        if !*reaped {
            self.signal();
            *reaped = true;
        }
    }

    fn signal(&self) {
        // "No such process" means that it ended by itself, which is what was wanted.
        if let Err(error) = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            warn!(pid = self.pid.as_raw_nonzero(), %error, "a host cannot be killed");
        }
        if let Err(error) = rustix::process::kill_process_group(self.pid, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            warn!(pid = self.pid.as_raw_nonzero(), %error, "a host's process group cannot be killed");
        }
    }
}

/// A process that is waited for; dropped unfinished, at the end of the runtime, it is killed with its group
/// before tokio may reap it.
struct Watched {
    target: Arc<Target>,
    child: Child,
    memory: Option<Arc<memory::Group>>,
}

impl Watched {
    /// Waits for the end without reaping, kills what is left of the group, then reaps.
    async fn end(mut self) -> Exit {
        let ended = async {
            let pidfd = mobula_net::readiness(self.target.pidfd.try_clone()?, Interest::READABLE)?;
            pidfd.readable().await.map(|_| ())
        };
        let ended: std::io::Result<()> = ended.await;
        if let Err(error) = ended {
            // Without notice of the end the only way not to lose it is to end it.
            warn!(%error, "a host cannot be watched and is killed");
        }
        self.target.kill_rest();
        let exit = match self.child.wait().await {
            Ok(status) => status.into(),
            Err(error) => Exit::Unknown(error.to_string()),
        };
        let Some(group) = &self.memory else { return exit };
        let ran_out = exit == Exit::Signal(Signal::KILL.as_raw()) && group.ran_out();
        group.remove().await;
        if ran_out { Exit::OutOfMemory(group.bytes()) } else { exit }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.target.kill_rest();
    }
}

/// The variables by which libraries that would start a thread for each of the machine's processors start `threads`.
/// Each is read once, at the start: so it is a process that has them, not a task.
pub fn thread_env(threads: u32) -> Vec<(String, String)> {
    THREAD_VARIABLES.iter().map(|name| ((*name).to_owned(), threads.to_string())).collect()
}

/// What says which chips the TPU's library shall use. It goes by the first that is not empty; old ones know the second
/// alone.
const CHIPS_VARIABLES: [&str; 2] = ["TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"];
/// How these lie to each other, by its new name and its old one, and how the processes do that share a slice.
const CHIPS_BOUNDS: [&str; 2] = ["TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_CHIPS_PER_HOST_BOUNDS"];
const PROCESS_BOUNDS: [&str; 2] = ["TPU_PROCESS_BOUNDS", "TPU_HOST_BOUNDS"];
/// No device has this number.
const NO_DEVICE: &str = "-1";

/// The variables that show a host the devices it was granted, and no others, in the order of `grants`. The node offers
/// `devices`; its machine has so many TPU chips, those that the operator hides among them.
///
/// NVIDIA's GPUs by UUID where they have one, so that no other way to count can confuse them; AMD's by index, which is
/// all that HIP takes everywhere. A host without a grant sees none. HIP and the TPU's library take nothing for all, so
/// they are given a number that no device has. Where there are no chips, their variables are left alone: some programs
/// take them for a sign that there are.
pub fn device_env(grants: &[DeviceGrant], devices: &[Device], tpu_chips: u32) -> Vec<(String, String)> {
    let known = |grant: &DeviceGrant| {
        devices.iter().find(|device| device.kind == grant.kind && device.index == grant.index)
    };
    let named = |grant: &DeviceGrant| match known(grant) {
        Some(device) if !device.uuid.is_empty() => device.uuid.clone(),
        _ => grant.index.to_string(),
    };
    let numbered = |grant: &DeviceGrant| grant.index.to_string();
    let list = |of: &dyn Fn(&DeviceGrant) -> bool, name: &dyn Fn(&DeviceGrant) -> String| {
        grants.iter().filter(|grant| of(grant)).map(name).collect::<Vec<_>>().join(",")
    };
    let amd = |grant: &DeviceGrant| grant.kind == Kind::Gpu && known(grant).is_some_and(is_amd);
    let nvidia = |grant: &DeviceGrant| grant.kind == Kind::Gpu && !amd(grant);
    let variable = |name: &str, value: String| (name.to_owned(), value);
    let amds = list(&amd, &numbered);
    let mut variables = vec![
        variable("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
        variable("CUDA_VISIBLE_DEVICES", list(&nvidia, &named)),
        variable("HIP_VISIBLE_DEVICES", if amds.is_empty() { NO_DEVICE.to_owned() } else { amds }),
    ];
    let tpus = list(&|grant| grant.kind == Kind::Tpu, &numbered);
    let count = |kinds: &mut dyn Iterator<Item = &Kind>| kinds.filter(|kind| **kind == Kind::Tpu).count();
    let granted = count(&mut grants.iter().map(|grant| &grant.kind));
    let all = count(&mut devices.iter().map(|device| &device.kind)).max(tpu_chips as usize);
    if granted == 0 && all == 0 {
        return variables;
    }
    let mut set = |names: [&str; 2], value: &str| {
        variables.extend(names.map(|name| variable(name, value.to_owned())));
    };
    set(CHIPS_VARIABLES, if tpus.is_empty() { NO_DEVICE } else { &tpus });
    // Of a machine's chips only some: how they lie to each other, and that no other machine belongs to it.
    let bounds = match granted {
        1 if all > 1 => Some("1,1,1"),
        2 if all > 2 => Some("1,2,1"),
        4 if all > 4 => Some("2,2,1"),
        _ => None,
    };
    if let Some(bounds) = bounds {
        set(CHIPS_BOUNDS, bounds);
        set(PROCESS_BOUNDS, "1,1,1");
    }
    variables
}

#[cfg(test)]
mod tests;
