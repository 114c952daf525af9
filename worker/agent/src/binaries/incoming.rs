//! Content on its way into the store.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::PathBuf,
    sync::Arc,
};

use mobula_proto::BinaryHash;

use super::{Error, INCOMING_PREFIX, InUse, Shared, charge, io_error, remove};

/// An entry that is being written. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct Incoming {
    shared: Arc<Shared>,
    expected: BinaryHash,
    len: u64,
    written: u64,
    hasher: blake3::Hasher,
    temporary: PathBuf,
    /// `None` once closed.
    file: Option<File>,
}

impl Incoming {
    /// Takes over the room that was reserved for it, and gives it back when dropped.
    pub(super) fn new(
        shared: Arc<Shared>,
        expected: BinaryHash,
        len: u64,
        number: u64,
    ) -> Result<Self, Error> {
        let temporary = shared.folder.join(format!("{INCOMING_PREFIX}{}-{number}", std::process::id()));
        let hasher = blake3::Hasher::new();
        let mut incoming = Self { shared, expected, len, written: 0, hasher, temporary, file: None };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&incoming.temporary);
        incoming.file = Some(file.map_err(io_error(&incoming.temporary))?);
        Ok(incoming)
    }

    /// Appends. After an error it can only be dropped.
    ///
    /// # Errors
    /// [`Error::Length`] where it would be more than announced; [`Error::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let after = self.written.saturating_add(bytes.len() as u64);
        if after > self.len {
            return Err(Error::Length { expected: self.len, actual: after });
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes).map_err(io_error(&self.temporary))?;
        }
        self.hasher.update(bytes);
        self.written = after;
        Ok(())
    }

    /// How many bytes are still to come.
    pub fn missing_bytes(&self) -> u64 {
        self.len - self.written
    }

    /// Checks what came, and gives it its name. Blocks until the disk has it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the hash differs, [`Error::Length`] where bytes are missing, [`Error::Io`];
    /// nothing is stored then.
    pub fn finish(mut self) -> Result<InUse, Error> {
        if self.written != self.len {
            return Err(Error::Length { expected: self.len, actual: self.written });
        }
        let actual = BinaryHash(*self.hasher.finalize().as_bytes());
        if actual != self.expected {
            return Err(Error::Mismatch { expected: self.expected, actual });
        }
        // Closed before it has its name: a program that someone holds open for writing cannot be run.
        if let Some(file) = self.file.take() {
            let done = file.set_permissions(Permissions::from_mode(0o555)).and_then(|()| file.sync_all());
            done.map_err(io_error(&self.temporary))?;
        }
        let entry = {
            let mut state = self.shared.state.lock();
            if let Some(entry) = Shared::acquire(&self.shared, &mut state, self.expected) {
                return Ok(entry);
            }
            let path = self.shared.path(self.expected);
            fs::rename(&self.temporary, &path).map_err(io_error(&path))?;
            // Its charge passes from incoming to stored: `drop` gives back the one, this adds the other.
            state.add(self.expected, charge(self.len));
            InUse::count(&self.shared, &mut state, self.expected)
        };
        let folder = &self.shared.folder;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder))?;
        entry.ok_or_else(|| io_error(folder)(ErrorKind::NotFound.into()))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.file = None;
        // Gone already where it was finished.
        remove(&self.temporary);
        self.shared.release(charge(self.len));
    }
}
