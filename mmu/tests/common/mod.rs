//! What several tests share: a small memory that both the guest walker and the model of the hardware can use, and the
//! comparison of the two.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::atomic::{AtomicU64, Ordering};
use umbra_memslots::{EntrySize, Exchange, Gpa, GuestMemory, Gva, MemoryFault};
use umbra_mmu::guest_walk::{GuestWalk, WalkFailure, walk};
use umbra_mmu::hw_model::{HwAccess, HwCpu, HwMemory, HwOutcome, HwPage, hw_walk};
use umbra_mmu::x86::{Access, AccessKind, GuestCpu, PagingRegs, PagingState, Privilege};

/// A few pages from address 0 on. Outside, the guest walker finds no slot and the hardware reads zeros (which is how KVM
/// makes a missing table look).
pub struct Memory {
    words: Vec<AtomicU64>,
}

impl Memory {
    pub fn new(pages: usize) -> Self {
        Self {
            words: (0..pages * 512).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub fn set(&self, address: u64, value: u64) {
        self.words[usize::try_from(address / 8).unwrap()].store(value, Ordering::SeqCst);
    }

    pub fn set32(&self, address: u64, value: u32) {
        let (shift, word) = (address % 8 * 8, self.get(address & !7));
        self.set(address & !7, word & !(0xffff_ffff << shift) | u64::from(value) << shift);
    }

    pub fn get(&self, address: u64) -> u64 {
        self.words[usize::try_from(address / 8).unwrap()].load(Ordering::SeqCst)
    }

    /// The first words of each page: all that the random tests' addresses lead to.
    pub fn contents(&self) -> Vec<u64> {
        self.used().map(|word| word.load(Ordering::SeqCst)).collect()
    }

    pub fn restore(&self, contents: &[u64]) {
        for (word, value) in self.used().zip(contents) {
            word.store(*value, Ordering::SeqCst);
        }
    }

    fn used(&self) -> impl Iterator<Item = &AtomicU64> {
        self.words.chunks(512).flat_map(|page| &page[..8])
    }

    fn word(&self, address: u64) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(address / 8).ok()?)
    }

    fn exchange(&self, address: u64, bytes: u64, current: u64, new: u64) -> Option<Exchange> {
        let word = self.word(address)?;
        let shift = address % 8 * 8;
        let mask = if bytes == 4 { 0xffff_ffff << shift } else { u64::MAX };
        let old = word.load(Ordering::SeqCst);
        if old & mask != current << shift & mask {
            return Some(Exchange::Differs((old & mask) >> shift));
        }
        word.store(old & !mask | (new << shift & mask), Ordering::SeqCst);
        Some(Exchange::Done)
    }

    fn entry(&self, address: u64, bytes: u64) -> Option<u64> {
        let word = self.word(address)?.load(Ordering::SeqCst);
        Some(if bytes == 4 {
            word >> (address % 8 * 8) & 0xffff_ffff
        } else {
            word
        })
    }
}

impl GuestMemory for Memory {
    fn read(&self, gpa: Gpa, _buffer: &mut [u8]) -> Result<(), MemoryFault> {
        panic!("a walker reads entries, not bytes ({gpa})")
    }

    fn write(&self, gpa: Gpa, _data: &[u8]) -> Result<(), MemoryFault> {
        panic!("a walker writes entries, not bytes ({gpa})")
    }

    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault> {
        self.entry(gpa.get(), size.bytes()).ok_or(MemoryFault::NoSlot { gpa })
    }

    fn compare_exchange_entry(&self, gpa: Gpa, size: EntrySize, old: u64, new: u64) -> Result<Exchange, MemoryFault> {
        self.exchange(gpa.get(), size.bytes(), old, new)
            .ok_or(MemoryFault::NoSlot { gpa })
    }
}

impl HwMemory for Memory {
    fn load(&self, address: u64, bytes: u64) -> u64 {
        self.entry(address, bytes).unwrap_or(0)
    }

    fn set_bits(&self, address: u64, bytes: u64, expected: u64, bits: u64) -> bool {
        self.exchange(address, bytes, expected, expected | bits) != Some(Exchange::Differs(expected))
            && self.entry(address, bytes).is_none_or(|now| now & bits == bits)
    }
}

/// The same registers for the model.
pub fn hw_cpu(regs: &PagingRegs) -> HwCpu {
    HwCpu {
        cr0: regs.cr0,
        cr3: regs.cr3,
        cr4: regs.cr4,
        efer: regs.efer,
        rflags: regs.rflags,
        pkru: regs.pkru,
        pdpte: regs.pdptes,
        maxphyaddr: regs.cpu.physical_bits,
        page1gb: regs.cpu.gigabyte_pages,
        pse36: regs.cpu.pse36,
        amd: regs.cpu.upper_global_reserved,
    }
}

/// The same access for the model.
pub fn hw_access(access: Access) -> HwAccess {
    HwAccess {
        write: access.kind == AccessKind::Write,
        fetch: access.kind == AccessKind::Fetch,
        cpl3: access.privilege == Privilege::User,
        implicit: access.privilege == Privilege::Implicit,
    }
}

/// The guest walker's result as the hardware would put it.
pub fn as_hardware(result: &Result<GuestWalk, WalkFailure>) -> HwOutcome {
    match result {
        Ok(walk) => HwOutcome::Access(HwPage {
            address: walk.gpa.get(),
            size: 1 << walk.page_shift,
        }),
        Err(WalkFailure::Fault(fault)) => HwOutcome::PageFault { code: fault.code.raw() },
        Err(WalkFailure::NonCanonical(_)) => HwOutcome::GeneralProtection,
        Err(WalkFailure::Retry) => panic!("nobody changes the memory, yet the walk wants to be done again"),
    }
}

/// Walks with both and says what came out, if it was the same; `memory` is left as the guest walker left it.
pub fn walk_both(regs: &PagingRegs, memory: &Memory, gva: u64, access: Access) -> Result<HwOutcome, String> {
    let ours = walk(&PagingState::new(regs), memory, Gva::new(gva), access);
    let theirs = hw_walk(&hw_cpu(regs), memory, gva, hw_access(access));
    if as_hardware(&ours) == theirs {
        return Ok(theirs);
    }
    Err(format!(
        "{access:?} to {gva:#x} under {regs:x?}:\n walker   {ours:x?}\n hardware {theirs:x?}"
    ))
}

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
