//! The link of a host in the agent's own process: the same messages, in memory, unencoded.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvError, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::Duration,
};

use mobula_proto::host::{ToAgent, ToHost};
use tokio::sync::{Notify, mpsc};

use super::routes::CONTROL_MAX;

/// Most messages toward the agent that wait.
pub const TO_AGENT_MAX: usize = 1024;
/// Most messages toward the host that wait.
pub const TO_HOST_MAX: usize = CONTROL_MAX + FROM_OTHERS_MAX;
/// Who can wait adds none while so many do: the rest of the room is for what the agent itself says, which never waits.
pub const FROM_OTHERS_MAX: usize = 2048;
/// Whoever waits for room hears of it after so many messages, rather than of each: he then sends many.
const ROOM_NEWS: usize = FROM_OTHERS_MAX / 4;

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

type Item = (ToHost, Vec<OwnedFd>);

/// Receives from the agent, on a plain thread.
#[derive(Debug)]
pub struct LocalReceiver {
    queue: Receiver<Item>,
    // After the queue, so that who is told that it is gone finds it so.
    room: Room,
}

/// Tells the agent of each message that was taken, and of the receiver's end.
#[derive(Debug)]
struct Room(Arc<Waiting>);

/// What waits toward a host.
#[derive(Debug, Default)]
struct Waiting {
    messages: AtomicUsize,
    over: AtomicBool,
    /// There is less, or nobody receives any more.
    less: Notify,
}

impl Room {
    fn taken(&self) {
        let before = self.0.messages.fetch_sub(1, Ordering::AcqRel);
        // In the end nothing waits, which is news as well.
        if (before - 1).is_multiple_of(ROOM_NEWS) {
            self.0.less.notify_waiters();
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        self.0.less.notify_waiters();
    }
}

impl LocalReceiver {
    /// The next message; blocks until there is one.
    ///
    /// # Errors
    /// The agent has ended the link.
    pub fn recv(&self) -> Result<(ToHost, Vec<OwnedFd>), RecvError> {
        self.queue.recv().inspect(|_| self.room.taken())
    }

    /// As [`LocalReceiver::recv`], at most so long.
    ///
    /// # Errors
    /// Nothing came in time, or the agent has ended the link.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<(ToHost, Vec<OwnedFd>), RecvTimeoutError> {
        self.queue.recv_timeout(timeout).inspect(|_| self.room.taken())
    }

    /// As [`LocalReceiver::recv`], without blocking.
    ///
    /// # Errors
    /// Nothing is there, or the agent has ended the link.
    pub fn try_recv(&self) -> Result<(ToHost, Vec<OwnedFd>), TryRecvError> {
        self.queue.try_recv().inspect(|_| self.room.taken())
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
        let waiting = Arc::<Waiting>::default();
        let receiver = LocalReceiver { queue: from_agent, room: Room(Arc::clone(&waiting)) };
        let link = Self { sender: LocalSender(to_agent), receiver };
        (link, from_host, ToLocal { queue: to_host, waiting })
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

/// Sends to a host in this process.
#[derive(Clone)]
pub(super) struct ToLocal {
    queue: SyncSender<Item>,
    waiting: Arc<Waiting>,
}

impl ToLocal {
    /// Sends if there is room.
    pub(super) fn try_send(&self, message: ToHost, fds: Vec<OwnedFd>) -> Result<(), TrySendError<Item>> {
        // Before it can be taken.
        self.waiting.messages.fetch_add(1, Ordering::AcqRel);
        self.queue.try_send((message, fds)).inspect_err(|_| {
            self.waiting.messages.fetch_sub(1, Ordering::AcqRel);
        })
    }

    /// Sends once fewer than [`FROM_OTHERS_MAX`] messages wait; `false` where nobody receives any more.
    pub(super) async fn send(&self, message: ToHost) -> bool {
        let mut item = (message, Vec::new());
        loop {
            self.at_most(FROM_OTHERS_MAX - 1).await;
            match self.try_send(item.0, item.1) {
                Ok(()) => return true,
                Err(TrySendError::Full(back)) => item = back,
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
    }

    /// Waits until at most so many messages wait, or nobody receives any more.
    pub(super) async fn at_most(&self, messages: usize) {
        loop {
            let less = self.waiting.less.notified();
            if self.waiting.messages.load(Ordering::Acquire) <= messages
                || self.waiting.over.load(Ordering::Acquire)
            {
                return;
            }
            less.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use mobula_proto::HostId;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_is_waited_for_until_there_is_room_or_nobody() {
        let (link, _from_host, to_host) = LocalLink::new();
        let message = || ToHost::Rings { peer: HostId { seq: 1, node: mobula_proto::NodeId::EMBEDDED } };
        for _ in 0..FROM_OTHERS_MAX {
            assert!(to_host.send(message()).await);
        }
        let (mut one, mut two) = (pin!(to_host.send(message())), pin!(to_host.send(message())));
        // Polled first, so that both wait.
        let both = async {
            tokio::select! { _ = &mut one => (), _ = &mut two => () }
        };
        assert!(timeout(Duration::ZERO, both).await.is_err(), "there is no room");
        for _ in 0..CONTROL_MAX {
            to_host.try_send(message(), Vec::new()).expect("there is for what the agent says");
        }
        assert!(to_host.try_send(message(), Vec::new()).is_err());
        for _ in 0..CONTROL_MAX + ROOM_NEWS {
            link.receiver.try_recv().unwrap();
        }
        let soon = Duration::from_secs(10);
        let sent = async {
            tokio::select! { sent = &mut one => (sent, true), sent = &mut two => (sent, false) }
        };
        let (sent, was_one) = timeout(soon, sent).await.expect("one goes on");
        assert!(sent);
        drop(link);
        let other = if was_one { two } else { one };
        assert!(!timeout(soon, other).await.expect("the other learns of the end"), "nobody received it");
    }
}
