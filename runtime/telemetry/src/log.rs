//! Logging: `tracing` to standard error, text on a terminal and JSON otherwise, level from `MOBULA_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// The environment variable that sets the level, in `tracing`'s filter syntax (`info`, `mobula_agent=debug`).
pub const LEVEL_VARIABLE: &str = "MOBULA_LOG";

/// Starts logging for this process; a second call changes nothing. `default_level` holds where
/// [`LEVEL_VARIABLE`] is unset or unreadable.
pub fn init(default_level: &str) {
    init_with(EnvFilter::try_from_env(LEVEL_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default_level)));
}

/// [`init`] at this level, whatever the variable says.
pub fn init_at(level: &str) {
    init_with(EnvFilter::new(level));
}

/// What is wrong with a level, if anything is.
pub fn check(level: &str) -> Result<(), String> {
    EnvFilter::try_new(level).map(drop).map_err(|error| error.to_string())
}

fn init_with(filter: EnvFilter) {
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error here means that the process already logs, which is what was asked for.
    let _already = if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
}
