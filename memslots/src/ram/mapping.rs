//! [`HostMapping`]: host memory for slots, in the kinds that a VMM wants.
//!
//! Nothing is touched or reserved when a mapping is made (`MAP_NORESERVE`): each page is populated by its first use, so
//! a large guest costs only what it uses. Huge pages are the exception: they are taken from the host's pool at once,
//! because a pool that turns out to be empty later would kill the process.

use crate::addr::{Hva, PAGE_SIZE};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::fmt;
use std::fs::File;
use std::io;
use vm_memory::{FileOffset, MmapRegion};

/// What kind of host memory to map.
#[derive(Debug)]
pub enum Source {
    /// Private memory of this process.
    Anonymous,
    /// Private memory of this process in huge pages.
    AnonymousHuge(HugePageSize),
    /// A memory file that can be shared with another process by passing its descriptor. Sealed against resizing.
    Memfd,
    /// The same in huge pages.
    MemfdHuge(HugePageSize),
    /// A file, from `offset` bytes on.
    File {
        /// The file: readable, and writable if shared.
        file: File,
        /// Where the memory starts in the file, in bytes; a multiple of the page size.
        offset: u64,
        /// Whether writes go to the file.
        sharing: Sharing,
    },
}

/// Whether the writes to a mapped file go to the file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sharing {
    /// They do, and other processes that map it see them.
    Shared,
    /// They stay here, page by page (copy on write): a snapshot to start from.
    Private,
}

/// The sizes of huge pages on x86-64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HugePageSize {
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl HugePageSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size2M => 2 << 20,
            Self::Size1G => 1 << 30,
        }
    }

    /// How many such pages the host's pool has free now; `None` if it has no such pool.
    pub fn free_in_pool(self) -> Option<u64> {
        let path = format!(
            "/sys/kernel/mm/hugepages/hugepages-{}kB/free_hugepages",
            self.bytes() >> 10
        );
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size2M => "2 MiB",
            Self::Size1G => "1 GiB",
        })
    }
}

/// Why host memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// The size is 0 or not a multiple of what the kind of memory needs.
    #[error("{bytes:#x} bytes of guest memory: must be a multiple of {unit:#x} and not 0")]
    BadSize {
        /// The size asked for.
        bytes: u64,
        /// What it must be a multiple of.
        unit: u64,
    },
    /// More than the host has, all its swap space included.
    #[error("{bytes} bytes of guest memory are more than this host's {host} bytes of memory and swap together")]
    MoreThanHost {
        /// The size asked for.
        bytes: u64,
        /// The host's memory and swap, in bytes.
        host: u64,
    },
    /// The pool of huge pages is too small.
    #[error(
        "{wanted} huge pages of {size} are needed and {} are free: see /proc/sys/vm/nr_hugepages and the kernel's \
         hugepages= parameter",
        .free.map_or_else(|| "none".to_owned(), |free| free.to_string())
    )]
    HugePages {
        /// Their size.
        size: HugePageSize,
        /// How many are needed.
        wanted: u64,
        /// How many are free; `None` if the host has no pool of this size.
        free: Option<u64>,
    },
    /// The offset in the file is not page aligned.
    #[error("offset {offset:#x} in the file is not a multiple of the page size")]
    FileOffset {
        /// The offset in bytes.
        offset: u64,
    },
    /// The file ends before the memory does: using the rest would kill the process.
    #[error("{bytes:#x} bytes from offset {offset:#x} on are wanted, and the file has {length:#x}")]
    FileTooShort {
        /// The size asked for.
        bytes: u64,
        /// Where in the file it starts.
        offset: u64,
        /// The file's length in bytes.
        length: u64,
    },
    /// The operating system refused.
    #[error("{operation}, for {bytes} bytes of guest memory")]
    Host {
        /// The system call.
        operation: &'static str,
        /// The size asked for.
        bytes: u64,
        /// Its reason.
        source: io::Error,
    },
}

/// A mapping of host memory, for slots. Unmapped on drop, that is when the last slot (in any snapshot) lets go of it.
#[derive(Debug)]
pub struct HostMapping {
    region: MmapRegion<()>,
}

impl HostMapping {
    /// Maps `bytes` bytes: a multiple of the page size (of the huge page size, for huge pages), not 0.
    ///
    /// # Errors
    /// See [`MappingError`].
    pub fn new(source: Source, bytes: u64) -> Result<Self, MappingError> {
        let unit = match &source {
            Source::AnonymousHuge(size) | Source::MemfdHuge(size) => size.bytes(),
            Source::Anonymous | Source::Memfd | Source::File { .. } => PAGE_SIZE,
        };
        if bytes == 0 || !bytes.is_multiple_of(unit) {
            return Err(MappingError::BadSize { bytes, unit });
        }
        match source {
            Source::Anonymous => {
                check_host_has(bytes)?;
                Self::map(None, bytes, MapFlags::PRIVATE | MapFlags::NORESERVE)
            }
            Source::AnonymousHuge(size) => {
                check_pool_has(size, bytes)?;
                let huge = match size {
                    HugePageSize::Size2M => MapFlags::HUGE_2MB,
                    HugePageSize::Size1G => MapFlags::HUGE_1GB,
                };
                Self::map(None, bytes, MapFlags::PRIVATE | MapFlags::HUGETLB | huge)
            }
            Source::Memfd => {
                check_host_has(bytes)?;
                let file = memfd(bytes, MemfdFlags::empty())?;
                Self::map(
                    Some(FileOffset::new(file, 0)),
                    bytes,
                    MapFlags::SHARED | MapFlags::NORESERVE,
                )
            }
            Source::MemfdHuge(size) => {
                check_pool_has(size, bytes)?;
                let huge = match size {
                    HugePageSize::Size2M => MemfdFlags::HUGE_2MB,
                    HugePageSize::Size1G => MemfdFlags::HUGE_1GB,
                };
                let file = memfd(bytes, MemfdFlags::HUGETLB | huge)?;
                Self::map(Some(FileOffset::new(file, 0)), bytes, MapFlags::SHARED)
            }
            Source::File { file, offset, sharing } => {
                check_file_has(&file, offset, bytes)?;
                let flags = match sharing {
                    Sharing::Shared => MapFlags::SHARED,
                    Sharing::Private => MapFlags::PRIVATE,
                };
                Self::map(Some(FileOffset::new(file, offset)), bytes, flags | MapFlags::NORESERVE)
            }
        }
    }

    /// Anonymous memory: [`Source::Anonymous`].
    ///
    /// # Errors
    /// As [`HostMapping::new`].
    pub fn anonymous(bytes: u64) -> Result<Self, MappingError> {
        Self::new(Source::Anonymous, bytes)
    }

    /// Host address of the first byte.
    pub fn start(&self) -> Hva {
        Hva::new(self.region.as_ptr().expose_provenance() as u64)
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.region.size() as u64
    }

    /// The file behind the memory and where in it the memory starts, if there is one: for handing to another process.
    pub fn file(&self) -> Option<(&File, u64)> {
        self.region.file_offset().map(|place| (place.file(), place.start()))
    }

    fn map(file: Option<FileOffset>, bytes: u64, flags: MapFlags) -> Result<Self, MappingError> {
        let refused = |source| MappingError::Host {
            operation: "mmap",
            bytes,
            source,
        };
        let size = usize::try_from(bytes).map_err(|_| refused(io::ErrorKind::OutOfMemory.into()))?;
        let anonymous = if file.is_none() { MAP_ANONYMOUS } else { 0 };
        let protection = (ProtFlags::READ | ProtFlags::WRITE).bits().cast_signed();
        let region = MmapRegion::build(file, size, protection, flags.bits().cast_signed() | anonymous);
        let region = region.map_err(|error| match error {
            vm_memory::mmap::MmapRegionError::Mmap(source) => refused(source),
            other => refused(io::Error::other(other)),
        })?;
        Ok(Self { region })
    }
}

/// Linux's number (asm-generic/mman-common.h); rustix keeps it behind its own function for anonymous mappings.
const MAP_ANONYMOUS: i32 = 0x20;

/// A memory file of `bytes` bytes whose size cannot change any more.
fn memfd(bytes: u64, flags: MemfdFlags) -> Result<File, MappingError> {
    let refused = |operation| {
        move |errno: rustix::io::Errno| MappingError::Host {
            operation,
            bytes,
            source: errno.into(),
        }
    };
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("umbra-guest-ram", flags).map_err(refused("memfd_create"))?;
    rustix::fs::ftruncate(&file, bytes).map_err(refused("ftruncate"))?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(refused("fcntl(F_ADD_SEALS)"))?;
    Ok(file.into())
}

fn check_host_has(bytes: u64) -> Result<(), MappingError> {
    let info = rustix::system::sysinfo();
    let host = info
        .totalram
        .saturating_add(info.totalswap)
        .saturating_mul(u64::from(info.mem_unit));
    if bytes > host {
        Err(MappingError::MoreThanHost { bytes, host })
    } else {
        Ok(())
    }
}

fn check_pool_has(size: HugePageSize, bytes: u64) -> Result<(), MappingError> {
    let (wanted, free) = (bytes / size.bytes(), size.free_in_pool());
    if free.is_none_or(|free| free < wanted) {
        Err(MappingError::HugePages { size, wanted, free })
    } else {
        Ok(())
    }
}

fn check_file_has(file: &File, offset: u64, bytes: u64) -> Result<(), MappingError> {
    if !offset.is_multiple_of(PAGE_SIZE) {
        return Err(MappingError::FileOffset { offset });
    }
    let metadata = file.metadata().map_err(|source| MappingError::Host {
        operation: "fstat",
        bytes,
        source,
    })?;
    // Block devices and the like have no length here; mmap itself refuses what it cannot map.
    let length = metadata.len();
    if metadata.is_file() && offset.checked_add(bytes).is_none_or(|end| end > length) {
        return Err(MappingError::FileTooShort { bytes, offset, length });
    }
    Ok(())
}
