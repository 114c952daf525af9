//! What the heap, its bytes and spares are shared and locked with. Models of them (`tests/models`) put those of a model checker
//! in its place.

pub(crate) use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

pub(crate) use parking_lot::Mutex;
