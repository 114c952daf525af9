//! Where and when an embedded or local cluster writes objects that its stores have no room for.

use std::{path::Path, time::Duration};

use mobula_agent::service::{self, SpillTo};
use mobula_store::spill::Place;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// What an author has said of when objects are spilled; the rest is as an agent has it by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub(super) disk_bytes: Option<u64>,
    pub(super) file_bytes: Option<u64>,
    pub(super) above: Option<f64>,
    pub(super) below: Option<f64>,
    pub(super) restore: Option<f64>,
    pub(super) stall: Option<Duration>,
}

impl Limits {
    /// # Errors
    /// Names what makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        let limit = |text: String| Err(Error::new(ErrorKind::Limit, text));
        for (name, share) in
            [("spill_above", self.above), ("spill_below", self.below), ("restore_share", self.restore)]
        {
            if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
                return limit(format!("{name} is a share of the store, 0 to 1, not {share}"));
            }
        }
        let default = service::Limits::default();
        let (above, below) = (self.above.unwrap_or(default.above), self.below.unwrap_or(default.below));
        if self.below.is_some() && below > above {
            return limit(format!("spill_below is at most spill_above, which is {above}, not {below}"));
        }
        if self.stall == Some(Duration::ZERO) {
            return limit("spill_stall is how long a disk is waited for, and more than nothing".to_owned());
        }
        Ok(())
    }

    pub(super) fn set(&self, limits: &mut service::Limits) {
        limits.disk_bytes = self.disk_bytes.unwrap_or(limits.disk_bytes);
        limits.file_bytes = self.file_bytes.unwrap_or(limits.file_bytes);
        limits.above = self.above.unwrap_or(limits.above);
        limits.below = self.below.unwrap_or(limits.below);
        limits.restore = self.restore.unwrap_or(limits.restore);
        limits.stall = self.stall.unwrap_or(limits.stall);
    }
}

/// What `place` names, for the agent with this home. Blocks while an object store is reached.
pub(super) fn target(place: Option<&Path>, home: &Path) -> Result<SpillTo> {
    match place.map(Place::of) {
        None => Ok(SpillTo::Home),
        Some(Place::Folder(folder)) => Ok(SpillTo::Folder(folder)),
        Some(Place::Url(url)) => object_store(&url, home),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_set_and_what_makes_no_sense_is_named() {
        let limits = Limits {
            disk_bytes: Some(1 << 30),
            file_bytes: Some(1 << 20),
            above: Some(0.5),
            below: Some(0.25),
            restore: Some(0.1),
            stall: Some(Duration::from_secs(5)),
        };
        let mut set = service::Limits::default();
        Limits::default().set(&mut set);
        assert_eq!(set, service::Limits::default());
        limits.set(&mut set);
        let all = service::Limits {
            above: 0.5,
            below: 0.25,
            file_bytes: 1 << 20,
            disk_bytes: 1 << 30,
            restore: 0.1,
            stall: Duration::from_secs(5),
        };
        assert_eq!(set, all);
        limits.check().unwrap();
        let default = Limits::default;
        // With nothing said of where it ends, that goes along.
        Limits { above: Some(0.1), ..default() }.check().unwrap();
        for (wrong, named) in [
            (Limits { above: Some(1.5), ..default() }, "spill_above"),
            (Limits { below: Some(f64::NAN), ..default() }, "spill_below"),
            (Limits { restore: Some(-0.1), ..default() }, "restore_share"),
            (Limits { below: Some(0.9), ..default() }, "spill_below is at most spill_above, which is 0.8"),
            (Limits { stall: Some(Duration::ZERO), ..default() }, "spill_stall"),
        ] {
            let error = wrong.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Limit);
            assert!(error.to_string().contains(named), "no {named} in {error}");
        }
    }
}
