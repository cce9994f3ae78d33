//! How an instruction waits for a device without being half done: it is begun anew, and the accesses that were answered
//! already are answered from memory.

use crate::emulate::{Request, Stop};
use crate::split::Transfer;
use umbra_memslots::Gpa;

/// The answers that the present instruction has got so far, in order.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    answers: Vec<(Request, Option<u64>)>,
    next: usize,
}

impl Replay {
    /// A new instruction: nothing was answered.
    pub fn clear(&mut self) {
        self.answers.clear();
        self.next = 0;
    }

    /// The same instruction again, from its beginning.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// Whether the present instruction was answered nothing.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Takes the answer to the request at which the instruction stopped. `None` says that it faults.
    pub fn answer(&mut self, request: Request, value: Option<u64>) {
        self.answers.push((request, value));
    }

    /// Where the next access goes, if it is one to a device's memory that was answered before.
    #[inline]
    pub fn next_device(&self) -> Option<Gpa> {
        match self.answers.get(self.next)? {
            (Request::Mmio { gpa, .. }, _) => Some(*gpa),
            _ => None,
        }
    }

    /// The answer to `request` if it was given before. If the instruction now asks for something else (another CPU
    /// changed its operands meanwhile), what it asked for before is forgotten.
    pub fn take(&mut self, request: Request) -> Option<Option<u64>> {
        match self.answers.get(self.next) {
            Some((known, value)) if *known == request => {
                self.next += 1;
                Some(*value)
            }
            _ => {
                self.answers.truncate(self.next);
                None
            }
        }
    }

    /// Reads from a device, in the pieces that a bus knows.
    pub fn read_device(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Stop> {
        for (index, chunk) in bytes.chunks_mut(8).enumerate() {
            let value = self.access_device(Transfer::read(gpa.wrapping_add(8 * index as u64), chunk.len() as u32))?;
            chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }

    /// Writes to a device, likewise.
    pub fn write_device(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Stop> {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut value = [0; 8];
            value[..chunk.len()].copy_from_slice(chunk);
            let gpa = gpa.wrapping_add(8 * index as u64);
            self.access_device(Transfer::write(gpa, chunk.len() as u32, u64::from_le_bytes(value)))?;
        }
        Ok(())
    }

    fn access_device(&mut self, mut transfer: Transfer) -> Result<u64, Stop> {
        while let Some(piece) = transfer.piece() {
            let request = Request::Mmio {
                gpa: piece.gpa,
                size: piece.size,
                op: piece.op,
            };
            match self.take(request) {
                Some(value) => transfer.answer(value.unwrap_or(0)),
                None => return Err(Stop::Pending(request)),
            }
        }
        Ok(transfer.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_in_order_and_a_change_of_mind_drops_the_rest() {
        let read = |index| Request::ReadMsr { index };
        let mut replay = Replay::default();
        assert_eq!(replay.take(read(1)), None);
        replay.answer(read(1), Some(7));
        replay.rewind();
        assert_eq!(replay.take(read(1)), Some(Some(7)));
        assert_eq!(replay.take(read(2)), None);
        replay.answer(read(2), None);
        replay.rewind();
        assert_eq!(replay.take(read(3)), None);
        replay.rewind();
        assert_eq!(replay.take(read(1)), None, "what came after the change is gone");
    }
}
