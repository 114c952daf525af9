//! Memory limits of hosts, by control groups of either version, where the machine lets the agent make some.
//!
//! - **ML-1** A limited host is in a group of its own before the agent says anything to it, so before any code of its job
//!   runs in it but what runs at a program's start.
//! - **ML-2** A group goes with its host, and what is left in it is killed. What an agent that was killed left behind goes
//!   when the next one of the same group starts, or limits a host.
//! - **ML-3** A limit is what was asked for, [`PROCESS_BYTES`] for the host itself, and the most that the host's own
//!   regions of the store have taken so far: their pages count for whoever touches them first, and the store bounds them
//!   anyway. What others wrote counts for them, and what is pulled or read back for the agent.
//!
//! Where groups cannot be made nothing fails: hosts are without a limit, and the node says so.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    fs::Access,
    process::{Pid, PidfdFlags, Signal},
};
use tracing::{debug, warn};

use crate::detect::{
    cgroup::{MemoryGroup, memory_group},
    files,
};

/// What a host needs for itself, in bytes: its program, threads, and rings to others. It is on top of what its task or
/// actor may have.
pub const PROCESS_BYTES: u64 = 32 << 20;
/// What the groups of hosts are called: this, the agent's process and when that started, and a number.
const PREFIX: &str = "mobula-host-";
/// The group into which an agent of version 2 moves, since a group with processes passes on no controller.
const AGENT_GROUP: &str = "mobula-agent";
/// Most groups that are looked at in the search for stale ones.
const GROUPS_MAX: usize = 65_536;
/// How often a group that is not empty yet is tried again, and after how long: what was killed takes a moment to go.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);
/// How long the end of a runtime may be held up by one.
const LAST_TRIES: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// What makes groups, below the agent's own.
#[derive(Debug)]
pub struct Limits {
    version: Version,
    /// Where groups are made.
    folder: PathBuf,
    /// The machine: `/`, or a recorded one.
    root: PathBuf,
    /// The names of this agent's groups, without their numbers.
    name: String,
    next: AtomicU32,
}

/// Why hosts of this node have no memory limit.
#[derive(Debug, thiserror::Error)]
pub enum Unlimited {
    /// The launcher starts no processes of this machine.
    #[error("what starts hosts here knows of no limits")]
    Launcher,
    /// Nothing counts memory.
    #[error("no control group counts this process's memory")]
    NoGroup,
    /// The group belongs to somebody else.
    #[error("{folder}: no groups can be made there ({source}); delegate it to the agent's user")]
    NotWritable {
        /// The agent's group.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Version 2: memory is not among what the group may count.
    #[error("{0}: the memory controller is not delegated to it")]
    NotDelegated(PathBuf),
    /// Version 2: memory is not passed on to groups below.
    #[error("{folder}: memory cannot be counted below it ({source}); give the agent a group to itself")]
    NotPassedOn {
        /// The agent's group.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// This process cannot be told from another that will have its number.
    #[error("/proc does not say when this process started")]
    NoStart,
}

impl Limits {
    /// Looks whether the process that is `proc/self` under `root` can limit others, and removes stale groups. In version 2
    /// this may move this process into a group below its own.
    ///
    /// # Errors
    /// Why it cannot. A retry helps only if an operator changes something.
    pub fn detect(root: &Path) -> Result<Self, Unlimited> {
        let (version, folder) = match memory_group(root).ok_or(Unlimited::NoGroup)? {
            MemoryGroup::One(folder) => (Version::One, folder),
            // Another agent, or this one before, or an operator moved this process there.
            MemoryGroup::Two(folder) if folder.ends_with(AGENT_GROUP) => {
                (Version::Two, folder.parent().map_or(folder.clone(), Path::to_owned))
            }
            MemoryGroup::Two(folder) => (Version::Two, folder),
        };
        let (pid, start) = this_process(root).ok_or(Unlimited::NoStart)?;
        rustix::fs::access(&folder, Access::WRITE_OK)
            .map_err(|error| Unlimited::NotWritable { folder: folder.clone(), source: error.into() })?;
        if version == Version::Two {
            pass_on(&folder, pid)?;
        }
        let limits = Self {
            version,
            folder,
            root: root.to_owned(),
            name: format!("{PREFIX}{pid}.{start}-"),
            next: AtomicU32::new(0),
        };
        limits.sweep();
        Ok(limits)
    }

    /// Where groups are made.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes the groups of agents that are gone. One that still has a process stays for the next time.
    fn sweep(&self) {
        for name in files::names(&self.folder, GROUPS_MAX) {
            let Some((pid, start)) = agent_of(&name) else { continue };
            if started(&self.root, pid) == Some(start) {
                continue;
            }
            match fs::remove_dir(self.folder.join(&name)) {
                Ok(()) => debug!(name, "removed the group of an agent that is gone"),
                Err(error) => debug!(name, %error, "the group of an agent that is gone stays"),
            }
        }
    }

    /// Makes an empty group whose processes may have `bytes`, and what ML-3 says beside.
    ///
    /// # Errors
    /// What the system said; nothing is left then.
    pub fn group(&self, bytes: u64) -> io::Result<Arc<Group>> {
        self.sweep();
        let folder = loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let folder = self.folder.join(format!("{}{number}", self.name));
            match fs::create_dir(&folder) {
                Ok(()) => break folder,
                // Of another agent in this process.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        let group = Group { version: self.version, folder, bytes, limit: Mutex::new(0) };
        group.allow(0)?;
        if self.version == Version::Two {
            // Without swap the limit is one, and what a host started dies with it.
            group.write_if_there("memory.swap.max", "0")?;
            group.write_if_there("memory.oom.group", "1")?;
        }
        Ok(Arc::new(group))
    }
}

/// Lets groups below `folder` count memory.
fn pass_on(folder: &Path, pid: u32) -> Result<(), Unlimited> {
    let says = |file: &str| {
        let text = files::text(&folder.join(file)).unwrap_or_default();
        text.split_whitespace().any(|word| word == "memory")
    };
    if !says("cgroup.controllers") {
        return Err(Unlimited::NotDelegated(folder.to_owned()));
    }
    if says("cgroup.subtree_control") {
        return Ok(());
    }
    let enable = || write(&folder.join("cgroup.subtree_control"), "+memory");
    let Err(refused) = enable() else { return Ok(()) };
    let failed = |source| Unlimited::NotPassedOn { folder: folder.to_owned(), source };
    if refused.raw_os_error() != Some(rustix::io::Errno::BUSY.raw_os_error()) {
        return Err(failed(refused));
    }
    // There are processes in it. Where this is the only one, it goes out of the way.
    let leaf = folder.join(AGENT_GROUP);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let moved = write(&leaf.join("cgroup.procs"), &pid.to_string());
    moved.and_then(|()| enable()).map_err(|error| {
        // As it was before; where that fails, it is in a group below, under the same limits.
        let _moved = write(&folder.join("cgroup.procs"), &pid.to_string());
        let _gone = fs::remove_dir(&leaf);
        failed(error)
    })
}

/// The group of one host. Dropped, it is removed if nothing is left in it.
#[derive(Debug)]
pub struct Group {
    version: Version,
    folder: PathBuf,
    bytes: u64,
    /// What is written there.
    limit: Mutex<u64>,
}

impl Group {
    /// What was asked for, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lets its processes have so many bytes of the store beside. A limit is never lowered.
    ///
    /// # Errors
    /// What the system said.
    pub fn allow(&self, store_bytes: u64) -> io::Result<()> {
        let wanted = self.bytes.saturating_add(PROCESS_BYTES).saturating_add(store_bytes);
        let mut limit = self.limit.lock();
        if wanted <= *limit {
            return Ok(());
        }
        let text = wanted.to_string();
        match self.version {
            Version::Two => self.write("memory.max", &text)?,
            Version::One if *limit == 0 => {
                self.write("memory.limit_in_bytes", &text)?;
                self.write_if_there("memory.memsw.limit_in_bytes", &text)?;
            }
            // Memory with swap is never less than memory.
            Version::One => {
                self.write_if_there("memory.memsw.limit_in_bytes", &text)?;
                self.write("memory.limit_in_bytes", &text)?;
            }
        }
        *limit = wanted;
        Ok(())
    }

    /// Puts a process in, with what it starts from now on.
    ///
    /// # Errors
    /// What the system said.
    pub fn enter(&self, pid: u32) -> io::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Whether the kernel killed anything in it for going past the limit.
    pub fn ran_out(&self) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let text = files::text(&self.folder.join(file)).unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        kills.is_some_and(|kills| kills > 0)
    }

    /// Kills what is left in it, and removes it; says whether it is gone.
    fn try_remove(&self) -> bool {
        match fs::remove_dir(&self.folder) {
            Ok(()) => return true,
            Err(error) if error.kind() == ErrorKind::NotFound => return true,
            Err(_) => {}
        }
        // Whoever left the host's process group is still in this one.
        if self.version == Version::Two && self.write_if_there("cgroup.kill", "1").is_ok_and(|there| there) {
            return false;
        }
        for pid in self.processes() {
            let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
            // The number was this process's before the descriptor was opened, or it is now: then it is one of them.
            if self.processes().contains(&pid) {
                // It may be gone.
                let _gone = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        false
    }

    fn processes(&self) -> Vec<Pid> {
        let text = files::text(&self.folder.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect()
    }

    /// Removes it, with what is left in it.
    pub async fn remove(&self) {
        for _ in 0..REMOVE_TRIES {
            if self.try_remove() {
                return;
            }
            tokio::time::sleep(REMOVE_PAUSE).await;
        }
        warn!(group = %self.folder.display(), "the group of a host that is gone stays");
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        write(&self.folder.join(file), text)
    }

    /// Says whether there is such a file.
    fn write_if_there(&self, file: &str, text: &str) -> io::Result<bool> {
        let path = self.folder.join(file);
        if path.exists() { write(&path, text).map(|()| true) } else { Ok(false) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Gone already, unless the runtime ended first.
        for _ in 0..LAST_TRIES {
            if self.try_remove() {
                return;
            }
            std::thread::sleep(REMOVE_PAUSE);
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)
}

/// This process's number, and when it started, in ticks since the machine did.
fn this_process(root: &Path) -> Option<(u32, u64)> {
    let pid = std::process::id();
    Some((pid, started(root, pid)?))
}

/// When a process started; `None` where there is none of that number.
fn started(root: &Path, pid: u32) -> Option<u64> {
    let text = files::text(&root.join(format!("proc/{pid}/stat")))?;
    // The name may hold anything, so what follows its last parenthesis counts: the state, and 18 more before this.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The agent that made a group of this name, and when it started.
fn agent_of(name: &str) -> Option<(u32, u64)> {
    let (agent, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let (pid, start) = agent.split_once('.')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

#[cfg(test)]
mod tests;
