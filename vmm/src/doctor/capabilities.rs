//! The KVM capabilities that matter to Umbra, with what each is good for.

use kvm_bindings as kvm;

/// How much depends on a capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// No guest runs without it.
    Required,
    /// Something is slower, or an option isn't there.
    Useful,
}

/// A capability that Umbra asks about.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    /// Name without `KVM_CAP_`.
    pub name: &'static str,
    /// Number for `KVM_CHECK_EXTENSION`.
    pub number: u32,
    /// How much depends on it.
    pub need: Need,
    /// What Umbra does with it.
    pub used_for: &'static str,
}

macro_rules! capabilities {
    ($($need:ident $name:ident $constant:ident $used_for:literal;)+) => {
        &[$(Capability {
            name: stringify!($name),
            number: kvm::$constant,
            need: Need::$need,
            used_for: $used_for,
        }),+]
    };
}

/// What `vmm doctor` asks for, the necessary first.
pub const ALL: &[Capability] = capabilities! {
    Required USER_MEMORY KVM_CAP_USER_MEMORY "guest RAM in memory slots";
    Required IRQCHIP KVM_CAP_IRQCHIP "interrupt controllers in the kernel";
    Required EXT_CPUID KVM_CAP_EXT_CPUID "telling the guest what CPU it has";
    Required IMMEDIATE_EXIT KVM_CAP_IMMEDIATE_EXIT "pausing a vCPU without a race";
    Required MP_STATE KVM_CAP_MP_STATE "starting secondary vCPUs";
    Useful PIT2 KVM_CAP_PIT2 "the classic timer in the kernel";
    Useful SPLIT_IRQCHIP KVM_CAP_SPLIT_IRQCHIP "--irqchip=split";
    Useful X2APIC_API KVM_CAP_X2APIC_API "APIC ids wider than 8 bits";
    Useful TSC_DEADLINE_TIMER KVM_CAP_TSC_DEADLINE_TIMER "one-shot timers by TSC value";
    Useful ADJUST_CLOCK KVM_CAP_ADJUST_CLOCK "kvmclock, stopped while paused";
    Useful SYNC_REGS KVM_CAP_SYNC_REGS "registers through shared memory instead of system calls";
    Useful SREGS2 KVM_CAP_SREGS2 "PAE page-directory pointers kept across set and get";
    Useful EXIT_ON_EMULATION_FAILURE KVM_CAP_EXIT_ON_EMULATION_FAILURE "instruction bytes in the report when KVM can't emulate";
    Useful X86_TRIPLE_FAULT_EVENT KVM_CAP_X86_TRIPLE_FAULT_EVENT "a pending triple fault is seen";
    Useful EXCEPTION_PAYLOAD KVM_CAP_EXCEPTION_PAYLOAD "exact state of a pending exception";
    Useful X86_USER_SPACE_MSR KVM_CAP_X86_USER_SPACE_MSR "MSRs that KVM doesn't know are answered here";
    Useful X86_MSR_FILTER KVM_CAP_X86_MSR_FILTER "choosing which MSRs come here";
    Useful XSAVE2 KVM_CAP_XSAVE2 "saving vector state larger than 4 KiB (AMX)";
    Useful READONLY_MEM KVM_CAP_READONLY_MEM "ROM: read-only memory slots";
    Useful MULTI_ADDRESS_SPACE KVM_CAP_MULTI_ADDRESS_SPACE "a second set of slots for system management mode";
    Useful USER_MEMORY2 KVM_CAP_USER_MEMORY2 "slots with a guest_memfd behind them";
    Useful GUEST_MEMFD KVM_CAP_GUEST_MEMFD "guest memory that the host doesn't map";
    Useful MEMORY_FAULT_INFO KVM_CAP_MEMORY_FAULT_INFO "which address the host could not provide";
    Useful IRQFD KVM_CAP_IRQFD "interrupts without an exit";
    Useful IRQFD_RESAMPLE KVM_CAP_IRQFD_RESAMPLE "level interrupts by eventfd";
    Useful IOEVENTFD KVM_CAP_IOEVENTFD "doorbell writes without an exit";
    Useful IOEVENTFD_ANY_LENGTH KVM_CAP_IOEVENTFD_ANY_LENGTH "doorbells of any width: KVM's fastest MMIO path";
    Useful COALESCED_MMIO KVM_CAP_COALESCED_MMIO "MMIO writes delivered in batches";
    Useful COALESCED_PIO KVM_CAP_COALESCED_PIO "port writes delivered in batches";
    Useful DIRTY_LOG_RING KVM_CAP_DIRTY_LOG_RING_ACQ_REL "dirty pages by ring";
    Useful MANUAL_DIRTY_LOG_PROTECT2 KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 "dirty pages by bitmap, cleared piece by piece";
    Useful BINARY_STATS_FD KVM_CAP_BINARY_STATS_FD "KVM's own counters";
    Useful DISABLE_QUIRKS2 KVM_CAP_DISABLE_QUIRKS2 "slot removal that zaps only that slot";
    Useful SET_GUEST_DEBUG KVM_CAP_SET_GUEST_DEBUG "single step and breakpoints";
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_are_distinct_and_required_come_first() {
        let numbers: BTreeSet<u32> = ALL.iter().map(|capability| capability.number).collect();
        assert_eq!(numbers.len(), ALL.len());
        assert!(ALL.is_sorted_by_key(|capability| capability.need == Need::Useful));
    }
}
