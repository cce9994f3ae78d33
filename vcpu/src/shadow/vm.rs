//! [`ShadowVm`]: a machine whose one vCPU is a [`ShadowCpu`].

use super::arena::ArenaError;
use super::cpu::ShadowCpu;
use super::follower::ShadowFollower;
use super::native::{NativeCpu, NativeError};
use super::tables::SharedTables;
use super::tlb::ShadowTlb;
use crate::backend::BackendError;
use crate::fallback::Fallback;
use crate::kvm::{Irqchip, KvmError, KvmHost, KvmVm, VmOptions};
use std::sync::{Arc, Mutex, PoisonError};
use umbra_memslots::{SlotLimits, SlotObserver, SlotReader};
use umbra_mmu::shadow::{HostParams, LayoutError, ShadowError, ShadowMmu, SpteLayout};

/// Tables of 4 KiB, of which the host backs those that are used.
const TABLES: u32 = 1 << 14;

/// Why there is no such machine.
#[derive(Debug, thiserror::Error)]
pub enum ShadowVmError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory for monitor and tables.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The vCPU can't be set up.
    #[error("cannot set up a vCPU: {0}")]
    Vcpu(#[from] BackendError),
    /// The layout of the entries can't be had.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The shadow MMU refuses.
    #[error(transparent)]
    Shadow(#[from] ShadowError),
}

impl From<NativeError> for ShadowVmError {
    fn from(error: NativeError) -> Self {
        match error {
            NativeError::Arena(error) => Self::Arena(error),
            NativeError::Kvm(error) => Self::Kvm(error),
            NativeError::Vcpu(error) => Self::Vcpu(error),
        }
    }
}

/// What the machine is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShadowOptions {
    /// Remember MMIO in MMIO SPTEs.
    pub mmio_caching: bool,
}

/// A machine without interrupt controllers.
pub struct ShadowVm {
    vm: KvmVm,
    mmu: Arc<ShadowMmu<SharedTables>>,
    tlb: ShadowTlb,
    /// Until somebody wants it.
    native: Mutex<Option<Box<NativeCpu>>>,
}

impl ShadowVm {
    /// How many shadow pages are in use, whenever it is asked.
    pub fn page_tables(&self) -> impl Fn() -> u32 + Send + Sync + use<> {
        let mmu = Arc::clone(&self.mmu);
        move || mmu.tables_in_use()
    }

    /// A machine without memory.
    ///
    /// # Errors
    /// [`ShadowVmError`].
    pub fn new(host: &KvmHost, options: ShadowOptions) -> Result<Self, ShadowVmError> {
        let vm_options = VmOptions {
            // What the core executes is told to our tables, and its own fallback is not KVM's.
            fallback: false,
            irqchip: Irqchip::None,
            ..VmOptions::default()
        };
        let mut vm = KvmVm::new(host, vm_options)?;
        let (native, space) = NativeCpu::new(&mut vm, TABLES)?;
        let params = HostParams::x86(vm.physical_bits()).with_mmio_caching(options.mmio_caching);
        let mmu = ShadowMmu::new(SpteLayout::new(params)?, space)?;
        Ok(Self {
            vm,
            mmu: Arc::new(mmu),
            tlb: native.tlb(),
            native: Mutex::new(Some(Box::new(native))),
        })
    }

    /// What it accepts as memory slots.
    pub fn slot_limits(&self) -> SlotLimits {
        self.vm.slot_limits()
    }

    /// Who has to follow the memory slots, in this order, from the first slot on.
    pub fn slot_observers(&self) -> Vec<Box<dyn SlotObserver>> {
        vec![
            Box::new(ShadowFollower::new(Arc::clone(&self.mmu), self.tlb.clone())),
            Box::new(self.vm.slot_mirror()),
        ]
    }

    /// The vCPU, which sees the memory that `slots` makes readers for.
    ///
    /// # Errors
    /// It was made already, or the host failed.
    pub fn create_vcpu(&self, slots: impl Fn() -> SlotReader) -> Result<Fallback<ShadowCpu>, ShadowVmError> {
        let native = self.native.lock().unwrap_or_else(PoisonError::into_inner).take();
        let native = native.ok_or(KvmError::TooManyVcpus { id: 1, max: 1 })?;
        let cpu = ShadowCpu::new(*native, Arc::clone(&self.mmu), slots(), slots())?;
        Ok(Fallback::new(cpu, slots()))
    }
}
