//! Guests whose user code runs natively on shadow tables, and everything else in software.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]
#![expect(clippy::cast_possible_truncation, reason = "addresses of a small guest")]

use iced_x86::code_asm::*;
use std::sync::Arc;
use std::time::Duration;
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::ram::{GuestRam, HostMapping};
use umbra_memslots::{Backing, Gpa, GuestMemory, SlotTable};
use umbra_mmu::shadow::{HostParams, ShadowMmu, SpteLayout};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::fallback::Fallback;
use umbra_vcpu::kvm::{Irqchip, KvmHost, KvmVm, VmOptions};
use umbra_vcpu::regs::{DescriptorTable, Regs, Segment, SystemRegs};
use umbra_vcpu::shadow::{NativeCpu, ShadowCounts, ShadowCpu, ShadowFollower, SharedTables};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const LOW: u64 = 0x3000;
const HIGH: u64 = 0x4000;
const GDT: u64 = 0x5000;
const TSS: u64 = 0x5800;
const IDT: u64 = 0x6000;
const KERNEL_STACK: u64 = 0x8000;
/// The page tables of 4 KiB pages for the first 2 MiB.
const PAGES: u64 = 0x9000;
const USER_STACK: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const CODE: u64 = 0x10_0000;
const DEVICE: u64 = 0xc000_0000;
const RAM: u64 = 2 << 20;

const CODE_0: u16 = 0x08;
const DATA_0: u16 = 0x10;
const DATA_3: u16 = 0x2b;
const CODE_3: u16 = 0x33;
const TASK: u16 = 0x40;

struct Guest {
    cpu: Fallback<ShadowCpu>,
    ram: GuestRam,
    counts: ShadowCounts,
    mmu: Arc<ShadowMmu<SharedTables>>,
    _vm: KvmVm,
}

/// A guest in long mode, about to run `code` at CPL 3 with IOPL 3. Everything below 2 MiB is its own to write, page tables
/// included; at [`DEVICE`] there is no memory. A page fault is taken by code at CPL 0 that counts in R15, loads CR3,
/// puts CR2 into R14 and goes on at the address in R13.
fn guest(code: impl FnOnce(&mut CodeAssembler)) -> Option<Guest> {
    let options = VmOptions {
        irqchip: Irqchip::None,
        ..VmOptions::default()
    };
    let made = KvmHost::open()
        .map_err(|error| error.to_string())
        .and_then(|host| KvmVm::new(&host, options).map_err(|error| error.to_string()));
    let mut vm = match made {
        Ok(vm) => vm,
        Err(why) => {
            println!("skipped: no usable KVM ({why})");
            return None;
        }
    };
    let (native, space) = NativeCpu::new(&mut vm, 64).unwrap();
    let layout = SpteLayout::new(HostParams::x86(vm.physical_bits())).unwrap();
    let mmu = Arc::new(ShadowMmu::new(layout, space).unwrap());
    let mut slots = SlotTable::new(vm.slot_limits());
    slots.add_observer(Box::new(ShadowFollower::new(Arc::clone(&mmu), native.tlb())));
    slots.add_observer(Box::new(vm.slot_mirror()));
    let ram = GuestRam::from_table(slots);
    let backing: Arc<dyn Backing> = Arc::new(HostMapping::anonymous(RAM).unwrap());
    ram.map(Gpa::new(0), backing).unwrap();

    let put = |at: u64, bytes: &[u8]| ram.write(Gpa::new(at), bytes).unwrap();
    let put64 = |at: u64, value: u64| put(at, &value.to_le_bytes());
    put64(PML4, PDPT | 0x67);
    put64(PDPT, LOW | 0x67);
    put64(PDPT + 8 * 3, HIGH | 0x67);
    put64(LOW, PAGES | 0x67);
    for page in 0..512 {
        put64(PAGES + 8 * page, page << 12 | 0x67);
    }
    put64(HIGH, DEVICE | 0xe7);
    for (selector, descriptor) in [
        (CODE_0, 0x00af_9b00_0000_ffffu64),
        (DATA_0, 0x00cf_9300_0000_ffff),
        (DATA_3, 0x00cf_f300_0000_ffff),
        (CODE_3, 0x00af_fb00_0000_ffff),
        (TASK, 0x0000_8b00_0000_0067 | TSS << 16),
    ] {
        put64(GDT + u64::from(selector & !7), descriptor);
    }
    put64(TSS + 4, KERNEL_STACK);
    let mut handler = CodeAssembler::new(64).unwrap();
    assemble_handler(&mut handler).unwrap();
    put(0x7000, &handler.assemble(0x7000).unwrap());
    put64(IDT + 16 * 14, 0x7000 | u64::from(CODE_0) << 16 | 0x8e00 << 32);
    let mut user = CodeAssembler::new(64).unwrap();
    code(&mut user);
    put(CODE, &user.assemble(CODE).unwrap());

    let cpu = ShadowCpu::new(native, Arc::clone(&mmu), ram.reader(), ram.reader()).unwrap();
    let counts = cpu.counts();
    let mut cpu = Fallback::new(cpu, ram.reader());
    cpu.set_system_regs(&system()).unwrap();
    let regs = Regs {
        rip: CODE,
        rsp: USER_STACK,
        rflags: 0x3202,
        ..Regs::default()
    };
    cpu.set_regs(&regs).unwrap();
    Some(Guest {
        cpu,
        ram,
        counts,
        mmu,
        _vm: vm,
    })
}

fn assemble_handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(r15)?;
    a.mov(r14, cr3)?;
    a.mov(cr3, r14)?;
    a.mov(r14, cr2)?;
    a.add(rsp, 8)?;
    a.mov(ptr(rsp), r13)?;
    a.iretq()
}

fn system() -> SystemRegs {
    let data = Segment {
        selector: DATA_3,
        limit: u32::MAX,
        kind: 3,
        dpl: 3,
        present: true,
        non_system: true,
        db: true,
        granularity: true,
        ..Segment::default()
    };
    SystemRegs {
        cs: Segment {
            selector: CODE_3,
            kind: 11,
            long: true,
            db: false,
            ..data
        },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            kind: 11,
            present: true,
            ..Segment::default()
        },
        gdt: DescriptorTable { base: GDT, limit: 0x4f },
        idt: DescriptorTable {
            base: IDT,
            limit: 0xfff,
        },
        cr0: 0x8001_0033,
        cr3: PML4,
        cr4: 0x620,
        efer: 0xd01,
        ..SystemRegs::default()
    }
}

impl Guest {
    fn get64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read(Gpa::new(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Runs until the guest writes to port 0xf4 and gives that back with the other exits. MMIO reads get their address.
    fn play(&mut self) -> (Vec<VmExit>, u64) {
        let mut exits = Vec::new();
        let mut entry = VmEntry::Resume;
        loop {
            let exit = self.cpu.run(entry).unwrap();
            entry = match exit {
                VmExit::Pio {
                    port: 0xf4,
                    op: IoOp::Write(value),
                    ..
                } => return (exits, value),
                VmExit::Mmio {
                    gpa, op: IoOp::Read, ..
                } => VmEntry::Value(gpa.get() | 0x7700_0000_0000),
                VmExit::Pio { op: IoOp::Read, .. } => VmEntry::Value(0x5a),
                VmExit::Mmio { .. } | VmExit::Pio { .. } => VmEntry::Resume,
                VmExit::Interrupted => {
                    entry = VmEntry::Resume;
                    continue;
                }
                other => panic!("{other:?} at {:x?}", self.cpu.regs()),
            };
            exits.push(exit);
        }
    }
}

/// The end of each guest: EAX to port 0xf4.
fn leave(a: &mut CodeAssembler) {
    a.out(0xf4, eax).unwrap();
    a.jmp(CODE).unwrap();
}

fn mmio(at: u64, size: IoSize, op: IoOp) -> VmExit {
    VmExit::Mmio {
        gpa: Gpa::new(at),
        size,
        op,
    }
}

#[test]
fn mmio_of_user_code_is_emulated_and_recognised_by_the_shadow_tables() {
    let code = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(rbx, DEVICE).unwrap();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(qword_ptr(rbx + 8), rcx).unwrap();
        a.mov(ax, word_ptr(rbx + 0x1002)).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.add(eax, dword_ptr(rbx + 4)).unwrap();
        leave(a);
    };
    let Some(mut guest) = guest(code) else { return };
    let (exits, value) = guest.play();
    assert_eq!(exits.len(), 201);
    assert_eq!(exits[0], mmio(DEVICE + 8, IoSize::B8, IoOp::Write(100)));
    assert_eq!(exits[1], mmio(DEVICE + 0x1002, IoSize::B2, IoOp::Read));
    assert_eq!(exits[200], mmio(DEVICE + 4, IoSize::B4, IoOp::Read));
    assert_eq!(value, 0x1002 + (DEVICE + 4));
    let run = guest.counts.get();
    assert_eq!((run.searches, run.mmu.created), (2, 2), "{run:?}");
    assert_eq!(run.mmu.cache_hits + run.mmu.spte_hits, 199, "{run:?}");
}

#[test]
fn ports_are_reached_natively_with_the_guests_privilege() {
    let code = |a: &mut CodeAssembler| {
        a.in_(al, 0x60).unwrap();
        a.out(0x61, al).unwrap();
        leave(a);
    };
    let Some(mut guest) = guest(code) else { return };
    let (exits, value) = guest.play();
    assert_eq!(value & 0xff, 0x5a);
    let port = |port, op| VmExit::Pio {
        port,
        size: IoSize::B1,
        op,
    };
    assert_eq!(exits, [port(0x60, IoOp::Read), port(0x61, IoOp::Write(0x5a))]);
}

#[test]
fn page_fault_goes_through_the_guests_own_idt_and_comes_back() {
    let code = |a: &mut CodeAssembler| {
        let mut resume = a.create_label();
        a.xor(r15d, r15d).unwrap();
        a.lea(r13, ptr(resume)).unwrap();
        a.mov(rbx, 0x1234_5678_9000u64).unwrap();
        a.mov(rax, ptr(rbx + 0x18)).unwrap();
        a.set_label(&mut resume).unwrap();
        a.lea(rax, ptr(r15 + r14)).unwrap();
        leave(a);
    };
    let Some(mut guest) = guest(code) else { return };
    let (exits, value) = guest.play();
    assert_eq!((exits.len(), value), (0, 0x5678_9018 + 1));
    assert_eq!(guest.get64(PML4) & 0x60, 0x60);
}

#[test]
fn guest_that_edits_its_own_tables_sees_the_change_when_it_has_flushed() {
    let code = |a: &mut CodeAssembler| {
        let mut resume = a.create_label();
        let entry = PAGES + 8 * (DATA >> 12);
        a.mov(qword_ptr(DATA as u32), 11).unwrap();
        a.mov(qword_ptr(DATA as u32 + 0x1000), 22).unwrap();
        a.mov(rax, qword_ptr(DATA as u32)).unwrap();
        // The page is now the next one. The handler of page faults loads CR3.
        a.add(qword_ptr(entry as u32), 0x1000).unwrap();
        a.lea(r13, ptr(resume)).unwrap();
        a.mov(ecx, dword_ptr(0x4000_0000)).unwrap();
        a.set_label(&mut resume).unwrap();
        a.shl(rax, 8).unwrap();
        a.add(rax, qword_ptr(DATA as u32)).unwrap();
        leave(a);
    };
    let Some(mut guest) = guest(code) else { return };
    let (exits, value) = guest.play();
    assert_eq!((exits, value), (vec![], 11 << 8 | 22));
}

/// Where 3 GiB + 2 MiB is mapped from, by turns.
const BEFORE: u64 = 0xa000;
const AFTER: u64 = 0xb000;

/// A write of an entry that leads to [`AFTER`] to a place in a table, by an instruction of AMD's that software doesn't know
/// (SSE4A), then a read of what that maps.
fn edit_by_movntsd(place: u64) -> impl FnOnce(&mut CodeAssembler) {
    move |a| {
        a.mov(dword_ptr(DATA as u32), 0x77).unwrap();
        a.mov(rax, AFTER | 0x67).unwrap();
        a.mov(qword_ptr(DATA as u32 + 8), rax).unwrap();
        a.mov(ebx, (DEVICE + (2 << 20)) as u32).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.movq(xmm0, qword_ptr(DATA as u32 + 8)).unwrap();
        a.movntsd(qword_ptr(place as u32), xmm0).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        leave(a);
    }
}

impl Guest {
    fn with_two_tables(self) -> Self {
        for (at, value) in [(HIGH + 8, BEFORE), (BEFORE, 0x4_0000), (AFTER, DATA)] {
            let entry = value | 0x67;
            self.ram.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
        }
        self
    }
}

#[test]
fn table_that_is_written_by_an_instruction_unknown_to_software_loses_its_shadow() {
    if !std::is_x86_feature_detected!("sse4a") {
        println!("skipped: no instruction unknown to software on this CPU (SSE4A)");
        return;
    }
    let Some(guest) = guest(edit_by_movntsd(HIGH + 8)) else {
        return;
    };
    let mut guest = guest.with_two_tables();
    let (exits, value) = guest.play();
    assert_eq!((exits, value), (vec![], 0x77));
    assert_eq!(guest.get64(HIGH + 8) & !0x60, AFTER | 7);
    assert!(guest.counts.get().mmu.tracked_writes >= 1);
}

#[test]
fn table_through_which_it_is_written_itself_by_an_unknown_instruction_is_too_much() {
    if !std::is_x86_feature_detected!("sse4a") {
        println!("skipped: no instruction unknown to software on this CPU (SSE4A)");
        return;
    }
    let Some(guest) = guest(edit_by_movntsd(LOW + 8)) else {
        return;
    };
    let exit = guest.with_two_tables().cpu.run(VmEntry::Resume).unwrap();
    assert!(matches!(exit, VmExit::EmulationFailure { .. }), "{exit:?}");
}

#[test]
fn ram_that_comes_and_goes_over_a_device_is_seen_at_once() {
    let code = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(rbx, DEVICE).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.out(0xf4, eax).unwrap();
        a.jmp(again).unwrap();
    };
    let Some(mut guest) = guest(code) else { return };
    for round in 1..4u32 {
        assert_eq!(guest.play().1, DEVICE, "the device answers");
        let backing: Arc<dyn Backing> = Arc::new(HostMapping::anonymous(0x1000).unwrap());
        let id = guest.ram.map(Gpa::new(DEVICE), backing).unwrap();
        guest.ram.write(Gpa::new(DEVICE), &round.to_le_bytes()).unwrap();
        assert_eq!(guest.play(), (vec![], round.into()), "RAM answers");
        guest.ram.remove(umbra_memslots::AddressSpaceId::Normal, id).unwrap();
    }
    assert!(guest.mmu.tables_in_use() > 0);
}

#[test]
fn instructions_that_the_monitor_would_answer_wrongly_are_emulated() {
    let code = |a: &mut CodeAssembler| {
        // The guest's own descriptors count, and its own GDTR is seen.
        a.mov(eax, i32::from(DATA_3)).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(eax, 0).unwrap();
        a.mov(es, eax).unwrap();
        a.sgdt(fword_ptr(DATA as u32)).unwrap();
        a.mov(eax, dword_ptr(DATA as u32 + 2)).unwrap();
        a.mov(ecx, ds).unwrap();
        a.shl(eax, 8).unwrap();
        a.add(eax, ecx).unwrap();
        leave(a);
    };
    let Some(mut guest) = guest(code) else { return };
    // Without UMIP, sgdt tells about the monitor: a CPU that old can't do better.
    let (_, value) = guest.play();
    if value >> 8 != GDT {
        println!("skipped: a CPU with UMIP");
    }
    assert_eq!(value & 0xff, u64::from(DATA_3));
}

#[test]
fn what_a_guest_has_mapped_where_the_monitor_is_works_by_emulation() {
    const SLOT: u64 = 464;
    let code = |a: &mut CodeAssembler| {
        a.mov(rbx, 0xffff << 48 | SLOT << 39 | DATA).unwrap();
        a.mov(dword_ptr(rbx + 8), 0x1234).unwrap();
        a.mov(eax, dword_ptr(DATA as u32 + 8)).unwrap();
        a.add(eax, dword_ptr(rbx + 8)).unwrap();
        leave(a);
    };
    let Some(mut guest) = guest(code) else { return };
    let entry = PDPT | 0x67;
    guest
        .ram
        .write(Gpa::new(PML4 + 8 * SLOT), &entry.to_le_bytes())
        .unwrap();
    assert_eq!(guest.play(), (vec![], 0x2468));
}

#[test]
fn endless_user_code_is_stopped_by_a_kick() {
    let code = |a: &mut CodeAssembler| {
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.jmp(here).unwrap();
    };
    let Some(mut guest) = guest(code) else { return };
    let kick = guest.cpu.kick_handle();
    let kicker = std::thread::spawn(move || {
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(5));
            kick.kick();
        }
    });
    assert_eq!(guest.cpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
    kicker.join().unwrap();
    assert_eq!(guest.cpu.regs().unwrap().rip, CODE);
}
