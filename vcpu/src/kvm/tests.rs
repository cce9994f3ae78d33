//! Facts about the host's KVM that this backend relies on.

use super::*;
use crate::backend::VcpuBackend;

/// Opens KVM, or says why the test is skipped.
fn host() -> Option<KvmHost> {
    KvmHost::open().map_err(|error| eprintln!("skipped: {error}")).ok()
}

fn vm(options: VmOptions) -> Option<KvmVm> {
    Some(KvmVm::new(&host()?, options).unwrap())
}

#[test]
fn every_irqchip_makes_vcpus_up_to_the_limit_and_no_further() {
    for irqchip in [Irqchip::Kernel, Irqchip::Split { pins: 24 }] {
        let Some(vm) = vm(VmOptions {
            irqchip,
            vcpus: 4,
            ..VmOptions::default()
        }) else {
            return;
        };
        let vcpus: Vec<_> = (0..4).map(|id| vm.create_vcpu(id).unwrap()).collect();
        assert_eq!(vcpus.iter().map(KvmVcpu::id).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(matches!(
            vm.create_vcpu(1),
            Err(KvmError::Ioctl {
                operation: "KVM_CREATE_VCPU",
                ..
            })
        ));
        assert!(matches!(
            vm.create_vcpu(255),
            Err(KvmError::TooManyVcpus { id: 255, .. })
        ));
    }
}

#[test]
fn new_vcpu_has_the_reset_state_that_is_not_set_here() {
    let Some(vm) = vm(VmOptions::default()) else { return };
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let fpu = vcpu.fpu().unwrap();
    assert_eq!((fpu.0, fpu.1), (0x37f, 0x1f80), "x87 control word and MXCSR");
    assert_eq!(vcpu.regs().unwrap().rip, 0xfff0);
    let system = vcpu.system_regs().unwrap();
    assert_eq!((system.cs.selector, system.cs.base), (0xf000, 0xffff_0000));
    vcpu.set_system_regs(&system).unwrap();
    assert_eq!(vcpu.system_regs().unwrap(), system);
}

#[test]
fn impossible_system_registers_are_refused_when_set() {
    let Some(vm) = vm(VmOptions::default()) else { return };
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut system = vcpu.system_regs().unwrap();
    // Paging without protection.
    system.cr0 = 1 << 31;
    assert!(vcpu.set_system_regs(&system).is_err());
}

#[test]
fn caps_name_every_capability_once() {
    let Some(host) = host() else { return };
    let caps = host.caps();
    assert!(caps.has(Capability::ImmediateExit));
    assert_eq!(caps.get(Capability::Memslots), host.cap(Capability::Memslots));
    assert_eq!(caps.iter().count(), Capability::ALL.len());
    for (index, capability) in Capability::ALL.iter().enumerate() {
        assert!(
            !Capability::ALL[..index]
                .iter()
                .any(|other| other.name() == capability.name())
        );
    }
}
