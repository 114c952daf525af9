//! A cluster that others run.
//!
//! On a machine with an agent the driver attaches to its socket. Elsewhere it carries an agent of its own that
//! offers nothing and only dials outward.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    os::unix::net::UnixStream,
    time::Duration,
};

use mobula_agent::{Agent, HeadLink, detect::Detected};
use mobula_host::link;
use mobula_net::{
    code,
    identity::{JoinToken, Role},
    quic,
};
use mobula_proto::Resources;

use super::{
    ADDRESS_VARIABLE, Builder, Cluster, Keeper, Program, TOKEN_VARIABLE, embedded, home::Home, roles,
};
use crate::{Error, ErrorKind, Result};

/// How long nothing may be heard of a driver whose head is on the same machine: one that was killed is missed within 3 s,
/// since the head counts from what it heard last, unless it speaks itself meanwhile. Over a network its silence cannot
/// be told from a connection that will come back, and the usual idle timeout decides.
const SILENCE_MAX: Duration = Duration::from_millis(2200);

/// What [`Cluster::mode`] says of it.
pub(super) const MODE: &str = "remote";

/// A driver's own agent. `None` where it is attached to the machine's.
pub(super) struct Remote {
    agent: Option<mobula_agent::Handle>,
    io: Option<tokio::runtime::Runtime>,
    _home: Home,
}

impl Keeper for Remote {
    fn left(&self) -> Vec<String> {
        let (Some(agent), Some(io)) = (&self.agent, &self.io) else { return Vec::new() };
        embedded::left_with("the driver's own agent", agent, io)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let (Some(io), Some(agent)) = (self.io.take(), self.agent.take()) {
            embedded::end(io, async move { drop(agent.shutdown().await) });
        }
    }
}

pub(super) fn start(
    builder: &Builder,
    address: &str,
    token: Option<String>,
    user: &tokio::runtime::Handle,
) -> Result<Cluster> {
    if let Some(path) = address.strip_prefix("unix:") {
        let stream = UnixStream::connect(path).map_err(|error| {
            let why = match error.kind() {
                std::io::ErrorKind::PermissionDenied => format!("the agent's socket {path} belongs to another user ({error}): run as the user who runs the node, or name the head as HOST:PORT in {ADDRESS_VARIABLE}"),
                _ => format!("no agent listens on {path} ({error}): start one with `mobula node`, or name the head as HOST:PORT in {ADDRESS_VARIABLE}"),
            };
            Error::new(ErrorKind::Unreachable, why)
        })?;
        let (runtime, over) = builder.join(link::over_socket(stream), Program::current(true)?, true, user)?;
        return Ok(Cluster::new(runtime, MODE, None, over));
    }
    let head = resolve(address)?;
    let token = token.or_else(|| std::env::var(TOKEN_VARIABLE).ok()).filter(|text| !text.is_empty()).ok_or_else(|| {
        Error::new(
            ErrorKind::Unreachable,
            format!("a driver needs a token to join {address}: set {TOKEN_VARIABLE} to what `mobula token create --role driver` prints"),
        )
    })?;
    let trouble = |error: &dyn std::fmt::Display| Error::new(ErrorKind::Unreachable, error.to_string());
    let token = JoinToken::parse(&token).map_err(|error| trouble(&error))?;
    let io = embedded::io_runtime()?;
    let home = Home::new()?;
    let name = format!("driver-{}-{}", std::process::id(), random_name());
    let (agent, link) = io.block_on(async {
        let joined =
            quic::join(head, &token, Role::Driver, &name).await.map_err(|error| match error.code() {
                // A failure of the cluster has no kind of its own for this; the page about tokens is the one to read.
                code::JOIN => trouble(&format!("{error} (see {})", code::JOIN)),
                _ => trouble(&error),
            })?;
        let nothing = Detected {
            total: Resources::none(),
            devices: Vec::new(),
            tpu_chips: 0,
            labels: Vec::new(),
            hostname: name.clone(),
        };
        // It offers no memory to others, but what the driver puts and gets has to lie somewhere.
        let store_bytes = match builder.store_bytes {
            Some(bytes) => bytes,
            None => mobula_agent::service::store_bytes_default(&embedded::detected(builder)?.total),
        };
        let mut options =
            roles::node_options(home.path(), head, joined.identity, None, None, nothing, Some(store_bytes));
        if let HeadLink::Quic { network, .. } = &mut options.head {
            network.keep_alive_loopback = Some(SILENCE_MAX / 4);
            network.idle_timeout_loopback = Some(SILENCE_MAX);
        }
        roles::set_mtu(&mut options, builder.mtu);
        let agent = Agent::start(options).await.map_err(|error| trouble(&error))?;
        let link = agent.attach();
        Ok::<_, Error>((agent, link))
    })?;
    let (runtime, over) = builder.join(embedded::adapt(link), Program::current(true)?, false, user)?;
    let remote = Remote { agent: Some(agent), io: Some(io), _home: home };
    Ok(Cluster::new(runtime, MODE, Some(Box::new(remote)), over))
}

fn resolve(address: &str) -> Result<SocketAddr> {
    address
        .to_socket_addrs()
        .map_err(|error| {
            Error::new(
                ErrorKind::Unreachable,
                format!("{address:?} is no address of a head ({error}): write HOST:PORT, for example 10.0.0.1:7420"),
            )
        })?
        .next()
        .ok_or_else(|| Error::new(ErrorKind::Unreachable, format!("{address:?} has no address")))
}

fn random_name() -> String {
    let mut bytes = [0; 4];
    // Without randomness the process number still tells drivers of one machine apart.
    let _predictable = getrandom::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
