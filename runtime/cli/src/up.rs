//! `mobula up`: a head and nodes on this machine, each a process of its own.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    time::{Duration, Instant},
};

use mobula_net::code;
use mobula_store::spill::Place;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    api::Api,
    args::{ByUp, TokenRole, UpArgs},
    error::{self, Error},
    home::{self, Home, quoted},
    node,
    process::{Alive, Mark},
    ready::{Ready, say},
    settings::{Head, Hosts, Log, Offer, Spill, Transfer},
    signals::Signals,
    values,
};

/// Longest that a process may take until it is ready.
const READY_WAIT: Duration = Duration::from_secs(20);
/// How often a wait looks whether it was cut short.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long processes have to end in good order before they are killed; a node takes at most half of it.
pub const END_WAIT: Duration = Duration::from_secs(10);
/// How long a killed process may take to be gone.
pub const KILL_WAIT: Duration = Duration::from_secs(5);
/// Where the head of `up` listens unless set.
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// How long the tokens for the nodes are good.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);

/// What `up.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Up {
    /// The head.
    pub head: Mark,
    /// The nodes.
    pub nodes: Vec<UpNode>,
    /// The head's UDP address.
    pub quic: SocketAddr,
    /// Its HTTP address.
    pub http: SocketAddr,
}

/// A node in `up.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpNode {
    /// The process.
    pub process: Mark,
    /// Its socket for drivers.
    pub socket: PathBuf,
}

impl Up {
    /// What `up` noted in this home, if it did; the processes may be gone since.
    pub fn read(home: &Home) -> Result<Option<Self>, Error> {
        let path = home.up_file();
        match std::fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error::file("read", &path)(error)),
        }
    }

    /// The first of its processes that still runs.
    fn running(&self) -> Option<&Mark> {
        std::iter::once(&self.head)
            .chain(self.nodes.iter().map(|node| &node.process))
            .find(|mark| mark.find().is_some())
    }
}

/// A process that was started here. It is ended when this is dropped, unless it was let go.
pub struct Child {
    mark: Mark,
    process: std::process::Child,
    ready: Receiver<String>,
    ours: bool,
    /// Whether it was asked to end; asked twice, it would end at once.
    asked: bool,
}

impl Child {
    /// Starts it; its standard output is read for what it says when it is ready.
    pub fn start(mut command: std::process::Command, name: &str) -> Result<Self, Error> {
        let mut process = command.spawn().map_err(error::system("start a process"))?;
        // Not yet waited for, so it is there even if it has ended.
        let mark = Mark::of(name, process.id()).map_err(error::system("look at a process"))?;
        let (sender, ready) = sync_channel(1);
        let stdout = process.stdout.take();
        std::thread::spawn(move || {
            let mut line = String::new();
            if let Some(stdout) = stdout
                && BufReader::new(stdout).read_line(&mut line).is_ok_and(|read| read > 0)
            {
                // Nobody listens only if the wait was given up.
                let _late = sender.send(line);
            }
        });
        Ok(Self { mark, process, ready, ours: true, asked: false })
    }

    fn ready(&mut self, cancelled: &AtomicBool) -> Result<Ready, Error> {
        let name = self.mark.name.clone();
        let failed = |detail: String, cure: &str| Error::Child {
            name: name.clone(),
            detail,
            cure: cure.to_owned(),
            code: code::PROCESS.to_owned(),
        };
        let deadline = Instant::now() + READY_WAIT;
        loop {
            match self.ready.recv_timeout(LOOK_INTERVAL) {
                Ok(line) => {
                    return match serde_json::from_str(&line) {
                        Ok(Ready::Failed { what, cure, code }) => {
                            Err(Error::Child { name, detail: what, cure, code })
                        }
                        Ok(ready) => Ok(ready),
                        Err(_) => Err(failed(format!("it said {line:?}"), "")),
                    };
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed("it ended before it was ready".to_owned(), ""));
                }
                Err(RecvTimeoutError::Timeout) if cancelled.load(Ordering::Acquire) => {
                    return Err(failed("it was interrupted".to_owned(), "start it again"));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    return Err(failed(format!("it was not ready within {READY_WAIT:?}"), ""));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().is_ok_and(|status| status.is_some())
    }

    fn ask_to_end(&mut self) {
        if std::mem::replace(&mut self.asked, true) {
            return;
        }
        if let Some(alive) = self.mark.find() {
            alive.signal(Signal::TERM);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        self.ask_to_end();
        if self.mark.find().is_some_and(|alive| !alive.wait(END_WAIT)) {
            // It had its time; one that has ended meanwhile cannot be killed, which is as well.
            let _ended = self.process.kill();
        }
        let _reaped = self.process.wait();
    }
}

/// The processes of a cluster. Dropped, the nodes end first, together, then the head.
struct Cluster {
    nodes: Vec<Child>,
    head: Child,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.ours) {
            node.ask_to_end();
        }
        self.nodes.clear();
    }
}

impl Cluster {
    fn let_go(&mut self) {
        self.head.ours = false;
        for node in &mut self.nodes {
            node.ours = false;
        }
    }

    fn all(&self) -> impl Iterator<Item = &Child> {
        std::iter::once(&self.head).chain(&self.nodes)
    }
}

/// Starts a cluster; stays with it unless it shall be detached.
pub async fn run(args: UpArgs, home: Home) -> Result<(), Error> {
    let mut signals = Signals::take(None)?;
    let claim = home.claim("up")?;
    let running = Up::read(&home)?.and_then(|up| up.running().cloned());
    let head = home.claimed("head")?.filter(|mark| mark.find().is_some());
    if let Some(mark) = running.or(head) {
        return Err(Error::AlreadyRuns { what: "a cluster", home: home.path().to_owned(), pid: mark.pid });
    }
    let cancelled = Arc::new(AtomicBool::new(false));
    let detach = args.detach;
    let mut starting = tokio::task::spawn_blocking({
        let (home, cancelled) = (home.clone(), Arc::clone(&cancelled));
        move || start(&args, &home, &cancelled)
    });
    let started = tokio::select! {
        started = &mut starting => started,
        () = signals.next() => {
            cancelled.store(true, Ordering::Release);
            starting.await
        }
    };
    let (mut cluster, up) = started.map_err(|error| error::system("start a cluster")(error.into()))??;
    greet(&up, &home, detach);
    if detach {
        cluster.let_go();
        return Ok(());
    }
    let ended = stay(&cluster, &mut signals).await;
    let over = async {
        // Waits for processes, with limits; not on the thread that listens for signals.
        let _ended = tokio::task::spawn_blocking(move || drop(cluster)).await;
    };
    // The processes end by themselves when this one does, cut short or not.
    signals.while_ending(over).await;
    home.tidy();
    drop(claim);
    ended
}

fn start(args: &UpArgs, home: &Home, cancelled: &AtomicBool) -> Result<(Cluster, Up), Error> {
    let (by_up, logs) = match args.detach {
        true => (ByUp::Detached, Some(home.path().join("log"))),
        false => (ByUp::Attached, None),
    };
    if let Some(logs) = &logs {
        home::private(logs)?;
    }
    let mut command = command(by_up, logs.as_deref(), "head")?;
    command.arg("head").arg("--home").arg(home.path());
    heads(&mut command, &args.head);
    logs_at(&mut command, &args.log);
    command.arg("--by-up").arg(by_up.as_str());
    let mut head = Child::start(command, "head")?;
    let Ready::Head { quic, http } = head.ready(cancelled)? else { return Err(unexpected("head")) };
    let mut cluster = Cluster { nodes: Vec::new(), head };
    let api = Api::open(home)?;
    let offer = shared(&args.offer, args.nodes)?;
    let dial = crate::head::reachable(quic);
    for number in 1..=args.nodes {
        // Not `node-N`, which is how the head numbers nodes, in the order in which they joined.
        let name = format!("local-{number}");
        let folder = home.path().join("nodes").join(number.to_string());
        let mut command = self::command(by_up, logs.as_deref(), &name)?;
        command.arg("node").arg("--home").arg(&folder).arg("--head").arg(dial.to_string());
        command.arg("--name").arg(&name).arg("--listen").arg(SocketAddr::new(dial.ip(), 0).to_string());
        command.arg("--socket").arg(folder.join("agent.sock")).arg("--by-up").arg(by_up.as_str());
        // That is for one node alone.
        command.env_remove("MOBULA_NODE_ADVERTISE");
        offers(&mut command, &offer);
        spill(&mut command, &args.spill)?;
        transfer(&mut command, &args.transfer);
        hosts(&mut command, &args.hosts);
        logs_at(&mut command, &args.log);
        command.env("MOBULA_JOIN", api.create_token(TokenRole::Node, TOKEN_LIFETIME)?);
        if number > 1 {
            // One device can be offered by one node only.
            command.envs(mobula_agent::detect::VISIBLE_VARIABLES.map(|variable| (variable, "")));
        }
        cluster.nodes.push(Child::start(command, &name)?);
    }
    let mut nodes = Vec::new();
    for child in &mut cluster.nodes {
        let Ready::Node { socket, .. } = child.ready(cancelled)? else {
            return Err(unexpected(&child.mark.name));
        };
        nodes.push(UpNode { process: child.mark.clone(), socket });
    }
    let up = Up { head: cluster.head.mark.clone(), nodes, quic, http };
    let text = serde_json::to_vec_pretty(&up).map_err(|e| error::file("write", &home.up_file())(e.into()))?;
    home::replace(&home.up_file(), &text)?;
    Ok((cluster, up))
}

fn unexpected(name: &str) -> Error {
    Error::Child {
        name: name.to_owned(),
        detail: "it said something unexpected".to_owned(),
        cure: String::new(),
        code: code::PROCESS.to_owned(),
    }
}

/// This program again.
pub fn command(by_up: ByUp, logs: Option<&Path>, name: &str) -> Result<std::process::Command, Error> {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().map_err(error::system("find this program's own file"))?;
    let mut command = std::process::Command::new(program);
    command.stdout(Stdio::piped()).env_remove("MOBULA_JOIN");
    // What is set was read here, and is passed on as options.
    command.env("MOBULA_CONFIG", "/dev/null");
    match by_up {
        ByUp::Attached => {
            // Its end tells the process that this one is gone. A Ctrl-C on the terminal is for this one, which
            // then ends the others in their order.
            command.stdin(Stdio::piped()).process_group(0);
        }
        ByUp::Detached => {
            command.stdin(Stdio::null());
        }
    }
    if let Some(logs) = logs {
        let path = logs.join(format!("{name}.log"));
        command.stderr(File::create(&path).map_err(error::file("make", &path))?);
    }
    Ok(command)
}

/// What each node offers: the default store is shared, since several take it from the same memory.
fn shared(offer: &Offer, nodes: u32) -> Result<Offer, Error> {
    let mut offer = offer.clone();
    if offer.store.is_none() && nodes > 1 {
        let machine = node::detected(&Offer { memory: offer.memory, ..Offer::default() })?;
        let all = mobula_agent::service::store_bytes_default(&machine.total);
        offer.store = Some(all / u64::from(nodes));
    }
    Ok(offer)
}

fn offers(command: &mut std::process::Command, offer: &Offer) {
    if let Some(cpus) = offer.cpus {
        command.arg("--cpus").arg(cpus.to_string());
    }
    if let Some(memory) = offer.memory {
        command.arg("--memory").arg(memory.to_string());
    }
    if let Some(store) = offer.store {
        command.arg("--store").arg(store.to_string());
    }
    if let Some(disk) = offer.disk {
        command.arg("--disk").arg(disk.to_string());
    }
    for (name, amount) in &offer.resource {
        command.arg("--resource").arg(format!("{name}={amount}"));
    }
    for (key, value) in &offer.label {
        command.arg("--label").arg(format!("{key}={value}"));
    }
}

fn heads(command: &mut std::process::Command, head: &Head) {
    command.arg("--quic").arg(head.quic.unwrap_or(ANY_PORT).to_string());
    command.arg("--http").arg(head.http.unwrap_or(ANY_PORT).to_string());
    if let Some(name) = &head.name {
        command.arg("--name").arg(name);
    }
    if let Some(time) = head.node_timeout {
        command.arg("--node-timeout").arg(seconds(time));
    }
    for of in &head.node_type {
        command.arg("--node-type").arg(values::node_type_text(of));
    }
}

fn spill(command: &mut std::process::Command, spill: &Spill) -> Result<(), Error> {
    if let Some(path) = &spill.spill_folder {
        command.arg("--spill-folder");
        match Place::of(path) {
            Place::Url(url) => command.arg(url),
            Place::Folder(path) => {
                command.arg(std::path::absolute(&path).map_err(error::file("find", &path))?)
            }
        };
    }
    for (option, bytes) in [("--spill-disk", spill.spill_disk), ("--spill-file", spill.spill_file)] {
        if let Some(bytes) = bytes {
            command.arg(option).arg(bytes.to_string());
        }
    }
    for (option, share) in [
        ("--spill-above", spill.spill_above),
        ("--spill-below", spill.spill_below),
        ("--restore-share", spill.restore_share),
    ] {
        if let Some(share) = share {
            command.arg(option).arg(share.to_string());
        }
    }
    if let Some(time) = spill.spill_stall {
        command.arg("--spill-stall").arg(seconds(time));
    }
    Ok(())
}

fn transfer(command: &mut std::process::Command, transfer: &Transfer) {
    if let Some(share) = transfer.pull_share {
        command.arg("--pull-share").arg(share.to_string());
    }
    if let Some(time) = transfer.pull_stall {
        command.arg("--pull-stall").arg(seconds(time));
    }
    if let Some(bytes) = transfer.mtu {
        command.arg("--mtu").arg(bytes.to_string());
    }
}

fn hosts(command: &mut std::process::Command, hosts: &Hosts) {
    if let Some(time) = hosts.host_idle {
        command.arg("--host-idle").arg(seconds(time));
    }
    if let Some(time) = hosts.head_lost {
        command.arg("--head-lost").arg(seconds(time));
    }
    if let Some(bytes) = hosts.ring {
        command.arg("--ring").arg(bytes.to_string());
    }
}

fn logs_at(command: &mut std::process::Command, log: &Log) {
    if let Some(level) = &log.level {
        command.arg("--log").arg(level);
    }
}

/// As an option's value; settings have whole seconds.
fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs())
}

/// Waits until it shall end, or the head or the last node has ended by itself.
async fn stay(cluster: &Cluster, signals: &mut Signals) -> Result<(), Error> {
    let (sender, mut ends) = tokio::sync::mpsc::channel(cluster.nodes.len() + 1);
    for child in cluster.all() {
        let (mark, sender) = (child.mark.clone(), sender.clone());
        // Ends with the process, or with this one.
        std::thread::spawn(move || {
            while mark.find().as_ref().is_some_and(|alive: &Alive| !alive.wait(READY_WAIT)) {}
            // Nobody listens once all shall end.
            let _late = sender.blocking_send(mark.name);
        });
    }
    let mut left = cluster.nodes.len();
    loop {
        let name = tokio::select! {
            () = signals.next() => return Ok(()),
            name = ends.recv() => name.unwrap_or_default(),
        };
        if name == cluster.head.mark.name {
            return Err(Error::ChildEnded { name: "the head".to_owned() });
        }
        left = left.saturating_sub(1);
        if left == 0 {
            return Err(Error::ChildEnded { name: "the last node".to_owned() });
        }
        eprintln!("mobula: {name} ended by itself; {left} of the nodes are left");
    }
}

fn greet(up: &Up, home: &Home, detached: bool) {
    let option = home.option();
    let nodes = match up.nodes.len() {
        1 => "1 node".to_owned(),
        n => format!("{n} nodes"),
    };
    let mut text = format!("A head and {nodes} run: UDP {}, http://{}.\n", up.quic, up.http);
    if let Some(first) = up.nodes.first() {
        text.push_str(&format!(
            "\nTo run a program on it, from this machine:\n  export MOBULA_ADDRESS=unix:{}\n",
            quoted(&first.socket)
        ));
    }
    let reach = crate::head::reachable(up.quic);
    text.push_str(&format!(
        "or over the network:\n  export MOBULA_ADDRESS={reach} MOBULA_TOKEN=$(mobula token create --role driver{option})\n\
         \nTo see the cluster:\n  mobula status{option}\n"
    ));
    text.push_str(&match detached {
        true => format!("To end it:\n  mobula down{option}"),
        false => "Ctrl-C ends it.".to_owned(),
    });
    say(&text);
}
