//! A KVM virtual machine: its interrupt controllers, its start-up state and its vCPUs.

use super::bus_mirror::KvmBusMirror;
use super::caps::{self, Capability};
use super::cpuid::Cpu;
use super::emulation::EmulationSide;
use super::error::KvmError;
use super::host::KvmHost;
use super::irq::{self, GsiRoute, KvmIrqSink};
use super::memory::VmMemory;
use super::msi::KvmMsiSink;
use super::run_page::RunPage;
use super::slot_mirror::SlotMirror;
use super::start_state;
use super::table_reset::{self, TableReset};
use super::vcpu::KvmVcpu;
use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::VmFd;
use std::io;
use std::sync::Arc;
use umbra_devices::irq::Gsi;
use umbra_memslots::{Backing, Gfn, Gpa, SlotFlags, SlotLimits, SlotRequest};
use vmm_sys_util::eventfd::EventFd;

/// Which interrupt controllers live in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Irqchip {
    /// PIC, I/O APIC, local APICs and the PIT. `hlt` waits in the kernel.
    #[default]
    Kernel,
    /// The local APICs only; the lines of I/O APIC and PIC are ours ([`KvmVm::msi_sink`],
    /// [`KvmVcpu::set_external_interrupts`]). `hlt` waits in the kernel.
    Split {
        /// Input pins of the I/O APIC that user space models (24 on a PC).
        pins: u32,
    },
    /// None: one vCPU, no interrupts; `hlt` comes back as [`crate::exit::VmExit::Hlt`]. For bare test guests.
    None,
}

/// What to make a VM with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmOptions {
    /// vCPUs the machine will have; goes into the topology that each of them sees.
    pub vcpus: u32,
    /// Interrupt controllers.
    pub irqchip: Irqchip,
    /// Three pages that Intel's KVM keeps real-mode state in; must be clear of slots and devices.
    pub tss_address: Gpa,
    /// One page for Intel's KVM, after `tss_address` was chosen the same way.
    pub identity_map_address: Gpa,
    /// Whether accesses to MSRs that KVM does not know come to us instead of raising #GP in the guest.
    pub exit_on_unknown_msr: bool,
    /// Whether vCPUs may be wrapped in a [`crate::fallback::Fallback`]. Where KVM has shadows of the guest's page tables,
    /// that takes the last two memory slots (one may be the VMM's own memory) and the last two frames, see
    /// [`KvmVm::slot_limits`]; without it KVM doesn't learn what the fallback writes to page tables.
    pub fallback: bool,
}

impl Default for VmOptions {
    /// One vCPU, everything in the kernel, Intel's pages below the firmware at 4 GiB, as other VMMs place them.
    fn default() -> Self {
        Self {
            vcpus: 1,
            irqchip: Irqchip::Kernel,
            tss_address: Gpa::new(0xfffb_d000),
            identity_map_address: Gpa::new(0xfffb_c000),
            exit_on_unknown_msr: false,
            fallback: true,
        }
    }
}

/// A virtual machine. Cheap to share by reference; everything it makes keeps the kernel's side of it alive.
pub struct KvmVm {
    memory: Arc<VmMemory>,
    options: VmOptions,
    cpuid: CpuId,
    /// Where memory of the VMM's own begins, above all that the guest can have.
    private: Option<Gpa>,
    run_size: usize,
    max_vcpus: u32,
    sync_regs: u32,
    tsc_deadline: bool,
    table_reset: Option<Arc<TableReset>>,
}

impl KvmVm {
    /// Makes a VM with its interrupt controllers, without memory and vCPUs.
    ///
    /// # Errors
    /// The host lacks something needed, or the kernel refused a step.
    pub fn new(host: &KvmHost, options: VmOptions) -> Result<Self, KvmError> {
        require(host, Capability::ImmediateExit)?;
        let fd = host.kvm().create_vm().map_err(KvmError::ioctl("KVM_CREATE_VM"))?;
        // Both are for Intel without unrestricted guests, and must come before the first vCPU; elsewhere they cost
        // nothing and change nothing.
        fd.set_identity_map_address(options.identity_map_address.get())
            .map_err(KvmError::ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
        let tss = usize::try_from(options.tss_address.get()).unwrap_or(usize::MAX);
        fd.set_tss_address(tss).map_err(KvmError::ioctl("KVM_SET_TSS_ADDR"))?;
        make_irqchip(host, &fd, options.irqchip)?;
        if host.cap(Capability::ExitOnEmulationFailure) != 0 {
            enable(&fd, "exit on emulation failure", KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)?;
        }
        if options.exit_on_unknown_msr {
            require(host, Capability::UserSpaceMsr)?;
            enable(
                &fd,
                "user-space MSR",
                KVM_CAP_X86_USER_SPACE_MSR,
                KVM_MSR_EXIT_REASON_UNKNOWN,
            )?;
        }
        let cpuid = host.supported_cpuid().map_err(|source| KvmError::Ioctl {
            operation: "KVM_GET_SUPPORTED_CPUID",
            source,
        })?;
        let mut vm = Self {
            run_size: fd.run_size(),
            max_vcpus: Capability::MaxVcpus.probe_vm(&fd),
            sync_regs: host.cap(Capability::SyncRegs),
            tsc_deadline: options.irqchip != Irqchip::None && host.cap(Capability::TscDeadline) != 0,
            memory: Arc::new(VmMemory::new(fd)),
            options,
            cpuid,
            private: None,
            table_reset: None,
        };
        if options.fallback && caps::second_level_paging() != Some(true) {
            // The last slot may be the VMM's own memory.
            let slot = u32::from(vm.all_slots()).saturating_sub(2);
            vm.table_reset = Some(Arc::new(TableReset::new(Arc::clone(&vm.memory), slot, vm.max_gfn())));
        }
        Ok(vm)
    }

    /// What it was made with.
    pub fn options(&self) -> &VmOptions {
        &self.options
    }

    /// What this VM accepts as memory slots, for [`umbra_memslots::SlotTable::new`].
    pub fn slot_limits(&self) -> SlotLimits {
        let fd = self.memory.fd();
        let own_slots = match (&self.table_reset, self.private) {
            (Some(_), _) => 2,
            (None, Some(_)) => 1,
            (None, None) => 0,
        };
        let own_frames = self.table_reset.as_ref().map_or(0, |_| table_reset::FRAMES);
        SlotLimits {
            max_slots: self.all_slots().saturating_sub(own_slots),
            address_spaces: u8::try_from(Capability::AddressSpaces.probe_vm(fd))
                .unwrap_or(u8::MAX)
                .max(1),
            read_only: Capability::ReadonlyMem.probe_vm(fd) != 0,
            guest_memfd: Capability::GuestMemfd.probe_vm(fd) != 0,
            max_gfn: match self.private {
                Some(at) => Gfn::from_masked(at.gfn().get().saturating_sub(1)),
                None => Gfn::from_masked(self.max_gfn().get().saturating_sub(own_frames)),
            },
            ..SlotLimits::X86_64
        }
    }

    /// Memory slots of one address space, including one that is the VMM's own.
    fn all_slots(&self) -> u16 {
        u16::try_from(Capability::Memslots.probe_vm(self.memory.fd())).unwrap_or(u16::MAX)
    }

    /// Gives the VM memory that is the VMM's own: no slot table knows of it, and [`KvmVm::slot_limits`] keeps guests below
    /// it from now on. Once.
    ///
    /// # Errors
    /// The kernel refused, or there is such memory already (`EEXIST`).
    pub(crate) fn add_private_memory(&mut self, at: Gpa, backing: &Arc<dyn Backing>) -> Result<(), KvmError> {
        let refused = |source| KvmError::Ioctl {
            operation: "KVM_SET_USER_MEMORY_REGION for page tables",
            source,
        };
        if self.private.is_some() {
            return Err(refused(io::Error::from_raw_os_error(libc::EEXIST)));
        }
        let slot = u32::from(self.all_slots()).saturating_sub(1);
        let request = SlotRequest::set(slot, SlotFlags::empty(), at, backing.bytes(), backing.start());
        self.memory.set(&request, backing).map_err(refused)?;
        self.private = Some(at);
        Ok(())
    }

    /// Physical address bits of the guest's CPUs, CPUID 0x80000008 EAX\[7:0\]; 36 if the host does not tell (SDM vol. 3A,
    /// 4.1.4).
    pub fn physical_bits(&self) -> u32 {
        let leaf = self.cpuid.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
        leaf.map_or(36, |leaf| leaf.eax & 0xff)
    }

    /// `kvm_mmu_max_gfn`: with second-level paging the host's physical width bounds it, with shadow paging the
    /// architecture's 52 bits do. A host that does not tell is taken to have the former.
    fn max_gfn(&self) -> Gfn {
        let host_bits = self
            .cpuid
            .as_slice()
            .iter()
            .find(|leaf| leaf.function == 0x8000_0008)
            .map(|leaf| leaf.eax & 0xff);
        match (caps::second_level_paging(), host_bits) {
            (Some(false), _) | (_, None) => SlotLimits::max_gfn_of_width(52),
            (_, Some(bits)) => SlotLimits::max_gfn_of_width(bits),
        }
    }

    /// Makes vCPU number `id` (also its local APIC id) in the state after reset, except that CPUID, the local APIC's
    /// interrupt pins and a few MSRs are set up as firmware would have. With an interrupt controller in the kernel,
    /// every vCPU but number 0 waits there for its start-up interrupts.
    ///
    /// # Errors
    /// The number is out of range or taken, or the kernel refused a step.
    pub fn create_vcpu(&self, id: u32) -> Result<KvmVcpu, KvmError> {
        // Number 255 is "everybody" to an xAPIC.
        let max = self.max_vcpus.min(255);
        if id >= max {
            return Err(KvmError::TooManyVcpus { id, max });
        }
        let fd = self
            .memory
            .fd()
            .create_vcpu(id.into())
            .map_err(KvmError::ioctl("KVM_CREATE_VCPU"))?;
        let mut cpuid = self.cpuid.clone();
        Cpu {
            id,
            count: self.options.vcpus,
            tsc_deadline: self.tsc_deadline,
        }
        .adapt(&mut cpuid);
        fd.set_cpuid2(&cpuid).map_err(KvmError::ioctl("KVM_SET_CPUID2"))?;
        start_state::set_msrs(&fd)?;
        if self.options.irqchip != Irqchip::None {
            start_state::set_local_apic_pins(&fd)?;
        }
        let page = RunPage::new(fd, self.run_size).map_err(|source| KvmError::Ioctl {
            operation: "mapping kvm_run",
            source,
        })?;
        let mut vcpu = KvmVcpu::new(page, Arc::clone(&self.memory), id, self.sync_regs.into());
        vcpu.emulation = EmulationSide::new(self.options.irqchip, self.table_reset.clone());
        Ok(vcpu)
    }

    /// What makes a slot table's changes in this VM too: an observer for [`umbra_memslots::SlotTable::add_observer`].
    pub fn slot_mirror(&self) -> SlotMirror {
        SlotMirror::new(Arc::clone(&self.memory))
    }

    /// What makes a bus's ioeventfds and coalesced zones in this VM too: for [`umbra_devices::Bus::set_mirror`].
    pub fn bus_mirror(&self) -> KvmBusMirror {
        KvmBusMirror::new(Arc::clone(&self.memory))
    }

    /// Where device lines end. GSI numbers as [`GsiRoute`] says.
    pub fn irq_sink(&self) -> KvmIrqSink {
        KvmIrqSink::new(Arc::clone(&self.memory))
    }

    /// Where the messages of an I/O APIC of ours end: for [`umbra_devices::models::ioapic::IoApic::new`], with
    /// [`Irqchip::Split`]. It takes over the interrupt routes, so that [`KvmVm::set_gsi_routes`] is not to be used.
    pub fn msi_sink(&self) -> KvmMsiSink {
        KvmMsiSink::new(Arc::clone(&self.memory))
    }

    /// Replaces every interrupt route, the ones a new VM starts with included.
    ///
    /// # Errors
    /// Too many routes, a pin that is not there, or no interrupt controller in the kernel.
    pub fn set_gsi_routes(&self, routes: &[GsiRoute]) -> Result<(), KvmError> {
        irq::set_routes(&self.memory, routes)
    }

    /// Delivers one message-signalled interrupt now.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn signal_msi(&self, address: u64, data: u32) -> Result<(), KvmError> {
        irq::signal_msi(&self.memory, address, data)
    }

    /// Lets an eventfd raise an interrupt without a system call of ours. With `resample` the line is level-triggered:
    /// it stays up until the guest's end of interrupt signals that second eventfd.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn set_irqfd(&self, event: &EventFd, gsi: Gsi, resample: Option<&EventFd>) -> Result<(), KvmError> {
        irq::set_irqfd(&self.memory, event, gsi, resample)
    }

    /// Takes back [`KvmVm::set_irqfd`].
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn unset_irqfd(&self, event: &EventFd, gsi: Gsi) -> Result<(), KvmError> {
        irq::unset_irqfd(&self.memory, event, gsi)
    }
}

fn require(host: &KvmHost, capability: Capability) -> Result<(), KvmError> {
    if host.cap(capability) != 0 {
        return Ok(());
    }
    Err(KvmError::Lacks {
        name: capability.name(),
        purpose: capability.purpose(),
    })
}

fn make_irqchip(host: &KvmHost, fd: &VmFd, irqchip: Irqchip) -> Result<(), KvmError> {
    match irqchip {
        Irqchip::Kernel => {
            fd.create_irq_chip().map_err(KvmError::ioctl("KVM_CREATE_IRQCHIP"))?;
            require(host, Capability::Pit2)?;
            // Port 0x61 is answered by the kernel too: Linux measures its TSC with it.
            let pit = kvm_pit_config {
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..Default::default()
            };
            fd.create_pit2(pit).map_err(KvmError::ioctl("KVM_CREATE_PIT2"))
        }
        Irqchip::Split { pins } => {
            require(host, Capability::SplitIrqchip)?;
            enable(fd, "split irqchip", KVM_CAP_SPLIT_IRQCHIP, pins)
        }
        Irqchip::None => Ok(()),
    }
}

fn enable(fd: &VmFd, operation: &'static str, cap: u32, argument: u32) -> Result<(), KvmError> {
    let request = kvm_enable_cap {
        cap,
        args: [argument.into(), 0, 0, 0],
        ..Default::default()
    };
    fd.enable_cap(&request).map_err(KvmError::ioctl(operation))
}
