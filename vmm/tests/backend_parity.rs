//! The same guest on every backend: the same console, the same accesses to devices in the same order, the same answers.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use support::kvm_usable;
use umbra_devices::bus::EventHandle;
use umbra_devices::{Effect, HostClock};
use umbra_memslots::ram::GuestRam;
use umbra_memslots::{Gpa, GuestMemory, SlotLimits, SlotObserver, SlotTable};
use umbra_mmu::direct::{DirectMmu, DirectOptions, SlotFollower};
use umbra_mmu::shadow::{HostParams, SpteLayout};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::fallback::Fallback;
use umbra_vcpu::handle::{ExitHandler, Next};
use umbra_vcpu::kvm::{Irqchip, KvmHost, KvmVm, VmOptions};
use umbra_vcpu::platform::Platform;
use umbra_vcpu::regs::Regs;
use umbra_vcpu::shadow::{ShadowOptions, ShadowVm};
use umbra_vcpu::soft::{SoftOptions, SoftVm};
use umbra_vmm::boot::{self, BootRequest, Image};
use umbra_vmm::builtin::plan::{self, Answers};
use umbra_vmm::builtin::program::{self, Privilege};
use umbra_vmm::config::MemoryBacking;
use umbra_vmm::layout::MemoryLayout;
use umbra_vmm::machine::board::Board;
use umbra_vmm::machine::effects::Layout;
use umbra_vmm::machine::ram;

#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a run was like.
#[derive(PartialEq, Debug)]
struct Run {
    console: String,
    /// Accesses to devices, with what was read.
    accesses: Vec<(VmExit, VmEntry)>,
    code: u32,
    answers: Answers,
    /// At the write to debug-exit.
    regs: Regs,
}

enum Machine {
    Kvm(KvmVm),
    Shadow(ShadowVm),
    Soft(SoftVm),
}

impl Machine {
    fn limits(&self) -> SlotLimits {
        match self {
            Self::Kvm(vm) => vm.slot_limits(),
            Self::Shadow(vm) => vm.slot_limits(),
            Self::Soft(_) => SlotLimits::X86_64,
        }
    }

    fn observers(&self) -> Vec<Box<dyn SlotObserver>> {
        match self {
            Self::Kvm(vm) => vec![Box::new(vm.slot_mirror())],
            Self::Shadow(vm) => vm.slot_observers(),
            Self::Soft(vm) => vec![vm.slot_follower()],
        }
    }

    fn vcpu(&self, ram: &GuestRam) -> Box<dyn VcpuBackend> {
        match self {
            Self::Kvm(vm) => Box::new(Fallback::new(vm.create_vcpu(0).unwrap(), ram.reader())),
            Self::Shadow(vm) => Box::new(vm.create_vcpu(|| ram.reader()).unwrap()),
            Self::Soft(vm) => Box::new(vm.create_vcpu(ram.reader())),
        }
    }
}

/// Runs the built-in guest in user mode.
fn play(machine: &Machine) -> Run {
    let options = DirectOptions::new(SpteLayout::new(HostParams::ept(48)).unwrap());
    let mmu = Arc::new(DirectMmu::new(options).unwrap());
    let mut slots = SlotTable::new(machine.limits());
    slots.add_observer(Box::new(SlotFollower::new(Arc::clone(&mmu))));
    for observer in machine.observers() {
        slots.add_observer(observer);
    }
    let memory = GuestRam::from_table(slots);
    let layout = MemoryLayout::plan(plan::MEMORY, 46).unwrap();
    ram::map(&memory, &layout, &MemoryBacking::Anon).unwrap();
    let image = program::assemble(Privilege::User).unwrap();
    let request = BootRequest {
        kernel: Image::new("guest", io::Cursor::new(image.as_slice())).unwrap(),
        initrd: None,
        command_line: "",
        layout: &layout,
        platform: None,
        boot_compressed: false,
    };
    let state = boot::load(&*memory.snapshot(), request).unwrap();
    let console = Console::default();
    let board = Board::new(&layout, console.clone(), None, Arc::new(HostClock::new())).unwrap();
    board.add_test_devices().unwrap();
    let platform = Layout::new(
        memory.clone(),
        Arc::clone(&board.mmio),
        Arc::clone(&board.ports),
        EventHandle::new().unwrap(),
    );
    let mut handler = ExitHandler::new(mmu, memory.reader(), &board.mmio, &board.ports);
    let mut vcpu = machine.vcpu(&memory);
    vcpu.set_system_regs(&state.system).unwrap();
    vcpu.set_regs(&state.regs).unwrap();

    let mut accesses = Vec::new();
    let mut entry = VmEntry::Resume;
    let code = loop {
        let exit = vcpu.run(entry).unwrap();
        let (next, effect) = match handler.handle(&exit) {
            Next::Enter(next) => (next, None),
            Next::Apply(next, effect) => (next, Some(*effect)),
            Next::Poll => {
                entry = VmEntry::Resume;
                continue;
            }
            other => panic!("{other:?} after {} accesses", accesses.len()),
        };
        accesses.push((exit, next));
        entry = next;
        match effect {
            Some(Effect::Exit { code }) => break code,
            Some(effect) => platform.apply(0, effect),
            None => {}
        }
    };
    // Completes the instruction.
    assert_eq!(vcpu.run(VmEntry::Complete(0)).unwrap(), VmExit::Interrupted);
    let mut bytes = [0; Answers::BYTES];
    memory.read(Gpa::new(plan::ANSWERS.into()), &mut bytes).unwrap();
    Run {
        console: String::from_utf8(console.0.lock().unwrap().clone()).unwrap(),
        accesses,
        code,
        answers: Answers::from_bytes(bytes),
        regs: vcpu.regs().unwrap(),
    }
}

fn assert_same(name: &str, run: &Run, reference: &Run) {
    assert_eq!(run.console, reference.console, "{name}");
    let differs = run.accesses.iter().zip(&reference.accesses).position(|(a, b)| a != b);
    if let Some(at) = differs {
        panic!(
            "{name}: access {at}: {:?}, not {:?}",
            run.accesses[at], reference.accesses[at]
        );
    }
    assert!(run == reference, "{name}: {:x?}, not {:x?}", run.regs, reference.regs);
}

#[test]
fn built_in_guest_is_the_same_on_kvm_on_shadow_tables_and_in_software() {
    let soft = SoftVm::new(SoftOptions { mmio_caching: true }).unwrap();
    let soft = play(&Machine::Soft(soft));
    assert_eq!((soft.code, soft.answers), (plan::ALL_WELL, Answers::expected()));
    assert!(soft.accesses.len() > 24_000);
    if !kvm_usable() {
        return;
    }
    let host = KvmHost::open().unwrap();
    let shadow = ShadowVm::new(&host, ShadowOptions { mmio_caching: true }).unwrap();
    assert_same("shadow", &play(&Machine::Shadow(shadow)), &soft);
    let options = VmOptions {
        irqchip: Irqchip::None,
        ..VmOptions::default()
    };
    let kvm = KvmVm::new(&host, options).unwrap();
    assert_same("kvm", &play(&Machine::Kvm(kvm)), &soft);
}
