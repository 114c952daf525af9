//! The executables and job files that a node holds, each in a file named by its BLAKE3 hash.
//!
//! - **B-1** A name never stands for other content: a file gets its name, by a rename, only after its content
//!   was written, hashed, made read-only and synced.
//! - **B-2** What is stored and what is being written never exceeds the capacity together; what is not in use
//!   makes way, least recently used first.
//! - **B-3** What is in use (an [`InUse`] of it lives) is never evicted.
//! - **B-4** A crash leaves only files with [`INCOMING_PREFIX`], which the next [`Store::open`] removes.
//!
//! Content is always copied: a hard link to the author's file would change when their linker writes it anew.
//! A folder belongs to one store at a time. All functions block on the disk: call them off the IO runtime.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use mobula_proto::BinaryHash;
use parking_lot::Mutex;
use tracing::{debug, warn};

mod incoming;

pub use incoming::Incoming;

/// Longest entry, in bytes.
pub const ENTRY_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// What an entry is charged at least, and in steps of, in bytes: what a file takes on disk. Bounds the number of
/// entries by the capacity too.
pub const CHARGE_BYTES: u64 = 4096;
/// What the names of files that are still being written begin with.
pub const INCOMING_PREFIX: &str = ".incoming-";

/// How much is read from a file at a time, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;

/// Why an entry could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk refused. A retry helps where room was made.
    #[error("{path}: {source}")]
    Io {
        /// What was being touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What came is not what its name says: it was damaged on the way, or changed while it was read.
    #[error("content announced as {expected} has the hash {actual}: send it again")]
    Mismatch {
        /// The hash announced.
        expected: BinaryHash,
        /// The hash of what came.
        actual: BinaryHash,
    },
    /// More or fewer bytes came than announced.
    #[error("{expected} bytes were announced, but {actual} or more came")]
    Length {
        /// How many were announced.
        expected: u64,
        /// How many came, up to where it was noticed.
        actual: u64,
    },
    /// Longer than any entry may be.
    #[error("an entry of {0} bytes is too long: at most {ENTRY_BYTES_MAX}")]
    TooLong(u64),
    /// No room, even without all that is not in use. A retry helps once a job ended.
    #[error(
        "no room for {needed} bytes: of {capacity} bytes, {busy} are in use or being written; raise the capacity or \
         wait for a job to end"
    )]
    Full {
        /// What was asked for, in bytes.
        needed: u64,
        /// The store's capacity in bytes.
        capacity: u64,
        /// What cannot be evicted, in bytes.
        busy: u64,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    |source| Error::Io { path: path.to_owned(), source }
}

/// A store; clones are the same one.
#[derive(Clone, Debug)]
pub struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    capacity_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<BinaryHash, Entry>,
    /// Entries by when they were last used, the longest ago first; no two have the same turn.
    turns: BTreeMap<u64, BinaryHash>,
    turn_next: u64,
    /// What all entries are charged.
    stored_bytes: u64,
    /// What entries being written are charged.
    incoming_bytes: u64,
    /// Makes the names of temporary files differ.
    incoming_next: u64,
}

#[derive(Debug)]
struct Entry {
    /// Tells it from another of the same hash, before or after it.
    birth: u64,
    charge_bytes: u64,
    users: u32,
    turn: u64,
}

/// An entry that stays as long as this lives.
#[derive(Debug)]
pub struct InUse {
    shared: Arc<Shared>,
    hash: BinaryHash,
    birth: u64,
    path: PathBuf,
}

impl InUse {
    /// Counts one more user of an entry that is there.
    fn count(shared: &Arc<Shared>, state: &mut State, hash: BinaryHash) -> Option<Self> {
        let entry = state.entries.get_mut(&hash)?;
        entry.users += 1;
        Some(Self { shared: Arc::clone(shared), hash, birth: entry.birth, path: shared.path(hash) })
    }

    /// The entry's name.
    pub fn hash(&self) -> BinaryHash {
        self.hash
    }

    /// Its file: readable and executable by all, writable by nobody.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Clone for InUse {
    fn clone(&self) -> Self {
        if let Some(entry) = self.shared.state.lock().of(self) {
            entry.users += 1;
        }
        Self { shared: Arc::clone(&self.shared), hash: self.hash, birth: self.birth, path: self.path.clone() }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(entry) = self.shared.state.lock().of(self) {
            entry.users = entry.users.saturating_sub(1);
        }
    }
}

impl Store {
    /// Opens the store in `folder`, made where it is missing, holding at most `capacity_bytes`. What a crash left
    /// is removed, and what is beyond the capacity too, oldest first. Content is not hashed again.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be made or listed.
    pub fn open(folder: impl Into<PathBuf>, capacity_bytes: u64) -> Result<Self, Error> {
        let folder = folder.into();
        // A host of another user may run an entry whose hash it was told, but not list them.
        DirBuilder::new().recursive(true).mode(0o711).create(&folder).map_err(io_error(&folder))?;
        let mut found: Vec<(SystemTime, BinaryHash, u64)> = Vec::new();
        for item in fs::read_dir(&folder).map_err(io_error(&folder))? {
            let item = item.map_err(io_error(&folder))?;
            let name = item.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(INCOMING_PREFIX) {
                debug!(name, "removing what was not finished");
                remove(&item.path());
            } else if let (Some(hash), Ok(meta)) = (parse_name(name), item.metadata())
                && meta.is_file()
            {
                found.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), hash, meta.len()));
            }
        }
        found.sort();
        let mut state = State::default();
        for (_, hash, bytes) in found {
            state.add(hash, charge(bytes));
        }
        let shared = Shared { folder, capacity_bytes, state: Mutex::new(state) };
        {
            let mut state = shared.state.lock();
            let excess = state.stored_bytes.saturating_sub(capacity_bytes);
            shared.evict(&mut state, excess);
        }
        Ok(Self(Arc::new(shared)))
    }

    /// Where an entry is, if it is here. It may be evicted at any time after: to run or send it, [`Store::acquire`]
    /// it.
    pub fn path_of(&self, hash: BinaryHash) -> Option<PathBuf> {
        self.acquire(hash).map(|entry| entry.path.clone())
    }

    /// An entry, if it is here, kept from eviction until the result is dropped.
    pub fn acquire(&self, hash: BinaryHash) -> Option<InUse> {
        Shared::acquire(&self.0, &mut self.0.state.lock(), hash)
    }

    /// Stores a copy of a file, under the hash of its content.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::Length`] where the file changes meanwhile; [`Error::TooLong`],
    /// [`Error::Full`], [`Error::Io`].
    pub fn insert_file(&self, path: &Path) -> Result<InUse, Error> {
        let bytes = fs::metadata(path).map_err(io_error(path))?.len();
        if bytes > ENTRY_BYTES_MAX {
            return Err(Error::TooLong(bytes));
        }
        let hash = hash_file(path)?;
        if let Some(entry) = self.acquire(hash) {
            return Ok(entry);
        }
        let mut incoming = self.begin(hash, bytes)?;
        chunks(path, |chunk| incoming.write(chunk))?;
        incoming.finish()
    }

    /// Begins to store content of `len` bytes that is to have this hash. Room is made now, and held until the
    /// result is finished or dropped. Several may write the same content at once; the first to finish wins, the
    /// others get its entry.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Full`], [`Error::Io`].
    pub fn begin(&self, hash: BinaryHash, len: u64) -> Result<Incoming, Error> {
        if len > ENTRY_BYTES_MAX {
            return Err(Error::TooLong(len));
        }
        let number = self.0.reserve(charge(len))?;
        Incoming::new(Arc::clone(&self.0), hash, len, number)
    }

    /// What the store holds and what is being written, in bytes of disk.
    pub fn used_bytes(&self) -> u64 {
        let state = self.0.state.lock();
        state.stored_bytes + state.incoming_bytes
    }

    /// What the store may hold, in bytes of disk.
    pub fn capacity_bytes(&self) -> u64 {
        self.0.capacity_bytes
    }
}

impl Shared {
    fn path(&self, hash: BinaryHash) -> PathBuf {
        self.folder.join(hash.to_string())
    }

    fn acquire(this: &Arc<Self>, state: &mut State, hash: BinaryHash) -> Option<InUse> {
        let path = this.path(hash);
        state.entries.get(&hash)?;
        if !path.is_file() {
            warn!(path = %path.display(), "an entry vanished from the disk");
            state.remove(hash);
            return None;
        }
        state.touch(hash);
        InUse::count(this, state, hash)
    }

    /// Makes room and charges it to what is being written; returns a number for a temporary file.
    fn reserve(&self, needed: u64) -> Result<u64, Error> {
        let mut state = self.state.lock();
        let idle: u64 = state.entries.values().filter(|e| e.users == 0).map(|e| e.charge_bytes).sum();
        let busy = (state.stored_bytes + state.incoming_bytes).saturating_sub(idle);
        let full = Error::Full { needed, capacity: self.capacity_bytes, busy };
        // Nothing is evicted in vain.
        if busy.saturating_add(needed) > self.capacity_bytes {
            return Err(full);
        }
        let excess = (state.stored_bytes + state.incoming_bytes + needed).saturating_sub(self.capacity_bytes);
        if !self.evict(&mut state, excess) {
            return Err(full);
        }
        state.incoming_bytes += needed;
        state.incoming_next += 1;
        Ok(state.incoming_next)
    }

    /// Gives back what [`Shared::reserve`] charged.
    fn release(&self, charged: u64) {
        let mut state = self.state.lock();
        state.incoming_bytes = state.incoming_bytes.saturating_sub(charged);
    }

    /// Removes idle entries until `excess` bytes are free; whether they are.
    fn evict(&self, state: &mut State, excess: u64) -> bool {
        let mut freed = 0;
        let turns: Vec<BinaryHash> =
            if excess > 0 { state.turns.values().copied().collect() } else { Vec::new() };
        for hash in turns {
            if freed >= excess {
                break;
            }
            if state.entries.get(&hash).is_none_or(|entry| entry.users > 0) {
                continue;
            }
            if remove(&self.path(hash)) {
                freed += state.remove(hash);
                debug!(%hash, "evicted");
            }
        }
        freed >= excess
    }
}

impl State {
    fn add(&mut self, hash: BinaryHash, charge_bytes: u64) {
        self.stored_bytes += charge_bytes;
        self.entries.insert(hash, Entry { birth: self.turn_next, charge_bytes, users: 0, turn: 0 });
        self.touch(hash);
    }

    /// The entry that is in use, unless it vanished from the disk meanwhile.
    fn of(&mut self, user: &InUse) -> Option<&mut Entry> {
        self.entries.get_mut(&user.hash).filter(|entry| entry.birth == user.birth)
    }

    fn touch(&mut self, hash: BinaryHash) {
        if let Some(entry) = self.entries.get_mut(&hash) {
            self.turn_next += 1;
            self.turns.remove(&entry.turn);
            entry.turn = self.turn_next;
            self.turns.insert(entry.turn, hash);
        }
    }

    /// What it was charged.
    fn remove(&mut self, hash: BinaryHash) -> u64 {
        let Some(entry) = self.entries.remove(&hash) else { return 0 };
        self.turns.remove(&entry.turn);
        self.stored_bytes = self.stored_bytes.saturating_sub(entry.charge_bytes);
        entry.charge_bytes
    }
}

/// The BLAKE3 hash of a file. Read in chunks and never mapped: a file that its owner shortens meanwhile is an
/// error here, where a mapping of it would kill the process.
///
/// # Errors
/// [`Error::Io`]; [`Error::TooLong`] past [`ENTRY_BYTES_MAX`].
pub fn hash_file(path: &Path) -> Result<BinaryHash, Error> {
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0_u64);
    chunks(path, |chunk| {
        bytes += chunk.len() as u64;
        if bytes > ENTRY_BYTES_MAX {
            return Err(Error::TooLong(bytes));
        }
        hasher.update(chunk);
        Ok(())
    })?;
    Ok(BinaryHash(*hasher.finalize().as_bytes()))
}

fn chunks(path: &Path, mut each: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let mut file = File::open(path).map_err(io_error(path))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => each(&chunk[..n])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error(path)(error)),
        }
    }
}

fn charge(bytes: u64) -> u64 {
    bytes.max(1).div_ceil(CHARGE_BYTES) * CHARGE_BYTES
}

fn parse_name(name: &str) -> Option<BinaryHash> {
    let mut hash = [0; 32];
    hex::decode_to_slice(name, &mut hash).ok()?;
    // Only the spelling that is also looked for.
    let hash = BinaryHash(hash);
    (hash.to_string() == name).then_some(hash)
}

/// Whether the file is gone now.
fn remove(path: &Path) -> bool {
    match fs::remove_file(path) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => {
            warn!(path = %path.display(), %error, "cannot be removed");
            false
        }
    }
}

#[cfg(test)]
mod tests;
