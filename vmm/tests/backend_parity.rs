//! The built-in guest on each backend: the same console, the same accesses in the same order, the same end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]

use std::io::{Cursor, Write};
use std::sync::{Arc, Mutex};
use umbra_devices::Effect;
use umbra_devices::bus::EventHandle;
use umbra_memslots::ram::GuestRam;
use umbra_memslots::{Gpa, GuestMemory, SlotLimits, SlotObserver, SlotReader, SlotTable};
use umbra_mmu::direct::{DirectMmu, DirectOptions};
use umbra_mmu::shadow::{HostParams, SpteLayout};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::fallback::Fallback;
use umbra_vcpu::handle::{ExitHandler, Next};
use umbra_vcpu::kvm::{KvmHost, KvmVm, VmOptions};
use umbra_vcpu::platform::Platform;
use umbra_vcpu::regs::{Regs, SystemRegs};
use umbra_vcpu::soft::{SoftOptions, SoftVm};
use umbra_vmm::boot::{self, BootRequest, Image};
use umbra_vmm::builtin::plan::{self, Answers};
use umbra_vmm::builtin::program;
use umbra_vmm::config::MemoryBacking;
use umbra_vmm::layout::MemoryLayout;
use umbra_vmm::machine::board::Board;
use umbra_vmm::machine::effects::Layout;
use umbra_vmm::machine::ram;

#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything about a run that must not depend on the backend.
#[derive(PartialEq, Debug)]
struct Run {
    console: String,
    accesses: Vec<(VmExit, VmEntry)>,
    answers: Answers,
    exit_code: u32,
    regs: Regs,
    /// CR0, CR3, CR4, EFER, CS.
    control: [u64; 5],
}

/// Runs the built-in guest; `make` gives a vCPU for the memory.
fn run<B: VcpuBackend>(limits: SlotLimits, follower: Box<dyn SlotObserver>, make: impl FnOnce(SlotReader) -> B) -> Run {
    let layout = MemoryLayout::plan(plan::MEMORY, 40).unwrap();
    let mut slots = SlotTable::new(limits);
    slots.add_observer(follower);
    let memory = GuestRam::from_table(slots);
    ram::map(&memory, &layout, &MemoryBacking::Anon).unwrap();
    let image = program::assemble().unwrap();
    let request = BootRequest {
        kernel: Image::new("the built-in guest", Cursor::new(image.as_slice())).unwrap(),
        initrd: None,
        command_line: "",
        layout: &layout,
        platform: None,
        boot_compressed: false,
    };
    let start = boot::load(&*memory.snapshot(), request).unwrap();
    let console = Console::default();
    let board = Board::new(&layout, console.clone(), None).unwrap();
    board.add_test_devices().unwrap();
    let mmu = DirectMmu::new(DirectOptions::new(SpteLayout::new(HostParams::ept(48)).unwrap())).unwrap();
    let mut handler = ExitHandler::new(Arc::new(mmu), memory.reader(), &board.mmio, &board.ports);
    let effects = Layout::new(
        memory.clone(),
        Arc::clone(&board.mmio),
        Arc::clone(&board.ports),
        EventHandle::new().unwrap(),
    );
    let mut vcpu = make(memory.reader());
    vcpu.set_system_regs(&start.system).unwrap();
    vcpu.set_regs(&start.regs).unwrap();
    let mut accesses = Vec::new();
    let mut entry = VmEntry::Resume;
    let exit_code = loop {
        let exit = vcpu.run(entry).unwrap();
        let mut end = None;
        entry = match handler.handle(&exit) {
            Next::Enter(entry) => entry,
            Next::Apply(entry, effect) => {
                match *effect {
                    Effect::Exit { code } => end = Some(code),
                    change => effects.apply(0, change),
                }
                entry
            }
            other => panic!("{exit:?}: {other:?}"),
        };
        accesses.push((exit, entry));
        if let Some(code) = end {
            break code;
        }
    };
    assert_eq!(vcpu.run(VmEntry::Complete(0)).unwrap(), VmExit::Interrupted);
    let mut bytes = [0; Answers::BYTES];
    memory.read(Gpa::new(plan::ANSWERS.into()), &mut bytes).unwrap();
    let SystemRegs {
        cr0,
        cr3,
        cr4,
        efer,
        cs,
        ..
    } = vcpu.system_regs().unwrap();
    let console = String::from_utf8(console.0.lock().unwrap().clone()).unwrap();
    Run {
        console,
        accesses,
        answers: Answers::from_bytes(bytes),
        exit_code,
        regs: vcpu.regs().unwrap(),
        control: [cr0, cr3, cr4, efer, cs.selector.into()],
    }
}

fn soft() -> Run {
    let vm = SoftVm::new(SoftOptions { mmio_caching: true }).unwrap();
    run(SlotLimits::X86_64, vm.slot_follower(), |slots| vm.create_vcpu(slots))
}

#[test]
fn software_cpu_ends_with_the_right_answers() {
    let run = soft();
    assert_eq!(
        (run.answers, run.exit_code),
        (Answers::expected(), plan::ALL_WELL),
        "{}",
        run.console
    );
}

#[test]
fn software_cpu_and_kvm_do_the_same() {
    let Ok(host) = KvmHost::open_at("/dev/kvm".as_ref()) else {
        println!("skipped: no usable /dev/kvm");
        return;
    };
    let vm = KvmVm::new(&host, VmOptions::default()).unwrap();
    let kvm = run(vm.slot_limits(), Box::new(vm.slot_mirror()), |slots| {
        Fallback::new(vm.create_vcpu(0).unwrap(), slots)
    });
    let soft = soft();
    for (number, (ours, theirs)) in soft.accesses.iter().zip(&kvm.accesses).enumerate() {
        assert_eq!(ours, theirs, "access {number}");
    }
    assert_eq!(soft.accesses.len(), kvm.accesses.len());
    assert_eq!(soft, kvm);
}
