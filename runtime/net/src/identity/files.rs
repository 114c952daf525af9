//! Private files: written whole or not at all, never readable by others.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use zeroize::Zeroizing;

use super::{Error, PEM_BYTES_MAX, random};

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::File { what, path: path.to_owned(), source }
}

/// Makes the folder if it is missing, and closes it to others in either case.
pub(super) fn folder(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("protect", path))
}

/// Writes `folder/name` so that a crash leaves either the old file or the new one.
pub(super) fn write(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = folder.join(name);
    let partial = folder.join(format!(".{name}.{}", hex::encode(random::<8>()?)));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|source| {
        // The rename may have happened; then there is nothing left to remove.
        let _gone = fs::remove_file(&partial);
        failed("write", &path)(source)
    })
}

/// Reads `folder/name`, at most [`PEM_BYTES_MAX`].
pub(super) fn read(folder: &Path, name: &str) -> Result<Zeroizing<String>, Error> {
    let path = folder.join(name);
    let mut text = Zeroizing::new(String::with_capacity(PEM_BYTES_MAX));
    let file = File::open(&path).map_err(failed("read", &path))?;
    let bytes =
        file.take(PEM_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(failed("read", &path))?;
    if bytes > PEM_BYTES_MAX {
        return Err(Error::invalid(
            "a PEM file",
            format!("{} is over {PEM_BYTES_MAX} bytes", path.display()),
        ));
    }
    Ok(text)
}

/// Reads a key, and refuses one that others may read.
pub(super) fn read_key(folder: &Path, name: &str) -> Result<Zeroizing<String>, Error> {
    let path = folder.join(name);
    let mode = fs::metadata(&path).map_err(failed("read", &path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path, mode });
    }
    read(folder, name)
}
