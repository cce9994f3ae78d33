//! Saving and restoring state: `fxsave fxrstor xsave xsaveopt xsavec xsaves xrstor xrstors xgetbv xsetbv ldmxcsr
//! stmxcsr` (SDM vol. 1 chapter 13, section 10.5).

use super::environment::{AccessKind, Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::fpu::{EXTENDED, FpuState, LEGACY, component, number};
use super::state::{RAX, RCX, RDX, cr0, cr4, efer};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Code, Instruction, Mnemonic};
use umbra_memslots::Gva;

const GP0: Stop = Stop::Fault(Exception::gp(0));
/// XCOMP_BV bit 63: the compacted format.
const COMPACT: u64 = 1 << 63;
/// The largest area that is handled; nothing that processors have today comes near except tile registers.
const MAX_AREA: usize = 16 * 1024;

/// Where a component lies in an area.
struct Place {
    number: u32,
    /// In the area of memory.
    offset: usize,
    /// In [`FpuState::extended`].
    inside: usize,
    size: usize,
}

impl<E: Memory + Platform> Cpu<E> {
    /// #UD or #NM if SSE and `fxsave` state may not be touched.
    pub(super) fn check_sse_state(&self) -> Result<(), Stop> {
        if self.state.sys.cr0 & cr0::EM != 0 || self.state.sys.cr4 & cr4::OSFXSR == 0 {
            return Err(Exception::UD.into());
        }
        self.check_task_switched()
    }

    /// #NM if CR0.TS says that the state belongs to another task.
    pub(super) fn check_task_switched(&self) -> Result<(), Stop> {
        if self.state.sys.cr0 & cr0::TS != 0 {
            return Err(Exception::new(exception::NM).into());
        }
        Ok(())
    }

    fn image(&mut self, insn: &Instruction, alignment: u64, kind: AccessKind) -> Result<Gva, Stop> {
        let at = self.memory_operand(insn, LEGACY, kind)?;
        if !at.get().is_multiple_of(alignment) {
            return Err(GP0);
        }
        Ok(at)
    }

    /// XMM registers that the mode shows.
    fn visible_xmm(&self) -> usize {
        if self.state.long_code() { 16 } else { 8 }
    }

    /// `fxsave` may leave the XMM registers out for the kernel of a 64-bit system.
    fn fast_fxsave(&self) -> bool {
        self.state.sys.efer & efer::FFXSR != 0 && self.state.long_code() && self.state.cpl() == 0
    }

    pub(super) fn fxsave(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.sys.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(Exception::new(exception::NM).into());
        }
        let at = self.image(insn, 16, AccessKind::Write)?;
        let access = self.access(AccessKind::Write);
        let mut image = [0; LEGACY];
        // What is not written keeps the memory's value.
        self.read_memory(at, &mut image, access)?;
        let fpu = &self.state.fpu;
        fpu.x87_to_image(&mut image, insn.code() == Code::Fxsave64_m512byte);
        fpu.mxcsr_to_image(&mut image);
        if !self.fast_fxsave() {
            fpu.xmm_to_image(&mut image, self.visible_xmm());
        }
        self.write_memory(at, &image, access)?;
        Ok(Flow::Next)
    }

    pub(super) fn fxrstor(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.sys.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(Exception::new(exception::NM).into());
        }
        let at = self.image(insn, 16, AccessKind::Read)?;
        let access = self.access(AccessKind::Read);
        let mut image = [0; LEGACY];
        self.read_memory(at, &mut image, access)?;
        let mxcsr = number(&image[24..28]) as u32;
        if mxcsr & !self.state.fpu.mxcsr_mask != 0 {
            return Err(GP0);
        }
        let (visible, fast) = (self.visible_xmm(), self.fast_fxsave());
        let fpu = &mut self.state.fpu;
        fpu.x87_from_image(&image, insn.code() == Code::Fxrstor64_m512byte);
        fpu.mxcsr = mxcsr;
        if !fast {
            fpu.xmm_from_image(&image, visible);
        }
        Ok(Flow::Next)
    }

    pub(super) fn ldmxcsr(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let value = self.value(insn, 0, Width::B4)? as u32;
        if value & !self.state.fpu.mxcsr_mask != 0 {
            return Err(GP0);
        }
        self.state.fpu.mxcsr = value;
        Ok(Flow::Next)
    }

    pub(super) fn stmxcsr(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let value = u64::from(self.state.fpu.mxcsr);
        self.set_value(insn, 0, Width::B4, value)?;
        Ok(Flow::Next)
    }

    fn check_xsave(&self) -> Result<(), Stop> {
        if self.state.sys.cr4 & cr4::OSXSAVE == 0 {
            return Err(Exception::UD.into());
        }
        self.check_task_switched()
    }

    /// CPUID leaf 0xd subleaf 0 or 1, EBX: the size of an area with all that is enabled, in the standard format or packed
    /// (SDM vol. 1 section 13.2). `features` and `size` are what the platform says in EAX and EBX.
    pub(super) fn area_in_use(&mut self, subleaf: u32, features: u32, size: u32) -> u32 {
        const XSAVEC: u32 = 1 << 1;
        const XSAVES: u32 = 1 << 3;
        const XSS: u32 = 0xda0;
        let packed = subleaf == 1;
        if features == 0 || packed && features & (XSAVEC | XSAVES) == 0 {
            return size;
        }
        let mut enabled = self.state.fpu.xcr0;
        if packed && features & XSAVES != 0 {
            enabled |= self.env.read_msr(XSS).unwrap_or(0);
        }
        let mut end = EXTENDED as u32;
        for number in (2..63).filter(|number| enabled & 1 << number != 0) {
            let [size, offset, flags, _] = self.env.cpuid(0xd, number);
            end = match packed {
                false => end.max(offset.saturating_add(size)),
                true if flags & 2 != 0 => (end.saturating_add(63) & !63).saturating_add(size),
                true => end.saturating_add(size),
            };
        }
        end
    }

    /// The components asked for in EDX:EAX that are enabled.
    fn requested(&self) -> u64 {
        let asked = self.state.low(RDX, Width::B4) << 32 | self.state.low(RAX, Width::B4);
        asked & self.state.fpu.xcr0
    }

    /// Where the extended components of `present` lie: in the standard format, or packed.
    fn places(&mut self, present: u64, wanted: u64, compact: bool) -> Result<Vec<Place>, Stop> {
        let mut places = Vec::new();
        let mut next = EXTENDED;
        for number in 2..63 {
            if present & 1 << number == 0 {
                continue;
            }
            let [size, offset, flags, _] = self.env.cpuid(0xd, number);
            let (size, standard) = (size as usize, offset as usize);
            if flags & 2 != 0 {
                next = next.next_multiple_of(64);
            }
            let offset = if compact { next } else { standard };
            next += size;
            let end = offset.max(standard).saturating_add(size);
            if size == 0 || standard < EXTENDED || end > MAX_AREA {
                return Err(Stop::Unsupported);
            }
            if wanted & 1 << number != 0 {
                places.push(Place {
                    number,
                    offset,
                    inside: standard - EXTENDED,
                    size,
                });
            }
        }
        Ok(places)
    }

    /// `xsave xsaveopt xsavec xsaves`.
    pub(super) fn xsave(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let supervisor = matches!(insn.mnemonic(), Mnemonic::Xsaves | Mnemonic::Xsaves64);
        let compact = supervisor || matches!(insn.mnemonic(), Mnemonic::Xsavec | Mnemonic::Xsavec64);
        self.check_xsave()?;
        if supervisor {
            self.require_cpl0()?;
        }
        let wide = is_wide(insn.mnemonic());
        let at = self.image(insn, 64, AccessKind::Write)?;
        let requested = self.requested();
        let in_use = self.in_use();
        // The packed format leaves out what is in its initial state; its places are made for all that was requested.
        let saved = if compact { requested & in_use } else { requested };
        let places = self.places(requested, saved, compact)?;
        let length = places
            .iter()
            .map(|place| place.offset + place.size)
            .fold(EXTENDED, usize::max);
        let access = self.access(AccessKind::Write);
        let mut area = self.read_area(at, length, AccessKind::Write)?;
        let mut legacy: [u8; LEGACY] = [0; LEGACY];
        legacy.copy_from_slice(&area[..LEGACY]);
        let fpu = &self.state.fpu;
        if saved & component::X87 != 0 {
            fpu.x87_to_image(&mut legacy, wide);
        }
        let with_mxcsr = if compact {
            component::SSE
        } else {
            component::SSE | component::AVX
        };
        if saved & with_mxcsr != 0 || (compact && requested & with_mxcsr != 0) {
            fpu.mxcsr_to_image(&mut legacy);
        }
        if saved & component::SSE != 0 {
            fpu.xmm_to_image(&mut legacy, self.visible_xmm());
        }
        area[..LEGACY].copy_from_slice(&legacy);
        let old = number(&area[LEGACY..LEGACY + 8]);
        let bitmap = if compact {
            requested & in_use
        } else {
            old & !requested | requested & in_use
        };
        area[LEGACY..LEGACY + 8].copy_from_slice(&bitmap.to_le_bytes());
        if compact {
            area[LEGACY + 8..LEGACY + 16].copy_from_slice(&(requested | COMPACT).to_le_bytes());
            area[LEGACY + 16..EXTENDED].fill(0);
        }
        for place in &places {
            let to = &mut area[place.offset..place.offset + place.size];
            match fpu.extended.get(place.inside..place.inside + place.size) {
                Some(from) if in_use & 1 << place.number != 0 => to.copy_from_slice(from),
                _ => to.fill(0),
            }
        }
        self.write_area(at, &area, access)?;
        Ok(Flow::Next)
    }

    /// `xrstor xrstors`.
    pub(super) fn xrstor(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let supervisor = matches!(insn.mnemonic(), Mnemonic::Xrstors | Mnemonic::Xrstors64);
        self.check_xsave()?;
        if supervisor {
            self.require_cpl0()?;
        }
        let at = self.image(insn, 64, AccessKind::Read)?;
        let head = self.read_area(at, EXTENDED, AccessKind::Read)?;
        let word = |index: usize| number(&head[LEGACY + 8 * index..LEGACY + 8 * index + 8]);
        let (bitmap, packing) = (word(0), word(1));
        let compact = packing & COMPACT != 0;
        let enabled = self.state.fpu.xcr0;
        let malformed = if compact {
            let known = packing & !COMPACT;
            known & !enabled != 0 || bitmap & !known != 0 || (2..8).any(|index| word(index) != 0)
        } else {
            supervisor || packing != 0 || bitmap & !enabled != 0 || word(2) != 0
        };
        let requested = self.requested();
        let mxcsr = number(&head[24..28]) as u32;
        let with_mxcsr =
            requested & (component::SSE | component::AVX) != 0 && (!compact || bitmap & component::SSE != 0);
        if malformed || (with_mxcsr && mxcsr & !self.state.fpu.mxcsr_mask != 0) {
            return Err(GP0);
        }
        let present = if compact { packing & !COMPACT } else { requested };
        let places = self.places(present, requested & bitmap, compact)?;
        let length = places
            .iter()
            .map(|place| place.offset + place.size)
            .fold(EXTENDED, usize::max);
        let area = self.read_area(at, length, AccessKind::Read)?;
        let mut legacy: [u8; LEGACY] = [0; LEGACY];
        legacy.copy_from_slice(&area[..LEGACY]);
        let visible = self.visible_xmm();
        let fpu = &mut self.state.fpu;
        if requested & component::X87 != 0 {
            if bitmap & component::X87 != 0 {
                fpu.x87_from_image(&legacy, is_wide(insn.mnemonic()));
            } else {
                fpu.init_x87();
                fpu.x87 = Default::default();
            }
        }
        if requested & component::SSE != 0 {
            if bitmap & component::SSE != 0 {
                fpu.xmm_from_image(&legacy, visible);
            } else {
                fpu.xmm[..visible].fill(0);
            }
        }
        if with_mxcsr {
            fpu.mxcsr = mxcsr;
        } else if compact && requested & component::SSE != 0 {
            fpu.mxcsr = FpuState::INITIAL_MXCSR;
        }
        fpu.in_use = fpu.in_use & !requested | requested & bitmap;
        for place in places {
            let end = place.inside + place.size;
            if fpu.extended.len() < end {
                fpu.extended.resize(end, 0);
            }
            fpu.extended[place.inside..end].copy_from_slice(&area[place.offset..place.offset + place.size]);
        }
        Ok(Flow::Next)
    }

    /// XINUSE: x87 and SSE by looking at them, the others as they were last loaded.
    fn in_use(&self) -> u64 {
        let fpu = &self.state.fpu;
        let mut in_use = fpu.in_use & !(component::X87 | component::SSE);
        let initial_x87 = fpu.control == FpuState::INITIAL_CONTROL
            && (fpu.status, fpu.tags, fpu.opcode) == (0, 0, 0)
            && (fpu.instruction, fpu.data) == (0, 0)
            && fpu.x87 == [Default::default(); 8];
        if !initial_x87 {
            in_use |= component::X87;
        }
        if fpu.xmm != [0; 16] || fpu.mxcsr != FpuState::INITIAL_MXCSR {
            in_use |= component::SSE;
        }
        in_use
    }

    fn read_area(&mut self, at: Gva, length: usize, kind: AccessKind) -> Result<Vec<u8>, Stop> {
        let access = self.access(kind);
        let mut area = vec![0; length];
        for (index, chunk) in area.chunks_mut(LEGACY).enumerate() {
            self.read_memory(at.wrapping_add((index * LEGACY) as u64), chunk, access)?;
        }
        Ok(area)
    }

    /// Every byte was read with the rights of a write just before, so that no chunk can fault after another was written.
    fn write_area(&mut self, at: Gva, area: &[u8], access: super::environment::Access) -> Result<(), Stop> {
        for (index, chunk) in area.chunks(LEGACY).enumerate() {
            self.write_memory(at.wrapping_add((index * LEGACY) as u64), chunk, access)?;
        }
        Ok(())
    }

    pub(super) fn xgetbv(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.sys.cr4 & cr4::OSXSAVE == 0 {
            return Err(Exception::UD.into());
        }
        let value = match self.state.low(RCX, Width::B4) {
            0 => self.state.fpu.xcr0,
            1 => self.state.fpu.xcr0 & self.in_use(),
            _ => return Err(GP0),
        };
        self.set_edx_eax(value);
        Ok(Flow::Next)
    }

    pub(super) fn xsetbv(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.sys.cr4 & cr4::OSXSAVE == 0 {
            return Err(Exception::UD.into());
        }
        self.require_cpl0()?;
        let value = self.state.low(RDX, Width::B4) << 32 | self.state.low(RAX, Width::B4);
        let [low, _, _, high] = self.env.cpuid(0xd, 0);
        let supported = u64::from(high) << 32 | u64::from(low);
        const AVX512: u64 = 7 << 5;
        let avx = value & component::AVX != 0;
        let unordered = avx && value & component::SSE == 0 || value & AVX512 != 0 && !(avx && value & AVX512 == AVX512);
        let bad =
            self.state.low(RCX, Width::B4) != 0 || value & component::X87 == 0 || value & !supported != 0 || unordered;
        if bad {
            return Err(GP0);
        }
        self.state.fpu.xcr0 = value;
        Ok(Flow::Next)
    }
}

/// Whether pointers in the x87 image have 64 bits.
fn is_wide(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Xsave64
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstor64
            | Mnemonic::Xrstors64
    )
}
