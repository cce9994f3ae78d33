//! [`Mode`]: whether fast ops can run in the present state of the CPU, and with which rights.

use crate::emulate::state::{CodeSize, cr0};
use crate::emulate::{CpuState, flags};
use crate::regs::Segment;

/// Flags with which each instruction needs a look: single-step, resume.
const SPECIAL: u64 = flags::TF | flags::RF;
/// Bits of a data segment's type: code, grows down, writable.
const TYPE: u8 = 8 | 4 | 2;
const WRITABLE: u8 = 2;

/// What the meaning of addresses depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::soft) struct Mode {
    pub size: CodeSize,
    /// As the TLB numbers them.
    pub rights: u8,
    /// Where the code segment begins, if that is not 0.
    pub origin: u64,
}

impl Mode {
    /// The mode, if it is one for fast ops.
    #[inline(always)]
    pub fn of(state: &CpuState) -> Option<Self> {
        // Fast ops look at no breakpoint.
        if state.interrupt_shadow || state.rflags & SPECIAL != 0 || state.has_breakpoints() {
            return None;
        }
        let size = state.code_size();
        if size != CodeSize::Bits64 && !fits(state, size) {
            return None;
        }
        let (user, flag) = (state.cpl() == 3, state.flag(flags::AC));
        if user && flag && state.sys.cr0 & cr0::AM != 0 {
            // Alignment is checked.
            return None;
        }
        Some(Self {
            size,
            rights: if user { 0 } else { 1 + u8::from(flag) },
            origin: match size {
                CodeSize::Bits16 => state.sys.cs.base,
                _ => 0,
            },
        })
    }

    /// A number for what code is in this mode, below 16: it may be fetched by a user or not, whatever data may be accessed
    /// besides.
    #[inline]
    pub fn number(self) -> u64 {
        let size = match self.size {
            CodeSize::Bits16 => 0,
            CodeSize::Bits32 => 1 << 2,
            CodeSize::Bits64 => 2 << 2,
        };
        u64::from(self.rights != 0) | size
    }
}

/// Whether the segments are such that there are fast ops for code of 16 or 32 bits.
fn fits(state: &CpuState, size: CodeSize) -> bool {
    match size {
        CodeSize::Bits32 => is_flat(state),
        // Ops of 16-bit code reach no memory, and jump no further than 16 bits.
        _ => state.real_segments() && state.sys.cs.limit >= 0xffff,
    }
}

/// Whether offsets are linear addresses in every segment but FS and GS.
fn is_flat(state: &CpuState) -> bool {
    let sys = &state.sys;
    let whole = |segment: &Segment| segment.base == 0 && segment.limit == u32::MAX && !segment.unusable;
    let data = |segment: &Segment| whole(segment) && segment.present && segment.kind & TYPE == WRITABLE;
    !state.real_segments() && whole(&sys.cs) && [&sys.ds, &sys.es, &sys.ss].into_iter().all(data) && sys.ss.db
}
