//! The state that firmware would leave a processor in and that KVM does not set by itself.
//!
//! What KVM sets (checked by this crate's tests): the x87 control word 0x37f, MXCSR 0x1f80, a TSC that starts at 0 on
//! all vCPUs together, every other MSR at its reset value.

use super::error::KvmError;
use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// IA32_MISC_ENABLE (SDM vol. 4 table 2-2): bit 0, fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE (SDM vol. 3A section 12.11.2.1): bit 11, MTRRs on; type 6, write-back.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRRS_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offsets of the local vector table's pin entries in the APIC page (SDM vol. 3A table 11-1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes, LVT bits 10:8.
const DELIVERY_MASK: u32 = 0x700;
const DELIVERY_NMI: u32 = 0x400;
const DELIVERY_EXTINT: u32 = 0x700;
/// LVT bit 16.
const MASKED: u32 = 1 << 16;

/// Sets the few MSRs whose reset value is not what an operating system expects to be started with.
pub(super) fn set_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entries =
        [(MISC_ENABLE, FAST_STRINGS), (MTRR_DEF_TYPE, MTRRS_ON_WRITE_BACK)].map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        });
    let operation = "KVM_SET_MSRS";
    let msrs = Msrs::from_entries(&entries).map_err(|error| KvmError::Ioctl {
        operation,
        source: std::io::Error::other(format!("{error:?}")),
    })?;
    let done = vcpu.set_msrs(&msrs).map_err(KvmError::ioctl(operation))?;
    match entries.get(done) {
        Some(refused) => Err(KvmError::Msr {
            index: refused.index,
            value: refused.data,
        }),
        None => Ok(()),
    }
}

/// Wires the local APIC's two pins as a PC has them: LINT0 to the PIC ("virtual wire mode"), LINT1 to NMI
/// (MultiProcessor Specification 1.4 section 3.6.2.1).
pub(super) fn set_local_apic_pins(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut apic = vcpu.get_lapic().map_err(KvmError::ioctl("KVM_GET_LAPIC"))?;
    set_pin(&mut apic, LVT_LINT0, DELIVERY_EXTINT);
    set_pin(&mut apic, LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&apic).map_err(KvmError::ioctl("KVM_SET_LAPIC"))
}

fn set_pin(apic: &mut kvm_lapic_state, offset: usize, delivery: u32) {
    let Some(register) = apic.regs.get_mut(offset..offset + 4) else {
        return;
    };
    let mut bytes = [0; 4];
    for (byte, cell) in bytes.iter_mut().zip(&*register) {
        *byte = cell.cast_unsigned();
    }
    let value = (u32::from_le_bytes(bytes) & !(DELIVERY_MASK | MASKED)) | delivery;
    for (cell, byte) in register.iter_mut().zip(value.to_le_bytes()) {
        *cell = byte.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_is_unmasked_with_its_delivery_mode() {
        let mut apic = kvm_lapic_state::default();
        apic.regs[LVT_LINT1 + 2] = 1;
        set_pin(&mut apic, LVT_LINT1, DELIVERY_NMI);
        assert_eq!(apic.regs[LVT_LINT1..LVT_LINT1 + 4], [0, 4, 0, 0]);
    }
}
