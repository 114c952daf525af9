//! What the heap and its bytes are shared and locked with. Models of them (`tests/models`) put those of a model checker
//! in its place.

pub(crate) use std::sync::{Arc, Weak};

pub(crate) use parking_lot::Mutex;
