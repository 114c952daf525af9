//! Programs and files of jobs: taken from the driver's machine once, kept in the hash store, run from there.

use std::{
    collections::HashMap,
    fs,
    path::{Component, Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
};

use bytes::Bytes;
use mobula_net::bulk;
use mobula_proto::{
    BinaryHash, Failure, FailureKind, HostId, JobId, NodeId,
    head::{Job, Pull},
    host::Driver,
    wire,
};
use parking_lot::Mutex;

use super::peers::{Line, Peers};
use crate::{
    binaries::{self, InUse, Store},
    users,
};

/// Most drivers' sources that are remembered; the oldest job's is asked for again where more are.
const SOURCES_MAX: usize = 65_536;
/// Where in its folder a job's temporary files lie, if its user is its own.
const TEMPORARY: &str = ".tmp";

/// What a host is started from, kept in the store as long as this lives.
#[derive(Debug)]
pub(super) struct Provisioned {
    pub(super) program: PathBuf,
    /// Where it starts; `None` for the agent's own folder.
    pub(super) cwd: Option<PathBuf>,
    /// Where its temporary files lie; `None` where those of all do.
    pub(super) temporary: Option<PathBuf>,
    _in_use: Vec<InUse>,
}

/// Where a hash is found.
#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    /// A process that runs it, and so has it whatever has become of the file.
    running: Option<u32>,
}

/// The store and what can fill it.
pub(super) struct Provision {
    me: NodeId,
    home: PathBuf,
    store: Store,
    /// Where drivers here said that a hash is found.
    sources: Mutex<HashMap<BinaryHash, Source>>,
    /// Programs of drivers here whose hash is not known, and whether this process runs it itself.
    programs: Mutex<HashMap<HostId, (PathBuf, bool)>>,
    one_at_a_time: tokio::sync::Mutex<()>,
    /// Held by who makes a job's folder.
    folders: tokio::sync::Mutex<()>,
    peers: OnceLock<Weak<Peers>>,
}

fn unhashed(hash: BinaryHash) -> bool {
    hash.0 == [0; 32]
}

fn failed(why: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Binary, why.to_string())
}

impl Provision {
    pub(super) fn new(me: NodeId, home: PathBuf, store: Store) -> Arc<Self> {
        Arc::new(Self {
            me,
            home,
            store,
            sources: Mutex::default(),
            programs: Mutex::default(),
            one_at_a_time: tokio::sync::Mutex::default(),
            folders: tokio::sync::Mutex::default(),
            peers: OnceLock::new(),
        })
    }

    pub(super) fn set_peers(&self, peers: &Arc<Peers>) {
        // Set once, at the start.
        let _again = self.peers.set(Arc::downgrade(peers));
    }

    /// A driver here says where its program and files are; `pid` is its process.
    pub(super) fn driver(&self, host: HostId, pid: u32, driver: &Driver) {
        let mut sources = self.sources.lock();
        if sources.len() < SOURCES_MAX {
            for (_, path, hash) in &driver.files {
                sources.insert(*hash, Source { path: PathBuf::from(path), running: None });
            }
            if !unhashed(driver.binary) && !driver.program.is_empty() {
                let source = Source { path: PathBuf::from(&driver.program), running: Some(pid) };
                sources.insert(driver.binary, source);
            }
        }
        if unhashed(driver.binary) && !driver.program.is_empty() {
            let ours = pid == std::process::id();
            self.programs.lock().insert(host, (PathBuf::from(&driver.program), ours));
        }
    }

    /// The driver is gone.
    pub(super) fn driver_gone(&self, host: HostId) {
        self.programs.lock().remove(&host);
    }

    /// What to start a job's host from, fetched if it is not here yet. The job's folder is this user's, where it has one.
    pub(super) async fn prepare(&self, job: &Job, user: Option<u32>) -> Result<Provisioned, Failure> {
        if unhashed(job.binary) {
            let program = self.programs.lock().get(&job.driver).cloned();
            let (program, ours) = program.ok_or_else(|| {
                failed(format!("{} did not say from which program its hosts are started", job.driver))
            })?;
            let program = if ours { own_program(program) } else { program };
            return Ok(Provisioned { program, cwd: None, temporary: None, _in_use: Vec::new() });
        }
        let program = self.ensure(job.binary, job.driver.node).await?;
        let mut in_use = vec![program];
        for (_, hash) in &job.files {
            in_use.push(self.ensure(*hash, job.driver.node).await?);
        }
        let folder = self.job_folder(job.job);
        let unusable = |error: std::io::Error| match disk_full(&error) {
            true => self.disk_full(&error),
            false => failed(format!("{}: {error}", folder.display())),
        };
        // Two hosts of a job may start at once, and what is the job's already root writes into no more.
        let _one = self.folders.lock().await;
        let given = user.is_some_and(|user| users::is_of(&folder, user));
        if !given {
            create_private(&folder).map_err(unusable)?;
        }
        let files = job.files.iter().zip(in_use.iter().skip(1)).filter(|_| !given);
        for ((name, _), entry) in files {
            place(&folder, name, entry.path()).map_err(|error| match error {
                Misplaced::Disk(error) if disk_full(&error) => self.disk_full(&error),
                Misplaced::Disk(error) => failed(format!("{}: {error}", folder.join(name).display())),
                Misplaced::Name => failed(format!("{name:?} is not a name for a file beside a job")),
            })?;
        }
        let temporary = user.is_some().then(|| folder.join(TEMPORARY));
        if let (Some(user), Some(temporary), false) = (user, &temporary, given) {
            users::give_folder(&folder, temporary, user).map_err(unusable)?;
        }
        let program = in_use.first().map(|entry| entry.path().to_owned()).unwrap_or_default();
        Ok(Provisioned { program, cwd: Some(folder), temporary, _in_use: in_use })
    }

    fn job_folder(&self, job: JobId) -> PathBuf {
        self.home.join("jobs").join(job.number.to_string())
    }

    /// A job is gone; its folder goes.
    pub(super) fn job_gone(&self, job: JobId) {
        let folder = self.job_folder(job);
        match fs::remove_dir_all(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(folder = %folder.display(), %error, "a job's folder stays behind"),
        }
    }

    async fn ensure(&self, hash: BinaryHash, from: NodeId) -> Result<InUse, Failure> {
        if let Some(entry) = self.store.acquire(hash) {
            return Ok(entry);
        }
        let _one = self.one_at_a_time.lock().await;
        if let Some(entry) = self.store.acquire(hash) {
            return Ok(entry);
        }
        if from == self.me { self.take_in(hash).await } else { self.pull(hash, from).await }
    }

    async fn take_in(&self, hash: BinaryHash) -> Result<InUse, Failure> {
        let source = self.sources.lock().get(&hash).cloned();
        let Source { path, running } =
            source.ok_or_else(|| failed(format!("nobody here has the file of hash {hash}")))?;
        let found = self.insert(path.clone()).await?;
        match found {
            Ok(entry) if entry.hash() == hash => return Ok(entry),
            // No other name of the same content would fit either.
            Err(error) if no_room(&error) => return Err(self.not_stored(&error)),
            _ => {}
        }
        // Another file has its name by now, or none. The content decides, so that it does not matter if the process
        // has ended and its number is another's.
        if let Some(pid) = running
            && let Ok(entry) = self.insert(format!("/proc/{pid}/exe").into()).await?
            && entry.hash() == hash
        {
            return Ok(entry);
        }
        let (what, path) = (if running.is_some() { "program" } else { "file" }, path.display());
        Err(match found {
            Ok(_) => failed(format!("the {what} {path} changed since the job started: start the job again")),
            Err(error) => {
                failed(format!("the {what} {path} cannot be read any more: start the job again ({error})"))
            }
        })
    }

    async fn insert(&self, path: PathBuf) -> Result<Result<InUse, binaries::Error>, Failure> {
        let store = self.store.clone();
        blocking(move || store.insert_file(&path)).await
    }

    /// Why a program or file could not be stored here, said so that nobody looks for it in the program.
    fn not_stored(&self, error: &binaries::Error) -> Failure {
        match error {
            binaries::Error::Io { .. } if no_room(error) => self.disk_full(error),
            binaries::Error::Full { .. } => {
                failed(format!("{}: {error} (the capacity is `--disk`)", self.me))
            }
            other => failed(other),
        }
    }

    fn disk_full(&self, error: &dyn std::fmt::Display) -> Failure {
        failed(format!(
            "{} has no room on its disk for the job's program and files in {}: make room there, or start the node \
             with another --home ({error})",
            self.me,
            self.home.display()
        ))
    }

    async fn pull(&self, hash: BinaryHash, from: NodeId) -> Result<InUse, Failure> {
        let peers = self.peers.get().and_then(Weak::upgrade);
        let peers = peers.ok_or_else(|| failed("this agent has no network"))?;
        let why =
            |error: &dyn std::fmt::Display| failed(format!("{hash} cannot be fetched from {from}: {error}"));
        let connection = peers.connection(from, Line::Bulk).await.map_err(|error| why(&error))?;
        let request = wire::encode(&Pull::Binary { hash }).map_err(failed)?;
        // A first, empty pull learns the length.
        let len = match bulk::pull(&connection, &request, &mut [], bulk::STALL_TIMEOUT, &mut ()).await {
            Err(bulk::Error::Length { got, .. }) => got,
            Ok(()) => 0,
            Err(error) => return Err(why(&error)),
        };
        let mut incoming = self.store.begin(hash, len).map_err(|error| self.not_stored(&error))?;
        let size = usize::try_from(len).map_err(failed)?;
        let mut bytes = vec![0; size];
        bulk::pull(&connection, &request, &mut bytes, bulk::STALL_TIMEOUT, &mut ())
            .await
            .map_err(|error| why(&error))?;
        blocking(move || {
            incoming.write(&bytes)?;
            incoming.finish()
        })
        .await?
        .map_err(|error| self.not_stored(&error))
    }

    /// Serves a program or file to another agent: only what a driver here named, or what is stored.
    pub(super) async fn serve(&self, hash: BinaryHash) -> Result<Bytes, String> {
        let entry = self.ensure(hash, self.me).await.map_err(|failure| failure.message)?;
        blocking(move || fs::read(entry.path()))
            .await
            .map_err(|failure| failure.to_string())?
            .map(Bytes::from)
            .map_err(|error| error.to_string())
    }
}

/// `program`, unless it is not (any more) the file that this process runs: then what the kernel knows it by. The path
/// is preferred because tools show the last part of it as the process's name.
pub fn own_program(program: PathBuf) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let own = PathBuf::from("/proc/self/exe");
    let inode = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    if inode(&program) == inode(&own) { program } else { own }
}

/// Whether it is the room that is missing, not the source.
fn no_room(error: &binaries::Error) -> bool {
    match error {
        binaries::Error::Full { .. } => true,
        binaries::Error::Io { source, .. } => disk_full(source),
        _ => false,
    }
}

fn disk_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
}

pub(super) fn create_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Why a file does not lie beside its job.
enum Misplaced {
    /// Its name leads elsewhere.
    Name,
    Disk(std::io::Error),
}

/// Puts a stored file under its name into a job's folder.
fn place(folder: &Path, name: &str, stored: &Path) -> Result<(), Misplaced> {
    let relative = Path::new(name);
    if name.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Misplaced::Name);
    }
    let target = folder.join(relative);
    if target.exists() {
        return Ok(());
    }
    let done = target
        .parent()
        .map_or(Ok(()), create_private)
        .and_then(|()| fs::hard_link(stored, &target).or_else(|_| fs::copy(stored, &target).map(|_| ())));
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Misplaced::Disk(error)),
        _ => Ok(()),
    }
}
