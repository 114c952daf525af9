//! Facts that tasks leave for the test to see, whatever becomes of them.

use std::{fs::File, path::PathBuf, sync::Arc};

use mobula::{Error, ErrorKind, Result};

use super::eventually;

/// A folder in which tasks note what happened to them.
#[derive(Clone)]
pub struct Witness {
    folder: Arc<tempfile::TempDir>,
}

impl Witness {
    /// Of nothing yet.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("mobula-witness-")
            .tempdir()
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        Ok(Self { folder: Arc::new(folder) })
    }

    /// The argument for a task, which gives it to [`note`].
    pub fn place(&self, fact: &str) -> String {
        self.path(fact).to_string_lossy().into_owned()
    }

    fn path(&self, fact: &str) -> PathBuf {
        self.folder.path().join(fact)
    }

    /// Whether it was noted.
    pub fn saw(&self, fact: &str) -> bool {
        noted(&self.place(fact))
    }

    /// How often it was noted.
    pub fn count(&self, fact: &str) -> usize {
        std::fs::read(self.path(fact)).map_or(0, |bytes| bytes.len())
    }

    /// Notes it from the test's side: what tasks wait for with [`noted`].
    pub fn say(&self, fact: &str) {
        note(&self.place(fact));
    }

    /// Waits until it was noted.
    pub async fn sees(&self, fact: &str) -> Result<()> {
        eventually(&format!("the note {fact:?}"), async || Ok(self.saw(fact))).await
    }
}

/// What calls wait behind, in whichever process, until the test opens it or ends.
pub struct Gate {
    place: PathBuf,
    /// Locked while the gate is closed.
    lock: File,
}

impl Witness {
    /// A closed gate of this name.
    pub fn gate(&self, name: &str) -> Result<Gate> {
        let place = self.path(name);
        let lock = File::create(&place).and_then(|lock| lock.lock().map(|()| lock));
        Ok(Gate { place, lock: lock.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))? })
    }
}

impl Gate {
    /// The argument for a task, which gives it to [`pass`].
    pub fn place(&self) -> String {
        self.place.to_string_lossy().into_owned()
    }

    /// Lets all through, those that come later too.
    pub fn open(&self) -> Result<()> {
        self.lock.unlock().map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
    }
}

/// Waits until the gate at this place is open.
pub fn pass(place: &str) {
    // Both fail only if the test is over.
    let _open = File::open(place).and_then(|gate| gate.lock_shared());
}

/// Notes one more occurrence of the fact at this place.
pub fn note(place: &str) {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(place);
    // The folder is gone when the test is: nobody wants to know any more.
    let _unwanted = file.and_then(|mut file| file.write_all(b"."));
}

/// Whether the fact at this place was noted: wholly, since whoever notes it may be killed as soon as it is seen.
pub fn noted(place: &str) -> bool {
    std::fs::metadata(place).is_ok_and(|file| file.len() > 0)
}
