//! What a head or node tells the `mobula up` that started it: one line of JSON on standard output.

use std::{
    io::Write,
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};

use crate::error::Error;

static SAID: AtomicBool = AtomicBool::new(false);

/// The line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ready {
    /// A head is up.
    Head {
        /// Its UDP address.
        quic: SocketAddr,
        /// Its HTTP address.
        http: SocketAddr,
    },
    /// A node is up.
    Node {
        /// Its name.
        name: String,
        /// Its socket for drivers.
        socket: PathBuf,
    },
    /// It did not start.
    Failed {
        /// What failed.
        what: String,
        /// What to do.
        cure: String,
        /// The error's code.
        code: String,
    },
}

impl Ready {
    /// That it did not start, and why.
    pub fn failed(error: &Error) -> Self {
        Self::Failed { what: error.to_string(), cure: error.cure(), code: error.code().to_owned() }
    }

    /// Whether [`Ready::say`] was called.
    pub fn said() -> bool {
        SAID.load(Ordering::Acquire)
    }

    /// Says it; only the first time is heard.
    pub fn say(&self) {
        SAID.store(true, Ordering::Release);
        if let Ok(json) = serde_json::to_string(self) {
            say(&json);
        }
    }
}

/// Prints a line for whoever listens.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that is gone need not be told.
    let _gone = writeln!(out, "{line}").and_then(|()| out.flush());
}
