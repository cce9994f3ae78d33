//! A KVM vCPU that runs one program at a time, from an image until it halts or shuts down.

use super::image::{Image, SIZE};
use super::support::Guest;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use umbra_devices::IoOp;
use umbra_vcpu::backend::{BackendError, Kick, VcpuBackend};
use umbra_vcpu::emulate::CpuState;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::fallback::{EmulationHost, Parts};
use umbra_vcpu::kvm::{Irqchip, KvmVcpu};

/// Guest RAM.
pub const RAM: u64 = super::support::RAM;
/// What every port answers.
pub const PORT_VALUE: u32 = 0x5aa5_9669;

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Halted,
    ShutDown,
}

pub struct Machine {
    guest: Guest,
    vcpu: KvmVcpu,
    /// Programs begun.
    turns: Arc<AtomicU64>,
}

/// No program takes that long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends programs that go in circles: kicks the vCPU when the same program is still running after [`PATIENCE`].
fn watch(kick: Box<dyn Kick>, turns: &Arc<AtomicU64>) {
    let turns = Arc::downgrade(turns);
    std::thread::spawn(move || {
        let mut last = 0;
        loop {
            std::thread::sleep(PATIENCE);
            let Some(turns) = turns.upgrade() else { return };
            let now = turns.load(Ordering::Relaxed);
            if now == last {
                kick.kick();
            }
            last = now;
        }
    });
}

impl Machine {
    /// `None` without KVM.
    pub fn new() -> Option<Self> {
        let guest = Guest::new(Irqchip::None, 1)?;
        let vcpu = guest.vm.create_vcpu(0).unwrap();
        let turns = Arc::default();
        watch(vcpu.kick_handle(), &turns);
        Some(Self { guest, vcpu, turns })
    }

    /// Whether it is no hardware that runs kernel code (a pagetable-VM KVM).
    pub fn emulates_kernel_code(&self) -> bool {
        self.vcpu.limits().is_some()
    }

    /// A vCPU without a past.
    pub fn renew(&mut self) {
        if let Some(new) = Self::new() {
            *self = new;
        }
    }

    /// Runs a program. The state comes back with everything that instructions can see, and the memory.
    pub fn run(&mut self, image: &Image) -> Result<(End, CpuState, Vec<u8>), String> {
        let text = |error: BackendError| error.to_string();
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.guest.ram.write(0, &image.memory);
        let vcpu = &mut self.vcpu;
        // What the program does not set out with: APIC base and the like stay the vCPU's own.
        let own = vcpu.system_regs().map_err(text)?;
        let mut system = image.state.sys;
        system.apic_base = own.apic_base;
        // QEMU's processor stops at a task register with the busy bit, which its own `ltr` never sets in the hidden part
        // ("invalid tss type"; SDM vol. 3A section 7.2.2 says that it is set). KVM tells a busy one in either case.
        system.tr.kind &= !2;
        vcpu.set_system_regs(&system).map_err(text)?;
        vcpu.set_regs(&image.state.regs()).map_err(text)?;
        let msrs = Parts {
            msrs: true,
            ..Parts::default()
        };
        let mut before = CpuState::default();
        vcpu.load_parts(&mut before, msrs).map_err(text)?;
        vcpu.store_parts(&before, &image.state, msrs).map_err(text)?;
        let mut entry = VmEntry::Resume;
        let end = loop {
            match vcpu.run(entry).map_err(text)? {
                VmExit::Hlt => break End::Halted,
                VmExit::Shutdown => break End::ShutDown,
                VmExit::Pio {
                    op: IoOp::Read, size, ..
                } => {
                    let mask = u64::MAX >> (64 - 8 * size.bytes());
                    entry = VmEntry::Value(u64::from(PORT_VALUE) & mask);
                }
                VmExit::Pio { .. } => entry = VmEntry::Resume,
                VmExit::Interrupted => return Err("kvm: the program goes in circles".to_owned()),
                other => return Err(format!("unexpected exit {other:?}")),
            }
        };
        let mut state = CpuState::new(&vcpu.regs().map_err(text)?, &vcpu.system_regs().map_err(text)?);
        vcpu.load_parts(&mut state, msrs).map_err(text)?;
        Ok((end, state, self.guest.ram.read(0, SIZE)))
    }
}
