//! What a host's KVM can do, in words a person can read.

use kvm_bindings as kvm;
use kvm_ioctls::{Kvm, VmFd};
use std::fs;

/// Makes [`Capability`] from one table.
macro_rules! capabilities {
    ($($variant:ident = $number:ident, $name:literal, $purpose:literal;)+) => {
        /// One KVM capability that Umbra uses or reports.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Capability {
            $(#[doc = concat!("`", stringify!($number), "`: ", $purpose, ".")] $variant,)+
        }

        impl Capability {
            /// Every one, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The kernel's number.
            const fn number(self) -> u32 {
                match self { $(Self::$variant => kvm::$number,)+ }
            }

            /// Short name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it is good for.
            pub const fn purpose(self) -> &'static str {
                match self { $(Self::$variant => $purpose,)+ }
            }
        }
    };
}

capabilities! {
    ImmediateExit = KVM_CAP_IMMEDIATE_EXIT, "immediate exit", "stopping a vCPU without losing a request";
    UserMemory = KVM_CAP_USER_MEMORY, "user memory", "guest RAM in our address space";
    UserMemory2 = KVM_CAP_USER_MEMORY2, "user memory 2", "slots with private memory";
    Memslots = KVM_CAP_NR_MEMSLOTS, "memory slots", "pieces of guest RAM";
    AddressSpaces = KVM_CAP_MULTI_ADDRESS_SPACE, "address spaces", "separate slots for system management mode";
    MaxVcpus = KVM_CAP_MAX_VCPUS, "vCPUs at most", "processors per guest";
    RecommendedVcpus = KVM_CAP_NR_VCPUS, "vCPUs recommended", "processors per guest without overcommitting the host";
    MaxVcpuId = KVM_CAP_MAX_VCPU_ID, "vCPU ids", "sparse APIC ids";
    Irqchip = KVM_CAP_IRQCHIP, "irqchip", "PIC, I/O APIC and local APICs in the kernel";
    SplitIrqchip = KVM_CAP_SPLIT_IRQCHIP, "split irqchip", "only the local APICs in the kernel";
    Pit2 = KVM_CAP_PIT2, "PIT", "the 8254 timer in the kernel";
    IrqRouting = KVM_CAP_IRQ_ROUTING, "irq routing", "message-signalled interrupts by number";
    Irqfd = KVM_CAP_IRQFD, "irqfd", "interrupts from other threads without a system call here";
    IrqfdResample = KVM_CAP_IRQFD_RESAMPLE, "irqfd resample", "the same for level-triggered lines";
    Ioeventfd = KVM_CAP_IOEVENTFD, "ioeventfd", "guest writes as events, without an exit to us";
    IoeventfdAnyLength = KVM_CAP_IOEVENTFD_ANY_LENGTH, "ioeventfd, any length", "the kernel's fastest MMIO path";
    CoalescedMmio = KVM_CAP_COALESCED_MMIO, "coalesced MMIO", "batched guest writes (value: page offset of the ring)";
    CoalescedPio = KVM_CAP_COALESCED_PIO, "coalesced PIO", "the same for ports";
    ReadonlyMem = KVM_CAP_READONLY_MEM, "read-only memory", "ROM that the guest reads without exits";
    DirtyLogRing = KVM_CAP_DIRTY_LOG_RING, "dirty ring", "dirty pages as a list (value: bytes at most)";
    DirtyLogRingAcqRel = KVM_CAP_DIRTY_LOG_RING_ACQ_REL, "dirty ring, acquire/release", "the same with a written memory order";
    ManualDirtyLog = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "manual dirty log", "re-protecting dirty pages in small steps";
    SyncRegs = KVM_CAP_SYNC_REGS, "sync regs", "registers through shared memory (value: register sets)";
    Sregs2 = KVM_CAP_SREGS2, "sregs2", "PDPTE registers in saved state";
    Xsave2 = KVM_CAP_XSAVE2, "xsave2", "vector state of any size";
    UserSpaceMsr = KVM_CAP_X86_USER_SPACE_MSR, "user-space MSR", "answering unknown MSRs ourselves";
    MsrFilter = KVM_CAP_X86_MSR_FILTER, "MSR filter", "choosing which MSRs we answer";
    ExitOnEmulationFailure = KVM_CAP_EXIT_ON_EMULATION_FAILURE, "exit on emulation failure", "the bytes of an instruction that KVM cannot emulate";
    TripleFaultEvent = KVM_CAP_X86_TRIPLE_FAULT_EVENT, "triple fault event", "a pending triple fault in saved state";
    ExceptionPayload = KVM_CAP_EXCEPTION_PAYLOAD, "exception payload", "pending exceptions in saved state, exactly";
    TscDeadline = KVM_CAP_TSC_DEADLINE_TIMER, "TSC deadline timer", "the cheapest timer of a local APIC";
    X2apicApi = KVM_CAP_X2APIC_API, "x2APIC ids", "more than 255 vCPUs";
    GuestMemfd = KVM_CAP_GUEST_MEMFD, "guest_memfd", "guest RAM that we cannot see";
    MemoryAttributes = KVM_CAP_MEMORY_ATTRIBUTES, "memory attributes", "private and shared pages";
    MemoryFaultInfo = KVM_CAP_MEMORY_FAULT_INFO, "memory fault info", "the address of an access the host could not serve";
    BinaryStats = KVM_CAP_BINARY_STATS_FD, "binary stats", "the kernel's own counters";
}

impl Capability {
    /// Asks the host. 0: not there.
    pub(super) fn probe(self, kvm: &Kvm) -> u32 {
        u32::try_from(kvm.check_extension_raw(self.number().into())).unwrap_or(0)
    }

    /// Asks about one VM, which may differ from the host's answer.
    pub(super) fn probe_vm(self, vm: &VmFd) -> u32 {
        u32::try_from(vm.check_extension_raw(self.number().into())).unwrap_or(0)
    }
}

/// Which virtualisation lies under this host's KVM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmKind {
    /// Intel VMX.
    Vmx,
    /// AMD SVM.
    Svm,
    /// No hardware virtualisation: guest kernel code is emulated instruction by instruction, shadow paging only.
    Pagetable,
    /// Cannot be told.
    Unknown,
}

impl KvmKind {
    /// Looks at the modules that are loaded or built in.
    pub(super) fn detect() -> Self {
        let loaded = |module: &str| fs::exists(format!("/sys/module/{module}")).unwrap_or(false);
        match () {
            () if loaded("kvm_pvm") => Self::Pagetable,
            () if loaded("kvm_intel") => Self::Vmx,
            () if loaded("kvm_amd") => Self::Svm,
            () => Self::Unknown,
        }
    }

    fn second_level_paging(self) -> Option<bool> {
        match self {
            Self::Vmx => flag("kvm_intel", "ept"),
            Self::Svm => flag("kvm_amd", "npt"),
            Self::Pagetable => Some(false),
            Self::Unknown => None,
        }
    }
}

/// Whether guests are paged by a second-level table. `None`: the host does not tell.
pub(super) fn second_level_paging() -> Option<bool> {
    KvmKind::detect().second_level_paging()
}

/// Everything [`Capability`] names, with this host's values, and the module parameters that decide how MMIO is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostCaps {
    /// What lies under KVM.
    pub kind: KvmKind,
    /// Parameter `mmio_caching` of the module `kvm`: MMIO SPTEs are on. `None`: not told.
    pub mmio_caching: Option<bool>,
    /// Parameter `tdp_mmu`: the kernel's newer second-level MMU is on. `None`: not told.
    pub tdp_mmu: Option<bool>,
    /// Second-level paging: `ept` of `kvm_intel` or `npt` of `kvm_amd`. `None`: not told.
    pub second_level_paging: Option<bool>,
    values: Vec<u32>,
}

impl HostCaps {
    pub(super) fn probe(kvm: &Kvm) -> Self {
        let kind = KvmKind::detect();
        Self {
            kind,
            mmio_caching: flag("kvm", "mmio_caching"),
            tdp_mmu: flag("kvm", "tdp_mmu"),
            second_level_paging: kind.second_level_paging(),
            values: Capability::ALL.iter().map(|capability| capability.probe(kvm)).collect(),
        }
    }

    /// The value of one capability; 0: not there, 1: there, more: see its purpose.
    pub fn get(&self, capability: Capability) -> u32 {
        self.iter()
            .find(|(each, _)| *each == capability)
            .map_or(0, |(_, value)| value)
    }

    /// Whether a capability is there.
    pub fn has(&self, capability: Capability) -> bool {
        self.get(capability) != 0
    }

    /// Every capability with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Capability, u32)> {
        Capability::ALL.iter().copied().zip(self.values.iter().copied())
    }
}

/// A boolean parameter of a kernel module, or `None` if it is not there or is no boolean.
fn flag(module: &str, parameter: &str) -> Option<bool> {
    match fs::read_to_string(format!("/sys/module/{module}/parameters/{parameter}"))
        .ok()?
        .trim()
    {
        "Y" | "1" => Some(true),
        "N" | "0" => Some(false),
        _ => None,
    }
}
