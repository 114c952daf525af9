//! What can be set, each thing once: as a field here it is an option, a variable and a key of `mobula.toml`.
//!
//! An option overrides the variable, the variable overrides the file, the file overrides the default. A list
//! replaces a lower one as a whole. Section `[hosts]`, key `host_idle` is the variable `MOBULA_HOSTS_HOST_IDLE` and
//! the option `--host-idle`; the level of logs alone is shorter: `MOBULA_LOG` and `--log`. The text of each says its
//! unit, default and cost, and what goes wrong; `mobula config` shows it, with the value in force.

use std::{
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use mobula_agent::users::Uids;
use mobula_proto::Quantity;
use mobula_scheduler::autoscale::NodeType;
use serde::{Deserialize, Deserializer, de};

use crate::{
    args::ConfigArg,
    error::{self, Error},
    home::Home,
    values,
};

/// The file in the home.
pub const FILE_NAME: &str = "mobula.toml";
/// Longest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 64 * 1024;
/// How much of a line an error shows, in characters.
const LINE_SHOWN_MAX: usize = 120;

/// `[head]`: of `mobula head`, and of the head of `mobula up`.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Head {
    /// UDP address for nodes and drivers; port 0 takes any free one
    ///
    /// Unit: IP:PORT. Default: 0.0.0.0:7420 (of `mobula up`: 127.0.0.1:0). Cost: one socket. If wrong: the head does
    /// not start (MOB1003), or no other machine reaches it (MOB1001).
    #[arg(long, value_name = "IP:PORT", env = "MOBULA_HEAD_QUIC", hide_env_values = true)]
    pub quic: Option<SocketAddr>,
    /// TCP address of the HTTP API for people and scripts; loopback only; port 0 takes any free one
    ///
    /// Unit: IP:PORT. Default: 127.0.0.1:7421 (of `mobula up`: 127.0.0.1:0). Cost: one socket. If wrong: the head does
    /// not start (MOB1003, or MOB5001 where the address is not loopback).
    #[arg(long, value_name = "IP:PORT", env = "MOBULA_HEAD_HTTP", hide_env_values = true)]
    pub http: Option<SocketAddr>,
    /// Name of the cluster, for people; written into its certificate authority at the first start
    ///
    /// Unit: letters, digits, '.', '_', '-'. Default: mobula. Cost: none. If wrong: clusters are hard to tell apart;
    /// a later change has no effect.
    #[arg(
        long,
        value_name = "NAME",
        env = "MOBULA_HEAD_NAME",
        hide_env_values = true,
        value_parser = values::peer_name
    )]
    #[serde(deserialize_with = "name")]
    pub name: Option<String>,
    /// Silence after which a node counts as lost, such as 6s
    ///
    /// Unit: time, 5s to 1d. Default: 6s. Cost: until then, what a dead machine ran waits. If wrong: too short, and a
    /// stopped process or a second without network counts as death; too long, and work is repeated late.
    #[arg(
        long,
        value_name = "TIME",
        env = "MOBULA_HEAD_NODE_TIMEOUT",
        hide_env_values = true,
        value_parser = values::node_timeout
    )]
    #[serde(deserialize_with = "node_timeout")]
    pub node_timeout: Option<Duration>,
    /// A type of nodes that the head starts on its own machine when work waits for them, and drains when they are idle,
    /// such as "worker=0..4 2 cpu 4GiB memory idle 60s"; may be repeated
    ///
    /// Unit: a list of NAME=MIN..MAX, amounts and kinds, labels as KEY=VALUE, and `idle` with the time after which one
    /// that runs nothing is drained (1s to 1d, 60s unless said), in a variable with semicolons. Default: none. Cost: the
    /// machine's, for each node. If wrong: amounts that the machine does not have make tasks share processors and run out
    /// of memory; a maximum too low, and work waits (`mobula status` says for what); too short an idle time, and nodes
    /// come and go. GPUs and TPU chips are refused: start a node by hand for those of the machine.
    #[arg(
        long,
        value_name = "TYPE",
        env = "MOBULA_HEAD_NODE_TYPE",
        hide_env_values = true,
        value_delimiter = ';',
        value_parser = values::node_type
    )]
    #[serde(deserialize_with = "node_types")]
    pub node_type: Vec<NodeType>,
}

/// `[node]`: of `mobula node` alone; `mobula up` chooses these for its nodes itself.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// The head, as HOST:PORT (its UDP port)
    ///
    /// Unit: HOST:PORT. Default: none, it must be set. Cost: none. If wrong: the node does not start (MOB5001,
    /// MOB1001).
    #[arg(long, value_name = "HOST:PORT", env = "MOBULA_NODE_HEAD", hide_env_values = true)]
    pub head: Option<String>,
    /// Name of this node, for people
    ///
    /// Unit: letters, digits, '.', '_', '-'. Default: the host name. Cost: none. If wrong: nodes are hard to tell
    /// apart; after joining, the name in the certificate stays.
    #[arg(
        long,
        value_name = "NAME",
        env = "MOBULA_NODE_NAME",
        hide_env_values = true,
        value_parser = values::peer_name
    )]
    #[serde(deserialize_with = "name")]
    pub name: Option<String>,
    /// UDP address for the other nodes; port 0 takes any free one
    ///
    /// Unit: IP:PORT. Default: 0.0.0.0:7422. Cost: one socket. If wrong: the node does not start (MOB1003), or other
    /// nodes cannot pull objects from it (MOB1001).
    #[arg(long, value_name = "IP:PORT", env = "MOBULA_NODE_LISTEN", hide_env_values = true)]
    pub listen: Option<SocketAddr>,
    /// Where the other nodes reach this one, if that is not where it listens (a forwarded port, say) or not the
    /// address that the head sees it come from
    ///
    /// Unit: IP:PORT. Default: the listening port, at the address that the head sees. Cost: none. If wrong: other
    /// nodes cannot pull objects from it (MOB1001).
    #[arg(long, value_name = "IP:PORT", env = "MOBULA_NODE_ADVERTISE", hide_env_values = true)]
    pub advertise: Option<SocketAddr>,
    /// Unix socket for drivers on this machine
    ///
    /// Unit: path of at most 107 bytes. Default: node/agent.sock in the home. Cost: none. If wrong: the node does not
    /// start (MOB5002), or drivers do not find it (MOB1001).
    #[arg(long, value_name = "PATH", env = "MOBULA_NODE_SOCKET", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// Users from which each job gets one of its own, so that jobs of strangers are kept apart; of a node that runs as
    /// root, such as 2000000-2065535
    ///
    /// Unit: a range of user numbers, FIRST-LAST, 1000 at least, each with the group of its number. Default: none, all
    /// jobs run as the node's user (`mobula status`: single-tenant). Cost: a millisecond for a job's first host; the home
    /// and the folders above it let others pass; devices and files that only root or a group may use are closed to jobs.
    /// If wrong: the node does not start (MOB5001, MOB5002); where a person, a container or another node has one of them
    /// too, that one and a job reach each other's processes and files; too few, and jobs fail (MOB3013).
    #[arg(
        long,
        value_name = "FIRST-LAST",
        env = "MOBULA_NODE_JOB_UIDS",
        hide_env_values = true,
        value_parser = values::uids
    )]
    #[serde(deserialize_with = "uids")]
    pub job_uids: Option<Uids>,
}

/// `[offer]`: what each node offers.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Offer {
    /// CPUs to offer, such as 8 or 0.5
    ///
    /// Unit: CPUs. Default: those of the machine or container. Cost: none. If wrong: too few leave the machine idle;
    /// too many make tasks share processors, and each slower.
    #[arg(
        long,
        value_name = "N",
        env = "MOBULA_OFFER_CPUS",
        hide_env_values = true,
        value_parser = values::quantity
    )]
    #[serde(deserialize_with = "quantity")]
    pub cpus: Option<Quantity>,
    /// Memory to offer, such as 16GiB
    ///
    /// Unit: bytes, or with KiB, MiB, GiB. Default: that of the machine or container. Cost: none; it is a promise, not
    /// a limit that is enforced. If wrong: too much, and the kernel ends hosts for want of memory (MOB3003); too
    /// little, and tasks wait (MOB4001).
    #[arg(
        long,
        value_name = "SIZE",
        env = "MOBULA_OFFER_MEMORY",
        hide_env_values = true,
        value_parser = values::bytes
    )]
    #[serde(deserialize_with = "bytes")]
    pub memory: Option<u64>,
    /// A custom resource to offer, such as licence=2, or how many gpu or tpu; may be repeated
    ///
    /// Unit: a list of NAME=N, in a variable with commas. Default: none; GPUs and TPU chips that are found. Cost: none.
    /// If wrong: tasks that ask for it never run (MOB4001), or more of them at once than there is of it. Stated devices
    /// are believed: tasks see numbers of devices that are not there.
    #[arg(
        long,
        value_name = "NAME=N",
        env = "MOBULA_OFFER_RESOURCE",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = values::resource
    )]
    #[serde(deserialize_with = "resources")]
    pub resource: Vec<(String, Quantity)>,
    /// A label to carry, such as zone=a; may be repeated
    ///
    /// Unit: a list of KEY=VALUE, in a variable with commas. Default: none beyond those found by themselves. Cost:
    /// none. If wrong: tasks that select it never run (MOB4001), or run elsewhere than meant.
    #[arg(
        long,
        value_name = "KEY=VALUE",
        env = "MOBULA_OFFER_LABEL",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = values::label
    )]
    #[serde(deserialize_with = "labels")]
    pub label: Vec<(String, String)>,
    /// Capacity of the shared-memory object store, such as 4GiB
    ///
    /// Unit: bytes, or with KiB, MiB, GiB; 4MiB at least. Default: 30% of the memory (of `mobula up`: shared by its
    /// nodes). Cost: memory, as far as objects fill it. If wrong: too small, and writers wait or fail (MOB2001,
    /// MOB2002); larger than the machine's shared memory, and hosts end (MOB3003).
    #[arg(
        long,
        value_name = "SIZE",
        env = "MOBULA_OFFER_STORE",
        hide_env_values = true,
        value_parser = values::bytes
    )]
    #[serde(deserialize_with = "bytes")]
    pub store: Option<u64>,
    /// Disk for programs and files of jobs, such as 20GiB
    ///
    /// Unit: bytes, or with KiB, MiB, GiB. Default: 20GiB. Cost: as much disk in the home, once jobs fill it. If
    /// wrong: too small, and jobs whose program does not fit do not start (MOB7001) or copy it again each time.
    #[arg(
        long,
        value_name = "SIZE",
        env = "MOBULA_OFFER_DISK",
        hide_env_values = true,
        value_parser = values::bytes
    )]
    #[serde(deserialize_with = "bytes")]
    pub disk: Option<u64>,
}

/// `[hosts]`: of the processes in which a node runs user code.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hosts {
    /// How long a host of one task waits for the next, such as 10s
    ///
    /// Unit: time, 1s to 1d. Default: 10s. Cost: its memory and its contexts on devices stay taken. If wrong: too
    /// short, and a process is started for every pause in a job.
    #[arg(
        long,
        value_name = "TIME",
        env = "MOBULA_HOSTS_HOST_IDLE",
        hide_env_values = true,
        value_parser = values::wait
    )]
    #[serde(deserialize_with = "wait")]
    pub host_idle: Option<Duration>,
    /// How long the head may be lost before the node kills its hosts and ends, such as 10s
    ///
    /// Unit: time, 1s to 1d. Default: 10s. Cost: until then, hosts go on with work that the head may have given to
    /// others. If wrong: too short, and a break of the network ends the nodes. A restart of the head ends what runs on
    /// them in any case.
    #[arg(
        long,
        value_name = "TIME",
        env = "MOBULA_HOSTS_HEAD_LOST",
        hide_env_values = true,
        value_parser = values::wait
    )]
    #[serde(deserialize_with = "wait")]
    pub head_lost: Option<Duration>,
    /// Size of each ring between two hosts, such as 1MiB
    ///
    /// Unit: bytes, or with KiB, MiB; a power of two, 4KiB to 256MiB. Default: 1MiB. Cost: twice as much memory for
    /// each pair of hosts that talk. If wrong: too small, and large messages take many turns.
    #[arg(
        long,
        value_name = "SIZE",
        env = "MOBULA_HOSTS_RING",
        hide_env_values = true,
        value_parser = values::ring_bytes
    )]
    #[serde(deserialize_with = "ring")]
    pub ring: Option<u32>,
}

/// `[spill]`: of objects that do not fit into the store.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spill {
    /// Folder in which the node makes one of its own for objects that the store has no room for; or a URL of an object
    /// store, such as s3://bucket/folder
    ///
    /// Unit: path, or URL of s3, gs, az, file or memory, with credentials in the environment (AWS_…, GOOGLE_…, AZURE_…);
    /// URLs need a `mobula` built with the feature object-store. Nodes may share a folder, also of a network. What a killed
    /// node leaves in one, the next node there on a machine of that name removes (if the file system has locks); what it
    /// leaves at a URL, its own next start does, so for homes that do not last, give the prefix an expiry rule. Default:
    /// node/spill in the home. Cost: none; of an object store, what its owner charges, and 32 MiB for each file on its way.
    /// If wrong: the node does not start (MOB5001, MOB5002); on a slow disk, what waits for room or for spilled objects is
    /// slow; in memory (tmpfs), spilling frees none.
    #[arg(long, value_name = "PATH|URL", env = "MOBULA_SPILL_SPILL_FOLDER", hide_env_values = true)]
    pub spill_folder: Option<PathBuf>,
    /// Disk that spilled objects may take, such as 200GiB; 0 turns spilling off
    ///
    /// Unit: bytes, or with KiB, MiB, GiB. Default: 64GiB. Cost: as much disk, once objects fill it. If wrong: too
    /// small, or off, and writers wait or fail when the store is full (MOB2001).
    #[arg(
        long,
        value_name = "SIZE",
        env = "MOBULA_SPILL_SPILL_DISK",
        hide_env_values = true,
        value_parser = values::bytes
    )]
    #[serde(deserialize_with = "bytes")]
    pub spill_disk: Option<u64>,
    /// Size from which on a file of spilled objects takes no more, such as 64MiB
    ///
    /// Unit: bytes, or with KiB, MiB, GiB. Default: 64MiB. Cost: a file stays until all objects in it are freed. If
    /// wrong: too small, and the disk is slow; too large, and dead objects take disk for long.
    #[arg(
        long,
        value_name = "SIZE",
        env = "MOBULA_SPILL_SPILL_FILE",
        hide_env_values = true,
        value_parser = values::bytes
    )]
    #[serde(deserialize_with = "bytes")]
    pub spill_file: Option<u64>,
    /// Share of the store above which objects that lie only in memory are written ahead of need, such as 0.8
    ///
    /// Unit: share, 0 to 1. Default: 0.8. Cost: disk traffic for objects that may be freed soon. If wrong: too low, and
    /// the disk is busy for nothing; 1, and writers wait for the disk when the store is full.
    #[arg(
        long,
        value_name = "SHARE",
        env = "MOBULA_SPILL_SPILL_ABOVE",
        hide_env_values = true,
        value_parser = values::share
    )]
    #[serde(deserialize_with = "share")]
    pub spill_above: Option<f64>,
    /// Share of the store below which that ends, such as 0.6
    ///
    /// Unit: share, 0 to 1; at most the one above which it begins. Default: 0.6. Cost: as there. If wrong: too near to
    /// that, and files are small.
    #[arg(
        long,
        value_name = "SHARE",
        env = "MOBULA_SPILL_SPILL_BELOW",
        hide_env_values = true,
        value_parser = values::share
    )]
    #[serde(deserialize_with = "share")]
    pub spill_below: Option<f64>,
    /// How long the disk may take for one file while somebody waits for room, such as 60s
    ///
    /// So long is also waited for the next part of what is read back. Unit: time, 1s to 1d. Default: 60s. Cost: so long,
    /// a disk that hangs is waited for. If wrong: too short, and writers fail (MOB2001), and readers, on a disk that is
    /// only slow; too long, and they wait for one that will not come back.
    #[arg(
        long,
        value_name = "TIME",
        env = "MOBULA_SPILL_SPILL_STALL",
        hide_env_values = true,
        value_parser = values::wait
    )]
    #[serde(deserialize_with = "wait")]
    pub spill_stall: Option<Duration>,
    /// Share of the store that is kept for what is read back, while anything is spilled, such as 0.125
    ///
    /// Unit: share, 0 to 1. Default: 0.125. Cost: so much less for what writers put meanwhile. If wrong: 0, and tasks
    /// that hold parts of what they need may wait for the rest until they fail (MOB2001); too large, and writers wait.
    #[arg(
        long,
        value_name = "SHARE",
        env = "MOBULA_SPILL_RESTORE_SHARE",
        hide_env_values = true,
        value_parser = values::share
    )]
    #[serde(deserialize_with = "share")]
    pub restore_share: Option<f64>,
}

/// `[transfer]`: of objects from one node to another.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transfer {
    /// Share of the store that may be on its way here from other nodes at once, such as 0.25
    ///
    /// Unit: share, 0 to 1; one object may always be. Default: 0.25. Cost: memory for what nobody can read yet. If
    /// wrong: too small, and the network is idle between objects; too large, and each of many comes late.
    #[arg(
        long,
        value_name = "SHARE",
        env = "MOBULA_TRANSFER_PULL_SHARE",
        hide_env_values = true,
        value_parser = values::share
    )]
    #[serde(deserialize_with = "share")]
    pub pull_share: Option<f64>,
    /// How long a source may send nothing until another is asked, such as 10s
    ///
    /// Unit: time, 1s to 1d. Default: 10s. Cost: so long, a stuck node is waited for, and twice that or 20s until it is an
    /// error (MOB2001); one that reads an object back from a slow disk says so. If wrong: too short, and a busy node is
    /// given up; it should be the same on all nodes.
    #[arg(
        long,
        value_name = "TIME",
        env = "MOBULA_TRANSFER_PULL_STALL",
        hide_env_values = true,
        value_parser = values::wait
    )]
    #[serde(deserialize_with = "wait")]
    pub pull_stall: Option<Duration>,
    /// Bytes of UDP payload in each packet that this node sends to others, such as 1452
    ///
    /// Unit: bytes, 1200 to 65000; 1452 is what Ethernet carries, 8952 with jumbo frames. Default: what is found for each
    /// path: 65000 to this machine, else 1200 and, by probing, up to 6500. Cost: each packet costs processor time: with
    /// 1452, a pull on this machine has less than half of its rate. If wrong: larger than a path carries, and what is sent
    /// is lost until the connection goes on by 1200; smaller, and pulls are slow.
    #[arg(
        long,
        value_name = "BYTES",
        env = "MOBULA_TRANSFER_MTU",
        hide_env_values = true,
        value_parser = values::mtu
    )]
    #[serde(deserialize_with = "mtu")]
    pub mtu: Option<u16>,
}

/// `[log]`: of the head, the node and its hosts.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged: error, warn, info, debug, trace, or by part, such as warn,mobula_agent=debug
    ///
    /// Unit: a filter of the `tracing` library. Default: info; warn for hosts and for what `mobula up` shows. Cost:
    /// debug and trace slow every task down and fill disks. If wrong: too little, and nobody can tell what happened.
    #[arg(
        long = "log",
        value_name = "LEVEL",
        env = "MOBULA_LOG",
        hide_env_values = true,
        value_parser = values::level
    )]
    #[serde(deserialize_with = "level")]
    pub level: Option<String>,
}

/// All that `mobula.toml` can say.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// `[head]`.
    pub head: Head,
    /// `[node]`.
    pub node: Node,
    /// `[offer]`.
    pub offer: Offer,
    /// `[spill]`.
    pub spill: Spill,
    /// `[transfer]`.
    pub transfer: Transfer,
    /// `[hosts]`.
    pub hosts: Hosts,
    /// `[log]`.
    pub log: Log,
}

impl File {
    /// What the file says; nothing where there is none.
    pub fn load(argument: &ConfigArg, home: &Home) -> Result<Self, Error> {
        let path = path(argument, home);
        match text(&path, argument)? {
            Some(text) => Self::parse(&text, &path),
            None => Ok(Self::default()),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        toml::from_str(text).map_err(|error| refused(path, text, &error))
    }
}

/// The file that is read: the option's, else `MOBULA_CONFIG`'s (which the option also reads), else the home's.
pub fn path(argument: &ConfigArg, home: &Home) -> PathBuf {
    argument.config.clone().unwrap_or_else(|| home.path().join(FILE_NAME))
}

/// What stands in the file. Only the home's own may be missing.
pub fn text(path: &Path, argument: &ConfigArg) -> Result<Option<String>, Error> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && argument.config.is_none() => {
            return Ok(None);
        }
        Err(error) => return Err(error::file("read", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(error::file("read", path))?;
    let whole = |detail: &str| Error::Setting {
        file: path.to_owned(),
        line: 1,
        text: String::new(),
        detail: detail.to_owned(),
    };
    if bytes.len() > FILE_BYTES_MAX {
        return Err(whole(&format!("the file is longer than {} KiB", FILE_BYTES_MAX / 1024)));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| whole("the file is no text in UTF-8"))
}

fn refused(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    Error::Setting {
        file: path.to_owned(),
        line: line + 1,
        text: text.lines().nth(line).unwrap_or_default().trim().chars().take(LINE_SHOWN_MAX).collect(),
        detail: error.message().trim().replace('\n', "; "),
    }
}

/// A setting, or list of them, that a lower layer may fill.
trait Layer {
    fn fall_back(&mut self, lower: Self);
}

impl<T> Layer for Option<T> {
    fn fall_back(&mut self, lower: Self) {
        if self.is_none() {
            *self = lower;
        }
    }
}

impl<T> Layer for Vec<T> {
    fn fall_back(&mut self, lower: Self) {
        if self.is_empty() {
            *self = lower;
        }
    }
}

macro_rules! layers {
    ($($section:ident: $($key:ident)*;)*) => {$(
        impl $section {
            /// Takes from `lower` what is not set here.
            pub fn fall_back(&mut self, lower: Self) {
                // Without `..`: a key that is missing here does not compile.
                let Self { $($key),* } = lower;
                $(self.$key.fall_back($key);)*
            }
        }
    )*};
}

layers! {
    Head: quic http name node_timeout node_type;
    Node: head name listen advertise socket job_uids;
    Offer: cpus memory resource label store disk;
    Spill: spill_folder spill_disk spill_file spill_above spill_below spill_stall restore_share;
    Transfer: pull_share pull_stall mtu;
    Hosts: host_idle head_lost ring;
    Log: level;
}

/// A value as a person writes it: text, or a number without quotes.
struct Written(String);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Written;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text in quotes, or a number")
            }
            fn visit_str<E>(self, value: &str) -> Result<Written, E> {
                Ok(Written(value.to_owned()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Written, E> {
                Ok(Written(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Written, E> {
                Ok(Written(value.to_string()))
            }
            fn visit_i128<E>(self, value: i128) -> Result<Written, E> {
                Ok(Written(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Written, E> {
                Ok(Written(value.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

macro_rules! written {
    ($($name:ident: $type:ty, $parse:path;)*) => {$(
        fn $name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<$type>, D::Error> {
            let Written(text) = Written::deserialize(deserializer)?;
            $parse(&text).map(Some).map_err(de::Error::custom)
        }
    )*};
}
macro_rules! listed {
    ($($name:ident: $type:ty, $parse:path;)*) => {$(
        fn $name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<$type>, D::Error> {
            let all = Vec::<String>::deserialize(deserializer)?;
            all.iter().map(|text| $parse(text)).collect::<Result<_, _>>().map_err(de::Error::custom)
        }
    )*};
}

written! {
    bytes: u64, values::bytes;
    level: String, values::level;
    mtu: u16, values::mtu;
    name: String, values::peer_name;
    node_timeout: Duration, values::node_timeout;
    quantity: Quantity, values::quantity;
    ring: u32, values::ring_bytes;
    share: f64, values::share;
    uids: Uids, values::uids;
    wait: Duration, values::wait;
}
listed! {
    labels: (String, String), values::label;
    node_types: NodeType, values::node_type;
    resources: (String, Quantity), values::resource;
}

#[cfg(test)]
mod tests;
