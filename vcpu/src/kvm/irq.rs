//! Interrupt lines and message-signalled interrupts of a KVM VM.

use super::error::KvmError;
use super::memory::VmMemory;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_msi,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use umbra_devices::irq::{Gsi, IrqSink};
use vmm_sys_util::eventfd::EventFd;

/// Where one global system interrupt goes.
///
/// A new VM with [`super::Irqchip::Kernel`] has GSI `n` on I/O APIC pin `n` for `n` in `0..24`, and `0..16` on the two
/// PICs as well; also GSI 0, the PIT, so that its ACPI tables must *not* override interrupt 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GsiRoute {
    /// The interrupt.
    pub gsi: Gsi,
    /// Its destination. Several routes may share a GSI if they go to different chips.
    pub target: RouteTarget,
}

/// An interrupt's destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteTarget {
    /// A pin of the first PIC, 0..8.
    PicMaster(u32),
    /// A pin of the second PIC, 0..8.
    PicSlave(u32),
    /// A pin of the I/O APIC, 0..24.
    IoApic(u32),
    /// A message (SDM vol. 3A section 11.11).
    Msi {
        /// Message address.
        address: u64,
        /// Message data.
        data: u32,
    },
}

/// KVM's interrupt controllers as the end of device lines (`KVM_IRQ_LINE`).
pub struct KvmIrqSink {
    memory: Arc<VmMemory>,
    refused: AtomicU64,
}

impl KvmIrqSink {
    pub(super) fn new(memory: Arc<VmMemory>) -> Self {
        Self {
            memory,
            refused: AtomicU64::new(0),
        }
    }

    /// How many level changes the kernel refused (there is no interrupt controller in it).
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl IrqSink for KvmIrqSink {
    fn set_level(&self, gsi: Gsi, high: bool) {
        if let Err(error) = self.memory.fd().set_irq_line(gsi.0, high)
            && self.refused.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!(gsi = gsi.0, %error, "KVM takes no interrupt on this line; further refusals are only counted");
        }
    }
}

/// Replaces every route (`KVM_SET_GSI_ROUTING`).
pub(super) fn set_routes(memory: &VmMemory, routes: &[GsiRoute]) -> Result<(), KvmError> {
    let entries: Vec<_> = routes.iter().map(routing_entry).collect();
    let max = kvm_bindings::KVM_MAX_IRQ_ROUTES;
    let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError::TooMany {
        what: "interrupt routes",
        value: routes.len(),
        max,
    })?;
    memory
        .fd()
        .set_gsi_routing(&routing)
        .map_err(KvmError::ioctl("KVM_SET_GSI_ROUTING"))
}

/// Delivers one message now (`KVM_SIGNAL_MSI`).
pub(super) fn signal_msi(memory: &VmMemory, address: u64, data: u32) -> Result<(), KvmError> {
    let [address_lo, address_hi] = halves(address);
    let msi = kvm_msi {
        address_lo,
        address_hi,
        data,
        ..Default::default()
    };
    memory
        .fd()
        .signal_msi(msi)
        .map(drop)
        .map_err(KvmError::ioctl("KVM_SIGNAL_MSI"))
}

/// Lets an eventfd pulse a line without a system call here (`KVM_IRQFD`); `resample` makes it level-triggered: the line
/// stays up until the guest's end of interrupt signals that eventfd.
pub(super) fn set_irqfd(
    memory: &VmMemory,
    event: &EventFd,
    gsi: Gsi,
    resample: Option<&EventFd>,
) -> Result<(), KvmError> {
    let result = match resample {
        Some(resample) => memory.fd().register_irqfd_with_resample(event, resample, gsi.0),
        None => memory.fd().register_irqfd(event, gsi.0),
    };
    result.map_err(KvmError::ioctl("KVM_IRQFD"))
}

/// Takes back [`set_irqfd`].
pub(super) fn unset_irqfd(memory: &VmMemory, event: &EventFd, gsi: Gsi) -> Result<(), KvmError> {
    memory
        .fd()
        .unregister_irqfd(event, gsi.0)
        .map_err(KvmError::ioctl("KVM_IRQFD (deassign)"))
}

fn routing_entry(route: &GsiRoute) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: route.gsi.0,
        ..Default::default()
    };
    let (chip, pin) = match route.target {
        RouteTarget::PicMaster(pin) => (KVM_IRQCHIP_PIC_MASTER, pin),
        RouteTarget::PicSlave(pin) => (KVM_IRQCHIP_PIC_SLAVE, pin),
        RouteTarget::IoApic(pin) => (KVM_IRQCHIP_IOAPIC, pin),
        RouteTarget::Msi { address, data } => {
            let [address_lo, address_hi] = halves(address);
            entry.type_ = KVM_IRQ_ROUTING_MSI;
            entry.u.msi = kvm_bindings::kvm_irq_routing_msi {
                address_lo,
                address_hi,
                data,
                ..Default::default()
            };
            return entry;
        }
    };
    entry.type_ = KVM_IRQ_ROUTING_IRQCHIP;
    entry.u.irqchip = kvm_bindings::kvm_irq_routing_irqchip { irqchip: chip, pin };
    entry
}

/// Low and high 32 bits.
fn halves(address: u64) -> [u32; 2] {
    let bytes = address.to_le_bytes();
    [
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    ]
}
