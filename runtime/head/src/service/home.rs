//! The head's folder.
//!
//! ```text
//! <home>/                mode 0700
//!   ca/                  the cluster's CA, key included
//!   head/                the head's certificate and key, and state.redb
//!   admin.token          the admin token, mode 0600; only its hash is in the state
//!   head.json            where this head is: addresses, cluster, process
//! ```

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mobula_net::identity::{self, Authority, Identity, NODE_LIFETIME, Role};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::Error;
use crate::state::{Disk, Journal, Record};

const ADMIN_FILE: &str = "admin.token";
const WHERE_FILE: &str = "head.json";
/// A person may write this one before there is anything else; see `mobula config`.
const SETTINGS_FILE: &str = "mobula.toml";
const ADMIN_PREFIX: &str = "mobula-admin-";
/// The bit of a folder in which everybody keeps things, such as `/tmp`.
const STICKY: u32 = 0o1000;
/// The head's certificate is renewed at a start when it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_hours(90 * 24);

/// What `head.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// The UDP port, as bound.
    pub quic: SocketAddr,
    /// The HTTP API.
    pub http: SocketAddr,
    /// The cluster: 32 hexadecimal digits.
    pub cluster: String,
    /// The process.
    pub pid: u32,
}

impl Whereabouts {
    /// What the head of this folder said when it started. It may have ended since, if it could not tidy up.
    pub fn read(home: &Path) -> Result<Self, Error> {
        let file = home.join(WHERE_FILE);
        let text = fs::read(&file).map_err(failed("read", &file))?;
        serde_json::from_slice(&text).map_err(|e| failed("read", &file)(e.into()))
    }
}

/// Everything from the folder that a head needs.
pub(super) struct Home {
    pub journal: Arc<dyn Journal>,
    pub authority: Authority,
    pub identity: Identity,
    pub admin_token: String,
    pub admin_hash: [u8; 32],
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Home { what, path: path.to_owned(), source }
}

impl Home {
    /// Opens the folder, making what is missing. Blocks on the disk.
    pub fn open(home: &Path, cluster_name: &str) -> Result<Self, Error> {
        private_folder(home)?;
        let own = home.join("head");
        private_folder(&own)?;
        // First of all: it is also the lock that keeps a second head out.
        let journal = Disk::open(&own.join("state.redb"))?;
        let known = journal.load()?;
        let authority = authority(&home.join("ca"), cluster_name, known.is_empty())?;
        let identity = identity(&own, &authority)?;
        let (admin_token, admin_hash) = admin(home, &journal, known)?;
        Ok(Self { journal: Arc::new(journal), authority, identity, admin_token, admin_hash })
    }
}

/// Makes a folder that only its owner may enter, and those above it that are missing. One that is there may let others
/// pass through it, as long as they cannot look into it or change it. One that is open to others is somebody's on purpose,
/// and stays as it is; but for one of ours that holds nothing yet, or only settings:
/// that is closed to others.
///
/// # Errors
/// [`Error::OpenFolder`], or [`Error::Home`].
pub fn private_folder(path: &Path) -> Result<(), Error> {
    if !path.exists() {
        return DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("make the folder", path));
    }
    let found = fs::metadata(path).map_err(failed("look at", path))?;
    if !found.is_dir() {
        return Err(failed("use as a folder", path)(std::io::ErrorKind::NotADirectory.into()));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o066 == 0 {
        return Ok(());
    }
    // `/proc/self` belongs to this process's user.
    let ours = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == found.uid());
    if !ours || mode & STICKY != 0 || !holds_settings_at_most(path)? {
        return Err(Error::OpenFolder { path: path.to_owned(), mode });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed("close to others", path))
}

fn holds_settings_at_most(path: &Path) -> Result<bool, Error> {
    for entry in fs::read_dir(path).map_err(failed("look into", path))? {
        if entry.map_err(failed("look into", path))?.file_name() != SETTINGS_FILE {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The CA, made where the state is `new`. A state without its CA is not taken up: the nodes and the admin token that
/// it knows belong to a cluster that nobody could continue.
fn authority(folder: &Path, cluster_name: &str, new: bool) -> Result<Authority, Error> {
    if new {
        return Ok(Authority::load_or_create(folder, cluster_name)?);
    }
    match Authority::load(folder) {
        Err(identity::Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::AuthorityLost { folder: folder.to_owned() })
        }
        other => Ok(other?),
    }
}

fn identity(own: &Path, authority: &Authority) -> Result<Identity, Error> {
    if Identity::exists(own)
        && let Ok(identity) = Identity::load(own)
        && identity.cluster_id() == authority.cluster_id()
        && identity.expires() > SystemTime::now() + RENEW_BEFORE.min(NODE_LIFETIME / 2)
    {
        return Ok(identity);
    }
    // The CA is here, so a certificate that is lost, damaged or old is simply made anew.
    let identity = authority.identity(Role::Head, "head")?;
    identity.save(own)?;
    Ok(identity)
}

/// BLAKE3 of a token's text.
pub(crate) fn token_hash(text: &str) -> [u8; 32] {
    *blake3::hash(text.as_bytes()).as_bytes()
}

/// The admin token and its hash. A file that is lost or does not match the state is replaced by a new token.
fn admin(home: &Path, journal: &Disk, known: Vec<Record>) -> Result<(String, [u8; 32]), Error> {
    let file = home.join(ADMIN_FILE);
    let known = known.into_iter().find_map(|record| match record {
        Record::Admin { hash } => Some(hash),
        _ => None,
    });
    if let (Some(known), Ok(text)) = (known, fs::read_to_string(&file)) {
        let text = text.trim();
        if bool::from(token_hash(text).ct_eq(&known)) {
            return Ok((text.to_owned(), known));
        }
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|e| Error::Start(format!("the system gives no randomness: {e}")))?;
    let text = format!("{ADMIN_PREFIX}{}", hex::encode(secret));
    let hash = token_hash(&text);
    replace(&file, format!("{text}\n").as_bytes())?;
    journal.append(&[Record::Admin { hash }])?;
    Ok((text, hash))
}

/// Writes where this head is, for the command line on the same machine.
pub(super) fn announce(home: &Path, quic: SocketAddr, http: SocketAddr, cluster: &str) -> Result<(), Error> {
    let whereabouts = Whereabouts { quic, http, cluster: cluster.to_owned(), pid: std::process::id() };
    let text = serde_json::to_vec_pretty(&whereabouts).map_err(|e| Error::Start(e.to_string()))?;
    replace(&home.join(WHERE_FILE), &text)
}

/// Takes back what [`announce`] wrote.
pub(super) fn withdraw(home: &Path) {
    // Best effort: a reader of a stale one finds nobody at that address.
    let _left_over = fs::remove_file(home.join(WHERE_FILE));
}

/// Replaces a file's contents at once; only its owner may read it.
fn replace(file: &Path, contents: &[u8]) -> Result<(), Error> {
    let new = file.with_extension("new");
    // A leftover of an interrupted start would keep its own mode.
    if let Err(e) = fs::remove_file(&new)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        return Err(failed("replace", &new)(e));
    }
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed("write", &new))?;
    out.write_all(contents).and_then(|()| out.sync_all()).map_err(failed("write", &new))?;
    fs::rename(&new, file).map_err(failed("replace", file))
}
