//! Slots added, moved, re-flagged and removed ten thousand times under running vCPUs and busy host threads.
//!
//! Every value that is written is unique, so it can be said of each single write whether it arrived: it must be in the
//! memory that was behind the address at some time, or the device that stands in for missing memory must have seen it.
#![cfg(target_arch = "x86_64")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "test code on a 64-bit host"
)]

mod support;

use iced_x86::code_asm::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use support::{CODE, Guest, MMIO, RAM, Random, TestRam, in_full};
use umbra_devices::bus::Bus;
use umbra_devices::{Device, Effect, IoOp, IoOutcome, IoSize, Port};
use umbra_memslots::{AddressSpaceId, Gpa, GuestMemory, NewSlot, SlotFlags, SlotId, SlotTable};
use umbra_mmu::direct::{DirectMmu, DirectOptions};
use umbra_mmu::shadow::{HostParams, SpteLayout};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::handle::ExitHandler;
use umbra_vcpu::kvm::{Irqchip, KvmVcpu};
use umbra_vcpu::platform::Platform;
use umbra_vcpu::regs::Regs;
use umbra_vcpu::run_loop::VcpuThreads;

const PAGE: u64 = 4096;
const OPERATIONS: u32 = 10_000;
const TIMEOUT: Duration = Duration::from_secs(60);
const VCPUS: u64 = 2;
const HOST_THREADS: u64 = 2;

/// Where slots come and go: places of at most 4 pages, 16 pages apart.
const PLACES: u64 = 8;
const STRIDE: u64 = 16 * PAGE;
const PAGES: u64 = 4;
/// Cells of one writer for one place in one page, 8 bytes each. Each place has its own, for a memory goes from place to
/// place and may be at two at once.
const CELLS: u64 = 8;
/// Writes of a vCPU between two reports: each writes one cell of every page once.
const ROUND: u64 = PLACES * PAGES * CELLS;
/// Pieces of memory that are put behind the places.
const MEMORIES: u64 = 6;
/// What a read finds where there is no memory.
const NOTHING: u64 = 0x6e6f_7468_696e_6721;

/// Layout of the vCPUs' own memory, from address 0 of a guest: tables of addresses, and what was read.
const TABLES: u64 = 0x2_0000;
const PER_VCPU: u64 = 0x1_0000;
const SIGNATURES: u64 = 0x4000;
const SEEN: u64 = 0x8000;

/// The address of step `step` of a round of `writer`: a cell of its own in each page of each place.
fn cell(writer: u64, step: u64) -> (u64, u64) {
    let place = step % PLACES;
    let page = step / PLACES % PAGES;
    let number = step / (PLACES * PAGES);
    let within = page * PAGE + 8 * (1 + (writer * PLACES + place) * CELLS + number);
    (MMIO + place * STRIDE + within, within)
}

/// The word at the start of each page of a memory, which nobody writes.
fn signature(memory: u64, page: u64) -> u64 {
    0x5160_0000 | memory << 8 | page
}

/// A word of the pattern that fills the rest of a page, which nobody writes either.
fn pattern(memory: u64, offset: u64) -> u64 {
    (memory << 32 | offset).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The memories, and the writes that met none of them.
struct World {
    memories: Vec<Arc<TestRam>>,
    /// By cell, as `Gpa` less `MMIO` in words.
    missed: Vec<AtomicU64>,
    rounds: [AtomicU64; VCPUS as usize],
    failure: Mutex<Option<String>>,
}

impl World {
    fn new() -> Arc<Self> {
        let memories = (0..MEMORIES)
            .map(|memory| {
                let ram = TestRam::new((PAGES * PAGE) as usize);
                for offset in (0..PAGES * PAGE).step_by(8) {
                    ram.write(offset as usize, &pattern(memory, offset).to_le_bytes());
                }
                for page in 0..PAGES {
                    ram.write((page * PAGE) as usize, &signature(memory, page).to_le_bytes());
                }
                ram
            })
            .collect();
        let words = (PLACES * STRIDE / 8) as usize;
        Arc::new(Self {
            memories,
            missed: (0..words).map(|_| AtomicU64::new(0)).collect(),
            rounds: Default::default(),
            failure: Mutex::default(),
        })
    }

    /// Whether a value that was written to a cell is anywhere.
    fn has(&self, gpa: u64, within: u64, value: u64) -> bool {
        self.missed[((gpa - MMIO) / 8) as usize].load(Ordering::SeqCst) == value
            || self
                .memories
                .iter()
                .any(|memory| memory.read_u64(within as usize) == value)
    }

    fn fail(&self, message: String) {
        self.failure.lock().unwrap().get_or_insert(message);
    }

    /// The words that nobody may have written.
    fn check_pattern(&self) {
        let written = 8 * (1 + (VCPUS + HOST_THREADS) * PLACES * CELLS);
        for (memory, ram) in (0..).zip(&self.memories) {
            for page in 0..PAGES {
                assert_eq!(ram.read_u64((page * PAGE) as usize), signature(memory, page));
                for offset in (page * PAGE + written..(page + 1) * PAGE).step_by(8) {
                    assert_eq!(
                        ram.read_u64(offset as usize),
                        pattern(memory, offset),
                        "memory {memory} at {offset:#x}"
                    );
                }
            }
        }
    }
}

/// Answers for missing memory.
struct Missing(Arc<World>);

impl Device for Missing {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        assert_eq!(size, IoSize::B8);
        match op {
            IoOp::Read => IoOutcome::Value(NOTHING),
            IoOp::Write(value) => {
                self.0.missed[(offset / 8) as usize].store(value, Ordering::SeqCst);
                IoOutcome::Done
            }
        }
    }

    fn reset(&self) {}
}

/// Hears from a vCPU that a round is done and checks each of its writes and reads.
struct Reports {
    world: Arc<World>,
    ram: Arc<TestRam>,
}

impl Device for Reports {
    fn access(&self, _: u64, _: IoSize, op: IoOp) -> IoOutcome {
        let IoOp::Write(vcpu) = op else {
            return IoOutcome::Value(0);
        };
        let round = self.world.rounds[vcpu as usize].fetch_add(1, Ordering::SeqCst);
        for step in 0..ROUND {
            let (gpa, within) = cell(vcpu, step);
            let value = value(vcpu, round, step);
            if !self.world.has(gpa, within, value) {
                self.world.fail(format!(
                    "vCPU {vcpu}: write of {value:#x} to {gpa:#x} in round {round} is lost"
                ));
            }
            let seen = self.ram.read_u64((TABLES + vcpu * PER_VCPU + SEEN + 8 * step) as usize);
            let page = within / PAGE;
            if seen != NOTHING && !(0..MEMORIES).any(|memory| seen == signature(memory, page)) {
                self.world.fail(format!(
                    "vCPU {vcpu}: read {seen:#x} at the start of the page of {gpa:#x}"
                ));
            }
        }
        IoOutcome::Done
    }

    fn reset(&self) {}
}

/// What a writer writes in a step of a round.
fn value(writer: u64, round: u64, step: u64) -> u64 {
    (writer + 1) << 56 | (round * ROUND + step)
}

struct NoPlatform;

impl Platform for NoPlatform {
    fn apply(&self, _: u32, _: Effect) {}

    fn end_of_interrupt(&self, _: u8) {}
}

/// The guest: writes `r8++` to each cell of its table, reads the signature of that page, reports, begins again.
fn make_vcpu(guest: &Guest, id: u64) -> KvmVcpu {
    let tables = TABLES + id * PER_VCPU;
    for step in 0..ROUND {
        let (gpa, _) = cell(id, step);
        guest.ram.write((tables + 8 * step) as usize, &gpa.to_le_bytes());
        guest
            .ram
            .write((tables + SIGNATURES + 8 * step) as usize, &(gpa & !0xfff).to_le_bytes());
    }
    let mut vcpu = guest.long_mode(id as u32, |a| {
        let (mut round, mut step) = (a.create_label(), a.create_label());
        a.set_label(&mut round)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut step)?;
        a.mov(rdi, qword_ptr(rbp + rcx * 8))?;
        a.mov(qword_ptr(rdi), r8)?;
        a.mov(rsi, qword_ptr(rbp + rcx * 8 + SIGNATURES as i32))?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rbp + rcx * 8 + SEEN as i32), rax)?;
        a.inc(r8)?;
        a.inc(ecx)?;
        a.cmp(ecx, ROUND as i32)?;
        a.jne(step)?;
        a.mov(eax, ebx)?;
        a.out(0x80, eax)?;
        a.jmp(round)
    });
    vcpu.set_regs(&Regs {
        rip: CODE,
        rbp: tables,
        rbx: id,
        r8: value(id, 0, 0),
        rflags: 2,
        ..Regs::default()
    })
    .unwrap();
    vcpu
}

/// Uses the memory from the host's side until told to stop; gives the number of writes that found memory.
fn host_thread(world: &World, table: &Mutex<SlotTable>, writer: u64, stop: &AtomicBool) -> u64 {
    let mut reader = table.lock().unwrap().reader(AddressSpaceId::Normal).unwrap();
    let mut written = 0;
    for step in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let (gpa, within) = cell(writer, step % ROUND);
        let value = value(writer, 0, step);
        let slots = reader.snapshot();
        if slots.write(Gpa::new(gpa), &value.to_le_bytes()).is_ok() {
            written += 1;
            assert!(
                world.has(gpa, within, value),
                "host write of {value:#x} to {gpa:#x} is lost"
            );
            let mut word = [0; 8];
            slots.read(Gpa::new(gpa & !0xfff), &mut word).unwrap_or_default();
            let seen = u64::from_le_bytes(word);
            assert!(
                seen == 0 || (0..MEMORIES).any(|memory| seen == signature(memory, within / PAGE)),
                "{seen:#x}"
            );
        }
        if step % 64 == 0 {
            thread::sleep(Duration::from_micros(200));
        }
    }
    written
}

/// One random change; what the rules refuse counts as `None`.
fn change(random: &mut Random, table: &mut SlotTable, live: &mut Vec<SlotId>, world: &World) -> Option<usize> {
    let space = AddressSpaceId::Normal;
    let at = Gpa::new(MMIO + random.below(PLACES) * STRIDE);
    let flags = random.pick(&[SlotFlags::empty(), SlotFlags::LOG_DIRTY]);
    if live.is_empty() || random.chance(3) {
        let memory = Arc::clone(&world.memories[random.below(MEMORIES) as usize]);
        let bytes = (1 + random.below(PAGES)) * PAGE;
        let new = NewSlot {
            bytes,
            ..NewSlot::whole(at, memory).with_flags(flags)
        };
        live.push(table.add(new).ok()?);
        return Some(0);
    }
    let index = random.below(live.len() as u64) as usize;
    let id = live[index];
    match random.below(4) {
        0 => table.relocate(space, id, at).ok().map(|_| 1),
        1 => table.set_flags(space, id, flags).ok().map(|_| 2),
        _ => {
            table.remove(space, id).unwrap();
            live.swap_remove(index);
            Some(3)
        }
    }
}

#[test]
fn ten_thousand_slot_changes_lose_no_write_and_harm_no_content() {
    let Some(guest) = Guest::new(Irqchip::None, VCPUS as u32) else {
        return;
    };
    let world = World::new();
    let mmu = Arc::new(DirectMmu::new(DirectOptions::new(SpteLayout::new(HostParams::x86(46)).unwrap())).unwrap());
    let (mmio, ports) = (Bus::<Gpa>::new(), Bus::<Port>::new());
    mmio.claim(
        "missing",
        Gpa::new(MMIO),
        PLACES * STRIDE,
        Arc::new(Missing(world.clone())),
    )
    .unwrap();
    let reports = Reports {
        world: world.clone(),
        ram: guest.ram.clone(),
    };
    ports.claim("reports", Port::new(0x80), 4, Arc::new(reports)).unwrap();
    const { assert!(TABLES + VCPUS * PER_VCPU <= RAM) }
    let vcpus = (0..VCPUS)
        .map(|id| {
            let reader = guest.table.reader(AddressSpaceId::Normal).unwrap();
            (
                make_vcpu(&guest, id),
                ExitHandler::new(Arc::clone(&mmu), reader, &mmio, &ports),
            )
        })
        .collect();
    let threads = VcpuThreads::start(vcpus, Arc::new(NoPlatform)).unwrap();
    let table = Mutex::new(guest.table);
    let stop = AtomicBool::new(false);
    let operations = in_full(OPERATIONS);
    let mut random = Random::new("slot changes under load");
    let mut done = [0u32; 4];
    let mut refused = 0u32;
    let host_writes: u64 = thread::scope(|scope| {
        let hosts: Vec<_> = (VCPUS..VCPUS + HOST_THREADS)
            .map(|writer| {
                let (world, table, stop) = (&world, &table, &stop);
                scope.spawn(move || host_thread(world, table, writer, stop))
            })
            .collect();
        let mut live = Vec::new();
        for number in 0..operations {
            match change(&mut random, &mut table.lock().unwrap(), &mut live, &world) {
                Some(kind) => done[kind] += 1,
                None => refused += 1,
            }
            if number % 1000 == 0 {
                threads.control().pause(TIMEOUT).unwrap();
                world.check_pattern();
                threads.control().resume();
            }
            if world.failure.lock().unwrap().is_some() || threads.control().wait_first(Some(Duration::ZERO)).is_some() {
                break;
            }
        }
        stop.store(true, Ordering::SeqCst);
        hosts.into_iter().map(|host| host.join().unwrap()).sum()
    });
    let first = threads.control().wait_first(Some(Duration::ZERO));
    if let Some(vcpu) = first {
        panic!("vCPU {vcpu} ended: {}", threads.control().take_end(vcpu).unwrap());
    }
    let stats = threads.finish(TIMEOUT).unwrap();
    assert_eq!(*world.failure.lock().unwrap(), None);
    world.check_pattern();
    let rounds: Vec<u64> = world
        .rounds
        .iter()
        .map(|rounds| rounds.load(Ordering::SeqCst))
        .collect();
    let [added, moved, reflagged, removed] = done;
    println!(
        "{added} added, {moved} moved, {reflagged} re-flagged, {removed} removed, {refused} refused; guest rounds of \
         {ROUND} writes {rounds:?}, host writes {host_writes}"
    );
    for stats in &stats {
        println!("{:?}", stats.mmio);
    }
    assert!(done.iter().all(|count| count * 20 > operations), "too few of some kind");
    assert!(rounds.iter().all(|rounds| *rounds > 0) && host_writes > 0);
}
