//! Segment registers, descriptor tables, and what looks at descriptors.

use super::super::image::{DATA, TARGET, UNMAPPED, entry};
use super::{Emitted, Program};
use iced_x86::{Code, Instruction, Register};

impl Program<'_> {
    pub(super) fn segment_register(&mut self) -> Register {
        self.rng.pick(&[
            Register::ES,
            Register::SS,
            Register::SS,
            Register::DS,
            Register::FS,
            Register::GS,
        ])
    }

    pub(super) fn load_segment(&mut self) -> Emitted {
        let (register, selector) = (self.segment_register(), self.selector());
        let poppable = self.mode.bits() < 64 || matches!(register, Register::FS | Register::GS);
        if self.rng.chance(60) || !poppable {
            self.set(Register::EAX, selector.into())?;
            return self.registers(Code::Mov_Sreg_rm16, register, Register::AX);
        }
        let bytes = self.stack_bytes();
        self.push(bytes, selector.into())?;
        let [two, four, eight] = match register {
            Register::ES => [Code::Popw_ES, Code::Popd_ES, Code::INVALID],
            Register::SS => [Code::Popw_SS, Code::Popd_SS, Code::INVALID],
            Register::DS => [Code::Popw_DS, Code::Popd_DS, Code::INVALID],
            Register::FS => [Code::Popw_FS, Code::Popd_FS, Code::Popq_FS],
            _ => [Code::Popw_GS, Code::Popd_GS, Code::Popq_GS],
        };
        let code = match bytes {
            2 => two,
            4 => four,
            _ => eight,
        };
        self.register(code, register)
    }

    pub(super) fn load_pointer(&mut self) -> Emitted {
        let selector = self.selector();
        let mut bytes = [0; 6];
        bytes[..4].copy_from_slice(&(self.rng.next() as u32).to_le_bytes());
        bytes[4..].copy_from_slice(&selector.to_le_bytes());
        let at = self.place(&bytes);
        let code = self.rng.pick(&[
            Code::Lds_r32_m1632,
            Code::Les_r32_m1632,
            Code::Lss_r32_m1632,
            Code::Lfs_r32_m1632,
            Code::Lgs_r32_m1632,
        ]);
        let operand = self.absolute(at);
        self.emit(Instruction::with2(code, Register::EDX, operand)?)
    }

    pub(super) fn load_table(&mut self) -> Emitted {
        let gdt = self.rng.chance(50);
        let at = DATA + if gdt { 0 } else { 0x10 };
        let code = match (self.mode.bits(), gdt) {
            (16, true) => self.rng.pick(&[Code::Lgdt_m1632_16, Code::Lgdt_m1632]),
            (16, false) => self.rng.pick(&[Code::Lidt_m1632_16, Code::Lidt_m1632]),
            (32, true) => Code::Lgdt_m1632,
            (32, false) => Code::Lidt_m1632,
            (_, true) => Code::Lgdt_m1664,
            (_, false) => Code::Lidt_m1664,
        };
        self.memory(code, at)
    }

    pub(super) fn store_table(&mut self) -> Emitted {
        let at = self.place(&[0; 16]);
        let gdt = self.rng.chance(50);
        let code = match (self.mode.bits(), gdt) {
            (16, true) => Code::Sgdt_m1632_16,
            (16, false) => Code::Sidt_m1632_16,
            (32, true) => Code::Sgdt_m1632,
            (32, false) => Code::Sidt_m1632,
            (_, true) => Code::Sgdt_m1664,
            (_, false) => Code::Sidt_m1664,
        };
        self.memory(code, at)
    }

    pub(super) fn store_selector(&mut self) -> Emitted {
        let (narrow, wide) = self.rng.pick(&[
            (Code::Sldt_rm16, Code::Sldt_r32m16),
            (Code::Str_rm16, Code::Str_r32m16),
            (Code::Smsw_rm16, Code::Smsw_r32m16),
        ]);
        match self.rng.below(3) {
            0 => self.register(narrow, Register::CX),
            1 => self.register(wide, Register::ECX),
            _ => {
                let at = self.place(&[0; 8]);
                self.memory(narrow, at)
            }
        }
    }

    pub(super) fn load_system_segment(&mut self) -> Emitted {
        let selector = match self.rng.below(3) {
            0 => self.selector(),
            1 => {
                self.rng
                    .pick(&[entry::LDT, entry::LDT, entry::LDT_ABSENT, entry::TASK_16])
                    << 3
            }
            _ => {
                self.rng
                    .pick(&[entry::TASK_FREE, entry::TASK_FREE, entry::TASK, entry::TASK_16])
                    << 3
            }
        };
        self.set(Register::EAX, selector.into())?;
        let code = self.rng.pick(&[Code::Lldt_rm16, Code::Ltr_rm16]);
        self.register(code, Register::AX)
    }

    pub(super) fn look_at_selector(&mut self) -> Emitted {
        let selector = self.selector();
        self.set(Register::EAX, selector.into())?;
        match self.rng.below(6) {
            0 => self.registers(Code::Lar_r32_r32m16, Register::EBX, Register::EAX),
            1 => self.registers(Code::Lar_r16_rm16, Register::BX, Register::AX),
            2 => self.registers(Code::Lsl_r32_r32m16, Register::EBX, Register::EAX),
            3 => self.register(Code::Verr_rm16, Register::AX),
            4 => self.register(Code::Verw_rm16, Register::AX),
            _ => self.registers(Code::Arpl_rm16_r16, Register::BX, Register::AX),
        }
    }

    /// Canonical bases only: QEMU takes any.
    pub(super) fn bases(&mut self) -> Emitted {
        let value = self.rng.next() >> 17;
        match self.rng.below(6) {
            0 => self.plain(Code::Swapgs),
            1 => self.register(Code::Rdfsbase_r64, Register::RBX),
            2 => self.register(Code::Rdgsbase_r32, Register::EBX),
            3 => {
                self.set(Register::EBX, value)?;
                self.register(Code::Wrfsbase_r64, Register::RBX)
            }
            4 => {
                self.set(Register::EBX, value)?;
                self.register(Code::Wrgsbase_r32, Register::EBX)
            }
            _ => {
                let at = self.rng.pick(&[DATA, UNMAPPED, TARGET]);
                self.memory(Code::Invlpg_m, at & 0xffff)
            }
        }
    }
}
