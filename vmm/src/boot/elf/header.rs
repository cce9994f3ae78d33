//! The ELF header and program header table of an x86 executable, 32 and 64 bits (System V ABI, chapters 4 and 5).

use super::super::error::{ElfProblem, PlaceProblem};
use super::super::place::Places;
use umbra_memslots::Gpa;

/// The magic number at the start of every ELF file.
pub(in crate::boot) const MAGIC: [u8; 4] = *b"\x7fELF";
/// The most program headers taken; kernels have five or so.
pub(in crate::boot) const MAX_SEGMENTS: u16 = 64;
/// Enough of the file for [`Header::parse`].
pub(in crate::boot) const HEADER_BYTES: usize = 64;

const CLASS: usize = 4;
const BYTE_ORDER: usize = 5;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_I386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;

/// Width of the file's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::boot) enum Class {
    /// ELFCLASS32.
    Bits32,
    /// ELFCLASS64.
    Bits64,
}

impl Class {
    /// Offset of a header field, given both layouts.
    fn pick(self, bits32: usize, bits64: usize) -> usize {
        match self {
            Self::Bits32 => bits32,
            Self::Bits64 => bits64,
        }
    }

    /// An address or size at one of two offsets, zero-extended.
    fn word(self, bytes: &[u8], bits32: usize, bits64: usize) -> u64 {
        match self {
            Self::Bits32 => u64::from(u32_at(bytes, bits32)),
            Self::Bits64 => u64_at(bytes, bits64),
        }
    }
}

/// What the ELF header says about the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::boot) struct Header {
    class: Class,
    entry: u64,
    table_offset: u64,
    count: u16,
}

impl Header {
    /// Reads the header from the first [`HEADER_BYTES`] bytes of a file; missing ones count as zero.
    pub fn parse(bytes: &[u8]) -> Result<Self, ElfProblem> {
        if !bytes.starts_with(&MAGIC) {
            return Err(ElfProblem::Magic);
        }
        let class = match bytes.get(CLASS) {
            Some(1) => Class::Bits32,
            Some(2) => Class::Bits64,
            other => return Err(ElfProblem::Class(other.copied().unwrap_or(0))),
        };
        let order = bytes.get(BYTE_ORDER).copied().unwrap_or(0);
        if order != LITTLE_ENDIAN {
            return Err(ElfProblem::ByteOrder(order));
        }
        let kind = u16_at(bytes, 16);
        if !matches!(kind, TYPE_EXECUTABLE | TYPE_SHARED) {
            return Err(ElfProblem::Type(kind));
        }
        let machine = u16_at(bytes, 18);
        if !matches!(machine, MACHINE_I386 | MACHINE_X86_64) {
            return Err(ElfProblem::Machine(machine));
        }
        let size = u16_at(bytes, class.pick(42, 54));
        let count = u16_at(bytes, class.pick(44, 56));
        let expected = u16::try_from(class.pick(32, 56)).unwrap_or(u16::MAX);
        if size != expected || !(1..=MAX_SEGMENTS).contains(&count) {
            return Err(ElfProblem::ProgramHeaders { count, size, expected });
        }
        Ok(Self {
            class,
            entry: class.word(bytes, 24, 24),
            table_offset: class.word(bytes, 28, 32),
            count,
        })
    }

    /// Where the program header table is in the file.
    pub fn table_offset(&self) -> u64 {
        self.table_offset
    }

    /// Its size in bytes, at most 3584.
    pub fn table_bytes(&self) -> usize {
        usize::from(self.count) * self.class.pick(32, 56)
    }
}

/// A run of bytes in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::boot) struct FileRange {
    /// Offset of the first.
    pub offset: u64,
    /// How many; the end is at most 2^64 - 1.
    pub bytes: u64,
}

/// A loadable segment: what of the file goes where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::boot) struct Segment {
    /// Its bytes in the file.
    pub file: FileRange,
    /// Virtual address of its first byte.
    pub virtual_address: u64,
    /// Where it is loaded.
    pub address: Gpa,
    /// Its size in memory: at least that in the file; what is more is zero.
    pub memory_bytes: u64,
}

/// An ELF file's plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::boot) struct Elf {
    /// 32 or 64 bits.
    pub class: Class,
    /// `e_entry` as it is.
    pub entry: u64,
    /// What is loaded; not empty.
    pub segments: Vec<Segment>,
    /// Where notes are, with their alignment.
    pub notes: Vec<(FileRange, u64)>,
}

impl Elf {
    /// Reads the program header table.
    pub fn parse(header: &Header, table: &[u8]) -> Result<Self, ElfProblem> {
        let class = header.class;
        let mut elf = Self {
            class,
            entry: header.entry,
            segments: Vec::new(),
            notes: Vec::new(),
        };
        for (index, entry) in table.chunks_exact(class.pick(32, 56)).enumerate() {
            let file = FileRange {
                offset: class.word(entry, 4, 8),
                bytes: class.word(entry, 16, 32),
            };
            let address = class.word(entry, 12, 24);
            let memory_bytes = class.word(entry, 20, 40);
            let kind = u32_at(entry, 0);
            let sound = file.offset.checked_add(file.bytes).is_some()
                && address.checked_add(memory_bytes).is_some()
                && (kind != SEGMENT_LOAD || file.bytes <= memory_bytes);
            match kind {
                SEGMENT_LOAD | SEGMENT_NOTE if !sound => {
                    return Err(ElfProblem::Segment {
                        index,
                        offset: file.offset,
                        file_bytes: file.bytes,
                        address,
                        memory_bytes,
                    });
                }
                SEGMENT_LOAD if memory_bytes > 0 => elf.segments.push(Segment {
                    file,
                    virtual_address: class.word(entry, 8, 16),
                    address: Gpa::new(address),
                    memory_bytes,
                }),
                SEGMENT_NOTE => elf.notes.push((file, class.word(entry, 28, 48))),
                _ => {}
            }
        }
        if elf.segments.is_empty() {
            return Err(ElfProblem::NothingToLoad);
        }
        Ok(elf)
    }

    /// The physical address of the entry point: kernels give either that or, if they run in the higher half from
    /// their first instruction on, a virtual one.
    pub fn physical_entry(&self) -> Result<Gpa, ElfProblem> {
        let inside = |start: u64, segment: &&Segment| self.entry.wrapping_sub(start) < segment.memory_bytes;
        if self
            .segments
            .iter()
            .any(|segment| inside(segment.address.get(), &segment))
        {
            return Ok(Gpa::new(self.entry));
        }
        self.segments
            .iter()
            .find(|segment| inside(segment.virtual_address, segment))
            .map(|segment| {
                segment
                    .address
                    .wrapping_add(self.entry.wrapping_sub(segment.virtual_address))
            })
            .ok_or(ElfProblem::Entry { entry: self.entry })
    }

    /// Claims every segment's memory.
    pub fn claim(&self, places: &mut Places<'_>) -> Result<(), PlaceProblem> {
        for (index, segment) in self.segments.iter().enumerate() {
            places.claim(format!("kernel segment {index}"), segment.address, segment.memory_bytes)?;
        }
        Ok(())
    }
}

/// Little-endian fields; bytes that are not there count as zero.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

pub(in crate::boot) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(field(bytes, offset))
}

pub(in crate::boot) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(bytes, offset))
}

pub(in crate::boot) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(bytes, offset))
}
