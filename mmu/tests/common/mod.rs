//! Registers for tests of walks.
#![expect(clippy::panic, reason = "a test may panic")]
#![allow(dead_code, reason = "each test uses a part of it")]

use umbra_mmu::x86::{GuestCpu, PagingRegs};

pub const PG: u64 = 1 << 31;
pub const WP: u64 = 1 << 16;
pub const PSE: u64 = 1 << 4;
pub const PAE: u64 = 1 << 5;
pub const LA57: u64 = 1 << 12;
pub const SMEP: u64 = 1 << 20;
pub const SMAP: u64 = 1 << 21;
pub const PKE: u64 = 1 << 22;
pub const LMA: u64 = 1 << 10;
pub const NXE: u64 = 1 << 11;
pub const AC: u64 = 1 << 18;

/// Registers for paging with `levels` levels (2 = 32-bit, 3 = PAE), root at `cr3`.
pub fn regs(levels: u8, cr3: u64) -> PagingRegs {
    let (cr4, efer) = match levels {
        0 | 2 => (0, 0),
        3 => (PAE, 0),
        4 => (PAE, LMA),
        5 => (PAE | LA57, LMA),
        _ => panic!("{levels} levels"),
    };
    PagingRegs {
        cr0: if levels == 0 { 0 } else { PG },
        cr3,
        cr4,
        efer,
        rflags: 0,
        pkru: 0,
        pdptes: [0; 4],
        cpu: GuestCpu::intel(46),
    }
}
