//! Measures the paths between two processes of one machine: the socket and the ring, spinning and parked.
//!
//! `cargo run --release -p mobula-net --example ring_probe [rounds]` starts itself a second time, passes rings and
//! doorbells over a link, and prints for each path the median, least and most of the rounds (5 when not said).

use std::{
    error::Error,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mobula_net::{
    link,
    ring::{
        self, Receiver, Sender,
        doorbell::{Doorbell, Spin},
    },
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PING_BYTES: usize = 64;
const STREAM_BYTES: usize = 100;
/// Both sides give up after this long in one wait: the other is gone, or a wake-up was lost.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// What a round does, and how often.
#[derive(Clone, Copy)]
struct Round {
    kind: u8,
    count: u64,
}

const SOCKET_ECHO: u8 = 0;
const RING_SPIN: u8 = 1;
const RING_PARK: u8 = 2;
const RING_STREAM: u8 = 3;
const SOCKET_STREAM: u8 = 4;
const RING_ADAPTIVE: u8 = 5;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("child") => child(),
        rounds => parent(rounds.map_or(Ok(5), str::parse)?),
    }
}

/// One process's view of the connection.
struct End {
    to: Sender,
    from: Receiver,
    own: Doorbell,
    other: Doorbell,
    link_to: link::Sender,
    link_from: link::Receiver,
    spin: Spin,
}

impl End {
    /// Sleeps until there is something to read (or, for `flush`, until nothing waits beside the ring any more).
    fn park(&mut self, flush: bool) -> Result<()> {
        self.own.end_polling();
        let ready = if flush { self.to.flush()? } else { !self.from.is_empty() };
        if !ready {
            let start = Instant::now();
            if self.own.wait(Some(WAIT_MAX)) == ring::doorbell::Wake::TimedOut {
                return Err("the other side does not answer".into());
            }
            self.spin.slept(start.elapsed());
        }
        self.own.begin_polling();
        Ok(())
    }

    fn await_frame(&mut self, kind: u8) -> Result<()> {
        while self.from.is_empty() {
            match kind {
                RING_SPIN => std::hint::spin_loop(),
                RING_PARK => self.park(false)?,
                _ => {
                    if !self.spin.until(|| !self.from.is_empty()) {
                        self.park(false)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn ring_send(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        self.to.send(body, &[])?;
        if kind != RING_SPIN {
            self.other.ring();
        }
        Ok(())
    }
}

fn child() -> Result<()> {
    let socket: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned()?;
    let (link_to, mut link_from) = link::split(UnixStream::from(socket));
    let first = link_from.recv()?.ok_or("no hello")?;
    let [to, from, own, other]: [OwnedFd; 4] =
        first.descriptors.try_into().map_err(|_| "four descriptors were to come")?;
    let mut end = End {
        to: Sender::map(to)?,
        from: Receiver::map(from)?,
        own: Doorbell::map(own)?,
        other: Doorbell::map(other)?,
        link_to,
        link_from,
        spin: Spin::default(),
    };
    while let Some(order) = end.link_from.recv()? {
        let &[kind, ref count @ ..] = &order.body[..] else { return Err("an empty order".into()) };
        let count = u64::from_le_bytes(count.try_into()?);
        serve(&mut end, Round { kind, count })?;
    }
    Ok(())
}

fn serve(end: &mut End, round: Round) -> Result<()> {
    match round.kind {
        SOCKET_ECHO => {
            for _ in 0..round.count {
                let message = end.link_from.recv()?.ok_or("the link ended")?;
                end.link_to.send(&message.body, &[])?;
            }
        }
        SOCKET_STREAM => {
            for _ in 0..round.count {
                end.link_from.recv()?.ok_or("the link ended")?;
            }
            end.link_to.send(b"done", &[])?;
        }
        RING_STREAM => {
            let (mut got, mut sum) = (0, 0u64);
            while got < round.count {
                end.await_frame(round.kind)?;
                while end
                    .from
                    .recv_with(|body| sum += body.iter().map(|&b| u64::from(b)).sum::<u64>())?
                    .is_some()
                {
                    got += 1;
                }
                if end.from.take_space_wanted() {
                    end.other.ring();
                }
            }
            end.link_to.send(&sum.to_le_bytes(), &[])?;
        }
        kind => {
            let (to, from) = (&mut [0u8; PING_BYTES], 0..round.count);
            for _ in from {
                end.await_frame(kind)?;
                end.from.recv_with(|body| to.copy_from_slice(body))?;
                end.ring_send(kind, to)?;
            }
        }
    }
    Ok(())
}

/// One round; returns seconds for each message.
fn measure(end: &mut End, round: Round) -> Result<f64> {
    let mut order = vec![round.kind];
    order.extend(round.count.to_le_bytes());
    end.link_to.send(&order, &[])?;
    // The other side takes the order before the clock starts.
    std::thread::sleep(Duration::from_millis(20));
    let (ping, frame) = ([1u8; PING_BYTES], [1u8; STREAM_BYTES]);
    let start = Instant::now();
    match round.kind {
        SOCKET_ECHO => {
            for _ in 0..round.count {
                end.link_to.send(&ping, &[])?;
                end.link_from.recv()?.ok_or("the link ended")?;
            }
        }
        SOCKET_STREAM => {
            for _ in 0..round.count {
                end.link_to.send(&frame, &[])?;
            }
            end.link_from.recv()?.ok_or("the link ended")?;
        }
        RING_STREAM => {
            for _ in 0..round.count {
                end.ring_send(round.kind, &frame)?;
                while end.to.overflow_bytes() > 0 {
                    end.park(true)?;
                    end.other.ring();
                }
            }
            let sum = end.link_from.recv()?.ok_or("the link ended")?;
            let expected = round.count * STREAM_BYTES as u64;
            if sum.body[..] != expected.to_le_bytes() {
                return Err("the other side read something else".into());
            }
        }
        kind => {
            for _ in 0..round.count {
                end.ring_send(kind, &ping)?;
                end.await_frame(kind)?;
                end.from.recv_with(|_| ())?;
            }
        }
    }
    Ok(start.elapsed().as_secs_f64() / round.count as f64)
}

fn parent(rounds: usize) -> Result<()> {
    let (here, there) = UnixStream::pair()?;
    let mut process = Command::new(std::env::current_exe()?)
        .arg("child")
        .stdin(Stdio::from(OwnedFd::from(there)))
        .spawn()?;
    let (link_to, link_from) = link::split(here);
    let (out, back) =
        (ring::create(ring::CAPACITY_BYTES_DEFAULT)?, ring::create(ring::CAPACITY_BYTES_DEFAULT)?);
    let (own, own_fd) = Doorbell::create()?;
    let (other, other_fd) = Doorbell::create()?;
    let mut end = End {
        to: Sender::map(out.try_clone()?)?,
        from: Receiver::map(back.try_clone()?)?,
        own,
        other,
        link_to,
        link_from,
        spin: Spin::default(),
    };
    end.link_to.send(b"hello", &[back.as_fd(), out.as_fd(), other_fd.as_fd(), own_fd.as_fd()])?;

    let subjects = [
        ("socket round trip, 64 bytes", SOCKET_ECHO, 10_000),
        ("ring round trip, spinning", RING_SPIN, 300_000),
        ("ring round trip, parked", RING_PARK, 10_000),
        ("ring round trip, spinning then parking", RING_ADAPTIVE, 100_000),
        ("ring one way, 100 bytes", RING_STREAM, 3_000_000),
        ("socket one way, 100 bytes", SOCKET_STREAM, 200_000),
    ];
    for (name, kind, count) in subjects {
        // One round to warm up, touch the rings' pages and settle the processors' clocks.
        measure(&mut end, Round { kind, count: count / 4 })?;
        let mut seconds = (0..rounds.max(1))
            .map(|_| measure(&mut end, Round { kind, count }))
            .collect::<Result<Vec<f64>>>()?;
        seconds.sort_by(f64::total_cmp);
        let (least, median, most) = (seconds[0], seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
        if kind == RING_STREAM || kind == SOCKET_STREAM {
            let [least, median, most] = [1.0 / most, 1.0 / median, 1.0 / least].map(|f| f / 1e6);
            println!("{name:<40} {median:>9.3} M/s  ({least:.3} to {most:.3})");
        } else {
            let [least, median, most] = [least, median, most].map(|s| s * 1e6);
            println!("{name:<40} {median:>9.3} µs   ({least:.3} to {most:.3})");
        }
    }
    drop(end);
    process.wait()?;
    Ok(())
}
