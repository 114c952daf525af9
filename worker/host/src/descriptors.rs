//! Open files that came with a process's start.

#![expect(unsafe_code, reason = "descriptors that nobody in the process owns have no safe handle")]

use std::{fs, io};

/// Closes what was open when this program was executed, but for standard input, output and error. Files that the
/// program opened itself stay, if they were opened to be closed in children, as Rust's standard library does.
pub fn close_inherited() -> io::Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        if let Ok(descriptor) = entry?.file_name().to_string_lossy().parse::<i32>() {
            found.push(descriptor);
        }
    }
    for descriptor in found.into_iter().filter(|descriptor| *descriptor > libc::STDERR_FILENO) {
        // SAFETY: only reads the flags of whatever is open under this number; fails where nothing is.
        let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: it survived an `exec`, so nothing in this program opened it (see above), and nothing in it can
            // believe to own the number.
            unsafe { libc::close(descriptor) };
        }
    }
    Ok(())
}
