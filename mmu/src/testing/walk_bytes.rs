//! [`check_walk_bytes`]: bytes become registers, tables and accesses; walker and hardware must agree.

use super::compare::walk_both;
use super::memory::WalkMemory;
use crate::x86::control::{cr0, cr4, efer, rflags};
use crate::x86::{Access, GuestCpu, PagingMode, PagingRegs};

/// Pages of guest memory.
const PAGES: u8 = 6;
/// Bits that decide something, of which one byte of input picks: by number so that few bytes reach all of them.
const FLAGS: [u64; 8] = [0x07, 0x67, 0x87, 0xe7, 0x01, 0x05, 0x03, 0x00];

/// Reads bytes as registers (8 bytes), entries (3 bytes each: page and flags, index, one flipped bit) and, after a byte
/// 0xff in the place of an entry's first, accesses (4 bytes each: kind and three indices); makes each access with the
/// guest walker and with the model of the hardware. Any bytes will do.
///
/// # Panics
/// If the two disagree, or if nothing stops a walk.
pub fn check_walk_bytes(bytes: &[u8]) {
    let Some((head, mut rest)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let memory = WalkMemory::new(usize::from(PAGES));
    let regs = registers(head);
    while let Some((&[place, index, flip], more)) = rest.split_first_chunk::<3>() {
        rest = more;
        if place == 0xff {
            break;
        }
        let address = u64::from(place % 8) << 12;
        let entry = (address | FLAGS[usize::from(place >> 5)]) ^ if flip < 64 { 1 << flip } else { 0 };
        memory.set(u64::from(place >> 3 & 3) << 12 | u64::from(index % 8) << 3, entry);
    }
    for access in rest.chunks_exact(4).take(64) {
        let [low, middle, high] = [access[1], access[2], access[3]].map(|part| u64::from(part % 8));
        let gva = low << 12 | middle << 21 | middle << 22 | high << 30 | high << 39 | low << 48;
        let gva = if PagingMode::of(&regs).is_long() {
            gva
        } else {
            gva & 0xffff_ffff
        };
        let kind = Access::ALL[usize::from(access[0] % 9)];
        if let Err(difference) = walk_both(&regs, &memory, gva, kind) {
            panic!("{difference}");
        }
    }
}

fn registers(head: &[u8; 8]) -> PagingRegs {
    let pick = |byte: u8, bit: u8, value: u64| if byte >> bit & 1 == 1 { value } else { 0 };
    let [mode, control, rights, width, root, keys, pdptes, more] = *head;
    PagingRegs {
        cr0: cr0::PG & !pick(mode, 7, cr0::PG) | pick(control, 0, cr0::WP),
        cr3: u64::from(root % PAGES) << 12 | u64::from(root >> 4) << 5,
        cr4: pick(mode, 0, cr4::PAE)
            | pick(mode, 2, cr4::LA57)
            | pick(mode, 3, cr4::PSE)
            | pick(control, 1, cr4::SMEP)
            | pick(control, 2, cr4::SMAP)
            | pick(control, 3, cr4::PKE),
        // Long mode is only to be had with PAE.
        efer: pick(mode & mode << 1, 1, efer::LMA) | pick(control, 4, efer::NXE),
        rflags: pick(control, 5, rflags::AC),
        pkru: u32::from(keys) * 0x0101_0101,
        pdptes: [0, 1, 2, 3].map(|shift| (u64::from(pdptes >> shift & 7) << 12) | u64::from(rights >> shift & 1)),
        cpu: GuestCpu {
            physical_bits: 32 + u32::from(width % 21),
            gigabyte_pages: more & 1 != 0,
            pse36: more & 2 != 0,
            upper_global_reserved: more & 4 != 0,
        },
    }
}
