//! One transfer of a hypervisor, handed out in the widths a bus knows and put together again.
//!
//! KVM cuts a guest access at page borders and then into runs of at most 8 bytes, so that a run may be 3 or 5 bytes
//! long (an 8-byte store that crosses from one MMIO page into the next). A run of 1, 2, 4 or 8 bytes within a page
//! goes to the bus as it is, whatever its alignment; any other is cut into naturally aligned pieces, as a processor
//! cuts it for an uncached access (SDM vol. 3A section 11.3.1 leaves the cut to the implementation).

use umbra_devices::{IoOp, IoSize};
use umbra_memslots::Gpa;

/// A transfer of 1 to 8 bytes on its way to the bus, piece by piece in ascending order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    gpa: Gpa,
    length: u8,
    done: u8,
    write: bool,
    /// Little-endian: byte 0 is the byte at `gpa`.
    data: u64,
}

/// One bus access of a [`Transfer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// First byte.
    pub gpa: Gpa,
    /// Width.
    pub size: IoSize,
    /// Direction and value.
    pub op: IoOp,
}

impl Transfer {
    /// A read of `length` bytes (clamped to 8) whose answer is put together from the pieces' answers.
    pub fn read(gpa: Gpa, length: u32) -> Self {
        Self {
            gpa,
            length: clamp(length),
            done: 0,
            write: false,
            data: 0,
        }
    }

    /// A write of the low `length` bytes (clamped to 8) of `data`, byte 0 first.
    pub fn write(gpa: Gpa, length: u32, data: u64) -> Self {
        Self {
            gpa,
            length: clamp(length),
            done: 0,
            write: true,
            data,
        }
    }

    /// Whether pieces want a value.
    pub const fn is_read(&self) -> bool {
        !self.write
    }

    /// The piece that waits for its answer; `None` when all were answered.
    pub fn piece(&self) -> Option<Piece> {
        let size = self.next_size()?;
        let op = if self.write {
            IoOp::Write(size.truncate(self.data >> (8 * self.done)))
        } else {
            IoOp::Read
        };
        Some(Piece {
            gpa: self.gpa.wrapping_add(u64::from(self.done)),
            size,
            op,
        })
    }

    /// Takes the answer to the present piece (its value is ignored for a write) and goes on to the next.
    pub fn answer(&mut self, value: u64) {
        let Some(size) = self.next_size() else { return };
        if !self.write {
            self.data |= size.truncate(value) << (8 * self.done);
        }
        // At most 8.
        self.done += size as u8;
    }

    /// The bytes read so far, byte 0 lowest; bytes not answered yet are zero.
    pub const fn value(&self) -> u64 {
        self.data
    }

    fn next_size(&self) -> Option<IoSize> {
        let left = self.length - self.done;
        let first = self.gpa.wrapping_add(u64::from(self.done));
        let whole = self.done == 0 && first.page_offset() + u64::from(left) <= umbra_memslots::PAGE_SIZE;
        IoSize::ALL.into_iter().rev().find(|size| {
            size.bytes() <= u64::from(left) && (whole_width(left, whole) || first.get().is_multiple_of(size.bytes()))
        })
    }
}

/// Whether the whole transfer is one bus access.
const fn whole_width(length: u8, within_page: bool) -> bool {
    within_page && matches!(length, 1 | 2 | 4 | 8)
}

/// KVM never says more than 8; if it did, nothing beyond would have data.
fn clamp(length: u32) -> u8 {
    u8::try_from(length.min(8)).unwrap_or(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(gpa: u64, length: u32) -> Vec<(u64, u64)> {
        let mut transfer = Transfer::read(Gpa::new(gpa), length);
        let mut pieces = Vec::new();
        while let Some(piece) = transfer.piece() {
            pieces.push((piece.gpa.get(), piece.size.bytes()));
            transfer.answer(0);
        }
        pieces
    }

    #[test]
    fn bus_widths_within_a_page_stay_whole_even_unaligned() {
        assert_eq!(cut(0x1001, 4), [(0x1001, 4)]);
        assert_eq!(cut(0x1003, 8), [(0x1003, 8)]);
        assert_eq!(cut(0x1ff8, 8), [(0x1ff8, 8)]);
    }

    #[test]
    fn odd_widths_are_cut_on_natural_alignment() {
        assert_eq!(cut(0x1ffd, 3), [(0x1ffd, 1), (0x1ffe, 2)]);
        assert_eq!(cut(0x2000, 5), [(0x2000, 4), (0x2004, 1)]);
        assert_eq!(cut(0x1fff, 2), [(0x1fff, 1), (0x2000, 1)]);
        assert_eq!(cut(u64::MAX, 2), [(u64::MAX, 1), (0, 1)]);
        assert_eq!(cut(0x1000, 0), []);
    }

    proptest! {
        #[test]
        fn bytes_written_come_out_in_order_and_bytes_read_go_back_in_place(
            gpa: u64, length in 0u32..=9, data: u64,
        ) {
            let gpa = Gpa::new(gpa);
            let count = length.min(8) as usize;
            let mut write = Transfer::write(gpa, length, data);
            let mut seen = Vec::new();
            while let Some(Piece { gpa: at, size, op: IoOp::Write(value) }) = write.piece() {
                prop_assert_eq!(at, gpa.wrapping_add(seen.len() as u64));
                prop_assert!(at.page_offset() + size.bytes() <= 4096);
                seen.extend_from_slice(&value.to_le_bytes()[..usize::try_from(size.bytes()).unwrap()]);
                prop_assert_eq!(value, size.truncate(value));
                write.answer(0xdead_beef);
            }
            prop_assert_eq!(&seen[..], &data.to_le_bytes()[..count]);

            let mut read = Transfer::read(gpa, length);
            while let Some(piece) = read.piece() {
                let offset = piece.gpa.get().wrapping_sub(gpa.get());
                // The answer's bits above the width are noise and must not leak into the neighbours.
                read.answer((data >> (8 * offset)) | if piece.size == IoSize::B8 { 0 } else { u64::MAX << (8 * piece.size.bytes()) });
            }
            prop_assert_eq!(&read.value().to_le_bytes()[..count], &data.to_le_bytes()[..count]);
            prop_assert!(read.value().to_le_bytes()[count..].iter().all(|byte| *byte == 0));
        }
    }
}
