//! The roots of a vCPU: the current one and the three before it, as in KVM's `fast_pgd_switch`. A guest that switches
//! between few address spaces finds each again without looking for it.

use super::mmu::ShadowMmu;
use super::pages::Writer;
use super::ports::{FrameSource, TlbControl};
use super::role::PageRole;
use super::root::{RootTables, ShadowRoot, root_keys};
use super::sync::GuestTables;
use super::vcpu::{Own, ShadowVcpu};
use crate::observer::MmuObserver;
use crate::sync::Ordering;
use crate::tables::TableSpace;
use umbra_memslots::{AddressSpaceId, Gfn, GuestMemory, Gva};

/// Roots that are remembered besides the current one (`KVM_MMU_NUM_PREV_ROOTS`).
const PREVIOUS: usize = 3;

/// A root that a vCPU can run on, as long as the epoch lasts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) tables: RootTables,
    pub(super) epoch: u64,
    /// What it is a root of; of PAE roots, which are four tables, not remembered.
    key: Option<(Gfn, PageRole)>,
    pub(super) pcid: u16,
    /// The guest has flushed since it was left.
    behind: bool,
}

/// What INVPCID is to forget (SDM vol. 2A).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InvPcid {
    /// Type 0: one address of one PCID.
    Address {
        /// The PCID.
        pcid: u16,
        /// The address.
        gva: Gva,
    },
    /// Type 1: one PCID.
    Context {
        /// The PCID.
        pcid: u16,
    },
    /// Types 2 and 3: all PCIDs. (Whether pages are global makes no difference here.)
    All,
}

impl Own {
    /// Another root is to be loaded; the current one is remembered.
    pub(super) fn leave_root(&mut self) {
        if let Some(root) = self.root.take().filter(|root| root.key.is_some()) {
            self.previous.insert(0, root);
        }
    }

    /// The registers changed in a way that no root is made for.
    pub(super) fn forget_roots(&mut self) {
        self.root = None;
        self.previous.clear();
    }

    /// The guest has flushed what is known by the roots of these PCIDs: they must catch up before they are used again.
    pub(super) fn outdate_roots(&mut self, concerns: impl Fn(u16) -> bool) {
        let roots = self.root.iter_mut().chain(&mut self.previous);
        for root in roots.filter(|root| concerns(root.pcid)) {
            root.behind = true;
        }
    }

    /// Takes a remembered root out.
    fn find_root(&mut self, key: Option<(Gfn, PageRole)>, pcid: u16, epoch: u64) -> Option<Loaded> {
        self.previous.retain(|root| root.epoch == epoch);
        let position = self
            .previous
            .iter()
            .position(|root| root.key == key && root.pcid == pcid);
        let found = position.map(|position| self.previous.remove(position));
        self.previous.truncate(PREVIOUS);
        found
    }
}

impl<S: TableSpace> ShadowMmu<S> {
    /// The root that a vCPU is to run on: to be asked for before each entry, and cheap if nothing has changed.
    ///
    /// After a change of registers this is where the guest's TLB flush happens: what is below the root catches up with
    /// the guest's tables, and the walker of this vCPU forgets everything.
    pub fn root<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        address_space: AddressSpaceId,
        tlb: &mut impl TlbControl,
    ) -> ShadowRoot {
        let tables = match self.current_root(&vcpu.own) {
            Some(tables) => tables,
            None => self.load_root(vcpu, memory, address_space, tlb),
        };
        tables.to_load(|table| self.space().address(table))
    }

    /// INVLPG on this vCPU: in all address spaces, since the page may be global.
    pub fn invlpg<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        tlb: &mut impl TlbControl,
        gva: Gva,
    ) {
        self.invalidate(vcpu, memory, frames, tlb, gva, |_| true);
    }

    /// INVPCID on this vCPU. Where PCIDs aren't in use there is only PCID 0.
    pub fn invpcid<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        tlb: &mut impl TlbControl,
        what: InvPcid,
    ) {
        let concerns = |pcid: u16| match what {
            InvPcid::Address { pcid: only, .. } | InvPcid::Context { pcid: only } => pcid == only,
            InvPcid::All => true,
        };
        if let InvPcid::Address { gva, .. } = what {
            self.invalidate(vcpu, memory, frames, tlb, gva, concerns);
            return;
        }
        let own = &mut vcpu.own;
        if concerns(own.pcid) {
            own.cache.forget_gvas();
        }
        own.outdate_roots(concerns);
    }

    /// The guest got a fault at `gva`: what the current root knows of the page is brought up to date
    /// (`kvm_inject_emulated_page_fault`).
    pub(super) fn forget<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        tlb: &mut impl TlbControl,
        gva: Gva,
    ) {
        let ShadowVcpu { own, observer } = vcpu;
        own.cache.forget_gva(gva);
        let guest = GuestTables {
            state: &own.state,
            memory,
        };
        self.change(
            observer,
            || tlb.flush_all(),
            |writer| {
                if let Some(tables) = self.current_root(own) {
                    writer.invalidate(&guest, frames, tables, gva);
                }
            },
        );
        tlb.flush_gva(gva);
    }

    fn invalidate<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        tlb: &mut impl TlbControl,
        gva: Gva,
        concerns: impl Fn(u16) -> bool,
    ) {
        let ShadowVcpu { own, observer } = vcpu;
        own.cache.forget_gva(gva);
        let guest = GuestTables {
            state: &own.state,
            memory,
        };
        self.change(
            observer,
            || tlb.flush_all(),
            |writer| {
                let epoch = self.root_epoch.load(Ordering::Acquire);
                let roots = own.root.iter().chain(&own.previous);
                for root in roots.filter(|root| root.epoch == epoch && concerns(root.pcid)) {
                    writer.invalidate(&guest, frames, root.tables, gva);
                }
            },
        );
        if concerns(own.pcid) {
            tlb.flush_gva(gva);
        }
    }

    /// The vCPU's root, if it has one that is still in use, and up to date.
    pub(super) fn current_root(&self, own: &Own) -> Option<RootTables> {
        let root = own.root?;
        (!root.behind && root.epoch == self.root_epoch.load(Ordering::Acquire)).then_some(root.tables)
    }

    pub(super) fn load_root<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        address_space: AddressSpaceId,
        tlb: &mut impl TlbControl,
    ) -> RootTables {
        let ShadowVcpu { own, observer } = vcpu;
        own.stats.roots += 1;
        let keys = root_keys(&own.state, own.guest_mode, address_space);
        let key = keys.first().copied().flatten().filter(|_| own.state.mode.is_long());
        loop {
            let loaded = self.change(
                observer,
                || tlb.flush_all(),
                |writer| {
                    let epoch = self.root_epoch.load(Ordering::Acquire);
                    // The same root again, or a remembered one.
                    let current = own.root.filter(|root| root.epoch == epoch);
                    let found = current.or_else(|| key.and_then(|key| own.find_root(Some(key), own.pcid, epoch)));
                    own.stats.root_hits += u64::from(found.is_some());
                    let catch_up = found.is_none_or(|root| root.behind);
                    let tables = match found {
                        Some(root) => root.tables,
                        None => self.get_root(writer, own, memory, &keys)?,
                    };
                    if catch_up {
                        let guest = GuestTables {
                            state: &own.state,
                            memory,
                        };
                        tables.each(|table| writer.sync_below(&guest, table));
                    }
                    tables.each(|table| writer.clear_flood(table));
                    // With the lock held: no root can be lost before this is read.
                    let epoch = self.root_epoch.load(Ordering::Acquire);
                    Some(Loaded {
                        tables,
                        epoch,
                        key,
                        pcid: own.pcid,
                        behind: false,
                    })
                },
            );
            if let Some(loaded) = loaded {
                own.root = Some(loaded);
                tlb.flush_vcpu();
                return loaded.tables;
            }
        }
    }

    fn get_root<O: MmuObserver>(
        &self,
        writer: &mut Writer<'_, S, O>,
        own: &mut Own,
        memory: &impl GuestMemory,
        keys: &[Option<(Gfn, PageRole)>],
    ) -> Option<RootTables> {
        own.stats.note_reclaim(writer.make_available());
        let guest = GuestTables {
            state: &own.state,
            memory,
        };
        let mut tables = [None; 4];
        for (table, key) in tables.iter_mut().zip(keys) {
            if let Some((gfn, role)) = *key {
                *table = Some(writer.get(&guest, gfn, role, true)?);
            }
        }
        writer.flush_now();
        Some(match tables {
            [Some(table), ..] if own.state.mode.is_long() => RootTables::Long {
                table,
                levels: own.state.mode.levels(),
            },
            tables => RootTables::Pae(tables),
        })
    }
}
