//! Random programs end in the same state whether the software CPU uses its fast operations or only the instruction core.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "bytes of instructions are cut from larger numbers"
)]

#[path = "emulate_silicon/rng.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod rng;

use rng::Rng;
use std::sync::Arc;
use umbra_memslots::ram::{GuestRam, HostMapping};
use umbra_memslots::{Gpa, GuestMemory, SlotLimits, SlotTable};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::regs::{Regs, Segment, SystemRegs};
use umbra_vcpu::soft::{SoftOptions, SoftVcpu, SoftVm};

const RAM: u64 = 1 << 18;
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x8ff0;
/// Where registers point, and operands lie.
const DATA: u64 = 0x1_0000;
/// Mapped, and no RAM.
const DEVICE: u64 = 0x10_0000;
const HLT: u8 = 0xf4;
/// CR4: SSE may be used, and has its own exception.
const OSFXSR: u64 = 1 << 9;
const OSXMMEXCPT: u64 = 1 << 10;
/// Of an ordinary run, which finds the same each time; another comes by `UMBRA_SEED`.
const SEED: u64 = 0x75_6d62_7261;
/// Programs of an ordinary run; more if `UMBRA_SILICON_CASES` asks for millions of cases elsewhere.
const PROGRAMS: u64 = 100;
const INSTRUCTIONS: u64 = 32;

/// One instruction of the forms that have fast operations, or now and then something else.
fn instruction(rng: &mut Rng, long: bool, code: &mut Vec<u8>) {
    if rng.chance(10) {
        code.push(0x66);
    }
    if long && rng.chance(3) {
        code.push(rng.pick(&[0x64, 0x65, 0x67, 0xf0, 0xf3]));
    }
    if long && rng.chance(60) {
        code.push(0x40 | rng.below(16) as u8);
    }
    let wide_operation = 8 * rng.below(8) as u8;
    let modrm = |rng: &mut Rng, code: &mut Vec<u8>| {
        // A register, or [reg + disp8] mostly; never RSP or RBP as the base, which would need more bytes than follow.
        let byte = rng.next() as u8;
        let byte = match rng.below(3) {
            0 => byte | 0xc0,
            _ => byte & 0x3f | 0x40,
        };
        code.push(byte);
        if byte < 0xc0 {
            if byte & 7 == 4 {
                code.push(rng.next() as u8);
            }
            code.push(rng.next() as u8);
        }
    };
    let immediate = |rng: &mut Rng, code: &mut Vec<u8>| code.push(rng.pick(&[0, 1, 2, 7, 31, 33, 0x7f, 0x80, 0xff]));
    match rng.below(28) {
        // Arithmetic, all four directions, and with an immediate byte.
        0..=4 => {
            code.push(wide_operation | rng.below(4) as u8);
            modrm(rng, code);
        }
        5 | 6 => {
            code.push(rng.pick(&[0x80, 0x83, 0xc0, 0xc1, 0x6b, 0xc6]));
            modrm(rng, code);
            immediate(rng, code);
        }
        7 | 8 => {
            code.push(rng.pick(&[0xd0, 0xd1, 0xd2, 0xd3, 0xfe, 0xff, 0x84, 0x85, 0x8d]));
            modrm(rng, code);
        }
        9 => {
            // `test`, `not`, `neg`, multiplications and divisions.
            code.push(rng.pick(&[0xf6, 0xf7, 0xf7]));
            let modrm = 0xc0 | rng.below(64) as u8;
            code.push(modrm);
            if modrm & 0x30 == 0 {
                code.extend([0x81, 0, 0x80, 0x7f]);
            }
        }
        20 => {
            // Bits, and `bswap`.
            if rng.chance(20) {
                code.push(0xf3);
            }
            code.push(0x0f);
            match rng.below(4) {
                0 => {
                    code.push(0xba);
                    code.push(0xe0 | rng.below(32) as u8);
                    immediate(rng, code);
                }
                1 => code.push(0xc8 | rng.below(8) as u8),
                2 => {
                    code.push(rng.pick(&[0xa3, 0xab, 0xb3, 0xbb]));
                    code.push(0xc0 | rng.below(64) as u8);
                }
                _ => {
                    code.push(rng.pick(&[0xb8, 0xbc, 0xbd, 0x18, 0x0d]));
                    modrm(rng, code);
                }
            }
        }
        21 => code.extend(rng.pick(&[
            [0x87, 0xd8],
            [0x91, 0x97],
            [0xfa, 0x90],
            [0xb4, 0x05],
            [0xff, 0x73],
            [0x86, 0xe1],
        ])),
        22..=25 => vector(rng, code, modrm),
        26 | 27 => {
            // What sets flags, and a jump that depends on them.
            match rng.below(4) {
                0 => code.push(rng.pick(&[0x38, 0x39, 0x3a, 0x3b, 0x84, 0x85, 0x28, 0x29, 0x00, 0x21])),
                1 => code.push(rng.pick(&[0xfe, 0xff])),
                2 => code.push(rng.pick(&[0x3c, 0xa8, 0x2c])),
                _ => code.push(rng.pick(&[0x80, 0x83, 0xc0])),
            }
            match *code.last().unwrap_or(&0) {
                0x3c | 0xa8 | 0x2c => immediate(rng, code),
                0x80 | 0x83 | 0xc0 => {
                    modrm(rng, code);
                    immediate(rng, code);
                }
                0xfe | 0xff => code.push(0xc0 | rng.below(16) as u8),
                _ => modrm(rng, code),
            }
            code.push(0x70 | rng.below(16) as u8);
            code.push(rng.below(3) as u8);
        }
        10..=12 => {
            code.push(rng.pick(&[0x88, 0x89, 0x8a, 0x8b]));
            modrm(rng, code);
        }
        13 | 14 => {
            // cmovcc, setcc, imul, movzx, movsx.
            code.push(0x0f);
            let condition = rng.below(16) as u8;
            code.push(rng.pick(&[0x40 | condition, 0x90 | condition, 0xaf, 0xb6, 0xb7, 0xbe, 0xbf]));
            modrm(rng, code);
        }
        15 => {
            if rng.chance(30) {
                // A string instruction, often with a count that ends soon.
                code.push(0xb1);
                code.push(rng.next() as u8);
                code.push(rng.pick(&[0xf3, 0xf3, 0xf2, 0x90, 0xfc]));
                code.push(rng.pick(&[0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf, 0xa6, 0xa7]));
            } else {
                code.push(rng.pick(&[
                    0x98, 0x99, 0x90, 0x9c, 0xc9, 0xf8, 0xf9, 0xf5, 0xa4, 0xaa, 0xac, 0xae, 0xa7, 0xad,
                ]));
            }
        }
        16 | 17 => code.push(0x50 | rng.below(16) as u8),
        18 => {
            // A short jump over a byte or none.
            code.push(0x70 | rng.below(16) as u8);
            code.push(rng.below(2) as u8);
        }
        _ => {
            let target = rng.below(2) as u8;
            code.extend(rng.pick(&[
                [0xe8, target, 0, 0, 0],
                [0x90, 0x68, 1, 2, 3],
                [0xeb, target, 0x90, 0x63, 0xc1],
            ]));
        }
    }
}

/// One instruction on XMM registers.
fn vector(rng: &mut Rng, code: &mut Vec<u8>, modrm: impl Fn(&mut Rng, &mut Vec<u8>)) {
    let prefix = rng.pick(&[0, 0x66, 0xf3, 0xf2]);
    if prefix != 0 {
        code.push(prefix);
    }
    code.push(0x0f);
    match rng.below(4) {
        0 => code.push(rng.pick(&[0x10, 0x11, 0x28, 0x29, 0x6e, 0x7e, 0x6f, 0x7f, 0xd6, 0xd7, 0x10, 0x6f])),
        1 => code.push(rng.pick(&[0x58, 0x59, 0x5c, 0x5e, 0x2a, 0x2c, 0x2d, 0x2e, 0x2f, 0x51, 0x5a])),
        2 => {
            let opcode = rng.pick(&[0x70, 0x71, 0x72, 0x73, 0xc6]);
            code.push(opcode);
            code.push(0xc0 | rng.below(64) as u8);
            code.push(rng.below(20) as u8 * 5);
            return;
        }
        // `pshufb`, `pmulld` and, with a count, `palignr`.
        3 if rng.chance(10) => {
            let [map, opcode] = rng.pick(&[[0x38, 0x00], [0x38, 0x40], [0x3a, 0x0f]]);
            code.extend([map, opcode]);
            modrm(rng, code);
            if map == 0x3a {
                code.push(rng.below(40) as u8);
            }
            return;
        }
        _ => code.push(rng.pick(&[
            0x54, 0x55, 0x56, 0x57, 0x14, 0x15, 0x60, 0x63, 0x69, 0x6b, 0xd8, 0xd9, 0xdd, 0xe0, 0xe3, 0xe4, 0xe5, 0xe9,
            0xea, 0xed, 0xee, 0xf6, 0x60, 0x61, 0x62, 0x64, 0x66, 0x67, 0x68, 0x6a, 0x6c, 0x6d, 0x74, 0x76, 0xd4, 0xd5,
            0xda, 0xdb, 0xde, 0xdf, 0xeb, 0xef, 0xf4, 0xf5, 0xf8, 0xfa, 0xfb, 0xfc, 0xfe, 0xd2, 0xf3,
        ])),
    }
    modrm(rng, code);
}

fn regs(rng: &mut Rng, rip: u64) -> Regs {
    let mut value = || match rng.below(12) {
        0..=3 => rng.value(),
        4 => DEVICE + rng.pick(&[0, 8, 0x101]),
        _ => DATA + 0x1000 * rng.below(4) + rng.pick(&[0, 8, 0x100, 0xf84, 0xff9, 3]),
    };
    Regs {
        rax: value(),
        rbx: value(),
        rcx: value(),
        rdx: value(),
        rsi: value(),
        rdi: value(),
        rbp: value(),
        r8: value(),
        r9: value(),
        r10: value(),
        r11: value(),
        r12: value(),
        r13: value(),
        r14: value(),
        r15: value(),
        rsp: DATA + 0x8800,
        rip,
        rflags: 2 | rng.next() & 0x8d5,
    }
}

/// What code is executed as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Real,
    Flat,
    Long,
}

fn system(mode: Mode, user: bool) -> SystemRegs {
    let data = Segment {
        selector: 16,
        limit: u32::MAX,
        kind: 3,
        dpl: if user { 3 } else { 0 },
        non_system: true,
        present: true,
        db: true,
        granularity: true,
        ..Segment::default()
    };
    if mode == Mode::Real {
        return real(Segment {
            selector: (DATA >> 4) as u16,
            base: DATA,
            limit: 0xffff,
            dpl: 0,
            db: false,
            granularity: false,
            ..data
        });
    }
    let long = mode == Mode::Long;
    SystemRegs {
        cs: Segment {
            kind: 11,
            long,
            db: !long,
            ..data
        },
        ds: data,
        es: data,
        ss: data,
        fs: Segment { base: 0x20, ..data },
        gs: Segment { base: 0x1000, ..data },
        cr0: 0x11 | u64::from(long) << 31,
        cr3: TABLES,
        cr4: OSFXSR | OSXMMEXCPT | if long { 0x20 } else { 0 },
        efer: if long { 0xd01 } else { 0 },
        ..SystemRegs::default()
    }
}

/// Real mode, with data from [`DATA`] on.
fn real(data: Segment) -> SystemRegs {
    SystemRegs {
        cs: Segment {
            kind: 11,
            selector: 0,
            base: 0,
            ..data
        },
        ds: data,
        es: data,
        ss: data,
        fs: data,
        gs: data,
        cr0: 0x10,
        cr4: OSFXSR | OSXMMEXCPT,
        ..SystemRegs::default()
    }
}

/// A machine with a program in it.
struct Machine {
    ram: GuestRam,
    vcpu: SoftVcpu,
}

impl Machine {
    fn new(fast: bool, mode: Mode, user: bool, pattern: &[u8], code: &[u8]) -> Self {
        let vm = SoftVm::new(SoftOptions { mmio_caching: true }).unwrap();
        let mut slots = SlotTable::new(SlotLimits::X86_64);
        slots.add_observer(vm.slot_follower());
        let ram = GuestRam::from_table(slots);
        ram.map(Gpa::new(0), Arc::new(HostMapping::anonymous(RAM).unwrap()))
            .unwrap();
        for (at, entry) in [(0, TABLES + 0x1007), (0x1000, TABLES + 0x2007), (0x2000, 0x87)] {
            ram.write(Gpa::new(TABLES + at), &u64::to_le_bytes(entry)).unwrap();
        }
        ram.write(Gpa::new(DATA), pattern).unwrap();
        ram.write(Gpa::new(CODE), code).unwrap();
        let mut vcpu = vm.create_vcpu(ram.reader());
        vcpu.set_fast(fast);
        vcpu.set_system_regs(&system(mode, user)).unwrap();
        Self { ram, vcpu }
    }

    /// Runs to the end, or far enough, and gives the exits on the way.
    fn run(&mut self, regs: &Regs) -> Vec<VmExit> {
        self.vcpu.set_regs(regs).unwrap();
        // Random code may go round in circles.
        self.vcpu.stop_after(8 * INSTRUCTIONS);
        let mut exits = vec![self.vcpu.run(VmEntry::Resume).unwrap()];
        while let Some(last @ (VmExit::Mmio { .. } | VmExit::Pio { .. })) = exits.last() {
            let entry = if last.wants_value() {
                VmEntry::Value(0x5a5a_a5a5_1234_8001)
            } else {
                VmEntry::Resume
            };
            exits.push(self.vcpu.run(entry).unwrap());
        }
        exits
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        self.ram.read(Gpa::new(0), &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn random_programs_fast_and_by_the_core_end_alike() {
    let cases: Option<u64> = std::env::var("UMBRA_SILICON_CASES").ok().and_then(|n| n.parse().ok());
    let programs = cases.map_or(PROGRAMS, |cases| (cases / INSTRUCTIONS / 160).max(PROGRAMS));
    let seed = std::env::var("UMBRA_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(SEED);
    println!("UMBRA_SEED={seed}, {programs} programs");
    let pattern: Vec<u8> = (0..0x9000u32)
        .map(|n| (n.wrapping_mul(0x9e37_79b1) >> 13) as u8)
        .collect();
    let mut rng = Rng::new(seed);
    let mut executed = 0;
    for number in 0..programs {
        let mode = rng.pick(&[Mode::Real, Mode::Flat, Mode::Long, Mode::Long, Mode::Long, Mode::Long]);
        let user = mode != Mode::Real && rng.chance(30);
        let mut code = Vec::new();
        let mut starts = Vec::new();
        for _ in 0..INSTRUCTIONS {
            starts.push(CODE + code.len() as u64);
            instruction(&mut rng, mode == Mode::Long, &mut code);
        }
        code.push(HLT);
        let mut fast = Machine::new(true, mode, user, &pattern, &code);
        let mut core = Machine::new(false, mode, user, &pattern, &code);
        let mut start = Some(CODE);
        // A fault is the end, there is no IDT; with new registers it goes on behind it.
        while let Some(rip) = start {
            let regs = regs(&mut rng, rip);
            let (exit, expected) = (fast.run(&regs), core.run(&regs));
            let (state, wanted) = (fast.vcpu.state(), core.vcpu.state());
            assert!(
                exit == expected && state == wanted && fast.vcpu.executed() == core.vcpu.executed(),
                "program {number}, {mode:?}, CPL 3 {user}: {code:02x?} from {rip:#x}\n{regs:x?}\nfast: {exit:?} {:x?} \
                 after {}\ncore: {expected:?} {:x?} after {}",
                state.regs(),
                fast.vcpu.executed(),
                wanted.regs(),
                core.vcpu.executed(),
            );
            let stopped = state.rip;
            start = starts.iter().copied().find(|start| *start > stopped.max(rip));
        }
        let differs = fast.memory().iter().zip(&core.memory()).position(|(a, b)| a != b);
        assert_eq!(differs, None, "RAM after program {number}: {code:02x?}");
        executed += core.vcpu.executed();
    }
    println!("{executed} instructions");
    assert!(executed > INSTRUCTIONS / 2 * programs, "programs end too soon");
}
