//! Placement groups: bundles of resources that are reserved together, on nodes that lie as they should to each other.

#![allow(missing_docs, reason = "the derive of rkyv makes mirror types with undocumented fields")]

use rkyv::{Archive, Deserialize, Serialize};

use crate::resource::{self, LabelRule, Resources, check_name, check_rules};

/// Most bundles of one group.
pub const BUNDLES_MAX: usize = 1024;

/// How the bundles of a group lie to each other. A *place* is a node or, where the group names a label, all the
/// nodes that have the same value of it: a rack, an NVLink domain, a TPU slice.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Arrange {
    /// In as few places as there is room for.
    #[default]
    Pack,
    /// In as many places as there are.
    Spread,
    /// All in one place, or not at all.
    StrictPack,
    /// Each in a place of its own, or not at all.
    StrictSpread,
}

impl std::fmt::Display for Arrange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pack => "pack",
            Self::Spread => "spread",
            Self::StrictPack => "strict pack",
            Self::StrictSpread => "strict spread",
        })
    }
}

/// What a placement group asks for. All of it is reserved, or nothing.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub struct Group {
    /// What each bundle reserves, on one node; 1 to [`BUNDLES_MAX`] of them, none empty.
    pub bundles: Vec<Resources>,
    /// How they lie to each other.
    pub arrange: Arrange,
    /// The label whose values are the places; empty where each node is one.
    pub place: String,
    /// Conditions on the labels of every node used.
    pub labels: Vec<LabelRule>,
    /// Higher goes first within a queue; 0 unless set.
    pub priority: i32,
    /// The queue that is charged; empty for the default one.
    pub queue: String,
    /// Whether it waits for nodes where those that there are could never hold it, instead of failing. What was reserved once waits
    /// for others in any case.
    pub wait_for_node: bool,
    /// Whether what runs in it may be stopped and run again: then it may be preempted, as a whole. Otherwise it never is,
    /// whatever it has borrowed.
    pub restartable: bool,
}

/// Why a group was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name, an amount or a count is not allowed.
    #[error(transparent)]
    Resource(#[from] resource::Error),
    /// No bundles.
    #[error("the group has no bundles: give at least one")]
    NoBundles,
    /// Too many bundles.
    #[error("{0} bundles are too many: give at most {BUNDLES_MAX}, or several groups")]
    TooManyBundles(usize),
    /// A bundle of nothing.
    #[error("bundle {0} is empty: give each bundle some resource")]
    EmptyBundle(usize),
    /// A bundle is not allowed.
    #[error("bundle {index}: {error}")]
    Bundle {
        /// Which, from 0.
        index: usize,
        /// Why.
        error: resource::Error,
    },
}

impl Group {
    /// Checks what came from outside: names, amounts and counts.
    pub fn validate(&self) -> Result<(), Error> {
        match self.bundles.len() {
            0 => return Err(Error::NoBundles),
            1..=BUNDLES_MAX => {}
            many => return Err(Error::TooManyBundles(many)),
        }
        for (index, bundle) in self.bundles.iter().enumerate() {
            if bundle.is_empty() {
                return Err(Error::EmptyBundle(index));
            }
            bundle.validate_request().map_err(|error| Error::Bundle { index, error })?;
        }
        check_rules(&self.labels)?;
        for name in [&self.place, &self.queue] {
            if !name.is_empty() {
                check_name(name)?;
            }
        }
        Ok(())
    }
}
