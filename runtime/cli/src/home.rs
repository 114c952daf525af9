//! The home: one folder with all that is kept.
//!
//! ```text
//! <home>/              mode 0700
//!   ca/ head/ admin.token head.json     the head's; see `mobula_head`
//!   node/              the node's: identity/, agent.sock, binaries/, jobs/
//!   nodes/<i>/         homes of the nodes of `mobula up`
//!   up.json            what `mobula up` runs
//!   run/<role>.json    which process has the role, locked for as long as it lives
//!   log/               what the processes of `mobula up --detach` log
//! ```

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    args::HomeArg,
    error::{self, Error},
    process::Mark,
};

/// A home folder.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

/// Longest record of a process that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 1 << 20;

impl Home {
    /// From the option, else `MOBULA_HOME` (which the option also reads), else `~/.mobula`.
    pub fn of(argument: &HomeArg) -> Result<Self, Error> {
        let path = match &argument.home {
            Some(path) if !path.as_os_str().is_empty() => path.clone(),
            _ => default_path().ok_or(Error::NoHome)?,
        };
        std::path::absolute(&path).map(Self).map_err(error::file("find", &path))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// ` --home DIR` for commands shown to people; nothing where the folder is the default.
    pub fn option(&self) -> String {
        let by_variable = std::env::var_os("MOBULA_HOME").is_some_and(|home| Path::new(&home) == self.0);
        if by_variable || default_path().as_deref() == Some(&self.0) {
            String::new()
        } else {
            format!(" --home {}", quoted(&self.0))
        }
    }

    /// Makes the folder, closed to others, if it is missing; refuses one that is open to them.
    pub fn create(&self) -> Result<(), Error> {
        private(&self.0)
    }

    /// Lets others pass through it, who can neither list nor read it, to what is further below and theirs.
    pub fn make_passable(&self) -> Result<(), Error> {
        mobula_agent::users::make_passable(&self.0).map_err(error::file("let others pass through", &self.0))
    }

    /// The node's folder.
    pub fn node(&self) -> PathBuf {
        self.0.join("node")
    }

    /// What `up` runs.
    pub fn up_file(&self) -> PathBuf {
        self.0.join("up.json")
    }

    /// Takes a role in this home for as long as the claim lives; refused while another process has it.
    pub fn claim(&self, role: &'static str) -> Result<Claim, Error> {
        self.create()?;
        let run = self.0.join("run");
        private(&run)?;
        let path = run.join(format!("{role}.json"));
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(error::file("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = match role {
                    "head" => "a head",
                    "node" => "a node",
                    _ => "a cluster",
                };
                let pid = read_mark(&mut file).map_or(0, |mark| mark.pid);
                return Err(Error::AlreadyRuns { what, home: self.0.clone(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(error::file("lock", &path)(source)),
        }
        let text =
            serde_json::to_vec(&Mark::own(role)?).map_err(|e| error::file("write", &path)(e.into()))?;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(&text))
            .map_err(error::file("write", &path))?;
        Ok(Claim { _locked: file })
    }

    /// The process that said it has this role, alive or not. An error says that this home's records cannot be read.
    pub fn claimed(&self, role: &str) -> Result<Option<Mark>, Error> {
        let path = self.0.join("run").join(format!("{role}.json"));
        match File::open(&path) {
            Ok(mut file) => Ok(read_mark(&mut file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error::file("read", &path)(error)),
        }
    }

    /// Removes what processes that are gone left to be found by.
    pub fn tidy(&self) {
        for left in ["up.json", "head.json"] {
            // What is not there need not be removed.
            let _absent = std::fs::remove_file(self.0.join(left));
        }
    }
}

/// A role, held. The record stays when this goes; it then names a process that is gone, which its readers check.
#[derive(Debug)]
pub struct Claim {
    _locked: File,
}

fn read_mark(file: &mut File) -> Option<Mark> {
    let mut text = String::new();
    file.take(RECORD_BYTES_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Makes a folder that only its owner may enter; see [`mobula_head::service::private_folder`].
pub fn private(path: &Path) -> Result<(), Error> {
    mobula_head::service::private_folder(path).map_err(|error| match error {
        mobula_head::Error::Home { what, path, source } => Error::File { what, path, source },
        mobula_head::Error::OpenFolder { path, mode } => Error::OpenFolder { path, mode },
        other => Error::Head(other),
    })
}

/// Replaces a file at once; only its owner may read it.
pub fn replace(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    let write = || {
        // A leftover would keep its own mode.
        let _absent = std::fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(contents)?;
        std::fs::rename(&new, path)
    };
    write().map_err(error::file("write", path))
}

fn default_path() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(".mobula"))
}

/// For a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+=:@%,".contains(&b)) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
