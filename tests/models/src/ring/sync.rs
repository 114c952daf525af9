//! In place of the rings' `sync`.

pub(super) use loom::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

/// The kernel's part: it compares the word and sleeps under the lock that a waker takes.
pub(super) mod futex {
    use loom::sync::{Condvar, Mutex, atomic::AtomicU32};
    use rustix::io::Errno;
    pub(in super::super) use rustix::thread::futex::{Flags, Timespec};

    #[derive(Default)]
    struct Sleepers {
        next: u64,
        /// Words and who sleeps on them, longest first.
        all: Vec<(usize, u64)>,
    }

    loom::lazy_static! {
        static ref SLEEPERS: Mutex<Sleepers> = Mutex::new(Sleepers::default());
        static ref WOKEN: Condvar = Condvar::new();
    }

    fn place(word: &AtomicU32) -> usize {
        std::ptr::from_ref(word).addr()
    }

    /// Sleeps while nobody wakes; there is no clock.
    pub(in super::super) fn wait(
        word: &AtomicU32,
        _flags: Flags,
        expected: u32,
        _timeout: Option<&Timespec>,
    ) -> Result<(), Errno> {
        let Ok(mut sleepers) = SLEEPERS.lock() else { return Err(Errno::INVAL) };
        if word.load(super::Ordering::Relaxed) != expected {
            return Err(Errno::AGAIN);
        }
        let me = (place(word), sleepers.next);
        sleepers.next += 1;
        sleepers.all.push(me);
        while sleepers.all.contains(&me) {
            let Ok(again) = WOKEN.wait(sleepers) else { return Err(Errno::INVAL) };
            sleepers = again;
        }
        Ok(())
    }

    /// Wakes up to `count` that sleep on the word, and says how many.
    pub(in super::super) fn wake(word: &AtomicU32, _flags: Flags, count: u32) -> Result<usize, Errno> {
        let Ok(mut sleepers) = SLEEPERS.lock() else { return Err(Errno::INVAL) };
        let before = sleepers.all.len();
        let mut left = count;
        sleepers.all.retain(|(at, _)| {
            let goes = *at == place(word) && left > 0;
            left -= u32::from(goes);
            !goes
        });
        WOKEN.notify_all();
        Ok(before - sleepers.all.len())
    }
}
