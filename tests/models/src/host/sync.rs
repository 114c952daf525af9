//! In place of the host's `sync`.

use std::any::Any;

use crate::bytes::Pin;

pub(super) use crate::sync::{Arc, Mutex, Weak};

pub(super) fn pin<T: Any + Send + Sync>(kept: Arc<T>) -> Pin {
    Pin::from_std(std::sync::Arc::new(kept))
}
