//! isa-debug-exit: a port whose write ends the run with a code for whoever started it. Test suites for QEMU use it.

use crate::access::{IoOp, IoSize};
use crate::device::{BadState, Device, Effect, IoOutcome, Persist};

/// Where and what it is (QEMU, `hw/misc/debugexit.c`; the port is the customary choice of its users).
pub mod regs {
    /// Customary first port.
    pub const PORT: u16 = 0xf4;
    /// Number of ports.
    pub const LEN: u64 = 4;
}

/// The device. It has no state.
///
/// Every write asks for [`Effect::Exit`] with the value written; the process exit status that QEMU makes of it is
/// `code << 1 | 1`. Reads are 0.
#[derive(Clone, Copy, Default, Debug)]
pub struct DebugExit;

impl DebugExit {
    /// The device.
    pub const fn new() -> Self {
        Self
    }
}

impl Device for DebugExit {
    fn access(&self, _offset: u64, _size: IoSize, op: IoOp) -> IoOutcome {
        match op {
            IoOp::Read => IoOutcome::Value(0),
            // Ports are at most 4 bytes wide.
            #[expect(clippy::cast_possible_truncation, reason = "a port write has at most 32 bits")]
            IoOp::Write(value) => IoOutcome::effect(Effect::Exit { code: value as u32 }),
        }
    }

    fn reset(&self) {}
}

impl Persist for DebugExit {
    type State = ();

    fn save(&self) -> Self::State {}

    fn restore(&self, (): &Self::State) -> Result<(), BadState> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Conformance;

    #[test]
    fn conforms() {
        Conformance::of("debug_exit", regs::LEN, DebugExit::new)
            .reads_are_quiet_in(0..regs::LEN)
            .check();
    }

    #[test]
    fn write_of_any_size_exits_with_its_value() {
        for (size, value) in [(IoSize::B1, 0x10), (IoSize::B2, 0x1234), (IoSize::B4, 0xffff_ffff)] {
            let outcome = DebugExit.access(0, size, IoOp::Write(value));
            assert_eq!(
                outcome,
                IoOutcome::effect(Effect::Exit {
                    code: u32::try_from(value).unwrap()
                })
            );
        }
    }
}
