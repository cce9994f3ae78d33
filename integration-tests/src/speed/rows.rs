//! The rows of the speed table: which loops there are, how long each is, and what else than instructions it counts.
//!
//! The numbers of instructions are by construction: the loops in [`guest`](super::guest) execute as many whichever way
//! their jumps go. A test has QEMU count them.

/// One loop of the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Row {
    /// Eight instructions of 16-bit arithmetic in real mode.
    Real,
    /// 64-bit arithmetic, logic and shifts in registers.
    Integer,
    /// Loads, stores, read-modify-writes and the stack, in 256 KiB.
    Memory,
    /// Jumps that depend on random data, near and indirect calls.
    Branch,
    /// `rep stosq` and `rep movsq` of a page each.
    Pages,
    /// Single string instructions, and a `rep movsb` of 19 bytes.
    Strings,
    /// Packed integers up to SSE4.1.
    SseInteger,
    /// Scalar doubles and packed floats.
    SseFloat,
    /// Reads of an I/O APIC register.
    Mmio,
    /// `syscall`, `swapgs`, a stack switch, `sysretq`.
    Syscall,
    /// `int`, through a gate to CPL 0 and its stack, and `iretq`.
    Interrupt,
}

/// A second measure of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// Bytes moved or filled in one round of the loop.
    Bytes(u32),
    /// Events in one round, with the name of one.
    Events(u32, &'static str),
}

impl Row {
    /// All, in the order in which the guest runs them.
    pub const ALL: [Self; 11] = [
        Self::Real,
        Self::Integer,
        Self::Memory,
        Self::Branch,
        Self::Pages,
        Self::Strings,
        Self::SseInteger,
        Self::SseFloat,
        Self::Mmio,
        Self::Syscall,
        Self::Interrupt,
    ];

    /// What the guest calls it on the serial line.
    #[must_use]
    pub const fn letter(self) -> u8 {
        match self {
            Self::Real => b'R',
            Self::Integer => b'I',
            Self::Memory => b'M',
            Self::Branch => b'B',
            Self::Pages => b'P',
            Self::Strings => b'S',
            Self::SseInteger => b'X',
            Self::SseFloat => b'F',
            Self::Mmio => b'D',
            Self::Syscall => b'C',
            Self::Interrupt => b'N',
        }
    }

    /// The row with this letter.
    #[must_use]
    pub fn of_letter(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.letter() == letter)
    }

    /// What it is called on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Integer => "integer",
            Self::Memory => "memory",
            Self::Branch => "branch",
            Self::Pages => "pages",
            Self::Strings => "strings",
            Self::SseInteger => "sse-integer",
            Self::SseFloat => "sse-float",
            Self::Mmio => "mmio",
            Self::Syscall => "syscall",
            Self::Interrupt => "int",
        }
    }

    /// The row with this name.
    ///
    /// # Errors
    /// There is none: says which there are.
    pub fn of_name(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|row| row.name() == name);
        found.ok_or_else(|| format!("no such row; there are {}", Self::ALL.map(Self::name).join(", ")))
    }

    /// Elements that the string instructions with a `rep` do in one round.
    #[must_use]
    pub const fn elements(self) -> u64 {
        match self {
            Self::Pages => 2 * 512,
            Self::Strings => 19,
            _ => 0,
        }
    }

    /// What it is called in the table.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Real => "real mode: 8 instructions of 16-bit arithmetic",
            Self::Integer => "integer: `add lea xor shr imul rol adc cmov` …",
            Self::Memory => "memory: loads, stores, read-modify-writes, stack, in 256 KiB",
            Self::Branch => "branch: every second one a jump, call or return, half of the conditions random",
            Self::Pages => "string: `rep stosq` and `rep movsq` of a page",
            Self::Strings => "string: single ones, and `rep movsb` of 19 bytes",
            Self::SseInteger => "SSE: packed integers",
            Self::SseFloat => "SSE: scalar doubles and packed floats",
            Self::Mmio => "MMIO: reads of an I/O APIC register",
            Self::Syscall => "system calls: `syscall swapgs … sysretq`",
            Self::Interrupt => "system calls: `int 0x80 … iretq`",
        }
    }

    /// Instructions that one round of the loop executes, a `rep` for one.
    #[must_use]
    pub const fn instructions(self) -> u64 {
        match self {
            Self::Real => 8 * REAL_INNER as u64 + 3,
            Self::Integer => 26,
            Self::Memory => 18,
            Self::Branch => 20,
            Self::Pages => 10,
            Self::Strings => 16,
            Self::SseInteger => 19,
            Self::SseFloat => 15,
            Self::Mmio => 11,
            Self::Syscall => 11,
            Self::Interrupt => 6,
        }
    }

    /// What else one round counts.
    #[must_use]
    pub const fn measure(self) -> Option<Measure> {
        match self {
            Self::Pages => Some(Measure::Bytes(2 * 4096)),
            Self::Mmio => Some(Measure::Events(4, "read of a device register")),
            Self::Syscall => Some(Measure::Events(1, "`syscall` and back")),
            Self::Interrupt => Some(Measure::Events(1, "`int` and back")),
            _ => None,
        }
    }

    /// Rounds of the loop: at 1 as many as keep Debian's Bochs busy for a second or so, otherwise so many times fewer.
    /// At least one.
    #[must_use]
    pub const fn rounds(self, divide: u32) -> u32 {
        let whole: u32 = match self {
            Self::Real => 800,
            Self::Integer => 2_500_000,
            Self::Memory => 3_000_000,
            Self::Branch => 3_000_000,
            Self::Pages => 40_000,
            Self::Strings => 1_000_000,
            Self::SseInteger => 3_000_000,
            Self::SseFloat => 2_500_000,
            Self::Mmio => 2_000_000,
            Self::Syscall => 2_500_000,
            Self::Interrupt => 1_500_000,
        };
        let divided = whole / if divide == 0 { 1 } else { divide };
        if divided == 0 { 1 } else { divided }
    }
}

/// Rounds of the inner loop in real mode, whose counter has 16 bits.
pub const REAL_INNER: u16 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_names_are_all_different() {
        for row in Row::ALL {
            assert_eq!(Row::of_letter(row.letter()), Some(row));
            assert_eq!(Row::of_name(row.name()), Ok(row));
        }
        assert_eq!(Row::of_letter(b'!'), None);
        assert!(Row::of_name("fast").is_err_and(|error| error.contains("memory")));
    }

    #[test]
    fn rounds_divided_by_much_are_still_one() {
        assert_eq!(Row::Real.rounds(u32::MAX), 1);
        assert_eq!(Row::Integer.rounds(0), Row::Integer.rounds(1));
    }
}
