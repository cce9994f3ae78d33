//! [`CodePages`]: which frames have decoded code, and what was written to them.

use std::collections::HashMap;
use umbra_memslots::{Gfn, Gpa};

/// Bytes for which one bit stands.
const LINE: u64 = 64;

/// The frames from which code was decoded, and the lines of it in each.
#[derive(Default)]
pub(super) struct CodePages {
    lines: HashMap<Gfn, u64>,
    /// Frames whose code was changed.
    changed: Vec<Gfn>,
}

impl CodePages {
    /// Whether code of this frame was decoded.
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.lines.contains_key(&gfn)
    }

    /// Code of `bytes` bytes within a page was decoded. Says whether it is the first of its frame.
    pub fn add(&mut self, gpa: Gpa, bytes: usize) -> bool {
        let lines = self.lines.entry(gpa.gfn()).or_default();
        let first = *lines == 0;
        *lines |= mask(gpa, bytes);
        first
    }

    /// Bytes within a page were written.
    #[inline]
    pub fn written(&mut self, gpa: Gpa, bytes: usize) {
        if self.lines.is_empty() {
            return;
        }
        if let Some(lines) = self.lines.get(&gpa.gfn())
            && lines & mask(gpa, bytes) != 0
        {
            self.lines.remove(&gpa.gfn());
            self.changed.push(gpa.gfn());
        }
    }

    /// Whether there is changed code that nobody took yet.
    #[inline]
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The frames whose code has changed.
    pub fn take_changed(&mut self) -> Vec<Gfn> {
        std::mem::take(&mut self.changed)
    }

    /// Nothing is decoded any more.
    pub fn clear(&mut self) {
        self.lines.clear();
        self.changed.clear();
    }
}

fn mask(gpa: Gpa, bytes: usize) -> u64 {
    let first = gpa.page_offset() / LINE;
    let last = (gpa.page_offset() + bytes.max(1) as u64 - 1).min(4095) / LINE;
    u64::MAX << first & u64::MAX >> (63 - last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_to_decoded_lines_count() {
        let mut code = CodePages::default();
        assert!(code.add(Gpa::new(0x1040), 64));
        assert!(!code.add(Gpa::new(0x1ffc), 4));
        code.written(Gpa::new(0x1000), 64);
        code.written(Gpa::new(0x1080), 8);
        code.written(Gpa::new(0x2040), 8);
        assert!(!code.has_changed());
        code.written(Gpa::new(0x103f), 2);
        assert_eq!(code.take_changed(), [Gpa::new(0x1000).gfn()]);
        assert!(!code.contains(Gpa::new(0x1000).gfn()) && !code.has_changed());
    }

    #[test]
    fn mask_has_the_lines_of_an_access() {
        assert_eq!(mask(Gpa::new(0), 4096), u64::MAX);
        assert_eq!(mask(Gpa::new(0x40), 1), 2);
        assert_eq!(mask(Gpa::new(0x3f), 2), 3);
        assert_eq!(mask(Gpa::new(0xfff), 1), 1 << 63);
    }
}
