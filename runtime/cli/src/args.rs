//! What can be said on the command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use mobula_head::service::TOKEN_TTL_MAX;
use mobula_net::identity::{PeerName, Role};
use mobula_proto::{Quantity, resource};

use crate::node::LISTEN_PORT;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "mobula",
    version,
    about = "Runs and looks after Mobula clusters: a head, a node on each machine, and what they do",
    after_help = "Try it on one machine:\n  \
        mobula up --detach           a head and a node, in the background\n  \
        mobula status                what there is, what is free, what waits and why\n  \
        mobula down                  end it\n\n\
        A cluster of several machines:\n  \
        mobula head                                        on one machine\n  \
        mobula token create                                there too: lets one machine in\n  \
        mobula node --head 10.0.0.1:7420 --join TOKEN      on every other machine\n\n\
        A program uses the cluster that MOBULA_ADDRESS names; see `mobula up --help`."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the head of a cluster, in the foreground
    Head(HeadArgs),
    /// Make this machine a node of a cluster, in the foreground
    Node(NodeArgs),
    /// Start a whole cluster on this machine
    Up(UpArgs),
    /// End what runs in a home: the cluster of `up`, a head, a node
    Down(HomeArg),
    /// Make tokens that let machines and drivers in
    Token(TokenArgs),
    /// Show the cluster: nodes, jobs, and what waits, with the reason
    Status(StatusArgs),
    /// Explain an error code, such as MOB2001
    Explain(ExplainArgs),
}

/// Where state is kept.
#[derive(Clone, Debug, Args)]
pub struct HomeArg {
    /// Folder with all that is kept (made with mode 0700) [default: ~/.mobula]
    #[arg(long, value_name = "DIR", env = "MOBULA_HOME", hide_env_values = true)]
    pub home: Option<PathBuf>,
}

/// `mobula head`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula head\n  \
        mobula head --home /var/lib/mobula --quic 10.0.0.1:7420 --name lab\n\n\
        The first start makes the cluster: its certificate authority and the admin token, both in the home \
        and readable by you alone. Ctrl-C or SIGTERM ends the head, and the cluster with it.")]
pub struct HeadArgs {
    #[command(flatten)]
    pub home: HomeArg,
    /// UDP address for nodes and drivers; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from(([0, 0, 0, 0], mobula_head::service::QUIC_PORT)))]
    pub quic: SocketAddr,
    /// TCP address of the HTTP API for people and scripts; loopback only; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from(([127, 0, 0, 1], mobula_head::service::HTTP_PORT)))]
    pub http: SocketAddr,
    /// Name of the cluster, for people; written into its certificate authority at the first start
    #[arg(long, value_name = "NAME", default_value = "mobula", value_parser = peer_name)]
    pub name: String,
    /// Set by `mobula up`.
    #[arg(long, hide = true, value_enum)]
    pub by_up: Option<ByUp>,
}

/// How a process that `mobula up` started is tied to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ByUp {
    /// It ends when its standard input does.
    Attached,
    /// It outlives the command, in a session of its own.
    Detached,
}

impl ByUp {
    /// As an option's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Detached => "detached",
        }
    }
}

/// What a node offers.
#[derive(Clone, Debug, Default, Args)]
pub struct Offer {
    /// CPUs to offer, such as 8 or 0.5 [default: those of the machine or container]
    #[arg(long, value_name = "N", value_parser = quantity)]
    pub cpus: Option<Quantity>,
    /// Memory to offer, such as 16GiB [default: that of the machine or container]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub memory: Option<u64>,
    /// A custom resource to offer, such as licence=2; may be repeated
    #[arg(long, value_name = "NAME=N", value_parser = custom_resource)]
    pub resource: Vec<(String, Quantity)>,
    /// A label to carry, such as zone=a; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
    /// Capacity of the shared-memory object store, such as 4GiB [default: 30% of the memory]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub store: Option<u64>,
}

/// `mobula node`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula node --head 10.0.0.1:7420 --join mobula-join-…\n  \
        MOBULA_JOIN=mobula-join-… mobula node --head 10.0.0.1:7420      keeps the token off the command line\n  \
        mobula node --head 10.0.0.1:7420                                once it has joined\n  \
        mobula node --head 10.0.0.1:7420 --cpus 6 --memory 24GiB --resource licence=2 --label zone=a\n\n\
        Joining buys this machine a certificate, kept in the home; later starts use that and need no token. GPUs \
        are found by themselves; CUDA_VISIBLE_DEVICES hides some. Ctrl-C or SIGTERM makes the node leave.")]
pub struct NodeArgs {
    /// The head, as HOST:PORT (its UDP port)
    #[arg(long, value_name = "HOST:PORT", env = "MOBULA_HEAD", hide_env_values = true)]
    pub head: String,
    /// Join token, from `mobula token create`; only for the first start
    #[arg(long, value_name = "TOKEN", env = "MOBULA_JOIN", hide_env_values = true)]
    pub join: Option<String>,
    /// Name of this node, for people [default: the host name]
    #[arg(long, value_name = "NAME", value_parser = peer_name)]
    pub name: Option<String>,
    /// UDP address for the other nodes; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from(([0, 0, 0, 0], LISTEN_PORT)))]
    pub listen: SocketAddr,
    /// Where the other nodes reach this one, if that is not where it listens (a forwarded port, say) or not the
    /// address that the head sees it come from
    #[arg(long, value_name = "IP:PORT")]
    pub advertise: Option<SocketAddr>,
    /// Unix socket for drivers on this machine [default: node/agent.sock in the home]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub offer: Offer,
    #[command(flatten)]
    pub home: HomeArg,
    /// Set by `mobula up`.
    #[arg(long, hide = true, value_enum)]
    pub by_up: Option<ByUp>,
}

/// `mobula up`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula up                                    until Ctrl-C\n  \
        mobula up --detach --nodes 4 --cpus 2        in the background, until `mobula down`\n\n\
        Then run a program on it, with the socket that `up` prints:\n  \
        export MOBULA_ADDRESS=unix:$HOME/.mobula/nodes/1/agent.sock\n  \
        cargo run\n\n\
        Every node offers the whole machine's CPUs and memory unless told otherwise; GPUs are the first node's.")]
pub struct UpArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nodes: u32,
    /// Return once all is ready, and leave it running
    #[arg(long, short)]
    pub detach: bool,
    /// UDP address of the head; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from(([127, 0, 0, 1], 0)))]
    pub quic: SocketAddr,
    /// TCP address of the HTTP API; loopback only; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from(([127, 0, 0, 1], 0)))]
    pub http: SocketAddr,
    #[command(flatten)]
    pub offer: Offer,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do with tokens.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a new token: a secret, good for one machine or driver, once
    Create(TokenCreateArgs),
}

/// `mobula token create`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula token create                              for `mobula node --join`\n  \
        export MOBULA_TOKEN=$(mobula token create --role driver --ttl 1h)\n\n\
        Run it on the head's machine, as the user who runs the head.")]
pub struct TokenCreateArgs {
    /// Whom it lets in
    #[arg(long, value_enum, default_value_t = TokenRole::Node)]
    pub role: TokenRole,
    /// How long it is good, such as 90s, 10m, 2h or 1d (at most 30d)
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub ttl: Duration,
    #[command(flatten)]
    pub home: HomeArg,
}

/// Whom a token lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenRole {
    /// A machine, with `mobula node`
    Node,
    /// A program that is not on a machine of the cluster
    Driver,
}

/// `mobula status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula status\n  \
        mobula status --json | jq '.nodes[].available'\n\n\
        Run it on the head's machine, as the user who runs the head.")]
pub struct StatusArgs {
    /// Print everything, for programs
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mobula explain MOB2001\n  mobula explain            lists all codes")]
pub struct ExplainArgs {
    /// The code, such as MOB2001 or just 2001; all are listed where it is left out
    #[arg(value_name = "CODE")]
    pub code: Option<String>,
}

fn quantity(text: &str) -> Result<Quantity, resource::Error> {
    text.parse()
}

/// A number of bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let amount: Quantity = text
        .parse()
        .map_err(|_| format!("{text:?} is no size: write for example 512MiB, 16GiB, or a number of bytes"))?;
    u64::try_from(amount.units() / Quantity::PER_ONE).map_err(|error| error.to_string())
}

fn pair<'a>(text: &'a str, example: &str) -> Result<(&'a str, &'a str), String> {
    text.split_once('=').ok_or_else(|| format!("{text:?} has no '=': write for example {example}"))
}

fn custom_resource(text: &str) -> Result<(String, Quantity), String> {
    let (name, amount) = pair(text, "licence=2")?;
    let kind = resource::Kind::parse(name).map_err(|error| error.to_string())?;
    match kind {
        resource::Kind::Custom(name) => {
            Ok((name, amount.parse().map_err(|e: resource::Error| e.to_string())?))
        }
        resource::Kind::Cpu => Err("say --cpus N for CPUs".to_owned()),
        resource::Kind::Memory => Err("say --memory SIZE for memory".to_owned()),
        device => Err(format!("a {device} cannot be stated: devices are found by themselves")),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = pair(text, "zone=a")?;
    for name in [key, value] {
        resource::check_name(name).map_err(|error| error.to_string())?;
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn peer_name(text: &str) -> Result<String, String> {
    PeerName::new(Role::Agent, text).map(|peer| peer.name).map_err(|error| error.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    let no = || format!("{text:?} is no time: write for example 90s, 10m, 2h or 1d");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(no)?;
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(no()),
    };
    let number: u64 = number.parse().map_err(|_| no())?;
    match number.checked_mul(seconds).map(Duration::from_secs) {
        Some(time) if !time.is_zero() && time <= TOKEN_TTL_MAX => Ok(time),
        _ => Err(format!("{text} is out of range: 1s to {}d", TOKEN_TTL_MAX.as_secs() / 86_400)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_times_and_pairs_are_read() {
        assert_eq!(bytes("512MiB"), Ok(512 * 1024 * 1024));
        assert!(bytes("lots").unwrap_err().contains("16GiB"));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for bad in ["10", "m", "0s", "31d", "1w", "-1s", ""] {
            assert!(duration(bad).is_err(), "{bad:?} was taken for a time");
        }
        assert_eq!(custom_resource("licence=2"), Ok(("licence".to_owned(), Quantity::whole(2))));
        for bad in ["licence", "gpu=1", "cpu=1", "memory=1GiB", "a b=1", "x=y", "x=-1"] {
            assert!(custom_resource(bad).is_err(), "{bad:?} was taken for a resource");
        }
        assert!(label("zone").is_err() && label("zone=a").is_ok());
    }
}
