//! Files in a folder, with direct IO where the file system allows it.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::PathBuf,
};

use rustix::{
    fs::{FallocateFlags, OFlags},
    io::Errno,
};

use super::{Sink, Source, Target};
use crate::Error;

/// A folder of its own for the files of one process. What lies in it goes with it, when this is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder (0700). What an earlier process left there is removed.
    ///
    /// # Errors
    /// Where the folder cannot be made or emptied.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let failed =
            |source| Error::Disk { what: "the folder for spilled objects", path: path.clone(), source };
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        Ok(Self { path })
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
        let _left = std::fs::remove_dir_all(&self.path);
    }
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
        match std::fs::remove_file(&path) {
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
    fn new(path: PathBuf, write: bool) -> Result<Self, Error> {
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        let open = |flags| {
            OpenOptions::new()
                .read(!write)
                .write(write)
                .create(write)
                .mode(0o600)
                .custom_flags(flags)
                .open(&path)
        };
        let opened = match open(direct) {
            // A file system without direct IO.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => open(0),
            other => other,
        };
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
    fn has_direct(folder: &std::path::Path) -> bool {
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
        let path = folder.join("probe");
        let open = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(direct).open(path);
        let mut block = Chunk::new(BLOCK_BYTES as usize);
        open.is_ok_and(|file| file.write_all_at(block.bytes(), 0).is_ok())
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
