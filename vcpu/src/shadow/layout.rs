//! Where things are: in the arena, and in the linear address space of every root.
//!
//! One entry of each root's top-level table is the monitor's. It leads to a window in which the whole arena is mapped,
//! for supervisors only: the descriptor tables, the stubs, their stack, and all page tables. The guest's CPL 3 code can't
//! reach it; what a guest has mapped for itself there is never mapped for real but emulated.

use umbra_memslots::Gva;

/// Bytes of a page table.
pub(super) const TABLE_BYTES: u64 = 4096;
/// GDT, and at [`TSS`] the task state.
pub(super) const GDT: u64 = 0;
/// Task state (104 bytes).
pub(super) const TSS: u64 = 0x800;
/// Interrupt descriptors.
pub(super) const IDT: u64 = 0x1000;
/// One stub of [`STUB_BYTES`] for each vector.
pub(super) const STUBS: u64 = 0x2000;
/// Bytes of a stub.
pub(super) const STUB_BYTES: u64 = 8;
/// The routine that applies edits.
pub(super) const ROUTINE: u64 = STUBS + 256 * STUB_BYTES;
/// The stubs' stack: one page.
pub(super) const STACK: u64 = 0x3000;
/// Where an exception frame ends.
pub(super) const STACK_TOP: u64 = STACK + 0xff0;
/// What the routine is to write: pairs of linear address and value.
pub(super) const EDITS: u64 = 0x4000;
/// Pairs that fit.
pub(super) const MAX_EDITS: usize = 256;
/// The root of guests without 64-bit tables.
pub(super) const HOME_ROOT: u64 = 0x5000;
/// What its first entry leads to: the PDPTE registers, so to speak.
pub(super) const HOME_PDPT: u64 = 0x6000;
/// The monitor's own tables.
pub(super) const MONITOR_PDPT: u64 = 0x7000;
/// The monitor's own tables.
pub(super) const MONITOR_PD: u64 = 0x8000;
/// Shadow tables begin here.
pub(super) const MONITOR_BYTES: u64 = 0x1_0000;

/// Which entry of a top-level table is the monitor's: in the upper half, where user code has nothing.
const MONITOR_SLOT: u64 = 464;
/// log2 of what such an entry spans.
const SLOT_SHIFT: u32 = 39;

/// Offset in a top-level table of the monitor's entry.
pub(super) const MONITOR_ENTRY: u64 = 8 * MONITOR_SLOT;

/// Linear address of a byte of the arena, under every root.
pub(super) const fn linear(offset: u64) -> u64 {
    (0xffff << 48) | (MONITOR_SLOT << SLOT_SHIFT) | offset
}

/// Whether the guest can't have this address for itself.
pub(super) const fn is_monitors(gva: Gva) -> bool {
    gva.get() >> SLOT_SHIFT == linear(0) >> SLOT_SHIFT
}
