//! The QUIC port: each member's control stream becomes a link; machines that join trade a token for a certificate.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mobula_net::{
    identity::{Identity, Role},
    quic::{Connection, Endpoint, Incoming, Join, Receiver, Sender, StreamKind},
};
use mobula_proto::{
    head::{Register, ToAgent, ToHead},
    wire::{self, Hello},
};
use mobula_telemetry::task;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tracing::{debug, warn};

use super::{Error, LINK_QUEUE_MAX, Options, Poster, actor::Outbox};
use crate::core::{NODES_MAX, Peer, PeerKind};

/// Connections of members at once, those that are about to be refused included.
pub const LINKS_MAX: usize = NODES_MAX + 256;
/// Longest message from an agent, in bytes; a longer one ends its link.
pub const TO_HEAD_BYTES_MAX: usize = 1024 * 1024;
/// How long a new connection may take to register.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a link that ends may take to send what it still has.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Silence after which a packet is sent to keep a connection. It is the others that do that, sooner, and need an answer
/// only: each idle agent costs the head one packet each way in two seconds. Nor does it begin to count the silence of a
/// driver on this machine anew, which counts as gone before.
const KEEP_ALIVE: Duration = Duration::from_millis(2400);

/// Counts the tasks that serve links, so that an end can wait for them.
#[derive(Clone, Debug)]
pub(super) struct Links(Arc<Semaphore>);

impl Default for Links {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LINKS_MAX)))
    }
}

impl Links {
    /// Waits until no link is served any more, at most `limit`.
    pub async fn wait_gone(&self, limit: Duration) {
        let all = u32::try_from(LINKS_MAX).unwrap_or(u32::MAX);
        // Past the limit they are cut off.
        let _late = timeout(limit, self.0.acquire_many(all)).await;
    }
}

pub(super) fn bind(options: &Options, identity: Identity) -> Result<Endpoint, Error> {
    let quic = mobula_net::quic::Options {
        accept_join: true,
        idle_timeout: options.idle_timeout,
        keep_alive: KEEP_ALIVE,
        ..Default::default()
    };
    Ok(Endpoint::bind(options.quic_address, identity, quic)?)
}

/// Takes in members and joining machines until the endpoint closes.
pub(super) async fn accept(endpoint: Arc<Endpoint>, links: Links, poster: Poster) {
    while let Some(incoming) = endpoint.accept().await {
        let poster = poster.clone();
        match incoming {
            Incoming::Peer(connection) => {
                let Ok(permit) = links.0.clone().try_acquire_owned() else {
                    warn!(peer = %connection.peer(), "turned a member away: {LINKS_MAX} links are open");
                    connection.close("the head has as many connections as it may: try again later");
                    continue;
                };
                // Ends with its connection.
                task::spawn("head-link", async move {
                    serve(connection, poster).await;
                    drop(permit);
                });
            }
            // Bounded in number and time by the endpoint.
            Incoming::Join(join) => drop(task::spawn("head-join", let_in(join, poster))),
        }
    }
}

async fn let_in(join: Join, poster: Poster) {
    let from = join.remote_address();
    if let Err(error) = join.serve(|request| async move { poster.redeem(request).await }).await {
        debug!(%from, %error, "a machine may not have heard the answer to its joining");
    }
}

async fn serve(connection: Connection, poster: Poster) {
    let kind = match connection.peer().role {
        Role::Agent => PeerKind::Agent,
        Role::Driver => PeerKind::Driver,
        Role::Head => return connection.close("a head has no business with another"),
    };
    let peer = Peer { kind, name: connection.peer().name.clone() };
    let (sender, mut receiver, hello, node) = match timeout(REGISTER_TIMEOUT, first(&connection)).await {
        Ok(Ok(first)) => first,
        Ok(Err(why)) => {
            warn!(peer = peer.name, why, "a member was turned away");
            return connection.close(&why);
        }
        Err(_) => return connection.close("no registration within 5 s"),
    };
    let node = reachable(node, connection.remote_address());
    let link = poster.new_link();
    let (outbox, outgoing) = mpsc::channel(LINK_QUEUE_MAX);
    let writer = task::spawn("head-link-writer", write(connection.clone(), sender, outgoing));
    if poster.register(link, peer, hello, node, Outbox::Wire(outbox)).await.is_ok() {
        let why = read(&mut receiver, link, &poster).await;
        poster.lost(link, why).await;
    }
    // The head has let go of the link by now, or soon will: then the writer ends, and closes the connection.
    if timeout(DRAIN_TIMEOUT * 2, writer).await.is_err() {
        connection.close("the link ended");
    }
}

/// The control stream and the registration on it.
async fn first(connection: &Connection) -> Result<(Sender, Receiver, Hello, Register), String> {
    let (kind, sender, mut receiver) = connection.accept_stream().await.map_err(|e| e.to_string())?;
    if kind != StreamKind::Control {
        return Err(format!("the first stream must be for control, not {kind:?}"));
    }
    receiver.limit(TO_HEAD_BYTES_MAX);
    let message = receiver.recv().await.map_err(|e| e.to_string())?.ok_or("the control stream is empty")?;
    match wire::decode(&message).map_err(|e| e.to_string())? {
        ToHead::Register { hello, node } => Ok((sender, receiver, hello, node)),
        _ => Err("the first message must be a registration".to_owned()),
    }
}

/// An agent that listens on every address does not know which one others reach it by; its connection shows it.
fn reachable(mut node: Register, seen: SocketAddr) -> Register {
    if let Ok(address) = node.address.parse::<SocketAddr>()
        && address.ip().is_unspecified()
    {
        node.address = SocketAddr::new(seen.ip(), address.port()).to_string();
    }
    node
}

/// Passes messages on until the link ends; says why it did.
async fn read(receiver: &mut Receiver, link: crate::core::Link, poster: &Poster) -> String {
    loop {
        let message = match receiver.recv().await {
            Ok(Some(message)) => message,
            Ok(None) => return "its control stream ended".to_owned(),
            Err(error) => return error.to_string(),
        };
        match wire::decode::<ToHead>(&message) {
            Ok(message) => {
                if poster.message(link, message).await.is_err() {
                    return "the head ended".to_owned();
                }
            }
            Err(error) => {
                warn!(link = link.0, %error, "a link is closed");
                return error.to_string();
            }
        }
    }
}

/// Sends what the head says, small messages together, until it lets go of the link; then closes the connection.
async fn write(connection: Connection, mut sender: Sender, mut outgoing: mpsc::Receiver<Arc<ToAgent>>) {
    let sent = async {
        while let Some(message) = outgoing.recv().await {
            match wire::encode(&*message) {
                Ok(bytes) => sender.feed(&bytes).await?,
                Err(error) => warn!(%error, "a message could not be encoded and was left out"),
            }
            if outgoing.is_empty() {
                sender.flush().await?;
            }
        }
        Ok::<(), mobula_net::quic::Error>(())
    };
    if sent.await.is_ok() {
        let drained = async {
            sender.finish().await?;
            sender.delivered().await
        };
        // Past the limit, or on an error, the peer finds out by itself.
        let _late = timeout(DRAIN_TIMEOUT, drained).await;
    }
    connection.close("the head let go of the link");
}
