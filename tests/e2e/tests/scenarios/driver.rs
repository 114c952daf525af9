//! Drivers as programs of their own, watched from outside.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use mobula::{Cluster, Result};
use mobula_rig::{Part, Rig};

type Outcome = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Names the driver that this program is to be.
const VARIABLE: &str = "MOBULA_E2E_DRIVER";

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

fn start(name: &str, address: Option<(String, String)>) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(VARIABLE, name).env_remove("MOBULA_ADDRESS").env_remove("MOBULA_TOKEN");
    if let Some((address, token)) = address {
        command.env("MOBULA_ADDRESS", address).env("MOBULA_TOKEN", token);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// The hosts' output is on the driver's terminal when its `main` is over.
pub fn output_reaches_the_driver() -> Outcome {
    let rig = Rig::nodes(2).cpus(1.0).start()?;
    let ways = [None, Some((rig.address(), rig.driver_token()?)), Some((rig.socket(0)?, String::new()))];
    for way in ways {
        let embedded = way.is_none();
        let output = start("speak", way)?.wait_with_output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        // Embedded, a shared task prints by itself, without a prefix.
        for (text, word) in [(&out, "out"), (&err, "err")] {
            for at in 0..2 {
                let line = format!("{word} hello {at}");
                let found = text.lines().find(|found| found.ends_with(&line));
                let found = found.ok_or_else(|| format!("no {line:?} in {text:?}"))?;
                let own = embedded && at == 0;
                assert_eq!(found.starts_with("(node-"), !own, "{found:?}");
            }
        }
    }
    rig.finish()?;
    Ok(())
}

pub fn a_killed_driver_ends_its_job() -> Outcome {
    let mut rig = Rig::nodes(2).cpus(1.0).start()?;
    for way in [(rig.address(), rig.driver_token()?), (rig.socket(0)?, String::new())] {
        let mut driver = start("hang", Some(way))?;
        let stdout = driver.stdout.take().ok_or("its output is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        assert!(line.contains("here for ever"), "{line:?}");
        let snapshot = rig.snapshot()?;
        assert_eq!((snapshot.jobs.len(), snapshot.names.len()), (1, 1));
        driver.kill()?;
        driver.wait()?;
        let began = Instant::now();
        rig.wait("the job to end", Duration::from_secs(5), |rig| {
            let snapshot = rig.snapshot()?;
            Ok(snapshot.jobs.is_empty() && snapshot.leases == 0 && snapshot.names.is_empty())
        })?;
        rig.wait("its hosts to end", Duration::from_secs(5), |rig| {
            Ok(rig.hosts(0)?.is_empty() && rig.hosts(1)?.is_empty())
        })?;
        assert!(began.elapsed() < Duration::from_secs(5));
        assert!(rig.pid(Part::Node(0)).is_ok());
    }
    rig.finish()?;
    Ok(())
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
