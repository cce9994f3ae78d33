//! The log: nothing unless `--log` asks, and then to standard error.

use std::io::{self, IsTerminal};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is wrong with a log filter.
#[derive(Debug, thiserror::Error)]
#[error("--log `{filter}` is not a filter: {reason}; write a level (debug) or targets (umbra_vcpu=trace,info)")]
pub struct LogError {
    filter: String,
    reason: String,
}

/// Starts logging what `filter` lets through: levels by target. (Filters with spans and fields would bring a regular
/// expression engine into the binary.)
///
/// # Errors
/// The filter can't be understood.
pub fn start(filter: &str) -> Result<(), LogError> {
    let error = |reason: &dyn std::fmt::Display| LogError {
        filter: filter.to_owned(),
        reason: reason.to_string(),
    };
    let targets: Targets = filter.parse().map_err(|reason| error(&reason))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(targets)
        .with(lines)
        .try_init()
        .map_err(|reason| error(&reason))
}
