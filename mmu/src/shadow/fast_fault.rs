//! A write to a leaf that lost the right to write so that the next write becomes known: it gets it back, and the page is
//! dirty. No lock, no allocation. KVM's `fast_page_fault`.
//!
//! As in KVM only where the guest has no paging: there an address is a gfn, and the leaf can't have come to mean another
//! frame. A table may be zapped and used again meanwhile. But no leaf is ever *made* such that it could be fixed: it comes to
//! be when logging starts, and that waits for who is here ([`TablePool::change`](crate::pool::TablePool::change)).

use super::leaf;
use super::link;
use super::mmu::ShadowMmu;
use super::outcome::ShadowFault;
use super::ports::{DirtyLog, FrameSource};
use super::root::entry_of;
use super::vcpu::{Own, ShadowVcpu};
use crate::observer::{FastFault, MmuObserver};
use crate::tables::{EntryLocation, TableSpace};
use crate::x86::PagingMode;
use umbra_memslots::{Gfn, Gpa, Gva};

/// So often it is tried before the slow path takes over.
const ATTEMPTS: u32 = 5;

impl<S: TableSpace> ShadowMmu<S> {
    /// What came of it. `None`: it isn't a fault of that kind (`page_fault_can_be_fast`).
    pub(super) fn fast_page_fault<O: MmuObserver>(
        &self,
        ShadowVcpu { own, .. }: &mut ShadowVcpu<O>,
        frames: &mut impl FrameSource,
        fault: ShadowFault,
    ) -> Option<FastFault> {
        let can_be_fast =
            own.state.mode == PagingMode::None && fault.present && !fault.reserved && fault.access.is_write();
        if !can_be_fast {
            return None;
        }
        self.pool.change(|| {
            let mut last = None;
            for _ in 0..ATTEMPTS {
                let (mut tried, dirty) = self.try_to_fix(own, frames, fault)?;
                if tried.fixed {
                    let done = self.pool.space().compare_exchange(tried.at, tried.old, tried.new);
                    if done.is_err() {
                        // Somebody else was faster.
                        (tried.new, tried.fixed) = (tried.old, false);
                        last = Some(tried);
                        continue;
                    }
                    own.stats.fast_fixed += 1;
                    if dirty {
                        // After the leaf became writable: who clears the log and then takes the right away misses neither.
                        frames.mark_dirty(frame_of(fault.gva));
                    }
                }
                return Some(tried);
            }
            last
        })
    }

    /// What could be done with the leaf, and whether the page is dirty then; `None` if there is no root.
    fn try_to_fix(&self, own: &Own, frames: &mut impl FrameSource, fault: ShadowFault) -> Option<(FastFault, bool)> {
        let (at, level, old) = self.leaf_at(own, fault.gva)?;
        let mut tried = FastFault {
            gva: fault.gva,
            code: fault.code(),
            at,
            old,
            new: old,
            spurious: false,
            fixed: false,
        };
        let (_, frame) = frames.frame(frame_of(fault.gva));
        let Some(frame) = frame.filter(|frame| !frame.slot.invalid && self.layout.is_mmu_present(old)) else {
            return Some((tried, false));
        };
        if leaf::is_writable(old) {
            tried.spurious = true;
        } else if let Some(new) = leaf::writable_again(old)
            // One page would be logged, and many be writable.
            && (level == 1 || frame.log == DirtyLog::Off)
        {
            (tried.new, tried.fixed) = (new, true);
        }
        Some((tried, frame.log == DirtyLog::WriteProtection))
    }

    /// The leaf for `gva`, or the entry at which the walk ends.
    fn leaf_at(&self, own: &Own, gva: Gva) -> Option<(EntryLocation, u8, u64)> {
        let (mut table, mut level) = self.current_root(own)?.start(gva)?;
        loop {
            let at = entry_of(table, level, gva);
            let entry = self.pool.space().load(at);
            let below = link::target(&self.layout, entry).filter(|_| level > 1);
            match below.and_then(|below| self.pool.space().table_at(below)) {
                Some(below) => (table, level) = (below, level - 1),
                None => return Some((at, level, entry)),
            }
        }
    }
}

/// Without paging an address is where the memory is.
fn frame_of(gva: Gva) -> Gfn {
    Gpa::new(gva.get()).gfn()
}
