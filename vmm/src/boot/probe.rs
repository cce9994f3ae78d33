//! What kind of kernel an image is, by its content.

use super::elf::header::{MAGIC, u16_at, u32_at};
use super::linux::{BOOT_FLAG, HEADER_MAGIC};
use super::multiboot::Header as MultibootHeader;

/// How much of an image is looked at: a multiboot header lies within the first 8 KiB (Multiboot 0.6.96 section 3.1).
pub(super) const PROBE_BYTES: usize = 8192;

/// A kind of kernel image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Linux's, with a setup header.
    BzImage,
    /// ELF without a multiboot header.
    Elf,
    /// ELF or flat, with a multiboot1 header.
    Multiboot(MultibootHeader),
}

/// The kind of an image that starts with `start`, the first [`PROBE_BYTES`] bytes or all; `None` if it is no kernel.
pub(super) fn kind(start: &[u8]) -> Option<Kind> {
    if u16_at(start, 0x1fe) == BOOT_FLAG && u32_at(start, 0x202) == HEADER_MAGIC {
        return Some(Kind::BzImage);
    }
    if let Some(header) = MultibootHeader::find(start) {
        return Some(Kind::Multiboot(header));
    }
    start.starts_with(&MAGIC).then_some(Kind::Elf)
}
