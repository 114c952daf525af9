use std::{
    collections::HashMap,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
};

use super::*;

/// A disk in memory, of so many bytes, that fails after so many writes.
#[derive(Clone, Debug)]
struct Memory {
    files: Arc<Mutex<HashMap<u64, Vec<u8>>>>,
    bytes_max: usize,
}

impl Memory {
    fn new(bytes_max: usize) -> Self {
        Self { files: Arc::default(), bytes_max }
    }
}

fn full() -> Error {
    Error::Disk { what: "writing", path: "memory".into(), source: io::Error::from(rustix::io::Errno::NOSPC) }
}

struct InMemory(Memory, u64);

impl Target for Memory {
    fn create(&self, file: u64, _: u64) -> Result<Box<dyn Sink>, Error> {
        assert!(self.files.lock().unwrap().insert(file, Vec::new()).is_none());
        Ok(Box::new(InMemory(self.clone(), file)))
    }

    fn open(&self, file: u64) -> Result<Box<dyn Source>, Error> {
        Ok(Box::new(InMemory(self.clone(), file)))
    }

    fn delete(&self, file: u64) -> Result<(), Error> {
        self.files.lock().unwrap().remove(&file);
        Ok(())
    }
}

fn assert_aligned(chunk: &[u8]) {
    assert!((chunk.as_ptr() as usize).is_multiple_of(BLOCK_BYTES as usize));
    assert!(chunk.len().is_multiple_of(BLOCK_BYTES as usize) && chunk.len() <= CHUNK_BYTES);
}

impl Sink for InMemory {
    fn write(&mut self, chunk: &[u8]) -> Result<(), Error> {
        assert_aligned(chunk);
        let mut files = self.0.files.lock().unwrap();
        if files.values().map(Vec::len).sum::<usize>() + chunk.len() > self.0.bytes_max {
            return Err(full());
        }
        files.get_mut(&self.1).unwrap().extend_from_slice(chunk);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

impl Source for InMemory {
    fn read_at(&mut self, offset: u64, chunk: &mut [u8]) -> Result<(), Error> {
        assert_aligned(chunk);
        let files = self.0.files.lock().unwrap();
        let file = &files[&self.1];
        let range = offset as usize..offset as usize + chunk.len();
        chunk.copy_from_slice(file.get(range).ok_or_else(full)?);
        Ok(())
    }
}

fn filled(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// Objects of every awkward length, with where each begins.
#[expect(clippy::type_complexity, reason = "what `write` takes")]
fn objects() -> (Vec<(Vec<u8>, Vec<u8>)>, Vec<u64>) {
    let block = BLOCK_BYTES as usize;
    let lens = [
        0,
        1,
        block - TRAILER_BYTES,
        block - TRAILER_BYTES + 1,
        block - 1,
        block,
        CHUNK_BYTES - 2 * block,
        CHUNK_BYTES,
        2 * CHUNK_BYTES + 7,
        100,
    ];
    let all: Vec<_> =
        lens.iter().enumerate().map(|(at, len)| (vec![at as u8; 4], filled(*len, at as u8))).collect();
    let offsets = all
        .iter()
        .scan(0, |next, (_, bytes)| {
            let at = *next;
            *next += slot_bytes(bytes.len() as u64).unwrap();
            Some(at)
        })
        .collect();
    (all, offsets)
}

fn check(target: &dyn Target) {
    let (all, offsets) = objects();
    write(target, 7, &all).unwrap();
    for ((name, bytes), offset) in all.iter().zip(&offsets) {
        let mut into = vec![0xEE; bytes.len()];
        read(target, 7, *offset, name, &mut into).unwrap();
        assert!(into == *bytes, "{} bytes", bytes.len());
    }
    let (name, bytes) = &all[8];
    let mut into = vec![0; bytes.len()];
    let wrong =
        |result: Result<(), Error>| assert!(matches!(result, Err(Error::Damaged { .. })), "{result:?}");
    wrong(read(target, 7, offsets[8], b"another", &mut into));
    wrong(read(target, 7, offsets[7], name, &mut into));
    let shorter = into.len() - 1;
    wrong(read(target, 7, offsets[8], name, &mut into[..shorter]));
    target.delete(7).unwrap();
    target.delete(7).unwrap();
}

#[test]
fn what_is_written_is_what_is_read() {
    check(&Memory::new(usize::MAX));
}

#[test]
fn a_folder_holds_what_is_written_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("spill");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("1.spill"), "of an earlier process").unwrap();
    let folder = Folder::new(&path).unwrap();
    check(&folder);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    let error = read(&folder, 7, 0, b"gone", &mut [0; 4]).unwrap_err();
    assert!(error.to_string().contains("7.spill") && matches!(error, Error::Disk { .. }), "{error}");
    write(&folder, 8, &[(vec![1], vec![1])]).unwrap();
    drop(folder);
    assert!(!path.exists());
}

#[test]
fn direct_io_is_left_where_there_is_none() {
    // Shared memory may know no direct IO, or know it: both must do.
    let home = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    check(&Folder::new(home.path().join("spill")).unwrap());
}

#[test]
fn every_flipped_bit_is_found() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path().join("spill")).unwrap();
    let bytes = filled(5000, 3);
    write(&folder, 1, &[(vec![1], bytes.clone())]).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(folder.file(1)).unwrap();
    let mut into = vec![0; bytes.len()];
    for at in (0..5000 + TRAILER_BYTES as u64).step_by(17).chain([4999, 5000, 5047]) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at).unwrap();
        let result = read(&folder, 1, 0, &[1], &mut into);
        assert!(
            matches!(result, Err(Error::Damaged { file: 1, offset: 0, bytes: 5000 })),
            "at {at}: {result:?}"
        );
        file.write_all_at(&byte, at).unwrap();
    }
    read(&folder, 1, 0, &[1], &mut into).unwrap();
    assert_eq!(into, bytes);
    file.set_len(4096).unwrap();
    assert!(matches!(read(&folder, 1, 0, &[1], &mut into), Err(Error::Disk { .. })), "its end is cut off");
}

#[test]
fn a_full_disk_is_an_error_and_leaves_no_file() {
    let disk = Memory::new(CHUNK_BYTES + 1);
    let (all, _) = objects();
    let error = write(&disk, 1, &all).unwrap_err();
    assert_eq!(error.kind(), mobula_proto::FailureKind::StoreFull, "{error}");
    assert!(disk.files.lock().unwrap().is_empty());
    write(&disk, 2, &all[..6]).unwrap();
}

#[test]
fn what_has_a_scheme_is_a_url() {
    for url in ["s3://bucket/x", "memory:///", "unknown+x://y"] {
        assert_eq!(Place::of(Path::new(url)), Place::Url(url.to_owned()));
    }
    for path in ["/scratch", "scratch", "./s3://x", "C:/x", "://x", "1://x"] {
        assert_eq!(Place::of(Path::new(path)), Place::Folder(path.into()));
    }
}
