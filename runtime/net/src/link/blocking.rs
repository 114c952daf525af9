//! The half of a link for threads that may block.

use std::{
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use rustix::io::Errno;

use super::{
    Error, Message, check_outgoing,
    frame::{Incoming, Outgoing, Stop, send_error},
};

/// Splits a blocking stream into its two directions. The socket closes when both are dropped.
pub fn split(stream: UnixStream) -> (Sender, Receiver) {
    let stream = Arc::new(stream);
    (Sender { stream: stream.clone(), broken: false }, Receiver { stream, incoming: Incoming::new() })
}

/// Sends messages; blocks while the socket is full.
pub struct Sender {
    stream: Arc<UnixStream>,
    broken: bool,
}

impl Sender {
    /// Sends one message of up to [`MESSAGE_BYTES_MAX`](mobula_proto::wire::MESSAGE_BYTES_MAX) bytes with up to
    /// [`DESCRIPTORS_MAX`](super::DESCRIPTORS_MAX) descriptors, which the other side receives as duplicates.
    ///
    /// [`Error::TooLong`] and [`Error::TooManyDescriptors`] are found before anything is sent. After another error
    /// half way through a message, all later sends are [`Error::Interrupted`].
    pub fn send(&mut self, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Interrupted);
        }
        check_outgoing(body.len(), descriptors.len())?;
        let mut outgoing = Outgoing::new(body, descriptors);
        while !outgoing.is_done() {
            match outgoing.step(&self.stream) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(errno) => {
                    self.broken = !outgoing.is_untouched();
                    return Err(send_error(errno));
                }
            }
        }
        Ok(())
    }

    /// Ends both directions: the other side reads to the end of what was sent, and a thread that blocks in this
    /// side's [`Receiver::recv`] wakes with the end of the stream.
    pub fn shutdown(&self) {
        // It fails only where the other side is gone already, which is what was wanted.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Receives messages; blocks until one is there.
pub struct Receiver {
    stream: Arc<UnixStream>,
    incoming: Incoming,
}

impl Receiver {
    /// The next message; `None` when the other side closed its end between two messages. After an error the link
    /// is of no use.
    pub fn recv(&mut self) -> Result<Option<Message>, Error> {
        loop {
            if let Some(message) = self.incoming.next()? {
                return Ok(Some(message));
            }
            match self.incoming.step(&self.stream) {
                Ok(0) => return self.incoming.end().map(|()| None),
                Ok(_) | Err(Stop::System(Errno::INTR)) => {}
                Err(Stop::System(errno)) => {
                    return Err(Error::System { call: "recvmsg", source: errno.into() });
                }
                Err(Stop::Broken(error)) => return Err(error),
            }
        }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
