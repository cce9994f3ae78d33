//! KVM's local APICs as the destination of messages, for an I/O APIC of ours (`KVM_CAP_SPLIT_IRQCHIP`).

use super::irq::{self, GsiRoute, RouteTarget};
use super::memory::VmMemory;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use umbra_devices::irq::{Gsi, Msi, MsiSink};

/// Delivers messages by `KVM_SIGNAL_MSI`.
///
/// It also keeps the VM's interrupt routes in step with the I/O APIC's entries, GSI `n` for input `n`. Not for delivery,
/// but because KVM looks there which vectors are level-triggered: only for those does the end of an interrupt come back
/// as [`crate::exit::VmExit::IoapicEoi`].
pub struct KvmMsiSink {
    memory: Arc<VmMemory>,
    routes: Mutex<BTreeMap<u8, Msi>>,
    refused: AtomicU64,
}

impl KvmMsiSink {
    pub(super) fn new(memory: Arc<VmMemory>) -> Self {
        Self {
            memory,
            routes: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// How many messages and routes the kernel refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn check(&self, what: &dyn std::fmt::Debug, result: Result<(), super::KvmError>) {
        if let Err(error) = result
            && self.refused.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!(?what, %error, "KVM refuses an interrupt; further refusals are only counted");
        }
    }
}

impl MsiSink for KvmMsiSink {
    fn deliver(&self, msi: Msi) {
        self.check(&msi, irq::signal_msi(&self.memory, msi.address, msi.data));
    }

    fn route(&self, pin: u8, msi: Msi) {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.insert(pin, msi);
        let routes: Vec<_> = routes
            .iter()
            .map(|(&pin, &Msi { address, data })| GsiRoute {
                gsi: Gsi(pin.into()),
                target: RouteTarget::Msi { address, data },
            })
            .collect();
        self.check(&(pin, msi), irq::set_routes(&self.memory, &routes));
    }
}
