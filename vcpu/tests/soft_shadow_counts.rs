//! What the shadow MMU counts for a software CPU is what KVM would have counted for the same guest.
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::code_asm::*;
use soft_machine::Machine;
use umbra_memslots::{Gpa, GuestMemory};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};

const CODE: u64 = 0x1000;
const DIRECTORY: u64 = 0x4000;
const MMIO: u64 = 0x1000_0000;

#[test]
fn fault_of_the_guest_on_known_mmio_is_one_hit_of_the_cache() {
    let machine = Machine::new(0x1_0000);
    let mut a = CodeAssembler::new(32).unwrap();
    a.mov(eax, dword_ptr(MMIO)).unwrap();
    a.mov(eax, dword_ptr(MMIO + 4)).unwrap();
    // The page is read-only, and there are no handlers.
    a.mov(dword_ptr(MMIO + 8), eax).unwrap();
    machine.ram.write(Gpa::new(CODE), &a.assemble(CODE).unwrap()).unwrap();
    // Two pages of 4 MiB, mapped to themselves.
    for (page, flags) in [(0, 0x83), (MMIO, 0x81)] {
        let entry = u32::try_from(page).unwrap() | flags;
        let at = Gpa::new(DIRECTORY + 4 * (page >> 22));
        machine.ram.write(at, &entry.to_le_bytes()).unwrap();
    }
    let mut vcpu = machine.vcpu(CODE, 0x9000);
    let mut system = vcpu.system_regs().unwrap();
    // Paging, with WP and PSE.
    (system.cr0, system.cr3, system.cr4) = (0x8001_0011, DIRECTORY, 0x10);
    system.idt.limit = 0;
    vcpu.set_system_regs(&system).unwrap();
    for _ in 0..2 {
        let exit = vcpu.run(VmEntry::Resume);
        let exit = exit.or_else(|_| vcpu.run(VmEntry::Value(0))).unwrap();
        assert!(matches!(exit, VmExit::Mmio { .. }), "{exit:?}");
    }
    let before = *vcpu.shadow_stats();
    assert_eq!(vcpu.run(VmEntry::Value(0)).unwrap(), VmExit::Shutdown);
    let after = *vcpu.shadow_stats();
    let more = |count: fn(&umbra_mmu::shadow::ShadowStats) -> u64| count(&after) - count(&before);
    assert_eq!(more(|stats| stats.faults), 1);
    assert_eq!((more(|stats| stats.cache_hits), more(|stats| stats.spte_hits)), (1, 0));
}
