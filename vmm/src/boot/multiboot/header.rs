//! The multiboot header: within the first 8 KiB of the image, on a four-byte boundary (section 3.1).

use super::super::elf::header::u32_at;
use super::super::error::MultibootProblem;

const MAGIC: u32 = 0x1bad_b002;
/// What the loader must do or refuse: bits 0 to 15. Page-aligned modules and memory information are always given.
const MUST_UNDERSTAND: u32 = 0xffff;
const PAGE_ALIGN: u32 = 1;
const MEMORY_INFO: u32 = 1 << 1;
const VIDEO_MODE: u32 = 1 << 2;
/// The address fields are valid and count instead of what an ELF header says.
const ADDRESSES: u32 = 1 << 16;
/// A header without address fields, and with.
const SHORT_BYTES: usize = 12;
const LONG_BYTES: usize = 32;

/// A header that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::boot) struct Header {
    /// Its offset in the image.
    pub offset: usize,
    flags: u32,
    /// The address fields, if the image is to be loaded by them.
    pub addresses: Option<Addresses>,
}

/// The address fields (section 3.1.3), all physical.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::boot) struct Addresses {
    /// Where the header itself comes to lie.
    pub header: u32,
    /// First byte loaded.
    pub load: u32,
    /// One past the last byte loaded, or 0: all of the file.
    pub load_end: u32,
    /// One past the last byte of zeroed memory, or 0: none.
    pub bss_end: u32,
    /// Where to jump.
    pub entry: u32,
}

impl Header {
    /// The first header in `start`, the first 8 KiB of the image or all of it.
    pub fn find(start: &[u8]) -> Option<Self> {
        let last = start.len().checked_sub(SHORT_BYTES)?;
        (0..=last).step_by(4).find_map(|offset| {
            let field = |index: usize| u32_at(start, offset + index * 4);
            if field(0) != MAGIC {
                return None;
            }
            let flags = field(1);
            if MAGIC.wrapping_add(flags).wrapping_add(field(2)) != 0 {
                return None;
            }
            let addresses = (flags & ADDRESSES != 0 && offset + LONG_BYTES <= start.len()).then(|| Addresses {
                header: field(3),
                load: field(4),
                load_end: field(5),
                bss_end: field(6),
                entry: field(7),
            });
            Some(Self {
                offset,
                flags,
                addresses,
            })
        })
    }

    /// What is asked for and not given, in words; or the requirements that no loader may pass over.
    pub fn remarks(&self) -> Result<Vec<String>, MultibootProblem> {
        let unknown = self.flags & MUST_UNDERSTAND & !(PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE);
        if unknown != 0 {
            return Err(MultibootProblem::Requirements {
                flags: self.flags,
                unknown,
            });
        }
        if self.flags & ADDRESSES != 0 && self.addresses.is_none() {
            return Err(MultibootProblem::HeaderCut { offset: self.offset });
        }
        if self.flags & VIDEO_MODE != 0 {
            return Ok(vec!["the kernel asks for a video mode; there is no display".to_owned()]);
        }
        Ok(Vec::new())
    }
}
