//! Temporary folders of clusters that a program starts for itself.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{Error, ErrorKind, Result};

/// How the folders' names begin.
const PREFIX: &str = "mobula-home-";
/// Locked for as long as the process lives that made the folder, however that process ends.
const LOCK: &str = "lock";

/// A folder without a lock is somebody's who was killed before there was one, if it is older than this.
const UNLOCKED_MAX: Duration = Duration::from_secs(60);

/// Those of this process, and what goes with them.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn folders() -> MutexGuard<'static, Vec<PathBuf>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes those that this process still has, since it exits.
pub(super) fn remove_all() {
    for folder in std::mem::take(&mut *folders()) {
        let _gone = fs::remove_dir_all(folder);
    }
}

/// A folder that goes with this value; or, where this process is killed, with the next one that makes such a folder.
pub(super) struct Home {
    folder: tempfile::TempDir,
    /// Folders elsewhere that are removed with it where the process exits.
    others: Vec<PathBuf>,
    _lock: File,
}

impl Home {
    /// A new one, in the system's folder for temporary files.
    pub(super) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        // What others left is not this program's trouble.
        let _swept = sweep(&parent);
        let home = Self::within(&parent).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("no temporary folder in {}: {error}", parent.display()))
        })?;
        folders().push(home.path().to_owned());
        super::exit::watch();
        Ok(home)
    }

    fn within(parent: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // It has its name only once it is locked, so that a locked one is never taken for a left one.
        let early = folder.path().join("lock.new");
        let lock = File::create(&early)?;
        lock.lock()?;
        fs::rename(early, folder.path().join(LOCK))?;
        Ok(Self { folder, others: Vec::new(), _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Has this folder go too where the process exits. Whoever made it removes it otherwise.
    pub(super) fn and(&mut self, folder: &Path) {
        self.others.push(folder.to_owned());
        folders().push(folder.to_owned());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        folders().retain(|other| other != self.folder.path() && !self.others.contains(other));
    }
}

/// For a process that was given `folder` within a home and ends: removes it if its maker, who exited meanwhile, has
/// removed the home already.
pub(super) fn remove_late(folder: &Path) {
    let Some(home) = folder.parent() else { return };
    let is_home = home.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if is_home && !home.join(LOCK).exists() {
        let _gone = fs::remove_dir_all(folder);
        // Fails where others are still there, of whom the last does it.
        let _gone = fs::remove_dir(home);
    }
}

/// Removes folders whose makers are gone.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_left(&entry.path()) {
            // Somebody else may be removing it too.
            let _gone = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

fn is_left(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = fs::metadata(folder).and_then(|folder| folder.modified());
            made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > UNLOCKED_MAX))
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let held = Home::within(parent.path()).unwrap();
        // As if a process had been killed: the folder stays, the lock is gone.
        let mut killed = Home::within(parent.path()).unwrap();
        killed.folder.disable_cleanup(true);
        let left = killed.path().to_owned();
        drop(killed);
        fs::create_dir(left.join("binaries")).unwrap();
        let (young, old) = (parent.path().join("mobula-home-young"), parent.path().join("mobula-home-old"));
        fs::create_dir(&young).unwrap();
        fs::create_dir(&old).unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * UNLOCKED_MAX;
        File::open(&old).unwrap().set_modified(long_ago).unwrap();
        sweep(parent.path()).unwrap();
        assert!(held.path().exists() && young.exists() && !left.exists() && !old.exists());
        let path = held.path().to_owned();
        drop(held);
        assert!(!path.exists());
    }
}
