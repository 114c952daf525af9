//! The process of many agents: real ones, whose hosts are simulated, and owners that ask for leases through them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io::BufRead,
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

use mobula_agent::{
    Agent, Handle, HeadLink, LocalLink, Options,
    detect::Detected,
    launcher::{Error as LaunchError, Exit, Exited, Killer, Launched, Launcher, Spec},
};
use mobula_net::{
    identity::{JoinToken, Role as Part},
    link::split_async,
    quic,
};
use mobula_proto::{
    BinaryHash, HostId, LeaseId, NodeId, Quantity, Resources,
    host::{Driver, ToAgent, ToHost},
    resource::{Class, LabelRule, Strategy},
    wire::{self, Hello, Role},
};
use mobula_telemetry::task;
use tokio::{
    io::empty,
    sync::{Notify, Semaphore},
    task::JoinSet,
};

use crate::measure::{Result, quantile};

/// Owners, each on a node of its own, and how many classes of each want one slot at any time.
const OWNERS: u64 = 4;
const CLASSES: u32 = 16;
/// How long a task takes.
const TASK: Duration = Duration::from_millis(20);
/// CPUs that each agent offers: ten of them have room for all that is wanted at once.
const CPUS: u64 = 16;
/// How many join at once.
const JOINING: usize = 8;
/// Longest that an owner waits for a lease.
const WAIT: Duration = Duration::from_secs(30);
/// What driver and hosts say they are made of.
const REGISTRY: u64 = 1;
/// What every node has already, so that none fetches it.
const PROGRAM: BinaryHash = BinaryHash([7; 32]);

/// The label of the nodes that work is held to.
const LABEL: &str = "bench/works";
/// How many have it; the owners are among them.
const WORKING: usize = 10;
/// Longest that a host that was named may take to be welcome.
const WELCOME: Duration = Duration::from_secs(10);

/// Work that stays on ten nodes, however many there are.
pub const HELD: &str = "held";
/// Work that goes where least is going on.
pub const SPREAD: &str = "spread";

/// Joins with the tokens that standard input gives, one a line up to an empty one; says so; works whenever told how,
/// so many tasks, and says how that went; ends with its input.
pub async fn serve(head: SocketAddr, tasks: u64) -> Result<()> {
    let tokens = line_by_line().await?;
    let home = tempfile::tempdir()?;
    let hosts = Hosts::default();
    let agents = join(head, &tokens, home.path(), &hosts).await?;
    println!("{} have joined", agents.len());
    loop {
        match line_by_line().await?.first().map(String::as_str) {
            Some(HELD) => work(&agents, &hosts, tasks, vec![LabelRule::exists(LABEL)]).await?,
            Some(SPREAD) => work(&agents, &hosts, tasks, Vec::new()).await?,
            Some(other) => return Err(format!("nobody knows how to work {other}").into()),
            None => break,
        }
    }
    let mut ending = JoinSet::new();
    for agent in agents {
        ending.spawn(async move { drop(agent.shutdown().await) });
    }
    ending.join_all().await;
    Ok(())
}

/// So many tasks, on nodes for which `rules` hold.
async fn work(agents: &[Handle], hosts: &Hosts, tasks: u64, rules: Vec<LabelRule>) -> Result<()> {
    let before = hosts.ran().await?;
    let begun = Instant::now();
    let mut owners = JoinSet::new();
    for (at, agent) in agents.iter().take(OWNERS as usize).enumerate() {
        let owner = Owner {
            at,
            link: agent.attach(),
            hosts: hosts.clone(),
            rules: rules.clone(),
            tasks: tasks / OWNERS,
        };
        owners.spawn_blocking(move || owner.own());
    }
    let mut waits = Vec::new();
    while let Some(waited) = owners.join_next().await {
        waits.extend(waited??);
    }
    let rate = waits.len() as f64 / begun.elapsed().as_secs_f64();
    let after = hosts.ran().await?;
    let ran = after.values().sum::<u64>() - before.values().sum::<u64>();
    if ran != waits.len() as u64 || ran != tasks {
        return Err(format!("{ran} tasks ran under {} leases, of {tasks}", waits.len()).into());
    }
    let nodes = after.iter().filter(|(node, ran)| before.get(node) != Some(ran)).count();
    if !rules.is_empty() && nodes > WORKING {
        return Err(format!("{nodes} nodes had work, not {WORKING}").into());
    }
    waits.sort_by(f64::total_cmp);
    println!("{} {} {rate}", quantile(&waits, 0.5), quantile(&waits, 0.99));
    Ok(())
}

/// Lines of standard input up to an empty one, or its end.
async fn line_by_line() -> Result<Vec<String>> {
    let read = || {
        let lines = std::io::stdin().lock().lines();
        lines
            .take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
            .collect::<std::io::Result<_>>()
    };
    Ok(tokio::task::spawn_blocking(read).await??)
}

async fn join(head: SocketAddr, tokens: &[String], home: &Path, hosts: &Hosts) -> Result<Vec<Handle>> {
    let few = Arc::new(Semaphore::new(JOINING));
    let mut joining = JoinSet::new();
    for (at, token) in tokens.iter().enumerate() {
        let (token, few, hosts) = (JoinToken::parse(token)?, Arc::clone(&few), hosts.clone());
        let home = home.join(at.to_string());
        joining.spawn(async move {
            let _one = few.acquire().await?;
            let joined = quic::join(head, &token, Part::Agent, &format!("agent-{at}")).await?;
            let link = HeadLink::Quic {
                address: head,
                identity: joined.identity,
                network: quic::Options::default(),
            };
            let binaries = home.join("binaries");
            std::fs::create_dir_all(&binaries)?;
            std::fs::write(binaries.join(PROGRAM.to_string()), "simulated")?;
            let total = Resources::cpu(Quantity::whole(CPUS));
            let labels = match at < WORKING {
                true => vec![(LABEL.to_owned(), "yes".to_owned())],
                false => Vec::new(),
            };
            let hostname = format!("agent-{at}");
            let offer = Detected { total, devices: vec![], tpu_chips: 0, labels, hostname };
            let mut options = Options::new(offer.hostname.clone(), home, link, offer, Arc::new(hosts));
            options.listen = Some((Ipv4Addr::LOCALHOST, 0).into());
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((at, Agent::start(options).await?))
        });
    }
    // By number, so that those with the label come first.
    let mut agents = BTreeMap::new();
    while let Some(agent) = joining.join_next().await {
        let (at, agent) = agent??;
        agents.insert(at, agent);
    }
    Ok(agents.into_values().collect())
}

/// Who asks for leases, and runs a task under each.
struct Owner {
    at: usize,
    link: LocalLink,
    hosts: Hosts,
    /// Of its classes.
    rules: Vec<LabelRule>,
    /// How many it is to run.
    tasks: u64,
}

impl Owner {
    /// What it does: for each class, one demand, one lease, one task in the host that it names, again and again. Gives
    /// the seconds from each demand to its lease.
    fn own(&self) -> Result<Vec<f64>> {
        let Self { at, link, hosts, tasks, .. } = self;
        let say = |message| link.sender.send(message, Vec::new()).map_err(|error| error.to_string());
        let driver = Driver {
            name: format!("owner-{at}"),
            namespace: String::new(),
            queue: String::new(),
            program: "/simulated".to_owned(),
            binary: PROGRAM,
            arguments: Vec::new(),
            files: Vec::new(),
        };
        say(ToAgent::Hello {
            hello: Hello::new(Role::Driver),
            pid: 1,
            driver: Some(driver),
            registry: REGISTRY,
        })?;
        let first = link.receiver.recv_timeout(WAIT)?.0;
        let ToHost::Welcome(_) = first else { return Err(format!("the agent said {first:?}").into()) };

        let mut asked: BTreeMap<u32, Instant> = BTreeMap::new();
        let mut running: BinaryHeap<Reverse<(Instant, u32, LeaseId)>> = BinaryHeap::new();
        let mut waits = Vec::with_capacity(usize::try_from(*tasks)?);
        let mut wanted = 0;
        let mut ask = |key: u32, asked: &mut BTreeMap<u32, Instant>| {
            if wanted == *tasks {
                return Ok(());
            }
            wanted += 1;
            asked.insert(key, Instant::now());
            let class = Class {
                function: format!("task-{key}"),
                resources: Resources::cpu(Quantity::ONE),
                strategy: Strategy::Spread,
                labels: self.rules.clone(),
                ..Class::default()
            };
            say(ToAgent::Demand { key, class, backlog: 1, locality: Vec::new() })
        };
        for key in 0..CLASSES {
            ask(key, &mut asked)?;
        }
        loop {
            let now = Instant::now();
            while let Some(Reverse((until, key, lease))) = running.peek().copied()
                && until <= now
            {
                running.pop();
                say(ToAgent::Release { lease })?;
                ask(key, &mut asked)?;
            }
            if asked.is_empty() && running.is_empty() {
                return Ok(waits);
            }
            let next = running.peek().map(|Reverse((until, ..))| until.saturating_duration_since(now));
            match link.receiver.recv_timeout(next.unwrap_or(WAIT)) {
                Ok((ToHost::Granted(grant), _)) => {
                    let Some(since) = asked.remove(&grant.key) else {
                        return Err(format!("{:?} was granted, and not asked for", grant.lease).into());
                    };
                    waits.push(since.elapsed().as_secs_f64());
                    hosts.run(grant.host);
                    running.push(Reverse((Instant::now() + TASK, grant.key, grant.lease)));
                }
                Ok((ToHost::Infeasible { failure, .. } | ToHost::JobEnded(failure), _)) => {
                    return Err(failure.to_string().into());
                }
                Err(RecvTimeoutError::Timeout) if next.is_some() => {}
                Err(error) => {
                    let (left, got) = (asked.len(), waits.len());
                    return Err(
                        format!("{left} classes wait after {got} leases, and none came: {error}").into()
                    );
                }
                // Of hosts and nodes that come and go, and of leases that others would take: they go back soon anyway.
                Ok(_) => {}
            }
        }
    }
}

/// A simulated host.
#[derive(Default)]
struct Host {
    /// Its agent let it in.
    welcome: bool,
    /// How many tasks it ran.
    ran: u64,
}

/// All of them.
#[derive(Clone, Default)]
struct Hosts(Arc<Mutex<BTreeMap<HostId, Host>>>);

impl Hosts {
    /// Runs a task in a host, whose own welcome may still be on its way.
    fn run(&self, host: HostId) {
        self.with(host, |host| host.ran += 1);
    }

    fn with(&self, host: HostId, change: impl FnOnce(&mut Host)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(host).or_default());
    }

    /// How many tasks they ran on each node; once all that were named have been welcome, which may take longer than their
    /// tasks did.
    async fn ran(&self) -> Result<BTreeMap<NodeId, u64>> {
        let begun = Instant::now();
        while let Some(host) = self.unwelcome() {
            if begun.elapsed() > WELCOME {
                return Err(format!("{host} was named, and there is none").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut ran = BTreeMap::new();
        for (id, host) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            *ran.entry(id.node).or_default() += host.ran;
        }
        ran.retain(|_, ran| *ran > 0);
        Ok(ran)
    }

    fn unwelcome(&self) -> Option<HostId> {
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.iter().find(|(_, host)| !host.welcome).map(|(id, _)| *id)
    }

    /// A host's life: says hello, and listens until its agent ends it.
    async fn live(&self, socket: UnixStream) -> Result<()> {
        let (mut sender, mut receiver) = split_async(socket)?;
        let hello =
            ToAgent::Hello { hello: Hello::new(Role::Host), pid: 1, driver: None, registry: REGISTRY };
        sender.send(&wire::encode(&hello)?, &[]).await?;
        while let Some(message) = receiver.recv().await? {
            if let ToHost::Welcome(welcome) = wire::decode(&message.body)? {
                self.with(welcome.host, |host| host.welcome = true);
            }
        }
        Ok(())
    }
}

impl Launcher for Hosts {
    fn launch(&self, spec: Spec) -> std::result::Result<Launched, LaunchError> {
        let (report, exit) = Exited::channel();
        let killed = Arc::new(Notify::new());
        let (hosts, seen) = (self.clone(), Arc::clone(&killed));
        drop(task::spawn("simulated-host", async move {
            let lived = tokio::select! {
                lived = hosts.live(UnixStream::from(spec.boot_fd)) => lived,
                () = seen.notified() => Ok(()),
            };
            let exit = lived.map_or_else(|error| Exit::Unknown(error.to_string()), |()| Exit::Code(0));
            // Nobody listens any more at the end.
            let _late = report.send(exit);
        }));
        Ok(Launched {
            pid: std::process::id(),
            stdout: Box::new(empty()),
            stderr: Box::new(empty()),
            exit,
            killer: Killer::new(move || killed.notify_one()),
        })
    }
}
