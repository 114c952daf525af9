//! The connection between a host and its agent: a socket between processes, memory within one.

use std::{
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    sync::{Arc, OnceLock},
};

use mobula_net::link;
use mobula_proto::{
    Failure, FailureKind,
    host::{ToAgent, ToHost},
    relay, wire,
};
use parking_lot::Mutex;

use crate::{peers::ToAgentRing, runtime::Runtime};

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
pub struct AgentSender(Arc<Way>);

enum Way {
    /// In this process.
    Memory(Box<dyn Fn(Parcel) + Send + Sync>),
    Socket(Socket),
}

/// The socket, and the ring once the agent has it: then all goes through the ring, in which the turn of what has
/// descriptors is marked.
struct Socket {
    sender: Mutex<link::Sender>,
    ring: OnceLock<ToAgentRing>,
}

impl AgentSender {
    /// Sends through this function.
    pub fn new(send: impl Fn(Parcel) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Way::Memory(Box::new(send))))
    }

    /// Whether the agent takes rings.
    pub(crate) fn takes_rings(&self) -> bool {
        matches!(*self.0, Way::Socket(_))
    }

    /// The agent has this ring by now: what is sent from here on goes through it.
    pub(crate) fn use_ring(&self, ring: ToAgentRing) {
        if let Way::Socket(socket) = &*self.0 {
            // There is one for each link.
            let _first = socket.ring.set(ring);
        }
    }

    /// Sends a message without descriptors.
    pub fn tell(&self, message: ToAgent) {
        self.send(Parcel { message, descriptors: Vec::new() });
    }

    /// As [`Self::tell`], of what the agent need not hear before the next thing that it is told: where there is a ring, nobody is
    /// woken for it.
    pub fn mention(&self, message: ToAgent) {
        self.send_and_wake(Parcel { message, descriptors: Vec::new() }, false);
    }

    /// Sends; a closed connection is noticed by the receiving side.
    pub fn send(&self, parcel: Parcel) {
        self.send_and_wake(parcel, true);
    }

    fn send_and_wake(&self, parcel: Parcel, wakes: bool) {
        let socket = match &*self.0 {
            Way::Memory(send) => return send(parcel),
            Way::Socket(socket) => socket,
        };
        let Parcel { message, descriptors } = parcel;
        let sent = wire::encode_with(&message, 0, |body| match socket.ring.get() {
            Some(ring) if descriptors.is_empty() && body.len() <= relay::BODY_BYTES_MAX => {
                ring.send(body, wakes);
            }
            ring => {
                let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                // Kept while the turn is marked, so that turns are in the socket's order.
                let mut sender = socket.sender.lock();
                if let Err(error) = sender.send(body, &descriptors) {
                    tracing::debug!(%error, "the agent is gone");
                } else if let Some(ring) = ring {
                    ring.send(&[], true);
                }
            }
        });
        if let Err(error) = sent {
            tracing::error!(%error, "a message to the agent could not be encoded");
        }
    }
}

/// Why what was opened cannot be read here.
pub(crate) fn without_descriptor(error: &link::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("its region's descriptor did not arrive: {error}"))
}

/// Receives from the agent; `None` when the connection has ended.
pub type AgentReceiver = Box<dyn FnMut() -> Option<Delivery> + Send>;

/// Both directions over a Unix socket.
pub fn over_socket(stream: UnixStream) -> (AgentSender, AgentReceiver) {
    let (sender, mut receiver) = link::split(stream);
    let socket = Socket { sender: Mutex::new(sender), ring: OnceLock::new() };
    let send = AgentSender(Arc::new(Way::Socket(socket)));
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
            Ok(ToHost::Opened { request, region, region_bytes, offset, bytes, .. }) if received.lost => {
                // Who waits for it hears of that.
                let message = ToHost::Opened { request, region, region_bytes, offset, bytes, lost: true };
                Some(Delivery { message, descriptors: Vec::new() })
            }
            // Rings: the other host may have sent something through them, that would never be read.
            Ok(_) if received.lost => {
                tracing::error!(error = %link::Error::DescriptorsLost, "this process cannot go on");
                None
            }
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

#[cfg(test)]
mod tests {
    use std::{io::IoSlice, mem::MaybeUninit, os::fd::BorrowedFd, sync::mpsc};

    use mobula_proto::{RegionId, TaskId, peer};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;
    use crate::testing::{Alone, ME, alone, other};

    /// As the agent sends it, with more descriptors than can be taken.
    fn send(stream: &UnixStream, message: &ToHost) {
        let body = wire::encode(message).unwrap();
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend([1, 0, 0, 0]);
        frame.extend(&body[..]);
        let many: [BorrowedFd<'_>; 20] = [stream.as_fd(); 20];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let sent = sendmsg(stream, &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent, Ok(frame.len()));
    }

    #[test]
    fn who_waits_for_what_was_opened_without_its_descriptor_is_told_and_the_link_goes_on() {
        let Alone { runtime, told, user: _user } = alone(&[]);
        let (agent, ours) = UnixStream::pair().unwrap();
        let (_sender, mut receive) = over_socket(ours);
        let object = TaskId::numbered(ME, 1).object(0);
        let copy = peer::Copy { node: ME.node, bytes: 8, attempt: 1, job: runtime.job() };
        for _ in 0..2 {
            let (tell, hear) = mpsc::channel();
            runtime.store().open(
                object,
                copy,
                false,
                Box::new(move |bytes| drop(tell.send(bytes.map(drop)))),
            );
            let request = told.try_iter().find_map(|said| match said {
                ToAgent::Open { request, .. } => Some(request),
                _ => None,
            });
            let (request, region) = (request.unwrap(), RegionId { writer: other(2), seq: 1 });
            send(
                &agent,
                &ToHost::Opened { request, region, region_bytes: 64, offset: 0, bytes: 8, lost: false },
            );
            let Delivery { message, descriptors } = receive().expect("the link goes on");
            runtime.on_agent(message, descriptors);
            let failure = hear.try_recv().expect("it is answered").unwrap_err();
            assert!(failure.message.contains("limit on open files"), "{failure}");
            let unpinned = |said| matches!(said, ToAgent::Unpin { object: of } if of == object);
            assert!(told.try_iter().any(unpinned));
        }
        // The other host may send through them.
        send(&agent, &ToHost::Rings { peer: other(2) });
        assert!(receive().is_none());
    }
}
