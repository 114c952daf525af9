//! Waits for room: who is next, how long they go on, and who is refused in the end.

use std::time::{Duration, Instant};

use mobula_proto::{Failure, FailureKind, HostId, host::Request, resource::bytes_text};

use super::Objects;

/// Longest that a wait goes on beyond its time because calls run whose end may make room. One of them may wait for the very
/// value that has no room, in a way that nobody sees.
pub const BUSY_WAIT_MAX: Duration = Duration::from_secs(600);
/// After some were refused, the others have so long for what comes free by that.
const NEXT_REFUSAL: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) writer: HostId,
    pub(super) request: Request,
    pub(super) bytes: u64,
    pub(super) deadline: Instant,
    /// What it was before it was put off.
    pub(super) first_deadline: Instant,
    pub(super) wait_ms: u64,
}

/// What somebody lacks for a region.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lack {
    /// Bytes of the store.
    pub(super) all: u64,
    /// Bytes of what hosts may have of it. Of these only hosts' regions give any.
    pub(super) of_hosts: u64,
}

impl Lack {
    pub(super) fn bytes(self) -> u64 {
        self.all.max(self.of_hosts)
    }

    pub(super) fn is_nothing(self) -> bool {
        self.bytes() == 0
    }

    /// A region of so many bytes comes free.
    pub(super) fn less(self, bytes: u64, of_agent: bool) -> Self {
        let of_hosts = if of_agent { 0 } else { bytes };
        Self { all: self.all.saturating_sub(bytes), of_hosts: self.of_hosts.saturating_sub(of_hosts) }
    }
}

impl Objects {
    /// How many bytes `writer` lacks for a region of `bytes` where so many are in use.
    pub(super) fn lacks(&self, writer: HostId, bytes: u64, used: u64) -> Lack {
        let all = used.saturating_add(bytes).saturating_sub(self.capacity);
        let reserve = self.for_reading();
        if writer.is_agent() || reserve == 0 {
            return Lack { all, of_hosts: 0 };
        }
        let of_hosts = match used.saturating_sub(self.of_agent()) {
            // One alone may be as large as the store.
            0 => 0,
            of_hosts => of_hosts.saturating_add(bytes).saturating_sub(self.capacity - reserve),
        };
        Lack { all, of_hosts }
    }

    /// How many bytes the first request in line lacks, beside those that come free by themselves; zero where nobody
    /// waits.
    pub fn short_by(&self) -> u64 {
        self.first_lacks().bytes()
    }

    /// How many of them the agent's own regions may give: none of what hosts may have.
    pub fn short_of_own(&self) -> u64 {
        let Lack { all, of_hosts } = self.first_lacks();
        all.saturating_sub(of_hosts)
    }

    pub(super) fn first_lacks(&self) -> Lack {
        let staying = self.used - self.going;
        self.waiting.front().map_or(Lack::default(), |first| self.lacks(first.writer, first.bytes, staying))
    }

    /// Grants what fits now, in order; what is reserved for the agent, out of it.
    pub fn grants(&mut self) -> Vec<(HostId, Request)> {
        self.grant_where(|objects, writer, bytes, first| objects.is_next(writer, bytes, first))
    }

    /// Grants whatever fits, in whichever order: nobody has anything to wait for but others who wait.
    pub fn grants_out_of_turn(&mut self) -> Vec<(HostId, Request)> {
        self.grant_where(|objects, writer, bytes, _| objects.lacks(writer, bytes, objects.used).is_nothing())
    }

    /// Grants what `may` be granted: it is asked with who waits, for how many bytes, and whether that is the first in turn.
    fn grant_where(&mut self, may: impl Fn(&Self, HostId, u64, bool) -> bool) -> Vec<(HostId, Request)> {
        let mut out = Vec::new();
        let mut at = 0;
        while let Some(waiting) = self.waiting.get(at) {
            let (writer, request, bytes) = (waiting.writer, waiting.request, waiting.bytes);
            if may(self, writer, bytes, at == 0) {
                self.waiting.remove(at);
                self.grant(writer, Some(request), bytes);
                out.push((writer, request));
            } else {
                at += 1;
            }
        }
        out
    }

    /// Whether anybody has waited too long. While the disk makes room, a wait goes on.
    pub fn overdue(&mut self, now: Instant) -> bool {
        let mut overdue = false;
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.deadline <= now) {
            match self.disk.extended(waiting.first_deadline, now) {
                Some(later) => waiting.deadline = later,
                None => overdue = true,
            }
        }
        overdue
    }

    /// Whether anybody waits longer than it should.
    pub fn is_late(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.deadline > waiting.first_deadline)
    }

    /// Whether the agent itself waits for room, for what it pulls or reads from disk.
    pub fn agent_waits(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.writer.is_agent())
    }

    /// Those who have waited too long go on for a moment, but for those who did so for [`BUSY_WAIT_MAX`]. Returns whether
    /// all of them do.
    pub fn go_on(&mut self, now: Instant, moment: Duration) -> bool {
        let mut all = true;
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.deadline <= now) {
            if now < waiting.first_deadline + BUSY_WAIT_MAX {
                waiting.deadline = now + moment;
            } else {
                all = false;
            }
        }
        all
    }

    /// Refuses those who have waited too long: `all`, or first the younger half, since what those have may be what the
    /// others lack.
    pub fn refuse(&mut self, now: Instant, all: bool) -> Vec<(HostId, Request, Failure)> {
        let overdue = self.waiting.iter().filter(|waiting| waiting.deadline <= now).count();
        let mut left = if all { 0 } else { overdue / 2 };
        let (used, capacity) = (self.used, self.capacity);
        let silent = match self.silent.first() {
            Some(host) => format!("; {host} says nothing (is it stopped?), and its memory is not counted on"),
            None => String::new(),
        };
        let mut out = Vec::new();
        let disk = &self.disk;
        self.waiting.retain_mut(|waiting| {
            if waiting.deadline > now {
                return true;
            }
            if left > 0 {
                left -= 1;
                waiting.deadline = now + NEXT_REFUSAL;
                return true;
            }
            let more = now.saturating_duration_since(waiting.first_deadline).as_millis();
            let failure = Failure::new(
                FailureKind::StoreFull,
                format!(
                    "no room for a region of {} within {} ms: {} of the store's {} are in use{}{silent}",
                    bytes_text(waiting.bytes),
                    u128::from(waiting.wait_ms) + more,
                    bytes_text(used),
                    bytes_text(capacity),
                    disk.complaint()
                ),
            );
            out.push((waiting.writer, waiting.request, failure));
            false
        });
        out
    }

    /// When [`Objects::overdue`], [`Objects::retry`], [`Objects::unanswered`] or [`Objects::idle_writers`] has something to do
    /// next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waits = self.waiting.iter().map(|waiting| waiting.deadline).min();
        waits
            .into_iter()
            .chain(self.disk.retry_at())
            .chain(self.answers_until())
            .chain(self.next_asked())
            .min()
    }

    /// The writer needs no region any more: room came free in those that it has. Gives back what it was granted
    /// meanwhile for this very request: it may have been refused, where that crossed the writer's word.
    pub fn unwant(&mut self, writer: HostId, request: Request) {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| (waiting.writer, waiting.request) != (writer, request));
        if self.waiting.len() == before {
            self.ungrant(writer, request);
        }
    }
}
