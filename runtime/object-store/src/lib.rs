//! Spilled objects in an object store that a URL names: Amazon S3 and what is compatible with it, Google Cloud Storage,
//! Azure Blob Storage, a folder, or the memory of this process.
//!
//! A crate of its own, since it brings an HTTP client and more. Credentials come from the environment, in the variables
//! that the tools of each provider use (`AWS_…`, `GOOGLE_…`, `AZURE_…`), or from the machine's role; never from the URL,
//! which is shown to people.
//!
//! What a killed process left is removed at the next start with the same home, which keeps the name under which it wrote;
//! but for parts of files that it had not completed: no store lists those among its files. A folder is emptied all the
//! same; a bucket of S3 or Google needs a lifecycle rule that ends incomplete multipart uploads after a day, and Azure
//! removes them by itself after a week.
//!
//! A cluster that a program starts for itself, or a node in a container without a volume, never has the same home again:
//! complete files of one that was killed stay for ever. Give their prefix an expiry rule, of more time than such a process
//! lives.
//!
//! Nothing waits for ever: requests have a limit and are tried again a few times, and each operation as a whole has one
//! ([`Limits`]).

#![forbid(unsafe_code)]

mod bucket;
mod place;

use std::time::Duration;

pub use bucket::{Bucket, PART_BYTES, PARTS_MAX, UPLOADS_MAX};

/// Schemes of URLs that can be used, as people are told them.
pub const SCHEMES: &str = "s3://, gs://, az://, file:// or memory://";

/// How long, and how often, a store is asked.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest that opening a connection may take; default 5 s.
    pub connect: Duration,
    /// Longest that one request may take; default 30 s.
    pub request: Duration,
    /// How often one that failed is tried again; default 4 times.
    pub retries: usize,
    /// Longest that an operation (one read, one part of a file, the end of a file) may take, all its requests together;
    /// default 40 s. Less than what writers wait for a file.
    pub operation: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(30),
            retries: 4,
            operation: Duration::from_secs(40),
        }
    }
}

/// Why a place for spilled objects cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a URL, or one that says too little or too much.
    #[error("{url:?} names no object store: {detail}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it, and what to write.
        detail: String,
    },
    /// A URL of something else.
    #[error("{scheme}:// is the scheme of no object store that can be used: write {SCHEMES}")]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// What the environment says is not enough, or wrong.
    #[error("{url} cannot be used: {detail}; {cure}")]
    Settings {
        /// The URL.
        url: String,
        /// What is missing.
        detail: String,
        /// What to set.
        cure: &'static str,
    },
    /// The store does not answer, or does not let this process write.
    #[error("{detail}; {cure}")]
    Unusable {
        /// What was tried, where, and what came of it.
        detail: String,
        /// What to look at.
        cure: &'static str,
    },
    /// The system has no file or thread for it.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether what was set is wrong, so that trying again changes nothing.
    pub fn is_setting(&self) -> bool {
        matches!(self, Self::Url { .. } | Self::Scheme { .. } | Self::Settings { .. })
    }
}
