//! The bus's ioeventfds and coalesced zones in the kernel, where they spare exits.

use super::memory::VmMemory;
use kvm_bindings::{
    KVMIO, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::IoEventAddress;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use umbra_devices::bus::{BusMirror, EventMatch, IoEvent};
use umbra_devices::{BusRange, Port};
use umbra_memslots::Gpa;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;

vmm_sys_util::ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

/// Tells the kernel what a bus registers (`KVM_IOEVENTFD`, `KVM_REGISTER_COALESCED_MMIO`): for
/// [`umbra_devices::Bus::set_mirror`] of the MMIO bus and of the port bus.
pub struct KvmBusMirror {
    memory: Arc<VmMemory>,
}

impl KvmBusMirror {
    pub(super) fn new(memory: Arc<VmMemory>) -> Self {
        Self { memory }
    }

    /// The safe wrapper has no way to ask for a length without a value.
    fn ioeventfd<A>(&self, event: &IoEvent<A>, addr: u64, flags: u32) -> io::Result<()> {
        let (datamatch, matching) = match event.matching {
            EventMatch::Value(_, value) => (value, 1 << kvm_ioeventfd_flag_nr_datamatch),
            EventMatch::Anything | EventMatch::Size(_) => (0, 0),
        };
        let request = kvm_ioeventfd {
            datamatch,
            addr,
            len: u32::try_from(event.matching.bytes()).unwrap_or(0),
            fd: event.event.as_raw_fd(),
            flags: flags | matching,
            ..Default::default()
        };
        // SAFETY: the descriptor is a KVM VM's, and the kernel only reads the structure that this request is about.
        let result = unsafe { ioctl_with_ref(self.memory.fd(), KVM_IOEVENTFD(), &request) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn coalesce(&self, start: IoEventAddress, bytes: u64) -> io::Result<()> {
        self.memory
            .fd()
            .register_coalesced_mmio(start, width(bytes)?)
            .map_err(as_io)?;
        self.memory.turns().begin_use();
        Ok(())
    }

    fn uncoalesce(&self, start: IoEventAddress, bytes: u64) -> io::Result<()> {
        self.memory
            .fd()
            .unregister_coalesced_mmio(start, width(bytes)?)
            .map_err(as_io)
    }
}

const DEASSIGN: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;
const PIO: u32 = 1 << kvm_ioeventfd_flag_nr_pio;

impl BusMirror<Gpa> for KvmBusMirror {
    fn assign_event(&self, event: &IoEvent<Gpa>) -> io::Result<()> {
        self.ioeventfd(event, event.addr.get(), 0)
    }

    fn deassign_event(&self, event: &IoEvent<Gpa>) -> io::Result<()> {
        self.ioeventfd(event, event.addr.get(), DEASSIGN)
    }

    fn coalesce(&self, zone: BusRange<Gpa>) -> io::Result<()> {
        self.coalesce(IoEventAddress::Mmio(zone.start().get()), zone.len())
    }

    fn uncoalesce(&self, zone: BusRange<Gpa>) -> io::Result<()> {
        self.uncoalesce(IoEventAddress::Mmio(zone.start().get()), zone.len())
    }
}

impl BusMirror<Port> for KvmBusMirror {
    fn assign_event(&self, event: &IoEvent<Port>) -> io::Result<()> {
        self.ioeventfd(event, event.addr.get().into(), PIO)
    }

    fn deassign_event(&self, event: &IoEvent<Port>) -> io::Result<()> {
        self.ioeventfd(event, event.addr.get().into(), PIO | DEASSIGN)
    }

    fn coalesce(&self, zone: BusRange<Port>) -> io::Result<()> {
        self.coalesce(IoEventAddress::Pio(zone.start().get().into()), zone.len())
    }

    fn uncoalesce(&self, zone: BusRange<Port>) -> io::Result<()> {
        self.uncoalesce(IoEventAddress::Pio(zone.start().get().into()), zone.len())
    }
}

/// A zone's length as the kernel takes it.
fn width(bytes: u64) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn as_io(error: errno::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
