//! [`ShadowRoot`]: where a walk of shadow tables begins.

use super::role::{PageRole, VcpuRole};
use crate::tables::{EntryLocation, TableId};
use crate::x86::{GuestPte, PagingMode, PagingState};
use alloc::vec::Vec;
use umbra_memslots::{AddressSpaceId, Gfn, Gpa, Gva};

/// What to load into the walker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShadowRoot {
    /// Four or five levels, as the guest has: the address for CR3.
    Long {
        /// Address of the root table.
        address: u64,
        /// 4 or 5.
        levels: u8,
    },
    /// PAE paging, for guests with 32-bit linear addresses (without paging, too): the values of the PDPTE registers.
    Pae {
        /// The four values.
        pdptes: [u64; 4],
    },
}

/// The tables of a root: one, or one for each GiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RootTables {
    Long { table: TableId, levels: u8 },
    Pae([Option<TableId>; 4]),
}

impl RootTables {
    /// The table where the walk of `gva` begins, and its level.
    #[inline]
    pub(super) fn start(&self, gva: Gva) -> Option<(TableId, u8)> {
        match *self {
            Self::Long { table, levels } => Some((table, levels)),
            Self::Pae([first, second, third, fourth]) => {
                let table = match gva.get() >> 30 {
                    0 => first,
                    1 => second,
                    2 => third,
                    3 => fourth,
                    _ => None,
                };
                table.map(|table| (table, 2))
            }
        }
    }

    /// Calls for each of the tables.
    pub(super) fn each(self, mut f: impl FnMut(TableId)) {
        match self {
            Self::Long { table, .. } => f(table),
            Self::Pae(tables) => tables.into_iter().flatten().for_each(f),
        }
    }

    /// What to load, given each table's address.
    pub(super) fn to_load(self, address: impl Fn(TableId) -> u64) -> ShadowRoot {
        match self {
            Self::Long { table, levels } => ShadowRoot::Long {
                address: address(table),
                levels,
            },
            Self::Pae(tables) => {
                let pdptes = tables.map(|table| table.map_or(0, |table| address(table) | GuestPte::PRESENT));
                ShadowRoot::Pae { pdptes }
            }
        }
    }
}

/// The pages that a vCPU in this state needs as roots: for each GiB, or once for all, gfn and role.
pub(super) fn root_keys(state: &PagingState, guest_mode: bool, space: AddressSpaceId) -> Vec<Option<(Gfn, PageRole)>> {
    let paging = state.mode != PagingMode::None;
    let vcpu = VcpuRole {
        has_4_byte_gpte: state.mode == PagingMode::Bits32,
        cr4_pse: state.pse,
        long_mode: state.mode.is_long(),
        efer_nx: paging && state.nx,
        cr0_wp: paging && state.wp,
        smep: state.smep,
        smap: state.smap,
        guest_mode,
        address_space: space,
    };
    let gibs = [0u8, 1, 2, 3];
    match state.mode {
        PagingMode::Level4 | PagingMode::Level5 => {
            alloc::vec![Some((
                state.root.gfn(),
                PageRole::root(vcpu, state.mode.levels(), 0, false)
            ))]
        }
        PagingMode::Bits32 => gibs
            .iter()
            .map(|&gib| Some((state.root.gfn(), PageRole::root(vcpu, 2, gib, false))))
            .collect(),
        PagingMode::Pae => {
            let directory = |&pdpte: &u64| {
                let pdpte = GuestPte::new(pdpte);
                let role = PageRole::root(vcpu, 2, 0, false);
                pdpte.has(GuestPte::PRESENT).then(|| (pdpte.address().gfn(), role))
            };
            state.pdptes.iter().map(directory).collect()
        }
        PagingMode::None => {
            let start = |&gib: &u8| Gpa::new(u64::from(gib) << 30).gfn();
            gibs.iter()
                .map(|gib| Some((start(gib), PageRole::root(vcpu, 2, 0, true))))
                .collect()
        }
    }
}

/// The entry for `gva` of a table of `level`.
#[inline]
pub(super) fn entry_of(table: TableId, level: u8, gva: Gva) -> EntryLocation {
    let index = gva.get() >> (12 + crate::tables::INDEX_BITS * (u32::from(level) - 1));
    #[expect(clippy::cast_possible_truncation, reason = "masked to nine bits")]
    let index = (index & (crate::tables::ENTRIES as u64 - 1)) as u16;
    EntryLocation { table, index }
}
