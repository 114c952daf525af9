//! Processes by number and start time, so that a reused number is never taken for the process that had it before.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};

use crate::error::{self, Error};

/// A process, as it is remembered in files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What it is, for people: `head`, `node-1`.
    pub name: String,
    /// Its number.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot.
    pub start: u64,
    /// The boot in which that was.
    pub boot: String,
}

/// A process that was alive when it was looked up; the descriptor stays its own whatever becomes of its number.
#[derive(Debug)]
pub struct Alive(OwnedFd);

impl Mark {
    /// This process.
    pub fn own(name: &str) -> Result<Self, Error> {
        Self::of(name, std::process::id()).map_err(error::system("read /proc/self/stat"))
    }

    /// A process that is surely alive: this one or a child not yet waited for.
    pub fn of(name: &str, pid: u32) -> io::Result<Self> {
        let (_, start) = stat(pid)?;
        Ok(Self { name: name.to_owned(), pid, start, boot: boot()? })
    }

    /// The process, if it still runs.
    pub fn find(&self) -> Option<Alive> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        // The descriptor comes first: if the number changes hands between the two, the start time tells.
        let descriptor = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let (state, start) = stat(self.pid).ok()?;
        let same = start == self.start && boot().is_ok_and(|boot| boot == self.boot);
        (same && state != 'Z' && state != 'X').then_some(Alive(descriptor))
    }
}

impl Alive {
    /// Sends it a signal; one that has ended by now needs none.
    pub fn signal(&self, signal: Signal) {
        let _ended = rustix::process::pidfd_send_signal(&self.0, signal);
    }

    /// Waits until it has ended; says whether it did.
    pub fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            match rustix::event::poll(&mut polled, Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// State and start time from `/proc/<pid>/stat`.
fn stat(pid: u32) -> io::Result<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it, in parentheses, may hold anything.
    let mut fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let state = fields.next().and_then(|state| state.chars().next());
    // Field 22 of proc(5); the state is field 3.
    let start = fields.nth(18).and_then(|start| start.parse().ok());
    match (state, start) {
        (Some(state), Some(start)) => Ok((state, start)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat reads {text:?}"))),
    }
}

fn boot() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_number_is_not_the_process() {
        let own = Mark::own("test").unwrap();
        assert!(own.find().is_some());
        assert!(Mark { start: own.start + 1, ..own.clone() }.find().is_none());
        assert!(Mark { boot: "another".to_owned(), ..own.clone() }.find().is_none());
    }

    #[test]
    fn an_end_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mark = Mark::of("sleep", child.id()).unwrap();
        let alive = mark.find().unwrap();
        assert!(!alive.wait(Duration::ZERO));
        alive.signal(Signal::KILL);
        assert!(alive.wait(Duration::from_secs(10)), "the killed process did not end within 10 s");
        assert!(mark.find().is_none(), "one that only waits to be reaped counts as gone");
        child.wait().unwrap();
        assert!(mark.find().is_none());
    }
}
