//! The fallback around a backend that plays a list, in flat 32-bit mode.

use super::*;
use crate::emulate::CpuState;
use crate::exit::InsnBytes;
use crate::regs::{DescriptorTable, Segment};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::{
    AddressSpaceId, Generation, Gpa, GuestMemory, GuestRam, HostMapping, MemSlot, NewSlot, ObserverError, SlotChange,
    SlotId, SlotLimits, SlotObserver, SlotTable,
};

const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x2000;
const GDT: u64 = 0x700;
const IDT: u64 = 0x800;
const DIRECTORY: u64 = 0x4000;
const OTHER_DIRECTORY: u64 = 0x5000;
/// A slot of its own, of one page.
const STACK: u64 = 0x10_0000;
const STACK_TOP: u64 = STACK + 0x1000;
const MMIO: u64 = 0x1000_0000;
const TF: u64 = 1 << 8;

type Action = Box<dyn FnOnce(&mut Played) -> VmExit + Send>;

/// A backend whose runs are what a test says.
#[derive(Default)]
struct Played {
    regs: Regs,
    system: SystemRegs,
    shadow: bool,
    debug: [u64; 8],
    /// Runs come out after one instruction.
    steps: bool,
    runs: VecDeque<Action>,
}

impl Played {
    /// As KVM does: TF is its own while it steps.
    fn seen(&self) -> Regs {
        let hidden = if self.steps { TF } else { 0 };
        Regs {
            rflags: self.regs.rflags & !hidden,
            ..self.regs
        }
    }
}

impl VcpuBackend for Played {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        if matches!(entry, VmEntry::Complete(_)) {
            return Ok(VmExit::Interrupted);
        }
        let action = self.runs.pop_front().ok_or(BackendError::ScriptEnded)?;
        Ok(action(self))
    }

    fn regs(&mut self) -> Result<Regs, BackendError> {
        Ok(self.seen())
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError> {
        self.regs = *regs;
        Ok(())
    }

    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        Ok(self.system)
    }

    fn set_system_regs(&mut self, regs: &SystemRegs) -> Result<(), BackendError> {
        self.system = *regs;
        Ok(())
    }

    fn kick_handle(&self) -> Box<dyn Kick> {
        struct Nobody;
        impl Kick for Nobody {
            fn kick(&self) {}
        }
        Box::new(Nobody)
    }
}

impl EmulationHost for Played {
    fn load_parts(&mut self, state: &mut CpuState, parts: Parts) -> Result<(), BackendError> {
        if parts.debug {
            state.debug = self.debug;
        }
        Ok(())
    }

    fn store_parts(&mut self, _: &CpuState, after: &CpuState, parts: Parts) -> Result<(), BackendError> {
        if parts.debug {
            self.debug = after.debug;
        }
        Ok(())
    }

    fn read_msr(&mut self, _index: u32) -> Result<Option<u64>, BackendError> {
        Ok(None)
    }

    fn write_msr(&mut self, _index: u32, _value: u64) -> Result<bool, BackendError> {
        Ok(false)
    }

    fn cpuid(&mut self, _leaf: u32, _subleaf: u32) -> Result<[u32; 4], BackendError> {
        Ok([0; 4])
    }

    fn interrupt_shadow(&mut self) -> Result<bool, BackendError> {
        Ok(self.shadow)
    }

    fn set_interrupt_shadow(&mut self, shadow: bool) -> Result<(), BackendError> {
        self.shadow = shadow;
        Ok(())
    }

    fn flush_translations(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn emulates_kernel_mode(&self) -> bool {
        true
    }

    fn single_step(&mut self, on: bool) -> Result<(), BackendError> {
        self.regs = self.seen();
        self.steps = on;
        Ok(())
    }
}

/// Stops a removal of a slot half way.
struct Halfway {
    reached: Sender<()>,
    go_on: Receiver<()>,
}

impl SlotObserver for Halfway {
    fn before_remove(&mut self, _slot: &MemSlot) {
        self.reached.send(()).unwrap();
        self.go_on.recv().unwrap();
    }

    fn after_commit(&mut self, _change: &SlotChange) -> Result<(), ObserverError> {
        Ok(())
    }

    fn roll_back(&mut self, _change: &SlotChange) -> Result<(), ObserverError> {
        Ok(())
    }

    fn generation_changes(&mut self, _space: AddressSpaceId, _next: Generation) {}
}

struct Machine {
    vcpu: Fallback<Played>,
    ram: GuestRam,
    stack: Arc<HostMapping>,
    stack_slot: SlotId,
    reached: Receiver<()>,
    go_on: Sender<()>,
}

impl Machine {
    fn new(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let (reached, is_reached) = channel();
        let (go_on, may_go_on) = channel();
        let mut table = SlotTable::new(SlotLimits::X86_64);
        table.add_observer(Box::new(Halfway {
            reached,
            go_on: may_go_on,
        }));
        let ram = GuestRam::from_table(table);
        ram.map(Gpa::new(0), Arc::new(HostMapping::anonymous(0x8000).unwrap()))
            .unwrap();
        let stack = Arc::new(HostMapping::anonymous(0x1000).unwrap());
        let stack_slot = ram.map(Gpa::new(STACK), Arc::clone(&stack) as _).unwrap();
        let mut assembler = CodeAssembler::new(32).unwrap();
        code(&mut assembler).unwrap();
        ram.write(Gpa::new(CODE), &assembler.assemble(CODE).unwrap()).unwrap();
        for (index, descriptor) in [(1, 0x00cf_9b00_0000_ffff_u64), (2, 0x00cf_9300_0000_ffff)] {
            ram.write(Gpa::new(GDT + 8 * index), &descriptor.to_le_bytes()).unwrap();
        }
        for vector in 0..32 {
            let gate = HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32;
            ram.write(Gpa::new(IDT + 8 * vector), &gate.to_le_bytes()).unwrap();
        }
        // hlt
        ram.write(Gpa::new(HANDLER), &[0xf4]).unwrap();
        let data = Segment {
            selector: 16,
            limit: u32::MAX,
            kind: 3,
            non_system: true,
            present: true,
            db: true,
            granularity: true,
            ..Segment::default()
        };
        let played = Played {
            regs: Regs {
                rip: CODE,
                rsp: STACK_TOP,
                rflags: 2,
                ..Regs::default()
            },
            system: SystemRegs {
                cs: Segment {
                    selector: 8,
                    kind: 11,
                    ..data
                },
                ds: data,
                es: data,
                fs: data,
                gs: data,
                ss: data,
                gdt: DescriptorTable { base: GDT, limit: 23 },
                idt: DescriptorTable { base: IDT, limit: 0xff },
                cr0: 0x11,
                ..SystemRegs::default()
            },
            ..Played::default()
        };
        let vcpu = Fallback::new(played, ram.reader());
        Self {
            vcpu,
            ram,
            stack,
            stack_slot,
            reached: is_reached,
            go_on,
        }
    }

    /// What the backend's next run is.
    fn then(&mut self, action: impl FnOnce(&mut Played) -> VmExit + Send + 'static) {
        self.vcpu.backend.runs.push_back(Box::new(action));
    }

    /// The backend can't execute what it stands at.
    fn then_fails(&mut self) {
        self.then(|_| VmExit::EmulationFailure {
            bytes: InsnBytes::default(),
        });
    }

    fn run(&mut self, entry: VmEntry) -> VmExit {
        self.vcpu.run(entry).unwrap()
    }

    /// Does `work` while the stack's slot is being removed; in the end it is there again.
    fn without_stack(&mut self, work: impl FnOnce(&mut Self)) {
        let (ram, slot) = (self.ram.clone(), self.stack_slot);
        let removal = std::thread::spawn(move || ram.remove(AddressSpaceId::Normal, slot).map(drop));
        self.reached.recv().unwrap();
        work(self);
        self.go_on.send(()).unwrap();
        removal.join().unwrap().unwrap();
        let stack = Arc::clone(&self.stack) as _;
        self.stack_slot = self.ram.add(NewSlot::whole(Gpa::new(STACK), stack)).unwrap();
    }

    fn stacked(&self, below: u64) -> u32 {
        let mut bytes = [0; 4];
        self.ram.read(Gpa::new(STACK_TOP - below), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }
}

const READ: VmExit = VmExit::Mmio {
    gpa: Gpa::new(MMIO),
    size: IoSize::B4,
    op: IoOp::Read,
};

/// The end of each test: the backend got the vCPU back at `hlt`.
fn halts(played: &mut Played) -> VmExit {
    assert!(!played.steps, "to wait is not one step");
    VmExit::Hlt
}

#[test]
fn interrupt_shadow_of_the_backend_outlives_a_stretch_of_nothing() {
    let mut machine = Machine::new(|a| {
        a.nop()?;
        a.wrmsr()?;
        a.hlt()
    });
    machine.then_fails();
    machine.then(|played| {
        assert_eq!((played.regs.rip, played.steps), (CODE + 1, true));
        // As if that had been `sti`.
        played.regs.rip += 2;
        played.shadow = true;
        VmExit::Debug { rip: 0, dr6: 0, dr7: 0 }
    });
    machine.then(halts);
    assert_eq!(machine.run(VmEntry::Resume), VmExit::Hlt);
    assert!(machine.vcpu.backend.shadow);
}

#[test]
fn interrupt_shadow_of_the_backend_ends_with_an_instruction_of_the_core() {
    let mut machine = Machine::new(|a| {
        a.nop()?;
        a.hlt()
    });
    machine.vcpu.backend.shadow = true;
    machine.then_fails();
    machine.then(halts);
    assert_eq!(machine.run(VmEntry::Resume), VmExit::Hlt);
    assert!(!machine.vcpu.backend.shadow);
}

#[test]
fn guest_that_traces_itself_keeps_its_trap_flag() {
    let mut machine = Machine::new(|a| {
        a.push(0x102)?;
        a.popfd()?;
        a.wrmsr()
    });
    machine.then_fails();
    machine.then(|played| {
        assert_eq!((played.seen().rflags, played.steps), (0x102, false));
        VmExit::Hlt
    });
    assert_eq!(machine.run(VmEntry::Resume), VmExit::Hlt);
}

#[test]
fn trap_that_a_change_of_slots_is_in_the_way_of_is_delivered_later() {
    let mut machine = Machine::new(|a| a.nop());
    // Not while the backend steps.
    machine.vcpu.has_run = true;
    machine.vcpu.backend.regs.rflags |= TF;
    machine.then_fails();
    machine.without_stack(|machine| {
        for _ in 0..3 {
            assert_eq!(machine.run(VmEntry::Resume), VmExit::Interrupted);
            assert_eq!(machine.vcpu.regs().unwrap().rip, CODE + 1, "the instruction is done");
        }
        // Somebody who only looks on.
        let regs = machine.vcpu.regs().unwrap();
        machine.vcpu.set_regs(&regs).unwrap();
    });
    machine.then(|played| {
        assert_eq!(played.regs.rip, HANDLER);
        halts(played)
    });
    assert_eq!(machine.run(VmEntry::Resume), VmExit::Hlt);
    assert_eq!(
        [12, 8, 4].map(|below| machine.stacked(below)),
        [CODE as u32 + 1, 8, 0x102]
    );
    let counts = machine.vcpu.counts().by_mnemonic();
    assert_eq!(counts, BTreeMap::from([("nop".to_owned(), 1)]));
}

#[test]
fn device_is_read_once_by_an_instruction_that_is_in_somebodys_way_afterwards() {
    for complete in [false, true] {
        let mut machine = Machine::new(|a| {
            a.push(dword_ptr(MMIO))?;
            a.hlt()
        });
        machine.then_fails();
        assert_eq!(machine.run(VmEntry::Resume), READ);
        machine.without_stack(|machine| {
            let entry = if complete {
                VmEntry::Complete(7)
            } else {
                VmEntry::Value(7)
            };
            assert_eq!(machine.run(entry), VmExit::Interrupted);
            assert_eq!(machine.vcpu.regs().unwrap().rip, CODE);
        });
        machine.then(halts);
        assert_eq!(machine.run(VmEntry::Resume), VmExit::Hlt);
        assert_eq!(machine.stacked(4), 7);
    }
}

#[test]
fn instruction_whose_delivery_waits_for_a_device_is_the_one_that_is_counted() {
    let mut machine = Machine::new(|a| a.ud2());
    machine.vcpu.backend.regs.rsp = MMIO + 16;
    machine.then_fails();
    // Three words of 4 bytes, in pieces that a bus knows.
    for _ in 0..2 {
        let pushed = machine.run(VmEntry::Resume);
        assert!(matches!(pushed, VmExit::Mmio { op: IoOp::Write(_), .. }), "{pushed:?}");
    }
    machine.then(halts);
    assert_eq!(machine.run(VmEntry::Resume), VmExit::Hlt);
    let counts = machine.vcpu.counts().by_mnemonic();
    assert_eq!(counts, BTreeMap::from([("ud2".to_owned(), 1)]));
}

#[test]
fn user_code_has_its_answer_also_after_registers_were_changed() {
    let mut machine = Machine::new(|a| {
        a.mov(eax, dword_ptr(MMIO))?;
        a.hlt()
    });
    let system = &mut machine.vcpu.backend.system;
    for segment in [&mut system.cs, &mut system.ss] {
        segment.selector |= 3;
        segment.dpl = 3;
    }
    machine.then_fails();
    assert_eq!(machine.run(VmEntry::Resume), READ);
    let regs = machine.vcpu.regs().unwrap();
    machine.vcpu.set_regs(&Regs { rsi: 5, ..regs }).unwrap();
    machine.then(|played| {
        assert_eq!((played.regs.rax, played.regs.rsi), (9, 5));
        VmExit::Shutdown
    });
    assert_eq!(machine.run(VmEntry::Value(9)), VmExit::Shutdown);
}

#[test]
fn page_tables_that_somebody_sets_during_a_wait_are_the_ones_used() {
    const PAGE: u64 = 0x40_1000;
    let mut machine = Machine::new(|a| {
        a.mov(ebx, dword_ptr(PAGE))?;
        a.mov(eax, dword_ptr(MMIO))?;
        a.mov(ecx, dword_ptr(PAGE))?;
        a.hlt()
    });
    // The first 4 MiB, and where the device is, are mapped to themselves; the second 4 MiB to the first or to the device.
    for (directory, second) in [(DIRECTORY, 0x83), (OTHER_DIRECTORY, MMIO as u32 | 0x83)] {
        for (index, entry) in [(0, 0x83), (1, second), (MMIO >> 22, MMIO as u32 | 0x83)] {
            let at = Gpa::new(directory + 4 * index);
            machine.ram.write(at, &entry.to_le_bytes()).unwrap();
        }
    }
    let system = &mut machine.vcpu.backend.system;
    (system.cr0, system.cr3, system.cr4) = (0x8000_0011, DIRECTORY, 0x10);
    machine.then_fails();
    assert_eq!(machine.run(VmEntry::Resume), READ);
    let mut system = machine.vcpu.system_regs().unwrap();
    system.cr3 = OTHER_DIRECTORY;
    machine.vcpu.set_system_regs(&system).unwrap();
    let read = VmExit::Mmio {
        gpa: Gpa::new(MMIO + 0x1000),
        size: IoSize::B4,
        op: IoOp::Read,
    };
    assert_eq!(machine.run(VmEntry::Value(1)), read, "from where it is mapped now");
    machine.then(halts);
    assert_eq!(machine.run(VmEntry::Value(2)), VmExit::Hlt);
    assert_eq!(machine.vcpu.backend.regs.rcx, 2);
}
