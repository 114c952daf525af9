//! What survives a restart of the head.
//!
//! State is a set of [`Record`]s, each with a key; a record replaces the earlier one of the same key, and the
//! `…Gone` records remove one. A [`Journal`] keeps the newest of each.

mod disk;
mod memory;

use mobula_proto::{Group, Queue, TaskId};
use serde::{Deserialize, Serialize};

use crate::core::Token;

pub use disk::Disk;
pub use memory::Memory;

/// The public part of a join token.
pub type TokenId = [u8; 8];

/// One durable fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// How often the head started; leases are numbered by it.
    Start {
        /// From 1.
        count: u64,
    },
    /// A node's number, and its last incarnation (0 before the first registration).
    Node {
        /// Its name in its certificate.
        name: String,
        /// Its number.
        number: u32,
        /// The incarnation given last.
        incarnation: u32,
    },
    /// Numbers of nodes below this are taken, also by drivers that leave no other trace.
    NextNode {
        /// The first free one.
        number: u32,
    },
    /// Numbers of jobs below this are taken.
    NextJob {
        /// The first free one.
        number: u64,
    },
    /// A join token.
    Token {
        /// Its public part.
        id: TokenId,
        /// The rest.
        token: Token,
    },
    /// A join token is forgotten.
    TokenGone {
        /// Which.
        id: TokenId,
    },
    /// The name of a detached actor.
    Name {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// The actor.
        actor: TaskId,
        /// Its type.
        actor_type: String,
    },
    /// A name is free again.
    NameGone {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// A queue.
    Queue {
        /// All of it.
        queue: Queue,
    },
    /// A queue is no more.
    QueueGone {
        /// Its name.
        name: String,
    },
    /// Numbers of placement groups below this are taken.
    NextGroup {
        /// The first free one.
        number: u64,
    },
    /// A detached placement group.
    Group {
        /// Its number.
        number: u64,
        /// The namespace of its name.
        namespace: String,
        /// Its name.
        name: String,
        /// What it reserves.
        group: Group,
    },
    /// A placement group is no more.
    GroupGone {
        /// Its number.
        number: u64,
    },
    /// A node is to leave.
    Drain {
        /// Its name in its certificate.
        name: String,
        /// When its time is over, in milliseconds of Unix time.
        until_unix_ms: u64,
    },
    /// A node that was to leave has left, or stays.
    DrainGone {
        /// Its name in its certificate.
        name: String,
    },
    /// The hash of the admin token.
    Admin {
        /// BLAKE3 of its text.
        hash: [u8; 32],
    },
}

impl Record {
    /// What the record is about: later records of the same key replace it.
    pub fn key(&self) -> String {
        // Names hold no control character, so this separator keeps two of them apart.
        const SEPARATOR: char = '\u{1f}';
        match self {
            Self::Start { .. } => "start".to_owned(),
            Self::Node { name, .. } => format!("node{SEPARATOR}{name}"),
            Self::NextNode { .. } => "next-node".to_owned(),
            Self::NextJob { .. } => "next-job".to_owned(),
            Self::Token { id, .. } | Self::TokenGone { id } => format!("token{SEPARATOR}{}", hex::encode(id)),
            Self::Name { namespace, name, .. } | Self::NameGone { namespace, name } => {
                format!("name{SEPARATOR}{namespace}{SEPARATOR}{name}")
            }
            Self::Queue { queue: Queue { name, .. } } | Self::QueueGone { name } => {
                format!("queue{SEPARATOR}{name}")
            }
            Self::NextGroup { .. } => "next-group".to_owned(),
            Self::Group { number, .. } | Self::GroupGone { number } => format!("group{SEPARATOR}{number}"),
            Self::Drain { name, .. } | Self::DrainGone { name } => format!("drain{SEPARATOR}{name}"),
            Self::Admin { .. } => "admin".to_owned(),
        }
    }

    /// Whether the record removes what its key holds.
    pub fn removes(&self) -> bool {
        matches!(
            self,
            Self::TokenGone { .. }
                | Self::NameGone { .. }
                | Self::QueueGone { .. }
                | Self::GroupGone { .. }
                | Self::DrainGone { .. }
        )
    }
}

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database could not be opened, read or written.
    #[error("the head's state: {0}")]
    Database(String),
    /// A record is not what this build writes.
    #[error(
        "the head's state holds a record {key:?} that this build cannot read ({detail}): was it written by a newer release?"
    )]
    Record {
        /// Its key.
        key: String,
        /// What is wrong.
        detail: String,
    },
}

/// Where records are kept. A replacement must keep the promise of [`Journal::append`].
pub trait Journal: Send + Sync + 'static {
    /// The newest record of each key, in the order of the keys.
    fn load(&self) -> Result<Vec<Record>, Error>;

    /// Writes all or none of the records, in order; they are durable when it returns. May block on the disk.
    fn append(&self, records: &[Record]) -> Result<(), Error>;

    /// Whether the calls above may block, and so need a thread that may.
    fn may_block(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(open: impl Fn() -> Box<dyn Journal>) {
        let node = |incarnation| Record::Node { name: "a".to_owned(), number: 1, incarnation };
        let token = Token { secret_hash: [3; 32], role: "agent".to_owned(), expires_unix: 9, used: false };
        let journal = open();
        journal.append(&[node(1), Record::Token { id: [1; 8], token: token.clone() }, node(2)]).unwrap();
        journal.append(&[]).unwrap();
        journal
            .append(&[Record::Token { id: [2; 8], token: token.clone() }, Record::TokenGone { id: [1; 8] }])
            .unwrap();
        drop(journal);
        assert_eq!(open().load().unwrap(), [node(2), Record::Token { id: [2; 8], token }]);
    }

    #[test]
    fn a_journal_on_disk_keeps_the_newest_of_each_key() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("state.redb");
        check(|| Box::new(Disk::open(&file).unwrap()));
    }

    #[test]
    fn a_journal_in_memory_does_the_same() {
        let memory = Memory::default();
        check(|| Box::new(memory.clone()));
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("state.redb");
        std::fs::write(&file, b"not a database at all, but long enough to be looked at").unwrap();
        assert!(Disk::open(&file).err().unwrap().to_string().contains("state.redb"));
    }
}
