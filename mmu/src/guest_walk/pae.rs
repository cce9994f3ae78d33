//! PAE paging (SDM vol. 3A, 4.4): four PDPTE registers over two levels of 512 eight-byte entries.

use super::path::Path;
use super::result::{GuestWalk, WalkFailure};
use crate::x86::reserved::pdpte_reserved;
use crate::x86::{FaultCause, GuestPte, PagingRegs};
use umbra_memslots::{EntrySize, Gpa, GuestMemory, MemoryFault};

/// Walks down from the PDPTE registers.
pub(super) fn walk<M: GuestMemory>(mut path: Path<'_, M>) -> Result<GuestWalk, WalkFailure> {
    let gva = path.gva().get();
    let [first, second, third, fourth] = path.state().pdptes;
    let pdpte = match gva >> 30 & 3 {
        0 => first,
        1 => second,
        2 => third,
        _ => fourth,
    };
    // A PDPTE has no permissions, and its reserved bits were looked at when it was loaded.
    let pdpte = GuestPte::new(pdpte);
    if !pdpte.has(GuestPte::PRESENT) {
        return Err(path.fault(3, 0, FaultCause::NotPresent));
    }
    let index = |shift: u32| gva >> shift & 0x1ff;
    let (pde, large) = path.step(2, pdpte.address(), index(21), |pde| pde.has(GuestPte::SIZE))?;
    if large {
        return path.arrive(Gpa::new(pde.address().get() >> 21 << 21), 21);
    }
    let (pte, _) = path.step(1, pde.address(), index(12), |_| true)?;
    path.arrive(pte.address(), 12)
}

/// A PDPTE that can't be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BadPdpte {
    /// Which of the four.
    pub index: u8,
    /// Its bits.
    pub entry: u64,
    /// Those of them that are reserved.
    pub reserved: u64,
}

/// What loading the PDPTE registers came to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PdpteLoad {
    /// They are loaded.
    Loaded([u64; 4]),
    /// #GP(0): a present one has reserved bits set. The instruction that would have loaded them did nothing.
    Fault(BadPdpte),
    /// There is no memory where CR3 points. On a real machine they would be all ones; KVM raises #GP(0), too.
    NoMemory(MemoryFault),
    /// The slot is being changed: try again.
    Retry,
}

/// Loads the PDPTE registers, as a write of CR3 does with PAE paging, and as writes of CR0 and CR4 do that enter it or
/// change how it works (SDM vol. 3A, 4.4.1; KVM's `load_pdptrs`). `regs.pdptes` is not looked at.
pub fn load_pdptes<M: GuestMemory>(regs: &PagingRegs, memory: &M) -> PdpteLoad {
    let table = Gpa::new(regs.cr3 & 0xffff_ffe0);
    let reserved = pdpte_reserved(&regs.cpu);
    let mut loaded = [0; 4];
    for (index, register) in (0u8..).zip(&mut loaded) {
        match memory.read_entry(table.wrapping_add(8 * u64::from(index)), EntrySize::B8) {
            Ok(entry) if entry & GuestPte::PRESENT != 0 && entry & reserved != 0 => {
                return PdpteLoad::Fault(BadPdpte {
                    index,
                    entry,
                    reserved: entry & reserved,
                });
            }
            Ok(entry) => *register = entry,
            Err(MemoryFault::BeingRemoved { .. }) => return PdpteLoad::Retry,
            Err(fault) => return PdpteLoad::NoMemory(fault),
        }
    }
    PdpteLoad::Loaded(loaded)
}
