//! The instruction core's world during a fallback: guest memory through the guest's page tables and the memory slots, devices
//! through exits. What it asks of the rest is in `platform`.

use super::code::{self, CodeCache, Known};
use super::exchange::Place;
use super::host::{EmulationHost, NotKnown};
use super::parts::Parts;
use super::replay::Replay;
use super::tables::may_change_a_table;
use super::translations::Translations;
use crate::backend::BackendError;
use crate::emulate::state::cr4;
use crate::emulate::{Access, AccessKind, Cpu, CpuState, Exception, Memory, Request, Stop};
use crate::paging;
use std::sync::{Arc, Mutex, PoisonError};
use umbra_memslots::{EntrySize, Gpa, GuestMemory, Gva, MemoryFault, Memslots, PAGE_SIZE};
use umbra_mmu::guest_walk::{WalkFailure, walk};
use umbra_mmu::x86::{self, GuestCpu, PagingState, Privilege};

/// Serialises the locked accesses that the host can't do in one piece: 16 bytes, or odd places. A vCPU that makes such
/// an access natively at the same moment is not held up by it.
static WIDE_LOCK: Mutex<()> = Mutex::new(());

pub(super) struct Guest<'a, B> {
    pub(super) backend: &'a mut B,
    pub(super) slots: Arc<Memslots>,
    pub(super) replay: &'a mut Replay,
    pub(super) known: &'a mut Translations,
    pub(super) cpu: GuestCpu,
    paging: PagingState,
    /// The instruction that is executed is the one at which the backend failed.
    pub first: bool,
    /// Whether the backend is to be told of writes to page tables.
    tells_tables: bool,
    pub(super) flush: bool,
    tables_changed: bool,
    pub(super) over: bool,
    error: Option<BackendError>,
}

/// One page of an access: where it is, and which bytes of it.
struct Part {
    gpa: Gpa,
    from: usize,
    to: usize,
}

impl<'a, B: EmulationHost> Guest<'a, B> {
    /// The world of a CPU with this state. `known` are translations that still hold for it.
    pub fn new(
        backend: &'a mut B,
        slots: Arc<Memslots>,
        replay: &'a mut Replay,
        known: &'a mut Translations,
        state: &CpuState,
    ) -> Result<Self, BackendError> {
        let cpu = describe(backend)?;
        let paging = paging_state(state, cpu);
        Ok(Self {
            tells_tables: backend.derives_from_tables(),
            backend,
            slots,
            replay,
            known,
            cpu,
            paging,
            first: true,
            flush: false,
            tables_changed: false,
            over: false,
            error: None,
        })
    }

    /// Reads parts of the vCPU's state.
    pub fn load(&mut self, state: &mut CpuState, parts: Parts) -> Result<(), BackendError> {
        self.backend.load_parts(state, parts)
    }

    /// What to do about an instruction that the core doesn't know.
    pub fn not_known(&mut self) -> Result<NotKnown, BackendError> {
        self.backend.not_known()
    }

    /// Whether the backend itself has the device for this request, and nobody else can answer it.
    pub fn is_backends(&self, request: &Request, state: &CpuState) -> bool {
        self.backend.has_device(request, state)
    }

    /// See [`EmulationHost::leaves_syscalls_half_done`].
    pub fn leaves_syscalls_half_done(&self) -> bool {
        self.backend.leaves_syscalls_half_done()
    }

    /// Whether translations were invalidated.
    pub fn must_flush(&self) -> bool {
        self.flush
    }

    /// Whether a page table may have been written to from which the backend has derived something.
    pub fn changed_tables(&self) -> bool {
        self.tables_changed
    }

    /// Whether the world is not the one any more that this was made with, so that the guest should be given back.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The memory slots that it sees.
    pub fn slots(&self) -> &Arc<Memslots> {
        &self.slots
    }

    /// The next instruction begins, or the same again.
    pub fn rewind(&mut self) {
        self.replay.rewind();
    }

    /// An instruction has happened: its answers are not needed any more.
    pub fn forget_answers(&mut self) {
        self.replay.clear();
    }

    /// Whether an interrupt may wait in the backend.
    pub fn interrupt_waits(&mut self) -> bool {
        match self.backend.interrupt_waits() {
            Ok(waits) => waits,
            Err(error) => {
                self.error = Some(error);
                true
            }
        }
    }

    /// Whether the present instruction was answered anything.
    pub fn has_answers(&self) -> bool {
        !self.replay.is_empty()
    }

    /// A failure of the host that the core met; what it did since is void.
    pub fn take_error(&mut self) -> Option<BackendError> {
        self.error.take()
    }

    /// The floating-point state has changed, and with it perhaps PKRU.
    pub fn keys_changed(&mut self, state: &CpuState) {
        if state.sys.cr4 & cr4::PKE != 0 {
            self.renew_paging(state);
        }
    }

    pub(super) fn renew_paging(&mut self, state: &CpuState) {
        self.known.clear();
        self.paging = paging_state(state, self.cpu);
    }

    /// Notes a failure of the host and stops the instruction.
    pub(super) fn host<T>(&mut self, result: Result<T, BackendError>) -> Result<T, Stop> {
        result.map_err(|error| {
            self.error = Some(error);
            Stop::Unsupported
        })
    }

    #[inline]
    fn translate(&mut self, at: Gva, access: Access) -> Result<Gpa, Stop> {
        match self.known.find(at, access) {
            Some(gpa) => Ok(gpa),
            None => self.walk(at, access),
        }
    }

    fn walk(&mut self, at: Gva, access: Access) -> Result<Gpa, Stop> {
        let kind = match access.kind {
            AccessKind::Read => x86::AccessKind::Read,
            AccessKind::Write => x86::AccessKind::Write,
            AccessKind::Fetch => x86::AccessKind::Fetch,
        };
        let privilege = match (access.user, access.implicit) {
            (true, _) => Privilege::User,
            (false, false) => Privilege::Supervisor,
            (false, true) => Privilege::Implicit,
        };
        self.paging.ac = access.alignment_flag;
        let slots: &Memslots = &self.slots;
        match walk(&self.paging, &slots, at, x86::Access::new(kind, privilege)) {
            Ok(walk) => {
                self.known.insert(at, access, walk.gpa);
                Ok(walk.gpa)
            }
            Err(WalkFailure::Fault(fault)) => Err(Exception::page_fault(fault.code.raw(), fault.gva).into()),
            Err(WalkFailure::NonCanonical(_)) => Err(Exception::gp(0).into()),
            Err(WalkFailure::Retry) => Err(Stop::Contended),
        }
    }

    /// Translates every page of an access before anything is done.
    fn parts(&mut self, at: Gva, length: usize, access: Access) -> Result<Vec<Part>, Stop> {
        let mut parts = Vec::with_capacity(2);
        let mut from = 0;
        while from < length {
            let here = at.wrapping_add(from as u64);
            let left_in_page = (PAGE_SIZE - here.page_offset()) as usize;
            let to = length.min(from + left_in_page);
            let gpa = self.translate(here, access)?;
            parts.push(Part { gpa, from, to });
            from = to;
        }
        Ok(parts)
    }

    /// Whether a page is memory that may be written, and else a device's. It may be on its way from one to the other.
    fn writable_memory(&mut self, gpa: Gpa) -> Result<bool, Stop> {
        match self.slots.find_gpa(gpa) {
            Some(slot) if slot.is_invalid() => Err(self.removed()),
            slot => Ok(slot.is_some_and(|slot| !slot.is_read_only())),
        }
    }

    /// The slot goes away or moves: the instruction is to be executed with the slots as they will be.
    #[cold]
    fn removed(&mut self) -> Stop {
        self.over = true;
        Stop::Contended
    }

    fn read_part(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Stop> {
        match self.slots.read(gpa, bytes) {
            Ok(()) => Ok(()),
            Err(MemoryFault::BeingRemoved { .. }) => Err(self.removed()),
            Err(_) => self.replay.read_device(gpa, bytes),
        }
    }

    /// Writes memory within a page.
    fn write_memory(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Stop> {
        if self.tells_tables && !self.tables_changed {
            self.tables_changed = self.changes_a_table(gpa, bytes);
        }
        if self.slots.write(gpa, bytes).is_err() {
            return Err(self.removed());
        }
        self.backend.wrote_memory(gpa, bytes.len());
        Ok(())
    }

    /// Whether a write within a page may change what the backend has derived from a page table.
    fn changes_a_table(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        let first = gpa.get() & !7;
        let end = gpa.get().saturating_add(bytes.len() as u64);
        (first..end).step_by(8).any(|word| {
            let Ok(old) = self.slots.read_entry(Gpa::new(word), EntrySize::B8) else {
                return false;
            };
            let mut new = old.to_le_bytes();
            for (index, byte) in (word..).zip(&mut new) {
                if let Some(written) = index.checked_sub(gpa.get()).and_then(|at| bytes.get(at as usize)) {
                    *byte = *written;
                }
            }
            let new = u64::from_le_bytes(new);
            old != new && may_change_a_table(old, new, self.paging.mode, self.cpu.physical_bits)
        })
    }
}

impl<B: EmulationHost> Memory for Guest<'_, B> {
    #[inline]
    fn read(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        if at.page_offset() + bytes.len() as u64 <= PAGE_SIZE {
            let gpa = self.translate(at, access)?;
            return self.read_part(gpa, bytes);
        }
        for Part { gpa, from, to } in self.parts(at, bytes.len(), access)? {
            self.read_part(gpa, &mut bytes[from..to])?;
        }
        Ok(())
    }

    #[inline]
    fn write(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        if at.page_offset() + bytes.len() as u64 <= PAGE_SIZE {
            let gpa = self.translate(at, access)?;
            return if self.writable_memory(gpa)? {
                self.write_memory(gpa, bytes)
            } else {
                self.replay.write_device(gpa, bytes)
            };
        }
        let parts = self.parts(at, bytes.len(), access)?;
        // Devices first: until the last of them has answered, no memory is touched.
        let mut memory = Vec::with_capacity(parts.len());
        for part in &parts {
            if self.writable_memory(part.gpa)? {
                memory.push(part);
            } else {
                self.replay.write_device(part.gpa, &bytes[part.from..part.to])?;
            }
        }
        for part in memory {
            self.write_memory(part.gpa, &bytes[part.from..part.to])?;
        }
        Ok(())
    }

    fn probe(&mut self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        self.parts(at, length, access).map(drop)
    }

    fn compare_exchange(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        let parts = self.parts(at, old.len(), access)?;
        if let [part] = &parts[..]
            && self.writable_memory(part.gpa)?
            && old.len() <= 8
            && let Some(place) = Place::of(part.gpa, old.len())
        {
            if self.tells_tables && !self.tables_changed {
                self.tables_changed = self.changes_a_table(part.gpa, new);
            }
            let Ok(exchanged) = place.exchange(&self.slots, old, new) else {
                return Err(self.removed());
            };
            if exchanged {
                self.backend.wrote_memory(part.gpa, old.len());
            }
            return Ok(exchanged);
        }
        let _guard = WIDE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present = [0; 16];
        let present = &mut present[..old.len()];
        // Of a device the caller has just read the old value, and reading it twice might do something.
        let mut memory = true;
        for part in &parts {
            memory &= self.writable_memory(part.gpa)?;
        }
        if memory {
            self.read(at, present, access)?;
            if present != old {
                return Ok(false);
            }
        }
        self.write(at, new, access)?;
        Ok(true)
    }
}

/// The instruction at CS:RIP, decoded anew only if its bytes are not those of the last time.
pub(super) fn fetch<B: EmulationHost>(cpu: &mut Cpu<Guest<'_, B>>, code: &mut CodeCache) -> Result<Known, Stop> {
    let (rip, size) = (cpu.state.rip, cpu.state.code_size());
    let at = cpu.code_address()?;
    let gpa = cpu.env.translate(at, cpu.fetch_access())?;
    let mut bytes = [0; code::MAX];
    let room = (PAGE_SIZE - at.page_offset())
        .min(cpu.state.code_room())
        .min(code::MAX as u64) as usize;
    if let Some(known) = code.find(rip, size)
        && let length = known.bytes().len()
        && length <= room
        && cpu.env.slots.read(gpa, &mut bytes[..length]).is_ok()
        && bytes[..length] == *known.bytes()
    {
        return Ok(*known);
    }
    if cpu.env.slots.read(gpa, &mut bytes[..room]).is_ok()
        && let Some(known) = Known::decode(rip, size, &bytes[..room])
    {
        code.remember(known);
        return Ok(known);
    }
    // On two pages, at the segment's end, not in memory or no instruction.
    Ok(Known::once(cpu.fetch()?, rip, size))
}

/// What the guest's CPUID says about paging.
pub(crate) fn describe<B: EmulationHost>(backend: &mut B) -> Result<GuestCpu, BackendError> {
    let [_, b, c, d] = backend.cpuid(0, 0)?;
    let amd = [b, d, c] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
    let [width, ..] = backend.cpuid(0x8000_0008, 0)?;
    let [_, _, _, extended] = backend.cpuid(0x8000_0001, 0)?;
    let [_, _, _, basic] = backend.cpuid(1, 0)?;
    Ok(GuestCpu {
        physical_bits: match width & 0xff {
            0 => 36,
            bits => bits,
        },
        gigabyte_pages: extended & 1 << 26 != 0,
        pse36: basic & 1 << 17 != 0,
        upper_global_reserved: amd,
    })
}

fn paging_state(state: &CpuState, cpu: GuestCpu) -> PagingState {
    PagingState::new(&paging::registers(
        &state.sys,
        state.pdptes,
        state.rflags,
        state.fpu.pkru(),
        cpu,
    ))
}
