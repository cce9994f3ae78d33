//! Where everything lies that cases see: the slots of code, the window of memory, read-only pages with branch targets.

use super::mode::Mode;
use super::segments;

pub const SLOTS: usize = 400;

pub const CODE: u64 = 0x10_0000;
pub const CODE_SLOT: u64 = 0x400;
pub const RECORDS: u64 = 0x20_0000;
pub const RECORD: u64 = 0x800;

/// The instruction's place within its slot, and where branches land: in code of 64 or 32 bits, of 16, and of 64 after
/// a change of mode.
pub const HOLE: u64 = 0x140;
pub const PAD: u64 = HOLE + 0x30;
pub const PAD_16: u64 = HOLE + 0x40;
pub const PAD_64: u64 = HOLE + 0x50;
/// Behind the pads.
pub const PADS_END: u64 = HOLE + 0x60;

/// Memory that cases work on: an unmapped page, three pages, read-only pages with branch targets, unmapped again.
pub const WINDOW: u64 = 0x40_1000;
pub const WINDOW_SIZE: usize = 0x3000;
pub const READ_ONLY: u64 = WINDOW + WINDOW_SIZE as u64;
pub const READ_ONLY_END: u64 = READ_ONLY + 0x5000;
/// Far pointers and frames, one set for each slot.
const FAR: u64 = READ_ONLY + 0x1000;
const FAR_SIZE: u64 = 32;

/// A record begins with the registers of a case before it, by number; then flags, and an FXSAVE image.
pub const FLAGS: u64 = 0x80;
pub const FX: u64 = 0x100;
/// The same after it, and whether the branch was taken.
pub const OUT: u64 = 0x400;
pub const TAKEN: u64 = 0x88;

/// The record of slot `index`.
pub const fn record(index: usize) -> u64 {
    RECORDS + index as u64 * RECORD
}

/// Where slot `index` begins.
pub const fn slot(index: usize) -> u64 {
    CODE + index as u64 * CODE_SLOT
}

/// Where a pointer to the branch target of slot `index` lies: to that of 32-bit code in its first half, to that of
/// 16-bit code in the second, where a segment begins with each slot.
pub const fn pad_pointer(mode: Mode, index: usize) -> u64 {
    let at = READ_ONLY + 8 * index as u64;
    if matches!(mode, Mode::Compat16) { at + 4 } else { at }
}

/// The frame of a far return or `iret` for slot `index`, whose beginning is a far pointer: words of four bytes, or of
/// two.
pub const fn far_frame(index: usize, wide: bool) -> u64 {
    FAR + FAR_SIZE * index as u64 + if wide { 0 } else { 12 }
}

/// A data selector with a random offset in front of it.
pub const fn data_pointer(index: usize) -> u64 {
    FAR + FAR_SIZE * index as u64 + 20
}

/// The contents of the read-only pages.
pub fn read_only(mode: Mode) -> Vec<u8> {
    let mut pages = vec![0; (READ_ONLY_END - READ_ONLY) as usize];
    for index in 0..SLOTS {
        let mut put = |at: u64, bytes: &[u8]| {
            let start = (at - READ_ONLY) as usize;
            pages[start..start + bytes.len()].copy_from_slice(bytes);
        };
        if mode == Mode::Long {
            put(pad_pointer(mode, index), &mode.pad(index).to_le_bytes());
            continue;
        }
        put(READ_ONLY + 8 * index as u64, &(PAD as u32).to_le_bytes());
        put(READ_ONLY + 8 * index as u64 + 4, &(PAD_16 as u32).to_le_bytes());
        // Every flag that a program may change, except the trap flag, and some that it may not.
        let flags = (index as u32).wrapping_mul(0x9e37_79b1) & 0x0024_7ed5 | 2;
        for wide in [true, false] {
            let (offset, selector) = segments::far_target(index, wide);
            let frame = far_frame(index, wide);
            if wide {
                for (place, word) in [offset, u32::from(selector), flags].into_iter().enumerate() {
                    put(frame + 4 * place as u64, &word.to_le_bytes());
                }
            } else {
                for (place, word) in [offset as u16, selector, flags as u16].into_iter().enumerate() {
                    put(frame + 2 * place as u64, &word.to_le_bytes());
                }
            }
        }
        let pointer = data_pointer(index);
        put(pointer, &flags.rotate_left(7).to_le_bytes());
        put(pointer + 4, &segments::any_selector(index).to_le_bytes());
    }
    pages
}
