//! Small reads of kernel files that never fail the caller: what is absent or malformed is as if it said nothing.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
};

use tracing::warn;

/// Longest file that is read, in bytes; what lies beyond is not looked at.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The text of a file; `None` where there is none, and with a warning where it cannot be read.
pub(crate) fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "cannot be read: ignored");
            None
        }
    }
}

/// The names in a folder, sorted, at most `max`; none where there is no folder, and with a warning where it cannot be
/// read.
pub(crate) fn names(folder: &Path, max: usize) -> Vec<String> {
    let listed = match std::fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Vec::new();
        }
        Err(error) => {
            warn!(path = %folder.display(), %error, "cannot be read: ignored");
            return Vec::new();
        }
    };
    let mut names: Vec<String> =
        listed.flatten().take(max).filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The numbers, in ascending order, of the names in a folder that are `prefix` and a number; at most `max` names are
/// looked at.
pub(super) fn numbered(folder: &Path, prefix: &str, max: usize) -> Vec<u64> {
    let number = |name: String| {
        let digits = name.strip_prefix(prefix)?;
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if plain { digits.parse().ok() } else { None }
    };
    let mut numbers: Vec<u64> = names(folder, max).into_iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// What `parse` makes of a file; `None`, with a warning, where it makes nothing of it.
pub(crate) fn parsed<T>(path: &Path, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let text = text(path)?;
    let value = parse(text.trim());
    if value.is_none() {
        let start: String = text.chars().take(80).collect();
        warn!(path = %path.display(), text = start, "malformed: ignored");
    }
    value
}
