//! The functions of a binary that can run remotely, gathered at link time.
//!
//! Code is never sent (invariant I1): a call names a function by the hash of its name and signature, and the
//! executing process, which is the same binary, looks it up here.

use std::{
    any::Any,
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock, atomic::AtomicU64},
};

use mobula_proto::{
    Failure,
    limits::{self, Group, Limits, WhenFull},
};
use rustc_hash::FxHashMap;

use crate::codec::{Arguments, Results};

/// Every registered function. `#[mobula::task]` and `#[mobula::actor]` add to it.
#[linkme::distributed_slice]
pub static FUNCTIONS: [Function];

/// The state of an actor, whose type only its own methods know.
pub type ActorState = Arc<dyn Any + Send + Sync>;

/// A future that yields what a call returned.
pub type Running<T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>;

/// What calling a function gives: its result, or a future of it.
pub enum Invocation<T> {
    /// Sync code ran.
    Finished(Result<T, Failure>),
    /// Async code is about to.
    Future(Running<T>),
}

/// How a registered function is called.
pub enum Entry {
    /// A task.
    Task(fn(Arguments) -> Invocation<Results>),
    /// An actor's constructor.
    Construct {
        /// Calls it.
        call: fn(Arguments) -> Invocation<ActorState>,
        /// The actor's limits, unless its spawner sets others.
        rules: Rules,
    },
    /// An actor's method.
    Method {
        /// Calls it.
        call: fn(&ActorState, Arguments) -> Invocation<Results>,
        /// `&mut self`: alone, and in each caller's order.
        exclusive: bool,
        /// The group of a `&self` method: its place among those of the actor, from 1; 0 for none.
        group: u16,
        /// Whether calls may overtake those of the same caller that wait for their arguments.
        unordered: bool,
    },
}

/// The limits of an actor as its type declares them; see [`Limits`].
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// `&self` calls in no group that run at once.
    pub concurrency: u32,
    /// Names of groups, and how many of their calls run at once.
    pub groups: &'static [(&'static str, u32)],
    /// Calls that have arrived and not started.
    pub inbox: u32,
    /// What becomes of calls that find it full.
    pub when_full: WhenFull,
    /// Whether calls overtake those that wait for their arguments.
    pub unordered: bool,
}

impl Rules {
    /// Of an actor that says nothing.
    pub const DEFAULT: Self = Self {
        concurrency: limits::CONCURRENCY_DEFAULT,
        groups: &[],
        inbox: limits::INBOX_DEFAULT,
        when_full: WhenFull::Wait,
        unordered: false,
    };

    /// As they travel.
    pub fn limits(&self) -> Limits {
        let groups = self.groups.iter();
        Limits {
            concurrency: self.concurrency,
            groups: groups
                .map(|(name, concurrency)| Group { name: (*name).to_owned(), concurrency: *concurrency })
                .collect(),
            inbox: self.inbox,
            when_full: self.when_full,
            unordered: self.unordered,
        }
    }
}

/// A registered function.
pub struct Function {
    /// `crate::module::function`.
    pub name: &'static str,
    /// Argument and return types as written.
    pub signature: &'static str,
    /// Source file.
    pub file: &'static str,
    /// Line in it.
    pub line: u32,
    /// Whether it is `async`, and runs on the runtime for user code rather than on a thread of its own.
    pub is_async: bool,
    /// How it is called.
    pub entry: Entry,
    /// Filled on first use.
    pub id: OnceLock<u64>,
    /// About how long it has run of late, in nanoseconds; 0 before its first run.
    pub nanos: AtomicU64,
}

impl Function {
    /// The name by which calls refer to it: the first 8 bytes of the BLAKE3 hash of name and signature.
    pub fn id(&self) -> u64 {
        *self.id.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(self.name.as_bytes());
            hasher.update(b"\0");
            hasher.update(self.signature.as_bytes());
            let mut first = [0; 8];
            hasher.finalize_xof().fill(&mut first);
            u64::from_le_bytes(first)
        })
    }
}

/// Why a binary's registry is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two functions have one name.
    #[error(
        "two functions are registered as `{name}` ({first} and {second}): rename one, or give it `name = \"…\"`"
    )]
    Duplicate {
        /// The name.
        name: String,
        /// Where the first is.
        first: String,
        /// Where the second is.
        second: String,
    },
    /// Two functions have different names and one hash.
    #[error("`{first}` and `{second}` hash to the same id: rename one of them")]
    Collision {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
}

/// A checked view of [`FUNCTIONS`].
#[derive(Debug)]
pub struct Registry {
    by_id: FxHashMap<u64, &'static Function>,
    fingerprint: u64,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{} at {}:{}", self.name, self.signature, self.file, self.line)
    }
}

impl Registry {
    /// The functions linked into this program.
    pub fn linked() -> Result<Self, Error> {
        Self::new(FUNCTIONS.iter())
    }

    /// A registry of these functions: refuses two under one name or one hash.
    pub fn new(functions: impl Iterator<Item = &'static Function>) -> Result<Self, Error> {
        let mut by_name: HashMap<&str, &'static Function> = HashMap::new();
        let mut by_id: FxHashMap<u64, &'static Function> = FxHashMap::default();
        for function in functions {
            if let Some(other) = by_name.insert(function.name, function) {
                return Err(Error::Duplicate {
                    name: function.name.to_owned(),
                    first: format!("{}:{}", other.file, other.line),
                    second: format!("{}:{}", function.file, function.line),
                });
            }
            if let Some(other) = by_id.insert(function.id(), function) {
                return Err(Error::Collision {
                    first: other.name.to_owned(),
                    second: function.name.to_owned(),
                });
            }
        }
        let mut ids: Vec<u64> = by_id.keys().copied().collect();
        ids.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for id in ids {
            hasher.update(&id.to_le_bytes());
        }
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        Ok(Self { by_id, fingerprint: u64::from_le_bytes(first) })
    }

    /// The function with this id.
    pub fn get(&self, id: u64) -> Option<&'static Function> {
        self.by_id.get(&id).copied()
    }

    /// The function with this name.
    pub fn find(&self, name: &str) -> Option<&'static Function> {
        self.by_id.values().find(|function| function.name == name).copied()
    }

    /// A hash over all names and signatures: equal in equal binaries.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &'static str, signature: &'static str) -> &'static Function {
        Box::leak(Box::new(Function {
            name,
            signature,
            file: "src/main.rs",
            line: 7,
            is_async: false,
            entry: Entry::Task(|_| Invocation::Finished(Ok(Results::new()))),
            id: OnceLock::new(),
            nanos: AtomicU64::new(0),
        }))
    }

    #[test]
    fn two_functions_under_one_name_are_refused() {
        let error =
            Registry::new([function("a::f", "()"), function("a::f", "(u64)")].into_iter()).unwrap_err();
        assert!(error.to_string().contains("two functions are registered as `a::f`"), "{error}");
    }

    #[test]
    fn the_signature_is_part_of_the_identity() {
        let one = Registry::new([function("a::f", "()")].into_iter()).unwrap();
        let other = Registry::new([function("a::f", "(u64)")].into_iter()).unwrap();
        assert_ne!(one.fingerprint(), other.fingerprint());
        assert!(one.get(function("a::f", "()").id()).is_some());
        assert!(one.get(function("a::f", "(u64)").id()).is_none());
        assert!(other.find("a::f").is_some());
    }
}
