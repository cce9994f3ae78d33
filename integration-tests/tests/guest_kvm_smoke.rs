//! Stock KVM runs a guest here: the test that tells a broken lab from a broken Umbra, so it uses no Umbra crate.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION is told a raw address")]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

/// Where the guest's only page is in its memory.
const CODE: u64 = 0x1000;

/// `in al, 0x10; mov [0x8000], al; mov al, [0x8001]; out 0x11, al; hlt`
const PROGRAM: [u8; 11] = [0xe4, 0x10, 0xa2, 0x00, 0x80, 0xa0, 0x01, 0x80, 0xe6, 0x11, 0xf4];

/// One page, aligned as KVM wants it.
#[repr(align(4096))]
struct Page([u8; 4096]);

#[test]
fn real_mode_guest_port_and_mmio_accesses_exit() {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("skipped: /dev/kvm: {error}");
            return;
        }
    };
    let mut page = Box::new(Page([0; 4096]));
    page.0[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    let vm = kvm.create_vm().expect("KVM makes a VM");
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: CODE,
        memory_size: 4096,
        userspace_addr: page.0.as_mut_ptr() as u64,
    };
    // SAFETY: the page outlives `vm` (declared before it), and nothing else touches it while the guest runs.
    unsafe { vm.set_user_memory_region(slot) }.expect("KVM takes a slot");
    let mut vcpu = vm.create_vcpu(0).expect("KVM makes a vCPU");
    let mut sregs = vcpu.get_sregs().expect("has segments");
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).expect("takes segments");
    let mut regs = vcpu.get_regs().expect("has registers");
    (regs.rip, regs.rflags) = (CODE, 2);
    vcpu.set_regs(&regs).expect("takes registers");

    let mut seen = Vec::new();
    loop {
        match vcpu.run().expect("KVM_RUN") {
            VcpuExit::IoIn(port, data) => {
                seen.push(format!("in {port:#x}"));
                data[0] = 0x42;
            }
            VcpuExit::IoOut(port, data) => seen.push(format!("out {port:#x} {:#x}", data[0])),
            VcpuExit::MmioRead(address, data) => {
                seen.push(format!("read {address:#x}"));
                data[0] = 0x43;
            }
            VcpuExit::MmioWrite(address, data) => seen.push(format!("write {address:#x} {:#x}", data[0])),
            VcpuExit::Hlt => break,
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    assert_eq!(seen, ["in 0x10", "write 0x8000 0x42", "read 0x8001", "out 0x11 0x43"]);
}
