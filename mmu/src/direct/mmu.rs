//! [`DirectMmu`]: answers "is this gpa still MMIO?" for any number of vCPUs, mostly without asking the memslots.
//!
//! The order is that of KVM's `handle_mmio_page_fault` and, after it, `kvm_faultin_pfn`: the vCPU's cache, the SPTE,
//! the memslots.
//!
//! Everything remembered is a statement with a date: "at generation G, this gfn had no slot". It is believed by whoever
//! sees the slots at G and by nobody else, so no slot change needs to find and remove anything. The one exception is
//! that SPTEs hold only a cut of G, so that a date can come back: the tables of each address space belong to an
//! [`MmioEra`], and are zapped before they enter the next (KVM's `kvm_mmu_invalidate_mmio_sptes`).

use super::levels::Levels;
use super::slots::{SlotSet, SlotSource};
use super::table::{DirectTable, NewTableError, TableWriter, Zapped};
use super::vcpu::{DirectVcpu, Direction, MmioAnswer, MmioSource};
use crate::access_mask::AccessMask;
use crate::mmio::{CachedMmio, Eras, Freshness, MmioEra, MmioGen, MmioSpte};
use crate::observer::MmuObserver;
use crate::shadow::{ShadowRoot, SpteLayout};
use crate::tables::{HeapTables, TableSpace, TableSpaceError};
use umbra_memslots::{AddressSpaceId, Generation, Gfn, GfnRange, Gpa};

/// How a [`DirectMmu`] is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectOptions {
    /// The format of the entries, and whether MMIO is remembered at all ([`SpteLayout::caching_off`]).
    pub layout: SpteLayout,
    /// Depth of the tables. MMIO beyond what they hold is answered by search.
    pub levels: Levels,
    /// Limit of table memory, in 4 KiB tables over all address spaces. When a guest's MMIO pages are spread so widely
    /// that it is reached, everything is forgotten and learnt anew.
    pub table_limit: u32,
}

impl DirectOptions {
    /// Four levels, at most 1 MiB of tables.
    #[must_use]
    pub const fn new(layout: SpteLayout) -> Self {
        Self {
            layout,
            levels: Levels::Four,
            table_limit: 256,
        }
    }
}

/// The options can't be met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DirectError {
    /// No memory for the tables.
    #[error(transparent)]
    Space(#[from] TableSpaceError),
    /// Too few tables.
    #[error(transparent)]
    Table(#[from] NewTableError),
}

/// The direct side of the MMU, shared by the vCPUs of a VM.
#[derive(Debug)]
pub struct DirectMmu<S = HeapTables> {
    table: DirectTable<S>,
    /// For each address space, the era to which all its MMIO SPTEs belong. Only moves forward, under the table's lock.
    eras: Eras,
}

impl DirectMmu {
    /// With tables of its own.
    ///
    /// # Errors
    /// [`DirectError`].
    pub fn new(options: DirectOptions) -> Result<Self, DirectError> {
        let space = HeapTables::new(0, options.table_limit)?;
        Ok(Self::over(DirectTable::new(options.layout, options.levels, space)?))
    }
}

impl<S: TableSpace> DirectMmu<S> {
    /// With the given table, e.g. one that a CPU walks.
    #[must_use]
    pub fn over(table: DirectTable<S>) -> Self {
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

    /// Where a walk of an address space's tables begins.
    #[must_use]
    pub fn root(&self, address_space: AddressSpaceId) -> ShadowRoot {
        ShadowRoot::Long {
            address: self.table.space().address(self.table.root(address_space)),
            levels: self.table.levels().get(),
        }
    }

    /// The layout of the entries.
    #[must_use]
    pub fn layout(&self) -> &SpteLayout {
        self.table.layout()
    }

    /// What is to be done about an access to `gpa` that the hardware didn't complete.
    ///
    /// Repeated accesses take no lock, allocate nothing and write nothing shared, whatever the number of slots.
    #[inline]
    pub fn lookup<O: MmuObserver>(
        &self,
        vcpu: &mut DirectVcpu<O>,
        slots: &mut impl SlotSource,
        gpa: Gpa,
        direction: Direction,
    ) -> MmioAnswer {
        let set = slots.current();
        let SlotSet {
            generation,
            address_space,
        } = set;
        let gfn = gpa.gfn();
        if self.layout().caches_mmio() {
            if vcpu.cache.by_gfn(gfn, generation, address_space).is_some() {
                vcpu.stats.cache_hits += 1;
                return MmioAnswer::Mmio(MmioSource::Cache);
            }
            if let Some(access) = self.fresh_spte(vcpu, gfn, set) {
                vcpu.stats.spte_hits += 1;
                vcpu.observer.handle_mmio_page_fault(None, gfn, access);
                vcpu.cache.store(CachedMmio {
                    gfn,
                    gva: None,
                    access,
                    generation,
                    address_space,
                });
                return MmioAnswer::Mmio(MmioSource::Spte);
            }
        }
        self.search(vcpu, slots, gfn, direction)
    }

    /// Forgets what the tables of an address space know about a range. Only needed where the knowledge is no longer
    /// wanted, never for it to be true.
    pub fn zap_range(&self, address_space: AddressSpaceId, range: GfnRange) -> Zapped {
        self.table.write(|writer| writer.zap_range(address_space, range))
    }

    /// Forgets everything that the tables of an address space know.
    pub fn zap_all(&self, address_space: AddressSpaceId) -> Zapped {
        self.table.write(|writer| writer.zap_all(address_space))
    }

    /// The memslots of `address_space` are about to be published with generation `next`: if it wraps in SPTEs, all of
    /// them go now (`kvm_mmu_invalidate_mmio_sptes`). Says whether they did.
    pub fn generation_changes(&self, address_space: AddressSpaceId, next: Generation) -> bool {
        let era = MmioEra::of(next, self.layout().generation_spans());
        self.eras.of(address_space) != era && self.table.write(|writer| self.enter_era(writer, address_space, era))
    }

    /// Moves the tables of an address space forward into `era`; says whether there was anything to do.
    fn enter_era(&self, writer: &mut TableWriter<'_, S>, address_space: AddressSpaceId, era: MmioEra) -> bool {
        let forward = era > self.eras.of(address_space);
        if forward {
            writer.zap_all(address_space);
            // Only now may anybody believe the tables again.
            self.eras.enter(address_space, era);
        }
        forward
    }

    /// The access that a fresh MMIO SPTE for `gfn` holds.
    #[inline]
    fn fresh_spte<O: MmuObserver>(
        &self,
        vcpu: &mut DirectVcpu<O>,
        gfn: Gfn,
        SlotSet {
            generation,
            address_space,
        }: SlotSet,
    ) -> Option<AccessMask> {
        let layout = self.layout();
        let era = MmioEra::of(generation, layout.generation_spans());
        if self.eras.of(address_space) != era {
            return None;
        }
        let spte = MmioSpte::recognise(layout, self.table.walk_from(&mut vcpu.last, address_space, gfn)?.entry)?;
        // Again: a vCPU that sees newer slots may have moved the tables into the next era during the walk. An entry of
        // the new era was loaded with acquire, after which the new era is seen too.
        if self.eras.of(address_space) != era || spte.gfn(layout) != gfn {
            return None;
        }
        let freshness = spte.check(layout, generation);
        vcpu.observer
            .check_mmio_spte(spte, generation, spte.generation(layout), freshness == Freshness::Fresh);
        match freshness {
            Freshness::Fresh => Some(spte.access(layout)),
            Freshness::Stale => {
                vcpu.stats.stale += 1;
                None
            }
            Freshness::InProgress => None,
        }
    }

    #[cold]
    #[inline(never)]
    fn search<O: MmuObserver>(
        &self,
        vcpu: &mut DirectVcpu<O>,
        slots: &mut impl SlotSource,
        gfn: Gfn,
        direction: Direction,
    ) -> MmioAnswer {
        vcpu.stats.searches += 1;
        let (set, found) = slots.search(gfn);
        match found {
            Some(slot) if slot.read_only && !slot.invalid && direction == Direction::Write => {
                vcpu.stats.read_only_writes += 1;
                MmioAnswer::ReadOnlyWrite(slot.id)
            }
            Some(slot) => {
                vcpu.stats.retries += 1;
                MmioAnswer::Retry(slot.id)
            }
            None => {
                if self.layout().caches_mmio() {
                    self.remember(vcpu, gfn, set);
                }
                MmioAnswer::Mmio(MmioSource::Search)
            }
        }
    }

    /// `gfn` has no slot in `set`.
    fn remember<O: MmuObserver>(
        &self,
        vcpu: &mut DirectVcpu<O>,
        gfn: Gfn,
        SlotSet {
            generation,
            address_space,
        }: SlotSet,
    ) {
        let layout = self.layout();
        let spans = layout.generation_spans();
        let access = AccessMask::ALL;
        vcpu.cache.store(CachedMmio {
            gfn,
            gva: None,
            access,
            generation,
            address_space,
        });
        let made = MmioGen::cut(generation, spans);
        let Some(spte) = MmioSpte::encode(layout, gfn, access, made).filter(|_| self.table.levels().holds(gfn)) else {
            return;
        };
        self.table.write(|writer| {
            let era = MmioEra::of(generation, spans);
            if era < self.eras.of(address_space) {
                // This vCPU's view of the slots is so old that its date would be taken for one of the present era.
                return;
            }
            if self.enter_era(writer, address_space, era) {
                vcpu.stats.wraps += 1;
                vcpu.observer.zap_all_fast(address_space, writer.tables_in_use());
            }
            let installed = writer.install(address_space, gfn, spte.raw()).or_else(|_| {
                vcpu.stats.reclaims += 1;
                for each in AddressSpaceId::ALL {
                    writer.zap_all(each);
                    vcpu.observer.zap_all_fast(each, writer.tables_in_use());
                }
                writer.install(address_space, gfn, spte.raw())
            });
            if let Ok(installed) = installed
                && installed.old != spte.raw()
            {
                vcpu.stats.created += 1;
                vcpu.observer.mark_mmio_spte(installed.at, gfn, access, made);
            }
        });
    }
}
