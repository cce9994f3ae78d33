//! Decoded instructions that are used again, and which of them the backend can't execute.
//!
//! An instruction is what its bytes, its RIP and the size of the code make it. So a remembered one is right exactly if the
//! bytes in memory are still the same; they are compared each time, and no write to code has to be noticed.

use super::Parts;
use crate::emulate::decode;
use crate::emulate::state::CodeSize;
use iced_x86::{Code, DecoderError, Instruction};

/// Places for instructions.
const PLACES: usize = 1 << 12;
/// The longest instruction.
pub const MAX: usize = 15;

/// An instruction, ready to be executed.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    rip: u64,
    size: CodeSize,
    length: u8,
    bytes: [u8; MAX],
    /// The instruction.
    pub insn: Instruction,
    /// What of the state it needs.
    pub parts: Parts,
}

impl Known {
    /// The instruction that `bytes` at `rip` begin with; `None` if none ends in them.
    pub fn decode(rip: u64, size: CodeSize, bytes: &[u8]) -> Option<Self> {
        let (insn, error) = decode(size, rip, bytes);
        if error != DecoderError::None {
            return None;
        }
        let mut known = Self::once(insn, rip, size);
        known.length = insn.len() as u8;
        known
            .bytes
            .get_mut(..insn.len())?
            .copy_from_slice(bytes.get(..insn.len())?);
        Some(known)
    }

    /// An instruction that is not to be remembered.
    pub fn once(insn: Instruction, rip: u64, size: CodeSize) -> Self {
        Self {
            rip,
            size,
            length: 0,
            bytes: [0; MAX],
            parts: Parts::of(&insn),
            insn,
        }
    }

    /// The bytes it was decoded from.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// The instructions that were executed last.
#[derive(Default)]
pub struct CodeCache {
    /// Empty until the first is remembered.
    places: Vec<Option<Known>>,
}

impl CodeCache {
    /// What was remembered for this place. Its bytes are to be compared with those in memory.
    #[inline]
    pub fn find(&self, rip: u64, size: CodeSize) -> Option<&Known> {
        let known = self.places.get(place(rip))?.as_ref()?;
        (known.rip == rip && known.size == size).then_some(known)
    }

    /// Remembers an instruction in the place of another one.
    pub fn remember(&mut self, known: Known) {
        if self.places.is_empty() {
            self.places.resize(PLACES, None);
        }
        self.places[place(known.rip)] = Some(known);
    }
}

fn place(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize % PLACES
}

/// A set of instructions, by opcode and form.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CodeSet(Vec<u64>);

impl CodeSet {
    /// Adds one.
    pub fn insert(&mut self, code: Code) {
        let (word, bit) = (code as usize / 64, code as usize % 64);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << bit;
    }

    /// Whether it has this one.
    #[inline]
    pub fn contains(&self, code: Code) -> bool {
        let word = self.0.get(code as usize / 64);
        word.is_some_and(|word| word >> (code as usize % 64) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(rip: u64, bytes: &[u8]) -> Known {
        Known::decode(rip, CodeSize::Bits64, bytes).unwrap()
    }

    #[test]
    fn instruction_is_found_where_and_as_what_it_was_decoded() {
        let mut cache = CodeCache::default();
        assert!(cache.find(0x1000, CodeSize::Bits64).is_none());
        cache.remember(known(0x1000, &[0x0f, 0x01, 0xca]));
        let found = cache.find(0x1000, CodeSize::Bits64).unwrap();
        assert_eq!(
            (found.insn.code(), found.bytes()),
            (Code::Clac, &[0x0f, 0x01, 0xca][..])
        );
        assert!(cache.find(0x1000, CodeSize::Bits32).is_none());
        assert!(cache.find(0x1001, CodeSize::Bits64).is_none());
    }

    #[test]
    fn two_instructions_of_one_place_take_turns() {
        let mut cache = CodeCache::default();
        let other = (1..)
            .map(|n| 0x1000 + n * 0x1000)
            .find(|rip| place(*rip) == place(0x1000));
        let other = other.unwrap();
        cache.remember(known(0x1000, &[0x90]));
        cache.remember(known(other, &[0xf8]));
        assert!(cache.find(0x1000, CodeSize::Bits64).is_none());
        assert_eq!(cache.find(other, CodeSize::Bits64).unwrap().bytes(), [0xf8]);
    }

    #[test]
    fn only_a_whole_instruction_is_remembered_with_its_own_bytes() {
        assert!(
            Known::decode(0, CodeSize::Bits64, &[0x0f, 0x01]).is_none(),
            "half of one"
        );
        assert!(
            Known::decode(0, CodeSize::Bits64, &[0x06]).is_none(),
            "none in this mode"
        );
        let first_of_two = Known::decode(0, CodeSize::Bits64, &[0x0f, 0x01, 0xca, 0x90]).unwrap();
        assert_eq!(first_of_two.bytes(), [0x0f, 0x01, 0xca]);
    }

    #[test]
    fn set_tells_forms_apart() {
        let mut set = CodeSet::default();
        set.insert(Code::Popcnt_r64_rm64);
        assert!(set.contains(Code::Popcnt_r64_rm64));
        assert!(!set.contains(Code::Popcnt_r32_rm32) && !set.contains(Code::INVALID));
    }
}
