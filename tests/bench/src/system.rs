//! The machine, the source's version, and what processes use.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::PathBuf,
    process::Command,
};

use serde_json::{Map, Value};

use crate::measure::Result;

/// What the numbers were measured on.
pub fn machine() -> Map<String, Value> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut machine = Map::new();
    machine.insert("cores".into(), cores().into());
    machine.insert("model".into(), field(&cpuinfo, "model name").unwrap_or_default().into());
    machine.insert("memory".into(), field(&meminfo, "MemTotal").unwrap_or_default().into());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    machine.insert("kernel".into(), kernel.trim().into());
    // Somebody else's work beside this one's explains a bad number.
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    machine.insert("rust".into(), first_words(Command::new("rustc").arg("--version")).into());
    machine.insert("load_at_start".into(), load.split(' ').next().unwrap_or_default().into());
    machine
}

/// What a program prints; empty where there is no such program.
fn first_words(command: &mut Command) -> String {
    let printed = command.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    printed.unwrap_or_default()
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The commit of the working folder; empty where there is none.
pub fn commit() -> String {
    match Command::new("git").args(["rev-parse", "HEAD"]).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => String::new(),
    }
}

/// The `mobula` binary beside this one, if it was built.
pub fn mobula_binary() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.with_file_name("mobula");
    beside.is_file().then_some(beside)
}

/// What a process of the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The control plane.
    Head,
    /// A node's agent.
    Agent,
    /// Executes tasks.
    Host,
}

/// The processes that this one started, with theirs, by their roles.
pub fn cluster_processes() -> Result<Vec<(u32, Role)>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse::<u32>().ok()) {
            parents.insert(pid, parent);
        }
    }
    let own = std::process::id();
    let descends = |mut pid: u32| {
        // A chain of parents is no longer than there are processes.
        for _ in 0..parents.len() {
            match parents.get(&pid) {
                Some(parent) if *parent == own => return true,
                Some(parent) => pid = *parent,
                None => return false,
            }
        }
        false
    };
    Ok(parents.keys().filter(|pid| descends(**pid)).filter_map(|pid| Some((*pid, role(*pid)?))).collect())
}

fn role(pid: u32) -> Option<Role> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variables: Vec<&[u8]> = environment.split(|byte| *byte == 0).collect();
    let starting = |start: &[u8]| variables.iter().any(|variable| variable.starts_with(start));
    if starting(b"MOBULA_BOOT_FD=") {
        Some(Role::Host)
    } else if starting(b"MOBULA_ROLE={\"Head\"") {
        Some(Role::Head)
    } else if starting(b"MOBULA_ROLE={\"Node\"") {
        Some(Role::Agent)
    } else {
        None
    }
}

/// The fields of `/proc/PID/stat` from the state on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, so what follows its last parenthesis counts.
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Processor time that the process has used, in seconds; 0 if it is gone.
pub fn cpu_seconds(pid: u32) -> f64 {
    let ticks = stat(pid).map_or(0, |fields| {
        [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum::<u64>()
    });
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Resident memory but for that of memory files, in bytes: anonymous and file pages.
pub fn private_memory(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(kilobytes(&text, "RssAnon")? + kilobytes(&text, "RssFile")?)
}

/// Resident anonymous memory, in bytes: neither of files nor of memory files.
pub fn anonymous_memory(pid: u32) -> Result<f64> {
    kilobytes(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Anonymous")
}

/// How memory files are called in `/proc`.
const MEMORY_FILE: &str = "/memfd:";
/// What Linux counts a file's blocks in, in bytes.
const BLOCK_BYTES: u64 = 512;

/// Bytes of the memory files that these processes have open or mapped: the pages that there are of them, whoever has
/// them mapped, each counted once.
pub fn memory_files(pids: &[u32]) -> Result<f64> {
    let mut files = BTreeMap::new();
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            // One that was closed meanwhile is none of the process's any more.
            let Ok(name) = fs::read_link(&path) else { continue };
            if name.as_os_str().as_bytes().starts_with(MEMORY_FILE.as_bytes())
                && let Ok(file) = fs::metadata(&path)
            {
                files.insert(file.ino(), file.blocks() * BLOCK_BYTES);
            }
        }
    }
    // Of what is mapped and no longer open, Linux tells only what each process has touched: at least so much is there.
    let mut mapped = BTreeMap::<u64, u64>::new();
    for pid in pids {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        if maps.lines().filter_map(memory_file).any(|file| !files.contains_key(&file)) {
            for (file, bytes) in touched(&fs::read_to_string(format!("/proc/{pid}/smaps"))?) {
                let most = mapped.entry(file).or_default();
                *most = bytes.max(*most);
            }
        }
    }
    let unopened = mapped.iter().filter(|(file, _)| !files.contains_key(file)).map(|(_, bytes)| bytes);
    Ok((files.values().sum::<u64>() + unopened.sum::<u64>()) as f64)
}

/// The number of the memory file that a line of `/proc/PID/maps` shows a mapping of.
fn memory_file(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let number = fields.nth(4)?.parse().ok()?;
    fields.next()?.starts_with(MEMORY_FILE).then_some(number)
}

/// Bytes of each memory file that a process has touched, of its `/proc/PID/smaps`.
fn touched(smaps: &str) -> BTreeMap<u64, u64> {
    let mut files = BTreeMap::new();
    let mut current = None;
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Rss", value)) => {
                if let Some(file) = current
                    && let Ok(kilobytes) = value.trim().trim_end_matches(" kB").parse::<u64>()
                {
                    *files.entry(file).or_default() += kilobytes * 1024;
                }
            }
            // The first line of a mapping begins with its addresses.
            Some((name, _)) if name.contains('-') && name.contains(' ') => current = memory_file(line),
            _ => {}
        }
    }
    files
}

/// A field of a file of Linux that is given in kB, in bytes.
fn kilobytes(text: &str, name: &str) -> Result<f64> {
    let value = field(text, name).ok_or_else(|| format!("Linux tells no {name}"))?;
    Ok(value.trim_end_matches(" kB").trim().parse::<f64>()? * 1024.0)
}

/// [`private_memory`] of this process and of all that it started, in bytes.
pub fn cluster_memory() -> Result<f64> {
    let mut total = private_memory(std::process::id())?;
    for (pid, _) in cluster_processes()? {
        total += private_memory(pid)?;
    }
    Ok(total)
}

/// Bytes that processes could still have.
pub fn available_memory() -> Result<u64> {
    Ok(kilobytes(&fs::read_to_string("/proc/meminfo")?, "MemAvailable")? as u64)
}

/// What came over the loopback interface since it came up, for anybody.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Headers included.
    pub bytes: f64,
    /// Those that were sent together, to be taken apart by the interface, count as one.
    pub packets: f64,
}

/// What has come so far.
pub fn loopback_traffic() -> Result<Traffic> {
    let count = |name| -> Result<f64> {
        Ok(fs::read_to_string(format!("/sys/class/net/lo/statistics/{name}"))?.trim().parse()?)
    };
    Ok(Traffic { bytes: count("rx_bytes")?, packets: count("rx_packets")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_parent_and_memory() {
        let own = std::process::id();
        assert!(stat(own).unwrap()[1].parse::<u32>().unwrap() > 0);
        assert!(private_memory(own).unwrap() > anonymous_memory(own).unwrap() / 2.0);
        assert!(anonymous_memory(own).unwrap() > 0.0);
        assert!(machine()["cores"].as_u64().unwrap() > 0);
    }

    /// As `/proc/PID/smaps` says it: a memory file mapped in two parts, a file, and memory without one.
    const SMAPS: &str = "\
7f00-7f01 rw-s 00000000 00:01 99                  /memfd:mobula-region (deleted)
Size:                 64 kB
Rss:                  48 kB
Pss:                  24 kB
VmFlags: rd wr sh mr mw me ms sd
7f01-7f02 r--s 00010000 00:01 99                  /memfd:mobula-region (deleted)
Rss:                   4 kB
5500-5600 r-xp 00000000 fe:00 99                  /usr/bin/memfd:no
Rss:                 400 kB
7f09-7f0a rw-p 00000000 00:00 0
Rss:                 800 kB
7f0b-7f0c r--s 00000000 00:01 7                   /memfd:mobula-ring (deleted)
Rss:                   0 kB
";

    #[test]
    fn what_was_touched_of_memory_files_is_added_up_by_file() {
        assert_eq!(touched(SMAPS), BTreeMap::from([(99, 52 * 1024), (7, 0)]));
        assert_eq!(memory_file("7f09-7f0a rw-p 00000000 00:00 0"), None);
    }

    #[test]
    fn memory_files_are_counted_by_their_pages_and_once() {
        let own = std::process::id();
        let before = memory_files(&[own]).unwrap();
        let file = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let again = rustix::io::dup(&file).unwrap();
        rustix::fs::ftruncate(&file, 64 << 20).unwrap();
        rustix::io::pwrite(&file, &vec![1; 8 << 20], 0).unwrap();
        let gained = memory_files(&[own, own]).unwrap() - before;
        assert_eq!(gained, f64::from(8 << 20));
        drop((file, again));
        assert_eq!(memory_files(&[own]).unwrap(), before);
    }
}
