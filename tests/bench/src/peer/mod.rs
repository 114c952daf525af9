//! Ray: installing it, running its loops in a process of its own, and ending whatever it started.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::measure::{Result, Scale};

/// Its version.
pub const VERSION: &str = "2.60.0";
/// The row that says how long Ray takes from nothing to a first result, in seconds.
pub const FIRST: &str = "from nothing to the first result";

/// What is installed.
const PACKAGES: [&str; 2] = ["ray[default]==2.60.0", "numpy>=2,<3"];
/// What all loops begin with.
const HARNESS: &str = include_str!("harness.py");
/// Longest that Ray may take to start, and for one row.
const ROW_LIMIT: Duration = Duration::from_secs(120);
/// How long its processes may take to go by themselves.
const GOING: Duration = Duration::from_secs(10);
/// What marks the processes that one run started, with theirs.
const MARK: &str = "MOBULA_BENCH_RAY";

/// An installed Ray.
pub struct Ray {
    python: PathBuf,
    script: tempfile::TempDir,
}

#[derive(Deserialize)]
struct Said {
    row: String,
    value: Option<f64>,
    error: Option<String>,
}

impl Ray {
    /// The one in the user's cache; installed there if this is the first time.
    pub fn installed() -> Result<Self> {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .ok_or("neither XDG_CACHE_HOME nor HOME is set, so there is no place for Ray: set one of them")?;
        let folder = cache.join("mobula").join(format!("ray-{VERSION}"));
        // Written last: a folder without it was left by an installation that did not end.
        let complete = folder.join("complete");
        if !fs::read_to_string(&complete).is_ok_and(|text| text == PACKAGES.join("\n")) {
            eprintln!("installing Ray {VERSION} into {}", folder.display());
            install(&folder)?;
            fs::write(&complete, PACKAGES.join("\n"))?;
        }
        let script = tempfile::tempdir()?;
        fs::write(script.path().join("harness.py"), HARNESS)?;
        Ok(Self { python: folder.join("bin/python"), script })
    }

    /// Runs these loops, which start Ray, for these rows, and ends it. Every row has an outcome, and [`FIRST`] has one
    /// where the loops say when that was.
    pub fn measure(&self, loops: &str, rows: &[&str], scale: Scale) -> Result<BTreeMap<String, Result<f64>>> {
        fs::write(self.script.path().join("loops.py"), loops)?;
        let mark = format!("{}-{:?}", std::process::id(), Instant::now());
        let begun = Instant::now();
        let child = Command::new(&self.python)
            .arg(self.script.path().join("loops.py"))
            .args([scale.window.as_secs_f64().to_string(), scale.bulk_bytes.to_string()])
            .args(rows)
            .env("RAY_USAGE_STATS_ENABLED", "0")
            .env(MARK, &mark)
            .env_remove("RAY_ADDRESS")
            .current_dir(self.script.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut running = Running { child, mark };
        let mut values = BTreeMap::new();
        let said = running.lines()?;
        loop {
            match said.recv_timeout(ROW_LIMIT) {
                Ok(Said { row, .. }) if row == "first" => {
                    values.insert(FIRST.to_owned(), Ok(begun.elapsed().as_secs_f64()));
                }
                Ok(Said { row, value: Some(value), .. }) => {
                    eprintln!("  Ray, {row}: {value:.3}");
                    values.insert(row, Ok(value));
                }
                Ok(Said { row, error, .. }) => {
                    values.insert(row, Err(error.unwrap_or_else(|| "no value".to_owned()).into()));
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("  Ray said nothing for {ROW_LIMIT:?}");
                    break;
                }
            }
        }
        let trouble = running.end()?;
        for row in rows {
            let missing = || Err(format!("Ray gave no value; its last words: {trouble}").into());
            values.entry((*row).to_owned()).or_insert_with(missing);
        }
        Ok(values)
    }
}

fn install(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    let cure = "install Python 3.10 to 3.13 with venv and pip (Debian: `apt-get install python3-venv`), \
                or leave out --against-ray";
    let run = |command: &mut Command| -> Result<()> {
        let output = command.output().map_err(|error| format!("{command:?}: {error}; {cure}"))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?} failed: {}; {cure}", words.trim()).into())
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(Command::new(folder.join("bin/python")).args(pip).args(PACKAGES))
}

/// A run of the loops, and what Ray started for it.
struct Running {
    child: Child,
    mark: String,
}

impl Running {
    /// What the loops say, until they end.
    fn lines(&mut self) -> Result<Receiver<Said>> {
        let out = self.child.stdout.take().ok_or("Ray's output is not there")?;
        let (sender, receiver) = sync_channel(16);
        std::thread::Builder::new().name("ray-output".to_owned()).spawn(move || {
            let lines = BufReader::new(out).lines().map_while(std::result::Result::ok);
            // What is no JSON is a message of Ray's own.
            for said in lines.filter_map(|line| serde_json::from_str::<Said>(&line).ok()) {
                if sender.send(said).is_err() {
                    return;
                }
            }
        })?;
        Ok(receiver)
    }

    /// Its last words on standard error, when all of it is gone.
    fn end(mut self) -> Result<String> {
        let stderr = self.child.stderr.take();
        self.clear();
        let mut words = String::new();
        if let Some(stderr) = stderr {
            // Everything that held the other end is gone, so this ends.
            words = std::io::read_to_string(stderr)?;
        }
        Ok(words.lines().rev().take(3).collect::<Vec<_>>().join(" / "))
    }

    /// Waits until all its processes are gone, and kills those that stay.
    fn clear(&mut self) {
        let deadline = Instant::now() + GOING;
        loop {
            let reaped = matches!(self.child.try_wait(), Ok(Some(_)) | Err(_));
            let left = marked(&self.mark);
            if reaped && left.is_empty() {
                return;
            }
            if Instant::now() >= deadline {
                for pid in left {
                    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                        // An error means that it is gone already.
                        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !marked(&self.mark).is_empty() {
            self.clear();
        }
    }
}

/// The processes whose environment holds this mark.
fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let holds = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes()))
    };
    pids.filter(holds).collect()
}
