//! Logging: `tracing` to standard error, text on a terminal and JSON otherwise, level from `MOBULA_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// The environment variable that sets the level, in `tracing`'s filter syntax (`info`, `mobula_agent=debug`).
pub const LEVEL_VARIABLE: &str = "MOBULA_LOG";

/// Starts logging for this process; a second call changes nothing. `default_level` holds where
/// [`LEVEL_VARIABLE`] is unset or unreadable.
pub fn init(default_level: &str) {
    let filter = EnvFilter::try_from_env(LEVEL_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default_level));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error here means that the process already logs, which is what was asked for.
    let _already = if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
}
