//! Drivers as programs of their own, watched from outside.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use mobula::{Cluster, Result};
use mobula_e2e::{Witness, env::witness, eventually};
use mobula_rig::{Part, Rig};

type Outcome = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Names the driver that this program is to be.
const VARIABLE: &str = "MOBULA_E2E_DRIVER";
/// Where it is noted that the driver's output was seen.
const SEEN_VARIABLE: &str = "MOBULA_E2E_SEEN";

#[mobula::task]
fn say(text: String) -> u32 {
    println!("out {text}");
    eprintln!("err {text}");
    std::process::id()
}

#[mobula::task(cpu = 1)]
async fn for_ever() {
    println!("here for ever");
    std::future::pending::<()>().await;
}

#[mobula::task]
fn refuse() -> std::result::Result<u8, std::io::Error> {
    Err(std::io::Error::other("no such luck"))
}

async fn speak(_cluster: Cluster) -> Result<()> {
    for (at, isolation) in ["shared", "process"].into_iter().enumerate() {
        let host = say.options().isolation(isolation).remote(format!("hello {at}")).await?;
        println!("host {host}");
    }
    // Whoever watches says when it has seen that.
    if let Ok(seen) = std::env::var(SEEN_VARIABLE) {
        eventually("the output to be seen", async || Ok(witness::noted(&seen))).await?;
    }
    say.remote("goodbye").await?;
    Ok(())
}

async fn hang(_cluster: Cluster) -> Result<()> {
    let large = mobula::put(&vec![1u8; 1 << 20])?;
    let actor = Holder::spawn(large).name("holder").await?;
    let never = for_ever.remote();
    actor.hold(never).await
}

struct Holder {
    _value: Vec<u8>,
}

#[mobula::actor]
impl Holder {
    fn new(value: Vec<u8>) -> Self {
        Self { _value: value }
    }

    fn hold(&mut self, _never: ()) {}
}

async fn fail(_cluster: Cluster) -> Result<()> {
    refuse.remote().await.map(drop)
}

/// Becomes one of the drivers above, if this process was started as one.
pub fn run_if_asked() -> Option<ExitCode> {
    let name = std::env::var(VARIABLE).ok()?;
    Some(mobula::private::run_main(true, |cluster| async move {
        let Some(cluster) = cluster else { return mobula::private::Outcome::of(()) };
        mobula::private::Outcome::of(match name.as_str() {
            "speak" => speak(cluster).await,
            "hang" => hang(cluster).await,
            _ => fail(cluster).await,
        })
    }))
}

fn command(name: &str, address: Option<(String, String)>) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(VARIABLE, name).env_remove("MOBULA_ADDRESS").env_remove("MOBULA_TOKEN");
    if let Some((address, token)) = address {
        command.env("MOBULA_ADDRESS", address).env("MOBULA_TOKEN", token);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn start(name: &str, address: Option<(String, String)>) -> std::io::Result<Child> {
    command(name, address)?.spawn()
}

/// The hosts' output appears on the driver's terminal, with the host before each line.
pub fn output_reaches_the_driver() -> Outcome {
    check_output(&["hello 0", "hello 1"])
}

/// That of the last task too, however soon `main` ends after it.
pub fn the_last_line_reaches_the_driver() -> Outcome {
    check_output(&["goodbye"])
}

/// Looks for these lines on both streams; the driver may end when those that come before its last are there.
fn check_output(expected: &'static [&'static str]) -> Outcome {
    let rig = Rig::nodes(2).cpus(1.0).start()?;
    let ways = [None, Some((rig.address(), rig.driver_token()?)), Some((rig.socket(0)?, String::new()))];
    for way in ways {
        let embedded = way.is_none();
        let witness = Witness::new()?;
        let mut command = command("speak", way)?;
        command.env(SEEN_VARIABLE, witness.place("seen"));
        let mut driver = command.spawn()?;
        let (out, err) = (driver.stdout.take(), driver.stderr.take());
        let streams: [Option<Box<dyn Read + Send>>; 2] =
            [out.map(|out| Box::new(out) as _), err.map(|err| Box::new(err) as _)];
        let readers: Vec<_> = streams
            .into_iter()
            .flatten()
            .zip(["out", "err"])
            .map(|(stream, word)| {
                let witness = witness.clone();
                std::thread::spawn(move || (word, collect(stream, word, &witness)))
            })
            .collect();
        for reader in readers {
            let (word, lines) = reader.join().map_err(|_| "a reader panicked")?;
            for line in expected {
                let line = format!("{word} {line}");
                let found = lines.iter().find(|found| found.ends_with(&line));
                let found = found.ok_or_else(|| format!("no {line:?} among {lines:?}"))?;
                // Embedded, a task without a process of its own prints by itself.
                let own = embedded && !line.ends_with('1');
                assert_eq!(found.starts_with("(node-"), !own, "{found:?}");
            }
        }
        assert!(driver.wait()?.success());
    }
    rig.finish()?;
    Ok(())
}

/// The lines of a stream. When both streams' greetings have been seen, the driver is told so.
fn collect(stream: impl Read, word: &str, witness: &Witness) -> Vec<String> {
    let mut lines = Vec::new();
    for line in BufReader::new(stream).lines().map_while(std::io::Result::ok) {
        lines.push(line);
        let all = (0..2).all(|at| lines.iter().any(|line| line.ends_with(&format!("{word} hello {at}"))));
        if all && !witness.saw(word) {
            witness.say(word);
            if witness.saw("out") && witness.saw("err") {
                witness.say("seen");
            }
        }
    }
    lines
}

/// How a driver is ended from outside, and how long its job may outlive that.
fn ended_driver(end: fn(&mut Child) -> std::io::Result<()>, limits: [Duration; 2]) -> Outcome {
    let mut rig = Rig::nodes(2).cpus(1.0).start()?;
    let ways = [(rig.socket(0)?, String::new()), (rig.address(), rig.driver_token()?)];
    for (way, limit) in ways.into_iter().zip(limits) {
        let mut driver = start("hang", Some(way))?;
        let stdout = driver.stdout.take().ok_or("its output is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        assert!(line.contains("here for ever"), "{line:?}");
        let snapshot = rig.snapshot()?;
        assert_eq!((snapshot.jobs.len(), snapshot.names.len()), (1, 1));
        end(&mut driver)?;
        driver.wait()?;
        rig.wait("the job to end", limit, |rig| {
            let snapshot = rig.snapshot()?;
            Ok(snapshot.jobs.is_empty() && snapshot.leases == 0 && snapshot.names.is_empty())
        })?;
        rig.wait("its hosts to end", Duration::from_secs(5), |rig| {
            Ok(rig.hosts(0)?.is_empty() && rig.hosts(1)?.is_empty())
        })?;
        assert!(rig.pid(Part::Node(0)).is_ok());
    }
    rig.finish()?;
    Ok(())
}

/// A socket closes at once; over the network it is silence that tells, after the idle timeout of 10 s.
pub fn a_killed_driver_ends_its_job() -> Outcome {
    ended_driver(Child::kill, [Duration::from_secs(2), Duration::from_secs(15)])
}

/// Ctrl-C ends the job in good order, wherever the driver is.
pub fn an_interrupted_driver_ends_its_job() -> Outcome {
    let interrupt = |driver: &mut Child| {
        let pid = rustix::process::Pid::from_child(driver);
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::INT)?)
    };
    ended_driver(interrupt, [Duration::from_secs(2); 2])
}

pub fn a_failing_main_says_why() -> Outcome {
    let mut driver = start("fail", None)?;
    let mut text = String::new();
    driver.stderr.take().ok_or("its errors are piped")?.read_to_string(&mut text)?;
    assert!(!driver.wait()?.success());
    for part in ["error: ", "driver::refuse#", "no such luck"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    // A program whose cluster cannot be reached never gets to its `main`.
    let mut driver = start("fail", Some(("127.0.0.1:1".to_owned(), String::new())))?;
    let mut text = String::new();
    driver.stderr.take().ok_or("its errors are piped")?.read_to_string(&mut text)?;
    assert_eq!(driver.wait()?.code(), Some(70));
    assert!(text.contains("MOBULA_TOKEN"), "{text:?}");
    Ok(())
}
