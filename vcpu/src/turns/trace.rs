//! [`Trace`]: what happened in a run, to be compared with another's: each access to a device with its value, each
//! interrupt and exception, when it came, and how it ended.
//!
//! One event is one line: nanoseconds of the guest's time, the vCPU, instructions that it had executed, what. Whether it is
//! written down or not, all that the lines would say goes into a digest.

use super::Delivered;
use crate::exit::{VmEntry, VmExit};
use crate::run_loop::VcpuEnd;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use umbra_devices::models::lapic::CpuEvent;
use umbra_devices::{IoOp, IoSize};

/// A trace, over all lives of a machine.
#[derive(Default)]
pub struct Trace {
    out: Option<Box<dyn Write + Send>>,
    failed: Option<io::Error>,
    summary: TraceSummary,
    /// Instructions of earlier lives, by vCPU.
    before: Vec<u64>,
}

/// A trace in numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TraceSummary {
    /// Instructions executed, by vCPU.
    pub instructions: Vec<u64>,
    /// How much time went by for the guest, since its last reset.
    pub time: Duration,
    /// Events.
    pub events: u64,
    /// Two traces with one digest are one trace, as far as 64 bits can say.
    pub digest: u64,
}

impl TraceSummary {
    /// Instructions of all vCPUs.
    pub fn total(&self) -> u64 {
        self.instructions
            .iter()
            .fold(0, |total, count| total.saturating_add(*count))
    }
}

/// A trace that is written by the thread of the turns and looked at by others.
#[derive(Clone, Default)]
pub struct SharedTrace(Arc<Mutex<Trace>>);

/// When something happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment {
    pub time: Duration,
    pub vcpu: u32,
    pub executed: u64,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// The guest reached a device, or an MSR that nobody has.
    Access(Access),
    /// It was interrupted.
    Delivered(Delivered),
    /// The machine ended.
    End(&'static str),
}

/// An access, and how it was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Access {
    kind: Kind,
    write: bool,
    at: u64,
    size: Option<IoSize>,
    /// None: it faulted.
    value: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Memory,
    Port,
    Msr,
}

impl Event {
    /// What an exit is in a trace, if anything, with the answer to it.
    pub fn of(exit: &VmExit, answer: Option<VmEntry>) -> Option<Self> {
        let read = || match answer {
            Some(VmEntry::Value(value)) => Some(value),
            _ => None,
        };
        let access = |kind, at, size: IoSize, op| {
            let (write, value) = match op {
                IoOp::Read => (false, read().map(|value| size.truncate(value))),
                IoOp::Write(value) => (true, Some(size.truncate(value))),
            };
            Self::Access(Access {
                kind,
                write,
                at,
                size: Some(size),
                value,
            })
        };
        let msr = |write, index: u32, value| {
            Self::Access(Access {
                kind: Kind::Msr,
                write,
                at: index.into(),
                size: None,
                value,
            })
        };
        match *exit {
            VmExit::Mmio { gpa, size, op } => Some(access(Kind::Memory, gpa.get(), size, op)),
            VmExit::Pio { port, size, op } => Some(access(Kind::Port, port.into(), size, op)),
            VmExit::ReadMsr { index } => Some(msr(false, index, read())),
            VmExit::WriteMsr { index, value } => {
                Some(msr(true, index, Some(value).filter(|_| answer != Some(VmEntry::Fault))))
            }
            _ => None,
        }
    }

    /// How a vCPU ended, in a word or two.
    pub fn end(end: &VcpuEnd) -> Self {
        Self::End(match end {
            VcpuEnd::Stopped => "stopped from outside",
            VcpuEnd::PowerOff => "power off",
            VcpuEnd::Reset => "reset",
            VcpuEnd::Exit { .. } => "debug exit",
            VcpuEnd::Halted => "halted for ever",
            VcpuEnd::Failed(_) => "cannot go on",
            VcpuEnd::Host(_) => "the host failed",
            VcpuEnd::Panicked(_) => "internal error",
        })
    }

    /// The same in numbers, different ones for different events.
    fn words(&self) -> [u64; 4] {
        match *self {
            Self::Access(Access {
                kind,
                write,
                at,
                size,
                value,
            }) => {
                let size = size.map_or(0, |size| size.bytes());
                let kind = match kind {
                    Kind::Memory => 1,
                    Kind::Port => 2,
                    Kind::Msr => 3,
                };
                let answered = u64::from(value.is_some());
                [
                    kind | u64::from(write) << 8 | size << 16 | answered << 24,
                    at,
                    value.unwrap_or(0),
                    0,
                ]
            }
            Self::Delivered(Delivered::Interrupt(vector)) => [4, vector.into(), 0, 0],
            Self::Delivered(Delivered::Event(event)) => match event {
                CpuEvent::Init => [5, 0, 0, 0],
                CpuEvent::StartUp(page) => [6, page.into(), 0, 0],
                CpuEvent::Nmi => [7, 0, 0, 0],
            },
            Self::Delivered(Delivered::Exception {
                vector,
                error_code,
                address,
            }) => {
                let has = u64::from(error_code.is_some()) | u64::from(address.is_some()) << 1;
                [
                    8 | has << 8,
                    vector.into(),
                    error_code.unwrap_or(0).into(),
                    address.map_or(0, umbra_memslots::Gva::get),
                ]
            }
            Self::End(how) => [9, how.len() as u64, how.bytes().map(u64::from).sum(), 0],
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access(access) => access.fmt(f),
            Self::Delivered(Delivered::Interrupt(vector)) => write!(f, "interrupt {vector:#x}"),
            Self::Delivered(Delivered::Event(CpuEvent::Init)) => f.write_str("init"),
            Self::Delivered(Delivered::Event(CpuEvent::StartUp(page))) => write!(f, "start-up {page:#x}"),
            Self::Delivered(Delivered::Event(CpuEvent::Nmi)) => f.write_str("nmi"),
            Self::Delivered(Delivered::Exception {
                vector,
                error_code,
                address,
            }) => {
                write!(f, "exception {vector}")?;
                if let Some(code) = error_code {
                    write!(f, " code {code:#x}")?;
                }
                address.map_or(Ok(()), |address| write!(f, " at {:#x}", address.get()))
            }
            Self::End(how) => write!(f, "end: {how}"),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.kind, self.write) {
            (Kind::Memory, false) => "read",
            (Kind::Memory, true) => "write",
            (Kind::Port, false) => "in",
            (Kind::Port, true) => "out",
            (Kind::Msr, false) => "rdmsr",
            (Kind::Msr, true) => "wrmsr",
        };
        write!(f, "{name} {:#x}", self.at)?;
        if let Some(size) = self.size {
            write!(f, "/{}", size.bytes())?;
        }
        match self.value {
            Some(value) => write!(f, " {value:#x}"),
            None => f.write_str(" fault"),
        }
    }
}

impl SharedTrace {
    /// A trace of which only the digest is kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// A trace that is written to `out` as well.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Trace {
            out: Some(Box::new(out)),
            ..Trace::default()
        })))
    }

    /// What there is so far.
    pub fn summary(&self) -> TraceSummary {
        self.lock().summary.clone()
    }

    /// Writes out what is left.
    ///
    /// # Errors
    /// This or an earlier write failed: what was written is not all.
    pub fn finish(&self) -> io::Result<()> {
        let mut trace = self.lock();
        if let Some(error) = trace.failed.take() {
            return Err(error);
        }
        trace.out.as_mut().map_or(Ok(()), |out| out.flush())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Trace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedTrace").field(&self.summary()).finish()
    }
}

impl Trace {
    /// A machine begins, or begins anew: with so many vCPUs, this quantum and this wall-clock time.
    pub(super) fn begin(&mut self, vcpus: usize, quantum: u64, unix_time: Duration) {
        self.before = self.summary.instructions.clone();
        self.before.resize(vcpus, 0);
        self.summary.instructions = self.before.clone();
        self.summary.time = Duration::ZERO;
        self.mix(&[10, vcpus as u64, quantum, nanoseconds(unix_time)]);
        self.line(&format_args!(
            "# {vcpus} vCPUs, quantum {quantum}, begins at {} s since 1970\n# ns vCPU instructions event",
            unix_time.as_secs()
        ));
    }

    pub(super) fn event(&mut self, moment: Moment, event: &Event) {
        let Moment { time, vcpu, executed } = moment;
        self.summary.events += 1;
        self.mix(&[nanoseconds(time), vcpu.into(), executed]);
        self.mix(&event.words());
        self.line(&format_args!("{} {vcpu} {executed} {event}", nanoseconds(time)));
    }

    /// How far the vCPU has come.
    pub(super) fn progress(&mut self, vcpu: usize, executed: u64, time: Duration) {
        let before = self.before.get(vcpu).copied().unwrap_or(0);
        if let Some(count) = self.summary.instructions.get_mut(vcpu) {
            *count = before.saturating_add(executed);
        }
        self.summary.time = time;
    }

    /// Each word goes in by a bijection of what was there, so that traces that differ in one of them stay apart.
    fn mix(&mut self, words: &[u64]) {
        for word in words {
            let mut x = (self.summary.digest ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
            x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            self.summary.digest = x ^ x >> 31;
        }
    }

    fn line(&mut self, line: &fmt::Arguments<'_>) {
        let Some(out) = &mut self.out else { return };
        if let Err(error) = writeln!(out, "{line}") {
            // A trace with holes is worth nothing.
            self.out = None;
            self.failed = Some(error);
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_memslots::{Gpa, Gva};

    const PORT_READ: VmExit = VmExit::Pio {
        port: 0x3fd,
        size: IoSize::B1,
        op: IoOp::Read,
    };

    fn access(exit: &VmExit, answer: VmEntry) -> Event {
        Event::of(exit, Some(answer)).unwrap()
    }

    fn examples() -> Vec<Event> {
        let write = VmExit::Mmio {
            gpa: Gpa::new(0xd000_0000),
            size: IoSize::B4,
            op: IoOp::Write(0x1_0000_0002),
        };
        let exception = |vector, error_code, address| {
            Event::Delivered(Delivered::Exception {
                vector,
                error_code,
                address,
            })
        };
        vec![
            access(&PORT_READ, VmEntry::Value(0x160)),
            access(&write, VmEntry::Resume),
            access(&VmExit::ReadMsr { index: 0x8b }, VmEntry::Fault),
            Event::Delivered(Delivered::Interrupt(0x30)),
            Event::Delivered(Delivered::Event(CpuEvent::StartUp(0x9a))),
            exception(14, Some(2), Some(Gva::new(0x1000))),
            exception(14, Some(2), Some(Gva::new(0))),
            exception(14, Some(2), None),
            exception(6, None, None),
            Event::End("power off"),
        ]
    }

    #[test]
    fn events_read_as_lines() {
        let lines: Vec<_> = examples().iter().map(ToString::to_string).collect();
        let expected = [
            "in 0x3fd/1 0x60",
            "write 0xd0000000/4 0x2",
            "rdmsr 0x8b fault",
            "interrupt 0x30",
            "start-up 0x9a",
            "exception 14 code 0x2 at 0x1000",
            "exception 14 code 0x2 at 0x0",
            "exception 14 code 0x2",
            "exception 6",
            "end: power off",
        ];
        assert_eq!(lines, expected);
        assert_eq!(Event::of(&VmExit::Interrupted, None), None, "turns are no events");
    }

    #[test]
    fn digest_tells_every_difference() {
        let digest = |event: &Event, vcpu, executed| {
            let trace = SharedTrace::new();
            let time = Duration::from_nanos(5);
            trace.lock().begin(2, 100, Duration::ZERO);
            trace.lock().event(Moment { time, vcpu, executed }, event);
            trace.summary().digest
        };
        let mut digests: Vec<_> = examples().iter().map(|event| digest(event, 0, 7)).collect();
        digests.push(digest(&examples()[0], 1, 7));
        digests.push(digest(&examples()[0], 0, 8));
        assert_eq!(digests[0], digest(&examples()[0], 0, 7));
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }

    #[test]
    fn lives_add_up() {
        let trace = SharedTrace::new();
        for executed in [5, 7] {
            trace.lock().begin(2, 100, Duration::ZERO);
            trace.lock().progress(1, executed, Duration::from_nanos(executed));
        }
        let summary = trace.summary();
        assert_eq!((&summary.instructions[..], summary.total()), (&[0, 12][..], 12));
        assert_eq!(summary.time, Duration::from_nanos(7));
    }

    #[test]
    fn file_that_takes_no_more_is_told_of_in_the_end() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let trace = SharedTrace::to(Full);
        trace.lock().begin(1, 1, Duration::ZERO);
        assert_eq!(trace.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
