//! A task's state as it lies in memory: the TSS of the 386 and that of the 286 (SDM vol. 3A sections 8.2.1, 8.6).

use super::flags;
use super::state::CpuState;
use crate::regs::Segment;

/// Bytes of the 386's TSS, the larger one.
pub(super) const MAX: usize = 104;

/// T: #DB after a switch to this task.
const TRAP: u8 = 1;

/// Flags that exist outside long mode.
const FLAGS: u64 = 0x003f_7fd5;

/// Which of the two a TSS is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layout {
    /// 16-bit registers, no paging, no FS and GS.
    Bits16,
    /// 32-bit registers.
    Bits32,
}

/// What is loaded from a TSS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TaskImage {
    /// The 286 has none.
    pub cr3: Option<u64>,
    pub ip: u64,
    pub flags: u64,
    /// EAX to EDI, by number.
    pub gpr: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [u16; 6],
    pub ldt: u16,
    pub trap: bool,
}

impl Layout {
    /// The layout of a TSS with this descriptor type, whether busy or not.
    pub(super) const fn of(kind: u8) -> Option<Self> {
        match kind {
            1 | 3 => Some(Self::Bits16),
            9 | 11 => Some(Self::Bits32),
            _ => None,
        }
    }

    /// Bytes that it must have; its limit is one less at least.
    pub(super) const fn length(self) -> usize {
        match self {
            Self::Bits16 => 44,
            Self::Bits32 => MAX,
        }
    }

    /// Where the part that the CPU saves begins.
    pub(super) const fn saved(self) -> usize {
        match self {
            Self::Bits16 => 0x0e,
            Self::Bits32 => 0x20,
        }
    }

    /// The part that the CPU saves, for a task that goes on at `ip` with these flags.
    pub(super) fn save(self, state: &CpuState, ip: u64, rflags: u64) -> Vec<u8> {
        let sys = &state.sys;
        let selector = |segment: &Segment| u64::from(segment.selector);
        let mut words = vec![ip, rflags];
        words.extend(&state.gpr[..8]);
        words.extend([&sys.es, &sys.cs, &sys.ss, &sys.ds].map(selector));
        let size = match self {
            Self::Bits16 => 2,
            Self::Bits32 => {
                words.extend([&sys.fs, &sys.gs].map(selector));
                4
            }
        };
        words
            .iter()
            .flat_map(|word| word.to_le_bytes().into_iter().take(size))
            .collect()
    }

    /// Reads a TSS.
    pub(super) fn parse(self, bytes: &[u8; MAX]) -> TaskImage {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let wide = |at: usize| u64::from(word(at)) | u64::from(word(at + 2)) << 16;
        let flags = |value: u64| value & FLAGS | flags::FIXED;
        match self {
            Self::Bits16 => TaskImage {
                cr3: None,
                ip: u64::from(word(0x0e)),
                flags: flags(u64::from(word(0x10))),
                gpr: std::array::from_fn(|index| u64::from(word(0x12 + 2 * index))),
                segments: [word(0x22), word(0x24), word(0x26), word(0x28), 0, 0],
                ldt: word(0x2a),
                trap: false,
            },
            Self::Bits32 => TaskImage {
                cr3: Some(wide(0x1c)),
                ip: wide(0x20),
                flags: flags(wide(0x24)),
                gpr: std::array::from_fn(|index| wide(0x28 + 4 * index)),
                segments: std::array::from_fn(|index| word(0x48 + 4 * index)),
                ldt: word(0x60),
                trap: bytes[0x64] & TRAP != 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let mut state = CpuState {
            gpr: std::array::from_fn(|index| 0x1111_0000 + index as u64),
            ..CpuState::default()
        };
        let sys = &mut state.sys;
        for (selector, segment) in [
            (8, &mut sys.es),
            (0x10, &mut sys.cs),
            (0x18, &mut sys.ss),
            (0x20, &mut sys.ds),
            (0x28, &mut sys.fs),
            (0x30, &mut sys.gs),
        ] {
            segment.selector = selector;
        }
        for (layout, end) in [(Layout::Bits16, 0x2a), (Layout::Bits32, 0x60)] {
            let saved = layout.save(&state, 0x1234, 0x4002);
            assert_eq!(layout.saved() + saved.len(), end);
            let mut bytes = [0; MAX];
            bytes[layout.saved()..end].copy_from_slice(&saved);
            let image = layout.parse(&bytes);
            assert_eq!((image.ip, image.flags), (0x1234, 0x4002));
            assert_eq!(image.segments[..4], [8, 0x10, 0x18, 0x20]);
            let wide = layout == Layout::Bits32;
            assert_eq!(image.gpr[7], if wide { 0x1111_0007 } else { 7 });
            assert_eq!(image.segments[5], if wide { 0x30 } else { 0 });
        }
    }
}
