//! Ordinary KVM. The only folder that knows `kvm_bindings`.
//!
//! Read in this order: [`KvmHost`] (open it, say why not), [`Capability`] and [`HostCaps`] (what it can do), [`KvmVm`]
//! (make a machine), [`KvmVcpu`] (run it).

#[expect(
    unsafe_code,
    reason = "the kernel takes ioeventfds that the safe wrapper cannot express"
)]
mod bus_mirror;
mod caps;
mod coalesced;
mod cpuid;
#[expect(unsafe_code, reason = "KVM_SET_XSAVE may read as much as the kernel's state has")]
mod emulation;
mod error;
mod exits;
mod external;
mod host;
mod irq;
#[expect(
    unsafe_code,
    reason = "the kick signal's handler writes through a pointer; gettid and tgkill have no safe wrapper"
)]
mod kick;
#[cfg(test)]
mod kick_model;
#[expect(unsafe_code, reason = "giving the guest host memory is an unsafe ioctl")]
mod memory;
mod msi;
mod registers;
#[expect(unsafe_code, reason = "memory shared with the kernel, and KVM_RUN")]
mod run_page;
mod slot_mirror;
mod start_state;
mod table_reset;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;
#[expect(unsafe_code, reason = "the kernel tells a controller's state in a union")]
mod waiting;

pub use bus_mirror::KvmBusMirror;
pub use caps::{Capability, HostCaps, KvmKind};
pub use error::KvmError;
pub use host::{DEVICE, KvmHost, OpenError};
pub use irq::{GsiRoute, KvmIrqSink, RouteTarget};
pub use msi::KvmMsiSink;
pub use slot_mirror::SlotMirror;
pub use vcpu::KvmVcpu;
pub use vm::{Irqchip, KvmVm, VmOptions};
