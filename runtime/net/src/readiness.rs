//! Waiting until a descriptor can be read or written.

use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Waits for what owns its descriptor. Must be called inside a tokio runtime.
///
/// # Errors
/// The system does not wait for such a descriptor, or has none left.
#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types whose descriptor may change; what is but an owner of its \
              own keeps that open until it is dropped, which is all that the successor asks for"
)]
pub fn readiness<T: AsRawFd + Into<OwnedFd>>(
    descriptor: T,
    interest: Interest,
) -> std::io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(descriptor, interest)
}
