//! `mobula down`.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{
    args::HomeArg,
    error::Error,
    home::Home,
    process::{Alive, Mark},
    ready::say,
    up::{END_WAIT, KILL_WAIT, Up},
};

/// How long a `mobula up` in the foreground may take: its nodes, then its head, each with the time that they have.
const UP_WAIT: Duration = Duration::from_secs(25);

/// Ends what runs in this home, and waits until it is gone.
pub fn run(args: &HomeArg) -> Result<(), Error> {
    let home = Home::of(args)?;
    let up = Up::read(&home)?;
    let own = |role: &str| Ok::<_, Error>(home.claimed(role)?.into_iter().collect::<Vec<_>>());
    let nodes = up.iter().flat_map(|up| up.nodes.iter().map(|node| node.process.clone()));
    let head = up.iter().map(|up| up.head.clone());
    // One after the other: who watches over the others, the nodes, and the head once they have left it.
    let stages = [
        (own("up")?, UP_WAIT),
        (nodes.chain(own("node")?).collect(), END_WAIT),
        (head.chain(own("head")?).collect(), END_WAIT),
    ];
    let mut ended = 0;
    for (marks, limit) in stages {
        ended += end(&marks, limit)?;
    }
    home.tidy();
    if ended == 0 {
        say(&format!("Nothing runs in {}.", home.path().display()));
    }
    Ok(())
}

/// Ends these together; returns how many there were.
fn end(marks: &[Mark], limit: Duration) -> Result<usize, Error> {
    let mut alive: Vec<(&Mark, Alive)> = Vec::new();
    for mark in marks {
        let known = alive.iter().any(|(other, _)| other.pid == mark.pid);
        if let Some(process) = mark.find().filter(|_| !known) {
            process.signal(Signal::TERM);
            alive.push((mark, process));
        }
    }
    let deadline = Instant::now() + limit;
    for (mark, process) in &alive {
        let how = if process.wait(deadline.saturating_duration_since(Instant::now())) {
            "ended"
        } else {
            process.signal(Signal::KILL);
            if !process.wait(KILL_WAIT) {
                return Err(Error::WontEnd { name: mark.name.clone(), pid: mark.pid });
            }
            "did not end by itself, and was killed"
        };
        say(&format!("{} (process {}) {how}", mark.name, mark.pid));
    }
    Ok(alive.len())
}
