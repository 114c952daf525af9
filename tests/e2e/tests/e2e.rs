//! Every scenario in every mode. See `mobula_e2e` for the harness.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod scenarios;

use std::process::ExitCode;

/// `scenario::mode` and why it fails. An entry is a defect that somebody has to mend; it is run all the same with
/// `--include-ignored`.
const KNOWN_FAILING: &[mobula_e2e::Known] = &[];

fn main() -> ExitCode {
    // This binary is also every head, agent and host that it starts, and the drivers that it watches.
    if let Some(code) = mobula_rig::become_child() {
        return code;
    }
    if let Some(code) = scenarios::driver::run_if_asked() {
        return code;
    }
    if scenarios::isolation::is_stranger() {
        return ExitCode::SUCCESS;
    }
    mobula_e2e::run(&scenarios::cases(), scenarios::SOLOS, KNOWN_FAILING)
}
