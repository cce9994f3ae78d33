//! The log: nothing unless `--log` asks, and then to standard error.

use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;

/// What is wrong with a log filter.
#[derive(Debug, thiserror::Error)]
#[error("--log `{filter}` is not a filter: {reason}; write a level (debug) or targets (umbra_vcpu=trace,info)")]
pub struct LogError {
    filter: String,
    reason: String,
}

/// Starts logging what `filter` lets through.
///
/// # Errors
/// The filter can't be understood.
pub fn start(filter: &str) -> Result<(), LogError> {
    let error = |reason: &dyn std::fmt::Display| LogError {
        filter: filter.to_owned(),
        reason: reason.to_string(),
    };
    let parsed = EnvFilter::builder().parse(filter).map_err(|reason| error(&reason))?;
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init()
        .map_err(|reason| error(&reason))
}
