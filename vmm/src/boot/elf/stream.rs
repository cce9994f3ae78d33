//! An ELF kernel that arrives as a stream: each piece goes to its place in guest memory as it comes, nothing but the
//! headers is kept.

use super::super::error::{ElfProblem, KernelProblem, PlaceProblem};
use super::super::place::Places;
use super::header::{Elf, FileRange, HEADER_BYTES, Header};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// The most bytes kept until the program header table is complete; linkers put it right behind the header.
const MAX_HEAD: usize = 64 << 10;

/// Takes the bytes of an ELF file in order.
pub(in crate::boot) struct ElfStream<'m, 'p, 'l, M: ?Sized> {
    memory: &'m M,
    places: &'p mut Places<'l>,
    /// Offset in the file of the next byte to come.
    position: u64,
    state: State,
}

enum State {
    /// The program header table is not complete yet: the bytes so far.
    Head(Vec<u8>),
    /// Segments are being loaded.
    Body(Elf),
}

impl<'m, 'p, 'l, M: GuestMemory + ?Sized> ElfStream<'m, 'p, 'l, M> {
    /// A stream into `memory`, whose claims go to `places`.
    pub fn new(memory: &'m M, places: &'p mut Places<'l>) -> Self {
        Self {
            memory,
            places,
            position: 0,
            state: State::Head(Vec::new()),
        }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), KernelProblem> {
        match &mut self.state {
            State::Body(elf) => {
                place(self.memory, elf, self.position, bytes)?;
                self.position = self.position.saturating_add(len(bytes));
            }
            State::Head(head) => {
                head.extend_from_slice(bytes);
                self.position = len(head);
                if let Some(elf) = complete_head(head)? {
                    elf.claim(self.places)?;
                    place(self.memory, &elf, 0, head)?;
                    self.state = State::Body(elf);
                }
            }
        }
        Ok(())
    }

    /// Ends the stream: every segment must have come wholly.
    pub fn finish(self) -> Result<Elf, KernelProblem> {
        let State::Body(elf) = self.state else {
            return Err(ElfProblem::TableMissing { bytes: self.position }.into());
        };
        for (index, segment) in elf.segments.iter().enumerate() {
            if segment.file.offset + segment.file.bytes > self.position {
                return Err(ElfProblem::Segment {
                    index,
                    offset: segment.file.offset,
                    file_bytes: segment.file.bytes,
                    address: segment.address.get(),
                    memory_bytes: segment.memory_bytes,
                }
                .into());
            }
        }
        Ok(elf)
    }
}

/// The plan, once the program header table has come.
fn complete_head(head: &[u8]) -> Result<Option<Elf>, ElfProblem> {
    if head.len() < HEADER_BYTES {
        return Ok(None);
    }
    let header = Header::parse(head)?;
    let start = usize::try_from(header.table_offset()).unwrap_or(usize::MAX);
    match start.checked_add(header.table_bytes()) {
        Some(end) if end <= MAX_HEAD => match head.get(start..end) {
            Some(table) => Elf::parse(&header, table).map(Some),
            None => Ok(None),
        },
        _ => Err(ElfProblem::TableFar {
            offset: header.table_offset(),
        }),
    }
}

/// Copies what of `bytes`, which are at `position` in the file, belongs to a segment.
fn place<M: GuestMemory + ?Sized>(memory: &M, elf: &Elf, position: u64, bytes: &[u8]) -> Result<(), PlaceProblem> {
    for segment in &elf.segments {
        if let Some((skipped, part)) = overlap(segment.file, position, bytes) {
            let to = segment.address.wrapping_add(skipped);
            memory
                .write_slice(part, GuestAddress::from(to))
                .map_err(|_| PlaceProblem::NotMemory {
                    start: to,
                    bytes: len(part),
                })?;
        }
    }
    Ok(())
}

/// The part of `bytes`, which are at `position`, that lies in `range`, and how far into the range it starts.
fn overlap(range: FileRange, position: u64, bytes: &[u8]) -> Option<(u64, &[u8])> {
    let start = range.offset.max(position);
    let end = (range.offset + range.bytes).min(position.saturating_add(len(bytes)));
    if start >= end {
        return None;
    }
    let from = usize::try_from(start - position).ok()?;
    let to = usize::try_from(end - position).ok()?;
    Some((start - range.offset, bytes.get(from..to)?))
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
