//! For a PC with firmware: a disk whose boot sector loads the guest to where a multiboot loader would, and enters it in
//! the same state.

use super::guest::layout::ENTRY;
use crate::multiboot::{BASE, LOADER_MAGIC};
use iced_x86::code_asm::{CodeAssembler, ah, al, ax, cr0, ds, eax, ebx, ecx, edi, es, esi, fword_ptr, si, sp, ss};
use iced_x86::{Code, IcedError, Instruction};

const SECTOR: usize = 512;
const WORDS_OF_A_SECTOR: u32 = 512 / 4;
/// Sectors that one call of the firmware is sure to read (Enhanced Disk Drive specification).
const MOST_SECTORS: usize = 127;
/// Bytes of a cylinder in the geometry that firmware makes up for a disk: 16 heads, 63 sectors.
const CYLINDER: usize = 16 * 63 * SECTOR;
const AT: u32 = 0x7c00;
/// Where the firmware reads to; the guest is copied from there.
const BUFFER: u32 = BUFFER_SEGMENT as u32 * 16;
const BUFFER_SEGMENT: u16 = 0x1000;
/// Behind the code, in the same sector.
const TABLES: u32 = AT + 0x100;
const PACKET: u32 = TABLES + 24;
const GDT_POINTER: u32 = PACKET + 16;
/// The last two bytes of a boot sector.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// A disk can't be made of the guest.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Code can't be assembled.
    #[error(transparent)]
    Assemble(#[from] IcedError),
    /// The guest is larger than one read of the firmware.
    #[error("a guest of {0} bytes can't be read at once")]
    TooLarge(usize),
    /// The boot sector's code reaches into its tables.
    #[error("boot sector code of {0} bytes")]
    Code(usize),
}

/// The disk as a file: a boot sector, and the guest behind it.
///
/// # Errors
/// The guest is larger than the firmware reads at once.
pub fn disk(image: &[u8]) -> Result<Vec<u8>, DiskError> {
    let sectors = image.len().div_ceil(SECTOR);
    let count = u8::try_from(sectors)
        .ok()
        .filter(|_| sectors <= MOST_SECTORS)
        .ok_or(DiskError::TooLarge(image.len()))?;
    let mut disk = code(u32::from(count))?;
    if disk.len() > (TABLES - AT) as usize {
        return Err(DiskError::Code(disk.len()));
    }
    disk.resize((TABLES - AT) as usize, 0);
    // Nothing; flat 32-bit code; flat data.
    for descriptor in [0, 0x00cf_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff] {
        disk.extend_from_slice(&descriptor.to_le_bytes());
    }
    // Size of the packet, sectors, buffer as segment:offset, first sector.
    disk.extend_from_slice(&[16, 0, count, 0, 0, 0]);
    disk.extend_from_slice(&BUFFER_SEGMENT.to_le_bytes());
    disk.extend_from_slice(&1_u64.to_le_bytes());
    disk.extend_from_slice(&23_u16.to_le_bytes());
    disk.extend_from_slice(&TABLES.to_le_bytes());
    disk.resize(SECTOR - SIGNATURE.len(), 0);
    disk.extend_from_slice(&SIGNATURE);
    disk.extend_from_slice(image);
    disk.resize(disk.len().next_multiple_of(CYLINDER), 0);
    Ok(disk)
}

fn code(sectors: u32) -> Result<Vec<u8>, IcedError> {
    // Assembled twice, for the address of the first 32-bit instruction.
    let mut a = CodeAssembler::new(16)?;
    to_protection(&mut a, 0)?;
    let protected = AT + u32::try_from(a.assemble(u64::from(AT))?.len()).unwrap_or_default();
    let mut a = CodeAssembler::new(16)?;
    to_protection(&mut a, protected)?;
    let mut code = a.assemble(u64::from(AT))?;
    let mut a = CodeAssembler::new(32)?;
    a.mov(eax, 16)?;
    for segment in [ds, es, ss] {
        a.mov(segment, ax)?;
    }
    a.mov(esi, BUFFER)?;
    a.mov(edi, BASE)?;
    a.mov(ecx, sectors * WORDS_OF_A_SECTOR)?;
    a.rep().movsd()?;
    a.mov(eax, LOADER_MAGIC)?;
    // There is no multiboot information, and nobody asks for it.
    a.xor(ebx, ebx)?;
    a.jmp(u64::from(ENTRY))?;
    code.extend(a.assemble(u64::from(protected))?);
    Ok(code)
}

/// 16-bit code: the firmware has left the disk's number in dl, where it wants it again.
fn to_protection(a: &mut CodeAssembler, next: u32) -> Result<(), IcedError> {
    let mut rest = a.create_label();
    let mut good = a.create_label();
    a.cld()?;
    a.xor(ax, ax)?;
    for segment in [ds, es, ss] {
        a.mov(segment, ax)?;
    }
    a.mov(sp, AT)?;
    a.mov(si, PACKET)?;
    a.mov(ah, 0x42)?;
    a.int(0x13)?;
    a.jnc(good)?;
    a.set_label(&mut rest)?;
    a.hlt()?;
    a.jmp(rest)?;
    a.set_label(&mut good)?;
    a.cli()?;
    // Address line 20, by the fast gate of a PS/2.
    a.in_(al, 0x92)?;
    a.or(al, 2)?;
    a.out(0x92, al)?;
    a.lgdt(fword_ptr(GDT_POINTER))?;
    a.mov(eax, cr0)?;
    a.or(eax, 1)?;
    a.mov(cr0, eax)?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, 8, next)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_has_a_signature_the_guest_behind_it_and_whole_cylinders() {
        let guest = vec![0xa5; 3 * SECTOR + 1];
        let disk = disk(&guest).expect("small");
        assert_eq!(disk[510..512], SIGNATURE);
        assert_eq!(disk[512..512 + guest.len()], guest);
        assert_eq!(disk.len(), CYLINDER);
        assert_eq!(disk[(PACKET - AT) as usize..][..4], [16, 0, 4, 0]);
        assert_eq!(disk[(GDT_POINTER - AT) as usize..][..2], [23, 0]);
    }

    #[test]
    fn disk_of_a_guest_that_is_too_large_is_refused() {
        assert!(matches!(disk(&vec![0; 128 * SECTOR]), Err(DiskError::TooLarge(65536))));
    }
}
