//! Reading the `--config` file.

use super::{ConfigError, Settings};
use std::path::Path;

/// Reads a TOML file with the same keys as `vmm run` has flags. Paths in it are relative to where the file is.
///
/// # Errors
/// The file can't be read, or what is wrong with it and where.
pub fn read(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let settings = parse(&text, path)?;
    Ok(settings.relative_to(path.parent().unwrap_or(Path::new(""))))
}

/// Parses the text of a configuration file; `path` is only for messages.
///
/// # Errors
/// What is wrong and where.
pub fn parse(text: &str, path: &Path) -> Result<Settings, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        // A message is one line for the user; the parser sometimes says "expected …" in a second.
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        ConfigError::Malformed {
            path: path.to_owned(),
            line,
            column,
            message,
        }
    })
}

/// Line and column, both from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count();
    (before.matches('\n').count() + 1, column + 1)
}
