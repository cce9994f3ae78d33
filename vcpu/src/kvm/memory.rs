//! The kernel's memory slots, and what keeps the memory behind them mapped.

use super::coalesced::Turns;
use kvm_bindings::{KVM_MEM_GUEST_MEMFD, kvm_userspace_memory_region, kvm_userspace_memory_region2};
use kvm_ioctls::VmFd;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use umbra_memslots::{Backing, SlotRequest};

/// A VM's descriptor together with the memory its guest can reach. Shared by everything that keeps the VM alive, so
/// that no mapping goes away while a vCPU could still write to it.
pub(super) struct VmMemory {
    fd: VmFd,
    /// By the ioctl's slot number. Dropped after `fd`.
    mapped: Mutex<BTreeMap<u32, Arc<dyn Backing>>>,
    turns: Turns,
}

impl VmMemory {
    pub fn new(fd: VmFd) -> Self {
        Self {
            fd,
            mapped: Mutex::default(),
            turns: Turns::default(),
        }
    }

    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Who may empty the ring of coalesced writes.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Creates, moves or re-flags a slot whose memory is `backing`.
    ///
    /// # Errors
    /// The slot's host range is not within `backing` (`EFAULT`), or the kernel refused.
    pub fn set(&self, request: &SlotRequest, backing: &Arc<dyn Backing>) -> io::Result<()> {
        let start = request.userspace_addr.checked_offset_from(backing.start());
        let end = start.and_then(|start| start.checked_add(request.memory_size));
        if end.is_none_or(|end| end > backing.bytes()) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        self.ioctl(request)?;
        // The old backing, if another, is dropped only now that the kernel no longer uses it.
        mapped.insert(request.slot, Arc::clone(backing));
        Ok(())
    }

    /// Deletes a slot.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn delete(&self, slot: u32) -> io::Result<()> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        self.ioctl(&SlotRequest::delete(slot))?;
        mapped.remove(&slot);
        Ok(())
    }

    /// The ioctl. Private: `set` checks the range and keeps the memory alive, `delete` names no memory.
    fn ioctl(&self, request: &SlotRequest) -> io::Result<()> {
        let result = match request.guest_memfd {
            Some(memfd) => {
                let region = kvm_userspace_memory_region2 {
                    slot: request.slot,
                    flags: request.flags,
                    guest_phys_addr: request.guest_phys_addr.get(),
                    memory_size: request.memory_size,
                    userspace_addr: request.userspace_addr.get(),
                    guest_memfd_offset: if request.flags & KVM_MEM_GUEST_MEMFD != 0 {
                        memfd.offset
                    } else {
                        0
                    },
                    guest_memfd: memfd.fd,
                    ..Default::default()
                };
                // SAFETY: the range is mapped and stays so until the slot is gone (`set`), and no Rust reference points
                // into it (`Backing`'s contract); or the request deletes.
                unsafe { self.fd.set_user_memory_region2(region) }
            }
            None => {
                let region = kvm_userspace_memory_region {
                    slot: request.slot,
                    flags: request.flags,
                    guest_phys_addr: request.guest_phys_addr.get(),
                    memory_size: request.memory_size,
                    userspace_addr: request.userspace_addr.get(),
                };
                // SAFETY: as above.
                unsafe { self.fd.set_user_memory_region(region) }
            }
        };
        result.map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}
