//! Facts that tasks leave for the test to see, whatever becomes of them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

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
        self.path(fact).exists()
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

/// Notes one more occurrence of the fact at this place.
pub fn note(place: &str) {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(place);
    // The folder is gone when the test is: nobody wants to know any more.
    let _unwanted = file.and_then(|mut file| file.write_all(b"."));
}

/// Whether the fact at this place was noted.
pub fn noted(place: &str) -> bool {
    Path::new(place).exists()
}
