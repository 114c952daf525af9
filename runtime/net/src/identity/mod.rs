//! Who is who in a cluster: its certificate authority, the certificates it issues, and join tokens.
//!
//! A cluster is its CA: [`Authority::cluster_id`] is a hash of the CA's certificate. Every process that talks
//! over the network holds an [`Identity`], a certificate of that CA whose one name is the URI
//! `mobula://<cluster id>/<role>/<name>`. A machine that joins makes a key and a signing [`Request`]; the key
//! never leaves it. A [`JoinToken`] buys it one certificate, and pins the CA, so that neither side trusts the
//! network in between.
//!
//! Files are PEM with mode 0600 in a folder with mode 0700; a key that others may read is refused.

mod authority;
mod certificate;
pub(crate) mod crypto;
mod files;
mod token;

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use rkyv::{Archive, Deserialize, Serialize};

use crate::code;

pub use authority::{Authority, Fingerprint};
pub use certificate::{Identity, Request};
pub use token::{JoinToken, SecretHash, TOKEN_PREFIX};

pub(crate) use certificate::{presented, verify_issued, verify_server};

/// Longest name of a node or driver, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest PEM text accepted from elsewhere, in bytes; a certificate or signing request has about 700.
pub const PEM_BYTES_MAX: usize = 16 * 1024;
/// How long a head's or agent's certificate holds. Shorter means more renewals; longer, a stolen key that
/// stays good for longer.
pub const NODE_LIFETIME: Duration = Duration::from_hours(365 * 24);
/// How long a driver's certificate holds: a working day and the night after it.
pub const DRIVER_LIFETIME: Duration = Duration::from_hours(24);
/// The longest that any certificate holds; a longer wish is cut to this. The CA's own holds this long.
pub const LIFETIME_MAX: Duration = Duration::from_hours(10 * 365 * 24);
/// Certificates are valid from this long before they are issued, so that clocks may differ.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_hours(1);

/// What the holder of a certificate may be.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The control plane.
    Head,
    /// A machine's agent.
    Agent,
    /// A driver outside the cluster's machines; it dials, and is never dialled.
    Driver,
}

impl Role {
    /// As it stands in certificates and messages: `head`, `agent` or `driver`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Agent => "agent",
            Self::Driver => "driver",
        }
    }

    /// As people say it, and the command line: `head`, `node` or `driver`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Agent => "node",
            Self::Head | Self::Driver => self.as_str(),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "head" => Ok(Self::Head),
            "agent" => Ok(Self::Agent),
            "driver" => Ok(Self::Driver),
            other => Err(Error::Name { name: other.chars().take(NAME_BYTES_MAX).collect() }),
        }
    }
}

/// The name in a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName {
    /// What the holder may be.
    pub role: Role,
    /// Which one it is: 1 to [`NAME_BYTES_MAX`] of letters, digits, `.`, `_` and `-`.
    pub name: String,
}

impl PeerName {
    /// Checks the name.
    pub fn new(role: Role, name: &str) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
            return Err(Error::Name { name: name.chars().take(NAME_BYTES_MAX).collect() });
        }
        Ok(Self { role, name: name.to_owned() })
    }

    /// The URI that a certificate of cluster `cluster_id` carries for this name.
    pub(crate) fn uri(&self, cluster_id: &str) -> String {
        format!("mobula://{cluster_id}/{}/{}", self.role, self.name)
    }

    /// The cluster and name that a certificate's URI states; `None` where it is not one of ours.
    pub(crate) fn parse_uri(uri: &str) -> Option<(String, Self)> {
        let mut parts = uri.strip_prefix("mobula://")?.split('/');
        let (cluster, role, name) = (parts.next()?, parts.next()?, parts.next()?);
        let well_formed = cluster.len() == 32 && cluster.bytes().all(|b| b.is_ascii_hexdigit());
        if !well_formed || parts.next().is_some() {
            return None;
        }
        Some((cluster.to_owned(), Self::new(role.parse().ok()?, name).ok()?))
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// Why an identity could not be made, read or believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A private key that others may read.
    #[error("{} may be read by others (mode {mode:o}): if nobody has, run `chmod 600` on it, else join again", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The folder already holds a CA.
    #[error("{} already holds a cluster's CA", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A key, certificate or signing request that does not hold together.
    #[error("{what}: {detail}")]
    Invalid {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A name that no certificate may carry.
    #[error("{name:?} is no name: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-'")]
    Name {
        /// The name, shortened.
        name: String,
    },
    /// A certificate that belongs to another cluster.
    #[error(
        "this certificate is of cluster {theirs}, not of {ours}: join again with a token of that cluster"
    )]
    OtherCluster {
        /// The cluster that the certificate states.
        theirs: String,
        /// The cluster expected.
        ours: String,
    },
    /// A certificate for another key.
    #[error("the certificate is for another key than this node's")]
    OtherKey,
    /// Not a join token.
    #[error("this is no join token (one starts with {TOKEN_PREFIX:?})")]
    TokenPrefix,
    /// A join token with a piece missing or added.
    #[error("this join token has {got} characters after its prefix instead of {want}: copy the whole line")]
    TokenLength {
        /// How many there are.
        got: usize,
        /// How many there must be.
        want: usize,
    },
    /// A join token with a character that none has.
    #[error("this join token has a character that is no hexadecimal digit")]
    TokenCharacter,
    /// A join token that was mistyped.
    #[error("this join token's checksum does not match: it was mistyped or cut")]
    TokenChecksum,
    /// A join token of a newer release.
    #[error("this join token is of version {version}, which this build does not know: upgrade this node")]
    TokenVersion {
        /// Its version.
        version: u8,
    },
    /// The system gave no randomness.
    #[error("the system gives no randomness: {0}")]
    Random(String),
}

impl Error {
    /// The code under which it is documented.
    pub fn code(&self) -> &'static str {
        match self {
            Self::File { .. }
            | Self::Exposed { .. }
            | Self::Exists { .. }
            | Self::Invalid { .. }
            | Self::OtherKey
            | Self::Random(_) => code::SYSTEM,
            Self::Name { .. } => code::SETTING,
            Self::OtherCluster { .. } => code::PEER,
            Self::TokenPrefix
            | Self::TokenLength { .. }
            | Self::TokenCharacter
            | Self::TokenChecksum
            | Self::TokenVersion { .. } => code::JOIN,
        }
    }

    pub(crate) fn invalid(what: &'static str, detail: impl fmt::Display) -> Self {
        Self::Invalid { what, detail: detail.to_string() }
    }
}

/// Fills an array with the system's randomness.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::Random(e.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
