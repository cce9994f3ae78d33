//! What executes a guest: KVM or the software CPU, chosen once for all lives of a machine.

use super::{IOAPIC_PINS, MachineError};
use crate::app::explain;
use crate::config::{BackendChoice, IrqchipChoice, MachineConfig};
use std::sync::Arc;
use umbra_devices::irq::IrqSink;
use umbra_memslots::{SlotLimits, SlotObserver, SlotReader};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::fallback::{Fallback, FallbackCounts};
use umbra_vcpu::kvm::{Irqchip, KvmHost, KvmKind, KvmVm, OpenError, VmOptions};
use umbra_vcpu::soft::{SoftOptions, SoftVm};

/// What this host has to execute guests.
pub enum Host {
    /// KVM.
    Kvm(KvmHost),
    /// The software CPU; if that was not the user's own choice, why.
    Soft {
        /// What is the matter with KVM.
        because: Option<String>,
    },
}

impl Host {
    /// What the configuration asks for, or the best there is.
    ///
    /// # Errors
    /// KVM was asked for and can't be used.
    pub fn choose(config: &MachineConfig) -> Result<Self, OpenError> {
        match config.backend {
            BackendChoice::Kvm => Ok(Self::Kvm(KvmHost::open_at(&config.kvm_device)?)),
            BackendChoice::Soft => Ok(Self::Soft { because: None }),
            BackendChoice::Auto => Ok(Self::best(config)),
        }
    }

    /// KVM if a VM can be had, the software CPU if not.
    fn best(config: &MachineConfig) -> Self {
        let because = match KvmHost::open_at(&config.kvm_device) {
            Ok(host) => match KvmVm::new(&host, VmOptions::default()) {
                Ok(_) => {
                    tracing::info!(device = %config.kvm_device.display(), "backend kvm: the device makes virtual machines");
                    return Self::Kvm(host);
                }
                Err(error) => explain(&error),
            },
            Err(error) => explain(&error),
        };
        Self::Soft { because: Some(because) }
    }

    /// A line for the user who left the choice to us and doesn't get KVM.
    pub fn notice(&self) -> Option<String> {
        match self {
            Self::Soft { because: Some(why) } => Some(format!("the guest runs on the software CPU: {why}")),
            _ => None,
        }
    }

    /// What it is called in a sentence.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Soft { .. } => "the software CPU",
            Self::Kvm(host) => match host.caps().kind {
                KvmKind::Vmx => "KVM (Intel VMX)",
                KvmKind::Svm => "KVM (AMD SVM)",
                KvmKind::Pagetable => "KVM (pagetable-VM: kernel mode is emulated)",
                KvmKind::Unknown => "KVM",
            },
        }
    }

    /// Physical address bits that a guest can have.
    pub(super) fn physical_bits(&self) -> u8 {
        match self {
            Self::Kvm(_) => super::physical_bits(),
            Self::Soft { .. } => SoftVm::PHYSICAL_BITS,
        }
    }
}

/// What executes the guest of one machine.
pub(super) enum Engine {
    Kvm {
        vm: KvmVm,
        irqchip: Irqchip,
        fallback: bool,
    },
    Soft(SoftVm),
}

impl Engine {
    pub fn new(host: &Host, config: &MachineConfig) -> Result<Self, MachineError> {
        match host {
            Host::Kvm(host) => {
                let irqchip = match config.irqchip {
                    IrqchipChoice::Kernel => Irqchip::Kernel,
                    IrqchipChoice::Split => Irqchip::Split { pins: IOAPIC_PINS },
                };
                let options = VmOptions {
                    vcpus: config.cpus,
                    irqchip,
                    ..VmOptions::default()
                };
                Ok(Self::Kvm {
                    vm: KvmVm::new(host, options)?,
                    irqchip,
                    fallback: config.fallback,
                })
            }
            Host::Soft { .. } if config.cpus > 1 => Err(MachineError::SoftCpus { cpus: config.cpus }),
            Host::Soft { .. } => Ok(Self::Soft(SoftVm::new(SoftOptions {
                mmio_caching: config.mmio_cache,
            })?)),
        }
    }

    /// The name of the backend, as `--backend` has it.
    pub fn backend(&self) -> &'static str {
        match self {
            Self::Kvm { .. } => "kvm",
            Self::Soft(_) => "soft",
        }
    }

    pub fn slot_limits(&self) -> SlotLimits {
        match self {
            Self::Kvm { vm, .. } => vm.slot_limits(),
            Self::Soft(_) => SlotLimits::X86_64,
        }
    }

    /// Who has to follow the memory slots.
    pub fn slot_observer(&self) -> Box<dyn SlotObserver> {
        match self {
            Self::Kvm { vm, .. } => Box::new(vm.slot_mirror()),
            Self::Soft(vm) => vm.slot_follower(),
        }
    }

    /// Where devices' interrupts go, if anywhere.
    pub fn irq_sink(&self) -> Option<Arc<dyn IrqSink>> {
        match self {
            Self::Kvm {
                vm,
                irqchip: Irqchip::Kernel,
                ..
            } => Some(Arc::new(vm.irq_sink())),
            // Without an I/O APIC of ours, there is nowhere to send a line's interrupt.
            _ => None,
        }
    }

    /// A vCPU that sees the memory of `slots`, set up by `prepare`; and what its fallback counts, if it has one.
    pub fn vcpu(
        &self,
        id: u32,
        slots: SlotReader,
        prepare: impl FnOnce(&mut dyn VcpuBackend) -> Result<(), MachineError>,
    ) -> Result<(Box<dyn VcpuBackend>, Option<FallbackCounts>), MachineError> {
        match self {
            Self::Soft(vm) => {
                let mut vcpu = vm.create_vcpu(slots);
                prepare(&mut vcpu)?;
                Ok((Box::new(vcpu), None))
            }
            Self::Kvm { vm, fallback, .. } => {
                let mut vcpu = vm.create_vcpu(id)?;
                prepare(&mut vcpu)?;
                if *fallback {
                    let vcpu = Fallback::new(vcpu, slots);
                    let counts = vcpu.counts();
                    Ok((Box::new(vcpu), Some(counts)))
                } else {
                    Ok((Box::new(vcpu), None))
                }
            }
        }
    }
}
