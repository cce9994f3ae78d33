//! [`World`]: linear memory as the instruction core sees it. What the TLB knows is a comparison away; the rest goes
//! through the walker, a page at a time.

use super::code::CodePages;
use super::tlb::Tlb;
use super::vm::Shared;
use super::walker::{Target, Walker};
use crate::emulate::{Access, AccessKind, CpuState, Memory, Stop};
use crate::fallback::replay::Replay;
use std::sync::Arc;
use umbra_memslots::{Gpa, Gva, PAGE_SIZE, SlotReader};

/// Everything outside the CPU.
pub(super) struct World {
    pub tlb: Tlb,
    pub walker: Walker,
    pub code: CodePages,
    pub replay: Replay,
    pub shared: Arc<Shared>,
    /// Address translation has changed: a block that is being executed may lie elsewhere now.
    pub moved: bool,
    slots: SlotReader,
    flushes: u64,
    pub pat: u64,
    pub apic_base: u64,
    pub tsc_offset: u64,
}

/// The part of an access that lies in one page.
#[derive(Clone, Copy)]
struct Part {
    target: Target,
    from: usize,
    to: usize,
}

impl World {
    pub fn new(shared: Arc<Shared>, mut slots: SlotReader, state: &CpuState) -> Self {
        let snapshot = Arc::clone(slots.snapshot_arc());
        Self {
            walker: Walker::new(Arc::clone(&shared), state, &snapshot),
            tlb: Tlb::new(snapshot),
            code: CodePages::default(),
            replay: Replay::default(),
            flushes: shared.flushes(),
            shared,
            moved: false,
            slots,
            pat: super::platform::PAT_AT_RESET,
            apic_base: 0,
            tsc_offset: 0,
        }
    }

    /// Catches up with changes of the memory slots. Says whether there were any.
    pub fn catch_up(&mut self) -> bool {
        let flushes = self.shared.flushes();
        if flushes != self.flushes {
            self.flushes = flushes;
            self.tlb.flush();
        }
        let snapshot = self.slots.snapshot_arc();
        let changed = !Arc::ptr_eq(snapshot, self.tlb.slots());
        self.tlb.renew(snapshot);
        changed
    }

    /// Where the instruction at `at` lies in guest-physical memory; `None` if it lies in no RAM.
    #[inline]
    pub fn code_at(&mut self, at: Gva, access: Access) -> Result<Option<Gpa>, Stop> {
        if let Some(gpa) = self.tlb.find_gpa(at, access) {
            return Ok(Some(gpa));
        }
        Ok(match self.translate(at, access)? {
            Target::Ram(gpa) | Target::Table(gpa) => Some(gpa),
            Target::Device(_) => None,
        })
    }

    /// Blocks of this code were decoded: from now on, writes to it are noticed.
    pub fn watch_code(&mut self, gpa: Gpa, bytes: usize) {
        if self.code.add(gpa, bytes) {
            self.tlb.flush_writes(gpa.gfn());
        }
    }

    fn translate(&mut self, at: Gva, access: Access) -> Result<Target, Stop> {
        let target = self.walker.translate(&mut self.tlb, at, access)?;
        if let Target::Ram(gpa) = target
            && !(access.kind == AccessKind::Write && self.code.contains(gpa.gfn()))
        {
            self.tlb.fill(at, access, gpa.gfn());
        }
        Ok(target)
    }

    /// Translates the pages of an access, two at most, before anything is done.
    fn parts(&mut self, at: Gva, length: usize, access: Access) -> Result<[Option<Part>; 2], Stop> {
        let first = length.min((PAGE_SIZE - at.page_offset()) as usize);
        let mut part = |from: usize, to: usize| {
            if from == to {
                return Ok(None);
            }
            let target = self.translate(at.wrapping_add(from as u64), access)?;
            Ok::<_, Stop>(Some(Part { target, from, to }))
        };
        Ok([part(0, first)?, part(first, length)?])
    }

    /// What a write to memory has to tell others.
    fn wrote(&mut self, target: Target, bytes: usize) {
        if let Target::Table(gpa) = target {
            self.walker.wrote_table(&mut self.tlb, gpa, bytes as u16);
            self.moved = true;
        }
        if let Target::Ram(gpa) | Target::Table(gpa) = target {
            self.code.written(gpa, bytes);
            self.moved |= self.code.has_changed();
        }
    }

    /// The tables say RAM where the snapshot has none: they are of a later set of slots, or of an earlier one that an
    /// instruction which changed the slots still saw. They are asked anew.
    #[cold]
    fn lost(&mut self, gpa: Gpa) -> Stop {
        self.walker.forget(&mut self.tlb, gpa);
        Stop::Contended
    }

    #[cold]
    #[inline(never)]
    fn read_slowly(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        for Part { target, from, to } in self.parts(at, bytes.len(), access)?.into_iter().flatten() {
            let bytes = &mut bytes[from..to];
            match target {
                Target::Device(gpa) => self.replay.read_device(gpa, bytes)?,
                Target::Ram(gpa) | Target::Table(gpa) => match self.tlb.place(gpa, bytes.len()) {
                    Some(place) => place.read(bytes),
                    None => return Err(self.lost(gpa)),
                },
            }
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn write_slowly(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        let parts = self.parts(at, bytes.len(), access)?;
        // Devices first: until the last of them has answered, no memory is touched.
        for Part { target, from, to } in parts.into_iter().flatten() {
            if let Target::Device(gpa) = target {
                self.replay.write_device(gpa, &bytes[from..to])?;
            }
        }
        for Part { target, from, to } in parts.into_iter().flatten() {
            if let Target::Ram(gpa) | Target::Table(gpa) = target {
                self.write_memory(gpa, &bytes[from..to])?;
                self.wrote(target, to - from);
            }
        }
        Ok(())
    }

    fn write_memory(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Stop> {
        match self.tlb.place(gpa, bytes.len()) {
            Some(place) => place.write(bytes),
            None => return Err(self.lost(gpa)),
        }
        self.tlb.log_write(gpa, bytes.len());
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn exchange_slowly(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        let parts = self.parts(at, old.len(), access)?;
        if let [Some(Part { target, .. }), None] = parts
            && let Target::Ram(gpa) | Target::Table(gpa) = target
        {
            let Some(place) = self.tlb.place(gpa, old.len()) else {
                return Err(self.lost(gpa));
            };
            let done = place.exchange(old, new);
            if done {
                self.tlb.log_write(gpa, old.len());
                self.wrote(target, old.len());
            }
            return Ok(done);
        }
        // Across two pages, or a device: of a device the caller has just read the old value, and reading it twice might
        // do something.
        let all_memory = parts
            .iter()
            .flatten()
            .all(|part| !matches!(part.target, Target::Device(_)));
        if all_memory {
            let mut present = [0; 16];
            let present = &mut present[..old.len()];
            self.read_slowly(at, present, access)?;
            if present != old {
                return Ok(false);
            }
        }
        self.write_slowly(at, new, access)?;
        Ok(true)
    }
}

impl Memory for World {
    #[inline]
    fn read(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        match self.tlb.find(at, bytes.len(), access) {
            Some(place) => {
                place.read(bytes);
                Ok(())
            }
            None => self.read_slowly(at, bytes, access),
        }
    }

    #[inline]
    fn write(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        match self.tlb.find(at, bytes.len(), access) {
            Some(place) => {
                place.write(bytes);
                Ok(())
            }
            None => self.write_slowly(at, bytes, access),
        }
    }

    fn probe(&mut self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        if self.tlb.find(at, length, access).is_some() {
            return Ok(());
        }
        self.parts(at, length, access).map(drop)
    }

    fn compare_exchange(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        match self.tlb.find(at, old.len(), access) {
            Some(place) => Ok(place.exchange(old, new)),
            None => self.exchange_slowly(at, old, new, access),
        }
    }
}
