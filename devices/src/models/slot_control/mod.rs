//! A test device by which a guest has RAM put over guest-physical frames and taken away again: what memory hot-plug does
//! to the frames under an MMIO page, on demand.

use crate::access::{IoOp, IoSize};
use crate::device::{BadState, Device, Effect, IoOutcome, Persist, Refusal};
use crate::sync::lock;
use std::sync::Mutex;
use umbra_memslots::{Gfn, GfnRange};

/// The registers, all of 8 bytes and accessed whole. This is a device of our own; there is no other data sheet.
pub mod regs {
    /// Size of the region in bytes.
    pub const LEN: u64 = 0x28;
    /// First guest frame of the range.
    pub const FIRST_GFN: u64 = 0x00;
    /// Number of frames in the range.
    pub const PAGES: u64 = 0x08;
    /// [`FLAG_READ_ONLY`] or 0.
    pub const FLAGS: u64 = 0x10;
    /// Write-only: [`COMMAND_MAP`] or [`COMMAND_UNMAP`]. Done when the write is.
    pub const COMMAND: u64 = 0x18;
    /// Read-only: number of commands passed on since reset. A command with an impossible range, or an unknown one,
    /// isn't.
    pub const COMMANDS: u64 = 0x20;

    /// In [`FLAGS`]: guest writes to the RAM are refused (they arrive as MMIO).
    pub const FLAG_READ_ONLY: u64 = 1;
    /// Put zeroed RAM over the range.
    pub const COMMAND_MAP: u64 = 1;
    /// Take the RAM away from exactly this range.
    pub const COMMAND_UNMAP: u64 = 2;
}

/// The registers that hold values, and the state that is saved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SlotControlState {
    /// [`regs::FIRST_GFN`].
    pub first_gfn: u64,
    /// [`regs::PAGES`].
    pub pages: u64,
    /// [`regs::FLAGS`].
    pub flags: u64,
    /// [`regs::COMMANDS`].
    pub commands: u64,
}

/// The device.
#[derive(Default, Debug)]
pub struct SlotControl {
    state: Mutex<SlotControlState>,
}

impl SlotControl {
    /// A device whose registers are zero.
    pub fn new() -> Self {
        Self::default()
    }
}

impl SlotControlState {
    fn command(&mut self, command: u64) -> IoOutcome {
        let range = Gfn::new(self.first_gfn).and_then(|first| GfnRange::new(first, self.pages));
        let effect = match (command, range) {
            (regs::COMMAND_MAP, Some(range)) => Effect::MapRam {
                range,
                read_only: self.flags & regs::FLAG_READ_ONLY != 0,
            },
            (regs::COMMAND_UNMAP, Some(range)) => Effect::UnmapRam { range },
            _ => return IoOutcome::Done,
        };
        self.commands = self.commands.wrapping_add(1);
        IoOutcome::effect(effect)
    }
}

impl Device for SlotControl {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        let mut state = lock(&self.state);
        let register = match offset {
            regs::FIRST_GFN => &mut state.first_gfn,
            regs::PAGES => &mut state.pages,
            regs::FLAGS => &mut state.flags,
            regs::COMMAND | regs::COMMANDS => &mut state.commands,
            _ => return IoOutcome::Refused(Refusal::NoRegister),
        };
        if size != IoSize::B8 {
            return IoOutcome::Refused(Refusal::WrongSize);
        }
        match (offset, op) {
            (regs::COMMAND, IoOp::Write(command)) => state.command(command),
            (regs::COMMAND, IoOp::Read) | (regs::COMMANDS, IoOp::Write(_)) => {
                IoOutcome::Refused(Refusal::WrongDirection)
            }
            (_, IoOp::Read) => IoOutcome::Value(*register),
            (_, IoOp::Write(value)) => {
                *register = value;
                IoOutcome::Done
            }
        }
    }

    fn reset(&self) {
        *lock(&self.state) = SlotControlState::default();
    }
}

impl Persist for SlotControl {
    type State = SlotControlState;

    fn save(&self) -> Self::State {
        *lock(&self.state)
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        *lock(&self.state) = *state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Conformance;

    #[test]
    fn conforms() {
        Conformance::of("slot_control", regs::LEN, SlotControl::new)
            .reads_are_quiet_in(0..regs::LEN)
            .check();
    }

    #[test]
    fn command_asks_for_ram_over_the_range() {
        let device = SlotControl::new();
        let write = |offset, value| device.access(offset, IoSize::B8, IoOp::Write(value));
        write(regs::FIRST_GFN, 0xd0000);
        write(regs::PAGES, 2);
        let range = GfnRange::new(Gfn::new(0xd0000).unwrap(), 2).unwrap();
        let map = |read_only| IoOutcome::effect(Effect::MapRam { range, read_only });
        assert_eq!(write(regs::COMMAND, regs::COMMAND_MAP), map(false));
        write(regs::FLAGS, regs::FLAG_READ_ONLY);
        assert_eq!(write(regs::COMMAND, regs::COMMAND_MAP), map(true));
        assert_eq!(
            write(regs::COMMAND, regs::COMMAND_UNMAP),
            IoOutcome::effect(Effect::UnmapRam { range })
        );
        assert_eq!(
            device.access(regs::COMMANDS, IoSize::B8, IoOp::Read),
            IoOutcome::Value(3)
        );
    }

    #[test]
    fn impossible_range_or_unknown_command_has_no_effect() {
        let device = SlotControl::new();
        let write = |offset, value| device.access(offset, IoSize::B8, IoOp::Write(value));
        assert_eq!(write(regs::COMMAND, regs::COMMAND_MAP), IoOutcome::Done, "no pages");
        write(regs::FIRST_GFN, u64::MAX);
        write(regs::PAGES, 1);
        assert_eq!(
            write(regs::COMMAND, regs::COMMAND_MAP),
            IoOutcome::Done,
            "no such frame"
        );
        write(regs::FIRST_GFN, 0);
        assert_eq!(write(regs::COMMAND, 77), IoOutcome::Done);
        assert_eq!(
            device.access(regs::COMMANDS, IoSize::B8, IoOp::Read),
            IoOutcome::Value(0)
        );
    }
}
