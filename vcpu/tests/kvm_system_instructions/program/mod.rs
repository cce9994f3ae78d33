//! Programs of a few random system instructions, with what each needs before it: a selector in a register, a frame on
//! the stack, a pointer in memory.

mod controls;
mod segments;
mod transfers;

use super::image::{CODE, DATA, Image, TARGET, entry};
use super::mode::Mode;
use super::rng::Rng;
use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};

/// A case under construction.
pub struct Program<'a> {
    mode: Mode,
    rng: &'a mut Rng,
    image: &'a mut Image,
    code: Vec<u8>,
    /// Next free place for operands in memory.
    data: u64,
}

/// Writes a random program into an image.
pub fn write(mode: Mode, rng: &mut Rng, image: &mut Image) {
    let mut program = Program {
        mode,
        rng,
        image,
        code: Vec::new(),
        data: DATA + 0x200,
    };
    for _ in 0..=program.rng.below(4) {
        let before = program.code.len();
        // A form that this mode does not have is left out.
        if program.instruction().is_err() {
            program.code.truncate(before);
        }
    }
    let code = std::mem::take(&mut program.code);
    image.put(CODE, &code);
}

type Emitted = Result<(), IcedError>;

impl Program<'_> {
    fn instruction(&mut self) -> Emitted {
        match self.rng.below(26) {
            0..3 => self.load_segment(),
            3 => self.load_pointer(),
            4 => self.load_table(),
            5 => self.store_table(),
            6 => self.store_selector(),
            7 => self.load_system_segment(),
            8 | 9 => self.control_register(),
            10 => self.machine_status(),
            11 | 12 => self.far_transfer(),
            13 => self.far_return(),
            14..17 => self.interrupt_return(),
            17 | 18 => self.interrupt(),
            19 => self.flags(),
            20 => self.port(),
            21 | 22 => self.look_at_selector(),
            23 => self.system_call(),
            24 => self.model_specific(),
            _ => self.bases(),
        }
    }

    fn emit(&mut self, insn: Instruction) -> Emitted {
        let mut encoder = Encoder::new(self.mode.bits());
        encoder.encode(&insn, CODE + self.code.len() as u64)?;
        self.code.extend(encoder.take_buffer());
        Ok(())
    }

    fn plain(&mut self, code: Code) -> Emitted {
        self.emit(Instruction::with(code))
    }

    fn register(&mut self, code: Code, register: Register) -> Emitted {
        self.emit(Instruction::with1(code, register)?)
    }

    fn registers(&mut self, code: Code, first: Register, second: Register) -> Emitted {
        self.emit(Instruction::with2(code, first, second)?)
    }

    /// EAX or RAX and so on get a value.
    fn set(&mut self, register: Register, value: u64) -> Emitted {
        if self.mode.bits() == 64 {
            return self.emit(Instruction::with2(
                Code::Mov_r64_imm64,
                register.full_register(),
                value,
            )?);
        }
        self.emit(Instruction::with2(
            Code::Mov_r32_imm32,
            register.full_register32(),
            value as u32,
        )?)
    }

    fn absolute(&self, at: u64) -> MemoryOperand {
        let bytes = match self.mode.bits() {
            16 => 2,
            32 => 4,
            _ => 8,
        };
        MemoryOperand::with_displ(at, bytes)
    }

    fn memory(&mut self, code: Code, at: u64) -> Emitted {
        let operand = self.absolute(at);
        self.emit(Instruction::with1(code, operand)?)
    }

    /// Puts bytes where the program will find them.
    fn place(&mut self, bytes: &[u8]) -> u64 {
        let at = self.data;
        self.image.put(at, bytes);
        self.data += 0x20;
        at
    }

    /// Pushes a word of so many bytes.
    fn push(&mut self, bytes: u64, value: u64) -> Emitted {
        self.set(Register::EAX, value)?;
        match bytes {
            2 => self.register(Code::Push_r16, Register::AX),
            4 => self.register(Code::Push_r32, Register::EAX),
            _ => self.register(Code::Push_r64, Register::RAX),
        }
    }

    /// An operand size that the mode has for stack operations, mostly its own.
    fn stack_bytes(&mut self) -> u64 {
        let own = u64::from(self.mode.bits()) / 8;
        if self.rng.chance(80) {
            own
        } else if own == 2 {
            4
        } else {
            2
        }
    }

    fn selector(&mut self) -> u16 {
        if self.mode.has_paragraphs() {
            return match self.rng.below(4) {
                0 => self.rng.next() as u16,
                1 => (TARGET >> 4) as u16,
                _ => self.rng.below(4) as u16,
            };
        }
        let level = if self.mode.is_user() { 3 } else { 0 };
        let rpl = if self.rng.chance(60) {
            level
        } else {
            self.rng.below(4) as u16
        };
        match self.rng.below(20) {
            // QEMU lets SS have a null selector whose RPL is not the CPL in 64-bit mode (SDM vol. 2, MOV: #GP).
            0 if self.mode == Mode::Long => 0,
            0 => self.rng.below(4) as u16,
            1 => (self.rng.below(6) as u16) << 3 | 4 | rpl,
            2 => self.rng.next() as u16,
            3..6 => (entry::RANDOM + self.rng.below(20) as u16) << 3 | rpl,
            6..13 => {
                (self
                    .rng
                    .pick(&[entry::DATA0, entry::DATA3, entry::DATA0_16, entry::DATA1]))
                    << 3
                    | rpl
            }
            _ => (1 + self.rng.below(u64::from(entry::RANDOM)) as u16) << 3 | rpl,
        }
    }
}
