//! The slow path of a fault: walk the guest's tables and find the memory; then, with the lock held, make the path and
//! install the leaf. KVM's `FNAME(page_fault)`, `kvm_faultin_pfn`, `FNAME(fetch)` and `mmu_set_spte`.

use super::leaf::{self, LeafParts};
use super::link;
use super::mmu::ShadowMmu;
use super::outcome::{FaultOutcome, MmioAccess, ShadowFault};
use super::pages::{NewLeaf, Set, Writer, first_of};
use super::path::{PathTo, Target, align};
use super::ports::{DirtyLog, FoundFrame, FrameSource};
use super::root::{RootTables, entry_of};
use super::sync::GuestTables;
use super::vcpu::Own;
use super::watched::Watched;
use crate::access_mask::AccessMask;
use crate::direct::{MmioSource, SlotSet};
use crate::guest_walk::{GuestWalk, WalkFailure, walk};
use crate::mmio::{CachedMmio, MmioEra, MmioGen, MmioSpte};
use crate::observer::{FastFault, MmuObserver};
use crate::tables::TableSpace;
use crate::x86::{Access, GuestPte, PagingMode, PagingState};
use umbra_memslots::{GuestMemory, Gva};

/// What a fault is about, found without the lock.
pub(super) struct Found {
    pub(super) walk: GuestWalk,
    access: Access,
    present: bool,
    set: SlotSet,
    frame: Option<FoundFrame>,
    /// It was tried without the lock, in vain.
    pub(super) fast: Option<FastFault>,
}

impl<S: TableSpace> ShadowMmu<S> {
    /// Walks the guest's tables and looks for the memory. Or there is an outcome already.
    pub(super) fn find<O: MmuObserver>(
        &self,
        observer: &mut O,
        own: &mut Own,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        fault: ShadowFault,
    ) -> Result<Found, FaultOutcome> {
        let access = fault.access;
        let walk = observed_walk(&own.state, memory, observer, fault);
        let walk = walk.map_err(|failure| refused(own, observer, failure))?;
        let (set, frame) = frames.frame(walk.gpa.gfn());
        match frame {
            Some(frame) if frame.slot.invalid => return Err(FaultOutcome::Retry),
            Some(frame) if access.is_write() && frame.slot.read_only => {
                return Err(FaultOutcome::ReadOnlyWrite(walk.gpa, frame.slot.id));
            }
            _ => {}
        }
        Ok(Found {
            walk,
            access,
            present: fault.present,
            set,
            frame,
            fast: None,
        })
    }

    /// Installs what was found.
    pub(super) fn map<O: MmuObserver>(
        &self,
        writer: &mut Writer<'_, S, O>,
        root: RootTables,
        own: &mut Own,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        found: &Found,
    ) -> FaultOutcome {
        let &Found {
            ref walk,
            access,
            present,
            set,
            frame,
            fast,
        } = found;
        let gfn = walk.gpa.gfn();
        let is_tracked = frame.is_some() && access.is_write() && present && writer.is_tracked(gfn);
        if let Some(fast) = fast.filter(|_| !is_tracked) {
            writer.observer.fast_page_fault(fast);
        }
        let Some(frame) = frame else {
            let target = Target {
                walk,
                access: clean_is_read_only(walk, access),
                memory: None,
            };
            return self.map_mmio(writer, root, own, (memory, frames), &target, set);
        };
        if is_tracked {
            // Known to be mapped without the right to write, and for this reason.
            self.clear_floods(writer, root, walk.gva);
            own.stats.tracked_writes += 1;
            return FaultOutcome::WriteTracked(walk.gpa);
        }
        own.stats.note_reclaim(writer.make_available());
        if self.current_root(own).is_none() {
            // The root had to go.
            return FaultOutcome::Retry;
        }
        let allowed = with_wp_fixup(&own.state, clean_is_read_only(walk, access), access);
        let FoundFrame {
            address,
            slot,
            largest,
            log,
        } = frame;
        let largest = if log == DirtyLog::Off { largest } else { 1 };
        let guest = GuestTables {
            state: &own.state,
            memory,
        };
        let target = Target {
            walk,
            access: allowed,
            memory: Some((address, largest)),
        };
        let (at, level) = match writer.path(&guest, root, &target) {
            PathTo::Leaf(at, level) => (at, level),
            PathTo::Changed | PathTo::OutOfTables => return FaultOutcome::Retry,
        };
        let writable = !slot.read_only && allowed.contains(AccessMask::WRITE);
        let tracked = writable && writer.try_unsync(gfn).is_err();
        let new = NewLeaf {
            gfn: first_of(gfn, level),
            access: allowed,
            level,
            entry: leaf::encode(LeafParts {
                address: align(address, level),
                access: allowed,
                key: key_of(&own.state, walk),
                host_writable: !slot.read_only,
                tracked,
                level,
                log,
                for_write: access.is_write(),
            }),
        };
        if log == DirtyLog::WriteProtection && leaf::is_writable(new.entry) {
            frames.mark_dirty(gfn);
        }
        let set = writer.set_leaf(at, new);
        if set == Set::Changed {
            own.stats.fixed += 1;
            writer.observer.set_spte(at, new.gfn, level, new.entry);
            if level == 1 {
                own.stats.prefetched += writer.prefetch(&guest, frames, at);
            }
        }
        match set {
            _ if access.is_write() && tracked => {
                own.stats.tracked_writes += 1;
                FaultOutcome::WriteTracked(walk.gpa)
            }
            Set::Same => FaultOutcome::Spurious,
            Set::Changed => FaultOutcome::Fixed,
        }
    }

    /// What the walk goes through is in use as tables (`shadow_page_table_clear_flood`).
    fn clear_floods<O: MmuObserver>(&self, writer: &mut Writer<'_, S, O>, root: RootTables, gva: Gva) {
        let mut next = root.start(gva);
        while let Some((table, level)) = next {
            writer.clear_flood(table);
            let entry = self.pool.space().load(entry_of(table, level, gva));
            let below = link::target(&self.layout, entry).filter(|_| level > 1);
            next = below.and_then(|below| Some((self.pool.space().table_at(below)?, level - 1)));
        }
    }

    /// `kvm_handle_noslot_fault` and `mark_mmio_spte`.
    fn map_mmio<O: MmuObserver>(
        &self,
        writer: &mut Writer<'_, S, O>,
        root: RootTables,
        own: &mut Own,
        (memory, frames): (&impl GuestMemory, &mut impl FrameSource),
        target: &Target<'_>,
        SlotSet {
            generation,
            address_space,
        }: SlotSet,
    ) -> FaultOutcome {
        let &Target { walk, access, .. } = target;
        let gfn = walk.gpa.gfn();
        own.cache.store(CachedMmio {
            gfn,
            gva: own.cached_gva(walk.gva),
            access,
            generation,
            address_space,
        });
        let answer = FaultOutcome::Emulate(MmioAccess {
            gpa: walk.gpa,
            access,
            source: MmioSource::Search,
        });
        let spans = self.layout.generation_spans();
        let (made, era) = (MmioGen::cut(generation, spans), MmioEra::of(generation, spans));
        let Some(spte) = MmioSpte::encode(&self.layout, gfn, access, made) else {
            return answer;
        };
        if self.enter_era(writer, address_space, era) {
            // The root is gone as well. The next access is remembered.
            return answer;
        }
        if era < self.eras.of(address_space) {
            // A view of the slots so old that its date would be taken for one of the present era.
            return answer;
        }
        own.stats.note_reclaim(writer.make_available());
        if self.current_root(own).is_none() {
            return FaultOutcome::Retry;
        }
        let guest = GuestTables {
            state: &own.state,
            memory,
        };
        match writer.path(&guest, root, target) {
            PathTo::Leaf(at, _) => {
                if writer.set_mmio(at, spte.raw()) == Set::Changed {
                    own.stats.created += 1;
                    writer.observer.mark_mmio_spte(at, gfn, access, made);
                    own.stats.prefetched += writer.prefetch(&guest, frames, at);
                }
                answer
            }
            PathTo::Changed | PathTo::OutOfTables => FaultOutcome::Retry,
        }
    }
}

/// What a walk of the guest's tables that failed comes to.
pub(super) fn refused<O: MmuObserver>(own: &mut Own, observer: &mut O, failure: WalkFailure) -> FaultOutcome {
    match failure {
        WalkFailure::Fault(fault) => {
            own.stats.injected += 1;
            observer.walker_error(fault.code);
            FaultOutcome::Inject(fault)
        }
        WalkFailure::NonCanonical(gva) => FaultOutcome::NonCanonical(gva),
        WalkFailure::Retry => FaultOutcome::Retry,
    }
}

/// A walk of the guest's tables that the observer can follow.
pub(super) fn observed_walk<O: MmuObserver>(
    state: &PagingState,
    memory: &impl GuestMemory,
    observer: &mut O,
    fault: ShadowFault,
) -> Result<GuestWalk, WalkFailure> {
    if state.mode == PagingMode::None {
        return walk(state, memory, fault.gva, fault.access);
    }
    observer.pagetable_walk(fault.gva, fault.code());
    let memory = Watched::new(memory, observer, state, fault.gva);
    walk(state, &memory, fault.gva, fault.access)
}

/// The protection key of the page. It is kept even while keys aren't in force: the walker knows whether they are.
fn key_of(state: &PagingState, walk: &GuestWalk) -> u8 {
    let last = walk.entries().last().filter(|_| state.mode.is_long());
    last.map_or(0, |entry| entry.pte.protection_key())
}

/// What the walk permits, less W while the guest's dirty flag is clear: the write that sets it must fault
/// (`FNAME(protect_clean_gpte)`). After a write the flag is set, unless it lies in a read-only slot and never can be.
pub(super) fn clean_is_read_only(walk: &GuestWalk, wanted: Access) -> AccessMask {
    let dirty = walk.entries().last().is_none_or(|entry| entry.pte.has(GuestPte::DIRTY));
    if dirty || wanted.is_write() {
        walk.permissions.mask
    } else {
        walk.permissions.mask.without(AccessMask::WRITE)
    }
}

/// The walker runs with CR0.WP set. Where the guest's isn't and a supervisor writes to a read-only page, the page becomes
/// a writable supervisor's page until a user touches it.
fn with_wp_fixup(state: &PagingState, access: AccessMask, wanted: Access) -> AccessMask {
    if !wanted.is_write() || access.contains(AccessMask::WRITE) || state.wp || wanted.is_user() {
        return access;
    }
    let mut access = (access | AccessMask::WRITE).without(AccessMask::USER);
    if state.smep {
        // As a user's page it could not be executed by a supervisor.
        access = access.without(AccessMask::EXEC);
    }
    access
}
