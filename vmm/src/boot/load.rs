//! The way from an image to a guest that can start: [`load`].

use super::bzimage::{self, Setup};
use super::elf::{self, Class};
use super::entry::{self, Mode};
use super::error::{
    BootError, BzImageProblem, CommandLineProblem, ElfProblem, FirstBytes, InitrdProblem, KernelProblem,
};
use super::image::{Image, ImageFile};
use super::place::Places;
use super::probe::{self, Kind, PROBE_BYTES};
use super::state::{BootState, ImageKind, Protocol};
use super::{linux, multiboot, pvh, reset_vector};
use crate::acpi::{self, Platform};
use crate::layout::{ACPI_START, BootArea, HIGH_MEMORY_START, MemoryLayout};
use linux_loader::loader::bootparam::setup_header;
use umbra_memslots::Gpa;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Longest command line of a Linux without a setup header: its `COMMAND_LINE_SIZE` less the zero byte.
const LINUX_COMMAND_LINE: usize = 2047;
/// Longest command line there is room for.
#[expect(clippy::cast_possible_truncation, reason = "16 KiB")]
const MAX_COMMAND_LINE: usize = BootArea::COMMAND_LINE_BYTES as usize - 1;
/// One past the last address at which a Linux without a setup header is given its initrd.
const LINUX_INITRD_LIMIT: Gpa = Gpa::new(1 << 31);

/// What to boot.
#[derive(Debug)]
pub struct BootRequest<'a, F> {
    /// The kernel.
    pub kernel: Image<F>,
    /// Its initrd; for a multiboot kernel, its only module.
    pub initrd: Option<Image<F>>,
    /// Its command line. A multiboot kernel gets its image's name before it, as its first word.
    pub command_line: &'a str,
    /// Where RAM is.
    pub layout: &'a MemoryLayout,
    /// The hardware to describe in ACPI tables; `None`: there will be none.
    pub platform: Option<&'a Platform>,
    /// Let the guest decompress a bzImage.
    pub boot_compressed: bool,
}

/// What each protocol tells the kernel in its own format.
#[derive(Debug)]
pub(super) struct Environment<'a> {
    pub layout: &'a MemoryLayout,
    pub rsdp: Option<Gpa>,
    pub initrd: Option<PlacedInitrd<'a>>,
}

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedInitrd<'a> {
    pub name: &'a str,
    pub start: Gpa,
    pub bytes: u64,
}

/// A kernel in guest memory, and what it wants to be told and how.
struct Loaded {
    image: ImageKind,
    start: Start,
    entry: Gpa,
    max_command_line: usize,
    remarks: Vec<String>,
}

enum Start {
    Linux64 {
        header: Box<setup_header>,
        initrd_limit: Gpa,
    },
    Pvh,
    Multiboot1,
}

/// Loads a kernel with all it needs into `memory`, which must be RAM as `request.layout` says, all zero, with no vCPU
/// running.
///
/// # Errors
/// [`BootError`]; parts of the image may be in guest memory by then.
pub fn load<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    request: BootRequest<'_, F>,
) -> Result<BootState, BootError> {
    let BootRequest {
        mut kernel,
        mut initrd,
        command_line,
        layout,
        platform,
        boot_compressed,
    } = request;
    let mut places = Places::new(layout);
    let loaded =
        load_kernel(memory, &mut kernel, &mut places, boot_compressed).map_err(|problem| BootError::Kernel {
            file: kernel.name().to_owned(),
            problem,
        })?;

    let initrd = match &mut initrd {
        Some(image) => match load_initrd(memory, image, &mut places, &loaded.start) {
            Ok(start) => Some(PlacedInitrd {
                name: image.name(),
                start,
                bytes: image.bytes(),
            }),
            Err(problem) => {
                return Err(BootError::Initrd {
                    file: image.name().to_owned(),
                    problem,
                });
            }
        },
        None => None,
    };
    write_command_line(memory, command_line, &kernel, &loaded)?;
    let rsdp = match platform {
        Some(platform) => Some(write_acpi(memory, platform)?),
        None => None,
    };

    reset_vector::write(memory)?;
    let environment = Environment { layout, rsdp, initrd };
    let mode = if matches!(loaded.start, Start::Linux64 { .. }) {
        Mode::Long
    } else {
        Mode::Protected
    };
    let (mut regs, system) = entry::prepare(memory, mode, loaded.entry)?;
    let protocol = match loaded.start {
        Start::Linux64 { header, .. } => {
            regs.rsi = linux::write(memory, *header, &environment)?.get();
            Protocol::Linux64
        }
        Start::Pvh => {
            regs.rbx = pvh::write(memory, &environment)?.get();
            Protocol::Pvh
        }
        Start::Multiboot1 => {
            regs.rax = multiboot::info::LOADER_MAGIC;
            regs.rbx = multiboot::info::write(memory, &environment)?.get();
            Protocol::Multiboot1
        }
    };
    Ok(BootState {
        regs,
        system,
        image: loaded.image,
        protocol,
        entry: loaded.entry,
        placed: places.into_placed(),
        remarks: loaded.remarks,
    })
}

fn load_kernel<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    kernel: &mut Image<F>,
    places: &mut Places<'_>,
    boot_compressed: bool,
) -> Result<Loaded, KernelProblem> {
    let start = kernel.prefix(PROBE_BYTES)?;
    match probe::kind(&start) {
        Some(Kind::BzImage) => load_bzimage(memory, kernel, &start, places, boot_compressed),
        Some(Kind::Multiboot(header)) => load_multiboot(memory, kernel, &header, places),
        Some(Kind::Elf) => load_elf(memory, kernel, places),
        None => Err(KernelProblem::Unknown {
            start: FirstBytes::of(&start),
        }),
    }
}

fn load_bzimage<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    kernel: &mut Image<F>,
    start: &[u8],
    places: &mut Places<'_>,
    boot_compressed: bool,
) -> Result<Loaded, KernelProblem> {
    let setup = Setup::read(kernel, start)?;
    let (entry, decompressed) = if boot_compressed {
        (bzimage::whole::load(memory, kernel, &setup, places)?, None)
    } else {
        let (elf, compression) = bzimage::payload::load(memory, kernel, &setup, places)?;
        if elf.class == Class::Bits32 {
            return Err(BzImageProblem::No64BitEntry.into());
        }
        (elf.physical_entry()?, Some(compression))
    };
    Ok(Loaded {
        max_command_line: setup.max_command_line(),
        start: Start::Linux64 {
            header: Box::new(setup.header()),
            initrd_limit: setup.initrd_limit(),
        },
        image: ImageKind::BzImage {
            version: setup.version_text,
            decompressed,
        },
        entry,
        remarks: Vec::new(),
    })
}

fn load_elf<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    kernel: &mut Image<F>,
    places: &mut Places<'_>,
) -> Result<Loaded, KernelProblem> {
    let elf = elf::file::plan(kernel)?;
    let (start, entry) = match elf::file::pvh_entry(kernel, &elf)? {
        Some(entry) => (Start::Pvh, entry),
        None if elf.class == Class::Bits32 => return Err(ElfProblem::NoProtocol.into()),
        None => (
            Start::Linux64 {
                header: Box::new(linux::plain_header()),
                initrd_limit: LINUX_INITRD_LIMIT,
            },
            elf.physical_entry()?,
        ),
    };
    elf::file::load(memory, kernel, &elf, places)?;
    Ok(Loaded {
        image: elf_kind(elf.class),
        start,
        entry,
        max_command_line: LINUX_COMMAND_LINE,
        remarks: Vec::new(),
    })
}

fn load_multiboot<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    kernel: &mut Image<F>,
    header: &multiboot::Header,
    places: &mut Places<'_>,
) -> Result<Loaded, KernelProblem> {
    let remarks = header.remarks()?;
    let (image, entry) = match &header.addresses {
        Some(addresses) => (
            ImageKind::Flat,
            multiboot::flat::load(memory, kernel, header, addresses, places)?,
        ),
        None => {
            let elf = elf::file::plan(kernel)?;
            let entry = elf.physical_entry()?;
            elf::file::load(memory, kernel, &elf, places)?;
            (elf_kind(elf.class), entry)
        }
    };
    Ok(Loaded {
        image,
        start: Start::Multiboot1,
        entry,
        max_command_line: MAX_COMMAND_LINE,
        remarks,
    })
}

fn elf_kind(class: Class) -> ImageKind {
    ImageKind::Elf {
        bits: if class == Class::Bits32 { 32 } else { 64 },
    }
}

fn load_initrd<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    image: &mut Image<F>,
    places: &mut Places<'_>,
    start: &Start,
) -> Result<Gpa, InitrdProblem> {
    let bytes = image.bytes();
    let ram_end = Gpa::new(places.ram_bytes());
    // Linux is given it as high as possible, out of its way; multiboot kernels expect modules right behind them.
    let (placed, limit) = match start {
        Start::Linux64 { initrd_limit, .. } => (
            places.claim_highest("initrd", bytes, *initrd_limit),
            ram_end.min(*initrd_limit),
        ),
        Start::Pvh => (
            places.claim_highest("initrd", bytes, LINUX_INITRD_LIMIT),
            ram_end.min(LINUX_INITRD_LIMIT),
        ),
        Start::Multiboot1 => (places.claim_lowest("module", bytes, HIGH_MEMORY_START), ram_end),
    };
    let start = placed.map_err(|free| InitrdProblem::NoRoom { bytes, limit, free })?;
    image.load_at(0, bytes, "the file", memory, start)?;
    Ok(start)
}

fn write_command_line<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    command_line: &str,
    kernel: &Image<F>,
    loaded: &Loaded,
) -> Result<(), BootError> {
    let mut text = String::new();
    if matches!(loaded.start, Start::Multiboot1) {
        text.push_str(kernel.name());
        if !command_line.is_empty() {
            text.push(' ');
        }
    }
    text.push_str(command_line);
    let max = loaded.max_command_line.min(MAX_COMMAND_LINE);
    if text.len() > max {
        return Err(CommandLineProblem::TooLong { bytes: text.len(), max }.into());
    }
    if let Some(offset) = text.bytes().position(|byte| byte == 0) {
        return Err(CommandLineProblem::ZeroByte { offset }.into());
    }
    text.push('\0');
    put(memory, BootArea::COMMAND_LINE, text.as_bytes(), "command line")
}

fn write_acpi<M: GuestMemory + ?Sized>(memory: &M, platform: &Platform) -> Result<Gpa, BootError> {
    let tables = acpi::build(platform, ACPI_START)?;
    put(memory, ACPI_START, &tables.bytes, "ACPI tables")?;
    Ok(tables.rsdp)
}

fn put<M: GuestMemory + ?Sized>(memory: &M, at: Gpa, bytes: &[u8], what: &'static str) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress::from(at))
        .map_err(|source| BootError::Memory { gpa: at, what, source })
}
