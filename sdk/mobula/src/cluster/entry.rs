//! What `#[mobula::main]` and `#[mobula::test]` expand to.

use std::{
    future::Future,
    io::Write,
    panic::AssertUnwindSafe,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use mobula_host::{boot, context, descriptors};
use mobula_proto::HostId;

use super::{Builder, Cluster, exit, roles};
use crate::{Error, Result};

/// Exit code of a program whose cluster could not be started.
pub(super) const EXIT_NO_CLUSTER: i32 = 70;
/// How long a test waits for everything it used to be given back.
const TIDY_WAIT: Duration = Duration::from_secs(10);

/// What an author's `main` or test returned.
pub struct Outcome(std::result::Result<(), String>);

impl Outcome {
    /// Understands `()` and `Result<(), E>`.
    pub fn of(value: impl IntoOutcome) -> Self {
        Self(value.into_outcome())
    }
}

/// A value that `main` may return.
pub trait IntoOutcome {
    /// What it means.
    fn into_outcome(self) -> std::result::Result<(), String>;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> std::result::Result<(), String> {
        Ok(())
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> IntoOutcome for std::result::Result<(), E> {
    fn into_outcome(self) -> std::result::Result<(), String> {
        self.map_err(|error| {
            let error = error.into();
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!("\n  caused by: {cause}"));
                source = cause.source();
            }
            text
        })
    }
}

/// Runs the process in the role that it was started in, if it is not a driver.
pub fn run_as_child() -> Option<ExitCode> {
    if roles::is_asked() || boot::is_asked() {
        // What the starter's starter had open is none of this process's business, nor of what it starts.
        if let Err(error) = descriptors::close_inherited() {
            eprintln!("mobula: inherited descriptors stay open: {error}");
        }
    }
    match boot::take_boot_socket() {
        Ok(Some(socket)) => {
            mobula_telemetry::log::init("warn");
            return Some(match boot::run_host(socket) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => {
                    eprintln!("mobula: this host could not start: {failure}");
                    ExitCode::FAILURE
                }
            });
        }
        Ok(None) => {}
        Err(error) => {
            eprintln!("mobula: this host has no socket to its agent: {error}");
            return Some(ExitCode::FAILURE);
        }
    }
    roles::run_if_asked()
}

/// The life of a driver.
pub fn run_main<F: Future<Output = Outcome>>(
    wants_cluster: bool,
    main: impl FnOnce(Option<Cluster>) -> F,
) -> ExitCode {
    if let Some(code) = run_as_child() {
        return code;
    }
    mobula_telemetry::log::init("warn");
    let user = match boot::user_runtime(None) {
        Ok(user) => user,
        Err(error) => {
            eprintln!("mobula: the runtime did not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (signal, stopped, running) = watch_signals(&user);
    let cluster = if wants_cluster {
        match Cluster::auto().start_blocking(user.handle()) {
            Ok(cluster) => Some(cluster),
            Err(error) => {
                eprintln!("mobula: no cluster could be started: {error}");
                return ExitCode::from(EXIT_NO_CLUSTER as u8);
            }
        }
    } else {
        None
    };
    let main = polled(main(cluster));
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        user.block_on(async {
            // Whichever ends first, the other is dropped, and the cluster that `main` holds with it.
            tokio::select! {
                biased;
                Ok(()) = stopped => Ok(()),
                outcome = main => outcome.0,
            }
        })
    }));
    // Its threads may be anywhere in the author's code: they are not waited for, be it after a panic.
    user.shutdown_timeout(THREADS_WAIT);
    drop(running);
    match (signal.load(Ordering::Acquire), outcome) {
        (_, Err(panic)) => std::panic::resume_unwind(panic),
        (0, Ok(Ok(()))) => ExitCode::SUCCESS,
        (0, Ok(Err(text))) => {
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
        // What `main` says of waits that the signal cut short is of no interest.
        (signal, Ok(_)) => ExitCode::from(SIGNAL_EXIT + signal),
    }
}

/// How long the threads of author's code may take to end when `main` has.
const THREADS_WAIT: Duration = Duration::from_millis(100);
/// Exit code of a program that a signal ended, less the signal's number.
const SIGNAL_EXIT: u8 = 128;
/// How long an interrupted `main` may take to drop its cluster. Then the job ends regardless, and with it every wait.
const YIELD_WAIT: Duration = Duration::from_millis(100);
/// How long an interrupted driver may take in all.
const STOP_WAIT: Duration = Duration::from_millis(900);

/// Lives as long as `main` runs.
struct Running {
    _ends: Sender<()>,
}

/// Notes the signal when Ctrl-C or SIGTERM comes, and says so. The job ends in good order at once; should `main` not
/// have ended within [`STOP_WAIT`] (because it does not come to its next `await`, say), the process does all the same.
fn watch_signals(
    user: &tokio::runtime::Runtime,
) -> (Arc<AtomicU8>, tokio::sync::oneshot::Receiver<()>, Running) {
    use tokio::signal::unix::{SignalKind, signal};
    let (ends, end) = channel();
    let (say, stopped) = tokio::sync::oneshot::channel();
    let noted = Arc::new(AtomicU8::new(0));
    let note = Arc::clone(&noted);
    user.spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            // Without handlers a signal ends the process at once, which ends its job too.
            return std::future::pending().await;
        };
        let kind = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
        };
        let number = u8::try_from(kind.as_raw_value()).unwrap_or(0);
        note.store(number, Ordering::Release);
        let begun = Instant::now();
        std::thread::spawn(move || {
            // Nothing is ever sent: the sender goes when `main` has ended.
            let runs_on = |limit| end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if runs_on(YIELD_WAIT) {
                exit::leave_all();
            }
            if runs_on(STOP_WAIT.saturating_sub(begun.elapsed())) {
                std::process::exit(i32::from(SIGNAL_EXIT + number));
            }
        });
        // `main` may have ended meanwhile.
        let _ended = say.send(());
    });
    (noted, stopped, Running { _ends: ends })
}

/// Polls with the thread marked as running async code, so that blocking waits are refused.
async fn polled<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(move |poller| {
        let entered = context::runtime().map(|runtime| context::enter(&runtime, None, true));
        let polled = future.as_mut().poll(poller);
        drop(entered);
        polled
    })
    .await
}

/// The life of a test: a cluster, the body, and a look at what is left.
#[expect(clippy::panic, reason = "a failed test panics")]
pub fn run_test<F: Future<Output = Outcome>>(
    name: &'static str,
    nodes: u32,
    cpus: u32,
    body: impl FnOnce(Cluster) -> F,
) {
    if let Some(code) = run_as_child() {
        std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 1 });
    }
    let mut builder = if nodes == 0 { Cluster::embedded() } else { Cluster::local().nodes(nodes) };
    builder = builder.cpus(f64::from(cpus)).test(name);
    let outcome = drive(builder, body).map(|(outcome, left)| {
        outcome.0.and_then(|()| {
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("waited {TIDY_WAIT:?} for all to be given back: {}", left.join("; ")))
            }
        })
    });
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(text)) => panic!("{name}: {text}"),
        Err(error) => panic!("{name}: {error}"),
    }
}

/// A driver inside a program that is more than one: a cluster, the body on a runtime of its own, and what was left, in
/// words, when it had let go of everything: in this process, and where that started the cluster, anywhere in it, before the
/// job's end and after it.
pub fn drive<F: Future>(
    builder: Builder,
    body: impl FnOnce(Cluster) -> F,
) -> Result<(F::Output, Vec<String>)> {
    drive_within(TIDY_WAIT, builder, body)
}

/// The same, and so long it may take until all is given back, each time.
pub fn drive_within<F: Future>(
    wait: Duration,
    builder: Builder,
    body: impl FnOnce(Cluster) -> F,
) -> Result<(F::Output, Vec<String>)> {
    let user = boot::user_runtime(None)
        .map_err(|error| Error::new(crate::ErrorKind::Internal, error.to_string()))?;
    let cluster = builder.start_blocking(user.handle())?;
    let runtime = cluster.runtime().clone();
    let future = body(cluster.clone());
    let outcome = {
        let _entered = context::enter(&runtime, None, false);
        user.block_on(polled_on(&runtime, future))
    };
    let mut left = wait_until_none(wait, || cluster.held());
    let keeper = cluster.inner.end_alone();
    // What this process has of the cluster goes first, since it is nothing that was left.
    drop((cluster, runtime));
    user.shutdown_timeout(Duration::from_millis(100));
    left.extend(wait_until_none(wait, || keeper.as_ref().map(|keeper| keeper.left()).unwrap_or_default()));
    Ok((outcome, left))
}

async fn polled_on<F: Future>(
    runtime: &std::sync::Arc<mobula_host::runtime::Runtime>,
    future: F,
) -> F::Output {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(move |poller| {
        let _entered = context::enter(runtime, None, true);
        future.as_mut().poll(poller)
    })
    .await
}

/// Looks until nothing is left, or the time is up.
fn wait_until_none(wait: Duration, look: impl Fn() -> Vec<String>) -> Vec<String> {
    let deadline = Instant::now() + wait;
    loop {
        let left = look();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A line that a host printed, on this terminal.
pub(super) fn print_line(host: HostId, stderr: bool, line: &str) {
    // A closed terminal is no reason to end the job.
    let _closed = if stderr {
        writeln!(std::io::stderr().lock(), "({host}) {line}")
    } else {
        writeln!(std::io::stdout().lock(), "({host}) {line}")
    };
}
