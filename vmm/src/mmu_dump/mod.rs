//! `vmm mmu dump`: a guest's page tables beside the tables that the MMU made, as a tree for people.
//!
//! [`view`] decides what is said on which line, `words` how an entry is put into words; [`text`] prints, [`svg`] draws.

pub mod svg;
pub mod text;
pub mod view;
mod words;

use umbra_memslots::{AddressSpaceId, Generation, GuestMemory};
use umbra_mmu::direct::DirectMmu;
use umbra_mmu::guest_walk::{PdpteLoad, load_pdptes};
use umbra_mmu::inspect::{Limits, Listing, TableSource, guest_tables, our_tables};
use umbra_mmu::shadow::{EntryFormat, HostParams, SpteLayout};
use umbra_mmu::x86::{GuestCpu, PagingMode, PagingRegs, PagingState};
use umbra_vcpu::control::FinalState;

/// What the MMU made, to be shown beside the guest's tables.
#[derive(Clone, Debug)]
pub enum Ours {
    /// Tables that the CPU walked in the place of the guest's: by gva.
    Shadow(Listing),
    /// What is known of MMIO: by gpa.
    Direct(Listing),
}

/// Everything that a dump shows.
#[derive(Clone, Debug)]
pub struct Dump {
    /// Which vCPU's tables.
    pub vcpu: u32,
    /// Its registers, as far as they matter.
    pub state: PagingState,
    /// The guest's tables.
    pub guest: Listing,
    /// Ours.
    pub ours: Ours,
    /// The format of ours.
    pub layout: SpteLayout,
    /// The memory slots' generation, by which freshness is judged.
    pub generation: Generation,
}

impl Dump {
    /// Lists the tables of a vCPU that has ended, and of the MMU: its shadow tables if the backend has such, otherwise the
    /// direct tables.
    pub fn take(
        vcpu: u32,
        last: &FinalState,
        memory: &impl GuestMemory,
        direct: &DirectMmu,
        generation: Generation,
    ) -> Self {
        let limits = Limits::default();
        let state = paging(last, memory);
        let (ours, layout) = match &last.tables {
            Some(tables) => {
                let found = our_tables(&*tables.source, tables.root, generation, limits);
                (Ours::Shadow(found), *tables.source.layout())
            }
            None => {
                let root = direct.root(AddressSpaceId::Normal);
                let found = our_tables(direct, root, generation, limits);
                (Ours::Direct(found), *TableSource::layout(direct))
            }
        };
        Self {
            vcpu,
            state,
            guest: guest_tables(&state, memory, limits),
            ours,
            layout,
            generation,
        }
    }
}

/// The paging that a vCPU's registers put in force.
fn paging(last: &FinalState, memory: &impl GuestMemory) -> PagingState {
    let mut regs = PagingRegs {
        cr0: last.system.cr0,
        cr3: last.system.cr3,
        cr4: last.system.cr4,
        efer: last.system.efer,
        rflags: last.regs.rflags,
        pkru: 0,
        pdptes: [0; 4],
        cpu: guest_cpu(),
    };
    if PagingMode::of(&regs) == PagingMode::Pae
        && let PdpteLoad::Loaded(pdptes) = load_pdptes(&regs, memory)
    {
        regs.pdptes = pdptes;
    }
    PagingState::new(&regs)
}

/// The guest's CPU is the host's.
fn guest_cpu() -> GuestCpu {
    const GIGABYTE_PAGES: u32 = 1 << 26;
    let cpuid = crate::machine::cpuid;
    let vendor = cpuid(0);
    let is_amd = [vendor.ebx, vendor.edx, vendor.ecx] == [0x6874_7541, 0x6974_6e65, 0x444d_4163];
    GuestCpu {
        physical_bits: HostParams::from_cpuid(EntryFormat::X86, cpuid).physical_bits,
        gigabyte_pages: cpuid(0x8000_0001).edx & GIGABYTE_PAGES != 0,
        pse36: true,
        upper_global_reserved: is_amd,
    }
}

#[cfg(test)]
mod tests;
