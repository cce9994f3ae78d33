//! [`MmuObserver`]: what happens in the MMU, named and numbered like KVM's `kvmmmu` tracepoints, so that one can be
//! compared with the other line for line.

use crate::access_mask::AccessMask;
use crate::mmio::{MmioGen, MmioSpte};
use crate::shadow::PageRole;
use crate::tables::EntryLocation;
use crate::x86::{GuestPte, PageFaultCode};
use umbra_memslots::{AddressSpaceId, Generation, Gfn, Gpa, Gva};

/// Declares the events, with bodies that do nothing, and passes them on through references.
macro_rules! events {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),*);)*) => {
        /// Takes note of events. All methods do nothing by default; calls are static, so that not observing costs
        /// nothing.
        ///
        /// Some are made with the MMU's lock held: an observer must not call back into the MMU.
        pub trait MmuObserver {
            $(
                $(#[$meta])*
                #[inline]
                fn $name(&mut self, $($argument: $type),*) {
                    let _ = ($($argument,)*);
                }
            )*
        }

        impl<O: MmuObserver> MmuObserver for &mut O {
            $(
                #[inline]
                fn $name(&mut self, $($argument: $type),*) {
                    (**self).$name($($argument),*);
                }
            )*
        }
    };
}

events! {
    /// `kvm_mmu_pagetable_walk`: a walk of the guest's tables begins. The code is what the CPU reported, without RSVD.
    fn pagetable_walk(gva: Gva, code: PageFaultCode);

    /// `kvm_mmu_paging_element`: an entry of the guest's was read, present or not.
    fn paging_element(pte: GuestPte, level: u8);

    /// `kvm_mmu_set_accessed_bit`: the walk sets the accessed flag of the guest's entry there (in a read-only slot it
    /// stays clear).
    fn set_accessed_bit(gpa: Gpa);

    /// `kvm_mmu_set_dirty_bit`: the same for the dirty flag.
    fn set_dirty_bit(gpa: Gpa);

    /// `kvm_mmu_walker_error`: the walk ended in a fault for the guest, with this code.
    fn walker_error(code: PageFaultCode);

    /// `kvm_mmu_get_page`: a shadow page was asked for, and found or `created`.
    fn get_page(gfn: Gfn, role: PageRole, created: bool);

    /// `kvm_mmu_sync_page`: a shadow page is brought up to date with the guest's table, or taken out of use while it
    /// wasn't.
    fn sync_page(gfn: Gfn, role: PageRole);

    /// `kvm_mmu_unsync_page`: the guest may now write to the table that this page is a shadow of.
    fn unsync_page(gfn: Gfn, role: PageRole);

    /// `kvm_mmu_prepare_zap_page`: a shadow page is taken out of use.
    fn prepare_zap_page(gfn: Gfn, role: PageRole);

    /// `kvm_mmu_spte_requested`: a leaf of `level` is to be made for `gfn`. `address` is where the walker finds the
    /// memory (KVM prints its frame number), `None` for MMIO.
    fn spte_requested(gfn: Gfn, address: Option<u64>, level: u8);

    /// `mark_mmio_spte`: an MMIO SPTE was made.
    fn mark_mmio_spte(at: EntryLocation, gfn: Gfn, access: AccessMask, generation: MmioGen);

    /// `check_mmio_spte`: an MMIO SPTE was compared with the current generation.
    fn check_mmio_spte(spte: MmioSpte, current: Generation, made: MmioGen, valid: bool);

    /// `handle_mmio_page_fault`: an access was recognised as MMIO by a fresh MMIO SPTE. `gva` is `None` on direct
    /// tables, where KVM prints 0.
    fn handle_mmio_page_fault(gva: Option<Gva>, gfn: Gfn, access: AccessMask);

    /// `fast_page_fault`: a write that was forbidden was looked at without the lock.
    fn fast_page_fault(fault: FastFault);

    /// `kvm_mmu_set_spte`: a leaf was installed.
    fn set_spte(at: EntryLocation, gfn: Gfn, level: u8, spte: u64);

    /// `kvm_mmu_zap_all_fast`: everything that an address space's tables knew was thrown away.
    fn zap_all_fast(address_space: AddressSpaceId, tables_in_use: u32);
}

/// What came of a write that was looked at without the lock (`fast_page_fault`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FastFault {
    /// The address.
    pub gva: Gva,
    /// What the CPU reported.
    pub code: PageFaultCode,
    /// The entry at which the walk ended.
    pub at: EntryLocation,
    /// What was there.
    pub old: u64,
    /// What is there now.
    pub new: u64,
    /// The write was allowed already.
    pub spurious: bool,
    /// It is allowed now. If neither, the slow path follows.
    pub fixed: bool,
}

/// Observes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoObserver;

impl MmuObserver for NoObserver {}
