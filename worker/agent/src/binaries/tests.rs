use std::os::unix::fs::PermissionsExt;

use super::*;

const PAGE: u64 = CHARGE_BYTES;

fn hash_of(bytes: &[u8]) -> BinaryHash {
    BinaryHash(*blake3::hash(bytes).as_bytes())
}

fn put(store: &Store, bytes: &[u8]) -> Result<InUse, Error> {
    let mut incoming = store.begin(hash_of(bytes), bytes.len() as u64)?;
    for chunk in bytes.chunks(7) {
        incoming.write(chunk)?;
    }
    incoming.finish()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn store(pages: u64) -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("home/binaries"), pages * PAGE).unwrap();
    (folder, store)
}

#[test]
fn what_is_inserted_is_there_read_only() {
    let (folder, store) = store(4);
    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\nexit 5\n").unwrap();
    let entry = store.insert_file(&script).unwrap();
    assert_eq!(entry.hash(), hash_of(b"#!/bin/sh\nexit 5\n"));
    assert_eq!(entry.hash(), hash_file(&script).unwrap());
    assert_eq!(entry.path(), store.path_of(entry.hash()).unwrap());
    assert_eq!(fs::metadata(entry.path()).unwrap().permissions().mode() & 0o777, 0o555);

    // The author's file changes; the entry does not.
    fs::write(&script, "#!/bin/sh\nexit 6\n").unwrap();
    assert_eq!(hash_file(entry.path()).unwrap(), entry.hash());
    let other = store.insert_file(&script).unwrap();
    assert_ne!(other.hash(), entry.hash());

    // A third time is the second entry again.
    assert_eq!(store.insert_file(&script).unwrap().hash(), other.hash());
    assert_eq!(store.used_bytes(), 2 * PAGE);
    assert!(store.path_of(hash_of(b"other")).is_none());
    assert!(matches!(store.insert_file(Path::new("/no/such/file")), Err(Error::Io { .. })));
}

#[test]
fn what_is_not_as_announced_is_refused_and_leaves_nothing() {
    let (folder, store) = store(4);
    let folder = folder.path().join("home/binaries");
    let begin = |len| store.begin(hash_of(b"right"), len).unwrap();

    let mut wrong = begin(5);
    wrong.write(b"wrong").unwrap();
    assert!(matches!(wrong.finish(), Err(Error::Mismatch { actual, .. }) if actual == hash_of(b"wrong")));

    let mut short = begin(5);
    short.write(b"righ").unwrap();
    assert_eq!(short.missing_bytes(), 1);
    assert!(matches!(short.finish(), Err(Error::Length { expected: 5, actual: 4 })));

    let mut long = begin(5);
    long.write(b"right").unwrap();
    assert!(matches!(long.write(b"!"), Err(Error::Length { expected: 5, actual: 6 })));
    drop(long);

    drop(begin(5));
    assert!(matches!(store.begin(hash_of(b""), ENTRY_BYTES_MAX + 1), Err(Error::TooLong(_))));
    assert_eq!(names(&folder), Vec::<String>::new());
    assert_eq!(store.used_bytes(), 0);
    assert!(store.path_of(hash_of(b"right")).is_none());
}

#[test]
fn the_least_recently_used_makes_way_but_nothing_in_use() {
    let (folder, store) = store(3);
    let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| put(&store, bytes).unwrap().hash());
    store.path_of(a).unwrap();
    put(&store, b"d").unwrap();
    assert!(store.path_of(b).is_none(), "b was used the longest ago");
    assert!(store.path_of(a).is_some() && store.path_of(c).is_some());

    let [a, c] = [a, c].map(|hash| store.acquire(hash).unwrap());
    let again = a.clone();
    drop(a);
    // Two in use, one idle: room for one, not for two.
    let two_pages = vec![1; PAGE as usize + 1];
    let full = put(&store, &two_pages).unwrap_err();
    assert!(
        matches!(full, Error::Full { needed, busy, .. } if (needed, busy) == (2 * PAGE, 2 * PAGE)),
        "{full}"
    );
    assert!(store.path_of(hash_of(b"d")).is_some(), "nothing is evicted in vain");
    let writing = store.begin(hash_of(b"e"), 1).unwrap();
    assert!(store.path_of(hash_of(b"d")).is_none());
    assert!(matches!(put(&store, b"f"), Err(Error::Full { .. })), "what is being written counts");
    drop((writing, again));
    put(&store, &two_pages).unwrap();
    assert!(c.path().is_file());
    assert_eq!(store.used_bytes(), 3 * PAGE);
    assert_eq!(names(&folder.path().join("home/binaries")).len(), 2);
}

#[test]
fn opening_again_finds_entries_and_removes_what_a_crash_left() {
    let folder = tempfile::tempdir().unwrap();
    let open = |pages| Store::open(folder.path(), pages * PAGE).unwrap();
    let first = open(4);
    let old = put(&first, b"old").unwrap().hash();
    let new = put(&first, b"new").unwrap().hash();
    let age = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    // Entries are read-only, but their owner may set times.
    File::open(folder.path().join(old.to_string())).unwrap().set_modified(age).unwrap();
    let crashed = first.begin(hash_of(b"crashed"), 7).unwrap();
    std::mem::forget(crashed);
    fs::write(folder.path().join("README"), "not an entry").unwrap();
    fs::create_dir(folder.path().join(hash_of(b"folder").to_string())).unwrap();
    drop(first);

    let second = open(4);
    assert_eq!(second.used_bytes(), 2 * PAGE);
    assert!(second.path_of(old).is_some() && second.path_of(new).is_some());
    assert!(!names(folder.path()).iter().any(|name| name.starts_with(INCOMING_PREFIX)));
    assert!(folder.path().join("README").exists());
    drop(second);

    let smaller = open(1);
    assert!(smaller.path_of(old).is_none() && smaller.path_of(new).is_some(), "the oldest goes first");
}

#[test]
fn an_entry_that_vanished_is_not_there() {
    let (_folder, store) = store(2);
    let entry = put(&store, b"gone").unwrap();
    fs::remove_file(entry.path()).unwrap();
    assert!(store.path_of(entry.hash()).is_none());
    assert_eq!(store.used_bytes(), 0);
    let again = put(&store, b"gone").unwrap();
    // The first one's end is no business of the second entry, which is still in use.
    drop(entry);
    assert!(matches!(store.begin(hash_of(b"x"), 2 * PAGE), Err(Error::Full { .. })));
    assert!(again.path().is_file());
}

#[test]
fn many_may_insert_the_same_at_once() {
    let (folder, store) = store(64);
    let content = vec![7; 100_000];
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| put(&store, &content).unwrap());
            scope.spawn(|| store.acquire(hash_of(&content)).map(|entry| entry.hash()));
        }
    });
    assert_eq!(hash_file(&store.path_of(hash_of(&content)).unwrap()).unwrap(), hash_of(&content));
    assert_eq!(store.used_bytes(), charge(100_000));
    assert_eq!(names(&folder.path().join("home/binaries")).len(), 1);
}

#[test]
fn empty_content_is_content_and_is_charged() {
    let (_folder, store) = store(1);
    let entry = put(&store, b"").unwrap();
    assert_eq!(store.used_bytes(), PAGE);
    assert!(matches!(store.begin(hash_of(b"x"), 1), Err(Error::Full { .. })));
    drop(entry);
    assert!(put(&store, b"x").is_ok());
}
