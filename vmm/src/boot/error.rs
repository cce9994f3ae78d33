//! All that can be wrong with what [`load`](super::load) is given: one line each, with the file, the value and what was
//! expected.

use super::decompress::Compression;
use crate::acpi::AcpiError;
use std::fmt::{self, Write};
use std::io;
use thiserror::Error;
use umbra_memslots::Gpa;

/// Why a guest cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel image.
    #[error("kernel image {file}: {problem}")]
    Kernel {
        /// Its name.
        file: String,
        /// What is wrong with it.
        problem: KernelProblem,
    },
    /// The initrd.
    #[error("initrd {file}: {problem}")]
    Initrd {
        /// Its name.
        file: String,
        /// What is wrong with it.
        problem: InitrdProblem,
    },
    /// The kernel command line.
    #[error("kernel command line: {0}")]
    CommandLine(#[from] CommandLineProblem),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The guest memory given is smaller than its layout says, or refuses writes.
    #[error("guest memory at {gpa} cannot be written for the {what}: {source}")]
    Memory {
        /// Where.
        gpa: Gpa,
        /// What was to be there.
        what: &'static str,
        /// What the memory said.
        source: vm_memory::GuestMemoryError,
    },
}

/// What is wrong with a file as a file.
#[derive(Debug, Error)]
pub enum FileProblem {
    /// It cannot be opened.
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    /// It is a directory, a device or a pipe.
    #[error("not a regular file")]
    NotRegular,
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// Reading failed.
    #[error("cannot be read at offset {offset:#x}: {source}")]
    Read {
        /// Where in the file.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// It ends too early.
    #[error(
        "truncated: {what} ({wanted} bytes at offset {offset:#x}) should end within the file, which has {file} bytes"
    )]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// From where.
        offset: u64,
        /// How much.
        wanted: u64,
        /// Size of the file in bytes.
        file: u64,
    },
}

/// What is wrong with a kernel image.
#[derive(Debug, Error)]
pub enum KernelProblem {
    /// As a file.
    #[error(transparent)]
    File(#[from] FileProblem),
    /// It is of no kind known here.
    #[error("not a bzImage, ELF or multiboot1 image (starts with {start})")]
    Unknown {
        /// Its first bytes.
        start: FirstBytes,
    },
    /// As an ELF file.
    #[error("not a usable ELF kernel: {0}")]
    Elf(#[from] ElfProblem),
    /// It cannot lie where it wants to.
    #[error(transparent)]
    Place(#[from] PlaceProblem),
    /// As a bzImage.
    #[error("not a usable bzImage: {0}")]
    BzImage(#[from] BzImageProblem),
    /// As a multiboot1 image.
    #[error("not a usable multiboot1 image: {0}")]
    Multiboot(#[from] MultibootProblem),
    /// The payload of a bzImage.
    #[error("{compression} payload: {problem}")]
    Payload {
        /// How it is compressed.
        compression: Compression,
        /// What is wrong with it.
        problem: PayloadProblem,
    },
}

/// What is wrong with an ELF kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ElfProblem {
    /// The magic number is not there.
    #[error("the ELF magic number is missing")]
    Magic,
    /// Neither 32 nor 64 bits.
    #[error("ELF class {0} is neither 1 (32-bit) nor 2 (64-bit)")]
    Class(u8),
    /// Not little-endian.
    #[error("ELF byte order {0} is not 1 (little-endian)")]
    ByteOrder(u8),
    /// Not an x86 file.
    #[error("ELF machine {0} is neither 62 (x86-64) nor 3 (i386)")]
    Machine(u16),
    /// Not an executable.
    #[error("ELF type {0} is not 2 (executable) or 3 (position-independent executable)")]
    Type(u16),
    /// The program header table.
    #[error("{count} program headers of {size} bytes: expected 1 to {max} of {expected} bytes", max = super::elf::MAX_SEGMENTS)]
    ProgramHeaders {
        /// How many.
        count: u16,
        /// Size of each.
        size: u16,
        /// The size for this class.
        expected: u16,
    },
    /// Nothing to load.
    #[error("no segment is loadable")]
    NothingToLoad,
    /// A segment's numbers contradict each other.
    #[error(
        "segment {index} has {file_bytes:#x} bytes in the file at {offset:#x} for {memory_bytes:#x} bytes at {address:#x}"
    )]
    Segment {
        /// Index in the program header table.
        index: usize,
        /// `p_offset`.
        offset: u64,
        /// `p_filesz`.
        file_bytes: u64,
        /// `p_paddr`.
        address: u64,
        /// `p_memsz`.
        memory_bytes: u64,
    },
    /// The entry point is not in a loaded segment.
    #[error("the entry point {entry:#x} is in none of the loaded segments")]
    Entry {
        /// The address.
        entry: u64,
    },
    /// A stream ended before the program header table was complete.
    #[error("the file ends after {bytes} bytes, before its program header table")]
    TableMissing {
        /// Bytes there were.
        bytes: u64,
    },
    /// A stream cannot go back to a table that lies far inside.
    #[error("the program header table at {offset:#x} is not near the start of the file")]
    TableFar {
        /// Where it is.
        offset: u64,
    },
    /// A 32-bit file with no protocol that could start it.
    #[error("a 32-bit ELF file needs a PVH entry note or a multiboot1 header; it has neither")]
    NoProtocol,
}

/// Something does not fit where it should lie.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PlaceProblem {
    /// Not, or not wholly, in RAM below 4 GiB.
    #[error("{what} at {} does not lie in guest RAM, which ends at {ram_end} (more --memory?)", range(*start, *bytes))]
    OutsideRam {
        /// What.
        what: String,
        /// Its first address.
        start: Gpa,
        /// Its size.
        bytes: u64,
        /// End of the RAM below 4 GiB.
        ram_end: Gpa,
    },
    /// The guest memory given is smaller than its layout says.
    #[error("there is no guest memory at {}, though the layout says so", range(*start, *bytes))]
    NotMemory {
        /// First address.
        start: Gpa,
        /// Size.
        bytes: u64,
    },
    /// Two things want the same place.
    #[error("{what} at {} overlaps {other} at {}", range(*start, *bytes), range(*other_start, *other_bytes))]
    Overlap {
        /// The newcomer.
        what: String,
        /// Its first address.
        start: Gpa,
        /// Its size.
        bytes: u64,
        /// Who is there already.
        other: String,
        /// Its first address.
        other_start: Gpa,
        /// Its size.
        other_bytes: u64,
    },
}

/// What is wrong with a bzImage.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BzImageProblem {
    /// Shorter than its header says.
    #[error("truncated: the file has {bytes} bytes, its setup header wants {expected}")]
    Truncated {
        /// Size of the file.
        bytes: u64,
        /// The size that the header says.
        expected: u64,
    },
    /// Too old.
    #[error(
        "boot protocol {}.{:02}, but {}.{:02} is needed {what}", found >> 8, found & 0xff, needed >> 8, needed & 0xff
    )]
    Version {
        /// The image's.
        found: u16,
        /// The least.
        needed: u16,
        /// What for.
        what: &'static str,
    },
    /// A 32-bit kernel.
    #[error("it has no 64-bit entry point (a 32-bit kernel?)")]
    No64BitEntry,
    /// The payload is not within the code.
    #[error("payload of {bytes} bytes at offset {offset:#x} is not within the {code_bytes} bytes of code")]
    Payload {
        /// Its offset in the protected-mode code.
        offset: u64,
        /// Its size.
        bytes: u64,
        /// Size of the code.
        code_bytes: u64,
    },
    /// An unknown compression.
    #[error(
        "the payload's compression is not known (starts with {start}; expected gzip, xz, lzma, bzip2, lz4 or zstd); the \
         guest may know it: --boot-compressed"
    )]
    Compression {
        /// First bytes of the payload.
        start: FirstBytes,
    },
}

/// What is wrong with a multiboot1 image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MultibootProblem {
    /// It wants what no loader of version 1 gives.
    #[error("its header flags {flags:#x} require {unknown:#x}, which multiboot1 does not define")]
    Requirements {
        /// All flags.
        flags: u32,
        /// Those not known.
        unknown: u32,
    },
    /// The address fields are announced but lie outside the first 8 KiB.
    #[error("the header at offset {offset:#x} ends before its address fields")]
    HeaderCut {
        /// Offset of the header.
        offset: usize,
    },
    /// The address fields contradict each other.
    #[error(
        "the addresses in the header at offset {offset:#x} contradict each other: header {header:#x}, load \
         {load:#x}..{load_end:#x}, bss to {bss_end:#x}, entry {entry:#x}"
    )]
    Addresses {
        /// Offset of the header.
        offset: usize,
        /// `header_addr`.
        header: u32,
        /// `load_addr`.
        load: u32,
        /// `load_end_addr`.
        load_end: u32,
        /// `bss_end_addr`.
        bss_end: u32,
        /// `entry_addr`.
        entry: u32,
    },
}

/// What is wrong with a compressed payload.
#[derive(Debug, Error)]
pub enum PayloadProblem {
    /// The decoder refused it.
    #[error("cannot be decompressed (after {done} of {expected} bytes): {source}")]
    Decode {
        /// Bytes decompressed so far.
        done: u64,
        /// Bytes the image says there are.
        expected: u64,
        /// What the decoder said.
        source: io::Error,
    },
    /// It ended early.
    #[error("ends after {done} bytes, but the image says that it has {expected}")]
    Short {
        /// Bytes decompressed.
        done: u64,
        /// Bytes the image says there are.
        expected: u64,
    },
    /// It goes on.
    #[error("has more than the {expected} bytes that the image says")]
    Long {
        /// Bytes the image says there are.
        expected: u64,
    },
    /// The image announces more than can be loaded.
    #[error("says that it has {expected} bytes; at most {max} can be loaded (more --memory?)")]
    TooLarge {
        /// Bytes the image says there are.
        expected: u64,
        /// The limit.
        max: u64,
    },
}

/// What is wrong with an initrd.
#[derive(Debug, Error)]
pub enum InitrdProblem {
    /// As a file.
    #[error(transparent)]
    File(#[from] FileProblem),
    /// There is no room for it.
    #[error(
        "its {bytes} bytes do not fit: the kernel takes an initrd below {limit}, where the largest free range of RAM has \
         {free} bytes (more --memory?)"
    )]
    NoRoom {
        /// Its size.
        bytes: u64,
        /// The kernel's limit.
        limit: Gpa,
        /// Largest free range in bytes.
        free: u64,
    },
}

/// What is wrong with a command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CommandLineProblem {
    /// Longer than the kernel takes.
    #[error("{bytes} bytes are too long: this kernel takes at most {max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit, without the final zero byte.
        max: usize,
    },
    /// A zero byte would end it.
    #[error("the zero byte at offset {offset} would end it there")]
    ZeroByte {
        /// Where.
        offset: usize,
    },
}

/// Up to eight bytes, printed as `7f 45 4c 46`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FirstBytes(Vec<u8>);

impl FirstBytes {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(bytes.iter().take(8).copied().collect())
    }
}

impl fmt::Display for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_char(' ')?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// `start..end` in hexadecimal; the end may lie past 2^64.
fn range(start: Gpa, bytes: u64) -> String {
    format!("{:#x}..{:#x}", start, u128::from(start.get()) + u128::from(bytes))
}
