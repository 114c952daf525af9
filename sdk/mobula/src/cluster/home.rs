//! Temporary folders of clusters that a program starts for itself.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use crate::{Error, ErrorKind, Result};

/// How the folders' names begin.
const PREFIX: &str = "mobula-home-";
/// Locked for as long as the process lives that made the folder, however that process ends.
const LOCK: &str = "lock";

/// A folder that goes with this value; or, where this process is killed, with the next one that makes such a folder.
pub(super) struct Home {
    folder: tempfile::TempDir,
    _lock: File,
}

impl Home {
    /// A new one, in the system's folder for temporary files.
    pub(super) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        // What others left is not this program's trouble.
        let _swept = sweep(&parent);
        Self::within(&parent).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("no temporary folder in {}: {error}", parent.display()))
        })
    }

    fn within(parent: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // It has its name only once it is locked, so that a locked one is never taken for a left one.
        let early = folder.path().join("lock.new");
        let lock = File::create(&early)?;
        lock.lock()?;
        fs::rename(early, folder.path().join(LOCK))?;
        Ok(Self { folder, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes folders whose makers are gone.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_left(&entry.path().join(LOCK)) {
            // Somebody else may be removing it too.
            let _gone = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

fn is_left(lock: &PathBuf) -> bool {
    File::open(lock).is_ok_and(|lock| match lock.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let held = Home::within(parent.path()).unwrap();
        let Home { folder, _lock } = Home::within(parent.path()).unwrap();
        // As if the process had been killed: the folder stays, the lock is gone.
        let left = folder.keep();
        drop(_lock);
        fs::create_dir(left.join("binaries")).unwrap();
        let foreign = parent.path().join("mobula-home-of-nobody");
        fs::create_dir(&foreign).unwrap();
        sweep(parent.path()).unwrap();
        assert!(held.path().exists() && foreign.exists() && !left.exists());
        let path = held.path().to_owned();
        drop(held);
        assert!(!path.exists());
    }
}
