//! The agent's ends of the two rings between it and a host, through which the host's messages to and from other nodes
//! (and other jobs) go: many for each system call, and unread. The agent's own answers to what the host asked may take the
//! same way ([`Writer::say`]), and a descriptor with them in the lane beside the ring ([`Writer::say_now`]).
//!
//! The rings are made by the host, which the agent does not trust: what comes out of one is copied before it is looked
//! at, and a host that writes into its rings what does not belong there is ended, or gets garbled messages; it harms
//! nobody else.
//!
//! The task that reads the host's socket reads the ring too, woken by the host's *bell*, an eventfd that nobody ever
//! reads; see [`Doorbell`] for why nothing is left lying. What the host said over its socket *before* it put a message
//! into its ring is handled first, so that nobody hears of an object that this agent has not heard of.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mobula_net::{
    link::{self, Giver},
    readiness,
    ring::{self, doorbell::Doorbell},
};
use mobula_proto::{HostId, relay};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    time::timeout,
};

/// How often a writer looks for room by itself.
const ROOM_WAIT: Duration = Duration::from_millis(1);

/// Why a host's rings are of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Ring(#[from] ring::Error),
    #[error(transparent)]
    Malformed(#[from] relay::Malformed),
    #[error("the host takes nothing any more")]
    Closed,
    #[error("{0} descriptors came with its hello, not 6")]
    Descriptors(usize),
    #[error("the lane beside its ring cannot be used: {0}")]
    Lane(#[source] link::Error),
    #[error("its bell cannot be waited for: {0}")]
    Bell(#[source] std::io::Error),
}

/// What the two tasks of a host tell each other.
#[derive(Default)]
struct Shared {
    /// There may be room in the ring to the host.
    room: Notify,
    closed: AtomicBool,
}

/// What the host says. When it is dropped, the [`Writer`] gives up.
pub(super) struct Reader {
    receiver: ring::Receiver,
    /// The host rings this one, and the bell where need be.
    own: Doorbell,
    bell: AsyncFd<OwnedFd>,
    host: Doorbell,
    shared: Arc<Shared>,
}

/// What lay in the ring.
pub(super) struct Taken {
    /// A batch.
    pub(super) batch: Vec<u8>,
    /// How many messages it has.
    pub(super) messages: usize,
}

/// What the host is told.
pub(super) struct Writer {
    sender: ring::Sender,
    lane: Giver,
    host: Doorbell,
    shared: Arc<Shared>,
}

/// Maps what came with a host's hello. Must be called inside a tokio runtime.
pub(super) fn map(descriptors: Vec<OwnedFd>) -> Result<(Reader, Writer), Error> {
    let count = descriptors.len();
    let six: Result<[OwnedFd; 6], _> = descriptors.try_into();
    let [from_host, to_host, own, host, bell, lane] = six.map_err(|_| Error::Descriptors(count))?;
    let receiver = ring::Receiver::map(from_host)?;
    let sender = ring::Sender::map(to_host)?;
    let (own, host) = (Doorbell::map(own)?, Doorbell::map(host)?);
    let lane = Giver::new(lane).map_err(Error::Lane)?;
    // What the host passed may be anything: it is neither read nor written, only waited for.
    let bell = readiness(bell, Interest::READABLE).map_err(Error::Bell)?;
    let shared = Arc::<Shared>::default();
    // Asleep until the bell rings.
    own.end_polling();
    let reader = Reader { receiver, own, bell, host: host.clone(), shared: Arc::clone(&shared) };
    Ok((reader, Writer { sender, lane, host, shared }))
}

impl Reader {
    /// Waits until the host has rung.
    pub(super) async fn rung(&self) -> Result<(), Error> {
        self.bell.readable().await.map_err(Error::Bell)?.clear_ready();
        Ok(())
    }

    /// From now on the host need not say that there is something.
    pub(super) fn begin(&self) {
        self.own.begin_polling();
    }

    /// Takes what lies in the ring, up to about [`relay::BATCH_BYTES`], as one batch; empty where there is nothing.
    pub(super) fn take(&mut self) -> Result<Taken, Error> {
        let mut batch = Vec::with_capacity(self.receiver.ready_bytes().min(relay::BATCH_BYTES + 4096));
        let mut messages = 0;
        while batch.len() < relay::BATCH_BYTES {
            let start = batch.len();
            if self.receiver.recv_copy(&mut batch)?.is_none() {
                break;
            }
            relay::close(&mut batch, start)?;
            messages += 1;
        }
        if self.receiver.take_space_wanted() {
            self.host.ring();
        }
        Ok(Taken { batch, messages })
    }

    /// About how much lies in the ring.
    pub(super) fn ready_bytes(&self) -> usize {
        self.receiver.ready_bytes()
    }

    /// From now on the host has to say so. `false` where there is something already, and it may not have.
    pub(super) fn end(&self) -> bool {
        self.own.end_polling();
        // The host may have made room while it had no need to tell.
        self.shared.room.notify_one();
        self.receiver.is_empty()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.room.notify_one();
    }
}

impl Writer {
    /// Whether nothing waits beside the ring, so that what is sent now does not wait either, unless it is the first.
    pub(super) fn is_flushed(&self) -> bool {
        self.sender.overflow_bytes() == 0
    }

    /// Hands over a batch without waiting. `false` where part of it waits beside the ring for a [`Writer::flush`].
    pub(super) fn send_now(&mut self, from: HostId, same_job: bool, batch: &[u8]) -> Result<bool, Error> {
        let head = relay::head(from, if same_job { relay::SAME_JOB } else { 0 });
        for entry in relay::entries(batch) {
            self.sender.send(&head, entry?.body)?;
        }
        self.host.ring();
        Ok(self.is_flushed())
    }

    /// As [`Writer::send_now`], of what the agent itself says, with a descriptor that belongs to it. `None`, and nothing was
    /// said, where the lane does not take that.
    pub(super) fn say_now(
        &mut self,
        body: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Option<bool>, Error> {
        let head = match descriptor {
            None => relay::agent_head(),
            // In front of its message, so that whoever takes that finds it.
            Some(descriptor) if self.lane.give(descriptor) => relay::agent_head_with_descriptor(),
            Some(_) => return Ok(None),
        };
        self.sender.send(&head, body)?;
        self.host.ring();
        Ok(Some(self.is_flushed()))
    }

    /// Hands over a batch for this host from another, waiting for room where there is none.
    pub(super) async fn send(&mut self, from: HostId, same_job: bool, batch: &[u8]) -> Result<(), Error> {
        let head = relay::head(from, if same_job { relay::SAME_JOB } else { 0 });
        for entry in relay::entries(batch) {
            self.sender.send(&head, entry?.body)?;
            if self.sender.overflow_bytes() > 0 {
                self.flush().await?;
            }
        }
        self.host.ring();
        Ok(())
    }

    /// Hands over what the agent itself says: an encoded [`ToHost`](mobula_proto::host::ToHost).
    pub(super) async fn say(&mut self, body: &[u8]) -> Result<(), Error> {
        self.sender.send(&relay::agent_head(), body)?;
        if self.sender.overflow_bytes() > 0 {
            self.flush().await?;
        }
        self.host.ring();
        Ok(())
    }

    /// Waits until nothing waits beside the ring.
    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        loop {
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(Error::Closed);
            }
            let done = self.sender.flush()?;
            self.host.ring();
            if done {
                return Ok(());
            }
            // The reader passes the sign on when it has nothing left to do, for which it may have to wait as this does.
            let _sign = timeout(ROOM_WAIT, self.shared.room.notified()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use mobula_proto::NodeId;

    use super::*;

    fn host(seq: u32) -> HostId {
        HostId { node: NodeId { number: 1, incarnation: 1 }, seq }
    }

    /// The host's ends: the ring to the agent, the ring from it, the agent's doorbell.
    fn pair(bytes: u32) -> (ring::Sender, ring::Receiver, Doorbell, Reader, Writer) {
        let (sender, receiver, bell, reader, writer, _lane) = pair_with_lane(bytes);
        (sender, receiver, bell, reader, writer)
    }

    fn pair_with_lane(bytes: u32) -> (ring::Sender, ring::Receiver, Doorbell, Reader, Writer, link::Taker) {
        let (forth, back) = (ring::create(bytes).unwrap(), ring::create(bytes).unwrap());
        let ((bell, bell_fd), (_, own_fd)) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
        let sender = ring::Sender::map(forth.try_clone().unwrap()).unwrap();
        let receiver = ring::Receiver::map(back.try_clone().unwrap()).unwrap();
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let (lane, taker) = link::lane().unwrap();
        let (reader, writer) = map(vec![forth, back, bell_fd, own_fd, wake, lane]).unwrap();
        (sender, receiver, bell, reader, writer, taker)
    }

    #[tokio::test]
    async fn a_descriptor_lies_in_its_lane_before_its_message_says_so() {
        let (_sender, mut receiver, _bell, _reader, mut writer, lane) = pair_with_lane(1 << 16);
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert_eq!(writer.say_now(b"with", Some(null.as_fd())).unwrap(), Some(true));
        assert_eq!(writer.say_now(b"without", None).unwrap(), Some(true));
        let mut got = Vec::new();
        for _ in 0..2 {
            let take = |message: &[u8]| {
                let (_, word, body) = relay::split(message).unwrap();
                got.push((word & relay::WITH_DESCRIPTOR != 0, body.to_vec()));
            };
            receiver.recv_with(take).unwrap().unwrap();
        }
        assert_eq!(got, [(true, b"with".to_vec()), (false, b"without".to_vec())]);
        lane.take().unwrap();
        drop(lane);
        assert_eq!(writer.say_now(b"with", Some(null.as_fd())).unwrap(), None);
        assert!(receiver.is_empty(), "it goes another way");
        assert_eq!(writer.say_now(b"without", None).unwrap(), Some(true));
    }

    #[tokio::test]
    async fn what_lies_in_the_ring_is_one_batch_and_the_agent_is_told_once() {
        let (mut sender, _receiver, bell, mut reader, _writer) = pair(1 << 20);
        let mut told = 0;
        for at in 0..1000_u32 {
            sender.send(&relay::head(host(at % 3), 0), &at.to_le_bytes()).unwrap();
            told += u32::from(bell.notice());
        }
        assert_eq!(told, 1);
        reader.begin();
        let Taken { batch, messages } = reader.take().unwrap();
        let all: Vec<_> = relay::entries(&batch).map(Result::unwrap).collect();
        for (at, entry) in (0..).zip(&all) {
            assert_eq!((entry.to, entry.body), (host(at % 3), &u32::to_le_bytes(at)[..]));
        }
        assert_eq!((all.len(), messages), (1000, 1000));
        assert!(reader.take().unwrap().batch.is_empty() && reader.end() && bell.notice());
    }

    #[tokio::test]
    async fn batches_are_bounded_and_long_messages_pass() {
        let (mut sender, _receiver, _bell, mut reader, _writer) = pair(1 << 16);
        let long = vec![3; 300_000];
        for body in [&[1; 20_000][..], &[2; 20_000], &long, &[4; 20_000], &[5; 1]] {
            sender.send(&relay::head(host(1), 0), body).unwrap();
        }
        let mut got = Vec::new();
        for _ in 0..1000 {
            let Taken { batch, .. } = reader.take().unwrap();
            let entries: Vec<_> = relay::entries(&batch).map(Result::unwrap).collect();
            let but_last: usize = entries.iter().rev().skip(1).map(|entry| entry.bytes).sum();
            assert!(but_last < relay::BATCH_BYTES);
            got.extend(entries.iter().map(|entry| (entry.body[0], entry.body.len())));
            sender.flush().unwrap();
        }
        assert_eq!(got, [(1, 20_000), (2, 20_000), (3, 300_000), (4, 20_000), (5, 1)]);
    }

    #[tokio::test]
    async fn what_is_no_message_breaks_the_link() {
        let (mut sender, _receiver, _bell, mut reader, _writer) = pair(1 << 16);
        sender.send(b"short", &[]).unwrap();
        assert!(matches!(reader.take(), Err(Error::Malformed(_))));
        let (mut sender, _receiver, _bell, mut reader, _writer) = pair(1 << 26);
        sender.send(&relay::head(host(1), 0), &vec![0; relay::BODY_BYTES_MAX + 1]).unwrap();
        assert!(matches!(reader.take(), Err(Error::Malformed(_))));
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(matches!(map(vec![null()]), Err(Error::Descriptors(1))));
        assert!(matches!(map((0..6).map(|_| null()).collect()), Err(Error::Ring(_))));
    }

    #[tokio::test]
    async fn a_full_ring_holds_the_writer_back_until_there_is_room_or_the_host_is_gone() {
        let (_sender, mut receiver, bell, reader, mut writer) = pair(1 << 16);
        let mut batch = Vec::new();
        for at in 0..2_u8 {
            relay::push(&mut batch, host(2), &vec![at; 60_000]).unwrap();
        }
        let soon = Duration::from_millis(50);
        let mut got = Vec::new();
        {
            let writing = writer.send(host(1), true, &batch);
            tokio::pin!(writing);
            assert!(timeout(soon, &mut writing).await.is_err(), "it waits");
            for _ in 0..20 {
                while let Some(one) = receiver
                    .recv_with(|message| {
                        let (from, word, body) = relay::split(message).unwrap();
                        assert_eq!((from, word, body.len()), (host(1), relay::SAME_JOB, 60_000));
                        body[0]
                    })
                    .unwrap()
                {
                    got.push(one);
                }
                if receiver.take_space_wanted() {
                    // The host says so, and the agent's reader comes by.
                    bell.notice();
                    reader.begin();
                    assert!(reader.end());
                }
                if timeout(Duration::from_millis(5), &mut writing).await.is_ok() {
                    break;
                }
            }
        }
        receiver.recv_with(|message| got.push(relay::split(message).unwrap().2[0])).unwrap();
        assert_eq!(got, [0, 1]);
        let writing = writer.send(host(1), true, &batch);
        tokio::pin!(writing);
        assert!(timeout(soon, &mut writing).await.is_err(), "it waits again");
        drop(reader);
        assert!(matches!(timeout(soon, writing).await.unwrap(), Err(Error::Closed)));
    }
}
