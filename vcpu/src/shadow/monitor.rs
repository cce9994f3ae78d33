//! What is in the monitor's pages: the least that a CPU needs to take an exception to CPL 0 and halt there.

use super::arena::Arena;
use super::layout::{
    EDITS, GDT, HOME_PDPT, HOME_ROOT, IDT, MONITOR_ENTRY, MONITOR_PD, MONITOR_PDPT, ROUTINE, STACK_TOP, STUB_BYTES,
    STUBS, TSS, linear,
};
use crate::regs::{DescriptorTable, Segment, SystemRegs};

/// Selectors. There is none for CPL 3: a segment load by user code faults and is emulated with the guest's own tables.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const TASK: u16 = 0x18;

/// Entry bits: present, writable, user, accessed, dirty, large.
const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;

/// Writes `count` (RCX) values from pairs at RSI (address, value), then forgets all translations, and halts.
///
/// The values are in memory already. But a hypervisor that shadows our tables in turn sees only writes made by its guest,
/// so they are made once more where all can see them.
const ROUTINE_CODE: [u8; 33] = [
    0x48, 0x85, 0xc9, // test rcx, rcx
    0x74, 0x13, // jz done
    0x48, 0x8b, 0x3e, // next: mov rdi, [rsi]
    0x48, 0x8b, 0x46, 0x08, // mov rax, [rsi + 8]
    0x48, 0x89, 0x07, // mov [rdi], rax
    0x48, 0x83, 0xc6, 0x10, // add rsi, 16
    0x48, 0xff, 0xc9, // dec rcx
    0x75, 0xed, // jnz next
    0x0f, 0x20, 0xd8, // done: mov rax, cr3
    0x0f, 0x22, 0xd8, // mov cr3, rax
    0xf4, 0x90, // hlt
    0x90,
];

/// Fills a new arena.
pub(super) fn install(arena: &Arena) {
    let put_bytes = |at: u64, bytes: &[u8]| {
        for (index, chunk) in (0u64..).zip(bytes.chunks(8)) {
            let mut word = [0x90; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            arena.put(at + 8 * index, u64::from_le_bytes(word));
        }
    };
    let task = linear(TSS);
    arena.put(GDT + u64::from(CODE), 0x00af_9b00_0000_ffff);
    arena.put(GDT + u64::from(DATA), 0x00cf_9300_0000_ffff);
    arena.put(
        GDT + u64::from(TASK),
        0x0000_8b00_0000_0067 | (task & 0xff_ffff) << 16 | (task >> 24 & 0xff) << 56,
    );
    arena.put(GDT + u64::from(TASK) + 8, task >> 32);
    // RSP0 lies across two words. An I/O bitmap there is none: its offset is the limit.
    let stack = linear(STACK_TOP);
    arena.put(TSS, stack << 32);
    arena.put(TSS + 8, stack >> 32);
    arena.put(TSS + 96, 0x68 << 48);
    for vector in 0..256 {
        let stub = linear(STUBS + vector * STUB_BYTES);
        // Interrupt gates that user code can't call.
        let low = (stub & 0xffff) | u64::from(CODE) << 16 | 0x8e00 << 32 | (stub >> 16 & 0xffff) << 48;
        arena.put(IDT + 16 * vector, low);
        arena.put(IDT + 16 * vector + 8, stub >> 32);
        // hlt; jmp to it again
        put_bytes(STUBS + vector * STUB_BYTES, &[0xf4, 0xeb, 0xfd]);
    }
    put_bytes(ROUTINE, &ROUTINE_CODE);
    arena.put(MONITOR_PDPT, arena.gpa(MONITOR_PD).get() | P | W | A);
    for (index, offset) in (0u64..).zip((0..arena.bytes()).step_by(2 << 20)) {
        arena.put(MONITOR_PD + 8 * index, arena.gpa(offset).get() | P | W | A | D | PS);
    }
    arena.put(HOME_ROOT, arena.gpa(HOME_PDPT).get() | P | W | U | A);
    arena.put(HOME_ROOT + MONITOR_ENTRY, root_entry(arena));
}

/// The monitor's entry in a top-level table. To the shadow MMU it is none of its own: bit 11 is clear.
pub(super) fn root_entry(arena: &Arena) -> u64 {
    arena.gpa(MONITOR_PDPT).get() | P | W | A
}

/// Puts PDPTE registers where a root without 64-bit tables has them.
pub(super) fn set_pdptes(arena: &Arena, pdptes: [u64; 4]) {
    for (index, pdpte) in (0u64..).zip(pdptes) {
        let entry = if pdpte & P == 0 { 0 } else { pdpte | W | U | A };
        if arena.load(HOME_PDPT + 8 * index) != entry {
            arena.store_entry(HOME_PDPT + 8 * index, entry);
        }
    }
}

/// What every context has in common: the descriptor tables and the task. The rest is as it was in `present`.
pub(super) fn system_regs(present: &SystemRegs) -> SystemRegs {
    let table = |offset, limit| DescriptorTable {
        base: linear(offset),
        limit,
    };
    SystemRegs {
        gdt: table(GDT, TASK + 15),
        idt: table(IDT, 0xfff),
        tr: Segment {
            selector: TASK,
            base: linear(TSS),
            limit: 0x67,
            kind: 11,
            present: true,
            ..Segment::default()
        },
        ldt: Segment {
            unusable: true,
            ..Segment::default()
        },
        ..*present
    }
}

/// Code and stack segment of CPL 0.
pub(super) fn supervisor_segments() -> (Segment, Segment) {
    let data = Segment {
        selector: DATA,
        limit: u32::MAX,
        kind: 3,
        present: true,
        non_system: true,
        db: true,
        granularity: true,
        ..Segment::default()
    };
    let code = Segment {
        selector: CODE,
        kind: 11,
        long: true,
        db: false,
        ..data
    };
    (code, data)
}

/// Where the routine finds its pairs.
pub(super) const fn edits() -> u64 {
    linear(EDITS)
}
