//! What asks a running command to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    args::ByUp,
    error::{self, Error},
};

/// The signals that ask for an orderly end, and the end of standard input where that does too.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where it was ignored already, as under `nohup`.
    hangup: Option<Signal>,
    input: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl Signals {
    /// Takes them over from the system. Must be called inside a tokio runtime.
    pub fn take(by_up: Option<ByUp>) -> Result<Self, Error> {
        let take = |kind| signal(kind).map_err(error::system("handle signals"));
        let ignored = hangup_ignored();
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hangup: if ignored { None } else { Some(take(SignalKind::hangup())?) },
            input: (by_up == Some(ByUp::Attached)).then(input_ended),
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        let input = async {
            match &mut self.input {
                // An error means that the sender was dropped, which is the news.
                Some(input) => drop(input.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hangup => {}
            () = input => self.input = None,
        }
    }

    /// Runs an orderly end, which a second signal cuts short.
    pub async fn while_ending(mut self, orderly: impl Future<Output = ()>) {
        tokio::select! {
            () = orderly => {}
            () = self.next() => eprintln!("mobula: ended at once"),
        }
    }
}

/// Resolves when standard input ends, which it does when the process that started this one does.
fn input_ended() -> tokio::sync::oneshot::Receiver<()> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut rest = [0; 64];
        while std::io::Read::read(&mut std::io::stdin(), &mut rest).is_ok_and(|read| read > 0) {}
        drop(sender);
    });
    receiver
}

fn hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
