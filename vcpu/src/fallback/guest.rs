//! The instruction core's world during a fallback: guest memory through the guest's page tables and the memory slots,
//! devices through exits, the rest from the backend.

use super::host::{EmulationHost, NotKnown};
use super::parts::Parts;
use super::replay::Replay;
use crate::backend::BackendError;
use crate::emulate::{Access, AccessKind, CpuState, Exception, Memory, Platform, Request, Stop, Translation};
use crate::paging;
use crate::regs::SystemRegs;
use std::sync::{Mutex, PoisonError};
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::{EntrySize, Exchange, Gpa, GuestMemory, Gva, MemoryFault, Memslots, PAGE_SIZE};
use umbra_mmu::guest_walk::{WalkFailure, walk};
use umbra_mmu::x86::{self, GuestCpu, PagingState, Privilege};

/// Serialises the locked accesses that the host can't do in one piece: 16 bytes, or odd places. A vCPU that makes such
/// an access natively at the same moment is not held up by it.
static WIDE_LOCK: Mutex<()> = Mutex::new(());

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;

pub(super) struct Guest<'a, B> {
    backend: &'a mut B,
    slots: &'a Memslots,
    replay: &'a mut Replay,
    cpu: GuestCpu,
    paging: PagingState,
    flush: bool,
    error: Option<BackendError>,
}

/// One page of an access: where it is, and which bytes of it.
struct Part {
    gpa: Gpa,
    from: usize,
    to: usize,
}

impl<'a, B: EmulationHost> Guest<'a, B> {
    /// The world of a CPU with this state, whose PDPTE registers are filled in.
    pub fn new(
        backend: &'a mut B,
        slots: &'a Memslots,
        replay: &'a mut Replay,
        state: &mut CpuState,
    ) -> Result<Self, BackendError> {
        let cpu = describe(backend)?;
        state.pdptes = backend
            .pdptes()
            .unwrap_or_else(|| paging::pdptes_of(&state.sys, cpu, &slots));
        let paging = paging_state(state, cpu);
        Ok(Self {
            backend,
            slots,
            replay,
            cpu,
            paging,
            flush: false,
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

    /// Whether translations were invalidated.
    pub fn must_flush(&self) -> bool {
        self.flush
    }

    /// A failure of the host that the core met; what it did since is void.
    pub fn take_error(&mut self) -> Option<BackendError> {
        self.error.take()
    }

    /// Notes a failure of the host and stops the instruction.
    fn host<T>(&mut self, result: Result<T, BackendError>) -> Result<T, Stop> {
        result.map_err(|error| {
            self.error = Some(error);
            Stop::Unsupported
        })
    }

    fn translate(&self, at: Gva, access: Access) -> Result<Gpa, Stop> {
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
        match walk(&self.paging, &self.slots, at, x86::Access::new(kind, privilege)) {
            Ok(walk) => Ok(walk.gpa),
            Err(WalkFailure::Fault(fault)) => Err(Exception::page_fault(fault.code.raw(), fault.gva).into()),
            Err(WalkFailure::NonCanonical(_)) => Err(Exception::gp(0).into()),
            Err(WalkFailure::Retry) => Err(Stop::Contended),
        }
    }

    /// Translates every page of an access before anything is done.
    fn parts(&self, at: Gva, length: usize, access: Access) -> Result<Vec<Part>, Stop> {
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

    /// Whether a page is memory that may be written.
    fn writable_memory(&self, gpa: Gpa) -> bool {
        self.slots
            .find_visible(gpa.gfn())
            .is_some_and(|slot| !slot.is_read_only())
    }
}

impl<B: EmulationHost> Memory for Guest<'_, B> {
    fn read(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        for Part { gpa, from, to } in self.parts(at, bytes.len(), access)? {
            match self.slots.read(gpa, &mut bytes[from..to]) {
                Ok(()) => {}
                Err(MemoryFault::BeingRemoved { .. }) => return Err(Stop::Contended),
                Err(_) => self.replay.read_device(gpa, &mut bytes[from..to])?,
            }
        }
        Ok(())
    }

    fn write(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        let parts = self.parts(at, bytes.len(), access)?;
        // Devices first: until the last of them has answered, no memory is touched.
        let (memory, devices): (Vec<_>, Vec<_>) = parts.iter().partition(|part| self.writable_memory(part.gpa));
        for part in devices {
            self.replay.write_device(part.gpa, &bytes[part.from..part.to])?;
        }
        for part in memory {
            self.slots
                .write(part.gpa, &bytes[part.from..part.to])
                .map_err(|_| Stop::Contended)?;
            self.backend.wrote_memory(part.gpa, part.to - part.from);
        }
        Ok(())
    }

    fn probe(&mut self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        self.parts(at, length, access).map(drop)
    }

    fn compare_exchange(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        let parts = self.parts(at, old.len(), access)?;
        if let [part] = &parts[..]
            && self.writable_memory(part.gpa)
            && old.len() <= 8
            && let Some(place) = Place::of(part.gpa, old.len())
        {
            let exchanged = place.exchange(self.slots, old, new).map_err(|_| Stop::Contended)?;
            if exchanged {
                self.backend.wrote_memory(part.gpa, old.len());
            }
            return Ok(exchanged);
        }
        let _guard = WIDE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present = [0; 16];
        let present = &mut present[..old.len()];
        // Of a device the caller has just read the old value, and reading it twice might do something.
        if parts.iter().all(|part| self.writable_memory(part.gpa)) {
            self.read(at, present, access)?;
            if present != old {
                return Ok(false);
            }
        }
        self.write(at, new, access)?;
        Ok(true)
    }
}

/// The aligned word in which an operand of 1 to 8 bytes lies.
struct Place {
    word: Gpa,
    size: EntrySize,
    /// Bits below the operand.
    shift: u32,
    mask: u64,
}

impl Place {
    fn of(gpa: Gpa, length: usize) -> Option<Self> {
        let fits = |bytes: u64| gpa.get() % bytes + length as u64 <= bytes;
        let size = if fits(4) {
            EntrySize::B4
        } else if fits(8) {
            EntrySize::B8
        } else {
            return None;
        };
        let offset = gpa.get() % size.bytes();
        Some(Self {
            word: Gpa::new(gpa.get() - offset),
            size,
            shift: 8 * offset as u32,
            mask: u64::MAX >> (64 - 8 * length) << (8 * offset),
        })
    }

    fn exchange(&self, slots: &Memslots, old: &[u8], new: &[u8]) -> Result<bool, MemoryFault> {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte));
        let (old, new) = (number(old) << self.shift, number(new) << self.shift);
        let mut word = slots.read_entry(self.word, self.size)?;
        // Neighbours in the word may change at the same time; only the operand itself decides.
        loop {
            if word & self.mask != old {
                return Ok(false);
            }
            match slots.compare_exchange_entry(self.word, self.size, word, word & !self.mask | new)? {
                Exchange::Done => return Ok(true),
                Exchange::Differs(other) => word = other,
            }
        }
    }
}

impl<B: EmulationHost> Platform for Guest<'_, B> {
    fn port_in(&mut self, port: u16, size: IoSize) -> Result<u32, Stop> {
        let request = Request::Pio {
            port,
            size,
            op: IoOp::Read,
        };
        match self.replay.take(request) {
            Some(value) => Ok(size.truncate(value.unwrap_or(0)) as u32),
            None => Err(Stop::Pending(request)),
        }
    }

    fn port_out(&mut self, port: u16, size: IoSize, value: u32) -> Result<(), Stop> {
        let op = IoOp::Write(size.truncate(u64::from(value)));
        let request = Request::Pio { port, size, op };
        match self.replay.take(request) {
            Some(_) => Ok(()),
            None => Err(Stop::Pending(request)),
        }
    }

    fn read_msr(&mut self, index: u32) -> Result<u64, Stop> {
        let value = self.backend.read_msr(index);
        self.host(value)?.ok_or(Stop::Fault(Exception::gp(0)))
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        let written = self.backend.write_msr(index, value);
        if self.host(written)? {
            Ok(())
        } else {
            Err(Exception::gp(0).into())
        }
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let answer = self.backend.cpuid(leaf, subleaf);
        self.host(answer).unwrap_or_default()
    }

    fn tsc(&mut self) -> u64 {
        let value = self.backend.read_msr(TSC);
        self.host(value).ok().flatten().unwrap_or(0)
    }

    fn load_pdptes(&mut self, sys: &SystemRegs) -> Result<[u64; 4], Stop> {
        paging::read_pdptes(sys, self.cpu, &self.slots)
    }

    fn translation(&mut self, change: Translation, state: &CpuState) {
        match change {
            Translation::InvalidateAddress(_) | Translation::InvalidateAll => self.flush = true,
            Translation::ControlsChanged | Translation::PrivilegeChanged => {
                // A load of CR3 with the same value is a flush, too.
                self.flush |= change == Translation::ControlsChanged;
                self.paging = paging_state(state, self.cpu);
            }
        }
    }

    fn physical_width(&self) -> u32 {
        self.cpu.physical_bits
    }
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
