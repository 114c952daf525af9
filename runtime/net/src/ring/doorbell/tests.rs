use super::*;
use crate::ring::{self, Receiver, Sender};

#[test]
fn a_ring_wakes_once_for_each_sleep() {
    let (bell, fd) = Doorbell::create().unwrap();
    let theirs = Doorbell::map(fd).unwrap();
    assert!(!theirs.ring(), "nobody sleeps");
    bell.end_polling();
    assert!(theirs.ring());
    assert!(!theirs.ring() && !bell.ring(), "one wake for each sleep");
    assert_eq!(bell.wait(None), Wake::Rung, "rung before it slept");
    bell.begin_polling();
    assert!(!theirs.ring());
    bell.end_polling();
    assert!(bell.ring(), "threads of the same process ring too");
    bell.begin_polling();
}

#[test]
fn a_wait_ends_with_its_time() {
    let (bell, _fd) = Doorbell::create().unwrap();
    bell.end_polling();
    assert_eq!(bell.wait(Some(Duration::from_millis(1))), Wake::TimedOut);
    assert_eq!(bell.wait(Some(Duration::ZERO)), Wake::TimedOut);
    bell.begin_polling();
    assert_eq!(bell.wait(None), Wake::Rung, "not asleep, so not waiting");
}

#[test]
fn what_is_no_doorbell_is_refused() {
    let ring = ring::create(4096).unwrap();
    assert!(matches!(Doorbell::map(ring), Err(Error::Foreign { .. })));
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Doorbell::map(null.into()), Err(Error::Foreign { .. })));
}

#[test]
fn spinning_stops_when_it_never_pays_and_starts_again_when_it_would() {
    let mut spin = Spin::default();
    for _ in 0..SPIN_MISSES_MAX {
        assert!(!spin.until(|| false));
    }
    let mut looks = 0;
    assert!(!spin.until(|| {
        looks += 1;
        false
    }));
    assert_eq!(looks, 1, "idle: one look, no spinning");
    spin.expect();
    let (mut looks, begun) = (0, Instant::now());
    assert!(!spin.until(|| {
        looks += 1;
        false
    }));
    assert!(looks > 1 && begun.elapsed() >= Duration::from_nanos(SPIN_NANOS_MAX));
    while spin.misses < SPIN_MISSES_MAX {
        assert!(!spin.until(|| false));
    }
    spin.slept(Duration::from_secs(1));
    assert_eq!(spin.misses, SPIN_MISSES_MAX);
    spin.slept(Duration::from_micros(5));
    let mut looks = 0;
    assert!(spin.until(|| {
        looks += 1;
        looks == 20
    }));
}

/// Drains until `done`; parks when there is nothing, for a bounded time that a lost wake-up would use up.
fn park(bell: &Doorbell, mut has_work: impl FnMut() -> bool, what: &str) {
    bell.end_polling();
    if !has_work() {
        assert_eq!(bell.wait(Some(Duration::from_secs(20))), Wake::Rung, "a lost wake-up: {what}");
    }
    bell.begin_polling();
}

#[test]
fn a_million_messages_without_a_lost_wake_up() {
    const MESSAGES: u64 = 1_000_000;
    let fd = ring::create(16 * 1024).unwrap();
    let mut sender = Sender::map(fd.try_clone().unwrap()).unwrap();
    let mut receiver = Receiver::map(fd).unwrap();
    let (sender_bell, sender_fd) = Doorbell::create().unwrap();
    let (receiver_bell, receiver_fd) = Doorbell::create().unwrap();
    let producing = std::thread::spawn(move || {
        let consumer_bell = Doorbell::map(receiver_fd).unwrap();
        for i in 0..MESSAGES {
            sender.send(&i.to_le_bytes(), &[0; 24]).unwrap();
            consumer_bell.ring();
            // Now and then it waits for the ring to be read, so that both ends sleep often.
            while sender.overflow_bytes() > 0 {
                park(&sender_bell, || sender.flush().unwrap(), "producer");
                consumer_bell.ring();
            }
        }
        sender
    });
    let producer_bell = Doorbell::map(sender_fd).unwrap();
    let mut expected = 0u64;
    while expected < MESSAGES {
        while let Some(got) = receiver.recv_with(|b| u64::from_le_bytes(b[..8].try_into().unwrap())).unwrap()
        {
            assert_eq!(got, expected);
            expected += 1;
        }
        if receiver.take_space_wanted() {
            producer_bell.ring();
        }
        if expected < MESSAGES {
            park(&receiver_bell, || !receiver.is_empty(), "consumer");
        }
    }
    assert!(producing.join().unwrap().is_drained());
}

#[test]
fn a_parked_ping_pong_never_hangs() {
    const ROUNDS: u64 = 20_000;
    let (there, back) = (ring::create(4096).unwrap(), ring::create(4096).unwrap());
    let (bell_a, fd_a) = Doorbell::create().unwrap();
    let (bell_b, fd_b) = Doorbell::create().unwrap();
    let (there_too, back_too) = (there.try_clone().unwrap(), back.try_clone().unwrap());
    let echo = std::thread::spawn(move || {
        let mut from = Receiver::map(there_too).unwrap();
        let mut to = Sender::map(back_too).unwrap();
        let bell = Doorbell::map(fd_a).unwrap();
        for _ in 0..ROUNDS {
            while from.is_empty() {
                park(&bell_b, || !from.is_empty(), "echo");
            }
            let message = from.recv().unwrap().unwrap();
            to.send(&message, &[]).unwrap();
            bell.ring();
        }
    });
    let mut to = Sender::map(there).unwrap();
    let mut from = Receiver::map(back).unwrap();
    let bell = Doorbell::map(fd_b).unwrap();
    for i in 0..ROUNDS {
        to.send(&i.to_le_bytes(), &[]).unwrap();
        bell.ring();
        while from.is_empty() {
            park(&bell_a, || !from.is_empty(), "caller");
        }
        assert_eq!(from.recv().unwrap().unwrap()[..], i.to_le_bytes());
    }
    echo.join().unwrap();
}

#[test]
fn a_ring_at_the_very_moment_of_falling_asleep_is_heard() {
    const ROUNDS: u64 = 300_000;
    let (there, back) = (ring::create(4096).unwrap(), ring::create(4096).unwrap());
    let (bell, fd) = Doorbell::create().unwrap();
    let (there_too, back_too) = (there.try_clone().unwrap(), back.try_clone().unwrap());
    let echo = std::thread::spawn(move || {
        let mut from = Receiver::map(there_too).unwrap();
        let mut to = Sender::map(back_too).unwrap();
        for round in 0..ROUNDS {
            while from.is_empty() {
                park(&bell, || !from.is_empty(), "echo");
            }
            assert_eq!(from.recv_with(|b| b.len()).unwrap(), Some(8));
            to.send(&round.to_le_bytes(), &[]).unwrap();
        }
    });
    let mut to = Sender::map(there).unwrap();
    let mut from = Receiver::map(back).unwrap();
    let bell = Doorbell::map(fd).unwrap();
    // Hunts the moment: a send that had to wake came late, one that had not came early.
    let mut delay = 100u32;
    for round in 0..ROUNDS {
        for _ in 0..delay {
            std::hint::black_box(delay);
        }
        to.send(&round.to_le_bytes(), &[]).unwrap();
        delay = if bell.ring() { delay.saturating_sub(3) } else { (delay + 1).min(10_000) };
        let mut looks = 0u32;
        while from.is_empty() {
            looks += 1;
            if looks.is_multiple_of(1000) {
                std::thread::yield_now();
                assert!(!echo.is_finished() || !from.is_empty(), "the echo gave up");
            }
            std::hint::spin_loop();
        }
        assert_eq!(from.recv_with(|b| b.len()).unwrap(), Some(8));
    }
    echo.join().unwrap();
}

#[test]
fn the_watcher_is_called_roused_or_out_of_time() {
    let (doorbell, _fd) = Doorbell::create().unwrap();
    doorbell.leave();
    assert!(!doorbell.watch(|| Some(Duration::from_millis(1))), "nobody rang");
    let other = doorbell.clone();
    let (asked, wait) = std::sync::mpsc::channel();
    let watcher = std::thread::spawn(move || {
        let watch = || {
            other.watch(|| {
                asked.send(()).unwrap();
                None
            })
        };
        [watch(), watch()]
    });
    wait.recv().unwrap();
    doorbell.rouse();
    wait.recv().unwrap();
    assert!(doorbell.ring());
    assert_eq!(watcher.join().unwrap(), [false, true]);
}

/// A producer that is killed at the worst moment: it has taken the wake upon itself, and so nobody else wakes.
fn dies_ringing(bell: &Doorbell) {
    let state = bell.state().load(Ordering::Relaxed);
    let claimed = if state == SLEEPING { NOTIFIED } else { CALLED };
    bell.state().compare_exchange(state, claimed, Ordering::AcqRel, Ordering::Relaxed).unwrap();
    assert!(!bell.ring());
}

#[test]
fn db6_a_producer_that_died_ringing_is_stood_in_for() {
    let (bell, _fd) = Doorbell::create().unwrap();
    let within = Duration::from_secs(20);
    for leaves in [false, true] {
        if leaves {
            bell.leave()
        } else {
            bell.end_polling()
        }
        let (asleep, is_asleep) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let sleeper = bell.clone();
            let slept = scope.spawn(move || {
                let began = Instant::now();
                asleep.send(rustix::thread::gettid()).unwrap();
                let called = if leaves {
                    sleeper.watch(|| Some(within))
                } else {
                    sleeper.wait(Some(within)) == Wake::Rung
                };
                (called, began.elapsed())
            });
            in_futex(is_asleep.recv().unwrap());
            dies_ringing(&bell);
            bell.remind();
            let (called, slept) = slept.join().unwrap();
            assert!(called && slept < within, "{leaves}: slept for {slept:?}");
        });
        bell.begin_polling();
        bell.remind();
        assert_eq!(bell.state().load(Ordering::Relaxed), POLLING);
    }
}

/// Waits until a thread of this process sleeps in the kernel.
fn in_futex(thread: rustix::thread::Pid) {
    let stat = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(&stat).unwrap();
        if text[text.rfind(')').unwrap() + 2..].starts_with('S') {
            return;
        }
        assert!(Instant::now() < deadline, "the thread does not fall asleep");
        std::thread::yield_now();
    }
}
