//! `mobula node`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use mobula_agent::{
    Agent, HeadLink,
    detect::{self, Detected},
    launcher::ProcessLauncher,
    service::{HeadError, SpillTo},
};
use mobula_net::{
    identity::{Identity, JoinToken, NAME_BYTES_MAX, Role},
    quic::{self, Mtu},
};
use mobula_store::spill::Place;
use mobula_telemetry::log::LEVEL_VARIABLE;

use crate::{
    args::NodeArgs,
    error::{self, Error, taken},
    home::{Home, quoted},
    ready::{Ready, say},
    settings::{Offer, Spill, Transfer},
    signals::Signals,
};

/// UDP address of a node unless set; the port is the one after the head's two.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7422);

/// Joins if that is still to be done, and runs a node until it is asked to end.
pub async fn run(args: &NodeArgs, home: &Home) -> Result<(), Error> {
    let mut signals = Signals::take(args.by_up)?;
    let _claim = home.claim("node")?;
    let started = tokio::select! {
        started = start(args, home) => started?,
        () = signals.next() => return Ok(()),
    };
    let (agent, name, socket) = started;
    match args.by_up {
        Some(_) => Ready::Node { name, socket }.say(),
        None => say(&format!(
            "Node {name} ({}) is up. Drivers on this machine connect with\n  export MOBULA_ADDRESS=unix:{}\n\n\
             Ctrl-C makes the node leave.",
            agent.node(),
            quoted(&socket),
        )),
    }
    tokio::select! {
        () = signals.next() => {
            let orderly = async {
                if let Err(error) = agent.shutdown().await {
                    eprintln!("mobula: the node had ended already: {error}");
                }
            };
            signals.while_ending(orderly).await;
            Ok(())
        }
        ended = agent.closed() => {
            let why = match ended {
                Ok(()) => "The head ended, and the cluster with it.",
                Err(error) if matches!(&*error, mobula_agent::Error::Head(HeadError::Dismissed)) => {
                    "The node has drained, and left the cluster."
                }
                Err(error) => return Err(Error::AgentEnded(error.to_string())),
            };
            if args.by_up.is_none() {
                say(why);
            }
            Ok(())
        }
    }
}

async fn start(
    args: &NodeArgs,
    home: &Home,
) -> Result<(mobula_agent::Handle, String, std::path::PathBuf), Error> {
    // What can be wrong on this side comes first: a token is good only once.
    let offer = args.offer.clone();
    let resources = tokio::task::spawn_blocking(move || detected(&offer))
        .await
        .map_err(|error| error::system("look at this machine")(error.into()))??;
    let listen = args.node.listen.unwrap_or(LISTEN);
    let head = resolve(args.node.head.as_deref().ok_or(Error::NoHeadNamed)?, listen).await?;
    let folder = home.node();
    crate::home::private(&folder)?;
    if args.node.job_uids.is_some() {
        home.make_passable()?;
    }
    let spill_to = spill_to(&args.spill, &folder).await?;
    let wished = args.node.name.clone().unwrap_or_else(|| plain(&resources.hostname));
    let identity = identity(args, &folder.join("identity"), head, &wished).await?;
    let name = identity.peer().name.clone();
    if args.node.name.as_ref().is_some_and(|wish| *wish != name) {
        eprintln!(
            "mobula: this node's name is {name}, in its certificate since it joined, or because another has {wished}"
        );
    }
    let socket = match &args.node.socket {
        Some(path) => std::path::absolute(path).map_err(error::file("find", path))?,
        None => folder.join("agent.sock"),
    };
    let link = HeadLink::Quic { address: head, identity, network: network(&args.transfer) };
    let mut options =
        mobula_agent::Options::new(name.clone(), folder, link, resources, Arc::new(ProcessLauncher));
    options.listen = Some(listen);
    options.socket = Some(socket.clone());
    set(&mut options, args);
    options.spill_to = spill_to;
    let agent = Agent::start(options).await.map_err(|error| failed(error, listen))?;
    Ok((agent, name, socket))
}

/// The network's knobs.
fn network(transfer: &Transfer) -> quic::Options {
    let mtu = transfer.mtu.map_or(Mtu::Auto, Mtu::Fixed);
    quic::Options { mtu, ..quic::Options::default() }
}

/// Where spilled objects go. A place that cannot be used is found out here.
async fn spill_to(spill: &Spill, home: &Path) -> Result<SpillTo, Error> {
    match spill.spill_folder.as_deref().map(Place::of) {
        _ if spill.spill_disk == Some(0) => Ok(SpillTo::Home),
        None => Ok(SpillTo::Home),
        Some(Place::Folder(folder)) => Ok(SpillTo::Folder(folder)),
        Some(Place::Url(url)) => {
            let home = home.to_owned();
            tokio::task::spawn_blocking(move || object_store(&url, &home))
                .await
                .map_err(|error| error::system("reach the place for spilled objects")(error.into()))?
        }
    }
}

#[cfg(feature = "object-store")]
fn object_store(url: &str, home: &Path) -> Result<SpillTo, Error> {
    match mobula_object_store::Bucket::open(url, home) {
        Ok(bucket) => Ok(SpillTo::Target(Arc::new(bucket))),
        Err(error) => Err(Error::SpillTo {
            url: url.to_owned(),
            setting: error.is_setting(),
            detail: error.to_string(),
        }),
    }
}

#[cfg(not(feature = "object-store"))]
fn object_store(url: &str, _: &Path) -> Result<SpillTo, Error> {
    let detail =
        "URLs need a mobula that was built with the feature object-store, and this was not".to_owned();
    Err(Error::SpillTo { url: url.to_owned(), setting: true, detail })
}

/// Puts what is set in place of the defaults; the machine's resources are [`detected`]'s.
fn set(options: &mut mobula_agent::Options, args: &NodeArgs) {
    options.advertise = args.node.advertise.map(|address| address.to_string());
    options.job_uids = args.node.job_uids;
    options.store_bytes = args.offer.store.unwrap_or(options.store_bytes);
    options.binaries_bytes = args.offer.disk.unwrap_or(options.binaries_bytes);
    let spill = &args.spill;
    options.spill.disk_bytes = spill.spill_disk.unwrap_or(options.spill.disk_bytes);
    options.spill.file_bytes = spill.spill_file.unwrap_or(options.spill.file_bytes);
    options.spill.above = spill.spill_above.unwrap_or(options.spill.above);
    options.spill.below = spill.spill_below.unwrap_or(options.spill.below);
    options.spill.stall = spill.spill_stall.unwrap_or(options.spill.stall);
    options.spill.restore = spill.restore_share.unwrap_or(options.spill.restore);
    options.pulls.in_flight = args.transfer.pull_share.unwrap_or(options.pulls.in_flight);
    options.pulls.stall = args.transfer.pull_stall.unwrap_or(options.pulls.stall);
    options.idle_timeout = args.hosts.host_idle.unwrap_or(options.idle_timeout);
    options.head_lost_max = args.hosts.head_lost.unwrap_or(options.head_lost_max);
    options.ring_bytes = args.hosts.ring.unwrap_or(options.ring_bytes);
    // Hosts have a default of their own.
    let level = args.log.level.iter().map(|level| (LEVEL_VARIABLE.to_owned(), level.clone()));
    options.env.extend(level);
}

fn failed(error: mobula_agent::Error, listen: SocketAddr) -> Error {
    match error {
        mobula_agent::Error::Net(quic::Error::Bind { source, .. }) if taken(&source) => {
            Error::PortInUse { protocol: "UDP", address: listen, option: "--listen" }
        }
        mobula_agent::Error::Head(HeadError::Net(error)) => Error::Net(error),
        other => Error::Agent(other),
    }
}

/// What a node offers. Blocks.
pub fn detected(offer: &Offer) -> Result<Detected, Error> {
    let options = detect::Options {
        cpu: offer.cpus,
        memory: offer.memory,
        extra_resources: offer.resource.clone(),
        labels: offer.label.clone(),
        ..detect::Options::default()
    };
    detect::detect(&options).map_err(Error::Offer)
}

/// The certificate kept in `folder`, or a new one for the token. A token of the same cluster is left unspent where
/// the certificate is good, so that a service may be started again with the same command line.
async fn identity(args: &NodeArgs, folder: &Path, head: SocketAddr, name: &str) -> Result<Identity, Error> {
    let token = match args.join.as_deref().map(str::trim) {
        None | Some("") => None,
        Some(text) => Some(JoinToken::parse(text).map_err(Error::Token)?),
    };
    if Identity::exists(folder) {
        match (Identity::load(folder), &token) {
            (Ok(kept), None) if kept.expires() <= SystemTime::now() => return Err(Error::Expired),
            (Ok(kept), None) => return Ok(kept),
            (Ok(kept), Some(token)) if kept.expires() > SystemTime::now() && same_cluster(&kept, token) => {
                return Ok(kept);
            }
            (Err(error), None) => return Err(Error::Net(error.into())),
            (_, Some(_)) => {}
        }
    }
    let token = token.ok_or_else(|| Error::NotJoined { folder: folder.to_owned() })?;
    let joined = quic::join(head, &token, Role::Agent, name).await.map_err(Error::Net)?;
    joined.identity.save(folder).map_err(|error| Error::Net(error.into()))?;
    Ok(joined.identity)
}

/// A cluster's name is the start of its CA's fingerprint, which is what a token pins.
fn same_cluster(kept: &Identity, token: &JoinToken) -> bool {
    token.ca().to_string().starts_with(kept.cluster_id())
}

/// The head's address; one of the family in which this node listens, where there is a choice.
async fn resolve(address: &str, listen: SocketAddr) -> Result<SocketAddr, Error> {
    let bad = |detail: String| Error::Address { address: address.to_owned(), detail };
    let found: Vec<SocketAddr> = match tokio::net::lookup_host(address).await {
        Ok(found) => found.collect(),
        Err(error) => return Err(bad(error.to_string())),
    };
    let family = found.iter().find(|found| found.is_ipv4() == listen.is_ipv4());
    family.copied().ok_or_else(|| {
        bad(match found.first() {
            Some(other) => format!("it is {other}, but this node listens on {listen}, of another family"),
            None => "the name has no address".to_owned(),
        })
    })
}

/// A host name as a node's name.
fn plain(hostname: &str) -> String {
    let name: String = hostname
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(NAME_BYTES_MAX)
        .collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use mobula_agent::service::{Limits, Pulls};
    use mobula_net::code;
    use mobula_proto::{Quantity, resource::Kind};

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> NodeArgs {
        match Cli::try_parse_from(format!("mobula node {line}").split_whitespace()).unwrap().command {
            Command::Node(args) => args,
            other => panic!("{other:?}"),
        }
    }

    /// What an agent would be started with.
    fn options(args: &NodeArgs) -> mobula_agent::Options {
        let (to_head, _) = tokio::sync::mpsc::channel(1);
        let (_, from_head) = tokio::sync::mpsc::channel(1);
        let link = HeadLink::Memory { to_head, from_head };
        let resources = detected(&args.offer).unwrap();
        let mut options =
            mobula_agent::Options::new("n", "/nowhere", link, resources, Arc::new(ProcessLauncher));
        set(&mut options, args);
        options
    }

    #[test]
    fn every_setting_of_offer_spill_hosts_and_log_reaches_the_agent() {
        let args = args(
            "--advertise 10.0.0.1:5 --job-uids 3000-4000 --cpus 3 --memory 1GiB --resource licence=2 --label zone=a --store 64MiB \
             --disk 2GiB --spill-folder /s --spill-disk 3GiB --spill-file 1MiB --spill-above 0.5 --spill-below 0.25 \
             --spill-stall 5s --restore-share 0.1 --pull-share 0.2 --pull-stall 6s --mtu 1452 --host-idle 3s --head-lost 4s --ring 64KiB --log warn,mobula_agent=debug",
        );
        let options = options(&args);
        assert_eq!(options.advertise.as_deref(), Some("10.0.0.1:5"));
        assert_eq!(options.job_uids.map(|uids| uids.to_string()).as_deref(), Some("3000-4000"));
        let total = &options.resources.total;
        assert_eq!(total.get(&Kind::Cpu), Quantity::whole(3));
        assert_eq!(total.get(&Kind::Custom("licence".to_owned())), Quantity::whole(2));
        assert_eq!(total.get(&Kind::Memory).to_string(), (1 << 30).to_string());
        assert!(options.resources.labels.contains(&("zone".to_owned(), "a".to_owned())));
        assert_eq!((options.store_bytes, options.binaries_bytes), (64 << 20, 2 << 30));
        let spill = Limits {
            above: 0.5,
            below: 0.25,
            file_bytes: 1 << 20,
            disk_bytes: 3 << 30,
            restore: 0.1,
            stall: Duration::from_secs(5),
        };
        assert_eq!(options.spill, spill);
        assert_eq!(
            options.pulls,
            Pulls { in_flight: 0.2, stall: Duration::from_secs(6), ..Pulls::default() }
        );
        assert_eq!(
            (options.idle_timeout, options.head_lost_max),
            (Duration::from_secs(3), Duration::from_secs(4))
        );
        assert_eq!(options.ring_bytes, 64 << 10);
        assert_eq!(network(&args.transfer).mtu, Mtu::Fixed(1452));
        assert_eq!(options.env, [("MOBULA_LOG".to_owned(), "warn,mobula_agent=debug".to_owned())]);
    }

    #[test]
    fn the_defaults_are_those_that_the_settings_state() {
        let options = options(&args(""));
        assert_eq!(network(&args("").transfer).mtu, Mtu::Auto);
        assert_eq!(options.job_uids, None);
        assert_eq!((options.binaries_bytes, options.ring_bytes), (20 << 30, 1 << 20));
        let spill = Limits {
            above: 0.8,
            below: 0.6,
            file_bytes: 64 << 20,
            disk_bytes: 64 << 30,
            restore: 0.125,
            stall: Duration::from_secs(60),
        };
        assert_eq!(options.spill, spill);
        assert_eq!(options.pulls, Pulls::default());
        assert_eq!(
            (options.idle_timeout, options.head_lost_max),
            (Duration::from_secs(10), Duration::from_secs(10))
        );
    }

    #[tokio::test]
    async fn spilled_objects_go_where_the_setting_says() {
        let home = tempfile::tempdir().unwrap();
        let to = async |line| spill_to(&args(line).spill, home.path()).await;
        assert!(matches!(to("").await, Ok(SpillTo::Home)));
        assert!(
            matches!(to("--spill-folder /s").await, Ok(SpillTo::Folder(path)) if path == Path::new("/s"))
        );
        // Where nothing is spilled, no place is needed.
        assert!(matches!(to("--spill-folder s3://b --spill-disk 0").await, Ok(SpillTo::Home)));
        if cfg!(feature = "object-store") {
            let memory = to("--spill-folder memory:///").await;
            assert!(matches!(memory, Ok(SpillTo::Target(_))), "{memory:?}");
            let error = to("--spill-folder ftp://there").await.unwrap_err();
            assert!(error.code() == code::SETTING && error.to_string().contains("write s3://"), "{error}");
            let error = to("--spill-folder file:///proc/nowhere").await.unwrap_err();
            assert!(error.code() == code::SYSTEM && error.to_string().contains("spill_folder"), "{error}");
        } else {
            let error = to("--spill-folder s3://bucket/x").await.unwrap_err();
            assert!(
                error.code() == code::SETTING && error.to_string().contains("feature object-store"),
                "{error}"
            );
            assert!(error.to_string().contains("spill_folder"), "{error}");
        }
    }

    #[test]
    fn any_host_name_makes_a_name() {
        assert_eq!(plain("gpu box é"), "gpu-box--");
        assert_eq!(plain(""), "node");
        assert_eq!(plain(&"x".repeat(300)).len(), NAME_BYTES_MAX);
    }
}
