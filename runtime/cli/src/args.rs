//! What can be said on the command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use mobula_proto::Queue;
use mobula_scheduler::Millis;

use crate::{
    error::Error,
    home::Home,
    settings::{File, Head, Hosts, Log, Node, Offer, Spill, Transfer},
    values::{Amounts, Nodes, amounts, drain_time, loss, nodes, queue, ttl},
};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "mobula",
    version,
    about = "Runs and looks after Mobula clusters: a head, a node on each machine, and what they do",
    after_help = "Try it on one machine:\n  \
        mobula up --detach           a head and a node, in the background\n  \
        mobula status                what there is, what is free, what waits and why\n  \
        mobula memory                what is in the object stores, and why\n  \
        mobula why ID                why a task, an actor, a group, a job or a queue waits\n  \
        mobula queue list            how the cluster is shared\n  \
        mobula drain NODE            have a node move what it has to others, and leave\n  \
        mobula down                  end it\n\n\
        A cluster of several machines:\n  \
        mobula head                                        on one machine\n  \
        mobula token create                                there too: lets one machine in\n  \
        mobula node --head 10.0.0.1:7420 --join TOKEN      on every other machine\n\n\
        Settings come from mobula.toml in the home, MOBULA_<SECTION>_<KEY>, and the options; `mobula config` shows \
        them all.\n\
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
    /// Show what is in the object stores, and why
    Memory(MemoryArgs),
    /// Say why a task, an actor, a placement group, a job or a queue waits
    Why(WhyArgs),
    /// Show the placement groups: where their bundles are, or why they wait
    Groups(GroupsArgs),
    /// Define, change, list and remove the queues between which the cluster is shared
    Queue(QueueArgs),
    /// Have a node leave: what it runs and keeps moves to others
    Drain(DrainArgs),
    /// Replay a trace of work on a cluster that is not there, and say how that goes
    Simulate(SimulateArgs),
    /// Show every setting, with what it is now and why
    Config(ConfigArgs),
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

/// Where settings are kept.
#[derive(Clone, Debug, Args)]
pub struct ConfigArg {
    /// File of settings; see `mobula config` [default: mobula.toml in the home, where there is one]
    #[arg(long, value_name = "FILE", env = "MOBULA_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
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
    #[command(flatten)]
    pub config: ConfigArg,
    #[command(flatten)]
    pub head: Head,
    #[command(flatten)]
    pub log: Log,
    /// Set by `mobula up`.
    #[arg(long, hide = true, value_enum)]
    pub by_up: Option<ByUp>,
}

impl HeadArgs {
    /// Fills from the file what was not said, and says which home it is.
    pub fn settle(&mut self) -> Result<Home, Error> {
        let home = Home::of(&self.home)?;
        let file = File::load(&self.config, &home)?;
        self.head.fall_back(file.head);
        self.log.fall_back(file.log);
        Ok(home)
    }
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

/// `mobula node`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula node --head 10.0.0.1:7420 --join mobula-join-…\n  \
        MOBULA_JOIN=mobula-join-… mobula node --head 10.0.0.1:7420      keeps the token off the command line\n  \
        mobula node --head 10.0.0.1:7420                                once it has joined\n  \
        mobula node --head 10.0.0.1:7420 --cpus 6 --memory 24GiB --resource licence=2 --label zone=a\n\n\
        Joining buys this machine a certificate, kept in the home; later starts use that and need no token. GPUs \
        and TPU chips are found by themselves; CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES and TPU_VISIBLE_CHIPS hide \
        some. Ctrl-C or SIGTERM makes the node leave.")]
pub struct NodeArgs {
    #[command(flatten)]
    pub node: Node,
    /// Join token, from `mobula token create`; only for the first start
    #[arg(long, value_name = "TOKEN", env = "MOBULA_JOIN", hide_env_values = true)]
    pub join: Option<String>,
    #[command(flatten)]
    pub offer: Offer,
    #[command(flatten)]
    pub spill: Spill,
    #[command(flatten)]
    pub transfer: Transfer,
    #[command(flatten)]
    pub hosts: Hosts,
    #[command(flatten)]
    pub log: Log,
    #[command(flatten)]
    pub home: HomeArg,
    #[command(flatten)]
    pub config: ConfigArg,
    /// Set by `mobula up`.
    #[arg(long, hide = true, value_enum)]
    pub by_up: Option<ByUp>,
}

impl NodeArgs {
    /// Fills from the file what was not said, and says which home it is.
    pub fn settle(&mut self) -> Result<Home, Error> {
        let home = Home::of(&self.home)?;
        let file = File::load(&self.config, &home)?;
        self.node.fall_back(file.node);
        self.offer.fall_back(file.offer);
        self.spill.fall_back(file.spill);
        self.transfer.fall_back(file.transfer);
        self.hosts.fall_back(file.hosts);
        self.log.fall_back(file.log);
        Ok(home)
    }
}

/// `mobula up`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula up                                    until Ctrl-C\n  \
        mobula up --detach --nodes 4 --cpus 2        in the background, until `mobula down`\n\n\
        Then run a program on it, with the socket that `up` prints:\n  \
        export MOBULA_ADDRESS=unix:$HOME/.mobula/nodes/1/agent.sock\n  \
        cargo run\n\n\
        Every node offers the whole machine's CPUs and memory unless told otherwise; GPUs and TPU chips are the first node's.")]
pub struct UpArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nodes: u32,
    /// Return once all is ready, and leave it running
    #[arg(long, short)]
    pub detach: bool,
    #[command(flatten)]
    pub head: Head,
    #[command(flatten)]
    pub offer: Offer,
    #[command(flatten)]
    pub spill: Spill,
    #[command(flatten)]
    pub transfer: Transfer,
    #[command(flatten)]
    pub hosts: Hosts,
    #[command(flatten)]
    pub log: Log,
    #[command(flatten)]
    pub home: HomeArg,
    #[command(flatten)]
    pub config: ConfigArg,
}

impl UpArgs {
    /// Fills from the file what was not said, and says which home it is.
    pub fn settle(&mut self) -> Result<Home, Error> {
        let home = Home::of(&self.home)?;
        let file = File::load(&self.config, &home)?;
        self.head.fall_back(file.head);
        self.offer.fall_back(file.offer);
        self.spill.fall_back(file.spill);
        self.transfer.fall_back(file.transfer);
        self.hosts.fall_back(file.hosts);
        self.log.fall_back(file.log);
        Ok(home)
    }
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
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = ttl)]
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
        Where very much waits, not all of it is looked at: the last rows say which `mobula why` to ask.\n\n\
        Run it on the head's machine, as the user who runs the head.")]
pub struct StatusArgs {
    /// Print everything, for programs
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula why`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula why 'node-1/host-2#81'      a task, or the actor that it makes, or an object of it\n  \
        mobula why hits                    the actor of this name; NAMESPACE/NAME where several have it\n  \
        mobula why job-3                   what waits for slots, of a job\n  \
        mobula why queue:research          the same of a queue\n  \
        mobula why crawl::fetch            the same of a function\n  \
        mobula why group-3                 a placement group\n\n\
        The first line says what it is, then what its owner knows (it waits for arguments, for a lease), then what \
        the scheduler knows of its class. Names of tasks are in errors and logs.")]
pub struct WhyArgs {
    /// What waits
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print it for programs
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula memory`.
#[derive(Debug, Args)]
#[command(after_help = crate::memory::COLUMNS)]
pub struct MemoryArgs {
    /// Print everything, for programs
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula groups`.
#[derive(Debug, Args)]
#[command(
    after_help = "`mobula why group-3` says the same of one. A group ends with its job, unless it is detached: then a \
        program finds it by its name and removes it."
)]
pub struct GroupsArgs {
    /// Print everything, for programs
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula queue`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula queue set research --weight 2 --guarantee cpu=16,gpu=2\n  \
        mobula queue set vision --parent research --limit cpu=32,gpu=4\n  \
        mobula queue list\n  \
        mobula queue remove vision\n\n\
        A job belongs to the queue that MOBULA_QUEUE names, or that its program chooses; what belongs to none is \
        charged to the default queue. Idle capacity is lent to whoever asks, up to the limits, and comes back when its queue asks, \
        but from placement groups that are not restartable. Run it on the head's \
        machine, as the user who runs the head.")]
pub struct QueueArgs {
    /// What to do with queues.
    #[command(subcommand)]
    pub command: QueueCommand,
}

/// What can be done with queues.
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Define a queue, or change what is said of one; it outlives a restart of the head
    Set(QueueSetArgs),
    /// Show the queues, with what they use
    List(QueueListArgs),
    /// Remove a queue that nothing uses any more
    Remove(QueueRemoveArgs),
}

/// `mobula queue set`.
#[derive(Debug, Args)]
pub struct QueueSetArgs {
    /// Its name: letters, digits and . _ - /
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The queue of which it is a part; '' for none [default: none, or as before]
    #[arg(long, value_name = "NAME")]
    pub parent: Option<String>,
    /// Its part relative to its siblings', above 0 [default: 1, or as before]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub weight: Option<String>,
    /// What work that needs it gets before others get more than theirs, such as cpu=4,gpu=2; '' for nothing [default:
    /// nothing, or as before]
    #[arg(long, value_name = "NAME=N,…", value_parser = amounts)]
    pub guarantee: Option<Amounts>,
    /// What it and the queues in it may use at most, such as cpu=8,gpu=2; '' for no limit [default: none, or as before]
    #[arg(long, value_name = "NAME=N,…", value_parser = amounts)]
    pub limit: Option<Amounts>,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula queue list`.
#[derive(Debug, Args)]
pub struct QueueListArgs {
    /// Print everything, for programs
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula queue remove`.
#[derive(Debug, Args)]
pub struct QueueRemoveArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula drain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula drain gpu-box\n  \
        mobula drain node-3 --within 1h\n  \
        mobula drain node-3 --undo\n\n\
        Nothing new is placed on the node. Its tasks run to their end. Actors that may be restarted (restarts = 1 or \
        more) finish the calls that they have, and are made again elsewhere without losing a restart; calls that come \
        meanwhile wait. Objects move to other nodes. Then the node leaves, and its process ends. What is left when the \
        time is over is taken away: tasks run again elsewhere, actors that may not be restarted end, and so do jobs \
        whose driver is there. Run it on the head's machine, as the user who runs the head.")]
pub struct DrainArgs {
    /// Its name or number; see `mobula status`
    #[arg(value_name = "NODE")]
    pub node: String,
    /// How long it may take, such as 90s, 10m, 2h or 1d (at most 7d)
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = drain_time)]
    pub within: Duration,
    /// Return at once
    #[arg(long)]
    pub no_wait: bool,
    /// Let it stay after all
    #[arg(long, conflicts_with_all = ["within", "no_wait"])]
    pub undo: bool,
    #[command(flatten)]
    pub home: HomeArg,
}

/// `mobula simulate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        mobula simulate trace.csv --nodes '10x 16 cpu 64GiB memory' --nodes '2x 96 cpu 512GiB memory 8 gpu'\n  \
        mobula simulate trace.csv --nodes '4x 8 cpu' --queue research=2 --queue prod=1 --json\n  \
        mobula simulate trace.csv --nodes '4x 8 cpu' --lose 2@3600\n\n\
        The trace is a file of comma-separated values. Its first line names the columns: arrival and duration in \
        seconds, resources (such as 2 cpu 4GiB memory), job, priority; and, where wanted, queue and restartable \
        (true or false). The scheduler is the one of the head, its time is virtual: a day takes seconds, and the same \
        trace gives the same hash everywhere.")]
pub struct SimulateArgs {
    /// The trace
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Nodes of one kind, as COUNTx AMOUNT KIND …; once for each kind
    #[arg(long, value_name = "NODES", value_parser = nodes, required = true)]
    pub nodes: Vec<Nodes>,
    /// A queue that the trace names, with its weight; once for each
    #[arg(long, value_name = "NAME[=WEIGHT]", value_parser = queue)]
    pub queue: Vec<Queue>,
    /// A node that is lost with what runs on it, by its number in the order of --nodes, from 1; once for each
    #[arg(long, value_name = "NODE@SECONDS", value_parser = loss)]
    pub lose: Vec<(u32, Millis)>,
    /// Print everything, for programs
    #[arg(long)]
    pub json: bool,
}

/// `mobula config`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  \
        mobula config                        all that can be set, as a file with comments\n  \
        mobula config node --cpus 6          what `mobula node --cpus 6` would run with\n\n\
        A flag overrides a variable, a variable overrides the file, the file overrides the default.")]
pub struct ConfigArgs {
    #[command(flatten)]
    pub home: HomeArg,
    #[command(flatten)]
    pub config: ConfigArg,
    /// Whose settings; all, where it is left out.
    #[command(subcommand)]
    pub of: Option<ConfigOf>,
}

/// The commands that have settings.
#[derive(Debug, Subcommand)]
pub enum ConfigOf {
    /// Those of `mobula head`
    Head(HeadArgs),
    /// Those of `mobula node`
    Node(NodeArgs),
    /// Those of `mobula up`
    Up(UpArgs),
}

/// `mobula explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mobula explain MOB2001\n  mobula explain            lists all codes")]
pub struct ExplainArgs {
    /// The code, such as MOB2001 or just 2001; all are listed where it is left out
    #[arg(value_name = "CODE")]
    pub code: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }
}
