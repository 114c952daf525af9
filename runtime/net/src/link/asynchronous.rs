//! The half of a link for tasks on tokio.

use std::{
    os::fd::{AsFd, BorrowedFd},
    os::unix::net::UnixStream as StdStream,
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tokio::{io::Interest, net::UnixStream};

use super::{
    Error, Message, check_outgoing,
    frame::{Incoming, Outgoing, Stop, send_error},
};

/// Splits a stream into its two directions, driven by the tokio runtime that this is called in (it panics outside
/// one, as all of tokio's sockets do). The socket closes when both are dropped.
pub fn split_async(stream: StdStream) -> Result<(AsyncSender, AsyncReceiver), Error> {
    stream.set_nonblocking(true).map_err(|source| Error::System { call: "fcntl", source })?;
    let stream =
        UnixStream::from_std(stream).map_err(|source| Error::System { call: "epoll_ctl", source })?;
    let stream = Arc::new(stream);
    let sender = AsyncSender { stream: stream.clone(), broken: false };
    Ok((sender, AsyncReceiver { stream, incoming: Incoming::new() }))
}

/// Sends messages; waits while the socket is full.
pub struct AsyncSender {
    stream: Arc<UnixStream>,
    broken: bool,
}

impl AsyncSender {
    /// As [`Sender::send`](super::Sender::send). Dropped before it is done, it may leave half a message behind;
    /// all later sends are [`Error::Interrupted`] then. So send from a task that is not cancelled.
    pub async fn send(&mut self, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Interrupted);
        }
        check_outgoing(body.len(), descriptors.len())?;
        let mut outgoing = Outgoing::new(body, descriptors);
        while !outgoing.is_done() {
            let stream = &*self.stream;
            let step = stream.async_io(Interest::WRITABLE, || Ok(outgoing.step(stream)?)).await;
            // Set across every wait that follows the first byte, and cleared only at the end.
            self.broken = !outgoing.is_untouched();
            match step {
                Ok(()) => {}
                Err(source) if source.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(match Errno::from_io_error(&source) {
                        Some(errno) => send_error(errno),
                        None => Error::System { call: "sendmsg", source },
                    });
                }
            }
        }
        self.broken = false;
        Ok(())
    }

    /// Ends both directions; see [`Sender::shutdown`](super::Sender::shutdown).
    pub fn shutdown(&self) {
        // It fails only where the other side is gone already, which is what was wanted.
        let _ = rustix::net::shutdown(self.stream.as_fd(), rustix::net::Shutdown::Both);
    }
}

impl AsFd for AsyncSender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Receives messages.
pub struct AsyncReceiver {
    stream: Arc<UnixStream>,
    incoming: Incoming,
}

impl AsyncReceiver {
    /// Whether the other side has closed its end. What it sent before can still be received.
    pub fn is_hung_up(&self) -> bool {
        let mut wanted = [PollFd::new(&*self.stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut wanted, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// The next message that the other side has sent whole by now. At the end of the stream, and where it breaks off,
    /// there is none: [`recv`](Self::recv) tells.
    pub fn try_recv(&mut self) -> Result<Option<Message>, Error> {
        loop {
            if let Some(message) = self.incoming.next()? {
                return Ok(Some(message));
            }
            // Past tokio's idea of what is readable, which is as old as its last look at all sockets.
            match self.incoming.step(&*self.stream) {
                Ok(0) | Err(Stop::System(_)) => return Ok(None),
                Ok(_) => {}
                Err(Stop::Broken(error)) => return Err(error),
            }
        }
    }

    /// As [`Receiver::recv`](super::Receiver::recv). Dropping it before it is done loses nothing.
    pub async fn recv(&mut self) -> Result<Option<Message>, Error> {
        loop {
            if let Some(message) = self.incoming.next()? {
                return Ok(Some(message));
            }
            let (stream, incoming) = (&*self.stream, &mut self.incoming);
            let step = stream
                .async_io(Interest::READABLE, || match incoming.step(stream) {
                    Ok(bytes) => Ok(Ok(bytes)),
                    Err(Stop::Broken(error)) => Ok(Err(error)),
                    Err(Stop::System(errno)) => Err(errno.into()),
                })
                .await;
            match step {
                Ok(Ok(0)) => return self.incoming.end().map(|()| None),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(source) if source.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::System { call: "recvmsg", source }),
            }
        }
    }
}

impl AsFd for AsyncReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
