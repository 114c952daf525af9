//! The error of everything remote.

use std::fmt;

use mobula_proto::{Failure, FailureKind, failure::clip};

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, where, why, and the chain of causes.
///
/// Its text reads `task crawl::fetch#81 failed on node-3: panicked at src/main.rs:40: … (attempt 4 of 4)`, its
/// causes follow on lines of their own, and it ends with a code that `mobula explain CODE` explains.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Failure>);

impl Error {
    /// An error of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self(Box::new(Failure::new(kind, message)))
    }

    /// What went wrong.
    pub fn kind(&self) -> FailureKind {
        self.0.kind
    }

    /// The code under which it is explained.
    pub fn code(&self) -> &'static str {
        self.0.kind.code()
    }

    /// Whether the same request may succeed if it is made again.
    pub fn is_retryable(&self) -> bool {
        self.0.kind.retryable()
    }

    /// Its parts.
    pub fn failure(&self) -> &Failure {
        &self.0
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self(Box::new(failure))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        *error.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

/// What user code returned as `Err`, with its chain of sources.
pub(crate) fn returned(error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut failure = match error.downcast_ref::<Error>() {
        Some(Error(inner)) => {
            let mut failure = Failure::new(FailureKind::Returned, inner.headline());
            failure.causes.clone_from(&inner.causes);
            failure
        }
        None => Failure::new(FailureKind::Returned, error.to_string()),
    };
    let mut source = error.source();
    while let Some(cause) = source.filter(|_| failure.causes.len() < CAUSES_MAX) {
        failure.causes.push(clip(cause.to_string()));
        source = cause.source();
    }
    failure
}

/// Longest chain of causes that travels.
const CAUSES_MAX: usize = 16;
