//! What processes can do to one another's memory, and to what strangers on the machine can.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::{
        fs::{FileExt, PermissionsExt},
        net::UnixStream,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use mobula::{Cluster, Result, View, prelude::*, private};
use mobula_e2e::{env::on, skipped};
use mobula_rig::{Part, Rig};
use rustix::{
    fs::SealFlags,
    process::{DumpableBehavior, Pid, PidfdFlags, PidfdGetfdFlags},
};

use super::{detaching::drive, driver::Outcome};

const BYTES: usize = 1 << 20;
/// What the system calls the memory of a region.
const REGION: &str = "/memfd:mobula-region";
/// Says to this program that it is to be a stranger, and which processes to try; then the agents' sockets.
const VARIABLE: &str = "MOBULA_E2E_STRANGER";
/// The user that owns nothing.
const NOBODY: u32 = 65_534;
/// Descriptors up to this are guessed.
const GUESSED_MAX: i32 = 64;

/// Has a view of what others wrote, and writes nothing.
struct Reader {
    held: Vec<View<Tensor>>,
}

#[mobula::actor(isolation = "process")]
impl Reader {
    fn new() -> Self {
        Self { held: Vec::new() }
    }

    fn read(&mut self, tensor: View<Tensor>) -> Result<(u32, bool)> {
        self.held.push(tensor);
        let dumpable = rustix::process::dumpable_behavior().map_err(|error| failed(&error))?;
        Ok((std::process::id(), dumpable == DumpableBehavior::NotDumpable))
    }
}

fn failed(error: &dyn std::fmt::Display) -> mobula::Error {
    mobula::Error::new(mobula::ErrorKind::Internal, error.to_string())
}

#[mobula::task]
fn make() -> Result<Tensor> {
    Tensor::from_vec(&[BYTES], vec![7u8; BYTES])
}

/// Runs this with a rig of two nodes, and on each a host that made something and one that reads what the other node's made.
fn with_readers(check: impl FnOnce(&mut Rig, &[u32])) -> Outcome {
    let mut rig = Rig::nodes(2).cpus(2.0).start()?;
    let builder = Cluster::connect(&rig.socket(0)?).quiet();
    let there = &mut rig;
    let (outcome, left) = private::drive(builder, async |cluster: Cluster| {
        let nodes = cluster.nodes().await?;
        let mut readers = Vec::new();
        let mut pids = Vec::new();
        for (node, other) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
            let reader = Reader::spawn().options(|options| options.strategy(on(node))).await?;
            let tensor = make.options().strategy(on(other)).remote();
            let (pid, closed) = reader.read(&tensor).await?;
            assert!(closed, "a host that is launched is not dumpable");
            pids.push(pid);
            readers.push((reader, tensor));
        }
        check(there, &pids);
        Ok::<_, mobula::Error>(())
    })?;
    outcome?;
    assert!(left.is_empty(), "{left:?}");
    rig.finish()?;
    Ok(())
}

/// Agents and hosts of the rig.
fn processes(rig: &mut Rig) -> Vec<u32> {
    let mut all = Vec::new();
    for node in 0..2 {
        all.push(rig.pid(Part::Node(node)).unwrap());
        all.extend(rig.hosts(node).unwrap());
    }
    all
}

/// The descriptors of regions that a process has.
fn regions(pid: u32) -> Vec<PathBuf> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with(REGION))).collect()
}

/// Whoever has a descriptor of a region, its writer too, can neither write with it nor change its size; and who only reads
/// has it mapped read-only. That no mapping made from one can be writable either is tried where the store may do unsafe
/// things (`runtime/store/src/region/tests.rs`).
pub fn nobody_can_write_what_is_shared() -> Outcome {
    with_readers(|rig, readers| {
        let mut tried = 0;
        for pid in processes(rig) {
            for region in regions(pid) {
                // Opened anew, with every right that its owner could get.
                let file = File::options().read(true).write(true).open(&region).unwrap();
                let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
                let needed = SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
                assert!(seals.contains(needed), "{} of {pid} has {seals:?}", region.display());
                let size = file.metadata().unwrap().len();
                for refused in [
                    file.write_at(b"x", 0).map(drop),
                    file.set_len(size / 2),
                    file.set_len(size * 2),
                    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).map_err(Into::into),
                ] {
                    assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
                }
                tried += 1;
            }
        }
        assert!(tried >= 4, "two agents and two writers have a region each, but there were {tried}");
        for pid in readers {
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
            let rights: Vec<_> = maps
                .lines()
                .filter(|line| line.contains(REGION))
                .map(|line| line.split(' ').nth(1).unwrap_or_default())
                .collect();
            assert!(!rights.is_empty(), "the reader has nothing mapped");
            assert!(rights.iter().all(|rights| *rights == "r--s"), "{rights:?}");
        }
    })
}

/// A process of another user (or, where this one cannot become another, of the same) tries what it can against hosts, agents
/// and sockets, and gets nothing.
pub fn a_stranger_gets_nothing() -> Outcome {
    with_readers(|rig, readers| {
        let is_root = rustix::process::geteuid().is_root();
        let mut words: Vec<String> = match is_root {
            true => processes(rig).iter().map(ToString::to_string).collect(),
            // To its own user an agent is open; hosts are not.
            false => readers.iter().map(ToString::to_string).collect(),
        };
        if is_root {
            for node in 0..2 {
                let socket = PathBuf::from(rig.socket(node).unwrap().trim_start_matches("unix:"));
                // So that only the agent's own look at who comes is between the two.
                let home = rig.home(node).unwrap().parent().unwrap().to_owned();
                for folder in socket.ancestors().skip(1).take_while(|folder| folder.starts_with(&home)) {
                    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
                }
                fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
                words.push(socket.display().to_string());
            }
        }
        let mut stranger = Command::new("/proc/self/exe");
        stranger.env(VARIABLE, words.join(" ")).current_dir("/").stdin(Stdio::null());
        if is_root {
            stranger.uid(NOBODY).gid(NOBODY);
        }
        let output = stranger.output().unwrap();
        let got = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(got.trim(), format!("tried {}", words.len()), "the stranger got something");
    })
}

/// Whether this process is a stranger; then it has said by now what it got.
pub fn is_stranger() -> bool {
    let Ok(words) = std::env::var(VARIABLE) else { return false };
    let mut tried = 0;
    for word in words.split(' ') {
        let got = match word.parse() {
            Ok(pid) => got_of_process(pid),
            Err(_) => {
                let mut got = got_of_socket(Path::new(word));
                got.extend(got_as_driver(word));
                got
            }
        };
        for got in got {
            println!("{word}: {got}");
        }
        tried += 1;
    }
    for blind in blind_to_processes() {
        println!("{blind}");
    }
    println!("tried {tried}");
    true
}

/// What [`got_of_process`] does not get of a process that is open to this one: a child of the same user, which may be dumped.
/// A probe that finds nothing there would find nothing anywhere.
fn blind_to_processes() -> Vec<String> {
    let mut open = Command::new("/bin/cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child to look into");
    // It is open once it is the new program, as which it answers.
    let said = open.stdin.as_mut().map(|said| said.write_all(b"?"));
    let heard = open.stdout.as_mut().map(|heard| heard.read_exact(&mut [0]));
    assert!(matches!((said, heard), (Some(Ok(())), Some(Ok(())))), "the child does not answer");
    let mut got = got_of_process(open.id());
    got.extend(open.kill().and_then(|()| open.wait()).err().map(|error| error.to_string()));
    let needed = FOLDERS.iter().chain(&FILES).chain(&LINKS).chain(&["mem", "fd/0", "descriptor 0"]);
    let blind = needed.filter(|what| !got.iter().any(|got| got == *what));
    let blind = blind.map(|what| format!("{what} is not even to be had of a process that is open"));
    blind.chain(got.iter().filter(|got| got.as_str() == GONE).cloned()).collect()
}

const GONE: &str = "the process is not there";
const FOLDERS: [&str; 3] = ["fd", "map_files", "fdinfo"];
const FILES: [&str; 4] = ["environ", "maps", "smaps", "syscall"];
const LINKS: [&str; 3] = ["exe", "cwd", "root"];

fn got_of_process(pid: u32) -> Vec<String> {
    let mut got = Vec::new();
    let mut note = |what: String, worked: bool| got.extend(worked.then_some(what));
    let proc = PathBuf::from(format!("/proc/{pid}"));
    note(GONE.to_owned(), !proc.exists());
    for folder in FOLDERS {
        note(folder.to_owned(), fs::read_dir(proc.join(folder)).is_ok());
    }
    for file in FILES {
        let read = File::open(proc.join(file)).and_then(|mut file| file.read(&mut [0; 16]));
        note(file.to_owned(), read.is_ok_and(|read| read > 0));
    }
    // Nothing lies at its beginning; who may open it may read it.
    note("mem".to_owned(), File::open(proc.join("mem")).is_ok());
    for link in LINKS {
        note(link.to_owned(), fs::read_link(proc.join(link)).is_ok());
    }
    let pidfd = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    for guessed in 0..GUESSED_MAX {
        note(format!("fd/{guessed}"), File::open(proc.join(format!("fd/{guessed}"))).is_ok());
        if let Some(pidfd) = &pidfd {
            let taken = rustix::process::pidfd_getfd(pidfd, guessed, PidfdGetfdFlags::empty());
            note(format!("descriptor {guessed}"), taken.is_ok());
        }
    }
    got
}

/// What an agent says to a stranger who waits, and then talks.
fn got_of_socket(path: &Path) -> Vec<String> {
    let mut socket = match UnixStream::connect(path) {
        Ok(socket) => socket,
        Err(error) => return vec![format!("the way to the agent should be open: {error}")],
    };
    let wait = Some(Duration::from_secs(5));
    if let Err(error) = socket.set_read_timeout(wait).and_then(|()| socket.set_write_timeout(wait)) {
        return vec![error.to_string()];
    }
    // It may be closed already.
    let _closed = socket.write_all(&[0; 64]);
    match socket.read(&mut [0; 64]) {
        Ok(0) => Vec::new(),
        Ok(read) => vec![format!("the agent said {read} bytes")],
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Vec::new(),
        Err(error) => vec![format!("the agent listens: {error}")],
    }
}

/// What an agent gives to a stranger who talks as drivers do.
fn got_as_driver(path: &str) -> Option<String> {
    let builder = Cluster::connect(&format!("unix:{path}")).quiet();
    match private::drive(builder, async |_: Cluster| ()) {
        Ok(_) => Some("a driver's place".to_owned()),
        // Turned away before it has said anything, or while it does.
        Err(error) if error.to_string().contains("the agent ") => None,
        Err(error) => Some(format!("something else: {error}")),
    }
}

/// Users of the jobs on both nodes of a rig, so many on each.
const JOB_UIDS: (u32, u32) = (1_950_000_000, 4);
const KEEPER: (&str, &str) = ("keeper", "vault");

/// Where and as whom a host runs.
#[mobula::data]
#[derive(Clone, Debug)]
struct Where {
    pid: u32,
    user: u32,
    folder: String,
    home: String,
    temporary: String,
}

fn here() -> Result<Where> {
    let said = |name| std::env::var(name).map_err(|error| failed(&error));
    let folder = std::env::current_dir().map_err(|error| failed(&error))?;
    fs::write("kept", b"a secret").map_err(|error| failed(&error))?;
    Ok(Where {
        pid: std::process::id(),
        user: rustix::process::geteuid().as_raw(),
        folder: folder.display().to_string(),
        home: said("HOME")?,
        temporary: said("TMPDIR")?,
    })
}

/// Keeps what its job made, in memory and on disk.
struct Keeper {
    kept: Vec<View<Tensor>>,
}

#[mobula::actor]
impl Keeper {
    fn new() -> Self {
        Self { kept: Vec::new() }
    }

    fn keep(&mut self, tensor: View<Tensor>) -> Result<Where> {
        self.kept.push(tensor);
        here()
    }

    fn bytes(&self) -> Vec<u8> {
        self.kept
            .iter()
            .filter_map(|tensor| tensor.tensor().ok()?.as_slice::<u8>().ok()?.first().copied())
            .collect()
    }
}

#[mobula::task]
fn sum(tensor: View<Tensor>) -> Result<u64> {
    Ok(tensor.tensor()?.as_slice::<u8>()?.iter().map(|byte| u64::from(*byte)).sum())
}

const DONE: [&str; 6] = ["listed", "read", "written", "linked", "changed", "moved"];

fn got_of_folder(folder: &Path) -> Vec<&'static str> {
    let worked = [
        fs::read_dir(folder).is_ok(),
        fs::read(folder.join("kept")).is_ok(),
        fs::write(folder.join("mine"), "").is_ok(),
        std::os::unix::fs::symlink("/", folder.join("link")).is_ok(),
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).is_ok(),
        fs::rename(folder, folder.with_extension("mine")).is_ok(),
    ];
    DONE.into_iter().zip(worked).filter_map(|(what, worked)| worked.then_some(what)).collect()
}

/// What [`got_of_folder`] cannot do with a folder of its own.
fn blind_to_folders() -> Result<Vec<String>> {
    fs::create_dir("open")
        .and_then(|()| fs::write("open/kept", b"no secret"))
        .map_err(|error| failed(&error))?;
    let got = got_of_folder(Path::new("open"));
    let blind = DONE.iter().filter(|what| !got.contains(*what));
    Ok(blind.map(|what| format!("a folder of its own is not {what}")).collect())
}

/// Tries what it can against processes, folders and sockets: what it got, and as whom it tried.
#[mobula::task]
fn attack(pids: Vec<u32>, folders: Vec<String>, sockets: Vec<String>) -> Result<(Where, Vec<String>)> {
    let mut got = blind_to_processes();
    got.extend(blind_to_folders()?);
    for pid in pids {
        got.extend(got_of_process(pid).into_iter().map(|got| format!("process {pid}: {got}")));
    }
    for folder in &folders {
        got.extend(got_of_folder(Path::new(folder)).into_iter().map(|got| format!("{folder}: {got}")));
    }
    for socket in &sockets {
        got.extend(got_of_socket(Path::new(socket)).into_iter().map(|got| format!("{socket}: {got}")));
    }
    Ok((here()?, got))
}

/// Where each job has a user of its own, a host of one job gets at nothing of another's: neither its hosts nor their
/// descriptors, regions and folders, nor what is the agents'. Each has all of its own.
pub fn a_job_gets_nothing_of_another() -> Outcome {
    if !rustix::process::geteuid().is_root() {
        skipped("it takes root to give jobs users of their own");
        return Ok(());
    }
    let (first, each) = JOB_UIDS;
    let mut rig = Rig::nodes(2).cpus(2.0).job_uids(first, each).start()?;
    assert!(rig.snapshot()?.nodes.iter().all(|node| node.multi_tenant));
    let builder = |rig: &Rig| Ok::<_, mobula_rig::Error>(Cluster::connect(&rig.socket(0)?));
    let mut theirs = None;
    drive(builder(&rig)?, async |cluster| {
        let nodes = cluster.nodes().await?;
        let strategy = || on(nodes[0]);
        let keeper = Keeper::spawn()
            .options(|options| options.strategy(strategy()))
            .name(KEEPER.0)
            .namespace(KEEPER.1)
            .detached()
            .await?;
        let kept = keeper.keep(&make.options().strategy(on(nodes[1])).remote()).await?;
        assert_eq!(keeper.bytes().await?, [7]);
        theirs = Some(kept);
        Ok(())
    })?;
    let theirs = theirs.ok_or("the first job said nothing")?;
    // The nodes' numbers are in the order in which they came.
    assert!((first..first + 2 * each).contains(&theirs.user), "{theirs:?}");
    assert_eq!((&theirs.folder, &theirs.temporary), (&theirs.home, &format!("{}/.tmp", theirs.home)));
    assert_eq!(fs::read(Path::new(&theirs.folder).join("kept"))?, b"a secret");

    let mut pids = Vec::new();
    let (mut folders, mut sockets) = (vec![theirs.folder.clone(), theirs.temporary.clone()], Vec::new());
    for node in 0..2 {
        pids.push(rig.pid(Part::Node(node))?);
        pids.extend(rig.hosts(node)?);
        let home = rig.home(node)?.to_owned();
        folders.extend(["", "jobs", "spill", "binaries"].map(|name| home.join(name).display().to_string()));
        // So that only the agent's own look at who comes is between the two.
        let socket = PathBuf::from(rig.socket(node)?.trim_start_matches("unix:"));
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777))?;
        sockets.push(socket.display().to_string());
    }
    assert!(pids.contains(&theirs.pid));
    assert!(
        !regions(theirs.pid).is_empty() || mapped(theirs.pid),
        "it has nothing that one could try to get"
    );
    drive(builder(&rig)?, async |cluster| {
        let nodes = cluster.nodes().await?;
        let mut users = Vec::new();
        for node in nodes.iter().take(2) {
            let call = attack.options().strategy(on(*node));
            let (own, got) = call.remote(pids.clone(), folders.clone(), sockets.clone()).await?;
            assert_eq!(got, Vec::<String>::new(), "what a host of another job got");
            users.push(own.user);
            // Its own is all there.
            let tensor = make.options().strategy(on(nodes[0])).remote();
            assert_eq!(sum.options().strategy(on(*node)).remote(&tensor).await?, 7 * BYTES as u64);
        }
        assert!(!users.contains(&theirs.user) && users[0] != users[1], "{users:?}");
        let keeper = mobula::find_actor::<Keeper>(KEEPER.0, KEEPER.1).await?;
        assert_eq!(keeper.bytes().await?, [7], "it answers whom it knows by name");
        keeper.kill();
        Ok(())
    })?;
    rig.wait("the folders of ended jobs to be gone", Duration::from_secs(20), |rig| {
        let left = (0..2)
            .map(|node| Ok(fs::read_dir(rig.home(node)?.join("jobs")).is_ok_and(|all| all.count() > 0)));
        Ok(!left.collect::<std::result::Result<Vec<bool>, mobula_rig::Error>>()?.contains(&true))
    })?;
    rig.finish()?;
    Ok(())
}

/// Whether a process has a region mapped.
fn mapped(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains(REGION))
}
