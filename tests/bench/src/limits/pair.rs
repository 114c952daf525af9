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
    measure::{Result, latencies, quantile},
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

const PING_BYTES: usize = 64;
/// Round trips between two looks at the clock, where they are shorter than a look.
const SPIN_BATCH: usize = 1000;
/// Either side gives up after this long in one wait: the other is gone, or a wake-up was lost.
const WAIT_MAX: Duration = Duration::from_secs(10);

const SPIN: u8 = 0;
const PARK: u8 = 1;
const END: u8 = 2;

/// Medians of single round trips.
pub const PROBE: Probe = Probe {
    rows: &[
        Row::less(SOCKET, "µs").is_limit(),
        Row::less(SPINNING, "µs").is_limit(),
        Row::less(PARKED, "µs").is_limit(),
    ],
    stage: Stage::Alone,
    run,
};

fn run(place: &Place) -> Result<Vec<f64>> {
    Ok(vec![socket(place)?, spinning(place)?, parked(place)?])
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
    fn send(&mut self, body: &[u8]) -> Result<()> {
        self.to.send(body, &[])?;
        if body.first() != Some(&SPIN) {
            self.other.ring();
        }
        Ok(())
    }

    /// The first byte of what came.
    fn recv(&mut self, kind: u8) -> Result<u8> {
        while self.from.is_empty() {
            if kind == SPIN {
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
    end.send(&[END; PING_BYTES])?;
    measured
}

fn spinning(place: &Place) -> Result<f64> {
    with_ring(|end| {
        // The child parks until the first ring of its doorbell.
        end.send(&[PARK; PING_BYTES])?;
        end.recv(PARK)?;
        let ping = [SPIN; PING_BYTES];
        end.send(&ping)?;
        end.other.ring();
        end.recv(SPIN)?;
        let all = latencies(place.scale, || {
            for _ in 0..SPIN_BATCH {
                end.send(&ping)?;
                end.recv(SPIN)?;
            }
            Ok(())
        })?;
        // To be woken by the end it must park again.
        end.send(&[PARK; PING_BYTES])?;
        end.recv(PARK)?;
        Ok(quantile(&all, 0.5) * 1e6 / SPIN_BATCH as f64)
    })
}

fn parked(place: &Place) -> Result<f64> {
    with_ring(|end| {
        let all = latencies(place.scale, || {
            end.send(&[PARK; PING_BYTES])?;
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
        end.send(&[kind; PING_BYTES])?;
    }
}
