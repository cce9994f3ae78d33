//! One 8259A.

use super::regs;

/// Which initialisation word is expected next at the data port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Expected {
    /// None: the port is the mask.
    #[default]
    Mask,
    /// ICW2, the vectors.
    Vectors,
    /// ICW3, the cascade.
    Cascade,
    /// ICW4, the mode.
    Mode,
}

/// The state of one controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent flip-flops of the chip")]
pub struct ChipState {
    /// Requests (IRR).
    pub requests: u8,
    /// In service (ISR).
    pub in_service: u8,
    /// Masked (IMR).
    pub mask: u8,
    /// Levels of the inputs.
    pub levels: u8,
    /// Inputs that are level-triggered.
    pub level_triggered: u8,
    /// Vector of input 0, a multiple of 8.
    pub vectors: u8,
    /// The input with the highest priority.
    pub first: u8,
    /// What the data port expects.
    pub expected: Expected,
    /// ICW1 announced a cascade.
    pub cascaded: bool,
    /// ICW1 announced an ICW4.
    pub wants_mode: bool,
    /// Automatic end of interrupt.
    pub auto_eoi: bool,
    /// Priorities rotate on automatic end of interrupt.
    pub rotate: bool,
    /// Special fully nested mode.
    pub nested: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// The command port reads the ISR.
    pub reads_service: bool,
    /// The next read polls.
    pub polls: bool,
}

impl ChipState {
    /// Raises or lowers an input.
    pub(super) fn set_level(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        let rises = high && self.levels & bit == 0;
        if high {
            self.levels |= bit;
        } else {
            self.levels &= !bit;
        }
        if self.level_triggered & bit != 0 {
            self.requests = self.requests & !bit | self.levels & bit;
        } else if rises {
            // Kept when the input falls before it is acknowledged, so that a pulse is an interrupt.
            self.requests |= bit;
        }
    }

    /// How far down in priority the first set bit is; 8 if there is none.
    fn rank(&self, bits: u8) -> u32 {
        // Rotated, bit 0 has the highest priority.
        bits.rotate_right(u32::from(self.first)).trailing_zeros()
    }

    fn at_rank(&self, rank: u32) -> u8 {
        (self.first.wrapping_add(u8::try_from(rank).unwrap_or(0))) & 7
    }

    /// The input whose interrupt is to be delivered. `cascade` is the level of the input at which another chip is.
    pub(super) fn output(&self, cascade: u8) -> Option<u8> {
        let wanted = self.rank((self.requests | cascade) & !self.mask);
        let mut busy = self.in_service;
        if self.special_mask {
            busy &= !self.mask;
        }
        if self.nested {
            // The other chip may interrupt itself.
            busy &= !cascade;
        }
        (wanted < self.rank(busy)).then(|| self.at_rank(wanted))
    }

    /// The CPU takes the interrupt of this input.
    pub(super) fn acknowledge(&mut self, input: u8) -> u8 {
        let bit = 1 << input;
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate {
            self.first = (input + 1) & 7;
        }
        if self.level_triggered & bit == 0 {
            self.requests &= !bit;
        }
        self.vectors | input
    }

    /// A read at the command or the data port. The output is for polling.
    pub(super) fn read(&mut self, data: bool, output: Option<u8>) -> u8 {
        if std::mem::take(&mut self.polls) {
            return output.map_or(0, |input| {
                self.acknowledge(input);
                0x80 | input
            });
        }
        match (data, self.reads_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requests,
        }
    }

    /// A write to the command or the data port.
    pub(super) fn write(&mut self, data: bool, byte: u8) {
        match (data, self.expected) {
            (true, Expected::Mask) => self.mask = byte,
            (true, Expected::Vectors) => {
                self.vectors = byte & 0xf8;
                self.expected = if self.cascaded {
                    Expected::Cascade
                } else {
                    self.after_cascade()
                };
            }
            (true, Expected::Cascade) => self.expected = self.after_cascade(),
            (true, Expected::Mode) => {
                self.auto_eoi = byte & regs::ICW4_AUTO_EOI != 0;
                self.nested = byte & regs::ICW4_NESTED != 0;
                self.expected = Expected::Mask;
            }
            (false, _) if byte & regs::ICW1 != 0 => self.initialise(byte),
            (false, _) if byte & regs::OCW3 != 0 => self.set_reading(byte),
            (false, _) => self.end_of_interrupt(byte),
        }
    }

    fn after_cascade(self) -> Expected {
        if self.wants_mode {
            Expected::Mode
        } else {
            Expected::Mask
        }
    }

    fn initialise(&mut self, byte: u8) {
        *self = Self {
            // A new edge is needed, unless the input is level-triggered.
            requests: self.levels & self.level_triggered,
            levels: self.levels,
            level_triggered: self.level_triggered,
            vectors: self.vectors,
            expected: Expected::Vectors,
            cascaded: byte & regs::ICW1_SINGLE == 0,
            wants_mode: byte & regs::ICW1_ICW4 != 0,
            ..Self::default()
        };
    }

    /// OCW3.
    fn set_reading(&mut self, byte: u8) {
        self.polls = byte & regs::OCW3_POLL != 0;
        if byte & regs::OCW3_READ != 0 {
            self.reads_service = byte & 1 != 0;
        }
        if byte & regs::OCW3_SPECIAL != 0 {
            self.special_mask = byte & 0x20 != 0;
        }
    }

    /// OCW2.
    fn end_of_interrupt(&mut self, byte: u8) {
        let (command, named) = (byte >> 5, byte & 7);
        let input = match command {
            // Of the highest priority in service.
            1 | 5 => match self.rank(self.in_service) {
                8 => return,
                rank => self.at_rank(rank),
            },
            _ => named,
        };
        if matches!(command, 1 | 3 | 5 | 7) {
            self.in_service &= !(1 << input);
        }
        match command {
            0 | 4 => self.rotate = command == 4,
            5..=7 => self.first = (input + 1) & 7,
            _ => {}
        }
    }

    /// Which inputs are level-triggered; `allowed` of them can be.
    pub(super) fn set_triggers(&mut self, level_triggered: u8, allowed: u8) {
        self.level_triggered = level_triggered & allowed;
        self.requests = self.requests & !self.level_triggered | self.levels & self.level_triggered;
    }
}
