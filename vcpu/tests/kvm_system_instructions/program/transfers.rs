//! Far transfers, interrupts, returns and system calls.

use super::super::image::{TARGET, UNMAPPED, USER_STACK, VECTORS, entry};
use super::super::mode::Mode;
use super::{Emitted, Program};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

impl Program<'_> {
    pub(super) fn code_selector(&mut self) -> u16 {
        if self.mode.has_paragraphs() {
            return if self.rng.chance(50) { 0 } else { (TARGET >> 4) as u16 };
        }
        let entry = match self.rng.below(4) {
            0 => return self.selector(),
            1 => self.rng.pick(&[
                entry::GATE,
                entry::GATE,
                entry::GATE_16,
                entry::GATE_DPL0,
                entry::GATE_ABSENT,
                // QEMU's call through it does not put CPL 3 into CS (SDM vol. 3A section 5.8.4).
                if self.mode.is_user() {
                    entry::GATE
                } else {
                    entry::GATE_CONFORMING
                },
                entry::GATE_TO_DATA,
            ]),
            _ => self.rng.pick(&[
                entry::CODE0,
                entry::CODE0,
                entry::CODE3,
                entry::CODE0_16,
                entry::CONFORMING,
                entry::CODE0_64,
                entry::CODE3_64,
                entry::CODE1,
            ]),
        };
        let level = if self.mode.is_user() { 3 } else { 0 };
        let rpl = if self.rng.chance(70) {
            level
        } else {
            self.rng.below(4) as u16
        };
        entry << 3 | rpl
    }

    pub(super) fn target(&mut self, selector: u16) -> u64 {
        if self.mode.has_paragraphs() {
            return self.rng.below(0x100) + if selector == 0 { TARGET } else { 0 };
        }
        match self.rng.below(40) {
            0 => 0x9999_0000,
            // Not beyond a limit: QEMU does not look (SDM vol. 2, JMP: #GP).
            1 if selector >> 3 != entry::CODE0_16 => 1 << 16 | TARGET,
            2 if selector >> 3 != entry::CODE0_16 => UNMAPPED,
            _ => TARGET + self.rng.below(0x100),
        }
    }

    pub(super) fn far_transfer(&mut self) -> Emitted {
        let selector = self.code_selector();
        let target = self.target(selector);
        let call = self.rng.chance(50);
        let wide = if self.mode.bits() == 16 {
            self.rng.chance(30)
        } else {
            self.rng.chance(85)
        };
        if self.mode.bits() < 64 && self.rng.chance(50) {
            let insn = match (call, wide) {
                (true, false) => Instruction::with_far_branch(Code::Call_ptr1616, selector, target as u32 & 0xffff)?,
                (true, true) => Instruction::with_far_branch(Code::Call_ptr1632, selector, target as u32)?,
                (false, false) => Instruction::with_far_branch(Code::Jmp_ptr1616, selector, target as u32 & 0xffff)?,
                (false, true) => Instruction::with_far_branch(Code::Jmp_ptr1632, selector, target as u32)?,
            };
            return self.emit(insn);
        }
        // On AMD's processors, 64-bit offsets do not exist here.
        let mut bytes = [0; 6];
        let (code, length) = match (call, wide) {
            (true, false) => (Code::Call_m1616, 2),
            (true, true) => (Code::Call_m1632, 4),
            (false, false) => (Code::Jmp_m1616, 2),
            (false, true) => (Code::Jmp_m1632, 4),
        };
        bytes[..length].copy_from_slice(&target.to_le_bytes()[..length]);
        bytes[length..length + 2].copy_from_slice(&selector.to_le_bytes());
        let at = self.place(&bytes);
        self.memory(code, at)
    }

    /// Code and stack selectors that a return could go to.
    pub(super) fn return_selectors(&mut self) -> (u16, u16) {
        if self.mode.has_paragraphs() {
            return (self.code_selector(), self.selector());
        }
        let long = self.mode.bits() == 64;
        match self.rng.below(8) {
            0 => (self.code_selector(), self.selector()),
            1 => (entry::CODE1 << 3 | 1, entry::DATA1 << 3 | 1),
            2 => (entry::CODE3 << 3 | 3, self.selector()),
            3 if self.mode.is_long() => (entry::CODE3_64 << 3 | 3, entry::DATA3 << 3 | 3),
            4 if long => (entry::CODE0 << 3, 0),
            4 => (entry::CODE0_16 << 3, entry::DATA0_16 << 3),
            5 | 6 => (entry::CODE0 << 3, entry::DATA0 << 3),
            _ => (entry::CODE3 << 3 | 3, entry::DATA3 << 3 | 3),
        }
    }

    pub(super) fn far_return(&mut self) -> Emitted {
        let bytes = self.stack_bytes();
        let (code, stack) = self.return_selectors();
        let target = self.target(code);
        self.push(bytes, stack.into())?;
        let pointer = USER_STACK + self.rng.below(8);
        self.push(bytes, pointer)?;
        let extra = self.rng.chance(30);
        if extra {
            // What the called code was given.
            self.push(bytes, 0x1111)?;
        }
        self.push(bytes, code.into())?;
        self.push(bytes, target)?;
        match (bytes, extra) {
            (2, false) => self.plain(Code::Retfw),
            (4, false) => self.plain(Code::Retfd),
            (_, false) => self.plain(Code::Retfq),
            (2, true) => self.emit(Instruction::with1(Code::Retfw_imm16, bytes as u32)?),
            (4, true) => self.emit(Instruction::with1(Code::Retfd_imm16, bytes as u32)?),
            (_, true) => self.emit(Instruction::with1(Code::Retfq_imm16, bytes as u32)?),
        }
    }

    pub(super) fn interrupt_return(&mut self) -> Emitted {
        const TF: u64 = 1 << 8;
        const VM: u64 = 1 << 17;
        let bytes = self.stack_bytes();
        let (code, stack) = self.return_selectors();
        let target = self.target(code);
        let mut flags = self.rng.next() & 0x25_7ed5 & !TF | 2;
        if !self.rng.chance(5) {
            flags &= !(1 << 14);
        }
        // At CPL 0 of protected mode. (QEMU goes to virtual-8086 mode from anywhere.)
        let to_virtual =
            matches!(self.mode, Mode::Protected16 | Mode::Protected32) && bytes == 4 && self.rng.chance(35);
        if to_virtual {
            flags |= VM;
            for _ in 0..4 {
                let selector = self.rng.next() & 0xffff;
                self.push(4, selector)?;
            }
        }
        let stack = if to_virtual { self.rng.below(16) } else { stack.into() };
        self.push(bytes, stack)?;
        let pointer = USER_STACK + self.rng.below(8);
        self.push(bytes, pointer)?;
        self.push(bytes, flags)?;
        let code = if to_virtual {
            self.rng.pick(&[0, TARGET >> 4])
        } else {
            code.into()
        };
        let target = if to_virtual && code != 0 { 0 } else { target };
        self.push(bytes, code)?;
        self.push(bytes, target)?;
        self.plain(match bytes {
            2 => Code::Iretw,
            4 => Code::Iretd,
            _ => Code::Iretq,
        })
    }

    pub(super) fn interrupt(&mut self) -> Emitted {
        match self.rng.below(12) {
            0 => self.plain(Code::Int3),
            1 => {
                // An addition that overflows, then `into`.
                self.set(Register::EAX, 0x7fff_ffff)?;
                self.register(Code::Inc_rm32, Register::EAX)?;
                self.plain(Code::Into)
            }
            2 => self.plain(Code::Ud2),
            3 => {
                self.set(Register::ECX, 0)?;
                self.register(Code::Div_rm32, Register::ECX)
            }
            4 if self.mode.is_long() => {
                let at = self.rng.pick(&[UNMAPPED, super::super::image::READ_ONLY]);
                self.set(Register::EBX, at)?;
                let operand = MemoryOperand::with_base(if self.mode.bits() == 64 {
                    Register::RBX
                } else {
                    Register::EBX
                });
                self.emit(Instruction::with2(Code::Mov_rm32_r32, operand, Register::ECX)?)
            }
            5 => self.plain(Code::Hlt),
            6 => {
                let at = self.place(&[5, 0, 0, 0, 7, 0, 0, 0]);
                let value = self.rng.below(10);
                self.set(Register::EDX, value)?;
                let operand = self.absolute(at);
                self.emit(Instruction::with2(Code::Bound_r32_m3232, Register::EDX, operand)?)
            }
            7 => {
                let vector = self.rng.next() as u8;
                self.emit(Instruction::with1(Code::Int_imm8, u32::from(vector))?)
            }
            _ => {
                let vector = VECTORS.start + self.rng.below(16) as u8;
                self.emit(Instruction::with1(Code::Int_imm8, u32::from(vector))?)
            }
        }
    }

    /// Not `sysenter` and `sysexit` in long mode, where AMD's processors do not have them; nor `sysret` to an address
    /// that is not canonical, which they do not look at.
    pub(super) fn system_call(&mut self) -> Emitted {
        match self.rng.below(6) {
            0 if !self.mode.is_long() => self.plain(Code::Sysenter),
            1 | 2 if !self.mode.is_long() => {
                self.set(Register::EDX, TARGET + 0x20)?;
                self.set(Register::ECX, USER_STACK)?;
                self.plain(Code::Sysexitd)
            }
            3 => self.plain(Code::Syscall),
            // In real mode it is #UD or #GP: no manual says what comes first.
            _ if self.mode == Mode::Real => self.plain(Code::Syscall),
            _ => {
                self.set(Register::ECX, TARGET + 0x20)?;
                let wide = self.mode.bits() == 64 && self.rng.chance(50);
                self.plain(if wide { Code::Sysretq } else { Code::Sysretd })
            }
        }
    }
}
