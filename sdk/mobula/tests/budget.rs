//! What happens when more calls are submitted than may be unfinished. A program of its own, since code that belongs
//! to no cluster uses the one that started last.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::{
    sync::{Condvar, Mutex, mpsc::channel},
    time::Duration,
};

use mobula::prelude::*;

/// Longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

static OPEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

fn open(yes: bool) {
    *OPEN.0.lock().unwrap() = yes;
    OPEN.1.notify_all();
}

#[mobula::task(cpu = 0)]
fn wait_for_the_gate(x: u64) -> u64 {
    let (lock, changed) = &OPEN;
    let (open, timeout) = changed.wait_timeout_while(lock.lock().unwrap(), LIMIT, |open| !*open).unwrap();
    assert!(*open && !timeout.timed_out(), "the gate stayed closed for {LIMIT:?}");
    x
}

const BUDGET: u64 = 8;

#[test]
fn a_full_budget_holds_submitters_back() {
    let user = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let _entered = user.enter();
    let cluster = user.block_on(Cluster::embedded().cpus(1.0).budget(BUDGET as usize).start()).unwrap();
    let full: Vec<_> = (0..BUDGET).map(|i| wait_for_the_gate.remote(i)).collect();

    // Without waiting: the call comes back, and says what to do.
    let refused = wait_for_the_gate.try_remote(8).unwrap_err();
    assert!(refused.to_string().contains("await some"), "{refused}");
    let refused = refused.try_again().unwrap_err();

    // With a thread that waits, and with async code that waits.
    let (say, blocked) = channel();
    std::thread::spawn(move || say.send(wait_for_the_gate.remote(9)));
    let mut submission = Box::pin(wait_for_the_gate.submit(10));
    let mut poller = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(submission.as_mut().poll(&mut poller).is_pending());
    let submitted = user.spawn(submission);
    assert!(blocked.try_recv().is_err() && !submitted.is_finished());

    open(true);
    let nine = blocked.recv_timeout(LIMIT).expect("the thread is let in");
    let ten = user.block_on(async { tokio::time::timeout(LIMIT, submitted).await });
    let ten = ten.expect("the async code is let in").unwrap();
    let eight = user.block_on(refused.submit());
    assert_eq!(mobula::blocking::get_all(&[eight, nine, ten]).unwrap(), [8, 9, 10]);
    assert_eq!(mobula::blocking::get_all(&full).unwrap(), (0..BUDGET).collect::<Vec<_>>());
    cluster.shutdown();
}
