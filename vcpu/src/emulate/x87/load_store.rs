//! Loads, stores, and conversions from and to integers and packed decimals.

use super::super::environment::{AccessKind, Memory, Platform, Stop};
use super::super::float::{DOUBLE, EXTENDED, Env, Format, Mode, Number, SINGLE, convert, flag, round};
use super::super::fpu::F80;
use super::super::width::Width;
use super::super::{Cpu, Flow};
use super::STACK_FAULT;
use iced_x86::{Instruction, Mnemonic as M, OpKind};

const INDEFINITE: F80 = Number::INDEFINITE.to_f80();
/// The largest number that 18 decimal digits hold.
const DECIMAL_LIMIT: u64 = 999_999_999_999_999_999;

/// The format of a 4- or 8-byte operand.
pub(super) const fn format_of(width: Width) -> Format {
    match width {
        Width::B4 => SINGLE,
        _ => DOUBLE,
    }
}

impl<E: Memory + Platform> Cpu<E> {
    fn read_ten(&mut self, insn: &Instruction) -> Result<[u8; 10], Stop> {
        let at = self.memory_operand(insn, 10, AccessKind::Read)?;
        self.check_alignment(at, 8)?;
        let access = self.access(AccessKind::Read);
        let mut bytes = [0; 10];
        self.read_memory(at, &mut bytes, access)?;
        Ok(bytes)
    }

    fn write_ten(&mut self, insn: &Instruction, bytes: &[u8; 10]) -> Result<(), Stop> {
        let at = self.memory_operand(insn, 10, AccessKind::Write)?;
        self.check_alignment(at, 8)?;
        let access = self.access(AccessKind::Write);
        self.write_memory(at, bytes, access)
    }

    /// Ends an instruction that pushes `value`, or what stands for it if there is no room.
    fn load_st(&mut self, insn: &Instruction, mut env: Env, value: F80) {
        // A register that is empty counts before one that is not.
        let room = env.flags & STACK_FAULT != 0 || self.check_room(&mut env);
        let refused = env.flags & flag::IE & !env.masks != 0;
        // A denormal is loaded even if its exception is not masked.
        self.x87_end(insn, &env);
        if !refused {
            self.push_st(if room { value } else { INDEFINITE });
        }
    }

    pub(in super::super) fn fld(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let value = if insn.op0_kind() == OpKind::Register || insn.op_count() > 1 {
            let source = insn.op_register(insn.op_count() - 1).number();
            let value = self.st(source);
            if value.is_none() {
                env.flags |= flag::IE | STACK_FAULT;
            }
            value.unwrap_or(INDEFINITE)
        } else if insn.memory_size().size() == 10 {
            extended(&self.read_ten(insn)?)
        } else {
            let width = Self::width(insn, 0);
            let format = format_of(width);
            let bits = self.value(insn, 0, width)?;
            // Overflow of the stack comes before what the operand may raise.
            if self.st(7).is_some() {
                INDEFINITE
            } else {
                round::convert(&mut env, Number::unpack(bits, format), EXTENDED).to_f80()
            }
        };
        self.load_st(insn, env, value);
        Ok(Flow::Next)
    }

    pub(in super::super) fn fild(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let width = Self::width(insn, 0);
        let value = width.extend(self.value(insn, 0, width)?) as i64;
        let env = self.x87_env();
        self.load_st(insn, env, convert::exact(value).to_f80());
        Ok(Flow::Next)
    }

    pub(in super::super) fn fbld(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let bytes = self.read_ten(insn)?;
        let digits = bytes[..9].iter().rev();
        let value = digits.fold(0, |value, byte| {
            value * 100 + i64::from(byte >> 4) * 10 + i64::from(byte & 15)
        });
        let number = convert::exact(value);
        let number = Number {
            negative: bytes[9] & 0x80 != 0,
            ..number
        };
        let env = self.x87_env();
        self.load_st(insn, env, number.to_f80());
        Ok(Flow::Next)
    }

    /// Constants are rounded as the control word says; their precision is always full.
    pub(in super::super) fn fld_constant(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let env = self.x87_env();
        // The significand and 64 bits more.
        let (exponent, significand): (i32, u128) = match insn.mnemonic() {
            M::Fldz => (0, 0),
            M::Fld1 => (0, 1 << 127),
            M::Fldpi => (1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
            M::Fldl2e => (0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88),
            M::Fldl2t => (1, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4c),
            M::Fldlg2 => (-2, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178),
            _ => (-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af),
        };
        let value = if significand == 0 {
            Number::zero(false)
        } else {
            // Nobody hears that it was rounded.
            round::round(&mut env.clone(), false, exponent, significand, EXTENDED)
        };
        self.load_st(insn, env, value.to_f80());
        Ok(Flow::Next)
    }

    pub(in super::super) fn fst(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let pop = insn.mnemonic() == M::Fstp;
        let mut env = self.x87_env();
        let to_memory = insn.op0_kind() == OpKind::Memory;
        let source = self.st(0);
        if source.is_none() {
            env.flags |= flag::IE | STACK_FAULT;
        }
        let source = source.unwrap_or(INDEFINITE);
        if !to_memory {
            if self.x87_end(insn, &env) {
                self.set_st(insn.op0_register().number(), source);
                if pop {
                    self.pop_st();
                }
            }
            return Ok(Flow::Next);
        }
        if insn.memory_size().size() == 10 {
            if env.refused() {
                self.probe_store(insn, 10)?;
            } else {
                self.write_ten(insn, &image(source))?;
            }
        } else {
            let width = Self::width(insn, 0);
            let number = Number {
                denormal: false,
                ..Number::from_f80(source)
            };
            let bits = if env.flags == 0 {
                let format = format_of(width);
                round::convert(&mut env, number, format).pack(format)
            } else {
                Number::INDEFINITE.pack(format_of(width))
            };
            if Self::out_of_range(&env) {
                // Nothing was rounded, as nothing is stored.
                env.flags &= !(flag::PE | flag::UP);
            }
            if env.refused() || Self::out_of_range(&env) {
                self.probe_store(insn, width.size())?;
            } else {
                self.set_value(insn, 0, width, bits)?;
            }
        }
        let stored = !Self::out_of_range(&env);
        if self.x87_end(insn, &env) && stored && pop {
            self.pop_st();
        }
        Ok(Flow::Next)
    }

    /// A store that does not happen because of an exception still needs memory that could be written.
    fn probe_store(&mut self, insn: &Instruction, length: usize) -> Result<(), Stop> {
        let at = self.memory_operand(insn, length, AccessKind::Write)?;
        let access = self.access(AccessKind::Write);
        self.env.probe(at, length, access)
    }

    pub(in super::super) fn fist(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let width = Self::width(insn, 0);
        let mut env = self.x87_env();
        let mode = if insn.mnemonic() == M::Fisttp {
            Mode::Zero
        } else {
            env.mode
        };
        let number = self.operand(&mut env, 0);
        let value = number.and_then(|number| convert::to_integer(&mut env, &number, width.bits(), mode));
        if env.refused() {
            self.probe_store(insn, width.size())?;
        } else {
            let bits = value.map_or(width.sign(), |value| width.cut(value as u64));
            self.set_value(insn, 0, width, bits)?;
        }
        if self.x87_end(insn, &env) && insn.mnemonic() != M::Fist {
            self.pop_st();
        }
        Ok(Flow::Next)
    }

    pub(in super::super) fn fbstp(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let mode = env.mode;
        let number = self.operand(&mut env, 0);
        let mut trial = env;
        let value = number.and_then(|number| convert::to_integer(&mut trial, &number, 64, mode));
        let value = value.filter(|value| value.unsigned_abs() <= DECIMAL_LIMIT);
        if value.is_some() {
            env = trial;
        } else {
            env.flags |= flag::IE;
        }
        let mut bytes = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
        if let (Some(value), Some(number)) = (value, number) {
            let mut rest = value.unsigned_abs();
            for byte in &mut bytes[..9] {
                *byte = (rest / 10 % 10) as u8 * 16 + (rest % 10) as u8;
                rest /= 100;
            }
            bytes[9] = if number.negative { 0x80 } else { 0 };
        }
        if env.refused() {
            self.probe_store(insn, 10)?;
        } else {
            self.write_ten(insn, &bytes)?;
        }
        if self.x87_end(insn, &env) {
            self.pop_st();
        }
        Ok(Flow::Next)
    }
}

/// A register's content from its ten bytes.
pub(super) fn extended(bytes: &[u8; 10]) -> F80 {
    let [a, b, c, d, e, f, g, h, i, j] = *bytes;
    F80 {
        mantissa: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        sign_exponent: u16::from_le_bytes([i, j]),
    }
}

/// A register's content as ten bytes.
pub(super) fn image(value: F80) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&value.mantissa.to_le_bytes());
    bytes[8..].copy_from_slice(&value.sign_exponent.to_le_bytes());
    bytes
}
