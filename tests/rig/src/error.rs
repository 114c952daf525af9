//! What can go wrong with a rig.

use std::time::Duration;

/// Why the rig could not do what a test asked for, or what the test left behind.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A head or an agent did not start.
    #[error("{who} did not start: {source}")]
    Start {
        /// Which one.
        who: String,
        /// Why.
        source: mobula::Error,
    },
    /// The head's HTTP interface did not answer, or refused.
    #[error("the head did not answer {path}: {detail}")]
    Head {
        /// What was asked.
        path: &'static str,
        /// What happened.
        detail: String,
    },
    /// What was named is not running (any more).
    #[error("{0} is not running")]
    NotRunning(String),
    /// A condition was not met in time.
    #[error("waited {waited:?} for {what}, which did not come{detail}")]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// What is known about it; empty or a clause that begins with `: `.
        detail: String,
    },
    /// Something was not given back.
    #[error("waited {waited:?} for all to be given back: {}", .left.join("; "))]
    Leftovers {
        /// How long.
        waited: Duration,
        /// What was not.
        left: Vec<String>,
    },
}

/// What the rig's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// `map_err` for system calls.
pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::System { what, source }
}
