//! Bytes become a guest and its steps.

use crate::oracle::{PAGES, Setting, Step, VCPUS, run, words};
use umbra_mmu::shadow::DirtyLog;

/// Reads what is left, and zeros after the end.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u64 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first.into()
            }
            None => 0,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.byte() % bound
    }

    fn word(&mut self) -> u64 {
        (0..4).fold(0, |word, _| word << 8 | self.byte())
    }

    /// Three bytes: a page, flags, and one bit that is wrong. One half of a word with two entries.
    fn entry(&mut self) -> u64 {
        const PLACES: [u64; 16] = [
            0,
            1,
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            9,
            10,
            11,
            13,
            0x3_0000,
            1 << 18,
            (1 << 36) - 1,
        ];
        const FLAGS: [u64; 16] = [
            0x67, 0x67, 0x67, 0x67, 0x67, 0x67, 0x07, 0x07, 0x27, 0x65, 0x63, 0x87, 0xe7, 0x05, 0x01, 0x00,
        ];
        let pick = self.byte();
        let (place, flags) = (PLACES[(pick & 15) as usize], FLAGS[(pick >> 4) as usize]);
        let (flip, key) = (self.byte(), self.byte());
        let odd = if flip < 64 { 1 << flip } else { 0 };
        (place << 12 | flags | if key < 16 { key << 59 } else { 0 }) ^ odd
    }

    fn value(&mut self, mode: u8) -> u64 {
        let entry = self.entry();
        if mode == 2 {
            entry & 0xffff_ffff | self.entry() << 32
        } else {
            entry
        }
    }

    fn vcpu(&mut self) -> usize {
        self.below(VCPUS as u64) as usize
    }

    fn parts(&mut self) -> [u64; 6] {
        let packed = self.byte() | self.byte() << 8;
        [0, 2, 4, 6, 8, 10].map(|shift| (packed >> shift & 3) % 3)
    }

    fn step(&mut self, mode: u8) -> Step {
        match self.byte() {
            0..0x90 => Step::Access {
                vcpu: self.vcpu(),
                parts: self.parts(),
                access: self.below(9) as usize,
                value: self.value(mode),
            },
            0x90..0xa8 => {
                let (page, places) = (self.below(PAGES), words(mode));
                let index = places[self.below(places.len() as u64) as usize];
                Step::Device {
                    page,
                    index,
                    value: self.value(mode),
                }
            }
            0xa8..0xb8 => Step::Invlpg {
                vcpu: self.vcpu(),
                parts: self.parts(),
            },
            0xb8..0xc8 => Step::Registers {
                vcpu: self.vcpu(),
                mode: if self.byte() < 0xc0 { mode } else { self.below(6) as u8 },
                root: self.below(PAGES),
                bits: self.word() << 32 | self.word(),
                pkru: self.word() as u32,
            },
            0xc8..0xd4 => Step::LoadCr3 {
                vcpu: self.vcpu(),
                pcid: self.below(3) as u16,
                keep: self.byte() & 1 == 1,
            },
            0xd4..0xdc => Step::Invpcid {
                vcpu: self.vcpu(),
                kind: self.below(3) as u8,
                pcid: self.below(3) as u16,
                parts: self.parts(),
            },
            0xdc..0xe8 => {
                let all = (1 << PAGES) - 1;
                Step::Slots {
                    present: (self.word() | self.word()) & all,
                    read_only: self.word() & self.word() & self.word() & all,
                }
            }
            0xe8..0xee => Step::Log(match self.below(3) {
                0 => DirtyLog::Off,
                1 => DirtyLog::WriteProtection,
                _ => DirtyLog::DirtyFlags,
            }),
            0xee..0xf6 => Step::ReadLog,
            0xf6..0xfb => Step::Age,
            _ => Step::ZapAll,
        }
    }
}

/// Two bytes say which guest it is, three each what its tables hold, then come its steps. Any bytes will do.
///
/// # Panics
/// If an access sees what no TLB could know, or something leaks.
pub fn check_steps(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let mode = [0, 2, 3, 4, 5, 4][bytes.below(6) as usize];
    let flags = bytes.byte();
    let setting = Setting {
        tables: [16, 24, 64, 200][(flags & 3) as usize],
        tiny: flags & 4 != 0,
        orderly: flags & 8 != 0,
        large: flags & 16 != 0,
        ahead: flags & 32 != 0,
        nested: flags & 64 != 0,
    };
    let entries: Vec<u64> = (0..PAGES as usize * words(mode).len())
        .map(|_| bytes.value(mode))
        .collect();
    let mut steps = Vec::new();
    while !bytes.0.is_empty() && steps.len() < 200 {
        steps.push(bytes.step(mode));
    }
    if let Err(why) = run(mode, steps, &entries, setting) {
        panic!("{why}");
    }
}
