//! What the rings and doorbells are made of. Models of them (`tests/models`) put those of a model checker in its place.

pub(super) use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

pub(super) use rustix::thread::futex;
