//! Spilled objects in memory, in a folder, and in a server that speaks S3.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use mobula_object_store::{Bucket, Error, Limits, PART_BYTES};
use mobula_store::{
    Error as StoreError,
    spill::{self, Target, slot_bytes},
};
use tempfile::TempDir;

const KEY: &str = "a-key";
const SECRET: &str = "a-secret";

fn filled(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at >> 3) ^ (at >> 13) ^ (seed * 29)) as u8).collect()
}

/// Short, so that what does not answer is found out in a test's time.
fn limits() -> Limits {
    Limits {
        connect: Duration::from_millis(500),
        request: Duration::from_secs(2),
        retries: 1,
        operation: Duration::from_secs(5),
    }
}

fn open(url: &str, home: &Path, variables: &[(&str, &str)]) -> Result<Bucket, Error> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Bucket::open_with(url, home, variables, limits())
}

/// Writes files of one part and of several, and reads all that is in them.
fn check(bucket: &Bucket) {
    for (file, lens) in
        [(1, vec![0, 1, 4096, 100_000]), (2, vec![PART_BYTES, 2 * PART_BYTES + 7, 5]), (3, vec![5000])]
    {
        let objects: Vec<_> =
            lens.iter().enumerate().map(|(at, len)| (vec![at as u8], filled(*len, at))).collect();
        spill::write(bucket, file, &objects).unwrap();
        let mut offset = 0;
        for (name, bytes) in &objects {
            let mut into = vec![0xEE; bytes.len()];
            spill::read(bucket, file, offset, name, &mut into).unwrap();
            assert!(into == *bytes, "{} bytes of file {file} are others", bytes.len());
            let wrong = spill::read(bucket, file, offset, b"another", &mut into);
            assert!(matches!(wrong, Err(StoreError::Damaged { .. })), "{wrong:?}");
            offset += slot_bytes(bytes.len() as u64).unwrap();
        }
        let beyond = spill::read(bucket, file, offset, b"x", &mut [0; 9]).unwrap_err();
        assert!(matches!(beyond, StoreError::Missing { .. }), "{beyond:?}");
    }
    bucket.delete(2).unwrap();
    bucket.delete(2).unwrap();
    let error = spill::read(bucket, 2, 0, b"gone", &mut [0; 4]).unwrap_err();
    assert!(error.to_string().contains("reading file 2 at "), "{error}");
}

/// Damages a file of two objects, which lies below `folder`, in every way: what is left is read, and the rest is an error
/// that says it is lost.
fn damage(bucket: &Bucket, folder: &Path) {
    const FILE: u64 = 77;
    let objects = [(vec![1], filled(5000, 1)), (vec![2], filled(PART_BYTES + 7, 2))];
    spill::write(bucket, FILE, &objects).unwrap();
    let path = find(folder, &format!("{FILE}.spill")).expect("the file");
    let whole = std::fs::read(&path).unwrap();
    let slots = objects.each_ref().map(|(_, bytes)| slot_bytes(bytes.len() as u64).unwrap());
    assert_eq!(whole.len() as u64, slots.iter().sum::<u64>());
    let begin = [0, slots[0]];
    let read = |of: usize| {
        let (name, bytes) = &objects[of];
        let mut into = vec![0xEE; bytes.len()];
        spill::read(bucket, FILE, begin[of], name, &mut into).map(|()| assert!(into == *bytes, "other bytes"))
    };

    for of in 0..2 {
        let (start, len) = (begin[of] as usize, objects[of].1.len());
        // Its first and last byte, and its length and hash behind them.
        for at in [start, start + len / 2, start + len - 1, start + len + 9, start + len + 30] {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            std::fs::write(&path, flipped).unwrap();
            let error = read(of).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { file: FILE, .. }), "byte {at}: {error:?}");
            assert!(error.is_loss());
            read(1 - of).unwrap();
        }
    }
    // Within the second object, within its last block, at its start, and before that: the first is whole in all but the last.
    let second = slots[0] as usize;
    for (cut, first) in [
        (whole.len() - 1, true),
        (second + PART_BYTES, true),
        (second, true),
        (second - 1, false),
        (0, false),
    ] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = read(1).unwrap_err();
        assert!(matches!(error, StoreError::Missing { .. }), "cut at {cut}: {error:?}");
        assert!(error.is_loss());
        match (first, read(0)) {
            (true, Ok(())) | (false, Err(StoreError::Missing { .. })) => {}
            (_, other) => panic!("cut at {cut}: {other:?}"),
        }
    }
    std::fs::write(&path, &whole).unwrap();
    for of in 0..2 {
        read(of).unwrap();
    }
    bucket.delete(FILE).unwrap();
}

/// A file of that name, in the folder or below it.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find_map(|path| if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) })
}

fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        // The server keeps notes of its own beside the objects.
        _ => usize::from(!entry.file_name().as_encoded_bytes().starts_with(b".")),
    };
    entries.map(|entry| count(entry.unwrap())).sum()
}

#[test]
fn memory_holds_what_is_written() {
    let home = tempfile::tempdir().unwrap();
    check(&open("memory:///", home.path(), &[]).unwrap());
}

#[test]
fn a_folder_is_for_one_node_and_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/spilled", folder.path().display());
    let bucket = open(&url, home.path(), &[]).unwrap();
    check(&bucket);
    damage(&bucket, folder.path());
    let own = std::fs::read_dir(folder.path().join("spilled")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(files(&own), 2);
    drop(bucket);
    assert!(!own.exists());

    // What a killed process left goes with the next start; what is another node's stays.
    let other = tempfile::tempdir().unwrap();
    let kept = open(&url, other.path(), &[]).unwrap();
    spill::write(&kept, 1, &[(vec![1], vec![1])]).unwrap();
    std::fs::create_dir(&own).unwrap();
    // One that was complete, and one that was not.
    for name in ["9.spill", "9.spill#1"] {
        std::fs::write(own.join(name), "left").unwrap();
    }
    let bucket = open(&url, home.path(), &[]).unwrap();
    assert_eq!(files(&own), 0);
    drop(bucket);
    spill::read(&kept, 1, 0, &[1], &mut [0]).unwrap();
}

/// A server that speaks S3 over a folder, until this is dropped.
struct Server {
    runtime: Option<tokio::runtime::Runtime>,
    folder: TempDir,
    address: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bucket")).unwrap();
        let mut service =
            s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        service.set_auth(s3s::auth::SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                serving.spawn(async move {
                    let served = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
                    drop(served);
                });
            }
        });
        Self { runtime: Some(runtime), folder, address }
    }

    fn open(&self, home: &Path, secret: &str) -> Result<Bucket, Error> {
        let endpoint = format!("http://{}", self.address);
        let variables = [
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
        ];
        open("s3://bucket/some/where", home, &variables)
    }

    /// How many files lie in the bucket.
    fn files(&self) -> usize {
        files(&self.folder.path().join("bucket"))
    }

    fn stop(&mut self) {
        // Dropping it closes all that is open.
        drop(self.runtime.take());
    }
}

#[test]
fn a_server_that_speaks_s3_holds_what_is_written() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Server::start();
    let bucket = server.open(home.path(), SECRET).unwrap();
    check(&bucket);
    damage(&bucket, server.folder.path());
    assert_eq!(server.files(), 2);
    // As after a kill: nobody removed them.
    std::mem::forget(bucket);
    let bucket = server.open(home.path(), SECRET).unwrap();
    assert_eq!(server.files(), 0);
    spill::write(&bucket, 1, &[(vec![1], filled(3 * PART_BYTES, 1))]).unwrap();
    assert_eq!(server.files(), 1);
    drop(bucket);
    assert_eq!(server.files(), 0);

    let error = server.open(home.path(), "another secret").unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }) && !error.is_setting(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("AWS_SECRET_ACCESS_KEY") && text.contains("s3://bucket/some/where"), "{text}");
    assert!(!text.contains("another secret"), "{text}");

    // One that goes meanwhile is an error, after a bounded time.
    let bucket = server.open(home.path(), SECRET).unwrap();
    let objects = [(vec![1], filled(100, 1))];
    spill::write(&bucket, 1, &objects).unwrap();
    server.stop();
    let began = Instant::now();
    for large in [100, 3 * PART_BYTES] {
        let error = spill::write(&bucket, 2, &[(vec![2], filled(large, 2))]).unwrap_err();
        assert!(matches!(error, StoreError::Target { .. }), "{error:?}");
        assert!(error.to_string().contains("file 2 at s3://bucket/some/where"), "{error}");
    }
    let error = spill::read(&bucket, 1, 0, &[1], &mut [0; 100]).unwrap_err();
    assert!(matches!(error, StoreError::Target { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn what_does_not_answer_is_given_up() {
    let home = tempfile::tempdir().unwrap();
    // It is listened to, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let began = Instant::now();
    let variables = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let error = open("s3://bucket", home.path(), &variables).unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error:?}");
    assert!(began.elapsed() < limits().operation * 2, "{:?}", began.elapsed());
}

#[test]
fn missing_credentials_are_named() {
    let home = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Where a machine's role would be asked for.
    let metadata = format!("http://{closed}");
    let variables = [("AWS_METADATA_ENDPOINT", metadata.as_str()), ("AWS_ENDPOINT_URL", metadata.as_str())];
    let error = open("s3://bucket", home.path(), &variables).unwrap_err();
    assert!(error.to_string().contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{error}");
    let error = open("az://container/folder", home.path(), &[]).unwrap_err();
    assert!(error.is_setting() && error.to_string().contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
    let error =
        open("gs://bucket", home.path(), &[("GOOGLE_SERVICE_ACCOUNT", "/nowhere/key.json")]).unwrap_err();
    assert!(error.is_setting() && error.to_string().contains("GOOGLE_SERVICE_ACCOUNT"), "{error}");
}

#[test]
fn bad_urls_are_refused_with_what_to_write() {
    let home = tempfile::tempdir().unwrap();
    let long = format!("s3://{}", "x".repeat(3000));
    for (url, part) in [
        ("scratch", "relative URL"),
        ("s3://", "names no bucket"),
        ("s3:///folder", "names no bucket"),
        ("gs:bucket", "names no bucket"),
        ("memory://there/x", "three slashes"),
        ("file://scratch/x", "three slashes"),
        ("ftp://there/x", "ftp:// is the scheme of no object store"),
        ("https://there/x", "write s3://, gs://"),
        ("s3://key:word@bucket/x", "in the environment"),
        ("s3://key@bucket/x", "in the environment"),
        ("s3://bucket/x?region=eu", "behind '?'"),
        (&long, "longer than 2048 bytes"),
    ] {
        let error = open(url, home.path(), &[]).unwrap_err();
        assert!(error.is_setting(), "{url}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(part) && !text.contains("word") && text.len() < 500, "{url}: {text}");
    }
    let error = open("file:///proc/nowhere", home.path(), &[]).unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains("make the folder writable"), "{error}");
}
