//! A head inside the author's own process.

use std::{net::SocketAddr, sync::Arc};

use mobula_proto::head::{ToAgent, ToHead};
use mobula_telemetry::task;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tracing::warn;

use super::{Error, Handle, Inner, LINK_QUEUE_MAX, actor};
use crate::{
    core::{Options, Peer, PeerKind},
    state::Journal,
};

/// What the one agent is called in its registration's stead of a certificate.
const PEER_NAME: &str = "embedded";

/// A head in memory, and the link of its only agent. The first message must be [`ToHead::Register`]; the node it
/// becomes is [`mobula_proto::NodeId::EMBEDDED`]. Dropping `to_head` is the agent's end.
#[derive(Debug)]
pub struct EmbeddedHead {
    /// To the head; full means wait.
    pub to_head: mpsc::Sender<ToHead>,
    /// From the head. An agent that lets [`LINK_QUEUE_MAX`] messages gather is given up.
    pub from_head: mpsc::Receiver<ToAgent>,
    /// Keeps the head alive.
    pub handle: Handle,
}

pub(super) async fn start(journal: Arc<dyn Journal>) -> Result<EmbeddedHead, Error> {
    let options = Options { cluster: PEER_NAME.to_owned(), ..Options::default() };
    let started = actor::start(options, journal, None).await?;
    let (to_head, mut outgoing) = mpsc::channel(LINK_QUEUE_MAX);
    let (outbox, from_head) = mpsc::channel(LINK_QUEUE_MAX);
    let poster = started.poster.clone();
    // Ends with `to_head`, or with the head.
    task::spawn("head-embedded-link", async move {
        let link = poster.new_link();
        let Some(first) = outgoing.recv().await else { return };
        let ToHead::Register { hello, node } = first else {
            warn!("the embedded agent's first message was not its registration");
            return;
        };
        let peer = Peer { kind: PeerKind::Agent, name: PEER_NAME.to_owned() };
        if poster.register(link, peer, hello, node, actor::Outbox::Memory(outbox)).await.is_err() {
            return;
        }
        while let Some(message) = outgoing.recv().await {
            if poster.message(link, message).await.is_err() {
                return;
            }
        }
        poster.lost(link, "the embedded agent ended".to_owned()).await;
    });
    let none: Option<SocketAddr> = None;
    let handle = Handle(Arc::new(Inner {
        poster: started.poster,
        closed: started.closed,
        quic_address: none,
        http_address: none,
        admin_token: String::new(),
        ports: Mutex::new(None),
    }));
    Ok(EmbeddedHead { to_head, from_head, handle })
}
