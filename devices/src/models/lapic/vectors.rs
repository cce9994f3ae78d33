//! A set of interrupt vectors: IRR, ISR and TMR.

use std::fmt;

/// A set of the vectors 0 to 255.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Vectors([u32; 8]);

impl Vectors {
    /// Puts a vector in or takes it out.
    pub fn set(&mut self, vector: u8, present: bool) {
        let word = &mut self.0[usize::from(vector / 32)];
        let bit = 1 << (vector % 32);
        *word = if present { *word | bit } else { *word & !bit };
    }

    /// Whether it is in.
    pub fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 32)] >> (vector % 32) & 1 == 1
    }

    /// The highest, which has the highest priority.
    pub fn highest(&self) -> Option<u8> {
        let (index, word) = (0u8..8).zip(self.0).rev().find(|(_, word)| *word != 0)?;
        let bit = 31 - word.leading_zeros().to_le_bytes()[0];
        Some(32 * index + bit)
    }

    /// Vectors 32 `index` to 32 `index` + 31, as a register shows them.
    pub fn word(&self, index: usize) -> u32 {
        self.0[index % 8]
    }
}

impl fmt::Debug for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries((0..=u8::MAX).filter(|vector| self.has(*vector)))
            .finish()
    }
}
