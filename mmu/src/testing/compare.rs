//! The guest walker and the model of the hardware, side by side.

use super::memory::WalkMemory;
use crate::guest_walk::{GuestWalk, WalkFailure, walk};
use crate::hw_model::{HwAccess, HwCpu, HwOutcome, HwPage, hw_walk};
use crate::x86::{Access, AccessKind, PagingRegs, PagingState, Privilege};
use alloc::format;
use alloc::string::String;
use umbra_memslots::Gva;

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
pub fn walk_both(regs: &PagingRegs, memory: &WalkMemory, gva: u64, access: Access) -> Result<HwOutcome, String> {
    let ours = walk(&PagingState::new(regs), memory, Gva::new(gva), access);
    let theirs = hw_walk(&hw_cpu(regs), memory, gva, hw_access(access));
    if as_hardware(&ours) == theirs {
        return Ok(theirs);
    }
    Err(format!(
        "{access:?} to {gva:#x} under {regs:x?}:\n walker   {ours:x?}\n hardware {theirs:x?}"
    ))
}
