//! Where an embedded or local cluster writes objects that its stores have no room for.

use std::path::{Path, PathBuf};

use mobula_agent::service::SpillTo;
use mobula_store::spill::Place;

use crate::{Error, ErrorKind, Result};

/// What `place` names, for the agent with this home. Blocks while an object store is reached.
pub(super) fn target(place: Option<&Path>, home: &Path) -> Result<SpillTo> {
    named(place).or_else(|url| object_store(&url, home))
}

/// The folder in which the agent with this home then writes; `None` where it writes elsewhere.
pub(super) fn folder(place: Option<&Path>, home: &Path) -> Option<PathBuf> {
    named(place).ok()?.folder(home)
}

/// A folder, or a URL.
fn named(place: Option<&Path>) -> std::result::Result<SpillTo, String> {
    match place.map(Place::of) {
        None => Ok(SpillTo::Home),
        Some(Place::Folder(folder)) => Ok(SpillTo::Folder(folder)),
        Some(Place::Url(url)) => Err(url),
    }
}

#[cfg(feature = "object-store")]
fn object_store(url: &str, home: &Path) -> Result<SpillTo> {
    match mobula_object_store::Bucket::open(url, home) {
        Ok(bucket) => Ok(SpillTo::Target(std::sync::Arc::new(bucket))),
        Err(error) => {
            let kind = if error.is_setting() { ErrorKind::Infeasible } else { ErrorKind::Unreachable };
            Err(Error::new(kind, format!("spill_to: {error}")))
        }
    }
}

#[cfg(not(feature = "object-store"))]
fn object_store(url: &str, _: &Path) -> Result<SpillTo> {
    Err(Error::new(
        ErrorKind::Infeasible,
        format!(
            "spill_to: {url} needs the feature object-store of the crate mobula: turn it on, or name a folder"
        ),
    ))
}
