//! Guests that are hypervisors: one table for the two stages that lead from the guest's guest (L2) through the guest (L1) to
//! the host.
//!
//! L1 keeps a second-level table of its own; no CPU can walk that and ours one after the other. So a [`NestedMmu`] holds a
//! direct table by L2 gfn in which each entry is what the two stages come to: L1's rights and the host's address. It is
//! filled by faults, and emptied when L1 says that its table changed (INVEPT, or a flush of the nested ASID) or a slot goes:
//! until then the architecture lets a CPU use what it has seen. One `NestedMmu` stands for one table of L1's.
//!
//! A page that L1 maps and that has no memslot is MMIO of L1's that was handed to L2. Its entry is an MMIO SPTE that holds
//! *L1's* gfn: the next access ends in a misconfiguration (EPT) or RSVD fault (x86), and is recognised without a walk of L1's
//! table. As in KVM, the vCPU's MMIO cache is of no use here, since it is keyed by other addresses.
//!
//! Nothing here is write-tracked: L1 must say what it changed, as it must on hardware. For nested tables in x86 format,
//! [`ShadowVcpu::nested`](crate::shadow::ShadowVcpu::nested) keeps a shadow of each table of L1's instead, which notices
//! writes to them, survives invalidations, and has the kernel's events.
//!
//! `ept` walks L1's table if that is EPT; one in x86 format (nested paging of AMD) is walked by [`crate::guest_walk`].

mod ept;

pub use ept::Eptp;

use crate::access_mask::AccessMask;
use crate::direct::{DirectTable, MmioSource, OutOfTables, RamLeaf, SlotSet, TableWriter};
use crate::guest_walk::{WalkFailure, walk};
use crate::mmio::{Eras, Freshness, MmioEra, MmioGen, MmioSpte};
use crate::shadow::{EntryFormat, FrameSource, ShadowRoot, SpteLayout, TlbControl};
use crate::tables::{HeapTables, TableSpace};
use crate::x86::{Access, AccessKind, GuestPte, PageFault, PagingState, Privilege};
use ept::{Found, Stop};
use umbra_memslots::{AddressSpaceId, Gfn, Gpa, GuestMemory, Gva, SlotId};

/// The second-level table that L1 made for L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestTable {
    /// Extended page tables.
    Ept(Eptp),
    /// Nested page tables: like L1's own paging in long mode, with nCR3 as the root.
    Npt(PagingState),
}

/// A fault on a [`NestedMmu`]'s tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NestedFault {
    /// The address, as L2 knows it.
    pub address: Gpa,
    /// What was tried.
    pub kind: AccessKind,
    /// It was an EPT misconfiguration, or a fault with the RSVD bit.
    pub reserved: bool,
}

/// What is to happen after a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NestedOutcome {
    /// Run L2 again: the page is mapped now.
    Fixed,
    /// Run L2 again: it was mapped already, or something changed meanwhile.
    Retry,
    /// Emulate the access, at this address of L1's, on the bus.
    Emulate(Gpa, MmioSource),
    /// A write to a read-only slot, at this address of L1's: emulate it on the bus.
    ReadOnlyWrite(Gpa, SlotId),
    /// L1 gets an EPT violation, whose qualification says what its table allows there (meaningless unless `present`).
    Violation {
        /// W and X of L1's translation.
        access: AccessMask,
        /// There is a translation, so R is allowed.
        present: bool,
    },
    /// L1 gets an EPT misconfiguration.
    Misconfiguration,
    /// L1 gets a nested page fault exit with this error code; the address in it is L2's.
    NestedPageFault(PageFault),
}

/// The two stages in one table. Shared by the vCPUs that run L2 on the same table of L1's.
#[derive(Debug)]
pub struct NestedMmu<S = HeapTables> {
    table: DirectTable<S>,
    eras: Eras,
}

/// L1's slots, whatever L2 does.
const SPACE: AddressSpaceId = AddressSpaceId::Normal;

impl<S: TableSpace> NestedMmu<S> {
    /// Empty, over a table that nobody else changes.
    #[must_use]
    pub fn new(table: DirectTable<S>) -> Self {
        Self {
            table,
            eras: Eras::new(),
        }
    }

    /// The tables.
    #[must_use]
    pub fn table(&self) -> &DirectTable<S> {
        &self.table
    }

    /// What the CPU that runs L2 is to load as its second level.
    #[must_use]
    pub fn root(&self) -> ShadowRoot {
        ShadowRoot::Long {
            address: self.table.space().address(self.table.root(SPACE)),
            levels: self.table.levels().get(),
        }
    }

    /// Forgets everything: L1 invalidated its translations, or memory goes away under them.
    pub fn invalidate(&self, tlb: &mut impl TlbControl) {
        self.table.write(|writer| empty(writer, tlb));
    }

    /// A fault that the CPU reported while it ran L2. `l1` is L1's table, in `memory`, which is L1's.
    pub fn fault(
        &self,
        l1: &GuestTable,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        tlb: &mut impl TlbControl,
        fault: NestedFault,
    ) -> NestedOutcome {
        if fault.reserved
            && let Some(outcome) = self.known_mmio(frames.current(), fault)
        {
            return outcome;
        }
        // Walk and search with the lock held: what they found can't be overtaken by an invalidation before it is installed.
        self.table.write(|writer| {
            let done = self.map(writer, l1, memory, frames, tlb, fault);
            done.unwrap_or_else(|OutOfTables { .. }| {
                empty(writer, tlb);
                NestedOutcome::Retry
            })
        })
    }

    /// MMIO that an entry still knows of. No lock, nothing shared written.
    fn known_mmio(
        &self,
        SlotSet {
            generation,
            address_space,
        }: SlotSet,
        fault: NestedFault,
    ) -> Option<NestedOutcome> {
        let layout = self.table.layout();
        let era = MmioEra::of(generation, layout.generation_spans());
        if self.eras.of(address_space) != era || fault.kind == AccessKind::Fetch {
            return None;
        }
        let spte = MmioSpte::recognise(layout, self.table.walk(SPACE, fault.address.gfn())?.entry)?;
        // Who enters another era empties the table, after which this is seen.
        if self.eras.of(address_space) != era || spte.check(layout, generation) != Freshness::Fresh {
            return None;
        }
        // In EPT format there is no room for it: there, only what may be written has such an entry.
        let may_write = layout.mmio_access_mask() == 0 || spte.access(layout).contains(AccessMask::WRITE);
        let gpa = spte.gfn(layout).base().wrapping_add(fault.address.page_offset());
        (may_write || fault.kind == AccessKind::Read).then_some(NestedOutcome::Emulate(gpa, MmioSource::Spte))
    }

    fn map(
        &self,
        writer: &mut TableWriter<'_, S>,
        l1: &GuestTable,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        tlb: &mut impl TlbControl,
        NestedFault { address, kind, .. }: NestedFault,
    ) -> Result<NestedOutcome, OutOfTables> {
        let l2_gfn = address.gfn();
        if !self.table.levels().holds(l2_gfn) {
            let (access, present) = (AccessMask::NONE, false);
            return Ok(NestedOutcome::Violation { access, present });
        }
        let found = match first_stage(l1, memory, address, kind) {
            Ok(found) => found,
            Err(outcome) => return Ok(outcome),
        };
        let write = kind == AccessKind::Write;
        let (set, frame) = frames.frame(found.gpa.gfn());
        let Some(frame) = frame else {
            self.remember(writer, tlb, l2_gfn, &found, set)?;
            return Ok(NestedOutcome::Emulate(found.gpa, MmioSource::Search));
        };
        if frame.slot.invalid {
            return Ok(NestedOutcome::Retry);
        }
        if write && frame.slot.read_only {
            return Ok(NestedOutcome::ReadOnlyWrite(found.gpa, frame.slot.id));
        }
        // A write that has to set L1's dirty flag must fault.
        let access = if frame.slot.read_only || !found.dirty {
            found.access.without(AccessMask::WRITE)
        } else {
            found.access
        };
        let leaf = RamLeaf {
            address: frame.address,
            level: found.level.min(frame.largest),
            access,
            log: frame.log,
            for_write: write,
        };
        let mapped = writer.map(SPACE, l2_gfn, leaf)?;
        if write {
            frames.mark_dirty(found.gpa.gfn());
        }
        if mapped.flush {
            tlb.flush_all();
        }
        Ok(if mapped.spurious {
            NestedOutcome::Retry
        } else {
            NestedOutcome::Fixed
        })
    }

    /// L1 maps `l2_gfn` to a frame that has no slot in `set`.
    fn remember(
        &self,
        writer: &mut TableWriter<'_, S>,
        tlb: &mut impl TlbControl,
        l2_gfn: Gfn,
        found: &Found,
        SlotSet {
            generation,
            address_space,
        }: SlotSet,
    ) -> Result<(), OutOfTables> {
        let layout: &SpteLayout = self.table.layout();
        let spans = layout.generation_spans();
        let era = MmioEra::of(generation, spans);
        if era < self.eras.of(address_space) {
            // A view of the slots so old that its date would be taken for one of the present era.
            return Ok(());
        }
        if era > self.eras.of(address_space) {
            empty(writer, tlb);
            self.eras.enter(address_space, era);
        }
        let access = if found.dirty {
            found.access
        } else {
            found.access.without(AccessMask::WRITE)
        };
        let says_access = matches!(layout.host().format, EntryFormat::X86);
        if !says_access && !access.contains(AccessMask::WRITE) {
            return Ok(());
        }
        let made = MmioGen::cut(generation, spans);
        if let Some(spte) = MmioSpte::encode(layout, found.gpa.gfn(), access, made) {
            let installed = writer.install(SPACE, l2_gfn, spte.raw())?;
            if layout.is_mmu_present(installed.old) {
                tlb.flush_all();
            }
        }
        Ok(())
    }
}

/// Empties the table. The flush comes before anybody can get one of its tables for something else.
fn empty<S: TableSpace>(writer: &mut TableWriter<'_, S>, tlb: &mut impl TlbControl) {
    writer.zap_all(SPACE);
    tlb.flush_all();
}

/// L1's part of the way.
fn first_stage(
    l1: &GuestTable,
    memory: &impl GuestMemory,
    address: Gpa,
    kind: AccessKind,
) -> Result<Found, NestedOutcome> {
    // The CPU walks nested tables as a user (APM vol. 2, 15.25.5).
    let access = Access::new(kind, Privilege::User);
    match l1 {
        GuestTable::Ept(eptp) => ept::walk(eptp, memory, address, access).map_err(|stop| match stop {
            Stop::Violation(access, present) => NestedOutcome::Violation { access, present },
            Stop::Misconfiguration => NestedOutcome::Misconfiguration,
            Stop::Retry => NestedOutcome::Retry,
        }),
        GuestTable::Npt(state) => match walk(state, memory, Gva::new(address.get()), access) {
            Ok(walk) => Ok(Found {
                gpa: walk.gpa,
                level: match walk.page_shift {
                    30 => 3,
                    21 => 2,
                    _ => 1,
                },
                access: walk.permissions.mask,
                // In read-only tables the flag is never set, and the write happens all the same.
                dirty: access.is_write() || walk.entries().last().is_none_or(|entry| entry.pte.has(GuestPte::DIRTY)),
            }),
            Err(WalkFailure::Fault(fault)) => Err(NestedOutcome::NestedPageFault(fault)),
            Err(WalkFailure::NonCanonical(_)) => {
                let (access, present) = (AccessMask::NONE, false);
                Err(NestedOutcome::Violation { access, present })
            }
            Err(WalkFailure::Retry) => Err(NestedOutcome::Retry),
        },
    }
}
