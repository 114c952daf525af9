//! Drivers as programs of their own, watched from outside.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::channel,
    time::Duration,
};

use mobula::{Cluster, NodeId, Result, Strategy};
use mobula_e2e::{
    Witness,
    env::{WAIT, on, witness},
    eventually,
};
use mobula_rig::{Part, Rig};

pub type Outcome = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Names the driver that this program is to be.
const VARIABLE: &str = "MOBULA_E2E_DRIVER";
/// Set where it is to start a local cluster of its own.
pub const LOCAL_VARIABLE: &str = "MOBULA_E2E_LOCAL";
/// Where it is noted that the driver's output was seen.
pub const SEEN_VARIABLE: &str = "MOBULA_E2E_SEEN";

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

#[mobula::task(cpu = 0)]
fn without_end() -> impl Iterator<Item = Vec<u8>> {
    std::iter::repeat_with(|| vec![1; 200_000])
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

/// How many lines each call of [`babble`] prints on each stream.
const BABBLE: u32 = 200;

#[mobula::task]
async fn babble(nodes: Vec<u32>) -> Result<()> {
    let here = mobula::context::current()?.node().number;
    if let [next, rest @ ..] = &nodes[..] {
        // What the driver never talks to is heard as well.
        babble.options().strategy(on_number(*next)).remote(rest.to_vec()).await?;
    }
    for line in 0..BABBLE {
        println!("out {here}: {line}");
        eprintln!("err {here}: {line}");
    }
    Ok(())
}

fn on_number(number: u32) -> Strategy {
    on(NodeId { number, incarnation: 1 })
}

/// One call on each node, each called by the one before it; the driver ends with the first.
async fn chatter(cluster: Cluster) -> Result<()> {
    let nodes: Vec<u32> = cluster.nodes().await?.iter().map(|node| node.number).collect();
    babble.options().strategy(on_number(nodes[0])).remote(nodes[1..].to_vec()).await
}

/// Has an actor with a name, an object, a stream that is not read and a call that never ends; then ends in this way when it is told so.
async fn busy(_cluster: Cluster, how: &str) -> Result<()> {
    let large = mobula::put(&vec![1u8; 1 << 20])?;
    let actor = Holder::spawn(large).name("holder").await?;
    let mut unread = without_end.remote();
    let _first = unread.next_ref().await;
    let held = actor.hold(for_ever.remote());
    match how {
        "hang" => return held.await,
        "stuck" => loop {
            std::thread::park();
        },
        _ => {}
    }
    let told = std::env::var(SEEN_VARIABLE).unwrap_or_default();
    eventually("the word to end", async || Ok(witness::noted(&told))).await?;
    match how {
        "panic" => panic!("that is enough"),
        "exit" => std::process::exit(3),
        _ => Ok(()),
    }
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
    let local = std::env::var_os(LOCAL_VARIABLE).is_some();
    Some(mobula::private::run_main(!local, |given| async move {
        let cluster = match given {
            Some(cluster) => Ok(cluster),
            None => Cluster::local().nodes(2).cpus(1.0).start().await,
        };
        mobula::private::Outcome::of(match (name.as_str(), cluster) {
            (_, Err(error)) => Err(error),
            ("speak", Ok(cluster)) => speak(cluster).await,
            ("chatter", Ok(cluster)) => chatter(cluster).await,
            ("fail", Ok(cluster)) => fail(cluster).await,
            ("outlive", Ok(cluster)) => super::files::outlive_the_program(cluster).await,
            (how, Ok(cluster)) => busy(cluster, how).await,
        })
    }))
}

fn command(name: &str, address: Option<(String, String)>) -> std::io::Result<Command> {
    Ok(command_of(&std::env::current_exe()?, name, address))
}

/// One of the drivers above, as this program.
pub fn command_of(program: &Path, name: &str, address: Option<(String, String)>) -> Command {
    let mut command = Command::new(program);
    command.env(VARIABLE, name).env_remove("MOBULA_ADDRESS").env_remove("MOBULA_TOKEN");
    if let Some((address, token)) = address {
        command.env("MOBULA_ADDRESS", address).env("MOBULA_TOKEN", token);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
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

/// And all of what tasks on every node print at the end, in order.
pub fn every_last_line_reaches_the_driver() -> Outcome {
    let rig = Rig::nodes(2).cpus(1.0).start()?;
    let ways = [
        ("local", None, 2),
        ("network", Some((rig.address(), rig.driver_token()?)), 2),
        ("socket", Some((rig.socket(1)?, String::new())), 2),
    ];
    for (way, address, nodes) in ways {
        let mut command = command("chatter", address)?;
        if way == "local" {
            command.env(LOCAL_VARIABLE, "");
        }
        let output = command.output()?;
        assert!(output.status.success(), "{way}: {output:?}");
        for (word, stream) in [("out", &output.stdout), ("err", &output.stderr)] {
            let text = String::from_utf8_lossy(stream);
            let mut lines: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            for line in text.lines().filter_map(|line| line.split_once(&format!(") {word} "))) {
                let (node, number) = line.1.split_once(": ").ok_or("a node and a number")?;
                lines.entry(node.parse()?).or_default().push(number.parse()?);
            }
            assert_eq!(lines.len(), nodes, "{way}: the nodes heard on std{word}");
            for (node, numbers) in lines {
                assert_eq!(numbers, (0..BABBLE).collect::<Vec<_>>(), "{way}: std{word} of node {node}");
            }
        }
    }
    rig.finish()?;
    Ok(())
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

/// Waits until the driver's output has a line with this in it.
pub fn wait_for_line(driver: &mut Child, part: &'static str) -> Outcome {
    let stdout = driver.stdout.take().ok_or("its output is not piped")?;
    let (found, seen) = channel();
    // Reads on to the end, so that the driver never waits for a reader.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            if line.contains(part) {
                // Nobody listens any more after the first.
                let _unwanted = found.send(());
            }
        }
    });
    seen.recv_timeout(WAIT).map_err(|error| format!("no line with {part:?} within {WAIT:?}: {error}").into())
}

/// How a driver ends.
struct End {
    /// Which driver.
    driver: &'static str,
    /// What is done to it.
    act: fn(&mut Child, &Witness) -> std::io::Result<()>,
    /// Its exit code, unless a signal kills it.
    code: Option<i32>,
    /// How long its job and hosts may outlive that: attached to a socket, and over the network.
    limits: [Duration; 2],
}

/// Longest that anything of a job may outlive a driver of whose end Mobula is told. It takes a small part of a second; a
/// machine that runs other tests at once is given more, though less than silence takes.
const TOLD: Duration = Duration::from_secs(4);

fn check_end(end: &End) -> Outcome {
    let mut rig = Rig::nodes(2).cpus(1.0).start()?;
    let ways = [(rig.socket(0)?, String::new()), (rig.address(), rig.driver_token()?)];
    for (way, limit) in ways.into_iter().zip(end.limits) {
        let witness = Witness::new()?;
        let mut command = command(end.driver, Some(way))?;
        command.env(SEEN_VARIABLE, witness.place("end"));
        let mut driver = command.spawn()?;
        wait_for_line(&mut driver, "here for ever")?;
        let snapshot = rig.snapshot()?;
        assert_eq!((snapshot.jobs.len(), snapshot.names.len()), (1, 1));
        (end.act)(&mut driver, &witness)?;
        rig.wait("the job and its hosts to end", limit, |rig| {
            let snapshot = rig.snapshot()?;
            let job = snapshot.jobs.len() as u64 + snapshot.leases + snapshot.names.len() as u64;
            Ok(job == 0 && rig.hosts(0)?.is_empty() && rig.hosts(1)?.is_empty())
        })?;
        assert_eq!(driver.wait()?.code(), end.code);
        assert!(rig.pid(Part::Node(0)).is_ok());
    }
    rig.finish()?;
    Ok(())
}

fn kill(driver: &mut Child, _: &Witness) -> std::io::Result<()> {
    driver.kill()
}

fn interrupt(driver: &mut Child, _: &Witness) -> std::io::Result<()> {
    let pid = rustix::process::Pid::from_child(driver);
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::INT)?)
}

fn tell(_: &mut Child, witness: &Witness) -> std::io::Result<()> {
    witness.say("end");
    Ok(())
}

/// A socket closes at once; over the network it is silence that tells, within 3 s beside the head.
pub fn a_killed_driver_ends_its_job() -> Outcome {
    let limits = [TOLD, 2 * TOLD];
    check_end(&End { driver: "hang", act: kill, code: None, limits })
}

/// Ctrl-C ends the job in good order, wherever the driver is.
pub fn an_interrupted_driver_ends_its_job() -> Outcome {
    check_end(&End { driver: "hang", act: interrupt, code: Some(130), limits: [TOLD; 2] })
}

/// Even where `main` never comes to an `await`.
pub fn an_interrupted_driver_need_not_listen() -> Outcome {
    check_end(&End { driver: "stuck", act: interrupt, code: Some(130), limits: [TOLD; 2] })
}

pub fn a_panicking_main_ends_its_job() -> Outcome {
    check_end(&End { driver: "panic", act: tell, code: Some(101), limits: [TOLD; 2] })
}

/// Without a word to Mobula.
pub fn an_exit_ends_the_job() -> Outcome {
    check_end(&End { driver: "exit", act: tell, code: Some(3), limits: [TOLD; 2] })
}

/// With much still under way.
pub fn a_returning_main_ends_its_job() -> Outcome {
    check_end(&End { driver: "return", act: tell, code: Some(0), limits: [TOLD; 2] })
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
