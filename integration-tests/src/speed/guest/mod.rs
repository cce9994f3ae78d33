//! The guest: one multiboot image whose loops every machine runs byte for byte.
//!
//! It is entered in 32-bit mode, runs one loop in real mode, and the others at CPL 3 of long mode. Interrupts stay off.
//! Read in this order: [`layout`] (where everything lies), `report` (what it says), `real` and `kernel` (the way to CPL
//! 3), `program` and the loops that it runs: `plain`, `strings`, `sse`, `system`.

mod kernel;
pub mod layout;
mod plain;
mod program;
mod real;
mod report;
mod sse;
mod strings;
mod system;

use super::rows::Row;
use crate::multiboot::{Class, container};
use iced_x86::IcedError;
use layout::Parts;

/// The first it says.
pub const GREETING: &str = "umbra-speed\n";
/// The last it says, as a line.
pub const FAREWELL: &str = ".";

/// What the guest is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Work {
    /// Which loops, each once; they run in the order of [`Row::ALL`].
    pub rows: Vec<Row>,
    /// How often each loop is run: 1 to 65535.
    pub passes: u32,
    /// So many times fewer rounds of each loop than for a measurement.
    pub divide: u32,
}

impl Work {
    /// All loops.
    #[must_use]
    pub fn all(passes: u32, divide: u32) -> Self {
        Self {
            rows: Row::ALL.to_vec(),
            passes,
            divide,
        }
    }

    /// Rounds of this row's loop.
    #[must_use]
    pub const fn rounds(&self, row: Row) -> u32 {
        row.rounds(self.divide)
    }

    /// Instructions of this row's loop.
    #[must_use]
    pub fn instructions(&self, row: Row) -> u64 {
        u64::from(self.rounds(row)) * row.instructions()
    }
}

/// The guest can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its code can't be assembled.
    #[error(transparent)]
    Assemble(#[from] IcedError),
    /// A number of passes that 16 bits can't count, or none.
    #[error("{0} passes; 1 to 65535 can be counted")]
    Passes(u32),
    /// A part outgrows its place.
    #[error("{part} of {bytes} bytes where there is room for {room}")]
    TooLarge {
        /// Which part.
        part: &'static str,
        /// Its size.
        bytes: usize,
        /// The room, in bytes.
        room: usize,
    },
}

/// The guest as a multiboot1 file (ELF32): loaded as a whole to [`crate::multiboot::BASE`], entered at
/// [`layout::ENTRY`].
///
/// # Errors
/// The number of passes is out of range.
pub fn image(work: &Work) -> Result<Vec<u8>, ImageError> {
    if work.passes == 0 || u16::try_from(work.passes).is_err() {
        return Err(ImageError::Passes(work.passes));
    }
    let (protected, back) = real::protected()?;
    let (kernel, handlers) = kernel::kernel()?;
    let mut parts = Parts::default();
    parts.put("32-bit code", layout::ENTRY, layout::GDT, &protected)?;
    parts.put_segments()?;
    parts.put(
        "16-bit code",
        layout::REAL_IMAGE,
        layout::PML4,
        &real::real(work, back)?,
    )?;
    parts.put_page_tables()?;
    parts.put_gates(handlers)?;
    parts.put("kernel", layout::KERNEL, layout::PROGRAM, &kernel)?;
    parts.put("program", layout::PROGRAM, layout::END, &program::program(work)?)?;
    Ok(container(Class::Elf32, layout::ENTRY, &parts.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::multiboot::BASE;

    #[test]
    fn image_fits_and_its_size_depends_on_no_count() {
        let small = image(&Work::all(2, 1000)).expect("assembles");
        let large = image(&Work::all(9, 1)).expect("assembles");
        assert_eq!(small.len(), large.len());
        assert!(small.len() > (layout::PROGRAM - BASE) as usize);
        assert!(small.len() <= (layout::END - BASE) as usize);
    }

    #[test]
    fn image_of_one_row_is_smaller_and_of_no_pass_is_refused() {
        let all = image(&Work::all(1, 1)).expect("assembles");
        let mut work = Work::all(1, 1);
        work.rows = vec![Row::Memory];
        assert!(image(&work).expect("assembles").len() < all.len());
        work.passes = 0;
        assert!(matches!(image(&work), Err(ImageError::Passes(0))));
    }

    #[test]
    fn image_gates_lead_into_the_kernel() {
        let image = image(&Work::all(1, 1)).expect("assembles");
        let gates = &image[(layout::KERNEL - 0x1000 - BASE) as usize..];
        for vector in (0..32).chain([layout::CALL_VECTOR, layout::DONE_VECTOR].map(usize::from)) {
            let gate = &gates[16 * vector..][..16];
            let at = u32::from(gate[0]) | u32::from(gate[1]) << 8 | u32::from(gate[6]) << 16;
            assert!((layout::KERNEL..layout::PROGRAM).contains(&at), "{vector}: {at:#x}");
        }
    }

    #[test]
    fn part_before_another_or_too_long_is_refused() {
        let mut parts = Parts::default();
        parts.put("first", BASE + 0x100, BASE + 0x104, &[1; 4]).expect("fits");
        assert!(matches!(
            parts.put("second", BASE + 0x102, BASE + 0x200, &[1]),
            Err(ImageError::TooLarge { part: "second", .. })
        ));
        assert!(matches!(
            parts.put("third", BASE + 0x104, BASE + 0x106, &[1; 3]),
            Err(ImageError::TooLarge { bytes: 3, room: 2, .. })
        ));
    }
}
