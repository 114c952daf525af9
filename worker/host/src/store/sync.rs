//! What views are shared and locked with. Models of them (`tests/models`) put those of a model checker in its place.

use std::any::Any;

use mobula_store::bytes::Pin;

pub(super) use parking_lot::Mutex;
pub(super) use std::sync::{Arc, Weak};

/// Bytes keep this as long as they are there.
pub(super) fn pin<T: Any + Send + Sync>(kept: Arc<T>) -> Pin {
    kept
}
