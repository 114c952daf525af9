//! The one error that crosses the wire: what failed, where, why, and the chain of causes.

use std::fmt;

use rkyv::{Archive, Deserialize, Serialize};

/// What went wrong. Each kind has a code with a page under `docs/errors/`.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub enum Kind {
    /// User code panicked.
    Panicked,
    /// User code returned `Err`.
    Returned,
    /// The process that ran it ended.
    HostDied,
    /// The process that ran it had more memory than its `memory` allows, and was killed for it.
    OutOfMemory,
    /// The node that ran it was lost.
    NodeDied,
    /// The owner of the object ended, and no copy is left.
    OwnerDied,
    /// It was cancelled.
    Cancelled,
    /// The time given for it ran out.
    TimedOut,
    /// No node could ever satisfy the request.
    Infeasible,
    /// What it ran on was taken away: others had more right to it.
    Evicted,
    /// There is nothing of that name, or no longer.
    Unknown,
    /// There is no such node, or it cannot do what was asked.
    Node,
    /// There is no such queue, or queues cannot be as was asked.
    Queue,
    /// The store stayed full for as long as a writer may wait.
    StoreFull,
    /// The object is larger than the whole store.
    ObjectTooLarge,
    /// Every copy of the object is gone.
    ObjectLost,
    /// The object was freed.
    ObjectFreed,
    /// The actor ended, and will not be restarted.
    ActorDied,
    /// The call may have run before its actor ended.
    MaybeExecuted,
    /// A name is taken, or there is no actor of that name.
    ActorName,
    /// Blocking wait inside async code.
    BlockingInAsync,
    /// A value could not be encoded or decoded.
    Codec,
    /// The function is not in the executing binary, or has another signature there.
    UnknownFunction,
    /// The job's binary or one of its files is not what it was.
    Binary,
    /// The job ended.
    JobEnded,
    /// A limit with a name was reached.
    Limit,
    /// A function returned another number of values than its caller asked for.
    ReturnCount,
    /// The actor's inbox was full, and it refuses calls then.
    Overloaded,
    /// Forced cancellation of what shares its process with others.
    CannotForce,
    /// Head, agent or a peer could not be reached.
    Unreachable,
    /// A defect in Mobula itself.
    Internal,
    /// What was to take it was closed, and takes nothing any more.
    Closed,
}

impl Kind {
    /// The code under which the error is documented.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unreachable => "MOB1001",
            Self::Codec => "MOB1002",
            Self::StoreFull => "MOB2001",
            Self::ObjectTooLarge => "MOB2002",
            Self::ObjectLost => "MOB2003",
            Self::ObjectFreed => "MOB2004",
            Self::OwnerDied => "MOB2005",
            Self::Panicked => "MOB3001",
            Self::Returned => "MOB3002",
            Self::HostDied => "MOB3003",
            Self::NodeDied => "MOB3004",
            Self::Cancelled => "MOB3005",
            Self::TimedOut => "MOB3006",
            Self::ActorDied => "MOB3007",
            Self::MaybeExecuted => "MOB3008",
            Self::ActorName => "MOB3009",
            Self::BlockingInAsync => "MOB3010",
            Self::UnknownFunction => "MOB3011",
            Self::CannotForce => "MOB3012",
            Self::Limit => "MOB3013",
            Self::ReturnCount => "MOB3015",
            Self::Overloaded => "MOB3014",
            Self::OutOfMemory => "MOB3016",
            Self::Infeasible => "MOB4001",
            Self::Queue => "MOB4002",
            Self::Unknown => "MOB4003",
            Self::Evicted => "MOB4004",
            Self::Node => "MOB4005",
            Self::Binary => "MOB7001",
            Self::JobEnded => "MOB7002",
            Self::Closed => "MOB8001",
            Self::Internal => "MOB3099",
        }
    }

    /// Whether the same request may succeed if it is made again.
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::HostDied
                | Self::OutOfMemory
                | Self::NodeDied
                | Self::TimedOut
                | Self::StoreFull
                | Self::ObjectLost
                | Self::MaybeExecuted
                | Self::Unreachable
                | Self::Limit
                | Self::Overloaded
                | Self::Evicted
        )
    }

    /// Whether Mobula retries a task that failed so without being asked to.
    pub fn is_system(self) -> bool {
        matches!(
            self,
            Self::HostDied | Self::OutOfMemory | Self::NodeDied | Self::ObjectLost | Self::Unreachable
        )
    }

    /// Every kind, in the order of their codes.
    pub const ALL: [Self; 32] = [
        Self::Unreachable,
        Self::Codec,
        Self::StoreFull,
        Self::ObjectTooLarge,
        Self::ObjectLost,
        Self::ObjectFreed,
        Self::OwnerDied,
        Self::Panicked,
        Self::Returned,
        Self::HostDied,
        Self::NodeDied,
        Self::Cancelled,
        Self::TimedOut,
        Self::ActorDied,
        Self::MaybeExecuted,
        Self::ActorName,
        Self::BlockingInAsync,
        Self::UnknownFunction,
        Self::CannotForce,
        Self::Limit,
        Self::ReturnCount,
        Self::Overloaded,
        Self::OutOfMemory,
        Self::Internal,
        Self::Infeasible,
        Self::Queue,
        Self::Unknown,
        Self::Evicted,
        Self::Node,
        Self::Binary,
        Self::JobEnded,
        Self::Closed,
    ];
}

/// A failure, with its place and its causes.
///
/// Displays as `task crawl::fetch#81 failed on node-3: panicked at src/main.rs:40: … (attempt 4 of 4)`.
#[derive(
    Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize, Clone, Debug, PartialEq, Eq,
)]
pub struct Failure {
    /// What went wrong.
    pub kind: Kind,
    /// What failed: `task crawl::fetch#81`, `actor Counter#3`; empty where nothing ran.
    pub what: String,
    /// Where it ran: `node-3`; empty where nothing ran.
    pub place: String,
    /// Why, in one line.
    pub message: String,
    /// The chain of causes, outermost first.
    pub causes: Vec<String>,
    /// Which attempt failed, from 1; 0 where nothing was attempted.
    pub attempt: u32,
    /// How many attempts there may be.
    pub attempts_max: u32,
}

/// Longest text of a failure or of one of its causes. Unit: bytes.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// The text, without its end where it is longer than [`TEXT_BYTES_MAX`].
pub fn clip(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

impl Failure {
    /// A failure that says only what went wrong and why; see [`clip`].
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            what: String::new(),
            place: String::new(),
            message: clip(message.into()),
            causes: Vec::new(),
            attempt: 0,
            attempts_max: 0,
        }
    }

    /// Says what failed, unless that is already said.
    pub fn of(mut self, what: impl Into<String>) -> Self {
        if self.what.is_empty() {
            self.what = what.into();
        }
        self
    }

    /// Says where, unless that is already said.
    pub fn on(mut self, place: impl Into<String>) -> Self {
        if self.place.is_empty() {
            self.place = place.into();
        }
        self
    }

    /// The same failure as the cause of another: what depended on it failed with it.
    pub fn cause_of(&self, what: &str) -> Self {
        let mut causes = vec![self.headline()];
        causes.extend(self.causes.iter().cloned());
        Self {
            kind: self.kind,
            what: what.to_owned(),
            place: String::new(),
            message: "an argument failed".to_owned(),
            causes,
            attempt: 0,
            attempts_max: 0,
        }
    }

    /// The failure in one line, without its causes.
    pub fn headline(&self) -> String {
        let mut line = String::new();
        if !self.what.is_empty() {
            line.push_str(&self.what);
            line.push_str(" failed");
            if !self.place.is_empty() {
                line.push_str(" on ");
                line.push_str(&self.place);
            }
            line.push_str(": ");
        }
        line.push_str(&self.message);
        if self.attempt > 0 && self.attempts_max > 1 {
            line.push_str(&format!(" (attempt {} of {})", self.attempt, self.attempts_max));
        }
        line
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline())?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {cause}")?;
        }
        write!(f, " [{}]", self.kind.code())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_a_person_would_say_it() {
        let mut failure = Failure::new(Kind::Panicked, "panicked at src/main.rs:40: index out of bounds")
            .of("task crawl::fetch#81")
            .on("node-3");
        failure.attempt = 4;
        failure.attempts_max = 4;
        assert_eq!(
            failure.to_string(),
            "task crawl::fetch#81 failed on node-3: panicked at src/main.rs:40: index out of bounds (attempt 4 of 4) [MOB3001]"
        );
        let after = failure.cause_of("task crawl::parse#82").to_string();
        assert!(after.starts_with(
            "task crawl::parse#82 failed: an argument failed\n  caused by: task crawl::fetch#81"
        ));
    }

    #[test]
    fn every_kind_has_its_own_code() {
        let mut codes: Vec<_> = Kind::ALL.iter().map(|kind| kind.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Kind::ALL.len());
    }
}
