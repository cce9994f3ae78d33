//! Switches KVM's tracepoints on and collects what they print. One user at a time: the buffer is the kernel's.

use super::event::Event;
use super::parse::{ParseError, parse};
use std::path::PathBuf;

/// Room per CPU for the events between two readings.
const BUFFER_KIB: u32 = 16 << 10;

/// Tracepoints on, until dropped.
#[derive(Debug)]
pub struct Session {
    root: PathBuf,
    events: Vec<&'static str>,
}

/// This machine has no such tracepoints, or not for us.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct Unavailable {
    path: PathBuf,
    source: std::io::Error,
}

/// The trace can't be read any more, or not understood.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file of tracefs.
    #[error(transparent)]
    File(#[from] Unavailable),
    /// An event that prints something else than expected.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The buffer was too small: the account has gaps.
    #[error("the kernel's trace buffer overflowed ({0})")]
    Overrun(String),
}

impl Session {
    /// Switches these tracepoints on (`group/name`), with an empty buffer.
    ///
    /// # Errors
    /// No tracefs, no such event (KVM is not loaded), or no permission.
    pub fn start(events: &[&'static str]) -> Result<Self, Unavailable> {
        let session = Self {
            root: PathBuf::from("/sys/kernel/tracing"),
            events: events.to_vec(),
        };
        session.write("buffer_size_kb", &BUFFER_KIB.to_string())?;
        session.clear()?;
        for event in events {
            session.write(&format!("events/{event}/enable"), "1")?;
        }
        Ok(session)
    }

    /// The events since the start or the last call.
    ///
    /// # Errors
    /// The trace can't be read, has gaps, or prints an event in an unknown way.
    pub fn take(&self) -> Result<Vec<Event>, TraceError> {
        let path = self.root.join("trace");
        let text = std::fs::read_to_string(&path).map_err(|source| Unavailable { path, source })?;
        // "# entries-in-buffer/entries-written: 12/12   #P:2": fewer in the buffer than written means lost ones.
        if let Some(counts) = text
            .lines()
            .find_map(|line| line.strip_prefix("# entries-in-buffer/entries-written: "))
        {
            let counts = counts.split_whitespace().next().unwrap_or_default();
            if counts.split_once('/').is_some_and(|(kept, written)| kept != written) {
                return Err(TraceError::Overrun(counts.to_owned()));
            }
        }
        self.clear()?;
        Ok(parse(&text)?)
    }

    /// Opening the trace for writing with truncation empties it.
    fn clear(&self) -> Result<(), Unavailable> {
        self.write("trace", "")
    }

    fn write(&self, file: &str, what: &str) -> Result<(), Unavailable> {
        let path = self.root.join(file);
        std::fs::write(&path, what).map_err(|source| Unavailable { path, source })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for event in &self.events {
            // The test is over either way, and the next session starts by clearing.
            let _ = self.write(&format!("events/{event}/enable"), "0");
        }
    }
}
