//! Runs the binary, and sees to it that nothing of it outlives a test.

use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Longest that anything here may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {LIMIT:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a command that ended said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// It ended with this status, and said these things in its two lines, of which the first has the error's code.
    pub(crate) fn failed(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let lines: Vec<&str> = self.err.lines().filter(|line| !line.starts_with('{')).collect();
        assert_eq!(lines.len(), 2, "one line what failed, one line the cure: {self:?}");
        assert!(lines[0].starts_with("error: ") && lines[1].starts_with("  help: "), "{self:?}");
        assert!(lines[0].contains("[MOB") && lines[0].ends_with(']'), "no code: {self:?}");
        for part in parts {
            assert!(self.err.contains(part), "nothing of {part:?} in {self:?}");
        }
    }
}

/// A command in the foreground, killed at the end of the test.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Receiver<String>,
    errors: Option<std::thread::JoinHandle<String>>,
    seen: Vec<String>,
}

impl Running {
    pub(crate) fn line(&mut self, part: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => self.seen.push(line),
                Err(error) => {
                    let _ended = self.child.kill();
                    let errors = self.errors.take().map(|thread| thread.join().unwrap());
                    panic!("no line with {part:?} ({error}) after {:?}; errors: {errors:?}", self.seen)
                }
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn wait(&mut self, what: &str) -> (ExitStatus, String) {
        let status = wait_for(what, || self.child.try_wait().unwrap());
        (status, self.errors.take().map(|thread| thread.join().unwrap()).unwrap_or_default())
    }

    /// Asks it to end, which it must do in good order.
    pub(crate) fn end(mut self) {
        self.signal(Signal::TERM);
        let (status, errors) = self.wait("the end after SIGTERM");
        assert!(status.success(), "{status}: {errors}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A temporary home, and everything that runs in it.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("mob-").tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mobula"));
        command.args(arguments).env("HOME", self.folder.path());
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("MOBULA_") {
                command.env_remove(variable);
            }
        }
        command.env("MOBULA_HOME", self.path());
        command
    }

    pub(crate) fn say(&self, arguments: &[&str]) -> Said {
        said(self.command(arguments))
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Running {
        run(self.command(arguments))
    }

    /// A head on ports of the system's choice.
    pub(crate) fn head(&self) -> (Running, SocketAddr) {
        let mut head = self.run(&["head", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        head.line("Ctrl-C ends the head");
        let text = std::fs::read(self.path().join("head.json")).unwrap();
        let told: Value = serde_json::from_slice(&text).unwrap();
        (head, told["quic"].as_str().unwrap().parse().unwrap())
    }

    pub(crate) fn token(&self) -> String {
        let token = self.say(&["token", "create"]).ok();
        assert!(token.starts_with("mobula-join-") && token.lines().count() == 1, "{token:?}");
        token.trim().to_owned()
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.say(&["status", "--json"]).ok()).unwrap()
    }

    /// Numbers of the processes that `up` noted.
    pub(crate) fn up_pids(&self) -> Vec<u32> {
        let Ok(text) = std::fs::read(self.path().join("up.json")) else { return Vec::new() };
        let up: Value = serde_json::from_slice(&text).unwrap();
        let pid = |mark: &Value| u32::try_from(mark["pid"].as_u64().unwrap()).unwrap();
        let nodes = up["nodes"].as_array().unwrap().iter().map(|node| pid(&node["process"]));
        std::iter::once(pid(&up["head"])).chain(nodes).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A test that failed may have left a cluster; `down` refuses numbers that changed hands.
        if self.path().exists() {
            let _best_effort = self.command(&["down"]).output();
        }
    }
}

/// The example's binary, which every build of the whole workspace makes beside this one.
pub(crate) fn digits() -> PathBuf {
    let digits = PathBuf::from(env!("CARGO_BIN_EXE_mobula")).with_file_name("digits");
    assert!(digits.exists(), "{} is missing: cargo build --workspace --bins", digits.display());
    digits
}

/// Arguments of a node that joins.
pub(crate) fn node<'a>(head: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["node", "--head", head, "--listen", "127.0.0.1:0", "--store", "16MiB"];
    all.extend(more);
    all
}

pub(crate) fn run(mut command: Command) -> Running {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in stdout.lines() {
            if line.map(|line| sender.send(line)).is_err() {
                return;
            }
        }
    });
    let mut stderr = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _cut = stderr.read_to_string(&mut text);
        text
    });
    Running { child, lines, errors: Some(errors), seen: Vec::new() }
}

pub(crate) fn said(command: Command) -> Said {
    let mut running = run(command);
    let (status, err) = running.wait("a command to end");
    let out: Vec<String> = running.lines.iter().collect();
    Said { code: status.code(), out: out.join("\n"), err }
}

/// Whether a process is gone, or only waits to be reaped.
pub(crate) fn gone(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

/// Every file below a folder has no bits for others.
pub(crate) fn private(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(folder).unwrap().permissions().mode() & 0o077 == 0
}

/// A UDP port that is in use while this lives.
pub(crate) fn taken_udp() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}
