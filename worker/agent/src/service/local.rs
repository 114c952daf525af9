//! The link of a host in the agent's own process: the same messages, in memory, unencoded.

use std::{
    os::fd::OwnedFd,
    sync::mpsc::{Receiver, RecvError, RecvTimeoutError, SyncSender, TryRecvError, sync_channel},
    time::Duration,
};

use mobula_proto::host::{ToAgent, ToHost};
use tokio::sync::mpsc;

/// Most messages toward the agent that wait.
pub const TO_AGENT_MAX: usize = 1024;
/// Most messages toward the host that wait.
pub const TO_HOST_MAX: usize = 8192;

/// Why a message was not sent; it comes back.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The queue is full, and this thread may not block (it runs async code).
    #[error("the agent is {TO_AGENT_MAX} messages behind, and this thread may not wait")]
    Full(Box<(ToAgent, Vec<OwnedFd>)>),
    /// The agent is gone.
    #[error("the agent has ended")]
    Closed(Box<(ToAgent, Vec<OwnedFd>)>),
}

/// Sends to the agent. Clones share one queue, and keep one another's order only within a thread.
#[derive(Clone, Debug)]
pub struct LocalSender(mpsc::Sender<(ToAgent, Vec<OwnedFd>)>);

impl LocalSender {
    /// Sends a message with the descriptors that belong to it. A full queue blocks a plain thread until there is
    /// room.
    ///
    /// # Errors
    /// See [`SendError`]; the message is in it.
    pub fn send(&self, message: ToAgent, fds: Vec<OwnedFd>) -> Result<(), SendError> {
        match self.0.try_send((message, fds)) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(back)) => Err(SendError::Closed(Box::new(back))),
            Err(mpsc::error::TrySendError::Full(back)) => {
                if tokio::runtime::Handle::try_current().is_ok() {
                    return Err(SendError::Full(Box::new(back)));
                }
                self.0.blocking_send(back).map_err(|error| SendError::Closed(Box::new(error.0)))
            }
        }
    }
}

/// Receives from the agent, on a plain thread.
#[derive(Debug)]
pub struct LocalReceiver(Receiver<(ToHost, Vec<OwnedFd>)>);

impl LocalReceiver {
    /// The next message; blocks until there is one.
    ///
    /// # Errors
    /// The agent has ended the link.
    pub fn recv(&self) -> Result<(ToHost, Vec<OwnedFd>), RecvError> {
        self.0.recv()
    }

    /// As [`LocalReceiver::recv`], at most so long.
    ///
    /// # Errors
    /// Nothing came in time, or the agent has ended the link.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<(ToHost, Vec<OwnedFd>), RecvTimeoutError> {
        self.0.recv_timeout(timeout)
    }

    /// As [`LocalReceiver::recv`], without blocking.
    ///
    /// # Errors
    /// Nothing is there, or the agent has ended the link.
    pub fn try_recv(&self) -> Result<(ToHost, Vec<OwnedFd>), TryRecvError> {
        self.0.try_recv()
    }
}

/// Both directions. The agent sees the host's end when every sender is dropped, or the receiver is.
#[derive(Debug)]
pub struct LocalLink {
    /// Toward the agent.
    pub sender: LocalSender,
    /// From the agent.
    pub receiver: LocalReceiver,
}

impl LocalLink {
    pub(super) fn new() -> (Self, FromLocal, ToLocal) {
        let (to_agent, from_host) = mpsc::channel(TO_AGENT_MAX);
        let (to_host, from_agent) = sync_channel(TO_HOST_MAX);
        let link = Self { sender: LocalSender(to_agent), receiver: LocalReceiver(from_agent) };
        (link, from_host, to_host)
    }

    /// Sends; see [`LocalSender::send`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, message: ToAgent, fds: Vec<OwnedFd>) -> Result<(), SendError> {
        self.sender.send(message, fds)
    }
}

pub(super) type FromLocal = mpsc::Receiver<(ToAgent, Vec<OwnedFd>)>;
pub(super) type ToLocal = SyncSender<(ToHost, Vec<OwnedFd>)>;
