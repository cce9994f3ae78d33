//! The state of one CPU as the core works on it, and what mode it is in.

use super::exception::Exception;
use super::flags;
use super::fpu::FpuState;
use super::width::Width;
use crate::regs::{Regs, Segment, SystemRegs};
use iced_x86::Register;

/// Everything an instruction can see or change inside the CPU.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct CpuState {
    /// General-purpose registers by their number in the encoding: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS. Bit 1 is always set.
    pub rflags: u64,
    /// Segments, descriptor tables, control registers, EFER.
    pub sys: SystemRegs,
    /// Debug registers by number; 4 and 5 are not used.
    pub debug: [u64; 8],
    /// The PDPTE registers of PAE paging, as they were loaded last; not used otherwise.
    pub pdptes: [u64; 4],
    /// The MSRs that instructions use.
    pub msrs: CoreMsrs,
    /// x87, SSE and the extended state.
    pub fpu: FpuState,
    /// The instruction just executed holds off interrupts (and, after a load of SS, debug traps) for one instruction.
    pub interrupt_shadow: bool,
    /// Debug traps that have not been reported: bits of [`super::exception::debug_cause`]. They wait for the end of the
    /// instruction, and after a load of SS for the end of the next one.
    pub pending_debug: u64,
    /// The exception that a task switch met when it could not be undone any more.
    pub late_fault: Option<Exception>,
}

/// MSRs that the system-call instructions and `swapgs` use (SDM vol. 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoreMsrs {
    /// 0xc000_0081: selectors of `syscall`.
    pub star: u64,
    /// 0xc000_0082: target of `syscall` from 64-bit code.
    pub lstar: u64,
    /// 0xc000_0083: target of `syscall` from compatibility mode.
    pub cstar: u64,
    /// 0xc000_0084: flags that `syscall` clears.
    pub sfmask: u64,
    /// 0xc000_0102: the other GS base.
    pub kernel_gs_base: u64,
    /// 0xc000_0103: what `rdtscp` and `rdpid` say.
    pub tsc_aux: u64,
    /// 0x174: code selector of `sysenter`.
    pub sysenter_cs: u64,
    /// 0x175: stack of `sysenter`.
    pub sysenter_esp: u64,
    /// 0x176: target of `sysenter`.
    pub sysenter_eip: u64,
}

/// What the current code segment makes of operands and addresses (SDM vol. 3A section 3.4.5, vol. 1 section 3.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode or a 16-bit segment.
    Bits16,
    /// A 32-bit segment.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// CR0 bits (SDM vol. 3A section 2.5).
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// No x87.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Always 1.
    pub const ET: u64 = 1 << 4;
    /// x87 errors by #MF.
    pub const NE: u64 = 1 << 5;
    /// Write protection of supervisor accesses.
    pub const WP: u64 = 1 << 16;
    /// Alignment checks are possible.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits (SDM vol. 3A section 2.5).
pub mod cr4 {
    /// Virtual-8086 extensions.
    pub const VME: u64 = 1 << 0;
    /// Virtual interrupts in protected mode.
    pub const PVI: u64 = 1 << 1;
    /// Time-stamp counter only at CPL 0.
    pub const TSD: u64 = 1 << 2;
    /// Debug registers 4 and 5 do not exist.
    pub const DE: u64 = 1 << 3;
    /// 4 MiB pages.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Machine checks.
    pub const MCE: u64 = 1 << 6;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// Performance counters at CPL 3.
    pub const PCE: u64 = 1 << 8;
    /// `fxsave` and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// SIMD exceptions by #XM.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// No descriptor-table stores at CPL 3.
    pub const UMIP: u64 = 1 << 11;
    /// 5-level paging.
    pub const LA57: u64 = 1 << 12;
    /// `rdfsbase` and relatives.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// `xsave` and extended state.
    pub const OSXSAVE: u64 = 1 << 18;
    /// No supervisor fetches from user pages.
    pub const SMEP: u64 = 1 << 20;
    /// No supervisor accesses to user pages.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user pages.
    pub const PKE: u64 = 1 << 22;
}

/// DR7 bits (SDM vol. 3B section 18.2.4).
pub mod dr7 {
    /// L0, G0 to L3, G3: breakpoints are enabled.
    pub const ENABLED: u64 = 0xff;
    /// L0 to L3 and LE, which a task switch clears.
    pub const LOCAL: u64 = 0x155;
    /// Always 1.
    pub const FIXED: u64 = 1 << 10;
    /// GD: the next access to a debug register is a #DB.
    pub const GENERAL_DETECT: u64 = 1 << 13;
}

/// EFER bits (SDM vol. 3A section 2.2.1, APM vol. 2 section 3.1.7).
pub mod efer {
    /// `syscall` exists.
    pub const SCE: u64 = 1 << 0;
    /// Long mode once paging is on.
    pub const LME: u64 = 1 << 8;
    /// Long mode is on.
    pub const LMA: u64 = 1 << 10;
    /// No-execute.
    pub const NXE: u64 = 1 << 11;
    /// Fast `fxsave`.
    pub const FFXSR: u64 = 1 << 14;
}

/// Whether PAE paging is on, which has PDPTE registers (SDM vol. 3A section 4.1.1).
#[inline]
pub const fn pae_paging(sys: &SystemRegs) -> bool {
    sys.cr0 & cr0::PG != 0 && sys.cr4 & cr4::PAE != 0 && sys.efer & efer::LMA == 0
}

/// Where a register lives: index, bits to shift right, width.
#[derive(Clone, Copy)]
struct Slot {
    index: u8,
    shift: u8,
    width: Width,
}

/// [`Slot`]s by iced's register number; registers that are not general-purpose get RAX's.
static SLOTS: [Slot; 256] = slots();

const fn slots() -> [Slot; 256] {
    let mut table = [Slot {
        index: 0,
        shift: 0,
        width: Width::B8,
    }; 256];
    let mut n = 0;
    while n < 20 {
        // AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8L..R15L
        let high = n >= 4 && n < 8;
        table[Register::AL as usize + n] = Slot {
            index: if n < 4 { n as u8 } else { n as u8 - 4 },
            shift: if high { 8 } else { 0 },
            width: Width::B1,
        };
        n += 1;
    }
    let mut n = 0;
    while n < 16 {
        let (index, shift) = (n as u8, 0);
        table[Register::AX as usize + n] = Slot {
            index,
            shift,
            width: Width::B2,
        };
        table[Register::EAX as usize + n] = Slot {
            index,
            shift,
            width: Width::B4,
        };
        table[Register::RAX as usize + n] = Slot {
            index,
            shift,
            width: Width::B8,
        };
        n += 1;
    }
    table
}

/// RAX.
pub const RAX: usize = 0;
/// RCX.
pub const RCX: usize = 1;
/// RDX.
pub const RDX: usize = 2;
/// RBX.
pub const RBX: usize = 3;
/// RSP.
pub const RSP: usize = 4;
/// RBP.
pub const RBP: usize = 5;
/// RSI.
pub const RSI: usize = 6;
/// RDI.
pub const RDI: usize = 7;

/// The width of a general-purpose register.
#[inline]
pub fn register_width(register: Register) -> Width {
    SLOTS[register as usize & 0xff].width
}

impl CpuState {
    /// The state that has `regs` and `sys`, and everything else at zero.
    pub fn new(regs: &Regs, sys: &SystemRegs) -> Self {
        let mut state = Self {
            sys: *sys,
            ..Self::default()
        };
        state.set_regs(regs);
        state
    }

    /// General-purpose registers, RIP and RFLAGS.
    pub fn regs(&self) -> Regs {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = self.gpr;
        Regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip: self.rip,
            rflags: self.rflags,
        }
    }

    /// Replaces general-purpose registers, RIP and RFLAGS.
    pub fn set_regs(&mut self, r: &Regs) {
        self.gpr = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15,
        ];
        self.rip = r.rip;
        self.rflags = r.rflags | flags::FIXED;
    }

    /// A general-purpose register of any width, zero-extended.
    #[inline]
    pub fn get(&self, register: Register) -> u64 {
        let slot = SLOTS[register as usize & 0xff];
        slot.width.cut(self.gpr[usize::from(slot.index & 15)] >> slot.shift)
    }

    /// Writes a general-purpose register: 32-bit writes clear the upper half, narrower ones leave the rest alone.
    #[inline]
    pub fn set(&mut self, register: Register, value: u64) {
        let slot = SLOTS[register as usize & 0xff];
        let whole = &mut self.gpr[usize::from(slot.index & 15)];
        *whole = match slot.width {
            Width::B8 => value,
            Width::B4 => value & 0xffff_ffff,
            width => {
                let mask = width.mask() << slot.shift;
                (*whole & !mask) | ((value << slot.shift) & mask)
            }
        };
    }

    /// Writes the low part of register number `index` by the rules of [`CpuState::set`].
    #[inline]
    pub fn set_low(&mut self, index: usize, value: u64, width: Width) {
        let whole = &mut self.gpr[index & 15];
        *whole = match width {
            Width::B8 => value,
            Width::B4 => value & 0xffff_ffff,
            width => (*whole & !width.mask()) | width.cut(value),
        };
    }

    /// The low part of register number `index`.
    #[inline]
    pub fn low(&self, index: usize, width: Width) -> u64 {
        width.cut(self.gpr[index & 15])
    }

    /// Whether a flag (or any of several) is set.
    #[inline]
    pub const fn flag(&self, flag: u64) -> bool {
        self.rflags & flag != 0
    }

    /// Replaces the flags in `mask` by those in `value`.
    #[inline]
    pub fn set_flags(&mut self, mask: u64, value: u64) {
        self.rflags = (self.rflags & !mask) | (value & mask);
    }

    /// Protected mode is on (virtual-8086 mode counts).
    #[inline]
    pub const fn protected(&self) -> bool {
        self.sys.cr0 & cr0::PE != 0
    }

    /// Virtual-8086 mode.
    #[inline]
    pub const fn virtual_8086(&self) -> bool {
        self.protected() && self.rflags & flags::VM != 0
    }

    /// Real or virtual-8086 mode: segments are paragraph numbers.
    #[inline]
    pub const fn real_segments(&self) -> bool {
        !self.protected() || self.rflags & flags::VM != 0
    }

    /// IA-32e mode is active.
    #[inline]
    pub const fn long_mode(&self) -> bool {
        self.sys.efer & efer::LMA != 0
    }

    /// 64-bit mode.
    #[inline]
    pub const fn long_code(&self) -> bool {
        self.sys.efer & efer::LMA != 0 && self.sys.cs.long
    }

    /// Default operand and address size of the code segment.
    #[inline]
    pub const fn code_size(&self) -> CodeSize {
        if self.long_code() {
            CodeSize::Bits64
        } else if self.sys.cs.db {
            // Also in real mode right after leaving protected mode: the hidden bit rules until CS is loaded.
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// Bytes from RIP to the end of the code segment; 64-bit mode has no end.
    #[inline]
    pub const fn code_room(&self) -> u64 {
        if self.long_code() {
            return u64::MAX;
        }
        (self.sys.cs.limit as u64).saturating_sub(self.rip).saturating_add(1)
    }

    /// Whether SSE instructions may be executed without #UD and #NM (SDM vol. 3A section 13.1).
    #[inline]
    pub const fn has_vectors(&self) -> bool {
        self.sys.cr0 & (cr0::EM | cr0::TS) == 0 && self.sys.cr4 & cr4::OSFXSR != 0
    }

    /// Current privilege level.
    #[inline]
    pub const fn cpl(&self) -> u8 {
        if !self.protected() {
            0
        } else if self.rflags & flags::VM != 0 {
            3
        } else {
            self.sys.ss.dpl & 3
        }
    }

    /// I/O privilege level.
    #[inline]
    pub const fn iopl(&self) -> u8 {
        ((self.rflags & flags::IOPL) >> 12) as u8
    }

    /// Width of stack addresses: SS.B, or 8 bytes in 64-bit mode.
    #[inline]
    pub const fn stack_width(&self) -> Width {
        if self.long_code() {
            Width::B8
        } else if self.sys.ss.db {
            Width::B4
        } else {
            Width::B2
        }
    }

    /// Bits of a linear address that mean something in long mode: 48, or 57 with 5-level paging.
    #[inline]
    pub const fn linear_bits(&self) -> u32 {
        if self.sys.cr4 & cr4::LA57 != 0 { 57 } else { 48 }
    }

    /// Whether a 64-bit address is canonical.
    #[inline]
    pub const fn canonical(&self, address: u64) -> bool {
        let shift = 64 - self.linear_bits();
        ((address << shift) as i64 >> shift) as u64 == address
    }

    /// A segment register.
    #[inline]
    pub const fn segment(&self, register: Register) -> &Segment {
        match register {
            Register::ES => &self.sys.es,
            Register::CS => &self.sys.cs,
            Register::SS => &self.sys.ss,
            Register::FS => &self.sys.fs,
            Register::GS => &self.sys.gs,
            _ => &self.sys.ds,
        }
    }

    /// A segment register, to be replaced.
    pub const fn segment_mut(&mut self, register: Register) -> &mut Segment {
        match register {
            Register::ES => &mut self.sys.es,
            Register::CS => &mut self.sys.cs,
            Register::SS => &mut self.sys.ss,
            Register::FS => &mut self.sys.fs,
            Register::GS => &mut self.sys.gs,
            _ => &mut self.sys.ds,
        }
    }
}
