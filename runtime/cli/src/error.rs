//! What can go wrong on the command line: one line that says what failed, one that says what to do.

use std::{io, net::SocketAddr, path::PathBuf};

use mobula_agent::service::HeadError;
use mobula_net::{code, identity, quic};
use mobula_proto::FailureKind;

use crate::home::quoted;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user has no home folder to keep state in.
    #[error("there is no folder to keep state in: neither MOBULA_HOME nor HOME is set")]
    NoHome,
    /// A file or folder.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder for secrets that others may enter.
    #[error("the folder {} is open to other users (mode {mode:04o})", path.display())]
    OpenFolder {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The system refused something else.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The home is in use.
    #[error("{what} already runs in {} (process {pid})", home.display())]
    AlreadyRuns {
        /// What runs: `a head`, `a node`, `a cluster`.
        what: &'static str,
        /// The home.
        home: PathBuf,
        /// The process.
        pid: u32,
    },
    /// No head was started in this home, or it ended.
    #[error("no head runs in {}", home.display())]
    NoHead {
        /// The home.
        home: PathBuf,
    },
    /// The head of this home does not answer.
    #[error("the head of {} does not answer at {address}: {detail}", home.display())]
    HeadSilent {
        /// The home.
        home: PathBuf,
        /// Its HTTP address.
        address: SocketAddr,
        /// What happened.
        detail: String,
    },
    /// The head refused a request.
    #[error("the head refused this: {message}")]
    HeadRefused {
        /// The code.
        code: String,
        /// What it said.
        message: String,
    },
    /// A node that drained stays after all.
    #[error("{node} does not drain any more: somebody let it stay, or it joined anew")]
    DrainUndone {
        /// The node, as it was named.
        node: String,
    },
    /// A port is taken.
    #[error("{protocol} port {address} is in use")]
    PortInUse {
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// The address wanted.
        address: SocketAddr,
        /// The option that chooses another.
        option: &'static str,
    },
    /// A head's address that cannot be understood.
    #[error("{address:?} is no address of a head: {detail}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        detail: String,
    },
    /// This machine has no certificate, and no token to get one.
    #[error("this machine has not joined a cluster yet: there is no certificate in {}", folder.display())]
    NotJoined {
        /// Where it would be.
        folder: PathBuf,
    },
    /// The certificate has ended.
    #[error("this machine's certificate has expired")]
    Expired,
    /// The join token is not well formed.
    #[error(transparent)]
    Token(identity::Error),
    /// The network, or the head at its other end.
    #[error(transparent)]
    Net(quic::Error),
    /// The agent.
    #[error("the node could not start: {0}")]
    Agent(mobula_agent::Error),
    /// The agent ended by itself.
    #[error("the node ended: {0}")]
    AgentEnded(String),
    /// The head.
    #[error("the head could not start: {0}")]
    Head(mobula_head::Error),
    /// The head ended by itself.
    #[error("the head ended by itself")]
    HeadEnded,
    /// What the node should offer.
    #[error(transparent)]
    Offer(mobula_agent::detect::Error),
    /// A process that `up` started.
    #[error("{name} did not start: {detail}")]
    Child {
        /// Which one.
        name: String,
        /// What it said.
        detail: String,
        /// What it said to do; empty for nothing.
        cure: String,
        /// Its error's code.
        code: String,
    },
    /// A process that `up` started, ended.
    #[error("{name} ended by itself")]
    ChildEnded {
        /// Which one.
        name: String,
    },
    /// A process does not end.
    #[error("process {pid} ({name}) does not end, even when killed")]
    WontEnd {
        /// Which one.
        name: String,
        /// Its number.
        pid: u32,
    },
    /// A file of settings that cannot be used.
    #[error("{}:{line}: {detail}{}", file.display(), if text.is_empty() { String::new() } else { format!(" (it says `{text}`)") })]
    Setting {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands there, shortened; empty where the whole file is meant.
        text: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A place for spilled objects, named by a URL, that cannot be used.
    #[error("spill_folder (--spill-folder) is {url}: {detail}")]
    SpillTo {
        /// The URL.
        url: String,
        /// Whether what is set is wrong; else the place is.
        setting: bool,
        /// What is wrong with it, and what to do about that.
        detail: String,
    },
    /// A trace that cannot be replayed.
    #[error("{}: {error}", file.display())]
    Trace {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and how to correct that.
        error: mobula_scheduler::sim::trace::Error,
    },
    /// A node that is to be lost in a simulation is not there.
    #[error("--lose names node {node}, but --nodes gives {count}: they count from 1")]
    NoSuchNode {
        /// Its number.
        node: u32,
        /// How many there are.
        count: u64,
    },
    /// The queues do not go together.
    #[error(transparent)]
    Queues(mobula_proto::queue::Error),
    /// Arguments that cannot be used.
    #[error("{0}")]
    Arguments(clap::Error),
    /// Nobody said where the head is.
    #[error("this node is not told where its head is")]
    NoHeadNamed,
    /// There is no such error code.
    #[error("there is no error code {0}")]
    NoCode(String),
}

impl Error {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Address { .. }
            | Self::Offer(_)
            | Self::NoCode(_)
            | Self::Token(_)
            | Self::Setting { .. }
            | Self::Trace { .. }
            | Self::NoSuchNode { .. }
            | Self::SpillTo { setting: true, .. }
            | Self::Queues(_)
            | Self::Arguments(_)
            | Self::NoHeadNamed => 2,
            _ => 1,
        }
    }

    /// The code under which it is documented.
    pub fn code(&self) -> &str {
        match self {
            Self::NoHome
            | Self::File { .. }
            | Self::OpenFolder { .. }
            | Self::SpillTo { setting: false, .. }
            | Self::System { .. } => code::SYSTEM,
            Self::AlreadyRuns { .. } | Self::NoHead { .. } => code::HOME,
            Self::HeadSilent { .. } => FailureKind::Unreachable.code(),
            Self::HeadRefused { code, .. } | Self::Child { code, .. } => code,
            Self::DrainUndone { .. } => FailureKind::Node.code(),
            Self::PortInUse { .. } => code::PORT,
            Self::Address { .. }
            | Self::Offer(_)
            | Self::NoCode(_)
            | Self::Setting { .. }
            | Self::SpillTo { setting: true, .. }
            | Self::Trace { .. }
            | Self::NoSuchNode { .. }
            | Self::Queues(_)
            | Self::Arguments(_)
            | Self::NoHeadNamed => code::SETTING,
            Self::NotJoined { .. } | Self::Expired => code::JOIN,
            Self::Token(error) => error.code(),
            Self::Net(error) => error.code(),
            Self::Agent(error) => agent_code(error),
            Self::Head(error) => head_code(error),
            Self::AgentEnded(_) | Self::HeadEnded | Self::ChildEnded { .. } | Self::WontEnd { .. } => {
                code::PROCESS
            }
        }
    }

    /// What failed, with its code at the end.
    pub fn text(&self) -> String {
        let (text, code) = (self.to_string(), format!("[{}]", self.code()));
        // A failure that the head gave as its reason says its own code.
        if text.ends_with(&code) { text } else { format!("{text} {code}") }
    }

    /// What to do about it, in one line.
    pub fn cure(&self) -> String {
        match self {
            Self::NoHome => "set MOBULA_HOME, or say --home DIR".to_owned(),
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run this as the user who owns the folder, or choose another with --home DIR".to_owned()
            }
            Self::OpenFolder { path, .. } | Self::Head(mobula_head::Error::OpenFolder { path, .. }) => format!(
                "if it shall hold the home, close it with `chmod 700 {}`; else choose another with --home DIR",
                quoted(path)
            ),
            Self::Head(mobula_head::Error::AuthorityLost { .. }) => {
                "restore the folder `ca` (ca.pem and ca.key.pem) from a backup, or start a new cluster with --home DIR".to_owned()
            }
            Self::File { .. } => "check the path, and that the disk has room".to_owned(),
            Self::System { .. } => "look at the limits of this user and machine (ulimit -a)".to_owned(),
            Self::AlreadyRuns { what, .. } => format!(
                "look at it with `mobula status`, end it with `mobula down`, or start {what} elsewhere with --home DIR"
            ),
            Self::NoHead { .. } => {
                "start one with `mobula head` or `mobula up`; if it runs elsewhere, say --home DIR on its machine".to_owned()
            }
            Self::HeadSilent { .. } => {
                "see whether it still runs and what it logged; `mobula head` with the same --home starts it again".to_owned()
            }
            Self::HeadRefused { code, .. } if code == code::ADMIN => {
                "another head may run on this one's port: end that, or start this one on another with --http ADDR".to_owned()
            }
            Self::HeadRefused { code, .. } => format!("`mobula explain {code}` says more"),
            Self::DrainUndone { node } => format!("ask again with `mobula drain {node}` where it shall leave"),
            Self::Head(mobula_head::Error::NodeTypes(_)) => "change what --node-type, MOBULA_HEAD_NODE_TYPE or node_type in mobula.toml says".to_owned(),
            Self::PortInUse { protocol, address, option } => {
                let list = if *protocol == "UDP" { "ss -lunp" } else { "ss -ltnp" };
                let port = address.port();
                format!("see what uses it with `{list} 'sport = :{port}'`, or choose another with {option} {}:0 (any free port)", address.ip())
            }
            Self::Address { .. } => "write HOST:PORT, for example --head 10.0.0.1:7420".to_owned(),
            Self::NotJoined { .. } => {
                "make a token on the head's machine with `mobula token create`, and pass it with --join or in MOBULA_JOIN".to_owned()
            }
            Self::Expired => "join again: pass a new token from `mobula token create` with --join".to_owned(),
            Self::Token(_) => "copy the whole line that `mobula token create` prints".to_owned(),
            Self::Net(error) => net_cure(error).to_owned(),
            Self::Agent(mobula_agent::Error::Head(HeadError::Net(error)) | mobula_agent::Error::Net(error)) => {
                net_cure(error).to_owned()
            }
            Self::Agent(mobula_agent::Error::Head(HeadError::Refused(_))) => {
                "change what this node asks for, or join again with a new token".to_owned()
            }
            Self::Agent(mobula_agent::Error::Io { source, .. }) => match source.kind() {
                io::ErrorKind::AddrInUse => "another node uses this socket: choose another with --socket PATH".to_owned(),
                io::ErrorKind::InvalidInput => "if the path is over 107 bytes, choose a shorter one with --socket PATH".to_owned(),
                _ => "check the path, who owns it, and that the disk has room".to_owned(),
            },
            Self::Agent(mobula_agent::Error::Users(_)) => {
                "change --job-uids, MOBULA_NODE_JOB_UIDS or job_uids in mobula.toml as it says, or take it out: then jobs are not kept apart".to_owned()
            }
            Self::Agent(mobula_agent::Error::Spill(_)) => {
                "make the folder writable, or choose another with --spill-folder PATH".to_owned()
            }
            Self::Agent(_) => "start it again; the log above says more".to_owned(),
            Self::AgentEnded(_) => {
                "see whether the head still runs, then start this node again; it needs no token".to_owned()
            }
            Self::Head(mobula_head::Error::HttpNotLoopback { .. }) => "say --http 127.0.0.1:7421".to_owned(),
            Self::Head(_) => "check --home, --quic and --http; the log above says more".to_owned(),
            Self::HeadEnded => "the log above says why; if its disk is full, make room and start it again".to_owned(),
            Self::Offer(_) => "change --resource, --label, --cpus or --memory, or the same under [offer] in mobula.toml".to_owned(),
            Self::Child { cure, .. } if !cure.is_empty() => cure.clone(),
            Self::Child { .. } | Self::ChildEnded { .. } => {
                "look at its log (the folder `log` in the home, or above), and try again".to_owned()
            }
            Self::WontEnd { pid, .. } => {
                format!("it waits for the kernel, most likely a disk or device: see /proc/{pid}/stack")
            }
            Self::Setting { .. } => "correct it or take it out; `mobula config` then shows all that can be set".to_owned(),
            Self::SpillTo { .. } => {
                "correct the URL or what it needs, or name a folder with --spill-folder PATH; `mobula config node` says more".to_owned()
            }
            Self::Trace { .. } | Self::Queues(_) | Self::NoSuchNode { .. } => "`mobula simulate --help` says what a trace, a node and a queue are".to_owned(),
            Self::Arguments(_) => "`mobula config` without options shows all that can be set".to_owned(),
            Self::NoHeadNamed => {
                "say --head HOST:PORT, or set MOBULA_NODE_HEAD, or `head` under [node] in mobula.toml".to_owned()
            }
            Self::NoCode(_) => "`mobula explain` lists all codes".to_owned(),
        }
    }
}

fn agent_code(error: &mobula_agent::Error) -> &'static str {
    match error {
        mobula_agent::Error::Io { .. } | mobula_agent::Error::Binaries(_) | mobula_agent::Error::Spill(_) => {
            code::SYSTEM
        }
        mobula_agent::Error::Net(error) | mobula_agent::Error::Head(HeadError::Net(error)) => error.code(),
        mobula_agent::Error::Head(HeadError::Refused(failure)) => failure.kind.code(),
        mobula_agent::Error::Head(HeadError::Wire(_)) => code::PROTOCOL,
        mobula_agent::Error::Head(
            HeadError::Stale { .. }
            | HeadError::NoAnswer
            | HeadError::Lost(_)
            | HeadError::Shutdown
            | HeadError::Dismissed,
        ) => FailureKind::Unreachable.code(),
        mobula_agent::Error::Users(error) if !error.is_setting() => code::SYSTEM,
        mobula_agent::Error::Users(_) | mobula_agent::Error::ListenWithoutNetwork => code::SETTING,
        mobula_agent::Error::Actor(_) => code::PROCESS,
    }
}

fn head_code(error: &mobula_head::Error) -> &'static str {
    match error {
        mobula_head::Error::Home { .. }
        | mobula_head::Error::OpenFolder { .. }
        | mobula_head::Error::AuthorityLost { .. }
        | mobula_head::Error::State(_) => code::SYSTEM,
        mobula_head::Error::Identity(error) => error.code(),
        mobula_head::Error::Network(error) => error.code(),
        mobula_head::Error::HttpNotLoopback { .. } | mobula_head::Error::NodeTypes(_) => code::SETTING,
        mobula_head::Error::HttpBind { .. } => code::PORT,
        mobula_head::Error::Refused(failure) => failure.kind.code(),
        mobula_head::Error::Ended | mobula_head::Error::Start(_) => code::PROCESS,
    }
}

fn net_cure(error: &quic::Error) -> &'static str {
    match error {
        quic::Error::Unreachable { .. } | quic::Error::Timeout { .. } => {
            "check the address, that the head runs, and that no firewall drops UDP to it"
        }
        quic::Error::JoinRefused { .. } | quic::Error::ForeignToken { .. } => {
            "make a new token on the head's machine with `mobula token create`; each is good once, for its time"
        }
        quic::Error::OtherCluster { .. } | quic::Error::Untrusted { .. } | quic::Error::Refused { .. } => {
            "check the address; if it is right, join again with a token that its head made"
        }
        quic::Error::Protocol { .. } => "run the same version of Mobula on both machines",
        quic::Error::NotOffered { .. } => {
            "name the UDP port of the head, and run the same version of Mobula on both machines"
        }
        quic::Error::Bind { .. } => "choose another address with --listen or --quic",
        _ => "try again; if it stays, look at the log of the head",
    }
}

/// Whether the port was taken.
pub fn taken(source: &io::Error) -> bool {
    source.kind() == io::ErrorKind::AddrInUse
}

/// For `map_err`: a file or folder.
pub fn file(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

/// For `map_err`: anything else of the system.
pub fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}
