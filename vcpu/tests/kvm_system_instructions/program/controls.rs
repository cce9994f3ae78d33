//! Control registers, flags, ports and MSRs.

use super::{Emitted, Program};
use iced_x86::{Code, Register};

impl Program<'_> {
    pub(super) fn control_register(&mut self) -> Emitted {
        let mut number = self.rng.pick(&[0, 0, 2, 3, 4, 4, 8, 1]);
        // QEMU looks at the privilege first, where the manuals have #UD for a register that does not exist; and outside
        // 64-bit mode only AMD's processors have an encoding for CR8.
        if (number == 1 && self.mode.is_user()) || (number == 8 && self.mode.bits() < 64) {
            number = 0;
        }
        let register = [
            Register::CR0,
            Register::CR1,
            Register::CR2,
            Register::CR3,
            Register::CR4,
            Register::CR5,
            Register::CR6,
            Register::CR7,
            Register::CR8,
        ][number];
        let wide = self.mode.bits() == 64;
        let general = if wide { Register::RBX } else { Register::EBX };
        if self.rng.chance(35) {
            let code = if wide { Code::Mov_r64_cr } else { Code::Mov_r32_cr };
            return self.registers(code, general, register);
        }
        let sys = self.image.state.sys;
        let value = match number {
            0 => match self.rng.below(8) {
                // PG without PE, NW without CD, bits that do not exist (but for the upper half, at which QEMU does not look).
                0 => sys.cr0 & !1 | 1 << 31,
                1 => sys.cr0 | 1 << 29,
                2 => sys.cr0 | self.rng.next() & 0x1ffa_ffc0,
                3 if !self.mode.is_long() => sys.cr0 ^ 1,
                _ => sys.cr0 ^ (self.rng.next() & 0x0005_002e),
            },
            // Nothing reserved: QEMU takes it, and KVM cannot enter the guest then.
            3 => sys.cr3 | self.rng.next() & 0x18,
            4 => match self.rng.below(8) {
                0 => sys.cr4 ^ 1 << 5,
                1 => sys.cr4 | 1 << self.rng.pick(&[13, 15, 19, 23, 24, 30]),
                2 => sys.cr4 | 1 << (32 + self.rng.below(32)),
                _ => sys.cr4 ^ (self.rng.next() & 0x70c),
            },
            // Nothing else resets CR8 between programs: without an interrupt controller KVM takes it from the run page.
            8 => 16 + self.rng.below(4),
            _ => self.rng.value(),
        };
        self.set(general, value)?;
        let code = if wide { Code::Mov_cr_r64 } else { Code::Mov_cr_r32 };
        self.registers(code, register, general)
    }

    pub(super) fn machine_status(&mut self) -> Emitted {
        if self.rng.chance(40) {
            return self.plain(Code::Clts);
        }
        let pe = self.image.state.sys.cr0 & 1;
        let value = self.rng.next() & 0xffff_000e | pe;
        self.set(Register::EDX, value & 0xffff_ffff)?;
        self.register(Code::Lmsw_rm16, Register::DX)
    }

    pub(super) fn flags(&mut self) -> Emitted {
        match self.rng.below(4) {
            0 => self.plain(Code::Cli),
            1 => self.plain(Code::Sti),
            2 => {
                let code = match self.stack_bytes() {
                    2 => Code::Pushfw,
                    4 => Code::Pushfd,
                    _ => Code::Pushfq,
                };
                self.plain(code)
            }
            _ => {
                const TF: u64 = 1 << 8;
                let bytes = self.stack_bytes();
                let flags = self.rng.next() & 0x27_7ed5 & !TF;
                self.push(bytes, flags)?;
                self.plain(match bytes {
                    2 => Code::Popfw,
                    4 => Code::Popfd,
                    _ => Code::Popfq,
                })
            }
        }
    }

    pub(super) fn port(&mut self) -> Emitted {
        let port = self.rng.below(0x4c0);
        self.set(Register::EDX, port)?;
        let (code, register, input) = self.rng.pick(&[
            (Code::In_AL_DX, Register::AL, true),
            (Code::In_AX_DX, Register::AX, true),
            (Code::In_EAX_DX, Register::EAX, true),
            (Code::Out_DX_AL, Register::AL, false),
            (Code::Out_DX_AX, Register::AX, false),
            (Code::Out_DX_EAX, Register::EAX, false),
        ]);
        if input {
            self.registers(code, register, Register::DX)
        } else {
            self.registers(code, Register::DX, register)
        }
    }

    /// Only canonical values: kvm-amd lets the guest write most of these itself, and QEMU takes any. And of `sysenter`'s
    /// stack and target only 32 bits, all that AMD's processors have.
    pub(super) fn model_specific(&mut self) -> Emitted {
        let index = self.rng.pick(&[
            0xc000_0081u64,
            0xc000_0082,
            0xc000_0083,
            0xc000_0084,
            0xc000_0100,
            0xc000_0101,
            0xc000_0102,
            0x174,
            0x175,
            0x176,
            0xdead_0000,
        ]);
        self.set(Register::ECX, index)?;
        if self.rng.chance(50) {
            return self.plain(Code::Rdmsr);
        }
        // QEMU keeps 16 bits of `sysenter`'s selector.
        let value = self.rng.next()
            >> match index {
                0x174 => 48,
                0x175 | 0x176 | 0xc000_0084 => 32,
                _ => 17,
            };
        self.set(Register::EAX, value & 0xffff_ffff)?;
        self.set(Register::EDX, value >> 32)?;
        self.plain(Code::Wrmsr)
    }
}
