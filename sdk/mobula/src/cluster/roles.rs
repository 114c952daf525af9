//! Head and agent as processes: what `mobula head` and `mobula node` run, and what a program becomes that
//! [`super::local`] executes again.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use mobula_agent::{Agent, HeadLink, detect::Detected, launcher::ProcessLauncher};
use mobula_head::Head;
use mobula_net::{
    identity::{Identity, JoinToken, Role},
    quic,
};
use mobula_proto::Queue;
use serde::{Deserialize, Serialize};

pub use super::held::{files, mapped_bytes};
use super::{Builder, embedded, held};
use crate::{Error, ErrorKind, Result};

/// Set in a process that is to be a head or an agent: its [`Task`] as JSON.
pub const ROLE_VARIABLE: &str = "MOBULA_ROLE";

/// What a child process is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// A head for a local cluster, on ports of its own choice.
    Head {
        /// Its folder.
        home: PathBuf,
        /// How many join tokens to print.
        tokens: u32,
        /// The queues that it begins with, each after those of which it is a part.
        queues: Vec<Queue>,
    },
    /// An agent of a local cluster.
    Node {
        /// Its folder.
        home: PathBuf,
        /// The head.
        head: SocketAddr,
        /// Its join token.
        token: String,
        /// Its name.
        name: String,
        /// What it offers, where that is not detected.
        offer: Box<Offer>,
    },
}

/// What a node of a local cluster offers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Offer {
    /// CPUs.
    pub cpus: Option<f64>,
    /// Custom resources.
    pub resources: Vec<(String, f64)>,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Bytes of its store.
    pub store_bytes: Option<u64>,
    /// Bytes of UDP payload in its packets, as [`Builder::mtu`] takes them.
    pub mtu: Option<u16>,
    /// Where it spills to, as [`Builder::spill_to`] takes it.
    pub spill_to: Option<PathBuf>,
    /// When, as [`Builder::spill_above`] and its like take it.
    #[serde(default)]
    pub spill: super::spill::Limits,
    /// Users for its jobs, as `mobula node --job-uids` takes them; its home and what is above that let them pass.
    pub job_uids: Option<String>,
}

/// What a child prints, as one line of JSON, when it is ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ready {
    /// A head.
    Head {
        /// Where agents reach it.
        quic: SocketAddr,
        /// Where people reach it.
        http: SocketAddr,
        /// Join tokens.
        tokens: Vec<String>,
        /// The administrator's token.
        admin: String,
    },
    /// An agent.
    Node {
        /// Its number.
        node: u32,
        /// Its socket for drivers.
        socket: PathBuf,
        /// Where it keeps files of spilled objects, if that is a folder.
        spill: Option<PathBuf>,
    },
    /// It did not start.
    Failed(String),
}

/// A child process in a role. It ends when this is dropped, and by itself when this process does.
pub struct Process {
    child: Child,
    /// What it had open when it was ready.
    open: BTreeMap<String, usize>,
}

/// Longest that a child may take until it is ready.
pub const READY_WAIT: Duration = Duration::from_secs(20);
/// How long a join token for a child is good.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Longest that a child may take to end after it was asked to.
const END_WAIT: Duration = Duration::from_secs(3);

impl Process {
    /// Executes `program` again in this role, and waits until it is ready.
    pub fn start(program: &Path, arguments: &[String], task: &Task) -> Result<(Self, Ready)> {
        use std::os::unix::process::CommandExt;
        let trouble = |what: &str, error: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Unreachable, format!("{what} of the local cluster: {error}"))
        };
        let json = serde_json::to_string(task).map_err(|error| trouble("the task", &error))?;
        let mut child = Command::new(program)
            .args(arguments)
            .env(ROLE_VARIABLE, json)
            // It reads its input to its end, which comes when this process goes.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C on the terminal is for the driver; its end is theirs.
            .process_group(0)
            .spawn()
            .map_err(|error| trouble("a process", &error))?;
        let stdout = child.stdout.take();
        let mut process = Self { child, open: BTreeMap::new() };
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            let Some(stdout) = stdout else { return };
            let mut lines = BufReader::new(stdout);
            // A test harness prints lines of its own around ours.
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                if let Some(at) = line.find(READY_MARK)
                    && let Ok(ready) = serde_json::from_str::<Ready>(line[at + READY_MARK.len()..].trim_end())
                {
                    // Nobody listens only if the wait was given up.
                    let _late = sender.send(ready);
                }
                line.clear();
            }
        });
        match receiver.recv_timeout(READY_WAIT) {
            Ok(Ready::Failed(text)) => Err(trouble("a process", &text)),
            Ok(ready) => {
                process.open = held::descriptors(process.id());
                Ok((process, ready))
            }
            Err(error) => Err(trouble("a process was not ready in time", &error)),
        }
    }

    /// What it has open or mapped that it had not when it was ready, and should not have while there is no job, whatever it
    /// says itself; `who` begins each sentence. Files in `spill` count too.
    pub fn left(&self, who: &str, spill: Option<&Path>) -> Vec<String> {
        let more = |(kind, now): (String, usize)| {
            let before = self.open.get(&kind).copied().unwrap_or(0);
            (now > before).then(|| format!("{who} has {now} of {kind} open, {before} at its start"))
        };
        let mut left: Vec<_> = held::descriptors(self.id()).into_iter().filter_map(more).collect();
        match held::mapped_bytes(self.id()) {
            0 => {}
            bytes => left.push(format!("{who} has {bytes} bytes of the store mapped")),
        }
        left.extend(
            spill.iter().flat_map(|folder| held::spilled(folder)).map(|file| format!("{who} left {file}")),
        );
        left
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once and waits until it is gone.
    pub fn kill(mut self) {
        // An error means that it has ended already.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// Asks it to end.
    pub fn ask_to_end(&mut self) {
        drop(self.child.stdin.take());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.ask_to_end();
        let deadline = std::time::Instant::now() + END_WAIT;
        while std::time::Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(_)) => return,
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Err(_) => break,
            }
        }
        // It had its time; the kernel ends it, and nothing more can be done about an error here.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Comes before the JSON on the line that says that a child is ready.
const READY_MARK: &str = "mobula-ready ";

fn say(ready: &Ready) {
    if let Ok(json) = serde_json::to_string(ready) {
        let mut out = std::io::stdout().lock();
        // Whoever started this process is gone if it cannot be told.
        let _gone = writeln!(out, "{READY_MARK}{json}").and_then(|()| out.flush());
    }
}

/// Whether this process was started as a head or agent.
pub fn is_asked() -> bool {
    std::env::var_os(ROLE_VARIABLE).is_some()
}

/// Runs this process as a head or agent if it was started as one.
pub fn run_if_asked() -> Option<ExitCode> {
    let json = std::env::var(ROLE_VARIABLE).ok()?;
    mobula_telemetry::log::init("warn");
    let result = serde_json::from_str::<Task>(&json)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("{ROLE_VARIABLE}: {error}")))
        .and_then(|task| {
            let io = embedded::io_runtime()?;
            let (Task::Head { home, .. } | Task::Node { home, .. }) = &task;
            let home = home.clone();
            let ended = io.block_on(run(task));
            io.shutdown_timeout(END_WAIT);
            super::home::remove_late(&home);
            ended
        });
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&Ready::Failed(error.to_string()));
            ExitCode::FAILURE
        }
    })
}

async fn run(task: Task) -> Result<()> {
    let trouble = |error: &dyn std::fmt::Display| Error::new(ErrorKind::Unreachable, error.to_string());
    match task {
        Task::Head { home, tokens, queues } => {
            let options = mobula_head::Options {
                quic_address: (std::net::Ipv4Addr::LOCALHOST, 0).into(),
                http_address: (std::net::Ipv4Addr::LOCALHOST, 0).into(),
                ..mobula_head::Options::new(home)
            };
            let head = Head::start(options).await.map_err(|error| trouble(&error))?;
            embedded::define_queues(&head, &queues).await?;
            let mut all = Vec::new();
            for _ in 0..tokens {
                all.push(
                    head.create_join_token(Role::Agent, TOKEN_LIFETIME)
                        .await
                        .map_err(|error| trouble(&error))?,
                );
            }
            if let (Some(quic), Some(http)) = (head.quic_address(), head.http_address()) {
                say(&Ready::Head { quic, http, tokens: all, admin: head.admin_token().to_owned() });
            }
            tokio::select! {
                () = input_ended() => head.shutdown().await,
                () = head.closed() => {}
            }
        }
        Task::Node { home, head, token, name, offer } => {
            let offer = *offer;
            let token = JoinToken::parse(&token).map_err(|error| trouble(&error))?;
            let joined =
                quic::join(head, &token, Role::Agent, &name).await.map_err(|error| trouble(&error))?;
            let builder = Builder {
                cpus: offer.cpus,
                resources: offer.resources,
                labels: offer.labels,
                ..Builder::default()
            };
            let detected = embedded::detected(&builder)?;
            let socket = home.join("agent.sock");
            let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
            let own = home.clone();
            let spilling =
                tokio::task::spawn_blocking(move || super::spill::target(offer.spill_to.as_deref(), &own));
            let spill_to = spilling.await.map_err(|error| trouble(&error))??;
            let mut options = node_options(
                &home,
                head,
                joined.identity,
                Some(listen),
                Some(socket.clone()),
                detected,
                offer.store_bytes,
            );
            set_mtu(&mut options, offer.mtu);
            options.spill_to = spill_to;
            offer.spill.set(&mut options.spill);
            options.job_uids = match offer.job_uids.as_deref().map(str::parse) {
                None => None,
                Some(uids) => Some(uids.map_err(|error: mobula_agent::users::Error| trouble(&error))?),
            };
            let agent = Agent::start(options).await.map_err(|error| trouble(&error))?;
            let spill = agent.spill_folder().map(Path::to_owned);
            say(&Ready::Node { node: agent.node().number, socket, spill });
            tokio::select! {
                () = input_ended() => drop(agent.shutdown().await),
                _ended = agent.closed() => {}
            }
        }
    }
    Ok(())
}

/// Options of an agent that is a member of a cluster.
pub fn node_options(
    home: &Path,
    head: SocketAddr,
    identity: Identity,
    listen: Option<SocketAddr>,
    socket: Option<PathBuf>,
    resources: Detected,
    store_bytes: Option<u64>,
) -> mobula_agent::Options {
    let name = identity.peer().name.clone();
    let link = HeadLink::Quic { address: head, identity, network: quic::Options::default() };
    let mut options = mobula_agent::Options::new(name, home, link, resources, Arc::new(ProcessLauncher));
    options.listen = listen;
    options.socket = socket;
    if let Some(bytes) = store_bytes {
        options.store_bytes = bytes;
    }
    options
}

/// Has its packets carry so many bytes of UDP payload; what the path carries where none is said.
pub fn set_mtu(options: &mut mobula_agent::Options, bytes: Option<u16>) {
    if let (HeadLink::Quic { network, .. }, Some(bytes)) = (&mut options.head, bytes) {
        network.mtu = quic::Mtu::Fixed(bytes);
    }
}

/// Returns when standard input ends, which it does when the process that started this one does.
async fn input_ended() {
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let mut rest = [0; 64];
        while std::io::Read::read(&mut std::io::stdin(), &mut rest).is_ok_and(|read| read > 0) {}
        drop(sender);
    });
    // An error means that the sender was dropped, which is the news.
    let _ended = receiver.await;
}

#[cfg(test)]
mod tests {
    use mobula_net::identity::Authority;

    use super::*;

    #[test]
    fn a_packet_size_reaches_the_network() {
        let home = super::super::home::Home::new().unwrap();
        let authority = Authority::create(&home.path().join("ca"), "test").unwrap();
        let resources = embedded::detected(&Builder::default()).unwrap();
        let network = |mtu| {
            let identity = authority.identity(Role::Agent, "one").unwrap();
            let head = (std::net::Ipv4Addr::LOCALHOST, 1).into();
            let mut options = node_options(home.path(), head, identity, None, None, resources.clone(), None);
            set_mtu(&mut options, mtu);
            let HeadLink::Quic { network, .. } = options.head else { panic!("not over the network") };
            network.mtu
        };
        assert_eq!((network(None), network(Some(1452))), (quic::Mtu::Auto, quic::Mtu::Fixed(1452)));
    }
}
