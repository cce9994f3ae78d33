//! [`World`]: linear memory as the instruction core sees it. What the TLB knows is a comparison away; the rest goes
//! through the walker, a page at a time.

use super::apic::OwnApic;
use super::code::{Changed, Seen};
use super::counts::SoftCounts;
use super::fast::flags::Lazy;
use super::finish::Finish;
use super::host::Place;
use super::tlb::Tlb;
use super::turn::Turn;
use super::vm::Shared;
use super::walker::{Target, Walker};
use crate::emulate::{Access, AccessKind, CpuState, Memory, Stop};
use crate::fallback::replay::Replay;
use std::sync::Arc;
use umbra_devices::models::fpu_error::FpuErrorLogic;
use umbra_memslots::{Gpa, Gva, PAGE_SIZE, SlotReader};

/// Everything outside the CPU.
pub(super) struct World {
    pub tlb: Tlb,
    pub walker: Walker,
    /// How far changes of decoded code are known.
    code: Seen,
    /// Status flags that RFLAGS does not have yet; settled before anybody else looks.
    pub lazy: Lazy,
    /// Fast ops may use XMM registers.
    pub vectors: bool,
    pub replay: Replay,
    /// How the instruction ends that waits for a device, if there is no need to begin it anew.
    pub finish: Option<Finish>,
    /// What it executes.
    pub counts: SoftCounts,
    pub shared: Arc<Shared>,
    /// Address translation has changed: a block that is being executed may lie elsewhere now.
    pub moved: bool,
    slots: SlotReader,
    pub pat: u64,
    pub apic_base: u64,
    /// If it has one.
    pub apic: Option<OwnApic>,
    /// Who is at FERR# and IGNNE#, and whether FERR# is asserted.
    pub fpu_errors: Option<(Arc<FpuErrorLogic>, bool)>,
    pub tsc_offset: u64,
    /// Where and whether the guest wants the time: see `pvclock`.
    pub system_time: u64,
    /// Instructions that the vCPU has executed before this one; of meaning only where the core asks for something.
    pub now: u64,
    /// If it takes turns with others.
    pub turn: Option<Turn>,
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
            walker: Walker::new(Arc::clone(&shared), state, slots.clone()),
            tlb: Tlb::new(snapshot),
            code: Seen::default(),
            lazy: Lazy::default(),
            vectors: false,
            replay: Replay::default(),
            finish: None,
            counts: SoftCounts::default(),
            shared,
            moved: false,
            slots,
            pat: super::platform::PAT_AT_RESET,
            apic_base: 0,
            apic: None,
            fpu_errors: None,
            tsc_offset: 0,
            system_time: 0,
            now: 0,
            turn: None,
        }
    }

    /// Goes into guest code, whose end is [`World::leave`].
    pub fn enter(&mut self) {
        self.walker.enter(&mut self.tlb);
    }

    /// Comes out of guest code.
    pub fn leave(&self) {
        self.walker.leave();
    }

    /// Between two blocks: catches up with what others did, in memory slots, TLBs and code. Says which blocks are to be
    /// forgotten.
    pub fn catch_up(&mut self) -> Option<Changed> {
        self.walker.look_up(&mut self.tlb);
        let snapshot = self.slots.snapshot_arc();
        if !Arc::ptr_eq(snapshot, self.tlb.slots()) {
            self.tlb.renew(snapshot);
            return Some(Changed::Everything);
        }
        let code = &self.shared.code;
        code.has_changed(&self.code).then(|| code.catch_up(&mut self.code))
    }

    /// Whether there is nothing to catch up with that others wait for, or that changes code.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.walker.is_current() && !self.shared.code.has_changed(&self.code)
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

    /// This code is decoded: from now on, writes to it are noticed. `None` if a TLB flush came in between, after which
    /// the code may be elsewhere.
    pub fn watch_code(&mut self, gpa: Gpa, bytes: usize) -> Option<()> {
        let Some(unwatched) = self.shared.code.add(gpa, bytes) else {
            return Some(());
        };
        self.tlb.flush_writes(gpa.gfn());
        let flushes = self.walker.flushes();
        self.walker.flush_others(&mut self.tlb);
        self.shared.code.watched(unwatched);
        (self.walker.flushes() == flushes).then_some(())
    }

    fn translate(&mut self, at: Gva, access: Access) -> Result<Target, Stop> {
        // The device that has answered is not looked for again.
        if let Some(answered) = self.replay.next_device()
            && let Some(gpa) = self.walker.devices.again(at, access, answered)
        {
            return Ok(Target::Device(gpa));
        }
        let target = self.walker.translate(&mut self.tlb, at, access)?;
        if let Target::Ram(gpa) = target
            && (access.kind != AccessKind::Write || self.is_free_of_code(gpa))
        {
            self.tlb.fill(at, access, gpa.gfn());
        }
        Ok(target)
    }

    /// Whether writes to the frame of `gpa` need not be noticed.
    fn is_free_of_code(&self, gpa: Gpa) -> bool {
        let code = &self.shared.code;
        // If there was code until somebody wrote to it, this vCPU may still have blocks of it. In this order: who has
        // taken the frame out has counted the change.
        !code.contains(gpa.gfn()) && !code.has_changed(&self.code)
    }

    /// Translates the pages of an access, two at most, before anything is done.
    fn parts(&mut self, at: Gva, length: usize, access: Access) -> Result<[Option<Part>; 2], Stop> {
        let split = length.min((PAGE_SIZE - at.page_offset()) as usize);
        let first = self.part(at, 0, split, access)?;
        let flushes = self.walker.flushes();
        let second = self.part(at, split, length, access)?;
        // What was translated first may be elsewhere now.
        if second.is_some() && self.walker.flushes() != flushes {
            return Err(Stop::Contended);
        }
        Ok([first, second])
    }

    fn part(&mut self, at: Gva, from: usize, to: usize, access: Access) -> Result<Option<Part>, Stop> {
        if from == to {
            return Ok(None);
        }
        let target = self.translate(at.wrapping_add(from as u64), access)?;
        Ok(Some(Part { target, from, to }))
    }

    /// What a write to memory has to tell others.
    fn wrote(&mut self, target: Target, bytes: usize) {
        if let Target::Table(gpa) = target {
            self.walker.wrote_table(&mut self.tlb, gpa, bytes as u16);
            self.moved = true;
        }
        if let Target::Ram(gpa) | Target::Table(gpa) = target {
            let code = &self.shared.code;
            code.written(gpa, bytes);
            self.moved |= code.has_changed(&self.code);
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
            }
        }
        // Last, because this vCPU is outside meanwhile, and what it has translated may not count afterwards.
        for Part { target, from, to } in parts.into_iter().flatten() {
            self.wrote(target, to - from);
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

    /// Writes what the hypervisor has to tell the guest, where it wants it, if there is memory.
    pub fn write_quietly(&mut self, at: Gpa, bytes: &[u8]) {
        let first = bytes.len().min((PAGE_SIZE - at.page_offset()) as usize);
        for (from, to) in [(0, first), (first, bytes.len())] {
            let gpa = at.wrapping_add(from as u64);
            if from < to && self.write_memory(gpa, &bytes[from..to]).is_ok() {
                self.wrote(Target::Table(gpa), to - from);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn exchange_slowly(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        if !Place::is_exchanged_at_once(at.get() as usize, old.len()) {
            // x86 locks the bus. Here nobody else is in guest code meanwhile.
            let shared = Arc::clone(&self.shared);
            let alone = self.walker.be_alone(&shared.gates, &mut self.tlb);
            let done = self.exchange_in_parts(at, old, new, access);
            self.walker.rejoin(alone, &mut self.tlb);
            return done;
        }
        let [Some(Part { target, .. }), None] = self.parts(at, old.len(), access)? else {
            return Err(Stop::Contended);
        };
        let (Target::Ram(gpa) | Target::Table(gpa)) = target else {
            // The caller has just read the old value, and reading it twice might do something.
            return self.write_slowly(at, new, access).map(|()| true);
        };
        let Some(place) = self.tlb.place(gpa, old.len()) else {
            return Err(self.lost(gpa));
        };
        let done = place.exchange(old, new);
        if done {
            self.tlb.log_write(gpa, old.len());
            self.wrote(target, old.len());
        }
        Ok(done)
    }

    /// What the host can't exchange in one piece: unaligned, perhaps across two pages.
    fn exchange_in_parts(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        let parts = self.parts(at, old.len(), access)?;
        let is_device = |part: &Part| matches!(part.target, Target::Device(_));
        if !parts.iter().flatten().any(is_device) {
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

    #[inline(always)]
    fn write_words<const N: usize>(&mut self, at: Gva, words: [u64; N], access: Access) -> Result<(), Stop> {
        match self.tlb.find(at, 8 * N, access) {
            Some(place) => {
                place.write_words(words);
                Ok(())
            }
            None => self.write_slowly(at, words.map(u64::to_le_bytes).as_flattened(), access),
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
            Some(place) if Place::is_exchanged_at_once(at.get() as usize, old.len()) => Ok(place.exchange(old, new)),
            _ => self.exchange_slowly(at, old, new, access),
        }
    }
}
