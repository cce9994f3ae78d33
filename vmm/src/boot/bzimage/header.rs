//! The setup header of a bzImage (Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header").

use super::super::elf::header::{u16_at, u32_at};
use super::super::error::{BzImageProblem, KernelProblem};
use super::super::image::{Image, ImageFile};
use linux_loader::loader::bootparam::setup_header;
use umbra_memslots::Gpa;
use vm_memory::ByteValued;

/// Offset of the setup header in the image.
const HEADER_OFFSET: usize = 0x1f1;
/// Offset that the header's own length byte counts from.
const LENGTH_BASE: usize = 0x202;
const SECTOR: u64 = 512;
/// Fields first present in 2.03: `initrd_addr_max`, 2.06: `cmdline_size`, 2.08: the payload's place, 2.10:
/// `pref_address`, `init_size` and a relocatable kernel's alignment, 2.12: `xloadflags`.
const VERSION_INITRD_MAX: u16 = 0x0203;
const VERSION_CMDLINE_SIZE: u16 = 0x0206;
pub(super) const VERSION_PAYLOAD: u16 = 0x0208;
pub(super) const VERSION_64BIT: u16 = 0x020c;
/// `xloadflags`: the image has a 64-bit entry point at 0x200.
const HAS_64BIT_ENTRY: u16 = 1;
const INITRD_MAX_BEFORE_2_03: u32 = 0x37ff_ffff;
const CMDLINE_SIZE_BEFORE_2_06: u32 = 255;
/// The most of the version string that is shown.
const MAX_VERSION_BYTES: usize = 80;

/// What a bzImage says of itself.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::boot) struct Setup {
    header: setup_header,
    /// Offset of the protected-mode code in the file.
    code_offset: u64,
    /// Bytes of protected-mode code.
    code_bytes: u64,
    /// The version string, or empty.
    pub version_text: String,
}

impl Setup {
    /// Reads it from `start`, the first 8 KiB of `image`.
    pub fn read<F: ImageFile>(image: &Image<F>, start: &[u8]) -> Result<Self, KernelProblem> {
        let header_end = LENGTH_BASE + usize::from(start.get(0x201).copied().unwrap_or(0));
        let mut bytes = [0; size_of::<setup_header>()];
        let present = start
            .get(HEADER_OFFSET..header_end.min(start.len()))
            .unwrap_or_default();
        for (to, from) in bytes.iter_mut().zip(present) {
            *to = *from;
        }
        let mut header = setup_header::default();
        header.as_mut_slice().copy_from_slice(&bytes);

        let sectors = match header.setup_sects {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let code_offset = (sectors + 1) * SECTOR;
        let in_file = image.bytes().checked_sub(code_offset).filter(|&bytes| bytes > 0);
        let announced = u64::from(header.syssize) * 16;
        let code_bytes = match in_file {
            // The size counts paragraphs: the last one may be short.
            Some(in_file) if announced < in_file + 16 => {
                if announced == 0 {
                    in_file
                } else {
                    announced.min(in_file)
                }
            }
            _ => {
                return Err(BzImageProblem::Truncated {
                    bytes: image.bytes(),
                    expected: code_offset + announced.max(1),
                }
                .into());
            }
        };
        let version_text = match u16_at(start, 0x20e) {
            0 => String::new(),
            offset => text_at(start, usize::from(offset) + 0x200),
        };
        Ok(Self {
            header,
            code_offset,
            code_bytes,
            version_text,
        })
    }

    /// The header, to hand on in the zero page.
    pub fn header(&self) -> setup_header {
        self.header
    }

    /// The boot protocol version, major in the high byte.
    pub fn version(&self) -> u16 {
        self.header.version
    }

    /// Refuses a version below `needed`.
    pub fn need_version(&self, needed: u16, what: &'static str) -> Result<(), BzImageProblem> {
        let found = self.version();
        if found < needed {
            Err(BzImageProblem::Version { found, needed, what })
        } else {
            Ok(())
        }
    }

    /// Whether the image can be entered in long mode as it is.
    pub fn has_64bit_entry(&self) -> bool {
        self.version() >= VERSION_64BIT && self.header.xloadflags & HAS_64BIT_ENTRY != 0
    }

    /// Offset and size in the file of the protected-mode code.
    pub fn code(&self) -> (u64, u64) {
        (self.code_offset, self.code_bytes)
    }

    /// Offset and size in the file of the compressed payload.
    pub fn payload(&self) -> Result<(u64, u64), BzImageProblem> {
        let (offset, bytes) = (
            u64::from(self.header.payload_offset),
            u64::from(self.header.payload_length),
        );
        // Eight bytes tell the compression and the size.
        if bytes < 8 || offset + bytes > self.code_bytes {
            return Err(BzImageProblem::Payload {
                offset,
                bytes,
                code_bytes: self.code_bytes,
            });
        }
        Ok((self.code_offset + offset, bytes))
    }

    /// Where the protected-mode code is loaded when the guest decompresses itself, and how much memory it needs there.
    pub fn load_range(&self) -> (Gpa, u64) {
        let header = self.header;
        let start = if header.relocatable_kernel != 0 && header.pref_address != 0 {
            header.pref_address
        } else {
            u64::from(header.code32_start)
        };
        (Gpa::new(start), u64::from(header.init_size).max(self.code_bytes))
    }

    /// One past the last address the kernel takes an initrd at.
    pub fn initrd_limit(&self) -> Gpa {
        let last = if self.version() >= VERSION_INITRD_MAX {
            self.header.initrd_addr_max
        } else {
            INITRD_MAX_BEFORE_2_03
        };
        Gpa::new(u64::from(last) + 1)
    }

    /// Longest command line without its final zero byte.
    pub fn max_command_line(&self) -> usize {
        let max = if self.version() >= VERSION_CMDLINE_SIZE {
            self.header.cmdline_size
        } else {
            CMDLINE_SIZE_BEFORE_2_06
        };
        usize::try_from(max).unwrap_or(usize::MAX)
    }
}

/// The printable text up to a zero byte.
fn text_at(start: &[u8], offset: usize) -> String {
    let bytes = start.get(offset..).unwrap_or_default();
    bytes
        .iter()
        .take(MAX_VERSION_BYTES)
        .take_while(|byte| (b' '..=b'~').contains(byte))
        .map(|&byte| char::from(byte))
        .collect::<String>()
        .split(" (")
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The size before compression, which ends the payload.
pub(super) fn size_before_compression(last: &[u8]) -> u64 {
    u64::from(u32_at(last, 0))
}
