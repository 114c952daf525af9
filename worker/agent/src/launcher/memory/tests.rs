//! Recorded trees of either version; and what the kernel does, where this machine lets this process make groups.

use std::{io::Write, time::Duration};

use super::*;
use crate::launcher::{Exit, Launched, Launcher, ProcessLauncher, Spec};

/// Writes a machine on which this process runs, and started at tick 77.
fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let stat = (format!("proc/{}/stat", std::process::id()), stat("a) (b", 77));
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    for (path, text) in files.chain([stat]) {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn stat(name: &str, start: u64) -> String {
    format!("9 ({name}) S 1 9 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {start} 1000 2 3\n")
}

const ONE: [(&str, &str); 2] =
    [("proc/self/cgroup", "5:memory:/a/b\n4:cpu:/c\n0::/\n"), ("sys/fs/cgroup/memory/a/b/cgroup.procs", "")];

fn two(controllers: &'static str, passed_on: &'static str) -> [(&'static str, &'static str); 3] {
    [
        ("proc/self/cgroup", "0::/pod/box\n"),
        ("sys/fs/cgroup/pod/box/cgroup.controllers", controllers),
        ("sys/fs/cgroup/pod/box/cgroup.subtree_control", passed_on),
    ]
}

fn read(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file)).unwrap_or_else(|_| "absent".to_owned())
}

/// The files of a recorded group would keep its folder from being removed, as the kernel's do not.
fn clear(group: &Group) {
    for name in files::names(&group.folder, 100) {
        fs::remove_file(group.folder.join(name)).unwrap();
    }
}

#[test]
fn version_one_is_written_in_the_order_that_the_kernel_wants() {
    let root = machine(&ONE);
    let limits = Limits::detect(root.path()).unwrap();
    let own = root.path().join("sys/fs/cgroup/memory/a/b");
    assert_eq!(limits.folder(), own);
    let group = limits.group(100 << 20).unwrap();
    assert_eq!(group.folder, own.join(format!("mobula-host-{}.77-0", std::process::id())));
    let limit = |bytes: u64| (bytes + PROCESS_BYTES).to_string();
    assert_eq!(read(&group.folder, "memory.limit_in_bytes"), limit(100 << 20));
    assert_eq!(read(&group.folder, "memory.memsw.limit_in_bytes"), "absent", "where swap is not counted");
    fs::write(group.folder.join("memory.memsw.limit_in_bytes"), "").unwrap();
    group.allow(64 << 20).unwrap();
    for file in ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] {
        assert_eq!(read(&group.folder, file), limit(164 << 20), "{file}");
    }
    group.allow(1).unwrap();
    assert_eq!(read(&group.folder, "memory.limit_in_bytes"), limit(164 << 20), "it is never lowered");
    group.enter(42).unwrap();
    assert_eq!(read(&group.folder, "cgroup.procs"), "42");
    for (text, ran_out) in
        [("under_oom 0\noom_kill 0\n", false), ("under_oom 0\noom_kill 2\n", true), ("x", false)]
    {
        fs::write(group.folder.join("memory.oom_control"), text).unwrap();
        assert_eq!(group.ran_out(), ran_out, "{text}");
    }
    clear(&group);
    let folder = group.folder.clone();
    drop(group);
    assert!(!folder.exists());
    assert!(limits.group(1).unwrap().folder.ends_with(format!("mobula-host-{}.77-1", std::process::id())));
}

#[test]
fn version_two_passes_memory_on_and_has_no_swap() {
    let root = machine(&two("cpu memory pids\n", "cpu\n"));
    let limits = Limits::detect(root.path()).unwrap();
    let own = root.path().join("sys/fs/cgroup/pod/box");
    assert_eq!(
        (limits.folder(), read(&own, "cgroup.subtree_control")),
        (own.as_path(), "+memory".to_owned())
    );
    let group = limits.group(1 << 30).unwrap();
    assert_eq!(read(&group.folder, "memory.max"), ((1 << 30) + PROCESS_BYTES).to_string());
    fs::write(group.folder.join("memory.events"), "low 0\noom 1\noom_kill 1\noom_group_kill 0\n").unwrap();
    assert!(group.ran_out());
    clear(&group);
}

#[test]
fn an_agent_in_a_group_of_its_own_makes_groups_beside_it() {
    let root = machine(&[
        ("proc/self/cgroup", "0::/pod/mobula-agent\n"),
        ("sys/fs/cgroup/pod/cgroup.controllers", "memory"),
        ("sys/fs/cgroup/pod/cgroup.subtree_control", "memory"),
        ("sys/fs/cgroup/pod/mobula-agent/cgroup.procs", ""),
    ]);
    assert_eq!(Limits::detect(root.path()).unwrap().folder(), root.path().join("sys/fs/cgroup/pod"));
}

#[test]
fn what_cannot_be_limited_says_why() {
    let check = |files: &[(&str, &str)], want: &str| {
        let root = machine(files);
        let why = Limits::detect(root.path()).unwrap_err().to_string();
        assert!(why.contains(want), "{why}");
    };
    check(&[], "no control group");
    check(&[("proc/self/cgroup", "1:cpu:/a\n")], "no control group");
    // A group outside of what is mounted here.
    check(
        &[("proc/self/cgroup", "5:memory:/../x\n"), ("sys/fs/cgroup/memory/tasks", "")],
        "no control group",
    );
    check(&two("cpu pids\n", ""), "not delegated");
    let root = machine(&ONE);
    fs::remove_file(root.path().join(format!("proc/{}/stat", std::process::id()))).unwrap();
    let why = Limits::detect(root.path()).unwrap_err().to_string();
    assert!(why.contains("when this process started"), "{why}");
}

#[test]
fn groups_of_agents_that_are_gone_are_removed() {
    let own = "sys/fs/cgroup/memory/a/b";
    let alive = std::process::id();
    let root = machine(&[ONE[0], ONE[1], ("proc/5/stat", &stat("other", 12))]);
    let names = [
        (format!("mobula-host-{alive}.77-9"), true),
        // Its number belongs to another by now.
        (format!("mobula-host-{alive}.76-9"), false),
        ("mobula-host-5.12-0".to_owned(), true),
        ("mobula-host-5.11-0".to_owned(), false),
        ("mobula-host-6.12-0".to_owned(), false),
        ("mobula-host-what".to_owned(), true),
        ("others".to_owned(), true),
    ];
    for (name, _) in &names {
        fs::create_dir(root.path().join(own).join(name)).unwrap();
    }
    Limits::detect(root.path()).unwrap();
    for (name, stays) in &names {
        assert_eq!(root.path().join(own).join(name).exists(), *stays, "{name}");
    }
}

/// This machine's, or why there are none.
#[track_caller]
fn real() -> Option<Limits> {
    match ProcessLauncher.memory_limits() {
        Ok(limits) => Some(limits),
        Err(why) => {
            crate::skipped::skipped(&why.to_string());
            None
        }
    }
}

async fn run(script: &str, memory: Arc<Group>) -> Exit {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let spec = Spec {
        program: "/bin/sh".into(),
        // As a host does, it waits until it is spoken to.
        args: vec!["-c".to_owned(), format!("read line; {script}")],
        env: Vec::new(),
        device_env: Vec::new(),
        boot_fd: theirs.into(),
        cwd: None,
        user: None,
        memory: Some(memory),
    };
    let Launched { exit, killer, .. } = ProcessLauncher.launch(spec).unwrap();
    ours.write_all(b"go\n").unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(60), exit).await.expect("it ends");
    drop(killer);
    exit
}

#[tokio::test]
async fn the_kernel_holds_a_host_to_its_limit() {
    let Some(limits) = real() else { return };
    // Each time it is twice as long.
    let grow = "x=0123456789abcdef; while :; do x=$x$x; done";
    let group = limits.group(16 << 20).unwrap();
    let folder = group.folder.clone();
    let exit = run(grow, group).await;
    assert_eq!(exit, Exit::OutOfMemory(16 << 20));
    assert_eq!(exit.to_string(), "ran out of its memory limit of 16.0 MiB");
    assert!(!folder.exists());
    // Other ends are what they were.
    let group = limits.group(16 << 20).unwrap();
    let folder = group.folder.clone();
    assert_eq!(run("kill -9 $$", group).await, Exit::Signal(9));
    assert!(!folder.exists());
}

#[tokio::test]
async fn what_leaves_its_process_group_goes_with_the_host() {
    let Some(limits) = real() else { return };
    let group = limits.group(64 << 20).unwrap();
    let folder = group.folder.clone();
    let pid = tempfile::NamedTempFile::new().unwrap();
    let script = format!(
        "setsid sh -c 'echo $$ > {0}; exec sleep 1000' & while [ ! -s {0} ]; do sleep 0.01; done",
        pid.path().display()
    );
    assert_eq!(run(&script, group).await, Exit::Code(0));
    assert!(!folder.exists());
    let pid = fs::read_to_string(pid.path()).unwrap();
    let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // Gone, or about to be waited for.
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
}
