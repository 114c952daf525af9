//! The UDP socket under quinn's feet.
//!
//! A small message that comes alone pays for every system call and every waking on its way, so there are fewer of both
//! here than in quinn's own socket:
//! - Reading and writing wait on descriptors of their own, and writing only while the kernel takes nothing. Where one
//!   descriptor waits for both, each datagram that the peer has read wakes the process that sent it: there is room again,
//!   for which nobody waits.
//! - A read that filled fewer buffers than it had found the socket empty, so it is not asked once more.

use std::{
    fmt, io,
    net::{SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::readiness;

/// A socket whose receive buffers hold one coalesced datagram each. The kernel never coalesces past 64 KiB, and a
/// buffer is as long already; quinn would take 64 times that, 128 MiB for each port.
pub(super) struct Port {
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The kernel took nothing the last time.
    blocked: AtomicBool,
}

impl Port {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Arc<Self>> {
        let state = UdpSocketState::new((&socket).into())?;
        let socket = readiness(socket, Interest::READABLE)?;
        Ok(Arc::new(Self { socket, state, blocked: AtomicBool::new(false) }))
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.get_ref().fmt(f)
    }
}

impl AsyncUdpSocket for Port {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { port: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.socket.get_ref().into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.blocked.store(true, Ordering::Release);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            match self.state.recv(self.socket.get_ref().into(), bufs, meta) {
                Ok(count) => {
                    // What arrives from here on is news, which tokio tells from what `ready` stands for.
                    if count < bufs.len().min(quinn::udp::BATCH_SIZE) {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Waits until the kernel takes something again, for one connection.
#[derive(Debug)]
struct Room {
    port: Arc<Port>,
    /// While it waits: another descriptor of the socket.
    waiting: Option<AsyncFd<OwnedFd>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() {
            if !self.port.blocked.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            let another = self.port.socket.get_ref().try_clone().map(OwnedFd::from);
            match another.and_then(|fd| readiness(fd, Interest::WRITABLE)) {
                Ok(waiting) => self.waiting = Some(waiting),
                Err(error) => {
                    // Out of descriptors, most likely: that passes, and so does a full socket.
                    tracing::debug!(%error, "a full socket is asked again");
                    cx.waker().wake_by_ref();
                    self.port.blocked.store(false, Ordering::Release);
                    return Poll::Pending;
                }
            }
        }
        if let Some(waiting) = &self.waiting {
            ready!(waiting.poll_write_ready(cx))?.retain_ready();
        }
        self.waiting = None;
        self.port.blocked.store(false, Ordering::Release);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use quinn::udp::BATCH_SIZE;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn pair() -> (Arc<Port>, UdpSocket) {
        let (one, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        other.connect(one.local_addr().unwrap()).unwrap();
        (Port::new(one).unwrap(), other)
    }

    async fn receive(port: &Port) -> Vec<u8> {
        let mut space = vec![[0; 16]; BATCH_SIZE];
        let mut bufs: Vec<_> = space.iter_mut().map(|space| io::IoSliceMut::new(space)).collect();
        let mut meta = vec![RecvMeta::default(); BATCH_SIZE];
        let receiving = poll_fn(|cx| port.poll_recv(cx, &mut bufs, &mut meta));
        let count = timeout(SOON, receiving).await.expect("a datagram arrives").unwrap();
        bufs.iter().zip(&meta).take(count).map(|(buf, meta)| buf[..meta.len][0]).collect()
    }

    #[tokio::test]
    async fn every_datagram_is_read_whether_a_read_empties_the_socket_or_not() {
        let (port, peer) = pair();
        for round in 0..20_u8 {
            for count in [1, 2, BATCH_SIZE, BATCH_SIZE + 1] {
                for _ in 0..count {
                    peer.send(&[round]).unwrap();
                }
                let mut got = Vec::new();
                while got.len() < count {
                    got.extend(receive(&port).await);
                }
                assert_eq!(got, vec![round; count]);
            }
        }
    }

    #[tokio::test]
    async fn who_finds_the_socket_full_hears_of_room_and_nobody_else_waits() {
        let (port, _peer) = pair();
        let mut room = Arc::clone(&port).create_io_poller();
        let mut other = Arc::clone(&port).create_io_poller();
        timeout(SOON, poll_fn(|cx| room.as_mut().poll_writable(cx))).await.expect("there is room").unwrap();
        // As after a send that the kernel did not take: it has room by now.
        port.blocked.store(true, Ordering::Release);
        timeout(SOON, poll_fn(|cx| room.as_mut().poll_writable(cx))).await.expect("it hears of it").unwrap();
        assert!(!port.blocked.load(Ordering::Acquire));
        timeout(SOON, poll_fn(|cx| other.as_mut().poll_writable(cx)))
            .await
            .expect("so does who comes later")
            .unwrap();
    }
}
