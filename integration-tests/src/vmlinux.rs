//! Takes the ELF `vmlinux` out of a bzImage: for tests that start it directly, and on purpose not by the code under
//! test. Knows the one compression that Debian's cloud kernel has, LZ4's legacy frame.
//!
//! The payload's place stands in the setup header (`Documentation/arch/x86/boot.rst`, "payload_offset"); the frame is
//! described in LZ4's `lz4_Frame_format.md`, "Legacy frame".

/// No vmlinux in there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExtractError {
    /// The file ends before the part named.
    #[error("the bzImage ends before its {0}")]
    Truncated(&'static str),
    /// No setup header.
    #[error("no setup header: {found:#x} where \"HdrS\" (0x53726448) should be")]
    NotBzImage {
        /// The magic number found.
        found: u32,
    },
    /// Another compression.
    #[error("the payload starts with {found:#x}, not with the magic number of an LZ4 legacy frame (0x184c2102)")]
    NotLz4 {
        /// The magic number found.
        found: u32,
    },
    /// A block doesn't decompress.
    #[error("block {index} of the payload: {reason}")]
    Block {
        /// Counted from 0.
        index: usize,
        /// The decompressor's words.
        reason: String,
    },
    /// The payload is no ELF file.
    #[error("the payload is no ELF file")]
    NotElf,
}

/// A legacy frame's blocks decompress to at most this.
const BLOCK: usize = 8 << 20;

/// The `vmlinux` in this bzImage.
///
/// # Errors
/// It is no bzImage, is cut short, or its payload isn't an ELF file in an LZ4 legacy frame.
pub fn extract(image: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let magic = u32_at(image, 0x202, "setup header")?;
    if magic != 0x5372_6448 {
        return Err(ExtractError::NotBzImage { found: magic });
    }
    let setup_sectors = match *image.get(0x1f1).ok_or(ExtractError::Truncated("setup header"))? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(image, 0x248, "payload_offset")? as usize;
    let length = u32_at(image, 0x24c, "payload_length")? as usize;
    let payload = image
        .get(start..start.saturating_add(length))
        .ok_or(ExtractError::Truncated("payload"))?;
    let elf = lz4_legacy(payload)?;
    if elf.starts_with(b"\x7fELF") {
        Ok(elf)
    } else {
        Err(ExtractError::NotElf)
    }
}

fn lz4_legacy(payload: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let magic = u32_at(payload, 0, "payload")?;
    if magic != 0x184c_2102 {
        return Err(ExtractError::NotLz4 { found: magic });
    }
    // The kernel's build appends the decompressed size as one more word: it ends the blocks.
    let blocks_end = payload.len().saturating_sub(4);
    let (mut out, mut at, mut index) = (Vec::new(), 4, 0);
    while at < blocks_end {
        let size = u32_at(payload, at, "payload's block size")? as usize;
        let block = payload
            .get(at + 4..(at + 4).saturating_add(size))
            .ok_or(ExtractError::Truncated("payload's last block"))?;
        let bytes = lz4_flex::block::decompress(block, BLOCK).map_err(|error| ExtractError::Block {
            index,
            reason: error.to_string(),
        })?;
        out.extend_from_slice(&bytes);
        at += 4 + size;
        index += 1;
    }
    Ok(out)
}

/// The same ELF file with its PVH entry note made unrecognisable, so that a loader takes it for an older kernel.
///
/// The note (`XEN_ELFNOTE_PHYS32_ENTRY`) is found by its header: name size 4, any size of description, type 18,
/// name "Xen".
#[must_use]
pub fn without_pvh_note(elf: &[u8]) -> Vec<u8> {
    const TYPE_AND_NAME: &[u8; 8] = b"\x12\0\0\0Xen\0";
    let mut out = elf.to_vec();
    for at in 8..out.len().saturating_sub(8) {
        if &out[at..at + 8] == TYPE_AND_NAME && out[at - 8..at - 4] == 4_u32.to_le_bytes() {
            out[at] = 0xff;
        }
    }
    out
}

fn u32_at(bytes: &[u8], at: usize, what: &'static str) -> Result<u32, ExtractError> {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map(u32::from_le_bytes).ok_or(ExtractError::Truncated(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::host::Host;

    #[test]
    fn extract_debian_kernel_is_an_elf_file() {
        let host = match Host::find() {
            Ok(host) => host,
            Err(missing) => {
                println!("skipped: {missing}");
                return;
            }
        };
        let image = std::fs::read(&host.kernel).expect("the kernel can be read");
        let elf = extract(&image).expect("Debian's cloud kernel is LZ4");
        let claimed = u32::from_le_bytes(elf[16..20].try_into().expect("four bytes"));
        assert_eq!(claimed & 0xffff, 2, "ET_EXEC");
        assert!(elf.len() > 2 * image.len(), "{} of {}", elf.len(), image.len());
        assert_eq!(
            extract(&image[..image.len() / 2]),
            Err(ExtractError::Truncated("payload"))
        );
    }

    #[test]
    fn without_pvh_note_only_the_type_changes() {
        let mut elf = b"before\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0entry...".to_vec();
        let without = without_pvh_note(&elf);
        elf[14] = 0xff;
        assert_eq!(without, elf);
    }

    #[test]
    fn extract_other_files_say_what_they_are_not() {
        assert_eq!(extract(b"MZ"), Err(ExtractError::Truncated("setup header")));
        assert_eq!(extract(&[0; 1024]), Err(ExtractError::NotBzImage { found: 0 }));
    }
}
