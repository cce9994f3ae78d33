//! Interrupts of 8259s of ours, for a vCPU whose local APIC is the kernel's ([`Irqchip::Split`](super::Irqchip::Split)).
//!
//! The local APIC's LINT0 pin, set to ExtINT, lets such an interrupt through; its vector comes from the 8259s when the CPU
//! takes it. So it is acknowledged only when the kernel says that the vCPU would take one now
//! (`kvm_run.ready_for_interrupt_injection`), and is handed over by `KVM_INTERRUPT`; otherwise the kernel is asked to come
//! out when it would (`request_interrupt_window`).

use super::run_page::RunPage;
use std::io;
use std::sync::Arc;
use umbra_devices::IntrSource;

/// The 8259s of one vCPU.
pub(super) struct External {
    source: Arc<dyn IntrSource>,
    /// Acknowledged, but the kernel has no room for it yet.
    vector: Option<u8>,
    /// Registers were written since the kernel said whether the vCPU would take an interrupt.
    changed: bool,
}

impl External {
    pub fn new(source: Arc<dyn IntrSource>) -> Self {
        Self {
            source,
            vector: None,
            changed: false,
        }
    }

    /// Somebody else changes the vCPU's registers: it may take interrupts no longer. The kernel is asked.
    pub fn registers_change(&mut self) {
        self.changed = true;
    }

    /// Whether an interrupt waits.
    pub fn waits(&self) -> bool {
        self.vector.is_some() || self.source.is_pending()
    }

    /// The vCPU is about to be run: gives the kernel what it can take, and has it come out when it can take the rest.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn offer(&mut self, page: &mut RunPage) -> io::Result<()> {
        let ready = !std::mem::take(&mut self.changed) && page.is_ready_for_interrupt();
        if self.vector.is_none() && ready && self.source.is_pending() {
            self.vector = Some(self.source.acknowledge());
        }
        if let Some(vector) = self.vector {
            match page.interrupt(vector) {
                Ok(()) => self.vector = None,
                // The one before is not delivered yet.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(error),
            }
        }
        page.set_interrupt_window(self.waits());
        Ok(())
    }
}
