//! [`ShadowMmu`]: shadow tables of any number of vCPUs. Faults come in, outcomes go out.
//!
//! Guest tables above the last level that have a shadow are write-tracked: the guest can't write them without a fault,
//! the caller emulates the write and says so ([`ShadowMmu::guest_wrote`]), and what was derived from the changed entry
//! goes. Tables of the last level become writable instead, and their shadows catch up when the guest flushes its TLB. So
//! a present entry is always what a TLB might hold.
//!
//! One lock serialises whatever changes shadow pages. A fault walks the guest's tables and looks for memory without it,
//! and then makes sure that neither has been overtaken (`path`, `invalidation`). MMIO that is known is recognised without
//! it altogether (`mmio_fault`).

use super::host::EntryFormat;
use super::layout::SpteLayout;
use super::outcome::{FaultOutcome, ShadowFault};
use super::pages::{Pages, Writer};
use super::ports::{FrameSource, TlbControl};
use super::vcpu::ShadowVcpu;
use crate::mmio::{Eras, MmioEra};
use crate::observer::{MmuObserver, NoObserver};
use crate::pool::TablePool;
use crate::sync::{AtomicU64, Lock, Ordering};
use crate::tables::{HeapTables, TableSpace};
use crate::x86::PageFaultCode;
use umbra_memslots::{AddressSpaceId, Generation, GfnRange, Gpa, GuestMemory};

/// Fewer tables than this can't hold the roots of a vCPU and one path.
const MIN_TABLES: u32 = 16;

/// A shadow MMU can't be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShadowError {
    /// Guest paging is shadowed in x86 format only.
    #[error("shadow tables have x86 entries, not {format:?}")]
    Format {
        /// What was asked for.
        format: EntryFormat,
    },
    /// Too few tables.
    #[error("{capacity} page tables are too few: at least {MIN_TABLES} are needed")]
    TooFewTables {
        /// What the space has.
        capacity: u32,
    },
}

/// A fault that [`ShadowMmu::known_mmio`] has begun: nothing is known of it yet, or only that it is the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the fault is to be finished"]
pub struct Unfinished(Option<FaultOutcome>);

/// The shadow side of the MMU, shared by the vCPUs of a VM.
pub struct ShadowMmu<S = HeapTables> {
    pub(super) layout: SpteLayout,
    pub(super) pool: TablePool<S>,
    pages: Lock<Pages>,
    /// Moves when a root is taken out of use: roots of earlier epochs are to be loaded anew.
    pub(super) root_epoch: AtomicU64,
    /// Moves when what faults have found may not be true any more; with the lock held.
    pub(super) sequence: AtomicU64,
    pub(super) eras: Eras,
}

impl<S: TableSpace> ShadowMmu<S> {
    /// No pages yet. `space` must be zeroed and used by nobody else.
    ///
    /// # Errors
    /// [`ShadowError`].
    pub fn new(layout: SpteLayout, space: S) -> Result<Self, ShadowError> {
        let format = layout.host().format;
        if format != EntryFormat::X86 {
            return Err(ShadowError::Format { format });
        }
        let capacity = space.capacity();
        if capacity < MIN_TABLES {
            return Err(ShadowError::TooFewTables { capacity });
        }
        let (pool, free) = TablePool::new(space, layout.empty(), 0);
        Ok(Self {
            layout,
            pool,
            pages: Lock::new(Pages::new(free)),
            root_epoch: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            eras: Eras::new(),
        })
    }

    /// The layout of the entries.
    pub fn layout(&self) -> &SpteLayout {
        &self.layout
    }

    /// Where the tables are.
    pub fn space(&self) -> &S {
        self.pool.space()
    }

    /// Number of tables in use.
    pub fn tables_in_use(&self) -> u32 {
        self.change(&mut NoObserver, || {}, |writer| writer.in_use())
    }

    /// Number of leaves that map memory.
    pub fn leaves(&self) -> usize {
        self.change(&mut NoObserver, || {}, |writer| writer.leaves())
    }

    /// A fault that the walker of the shadow tables reported.
    #[inline]
    pub fn page_fault<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        tlb: &mut impl TlbControl,
        fault: ShadowFault,
    ) -> FaultOutcome {
        match self.known_mmio(vcpu, memory, frames, fault) {
            Ok(outcome) => outcome,
            Err(unfinished) => self.finish_fault(vcpu, memory, frames, tlb, fault, unfinished),
        }
    }

    /// What is left of a fault after [`ShadowMmu::known_mmio`].
    #[inline]
    pub fn finish_fault<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        tlb: &mut impl TlbControl,
        fault: ShadowFault,
        unfinished: Unfinished,
    ) -> FaultOutcome {
        let outcome = match unfinished.0 {
            Some(outcome) => outcome,
            None => self.unknown_fault(vcpu, memory, frames, tlb, fault),
        };
        if let FaultOutcome::Inject(fault) = outcome
            && fault.code.has(PageFaultCode::PRESENT)
            && !fault.code.has(PageFaultCode::RESERVED)
        {
            // A CPU that reports a fault forgets the translation (SDM vol. 3A, 4.10.4.1).
            self.forget(vcpu, memory, frames, tlb, fault.gva);
        }
        outcome
    }

    /// The first half of [`ShadowMmu::page_fault`]: a fault with the RSVD bit, if it is MMIO that is known already, is
    /// [`FaultOutcome::Emulate`] or [`FaultOutcome::Retry`].
    ///
    /// This takes no lock and asks for no flush. So a software CPU need not stop using its TLB meanwhile, as it must where it
    /// may have to wait for somebody who waits for that.
    ///
    /// # Errors
    /// The fault needs more: [`ShadowMmu::finish_fault`] does it. It is counted by now, and so is what was looked at.
    #[inline]
    pub fn known_mmio<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        fault: ShadowFault,
    ) -> Result<FaultOutcome, Unfinished> {
        vcpu.own.stats.faults += 1;
        if !fault.reserved {
            return Err(Unfinished(None));
        }
        match self.handle_mmio_page_fault(vcpu, memory, frames, fault) {
            Some(outcome @ (FaultOutcome::Emulate(_) | FaultOutcome::Retry)) => Ok(outcome),
            outcome => Err(Unfinished(outcome)),
        }
    }

    /// A fault that isn't known MMIO. Not a part of the above, whose frame would grow by all that this needs.
    #[inline(never)]
    fn unknown_fault<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        tlb: &mut impl TlbControl,
        fault: ShadowFault,
    ) -> FaultOutcome {
        if self.current_root(&vcpu.own).is_none() {
            self.load_root(vcpu, memory, frames.current().address_space, tlb);
            return FaultOutcome::Retry;
        }
        let fast = self.fast_page_fault(vcpu, frames, fault);
        let ShadowVcpu { own, observer } = vcpu;
        if let Some(fast) = fast.filter(|fast| fast.fixed || fast.spurious) {
            observer.fast_page_fault(fast);
            return if fast.fixed {
                FaultOutcome::Fixed
            } else {
                FaultOutcome::Spurious
            };
        }
        let sequence = self.sequence.load(Ordering::Acquire);
        let found = match self.find(observer, own, memory, frames, fault) {
            Ok(mut found) => {
                found.fast = fast;
                found
            }
            Err(outcome) => {
                fast.into_iter().for_each(|fast| observer.fast_page_fault(fast));
                return outcome;
            }
        };
        self.change(
            observer,
            || tlb.flush_all(),
            |writer| {
                // Zapped meanwhile, or what was found isn't true any more.
                let Some(root) = self.current_root(own) else {
                    return FaultOutcome::Retry;
                };
                if self.sequence.load(Ordering::Acquire) != sequence
                    || writer.is_being_invalidated(GfnRange::single(found.walk.gpa.gfn()))
                {
                    return FaultOutcome::Retry;
                }
                self.map(writer, root, own, memory, frames, &found)
            },
        )
    }

    /// The guest's memory was written at `gpa` other than through a mapping of ours: an emulated instruction, a device.
    /// To be called after the write. `bytes` must not cross a page.
    pub fn guest_wrote<O: MmuObserver>(&self, observer: &mut O, tlb: &mut impl TlbControl, gpa: Gpa, bytes: u16) {
        #[expect(clippy::cast_possible_truncation, reason = "the offset in a page has twelve bits")]
        let offset = gpa.page_offset() as u16;
        let bytes = bytes.min(4096 - offset);
        self.change(
            observer,
            || tlb.flush_all(),
            |writer| writer.guest_wrote(gpa.gfn(), offset, bytes),
        );
    }

    /// The memslots of `address_space` are about to be published with generation `next`: if it wraps in MMIO SPTEs,
    /// everything goes (`kvm_mmu_invalidate_mmio_sptes`).
    pub fn generation_changes<O: MmuObserver>(
        &self,
        observer: &mut O,
        tlb: &mut impl TlbControl,
        address_space: AddressSpaceId,
        next: Generation,
    ) {
        let era = MmioEra::of(next, self.layout.generation_spans());
        if self.eras.of(address_space) < era {
            self.change(
                observer,
                || tlb.flush_all(),
                |writer| self.enter_era(writer, address_space, era),
            );
        }
    }

    /// Moves forward into `era`, with everything gone first. Says whether there was anything to do.
    pub(super) fn enter_era<O: MmuObserver>(
        &self,
        writer: &mut Writer<'_, S, O>,
        address_space: AddressSpaceId,
        era: MmioEra,
    ) -> bool {
        let forward = self.eras.of(address_space) < era;
        if forward {
            let in_use = writer.in_use();
            writer.observer.zap_all_fast(address_space, in_use);
            writer.zap_all();
            self.eras.enter(address_space, era);
        }
        forward
    }

    /// One operation on the shadow pages.
    pub(super) fn change<O: MmuObserver, R>(
        &self,
        observer: &mut O,
        mut flush: impl FnMut(),
        f: impl FnOnce(&mut Writer<'_, S, O>) -> R,
    ) -> R {
        self.pages.with(|pages| {
            let mut writer = Writer::new(observer, &self.pool, &self.layout, pages, &self.root_epoch, &mut flush);
            let result = f(&mut writer);
            writer.flush_now();
            result
        })
    }
}
