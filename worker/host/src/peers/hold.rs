//! Holding back those who call a host that does not take its messages.
//!
//! What finds a ring full waits beside it, up to a bound past which it would be lost. Long before, whoever calls an actor
//! on that host waits for a place, as where too many calls are unfinished. Nobody else does: of what goes through the
//! agent, each host has a share of its own. Results, refs that come and go, cancellations and tasks under a lease are
//! always let through, for others may wait for them, and they are bounded where they are made. Rings are drained
//! throughout, also by those who wait, so two hosts that hold back for each other both go on.

use std::sync::{Arc, atomic::Ordering};

use mobula_net::ring::{self, OVERFLOW_BYTES_MAX, OVERFLOW_ENTRY_BYTES};
use mobula_proto::{HostId, IdMap, relay};

use super::Peers;
use crate::runtime::Runtime;

/// So much may wait for one host before those who call actors there do. Unit: bytes. Room for some 500,000 small calls.
pub const HOLD_BYTES: usize = OVERFLOW_BYTES_MAX / 4;
/// Past so much beside one ring, for whomever, all wait who call hosts for which something waits there. Unit: bytes.
const CROWDED_BYTES: usize = OVERFLOW_BYTES_MAX / 2;

/// So much of what is for the agent itself may wait before those who put values do. Unit: bytes. Some 10,000 messages.
const AGENT_HOLD_BYTES: usize = 1024 * 1024;
/// Past so much beside the agent's ring, whoever tells the agent something waits: soon it would be lost. Unit: bytes.
const FULL_BYTES: usize = OVERFLOW_BYTES_MAX / 4 * 3;

/// What waits for one host.
#[derive(Debug, Default)]
struct Share {
    /// At most so much, of which what was sent since the hold began is counted apart.
    bytes: usize,
    since_hold: usize,
    /// Its callers wait until all that had gone beside the ring by then has left.
    hold: Option<u64>,
}

/// A ring's end, and for whom what waits beside it is. Positions count all bytes that ever waited.
pub(super) struct Outgoing {
    ring: ring::Sender,
    tail: u64,
    shares: IdMap<HostId, Share>,
    /// Whose callers go on, which nobody has told them yet.
    released: Vec<HostId>,
}

impl Outgoing {
    pub(super) fn new(ring: ring::Sender) -> Self {
        Self { ring, tail: 0, shares: IdMap::default(), released: Vec::new() }
    }

    pub(super) fn overflow_bytes(&self) -> usize {
        self.ring.overflow_bytes()
    }

    /// Whether [`Outgoing::flush`] has something to do.
    pub(super) fn wants_flush(&self) -> bool {
        self.ring.overflow_bytes() > 0 || !self.shares.is_empty() || !self.released.is_empty()
    }

    /// Whether hardly anything more may wait.
    pub(super) fn is_full(&self) -> bool {
        self.ring.overflow_bytes() > FULL_BYTES
    }

    /// Whether those who make messages for `to` are to wait.
    pub(super) fn is_held(&self, to: HostId) -> bool {
        self.shares.get(&to).is_some_and(|share| share.hold.is_some())
    }

    /// Sends a message that is for `to`. `true` where those who call it are to wait from now on.
    #[inline]
    pub(super) fn send(&mut self, to: HostId, head: &[u8], body: &[u8]) -> Result<bool, ring::Error> {
        self.ring.send(head, body)?;
        let waiting = self.ring.overflow_bytes();
        Ok(waiting > 0 && self.count(to, head.len() + body.len() + OVERFLOW_ENTRY_BYTES, waiting))
    }

    #[cold]
    fn count(&mut self, to: HostId, bytes: usize, waiting: usize) -> bool {
        self.tail += bytes as u64;
        let share = self.shares.entry(to).or_default();
        share.bytes += bytes;
        if share.hold.is_some() {
            share.since_hold += bytes;
            return false;
        }
        let most = if to == relay::TO_AGENT { AGENT_HOLD_BYTES } else { HOLD_BYTES };
        if share.bytes <= most && waiting <= CROWDED_BYTES {
            return false;
        }
        share.hold = Some(self.tail);
        true
    }

    /// Moves what waits into the ring as far as it goes, and says whose callers go on.
    pub(super) fn flush(&mut self) -> Result<Vec<HostId>, ring::Error> {
        self.flush_quietly()?;
        Ok(std::mem::take(&mut self.released))
    }

    /// As [`Outgoing::flush`], which says later whose callers go on.
    pub(super) fn flush_quietly(&mut self) -> Result<(), ring::Error> {
        // Whether anything still waits, what waits tells.
        let _all = self.ring.flush()?;
        let released = self.left(self.ring.overflow_bytes());
        self.released.extend(released);
        Ok(())
    }

    /// Only so much waits by now.
    fn left(&mut self, waiting: usize) -> Vec<HostId> {
        let head = self.tail.saturating_sub(waiting as u64);
        let mut released = Vec::new();
        self.shares.retain(|host, share| {
            if share.hold.is_some_and(|hold| hold <= head) {
                share.bytes = std::mem::take(&mut share.since_hold);
                share.hold = None;
                released.push(*host);
            }
            waiting > 0 || share.hold.is_some()
        });
        released
    }

    /// Nothing is for this host any more that anybody waits for.
    pub(super) fn forget(&mut self, host: HostId) {
        self.shares.remove(&host);
    }
}

impl Peers {
    /// Whether whoever calls actors of this host waits.
    #[inline]
    pub(crate) fn is_held(&self, host: HostId) -> bool {
        self.any_held.load(Ordering::Acquire) && self.held.lock().contains_key(&host)
    }

    /// Called while the ring's end is locked, so that nobody finds its share released before it was held.
    pub(super) fn hold(&self, host: HostId) {
        self.held.lock().insert(host, ());
        self.any_held.store(true, Ordering::Release);
        tracing::debug!(%host, "a host does not take its messages: who calls its actors waits");
    }

    /// Those who call these hosts go on. Must not be called under the core's lock.
    pub(super) fn release(&self, runtime: &Arc<Runtime>, released: impl IntoIterator<Item = HostId>) {
        let mut any = false;
        {
            let mut held = self.held.lock();
            for host in released {
                any |= held.remove(&host).is_some();
            }
            self.any_held.store(!held.is_empty(), Ordering::Release);
        }
        if any {
            runtime.go_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::NodeId;

    use super::*;

    fn host(seq: u32) -> HostId {
        HostId { node: NodeId { number: 1, incarnation: 1 }, seq }
    }

    /// A ring of 64 KiB, and who reads it.
    fn pair() -> (Outgoing, ring::Receiver) {
        let fd = ring::create(1 << 16).unwrap();
        let sender = ring::Sender::map(fd.try_clone().unwrap()).unwrap();
        (Outgoing::new(sender), ring::Receiver::map(fd).unwrap())
    }

    const BYTES: usize = 1 << 20;
    const EACH: usize = BYTES + OVERFLOW_ENTRY_BYTES;

    /// Sends to a host until its callers are held; how many messages that took.
    fn fill(outgoing: &mut Outgoing, to: HostId) -> usize {
        let body = vec![1; BYTES];
        (1..=2 * HOLD_BYTES / BYTES).find(|_| outgoing.send(to, &[], &body).unwrap()).expect("a hold")
    }

    #[test]
    fn callers_of_a_slow_host_wait_others_do_not_and_all_go_on_once_it_takes() {
        let (mut outgoing, mut receiver) = pair();
        let sent = fill(&mut outgoing, host(1));
        assert!(sent.abs_diff(HOLD_BYTES / EACH) <= 2, "{sent}");
        assert!(!outgoing.send(host(2), &[], &[1]).unwrap(), "somebody else's share is small");
        assert!(!outgoing.send(host(1), &[], &[1]).unwrap(), "said once");
        // What was sent before goes first; then they go on, though something waits still.
        let (mut got, mut released) = (0, Vec::new());
        while got < sent + 2 && released.is_empty() {
            while receiver.recv_with(|_| ()).unwrap().is_some() {
                got += 1;
            }
            released = outgoing.flush().unwrap();
        }
        assert!(got >= sent - 1, "{got} of {sent}");
        assert_eq!(released, [host(1)]);
        assert!(outgoing.flush().unwrap().is_empty(), "said once");
        while receiver.recv_with(|_| ()).unwrap().is_some() {}
        outgoing.flush().unwrap();
        assert!(!outgoing.wants_flush(), "nothing is kept of it");
    }

    #[test]
    fn a_crowded_ring_holds_back_everybody_who_adds_to_it() {
        let (mut outgoing, _receiver) = pair();
        let mut sent = 0;
        for seq in 0.. {
            let body = vec![1; 2 * BYTES];
            sent += body.len();
            if outgoing.send(host(seq), &[], &body).unwrap() {
                break;
            }
            assert!(sent < OVERFLOW_BYTES_MAX, "nothing is lost before somebody waits");
        }
        assert!(sent >= CROWDED_BYTES && outgoing.overflow_bytes() < OVERFLOW_BYTES_MAX * 3 / 4);
        assert!(outgoing.send(host(0), &[], &[1]).unwrap(), "also who has sent little");
        outgoing.forget(host(0));
        assert!(outgoing.send(host(0), &[], &[1]).unwrap(), "a host of that name is another");
    }

    #[test]
    fn what_is_for_the_agent_holds_back_early_and_another_may_move_it() {
        let (mut outgoing, mut receiver) = pair();
        let body = [1; 1000];
        let sent = (1..10_000).find(|_| outgoing.send(relay::TO_AGENT, &[], &body).unwrap()).expect("a hold");
        assert!(sent * (body.len() + OVERFLOW_ENTRY_BYTES) > AGENT_HOLD_BYTES && !outgoing.is_full());
        assert!(outgoing.is_held(relay::TO_AGENT) && !outgoing.is_held(host(1)));
        for _ in 0..sent {
            while receiver.recv_with(|_| ()).unwrap().is_some() {}
            outgoing.flush_quietly().unwrap();
        }
        assert!(!outgoing.is_held(relay::TO_AGENT) && outgoing.wants_flush(), "somebody has to say it");
        assert_eq!(outgoing.flush().unwrap(), [relay::TO_AGENT]);
        assert!(!outgoing.wants_flush());
    }
}
