//! The life of an MMIO page on the direct side: first touch, cached, slot changes, stale, wrap, limit.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use umbra_memslots::{
    AddressSpaceId, Generation, Gfn, Gpa, Hva, SlotFlags, SlotId, SlotLimits, SlotReader, SlotRequest, SlotTable,
};
use umbra_mmu::direct::{
    DirectMmu, DirectOptions, DirectStats, DirectVcpu, Direction, FoundSlot, Levels, MmioAnswer, MmioSource,
    SlotFollower, SlotSet, SlotSource,
};
use umbra_mmu::mmio::{MmioGen, MmioSpte};
use umbra_mmu::shadow::{BitSpan, CachingOff, GenerationSpans, HostParams, SpteLayout};
use umbra_mmu::tables::EntryLocation;
use umbra_mmu::{AccessMask, MmuObserver};

const PAGE: u64 = 0xd000_0000;
const CACHE: MmioAnswer = MmioAnswer::Mmio(MmioSource::Cache);
const SPTE: MmioAnswer = MmioAnswer::Mmio(MmioSource::Spte);
const SEARCH: MmioAnswer = MmioAnswer::Mmio(MmioSource::Search);

/// Two bits of generation, so that the second update of a table with two address spaces wraps.
fn tiny_generation() -> GenerationSpans {
    GenerationSpans {
        low: BitSpan::new(3, 3).unwrap(),
        high: BitSpan::new(52, 52).unwrap(),
    }
}

fn mmu(host: HostParams) -> Arc<DirectMmu> {
    Arc::new(DirectMmu::new(DirectOptions::new(SpteLayout::new(host).unwrap())).unwrap())
}

struct Machine {
    mmu: Arc<DirectMmu>,
    slots: SlotTable,
}

struct Cpu {
    mmu: Arc<DirectMmu>,
    reader: SlotReader,
    own: DirectVcpu,
}

impl Machine {
    fn new(host: HostParams) -> Self {
        Self {
            mmu: mmu(host),
            slots: SlotTable::new(SlotLimits::default()),
        }
    }

    fn cpu(&self) -> Cpu {
        let reader = self.slots.reader(AddressSpaceId::Normal).unwrap();
        Cpu {
            mmu: Arc::clone(&self.mmu),
            reader,
            own: DirectVcpu::new(),
        }
    }

    fn set(&mut self, slot: u32, flags: SlotFlags, at: u64) {
        let request = SlotRequest::set(slot, flags, Gpa::new(at), 0x1000, Hva::new(0x7000_0000_0000));
        self.slots.apply(request).unwrap();
    }

    fn delete(&mut self, slot: u32) {
        self.slots.apply(SlotRequest::delete(slot)).unwrap();
    }
}

impl Cpu {
    fn read(&mut self, gpa: u64) -> MmioAnswer {
        self.mmu
            .lookup(&mut self.own, &mut self.reader, Gpa::new(gpa), Direction::Read)
    }

    fn write(&mut self, gpa: u64) -> MmioAnswer {
        self.mmu
            .lookup(&mut self.own, &mut self.reader, Gpa::new(gpa), Direction::Write)
    }

    fn stats(&self) -> DirectStats {
        *self.own.stats()
    }
}

#[test]
fn thousand_accesses_to_one_page_search_once() {
    let machine = Machine::new(HostParams::x86(48));
    let mut cpu = machine.cpu();
    assert_eq!(cpu.read(PAGE), SEARCH);
    for offset in 1..1000 {
        assert_eq!(cpu.write(PAGE + offset), CACHE);
    }
    let expected = DirectStats {
        cache_hits: 999,
        searches: 1,
        created: 1,
        ..DirectStats::default()
    };
    assert_eq!(cpu.stats(), expected);
}

#[test]
fn second_page_and_second_vcpu_are_answered_by_the_entry() {
    let machine = Machine::new(HostParams::ept(48));
    let (mut cpu, mut other) = (machine.cpu(), machine.cpu());
    assert_eq!([cpu.read(PAGE), cpu.read(PAGE + 0x1000)], [SEARCH, SEARCH]);
    assert_eq!(
        [cpu.read(PAGE), cpu.read(PAGE + 0x1000), cpu.read(PAGE)],
        [SPTE, SPTE, SPTE]
    );
    assert_eq!([other.read(PAGE), other.read(PAGE)], [SPTE, CACHE]);
    assert_eq!(other.stats().searches, 0);
}

#[test]
fn entry_in_the_table_is_the_kernels() {
    let mut machine = Machine::new(HostParams::x86(48));
    machine.set(0, SlotFlags::empty(), 0);
    assert_eq!(machine.cpu().read(PAGE), SEARCH);
    // One slot created: generation 2, as in the kernel's trace.
    let leaf = machine
        .mmu
        .table()
        .walk(AddressSpaceId::Normal, Gfn::new(0xd0000).unwrap())
        .unwrap();
    assert_eq!((leaf.entry, leaf.level), (0x0008_0000_d000_0017, 1));
}

#[test]
fn slot_over_and_from_under_the_page_is_noticed_at_once() {
    let mut machine = Machine::new(HostParams::x86(48));
    let mut cpu = machine.cpu();
    assert_eq!([cpu.read(PAGE), cpu.read(PAGE)], [SEARCH, CACHE]);
    machine.set(3, SlotFlags::empty(), PAGE);
    assert_eq!([cpu.read(PAGE), cpu.read(PAGE)], [MmioAnswer::Retry(SlotId::new(3)); 2]);
    machine.delete(3);
    assert_eq!([cpu.read(PAGE), cpu.read(PAGE)], [SEARCH, CACHE]);
    assert_eq!((cpu.stats().stale, cpu.stats().created, cpu.stats().retries), (3, 2, 2));
}

#[test]
fn change_elsewhere_makes_the_entry_stale_and_it_is_learnt_again() {
    let mut machine = Machine::new(HostParams::x86(48));
    let mut cpu = machine.cpu();
    cpu.read(PAGE);
    machine.set(3, SlotFlags::empty(), 0);
    assert_eq!([cpu.read(PAGE), cpu.read(PAGE)], [SEARCH, CACHE]);
    assert_eq!((cpu.stats().stale, cpu.stats().created), (1, 2));
}

#[test]
fn write_to_a_read_only_slot_is_emulated_and_never_remembered() {
    let mut machine = Machine::new(HostParams::x86(48));
    machine.set(7, SlotFlags::READ_ONLY, PAGE);
    let mut cpu = machine.cpu();
    for _ in 0..3 {
        assert_eq!(cpu.write(PAGE), MmioAnswer::ReadOnlyWrite(SlotId::new(7)));
        assert_eq!(cpu.read(PAGE), MmioAnswer::Retry(SlotId::new(7)));
    }
    assert_eq!(
        (cpu.stats().searches, cpu.stats().created, cpu.stats().read_only_writes),
        (6, 0, 3)
    );
}

#[test]
fn caching_off_searches_every_time_and_leaves_no_trace() {
    let mut cpu = Machine::new(HostParams::x86(52)).cpu();
    assert_eq!(
        cpu.mmu.layout().caching_off(),
        Some(CachingOff::NoReservedBit { physical_bits: 52 })
    );
    assert_eq!([cpu.read(PAGE), cpu.read(PAGE), cpu.read(PAGE)], [SEARCH; 3]);
    assert_eq!(
        cpu.stats(),
        DirectStats {
            searches: 3,
            ..DirectStats::default()
        }
    );
    assert_eq!(cpu.mmu.table().tables_in_use(), 2);
}

#[test]
fn page_that_no_entry_can_hold_is_known_to_the_vcpu_only() {
    let machine = Machine::new(HostParams::x86(40));
    let mut cpu = machine.cpu();
    // Above the width of the host; above the four levels; the last page there is.
    for page in [1 << 40, 1 << 50, Gfn::MAX.base().get()] {
        assert_eq!([cpu.read(page), cpu.read(page)], [SEARCH, CACHE]);
        assert_eq!(machine.cpu().read(page), SEARCH);
    }
    assert_eq!(cpu.stats().created, 0);
}

#[test]
fn five_levels_hold_what_four_do_not() {
    let layout = SpteLayout::new(HostParams::ept(52)).unwrap();
    let options = DirectOptions {
        levels: Levels::Five,
        ..DirectOptions::new(layout)
    };
    let mmu = Arc::new(DirectMmu::new(options).unwrap());
    let machine = Machine {
        mmu,
        slots: SlotTable::new(SlotLimits::default()),
    };
    assert_eq!(machine.cpu().read((1 << 52) - 1), SEARCH);
    assert_eq!(machine.cpu().read((1 << 52) - 1), SPTE);
}

#[test]
fn wrapped_generation_zaps_before_an_old_entry_can_come_back() {
    for followed in [false, true] {
        let mut machine = Machine::new(HostParams::x86(48).with_generation(tiny_generation()));
        if followed {
            machine
                .slots
                .add_observer(Box::new(SlotFollower::new(Arc::clone(&machine.mmu))));
        }
        let mut cpu = machine.cpu();
        // Generation 0; the cut is back at 0 after two updates. The slot that is there then must be seen.
        assert_eq!(cpu.read(PAGE), SEARCH);
        machine.set(0, SlotFlags::empty(), 0);
        machine.set(1, SlotFlags::empty(), PAGE);
        let now = machine.slots.slots(AddressSpaceId::Normal).generation();
        assert_eq!(MmioGen::cut(now, tiny_generation()).get(), 0);
        assert_eq!(cpu.read(PAGE), MmioAnswer::Retry(SlotId::new(1)));
        // And an entry of the new era is trusted again.
        assert_eq!(
            [cpu.read(PAGE + 0x1000), machine.cpu().read(PAGE + 0x1000)],
            [SEARCH, SPTE]
        );
        assert_eq!(cpu.stats().wraps, u64::from(!followed));
    }
}

#[test]
fn guest_touching_pages_everywhere_is_held_to_the_limit_of_tables() {
    let layout = SpteLayout::new(HostParams::x86(48)).unwrap();
    let mmu = Arc::new(
        DirectMmu::new(DirectOptions {
            table_limit: 16,
            ..DirectOptions::new(layout)
        })
        .unwrap(),
    );
    let machine = Machine {
        mmu,
        slots: SlotTable::new(SlotLimits::default()),
    };
    let mut cpu = machine.cpu();
    for index in 0..1000u64 {
        let page = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0x7fff_ffff_f000;
        assert_eq!([cpu.read(page), machine.cpu().read(page)], [SEARCH, SPTE]);
        assert!(cpu.mmu.table().tables_in_use() <= 16);
    }
    assert!(cpu.stats().reclaims > 100);
    assert_eq!(cpu.stats().created, 1000);
}

#[test]
fn zapped_range_is_learnt_again() {
    let machine = Machine::new(HostParams::x86(48));
    let (mut cpu, gfn) = (machine.cpu(), Gfn::new(0xd0000).unwrap());
    cpu.read(PAGE);
    let zapped = machine
        .mmu
        .zap_range(AddressSpaceId::Normal, umbra_memslots::GfnRange::single(gfn));
    assert_eq!(zapped.leaves, 1);
    assert_eq!([machine.cpu().read(PAGE), machine.cpu().read(PAGE)], [SEARCH, SPTE]);
    assert_eq!(machine.mmu.zap_all(AddressSpaceId::Normal).leaves, 1);
    assert_eq!(machine.mmu.zap_all(AddressSpaceId::Smm).leaves, 0);
}

/// A view of the slots that a test moves by hand.
struct Fixed {
    set: SlotSet,
    slot: Option<FoundSlot>,
}

impl Fixed {
    fn new(generation: Generation) -> Self {
        Self {
            set: SlotSet {
                generation,
                address_space: AddressSpaceId::Normal,
            },
            slot: None,
        }
    }
}

impl SlotSource for Fixed {
    fn current(&mut self) -> SlotSet {
        self.set
    }

    fn search(&mut self, _gfn: Gfn) -> (SlotSet, Option<FoundSlot>) {
        (self.set, self.slot)
    }
}

#[test]
fn during_an_update_nothing_is_believed_and_what_is_made_is_stale_afterwards() {
    let mmu = mmu(HostParams::x86(48));
    let mut vcpu = DirectVcpu::new();
    let mut look = |slots: &mut Fixed| mmu.lookup(&mut vcpu, slots, Gpa::new(PAGE), Direction::Read);
    let before = Generation::from_raw(4);
    let (mut old, mut updating) = (Fixed::new(before), Fixed::new(before.begin_update()));
    let mut new = Fixed::new(before.begin_update().finish_update(2));
    assert_eq!([look(&mut old), look(&mut old)], [SEARCH, CACHE]);
    assert_eq!([look(&mut updating), look(&mut updating)], [SEARCH, SEARCH]);
    assert_eq!([look(&mut new), look(&mut new)], [SEARCH, CACHE]);
}

#[test]
fn slot_being_removed_means_try_again_even_for_a_write_to_a_read_only_one() {
    let mmu = mmu(HostParams::x86(48));
    let mut vcpu = DirectVcpu::new();
    let id = SlotId::new(1);
    let mut slots = Fixed::new(Generation::from_raw(4));
    slots.slot = Some(FoundSlot {
        id,
        read_only: true,
        invalid: true,
    });
    let answer = mmu.lookup(&mut vcpu, &mut slots, Gpa::new(PAGE), Direction::Write);
    assert_eq!(answer, MmioAnswer::Retry(id));
}

#[test]
fn view_from_before_a_wrap_neither_believes_nor_leaves_entries_of_the_new_era() {
    let mmu = mmu(HostParams::x86(48).with_generation(tiny_generation()));
    let (mut fresh, mut behind) = (DirectVcpu::new(), DirectVcpu::new());
    let look = |vcpu: &mut DirectVcpu, slots: &mut Fixed, page| {
        vcpu.forget();
        mmu.lookup(vcpu, slots, Gpa::new(page), Direction::Read)
    };
    // Cuts 1 and 1.
    let (mut old, mut new) = (Fixed::new(Generation::from_raw(1)), Fixed::new(Generation::from_raw(5)));
    assert_eq!(look(&mut fresh, &mut new, PAGE), SEARCH);
    assert_eq!(
        [look(&mut behind, &mut old, PAGE), look(&mut behind, &mut old, PAGE)],
        [SEARCH, SEARCH]
    );
    assert_eq!(look(&mut behind, &mut old, PAGE + 0x1000), SEARCH);
    assert_eq!(behind.stats().created, 0);
    assert_eq!(
        [
            look(&mut fresh, &mut new, PAGE),
            look(&mut fresh, &mut new, PAGE + 0x1000)
        ],
        [SPTE, SEARCH]
    );
}

#[derive(Default)]
struct Recorder(Vec<String>);

impl MmuObserver for Recorder {
    fn mark_mmio_spte(&mut self, _at: EntryLocation, gfn: Gfn, access: AccessMask, generation: MmioGen) {
        self.0.push(format!(
            "mark_mmio_spte gfn {gfn:x} access {:x} gen {:x}",
            access.bits(),
            generation.get()
        ));
    }

    fn check_mmio_spte(&mut self, spte: MmioSpte, current: Generation, made: MmioGen, valid: bool) {
        let valid = u8::from(valid);
        self.0.push(format!(
            "check_mmio_spte spte {:x} kvm_gen {:x} spte-gen {:x} valid {valid}",
            spte.raw(),
            current.get(),
            made.get()
        ));
    }

    fn handle_mmio_page_fault(&mut self, gva: Option<umbra_memslots::Gva>, gfn: Gfn, access: AccessMask) {
        let gva = gva.map_or(0, umbra_memslots::Gva::get);
        self.0.push(format!(
            "handle_mmio_page_fault addr {gva:x} gfn {gfn:x} access {:x}",
            access.bits()
        ));
    }

    fn zap_all_fast(&mut self, space: AddressSpaceId, tables_in_use: u32) {
        self.0.push(format!("zap_all_fast as {space} tables {tables_in_use}"));
    }
}

#[test]
fn observer_sees_what_the_kernels_trace_would_show() {
    let mmu = mmu(HostParams::x86(48));
    let mut vcpu = DirectVcpu::with_observer(Recorder::default());
    let mut slots = Fixed::new(Generation::from_raw(2));
    let mut look = |slots: &mut Fixed, page| mmu.lookup(&mut vcpu, slots, Gpa::new(page), Direction::Read);
    look(&mut slots, PAGE);
    look(&mut slots, PAGE);
    look(&mut slots, PAGE + 0x1000);
    look(&mut slots, PAGE);
    slots.set.generation = Generation::from_raw(4);
    look(&mut slots, PAGE);
    assert_eq!(
        vcpu.observer().0,
        [
            "mark_mmio_spte gfn d0000 access 7 gen 2",
            "mark_mmio_spte gfn d0001 access 7 gen 2",
            "check_mmio_spte spte 80000d0000017 kvm_gen 2 spte-gen 2 valid 1",
            "handle_mmio_page_fault addr 0 gfn d0000 access 6",
            "check_mmio_spte spte 80000d0000017 kvm_gen 4 spte-gen 2 valid 0",
            "mark_mmio_spte gfn d0000 access 7 gen 4",
        ]
    );
}
