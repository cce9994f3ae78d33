//! Which pages were written to, and which were used: dirty logging and ageing.

use super::leaf;
use super::mmu::ShadowMmu;
use super::pages::Writer;
use super::ports::{DirtyLog, FrameSource, TlbControl};
use crate::observer::{MmuObserver, NoObserver};
use crate::tables::{EntryLocation, TableSpace};
use alloc::vec::Vec;
use umbra_memslots::{Gfn, GfnRange};

impl<S: TableSpace> ShadowMmu<S> {
    /// The frames are logged from now on by `log`, and no more by any other way: to be called for a whole slot, after the
    /// slots say so. By [`DirtyLog::WriteProtection`], also for a part of it, to begin anew after the log was read.
    pub fn start_logging(&self, tlb: &mut impl TlbControl, range: GfnRange, log: DirtyLog) {
        self.change(
            &mut NoObserver,
            || tlb.flush_all(),
            |writer| {
                self.found_is_void();
                // Nobody fixes a leaf by what the slots said before (`fast_fault`).
                self.pool.wait_for_changes();
                writer.pages.dirty_flags.retain(|other| !other.overlaps(range));
                writer.pages.dirty.retain(|&gfn| !range.contains(gfn));
                match log {
                    DirtyLog::Off => {}
                    DirtyLog::WriteProtection => writer.log_writes(range),
                    DirtyLog::DirtyFlags => {
                        // So far all are set.
                        writer.unmap(range);
                        writer.pages.dirty_flags.push(range);
                    }
                }
            },
        );
    }

    /// Leaves that are small only because the frames were logged go, so that the next access maps them by large ones: to be
    /// called when a slot is logged no more, after [`ShadowMmu::start_logging`] (`kvm_rmap_zap_collapsible_sptes`). Says how
    /// many went.
    pub fn recover_large(&self, frames: &mut impl FrameSource, tlb: &mut impl TlbControl, range: GfnRange) -> usize {
        self.change(
            &mut NoObserver,
            || tlb.flush_all(),
            |writer| {
                let mut mappings = writer.mappings_in(range);
                mappings.retain(|&at| writer.could_be_larger(frames, at));
                for &at in &mappings {
                    writer.drop_entry(at);
                }
                mappings.len()
            },
        )
    }

    /// The frames that were written to since the last call, if they are logged by [`DirtyLog::DirtyFlags`].
    #[must_use = "what was collected is clean from now on"]
    pub fn collect_dirty(&self, tlb: &mut impl TlbControl, range: GfnRange) -> Vec<Gfn> {
        self.change(
            &mut NoObserver,
            || tlb.flush_all(),
            |writer| {
                let mut dirty = writer.clear_flags(range, leaf::clean);
                // A CPU that knows a leaf as dirty doesn't set the flag again.
                writer.needs_flush |= !dirty.is_empty();
                let elsewhere = writer.pages.dirty.range(range.start()..=range.last()).copied();
                dirty.extend(elsewhere);
                writer.pages.dirty.retain(|&gfn| !range.contains(gfn));
                dirty.sort_unstable();
                dirty.dedup();
                dirty
            },
        )
    }

    /// The first frames of the leaves that were used since the last call (`kvm_age_gfn`). No flush: a leaf that a TLB
    /// knows doesn't count as used again until it is forgotten there.
    #[must_use = "what was collected counts as unused from now on"]
    pub fn collect_accessed(&self, range: GfnRange) -> Vec<Gfn> {
        self.change(&mut NoObserver, || {}, |writer| writer.clear_flags(range, leaf::old))
    }
}

impl<S: TableSpace, O: MmuObserver> Writer<'_, S, O> {
    /// Whether the leaf is a part of what one of the next level could map. Where the guest's own page is that small
    /// (`!role.is_direct()`), it never is.
    fn could_be_larger(&self, frames: &mut impl FrameSource, at: EntryLocation) -> bool {
        let Some(page) = self.page(at.table).filter(|page| page.role.is_direct()) else {
            return false;
        };
        let (gfn, level) = (page.leaf_gfn(at.index), page.role.level());
        let (_, frame) = frames.frame(gfn);
        let memory = frame.filter(|frame| frame.log == DirtyLog::Off && !frame.slot.invalid);
        self.goal(gfn, memory.map(|frame| frame.largest), level + 1) > level
    }

    /// The next write to each frame faults.
    fn log_writes(&mut self, range: GfnRange) {
        for at in self.mappings_in(range) {
            self.needs_flush |= self.replace(at, leaf::logged);
        }
    }

    pub(super) fn unmap(&mut self, range: GfnRange) {
        for at in self.mappings_in(range) {
            self.drop_entry(at);
        }
    }

    /// Changes leaves and names the first frames of those where there was something to change.
    fn clear_flags(&mut self, range: GfnRange, clear: impl Fn(u64) -> Option<u64>) -> Vec<Gfn> {
        let mut found = Vec::new();
        for at in self.mappings_in(range) {
            if self.replace(at, &clear)
                && let Some(page) = self.page(at.table)
            {
                found.push(page.leaf_gfn(at.index));
            }
        }
        found
    }
}
