//! [`Recorder`]: an observer of our MMU that keeps what it is told in the form of KVM's trace.

use crate::trace::Event;
use crate::trace::event::{Page, without_address};
use umbra_memslots::{AddressSpaceId, Generation, Gfn, Gpa, Gva};
use umbra_mmu::mmio::{MmioGen, MmioSpte};
use umbra_mmu::observer::FastFault;
use umbra_mmu::shadow::{GenerationSpans, PageRole};
use umbra_mmu::tables::EntryLocation;
use umbra_mmu::x86::{GuestPte, PageFaultCode};
use umbra_mmu::{AccessMask, MmuObserver};

/// What happened so far.
#[derive(Default, Debug)]
pub struct Recorder(pub Vec<Event>);

impl MmuObserver for Recorder {
    fn pagetable_walk(&mut self, gva: Gva, code: PageFaultCode) {
        self.0.push(Event::PagetableWalk {
            address: gva,
            code: code.raw(),
        });
    }

    fn paging_element(&mut self, pte: GuestPte, level: u8) {
        self.0.push(Event::PagingElement { pte: pte.raw(), level });
    }

    fn set_accessed_bit(&mut self, gpa: Gpa) {
        self.0.push(Event::SetAccessedBit { gpa });
    }

    fn set_dirty_bit(&mut self, gpa: Gpa) {
        self.0.push(Event::SetDirtyBit { gpa });
    }

    fn walker_error(&mut self, code: PageFaultCode) {
        self.0.push(Event::WalkerError { code: code.raw() });
    }

    fn get_page(&mut self, gfn: Gfn, role: PageRole, created: bool) {
        let page = Page::new(gfn, role);
        self.0.push(Event::GetPage { page, created });
    }

    fn sync_page(&mut self, gfn: Gfn, role: PageRole) {
        self.0.push(Event::SyncPage(Page::new(gfn, role)));
    }

    fn unsync_page(&mut self, gfn: Gfn, role: PageRole) {
        self.0.push(Event::UnsyncPage(Page::new(gfn, role)));
    }

    fn prepare_zap_page(&mut self, gfn: Gfn, role: PageRole) {
        self.0.push(Event::PrepareZapPage {
            page: Page::new(gfn, role),
            invalid: false,
        });
    }

    fn spte_requested(&mut self, gfn: Gfn, address: Option<u64>, level: u8) {
        self.0.push(Event::SpteRequested {
            gfn,
            memory: address.is_some(),
            level,
        });
    }

    fn mark_mmio_spte(&mut self, _at: EntryLocation, gfn: Gfn, access: AccessMask, generation: MmioGen) {
        self.0.push(Event::MarkMmioSpte {
            gfn,
            // KVM prints the low bits of the SPTE, of which the lowest says that it is present.
            access: access | AccessMask::EXEC,
            generation: generation.get(),
        });
    }

    fn check_mmio_spte(&mut self, spte: MmioSpte, current: Generation, made: MmioGen, valid: bool) {
        self.0.push(Event::CheckMmioSpte {
            spte: spte.raw(),
            kvm_generation: MmioGen::cut(current, GenerationSpans::KVM).get(),
            spte_generation: made.get(),
            valid,
        });
    }

    fn handle_mmio_page_fault(&mut self, gva: Option<Gva>, gfn: Gfn, access: AccessMask) {
        self.0.push(Event::HandleMmioPageFault {
            address: gva.map_or(0, Gva::get),
            gfn,
            access,
        });
    }

    fn set_spte(&mut self, _at: EntryLocation, gfn: Gfn, level: u8, spte: u64) {
        self.0.push(Event::SetSpte {
            gfn,
            level,
            flags: without_address(spte),
        });
    }

    fn fast_page_fault(&mut self, fault: FastFault) {
        self.0.push(Event::FastPageFault {
            address: fault.gva,
            old: without_address(fault.old),
            new: without_address(fault.new),
            spurious: fault.spurious,
            fixed: fault.fixed,
        });
    }

    fn zap_all_fast(&mut self, _space: AddressSpaceId, _tables_in_use: u32) {
        self.0.push(Event::ZapAllFast);
    }
}
