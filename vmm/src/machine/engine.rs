//! What executes a guest: KVM, KVM on our shadow tables, or the software CPU, chosen once for all lives of a machine.

use super::MachineError;
use super::chipset::{Chipset, Legacy};
use super::choice::{self, Choice, GuestKind, Taken};
use super::turns::{Life, Turns};
use crate::app::explain;
use crate::config::{BackendChoice, IrqchipChoice, MachineConfig};
use std::io;
use std::path::Path;
use std::sync::Arc;
use umbra_devices::irq::IrqSink;
use umbra_devices::models::ioapic::{self, IoApic};
use umbra_devices::{Clock, HostClock};
use umbra_memslots::{SlotLimits, SlotObserver, SlotReader};
use umbra_mmu::direct::DirectMmu;
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::fallback::{Fallback, FallbackCounts};
use umbra_vcpu::kvm::{Irqchip, KvmHost, KvmKind, KvmVm, OpenError, VmOptions};
use umbra_vcpu::shadow::{ShadowCounts, ShadowOptions, ShadowVm};
use umbra_vcpu::soft::{SoftCounts, SoftOptions, SoftVcpu, SoftVm};
use umbra_vcpu::turns::SharedTrace;

/// What this host has to execute guests.
pub enum Host {
    /// KVM.
    Kvm(KvmHost),
    /// KVM for user code, on shadow tables of ours.
    Shadow(KvmHost),
    /// The software CPU.
    Soft {
        /// If its CPUs take turns by counted time.
        turns: Option<Arc<Turns>>,
    },
}

impl Host {
    /// What the configuration asks for, or the best there is for such a guest, and then why.
    ///
    /// # Errors
    /// KVM was asked for and can't be used.
    pub fn choose(config: &MachineConfig, guest: GuestKind) -> Result<(Self, Option<Choice>), OpenError> {
        let host = match config.backend {
            BackendChoice::Kvm => Self::Kvm(KvmHost::open_at(&config.kvm_device)?),
            BackendChoice::Shadow => Self::Shadow(KvmHost::open_at(&config.kvm_device)?),
            BackendChoice::Soft => Self::Soft { turns: None },
            BackendChoice::Auto if config.deterministic.is_some() => {
                let choice = Choice::deterministic(needs_kvm(config));
                return Ok((Self::Soft { turns: None }, Some(choice)));
            }
            BackendChoice::Auto => {
                let (host, choice) = Self::best(&config.kvm_device, guest, needs_kvm(config));
                return Ok((host, Some(choice)));
            }
        };
        Ok((host, None))
    }

    /// What `--backend auto` takes. KVM counts if a VM can be had.
    pub fn best(device: &Path, guest: GuestKind, needs_kvm: Option<&str>) -> (Self, Choice) {
        let kvm = match KvmHost::open_at(device) {
            Ok(host) => match KvmVm::new(&host, VmOptions::default()) {
                Ok(_) => Ok(host),
                Err(error) => Err(explain(&error)),
            },
            Err(error) => Err(explain(&error)),
        };
        let kind = kvm.as_ref().map(|host| host.caps().kind).map_err(Clone::clone);
        let choice = choice::choose(kind, guest, needs_kvm);
        let host = match (kvm, choice.backend) {
            (Ok(host), Taken::Kvm) => Self::Kvm(host),
            _ => Self::Soft { turns: None },
        };
        (host, choice)
    }

    /// The same, with the software CPUs taking turns.
    #[must_use]
    pub fn in_turns(self, turns: Turns) -> Self {
        match self {
            Self::Soft { .. } => Self::Soft {
                turns: Some(Arc::new(turns)),
            },
            other => other,
        }
    }

    /// What a deterministic machine's lives share.
    pub fn turns(&self) -> Option<&Turns> {
        match self {
            Self::Soft { turns } => turns.as_deref(),
            _ => None,
        }
    }

    /// What it is called in a sentence.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Soft { .. } => "the software CPU",
            Self::Shadow(_) => "shadow tables (user mode on the CPU, the rest in software)",
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
            Self::Kvm(_) | Self::Shadow(_) => super::physical_bits(),
            Self::Soft { .. } => SoftVm::PHYSICAL_BITS,
        }
    }
}

/// An option that only KVM understands.
fn needs_kvm(config: &MachineConfig) -> Option<&'static str> {
    (config.irqchip == IrqchipChoice::Split).then_some("--irqchip split")
}

/// What executes the guest of one machine.
pub(super) enum Engine {
    Kvm {
        vm: KvmVm,
        /// Ours, if KVM has only the local APICs.
        ours: Option<Ours>,
        fallback: bool,
    },
    Shadow(ShadowVm),
    Soft {
        vm: SoftVm,
        chipset: Chipset,
        cpus: u32,
        /// If they take turns.
        life: Option<Life>,
    },
}

/// The interrupt controllers and timers beside KVM's local APICs.
pub(super) struct Ours {
    ioapic: Arc<IoApic>,
    legacy: Legacy,
}

impl Ours {
    fn new(vm: &KvmVm) -> Result<Self, MachineError> {
        let ioapic = Arc::new(IoApic::new(Arc::new(vm.msi_sink())));
        let legacy = Legacy::new(&ioapic).map_err(no_timers)?;
        Ok(Self { ioapic, legacy })
    }
}

fn no_timers(source: io::Error) -> MachineError {
    MachineError::Host {
        what: "no thread for the timers",
        source,
    }
}

/// A vCPU of either way to run it.
pub(super) enum MadeVcpu {
    /// On a thread of its own.
    Free(Box<dyn VcpuBackend>),
    /// In turns with others.
    InTurns(Box<SoftVcpu>),
}

/// A vCPU, and what it counts besides exits.
pub(super) struct Made {
    pub vcpu: MadeVcpu,
    pub fallback: Option<FallbackCounts>,
    pub shadow: Option<ShadowCounts>,
    pub software_cpu: Option<SoftCounts>,
}

impl Engine {
    pub fn new(host: &Host, config: &MachineConfig) -> Result<Self, MachineError> {
        match host {
            Host::Kvm(host) => {
                let irqchip = match config.irqchip {
                    IrqchipChoice::Kernel => Irqchip::Kernel,
                    IrqchipChoice::Split => Irqchip::Split {
                        pins: ioapic::regs::PINS.into(),
                    },
                };
                let options = VmOptions {
                    vcpus: config.cpus,
                    irqchip,
                    fallback: config.fallback,
                    ..VmOptions::default()
                };
                let vm = KvmVm::new(host, options)?;
                let ours = (irqchip != Irqchip::Kernel).then(|| Ours::new(&vm)).transpose()?;
                Ok(Self::Kvm {
                    ours,
                    vm,
                    fallback: config.fallback,
                })
            }
            Host::Shadow(_) if config.cpus > 1 => Err(MachineError::ShadowCpus { cpus: config.cpus }),
            Host::Shadow(host) => Ok(Self::Shadow(ShadowVm::new(
                host,
                ShadowOptions {
                    mmio_caching: config.mmio_cache,
                },
            )?)),
            Host::Soft { turns } => {
                let options = SoftOptions {
                    mmio_caching: config.mmio_cache,
                };
                let life = turns.as_ref().map(Turns::life);
                let (vm, chipset) = match &life {
                    Some(life) => (
                        SoftVm::in_turns(options, Arc::clone(&life.clock))?,
                        Chipset::in_turns(config.cpus, SoftVm::TSC_HZ, life),
                    ),
                    None => (
                        SoftVm::new(options)?,
                        Chipset::new(config.cpus, SoftVm::TSC_HZ).map_err(no_timers)?,
                    ),
                };
                Ok(Self::Soft {
                    vm,
                    chipset,
                    cpus: config.cpus,
                    life,
                })
            }
        }
    }

    /// How many page tables of ours are in use, whenever it is asked. On KVM those are `direct`'s.
    pub fn page_tables(&self, direct: &Arc<DirectMmu>) -> Arc<dyn Fn() -> u32 + Send + Sync> {
        match self {
            Self::Kvm { .. } => {
                let direct = Arc::clone(direct);
                Arc::new(move || direct.table().tables_in_use())
            }
            Self::Shadow(vm) => Arc::new(vm.page_tables()),
            Self::Soft { vm, .. } => Arc::new(vm.page_tables()),
        }
    }

    /// What a machine has whose vCPUs take turns.
    pub fn life(&self) -> Option<&Life> {
        match self {
            Self::Soft { life, .. } => life.as_ref(),
            _ => None,
        }
    }

    /// What is told about a deterministic run.
    pub fn trace(&self) -> Option<SharedTrace> {
        self.life().map(|life| life.trace().clone())
    }

    /// The time of day.
    pub fn clock(&self) -> Arc<dyn Clock> {
        match self.life() {
            Some(life) => Arc::clone(&life.clock) as _,
            None => Arc::new(HostClock::new()),
        }
    }

    /// The name of the backend, as `--backend` has it.
    pub fn backend(&self) -> &'static str {
        match self {
            Self::Kvm { .. } => "kvm",
            Self::Shadow(_) => "shadow",
            Self::Soft { .. } => "soft",
        }
    }

    pub fn slot_limits(&self) -> SlotLimits {
        match self {
            Self::Kvm { vm, .. } => vm.slot_limits(),
            Self::Shadow(vm) => vm.slot_limits(),
            Self::Soft { .. } => SlotLimits::X86_64,
        }
    }

    /// Who has to follow the memory slots, in this order.
    pub fn slot_observers(&self) -> Vec<Box<dyn SlotObserver>> {
        match self {
            Self::Kvm { vm, .. } => vec![Box::new(vm.slot_mirror())],
            Self::Shadow(vm) => vm.slot_observers(),
            Self::Soft { vm, .. } => vec![vm.slot_follower()],
        }
    }

    /// Where devices' interrupts go, if anywhere.
    pub fn irq_sink(&self) -> Option<Arc<dyn IrqSink>> {
        match self {
            Self::Kvm { ours: Some(ours), .. } => Some(Arc::clone(&ours.legacy.sink)),
            Self::Kvm { vm, .. } => Some(Arc::new(vm.irq_sink())),
            Self::Soft { chipset, .. } => Some(Arc::clone(&chipset.legacy.sink)),
            // Its CPU has no local APIC.
            Self::Shadow(_) => None,
        }
    }

    /// Whether there are the APICs that our ACPI tables tell of. They also say that there is nothing else.
    pub fn has_apics(&self) -> bool {
        !matches!(self, Self::Shadow(_))
    }

    /// The I/O APIC, if it is ours.
    pub fn ioapic(&self) -> Option<&Arc<IoApic>> {
        match self {
            Self::Kvm { ours, .. } => ours.as_ref().map(|ours| &ours.ioapic),
            Self::Soft { chipset, .. } => Some(&chipset.ioapic),
            Self::Shadow(_) => None,
        }
    }

    /// The 8259s and the timer, if they are ours.
    pub fn legacy(&self) -> Option<&Legacy> {
        match self {
            Self::Kvm { ours, .. } => ours.as_ref().map(|ours| &ours.legacy),
            Self::Soft { chipset, .. } => Some(&chipset.legacy),
            Self::Shadow(_) => None,
        }
    }

    /// All controllers and timers, if all are ours.
    pub fn chipset(&self) -> Option<&Chipset> {
        match self {
            Self::Soft { chipset, .. } => Some(chipset),
            Self::Kvm { .. } | Self::Shadow(_) => None,
        }
    }

    /// A vCPU that sees the memory that `slots` makes readers for, set up by `prepare`. `timed`: it takes the time of what it
    /// does for devices.
    pub fn vcpu(
        &self,
        id: u32,
        timed: bool,
        slots: impl Fn() -> SlotReader,
        prepare: impl FnOnce(&mut dyn VcpuBackend) -> Result<(), MachineError>,
    ) -> Result<Made, MachineError> {
        let made = |vcpu: Box<dyn VcpuBackend>, fallback, shadow| Made {
            vcpu: MadeVcpu::Free(vcpu),
            fallback,
            shadow,
            software_cpu: None,
        };
        match self {
            Self::Soft {
                vm,
                chipset,
                cpus,
                life,
            } => {
                let mut vcpu = vm.create_vcpu(slots());
                if let Some(apic) = chipset.apics.apic(id) {
                    vcpu.set_local_apic(apic, *cpus);
                }
                if id == 0 {
                    vcpu.set_fpu_errors(Arc::clone(&chipset.legacy.fpu_errors));
                }
                prepare(&mut vcpu)?;
                if timed {
                    vcpu.time_devices();
                }
                let (counts, shadow) = (vcpu.counts(), vcpu.shadow_counts());
                let vcpu = Box::new(vcpu);
                Ok(Made {
                    vcpu: match life {
                        Some(_) => MadeVcpu::InTurns(vcpu),
                        None => MadeVcpu::Free(vcpu),
                    },
                    software_cpu: Some(counts),
                    shadow: Some(shadow),
                    fallback: None,
                })
            }
            Self::Shadow(vm) => {
                let mut vcpu = vm.create_vcpu(slots)?;
                prepare(&mut vcpu)?;
                let counts = (Some(vcpu.counts()), Some(vcpu.backend().counts()));
                Ok(made(Box::new(vcpu), counts.0, counts.1))
            }
            Self::Kvm { vm, fallback, ours } => {
                let mut vcpu = vm.create_vcpu(id)?;
                if let Some(ours) = ours.as_ref().filter(|_| id == 0) {
                    vcpu.set_external_interrupts(Arc::clone(&ours.legacy.pic) as _);
                }
                prepare(&mut vcpu)?;
                if *fallback {
                    let vcpu = Fallback::new(vcpu, slots());
                    let counts = vcpu.counts();
                    Ok(made(Box::new(vcpu), Some(counts), None))
                } else {
                    Ok(made(Box::new(vcpu), None, None))
                }
            }
        }
    }
}
