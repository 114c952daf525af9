//! The connection between a host and its agent: a socket between processes, memory within one.

use std::{
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    sync::Arc,
};

use mobula_net::link;
use mobula_proto::{
    host::{ToAgent, ToHost},
    wire,
};
use parking_lot::Mutex;

use crate::runtime::Runtime;

/// A message to the agent and the descriptors that travel with it.
#[derive(Debug)]
pub struct Parcel {
    /// The message.
    pub message: ToAgent,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// A message from the agent and the descriptors that travel with it.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: ToHost,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// Sends to the agent from any thread, in order.
#[derive(Clone)]
pub struct AgentSender {
    send: Arc<dyn Fn(Parcel) + Send + Sync>,
    rings: bool,
}

impl AgentSender {
    /// Sends through this function.
    pub fn new(send: impl Fn(Parcel) + Send + Sync + 'static) -> Self {
        Self { send: Arc::new(send), rings: false }
    }

    /// Whether the agent takes rings for what it is to relay.
    pub(crate) fn takes_rings(&self) -> bool {
        self.rings
    }

    /// Sends; a closed connection is noticed by the receiving side.
    pub fn send(&self, parcel: Parcel) {
        (self.send)(parcel);
    }
}

/// Receives from the agent; `None` when the connection has ended.
pub type AgentReceiver = Box<dyn FnMut() -> Option<Delivery> + Send>;

/// Both directions over a Unix socket.
pub fn over_socket(stream: UnixStream) -> (AgentSender, AgentReceiver) {
    let (sender, mut receiver) = link::split(stream);
    let sender = Mutex::new(sender);
    let mut send = AgentSender::new(move |parcel: Parcel| {
        let body = match wire::encode(&parcel.message) {
            Ok(body) => body,
            Err(error) => return tracing::error!(%error, "a message to the agent could not be encoded"),
        };
        let descriptors: Vec<_> = parcel.descriptors.iter().map(AsFd::as_fd).collect();
        if let Err(error) = sender.lock().send(&body, &descriptors) {
            tracing::debug!(%error, "the agent is gone");
        }
    });
    send.rings = true;
    let receive: AgentReceiver = Box::new(move || {
        let received = match receiver.recv() {
            Ok(Some(received)) => received,
            Ok(None) => return None,
            Err(error) => {
                tracing::warn!(%error, "the connection to the agent broke");
                return None;
            }
        };
        match wire::decode::<ToHost>(&received.body) {
            Ok(message) => Some(Delivery { message, descriptors: received.descriptors }),
            Err(error) => {
                tracing::error!(%error, "the agent sent what this build does not understand");
                None
            }
        }
    });
    (send, receive)
}

/// Reads from the agent on a thread of its own until the connection ends; then `closed` runs.
pub fn pump(
    runtime: &Arc<Runtime>,
    mut receive: AgentReceiver,
    closed: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let weak = Arc::downgrade(runtime);
    std::thread::Builder::new().name("mobula-agent-link".into()).spawn(move || {
        while let Some(delivery) = receive() {
            let Some(runtime) = weak.upgrade() else { break };
            let _entered = crate::context::enter(&runtime, None, false);
            runtime.on_agent(delivery.message, delivery.descriptors);
        }
        closed();
    })?;
    Ok(())
}
