//! Processes as `/proc` shows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot.
    started: u64,
}

struct Stat {
    parent: u32,
    state: char,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may contain anything.
    let rest = &text[text.rfind(')')? + 2..];
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Fields 3 (state) and 4 (parent) are taken; the start is field 22.
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat { parent, state, started })
}

impl Process {
    /// The process of this number, if there is one.
    pub fn find(pid: u32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, started: stat.started })
    }

    /// Whether it runs; one that has ended and was not reaped does not.
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && !matches!(stat.state, 'Z' | 'X'))
    }
}

/// The processes whose parent is `pid`.
pub fn children(pid: u32) -> BTreeSet<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|child: u32| {
            let stat = stat(child)?;
            (stat.parent == pid && stat.state != 'Z').then_some(Process { pid: child, started: stat.started })
        })
        .collect()
}

/// The control groups that an agent made for its hosts, below the group of this process, in which agents of a rig are.
pub fn groups_of(agent: u32) -> Vec<PathBuf> {
    let prefix = format!("mobula-host-{agent}.");
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in own.lines() {
        let Some(group) = line.splitn(3, ':').nth(2) else { continue };
        for mount in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
            let Ok(entries) = fs::read_dir(format!("{mount}{group}")) else { continue };
            let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            found.extend(paths.filter(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            }));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Bytes that there are of the memory files that a process has open, whoever has them mapped; 0 where it is gone.
pub fn memory_file_bytes(pid: u32) -> u64 {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let mut files = BTreeMap::new();
    for entry in entries.flatten() {
        let is_memory =
            fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"));
        if let Some(file) = fs::metadata(entry.path()).ok().filter(|_| is_memory) {
            files.insert(file.ino(), file.blocks() * 512);
        }
    }
    files.values().sum()
}

/// What the open descriptors of this process lead to, sorted.
pub fn descriptors() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let mut all: Vec<_> = entries
        .filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    all.sort_unstable();
    all
}
