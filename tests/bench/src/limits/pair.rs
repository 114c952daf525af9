//! Round trips between two processes: a bare Unix socket, and the rings of Mobula, spinning and parked.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use mobula_net::{
    link,
    ring::{
        self, Receiver, Sender,
        doorbell::{Doorbell, Wake},
    },
};

use super::{Peer, own_socket};
use crate::{
    measure::{Result, latencies, quantile, rate},
    row::{Place, Probe, Row, Stage},
};

/// What the child is to be.
pub const SOCKET_ROLE: &str = "peer-socket";
/// What the child is to be.
pub const RING_ROLE: &str = "peer-ring";

/// Names of the limits.
pub const SOCKET: &str = "Unix socket round trip";
/// Names of the limits.
pub const SPINNING: &str = "ring round trip, spinning";
/// Names of the limits.
pub const PARKED: &str = "ring round trip, parked";
/// Names of the limits.
pub const MESSAGES: &str = "ring messages there and back, a thousand at once";
/// Names of the limits: as often as all of these come back, where that is what a row counts.
pub const BATCHES: &str = "ring messages there and back, batches of a thousand";

const PING_BYTES: usize = 64;
/// Bytes of a message: with a frame's header, two are what goes through the rings for a small call and its result.
const MESSAGE_BYTES: usize = 176;
/// Messages that are on their way at once.
pub const MESSAGE_BATCH: usize = 1000;
/// Round trips between two looks at the clock, where they are shorter than a look.
const SPIN_BATCH: usize = 1000;
/// Either side gives up after this long in one wait: the other is gone, or a wake-up was lost.
const WAIT_MAX: Duration = Duration::from_secs(10);

const SPIN: u8 = 0;
const PARK: u8 = 1;
const END: u8 = 2;
/// As [`SPIN`], for one of many messages.
const MANY: u8 = 3;

/// Whether those who wait for a message of this kind sleep.
fn is_parked(kind: u8) -> bool {
    matches!(kind, PARK | END)
}

/// What is sent as a message of this kind.
fn message(kind: u8) -> &'static [u8] {
    match kind {
        SPIN => &[SPIN; PING_BYTES],
        PARK => &[PARK; PING_BYTES],
        MANY => &[MANY; MESSAGE_BYTES],
        _ => &[END; PING_BYTES],
    }
}

/// Medians of single round trips, and how many can be made where they overlap.
pub const PROBE: Probe = Probe {
    rows: &[
        Row::less(SOCKET, "µs").is_limit(),
        Row::less(SPINNING, "µs").is_limit(),
        Row::less(PARKED, "µs").is_limit(),
        Row::more(MESSAGES, "1/s").is_limit(),
    ],
    stage: Stage::Alone,
    run,
};

fn run(place: &Place) -> Result<Vec<f64>> {
    Ok(vec![socket(place)?, spinning(place)?, parked(place)?, messages(place)?])
}

fn socket(place: &Place) -> Result<f64> {
    let (mut here, there) = UnixStream::pair()?;
    let _peer = Peer::start(&[SOCKET_ROLE], there)?;
    let mut ping = [1; PING_BYTES];
    let all = latencies(place.scale, || {
        here.write_all(&ping)?;
        Ok(here.read_exact(&mut ping)?)
    })?;
    Ok(quantile(&all, 0.5) * 1e6)
}

/// The other end of [`socket`].
pub fn serve_socket() -> Result<()> {
    let mut socket = own_socket()?;
    let mut ping = [0; PING_BYTES];
    // An error is the end of the other process.
    while socket.read_exact(&mut ping).is_ok() {
        socket.write_all(&ping)?;
    }
    Ok(())
}

/// One process's ends of two rings.
struct End {
    to: Sender,
    from: Receiver,
    own: Doorbell,
    other: Doorbell,
}

impl End {
    fn send(&mut self, kind: u8) -> Result<()> {
        self.to.send(message(kind), &[])?;
        if is_parked(kind) {
            self.other.ring();
        }
        Ok(())
    }

    /// The first byte of what came.
    fn recv(&mut self, kind: u8) -> Result<u8> {
        while self.from.is_empty() {
            if !is_parked(kind) {
                std::hint::spin_loop();
                continue;
            }
            self.own.end_polling();
            let woken = !self.from.is_empty() || self.own.wait(Some(WAIT_MAX)) != Wake::TimedOut;
            self.own.begin_polling();
            if !woken {
                return Err("the other process does not answer".into());
            }
        }
        let first = self.from.recv_with(|body| body.first().copied())?;
        first.flatten().ok_or_else(|| "an empty frame".into())
    }
}

fn with_ring<T>(measure: impl FnOnce(&mut End) -> Result<T>) -> Result<T> {
    let (here, there) = UnixStream::pair()?;
    let _peer = Peer::start(&[RING_ROLE], there)?;
    let (mut link, _) = link::split(here);
    let (out, back) =
        (ring::create(ring::CAPACITY_BYTES_DEFAULT)?, ring::create(ring::CAPACITY_BYTES_DEFAULT)?);
    let (own, own_fd) = Doorbell::create()?;
    let (other, other_fd) = Doorbell::create()?;
    let mut end =
        End { to: Sender::map(out.try_clone()?)?, from: Receiver::map(back.try_clone()?)?, own, other };
    link.send(b"rings", &[back.as_fd(), out.as_fd(), other_fd.as_fd(), own_fd.as_fd()])?;
    let measured = measure(&mut end);
    end.send(END)?;
    measured
}

/// Measures while both sides spin for messages of this kind.
fn while_spinning<T>(kind: u8, measure: impl FnOnce(&mut End) -> Result<T>) -> Result<T> {
    with_ring(|end| {
        // The child parks until the first ring of its doorbell.
        end.send(PARK)?;
        end.recv(PARK)?;
        end.send(kind)?;
        end.other.ring();
        end.recv(kind)?;
        let measured = measure(end);
        // To be woken by the end it must park again.
        end.send(PARK)?;
        end.recv(PARK)?;
        measured
    })
}

fn spinning(place: &Place) -> Result<f64> {
    let all = while_spinning(SPIN, |end| {
        latencies(place.scale, || {
            for _ in 0..SPIN_BATCH {
                end.send(SPIN)?;
                end.recv(SPIN)?;
            }
            Ok(())
        })
    })?;
    Ok(quantile(&all, 0.5) * 1e6 / SPIN_BATCH as f64)
}

/// A second: the other side answers each with one of as many bytes, as it comes.
fn messages(place: &Place) -> Result<f64> {
    while_spinning(MANY, |end| {
        rate(place.scale, MESSAGE_BATCH as f64, || {
            for _ in 0..MESSAGE_BATCH {
                end.send(MANY)?;
            }
            for _ in 0..MESSAGE_BATCH {
                end.recv(MANY)?;
            }
            Ok(())
        })
    })
}

fn parked(place: &Place) -> Result<f64> {
    with_ring(|end| {
        let all = latencies(place.scale, || {
            end.send(PARK)?;
            end.recv(PARK).map(drop)
        })?;
        Ok(quantile(&all, 0.5) * 1e6)
    })
}

/// The other end of the rings: answers in kind, and waits for the next in the way of the last.
pub fn serve_ring() -> Result<()> {
    let (_, mut link) = link::split(own_socket()?);
    let Some(first) = link.recv()? else { return Ok(()) };
    let [to, from, own, other]: [OwnedFd; 4] =
        first.descriptors.try_into().map_err(|_| "four descriptors were to come")?;
    let mut end = End {
        to: Sender::map(to)?,
        from: Receiver::map(from)?,
        own: Doorbell::map(own)?,
        other: Doorbell::map(other)?,
    };
    let mut kind = PARK;
    loop {
        kind = end.recv(kind)?;
        if kind == END {
            return Ok(());
        }
        end.send(kind)?;
    }
}
