//! A repeated MMIO access allocates nothing.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use umbra_memslots::{AddressSpaceId, Gpa, SlotLimits, SlotTable};
use umbra_mmu::direct::{DirectMmu, DirectOptions, DirectVcpu, Direction};
use umbra_mmu::shadow::{HostParams, SpteLayout};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes every request on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn cache_hit_spte_hit_and_even_first_touch_allocate_nothing() {
    let options = DirectOptions::new(SpteLayout::new(HostParams::x86(46)).unwrap());
    let mmu = DirectMmu::new(options).unwrap();
    let slots = SlotTable::new(SlotLimits::default());
    let mut reader = slots.reader(AddressSpaceId::Normal).unwrap();
    let mut vcpu = DirectVcpu::new();
    let before = ALLOCATIONS.with(Cell::get);
    for round in 0..100u64 {
        for page in 0..8 {
            mmu.lookup(
                &mut vcpu,
                &mut reader,
                Gpa::new(0xd000_0000 + page * 0x1000 + round),
                Direction::Write,
            );
            mmu.lookup(
                &mut vcpu,
                &mut reader,
                Gpa::new(0xd000_0000 + page * 0x1000),
                Direction::Read,
            );
        }
    }
    assert_eq!(ALLOCATIONS.with(Cell::get), before);
    assert_eq!(
        (vcpu.stats().cache_hits, vcpu.stats().spte_hits, vcpu.stats().searches),
        (800, 792, 8)
    );
}
