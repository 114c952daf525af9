//! `mobula node`.

use std::{net::SocketAddr, path::Path, sync::Arc, time::SystemTime};

use mobula_agent::{
    Agent, HeadLink,
    detect::{self, Detected},
    launcher::ProcessLauncher,
    service::HeadError,
};
use mobula_net::{
    identity::{Identity, JoinToken, NAME_BYTES_MAX, Role},
    quic,
};

use crate::{
    args::{NodeArgs, Offer},
    error::{self, Error, taken},
    home::{Home, quoted},
    ready::{Ready, say},
    signals::Signals,
};

/// UDP port of a node unless set: the one after the head's two.
pub const LISTEN_PORT: u16 = 7422;

/// Joins if that is still to be done, and runs a node until it is asked to end.
pub async fn run(args: &NodeArgs) -> Result<(), Error> {
    let home = Home::of(&args.home)?;
    let mut signals = Signals::take(args.by_up)?;
    let _claim = home.claim("node")?;
    let started = tokio::select! {
        started = start(args, &home) => started?,
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
            ended.map_err(|error| Error::AgentEnded(error.to_string()))?;
            if args.by_up.is_none() {
                say("The head ended, and the cluster with it.");
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
    let head = resolve(&args.head, args.listen).await?;
    let folder = home.node();
    crate::home::private(&folder)?;
    let wished = args.name.clone().unwrap_or_else(|| plain(&resources.hostname));
    let identity = identity(args, &folder.join("identity"), head, &wished).await?;
    let name = identity.peer().name.clone();
    if args.name.as_ref().is_some_and(|wish| *wish != name) {
        eprintln!(
            "mobula: this node's name is {name}, in its certificate since it joined, or because another has {wished}"
        );
    }
    let socket = match &args.socket {
        Some(path) => std::path::absolute(path).map_err(error::file("find", path))?,
        None => folder.join("agent.sock"),
    };
    let link = HeadLink::Quic { address: head, identity, network: quic::Options::default() };
    let mut options =
        mobula_agent::Options::new(name.clone(), folder, link, resources, Arc::new(ProcessLauncher));
    options.listen = Some(args.listen);
    options.advertise = args.advertise.map(|address| address.to_string());
    options.socket = Some(socket.clone());
    if let Some(bytes) = args.offer.store {
        options.store_bytes = bytes;
    }
    let agent = Agent::start(options).await.map_err(|error| failed(error, args.listen))?;
    Ok((agent, name, socket))
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
    use super::*;

    #[test]
    fn any_host_name_makes_a_name() {
        assert_eq!(plain("gpu box é"), "gpu-box--");
        assert_eq!(plain(""), "node");
        assert_eq!(plain(&"x".repeat(300)).len(), NAME_BYTES_MAX);
    }
}
