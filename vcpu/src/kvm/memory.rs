//! The kernel's side of a VM, and what must live as long as it.

use kvm_ioctls::VmFd;

/// A VM's descriptor, shared by everything that keeps the VM alive.
pub(super) struct VmMemory {
    fd: VmFd,
}

impl VmMemory {
    pub fn new(fd: VmFd) -> Self {
        Self { fd }
    }

    pub fn fd(&self) -> &VmFd {
        &self.fd
    }
}
