//! Fetching and decoding the instruction at CS:RIP.

use super::environment::{Access, AccessKind, Memory, Platform, Stop};
use super::exception::Exception;
use super::state::CodeSize;
use super::{Cpu, Decoded};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Register};
use umbra_memslots::Gva;

/// The longest instruction.
const MAX: usize = 15;

impl<E: Memory + Platform> Cpu<E> {
    /// Decodes the instruction at CS:RIP. Bytes on the next page are fetched only if the instruction needs them.
    ///
    /// # Errors
    /// A fault of the fetch, or #GP for an instruction longer than 15 bytes. (An invalid one decodes to
    /// [`iced_x86::Code::INVALID`].)
    pub fn fetch(&mut self) -> Result<Instruction, Stop> {
        let offset = self.state.rip;
        let mut bytes = [0; MAX];
        let mut have = 0;
        let access = self.access(AccessKind::Fetch);
        loop {
            // The segment's end cuts an instruction as a page's end does.
            let at = self.linear(Register::CS, offset.wrapping_add(have as u64), 1, AccessKind::Fetch)?;
            let to_page_end = 4096 - at.page_offset() as usize;
            let to_limit = if self.state.long_code() {
                MAX
            } else {
                let last = u64::from(self.state.sys.cs.limit);
                usize::try_from(last.saturating_sub(offset + have as u64) + 1).unwrap_or(MAX)
            };
            let chunk = to_page_end.min(to_limit).min(MAX - have);
            self.env.read(at, &mut bytes[have..have + chunk], access)?;
            have += chunk;
            let (insn, error) = decode(self.state.code_size(), offset, &bytes[..have]);
            match error {
                DecoderError::NoMoreBytes if have < MAX => {}
                DecoderError::NoMoreBytes => return Err(Exception::gp(0).into()),
                // All 15 bytes were looked at and they are no instruction yet.
                DecoderError::InvalidInstruction if insn.len() >= MAX => return Err(Exception::gp(0).into()),
                _ => return Ok(insn),
            }
        }
    }
}

impl<E: Memory + Platform> Cpu<E> {
    /// The linear address of CS:RIP.
    ///
    /// # Errors
    /// #GP if it lies beyond the segment's limit or is not canonical.
    #[inline]
    pub fn code_address(&self) -> Result<Gva, Stop> {
        self.linear(Register::CS, self.state.rip, 1, AccessKind::Fetch)
    }

    /// How the paging unit sees a fetch at the present privilege level.
    #[inline]
    pub fn fetch_access(&self) -> Access {
        self.access(AccessKind::Fetch)
    }

    /// Decodes instructions from CS:RIP on and gives each to `take`, with how far from there it ends; that says where to go
    /// on, likewise, or that it is enough. `bytes` is what lies at CS:RIP; an instruction that doesn't end within it is not
    /// given.
    pub fn decode_run(&self, bytes: &[u8], mut take: impl FnMut(Decoded<E>, usize) -> Option<usize>) {
        let mut decoder = decoder(self.state.code_size(), self.state.rip, bytes);
        let mut insn = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut insn);
            let too_long = insn.is_invalid() && insn.len() >= MAX;
            if decoder.last_error() == DecoderError::NoMoreBytes || too_long {
                return;
            }
            let end = decoder.position();
            let Some(next) = take(Decoded::new(insn), end) else {
                return;
            };
            if next != end {
                if decoder.set_position(next).is_err() {
                    return;
                }
                decoder.set_ip(self.state.rip.wrapping_add(next as u64));
            }
        }
    }
}

/// Decodes the first instruction in `bytes`.
pub(crate) fn decode(size: CodeSize, offset: u64, bytes: &[u8]) -> (Instruction, DecoderError) {
    let mut decoder = decoder(size, offset, bytes);
    let insn = decoder.decode();
    (insn, decoder.last_error())
}

fn decoder(size: CodeSize, offset: u64, bytes: &[u8]) -> Decoder<'_> {
    let bitness = match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    Decoder::with_ip(bitness, bytes, offset, DecoderOptions::NONE)
}
