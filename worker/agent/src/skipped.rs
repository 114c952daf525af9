//! Tests that look at nothing, because of what this machine lacks.

#![allow(clippy::expect_used, reason = "tests")]

use std::{io::Write, panic::Location};

/// Says so in the output, which is shown for what fails only, and where `tests/run` gathers it.
#[track_caller]
pub(crate) fn skipped(why: &str) {
    let place = Location::caller();
    let line = format!("{}:{}: {why}\n", place.file(), place.line());
    eprint!("not run: {line}");
    if let Some(file) = std::env::var_os("MOBULA_SKIPPED") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(file);
        // In one piece, among others that do the same.
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file of MOBULA_SKIPPED");
    }
}
