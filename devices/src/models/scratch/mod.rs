//! A test device for MMIO: a file of registers that remember what is written, and counters of the accesses.

use crate::access::{IoOp, IoSize};
use crate::device::{BadState, Device, IoOutcome, Persist, Refusal};
use std::sync::atomic::{AtomicU64, Ordering};

/// The registers. This is a device of our own; there is no other data sheet.
pub mod regs {
    /// Size of the region in bytes.
    pub const LEN: u64 = 0x1000;
    /// First byte of the register file: 128 registers of 8 bytes, little-endian. Accesses of every size must be
    /// naturally aligned. Zero at reset.
    pub const FILE: u64 = 0;
    /// Number of 8-byte registers in the file.
    pub const FILE_REGISTERS: usize = 128;
    /// Read-only, 8 bytes: how many reads the register file has answered since reset.
    pub const READS: u64 = 0x800;
    /// Read-only, 8 bytes: how many writes the register file has taken since reset.
    pub const WRITES: u64 = 0x808;
    /// Read-only, 4 or 8 bytes: [`MAGIC`].
    pub const ID: u64 = 0x810;
    /// What [`ID`] reads as: "UMBR".
    pub const MAGIC: u32 = u32::from_le_bytes(*b"UMBR");
}

/// The device. All registers are atomic: it takes no lock, so it shows what the bus itself costs.
#[derive(Debug)]
pub struct Scratch {
    file: [AtomicU64; regs::FILE_REGISTERS],
    reads: AtomicU64,
    writes: AtomicU64,
}

/// The state of a [`Scratch`] device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScratchState {
    /// The register file, 128 registers.
    pub file: Vec<u64>,
    /// The counter of reads.
    pub reads: u64,
    /// The counter of writes.
    pub writes: u64,
}

impl Scratch {
    /// A device whose registers are zero.
    pub const fn new() -> Self {
        Self {
            file: [const { AtomicU64::new(0) }; regs::FILE_REGISTERS],
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        }
    }

    /// How many reads and writes the register file has answered since reset.
    pub fn accesses(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.writes.load(Ordering::Relaxed))
    }

    fn access_file(&self, register: &AtomicU64, shift: u64, size: IoSize, op: IoOp) -> IoOutcome {
        match op {
            IoOp::Read => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                IoOutcome::Value(size.truncate(register.load(Ordering::SeqCst) >> shift))
            }
            IoOp::Write(value) => {
                self.writes.fetch_add(1, Ordering::Relaxed);
                let mask = size.all_ones() << shift;
                let bits = size.truncate(value) << shift;
                // One step, so that two vCPUs that write different bytes of a register don't undo each other.
                let mut old = register.load(Ordering::Relaxed);
                while let Err(now) =
                    register.compare_exchange_weak(old, old & !mask | bits, Ordering::SeqCst, Ordering::Relaxed)
                {
                    old = now;
                }
                IoOutcome::Done
            }
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Scratch {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        let (word, byte) = (offset / 8, offset % 8);
        let register = usize::try_from(word).ok().and_then(|word| self.file.get(word));
        if let Some(register) = register {
            if !offset.is_multiple_of(size.bytes()) {
                return IoOutcome::Refused(Refusal::WrongSize);
            }
            return self.access_file(register, 8 * byte, size, op);
        }
        let (value, least) = match offset {
            regs::READS => (self.reads.load(Ordering::Relaxed), IoSize::B8),
            regs::WRITES => (self.writes.load(Ordering::Relaxed), IoSize::B8),
            regs::ID => (u64::from(regs::MAGIC), IoSize::B4),
            _ => return IoOutcome::Refused(Refusal::NoRegister),
        };
        match op {
            IoOp::Read if size >= least => IoOutcome::Value(value),
            IoOp::Read => IoOutcome::Refused(Refusal::WrongSize),
            IoOp::Write(_) => IoOutcome::Refused(Refusal::WrongDirection),
        }
    }

    fn reset(&self) {
        let Self { file, reads, writes } = self;
        for register in file.iter().chain([reads, writes]) {
            register.store(0, Ordering::SeqCst);
        }
    }
}

impl Persist for Scratch {
    type State = ScratchState;

    fn save(&self) -> Self::State {
        let Self { file, reads, writes } = self;
        ScratchState {
            file: file.iter().map(|register| register.load(Ordering::SeqCst)).collect(),
            reads: reads.load(Ordering::SeqCst),
            writes: writes.load(Ordering::SeqCst),
        }
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        let ScratchState { file, reads, writes } = state;
        if file.len() != self.file.len() {
            let value = file.len() as u64;
            return Err(BadState {
                model: "scratch",
                field: "file.len",
                value,
                expected: "128 registers",
            });
        }
        for (register, value) in self.file.iter().zip(file) {
            register.store(*value, Ordering::SeqCst);
        }
        self.reads.store(*reads, Ordering::SeqCst);
        self.writes.store(*writes, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Conformance;

    #[test]
    fn conforms() {
        let counters = regs::READS..regs::LEN;
        Conformance::of("scratch", regs::LEN, Scratch::new)
            .reads_are_quiet_in(counters)
            .check();
    }

    #[test]
    fn file_remembers_bytes_of_every_size() {
        let scratch = Scratch::new();
        scratch.access(8, IoSize::B8, IoOp::Write(0x1122_3344_5566_7788));
        scratch.access(10, IoSize::B2, IoOp::Write(0xabcd));
        assert_eq!(
            scratch.access(8, IoSize::B8, IoOp::Read),
            IoOutcome::Value(0x1122_3344_abcd_7788)
        );
        assert_eq!(
            scratch.access(12, IoSize::B4, IoOp::Read),
            IoOutcome::Value(0x1122_3344)
        );
        assert_eq!(
            scratch.access(9, IoSize::B2, IoOp::Read),
            IoOutcome::Refused(Refusal::WrongSize)
        );
        assert_eq!(scratch.access(regs::READS, IoSize::B8, IoOp::Read), IoOutcome::Value(2));
        assert_eq!(
            scratch.access(regs::WRITES, IoSize::B8, IoOp::Read),
            IoOutcome::Value(2)
        );
    }

    #[test]
    fn state_of_another_size_is_refused() {
        let state = ScratchState {
            file: vec![0; 3],
            reads: 0,
            writes: 0,
        };
        let error = Scratch::new().restore(&state).unwrap_err();
        assert_eq!(error.to_string(), "scratch: file.len is 0x3, expected 128 registers");
    }
}
