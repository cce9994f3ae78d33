//! A KVM vCPU's state in every detail, for the fallback to the instruction core.

use super::caps::KvmKind;
use super::table_reset::TableReset;
use super::vcpu::{KvmVcpu, host};
use super::vm::Irqchip;
use super::waiting::{self, Apic, Timer};
use crate::backend::BackendError;
use crate::emulate::fpu::FpuState;
use crate::emulate::msr::index;
use crate::emulate::state::CoreMsrs;
use crate::emulate::{CpuState, Request, exception};
use crate::fallback::{EmulationHost, Parts};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_MAX_CPUID_ENTRIES,
    KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_guest_debug, kvm_irqchip, kvm_msr_entry,
    kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use umbra_memslots::PAGE_SIZE;

/// The bit of `kvm_sregs.cr4` that is flipped to make KVM drop translations.
const CR4_PGE: u64 = 1 << 7;
/// IA32_TIME_STAMP_COUNTER and IA32_TSC_DEADLINE.
const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;

/// What a vCPU has for the fallback.
#[derive(Default)]
pub(super) struct EmulationSide {
    /// Controllers and timers that the kernel has.
    irqchip: Irqchip,
    /// If KVM has shadows of page tables.
    table_reset: Option<Arc<TableReset>>,
    /// It is a pagetable-VM KVM.
    pagetable: bool,
    /// The timer of the local APIC when it was last looked at, or as what it is taken.
    timer: Timer,
    /// What `cpuid` says in the guest, once it was asked for.
    leaves: Option<CpuId>,
}

impl EmulationSide {
    pub fn new(irqchip: Irqchip, table_reset: Option<Arc<TableReset>>) -> Self {
        Self {
            irqchip,
            table_reset,
            pagetable: KvmKind::detect() == KvmKind::Pagetable,
            timer: Timer::Off,
            leaves: None,
        }
    }
}

/// Ports of the 8259s, the 8254 and port 0x61, as KVM has them (`virt/kvm` and `arch/x86/kvm` in the kernel: `i8259.c`,
/// `i8254.c`).
const KERNEL_PORTS: [RangeInclusive<u16>; 5] = [0x20..=0x21, 0x40..=0x43, 0x61..=0x61, 0xa0..=0xa1, 0x4d0..=0x4d1];
/// The I/O APIC, 256 bytes.
const IOAPIC: u64 = 0xfec0_0000;
/// IA32_APIC_BASE: enabled, and as x2APIC without a page (SDM vol. 3A 11.12.1).
const APIC_ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;

impl EmulationHost for KvmVcpu {
    fn load_parts(&mut self, state: &mut CpuState, parts: Parts) -> Result<(), BackendError> {
        let fd = self.fd();
        if parts.msrs {
            state.msrs = core_msrs(fd)?;
        }
        if parts.fpu {
            state.fpu = fpu(fd)?;
        }
        if parts.debug {
            let debug = fd.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?;
            state.debug[..4].copy_from_slice(&debug.db);
            (state.debug[6], state.debug[7]) = (debug.dr6, debug.dr7);
        }
        Ok(())
    }

    fn store_parts(&mut self, before: &CpuState, after: &CpuState, parts: Parts) -> Result<(), BackendError> {
        let fd = self.fd();
        if parts.msrs && before.msrs != after.msrs {
            set_core_msrs(fd, &after.msrs)?;
        }
        if parts.fpu && before.fpu != after.fpu {
            set_fpu(fd, &before.fpu, &after.fpu)?;
        }
        if parts.debug && before.debug != after.debug {
            let mut debug = fd.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?;
            debug.db.copy_from_slice(&after.debug[..4]);
            (debug.dr6, debug.dr7) = (after.debug[6], after.debug[7]);
            fd.set_debug_regs(&debug).map_err(host("KVM_SET_DEBUGREGS"))?;
        }
        Ok(())
    }

    fn read_msr(&mut self, index: u32) -> Result<Option<u64>, BackendError> {
        let mut msrs = list(&[(index, 0)])?;
        let read = self.fd().get_msrs(&mut msrs).map_err(host("KVM_GET_MSRS"))?;
        Ok(msrs.as_slice().first().filter(|_| read == 1).map(|entry| entry.data))
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<bool, BackendError> {
        let written = self
            .fd()
            .set_msrs(&list(&[(index, value)])?)
            .map_err(host("KVM_SET_MSRS"))?;
        Ok(written == 1)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> Result<[u32; 4], BackendError> {
        let leaves = match self.emulation.leaves.take() {
            Some(leaves) => leaves,
            None => self
                .fd()
                .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .map_err(host("KVM_GET_CPUID2"))?,
        };
        let answer = find_leaf(&leaves, leaf, subleaf);
        self.emulation.leaves = Some(leaves);
        Ok(answer)
    }

    fn interrupt_shadow(&mut self) -> Result<bool, BackendError> {
        let events = self.fd().get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
        Ok(events.interrupt.shadow != 0)
    }

    fn set_interrupt_shadow(&mut self, shadow: bool) -> Result<(), BackendError> {
        let fd = self.fd();
        let mut events = fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
        if change_shadow(&mut events, shadow) {
            fd.set_vcpu_events(&events).map_err(host("KVM_SET_VCPU_EVENTS"))?;
        }
        Ok(())
    }

    fn leaves_syscalls_half_done(&self) -> bool {
        self.emulation.pagetable
    }

    fn emulates_kernel_mode(&self) -> bool {
        self.emulation.pagetable
    }

    fn single_step(&mut self, on: bool) -> Result<(), BackendError> {
        // The kernel notes where the step begins, so registers that wait for the next run go first.
        self.write_synced_registers()?;
        let debug = kvm_guest_debug {
            control: if on {
                KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
            } else {
                0
            },
            ..Default::default()
        };
        self.fd().set_guest_debug(&debug).map_err(host("KVM_SET_GUEST_DEBUG"))
    }

    fn interrupt_waits(&mut self) -> Result<bool, BackendError> {
        if self.emulation.irqchip == Irqchip::None {
            return Ok(false);
        }
        let apic = self.apic()?;
        let known = std::mem::replace(&mut self.emulation.timer, apic.timer);
        if apic.requested || waiting::has_expired(known, apic.timer) {
            return Ok(true);
        }
        if apic.timer == Timer::Deadline {
            // The kernel clears it as the timer's interrupt is requested.
            let deadline = self.read_msr(TSC_DEADLINE)?.unwrap_or(0);
            if deadline != 0 && self.read_msr(TSC)?.is_some_and(|now| now >= deadline) {
                return Ok(true);
            }
        }
        if apic.takes_external && self.external_waits() {
            return Ok(true);
        }
        match waiting::pic(self.emulation.irqchip).filter(|_| apic.takes_external) {
            Some(chip) => self.pic_asks(chip),
            None => Ok(false),
        }
    }

    fn may_stay_in_software(&mut self) -> Result<bool, BackendError> {
        let fd = self.fd();
        let events = fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
        let exception =
            events.exception.nr != exception::UD && (events.exception.injected != 0 || events.exception.pending != 0);
        let nmi = [events.nmi.injected, events.nmi.pending, events.nmi.masked]
            .iter()
            .any(|flag| *flag != 0);
        if exception || nmi || events.interrupt.injected != 0 || events.smi.smm != 0 {
            return Ok(false);
        }
        if self.emulation.irqchip != Irqchip::None {
            self.emulation.timer = waiting::on_coming_out(self.emulation.timer, self.apic()?.timer);
        }
        Ok(true)
    }

    fn has_device(&self, request: &Request, state: &CpuState) -> bool {
        let (apics, others) = match self.emulation.irqchip {
            Irqchip::Kernel => (true, true),
            Irqchip::Split { .. } => (true, false),
            Irqchip::None => (false, false),
        };
        match *request {
            Request::Mmio { gpa, .. } => {
                let base = state.sys.apic_base;
                let page = base & APIC_ENABLED != 0 && base & X2APIC == 0 && gpa.get() / PAGE_SIZE == base / PAGE_SIZE;
                (apics && page) || (others && (IOAPIC..IOAPIC + 0x100).contains(&gpa.get()))
            }
            Request::Pio { port, .. } => others && KERNEL_PORTS.iter().any(|ports| ports.contains(&port)),
            Request::ReadMsr { .. } | Request::WriteMsr { .. } => false,
        }
    }

    fn derives_from_tables(&self) -> bool {
        self.emulation.table_reset.is_some()
    }

    fn forget_tables(&mut self) -> Result<(), BackendError> {
        match &self.emulation.table_reset {
            Some(table_reset) => table_reset.reset().map_err(|source| BackendError::Host {
                operation: "making KVM forget its page tables",
                source,
            }),
            None => self.flush_translations(),
        }
    }

    fn flush_translations(&mut self) -> Result<(), BackendError> {
        // No ioctl says it; a change of CR4.PGE makes KVM begin with new tables, as it does on real hardware.
        let fd = self.fd();
        let mut sregs = fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
        sregs.cr4 ^= CR4_PGE;
        fd.set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))?;
        sregs.cr4 ^= CR4_PGE;
        fd.set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))?;
        self.forget_synced_registers();
        Ok(())
    }
}

impl KvmVcpu {
    fn apic(&self) -> Result<Apic, BackendError> {
        let state = self.fd().get_lapic().map_err(host("KVM_GET_LAPIC"))?;
        Ok(Apic::of(&state))
    }

    fn pic_asks(&self, mut chip: kvm_irqchip) -> Result<bool, BackendError> {
        let vm = self.memory().fd();
        vm.get_irqchip(&mut chip).map_err(host("KVM_GET_IRQCHIP"))?;
        Ok(waiting::pic_asks(&chip))
    }
}

/// Has `events` say the shadow, and nothing of the #UD that KVM has queued for an instruction it couldn't execute (without
/// KVM_CAP_EXIT_ON_EMULATION_FAILURE). `false`: they say so already. What others may have changed since `events` were
/// read, an NMI that came, stays as it is in the kernel.
fn change_shadow(events: &mut kvm_vcpu_events, shadow: bool) -> bool {
    let queued = events.exception.injected != 0 && events.exception.nr == exception::UD;
    if !queued && (events.interrupt.shadow != 0) == shadow {
        return false;
    }
    if queued {
        events.exception.injected = 0;
    }
    events.interrupt.shadow = u8::from(shadow);
    // Only with its flag a pending exception is taken as one.
    events.flags = KVM_VCPUEVENT_VALID_SHADOW | events.flags & KVM_VCPUEVENT_VALID_PAYLOAD;
    true
}

/// A list of MSRs for an ioctl.
fn list(entries: &[(u32, u64)]) -> Result<Msrs, BackendError> {
    let entries: Vec<_> = entries
        .iter()
        .map(|(index, data)| kvm_msr_entry {
            index: *index,
            data: *data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|error| BackendError::Host {
        operation: "making a list of MSRs",
        source: io::Error::other(format!("{error:?}")),
    })
}

/// The numbers of [`CoreMsrs`] in the order of its fields.
const CORE: [u32; 9] = [
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::SFMASK,
    index::KERNEL_GS_BASE,
    index::TSC_AUX,
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
];

fn core_msrs(fd: &VcpuFd) -> Result<CoreMsrs, BackendError> {
    // One that the guest's CPU does not have ends the list early; it and what follows read as zero.
    let mut values = [0; CORE.len()];
    for (value, number) in values.iter_mut().zip(CORE) {
        let mut msrs = list(&[(number, 0)])?;
        if fd.get_msrs(&mut msrs).map_err(host("KVM_GET_MSRS"))? == 1 {
            *value = msrs.as_slice().first().map_or(0, |entry| entry.data);
        }
    }
    let [
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        tsc_aux,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
    ] = values;
    Ok(CoreMsrs {
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        tsc_aux,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
    })
}

fn set_core_msrs(fd: &VcpuFd, msrs: &CoreMsrs) -> Result<(), BackendError> {
    let before = core_values(&core_msrs(fd)?);
    for (number, (old, new)) in CORE.into_iter().zip(before.into_iter().zip(core_values(msrs))) {
        if old != new {
            fd.set_msrs(&list(&[(number, new)])?).map_err(host("KVM_SET_MSRS"))?;
        }
    }
    Ok(())
}

fn core_values(m: &CoreMsrs) -> [u64; CORE.len()] {
    [
        m.star,
        m.lstar,
        m.cstar,
        m.sfmask,
        m.kernel_gs_base,
        m.tsc_aux,
        m.sysenter_cs,
        m.sysenter_esp,
        m.sysenter_eip,
    ]
}

/// x87, SSE and extended state from KVM's image of an XSAVE area in the standard format.
fn fpu(fd: &VcpuFd) -> Result<FpuState, BackendError> {
    let area = fd.get_xsave().map_err(host("KVM_GET_XSAVE"))?;
    let bytes: Vec<u8> = area.region.iter().flat_map(|word| word.to_le_bytes()).collect();
    let xcrs = fd.get_xcrs().map_err(host("KVM_GET_XCRS"))?;
    let xcr0 = xcrs.xcrs.iter().find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value);
    Ok(FpuState::from_area(&bytes, xcr0))
}

fn set_fpu(fd: &VcpuFd, before: &FpuState, after: &FpuState) -> Result<(), BackendError> {
    let mut xsave = kvm_xsave::default();
    let words = xsave.region.len();
    for (word, bytes) in xsave.region.iter_mut().zip(after.to_area(4 * words).chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    write_xsave(fd, &xsave)?;
    if before.xcr0 != after.xcr0 {
        let mut xcrs = fd.get_xcrs().map_err(host("KVM_GET_XCRS"))?;
        for xcr in xcrs.xcrs.iter_mut().filter(|xcr| xcr.xcr == 0) {
            xcr.value = after.xcr0;
        }
        fd.set_xcrs(&xcrs).map_err(host("KVM_SET_XCRS"))?;
    }
    Ok(())
}

fn write_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), BackendError> {
    // SAFETY: no dynamic feature (AMX) is ever enabled for our process, so the state is at most 4096 bytes.
    unsafe { fd.set_xsave(xsave) }.map_err(host("KVM_SET_XSAVE"))
}

fn find_leaf(leaves: &CpuId, leaf: u32, subleaf: u32) -> [u32; 4] {
    leaves
        .as_slice()
        .iter()
        .find(|entry| {
            let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
            entry.function == leaf && (!indexed || entry.index == subleaf)
        })
        .map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_of_the_shadow_says_nothing_of_nmis() {
        let mut events = kvm_vcpu_events {
            // As the kernel fills them in: NMI, shadow, SMM.
            flags: 0b1101,
            ..Default::default()
        };
        assert!(!change_shadow(&mut events, false));
        assert!(change_shadow(&mut events, true));
        assert_eq!((events.interrupt.shadow, events.flags), (1, KVM_VCPUEVENT_VALID_SHADOW));
    }

    #[test]
    fn exception_of_the_failed_instruction_is_forgotten_and_no_other() {
        for (vector, left) in [(exception::UD, 0), (exception::PF, 1)] {
            let mut events = kvm_vcpu_events::default();
            (events.exception.injected, events.exception.nr) = (1, vector);
            assert_eq!(change_shadow(&mut events, false), left == 0);
            assert_eq!(events.exception.injected, left);
        }
    }
}
