//! From a CPU's registers to what the MMU wants to know of them; and the PDPTE registers, which are loaded from memory at
//! certain moments only (SDM vol. 3A section 4.4.1).

use crate::emulate::state::pae_paging;
use crate::emulate::{Exception, Stop};
use crate::regs::SystemRegs;
use umbra_memslots::GuestMemory;
use umbra_mmu::guest_walk::{PdpteLoad, load_pdptes};
use umbra_mmu::x86::{GuestCpu, PagingRegs};

/// The registers that address translation depends on. `pdptes` count only with PAE paging.
pub(crate) const fn registers(sys: &SystemRegs, pdptes: [u64; 4], rflags: u64, pkru: u32, cpu: GuestCpu) -> PagingRegs {
    PagingRegs {
        cr0: sys.cr0,
        cr3: sys.cr3,
        cr4: sys.cr4,
        efer: sys.efer,
        rflags,
        pkru,
        pdptes,
        cpu,
    }
}

/// The PDPTEs that CR3 leads to.
///
/// # Errors
/// #GP(0) if one has reserved bits or there is no memory; [`Stop::Contended`] if the memory is just going away.
pub(crate) fn read_pdptes<M: GuestMemory>(sys: &SystemRegs, cpu: GuestCpu, memory: &M) -> Result<[u64; 4], Stop> {
    match load_pdptes(&registers(sys, [0; 4], 0, 0, cpu), memory) {
        PdpteLoad::Loaded(entries) => Ok(entries),
        PdpteLoad::Fault(_) | PdpteLoad::NoMemory(_) => Err(Exception::gp(0).into()),
        PdpteLoad::Retry => Err(Stop::Contended),
    }
}

/// The PDPTEs of a CPU whose registers were set from outside: as if CR3 had just been loaded. Those that can't be loaded
/// map nothing.
pub(crate) fn pdptes_of<M: GuestMemory>(sys: &SystemRegs, cpu: GuestCpu, memory: &M) -> [u64; 4] {
    if pae_paging(sys) {
        read_pdptes(sys, cpu, memory).unwrap_or_default()
    } else {
        [0; 4]
    }
}
