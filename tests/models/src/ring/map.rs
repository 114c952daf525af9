//! In place of the rings' mapped memory files: those of the same file share what is known here by the file's number.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{Mutex, PoisonError},
};

use rustix::{fs::MemfdFlags, io::Errno};

use super::{
    Error,
    sync::{AtomicU32, AtomicU64},
};
use crate::memory::Memory;

loom::lazy_static! {
    static ref FILES: Mutex<HashMap<u64, Rc<File>>> = Mutex::default();
}

/// What lies before the data of a ring; a doorbell has no more than that.
const HEADER_BYTES: usize = 4096;

/// Words are made before any thread but the first runs, since the model checker takes an atomic's making for a write.
struct File {
    words64: HashMap<usize, AtomicU64>,
    words32: HashMap<usize, AtomicU32>,
    memory: Memory,
}

pub(super) fn create(name: &str, bytes: usize, header: &[u8]) -> Result<OwnedFd, Error> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
        .map_err(|errno| Error::system("memfd_create", errno))?;
    let mut first = header.to_vec();
    first.resize(HEADER_BYTES, 0);
    let at = |offset: usize| first.get(offset..).unwrap_or_default();
    let word64 = |offset| at(offset).first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let word32 = |offset| at(offset).first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    // Those that both sides write stand alone in their lines; the rest is written once, or claimed, in the first one.
    let lines = (0..HEADER_BYTES).step_by(256);
    let places64 = lines.clone().chain((HEADER_BYTES..bytes).step_by(8));
    let places32 = lines.skip(1).chain((8..32).step_by(4));
    let file = File {
        words64: places64.map(|offset| (offset, AtomicU64::new(word64(offset)))).collect(),
        words32: places32.map(|offset| (offset, AtomicU32::new(word32(offset)))).collect(),
        memory: Memory::new(bytes),
    };
    FILES.lock().unwrap_or_else(PoisonError::into_inner).insert(number(&fd)?, Rc::new(file));
    Ok(fd)
}

fn number(fd: &OwnedFd) -> Result<u64, Error> {
    Ok(rustix::fs::fstat(fd).map_err(|errno| Error::system("fstat", errno))?.st_ino)
}

pub(super) struct Map {
    file: Rc<File>,
}

impl Map {
    pub(super) fn open(fd: OwnedFd, bytes_min: usize) -> Result<Self, Error> {
        let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let file = files.get(&number(&fd)?).ok_or_else(|| Error::system("mmap", Errno::BADF))?;
        assert!(file.memory.len() >= bytes_min);
        Ok(Self { file: Rc::clone(file) })
    }

    pub(super) fn len(&self) -> usize {
        self.file.memory.len()
    }

    pub(super) fn word64(&self, offset: usize) -> &AtomicU64 {
        &self.file.words64[&offset]
    }

    pub(super) fn word32(&self, offset: usize) -> &AtomicU32 {
        &self.file.words32[&offset]
    }

    pub(super) fn write(&self, offset: usize, from: &[u8]) {
        self.file.memory.write(offset, from);
    }

    pub(super) fn copy(&self, offset: usize, bytes: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.file.memory.read(offset, bytes));
    }

    /// What is there now. It is leaked, since a model has few reads, and whoever writes there while somebody reads
    /// fails the model.
    pub(super) fn read(&self, offset: usize, bytes: usize) -> &[u8] {
        self.file.memory.read(offset, bytes).leak()
    }
}
