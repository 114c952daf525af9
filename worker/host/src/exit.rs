//! What a process does last: code that runs however it comes to exit, but for a signal that kills it.

#![expect(unsafe_code, reason = "the C library's `atexit` has no safe wrapper")]

use std::sync::OnceLock;

/// What runs at the exit.
static CODE: OnceLock<fn()> = OnceLock::new();

extern "C" fn run() {
    if let Some(code) = CODE.get() {
        // Nobody is left who could be told of a panic, which must not go further into the C library.
        let _panicked = std::panic::catch_unwind(code);
    }
}

/// Has `code` run when this process exits: by [`std::process::exit`], or when `main` has returned. Only the first
/// call's code ever runs. `false` where the system refused.
///
/// `code` runs on the thread that exits, while the others go on. That thread may hold any lock of the program.
pub fn at_exit(code: fn()) -> bool {
    if CODE.set(code).is_err() {
        return true;
    }
    // SAFETY: `run` is a function without captures or arguments that never unwinds, which is all that `atexit` asks.
    unsafe { libc::atexit(run) == 0 }
}
