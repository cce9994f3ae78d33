//! An observer that writes each event as KVM's trace does.

use umbra_memslots::{AddressSpaceId, Generation, Gfn, Gpa, Gva};
use umbra_mmu::mmio::{MmioGen, MmioSpte};
use umbra_mmu::observer::FastFault;
use umbra_mmu::shadow::PageRole;
use umbra_mmu::tables::EntryLocation;
use umbra_mmu::x86::{GuestPte, PageFaultCode};
use umbra_mmu::{AccessMask, MmuObserver};

#[derive(Default)]
pub struct Recorder(pub Vec<String>);

impl Recorder {
    fn page(&mut self, name: &str, gfn: Gfn, role: PageRole) {
        self.0
            .push(format!("kvm_mmu_{name} gfn {gfn:x} role {:x}", role.word()));
    }

    /// The events so far, which are forgotten.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.0)
    }
}

impl MmuObserver for Recorder {
    fn pagetable_walk(&mut self, gva: Gva, code: PageFaultCode) {
        self.0.push(format!(
            "kvm_mmu_pagetable_walk addr {:x} pferr {:x}",
            gva.get(),
            code.raw()
        ));
    }

    fn paging_element(&mut self, pte: GuestPte, level: u8) {
        self.0
            .push(format!("kvm_mmu_paging_element pte {:x} level {level}", pte.raw()));
    }

    fn set_accessed_bit(&mut self, gpa: Gpa) {
        self.0.push(format!("kvm_mmu_set_accessed_bit gpa {:x}", gpa.get()));
    }

    fn set_dirty_bit(&mut self, gpa: Gpa) {
        self.0.push(format!("kvm_mmu_set_dirty_bit gpa {:x}", gpa.get()));
    }

    fn walker_error(&mut self, code: PageFaultCode) {
        self.0.push(format!("kvm_mmu_walker_error pferr {:x}", code.raw()));
    }

    fn get_page(&mut self, gfn: Gfn, role: PageRole, created: bool) {
        let how = if created { "new" } else { "existing" };
        self.0
            .push(format!("kvm_mmu_get_page gfn {gfn:x} role {:x} {how}", role.word()));
    }

    fn sync_page(&mut self, gfn: Gfn, role: PageRole) {
        self.page("sync_page", gfn, role);
    }

    fn unsync_page(&mut self, gfn: Gfn, role: PageRole) {
        self.page("unsync_page", gfn, role);
    }

    fn prepare_zap_page(&mut self, gfn: Gfn, role: PageRole) {
        self.page("prepare_zap_page", gfn, role);
    }

    fn spte_requested(&mut self, gfn: Gfn, address: Option<u64>, level: u8) {
        let pfn = address.map_or(1 << 63, |address| address >> 12);
        self.0
            .push(format!("kvm_mmu_spte_requested gfn {gfn:x} pfn {pfn:x} level {level}"));
    }

    fn mark_mmio_spte(&mut self, _at: EntryLocation, gfn: Gfn, access: AccessMask, generation: MmioGen) {
        self.0.push(format!(
            "mark_mmio_spte gfn {gfn:x} access {:x} gen {:x}",
            access.bits(),
            generation.get()
        ));
    }

    fn check_mmio_spte(&mut self, spte: MmioSpte, _current: Generation, made: MmioGen, valid: bool) {
        let valid = u8::from(valid);
        self.0.push(format!(
            "check_mmio_spte spte {:x} spte-gen {:x} valid {valid}",
            spte.raw(),
            made.get()
        ));
    }

    fn handle_mmio_page_fault(&mut self, gva: Option<Gva>, gfn: Gfn, access: AccessMask) {
        let gva = gva.map_or(0, Gva::get);
        self.0.push(format!(
            "handle_mmio_page_fault addr {gva:x} gfn {gfn:x} access {:x}",
            access.bits()
        ));
    }

    fn set_spte(&mut self, _at: EntryLocation, gfn: Gfn, level: u8, spte: u64) {
        self.0
            .push(format!("kvm_mmu_set_spte gfn {gfn:x} spte {spte:x} level {level}"));
    }

    fn fast_page_fault(&mut self, fault: FastFault) {
        self.0.push(format!(
            "fast_page_fault gva {:x} error_code {:x} old {:x} new {:x} spurious {} fixed {}",
            fault.gva.get(),
            fault.code.raw(),
            fault.old,
            fault.new,
            u8::from(fault.spurious),
            u8::from(fault.fixed)
        ));
    }

    fn zap_all_fast(&mut self, _space: AddressSpaceId, _tables_in_use: u32) {
        self.0.push("kvm_mmu_zap_all_fast".to_owned());
    }
}
