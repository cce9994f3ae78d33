//! [`SoftVm`]: what the software CPUs of one machine share.

use super::code::CodePages;
use super::gate::Gates;
use super::vcpu::SoftVcpu;
use std::sync::Arc;
use umbra_devices::{Clock, HostClock, ManualClock};
use umbra_memslots::{
    AddressSpaceId, Generation, GfnRange, Gpa, MemSlot, ObserverError, PAGE_SIZE, SlotChange, SlotObserver, SlotReader,
};
use umbra_mmu::NoObserver;
use umbra_mmu::shadow::{HostParams, LayoutError, ShadowError, ShadowMmu, SpteLayout, TlbControl};
use umbra_mmu::tables::{HeapTables, TableSpaceError};

/// Where the walker finds the shadow tables: above every guest-physical address.
const TABLES_AT: u64 = 1 << super::cpuid::PHYSICAL_BITS;
/// Physical address bits of the machine that the tables are for: guest memory and, above it, tables.
const HOST_BITS: u32 = super::cpuid::PHYSICAL_BITS + 1;
/// Tables of 4 KiB, of which the host backs those that are used.
const TABLES: u32 = 1 << 15;

/// Why there is no software machine.
#[derive(Debug, thiserror::Error)]
pub enum SoftError {
    /// The layout of the entries can't be had.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No memory for the tables.
    #[error(transparent)]
    Tables(#[from] TableSpaceError),
    /// The shadow MMU refuses.
    #[error(transparent)]
    Shadow(#[from] ShadowError),
}

/// What all vCPUs have in common.
pub(super) struct Shared {
    pub mmu: Arc<ShadowMmu<HeapTables>>,
    /// Where vCPUs go in and out of guest code.
    pub gates: Gates,
    /// What was decoded by any vCPU.
    pub code: CodePages,
    /// The time, which was 0 when the time-stamp counter was.
    pub clock: Arc<dyn Clock>,
    /// The same clock, if it is the vCPUs' instructions that move it.
    pub counted: Option<Arc<ManualClock>>,
}

impl Shared {
    /// These bytes were written by nobody's instruction.
    fn written(&self, gpa: Gpa, bytes: u64) {
        let (mut at, mut left) = (gpa, bytes);
        while left > 0 {
            let part = left.min(PAGE_SIZE - at.page_offset());
            #[expect(clippy::cast_possible_truncation, reason = "at most a page")]
            self.mmu
                .guest_wrote(&mut NoObserver, &mut FlushAll(&self.gates), at, part as u16);
            #[expect(clippy::cast_possible_truncation, reason = "at most a page")]
            self.code.written(at, part as usize);
            at = at.wrapping_add(part);
            left -= part;
        }
    }
}

/// A machine whose vCPUs are software.
pub struct SoftVm(Arc<Shared>);

/// What a software machine is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SoftOptions {
    /// Remember MMIO in MMIO SPTEs.
    pub mmio_caching: bool,
}

impl SoftVm {
    /// How many shadow pages are in use, whenever it is asked.
    pub fn page_tables(&self) -> impl Fn() -> u32 + Send + Sync + use<> {
        let shared = Arc::clone(&self.0);
        move || shared.mmu.tables_in_use()
    }

    /// What its CPUs' time-stamp counters count per second.
    pub const TSC_HZ: u64 = super::cpuid::TSC_HZ as u64;

    /// Physical address bits of its guests.
    #[expect(clippy::cast_possible_truncation, reason = "46")]
    pub const PHYSICAL_BITS: u8 = super::cpuid::PHYSICAL_BITS as u8;

    /// A machine without vCPU.
    ///
    /// # Errors
    /// [`SoftError`].
    pub fn new(options: SoftOptions) -> Result<Self, SoftError> {
        Self::with_clock(options, Arc::new(HostClock::new()), None)
    }

    /// A machine whose time is counted: each instruction that a vCPU executes moves `clock` by a nanosecond, and nothing
    /// that the guest sees depends on the host's time. Its vCPUs are to take turns ([`crate::turns`]).
    ///
    /// # Errors
    /// [`SoftError`].
    pub fn in_turns(options: SoftOptions, clock: Arc<ManualClock>) -> Result<Self, SoftError> {
        Self::with_clock(options, Arc::clone(&clock) as _, Some(clock))
    }

    fn with_clock(
        options: SoftOptions,
        clock: Arc<dyn Clock>,
        counted: Option<Arc<ManualClock>>,
    ) -> Result<Self, SoftError> {
        let host = HostParams::x86(HOST_BITS).with_mmio_caching(options.mmio_caching);
        let layout = SpteLayout::new(host)?;
        let mmu = ShadowMmu::new(layout, HeapTables::new(TABLES_AT, TABLES)?)?;
        Ok(Self(Arc::new(Shared {
            mmu: Arc::new(mmu),
            gates: Gates::default(),
            code: CodePages::default(),
            clock,
            counted,
        })))
    }

    /// Keeps the shadow tables in step with the memory slots; to be added to their table before the first slot.
    pub fn slot_follower(&self) -> Box<dyn SlotObserver> {
        Box::new(Follower(Arc::clone(&self.0)))
    }

    /// Who writes to guest memory while vCPUs run and is none of them (a device with DMA, a debugger) calls this after each
    /// write, with the first byte's address and the number of bytes, as often as it likes and from any thread: then what
    /// vCPUs have decoded or translated from these bytes does not count any more, with their next blocks of code. No
    /// device of Umbra's does; memory slots that come and go are followed by [`SoftVm::slot_follower`].
    ///
    /// The call waits until no vCPU uses page tables that were written to. So the caller must hold nothing for which a
    /// vCPU waits in guest code; a device's access handler may call it.
    pub fn write_follower(&self) -> impl Fn(Gpa, u64) + Send + Sync + use<> {
        let shared = Arc::clone(&self.0);
        move |gpa, bytes| shared.written(gpa, bytes)
    }

    /// A vCPU, which sees the memory that `slots` shows.
    pub fn create_vcpu(&self, slots: SlotReader) -> SoftVcpu {
        SoftVcpu::new(Arc::clone(&self.0), slots)
    }
}

/// Takes memory that goes out of the shadow tables.
struct Follower(Arc<Shared>);

/// Flushes TLBs from outside: returns when no vCPU uses what its TLB knew.
struct FlushAll<'a>(&'a Gates);

impl TlbControl for FlushAll<'_> {
    fn flush_all(&mut self) {
        self.0.flush();
    }

    fn flush_gva(&mut self, _gva: umbra_memslots::Gva) {
        self.flush_all();
    }
}

impl Follower {
    fn zap(&self, range: GfnRange) {
        self.0
            .mmu
            .zap_range(&mut NoObserver, &mut FlushAll(&self.0.gates), range);
    }
}

impl SlotObserver for Follower {
    fn before_remove(&mut self, slot: &MemSlot) {
        self.zap(slot.range());
    }

    fn after_commit(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        // Flags change in place: what was mapped with the old ones goes.
        if let (Some(before), Some(_)) = (change.before(), change.after()) {
            self.zap(before.range());
        }
        Ok(())
    }

    fn roll_back(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        self.after_commit(change)
    }

    fn generation_changes(&mut self, space: AddressSpaceId, next: Generation) {
        self.0
            .mmu
            .generation_changes(&mut NoObserver, &mut FlushAll(&self.0.gates), space, next);
    }
}
