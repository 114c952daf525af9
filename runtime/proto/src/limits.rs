//! How many calls an actor runs at once, how many wait for it, and in which order they start.

#![allow(missing_docs, reason = "the derive of rkyv makes mirror types with undocumented fields")]

use rkyv::{Archive, Deserialize, Serialize};

/// `&self` calls of one actor, outside its groups, that run at once unless it says otherwise.
pub const CONCURRENCY_DEFAULT: u32 = 1024;
/// Calls that wait in the inbox of an actor unless it says otherwise.
pub const INBOX_DEFAULT: u32 = 65_536;
/// Most groups of one actor.
pub const GROUPS_MAX: usize = 64;

/// The limits of one actor.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `&self` calls in no group that run at once; at least 1.
    pub concurrency: u32,
    /// Its groups of `&self` methods, as its type declares them.
    pub groups: Vec<Group>,
    /// Calls that have arrived and not started; at least 1.
    pub inbox: u32,
    /// What becomes of calls that find the inbox full.
    pub when_full: WhenFull,
    /// Whether calls that are ready overtake those of the same caller that wait for their arguments.
    pub unordered: bool,
}

/// A group of methods with a limit of its own.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Calls of it that run at once; at least 1.
    pub concurrency: u32,
}

/// What becomes of a call that finds its actor's inbox full.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits with its caller.
    Wait,
    /// It fails as overloaded, and its caller may have it back.
    Refuse,
}

impl WhenFull {
    /// `"wait"` or `"refuse"`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "wait" => Some(Self::Wait),
            "refuse" => Some(Self::Refuse),
            _ => None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrency: CONCURRENCY_DEFAULT,
            groups: Vec::new(),
            inbox: INBOX_DEFAULT,
            when_full: WhenFull::Wait,
            unordered: false,
        }
    }
}
