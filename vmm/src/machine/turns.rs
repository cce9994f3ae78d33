//! `--deterministic`: what all lives of a machine share whose vCPUs take turns by counted time, and what each has.
//!
//! What the guest is told comes from here and from nowhere else on the host: the date, and what is typed. Standard input
//! that is no terminal is read to its end before the guest starts, and typed by the guest's clock.

use crate::config::DeterministicConfig;
use crate::terminal::say;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::isatty;
use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use umbra_devices::models::lapic::ApicBus;
use umbra_devices::models::pit::Pit;
use umbra_devices::models::serial::{Script, Serial, SerialScript};
use umbra_devices::{Clock, ManualClock};
use umbra_vcpu::turns::{Alarms, Bell, Idle, SharedTrace, TurnOptions};

/// Bytes of input that are read before the guest starts.
const LONGEST_INPUT: u64 = 16 << 20;
/// How long its end is waited for in silence.
const SILENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Why a run can't be deterministic.
#[derive(Debug, thiserror::Error)]
pub enum TurnsError {
    /// No file for the trace.
    #[error("cannot write the trace to {}: {source}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// Standard input can't be read.
    #[error("cannot read standard input: {0}")]
    Input(io::Error),
    /// Standard input doesn't end.
    #[error("standard input is longer than the 16M that --deterministic reads before the guest starts")]
    InputTooLong,
}

/// What the lives of a machine share.
pub struct Turns {
    quantum: NonZeroU64,
    /// The wall-clock time at which the next life begins.
    date: Mutex<Duration>,
    /// What is to be typed; `None` if somebody types it.
    script: Option<Script>,
    trace: SharedTrace,
    path: Option<PathBuf>,
}

impl Turns {
    /// Opens the trace, and reads standard input to its end unless it is a terminal.
    ///
    /// # Errors
    /// [`TurnsError`].
    pub fn open(config: &DeterministicConfig) -> Result<Self, TurnsError> {
        let trace = match &config.trace {
            None => SharedTrace::new(),
            Some(path) => {
                let file = File::create(path).map_err(|source| TurnsError::Trace {
                    path: path.clone(),
                    source,
                })?;
                SharedTrace::to(BufWriter::new(file))
            }
        };
        let stdin = rustix::stdio::stdin();
        Ok(Self {
            quantum: config.quantum,
            date: Mutex::new(config.rtc.since_1970()),
            script: (!isatty(stdin)).then(read_input).transpose()?.map(Script::new),
            trace,
            path: config.trace.clone(),
        })
    }

    /// Whether standard input was read and is not to be read again.
    pub fn is_scripted(&self) -> bool {
        self.script.is_some()
    }

    /// What is told about the run.
    pub fn trace(&self) -> &SharedTrace {
        &self.trace
    }

    /// Writes out what is left of the trace.
    ///
    /// # Errors
    /// It can't be written.
    pub fn finish(&self) -> Result<(), TurnsError> {
        self.trace.finish().map_err(|source| TurnsError::Trace {
            path: self.path.clone().unwrap_or_default(),
            source,
        })
    }

    /// The clock and the bell of the next life.
    pub(super) fn life(self: &Arc<Self>) -> Life {
        let date = *self.date.lock().unwrap_or_else(PoisonError::into_inner);
        Life {
            turns: Arc::clone(self),
            clock: Arc::new(ManualClock::at_unix_time(date)),
            bell: Bell::new(),
        }
    }
}

/// Reads standard input to its end; says what it is waiting for if that takes long.
fn read_input() -> Result<Vec<u8>, TurnsError> {
    let stdin = rustix::stdio::stdin();
    let mut ready = [PollFd::from_borrowed_fd(stdin, PollFlags::IN)];
    if matches!(poll(&mut ready, Some(&SILENCE)), Ok(0)) {
        say(format_args!(
            "vmm: --deterministic waits for the end of standard input before the guest starts (`< /dev/null`: none)\n"
        ));
    }
    let mut bytes = Vec::new();
    match io::stdin().lock().take(LONGEST_INPUT + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > LONGEST_INPUT => Err(TurnsError::InputTooLong),
        Ok(_) => Ok(bytes),
        Err(error) => Err(TurnsError::Input(error)),
    }
}

/// What one life of a machine has. Its end is where the next one begins.
pub struct Life {
    turns: Arc<Turns>,
    /// Its time.
    pub clock: Arc<ManualClock>,
    /// Whom its timers tell that they are set.
    pub bell: Bell,
}

impl Life {
    /// What its vCPUs need to take turns, with these timers and this console.
    pub(super) fn options(&self, pit: &Arc<Pit>, apics: &Arc<ApicBus>, serial: &Arc<Serial>) -> TurnOptions {
        let Turns {
            quantum, script, trace, ..
        } = &*self.turns;
        let typing = script
            .clone()
            .map(|script| SerialScript::new(Arc::clone(serial), Arc::clone(&self.clock), script));
        TurnOptions {
            quantum: *quantum,
            idle: if script.is_some() { Idle::Skip } else { Idle::Sleep },
            clock: Arc::clone(&self.clock),
            alarms: Arc::new(Timers {
                pit: Arc::clone(pit),
                apics: Arc::clone(apics),
                typing,
            }),
            bell: self.bell.clone(),
            trace: trace.clone(),
        }
    }

    /// What is told about the run.
    pub(super) fn trace(&self) -> &SharedTrace {
        self.turns.trace()
    }

    /// Whether standard input is not to be read.
    pub(super) fn is_scripted(&self) -> bool {
        self.turns.is_scripted()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        *self.turns.date.lock().unwrap_or_else(PoisonError::into_inner) = self.clock.unix_time();
    }
}

/// Everything that happens at a time.
struct Timers {
    pit: Arc<Pit>,
    apics: Arc<ApicBus>,
    typing: Option<SerialScript<ManualClock>>,
}

impl Alarms for Timers {
    fn tick(&self) -> Option<Duration> {
        let typing = self.typing.as_ref().and_then(SerialScript::tick);
        [typing, self.pit.tick(), self.apics.tick()].into_iter().flatten().min()
    }
}
