//! Files in a folder, with direct IO where the file system allows it.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{AtFlags, FallocateFlags, Mode, OFlags},
    io::Errno,
};

use super::{Sink, Source, Target};
use crate::Error;

/// Locked for as long as the process lives that made the folder, however that process ends.
const LOCK: &str = "lock";
/// Instead of [`LOCK`], on file systems without locks. Nothing says there who is gone.
const UNLOCKED: &str = "unlocked";
/// A folder with neither is that of a process that was killed before it made one, or while it removed the folder, if it is
/// older than this.
const UNLOCKED_MAX: Duration = Duration::from_secs(600);
/// Hexadecimal digits of a folder's own name.
const DIGITS: usize = 16;

/// A folder of its own for the files of one process. What lies in it goes with it, when this is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Not read: it is held.
    lock: Option<File>,
}

impl Folder {
    /// Makes the folder (0700), in one that is this process's alone: what an earlier process left in its place is removed.
    ///
    /// # Errors
    /// Where the folder cannot be made, or what lies in its place cannot be removed.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unmade(&path)(error)),
            _ => {}
        }
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(unmade(&path))?;
        }
        Self::make(path)
    }

    /// Makes a folder (0700) in one that others use too, of this machine and of others: `mobula-spill-`, the machine's
    /// name, and a number that nobody can guess. Removes what killed processes of machines of this name left there; on a
    /// file system without locks nobody knows what that is, and it stays.
    ///
    /// # Errors
    /// Where the folder cannot be made.
    pub fn within(parent: impl AsRef<Path>) -> Result<Self, Error> {
        let uname = rustix::system::uname();
        Self::of_machine(parent.as_ref(), &uname.nodename().to_string_lossy())
    }

    fn of_machine(parent: &Path, machine: &str) -> Result<Self, Error> {
        // The process may go to another folder before it removes this one.
        let parent = std::path::absolute(parent).map_err(unmade(parent))?;
        DirBuilder::new().recursive(true).mode(0o700).create(&parent).map_err(unmade(&parent))?;
        let plain =
            |letter: char| if letter.is_ascii_alphanumeric() || ".-".contains(letter) { letter } else { '_' };
        let prefix = format!("mobula-spill-{}-", machine.chars().take(64).map(plain).collect::<String>());
        // What others left is not this process's trouble.
        let _swept = sweep(&parent, &prefix);
        let mut number = [0; DIGITS / 2];
        getrandom::fill(&mut number).map_err(|error| unmade(&parent)(io::Error::other(error)))?;
        let mut folder = Self::make(parent.join(format!("{prefix}{:016x}", u64::from_ne_bytes(number))))?;
        folder.lock = hold(&folder.path).map_err(unmade(&folder.path))?;
        Ok(folder)
    }

    /// Whatever is there already was made by somebody else, who may read or replace what is written there.
    fn make(path: PathBuf) -> Result<Self, Error> {
        DirBuilder::new().mode(0o700).create(&path).map_err(unmade(&path))?;
        Ok(Self { path, lock: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a file of this name is no spilled one, but says that the folder is in use.
    pub fn is_mark(name: &OsStr) -> bool {
        name == LOCK || name == UNLOCKED
    }

    pub(super) fn file(&self, file: u64) -> PathBuf {
        self.path.join(format!("{file}.spill"))
    }

    fn begin(&self, file: u64, bytes: u64) -> Result<Writing, Error> {
        let open = Open::new(self.file(file), true)?;
        // A full disk shows before anything is written. Not every file system can say.
        match rustix::fs::fallocate(&open.file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP) | Ok(()) => {}
            Err(errno) => return Err(open.failed("making room on the disk", errno.into())),
        }
        Ok(Writing { open, at: 0 })
    }

    fn complete(&self, file: u64) -> Result<Open, Error> {
        Open::new(self.file(file), false)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Whoever starts next in its place tries again.
        let _left = fs::remove_dir_all(&self.path);
    }
}

fn unmade(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Disk { what: "the folder for spilled objects", path: path.to_owned(), source }
}

/// Marks a folder as one in use; `None` where there are no locks. The lock has its name only once it is locked, so that
/// one in use is never taken for one that was left.
fn hold(folder: &Path) -> io::Result<Option<File>> {
    let early = folder.join("lock.new");
    // Writable, as locks of network file systems ask for.
    let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&early)?;
    let (name, lock) = match lock.try_lock() {
        Ok(()) => (LOCK, Some(lock)),
        Err(_) => (UNLOCKED, None),
    };
    fs::rename(early, folder.join(name))?;
    Ok(lock)
}

/// Removes the folders of this prefix whose makers are gone.
fn sweep(parent: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let own = name.to_str().and_then(|name| name.strip_prefix(prefix));
        if own.is_some_and(|own| own.len() == DIGITS && own.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            // One that cannot be removed must not keep the others from it; and somebody else may be removing it too.
            let _gone = remove_left(&entry.path());
        }
    }
    Ok(())
}

fn remove_left(path: &Path) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let folder = OpenOptions::new().read(true).custom_flags(bits(flags)).open(path)?;
    let found = folder.metadata()?;
    // Somebody else may have put it there, to have another folder emptied.
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Held until all is removed.
    let _lock = match rustix::fs::openat(&folder, LOCK, flags, Mode::empty()) {
        Ok(lock) => {
            let lock = File::from(lock);
            lock.try_lock()?;
            Some(lock)
        }
        Err(Errno::NOENT) => {
            let unlocked = rustix::fs::statat(&folder, UNLOCKED, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            if unlocked || found.modified()?.elapsed().is_ok_and(|age| age < UNLOCKED_MAX) {
                return Ok(());
            }
            None
        }
        Err(errno) => return Err(errno.into()),
    };
    fs::remove_dir_all(path)
}

fn bits(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).unwrap_or(0)
}

impl Target for Folder {
    fn create(&self, file: u64, bytes: u64) -> Result<Box<dyn Sink>, Error> {
        Ok(Box::new(self.begin(file, bytes)?))
    }

    fn open(&self, file: u64) -> Result<Box<dyn Source>, Error> {
        Ok(Box::new(self.complete(file)?))
    }

    fn delete(&self, file: u64) -> Result<(), Error> {
        let path = self.file(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::Disk { what: "removing a file of spilled objects", path, source: error })
            }
            _ => Ok(()),
        }
    }
}

struct Open {
    file: File,
    path: PathBuf,
}

impl Open {
    /// To be written, and then it must not be there yet; or to be read. Never what a link leads to.
    fn new(path: PathBuf, write: bool) -> Result<Self, Error> {
        let opened = OpenOptions::new()
            .read(!write)
            .write(write)
            .create_new(write)
            .mode(0o600)
            .custom_flags(bits(OFlags::NOFOLLOW))
            .open(&path)
            .and_then(|file| direct(&file).map(|()| file));
        match opened {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(Error::Disk { what: "opening a file of spilled objects", path, source }),
        }
    }

    fn failed(&self, what: &'static str, source: io::Error) -> Error {
        Error::Disk { what, path: self.path.clone(), source }
    }

    /// A disk whose blocks are larger refuses direct IO only when it is asked for it: then it goes without.
    fn or_buffered(&self, result: io::Result<()>, again: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match result {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                let flags = rustix::fs::fcntl_getfl(&self.file)?;
                if !flags.contains(OFlags::DIRECT) {
                    return Err(error);
                }
                rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                again()
            }
            other => other,
        }
    }
}

/// From now on it is read and written past the page cache, unless the file system cannot. Not asked for when a file is
/// made: some make it and then refuse.
fn direct(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    match rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

impl Source for Open {
    fn read_at(&mut self, offset: u64, chunk: &mut [u8]) -> Result<(), Error> {
        let first = self.file.read_exact_at(chunk, offset);
        let read = self.or_buffered(first, || self.file.read_exact_at(chunk, offset));
        read.map_err(|source| self.failed("reading a file of spilled objects", source))
    }
}

struct Writing {
    open: Open,
    at: u64,
}

impl Sink for Writing {
    fn write(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let (open, at) = (&self.open, self.at);
        let first = open.file.write_all_at(chunk, at);
        let written = open.or_buffered(first, || open.file.write_all_at(chunk, at));
        written.map_err(|source| open.failed("writing a file of spilled objects", source))?;
        self.at += chunk.len() as u64;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::{
        super::{BLOCK_BYTES, Chunk},
        *,
    };

    fn is_direct(file: &File) -> bool {
        rustix::fs::fcntl_getfl(file).unwrap().contains(OFlags::DIRECT)
    }

    /// Whether files here can be opened and written so.
    fn has_direct(folder: &Path) -> bool {
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
        let path = folder.join("probe");
        let open = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(direct).open(path);
        let mut block = Chunk::new(BLOCK_BYTES as usize);
        open.is_ok_and(|file| file.write_all_at(block.bytes(), 0).is_ok())
    }

    /// As if its process had been killed: all stays but the lock.
    fn killed(mut folder: Folder) -> PathBuf {
        drop(folder.lock.take());
        let path = folder.path.clone();
        std::mem::forget(folder);
        path
    }

    #[test]
    fn folders_in_one_are_apart_and_only_what_nobody_holds_is_swept() {
        let shared = tempfile::tempdir().unwrap();
        let of = |machine| {
            let folder = Folder::of_machine(&shared.path().join("made/too"), machine).unwrap();
            folder.begin(1, BLOCK_BYTES).unwrap();
            folder
        };
        // Of one machine, of one whose name begins like its name, and of none that is known here.
        let living = [of("a/b"), of("a/b"), of("a_b-c")];
        let elsewhere = killed(of("other"));
        let left = killed(of("a/b"));
        let name = left.file_name().unwrap().to_str().unwrap();
        let (prefix, number) = name.split_at(name.len() - DIGITS);
        assert!(
            prefix == "mobula-spill-a_b-" && number.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{name}"
        );
        // Killed before there was a lock; or another program's, or of a file system without locks.
        let long_ago = std::time::SystemTime::now() - 2 * UNLOCKED_MAX;
        let early = |number: u64, age, mark: Option<&str>| {
            let path = left.with_file_name(format!("{prefix}{number:016x}"));
            fs::create_dir(&path).unwrap();
            if let Some(mark) = mark {
                fs::write(path.join(mark), "").unwrap();
            }
            File::open(&path).unwrap().set_modified(age).unwrap();
            path
        };
        let young = early(1, std::time::SystemTime::now(), None);
        let old = early(2, long_ago, None);
        let without_locks = early(3, long_ago, Some(UNLOCKED));
        let link = left.with_file_name(format!("{prefix}{:016x}", 4));
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        let foreign = early(5, long_ago, Some(LOCK));
        let is_root = std::os::unix::fs::chown(&foreign, Some(65534), None).is_ok();
        drop(of("a/b"));
        let there = |folder: &Path| folder.join("1.spill").exists();
        assert!(living.iter().all(|folder| there(&folder.path)));
        assert!(there(&elsewhere) && there(&link) && young.exists() && without_locks.exists());
        assert!(!left.exists() && !old.exists() && foreign.exists() == is_root);
        let paths = living.map(|folder| folder.path.clone());
        assert!(paths.iter().all(|path| !path.exists()), "{paths:?}");
    }

    #[test]
    fn what_somebody_else_made_is_never_written_to_nor_read() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("theirs")).unwrap();
        fs::write(at("theirs/file"), "theirs").unwrap();
        std::os::unix::fs::symlink(at("theirs"), at("link")).unwrap();
        let exists = |result: Result<(), Error>| match result {
            Err(Error::Disk { source, .. }) => source.kind() == io::ErrorKind::AlreadyExists,
            other => panic!("{other:?}"),
        };
        // As if they had been quicker than this process, which has just found nothing there.
        for name in ["theirs", "link"] {
            assert!(exists(Folder::make(at(name)).map(drop)), "{name}");
        }
        let folder = Folder::new(at("link")).unwrap();
        assert!(fs::symlink_metadata(at("link")).unwrap().is_dir());
        for file in 1..3 {
            std::os::unix::fs::symlink(at("theirs/file"), folder.file(file)).unwrap();
            assert!(exists(folder.begin(file, 1).map(drop)));
            let read = folder.complete(file).map(drop);
            assert!(
                matches!(read, Err(Error::Disk { ref source, .. }) if source.raw_os_error() == Some(Errno::LOOP.raw_os_error())),
                "{read:?}"
            );
        }
        fs::write(folder.file(3), "theirs").unwrap();
        assert!(exists(folder.begin(3, 1).map(drop)));
        assert_eq!(fs::read_to_string(at("theirs/file")).unwrap(), "theirs");
    }

    /// The page cache has no second copy of what leaves memory since that is short.
    #[test]
    fn files_are_written_and_read_directly_wherever_that_can_be() {
        for within in [std::env::temp_dir(), "/dev/shm".into()] {
            let home = tempfile::Builder::new().tempdir_in(&within).unwrap();
            let direct = has_direct(home.path());
            eprintln!("{}: direct IO: {direct}", within.display());
            let folder = Folder::new(home.path().join("spill")).unwrap();
            let mut chunk = Chunk::new(2 * BLOCK_BYTES as usize);
            chunk.bytes().fill(7);
            let mut sink = folder.begin(1, 2 * BLOCK_BYTES).unwrap();
            sink.write(chunk.bytes()).unwrap();
            let mut source = folder.complete(1).unwrap();
            let mut read = Chunk::new(BLOCK_BYTES as usize);
            source.read_at(BLOCK_BYTES, read.bytes()).unwrap();
            assert!(read.bytes().iter().all(|byte| *byte == 7));
            // Not taken back by the first write or read, either.
            let found = [&sink.open.file, &source.file].map(is_direct);
            assert_eq!(found, [direct; 2], "writing and reading in {}", within.display());
        }
    }
}
