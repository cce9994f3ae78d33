//! The segments of compatibility mode: a local descriptor table of every type that a program may have, with a code
//! segment of 32 and one of 16 bits for each slot, and the few descriptors of Linux's global table.

use super::layout::{CODE_SLOT, PAD, PAD_16, PAD_64, READ_ONLY_END, SLOTS, WINDOW, slot};
use super::mode::Mode;
use super::rng::Rng;
use umbra_vcpu::regs::Segment;

/// Linux's selectors of flat segments.
pub const USER_CODE_32: u16 = 0x23;
pub const USER_DATA: u16 = 0x2b;
pub const USER_CODE_64: u16 = 0x33;

/// Where the core sees the tables: above everything that a program of compatibility mode reaches.
pub const LDT: u64 = 0x2_0000_0000;
pub const GDT: u64 = 0x2_0010_0000;
/// Linux's table has sixteen descriptors.
pub const GDT_LIMIT: u16 = 0x7f;

/// A descriptor, in the terms of `modify_ldt`.
#[derive(Clone, Copy)]
pub struct Spec {
    pub base: u64,
    /// In bytes, or in pages if `pages`.
    pub limit: u32,
    pub pages: bool,
    /// D/B.
    pub wide: bool,
    /// 0 data, 1 data that grows downwards, 2 code, 3 conforming code.
    pub contents: u8,
    /// Data that can't be written, code that can't be read.
    pub restricted: bool,
    pub absent: bool,
}

const BYTES: u32 = (READ_ONLY_END - WINDOW - 1) as u32;
const DATA: Spec = Spec {
    base: WINDOW,
    limit: BYTES,
    pages: false,
    wide: true,
    contents: 0,
    restricted: false,
    absent: false,
};

const FLAT: usize = 0;
const WIDE: usize = 1;
const NARROW: usize = 2;
const FIXED: [Spec; 16] = [
    Spec {
        base: 0,
        limit: 0xf_ffff,
        pages: true,
        ..DATA
    },
    DATA,
    Spec { wide: false, ..DATA },
    Spec {
        restricted: true,
        ..DATA
    },
    Spec {
        base: WINDOW - 0x1000,
        limit: 0xfff,
        contents: 1,
        ..DATA
    },
    Spec {
        base: WINDOW - 0x1000,
        limit: 0xfff,
        contents: 1,
        wide: false,
        ..DATA
    },
    Spec { absent: true, ..DATA },
    Spec { contents: 2, ..DATA },
    Spec {
        contents: 2,
        restricted: true,
        ..DATA
    },
    Spec { limit: 0x7ff, ..DATA },
    Spec {
        base: WINDOW + 0x123,
        limit: 0x1fff,
        wide: false,
        ..DATA
    },
    Spec {
        limit: 2,
        pages: true,
        ..DATA
    },
    Spec {
        contents: 2,
        absent: true,
        ..DATA
    },
    Spec {
        contents: 3,
        absent: true,
        ..DATA
    },
    Spec {
        contents: 2,
        wide: false,
        ..DATA
    },
    Spec {
        base: WINDOW - 0x1000,
        limit: 0xfff,
        contents: 1,
        restricted: true,
        ..DATA
    },
];
/// Those that SS can hold.
const STACKS: [usize; 9] = [WIDE, WIDE, WIDE, NARROW, NARROW, FLAT, 4, 5, 9];

/// Number of entries of the local table.
pub const ENTRIES: usize = FIXED.len() + 2 * SLOTS;

/// Entry `index` of the local table.
pub fn spec(index: usize) -> Spec {
    FIXED.get(index).copied().unwrap_or_else(|| {
        let number = index - FIXED.len();
        Spec {
            base: slot(number % SLOTS),
            limit: CODE_SLOT as u32 - 1,
            wide: number < SLOTS,
            contents: 2,
            ..DATA
        }
    })
}

const fn selector(index: usize) -> u16 {
    (index as u16) << 3 | 7
}

/// The code segment of slot `index`, 32 or 16 bits wide.
pub const fn code_selector(mode: Mode, index: usize) -> u16 {
    let first = FIXED.len() + if matches!(mode, Mode::Compat16) { SLOTS } else { 0 };
    selector(first + index)
}

/// The descriptor that Linux makes of a specification (SDM vol. 3A section 3.4.5).
fn raw(spec: Spec) -> u64 {
    let code = u64::from(spec.contents >= 2);
    let kind = 1 | u64::from(!spec.restricted) << 1 | u64::from(spec.contents & 1) << 2 | code << 3;
    let (base, limit) = (spec.base, u64::from(spec.limit));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (kind | 0x70 | u64::from(!spec.absent) << 7) << 40
        | (limit & 0xf_0000) << 32
        | u64::from(spec.wide) << 54
        | u64::from(spec.pages) << 55
        | (base & 0xff00_0000) << 32
}

/// The descriptor at a linear address of [`LDT`] or [`GDT`]; `None` for one whose contents are the kernel's affair.
pub fn descriptor_at(address: u64) -> Option<u64> {
    if address >= GDT {
        return match address - GDT {
            0x20 => Some(0x00cf_fb00_0000_ffff),
            0x28 => Some(0x00cf_f300_0000_ffff),
            0x30 => Some(0x00af_fb00_0000_ffff),
            _ => None,
        };
    }
    Some(raw(spec((address - LDT) as usize / 8)))
}

/// What a segment register holds after a load of `selector`, which must be loadable.
pub fn hidden(selector: u16) -> Segment {
    if selector & !3 == 0 {
        return Segment {
            selector,
            unusable: true,
            ..Segment::default()
        };
    }
    let table = if selector & 4 == 0 { GDT } else { LDT };
    let raw = descriptor_at(table + u64::from(selector & !7)).expect("one of ours");
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    let granularity = raw >> 55 & 1 != 0;
    Segment {
        selector,
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
        limit: if granularity { limit << 12 | 0xfff } else { limit },
        kind: (raw >> 40) as u8 & 15,
        dpl: 3,
        non_system: true,
        present: true,
        available: false,
        long: raw >> 53 & 1 != 0,
        db: raw >> 54 & 1 != 0,
        granularity,
        unusable: false,
    }
}

/// ES, CS, SS, DS, FS, GS for a case.
pub fn choose(rng: &mut Rng, mode: Mode, index: usize) -> [u16; 6] {
    if mode.is_long() {
        return [0; 6];
    }
    let mut data = || {
        let entry = match rng.below(20) {
            0 => return USER_DATA,
            // Any other null selector becomes this one when the kernel comes back from an interrupt.
            1 => return 0,
            2 => FLAT,
            3 | 4 => rng.pick(&[3, 4, 5, 7, 9, 10, 11, 14, 15]),
            5..12 => WIDE,
            _ => NARROW,
        };
        selector(entry)
    };
    let [es, ds, fs, gs] = [data(), data(), data(), data()];
    let ss = if rng.chance(5) {
        USER_DATA
    } else {
        selector(rng.pick(&STACKS))
    };
    [es, code_selector(mode, index), ss, ds, fs, gs]
}

/// A selector, good or bad, that goes with `number`.
pub fn any_selector(number: usize) -> u16 {
    match number % 24 {
        entry @ 0..16 => selector(entry),
        16 => 0,
        17 => 3,
        18 => USER_DATA,
        19 => USER_CODE_32,
        20 => USER_CODE_64,
        21 => selector(ENTRIES),
        22 => selector(WIDE) & !3,
        _ => 0x1003,
    }
}

/// Offset and selector of a far transfer in slot `index`: mostly to the slot's own pads.
pub fn far_target(index: usize, wide: bool) -> (u32, u16) {
    let to_32 = (PAD as u32, code_selector(Mode::Compat32, index));
    let to_16 = (PAD_16 as u32, code_selector(Mode::Compat16, index));
    match index % 8 {
        0 | 1 => to_32,
        2 | 3 => to_16,
        4 if wide => ((slot(index) + PAD_64) as u32, USER_CODE_64),
        4 => (to_16.0, to_16.1 & !3),
        // Beyond the limit.
        5 => (CODE_SLOT as u32 + index as u32, to_32.1),
        _ => (PAD as u32, any_selector(index / 8)),
    }
}
