//! Users for jobs, so that the system keeps one job's processes and files from another's.
//!
//! - **U-1** A job has one user, from its first host on this node to its last; no two jobs have the same at once.
//! - **U-2** A user is given to a further job only when nothing that could be found is left of it: no process, no job's
//!   folder, nothing at the top of the folders for temporary files, no System V memory, queue or semaphore.
//! - **U-3** A user is given again as late as possible: first those that nobody had yet, then in the order in which they
//!   came back.
//!
//! What a job writes elsewhere, where everybody may write, stays there: that is its operator's to prevent.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    os::fd::OwnedFd,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use mobula_proto::{Failure, FailureKind, JobId};
use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal},
};
use tokio::{
    runtime::Handle,
    sync::{OnceCell, watch},
};
use tracing::{debug, warn};

/// Lowest user that may be a job's: those below are the system's own.
pub const UID_MIN: u32 = 1000;
/// Highest one: the number after it stands for none.
pub const UID_MAX: u32 = u32::MAX - 1;
/// How long processes of a job that has ended may take to be gone once they are killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Mode of folders that jobs' users pass through and can neither list nor change.
const PASSABLE: u32 = 0o711;
/// Where everybody may write.
const SHARED_FOLDERS: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"];

/// Why jobs cannot have users of their own here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a range of users.
    #[error(
        "{0:?} is no range of users: write FIRST-LAST with numbers from {UID_MIN} to {UID_MAX}, such as 2000000-2065535"
    )]
    Range(String),
    /// Only root may start processes of others.
    #[error("job_uids gives each job a user of its own, for which the node must run as root")]
    NotRoot,
    /// A person or service has one of them.
    #[error("{uid} of job_uids is the user {name} of this machine: jobs need numbers that nobody has")]
    Taken {
        /// The number.
        uid: u32,
        /// Whose it is.
        name: String,
    },
    /// This system, or container, has no such user.
    #[error(
        "{uid} of job_uids cannot own a file here ({source}): a container has only the users that are mapped into it"
    )]
    Unmapped {
        /// The number.
        uid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// Jobs could not reach their programs.
    #[error(
        "{} is closed to the users of jobs (mode {mode:04o}), whose programs lie below it: let others pass with \
         `chmod o+x`, or start the node with another --home", path.display()
    )]
    Closed {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file or folder could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether what is set is wrong; else the machine is.
    pub fn is_setting(&self) -> bool {
        !matches!(self, Self::Closed { .. } | Self::Io { .. })
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    |source| Error::Io { path: path.to_owned(), source }
}

/// A range of users that are jobs' alone; each has the group of the same number. Written `FIRST-LAST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uids {
    first: u32,
    last: u32,
}

impl FromStr for Uids {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        text.split_once('-')
            .and_then(|(first, last)| Some(Self { first: number(first)?, last: number(last)? }))
            .filter(|uids| (UID_MIN..=uids.last).contains(&uids.first) && uids.last <= UID_MAX)
            .ok_or_else(|| Error::Range(text.to_owned()))
    }
}

impl std::fmt::Display for Uids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Uids {
    fn has(self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }

    /// Whether this process can give these to jobs.
    fn check(self, jobs: &Path) -> Result<(), Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let names = Path::new("/etc/passwd");
        let known = match fs::read_to_string(names) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(names)(error)),
        };
        for line in known.lines() {
            let mut fields = line.split(':');
            let (name, uid) = (fields.next().unwrap_or_default(), fields.nth(1));
            if let Some(uid) = uid.and_then(|uid| uid.parse().ok()).filter(|uid| self.has(*uid)) {
                return Err(Error::Taken { uid, name: name.to_owned() });
            }
        }
        let probe = jobs.join(".probe");
        fs::File::create(&probe).map_err(failed(&probe))?;
        let owned = [self.first, self.last].into_iter().try_for_each(|uid| {
            std::os::unix::fs::chown(&probe, Some(uid), Some(uid))
                .map_err(|source| Error::Unmapped { uid, source })
        });
        fs::remove_file(&probe).map_err(failed(&probe))?;
        owned
    }
}

/// Lets jobs' users pass through a folder that is there, and do nothing else with it.
///
/// # Errors
/// Where the folder's mode cannot be changed.
pub fn make_passable(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(PASSABLE))
}

/// Every folder above `path` lets everybody pass.
fn check_way(path: &Path) -> Result<(), Error> {
    for folder in path.ancestors().skip(1) {
        let mode = fs::metadata(folder).map_err(failed(folder))?.mode() & 0o7777;
        if mode & 0o001 == 0 {
            return Err(Error::Closed { path: folder.to_owned(), mode });
        }
    }
    Ok(())
}

/// The users, and which job has which.
#[derive(Debug)]
pub struct Users {
    uids: Uids,
    /// The folder that holds the jobs' folders.
    jobs: PathBuf,
    /// Where jobs leave things, to be looked through.
    shared: Vec<PathBuf>,
    pool: Mutex<Pool>,
    /// How many [`User`]s are not cleared away yet.
    held: watch::Sender<usize>,
    runtime: Handle,
}

#[derive(Debug)]
struct Pool {
    /// The first that nobody had yet; past the last where there is none.
    next: u64,
    /// Those that were given before, the longest ago first.
    back: VecDeque<u32>,
    jobs: BTreeMap<JobId, Arc<User>>,
}

impl Users {
    /// Users of this range for jobs whose folders lie in `home`, in a folder `jobs` that is there; jobs' users may pass
    /// through both from now on. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(uids: Uids, home: &Path) -> Result<Arc<Self>, Error> {
        let home = fs::canonicalize(home).map_err(failed(home))?;
        let jobs = home.join("jobs");
        uids.check(&jobs)?;
        check_way(&home)?;
        for folder in [&home, &jobs] {
            make_passable(folder).map_err(failed(folder))?;
        }
        let shared: BTreeSet<PathBuf> =
            SHARED_FOLDERS.iter().map(PathBuf::from).chain([std::env::temp_dir()]).collect();
        let pool = Pool { next: uids.first.into(), back: VecDeque::new(), jobs: BTreeMap::new() };
        Ok(Arc::new(Self {
            uids,
            jobs,
            shared: shared.into_iter().collect(),
            pool: Mutex::new(pool),
            held: watch::Sender::new(0),
            runtime: Handle::current(),
        }))
    }

    /// The user of a job, kept until [`Users::job_gone`] and as long as somebody holds it.
    pub fn of(self: &Arc<Self>, job: JobId) -> Arc<User> {
        let mut pool = self.pool.lock();
        let user = pool.jobs.entry(job).or_insert_with(|| {
            self.held.send_modify(|held| *held += 1);
            Arc::new(User { job, users: Arc::clone(self), uid: OnceCell::new() })
        });
        Arc::clone(user)
    }

    /// The job has ended: once its last host has, all that is left of it goes, and its user may be another's.
    pub fn job_gone(&self, job: JobId) {
        // Dropped behind the lock, which its end takes.
        let gone = self.pool.lock().jobs.remove(&job);
        drop(gone);
    }

    /// As [`Users::job_gone`] of all jobs; returns when nothing is left of them. Bound it: what does not end is waited
    /// for.
    pub async fn all_gone(&self) {
        let gone = std::mem::take(&mut self.pool.lock().jobs);
        drop(gone);
        // The sender is `self`'s.
        let _never = self.held.subscribe().wait_for(|held| *held == 0).await.is_err();
    }

    /// A user of whom nothing is left. Blocks on the file system.
    fn take(&self) -> Result<u32, Failure> {
        let dirty = self.dirty().map_err(|error| {
            Failure::new(FailureKind::Internal, format!("no user for the job can be chosen: {error}"))
        })?;
        let mut pool = self.pool.lock();
        while let Ok(uid) = u32::try_from(pool.next)
            && uid <= self.uids.last
        {
            pool.next += 1;
            if !dirty.contains(&uid) {
                return Ok(uid);
            }
            pool.back.push_back(uid);
        }
        let clean = pool.back.iter().position(|uid| !dirty.contains(uid));
        clean.and_then(|at| pool.back.remove(at)).ok_or_else(|| {
            let text = format!(
                "no user is free for the job: each of {} (job_uids) has a job here, or left something that cannot be \
                 removed; widen the range",
                self.uids
            );
            Failure::new(FailureKind::Limit, text)
        })
    }

    /// All of the range of whom something is left.
    fn dirty(&self) -> io::Result<BTreeSet<u32>> {
        let within = |uid: &u32| self.uids.has(*uid);
        let mut dirty: BTreeSet<u32> = running()?.into_iter().map(|(_, uid)| uid).filter(within).collect();
        for folder in self.shared.iter().chain([&self.jobs]) {
            dirty.extend(entries(folder)?.into_iter().map(|(_, uid)| uid).filter(within));
        }
        dirty.extend(system_v()?.into_iter().filter(within));
        Ok(dirty)
    }

    /// Removes what is left of a job that has ended. Blocks until its processes are gone, for a while.
    fn clear(&self, uid: u32, job: JobId) {
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            // Those that were killed may have started others just before.
            let killed = kill_all(uid).and_then(|killed| match killed {
                Some(killed) => have_ended(&killed, deadline).map(Some),
                None => Ok(None),
            });
            match killed {
                Ok(None) => break,
                Ok(Some(true)) if Instant::now() < deadline => {}
                Ok(Some(_)) => {
                    warn!(uid, %job, "processes of an ended job do not end");
                    break;
                }
                Err(error) => {
                    warn!(uid, %job, %error, "processes of an ended job cannot be found");
                    break;
                }
            }
        }
        let folder = self.folder(job);
        let mut left = vec![folder.clone()];
        for shared in &self.shared {
            match entries(shared) {
                Ok(all) => left.extend(all.into_iter().filter(|(_, of)| *of == uid).map(|(path, _)| path)),
                Err(error) => {
                    warn!(folder = %shared.display(), %error, "an ended job's files cannot be found")
                }
            }
        }
        for path in left {
            let removed = match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) => debug!(path = %path.display(), %job, "removed what a job left"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => warn!(path = %path.display(), %error, "what a job left stays behind"),
            }
        }
    }

    fn folder(&self, job: JobId) -> PathBuf {
        self.jobs.join(job.number.to_string())
    }
}

/// The user of one job. Once the last of these is dropped, what the job left is removed.
#[derive(Debug)]
pub struct User {
    job: JobId,
    users: Arc<Users>,
    uid: OnceCell<u32>,
}

impl User {
    /// Its number, chosen when it is asked for first.
    ///
    /// # Errors
    /// None is free ([`FailureKind::Limit`]), or the system does not say.
    pub async fn uid(&self) -> Result<u32, Failure> {
        let choose = async || {
            let users = Arc::clone(&self.users);
            let taken = tokio::task::spawn_blocking(move || users.take()).await;
            taken.map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?
        };
        self.uid.get_or_try_init(choose).await.copied()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let (users, job, uid) = (Arc::clone(&self.users), self.job, self.uid.get().copied());
        let clear = move || {
            if let Some(uid) = uid {
                users.clear(uid, job);
                users.pool.lock().back.push_back(uid);
            }
            users.held.send_modify(|held| *held = held.saturating_sub(1));
        };
        // Where the runtime has ended, the next agent in this home removes the folder, and looks before it gives the
        // user to somebody.
        drop(self.users.runtime.spawn_blocking(clear));
    }
}

/// Makes a job's folder its user's, with a folder for temporary files in it. What root put into it before stays root's:
/// the job can read and remove it, and not change it. Nobody of the job may run yet who could put links in the way.
///
/// # Errors
/// Where the file system refuses.
pub fn give_folder(folder: &Path, temporary: &Path, uid: u32) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, chown};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(temporary)?;
    let mut inside = vec![folder.to_owned()];
    // The outermost comes last: as long as that is root's, nobody enters.
    let mut all = Vec::new();
    while let Some(next) = inside.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                inside.push(entry.path());
            }
        }
        all.push(next);
    }
    all.iter().rev().try_for_each(|folder| chown(folder, Some(uid), Some(uid)))
}

/// Whether [`give_folder`] has been done.
pub fn is_of(folder: &Path, uid: u32) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == uid)
}

/// What lies at the top of a folder, with its owners; nothing where the folder is missing.
fn entries(folder: &Path) -> io::Result<Vec<(PathBuf, u32)>> {
    let all = match fs::read_dir(folder) {
        Ok(all) => all,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in all {
        let entry = entry?;
        match entry.metadata() {
            Ok(meta) => found.push((entry.path(), meta.uid())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Every process that is no zombie, with each user that it has.
fn running() -> io::Result<Vec<(u32, u32)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        all.extend(users_of(pid).into_iter().map(|uid| (pid, uid)));
    }
    Ok(all)
}

/// The users of a process; none where it has ended.
fn users_of(pid: u32) -> BTreeSet<u32> {
    // One that cannot be read has ended meanwhile: this is for root.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    match field("State:").trim_start().chars().next() {
        None | Some('Z' | 'X') => BTreeSet::new(),
        Some(_) => field("Uid:").split_whitespace().filter_map(|uid| uid.parse().ok()).collect(),
    }
}

/// Kills what runs as this user, and says what that was; `None` where nothing did.
fn kill_all(uid: u32) -> io::Result<Option<Vec<OwnedFd>>> {
    let pids: Vec<u32> = running()?.into_iter().filter(|(_, of)| *of == uid).map(|(pid, _)| pid).collect();
    let mut killed = Vec::new();
    for pid in &pids {
        let Some(target) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else { continue };
        let pidfd = match rustix::process::pidfd_open(target, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // It has ended.
            Err(Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        // The number may have become another's before it was opened.
        if users_of(*pid).contains(&uid) {
            let _ended = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            killed.push(pidfd);
        }
    }
    Ok((!pids.is_empty()).then_some(killed))
}

/// Whether all of these processes have ended by then.
fn have_ended(processes: &[OwnedFd], deadline: Instant) -> io::Result<bool> {
    for process in processes {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(true)
}

/// The users who own, or made, System V memory, queues and semaphores.
fn system_v() -> io::Result<BTreeSet<u32>> {
    let mut owners = BTreeSet::new();
    for kind in ["shm", "msg", "sem"] {
        let text = match fs::read_to_string(format!("/proc/sysvipc/{kind}")) {
            Ok(text) => text,
            // A kernel without them.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut lines = text.lines();
        let columns: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        let owning: Vec<usize> =
            (0..columns.len()).filter(|at| matches!(columns[*at], "uid" | "cuid")).collect();
        for line in lines {
            let fields: Vec<&str> = line.split_whitespace().collect();
            owners.extend(owning.iter().filter_map(|at| fields.get(*at)?.parse::<u32>().ok()));
        }
    }
    Ok(owners)
}

#[cfg(test)]
mod tests;
