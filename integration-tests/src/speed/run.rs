//! One run of the guest on one machine.

use super::boot_sector::{self, DiskError};
use super::guest::{self, ImageError, Work};
use super::machine::{Line, Machine, Media};
use super::marks::{MarkError, Marks, Sample};
use std::fs::File;
use std::io::{PipeReader, Read};
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest a machine may be silent: one loop on a slow or busy one.
const SILENCE: Duration = Duration::from_secs(120);

/// The guest as files, gone with this value.
#[derive(Debug)]
pub struct Guest {
    work: Work,
    media: Media,
    _folder: TempDir,
}

/// A run has failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The guest can't be assembled.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It can't be put on a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file or the machine's program.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The guest says what it shouldn't.
    #[error("{machine}: {source}")]
    Guest {
        /// On which machine.
        machine: &'static str,
        /// What.
        source: MarkError,
    },
    /// It says nothing more.
    #[error("{machine}: {how} behind {after} rows; the machine said: {said}")]
    Unfinished {
        /// Which machine.
        machine: &'static str,
        /// Whether it is silent or has ended.
        how: &'static str,
        /// How many rows were heard.
        after: usize,
        /// What it wrote that isn't the guest's.
        said: String,
    },
}

/// Bytes, and when they came.
type Heard = (Instant, Vec<u8>);

fn host(what: &Path) -> impl FnOnce(std::io::Error) -> RunError {
    let what = what.display().to_string();
    move |source| RunError::Host { what, source }
}

impl Guest {
    /// Makes the guest's files.
    ///
    /// # Errors
    /// They can't be written.
    pub fn new(work: Work) -> Result<Self, RunError> {
        let folder = tempfile::tempdir().map_err(host(&std::env::temp_dir()))?;
        let media = Media {
            kernel: folder.path().join("guest"),
            disk: folder.path().join("disk"),
            folder: folder.path().to_owned(),
        };
        let image = guest::image(&work)?;
        std::fs::write(&media.kernel, &image).map_err(host(&media.kernel))?;
        std::fs::write(&media.disk, boot_sector::disk(&image)?).map_err(host(&media.disk))?;
        Ok(Self {
            work,
            media,
            _folder: folder,
        })
    }

    /// What it does.
    #[must_use]
    pub const fn work(&self) -> &Work {
        &self.work
    }

    /// Runs it on a machine, to its end.
    ///
    /// # Errors
    /// The machine can't be started, is silent for minutes or ends too early, or the guest goes wrong on it.
    pub fn run(&self, machine: &Machine) -> Result<Vec<Sample>, RunError> {
        let rest = self.media.folder.join(machine.name());
        let (_running, heard) = self.start(machine, &rest)?;
        let mut marks = Marks::default();
        while !marks.is_over() {
            let (at, bytes) = heard.recv_timeout(SILENCE).map_err(|error| RunError::Unfinished {
                machine: machine.name(),
                how: match error {
                    RecvTimeoutError::Timeout => "silent",
                    RecvTimeoutError::Disconnected => "ended",
                },
                after: marks.samples().len(),
                said: std::fs::read(&rest).map_or_else(|error| error.to_string(), |bytes| text(&bytes)),
            })?;
            marks.hear(at, &bytes).map_err(|source| RunError::Guest {
                machine: machine.name(),
                source,
            })?;
        }
        Ok(marks.samples().to_vec())
    }

    /// Starts a machine whose words go to `rest`, the guest's into the channel, each with its time.
    fn start(&self, machine: &Machine, rest: &Path) -> Result<(Running, Receiver<Heard>), RunError> {
        let (mut command, line) = machine.command(&self.media).map_err(host(&self.media.folder))?;
        let (reader, writer) = std::io::pipe().map_err(host(rest))?;
        let rest = File::create(rest).map_err(host(rest))?;
        match line {
            Line::Output => command.stdout(writer).stderr(rest),
            Line::Error => command.stdout(rest).stderr(writer),
        };
        let program = Path::new(command.get_program()).to_owned();
        let child = Machine::quiet(&mut command).spawn().map_err(host(&program))?;
        // The command holds the pipe's other end: without this the end of the machine would not be heard.
        drop(command);
        Ok((Running(child), listen(reader)))
    }
}

/// Reads in a thread, so that the time of a byte is when it came.
fn listen(mut reader: PipeReader) -> Receiver<Heard> {
    let (sender, heard) = sync_channel(64);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Some(count) = reader.read(&mut buffer).ok().filter(|count| *count > 0) {
            if sender.send((Instant::now(), buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
    heard
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A machine that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has already ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
